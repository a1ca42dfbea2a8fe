"""Observers of a trainer: they write and report, and never change what is learnt."""

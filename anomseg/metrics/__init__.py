"""Figures over unbounded scores."""

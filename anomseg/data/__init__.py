"""Scenes, datasets and data modules."""

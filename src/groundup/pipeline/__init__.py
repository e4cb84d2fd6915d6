"""Recipes, stages, the run folder."""

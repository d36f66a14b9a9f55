"""Recipes of the embedded checkpoints; only experiment files name them."""

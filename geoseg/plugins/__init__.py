"""Hydra looks for plugins in its package hydra_plugins alone; ``geoseg.sweep.register`` adds this folder to it."""

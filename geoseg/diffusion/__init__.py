"""Latent diffusion models: their parts, training objectives, prompts and sampling."""

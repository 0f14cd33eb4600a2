"""Generative models: distributions of images that defenses project onto. One paper, one file."""

"""Automatic interpretation: what a latent fires on, told in words and tested on text it was not told from."""

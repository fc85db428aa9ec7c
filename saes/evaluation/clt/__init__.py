"""Scores and nulls of cross-layer transcoders."""

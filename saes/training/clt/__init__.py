"""Trainers of cross-layer transcoders."""

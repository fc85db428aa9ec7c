"""Architectures: one file for each dictionary, with its config and its objective."""

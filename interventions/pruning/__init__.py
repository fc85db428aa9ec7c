"""Pruning: parts of a model that can be left out."""

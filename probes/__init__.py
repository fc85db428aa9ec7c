"""Supervised read-outs trained on the same stream as dictionaries."""

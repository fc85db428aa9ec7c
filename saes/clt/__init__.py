"""Cross-layer transcoders: the dictionary, its training, its scores, and the model it replaces."""

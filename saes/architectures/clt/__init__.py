"""Cross-layer transcoders."""

"""Streams of activations and of tokens, from a model or from a store on disk."""

"""Texts of another kind, told apart by codes and by activations."""

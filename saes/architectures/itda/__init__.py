"""ITDA: dictionaries whose atoms are activations."""

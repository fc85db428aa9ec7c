"""Compiled CPU loops (numba): each file serves the operation of the same name one folder up."""

"""Triton kernels: each file serves the operation of the same name one folder up."""

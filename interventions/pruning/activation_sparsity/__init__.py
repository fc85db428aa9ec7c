"""Activation sparsity: which inputs of a linear map can be left out, token by token or for a whole passage."""

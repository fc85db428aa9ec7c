"""Multiple-instance truth probes: is a statement true, false or neither to a model? (arXiv 2506.23921)"""

"""ITDA: dictionaries whose atoms are activations, each with its place in a text (Leask et al. 2025, ICML).

dictionary       `ITDA`: atoms with identities, encoded by pursuit at inference
encoders         matching pursuit, orthogonal and non-negative
criteria         when an activation counts as badly explained
growing          atoms in a buffer with their Gram matrix
growth_config    `GrowthConfig`: how an ITDA is built
training         `ITDATrainer`: greedy construction, a consumer of the stream
nulls            as many atoms that nobody chose
source           the text around an atom
"""

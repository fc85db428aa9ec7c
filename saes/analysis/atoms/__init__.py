"""Atoms: are decoder rows nearly orthogonal under the inner product that whitens the data, and are codes unique?"""

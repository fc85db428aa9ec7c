"""Small dictionaries with random weights, and rows for them, for exchange with other libraries."""

import torch
from monosem.saes import build

D, N, K = 8, 24, 4
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def fill(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module


def made(architecture, n=N, **config):
    """A dictionary of ours with random weights, a quarter of whose thresholds are zero."""
    dictionary = fill(build(architecture, d_in=D, n_latents=n, k=K, **config))
    for name, tensor in dictionary.state_dict().items():
        if name in ("threshold", "theta"):
            tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(2)).sub(0.25).clamp_min(0))
    if "sources" not in config:
        dictionary.place = "resid_post.2 -> mlp_out.2" if "d_out" in config else "resid_post.2"
    dictionary.provenance.model = {"name": "gpt2"}
    return dictionary


def rows(count=40):
    return 2 * torch.randn(count, D, generator=torch.Generator().manual_seed(3))


def same_tensors(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name

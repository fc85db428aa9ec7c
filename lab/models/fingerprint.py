"""A cheap hash that tells one model's parameters from another's."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


@torch.no_grad()
def parameter_hash(module: nn.Module, samples: int = 16) -> str:
    """Hash the names, shapes and about `samples` evenly spaced values of every parameter.

    Values are rounded to bfloat16 first, so fp32 and bf16 copies of the same weights agree. One copy to the
    host in all.
    """
    digest, values = hashlib.blake2b(digest_size=16), []
    for name, parameter in module.named_parameters():
        digest.update(f"{name}{list(parameter.shape)}".encode())
        flat = parameter.detach().reshape(-1)
        values.append(flat[:: max(1, flat.numel() // samples)].to(torch.bfloat16))
    if values:
        digest.update(torch.cat(values).cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

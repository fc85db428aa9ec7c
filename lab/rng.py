"""Named random generators derived from one seed. Nothing in monosem touches a global generator."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: object) -> int:
    """A 63-bit seed that depends on `seed` and on every name, and on nothing else (no process salt)."""
    text = "/".join([str(int(seed)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh `torch.Generator` for the named purpose: `generator(0, "shuffle", "resid_post.12")`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *names))

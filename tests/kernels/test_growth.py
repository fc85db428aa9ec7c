"""Admission of rows one after another: the compiled chain against the specification."""

from __future__ import annotations

import pytest
import torch
from monosem.kernels.dispatch import using
from monosem.kernels.growth import admit, lost
from torch import Tensor


def rows_of(n: int, d: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    parts = torch.randn(24, d, generator=g)
    weights = torch.randn(n, 24, generator=g) * (torch.rand(n, 24, generator=g) < 0.2)
    return weights @ parts + 0.05 * torch.randn(n, d, generator=g)


def buffers(x: Tensor, n: int, capacity: int) -> tuple[Tensor, Tensor]:
    atoms = torch.zeros(capacity, x.shape[1])
    atoms[:n] = x[:n] / x[:n].norm(dim=1, keepdim=True)
    return atoms, atoms @ atoms.T


@pytest.mark.parametrize("n", (0, 300))
@pytest.mark.parametrize("cosine", (False, True))
@pytest.mark.parametrize("nonnegative", (False, True))
def test_compiled_chain_is_the_specification(n: int, cosine: bool, nonnegative: bool) -> None:
    x, given = rows_of(120, 32, 0), rows_of(300, 32, 1)
    found = {}
    for backend in ("compiled", "reference"):
        atoms, gram = buffers(given, n, n + 120)
        with using(backend):
            taken = admit(x, atoms, gram, n, 6, 0.15, cosine=cosine, nonnegative=nonnegative)
        found[backend] = taken, atoms, gram
    taken, atoms, gram = found["compiled"]
    assert 5 < len(taken) < 115 and taken.equal(found["reference"][0])
    assert atoms.equal(found["reference"][1])
    torch.testing.assert_close(gram, atoms @ atoms.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(gram, found["reference"][2], atol=1e-5, rtol=0)


def test_chunks_of_candidates_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows_of(200, 16, 2)
    whole = admit(x, *buffers(x, 0, 200), 0, 4, 0.1)
    monkeypatch.setattr("monosem.kernels.growth.chunk_rows", lambda n: 17)
    assert admit(x, *buffers(x, 0, 200), 0, 4, 0.1).equal(whole)


def test_room_keeps_the_first() -> None:
    x = rows_of(200, 16, 3)
    whole = admit(x, *buffers(x, 0, 200), 0, 4, 0.1)
    for backend in ("compiled", "reference"):
        with using(backend):
            assert admit(x, *buffers(x, 0, 200), 0, 4, 0.1, room=7).equal(whole[:7])


def test_zeros_and_copies_never_enter() -> None:
    x = torch.eye(4).repeat(3, 1)
    x[5:] *= 2
    x = torch.cat([torch.zeros(2, 4), x])
    for backend in ("compiled", "reference"):
        with using(backend):
            assert admit(x, *buffers(x, 0, 14), 0, 3, 1e-4).tolist() == [2, 3, 4, 5]


def test_lost_is_a_share_of_each_row() -> None:
    x, x_hat = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]]), torch.zeros(4, 2)
    x_hat[3] = torch.tensor([1.0, 1.0])
    assert lost(x, x_hat).tolist() == [1, 1, 0, 0.5]
    assert lost(x, x_hat, cosine=True).tolist() == pytest.approx([1, 1, 0, 1 - 0.5**0.5])


def test_refusals() -> None:
    x = torch.eye(4)
    with pytest.raises(ValueError, match="k must be at least 1"):
        admit(x, *buffers(x, 0, 4), 0, 0, 0.1)
    with pytest.raises(ValueError, match="no room for 3 beside 2"):
        admit(x, *buffers(x, 2, 4), 2, 1, 0.1, room=3)

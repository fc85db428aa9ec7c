"""Model diffing on a crosscoder whose latents are known: shared, exclusive, and two ways to be falsely exclusive."""

from __future__ import annotations

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.saes.analysis.diffing import diff, latent_scaling, relative_norms, shared_cosines
from monosem.saes.architectures.relu import ReLU
from monosem.saes.registry import build

torch.set_num_threads(1)

D, SHARED, ONLY = 16, 6, 3
TRUE = SHARED + 2 * ONLY
TILT = 0.5
"""Sine of the angle between both rows of a shared latent, but for latents 0 and 1, whose rows are equal."""


def directions() -> torch.Tensor:
    """Orthonormal rows of every feature in both sources, [2, TRUE, D]; zero where the source has not the feature."""
    basis = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0]
    both = basis[:TRUE].repeat(2, 1, 1)
    spare = basis[TRUE:]
    for latent, other in zip(range(2, SHARED), spare, strict=True):
        both[1, latent] = (1 - TILT**2) ** 0.5 * both[0, latent] + TILT * other
    both[1, SHARED : SHARED + ONLY] = 0
    both[0, SHARED + ONLY :] = 0
    return both


def rows(n: int = 600) -> torch.Tensor:
    """Both sources side by side; the second is 20 times as large."""
    g = torch.Generator().manual_seed(1)
    causes = (torch.rand(n, TRUE, generator=g) < 0.3) * (1 + torch.rand(n, TRUE, generator=g))
    return torch.cat([causes @ directions()[0], 20 * (causes @ directions()[1])], 1)


def crosscoder(extra: int = 0) -> ReLU:
    """The exact one: a latent for each feature, read where it is; and silent latents after them."""
    found = build("relu", d_in=2 * D, sources=(D, D), n_latents=TRUE + extra, k=4)
    assert isinstance(found, ReLU)
    first, second = directions()
    found.decoder_of(0)[:TRUE].copy_(first)
    found.decoder_of(1)[:TRUE].copy_(20 * second)
    found.encoder_of(0)[:TRUE].copy_(first)
    found.encoder_of(1)[SHARED + ONLY : TRUE].copy_(second[SHARED + ONLY :] / 20)
    found.place = found.place.scaled([1.0, 0.05])
    return found


def test_the_planted_shares_are_read_off() -> None:
    exact, x = crosscoder(), rows()
    assert torch.allclose(exact(x), x, atol=1e-4)
    expected = torch.tensor([0.5] * SHARED + [0.0] * ONLY + [1.0] * ONLY)
    assert torch.allclose(relative_norms(exact), expected, atol=1e-5)
    cosines = shared_cosines(exact)[:SHARED]
    assert torch.allclose(cosines, torch.tensor([1.0, 1.0] + [(1 - TILT**2) ** 0.5] * 4), atol=1e-5)
    found = diff(exact, x, held_out="fresh rows")
    values = {name: score.value for name, score in found.items()}
    assert values == pytest.approx({"only_first": ONLY / TRUE, "only_second": ONLY / TRUE, "shared": SHARED / TRUE,
                                    "shared_cosine": float(cosines.mean()), "genuine": 1.0}, abs=1e-5)  # fmt: skip
    for name, score in found.items():
        assert score.n == {"shared_cosine": SHARED, "genuine": 2 * ONLY}.get(name, TRUE) and score.interval
        assert score.nulls.keys() == ({"shared latents"} if name == "genuine" else {"shuffled"})
    assert found["genuine"].nulls["shared latents"] == 0 and found["genuine"].held_out == "fresh rows"
    assert found["shared_cosine"].nulls["shuffled"] < 0.9 * found["shared_cosine"].value


def test_shrunk_and_decoupled_latents_are_not_genuine() -> None:
    """Latent 0 lost its row in the second source; latent 1's is held there by a latent of its own."""
    false, x = crosscoder(extra=1), rows()
    false.decoder_of(1)[-1].copy_(false.decoder_of(1)[1])
    false.encoder_of(1)[-1].copy_(directions()[1, 1] / 20)
    false.decoder_of(1)[:2].zero_()
    found = latent_scaling(false, x, torch.tensor([0, 1, SHARED, SHARED + ONLY]))
    assert torch.allclose(found.error, torch.tensor([1.0, 0, 0, 0]), atol=1e-4)
    assert torch.allclose(found.reconstruction, torch.tensor([0, 1.0, 0, 0]), atol=1e-4)
    assert found.genuine.tolist() == [False, False, True, True]
    assert diff(false, x)["genuine"].value == pytest.approx(2 * ONLY / (2 * ONLY + 3))


def test_other_crosscoders_and_living_latents() -> None:
    exact, alive = crosscoder(), torch.arange(TRUE) < SHARED
    found = diff(exact, alive=alive, nulls={"same seed": exact})
    assert found["shared"].value == 1 and found["shared"].n == SHARED and "genuine" not in found
    assert found["shared"].nulls["same seed"] == SHARED / TRUE


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="compares two sources"):
        relative_norms(build("topk", d_in=8, n_latents=16, k=2))
    uneven = build("topk", d_in=8, n_latents=16, k=2, sources=(5, 3))
    assert relative_norms(uneven).shape == (16,) and "shared_cosine" not in diff(uneven)
    with pytest.raises(InputError, match="width 5 and 3 cannot be compared"):
        shared_cosines(uneven)
    with pytest.raises(InputError, match="latent 12 is never active"):
        latent_scaling(crosscoder(extra=1), rows(), torch.tensor([0, TRUE]))

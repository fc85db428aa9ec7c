"""Streamed coherence equals the dense one; verdicts on hand-made numbers; the support theorem; refits are exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.lab.errors import InputError
from monosem.saes.analysis.atoms.gram import BINS, gram_stats
from monosem.saes.analysis.atoms.inner_product import AtomicInnerProduct
from monosem.saes.analysis.atoms.refit import refit
from monosem.saes.analysis.atoms.steps import Steps
from monosem.saes.analysis.atoms.uniqueness import stability, threshold_conditions, uniqueness
from monosem.saes.sparse_code import SparseCode
from torch import Tensor

torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 7, 64, None])
def test_blocks_change_nothing(block: int | None) -> None:
    atoms = normal(60, 16)
    atoms[5] = 0
    found = gram_stats(atoms, block=block)
    unit = F.normalize(atoms[torch.arange(60) != 5], dim=1)
    pairs = (unit @ unit.T).abs()[torch.ones(59, 59).triu(1) > 0].sort().values.numpy()
    assert (found.atoms, found.pairs) == (59, len(pairs))
    assert found.maximum == pytest.approx(pairs[-1], abs=1e-14)
    assert found.rms == pytest.approx(np.sqrt(np.mean(pairs**2)), rel=1e-12)
    for q in (0.01, 0.5, 0.99, 0.998, 1.0):
        exact = pairs[int(np.ceil(q * len(pairs))) - 1]
        assert exact <= found.steps.quantile(q) <= exact + 1 / BINS


def test_quantile_uniqueness_is_not_uniqueness() -> None:
    """99 pairs of coherence 0.01 and one of 0.5, with codes of three atoms: the limit is 1 / 5."""
    coherence = Steps.of_sample(np.array([0.01] * 99 + [0.5]))
    verdict = uniqueness(coherence, 0.5, Steps.of_sample(np.array([3, 3, 3])))
    assert verdict.q_star == 0.99 and verdict.limit == 0.2
    assert not verdict.by_maximum and not verdict.isometry
    assert uniqueness(Steps.of_sample(np.array([0.01])), 0.01, Steps.of_sample(np.array([3]))) == (1.0, 0.2, True, True)
    assert stability(Steps.of_sample(np.array([0.5])), Steps.of_sample(np.array([3]))) == 0
    assert stability(coherence, Steps.of_sample(np.array([0]))) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=30), st.lists(st.integers(0, 12), min_size=1, max_size=30))
def test_q_star_is_the_last_share_at_which_the_condition_holds(coherence: list[int], l0: list[int]) -> None:
    mu, k = Steps.of_sample(np.array(coherence) / 100), Steps.of_sample(np.array(l0))
    shares = sorted({*mu.shares, *k.shares})
    held = [q for q in shares if mu.quantile(q) < 1 / (2 * max(k.quantile(q), 1) - 1)]
    assert stability(mu, k) == pytest.approx(max(held, default=0.0))


def test_thresholds_are_an_interval_or_infeasible() -> None:
    assert threshold_conditions(0.1, 3, 1, 1) == pytest.approx((0.3, 0.8))
    assert threshold_conditions(0.1, 3, 1, 1).feasible and "0.3 < threshold < 0.8" in str(
        threshold_conditions(0.1, 3, 1, 1)
    )
    for eps, k, low, high in ((0.1, 3, 0.5, 1), (0.2, 3, 1, 1), (0.1, 6, 1, 1)):
        found = threshold_conditions(eps, k, low, high)
        assert found.feasible == (low > eps * (2 * k - 1) * high) and not found.feasible and "infeasible" in str(found)
    with pytest.raises(InputError, match="0 < smallest <= largest"):
        threshold_conditions(0.1, 3, 2, 1)


def test_a_feasible_threshold_finds_the_support_and_a_refit_the_codes() -> None:
    """Codes of K atoms under the atoms' own inner product: encoder D S, then one threshold."""
    n, d, k, tokens = 1024, 512, 2, 200
    raw = normal(n, d)
    product = AtomicInnerProduct.of_atoms(raw)
    atoms = F.normalize(product.whiten(raw), dim=1) @ product.unwhitening
    eps = gram_stats(atoms, product).maximum
    rng = torch.Generator().manual_seed(1)
    chosen = torch.rand(tokens, n, generator=rng).argsort(1)[:, :k].sort(1).values
    sizes = 1 + 0.2 * torch.rand(tokens, k, dtype=torch.float64, generator=rng)
    codes = torch.zeros(tokens, n, dtype=torch.float64).scatter_(1, chosen, sizes)
    x = codes @ atoms
    condition = threshold_conditions(eps, k, float(sizes.min()), float(sizes.max()))
    assert condition.feasible
    pre = x @ product.S @ atoms.T
    for share in (0.01, 0.5, 0.99):
        above = pre > condition.low + share * (condition.high - condition.low)
        assert torch.equal(above, codes > 0)
    wrong = (pre - codes)[codes > 0].abs().max()
    assert 1e-3 < wrong < eps * (k - 1) * sizes.max()
    kept = (pre * (codes > 0)).float()
    best = refit(x, SparseCode.from_dense(kept), atoms)
    assert (best.values - codes[codes > 0]).abs().max() < 1e-13
    assert (best.x_hat - x).abs().max() < 1e-13
    crowded = threshold_conditions(eps, 8, 1, 1.2)
    assert not crowded.feasible


def test_a_refit_is_least_squares_row_by_row() -> None:
    atoms, x, offset = normal(40, 12), normal(50, 12, seed=1), normal(12, seed=2)
    dense = normal(50, 40, seed=3) * (torch.rand(50, 40, generator=torch.Generator().manual_seed(4)) < 0.15)
    dense[7] = 0
    atoms[3] = atoms[2]
    dense[8, 2:4] = 1.0
    best = refit(x, SparseCode.from_dense(dense), atoms, offset)
    found = best.code.to_dense().double()
    assert torch.equal(best.x_hat[7], offset)
    for row in range(50):
        support = dense[row].nonzero()[:, 0]
        wanted = torch.linalg.lstsq(atoms[support].T, x[row] - offset, driver="gelsd").solution
        torch.testing.assert_close(found[row, support], wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(best.x_hat[row], wanted @ atoms[support] + offset, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(InputError, match="1 of 3 atoms have a direction"):
        gram_stats(torch.eye(3) * torch.tensor([1.0, 0, 0])[:, None])
    with pytest.raises(InputError, match="not finite"):
        gram_stats(torch.tensor([[1.0, torch.nan], [0.0, 1.0]]))
    with pytest.raises(InputError, match="distribution of nothing"):
        Steps.of_sample(np.array([]))

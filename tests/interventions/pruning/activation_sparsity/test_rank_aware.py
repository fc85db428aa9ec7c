"""R-Sparse on matrices whose answer is known: identities, the budget, the share that has to be searched, the bound."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.interventions.pruning.activation_sparsity import curves
from monosem.interventions.pruning.activation_sparsity.curves import ORACLE, RANDOM, CurvesConfig, module_curves
from monosem.interventions.pruning.activation_sparsity.effect import OutputErrors
from monosem.interventions.pruning.activation_sparsity.masks import CRITERIA, Random, Threshold
from monosem.interventions.pruning.activation_sparsity.modules import LinearModule
from monosem.interventions.pruning.activation_sparsity.rank_aware import (
    Budget,
    Factors,
    calibrated,
    greedy_oracle,
    rank_budget,
    residual_weight,
)
from monosem.lab.errors import InputError
from torch import Tensor, nn

torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(weight: Tensor) -> LinearModule:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data.copy_(weight)
    return LinearModule(0, "toy", module)


def toy() -> tuple[LinearModule, Tensor]:
    """A low-rank part that every input feeds, and inputs of which few are large."""
    weight = normal(48, 4) @ normal(4, 64, seed=1) + 0.8 * normal(48, 64, seed=2)
    x = normal(600, 64, seed=3) * (0.15 + 2.0 * (torch.rand(600, 64, generator=torch.Generator().manual_seed(4)) < 0.1))
    return linear(weight), x


def lost(module: LinearModule, x: Tensor, mask: Threshold) -> float:
    errors, passage = OutputErrors(module.weight), torch.arange(len(x)) // 50
    errors.add(x, passage, {"m": mask.keep(x, passage)}, {"m": residual_weight(module, mask)})
    return errors.relative_error("m").value


def test_a_relative_error_is_a_ratio_of_norms() -> None:
    """Of outputs (3, 4) and (0, 5) the first loses its 4: 4 of a norm of sqrt(50)."""
    errors = OutputErrors(torch.eye(2))
    x, kept = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[True, False], [True, True]])
    errors.add(x, torch.arange(2), {"m": kept})
    assert errors.relative_error("m").value == pytest.approx(4 / 50**0.5) and errors.kept("m") == 0.75


def test_the_share_is_chosen_on_calibration_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = toy()
    seen, error = [], curves._error
    monkeypatch.setattr(curves, "_error", lambda of, mask, rows: seen.append(rows) or error(of, mask, rows))
    calibration, config = x[:300].clone(), CurvesConfig(sparsities=(0.5,), shares=(0.5,), oracle_tokens=8)
    module_curves(module, calibration, x[300:], torch.arange(300) // 50, config)
    assert len(seen) == 2 and all(rows is calibration for rows in seen)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.floats(0, 1), st.floats(0, 1))
def test_the_budget_is_never_exceeded(d_in: int, d_out: int, sparsity: float, share: float) -> None:
    budget = rank_budget(d_in, d_out, sparsity, share)
    assert budget.spent(d_in, d_out) <= 1 - sparsity + 1e-9
    assert 0 <= budget.channels <= d_in and 0 <= budget.rank <= min(d_in, d_out)


def test_the_budget_is_the_published_one() -> None:
    assert rank_budget(576, 1536, 0.5, 1.0) == (288, 0) and rank_budget(10, 4, 0.9, 1.0).channels == 1
    assert rank_budget(576, 1536, 0.5, 0.5) == (144, int((576 * 1536 * 0.5 - 144 * 1536) / (576 + 1536)))
    assert rank_budget(576, 1536, 0.0, 1.0) == (576, 0)
    with pytest.raises(InputError, match=r"sparsity must be from 0 to 1, got 1\.5"):
        rank_budget(4, 4, 1.5, 0.5)


def test_nothing_left_out_is_no_error_and_the_scale_is_that_of_the_factors() -> None:
    module, x = toy()
    assert lost(module, x, calibrated(module, x, rank_budget(64, 48, 0.0, 1.0))) == 0
    everything = calibrated(module, x, Budget(0, 48))
    assert lost(module, x, everything) < 1e-5
    factors = Factors.of(module.weight)
    torch.testing.assert_close(torch.linalg.vector_norm(factors.right * factors.left.norm(dim=0)[:, None], dim=0),
                               module.norms)  # fmt: skip
    torch.testing.assert_close(factors.left @ factors.right, module.weight, rtol=1e-4, atol=1e-4)


def test_the_best_share_is_inside_and_has_to_be_searched() -> None:
    module, x = toy()
    errors = {share: lost(module, x[300:], calibrated(module, x[:300], rank_budget(64, 48, 0.6, share)))
              for share in (1.0, 0.8, 0.5, 0.2, 0.0)}  # fmt: skip
    best = min(errors, key=errors.__getitem__)
    assert 0 < best < 1 and errors[best] < 0.9 * min(errors[1.0], errors[0.0])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_thresholds_keep_what_they_were_calibrated_for(criterion: str) -> None:
    module, x = toy()
    mask = calibrated(module, x, Budget(16, 0), criterion)
    kept = mask.keep(x, torch.zeros(len(x), dtype=torch.int64))
    assert float(kept.sum(1).float().mean()) == pytest.approx(16, abs=0.02)
    scale = module.norms if criterion == "abs_norm" else torch.ones(64)
    sizes = x.abs() * scale
    assert sizes[kept].min() > sizes[~kept].max()


def test_the_oracle_is_a_bound_and_exact_where_columns_are_orthogonal() -> None:
    module, x = toy()
    x, passage = x[:100], torch.zeros(100, dtype=torch.int64)
    mask = calibrated(module, x, Budget(20, 0))
    kept = mask.keep(x, passage)
    oracle = greedy_oracle(x, module.weight, kept.sum(1))
    assert torch.equal(oracle.sum(1), kept.sum(1))
    errors = OutputErrors(module.weight)
    errors.add(x, passage, {"oracle": oracle, "mask": kept}, oracle=oracle)
    assert errors.relative_error("oracle").value < errors.relative_error("mask").value
    assert errors.recall("oracle").value == 1 and 0.4 < errors.recall("mask").value < 1
    by_row = ((x * ~oracle) @ module.weight.T).norm(dim=1) <= ((x * ~kept) @ module.weight.T).norm(dim=1) * (1 + 1e-5)
    assert by_row.all()
    square = torch.diag(torch.linspace(1, 3, 12))
    y = normal(30, 12)
    best = greedy_oracle(y, square, torch.full((30,), 5))
    assert torch.equal(best, (y.abs() * torch.linspace(1, 3, 12)).argsort(1, True).argsort(1) < 5)


def test_curves_stand_beside_their_nulls() -> None:
    module, x = toy()
    config = CurvesConfig(sparsities=(0.0, 0.5, 0.75), shares=(0.5,), oracle_tokens=40)
    curves = module_curves(module, x[:200], x[200:], torch.arange(400) // 100, config)
    for sparsity in (0.5, 0.75):
        by_size, best = curves.at(sparsity, "abs_norm"), curves.at(sparsity, ORACLE)
        assert best.error.value < by_size.error.value < curves.at(sparsity, RANDOM).error.value
        assert by_size.error.nulls["random"] == curves.at(sparsity, RANDOM).error.value
        assert by_size.error.beats_nulls() and by_size.error.interval is not None and by_size.error.n == 4
        assert by_size.recall is not None and by_size.recall.value > by_size.recall.nulls[RANDOM]
        assert all(point.spent <= 1 - sparsity + 1e-9 for point in curves.points if point.sparsity == sparsity)
    assert curves.at(0.0, "abs_norm").error.value == 0
    assert [point.error.value for point in curves.front()] == sorted(
        (point.error.value for point in curves.front()), reverse=True
    )
    assert len(curves.chosen.right) == rank_budget(64, 48, 0.5, curves.best[0.5]).rank
    told = curves.at(0.5, "abs_norm").to_json()
    assert told["criterion"] == "abs_norm" and told["rel_error_null_low_rank"] > 0


def test_random_channels_are_drawn_anew_at_every_token() -> None:
    kept = Random(0.25, torch.Generator().manual_seed(0)).keep(torch.zeros(400, 50), torch.zeros(400))
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.01) and len(kept.unique(dim=0)) == 400


def test_nonsense_is_refused() -> None:
    for options, told in (({"decide_at": 0.4}, "must be one of sparsities"), ({"shares": (2.0,)}, "shares from 0 to 1"),
                          ({"oracle_tokens": 0}, "at least 1")):  # fmt: skip
        with pytest.raises(InputError, match=told):
            CurvesConfig(**options)  # type: ignore[arg-type]
    module, x = toy()
    with pytest.raises(InputError, match="unknown criterion 'absnorm': did you mean 'abs_norm'"):
        calibrated(module, x, Budget(4, 0), "absnorm")

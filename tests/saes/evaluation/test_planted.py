"""Planted worlds: exact rates, structure, coherence and repeatability."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.saes.evaluation.planted import Planted, PlantedConfig, directions, mean_coherence

torch.set_num_threads(1)
ROWS = 20_000


def measured_rates(planted: Planted, rows: int = ROWS) -> torch.Tensor:
    return planted.sample(rows).code.firing_counts().double() / rows


def beyond(planted: Planted, rows: int = ROWS) -> torch.Tensor:
    """Standard errors between the measured and the exact rate of every feature."""
    error = (planted.rates * (1 - planted.rates) / rows).sqrt()
    return (measured_rates(planted, rows) - planted.rates).abs() / error


STRUCTURES = {
    "independent": {},
    "trees": {"trees": 3},
    "exclusive trees": {"trees": 3, "exclusive": True},
    "correlated": {"correlation": 0.5},
    "all": {"trees": 2, "depth": 4, "branching": 2, "exclusive": True, "correlation": 0.3},
}


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
def test_rates_are_exact_and_sum_to_l0(structure: dict) -> None:
    planted = Planted(PlantedConfig(n_features=80, d_in=16, l0=6, **structure))
    assert float(planted.rates.sum()) == pytest.approx(6, rel=1e-9)
    far = beyond(planted)
    assert far.max() < 4.5 and far.square().mean() < 1.6  # 1 expected


def test_rates_follow_zipf_up_to_the_largest() -> None:
    planted = Planted(PlantedConfig(n_features=100, l0=8, zipf=1.0, max_rate=0.3))
    rank = torch.arange(1, 101, dtype=torch.float64)
    free = planted.rates < 0.3 - 1e-9
    scaled = (planted.rates * rank)[free]
    assert planted.rates.max() == pytest.approx(0.3) and not free.all()
    assert torch.allclose(scaled, scaled[0].expand_as(scaled))


def test_a_row_is_the_sum_of_its_features() -> None:
    planted = Planted(PlantedConfig(bias=3.0))
    x, code = planted.sample(500)
    assert planted.bias.norm() == pytest.approx(3, rel=1e-6)
    torch.testing.assert_close(x, planted.bias + code.to_dense() @ planted.directions, rtol=0, atol=1e-4)
    assert (code.values > 0).all() and torch.equal(code.l0.sum(), torch.tensor(len(code.values)))


def test_noise_has_the_asked_deviation() -> None:
    quiet, loud = (Planted(PlantedConfig(noise=noise)).sample(2000) for noise in (0.0, 0.5))
    assert torch.equal(quiet.code.values, loud.code.values)
    assert float((loud.x - quiet.x).std()) == pytest.approx(0.5, rel=0.02)


def test_magnitudes_fall_from_the_most_to_the_least_frequent() -> None:
    planted = Planted(PlantedConfig(n_features=20, l0=6, zipf=0, magnitudes=(9, 1), spread=0.1))
    code = planted.sample(5000).code
    sums = torch.zeros(20).index_add_(0, code.indices.long(), code.values)
    torch.testing.assert_close(sums / code.firing_counts(), torch.linspace(9, 1, 20), rtol=0, atol=0.02)


def test_a_child_fires_only_with_its_parent() -> None:
    planted = Planted(PlantedConfig(n_features=60, d_in=16, l0=8, trees=2, branching=3, depth=3))
    fires = planted.sample(5000).code.to_dense() > 0
    children = (planted.parents >= 0).nonzero()[:, 0]
    assert len(children) == 2 * (3 + 9) and (planted.parents[children] < children).all()
    assert not (fires[:, children] & ~fires[:, planted.parents[children]]).any()
    siblings = fires[:, children].view(len(fires), -1, 3).sum(2)
    assert siblings.max() > 1


def test_exclusive_siblings_never_fire_together() -> None:
    config = PlantedConfig(n_features=60, d_in=16, l0=8, trees=2, branching=3, depth=3, exclusive=True)
    planted = Planted(config)
    fires = planted.sample(5000).code.to_dense() > 0
    siblings = fires[:, planted.parents >= 0].view(5000, -1, 3).sum(2)
    assert siblings.max() == 1


def test_a_chain_is_as_deep_as_asked() -> None:
    planted = Planted(PlantedConfig(n_features=12, l0=1, trees=1, branching=1, depth=12))
    assert planted.parents.tolist() == [-1, *range(11)]
    fires = planted.sample(3000).code.to_dense() > 0
    assert not (fires[:, 1:] & ~fires[:, :-1]).any() and fires[:, 11].any()


def test_correlation_makes_features_fire_together() -> None:
    def strongest(correlation: float) -> float:
        planted = Planted(PlantedConfig(n_features=30, l0=6, rank=2, zipf=0, correlation=correlation))
        fires = (planted.sample(ROWS).code.to_dense() > 0).double()
        return float((torch.corrcoef(fires.T) - torch.eye(30)).abs().max())

    assert strongest(0.0) < 0.04 and strongest(0.6) > 0.2


@pytest.mark.parametrize("coherence", [0.09, 0.099, 0.15, 0.5, 0.95])
def test_coherence_is_reached(coherence: float) -> None:
    found = directions(128, 64, coherence, torch.Generator().manual_seed(0))  # random: 0.0997
    assert mean_coherence(found) == pytest.approx(coherence, abs=2e-3)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(128))


def test_few_directions_may_be_orthonormal() -> None:
    found = directions(20, 24, 0.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found @ found.T, torch.eye(20), rtol=0, atol=2e-3)


def test_random_directions_have_the_coherence_of_chance() -> None:
    found = directions(300, 64, None, torch.Generator().manual_seed(0))
    assert mean_coherence(found) == pytest.approx(math.sqrt(2 / (math.pi * 64)), rel=0.02)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 5), st.integers(1, 300), st.integers(1, 90))
def test_everything_follows_from_the_seed(seed: int, rows: int, batch: int) -> None:
    config = PlantedConfig(n_features=24, d_in=8, l0=3, noise=0.1, trees=1, correlation=0.2, seed=seed)
    site = Site.parse("resid_post.1")
    first, again = (list(Planted(config).batches(site, rows, batch)) for _ in range(2))
    assert sum(len(b.origin) for b in first) == rows
    assert all(torch.equal(a.acts[site], b.acts[site]) for a, b in zip(first, again, strict=True))
    documents = torch.cat([b.origin[:, 0] for b in first])
    assert torch.equal(documents, torch.arange(rows))
    if len(first) > 1:  # from the second batch on, as if the first had been read
        rest = next(Planted(config).batches(site, len(first[1].origin), batch, start=1))
        assert torch.equal(rest.acts[site], first[1].acts[site])


def test_parts_and_seeds_differ() -> None:
    planted, other = Planted(PlantedConfig()), Planted(PlantedConfig(seed=1))
    assert not torch.equal(planted.sample(10).x, planted.sample(10, part=1).x)
    assert not torch.equal(planted.directions, other.directions)


def test_the_published_size_has_its_rates() -> None:
    planted = Planted(PlantedConfig.synthsaebench())
    assert planted.directions.shape == (16_384, 768) and (planted.parents >= 0).sum() == 128 * 20
    assert float(planted.rates.sum()) == pytest.approx(34) and planted.rates.max() <= 0.4
    assert float(planted.sample(200).code.l0.double().mean()) == pytest.approx(34, rel=0.1)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match=r"at most 10.24 with these rates and trees, got 20"):
        Planted(PlantedConfig(n_features=256, l0=20, max_rate=0.04))
    with pytest.raises(InputError, match=r"300 directions in 4 dimensions come down to .* not to 0.1"):
        directions(300, 4, 0.1, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="3 trees of 21 nodes need 63 features, got n_features=10"):
        PlantedConfig(n_features=10, trees=3)
    with pytest.raises(InputError, match="correlation must be at least 0 and below 1, got 1"):
        PlantedConfig(correlation=1)
    with pytest.raises(InputError, match="rows must be at least 1, got 0"):
        Planted().sample(0)

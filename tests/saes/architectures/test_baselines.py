"""Nulls: each is as good as its definition says, has the L0 it should, and loses to a dictionary that learned."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.architectures.basis import PCA, Neurons
from monosem.saes.architectures.batchtopk import BatchTopK
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.dictionary import Dictionary, Provenance
from monosem.saes.evaluation.nulls import fit_nulls, untrained
from monosem.saes.evaluation.reconstruction import Reconstruction
from monosem.saes.place import Place
from monosem.saes.training.trainer import TrainConfig, Trainer
from torch import Tensor

SITE = Site.parse("resid_post.0")
WIDTH, FEATURES, ACTIVE = 16, 32, 2


def correlated(rows: int = 600, width: int = 6, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=rng) @ torch.randn(width, width, generator=rng) + 3


def planted(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sparse positive combinations of unit directions in general position, and the directions."""
    rng = torch.Generator().manual_seed(99)
    directions = torch.nn.functional.normalize(torch.randn(FEATURES, WIDTH, generator=rng), dim=1)
    rng.manual_seed(seed)
    chosen = torch.rand(rows, FEATURES, generator=rng).topk(ACTIVE).indices
    codes = torch.zeros(rows, FEATURES).scatter_(1, chosen, 1 + torch.rand(rows, ACTIVE, generator=rng))
    return codes @ directions, directions


def scores(dictionary: Dictionary, x: Tensor) -> dict[str, float]:
    found = Reconstruction(dictionary, SITE)
    found.add(x, torch.arange(len(x)) // 20)
    return found.metrics()


@pytest.mark.parametrize("kind", [PCA, Neurons])
def test_a_whole_basis_is_perfect(kind: type[PCA] | type[Neurons]) -> None:
    x = correlated()
    found = scores(kind.fit(x, k=6), x)
    assert found["fvu"] == pytest.approx(0, abs=1e-6) and found["cosine"] == pytest.approx(1, abs=1e-6)
    assert kind.fit(x, k=50).config.k == 6


def test_components_are_orthonormal_and_by_falling_variance() -> None:
    x = correlated()
    found = PCA.fit(x, k=2)
    assert torch.allclose(found.W_dec @ found.W_dec.T, torch.eye(6), atol=1e-6)
    variance = ((x - found.b_dec) @ found.W_dec.T).var(0, correction=0)
    expected = torch.linalg.eigvalsh(x.T.double().cov(correction=0)).flip(0)
    assert torch.allclose(variance.double(), expected, rtol=1e-4)


def test_fixed_components_leave_the_eigenvalue_tail() -> None:
    x = correlated()
    whole = PCA.fit(x, k=6)
    first = PCA(SAEConfig(6, 2, 2))  # both of the two largest components, in every row
    first.W_dec.copy_(whole.W_dec[:2])
    first.b_dec.copy_(whole.b_dec)
    eigenvalues = torch.linalg.eigvalsh(x.T.double().cov(correction=0))
    assert scores(first, x)["fvu"] == pytest.approx(float(eigenvalues[:-2].sum() / eigenvalues.sum()), rel=1e-5)


@pytest.mark.parametrize("kind", [PCA, Neurons])
def test_each_row_keeps_the_best_k_of_the_basis(kind: type[PCA] | type[Neurons]) -> None:
    x = correlated(rows=80)
    found = kind.fit(x, k=2)
    centred = x - found.b_dec
    best = torch.full((80,), torch.inf)
    for pair in combinations(range(6), 2):
        basis = found.W_dec[list(pair)]
        best = torch.minimum(best, (centred - centred @ basis.T @ basis).square().sum(1))
    left = (x - found(x)).square().sum(1)
    assert torch.allclose(left, best, rtol=1e-4, atol=1e-5)
    code = found.encode(x)
    assert (code.values < 0).any() and code.l0.tolist() == [2] * 80
    columns = code.indices.view(80, 2)
    assert (columns[:, 0] < columns[:, 1]).all()


@pytest.mark.parametrize("architecture", [TopK, BatchTopK])
def test_untrained_has_the_selection_size_and_l0_of_the_trained(
    architecture: type[TopK] | type[BatchTopK],
) -> None:
    x, _ = planted(2000, 0)
    like = architecture(SAEConfig(WIDTH, FEATURES, 3))
    null = untrained(like, x, 3, torch.Generator().manual_seed(0))
    assert type(null) is architecture and null.n_latents == FEATURES
    assert torch.allclose(null.W_dec.norm(dim=1), torch.ones(FEATURES), atol=1e-6)
    assert torch.allclose(null.b_dec, x.mean(0), atol=1e-6)
    direction = torch.nn.functional.cosine_similarity(null.W_enc, null.W_dec)
    assert torch.allclose(direction, torch.ones(FEATURES), atol=1e-6)
    found = scores(null, x)
    assert found["l0"] == pytest.approx(3, rel=0.02)
    assert 0 < found["fvu"] < 1  # random directions, but better than the mean


def test_no_rescaling_of_the_untrained_code_is_better() -> None:
    x, _ = planted(2000, 0)
    null = untrained(TopK(SAEConfig(WIDTH, FEATURES, 3)), x, 3, torch.Generator().manual_seed(0))
    best = scores(null, x)["fvu"]
    for factor in (0.9, 1.1):
        null.W_enc.mul_(factor)
        assert scores(null, x)["fvu"] > best
        null.W_enc.div_(factor)


def test_nulls_lose_to_a_trained_dictionary_on_planted_data() -> None:
    train, _ = planted(12_000, 1)
    trainer = Trainer(
        TopK(SAEConfig(WIDTH, 2 * FEATURES, ACTIVE)), SITE, TrainConfig(rows=12_000 * 4, precision="fp32")
    )
    for _ in range(4):
        for part in train.split(500):
            trainer.step(Batch({SITE: part}, torch.zeros(len(part), 2, dtype=torch.int64)))
    trained = trainer.folded()
    held_out, _ = planted(3000, 2)
    nulls = fit_nulls(train, trained, seed=0)
    trained_fvu = scores(trained, held_out)["fvu"]
    for null in nulls.values():
        found = scores(null, held_out)
        assert found["l0"] <= ACTIVE + 0.05
        assert found["fvu"] > 1.3 * trained_fvu


def test_nulls_repeat_and_carry_the_origin() -> None:
    x, directions = planted(500, 3)
    dictionary = TopK(SAEConfig(WIDTH, FEATURES, ACTIVE))
    dictionary.W_dec.copy_(directions)
    dictionary.W_enc.copy_(directions)
    dictionary.place, dictionary.provenance = Place.parse("resid_post.0").limited([50.0]), Provenance({"name": "tiny"})
    first, second, other = (fit_nulls(x, dictionary, seed) for seed in (0, 0, 1))
    assert list(first) == ["untrained", "pca", "neurons"]
    for name, null in first.items():
        assert all(
            torch.equal(a, b) for a, b in zip(null.tensors().values(), second[name].tensors().values(), strict=True)
        )
        assert null.place.source.site == Site.parse("resid_post.0") and null.place.source.norm_limit == 50.0
        assert null.provenance.training["null"] == name
        assert null.config.k == ACTIVE
    assert not torch.equal(first["untrained"].W_dec, other["untrained"].W_dec)


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="at least 2 rows"):
        fit_nulls(torch.zeros(1, 4), TopK(SAEConfig(4, 8, 2)))
    with pytest.raises(InputError, match="width 5 given to a dictionary of width 4"):
        fit_nulls(torch.zeros(9, 5), TopK(SAEConfig(4, 8, 2)))
    with pytest.raises(InputError, match="width 4 has no more latents"):
        PCA(SAEConfig(4, 8, 2))

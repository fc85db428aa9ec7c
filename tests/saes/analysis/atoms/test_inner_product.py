"""The atomic inner product: what it makes of any atoms, and that moments are streamed exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.analysis.atoms.gram import gram_stats, random_rms
from monosem.saes.analysis.atoms.inner_product import AtomicInnerProduct, SecondMoment
from torch import Tensor

torch.set_num_threads(1)
SITE = Site.parse("resid_post.1")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_gram_matrix_of_any_atoms_is_a_projection() -> None:
    atoms = normal(128, 64)
    gram = AtomicInnerProduct.of_atoms(atoms).gram(atoms)
    assert (gram @ gram - gram).abs().max() < 1e-12 and float(gram.trace()) == pytest.approx(64, abs=1e-10)


def test_coherence_is_the_same_in_any_coordinates() -> None:
    atoms, change = normal(128, 64), normal(64, 64, seed=1)
    here = AtomicInnerProduct.of_atoms(atoms).gram(atoms)
    there = AtomicInnerProduct.of_atoms(atoms @ change).gram(atoms @ change)
    assert (here - there).abs().max() < 5e-13


def test_as_many_atoms_as_dimensions_are_orthogonal_whatever_they_are() -> None:
    atoms = normal(64, 64)
    assert gram_stats(atoms, AtomicInnerProduct.of_atoms(atoms)).maximum < 1e-12
    assert random_rms(64, 64) == 0 and gram_stats(atoms).maximum > 0.3


@pytest.mark.parametrize(("n", "rms"), [(128, 0.0887), (256, 0.1085)])
def test_random_atoms_are_as_coherent_as_the_formula_says(n: int, rms: float) -> None:
    atoms = normal(n, 64)
    assert random_rms(n, 64) == pytest.approx(rms, abs=5e-5)
    assert gram_stats(atoms, AtomicInnerProduct.of_atoms(atoms)).rms == pytest.approx(rms, rel=0.02)


def test_a_common_shift_is_undone() -> None:
    atoms = normal(256, 64) + 5 * normal(64, seed=1)

    def mean_angle(rows: Tensor) -> float:
        unit = F.normalize(rows, dim=1)
        cosines = (unit @ unit.T)[torch.ones(len(unit), len(unit)).triu(1) > 0]
        return float(torch.rad2deg(torch.arccos(cosines)).mean())

    assert 14 < mean_angle(atoms) < 17.5
    assert 89 < mean_angle(AtomicInnerProduct.of_atoms(atoms).whiten(atoms)) < 90.5


def test_moments_are_those_of_all_rows_at_once_and_survive_a_kill() -> None:
    x = normal(300, 8) @ normal(8, 8, seed=1) + 50

    def batch(begin: int, end: int) -> Batch:
        return Batch({SITE: x[begin:end].float()}, torch.zeros(end - begin, 2, dtype=torch.int64))

    moment, later = SecondMoment(SITE, rows=250), SecondMoment(SITE, rows=250)
    moment.step(batch(0, 100))
    later.load_state_dict(moment.state_dict())
    assert not later.done
    later.step(batch(100, 300))
    rows = x[:250].float().double()
    assert later.done and later.rows == 250 and moment.rows == 100
    torch.testing.assert_close(later.mean, rows.mean(0))
    torch.testing.assert_close(later.covariance, torch.cov(rows.T, correction=0), rtol=1e-9, atol=1e-9)


def test_whitened_rows_have_unit_covariance_and_the_ridge_is_told() -> None:
    x = normal(500, 8) @ normal(8, 8, seed=1)
    moment = SecondMoment(SITE)
    moment.add(x)
    exact = AtomicInnerProduct.of_moment(moment, 0)
    white = exact.whiten(x - moment.mean)
    torch.testing.assert_close(white.T @ white / 500, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(exact.S, torch.linalg.inv(moment.covariance))
    torch.testing.assert_close(exact.whitening @ exact.unwhitening, torch.eye(8, dtype=torch.float64))
    damped = AtomicInnerProduct.of_moment(moment, 0.1)
    assert damped.ridge == pytest.approx(0.1 * float(moment.covariance.diagonal().mean()))
    assert damped.condition < exact.condition


def test_codes_that_are_isotropic_make_both_recipes_agree() -> None:
    atoms, codes = normal(32, 8), normal(20_000, 32, seed=1)
    moment = SecondMoment(SITE)
    moment.add(codes @ atoms)
    measured, own = AtomicInnerProduct.of_moment(moment, 0).gram(atoms), AtomicInnerProduct.of_atoms(atoms).gram(atoms)
    assert (measured - own).abs().max() < 0.03


def test_what_has_no_inner_product_is_refused() -> None:
    moment = SecondMoment(SITE)
    with pytest.raises(InputError, match="has read 0 rows"):
        _ = moment.covariance
    moment.add(normal(6, 8))
    with pytest.raises(InputError, match="6 rows leave directions"):
        AtomicInnerProduct.of_moment(moment, 0)
    with pytest.raises(InputError, match="ridge must be 0 or a positive share"):
        AtomicInnerProduct.of_moment(moment, -1)
    with pytest.raises(InputError, match="6 atoms do not span 8 dimensions"):
        AtomicInnerProduct.of_atoms(normal(6, 8))
    with pytest.raises(InputError, match="some direction has no variance"):
        AtomicInnerProduct.of_atoms(normal(20, 8) * torch.tensor([1.0] * 7 + [0]))
    with pytest.raises(InputError, match="at least 2 rows, got rows=1"):
        SecondMoment(SITE, rows=1)

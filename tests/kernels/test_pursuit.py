"""Matching pursuit against known answers, and step for step against fp64."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.kernels import chunks, pursuit
from monosem.kernels.dispatch import using
from torch.nn.functional import normalize

ROUTES = [("compiled", True), ("compiled", False), ("reference", False)]


class Steps(NamedTuple):
    columns: torch.Tensor
    margins: torch.Tensor
    squares: torch.Tensor


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(tokens: int = 40, d: int = 48, n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    return random(tokens, d) * torch.logspace(-2, 2, tokens)[:, None], normalize(random(n, d, seed=1), dim=1)


def run(route: tuple[str, bool], x: torch.Tensor, atoms: torch.Tensor, k: int, **options) -> pursuit.Pursuit:
    backend, with_gram = route
    with using(backend):
        return pursuit.pursuit(x, atoms, k, gram=atoms @ atoms.T if with_gram else None, **options)


def fp64_steps(x: torch.Tensor, atoms: torch.Tensor, k: int, nonnegative: bool) -> Steps:
    residual, atoms = x.double(), normalize(atoms.double(), dim=1)
    columns, margins = [], []
    for _ in range(k):
        correlation = residual @ atoms.T
        two = (correlation if nonnegative else correlation.abs()).topk(2, dim=1)
        margins.append((two.values[:, 0] - two.values[:, 1]) / two.values[:, 0])
        columns.append(two.indices[:, 0])
        residual = residual - correlation.gather(1, columns[-1][:, None]) * atoms[columns[-1]]
    return Steps(torch.stack(columns, 1), torch.stack(margins, 1), residual.square().sum(1))


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_it_follows_fp64_step_for_step(route, nonnegative):
    x, atoms = planted()
    found = run(route, x, atoms, 12, nonnegative=nonnegative)
    exact = fp64_steps(x, atoms, 12, nonnegative)
    clear = (exact.margins > 1e-3).cumprod(1).bool()  # up to the first step that rounding could decide
    assert clear.float().mean() > 0.8
    assert torch.equal(found.columns[clear].long(), exact.columns[clear])
    followed = clear.all(1)
    ratio = (found.residual_squares[followed].double() / exact.squares[followed]).sqrt()
    assert (ratio - 1).abs().max() < 1e-5


@pytest.mark.parametrize("route", ROUTES)
def test_an_atom_is_found_in_one_step(route):
    atoms = normalize(random(30, 16), dim=1)
    found = run(route, -3 * atoms[[7, 29]], atoms, 1)
    assert found.columns.tolist() == [[7], [29]]
    assert torch.allclose(found.values, torch.full((2, 1), -3.0))
    assert (found.residual_squares < 1e-12).all()


@pytest.mark.parametrize("route", ROUTES)
def test_orthonormal_atoms_give_the_largest_coefficients_in_order(route):
    basis = torch.linalg.qr(random(24, 24)).Q.contiguous()
    x = random(10, 24, seed=1)
    coefficients = x @ basis.T
    best = coefficients.abs().sort(dim=1, descending=True)
    found = run(route, x, basis, 9)
    assert torch.equal(found.columns.long(), best.indices[:, :9])
    assert torch.allclose(found.values, coefficients.gather(1, best.indices[:, :9]), atol=1e-5)
    assert torch.allclose(found.residual_squares, best.values[:, 9:].square().sum(1), atol=1e-4)


@pytest.mark.parametrize("route", ROUTES)
def test_an_atom_may_be_chosen_again(route):
    # Two atoms at 45 degrees: the residual alternates between them and shrinks by cos(45 degrees) a step.
    half = 0.5**0.5
    atoms = torch.tensor([[1.0, 0.0], [half, half]])
    found = run(route, torch.tensor([[0.0, 1.0]]), atoms, 5)
    assert found.columns.tolist() == [[1, 0, 1, 0, 1]]
    expected = torch.tensor([[half, -(half**2), half**3, -(half**4), half**5]])
    assert torch.allclose(found.values, expected, atol=1e-6)
    assert torch.allclose(found.residual_squares, torch.tensor([half**10]), atol=1e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_k_may_exceed_the_number_of_atoms(route):
    found = run(route, random(6, 8), normalize(random(3, 8, seed=1), dim=1), 7)
    assert found.values.shape == found.columns.shape == (6, 7)
    assert found.columns.max() < 3


@pytest.mark.parametrize("route", ROUTES)
def test_tolerance_stops_at_the_first_step_that_reaches_it(route):
    x, atoms = planted()
    full, stopped = run(route, x, atoms, 12), run(route, x, atoms, 12, tolerance=0.4)
    energy = x.square().sum(1, keepdim=True)
    left = energy - full.values.square().cumsum(1)
    steps = (torch.cat([energy, left[:, :-1]], 1) > 0.4 * energy).sum(1)
    assert torch.equal((stopped.values != 0).sum(1), steps)
    assert 1 < steps.float().mean() < 12
    assert (stopped.columns[stopped.values == 0] == 0).all()
    assert ((stopped.residual_squares / energy[:, 0] <= 0.4 + 1e-5) | (steps == 12)).all()


@pytest.mark.parametrize("route", ROUTES)
def test_nonnegative_stops_when_nothing_correlates_positively(route):
    atoms = torch.eye(4)
    found = run(route, torch.tensor([[2.0, -5.0, 1.0, -0.1], [-1.0, -1.0, -1.0, -1.0]]), atoms, 3, nonnegative=True)
    assert found.values.tolist() == [[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert found.columns.tolist() == [[0, 2, 0], [0, 0, 0]]
    assert torch.allclose(found.residual_squares, torch.tensor([25.01, 4.0]))


@pytest.mark.parametrize("route", ROUTES)
def test_ties_go_to_the_lowest_column_and_zero_rows_stay_zero(route):
    atoms = torch.eye(5)[[0, 1, 1, 0, 2]]
    found = run(route, torch.tensor([[1.0, -1.0, 1.0, 0.0, 0.0], [0.0] * 5]), atoms, 3)
    assert found.columns.tolist() == [[0, 1, 4], [0, 0, 0]]
    assert found.values.tolist() == [[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]]
    assert found.residual_squares.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("route", ROUTES)
def test_rows_that_are_not_finite_are_seen_and_do_not_spread(route):
    x, atoms = planted(6)
    clean = run(route, x, atoms, 4)
    x[1, 3], x[4, 0] = torch.nan, torch.inf
    found = run(route, x, atoms, 4)
    assert found.values[[1, 4]].isnan().all()
    assert not found.residual_squares[[1, 4]].isfinite().any()
    others = [0, 2, 3, 5]
    assert torch.equal(found.columns[others], clean.columns[others])


@pytest.mark.parametrize("route", ROUTES)
def test_an_atom_that_is_not_a_number_is_seen(route):
    x, atoms = planted(3)
    atoms[5] = torch.nan
    found = run(route, x, atoms, 4)
    assert found.values.isnan().all()
    assert (found.columns[:, 0] == 5).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(2, 20), st.integers(1, 600), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_the_residual_never_grows_and_is_that_of_the_code(tokens, d, n, k, nonnegative, seed):
    x, atoms = random(tokens, d, seed=seed), normalize(random(n, d, seed=seed + 1), dim=1)
    found = run(("compiled", True), x, atoms, k, nonnegative=nonnegative)
    left = x.double() - torch.einsum("tk,tkd->td", found.values.double(), atoms.double()[found.columns.long()])
    energy = x.double().square().sum(1)
    assert torch.allclose(found.residual_squares.double(), left.square().sum(1), rtol=1e-4, atol=1e-9)
    identity = energy - found.values.double().square().sum(1)
    assert torch.allclose(identity, left.square().sum(1), atol=1e-5 * float(energy.max()))
    assert not nonnegative or (found.values >= 0).all()


@pytest.mark.parametrize("with_gram", [True, False])
def test_chunks_and_threads_change_nothing(with_gram, monkeypatch):
    x, atoms = planted(150)
    whole = run(("compiled", with_gram), x, atoms, 6)
    monkeypatch.setitem(chunks.LEAST_ROWS, "cpu", 64)
    monkeypatch.setitem(chunks.CHUNK_BYTES, "cpu", 64 * 4 * len(atoms))
    torch.set_num_threads(3)
    try:
        found = run(("compiled", with_gram), x, atoms, 6)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found.columns, whole.columns)
    assert torch.allclose(found.values, whole.values, rtol=1e-4)
    assert torch.allclose(found.residual_squares, whole.residual_squares, rtol=1e-4)


def test_impossible_arguments_are_refused():
    x, atoms = planted(2)
    with pytest.raises(ValueError, match="at least 1, got 0 and 300"):
        pursuit.pursuit(x, atoms, 0)
    with pytest.raises(ValueError, match="300 x 300 for 300 atoms, got 2 x 2"):
        pursuit.pursuit(x, atoms, 3, gram=torch.eye(2))

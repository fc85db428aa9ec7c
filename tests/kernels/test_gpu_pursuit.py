"""Triton kernels of matching pursuit against the reference: on a GPU where there is one, interpreted elsewhere."""

import pytest
import torch

pytest.importorskip("triton")

from monosem.kernels import pursuit
from monosem.kernels.gpu import pursuit as gpu_pursuit
from torch.nn.functional import normalize

device = "cuda" if torch.cuda.is_available() else "cpu"
ROUTES = ["registers", "memory", "products"]
ROUNDING = 1e-5


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.fixture(params=ROUTES)
def run(request, monkeypatch):
    """The host function on each of its three routes."""

    def pursue(x, atoms, k, nonnegative=False, tolerance=0.0, dtype=torch.float32):
        if request.param != "registers":
            monkeypatch.setattr(gpu_pursuit, "RESIDENT", 0)
            monkeypatch.setattr(gpu_pursuit, "BLOCK", 64)
        gram = None if request.param == "products" else (atoms @ atoms.T).to(dtype)
        return gpu_pursuit.pursue(x.to(device), atoms, k, gram, nonnegative, tolerance)

    return pursue


@pytest.mark.parametrize("nonnegative, tolerance", [(False, 0.0), (True, 0.0), (False, 0.5)])
@pytest.mark.parametrize("n", [5, 100, 150])
def test_it_takes_the_steps_of_the_reference(run, n, nonnegative, tolerance):
    x, atoms = random(5, 20), normalize(random(n, 20, seed=1), dim=1)
    values, columns = run(x, atoms, 6, nonnegative, tolerance)
    expected, expected_columns = pursuit.reference(x, atoms, 6, None, nonnegative, tolerance)
    assert torch.allclose(values, expected, atol=ROUNDING)
    chosen = expected.abs() > ROUNDING  # what is left afterwards is rounding, and so is its order
    assert chosen[:, 0].all()
    assert torch.equal(columns[chosen], expected_columns[chosen])


def test_ties_go_to_the_lowest_column_and_zero_rows_stay_zero(run):
    atoms = torch.eye(5, device=device)[[0, 1, 1, 0, 2]]
    values, columns = run(torch.tensor([[1.0, -1.0, 1.0, 0.0, 0.0], [0.0] * 5]), atoms, 4)
    assert columns.tolist() == [[0, 1, 4, 0], [0] * 4]
    assert values.tolist() == [[1.0, -1.0, 1.0, 0.0], [0.0] * 4]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's numpy, of 0 * inf
def test_rows_that_are_not_finite_stop_at_once_and_do_not_spread(run):
    x, atoms = random(3, 12), normalize(random(40, 12, seed=1), dim=1)
    clean, _ = run(x, atoms, 3)
    x[0, 1], x[2, 5] = torch.nan, torch.inf
    values, columns = run(x, atoms, 3)
    assert not columns[[0, 2]].any()
    assert torch.equal(values[1], clean[1])


def test_an_atom_that_is_not_a_number_is_chosen_and_ends_the_row(run):
    atoms = normalize(random(40, 12, seed=1), dim=1)
    atoms[5] = torch.nan
    values, columns = run(random(2, 12), atoms, 3)
    assert values[:, 0].isnan().all()
    assert columns.tolist() == [[5, 0, 0]] * 2


def test_a_half_precision_gram_keeps_the_residual():
    x, atoms = random(6, 24), normalize(random(90, 24, seed=1), dim=1)
    values, columns = gpu_pursuit.pursue(x, atoms, 8, (atoms @ atoms.T).half(), False, 0.0)
    exact, exact_columns = pursuit.reference(x, atoms, 8)

    def left(values, columns):
        return (x - torch.einsum("tk,tkd->td", values, atoms[columns.long()])).norm(dim=1)

    assert torch.allclose(left(values, columns), left(exact, exact_columns), rtol=2e-3)


@pytest.mark.parametrize("n, expected", [(1, (16, 16, 1)), (9216, (8192, 1024, 16)), (24576, (16384, 8192, 16))])
def test_two_pieces_cover_the_row(n, expected):
    first, second, warps = gpu_pursuit._pieces(n)
    assert (first, second, warps) == expected
    assert first + second >= n

import pytest
import torch
from monosem.saes.sparse_code import SparseCode

DENSE = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, -3.0]])


def test_dense_round_trip_and_counts():
    code = SparseCode.from_dense(DENSE)
    assert torch.equal(code.to_dense(), DENSE)
    assert len(code) == 3
    assert code.l0.tolist() == [1, 0, 2] and code.firing_counts().tolist() == [1, 1, 1]
    assert code.rows.tolist() == [0, 2, 2]


def test_fixed_codes_count_only_what_is_not_zero():
    code = SparseCode.fixed(torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.tensor([[0, 2], [1, 2]]), 4)
    assert code.l0.tolist() == [1, 2] and code.firing_counts().tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, 3), slice(3, 3), slice(-1, None), slice(2, 1)])
def test_blocks_of_rows(rows):
    assert torch.equal(SparseCode.from_dense(DENSE)[rows].to_dense(), DENSE[rows])


def test_strided_rows_are_refused():
    with pytest.raises(ValueError, match="stride 2"):
        SparseCode.from_dense(DENSE)[::2]

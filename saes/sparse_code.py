"""`SparseCode`: the codes of a batch in CSR form, the currency between kernels, trainers, metrics and edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor


@dataclass(frozen=True)
class SparseCode:
    """Codes of `batch` rows over `n_latents` latents; row r owns entries indptr[r] to indptr[r + 1].

    Entries ascend by latent within a row. An entry may hold zero (cut by a relu): it is stored, not active.
    """

    indptr: Int[Tensor, " batch+1"]
    indices: Int[Tensor, " nnz"]
    values: Float32[Tensor, " nnz"]
    n_latents: int
    width: int | None = None
    """Entries a row, where all rows hold the same number."""

    @classmethod
    def fixed(cls, values: Float32[Tensor, "batch k"], indices: Int[Tensor, "batch k"], n_latents: int) -> Self:
        """k entries in every row."""
        batch, k = values.shape
        indptr = torch.arange(batch + 1, device=values.device) * k
        return cls(indptr, indices.reshape(-1), values.reshape(-1), n_latents, k)

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "batch n"]) -> Self:
        """Keep the nonzero entries of a dense matrix."""
        rows, columns = dense.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=len(dense))
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return cls(indptr, columns.int(), dense[rows, columns].float(), dense.shape[1])

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __repr__(self) -> str:
        return f"SparseCode({len(self)} rows, {len(self.indices)} entries, n_latents={self.n_latents})"

    @property
    def rows(self) -> Int[Tensor, " nnz"]:
        """The row of every entry."""
        counts = self.indptr[1:] - self.indptr[:-1]
        ids = torch.arange(len(self), device=self.indptr.device)
        return torch.repeat_interleave(ids, counts, output_size=len(self.indices))

    @property
    def l0(self) -> Int[Tensor, " batch"]:
        """Active (nonzero) entries of every row."""
        counts = torch.zeros(len(self), dtype=torch.int64, device=self.values.device)
        return counts.index_add_(0, self.rows, (self.values != 0).long())

    def firing_counts(self) -> Int[Tensor, " n"]:
        """In how many rows each latent is active."""
        counts = torch.zeros(self.n_latents, dtype=torch.int64, device=self.values.device)
        return counts.index_add_(0, self.indices.long(), (self.values != 0).long())

    def to_dense(self) -> Float32[Tensor, "batch n"]:
        """The dense matrix: for small things and tests."""
        dense = torch.zeros(len(self), self.n_latents, device=self.values.device)
        return dense.index_put_((self.rows, self.indices.long()), self.values, accumulate=True)

    def __getitem__(self, rows: slice) -> SparseCode:
        """A contiguous block of rows, sharing memory."""
        start, stop, stride = rows.indices(len(self))
        if stride != 1:
            raise ValueError(f"a SparseCode is sliced in blocks of consecutive rows, got stride {stride}")
        entries = slice(int(self.indptr[start]), int(self.indptr[max(start, stop)]))
        indptr = self.indptr[start : max(start, stop) + 1] - self.indptr[start]
        return SparseCode(indptr, self.indices[entries], self.values[entries], self.n_latents, self.width)

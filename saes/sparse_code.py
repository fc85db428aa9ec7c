"""`SparseCode`: the codes of a batch in CSR form, the currency between kernels, trainers, metrics and edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Float32, Int
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

    def where(self, keep: Bool[Tensor, " nnz"]) -> SparseCode:
        """The entries at which `keep` holds; on a GPU the host waits for their number."""
        before = torch.cat([self.indptr.new_zeros(1), keep.cumsum(0)])
        return SparseCode(before[self.indptr], self.indices[keep], self.values[keep], self.n_latents)

    def within(self, latents: slice) -> SparseCode:
        """The codes of a block of consecutive latents, counted from its start."""
        inside = self.where((self.indices >= latents.start) & (self.indices < latents.stop))
        return SparseCode(inside.indptr, inside.indices - latents.start, inside.values, latents.stop - latents.start)

    def columns(self, latents: Int[Tensor, " some"]) -> Float32[Tensor, "batch some"]:
        """The codes of some latents, dense, in the order given."""
        place = torch.full((self.n_latents,), -1, device=self.values.device)
        place[latents.to(place.device)] = torch.arange(len(latents), device=place.device)
        at = place[self.indices.long()]
        dense = self.values.new_zeros(len(self), len(latents))
        return dense.index_put((self.rows[at >= 0], at[at >= 0]), self.values[at >= 0])

    def with_columns(self, latents: Int[Tensor, " some"], dense: Float[Tensor, "batch some"]) -> SparseCode:
        """The same codes with those of some latents replaced; every row then stores them all, zeros included.

        Raises:
            ValueError: `dense` has not one row for each row of codes and one column for each latent.
        """
        if dense.shape != (len(self), len(latents)):
            raise ValueError(f"codes [{len(self)}, {len(latents)}] are needed, got {list(dense.shape)}")
        latents = latents.to(self.indices.device)
        other = self.where(~torch.isin(self.indices, latents.to(self.indices.dtype)))
        own = torch.arange(len(self), device=latents.device)[:, None].expand_as(dense).reshape(-1)
        rows, columns = torch.cat([other.rows, own]), torch.cat([other.indices.long(), latents.repeat(len(self))])
        order = (rows * self.n_latents + columns).argsort()
        values = torch.cat([other.values, dense.float().reshape(-1)])[order]
        indptr = other.indptr + len(latents) * torch.arange(len(self) + 1, device=other.indptr.device)
        return SparseCode(indptr, columns[order].to(self.indices.dtype), values, self.n_latents)

    def __getitem__(self, rows: slice) -> SparseCode:
        """A contiguous block of rows, sharing memory."""
        start, stop, stride = rows.indices(len(self))
        if stride != 1:
            raise ValueError(f"a SparseCode is sliced in blocks of consecutive rows, got stride {stride}")
        entries = slice(int(self.indptr[start]), int(self.indptr[max(start, stop)]))
        indptr = self.indptr[start : max(start, stop) + 1] - self.indptr[start]
        return SparseCode(indptr, self.indices[entries], self.values[entries], self.n_latents, self.width)


def side_by_side(codes: Sequence[SparseCode]) -> SparseCode:
    """Codes of the same rows over several blocks of latents as one code over all of them, in order."""
    counts = [code.indptr.diff() for code in codes]
    indptr = torch.cat([counts[0].new_zeros(1), torch.stack(counts).sum(0).cumsum(0)])
    entries = sum(len(code.indices) for code in codes)
    indices, values = codes[0].indices.new_empty(entries), codes[0].values.new_empty(entries)
    begin, first = indptr[:-1], 0  # of each row's next entry; of the next block's latents
    for code, count in zip(codes, counts, strict=True):
        place = torch.arange(len(code.indices), device=begin.device) + (begin - code.indptr[:-1])[code.rows]
        indices[place], values[place] = code.indices + first, code.values
        begin, first = begin + count, first + code.n_latents
    widths = [code.width for code in codes if code.width is not None]
    return SparseCode(indptr, indices, values, first, sum(widths) if len(widths) == len(codes) else None)

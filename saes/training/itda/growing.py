"""Atoms that grow in a buffer, with their Gram matrix: what construction encodes on."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from ....kernels.decode import decode
from ....kernels.growth import admit, lost
from ....kernels.pursuit import pursuit
from .criteria import Threshold

STEP = 256
"""Capacity is a multiple of it."""
SPARE = 1.25
"""Capacity grows by at least this factor: the buffers are then copied rarely."""


class GrowingAtoms:
    """Unit rows in a buffer whose unused rows are zero: they correlate with nothing, and pursuit never picks them.

    Args:
        d: width.
        device: where the rows are.
        with_gram: keep atoms @ atoms.T, which makes a pursuit step cost n instead of n * d.
    """

    def __init__(self, d: int, device: torch.device | str = "cpu", *, with_gram: bool = True) -> None:
        self.buffer = torch.zeros(0, d, device=device)
        self.gram = torch.zeros(0, 0, device=device) if with_gram else None
        self.n = 0
        self.sizes: list[int] = []
        """n after every extension of the Gram matrix: by the same products it comes back to the same bits."""

    @property
    def rows(self) -> Float32[Tensor, "n d"]:
        """The atoms: a view."""
        return self.buffer[: self.n]

    def reserve(self, extra: int) -> None:
        """Make room for so many more atoms."""
        if self.n + extra > len(self.buffer):
            self.resize(-(-max(self.n + extra, int(SPARE * len(self.buffer))) // STEP) * STEP)

    def resize(self, capacity: int) -> None:
        """Buffers of exactly this capacity."""
        buffer = self.buffer.new_zeros(capacity, self.buffer.shape[1])
        buffer[: self.n] = self.rows
        self.buffer = buffer
        if self.gram is not None:
            gram = self.gram.new_zeros(capacity, capacity)
            gram[: self.n, : self.n] = self.gram[: self.n, : self.n]
            self.gram = gram

    def append(self, x: Float32[Tensor, "rows d"]) -> None:
        """Add all these rows, normalised."""
        self.reserve(len(x))
        self.buffer[self.n : self.n + len(x)] = x / x.norm(dim=1, keepdim=True)
        self._settle(self.n + len(x))

    def admit(self, x: Float32[Tensor, "rows d"], k: int, threshold: Threshold, nonnegative: bool, room: int) -> Tensor:
        """Add, one after another, the rows that are lost on all atoms before them; returns which.

        Raises:
            ValueError: there is no Gram matrix.
        """
        if self.gram is None:
            raise ValueError("rows are admitted one after another only with a Gram matrix")
        self.reserve(min(len(x), room))
        atoms, gram = self.buffer.cpu(), self.gram.cpu()  # the very buffers, where they are on the host
        admitted = admit(
            x.cpu(), atoms, gram, self.n, k, threshold.limit,
            cosine=threshold.cosine, nonnegative=nonnegative, tolerance=threshold.enough, room=room,
        ).to(x.device)  # fmt: skip
        added = slice(self.n, self.n + len(admitted))
        self.buffer[added] = atoms[added].to(x.device)
        self._settle(added.stop)
        return admitted

    def _settle(self, n: int) -> None:
        """Count rows up to n as atoms, and write their part of the Gram matrix."""
        if n == self.n:
            return
        if self.gram is not None:
            products = self.buffer[self.n : n] @ self.buffer[:n].T
            self.gram[self.n : n, :n], self.gram[:n, self.n : n] = products, products.T
        self.n = n
        self.sizes.append(n)

    def losses(
        self, x: Float32[Tensor, "rows d"], k: int, threshold: Threshold, nonnegative: bool
    ) -> Float32[Tensor, " rows"]:
        """`kernels.growth.lost` of every row after k steps; 0 for one that is surely within the threshold."""
        if not self.n:
            return (x.square().sum(1) > 0).float()
        out = x.new_zeros(len(x))
        steps = pursuit(x, self.buffer, k, gram=self.gram, nonnegative=nonnegative, tolerance=threshold.enough)
        open_ = (steps.residual_squares > threshold.enough * x.square().sum(1)).nonzero()[:, 0]
        values, columns = steps.values[open_].flatten(), steps.columns[open_].flatten()
        indptr = torch.arange(0, len(values) + 1, k, device=x.device)
        x_hat = decode(indptr, columns, values, self.buffer, x.new_zeros(x.shape[1]))
        out[open_] = lost(x[open_], x_hat, threshold.cosine)
        return out

    def restore(self, rows: Float32[Tensor, "n d"], sizes: list[int], capacity: int) -> None:
        """Restore `rows`, `sizes` and the capacity, the Gram matrix included."""
        self.n, self.sizes = 0, []
        self.resize(capacity)
        self.buffer.zero_()[: len(rows)] = rows
        for size in sizes:
            self._settle(size)

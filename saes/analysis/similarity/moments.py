"""Linear CKA from streamed cross-moments, biased and unbiased, in fp64 (Kornblith et al. 2019, section 3).

    CKA(X, Y) = |X'Y|_F^2 / (|X'X|_F |Y'Y|_F) of centred rows: 1 under rotation and scaling, not under a general map

The biased estimate rises with width over rows: two unrelated Gaussian representations reach about d / (n + d). The
unbiased one replaces each HSIC by the U-statistic of Song et al. 2012 (section 3, equation 5), which is a ratio of
sums over pairs of different rows. Both are functions of sums over rows, so neither needs the rows at once.

Intervals are delete-a-group jackknives over groups of documents. A bootstrap would not do: a resample holds the same
row twice, and a row is always like itself in both representations, which moves every resample up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ....lab.errors import InputError
from ....lab.evidence import Evidence
from .rows import checked_pair

GROUPS = 20
"""Groups of documents of the jackknife; each holds the moments of its rows."""
ROWS_AT_ONCE = 4096


@dataclass
class _Sums:
    """Sums over rows of one group: of products, and of what the U-statistic takes away."""

    n: int
    xy: Float[Tensor, "d_x d_y"]
    xx: Float[Tensor, "d_x d_x"]
    yy: Float[Tensor, "d_y d_y"]
    x: Float[Tensor, " d_x"]
    y: Float[Tensor, " d_y"]
    x_by_y: Float[Tensor, " d_x"]
    """Sum of x |y|^2."""
    y_by_x: Float[Tensor, " d_y"]
    """Sum of y |x|^2."""
    x_by_x: Float[Tensor, " d_x"]
    y_by_y: Float[Tensor, " d_y"]
    squares: Float[Tensor, 5]
    """Sums of |x|^2, |y|^2, |x|^2 |y|^2, |x|^4, |y|^4."""

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Self:
        p, q = x.square().sum(1), y.square().sum(1)
        squares = torch.stack([p.sum(), q.sum(), p @ q, p @ p, q @ q])
        return cls(len(x), x.T @ y, x.T @ x, y.T @ y, x.sum(0), y.sum(0), q @ x, p @ y, p @ x, q @ y, squares)

    def plus(self, other: _Sums, sign: int = 1) -> _Sums:
        return _Sums(*(a + sign * b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def biased(self) -> float:
        n = self.n
        xy = (self.xy - torch.outer(self.x, self.y) / n).square().sum()
        xx = (self.xx - torch.outer(self.x, self.x) / n).square().sum()
        yy = (self.yy - torch.outer(self.y, self.y) / n).square().sum()
        return _share(xy, xx, yy)

    def unbiased(self) -> float:
        p, q, pq, pp, qq = self.squares
        xy = _hsic(self.n, self.xy, self.x, self.y, self.x_by_y, self.y_by_x, p, q, pq)
        xx = _hsic(self.n, self.xx, self.x, self.x, self.x_by_x, self.x_by_x, p, p, pp)
        yy = _hsic(self.n, self.yy, self.y, self.y, self.y_by_y, self.y_by_y, q, q, qq)
        return _share(xy, xx, yy)


class CrossMoments:
    """Both kinds of CKA of two streams of aligned rows, in memory of a few d x d matrices a group.

    Rows are shifted by the means of the first batch, which changes neither score and keeps fp64 sums exact enough.

    Args:
        shift: shift rows by these instead; two measures that will be merged need the same.
    """

    def __init__(self, shift: tuple[Float[Tensor, " d_x"], Float[Tensor, " d_y"]] | None = None) -> None:
        self._groups: list[_Sums | None] = [None] * GROUPS
        self._group_of: dict[int, int] = {}
        self._shift = None if shift is None else (shift[0].double(), shift[1].double())

    def add(
        self, x: Float[Tensor, "rows d_x"], y: Float[Tensor, "rows d_y"], documents: Int64[Tensor, " rows"]
    ) -> None:
        """Add rows; row i of both is the same token.

        Raises:
            InputError: different numbers of rows, or a value that is not finite.
        """
        if len(x) != len(y) or not bool(x.isfinite().all() and y.isfinite().all()):
            raise InputError(f"{len(x)} and {len(y)} rows were added: give as many of both, all finite")
        if self._shift is None:
            self._shift = x.double().mean(0), y.double().mean(0)
        groups = [self._group_of.setdefault(d, len(self._group_of) % GROUPS) for d in documents.tolist()]
        place = torch.tensor(groups)
        for group in place.unique().tolist():
            in_group = place == group
            sums = _Sums.of(x[in_group].double() - self._shift[0], y[in_group].double() - self._shift[1])
            held = self._groups[group]
            self._groups[group] = sums if held is None else held.plus(sums)

    def merge(self, other: CrossMoments) -> None:
        """Add the moments of rows of later documents; `other` stays as it is.

        Both must be shifted by the same means (`shift`), or scores would be of other rows; groups of documents are
        those of one read where the two share no document.

        Raises:
            InputError: the two have different shifts.
        """
        if other._shift is None:
            return
        if self._shift is None:
            self._shift = other._shift
        if not all(torch.equal(a, b) for a, b in zip(self._shift, other._shift, strict=True)):
            raise InputError("the moments are about different means: give both CrossMoments one shift=")
        first = len(self._group_of)
        for document in other._group_of:
            self._group_of.setdefault(document, len(self._group_of) % GROUPS)
        for group, theirs in enumerate(other._groups):
            if theirs is not None:
                own = (first + group) % GROUPS
                held = self._groups[own]
                self._groups[own] = theirs if held is None else held.plus(theirs)

    @property
    def n(self) -> int:
        """Rows added."""
        return sum(group.n for group in self._groups if group is not None)

    def evidence(self, held_out: str = "") -> dict[str, Evidence]:
        """`cka` and `cka_unbiased`, with jackknife intervals over groups of documents; without nulls.

        Raises:
            InputError: fewer than 4 rows, or a representation in which all rows are the same.
        """
        groups = [group for group in self._groups if group is not None]
        if self.n < 4:
            raise InputError(f"CKA needs at least 4 rows, got {self.n}")
        total = groups[0]
        for group in groups[1:]:
            total = total.plus(group)
        left = [rest for group in groups if (rest := total.plus(group, -1)).n >= 4] if len(groups) > 1 else []
        scores = {}
        for name, score in {"cka": _Sums.biased, "cka_unbiased": _Sums.unbiased}.items():
            value = score(total)
            if not np.isfinite(value):
                raise InputError("every row of a representation is the same: constant features have nothing to compare")
            interval = _jackknife(value, [score(rest) for rest in left])
            note = f"interval: jackknife over {len(left)} groups of documents"
            scores[name] = Evidence(
                name, value, interval, {}, len(self._group_of), held_out=held_out, better="higher", note=note
            )
        return scores


def cka(
    x: Float[Tensor, "rows d_x"],
    y: Float[Tensor, "rows d_y"],
    documents: Int64[Tensor, " rows"] | None = None,
) -> dict[str, Evidence]:
    """`cka` and `cka_unbiased` of rows at hand, without nulls (`compare_rows` adds them).

    Args:
        documents: of every row; None takes every row for a document of its own.

    Raises:
        InputError: different numbers of rows, values that are not finite, or constant rows.
    """
    x, y = checked_pair(x, y)
    documents = torch.arange(len(x)) if documents is None else documents
    moments = CrossMoments()
    for part in torch.arange(len(x)).split(ROWS_AT_ONCE):
        moments.add(x[part], y[part], documents[part])
    return moments.evidence()


def _hsic(n: int, xy: Tensor, x: Tensor, y: Tensor, x_by_y: Tensor, y_by_x: Tensor, *squares: Tensor) -> Tensor:
    """The U-statistic of Song et al. for linear kernels with their diagonals left out, up to the factor n (n - 3)."""
    p, q, pq = squares
    alike = xy.square().sum() - pq
    sums = (x @ x - p) * (y @ y - q) / ((n - 1) * (n - 2))
    between = x @ xy @ y - x @ x_by_y - y @ y_by_x + pq
    return alike + sums - 2 / (n - 2) * between


def _share(xy: Tensor, xx: Tensor, yy: Tensor) -> float:
    """xy over the geometric mean of the others; nan where one of those is nothing."""
    return float(xy / (xx * yy).sqrt()) if float(xx) > 0 and float(yy) > 0 else float("nan")


def _jackknife(value: float, left: list[float]) -> tuple[float, float] | None:
    """95 % interval from the score with each group left out (Student's t)."""
    from scipy.stats import t

    if len(left) < 2:
        return None
    spread = np.array(left) - np.mean(left)
    error = float(np.sqrt((len(left) - 1) / len(left) * (spread @ spread)))
    half = float(t.ppf(0.975, len(left) - 1)) * error
    return value - half, value + half

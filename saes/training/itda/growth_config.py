"""`GrowthConfig`: options of building an ITDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ....lab.errors import InputError, unknown
from ...architectures.itda.dictionary import ITDAConfig
from ...architectures.itda.encoders import Encoder
from ...architectures.schedules import check_share
from .criteria import CRITERIA, Criterion, Threshold

MOST_CHAINED = 1 << 15
"""Atoms with which rows can be tried one after another: the Gram matrix then takes 4 GiB."""


@dataclass(frozen=True)
class GrowthConfig:
    """Options of building an ITDA from the rows of a stream."""

    max_atoms: int = 9216
    """Number of atoms at which growth ends."""
    rows: int = 100_000
    """Rows of the stream after which growth ends."""
    k: int = 40
    """Steps of the pursuit, in construction and later."""
    encoder: Encoder = "mp"
    """Pursuit that encodes rows later: mp, omp or nonnegative. Growth itself takes mp steps, or nonnegative ones."""
    tolerance: float = 0.0
    """Share of |x|^2 at which the squared residual of a row ends its encoding later; 0 spends all k steps."""
    criterion: Criterion = "cos"
    """A row is lost when 1 - cos(x, x_hat) (cos) or |x - x_hat|^2 / |x|^2 (fvu) is above tau. paper_code is the
    released code's, (2 - 2 cos) / d above paper_tau."""
    tau: float = 0.05
    """Threshold of cos and fvu. It means the same at every width."""
    paper_tau: float | None = None
    """Threshold of paper_code, which means another angle at every width: the authors used 4e-4 and 0.01."""
    dedupe: Literal["sequential", "none"] = "sequential"
    """sequential: lost rows of a batch are tried again, worst first, on the atoms before them. none: all of them enter,
    as in the released code."""
    warmup: int | None = None
    """Rows that enter untested at the start, those that occur most often in their batch first. By default as many as
    the site is wide, as published; 0 starts empty."""
    saturation: float = 0.0
    """Growth ends when less than this share of the last `patience` rows became atoms; 0 goes on."""
    patience: int = 16_384
    """Number of last rows that `saturation` looks at."""

    def __post_init__(self) -> None:
        for name in ("max_atoms", "rows", "k", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.warmup is not None and self.warmup < 0:
            raise InputError(f"warmup must be at least 0 (an empty start), got {self.warmup}")
        for name, allowed in (("criterion", CRITERIA), ("dedupe", ("sequential", "none"))):
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed)
        for name in ("tolerance", "saturation"):
            check_share(name, getattr(self, name))
        if not 1e-5 <= self.tau < 1:
            raise InputError(f"tau is a share of |x|^2 or 1 - cos: give 1e-5 to below 1, got {self.tau:g}")
        if (self.criterion == "paper_code") != (self.paper_tau is not None):
            raise InputError("paper_tau is the threshold of criterion paper_code, and only that: give both or neither")
        if self.paper_tau is not None and not self.paper_tau > 0:
            raise InputError(f"paper_tau must be above 0, got {self.paper_tau:g}")
        if self.dedupe == "sequential" and self.max_atoms > MOST_CHAINED:
            raise InputError(
                f"sequential de-duplication keeps all inner products of atoms and takes up to {MOST_CHAINED:,} of them,"
                f" got max_atoms={self.max_atoms:,}: give fewer, or dedupe none"
            )
        ITDAConfig(1, 1, self.k, encoder=self.encoder, tolerance=self.tolerance)

    def threshold(self, d: int) -> Threshold:
        """Make the criterion of lost rows at width d.

        Raises:
            InputError: no row of this width can be lost by it.
        """
        return Threshold.of(self.criterion, self.tau if self.paper_tau is None else self.paper_tau, d)

"""Spatial autocorrelation of many units at once, by sparse products with one matrix of weights.

    Moran's I       (n / S0) z'Wz / z'z: 1 for what varies slowly, about 0 for no order, below for neighbours that
                    differ (Moran 1950)
    Geary's C       (n - 1) sum w_ij (x_i - x_j)^2 / (2 S0 z'z): 1 for no order, 0 for equal neighbours (Geary 1954)
    Gi*             how far the sum over a place and its neighbours is from what places drawn at random give, in
                    standard deviations (Ord and Getis 1995)
    local Moran     z_i sum_j w_ij z_j / m2, with m2 = z'z / n: each place's part of Moran's I (Anselin 1995)

z is x less its mean. Moments are those of Cliff and Ord (1981): under `normality` values are independent draws from one
normal distribution; under `randomisation` the values at hand are dealt out to the places at random, which takes their
kurtosis into account. A unit that is constant over the places has no statistics: they are nan.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int8
from scipy import sparse, stats

from ...lab.errors import InputError
from ...lab.sequences import numbers_of
from .weights import Weights

Values = Float64[np.ndarray, "places units"]
Assumption = Literal["normality", "randomisation"]
QUADRANTS = ("", "HH", "LH", "LL", "HL")
"""What the numbers of `LocalMoran.quadrant` stand for: a place first, its neighbours second; high or low."""
CONSTANT = 1e-12
"""A spread below this share of the largest value is rounding."""


class Global(NamedTuple):
    """One number for each unit, and what it would be without spatial order."""

    value: Float64[np.ndarray, " units"]
    expected: float
    z_normality: Float64[np.ndarray, " units"]
    """Distance from the expectation in standard deviations, for normal values."""
    z_randomisation: Float64[np.ndarray, " units"]
    """z-score under values dealt out at random."""

    def p(self, assumption: Assumption = "randomisation", two_tailed: bool = True) -> Float64[np.ndarray, " units"]:
        """Chance of a z as far from 0; not two-tailed: on the same side."""
        z = self.z_normality if assumption == "normality" else self.z_randomisation
        return (1 + two_tailed) * stats.norm.sf(np.abs(z))


class LocalMoran(NamedTuple):
    """The part of every place in Moran's I, for every unit."""

    value: Float64[np.ndarray, "places units"]
    """Its mean over places is S0 / n times Moran's I, which is I itself for row-standardised weights."""
    quadrant: Int8[np.ndarray, "places units"]
    """Index into `QUADRANTS`; 0 where the place or its neighbours are exactly average, or the unit is constant."""
    z: Float64[np.ndarray, "places units"]
    """Distance from the expectation under conditional randomisation, in standard deviations: the place keeps its value
    and the others are dealt out at random (Sokal, Oden and Thomson 1998)."""


def moran(x: Values, weights: Weights) -> Global:
    """Moran's I of every unit; nan for constant ones.

    Raises:
        InputError: another number of places than the weights have, fewer than 4, no weight at all, or values that are
            not finite.
    """
    x = _columns(x)
    n, s0, s1, s2 = _sums(x, weights)
    z = _centred(x)
    squares = (z**2).sum(0)
    expected = -1 / (n - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = n / s0 * (z * (weights @ z)).sum(0) / squares
        kurtosis = (z**4).sum(0) / n / (squares / n) ** 2
        normal = (n**2 * s1 - n * s2 + 3 * s0**2) / ((n**2 - 1) * s0**2) - expected**2
        dealt = n * ((n**2 - 3 * n + 3) * s1 - n * s2 + 3 * s0**2)
        dealt = dealt - kurtosis * ((n**2 - n) * s1 - 2 * n * s2 + 6 * s0**2)
        dealt = dealt / ((n - 1) * (n - 2) * (n - 3) * s0**2) - expected**2
        away = value - expected
        return Global(value, expected, away / np.sqrt(normal), away / np.sqrt(dealt))


def geary(x: Values, weights: Weights) -> Global:
    """Geary's C of every unit; nan for constant ones, negative z for neighbours that are alike.

    Raises:
        InputError: as `moran`.
    """
    x = _columns(x)
    n, s0, s1, s2 = _sums(x, weights)
    z = _centred(x)
    squares = (z**2).sum(0)
    degrees = np.asarray(weights.sum(1) + weights.sum(0)).reshape(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        differences = degrees @ z**2 - 2 * (z * (weights @ z)).sum(0)
        value = (n - 1) / (2 * s0) * differences / squares
        kurtosis = (z**4).sum(0) / n / (squares / n) ** 2
        normal = ((2 * s1 + s2) * (n - 1) - 4 * s0**2) / (2 * (n + 1) * s0**2)
        dealt = (n - 1) * s1 * (n**2 - 3 * n + 3 - (n - 1) * kurtosis)
        dealt = dealt - (n - 1) * s2 / 4 * (n**2 + 3 * n - 6 - (n**2 - n + 2) * kurtosis)
        dealt = dealt + s0**2 * (n**2 - 3 - (n - 1) ** 2 * kurtosis)
        dealt = dealt / (n * (n - 2) * (n - 3) * s0**2)
        return Global(value, 1.0, (value - 1) / np.sqrt(normal), (value - 1) / np.sqrt(dealt))


def getis_ord(x: Values, weights: Weights) -> Values:
    """Gi* of every place and unit, already a z; nan for constant units.

    Every place with a weight above 0 counts as a neighbour, and the place itself is among them.

    Raises:
        InputError: as `moran`.
    """
    x = _columns(x)
    n = _sums(x, weights)[0]
    binary = sparse.csr_array((np.ones(weights.nnz), weights.indices, weights.indptr), shape=weights.shape)
    binary = sparse.csr_array(binary + sparse.eye_array(n))
    z = _centred(x)
    count = np.asarray(binary.sum(1)).reshape(-1, 1)
    spread = np.sqrt((z**2).mean(0)) * np.sqrt((n * count - count**2) / (n - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (binary @ z) / spread


def local_moran(x: Values, weights: Weights) -> LocalMoran:
    """Local Moran of every place and unit; nan for constant units.

    Raises:
        InputError: as `moran`.
    """
    x = _columns(x)
    n = _sums(x, weights)[0]
    z = _centred(x)
    lag = weights @ z
    sums = np.asarray(weights.sum(1)).reshape(-1, 1)
    squares = np.asarray(weights.power(2).sum(1)).reshape(-1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        m2 = (z**2).mean(0)
        value = z * lag / m2
        expected = -(z**2) * sums / ((n - 1) * m2)
        variance = (z / m2) ** 2 * n / (n - 2) * (squares - sums**2 / (n - 1)) * (m2 - z**2 / (n - 1))
        away = (value - expected) / np.sqrt(variance)
    quadrant = np.select(
        [(z > 0) & (lag > 0), (z < 0) & (lag > 0), (z < 0) & (lag < 0), (z > 0) & (lag < 0)], [1, 2, 3, 4], 0
    ).astype(np.int8)
    return LocalMoran(value, quadrant, away)


def permuted_p(
    x: Values, weights: Weights, rng: np.random.Generator, permutations: int = 999, *, two_tailed: bool = True
) -> Float64[np.ndarray, " units"]:
    """Chance of a Moran's I as far out when places are shuffled: (1 + as far) / (1 + permutations).

    One shuffle serves all units. Two-tailed, the smaller tail counts twice; otherwise it is the tail the unit is in.

    Raises:
        InputError: as `moran`, or no permutation.
    """
    if permutations < 1:
        raise InputError(f"permutations must be at least 1, got {permutations}")
    x = _columns(x)
    _sums(x, weights)
    z = _centred(x)
    real = (z * (weights @ z)).sum(0)
    above, below = np.zeros(len(real)), np.zeros(len(real))
    slack = 1e-12 * np.abs(real)  # the same sum in another order counts as equal
    for _ in range(permutations):
        dealt = z[rng.permutation(len(z))]
        shuffled = (dealt * (weights @ dealt)).sum(0)
        above += shuffled >= real - slack
        below += shuffled <= real + slack
    tail = (1 + np.minimum(above, below)) / (1 + permutations)
    return np.where(np.isnan(real), np.nan, np.minimum(1, (1 + two_tailed) * tail))


def adjusted(p: Float64[np.ndarray, " tests"]) -> Float64[np.ndarray, " tests"]:
    """The false discovery rate at which each test is significant (Benjamini and Hochberg 1995); nan stays nan."""
    p = numbers_of(p, "chances")
    rates = np.full(p.shape, np.nan)
    known = np.isfinite(p)
    if known.any():
        rates[known] = stats.false_discovery_control(p[known], method="bh")
    return rates


def _columns(x: Values) -> Values:
    """Values as an array [places, units]; one column is one unit."""
    found = numbers_of(x, "values")
    return found[:, None] if found.ndim == 1 else found


def _sums(x: Values, weights: Weights) -> tuple[int, float, float, float]:
    """n, S0, S1 and S2 of the weights, after a look at the values."""
    n = len(weights.indptr) - 1
    if x.ndim != 2 or len(x) != n:
        raise InputError(f"values of shape {list(x.shape)} were given for weights of {n} places: give [{n}, units]")
    if n < 4:
        raise InputError(f"spatial statistics need at least 4 places, got {n}")
    if not np.isfinite(x).all():
        raise InputError(f"{int((~np.isfinite(x)).any(0).sum())} of {x.shape[1]} units are nan or infinite somewhere")
    s0 = float(weights.sum())
    if not s0 > 0:
        raise InputError("no place has a neighbour: all weights are 0")
    s1 = float((weights + weights.T).power(2).sum()) / 2
    degrees = np.asarray(weights.sum(0)).reshape(-1) + np.asarray(weights.sum(1)).reshape(-1)
    return n, s0, s1, float((degrees**2).sum())


def _centred(x: Values) -> Values:
    """Values less their means; nan in units without spread."""
    z = x - x.mean(0)
    flat = np.abs(z).max(0) <= CONSTANT * np.abs(x).max(0)
    z[:, flat] = np.nan
    return z

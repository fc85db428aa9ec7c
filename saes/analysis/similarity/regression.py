"""Linear regression of one representation on another: the share of variance it predicts on held-out rows.

W minimises |Y - X W|^2 + ridge * tr(X'X) / d * |W|^2 over centred fitted rows, and the score is
1 - sum |y - y_hat|^2 / sum |y - mean|^2 over held-out rows, with the mean of the fitted ones: 0 for a predictor that
knows only the mean, below 0 for one that overfits. It asks one way, from x to y, and does not change when x goes
through any invertible linear map (without ridge) or when y is rotated, scaled or shifted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ....lab.errors import InputError
from ...evaluation.document_sums import ratio
from .grams import Kernel, products
from .rows import Factors


class Regressor(NamedTuple):
    """One representation as what predicts, and as what is predicted.

    Predictions for the held-out rows are `smooth @ (basis.T @ targets)`, whatever the targets.
    """

    basis: Float[Tensor, "fit r"]
    """Left singular vectors of the fitted rows."""
    smooth: Float[Tensor, "test r"]
    """Held-out rows in those coordinates, shrunk by the ridge."""
    fit: Float[Tensor, "fit d"]
    """Its fitted rows, centred."""
    test: Float[Tensor, "test d"]
    """Its held-out rows, centred by the mean of the fitted ones."""


def regressor(x: Factors, ridge: float) -> Regressor:
    """Any number of targets then costs two products each.

    Raises:
        InputError: `ridge` is negative or not finite.
    """
    if not 0 <= ridge < float("inf"):
        raise InputError(f"ridge={ridge} must be at least 0 and finite (a share of the mean variance of a feature)")
    squares = x.scales.square()
    penalty = ridge * squares.sum() / x.fit.shape[1]
    return Regressor(x.left, (x.test @ x.right.T) * (x.scales / (squares + penalty)), x.fit, x.test)


def predicted(x: Regressor, y: Regressor) -> dict[str, Float[Tensor, " test"]]:
    """Squared error and squared distance from the mean of every held-out row of `y`, predicted from `x`."""
    lost = y.test - x.smooth @ (x.basis.T @ y.fit)
    return {"lost": lost.square().sum(1), "total": y.test.square().sum(1)}


def r_squared(sums: Mapping[str, np.ndarray]) -> float:
    """The share of variance that is predicted, from summed columns."""
    return 1 - ratio(sums["lost"], sums["total"])


def r_squared_grid(regressors: Sequence[Regressor]) -> Float64[Tensor, "n n"]:
    """R^2 of every representation (columns) predicted from every one (rows).

    With H = smooth basis', the squared error is |Y|^2 - 2 <H, Y_test Y_fit'> + <H'H, Y_fit Y_fit'>: inner products of
    kernels over rows, of which each is made once, instead of a regression a pair.
    """
    smoothers = [Kernel(regressor.smooth, regressor.basis) for regressor in regressors]
    targets = [Kernel(regressor.test, regressor.fit) for regressor in regressors]
    squares = [
        Kernel(regressor.basis @ (regressor.smooth.T @ regressor.smooth), regressor.basis) for regressor in regressors
    ]
    fitted = [Kernel(regressor.fit, regressor.fit) for regressor in regressors]
    total = torch.stack([regressor.test.double().square().sum() for regressor in regressors])
    lost = total - 2 * products(smoothers, targets) + products(squares, fitted)
    return 1 - lost / total

"""When an activation is explained so badly that it becomes an atom.

cos          1 - cos(x, x_hat) > tau
fvu          |x - x_hat|^2 / |x|^2 > tau
paper_code   |x / |x| - x_hat / |x_hat||^2 / d > paper_tau, as released: a cosine again, but divided by the width d,
             so that one threshold means another angle in every model; for replication only
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from jaxtyping import Float
from torch import Tensor

from ....lab.errors import InputError

Criterion = Literal["cos", "fvu", "paper_code"]
CRITERIA = get_args(Criterion)

LEAST = 1e-5
"""The smallest threshold: losses are known to about 1e-6."""


class Threshold(NamedTuple):
    """A criterion as the kernels take it."""

    limit: float
    """Of `kernels.growth.lost`."""
    cosine: bool
    enough: float
    """A share |r|^2 / |x|^2 at which the loss is surely within the limit, so that no further step can matter:
    the angle between x and x_hat has a sine of at most |r| / |x|."""

    @classmethod
    def of(cls, criterion: Criterion, tau: float, d: int) -> Threshold:
        """Of a criterion and its own threshold at width d.

        Raises:
            InputError: a threshold of `paper_code` that no row of this width can exceed, or that is below rounding.
        """
        if criterion == "fvu":
            return cls(tau, False, tau)
        limit = tau
        if criterion == "paper_code":
            if tau >= 2 / d:
                raise InputError(
                    f"paper_tau={tau:g} can never be exceeded at width {d}: the error is (2 - 2 cos) / d, at most"
                    f" 4/d = {4 / d:.3g}, and at most 2/d = {2 / d:.3g} by pursuit; give a smaller one, or"
                    " criterion cos with a tau that does not depend on the width"
                )
            limit = tau * d / 2
        if limit < LEAST:
            raise InputError(
                f"the threshold {tau:g} is 1 - cos = {limit:.3g} at width {d}, below the {LEAST:g} that rounding"
                " leaves: give a larger one"
            )
        return cls(limit, True, limit * (2 - limit))


def paper_error(x: Float[Tensor, "rows d"], x_hat: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
    """The error of the released code: (2 - 2 cos) / d; 1 / d where the reconstruction is zero."""
    unit, unit_hat = (rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8) for rows in (x, x_hat))
    return (unit - unit_hat).square().mean(1)

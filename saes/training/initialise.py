"""Starting weights, from the first rows of the stream (recipes compared in Gao et al. 2024, appendix A.1).

    tied      unit decoder rows, encoder = decoder transposed, scaled so that the first batch is fitted best
    kaiming   an encoder of its own, uniform in +- sqrt(6 / d_in) (He et al. 2015, eq. 10); random unit decoder rows
    normal    the same, its entries normal with variance 1 / d_in: pre-activations of unit variance

Rows are random directions, or part data (`blend`; 1 starts on activations themselves). Training scales activations to
unit mean square first, so that the last two need no scale of their own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32
from torch import Tensor

from ...kernels.tuples import Residual
from ...kernels.update import latent_gradients
from ..architectures.sae import SparseAutoencoder
from ..architectures.units import geometric_median


@torch.no_grad()
def initialise(
    dictionary: SparseAutoencoder,
    x: Float32[Tensor, "rows d_in"],
    generator: torch.Generator,
    blend: float,
    target: Float32[Tensor, "rows d_out"] | None = None,
    *,
    start: str = "tied",
    centre: str = "median",
) -> None:
    """Set all weights in place: by default unit decoder rows, encoder = decoder transposed, bias at the median.

    Args:
        x: normalised activations, at least a few thousand rows; centred, where there is a target.
        blend: share of a (centred, unit) data row in every encoder row, and with another start than "tied" in every
            decoder row; the rest is a random direction. 0 is the published recipe, 1 starts on the data itself.
        target: activations that a transcoder predicts. A decoder row of a tied start is then the mean target of the
            rows on which its latent is active, weighted by the code: where the first gradient would take it from zero.
        start: see the module; the encoder's scale in a tied one makes the reconstruction of the first batch the best
            multiple of itself.
        centre: start of b_dec: the geometric median, the mean, or zero.
    """
    goal = x if target is None else target
    dictionary.b_dec.copy_(_centre(goal, centre))
    goal = goal - dictionary.b_dec
    x = goal if target is None else x
    dictionary.b_enc.zero_()
    if start == "tied":
        dictionary.W_enc.copy_(_unit_rows(x, len(dictionary.W_enc), generator, blend))
        dictionary.W_dec.copy_(dictionary.W_enc if target is None else _answers(dictionary, x, goal, generator))
        scale_encoder(dictionary, x, goal)
        return
    n, d = dictionary.W_enc.shape
    if start == "kaiming":
        encoder = (2 * torch.rand(n, d, generator=generator) - 1) * (6 / d) ** 0.5
    else:
        encoder = torch.randn(n, d, generator=generator) / d**0.5
    dictionary.W_enc.copy_(encoder)
    dictionary.W_dec.copy_(_unit_rows(goal, n, generator, blend))


def _centre(goal: Float32[Tensor, "rows d"], centre: str) -> Float32[Tensor, " d"]:
    """Start of b_dec."""
    if centre == "median":
        return geometric_median(goal)
    return goal.mean(0) if centre == "mean" else torch.zeros_like(goal[0])


def _unit_rows(
    x: Float32[Tensor, "rows d"], n: int, generator: torch.Generator, blend: float
) -> Float32[Tensor, "n d"]:
    """Random directions with a share of data rows in them, of unit norm."""
    d = x.shape[1]
    random = torch.randn(n, d, generator=generator).to(x.device)
    random /= random.norm(dim=1, keepdim=True)
    picks = torch.randperm(max(n, len(x)), generator=generator)[:n].to(x.device) % len(x)
    data = x[picks]
    data /= data.norm(dim=1, keepdim=True).clamp_min(1e-8)
    rows = blend * data + (1 - blend) * random
    return rows / rows.norm(dim=1, keepdim=True)


def scale_encoder(
    dictionary: SparseAutoencoder, x: Float32[Tensor, "rows d_in"], goal: Float32[Tensor, "rows d_out"]
) -> None:
    """Multiply the encoder by the least-squares factor between `goal` and what codes add up to.

    Args:
        x: rows as the encoder sees them.
        goal: what is to be reconstructed, less b_dec.
    """
    part = dictionary.decode(dictionary.training_code(x, None)) - dictionary.b_dec
    dictionary.W_enc.mul_((part * goal).sum() / part.square().sum().clamp_min(1e-12))


def _answers(
    dictionary: SparseAutoencoder, x: Float32[Tensor, "rows d_in"], goal: Float32[Tensor, "rows d_out"],
    generator: torch.Generator,
) -> Float32[Tensor, "n d_out"]:  # fmt: skip
    """Unit rows: the code-weighted sum of every latent's targets; random for latents that no row activates."""
    rows = torch.randn(dictionary.n_latents, goal.shape[1], generator=generator).to(x.device)
    code = dictionary.training_code(x, None)
    nothing = Residual(goal, goal[:, 0], torch.zeros_like(code.values))
    gradients = latent_gradients((code.indptr, code.indices, code.values), nothing, x, 1.0, len(rows))
    rows[gradients.latents] = gradients.W_dec
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8)

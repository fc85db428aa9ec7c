"""The linear map as a dictionary: what a transcoder must beat to have found more than a matrix."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..dictionary import Dictionary
from ..registry import register
from ..sparse_code import SparseCode
from .sae import SAEConfig

RIDGE = 1e-4
"""Penalty on the map, as a share of the mean variance of the input's columns."""


@register
class Linear(Dictionary):
    """Ridge regression of one site's activations on another's, written in its singular directions.

    Codes are signed and dense: every row has all n_latents = min(d_in, d_out) of them, so that they add up to the
    whole map. W_enc [n_latents, d_in], W_dec [n_latents, d_out] with unit rows, b_enc [n_latents], b_dec [d_out].
    """

    architecture = "linear"
    config_type = SAEConfig
    config: SAEConfig
    W_enc: Tensor
    b_enc: Tensor

    def __init__(self, config: SAEConfig) -> None:
        super().__init__(config)
        n, d, d_out = config.n_latents, config.d_in, self.d_out
        for name, shape in {"W_enc": (n, d), "b_enc": (n,), "W_dec": (n, d_out), "b_dec": (d_out,)}.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=False))

    @classmethod
    def fit(cls, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"]) -> Self:
        """The map with the least squared error on these rows, its penalty included, fp64."""
        rank = min(x.shape[1], target.shape[1])
        linear = cls(SAEConfig(x.shape[1], rank, rank, d_out=target.shape[1])).to(x.device)
        exact, goal = x.double(), target.double()
        mean, goal_mean = exact.mean(0), goal.mean(0)
        exact, goal = exact - mean, goal - goal_mean
        covariance = exact.T @ exact
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean() + 1e-12)
        read, size, written = torch.linalg.svd(torch.linalg.solve(covariance, exact.T @ goal), full_matrices=False)
        encoder = (read * size).T
        linear.W_enc.copy_(encoder)
        linear.b_enc.copy_(-(encoder @ mean))
        linear.W_dec.copy_(written)
        linear.b_dec.copy_(goal_mean)
        return linear

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> SparseCode:
        """Every coefficient of every row."""
        codes = torch.addmm(self.b_enc, self.rows(x), self.W_enc.T)
        columns = torch.arange(self.n_latents, dtype=torch.int32, device=codes.device)
        return SparseCode.fixed(codes, columns.expand(len(codes), -1).contiguous(), self.n_latents)

"""An honest dense TopK trainer: what `torch.compile` and a fused optimizer give with no sparse kernel at all."""

from __future__ import annotations

import os
import shutil

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from ....saes.training.config import TrainConfig
from ...errors import InputError
from .contestant import Asked


class DenseCompiled:
    """TopK by dense products: compiled forward, backward and decoder upkeep, and torch's fused Adam.

    fp32 on a CPU, bf16 autocast on a GPU. Rows are scaled to unit mean squared norm. It does less than a trainer of a
    library does: no dead-latent aid, no firing counts, no logging.

    Raises:
        InputError: on a CPU without a C++ compiler.
    """

    def __init__(self, sample: Tensor, asked: Asked) -> None:
        self.device, self.k, n_latents = sample.device, asked.k, asked.n_latents
        compilers = [os.environ.get("CXX", "g++"), "g++", "clang++"]
        if self.device.type == "cpu" and not any(shutil.which(name) for name in compilers):
            raise InputError("dense-compiled needs a C++ compiler on a CPU, and none was found: install g++")
        self.factor = sample.square().sum(1).mean().sqrt()
        g = torch.Generator().manual_seed(asked.seed)
        decoder = normalize(torch.randn(n_latents, sample.shape[1], generator=g), dim=1).to(self.device)
        zeros = [torch.zeros(size, device=self.device) for size in (n_latents, sample.shape[1])]
        self.W_enc, self.W_dec, self.b_enc, self.b_dec = (
            torch.nn.Parameter(tensor) for tensor in (decoder.clone(), decoder, *zeros)
        )
        rate = asked.lr or 2e-4 / (n_latents / 2**14) ** 0.5
        parameters = [self.W_enc, self.W_dec, self.b_enc, self.b_dec]
        self.optimizer = torch.optim.Adam(parameters, lr=rate, fused=True)
        rise = max(1, int(TrainConfig().warmup * asked.steps))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / rise))
        self._loss, self._project = torch.compile(self._fvu), torch.compile(_remove_radial)
        self._unit = torch.compile(_to_unit_norm)

    def _forward(self, x: Tensor) -> Tensor:
        values, columns = linear(x - self.b_dec, self.W_enc, self.b_enc).relu().topk(self.k, sorted=False)
        codes = torch.zeros(len(x), len(self.W_enc), dtype=values.dtype, device=x.device).scatter(1, columns, values)
        return codes @ self.W_dec + self.b_dec

    def _fvu(self, x: Tensor) -> Tensor:
        return (self._forward(x) - x).square().sum() / (x - x.mean(0)).square().sum()

    def step(self, x: Tensor) -> None:
        """FVU, its gradient without the decoder's radial part, Adam, unit decoder rows."""
        x = x / self.factor
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self._loss(x)
        loss.backward()
        grad = self.W_dec.grad
        assert grad is not None
        with torch.no_grad():
            self._project(grad, self.W_dec)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self._unit(self.W_dec)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """x_hat in activation units."""
        return self._forward(x / self.factor) * self.factor


def _remove_radial(grad: Tensor, rows: Tensor) -> None:
    grad.sub_((grad * rows).sum(1, keepdim=True) * rows)


def _to_unit_norm(rows: Tensor) -> None:
    rows.div_(rows.norm(dim=1, keepdim=True).clamp_min(1e-12))

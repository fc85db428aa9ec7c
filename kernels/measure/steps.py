"""Whole training steps, ours and two written as peers write them: sections 6 and 7 of the plan."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear, normalize

from .. import decode, update
from ..encode import encode_topk
from .operations import Sections, draw, start
from .session import Row, Session, Shape

BATCHES = 3
"""Different batches, taken in turn."""


def sections(session: Session) -> Sections:
    """Title, budget in seconds and parts of each section."""
    shapes = session.shapes
    variants = (("dense Adam", 0.9, False), ("beta1 = 0, active rows", 0.0, True))
    ours, baselines = [], []
    for shape in shapes:
        huge = 2 * shape.d * shape.n > 2e9
        for name, beta1, active in variants[huge:]:
            ours.append((f"{name} {tuple(shape)}", partial(our_step, session, shape, name, beta1, active)))
        if not huge:
            for name, kind in (("dense eager", Dense), ("sparse eager", Sparse)):
                baselines.append((f"{name} {tuple(shape)}", partial(baseline_step, session, shape, name, kind)))
    return [("our step", 120, ours), ("eager baselines", 90, baselines)]


class Step:
    """The training step out of kernels: encode and select, decode with residual, update; and Adam for b_dec."""

    def __init__(self, session: Session, shape: Shape, beta1: float, active_rows: bool) -> None:
        self.weights, self.low_precision = start(session, shape)
        self.moments = update.new_moments(self.weights, beta1, active_rows)
        self.b_dec = torch.zeros(shape.d, device=session.device)
        self.bias_moments = torch.zeros(2, shape.d, device=session.device)
        self.indptr = torch.arange(0, shape.batch * shape.k + 1, shape.k, device=session.device)
        self.k, self.beta1 = shape.k, beta1
        self.scalars = update.Adam(1e-4, 1, beta1).scalars().to(session.device)
        self.t, self.steps = torch.zeros((), device=session.device), 0

    def __call__(self, x: Tensor) -> Tensor:
        """One step on rows [batch, d]; returns the squared error. Nothing is read back to the host."""
        self.t += 1  # on the device, so that a replayed graph counts on
        self.steps += 1
        self.scalars[3:] = torch.stack([1 - self.beta1**self.t, 1 - 0.999**self.t, self.scalars[5], self.t])
        adam = update.Adam(1e-4, self.steps, self.beta1, device=self.scalars)
        centred = x - self.b_dec
        values, columns = encode_topk(
            centred, self.weights.W_enc, self.weights.b_enc, self.k, precision="bf16", low_precision=self.low_precision
        )
        codes = (self.indptr, columns.flatten(), values.clamp_min_(0).flatten())
        out = decode.decode_residual(*codes, self.low_precision.W_dec, self.b_dec, x, self.k)  # pyright: ignore[reportArgumentType]
        scale = 2 / (x - x.mean(0)).square().sum()
        updated = update.latent_step(codes, out, centred, scale, self.weights, self.moments, adam, self.low_precision)
        first, second = self.bias_moments
        grad = out.residual.sum(0) * scale - updated.to_input
        first.lerp_(grad, 1 - self.beta1)
        second.lerp_(grad.square(), 1 - adam.beta2)
        self.b_dec.sub_(1e-4 * first / self.scalars[3] / ((second / self.scalars[4]).sqrt() + adam.eps))
        return out.squares.sum()


def our_step(session: Session, shape: Shape, name: str, beta1: float, active_rows: bool) -> None:
    """Time the step launched call by call and, on a GPU, replayed as one graph."""
    step = Step(session, shape, beta1, active_rows)
    batches = rows(session, shape, step.weights.W_dec)
    floor = step_floor(session, shape, 18 if active_rows else 26)
    first, losses = float(step(batches[0])), []

    def eager(number: int) -> None:
        losses.append(step(batches[number % BATCHES]))

    row = session.add(f"step, {name}", shape, eager, floor=floor)
    note = f"{rate(shape, row)}; squared error {first:.3g} to {losses[-1]:.3g}"
    session.rows[-1] = row._replace(note=note)
    if session.device.type != "cuda":
        return
    held = batches[0].clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(held)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(held)

    def replay(number: int) -> None:
        held.copy_(batches[number % BATCHES])
        graph.replay()

    row = session.add(f"step, {name}, one graph", shape, replay, floor=floor)
    session.rows[-1] = row._replace(note=rate(shape, row))


def rate(shape: Shape, row: Row) -> str:
    """Tokens a second, told."""
    return f"{shape.batch / row.milliseconds / 1e3:.3f}M tokens/s"


def step_floor(session: Session, shape: Shape, optimizer_bytes: int) -> float:
    """Milliseconds of the encode product at its measured rate plus the least traffic: the decoder rows of the codes
    once, rows and residuals of the codes in bf16, and the optimizer's bytes for each parameter."""
    bytes = 6 * shape.batch * shape.k * shape.d + optimizer_bytes * 2 * shape.d * shape.n
    return session.encode_floor(shape) + 1e3 * bytes / session.rates["copy"]


def rows(session: Session, shape: Shape, W_dec: Tensor) -> list[Tensor]:
    """Batches made from log-normally frequent decoder rows, plus noise."""
    batches = []
    zero = torch.zeros(shape.d, device=session.device)
    for seed in range(BATCHES):
        codes, noise = draw(session, shape, 1.5, seed=seed)
        batches.append(decode.decode(*codes, W_dec, zero) + 0.02 * noise)
    return batches


class Dense(torch.nn.Module):
    """TopK with dense products both ways, as plain PyTorch has it."""

    def __init__(self, d: int, n: int, k: int) -> None:
        super().__init__()
        self.k = k
        rows = normalize(torch.randn(n, d), dim=1)
        self.W_enc, self.W_dec = torch.nn.Parameter(rows.clone()), torch.nn.Parameter(rows)
        self.b_enc, self.b_dec = torch.nn.Parameter(torch.zeros(n)), torch.nn.Parameter(torch.zeros(d))

    def forward(self, x: Tensor) -> Tensor:
        """x_hat [batch, d]."""
        values, columns = linear(x - self.b_dec, self.W_enc, self.b_enc).relu().topk(self.k, sorted=False)
        codes = torch.zeros(len(x), len(self.W_enc), dtype=values.dtype, device=x.device).scatter(1, columns, values)
        return codes @ self.W_dec.to(values.dtype) + self.b_dec


class _Selected(torch.autograd.Function):
    """Encode and select, with a gradient to the selected entries only, added up by index."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, columns = linear(x, weight.to(x.dtype), bias.to(x.dtype)).relu_().topk(k, sorted=False)
        ctx.save_for_backward(x, weight, values, columns)
        ctx.mark_non_differentiable(columns)
        return values, columns

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, values, columns = ctx.saved_tensors
        grad = grads[0].to(x.dtype) * (values > 0)
        to_weight, to_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        to_bias.index_add_(0, columns.flatten(), grad.flatten().float())
        for part, columns_part, x_part in zip(grad.split(1024), columns.split(1024), x.split(1024), strict=True):
            terms = (part[:, :, None] * x_part[:, None]).flatten(0, 1)
            to_weight.index_add_(0, columns_part.flatten(), terms.float())
        to_x = embedding_bag(columns, weight.to(x.dtype), per_sample_weights=grad, mode="sum")
        return to_x, to_weight, to_bias, None


class Sparse(Dense):
    """TopK with a sparse decode and sparse gradients by index, and dense everything else: what a sparse eager
    library does."""

    def forward(self, x: Tensor) -> Tensor:
        """x_hat [batch, d]."""
        small = (x - self.b_dec).bfloat16() if x.is_cuda else x - self.b_dec
        values, columns = _Selected.apply(small, self.W_enc, self.b_enc, self.k)  # pyright: ignore[reportGeneralTypeIssues]
        return embedding_bag(columns, self.W_dec, per_sample_weights=values.float(), mode="sum") + self.b_dec


def baseline_step(session: Session, shape: Shape, name: str, kind: type[Dense]) -> None:
    """Forward in bf16, backward, clipping, decoder projection, fused Adam and renormalisation, one after another."""
    with torch.device(session.device):
        model = kind(shape.d, shape.n, shape.k)
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    batches = rows(session, shape, model.W_dec.detach())

    def step(number: int) -> None:
        x = batches[number % BATCHES]
        with torch.autocast(session.device.type, torch.bfloat16, enabled=session.device.type == "cuda"):
            loss = (model(x) - x).square().sum() / (x - x.mean(0)).square().sum()
        loss.backward()
        with torch.no_grad():
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            grad = model.W_dec.grad
            assert grad is not None
            grad -= (grad * model.W_dec).sum(1, keepdim=True) * model.W_dec
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True))

    row = session.add(f"{name} step", shape, step, floor=step_floor(session, shape, 26), repeat=5)
    session.rows[-1] = row._replace(note=rate(shape, row))

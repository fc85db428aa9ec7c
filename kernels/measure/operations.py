"""Ceilings, and the kernels one by one against them: sections 1 to 5 of the plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .. import decode, topk, update
from ..chunks import chunk_rows
from ..encode import low_precision_copy
from ..tuples import LowPrecisionCopy, Weights
from .session import Session, Shape

Sections = list[tuple[str, float, list[tuple[str, Callable[[], None]]]]]

CALIBRATION = ((2048, 131072, 1024), (256, 524288, 1024))
"""Rows, columns, k of published timings of other exact top-k kernels."""
TOY_CALIBRATION = ((3, 200, 10),)


def sections(session: Session) -> Sections:
    """Title, budget in seconds and parts of each section."""
    each = session.shapes
    calibration = TOY_CALIBRATION if session.dry else CALIBRATION
    largest = max(range(len(each)), key=lambda place: each[place].n * each[place].d)
    trainable = [shape for place, shape in enumerate(each) if place != largest or session.dry]
    return [
        ("ceilings", 45, [("copy", partial(copy_rate, session)),
                          *((str(tuple(s)), partial(products, session, s)) for s in each)]),
        ("topk", 90, [*((str(tuple(s)), partial(selection, session, min(s.batch, 8 * chunk_rows(s.n, "cuda")), s.n, s.k)
                         ) for s in each), *((str(case), partial(selection, session, *case)) for case in calibration)]),
        ("decode", 30, [(str(tuple(s)), partial(decoding, session, s)) for s in each]),
        ("update", 75, [(str(tuple(s)), partial(updating, session, s)) for s in trainable]),
    ]  # fmt: skip


def copy_rate(session: Session) -> None:
    """Bytes/s of a copy of 4 GiB, read and written bytes both counted."""
    source = torch.rand(1 << (16 if session.dry else 30), device=session.device)  # zeros are compressed on the way
    target = torch.empty_like(source)
    bytes = 2 * source.nbytes
    row = session.add("copy", source.numel(), lambda number: target.copy_(source), bytes=bytes, floor=0)
    session.rates["copy"] = bytes / (row.milliseconds / 1e3)


def products(session: Session, shape: Shape) -> None:
    """The encode product in bf16: a whole batch with bf16 out, one row chunk with fp32 out as the encode runs it."""
    x = torch.randn(shape.batch, shape.d, device=session.device).bfloat16()
    weight = torch.randn(shape.n, shape.d, dtype=torch.bfloat16, device=session.device)
    part = x[: chunk_rows(shape.n, "cuda")]
    work = 2 * shape.n * shape.d
    whole = session.add("product, bf16 out", shape, lambda number: x @ weight.T, flops=work * len(x), floor=0)
    if session.device.type == "cuda":
        out = torch.empty(len(part), shape.n, device=session.device)
        call = partial(torch.mm, part, weight.T, out_dtype=torch.float32, out=out)
    else:
        call = partial(torch.mm, part.float(), weight.T.float())
    chunk = session.add(f"product, fp32 out, {len(part)} rows", shape, lambda number: call(),
                        flops=work * len(part), floor=0)  # fmt: skip
    rates = [row.flops / (row.milliseconds / 1e3) for row in (whole, chunk)]
    session.rates["bf16 " + ",".join(map(str, shape))] = max(rates)


def selection(session: Session, rows: int, n: int, k: int) -> None:
    """Our top-k beside torch's on the same pre-activations, fp32 and bf16; the values must be equal."""
    for dtype in (torch.float32, torch.bfloat16):
        pre = torch.randn(rows, n, device=session.device, dtype=dtype)
        name, shape = str(dtype).removeprefix("torch."), f"rows {rows}, {n}, k {k}"
        bytes = pre.nbytes + 8 * rows * k
        theirs = session.add(f"torch.topk {name}", shape, lambda number, pre=pre: pre.topk(k), bytes=bytes, repeat=3)
        expected = pre.topk(k).values.float()
        equal = torch.equal(topk.topk(pre, k).values.sort(dim=1, descending=True).values, expected)
        ours = session.add(f"topk {name}", shape, lambda number, pre=pre: topk.topk(pre, k), bytes=bytes,
                           note="values equal" if equal else "VALUES DIFFER")  # fmt: skip
        session.rows[-1] = ours._replace(note=f"{ours.note}; {theirs.milliseconds / ours.milliseconds:.1f}x torch.topk")


class Drawn(NamedTuple):
    """Random codes as (indptr, indices, values), and the rows that they were drawn for."""

    codes: tuple[Tensor, Tensor, Tensor]
    x: Tensor


def draw(session: Session, shape: Shape, spread: float, heavy: bool = False, seed: int = 0) -> Drawn:
    """Codes whose latents have frequencies exp(spread * normal); with `heavy`, latent 0 fires on half of the rows."""
    g = torch.Generator(session.device).manual_seed(seed)
    normal = partial(torch.randn, generator=g, device=session.device)
    ends = (spread * normal(shape.n)).exp().double().cumsum(0)
    uniform = torch.rand(shape.batch * shape.k, generator=g, device=session.device, dtype=torch.float64)
    columns = torch.searchsorted(ends, uniform * ends[-1]).clamp_max_(shape.n - 1).int().view(shape.batch, shape.k)
    if heavy:
        columns[: shape.batch // 2, 0] = 0
    columns = columns.sort(1).values
    indptr = torch.arange(0, shape.batch * shape.k + 1, shape.k, device=session.device)
    return Drawn((indptr, columns.flatten(), normal(shape.batch * shape.k).abs()), normal(shape.batch, shape.d))


def decoding(session: Session, shape: Shape) -> None:
    """Decode, residual and code gradients from bf16 decoder rows, checked on a few rows by plain gathers."""
    weight = normalize(torch.randn(shape.n, shape.d, device=session.device), dim=1).bfloat16()
    codes, x = draw(session, shape, 1.0)
    b_dec = torch.zeros(shape.d, device=session.device)
    rows = min(64, shape.batch)
    taken = weight[codes[1][: rows * shape.k].long()].float().view(rows, shape.k, shape.d)
    expected = (codes[2][: rows * shape.k].view(rows, shape.k, 1) * taken).sum(1) - x[:rows]
    for name, width in (("fixed width", shape.k), ("ragged", None)):
        run = partial(decode.decode_residual, *codes, weight, b_dec, x, width)
        error = float((run().residual[:rows] - expected).norm() / expected.norm())
        bytes = 2 * shape.batch * shape.k * shape.d + 8 * shape.batch * shape.d + 16 * shape.batch * shape.k
        session.add(f"decode_residual, {name}", shape, lambda number, run=run: run(), bytes=bytes,
                    flops=4 * shape.batch * shape.k * shape.d, note=f"error {error:.1e}")  # fmt: skip


def updating(session: Session, shape: Shape) -> None:
    """Both gradients, Adam, projection and unit norm, at even and log-normal firing, with and without a latent that
    fires on half of the batch."""
    weights, low_precision = start(session, shape)
    moments = update.new_moments(weights, 0.9, False)
    b_dec = torch.zeros(shape.d, device=session.device)
    for name, spread, heavy in (("even", 0.0, False), ("log-normal", 2.0, False), ("log-normal, heavy", 2.0, True)):
        codes, x = draw(session, shape, spread, heavy)
        out = decode.decode_residual(*codes, weights.W_dec, b_dec, x, shape.k)

        def step(number: int, codes=codes, out=out, x=x) -> None:
            update.latent_step(codes, out, x, 1e-4, weights, moments, update.Adam(1e-5, number + 1), low_precision)

        bytes = 8 * shape.batch * shape.k * shape.d + 26 * 2 * shape.d * shape.n
        note = f"{len(codes[1].unique()) / shape.n:.0%} of latents fire"
        if shape == min(session.shapes, key=lambda shape: shape.n):
            note += f"; error {update_error(codes, out, x, weights):.1e}"
        session.add(f"latent_step, {name}", shape, step, bytes=bytes, note=note)
        if heavy and session.device.type == "cuda":
            from ..gpu.transpose import transpose

            session.add("transpose of the codes", shape, lambda number, codes=codes: transpose(codes, shape.n))


def update_error(codes: tuple[Tensor, Tensor, Tensor], out: decode.Residual, x: Tensor, weights: Weights) -> float:
    """Worst relative error of weights and moments after one step of the kernel, against the plain twin."""
    results = []
    for step in (update.latent_step, update.reference):
        changed = Weights(*(part.clone() for part in weights))
        moments = update.new_moments(changed, 0.9, False)
        step(codes, out, x, 1e-4, changed, moments, update.Adam(1e-5, 1))
        results.append((*changed[:2], *(moments.first or ()), *moments.second))
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(*results, strict=True))


def start(session: Session, shape: Shape) -> tuple[Weights, LowPrecisionCopy]:
    """Tied starting weights with unit rows, and their bf16 copies."""
    decoder = torch.randn(shape.n, shape.d, device=session.device)
    for part in decoder.split(65536):
        part.div_(part.norm(dim=1, keepdim=True))
    weights = Weights(decoder.clone(), decoder, torch.zeros(shape.n, device=session.device))
    low_precision = low_precision_copy(weights.W_enc, weights.W_dec, "bf16")
    assert low_precision is not None
    return weights, low_precision

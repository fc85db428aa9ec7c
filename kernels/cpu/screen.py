"""The screened encode in one pass over the weights: int8 products in registers, candidates in a short list a row.

Each thread takes a part of the rows and a panel of latents at a time. A row's list holds the latents that may still be
among its k best; when it has grown, the k-th best estimate in it becomes the bound that later latents must reach, less
twice the margin of `cpu.encode`, and the list is thinned by it. No row of estimates is ever stored. A row whose list
outgrows its room, as all do whose estimates hardly differ, is screened once more with room for every latent.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..chunks import chunk_buffer
from ..tuples import Codes, LowPrecisionCopy
from .compiled import compiled, inlined
from .encode import MARGIN, decide, margins, quantise_row
from .encode import encode_topk as from_products
from .keys import flip, flip_all, kth_key
from .threads import run_rows
from .tile import PANEL, ROWS, has_vnni, screen_tile

PACKED_BYTES = 256 << 10
"""Weights packed at a time: a quarter of a second-level cache of 1 MiB, and every tile of rows runs over them."""

LIST_BYTES = 16 << 20
"""Lists held at once: room for the usual batch of 2,048 rows and k = 32 in one pass over the weights."""

SIGNS = np.int32(-0x7F7F7F80)
"""The highest bit of each byte: turned over, it adds 128 to an int8."""


@inlined
def aligned(size):
    """Room for int32 that starts at a cache line: a vector that crosses two lines is read at half speed."""
    room = np.empty(size + 16, np.int32)
    skip = (np.int64(64) - np.int64(room.ctypes.data) % 64) // 4
    return room[skip : skip + size]


@inlined
def pack_rows(x, packed, scale_x, norm_x):
    """Quantise at most ROWS rows into one tile: four bytes, each plus 128, of every row, step by step."""
    steps = packed.shape[0] // ROWS
    row = np.zeros(4 * steps, np.int8)
    words = row.view(np.int32)
    for r in range(x.shape[0]):
        scale_x[r], norm_x[r] = quantise_row(x[r], row[: x.shape[1]])
        for i in range(steps):
            packed[i * ROWS + r] = words[i] ^ SIGNS


@inlined
def pack_panel(rows, packed, start):
    """At most PANEL int8 rows of weights, four bytes of each step by step; start = -128 * their sums."""
    steps = packed.shape[0] // PANEL
    start[:] = 0
    for j in range(rows.shape[0]):
        total = np.int32(0)
        for i in range(rows.shape[1]):
            total += rows[j, i]
        start[j] = -128 * total
    words = rows.view(np.int32)
    if rows.shape[0] == PANEL:
        for i in range(steps):
            for j in range(PANEL):  # a fixed count: becomes gathers
                packed[i * PANEL + j] = words[j, i]
    else:
        for i in range(steps):
            for j in range(rows.shape[0]):
                packed[i * PANEL + j] = words[j, i]


@inlined
def thin(estimates, columns, k, s, z, reach_scale, reach_norm, keys, flags):
    """Keep the entries of a row's list that may be among its k best. Returns how many, and the bound.

    Their margins are those of their panels, which stay in the cache where those of all latents would not.
    """
    flip_all(estimates.view(np.int32), keys)
    keys[0] = flip(kth_key(keys[: estimates.shape[0]], k, k >> 4))
    bound = keys.view(np.float32)[0]
    for i in range(estimates.shape[0]):
        p = np.uintp(columns[i]) // np.uintp(PANEL)
        flags[i] = not (estimates[i] + (s * reach_norm[p] + z * reach_scale[p]) < bound)  # NaN is kept
    slot = np.uintp(0)
    for i in range(estimates.shape[0]):
        estimates[slot], columns[slot] = estimates[i], columns[i]
        slot += np.uintp(flags[i])
    return np.int64(slot), bound


@inlined
def pack_panels(first, count, rows_w, scale_w, norm_w, bias, packed, start, scales, biases, reach_scale, reach_norm):
    """Pack `count` panels of latents from `first` on, and find how far an estimate may fall short in each of them."""
    twice = np.float32(2 * MARGIN)
    for p in range(count):
        own = slice(first + p * PANEL, min(first + (p + 1) * PANEL, rows_w.shape[0]))
        pack_panel(rows_w[own], packed[p], start[p])
        scales[p, : own.stop - own.start], biases[p, : own.stop - own.start] = scale_w[own], bias[own]
        reach_scale[p], reach_norm[p] = twice * scale_w[own].max(), twice * norm_w[own].max()


@compiled
def screen_tiles(
    first_tile, last_tile, x, weight, bias, rows_w, scale_w, norm_w, k, lists, out_values, out_columns, spilled
):  # fmt: skip
    """Exact top-k of x @ weight.T + bias for the rows of tiles first_tile..last_tile of x.

    rows_w: int8 copy of the weights, padded to a multiple of four columns. lists: int32 [2, ROWS * tiles of x, room].
    spilled: out, the rows whose list had no room; nothing else is written for them.
    """
    n, steps, tiles, base = weight.shape[0], rows_w.shape[1] // 4, last_tile - first_tile, first_tile * ROWS
    rows = min(last_tile * ROWS, x.shape[0]) - base
    estimates, columns = lists[0, base : last_tile * ROWS].view(np.float32), lists[1, base : last_tile * ROWS]
    room = columns.shape[1]
    full = room - PANEL
    filled, enough = np.zeros(tiles * ROWS, np.int64), np.full(tiles * ROWS, min(4 * k, full), np.int64)
    bounds = np.full(tiles * ROWS, np.inf, np.float32)  # infinite for rows that are not there
    bounds[:rows] = -np.inf
    packed_x = np.zeros((tiles, steps * ROWS), np.int32)
    scale_x, norm_x = np.zeros(tiles * ROWS, np.float32), np.zeros(tiles * ROWS, np.float32)
    for t in range(tiles):
        own = slice(t * ROWS, min((t + 1) * ROWS, rows))
        pack_rows(x[base:][own], packed_x[t], scale_x[own], norm_x[own])
    panels = min(max(1, PACKED_BYTES // (4 * steps * PANEL)), (n + PANEL - 1) // PANEL)
    packed_w = aligned(panels * steps * PANEL).reshape(panels, steps * PANEL)
    start, scales = np.empty((panels, PANEL), np.int32), np.zeros((panels, PANEL), np.float32)
    biases, reach = np.zeros((panels, PANEL), np.float32), np.empty((2, (n + PANEL - 1) // PANEL), np.float32)
    limits, keys, flags = np.empty(ROWS, np.float32), np.empty(room, np.int32), np.empty(room, np.bool_)
    for first in range(0, n, panels * PANEL):
        count = min(panels, (n - first + PANEL - 1) // PANEL)
        panel = first // PANEL
        here = reach[:, panel : panel + count]
        pack_panels(first, count, rows_w, scale_w, norm_w, bias, packed_w, start, scales, biases, here[0], here[1])
        for t in range(tiles):
            own = slice(t * ROWS, (t + 1) * ROWS)
            for p in range(count):
                for r in range(ROWS):
                    i = t * ROWS + r
                    limits[r] = bounds[i] - (scale_x[i] * here[1, p] + norm_x[i] * here[0, p])
                c = first + p * PANEL
                valid = np.uint32((np.uint64(1) << np.uint64(min(PANEL, n - c))) - np.uint64(1))
                screen_tile(  # pyright: ignore[reportCallIssue]
                    packed_x[t], packed_w[p], steps, start[p], scales[p], biases[p], scale_x[own], limits, np.int32(c),
                    valid, estimates[own], columns[own], filled[own],
                )  # fmt: skip
                for i in range(t * ROWS, (t + 1) * ROWS):
                    if filled[i] > enough[i]:
                        listed = i, slice(0, filled[i])
                        filled[i], bounds[i] = thin(
                            estimates[listed],
                            columns[listed],
                            k,
                            scale_x[i],
                            norm_x[i],
                            reach[0],
                            reach[1],
                            keys,
                            flags,
                        )
                        enough[i] = min(2 * filled[i] + PANEL, full)
                        if filled[i] > full:
                            spilled[base + i], filled[i], bounds[i] = True, 0, np.inf
    scratch = np.empty(room, np.float32), keys, np.empty(room, np.int32), flags
    for i in range(rows):
        r = base + i
        if not spilled[r]:
            decide(
                x[r], scale_x[i], norm_x[i], weight, bias, scale_w, norm_w, k, estimates[i], columns[i], filled[i],
                out_values[r], out_columns[r], scratch,
            )  # fmt: skip


def encode_topk(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, low_precision: LowPrecisionCopy) -> Codes:
    """`kernels.encode.encode_topk` with the int8 screen; products by oneDNN on a CPU without these instructions."""
    if not has_vnni():
        return from_products(x, W_enc, b_enc, k, low_precision)
    rows, whole = low_precision.W_enc, len(W_enc) + PANEL
    if rows.shape[1] % 4:
        rows = pad(rows, (0, -rows.shape[1] % 4))
    fixed = W_enc, b_enc, rows, *margins(low_precision)
    out, spilled = _screen(x, fixed, k, min(whole, 8 * k + 512))
    again = spilled.nonzero()[:, 0]
    if len(again):
        for whole_row, rest in zip(out, _screen(x[again], fixed, k, whole)[0], strict=True):
            whole_row[again] = rest
    return out


def _screen(x: Tensor, fixed: tuple[Tensor, ...], k: int, room: int) -> tuple[Codes, Tensor]:
    """Codes of x, and which rows need a list of more than `room` latents and were not encoded."""
    batch = len(x)
    out, spilled = Codes(torch.zeros(batch, k), torch.zeros(batch, k, dtype=torch.int32)), torch.zeros(batch).bool()
    chunk = max(ROWS, min(LIST_BYTES // (8 * room), batch) // ROWS * ROWS)
    for first in range(0, batch, chunk):
        part = slice(first, min(first + chunk, batch))
        tiles = -(-(part.stop - first) // ROWS)
        lists = chunk_buffer(2 * tiles * ROWS, room, torch.int32, x.device).view(2, tiles * ROWS, room)
        inputs, outputs = (x[part], *fixed), (lists, out.values[part], out.columns[part], spilled[part])
        run_rows(screen_tiles, tiles, *(t.numpy() for t in inputs), k, *(t.numpy() for t in outputs))
    return out, spilled

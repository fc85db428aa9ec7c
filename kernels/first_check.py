"""The first check of a device's kernels: every operation on one awkward shape, against its reference on the CPU.

Rows repeat values (ties), hold both zeros and one NaN; one latent fires on every row. Memory that a kernel may be given
is filled with NaN, and it runs twice, the second time while another stream of the device is busy. Both runs must give
equal bits, selections the reference's very entries, and sums its numbers to 1e-5 of their norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import code_gradients, decode, jumprelu, kth, pursuit, threshold, topk, update
from .dispatch import HOMES, Backend, implementation
from .tuples import Ragged, Residual

TOLERANCE = 1e-5
"""Most error of a sum, as a share of the norm of the reference's result."""

STEP_TOLERANCE = 1e-4
"""The same for a step of Adam, whose 1 - beta2 is exact to 1.3e-5 where beta2 is rounded to fp32."""


class Shape(NamedTuple):
    """Width of the rows, latents, codes a row, rows."""

    d: int
    n: int
    k: int
    rows: int


AWKWARD = Shape(320, 4608, 9, 600)
"""On a GPU: no width is a power of two."""
SMALL = Shape(40, 96, 9, 33)
"""On a CPU and in Triton's interpreter."""


class Case(NamedTuple):
    """One operation: fresh arguments on the CPU, the plain PyTorch twin, and what is compared."""

    arguments: Callable[[], tuple]
    reference: Callable
    results: Callable[[tuple, tuple], tuple[Tensor, ...]]
    """From the arguments after the call, and what was returned, to tensors."""
    tolerance: float = TOLERANCE


def failures(device: torch.device, backend: Backend, shape: Shape | None = None) -> dict[str, str]:
    """Check every operation of a backend on `device`; returns what is wrong with each that fails.

    Args:
        shape: default `AWKWARD` on a GPU, else `SMALL`.
    """
    found = {}
    made = cases(shape or (AWKWARD if device.type == "cuda" else SMALL))
    for operation in HOMES:
        if reason := _failure(made[operation], implementation(operation, device, backend), device):
            found[operation] = reason
    return found


def _failure(case: Case, run: Callable, device: torch.device) -> str | None:
    arguments = case.arguments()
    expected = case.results(arguments, _several(case.reference(*arguments)))
    runs = []
    try:
        for busy in (False, True):
            on_device = moved(case.arguments(), device)
            _poison(device)
            with _busy(device) if busy else torch.no_grad():
                runs.append(tuple(part.cpu() for part in case.results(on_device, _several(run(*on_device)))))
    except Exception as error:  # a kernel may fail in any library below it; all of them mean the same here
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
    for number, (first, second, right) in enumerate(zip(*runs, expected, strict=True)):
        if first.shape != right.shape:
            return f"result {number} has shape {tuple(first.shape)}, not {tuple(right.shape)}"
        if not torch.equal(_bits(first), _bits(second)):
            return f"two runs differ in result {number}"
        if not right.is_floating_point() and not torch.equal(first.long(), right.long()):
            return f"result {number} selects other entries than the reference"
        if not torch.equal(first.isnan(), right.isnan()):
            return f"result {number} has NaN at other places than the reference"
        gap = float((first.double() - right.double()).nan_to_num().norm())
        if gap > case.tolerance * float(right.double().nan_to_num().norm()):
            return f"result {number} is off by {gap:.2g}"
    return None


def _several(returned: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (returned,) if isinstance(returned, Tensor) else tuple(returned)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32) if values.dtype == torch.float32 else values


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a tuple that holds some at any depth, on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        parts = [moved(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _poison(device: torch.device) -> None:
    """Fill memory that the allocator will hand out next with NaN."""
    if device.type == "cuda":
        for size in (1 << 12, 1 << 17, 1 << 20, 1 << 24):
            torch.full((size,), torch.nan, device=device)


def _busy(device: torch.device):
    """Products on a second stream of the device, under way while the block runs."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            stream = torch.cuda.Stream(device)
            with torch.cuda.stream(stream):
                a = torch.ones(2048, 2048, device=device)
                for _ in range(20):
                    a = a @ a * 1e-3
    return torch.no_grad()


def cases(shape: Shape) -> dict[str, Case]:
    """A `Case` for every operation of `HOMES`."""
    d, n, k, rows = shape
    g = torch.Generator().manual_seed(0)
    columns = torch.stack([torch.randperm(n - 1, generator=g)[:k].sort().values + 1 for _ in range(rows)]).int()
    columns[:, 0] = 0  # one latent on all rows
    values = torch.rand(rows, k, generator=g) * (torch.rand(rows, k, generator=g) > 0.1)
    indptr = torch.arange(0, rows * k + 1, k)
    W = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)
    x, bias, b_dec = torch.randn(rows, d, generator=g), torch.randn(n, generator=g), torch.randn(d, generator=g)
    codes = (indptr, columns.flatten(), values.flatten())
    out: Residual = decode.residual_reference(*codes, W, b_dec, x)
    pre = (torch.randn(rows, n, generator=g) * 4).round() / 4  # ties
    pre[0, ::2], pre[0, 1::2], pre[rows // 2, n // 3] = 0.0, -0.0, torch.nan
    theta = torch.rand(n, generator=g)

    def plain(_: tuple, returned: tuple) -> tuple[Tensor, ...]:
        return returned

    def stepped() -> tuple:
        weights = update.Weights(W.clone(), W.clone(), torch.zeros(n))
        return codes, out, x, 0.1, weights, update.new_moments(weights, 0.9, False), update.Adam(1e-2, 1), None, None

    def changed(arguments: tuple, returned: tuple) -> tuple[Tensor, ...]:
        weights, moments = arguments[4], arguments[5]
        return (*weights, *moments.first, *moments.second, *returned)

    return {
        "decode": Case(lambda: (*codes, W, b_dec), decode.decode_reference, plain),
        "decode_residual": Case(lambda: (*codes, W, b_dec, x, k), decode.residual_reference, plain),
        "code_gradients": Case(lambda: (*codes[:2], W, x), code_gradients.reference, plain),
        "topk": Case(lambda: (pre, k, None, None), topk.reference, plain),
        "above": Case(lambda: (pre, bias, theta + 1), threshold.reference, plain),
        "kth_largest": Case(lambda: (pre.flatten(), rows * k), kth.reference, plain),
        "jumprelu_gradients": Case(
            lambda: (Ragged(*codes), out.grads, theta, 0.3, 0.01), jumprelu.reference, plain
        ),
        "latent_step": Case(stepped, update.reference, changed, STEP_TOLERANCE),
        "latent_gradients": Case(lambda: (codes, out, x, 0.1, n), update.gradients_reference, plain),
        "pursue": Case(lambda: (x, W, k, W @ W.T, False, 0.0), pursuit.reference, plain),
    }  # fmt: skip

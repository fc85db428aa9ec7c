"""Identities that the named sites of a model must satisfy, checked on one tiny forward pass.

They are what makes a site's name mean the same thing in every family; a model that only looks like one of
a family (a scaled residual, say) fails here and not in somebody's results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from .hooks import reading
from .inputs import tiny_inputs
from .readout import norm_gain, unembed
from .sites import Site
from .wiring import Wiring

if TYPE_CHECKING:
    from .hooked_model import HookedModel

# Largest relative difference of any token's vector. A wrong name is off by 10 % and more.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


class Identity(NamedTuple):
    """One identity at one layer, with its error on the tiny input."""

    name: str
    layer: int
    error: float
    """Largest over tokens of `|left - right| / |right|`."""


def check_identities(model: HookedModel) -> None:
    """Raise InputError naming the worst identity that fails, and by how much."""
    tolerance = TOLERANCE.get(model.dtype, 4e-2)
    wrong = [identity for identity in identities(model) if not identity.error <= tolerance]
    if wrong:
        check_finite(model)
        worst = max(wrong, key=lambda identity: identity.error)
        raise InputError(
            f"{model.name} is built like the {model.family} family but does not compute like it: "
            f"{worst.name} fails at layer {worst.layer} by {worst.error:.3%} (allowed {tolerance:.3%}); "
            "load it with checks=False to use path: sites alone"
        )


@torch.no_grad()
def check_finite(model: HookedModel) -> None:
    """Raise InputError where a weight is not finite, or else where the first activation on a tiny input is not."""
    for name, parameter in model.module.named_parameters():
        if not bool(parameter.isfinite().all()):
            nan, inf = int(parameter.isnan().sum()), int(parameter.isinf().sum())
            fix = "the checkpoint is damaged, load another one"
            if not nan and parameter.dtype == torch.float16:
                fix = "numbers above 65,504 are inf in fp16, load it with dtype bf16 or fp32"
            raise InputError(f"{model.name} has {nan} nan and {inf} inf in the weights {name}: {fix}")
    kind = str(model.dtype).removeprefix("torch.")
    remedy = f"the weights are finite, so {kind} overflows: "
    half = model.dtype == torch.float16
    remedy += (
        "load it with dtype bf16 or fp32" if half else "no dtype holds more, give the checkpoint as it was trained"
    )
    kinds = [kind for kind in model.wiring.kinds if kind != "pattern"]
    sites = [Site(kind, layer) for layer in range(model.n_layers) for kind in kinds]
    with reading({site: model.wiring.tap(site) for site in sites}, stop=False) as at:
        model.run(tiny_inputs(model.wiring))
    for site in sites:
        if site in at and not bool(at[site].isfinite().all()):
            raise InputError(f"{model.name} gives nan or inf at {site}: {remedy}")
    if path := _first_not_finite(model):
        raise InputError(f"{model.name} gives nan or inf at {path}: {remedy}")


def _first_not_finite(model: HookedModel) -> Site | None:
    """The first module to end whose output is not finite on a tiny input."""
    at: list[str] = []

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            first = next((tensor for tensor in tensors if isinstance(tensor, Tensor)), None)
            if first is not None and not bool(first.isfinite().all()):
                at.append(name)

        return look

    with contextlib.ExitStack() as handles:
        for name, module in model.module.named_modules():
            if name:
                handles.callback(module.register_forward_hook(note(name)).remove)
        model.run(tiny_inputs(model.wiring))
    return Site.parse(f"path:{at[0]}") if at else None


@torch.no_grad()
def identities(model: HookedModel) -> list[Identity]:
    """Every identity of the model's family at every layer, each with its error, from one forward pass."""
    wiring = model.wiring
    kinds = [kind for kind in wiring.kinds if kind != "pattern"]
    kinds += ["sum_mid", "sum_post"] if wiring.residual == "post_norm" else []
    taps = {(kind, layer): wiring.layer_tap(kind, layer) for layer in range(model.n_layers) for kind in kinds}
    with reading(taps, stop=False) as at:
        output = model.run(tiny_inputs(wiring))
    results = []
    for layer in range(model.n_layers):
        here = {kind: at[kind, layer] for kind in kinds if (kind, layer) in at}
        for name, left, right in [*_residual(wiring.residual, here), *_projections(wiring, layer, here)]:
            results.append(Identity(name, layer, _error(left, right)))
    last = model.n_layers - 1
    for layer in range(last):
        chained = at["resid_post", layer], at["resid_pre", layer + 1]
        results.append(Identity("resid_post == next resid_pre", layer, _error(*chained)))
    if wiring.readout is not None:
        resid = at["resid_post", last]
        logits = output if isinstance(output, Tensor) else output.logits
        results.append(Identity("unembed(resid_post) == logits", last, _error(unembed(wiring, resid), logits)))
        results.append(
            Identity("direction of the final norm == gain * input", last, _norm_error(wiring.readout[0], resid))
        )
    return results


def _residual(residual: str, at: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    pre, post, attn_add, mlp_add = (at[kind] for kind in ("resid_pre", "resid_post", "attn_add", "mlp_add"))
    if residual == "post_norm":
        yield "resid_pre + attn_add == input of the attention norm", pre + attn_add, at["sum_mid"]
        yield "resid_mid + mlp_add == input of the MLP norm", at["resid_mid"] + mlp_add, at["sum_post"]
        return
    if residual == "sequential":
        yield "resid_pre + attn_add == resid_mid", pre + attn_add, at["resid_mid"]
    yield "resid_pre + attn_add + mlp_add == resid_post", pre + attn_add + mlp_add, post


def _projections(wiring: Wiring, layer: int, at: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The last matrix of attention and of the MLP, where the site is that matrix's input."""
    for inner, outer in (("z", "attn_out"), ("mlp_act", "mlp_out")):
        tap = wiring.layer_tap(inner, layer)
        if tap.end == "in":
            values = at[inner].flatten(-2) if inner == "z" else at[inner]
            yield f"projection of {inner} == {outer}", tap.module(values), at[outer]


def _norm_error(norm: nn.Module, resid: Tensor) -> float:
    """How far the final norm's output, less what it gives for zero, points away from its gain times its input."""
    x = resid.float()
    gain, centred = norm_gain(norm, x.shape[-1], resid)
    linear = (x - x.mean(-1, keepdim=True) if centred else x) * gain
    true = norm(resid).float() - norm(torch.zeros_like(resid)).float()
    return _error(nn.functional.normalize(linear, dim=-1), nn.functional.normalize(true, dim=-1))


def _error(left: Tensor, right: Tensor) -> float:
    if left.shape != right.shape:
        return float("inf")
    difference = (left.double() - right.double()).norm(dim=-1)
    return float((difference / right.double().norm(dim=-1).clamp(min=1e-12)).max())

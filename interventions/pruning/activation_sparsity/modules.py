"""The linear maps of a model's layers, what goes into them, and the passages they are measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....lab.errors import InputError, unknown
from ....lab.models.hooked_model import HookedModel
from ....lab.models.hooks import Tap, reading
from ....lab.models.sites import Site
from ....lab.runs.first_rows import FullTokenRows
from ....lab.runs.read import read
from ....lab.streams.token_stream import TokenStream
from ....lab.text.corpus import Corpus
from ....lab.text.packing import TokenBatch

CONV1D = "Conv1D"
"""The linear module of GPT-2, which keeps its weight transposed."""


@dataclass(frozen=True, eq=False)
class LinearModule:
    """One map y = x W^T of one layer."""

    layer: int
    path: str
    """Relative to the layer: `mlp.down_proj`."""
    module: nn.Module

    @property
    def name(self) -> str:
        """`12.mlp.down_proj`."""
        return f"{self.layer}.{self.path}"

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """W in fp32."""
        weight = self.module.weight.detach().float()  # type: ignore[union-attr]
        return weight.T if type(self.module).__name__ == CONV1D else weight

    @property
    def norms(self) -> Float[Tensor, " d_in"]:
        """Length of every column of W: what an input of 1 there adds to the output."""
        return torch.linalg.vector_norm(self.weight, dim=0)

    @property
    def input(self) -> Tap:
        """Where x is read and replaced."""
        return Tap(self.module, "in")

    @property
    def output(self) -> Tap:
        """Where y is."""
        return Tap(self.module, "out")


def linear_modules(model: HookedModel, layers: Sequence[int], paths: Sequence[str] = ()) -> list[LinearModule]:
    """Every linear map inside the layers, in the order of the model.

    Args:
        paths: keep only these, relative to a layer; by default all.

    Raises:
        InputError: the model has no such layer or path, or no layers that are known.
    """
    found = []
    for layer in dict.fromkeys(layers):
        block = model.wiring.tap(model.site(f"resid_post.{layer}")).module
        inside = {path: module for path, module in block.named_modules()
                  if isinstance(module, nn.Linear) or type(module).__name__ == CONV1D}  # fmt: skip
        for path in paths:
            if path not in inside:
                raise unknown(f"linear module of layer {layer}", path, inside)
        found += [LinearModule(layer, path, one) for path, one in inside.items() if not paths or path in paths]
    if not found:
        raise InputError("there is no linear module to measure: give at least one layer")
    return found


def mlp_output(model: HookedModel, layer: int) -> LinearModule:
    """The map that reads the MLP's neurons, `mlp_act`.

    Raises:
        InputError: the model has no such site.
    """
    module = model.wiring.tap(model.site(Site("mlp_act", layer))).module
    for one in linear_modules(model, [layer]):
        if one.module is module:
            return one
    raise InputError(f"mlp_act.{layer} of {model.name} does not lead into a linear module")


def read_passages(
    model: HookedModel, corpus: Corpus, skip: int, count: int, *, progress: bool = False
) -> tuple[TokenBatch, TokenBatch]:
    """The first `skip` and the next `count` documents that fill a row, one document a row.

    Args:
        model: is not run.
        corpus: one document a row and cut off at `context`, so that a passage is of one text.

    Raises:
        InputError: the corpus packs or continues rows, or it has too few documents as long as a row.
    """
    config = corpus.config
    if config.pack or config.long != "truncate":
        raise InputError("passages are of one document each: read them with pack=False, long='truncate'")
    rows = FullTokenRows(skip + count, length=config.context, name="passages")
    read(TokenStream.reading(model, corpus), rows, description="passages", progress=progress)
    if not rows.done:
        raise InputError(
            f"{corpus.source.name} has {rows.rows} documents of at least {config.context} tokens, and {skip + count} "
            "are needed: give more text, fewer passages, or a shorter context"
        )
    return TokenBatch(*(field[:skip] for field in rows.kept)), TokenBatch(*(field[skip:] for field in rows.kept))


def inputs_of(
    model: HookedModel, modules: Sequence[LinearModule], passages: TokenBatch, rows_at_once: int = 8
) -> dict[str, Float[Tensor, "passages tokens d_in"]]:
    """The inputs of every module by its name, fp32 on the model's device."""
    parts: dict[str, list[Tensor]] = {module.name: [] for module in modules}
    for tokens in passages.tokens.split(rows_at_once):
        with reading({module.name: module.input for module in modules}) as found:
            model.run(tokens)
        for name, x in found.items():
            parts[name].append(x.float())
    return {name: torch.cat(part) for name, part in parts.items()}


def halves(passages: TokenBatch) -> int:
    """Where the prompt ends: half of a passage is read, the other half is written."""
    return passages.tokens.shape[1] // 2


def blocks(passages: TokenBatch, size: int) -> Iterator[tuple[int, TokenBatch]]:
    """Passages a few at a time, with the index of the first."""
    for begin in range(0, len(passages.tokens), size):
        yield begin, TokenBatch(*(field[begin : begin + size] for field in passages))

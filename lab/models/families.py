"""Module paths of the sites in each family of models: string tables, and nothing else that knows a family by name.

A family is recognised by its structure (the attribute paths its table names exist), never by a model's
name. To add one, add an entry to `FAMILIES`. Each site is written `end:module`, where `module` is relative
to a block (empty for the block itself) and `end` is a `Tap` end: `in`, `out` or `weights`.

How the residual stream is put together, `Family.residual`, says which identities hold:

    sequential  resid_mid = resid_pre + attn_add;  resid_post = resid_mid + mlp_add
    parallel    resid_post = resid_pre + attn_add + mlp_add;  there is no resid_mid
    post_norm   resid_mid = norm(resid_pre + attn_add);  resid_post = norm(resid_mid + mlp_add)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Family:
    """Names of the modules of one family."""

    name: str
    residual: str
    """`sequential`, `parallel` or `post_norm`."""
    roots: tuple[str, ...]
    """Paths at which the module that holds the blocks may sit: itself (""), or inside a task model."""
    blocks: str
    """The list of blocks, relative to the root."""
    sites: Mapping[str, str]
    """Kind of site -> `end:module`."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Kind of site the family does not have -> why not, and what to use."""
    needs: tuple[str, ...] = ()
    """Further modules of a block that tell the family from one whose sites have the same names."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of a block with the values they must have."""
    inputs: str = "input_ids"
    """Name of the model's input: `input_ids` or `pixel_values`."""
    causal: bool = True
    """Decoders take position ids and a cache; encoders do not."""
    tower: bool = False
    """Run the root alone: the model around it wants inputs of another modality too."""
    norm: str = ""
    """Final norm before the unembedding, relative to the root; empty when there is no linear read-out."""


_LLAMA = {
    "resid_pre": "in:",
    "pattern": "weights:self_attn",
    "z": "in:self_attn.o_proj",
    "attn_out": "out:self_attn",
    "attn_add": "out:self_attn",
    "resid_mid": "in:post_attention_layernorm",
    "mlp_in": "in:mlp",
    "mlp_act": "in:mlp.down_proj",
    "mlp_out": "out:mlp",
    "mlp_add": "out:mlp",
    "resid_post": "out:",
}
# The outputs of attention and MLP pass through norms of their own before they are added.
_GEMMA = {
    **_LLAMA,
    "attn_add": "out:post_attention_layernorm",
    "resid_mid": "in:pre_feedforward_layernorm",
    "mlp_add": "out:post_feedforward_layernorm",
}
# No norms before attention and MLP, only after.
_OLMO2 = {**_GEMMA, "resid_mid": "in:mlp"}
_NEOX = {
    "resid_pre": "in:",
    "pattern": "weights:attention",
    "z": "in:attention.dense",
    "attn_out": "out:attention",
    "attn_add": "out:post_attention_dropout",
    "mlp_in": "in:mlp",
    "mlp_act": "in:mlp.dense_4h_to_h",
    "mlp_out": "out:mlp",
    "mlp_add": "out:post_mlp_dropout",
    "resid_post": "out:",
}
_DECODER_ROOTS = ("model", "", "model.language_model", "language_model")

# The first that fits is taken: a more particular structure stands before a more general one.
FAMILIES = (
    Family("gemma", "sequential", _DECODER_ROOTS, "layers", _GEMMA, norm="norm"),
    Family(
        "llama",
        "sequential",
        _DECODER_ROOTS,
        "layers",
        _LLAMA,
        needs=("input_layernorm",),
        norm="norm",
    ),
    Family("olmo2", "sequential", _DECODER_ROOTS, "layers", _OLMO2, norm="norm"),
    Family(
        "gpt2",
        "sequential",
        ("transformer", ""),
        "h",
        {
            "resid_pre": "in:",
            "pattern": "weights:attn",
            "z": "in:attn.c_proj",
            "attn_out": "out:attn",
            "attn_add": "out:attn",
            "resid_mid": "in:ln_2",
            "mlp_in": "in:mlp",
            "mlp_act": "in:mlp.c_proj",
            "mlp_out": "out:mlp",
            "mlp_add": "out:mlp",
            "resid_post": "out:",
        },
        norm="ln_f",
    ),
    Family(
        "gpt_neox",
        "parallel",
        ("gpt_neox", ""),
        "layers",
        _NEOX,
        absent={"resid_mid": "attention and MLP both read resid_pre; use resid_pre or resid_post"},
        flags={"use_parallel_residual": True},
        norm="final_layer_norm",
    ),
    Family(
        "gpt_neox_sequential",
        "sequential",
        ("gpt_neox", ""),
        "layers",
        {**_NEOX, "resid_mid": "in:post_attention_layernorm"},
        flags={"use_parallel_residual": False},
        norm="final_layer_norm",
    ),
    Family(
        "bert",
        "post_norm",
        ("bert", "", "roberta"),
        "encoder.layer",
        {
            "resid_pre": "in:",
            "pattern": "weights:attention",
            "z": "in:attention.output.dense",
            "attn_out": "out:attention.output.dense",
            "attn_add": "out:attention.output.dropout",
            "sum_mid": "in:attention.output.LayerNorm",
            "resid_mid": "out:attention.output",
            "mlp_in": "in:intermediate.dense",
            "mlp_act": "in:output.dense",
            "mlp_out": "out:output.dense",
            "mlp_add": "out:output.dropout",
            "sum_post": "in:output.LayerNorm",
            "resid_post": "out:",
        },
        causal=False,
    ),
    Family(
        "vit",
        "sequential",
        ("vit", ""),
        "layers",
        {
            "resid_pre": "in:",
            "pattern": "weights:attention",
            "z": "in:attention.o_proj",
            "attn_out": "out:attention",
            "attn_add": "out:attention",
            "resid_mid": "in:layernorm_after",
            "mlp_in": "in:mlp",
            "mlp_act": "in:mlp.fc2",
            "mlp_out": "out:mlp",
            "mlp_add": "out:mlp",
            "resid_post": "out:",
        },
        inputs="pixel_values",
        causal=False,
    ),
    Family(
        "clip_vision",
        "sequential",
        ("vision_model", ""),
        "encoder.layers",
        {
            "resid_pre": "in:",
            "pattern": "weights:self_attn",
            "z": "in:self_attn.out_proj",
            "attn_out": "out:self_attn",
            "attn_add": "out:self_attn",
            "resid_mid": "in:layer_norm2",
            "mlp_in": "in:mlp",
            "mlp_act": "in:mlp.fc2",
            "mlp_out": "out:mlp",
            "mlp_add": "out:mlp",
            "resid_post": "out:",
        },
        inputs="pixel_values",
        causal=False,
        tower=True,
    ),
)


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None; the empty path is the module itself."""
    for name in filter(None, path.split(".")):
        child = getattr(module, name, None)
        if not isinstance(child, nn.Module):
            return None
        module = child
    return module


def detect(module: nn.Module) -> tuple[Family, str] | None:
    """The family a module belongs to by its structure, and the path of its root; None if it fits none."""
    for family in FAMILIES:
        for root in family.roots:
            base = submodule(module, root)
            blocks = None if base is None else submodule(base, family.blocks)
            if base is None or not isinstance(blocks, nn.ModuleList) or not len(blocks):
                continue
            if _fits(family, base, blocks[0]):
                return family, root
    return None


def _fits(family: Family, base: nn.Module, block: nn.Module) -> bool:
    paths = [at.partition(":")[2] for at in family.sites.values()] + list(family.needs)
    return (
        all(submodule(block, path) is not None for path in paths)
        and all(getattr(block, name, None) == value for name, value in family.flags.items())
        and (not family.norm or submodule(base, family.norm) is not None)
        and getattr(base, "main_input_name", family.inputs) == family.inputs
    )

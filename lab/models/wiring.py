"""`Wiring`: the facts about one module that a `HookedModel` needs, resolved from the family tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from ..errors import InputError, unknown
from .families import Family, detect, submodule
from .hooks import Tap
from .positions import first_position, takes_positions
from .sites import KINDS, PATH, Site


def _no_layers(kind: str, layer: int) -> Tap:
    raise InputError(f"this module has no {kind}.{layer}: it is of no known family")


@dataclass(frozen=True)
class Wiring:
    """One module's sites, sizes and way to be called."""

    module: nn.Module
    call: Callable[[Tensor, Tensor | None, Tensor | None], Any]
    """Run a forward pass on inputs, an attention mask and position ids (or None each)."""
    family: str | None = None
    residual: str = ""
    """`sequential`, `parallel`, `post_norm` (see `families`), or empty."""
    inputs: str = "input_ids"
    """`input_ids`, `pixel_values`, or `any` for a module of your own."""
    kinds: tuple[str, ...] = ()
    """The kinds of site there are at every layer."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Kinds that are missing for a reason."""
    n_layers: int = 0
    n_heads: int = 0
    d_model: int | None = None
    n_ctx: int | None = None
    vocab_size: int | None = None
    positions: bool = False
    """True if the module takes position ids."""
    first_position: int = 0
    """Position id of a row's first token."""
    image_shape: tuple[int, int, int] | None = None
    """Channels, height, width."""
    readout: tuple[nn.Module, nn.Module] | None = None
    """Final norm and head, when they lead straight from the residual stream to logits."""
    softcap: float | None = None
    """Logits pass through `softcap * tanh(logits / softcap)`."""
    layer_tap: Callable[[str, int], Tap] = field(repr=False, default=_no_layers)
    """Kind (also the private `sum_mid` and `sum_post`) and layer -> tap."""

    def tap(self, site: Site) -> Tap:
        """The module and the side at which a site is hooked.

        Raises:
            InputError: no such module; the sentence has the nearest names.
        """
        if site.kind == PATH:
            found = submodule(self.module, site.path)
            if found is None:
                raise unknown("module path", site.path, [name for name, _ in self.module.named_modules() if name])
            return Tap(found, "out", copy=True)
        return self.layer_tap(site.kind, site.layer)


def wire(module: Any) -> Wiring:
    """Wire a Hugging Face model by its structure, or any other module for `path:` sites alone."""
    match = detect(module)
    if match is None:
        return _wire_paths(module)
    family, root = match
    base = attrgetter(root)(module) if root else module
    blocks, config = attrgetter(family.blocks)(base), base.config
    heads = config.num_attention_heads

    def layer_tap(kind: str, layer: int) -> Tap:
        end, _, path = family.sites[kind].partition(":")
        return Tap(attrgetter(path)(blocks[layer]) if path else blocks[layer], end, heads if kind == "z" else 0)

    image_shape = _image_shape(config) if family.inputs == "pixel_values" else None
    head = getattr(module, "get_output_embeddings", lambda: None)() if family.norm else None
    return Wiring(
        module,
        _family_call(family, base if family.tower else module),
        positions=family.inputs == "input_ids" and takes_positions(module),
        first_position=first_position(module),
        family=family.name,
        residual=family.residual,
        inputs=family.inputs,
        kinds=tuple(kind for kind in KINDS if kind in family.sites),
        absent=family.absent,
        n_layers=len(blocks),
        n_heads=heads,
        d_model=config.hidden_size,
        n_ctx=_n_tokens(image_shape, config.patch_size) if image_shape else _context(module),
        vocab_size=None if image_shape else _rows_of_vocabulary(module),
        image_shape=image_shape,
        readout=None if head is None else (attrgetter(family.norm)(base), head),
        softcap=getattr(config, "final_logit_softcapping", None),
        layer_tap=layer_tap,
    )


def _wire_paths(module: Any) -> Wiring:
    """Wire a module of no family: its modules by path, and the limits of its inputs where they are known."""
    named = getattr(module, "main_input_name", None)
    text = named == "input_ids"
    return Wiring(
        module,
        _any_call(module, named),
        inputs="any" if named is None else named,
        n_ctx=_context(module) if text else None,
        vocab_size=_rows_of_vocabulary(module) if text else None,
        positions=text and takes_positions(module),
        first_position=first_position(module) if text else 0,
    )


CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
"""Names of the longest input in configs."""


def _context(module: Any) -> int | None:
    """The longest input in tokens; None where the config does not limit it."""
    limits = [getattr(module.config, name, None) for name in CONTEXTS] if hasattr(module, "config") else []
    limit = next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)
    return None if limit is None else limit - first_position(module)


def _rows_of_vocabulary(module: Any) -> int | None:
    """Number of tokens that have an embedding, which a config may state otherwise."""
    embedding = getattr(module, "get_input_embeddings", lambda: None)()
    if isinstance(embedding, nn.Embedding):
        return embedding.num_embeddings
    return getattr(getattr(module, "config", None), "vocab_size", None)


def _image_shape(config: Any) -> tuple[int, int, int]:
    size = config.image_size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return config.num_channels, height, width


def _n_tokens(image_shape: tuple[int, int, int], patch: int | tuple[int, int]) -> int:
    """Tokens of one image: its patches and one class token."""
    patch_height, patch_width = patch if isinstance(patch, tuple | list) else (patch, patch)
    return (image_shape[1] // patch_height) * (image_shape[2] // patch_width) + 1


def _family_call(family: Family, module: nn.Module) -> Callable[[Tensor, Tensor | None, Tensor | None], Any]:
    def call(inputs: Tensor, mask: Tensor | None, positions: Tensor | None) -> Any:
        options: dict[str, Any] = {"use_cache": False} if family.causal else {}
        return module(**{family.inputs: inputs}, **options, **_given(attention_mask=mask, position_ids=positions))

    return call


def _any_call(module: nn.Module, named: str | None) -> Callable[[Tensor, Tensor | None, Tensor | None], Any]:
    def call(inputs: Tensor, mask: Tensor | None, positions: Tensor | None) -> Any:
        options = _given(attention_mask=mask, position_ids=positions)
        return module(inputs, **options) if named is None else module(**{named: inputs}, **options)

    return call


def _given(**options: Tensor | None) -> dict[str, Tensor]:
    return {name: value for name, value in options.items() if value is not None}

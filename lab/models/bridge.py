"""TransformerLens models in place of Hugging Face ones.

A `TransformerBridge` or `HookedTransformer` puts a `HookPoint` module at every place it names. Those are
modules like any other, so a table from kinds of site to hook names is all that `HookedModel` needs: reading,
early stop and edits work the same. Nothing here imports transformer_lens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import unknown
from .hooked_model import HookedModel
from .hooks import Tap
from .sites import KINDS, LENS_NAMES, Site
from .wiring import Wiring

# Where HookedTransformer has no hook for what a module returns, the module itself is read.
_MODULES = {"attn_out": "attn", "mlp_out": "mlp"}


def is_lens(module: nn.Module) -> bool:
    """True if a module has TransformerLens' hooks: named hook points and a config of its own."""
    return all(hasattr(module, name) for name in ("run_with_cache", "hook_dict", "cfg"))


def hooked(module: Any, *, tokenizer: Any = None, checks: bool = True) -> HookedModel:
    """A `HookedModel` over a TransformerLens model, which is used as it is, weight processing and all.

    Raises:
        InputError: the identities of a pre-norm decoder do not hold for it (BERT-like models: pass the
            Hugging Face model itself).
    """
    name = getattr(module.cfg, "model_name", None) or type(module).__name__
    return HookedModel(
        module,
        tokenizer=tokenizer or getattr(module, "tokenizer", None),
        name=name,
        wiring=wire_lens(module),
        checks=checks,
    )


def wire_lens(module: Any) -> Wiring:
    """Wire a TransformerLens model by the names of its hook points."""
    hooks, config = dict(module.hook_dict), module.cfg
    blocks = list(module.blocks)
    kinds = tuple(kind for kind in KINDS if _hook(hooks, blocks, kind, 0) is not None)
    absent = {kind: "this TransformerLens model has no such hook" for kind in KINDS if kind not in kinds}
    parallel = "resid_mid" not in kinds
    if parallel:
        absent["resid_mid"] = "attention and MLP both read resid_pre; use resid_pre or resid_post"

    def layer_tap(kind: str, layer: int) -> Tap:
        found = _hook(hooks, blocks, kind, layer)
        if found is None:
            lens = Site(kind, layer).to_transformer_lens()
            raise unknown("hook", lens, hooks)
        return Tap(found, "out", config.n_heads if kind == "z" else 0)

    def call(inputs: Tensor, mask: Tensor | None, positions: Tensor | None) -> Any:
        return module(inputs, return_type="logits", **({} if mask is None else {"attention_mask": mask}))

    norm, head = (getattr(module, name, None) for name in ("ln_final", "unembed"))
    return Wiring(
        module,
        call,
        family="transformer_lens",
        residual="parallel" if parallel else "sequential",
        kinds=kinds,
        absent=absent,
        n_layers=len(blocks),
        n_heads=config.n_heads,
        d_model=config.d_model,
        n_ctx=config.n_ctx,
        vocab_size=config.d_vocab,
        readout=None if norm is None or head is None else (norm, head),
        softcap=_softcap(config),
        layer_tap=layer_tap,
    )


def _hook(hooks: dict[str, nn.Module], blocks: list[nn.Module], kind: str, layer: int) -> nn.Module | None:
    for name in LENS_NAMES[kind]:
        if (found := hooks.get(f"blocks.{layer}.{name}")) is not None:
            return found
    return getattr(blocks[layer], _MODULES[kind], None) if kind in _MODULES else None


def _softcap(config: Any) -> float | None:
    cap = getattr(config, "output_logits_soft_cap", None)
    return cap if cap and cap > 0 else None

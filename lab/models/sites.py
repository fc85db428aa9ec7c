"""Places in a model, and their TransformerLens names.

A site is a kind and a layer, written `resid_post.12`, or the output of any module, written
`path:model.layers.3.mlp.gate_proj`. Of a pair of models (see `pairs`) it is written `a:resid_post.12`. Two pairs of
kinds are easy to confuse, so both have names of their own:

    attn_out, mlp_out    what the attention or MLP module returns
    attn_add, mlp_add    what is really added to the residual stream

The two of a row are the same tensor in most models and differ where a norm sits between (Gemma-2, Gemma-3, OLMo-2).
TransformerLens calls the first `blocks.3.mlp.hook_out` and the second `blocks.3.hook_mlp_out`.

`mlp_in` is the tensor that the MLP module reads: resid_mid behind the norm, where there is one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import total_ordering

from ..errors import InputError, unknown

# In the order in which one block computes them.
KINDS = (
    "resid_pre",
    "pattern",
    "z",
    "attn_out",
    "attn_add",
    "resid_mid",
    "mlp_in",
    "mlp_act",
    "mlp_out",
    "mlp_add",
    "resid_post",
)
PATH = "path"

# The name of a hook inside its block, for each kind; the first is the one we write.
LENS_NAMES = {
    "resid_pre": ("hook_resid_pre", "hook_in"),
    "pattern": ("attn.hook_pattern",),
    "z": ("attn.hook_z", "attn.o.hook_in"),
    "attn_out": ("attn.hook_out",),
    "attn_add": ("hook_attn_out",),
    "resid_mid": ("hook_resid_mid",),
    "mlp_in": ("mlp.hook_in",),
    "mlp_act": ("mlp.hook_post", "mlp.out.hook_in"),
    "mlp_out": ("mlp.hook_out",),
    "mlp_add": ("hook_mlp_out",),
    "resid_post": ("hook_resid_post", "hook_out"),
}
_KIND_OF_HOOK = {hook: kind for kind, hooks in LENS_NAMES.items() for hook in hooks}
_LENS = re.compile(r"blocks\.(\d+)\.(.+)")
_OF_PAIR = re.compile(r"([ab]):(.+)")
_OURS = re.compile(r"(\w+)\.(\d+)")


@total_ordering
@dataclass(frozen=True)
class Site:
    """One place in a model. Sites sort in the order of a forward pass: by layer, then within the block."""

    kind: str
    """One of `KINDS`, or `path`."""
    layer: int = -1
    """Block number from 0; -1 for `path`."""
    path: str = ""
    """Dotted module name for `path`, else empty."""
    model: str = ""
    """Model of a pair, `a` or `b`; empty for a single model."""

    def __post_init__(self) -> None:
        if self.kind == PATH:
            if not self.path or self.layer != -1:
                raise InputError(f"a path site names a module and no layer (path:model.norm), not {self.path!r}")
        elif self.kind not in KINDS:
            raise unknown("kind of site", self.kind, (*KINDS, PATH))
        elif self.layer < 0 or self.path:
            raise InputError(f"site {self.kind!r} needs a layer from 0 and no path, as in {self.kind}.0")

    def __str__(self) -> str:
        place = f"{PATH}:{self.path}" if self.kind == PATH else f"{self.kind}.{self.layer}"
        return f"{self.model}:{place}" if self.model else place

    def __lt__(self, other: Site) -> bool:
        return self._rank() < other._rank()

    def _rank(self) -> tuple[str, int, int, str]:
        # Paths go last: where in the forward pass they run is only known to the module.
        if self.kind == PATH:
            return (self.model, 1 << 30, 0, self.path)
        return (self.model, self.layer, KINDS.index(self.kind), "")

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read `resid_post.12`, `path:model.norm` or a TransformerLens hook name.

        Raises:
            InputError: the text is none of these; names the nearest that is.
        """
        if isinstance(text, Site):
            return text
        if not isinstance(text, str):
            raise InputError(f"a site is text such as 'resid_post.12', not {text!r}")
        text = text.strip()
        if named := _OF_PAIR.fullmatch(text):
            return replace(cls.parse(named[2]), model=named[1])
        if text.startswith(f"{PATH}:"):
            return cls(PATH, path=text.removeprefix(f"{PATH}:"))
        if lens := _LENS.fullmatch(text):
            layer, hook = int(lens[1]), lens[2]
            if hook not in _KIND_OF_HOOK:
                raise unknown("hook", text, [f"blocks.{layer}.{known}" for known in _KIND_OF_HOOK])
            return cls(_KIND_OF_HOOK[hook], layer)
        ours = _OURS.fullmatch(text)
        if ours and ours[1] in KINDS:
            return cls(ours[1], int(ours[2]))
        if not ours and text.count(".") > 1:
            raise InputError(f"unknown site {text!r}: a module of the model is 'path:{text}', other sites are written"
                             " as 'resid_post.12' or 'blocks.12.hook_resid_post'")  # fmt: skip
        layer = ours[2] if ours else (re.search(r"\d+", text) or ["0"])[0]
        raise unknown("site", text, [f"{kind}.{layer}" for kind in KINDS])

    def to_transformer_lens(self) -> str:
        """The TransformerLens hook name of this site: `blocks.12.hook_resid_post`.

        Raises:
            InputError: a path site has no such name.
        """
        if self.kind == PATH:
            raise InputError(f"{self} has no TransformerLens name: only {', '.join(KINDS)} have one")
        return f"blocks.{self.layer}.{LENS_NAMES[self.kind][0]}"

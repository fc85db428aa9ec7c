"""`DictionaryOptions`: an architecture and its own config fields, on the command line and in Python alike.

    --architecture jumprelu --dictionary.penalty tanh        DictionaryOptions("jumprelu", penalty="tanh")

The fields are read from the configs of `saes.registry.trainable()`, docstrings included, so that a new architecture
brings its own options along. One that is not set is left to the architecture.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import torch
import tyro

from ...saes.registry import build_trainable, trainable
from ..errors import InputError, nearest

NO_OPTIONS = ("d_in", "d_out", "skip", "sources", "centre_input")
"""Config fields that follow from the sites, or that only dictionaries of other libraries set."""


@dataclass(frozen=True)
class _Common:
    """The dictionary to train on every site; an option named after an architecture is for that one only.

    Raises:
        InputError: an unknown architecture, a field that it has not, or a value that its config refuses.
    """

    architecture: Annotated[str, tyro.conf.arg(aliases=("--architecture",), help=", ".join(trainable()))] = "topk"
    """A name in `saes.registry.trainable`."""
    n_latents: Annotated[int, tyro.conf.arg(aliases=("--n-latents",))] = 9216
    """Number of latents."""
    k: Annotated[int, tyro.conf.arg(aliases=("--k",))] = 32
    """Active latents a row; on average, where rows differ."""

    def __post_init__(self) -> None:
        self._check_fields()
        with torch.device("meta"):
            build_trainable(d_in=1, **self.given())

    def _check_fields(self) -> None:
        allowed = own_fields()
        for name in self.given():
            if self.architecture in trainable() and self.architecture not in allowed.get(name, trainable()):
                having = [architecture for architecture, configs in allowed.items() if self.architecture in configs]
                close = nearest(name, having, 1) or having
                hint = f"it has {', '.join(close)}" if close else "it has no options of its own"
                raise InputError(
                    f"architecture {self.architecture!r} has no option {name!r} (that is for"
                    f" {', '.join(allowed[name])}): {hint}"
                )

    def given(self) -> dict[str, Any]:
        """The options that are set: architecture, n_latents, k and fields of the architecture's own config."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def own_fields() -> dict[str, dict[str, type]]:
    """Config fields beyond n_latents and k: by name, the config that declares it for each architecture that has it."""
    known = {*NO_OPTIONS, *(option.name for option in fields(_Common))}
    declaring: dict[str, dict[str, type]] = {}
    for architecture, kind in trainable().items():
        config = kind.config_type
        for name in (option.name for option in fields(config) if option.name not in known):
            declared = next(base for base in config.__mro__ if name in vars(base).get("__annotations__", {}))
            declaring.setdefault(name, {})[architecture] = declared
    return declaring


def _option(name: str, configs: dict[str, type]) -> tuple[str, Any, Any]:
    """One field for `make_dataclass`: every type it has in some config, or None; help and default as they are there."""
    kind = reduce(or_, [get_type_hints(config)[name] for config in configs.values()], None | type(None))
    described = "; ".join(dict.fromkeys(_docstring(config, name) for config in configs.values()))
    defaults = {declared.default for config in configs.values() for declared in fields(config)
                if declared.name == name and declared.default not in (MISSING, None)}  # fmt: skip
    hint = f"(default: {', '.join(map(str, sorted(defaults, key=str)))})" if defaults else ""
    settings = tyro.conf.arg(help=f"{', '.join(configs)}: {described}", help_behavior_hint=hint)
    return name, Annotated[kind, settings], field(default=None)


def _docstring(config: type, name: str) -> str:
    """The text under a field in the source of its class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    lines = body.body if isinstance(body, ast.ClassDef) else []
    for line, after in pairwise(lines):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id == name:
            text = after.value if isinstance(after, ast.Expr) else None
            return " ".join(str(text.value).split()) if isinstance(text, ast.Constant) else ""
    return ""


if TYPE_CHECKING:

    class DictionaryOptions(_Common):
        """An architecture, its size, and fields of its own config."""

        def __init__(self, architecture: str = "topk", n_latents: int = 9216, k: int = 32, **own: Any) -> None: ...

else:
    DictionaryOptions = make_dataclass(
        "DictionaryOptions",
        [_option(name, configs) for name, configs in own_fields().items()],
        bases=(_Common,),
        namespace={"__doc__": _Common.__doc__, "__module__": __name__},
        frozen=True,
    )

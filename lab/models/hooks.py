"""Reading and replacing tensors at one end of a module, with plain PyTorch hooks.

A `Tap` is the mechanics of a site: which module, and whether the tensor goes in or comes out. Hooks act
only in the thread that set them, so a stream may capture in its own thread while another evaluates an edit
on the same model. They are removed when their context ends, whatever ended it.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError
from .sites import Site

Hook = Callable[..., Tensor]
"""Takes the tensor at a site and returns what stands there instead, of the same shape.

With a second argument it is also given the columns of the sequence that the tensor holds [tokens], padding counted:
from 0 in a whole forward pass, and the one new column in a step of `generate`, which keeps earlier ones in its cache.
"""
Key = TypeVar("Key")


class Tap(NamedTuple):
    """One end of one module."""

    module: nn.Module
    end: str
    """`in`: the first tensor it is called with; `out`, `weights`: the first and the second it returns."""
    heads: int = 0
    """When positive, `[..., heads * d_head]` is shown as `[..., heads, d_head]`."""
    copy: bool = False
    """Readers get a copy: code we know nothing about may change the tensor in place afterwards."""

    def show(self, tensor: Tensor) -> Tensor:
        """The tensor as a reader of the site sees it."""
        if not self.heads or (tensor.dim() == 4 and tensor.shape[-2] == self.heads):
            return tensor
        return tensor.unflatten(-1, (self.heads, -1))

    def attach(self, act: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call `act` with the tensor in every forward pass of this thread; what it returns replaces it."""
        owner = threading.get_ident()

        def replaced(tensor: Any) -> Tensor | None:
            if threading.get_ident() != owner:
                return None
            if not isinstance(tensor, Tensor):
                kind = type(self.module).__name__
                raise InputError(f"{kind} has {type(tensor).__name__} at its {self.end!r} end, not a tensor")
            new = act(self.show(tensor))
            return None if new is None else new.reshape(tensor.shape)

        if self.end == "in":
            return self.module.register_forward_pre_hook(_on_input(replaced), with_kwargs=True)
        return self.module.register_forward_hook(_on_output(replaced, int(self.end == "weights")))


@contextlib.contextmanager
def eager_attention(module: nn.Module) -> Iterator[None]:
    """Make every part of a model compute attention patterns, then put back what each part had."""
    candidates: list[Any] = [getattr(part, "config", None) for part in module.modules()]
    configs = {id(config): config for config in candidates if hasattr(config, "_attn_implementation")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config in configs.values():
            config._attn_implementation = "eager"
        yield
    finally:
        for config, attention in before:
            config._attn_implementation = attention


class _Reached(Exception):
    """Everything asked for has been read: the rest of the forward pass is not needed."""


@contextlib.contextmanager
def reading(taps: Mapping[Key, Tap], stop: bool = True) -> Iterator[dict[Key, Tensor]]:
    """Fill the yielded dict during a forward pass, which ends as soon as it is full (unless `stop=False`).

    A module that runs several times is read the first time.
    """
    captured: dict[Key, Tensor] = {}
    at: dict[Tap, list[Key]] = {}
    for key, tap in taps.items():
        at.setdefault(tap, []).append(key)

    def reader(tap: Tap, keys: list[Key]) -> Callable[[Tensor], None]:
        def read(tensor: Tensor) -> None:
            if keys[0] not in captured:
                seen = tensor.detach().clone() if tap.copy else tensor.detach()
                captured.update((key, seen) for key in keys)
            if stop and len(captured) == len(taps):
                raise _Reached

        return read

    with contextlib.ExitStack() as handles:
        for tap, keys in at.items():
            handles.callback(tap.attach(reader(tap, keys)).remove)
        with contextlib.suppress(_Reached):
            yield captured


class Edits(threading.local):
    """The edits in force on one model in one thread; contexts nest."""

    def __init__(self, module: nn.Module, tap_of: Callable[[Site], Tap], rejoin: bool) -> None:
        self._module, self._tap_of, self._rejoin = module, tap_of, rejoin
        self._cached = 0  # columns of the sequence that lie in the cache of the pass that runs
        self._steps: list[_Step] = []
        self._handles: list[RemovableHandle] = []

    @contextlib.contextmanager
    def adding(self, edits: Mapping[Site, Hook]) -> Iterator[None]:
        """Put edits in force for the body of a `with`, after those in force already."""
        outer = self._steps
        try:
            self._set([*outer, *(_Step(site, edit) for site, edit in edits.items())])
            yield
        finally:
            self._set(outer)

    @contextlib.contextmanager
    def all_running(self) -> Iterator[None]:
        """Raise InputError if a whole forward pass in the body leaves some edit uncalled."""
        for step in self._steps:
            step.ran = False
        yield
        if idle := [str(step.site) for step in self._steps if not step.ran]:
            raise InputError(f"the edit at {', '.join(idle)} did nothing: that module takes no part in a forward pass")

    def _set(self, steps: list[_Step]) -> None:
        for handle in self._handles:
            handle.remove()
        self._steps = steps
        self._cached = 0
        self._handles = [] if not any(step.takes_columns for step in steps) else [self._counting()]
        self._handles += [tap.attach(_compose(chain)) for tap, chain in self._chains().items()]

    def _counting(self) -> RemovableHandle:
        """Note at the start of every pass of this thread how many columns lie in its cache."""
        owner = threading.get_ident()

        def count(module: nn.Module, args: tuple, kwargs: dict) -> None:
            if threading.get_ident() == owner:
                length = getattr(kwargs.get("past_key_values"), "get_seq_length", None)
                self._cached = 0 if length is None else int(length())

        return self._module.register_forward_pre_hook(count, with_kwargs=True)

    def _columns(self, tensor: Tensor) -> Tensor:
        """Columns of the sequence that a tensor [batch, tokens, ...] holds."""
        return torch.arange(self._cached, self._cached + tensor.shape[1], device=tensor.device)

    def _chains(self) -> dict[Tap, list[Callable[[Tensor], Tensor]]]:
        """Functions to apply at each tap, in order, so that each edit sees the values that earlier edits wrote.

        The norm before an MLP reads resid_mid, but the skip connection bypasses that norm. With `rejoin`,
        an edit of resid_mid therefore also replaces the block's output by the edited resid_mid plus mlp_add.
        """
        chains: dict[Tap, list[Callable[[Tensor], Tensor]]] = {}

        def at(kind: str, layer: int) -> list[Callable[[Tensor], Tensor]]:
            return chains.setdefault(self._tap_of(Site(kind, layer)), [])

        mids = {step.site.layer for step in self._steps if step.site.kind == "resid_mid" and self._rejoin}
        skips = {layer: _SkipConnection() for layer in mids}
        for layer, skip in skips.items():
            at("resid_mid", layer).append(skip.before)
            at("resid_post", layer).append(skip.join)
        for step in self._steps:
            chains.setdefault(self._tap_of(step.site), []).append(step.bound(self._columns))
        for layer, skip in skips.items():
            at("resid_mid", layer).append(skip.after)
            at("mlp_add", layer).append(skip.added)
        return chains


class _Step:
    """One edit at one site, with its result checked."""

    def __init__(self, site: Site, edit: Hook) -> None:
        self.site, self.edit, self.ran = site, edit, False
        self.takes_columns = _required(edit) == 2

    def bound(self, columns: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The edit as a function of the tensor alone."""
        return lambda tensor: self(tensor, columns)

    def __call__(self, tensor: Tensor, columns: Callable[[Tensor], Tensor]) -> Tensor:
        self.ran = True
        edit: Any = self.edit
        new = edit(tensor, columns(tensor)) if self.takes_columns else edit(tensor)
        if not isinstance(new, Tensor) or new.shape != tensor.shape:
            got = f"shape {list(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
            raise InputError(f"the edit at {self.site} must return a tensor of shape {list(tensor.shape)}, not {got}")
        return new if new is tensor else new.to(device=tensor.device, dtype=tensor.dtype)


def _required(edit: Callable[..., Any]) -> int:
    """Positional arguments that a function must be given; 1 where it does not say."""
    try:
        given = inspect.signature(edit).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is inspect.Parameter.empty for one in given)


class _SkipConnection:
    """Values that an edit of resid_mid keeps until its block ends."""

    def __init__(self) -> None:
        self._before = self._after = self._added = torch.empty(0)

    def before(self, mid: Tensor) -> Tensor:
        self._before = mid
        return mid

    def after(self, mid: Tensor) -> Tensor:
        self._after = mid
        return mid

    def added(self, mlp_add: Tensor) -> Tensor:
        self._added = mlp_add
        return mlp_add

    def join(self, resid_post: Tensor) -> Tensor:
        # The sum the block itself computes, so rows left alone come out bit for bit the same.
        same = self._after is self._before
        joined = resid_post if same else self._after + self._added
        self._before = self._after = self._added = torch.empty(0)
        return joined


def _compose(chain: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    def run(tensor: Tensor) -> Tensor:
        for step in chain:
            tensor = step(tensor)
        return tensor

    return run


def _on_input(replaced: Callable[[Any], Tensor | None]) -> Callable:
    """A forward pre-hook on the first tensor of a call, positional or by keyword."""

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if args and isinstance(args[0], Tensor):
            new = replaced(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        key = next((k for k, v in kwargs.items() if isinstance(v, Tensor)), None)
        key = "hidden_states" if "hidden_states" in kwargs else key
        new = replaced(kwargs.get(key))
        return None if new is None else (args, {**kwargs, key: new})

    return hook


def _on_output(replaced: Callable[[Any], Tensor | None], index: int) -> Callable:
    """A forward hook on a returned tensor: alone, at `index` of a tuple, or first in a model output."""

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        if isinstance(output, tuple | list) and len(output) > index:
            new = replaced(output[index])
            return None if new is None else type(output)([*output[:index], new, *output[index + 1 :]])
        if isinstance(output, dict) and output:
            key = next(iter(output))
            new = replaced(output[key])
            return None if new is None else type(output)(**{**output, key: new})
        return replaced(output if index == 0 else None)

    return hook

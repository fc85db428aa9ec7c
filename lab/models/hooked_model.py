"""`HookedModel`: named sites over an unmodified module."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import InputError, unknown
from ..markup import facts_table
from . import readout
from .fingerprint import parameter_hash
from .hooks import Edits, Hook, eager_attention, reading
from .identities import check_finite, check_identities
from .inputs import check_inputs, tiny_inputs, valid_padding
from .positions import Positions, fit_positions, is_by_token, output_of, part_to_check
from .sites import PATH, Site
from .split_head import SplitHead, split_head
from .wiring import Wiring, wire

log = logging.getLogger(__name__)


class Activations(dict[Site, Tensor]):
    """Captured tensors by site; also answers to a site's text, in our names or TransformerLens's."""

    def __missing__(self, key: Site | str) -> Tensor:
        site = Site.parse(key)
        if site not in self.keys():
            raise unknown("captured site", str(site), map(str, self))
        return self[site]

    def __repr__(self) -> str:
        return "Activations(" + ", ".join(f"{site}: {list(tensor.shape)}" for site, tensor in self.items()) + ")"


class HookedModel:
    """Read and edit the activations of a module by site.

    The module itself is not changed: `module.generate`, `module.save_pretrained` and training keep working,
    and edits in force act on direct calls of `module` too. Hooks act in the thread that set them. At load the
    residual identities of the family are checked on one tiny forward pass (`checks=False` skips it).

    Args:
        module: a Hugging Face model, or any module for `path:` sites alone. Put into eval mode.
        wiring: how the module is named, when that is not to be found out from its structure.

    Raises:
        InputError: the module has the structure of a family but does not compute what the family does.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        tokenizer: Any = None,
        name: str | None = None,
        revision: str | None = None,
        wiring: Wiring | None = None,
        checks: bool = True,
    ) -> None:
        self.module = module.eval()
        self.tokenizer = tokenizer
        self.name = name or getattr(getattr(module, "config", 0), "name_or_path", "") or type(module).__name__
        self.revision = revision
        self.forwards = 0
        """Forward passes run so far, early-stopped ones included."""
        self.wiring = wiring or wire(module)
        self._edits = Edits(self.module, self.wiring.tap, rejoin=self.wiring.residual == "sequential")
        self._widths: dict[Site, int] = {}
        self._running = threading.RLock()
        self.positions = Positions(self.wiring.first_position if self.wiring.positions else None)
        """How positions of padded batches are counted."""
        self._head = self.positions
        """The same of logits, if a head takes them from one cell of a row."""
        if checks and self.wiring.inputs != "any":
            self._check()
            self.forwards = 0

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters(), torch.empty(0)).device

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def family(self) -> str | None:
        """Name of the family, or None for a module with `path:` sites alone."""
        return self.wiring.family

    @property
    def n_layers(self) -> int:
        return self.wiring.n_layers

    @property
    def n_heads(self) -> int:
        return self.wiring.n_heads

    @property
    def d_model(self) -> int | None:
        return self.wiring.d_model

    @property
    def n_ctx(self) -> int | None:
        """Longest input in tokens (for images: the tokens of one image)."""
        return self.wiring.n_ctx

    @property
    def vocab_size(self) -> int | None:
        return self.wiring.vocab_size

    def sites(self) -> list[str]:
        """Every site by its text, in the order of a forward pass; modules as paths if there is no family."""
        if self.family is None:
            return [f"{PATH}:{name}" for name, _ in self.module.named_modules() if name]
        return [f"{kind}.{layer}" for layer in range(self.n_layers) for kind in self.wiring.kinds]

    def site(self, text: str | Site) -> Site:
        """Parse a site and check that this model has it.

        Raises:
            InputError: an unknown name, layer or module (says the nearest), or a kind the family has not.
        """
        site = Site.parse(text)
        if site.model:
            raise InputError(f"{site} is a site of a pair of models and {self.name} is one: use {str(site)[2:]}")
        if site.kind == PATH:
            self.wiring.tap(site)
        elif self.family is None:
            raise InputError(f"{self.name} has no {site.kind}: name a module instead, as in {self.sites()[0]}")
        elif site.kind in self.wiring.absent:
            raise InputError(f"{self.family} models have no {site.kind}: {self.wiring.absent[site.kind]}")
        elif site.kind not in self.wiring.kinds:
            raise unknown(f"kind of site for {self.family} models", site.kind, self.wiring.kinds)
        elif site.layer >= self.n_layers:
            last = self.n_layers - 1
            raise InputError(f"{site} is outside {self.name} (layers 0 to {last}): did you mean {site.kind}.{last}?")
        return site

    def width(self, site: str | Site) -> int:
        """Size of the site's last dimension, heads flattened (z: heads * d_head).

        Raises:
            InputError: the size is not fixed (pattern), or not known before a first `capture` (own modules).
        """
        site = self.site(site)
        if site.kind == "pattern":
            raise InputError("pattern has no fixed width: its last dimension is the number of tokens")
        if site not in self._widths and self.wiring.inputs == "any":
            raise InputError(f"the width of {site} is not known before a first capture of it")
        if site not in self._widths:
            self.capture(tiny_inputs(self.wiring), [site])
        return self._widths[site]

    def capture(
        self,
        inputs: Int[Tensor, "batch tokens"] | Float[Tensor, "batch channels height width"],
        sites: Iterable[str | Site],
        *,
        attention_mask: Int[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"] | None = None,
    ) -> Activations:
        """Run the model up to the last of `sites` and return what was there.

        Tensors are detached, of shape [batch, tokens, width]; z is [batch, tokens, heads, d_head], pattern is
        [batch, heads, query, key]. Sites that are the same place share memory: do not write into them.
        Asking for a pattern computes attention eagerly in this call, for all its sites. Rows of padding hold
        whatever the model computes there.

        Raises:
            InputError: a site the model has not, a module that takes no part, or inputs of the wrong kind.
        """
        if isinstance(sites, str | Site):
            sites = [sites]
        wanted = [self.site(site) for site in sites]
        with reading({site: self.wiring.tap(site) for site in wanted}) as found:
            if wanted:
                self.run(inputs, attention_mask, eager=any(site.kind == "pattern" for site in wanted))
        if missing := [str(site) for site in wanted if site not in found]:
            raise InputError(f"nothing to capture at {', '.join(missing)}: that module takes no part in a forward pass")
        for site, tensor in found.items():
            self._widths[site] = tensor.shape[-1] * (tensor.shape[-2] if site.kind == "z" else 1)
        return Activations((site, found[site]) for site in wanted)

    def logits(
        self,
        inputs: Int[Tensor, "batch tokens"] | Float[Tensor, "batch channels height width"],
        *,
        attention_mask: Int[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"] | None = None,
        grad: bool = False,
    ) -> Float[Tensor, "batch tokens vocab"]:
        """A whole forward pass, with the edits in force; classifiers return [batch, classes].

        With `grad`, gradients reach parameters that ask for them and tensors that edits bring in.

        Raises:
            InputError: the model has no head, or an edit in force names a module that takes no part.
        """
        if attention_mask is not None:
            self._head.check(attention_mask, self.name)
        with self._edits.all_running():
            output = self.run(inputs, attention_mask, grad=grad)
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if logits is None:
            raise InputError(f"{self.name} ({type(self.module).__name__}) has no head that gives logits")
        return logits

    def before_head(
        self,
        inputs: Int[Tensor, "batch tokens"],
        *,
        attention_mask: Int[Tensor, "batch tokens"] | Bool[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Run a forward pass with the edits in force up to the head, and return what `head` makes logits of.

        Logits of many positions can then be made a few at a time. InputError where `head` is None.
        """
        if self.head is None:
            kind = type(self.module).__name__
            raise InputError(f"the head of {self.name} ({kind}) does not run apart from its base: use `logits`")
        if attention_mask is not None:
            self._head.check(attention_mask, self.name)
        with self._edits.all_running(), reading({"rows": self.head.end}) as found:
            self.run(inputs, attention_mask)
        return found["rows"]

    @cached_property
    def head(self) -> SplitHead | None:
        """From rows [n, width] of `before_head` to logits [n, vocab]; None where the module has no such part.

        Checked on one tiny forward pass: both parts together give what `logits` gives.
        """
        head, inputs = split_head(self.wiring), tiny_inputs(self.wiring).to(self.device)
        if head is None:
            return None
        forwards = self.forwards
        try:
            with reading({"rows": head.end}) as found:
                self.run(inputs)
            logits = getattr(self.run(inputs), "logits", None)
            made = head(found["rows"].flatten(0, 1))
            same = logits is not None and torch.allclose(made, logits.flatten(0, 1), rtol=1e-3, atol=1e-3)
        except Exception as error:  # the head of some module may want more than the rows
            log.info("%s: the head does not run alone (%s)", self.name, error)
            same = False
        self.forwards = forwards
        return head if same else None

    @contextlib.contextmanager
    def editing(
        self, edits: Mapping[Site, Hook] | Mapping[str, Hook] | Mapping[str | Site, Hook]
    ) -> Iterator[HookedModel]:
        """Replace tensors at sites in `logits`, `capture` and calls of `module`, for the body of a `with`.

        Each function gets the tensor `capture` would give and returns its replacement, of the same shape; it
        must not change its argument in place. Contexts nest: an inner edit sees what outer ones wrote. Edits
        end with the context, whatever ends it, and act in this thread only.

        `module.generate` keeps earlier tokens in a cache and runs one new token a step, so an edit that indexes
        positions would miss them. An edit with a second argument is also given the columns of the sequence that
        the tensor holds [tokens], from 0 and padding counted.

        Raises:
            InputError: a site the model has not, or one that cannot be written.
        """
        checked = {self._writable(site): edit for site, edit in edits.items()}
        with self._edits.adding(checked):
            yield self

    def unembed(self, resid: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of residual vectors: the final norm, then the head. InputError without a linear head."""
        return readout.unembed(self.wiring, resid)

    def logit_directions(self, W_dec: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """Logits that each direction adds, up to the final norm's scale: `(W_dec * gain) @ W_U.T`.

        The final norm's gain is folded in, as is its centring (LayerNorm). The head's bias and a softcap are
        left out. Makes n * vocab numbers: pass a few thousand directions at a time. InputError without a
        linear head.
        """
        return readout.logit_directions(self.wiring, W_dec)

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that identify this model; `parameters` is the same for fp32 and bf16."""
        import transformers

        return {
            "name": self.name,
            "revision": self.revision,
            "family": self.family,
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "transformers": transformers.__version__,
            "parameters": parameter_hash(self.module),
        }

    def run(self, inputs: Tensor, mask: Tensor | None = None, *, grad: bool = False, eager: bool = False) -> Any:
        """One forward pass, counted in `forwards`; returns what the module returns."""
        check_inputs(self.wiring, inputs, mask)
        if mask is not None:
            self.positions.check(mask, self.name)
            inputs = valid_padding(self.wiring, inputs, mask)
        dtype = self.dtype if self.wiring.inputs == "pixel_values" else None
        if self.wiring.inputs == "input_ids":  # embeddings take two kinds of whole numbers, XLNet no boolean mask
            dtype, mask = torch.int64, None if mask is None else mask.long()
        inputs, mask = inputs.to(self.device, dtype), None if mask is None else mask.to(self.device)
        attention = eager_attention(self.module) if eager else contextlib.nullcontext()
        # no_grad rather than inference_mode: captured tensors go straight into training steps.
        with self._running, attention, torch.set_grad_enabled(grad):
            self.forwards += 1
            return self.wiring.call(inputs, mask, None if mask is None else self.positions.ids(mask))

    def _check(self) -> None:
        """Compare the module with its family on one tiny forward pass, and a padded row with the row alone."""
        if self.family is not None:
            check_identities(self)
        if self.wiring.inputs != "input_ids":
            return
        try:
            self.positions, self._head = self._fitted()
        except InputError:
            raise
        except Exception as error:  # a module of no family may want inputs beside token ids, and has sites before them
            if self.family is not None:
                raise
            log.warning("%s does not run on token ids alone (%s): padding is refused", self.name, error)
            self.positions = self._head = self.positions._replace(left=False, right=False)

    def _fitted(self) -> tuple[Positions, Positions]:
        """The rules for positions of activations, where a vector for each token leaves the module, and of logits."""
        part = part_to_check(self.module)
        wiring, inputs = self.wiring if part is self.module else wire(part), tiny_inputs(self.wiring).to(self.device)
        with torch.no_grad():
            output = wiring.call(inputs, None, None)
            if not bool(output_of(output).isfinite().all()):
                check_finite(self)
            base = getattr(part, "base_model", part)
            if is_by_token(output, inputs) or base is part:
                rule = fit_positions(wiring, inputs, output_of(output))
                return rule, rule
            head = self.positions
            if getattr(output, "logits", None) is not None:
                head = fit_positions(wiring, inputs, output.logits)
            wiring = wire(base)
            return fit_positions(wiring, inputs, output_of(wiring.call(inputs, None, None))), head

    def _writable(self, site: str | Site) -> Site:
        site = self.site(site)
        if site.kind == "pattern":
            raise InputError(
                f"{site} cannot be edited: attention keeps no pattern to write; edit z.{site.layer} instead"
            )
        return site

    def __repr__(self) -> str:
        return f"HookedModel({self.name!r}, {', '.join(f'{key}={value}' for key, value in _facts(self).items())})"

    def _repr_html_(self) -> str:
        rows = {**_facts(self), "sites": ", ".join(self.wiring.kinds) or PATH, "revision": self.revision}
        return facts_table(rows, self.name)


def _facts(model: HookedModel) -> dict[str, Any]:
    """Facts of a model for its repr; a fact that does not apply is left out."""
    size = {
        "layers": model.n_layers,
        "d_model": model.d_model,
        "heads": model.n_heads,
        "context": model.n_ctx,
    }
    dtype = f"{str(model.dtype).removeprefix('torch.')} on {model.device}"
    facts = {"family": model.family, **size, "vocabulary": model.vocab_size, "dtype": dtype}
    return {key: value for key, value in facts.items() if value}

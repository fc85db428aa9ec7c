"""`CrossLayerTrainer`: trains a cross-layer transcoder; a consumer like `Trainer`, and made of one for each layer.

All layers are encoded, what they write is added up, and every layer's trainer then learns from the same residual, at
the outputs it reaches: one decode and one pass over the latents a layer. The loss is the squared error of all
outputs, each scaled to unit mean square, over their variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from ...kernels import decode as decode_kernel
from ...kernels.decode import Residual
from ...kernels.sampled import code_gradients
from ...lab.errors import InputError, unknown
from ...lab.rng import generator
from ...lab.sites import Site
from ...lab.streams import ActivationStream, Batch
from ..dictionary import Provenance
from ..initialise import initialise
from ..objectives import Gradients, Objective, Rows
from ..parts import Part
from ..sae import SparseAutoencoder
from ..sparse_code import SparseCode, beside
from ..training import Trainer, total_variance
from ..training_config import TrainConfig
from ..units import Units
from .cross_layer import CrossLayer, CrossLayerConfig
from .selection import select_jointly


class LayerTrainer(Trainer):
    """Trains the block of one layer, whose targets are that layer's output and all later ones.

    Args:
        earlier: number of layers before it. The first one has the bias of all outputs.
    """

    def __init__(
        self,
        block: SparseAutoencoder,
        source: Site,
        targets: Sequence[Site],
        config: TrainConfig,
        *,
        earlier: int,
        name: str,
    ) -> None:
        super().__init__(block, source, config, target=targets[0], name=name)
        self.sites, self.earlier = (source, *targets), earlier

    def begin(self, x: Float32[Tensor, "batch d"], goal: Float32[Tensor, "batch d_reached"]) -> None:
        """Set units and starting weights from the first batch; all layers that reach an output start with equal parts.

        The block then predicts those parts with a bias of its own.
        """
        sae, rng = self.dictionary, generator(self.config.seed, "init", self.name)
        self._set_k()
        self.units = units = Units.measure(sae.config, x, goal, self.sites)
        writers = torch.arange(self.earlier + 1, self.earlier + len(self.sites), device=x.device)
        part = goal * (units.output / writers.repeat_interleave(sae.d_out // len(writers)))
        read = self.read(x)
        initialise(sae, read, rng, self.config.blend, part)
        part = part - sae.b_dec
        self.objective.start(Rows.of(read, part))
        self._make_shadow()

    def read(self, x: Float32[Tensor, "batch d"]) -> Float32[Tensor, "batch d"]:
        """Rows as the encoder sees them in training."""
        assert self.units is not None, "units are set from the first batch"
        return torch.mul(x, self.units.input).sub_(self.units.centre)

    def ready(self) -> None:
        """Bring k, the idle latents and the objective's progress up to the step that comes."""
        self._set_k()
        self._look()

    def select(self, read: Float32[Tensor, "batch d"]) -> SparseCode:
        """The codes of this layer alone."""
        return self.dictionary.training_code(read, self.shadow)

    def written(self, code: SparseCode) -> Float32[Tensor, "batch d_reached"]:
        """What codes add to the outputs."""
        zero = torch.zeros_like(self.dictionary.b_dec)
        return decode_kernel.decode(code.indptr, code.indices, code.values, self._decoder, zero)

    def learn(
        self,
        read: Float32[Tensor, "batch d"],
        code: SparseCode,
        residual: Float32[Tensor, "batch d_reached"],
        variance: Float32[Tensor, ""],
        scale: Float32[Tensor, ""],
    ) -> None:
        """One step on the residual that all layers leave.

        Args:
            variance: of this layer's own output, which the metrics are about.
            scale: of d(half the squared error), the same in all layers.
        """
        own = residual[:, : residual.shape[1] // (len(self.sites) - 1)]
        copy = read.bfloat16() if self.choice[:2] == ("triton", "bf16") else read
        rows = Rows(read, residual, copy, residual, residual)
        found = self._taught(rows, code, residual)._replace(squares=own.square().sum(1))
        if self.earlier:
            found = found._replace(to_bias=torch.zeros_like(found.to_bias[:1]))
        self._learn(found, rows, variance, scale, self._adam)
        self._count(len(read))

    def _taught(self, rows: Rows, code: SparseCode, residual: Tensor) -> Gradients:
        if type(self.objective) is not Objective:  # penalties and thresholds: it encodes once more
            return self.objective.gradients(rows, self._decoder, self.shadow)
        codes = (code.indptr, code.indices, code.values)
        grads = code_gradients(*codes[:2], self._decoder, residual) * (code.values != 0)
        out = Residual(residual, residual[:, 0], grads)
        return Gradients(code, residual, out.squares, (Part(slice(None), codes, out),), residual, {})


class CrossLayerTrainer:
    """Trains `dictionary` in place on rows of several layers; what is asked of a `Trainer` is asked of each layer's.

    Args:
        dictionary: starting weights are set from the first batch.
        sites: what the layers read, in order, such as resid_mid of consecutive layers.
        targets: the outputs of the same layers, such as mlp_out.
        config: as for a `Trainer`; `aux_k`, `clip_norm` and the learning rate's default go by one layer.
        provenance: saved with the dictionary, with the sites, the config and counts.

    Raises:
        InputError: not one site and one target for each layer, a skip, which is read from files and not trained, or
            `cuda_graph` or `resample_every`, which this has not.
    """

    def __init__(
        self,
        dictionary: CrossLayer,
        sites: Sequence[Site],
        targets: Sequence[Site],
        config: TrainConfig | None = None,
        *,
        name: str | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        layers = dictionary.config.layers
        for given, what in ((sites, "sites"), (targets, "targets")):
            if len(given) != layers:
                raise InputError(f"{dictionary!r} has {layers} layers, got {len(given)} {what}: give one for each")
        if dictionary.W_skip is not None:
            raise InputError("the skip of a cross-layer transcoder is read from files and not trained: leave out skip")
        self.dictionary, self.config = dictionary, config or TrainConfig()
        for option in ("cuda_graph", "resample_every"):
            if getattr(self.config, option):
                raise InputError(f"{option} is not for cross-layer transcoders: leave it out")
        self.sources, self.targets = tuple(sites), tuple(targets)
        self.sites = (*self.sources, *self.targets)
        self.name = name or f"clt-{sites[0]}-to-{targets[-1]}"
        self.provenance = replace(
            provenance or Provenance(), sources=list(map(str, sites)), targets=list(map(str, targets))
        )
        self.layers = [
            LayerTrainer(block, site, targets[layer:], self.config, earlier=layer, name=f"{self.name}-{layer}")
            for layer, (block, site) in enumerate(zip(dictionary.layers, sites, strict=True))
        ]

    def __repr__(self) -> str:
        return f"CrossLayerTrainer({self.dictionary!r}, rows {self.rows:,} of {self.config.rows:,})"

    @property
    def rows(self) -> int:
        """Rows trained on."""
        return self.layers[0].rows

    @property
    def done(self) -> bool:
        """Whether the configured rows have been trained on."""
        return self.layers[0].done

    @torch.no_grad()
    def step(self, batch: Batch) -> None:
        """Train on one batch of finite rows (the stream refuses others before they get here)."""
        device = self.dictionary.b_dec.device
        acts = [batch.acts[site].to(device, torch.float32) for site in self.sites]
        read, goal = acts[: len(self.layers)], torch.cat(acts[len(self.layers) :], 1)
        if self.layers[0].units is None:
            self._start(read, goal)
        self._advance([layer.read(x) for layer, x in zip(self.layers, read, strict=True)], goal)

    def _advance(self, read: list[Tensor], goal: Float32[Tensor, "batch d_out"]) -> None:
        first = self.layers[0]
        assert first.units is not None, "units are set from the first batch"
        for layer in self.layers:
            layer.ready()
        codes = self._select(read)
        residual = self.dictionary.b_dec - goal * first.units.output
        variances = [total_variance(part) for part in residual.chunk(len(self.layers), 1)]
        for layer, code in zip(self.layers, codes, strict=True):
            self._reached(residual, layer).add_(layer.written(code))
        scale = 2 / torch.stack(variances).sum()
        for layer, x, code, variance in zip(self.layers, read, codes, variances, strict=True):
            layer.learn(x, code, self._reached(residual, layer).contiguous(), variance, scale)

    def _select(self, read: list[Tensor]) -> list[SparseCode]:
        """The codes of each layer; a threshold for inference follows the smallest that competed with them."""
        if self.dictionary.config.joint:
            codes = select_jointly(self.dictionary.layers, read, [layer.shadow for layer in self.layers])
            competing = [beside(codes)] * len(codes)
        else:
            codes = competing = [layer.select(x) for layer, x in zip(self.layers, read, strict=True)]
        for layer, code in zip(self.layers, competing, strict=True):
            layer.dictionary.observe(code, layer.steps)
        return codes

    def _reached(self, rows: Float32[Tensor, "batch d_out"], layer: LayerTrainer) -> Tensor:
        """A view of the columns that a layer writes to."""
        return rows[:, rows.shape[1] - layer.dictionary.d_out :]

    def _start(self, read: list[Tensor], goal: Float32[Tensor, "batch d_out"]) -> None:
        bias = self.dictionary.b_dec
        for layer, x in zip(self.layers, read, strict=True):
            layer.begin(x, self._reached(goal, layer))
            if layer.earlier:
                bias[len(bias) - layer.dictionary.d_out :] += layer.dictionary.b_dec
                layer.dictionary.b_dec.zero_()

    def metrics(self) -> dict[str, float]:
        """Means since the last call: fvu over all outputs at their training scale, and of each; l0 over all layers and
        of each; aux loss and dead share, means over layers; the learning rate now."""
        squares, variance, *_ = torch.stack([layer.sums for layer in self.layers]).sum(0).tolist()
        found = [layer.metrics() for layer in self.layers]
        mean = {name: sum(one[name] for one in found) / len(found) for name in ("aux", "dead", "lr")}
        fvus = {f"fvu_{site}": one["fvu"] for site, one in zip(self.targets, found, strict=True)}
        l0s = {f"l0_{site}": one["l0"] for site, one in zip(self.sources, found, strict=True)}
        return {"fvu": squares / max(variance, 1e-30), "l0": sum(l0s.values()), **mean, **fvus, **l0s}

    def state_dict(self) -> dict[str, Any]:
        """Everything a continued run needs to end in the same bytes."""
        return {"layers": {str(layer.earlier): layer.state_dict() for layer in self.layers}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same dictionary config.

        Raises:
            InputError: it has another number of layers, or as `Trainer.load_state_dict`.
        """
        if len(state["layers"]) != len(self.layers):
            raise InputError(f"the checkpoint has {len(state['layers'])} layers, this run {len(self.layers)}:"
                             " use the run's own config")  # fmt: skip
        for layer in self.layers:
            layer.load_state_dict(state["layers"][str(layer.earlier)])

    def folded(self) -> CrossLayer:
        """A copy of the dictionary in activation units, with its provenance."""
        copy = CrossLayer(self.dictionary.config).to(self.dictionary.b_dec.device)
        folded = [layer.folded() for layer in self.layers]
        for place, block in enumerate(folded):
            copy.blocks[place] = block
        counts = [block.provenance.training for block in folded]
        training = {**counts[0], "dead_fraction": sum(one["dead_fraction"] for one in counts) / len(counts)}
        copy.provenance = replace(self.provenance, training=training)
        return copy

    def save(self, folder: Path) -> None:
        """Write the folded dictionary."""
        self.folded().save(folder)


def cross_layer_trainer_on(
    stream: ActivationStream,
    sites: Sequence[Site],
    targets: Sequence[Site],
    training: TrainConfig,
    *,
    n_latents: int,
    name: str | None = None,
    device: torch.device | str = "cpu",
    **config: Any,
) -> CrossLayerTrainer:
    """A new cross-layer transcoder of the width of its sites, with a trainer that knows where it comes from.

    Args:
        sites: what its layers read, and `targets` what they write: all are on the stream, in order.
        n_latents: of each layer.
        config: further fields of `CrossLayerConfig`, such as k.

    Raises:
        InputError: no sites, sites or targets of different widths, or a config that is refused.
    """
    widths = []
    for group in (sites, targets):
        found = {stream.widths[site] for site in group}
        if len(found) != 1:
            shown = ", ".join(f"{site} [{stream.widths[site]}]" for site in group) or "none"
            raise InputError(f"a cross-layer transcoder needs sites of one width to read and one to write: {shown}")
        widths.append(found.pop() * len(group))
    layers = len(sites)
    known = [one.name for one in fields(CrossLayerConfig)]
    if others := [name for name in config if name not in known]:
        raise unknown("cross-layer transcoder config field", others[0], known)
    shape = CrossLayerConfig(widths[0], layers * n_latents, d_out=widths[1], layers=layers, **config)
    limits = {str(site): limit for site, limit in stream.norm_limit.items() if site in (*sites, *targets)}
    provenance = Provenance(model=stream.fingerprint().get("model", {}), norm_limits=limits)
    return CrossLayerTrainer(CrossLayer(shape).to(device), sites, targets, training, name=name, provenance=provenance)

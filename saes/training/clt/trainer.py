"""`CrossLayerTrainer`: trains a cross-layer transcoder; a consumer like `Trainer`, and made of one for each layer.

All layers are encoded, what they write is added up, and every layer's trainer then learns from the same residual, at
the outputs it reaches: one decode and one pass over the latents a layer. The loss is the squared error of all
outputs, each scaled to unit mean square, over their variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float32
from torch import Tensor

from ....lab.errors import InputError
from ....lab.models.sites import Site
from ....lab.storage import short_name
from ....lab.streams.activation_stream import ActivationStream, Batch
from ....lab.streams.token_stream import TokenStream
from ...architectures.clt.cross_layer import CrossLayer, CrossLayerConfig
from ...architectures.clt.selection import select_jointly
from ...dictionary import Dictionary, Provenance
from ...place import CROSS_LAYER, Place
from ...sparse_code import SparseCode, side_by_side
from ..config import TrainConfig
from ..on_stream import Asked, known_from, own_fields, warn_unknown
from ..trainer import total_variance
from .layer_trainer import LayerTrainer


class CrossLayerTrainer:
    """Trains `dictionary` in place on rows of several layers; what is asked of a `Trainer` is asked of each layer's.

    Args:
        dictionary: starting weights are set from the first batch.
        sites: what the layers read, in order, such as resid_mid of consecutive layers.
        targets: the outputs of the same layers, such as mlp_out.
        config: as for a `Trainer`; `aux_k`, `clip_norm` and the learning rate's default go by one layer.
        provenance: saved with the dictionary, with the sites, the config and counts.

    Raises:
        InputError: not one site and one target for each layer, or `cuda_graph` or `resample_every`, which this has not.
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
        for given, kind in ((sites, "sites"), (targets, "targets")):
            if len(given) != layers:
                raise InputError(f"{dictionary!r} has {layers} layers, got {len(given)} {kind}: give one for each")
        self.dictionary, self.config = dictionary, config or TrainConfig()
        for option in ("cuda_graph", "resample_every"):
            if getattr(self.config, option):
                raise InputError(f"{option} is not for cross-layer transcoders: leave it out")
        place = Place.at(sites, targets)
        if not (dictionary.place.named and dictionary.place.sites == place.sites):
            dictionary.place = place
        self.place, self.sites = dictionary.place, place.sites
        self.sources, self.targets = place.reads, place.predicts
        self.name = short_name(name or f"clt-{sites[0]}-to-{targets[-1]}")
        self.provenance = provenance or Provenance()
        skips = [None] * layers if dictionary.W_skip is None else dictionary.W_skip.data.unbind()
        self.layers = [
            LayerTrainer(
                block, site, targets[layer:], self.config, earlier=layer, name=f"{self.name}-{layer}", skip=skip
            )
            for layer, (block, site, skip) in enumerate(zip(dictionary.layers, sites, skips, strict=True))
        ]

    config_type: ClassVar[type] = TrainConfig

    @classmethod
    def dictionary_fields(cls, kind: type[Dictionary]) -> tuple[str, ...]:
        """Fields of the dictionary's config that `Trainer.on` takes by name; n_latents and k are those of a layer."""
        return own_fields(kind)

    @classmethod
    def for_place(cls, asked: Asked) -> CrossLayerTrainer:
        """Make the dictionary and its trainer for `Trainer.on`.

        Raises:
            InputError: a place without targets, sites or targets of different widths, or a config refuses a value.
        """
        place = asked.place
        if place.kind != CROSS_LAYER:
            raise InputError(f"clt needs a place such as 'resid_mid.8-11 -> mlp_out.8-11', a target for each source,"
                             f" not '{place}'")  # fmt: skip
        asked.require_latents()
        d_in, d_out = (_one_width(asked, sites) for sites in (place.reads, place.predicts))
        shape = CrossLayerConfig.over(len(place.reads), d_in, d_out=d_out, **asked.fields)
        clt = CrossLayer(shape).to(asked.device)
        clt.place = place.on(asked.stream)
        return cls(clt, place.reads, place.predicts, asked.training, name=asked.name, provenance=asked.provenance())

    def attach(self, stream: ActivationStream | TokenStream) -> None:
        """Take the model's fingerprint and the norm limits from the stream, where they are not known yet.

        Raises:
            InputError: the trainer knows its model, and the stream reads another one.
        """
        place, self.provenance = known_from(stream, self.place, self.provenance, self.name)
        self.place = self.dictionary.place = place

    def __repr__(self) -> str:
        return f"CrossLayerTrainer({self.dictionary!r}, rows {self.rows:,} of {self.config.rows:,})"

    @property
    def rows(self) -> int:
        """Rows trained on."""
        return self.layers[0].rows

    @property
    def rows_wanted(self) -> int:
        """Rows of the whole training."""
        return self.layers[0].config.rows

    def shorten(self, rows: int) -> None:
        """Let the schedules of all layers span `rows`, as `Trainer.shorten`."""
        self.config = replace(self.config, rows=rows)
        for layer in self.layers:
            layer.shorten(rows)

    def settings(self) -> dict[str, Any]:
        """Architecture and configs: a run is continued with the same ones."""
        dictionary = {"architecture": self.dictionary.architecture, **asdict(self.dictionary.config)}
        return {"dictionary": dictionary, "training": asdict(self.config)}

    @property
    def done(self) -> bool:
        """True once the configured rows have been trained on."""
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
            layer.prepare(len(goal))
        codes = self._select(read)
        residual = self.dictionary.b_dec - goal * first.units.output
        variances = [total_variance(part) for part in residual.chunk(len(self.layers), 1)]
        if self.dictionary.W_skip is not None:
            residual += self.dictionary.skipped(torch.cat(read, 1))
        for layer, code in zip(self.layers, codes, strict=True):
            self._reached(residual, layer).add_(layer.written(code))
        scale = 2 / torch.stack(variances).sum()
        for layer, x, code, variance in zip(self.layers, read, codes, variances, strict=True):
            layer.learn(x, code, self._reached(residual, layer).contiguous(), variance, scale)

    def _select(self, read: list[Tensor]) -> list[SparseCode]:
        """The codes of each layer; a threshold for inference follows the smallest that competed with them."""
        if self.dictionary.config.joint:
            codes = select_jointly(self.dictionary.layers, read, [layer.low_precision for layer in self.layers])
            competing = [side_by_side(codes)] * len(codes)
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
        layers = [layer.metrics() for layer in self.layers]
        mean = {
            name: sum(layer_metrics[name] for layer_metrics in layers) / len(layers) for name in ("aux", "dead", "lr")
        }
        fvus = {f"fvu_{site}": layer_metrics["fvu"] for site, layer_metrics in zip(self.targets, layers, strict=True)}
        l0s = {f"l0_{site}": layer_metrics["l0"] for site, layer_metrics in zip(self.sources, layers, strict=True)}
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
        if copy.W_skip is not None:
            weights, biases = zip(*(layer.folded_skip() for layer in self.layers), strict=True)
            copy.W_skip.copy_(torch.stack(weights))
            copy.b_dec.add_(torch.cat(biases))
        counts = [block.provenance.training for block in folded]
        training = {**counts[0], "dead_fraction": sum(count["dead_fraction"] for count in counts) / len(counts)}
        if (units := self.layers[0].units) is None:
            copy.place = self.place
        else:
            read = [layer.units.scales[0] for layer in self.layers if layer.units is not None]
            copy.place = self.place.scaled((*read, *units.scales[1:]))
        copy.provenance = replace(self.provenance, training=training)
        return copy

    def save(self, folder: Path) -> None:
        """Write the folded dictionary; one that knows neither its model nor its norm limits is warned of."""
        warn_unknown(self.name, self.place, self.provenance)
        self.folded().save(folder)


def _one_width(asked: Asked, sites: Sequence[Site]) -> int:
    """The width that all of these sites have."""
    widths = {asked.width(site) for site in sites}
    if len(widths) != 1:
        shown = ", ".join(f"{site} [{asked.width(site)}]" for site in sites)
        raise InputError(f"a cross-layer transcoder needs sites of one width to read and one to write: {shown}")
    return widths.pop()

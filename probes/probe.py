"""`Probe`: a read-out that was fitted, ready to score activations as they come.

    probe = fit("logistic", rows)             # probes.fits: rows are PooledRows (or Bags) of probes.labels
    probe.scores(x)                           # [rows, outputs]: log odds, or the numbers predicted
    probe.predict(x)                          # [rows]: index into probe.classes
    probe.direction                           # [d], unit length, towards the positive class: can be added at the site
    probe.save(folder); load(folder, model)   # probes.files: refused for another model

Whatever scaling the fit used is folded into `weight` and `bias` and kept beside them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from ..lab.errors import InputError
from ..lab.models.hooked_model import HookedModel
from ..lab.models.same_model import require_same_model
from ..lab.models.sites import Site
from ..lab.storage import file_sha256, write_json, write_tensors
from ..saes.dictionary import Dictionary
from .fitting.scaling import Scaling
from .labels import Bags, PooledRows, Source

SCHEMA = 1
WEIGHTS, DESCRIPTION = "probe.safetensors", "probe.json"
SCALE = ("scaling.mean", "scaling.spread")
"""Names of the scaling's tensors in the file of weights."""


@dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """A linear read-out: `x @ weight.T + bias`."""

    form: ClassVar[str] = "linear"
    """How scores come from rows; names the class in files."""

    kind: str
    """How it was fitted: a name in `probes.fits.FITS`."""
    weight: Float32[Tensor, "outputs d"]
    """One row for two classes (towards the second), one a class for more, one a number that is predicted."""
    bias: Float32[Tensor, " outputs"]
    classes: tuple[str, ...]
    """Names; empty where numbers are predicted."""
    source: Source
    """Site, head, dictionary, pooling and model of the rows it was fitted on."""
    scaling: Scaling
    """Scaling that was folded into the weights."""
    training: dict[str, Any] = field(default_factory=dict)
    """Options of the fit, class weights, rows and groups it saw (JSON values)."""

    @property
    def d(self) -> int:
        """Width of the rows it reads."""
        return self.weight.shape[1]

    @property
    def linear(self) -> bool:
        """True if scores are an affine function of a row."""
        return type(self) is Probe

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "rows d"]) -> Float32[Tensor, "rows outputs"]:
        """One column of log odds for two classes, one column a class for more, or the numbers predicted.

        Only the logistic kinds give log odds in nats; those of the others have an arbitrary unit (see `calibration`).

        Raises:
            InputError: rows of another width.
        """
        return F.linear(self.rows(x), self.weight, self.bias)

    def read(self, units: PooledRows | Bags) -> Float32[Tensor, "units outputs"]:
        """Scores of texts; of bags, pooled as the rows were that it was fitted on."""
        return self.scores((units.pooled(self.source.pooling) if isinstance(units, Bags) else units).x)

    def predict(self, x: Float[Tensor, "rows d"]) -> Tensor:
        """Index [rows] into `classes`; or the numbers predicted [rows, outputs]."""
        return self.decide(self.scores(x))

    def decide(self, scores: Float[Tensor, "rows outputs"]) -> Tensor:
        """The classes that scores decide for, as `predict` gives them."""
        if not self.classes:
            return scores
        return (scores[:, 0] > 0).long() if len(self.classes) == 2 and scores.shape[1] == 1 else scores.argmax(1)

    @property
    def directions(self) -> Float32[Tensor, "outputs d"]:
        """The weights as unit vectors in the space of the rows; zero where there is no weight.

        Raises:
            InputError: the probe is not linear.
        """
        if not self.linear:
            raise InputError(f"a probe of kind {self.kind!r} is not linear and has no direction: use a linear kind")
        return F.normalize(self.weight, dim=1)

    @property
    def direction(self) -> Float32[Tensor, " d"]:
        """The one direction, towards the positive class or the larger number.

        Raises:
            InputError: the probe is not linear, or has several outputs.
        """
        if len(self.weight) != 1:
            raise InputError(f"this probe has {len(self.weight)} outputs: take one of its `directions`")
        return self.directions[0]

    def written(self, dictionary: Dictionary) -> Float32[Tensor, "outputs d_out"]:
        """Unit directions in activation space of a probe on codes: its weights through the decoder rows.

        Raises:
            InputError: the probe was fitted on activations, or on the codes of a dictionary of another size.
        """
        if not self.source.dictionary or self.d != dictionary.n_latents:
            raise InputError(
                f"this probe of {self.source} reads {self.d} columns, which are not codes of {dictionary!r}"
            )
        W_dec = dictionary.W_dec.detach().to(self.weight)
        return F.normalize(self.directions @ W_dec, dim=1)

    def matching_site(self, model: HookedModel) -> Site:
        """The site it reads, once the model is known to be its own.

        Raises:
            InputError: it names no site, or was fitted on another model.
        """
        if not self.source.site:
            raise InputError("the probe names no site: give its source one, such as 'resid_post.12'")
        require_same_model(self.source.model, model, "probe")
        return model.site(self.source.site)

    def rows(self, x: Float[Tensor, "rows d"]) -> Float32[Tensor, "rows d"]:
        """Rows as the weights take them.

        Raises:
            InputError: another width.
        """
        if x.ndim != 2 or x.shape[1] != self.d:
            raise InputError(
                f"rows of shape {list(x.shape)} given to a probe of {self.source}, which reads [rows, {self.d}]"
            )
        return x.to(self.weight)

    def to(self, device: torch.device | str) -> Probe:
        """The probe with its weights on a device."""
        scaling = replace(self.scaling, mean=self.scaling.mean.to(device), spread=self.scaling.spread.to(device))
        return replace(self, scaling=scaling, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name."""
        return {entry.name: value for entry in fields(self) if isinstance(value := getattr(self, entry.name), Tensor)}

    def save(self, folder: Path | str) -> Path:
        """Write the probe into `folder`, which is created; `probe.json` is written last.

        probe.json: {schema, form, kind, classes, source, scaling, training, sha256 of probe.safetensors}.
        """
        folder = Path(folder)
        scale = dict(zip(SCALE, (self.scaling.mean, self.scaling.spread), strict=True))
        write_tensors(folder / WEIGHTS, {**self.tensors(), **scale})
        description = {
            "schema": SCHEMA,
            "form": self.form,
            "kind": self.kind,
            "classes": list(self.classes),
            "source": asdict(self.source),
            "scaling": self.scaling.kind,
            "training": self.training,
            "sha256": file_sha256(folder / WEIGHTS),
        }
        write_json(folder / DESCRIPTION, description)
        return folder

    def __repr__(self) -> str:
        outputs = ", ".join(self.classes) or f"{len(self.weight)} numbers"
        return f"{type(self).__name__}({self.kind} of {outputs} @ {self.source}, {self.source.pooling}, d={self.d})"

"""`CrossLayerReconstruction`: the scores of `metrics` for a cross-layer transcoder, and those of each of its layers.

fvu          squared error over variance, all outputs together as they are: large layers decide
fvu_mean     mean over layers of their FVU
fvu_SITE     of one output
l0, l0_SITE  active latents a row: all of them, and those that read one site
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ....lab.errors import InputError
from ....lab.models.sites import Site
from ...architectures.clt.cross_layer import CrossLayer
from ...place import Place
from ...sparse_code import SparseCode
from ..document_sums import ratio
from ..reconstruction import Measure, Reconstruction, part_fvu


class CrossLayerReconstruction(Reconstruction):
    """Measures one cross-layer transcoder on all its sites; a consumer, as any other `Reconstruction`.

    Args:
        dictionary: in activation units; it is not changed.
        site: what its layers read, and `target` what they write, in order; by default as they were trained.
        name: by default "reconstruction-" and the sites.
        rows: measure this many rows, then be done; None goes on to the end of the stream.

    Raises:
        InputError: no sites are known, not one to read and one to write for each layer, or `rows` is below 1.
    """

    dictionary: CrossLayer

    def __init__(
        self,
        dictionary: CrossLayer,
        site: Place | Sequence[Site | str] | None = None,
        *,
        target: Sequence[Site | str] | None = None,
        name: str | None = None,
        rows: int | None = None,
    ) -> None:
        super().__init__(dictionary, site, target=target, name=name, rows=rows)
        layers = dictionary.config.layers
        if len(self.sources) != layers or len(self.targets) != layers:
            raise InputError(
                f"{dictionary!r} has {layers} layers, got {len(self.sources)} sites to read and {len(self.targets)}"
                " to write: give one of both for each"
            )
        if layers > 1:
            each = self.parts.items()
            self.scores["fvu_mean"] = Measure(lambda s: sum(part_fvu(s, site, own) for site, own in each) / layers)
        for source in self.sources:
            self.scores[f"l0_{source}"] = Measure(lambda s, source=source: ratio(s[f"l0_{source}"], s["rows"]))

    def _further(self, code: SparseCode) -> dict[str, Float[Tensor, " rows"]]:
        n = self.dictionary.n_latents // len(self.sources)
        return {
            f"l0_{source}": code.within(slice(layer * n, (layer + 1) * n)).l0
            for layer, source in enumerate(self.sources)
        }

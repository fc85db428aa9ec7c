"""`Faithfulness`: the share of activations that codes explain, in every sense that changes the verdict.

    r2             1 - E||x - x_hat||^2 / E||x - E x||^2, pooled over dimensions
    r2_dimension   the same of every dimension by itself, mean over those that vary: large ones do not decide
    r2_whitened    the same under the atomic inner product: every direction of the data counts alike
    r2_refit       r2 with codes refitted by least squares on their support
    l0             atoms in use a token

Massive activations decide the pooled figure where they are among the rows: measure it with and without them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ....lab.errors import InputError, unknown
from ....lab.evidence import Evidence
from ....lab.models.sites import Site
from ....lab.storage import State, write_json
from ....lab.streams.activation_stream import Batch
from ...dictionary import Dictionary
from ...evaluation.document_sums import DocumentSums, Formula, ratio
from ...evaluation.reconstruction import Measure
from ...evaluation.results import SCHEMA, flat
from ...place import AUTOENCODER
from ...sparse_code import SparseCode
from .inner_product import AtomicInnerProduct
from .refit import refit
from .steps import Steps

REFIT_WIDEST = 192
"""Rows with more atoms in use keep their codes: those are not sparse, and a refit costs k^2 d."""

Sums = Mapping[str, np.ndarray]


def variances(sums: Sums) -> Float[np.ndarray, " d"]:
    """Variance of every dimension; what fp64 leaves of a constant is 0."""
    mean, square = sums["x"] / sums["rows"], sums["square"] / sums["rows"]
    found = square - mean**2
    return np.where(found > 1e-12 * square, found, 0.0)


def require_atoms(dictionary: Dictionary) -> None:
    """Refuse what has no atoms of the space it reads.

    Raises:
        InputError: a transcoder, crosscoder or cross-layer transcoder.
    """
    if dictionary.place.kind != AUTOENCODER:
        raise InputError(f"atoms are of the space that is read: {dictionary!r} does not reconstruct one site")


class Faithfulness:
    """Measures dictionaries, and nulls among them, on the same rows of one site; a consumer of the stream.

    Args:
        dictionaries: in activation units, by name.
        product: the inner product of `r2_whitened`.
        subjects: names of those that are no nulls: only they get `r2_refit` and a distribution of L0.
        rows: measure this many rows, then be done; None goes on to the end of the stream.
        refitted: measure `r2_refit`.

    Raises:
        InputError: `rows` is below 1, an unknown subject, or a dictionary that does not reconstruct what it reads.
    """

    kind = "measures"

    def __init__(
        self,
        dictionaries: Mapping[str, Dictionary],
        site: Site,
        product: AtomicInnerProduct,
        *,
        subjects: tuple[str, ...],
        name: str | None = None,
        rows: int | None = None,
        refitted: bool = True,
    ) -> None:
        if rows is not None and rows < 1:
            raise InputError(f"rows must be at least 1, got {rows}")
        for subject in subjects:
            if subject not in dictionaries:
                raise unknown("subject", subject, dictionaries)
        for dictionary in dictionaries.values():
            require_atoms(dictionary)
        self.dictionaries, self.product, self.subjects = dict(dictionaries), product, subjects
        self.sites, self.limit, self.refitted = (site,), rows, refitted
        self.name = name or f"faithfulness-{site}"
        self.sums = DocumentSums()
        self.rows = 0
        self.magnitudes = {name: (float("inf"), 0.0) for name in subjects}
        """Smallest and largest code magnitude, for atoms of unit length under the inner product."""
        self.firing = {name: torch.zeros(dictionaries[name].n_latents, dtype=torch.int64) for name in subjects}
        """In how many rows each atom was in use."""

    @property
    def done(self) -> bool:
        """True once the configured rows have been measured."""
        return self.limit is not None and self.rows >= self.limit

    @property
    def progress(self) -> tuple[int, int | None]:
        """Rows measured, and rows asked for."""
        return self.rows, self.limit

    def merge(self, other: Faithfulness) -> None:
        """Add what the same dictionaries gave on later rows.

        Raises:
            InputError: the other measures another site, other dictionaries, or no refit where this one does.
        """
        ours, theirs = ((one.sites, list(one.dictionaries), one.subjects, one.refitted) for one in (self, other))
        if ours != theirs:
            raise InputError(
                f"{other.name} measures {', '.join(other.dictionaries)} and {self.name} "
                f"{', '.join(self.dictionaries)}: merge equal measures of the same dictionaries"
            )
        self.sums.merge(other.sums)
        self.rows += other.rows
        for name, (low, high) in other.magnitudes.items():
            self.magnitudes[name] = min(low, self.magnitudes[name][0]), max(high, self.magnitudes[name][1])
            self.firing[name] = self.firing[name] + other.firing[name]

    def step(self, batch: Batch) -> None:
        """Measure one batch, up to the rows asked for."""
        room = len(batch.origin) if self.limit is None else self.limit - self.rows
        self.add(batch.acts[self.sites[0]][:room], batch.origin[:room, 0])

    @torch.no_grad()
    def add(self, x: Float[Tensor, "rows d"], doc: Int[Tensor, " rows"]) -> None:
        """Measure rows, each with the id of its document."""
        exact = x.double()
        columns = {
            "rows": torch.ones_like(exact[:, 0]),
            "x": exact,
            "square": exact.square(),
            "white_square": self.product.whiten(exact).square().sum(1),
        }
        for name, dictionary in self.dictionaries.items():
            columns |= {f"{column}_{name}": values for column, values in self._of(name, dictionary, x).items()}
        self.sums.add(doc, columns)
        self.rows += len(x)

    def _of(self, name: str, dictionary: Dictionary, x: Tensor) -> dict[str, Tensor]:
        rows = dictionary.rows(x.to(dictionary.W_dec.device))
        code = dictionary.encode(rows)
        missed = rows.double() - dictionary.reconstruct(rows, code)
        found = {"error": missed.square(), "white_error": self.product.whiten(missed).square().sum(1), "l0": code.l0}
        if name not in self.subjects:
            return found
        self._note_magnitudes(name, dictionary, code)
        self.firing[name] += code.firing_counts().cpu()
        found["counts"] = F.one_hot(code.l0.clamp(max=rows.shape[1]), rows.shape[1] + 1)
        if self.refitted:
            found["refit_error"] = _refit_error(rows, code, dictionary, missed)
        return found

    def _note_magnitudes(self, name: str, dictionary: Dictionary, code: SparseCode) -> None:
        lengths = torch.linalg.vector_norm(self.product.whiten(dictionary.W_dec.detach().double()), dim=1)
        sizes = code.values.double().abs() * lengths[code.indices.long()]
        if len(sizes := sizes[sizes > 0]):
            low, high = self.magnitudes[name]
            self.magnitudes[name] = min(low, float(sizes.min())), max(high, float(sizes.max()))

    def l0(self, name: str) -> Steps:
        """Atoms that a subject uses over tokens; more than d count as d, where sparse means nothing any more.

        Raises:
            InputError: no rows were seen, or an unknown subject.
        """
        self._require_rows()
        if name not in self.subjects:
            raise unknown("subject", name, self.subjects)
        return l0_steps(self.sums.total, name)

    def evidence(
        self,
        name: str,
        nulls: Mapping[str, str],
        *,
        only: Collection[str] | None = None,
        held_out: str = "",
        seed: int = 0,
    ) -> dict[str, Evidence]:
        """Every score of a subject, or `only` some, with its interval over documents.

        Args:
            nulls: what each null is called beside it, and its name among the dictionaries.

        Raises:
            InputError: no rows were seen.
        """
        self._require_rows()
        total, found = self.sums.total, {}
        for score, measure in self.measures(name).items():
            if only is not None and score not in only:
                continue
            of_nulls = {null: self.measures(key).get(score) for null, key in nulls.items()}
            found[score] = Evidence(
                score, measure.formula(total), self.sums.interval(measure.formula, seed=seed),
                {null: one.formula(total) for null, one in of_nulls.items() if one is not None},
                len(self.sums), held_out=held_out, better=measure.better,
            )  # fmt: skip
        return found

    def measures(self, name: str) -> dict[str, Measure]:
        """Every score of one dictionary, from summed columns."""
        whitening = self.product.whitening.cpu().numpy()

        def pooled(column: str) -> Formula:
            return lambda s: 1 - ratio(s[column].sum() / s["rows"], variances(s).sum())

        def by_dimension(s: Sums) -> float:
            variance = variances(s)
            live = variance > 0
            lost = s[f"error_{name}"][live] / s["rows"] / variance[live]
            return 1 - float(lost.mean()) if live.any() else float("nan")

        def whitened(s: Sums) -> float:
            mean = s["x"] / s["rows"] @ whitening
            return 1 - ratio(s[f"white_error_{name}"] / s["rows"], s["white_square"] / s["rows"] - mean @ mean)

        found = {"r2": pooled(f"error_{name}"), "r2_dimension": by_dimension, "r2_whitened": whitened}
        if self.refitted and name in self.subjects:
            found["r2_refit"] = pooled(f"refit_error_{name}")
        scores = {score: Measure(formula, "higher") for score, formula in found.items()}
        return scores | {"l0": Measure(lambda s: ratio(s[f"l0_{name}"], s["rows"]))}

    def metrics(self) -> dict[str, float]:
        """r2 and l0 of every dictionary so far, and rows."""
        self._require_rows()
        total = self.sums.total
        scores = {f"{score}_{name}": self.measures(name)[score].formula(total)
                  for name in self.dictionaries for score in ("r2", "l0")}  # fmt: skip
        return scores | {"rows": float(self.rows)}

    def state_dict(self) -> State:
        """The sums, what was in use, and the range of magnitudes."""
        firing = {name: counts.clone() for name, counts in self.firing.items()}
        sums = self.sums.state_dict()
        return {"rows": self.rows, "sums": sums, "firing": firing, "magnitudes": dict(self.magnitudes)}

    def load_state_dict(self, state: State) -> None:
        """Continue from a `state_dict` of the same dictionaries."""
        self.rows = state["rows"]
        self.sums.load_state_dict(state["sums"])
        self.firing = {name: counts.clone() for name, counts in state["firing"].items()}
        self.magnitudes = {name: (low, high) for name, (low, high) in state["magnitudes"].items()}

    def save(self, folder: Path) -> None:
        """Write `faithfulness.json`: the scores of every subject."""
        told = {name: flat(self.evidence(name, {})) for name in self.subjects}
        write_json(folder / "faithfulness.json", {"schema": SCHEMA, "rows": self.rows, "subjects": told})

    def _require_rows(self) -> None:
        if not self.rows:
            raise InputError(f"{self.name} has measured no rows: step it on at least one batch")


def l0_steps(sums: Sums, name: str) -> Steps:
    """The distribution of L0 in summed columns."""
    counts = sums[f"counts_{name}"]
    return Steps.of(np.arange(len(counts)), counts)


def _refit_error(
    rows: Float[Tensor, "rows d"], code: SparseCode, dictionary: Dictionary, missed: Float[Tensor, "rows d"]
) -> Float[Tensor, " rows"]:
    """Squared error after the refit; as it was where a code is too wide."""
    found = missed.square().sum(1)
    sparse = (code.l0 <= REFIT_WIDEST).nonzero()[:, 0]
    if len(sparse):
        kept = code.where(torch.isin(code.rows, sparse))
        best = refit(rows, kept, dictionary.W_dec.detach(), dictionary.b_dec.detach())
        found[sparse] = (rows.double() - best.x_hat)[sparse].square().sum(1)
    return found

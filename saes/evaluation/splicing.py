"""The loss of a model whose activations are replaced: by reconstructions, by zero, or by their mean.

    ce_recovered_zero   (CE_zero - CE_spliced) / (CE_zero - CE_clean); 1 is the clean model
    ce_recovered_mean   the same against the mean ablation, which is harder to beat
    ce_increase         CE_spliced - CE_clean, nats a token
    kl                  KL(clean || spliced), summed over the vocabulary, mean a token, nats
    kl_score_zero, kl_score_mean   (KL_ablated - KL_spliced) / KL_ablated

A transcoder's prediction from the site it reads replaces the activations it predicts, at their site.

The same positions are edited in every variant, ablations included. Special tokens, the first token of a row,
padding and rows above the dictionary's norm limit pass through bit for bit, and are counted. Losses are taken
at usable positions whose next token is usable and of the same document.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ...lab.errors import InputError
from ...lab.evidence import Evidence
from ...lab.models.hooked_model import HookedModel
from ...lab.models.sites import PATH, Site
from ...lab.models.split_head import SplitHead
from ...lab.runs.read import read
from ...lab.storage import State, write_json
from ...lab.streams.activation_stream import Batch
from ...lab.streams.token_stream import TokenStream
from ...lab.text.corpus import Corpus
from ...lab.text.held import HeldText
from ...lab.text.packing import TokenBatch
from ..dictionary import Dictionary
from ..edit import Edit, EditableRows, EditCounts, Hook, Replace, predicting
from .document_sums import DocumentSums, ratio
from .reconstruction import Measure

Edits = Mapping[Site, Hook]

CLEAN, ABLATIONS = "clean", ("zero", "mean")
LOGIT_BYTES = 256 << 20
"""Logits that are made at once, in fp32; up to four of that size are held."""
LOSS_BYTES = 12 << 20
"""Logits that are compared at once: what stays in cache."""


@dataclass(frozen=True)
class SpliceLosses:
    """Cross-entropy and KL of every variant, summed by document."""

    sums: DocumentSums
    counts: dict[str, int]
    """Positions edited, left as special, first or padding, left for their norm; next-token predictions."""

    def cross_entropy(self, variant: str) -> float:
        """Mean a token, nats; `variant` is a dictionary's name, "clean", "zero" or "mean"."""
        total = self.sums.total
        return ratio(total[f"ce_{variant}"], total["predictions"])

    def evidence(
        self, name: str, nulls: Sequence[str] = (), *, held_out: str = "", seed: int = 0
    ) -> dict[str, Evidence]:
        """Every score of the dictionary `name`, with intervals over documents.

        Args:
            nulls: names of spliced dictionaries to stand beside it. The ablations stand there always, except
                in the scores that are relative to them.
        """
        total, scores = self.sums.total, {}
        for score, measure in measures(name).items():
            controls = [null for null in (*ABLATIONS, *nulls) if not score.endswith(f"_{null}")]
            scores[score] = Evidence(
                score,
                measure.formula(total),
                interval=self.sums.interval(measure.formula, seed=seed),
                nulls={null: measures(null)[score].formula(total) for null in controls},
                n=len(self.sums),
                held_out=held_out,
                better=measure.better,
            )
        return scores


def measures(name: str) -> dict[str, Measure]:
    """Every score of one variant, from summed columns."""
    ce, kl = f"ce_{name}", f"kl_{name}"
    scores = {
        "ce_increase": Measure(lambda s: ratio(s[ce] - s["ce_clean"], s["predictions"])),
        "kl": Measure(lambda s: ratio(s[kl], s["predictions"])),
    }
    for ablation in ABLATIONS:
        ce_ablated, kl_ablated = f"ce_{ablation}", f"kl_{ablation}"
        scores[f"ce_recovered_{ablation}"] = Measure(
            lambda s, ablated=ce_ablated: ratio(s[ablated] - s[ce], s[ablated] - s["ce_clean"]), "higher"
        )
        scores[f"kl_score_{ablation}"] = Measure(
            lambda s, ablated=kl_ablated: ratio(s[ablated] - s[kl], s[ablated]), "higher"
        )
    return scores


class Splices:
    """A consumer of token batches that runs the model on each: clean, ablated, and with every dictionary.

    Args:
        measure: adds the losses of one block of rows to the sums, and counts its positions.
        tokens: measure this many next-token predictions, then be done.
        vocab: size of the vocabulary, where logits come whole: batches are cut into blocks whose logits fit
            `LOGIT_BYTES`. None leaves batches whole.
        name: of the consumer.

    Raises:
        InputError: `tokens` is below 1.
    """

    kind = "measures"
    needs_text = True
    sites: tuple[Site, ...] = ()

    def __init__(
        self,
        measure: Callable[[TokenBatch, DocumentSums], Mapping[str, int]],
        tokens: int,
        vocab: int | None,
        *,
        name: str = "splice",
    ) -> None:
        if tokens < 1:
            raise InputError(f"tokens must be at least 1, got {tokens}")
        self.limit, self.name = tokens, name
        self._measure, self._vocab = measure, vocab
        self._sums = DocumentSums()
        self._counts: Counter[str] = Counter(edited=0, unedited_special=0, unedited_norm=0, predictions=0)

    @property
    def done(self) -> bool:
        """True once the predictions asked for are measured."""
        return self._counts["predictions"] >= self.limit

    @property
    def progress(self) -> tuple[int, int | None]:
        """Next-token predictions measured, and those asked for."""
        return self._counts["predictions"], self.limit

    def step(self, batch: Batch) -> None:
        """Measure a token batch, block by block, until there are enough predictions."""
        assert batch.source is not None, "served by a TokenStream"
        whole = [batch.source.batch]
        for block in whole if self._vocab is None else parts_of(whole, self._vocab):
            if not self.done:
                self._counts.update(self._measure(block, self._sums))

    @property
    def losses(self) -> SpliceLosses:
        """Losses so far.

        Raises:
            InputError: no prediction was measured.
        """
        if not self._counts["predictions"]:
            raise InputError("no usable token with a usable next token was found: give a corpus with longer documents")
        return SpliceLosses(self._sums, dict(self._counts))

    def merge(self, other: Splices) -> None:
        """Add the losses of an equal measure on later text."""
        self._sums.merge(other._sums)
        self._counts.update(other._counts)

    def metrics(self) -> dict[str, int | float]:
        """Positions so far, by what was done with them."""
        return dict(self._counts)

    def state_dict(self) -> State:
        """The sums and the counts."""
        return {"sums": self._sums.state_dict(), "counts": dict(self._counts)}

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken."""
        self._sums.load_state_dict(state["sums"])
        self._counts = Counter(state["counts"])

    def save(self, folder: Path) -> None:
        """Write `losses.json`: the cross-entropy of every variant (nats a token), and the counts."""
        total = self.losses.sums.total
        entropies = {name: ratio(total[name], total["predictions"]) for name in total if name.startswith("ce_")}
        write_json(folder / "losses.json", {**entropies, **self._counts})


def splices(
    model: HookedModel,
    site: Site | str,
    dictionaries: Mapping[str, Dictionary],
    mean: Float[Tensor, " d"],
    *,
    tokens: int,
    norm_limit: float | None = None,
    reads: Mapping[Site, float | None] | None = None,
    name: str = "splice",
) -> Splices:
    """The consumer that splices dictionaries in at one site; arguments as in `splice`.

    Raises:
        InputError: as `splice`.
    """
    require_free_names(dictionaries)
    site = model.site(site)
    for source in reads or ():
        if PATH not in (source.kind, site.kind) and source > site:  # when a path runs, only the module knows
            raise InputError(f"a transcoder that is spliced in at {site} must read an earlier site, not {source}")
    limits = {site: norm_limit, **(reads or {})}

    ends = Ends.of(model, limits)

    def measure(block: TokenBatch, sums: DocumentSums) -> dict[str, int]:
        return _measure(ends, block, limits, dictionaries, mean, sums)

    return Splices(measure, tokens, ends.whole_vocab, name=name)


def splice(
    model: HookedModel,
    text: Corpus | Iterable[TokenBatch],
    site: Site | str,
    dictionaries: Mapping[str, Dictionary],
    mean: Float[Tensor, " d"],
    *,
    tokens: int,
    norm_limit: float | None = None,
    reads: Mapping[Site, float | None] | None = None,
    progress: bool = False,
) -> SpliceLosses:
    """Run the model clean, ablated and with each dictionary spliced in: one forward pass for each.

    Args:
        text: a corpus, read from its beginning, or token batches.
        site: what is replaced.
        dictionaries: by name; "clean", "zero" and "mean" are taken.
        mean: what the mean ablation writes.
        tokens: stop once this many next-token predictions are measured.
        norm_limit: rows with a larger norm are left as they are in every variant.
        reads: of transcoders, the one site they read, which must run before `site`, and its norm limit.

    Raises:
        InputError: a taken name, `tokens` below 1, or text without a single prediction.
    """
    consumer = splices(model, site, dictionaries, mean, tokens=tokens, norm_limit=norm_limit, reads=reads)
    return read_splices(model, text, consumer, progress=progress)


def read_splices(
    model: HookedModel, text: Corpus | Iterable[TokenBatch], consumer: Splices, *, progress: bool = False
) -> SpliceLosses:
    """Read text until the consumer has its predictions, and give its losses.

    Raises:
        InputError: the text holds no prediction.
    """
    corpus = text if isinstance(text, Corpus) else HeldText(text)
    read(TokenStream.reading(model, corpus), consumer, description=consumer.name, progress=progress)
    return consumer.losses


def require_free_names(names: Iterable[str]) -> None:
    """Refuse a dictionary that has the name of another variant.

    Raises:
        InputError: names it.
    """
    if taken := [name for name in names if name in (CLEAN, *ABLATIONS)]:
        raise InputError(f"a dictionary cannot be named {taken[0]!r}: clean, zero and mean are variants of their own")


def parts_of(batches: Iterable[TokenBatch], vocab: int) -> Iterator[TokenBatch]:
    """The batches, cut into even blocks of rows whose logits fit `LOGIT_BYTES`."""
    for batch in batches:
        rows, length = batch.tokens.shape
        pieces = math.ceil(rows / max(1, LOGIT_BYTES // (4 * vocab * length)))
        yield from (TokenBatch(*part) for part in zip(*(field.chunk(pieces) for field in batch), strict=True))


class Ends:
    """How forward passes end: before the head, which then makes logits of some positions at a time, or with logits.

    Args:
        head: of the model, None where its logits come whole.
    """

    def __init__(self, model: HookedModel, head: SplitHead | None) -> None:
        self.model, self.head, self.reference = model, head, Reference()

    @classmethod
    def of(cls, model: HookedModel, sites: Iterable[Site]) -> Ends:
        """The head apart, unless a site is a module's path, which may lie in the head itself."""
        return cls(model, None if any(site.kind == PATH for site in sites) else model.head)

    @property
    def whole_vocab(self) -> int | None:
        """Logits that a position has after a forward pass; None where the head comes apart."""
        return None if self.head is not None else self.model.vocab_size or 1

    def run(self, batch: TokenBatch, edits: Edits) -> Float[Tensor, "R T width"]:
        """One forward pass with edits: what the head reads, or the logits."""
        attention = None if bool(batch.attention.all()) else batch.attention
        with self.model.editing(edits):
            if self.head is None:
                return self.model.logits(batch.tokens, attention_mask=attention)
            return self.model.before_head(batch.tokens, attention_mask=attention)

    def logits(self, rows: Float[Tensor, "n width"]) -> Float[Tensor, "n vocab"]:
        """Logits of some positions."""
        return rows if self.head is None else self.head(rows)

    def positions(self) -> int:
        """Positions whose logits are made at once."""
        return max(1, LOGIT_BYTES // (4 * (self.model.vocab_size or 1)))


@torch.no_grad()
def _measure(
    ends: Ends,
    batch: TokenBatch,
    limits: Mapping[Site, float | None],
    dictionaries: Mapping[str, Dictionary],
    mean: Float[Tensor, " d"],
    sums: DocumentSums,
) -> dict[str, int]:
    """One part of a batch: replaced is the first site of `limits`, read by the dictionaries is the last."""
    site, source = next(iter(limits)), list(limits)[-1]
    editable = EditableRows(batch.usable, limits)
    clean = ends.run(batch, editable.hooks())
    read_rows = editable.acts[source][editable.mask]  # before anything is replaced: the same in every variant
    variants: dict[str, Replace] = {
        "zero": torch.zeros_like,
        "mean": lambda rows: mean.to(rows).expand_as(rows),
        **{name: lambda _, spliced=spliced: spliced(read_rows) for name, spliced in dictionaries.items()},
    }
    edits = {name: Edit.replacing(site, replace).at(editable.mask) for name, replace in variants.items()}
    return counted(score_edits(ends, edits, clean, batch, sums), editable.counts)


def score_edits(
    ends: Ends,
    variants: Mapping[str, Edits],
    clean: Float[Tensor, "R T width"],
    batch: TokenBatch,
    sums: DocumentSums,
) -> int:
    """Add a batch's losses to the sums: its own cross-entropy, and cross-entropy and KL under every variant's edits.

    Args:
        clean: end of the forward pass without edits.

    Returns:
        Positions that predict.
    """
    predicts = predicting(batch).to(clean.device)
    target = batch.tokens.to(clean.device).roll(-1, 1)[predicts]
    rows = {name: ends.run(batch, edits)[predicts] for name, edits in variants.items()}
    parts: dict[str, list[Tensor]] = {name: [] for name in ("ce_clean", *_columns(variants))}
    clean, reference = clean[predicts], ends.reference
    for start in range(0, len(target), ends.positions()):
        some = slice(start, start + ends.positions())
        reference.take(ends.logits(clean[some]), target[some])
        parts["ce_clean"].append(reference.cross_entropy)
        for name, ended in rows.items():
            for column, part in zip(_columns([name]), reference.losses(ends.logits(ended[some])), strict=True):
                parts[column].append(part)
    nothing = [target.new_zeros(0, dtype=torch.float32)]
    columns = {column: torch.cat([*nothing, *found]) for column, found in parts.items()}
    sums.add(batch.doc[predicts.cpu()], {"predictions": torch.ones(len(target)), **columns})
    return len(target)


def _columns(variants: Iterable[str]) -> list[str]:
    """Columns of the sums that variants have."""
    return [f"{loss}_{name}" for name in variants for loss in ("ce", "kl")]


def counted(predictions: int, rows: EditCounts) -> dict[str, int]:
    """Positions of a batch: edited, left alone for what they are or for their norm, and those that predict."""
    return {
        "edited": rows.edited,
        "unedited_special": rows.outside_mask,
        "unedited_norm": rows.above_norm,
        "predictions": predictions,
    }


class Reference:
    """The model's own distributions at some positions, and the losses of others against them.

    Memory is kept from one `take` to the next: fresh pages would cost as much as the arithmetic.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self.logits = self.probabilities = self.mass = torch.empty(0)
        self.target = torch.empty(0, dtype=torch.int64)

    def take(self, logits: Float[Tensor, "n vocab"], target: Int64[Tensor, " n"]) -> None:
        """Set the distributions.

        Args:
            logits: of the model itself.
            target: tokens that come next.
        """
        self.target, self.mass = target, logits.new_empty(len(logits), dtype=torch.float32)
        self.logits = self._room("logits", logits).copy_(logits)
        self.probabilities = self._room("probabilities", logits)
        for some in self._blocks():
            self.mass[some] = log_mass(self.logits[some], self.probabilities[some])
            torch.sub(self.logits[some], self.mass[some, None], out=self.probabilities[some]).exp_()

    @property
    def cross_entropy(self) -> Float[Tensor, " n"]:
        """Of the model itself, in nats."""
        return self.mass - self.logits.gather(1, self.target[:, None])[:, 0]

    def losses(self, logits: Float[Tensor, "n vocab"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Cross-entropy, and KL(own || these) = sum of p (own - these) + log of the masses' ratio, in nats."""
        mass, divergence = torch.empty_like(self.mass), torch.empty_like(self.mass)
        entropy = -logits.gather(1, self.target[:, None])[:, 0].float()
        for some in self._blocks():
            these = self._room("these", logits[some]).copy_(logits[some])
            held = self._room("held", these)
            mass[some] = log_mass(these, held)
            gap = torch.sub(self.logits[some], these, out=held)
            divergence[some] = gap.mul_(self.probabilities[some]).sum(1)
        return entropy.add_(mass), divergence.add_(mass - self.mass)

    def _room(self, name: str, like: Float[Tensor, "n vocab"]) -> Float[Tensor, "n vocab"]:
        """Memory of that shape in fp32."""
        kept = self._kept.get(name)
        if kept is None or kept.numel() < like.numel() or kept.device != like.device:
            self._kept[name] = kept = torch.empty(like.numel(), device=like.device)
        return kept[: like.numel()].view(like.shape)

    def _blocks(self) -> Iterator[slice]:
        rows = max(1, LOSS_BYTES // (4 * max(1, self.logits.shape[1])))
        return (slice(start, start + rows) for start in range(0, len(self.logits), rows))


def log_mass(logits: Float[Tensor, "n vocab"], held: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
    """`logits.logsumexp(1)`, in a tenth of its time on a CPU; `held` is overwritten."""
    largest = logits.amax(1)
    return torch.sub(logits, largest[:, None], out=held).exp_().sum(1).log_().add_(largest)

"""`probe_sweep`: probes of several kinds at any number of sites, heads and dictionaries, from one pass of the model.

sweep = probe_sweep(model, texts, labels, ["resid_post.*"], ["logistic", "mean_difference"])
sweep["resid_post.12"]["logistic"]["auc"]     # Evidence
sweep.plot("auc")                             # against the layer, with nulls and intervals
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from tqdm import tqdm

from ..lab.errors import InputError, unknown
from ..lab.models.hooked_model import HookedModel
from ..lab.models.sites import PATH, Site
from ..lab.runs.read import read
from ..lab.runs.run import Run
from ..lab.sequences import texts_of
from ..lab.streams.activation_stream import ActivationStream, StreamConfig
from ..lab.text.corpus import Corpus
from ..lab.text.tokenization import TextTokenizer
from ..saes.dictionary import Dictionary
from .best_place import Chosen, choose
from .fitting.fits import require_kinds
from .fitting.nulls import TextTokens, shuffled_model
from .labels import POOLINGS, Labels
from .measure import MeasureConfig, Measured, Units, counted, measure, null_scores
from .pooling import PooledTexts

BATCH = 512
"""Rows of the stream's batches; its buffer holds two of them, since texts are put together again anyway."""
MOST_BYTES = 4 << 30
"""What the tokens of all texts at all sites may take for kinds that read bags."""


@dataclass(frozen=True)
class ReadConfig:
    """How texts become rows."""

    pooling: Literal["last", "mean", "max"] = "last"
    """One row a text: its last token, the mean over tokens, or each coordinate's largest value."""
    tokens: int = 128
    """Tokens of a text that are read; the rest is cut off."""
    batch: int = 16
    """Texts a forward pass."""
    heads: bool = False
    """Give every head of a `z` site probes of its own."""
    max_norm_multiple: float | None = None
    """Leave out tokens longer than this multiple of the site's median norm (10 is what dictionaries train on)."""
    random_features: bool = True
    """Measure the null of random token vectors."""
    shuffled_model: bool = False
    """Measure the null of a model with shuffled weights: one more pass over the texts."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS[:3]:
            raise unknown("pooling", self.pooling, POOLINGS[:3])
        if self.tokens < 1 or self.batch < 1:
            raise InputError(f"tokens and batch must be at least 1, got {self.tokens} and {self.batch}")


@dataclass(frozen=True, eq=False)
class ProbeSweep:
    """Scores of probes, by place and kind."""

    measured: dict[str, dict[str, Measured]]
    """By place (`resid_post.12`, `z.3 head 2`, `resid_post.12 latents`), then by kind."""
    facts: dict[str, Any]
    """Model, pooling, class balance, seconds (JSON values)."""
    units: dict[str, Units]
    """The rows or bags that were probed, by place; of a place read both ways, the rows."""
    config: MeasureConfig = field(default_factory=MeasureConfig)
    """Settings that the probes were measured with."""

    def __getitem__(self, place: str) -> dict[str, Measured]:
        if place not in self.measured:
            raise unknown("place that was probed", place, self.measured)
        return self.measured[place]

    @property
    def scores(self) -> list[str]:
        """Names of the scores, the main one first."""
        return list(next(iter(next(iter(self.measured.values())).values())).scores)

    def chosen(self, kind: str) -> Chosen:
        """The place where a kind does best, chosen on half of the tested units and scored on the other (see `choose`).

        Raises:
            InputError: a kind that was not probed.
        """
        held = {place: kinds[kind] for place, kinds in self.measured.items() if kind in kinds}
        if not held:
            raise unknown("kind that was probed", kind, next(iter(self.measured.values())))
        return choose(held, next(iter(self.units.values())).labels, self.config)

    def best(self, kind: str) -> str:
        """The name of the place that `chosen` gives."""
        return self.chosen(kind).place

    def table(self) -> list[dict[str, Any]]:
        """One line for each place, kind and score, with interval and nulls."""
        return [
            {"place": place, "kind": kind, "score": name, "value": one.value, "interval": one.interval, **one.nulls}
            for place, kinds in self.measured.items()
            for kind, found in kinds.items()
            for name, one in found.scores.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values: facts, and every Evidence by place and kind."""
        return {
            **self.facts,
            "probes": {
                place: {
                    kind: {name: one.to_json() for name, one in found.scores.items()} for kind, found in kinds.items()
                }
                for place, kinds in self.measured.items()
            },
        }

    def plot(self, score: str | None = None) -> Any:
        """A plotly figure of one score against the layer (see `sweep_figure`)."""
        from .sweep_figure import sweep_figure

        return sweep_figure(self, score)


def expand_sites(model: HookedModel, patterns: Iterable[str | Site]) -> list[Site]:
    """Sites that patterns such as `resid_post.*` or `z.1[0-9]` name, each once, in the order of the patterns.

    Raises:
        InputError: a pattern that no site of the model matches, a site that it has not, or attention patterns, which
            are no rows.
    """
    found: dict[Site, None] = {}
    for pattern in patterns:
        text = str(pattern)
        wild = any(sign in text for sign in "*?[") and not text.startswith(PATH)
        tokenwise = [name for name in model.sites() if not name.startswith("pattern.")]
        names = fnmatch.filter(tokenwise, text) if wild else [text]
        if not names:
            raise unknown("pattern of sites", text, [f"{kind}.*" for kind in model.wiring.kinds])
        found.update(dict.fromkeys(map(model.site, names)))
    for site in found:
        if site.kind == "pattern":
            model.width(site)  # refused there
    return list(found)


def read_texts(
    model: HookedModel,
    texts: Sequence[str],
    consumers: Sequence[PooledTexts],
    config: ReadConfig,
    run: Run | None = None,
    *,
    progress: bool = False,
) -> None:
    """Let consumers gather these texts from one pass of the model; in a run, one that was killed goes on.

    Raises:
        InputError: a text without a token, or activations that are not finite.
    """
    stream = text_stream(model, texts, [site for one in consumers for site in one.sites], config)
    read(stream, consumers, run, description="read texts", progress=progress)


def text_stream(
    model: HookedModel, texts: Sequence[str], sites: Sequence[Site], config: ReadConfig
) -> ActivationStream:
    """One pass over the texts, each a document of its own."""
    context = config.tokens + int(TextTokenizer(model.tokenizer).bos is not None)
    corpus = Corpus(texts_of(texts), model.tokenizer, context=context, pack=False, long="truncate",
                    batch_rows=config.batch, keep_first=True)  # fmt: skip
    options = StreamConfig(BATCH, 2 * BATCH, epochs=1, max_norm_multiple=config.max_norm_multiple)
    return ActivationStream(model, corpus, list(dict.fromkeys(sites)), config=options)


def probe_sweep(
    model: HookedModel,
    texts: Sequence[str],
    labels: Labels | Sequence[Any],
    sites: Sequence[str | Site],
    kinds: Sequence[str],
    read: ReadConfig | None = None,
    config: MeasureConfig | None = None,
    *,
    dictionaries: Sequence[Dictionary] = (),
    run: Run | None = None,
    progress: bool = False,
) -> ProbeSweep:
    """Read the texts once, then fit and measure every kind of probe at every place.

    Args:
        labels: one for each text; without groups of their own, equal texts are one group.
        sites: names or patterns (`resid_post.*`). With dictionaries, their own sites need not be named.
        kinds: names in `probes.fits.KINDS`.
        dictionaries: probe their codes too.
        run: where reading leaves checkpoints.

    Raises:
        InputError: see `expand_sites`, `PooledTexts` and `measure`.
    """
    read, config = read or ReadConfig(), config or MeasureConfig()
    require_kinds(kinds)
    texts = texts_of(texts)
    told = labels if isinstance(labels, Labels) else Labels.of(labels, groups=texts)
    if len(told) != len(texts):
        raise InputError(f"{len(texts)} texts and {len(told)} labels were given: give one label a text")
    config.splits(told)  # what cannot be split should not wait for the model
    started = time.perf_counter()
    tokens = read_tokens(model, texts, read)
    gathered = _gather(model, texts, told, sites, kinds, read, dictionaries, run, tokens, progress)
    read_at = time.perf_counter()
    others: dict[str, Units] = {}
    if read.shuffled_model:
        untaught = shuffled_model(model, config.seed)
        others = _gather(untaught, texts, told, sites, kinds, read, (), None, tokens, progress)
    nulls = _Nulls(tokens, kinds, read, config, others, model.d_model)
    measured = {
        place: measure(units, _kinds(kinds, units), config, nulls=nulls.of(place, units))
        for place, units in tqdm(gathered.items(), desc="probe", unit="place", disable=not progress)
    }
    merged: dict[str, dict[str, Measured]] = {}
    for place, found in measured.items():
        merged.setdefault(place.removesuffix(BAG), {}).update(found)
    facts = {
        "model": model.name,
        "texts": len(texts),
        "classes": dict(zip(told.classes, told.counts.tolist(), strict=True)) if told.classes else {},
        "groups": int(told.groups.unique().numel()),
        "read": asdict(read),
        "measure": asdict(config),
        "seconds": {"read": read_at - started, "fit": time.perf_counter() - read_at},
    }
    rows = {place.removesuffix(BAG): units for place, units in reversed(gathered.items())}
    return ProbeSweep(merged, facts, rows, config)


BAG = " (bags)"
"""After the place of units that are bags, while they are gathered beside rows of the same place."""


def _gather(
    model: HookedModel,
    texts: Sequence[str],
    labels: Labels,
    sites: Sequence[str | Site],
    kinds: Sequence[str],
    read: ReadConfig,
    dictionaries: Sequence[Dictionary],
    run: Run | None,
    tokens: TextTokens,
    progress: bool,
) -> dict[str, Units]:
    """Rows, and bags for kinds that read those, of every place."""
    named = expand_sites(model, sites)
    make = lambda pooling, name: PooledTexts(  # noqa: E731
        labels, named, model, pooling=pooling, dictionaries=dictionaries, heads=read.heads, name=name
    )
    consumers = [make(read.pooling, "texts")] if set(kinds) != {"attention"} else []
    if "attention" in kinds:
        width = sum(model.width(site) for site in named) + sum(one.n_latents for one in dictionaries)
        if (size := 4 * width * len(tokens.ids)) > MOST_BYTES:
            raise InputError(
                f"attention keeps every token, {size / 1e9:.1f} GB here: name fewer sites, or read fewer tokens a text"
            )
        consumers.append(make("bag", "bags"))
    read_texts(model, texts, consumers, read, run, progress=progress)
    found: dict[str, Units] = {}
    for one in consumers:
        found |= {place + (BAG if one.pooling == "bag" else ""): units for place, units in one.gathered().items()}
    return found


def _kinds(kinds: Sequence[str], units: Units) -> list[str]:
    return [kind for kind in kinds if (kind == "attention") == (units.source.pooling == "bag")]


def read_tokens(model: HookedModel, texts: Sequence[str], read: ReadConfig) -> TextTokens:
    """The tokens that will be read.

    Raises:
        InputError: a text without one.
    """
    texts = texts_of(texts)
    tokens = TextTokens.of(TextTokenizer(model.tokenizer), texts, read.tokens)
    held = torch.bincount(tokens.text, minlength=len(texts))
    if len(empty := (held == 0).nonzero()):
        first = int(empty[0])
        raise InputError(
            f"{len(empty)} texts have no token to read, the first is number {first} ({texts[first]!r:.60})"
        )
    return tokens


class _Nulls:
    """Nulls that many places share, each measured once."""

    def __init__(
        self,
        tokens: TextTokens,
        kinds: Sequence[str],
        read: ReadConfig,
        config: MeasureConfig,
        others: Mapping[str, Units],
        d_model: int | None,
    ) -> None:
        self._tokens, self._kinds, self._config, self._others = tokens, kinds, config, others
        self._random, self._d_model = read.random_features, d_model
        self._known: dict[tuple[Any, ...], dict[str, dict[str, float]]] = {}

    def of(self, place: str, units: Units) -> dict[str, Units | Mapping[str, Mapping[str, float]]]:
        """Nulls of probes of these units; random features are as wide as the activations there."""
        kinds, labels, source = _kinds(self._kinds, units), units.labels, units.source
        found: dict[str, Units | Mapping[str, Mapping[str, float]]] = {
            "token_count": self._shared(("token_count", *kinds), kinds, lambda: counted(labels))
        }
        if self._random:
            d = units.x.shape[1] if not source.dictionary else self._d_model or units.x.shape[1]
            found["random_features"] = self._shared(
                (d, source.pooling, *kinds),
                kinds,
                lambda: self._tokens.features(labels, d, source.pooling, self._config.seed),
            )
        if place in self._others:
            found["shuffled_model"] = null_scores(self._others[place], kinds, self._config)
        return found

    def _shared(
        self, key: tuple[Any, ...], kinds: Sequence[str], columns: Callable[[], Units]
    ) -> dict[str, dict[str, float]]:
        if key not in self._known:
            self._known[key] = null_scores(columns(), kinds, self._config)
        return self._known[key]

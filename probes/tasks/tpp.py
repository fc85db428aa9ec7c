"""Targeted probe perturbation and spurious correlation removal: does erasing a concept's latents erase it alone?

Linear probes are fitted on activations, means over the tokens of a text. The latents that carry most of a probe's
evidence are set to zero with the error term kept, which takes `z_f W_dec[f]` from the activation, and the probes are
read again (SAEBench, Karvonen et al. 2025, arXiv 2503.09532, section 4; Marks et al. 2024, arXiv 2403.19647).

    effect of latent f on a class    max(mean of z_f over the class - mean over the others, 0) * (W_dec[f] . w)
    TPP    mean over classes i of (A_i - A_i,i) - mean over j != i of (A_j - A_i,j)
    SCR    (A_erased - A_biased) / (A_oracle - A_biased)

A_i,j is the accuracy of the probe of class j once the latents of class i are zero, with positives and negatives of
equal weight. Both scores are known to fail: TPP falls while a dictionary is still getting better, and SCR at large
numbers of latents goes against the other measures (Chanin 2026, arXiv 2605.18229). Read them beside their nulls, and
choose no dictionary by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError
from ...lab.evidence import Evidence, bootstrap
from ...lab.models.hooked_model import HookedModel
from ...lab.rng import derive_seed, generator
from ...lab.sequences import flags_of, integers_of
from ...saes.dictionary import Dictionary
from ...saes.edit import written
from ..fitting.linear import LinearFit, LinearProbes, fit_linear
from ..latents import check_rewrites, decoder, dense_codes, matched, nulls_of, text_means
from ..prompts import read_texts
from .concepts import load_classes, load_crossed

Statistic = Callable[[np.ndarray], float]
"""From weights of the test rows to a score."""

CHANCE = ("accuracy", "biased", "oracle")
"""Scores that are plain accuracies, one half by chance."""
SMALLEST_GAP = 1e-3
"""SCR is 0 where the oracle is no more than this above the biased probe."""
RESAMPLES = 200
"""Of the bootstrap: every resample scores all probes anew."""
TPP_NOTE = "TPP falls as training goes on (Chanin 2026, arXiv 2605.18229): choose no dictionary by it"
SCR_NOTE = "SCR goes against other measures at many latents (Chanin 2026, arXiv 2605.18229): choose no dictionary by it"


@dataclass(frozen=True)
class ErasureConfig:
    """Options that TPP and SCR have in common."""

    latents: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 500)
    """Numbers of latents to zero; those above the dictionary's own number are left out."""
    test_share: float = 0.3
    """Share of the texts that accuracies are taken on; probes and latents come from the others."""
    fit: LinearFit = field(default_factory=LinearFit)
    """How probes are fitted."""
    tokens: int = 64
    """Tokens of a text that are read; their mean is what is probed."""
    batch: int = 16
    """Texts a forward pass."""
    seed: int = 0
    """Of drawing texts, the split, the fits, the nulls and the bootstrap."""

    def __post_init__(self) -> None:
        if not self.latents or min(self.latents) < 1:
            raise InputError(f"latents needs numbers of at least 1, got {self.latents}")
        if not 0 < self.test_share < 1:
            raise InputError(f"test_share is a share between 0 and 1, got {self.test_share}")
        if self.tokens < 1 or self.batch < 1:
            raise InputError(f"tokens and batch must be at least 1, got {self.tokens} and {self.batch}")


@dataclass(frozen=True)
class TPPConfig(ErasureConfig):
    """Which classes TPP is measured on."""

    families: tuple[str, ...] = ("news_class", "it_tick", "code")
    """Families of data sets whose positives are the classes (see `concepts`)."""
    per_class: int = 100
    """Texts of every class."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_data("families", self.families, "per_class", self.per_class)


@dataclass(frozen=True)
class SCRConfig(ErasureConfig):
    """Which pairs of labels SCR is measured on."""

    pairs: tuple[str, ...] = (
        "21_headline_istrump+23_headline_ischina",
        "57_wikidatais_alive+62_wikidata_occupation_ispolitician",
    )
    """Pairs of data sets that label common texts (see `concepts`). Few cross, and with few texts: read the intervals,
    and that the oracle is above the biased probe at all."""
    per_cell: int = 120
    """Texts of each of the four combinations of labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_data("pairs", self.pairs, "per_cell", self.per_cell)


def measure_tpp(
    model: HookedModel, dictionary: Dictionary, config: TPPConfig | None = None, progress: bool = False
) -> dict[str, Evidence]:
    """`tpp_n2`, `tpp_n5` and so on, mean over families, and `tpp_accuracy` of the probes before anything is zero.

    Nulls are random latents of the same firing rates, and the same procedure with an untrained dictionary and
    with principal components. Higher is better, 0.5 the most for perfect probes.

    Raises:
        InputError: the dictionary is not of this model, or is a transcoder or a crosscoder; unknown families.
    """
    config = config or TPPConfig()
    check_rewrites(dictionary, "TPP")
    scores = []
    for name in tqdm(config.families, desc="tpp", unit="family", disable=not progress):
        data = load_classes(name, config.per_class, config.seed)
        one_hot = torch.nn.functional.one_hot(torch.tensor(data.labels)).bool()
        x, text = _read(model, dictionary, data.texts, config)
        scores.append(tpp(x, one_hot, dictionary, config, text=text))
    return _evidence("tpp", scores, TPP_NOTE, config.seed)


def measure_scr(
    model: HookedModel, dictionary: Dictionary, config: SCRConfig | None = None, progress: bool = False
) -> dict[str, Evidence]:
    """`scr_n2`, `scr_n5` and so on, mean over pairs; `scr_biased` and `scr_oracle`, the accuracies they lie between.

    Nulls as in `measure_tpp`. Higher is better: 0 the biased probe, 1 the oracle; below 0 where zeroing did harm.

    Raises:
        InputError: as `measure_tpp`, or a pair whose labels do not cross.
    """
    config = config or SCRConfig()
    check_rewrites(dictionary, "SCR")
    scores = []
    for name in tqdm(config.pairs, desc="scr", unit="pair", disable=not progress):
        data = load_crossed(name, config.per_cell, config.seed)
        x, text = _read(model, dictionary, data.texts, config)
        first, second = torch.tensor(data.first), torch.tensor(data.second)
        scores.append(scr(x, first, second, dictionary, config, text=text))
    return _evidence("scr", scores, SCR_NOTE, config.seed)


@dataclass(frozen=True)
class Erasures:
    """Scores of one data set as statistics of its test rows, so that they can be bootstrapped."""

    rows: int
    """Test rows."""
    scores: dict[str, Statistic]
    """By name, such as `n10`."""
    nulls: dict[str, dict[str, Statistic]]
    """The same scores of every null."""


def tpp(
    x: Float[Tensor, "rows d"],
    labels: Bool[Tensor, "texts classes"],
    dictionary: Dictionary,
    config: ErasureConfig | None = None,
    nulls: Mapping[str, Dictionary] | None = None,
    text: Int[Tensor, " rows"] | None = None,
) -> Erasures:
    """TPP of one set of texts.

    Args:
        labels: which classes every text has: one, or any number where classes are independent attributes.
        text: the text of every row; probes read means over the rows of a text. None makes every row one.
        nulls: dictionaries to measure beside it; None fits an untrained one and principal components.

    Raises:
        InputError: fewer than two classes, a class that every row has or none, or a combination that one row alone has.
    """
    config, classes = config or ErasureConfig(), flags_of(labels, "labels")
    text = None if text is None else integers_of(text, "texts of rows")
    if classes.ndim != 2 or classes.shape[1] < 2:
        raise InputError(f"TPP compares classes: give labels [rows, classes] of at least 2, got {list(classes.shape)}")
    train, test = _split(classes.unique(dim=0, return_inverse=True)[1], config)
    rows = _Rows(x, text, train, test)
    probes = fit_linear(rows.means[train], classes[train], config.fit, generator(config.seed, "tpp probes"))
    odds = probes.odds(rows.means[test])

    def statistics(subject: Dictionary, match: bool = False) -> dict[str, Statistic]:
        erasing = _Erasing(subject, rows, probes)
        ranked = [erasing.ranked(torch.relu(erasing.difference(classes[train, c])), c) for c in range(classes.shape[1])]
        ranked = erasing.matches(ranked, config) if match else ranked
        statistics_by_size = {}
        for n in _numbers(config, subject):
            after = torch.stack([odds - erasing.lost(order[:n]) for order in ranked])
            statistics_by_size[f"n{n}"] = _tpp_statistic(odds, after, classes[test])
        return statistics_by_size

    null_dictionaries = nulls_of(dictionary, rows.fitted, config.seed) if nulls is None else nulls
    return Erasures(
        len(test),
        statistics(dictionary) | {"accuracy": lambda weights: float(_accuracies(odds, classes[test], weights).mean())},
        {"random_latents": statistics(dictionary, match=True), "chance": dict.fromkeys(CHANCE, lambda _: 0.5)}
        | {name: statistics(null) for name, null in null_dictionaries.items()},
    )


def scr(
    x: Float[Tensor, "rows d"],
    first: Bool[Tensor, " texts"],
    second: Bool[Tensor, " texts"],
    dictionary: Dictionary,
    config: ErasureConfig | None = None,
    nulls: Mapping[str, Dictionary] | None = None,
    text: Int[Tensor, " rows"] | None = None,
) -> Erasures:
    """SCR of one set of texts with two labels; `text` as in `tpp`.

    A probe is fitted where both labels agree, and so cannot tell them apart. It is meant for the label on which it does
    worse where they disagree; the latents of the other are zeroed, ranked by the size of their effect of either sign.

    Raises:
        InputError: a combination of the labels with fewer than two rows.
    """
    config = config or ErasureConfig()
    first, second = flags_of(first, "first labels"), flags_of(second, "second labels")
    text = None if text is None else integers_of(text, "texts of rows")
    train, test = _split(2 * first.long() + second.long(), config, classes=4)
    both = torch.stack([first, second], 1)
    agree = train[first[train] == second[train]]
    differ = train[first[train] != second[train]]
    rows = _Rows(x, text, train, test)
    means = rows.means
    biased = fit_linear(means[agree], both[agree, :1], config.fit, generator(config.seed, "biased probe"))
    oracle = fit_linear(means[train], both[train], config.fit, generator(config.seed, "oracle probes"))
    right = ((biased.odds(means[differ]) > 0) == both[differ]).float().mean(0)
    meant = int(right.argmin())
    spurious, wanted = 1 - meant, both[test, meant : meant + 1]
    odds, best = biased.odds(means[test]), oracle.odds(means[test])[:, meant : meant + 1]

    def statistics(subject: Dictionary, match: bool = False) -> dict[str, Statistic]:
        erasing = _Erasing(subject, rows, biased)
        effect = erasing.difference(both[train, spurious]) * (erasing.W_dec @ oracle.weight[spurious])
        ranked = [_strongest(effect.abs())]
        ranked = erasing.matches(ranked, config) if match else ranked
        return {
            f"n{n}": _scr_statistic(odds, odds - erasing.lost(ranked[0][:n]), best, wanted)
            for n in _numbers(config, subject)
        }

    null_dictionaries = nulls_of(dictionary, rows.fitted, config.seed) if nulls is None else nulls
    accuracies = {name: lambda weights, o=o: float(_accuracies(o, wanted, weights)[0])
                  for name, o in {"biased": odds, "oracle": best}.items()}  # fmt: skip
    return Erasures(
        len(test),
        statistics(dictionary) | accuracies,
        {"random_latents": statistics(dictionary, match=True), "chance": dict.fromkeys(CHANCE, lambda _: 0.5)}
        | {name: statistics(null) for name, null in null_dictionaries.items()},
    )


class _Rows:
    """Rows of a split set of texts."""

    def __init__(self, x: Tensor, text: Tensor | None, train: Tensor, test: Tensor) -> None:
        self.x, self.train, self.test = x, train, test
        self.text = torch.arange(len(x)) if text is None else text
        self.means = text_means(x, self.text)
        """One row a text."""
        self.fitted = x[torch.isin(self.text, train)]
        """Rows of training texts."""


class _Erasing:
    """One dictionary's codes of the texts, and what zeroing latents takes from the log odds of some probes.

    Zeroing a latent at every token takes its mean code times its decoder row from the mean activation.
    """

    def __init__(self, dictionary: Dictionary, rows: _Rows, probes: LinearProbes) -> None:
        codes = dense_codes(dictionary, rows.x, rows.text)
        self.train, self.test = codes[rows.train], codes[rows.test]
        self.W_dec = decoder(dictionary, rows.x)
        self.written = self.W_dec @ probes.weight.T
        """What one unit of each latent adds to each log odds [n_latents, probes]."""

    def difference(self, positive: Bool[Tensor, " train"]) -> Float[Tensor, " n_latents"]:
        """Mean code over positives less that over negatives, on the training rows."""
        return self.train[positive].mean(0) - self.train[~positive].mean(0)

    def ranked(self, rise: Float[Tensor, " n_latents"], probe: int) -> Int[Tensor, " some"]:
        """Latents by falling effect on a probe, those that do not speak for it left out."""
        return _strongest(rise * self.written[:, probe])

    def matches(self, ranked: Sequence[Tensor], config: ErasureConfig) -> list[Tensor]:
        """Random latents of the firing rates of the ranked ones, in their order."""
        rng = np.random.default_rng(derive_seed(config.seed, "random latents"))
        rates = (self.train != 0).float().mean(0)
        return [matched(rates, order[: max(config.latents)], rng) for order in ranked]

    def lost(self, latents: Int[Tensor, " some"]) -> Float[Tensor, "test probes"]:
        """The loss of log odds of every test row when these latents are zero."""
        return written(self.test, self.written, latents)


def _strongest(effect: Float[Tensor, " n"]) -> Int[Tensor, " some"]:
    """Indexes of positive effects, the largest first, ties by index."""
    return effect.argsort(descending=True, stable=True)[: int((effect > 0).sum())]


def _numbers(config: ErasureConfig, dictionary: Dictionary) -> list[int]:
    fitting = [n for n in config.latents if n <= dictionary.n_latents]
    return fitting or [dictionary.n_latents]


def _accuracies(odds: Tensor, labels: Tensor, weights: np.ndarray) -> np.ndarray:
    """Accuracy of every probe [probes], positives and negatives of equal weight; nan where a draw lacks one."""
    right, positive = ((odds > 0) == labels).numpy().astype(float), labels.numpy().astype(float)
    with np.errstate(invalid="ignore"):
        hits, missed = (weights @ (right * side) / (weights @ side) for side in (positive, 1 - positive))
    return (hits + missed) / 2


def _tpp_statistic(odds: Tensor, after: Float[Tensor, "erased test probes"], labels: Tensor) -> Statistic:
    def statistic(weights: np.ndarray) -> float:
        drops = _accuracies(odds, labels, weights) - np.stack([_accuracies(part, labels, weights) for part in after])
        own = np.eye(len(drops), dtype=bool)
        return float(drops[own].mean() - drops[~own].mean())

    return statistic


def _scr_statistic(odds: Tensor, after: Tensor, best: Tensor, labels: Tensor) -> Statistic:
    def statistic(weights: np.ndarray) -> float:
        base, erased, oracle = (float(_accuracies(o, labels, weights)[0]) for o in (odds, after, best))
        return (erased - base) / (oracle - base) if oracle - base > SMALLEST_GAP else 0.0

    return statistic


def _split(cells: Int[Tensor, " rows"], config: ErasureConfig, classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Indexes [train] and [test], the share of every class alike."""
    counts = torch.bincount(cells, minlength=classes or 2)
    if int(counts.min()) < 2:
        raise InputError(f"every class needs at least 2 rows to be split, got {counts.tolist()}: give more texts")
    rng = generator(config.seed, "erasure split")
    train, test = [], []
    for c in range(len(counts)):
        rows = (cells == c).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=rng)]
        held = min(len(rows) - 1, max(1, round(config.test_share * len(rows))))
        test.append(rows[:held])
        train.append(rows[held:])
    return torch.cat(train), torch.cat(test)


def _read(model: HookedModel, dictionary: Dictionary, texts: list[str], config: ErasureConfig) -> tuple[Tensor, Tensor]:
    """The activations of every text's tokens, and the text of each row."""
    place = dictionary.check(model)
    site, limit = place.site, place.source.norm_limit
    return read_texts(model, site, texts, tokens=config.tokens, norm_limit=limit, batch=config.batch)


def _evidence(prefix: str, sets: Sequence[Erasures], note: str, seed: int) -> dict[str, Evidence]:
    """The mean over data sets of every score, with an interval over all their test texts."""
    ends = np.cumsum([result.rows for result in sets])[:-1]

    def mean(statistics: Sequence[Statistic]) -> Statistic:
        return lambda weights: float(
            np.mean([statistic(part) for statistic, part in zip(statistics, np.split(weights, ends), strict=True)])
        )

    rows, scores = sum(result.rows for result in sets), {}
    ones = np.ones(rows)
    for name in sets[0].scores:
        value = mean([result.scores[name] for result in sets])
        null_values = {null: mean([result.nulls[null][name] for result in sets])(ones)
                  for null in sets[0].nulls if name in sets[0].nulls[null]}  # fmt: skip
        full = f"{prefix}_{name}"
        scores[full] = Evidence(
            full, value(ones), bootstrap(value, rows, seed=seed, resamples=RESAMPLES), null_values, rows, "test texts",
            "texts of a stratified split; probes, latents and nulls come from the others", "higher", note,
        )  # fmt: skip
    return scores


def _check_data(kind: str, names: tuple[str, ...], size: str, n: int) -> None:
    if not names:
        raise InputError(f"no {kind} are named: give some, or leave the default")
    if n < 4:
        raise InputError(f"{size} must be at least 4, got {n}")

"""Feature absorption and splitting on first letters (Chanin et al. 2024, arXiv 2409.14507; SAEBench, arXiv 2503.09532).

A linear probe finds the direction p of "begins with this letter". The latents that tell the letter best are its main
latents; more than one is splitting. On words that the probe gets right, the letter may nonetheless be missing from the
main latents because a latent of the word itself, or of a few words, writes it: absorption. Both published measures
are taken over the test words that the probes get right, which call the letter whose probe is surest (even odds would be
no fair threshold for one letter of two dozen):

    full       share of words on which every main latent is silent, and the latent with the largest projection on p
               has a cosine of at least 0.025 with p and at least 0.4 of the activation's projection
    fraction   A = projection of the three strongest other latents with a cosine of at least 0.1, M = that of the main
               latents, T = that of the activation. 0 where M >= T or A < 0.4 T; 1 where M <= 0; otherwise
               min(A, T - M) / (min(A, T - M) + M)

The projection of a latent is z_f (W_dec[f] . p), that of the activation (x - b_dec) . p: what the latents and the error
term add up to. Which latents are main ones is settled on training words: an L1 probe on all latents ranks them by
weight, and one more is taken as long as cross-validated F1 rises by at least 0.03.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError
from ...lab.evidence import Evidence, bootstrap
from ...lab.models.hooked_model import HookedModel
from ...lab.rng import derive_seed, generator
from ...lab.sequences import integers_of
from ...saes.dictionary import Dictionary
from ..fitting.linear import LinearFit, LinearProbes, fit_linear
from ..fitting.sparse import f1
from ..latents import check_rewrites, decoder, dense_codes, nulls_of
from ..prompts import read_marked
from .first_letters import letter_prompts, vocabulary_words

SILENT = 1e-8
FULL_COSINE, FULL_SHARE = 0.025, 0.4
FRACTION_COSINE, FRACTION_SHARE, ABSORBERS = 0.1, 0.4, 3
FOLDS = 4
"""Of the cross-validation that settles how many main latents a letter has."""


@dataclass(frozen=True)
class AbsorptionConfig:
    """How absorption is measured."""

    per_letter: int = 100
    """Words of the vocabulary for every letter, at most."""
    shots: int = 1
    """Answered words before the one that is asked for."""
    test_share: float = 0.3
    """Share of the words that everything is measured on; probes and main latents come from the others."""
    least_words: int = 20
    """Letters with fewer words are left out."""
    least_f1: float = 0.6
    """Letters whose probe has a lower F1 on test words are left out: the model may not know them there."""
    least_letters: int = 20
    """Letters that must be left, or nothing is measured."""
    most_latents: int = 10
    """Main latents a letter may have."""
    least_rise: float = 0.03
    """Rise of F1 that one more main latent must bring."""
    probe: LinearFit = field(default_factory=lambda: LinearFit(1e-2, 1e-3, 3e-3, 128, 50))
    """How the probes on activations are fitted."""
    ranking: LinearFit = field(default_factory=lambda: LinearFit(1e-2, 1e-5, 1e-2, 4096, 50, False))
    """How the probes on all latents are fitted that rank them."""
    batch: int = 16
    """Prompts a forward pass."""
    seed: int = 0
    """Of the words, the split, the fits, the nulls and the bootstrap."""

    def __post_init__(self) -> None:
        for name in ("per_letter", "batch", "most_latents", "least_letters"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.test_share < 1:
            raise InputError(f"test_share is a share between 0 and 1, got {self.test_share}")
        if self.shots < 0 or self.least_words < 2 * FOLDS:
            got = f"{self.shots} and {self.least_words}"
            raise InputError(f"shots must be at least 0 and least_words at least {2 * FOLDS}, got {got}")


@dataclass(frozen=True)
class Absorption:
    """Absorption of first letters in one dictionary."""

    letters: list[int]
    """The letters measured, as the labels have them."""
    main: list[list[int]]
    """Main latents of each, the best first."""
    full: Float[np.ndarray, " words"]
    """1 where a test word is fully absorbed, else 0; words that the probe gets right only."""
    fraction: Float[np.ndarray, " words"]
    """Absorbed fraction of the same words."""
    letter: Int[np.ndarray, " words"]
    """The letter of each."""

    @property
    def scores(self) -> dict[str, float]:
        """Means over words (`full`, `fraction`) and over letters (`split`: main latents of a letter)."""
        means = {name: float(values.mean()) if len(values) else float("nan")
                 for name, values in {"full": self.full, "fraction": self.fraction}.items()}  # fmt: skip
        return means | {"split": float(np.mean([len(latents) for latents in self.main]))}


@dataclass(frozen=True)
class LetterTask:
    """Rows of activations by letter, split, with a probe of every letter that has one."""

    train: Float[Tensor, "train d"]
    test: Float[Tensor, "test d"]
    train_letters: Int[Tensor, " train"]
    test_letters: Int[Tensor, " test"]
    letters: list[int]
    """Letters whose probe is good enough."""
    probes: LinearProbes
    """Of those letters, in their order."""
    f1: dict[int, float]
    """F1 of the probe of every letter with words enough, on test words."""


def measure_absorption(
    model: HookedModel, dictionary: Dictionary, config: AbsorptionConfig | None = None, progress: bool = False
) -> dict[str, Evidence]:
    """`absorption_full`, `absorption_fraction`, `absorption_split`, `absorption_letters` and `absorption_probe_f1`.

    The last two say how well the model's activations tell letters at all. Nulls: an untrained dictionary, principal
    components, and shuffled letters, with probes and main latents fitted to those. The smaller the absorption the
    better; a dictionary whose latents say nothing absorbs nothing, so read it beside splitting and the nulls.

    Raises:
        InputError: the dictionary is not of this model, or is a transcoder or a crosscoder; a tokenizer without words;
            or fewer than `least_letters` letters whose probe reaches `least_f1`.
    """
    config = config or AbsorptionConfig()
    check_rewrites(dictionary, "absorption")
    site = dictionary.check(model).site
    words = vocabulary_words(model.tokenizer, config.per_letter, config.seed)
    prompts = letter_prompts(model.tokenizer, words, config.shots, config.seed)
    x = read_marked(model, site, prompts, batch=config.batch, progress=progress)
    task = letter_task(x, [ord(word[0]) - ord("a") for word in words], config)
    found = absorption(task, dictionary, config)
    beside: dict[str, Absorption] = {}
    nulls = nulls_of(dictionary, task.train, config.seed)
    for name, null in tqdm(nulls.items(), desc="absorption nulls", disable=not progress):
        beside[name] = absorption(task, null, config)
    beside["shuffled_letters"] = absorption(shuffled(task, config), dictionary, config)
    return _evidence(task, found, beside, config)


def letter_task(
    x: Float[Tensor, "rows d"], letters: Sequence[int] | Int[Tensor, " rows"], config: AbsorptionConfig | None = None
) -> LetterTask:
    """Split rows by letter and fit a probe for each.

    Raises:
        InputError: fewer than `least_letters` letters whose probe reaches `least_f1` on test rows.
    """
    config = config or AbsorptionConfig()
    y = integers_of(letters, "letters")
    if len(y) != len(x):
        raise InputError(f"{len(x)} rows and {len(y)} letters were given: give one letter a row")
    known = [letter for letter, count in enumerate(torch.bincount(y).tolist()) if count >= config.least_words]
    if len(known) < max(2, config.least_letters):
        raise InputError(
            f"{len(known)} letters have {config.least_words} words, and absorption needs {config.least_letters}: "
            "give a model with a larger vocabulary, or smaller least_words and least_letters"
        )
    train, test = _split(y, known, config)
    told = torch.stack([y == letter for letter in known], 1)
    probes = fit_linear(x[train], told[train], config.probe, generator(config.seed, "letter probes"))
    margins, ones = (_called(probes, x[test]).float() - 0.5).numpy(), np.ones(len(test))
    scores = {letter: f1(margins[:, i], told[test, i].numpy(), ones) for i, letter in enumerate(known)}
    good = [i for i, letter in enumerate(known) if scores[letter] >= config.least_f1]
    if len(good) < config.least_letters:
        raise InputError(
            f"only {len(good)} of {len(known)} letters have a probe with F1 of at least {config.least_f1} here, and "
            f"absorption needs {config.least_letters}: take an earlier site, a larger model, or a smaller least_letters"
        )
    kept = LinearProbes(probes.weight[good], probes.bias[good])
    return LetterTask(x[train], x[test], y[train], y[test], [known[i] for i in good], kept, scores)


def shuffled(task: LetterTask, config: AbsorptionConfig) -> LetterTask:
    """The same rows with letters shuffled on both sides of the split, probes fitted to those, and no F1 asked for."""
    rng = generator(config.seed, "shuffled letters")
    train, test = (y[torch.randperm(len(y), generator=rng)] for y in (task.train_letters, task.test_letters))
    told = torch.stack([train == letter for letter in task.letters], 1)
    probes = fit_linear(task.train, told, config.probe, generator(config.seed, "letter probes"))
    return LetterTask(task.train, task.test, train, test, task.letters, probes, {})


def absorption(task: LetterTask, dictionary: Dictionary, config: AbsorptionConfig | None = None) -> Absorption:
    """Splitting and absorption of every letter of a task by one dictionary."""
    config = config or AbsorptionConfig()
    check_rewrites(dictionary, "absorption")
    z, W_dec = dense_codes(dictionary, task.train), decoder(dictionary, task.train)
    told = torch.stack([task.train_letters == letter for letter in task.letters], 1)
    ranking = fit_linear(z, told, config.ranking, generator(config.seed, "latent ranking")).weight
    main = [_main_latents(z, told[:, i], weights, config) for i, weights in enumerate(ranking)]
    directions = F.normalize(task.probes.weight, dim=1)
    called, centred = _called(task.probes, task.test), task.test - dictionary.b_dec.detach().to(task.test)
    z_test = dense_codes(dictionary, task.test)
    full, fraction, letter = [], [], []
    for i, own in enumerate(task.letters):
        right = (task.test_letters == own) & called[:, i]
        written = W_dec @ directions[i]
        cosine = written / W_dec.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        shown = _absorbed(z_test[right], written, cosine, centred[right] @ directions[i], main[i])
        full.append(shown[0])
        fraction.append(shown[1])
        letter.append(np.full(int(right.sum()), own))
    return Absorption(task.letters, main, np.concatenate(full), np.concatenate(fraction), np.concatenate(letter))


def _called(probes: LinearProbes, x: Float[Tensor, "rows d"]) -> Bool[Tensor, "rows letters"]:
    """The one letter of every row that its probe is surest of."""
    odds = probes.odds(x)
    return F.one_hot(odds.argmax(1), odds.shape[1]).bool()


def _main_latents(
    z: Float[Tensor, "train n"], told: Tensor, weights: Float[Tensor, " n"], config: AbsorptionConfig
) -> list[int]:
    """The latents of largest positive weight, one more as long as the F1 of a logistic regression on them rises."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    order = weights.argsort(descending=True, stable=True)[: config.most_latents].tolist()
    columns, y, best = z[:, order].double().numpy(), told.numpy(), 0.0
    probe = LogisticRegression(class_weight="balanced", max_iter=500)
    for k in range(1, len(order) + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            odds = cross_val_predict(probe, columns[:, :k], y, cv=FOLDS, method="decision_function")
        score = f1(np.asarray(odds), y, np.ones(len(y)))
        if k > 1 and score < best + config.least_rise:
            return order[: k - 1]
        best = score
    return order


def _absorbed(
    z: Float[Tensor, "words n"],
    written: Float[Tensor, " n"],
    cosine: Float[Tensor, " n"],
    total: Float[Tensor, " words"],
    main: list[int],
) -> tuple[np.ndarray, np.ndarray]:
    """True for each word that is fully absorbed [words], and its absorbed fraction [words]."""
    projection = z * written
    strongest, latent = projection.max(1)
    silent = (z[:, main].abs() < SILENT).all(1)
    full = silent & (cosine[latent] >= FULL_COSINE) & (strongest >= FULL_SHARE * total) & (total > 0)
    others = projection.clone()
    others[:, main] = 0
    others[:, cosine < FRACTION_COSINE] = 0
    absorbers = others.clamp_min(0).topk(min(ABSORBERS, z.shape[1]), dim=1).values.sum(1)
    told = projection[:, main].sum(1)
    taken = torch.minimum(absorbers, total - told)
    fraction = torch.where(told > 0, taken / (taken + told), torch.ones_like(told))
    fraction[(told >= total) | (absorbers < FRACTION_SHARE * total)] = 0
    return full.double().numpy(), fraction.double().numpy()


def _split(y: Int[Tensor, " rows"], letters: list[int], config: AbsorptionConfig) -> tuple[Tensor, Tensor]:
    """Indexes [train] and [test] of the rows of these letters, the same share of each."""
    from sklearn.model_selection import train_test_split

    rows = torch.isin(y, torch.tensor(letters)).nonzero()[:, 0].numpy()
    seed = derive_seed(config.seed, "letter split") % 2**32
    train, test = train_test_split(rows, test_size=config.test_share, stratify=y[rows].numpy(), random_state=seed)
    return torch.from_numpy(train), torch.from_numpy(test)


def _evidence(
    task: LetterTask, found: Absorption, beside: Mapping[str, Absorption], config: AbsorptionConfig
) -> dict[str, Evidence]:
    nulls = {score: {name: null.scores[score] for name, null in beside.items()} for score in found.scores}
    held_out = "test words; probes and main latents were fitted on others"
    scores = {}
    for name, values in {"full": found.full, "fraction": found.fraction}.items():
        interval = bootstrap(lambda w, v=values: float(w @ v / w.sum()), len(values), seed=config.seed)
        scores[f"absorption_{name}"] = Evidence(
            f"absorption_{name}", found.scores[name], interval, nulls[name], len(values), "test words", held_out
        )
    letters = {
        "split": (np.array([float(len(latents)) for latents in found.main]), nulls["split"], "lower"),
        "probe_f1": (np.array(list(task.f1.values())), {}, "higher"),
    }
    for name, (values, controls, better) in letters.items():
        interval = bootstrap(lambda w, v=values: float(w @ v / w.sum()), len(values), seed=config.seed)
        scores[f"absorption_{name}"] = Evidence(
            f"absorption_{name}", float(values.mean()), interval, controls, len(values), "letters", held_out, better
        )
    scores["absorption_letters"] = Evidence(
        "absorption_letters", len(task.letters), n=len(task.f1), unit="letters", held_out=held_out, better="higher",
        note=f"letters whose probe has F1 of at least {config.least_f1}; the others are left out",
    )  # fmt: skip
    return scores

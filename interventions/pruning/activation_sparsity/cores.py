"""The CoreInfer report: is a prompt's core its own, does it last, and what is lost when all else is zero?

    stability         Jaccard of the core of t tokens with that of a few more, near the end of the prompt
    recall            share of the token cores after the prompt that lie in the prompt's core
    recall_across     the same for the tokens of another text: the core after a change of topic
    overlap_global    Jaccard of a prompt's core with the core of all calibration text: how little is its own
    overlap_between   Jaccard of the cores of two prompts
    core_similarity   Spearman of core overlap with the similarity of embeddings over pairs of passages
    drift             recall by distance from the prompt, for the prompt's core and the global one

Nulls: the global core, which knows frequencies and no sentence, and neurons drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from ....lab.errors import InputError, unknown
from ....lab.evidence import Evidence, bootstrap
from ....lab.models.hooked_model import HookedModel
from ....lab.rng import generator
from ....lab.text.packing import TokenBatch
from ....saes.evaluation.results import flat
from .core_neurons import MAGNITUDES, core_of_counts, growing_cores, jaccard, recall, sentence_core, token_cores
from .decision import SparsityDecision
from .effect import OutputErrors, delta_ce, losses_of
from .masks import Fixed, Largest, Mask
from .modules import LinearModule, halves, inputs_of, mlp_output
from .sameness import core_similarity

SENTENCE, GLOBAL, RANDOM, ORACLE = "sentence", "global", "random", "oracle"
DRIFT_BINS = 8


@dataclass(frozen=True)
class CoresConfig:
    """How core neurons are chosen and how many there are."""

    magnitude: str = "abs_norm"
    """positive (as published, for ReLU), abs, or abs_norm: |A| times the length of the neuron's output weight."""
    token_share: float = 0.4
    """Share of a token's eligible neurons in its core."""
    sentence_share: float = 0.2
    """Share of all neurons in a sentence core."""
    ahead: int = 8
    """Tokens further on that stability is measured over."""
    seed: int = 0
    """Of the random core and the bootstrap."""

    def __post_init__(self) -> None:
        if self.magnitude not in MAGNITUDES:
            raise unknown("magnitude", self.magnitude, MAGNITUDES)
        for name in ("token_share", "sentence_share"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.ahead < 1:
            raise InputError(f"ahead must be at least 1, got {self.ahead}")


class LayerCores(NamedTuple):
    """The report on one layer."""

    layer: int
    scores: dict[str, Evidence]
    drift: dict[str, list[float]]
    """`distance` in tokens, and recall by the prompt's core, the global and a random one."""
    decisions: list[SparsityDecision]
    """The sentence core's and the global core's."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"layer": self.layer, **flat(self.scores), "drift": self.drift}


class _Masks(NamedTuple):
    """Token cores of every passage, and sentence cores of every prompt."""

    tokens: Bool[Tensor, "passages t n"]
    prompt: Bool[Tensor, "passages n"]
    whole: Bool[Tensor, " n"]
    """The global core."""
    random: Bool[Tensor, " n"]


def measure_cores(
    model: HookedModel,
    layers: Sequence[int],
    calibration: TokenBatch,
    passages: TokenBatch,
    config: CoresConfig | None = None,
    *,
    embeddings: Float[Tensor, "passages width"] | None = None,
    progress: bool = False,
) -> list[LayerCores]:
    """CoreInfer on some layers of a model: the first half of a passage is the prompt.

    Args:
        calibration: passages that the global core is taken from.
        passages: others, of at least two documents.
        embeddings: unit vectors of the prompts, for `core_similarity`.

    Raises:
        InputError: as `require_prompts`, or a layer the model has not.
    """
    config = config or CoresConfig()
    require_prompts(passages, config)
    modules = [mlp_output(model, layer) for layer in layers]
    before, after = (inputs_of(model, modules, part) for part in (calibration, passages))
    masks_by_module = [
        _masks(module, before[module.name], calibration, after[module.name], passages, config) for module in modules
    ]
    variants: dict[str, dict[LinearModule, Mask]] = {}
    for module, masks in zip(modules, masks_by_module, strict=True):
        variants |= {f"{module.layer}, {name}": {module: mask}
                     for name, mask in _by_name(module, masks).items()}  # fmt: skip
    losses = losses_of(model, passages, variants, splits=("decode",), progress=progress)["decode"]
    reports = []
    for module, masks in tqdm(list(zip(modules, masks_by_module, strict=True)), desc="cores", disable=not progress):
        errors = _output_errors(module, masks, after[module.name], passages)
        scores = _overlaps(masks, passages, config, embeddings)
        for name in (SENTENCE, GLOBAL):
            nulls = [null for null in (GLOBAL, RANDOM) if null != name]
            keys = {null: f"{module.layer}, {null}" for null in (*nulls, ORACLE)}
            scores |= {
                f"rel_error_{name}": errors.relative_error(name, nulls, config.seed),
                f"recall_vs_oracle_{name}": errors.recall(name, nulls, config.seed),
                f"delta_ce_{name}": delta_ce(losses, f"{module.layer}, {name}", keys, BOUND, config.seed),
            }
        decisions = [_decision(module, masks, scores, name, passages, config) for name in (SENTENCE, GLOBAL)]
        reports.append(LayerCores(module.layer, scores, _drift(masks, passages), decisions))
    return reports


def require_prompts(passages: TokenBatch, config: CoresConfig) -> None:
    """Refuse passages that cores cannot be measured on.

    Raises:
        InputError: fewer than two, or prompts not longer than `ahead`.
    """
    if len(passages.tokens) < 2 or halves(passages) <= config.ahead:
        raise InputError(
            f"cores take at least 2 passages with prompts longer than ahead={config.ahead} tokens, got "
            f"{len(passages.tokens)} with prompts of {halves(passages)}: give more or longer ones"
        )


BOUND = "`oracle` is no null but the bound: as many neurons, chosen anew at every token"


def _masks(
    module: LinearModule, before: Tensor, calibration: TokenBatch, after: Tensor, passages: TokenBatch,
    config: CoresConfig,
) -> _Masks:  # fmt: skip
    """Token cores count only where tokens are usable: the first of a row is an attention sink."""

    def cores(acts: Tensor, usable: Tensor) -> Bool[Tensor, "p t n"]:
        kept = [token_cores(rows, config.token_share, config.magnitude, module.norms) for rows in acts]
        return torch.stack(kept) & usable.to(acts.device)[..., None]

    tokens = cores(after, passages.usable)
    prompt = torch.stack([sentence_core(mask[: halves(passages)], config.sentence_share).mask for mask in tokens])
    counts = sum(
        cores(rows[None], usable[None])[0].sum(0) for rows, usable in zip(before, calibration.usable, strict=True)
    )
    assert isinstance(counts, Tensor), "there is at least one calibration passage"
    whole = core_of_counts(counts, config.sentence_share).mask
    order = torch.randperm(len(counts), generator=generator(config.seed, "random core", module.name))
    random = torch.zeros_like(whole).index_fill_(0, order[: int(whole.sum())].to(whole.device), True)
    return _Masks(tokens, prompt, whole, random)


def _by_name(module: LinearModule, masks: _Masks) -> dict[str, Mask]:
    """Everything that is run in the model."""
    return {
        SENTENCE: Fixed(masks.prompt), GLOBAL: Fixed(masks.whole[None]), RANDOM: Fixed(masks.random[None]),
        ORACLE: Largest(module.norms, int(masks.whole.sum())),
    }  # fmt: skip


def _output_errors(module: LinearModule, masks: _Masks, acts: Tensor, passages: TokenBatch) -> OutputErrors:
    """Errors of the MLP's output after the prompt; the oracle keeps the largest |A| |w| of every token."""
    later = passages.usable.clone()
    later[:, : halves(passages)] = False
    x, passage = acts[later], later.nonzero()[:, 0]
    kept = {name: mask.keep(x, passage) for name, mask in _by_name(module, masks).items()}
    errors = OutputErrors(module.weight)
    errors.add(x, passage, kept, oracle=kept[ORACLE])
    return errors


def _overlaps(
    masks: _Masks, passages: TokenBatch, config: CoresConfig, embeddings: Tensor | None
) -> dict[str, Evidence]:
    half, count = halves(passages), len(masks.prompt)
    after = [mask[half:][usable[half:]] for mask, usable in zip(masks.tokens, passages.usable, strict=True)]
    other = after[1:] + after[:1]
    steps = torch.tensor([half - config.ahead, half])
    grown = [growing_cores(mask, config.sentence_share, steps) for mask in masks.tokens]

    def recalls(cores: Sequence[Tensor], later: Sequence[Tensor]) -> Tensor:
        return torch.stack([recall(core, tokens).nanmean() for core, tokens in zip(cores, later, strict=True)])

    whole, random = [masks.whole] * count, [masks.random] * count
    nulls = {GLOBAL: recalls(whole, after), RANDOM: recalls(random, after)}
    prompts, shifted = masks.prompt, masks.prompt.roll(1, 0)
    values = {
        "stability": (torch.stack([jaccard(sizes[0], sizes[1]) for sizes in grown]),
                      {"between": jaccard(prompts, shifted), RANDOM: jaccard(prompts, masks.random)}),
        "recall": (recalls(list(prompts), after), nulls),
        "recall_across": (recalls(list(prompts), other), nulls),
        "overlap_global": (jaccard(prompts, masks.whole), {RANDOM: jaccard(prompts, masks.random)}),
        "overlap_between": (jaccard(prompts, shifted), {RANDOM: jaccard(prompts, masks.random)}),
    }  # fmt: skip
    scores = {name: _mean(name, value, null_masks, config.seed) for name, (value, null_masks) in values.items()}
    if embeddings is not None:
        tokens = passages.tokens[:, :half]
        similarity = core_similarity(prompts.cpu(), embeddings.cpu(), tokens, config.seed)
        scores |= {} if similarity is None else {"core_similarity": similarity}
    return scores


def _mean(name: str, values: Tensor, nulls: dict[str, Tensor], seed: int) -> Evidence:
    """The mean over passages; a passage without a token core counts in none."""
    kept = ~values.isnan()
    exact = values[kept].double().cpu().numpy()
    interval = bootstrap(lambda weights: float(weights @ exact / weights.sum()), len(exact), seed=seed)
    null_means = {null: float(null_values.nanmean()) for null, null_values in nulls.items()}
    return Evidence(name, float(values.nanmean()), interval, null_means, len(exact), "passages", better="higher")


def _drift(masks: _Masks, passages: TokenBatch) -> dict[str, list[float]]:
    """Recall in bins of distance from the prompt's end."""
    half, length = halves(passages), passages.tokens.shape[1]
    edges = torch.linspace(half, length, min(DRIFT_BINS, length - half) + 1).long().tolist()
    curves: dict[str, list[float]] = {"distance": [], SENTENCE: [], GLOBAL: [], RANDOM: []}
    for begin, end in pairwise(edges):
        curves["distance"].append((begin + end) / 2 - half)
        for name, cores in {SENTENCE: masks.prompt, GLOBAL: masks.whole.expand_as(masks.prompt),
                            RANDOM: masks.random.expand_as(masks.prompt)}.items():  # fmt: skip
            shares = [recall(core, tokens[begin:end]) for core, tokens in zip(cores, masks.tokens, strict=True)]
            curves[name].append(float(torch.cat(shares).nanmean()))
    return curves


def _decision(
    module: LinearModule, masks: _Masks, scores: dict[str, Evidence], name: str, passages: TokenBatch,
    config: CoresConfig,
) -> SparsityDecision:  # fmt: skip
    whole = masks.whole.nonzero()[:, 0].tolist()
    rule: dict[str, Any] = {"kept": whole}
    if name == SENTENCE:
        documents = passages.doc.max(1).values.tolist()
        kept = {str(doc): core.nonzero()[:, 0].tolist() for doc, core in zip(documents, masks.prompt, strict=True)}
        rule = {"kept_of": kept}
    return SparsityDecision(
        module.layer, f"core neurons by {config.magnitude}", "sentence" if name == SENTENCE else "global",
        config.sentence_share, {module.path: rule}, scores[f"recall_vs_oracle_{name}"],
        scores[f"rel_error_{name}"], scores[f"delta_ce_{name}"],
    )  # fmt: skip

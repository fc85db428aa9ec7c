"""Sparse probing of labelled texts: what a model's dictionary says about whole texts, over many data sets.

probe_accuracy_kK, probe_auc_kK, probe_f1_kK   of a logistic regression on the K latents whose means differ most
                                               between the classes, on held-out texts, mean over data sets
probe_accuracy_full, probe_auc_full, probe_f1_full   the same of a regression on the activations themselves
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError, unknown
from ...lab.evidence import Evidence, mean_interval
from ...lab.models.hooked_model import HookedModel
from ...lab.runs.prompts import Prompt, read_prompts
from ...lab.sequences import texts_of
from ...lab.text.tokenization import TextTokenizer
from ...saes.dictionary import Dictionary
from ..fitting.sparse import SparseProbe, SparseProbeConfig, sparse_probe
from .datasets import LabelledTexts

POOLINGS = ("last", "mean")


@dataclass(frozen=True)
class TextProbing:
    """Which texts are probed, and how each becomes one row."""

    datasets: tuple[str, ...] = (
        "5_hist_fig_ismale",
        "21_headline_istrump",
        "92_glue_sst2",
        "96_spam_is",
        "105_click_bait",
        "126_art_type_book",
        "155_athlete_sport_basketball",
        "157_amazon_5star",
    )
    """Names from `dataset_names`: by default eight with short texts; "all" takes the 113."""
    texts: int = 400
    """Texts of each data set, half of each class."""
    tokens: int = 128
    """Tokens of a text that are read; the rest is cut off."""
    pooling: Literal["last", "mean"] = "last"
    """`last` takes the last token, as sae-probes does; `mean` the mean over tokens, as SAEBench does."""
    batch: int = 16
    """Texts a forward pass."""
    probe: SparseProbeConfig = field(default_factory=SparseProbeConfig)
    """How each label is probed."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS)
        for name in ("texts", "tokens", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.datasets:
            raise InputError("no data set is named: give some, or leave the default")


class Pooled(NamedTuple):
    """One row a text."""

    x: Float[Tensor, "texts d"]
    latents: Float[Tensor, "texts n_latents"]


@torch.no_grad()
def pool(model: HookedModel, dictionary: Dictionary, texts: Sequence[str], config: TextProbing) -> Pooled:
    """Activations and codes of each text at the dictionary's site, pooled after encoding.

    The BOS before a text takes no part; special tokens in it and rows above the dictionary's norm limit do so only
    in a text that has nothing else.

    Raises:
        InputError: the dictionary is not of this model, or a text has no token.
    """
    texts, place = texts_of(texts), dictionary.check(model)
    site, limit = place.site, place.source.norm_limit
    tokenizer = TextTokenizer(model.tokenizer)
    begin, special = 0 if tokenizer.bos is None else 1, torch.from_numpy(tokenizer.special_ids)
    prompts = _prompts(tokenizer, texts, config.tokens)
    x, latents = [], []
    for part in read_prompts(model, [site], prompts, batch=config.batch, by_length=False):
        acts, tokens = part.acts[site].float(), part.batch.tokens
        own = part.batch.own(begin)
        plain = own & ~torch.isin(tokens, special)
        wanted = torch.where(plain.any(1, keepdim=True), plain, own).to(acts.device)
        if limit is not None:
            short = wanted & (acts.norm(dim=2) <= limit)
            wanted = torch.where(short.any(1, keepdim=True), short, wanted)
        if config.pooling == "last":
            places = torch.arange(wanted.shape[1], device=wanted.device)
            wanted &= places == torch.where(wanted, places, -1).amax(1, keepdim=True)
        rows = acts[wanted]
        text = wanted.nonzero()[:, 0]
        code = dictionary.encode(rows)
        sums = rows.new_zeros(len(tokens), dictionary.n_latents)
        sums.index_put_((text[code.rows], code.indices.long()), code.values, accumulate=True)
        counts = wanted.sum(1, keepdim=True)
        latents.append((sums / counts).cpu())
        x.append((rows.new_zeros(len(tokens), rows.shape[1]).index_add_(0, text, rows) / counts).cpu())
    return Pooled(torch.cat(x), torch.cat(latents))


def probe_texts(
    model: HookedModel,
    dictionary: Dictionary,
    datasets: Sequence[LabelledTexts],
    config: TextProbing | None = None,
    *,
    progress: bool = False,
) -> dict[str, SparseProbe]:
    """Sparse probes of every data set, by name; equal texts stay on one side of a split.

    Raises:
        InputError: see `pool` and `sparse_probe`.
    """
    config = config or TextProbing()
    found = {}
    for data in tqdm(datasets, desc="probe", unit="set", disable=not progress):
        data = data.take(config.texts, config.probe.seed)
        x, latents = pool(model, dictionary, data.texts, config)
        found[data.name] = sparse_probe(latents, x, data.labels, groups=data.texts, config=config.probe)
    return found


def over_datasets(probes: dict[str, SparseProbe], *, seed: int = 0) -> dict[str, Evidence]:
    """The mean of every score and of every null over data sets, as `probe_NAME`, with intervals over data sets."""
    found = {}
    for name in next(iter(probes.values())).scores if probes else ():
        each = [probe[name] for probe in probes.values()]
        values = np.array([evidence.value for evidence in each])
        beside = {null: float(np.mean([evidence.nulls[null] for evidence in each])) for null in each[0].nulls}
        held_out = "test texts of each data set, no text on both sides"
        found[f"probe_{name}"] = Evidence(
            f"probe_{name}",
            float(values.mean()),
            mean_interval(values, seed=seed),
            beside,
            len(each),
            "data sets",
            held_out,
            "higher",
        )
    return found


def _prompts(tokenizer: TextTokenizer, texts: Sequence[str], tokens: int) -> list[Prompt]:
    """Every text after its BOS, cut off after so many tokens."""
    start = () if tokenizer.bos is None else (tokenizer.bos,)
    prompts = []
    for text, ids in zip(texts, tokenizer.encode(texts) if texts else [], strict=True):
        if not len(ids):
            raise InputError(f"the text {text!r} has no token to read: leave it out")
        prompts.append(Prompt((*start, *ids[:tokens].tolist())))
    return prompts

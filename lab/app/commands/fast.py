"""`monosem fast`: sequential against block training for an instruct model, everything else equal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from ....saes.dictionary import Dictionary, Provenance
from ....saes.evaluation.nulls import fit_nulls
from ....saes.evaluation.special_tokens import (
    ConversationRows,
    FirstConversations,
    SpecialTokens,
    TokenMeans,
    conversations,
)
from ....saes.place import Place
from ....saes.registry import build_trainable
from ....saes.training.trainer import TrainConfig, Trainer
from ...errors import InputError
from ...models.hooked_model import HookedModel
from ...models.sites import Site
from ...runs.first_rows import DocumentIds
from ...runs.loop import train
from ...runs.read import read
from ...runs.run import Run
from ...storage import write_json
from ...streams.activation_stream import ActivationStream, StreamConfig
from ...streams.token_stream import TokenStream
from ...text.conversations import DocsChats, GeneratedChats
from ...text.corpus import Corpus, TextConfig
from ...text.documents import Source
from ...text.filters import Without
from ...text.sources import open_source
from ...text.tokenization import TextTokenizer
from ..checks import check_folder, check_text
from ..command import Command, Result
from ..options import Flat, ModelText
from .fast_report import Case, report, table, write_chart

log = logging.getLogger(__name__)

Method = Literal["fast", "bt-f", "bt-p"]
Sinks = Literal["drop", "keep"]
FIT_ROWS = 8192  # of training conversations, for the nulls


def _conversations() -> ModelText:
    return ModelText(text=TextConfig(context=512, limit=400, heldout=0.2, dedup=20))


@dataclass(frozen=True)
class FastCommand(Command):
    """Train the same dictionary on conversations one by one (FAST), in blocks (BT(F)), and on text in blocks (BT(P)).

    All see as many rows from the same starting weights and are measured on the same held-out conversations; blocks
    are as long as the longest conversation.
    """

    example = "monosem fast runs/fast --rows 5000 --texts 100"

    out: tyro.conf.Positional[Path]
    """Folder for a run of each method, `fast.json` and `fast.html`."""
    chat: str = "chat:smollm2-135m"
    """Conversations: `chat:` (answered from the docs), `chat:MODEL`, `jsonl:PATH` or `hf:NAME`."""
    source: Flat[ModelText] = field(default_factory=_conversations)
    """The model; as corpus the pre-training text of BT(P); and how much of what to read. `--texts` is in
    conversations, and how rows are cut follows from the method."""
    methods: tuple[Method, ...] = ("fast", "bt-f", "bt-p")
    """Methods to compare."""
    attention_sinks: tuple[Sinks, ...] = ("drop", "keep")
    """Train without position 0 and without rows of large norm, with both, or first one and then the other."""
    sites: tuple[str, ...] = ("resid_post.12",)
    """Where to train. All sites and all k share the forward passes of a method."""
    architecture: str = "topk"
    """Any that `monosem train` has. Where its L0 varies, give several k, so that scores at one L0 can be told."""
    n_latents: int = 2304
    """Number of latents."""
    k: tuple[int, ...] = (32,)
    """Active latents a row, a dictionary each."""
    rows: int = 50_000
    """Activations to train every dictionary on; a corpus that is shorter is read again."""
    batch: int = 1024
    """Rows a step."""
    buffer: int = 8192
    """Rows in the shuffle buffer."""
    special: tuple[str, ...] = ()
    """Further tokens to count as special, such as `user`; the tokenizer's own always do."""
    seed: int = 0
    """Of the starting weights, the shuffle and the bootstrap."""
    resume: bool = False
    """Continue where an earlier call with the same options stopped."""

    def __post_init__(self) -> None:
        for name in ("methods", "attention_sinks", "sites", "k"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise InputError(f"{name}={list(given)} must name at least one, each once")
        for name in ("rows", "batch", "buffer"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for site in self.sites:
            Site.parse(site)
        with torch.device("meta"):  # only to have the config refused before anything is read
            for k in self.k:
                build_trainable(self.architecture, d_in=1, n_latents=self.n_latents, k=k)

    def run(self) -> Result:
        """Train, measure and compare."""
        check_folder(self.out)
        check_text(self.chat)
        self.source.check(self.sites)
        model = self.source.open_model()
        chats = self._open_chats(model)
        heldout = self._corpus(model, chats, split="heldout", keep_first=True)
        special = self._special_ids(TextTokenizer(model.tokenizer))
        held_documents = DocumentIds()
        read(TokenStream.reading(model, heldout), held_documents, description="held-out conversations")
        quoted = set(held_documents.ids)
        trained = {
            case: dictionary
            for sinks in self.attention_sinks
            for method in self.methods
            for case, dictionary in self._train(model, method, sinks, chats, quoted)
        }
        training = self._corpus(model, chats, split="train", keep_first=True)
        subjects, nulls = self._with_nulls(model, training, trained, special)
        measured = SpecialTokens(subjects, special)
        read(conversations(model, heldout, measured.sites), measured, description="conversations")
        held_out = f"held-out conversations of {chats.name} (share {self.source.text.heldout:g})"
        result = report(measured, nulls, held_out=held_out, seed=self.seed)
        log.info("%s", table(result["scores"]))
        found = {"repeats": heldout.repeats, "special_ids": special, **result}
        write_json(self.out / "fast.json", found)
        chart = write_chart(self.out / "fast.html", result["scores"])
        return self.result({"out": str(self.out), "chart": str(chart), **found}, chart)

    def _open_chats(self, model: HookedModel) -> Source:
        chats = open_source(self.chat)
        if isinstance(chats, GeneratedChats) and chats.by == self.source.model:
            return GeneratedChats(model, chats.tokens, chats.temperature)  # it is loaded already
        return chats

    def _corpus(self, model: HookedModel, source: Source, **fields: Any) -> Corpus:
        return Corpus(source, model.tokenizer, replace(self.source.text, **fields).sequential())

    def _special_ids(self, tokenizer: TextTokenizer) -> list[int]:
        found = set(tokenizer.special_ids.tolist())
        for text, ids in zip(self.special, tokenizer.encode(self.special) if self.special else (), strict=True):
            if len(ids) != 1:
                raise InputError(f"special={text!r} is {len(ids)} tokens of {tokenizer.label}: give texts of one token")
            found.add(int(ids[0]))
        return sorted(found)

    def _reading(self, model: HookedModel, method: Method, sinks: Sinks, chats: Source, quoted: set[int]) -> Corpus:
        text = replace(self.source.text, split="train", keep_first=sinks == "keep")
        if method == "fast":
            return Corpus(chats, model.tokenizer, text.sequential())
        if method == "bt-f":
            return Corpus(chats, model.tokenizer, text.blocks())
        plain = open_source(self.source.corpus)
        if plain.name == "docs:" and isinstance(chats, DocsChats | GeneratedChats):
            plain = Without(plain, quoted)
        # the beginning of each document, so that rows come from about as many documents as conversations
        cut = replace(text, split="all", limit=None, dedup=None, document_tokens=text.context)
        return Corpus(plain, model.tokenizer, cut.blocks())

    def _train(
        self, model: HookedModel, method: Method, sinks: Sinks, chats: Source, quoted: set[int]
    ) -> Iterator[tuple[Case, Dictionary]]:
        """The dictionaries of one method, at all sites and k, off one stream."""
        config = StreamConfig(self.batch, self.buffer, self.seed, max_norm_multiple=10.0 if sinks == "drop" else None)
        reading = self._reading(model, method, sinks, chats, quoted)
        stream = ActivationStream(model, reading, self.sites, config=config)
        training, origin = TrainConfig(rows=self.rows, seed=self.seed), Provenance(model.fingerprint())
        build = partial(build_trainable, architecture=self.architecture, n_latents=self.n_latents)
        trainers = {
            Case(method, sinks, str(site), k): Trainer(
                build(d_in=width, k=k).to(model.device), Place.parse(site).on(stream), training, name=f"{site}-k{k}",
                provenance=origin,
            )
            for site, width in stream.widths.items() for k in self.k
        }  # fmt: skip
        asked = {"method": method, "sinks": sinks, "training": asdict(training), "k": list(self.k),
                 "architecture": self.architecture, "n_latents": self.n_latents}  # fmt: skip
        log.info("training %s, sinks: %s", method, sinks)
        run = Run.create(self.out / f"{method}-{sinks}", asked, stream.fingerprint(), resume=self.resume)
        train(stream, list(trainers.values()), run, steps=-(-self.rows // self.batch))
        for case, trainer in trainers.items():
            yield case, trainer.folded()

    def _with_nulls(
        self, model: HookedModel, training: Corpus, trained: dict[Case, Dictionary], special: list[int]
    ) -> tuple[dict[str, Dictionary | TokenMeans], dict[Case, dict[str, str]]]:
        """All that is measured, by name, and which of it are the nulls of each case.

        Nulls see training conversations one by one, with position 0 where the dictionary trained with it.
        """
        first = FirstConversations([model.site(site) for site in self.sites], FIT_ROWS)
        read(conversations(model, training, first.sites), first, description="conversations for nulls")
        subjects: dict[str, Dictionary | TokenMeans] = {case.name: one for case, one in trained.items()}
        nulls: dict[Case, dict[str, str]] = {}
        for case, dictionary in trained.items():
            shared = f"{case.sinks}/{case.site}/{case.k}"
            nulls[case] = {"untrained": f"untrained/{shared}", "pca": f"pca/{shared}",
                           "token_means": f"token_means/{case.site}"}  # fmt: skip
            site = Site.parse(case.site)
            if nulls[case]["token_means"] not in subjects:
                means = TokenMeans(site, special)
                for part in first.parts:
                    means.add(part)
                subjects[nulls[case]["token_means"]] = means
            if nulls[case]["pca"] not in subjects:
                log.info("fitting nulls of %s", case)
                fitted = fit_nulls(_acts(first.parts, site, case.sinks), dictionary, self.seed)
                subjects |= {nulls[case][name]: fitted[name] for name in ("untrained", "pca")}
        return subjects, nulls


def _acts(parts: list[ConversationRows], site: Site, sinks: str) -> Tensor:
    kept = (part.acts[site][~part.first] if sinks == "drop" else part.acts[site] for part in parts)
    return torch.cat(list(kept))

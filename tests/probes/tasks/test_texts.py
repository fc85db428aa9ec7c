"""Labelled texts: the sae-probes data, pooling in a small model, and the suite."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from random import Random

import pytest
import torch
from monosem.lab.app.cli import main
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.lab.models.sites import Site
from monosem.probes.fitting.sparse import SparseProbeConfig
from monosem.probes.tasks import datasets
from monosem.probes.tasks.datasets import LabelledTexts, dataset_names, load_dataset
from monosem.probes.tasks.texts import TextProbing, over_datasets, pool, probe_texts
from monosem.saes.architectures.basis import Neurons
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.dictionary import Provenance
from monosem.saes.place import Place
from tiny_commands import Tiny, document, write_model, write_text

torch.set_num_threads(1)
installed = pytest.mark.skipif(not importlib.util.find_spec("sae_probes"), reason="sae-probes is not installed")
SITE = "resid_post.1"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("texts")
    return Tiny(write_model(folder / "model"), write_text(folder / "text"))


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> HookedModel:
    return load_model(str(tiny.model), dtype="fp32", device="cpu")


def identity(model: HookedModel, limit: float | None = None) -> Neurons:
    """Codes are the coordinates."""
    found = Neurons(SAEConfig(32, 32, 32))
    found.W_dec.copy_(torch.eye(32))
    found.place, found.provenance = Place.parse(SITE).limited([limit]), Provenance(model.fingerprint())
    return found


def topics(n: int = 60) -> LabelledTexts:
    """Documents about the sea or not."""
    chance = Random(0)
    texts = [document(chance) for _ in range(n)]
    labels = [int(any(word in text.split() for word in ("boat", "wave", "salt", "gull"))) for text in texts]
    return LabelledTexts("sea", texts, labels, ("no", "yes"))


def by_hand(model: HookedModel, text: str) -> torch.Tensor:
    """Activations of one text after its BOS, alone in its batch."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[model.tokenizer.bos_token_id, *ids]])
    return model.capture(tokens, [SITE])[Site.parse(SITE)][0, 1:]


def test_pooling_by_hand_and_whatever_the_batch(model: HookedModel) -> None:
    texts = [text[: 20 + 11 * i].rsplit(" ", 1)[0] for i, text in enumerate(topics(7).texts)]
    rows = [by_hand(model, text) for text in texts]
    for batch in (1, 3, 7):
        last = pool(model, identity(model), texts, TextProbing(batch=batch))
        mean = pool(model, identity(model), texts, TextProbing(batch=batch, pooling="mean"))
        torch.testing.assert_close(last.x, torch.stack([row[-1] for row in rows]), rtol=0, atol=1e-4)
        torch.testing.assert_close(mean.x, torch.stack([row.mean(0) for row in rows]), rtol=0, atol=1e-4)
        for pooled in (last, mean):
            torch.testing.assert_close(pooled.latents, pooled.x, rtol=0, atol=1e-4)
    cut = pool(model, identity(model), texts, TextProbing(tokens=2))
    torch.testing.assert_close(cut.x, torch.stack([row[1] for row in rows]), rtol=0, atol=1e-4)


def test_long_rows_are_left_out_where_there_are_others(model: HookedModel) -> None:
    text = topics(1).texts[0]
    rows = by_hand(model, text)
    limit = float(rows.norm(dim=1).median())
    kept = rows[rows.norm(dim=1) <= limit + 1e-4]
    found = pool(model, identity(model, limit + 1e-4), [text], TextProbing(pooling="mean")).x[0]
    torch.testing.assert_close(found, kept.mean(0), rtol=0, atol=1e-4)
    all_long = pool(model, identity(model, 1e-6), [text], TextProbing(pooling="mean")).x[0]
    torch.testing.assert_close(all_long, rows.mean(0), rtol=0, atol=1e-4)


def test_topics_are_probed_in_a_random_model(model: HookedModel) -> None:
    config = TextProbing(texts=60, pooling="mean", probe=SparseProbeConfig(k=(1, 4)))
    found = probe_texts(model, identity(model), [topics()], config)
    assert found["sea"]["auc_full"].value > 0.75 > found["sea"]["auc_full"].nulls["shuffled_labels"]
    means = over_datasets({"a": found["sea"], "b": found["sea"]})
    assert means["probe_auc_k4"].value == found["sea"]["auc_k4"].value and means["probe_auc_k4"].n == 2
    assert means["probe_auc_k4"].nulls == pytest.approx(found["sea"]["auc_k4"].nulls)
    assert over_datasets({}) == {}


def test_texts_that_cannot_be_read_are_refused(model: HookedModel) -> None:
    with pytest.raises(InputError, match="the text '' has no token to read"):
        pool(model, identity(model), ["a boat", ""], TextProbing())
    with pytest.raises(InputError, match="unknown pooling 'max'"):
        TextProbing(pooling="max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="texts must be at least 1, got 0"):
        TextProbing(texts=0)


def test_taking_texts_balances_the_classes() -> None:
    data = LabelledTexts("x", [str(i) for i in range(100)], [int(i < 20) for i in range(100)], ("a", "b"))
    half, most = data.take(30), data.take(60)
    assert len(half) == 30 and sum(half.labels) == 15
    assert len(most) == 60 and sum(most.labels) == 20 and len(data.take(500)) == 100
    assert data.take(30) == half != data.take(30, seed=1)
    assert all(label == int(int(text) < 20) for text, label in zip(half.texts, half.labels, strict=True))
    with pytest.raises(InputError, match="at least 2 texts, got 1"):
        data.take(1)


@installed
def test_the_data_sets_are_read_from_the_wheel() -> None:
    names = dataset_names()
    assert len(names) == len(set(names)) == 113 and set(TextProbing().datasets) < set(names)
    data = load_dataset("105_click_bait")
    assert len(data) == 2568 and sum(data.labels) == 1284 and data.classes == ("clickbait", "factual")
    assert all(data.texts)
    with pytest.raises(InputError, match="did you mean '105_click_bait'"):
        load_dataset("105_clickbait")


def test_without_the_wheel_the_error_gives_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets._paths.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(InputError, match="pip install --no-deps sae-probes"):
            dataset_names()
    datasets._paths.cache_clear()


@installed
def test_the_full_suite_adds_probes(tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main([str(a) for a in tiny.train(run)]) == 0
    small = ["--tokens=800", "--evaluation.ce-tokens=100", "--evaluation.fit-tokens=300"]
    more = ["--only", "core", "probing", "--probing.datasets", "96_spam_is", "21_headline_istrump",
            "--probing.texts=40", "--probing.tokens=16", "--evaluation.compat=saebench"]  # fmt: skip
    capfd.readouterr()
    assert main(["eval", str(run), *map(str, tiny.source), *small, *more, "--json"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert result["schema"] == 1 and result["groups"] == ["core", "probing"]
    assert result["probe_auc_full_n"] == 2 and "probe_accuracy_k1_null_random_latents" in result
    assert 0 <= result["saebench_l0"] <= 32 and result["saebench_ce_loss_score"] is not None
    assert sum(result["histogram_density"]["latents"]) == pytest.approx(64 * result["alive"])
    (folder,) = run.glob("dictionaries/*")
    assert set(json.loads((folder / "probing.json").read_text())["datasets"]) == {"96_spam_is", "21_headline_istrump"}
    assert json.loads((folder / "evaluation.json").read_text()) == result

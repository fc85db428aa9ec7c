"""Files written by the commit before the redesign load and give its numbers; `fixtures/before/write.py` wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from monosem.lab import ActivationStore, Run
from monosem.lab.app.cli import main
from monosem.lab.models.loading import load_model
from monosem.lab.storage import read_tensors
from monosem.probes.files import load as load_probe
from monosem.saes import Features, load

BEFORE = Path(__file__).parent / "fixtures" / "before"
DICTIONARIES = sorted(path.name for path in (BEFORE / "dictionaries").iterdir())
SOURCE = ("--model=model", "--corpus=jsonl:text.jsonl", "--dtype=fp32", "--device=cpu",
          "--text.context=32", "--text.batch-rows=8", "--text.heldout=0.2")  # fmt: skip


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return read_tensors(BEFORE / "expected.safetensors", "expected numbers")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the fixtures as the working directory: paths inside them are relative."""
    shutil.copytree(BEFORE, tmp_path / "before")
    monkeypatch.chdir(tmp_path / "before")
    return tmp_path / "before"


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionaries_encode_and_reconstruct_as_they_did(name: str, expected: dict[str, torch.Tensor]) -> None:
    dictionary = load(BEFORE / "dictionaries" / name)
    x = expected[f"{name}.x"]
    code = dictionary.encode(x)
    assert torch.equal(code.indptr, expected[f"{name}.indptr"])
    assert torch.equal(code.indices.long(), expected[f"{name}.indices"])
    torch.testing.assert_close(code.values, expected[f"{name}.values"])
    torch.testing.assert_close(dictionary.reconstruct(x), expected[f"{name}.reconstruction"])


@pytest.mark.parametrize("name", sorted(set(DICTIONARIES) - {"unplaced"}))
def test_sites_norm_limits_and_scales_are_those_of_the_description(name: str) -> None:
    place = load(BEFORE / "dictionaries" / name).place
    told = json.loads((BEFORE / "dictionaries" / name / "dictionary.json").read_text())["provenance"]
    assert list(map(str, place.reads)) == (told["sources"] or [told["site"]])
    assert list(map(str, place.predicts)) == (told["targets"] or ([told["target"]] if told["target"] else []))
    limits = {str(site): limit for site, limit in place.norm_limits.items()}
    assert limits == (told["norm_limits"] or {told["site"]: told["norm_limit"]}) and all(limits.values())
    assert place.scales == (told["scales"] or [1.0] * len(place.sources))


def test_features_have_the_same_examples() -> None:
    features, told = Features.load(BEFORE / "features"), json.loads((BEFORE / "expected.json").read_text())
    assert (features.measured, len(features.dead)) == (told["measured"], told["dead"])
    acts = {
        str(latent): [list(map(float, example.acts)) for example in features.examples(int(latent))]
        for latent in features.latents
    }
    assert acts == told["features"] and any(acts.values())


def test_model_probes_and_store_give_the_same_rows(expected: dict[str, torch.Tensor]) -> None:
    model = load_model(str(BEFORE / "model"), dtype="fp32", device="cpu")
    site = model.site("resid_post.1")
    acts = model.capture(expected["tokens"], [site])[site]
    torch.testing.assert_close(acts, expected["acts"], rtol=1e-4, atol=1e-5)
    probes = sorted((BEFORE / "probes").iterdir())
    assert len(probes) == 3
    for folder in probes:
        scores = load_probe(folder, model, "resid_post.1").scores(expected["acts"].mean(1))
        torch.testing.assert_close(scores, expected[f"probe.{folder.name}"])
    batch = ActivationStore.open(BEFORE / "store").read(1, 0, 50)
    assert torch.equal(batch.origin, expected["store.origin"])
    for where, rows in batch.acts.items():
        assert torch.equal(rows.float(), expected[f"store.{where}"])


def test_a_finished_run_is_measured_as_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads(next(Path("run").glob("dictionaries/*/evaluation.json")).read_text())
    tokens = ("--tokens=600", "--evaluation.ce-tokens=200", "--evaluation.fit-tokens=300")
    assert main(["eval", "run", *SOURCE, *tokens, "--evaluation.spliced", "untrained", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    numbers = {name: value for name, value in before.items() if isinstance(value, float)}
    assert len(numbers) > 20 and {name: found[name] for name in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-5)


def test_a_stopped_run_continues_to_the_same_weights(here: Path, expected: dict[str, torch.Tensor]) -> None:
    stopped = Run.open("stopped")
    assert stopped.manifest is None and not stopped.dictionaries
    options = ("--stream.batch=32", "--stream.buffer=128", "--n-latents=40", "--k=3", "--rows=1280",
               "--log-every=10", "--sites", "resid_post.1", "--training.beta1=0.9", "--training.beta2=0.999",
               "--training.blend=0", "--training.aid-after=25000", "--resume")  # fmt: skip
    assert main(["train", "stopped", *SOURCE, *options]) == 0
    (folder,) = Path("stopped/dictionaries").iterdir()
    torch.testing.assert_close(load(folder).W_dec, expected["run.W_dec"], rtol=1e-4, atol=1e-5)

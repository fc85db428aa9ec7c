"""Decisions: what is saved is read back, by kind; files of the version before; what is damaged or exists is refused."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import monosem.interventions
import pytest
import torch
from monosem.interventions.decision import KINDS, Decision, Effect, decisions, fingerprints
from monosem.interventions.pruning.activation_sparsity.decision import SparsityDecision
from monosem.lab.errors import InputError
from monosem.lab.evidence import Evidence
from monosem.lab.models.hooked_model import HookedModel
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from tiny_models import build

SCORE = Evidence("auroc", 0.9, (0.8, 0.95), {"shuffled labels": 0.5}, 40, better="higher")
CHANGE = Evidence("toxicity", -0.2, None, {"random latent": -0.01}, 40)


def decision() -> Decision:
    return Decision(
        chosen={"features": {"resid_post.1": [3, 17]}},
        evidence={"auroc": SCORE},
        effect={"toxicity": Effect(CHANGE, before=0.5, after=0.3)},
        about={"model": {"name": "<tiny>"}},
    )


def sparsity() -> SparsityDecision:
    mask = {"mlp.down_proj": {"kept": [1, 4]}}
    return SparsityDecision(2, "abs", "global", 0.5, mask, None, SCORE, CHANGE, about={"context": 24})


def test_a_decision_is_read_back_and_shown(tmp_path: Path) -> None:
    path = decision().save_in(tmp_path, "detoxify")
    assert path == tmp_path / "decisions" / "detoxify.json" and Decision.load(path) == decision()
    sparsity().save_in(tmp_path, "layer-2")
    found = decisions(tmp_path)
    assert found == {"detoxify": decision(), "layer-2": sparsity()}
    assert isinstance(found["layer-2"], SparsityDecision)
    assert found["layer-2"].effect == {"cross_entropy": Effect(CHANGE)}
    assert found["layer-2"].evidence == {"rel_error": SCORE}
    assert (
        json.loads((tmp_path / "decisions" / "layer-2.json").read_text())["effect"]["cross_entropy"]["change"]["n"]
        == 40
    )
    assert "17" in repr(decision()) and "toxicity -0.2" in repr(decision()) and "mlp.down_proj" in repr(sparsity())
    assert "&lt;tiny&gt;" in decision()._repr_html_() and "<tiny>" not in decision()._repr_html_()
    assert decisions(tmp_path / "another") == {}
    with pytest.raises(InputError, match="a decision is never changed"):
        decision().save_in(tmp_path, "detoxify")


def test_a_file_of_the_version_before_is_read(tmp_path: Path) -> None:
    written = sparsity().to_json()
    for general in ("chosen", "evidence", "effect"):
        del written[general]
    (tmp_path / "old.json").write_text(json.dumps({**written, "schema": 1}))
    assert SparsityDecision.load(tmp_path / "old.json") == Decision.load(tmp_path / "old.json") == sparsity()


def test_the_class_of_a_kind_is_imported_to_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr("monosem.interventions.decision.import_module", lambda name, package: imported.append(name))
    sparsity().save(tmp_path / "one.json")
    assert isinstance(Decision.load(tmp_path / "one.json"), SparsityDecision)
    assert imported == [KINDS["activation sparsity"]]


def test_every_kind_of_decision_is_in_the_registry() -> None:
    for module in pkgutil.walk_packages(monosem.interventions.__path__, "monosem.interventions."):
        found = importlib.import_module(module.name)
        for kind in vars(found).values():
            if isinstance(kind, type) and issubclass(kind, Decision) and kind is not Decision:
                assert importlib.import_module(KINDS[kind.kind], "monosem.interventions").__name__ == kind.__module__


def test_a_kind_from_elsewhere_says_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({**decision().to_json(), "kind": "a plan of mine", "own": 3}))
    assert Decision.load(path) == decision()
    assert "a decision on a plan of mine, whose class is not imported" in caplog.text


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = decision().save(tmp_path / "one.json")
    with pytest.raises(InputError, match="no decision on activation sparsity"):
        SparsityDecision.load(path)
    for change, told in (({"schema": 3}, "schema 3, this version reads 1 and 2"), ({"kind": None}, "no decision"),
                         ({"evidence": {"a": {"value": 1}}}, "is damaged")):  # fmt: skip
        (tmp_path / "other.json").write_text(json.dumps({**decision().to_json(), **change}))
        with pytest.raises(InputError, match=told):
            Decision.load(tmp_path / "other.json")


def test_fingerprints_follow_the_weights() -> None:
    model, dictionary = HookedModel(build("llama"), name="tiny"), TopK(SAEConfig(4, 6, 2))
    first = fingerprints(model, {"mine": dictionary})
    assert first == fingerprints(model, {"mine": dictionary}) and first["model"]["name"] == "tiny"
    dictionary.W_dec[0, 0] = torch.tensor(1e-20)
    assert fingerprints(model, {"mine": dictionary}) != first

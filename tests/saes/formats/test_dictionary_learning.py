"""Exchange with dictionary_learning itself: our save -> its load, its save -> our load, and back unchanged."""

import json

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.saes import formats, load
from random_dictionaries import NEAR, D, K, N, fill, made, rows, same_tensors


@pytest.fixture
def learning():
    """Their classes by name."""
    library = pytest.importorskip("dictionary_learning")
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    plain = {name: getattr(library.dictionary, name) for name in list(CLASSES)[:4]}
    return plain | {kind.__name__: kind for kind in (AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE)}


CLASSES = {
    "AutoEncoder": ({}, "relu"),
    "AutoEncoderNew": ({}, "relu"),
    "GatedAutoEncoder": ({}, "gated"),
    "JumpReluAutoEncoder": ({}, "jumprelu"),
    "AutoEncoderTopK": ({"k": K}, "topk"),
    "BatchTopKSAE": ({"k": K}, "batchtopk"),
    "MatryoshkaBatchTopKSAE": ({"k": K, "group_sizes": True}, "matryoshka"),
}


def learned(learning, name, n=N):
    arguments = dict(CLASSES[name][0])
    if "group_sizes" in arguments:
        arguments["group_sizes"] = [n // 4, n // 4, n // 2]
    theirs = fill(learning[name](D, n, **arguments))
    if "threshold" in dict(theirs.named_buffers()):
        theirs.threshold.fill_(0.3)
    return theirs


def saved(theirs, folder, **trainer):
    folder.mkdir()
    torch.save(theirs.state_dict(), folder / "ae.pt")
    told = {"dict_class": type(theirs).__name__, "k": K, "lm_name": "gpt2", "submodule_name": "resid_post_layer_4"}
    (folder / "config.json").write_text(json.dumps({"trainer": told | trainer, "buffer": {}}))
    return folder


@pytest.mark.parametrize("n", [N, D])
@pytest.mark.parametrize("name", CLASSES)
def test_dictionary_learning_files_run_here_and_go_back_unchanged(learning, tmp_path, name, n):
    theirs = learned(learning, name, n)
    if name != "AutoEncoderNew":
        with torch.no_grad():
            theirs.scale_biases(3.0)  # as its trainer does before saving: biases and thresholds, not weights
    ours = load(saved(theirs, tmp_path / "theirs"))
    assert ours.architecture == CLASSES[name][1] and ours.place.source.site == Site.parse("resid_post.4")
    torch.testing.assert_close(ours(rows()), theirs(rows()), **NEAR)
    formats.write(load(ours.save(tmp_path / "ours")), tmp_path / "back", "dictionary-learning")
    same_tensors(torch.load(tmp_path / "back/ae.pt", weights_only=True), theirs.state_dict())
    configs = (json.loads((tmp_path / one / "config.json").read_text()) for one in ("theirs", "back"))
    assert next(configs) == next(configs)


@pytest.mark.parametrize("centre_input", [True, False])
@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu", "topk", "batchtopk", "matryoshka"])
def test_dictionary_learning_runs_ours(learning, tmp_path, architecture, centre_input):
    ours = made(architecture, centre_input=centre_input)
    formats.write(ours, tmp_path / "out", "dictionary-learning")
    trainer = json.loads((tmp_path / "out/config.json").read_text())["trainer"]
    theirs = learning[trainer["dict_class"]].from_pretrained(tmp_path / "out/ae.pt")
    torch.testing.assert_close(theirs(rows()), ours(rows()), **NEAR)
    assert trainer["submodule_name"] == "resid_post_layer_2"
    again = load(tmp_path / "out")
    assert type(again) is type(ours)
    if centre_input == again.config.centre_input:
        same_tensors(again.tensors(), ours.tensors())


def test_topk_and_batchtopk_state_dicts_look_the_same(learning, tmp_path):
    theirs = learned(learning, "BatchTopKSAE")
    folder = saved(theirs, tmp_path / "run")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="may be AutoEncoderTopK or BatchTopKSAE"):
        load(folder)
    torch.save(learned(learning, "GatedAutoEncoder").state_dict(), folder / "ae.pt")
    assert load(folder).architecture == "gated"


def test_a_backup_from_the_middle_of_a_run_is_refused(learning, tmp_path):
    state = {"step": 3, "ae": learned(learning, "AutoEncoder").state_dict(), "norm_factor": 2.0}
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(InputError, match="backup from the middle of a run"):
        load(tmp_path)

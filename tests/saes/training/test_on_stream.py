"""`Trainer.on`: one call for every architecture and kind of place, what it refuses, and trainers made by hand."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.lab.runs.loop import train
from monosem.lab.streams.activation_stream import ActivationStream
from monosem.saes.architectures.clt.cross_layer import CrossLayer, CrossLayerConfig
from monosem.saes.architectures.itda.dictionary import ITDA
from monosem.saes.architectures.jumprelu import JumpReLU
from monosem.saes.dictionary import Provenance
from monosem.saes.files import load
from monosem.saes.registry import build_trainable
from monosem.saes.training.clt.trainer import CrossLayerTrainer
from monosem.saes.training.itda.trainer import GrowthConfig, ITDATrainer
from monosem.saes.training.trainer import TrainConfig, Trainer
from toys import WIDTHS, A, B, TinyCorpus, TinyModel, tiny_stream


@pytest.fixture
def stream() -> ActivationStream:
    return tiny_stream()


def test_width_model_norm_limit_and_device_come_from_the_stream(stream: ActivationStream) -> None:
    trainer = Trainer.on(stream, "resid_post.0", "topk", n_latents=64, k=4, rows=500, lr=1e-2, seed=3)
    assert isinstance(trainer, Trainer)
    assert trainer.dictionary.d_in == WIDTHS[A] and trainer.config == TrainConfig(rows=500, lr=1e-2, seed=3)
    assert trainer.provenance.model == TinyModel().fingerprint()
    assert trainer.place.norm_limits == {A: stream.norm_limit[A]} and stream.norm_limit[A] < float("inf")
    assert trainer.dictionary.W_dec.device == stream.device
    sae = trainer.folded()
    assert str(sae.place) == "resid_post.0" and sae.place.norm_limits == {A: stream.norm_limit[A]}


@pytest.mark.parametrize(
    ("place", "architecture", "options", "trained_by"),
    [
        ("resid_post.0 -> mlp_out.1", "jumprelu", {"n_latents": 64, "k": 4, "skip": True, "penalty": "tanh"}, Trainer),
        ("resid_post.0 + mlp_out.1", "batchtopk", {"n_latents": 64, "k": 4}, Trainer),
        ("resid_post.0", "itda", {"max_atoms": 50, "k": 3, "rows": 200}, ITDATrainer),
    ],
)
def test_one_name_trains_every_kind(
    stream: ActivationStream, tmp_path: Path, place: str, architecture: str, options: dict[str, Any], trained_by: type
) -> None:
    trainer = Trainer.on(stream, place, architecture, **{"rows": 400, **options})
    assert isinstance(trainer, trained_by)
    train(stream, trainer, tmp_path / "run", progress=False)
    dictionary = trainer.folded()
    assert str(dictionary.place) == place and dictionary.provenance.model == TinyModel().fingerprint()
    assert dictionary.place.norm_limits == {site: stream.norm_limit[site] for site in dictionary.place.sites}
    (saved,) = (tmp_path / "run" / "dictionaries").iterdir()
    again = load(saved)
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in dictionary.tensors().items())
    assert isinstance(dictionary, ITDA if trained_by is ITDATrainer else JumpReLU | type(again))


class LayeredModel(TinyModel):
    """Two layers, so that a cross-layer transcoder has something to read and to write."""

    sites = tuple(Site.parse(f"{kind}.{layer}") for layer in (0, 1) for kind in ("resid_mid", "mlp_out"))

    def width(self, site: Site) -> int:
        return WIDTHS[A]

    def capture(self, tokens: torch.Tensor, sites: Any, attention_mask: Any = None) -> dict[Site, torch.Tensor]:
        x = self.embed[tokens]
        return {site: x.roll(at, -1) + x.cumsum(1) / 9 for at, site in enumerate(self.sites) if site in sites}


@pytest.mark.parametrize("architecture", ["topk", "clt"])
def test_the_kind_of_the_place_makes_it_a_cross_layer_transcoder(architecture: str) -> None:
    stream = ActivationStream(LayeredModel(), TinyCorpus(), LayeredModel.sites, batch=32, buffer=400)
    place = "resid_mid.0 + resid_mid.1 -> mlp_out.0 + mlp_out.1"
    trainer = Trainer.on(stream, place, architecture, n_latents=32, k=2, rows=100, training=TrainConfig(lr=1e-2))
    assert isinstance(trainer, CrossLayerTrainer) and trainer.config == TrainConfig(rows=100, lr=1e-2)
    trainer.step(next(stream))
    clt = trainer.folded()
    assert isinstance(clt, CrossLayer) and clt.config.base == ("topk" if architecture == "topk" else "batchtopk")
    assert clt.n_latents == 64 and clt.place.norm_limits == stream.norm_limit
    with pytest.raises(InputError, match="clt needs a place such as"):
        Trainer.on(stream, "resid_mid.0", "clt", n_latents=32)
    with pytest.raises(InputError, match="unknown base of a cross-layer transcoder 'gated'"):
        Trainer.on(stream, place, "gated", n_latents=32)


class UnevenModel(LayeredModel):
    """The second layer is wider."""

    def width(self, site: Site) -> int:
        return WIDTHS[A] + site.layer


def test_layers_of_different_widths_are_refused() -> None:
    stream = ActivationStream(UnevenModel(), TinyCorpus(), LayeredModel.sites, batch=32, buffer=400)
    with pytest.raises(
        InputError, match=r"sites of one width to read and one to write: resid_mid\.0 \[12\], resid_mid"
    ):
        Trainer.on(stream, "resid_mid.0 + resid_mid.1 -> mlp_out.0 + mlp_out.1", "topk", n_latents=32, k=2)


REFUSED = [
    (("resid_post.3", "topk"), {"n_latents": 64}, r"resid_post\.3 is not streamed: add it to the stream's sites"),
    (("resid_post.0 -> mlp_out.7", "topk"), {"n_latents": 64}, r"mlp_out\.7 is not streamed"),
    (("resid_post.0", "topkk"), {"n_latents": 64}, "unknown architecture 'topkk': did you mean 'topk'"),
    (("resid_post.0", "pca"), {"n_latents": 12}, "architecture 'pca' cannot be trained: give"),
    (("resid_post.0", "topk"), {"n_latents": 64, "k": 65}, "k must be from 1 to n_latents=64, got 65"),
    (("resid_post.0", "topk"), {}, "topk needs n_latents, the number of latents"),
    (("resid_post.0", "topk"), {"n_latents": 64, "n_latent": 3}, "unknown option of topk 'n_latent': did you mean"),
    (("resid_post.0", "topk"), {"n_latents": 64, "warm_up": 0.1}, "did you mean 'warmup'"),
    (("resid_post.0", "topk"), {"n_latents": 64, "d_in": 12}, "d_in follows from the place and the stream"),
    (("resid_post.0", "relu"), {"n_latents": 64, "warmup": 0.1}, "warmup is an option of the dictionary and of train"),
    (("resid_post.0", "topk"), {"n_latents": 64, "skip": True}, "skip=True is for transcoders"),
    (("resid_post.0 -> mlp_out.1", "mp"), {"n_latents": 64}, "matching pursuit explains what it reads"),
    (("resid_post.0 -> mlp_out.1", "itda"), {"max_atoms": 64}, "an ITDA explains the one site it reads"),
    (("resid_post.0", "itda"), {"max_atom": 64}, "unknown option of itda 'max_atom': did you mean 'max_atoms'"),
    (("resid_post.0", "itda"), {"training": TrainConfig()}, "itda is trained by a GrowthConfig"),
]


@pytest.mark.parametrize(("asked", "options", "message"), REFUSED, ids=[case[2][:40] for case in REFUSED])
def test_what_cannot_be_trained_is_refused_before_the_model_runs(
    asked: tuple[str, str], options: dict[str, Any], message: str
) -> None:
    model = TinyModel()
    stream = tiny_stream(model=model)
    with pytest.raises(InputError, match=message):
        Trainer.on(stream, *asked, **options)
    assert not model.forwards


def test_an_option_of_both_configs_is_given_to_either(stream: ActivationStream) -> None:
    trainer = Trainer.on(
        stream, A, "relu", n_latents=64, k=4, dictionary={"warmup": 0.2}, training=TrainConfig(warmup=0.3), rows=77
    )
    assert isinstance(trainer, Trainer)
    assert (trainer.final_config.warmup, trainer.config.warmup, trainer.config.rows) == (0.2, 0.3, 77)  # type: ignore[attr-defined]
    itda = Trainer.on(stream, A, "itda", training=GrowthConfig(max_atoms=9), k=2)
    assert itda.config == GrowthConfig(max_atoms=9, k=2)


def by_hand(rows: int = 100) -> Trainer:
    return Trainer(build_trainable("topk", d_in=WIDTHS[A], n_latents=64, k=4), A, TrainConfig(rows=rows))


def test_a_trainer_made_by_hand_learns_from_the_loop_where_it_stands(stream: ActivationStream, tmp_path: Path) -> None:
    trainer = by_hand()
    train(stream, trainer, tmp_path / "run", progress=False)
    for sae in (trainer.folded(), load(tmp_path / "run" / "dictionaries" / trainer.name)):
        assert sae.provenance.model == TinyModel().fingerprint()
        assert sae.place.norm_limits == {A: stream.norm_limit[A]}


def test_a_dictionary_that_knows_no_model_is_not_saved_silently(
    stream: ActivationStream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = by_hand()
    trainer.step(next(stream))
    with caplog.at_level(logging.WARNING):
        trainer.save(tmp_path / "bare")
    assert "knows neither its model nor its norm limits" in caplog.text
    caplog.clear()
    known = Trainer.on(stream, A, n_latents=64, k=4)
    known.step(next(stream))
    with caplog.at_level(logging.WARNING):
        known.save(tmp_path / "known")
    assert not caplog.text


def test_a_wrong_name_imports_no_other_trainer() -> None:
    code = (
        "import sys; from monosem.saes.training.trainer import Trainer\n"
        "print(sorted(name for name in sys.modules if 'training.clt' in name or 'training.itda' in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_sites_of_b_are_as_wide_as_they_are_streamed(stream: ActivationStream) -> None:
    trainer = Trainer.on(stream, B, n_latents=64, k=4)
    assert trainer.dictionary.d_in == WIDTHS[B]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"d_sae": 64}, "unknown option of topk 'd_sae': n_latents is the number of latents"),
        ({"training_tokens": 9}, "rows is the number"),
        ({"architecture": "standard"}, "unknown architecture 'standard': it is 'relu' here"),
        ({"rows": 10.5}, "rows must be a whole number from 1, got 10.5"),
    ],
)
def test_habits_from_other_libraries_are_answered(options, sentence, stream: ActivationStream) -> None:
    with pytest.raises(InputError, match=sentence):
        Trainer.on(stream, "resid_post.0", **{"architecture": "topk", "n_latents": 64, "k": 4, "rows": 500, **options})


def test_rows_written_as_a_float_are_whole(stream: ActivationStream) -> None:
    rows = Trainer.on(stream, "resid_post.0", "topk", n_latents=64, k=4, rows=1e3).config.rows  # type: ignore[arg-type]
    assert repr(rows) == "1000"


@pytest.mark.parametrize("kind", ["topk", "itda", "clt"])
def test_a_trainer_of_another_model_is_refused(stream: ActivationStream, tmp_path: Path, kind: str) -> None:
    other = Provenance({"name": "another", "parameters": "0" * 8})
    trainer: Any
    if kind == "topk":
        dictionary = build_trainable("topk", d_in=WIDTHS[A], n_latents=32, k=4)
        trainer = Trainer(dictionary, A, TrainConfig(rows=100), provenance=other)
    elif kind == "itda":
        trainer = ITDATrainer(WIDTHS[A], A, GrowthConfig(max_atoms=20, k=2, rows=100), provenance=other)
    else:
        layers = CrossLayer(CrossLayerConfig.over(1, WIDTHS[A], 32, d_out=WIDTHS[B], k=4))
        trainer = CrossLayerTrainer(layers, [A], [B], TrainConfig(rows=100), provenance=other)
    with pytest.raises(InputError, match=f"{trainer.name} is a dictionary of 'another'.* and the stream reads"):
        train(stream, trainer, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists() and trainer.provenance == other
    trainer.provenance = Provenance(dict(stream.fingerprint()["model"]))
    train(stream, trainer, progress=False)

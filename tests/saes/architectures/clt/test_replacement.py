"""Scores of cross-layer transcoders beside their nulls, the replacement model, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monosem.lab.app.commands.train import TrainCommand
from monosem.lab.app.dictionary_options import DictionaryOptions
from monosem.lab.app.training_options import StreamOptions
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.streams.activation_stream import ActivationStream, Batch, StreamConfig
from monosem.lab.text.corpus import Corpus
from monosem.saes.architectures.clt.cross_layer import CrossLayer, CrossLayerConfig
from monosem.saes.architectures.linear import Linear
from monosem.saes.evaluation.clt.nulls import fit_cross_layer_nulls, own_layer
from monosem.saes.evaluation.clt.replacement import replace_outputs
from monosem.saes.evaluation.clt.scores import CrossLayerReconstruction
from monosem.saes.evaluation.evaluate import evaluate
from monosem.saes.files import load
from monosem.saes.place import Place
from monosem.saes.training.trainer import TrainConfig, Trainer
from planted_layers import LAYERS, OUT, READ, WRITTEN, D, K, fvu, planted, trained
from tiny_models import Letters
from tiny_models import build as tiny

torch.set_num_threads(1)


def rows_of(read: list[torch.Tensor], written: list[torch.Tensor]) -> list[Batch]:
    origin = torch.stack([torch.arange(len(read[0])) // 10, torch.zeros(len(read[0]), dtype=torch.int64)], 1)
    return [Batch(dict(zip((*READ, *WRITTEN), (*read, *written), strict=True)), origin)]


def test_scores_of_every_layer_and_nulls_that_learned_less() -> None:
    clt, (read, written) = trained("topk").folded(), planted(1000, seed=3)
    nulls = fit_cross_layer_nulls(torch.cat(planted(600, seed=4)[0], 1), clt, 0, torch.cat(planted(600, seed=4)[1], 1))
    measured = {name: CrossLayerReconstruction(one, rows=800) for name, one in {"": clt, **nulls}.items()}
    for one in measured.values():
        one.step(rows_of(read, written)[0])
    found = measured.pop("").evidence(measured, held_out="fresh rows")
    y, y_hat = (part[:800] for part in (torch.cat(written, 1), clt(torch.cat(read, 1))))
    assert found["fvu"].value == pytest.approx(fvu(y_hat, y), rel=1e-4) and found["fvu"].n == 80
    per_layer = [found[f"fvu_{site}"] for site in WRITTEN]
    for at, one in enumerate(per_layer):
        own = slice(at * OUT, (at + 1) * OUT)
        assert one.value == pytest.approx(fvu(y_hat[:, own], y[:, own]), rel=1e-4)
    assert found["fvu_mean"].value == pytest.approx(sum(one.value for one in per_layer) / LAYERS)
    assert per_layer[0].nulls["own_layer"] == pytest.approx(per_layer[0].value, rel=0.05)  # nothing comes from before
    assert per_layer[2].nulls["own_layer"] > 2 * per_layer[2].value and found["fvu"].beats_nulls()
    assert set(found["fvu"].nulls) == {"own_layer", "untrained", "linear"} and found["fvu"].interval is not None
    assert found["l0"].nulls["untrained"] == pytest.approx(found["l0"].value) and found["l0"].nulls["linear"] == 0
    assert found["l0"].value == pytest.approx(LAYERS * K) and found["l0_resid_mid.1"].value == pytest.approx(K)
    x, y = (torch.cat(part, 1)[:, : D if part is read else OUT] for part in (read, written))
    by_hand = Linear.fit(x[:600], y[:600])  # what the linear null is in its first layer
    null = fit_cross_layer_nulls(torch.cat(read, 1)[:600], clt, 0, torch.cat(written, 1)[:600])["linear"]
    assert torch.allclose(null(torch.cat(read, 1))[:, :OUT], by_hand(x), atol=1e-4)
    with pytest.raises(InputError, match="names no site"):
        CrossLayerReconstruction(CrossLayer(clt.config))
    with pytest.raises(InputError, match="one site for each that it reads, got 3 for 2"):
        CrossLayerReconstruction(clt, READ[:2])
    with pytest.raises(InputError, match="has measured no rows"):
        CrossLayerReconstruction(clt).evidence()


def corpus() -> Corpus:
    texts = ["".join(chr(33 + (i * i + j * (7 + i % 5)) % 90) for j in range(12 + i % 9)) for i in range(20)]
    return Corpus(texts, Letters(), context=16, batch_rows=4)


def down_projections(module: torch.nn.Module) -> CrossLayer:
    """The exact transcoder from the MLPs' activations to their outputs: a latent for each sign of each of them."""
    clt = CrossLayer(CrossLayerConfig(3 * 56, 3 * 112, d_out=3 * 32, layers=3, base="relu"))
    for layer, block in enumerate(clt.layers):
        block.W_enc.copy_(torch.cat([torch.eye(56), -torch.eye(56)]))
        weight = module.model.layers[layer].mlp.down_proj.weight.T
        block.W_dec[:, :32] = torch.cat([weight, -weight])
    clt.place = "mlp_act.0-2 -> mlp_out.0-2"
    return clt


def test_an_exact_replacement_model_is_the_model() -> None:
    module = tiny("llama")
    model, clt = HookedModel(module, name="tiny-llama"), down_projections(module)
    both = {"clt": clt, "own_layer": own_layer(clt, torch.zeros(2, 168), torch.zeros(2, 96))}
    found = replace_outputs(model, corpus(), both, torch.zeros(96), tokens=100)
    scores = found.evidence("clt", ["own_layer"])
    assert abs(scores["kl"].value) < 1e-4 < scores["kl"].nulls["zero"]
    assert scores["ce_recovered_zero"].value == pytest.approx(1, abs=1e-2)
    assert abs(scores["kl"].nulls["own_layer"]) < 1e-4 and found.counts["edited"] >= 100
    clt.decoder_of(0, 2).add_(0.5)  # what crosses layers reaches the output of a later one
    crossed = replace_outputs(model, corpus(), both, torch.zeros(96), tokens=100).evidence("clt", ["own_layer"])
    assert crossed["kl"].value > 1e-2 and abs(crossed["kl"].nulls["own_layer"]) < 1e-4
    clt.place = clt.place.limited([None, 1e-6, None, None, None, None])
    kept = replace_outputs(model, corpus(), {"clt": clt}, torch.zeros(96), tokens=100)
    assert kept.counts["edited"] == 0 and abs(kept.evidence("clt")["kl"].value) < 1e-6
    late = CrossLayer(CrossLayerConfig(3 * 32, 3 * 4, layers=3, k=2))
    late.place = "resid_post.0 + mlp_out.1 + mlp_out.2 -> mlp_out.0 + resid_post.1 + resid_post.2"
    with pytest.raises(InputError, match=r"must read an earlier site than mlp_out.0, not resid_post.0"):
        replace_outputs(model, corpus(), {"late": late}, torch.zeros(96), tokens=9)
    with pytest.raises(InputError, match="a dictionary cannot be named 'zero'"):
        replace_outputs(model, corpus(), {"zero": clt}, torch.zeros(96), tokens=9)


def test_a_trainer_for_a_stream_and_its_replacement_model(tmp_path: Path) -> None:
    model = HookedModel(tiny("llama"), name="tiny-llama")
    stream = ActivationStream(model, corpus(), [*READ, *WRITTEN], batch=64, buffer=256)
    trainer = Trainer.on(stream, Place.at(READ, WRITTEN), "topk", n_latents=40, k=4, rows=128)
    for _ in range(2):
        trainer.step(next(stream))
    clt = load(trainer.folded().save(tmp_path))
    assert isinstance(clt, CrossLayer) and clt.d_in == clt.d_out == 96 and clt.n_latents == 120
    assert clt.provenance.model["name"] == "tiny-llama" and all(clt.place.norm_limits.values())
    with pytest.raises(InputError, match="a dictionary of one site here"):
        clt.check(model).site  # noqa: B018
    sizes = {"tokens": 60, "ce_tokens": 40, "fit_tokens": 40}
    found = evaluate(model, corpus(), clt, progress=False, **sizes)
    assert found.site == "resid_mid.0-2 -> mlp_out.0-2"
    assert {"fvu", "fvu_mean", "l0_resid_mid.2", "dead", "decoder_max_cosine"} <= found.scores.keys()
    assert set(found["fvu"].nulls) == {"own_layer", "untrained", "linear"}
    assert set(found["ce_recovered_zero"].nulls) == {"mean", "own_layer", "untrained", "linear"}
    assert found["ce_recovered_zero"].interval is not None and found.counts["edited"] > 30
    assert found.to_json() == evaluate(model, corpus(), clt, progress=False, **sizes).to_json()


def test_the_command_trains_one_over_all_sites(tmp_path: Path) -> None:
    texts = {"sites": tuple(map(str, READ)), "targets": tuple(map(str, WRITTEN))}
    options = {"dictionary": DictionaryOptions("batchtopk", n_latents=40, k=4), "training": TrainConfig(rows=192)}
    reading = StreamOptions(stream=StreamConfig(batch=64))
    command = TrainCommand(tmp_path, **texts, **options, joint=True, skip=True, reading=reading)
    stream = ActivationStream(
        HookedModel(tiny("llama"), name="tiny-llama"), corpus(), [*READ, *WRITTEN], batch=64, buffer=256
    )
    run = command.train(stream)
    (name,) = run.dictionaries
    clt = load(run.dictionaries[name])
    assert (
        isinstance(clt, CrossLayer)
        and clt.config.joint
        and clt.W_skip is not None
        and clt.config.layers == 3
        and clt.n_latents == 120
    )
    assert f"fvu_{WRITTEN[1]}" in run.metrics(name)[-1]
    for wrong, message in (
        ({"targets": ("mlp_out.0",)}, "one of --targets for each of --sites, got 1 for 3"),
        ({"target": "mlp_out.2"}, "leave out --target and --crosscode"),
        ({"targets": (), "joint": True}, "--joint is for cross-layer transcoders"),
    ):
        with pytest.raises(InputError, match=message):
            TrainCommand(tmp_path, **{**texts, **wrong})
    with pytest.raises(InputError, match="unknown option of clt 'penalty'"):
        Trainer.on(stream, Place.at(READ, WRITTEN), n_latents=4, penalty="tanh")

"""`Place`: the one answer to what a dictionary reads and predicts, its errors, and that nobody decides it again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.sites import Site
from monosem.saes import TopK, TrainConfig, Trainer, build, load
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.place import Place, Port
from monosem.saes.place_files import place_from_json, place_json
from tiny_models import build as tiny
from toys import A, B, tiny_stream

ROOT = Path(__file__).parents[2]
DECIDED_IN = {"saes/place.py", "saes/place_files.py"}
DECISION = re.compile(
    r"\bd_out is (not )?None|rovenance\.(site|target|targets|sources|norm_limits?|scales)\b"
    r"|architecture [!=]= \"clt\"|isinstance\([^)]*CrossLayer|config\.sources"
)


def test_nobody_else_decides_what_a_dictionary_reads_or_predicts() -> None:
    packages = (ROOT / name for name in ("lab", "saes", "probes", "interventions"))
    lines = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()}"
        for package in packages for path in sorted(package.rglob("*.py"))
        if str(path.relative_to(ROOT)) not in DECIDED_IN
        for number, line in enumerate(path.read_text().splitlines(), 1) if DECISION.search(line)
    ]  # fmt: skip
    assert not lines, lines


@pytest.mark.parametrize(
    ("dictionary", "kind", "widths", "example"),
    [
        (build("topk", d_in=6, n_latents=8, k=2), "sae", (6,), "resid_post.12"),
        (build("topk", d_in=6, d_out=4, n_latents=8, k=2), "transcoder", (6, 4), "resid_mid.12 -> mlp_out.12"),
        (build("topk", d_in=6, sources=(2, 4), n_latents=8, k=2), "crosscoder", (2, 4),
         "resid_post.12 + resid_post.13"),
        (build("clt", d_in=6, d_out=4, layers=2, n_latents=8, k=2), "clt", (3, 3, 2, 2),
         "resid_mid.12 + resid_mid.13 -> mlp_out.12 + mlp_out.13"),
    ],
)  # fmt: skip
def test_a_dictionary_built_by_hand_says_how_to_name_its_sites(dictionary, kind, widths, example) -> None:
    place = dictionary.place
    assert place.kind == kind and tuple(port.width for port in place.ports) == widths and not place.named
    with pytest.raises(InputError, match=re.escape(f"dictionary.place = '{example}'")):
        place.sites  # noqa: B018
    dictionary.place = example
    assert str(dictionary.place) == example and dictionary.place.kind == kind
    assert tuple(port.width for port in dictionary.place.ports) == widths


def test_a_place_that_does_not_fit_is_refused_and_the_old_one_stays() -> None:
    sae = TopK(SAEConfig(d_in=6, n_latents=8, k=2))
    sae.place = "resid_post.3"
    for place, text in (
        ("resid_post.3 -> mlp_out.3", "reads 1 and predicts 1 sites, and this sae reads 1 and predicts 0"),
        (Place((Port(Site.parse("resid_post.3"), width=7),)), "resid_post.3 has width 7, and the dictionary has 6"),
        ("resid_pst.3", "did you mean"),
    ):
        with pytest.raises(InputError, match=text):
            sae.place = place
    assert str(sae.place) == "resid_post.3"


def test_sites_widths_and_limits_come_from_the_stream_and_are_saved(tmp_path: Path) -> None:
    stream = tiny_stream()
    place = Place.parse(f"{A} -> {B}").on(stream)
    assert [port.width for port in place.ports] == [12, 20] and place.norm_limits == stream.norm_limit
    with pytest.raises(InputError, match=r"resid_post.7 is not on the stream: it reads resid_post.0, mlp_out.1"):
        Place.parse("resid_post.7").on(stream)
    trainer = Trainer(build("topk", d_in=12, d_out=20, n_latents=30, k=3), place, TrainConfig(rows=64))  # type: ignore
    trainer.step(next(stream))
    again = load(trainer.folded().save(tmp_path)).place
    assert again.norm_limits == stream.norm_limit and all(port.scale for port in again.ports)
    assert place_from_json(json.loads(json.dumps(place_json(again)))) == again


def test_another_model_another_width_and_several_sites_are_refused() -> None:
    model = HookedModel(tiny("llama"), name="tiny")
    sae = TopK(SAEConfig(d_in=32, n_latents=40, k=2))
    sae.place, sae.provenance.model = "blocks.1.hook_resid_post", model.fingerprint()
    assert sae.check(model).site == Site.parse("resid_post.1")
    with pytest.raises(InputError, match=r"mlp_act.1 of 'tiny' has width 56, the dictionary d_in=32"):
        sae.place = "mlp_act.1"
        sae.check(model)
    other = HookedModel(tiny("llama", seed=1), name="other")
    with pytest.raises(InputError, match=r"was trained on 'tiny' .* and the model is 'other'"):
        sae.check(other)
    both = build("topk", d_in=64, sources=(32, 32), n_latents=40, k=2)
    both.place = "resid_post.0 + resid_post.1"
    with pytest.raises(InputError, match=r"reads resid_post.0 and resid_post.1: use a dictionary of one site"):
        both.check(model).site  # noqa: B018
    assert torch.equal(both.decoder_of(1), both.W_dec[:, 32:])


def test_a_model_that_files_name_alone_is_known_by_any_of_its_names(tmp_path: Path) -> None:
    sae = TopK(SAEConfig(d_in=32, n_latents=40, k=2))
    sae.place, sae.provenance.model = "resid_post.1", {"name": "gpt2-small"}
    for name in ("gpt2-small", "gpt2", "openai-community/gpt2", str(tmp_path)):
        assert sae.check(HookedModel(tiny("gpt2"), name=name)).site == Site.parse("resid_post.1")
    for name in ("gpt2-medium", "someone/gpt2"):
        with pytest.raises(InputError, match=rf"was trained on 'gpt2-small' .* is '{name}' .*--model-is-the-same"):
            sae.check(HookedModel(tiny("gpt2"), name=name))
    with pytest.raises(InputError, match=r"\(family gpt2\) and the model is .* \(family llama\)"):
        sae.check(HookedModel(tiny("llama"), name=str(tmp_path)))


def test_a_stated_model_is_the_dictionary_s_own_where_its_widths_fit() -> None:
    sae = TopK(SAEConfig(d_in=32, n_latents=40, k=2))
    sae.place, sae.provenance.model = "resid_post.1", {"name": "gpt2-small"}
    model = HookedModel(tiny("llama"), name="other")
    assert sae.set_model(model).check(model).site == Site.parse("resid_post.1")
    assert sae.provenance.model == model.fingerprint()
    assert sae.provenance.training["model_of_files"] == {"name": "gpt2-small"}
    sae.place = "mlp_act.1"
    with pytest.raises(InputError, match=r"mlp_act.1 of 'other' has width 56, the dictionary d_in=32"):
        sae.set_model(model)


def test_numbers_stay_with_their_sites() -> None:
    sae = build("topk", d_in=64, sources=(32, 32), n_latents=40, k=2)
    sae.place = Place.at(["resid_post.0", "resid_post.1"]).limited([5.0, None]).scaled([0.5, 2.0])
    assert sae.place.norm_limits == {Site.parse("resid_post.0"): 5.0, Site.parse("resid_post.1"): None}
    assert sae.place.scales == [0.5, 2.0] and sae.config.place.scales == [1.0, 1.0]

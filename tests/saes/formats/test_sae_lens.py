"""Exchange with SAELens itself: our save -> its load, its save -> our load, and back unchanged."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.saes import formats, load
from monosem.saes.formats.portable import Portable, unit_decoder
from random_dictionaries import NEAR, D, K, N, fill, made, rows, same_tensors
from safetensors.torch import load_file, save_file


@pytest.fixture
def lens():
    library = pytest.importorskip("sae_lens")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield library


OURS_THERE = {
    "topk": "topk",
    "abstopk": "abstopk",
    "relu": "standard",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
}


@pytest.mark.parametrize("n", [N, D])
@pytest.mark.parametrize("centre_input", [True, False])
@pytest.mark.parametrize("architecture", OURS_THERE)
def test_sae_lens_runs_ours_and_they_come_back(lens, tmp_path, architecture, centre_input, n):
    ours = made(architecture, n, centre_input=centre_input)
    done = formats.write(ours, tmp_path / "out", "sae-lens")
    assert not done.lost and not done.rounded
    theirs = lens.SAE.load_from_disk(tmp_path / "out", device="cpu")
    assert theirs.cfg.architecture() == OURS_THERE[architecture]
    assert theirs.cfg.metadata.hook_name == "blocks.2.hook_resid_post" and theirs.cfg.metadata.model_name == "gpt2"
    torch.testing.assert_close(theirs(rows()), ours(rows()), **NEAR)
    again = load(tmp_path / "out")
    assert (
        type(again) is type(ours)
        and again.config == ours.config
        and (again.place, again.provenance) == (ours.place, ours.provenance)
    )
    same_tensors(again.tensors(), ours.tensors())


def lens_sae(lens, architecture, n=N, **config):
    """One of theirs with random weights."""
    from sae_lens.registry import get_sae_class

    kind, config_kind = get_sae_class(architecture)
    if architecture.endswith("topk"):
        config = {"k": K} | config
    theirs = fill(kind(config_kind(d_in=D, d_sae=n, **config)), seed=5)
    theirs.cfg.metadata["hook_name"] = "blocks.3.hook_mlp_out"
    return theirs


@pytest.mark.parametrize("n", [N, D])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "abstopk", "jumprelu", "gated"])
def test_sae_lens_files_run_here_and_go_back_unchanged(lens, tmp_path, architecture, centred, n):
    theirs = lens_sae(lens, architecture, n, apply_b_dec_to_input=centred)
    theirs.save_model(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert ours.place.source.site == Site.parse("mlp_add.3")
    torch.testing.assert_close(ours(rows()), theirs(rows()), **NEAR)
    kept = load(ours.save(tmp_path / "ours"))
    formats.write(kept, tmp_path / "back", "sae-lens")
    same_tensors(load_file(tmp_path / "back/sae_weights.safetensors"), theirs.state_dict())
    first, second = ((tmp_path / name / "cfg.json").read_text() for name in ("theirs", "back"))
    assert json.loads(first) == json.loads(second)


def test_negative_and_unset_thresholds_act_as_zero_and_are_kept(lens, tmp_path):
    theirs = lens_sae(lens, "jumprelu")
    theirs.threshold.data[:12] = -1.0
    theirs.save_model(tmp_path / "theirs")
    assert (theirs.encode(rows())[:, :12] >= 0).all() and theirs.encode(rows())[:, :12].any()
    ours = load(tmp_path / "theirs")
    torch.testing.assert_close(ours.encode(rows()).to_dense(), theirs.encode(rows()), **NEAR)
    formats.write(ours, tmp_path / "back", "sae-lens")
    same_tensors(load_file(tmp_path / "back/sae_weights.safetensors"), theirs.state_dict())

    unset = made("batchtopk")
    unset.threshold.fill_(-1.0)
    formats.write(unset, tmp_path / "unset", "sae-lens")
    theirs = lens.SAE.load_from_disk(tmp_path / "unset", device="cpu")
    torch.testing.assert_close(theirs(rows()), unset(rows()), **NEAR)
    assert load(tmp_path / "unset").threshold == -1.0


def test_more_codes_asked_for_than_are_positive(lens, tmp_path):
    ours = made("topk")
    ours.b_enc.sub_(3.0)
    formats.write(ours, tmp_path / "out", "sae-lens")
    theirs = lens.SAE.load_from_disk(tmp_path / "out", device="cpu")
    assert ((ours.encode(rows()).values > 0).sum() < K * 40).item()
    torch.testing.assert_close(theirs(rows()), ours(rows()), **NEAR)


def test_bf16_file_under_a_float32_config(lens, tmp_path):
    theirs = lens_sae(lens, "jumprelu")
    theirs.save_model(tmp_path / "theirs")
    file = tmp_path / "theirs/sae_weights.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    ours = load(tmp_path / "theirs")
    torch.testing.assert_close(ours(rows()), lens.SAE.load_from_disk(tmp_path / "theirs", device="cpu")(rows()), **NEAR)
    formats.write(ours, tmp_path / "back", "sae-lens")
    same_tensors(load_file(tmp_path / "back/sae_weights.safetensors"), load_file(file))


def test_configs_without_a_version_and_older_than_6(lens, tmp_path):
    theirs = lens_sae(lens, "topk")
    theirs.save_model(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    del config["metadata"]["sae_lens_version"]
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    torch.testing.assert_close(load(tmp_path)(rows()), theirs(rows()), **NEAR)

    old = {"architecture": "standard", "d_in": D, "d_sae": N, "dtype": "torch.float32", "activation_fn_str": "topk",
           "activation_fn_kwargs": {"k": K}, "hook_point": "blocks.1.hook_resid_pre", "model_name": "gpt2-small",
           "normalize_activations": False}  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    ours = load(tmp_path)
    told = (ours.architecture, str(ours.place), ours.provenance.model["name"])
    assert told == ("topk", "resid_pre.1", "gpt2-small")
    torch.testing.assert_close(ours(rows()), lens.SAE.load_from_disk(tmp_path, device="cpu")(rows()), **NEAR)
    formats.write(ours, tmp_path / "back", "sae-lens")
    torch.testing.assert_close(lens.SAE.load_from_disk(tmp_path / "back", device="cpu")(rows()), theirs(rows()), **NEAR)


@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_rescaling_by_decoder_norms(lens, tmp_path, architecture):
    theirs = lens_sae(lens, architecture, rescale_acts_by_decoder_norm=True)
    theirs.save_model(tmp_path / "rough")
    with pytest.raises(InputError, match="rescaled by decoder norms that are not one"):
        load(tmp_path / "rough")
    ours = formats.read(tmp_path / "rough", lossy=True)
    torch.testing.assert_close(ours(rows()), theirs(rows()), **NEAR)
    assert "decoder norms" in ours.provenance.training["imported"]["lost"][0]

    theirs.fold_W_dec_norm()
    theirs.save_model(tmp_path / "folded")
    ours = load(tmp_path / "folded")
    torch.testing.assert_close(ours(rows()), theirs(rows()), **NEAR)
    formats.write(ours, tmp_path / "back", "sae-lens")
    same_tensors(load_file(tmp_path / "back/sae_weights.safetensors"), theirs.state_dict())


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_a_decoder_of_unit_rows_is_the_same_function(architecture):
    portable = Portable.of(made(architecture))
    sizes = torch.linspace(0.5, 3, N)
    long = replace(portable, tensors=portable.tensors | {"W_dec": portable.tensors["W_dec"] * sizes[:, None]})
    before, after = long.build(), unit_decoder(long).build()
    torch.testing.assert_close(after.W_dec.norm(dim=1), torch.ones(N))
    torch.testing.assert_close(after(rows()), before(rows()), **NEAR)
    norms = before.W_dec.norm(dim=1)
    torch.testing.assert_close(after.encode(rows()).to_dense(), before.encode(rows()).to_dense() * norms, **NEAR)


def test_logarithms_of_thresholds_and_a_scaling_factor_of_ones_are_read(lens, tmp_path):
    theirs = lens_sae(lens, "jumprelu")
    theirs.save_model(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    tensors = load_file(file)
    threshold = tensors.pop("threshold").abs() + 0.1
    save_file(tensors | {"log_threshold": threshold.log(), "scaling_factor": torch.ones(N)}, file)
    theirs.threshold.data.copy_(threshold)
    torch.testing.assert_close(load(tmp_path)(rows()), theirs(rows()), **NEAR)


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale", "expected_average_only_in"])
def test_normalisation_that_no_dictionary_holds_is_refused(lens, tmp_path, kind):
    theirs = lens_sae(lens, "topk", normalize_activations=kind)
    theirs.save_model(tmp_path)
    with pytest.raises(InputError, match=r"the dictionary will.*give lossy"):
        load(tmp_path)
    ours = formats.read(tmp_path, lossy=True)
    scaled = theirs.run_time_activation_norm_fn_in(rows())
    expected = theirs.encode(rows())
    torch.testing.assert_close(ours.encode(scaled).to_dense(), expected, **NEAR)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
def test_training_checkpoints_of_batchtopk(lens, tmp_path, architecture):
    from sae_lens.registry import get_sae_training_class

    kind, config = get_sae_training_class(architecture)
    more = {"matryoshka_widths": [6, N]} if "matryoshka" in architecture else {}
    theirs = fill(kind(config(d_in=D, d_sae=N, k=K, rescale_acts_by_decoder_norm=False, **more)))
    theirs.topk_threshold.fill_(0.6)
    theirs.save_model(tmp_path / "training")
    theirs.save_inference_model(tmp_path / "inference")
    inference = lens.SAE.load_from_disk(tmp_path / "inference", device="cpu")
    ours = load(tmp_path / "training")
    assert ours.architecture == architecture.removesuffix("_batchtopk")
    assert more == {} or ours.config.prefixes == (6, N)
    torch.testing.assert_close(ours(rows()), inference(rows()), **NEAR)
    torch.testing.assert_close(load(tmp_path / "inference")(rows()), inference(rows()), **NEAR)


ACROSS = ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]


@pytest.mark.parametrize("n", [N, D])
@pytest.mark.parametrize("d_out", [5, D])
@pytest.mark.parametrize("architecture", ACROSS)
def test_transcoders_of_sae_lens_run_here_and_go_back_unchanged(lens, tmp_path, architecture, d_out, n):
    theirs = lens_sae(lens, architecture, n, apply_b_dec_to_input=False, d_out=d_out)
    theirs.cfg.metadata["hook_name_out"] = "blocks.3.hook_mlp_out"
    theirs.save_model(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert (ours.d_out, str(ours.place.target)) == (d_out, "mlp_add.3")
    torch.testing.assert_close(ours(rows()), theirs(rows()), **NEAR)
    there_and_back(ours, theirs, tmp_path)


def there_and_back(ours, theirs, tmp_path):
    """Saved as ours, read, and written as theirs again: the same files."""
    formats.write(load(ours.save(tmp_path / "ours")), tmp_path / "back", "sae-lens")
    same_tensors(load_file(tmp_path / "back/sae_weights.safetensors"), theirs.state_dict())
    first, second = (json.loads((tmp_path / name / "cfg.json").read_text()) for name in ("theirs", "back"))
    assert first == second


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("d_out", [5, D])
@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "batchtopk", "matryoshka"])
def test_sae_lens_runs_our_transcoders_and_they_come_back(lens, tmp_path, architecture, d_out, skip):
    ours = made(architecture, d_out=d_out, skip=skip)
    ours.place = "resid_post.2 -> mlp_add.2"
    done = formats.write(ours, tmp_path / "out", "sae-lens")
    assert not done.lost and not done.rounded
    theirs = lens.SAE.load_from_disk(tmp_path / "out", device="cpu")
    kind = "skip_transcoder" if skip else "transcoder"
    assert theirs.cfg.architecture() == (kind if architecture == "relu" else f"jumprelu_{kind}")
    assert theirs.cfg.metadata.hook_name_out == "blocks.2.hook_mlp_out"
    torch.testing.assert_close(theirs(rows()), ours(rows()), **NEAR)
    again = load(tmp_path / "out")
    assert (
        type(again) is type(ours)
        and again.config == ours.config
        and (again.place, again.provenance) == (ours.place, ours.provenance)
    )
    same_tensors(again.tensors(), ours.tensors())


def test_transcoders_that_sae_lens_has_no_class_for(lens, tmp_path):
    with pytest.raises(InputError, match=r"there is no TopK transcoder.*give lossy"):
        formats.write(made("topk", d_out=5), tmp_path / "out", "sae-lens")
    done = formats.write(made("topk", d_out=5), tmp_path / "out", "sae-lens", lossy=True)
    assert len(done.lost) == 1
    assert lens.SAE.load_from_disk(tmp_path / "out", device="cpu").cfg.architecture() == "transcoder"
    for impossible in ("gated", "abstopk", "groupmax"):
        with pytest.raises(InputError, match=f"holds jumprelu, relu transcoders, and this is {impossible}"):
            formats.write(made(impossible, d_out=5), tmp_path / "no", "sae-lens", lossy=True)
    with pytest.raises(InputError, match="no other format holds a crosscoder"):
        formats.write(made("topk", sources=(3, 5)), tmp_path / "no", "sae-lens")


STOPS = [{}, {"stop_on_duplicate_support": False, "max_iterations": 3}, {"residual_threshold": 2.0},
         {"residual_threshold": 0.0, "max_iterations": 12}]  # fmt: skip


@pytest.mark.parametrize("stops", STOPS)
@pytest.mark.parametrize("unit", [True, False])
def test_matching_pursuit_of_sae_lens_runs_here_and_goes_back_unchanged(lens, tmp_path, stops, unit):
    theirs = lens_sae(lens, "matching_pursuit", **stops)
    if unit:
        theirs.W_dec.data /= theirs.W_dec.data.norm(dim=1, keepdim=True)
    theirs.save_model(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    torch.testing.assert_close(ours.encode(rows()).to_dense(), theirs.encode(rows()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours(rows()), theirs(rows()), rtol=1e-4, atol=1e-4)
    there_and_back(ours, theirs, tmp_path)


def test_sae_lens_runs_our_matching_pursuit_and_it_comes_back(lens, tmp_path):
    ours = made("mp", residual_threshold=0.5)
    ours.tie()
    assert not formats.write(ours, tmp_path / "out", "sae-lens").lost
    theirs = lens.SAE.load_from_disk(tmp_path / "out", device="cpu")
    torch.testing.assert_close(theirs(rows()), ours(rows()), rtol=1e-4, atol=1e-4)
    again = load(tmp_path / "out")
    assert again.config == ours.config
    same_tensors(again.tensors(), ours.tensors())
    for to in ("sparsify", "dictionary-learning", "gemma-scope", "openai"):
        with pytest.raises(InputError, match="and this is mp"):
            formats.write(ours, tmp_path / "no", to, lossy=True)
    with pytest.raises(InputError, match=r"tolerance is 0\.2: rows will spend all steps"):
        formats.write(made("mp", tolerance=0.2), tmp_path / "no", "sae-lens")


def test_a_bias_that_a_matching_pursuit_does_not_use(lens, tmp_path):
    theirs = lens_sae(lens, "matching_pursuit", apply_b_dec_to_input=False)
    theirs.save_model(tmp_path)
    with pytest.raises(InputError, match="b_dec is neither subtracted nor added there"):
        load(tmp_path)
    ours = formats.read(tmp_path, lossy=True)
    torch.testing.assert_close(ours(rows()), theirs(rows()), rtol=1e-4, atol=1e-4)


def test_a_stream_without_its_mean_is_told(lens, tmp_path, caplog):
    lens_sae(lens, "topk").save_model(tmp_path / "plain")
    text = json.loads((tmp_path / "plain" / "cfg.json").read_text())
    for centred in (False, True):
        text.setdefault("metadata", {})["model_from_pretrained_kwargs"] = {"center_writing_weights": centred}
        (tmp_path / "plain" / "cfg.json").write_text(json.dumps(text))
        caplog.clear()
        with caplog.at_level("WARNING"):
            load(tmp_path / "plain")
        assert ("rows have mean zero" in caplog.text) == centred

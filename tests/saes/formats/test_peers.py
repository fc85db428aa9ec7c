"""Exchange with the libraries themselves: our save -> their load, their save -> our load, and back unchanged."""

import json
import os
import warnings

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.loading import load_model
from monosem.lab.models.sites import Site
from monosem.saes import build, formats, load
from safetensors.torch import load_file, save_file
from tiny_models import build as build_model

D, N, K = 8, 24, 4
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def fill(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return module


def made(architecture, n=N, **config):
    """A dictionary of ours with random weights, a quarter of whose thresholds are zero."""
    dictionary = fill(build(architecture, d_in=D, n_latents=n, k=K, **config))
    for name, tensor in dictionary.state_dict().items():
        if name in ("threshold", "theta"):
            tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(2)).sub(0.25).clamp_min(0))
    if "sources" not in config:
        dictionary.place = "resid_post.2 -> mlp_out.2" if "d_out" in config else "resid_post.2"
    dictionary.provenance.model = {"name": "gpt2"}
    return dictionary


def rows(count=40):
    return 2 * torch.randn(count, D, generator=torch.Generator().manual_seed(3))


def same_tensors(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]), name


# --- SAELens


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


# --- sparsify


@pytest.fixture
def sparsify():
    return pytest.importorskip("sparsify")


@pytest.mark.parametrize("n", [N, D])
@pytest.mark.parametrize("architecture", ["topk", "groupmax"])
def test_sparsify_runs_ours_and_they_come_back(sparsify, tmp_path, architecture, n):
    ours = made(architecture, n)
    formats.write(ours, tmp_path / "layers.2", "sparsify")
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path / "layers.2")
    torch.testing.assert_close(theirs(rows()).sae_out, ours(rows()), **NEAR)
    again = load(tmp_path / "layers.2")
    assert again.config == ours.config and again.place.source.site == Site.parse("resid_post.2")
    same_tensors(again.tensors(), ours.tensors())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [N, D])
@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparsify_files_run_here_and_go_back_unchanged(sparsify, tmp_path, activation, n, dtype):
    from sparsify.config import SparseCoderConfig

    config = SparseCoderConfig(activation=activation, num_latents=n, k=K, normalize_decoder=False)
    theirs = fill(sparsify.SparseCoder(D, config, dtype=dtype))
    theirs.save_to_disk(tmp_path / "layers.5.mlp")
    ours = load(tmp_path / "layers.5.mlp")
    assert ours.place.source.site == Site.parse("mlp_out.5")
    torch.testing.assert_close(ours(rows()), theirs.float()(rows()).sae_out, **NEAR)
    formats.write(load(ours.save(tmp_path / "ours")), tmp_path / "back", "sparsify")
    files = (load_file(tmp_path / name / "sae.safetensors") for name in ("layers.5.mlp", "back"))
    same_tensors(*files)
    configs = (json.loads((tmp_path / name / "cfg.json").read_text()) for name in ("layers.5.mlp", "back"))
    assert next(configs) == next(configs)


@pytest.mark.parametrize("transcode", [True, False])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_transcoders_of_sparsify_run_here_and_go_back_unchanged(sparsify, tmp_path, activation, skip, transcode):
    from sparsify.config import SparseCoderConfig

    config = SparseCoderConfig(activation, num_latents=N, k=K, transcode=transcode, skip_connection=skip)
    theirs = fill(sparsify.SparseCoder(D, config))
    theirs.save_to_disk(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert (ours.config.d_out, ours.config.skip) == (D if transcode or skip else None, skip)
    torch.testing.assert_close(ours(rows()), theirs(rows()).sae_out, **NEAR)
    if transcode or not skip:  # one with a skip alone becomes a transcoder, rounded
        formats.write(load(ours.save(tmp_path / "ours")), tmp_path / "back", "sparsify")
        same_tensors(*(load_file(tmp_path / name / "sae.safetensors") for name in ("theirs", "back")))
        first, second = (json.loads((tmp_path / name / "cfg.json").read_text()) for name in ("theirs", "back"))
        assert first == second


@pytest.mark.parametrize("hookpoint", ["layers.1", "layers.1.mlp", "layers.1.self_attn"])
@pytest.mark.parametrize("transcode", [True, False])
def test_files_that_sparsify_trained_stand_where_it_read_and_predicted(sparsify, tmp_path, hookpoint, transcode):
    """It hooks a module and trains on its output, or from its input to its output: so FVU is low there alone."""
    from sparsify.config import SparseCoderConfig

    model = load_model(build_model("llama"))
    module = model.module.get_submodule(f"model.{hookpoint}")
    ends: dict[str, torch.Tensor] = {}

    def keep(_module, args, options, output):
        ends["in"] = (args[0] if args else options["hidden_states"]).flatten(0, 1)
        ends["out"] = (output[0] if isinstance(output, tuple) else output).flatten(0, 1)

    handle = module.register_forward_hook(keep, with_kwargs=True)
    tokens = torch.randint(3, 97, (64, 16), generator=torch.Generator().manual_seed(0))
    model.logits(tokens)
    handle.remove()
    x, y = (ends["in"], ends["out"]) if transcode else (ends["out"], ends["out"])
    coder = sparsify.SparseCoder(32, SparseCoderConfig(num_latents=64, k=16, transcode=transcode))
    descent = torch.optim.Adam(coder.parameters(), 1e-2)
    for _ in range(150):
        descent.zero_grad()
        coder(x, y).fvu.backward()
        descent.step()
    coder.save_to_disk(tmp_path / hookpoint)
    ours = load(tmp_path / hookpoint)
    if transcode and hookpoint.endswith("attn"):
        assert str(ours.place).endswith("-> attn_out.1") and ours.place.source.site is None  # no site of ours is read
        return
    found = model.capture(tokens, ours.place.sites)
    goal = ours.place.targets[0].site if transcode else ours.place.source.site
    read, written = (found[site].flatten(0, 1) for site in (ours.place.source.site, goal))
    error = (ours(read) - written).square().sum() / (written - written.mean(0)).square().sum()
    assert float(error) < 0.35
    assert str(ours.place).startswith({"layers.1": "resid_p", "layers.1.mlp": "mlp_"}.get(hookpoint, "attn_out.1"))


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("architecture", ["topk", "groupmax"])
def test_sparsify_runs_our_transcoders_and_they_come_back(sparsify, tmp_path, architecture, skip):
    ours = made(architecture, d_out=D, skip=skip)
    assert not formats.write(ours, tmp_path / "layers.2.mlp", "sparsify").rounded
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path / "layers.2.mlp")
    torch.testing.assert_close(theirs(rows()).sae_out, ours(rows()), **NEAR)
    again = load(tmp_path / "layers.2.mlp")
    assert again.config == ours.config
    same_tensors(again.tensors(), ours.tensors())
    with pytest.raises(InputError, match="leads from width 8 to 5"):
        formats.write(made(architecture, d_out=5), tmp_path / "no", "sparsify")


def test_an_uncentred_dictionary_is_folded_for_sparsify(sparsify, tmp_path):
    ours = made("topk", centre_input=False)
    done = formats.write(ours, tmp_path / "out", "sparsify")
    assert "rounded to fp32" in done.rounded[0] and not done.lost
    theirs = sparsify.SparseCoder.load_from_disk(tmp_path / "out")
    torch.testing.assert_close(theirs(rows()).sae_out, ours(rows()), **NEAR)


@pytest.mark.parametrize("architecture", ["jumprelu", "batchtopk", "matryoshka"])
def test_thresholds_do_not_go_into_topk_unasked(sparsify, tmp_path, architecture):
    ours = made(architecture)
    with pytest.raises(InputError, match=f"{architecture} becomes topk and loses its threshold"):
        formats.write(ours, tmp_path / "out", "sparsify")
    assert not (tmp_path / "out").exists()
    done = formats.write(ours, tmp_path / "out", "sparsify", lossy=True)
    assert len(done.lost) == 1
    codes = sparsify.SparseCoder.load_from_disk(tmp_path / "out").encode(rows()).top_acts
    assert codes.shape == (40, K)
    for impossible in ("gated", "relu", "abstopk"):
        with pytest.raises(InputError, match=f"holds groupmax, topk dictionaries, and this is {impossible}"):
            formats.write(made(impossible), tmp_path / "no", "sparsify", lossy=True)


# --- dictionary_learning


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

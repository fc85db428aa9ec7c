"""Formats whose libraries are not at hand, on files made to their documented layout; bad files; the command."""

import json
import math
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monosem.lab.app.cli import main
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.saes import build, formats, load
from safetensors.torch import load_file, save_file

D, N = 6, 20
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def weights(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def x():
    return 2 * weights(30, D, seed=7)


def jump(pre, threshold):
    return pre.relu() * (pre > threshold)


def made(architecture="topk", **config):
    dictionary = build(architecture, d_in=D, n_latents=N, k=4, **config)
    for seed, parameter in enumerate(dictionary.parameters()):
        parameter.data.copy_(weights(*parameter.shape, seed=seed))
    if architecture == "jumprelu":
        dictionary.theta.abs_()
    return dictionary


# --- Gemma Scope


def gemma(n=N):
    return {"W_enc": weights(D, n), "W_dec": weights(n, D, seed=1), "b_enc": weights(n), "b_dec": weights(D),
            "threshold": weights(n, seed=1).abs()}  # fmt: skip


def write_npz(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    return path


@pytest.mark.parametrize("n", [N, D])
def test_gemma_scope(tmp_path, n):
    t = gemma(n)
    path = write_npz(tmp_path / "layer_3/params.npz", t)
    ours = load(path.parent)
    expected = jump(x() @ t["W_enc"] + t["b_enc"], t["threshold"]) @ t["W_dec"] + t["b_dec"]
    torch.testing.assert_close(ours(x()), expected, **NEAR)
    torch.testing.assert_close(load(path)(x()), expected, **NEAR)
    formats.write(ours, tmp_path / "back", "gemma-scope")
    with np.load(tmp_path / "back/params.npz") as back:
        assert set(back.files) == set(t)
        assert all(np.array_equal(back[name], t[name].numpy()) for name in t)


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "batchtopk", "matryoshka"])
@pytest.mark.parametrize("to", ["gemma-scope", "gemma-scope-2"])
def test_centred_dictionaries_are_folded_for_gemma_scope(tmp_path, architecture, to):
    ours = made(architecture)
    done = formats.write(ours, tmp_path / "out", to)
    assert done.lost == () and "rounded to fp32" in done.rounded[0]
    torch.testing.assert_close(load(tmp_path / "out")(x()), ours(x()), rtol=1e-5, atol=1e-4)


def test_gemma_scope_2(tmp_path):
    t = {name.lower(): tensor for name, tensor in gemma().items()}
    save_file(t, tmp_path / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-270m", "width": N, "l0": 10}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = load(tmp_path)
    expected = jump(x() @ t["w_enc"] + t["b_enc"], t["threshold"]) @ t["w_dec"] + t["b_dec"]
    torch.testing.assert_close(ours(x()), expected, **NEAR)
    formats.write(ours, tmp_path / "back", "gemma-scope-2")
    assert json.loads((tmp_path / "back/config.json").read_text()) == config
    assert all(torch.equal(back, t[name]) for name, back in load_file(tmp_path / "back/params.safetensors").items())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "topk"}))
    with pytest.raises(InputError, match="architecture is 'topk', expected 'jump_relu'"):
        load(tmp_path)


@pytest.mark.parametrize("out", [D, 5])
def test_gemma_scope_2_affine_transcoder(tmp_path, out):
    t = {name.lower(): tensor for name, tensor in gemma().items()} | {"w_dec": weights(N, out), "b_dec": weights(out)}
    t["affine_skip_connection"] = weights(D, out)
    save_file(t, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "jump_relu", "affine_connection": True}))
    ours = load(tmp_path)
    expected = jump(x() @ t["w_enc"] + t["b_enc"], t["threshold"]) @ t["w_dec"] + t["b_dec"]
    torch.testing.assert_close(ours(x()), expected + x() @ t["affine_skip_connection"], **NEAR)
    formats.write(load(ours.save(tmp_path / "ours")), tmp_path / "back", "gemma-scope-2")
    assert all(torch.equal(back, t[name]) for name, back in load_file(tmp_path / "back/params.safetensors").items())


@pytest.mark.parametrize("skip", [True, False])
def test_our_transcoders_as_gemma_scope_2(tmp_path, skip):
    ours = made("batchtopk", d_out=5, skip=skip)
    assert not formats.write(ours, tmp_path / "out", "gemma-scope-2").rounded
    again = load(tmp_path / "out")
    assert (again.architecture, again.d_out, again.config.skip) == ("jumprelu", 5, skip)
    torch.testing.assert_close(again(x()), ours(x()), **NEAR)
    for to in ("gemma-scope", "dictionary-learning", "openai"):
        with pytest.raises(InputError, match="the format holds no transcoders"):
            formats.write(ours, tmp_path / "no", to)


def test_sites_of_gemma_scope_2(tmp_path):
    tensors = {name.lower(): tensor for name, tensor in gemma().items()}
    for number, (reads, writes, sites) in enumerate([
        ("model.layers.5.output", None, ("resid_post.5", None)),
        ("model.layers.2.self_attn.o_proj.input", None, ("z.2", None)),
        ("model.layers.1.pre_feedforward_layernorm.output", "model.layers.1.post_feedforward_layernorm.output",
         ("path:model.layers.1.pre_feedforward_layernorm", "path:model.layers.1.post_feedforward_layernorm")),
    ]):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        save_file(tensors, tmp_path / str(number) / "params.safetensors")
        config = {"architecture": "jump_relu", "hf_hook_point_in": reads, "hf_hook_point_out": writes}
        (tmp_path / str(number) / "config.json").write_text(json.dumps(config))
        found = load(tmp_path / str(number))
        assert [str(port) for port in found.place.ports] == [site for site in sites if site]
        assert (found.config.d_out is None) == (writes is None)


# --- Llama Scope


@pytest.mark.parametrize("by_norm", [False, True])
def test_llama_scope(tmp_path, by_norm):
    t = {"encoder.weight": weights(N, D), "encoder.bias": weights(N), "decoder.weight": weights(D, N),
         "decoder.bias": weights(D)}  # fmt: skip
    (tmp_path / "checkpoints").mkdir()
    save_file(t, tmp_path / "checkpoints/final.safetensors")
    config = {"d_model": D, "d_sae": N, "jump_relu_threshold": 0.4, "hook_point_in": "blocks.5.hook_resid_post",
              "dataset_average_activation_norm": {"in": 7.0, "out": 7.0}, "norm_activation": "dataset-wise",
              "sparsity_include_decoder_norm": by_norm}  # fmt: skip
    (tmp_path / "hyperparams.json").write_text(json.dumps(config))
    scale = math.sqrt(D) / 7.0
    pre = x() * scale @ t["encoder.weight"].T + t["encoder.bias"]
    weight = t["decoder.weight"].norm(dim=0) if by_norm else 1.0
    codes = pre.relu() * (pre * weight > 0.4 * scale)
    expected = (codes @ t["decoder.weight"].T + t["decoder.bias"]) / scale
    ours = load(tmp_path)
    torch.testing.assert_close(ours(x()), expected, **NEAR)
    assert ours.place.source.site == Site.parse("resid_post.5")
    with pytest.raises(InputError, match="llama-scope files are only read here"):
        formats.write(ours, tmp_path / "back", "llama-scope")


@pytest.mark.parametrize("second", [False, True])
def test_later_openmoss_files(tmp_path, second):
    encoder, decoder, b_enc, b_dec, log = (
        weights(N, D),
        weights(N, D, seed=1),
        weights(N),
        weights(D),
        weights(N, seed=2),
    )
    if second:
        t = {"W_E": encoder.T, "b_E": b_enc, "W_D": decoder, "b_D": b_dec,
             "activation_function.log_jumprelu_threshold": log,
             "dataset_average_activation_norm.blocks.5.hook_resid_post": torch.tensor(9.0)}  # fmt: skip
        config = {"d_model": D, "norm_activation": "dataset-wise"}
    else:
        t = {"encoder.weight": encoder, "encoder.bias": b_enc, "decoder.weight": decoder.T, "decoder.bias": b_dec,
             "log_jumprelu_threshold": log}  # fmt: skip
        config = {"d_model": D, "dataset_average_activation_norm": {"blocks.5.hook_resid_post": 9.0}}
    save_file({name: tensor.contiguous() for name, tensor in t.items()}, tmp_path / "sae_weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    scale = math.sqrt(D) / 9.0
    expected = (jump(x() * scale @ encoder.T + b_enc, log.exp()) @ decoder + b_dec) / scale
    torch.testing.assert_close(load(tmp_path)(x()), expected, **NEAR)
    (tmp_path / "config.json").write_text(json.dumps({"d_model": D}))
    if not second:
        with pytest.raises(InputError, match="mean norm of the activations is not in it"):
            load(tmp_path)


# --- OpenAI


def openai_state(**extra):
    return {"encoder.weight": weights(N, D), "decoder.weight": weights(D, N), "pre_bias": weights(D),
            "latent_bias": weights(N), "stats_last_nonzero": torch.zeros(N, dtype=torch.long), **extra}  # fmt: skip


def test_openai_relu(tmp_path):
    t = openai_state(activation="ReLU")
    torch.save(t, tmp_path / "5.pt")
    ours = load(tmp_path / "5.pt")
    codes = ((x() - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]).relu()
    torch.testing.assert_close(ours(x()), codes @ t["decoder.weight"].T + t["pre_bias"], **NEAR)
    formats.write(ours, tmp_path / "back", "openai")
    back = torch.load(tmp_path / "back/autoencoder.pt", weights_only=True)
    assert back["activation"] == "ReLU" and all(torch.equal(back[name], t[name]) for name in list(t)[:4])


def test_openai_topk_standardises_rows(tmp_path):
    state = {"k": 4, "postact_fn": "ReLU"}
    t = openai_state(activation="TopK", activation_state_dict=state)
    torch.save(t, tmp_path / "5.pt")
    with pytest.raises(InputError, match="standardise every row"):
        load(tmp_path / "5.pt")
    ours = formats.read(tmp_path / "5.pt", lossy=True)
    centred = x() - x().mean(-1, keepdim=True)
    z = centred / (centred.std(-1, keepdim=True) + 1e-5)
    pre = (z - t["pre_bias"]) @ t["encoder.weight"].T + t["latent_bias"]
    best = pre.topk(4)
    codes = torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())
    torch.testing.assert_close(ours(z), codes @ t["decoder.weight"].T + t["pre_bias"], **NEAR)
    formats.write(ours, tmp_path / "back", "openai")
    assert torch.load(tmp_path / "back/autoencoder.pt", weights_only=True)["activation_state_dict"] == state
    with pytest.raises(InputError, match="this one was not trained so"):
        formats.write(made(), tmp_path / "no", "openai")


# --- circuit-tracer


@pytest.mark.parametrize("n", [N, D])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
def test_circuit_tracer_transcoders(tmp_path, kind, n):
    t = {"W_enc": weights(n, D), "b_enc": weights(n), "W_dec": weights(n, D, seed=1), "b_dec": weights(D),
         "W_skip": weights(D, D, seed=2)}  # fmt: skip
    pre = x() @ t["W_enc"].T + t["b_enc"]
    codes = pre.relu()
    if kind == "jumprelu":
        t["activation_function.threshold"] = weights(n, seed=3).abs()
        codes = jump(pre, t["activation_function.threshold"])
    elif kind == "topk":
        t["k"] = torch.tensor(3)
        codes = torch.zeros_like(pre).scatter(-1, pre.topk(3).indices, pre.topk(3).values.relu())
    save_file(t, tmp_path / "layer_7.safetensors")
    ours = load(tmp_path)
    assert (ours.architecture, ours.d_out, ours.config.skip) == (kind, D, True)
    expected = codes @ t["W_dec"] + t["b_dec"] + x() @ t["W_skip"].T
    torch.testing.assert_close(ours(x()), expected, **NEAR)
    formats.write(load(ours.save(tmp_path / "ours")), tmp_path / "back", "circuit-tracer")
    back = load_file(tmp_path / "back/layer_7.safetensors")
    assert back.keys() == t.keys() and all(torch.equal(back[name], t[name]) for name in t)


@pytest.mark.parametrize("architecture", ["relu", "topk", "jumprelu", "batchtopk", "matryoshka"])
def test_our_transcoders_as_circuit_tracers(tmp_path, architecture):
    ours = made(architecture, d_out=5, skip=True)
    done = formats.write(ours, tmp_path / "out", "circuit-tracer")
    assert not done.lost and not done.rounded
    torch.testing.assert_close(load(tmp_path / "out")(x()), ours(x()), **NEAR)
    with pytest.raises(InputError, match="it holds transcoders, and this is"):
        formats.write(made(architecture), tmp_path / "no", "circuit-tracer")


def test_a_lone_file_of_something_else(tmp_path):
    save_file({"weight": weights(3)}, tmp_path / "a.safetensors")
    with pytest.raises(
        InputError, match=r"is not circuit-tracer's, which holds W_enc.* \(this has weight\).*give the folder"
    ):
        load(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is not a safetensors file of weights"):
        load(tmp_path / "a.safetensors")


def test_a_square_file_of_unknown_orientation_is_refused(tmp_path):
    t = {"W_enc": weights(D, D), "b_enc": weights(D), "W_dec": weights(D, D, seed=1), "b_dec": weights(D)}
    save_file(t, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="its orientation is open"):
        load(tmp_path / "weights.safetensors")


def test_cross_layer_transcoders_and_several_layers_are_named(tmp_path):
    save_file({"W_enc_0": weights(N, D)}, tmp_path / "W_enc_0.safetensors")
    with pytest.raises(InputError, match="cross-layer transcoder"):
        load(tmp_path)
    folder = tmp_path / "set"
    folder.mkdir()
    for layer in range(2):
        save_file({"W_enc": weights(N, D)}, folder / f"layer_{layer}.safetensors")
    with pytest.raises(InputError, match="several layers"):
        load(folder)


# --- bad files


def lens_folder(folder, architecture="jumprelu"):
    formats.write(made(architecture), folder, "sae-lens")
    return folder / "cfg.json", folder / "sae_weights.safetensors"


def changed(file, **tensors):
    kept = {name: tensor for name, tensor in (load_file(file) | tensors).items() if tensor is not None}
    save_file({name: tensor.contiguous() for name, tensor in kept.items()}, file)


def test_wrong_tensors_are_named(tmp_path):
    cases = {
        "holds no threshold": {"threshold": None},
        r"W_enc has shape \(20, 6\), expected \(6, 20\) \(it looks transposed\)": {"W_enc": weights(N, D)},
        r"b_enc has shape \(6,\), expected \(20,\)": {"b_enc": weights(D)},
        "b_dec has 2 dimensions, expected 1": {"b_dec": weights(1, D)},
        "W_dec holds values that are not finite": {"W_dec": weights(N, D) / 0},
        "holds extra, which": {"extra": weights(2)},
        "b_enc holds torch.int64 values": {"b_enc": torch.zeros(N, dtype=torch.long)},
        "W_dec is fp64 and is kept as fp32": {"W_dec": weights(N, D).double() / 3},
    }
    for number, (message, tensors) in enumerate(cases.items()):
        _, file = lens_folder(tmp_path / str(number))
        changed(file, **tensors)
        with pytest.raises(InputError, match=message) as refused:
            load(tmp_path / str(number))
        assert str(tmp_path / str(number)) in str(refused.value)


def test_a_square_dictionary_that_was_transposed_is_noticed(tmp_path):
    trained = build("topk", d_in=32, n_latents=32, k=4)
    trained.W_dec.copy_(torch.linalg.qr(weights(32, 32)).Q)
    trained.W_enc.copy_(trained.W_dec + 0.02 * weights(32, 32, seed=1))
    formats.write(trained, tmp_path / "a", "sae-lens")
    assert torch.equal(load(tmp_path / "a").W_enc, trained.W_enc)
    file = tmp_path / "a/sae_weights.safetensors"
    changed(file, W_enc=load_file(file)["W_enc"].T)
    with pytest.raises(InputError, match="W_enc is square and looks transposed"):
        load(tmp_path / "a")


def test_wrong_configs_are_named(tmp_path):
    cases = {
        "unknown SAELens architecture 'jumprelo': did you mean 'jumprelu'": {"architecture": "jumprelo"},
        "d_sae is 'many', expected a number": {"d_sae": "many"},
        r"W_enc has shape \(6, 20\), expected \(6, 21\)": {"d_sae": N + 1},
        "activation_fn is 'tanh-relu'": {"activation_fn": "tanh-relu"},
        "wrong type or range": {"metadata": 3},
    }
    for number, (message, values) in enumerate(cases.items()):
        config, _ = lens_folder(tmp_path / str(number))
        config.write_text(json.dumps(json.loads(config.read_text()) | values))
        with pytest.raises(InputError, match=message):
            load(tmp_path / str(number))
    config.write_text("[1]")
    with pytest.raises(InputError, match="holds a list, expected an object"):
        load(config.parent)


class Attack:
    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


@pytest.mark.parametrize("name", ["ae.pt", "other.pt"])
def test_files_that_need_unpickling_are_refused(tmp_path, name):
    torch.save({"encoder.weight": Attack()}, tmp_path / name)
    with pytest.raises(InputError, match=f"{name} needs unpickling, which can run code"):
        load(tmp_path / name)
    (tmp_path / name).write_bytes(pickle.dumps({"encoder.weight": Attack()}, protocol=2))
    with pytest.raises(InputError, match=f"{name}"):
        load(tmp_path / name)
    np.savez(tmp_path / "params.npz", W_enc=np.array([Attack()], dtype=object))
    with pytest.raises(InputError, match="not an npz file of numbers"):
        load(tmp_path / "params.npz")


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Files of four kinds, with a folder to damage copies in."""
    folder = tmp_path_factory.mktemp("intact")
    for to in ("sae-lens", "sparsify", "dictionary-learning", "gemma-scope"):
        formats.write(made("topk" if to == "sparsify" else "batchtopk"), folder / to, to)
    return folder


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_an_input_error_or_harmless(intact, tmp_path_factory, data):
    files = sorted(path for path in intact.rglob("*") if path.is_file())
    victim = data.draw(st.sampled_from(files))
    content = bytearray(victim.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, min(200, len(content) - 1)))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    copy = tmp_path_factory.mktemp("damaged")
    for other in victim.parent.iterdir():
        (copy / other.name).write_bytes(bytes(content) if other == victim else other.read_bytes())
    try:
        loaded = load(copy)
    except InputError as refused:
        assert str(copy) in str(refused)
    else:
        assert loaded.encode(x()).n_latents == loaded.n_latents


@pytest.mark.parametrize(
    "written",
    ["NaN", "-Infinity", "1e999", "9" * 5000, "[" * 100_000 + "]" * 100_000],
    ids=["nan", "minus infinity", "overflow", "digits", "depth"],
)
@pytest.mark.parametrize("kind", ["sae-lens", "sparsify", "dictionary-learning"])
def test_values_that_json_cannot_hold_are_refused_or_saved_with_the_config(intact, tmp_path, kind, written):
    whole = tmp_path / "whole"
    shutil.copytree(intact / kind, whole)
    config = next(whole.glob("*.json"))
    told = json.loads(config.read_text())
    for number, key in enumerate(["l1_coefficient", *(key for key, value in told.items() if isinstance(value, int))]):
        config.write_text(json.dumps(told | {key: "HERE"}).replace('"HERE"', written))
        try:
            dictionary = load(whole)
        except InputError as refused:
            assert str(whole) in str(refused)
        else:
            dictionary.save(tmp_path / str(number))
            assert load(tmp_path / str(number)).n_latents == N


# --- recognising, writing, the command


def test_each_format_is_recognised_by_its_files(tmp_path):
    written = {"sae-lens": "topk", "sparsify": "topk", "dictionary-learning": "gated", "gemma-scope": "jumprelu",
               "gemma-scope-2": "jumprelu", "openai": "relu"}  # fmt: skip
    for to, architecture in written.items():
        formats.write(made(architecture), tmp_path / to, to)
        assert formats.recognise(tmp_path / to).name == to
    assert formats.recognise(tmp_path) is None
    with pytest.raises(InputError, match="holds no dictionary"):
        load(tmp_path)
    with pytest.raises(InputError, match="unknown format 'saelens': did you mean 'sae-lens'"):
        formats.read(tmp_path, format="saelens")


def test_nothing_is_overwritten_or_half_written(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("text")
    with pytest.raises(InputError, match="is not empty"):
        formats.write(made(), full, "sae-lens")
    assert [entry.name for entry in full.iterdir()] == ["precious"]
    with pytest.raises(InputError, match="cannot write"):
        formats.write(made(), full / "precious" / "deeper", "sae-lens")
    (tmp_path / "empty").mkdir()
    formats.write(made(), tmp_path / "empty", "sae-lens")
    assert {entry.name for entry in (tmp_path / "empty").iterdir()} == {"cfg.json", "sae_weights.safetensors"}


def test_dictionaries_without_an_encoder_are_refused(tmp_path):
    with pytest.raises(InputError, match="pca dictionary has no encoder weights"):
        formats.write(build("pca", d_in=D, n_latents=D, k=2), tmp_path / "out", "sae-lens")


def test_dictionaries_of_others_are_not_trained_on():
    from monosem.saes import build_trainable

    with pytest.raises(InputError, match="centre_input=False is for"):
        build_trainable("topk", d_in=D, n_latents=N, k=4, centre_input=False)


def test_export_command(tmp_path, capsys):
    folder = made("batchtopk").save(tmp_path / "ours")
    assert main(["export", str(folder), "--to", "sae-lens", str(tmp_path / "lens"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {"architecture": "batchtopk", "format": "sae-lens", "out": str(tmp_path / "lens"), "lost": [],
                    "rounded": []}  # fmt: skip
    assert main(["export", str(tmp_path / "lens"), "--to", "sparsify", str(tmp_path / "no")]) == 2
    assert "give lossy" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert main(["export", str(tmp_path / "lens"), "--to", "sparsify", str(tmp_path / "yes"), "--lossy", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["lost"]) == 1
    assert load(tmp_path / "yes").architecture == "topk"
    assert main(["export", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2

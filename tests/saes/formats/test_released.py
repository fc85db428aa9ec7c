"""Names of SAELens' registry: all resolve, each family is read from files laid out as released, near names are told."""

import json
import math

import numpy as np
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.saes import load
from monosem.saes.formats.losses import Losses
from monosem.saes.formats.release_readers import READERS, from_files, reader
from monosem.saes.formats.released import Released, registry, resolve
from safetensors.torch import save_file

pytest.importorskip("sae_lens")

D, N = 6, 20
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def weights(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def x():
    return 2 * weights(30, D, seed=7)


def test_every_release_resolves_to_a_repository_a_path_and_a_reader():
    unread = set()
    for release, said in registry().items():
        for entry in (said["saes"][0], said["saes"][-1]):
            found = resolve(f"sae-lens:{release}/{entry['id']}")
            assert found.repo.count("/") == 1 and found.path and found.model
            try:
                how = reader(found)
            except InputError as refused:
                unread.add(release)
                assert "such dictionaries are not read here" in str(refused)
            else:
                assert how in READERS.values()
                assert how.files or found.path.endswith((".pt", ".pth", ".safetensors"))
    assert len(registry()) >= 150
    assert unread == {name for name in registry() if "clt" in name or "temporal" in name}


def test_wrong_names_are_answered_by_near_ones():
    with pytest.raises(
        InputError, match="unknown SAELens release 'gemma-scope-2b-pt-rse': did you mean 'gemma-scope-2b"
    ):
        load("sae-lens:gemma-scope-2b-pt-rse/layer_0/width_16k/average_l0_105")
    with pytest.raises(InputError, match=r"unknown dictionary of gpt2-small-res-jb 'blocks\.3\.hook_resid_pro'"):
        load("sae-lens:gpt2-small-res-jb/blocks.3.hook_resid_pro")
    with pytest.raises(InputError, match="is a temporal SAE, which attends"):
        load("sae-lens:temporal-sae-gemma-2-2b/blocks.12.hook_resid_post")


def test_without_network_a_released_name_is_one_sentence():
    with pytest.raises(
        InputError, match=r"^hf:google/gemma-scope-2b-pt-res/.* is not in the local cache, for the hub is"
    ):
        load("sae-lens:gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_105")


def released(like, path=None, factor=None, overrides=None):
    """An entry of the family of `like`, with other numbers where the family's come from the registry."""
    entry = resolve(f"sae-lens:{like}")
    return entry._replace(
        path=path or entry.path, factor=factor or entry.factor, overrides=overrides or entry.overrides
    )


def read(path, entry: Released, lossy=False):
    return from_files(path, entry, Losses(str(path), lossy))


def gemma():
    return {"W_enc": weights(D, N), "W_dec": weights(N, D, seed=1), "b_enc": weights(N), "b_dec": weights(D),
            "threshold": weights(N, seed=1).abs()}  # fmt: skip


def jump(t, rows):
    pre = rows @ t["W_enc"] + t["b_enc"]
    return pre.relu() * (pre > t["threshold"])


def test_gemma_scope_with_its_sites(tmp_path):
    t = gemma()
    np.savez(tmp_path / "params.npz", **{name: tensor.numpy() for name, tensor in t.items()})
    for like, site, target in (
        ("gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_105", "resid_post.0", None),
        ("gemma-scope-2b-pt-att/layer_0/width_16k/average_l0_104", "z.0", None),
        ("gemma-scope-2b-pt-mlp-canonical/layer_25/width_16k/canonical", "mlp_add.25", None),
        ("gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76", None, "mlp_add.0"),
    ):
        ours = read(tmp_path, released(like))
        assert [str(port.site) for port in ours.place.ports] == ([str(site), target] if target else [site])
        assert ours.config.d_out == (D if target else None) and ours.provenance.model["name"]
        torch.testing.assert_close(ours(x()), jump(t, x()) @ t["W_dec"] + t["b_dec"], **NEAR)
    embedding = read(tmp_path, released("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"))
    expected = math.sqrt(D) * (jump(t, x() / math.sqrt(D)) @ t["W_dec"] + t["b_dec"])
    torch.testing.assert_close(embedding(x()), expected, **NEAR)


def test_gemma_scope_2_without_a_config(tmp_path):
    t = gemma()
    save_file({name.lower(): tensor for name, tensor in t.items()}, tmp_path / "params.safetensors")
    ours = read(tmp_path, released("gemma-scope-2-4b-pt-transcoders-all/layer_0_width_16k_l0_big"))
    assert ours.d_out == D and str(ours.place.target) == "path:model.layers.0.post_feedforward_layernorm"
    torch.testing.assert_close(ours(x()), jump(t, x()) @ t["W_dec"] + t["b_dec"], **NEAR)


def lens_files(folder, **config):
    t = {name: tensor for name, tensor in gemma().items() if name != "threshold"}
    folder.mkdir()
    save_file(t, folder / "sae_weights.safetensors")
    told = {"architecture": "standard", "d_in": D, "d_sae": N, "hook_point": "blocks.0.hook_resid_post"} | config
    (folder / "cfg.json").write_text(json.dumps(told))
    return t


def test_sae_lens_files_with_the_factor_of_the_registry(tmp_path):
    t = lens_files(tmp_path / "a", normalize_activations="expected_average_only_in", apply_b_dec_to_input=True)
    entry = released("gemma-2b-res-jb/blocks.0.hook_resid_post", factor=0.3)
    codes = ((0.3 * x() - t["b_dec"]) @ t["W_enc"] + t["b_enc"]).relu()
    ours = read(tmp_path / "a", entry)
    torch.testing.assert_close(ours.encode(x()).to_dense(), codes, **NEAR)
    torch.testing.assert_close(ours(x()), (codes @ t["W_dec"] + t["b_dec"]) / 0.3, **NEAR)
    with pytest.raises(InputError, match="by a factor that the file does not hold"):
        read(tmp_path / "a", entry._replace(factor=None))


def test_overrides_of_the_registry_count(tmp_path):
    lens_files(tmp_path / "a")
    entry = resolve("sae-lens:mistral-7b-res-wg/blocks.8.hook_resid_pre")
    with pytest.raises(InputError, match="it rescales every row"):
        read(tmp_path / "a", entry)
    assert read(tmp_path / "a", entry, lossy=True).place.source.site == Site.parse("resid_post.0")


def test_llama_scope_distilled_with_the_factor_of_the_registry(tmp_path):
    t = {"encoder.weight": weights(N, D), "encoder.bias": weights(N), "decoder.weight": weights(D, N),
         "decoder.bias": weights(D), "log_jumprelu_threshold": weights(N, seed=2)}  # fmt: skip
    save_file(t, tmp_path / "sae_weights.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"d_model": D, "hook_point_in": "blocks.0.hook_resid_post"}))
    entry = released("llama_scope_r1_distill/l0r_800m_slimpajama", factor=0.4)
    pre = 0.4 * x() @ t["encoder.weight"].T + t["encoder.bias"]
    codes = pre.relu() * (pre > t["log_jumprelu_threshold"].exp())
    expected = (codes @ t["decoder.weight"].T + t["decoder.bias"]) / 0.4
    torch.testing.assert_close(read(tmp_path, entry)(x()), expected, **NEAR)


@pytest.mark.parametrize(
    ("like", "encoder", "decoder", "site"),
    [
        ("qwen-scope-3-8b-base-w64k-l50/layer7", "W_enc", "W_dec", "resid_post.7"),
        ("goodfire-llama-3.1-8b-instruct/layer_19", "encoder_linear", "decoder_linear", "resid_post.19"),
        ("deepseek-r1-distill-llama-8b-qresearch/blocks.19.hook_resid_post", "encoder", "decoder", "resid_post.19"),
        ("gpt2-small-hook-z-kk/blocks.4.hook_z", "W_enc", "W_dec", "z.4"),
    ],
)
def test_lone_state_dicts(tmp_path, like, encoder, decoder, site):
    W_enc, W_dec, b_enc, b_dec = weights(N, D), weights(D, N), weights(N), weights(D)
    turned = site.startswith("z")
    if encoder == "W_enc":
        t = {
            "W_enc": W_enc.T if turned else W_enc,
            "W_dec": W_dec.T if turned else W_dec,
            "b_enc": b_enc,
            "b_dec": b_dec,
        }
    else:
        t = {f"{encoder}.weight": W_enc, f"{encoder}.bias": b_enc, f"{decoder}.weight": W_dec, f"{decoder}.bias": b_dec}
    torch.save(t, tmp_path / "file.pt")
    entry = released(like)
    entry = entry._replace(repo=entry.repo.replace("L0_50", "L0_3"))
    ours = read(tmp_path / "file.pt", entry)
    pre = (x() - b_dec if turned else x()) @ W_enc.T + b_enc
    if "qwen" in like:
        best = pre.topk(3)
        pre = torch.zeros_like(pre).scatter(1, best.indices, best.values)
    torch.testing.assert_close(ours(x()), pre.relu() @ W_dec.T + b_dec, **NEAR)
    assert ours.place.source.site == Site.parse(site)
    torch.save(t | {"model": print}, tmp_path / "file.pt")
    with pytest.raises(InputError, match=r"file\.pt"):
        read(tmp_path / "file.pt", entry)

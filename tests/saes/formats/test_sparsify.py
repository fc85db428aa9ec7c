"""Exchange with sparsify itself: our save -> its load, its save -> our load, and back unchanged."""

import json
import os

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.loading import load_model
from monosem.lab.models.sites import Site
from monosem.saes import formats, load
from random_dictionaries import NEAR, D, K, N, fill, made, rows, same_tensors
from safetensors.torch import load_file
from tiny_models import build as build_model


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

"""circuit-tracer's files of cross-layer transcoders, theirs and ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.saes import formats
from monosem.saes.architectures.clt.cross_layer import CrossLayer
from monosem.saes.files import load
from monosem.saes.registry import build
from planted_layers import planted, trained
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)


def foreign_files(folder: Path, n: int = 10, jump: bool = True, skip: bool = True) -> dict[str, torch.Tensor]:
    """A transcoder in circuit-tracer's files, with thresholds of both signs and a bf16 encoder; its tensors."""
    rng = torch.Generator().manual_seed(n)
    tensors = {}
    for at in range(3):
        encoder = {
            f"W_enc_{at}": torch.randn(n, 6, generator=rng).bfloat16(),
            f"b_enc_{at}": torch.randn(n, generator=rng),
            f"b_dec_{at}": torch.randn(6, generator=rng),
        }
        if jump:
            encoder[f"threshold_{at}"] = 0.3 * torch.randn(n, generator=rng)
        if skip:
            encoder[f"W_skip_{at}"] = torch.randn(6, 6, generator=rng)
        decoder = {f"W_dec_{at}": torch.randn(n, 3 - at, 6, generator=rng)}
        folder.mkdir(exist_ok=True)
        save_file(encoder, folder / f"W_enc_{at}.safetensors")
        save_file(decoder, folder / f"W_dec_{at}.safetensors")
        tensors |= encoder | decoder
    return tensors


@pytest.mark.parametrize(("n", "jump", "skip"), [(10, True, True), (6, False, False)])
def test_circuit_tracer_files_keep_function_and_bits(n: int, jump: bool, skip: bool, tmp_path: Path) -> None:
    t = foreign_files(tmp_path / "theirs", n=n, jump=jump, skip=skip)
    clt = load(tmp_path / "theirs")
    assert isinstance(clt, CrossLayer) and clt.config.base == ("jumprelu" if jump else "relu")
    x = [2 * torch.randn(20, 6, generator=torch.Generator().manual_seed(at)) for at in range(3)]
    outputs = [t[f"b_dec_{at}"] + (x[at] @ t[f"W_skip_{at}"] if skip else 0) for at in range(3)]
    for at in range(3):
        pre = x[at] @ t[f"W_enc_{at}"].float().T + t[f"b_enc_{at}"]
        codes = pre.relu() * (pre > t[f"threshold_{at}"]) if jump else pre.relu()
        for later in range(at, 3):
            outputs[later] = outputs[later] + codes @ t[f"W_dec_{at}"][:, later - at]
    assert torch.allclose(clt(torch.cat(x, 1)), torch.cat(outputs, 1), rtol=1e-5, atol=1e-4)
    done = formats.write(load(clt.save(tmp_path / "ours")), tmp_path / "back", "circuit-tracer-clt")
    assert not done.lost and not done.rounded
    for file in (tmp_path / "theirs").iterdir():
        back, theirs = load_file(tmp_path / "back" / file.name), load_file(file)
        assert back.keys() == theirs.keys()
        assert all(torch.equal(back[k], theirs[k]) and back[k].dtype == theirs[k].dtype for k in back)


def test_trained_here_read_there(tmp_path: Path) -> None:
    clt = trained("batchtopk").folded()
    assert not formats.write(clt, tmp_path / "out", "circuit-tracer-clt").lost
    x = torch.cat(planted(50, seed=5)[0], 1)
    assert torch.allclose(load(tmp_path / "out")(x), clt(x), rtol=1e-4, atol=1e-3)
    with pytest.raises(InputError, match="holds jumprelu, relu transcoders, and this is topk"):
        formats.write(trained("topk").folded(), tmp_path / "no", "circuit-tracer-clt")
    with pytest.raises(InputError, match="and this is clt"):
        formats.write(clt, tmp_path / "no", "sae-lens")
    with pytest.raises(InputError, match="it holds cross-layer transcoders, and this is relu"):
        formats.write(build("relu", d_in=4, n_latents=8, k=2), tmp_path / "no", "circuit-tracer-clt")


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    foreign_files(tmp_path)
    (tmp_path / "W_dec_1.safetensors").rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"of 3 layers and lacks W_dec_1.safetensors"):
        load(tmp_path)
    good = load_file(tmp_path / "kept")["W_dec_1"]
    for wrong, message in (
        (good[:, :1].contiguous(), r"W_dec_1 has shape \(10, 1, 6\), expected \(n, 2, d\)"),
        (good[:9].contiguous(), r"W_dec_1 has shape \(9, 12\), expected \(10, 12\)"),
        (good[..., :5].contiguous(), r"expected"),
        (good * torch.nan, "not finite"),
    ):
        save_file({"W_dec_1": wrong}, tmp_path / "W_dec_1.safetensors")
        with pytest.raises(InputError, match=message):
            load(tmp_path)
    (tmp_path / "W_dec_1.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="is not a safetensors file"):
        load(tmp_path)
    (tmp_path / "kept").replace(tmp_path / "W_dec_1.safetensors")
    with pytest.raises(InputError, match=r"is no folder with W_enc_0.safetensors"):
        formats.read(tmp_path / "W_dec_1.safetensors", "circuit-tracer-clt")
    encoder = load_file(tmp_path / "W_enc_2.safetensors")
    save_file({**encoder, "k": torch.ones(1)}, tmp_path / "W_enc_2.safetensors")
    with pytest.raises(InputError, match=r"W_enc_2.safetensors holds k, which is not of layer 2"):
        load(tmp_path)
    save_file({k: v for k, v in encoder.items() if k != "threshold_2"}, tmp_path / "W_enc_2.safetensors")
    with pytest.raises(InputError, match=r"W_enc_2.safetensors holds no threshold_2"):
        load(tmp_path)

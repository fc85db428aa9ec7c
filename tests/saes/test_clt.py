"""Cross-layer transcoders: planted latents that write to later layers, gradients, resume, files, scores, bad input."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.lab.app.dictionary_options import DictionaryOptions
from monosem.lab.app.training import Train
from monosem.lab.errors import InputError
from monosem.lab.models import HookedModel
from monosem.lab.sites import Site
from monosem.lab.storage import load_state, save_state
from monosem.lab.streams import ActivationStream, Batch, StreamConfig
from monosem.lab.text import Corpus
from monosem.saes import formats
from monosem.saes.clt.cross_layer import CrossLayer, CrossLayerConfig
from monosem.saes.clt.nulls import fit_cross_layer_nulls, own_layer
from monosem.saes.clt.replacement import replace_outputs
from monosem.saes.clt.scores import CrossLayerReconstruction
from monosem.saes.clt.selection import select_jointly
from monosem.saes.clt.training import CrossLayerTrainer, cross_layer_trainer_on
from monosem.saes.dictionary import Provenance
from monosem.saes.evaluation import evaluate
from monosem.saes.files import build, load
from monosem.saes.linear import Linear
from monosem.saes.matching import matching_sites
from monosem.saes.sparse_code import SparseCode, beside
from monosem.saes.training import TrainConfig
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from tiny_models import Letters
from tiny_models import build as tiny

torch.set_num_threads(1)

LAYERS, D, OUT, TRUE, K = 3, 24, 20, 32, 3
READ = [Site.parse(f"resid_mid.{layer}") for layer in range(LAYERS)]
WRITTEN = [Site.parse(f"mlp_out.{layer}") for layer in range(LAYERS)]


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


READS = [unit(TRUE, D, layer) for layer in range(LAYERS)]
WRITES = [unit(TRUE, (LAYERS - layer) * OUT, 10 + layer) for layer in range(LAYERS)]
"""Causes that appear at a layer write to it and to all later ones."""


def planted(rows: int, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What layers read and write, every site at a scale and place of its own."""
    g = torch.Generator().manual_seed(seed)
    read, written = [], torch.zeros(rows, LAYERS * OUT)
    for layer in range(LAYERS):
        causes = (torch.rand(rows, TRUE, generator=g) < K / TRUE) * (1 + torch.rand(rows, TRUE, generator=g))
        read.append((3 + layer) * (causes @ READS[layer] + 0.01 * torch.randn(rows, D, generator=g)) + 1)
        written[:, layer * OUT :] += causes @ WRITES[layer]
    return read, [(1 + 2 * layer) * part - layer for layer, part in enumerate(written.chunk(LAYERS, 1))]


def trainer_of(rows: int, *, n: int = 2 * TRUE, base: str = "batchtopk", joint: bool = False, skip=False, **options):
    config = CrossLayerConfig.over(LAYERS, D, n, d_out=OUT, k=K, base=base, joint=joint, skip=skip)
    return CrossLayerTrainer(CrossLayer(config), READ, WRITTEN, TrainConfig(**{"rows": rows, "lr": 3e-2, **options}))


def feed(trainer: CrossLayerTrainer, read: list[torch.Tensor], written: list[torch.Tensor], batch: int = 256):
    for parts in zip(*(part.split(batch) for part in (*read, *written)), strict=True):
        acts = dict(zip((*READ, *WRITTEN), parts, strict=True))
        trainer.step(Batch(acts, torch.zeros(len(parts[0]), 2, dtype=torch.int64)))
    return trainer


@cache
def trained(base: str = "batchtopk", joint: bool = False) -> CrossLayerTrainer:
    return feed(trainer_of(12_800, base=base, joint=joint), *planted(12_800))


def fvu(y_hat: torch.Tensor, y: torch.Tensor) -> float:
    return float((y_hat - y).square().sum() / (y - y.mean(0)).square().sum())


@pytest.mark.parametrize("base", ["topk", "batchtopk", "jumprelu"])
def test_planted_latents_and_what_they_write_to_later_layers_are_recovered(base: str) -> None:
    clt = trained(base).folded()
    read, written = planted(2000, seed=1)
    scales = torch.tensor([1.0 + 2 * layer for layer in range(LAYERS)]).repeat_interleave(OUT)
    for layer in range(LAYERS):
        truth = torch.nn.functional.normalize(WRITES[layer] * scales[layer * OUT :])
        cosines = truth @ torch.nn.functional.normalize(clt.decoder_of(layer)).T
        assert cosines[linear_sum_assignment(-cosines.numpy())].mean() >= 0.9, layer  # MCC
    x, y = torch.cat(read, 1), torch.cat(written, 1)
    assert fvu(clt(x), y) < 0.35
    found = trained(base).metrics()
    assert found["l0"] == pytest.approx(sum(found[f"l0_{site}"] for site in READ))
    assert clt.encode(x).l0.float().mean() == pytest.approx(LAYERS * K, rel=0.1)


@pytest.mark.parametrize("base", ["batchtopk", "jumprelu"])
def test_folding_and_files_keep_the_prediction(base: str, tmp_path: Path) -> None:
    trainer = trained(base)
    read = planted(300, seed=2)[0]
    inner = torch.cat([layer.read(x) for layer, x in zip(trainer.layers, read, strict=True)], 1)
    expected = trainer.dictionary(inner) / trainer.layers[0].units.output
    folded, x = trainer.folded(), torch.cat(read, 1)
    off = (folded(x) - expected).abs().amax(1) > 1e-3 * expected.abs().max()
    assert off.float().mean() < 0.02  # rounding may move a code across a threshold
    back = load(folded.save(tmp_path))
    assert torch.equal(back(x), folded(x)) and back.config == folded.config and back.provenance == folded.provenance
    assert back.provenance.targets == list(map(str, WRITTEN)) and "mlp_out.2" in repr(back)
    by_site = dict(zip(READ, read, strict=True))
    assert torch.equal(back.encode(by_site).values, back.encode(x).values)
    with pytest.raises(InputError, match=r"activations at resid_mid.1 are needed"):
        back.encode({READ[0]: read[0], READ[2]: read[2]})


def test_decoders_lie_where_they_are_said_to() -> None:
    clt = CrossLayer(CrossLayerConfig(3 * 4, 3 * 5, d_out=3 * 2, layers=3, k=2, base="relu"))
    rng = torch.Generator().manual_seed(0)
    for tensor in clt.parameters():
        tensor.copy_(torch.randn(tensor.shape, generator=rng))
    for block in clt.layers[1:]:
        block.b_dec.zero_()
    x = torch.randn(7, 12, generator=rng)
    codes = [(part @ block.W_enc.T + block.b_enc).relu() for part, block in zip(x.chunk(3, 1), clt.layers, strict=True)]
    outputs = [
        bias + sum(codes[layer] @ clt.decoder_of(layer, at) for layer in range(at + 1))
        for at, bias in enumerate(clt.b_dec.chunk(3))
    ]
    assert torch.allclose(clt(x), torch.cat(outputs, 1), atol=1e-5)
    code = clt.encode(x)
    assert code.n_latents == 15 and torch.allclose(code.to_dense(), torch.cat(codes, 1), atol=1e-6)
    assert torch.allclose(code.to_dense() @ clt.W_dec + clt.b_dec, clt(x), atol=1e-5)
    assert clt.decoder_of(1, 2).data_ptr() == clt.layers[1].W_dec[:, 2:].data_ptr()
    for layer in range(3):
        own = slice(5 * layer, 5 * layer + 5)
        assert torch.equal(code.within(own).to_dense(), code.to_dense()[:, own])


@given(st.integers(1, 4), st.integers(0, 5), st.booleans(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_codes_beside_each_other_are_the_dense_ones(blocks: int, rows: int, fixed: bool, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    dense = [torch.randn(rows, 3 + block, generator=rng).relu() for block in range(blocks)]
    codes = [
        SparseCode.fixed(part, torch.arange(part.shape[1]).int().repeat(rows, 1), part.shape[1])
        if fixed
        else SparseCode.from_dense(part)
        for part in dense
    ]
    found = beside(codes)
    assert torch.equal(found.to_dense(), torch.cat(dense, 1)) and found.n_latents == sum(p.shape[1] for p in dense)
    for row in range(rows):
        entries = found.indices[found.indptr[row] : found.indptr[row + 1]]
        assert (entries.diff() > 0).all()
    assert (found.width is not None) == fixed


@pytest.mark.parametrize("tilt", [0.0, 5.0])
def test_a_joint_selection_is_that_of_the_whole_batch(tilt: float) -> None:
    """With the tilt nearly all codes are in the first layer, which is then encoded again."""
    clt = trainer_of(1, n=40, joint=True).dictionary
    rng = torch.Generator().manual_seed(3)
    for block in clt.layers:
        block.W_enc.copy_(torch.randn(block.W_enc.shape, generator=rng))
        block.precision = "fp32"
    clt.layers[0].b_enc.add_(tilt)
    rows = [torch.randn(50, D, generator=rng) for _ in range(LAYERS)]
    pre = [x @ block.W_enc.T + block.b_enc for x, block in zip(rows, clt.layers, strict=True)]
    bound = torch.stack(pre).flatten().topk(50 * K * LAYERS).values[-1]
    found = select_jointly(clt.layers, rows, [None] * LAYERS)
    assert sum(len(code.values) for code in found) == 50 * K * LAYERS
    for code, whole in zip(found, pre, strict=True):
        assert torch.allclose(code.to_dense(), whole * (whole >= bound), atol=1e-4)


def test_a_joint_budget_goes_where_codes_are_large() -> None:
    trainer = feed(trainer_of(2560, joint=True), *planted(2560))
    found, clt = trainer.metrics(), trainer.folded()
    assert found["l0"] == pytest.approx(LAYERS * K, rel=1e-3)
    assert found["l0_resid_mid.0"] > 1.2 * found["l0_resid_mid.2"]  # three outputs to write to, and one
    thresholds = {float(layer.dictionary.threshold) for layer in trainer.layers}
    assert len(thresholds) == 1 and min(thresholds) > 0
    assert clt.config.joint and "joint=True" in repr(clt)


@pytest.mark.parametrize(("base", "skip"), [("topk", False), ("relu", False), ("topk", True)])
def test_every_gradient_of_a_step_equals_autograd(base: str, skip: bool) -> None:
    trainer, (read, written) = trainer_of(10_000, base=base, skip=skip, precision="fp32"), planted(256)
    trainer._start(read, torch.cat(written, 1))
    if skip:
        trainer.dictionary.W_skip.normal_(generator=torch.Generator().manual_seed(2)).mul_(0.3)
    skips = [torch.zeros(OUT, D).double() if one.skip is None else one.skip.double() for one in trainer.layers]
    skips = [one.clone().requires_grad_() for one in skips]
    assert not any(block.b_dec.any() for block in trainer.dictionary.layers[1:])
    if base == "relu":
        for layer in trainer.layers:
            layer.objective.control.fixed = True  # no penalty at the start of a run, and no steering of the biases
            layer.dictionary.b_enc.add_(1e-3)  # which begin where one pre-activation of the batch is 0
    leaves = [
        {name: tensor.double().clone().requires_grad_() for name, tensor in block.named_parameters()}
        for block in trainer.dictionary.layers
    ]
    first = trainer.layers[0]
    goal = (torch.cat(written, 1) * first.units.output).double()
    y_hat = leaves[0]["b_dec"].expand_as(goal)
    for layer, x, own in zip(trainer.layers, read, leaves, strict=True):
        code = (layer.read(x).double() @ own["W_enc"].T + own["b_enc"]).relu()
        if base == "topk":
            top = code.topk(K, dim=1)
            code = torch.zeros_like(code).scatter(1, top.indices, top.values)
        y_hat = y_hat + torch.nn.functional.pad(code @ own["W_dec"], (layer.earlier * OUT, 0))
        after = (LAYERS - layer.earlier - 1) * OUT
        linear = layer.read(x).double() @ skips[layer.earlier].T
        y_hat = y_hat + torch.nn.functional.pad(linear, (layer.earlier * OUT, after))
    ((y_hat - goal).square().sum() / (goal - goal.mean(0)).square().sum()).backward()
    for layer in trainer.layers:
        layer.steps = 1
    feed(trainer, read, written)
    for layer, own in zip(trainer.layers, leaves, strict=True):
        rows = own["W_dec"].detach()
        own["W_dec"].grad -= (own["W_dec"].grad * rows).sum(1, keepdim=True) * rows
        found = layer.optimiser.moments.first._asdict()
        if not layer.earlier:
            found["b_dec"] = layer.optimiser.bias_moments[0]
        for name, gradient in found.items():
            expected = own[name].grad
            assert (gradient / 0.1 - expected).abs().max() < 3e-5 * expected.abs().max(), (layer.earlier, name)
        if skip:
            expected = skips[layer.earlier].grad
            assert (layer.skip_moments[0] / 0.1 - expected).abs().max() < 3e-5 * expected.abs().max()
    assert not any(block.b_dec.any() for block in trainer.dictionary.layers[1:])


def test_a_skip_takes_what_is_linear(tmp_path: Path) -> None:
    """Outputs with a linear part of what their layer reads: with a skip as good as without either."""
    rng = torch.Generator().manual_seed(7)
    maps = [torch.randn(OUT, D, generator=rng) for _ in range(LAYERS)]

    def bent(rows: int, seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        read, written = planted(rows, seed)
        return read, [y + x @ m.T for x, y, m in zip(read, written, maps, strict=True)]

    found = {}
    for skip in (False, True):
        for ema in (None, 0.9):
            trainer = feed(trainer_of(5120, base="topk", skip=skip, ema=ema), *bent(5120, 0))
            clt = load(trainer.folded().save(tmp_path / f"{skip}{ema}"))
            read, written = bent(1000, 1)
            found[skip, ema] = fvu(clt(torch.cat(read, 1)), torch.cat(written, 1))
            if skip and not ema:  # the folded one is what was trained
                parts = [layer.read(x) for layer, x in zip(trainer.layers, read, strict=True)]
                own = trainer.dictionary
                made = own.b_dec + own.skipped(torch.cat(parts, 1))
                for layer, x in zip(trainer.layers, parts, strict=True):
                    made[:, layer.earlier * OUT :] += layer.written(layer.select(x))
                assert torch.allclose(made / trainer.layers[0].units.output, clt(torch.cat(read, 1)), atol=2e-3)
    assert found[True, None] < 0.5 * found[False, None] and found[True, 0.9] < 0.5 * found[False, 0.9]


@pytest.mark.parametrize(("base", "joint", "skip"), [("batchtopk", True, False), ("jumprelu", False, True)])
def test_a_restored_trainer_ends_in_the_same_bytes(base: str, joint: bool, skip: bool, tmp_path: Path) -> None:
    read, written = planted(1536)
    options = {"n": 100, "base": base, "joint": joint, "skip": skip, "aid_after": 200, "ema": 0.99 if skip else None}
    whole, first, second = (trainer_of(1536, **options) for _ in range(3))
    feed(whole, read, written, 64)
    feed(first, [x[:1024] for x in read], [y[:1024] for y in written], 64)
    save_state(tmp_path, first.state_dict())
    second.load_state_dict(load_state(tmp_path))
    feed(second, [x[1024:] for x in read], [y[1024:] for y in written], 64)
    assert whole.metrics() == second.metrics() and any(len(layer.idle) for layer in whole.layers)
    for mine, theirs in ((whole.dictionary, second.dictionary), (whole.folded(), second.folded())):
        assert all(torch.equal(tensor, theirs.tensors()[name]) for name, tensor in mine.tensors().items())
    with pytest.raises(InputError, match="the checkpoint has 1 layers, this run 3"):
        second.load_state_dict({"layers": {"0": {}}})


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
        CrossLayerReconstruction(trained("topk").dictionary)
    with pytest.raises(InputError, match="has 3 layers, got 2 sites to read and 3 to write"):
        CrossLayerReconstruction(clt, READ[:2])
    with pytest.raises(InputError, match="has measured no rows"):
        CrossLayerReconstruction(clt).evidence()


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": 0}, "layers must be at least 1"),
        ({"layers": 5}, "d_in is over all layers together: 12 is not a multiple of 5"),
        ({"layers": 3, "k": 11}, "k must be from 1 to the 10 latents of a layer"),
        ({"layers": 3, "base": "gated"}, "base of a cross-layer transcoder"),
        ({"layers": 3, "base": "topk", "joint": True}, "joint=True is for base='batchtopk'"),
        ({"layers": 3, "d_out": None, "sources": (4, 8)}, "sources"),
    ],
)
def test_configs_that_make_no_sense_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("clt", **{"d_in": 12, "n_latents": 30, "k": 2, **fields})


def test_a_trainer_refuses_what_does_not_fit() -> None:
    clt = build("clt", d_in=12, n_latents=30, k=2, layers=3)
    assert isinstance(clt, CrossLayer)
    for sites, targets, config, message in (
        (READ[:2], WRITTEN, {}, "has 3 layers, got 2 sites"),
        (READ, WRITTEN[1:], {}, "has 3 layers, got 2 targets"),
        (READ, WRITTEN, {"cuda_graph": True}, "cuda_graph"),
        (READ, WRITTEN, {"resample_every": 5}, "resample_every is not for cross-layer"),
    ):
        with pytest.raises(InputError, match=message):
            CrossLayerTrainer(clt, sites, targets, TrainConfig(**config))
    with pytest.raises(InputError, match="latents of layer 1 write to layers 1 to 2, not to 0"):
        clt.decoder_of(1, 0)
    with pytest.raises(InputError, match="source must be a layer from 0 to 2, got 3"):
        clt.decoder_of(3)


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
    clt.provenance = Provenance(
        sources=[f"mlp_act.{layer}" for layer in range(3)], targets=[f"mlp_out.{layer}" for layer in range(3)]
    )
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
    clt.provenance.norm_limits = {"mlp_act.1": 1e-6}
    kept = replace_outputs(model, corpus(), {"clt": clt}, torch.zeros(96), tokens=100)
    assert kept.counts["edited"] == 0 and abs(kept.evidence("clt")["kl"].value) < 1e-6
    clt.provenance.sources[0] = "resid_post.0"
    with pytest.raises(InputError, match=r"resid_post.0 comes after mlp_out.0"):
        replace_outputs(model, corpus(), {"clt": clt}, torch.zeros(96), tokens=9)
    with pytest.raises(InputError, match="a dictionary cannot be named 'zero'"):
        replace_outputs(model, corpus(), {"zero": clt}, torch.zeros(96), tokens=9)


def test_a_trainer_for_a_stream_and_its_replacement_model(tmp_path: Path) -> None:
    model = HookedModel(tiny("llama"), name="tiny-llama")
    stream = ActivationStream(model, corpus(), [*READ, *WRITTEN], batch=64, buffer=256)
    trainer = cross_layer_trainer_on(stream, READ, WRITTEN, TrainConfig(rows=128), n_latents=40, k=4, base="topk")
    for _ in range(2):
        trainer.step(next(stream))
    clt = load(trainer.folded().save(tmp_path))
    assert isinstance(clt, CrossLayer) and clt.d_in == clt.d_out == 96 and clt.n_latents == 120
    assert clt.provenance.model["name"] == "tiny-llama" and len(clt.provenance.norm_limits) == 6
    with pytest.raises(InputError, match="a dictionary of one site here"):
        matching_sites(model, clt)
    sizes = {"tokens": 60, "ce_tokens": 40, "fit_tokens": 40}
    found = evaluate(model, corpus(), clt, progress=False, **sizes)
    assert found.site == "resid_mid.0 + resid_mid.1 + resid_mid.2 -> mlp_out.0 + mlp_out.1 + mlp_out.2"
    assert {"fvu", "fvu_mean", "l0_resid_mid.2", "dead", "decoder_max_cosine"} <= found.scores.keys()
    assert set(found["fvu"].nulls) == {"own_layer", "untrained", "linear"}
    assert set(found["ce_recovered_zero"].nulls) == {"mean", "own_layer", "untrained", "linear"}
    assert found["ce_recovered_zero"].interval is not None and found.counts["edited"] > 30
    assert found.to_json() == evaluate(model, corpus(), clt, progress=False, **sizes).to_json()
    with pytest.raises(InputError, match="sites of one width"):
        cross_layer_trainer_on(stream, [], [], TrainConfig(), n_latents=4)


def test_the_command_trains_one_over_all_sites(tmp_path: Path) -> None:
    texts = {"sites": tuple(map(str, READ)), "targets": tuple(map(str, WRITTEN))}
    options = {"dictionary": DictionaryOptions("batchtopk", n_latents=40, k=4), "training": TrainConfig(rows=192)}
    command = Train(tmp_path, **texts, **options, joint=True, skip=True, stream=StreamConfig(batch=64))
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
            Train(tmp_path, **{**texts, **wrong})
    with pytest.raises(InputError, match="cross-layer transcoder config field 'penalty'"):
        cross_layer_trainer_on(stream, READ, WRITTEN, TrainConfig(), n_latents=4, penalty="tanh")

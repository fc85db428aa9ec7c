"""Cross-layer transcoders: planted latents that write to later layers, gradients, a joint budget, skips, resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.lab.errors import InputError
from monosem.lab.storage import load_state, save_state
from monosem.saes.architectures.clt.cross_layer import CrossLayer, CrossLayerConfig
from monosem.saes.architectures.clt.selection import select_jointly
from monosem.saes.files import load
from monosem.saes.registry import build
from monosem.saes.sparse_code import SparseCode, side_by_side
from monosem.saes.training.clt.trainer import CrossLayerTrainer
from monosem.saes.training.trainer import TrainConfig
from planted_layers import LAYERS, OUT, READ, WRITES, WRITTEN, D, K, feed, fvu, planted, trained, trainer_of
from scipy.optimize import linear_sum_assignment

torch.set_num_threads(1)


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
    assert (
        torch.equal(back(x), folded(x))
        and back.config == folded.config
        and (back.place, back.provenance) == (folded.place, folded.provenance)
    )
    assert back.place.predicts == tuple(WRITTEN) and "mlp_out.0-2" in repr(back)
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
    joined = side_by_side(codes)
    assert torch.equal(joined.to_dense(), torch.cat(dense, 1)) and joined.n_latents == sum(p.shape[1] for p in dense)
    for row in range(rows):
        entries = joined.indices[joined.indptr[row] : joined.indptr[row + 1]]
        assert (entries.diff() > 0).all()
    assert (joined.width is not None) == fixed


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
        found = layer.optimizer.moments.first._asdict()
        if not layer.earlier:
            found["b_dec"] = layer.optimizer.bias_moments[0]
        for name, gradient in found.items():
            expected = own[name].grad
            assert (gradient / (1 - layer.config.beta1) - expected).abs().max() < 3e-5 * expected.abs().max(), (
                layer.earlier,
                name,
            )
        if skip:
            expected = skips[layer.earlier].grad
            assert (
                layer.skip_moments[0] / (1 - layer.config.beta1) - expected
            ).abs().max() < 3e-5 * expected.abs().max()
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


@pytest.mark.parametrize(("base", "joint", "skip"), [("batchtopk", True, False), ("jumprelu", False, True),
                                                    ("relu", False, False)])  # fmt: skip
def test_a_restored_trainer_ends_in_the_same_bytes(base: str, joint: bool, skip: bool, tmp_path: Path) -> None:
    read, written = planted(1536)
    options = {"n": 100, "base": base, "joint": joint, "skip": skip, "aid_after": 200, "ema": 0.99 if skip else None}
    whole, first, second = (trainer_of(1536, **options) for _ in range(3))
    feed(whole, read, written, 64)
    feed(first, [x[:1024] for x in read], [y[:1024] for y in written], 64)
    save_state(tmp_path, first.state_dict())
    second.load_state_dict(load_state(tmp_path))
    feed(second, [x[1024:] for x in read], [y[1024:] for y in written], 64)
    assert whole.metrics() == second.metrics() and any(len(layer.dead.idle) for layer in whole.layers)
    for mine, theirs in ((whole.dictionary, second.dictionary), (whole.folded(), second.folded())):
        assert all(torch.equal(tensor, theirs.tensors()[name]) for name, tensor in mine.tensors().items())
    with pytest.raises(InputError, match="the checkpoint has 1 layers, this run 3"):
        second.load_state_dict({"layers": {"0": {}}})


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

"""Options of training for all architectures: optimizers, means of weights, a falling k, shapes of the decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.registry import build_trainable
from monosem.saes.training.config import TrainConfig, default_lr
from monosem.saes.training.trainer import Trainer

SITE, D, N, K = Site.parse("resid_post.3"), 24, 32, 3


def planted(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of K of N unit directions with positive weights, off centre; and the directions."""
    g = torch.Generator().manual_seed(99)
    directions = torch.nn.functional.normalize(torch.randn(N, D, generator=g), dim=1)
    g = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, N, generator=g).topk(K, dim=1).indices
    weights = torch.zeros(rows, N).scatter_(1, chosen, 1 + torch.rand(rows, K, generator=g))
    return 5 * (weights @ directions) + 2.0, directions


def trainer_of(architecture: str = "topk", rows: int = 4096, skip: bool = False, **config: Any) -> Trainer:
    shape: dict[str, Any] = {"d_out": D, "skip": True} if skip else {}
    dictionary = build_trainable(architecture, d_in=D, n_latents=N, k=K, **shape)
    config = {"rows": rows, "lr": 1e-2, "precision": "fp32", **config}
    return Trainer(dictionary, SITE, TrainConfig(**config), target=Site.parse("mlp_out.3") if skip else None)


def feed(trainer: Trainer, x: torch.Tensor) -> Trainer:
    for part in x.split(256):
        trainer.step(Batch(dict.fromkeys(trainer.sites, part), torch.zeros(len(part), 2, dtype=torch.int64)))
    return trainer


OPTIONS = [
    {"optimizer": "muon"},
    {"optimizer": "muon", "skip": True},
    {"optimizer": "signum", "decay": 0.0},
    {"optimizer": "signum", "skip": True},
    {"optimizer": "muon", "architecture": "matryoshka"},
    {"optimizer": "signum", "architecture": "gated", "clip_norm": 0.5},
    {"optimizer": "adam8bit"},
    {"optimizer": "adam8bit", "skip": True},
    {"start": "kaiming", "start_bias": "mean", "architecture": "jumprelu"},
    {"ema": 0.99},
    {"k_start": 8, "k_anneal": 0.9},
    {"k_start": 8, "architecture": "batchtopk"},
    {"decay_shape": "cosine"},
    {"resample_every": 5, "dead_after": 200, "ema": 0.9},
    {"resample_every": 5, "dead_after": 200, "optimizer": "muon"},
    {"resample_every": 5, "dead_after": 200, "optimizer": "signum", "architecture": "mp"},
    {"resample_every": 5, "dead_after": 200, "architecture": "gated"},
    {"resample_every": 5, "dead_after": 200, "architecture": "jumprelu"},
    {"architecture": "gated", "optimizer": "muon"},
    {"architecture": "relu", "optimizer": "signum"},
    {"architecture": "relu", "optimizer": "adam8bit"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_restored_trainer_ends_in_the_same_bytes(options: dict[str, Any]) -> None:
    if options.get("optimizer") == "adam8bit":
        pytest.importorskip("bitsandbytes")
    x = planted(4096)[0]
    whole, first, second = (trainer_of(**{"aid_after": 300, **options}) for _ in range(3))
    feed(whole, x)
    second.load_state_dict(feed(first, x[:2560]).state_dict())
    feed(second, x[2560:])
    assert whole.metrics() == second.metrics()
    for mine, theirs in ((whole.dictionary.tensors(), second.dictionary.tensors()),
                         (whole.folded().tensors(), second.folded().tensors())):  # fmt: skip
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    norms = whole.folded().W_dec.norm(dim=1)
    assert torch.allclose(norms, torch.ones(N), atol=1e-5)
    assert whole.folded().config.k == K


@pytest.mark.parametrize("options", [{"optimizer": "muon", "lr": 3e-2}, {"optimizer": "signum", "decay": 0.0},
                                     {"ema": 0.99}, {"k_start": 8}], ids=str)  # fmt: skip
def test_a_planted_dictionary_is_found(options: dict[str, Any]) -> None:
    trainer = feed(trainer_of(rows=60_000, aid_after=3000, **options), planted(60_000)[0])
    x, directions = planted(2000, seed=1)
    found = trainer.folded()
    assert (found(x) - x).square().sum() / (x - x.mean(0)).square().sum() < 0.2
    assert (directions @ found.W_dec.T).max(1).values.mean() > 0.9


@pytest.mark.parametrize("optimizer", ["muon", "signum"])
def test_biases_are_steered_under_every_optimizer(optimizer: str) -> None:
    shape = {"decay": 0.0, "lr": 2e-3} if optimizer == "signum" else {}
    found = feed(trainer_of("relu", rows=20_000, optimizer=optimizer, **shape), planted(20_000)[0]).folded()
    assert found.encode(planted(2000, seed=1)[0]).l0.float().mean() == pytest.approx(K, rel=0.05)


@pytest.mark.parametrize("architecture", ["topk", "relu", "jumprelu", "gated"])
@pytest.mark.parametrize("start", ["kaiming", "normal"])
def test_other_starts_have_their_scale_and_train(start: str, architecture: str) -> None:
    x, _ = planted(10_240)
    trainer = trainer_of(architecture, rows=10_240, start=start, start_bias="mean")
    trainer._start(x[:2048])
    sae, units = trainer.dictionary, trainer.units
    assert units is not None
    variance = 2 / D if start == "kaiming" else 1 / D
    assert float(sae.W_enc.var()) == pytest.approx(variance, rel=0.15)
    assert (start == "kaiming") == (float(sae.W_enc.abs().max()) <= (6 / D) ** 0.5)
    assert abs(float(torch.cosine_similarity(sae.W_enc, sae.W_dec).mean())) < 0.2
    assert torch.allclose(sae.b_dec, (x[:2048] * units.input).mean(0), atol=1e-4)
    code = sae.training_code(x[:2048] * units.input - sae.b_dec, None)
    assert len(code.values) / 2048 == pytest.approx(K, rel=0.05)
    before = lost(trainer)
    feed(trainer, x)
    assert lost(trainer) < min(0.7 * before, 0.95)


def lost(trainer: Trainer) -> float:
    """Squared error over variance on held-out rows."""
    x = planted(1000, seed=2)[0]
    return float((trainer.folded()(x) - x).square().sum() / (x - x.mean(0)).square().sum())


def test_starts_on_data_and_at_zero() -> None:
    x, _ = planted(2048)
    trainer = trainer_of(blend=1.0, start="normal", start_bias="zero")
    trainer._start(x)
    rows = torch.nn.functional.normalize(x * trainer.units.input, dim=1)  # type: ignore[union-attr]
    assert not trainer.dictionary.b_dec.any()
    assert torch.allclose((trainer.dictionary.W_dec @ rows.T).max(1).values, torch.ones(N), atol=1e-5)


def test_eight_bit_adam_goes_where_adam_goes() -> None:
    pytest.importorskip("bitsandbytes")
    x = planted(30_000)[0]
    eight, full = (feed(trainer_of(rows=30_000, optimizer=name), x) for name in ("adam8bit", "adam"))
    state = eight.optimizer.adam.state[eight.optimizer.matrices[0]]  # type: ignore[attr-defined]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8 and state["state1"].shape == (N, D)
    scores = [one.metrics()["fvu"] for one in (eight, full)]
    assert scores[0] == pytest.approx(scores[1], rel=0.1) and scores[0] < 0.6
    with pytest.raises(InputError, match="8-bit blocks share"):
        TrainConfig(optimizer="adam8bit", resample_every=5)


def test_muon_is_torchs_muon_on_the_dense_gradient() -> None:
    """Three steps of the whole trainer beside `torch.optim.Muon` and Adam on gradients that autograd gives as well."""
    x = planted(768)[0]
    trainer = trainer_of(optimizer="muon", aux_k=0, rows=768)
    trainer._start(x[:256])
    sae, units, seen = trainer.dictionary, trainer.units, []
    assert units is not None
    original = trainer.optimizer.apply  # type: ignore[attr-defined]
    trainer.optimizer.apply = lambda gradients, adam: (seen.append(gradients), original(gradients, adam))  # type: ignore[attr-defined]
    names = ("W_enc", "W_dec", "b_enc")
    twins = {name: torch.nn.Parameter(getattr(sae, name).detach().clone()) for name in names}
    muon = torch.optim.Muon([twins["W_enc"], twins["W_dec"]], weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.Adam([twins["b_enc"]], betas=(trainer.config.beta1, trainer.config.beta2), eps=trainer.adam.eps)
    for part in x.split(256):
        leaves = {name: getattr(sae, name).detach().clone().requires_grad_() for name in names}
        centred = part * units.input - sae.b_dec
        pre = centred @ leaves["W_enc"].T + leaves["b_enc"]
        top = pre.topk(K, dim=1)
        code = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        loss = (code @ leaves["W_dec"] - centred).square().sum() / (centred - centred.mean(0)).square().sum()
        loss.backward()
        for group in (*muon.param_groups, *adam.param_groups):
            group["lr"] = trainer.lr
        feed(trainer, part)
        gradients, unit = seen[-1]._asdict(), leaves["W_dec"].detach()
        along = {"W_dec": (leaves["W_dec"].grad * unit).sum(1, keepdim=True) * unit}
        for name, twin in twins.items():
            torch.testing.assert_close(gradients[name], leaves[name].grad - along.get(name, 0), rtol=1e-3, atol=1e-6)
            twin.grad = gradients[name].clone()
        muon.step()
        adam.step()
        twins["W_dec"].data = torch.nn.functional.normalize(twins["W_dec"].data, dim=1)
        for name, twin in twins.items():
            torch.testing.assert_close(getattr(sae, name), twin, rtol=1e-5, atol=1e-6, check_device=False)
    assert len(seen) == 3


def test_signum_follows_the_schedule_free_recursion() -> None:
    """Against z, x and y written out, with the gradient read off a twin that Adam trains with beta1 = 0."""
    x_rows = planted(512)[0].split(256)
    trainer = trainer_of(optimizer="signum", beta1=0.9, aux_k=0, warmup=0.0, decay=0.0, lr=1e-3)
    trainer._start(x_rows[0])
    y = z = mean = trainer.dictionary.b_enc.clone()
    for t, part in enumerate(x_rows):
        twin = trainer_of(aux_k=0)
        twin.load_state_dict({**twin.state_dict(), "dictionary": trainer.dictionary.tensors(),
                              "units": trainer.units.state_dict() if trainer.units else {}})  # fmt: skip
        feed(twin, part)
        moments = twin.optimizer.moments.first
        assert moments is not None
        feed(trainer, part)
        z = z - 1e-3 * moments.b_enc.sign()
        mean = mean + (z - mean) / (t + 1)
        y = 0.1 * z + 0.9 * mean
        assert torch.allclose(trainer.dictionary.b_enc, y, atol=1e-7)
    assert torch.allclose(trainer.folded().b_enc * trainer.scale, mean, atol=1e-6)


def test_the_mean_is_that_of_the_weights_after_each_step() -> None:
    x = planted(2048)[0]
    plain, averaged = trainer_of(), trainer_of(ema=0.8)
    mean = None
    for steps, part in enumerate(x.split(256)):
        feed(plain, part)
        feed(averaged, part)
        now = plain.dictionary.W_enc.clone()
        decay = min(0.8, (1 + steps) / (10 + steps))
        mean = now if mean is None else decay * mean + (1 - decay) * now
    assert torch.equal(plain.dictionary.W_enc, averaged.dictionary.W_enc)  # training itself is not changed
    assert torch.allclose(averaged.folded().W_enc, mean, atol=1e-6)
    assert not torch.allclose(averaged.folded().W_enc, plain.folded().W_enc, atol=1e-4)


def test_k_falls_along_a_line_and_stays() -> None:
    trainer = trainer_of(rows=2048, k_start=11, k_anneal=0.5)
    seen = []
    for part in planted(2048)[0].split(256):
        feed(trainer, part)
        seen.append(trainer.metrics()["l0"])
    assert seen == pytest.approx([11, 9, 7, 5, 3, 3, 3, 3], abs=0.1)


def test_a_cosine_falls_slowly_at_both_ends() -> None:
    line, curve = (TrainConfig(rows=1000, lr=0.01, decay=0.5, decay_shape=shape) for shape in ("linear", "cosine"))
    at = (500, 550, 625, 750, 950, 1000)
    linear, cosine = ([shape.lr_after(rows, N, 1) for rows in at] for shape in (line, curve))
    assert (cosine[0], cosine[3]) == pytest.approx((linear[0], linear[3]))
    assert cosine[1] > linear[1] and cosine[4] < linear[4]
    assert cosine[5] == 0 and cosine[2] == pytest.approx(0.01 * (1 + 0.5**0.5) / 2)


def test_the_rate_goes_by_the_first_batch_the_rows_and_the_width() -> None:
    """Known: .068 * sqrt(512) / (106,496^(1/3) * 2,048^(1/4)) = .004826."""
    assert default_lr(2048, 512, 106_496) == pytest.approx(0.004826, rel=1e-3)
    assert default_lr(2048, 2048, 106_496) == pytest.approx(2 * default_lr(2048, 512, 106_496))
    assert default_lr(2048, 512, 8 * 106_496) == pytest.approx(default_lr(2048, 512, 106_496) / 2)
    assert default_lr(16 * 2048, 512, 106_496) == pytest.approx(default_lr(2048, 512, 106_496) / 2)
    assert default_lr(64, 4096, 1000) == 0.01
    trainer = trainer_of(rows=100_000, lr=None, warmup=0.0)
    for rows in planted(640)[0].split((256, 384)):
        feed(trainer, rows)
        assert trainer.lr == default_lr(N, 256, 100_000)
    other = trainer_of(rows=100_000, lr=None, warmup=0.0)
    other.load_state_dict(trainer.state_dict())
    assert other.lr == trainer.lr


def test_a_run_begun_before_keeps_its_rate() -> None:
    trainer = trainer_of(rows=100_000, lr=None, warmup=0.0)
    feed(trainer, planted(256)[0])
    state = trainer.state_dict()
    del state["counts"]["batch"]
    trainer.load_state_dict(state)
    feed(trainer, planted(256)[0])
    assert trainer.lr == pytest.approx(2.25e-3 / (N / 2**14) ** 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamw"}, "unknown optimizer 'adamw'"),
        ({"ema": 1.0}, "ema must lie between"),
        ({"ema": 0.9, "optimizer": "signum"}, "saves its own mean"),
        ({"k_start": 8, "architecture": "jumprelu"}, "k_start is for architectures"),
        ({"k_start": N + 1}, "k must be from 1 to n_latents"),
        ({"resample_every": 0}, "resample_every must be at least 1 step"),
        ({"k_anneal": 2.0}, "k_anneal is a share"),
        ({"decay_shape": "step"}, "unknown decay_shape 'step'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trainer_of(**options)

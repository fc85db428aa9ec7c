"""The family of architectures: planted dictionaries, autograd twins of every loss, the asked L0, folding and files."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.architectures.jumprelu import QUADRATIC
from monosem.saes.architectures.sae import SparseAutoencoder
from monosem.saes.architectures.schedules import L0Control, trapezoid
from monosem.saes.files import load
from monosem.saes.registry import build, build_trainable
from monosem.saes.training.trainer import TrainConfig, Trainer
from scipy.optimize import linear_sum_assignment

torch.set_num_threads(1)

SITE = Site.parse("resid_post.3")
D, TRUE, K = 32, 64, 4
STEERED = [("relu", {}), ("relu", {"p_end": 0.6}), ("gated", {}), ("jumprelu", {}),
           ("jumprelu", {"penalty": "step"}), ("jumprelu", {"penalty": "tanh"})]  # fmt: skip
EXACT = [("topk", {}), ("abstopk", {}), ("groupmax", {}), ("mp", {}), *STEERED, ("matryoshka", {"base": "topk"})]
"""Whose rule is the same in training and at inference."""
FAMILY = [*EXACT, ("batchtopk", {}), ("matryoshka", {})]


def planted(rows: int, seed: int = 0, noise: float = 0.02) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy rows that are sums of about K of the true unit directions, off centre; and the directions.

    Firing is uneven: the commonest direction is in four times as many rows as the rarest.
    """
    directions = torch.randn(TRUE, D, generator=torch.Generator().manual_seed(99))
    directions /= directions.norm(dim=1, keepdim=True)
    rate = torch.arange(1, TRUE + 1) ** -(1 / 3)
    g = torch.Generator().manual_seed(seed)
    on = torch.rand(rows, TRUE, generator=g) < rate * (K / rate.sum())
    x = (on * (1 + torch.rand(rows, TRUE, generator=g))) @ directions + noise * torch.randn(rows, D, generator=g)
    return 7 * x + 3, directions


def train(trainer: Trainer, x: torch.Tensor) -> Trainer:
    for part in x.split(256):
        trainer.step(Batch({SITE: part}, torch.zeros(len(part), 2, dtype=torch.int64)))
    return trainer


def trainer_of(architecture: str, options: dict, *, n: int = TRUE, k: int = K, **config) -> Trainer:
    dictionary = build_trainable(architecture, d_in=D, n_latents=n, k=k, **options)
    return Trainer(dictionary, SITE, TrainConfig(**{"rows": 10_000, "lr": 1e-2, **config}))


@cache
def trained(architecture: str, options: tuple = (), n: int = 2 * TRUE) -> Trainer:
    """Trained once for all tests."""
    nested = architecture == "matryoshka" and not options  # the prefixes' errors take their time
    x = planted(120_000 if nested else 60_000)[0]
    return train(trainer_of(architecture, dict(options), n=n, rows=len(x)), x)


def fvu(x_hat: torch.Tensor, x: torch.Tensor) -> float:
    return float((x_hat - x).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize(("architecture", "options"), FAMILY)
def test_a_planted_dictionary_is_recovered(architecture, options):
    dictionary = trained(architecture, tuple(options.items())).folded()
    directions = planted(1)[1]
    cosines = directions @ dictionary.W_dec.T
    cosines = cosines.abs() if architecture == "abstopk" else cosines
    matched = cosines[linear_sum_assignment(-cosines.numpy())]  # MCC: one latent for each direction
    assert matched.mean() >= 0.9


@pytest.mark.parametrize(("architecture", "options"), STEERED)
def test_the_asked_l0_is_reached_on_held_out_rows(architecture, options):
    dictionary = trained(architecture, tuple(options.items())).folded()
    code = dictionary.encode(planted(8000, seed=2)[0])
    assert float(code.l0.float().mean()) == pytest.approx(K, rel=0.05)


class Jump(torch.autograd.Function):
    """z * 1[z > theta], the rectangle estimate for theta."""

    @staticmethod
    def forward(ctx, z, theta, width):
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return z * (z > theta)

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        z, theta = ctx.saved_tensors
        window = ((z - theta).abs() < ctx.width / 2) / ctx.width
        return g * (z > theta), -(theta * g * window).sum(0), None


class Step(torch.autograd.Function):
    """1[z > theta], the rectangle estimate for theta, nothing for z."""

    @staticmethod
    def forward(ctx, z, theta, width):
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx, g):  # pyright: ignore[reportIncompatibleMethodOverride]
        z, theta = ctx.saved_tensors
        window = ((z - theta).abs() < ctx.width / 2) / ctx.width
        return torch.zeros_like(z), -(g * window).sum(0), None


WEIGHT = 0.3


def kept(pre: torch.Tensor, score: torch.Tensor, k: int) -> torch.Tensor:
    """The k entries of each row with the largest score, the rest 0."""
    top = score.topk(k, dim=1).indices
    return torch.zeros_like(pre).scatter(1, top, pre.gather(1, top))


def twin_loss(sae: SparseAutoencoder, unit: float, leaves: dict, x: torch.Tensor) -> torch.Tensor:
    """Dense: the summed squared error plus twice the penalty, over the variance of the batch."""
    W_dec, b_dec, config, k = leaves["W_dec"], leaves["b_dec"], sae.config, sae.config.k
    pre = (x - b_dec) @ leaves.get("W_enc", W_dec).T + leaves.get("b_enc", 0.0)
    penalty, f = torch.zeros(()), pre
    match sae.architecture:
        case "topk":
            f = kept(pre, pre, k).relu()
        case "abstopk":
            f = kept(pre, pre.abs(), k)
        case "groupmax":
            f = torch.cat([kept(part, part, 1) for part in pre.split(sae.n_latents // k, dim=1)], dim=1).relu()
        case "mp":
            f, left = torch.zeros_like(pre), x - b_dec
            for _ in range(k):
                value, latent = (left @ W_dec.T).relu().max(1, keepdim=True)
                f, left = f.scatter_add(1, latent, value), left - value * W_dec[latent[:, 0]]
        case "batchtopk" | "matryoshka":
            by_row = sae.architecture == "matryoshka" and config.base == "topk"
            f = (
                kept(pre, pre, k) if by_row else kept(pre.view(1, -1), pre.view(1, -1), len(x) * k).view_as(pre)
            ).relu()
        case "relu":
            f = pre.relu()
            penalty = WEIGHT * f.sum()
        case "gated":
            f = (pre > 0) * (leaves["r_mag"].exp() * pre + leaves["offset"]).relu()
            aside = (pre.relu() @ W_dec.detach() + b_dec.detach() - x).square().sum() / 2
            penalty = WEIGHT * pre.relu().sum() + aside
        case "jumprelu":
            f = Jump.apply(pre, leaves["theta"], config.bandwidth * unit)
            active = Step.apply(pre, leaves["theta"], config.bandwidth * unit).sum()
            pull = QUADRATIC * unit**2 * len(x) * k * (active / len(x) / k - 1).square() / (2 * WEIGHT)
            penalty = WEIGHT * {"step": active, "quadratic": active + pull,
                                "tanh": torch.tanh(f / unit).sum()}[config.penalty]  # fmt: skip
    ends = config.prefixes if sae.architecture == "matryoshka" else (sae.n_latents,)
    error = sum((f[:, :end] @ W_dec[:end] + b_dec - x).square().sum() for end in ends) / len(ends)
    return (error + 2 * penalty) / (x - x.mean(0)).square().sum()


@pytest.mark.parametrize(("architecture", "options"), FAMILY)
@pytest.mark.parametrize("clip_norm", [None, 1e9, 1e-3])
def test_every_gradient_of_a_step_equals_autograd_on_the_dense_loss(architecture, options, clip_norm):
    options = {**options, "coefficient": WEIGHT, "warmup": 0.0} if (architecture, options) in STEERED else options
    options = {**options, "p_end": 1.0} if architecture == "relu" else options
    trainer = trainer_of(architecture, options, precision="fp32", clip_norm=clip_norm)
    x, sae, g = planted(300)[0], trainer.dictionary, torch.Generator().manual_seed(5)
    trainer._start(x)
    trainer.steps = 1  # started
    for tensor in (sae.b_enc, sae.b_dec, *trainer.objective.extra_parameters.values()):
        tensor += 0.1 * torch.randn(tensor.shape, generator=g)  # away from special places
    trainer.objective.settle()
    unit = getattr(trainer.objective, "unit", 1.0)
    tensors = {**sae.tensors(), **trainer.objective.extra_parameters}
    leaves = {name: tensor.double().clone().requires_grad_() for name, tensor in tensors.items()}
    twin_loss(sae, unit, leaves, (x * trainer.scale).double()).backward()
    trainer.step(Batch({SITE: x}, torch.zeros(len(x), 2, dtype=torch.int64)))
    found = {**trainer.optimizer.moments.first._asdict(), "b_dec": trainer.optimizer.bias_moments[0]}
    found |= {name: moments[0] for name, moments in trainer.objective.moments.items()}
    W_dec = leaves["W_dec"].grad
    norm = sum(leaves[name].grad.square().sum() for name in ("W_enc", "W_dec", "b_enc") if name in leaves).sqrt()
    share = 1.0 if clip_norm is None else min(1.0, clip_norm / float(norm))
    assert (share < 1) == (clip_norm == 1e-3)
    leaves["W_dec"].grad = W_dec - (W_dec * leaves["W_dec"].detach()).sum(1, keepdim=True) * leaves["W_dec"].detach()
    for name in found.keys() - leaves.keys():  # the encoder of a dictionary that has none
        assert not found.pop(name).any()
    for name, gradient in found.items():
        expected = leaves[name].grad
        assert expected.abs().max() > 1e-6, f"{name} is not tested"
        expected = share * expected
        error = (gradient / (1 - trainer.config.beta1) - expected).abs().max() / expected.abs().max()
        assert error < 2e-5, name


@pytest.mark.parametrize(("architecture", "options"), EXACT)
def test_inference_codes_equal_training_codes(architecture, options):
    sae = trained(architecture, tuple(options.items())).dictionary
    x = planted(300, seed=3)[0] / 30
    training, inference = sae.training_code(sae.centred(x), None), sae.encode(x)
    for name in ("indptr", "indices", "values"):
        assert torch.equal(getattr(training, name), getattr(inference, name))


@pytest.mark.parametrize(("architecture", "options"), FAMILY)
def test_folding_and_files_keep_the_codes(architecture, options, tmp_path):
    trainer = trained(architecture, tuple(options.items()))
    x = planted(500, seed=4)[0]
    folded = trainer.folded()
    inner, outer = trainer.dictionary.encode(x * trainer.scale).to_dense() / trainer.scale, folded.encode(x).to_dense()
    same = (inner - outer).abs() < 1e-3
    assert same.float().mean() > 1 - 1e-4  # rounding may move a code across a threshold
    back = load(folded.save(tmp_path / "dictionary"))
    assert torch.equal(back.encode(x).to_dense(), outer)
    assert back.config == folded.config


@pytest.mark.parametrize(("architecture", "options"), FAMILY)
def test_the_same_seed_gives_the_same_bytes(architecture, options):
    x = planted(4000)[0]
    one, two = (train(trainer_of(architecture, options, aid_after=500), x).folded().tensors() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_abstopk_keeps_signs():
    sae = build("abstopk", d_in=3, n_latents=3, k=2)
    for weight in (sae.W_enc, sae.W_dec):
        weight.copy_(torch.eye(3))
    x = torch.tensor([[3.0, -5.0, 1.0], [-1.0, 0.5, -2.0]])
    assert torch.equal(sae.encode(x).to_dense(), torch.tensor([[3.0, -5.0, 0.0], [-1.0, 0.0, -2.0]]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 5))
def test_groupmax_keeps_the_largest_of_each_group(seed, k, size):
    g = torch.Generator().manual_seed(seed)
    sae = build("groupmax", d_in=5, n_latents=k * size, k=k)
    sae.W_enc.copy_(torch.randn(k * size, 5, generator=g))
    x = torch.randn(7, 5, generator=g)
    groups = (x @ sae.W_enc.T).view(7, k, size)
    dense = sae.encode(x).to_dense().view(7, k, size)
    assert torch.allclose(dense.max(2).values, groups.max(2).values.relu(), atol=1e-5)
    assert ((dense != 0).sum(2) <= 1).all()


def test_matryoshka_prefixes_reconstruct_alone_and_better_than_those_of_a_plain_dictionary():
    x = planted(4000, seed=6)[0]
    nested, plain = (trained(name).folded() for name in ("matryoshka", "batchtopk"))
    errors = {}
    for sae in (nested, plain):
        code = sae.encode(x).to_dense()
        errors[sae] = [fvu(code[:, :end] @ sae.W_dec[:end] + sae.b_dec, x) for end in nested.config.prefixes]
    assert errors[nested] == sorted(errors[nested], reverse=True)
    assert all(mine < theirs for mine, theirs in zip(errors[nested][:-1], errors[plain][:-1], strict=True))


def test_one_prefix_is_the_base():
    x = planted(4000)[0]
    nested = train(trainer_of("matryoshka", {"prefixes": (TRUE,)}, aid_after=500), x)
    base = train(Trainer(build_trainable("batchtopk", d_in=D, n_latents=TRUE, k=K), SITE, nested.config,
                         name=nested.name), x)  # fmt: skip
    assert torch.allclose(nested.dictionary.W_dec, base.dictionary.W_dec, atol=2e-3)
    assert nested.metrics()["fvu"] == pytest.approx(base.metrics()["fvu"], rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.floats(-3, 3), st.floats(0.4, 1.5), st.floats(0.03, 0.5))
def test_the_control_reaches_the_target_on_a_plant_that_follows_slowly(offset, slope, speed):
    """log L0 follows offset - slope * log weight at `speed` a step."""
    control, log_l0 = L0Control(32, None, 0.1), math.log(32)
    for _ in range(2000):
        weight = control.measure(math.exp(log_l0), 0.5)
        log_l0 += speed * (math.log(32) + offset - slope * math.log(weight) - log_l0)
    assert math.exp(log_l0) == pytest.approx(32, rel=0.01)


def test_a_given_coefficient_rises_and_is_not_steered():
    control = L0Control(32, 0.8, 0.1)
    control.begin(5.0)
    assert [round(control.measure(500, progress), 6) for progress in (0.0, 0.05, 0.1, 0.9)] == [0, 0.4, 0.8, 0.8]


def test_p_falls_in_its_window():
    trainer = trainer_of("relu", {"p_end": 0.5, "anneal_from": 0.2, "anneal_to": 0.6})
    seen = []
    for trainer.objective.progress in (0.0, 0.2, 0.4, 0.6, 1.0):
        seen.append(trainer.objective.p)
    assert seen == pytest.approx([1, 1, 0.75, 0.5, 0.5])


def test_the_learning_rate_without_decay_stays():
    assert trapezoid(1000, 1000, 0.0, 0.0) == 1.0


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("jumprelu", {"k": 0}, "k must be from 1"),
        ("gated", {"k": 65}, "k must be from 1"),
        ("relu", {"p_end": 0.0}, "p_end must be above 0"),
        ("relu", {"anneal_from": 0.9}, "in this order"),
        ("relu", {"coefficient": -1.0}, "coefficient must be above 0"),
        ("gated", {"warmup": 2.0}, "warmup is a share"),
        ("jumprelu", {"penalty": "l3"}, "unknown penalty 'l3'.*tanh"),
        ("jumprelu", {"bandwidth": 0.0}, "bandwidth must be above 0"),
        ("groupmax", {"k": 5}, "n_latents=64 is not a multiple of k=5"),
        ("matryoshka", {"prefixes": (32, 16, 64)}, r"prefixes must ascend .* n_latents=64, got \(32, 16, 64\)"),
        ("matryoshka", {"prefixes": (16, 32)}, "prefixes must ascend"),
        ("matryoshka", {"prefixes": (0, 64)}, "prefixes must ascend"),
        ("matryoshka", {"base": "relu"}, "unknown matryoshka base 'relu'"),
        ("topk", {"penalty": "step"}, "unknown topk config field 'penalty'"),
    ],
)
def test_bad_options_are_one_sentence(architecture, options, message):
    with pytest.raises(InputError, match=message) as error:
        build_trainable(architecture, **{"d_in": D, "n_latents": TRUE, "k": K, **options})
    assert "\n" not in str(error.value)

"""Training: planted dictionaries, gradients against autograd, exact state, folding."""

import pytest
import torch
from monosem.kernels.auxk import auxk_gradients
from monosem.kernels.tuples import Weights
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.architectures.units import geometric_median
from monosem.saes.registry import build
from monosem.saes.training.trainer import TrainConfig, Trainer

SITE = Site.parse("resid_post.3")
D, N, K = 32, 64, 4


def planted(rows: int, seed: int = 0, true: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that are sums of K of `true` unit directions with positive weights, off centre; and the directions."""
    g = torch.Generator().manual_seed(99)
    directions = torch.randn(true, D, generator=g)
    directions /= directions.norm(dim=1, keepdim=True)
    g = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, true, generator=g).topk(K, dim=1).indices
    weights = torch.zeros(rows, true).scatter_(1, chosen, 1 + torch.rand(rows, K, generator=g))
    return 7 * (weights @ directions) + 3.0, directions


def batches(x: torch.Tensor, size: int = 256):
    for part in x.split(size):
        yield Batch({SITE: part}, torch.zeros(len(part), 2, dtype=torch.int64))


def trained(architecture="topk", rows=60_000, seed=0, x=None, **config) -> Trainer:
    x = planted(rows)[0] if x is None else x
    config = TrainConfig(rows=len(x), seed=seed, lr=1e-2, **config)
    trainer = Trainer(build(architecture, d_in=D, n_latents=2 * N, k=K), SITE, config)
    for batch in batches(x):
        trainer.step(batch)
    return trainer


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_planted_dictionary_is_found(architecture, precision):
    trainer = trained(architecture, precision=precision)
    assert trainer.done and trainer.metrics()["l0"] == pytest.approx(K, rel=0.05)
    dictionary = trainer.folded()
    x, directions = planted(4000, seed=1)
    error = (dictionary(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert error < 0.15
    cosines = (directions @ dictionary.W_dec.T).max(1).values
    assert cosines.mean() > 0.95  # 0.99 for topk, 0.97 for batchtopk
    assert float(dictionary.encode(x).l0.float().mean()) == pytest.approx(K, rel=0.12)


def test_batchtopk_keeps_about_k_from_the_start():
    """The threshold belongs to the encoder that training uses, not to the one before it was scaled."""
    x = planted(2048)[0]
    trainer = Trainer(build("batchtopk", d_in=D, n_latents=2 * N, k=K), SITE, TrainConfig(rows=10**6))
    for batch in batches(x):
        trainer.step(batch)
    assert float(trainer.folded().encode(x).l0.float().mean()) == pytest.approx(K, rel=0.3)


def test_same_seed_same_bytes_and_another_seed_not():
    x = planted(5000)[0]
    first, again, other = (trained(x=x, seed=seed) for seed in (0, 0, 1))
    for a, b in zip(first.weights, again.weights, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.weights.W_dec, other.weights.W_dec)


def as_written_before(state: dict) -> dict:
    """The state of a trainer under the entries' names of the version before."""
    old = {{"optimizer": "optimiser", "average": "mean"}.get(name, name): value for name, value in state.items()}
    objective = {{"extra_parameters": "own"}.get(name, name): value for name, value in state["objective"].items()}
    return {**old, "objective": objective}


def test_a_checkpoint_of_the_version_before_continues_to_the_same_bytes():
    x = planted(4096)[0]
    config = TrainConfig(rows=len(x), aid_after=500, ema=0.9)
    whole, second = (Trainer(build("jumprelu", d_in=D, n_latents=N, k=K), SITE, config) for _ in range(2))
    parts = list(batches(x))
    for at, batch in enumerate(parts):
        if at == len(parts) // 2:
            second.load_state_dict(as_written_before(whole.state_dict()))
        whole.step(batch)
    for batch in parts[len(parts) // 2 :]:
        second.step(batch)
    assert whole.metrics()["fvu"] > 0
    ended, continued = whole.folded().tensors(), second.folded().tensors()
    assert all(torch.equal(ended[name], continued[name]) for name in ended)


@pytest.mark.parametrize(
    "architecture", ["topk", "batchtopk", "abstopk", "groupmax", "matryoshka", "relu", "gated", "jumprelu"]
)
def test_a_restored_trainer_ends_in_the_same_bytes(architecture):
    x = planted(10_000)[0]
    config = TrainConfig(rows=len(x), aid_after=500)
    whole, first, second = (Trainer(build(architecture, d_in=D, n_latents=N, k=K), SITE, config) for _ in range(3))
    parts = list(batches(x))
    for batch in parts:
        whole.step(batch)
    for batch in parts[:17]:
        first.step(batch)
    saved = {key: value for key, value in first.state_dict().items()}
    second.load_state_dict(saved)
    for batch in parts[17:]:
        second.step(batch)
    assert whole.metrics() == second.metrics()
    for mine, theirs in (
        (whole.weights, second.weights),
        (whole.optimizer.moments.first, second.optimizer.moments.first),
        (whole.optimizer.moments.second, second.optimizer.moments.second),
    ):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    ended, continued = whole.dictionary.tensors(), second.dictionary.tensors()
    assert all(torch.equal(ended[name], continued[name]) for name in ended)
    state, restored = whole.objective.state_dict(), second.objective.state_dict()
    assert {key: state[key] for key in state if key not in ("extra_parameters", "moments")} == {
        key: restored[key] for key in restored if key not in ("extra_parameters", "moments")
    }
    for kind in ("extra_parameters", "moments"):
        assert all(torch.equal(state[kind][name], restored[kind][name]) for name in state[kind])


def test_one_step_is_gradient_descent_on_the_normalised_loss():
    """The bias of the decoder moves against the autograd gradient, the encoder's share included."""
    x = planted(256)[0]
    trainer = Trainer(build("topk", d_in=D, n_latents=N, k=K), SITE, TrainConfig(rows=10_000, precision="fp32"))
    trainer._start(x)
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    W_enc, b_enc, W_dec, b_dec = (getattr(trainer.dictionary, name).detach().clone().requires_grad_() for name in names)
    scaled = x * trainer.scale
    pre = (scaled - b_dec) @ W_enc.T + b_enc
    top = pre.topk(K, dim=1)
    code = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    loss = (code @ W_dec + b_dec - scaled).square().sum() / (scaled - scaled.mean(0)).square().sum()
    loss.backward()
    next(iter(map(trainer.step, batches(x))))
    beta = 1 - trainer.config.beta1
    assert torch.allclose(trainer.optimizer.moments.first.W_enc / beta, W_enc.grad, atol=1e-6)
    assert torch.allclose(trainer.optimizer.moments.first.b_enc / beta, b_enc.grad, atol=1e-6)
    assert torch.allclose(trainer.optimizer.bias_moments[0] / beta, b_dec.grad, atol=1e-6)
    along = (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
    assert torch.allclose(trainer.optimizer.moments.first.W_dec / beta, (W_dec.grad - along).detach(), atol=1e-6)


@pytest.mark.parametrize("k", [3, 100])
def test_dead_latent_gradients_equal_autograd_and_reach_the_encoder(k):
    g = torch.Generator().manual_seed(0)
    x, residual = torch.randn(40, D, generator=g), torch.randn(40, D, generator=g)
    weights = Weights(torch.randn(N, D, generator=g), torch.randn(N, D, generator=g), torch.randn(N, generator=g))
    latents = torch.tensor([2, 5, 7, 11, 30])
    extra, loss = auxk_gradients(x, residual, weights, latents, k, 1 / 32)
    leaves = [weight[latents].clone().requires_grad_() for weight in weights]
    pre = x @ leaves[0].T + leaves[2]
    top = pre.relu().topk(min(k, 5), dim=1)
    code = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    expected = (code @ leaves[1] + residual).square().sum() / (residual - residual.mean(0)).square().sum()
    (expected / 32).backward()
    assert torch.allclose(loss, expected, rtol=1e-5)
    assert torch.allclose(extra.W_enc, leaves[0].grad, atol=1e-6) and extra.W_enc.abs().sum() > 0
    assert torch.allclose(extra.W_dec, leaves[1].grad, atol=1e-6)
    assert torch.allclose(extra.b_enc[:, 0], leaves[2].grad, atol=1e-6)


def test_the_aid_revives_dead_latents():
    x = planted(60_000, true=2 * N)[0]

    def dead_at_end(aux_k: int) -> float:
        config = TrainConfig(rows=len(x), lr=5e-3, aid_after=4000, dead_after=4000, aux_k=aux_k)
        trainer = Trainer(build("topk", d_in=D, n_latents=2 * N, k=K), SITE, config)
        parts = list(batches(x))
        trainer.step(parts[0])
        trainer.weights.W_enc[:N] *= 0.02  # these lose against the others from now on
        trainer.refresh_copies()
        for batch in parts[1:]:
            trainer.step(batch)
        return trainer.metrics()["dead"]

    assert dead_at_end(0) > 0.4
    assert dead_at_end(D) < 0.1


def test_folding_gives_the_same_codes_in_activation_units():
    trainer = trained(rows=5000)
    x = planted(100, seed=3)[0]
    inner = trainer.dictionary.encode(x * trainer.scale)
    folded = trainer.folded().encode(x)
    assert torch.equal(inner.indices, folded.indices)
    assert torch.allclose(inner.values / trainer.scale, folded.values, atol=1e-3)


def test_learning_rate_rises_holds_and_falls():
    trainer = Trainer(
        build("topk", d_in=D, n_latents=2**14, k=K),
        SITE,
        TrainConfig(rows=1000, warmup=0.1, decay=0.5, lr=0.01),
    )
    seen = []
    for rows in (0, 50, 100, 500, 750, 999):
        trainer.rows = rows
        seen.append(trainer.lr)
    assert seen[0] < seen[1] < 0.01 and seen[2] == seen[3] == 0.01
    assert seen[4] == pytest.approx(0.005) and seen[5] == pytest.approx(2e-5)


def test_the_geometric_median_ignores_an_outlier():
    x = torch.cat([torch.randn(999, 4, generator=torch.Generator().manual_seed(0)), torch.full((1, 4), 1e6)])
    assert geometric_median(x).norm() < 0.2


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"precision": "fp8"}, "unknown precision 'fp8'.*fp32"),
        ({"rows": 0}, "rows must be a whole number from 1"),
        ({"decay": 2.0}, "decay is a share"),
        ({"lr": 3.0}, "lr must lie"),
    ],
)
def test_bad_options_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**bad)


def test_rows_that_are_all_equal_are_refused():
    trainer = Trainer(build("topk", d_in=D, n_latents=N, k=K), SITE)
    with pytest.raises(InputError, match="nothing to learn"):
        trainer.step(Batch({SITE: torch.ones(8, D)}, torch.zeros(8, 2, dtype=torch.int64)))

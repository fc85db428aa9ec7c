"""Which path runs where: every machine trains, each choice has a reason, and all paths agree."""

import pytest
import torch
from monosem.kernels import dense, dispatch, update
from monosem.kernels.decode import decode_reference, decode_residual, residual_reference
from monosem.kernels.dispatch import choose, using
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.registry import build
from monosem.saes.training.trainer import TrainConfig, Trainer

CPU = torch.device("cpu")
SITE = Site.parse("resid_post.0")


def test_choice_is_obeyed_and_explained():
    asked = choose(CPU, "fp32")
    assert asked[:2] == ("compiled", "fp32") and "precision fp32 was asked for" in asked.why
    assert choose(CPU, "bf16")[:2] == ("compiled", "bf16") and choose(CPU, "int8")[:2] == ("compiled", "int8")
    with pytest.raises(ValueError, match="int8 needs the compiled CPU step"):
        choose(torch.device("meta"), "int8")


@pytest.mark.parametrize(
    "features, encode, why",
    [
        ((), "fp32", "no fast low-precision products here"),
        (("avx512_bf16",), "bf16", "cpu has fast bf16 products"),
        (("amx_tile",), "bf16", "cpu has fast bf16 products"),
        (("vnni",), "int8", "the CPU has VNNI: int8 screens, fp32 decides"),
        (("vnni", "avx512_bf16", "amx_tile"), "int8", "the CPU has VNNI"),
    ],
)
def test_the_instructions_of_a_cpu_choose_the_products(monkeypatch, features, encode, why):
    monkeypatch.setattr(dispatch, "_installed", lambda name: True)
    for feature in ("vnni", "avx512_bf16", "amx_tile"):
        assert callable(getattr(torch.cpu, f"_is_{feature}_supported"))  # torch still answers under these names
        monkeypatch.setattr(torch.cpu, f"_is_{feature}_supported", lambda has=feature in features: has)
    choice = choose(CPU)
    assert choice[:2] == ("compiled", encode) and why in choice.why
    with using("reference"):  # plain PyTorch has no int8 step
        assert choose(CPU).encode == ("fp32" if set(features) <= {"vnni"} else "bf16")


@pytest.mark.parametrize(
    "device, missing, step, why",
    [
        ("cpu", None, "compiled", "numba"),  # Triton and no GPU: Triton is not asked
        ("cpu", "numba", "reference", "numba is not installed"),
        ("cuda", None, "triton", "GPU with Triton"),
        ("cuda", "triton", "reference", "Triton is not installed"),
        ("mps", None, "reference", "no kernels for mps"),
    ],
)
def test_every_machine_has_a_path(monkeypatch, device, missing, step, why):
    monkeypatch.setattr(dispatch, "_installed", lambda name: name != missing)
    choice = choose(torch.device(device))
    assert choice.step == step and why in choice.why


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="one of compiled, triton, reference, got 'cuda'"), using("cuda"):
        pass


def train(backend: str, steps: int, size: int = 24, precision: str = "fp32", **config) -> tuple[list[float], Trainer]:
    """Losses over steps of `size` rows on planted directions, and the trainer."""
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(40, 16, generator=g)
    losses = []
    with using(backend):
        dictionary = build("topk", d_in=16, n_latents=2 * size, k=3)
        trainer = Trainer(
            dictionary, SITE, TrainConfig(rows=10_000, precision=precision, aid_after=60, blend=0.0, **config)
        )
        for _ in range(steps):
            codes = torch.rand(size, 40, generator=g) * (torch.rand(size, 40, generator=g) < 0.08)
            trainer.step(Batch({SITE: codes @ directions + 1}, torch.zeros(size, 2, dtype=torch.int64)))
            losses.append(trainer.metrics()["fvu"])
    return losses, trainer


@pytest.mark.parametrize("config", [{}, {"beta1": 0.0}, {"optimizer": "active_row"}, {"clip_norm": 0.02}])
def test_compiled_loops_and_references_give_the_same_curve(config):
    fast, trainer = train("compiled", 60, **config)
    slow, _ = train("reference", 60, **config)
    assert fast == pytest.approx(slow, rel=1e-2)  # a swapped tie changes later steps
    again, twin = train("compiled", 60, **config)
    assert again == fast
    assert all(torch.equal(a, b) for a, b in zip(trainer.weights, twin.weights, strict=True))
    assert fast[-1] < 0.6 * fast[0]


def test_triton_and_references_give_the_same_curve():
    """In the interpreter a step takes seconds, so few and small ones; on a GPU the kernels run on the device."""
    fast, trainer = train("triton", 2, size=8)
    slow, _ = train("reference", 2, size=8)
    assert fast == pytest.approx(slow, rel=1e-4)
    _, twin = train("triton", 2, size=8)
    assert all(torch.equal(a, b) for a, b in zip(trainer.weights, twin.weights, strict=True))


def test_bf16_copies_serve_the_products_and_the_gathers():
    fast, trainer = train("reference", 40, precision="bf16")
    exact, _ = train("reference", 40)
    assert trainer.decoder.dtype == torch.bfloat16
    assert torch.equal(trainer.low_precision.W_dec, trainer.weights.W_dec.bfloat16())
    assert fast[-1] == pytest.approx(exact[-1], rel=0.1)
    compiled, trainer = train("compiled", 40, precision="bf16")
    assert trainer.decoder.dtype == torch.float32
    assert torch.equal(trainer.low_precision.W_enc, trainer.weights.W_enc.bfloat16())
    assert compiled[-1] == pytest.approx(exact[-1], rel=0.1)


def many_codes():
    g = torch.Generator().manual_seed(1)
    counts = torch.randint(0, 20, (30,), generator=g)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    indices = torch.cat([torch.randperm(24, generator=g)[:c].sort().values for c in counts.tolist()]).int()
    values = torch.randn(len(indices), generator=g).clamp_min(0)
    W = torch.randn(24, 10, generator=g)
    return (indptr, indices, values), W / W.norm(dim=1, keepdim=True), torch.randn(30, 10, generator=g)


def test_dense_products_equal_the_references(monkeypatch):
    codes, W, x = many_codes()
    bias = torch.arange(10.0)
    assert dispatch.dense_is_faster(CPU, 24, len(codes[1]) / 30)
    assert not dispatch.dense_is_faster(CPU, 9216, 32)
    assert torch.allclose(dense.decode(*codes, W, bias), decode_reference(*codes, W, bias), atol=1e-5)
    called = []
    original = dense.decode_residual
    monkeypatch.setattr(dense, "decode_residual", lambda *a: called.append(1) or original(*a))
    got, expected = decode_residual(*codes, W, bias, x), residual_reference(*codes, W, bias, x)
    assert called
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    states = []
    for step in (update.latent_step, update.reference):
        weights = update.Weights(W.clone(), W.clone(), torch.zeros(24))
        moments = update.new_moments(weights, 0.9, active_rows=False)
        for t in (1, 2, 3):
            updated = step(codes, expected, x, 0.1, weights, moments, update.Adam(1e-2, t))
        states.append((*weights, *moments.first, *moments.second, *updated))
    for a, b in zip(*states, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_dense_products_take_rows_in_bf16():
    """As a GPU gives them: codes' gradients stay fp32, the residual has the dtype of the rows."""
    codes, W, x = many_codes()
    rows = x.bfloat16()
    got, expected = decode_residual(*codes, W, torch.zeros(10), rows), residual_reference(*codes, W, 0.0, rows.float())
    assert got.residual.dtype == torch.bfloat16 and got.grads.dtype == got.squares.dtype == torch.float32
    assert torch.allclose(got.squares, expected.squares, rtol=1e-5)
    assert torch.allclose(got.grads, expected.grads, atol=1e-4)
    gradients, fired = dense.latent_gradients(codes, got, rows, 0.1, 24)
    wide = got._replace(residual=got.residual.float())
    for mine, theirs in zip(gradients, dense.latent_gradients(codes, wide, rows.float(), 0.1, 24)[0], strict=True):
        assert torch.equal(mine, theirs)
    assert gradients.W_enc.dtype == torch.float32 and int(fired.sum()) == int((codes[2] != 0).sum())

"""Transcoders of every architecture: a planted map is found, folding, gradients, resume, files, and evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.sites import Site
from monosem.lab.streams.activation_stream import Batch
from monosem.lab.text.corpus import Corpus
from monosem.saes.architectures.basis import PCA
from monosem.saes.architectures.linear import Linear
from monosem.saes.architectures.sae import SAEConfig, SparseAutoencoder
from monosem.saes.dictionary import Provenance
from monosem.saes.evaluation.evaluate import evaluate
from monosem.saes.evaluation.nulls import fit_nulls
from monosem.saes.evaluation.reconstruction import Reconstruction
from monosem.saes.evaluation.splicing import splice
from monosem.saes.files import load
from monosem.saes.place import Place, Port
from monosem.saes.registry import build, build_trainable, trainable
from monosem.saes.sparse_code import SparseCode
from monosem.saes.training.trainer import TrainConfig, Trainer
from scipy.optimize import linear_sum_assignment
from tiny_models import Letters
from tiny_models import build as tiny

torch.set_num_threads(1)

READ, WRITTEN = Site.parse("resid_mid.1"), Site.parse("mlp_out.1")
D, OUT, TRUE, K, DENSE = 32, 24, 48, 4, 6
FIELDS = ("skip", "prefixes", "base", "coefficient", "warmup")  # of the dictionary, the other options are training's
FAMILY = [name for name in trainable() if name != "mp"]  # its decoder reads, too


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


READS, WRITES, MAP = unit(TRUE, D, 1), unit(TRUE, OUT, 2), unit(OUT, DENSE, 3)


def planted(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse causes that are read along some directions and written along others, at other scales and places."""
    g = torch.Generator().manual_seed(seed)
    causes = (torch.rand(rows, TRUE, generator=g) < K / TRUE) * (1 + torch.rand(rows, TRUE, generator=g))
    noise = 0.02 * torch.randn(rows, D, generator=g)
    return 7 * (causes @ READS + noise) + 3, 0.2 * causes @ WRITES - 1


def feed(trainer: Trainer, x: torch.Tensor, y: torch.Tensor) -> Trainer:
    for a, b in zip(x.split(256), y.split(256), strict=True):
        trainer.step(Batch({READ: a, WRITTEN: b}, torch.zeros(len(a), 2, dtype=torch.int64)))
    return trainer


def trainer_of(architecture: str, rows: int, *, d_in: int = D, n: int = 2 * TRUE, **options) -> Trainer:
    fields = {name: options.pop(name) for name in FIELDS if name in options}
    dictionary = build_trainable(architecture, d_in=d_in, d_out=OUT, n_latents=n, k=K, **fields)
    return Trainer(dictionary, READ, TrainConfig(**{"rows": rows, "lr": 1e-2, **options}), target=WRITTEN)


def fvu(x_hat: torch.Tensor, x: torch.Tensor) -> float:
    return float((x_hat - x).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_a_planted_map_is_recovered(architecture: str) -> None:
    trained = feed(trainer_of(architecture, 30_000), *planted(30_000)).folded()
    cosines = WRITES @ trained.W_dec.T
    latents = linear_sum_assignment(-cosines.numpy())[1]
    assert cosines[range(TRUE), latents].mean() >= 0.9  # MCC
    x, y = planted(3000, seed=1)
    nulls = {
        name: fvu(null(x), y) for name, null in fit_nulls(*(part[:1000] for part in (x,)), trained, 0, y[:1000]).items()
    }
    assert fvu(trained(x), y) < 0.9 * min(nulls.values()), nulls  # the linear one is dense, and 0.31
    assert trained(x).shape == y.shape and trained.decode(trained.encode(x)).shape == y.shape


def test_a_skip_takes_the_linear_part() -> None:
    x, y = planted(30_000)
    dense = torch.randn(len(x), DENSE, generator=torch.Generator().manual_seed(5))
    x, y = torch.cat([x, 9 * dense], 1), y + dense @ MAP.T
    plain, skipping = (
        feed(trainer_of("topk", len(x), d_in=D + DENSE, n=TRUE, skip=skip), x, y).folded() for skip in (False, True)
    )
    assert skipping.W_skip is not None and plain.W_skip is None
    found = skipping.W_skip[:, D:]
    assert (found * MAP).sum() > 0.94 * found.norm() * MAP.norm()  # latents that began to read it keep a share
    assert fvu(skipping(x), y) < 0.25 * fvu(plain(x), y)
    rows, code = x[:9], skipping.encode(x[:9])
    assert not torch.allclose(skipping.decode(code), skipping.reconstruct(rows), atol=0.1)
    nothing = SparseCode(code.indptr, code.indices, torch.zeros_like(code.values), code.n_latents)
    linear = skipping.b_dec + rows @ skipping.W_skip.T
    assert torch.allclose(skipping.reconstruct(rows, nothing), linear, atol=1e-4)


@pytest.mark.parametrize("architecture", FAMILY)
@pytest.mark.parametrize("skip", [False, True])
def test_folding_and_files_keep_the_prediction(architecture: str, skip: bool, tmp_path: Path) -> None:
    trainer = feed(trainer_of(architecture, 3000, skip=skip), *planted(1500))
    x = planted(300, seed=2)[0]
    units, inner = trainer.units, trainer.dictionary
    expected = inner.reconstruct(x * units.input - units.centre) / units.output
    folded = trainer.folded()
    assert not inner.config.centre_input and units.centre.abs().max() > 0.1
    off = (folded(x) - expected).abs().amax(1) > 1e-3 * expected.abs().max()
    assert off.float().mean() < 0.01  # rounding may move a code across a threshold
    back = load(folded.save(tmp_path))
    assert (
        torch.equal(back(x), folded(x))
        and back.config == folded.config
        and (back.place, back.provenance) == (folded.place, folded.provenance)
    )
    assert (back.place.site, back.place.target) == (READ, WRITTEN)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("topk", {"skip": True}),
        ("relu", {"coefficient": 1e-9, "warmup": 0.0}),
        ("matryoshka", {"base": "topk", "prefixes": (10, 30, 2 * TRUE), "skip": True}),
    ],
)
@pytest.mark.parametrize("clip_norm", [None, 1e9])
def test_every_gradient_of_a_step_equals_autograd(architecture: str, options: dict, clip_norm: float | None) -> None:
    trainer, (x, y) = trainer_of(architecture, 10_000, precision="fp32", clip_norm=clip_norm, **options), planted(256)
    trainer._start(torch.cat([x, y], 1))
    trainer.steps, sae, units = 1, trainer.dictionary, trainer.units
    if sae.W_skip is not None:
        sae.W_skip += 0.1 * torch.randn(sae.W_skip.shape, generator=torch.Generator().manual_seed(0))
    leaves = {name: tensor.double().clone().requires_grad_() for name, tensor in sae.tensors().items()
              if name != "threshold"}  # fmt: skip
    seen, goal = (x * units.input - units.centre).double(), (y * units.output).double()
    pre = seen @ leaves["W_enc"].T + leaves["b_enc"]
    code = pre.relu()
    if architecture != "relu":
        top = pre.topk(K, dim=1)
        code = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    base = leaves["b_dec"] + (seen @ leaves["W_skip"].T if "W_skip" in leaves else 0)
    ends = getattr(sae.config, "prefixes", (sae.n_latents,))
    error = sum((code[:, :end] @ leaves["W_dec"][:end] + base - goal).square().sum() for end in ends) / len(ends)
    (error / (goal - goal.mean(0)).square().sum()).backward()
    feed(trainer, x, y)
    found = {**trainer.optimizer.moments.first._asdict(), "b_dec": trainer.optimizer.bias_moments[0]}
    if trainer.optimizer.skip_moments is not None:
        found["W_skip"] = trainer.optimizer.skip_moments[0]
    rows = leaves["W_dec"].detach()
    leaves["W_dec"].grad -= (leaves["W_dec"].grad * rows).sum(1, keepdim=True) * rows
    for name, gradient in found.items():
        expected = leaves[name].grad
        assert (gradient / (1 - trainer.config.beta1) - expected).abs().max() < 3e-5 * expected.abs().max(), name


@pytest.mark.parametrize(("architecture", "options"), [("topk", {"skip": True}), ("matryoshka", {}), ("gated", {})])
def test_a_restored_trainer_ends_in_the_same_bytes(architecture: str, options: dict) -> None:
    x, y = planted(6000)
    whole, first, second = (trainer_of(architecture, 6000, n=400, aid_after=200, **options) for _ in range(3))
    feed(whole, x, y)
    second.load_state_dict(feed(first, x[:5120], y[:5120]).state_dict())
    feed(second, x[5120:], y[5120:])
    assert whole.metrics() == second.metrics() and len(whole.dead.idle) > 0
    for mine, theirs in ((whole.dictionary.tensors(), second.dictionary.tensors()),
                         (whole.folded().tensors(), second.folded().tensors())):  # fmt: skip
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    kept, restored = whole.state_dict(), second.state_dict()
    assert kept["units"]["scales"] == restored["units"]["scales"]
    assert torch.equal(kept["optimizer"]["bias_moments"], restored["optimizer"]["bias_moments"])
    skips = [state["optimizer"]["skip"] for state in (kept, restored)]
    assert skips[0].keys() == skips[1].keys() == ({"moments"} if options else set())
    assert all(torch.equal(skips[0][name], skips[1][name]) for name in skips[0])


def test_descriptions_from_before_transcoders_load(tmp_path: Path) -> None:
    trained = build("topk", d_in=4, n_latents=8, k=2)
    trained.place, trained.provenance = Place.parse("resid_post.3").limited([5.0]), Provenance({"name": "m"})
    path = trained.save(tmp_path) / "dictionary.json"
    description = json.loads(path.read_text())
    for name in ("d_out", "skip", "sources"):
        del description["config"][name]
    del description["place"]
    description |= {"schema": 1, "provenance": {"site": "resid_post.3", "model": {"name": "m"}, "norm_limit": 5.0}}
    path.write_text(json.dumps(description))
    again = load(tmp_path)
    assert (again.place, again.provenance, again.config) == (trained.place, trained.provenance, trained.config)


def test_the_linear_map_is_the_least_squares_one() -> None:
    x, y = planted(500)
    linear = Linear.fit(x, y)
    design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    best = design @ torch.linalg.lstsq(design, y.double()).solution
    assert fvu(linear(x).double(), y.double()) == pytest.approx(fvu(best, y.double()), rel=1e-3)
    assert linear.encode(x).l0.eq(OUT).all() and torch.allclose(linear.W_dec.norm(dim=1), torch.ones(OUT), atol=1e-5)


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(tiny("llama"), name="tiny-llama")


def corpus() -> Corpus:
    texts = ["".join(chr(33 + (i * i + j * (7 + i % 5)) % 90) for j in range(12 + i % 9)) for i in range(60)]
    return Corpus(texts, Letters(), context=16, batch_rows=4)


def down_projection(model: HookedModel) -> Linear:
    """The exact transcoder from an MLP's activations to its output, which is a matrix in this model."""
    rows = {site: [] for site in ("mlp_act.1", "mlp_out.1")}
    for batch in corpus():
        for site, found in model.capture(batch.tokens, list(rows)).items():
            rows[str(site)].append(found[batch.usable])
    exact = Linear.fit(*(torch.cat(parts) for parts in rows.values()))
    exact.place, exact.provenance = "mlp_act.1 -> mlp_out.1", Provenance(model.fingerprint())
    return exact


def test_an_exact_transcoder_changes_nothing_where_it_is_spliced_in(model: HookedModel) -> None:
    exact, act = down_projection(model), Site.parse("mlp_act.1")
    found = splice(model, corpus(), "mlp_out.1", {"exact": exact}, torch.zeros(32), tokens=200, reads={act: None})
    scores = found.evidence("exact")
    assert abs(scores["kl"].value) < 1e-4 < scores["kl"].nulls["zero"]
    assert scores["ce_recovered_mean"].value == pytest.approx(1, abs=1e-2)
    with pytest.raises(InputError, match=r"mlp_act.1 must read an earlier site, not mlp_out.1"):
        splice(model, corpus(), act, {"exact": exact}, torch.zeros(56), tokens=9, reads={WRITTEN: None})


def test_an_evaluation_is_against_the_target_and_has_nulls(model: HookedModel) -> None:
    exact = down_projection(model)
    found = evaluate(model, corpus(), exact, tokens=300, ce_tokens=100, fit_tokens=200, progress=False)
    assert found.site == "mlp_act.1 -> mlp_out.1" and found["fvu"].value < 0.01
    assert set(found["fvu"].nulls) == {"untrained", "linear"} and 0.1 < found["fvu"].nulls["untrained"] < 1.5
    assert set(found["kl"].nulls) == {"zero", "mean", "untrained", "linear"}
    assert "encoder_decoder_cosine" not in found.scores
    act, out = Port(Site.parse("mlp_act.1")), Port(Site.parse("mlp_out.1"))
    for sources, targets, text in ((act, Port(), "names no site that it predicts"), (Port(), out, "names no site:")):
        other = down_projection(model)
        other.place = Place((sources,), (targets,))
        with pytest.raises(InputError, match=text):
            evaluate(model, corpus(), other, progress=False)
    with pytest.raises(InputError, match="SAEBench scores autoencoders"):
        evaluate(model, corpus(), exact, compat="saebench", progress=False)
    with pytest.raises(InputError, match="has other widths than the dictionary's"):
        exact.config = SAEConfig(56, 32, 32, d_out=31)
    assert exact.config.d_out == exact.place.targets[0].width == 32
    narrow = type(exact)(SAEConfig(56, 32, 32, d_out=31))
    narrow.place, narrow.provenance = "mlp_act.1 -> resid_post.1", exact.provenance
    with pytest.raises(InputError, match=r"resid_post.1 of 'tiny-llama' has width 32, the dictionary d_out=31"):
        evaluate(model, corpus(), narrow, progress=False)


def test_measured_on_a_stream() -> None:
    trained = feed(trainer_of("topk", 2000), *planted(2000)).folded()
    x, y = planted(400, seed=3)
    measure = Reconstruction(trained)
    measure.step(Batch({READ: x, WRITTEN: y}, torch.zeros(len(x), 2, dtype=torch.int64)))
    assert measure.sites == (READ, WRITTEN) and measure.metrics()["fvu"] == pytest.approx(fvu(trained(x), y), rel=1e-4)
    trained.place = Place((Port(READ),), (Port(),))
    with pytest.raises(InputError, match="names no site that it predicts"):
        Reconstruction(trained)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_out": 0}, "d_out must be at least 1"),
        ({"skip": True}, "skip=True is for transcoders: give d_out"),
        ({"sources": (3, 4)}, r"add up to d_in=8, got \(3, 4\)"),
        ({"sources": (4, 4), "d_out": 8}, "either sources or d_out"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("topk", d_in=8, n_latents=16, k=2, **fields)


def test_a_trainer_refuses_sites_that_do_not_fit() -> None:
    plain, transcoder = (build_trainable("topk", d_in=8, n_latents=16, k=2, d_out=d_out) for d_out in (None, 8))
    for dictionary, options, message in (
        (plain, {"target": WRITTEN}, "needs a dictionary with d_out"),
        (transcoder, {}, "is a transcoder: give target="),
    ):
        with pytest.raises(InputError, match=message):
            Trainer(dictionary, READ, **options)
    with pytest.raises(InputError, match="reads 1 site"):
        Trainer(plain, [READ, WRITTEN])
    with pytest.raises(InputError, match="leave out d_out=8"):
        PCA(SAEConfig(8, 8, 2, d_out=8))
    with pytest.raises(InputError, match="take the target rows too"):
        fit_nulls(torch.randn(9, 8), transcoder)
    assert isinstance(transcoder, SparseAutoencoder) and "d_out=8" in repr(transcoder) and "d_out" not in repr(plain)

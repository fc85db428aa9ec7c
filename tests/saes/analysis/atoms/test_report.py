"""The report: planted atoms stand out from every null, random ones do not; whitened training folds back exactly."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.lab.rng import generator
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.analysis.atoms.coherence import measure_coherence
from monosem.saes.analysis.atoms.coordinates import Rotated, WhitenedTrainer, random_rotation
from monosem.saes.analysis.atoms.faithfulness import Faithfulness
from monosem.saes.analysis.atoms.inner_product import AtomicInnerProduct, SecondMoment
from monosem.saes.analysis.atoms.report import AtomsConfig, measure_atoms, read_seen
from monosem.saes.architectures.itda.dictionary import ITDA
from monosem.saes.architectures.jumprelu import JumpReLU, JumpReLUConfig
from monosem.saes.dictionary import Dictionary
from monosem.saes.files import load
from monosem.saes.registry import build
from monosem.saes.training.trainer import TrainConfig, Trainer
from torch import Tensor

torch.set_num_threads(1)
SITE = Site.parse("resid_post.1")
WIDTH, ATOMS, ACTIVE = 24, 48, 2
FEW = AtomsConfig(tokens=600, sink_tokens=300, moment_tokens=20_000, fit_tokens=400)


def rows(n: int, name: str, atoms: Tensor) -> list[Batch]:
    """Every atom is in use by itself: where their number is fixed, codes are not isotropic and the metric fails."""
    rng = generator(1, name)
    codes = (1 + torch.rand(n, len(atoms), generator=rng)) * (torch.rand(n, len(atoms), generator=rng) < ACTIVE / WIDTH)
    x, doc = codes @ atoms + 5, torch.arange(n) // 20
    return [Batch({SITE: x[i : i + 100]}, torch.stack([doc, doc], 1)[i : i + 100]) for i in range(0, n, 100)]


def dictionary_of(atoms: Tensor) -> JumpReLU:
    """Reads with the pseudo-inverse, writes with the atoms; their lengths are in the codes."""
    found = build("jumprelu", d_in=WIDTH, n_latents=len(atoms), k=ACTIVE)
    assert isinstance(found, JumpReLU)
    lengths = atoms.norm(dim=1)
    found.W_dec.copy_(F.normalize(atoms, dim=1))
    found.W_enc.copy_(torch.linalg.pinv(atoms).T * lengths[:, None])
    found.theta.copy_(lengths / 2)
    found.b_dec.fill_(5)
    found.provenance = replace(found.provenance, training={"rows": 123})
    return found


@pytest.fixture(scope="module")
def basis() -> Tensor:
    """Skewed axes."""
    return torch.randn(WIDTH, WIDTH, generator=generator(0, "skew")) + 3 * torch.eye(WIDTH)


def test_planted_atoms_stand_out_from_every_null(basis: Tensor) -> None:
    """A skewed basis has angles far from right, and none at all under the inner product of its data."""
    planted = dictionary_of(basis)
    seen = read_seen(rows(20_000, "seen", basis), SITE, FEW)
    sinks = rows(300, "sinks", basis)
    sinks[0].acts[SITE][0] = 4000
    report = measure_atoms({"planted": planted}, seen, rows(600, "fresh", basis), sinks, FEW, held_out="drawn rows")
    one, neurons = report["planted"], report["neurons"]
    scores = one.scores
    assert scores["r2"].value > 0.999 and scores["r2_refit"].value > 0.9999 and one.trained_rows == 123
    assert scores["r2"].beats_nulls() and set(scores["r2"].nulls) == {"untrained", "pca", "neurons", "rotation"}
    assert max(scores["r2"].nulls.values()) < 0.6 and scores["r2"].held_out == "drawn rows"
    assert abs(scores["l0"].value - ACTIVE) < 0.2 and one.verdict.by_maximum and one.verdict.limit < 0.15
    assert scores["coherence_max"].value < 0.06 and one.coherence.euclidean.maximum > 0.5
    assert scores["q_star"].value == 1 and scores["q_star"].nulls["rotation"] < 1
    # the pitfall: as many atoms as dimensions are orthogonal under their own metric, whatever they are
    assert scores["q_star"].nulls["random_own"] == 1 and scores["coherence_max"].nulls["random_own"] < 1e-5
    assert neurons.scores["l0"].value == WIDTH and neurons.scores["r2"].value == pytest.approx(1)
    assert neurons.scores["q_star"].value < 0.2 and not neurons.verdict.by_maximum
    assert abs(scores["r2_with_sinks"].nulls["pca"] - scores["r2"].nulls["pca"]) > 0.1  # one row of 300 decides it
    assert report.counts == {"product": 20_000, "rows": 600, "rows_seen": 600, "rows_with_sinks": 300}
    told = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert told["subjects"][1]["r2"] == scores["r2"].value and told["subjects"][1]["r2_low"] is not None
    assert len(report.table()) == 3 and all(len(line) == len(report.table()[0]) for line in report.table())


def test_a_dictionary_of_random_atoms_is_no_better_than_its_null(basis: Tensor) -> None:
    random = dictionary_of(torch.randn(ATOMS, WIDTH, generator=generator(2, "random")))
    report = measure_atoms({"random": random}, read_seen(rows(20_000, "seen", basis), SITE, FEW),
                           rows(600, "fresh", basis), None, FEW)  # fmt: skip
    scores = report["random"].scores
    assert not scores["q_star"].beats_nulls() and scores["q_star"].value < 0.4
    assert abs(scores["r2"].value - scores["r2"].nulls["rotation"]) < 0.15 and "r2_with_sinks" not in scores
    assert report["random"].threshold is not None and not report["random"].threshold.feasible


def test_atoms_that_are_activations_carry_the_mean(basis: Tensor) -> None:
    """ITDA atoms: the common part is undone by E[x x^T], which holds it, and not by the covariance."""
    batches = rows(20_000, "seen", basis)
    shifted = [Batch({SITE: batch.acts[SITE] + 40}, batch.origin) for batch in batches]
    seen = read_seen(shifted, SITE, FEW)
    itda = ITDA.of(seen.rows(ATOMS), k=3)
    fresh = [Batch({SITE: batch.acts[SITE] + 40}, batch.origin) for batch in rows(600, "fresh", basis)]
    report = measure_atoms({"itda": itda}, seen, fresh, None, replace(FEW, centred=False))["itda"]
    centred = measure_coherence(itda.W_dec, FEW.product(seen.moment))
    assert centred.euclidean.steps.quantile(0.5) > 0.98 and centred.data.steps.quantile(0.5) > 0.5
    assert report.scores["coherence_50"].value < 0.5 and "rotation" in report.scores["r2"].nulls


def test_whitened_training_is_a_plain_dictionary_of_activations(tmp_path, basis: Tensor) -> None:
    moment = SecondMoment(SITE)
    for batch in rows(2000, "seen", basis):
        moment.step(batch)
    product = AtomicInnerProduct.of_moment(moment)
    sae = JumpReLU(JumpReLUConfig(WIDTH, ATOMS, k=ACTIVE))
    trainer = WhitenedTrainer(Trainer(sae, SITE, TrainConfig(rows=1000)), product, moment.mean)
    for batch in rows(1000, "seen", basis):
        trainer.step(batch)
    assert trainer.done
    x = rows(100, "fresh", basis)[0].acts[SITE]
    inside, outside = trainer.trainer.folded(), trainer.folded()
    white = product.whiten(x - moment.mean.float())
    codes, same = inside.encode(white), outside.encode(x)
    torch.testing.assert_close(codes.to_dense(), same.to_dense(), rtol=1e-3, atol=1e-4)
    back = (inside.decode(codes).double() @ product.unwhitening + moment.mean).float()
    torch.testing.assert_close(back, outside.decode(codes), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(product.whiten(outside.W_dec).norm(dim=1), torch.ones(ATOMS), rtol=1e-4, atol=1e-4)
    trainer.save(tmp_path / "atoms")
    loaded = load(tmp_path / "atoms")
    assert torch.equal(loaded.W_enc, outside.W_enc) and "whitened" in loaded.provenance.training  # type: ignore[attr-defined]
    again = WhitenedTrainer(Trainer(JumpReLU(sae.config), SITE, TrainConfig(rows=1000)), product, moment.mean)
    again.load_state_dict(trainer.state_dict())
    assert torch.equal(again.folded().W_dec, outside.W_dec)


def test_a_rotation_keeps_angles_and_forgets_the_data(basis: Tensor) -> None:
    plain: Dictionary = dictionary_of(basis)
    rotation = random_rotation(WIDTH, generator(0, "rotation"))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(WIDTH, dtype=torch.float64))
    centre = torch.full((WIDTH,), 5.0)
    turned = Rotated(plain, rotation, centre)
    x = rows(100, "fresh", basis)[0].acts[SITE]
    moved = (x - centre) @ rotation.float() + centre
    torch.testing.assert_close(turned.encode(moved).values, plain.encode(x).values, rtol=1e-4, atol=1e-4)
    wanted = (plain.reconstruct(x) - centre) @ rotation.float() + centre
    torch.testing.assert_close(turned.reconstruct(moved), wanted, rtol=1e-4, atol=1e-3)
    moment = SecondMoment(SITE)
    moment.add(x)
    found = measure_coherence(plain.W_dec, AtomicInnerProduct.of_moment(moment, 1e-3))
    assert found.nulls["rotation"].pairs == found.data.pairs


def test_batches_change_no_score_and_a_kill_loses_none(basis: Tensor) -> None:
    moment = SecondMoment(SITE)
    moment.add(rows(100, "seen", basis)[0].acts[SITE])
    product, batches = AtomicInnerProduct.of_moment(moment), rows(200, "fresh", basis)

    def measure() -> Faithfulness:
        return Faithfulness({"d": dictionary_of(basis)}, SITE, product, subjects=("d",), rows=150)

    whole, parts = measure(), measure()
    acts, origin = torch.cat([b.acts[SITE] for b in batches]), torch.cat([b.origin for b in batches])
    whole.step(Batch({SITE: acts}, origin))
    parts.step(batches[0])
    resumed = measure()
    resumed.load_state_dict(parts.state_dict())
    resumed.step(batches[1])
    assert resumed.done and resumed.rows == whole.rows == 150
    assert resumed.metrics() == pytest.approx(whole.metrics(), rel=1e-6)
    assert torch.equal(resumed.firing["d"], whole.firing["d"]) and resumed.magnitudes["d"] == whole.magnitudes["d"]


def test_what_cannot_be_reported_is_refused(basis: Tensor) -> None:
    with pytest.raises(InputError, match="moment_tokens must be at least 20"):
        AtomsConfig(moment_tokens=3)
    with pytest.raises(InputError, match="ends after 100 rows, and the inner product takes 20000"):
        read_seen(rows(100, "seen", basis), SITE, FEW)
    seen = read_seen(rows(20_000, "seen", basis), SITE, FEW)
    across = build("topk", d_in=WIDTH, n_latents=8, k=2, d_out=3)
    with pytest.raises(InputError, match="does not reconstruct one site"):
        measure_atoms({"across": across}, seen, rows(100, "fresh", basis), None, FEW)
    with pytest.raises(InputError, match="cannot be named 'neurons'"):
        measure_atoms({"neurons": dictionary_of(basis)}, seen, rows(100, "fresh", basis), None, FEW)
    with pytest.raises(InputError, match="not one fresh row"):
        measure_atoms({"d": dictionary_of(basis)}, seen, [Batch({SITE: basis[:0]}, torch.zeros(0, 2))], None, FEW)
    with pytest.raises(InputError, match="no batch to read"):
        measure_atoms({"d": dictionary_of(basis)}, seen, [], None, FEW)

"""Reconstruction scores: known answers, invariances, intervals, and the consumer on a real stream."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.evidence import Evidence
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.sites import Site
from monosem.lab.runs.consumers import Consumer
from monosem.lab.runs.loop import train
from monosem.lab.runs.run import Run
from monosem.lab.storage import flatten, read_tensors, unflatten
from monosem.lab.streams.activation_stream import Batch
from monosem.saes.architectures.basis import PCA, Neurons
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.dictionary import Dictionary, DictionaryConfig
from monosem.saes.evaluation.document_sums import UNITS, DocumentSums, ratio
from monosem.saes.evaluation.reconstruction import PER_TOKEN, Reconstruction
from monosem.saes.evaluation.results import Evaluation
from monosem.saes.evaluation.saebench import LossScores, RowScores, saebench_scores
from monosem.saes.evaluation.weights import max_cosine, weight_evidence
from monosem.saes.sparse_code import SparseCode
from tiny_models import build
from torch import Tensor
from toys import WIDTHS, A, Autoencoder, tiny_stream

SITE = Site.parse("resid_post.1")


class Scaled(Dictionary):
    """x_hat = factor * x, one signed code a coordinate."""

    architecture = "scaled"

    def __init__(self, width: int, factor: float) -> None:
        super().__init__(DictionaryConfig(width, width))
        self.W_dec, self.b_dec = factor * torch.eye(width), torch.zeros(width)

    def encode(self, x: Tensor) -> SparseCode:
        return SparseCode.from_dense(self.rows(x))


def constant(value: Tensor) -> TopK:
    """A dictionary that answers `value` to everything."""
    found = TopK(SAEConfig(len(value), 8, 2))
    found.b_dec.copy_(value)
    return found


def gaussian(rows: int = 400, width: int = 12, seed: int = 0) -> Tensor:
    """Rows on a grid of 1/64, so that shifts and doublings are exact in fp32."""
    rng = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 2, width)
    return ((torch.randn(rows, width, generator=rng) * spread + 1) * 64).round() / 64


def measured(dictionary: Dictionary, x: Tensor, doc: Tensor | None = None, block: int = 10_000) -> Reconstruction:
    found = Reconstruction(dictionary, SITE)
    doc = torch.arange(len(x)) // 10 if doc is None else doc
    for rows, docs in zip(x.split(block), doc.split(block), strict=True):
        found.add(rows, docs)
    return found


def test_perfect_reconstruction() -> None:
    x = gaussian()
    scores = measured(Scaled(12, 1.0), x).metrics()
    assert scores["fvu"] == scores["mse"] == scores["mse_dimension"] == scores["dead"] == 0
    assert scores["explained_variance"] == scores["alive"] == 1
    for name in ("cosine", "norm_ratio", "relative_bias", "correlation"):
        assert scores[name] == pytest.approx(1, abs=1e-6)
    assert scores["l0"] == pytest.approx(float((x != 0).sum(1).double().mean()))
    assert scores["rows"] == 400


def test_the_mean_has_fvu_one_and_zero_has_the_second_moment() -> None:
    x = gaussian()
    mean = x.double().mean(0)
    assert measured(constant(mean.float()), x).metrics()["fvu"] == pytest.approx(1, abs=1e-6)
    zero = measured(constant(torch.zeros(12)), x).metrics()
    second = float(x.double().square().sum(1).mean())
    assert zero["fvu"] == pytest.approx(second / (second - float(mean @ mean)), rel=1e-6)
    assert zero["mse"] == pytest.approx(second, rel=1e-9)
    assert zero["l0"] == zero["cosine"] == zero["norm_ratio"] == 0
    assert zero["dead"] == 1
    assert math.isnan(zero["relative_bias"]) and math.isnan(zero["correlation"])
    assert measured(constant(mean.float()), x).metrics()["explained_variance"] == pytest.approx(0, abs=1e-6)


def test_shrinkage_is_the_relative_bias() -> None:
    x = gaussian() - gaussian().mean(0)
    scores = measured(Scaled(12, 0.7), x).metrics()
    assert scores["relative_bias"] == pytest.approx(0.7, rel=1e-6)
    assert scores["norm_ratio"] == pytest.approx(0.7, rel=1e-6)
    assert scores["fvu"] == pytest.approx(0.3**2, rel=1e-5)
    assert scores["explained_variance"] == pytest.approx(1 - 0.3**2, rel=1e-6)
    assert scores["correlation"] == pytest.approx(1, abs=1e-9)


def test_small_example_by_hand() -> None:
    # codes are the entries farther from the mean (0, 0); x_hat keeps one coordinate a row
    x = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [1.0, 0.0], [-1.0, 0.0]])
    found = measured(Neurons.fit(x, k=1), x, torch.tensor([5, 5, 9, 9]))
    scores = found.metrics()
    assert scores["mse"] == pytest.approx((9 + 9 + 0 + 0) / 4)
    assert scores["fvu"] == pytest.approx(18 / 52)  # the mean is zero: variance (25 + 25 + 1 + 1) / 4
    assert scores["mse_dimension"] == pytest.approx(18 / 8)
    # x_hat keeps 4, -4 of the second and 1, -1 of the first: covariance (16 + 16 + 1 + 1) / 4, variances 52 / 4, 34 / 4
    assert scores["correlation"] == pytest.approx(34 / math.sqrt(52 * 34))
    assert scores["l0"] == 1 and scores["l1"] == pytest.approx((4 + 4 + 1 + 1) / 4)
    assert scores["cosine"] == pytest.approx((0.8 + 0.8 + 1 + 1) / 4)
    assert scores["norm_ratio"] == pytest.approx((0.8 + 0.8 + 1 + 1) / 4)
    assert scores["relative_bias"] == pytest.approx(1)
    assert found.density.tolist() == [0.5, 0.5] and found.firing.tolist() == [2, 2]
    assert len(found.sums) == 2


def test_negative_codes_are_active_and_stored_zeros_are_not() -> None:
    class Fixed(Scaled):
        def encode(self, x: Tensor) -> SparseCode:
            values = torch.tensor([[-1.0, 0.0, 2.0]]).expand(len(x), 3).contiguous()
            return SparseCode.fixed(values, torch.tensor([[0, 1, 3]], dtype=torch.int32).expand(len(x), 3), 4)

    found = measured(Fixed(4, 1.0), gaussian(20, 4))
    assert found.metrics()["l0"] == 2
    assert found.firing.tolist() == [20, 0, 0, 20]
    assert found.metrics()["dead"] == 0.5


def test_dense_shares_count_latents_above_one_and_ten_percent() -> None:
    # latent j is active on the first counts[j] of 1000 rows
    counts = torch.tensor([0, 5, 10, 11, 100, 101, 1000])
    x = (torch.arange(1000)[:, None] < counts).float()
    scores = measured(Scaled(7, 1.0), x).metrics()
    assert scores["dead"] == pytest.approx(1 / 7)
    assert scores["dense_1"] == pytest.approx(4 / 7)
    assert scores["dense_10"] == pytest.approx(2 / 7)


@pytest.mark.parametrize(("scale", "shift"), [(8.0, 0.0), (1.0, 256.0), (0.25, -64.0)])
def test_fvu_does_not_change_with_scale_and_shift(scale: float, shift: float) -> None:
    x = gaussian()
    dictionary = Neurons(SAEConfig(12, 12, 4))
    dictionary.W_dec.copy_(torch.eye(12))
    dictionary.b_dec.fill_(1.0)
    moved = Neurons(dictionary.config)
    moved.W_dec.copy_(dictionary.W_dec)
    moved.b_dec.fill_(1.0 * scale + shift)
    before, after = measured(dictionary, x).metrics(), measured(moved, x * scale + shift).metrics()
    assert after["fvu"] == pytest.approx(before["fvu"], rel=1e-6)
    assert after["l0"] == before["l0"]
    assert after["correlation"] == pytest.approx(before["correlation"], rel=1e-6)
    assert after["explained_variance"] == pytest.approx(before["explained_variance"], rel=1e-6)


def test_no_score_changes_with_the_batch_size() -> None:
    x = gaussian()
    dictionary = PCA.fit(x, k=3)
    whole = measured(dictionary, x).metrics()
    for block in (1, 7, 64):
        assert measured(dictionary, x, block=block).metrics() == pytest.approx(whole, rel=1e-6)


def test_a_row_of_zeros_counts_as_no_likeness() -> None:
    x = torch.stack([torch.zeros(3), torch.tensor([0.0, 3.0, 4.0])])
    scores = measured(constant(torch.tensor([0.0, 3.0, 4.0])), x).metrics()
    assert scores["cosine"] == 0.5 and scores["norm_ratio"] == 0.5


def test_interval_covers_the_planted_truth_and_is_over_documents() -> None:
    rng = torch.Generator().manual_seed(1)
    covered, widths = 0, []
    for trial in range(40):  # 38 expected
        # each document has its own error level: rows of one document are not independent
        level = torch.rand(60, generator=rng).repeat_interleave(25)
        doc = torch.arange(60).repeat_interleave(25) * 7
        signs = torch.randint(0, 2, (1500, 2), generator=rng) * 2.0 - 1
        x = torch.cat([signs[:, :1], signs[:, 1:] * level[:, None].sqrt()], 1)
        # Neurons with k = 1 keeps the first coordinate: error = level, so E error 1/2, E variance 3/2
        dictionary = Neurons(SAEConfig(2, 2, 1))
        dictionary.W_dec.copy_(torch.eye(2))
        found = measured(dictionary, x, doc)
        interval = found.sums.interval(PER_TOKEN["fvu"].formula, seed=trial)
        assert interval is not None
        low, high = interval
        assert low < found.metrics()["fvu"] < high
        covered += low <= 1 / 3 <= high
        widths.append(high - low)
    assert 33 <= covered <= 40
    # level is uniform: sd 0.29 over 60 documents; were the 1500 rows independent it would be 5 times narrower
    assert 0.05 < np.mean(widths) < 0.11
    evidence = found.evidence(seed=39)["fvu"]
    assert evidence.interval == interval and evidence.n == 60 and evidence.unit == "documents"


def test_evidence_stands_beside_nulls() -> None:
    x = gaussian()
    good, bad = measured(Scaled(12, 0.9), x), measured(constant(x.mean(0)), x)
    found = good.evidence({"mean": bad}, held_out="the second half")
    assert found["fvu"].nulls == {"mean": pytest.approx(1, abs=1e-6)} and found["fvu"].beats_nulls()
    explained = found["explained_variance"]
    assert explained.nulls == {"mean": pytest.approx(0, abs=1e-6)} and explained.beats_nulls()
    assert explained.value == 1 - found["fvu"].value
    low, high = found["fvu"].interval or (0, 0)
    assert explained.interval == (1 - high, 1 - low)
    assert found["cosine"].better == "higher" and found["fvu"].held_out == "the second half"
    assert found["dead"].n == 400 and found["dead"].unit == "tokens" and found["dead"].interval is None
    assert "rows" not in found


def test_sums_pool_documents_beyond_the_table() -> None:
    sums = DocumentSums()
    doc = torch.arange(UNITS + 500) * 3
    sums.add(doc, {"n": torch.ones(len(doc)), "v": torch.ones(len(doc), 2)})
    sums.add(torch.tensor([3 * UNITS]), {"n": torch.ones(1), "v": torch.ones(1, 2)})
    assert len(sums) == UNITS + 500
    assert sums.total["n"] == UNITS + 501 and sums.total["v"].tolist() == [UNITS + 501] * 2
    interval = sums.interval(lambda s: ratio(s["v"][0], s["n"]))
    assert interval == (1.0, 1.0)


def batches(x: Tensor, size: int = 50) -> list[Batch]:
    doc = torch.stack([torch.arange(len(x)) % 13, torch.arange(len(x))], 1)
    return [Batch({SITE: a}, o) for a, o in zip(x.split(size), doc.split(size), strict=True)]


def test_consumer_state_round_trip_is_exact() -> None:
    x = gaussian(500)
    dictionary = PCA.fit(x, k=3)
    straight, first, second = (Reconstruction(dictionary, SITE) for _ in range(3))
    for i, batch in enumerate(batches(x)):
        straight.step(batch)
        (first if i < 4 else second).step(batch)
        if i == 3:
            tensors, rest = flatten(first.state_dict())
            second.load_state_dict(unflatten(tensors, json.loads(json.dumps(rest))))
    assert second.metrics() == straight.metrics()
    left, right = flatten(second.state_dict()), flatten(straight.state_dict())
    assert left[1] == right[1] and left[0].keys() == right[0].keys()
    assert all(torch.equal(left[0][name], right[0][name]) for name in left[0])
    with pytest.raises(InputError, match="12 latents and this dictionary has 8"):
        Reconstruction(constant(torch.zeros(12)), SITE).load_state_dict(straight.state_dict())


def test_consumer_of_no_rows_round_trips() -> None:
    empty, other = Reconstruction(Scaled(12, 1.0), SITE), Reconstruction(Scaled(12, 1.0), SITE)
    other.load_state_dict(unflatten(*flatten(empty.state_dict())))
    assert other.rows == 0 and len(other.sums) == 0
    with pytest.raises(InputError, match="no rows"):
        other.metrics()


def test_consumer_stops_at_its_rows_and_saves(tmp_path: Path) -> None:
    x = gaussian(500)
    consumer = Reconstruction(PCA.fit(x, k=3), SITE, rows=120, name="held-out")
    for batch in batches(x):
        if consumer.done:
            break
        consumer.step(batch)
    assert consumer.rows == 120 and consumer.done and "fvu" in repr(consumer)
    assert torch.allclose(consumer.mean, x[:120].mean(0), atol=1e-6)
    consumer.save(tmp_path)
    saved = json.loads((tmp_path / "reconstruction.json").read_text())
    assert saved["fvu"] == pytest.approx(consumer.metrics()["fvu"]) and saved["fvu_low"] < saved["fvu_high"]
    assert torch.equal(read_tensors(tmp_path / "firing.safetensors")["firing"], consumer.firing)
    assert sum(saved["density_histogram"]["latents"]) == int((consumer.firing > 0).sum())


def test_it_rides_on_a_stream_beside_what_is_trained(tmp_path: Path) -> None:
    stream = tiny_stream()
    consumer = Reconstruction(Scaled(WIDTHS[A], 0.5), A, name="half")
    assert isinstance(consumer, Consumer)
    run = Run.create(tmp_path / "run", {}, stream.fingerprint())
    train(stream, [Autoencoder("other", A), consumer], run, log_every=20, progress=False)
    assert consumer.rows == stream.counts["served"] > 1000
    assert run.metrics("half")[-1]["norm_ratio"] == pytest.approx(0.5)
    assert (run.artefact("half", "measures") / "reconstruction.json").is_file()


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="names no site"):
        Reconstruction(Scaled(4, 1.0))
    with pytest.raises(InputError, match="at least 1, got 0"):
        Reconstruction(Scaled(4, 1.0), SITE, rows=0)
    with pytest.raises(InputError, match="width 5 given to a dictionary of width 4"):
        Reconstruction(Scaled(4, 1.0), SITE).add(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))


def report() -> Evaluation:
    scores = {
        "fvu": Evidence("fvu", 0.25, (0.2, 0.3), {"pca": 0.5, "untrained": float("nan")}, 9),
        "kl": Evidence("kl", 0.125, None, {"zero": 4.0}, 9),
    }
    return Evaluation("TopK <12>", "tiny", "resid_post.1", "half", scores, {"rows": 1000}, {"ce_clean": 2.5})


def test_report_is_flat_json(tmp_path: Path) -> None:
    flat = json.loads(report().save(tmp_path / "evaluation.json").read_text())
    assert flat == {
        "schema": 1, "model": "tiny", "site": "resid_post.1", "dictionary": "TopK <12>", "held_out": "half",
        "fvu": 0.25, "fvu_low": 0.2, "fvu_high": 0.3, "fvu_null_pca": 0.5, "fvu_null_untrained": None, "fvu_n": 9,
        "kl": 0.125, "kl_low": None, "kl_high": None, "kl_null_zero": 4.0, "kl_n": 9,
        "reference_ce_clean": 2.5, "count_rows": 1000,
    }  # fmt: skip


def test_report_shows_a_table() -> None:
    lines = repr(report()).splitlines()
    assert lines[1].split() == ["score", "value", "95", "%", "interval", "pca", "untrained", "zero"]
    assert lines[2].split() == ["fvu", "0.25", "0.2", "to", "0.3", "0.5", "nan"]
    assert lines[3].split() == ["kl", "0.125", "4"]
    page = report()._repr_html_()
    assert "TopK &lt;12&gt;" in page and page.count("<tr>") == 4
    with pytest.raises(InputError, match="did you mean 'fvu'"):
        report()["fuv"]


def test_density_histogram_by_hand() -> None:
    counts = torch.tensor([0, 1, 5, 10, 400, 1000])  # of 1000: -3, -2.3, -2, -0.4, 0 in log10
    found = measured(Scaled(6, 1.0), (torch.arange(1000)[:, None] < counts).float()).density_histogram()
    bins = {low: n for low, n in zip(found["edges"], found["latents"], strict=False) if n}
    assert bins == {-3: 1, -2.5: 1, -2: 1, -0.5: 2} and len(found["edges"]) == len(found["latents"]) + 1


def test_max_cosine_by_hand_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.tensor([[1.0, 0], [2.0, 0], [0, 3.0], [-1.0, 0]])
    assert max_cosine(rows).tolist() == [1, 1, 0, 0]
    assert math.isnan(float(max_cosine(rows[:1])))
    x = gaussian(50, 6)
    whole = max_cosine(x)
    monkeypatch.setattr("monosem.saes.evaluation.weights.CELLS", 350)  # 7 rows at a time
    torch.testing.assert_close(max_cosine(x), whole)


def test_copied_latents_stand_out_from_random_ones() -> None:
    copied, random = TopK(SAEConfig(12, 8, 2)), TopK(SAEConfig(12, 8, 2))
    copied.W_dec.copy_(gaussian(8, 12)[torch.arange(8) // 2])
    random.W_dec.copy_(gaussian(8, 12) - 1)
    copied.W_enc.copy_(copied.W_dec)
    random.W_enc.copy_(-random.W_dec)
    found = weight_evidence(copied, {"random": random, "basis": Neurons(SAEConfig(12, 12, 2))})
    assert found["decoder_max_cosine"].value == pytest.approx(1) and not found["decoder_max_cosine"].beats_nulls()
    assert set(found["decoder_max_cosine"].nulls) == {"random", "basis"} and found["decoder_max_cosine"].n == 8
    assert found["encoder_decoder_cosine"].value == pytest.approx(1)
    assert found["encoder_decoder_cosine"].nulls == {"random": pytest.approx(-1)}


def compatible(x: Tensor, x_hat: Tensor, codes: Tensor, keep: Tensor | None = None) -> dict[str, float]:
    """SAEBench's scores of one batch of one-token prompts, [n] each, or of prompts [b, t]."""
    x, x_hat = (t[:, None] if t.ndim == 2 else t for t in (x, x_hat))
    found = RowScores(codes.shape[-1])
    keep = torch.ones(x.shape[:2], dtype=torch.bool) if keep is None else keep
    found.add(x, x_hat, SparseCode.from_dense(codes.flatten(0, -2)), keep)
    return found.metrics()


def test_saebench_scores_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [-3.0, -4.0]])
    x_hat = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    found = compatible(x, x_hat, torch.tensor([[3.0, 0.0, 0.0], [0.0, -4.0, 0.0]]))
    assert found["l0"] == 1 and found["l1"] == pytest.approx(-0.5)  # signs are kept
    assert found["mse"] == pytest.approx((16 + 9) / 2 / 2)  # divided by the rows twice
    assert found["explained_variance_legacy"] == pytest.approx((9 / 25 + 16 / 25) / 2)
    # the mean square is 12.5 over rows and dimensions, and 25 - 12.5^2 stands for the variance
    assert found["explained_variance"] == pytest.approx(1 - 12.5 / (25 - 12.5**2))
    assert found["relative_reconstruction_bias"] == pytest.approx(1)
    assert found["cossim"] == pytest.approx((0.6 + 0.8) / 2) == found["l2_ratio"]
    assert found["l2_norm_in"] == 5 and found["l2_norm_out"] == 3.5
    assert found["frac_alive"] == pytest.approx(1 / 3)  # a negative code does not count


def test_saebench_explained_variance_depends_on_scale_and_ours_does_not() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 8, generator=rng) * 0.3
    found = {scale: compatible(scale * x, 0.7 * scale * x, x)["explained_variance"] for scale in (1.0, 3.0, 10.0)}
    truth = 1 - 0.3**2
    for scale, value in found.items():
        second, square = 8 * 0.09 * scale**2, 0.09 * scale**2
        assert value == pytest.approx(1 - (1 - truth) * second / (second - square**2), rel=0.02)
    assert found[3.0] < found[1.0] < truth and found[10.0] > 1
    ours = [measured(Scaled(8, 0.7), scale * (x - x.mean(0))).metrics()["explained_variance"] for scale in (1, 10)]
    assert ours == pytest.approx([truth, truth], abs=1e-5)


def test_saebench_mse_depends_on_the_batch_and_a_zero_row_spoils_the_cosine() -> None:
    x = gaussian(40, 4)
    twice = torch.cat([x, x])
    assert compatible(twice, 0 * twice, twice)["mse"] == pytest.approx(compatible(x, 0 * x, x)["mse"] / 2)
    assert math.isnan(compatible(x, 0 * x, x)["cossim"])
    tiny = torch.full((1, 4), 1e-5)
    assert compatible(tiny, tiny, tiny)["l2_ratio"] == pytest.approx(2e-5)  # the norm of x counts as 1


def test_saebench_ignores_tokens_and_counts_prompts() -> None:
    codes = torch.zeros(2, 3, 2)
    codes[0, :, 0] = 1  # all of prompt 0, of which its first token is left out
    codes[1, 1, 1] = codes[0, 2, 1] = 1
    keep = torch.tensor([[False, True, True], [False, True, True]])
    x = gaussian(6, 4).view(2, 3, 4)
    found = RowScores(2)
    found.add(x, x, SparseCode.from_dense(codes.flatten(0, 1)), keep)
    assert found.tokens == 4 and found.firing.tolist() == [2, 2] and found.prompts.tolist() == [1, 2]
    scores = found.metrics()
    assert scores["consistent_activation_heuristic"] == pytest.approx((2 / 1 + 2 / 2) / 2)
    assert scores["l0"] == 1 and scores["explained_variance_legacy"] == 1


def test_a_perfect_reconstruction_scores_one_in_saebench_too() -> None:
    x = gaussian()
    found = compatible(x, x, x)
    for name in ("explained_variance", "explained_variance_legacy", "cossim", "l2_ratio"):
        assert found[name] == pytest.approx(1, abs=1e-6)
    assert found["mse"] == 0


@pytest.fixture(scope="module")
def llama() -> HookedModel:
    return HookedModel(build("llama"), name="tiny-llama")


def prompts(n: int = 20, length: int = 9) -> Tensor:
    found = torch.randint(3, 96, (n, length), generator=torch.Generator().manual_seed(0))
    found[:, 0] = 1
    return found


def test_saebench_losses_by_hand(llama: HookedModel) -> None:
    tokens = prompts(3, 6)
    tokens[1, 3] = 2
    keep = ~torch.isin(tokens, torch.tensor([1, 2]))
    half = Scaled(32, 0.5)
    scores = LossScores()
    scores.add(llama, SITE, half, tokens, keep)
    found = scores.metrics()
    clean = llama.logits(tokens).log_softmax(-1)
    with llama.editing({SITE: lambda x: 0.5 * x}):  # at every position
        spliced = llama.logits(tokens).log_softmax(-1)
    ce, kl = [], []
    for row in range(3):
        for place in range(6):
            if keep[row, place]:
                kl.append(float((clean[row, place].exp() * (clean[row, place] - spliced[row, place])).sum()))
                if place < 5:  # the target may be a token that is left out as an input
                    ce.append(float(-spliced[row, place, tokens[row, place + 1]]))
    assert found["ce_loss_with_sae"] == pytest.approx(np.mean(ce), rel=1e-5)
    assert found["kl_div_with_sae"] == pytest.approx(np.mean(kl), rel=1e-4)


def test_saebench_scores_of_the_identity_and_of_zero(llama: HookedModel) -> None:
    found = saebench_scores(llama, prompts(), SITE, Scaled(32, 1.0), [1])
    assert found["ce_loss_score"] == pytest.approx(1, abs=1e-6) == found["kl_div_score"]
    zero = saebench_scores(llama, prompts(), SITE, constant(torch.zeros(32)), [1])
    assert zero["ce_loss_score"] == pytest.approx(0, abs=1e-6) == zero["kl_div_score"]
    assert found["l0"] == 32
    with pytest.raises(InputError, match="no batch of prompts"):
        saebench_scores(llama, [], SITE, Scaled(32, 1.0), [1])

"""Splices into a small random Llama: identities, untouched rows, losses by hand, and the whole evaluation."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.text.corpus import Corpus
from monosem.lab.text.packing import TokenBatch
from monosem.saes.architectures.basis import Neurons
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.dictionary import Dictionary, Provenance
from monosem.saes.edit import Edit, predicting
from monosem.saes.evaluation import splicing
from monosem.saes.evaluation.evaluate import evaluate
from monosem.saes.evaluation.nulls import fit_nulls
from monosem.saes.evaluation.reconstruction import Reconstruction
from monosem.saes.evaluation.splicing import SpliceLosses, splice
from tiny_models import Letters, build

SITE, WIDTH = "resid_post.1", 32


@pytest.fixture(scope="module")
def model() -> HookedModel:
    return HookedModel(build("llama"), name="tiny-llama")


def corpus(documents: int = 40, **fields: Any) -> Corpus:
    texts = ["".join(chr(33 + (i * i + j * (7 + i % 5)) % 90) for j in range(12 + i % 9)) for i in range(documents)]
    return Corpus(texts, Letters(), **{"context": 16, "batch_rows": 4, **fields})


def whole_basis() -> Neurons:
    """x_hat = x, exactly: every coordinate kept, nothing subtracted."""
    found = Neurons(SAEConfig(WIDTH, WIDTH, WIDTH))
    found.W_dec.copy_(torch.eye(WIDTH))
    return found


def constant(value: torch.Tensor) -> TopK:
    found = TopK(SAEConfig(WIDTH, 64, 4))
    found.b_dec.copy_(value)
    return found


def random_dictionary(model: HookedModel, k: int = 4) -> TopK:
    """Fitted to the scale of the site, at random directions."""
    batch = next(iter(corpus(seed=0)))
    x = model.capture(batch.tokens, [SITE], attention_mask=batch.attention)[SITE][batch.usable]
    found = TopK(SAEConfig(WIDTH, 64, k))
    found.W_dec.copy_(F.normalize(torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1))
    found.W_enc.copy_(0.5 * found.W_dec)
    found.b_dec.copy_(x.mean(0))
    found.place, found.provenance = SITE, Provenance(model.fingerprint())
    return found


def spliced(model: HookedModel, mean: torch.Tensor | None = None, **options: Any) -> SpliceLosses:
    dictionaries = options.pop("dictionaries")
    mean = torch.zeros(WIDTH) if mean is None else mean
    return splice(model, corpus(pack=False), SITE, dictionaries, mean, **{"tokens": 200, **options})


def test_splicing_an_exact_reconstruction_gives_the_same_logits_bit_for_bit(model: HookedModel) -> None:
    batch = next(iter(corpus(pack=False)))
    clean = model.logits(batch.tokens, attention_mask=batch.attention)
    for site in (SITE, "resid_mid.1", "mlp_out.0", "z.1"):
        with model.editing(Edit.replacing(site, whole_basis()).at(batch.usable)):
            assert torch.equal(model.logits(batch.tokens, attention_mask=batch.attention), clean)


@pytest.mark.parametrize("site", [SITE, "z.1"])
def test_rows_outside_the_mask_are_untouched_at_the_site(model: HookedModel, site: str) -> None:
    batch = next(iter(corpus(pack=False)))
    before = model.capture(batch.tokens, [site], attention_mask=batch.attention)[site]
    with model.editing(Edit.replacing(site, lambda rows: rows + 1).at(batch.usable)):
        after = model.capture(batch.tokens, [site], attention_mask=batch.attention)[site]
    assert 0 < batch.usable.sum() < batch.usable.numel() and not batch.usable[:, 0].any()
    assert torch.equal(after[~batch.usable], before[~batch.usable])
    assert torch.equal(after[batch.usable], before[batch.usable] + 1)


def test_scores_of_an_exact_reconstruction(model: HookedModel) -> None:
    found = spliced(model, dictionaries={"same": whole_basis()})
    scores = {name: evidence.value for name, evidence in found.evidence("same").items()}
    assert scores == {
        "ce_increase": 0, "kl": 0,
        "ce_recovered_zero": 1, "kl_score_zero": 1, "ce_recovered_mean": 1, "kl_score_mean": 1,
    }  # fmt: skip
    assert found.cross_entropy("same") == found.cross_entropy("clean")


def test_scores_of_dictionaries_that_are_the_ablations(model: HookedModel) -> None:
    mean = torch.linspace(-1, 1, WIDTH)
    found = spliced(model, mean, dictionaries={"nothing": constant(torch.zeros(WIDTH)), "average": constant(mean)})
    nothing, average = found.evidence("nothing"), found.evidence("average", ["nothing"])
    assert nothing["ce_recovered_zero"].value == nothing["kl_score_zero"].value == 0
    assert average["ce_recovered_mean"].value == average["kl_score_mean"].value == 0
    assert average["kl"].nulls == {
        "zero": nothing["kl"].value,
        "mean": average["kl"].value,
        "nothing": nothing["kl"].value,
    }
    assert list(average["ce_recovered_zero"].nulls) == ["mean", "nothing"]
    assert average["ce_recovered_zero"].nulls["mean"] == average["ce_recovered_zero"].value


def test_losses_by_hand(model: HookedModel) -> None:
    dictionary = random_dictionary(model)
    batch = next(iter(corpus(pack=False)))
    found = splice(model, [batch], SITE, {"mine": dictionary}, torch.zeros(WIDTH), tokens=10**6)

    def logits(replace: Any) -> torch.Tensor:
        with model.editing({SITE: lambda x: torch.where(batch.usable[..., None], replace(x), x)}):
            return model.logits(batch.tokens, attention_mask=batch.attention)[predicts].double()

    predicts = predicting(batch)
    target = batch.tokens.roll(-1, 1)[predicts]
    clean, mine, zero = (logits(replace) for replace in (lambda x: x, dictionary, torch.zeros_like))
    entropy = {
        name: float(F.cross_entropy(each, target)) for name, each in (("clean", clean), ("mine", mine), ("zero", zero))
    }
    log_p, log_q = clean.log_softmax(1), mine.log_softmax(1)
    assert found.cross_entropy("clean") == pytest.approx(entropy["clean"], rel=1e-5)
    scores = found.evidence("mine")
    expected = (entropy["zero"] - entropy["mine"]) / (entropy["zero"] - entropy["clean"])
    assert scores["ce_recovered_zero"].value == pytest.approx(expected, rel=1e-4)
    assert scores["kl"].value == pytest.approx(
        float(F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")), rel=1e-4
    )
    assert scores["kl"].value > 0.01
    assert found.counts == {
        "edited": int(batch.usable.sum()),
        "unedited_special": int((~batch.usable).sum()),
        "unedited_norm": 0,
        "predictions": int(predicts.sum()),
    }


def test_predictions_stay_inside_a_document() -> None:
    for batch in corpus():
        found = predicting(batch)
        for row, column in found.nonzero().tolist():
            assert batch.offset[row, column + 1] == batch.offset[row, column] + 1
            assert batch.doc[row, column + 1] == batch.doc[row, column] >= 0
        # the last of the row, the last of a document and what is not usable predict nothing
        assert not found[:, -1].any() and not found[~batch.usable].any()
    joined = TokenBatch(*(torch.ones(1, 4, dtype=d) for d in (torch.int64, torch.bool, torch.bool)),
                        torch.tensor([[7, 7, 8, 8]]), torch.tensor([[5, 6, 0, 1]]))  # fmt: skip
    assert predicting(joined).tolist() == [[True, False, True, False]]


def test_rows_above_the_norm_limit_pass_through_and_are_counted(model: HookedModel) -> None:
    batch = next(iter(corpus(pack=False)))
    norms = model.capture(batch.tokens, [SITE], attention_mask=batch.attention)[SITE].norm(dim=-1)
    limit = float(norms[batch.usable].median())
    found = splice(model, [batch], SITE, {}, torch.zeros(WIDTH), tokens=10**6, norm_limit=limit)
    over = int((batch.usable & (norms > limit)).sum())
    assert over > 5 and found.counts["unedited_norm"] == over
    assert found.counts["edited"] == int(batch.usable.sum()) - over
    none = splice(model, [batch], SITE, {}, torch.zeros(WIDTH), tokens=10**6, norm_limit=0.0)
    assert none.counts["edited"] == 0 and none.cross_entropy("zero") == none.cross_entropy("clean")
    every = splice(model, [batch], SITE, {}, torch.zeros(WIDTH), tokens=10**6)
    assert len({each.cross_entropy("zero") for each in (found, none, every)}) == 3


@pytest.mark.parametrize("apart", [True, False])
def test_no_score_depends_on_how_logits_are_cut(
    model: HookedModel, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    """Where the head runs alone batches stay whole; else one row of at most 20 tokens goes into a forward pass."""
    dictionaries = {"mine": random_dictionary(model)}
    before = model.forwards
    whole = spliced(model, dictionaries=dictionaries, tokens=10**6)
    passes, before = model.forwards - before, model.forwards
    assert model.head is not None
    if not apart:
        monkeypatch.setattr(model, "head", None)
    monkeypatch.setattr(splicing, "LOGIT_BYTES", 97 * 4 * 20)
    monkeypatch.setattr(splicing, "LOSS_BYTES", 97 * 4 * 3)
    cut = spliced(model, dictionaries=dictionaries, tokens=10**6)
    assert (model.forwards - before == passes) == apart
    assert cut.counts == whole.counts
    for name, evidence in whole.evidence("mine").items():
        assert cut.evidence("mine")[name].value == pytest.approx(evidence.value, rel=1e-4)
        assert cut.evidence("mine")[name].interval == pytest.approx(evidence.interval, rel=1e-3)


def test_a_distribution_has_no_divergence_from_itself() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 5
    reference = splicing.Reference()
    reference.take(torch.zeros(9, 40), torch.zeros(9, dtype=torch.int64))  # memory that is taken again
    reference.take(logits, torch.arange(5))
    entropy, divergence = reference.losses(logits.clone())
    assert torch.equal(divergence, torch.zeros(5)) and torch.allclose(entropy, reference.cross_entropy)
    shifted = logits + torch.linspace(0, 1e-3, 40)
    found = reference.losses(shifted.clone())[1].double()
    expected = F.kl_div(
        shifted.double().log_softmax(1), logits.double().log_softmax(1), log_target=True, reduction="none"
    )
    assert torch.allclose(found, expected.sum(1), rtol=0.2, atol=1e-6)


def test_one_clean_forward_and_one_for_each_variant(model: HookedModel) -> None:
    before = model.forwards
    batch = next(iter(corpus()))
    splice(model, [batch], SITE, {"mine": random_dictionary(model)}, torch.zeros(WIDTH), tokens=1)
    assert model.forwards - before == 5  # one more was the fixture's own capture


def test_splice_refuses_what_it_cannot_do(model: HookedModel) -> None:
    with pytest.raises(InputError, match="cannot be named 'zero'"):
        spliced(model, dictionaries={"zero": whole_basis()})
    with pytest.raises(InputError, match="tokens must be at least 1, got 0"):
        spliced(model, dictionaries={}, tokens=0)
    with pytest.raises(InputError, match="longer documents"):
        splice(model, Corpus(["a", "c"], Letters(), pack=False), SITE, {}, torch.zeros(WIDTH), tokens=5)


# the whole evaluation


def heldout(**fields: Any) -> Corpus:
    return corpus(400, split="heldout", heldout=0.5, **fields)


@pytest.fixture(scope="module")
def evaluation(model: HookedModel) -> Any:
    return evaluate(
        model, heldout(), random_dictionary(model), tokens=900, ce_tokens=300, fit_tokens=400, progress=False
    )


def test_every_score_has_value_interval_nulls_and_n(evaluation: Any) -> None:
    shares = {"dead", "alive", "dense_1", "dense_10"}
    weights = {"decoder_max_cosine", "encoder_max_cosine", "encoder_decoder_cosine"}
    assert set(evaluation.scores) == shares | weights | {
        "fvu", "explained_variance", "mse", "mse_dimension", "correlation", "cosine", "norm_ratio", "relative_bias",
        "l0", "l1",
        "ce_increase", "kl", "ce_recovered_zero", "ce_recovered_mean", "kl_score_zero", "kl_score_mean",
    }  # fmt: skip
    for name in weights:
        assert evaluation[name].unit == "latents" and "untrained" in evaluation[name].nulls
    for name in evaluation.scores.keys() - weights:
        evidence = evaluation[name]
        assert evidence.n > 20 and "held-out documents" in evidence.held_out
        assert evidence.interval is not None or name in shares
        assert {"untrained", "pca"} <= set(evidence.nulls)
    assert evaluation["fvu"].nulls["pca"] < evaluation["fvu"].nulls["neurons"] < 1
    assert evaluation["l0"].nulls["pca"] == round(evaluation["l0"].value)
    assert "neurons" not in evaluation["kl"].nulls  # not spliced unless asked for


def measured(model: HookedModel) -> tuple[list[TokenBatch], torch.Tensor, torch.Tensor]:
    """The batches after those that nulls are fitted on, without the documents of these; 900 rows, their documents."""
    fitted, batches, rows, docs, taken = torch.zeros(0, dtype=torch.int64), [], [], [], 0
    for batch in heldout():
        if taken < 400:
            taken += int(batch.usable.sum())
            fitted = torch.cat([fitted, batch.doc[batch.usable]])
            continue
        batch = batch._replace(usable=batch.usable & ~torch.isin(batch.doc, fitted))
        batches.append(TokenBatch(*(field[batch.usable.any(1)] for field in batch)))
        rows.append(model.capture(batch.tokens, [SITE])[SITE][batch.usable])
        docs.append(batch.doc[batch.usable])
    return batches, torch.cat(rows)[:900], torch.cat(docs)[:900]


def test_the_mean_ablation_writes_the_mean_of_the_measured_rows(model: HookedModel, evaluation: Any) -> None:
    batches, x, _ = measured(model)
    by_hand = splice(model, batches, SITE, {"mine": random_dictionary(model)}, x.mean(0), tokens=300)
    clean, zero, mean = (by_hand.cross_entropy(name) for name in ("clean", "zero", "mean"))
    mine, names = by_hand.cross_entropy("mine"), ("clean", "zero", "mean", "dictionary")
    for name, value in zip(names, (clean, zero, mean, mine), strict=True):
        assert evaluation.references[f"ce_{name}"] == pytest.approx(value, rel=1e-6)
    nulls = evaluation["ce_recovered_zero"].nulls
    assert nulls["mean"] == pytest.approx((zero - mean) / (zero - clean), rel=1e-3) and "zero" not in nulls
    halved = splice(model, batches, SITE, {}, x.mean(0) / 2, tokens=300).cross_entropy("mean")
    assert abs(halved / mean - 1) > 1e-4  # half the mean would be seen


def test_reconstruction_scores_are_those_of_the_rows(model: HookedModel, evaluation: Any) -> None:
    """The rows after the fitted documents, captured by hand."""
    dictionary, (_, x, doc) = random_dictionary(model), measured(model)
    by_hand = Reconstruction(dictionary, SITE)
    by_hand.add(x, doc)
    for name, value in by_hand.metrics().items():
        assert (evaluation.counts["rows"] if name == "rows" else evaluation[name].value) == pytest.approx(
            value, rel=1e-5
        )
    assert evaluation.counts["documents"] == len(doc.unique())
    assert evaluation.references["variance"] == pytest.approx(float(x.double().var(0, correction=0).sum()), rel=1e-6)


def test_the_nulls_documents_are_not_spliced_either(model: HookedModel, evaluation: Any) -> None:
    counts = evaluation.counts
    assert 300 <= counts["predictions"] < 300 + 4 * 16
    assert counts["edited"] >= counts["predictions"] and counts["unedited_special"] > 0
    json.dumps(evaluation.to_json(), allow_nan=False)
    assert "untrained" in repr(evaluation) and "<table>" in evaluation._repr_html_()


def test_evaluation_repeats(model: HookedModel, evaluation: Any) -> None:
    again = evaluate(
        model, heldout(), random_dictionary(model), tokens=900, ce_tokens=300, fit_tokens=400, progress=False
    )
    assert again.to_json() == evaluation.to_json()


def test_given_nulls_leave_the_whole_corpus_to_measure(model: HookedModel) -> None:
    dictionary = random_dictionary(model)
    nulls = fit_nulls(torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0)), dictionary)
    found = evaluate(
        model,
        heldout(batch_rows=64),
        dictionary,
        nulls=nulls,
        spliced=("neurons",),
        tokens=10**6,
        ce_tokens=10**6,
        progress=False,
    )
    assert found.counts["rows"] == sum(int(batch.usable.sum()) for batch in heldout(batch_rows=64))
    assert found.counts["edited"] == found.counts["rows"]
    assert set(found["kl"].nulls) == {"zero", "mean", "neurons"}
    plain = evaluate(model, corpus(), dictionary, nulls={}, tokens=50, ce_tokens=50, progress=False)
    assert plain["fvu"].nulls == {} and plain.held_out.startswith("NOT known to be held out")


def test_the_norm_limit_drops_rows_in_both_passes(model: HookedModel) -> None:
    dictionary = random_dictionary(model)
    free = evaluate(model, heldout(batch_rows=64), dictionary, nulls={}, tokens=10**6, ce_tokens=10**6, progress=False)
    dictionary.place = dictionary.place.limited([float(free.references["variance"]) ** 0.5])
    found = evaluate(model, heldout(batch_rows=64), dictionary, nulls={}, tokens=10**6, ce_tokens=10**6, progress=False)
    assert found.counts["dropped_norm"] == found.counts["unedited_norm"] > 50
    assert found.counts["rows"] == free.counts["rows"] - found.counts["dropped_norm"] == found.counts["edited"]


def refused(model: HookedModel, dictionary: Dictionary, text: str, **options: Any) -> None:
    with pytest.raises(InputError, match=text):
        evaluate(model, options.pop("corpus", heldout()), dictionary, progress=False, **options)


def test_evaluation_refuses_what_does_not_fit(model: HookedModel) -> None:
    dictionary = random_dictionary(model)
    refused(model, dictionary, "tokens must be at least 1, got 0", tokens=0)
    refused(model, dictionary, "ce_tokens must be at least 1, got -3", ce_tokens=-3)
    refused(model, dictionary, "unknown evaluation option 'token'", token=5)
    refused(model, dictionary, "unknown null to splice 'pac'", fit_tokens=100, spliced=("pac",))
    refused(model, dictionary, "give more text", fit_tokens=10**6)
    other = HookedModel(build("llama", seed=1), name="other-llama")
    refused(other, dictionary, "trained on 'tiny-llama' .* the model is 'other-llama'")
    dictionary.place, dictionary.provenance = "resid_post.9", Provenance(model.fingerprint())
    refused(model, dictionary, "resid_post.9 is outside tiny-llama")
    dictionary.place, dictionary.provenance = "mlp_act.1", Provenance()
    refused(model, dictionary, "mlp_act.1 of 'tiny-llama' has width 56, the dictionary d_in=32")
    dictionary.place, dictionary.provenance = dictionary.config.place, Provenance()
    refused(model, dictionary, "names no site")
    dictionary.place, dictionary.provenance = SITE, Provenance()
    refused(model, dictionary, "no document", corpus=Corpus([], Letters()))
    refused(model, dictionary, "no usable row", corpus=Corpus(["a"], Letters(), bos=False), nulls={})
    refused(model, dictionary, "cannot be named 'dictionary'", nulls={"dictionary": dictionary})

"""An ITDA as a dictionary: its encoders, its file, and the text of its atoms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from itda_data import grown, mixtures
from monosem.kernels.pursuit import pursuit
from monosem.lab.errors import InputError
from monosem.lab.models.loading import load_model
from monosem.lab.streams.activation_stream import ActivationStream
from monosem.lab.text.corpus import Corpus
from monosem.saes.architectures.itda.dictionary import ITDA, ITDAConfig
from monosem.saes.architectures.itda.encoders import orthogonal_pursuit
from monosem.saes.evaluation.evaluate import evaluate
from monosem.saes.evaluation.itda_nulls import itda_nulls
from monosem.saes.evaluation.nulls import fit_nulls
from monosem.saes.files import load
from monosem.saes.registry import build_trainable
from monosem.saes.training.itda.trainer import GrowthConfig, build_itda
from tiny_commands import write_model, write_text

SMALL = GrowthConfig(max_atoms=80, rows=1000, k=4, tau=0.02)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("itda")
    write_model(folder / "model")
    write_text(folder / "text", 60)
    return folder


@pytest.fixture(scope="module")
def made(place: Path) -> tuple[ITDA, Corpus]:
    model = load_model(place / "model", dtype="fp32", device="cpu")
    corpus = Corpus(f"text:{place / 'text'}", model.tokenizer, context=24, batch_rows=8)
    return build_itda(
        ActivationStream(model, corpus, "resid_post.1", batch=64, buffer=256), "resid_post.1", SMALL
    ), corpus


def test_orthogonal_pursuit_fits_its_support_by_least_squares() -> None:
    x, atoms = mixtures(24, 20), ITDA.of(mixtures(90, 20, seed=1)).W_dec.data
    found = orthogonal_pursuit(x, atoms, 6)
    assert all(len(set(row)) == 6 for row in found.columns.tolist())
    for row, columns, values in zip(x.double(), found.columns.long(), found.values, strict=True):
        fitted = torch.linalg.lstsq(atoms[columns].double().T, row[:, None]).solution[:, 0]
        torch.testing.assert_close(values.double(), fitted, atol=1e-3, rtol=1e-3)
    greedy = pursuit(x, atoms, 6).residual_squares
    assert float((found.residual_squares <= greedy * (1 + 1e-5)).float().mean()) > 0.9


def test_orthogonal_pursuit_stops_when_nothing_is_left() -> None:
    atoms = torch.eye(6)[:4]
    x = torch.tensor([[2.0, 0, 0, 0, 0, 0], [1, 3, 0, 0, 5, 0], [0, 0, 0, 0, 1, 1], [0] * 6])
    found = orthogonal_pursuit(x, atoms, 9)
    assert found.values.shape == (4, 9) and (found.values != 0).sum(1).tolist() == [1, 2, 0, 0]
    assert found.residual_squares.tolist() == pytest.approx([0, 25, 2, 0])
    copies = torch.eye(6)[[0, 0, 1]]
    assert (orthogonal_pursuit(x, copies, 3).values != 0).sum(1).tolist() == [1, 2, 0, 0]
    assert bool(orthogonal_pursuit(torch.full((1, 6), torch.nan), atoms, 2).values.isnan().all())
    with pytest.raises(ValueError, match="at least 1"):
        orthogonal_pursuit(x, atoms, 0)


@pytest.mark.parametrize("encoder", ("mp", "omp", "nonnegative"))
def test_a_tolerance_ends_rows_early(encoder: str) -> None:
    itda = grown(mixtures(600, 20), GrowthConfig(max_atoms=300, k=4, tau=0.03)).folded()
    x = mixtures(100, 20)
    loose = itda.with_encoder(k=12, encoder=encoder, tolerance=0.05)
    steps, tight = loose.steps(x), itda.with_encoder(k=12, encoder=encoder).steps(x)
    share = (x - loose.reconstruct(x)).square().sum(1) / x.square().sum(1)
    torch.testing.assert_close(share, steps.residual_squares / x.square().sum(1), atol=1e-5, rtol=1e-4)
    assert int((steps.values != 0).sum()) < 0.9 * int((tight.values != 0).sum())
    ended = (steps.values != 0).sum(1) < (tight.values != 0).sum(1)
    assert bool(ended.any()) and bool((share <= 0.05 + 1e-5)[ended].all())
    assert bool((loose.encode(x).values >= 0).all()) == (encoder == "nonnegative")


def test_a_gram_matrix_is_kept_and_changes_nothing() -> None:
    itda, x = grown(mixtures(600, 20), GrowthConfig(max_atoms=300, k=4, tau=0.03)).folded(), mixtures(200, 20)
    few = itda.encode(x[:2]).to_dense()  # too few for one
    assert itda._gram is None
    many = itda.encode(x)
    assert itda._gram is not None
    torch.testing.assert_close(many[:2].to_dense(), few, atol=1e-3, rtol=1e-4)
    itda.W_dec.neg_()
    torch.testing.assert_close(itda.encode(x).to_dense(), -many.to_dense(), atol=1e-3, rtol=1e-4)


def test_it_goes_to_a_file_and_back(made: tuple[ITDA, Corpus], tmp_path: Path) -> None:
    itda, _ = made
    again = load(itda.save(tmp_path / "itda"))
    assert isinstance(again, ITDA) and again.config == itda.config and repr(again) == repr(itda)
    for name, tensor in itda.tensors().items():
        assert again.tensors()[name].equal(tensor)
    assert set(itda.tensors()) == {"W_dec", "identities", "arrivals"}
    assert again.text_hash == itda.text_hash and again.order_hash == itda.order_hash
    assert again.warmup_atoms == 32 and again.identities.dtype == torch.int64
    x = mixtures(30, 32)
    assert again.encode(x).to_dense().equal(itda.encode(x).to_dense())
    description = json.loads((tmp_path / "itda" / "dictionary.json").read_text())
    description["config"]["encoder"] = "lasso"
    (tmp_path / "itda" / "dictionary.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="unknown encoder 'lasso'"):
        load(tmp_path / "itda")


def test_another_model_is_refused(made: tuple[ITDA, Corpus], tmp_path: Path) -> None:
    itda, _ = made
    other = load_model(write_model(tmp_path / "other", seed=1), dtype="fp32", device="cpu")
    with pytest.raises(InputError, match="was trained on"):
        itda.check(other)
    with pytest.raises(InputError, match="width 8"):
        itda.encode(torch.zeros(2, 8))


def test_an_atom_knows_its_text(made: tuple[ITDA, Corpus]) -> None:
    itda, corpus = made
    for atom in (0, 40, itda.n_latents - 1):
        document, offset = itda.identities[atom].tolist()
        found = itda.source(atom, corpus, before=3, after=2)
        assert (found.document, found.offset) == (document, offset)
        assert found.token == corpus.text(document, offset, offset + 1)
        assert f"«{found.token}»" in str(found) and f"<mark>{found.token}</mark>" in found._repr_html_()
        assert found == itda.source(atom, before=3, after=2)  # opened by itself
    with pytest.raises(InputError, match="atom 999 is outside"):
        itda.source(999, corpus)


def test_the_atom_is_the_activation_of_its_token(made: tuple[ITDA, Corpus], place: Path) -> None:
    itda, corpus = made
    model = load_model(place / "model", dtype="fp32", device="cpu")
    atom = itda.n_latents - 1
    for batch in corpus.batches():
        here = (batch.doc == itda.identities[atom, 0]) & (batch.offset == itda.identities[atom, 1])
        if here.any():
            acts = model.capture(batch.tokens, ["resid_post.1"])[model.site("resid_post.1")][here][0]
            torch.testing.assert_close(acts / acts.norm(), itda.W_dec[atom], atol=1e-5, rtol=0)
            return
    pytest.fail("the atom's token is nowhere in the corpus")


def test_a_changed_text_is_refused(made: tuple[ITDA, Corpus], place: Path, tmp_path: Path) -> None:
    itda, corpus = made
    tokenizer = load_model(place / "model", device="cpu").tokenizer
    changed = Corpus(["the old boat"] * 80, tokenizer)
    with pytest.raises(InputError, match=rf"text hash is {changed.content_hash}, the atoms' {itda.text_hash}"):
        itda.source(0, changed)
    unknown = ITDA.of(itda.W_dec)
    with pytest.raises(InputError, match="cannot be opened by name"):
        unknown.source(0)
    with pytest.raises(InputError, match="does not know its text"):
        unknown.source(0, corpus)


def test_whatever_takes_a_dictionary_takes_it(made: tuple[ITDA, Corpus], place: Path) -> None:
    itda, corpus = made
    model = load_model(place / "model", dtype="fp32", device="cpu")
    x = mixtures(200, 32)
    nulls = {**fit_nulls(x, itda), **itda_nulls(itda, x)}
    assert set(nulls) == {"untrained", "pca", "neurons", "random_rows", "random_directions"}
    found = evaluate(model, corpus, itda, nulls=nulls, tokens=400, ce_tokens=100, progress=False, spliced=("pca",))
    assert found["fvu"].beats_nulls() and found["l0"].value <= 4
    assert {"ce_recovered_zero", "dead", "decoder_max_cosine"} <= set(found.scores)


def test_refusals() -> None:
    with pytest.raises(InputError, match="leave out d_out"):
        ITDAConfig(8, 4, d_out=3)
    with pytest.raises(InputError, match="a finite row that is not zero"):
        ITDA.of(torch.zeros(3, 8))
    with pytest.raises(InputError, match="5 atoms cannot be drawn from 3 rows"):
        itda_nulls(ITDA.of(mixtures(5, 8)), mixtures(3, 8))
    with pytest.raises(InputError, match="cannot be trained"):
        build_trainable("itda", d_in=4, n_latents=4)

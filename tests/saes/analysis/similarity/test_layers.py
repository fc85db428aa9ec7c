"""Layers against layers: planted models whose layers find each other, ties, self pairs, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.saes.analysis.similarity.atoms import AtomSet
from monosem.saes.analysis.similarity.copies import Copy, copied
from monosem.saes.analysis.similarity.layers import (
    LayerGrid,
    Prepared,
    atom_grids,
    depth_agreement,
    layer_grids,
    layer_match,
)
from monosem.saes.analysis.similarity.measures import MEASURES, SimilarityConfig, compare_rows
from monosem.saes.analysis.similarity.representations import Representations, align
from monosem.saes.analysis.similarity.rows import split_documents

torch.set_num_threads(1)

LAYERS, N, D = 4, 600, 10
CONFIG = SimilarityConfig(anchors=40, ridge=1e-4)


def model(seed: int = 0, name: str = "toy") -> Representations:
    """A residual stream: every layer adds something of its own to the one before."""
    rng = torch.Generator().manual_seed(seed)
    x, acts = torch.randn(N, D, generator=rng), {}
    for layer in range(LAYERS):
        x = x + 0.8 * torch.tanh(x @ torch.randn(D, D, generator=rng))
        acts[f"resid_post.{layer}"] = x
    places = torch.stack([torch.arange(N) // 30, torch.arange(N) % 30], 1)
    return Representations(name, acts, places, "one text")


def prepared(found: Representations) -> Prepared:
    return Prepared.of(found, split_documents(found.documents, CONFIG.held_out, CONFIG.seed), CONFIG)


def test_layers_of_a_rotated_model_find_each_other_by_every_measure() -> None:
    found = model()
    grids = layer_grids(prepared(found), prepared(copied(found, Copy("rotated"))))
    assert set(grids) == set(MEASURES)
    for grid in grids.values():
        scores = grid.evidence()
        assert scores["layer_match"].value == 1 and scores["layer_match"].nulls == {"chance": 1 / LAYERS}
        assert torch.allclose(grid.across.diagonal(), torch.ones(LAYERS).double(), atol=2e-3)
        assert torch.allclose(grid.across, grid.within[0], atol=1e-3)


def test_a_grid_has_the_numbers_of_each_pair() -> None:
    a, b = model(), copied(model(), Copy("noise", 0.5))
    grids = layer_grids(prepared(a), prepared(b))
    alone = compare_rows(a.acts["resid_post.1"], b.acts["resid_post.3"], a.documents, CONFIG)
    back = compare_rows(b.acts["resid_post.3"], a.acts["resid_post.1"], a.documents, CONFIG, measures=["regression"])
    for name, one in alone.items():
        assert float(grids[name].across[1, 3]) == pytest.approx(one.value, abs=1e-4)
    assert float(grids["regression"].back[3, 1]) == pytest.approx(back["regression"].value, abs=1e-4)
    assert torch.allclose(grids["svcca"].back, grids["svcca"].across.T)


def test_strangers_match_at_chance_and_self_pairs_flatter_them() -> None:
    noise = torch.rand(2, 400, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    selves = [torch.eye(400, dtype=torch.float64)] * 2
    alone, flattered = layer_match(list(noise)), layer_match([*noise, *selves])
    assert alone.value < 0.02 and flattered.value == pytest.approx(0.5, abs=0.01)
    blind = layer_match([torch.ones(8, 8).double()])
    assert blind.value == blind.nulls["chance"] == 1 / 8
    half = torch.eye(4).double()
    half[2:] = half[2:].flip(0)
    assert layer_match([half]).value == 0.5


def test_atoms_match_layers() -> None:
    def layer(places: list[int]) -> AtomSet:
        identities = torch.tensor([[0, p] for p in places])
        return AtomSet(identities, "t", 100, torch.tensor(places), 2)

    a = {"resid_post.0": layer([1, 2, 3]), "resid_post.1": layer([7, 8, 9])}
    b = {"resid_post.0": layer([1, 2, 4]), "resid_post.1": layer([8, 9, 10])}
    grids = atom_grids(a, b, ("a", "b"), warm_up=2)
    assert grids["jaccard_raw"].across.tolist() == [[0.5, 0], [0, 0.5]]
    assert grids["jaccard"].across.tolist() == [[1 / 3, 0], [0, 0.5]]
    assert grids["jaccard"].evidence()["layer_match"].value == 1
    a["resid_post.1"] = replace(a["resid_post.1"], text="other")
    with pytest.raises(InputError, match="tokenizer t and other"):
        atom_grids(a, b, ("a", "b"), warm_up=0)


def test_models_of_different_depth_agree_in_order() -> None:
    depth = torch.arange(12)[:, None] / 11 - torch.arange(5) / 4
    deep = -depth.abs().double()
    good = depth_agreement(deep, deep.T)
    assert good.value > 0.9 and good.beats_nulls() and good.n == 17
    grid = LayerGrid("cka", ("a", "b"), ((), ()), deep, deep.T, (torch.eye(12), torch.eye(5)))
    assert list(grid.evidence()) == ["depth_agreement"]
    flat = torch.zeros(12, 5).double()
    assert depth_agreement(flat, flat.T).value == 0


def test_rows_are_aligned_by_place() -> None:
    whole = model()
    some = whole.take(torch.tensor([5, 3, 9, 70, 71, 80]))
    ours, theirs = align(some, whole)
    assert torch.equal(ours.places, theirs.places) and torch.equal(ours.places, some.places)
    assert torch.equal(theirs.acts["resid_post.2"], some.acts["resid_post.2"])
    assert align(whole, whole)[0] is whole


def test_what_cannot_be_compared_is_refused() -> None:
    found = model()
    with pytest.raises(InputError, match="hashes one text and other"):
        align(found, replace(found, text="other"))
    with pytest.raises(InputError, match="share 2 rows"):
        align(found.take(slice(0, 5)), found.take(slice(3, 9)))
    one = replace(found, acts={"resid_post.0": found.acts["resid_post.0"]})
    with pytest.raises(InputError, match="layer matching needs at least 2"):
        layer_grids(prepared(one), prepared(one))["cka"].evidence()
    with pytest.raises(InputError, match="not on the same rows"):
        layer_grids(prepared(found), prepared(found.take(slice(0, 300))))
    broken = torch.eye(3).double()
    broken[1, 2] = torch.nan
    with pytest.raises(InputError, match="layers 1 and 2 have no finite similarity"):
        layer_match([broken])
    with pytest.raises(InputError, match=r"shape \(3, 4\)"):
        layer_match([torch.zeros(3, 4).double()])


@pytest.mark.parametrize(
    ("text", "message"),
    [("rotatd", "did you mean 'rotated'"), ("noise", "give a share above 0"), ("noise:x", "'x' is no number"),
     ("noise:-1", "give a share above 0"), ("rotated:2", "a rotation has no strength")],
)  # fmt: skip
def test_copies_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Copy.parse(text)
    assert str(Copy.parse(" noise:0.10 ")) == "noise:0.1"

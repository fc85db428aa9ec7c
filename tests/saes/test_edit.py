"""Edits: known answers by hand, identity to the bit for every kind of dictionary, untouched rows, gradients, counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.sites import Site
from monosem.saes.architectures.clt.cross_layer import CrossLayer
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.dictionary import Dictionary
from monosem.saes.edit import Edit, EditCounts, Stage, added, difference
from monosem.saes.evaluation.clt.replacement import replacing
from monosem.saes.place import Place
from monosem.saes.registry import architectures, build
from monosem.saes.sparse_code import SparseCode
from tiny_models import build as tiny
from tiny_models import inputs_for

D, N, K = 32, 48, 4
SITE = Site.parse("resid_post.1")
TOKENS = inputs_for("llama", 3, 7)
MASK = torch.arange(7).expand(3, 7) % 3 > 0
Setting = tuple[Dictionary, HookedModel, dict[Site, torch.Tensor]]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request: pytest.FixtureRequest) -> HookedModel:
    return HookedModel(tiny("llama").to(request.param), name="tiny-llama")


def placed(dictionary: Dictionary, reads: str, predicts: str = "", limit: float | None = None) -> Dictionary:
    place = Place.at(reads.split(), predicts.split())
    dictionary.place = place.limited([limit, *[None] * (len(place.ports) - 1)])
    return dictionary


def random_weights(dictionary: Dictionary, scale: float = 0.3) -> Dictionary:
    g = torch.Generator().manual_seed(0)
    for parameter in dictionary.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=g))
    if dictionary.architecture == "itda":
        dictionary.W_dec.copy_(F.normalize(dictionary.W_dec, dim=1))
    return dictionary


def dictionaries() -> dict[str, Callable[[], Dictionary]]:
    def plain(name: str) -> Dictionary:
        basis = name in ("pca", "neurons", "linear")
        sizes = {"n_latents": D if basis else N, "k": K, **({"d_out": D} if name == "linear" else {})}
        found = random_weights(build(name, d_in=D, **sizes))
        return placed(found, "resid_mid.1", "mlp_out.1") if name == "linear" else placed(found, str(SITE))

    known: dict[str, Callable[[], Dictionary]] = {
        name: lambda name=name: plain(name) for name in architectures() if name != "clt"
    }
    layers = {"d_in": 3 * D, "d_out": 3 * D, "n_latents": 3 * N, "k": K, "layers": 3}
    reads, predicts = ("resid_mid.0 resid_mid.1 resid_mid.2", "mlp_out.0 mlp_out.1 mlp_out.2")
    return known | {
        "transcoder": lambda: placed(
            random_weights(build("topk", d_in=D, n_latents=N, k=K, d_out=D, skip=True)), "resid_mid.1", "mlp_out.1"
        ),
        "crosscoder": lambda: placed(
            random_weights(build("batchtopk", d_in=2 * D, n_latents=N, k=K, sources=(D, D))),
            "resid_post.0 resid_post.1",
        ),
        "clt": lambda: placed(random_weights(build("clt", base="topk", **layers)), reads, predicts),
    }


def sites_of(dictionary: Dictionary) -> list[str]:
    edit = Edit.codes(dictionary, lambda code: code)
    return list(dict.fromkeys(map(str, (*(key for stage in edit.stages for key in stage.sources), *edit.targets))))


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """torch.equal takes 0.0 and -0.0 for the same."""
    as_ints = torch.int16 if a.dtype == torch.bfloat16 else torch.int32
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(as_ints), b.contiguous().view(as_ints))


def atoms(k: int = K) -> TopK:
    found = random_weights(TopK(SAEConfig(D, N, k)))
    assert isinstance(found, TopK)
    return found


@pytest.mark.parametrize("kind", sorted(dictionaries()))
def test_an_edit_of_codes_that_changes_nothing_is_the_identity(model: HookedModel, kind: str) -> None:
    dictionary = dictionaries()[kind]()
    sites = sites_of(dictionary)
    before = model.capture(TOKENS, sites)
    given = before if kind == "crosscoder" else None
    nothing = torch.zeros_like(MASK)
    for change, mask in (
        (lambda code: code, MASK),
        (lambda code: SparseCode(code.indptr, code.indices, code.values + 0, code.n_latents), MASK),
        (lambda code: code.with_columns(torch.tensor([5, 2]), code.columns(torch.tensor([5, 2]))), MASK),
        (lambda code: SparseCode(code.indptr, code.indices, code.values * 0 - 7, code.n_latents), nothing),
    ):
        with model.editing(Edit.codes(dictionary, change).at(mask, given)):
            after = model.capture(TOKENS, sites)
        assert all(same_bytes(after[site], before[site]) for site in sites)


@pytest.mark.parametrize("kind", sorted(dictionaries()))
def test_changed_codes_move_masked_rows_by_the_change_times_the_decoder_and_no_others(kind: str) -> None:
    model = HookedModel(tiny("llama"), name="tiny-llama")
    dictionary = dictionaries()[kind]()
    edit = Edit.codes(dictionary, lambda code: SparseCode(code.indptr, code.indices, 3 * code.values, code.n_latents))
    targets = list(edit.targets)
    sources = list(dict.fromkeys(key for stage in edit.stages for key in stage.sources))
    before = model.capture(TOKENS, [*sources, *targets])
    given = {site: before[site] for site in sources}  # every stage reads the clean pass
    with model.editing(edit.at(MASK, given)):
        after = model.capture(TOKENS, targets)
    z = dictionary.encode(torch.cat([before[site] for site in sources], -1)[MASK]).to_dense()
    expected = (2 * z @ dictionary.W_dec).split(D, 1)
    first = targets[0]  # later ones also hold what the model made of the first
    assert torch.allclose(after[first][MASK] - before[first][MASK], expected[0], atol=2e-3)
    assert float(expected[0].abs().max()) > 0.1
    assert same_bytes(after[first][~MASK], before[first][~MASK])
    inside, outside = int(MASK.sum()), int((~MASK).sum())
    assert edit.counts == dict.fromkeys(targets, EditCounts(inside, outside, 0))


def test_a_direction_is_added_at_the_mask(model: HookedModel) -> None:
    before, direction = model.capture(TOKENS, [SITE])[SITE], 4.0 * atoms().W_dec[7]
    edit = Edit.adding(SITE, direction)
    with model.editing(edit.at(MASK)):
        after = model.capture(TOKENS, [SITE])[SITE]
    assert torch.equal(after[MASK], before[MASK] + direction.to(before.dtype))
    assert same_bytes(after[~MASK], before[~MASK])
    each = torch.randn(int(MASK.sum()), D, generator=torch.Generator().manual_seed(0))
    with model.editing(Edit.adding(SITE, each).at(MASK)):
        assert torch.equal(model.capture(TOKENS, [SITE])[SITE][MASK], before[MASK] + each.to(before.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_zero_direction_keeps_negative_zeros(dtype: torch.dtype) -> None:
    x = torch.tensor([[-0.0, 0.0, 1.5, -3e-39, float("inf")]], dtype=dtype)
    for zero in (torch.zeros(1, 5), -torch.zeros(1, 5)):
        assert same_bytes(added(x, zero), x)
    assert torch.equal(added(x, torch.ones(1, 5)), x + 1)
    hook = Edit.adding("any", torch.zeros(5)).at()["any"]
    assert same_bytes(hook(x[None]), x[None])


def test_a_latent_of_topk_is_set_after_the_selection(model: HookedModel) -> None:
    dictionary = placed(atoms(), str(SITE))
    x = model.capture(TOKENS, [SITE])[SITE]
    z = dictionary.encode(x).to_dense()
    j = int((z != 0).sum(0).argmin())  # silent nearly everywhere: setting it makes rows of k + 1 codes
    change = (2.5 - z[:, j, None]) * dictionary.W_dec[j]
    with model.editing(Edit.latents(dictionary, [j], lambda z: torch.full_like(z, 2.5)).at()):
        after = model.capture(TOKENS, [SITE])[SITE]
    tolerance = 1e-4 if model.dtype == torch.float32 else 0.25
    assert torch.allclose(after.reshape(-1, D).float(), x.reshape(-1, D).float() + change, atol=tolerance)
    assert float(change.abs().max()) > 1


def test_a_replacement_is_what_splicing_writes_and_codes_keep_the_error(model: HookedModel) -> None:
    dictionary = placed(atoms(), str(SITE))
    x = model.capture(TOKENS, [SITE])[SITE]
    with model.editing(Edit.reconstruction(dictionary).at(MASK)):
        whole = model.capture(TOKENS, [SITE])[SITE]
    with model.editing(Edit.replacing(SITE, dictionary).at(MASK)):
        spliced = model.capture(TOKENS, [SITE])[SITE]
    assert same_bytes(whole, spliced) and torch.equal(whole[MASK], dictionary(x[MASK]))
    assert same_bytes(whole[~MASK], x[~MASK])
    with model.editing(Edit.latents(dictionary, range(N), torch.zeros_like).at(MASK)):
        error = model.capture(TOKENS, [SITE])[SITE]
    expected = x.float() - (dictionary(x.float()) - dictionary.b_dec)
    assert torch.allclose(error[MASK].float(), expected[MASK], atol=1e-4 if x.dtype == torch.float32 else 0.3)


def test_a_transcoder_writes_at_its_target() -> None:
    model = HookedModel(tiny("llama"), name="tiny-llama")
    dictionary = dictionaries()["transcoder"]()
    clean = model.capture(TOKENS, ["resid_mid.1", "mlp_out.1"])
    z = dictionary.encode(clean["resid_mid.1"]).to_dense()
    j = int(z.sum(0).argmax())
    by_hand = clean["mlp_out.1"] + (-z[:, j, None] * dictionary.W_dec[j]).view(3, 7, D)
    with model.editing({"mlp_out.1": lambda x: torch.where(MASK[..., None], by_hand, x)}):
        expected = model.logits(TOKENS)
    edit = Edit.latents(dictionary, [j], lambda z: 0 * z)
    with model.editing(edit.at(MASK)):
        found, at_source = model.logits(TOKENS), model.capture(TOKENS, ["resid_mid.1"])["resid_mid.1"]
    assert torch.allclose(found, expected, atol=1e-3) and not torch.allclose(found, model.logits(TOKENS), atol=1e-1)
    assert same_bytes(at_source, clean["resid_mid.1"])


def test_latents_of_a_cross_layer_transcoder_reach_later_layers() -> None:
    model = HookedModel(tiny("llama"), name="tiny-llama")
    clt = dictionaries()["clt"]()
    assert isinstance(clt, CrossLayer)
    clean = model.capture(TOKENS, ["resid_mid.1", "mlp_out.0"])
    own = clt.layers[1].encode(clean["resid_mid.1"]).to_dense()
    j = int(own.sum(0).argmax())
    with model.editing(Edit.latents(clt, [N + j], lambda z: z + 2).at()):
        after = model.capture(TOKENS, ["mlp_out.0", "mlp_out.1", "mlp_out.2"])
    assert same_bytes(after["mlp_out.0"], clean["mlp_out.0"])  # of an earlier layer
    by_hand = {m: 2 * clt.decoder_of(1, m)[j] for m in (1, 2)}
    with model.editing({f"mlp_out.{m}": lambda x, m=m: x + by_hand[m] for m in (1, 2)}):
        expected = model.capture(TOKENS, ["mlp_out.1", "mlp_out.2"])
    for site in expected:
        assert torch.allclose(after[site], expected[site], atol=2e-3)


def test_the_replacement_model_predicts_from_what_it_has_written() -> None:
    model = HookedModel(tiny("llama"), name="tiny-llama")
    clt = dictionaries()["clt"]()
    assert isinstance(clt, CrossLayer)
    reads, writes = ([Site.parse(f"{kind}.{layer}") for layer in range(3)] for kind in ("resid_mid", "mlp_out"))
    with model.editing(replacing(clt, reads, writes).at(MASK)):
        found = model.capture(TOKENS, [*reads, *writes])
    rows = torch.cat([found[site][MASK] for site in reads], 1)
    for site, expected in zip(writes, clt.reconstruct(rows).split(D, 1), strict=True):
        assert torch.allclose(found[site][MASK], expected, atol=1e-3)


def test_rows_above_the_norm_limit_pass_through_from_there_on() -> None:
    model = HookedModel(tiny("llama"), name="tiny-llama")
    norms = model.capture(TOKENS, ["resid_mid.1"])["resid_mid.1"].norm(dim=-1)
    limit = float(norms[MASK].median())
    dictionary = placed(
        random_weights(build("topk", d_in=D, n_latents=N, k=K, d_out=D)), "resid_mid.1", "mlp_out.1", limit
    )
    seen = []

    def change(z: torch.Tensor) -> torch.Tensor:
        seen.append(len(z))
        return z + 1

    edit, before = Edit.latents(dictionary, [3], change), model.capture(TOKENS, ["mlp_out.1"])["mlp_out.1"]
    for _ in range(2):  # hooks of one `at` serve any number of passes
        with model.editing(edit.at(MASK)):
            after = model.capture(TOKENS, ["mlp_out.1"])["mlp_out.1"]
    short = MASK & (norms <= limit)
    assert same_bytes(after[~short], before[~short])
    assert torch.allclose(after[short], before[short] + dictionary.W_dec[3], atol=1e-4)
    above = int((MASK & ~short).sum())
    assert above > 2 and seen == [int(short.sum())] * 2
    assert edit.counts == {Site.parse("mlp_out.1"): EditCounts(2 * int(short.sum()), 2 * int((~MASK).sum()), 2 * above)}


def test_terms_stay_with_their_rows_where_a_limit_at_the_target_leaves_one_out() -> None:
    tens = Stage(("source",), ("target",), lambda read: [10 * read[0]])
    edit = Edit(("target",), lambda _, x, terms: x + terms[0], (tens,), {"target": 5.0})
    hooks, x = edit.at(), torch.tensor([[[1.0], [2.0], [3.0]]])
    assert hooks["source"](x) is x
    assert hooks["target"](torch.tensor([[[4.0], [6.0], [5.0]]])).flatten().tolist() == [14, 6, 35]
    assert edit.counts == {"target": EditCounts(2, 0, 1)}


def test_heads_are_flattened_and_masks_may_be_functions_of_the_pass(model: HookedModel) -> None:
    dictionary = placed(atoms(), "z.1")
    edit = Edit.latents(dictionary, [1], lambda z: z + 1)
    before = model.capture(TOKENS, ["z.1"])["z.1"]
    hooks = edit.at(lambda x: torch.arange(x.shape[1]).expand(x.shape[:2]) == x.shape[1] - 1)
    with model.editing(hooks):
        after = model.capture(TOKENS, ["z.1"])["z.1"]
        shorter = model.capture(TOKENS[:, :5], ["z.1"])["z.1"]
    assert before.shape == after.shape == (3, 7, 4, 8) and same_bytes(after[:, :-1], before[:, :-1])
    moved = (before[:, -1].flatten(1) + dictionary.W_dec[1].to(before.dtype)).float()
    assert torch.allclose(after[:, -1].flatten(1).float(), moved, atol=1e-5)
    assert shorter.shape[1] == 5 and edit.counts[Site.parse("z.1")].edited == 6


def test_gradients_reach_what_is_brought_in_even_where_it_changes_nothing_yet() -> None:
    model = HookedModel(tiny("llama"), name="tiny-llama")
    dictionary = placed(atoms(), str(SITE))
    early = model.module.get_input_embeddings().weight
    push = torch.zeros(2, requires_grad=True)
    for detached in (False, True):
        hooks = Edit.latents(dictionary, [3, 9], lambda z: z + push, detached=detached).at()
        with model.editing(hooks):
            loss = model.logits(TOKENS, grad=True).square().sum()
        wanted = [push, early]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
        if detached:
            assert found[0] is None and not found[1].any()  # all rows are written
            continue
        steps = []
        for step in (1e-2, -1e-2):
            with model.editing(Edit.latents(dictionary, [3, 9], lambda z, s=step: z + torch.tensor([s, 0.0])).at()):
                steps.append(model.logits(TOKENS).double().square().sum())
        assert float(found[0][0]) == pytest.approx(float(steps[0] - steps[1]) / 2e-2, rel=0.05)
        assert float(found[1].abs().max()) > 0


def test_edits_refuse_what_they_cannot_do() -> None:
    model = HookedModel(tiny("llama"), name="tiny-llama")
    crosscoder = dictionaries()["crosscoder"]()
    with pytest.raises(InputError, match=r"reads resid_post.1 after it has written resid_post.0"):
        Edit.codes(crosscoder, lambda code: code).at()
    unfit = r"mask of shape \[3, 7\] does not fit activations of shape \[3, 5, 32\]"
    with pytest.raises(InputError, match=unfit), model.editing(Edit.adding(SITE, torch.ones(D)).at(MASK)):
        model.logits(TOKENS[:, :5])
    narrow = Edit.replacing(SITE, lambda rows: rows[:, :3])
    with pytest.raises(InputError, match="must write rows of shape"), model.editing(narrow.at(MASK)):
        model.logits(TOKENS)
    with pytest.raises(InputError, match=f"from 0 to {N - 1}, each once: latent 48"):
        Edit.latents(placed(atoms(), str(SITE)), [3, N], torch.zeros_like)
    with pytest.raises(InputError, match="named twice"):
        Edit.latents(placed(atoms(), str(SITE)), [3, 3], torch.zeros_like)
    with pytest.raises(InputError, match="names no site"):
        Edit.codes(atoms(), lambda code: code)
    with pytest.raises(InputError, match="must keep rows and latents"):
        code = atoms().encode(torch.ones(2, D))
        difference(code[0:1], code)


def test_differences_of_codes_are_those_of_dense_ones() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 9, generator=g) * (torch.rand(6, 9, generator=g) < 0.4) for _ in range(2))
    b[2] = a[2]
    found = difference(SparseCode.from_dense(a), SparseCode.from_dense(b))
    assert torch.equal(found.to_dense(), a - b) and int(found.indptr[3] - found.indptr[2]) == 0
    code, latents = SparseCode.from_dense(a), torch.tensor([7, 0])
    assert torch.equal(code.columns(latents), a[:, latents])
    dense = a.clone()
    dense[:, latents] = torch.ones(6, 2)
    changed = code.with_columns(latents, torch.ones(6, 2))
    assert torch.equal(changed.to_dense(), dense)
    assert all(bool((row.diff() > 0).all()) for row in changed.indices.split(changed.indptr.diff().tolist()))

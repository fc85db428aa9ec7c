"""Rows and probes off a stream: order of rows, stored activations, kills and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_commands
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.lab.runs.loop import train
from monosem.lab.runs.run import Run
from monosem.lab.streams.activation_stream import ActivationStream, Batch
from monosem.lab.streams.store import ActivationStore
from monosem.probes.files import load
from monosem.probes.fitting.fits import FitConfig, fit_all
from monosem.probes.fitting.streaming import StreamedFit, StreamedProbes
from monosem.probes.labels import Bags, Labels
from monosem.probes.layer_sweep import ReadConfig, text_stream
from monosem.probes.pooling import PooledTexts, load_pooled
from monosem.saes.registry import build_trainable

SITES = ("resid_post.0", "resid_post.2")
TEXTS = [
    f"the {adjective} {noun} {verb} the {noun} ."
    for noun in (*tiny_commands.TOPICS["sea"][:6], *tiny_commands.TOPICS["kitchen"][:6])
    for adjective, verb in zip(tiny_commands.ADJECTIVES[:4], tiny_commands.VERBS[:4], strict=True)
]
LABELS = Labels.of(["sea"] * 24 + ["kitchen"] * 24)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    folder = tiny_commands.write_model(tmp_path_factory.mktemp("model") / "model")
    return load_model(str(folder), dtype="fp32", device="cpu")


def live(model: HookedModel, batch: int = 16) -> ActivationStream:
    return text_stream(model, TEXTS, list(map(model.site, SITES)), ReadConfig(batch=batch))


def gathered(stream: ActivationStream, model: HookedModel, pooling: str) -> dict:
    texts = PooledTexts(LABELS, SITES, model, pooling=pooling)
    for batch in stream:
        texts.step(batch)
    return texts.gathered()


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "bag"])
def test_pooled_rows_are_the_texts_read_one_by_one(model: HookedModel, pooling: str) -> None:
    found = gathered(live(model), model, pooling)
    site = model.site(SITES[1])
    for number in (0, 5, 47):
        ids = model.tokenizer(TEXTS[number], return_tensors="pt", add_special_tokens=False)["input_ids"]
        ids = torch.cat([torch.full((1, 1), model.tokenizer.bos_token_id), ids], 1)
        acts = model.capture(ids, [site])[site][0, 1:]
        units = found[str(site)]
        if isinstance(units, Bags):
            torch.testing.assert_close(units.x[units.bag == number], acts, rtol=1e-4, atol=1e-4)
            continue
        wanted = {"last": acts[-1], "mean": acts.mean(0), "max": acts.amax(0)}[pooling]
        torch.testing.assert_close(units.x[number], wanted, rtol=1e-4, atol=1e-4)
        assert units.labels.tokens is not None and int(units.labels.tokens[number]) == len(acts)


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "bag"])
def test_a_store_replays_the_same_bytes(model: HookedModel, tmp_path: Path, pooling: str) -> None:
    store = ActivationStore.write(live(model), tmp_path / "store", dtype=torch.float32, shard_rows=100, progress=False)
    replay = ActivationStream.from_store(store, batch=32, buffer=128, seed=9)
    first = gathered(live(model), model, pooling)
    again = gathered(replay, model, pooling)
    kinds = ["attention"] if pooling == "bag" else ["mean_difference", "ridge", "lda", "logistic"]
    for place in SITES:
        assert torch.equal(first[place].x, again[place].x)
        ours, theirs = (fit_all(kinds, one[place]) for one in (first, again))
        for kind in kinds:
            assert torch.equal(ours[kind].weight, theirs[kind].weight), kind
            assert torch.equal(ours[kind].bias, theirs[kind].bias), kind


def test_heads_of_z_and_codes_get_rows_of_their_own(model: HookedModel) -> None:
    sae = build_trainable("topk", d_in=32, n_latents=48, k=4)
    torch.nn.init.normal_(sae.W_dec)
    torch.nn.init.normal_(sae.W_enc)
    sae.place, sae.provenance.model = "resid_post.1", model.fingerprint()
    stream = text_stream(model, TEXTS, [model.site("z.1"), model.site("resid_post.1")], ReadConfig())
    whole, parts = (
        PooledTexts(LABELS, ["z.1"], model, pooling="mean", dictionaries=[sae], heads=heads) for heads in (False, True)
    )
    raw = PooledTexts(LABELS, ["resid_post.1"], model, pooling="bag")
    for batch in stream:
        for one in (whole, parts, raw):
            one.step(batch)
    joined = torch.cat([parts.rows()[f"z.1 head {h}"].x for h in range(model.n_heads)], 1)
    assert torch.equal(joined, whole.rows()["z.1"].x)
    bags = raw.gathered()["resid_post.1"]
    assert isinstance(bags, Bags)
    codes = torch.zeros(48, 48).index_add_(0, bags.bag, sae.encode(bags.x).to_dense()) / bags.sizes[:, None]
    found = whole.rows()["resid_post.1 latents"]
    torch.testing.assert_close(found.x, codes, rtol=1e-4, atol=1e-5)
    assert found.source.dictionary and found.source.site == "resid_post.1"


class _Killed(Exception):
    pass


class _Fragile(PooledTexts):
    """Stands for a process that is killed in the middle."""

    limit = 10**9
    steps = 0

    def step(self, batch: Batch) -> None:
        self.steps += 1
        if self.steps > self.limit:
            raise _Killed
        super().step(batch)


@pytest.mark.parametrize("pooling", ["mean", "bag"])
def test_a_killed_run_continues_to_the_same_bytes(model: HookedModel, tmp_path: Path, pooling: str) -> None:
    def run(folder: Path, limit: int, resume: bool) -> dict:
        stream = ActivationStream(
            model, text_stream(model, TEXTS, [model.site(SITES[0])], ReadConfig())._source.corpus, SITES,
            batch=32, buffer=64, epochs=1, max_norm_multiple=None,
        )  # fmt: skip
        texts = _Fragile(LABELS, SITES, model, pooling=pooling)
        texts.limit = limit
        train(stream, texts, Run.create(folder, resume=resume), checkpoint_every=2, progress=False)
        return load_pooled(folder / "pooled" / "texts")

    whole = run(tmp_path / "whole", 10**9, False)
    with pytest.raises(_Killed):
        run(tmp_path / "killed", 5, False)
    again = run(tmp_path / "killed", 10**9, True)
    for place in SITES:
        assert torch.equal(whole[place].x, again[place].x)
        assert whole[place].source == again[place].source


def test_streamed_probes_are_those_of_all_rows_in_memory(model: HookedModel) -> None:
    kinds = ["mean_difference", "ridge", "lda", "logistic"]
    units = torch.arange(0, 48, 2)
    config = StreamedFit(lr=0.01, fit=FitConfig(penalty=0.1))
    site = model.site(SITES[1])
    probes = StreamedProbes(LABELS, kinds, site, config, units=units, model=model.fingerprint())
    for batch in live(model):
        probes.step(batch)
    bags = gathered(live(model), model, "bag")[SITES[1]]
    inside = (bags.bag % 2) == 0
    from monosem.probes.labels import PooledRows

    rows = PooledRows(bags.x[inside], Labels.of(LABELS.y[bags.bag[inside]]))
    whole = fit_all(kinds, rows, config.fit)
    for kind in kinds[:3]:
        torch.testing.assert_close(probes.probes()[kind].weight, whole[kind].weight, rtol=1e-3, atol=1e-4)
    assert probes.probes()["ridge"].training["rows"] == len(rows)


def test_streamed_logistic_learns_and_resumes_exactly(model: HookedModel, tmp_path: Path) -> None:
    site = model.site(SITES[0])
    batches = [batch for _ in range(12) for batch in live(model)]

    def trained(resume: bool) -> StreamedProbes:
        probes = StreamedProbes(LABELS, ["logistic", "mean_difference"], site, StreamedFit(lr=0.02))
        for number, batch in enumerate(batches):
            if resume and number == len(batches) // 2:
                state = probes.state_dict()
                probes = StreamedProbes(LABELS, ["logistic", "mean_difference"], site, StreamedFit(lr=0.02))
                probes.load_state_dict(state)
            probes.step(batch)
        return probes

    straight, resumed = trained(False), trained(True)
    for kind, probe in straight.probes().items():
        assert torch.equal(probe.weight, resumed.probes()[kind].weight), kind
    acts, origin = batches[0].acts[site], batches[0].origin
    right = straight.probes()["logistic"].predict(acts) == LABELS.y[origin[:, 0]]
    assert right.double().mean() > 0.7 and straight.metrics()["entropy"] < 0.69
    straight.save(tmp_path)
    assert load(tmp_path / "logistic").training["streamed"] is True


def test_what_cannot_be_gathered_is_refused(model: HookedModel) -> None:
    with pytest.raises(InputError, match="unknown pooling 'first'"):
        PooledTexts(LABELS, SITES, model, pooling="first")
    with pytest.raises(InputError, match="need at least one site"):
        PooledTexts(LABELS, [], model)
    with pytest.raises(InputError, match="give one document each"):
        PooledTexts(LABELS, SITES, model, documents=torch.zeros(48, dtype=torch.int64))
    unread = PooledTexts(LABELS, SITES, model)
    unread.step(next(live(model)))
    other = PooledTexts(LABELS, SITES, model, documents=torch.arange(48) + 40)
    other.step(next(live(model)))
    with pytest.raises(InputError, match="40 of 48 texts gave no token to read, the first of them text 8"):
        other.gathered()
    with pytest.raises(InputError, match="unknown kind of probe on a stream 'mlp'"):
        StreamedProbes(LABELS, ["mlp"], model.site(SITES[0]))
    with pytest.raises(InputError, match="gave no row of class"):
        StreamedProbes(LABELS, ["ridge"], model.site(SITES[0])).probes()

"""`monosem sweep` and its library: the grid, one stream for all, one read to measure them, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monosem.lab.app.cli import main
from monosem.lab.app.dictionary_options import DictionaryOptions, own_fields
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.lab.models.sites import Site
from monosem.lab.runs.run import Run
from monosem.lab.storage import flatten
from monosem.lab.streams.activation_stream import ActivationStream
from monosem.lab.text.corpus import Corpus
from monosem.saes.architectures.clt.cross_layer import BASES
from monosem.saes.evaluation.evaluate import evaluate
from monosem.saes.evaluation.matched_l0 import pareto
from monosem.saes.files import load
from monosem.saes.place import Place
from monosem.saes.registry import build_trainable, trainable
from monosem.saes.sweeps.grid import Member, grid
from monosem.saes.sweeps.results import SweepResult
from monosem.saes.sweeps.sweep import held_bytes, member_trainer, plan, sweep
from monosem.saes.training.clt.trainer import CrossLayerTrainer
from monosem.saes.training.trainer import TrainConfig, Trainer
from tiny_commands import Ended, Tiny, results

Command = Callable[..., Ended]
SITE = "resid_post.1"
MEASURE = {"tokens": 600, "ce_tokens": 120, "fit_tokens": 300}
EVALUATION = ("--tokens=600", "--evaluation.ce-tokens=120", "--evaluation.fit-tokens=300")
ROWS = 640
WIDTHS = {Site.parse(SITE): 32}
PLACES = ["mlp_out.1", "resid_mid.1 -> mlp_out.1", "resid_mid.1 + resid_post.1",
          "resid_mid.0 + resid_mid.1 -> mlp_out.0 + mlp_out.1"]  # fmt: skip
"""An autoencoder, a transcoder, a crosscoder and a cross-layer transcoder."""
AXES = ("--architectures", "topk", "batchtopk", "jumprelu", "--n-latents", "64", "--k", "4", "8")


def command(tiny: Tiny, out: Path, *options: str) -> list[str]:
    sizes = ("--sites", SITE, f"--rows={ROWS}", *tiny.stream)
    return ["sweep", str(out), *tiny.source, *sizes, *AXES, *EVALUATION, *options]


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> HookedModel:
    torch.set_num_threads(1)
    return load_model(tiny.model, dtype="fp32", device="cpu")


def corpus(tiny: Tiny, model: HookedModel, split: str) -> Corpus:
    return Corpus(f"text:{tiny.text}", model.tokenizer, context=32, batch_rows=8, heldout=0.2, split=split)


def stream(tiny: Tiny, model: HookedModel, *sites: str) -> ActivationStream:
    return ActivationStream(model, corpus(tiny, model, "train"), sites or (SITE,), batch=64, buffer=512)


@pytest.fixture(scope="module")
def swept(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three architectures at two k, trained and measured by one command."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    assert main(command(tiny, folder)) == 0
    return folder


def test_everything_is_written(swept: Path) -> None:
    told = json.loads((swept / "results.json").read_text())
    names = [f"{kind}-{SITE}-n64-k{k}-seed0" for kind in ("topk", "batchtopk", "jumprelu") for k in (4, 8)]
    assert told["schema"] == 1 and [row["name"] for row in told["members"]] == names
    for row in told["members"]:
        dictionary = load(swept / row["dictionary"])
        assert dictionary.place.source.site == Site.parse(SITE) and dictionary.config.k == row["k"]
        assert row["fvu_low"] <= row["fvu"] <= row["fvu_high"] and row["fvu_null_pca"] > 0
        assert 0.5 < row["l0"] / row["k"] < 2 and "held-out" in told["held_out"]
        beside = json.loads((swept / row["dictionary"] / "evaluation.json").read_text())
        assert beside["fvu"] == row["fvu"]
    with open(swept / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["ce_recovered_zero"]) for line in lines] == [r["ce_recovered_zero"] for r in told["members"]]
    chosen = pareto([row["l0"] for row in told["members"]], [row["fvu"] for row in told["members"]])
    assert told["pareto"][SITE]["fvu"] == [names[i] for i in chosen]
    manifest = Run.open(swept).manifest
    assert manifest is not None and manifest["rows"] == ROWS and manifest["dictionaries"] == sorted(names)


def test_the_page_needs_no_network_and_shows_every_member(swept: Path, look: Callable[[Path], None]) -> None:
    look(swept / "pareto.html")
    page = (swept / "pareto.html").read_text()
    start = page.index('id="data">') + len('id="data">')
    data = json.loads(page[start : page.index("</script>", start)])
    rows = data["results"]["members"]
    assert len(data["figures"]) == 5 and "src=" not in page[:start] and "default-src 'none'" in page
    for figure, score in zip(data["figures"].values(), ("fvu", "ce_recovered_zero"), strict=False):
        traces = {trace["name"]: trace for trace in figure["data"]}
        assert {"Pareto front", "topk", "batchtopk", "jumprelu", "null: untrained", "null: PCA"} <= traces.keys()
        for kind in ("topk", "batchtopk", "jumprelu"):
            mine = [row for row in rows if row["architecture"] == kind]
            assert sorted(zip(traces[kind]["x"], traces[kind]["y"], strict=True)) == sorted(
                (row["l0"], row[score]) for row in mine
            )
            highs = [y + up for y, up in zip(traces[kind]["y"], traces[kind]["error_y"]["array"], strict=True)]
            assert sorted(highs) == pytest.approx(sorted(row[f"{score}_high"] for row in mine))
    for figure, score in zip(list(data["figures"].values())[2:], ("fvu", "l0", "dead"), strict=True):
        for trace, row in zip(figure["data"], rows, strict=True):
            lines = Run.open(swept).metrics(row["name"])
            assert (trace["name"], trace["x"]) == (row["name"], [line["rows"] for line in lines])
            assert trace["y"] == [line[score] for line in lines] and trace["y"][-1] == row[f"train_{score}"]
    assert all(f">{row['name']}</th>" in page for row in rows)


def test_the_course_of_a_member_ends_with_its_rows(tmp_path: Path) -> None:
    """A loop that goes on for others logs those that are done, too, with empty sums."""
    short, long = (Member("topk", SITE, 64, k, training=TrainConfig(rows=rows)) for k, rows in ((4, 100), (8, 300)))
    run = Run.create(tmp_path / "run")
    for step, rows in enumerate((64, 128, 192, 256, 320)):
        for member in (short, long):
            fvu = 0.0 if rows > member.training.rows + 64 else 1 / rows
            run.log({"step": step, "rows": rows, "consumer": member.name, "fvu": fvu, "l0": 4.0, "dead": 0.0})
    result = SweepResult((short, long), run)
    assert [row["train_fvu"] for row in result.table()] == [1 / 128, 1 / 320]
    figure = result.plot_training("fvu")
    assert [list(trace["x"]) for trace in figure.data] == [[64, 128], [64, 128, 192, 256, 320]]
    with pytest.raises(InputError, match="unknown training metric 'ce'"):
        result.plot_training("ce")


def test_a_shared_read_gives_the_numbers_of_one_alone(tiny: Tiny, model: HookedModel, swept: Path) -> None:
    """Every score, interval, null and count, to the last bit, at the cost of one clean and two ablated passes."""
    members = grid(TrainConfig(rows=ROWS), site=SITE, architecture=["topk", "jumprelu"], n_latents=64, k=[4, 8])
    before = model.forwards
    result = SweepResult(tuple(members), Run.open(swept))
    result = result.evaluate(model, corpus(tiny, model, "heldout"), progress=False, **MEASURE)
    shared, alone = model.forwards - before, 0
    for member in members[::3]:
        before = model.forwards
        one = evaluate(model, corpus(tiny, model, "heldout"), result.dictionary(member.name), progress=False, **MEASURE)
        alone = model.forwards - before
        assert one.to_json() == result.evaluations[member.name].to_json()
    assert shared < len(members) * alone * 0.75


def test_one_forward_feeds_all_and_passes_change_nothing(tiny: Tiny, model: HookedModel, swept: Path, tmp_path: Path):
    members = grid(TrainConfig(rows=ROWS), site=SITE, architecture=["topk", "jumprelu"], n_latents=64, k=[4, 8])
    before = model.forwards
    sweep(stream(tiny, model), members, Run.create(tmp_path / "one"), progress=False)
    once = model.forwards - before
    before = model.forwards
    split = sweep(lambda: stream(tiny, model), members, Run.create(tmp_path / "two"), at_once=3, progress=False)
    assert model.forwards - before == 2 * once
    for member in members:
        of = [load(folder / "dictionaries" / member.name).tensors() for folder in (tmp_path / "one", tmp_path / "two")]
        assert all(torch.equal(of[0][name], of[1][name]) for name in of[0])
        assert all(torch.equal(of[0][name], t) for name, t in split.dictionary(member.name).tensors().items())
        assert all(
            torch.equal(of[0][name], t) for name, t in load(swept / "dictionaries" / member.name).tensors().items()
        )
    assert split.table()[3]["train_fvu"] < 1 and split.run.manifest is not None and split.run.manifest["passes"] == 2
    with pytest.raises(InputError, match="give a function that opens it"):
        sweep(stream(tiny, model), members, Run.create(tmp_path / "no"), at_once=3)
    other = [*members[:-1], Member("topk", SITE, 32, 4, training=TrainConfig(rows=ROWS))]
    with pytest.raises(InputError, match="resume with the same value"):
        sweep(lambda: stream(tiny, model), other, Run.create(tmp_path / "two", resume=True), at_once=3)


def test_a_killed_sweep_goes_on_to_the_same_bytes(tiny: Tiny, swept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    arguments = command(tiny, folder, "--checkpoint-minutes=1e-6", "--no-evaluate")
    told = tmp_path / "told.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with open(told, "w") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "monosem.lab.app.cli", *arguments], stdout=file, stderr=file, env=environment
        )
    deadline = time.monotonic() + 240
    while not list(folder.glob("checkpoints/00000000[2-7]")):
        assert child.poll() is None and time.monotonic() < deadline, told.read_text()[-2000:]
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert Run.open(folder).manifest is None
    assert main([*arguments, "--resume"]) == 0
    ours, theirs = results(folder), results(swept)
    theirs = {name: content for name, content in theirs.items() if not name.endswith("evaluation.json")}
    assert ours == theirs and len(ours) == 15


def held(trainer: Trainer | CrossLayerTrainer) -> int:
    return sum(tensor.nbytes for tensor in flatten(trainer.state_dict())[0].values())


def test_the_estimate_is_what_trainers_hold(tiny: Tiny, model: HookedModel) -> None:
    for architecture in trainable():
        member = Member(architecture, SITE, 64, 4, training=TrainConfig(precision="fp32"))
        trainer = Trainer(build_trainable(d_in=32, **member.config), Site.parse(SITE), member.training)
        assert held_bytes(member, WIDTHS) == held(trainer)
    opened = stream(tiny, model, *PLACES[:1], "resid_mid.0", "resid_mid.1", "resid_post.1", "mlp_out.0", "mlp_out.1")
    for member in grid(TrainConfig(precision="fp32"), site=PLACES, n_latents=64, k=4, skip=[False, True]):
        assert held_bytes(member, opened.widths) == held(member_trainer(opened, member))
    members = grid(site=SITE, n_latents=64, k=[1, 2, 3, 4])
    opened = stream(tiny, model)
    needs = {at_once: least(opened, members, at_once) for at_once in (1, 2, 4)}
    one = held_bytes(members[0], WIDTHS)
    assert needs[2] - needs[1] == pytest.approx(one / 0.9, abs=10) and needs[4] > needs[2] > needs[1]
    with pytest.raises(InputError, match=r"4 dictionaries at once take [\d.]+ GB .* \(--at-once 3\)"):
        plan(opened, members, available=needs[4] - 1)
    with pytest.raises(InputError, match="give fewer or smaller dictionaries"):
        plan(opened, members, available=1)


def least(opened: ActivationStream, members: list[Member], at_once: int) -> int:
    """The fewest bytes with which that many at once are not refused."""
    low, high = 0, 1 << 32
    while high - low > 1:
        middle = (low + high) // 2
        try:
            assert len(plan(opened, members, at_once, available=middle)) == len(members) // at_once
            high = middle
        except InputError:
            low = middle
    return high


def test_seeds_stand_beside_their_noise(tiny: Tiny, model: HookedModel, tmp_path: Path) -> None:
    axes = {"site": SITE, "architecture": ["topk", "batchtopk"], "n_latents": 64, "k": 4, "seed": [0, 1]}
    result = sweep(stream(tiny, model), grid(TrainConfig(rows=256), **axes), Run.create(tmp_path / "r"), progress=False)
    with pytest.raises(InputError, match="call evaluate"):
        result.pareto()
    assert "FVU in training" in repr(result)
    result = result.evaluate(model, corpus(tiny, model, "heldout"), progress=False, **MEASURE)
    fvu = [result.evaluations[member.name]["fvu"].value for member in result.members]
    first, second = result.recipes()
    assert first["fvu"] == pytest.approx((fvu[0] + fvu[1]) / 2) and first["seeds"] == 2
    assert first["fvu_noise"] == pytest.approx(abs(fvu[0] - fvu[1]))  # of two values, sqrt(2) sd is their difference
    gap = next(gap for gap in result.gaps() if gap["score"] == "fvu")
    assert gap["difference"] == pytest.approx(first["fvu"] - second["fvu"]) and gap["seeds"] == (2, 2)
    assert result._repr_html_().count("<tr>") == 6 and "nulls of FVU" in repr(result)
    assert len(result.plot("ce_recovered_zero").data) >= 4


def test_every_kind_of_dictionary_in_one_sweep(
    tiny: Tiny, monosem: Command, tmp_path: Path, look: Callable[[Path], None]
) -> None:
    options = ("--sites", *PLACES, "--architectures", "topk", "--k", "4", "--rows=320", "--json")
    ended = monosem(*command(tiny, tmp_path / "all", *options, "--skip", "False", "True"))
    assert ended.status == 0, ended.err
    rows = {(row["kind"], row.get("skip", False)): row for row in ended.result["members"]}
    kinds = ("sae", "transcoder", "crosscoder", "clt")
    assert rows.keys() == {(kind, False) for kind in kinds} | {("transcoder", True), ("clt", True)}
    for (kind, skip), row in rows.items():
        assert 0 < row["fvu"] < 1.5 and row["fvu_low"] <= row["fvu"] <= row["fvu_high"] and row["l0"] > 0
        assert (row.get("ce_recovered_zero") is None) == (kind == "crosscoder")
        nulls = {"sae": "pca", "crosscoder": "pca", "transcoder": "linear", "clt": "own_layer"}
        assert row[f"fvu_null_{nulls[kind]}"] > 0
        assert load(tmp_path / "all" / row["dictionary"]).config.skip == skip
    outputs = ["mlp_out.1", "resid_mid.1 + resid_post.1", "mlp_out.0 + mlp_out.1"]
    assert list(ended.result["pareto"]) == outputs
    one_output = {row["name"] for (kind, _), row in rows.items() if kind in ("sae", "transcoder")}
    assert set(ended.result["pareto"]["mlp_out.1"]["fvu"]) <= one_output
    assert set(ended.result["pareto"][outputs[1]]) == {"fvu"}
    look(tmp_path / "all" / "pareto.html")
    page = (tmp_path / "all" / "pareto.html").read_text()
    start = page.index('id="data">') + len('id="data">')
    figures = list(json.loads(page[start : page.index("</script>", start)])["figures"].values())
    assert len(figures) == 10 and len(figures[0]["data"]) == len(rows) and len(figures[1]["data"]) == len(rows) - 1
    shared = {trace["name"] for trace in figures[2]["data"]}
    assert {"topk", "topk transcoder", "topk transcoder with skip", "null: linear", "Pareto front"} <= shared


def test_a_place_says_what_is_read_and_predicted() -> None:
    for text, kind, output in (
        ("blocks.1.hook_resid_post", "sae", SITE),
        ("resid_mid.1->mlp_out.1", "transcoder", "mlp_out.1"),
        ("resid_post.0+resid_post.2", "crosscoder", "resid_post.0 + resid_post.2"),
        ("resid_mid.4-7 -> mlp_out.4-7", "clt", "mlp_out.4-7"),
        ("path:model.layers.0-1 -> mlp_out.1", "transcoder", "mlp_out.1"),
    ):
        place = Place.parse(text)
        assert (place.kind, place.output) == (kind, output) and Place.parse(str(place)) == place
    assert len(Place.parse("resid_mid.4-7 -> mlp_out.4-7").sites) == 8
    assert {m.architecture for m in grid(site=PLACES[3], architecture="all", n_latents=64, k=4)} == set(BASES)
    across = grid(site=[SITE, PLACES[1]], architecture="all", n_latents=64, k=4, skip=True)
    assert len(across) == 2 * len(trainable()) - 1 and sum(member.own.get("skip", False) for member in across) == 8
    for text, match in {
        "": "is no place", "resid_mid.1 ->": "is no place", "resid_mid.3-1": "a range of layers rises",
        "resid_mid.1 -> resid_mid.1": "both read and predicted", "resid_pots.1 -> mlp_out.1": "did you mean 'resid_p",
        "resid_mid.0-1 -> mlp_out.1": "one site for each that it reads, got 1 for 2", "z.1 + z.1": "names a site twice",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=match):
            Place.parse(text)
    with pytest.raises(InputError, match="base of a cross-layer transcoder 'gated'"):
        Member("gated", PLACES[3])


def test_a_grid_is_every_combination() -> None:
    axes = {"training.aux_k": [0, 8], "penalty": ["tanh", "step"]}
    members = grid(site="blocks.1.hook_resid_post", architecture="jumprelu", n_latents=64, k=[2, 4], lr=1e-3, **axes)
    assert len({member.name for member in members}) == 8 and {member.site for member in members} == {SITE}
    first = members[0]
    assert first.name == f"jumprelu-{SITE}-n64-k2-penalty=tanh-aux_k=0-lr=0.001-seed0"
    assert (first.training.aux_k, first.training.lr, first.own) == (0, 1e-3, {"penalty": "tanh"})
    prefixes = grid(site=SITE, architecture="matryoshka", n_latents=64, k=4, prefixes=[[8, 64], [16, 32, 64]])
    assert [member.own["prefixes"] for member in prefixes] == [(8, 64), (16, 32, 64)]
    assert len(grid(site=SITE, architecture="all", n_latents=64, k=4)) == len(trainable())
    for wrong, match in {"penalty": "unknown topk config field 'penalty'", "training.auxk": "'aux_k'"}.items():
        with pytest.raises(InputError, match=match):
            grid(site=SITE, n_latents=64, k=4, **{wrong: "tanh"})


FILES = {
    "good.toml": "[[grid]]\narchitecture = 'jumprelu'\npenalty = ['tanh', 'step']\n[[grid]]\ntraining.aux_k = [0, 8]\n",
    "good.json": '{"grid": [{"architecture": "jumprelu", "penalty": ["tanh", "step"]}, {"training.aux_k": [0, 8]}]}',
    "broken.toml": "grid = ",
    "empty.json": "[]",
    "name.json": '{"penaltyy": "tanh"}',
}
BAD = {
    "architecture": ("--architectures=topkk", "unknown architecture 'topkk': did you mean 'topk'"),
    "k": ("--k=65", "k must be from 1 to n_latents=64, got 65"),
    "no k": ("--k", "the axis k has no values"),
    "twice": ("--seeds=0,0", "is in the sweep twice"),
    "site": ("--sites=resid_pots.1", "unknown site 'resid_pots.1'"),
    "layer": ("--sites=resid_post.7", "resid_post.7 is outside"),
    "order": ("--sites=resid_post.1 -> resid_mid.1", "must read an earlier site than resid_mid.1"),
    "null": ("--evaluation.spliced=pcaa", "unknown null to splice 'pcaa': did you mean 'pca'"),
    "at once": ("--at-once=0", "at_once must be at least 1, got 0"),
    "memory": ("--n-latents=90000000000", "GB are available", "fewer or smaller dictionaries"),
    "minutes": ("--checkpoint-minutes=-1", "checkpoint_minutes must be above 0, got -1"),
    "no file": ("--grid={tmp}/none.toml", "no such grid file"),
    "file kind": ("--grid={tmp}", "ends in .json or .toml"),
    "file content": ("--grid={tmp}/broken.toml", "not valid TOML"),
    "empty file": ("--grid={tmp}/empty.json", "holds no grid"),
    "file name": ("--grid={tmp}/name.json", "unknown axis in", "'penaltyy': did you mean 'penalty'"),
    "store": ("--store={tmp}", "holds no activation store"),
}


@pytest.mark.parametrize("option", BAD)
def test_bad_options_leave_nothing_behind(option: str, tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    given, *parts = BAD[option]
    flag, _, value = given.format(tmp=tmp_path).partition("=")
    ended = monosem(*command(tiny, tmp_path / "sweep", flag, *value.split(",") if value else ()))
    assert (ended.status, ended.out) == (2, "") and "Traceback" not in ended.err
    assert all(part in ended.err.splitlines()[-1] for part in ("monosem: ", *parts)), ended.err
    assert not (tmp_path / "sweep").exists()


def test_a_grid_file_trains_from_a_store(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    harvest = ("harvest", tmp_path / "store", *tiny.source, *tiny.stream, "--sites", SITE, "--rows=1000")
    assert monosem(*harvest).status == 0
    one_k = ("--architectures", "topk", "--k", "4", "--store", str(tmp_path / "store"), "--model=none", "--no-evaluate")
    found = [
        monosem(*command(tiny, tmp_path / kind, *one_k, f"--grid={tmp_path}/good.{kind}", "--json"))
        for kind in ("toml", "json")
    ]
    assert [ended.status for ended in found] == [0, 0] and len(found[0].out.splitlines()) == 1
    page = Path(found[0].result["page"]).read_text()  # without an evaluation: the course of training, and the table
    assert "Against L0" not in page and "share of latents that are dead" in page
    rows = [[(row["name"], row["train_fvu"]) for row in ended.result["members"]] for ended in found]
    assert rows[0] == rows[1] and len(rows[0]) == 4 and rows[0][0][0] == f"jumprelu-{SITE}-n64-k4-penalty=tanh-seed0"


def test_every_architecture_brings_its_own_options(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    fields = own_fields()
    assert "jumprelu" in fields["penalty"] and "matryoshka" in fields["prefixes"] and "d_in" not in fields
    assert DictionaryOptions("jumprelu", 64, 4, penalty="tanh").given() == {
        "architecture": "jumprelu", "n_latents": 64, "k": 4, "penalty": "tanh"}  # fmt: skip
    options = ("--dictionary.architecture", "jumprelu", "--dictionary.penalty", "tanh", "--rows=128", "--json")
    (folder,) = monosem(*tiny.train(tmp_path / "run", *options)).result["dictionaries"].values()
    assert load(folder).config.penalty == "tanh"  # type: ignore[attr-defined]
    for given, told in {
        ("--dictionary.penalty", "tanh"): "architecture 'topk' has no option 'penalty' (that is for jumprelu)",
        ("--architecture", "relu", "--dictionary.p-end", "2"): "p_end must be above 0",
        ("--architecture", "jumprelu", "--dictionary.penalty", "tan"): "did you mean 'tanh'",
        ("--dictionary.penaltyy", "tanh"): "did you mean --dictionary.penalty",
    }.items():
        ended = monosem(*tiny.train(tmp_path / "no", *given))
        assert ended.status == 2 and told in ended.err.splitlines()[-1] and not (tmp_path / "no").exists()


def test_transcoders_and_crosscoders_from_the_command_line(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    few = ("--rows=128", "--json")
    sites = ("--sites", "resid_mid.1", "--target", "mlp_out.1", "--skip")
    (folder,) = monosem(*tiny.train(tmp_path / "across", *sites, *few)).result["dictionaries"].values()
    across = load(folder)
    assert (across.place.site, across.place.target, across.config.skip) == (
        Site.parse("resid_mid.1"),
        Site.parse("mlp_out.1"),
        True,
    )
    sites = ("--sites", "resid_post.0", "resid_post.1", "--crosscode")
    (folder,) = monosem(*tiny.train(tmp_path / "both", *sites, *few)).result["dictionaries"].values()
    assert str(load(folder).place) == "resid_post.0 + resid_post.1" and load(folder).d_in == 64
    for given, told in {
        ("--target", SITE): "is among the sites",
        ("--skip",): "--skip is for transcoders",
        ("--crosscode",): "reads at least two sites",
        (*sites, "--target", "mlp_out.1"): "give --target or --crosscode, not both",
    }.items():
        ended = monosem(*tiny.train(tmp_path / "no", *given))
        assert ended.status == 2 and told in ended.err.splitlines()[-1] and not (tmp_path / "no").exists()

"""`monosem sparsity`: tables, page and decisions from the tiny model, and what is refused without a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from monosem.interventions.pruning.activation_sparsity.decision import SparsityDecision
from monosem.lab.app.cli import main
from tiny_commands import Ended, Tiny

Command = Callable[..., Ended]
SIZES = ("--passages=4", "--calibration=2", "--no-embeddings", "--curves.sparsities", "0.5", "--curves.shares", "0.5",
         "--curves.oracle-tokens=8", "--cores.ahead=4")  # fmt: skip


def command(tiny: Tiny, out: Path, *options: object) -> list[str]:
    chosen = ("--text.context=24", "--text.heldout=0.5", "--layers", "0", "2")
    return ["sparsity", str(out), *tiny.source, *chosen, *SIZES, *map(str, options)]


@pytest.fixture(scope="module")
def reported(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sparsity") / "report"
    assert main(command(tiny, folder)) == 0
    return folder


def test_everything_is_written_beside_its_nulls(reported: Path) -> None:
    told = json.loads((reported / "report.json").read_text())
    assert len({point["module"] for point in told["points"]}) == 14 and told["passages"] == 4
    assert {point["criterion"] for point in told["points"]} == {"abs", "abs_norm", "low_rank", "random", "oracle"}
    assert all(any(key.startswith("rel_error_null_") for key in point) for point in told["points"])
    assert set(told["losses"]) == {"layer 0", "layer 2", "all"}
    assert all("delta_ce_null_random" in one for found in told["losses"].values() for one in found.values())
    assert [one["layer"] for one in told["cores"]] == [0, 2]
    assert all(f"recall_null_{null}" in one for one in told["cores"] for null in ("global", "random"))
    decisions = [SparsityDecision.load(path) for path in sorted((reported / "decisions").iterdir())]
    assert [(one.layer, one.granularity) for one in decisions] == [
        (layer, granularity) for layer in (0, 2) for granularity in ("global", "sentence", "token")
    ]
    assert all(one.about["context"] == 24 for one in decisions)


def test_the_page_needs_no_network(reported: Path, look: Callable[[Path], None]) -> None:
    look(reported / "sparsity.html")
    page = (reported / "sparsity.html").read_text()
    start = page.index('id="data">') + len('id="data">')
    data = json.loads(page[start : page.index("</script>", start)])
    assert len(data["figures"]) == 15 and "src=" not in page[:start] and "default-src 'none'" in page
    assert '<th scope="row">2.mlp.down_proj</th>' in page and '<th scope="row">recall</th>' in page


BAD = {
    "layer": (("--layers", "7"), "mlp_out.7 is outside"),
    "map": (("--maps", "mlp.down"), "unknown linear module of layer 0 'mlp.down'"),
    "too few": (("--passages", "900"), "documents of at least 24 tokens, and 902 are needed"),
    "passages": (("--passages", "1"), "passages must be at least 2, got 1"),
    "decision": (("--curves.decide-at", "0.3"), "decide_at=0.3 must be one of sparsities"),
    "magnitude": (("--cores.magnitude", "abss"), "unknown magnitude 'abss': did you mean 'abs'"),
    "prompt": (("--cores.ahead", "40"), "prompts longer than ahead=40"),
    "nothing": (("--no-rsparse", "--no-coreinfer"), "there is nothing to measure"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(name: str, tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    options, told = BAD[name]
    ended = monosem(*command(tiny, tmp_path / "out", *options))
    assert (ended.status, ended.out) == (2, "") and "Traceback" not in ended.err
    assert told in ended.err.splitlines()[-1] and not (tmp_path / "out").exists()


def test_a_report_is_not_written_over(reported: Path, tiny: Tiny, monosem: Command) -> None:
    before = (reported / "report.json").read_bytes()
    ended = monosem(*command(tiny, reported))
    assert ended.status == 2 and "already holds a report" in ended.err
    assert (reported / "report.json").read_bytes() == before

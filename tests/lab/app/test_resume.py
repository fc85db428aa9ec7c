"""`monosem train` killed, interrupted and resumed ends in the bytes of a run that nothing happened to."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from monosem.lab.app.cli import main
from monosem.lab.models.loading import load_model
from monosem.lab.runs.run import Run
from tiny_commands import Ended, Tiny, results

Command = Callable[..., Ended]
STEPS, KILLS = 400, 4
SIZES = (f"--rows={32 * STEPS}", "--log-every=7", "--stream.batch=32", "--stream.buffer=256")
OFTEN = "--checkpoint-minutes=0.0003"
"""A checkpoint about every 20 ms, and no two processes have them at the same steps."""


def train(tiny: Tiny, out: Path, *options: str) -> list[str]:
    return tiny.train(out, *SIZES, *options)


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(train(tiny, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def stopped(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs that were stopped in processes of their own, as `stop` below does it."""
    folder = tmp_path_factory.mktemp("stopped")
    command = [sys.executable, __file__, str(tiny.model), str(tiny.text), str(folder)]
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_killed_again_and_again(stopped: Path, whole: Path) -> None:
    told = json.loads((stopped / "killed.json").read_text())
    assert told["half_written"] >= 1 and told["steps"] == sorted(set(told["steps"])) and len(told["steps"]) == KILLS
    assert results(stopped / "killed") == results(whole)
    assert not list((stopped / "killed").rglob("*.tmp"))


def test_interrupted_and_resumed(tiny: Tiny, stopped: Path, whole: Path, monosem: Command) -> None:
    told = json.loads((stopped / "interrupted.json").read_text())
    assert told["status"] == 130 and 0 < told["step"] < STEPS
    last = (stopped / "interrupted.txt").read_text().splitlines()[-1]
    assert last == f"monosem: stopped; {stopped / 'interrupted'} can be continued: resume it (--resume)"
    run = Run.open(stopped / "interrupted")
    assert run.manifest is None and not run.dictionaries
    assert monosem(*train(tiny, run.folder, "--resume")).status == 0
    assert results(run.folder) == results(whole)


def test_the_same_seeds_give_the_same_bytes_and_others_do_not(
    tiny: Tiny, whole: Path, tmp_path: Path, monosem: Command
) -> None:
    expected = results(whole)
    assert len(expected) == 5 and all(expected.values())
    for name, options, same in (
        ("again", ["--stream.prefetch=2", OFTEN], True),
        ("training", ["--training.seed=1"], False),
        ("stream", ["--stream.seed=1"], False),
    ):
        assert monosem(*train(tiny, tmp_path / name, *options)).status == 0
        found = results(tmp_path / name)
        assert found.keys() == expected.keys()
        weights, metrics = (next(key for key in expected if key.endswith(end)) for end in ("safetensors", "jsonl"))
        assert (found == expected) == same
        assert (found[weights] == expected[weights]) == (found[metrics] == expected[metrics]) == same


def started(arguments: Iterable[str], told: Path) -> int:
    """`monosem` in a fork of this process, which has imported everything already."""
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os._exit(main(list(arguments)))
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def newest(run: Path) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    return max((int(path.name) for path in run.glob("checkpoints/[0-9]*")), default=0)


def kill(tiny: Tiny, run: Path, told: Path) -> dict[str, object]:
    """SIGKILL at random steps, every other time as soon as a checkpoint is half written; then to the end."""
    chance, half_written, steps = random.Random(0), 0, [0]
    for attempt in range(KILLS):
        child = started(train(tiny, run, "--resume", OFTEN), told)
        goal = steps[-1] + chance.randint(5, 30)
        while newest(run) < goal or (attempt % 2 and not list(run.glob("checkpoints/.*.tmp"))):
            time.sleep(0.0005)
            assert os.waitpid(child, os.WNOHANG) == (0, 0), told.read_text()[-2000:]
        time.sleep(0 if attempt % 2 else chance.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        half_written += any(run.glob("checkpoints/.*.tmp"))
        steps.append(newest(run))
    assert ended(started(train(tiny, run, "--resume", OFTEN), told)) == 0, told.read_text()[-2000:]
    return {"half_written": half_written, "steps": steps[1:]}


def interrupt(tiny: Tiny, run: Path, told: Path) -> dict[str, object]:
    """Ctrl-C once, in the middle; the only checkpoint is the one it leads to."""
    child = started(train(tiny, run), told)
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < 10:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), told.read_text()[-2000:]
    os.kill(child, signal.SIGINT)
    return {"status": ended(child), "step": newest(run)}


def stop(tiny: Tiny, folder: Path) -> None:
    torch.set_num_threads(1)
    load_model(tiny.model)  # imports what every child would import
    for name, way in (("killed", kill), ("interrupted", interrupt)):
        told = way(tiny, folder / name, folder / f"{name}.txt")
        (folder / f"{name}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    stop(Tiny(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]))

"""The check before a GPU is first trained on: one wrong kernel gives way, once, with a warning and a manifest line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from monosem.kernels import dispatch, first_check
from monosem.kernels.decode import decode_residual, residual_reference
from monosem.lab.app.cli import main
from monosem.lab.runs import first_run
from monosem.lab.runs.run import Run

pytest.importorskip("triton")

CPU = torch.device("cpu")
SHAPE = first_check.Shape(6, 17, 2, 3)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """CPU tensors are served by Triton, in its interpreter; the list has an entry for every check that ran."""
    checks: list[int] = []
    original = first_check.failures

    def counted(device: torch.device, backend: dispatch.Backend) -> dict[str, str]:
        checks.append(1)
        return original(device, backend, SHAPE)

    monkeypatch.setattr(dispatch, "_backend", lambda device: ("triton", "a GPU that is none"))
    monkeypatch.setattr(dispatch, "_refused", {})
    monkeypatch.setattr(first_run, "_checked", {})
    monkeypatch.setattr(first_run, "failures", counted)
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "cache"))
    return checks


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel of `decode_residual` is off by a thousandth in one entry."""
    from monosem.kernels.gpu import decode

    original = decode.decode_residual
    monkeypatch.setattr(first_check, "HOMES", ("decode", "decode_residual"))

    def perturbed(*arguments):
        out = original(*arguments)
        out.grads[1] += 0.001 * out.grads.norm()
        return out

    monkeypatch.setattr(decode, "decode_residual", perturbed)


def test_right_kernels_pass_on_the_cpu_and_in_the_interpreter(fake_gpu: list[int]) -> None:
    assert first_check.failures(CPU, "compiled", SHAPE) == {}
    assert first_run.check_first(CPU) == {}
    assert first_run.kernel_record() == {"kernels": {"cpu": {"reference": {}}}}


def test_one_wrong_kernel_gives_way(fake_gpu, wrong, monkeypatch, caplog, tmp_path) -> None:
    with caplog.at_level(logging.WARNING):
        found = first_run.check_first(CPU)
        first_run.check_first(CPU)
    assert list(found) == ["decode_residual"] and "is off by" in found["decode_residual"]
    assert [record.levelname for record in caplog.records] == ["WARNING"], "one warning"
    assert [name for name in dispatch.HOMES if dispatch.backend(CPU, name) == "reference"] == ["decode_residual"]
    arguments = first_check.cases(SHAPE)["decode_residual"].arguments()
    got = decode_residual(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(got, residual_reference(*arguments), strict=True))

    run = Run.create(tmp_path / "run", {}, {})
    run.finish()
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["kernels"] == {"cpu": {"reference": found}}

    monkeypatch.setattr(first_run, "_checked", {})  # the next process
    monkeypatch.setattr(dispatch, "_refused", {})
    assert first_run.check_first(CPU) == found and fake_gpu == [1], "the kept result is read, not made again"


def test_strict_raises(fake_gpu, wrong, monkeypatch) -> None:
    monkeypatch.setenv(dispatch.STRICT, "1")
    with pytest.raises(RuntimeError, match="decode_residual fails on cpu"):
        first_run.check_first(CPU)


def test_training_checks_by_itself(fake_gpu, monkeypatch) -> None:
    from monosem.lab.models.sites import Site
    from monosem.saes.registry import build
    from monosem.saes.training.trainer import TrainConfig, Trainer

    monkeypatch.setattr(first_run, "failures", lambda device, backend: fake_gpu.append(2) or {})
    for _ in range(2):
        dictionary = build("topk", d_in=4, n_latents=8, k=2)
        Trainer(dictionary, Site.parse("resid_post.0"), TrainConfig(rows=100, precision="fp32"))
    assert fake_gpu == [2]


def test_a_result_of_other_source_or_half_a_file_is_not_taken(fake_gpu, monkeypatch, tmp_path) -> None:
    folder = tmp_path / "cache" / "kernels"
    folder.mkdir(parents=True)
    (folder / f"{first_run._key(CPU)}.json").write_text('{"failures": ')
    monkeypatch.setattr(first_check, "HOMES", ("decode",))
    assert first_run.check_first(CPU) == {} and fake_gpu == [1]


def test_doctor_tells_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] == "compiled" and told["failed"] == {} and told["checked"] and "numba" in told["versions"]


def test_doctor_names_the_wrong_kernel(fake_gpu, wrong, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cpu"]) == 3
    told = capsys.readouterr()
    assert "decode_residual FAILED" in told.out and "decode_residual fails on cpu" in told.err

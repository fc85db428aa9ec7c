"""Kernels that cannot be built give way to references, device by device; old GPUs and second devices are served."""

from __future__ import annotations

import logging
import subprocess
from contextlib import contextmanager

import pytest
import torch
from monosem.kernels import chunks, code_gradients, decode, dispatch, update
from monosem.kernels.dispatch import choose, has_bf16, kernel, refusals, using
from monosem.lab.models.loading import default_dtype
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

CPU = torch.device("cpu")


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors are served by Triton, in its interpreter, as those of a GPU are."""
    monkeypatch.setattr(dispatch, "_backend", lambda device: ("triton", "a GPU that is none"))
    monkeypatch.setattr(dispatch, "_refused", {})


def codes(batch: int = 6, n: int = 40, d: int = 10, k: int = 3) -> tuple:
    g = torch.Generator().manual_seed(0)
    columns = torch.stack([torch.randperm(n, generator=g)[:k].sort().values for _ in range(batch)]).int()
    W = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)
    indptr = torch.arange(0, batch * k + 1, k)
    return (indptr, columns.flatten(), torch.rand(batch * k, generator=g) + 0.1), W, torch.randn(batch, d, generator=g)


def out_of_resources() -> Exception:
    from triton.runtime.errors import OutOfResources

    return OutOfResources(131072, 101376, "shared memory")


BUILD_ERRORS = {
    "shared memory": out_of_resources,
    "no compiler": lambda: RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
    "compiler fails": lambda: subprocess.CalledProcessError(1, ["gcc"]),
}


@pytest.mark.parametrize("kind", BUILD_ERRORS)
def test_a_kernel_that_cannot_be_built_gives_way_to_its_reference(fake_gpu, monkeypatch, caplog, kind):
    (indptr, indices, values), W, x = codes()
    calls = []

    def broken(*arguments):
        calls.append(1)
        raise BUILD_ERRORS[kind]()

    monkeypatch.setattr("monosem.kernels.gpu.decode.decode_residual", broken)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            got = decode.decode_residual(indptr, indices, values, W, x[0], x, 3)
    expected = decode.residual_reference(indptr, indices, values, W, x[0], x, 3)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert len(calls) == 1, "a refused kernel is not tried again"
    assert sum("decode_residual" in record.message for record in caplog.records) == 1
    assert list(refusals(CPU)) == ["decode_residual"]
    assert dispatch.backend(CPU, "decode") == "triton", "other operations keep their kernel"


def test_other_errors_are_not_hidden(fake_gpu, monkeypatch):
    def bad_input(*arguments):
        raise ValueError("k must be positive")

    monkeypatch.setattr("monosem.kernels.gpu.kth.kth_largest", bad_input)
    with pytest.raises(ValueError, match="k must be positive"):
        kernel("kth_largest", CPU, lambda *a: None)(torch.ones(3), 1)
    assert not refusals(CPU)


def test_strict_and_a_forced_backend_raise(fake_gpu, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr("monosem.kernels.gpu.kth.kth_largest", broken)
    run = kernel("kth_largest", CPU, lambda *a: None)
    with using("triton"), pytest.raises(RuntimeError, match="C compiler"):
        run(torch.ones(3), 1)
    monkeypatch.setenv(dispatch.STRICT, "1")
    with pytest.raises(RuntimeError, match="kernel of kth_largest fails on cpu"):
        run(torch.ones(3), 1)
    assert not refusals(CPU)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine that says it has GPUs; the list holds the device that is the current one, outermost first."""
    current = ["cuda:0"]

    @contextmanager
    def device(place):
        current.append(str(place))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place=None: (9, 0))
    monkeypatch.setattr(dispatch, "_refused", {})
    dispatch._unusable.cache_clear()
    yield current
    dispatch._unusable.cache_clear()


def test_a_device_without_a_compiler_runs_plain_pytorch(fake_cuda, monkeypatch, caplog):
    probes = []

    def probe(device):
        probes.append(fake_cuda[-1])
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr("monosem.kernels.gpu.probe.probe", probe)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            choice = choose(torch.device("cuda", 1))
    assert choice.step == "reference" and "C compiler" in choice.why
    assert probes == ["cuda:1"], "asked once, on the device itself"
    assert len(caplog.records) == 1


def test_the_probe_adds_one():
    from monosem.kernels.gpu.probe import probe

    probe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.mark.parametrize("operation", dispatch.HOMES)
def test_every_kernel_runs_with_its_own_device_as_the_current_one(fake_cuda, monkeypatch, operation):
    monkeypatch.setattr("monosem.kernels.gpu.probe.probe", lambda device: None)
    seen = []
    home = f"monosem.kernels.gpu.{dispatch.HOMES[operation]}.{operation}"
    monkeypatch.setattr(home, lambda *arguments: seen.append(fake_cuda[-1]))
    kernel(operation, torch.device("cuda", 1), lambda *arguments: None)()
    assert seen == ["cuda:1"] and fake_cuda == ["cuda:0"]


@pytest.mark.parametrize("capability, fast", [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_needs_compute_capability_8(fake_cuda, monkeypatch, capability, fast):
    monkeypatch.setattr("monosem.kernels.gpu.probe.probe", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place=None: capability)
    device = torch.device("cuda", 0)
    assert has_bf16(device) is fast
    assert choose(device).encode == ("bf16" if fast else "fp32")
    assert default_dtype(device) == (torch.bfloat16 if fast else torch.float32)


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.entries = max(self.entries, out.numel())
        return out


def test_references_hold_a_chunk_of_entries_at_a_time(monkeypatch):
    batch, n, d, k = 64, 40, 24, 8
    (indptr, indices, values), W, x = codes(batch, n, d, k)
    out = decode.residual_reference(indptr, indices, values, W, x[0], x)

    def everything() -> tuple:
        return (
            decode.residual_reference(indptr, indices, values, W, x[0], x).grads,
            decode.decode_reference(indptr, indices, values, W, x[0]),
            code_gradients.reference(indptr, indices, W, x),
            *update.gradients_reference((indptr, indices, values), out, x, 0.5, n)[1:],
        )

    whole = everything()
    monkeypatch.setattr(chunks, "CHUNK_BYTES", {"cpu": 4 * d * 50, "cuda": 4 * d * 50})
    monkeypatch.setattr(chunks, "LEAST_ROWS", {"cpu": 16, "cuda": 16})
    with Largest() as largest:
        parts = everything()
    for a, b in zip(parts, whole, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert largest.entries <= batch * d, "nothing of size nnz x d or batch x n"

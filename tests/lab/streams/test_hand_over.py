"""Rows reach the buffer's device whole: the copy is waited for on the streams of both devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monosem.lab.streams.harvest import _hand_over


class FakeRows:
    """Rows that say they lie on a CUDA device, and keep what is asked of them."""

    is_cuda, shape, dtype = True, (2, 3), torch.float32

    def __init__(self, device: str, calls: list[str]) -> None:
        self.device, self.calls = torch.device(device), calls

    def to(self, device: torch.device) -> FakeRows:
        self.calls.append(f"copy {self.device} -> {device}")
        return FakeRows(str(device), self.calls)

    def record_stream(self, stream: str) -> None:
        self.calls.append(f"record {stream}")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []

    class Stream:
        def __init__(self, device: torch.device | None) -> None:
            self.device = device

        def synchronize(self) -> None:
            made.append(f"wait {self.device}")

    def pinned(shape: Any, **options: Any) -> Any:
        class Host:
            device = torch.device("cpu")

            def copy_(self, rows: FakeRows, non_blocking: bool) -> Any:
                made.append(f"copy {rows.device} -> cpu")
                return self

        return Host()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream(device))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: f"default {device}")
    monkeypatch.setattr(torch, "empty", pinned)
    return made


def test_a_copy_between_devices_is_waited_for_on_both(calls: list[str]) -> None:
    moved: Any = _hand_over(FakeRows("cuda:1", calls), torch.device("cuda", 0))  # pyright: ignore[reportArgumentType]
    assert moved.device == torch.device("cuda", 0)
    assert calls == ["copy cuda:1 -> cuda:0", "record default cuda:0", "wait cuda:1", "wait cuda:0"]


def test_a_copy_to_the_host_is_waited_for_where_it_comes_from(calls: list[str]) -> None:
    _hand_over(FakeRows("cuda:1", calls), torch.device("cpu"))  # pyright: ignore[reportArgumentType]
    assert calls == ["copy cuda:1 -> cpu", "wait cuda:1"]


def test_rows_on_one_device_are_waited_for_once(calls: list[str]) -> None:
    _hand_over(FakeRows("cuda:0", calls), torch.device("cuda", 0))  # pyright: ignore[reportArgumentType]
    assert calls[-2:] == ["record default cuda:0", "wait cuda:0"]

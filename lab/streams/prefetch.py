"""Run an iterator ahead of its consumer in one thread."""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch

END = object()


class Prefetch:
    """The items of `source`, in order, computed up to `ahead` items early; `ahead=0` computes them inline.

    An exception in the thread is raised here, in its place in the order. The thread ends with the source, on
    `close`, when this object is collected and at interpreter exit. `source` must not refer to this object.
    """

    def __init__(self, source: Iterator[Any], ahead: int, device: torch.device | str = "cpu"):
        self._source = source
        self._queue: queue.Queue[Any] | None = queue.Queue(ahead) if ahead else None
        if self._queue is None:
            return
        stop = threading.Event()
        work = (source, self._queue, stop, torch.device(device))
        thread = threading.Thread(target=_produce, args=work, name="monosem-harvest", daemon=True)
        self._end = weakref.finalize(self, _end, thread, stop, self._queue)
        thread.start()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._queue is None:
            return next(self._source)
        if not self._end.alive:
            raise StopIteration
        item, error = self._queue.get()
        if error is not None:
            self.close()
            raise error
        if item is END:
            self.close()
            raise StopIteration
        return item

    def close(self) -> None:
        """End the thread, after the item it is computing. Items ahead are dropped."""
        if self._queue is not None:
            self._end()


def _produce(
    source: Iterator[Any],
    out: queue.Queue[Any],
    stop: threading.Event,
    device: torch.device,
) -> None:
    try:
        with _own_stream(device):
            while not stop.is_set():
                item = next(source, END)
                _put(out, (item, None), stop)
                if item is END:
                    return
    except BaseException as error:  # whatever it is, it belongs to the consumer
        _put(out, (None, error), stop)


def _own_stream(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """On CUDA, a stream beside the training one, so that the two overlap on the device as well."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.default_stream(device))
    return torch.cuda.stream(side)


def _put(out: queue.Queue[Any], item: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            return out.put(item, timeout=0.1)


def _end(thread: threading.Thread, stop: threading.Event, out: queue.Queue[Any]) -> None:
    stop.set()
    if thread is threading.current_thread():  # collected by the thread itself: it sees `stop` next
        return
    with contextlib.suppress(queue.Empty):
        while True:
            out.get_nowait()
    thread.join()

"""`Bench`: a command that measures this library beside its peers, in one process, on the same data."""

from __future__ import annotations

from typing import Any

from ..command import Command, Result


class Bench(Command):
    """The base of every benchmark."""

    def race(self) -> dict[str, Any]:
        """Measure and return JSON values."""
        raise NotImplementedError

    def run(self) -> Result:
        """Measure; the machine and the versions are part of the result."""
        from .timing import machine

        return self.result({**self.race(), "machine": machine()})

"""Losses of a conversion, which must be asked for, and roundings, which are only reported."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...lab.errors import InputError


@dataclass
class Losses:
    """The record of one conversion."""

    subject: str
    """The thing converted, for messages: a path, or a dictionary and the target format."""
    allowed: bool = False
    """True if the caller asked for a conversion that loses something."""
    lost: list[str] = field(default_factory=list)
    """One clause for each loss."""
    rounded: list[str] = field(default_factory=list)
    """One clause for each step that is exact but for rounding to fp32."""

    def lose(self, clause: str) -> None:
        """Record a loss.

        Raises:
            InputError: losses were not asked for.
        """
        if not self.allowed:
            raise InputError(f"{self.subject}: {clause}; give lossy to go on all the same")
        self.lost.append(clause)

    def round(self, clause: str) -> None:
        """Record a step that changes outputs by rounding only."""
        self.rounded.append(clause)

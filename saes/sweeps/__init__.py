"""Many dictionaries off one stream: the grid, the run that resumes, its results, table and plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lab.lazy import lazily

if TYPE_CHECKING:
    from .grid import Member as Member
    from .results import SweepResult as SweepResult

__getattr__, __dir__ = lazily(__name__, __file__)

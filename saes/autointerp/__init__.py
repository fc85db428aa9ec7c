"""Automatic interpretation: what a latent fires on, told in words and tested on text it was not told from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lab.lazy import lazily

if TYPE_CHECKING:
    from .detection import Detection as Detection
    from .detection import measure_detection as measure_detection
    from .trials import DetectionConfig as DetectionConfig

__getattr__, __dir__ = lazily(__name__, __file__)

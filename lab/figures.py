"""Figures: the colours and the look that all plots share."""

from __future__ import annotations

COLOURS = ("#0b6bcb", "#e07a0c", "#17936a", "#b3409b", "#7b61d1", "#8a6d3b", "#c2323f", "#2a9fb0", "#6b7280", "#a3a117")

"""Spatial statistics of the units of a model: spatial statistics, their controls and probes for coordinates."""

"""Fitting: solvers, moments, splits, nulls and calibration of probes."""

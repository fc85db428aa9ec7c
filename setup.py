"""Packages by a pattern: folder X is imported as monosem.X, with every folder below it that holds an `__init__.py`."""

from setuptools import find_packages, setup

ROOMS = ("lab", "saes", "probes", "interventions", "kernels")

setup(
    packages=[f"monosem.{name}" for name in find_packages(include=[*ROOMS, *(f"{room}.*" for room in ROOMS)])],
    package_dir={"monosem": "."},
)

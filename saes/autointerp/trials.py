"""Which latents are explained and which windows each is explained from and judged on.

Firing windows to be judged are drawn evenly over the whole range of a latent's activations. Silent ones are drawn at
random, and once more as the nearest by words to a firing one: those a topic alone does not tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from scipy.sparse import csr_array

from ...lab.errors import InputError, unknown
from ...lab.rng import derive_seed
from .windows import Window, Windows

JUDGES = ("rule", "embedding", "model")


@dataclass(frozen=True)
class DetectionConfig:
    """How many latents are explained, on how much text, and who judges."""

    latents: int = 48
    """Latents drawn among those that fire in enough windows; fewer if there are not as many."""
    tokens: int = 65_536
    """Tokens of text cut into windows; half explains, half is scored."""
    length: int = 24
    """Tokens a window."""
    shown: int = 20
    """Firing windows that an explanation is made from, half of them the strongest."""
    scored: int = 12
    """Firing windows that are judged, and as many silent ones of each kind."""
    judges: tuple[str, ...] = ("rule", "embedding")
    """Among rule, embedding (MiniLM) and model (the examined model itself; reads a prompt for every window)."""
    seed: int = 0
    """Of the halves, the drawn latents and windows, the untrained null and the bootstrap."""

    def __post_init__(self) -> None:
        for name, least in (("latents", 2), ("tokens", 1), ("length", 2), ("shown", 2), ("scored", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.judges:
            raise InputError(f"no judge is named: give some of {', '.join(JUDGES)}")
        for name in self.judges:
            if name not in JUDGES:
                raise unknown("judge", name, JUDGES)


class Trial(NamedTuple):
    """The windows of one latent: `shown` and `quiet` explain and calibrate, the others are scored."""

    latent: int
    shown: list[Window]
    quiet: list[Window]
    firing: list[Window]
    silent: list[Window]
    similar: list[Window]


def draw_trials(windows: Windows, name: str, config: DetectionConfig) -> list[Trial]:
    """Windows of drawn latents of one dictionary; latents that fire in too few windows take no part."""
    explaining, scoring = windows.halves(named_rng(config, "halves"))
    rng = named_rng(config, "windows", name)
    often = [windows.firing(name, half) >= config.scored for half in (explaining, scoring)]
    rare = windows.firing(name, explaining | scoring) <= len(windows) / 2
    latents = np.flatnonzero(often[0] & often[1] & rare)
    trials = []
    for latent in np.sort(rng.permutation(latents)[: config.latents]).tolist():
        peak = windows.peaks(name, latent)
        near, far = (np.flatnonzero(half & (peak > 0)) for half in (explaining, scoring))
        quiet, silent = (np.flatnonzero(half & (peak == 0)) for half in (explaining, scoring))
        top = near[np.argsort(-peak[near], kind="stable")[: config.shown // 2]]
        shown = np.union1d(top, spread(np.setdiff1d(near, top), peak, config.shown - len(top), rng))
        firing = spread(far, peak, config.scored, rng)
        random = rng.choice(silent, min(config.scored, len(silent)), replace=False)
        kinds = (shown, rng.choice(quiet, min(len(shown), len(quiet)), replace=False), firing, random,
                 nearest_by_words(windows.tfidf, firing, silent))  # fmt: skip
        trials.append(Trial(latent, *(windows.read(name, latent, chosen) for chosen in kinds)))
    return trials


def spread(
    chosen: Int64[np.ndarray, " m"], peak: Float[np.ndarray, " W"], n: int, rng: np.random.Generator
) -> Int64[np.ndarray, " at_most_n"]:
    """One of the windows from each of n equal parts of their order by peak."""
    parts = np.array_split(chosen[np.argsort(peak[chosen], kind="stable")], min(n, len(chosen)) or 1)
    return np.array([rng.choice(part) for part in parts if len(part)], dtype=np.int64)


def nearest_by_words(
    tfidf: csr_array, to: Int64[np.ndarray, " n"], among: Int64[np.ndarray, " m"]
) -> Int64[np.ndarray, " n"]:
    """For each window of `to` the most similar one of `among`, each taken once."""
    cosines = (tfidf[to] @ tfidf[among].T).toarray()
    taken: list[int] = []
    for row in cosines:
        row[taken] = -1
        taken.append(int(row.argmax()))
    return among[taken]


def named_rng(config: DetectionConfig, *names: str) -> np.random.Generator:
    """A generator for one purpose."""
    return np.random.default_rng(derive_seed(config.seed, "detection", *names))

"""Every number that a report shows, as one JSON value. The page renders it; other programs can read it there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....saes.features.feature_set import Example, Features
from ...evidence import Evidence
from ...score_names import SCORES, null_label, score_label, score_meaning

SCHEMA = 1
CURVES = ("fvu", "l0", "dead", "lr")
DENSITY_BINS_PER_DECADE = 8


def report_data(
    *,
    title: str,
    scores: Mapping[str, Evidence],
    metrics: Sequence[Mapping[str, Any]],
    features: Features | None,
    record: Mapping[str, Any],
    notes: Sequence[str],
    cards: int,
    seed: int,
) -> dict[str, Any]:
    """JSON values; numbers that are not finite become None."""
    latents = None if features is None else _latents(features)
    shown = None if features is None else _features(features, cards, seed)
    parts = {
        "schema": SCHEMA,
        "title": title,
        "scores": [_score(name, evidence) for name, evidence in scores.items()],
        "curves": _curves(metrics),
        "latents": latents,
        "features": shown,
        "notes": list(notes),
        "record": record,
    }
    return _finite(parts)


def _score(name: str, evidence: Evidence) -> dict[str, Any]:
    low, high = evidence.interval or (None, None)
    judged = name not in SCORES or SCORES[name].judged
    return {
        "name": name,
        "label": score_label(name),
        "meaning": score_meaning(name),
        "value": evidence.value,
        "low": low,
        "high": high,
        "n": evidence.n,
        "unit": evidence.unit,
        "better": evidence.better,
        "held_out": evidence.held_out,
        "nulls": [{"name": null, "value": value} for null, value in evidence.nulls.items()],
        "missing": [f"{null_label(null)} not measured: {reason}" for null, reason in evidence.missing.items()],
        "unbeaten": list(map(null_label, evidence.unbeaten())) if judged else [],
    }


def _curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """Columns of the metrics by consumer; lines that measure none of the curves are left out."""
    curves: dict[str, dict[str, list[Any]]] = {}
    for line in metrics:
        if any(line.get(key) is not None for key in CURVES):
            columns = curves.setdefault(str(line.get("consumer", "")), {"rows": [], **{key: [] for key in CURVES}})
            for key, column in columns.items():
                column.append(line.get(key))
    return {
        name: {key: column for key, column in columns.items() if any(value is not None for value in column)}
        for name, columns in curves.items()
    }


def _latents(features: Features) -> dict[str, Any]:
    """Histograms over all latents and over all tokens."""
    logs = np.log10(features.density[features.count > 0], dtype=np.float64)
    edges, counts = np.zeros(0), np.zeros(0, np.int64)
    if len(logs):
        first, last = (int(f(v * DENSITY_BINS_PER_DECADE)) for f, v in ((np.floor, logs.min()), (np.ceil, logs.max())))
        edges = np.arange(first, max(last, first + 1) + 1) / DENSITY_BINS_PER_DECADE
        counts, _ = np.histogram(logs, edges)
    seen = np.flatnonzero(features.l0)
    least, most = (int(seen[0]), int(seen[-1])) if len(seen) else (0, -1)
    return {
        "total": features.n_latents,
        "dead": len(features.dead),
        "density": {"edges": edges.tolist(), "counts": counts.tolist()},
        "l0": {"first": least, "counts": features.l0[least : most + 1].tolist()},
    }


def _features(features: Features, cards: int, seed: int) -> dict[str, Any]:
    latents = features.latents if len(features.latents) <= cards else features.sample(cards, seed)
    made = [_card(features, latent) for latent in latents.tolist()]
    examples = [e for card in made for group in (card, *card["buckets"]) for e in group["examples"]]
    used = sorted({token for example in examples for token in example["tokens"]})
    return {
        "measured": features.measured,
        "collected": len(features.latents),
        "source": features.source,
        "cards": made,
        "texts": {str(token): features.texts[token] for token in used},
    }


def _card(features: Features, latent: int) -> dict[str, Any]:
    edges, counts = features.histogram(latent)
    logits = features.top_logits(latent)
    return {
        "latent": latent,
        "density": float(features.density[latent]),
        "count": int(features.count[latent]),
        "maximum": float(features.maximum[latent]),
        "histogram": {"edges": [_short(edge) for edge in edges], "counts": counts},
        "logits": logits and {end: [(word, _short(v)) for word, v in pairs] for end, pairs in logits._asdict().items()},
        "examples": [_example(example) for example in features.examples(latent)],
        "buckets": [
            {
                "low": b.low,
                "high": b.high,
                "share": _short(b.share),
                "examples": [_example(e) for e in b.examples],
            }
            for b in features.buckets(latent)
        ],
    }


def _example(example: Example) -> dict[str, Any]:
    return {
        "value": _short(example.value),
        "doc": example.doc,
        "offset": example.offset,
        "copies": example.copies,
        "focus": example.focus,
        "tokens": example.tokens,
        "acts": [None if act is None else _short(act) for act in example.acts],
    }


def _short(value: float) -> float | int:
    """Four significant digits: all that is shown, and half the page."""
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

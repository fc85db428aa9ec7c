"""`write_report`: a run on one HTML page that needs no network and no server.

Scores stand in the markup as well as in the data, for readers without scripts.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....saes.evaluation.results import Evaluation
from ....saes.features.collect import Features
from ...markup import element, joined
from .page import write_page
from .report_data import report_data
from .report_sections import sections, tiles

CODE = ("report_plots.js", "report_cards.js")
Data = Mapping[str, Any]


def write_report(
    path: Path | str,
    *,
    title: str,
    evaluation: Evaluation | None = None,
    metrics: Sequence[Data] = (),
    features: Features | None = None,
    manifest: Data | None = None,
    summary: Data | None = None,
    notes: Sequence[str] = (),
    cards: int = 200,
    seed: int = 0,
) -> Path:
    """Write the page; the same input gives the same bytes. What is not given is left out.

    Args:
        evaluation: the scores, each with its interval and nulls.
        metrics: lines of a run's `metrics.jsonl`, with `rows` and `consumer`.
        features: shown as cards: all with examples, or `cards` drawn evenly from the live ones. 200 cards make
            about 2 MB beside the 5 MB of plotly.js.
        manifest: of the run; shown as it is.
        summary: of the command; `tokens`, `tokens_per_second` and `seconds` go into the head.
        notes: decisions taken, a paragraph each.
        seed: of the draw of cards.

    Returns:
        The path.
    """
    manifest, summary = manifest or {}, summary or {}
    data: Data = report_data(
        title=title,
        scores=evaluation.scores if evaluation else {},
        metrics=metrics,
        features=features,
        record={
            "evaluation": evaluation.to_json() if evaluation else None,
            "summary": summary,
            "manifest": manifest,
        },
        notes=notes,
        cards=cards,
        seed=seed,
    )
    parts = sections(data)
    body = [(element("h2", part.heading, id=part.anchor), part.markup) for part in parts]
    return write_page(
        path,
        title=title,
        facts=_facts(evaluation, features, manifest, summary),
        body=joined([tiles(data), *(piece for pair in body for piece in pair)]),
        data=data,
        sections={part.anchor: part.heading for part in parts},
        code=CODE,
    )


def _facts(evaluation: Evaluation | None, features: Features | None, manifest: Data, summary: Data) -> Data:
    """Model, site, dictionary, sizes, tokens and time, as far as they are known."""
    about: Data = vars(evaluation) if evaluation else features.source if features else {}
    return {
        "Model": about.get("model"),
        "Site": about.get("site"),
        "Dictionary": about.get("dictionary"),
        "Held out": evaluation and evaluation.held_out,
        "Rows trained on": _count(manifest.get("rows", summary.get("rows"))),
        "Tokens read": _count(summary.get("tokens")),
        "Tokens a second": _count(summary.get("tokens_per_second")),
        "Time": _duration(summary.get("seconds")),
        "Finished": _day(manifest.get("finished")),
    }


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _day(moment: str | None) -> str | None:
    return moment and datetime.datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M %Z")

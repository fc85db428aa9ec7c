"""`write_report`: a run on one HTML page that needs no network and no server.

The page embeds its numbers once, as JSON in `<script id="data">`; scores are also in the markup, for readers
without scripts. Its content security policy forbids every request. All text from data is escaped here or enters
the page as text nodes.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ....saes.evaluation.results import Evaluation
from ....saes.features.collect import Features
from ...storage import atomic_path
from .report_data import report_data
from .report_sections import asset, sections, tiles

CODE = ("report_page.js", "report_plots.js", "report_cards.js")
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
    links = "".join(f'<a href="#{part.anchor}">{part.heading}</a>' for part in parts)
    body = "".join(f'<h2 id="{part.anchor}">{part.heading}</h2>{part.markup}' for part in parts)
    page = {
        "title": escape(title),
        "css": asset("report.css"),
        "facts": _facts(evaluation, features, manifest, summary),
        "sections": f'<nav class="sections" aria-label="Sections">{links}</nav>',
        "body": tiles(data) + body,
        "data": embedded_json(data),
        "plotly": plotly_code(),
        "code": "\n".join(asset(name) for name in CODE),
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: page[match[1]], asset("report.html"))
    with atomic_path(path) as beside:
        beside.write_text(text, encoding="utf-8")
    return Path(path)


def embedded_json(value: Any) -> str:
    """JSON that is safe between script tags: ASCII, and no character that HTML gives a meaning."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plotly_code() -> str:
    """plotly.js as it may stand between script tags."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script")


def _facts(evaluation: Evaluation | None, features: Features | None, manifest: Data, summary: Data) -> str:
    """Model, site, dictionary, sizes, tokens and time, as far as they are known."""
    about: Data = vars(evaluation) if evaluation else features.source if features else {}
    facts = {
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
    items = "".join(f"<div><dt>{key}</dt><dd>{escape(str(value))}</dd></div>" for key, value in facts.items() if value)
    return f'<dl class="facts">{items}</dl>'


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _day(moment: str | None) -> str | None:
    return moment and datetime.datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M %Z")

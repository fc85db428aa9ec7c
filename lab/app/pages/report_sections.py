"""The sections of a report as markup, from its data. All text from data is escaped here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

TILES = ("fvu", "ce_recovered_zero", "kl", "l0")
"""Scores that stand large at the top."""

Data = Mapping[str, Any]


class Section(NamedTuple):
    """One part of the page."""

    anchor: str
    heading: str
    markup: str


def sections(data: Data) -> list[Section]:
    """The sections there is something to show in, in order."""
    makers = (_notes, _scores, _curves, _latents, _features, _record)
    return [section for section in (make(data) for make in makers) if section]


def asset(name: str) -> str:
    """A text file that comes with this package."""
    return files("monosem.lab.app.pages").joinpath(name).read_text(encoding="utf-8")


def tiles(data: Data) -> str:
    """The scores that matter most, each with its interval and nulls."""
    scores = {score["name"]: score for score in data["scores"]}
    found = [_tile(scores[name]) for name in TILES if name in scores]
    return f'<div class="tiles">{"".join(found)}</div>' if found else ""


def _tile(score: Data) -> str:
    nulls = " · ".join(f"{escape(null['name'])} {_number(null['value'])}" for null in score["nulls"])
    spread = f"95 % {_interval(score)}" if score["low"] is not None else "&nbsp;"
    beside = f"nulls: {nulls}" if nulls else "no null"
    head = f'<h3 data-tip="{escape(score["meaning"])}">{escape(score["label"])}</h3>'
    return (
        f'<div class="panel tile">{head}<div class="big">{_number(score["value"])}</div>'
        f"<p>{spread}</p><p>{beside}</p></div>"
    )


def _notes(data: Data) -> Section | None:
    if not data["notes"]:
        return None
    return Section("notes", "Decisions", "".join(f'<p class="note">{escape(note)}</p>' for note in data["notes"]))


def _scores(data: Data) -> Section | None:
    scores = data["scores"]
    if not scores:
        return None
    nulls = list(dict.fromkeys(null["name"] for score in scores for null in score["nulls"]))
    heads = ["score", "value", "95 % interval", "on a scale with its nulls", *nulls, "n"]
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
    body = "".join(_score_row(score, nulls) for score in scores)
    legend = "Filled: this dictionary, with its interval. Open: the nulls. ↑ higher is better, ↓ lower is better."
    held_out = next((score["held_out"] for score in scores if score["held_out"]), "")
    lead = f"Measured on {held_out}." if held_out else "Every score beside its nulls."
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return Section(
        "scores",
        "Scores",
        f'<p class="lead">{escape(lead)}</p><div class="panel"><div class="scroll">{table}</div>'
        f'<p class="legend">{legend}</p></div>',
    )


def _score_row(score: Data, nulls: Sequence[str]) -> str:
    beside = {null["name"]: null["value"] for null in score["nulls"]}
    name, label, meaning = (escape(score[key]) for key in ("name", "label", "meaning"))
    arrow = {"higher": "↑", "lower": "↓"}.get(score["better"], "")
    cells = [f'<td class="value">{_number(score["value"])}</td>', f"<td>{_interval(score)}</td>"]
    cells.append(f'<td data-scale="{name}"></td>')
    cells += [f'<td class="null">{_number(beside[null]) if null in beside else ""}</td>' for null in nulls]
    cells.append(f'<td class="null">{score["n"]:,} {escape(score["unit"])}</td>')
    head = f'<th scope="row" data-tip="{name}: {meaning}">{label} <span class="better">{arrow}</span></th>'
    return f"<tr>{head}{''.join(cells)}</tr>"


def _curves(data: Data) -> Section | None:
    if not data["curves"]:
        return None
    lead = '<p class="lead">Means since the previous log point, on the rows being trained on.</p>'
    return Section("training", "Training", f'{lead}<div class="plots" id="curves"></div>')


def _latents(data: Data) -> Section | None:
    if data["latents"] is None:
        return None
    dead, total = data["latents"]["dead"], data["latents"]["total"]
    lead = f"{total:,} latents over {data['features']['measured']:,} tokens; {dead:,} fired on none of them."
    return Section("density", "Latents", f'<p class="lead">{lead}</p><div class="plots" id="latents"></div>')


def _features(data: Data) -> Section | None:
    shown = data["features"]
    if shown is None:
        return None
    cards, collected, total = len(shown["cards"]), shown["collected"], data["latents"]["total"]
    chosen = f"{collected:,} of {total:,} latents were chosen before anything was read"
    if collected == total:
        chosen = f"All {total:,} latents have examples"
    which = "all of them" if cards == collected else f"{cards:,} of them, drawn evenly from those that fire"
    lead = (
        f"{chosen}; shown are {which}. "
        "Shading is activation over the latent's largest; the underlined token is the one that counts."
    )
    return Section(
        "features",
        "Features",
        f'<p class="lead">{lead}</p><div id="browser">{asset("report_controls.html")}</div>',
    )


def _record(data: Data) -> Section | None:
    parts = {name: part for name, part in data["record"].items() if part}
    if not parts:
        return None
    content = "".join(
        f'<details class="panel record"><summary>{escape(name)}</summary>'
        f"<pre>{escape(json.dumps(part, indent=1))}</pre></details>"
        for name, part in parts.items()
    )
    return Section("record", "Record", f'<p class="lead">What it takes to repeat this.</p>{content}')


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _interval(score: Data) -> str:
    return "" if score["low"] is None else f"{_number(score['low'])} to {_number(score['high'])}"

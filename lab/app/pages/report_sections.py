"""The sections of a report as markup, from its data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...evidence import MARK
from ...markup import Markup, element, joined
from ...score_names import null_label
from ...table import NO_BETTER
from .figures_page import scrolling
from .page import asset

TILES = ("fvu", "ce_recovered_zero", "kl", "l0")
"""Scores that stand large at the top."""

Data = Mapping[str, Any]


class Section(NamedTuple):
    """One part of the page."""

    anchor: str
    heading: str
    markup: Markup


def sections(data: Data) -> list[Section]:
    """The sections there is something to show in, in order."""
    makers = (_notes, _scores, _curves, _latents, _features, _record)
    return [section for section in (make(data) for make in makers) if section]


def tiles(data: Data) -> Markup | None:
    """The scores that matter most, each with its interval and nulls."""
    scores = {score["name"]: score for score in data["scores"]}
    shown = [_tile(scores[name]) for name in TILES if name in scores]
    return element("div", *shown, class_="tiles") if shown else None


def _tile(score: Data) -> Markup:
    nulls = " · ".join(f"{null_label(null['name'])} {_number(null['value'])}" for null in score["nulls"])
    return element(
        "div",
        element("h3", score["label"], data_tip=score["meaning"]),
        element("div", _value(score), class_="big worse" if score["unbeaten"] else "big"),
        element("p", f"95 % {_interval(score)}") if score["low"] is not None else None,
        element("p", f"nulls: {nulls}" if nulls else "no null"),
        *(element("p", reason, class_="worse") for reason in score["missing"]),
        element("p", _unbeaten(score), class_="worse") if score["unbeaten"] else None,
        class_="panel tile",
    )


def _notes(data: Data) -> Section | None:
    if not data["notes"]:
        return None
    return Section("notes", "Decisions", joined(element("p", note, class_="note") for note in data["notes"]))


def _scores(data: Data) -> Section | None:
    scores = data["scores"]
    if not scores:
        return None
    head = element("tr", *(element("th", name, scope="col") for name in ("score", *COLUMNS)))
    body = [_score_row(score) for score in scores]
    table = element("table", element("thead", head), element("tbody", *body), class_="scores")
    legend = "Filled: this dictionary, with its interval. Open: the nulls. ↑ higher is better, ↓ lower is better."
    worse = f" {NO_BETTER}." if any(score["unbeaten"] for score in scores) else ""
    held_out = next((score["held_out"] for score in scores if score["held_out"]), "")
    lead = element("p", f"Measured on {held_out}." if held_out else "Every score beside its nulls.", class_="lead")
    panel = element("div", scrolling(table), element("p", legend + worse, class_="legend"), class_="panel")
    return Section("scores", "Scores", joined([lead, panel]))


COLUMNS = ("value", "95 % interval", "on a scale with its nulls", "nulls", "n")


def _score_row(score: Data) -> Markup:
    arrow = {"higher": "↑", "lower": "↓"}.get(score["better"], "")
    nulls = [
        element("span", f"{null_label(null['name'])} ", element("em", _number(null["value"])))
        for null in score["nulls"]
    ] + [element("span", reason) for reason in score["missing"]]
    worse = " worse" if score["unbeaten"] else ""
    cells = (
        element("td", _value(score), class_=f"value{worse}", data_tip=_unbeaten(score) or None),
        element("td", _interval(score)),
        element("td", data_scale=score["name"]),
        element("td", *nulls, class_="nulls"),
        element("td", f"{score['n']:,} {score['unit']}", class_="count"),
    )
    labelled = [
        Markup(cell.replace("<td", f'<td data-label="{name}"', 1)) for name, cell in zip(COLUMNS, cells, strict=True)
    ]
    name = element("span", arrow, class_="better")
    tip = f"{score['name']}: {score['meaning']}"
    return element("tr", element("th", score["label"], " ", name, scope="row", data_tip=tip), *labelled)


def _curves(data: Data) -> Section | None:
    if not data["curves"]:
        return None
    lead = "Means since the previous log point, on the rows being trained on."
    plots = element("div", class_="plots", id="curves")
    return Section("training", "Training", joined([element("p", lead, class_="lead"), plots]))


def _latents(data: Data) -> Section | None:
    if data["latents"] is None:
        return None
    silent, total = data["latents"]["dead"], data["latents"]["total"]
    lead = f"{total:,} latents over {data['features']['measured']:,} tokens; {silent:,} fired on none of them."
    summary = data["record"].get("summary") or {}
    if silent:
        lead += " Silent on these tokens is not yet dead: a rare latent needs more tokens to show."
    window, rows = summary.get("dead_window_rows"), summary.get("rows")
    if silent and window:
        lead += f" Dead latents, in the training curves, did not fire for {window:,} rows of training"
        lead += f"; this run had {rows:,}, too few for any to count." if rows and rows < window else "."
    plots = element("div", class_="plots", id="latents")
    return Section("density", "Latents", joined([element("p", lead, class_="lead"), plots]))


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
    browser = element("div", asset("report_controls.html"), id="browser")
    return Section("features", "Features", joined([element("p", lead, class_="lead"), browser]))


def _record(data: Data) -> Section | None:
    parts = {name: part for name, part in data["record"].items() if part}
    if not parts:
        return None
    content = [
        element("details", element("summary", name), element("pre", json.dumps(part, indent=1)), class_="panel record")
        for name, part in parts.items()
    ]
    lead = element("p", "Options, versions and counts that repeat this run.", class_="lead")
    return Section("record", "Record", joined([lead, *content]))


def _value(score: Data) -> str:
    return _number(score["value"]) + (MARK if score["unbeaten"] else "")


def _unbeaten(score: Data) -> str:
    return f"not clearly better than {', '.join(score['unbeaten'])}" if score["unbeaten"] else ""


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _interval(score: Data) -> str:
    return "" if score["low"] is None else f"{_number(score['low'])} to {_number(score['high'])}"

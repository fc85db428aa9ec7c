"""`write_probe_page`: a probe run on one HTML page: layer sweep, ROC curves, token scores, worst errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....probes.figures import predicted_figure, reliability_figure, roc_figure
from ....probes.labelled_files import TextsToProbe
from ....probes.labels import Labels
from ....probes.layer_sweep import ProbeSweep, ReadConfig
from ....probes.measure import Measured
from ....probes.token_scores import TokenScores, score_tokens, worst_errors
from ....saes.dictionary import Dictionary
from ...evidence import mark
from ...markup import Markup, element, joined
from ...models.hooked_model import HookedModel
from ...rng import generator
from ...score_names import null_label, score_label
from .figures_page import FigureSection, write_figures_page

SWEEP = (
    "Bars: 95 % interval over groups of test units. Grey, with open marks: nulls, each at its highest over the kinds "
    "of probe; a probe "
    "tells what the model knows only as far as it is above them. Every point was measured on the same test units, so "
    "the highest of many points is somewhat lucky."
)
CHOSEN = (
    "Where its main score is best on half of the test units, scored on the other half, beside its nulls on all. With "
    "one place, or too few units to halve, every test unit counts."
)
TOKENS = (
    "Each token's own activation through the probe, however the fit pooled them. Orange speaks for the class that is "
    "named as positive, blue against it; full colour is the largest score shown. Hover for the number."
)
NO_ERROR = element("p", "No test text is called wrongly.")
ERRORS = "Test texts that the probe is wrong about by most, worst first."


def write_probe_page(
    path: Path,
    result: Mapping[str, Any],
    sweep: ProbeSweep,
    data: TextsToProbe,
    bins: Mapping[str, Sequence[Mapping[str, float]]],
    model: HookedModel,
    dictionary: Dictionary | None,
    examples: int,
) -> Path:
    """Write the page. Texts are shown through the linear probe with the best main score, of any place."""
    labels = next(iter(sweep.units.values())).labels
    kind, place = _shown(sweep)
    measured = sweep[place][kind]
    left_out = f" ({data.dropped:,} without a label left out)" if data.dropped else ""
    facts = {
        "Model": model.name, "Data": data.name, "Texts": f"{len(data.texts):,}{left_out}",
        "Pooling": result["read"]["pooling"],
        "Classes": ", ".join(f"{name} {count:,}" for name, count in result["classes"].items()) or "numbers",
        "Held out": next(iter(measured.scores.values())).held_out,
    }  # fmt: skip
    parts = [
        FigureSection("Against the layer", SWEEP, {score_label(name): sweep.plot(name) for name in sweep.scores}),
        FigureSection("Best of each kind", CHOSEN, {}, best_table(result)),
        _read_outs(result, sweep, labels, bins),
    ]
    if examples:
        named = f"{kind} at {place}"
        errors = worst_errors(measured, labels, examples)
        drawn = _drawn(measured, labels, examples)
        shown = torch.cat([drawn, errors]).tolist()
        read = ReadConfig(**result["read"])
        codes = dictionary if measured.probe.source.dictionary else None
        lines = score_tokens(model, measured.probe, [data.texts[unit] for unit in shown], read, dictionary=codes)
        rows = [_line(line, unit, measured, labels) for line, unit in zip(lines, shown, strict=True)]
        parts += [
            FigureSection(f"Token scores of {named}", TOKENS, markup=_texts(rows[: len(drawn)])),
            FigureSection(
                f"Worst errors of {named}",
                ERRORS,
                markup=_texts(rows[len(drawn) :]) or element("p", "No test text is called wrongly."),
            ),
        ]
    return write_figures_page(path, f"Probes of {data.name}", facts, parts, {"results": dict(result)})


def best_table(result: Mapping[str, Any]) -> list[list[str]]:
    """A heading, and one line for every kind's best place and each of its scores."""
    lines = []
    for kind, place in result["best"].items():
        for name, score in result["at_best"][kind].items():
            lines.append((kind, place, name, score))
    nulls = list(dict.fromkeys(null for *_, score in lines for null in score["nulls"]))
    head = ["kind", "best at", "score", "value", "95 % interval", *map(null_label, nulls)]
    body = [
        [
            kind,
            place,
            score_label(name),
            _value(score, 3),
            _interval(score),
            *(_number(score["nulls"].get(null)) for null in nulls),
        ]
        for kind, place, name, score in lines
    ]
    return [head, *body]


def _read_outs(
    result: Mapping[str, Any],
    sweep: ProbeSweep,
    labels: Labels,
    bins: Mapping[str, Sequence[Mapping[str, float]]],
) -> FigureSection:
    held = {f"{kind} at {place}": sweep[place][kind] for kind, place in result["best"].items()}
    if not labels.classes:
        return FigureSection(
            "Predictions",
            "Every kind at its best place, on all test units; half of them chose the place.",
            {"First output": predicted_figure(held, labels)},
        )
    figures = {"ROC": roc_figure(held, labels)}
    table: list[list[str]] = []
    if bins:
        figures["Reliability"] = reliability_figure(bins)
        table = [["kind", "score", "value", "95 % interval", "base rate", "uncalibrated"]]
        for kind, scores in result["calibration"].items():
            for name, score in scores.items():
                nulls = [_number(score["nulls"].get(null)) for null in ("base_rate", "uncalibrated")]
                table.append([kind, score_label(name), _value(score, 4), _interval(score), *nulls])
    lead = (
        "Every kind at its best place, on all test units; half of them chose the place. Chances were learned from"
        " training units; ECE and Brier score are better the smaller, and a constant base rate has no ECE and tells"
        " nothing."
    )
    return FigureSection("Read-outs", lead, figures, table)


def _shown(sweep: ProbeSweep) -> tuple[str, str]:
    """Kind and place of the linear probe with the best main score; of any, where none is linear."""
    score = sweep.scores[0]
    found = [
        (one.probe.linear, one[score].value, kind, place)
        for place, kinds in sweep.measured.items()
        for kind, one in kinds.items()
    ]
    _, _, kind, place = max(found, key=lambda one: one[:2])
    return kind, place


def _drawn(measured: Measured, labels: Labels, n: int) -> Tensor:
    """Some tested units, classes in turn."""
    order = torch.randperm(len(measured.tested), generator=generator(0, "shown texts"))
    units = measured.tested[order]
    if not labels.classes:
        return units[:n]
    rank = torch.zeros(len(units), dtype=torch.int64)
    for c in range(len(labels.classes)):
        of_class = (labels.y[units] == c).nonzero()[:, 0]
        rank[of_class] = torch.arange(len(of_class))
    return units[rank.argsort(stable=True)][:n]


def _line(line: TokenScores, unit: int, measured: Measured, labels: Labels) -> tuple[str, list[tuple[str, float]]]:
    """The title of a unit and its tokens with one score each: for the class that is named, or the first output."""
    read = measured.read[int((measured.tested == unit).nonzero()[0])]
    if not labels.classes:
        title = f"true {labels.y[unit].tolist()}, read {[round(value, 3) for value in read.tolist()]}"
        return title, list(zip(line.tokens, line.scores[:, 0].tolist(), strict=True))
    column, named = (0, 1) if line.scores.shape[1] == 1 else (int(labels.y[unit]),) * 2
    called = labels.classes[int(measured.probe.decide(read[None])[0])]
    title = (
        f"labelled {labels.classes[int(labels.y[unit])]}, called {called}, score {float(read[column]):.3g}"
        f" for {labels.classes[named]}"
    )
    return title, list(zip(line.tokens, line.scores[:, column].tolist(), strict=True))


def _texts(rows: Sequence[tuple[str, list[tuple[str, float]]]]) -> Markup:
    """Texts with their tokens shaded."""
    most = max((abs(score) for _, tokens in rows for _, score in tokens), default=0.0) or 1.0
    return joined(
        element(
            "details",
            element("summary", title),
            element("div", *(_span(token, score, most) for token, score in tokens), class_="text"),
            class_="panel record",
            open=True,
        )
        for title, tokens in rows
    )


def _span(token: str, score: float, most: float) -> Markup:
    tint = f"background: rgb(var({'--act' if score > 0 else '--against'}) / {0.75 * abs(score) / most:.3f})"
    return element("span", token, class_="tok", title=f"{score:.4g}", style=tint)


def _value(score: Mapping[str, Any], digits: int) -> str:
    return f"{score['value']:.{digits}f}" + mark(
        score["value"], score["nulls"], score.get("better", "higher"), score["interval"]
    )


def _interval(score: Mapping[str, Any]) -> str:
    return f"{score['interval'][0]:.3f} to {score['interval'][1]:.3f}" if score["interval"] else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

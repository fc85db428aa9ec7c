"""`write_truth_page`: truth probes on one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from ....probes.truth.statements import CLASSES
from ...evidence import mark
from ...figures import COLOURS, GREY, intervals, laid_out, null_look, plain
from ...markup import Markup, element
from .figures_page import FigureSection, write_figures_page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NAMES = {
    "sawmil": "sAwMIL",
    "svm_last": "SVM, last token",
    "svm_mean": "SVM, mean of tokens",
    "mean_difference": "mean difference",
    "prompting": "asked, zero-shot",
    "prompting_fitted": "asked, fitted",
    "shuffled_labels": "shuffled labels",
    "random_direction": "random direction",
    "token_count": "token count",
}
SHOWN = ("mcc", "wmcc", "coverage", "coverage_class", "acceptance", "selective_true", "selective_false")
Data = Mapping[str, Any]


def truth_cells(result: Data) -> dict[str, list[list[str]]]:
    """The tables of a result as cells: every site and method, the model asked, and the five criteria."""
    methods = list(next(iter(result["sites"].values())))
    first = methods[0]
    sweep = [["site", *(f"{_name(m)} MCC" for m in methods), "wMCC", "coverage", "acceptance", "cos true/false"]]
    sweep[0] += [f"null: {_name(null)}" for null in _nulls(result)]
    for site, fits in result["sites"].items():
        own, geometry = fits[first]["scores"], fits[first]["geometry"]
        cosine = f"{geometry['cosine']:.2f} ({geometry['cosine_of_orthogonal_signals']:.2f} if orthogonal)"
        line = [site, _spread(own["mcc"]), *(f"{fits[m]['scores']['mcc']['value']:.2f}" for m in methods[1:])]
        line += [*(f"{own[score]['value']:.2f}" for score in ("wmcc", "coverage", "acceptance")), cosine]
        sweep.append([*line, *(f"{own['mcc']['nulls'][null]:.2f}" for null in _nulls(result))])
    best = result["sites"][result["best"]]
    scored = [(_name(m), best[m]["scores"]) for m in methods]
    scored += [(_name(name), scores) for name, scores in result["prompting"].items()]
    at_best = [[f"at {result['best']}", *SHOWN]]
    at_best += [[name, *(_spread(scores[score]) for score in SHOWN)] for name, scores in scored]
    criteria = [["criterion", "score", "value", "nulls", "n"]]
    criteria += [
        [criterion, name, _spread(score), _told(score["nulls"]), f"{score['n']} {score['unit']}"]
        for criterion, scores in result["criteria"].items()
        for name, score in scores.items()
    ]
    return {"sweep": sweep, "best": at_best, "criteria": criteria}


def write_truth_page(
    path: Path | str,
    result: Data,
    predicted: Int[np.ndarray, " statements"],
    right: Int[np.ndarray, " statements"],
    shown: Mapping[str, Sequence[Data]],
) -> Path:
    """Write the page.

    Args:
        result: of `monosem truth`.
        predicted: the likeliest class of every test statement at the best site.
        right: their classes.
        shown: `errors` and `examples`, from `per_token.token_scores`.
    """
    cells, best = truth_cells(result), result["best"]
    counts = result["statements"]
    facts = {
        "Model": result["model"],
        "Statements": ", ".join(f"{sum(of.values())} {split}" for split, of in counts.items()),
        "Best site in cross-validation": best,
        "Conformal sets may miss": f"{result['alpha']:.0%}",
    }
    parts = [
        FigureSection(
            "Sites",
            "Matthews correlation of true, false and neither on statements about entities that were not trained on. "
            "Bars: 95 % interval over entities. Grey, with open marks: nulls of the first method. Red: the model "
            "asked, with no probe.",
            {"Matthews correlation": _sweep_figure(result), "Conformal sets": _conformal_figure(result)},
            cells["sweep"],
        ),
        FigureSection(
            "At the best site", "Every score with its interval.",
            {"Right class and predicted class": _confusion(predicted, right)}, cells["best"],
        ),
        FigureSection(
            "Five criteria",
            "A probe of truth tells the classes apart, on other statements than it was fitted on, fires for nothing "
            "else, and its direction moves the model's own verdict and nothing else.",
            table=cells["criteria"],
        ),
        FigureSection("Tokens of test statements", _LEAD, markup=_token_lines(shown["examples"])),
        FigureSection(
            "Worst errors",
            "Test statements that are told wrongly, lowest probability of the right class first.",
            markup=_token_lines(shown["errors"]),
        ),
    ]  # fmt: skip
    return write_figures_page(path, f"Truth probes of {result['model']}", facts, parts, {"result": result})


_LEAD = (
    "Shade: score of the token for the predicted class, in spreads of the training scores; the read-out takes the "
    "best token of each class."
)


def _sweep_figure(result: Data) -> Figure:
    from plotly.graph_objects import Figure, Scatter

    sites, figure = list(result["sites"]), Figure()
    methods = list(result["sites"][sites[0]])
    for colour, method in zip(COLOURS, methods, strict=False):
        scores = [result["sites"][site][method]["scores"]["mcc"] for site in sites]
        values = [score["value"] for score in scores]
        bars = intervals(values, [score["interval"] for score in scores]) if method == methods[0] else None
        figure.add_trace(Scatter(x=sites, y=values, name=plain(_name(method)), mode="lines+markers", error_y=bars,
                                 line={"color": colour}, marker={"color": colour, "size": 7}))  # fmt: skip
    for number, null in enumerate(_nulls(result)):
        values = [result["sites"][site][methods[0]]["scores"]["mcc"]["nulls"][null] for site in sites]
        figure.add_trace(Scatter(x=sites, y=values, name=f"null: {_name(null)}", mode="lines+markers",
                                 **null_look(null, number).trace()))  # fmt: skip
    for name, scores in result["prompting"].items():
        line = {"color": "#b3304a", "dash": "dash" if name == "prompting" else "dot"}
        level = [scores["mcc"]["value"]] * len(sites)
        figure.add_trace(Scatter(x=sites, y=level, name=_name(name), mode="lines", line=line))
    return laid_out(figure, "", "Matthews correlation")


def _conformal_figure(result: Data) -> Figure:
    from plotly.graph_objects import Figure, Scatter

    sites, figure = list(result["sites"]), Figure()
    first = next(iter(result["sites"][sites[0]]))
    for colour, score in zip(COLOURS, ("coverage", "coverage_class", "acceptance"), strict=False):
        values = [result["sites"][site][first]["scores"][score]["value"] for site in sites]
        figure.add_trace(Scatter(x=sites, y=values, name=score, mode="lines+markers", line={"color": colour}))
    asked = [1 - result["alpha"]] * len(sites)
    figure.add_trace(Scatter(x=sites, y=asked, name="coverage asked for", mode="lines",
                             line={"color": GREY, "dash": "dot"}))  # fmt: skip
    return laid_out(figure, "", {"title": {"text": f"share of test statements ({_name(first)})"}, "range": [0, 1.05]})


def _confusion(predicted: np.ndarray, right: np.ndarray) -> Figure:
    from plotly.graph_objects import Figure, Heatmap

    n = len(CLASSES)
    counts = np.bincount(right * n + predicted, minlength=n * n).reshape(n, n)
    figure = Figure(Heatmap(
        z=(counts / counts.sum(1, keepdims=True).clip(1)).tolist(), x=[f"predicted {name}" for name in CLASSES],
        y=[f"is {name}" for name in CLASSES], text=counts.tolist(), texttemplate="%{text}", colorscale="Blues",
        zmin=0, zmax=1, colorbar={"title": {"text": "share of row"}},
    ))  # fmt: skip
    return laid_out(figure, "", {"autorange": "reversed"})


def _token_lines(lines: Sequence[Data]) -> Markup:
    """Statements with their tokens shaded."""
    items = element("ol", *map(_token_line, lines), class_="examples padded")
    return element("div", items, class_="panel")


def _token_line(line: Data) -> Markup:
    column = CLASSES.index(line["told"])
    top = max(max(scores) for scores in line["scores"])
    spans = []
    for token, scores in zip(line["tokens"], line["scores"], strict=True):
        share = max(0.0, scores[column]) / top if top > 0 else 0.0
        tip = ", ".join(f"{name} {score:.2f}" for name, score in zip(CLASSES, scores, strict=True))
        spans.append(element("span", token, class_="tok on", style=f"--a:{share:.2f}", title=tip))
    chance = ", ".join(f"{name} {p:.2f}" for name, p in zip(CLASSES, line["probabilities"], strict=True))
    verdict = "is" if line["told"] == line["right"] else f"predicted {line['told']}, is"
    return element(
        "li",
        element("span", f"{line['probabilities'][CLASSES.index(line['right'])]:.2f}", class_="at"),
        element("span", *spans, class_="text"),
        element("span", f"{verdict} {line['right']}", class_="copies", title=chance),
    )


def _nulls(result: Data) -> list[str]:
    return list(next(iter(next(iter(result["sites"].values())).values()))["scores"]["mcc"]["nulls"])


def _name(key: str) -> str:
    return NAMES.get(key, key)


def _spread(score: Data) -> str:
    interval = score["interval"]
    spread = f" [{_number(interval[0])}, {_number(interval[1])}]" if interval else ""
    return (
        _number(score["value"])
        + spread
        + mark(score["value"], score["nulls"], score.get("better", "higher"), score["interval"])
    )


def _number(value: float) -> str:
    """Two decimals, and two digits of what is smaller than that."""
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def _told(nulls: Mapping[str, float]) -> str:
    return ", ".join(f"{_name(name)} {_number(value)}" for name, value in nulls.items())

"""The report of `monosem fast`: scores of every case, gaps between methods, a table and a chart."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ....saes.evaluation.matched_l0 import Curve, matched
from ....saes.evaluation.results import flat
from ....saes.evaluation.special_tokens import SETS, SpecialTokens
from ...errors import InputError
from ...figures import laid_out, null_look, plain
from ...table import markdown
from ..pages.figures_page import FigureSection, write_figures_page

log = logging.getLogger(__name__)

Scores = Mapping[str, Mapping[str, Any]]
LABELS = {"fast": "FAST", "bt-f": "BT(F)", "bt-p": "BT(P)"}
COLUMNS = ("l0.all", "log2_mse.all", "log2_mse.special", "log2_mse.all_no_first", "log2_mse.special_no_first",
           "fvu.all_no_first", "fvu.special_no_first", "fvu.content_no_first")  # fmt: skip
CHARTED = ("log2_mse.special", "log2_mse.special_no_first", "log2_mse.content_no_first")
MATCHED = ("log2_mse.all", "log2_mse.special", "log2_mse.special_no_first", "fvu.special_no_first")


class Case(NamedTuple):
    """One dictionary: how it was trained, and where."""

    method: str
    sinks: str
    """`drop` or `keep`: whether it trained on position 0."""
    site: str
    k: int

    @property
    def name(self) -> str:
        """Its key in the results."""
        return f"{self.method}/{self.sinks}/{self.site}/{self.k}"


def report(
    measured: SpecialTokens, nulls: Mapping[Case, Mapping[str, str]], *, held_out: str, seed: int
) -> dict[str, Any]:
    """Scores by case, gaps of `log2_mse` to FAST by case, and scores at one L0 where several k were trained.

    Args:
        nulls: of every case, label to subject.
    """
    shared: dict[str, Any] = {"held_out": held_out, "seed": seed}
    measurements = {case: measured.evidence(case.name, null, **shared) for case, null in nulls.items()}
    gaps = {}
    for case in measurements:
        fast = case._replace(method="fast")
        if case != fast and fast in measurements:
            scores = (f"log2_mse.{tokens}" for tokens in SETS)
            gaps[case.name] = flat({score: measured.gap(case.name, fast.name, score, **shared) for score in scores})
    scores = {case.name: flat(evidence) for case, evidence in measurements.items()}
    return {
        "held_out": held_out,
        "counts": measured.counts(),
        "scores": scores,
        "gaps_to_fast": gaps,
        **_at_one_l0(scores, list(measurements)),
    }


def _at_one_l0(scores: Scores, cases: list[Case]) -> dict[str, Any]:
    """Scores of every method at the middle of the L0 that all of them reach, by sinks, site and score.

    Returns:
        `at_one_l0`, and `not_at_one_l0`: the reason for each score whose methods share no L0.
    """
    matched_scores: dict[str, Any] = {}
    apart: dict[str, str] = {}

    def place(case: Case) -> tuple[str, str]:
        return case.sinks, case.site

    for (sinks, site), here in groupby(sorted(cases, key=place), key=place):
        by_method: dict[str, list[Case]] = {}
        for case in here:
            by_method.setdefault(case.method, []).append(case)
        for score in MATCHED if min(map(len, by_method.values())) > 1 else ():
            try:
                curves = [
                    Curve(
                        method,
                        tuple(scores[case.name]["l0.all"] for case in own),
                        tuple(scores[case.name][score] for case in own),
                    )
                    for method, own in by_method.items()
                ]
                matched_scores[f"{sinks}/{site}/{score}"] = matched(curves)
            except InputError as error:  # methods that share no L0: the scores stand, at their own
                log.warning("%s", error)
                apart[f"{sinks}/{site}/{score}"] = str(error)
    return {"at_one_l0": matched_scores, "not_at_one_l0": apart}


def table(scores: Scores) -> str:
    """The scores as a table in Markdown, a row for every case and for every null of every setting."""
    rows = []
    for name, values in scores.items():
        method, *setting = name.split("/")
        rows.append([" ".join([LABELS[method], *setting]), *(_cell(values[column]) for column in COLUMNS)])
    for label in ("untrained", "pca", "token_means"):
        for setting, values in _by_setting(scores).items():
            rows.append([f"{label} {setting}", *(_cell(values[f"{column}_null_{label}"]) for column in COLUMNS)])
    return markdown(("trained", *COLUMNS), rows)


def _by_setting(scores: Scores) -> dict[str, Mapping[str, Any]]:
    """The first case of every setting: nulls are the same for all methods."""
    first_case: dict[str, Mapping[str, Any]] = {}
    for name, values in scores.items():
        first_case.setdefault(name.partition("/")[2].replace("/", " "), values)
    return first_case


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def write_chart(path: Path, scores: Scores) -> Path:
    """Bars of `CHARTED` for every case with intervals, and marks for the token means; a page of its own."""
    import plotly.graph_objects as go

    figure = go.Figure()
    names = [plain(" ".join([LABELS[name.partition("/")[0]], *name.split("/")[1:]])) for name in scores]
    for number, score in enumerate(CHARTED):
        values = [case_scores[score] for case_scores in scores.values()]
        ends = [(case_scores[f"{score}_low"], case_scores[f"{score}_high"]) for case_scores in scores.values()]
        spread = [(0, 0) if None in (value, low, high) else (value - low, high - value)
                  for value, (low, high) in zip(values, ends, strict=True)]  # fmt: skip
        low, high = ([pair[side] for pair in spread] for side in (0, 1))
        bars = {"type": "data", "symmetric": False, "array": high, "arrayminus": low}
        figure.add_bar(x=names, y=values, name=score, error_y=bars)
        nulls = [case_scores[f"{score}_null_token_means"] for case_scores in scores.values()]
        figure.add_scatter(x=names, y=nulls, name=f"null: {score}, token means", mode="markers",
                           marker=null_look("", number).trace()["marker"])  # fmt: skip
    laid_out(figure, {"type": "category"}, "log2 of the mean squared error a dimension", barmode="group")
    lead = "Held-out conversations, by training method; lower is better. Marks: nulls."
    parts = [FigureSection("Reconstruction", lead, {"log2 MSE": figure})]
    return write_figures_page(path, "FAST", {}, parts, {})

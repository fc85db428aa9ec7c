"""The atoms report drawn with plotly: coherence beside random atoms, faithfulness beside its nulls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ....lab.figures import COLOURS, intervals, laid_out, null_look, plain
from ....lab.score_names import null_label
from .gram import GramStats
from .results import AtomsOf

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

POINTS = 160
R2 = {"r2": "fresh", "r2_seen": "seen", "r2_refit": "refit", "r2_dimension": "by dimension",
      "r2_whitened": "whitened", "r2_with_sinks": "with sinks"}  # fmt: skip


def coherence_figure(subjects: Sequence[AtomsOf]) -> Figure:
    """The share of pairs above each coherence: atoms solid, their random null dotted, the limit at their L0 dashed."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for colour, subject in zip(COLOURS, subjects, strict=False):
        for name, stats, dash in ((subject.name, subject.coherence.data, "solid"),
                                  (f"{subject.name}, random null", subject.coherence.nulls["random"], "dot"),
                                  ):  # fmt: skip
            x, y = _survival(stats)
            figure.add_trace(
                Scatter(x=x, y=y, name=plain(name), mode="lines", line={"color": colour, "dash": dash, "width": 1.7})
            )
        limit = 1 / (2 * max(subject.scores["l0"].value, 1) - 1)
        figure.add_trace(
            Scatter(
                x=[limit, limit], y=[1e-6, 1], name=f"{plain(subject.name)}, limit at mean L0", mode="lines",
                line={"color": colour, "dash": "dash", "width": 1},
            )
        )  # fmt: skip
    return laid_out(
        figure, {"title": {"text": "coherence under the atomic inner product"}, "type": "log", "dtick": 1},
        {"title": {"text": "share of pairs above"}, "type": "log", "range": [-6.5, 0.1], "exponentformat": "power"},
    )  # fmt: skip


def _survival(stats: GramStats) -> tuple[list[float], list[float]]:
    above = np.unique(np.concatenate([np.geomspace(1 / stats.pairs, 1, POINTS), 1 - np.linspace(0, 1, POINTS // 4)]))
    shown = [float(share) for share in above if 1 / stats.pairs <= share < 1]
    return [stats.steps.quantile(1 - share) for share in shown], shown


def faithfulness_figure(subjects: Sequence[AtomsOf]) -> Figure:
    """Every R2 of every dictionary as a bar with its interval, and the nulls as marks on it."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    names = [plain(subject.name) for subject in subjects]
    for (score, title), colour in zip(R2.items(), COLOURS, strict=False):
        scored = [(plain(subject.name), subject.scores[score]) for subject in subjects if score in subject.scores]
        figure.add_bar(
            x=[name for name, _ in scored], y=[evidence.value for _, evidence in scored], name=title,
            marker={"color": colour}, offsetgroup=score,
            error_y=intervals([shown.value for _, shown in scored], [shown.interval for _, shown in scored]),
        )  # fmt: skip
    for null in ("untrained", "pca", "neurons", "rotation"):
        y = [subject.scores["r2"].nulls.get(null) for subject in subjects]
        figure.add_trace(
            Scatter(x=names, y=y, name=f"null: {null_label(null)} (fresh)", mode="markers",
                    marker=null_look(null).trace(10)["marker"])
        )  # fmt: skip
    return laid_out(
        figure, {"type": "category"}, {"title": {"text": "R²"}, "range": [-0.2, 1.05]}, barmode="group"
    )  # fmt: skip

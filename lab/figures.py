"""The look that all plots share: colours, nulls, intervals, axes and legend. The pages draw the same figures."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS = ("#0b76d6", "#e07a0c", "#17936a", "#b3409b", "#7b61d1", "#8a6d3b", "#c2323f", "#2a9fb0", "#5b7a1f", "#a3a117")
"""Of lines and bars that were measured; each is readable on white and on black."""
GREY = "#808995"
"""Of references: a limit, a front, a diagonal."""


class NullLook(NamedTuple):
    """How one null is drawn: in grey, with a dash and an open mark of its own."""

    colour: str
    dash: str
    symbol: str

    def trace(self, size: float = 8) -> dict[str, Any]:
        """Line and marker of a plotly trace."""
        edge = {"width": 1.5, "color": self.colour}
        return {
            "line": {"color": self.colour, "dash": self.dash, "width": 1.4},
            "marker": {"color": self.colour, "symbol": self.symbol, "size": size, "line": edge},
        }


_LOOKS = (
    NullLook("#808995", "dot", "x-thin-open"),
    NullLook("#a08a70", "dash", "diamond-open"),
    NullLook("#6f8fa8", "longdash", "square-open"),
    NullLook("#95809c", "dashdot", "triangle-up-open"),
    NullLook("#7f9478", "longdashdot", "circle-open"),
    NullLook("#a88080", "dot", "star-open"),
    NullLook("#5f6b78", "dash", "cross-open"),
)
_NULLS = ("untrained", "pca", "neurons", "linear", "random", "own_layer", "mean", "shuffled_labels", "token_count",
          "random_features", "shuffled_model", "random_direction", "low_rank", "rotation")  # fmt: skip


def null_look(name: str, number: int = 0) -> NullLook:
    """The look of a null, the same in every plot.

    Args:
        number: its place in the plot, which chooses the look of a null that has none of its own.
    """
    return _LOOKS[(_NULLS.index(name) if name in _NULLS else number) % len(_LOOKS)]


def plain(text: str) -> str:
    """Text from data for names, hovers and titles of plotly, which reads tags and `%{...}` in them."""
    return html.escape(text, quote=False).replace("%{", "&#37;{")


def intervals(values: Sequence[float | None], ends: Sequence[tuple[float, float] | None]) -> dict[str, Any]:
    """Error bars of a plotly trace, from the two ends of each interval; none where there is no value or no interval."""
    above: list[float | None] = []
    below: list[float | None] = []
    for value, end in zip(values, ends, strict=True):
        low, high = end or (value, value)
        above.append(None if value is None or high is None else high - value)
        below.append(None if value is None or low is None else value - low)
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.2, "width": 3}


def log_axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis with plain numbers at its ticks, close enough that a short axis has some too.

    Args:
        values: that are drawn, all above 0.
    """
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if high < 8 * low else (1, 2, 5) if high < 300 * low else (1,)
    ticks = [step * 10.0**power for power in range(-8, 9) for step in steps]
    shown = [tick for tick in ticks if low / 2 <= tick <= 2 * high]
    return {"title": {"text": title}, "type": "log", "tickvals": shown, "ticktext": [f"{tick:,.6g}" for tick in shown]}


def laid_out(figure: Figure, x: Mapping[str, Any] | str = "", y: Mapping[str, Any] | str = "", **layout: Any) -> Figure:
    """The figure with its axes, the shared look, and its legend below the plot, where it leaves the plot its width.

    Args:
        x: title of the axis, or its plotly layout.
        y: likewise.
        layout: further plotly layout.
    """
    axes = [{"title": {"text": axis}} if isinstance(axis, str) else dict(axis) for axis in (x, y)]
    legend = {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
    figure.update_layout(
        xaxis={"automargin": True, **axes[0]}, yaxis={"automargin": True, **axes[1]}, template="plotly_white",
        margin={"l": 50, "r": 15, "t": 15, "b": 45}, hovermode="closest", **{"legend": legend, **layout},
    )  # fmt: skip
    return figure

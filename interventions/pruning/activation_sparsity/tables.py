"""The two reports as tables of cells, nulls in brackets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ....lab.evidence import Evidence, mark
from .cores import LayerCores
from .curves import LOW_RANK, ORACLE, RANK_AWARE, Curves
from .curves import RANDOM as RANDOM_CHANNELS

CURVES_LEGEND = (
    "Relative error ||y - y_hat|| / ||y|| of a map's output at the decision's sparsity, on fresh passages. Random "
    "and low rank alone are nulls; the oracle, greedy and in hindsight, is the bound of |x| |w| with all on channels."
)
LOSSES_LEGEND = "Cross-entropy more than that of the model as it is, nats a token, all maps of the layer at once."
CORES_LEGEND = (
    "In brackets, nulls in the order global core (or another prompt's), random core; after delta CE the bound: the "
    "largest neurons of every token. Of core_similarity: shuffled embeddings, overlap of token sets."
)

Table = list[list[str]]


def curves_table(curves: Curves, sparsity: float) -> Table:
    """A line a map at one sparsity."""
    names = ("|x|", "|x| |w|", "best share", "error there", "random", "low rank alone", "oracle", "recall of oracle")
    lines = [["map", *names]]
    for module_curves in curves.modules:
        best = module_curves.best[sparsity]
        full, chosen = module_curves.at(sparsity, RANK_AWARE), module_curves.at(sparsity, RANK_AWARE, best)
        nulls = [module_curves.at(sparsity, RANDOM_CHANNELS), module_curves.at(sparsity, LOW_RANK, 0.0)]
        points = [module_curves.at(sparsity, "abs"), full, chosen, *nulls, module_curves.at(sparsity, ORACLE)]
        cells = [f"{point.error.value:.3f}" for point in points]
        errors = {str(number): null.error.value for number, null in enumerate(nulls)}
        for number in range(3):  # methods, not nulls and not the bound
            cells[number] += mark(points[number].error.value, errors, interval=points[number].error.interval)
        lines.append([module_curves.module.name, *cells[:2], f"{best:g}", *cells[2:], "" if full.recall is None else
                      _cell(full.recall)])  # fmt: skip
    return lines


def losses_table(losses: Mapping[str, Mapping[str, Evidence]]) -> Table:
    """A line for each group of maps."""
    first = next(iter(losses.values()))
    lines = [
        ["masked", *(f"{split}, {name}" for split, evidence in first.items() for name in ("R-Sparse", *evidence.nulls))]
    ]
    for group, by_split in losses.items():
        cells = []
        for evidence in by_split.values():
            spread = f" [{evidence.interval[0]:.3f}, {evidence.interval[1]:.3f}]" if evidence.interval else ""
            marked = evidence.mark()
            cells += [f"{evidence.value:.3f}{spread}{marked}", *(f"{value:.3f}" for value in evidence.nulls.values())]
        lines.append([group, *cells])
    return lines


def cores_table(reports: Sequence[LayerCores]) -> Table:
    """A line for each score, a column for each layer."""
    names = list(dict.fromkeys(name for report in reports for name in report.scores))
    lines = [["score", *(f"layer {report.layer}" for report in reports)]]
    for name in names:
        row = [report.scores.get(name) for report in reports]
        lines.append([name, *("" if evidence is None else _cell(evidence) for evidence in row)])
    return lines


def _cell(evidence: Evidence) -> str:
    nulls = " ".join(f"{value:.3f}" for value in evidence.nulls.values())
    return f"{evidence.value:.3f}" + (f" ({nulls})" if nulls else "") + evidence.mark()

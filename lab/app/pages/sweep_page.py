"""`write_sweep_page`: a sweep on one HTML page that needs no network: scores against L0, training, and the table."""

from __future__ import annotations

from pathlib import Path

from ....saes.sweeps.plot import TITLES
from ....saes.sweeps.results import TRAINING, SweepResult
from ....saes.sweeps.table import cells
from .figures_page import FigureSection, write_figures_page

LEGEND = (
    "Bars: 95 % interval over held-out documents. Wide grey line: Pareto front of all trained dictionaries. Grey open "
    "marks: nulls, which have learned nothing (untrained) or second moments only (pca, linear), or whose latents write "
    "to their own layer alone (own_layer)."
)
SEVERAL = (
    "Scores are relative to what is reconstructed: two members compare where that is the same. Those have a plot of "
    "their own below, with their front and nulls."
)
COURSE = "On training rows. A latent counts as dead when it has not fired for training.dead_after rows."
TABLE = "Every score, with its interval where it was measured on held-out text; more in results.json and results.csv."


def write_sweep_page(path: Path | str, result: SweepResult) -> Path:
    """Write the page; the same result gives the same bytes. What was not evaluated has no part against L0."""
    several = len(result.sites()) > 1
    figures = {}
    for site in [*([None] if several else []), *result.sites()] if result.evaluations else []:
        for score in result.plotted(site):
            title = f"{TITLES[score]}, all dictionaries" if site is None else f"{TITLES[score]} at {site}"
            figures[title] = result.plot(score, site)
    facts = {"Sites": ", ".join(result.sites()), "Dictionaries": str(len(result.members))}
    for any_of in list(result.evaluations.values())[:1]:
        facts = {"Model": any_of.model, **facts, "Held out": any_of.held_out}
    training = {TITLES[score]: result.plot_training(score) for score in TRAINING}
    parts = [
        *([FigureSection("Against L0", f"{LEGEND} {SEVERAL}" if several else LEGEND, figures)] if figures else []),
        FigureSection("Training", COURSE, training),
        FigureSection("Dictionaries", TABLE, table=cells(result.table())),
    ]
    title = f"Sweep of {len(result.members)} dictionaries"
    return write_figures_page(path, title, facts, parts, {"results": result.to_json()})

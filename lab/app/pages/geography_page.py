"""`write_geography_page`: spatial statistics on one HTML page that needs no network: tables, controls and maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....probes.geo.maps import cluster_map, value_map
from ....probes.geo.measure import MEASURED, SpatialConfig, significant
from ....probes.geo.places import Places
from ....probes.geo.reading import Values, columns_of
from ....probes.geo.statistics import local_moran
from ....probes.geo.weights import Weights
from ...evidence import mark
from .figures_page import FigureSection, write_figures_page

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

TITLES = {
    "spatial_share": "Share of units with spatial order",
    "mean_i": "Mean Moran's I of the units",
    "largest_i": "Largest Moran's I of a unit",
    "coordinates": "Coordinates read by a linear map",
}
LEADS = {
    "spatial_share": "Moran's I of at least {least:g} at a false discovery rate of {alpha:g} over all live units, "
    "confirmed by {permutations} permutations. The prompt “name” is the place's name alone, “region” adds the region's "
    "name, “residualised” is that less the mean over the region. All columns after these are nulls.",
    "mean_i": "Over live units; near 0 without spatial order.",
    "largest_i": "The unit is chosen on the same places, so compare with the largest among as many random units. "
    "“best possible” is what no values can exceed on these neighbours.",
    "coordinates": "Ridge regression on names alone, tested on blocks of the map that it has not seen, and on places "
    "left out at random. “region mean” knows the region of each place and nothing else.",
}
MAPS = (
    "The unit with the largest Moran's I on names alone. First its value at each place, in classes of about equal "
    "size; then the places whose local Moran is significant at a false discovery rate of {alpha:g}."
)
Data = Mapping[str, Any]


def geography_cells(result: Data) -> dict[str, list[list[str]]]:
    """For every table of the page a heading and a line a country and reader, as text."""
    rows = [(country, reader, record) for country, readers in result["countries"].items()
            for reader, record in readers.items()]  # fmt: skip
    tables = {}
    for score in ("spatial_share", "mean_i", "largest_i"):
        forms = [form for form in MEASURED if any(f"{score}_{form}" in record["scores"] for *_, record in rows)]
        nulls = list(
            dict.fromkeys(null for *_, record in rows for null in _controls(record["scores"][f"{score}_name"]))
        )
        limit = ["best possible"] if score == "largest_i" else []
        table = [["country", "units", "live", *forms, *limit, *(null.replace("_", " ") for null in nulls)]]
        for country, reader, record in rows:
            evidence = {form: record["scores"].get(f"{score}_{form}") for form in forms}
            null_values = _controls(evidence["name"])
            best = [f"{record['best_possible']:.3f}"] if limit else []
            table.append([country, reader, str(record["live"]["name"]), *map(_value, evidence.values()), *best,
                          *(null_values.get(null, "") for null in nulls)])  # fmt: skip
        tables[score] = table
    tables["coordinates"] = _coordinates(rows)
    return tables


def _coordinates(rows: list[tuple[str, str, Data]]) -> list[list[str]]:
    names = ("coordinates_r2_blocks", "coordinates_r2_random", "coordinates_km_blocks", "coordinates_km_random")
    heading = ["country", "units"]
    for name in names:
        heading += [name.removeprefix("coordinates_").replace("_", " "), "region mean", "shuffled places"]
    table = [heading]
    for country, reader, record in rows:
        if names[0] not in record["scores"]:
            continue
        cells = []
        for name in names:
            evidence = record["scores"][name]
            cells += [_value(evidence), *(_number(evidence["nulls"][n]) for n in ("region_mean", "shuffled_places"))]
        table.append([country, reader, *cells])
    return table


def write_geography_page(
    path: Path | str,
    result: Data,
    places: Places,
    weights: Mapping[str, Weights],
    values: Mapping[str, Values],
    config: SpatialConfig,
) -> Path:
    """Write the page; the same input gives the same bytes.

    Args:
        result: what `monosem geography` returns.
        weights: of every country, in the order of its places.
        values: one row a place for the prompts `name`, by reader.
    """
    options = result["spatial"]
    parts = [FigureSection(TITLES[name], LEADS[name].format(**options), table=table)
             for name, table in geography_cells(result).items()]  # fmt: skip
    maps = FigureSection("Maps", MAPS.format(**options), _maps(result, places, weights, values, config))
    facts = {"Model": result["model"], "Places": ", ".join(f"{code} {n}" for code, n in result["places"].items()),
             "Neighbours": str(config.k), "Source": "GeoNames (CC BY 4.0)"}  # fmt: skip
    return write_figures_page(path, f"Geography of {result['model']}", facts, [*parts, maps], {"result": result})


def _maps(
    result: Data, places: Places, weights: Mapping[str, Weights], values: Mapping[str, Values], config: SpatialConfig
) -> dict[str, Figure]:
    """Two figures for the first unit of every country and reader, by title."""
    figures: dict[str, Figure] = {}
    for country in weights:
        in_country = places.of(country)
        for reader, record in result["countries"][country].items():
            first = record["top"][0]
            x = columns_of(values[reader], np.array([first["unit"]]))[in_country]
            local = local_moran(x, weights[country])
            marked = significant(local.z, config)[:, 0]
            here, column = places[in_country], x[:, 0]
            title = f"{country}, {reader}, unit {first['unit']}: Moran's I {first['i_name']:.3f}"
            figures[title] = value_map(here, column)
            figures[f"{title}, clusters"] = cluster_map(here, column, local.quadrant[:, 0], marked)
    return figures


def _controls(evidence: Data) -> dict[str, str]:
    """The nulls of a score as text, with those that could not be measured."""
    known = {null: _number(value) for null, value in evidence["nulls"].items()}
    return known | dict.fromkeys(evidence.get("missing", {}), "not measured")


def _value(evidence: Data | None) -> str:
    if evidence is None:
        return ""
    spread = (
        f" [{_number(evidence['interval'][0])}, {_number(evidence['interval'][1])}]" if evidence["interval"] else ""
    )
    return (
        _number(evidence["value"])
        + spread
        + mark(evidence["value"], evidence["nulls"], evidence["better"], evidence["interval"])
    )


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"

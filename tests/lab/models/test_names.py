from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import pytest
from monosem.lab.models.names import canonical, family, hub_name, same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gpt2-small", "openai-community/gpt2"),
        ("gpt2-small", "gpt2"),
        ("https://huggingface.co/gpt2", "openai-community/gpt2"),
        ("gemma-2b", "google/gemma-2b"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("Llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("my-model", "someone/My-Model"),
    ],
)
def test_names_of_one_model(one: str, other: str) -> None:
    assert same(one, other) is True and same(other, one) is True


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gpt2-small", "gpt2-medium"),
        ("gpt2-small", "someone/gpt2"),
        ("gemma-2b", "google/gemma-2-2b"),
        ("gemma-2b", "google/gemma-2b-it"),
        ("pythia-70m", "EleutherAI/pythia-70m-deduped"),
        ("EleutherAI/pythia-70m-v0", "EleutherAI/pythia-70m"),
        ("one", "two"),
    ],
)
def test_names_of_two_models(one: str, other: str) -> None:
    assert same(one, other) is False and same(other, one) is False


def test_a_path_tells_its_model_by_its_name_the_cache_and_its_config_or_not_at_all(tmp_path: Path) -> None:
    for folder in ("gpt2", "models--openai-community--gpt2/snapshots/0a1b", "google/gemma-2b", "checkpoint", "tuned"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "tuned" / "config.json").write_text('{"_name_or_path": "openai-community/gpt2"}')
    for folder in ("gpt2", "models--openai-community--gpt2/snapshots/0a1b", "tuned", "gone/gpt2.gguf"):
        assert same("gpt2-small", str(tmp_path / folder)) is True, folder
    assert same("gpt2-small", str(tmp_path / "google" / "gemma-2b")) is False
    assert same("gpt2-small", str(tmp_path / "checkpoint")) is None
    (tmp_path / "checkpoint" / "config.json").write_text("{")
    assert same("gpt2-small", str(tmp_path / "checkpoint")) is None


def test_families_are_those_of_the_models() -> None:
    assert [family(name) for name in ("gpt2-small", "EleutherAI/pythia-70m", "gemma-2-2b", "unheard/of")] == [
        "gpt2", "gpt_neox", "gemma", None,
    ]  # fmt: skip


def installed(package: str) -> Path:
    """The folder of a package, which is not imported: that takes half a minute."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent


def test_every_short_name_of_transformer_lens_is_known() -> None:
    """The table is ours; a name that a new version of TransformerLens brings fails here."""
    lens = runpy.run_path(str(installed("transformer_lens") / "supported_models.py"))
    for official, short_names in lens["MODEL_ALIASES"].items():
        for short in short_names:
            assert hub_name(short) == hub_name(official) is not None, (short, official)
    official_names = lens["OFFICIAL_MODEL_NAMES"]
    assert len({canonical(name) for name in official_names}) == len(set(official_names))


def test_every_short_name_of_the_releases_in_sae_lens_is_known() -> None:
    listed = (installed("sae_lens") / "pretrained_saes.yaml").read_text()
    models = set(re.findall(r"^ +model: (\S+)$", listed, re.MULTILINE))
    assert "gpt2-small" in models and not [name for name in models if "/" not in name and hub_name(name) is None]

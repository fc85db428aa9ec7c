"""The public names of the packages: one list, seen alike by users, editors and type checkers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import monosem.interventions
import monosem.lab
import monosem.probes
import monosem.saes
import pytest
from jupyter_client.manager import start_new_kernel
from monosem.saes.hints import ATTRIBUTES, HINTS

ROOMS = [
    importlib.import_module(f"monosem.saes.{room}")
    for room in ("architectures", "training", "evaluation", "analysis", "sweeps", "autointerp")
]
PACKAGES = pytest.mark.parametrize(
    "package",
    [monosem.lab, monosem.saes, monosem.probes, monosem.interventions, *ROOMS],
    ids=lambda package: package.__name__,
)


def typed_imports(package: ModuleType) -> list[ast.ImportFrom]:
    """The imports under `if TYPE_CHECKING`."""
    assert package.__file__
    (block,) = [node for node in ast.parse(Path(package.__file__).read_text()).body if isinstance(node, ast.If)]
    return [line for line in block.body if isinstance(line, ast.ImportFrom)]


@PACKAGES
def test_every_name_of_the_list_is_found_where_it_says(package):
    names = [(alias.name, line.module) for line in typed_imports(package) for alias in line.names]
    assert package.__all__ == sorted(name for name, _ in names)
    rooms = set(dir(package)) - set(package.__all__)
    assert dir(package) == sorted({*package.__all__, *rooms})
    assert all(isinstance(getattr(package, room), ModuleType) for room in rooms)
    for name, home in names:
        assert getattr(package, name) is getattr(importlib.import_module(f"{package.__name__}.{home}"), name)


@PACKAGES
def test_type_checkers_take_the_names_for_public_ones(package):
    # PEP 484: in a typed package an import is public if it is written `import X as X`
    assert all(alias.asname == alias.name for line in typed_imports(package) for alias in line.names)


@PACKAGES
def test_no_module_hides_a_public_name(package):
    assert not {module.name for module in pkgutil.iter_modules(package.__path__)} & set(package.__all__)


@pytest.mark.parametrize(
    ("package", "name", "near"),
    [(monosem.saes, "Trainr", "Trainer"), (monosem.lab, "HookModel", "HookedModel"), (monosem.saes, "TopKK", "TopK")],
)
def test_a_misspelt_name_suggests_the_right_one(package, name, near):
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no '{name}': did you mean '{near}'"):
        getattr(package, name)


def test_importing_the_packages_imports_no_torch():
    code = "import monosem.lab, monosem.saes, monosem.probes, monosem.kernels, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_about_twenty_names_stand_in_saes_and_the_rooms_are_offered():
    assert 15 <= len(monosem.saes.__all__) <= 25
    assert {"training", "architectures", "evaluation", "analysis", "sweeps", "formats"} <= set(dir(monosem.saes))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("SAE", "module 'monosem.saes' has no 'SAE': load(...) reads SAELens' files"),
        ("measure_atoms", "module 'monosem.saes' has no 'measure_atoms': it is monosem.saes.analysis.measure_atoms"),
        ("ActivationsStore", "monosem.lab.ActivationStream reads"),
        ("trainSAE", "Trainer trains a dictionary"),
        ("SaeTrainer", "Trainer trains a dictionary"),
    ],
)
def test_a_name_of_another_library_or_room_says_what_to_use(name, advice):
    with pytest.raises(AttributeError, match=re.escape(advice)):
        getattr(monosem.saes, name)


def test_lab_has_advice_too():
    with pytest.raises(AttributeError, match=r"'monosem.lab' has no 'HookedTransformer': load_model opens a model"):
        monosem.lab.HookedTransformer  # noqa: B018


def test_advice_names_what_there_is():
    texts = [*HINTS.values(), *ATTRIBUTES.values()]
    for name in {name for text in texts for name in re.findall(r"monosem\.lab\.(\w+)", text)}:
        assert hasattr(monosem.lab, name)
    for room, name in {pair for text in texts for pair in re.findall(r"(architectures|formats)\.(\w+)", text)}:
        assert hasattr(importlib.import_module(f"monosem.saes.{room}"), name)
    assert not set(HINTS) & set(monosem.saes.__all__)


@pytest.mark.parametrize(
    ("name", "advice"), [("cfg", "dictionary.config has the sizes"), ("from_pretrained", "monosem.saes.load(...)")]
)
def test_a_dictionary_says_what_to_use_for_an_attribute_of_another_library(name, advice):
    sae = monosem.saes.TopK(monosem.saes.SAEConfig(4, 8, 2))
    for thing in (sae, *([type(sae)] if name == "from_pretrained" else [])):
        with pytest.raises(AttributeError, match=re.escape(advice)):
            getattr(thing, name)
    assert not hasattr(sae, "nothing_like_it")


def test_packages_are_typed_and_have_a_version():
    for package in (monosem.lab, monosem.saes, monosem.probes, monosem.interventions):
        assert package.__version__ == version("monosem")
        assert (Path(str(package.__file__)).parent / "py.typed").is_file()


def test_a_kernel_completes_the_public_names():
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.execute_interactive("import monosem.lab, monosem.saes", timeout=60)
        for package in (monosem.lab, monosem.saes):
            asked = client.complete(f"{package.__name__}.", len(package.__name__) + 1)
            while (reply := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != asked:
                pass
            matches = {match.rpartition(".")[2] for match in reply["content"]["matches"]}
            assert set(package.__all__) <= matches and not matches & {"annotations", "lazily", "lazy", "TYPE_CHECKING"}
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

"""The public names of the packages: one list, seen alike by users, editors and type checkers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import monosem.interventions
import monosem.lab
import monosem.probes
import monosem.saes
import pytest

PACKAGES = pytest.mark.parametrize(
    "package",
    [monosem.lab, monosem.saes, monosem.probes, monosem.interventions],
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
    assert dir(package) == package.__all__
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

"""The public names of the packages: the table, `__all__` and what type checkers see are the same list."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import monosem.lab
import monosem.probes
import monosem.saes
import pytest

PACKAGES = pytest.mark.parametrize(
    "package", [monosem.lab, monosem.saes, monosem.probes], ids=lambda package: package.__name__
)


def typed_imports(package: ModuleType) -> dict[str, str]:
    """Name to module, from the imports under `if TYPE_CHECKING`."""
    assert package.__file__
    (block,) = [node for node in ast.parse(Path(package.__file__).read_text()).body if isinstance(node, ast.If)]
    lines = [line for line in block.body if isinstance(line, ast.ImportFrom)]
    return {alias.name: line.module or "" for line in lines for alias in line.names}


@PACKAGES
def test_all_names_come_from_the_modules_that_the_type_checker_sees(package):
    homes = typed_imports(package)
    assert homes == package._HOMES
    assert sorted(package.__all__) == sorted(homes)
    for name, home in homes.items():
        assert getattr(package, name) is getattr(importlib.import_module(f"{package.__name__}.{home}"), name)


@PACKAGES
def test_no_module_hides_a_public_name(package):
    assert not {module.name for module in pkgutil.iter_modules(package.__path__)} & set(package.__all__)


@PACKAGES
def test_a_misspelt_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"{package.__name__}.*'Trainr'"):
        _ = package.Trainr


def test_importing_the_packages_imports_no_torch():
    code = "import monosem.lab, monosem.saes, monosem.probes, monosem.kernels, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""The shape of the project: what the README says of it, how large its parts are, what imports what."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lab", "saes", "probes", "interventions", "kernels")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_the_readme_shows_the_real_packages():
    told = set(re.findall(r"^([a-z_/]+)/  ", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    real = {str(path.parent.relative_to(ROOT)) for path in MODULES if path.name == "__init__.py"}
    assert told == real | {"notebooks", "tests"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_units_stay_small(path):
    assert path.read_text().count("\n") <= 500
    for node in ast.walk(parsed(path)):
        lines = getattr(node, "end_lineno", 0) - getattr(node, "lineno", 0)
        if isinstance(node, ast.FunctionDef):
            assert lines <= 80, f"{node.name} has {lines} lines"
        if isinstance(node, ast.ClassDef):
            assert lines <= 250, f"{node.name} has {lines} lines"
        if isinstance(node, ast.ExceptHandler):
            assert not all(isinstance(line, ast.Pass) for line in node.body), "an exception is swallowed"


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: str(p.name))
def test_folders_are_never_imported_by_their_bare_name(path):
    for node in ast.walk(parsed(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            assert name.split(".")[0] not in PACKAGES, f"import {name}: write monosem.{name}"


def test_every_public_function_and_class_has_a_docstring():
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in MODULES
        for node in parsed(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not missing, missing


def test_the_wheel_holds_every_module_and_each_imports(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", tmp_path, "."], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        names = set(archive.namelist())
    expected = {f"monosem/{path.relative_to(ROOT)}" for path in MODULES}
    assert expected <= names
    modules = [name[:-3].replace("/", ".").removesuffix(".__init__") for name in sorted(expected)]
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "import monosem.lab; assert 'site/monosem/lab' in monosem.lab.__file__, monosem.lab.__file__"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import site; site.main()\n" + code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_optional_packages_stay_out_until_they_are_needed():
    code = (
        "import monosem.lab.loop, monosem.lab.text, monosem.saes.training, monosem.saes.files, sys\n"
        "heavy = {'wandb', 'plotly', 'duckdb', 'sae_lens', 'transformer_lens', 'datasets', 'transformers', 'trackio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

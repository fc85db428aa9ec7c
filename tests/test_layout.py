"""The shape of the project: what imports what, how full its rooms are, and that the wheel holds all of it."""

import ast
import re
import subprocess
import sys
import zipfile
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lab", "saes", "probes", "interventions", "kernels")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(path: Path, known: frozenset[str]) -> set[str]:
    """The modules of ours that a file imports when it runs, those inside functions included."""
    tree, package = parsed(path), path.parent.relative_to(ROOT).parts
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    typed = {id(line) for block in blocks for inner in block.body for line in ast.walk(inner)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and id(node) not in typed:
            base = ".".join((*package[: len(package) - node.level + 1], *(node.module or "").split("."))).rstrip(".")
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return (found & known) - {module_name(path)}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_files_import_each_other_in_a_circle():
    known = frozenset(map(module_name, MODULES))
    graph = {module_name(path): imports_of(path, known) for path in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_an_exception_is_never_swallowed():
    swallowed = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body)
    ]
    assert not swallowed, swallowed


def test_folders_stay_small():
    """At most 15 files stand in a room without a folder of their own."""
    for room in ("lab", "saes", "probes", "lab/app"):
        assert len(list((ROOT / room).glob("*.py"))) <= 15, room


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


def docstrings(path: Path) -> list[tuple[int, str]]:
    """Line and text of the docstrings of a file, its classes, functions and fields of classes."""
    texts = []
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        if text := ast.get_docstring(node):
            texts.append((node.body[0].lineno, text))
        for line in node.body[1:] if isinstance(node, ast.ClassDef) else ():
            if (
                isinstance(line, ast.Expr)
                and isinstance(line.value, ast.Constant)
                and isinstance(line.value.value, str)
            ):
                texts.append((line.lineno, line.value.value))
    return texts


def test_docstrings_open_with_their_subject_in_a_short_sentence():
    unclear = []
    for path in MODULES:
        for line, text in docstrings(path):
            first = re.split(r"(?<=[.:])\s", text.strip())[0]
            if re.match(r"(What|Whether|Those|As|There|It|They)\b", first) or len(first.split()) > 25:
                unclear.append(f"{path.relative_to(ROOT)}:{line} {first}")
    assert not unclear, "\n".join(unclear)


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
        "import monosem.lab.runs.loop, monosem.lab.text.corpus, sys\n"
        "import monosem.saes.training.trainer, monosem.saes.files\n"
        "heavy = {'wandb', 'plotly', 'duckdb', 'sae_lens', 'transformer_lens', 'datasets', 'transformers', 'trackio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

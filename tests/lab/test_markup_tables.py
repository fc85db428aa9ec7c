"""What notebooks show of an object is escaped by the one helper for markup."""

from __future__ import annotations

import ast
from pathlib import Path

import monosem.lab
import monosem.saes
from monosem.lab.markup import facts_table

ROOT = Path(monosem.lab.__path__[0]).parent


def test_names_and_values_of_facts_are_escaped() -> None:
    shown = facts_table({"a<b": "<script>"}, "x & y")
    assert shown == ("<table><caption>x &amp; y</caption><tr><th>a&lt;b</th><td>&lt;script&gt;</td></tr></table>")


def test_nothing_that_notebooks_show_is_escaped_elsewhere() -> None:
    shown, strange = 0, []
    for package in ("lab", "saes", "probes", "interventions", "kernels"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and node.name == "_repr_html_":
                    shown += 1
                    written = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
                    if any("<" in str(part.value) for part in written):
                        strange.append(str(path))
    assert shown >= 9 and not strange

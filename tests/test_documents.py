"""Documents hold what they say: links lead somewhere, figures name commands, commands have the options given."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from monosem.lab.app.help import options_of, records

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_readme_and_examples_stay_short():
    assert len(README.read_text().splitlines()) <= 150
    first = [line for line in python_blocks(README)[0].splitlines() if line.strip()]
    assert len(first) <= 10 and "d_in" not in "".join(first)
    assert len(EXAMPLES) == 5
    assert all(len(path.read_text().splitlines()) < 40 for path in EXAMPLES)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, fragment = target.partition("#")
        linked = (page.parent / name) if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page.name} links to {target}"


def test_every_result_names_its_command():
    tables = (ROOT / "docs/results.md").read_text().split("| what | result | command |")[1:]
    assert tables
    for table in tables:
        for row in table.split("\n\n")[0].strip().splitlines()[1:]:
            assert re.search(r"`(monosem|make|python) |the same", row.split("|")[-2]), row


def test_code_of_contributing_is_python():
    for block in python_blocks(CONTRIBUTING):
        compile(block, "CONTRIBUTING.md", "exec")


def test_the_page_of_commands_is_that_of_their_help():
    generator = runpy.run_path(str(ROOT / "docs/generate_commands.py"))
    assert (ROOT / "docs/commands.md").read_text() == generator["page"](), "run python docs/generate_commands.py"


@pytest.mark.parametrize("page", sorted({*PAGES} - {CONTRIBUTING}), ids=lambda page: page.name)
def test_commands_have_the_options_that_pages_give_them(page):
    for line in re.findall(r"`(?:make )?monosem ((?:bench )?[a-z-]+[^`]*)`", page.read_text()):
        words = line.split()
        name = " ".join(words[:2]) if words[0] == "bench" else words[0]
        assert name in records(), f"{page.name}: monosem {line}"
        for option in (word for word in words if word.startswith("--")):
            assert option in (*options_of(name), "--json", "--help"), f"{page.name}: monosem {line}"

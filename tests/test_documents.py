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


def sections(page: Path) -> list[str]:
    """The parts of a page, each from its heading to the next."""
    return re.split(r"^(?=#+ )", page.read_text(), flags=re.MULTILINE)[1:]


def tables(text: str) -> list[list[list[str]]]:
    """Cells of every table, the heading first and without the line below it."""
    blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    lines = [[line for line in block.splitlines() if not line.startswith("| ---")] for block in blocks]
    return [[[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block] for block in lines]


COMMAND = r"`(monosem|make|python) |the same"
DATE = r"20\d\d-\d\d-\d\d"


def test_every_figure_of_the_results_has_a_command_a_date_and_a_machine() -> None:
    checked = 0
    for section in sections(ROOT / "docs/results.md"):
        for heading, *rows in tables(section):
            for row in map(lambda row: dict(zip(heading, row, strict=True)), rows):
                if "command" in row:
                    assert re.search(COMMAND, row["command"]), row
                if "result" in row:
                    assert re.fullmatch(rf"{DATE}, [A-Z]", row["measured"]), row
                    checked += 1
            if "command" not in heading and heading[0] != "machine":
                assert re.search(COMMAND, section) and re.search(rf"{DATE},? (on )?[A-Z]\b", section), section[:200]
                checked += 1
    assert checked > 30


def test_every_table_of_the_kernels_has_a_command_a_date_and_a_machine() -> None:
    found = [section for section in sections(ROOT / "kernels/BENCHMARKS.md") if tables(section)]
    assert len(found) > 3
    for section in found:
        assert re.search(COMMAND, section) and re.search(DATE, section), section[:200]
        assert re.search(r"Xeon|EPYC|without a GPU|NVIDIA", section), section[:200]


def test_the_results_of_the_readme_have_a_date_and_a_machine_and_lead_to_their_commands() -> None:
    (section,) = [part for part in sections(README) if part.startswith("## Results")]
    assert re.search(DATE, section) and "cores" in section and "(docs/results.md)" in section


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES, *NOTEBOOKS], ids=lambda page: page.name)
def test_cross_entropy_recovered_names_its_ablation(page: Path) -> None:
    for line in page.read_text().splitlines():
        if re.search(r"cross-entropy recovered|CE recovered|\bce_recovered\b", line):
            assert re.search(r"zero|mean", line), line


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

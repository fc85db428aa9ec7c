"""Tables of text cells, as aligned lines, as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from .evidence import MARK
from .markup import Markup, element

NO_BETTER = f"{MARK.strip()} not better than one of its nulls over its whole 95 % interval"
"""The line below a table in which a cell is marked."""
NAME = 22
"""Characters from which the name of a row may break into lines."""
LONG = 34
"""Characters from which a cell of an HTML table may break into lines."""


def aligned(table: Sequence[Sequence[str]]) -> str:
    """The cells as lines of text, in columns, and what a mark means where there is one."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*lines, *([NO_BETTER] if _marked(table) else [])])


def as_html(table: Sequence[Sequence[str]], title: str = "") -> Markup:
    """The cells as a table element; everything in it is escaped, and what a mark means stands in the foot."""
    heading, *rows = table
    head = element("tr", *(element("th", cell, scope="col") for cell in heading))
    body = [_row(row) for row in rows]
    foot = element("tfoot", element("tr", element("td", NO_BETTER, colspan=len(heading)))) if _marked(table) else None
    caption = element("caption", title) if title else None
    return element("table", caption, element("thead", head), element("tbody", *body), foot)


def markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: text in the first column, numbers flush right in the others."""
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(row: Sequence[str]) -> Markup:
    name = element("th", row[0], scope="row", class_="long" if len(row[0]) > NAME else None)
    return element("tr", name, *(element("td", cell, class_=_kind(cell)) for cell in row[1:]))


def _kind(cell: str) -> str | None:
    kinds = [*(["worse"] if cell.endswith(MARK) else []), *(["long"] if len(cell) > LONG else [])]
    return " ".join(kinds) or None


def _marked(table: Sequence[Sequence[str]]) -> bool:
    return any(cell.endswith(MARK) for row in table for cell in row)

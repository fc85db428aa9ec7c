"""Tables of text cells, as aligned lines, as HTML and as Markdown."""

from __future__ import annotations

import html
from collections.abc import Sequence


def aligned(table: Sequence[Sequence[str]]) -> str:
    """The cells as lines of text, in columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "\n".join(line.rstrip() for line in lines)


def as_html(table: Sequence[Sequence[str]], title: str = "") -> str:
    """The cells as a table element; everything in it is escaped."""
    heading, *rows = ([html.escape(cell) for cell in row] for row in table)
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heading)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    caption = f"<caption>{html.escape(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: text in the first column, numbers flush right in the others."""
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

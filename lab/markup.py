"""HTML elements as values: the one place where text from data is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping


class Markup(str):
    """HTML that may stand in a page as it is; every other text is escaped when it becomes a child or an attribute."""


def escaped(value: object) -> Markup:
    """The text of a value as HTML; `Markup` stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def joined(parts: Iterable[object]) -> Markup:
    """Several values one after another; None is left out."""
    return Markup("".join(escaped(part) for part in parts if part is not None))


def facts_table(facts: Mapping[str, object], title: object = None) -> Markup:
    """A table with a line for each fact: its name as the heading, and its value."""
    rows = (element("tr", element("th", name), element("td", value)) for name, value in facts.items())
    return element("table", None if title is None else element("caption", title), *rows)


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """One element with its children.

    Args:
        tag: name of the element.
        children: text, numbers or `Markup`; None is left out.
        attributes: a name that Python reserves takes a trailing underscore, and `_` stands for `-`
            (`class_="panel"`, `data_tip="..."`). None and False leave the attribute out, True writes its name alone.
    """
    written = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        written.append(f" {name}" if value is True else f' {name}="{escaped(str(value))}"')
    return Markup(f"<{tag}{''.join(written)}>{joined(children)}</{tag}>")

"""`write_page`: the frame of every page. One file, one stylesheet, no network; all text from data is escaped.

A page embeds its numbers once, as JSON in `<script id="data">`. Its content security policy forbids every request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...markup import Markup, element, escaped
from ...storage import atomic_path

SHARED = ("page.js", "figures.js")
"""Scripts of every page."""


def write_page(
    path: Path | str,
    *,
    title: str,
    facts: Mapping[str, object],
    body: Markup,
    data: Mapping[str, Any],
    sections: Mapping[str, str] | None = None,
    code: Sequence[str] = (),
) -> Path:
    """Write the page; the same input gives the same bytes.

    Args:
        facts: shown under the title; those without a value are left out.
        body: the main part.
        data: JSON values that the page carries.
        sections: headings to link to, by anchor.
        code: names of the scripts that this kind of page needs beside the shared ones.
    """
    shown = [element("div", element("dt", key), element("dd", value)) for key, value in facts.items() if value]
    links = [element("a", heading, href=f"#{anchor}") for anchor, heading in (sections or {}).items()]
    page = {
        "title": escaped(title),
        "css": asset("page.css"),
        "facts": element("dl", *shown, class_="facts"),
        "sections": element("nav", *links, class_="sections", aria_label="Sections") if links else "",
        "body": body,
        "data": embedded_json(data),
        "plotly": plotly_code(),
        "code": "\n".join(asset(name) for name in (*SHARED, *code)),
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: page[match[1]], asset("page.html"))
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def asset(name: str) -> Markup:
    """A text file that comes with this package."""
    return Markup(files("monosem.lab.app.pages").joinpath(name).read_text(encoding="utf-8"))


def embedded_json(value: Any) -> str:
    """JSON that is safe between script tags: ASCII, and no character that HTML gives a meaning."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plotly_code() -> str:
    """plotly.js as it may stand between script tags."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script")

"""Pages in a real browser: Debian's chromium under Playwright's driver, in a thread of its own."""

from __future__ import annotations

import importlib.util
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WIDTHS = (400, 420, 1600)
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
FAULTS = """() => {
  const faults = [], width = document.documentElement.clientWidth, whole = document.documentElement.scrollWidth;
  const name = (node) => `${node.tagName.toLowerCase()}.${node.className?.baseVal ?? node.className} ` +
    JSON.stringify((node.textContent ?? "").trim().slice(0, 50));
  const fault = (what, node) => faults.push(`${what}: ${name(node)}`);
  if (whole > width) faults.push(`the document is ${whole} wide`);
  for (const node of document.querySelectorAll("body *:not(svg *):not(script):not(.skip)")) {
    const style = getComputedStyle(node);
    if (node.id === "js-plotly-tester" || /SELECT|INPUT/.test(node.tagName) || style.display === "inline") continue;
    const scrolls = /auto|scroll/.test(style.overflowX);
    if (!scrolls && node.clientWidth && node.scrollWidth > node.clientWidth + 1) fault("cut", node);
    const box = node.getBoundingClientRect();
    if (box.width && !node.closest(".scroll") && (box.right > width + 1 || box.left < -1)) fault("outside", node);
  }
  for (const node of document.querySelectorAll("[hidden]"))
    if (node.getBoundingClientRect().width) fault("hidden and yet there", node);
  for (const head of document.querySelectorAll("table thead"))
    if (head.offsetParent && getComputedStyle(head.rows[0].cells[0]).position !== "sticky") fault("scrolls away", head);
  for (const plot of document.querySelectorAll(".js-plotly-plot")) {
    const frame = plot.getBoundingClientRect(), { w, h } = plot._fullLayout._size;
    if (w < 0.4 * frame.width || h < 0.3 * frame.height) fault(`crushed to ${w} x ${h}`, plot);
    for (const text of plot.querySelectorAll("svg text")) {
      const box = text.getBoundingClientRect();
      const beside = box.left < frame.left - 1 || box.right > frame.right + 1;
      const inside = !beside && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
      if (box.width && !inside) fault("outside its plot", text);
    }
  }
  return faults;
}"""
SETTLED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 100))))"


def why_not() -> str | None:
    """The reason why there is no browser here, or None."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright"
    return None if shutil.which("chromium") else "there is no chromium: apt-get install chromium"


class Browser:
    """One chromium; Playwright runs an event loop, so it stays in its own thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(self._start).result()

    def _start(self) -> None:
        from playwright.sync_api import sync_playwright

        self._driver = sync_playwright().start()
        self._chromium = self._driver.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)

    def close(self) -> None:
        """End the browser and its driver."""
        self._thread.submit(lambda: (self._chromium.close(), self._driver.stop())).result()
        self._thread.shutdown()

    def look(
        self, page: Path, widths: tuple[int, ...] = WIDTHS, scheme: str = "light", shots: Path | None = None
    ) -> dict[int, list[str]]:
        """Faults by the width of the window: text that is cut, plots that are crushed or outside, errors of scripts."""
        return self._thread.submit(self._look, page, widths, scheme, shots).result()

    def texts(self, page: Path, selector: str) -> list[str]:
        """The texts of the elements that a selector finds."""
        return self._thread.submit(self._texts, page, selector).result()

    def _texts(self, path: Path, selector: str) -> list[str]:
        page = self._chromium.new_page()
        page.goto(path.resolve().as_uri())
        found = [text.strip() for text in page.locator(selector).all_text_contents()]
        page.close()
        return found

    def _look(self, path: Path, widths: tuple[int, ...], scheme: Any, shots: Path | None) -> dict[int, list[str]]:
        page = self._chromium.new_page(viewport={"width": widths[0], "height": 900}, color_scheme=scheme)
        faults: dict[int, list[str]] = {}
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        for width in widths:
            page.set_viewport_size({"width": width, "height": 900})
            if width == widths[0]:
                page.goto(path.resolve().as_uri())
                page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
            page.evaluate(SETTLED)
            found = page.evaluate(FAULTS)
            faults[width] = [*errors, *found]
            if shots is not None:
                page.screenshot(path=shots / f"{path.stem}-{width}-{scheme}.png", full_page=True)
        page.close()
        return {width: found for width, found in faults.items() if found}

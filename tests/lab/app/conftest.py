"""The tiny model and text on disk, and the command line in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Browser, why_not
from monosem.lab.app.cli import main
from tiny_commands import Ended, Tiny, write_model, write_text


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    return Tiny(write_model(folder / "model"), write_text(folder / "text"))


@pytest.fixture
def monosem(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command line in this process."""

    def run(*arguments: object) -> Ended:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capfd.readouterr()
        return Ended(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(tiny.train(folder)) == 0
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser | None]:
    """One chromium for all pages; None where there is none."""
    if why_not() is not None:
        yield None
        return
    opened = Browser()
    yield opened
    opened.close()


@pytest.fixture
def look(browser: Browser | None) -> Callable[[Path], None]:
    """Assert that nothing of a page is cut or outside the window; does nothing where there is no browser."""

    def check(page: Path) -> None:
        if browser is not None:
            assert browser.look(page) == {}, page

    return check

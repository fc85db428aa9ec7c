"""Where metrics go besides the run's own `metrics.jsonl`: experiment trackers, imported when asked for."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from ..errors import InputError, unknown
from .run import Run

PROJECT = "monosem"
LOGIN = "run 'wandb login', set WANDB_API_KEY, or set WANDB_MODE=offline to keep the metrics in the run's folder"


@runtime_checkable
class Sink(Protocol):
    """Receives the numbers of every log point."""

    def log(self, step: int, values: Mapping[str, int | float]) -> None: ...

    def close(self) -> None: ...


class Tracker:
    """wandb or trackio, which share an interface. A resumed run continues the same tracker run."""

    def __init__(self, module: ModuleType, run: Run, **options: Any):
        self._module = module
        module.init(project=PROJECT, name=run.folder.name, config=run.config, resume="allow", **options)

    def log(self, step: int, values: Mapping[str, int | float]) -> None:
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        self._module.finish()


class TensorBoard:
    """Event files in the run's folder `tensorboard`."""

    def __init__(self, module: ModuleType, run: Run):
        self._writer = module.SummaryWriter(log_dir=str(run.folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, int | float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _wandb(run: Run) -> Sink:
    module = _imported("wandb", "wandb")
    try:
        return Tracker(module, run, id=run.id, dir=str(run.folder))
    except module.errors.Error as error:
        raise InputError(f"the wandb sink could not be opened ({str(error).rstrip('.')}): {LOGIN}") from error


def _trackio(run: Run) -> Sink:
    return Tracker(_imported("trackio", "trackio"), run)


def _tensorboard(run: Run) -> Sink:
    return TensorBoard(_imported("torch.utils.tensorboard", "tensorboard"), run)


SINKS: dict[str, Callable[[Run], Sink]] = {"wandb": _wandb, "tensorboard": _tensorboard, "trackio": _trackio}


def check_sink(name: str) -> None:
    """Refuse a sink that cannot be opened, before anything is started.

    Raises:
        InputError: the name is none of `SINKS`, or wandb is asked for and nobody is logged in.
    """
    if name not in SINKS:
        raise unknown("tracker", name, SINKS)
    online = os.environ.get("WANDB_MODE", "online") in ("online", "shared")
    if name == "wandb" and online and not _imported("wandb", "wandb").login(prompt=False):
        raise InputError(f"the wandb sink needs a login: {LOGIN}")


def open_sink(name: str, run: Run) -> Sink:
    """A sink by name: `wandb`, `tensorboard` or `trackio`.

    Raises:
        InputError: the name is none of these, its package is not installed, or wandb has no login.
    """
    if name not in SINKS:
        raise unknown("tracker", name, SINKS)
    return SINKS[name](run)


def _imported(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"the {package} sink needs a package that is not installed ({error.name}): pip install {package}"
        ) from None

"""A run is a folder.

config.json       what was asked for and on what: written first, checked on resume
metrics.jsonl     one line per consumer and log point; the same bytes however often the run was killed
timing.jsonl      the same log points by the clock
checkpoints/N/    the newest complete state, after N steps
dictionaries/     what the consumers saved, one folder each (and probes/, features/ ... by their kind)
manifest.json     written last: how it ended, on what hardware and library versions
"""

from __future__ import annotations

import datetime
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints import load_newest, require_same, save_newest, sweep
from ..environment import hardware, versions
from ..errors import InputError
from ..markup import facts_table
from ..storage import State, append_line, atomic_path, read_json, write_json
from .first_run import kernel_record

SCHEMA = 1


class Run:
    """A run on disk. Make one with `Run.create` or `Run.open`."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        record = read_json(self.folder / "config.json", "run")
        if record.get("schema") != SCHEMA:
            raise InputError(
                f"{self.folder} is a run of schema {record.get('schema')!r} and this version reads "
                f"{SCHEMA}: open it with the version that wrote it ({record.get('versions')})"
            )
        self.id: str = record["id"]
        self.config: dict[str, Any] = record["config"]
        self.fingerprints: dict[str, Any] = record["fingerprints"]
        self.created: str = record["created"]

    @classmethod
    def create(
        cls,
        folder: Path | str,
        config: Mapping[str, Any] | None = None,
        fingerprints: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
    ) -> Run:
        """A new run in `folder`; with `resume`, the run already there if it is the same one.

        Args:
            config: every option of the run, JSON values (dictionary configs, seeds, steps).
            fingerprints: what the run stands on, JSON values (model and revision, corpus hash, sites).

        Raises:
            InputError: the folder holds a run and `resume` is false; or it holds a run with another config or
                fingerprint (names the key and both values).
        """
        folder = Path(folder)
        given = json.loads(json.dumps({"config": config or {}, "fingerprints": fingerprints or {}}))
        if (folder / "config.json").exists():
            if not resume:
                raise InputError(
                    f"{folder} already holds a run: resume it (resume=True, --resume), or choose another folder"
                )
            run = cls(folder)
            require_same({"config": run.config, "fingerprints": run.fingerprints}, given, f"the run in {folder}")
            return run
        record = {
            "schema": SCHEMA,
            "id": uuid.uuid4().hex,
            "created": _now(),
            "versions": versions(),
            **given,
        }
        write_json(folder / "config.json", record)
        return cls(folder)

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """The run in `folder`.

        Raises:
            InputError: there is none, or it was written by another schema.
        """
        if not (Path(folder) / "config.json").is_file():
            raise InputError(f"{folder} holds no run (no config.json): give the folder a run was created in")
        return cls(folder)

    @property
    def manifest(self) -> dict[str, Any] | None:
        """Record of the end of the run; None while the run is unfinished."""
        path = self.folder / "manifest.json"
        return read_json(path, "run manifest") if path.exists() else None

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    def metrics(self, consumer: str | None = None) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, of one consumer if named."""
        if not self.metrics_path.exists():
            return []
        lines = (json.loads(line) for line in self.metrics_path.read_text().splitlines())
        return [line for line in lines if consumer in (None, line["consumer"])]

    def log(self, line: Mapping[str, Any], file: str = "metrics.jsonl") -> None:
        """Append one line and flush it. Numbers that are not finite become null."""
        text = json.dumps({key: _finite(value) for key, value in line.items()}, allow_nan=False)
        append_line(self.folder / file, text)

    def checkpoint(self, state: State) -> None:
        """Keep `state`, which has its step number at "step", in place of the checkpoint before.

        Raises:
            InputError: the disk is full; the checkpoint before is untouched.
        """
        size = self.metrics_path.stat().st_size if self.metrics_path.exists() else 0
        save_newest(self.folder / "checkpoints", state["step"], {**state, "metrics_bytes": size})

    def latest(self) -> State | None:
        """The newest complete checkpoint, or None."""
        return load_newest(self.folder / "checkpoints")

    def resume(self) -> State | None:
        """Go back to the newest checkpoint (None: to the beginning) and return it.

        Sweeps half-written files and cuts `metrics.jsonl` back to what it held then.

        Raises:
            InputError: `metrics.jsonl` is shorter than it was then.
        """
        for place in (self.folder, self.folder / "checkpoints", *self.folder.glob("*/")):
            sweep(place)
        state = self.latest()
        size = state["metrics_bytes"] if state else 0
        size_now = self.metrics_path.stat().st_size if self.metrics_path.exists() else 0
        if size_now < size:
            raise InputError(
                f"{self.metrics_path} holds {size_now} bytes and the checkpoint was taken at {size}: "
                "put the file back as it was, or start a new run"
            )
        if size_now > size:
            os.truncate(self.metrics_path, size)
        (self.folder / "manifest.json").unlink(missing_ok=True)
        return state

    def artefact(self, name: str, kind: str = "dictionaries") -> Path:
        """Folder of the artefact `name` of that kind, existing or not."""
        return self.folder / kind / name

    def save(self, consumer: Any) -> None:
        """Let a consumer write its artefact, whole or not at all."""
        target = self.artefact(consumer.name, getattr(consumer, "kind", "dictionaries"))
        with atomic_path(target) as temporary:
            temporary.mkdir(parents=True)
            consumer.save(temporary)
        for empty in (target, target.parent):
            if not any(empty.iterdir()):
                empty.rmdir()

    @property
    def dictionaries(self) -> dict[str, Path]:
        """The finished dictionaries: name to folder."""
        return {path.name: path for path in sorted(self.folder.glob("dictionaries/[!.]*/"))}

    def finish(self, **facts: Any) -> None:
        """Write the manifest: the run is complete."""
        record = {
            "schema": SCHEMA,
            "status": "complete",
            "id": self.id,
            "created": self.created,
            "finished": _now(),
            **facts,
            "dictionaries": list(self.dictionaries),
            "config": self.config,
            "fingerprints": self.fingerprints,
            "versions": versions(),
            "hardware": hardware(),
            **kernel_record(),
        }
        write_json(self.folder / "manifest.json", record)

    def _facts(self) -> dict[str, str]:
        manifest, lines = self.manifest, self.metrics()
        return {
            "status": manifest["status"] if manifest else "unfinished",
            "step": str(lines[-1]["step"]) if lines else "none logged",
            "dictionaries": ", ".join(self.dictionaries) or "none yet",
            "created": self.created,
        }

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: " + "; ".join(f"{key} {value}" for key, value in self._facts().items()) + ")"

    def _repr_html_(self) -> str:
        return facts_table({"run": str(self.folder), **self._facts()})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

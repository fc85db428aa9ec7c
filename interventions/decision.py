"""`Decision`: what an intervention chose and why, with the effect that was measured; JSON, never changed once saved."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch

from ..lab.errors import InputError
from ..lab.evidence import Evidence
from ..lab.markup import facts_table
from ..lab.models.hooked_model import HookedModel
from ..lab.storage import read_json, write_json
from ..saes.dictionary import Dictionary

log = logging.getLogger(__name__)

SCHEMA = 2
READABLE = (1, 2)
"""Schemas of files that are read. Schema 1 held activation sparsity alone, without the general part."""
FOLDER = "decisions"
"""Folder of a run that holds its decisions, one JSON file each."""
KINDS = {"activation sparsity": ".pruning.activation_sparsity.decision"}
"""The module of every particular kind of decision, imported when a file of that kind is read."""
GENERAL = ("chosen", "evidence", "effect")
"""Fields that a particular decision derives from its own, and that are written for readers of all kinds."""


@dataclass(frozen=True)
class Effect:
    """A quantity before and after an intervention."""

    change: Evidence
    """After less before, beside the same change under the nulls."""
    before: float | None = None
    """The quantity with nothing changed; None where the change alone was measured."""
    after: float | None = None
    """The quantity with the intervention."""


@dataclass(frozen=True)
class Decision:
    """The choice of an intervention and its reason, its effect, and the model and dictionaries it stands on.

    A particular decision is a subclass with a `kind` and fields of its own, from which it sets `chosen`, `evidence` and
    `effect` in `__post_init__`.
    """

    kind: ClassVar[str] = "general"
    """The kind of decision, in files."""
    chosen: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """Features, weights or heads, by where they are: {"features": {"resid_post.12": [17, 40]}}."""
    evidence: dict[str, Evidence] = field(default_factory=dict, kw_only=True)
    """Why they were chosen: scores beside their nulls."""
    effect: dict[str, Effect] = field(default_factory=dict, kw_only=True)
    """Change that the intervention made, by the name of the quantity."""
    about: dict[str, Any] = field(default_factory=dict, kw_only=True)
    """Ground of the decision: fingerprints of the model and the dictionaries (`fingerprints`), corpus, options."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"schema": SCHEMA, "kind": self.kind, **asdict(self)}

    def save(self, path: Path | str) -> Path:
        """Write the decision, whole or not at all."""
        write_json(path, self.to_json())
        return Path(path)

    def save_in(self, run: Path | str, name: str) -> Path:
        """Write the decision as NAME.json into the folder `decisions` of a run.

        Raises:
            InputError: the run has a decision of that name: decisions are never changed.
        """
        path = Path(run) / FOLDER / f"{name}.json"
        if path.exists():
            raise InputError(f"{path} exists, and a decision is never changed: give another name than {name!r}")
        return self.save(path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote; `Decision.load` reads every kind, a subclass its own.

        A kind of this package is imported where it is needed (`KINDS`). A kind from elsewhere whose class has not been
        imported is read as a general decision, and a warning is logged.

        Raises:
            InputError: no such file, another kind of file or of decision, or a schema of a later version.
        """
        written = read_json(path, "decision")
        kind = written.pop("kind", None) if isinstance(written, dict) else None
        if kind in KINDS:
            import_module(KINDS[kind], __package__)
        known = {subclass.kind: subclass for subclass in _kinds(cls)}
        if kind is None or (kind not in known and cls is not Decision):
            raise InputError(f"{path} holds no decision on {cls.kind}" if cls is not Decision else
                             f"{path} holds no decision")  # fmt: skip
        if (schema := written.pop("schema", None)) not in READABLE:
            raise InputError(f"{path} has schema {schema!r}, this version reads {' and '.join(map(str, READABLE))}")
        if kind not in known:
            log.warning("%s holds a decision on %s, whose class is not imported: its own fields are left out; import"
                        " the module of that class first", path, kind)  # fmt: skip
        try:
            return cast("Self", known.get(kind, cls)._of(written))
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{path} is damaged: a decision on {kind} lacks a field or has a wrong one ({error})"
            ) from None

    @classmethod
    def _of(cls, written: dict[str, Any]) -> Self:
        """The decision of a file's values; subclasses read their own fields and derive the general ones."""
        evidence = {name: evidence_of(score) for name, score in written.get("evidence", {}).items()}
        effect = {
            name: Effect(**{**effect, "change": evidence_of(effect["change"])})
            for name, effect in written.get("effect", {}).items()
        }
        known = {field.name for field in fields(cls)}
        return cls(**{**{name: value for name, value in written.items() if name in known},
                      "evidence": evidence, "effect": effect})  # fmt: skip

    def __repr__(self) -> str:
        chosen = ", ".join(f"{heading} {_short(where)}" for heading, where in self.chosen.items())
        effects = "; ".join(str(effect.change) for effect in self.effect.values())
        return f"{type(self).__name__}({chosen or 'nothing chosen'}{effects and ': '}{effects})"

    def _repr_html_(self) -> str:
        scores = {**self.evidence, **{name: score.change for name, score in self.effect.items()}}
        rows = {**{heading: _short(where) for heading, where in self.chosen.items()},
                **{name: str(score) for name, score in scores.items()},
                **{name: _short(value) for name, value in self.about.items()}}  # fmt: skip
        return facts_table(rows, self.kind)


def decisions(run: Path | str) -> dict[str, Decision]:
    """Every decision of a run, by name; empty where it has none."""
    return {path.stem: Decision.load(path) for path in sorted((Path(run) / FOLDER).glob("*.json"))}


def fingerprints(model: HookedModel, dictionaries: Mapping[str, Dictionary] | None = None) -> dict[str, Any]:
    """The model and the dictionaries that a decision stands on, for `about`.

    Returns:
        {"model": fingerprint, "dictionaries": {name: {"architecture": ..., "sha256": hash of all tensors}}}
    """
    described = {name: {"architecture": dictionary.architecture, "sha256": _tensor_hash(dictionary)}
             for name, dictionary in (dictionaries or {}).items()}  # fmt: skip
    return {"model": model.fingerprint(), "dictionaries": described}


def _tensor_hash(dictionary: Dictionary) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(dictionary.tensors().items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def evidence_of(written: Mapping[str, Any]) -> Evidence:
    """The Evidence of a file's values."""
    interval = written["interval"]
    return Evidence(**{**written, "interval": None if interval is None else tuple(interval)})


def _kinds(base: type[Decision]) -> list[type[Decision]]:
    """A class of decision and all that are derived from it."""
    return [base, *(kind for part in base.__subclasses__() for kind in _kinds(part))]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

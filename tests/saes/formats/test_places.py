"""Dictionaries that other libraries trained stand, as loaded here, where the library read and predicted.

Each is trained by the library on activations that it captures itself, saved in its own files, loaded here and run on
the activations that are captured here at the place that we state: the FVU is the library's own.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.saes import load
from tiny_models import build

TOKENS = torch.randint(3, 97, (64, 16), generator=torch.Generator().manual_seed(0))
Cache = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def bridged(tmp_path_factory: pytest.TempPathFactory) -> tuple[HookedModel, Cache]:
    """A tiny model here, and what TransformerLens' bridge caches of an equal one."""
    pytest.importorskip("sae_lens")
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    special = {"unk_token": "w0", "bos_token": "w1", "eos_token": "w2", "pad_token": "w0"}
    folder = tmp_path_factory.mktemp("tokenizer")
    hf.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    bridge = TransformerBridge.boot_transformers("gpt2", hf_model=build("llama"), tokenizer=tokenizer, device="cpu")
    _, cache = bridge.run_with_cache(TOKENS)
    return load_model(build("llama")), {
        name: tensor.detach().flatten(2) if tensor.dim() > 2 else tensor for name, tensor in cache.items()
    }


def fvu(found: torch.Tensor, goal: torch.Tensor) -> float:
    return float((found - goal).square().sum() / (goal - goal.mean(0)).square().sum())


def here(folder: Path, model: HookedModel) -> float:
    """FVU of a loaded dictionary at the place that it states."""
    ours = load(folder)
    found = model.capture(TOKENS, ours.place.sites)
    read, goal = (found[site].flatten(0, 1).flatten(1) for site in (ours.place.sites[0], ours.place.sites[-1]))
    return fvu(ours(read), goal)


HOOKS = {
    "blocks.1.hook_resid_pre": "resid_pre.1",
    "blocks.1.hook_resid_mid": "resid_mid.1",
    "blocks.1.hook_resid_post": "resid_post.1",
    "blocks.1.hook_mlp_out": "mlp_add.1",
    "blocks.1.hook_attn_out": "attn_add.1",
    "blocks.1.attn.hook_z": "z.1",
    "blocks.1.mlp.hook_post": "mlp_act.1",
}


def trained_by_sae_lens(kind: str, x: torch.Tensor, goal: torch.Tensor, folder: Path, **metadata: Any) -> float:
    """Train one of SAELens' classes by its own training step, save it for inference, and give its FVU."""
    import sae_lens
    from sae_lens import saes

    training: Any = getattr(sae_lens, f"{kind}Config")
    options: dict[str, Any] = {"d_in": x.shape[1], "d_sae": 64, "device": "cpu"}
    options |= (
        {"k": 8}
        if "TopK" in kind
        else {"l1_coefficient": 0.01}
        if "l1_coefficient" in training.__dataclass_fields__
        else {}
    )
    options |= {"d_out": goal.shape[1]} if "d_out" in training.__dataclass_fields__ else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = getattr(sae_lens, kind)(training(**options))
        for name, value in metadata.items():
            setattr(sae.cfg.metadata, name, value)
        descent = torch.optim.Adam(sae.parameters(), 1e-2)
        step = saes.sae.TrainStepInput
        for number in range(120):
            descent.zero_grad()
            extra = {"is_logging_step": False} if "is_logging_step" in step.__dataclass_fields__ else {}
            given = step(sae_in=x, coefficients={name: 0.01 for name in ("l1", "l0", "pre_act_loss")},
                         dead_neuron_mask=None, n_training_steps=number, **extra)  # fmt: skip
            sae.training_forward_pass(given).loss.backward()
            descent.step()
        sae.save_inference_model(folder)
        theirs = sae_lens.SAE.load_from_disk(folder, device="cpu")
    return fvu(theirs(x).detach(), goal)


@pytest.mark.parametrize("hook", HOOKS)
def test_a_topk_of_sae_lens_stands_at_its_hook(bridged: tuple[HookedModel, Cache], tmp_path: Path, hook: str) -> None:
    model, cache = bridged
    x = cache[hook].flatten(0, 1)
    theirs = trained_by_sae_lens("TopKTrainingSAE", x, x, tmp_path, hook_name=hook, model_name="tiny")
    assert str(load(tmp_path).place.source.site) == HOOKS[hook]
    assert here(tmp_path, model) == pytest.approx(theirs, rel=1e-3) and theirs < 0.8


@pytest.mark.parametrize(
    "kind", ["StandardTrainingSAE", "GatedTrainingSAE", "JumpReLUTrainingSAE", "BatchTopKTrainingSAE"]
)
def test_every_kind_of_sae_lens_reconstructs_what_it_did(
    bridged: tuple[HookedModel, Cache], tmp_path: Path, kind: str
) -> None:
    model, cache = bridged
    x = cache["blocks.1.hook_resid_post"].flatten(0, 1)
    theirs = trained_by_sae_lens(kind, x, x, tmp_path, hook_name="blocks.1.hook_resid_post", model_name="tiny")
    assert here(tmp_path, model) == pytest.approx(theirs, rel=1e-3) and theirs < 0.9


def test_a_norm_of_sae_lens_is_no_site_of_ours(bridged: tuple[HookedModel, Cache], tmp_path: Path) -> None:
    """What comes out of a norm without its gain is read by no module of the model as it is."""
    _, cache = bridged
    x = cache["blocks.1.hook_resid_post"].flatten(0, 1)
    trained_by_sae_lens("TopKTrainingSAE", x, x, tmp_path, hook_name="blocks.1.ln2.hook_normalized", model_name="tiny")
    assert load(tmp_path).place.source.site is None


DICTIONARY_LEARNING = {"resid_post": "resid_post.1", "mlp_out": "mlp_out.1", "attn_out": "attn_out.1"}


@pytest.mark.parametrize("submodule", DICTIONARY_LEARNING)
def test_dictionary_learning_reads_what_its_submodule_puts_out(tmp_path: Path, submodule: str) -> None:
    top_k = pytest.importorskip("dictionary_learning.trainers.top_k")
    model = load_model(build("llama"))
    module = {"resid_post": "model.layers.1", "mlp_out": "model.layers.1.mlp", "attn_out": "model.layers.1.self_attn"}
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).detach().flatten(0, 1))

    handle = model.module.get_submodule(module[submodule]).register_forward_hook(keep)
    model.logits(TOKENS)
    handle.remove()
    x = seen[0]
    trainer = top_k.TopKTrainer(
        steps=150, activation_dim=32, dict_size=64, k=8, layer=1, lm_name="tiny", seed=0, device="cpu", lr=1e-2,
        warmup_steps=0, submodule_name=f"{submodule}_layer_1",
    )  # fmt: skip
    for step in range(150):
        trainer.update(step, x)
    torch.save(trainer.ae.state_dict(), tmp_path / "ae.pt")
    config = {**trainer.config, "submodule_name": f"{submodule}_layer_1"}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": config}, default=str))
    theirs = fvu(trainer.ae(x).detach(), x)
    assert str(load(tmp_path).place.source.site) == DICTIONARY_LEARNING[submodule]
    assert here(tmp_path, model) == pytest.approx(theirs, rel=1e-3) and theirs < 0.8

"""Small random models of every family, built from their configs: no download, milliseconds each."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import transformers as hf

TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
IMAGE = {**TEXT, "image_size": 16, "patch_size": 8}
GEMMA = {**TEXT, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 4}
IMAGE.pop("vocab_size")
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

BUILD = {
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, {**TEXT, "num_key_value_heads": 2}),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, {**TEXT, "num_key_value_heads": 2, "head_dim": 12}),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, {**TEXT, "num_key_value_heads": 2}),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, {**TEXT, "num_key_value_heads": 2}),
    "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config, {**GEMMA, "query_pre_attn_scalar": 12}),
    "gemma3": (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, GEMMA),
    "olmo2": (hf.Olmo2ForCausalLM, hf.Olmo2Config, TEXT),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4}),
    "gpt_neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, TEXT),
    "gpt_neox_sequential": (
        hf.GPTNeoXForCausalLM,
        hf.GPTNeoXConfig,
        {**TEXT, "use_parallel_residual": False},
    ),
    "bert": (hf.BertForMaskedLM, hf.BertConfig, TEXT),
    "vit": (hf.ViTModel, hf.ViTConfig, IMAGE),
    "clip_vision": (hf.CLIPVisionModel, hf.CLIPVisionConfig, IMAGE),
}
SMALL = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
FURTHER = {
    "gpt_neo": (
        hf.GPTNeoForCausalLM,
        hf.GPTNeoConfig,
        {"vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
         "attention_types": [[["global", "local"], 1]]},
    ),
    "gptj": (hf.GPTJForCausalLM, hf.GPTJConfig, {**SMALL, "rotary_dim": 4}),
    "bloom": (hf.BloomForCausalLM, hf.BloomConfig, {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": (hf.MptForCausalLM, hf.MptConfig, {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    "opt": (hf.OPTForCausalLM, hf.OPTConfig, {**TEXT, "ffn_dim": 56, "word_embed_proj_dim": 32}),
    "biogpt": (hf.BioGptForCausalLM, hf.BioGptConfig, {**TEXT, "max_position_embeddings": 64}),
    "xglm": (
        hf.XGLMForCausalLM,
        hf.XGLMConfig,
        {"vocab_size": 97, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 56},
    ),
    "ctrl": (hf.CTRLLMHeadModel, hf.CTRLConfig, {**SMALL, "dff": 56}),
    "openai_gpt": (hf.OpenAIGPTLMHeadModel, hf.OpenAIGPTConfig, SMALL),
    "roberta": (hf.RobertaForMaskedLM, hf.RobertaConfig, {**TEXT, "max_position_embeddings": 34}),
}  # fmt: skip
"""Models of no family, which are wired by path, and RoBERTa, whose positions begin at 2."""
VISION = ("vit", "clip_vision")
FAMILY = {"qwen3": "llama", "qwen2": "llama", "mistral": "llama", "gemma2": "gemma", "gemma3": "gemma"}


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """A model with every parameter random, norms and biases included, so that no factor hides as 1 or 0."""
    model_class, config_class, sizes = {**BUILD, **FURTHER}[name]
    special = {} if name in VISION else {**SPECIAL, "pad_token_id": 1} if name == "roberta" else SPECIAL
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config_class(**sizes, **special, architectures=[model_class.__name__]))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
                else:
                    parameter.mul_(4)
    return model.eval()


def inputs_for(name: str, batch: int = 2, tokens: int = 7, seed: int = 1) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    if name in VISION:
        return torch.randn(batch, 3, 16, 16, generator=rng)
    return torch.randint(3, 97, (batch, tokens), generator=rng)


class Letters:
    """A tokenizer of one token a character, with ids from 3 to 96."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0
    all_special_ids = (0, 1, 2)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [3 + (ord(letter) - 32) % 94 for letter in text]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(chr(29 + i) for i in ids)

"""Checkpoints that people bring: whole, damaged, under other names, and padded on the left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from safetensors.torch import load_file, save_file
from tiny_models import BUILD, FURTHER, VISION, build, inputs_for
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

EAGER = {"gemma2", "gpt_neo", "gptj", "bloom", "mpt", "xglm", "openai_gpt"}
"""Models without SDPA attention."""


def opened(folder: Path, dtype: str = "fp32") -> HookedModel:
    return load_model(folder, dtype=dtype, device="cpu")


Tensors = dict[str, torch.Tensor]


def saved(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A saved model whose tensors were changed."""
    build("llama").save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file({key: t.contiguous() for key, t in change(load_file(path)).items()}, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    build("llama").save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", bos_token="w1").save_pretrained(folder)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.mark.parametrize("name", [*BUILD, *FURTHER])
def test_every_model_loads_from_a_folder(name, tmp_path, caplog):
    """Attention falls back to eager where there is no SDPA; a row padded on the left is the row alone."""
    module = build(name)
    module.save_pretrained(tmp_path)
    with caplog.at_level("INFO", logger="monosem"):
        model = opened(tmp_path)
    assert ("runs with eager attention" in caplog.text) == (name in EAGER)
    inputs = inputs_for(name)
    with torch.no_grad():
        outputs = module(inputs)
    if name in VISION:
        seen = model.capture(inputs, ["resid_post.2"])["resid_post.2"]
        assert seen.isfinite().all()
        return
    torch.testing.assert_close(model.logits(inputs), outputs.logits)
    padded = torch.cat([torch.full((2, 3), 500), inputs], 1)  # an added pad token, which has no embedding
    mask = (torch.arange(padded.shape[1]) >= 3).expand(2, -1)
    torch.testing.assert_close(model.logits(padded, attention_mask=mask)[:, 3:], outputs.logits, atol=1e-4, rtol=1e-4)
    right = torch.cat([inputs, torch.full((2, 3), 500)], 1)
    torch.testing.assert_close(
        model.logits(right, attention_mask=mask.flip(1))[:, :-3], outputs.logits, atol=1e-4, rtol=1e-4
    )


def test_padding_that_shifts_positions_is_refused():
    class Counting(torch.nn.Module):
        """Adds the index of a cell, padded or not, and takes no position ids."""

        main_input_name = "input_ids"

        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(97, 8)
            self.config = type("Config", (), {"vocab_size": 97})()

        def forward(self, input_ids, attention_mask=None):
            return self.embedding(input_ids) + torch.arange(input_ids.shape[1])[:, None]

    model, rows = load_model(Counting()), torch.randint(0, 97, (2, 6))
    mask = torch.ones(2, 6, dtype=torch.int64)
    assert model.logits(rows, attention_mask=mask).shape == (2, 6, 8)
    mask[1, 4:] = 0
    assert model.logits(rows, attention_mask=mask).shape == (2, 6, 8)
    with pytest.raises(InputError, match=r"counts the padding on the left .* pad on the right"):
        model.logits(rows, attention_mask=mask.flip(1))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_a_known_prefix_is_left_out_and_said(prefix, tmp_path, caplog):
    folder = saved(tmp_path, lambda tensors: {prefix + name: t for name, t in tensors.items()})
    torch.testing.assert_close(
        opened(folder).logits(inputs_for("llama")), load_model(build("llama")).logits(inputs_for("llama"))
    )
    assert f"the prefix {prefix}" in caplog.text


@pytest.mark.parametrize(
    ("kept", "sentence"),
    [
        (lambda name: "layers.1." not in name, r"lacks the weights model.layers.1.* and 6 more"),
        (lambda name: "lm_head" not in name, "lacks the weights lm_head.weight"),
        (lambda name: "1.mlp.up_proj" not in name, "lacks the weights model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_weights_that_would_be_random_are_refused(kept, sentence, tmp_path):
    folder = saved(tmp_path, lambda tensors: {name: t for name, t in tensors.items() if kept(name)})
    with pytest.raises(InputError, match=sentence):
        opened(folder)


def test_unexpected_weights_are_named_beside_missing_ones(tmp_path):
    folder = saved(tmp_path, lambda tensors: {"base." + name: t for name, t in tensors.items()})
    with pytest.raises(InputError, match=r"has unexpected base\.lm_head\.weight, base\.model.* and 27 more"):
        opened(folder)


def test_a_config_of_fewer_layers_is_refused(copy):
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 3', '"num_hidden_layers": 2'))
    with pytest.raises(InputError, match=r"holds weights that its config.json has no place for, model.layers.2"):
        opened(copy)


def test_further_weights_of_a_whole_model_are_said(tmp_path, caplog):
    folder = saved(tmp_path, lambda tensors: {**tensors, "value_head.weight": torch.zeros(3)})
    assert opened(folder).n_layers == 3 and "does not have: value_head.weight" in caplog.text


def test_tied_heads_and_shards_load(tmp_path):
    module = build("gemma3")
    assert module.config.tie_word_embeddings
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    torch.testing.assert_close(
        opened(tmp_path).logits(inputs_for("gemma3")), load_model(module).logits(inputs_for("gemma3"))
    )
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(InputError, match=r"lacks model-00002-of-.* which model.safetensors.index.json names"):
        opened(tmp_path)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("model.safetensors", lambda raw: POINTER, "is a git-lfs pointer"),
        ("model.safetensors", lambda raw: b"", "is empty"),
        ("model.safetensors", lambda raw: raw[:-100], r"is cut: it has [\d,]+ bytes of [\d,]+"),
        ("model.safetensors", lambda raw: raw[:100], "end within the header"),
        ("model.safetensors", lambda raw: raw[:8] + b"x" * (len(raw) - 8), "header cannot be read"),
        ("tokenizer.json", lambda raw: raw[:200], "tokenizer.json is not valid JSON"),
        ("tokenizer.json", lambda raw: POINTER, "tokenizer.json is a git-lfs pointer"),
        ("tokenizer.json", lambda raw: raw.replace(b"WordLevel", b"WordMagic"), "the tokenizer in .* cannot be read"),
        ("config.json", lambda raw: raw[:50], "config.json is not valid JSON"),
    ],
)
def test_damaged_files_are_named(file, damage, sentence, copy):
    (copy / file).write_bytes(damage((copy / file).read_bytes()))
    with pytest.raises(InputError, match=sentence):
        opened(copy)


@pytest.mark.parametrize(
    ("damage", "legacy", "sentence"),
    [
        (lambda raw: raw[:3000], False, "pytorch_model.bin is cut after 3,000 bytes"),
        (lambda raw: raw[:3000], True, r"the weights in .* cannot be read \(\w+Error"),
        (lambda raw: b"hello" * 99, False, "is no file that torch.save wrote"),
    ],
)
def test_damaged_bin_files_are_named(damage, legacy, sentence, copy):
    path = copy / "pytorch_model.bin"
    torch.save(load_file(copy / "model.safetensors"), path, _use_new_zipfile_serialization=not legacy)
    (copy / "model.safetensors").unlink()
    assert opened(copy).n_layers == 3
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=sentence):
        opened(copy)


def test_a_tensor_of_another_shape_is_named(tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"
    folder = saved(tmp_path, lambda tensors: {**tensors, name: tensors[name][:5]})
    with pytest.raises(InputError, match=rf"{name} of shape \[5, 56\] where its config.json asks for \[32, 56\]"):
        opened(folder)


def test_a_tokenizer_that_wants_sentencepiece_says_so(copy, monkeypatch):
    def wanting(*_args, **_options):
        raise ImportError("LlamaTokenizer requires the SentencePiece library")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", wanting)
    with pytest.raises(InputError, match="pip install sentencepiece"):
        opened(copy)
    assert load_model(copy, tokenizer="mine", dtype="fp32").tokenizer == "mine"


def test_weights_and_activations_that_are_not_finite_are_named(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    rows = torch.tensor([0])
    nan = saved(tmp_path / "nan", lambda tensors: {**tensors, name: tensors[name].index_fill(0, rows, torch.nan)})
    with pytest.raises(InputError, match=f"32 nan and 0 inf in the weights {name}: the checkpoint is damaged"):
        opened(nan)
    big = saved(tmp_path / "big", lambda tensors: {**tensors, name: 3e6 * tensors[name]})
    with pytest.raises(InputError, match=rf"inf in the weights {name}: .* fp16, load it with dtype bf16 or fp32"):
        opened(big, "fp16")
    overflowing = saved(tmp_path / "over", lambda tensors: {**tensors, name: 1.5e5 * tensors[name]})
    assert opened(overflowing).n_layers == 3
    with pytest.raises(InputError, match=r"nan or inf at mlp_act\.1: the weights are finite, so float16 overflows"):
        opened(overflowing, "fp16")
    with pytest.raises(InputError, match=r"gives nan or inf on a tiny input"):
        module = build("gpt_neo")
        module.transformer.h[0].mlp.c_fc.bias.data.fill_(3e38)
        load_model(module)


def test_ids_and_lengths_that_a_model_has_not_are_refused():
    model = load_model(build("roberta"))
    assert model.n_ctx == 32 and model.logits(torch.full((1, 32), 5)).shape == (1, 32, 97)
    for inputs, sentence in (
        (torch.full((1, 33), 5), "33 tokens are too many: this model takes at most 32"),
        (torch.tensor([[4, 97]]), "token id 97 at row 0, position 1 is outside the vocabulary: .* ids 0 to 96"),
        (torch.tensor([[4, 5], [-1, 5]]), "token id -1 at row 1, position 0"),
        (torch.zeros(2, 0, dtype=torch.int64), "inputs hold no token"),
        (torch.zeros(0, 4, dtype=torch.int64), "inputs hold no token"),
    ):
        with pytest.raises(InputError, match=sentence):
            model.logits(inputs)
    with pytest.raises(InputError, match="token id 97"):
        model.logits(torch.tensor([[4, 97]]), attention_mask=torch.ones(1, 2))


def test_attention_that_a_model_has_not_is_refused(tmp_path):
    build("gpt_neo").save_pretrained(tmp_path)
    assert load_model(tmp_path, attn="eager").n_ctx == 64
    with pytest.raises(InputError, match=r"has no sdpa attention: leave out --attention"):
        load_model(tmp_path, attn="sdpa")

"""Checkpoints that people bring: whole, damaged, under other names, and padded on the left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers as hf
from monosem.lab.errors import InputError
from monosem.lab.models.gguf import converted
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.lab.models.weights import read_weights
from safetensors.torch import load_file, save_file
from tiny_models import BUILD, FURTHER, VISION, build, inputs_for
from tokenizers import Tokenizer, models

EAGER = {"gemma2", "gpt_neo", "gptj", "bloom", "mpt", "xglm", "openai_gpt"}
"""Models without SDPA attention."""


def opened(folder: Path, dtype: str = "fp32") -> HookedModel:
    return load_model(folder, dtype=dtype, device="cpu")


Tensors = dict[str, torch.Tensor]


def saved(folder: Path, change: Callable[[Tensors], Tensors], name: str = "llama") -> Path:
    """A saved model whose tensors were changed."""
    build(name).save_pretrained(folder)
    path = folder / "model.safetensors"
    save_file({key: t.contiguous() for key, t in change(load_file(path)).items()}, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    build("llama").save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    hf.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", bos_token="w1").save_pretrained(folder)
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


def padded_left(rows: torch.Tensor, by: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows with padding on the left, and their mask."""
    padded = torch.cat([torch.full((len(rows), by), 0), rows], 1)
    return padded, (torch.arange(padded.shape[1]) >= by).expand(len(rows), -1)


def tiny(model: type[torch.nn.Module], config: Callable[..., object], **sizes: object) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(vocab_size=97, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)).eval()


ROWS = torch.randint(3, 97, (2, 6), generator=torch.Generator().manual_seed(0))
ENCODER = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {"n_embd": 32, "n_layer": 2, "n_head": 4}
NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}


class Table(torch.nn.Module):
    """Embeddings, and nothing that a family has."""

    main_input_name = "input_ids"

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(97, 64)
        torch.nn.init.normal_(self.embedding.weight, generator=torch.Generator().manual_seed(0))
        self.config = type("Config", (), {"vocab_size": 97})()


def test_a_small_shift_is_seen_in_bf16():
    """A shift of .07 of the spread is six times what bf16 rounds away, and hides below a tenth of the largest entry."""

    class Leaning(Table):
        def forward(self, input_ids, attention_mask=None):
            return self.embedding(input_ids) + 0.025 * torch.arange(input_ids.shape[1])[:, None].bfloat16()

    model, (rows, mask) = load_model(Leaning().bfloat16()), padded_left(ROWS)
    with pytest.raises(InputError, match="counts the padding on the left"):
        model.logits(rows, attention_mask=mask)


def test_a_module_without_a_mask_refuses_padding_on_either_side():
    model, (rows, mask) = load_model(tiny(hf.FNetForMaskedLM, hf.FNetConfig, **ENCODER)), padded_left(ROWS)
    assert model.logits(rows, attention_mask=torch.ones_like(rows)).shape == (2, 9, 97)
    for side, given in (("left", mask), ("right", mask.flip(1))):
        with pytest.raises(InputError, match=f"padding on the {side} .* run rows of one length together"):
            model.logits(rows, attention_mask=given)


def test_classifiers_are_checked_by_token_and_by_logits():
    """RoBERTa's head reads the first cell, padding or not; Llama's the last token. Activations are right in both."""
    site, (padded, mask) = "resid_post.1", padded_left(ROWS)
    first = load_model(tiny(hf.RobertaForSequenceClassification, hf.RobertaConfig, **ENCODER))
    last = load_model(tiny(hf.LlamaForSequenceClassification, hf.LlamaConfig, **ENCODER))
    for model in (first, last):
        torch.testing.assert_close(
            model.capture(padded, [site], attention_mask=mask)[site][:, 3:], model.capture(ROWS, [site])[site]
        )
    torch.testing.assert_close(last.logits(padded, attention_mask=mask), last.logits(ROWS))
    with pytest.raises(InputError, match="counts the padding on the left"):
        first.logits(padded, attention_mask=mask)


def test_masks_of_truths_and_ids_of_few_bits_are_taken():
    model = load_model(tiny(hf.XLNetLMHeadModel, hf.XLNetConfig, d_model=32, n_layer=2, n_head=4, d_inner=56))
    padded, mask = padded_left(ROWS)
    torch.testing.assert_close(model.logits(padded, attention_mask=mask)[:, 3:], model.logits(ROWS.to(torch.uint8)))


def test_an_encoder_decoder_is_checked_on_its_encoder():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 56, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    model = load_model(tiny(hf.T5ForConditionalGeneration, hf.T5Config, **sizes))
    site, (padded, mask) = "path:encoder.block.1", padded_left(ROWS)
    torch.testing.assert_close(
        model.capture(padded, [site], attention_mask=mask)[site][:, 3:], model.capture(ROWS, [site])[site]
    )


def test_a_module_that_wants_more_than_ids_loads_and_refuses_padding(caplog):
    class Wanting(Table):
        def forward(self, input_ids, attention_mask=None, boxes=None):
            return self.embedding(input_ids) + boxes

    model, site, (padded, mask) = load_model(Wanting()), "path:embedding", padded_left(ROWS)
    assert "does not run on token ids alone" in caplog.text
    assert model.capture(ROWS, [site])[site].shape == (2, 6, 64)
    with pytest.raises(InputError, match="run rows of one length together"):
        model.capture(padded, [site], attention_mask=mask)


@pytest.mark.parametrize("limit", [1, 2, 3, 9])
def test_models_of_few_positions_load(limit):
    row = ROWS.repeat(1, 2)[:1, :limit]
    for module in (
        tiny(hf.GPT2LMHeadModel, hf.GPT2Config, n_positions=limit, **DECODER),
        tiny(hf.GPTNeoForCausalLM, hf.GPTNeoConfig, max_position_embeddings=limit, **NEO),
    ):
        model = load_model(module)
        assert model.logits(row).shape == (1, limit, 97)
        if limit > 1:
            padded, mask = padded_left(row[:, 1:], 1)
            torch.testing.assert_close(model.logits(padded, attention_mask=mask)[:, 1:], model.logits(row[:, 1:]))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_neox", "bert", "roberta", "bloom"])
def test_a_known_prefix_is_left_out_and_said(name, prefix, tmp_path, caplog):
    """Tied heads are in no file, and transformers renames some tensors itself: neither may hide the prefix."""
    folder = saved(tmp_path, lambda tensors: {prefix + key: t for key, t in tensors.items()}, name)
    torch.testing.assert_close(
        opened(folder).logits(inputs_for(name)), load_model(build(name)).logits(inputs_for(name))
    )
    assert f"the prefix {prefix}," in caplog.text


def test_a_prefix_does_not_hide_which_weights_are_missing(tmp_path):
    folder = saved(tmp_path, lambda tensors: {"module." + k: t for k, t in tensors.items() if "layers.1." not in k})
    with pytest.raises(InputError, match=r"lacks the weights model\.layers\.1\.input_layernorm.* and 6 more: they"):
        opened(folder)


@pytest.mark.parametrize("lacking", [None, "blk.1.ffn_up.weight"])
def test_a_gguf_file_that_lacks_a_tensor_is_refused(lacking, tmp_path, monkeypatch):
    """Its conversion would write random weights into the cache, where nothing tells them from others."""
    module, path = build("llama"), tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(56)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(97)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for key, tensor in module.state_dict().items():
        name = names.get_name(key, try_suffixes=(".weight",))
        if name != lacking:
            writer.add_tensor(name, tensor.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    folder, options = str(tmp_path), {"gguf_file": path.name, "local_files_only": True}
    if lacking is None:
        assert read_weights(hf.AutoModelForCausalLM, folder, **options).num_parameters() == module.num_parameters()
        return
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"lacks the weights model\.layers\.1\.mlp\.up_proj\.weight"):
        converted(path)
    assert not list((tmp_path / "cache" / "models").iterdir())


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
        ("tokenizer_config.json", lambda raw: POINTER, "tokenizer_config.json is a git-lfs pointer"),
        ("tokenizer_config.json", lambda raw: raw[:30], "tokenizer_config.json is not valid JSON"),
        ("config.json", lambda raw: raw[:50], "config.json is not valid JSON"),
        ("config.json", lambda raw: raw.replace(b'"hidden_size": 32', b'"hidden_size": "x"'), "hidden_size.* by hand"),
        ("config.json", lambda raw: raw.replace(b'heads": 4', b'heads": 0'), "ZeroDivisionError.* download it again"),
    ],
)
def test_damaged_files_are_named(file, damage, sentence, copy):
    (copy / file).write_bytes(damage((copy / file).read_bytes()))
    with pytest.raises(InputError, match=sentence):
        opened(copy)


def test_files_that_are_not_read_may_be_anything(copy):
    """Clones that leave out large files hold a pointer in place of the older format."""
    (copy / "pytorch_model.bin").write_bytes(POINTER)
    (copy / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}')
    (copy / "vocab.json").write_bytes(POINTER)
    assert opened(copy).tokenizer is not None
    (copy / "tokenizer.json").write_bytes(POINTER)
    assert load_model(copy, tokenizer="mine", dtype="fp32").tokenizer == "mine"
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"vocab\.json is a git-lfs pointer"):
        opened(copy)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (b"", "is empty"),
        (POINTER, "is a git-lfs pointer"),
        (b'{"weight_map": {"a"', "is not valid JSON"),
        (b"[1]", "has no weight_map from tensors to files"),
        (b'{"weight_map": null}', "has no weight_map from tensors to files"),
    ],
)
def test_a_damaged_index_of_shards_is_named(index, sentence, tmp_path):
    build("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(InputError, match=rf"model\.safetensors\.index\.json {sentence}"):
        opened(tmp_path)


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
    head = "cls.predictions.transform.dense.bias"
    with pytest.raises(InputError, match=f"32 nan and 0 inf in the weights {head}"):
        opened(saved(tmp_path / "bert", lambda tensors: {**tensors, head: tensors[head] * torch.nan}, "bert"))
    big = saved(tmp_path / "big", lambda tensors: {**tensors, name: 3e6 * tensors[name]})
    with pytest.raises(InputError, match=rf"inf in the weights {name}: .* fp16, load it with dtype bf16 or fp32"):
        opened(big, "fp16")
    overflowing = saved(tmp_path / "over", lambda tensors: {**tensors, name: 1.5e5 * tensors[name]})
    assert opened(overflowing).n_layers == 3
    with pytest.raises(InputError, match=r"nan or inf at mlp_act\.1: the weights are finite, so float16 overflows"):
        opened(overflowing, "fp16")
    with pytest.raises(
        InputError, match=r"inf at path:transformer.h.0.mlp.c_proj: .* float32 overflows: no dtype holds more"
    ):
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

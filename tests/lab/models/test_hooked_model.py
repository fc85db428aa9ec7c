"""Every site of every family against the module's own tensors, and edits that always end."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.identities import identities
from monosem.lab.models.sites import Site
from tiny_models import BUILD, FAMILY, VISION, build, inputs_for
from torch import nn

TEXT_DECODERS = [name for name in BUILD if name not in (*VISION, "bert")]
ONE_PER_TABLE = [name for name in BUILD if name not in ("qwen2", "qwen3", "mistral", "gemma2")]
WRITABLE = (
    "resid_pre",
    "z",
    "attn_out",
    "attn_add",
    "resid_mid",
    "mlp_act",
    "mlp_out",
    "mlp_add",
    "resid_post",
)


@pytest.fixture(scope="module")
def tiny():
    """Models by name, built once."""
    built: dict[str, HookedModel] = {}
    return lambda name: built.setdefault(name, HookedModel(build(name), name=name))


def final(model: HookedModel, inputs: torch.Tensor) -> torch.Tensor:
    """What a whole forward pass ends in: logits, or the last state of a headless tower."""
    return model.logits(inputs) if model.wiring.readout or model.family == "bert" else own_end(model, inputs)


@torch.no_grad()
def own_end(model: HookedModel, inputs: torch.Tensor) -> torch.Tensor:
    return model.module(inputs).last_hidden_state


@pytest.mark.parametrize("name", BUILD)
def test_residual_and_patterns_equal_the_models_own_outputs(name, tiny):
    model, inputs = tiny(name), inputs_for(name)
    assert model.family == FAMILY.get(name, name)
    own = build(name)
    own.set_attn_implementation("eager")
    with torch.no_grad():
        output = own(inputs, output_hidden_states=True, output_attentions=True)
    sites = [f"{kind}.{layer}" for kind in ("resid_pre", "pattern") for layer in range(3)]
    got = model.capture(inputs, sites)
    for layer in range(3):
        torch.testing.assert_close(got[f"resid_pre.{layer}"], output.hidden_states[layer])
        torch.testing.assert_close(got[f"pattern.{layer}"], output.attentions[layer])
        if layer:
            before = model.capture(inputs, [f"resid_post.{layer - 1}"])[f"resid_post.{layer - 1}"]
            torch.testing.assert_close(before, output.hidden_states[layer], atol=1e-5, rtol=1e-4)


# Where each family's own modules show what our names mean: relative to block 1, module and end.
OWN = {
    "llama": {
        "z": "self_attn.o_proj<",
        "attn_out": "self_attn>",
        "mlp_out": "mlp>",
        "mlp_act": "mlp.down_proj<",
    },
    "gemma3": {
        "attn_add": "post_attention_layernorm>",
        "mlp_add": "post_feedforward_layernorm>",
        "mlp_out": "mlp>",
    },
    "gpt2": {"z": "attn.c_proj<", "resid_mid": "ln_2<", "mlp_act": "mlp.act>", "mlp_out": "mlp>"},
    "gpt_neox": {"z": "attention.dense<", "mlp_act": "mlp.act>", "attn_add": "attention.dense>"},
    "bert": {"resid_mid": "attention>", "mlp_act": "intermediate>", "mlp_out": "output.dense>"},
    "vit": {"z": "attention.o_proj<", "resid_mid": "layernorm_after<", "mlp_act": "mlp.activation_fn>"},
    "clip_vision": {"z": "self_attn.out_proj<", "resid_mid": "layer_norm2<", "mlp_out": "mlp.fc2>"},
}


@pytest.mark.parametrize("name", OWN)
def test_inner_sites_equal_the_modules_own_tensors(name, tiny):
    model, inputs, own, seen = tiny(name), inputs_for(name), build(name), {}
    block = next(m for n, m in own.named_modules() if n.endswith((".1", "layers.1", "layer.1", "h.1")))

    def keep(kind, value):
        seen[kind] = value[0] if isinstance(value, tuple) else value

    for kind, place in OWN[name].items():
        module = block.get_submodule(place[:-1])
        if place.endswith("<"):
            module.register_forward_pre_hook(lambda m, args, kind=kind: keep(kind, args))
        else:
            module.register_forward_hook(lambda m, args, out, kind=kind: keep(kind, out))
    with torch.no_grad():
        own(inputs)
    got = model.capture(inputs, [f"{kind}.1" for kind in seen])
    assert set(seen) == set(OWN[name])
    for kind, expected in seen.items():
        assert torch.equal(got[f"{kind}.1"].reshape(expected.shape), expected), kind


@pytest.mark.parametrize("name", BUILD)
def test_identities_hold_tightly(name, tiny):
    found = identities(tiny(name))
    assert len(found) >= 9
    assert max(identity.error for identity in found) < 1e-5


@pytest.mark.parametrize("name", BUILD)
def test_widths_are_the_shapes(name, tiny):
    model = tiny(name)
    got = model.capture(inputs_for(name), model.sites())
    for site, tensor in got.items():
        if site.kind == "pattern":
            with pytest.raises(InputError, match="no fixed width"):
                model.width(site)
        else:
            assert model.width(site) == (tensor.flatten(2).shape[-1]), site
    assert got["z.0"].shape[2] == model.n_heads == 4
    assert model.width("resid_post.0") == model.d_model == 32


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_gemma_contribution_is_not_the_module_output(name, tiny):
    model, inputs = tiny(name), inputs_for(name)
    at = model.capture(inputs, [f"{kind}.1" for kind in model.wiring.kinds if kind != "pattern"])
    added = at["resid_pre.1"] + at["attn_add.1"] + at["mlp_add.1"]
    raw = at["resid_pre.1"] + at["attn_out.1"] + at["mlp_out.1"]
    torch.testing.assert_close(added, at["resid_post.1"])
    assert (raw - at["resid_post.1"]).norm() > 0.3 * at["resid_post.1"].norm()
    # TransformerLens's block-level hook is the contribution, the one inside the module its output.
    assert torch.equal(at["blocks.1.hook_mlp_out"], at["mlp_add.1"])
    assert torch.equal(at["blocks.1.mlp.hook_out"], at["mlp_out.1"])


def test_parallel_residual_has_no_middle(tiny):
    with pytest.raises(InputError, match=r"no resid_mid.*use resid_pre or resid_post"):
        tiny("gpt_neox").site("blocks.1.hook_resid_mid")
    assert "resid_mid.1" not in tiny("gpt_neox").sites()
    assert "resid_mid.1" in tiny("gpt_neox_sequential").sites()


def test_a_look_alike_is_refused_with_the_identity_and_its_size():
    module = build("llama")
    module.model.layers[1].mlp.register_forward_hook(lambda m, args, out: out)  # harmless
    HookedModel(module)
    module.model.layers[1].register_forward_hook(lambda m, args, out: 1.5 * out)  # a scaled residual
    with pytest.raises(InputError, match=r"resid_post fails at layer 1 by \d+\.\d+% .*checks=False"):
        HookedModel(module)
    assert HookedModel(module, checks=False).family == "llama"


@pytest.mark.parametrize("name", BUILD)
def test_nothing_runs_after_the_last_site(name, tiny):
    model, calls = tiny(name), []
    blocks = next(m for m in model.module.modules() if isinstance(m, nn.ModuleList))
    handles = [block.register_forward_pre_hook(lambda m, a, i=i: calls.append(i)) for i, block in enumerate(blocks)]
    before = model.forwards
    model.capture(inputs_for(name), ["resid_post.0", "z.1", "mlp_out.0"])
    for handle in handles:
        handle.remove()
    assert calls == [0, 1]
    assert model.forwards == before + 1


def test_one_forward_feeds_many_sites_and_no_hook_stays(tiny):
    model = tiny("llama")
    before = model.forwards
    model.capture(inputs_for("llama"), model.sites())
    assert model.forwards == before + 1
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_captured_tensors_can_be_trained_on(tiny):
    x = tiny("llama").capture(inputs_for("llama"), ["resid_post.1"])["resid_post.1"]
    weight = torch.zeros(32, 4, requires_grad=True)
    (x @ weight).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_hidden_states_by_keyword_and_by_position():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, *, hidden_states):
            return (self.inner(hidden_states), "more")

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Block(), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(self.first(hidden_states=x)[0])

    stack, x = Stack(), torch.randn(3, 4)
    model = HookedModel(stack)
    got = model.capture(x, ["path:first", "path:second"])
    torch.testing.assert_close(got["path:second"], stack.second(got["path:first"]))
    with model.editing({"path:first": torch.zeros_like}):
        torch.testing.assert_close(model.logits(x), stack.second.bias.expand(3, 2))


@pytest.mark.parametrize("name", ONE_PER_TABLE)
def test_edits_that_change_nothing_are_bit_identical(name, tiny):
    model, inputs = tiny(name), inputs_for(name)
    plain = final(model, inputs)
    for kind in set(WRITABLE) - set(model.wiring.absent):
        for unchanged in (lambda x: x, torch.clone):
            with model.editing({f"{kind}.1": unchanged}):
                assert torch.equal(final(model, inputs), plain), kind


@pytest.mark.parametrize("name", ONE_PER_TABLE)
def test_edits_arrive_and_are_undone(name, tiny):
    model, inputs = tiny(name), inputs_for(name)
    plain = final(model, inputs)
    for kind in set(WRITABLE) - set(model.wiring.absent):
        site = f"{kind}.1"
        original = model.capture(inputs, [site])[site]
        with model.editing({site: lambda x: 2 * x + 1}):
            assert not torch.allclose(final(model, inputs), plain), kind
            assert torch.equal(model.capture(inputs, [site])[site], 2 * original + 1), kind
        assert torch.equal(final(model, inputs), plain), kind


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "gpt_neox_sequential", "vit", "clip_vision"])
def test_editing_resid_mid_reaches_the_skip_connection(name, tiny):
    model, inputs = tiny(name), inputs_for(name)
    donor = model.capture(inputs.flip(0), ["resid_mid.1", "resid_post.1"])
    with model.editing({"resid_mid.1": lambda x: donor["resid_mid.1"]}):
        patched = model.capture(inputs, ["resid_post.1"])["resid_post.1"]
    assert torch.equal(patched, donor["resid_post.1"])


def test_rows_left_alone_by_a_resid_mid_edit_keep_their_bits(tiny):
    model, inputs = tiny("llama"), inputs_for("llama")
    plain = model.capture(inputs, ["resid_post.1"])["resid_post.1"]

    def last_only(x):
        return torch.cat([x[:, :-1], x[:, -1:] * 3], 1)

    with model.editing({"resid_mid.1": last_only}):
        edited = model.capture(inputs, ["resid_post.1"])["resid_post.1"]
    assert torch.equal(edited[:, :-1], plain[:, :-1])
    assert not torch.allclose(edited[:, -1], plain[:, -1])


def test_edits_nest_in_order_and_end_one_by_one(tiny):
    model, inputs = tiny("llama"), inputs_for("llama")
    plain = model.capture(inputs, ["resid_post.0"])["resid_post.0"]
    with model.editing({"resid_post.0": lambda x: x + 1}):
        with model.editing({"blocks.0.hook_resid_post": lambda x: 2 * x}):
            assert torch.equal(model.capture(inputs, ["resid_post.0"])["resid_post.0"], 2 * (plain + 1))
        assert torch.equal(model.capture(inputs, ["resid_post.0"])["resid_post.0"], plain + 1)
    assert torch.equal(model.capture(inputs, ["resid_post.0"])["resid_post.0"], plain)


def test_an_inner_mlp_edit_meets_an_outer_resid_mid_edit(tiny):
    model, inputs = tiny("llama"), inputs_for("llama")
    sites = ["resid_mid.1", "mlp_add.1", "resid_post.1"]
    with model.editing({"resid_mid.1": lambda x: x + 1}), model.editing({"mlp_out.1": lambda x: -x}):
        at = model.capture(inputs, sites)
    torch.testing.assert_close(at["resid_post.1"], at["resid_mid.1"] + at["mlp_add.1"])


def test_edits_end_after_exceptions(tiny):
    model, inputs = tiny("llama"), inputs_for("llama")
    plain = model.logits(inputs)

    def explode(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), model.editing({"z.1": explode, "resid_mid.0": torch.zeros_like}):
        model.logits(inputs)
    assert torch.equal(model.logits(inputs), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_edits_act_in_their_own_thread_only(tiny):
    model, inputs = tiny("llama"), inputs_for("llama")
    plain, elsewhere = model.logits(inputs), []
    with model.editing({"resid_post.0": torch.zeros_like}):
        thread = threading.Thread(target=lambda: elsewhere.append(model.logits(inputs)))
        thread.start()
        thread.join()
        assert not torch.allclose(model.logits(inputs), plain)
    assert torch.equal(elsewhere[0], plain)


def test_edits_act_on_direct_calls_and_pass_gradients(tiny):
    model, inputs = tiny("llama"), inputs_for("llama")
    push = torch.zeros(32, requires_grad=True)
    with model.editing({"resid_post.1": lambda x: x + push}):
        model.logits(inputs, grad=True).logsumexp(-1).sum().backward()
        direct = model.module(inputs).logits
        assert not model.logits(inputs).requires_grad
    torch.testing.assert_close(direct, model.logits(inputs))
    assert push.grad is not None and push.grad.abs().sum() > 0


def test_what_cannot_be_written_is_refused(tiny):
    model, inputs = tiny("llama"), inputs_for("llama")
    with (
        pytest.raises(InputError, match=r"pattern\.1 cannot be edited"),
        model.editing({"pattern.1": torch.clone}),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"shape \[2, 7, 32\], not shape \[2, 7\]"),
        model.editing({"resid_post.1": lambda x: x.sum(-1)}),
    ):
        model.logits(inputs)
    unused = HookedModel(nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)}))
    unused.module.forward = lambda x: unused.module["used"](x)
    with pytest.raises(InputError, match="path:idle did nothing"), unused.editing({"path:idle": torch.clone}):
        unused.logits(torch.ones(1, 2))
    with pytest.raises(InputError, match="nothing to capture at path:idle"):
        unused.capture(torch.ones(1, 2), ["path:used", "path:idle"])


def test_eager_attention_is_for_patterns_only_and_put_back(tiny):
    model, inputs = tiny("llama"), inputs_for("llama")
    seen = []
    handle = model.module.model.layers[0].register_forward_pre_hook(
        lambda m, args: seen.append(model.module.config._attn_implementation)
    )
    model.capture(inputs, ["resid_post.1"])
    model.capture(inputs, ["pattern.0", "resid_post.1"])
    handle.remove()
    assert seen == ["sdpa", "eager"]
    with pytest.raises(InputError, match="attention_mask"):
        model.capture(inputs, ["pattern.0"], attention_mask=torch.ones(2, 3))

    def explode(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), model.editing({"z.0": explode}):
        model.capture(inputs, ["pattern.1"])
    assert model.module.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", [name for name in BUILD if name not in VISION])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_reach_the_tokens(name, side, tiny):
    if name == "bert" and side == "left":
        pytest.skip("encoders number positions from the left edge")
    model, inputs = tiny(name), inputs_for(name, batch=1)
    padding, real = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 7, dtype=torch.long)
    order = (padding, inputs) if side == "left" else (inputs, padding)
    mask = torch.cat([padding, real] if side == "left" else [real, padding], 1)
    got = model.capture(torch.cat(order, 1), ["resid_post.2"], attention_mask=mask)["resid_post.2"]
    alone = model.capture(inputs, ["resid_post.2"])["resid_post.2"]
    torch.testing.assert_close(got[mask.bool()][None], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TEXT_DECODERS)
def test_unembed_and_directions(name, tiny):
    model, inputs = tiny(name), inputs_for(name)
    resid = model.capture(inputs, ["resid_post.2"])["resid_post.2"]
    torch.testing.assert_close(model.unembed(resid), model.logits(inputs), atol=1e-4, rtol=1e-4)
    # Known answer: gain and centring written out from the norm's own parameters.
    norm, head = model.wiring.readout
    W_dec = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    gain = 1 + norm.weight if name.startswith("gemma") else norm.weight
    centred = W_dec - W_dec.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else W_dec
    expected = (centred * gain) @ head.weight.T
    torch.testing.assert_close(model.logit_directions(W_dec), expected.detach(), atol=2e-4, rtol=2e-3)


def test_models_without_an_unembedding_say_so(tiny):
    for name in ("bert", *VISION):
        with pytest.raises(InputError, match="no unembedding"):
            tiny(name).unembed(torch.zeros(2, 32))
    with pytest.raises(InputError, match="no head that gives logits"):
        tiny("vit").logits(inputs_for("vit"))


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ("resid_pots.1", "did you mean 'resid_post.1'"),
        ("resid_post.3", r"layers 0 to 2.*did you mean resid_post\.2"),
        ("blocks.9.hook_resid_post", "layers 0 to 2"),
        ("path:model.layer.1.mlp", "did you mean 'model.layers.1.mlp'"),
    ],
)
def test_unknown_sites_suggest_known_ones(site, words, tiny):
    for use in (tiny("llama").site, tiny("llama").width):
        with pytest.raises(InputError, match=words):
            use(site)
    with pytest.raises(InputError, match=words):
        tiny("llama").capture(inputs_for("llama"), [site])
    with pytest.raises(InputError, match=words), tiny("llama").editing({site: torch.clone}):
        pass


@pytest.mark.parametrize(
    ("name", "inputs", "words"),
    [
        ("llama", torch.zeros(2, 7), r"token ids \[batch, tokens\], not torch.float32"),
        ("llama", torch.zeros(7, dtype=torch.long), r"shape \[7\]"),
        ("llama", [1, 2], "not list"),
        ("gpt2", torch.zeros(1, 1025, dtype=torch.long), "1025 tokens are too many: .* at most 1024"),
        ("vit", torch.zeros(2, 7, dtype=torch.long), "pixel values"),
    ],
)
def test_wrong_inputs_are_refused(name, inputs, words, tiny):
    with pytest.raises(InputError, match=words):
        tiny(name).capture(inputs, ["resid_post.1"])


def test_captured_sites_answer_to_any_name(tiny):
    got = tiny("llama").capture(inputs_for("llama"), ["blocks.1.hook_resid_post"])
    assert list(got) == [Site("resid_post", 1)]
    assert got["resid_post.1"] is got["blocks.1.hook_resid_post"] is got[Site("resid_post", 1)]
    with pytest.raises(InputError, match=r"did you mean 'resid_post\.1'"):
        got["resid_post.2"]


def test_a_module_of_your_own_has_paths():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    model = HookedModel(module)
    x = torch.randn(5, 4)
    assert (model.family, model.n_layers, model.sites()) == (None, 0, ["path:0", "path:1", "path:2"])
    with pytest.raises(InputError, match="not known before"):
        model.width("path:0")
    got = model.capture(x, model.sites())
    assert torch.equal(got["path:0"], module[0](x))  # though the ReLU after it writes in place
    assert torch.equal(got["path:2"], module(x))
    assert model.width("path:0") == 8
    with pytest.raises(InputError, match="name a module instead, as in path:0"):
        model.site("resid_post.0")


def test_fingerprints_tell_models_apart():
    one, same, other = (HookedModel(build("llama", seed)).fingerprint() for seed in (0, 0, 1))
    half = HookedModel(build("llama").bfloat16()).fingerprint()
    assert json.loads(json.dumps(one)) == one == same
    assert one["parameters"] != other["parameters"]
    assert one["parameters"] == half["parameters"] and (one["dtype"], half["dtype"]) == (
        "float32",
        "bfloat16",
    )


def test_bfloat16_passes_the_load_checks(tiny):
    for name in ("llama", "gpt_neox", "gemma3", "bert", "vit"):
        HookedModel(build(name).bfloat16())


def test_reprs_are_short(tiny):
    assert repr(tiny("llama")).startswith("HookedModel('llama', family=llama, layers=3, d_model=32")
    assert "<th>layers</th><td>3</td>" in tiny("llama")._repr_html_()

"""Names of sites: ours, TransformerLens's, and what a misspelt one suggests."""

from __future__ import annotations

import pytest
from monosem.lab.errors import InputError
from monosem.lab.models.sites import KINDS, LENS_NAMES, Site


@pytest.mark.parametrize("kind", KINDS)
def test_text_round_trips(kind):
    site = Site(kind, 12)
    assert str(site) == f"{kind}.12"
    assert Site.parse(str(site)) == site


def test_paths_round_trip():
    site = Site.parse("path:model.layers.3.mlp.gate_proj")
    assert (site.kind, site.path) == ("path", "model.layers.3.mlp.gate_proj")
    assert Site.parse(str(site)) == site
    assert Site.parse(site) is site


@pytest.mark.parametrize(
    ("lens", "ours"),
    [
        ("blocks.12.hook_resid_post", "resid_post.12"),
        ("blocks.0.hook_resid_pre", "resid_pre.0"),
        ("blocks.3.hook_resid_mid", "resid_mid.3"),
        ("blocks.3.attn.hook_z", "z.3"),
        ("blocks.3.attn.hook_pattern", "pattern.3"),
        ("blocks.3.mlp.hook_post", "mlp_act.3"),
        # The block-level hooks are contributions; the ones inside a module are what it returns.
        ("blocks.3.hook_mlp_out", "mlp_add.3"),
        ("blocks.3.mlp.hook_out", "mlp_out.3"),
        ("blocks.3.hook_attn_out", "attn_add.3"),
        ("blocks.3.attn.hook_out", "attn_out.3"),
    ],
)
def test_transformer_lens_names_both_ways(lens, ours):
    assert str(Site.parse(lens)) == ours
    assert Site.parse(ours).to_transformer_lens() == lens


@pytest.mark.parametrize("kind", KINDS)
def test_every_lens_alias_means_its_kind(kind):
    assert {Site.parse(f"blocks.7.{hook}") for hook in LENS_NAMES[kind]} == {Site(kind, 7)}


def test_sites_sort_as_they_run_and_work_as_keys():
    texts = ["path:lm_head", "resid_post.2", "resid_pre.10", "resid_mid.2", "resid_pre.2", "z.2"]
    expected = ["resid_pre.2", "z.2", "resid_mid.2", "resid_post.2", "resid_pre.10", "path:lm_head"]
    assert [str(site) for site in sorted(map(Site.parse, texts))] == expected
    assert len({Site("z", 1), Site.parse("z.1"), Site.parse("blocks.1.attn.hook_z")}) == 1
    with pytest.raises(AttributeError):
        Site("z", 1).layer = 2


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("resid_pots.12", "'resid_post.12'"),
        ("residpost.3", "'resid_post.3'"),
        ("mlp-out.4", "'mlp_out.4'"),
        ("resid_post", "'resid_post.0'"),
        ("blocks.3.hook_resid_pots", "'blocks.3.hook_resid_post'"),
        ("blocks.3.attn.hook_zz", "'blocks.3.attn.hook_z'"),
    ],
)
def test_a_misspelt_name_suggests_the_right_one_first(wrong, right):
    with pytest.raises(InputError) as error:
        Site.parse(wrong)
    assert repr(wrong) in str(error.value)
    assert f"did you mean {right}" in str(error.value)


def test_a_module_without_its_prefix_is_told_the_prefix():
    with pytest.raises(InputError, match=r"unknown site 'model.layers.2': .*'path:model.layers.2'"):
        Site.parse("model.layers.2")


@pytest.mark.parametrize("bad", [("resid_post", -1), ("z", -2), ("path", 3, "a"), ("path", -1, ""), ("z", 1, "a")])
def test_impossible_sites_are_refused(bad):
    with pytest.raises(InputError):
        Site(*bad)


def test_a_path_has_no_lens_name():
    with pytest.raises(InputError, match="path:lm_head"):
        Site.parse("path:lm_head").to_transformer_lens()

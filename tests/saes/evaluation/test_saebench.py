"""SAEBench's core scores against its own code, on the same dictionary, model and tokens.

`PUBLISHED` was produced by sae-bench 0.6.0 itself: `published_scores` below, which runs its `run_evals` and
`calculate_misc_metrics` on a HookedTransformer (transformer-lens 3.9.0) and sae-lens 6.54.12 dictionaries whose weights
and tokens come from seeds, so that the inputs are made again here. Where sae-bench is installed (`pip install --no-deps
sae-bench==0.6.0 tabulate`) its code runs once more, and must give the stored numbers and ours.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.saes import formats
from monosem.saes.dictionary import Dictionary
from monosem.saes.evaluation.saebench import saebench_scores
from monosem.saes.registry import build
from torch import Tensor, nn

torch.set_num_threads(1)
SITE, D, N, K, VOCABULARY, LENGTH = "resid_post.1", 32, 96, 6, 80, 24
BEGIN, END = 0, 1
PUBLISHED = {
    "topk": {
        "kl_div_score": 0.727941035, "kl_div_with_ablation": 2.1226356, "kl_div_with_sae": 0.577482045,
        "ce_loss_score": 0.631626641, "ce_loss_with_ablation": 5.71351719, "ce_loss_with_sae": 5.5882163,
        "ce_loss_without_sae": 5.5151391, "explained_variance": -14.552165, "explained_variance_legacy": -0.194118366,
        "mse": 1.47013938, "cossim": 0.687206626, "l2_norm_in": 31.2035122, "l2_norm_out": 17.9006786,
        "l2_ratio": 0.572163761, "relative_reconstruction_bias": 0.851002514, "l0": 6.0, "l1": 33.1630669,
        "average_max_encoder_cosine_sim": 0.433713704, "average_max_decoder_cosine_sim": 0.433713704,
        "frac_alive": 0.697916687, "freq_over_1_percent": 0.479166657, "freq_over_10_percent": 0.197916672,
        "normalized_freq_over_1_percent": 0.983561575, "normalized_freq_over_10_percent": 0.805022717,
        "consistent_activation_heuristic": 2.76627827,
    },
    "jumprelu": {
        "kl_div_score": 0.82566612, "kl_div_with_ablation": 2.1226356, "kl_div_with_sae": 0.370047301,
        "ce_loss_score": 0.391571261, "ce_loss_with_ablation": 5.71351719, "ce_loss_with_sae": 5.63583803,
        "ce_loss_without_sae": 5.5151391, "explained_variance": -10.9643221, "explained_variance_legacy": 0.094176732,
        "mse": 1.13098216, "cossim": 0.791829705, "l2_norm_in": 31.2035122, "l2_norm_out": 30.42099,
        "l2_ratio": 0.974628329, "relative_reconstruction_bias": 1.24873197, "l0": 43.1534233, "l1": 104.217476,
        "average_max_encoder_cosine_sim": 0.433713704, "average_max_decoder_cosine_sim": 0.433713704,
        "frac_alive": 1.0, "freq_over_1_percent": 0.989583313, "freq_over_10_percent": 0.90625,
        "normalized_freq_over_1_percent": 0.999936461, "normalized_freq_over_10_percent": 0.990413249,
        "consistent_activation_heuristic": 10.4294853,
    },
}  # fmt: skip


def fill(module: nn.Module, seed: int, scale: float) -> None:
    """Weights that depend on the seed alone, not on how a library initialises."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng))


@pytest.fixture(scope="module")
def model() -> HookedModel:
    lens = pytest.importorskip("transformer_lens")
    config = lens.HookedTransformerConfig(
        n_layers=3, d_model=D, n_ctx=LENGTH, d_head=8, n_heads=4, d_mlp=64, act_fn="gelu", d_vocab=VOCABULARY,
        normalization_type="LNPre", seed=0, device="cpu",
    )  # fmt: skip
    module = lens.HookedTransformer(config)
    fill(module, 1, 0.3)
    return load_model(module)


def dictionary(architecture: str) -> Dictionary:
    """Random directions that reconstruct about half of what they are given."""
    found = build(architecture, d_in=D, n_latents=N, k=K)
    fill(found, 2, 1.0)
    found.W_dec.data /= found.W_dec.norm(dim=1, keepdim=True)
    found.W_enc.data.copy_(0.5 * found.W_dec)
    found.b_enc.data *= 0.02
    found.b_dec.data *= 0.1
    if architecture == "jumprelu":
        found.theta.copy_(0.2 + 0.1 * torch.rand(N, generator=torch.Generator().manual_seed(3)))
    found.place, found.provenance.model = SITE, {"name": "tiny"}
    return found


def prompts() -> Tensor:
    """160 rows that begin with BOS and hold an END here and there."""
    found = torch.randint(2, VOCABULARY, (160, LENGTH), generator=torch.Generator().manual_seed(4))
    found[:, 0] = BEGIN
    found[::7, 11] = END
    return found


class Tokens:
    """What `run_evals` asks of an activation store: the same prompts, 16 at a time, from the start when reset."""

    context_size, store_batch_size_prompts = LENGTH, 16

    def __init__(self) -> None:
        self.read = 0

    def get_batch_tokens(self, n: int) -> Tensor:
        self.read += n
        return prompts()[self.read - n : self.read]

    def reset_input_dataset(self) -> None:
        self.read = 0


def published_scores(module: Any, found: Dictionary, folder: Path) -> dict[str, float]:
    """The scores of one dictionary by sae-bench's code, through a file in sae-lens's format."""
    main = pytest.importorskip("sae_bench.evals.core.main")
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae

    formats.write(found, folder, "sae-lens")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = main.SAE.load_from_disk(folder, device="cpu")
    _, sae, _ = load_and_format_sae("own", theirs, "cpu")
    every = {name: True for name in CoreEvalConfig.__dataclass_fields__ if name.startswith("compute_")}
    metrics, features = main.run_evals(
        sae, Tokens(), module, CoreEvalConfig(batch_size_prompts=16, **every), ignore_tokens={BEGIN, END}
    )
    scores = {name: value for group in metrics.values() for name, value in group.items() if name[:6] != "total_"}
    scores |= main.calculate_misc_metrics(features)
    times = torch.tensor(features["consistent_activation_heuristic"])
    return scores | {"consistent_activation_heuristic": float(times[~times.isnan()].mean())}


def ours(model: HookedModel, architecture: str) -> dict[str, float]:
    return saebench_scores(model, list(prompts()), SITE, dictionary(architecture), [BEGIN, END])


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
@pytest.mark.parametrize("architecture", PUBLISHED)
def test_ours_is_what_sae_bench_said(model: HookedModel, architecture: str) -> None:
    found = saebench_scores(model, list(prompts()), SITE, dictionary(architecture), [BEGIN, END])
    assert found == pytest.approx(PUBLISHED[architecture], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_sae_bench_still_says_it(model: HookedModel, tmp_path: Path, architecture: str) -> None:
    said = published_scores(model.module, dictionary(architecture), tmp_path / "sae")
    assert said == pytest.approx(PUBLISHED[architecture], rel=1e-5, abs=1e-5)

"""Display names of scores and nulls, with what each score measures: one table for pages, plots and text."""

from __future__ import annotations

from typing import NamedTuple


class ScoreName(NamedTuple):
    """How a score is named to people."""

    label: str
    """Short: the heading of a column, the name of a row."""
    meaning: str
    """In one phrase, with its unit."""
    better: str = "lower"
    """The direction that is better: lower, higher, or nearest one."""
    judged: bool = True
    """True if a score that does not beat its null means that nothing was learned. A size, such as L0, is not."""


_FIRING = "share of latents that fire on none of the measured tokens; rare ones need many"
SCORES: dict[str, ScoreName] = {
    "fvu": ScoreName("FVU", "fraction of variance unexplained"),
    "explained_variance": ScoreName("Explained variance", "1 - FVU", "higher"),
    "mse": ScoreName("MSE", "squared error summed over dimensions, mean a token"),
    "mse_dimension": ScoreName("MSE a dimension", "squared error, mean over dimensions and tokens"),
    "correlation": ScoreName("Correlation", "of activation and reconstruction, pooled over dimensions", "higher"),
    "l0": ScoreName("L0", "active latents a token", judged=False),
    "l1": ScoreName("L1", "sum of |code| a token", judged=False),
    "cosine": ScoreName("Cosine", "cosine of activation and reconstruction, mean a token", "higher"),
    "norm_ratio": ScoreName(
        "Norm ratio", "norm of the reconstruction over norm of the activation", "nearest one", judged=False
    ),
    "relative_bias": ScoreName(
        "Relative bias", "1 where the reconstruction is neither shrunk nor stretched", "nearest one", judged=False
    ),
    "dead": ScoreName("Silent latents", _FIRING, judged=False),
    "alive": ScoreName("Firing latents", "share of latents that fire on some of the measured tokens", "higher", False),
    "dense_1": ScoreName("Dense above 1 %", "share of latents firing on more than 1 % of tokens", judged=False),
    "dense_10": ScoreName("Dense above 10 %", "share of latents firing on more than 10 % of tokens", judged=False),
    "ce_recovered_zero": ScoreName(
        "CE recovered, zero", "cross-entropy recovered; 0 is zero ablation, 1 the clean model", "higher"
    ),
    "ce_recovered_mean": ScoreName(
        "CE recovered, mean", "cross-entropy recovered; 0 is mean ablation, 1 the clean model", "higher"
    ),
    "ce_increase": ScoreName("CE added", "cross-entropy that splicing adds, nats a token"),
    "kl": ScoreName("KL", "KL divergence from the clean model, nats a token"),
    "kl_score_zero": ScoreName("KL avoided, zero", "share of the KL of zero ablation that is avoided", "higher"),
    "kl_score_mean": ScoreName("KL avoided, mean", "share of the KL of mean ablation that is avoided", "higher"),
    "decoder_max_cosine": ScoreName(
        "Largest cosine, decoder", "largest cosine of a latent's decoder row with another's, mean over latents",
        judged=False,
    ),
    "encoder_max_cosine": ScoreName(
        "Largest cosine, encoder", "largest cosine of a latent's encoder row with another's, mean over latents",
        judged=False,
    ),
    "encoder_decoder_cosine": ScoreName(
        "Encoder-decoder cosine", "cosine of a latent's encoder and decoder rows, mean over latents", "higher"
    ),
    "auc": ScoreName("AUC", "area under the ROC curve on test units", "higher"),
    "accuracy": ScoreName("Balanced accuracy", "mean over classes of their share that is right", "higher"),
    "f1": ScoreName("F1", "harmonic mean of precision and recall", "higher"),
    "r2": ScoreName("R²", "explained variance of test units", "higher"),
    "ece": ScoreName("ECE", "expected calibration error: mean distance of a chance and its share"),
    "brier": ScoreName("Brier score", "mean squared distance of chances and labels"),
    "mcc": ScoreName("MCC", "Matthews correlation of the classes", "higher"),
    "wmcc": ScoreName(
        "MCC, answered", "Matthews correlation over answered statements, times the share answered", "higher"
    ),
    "coverage": ScoreName("Coverage", "share of conformal sets that hold the right class", "higher"),
    "coverage_class": ScoreName(
        "Coverage, by class", "coverage calibrated class by class, of the class that is held least", "higher"
    ),
    "cka": ScoreName("CKA", "linear centred kernel alignment of two sets of rows", "higher"),
    "cka_unbiased": ScoreName("CKA, unbiased", "CKA whose kernels are estimated without bias", "higher"),
    "svcca": ScoreName("SVCCA", "mean canonical correlation of the leading singular directions", "higher"),
    "regression": ScoreName("Regression", "R² of one set of rows predicted linearly from the other", "higher"),
    "relative": ScoreName("Relative", "likeness of the cosines of rows to anchors", "higher"),
    "jaccard": ScoreName("Jaccard", "tokens that are atoms of both ITDAs, over those of either", "higher"),
    "mmcs": ScoreName("MMCS", "mean over decoder rows of the largest |cosine| with a row of the other", "higher"),
    "mmcs_back": ScoreName("MMCS, back", "MMCS from the second dictionary to the first", "higher"),
    "one_to_one": ScoreName("One to one", "mean |cosine| of the best pairing of decoder rows", "higher"),
    "found": ScoreName("Found", "share of the paired decoder rows with |cosine| of at least 0.9", "higher"),
    "acceptance": ScoreName("Acceptance", "share of conformal sets with exactly one class", "higher"),
}  # fmt: skip
"""By the name that results and files use."""

NULLS: dict[str, str] = {"pca": "PCA"}
"""Nulls whose name is more than their words."""


def score_label(name: str) -> str:
    """The short name of a score; of one that is not in the table its words, the first with a capital."""
    words = name.replace("_", " ")
    return SCORES[name].label if name in SCORES else words[:1].upper() + words[1:]


def is_judged(name: str) -> bool:
    """True if a score that does not beat its null means that nothing was learned."""
    return name not in SCORES or SCORES[name].judged


def score_meaning(name: str) -> str:
    """The phrase that tells what a score measures; of one that is not in the table its own name."""
    return SCORES[name].meaning if name in SCORES else name


def score_title(name: str) -> str:
    """Meaning and short name, as a title of an axis: `fraction of variance unexplained (FVU)`."""
    if name not in SCORES:
        return name.replace("_", " ")
    label, meaning, *_ = SCORES[name]
    return meaning if label.lower() in meaning.lower() else f"{meaning} ({label})"


def null_label(name: str) -> str:
    """The name of a null in words."""
    return NULLS.get(name, name.replace("_", " "))

"""The five criteria that a probe of truth must meet (Savcisens and Eliassi-Rad 2025, 5), each as evidence.

correlation     it tells the classes apart on held-out entities
generalisation  also in statements of the other polarity, and about another topic, than it was fitted on
selectivity     what is true looks truer than what is false and than what is neither, and the same of false
manipulation    moving a statement along its direction moves the model's own verdict
locality        and moves nothing else
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...lab.errors import InputError
from ...lab.evidence import Evidence
from ...lab.models.hooked_model import HookedModel
from ...lab.rng import derive_seed
from .bags import StatementBags
from .conformal import least_points
from .manipulation import Move, causal_effects
from .sites import SiteResult, SiteStatements, TruthConfig, probe_parts
from .statements import CLASSES, FALSE, TRUE, Statements

Criteria = dict[str, dict[str, Evidence]]
GENERAL = ("mcc", "wmcc")
SELECTIVE = ("selective_true", "selective_false")
LOCAL = ("localised_effect_ratio", "decoherence")


@dataclass(frozen=True)
class CausalConfig:
    """Settings of asking the model about statements whose tokens are moved."""

    statements: int = 40
    """Half true, half false, drawn from the test split; 0 leaves manipulation and locality out."""
    strength: float = 1.0
    """Length of a move, over the distance between the means of true and of false statements at their last token."""
    seed: int = 0
    """Of the draw and the random directions."""

    def __post_init__(self) -> None:
        if self.statements < 0 or self.statements == 1:
            raise InputError(f"statements must be 0 or at least 2, got {self.statements}")
        if not self.strength > 0:
            raise InputError(f"strength must be above 0, got {self.strength}")


def five_criteria(
    model: HookedModel,
    site: str,
    bags: StatementBags,
    statements: Statements,
    result: SiteResult,
    config: TruthConfig,
    causal: CausalConfig | None = None,
    other: SiteStatements | None = None,
) -> Criteria:
    """Every criterion for what one method found at one site.

    Args:
        result: of `probe_site` at this site, with the same bags, statements and config.
        other: statements about another topic, whose test split shares no entity with the training split here.
    """
    causal, whole = causal or CausalConfig(), SiteStatements(bags, statements)
    method = result.three_way.fitted.method
    criteria: Criteria = {
        "correlation": {name: result.scores[name] for name in ("mcc", "wmcc", "ami", "ari")},
        "generalisation": generalisation(method, whole, config, other),
        "selectivity": {name: result.scores[name] for name in SELECTIVE},
    }
    if causal.statements:
        effects = _effects(model, site, whole, result, causal)
        criteria["manipulation"] = {name: evidence for name, evidence in effects.items() if name not in LOCAL}
        criteria["locality"] = {name: effects[name] for name in LOCAL}
    return criteria


def require_points(statements: Statements, alpha: float) -> None:
    """Refuse statements that are too few for what `five_criteria` calibrates: each class in each polarity.

    Raises:
        InputError: names the class, how many there are, and how many are needed.
    """
    statements.require_classes()
    needed = least_points(alpha)
    for negated in np.unique(statements.negated).tolist():
        labels = statements.labels[statements.rows("calibration", negated)]
        for label, name in enumerate(CLASSES):
            if (points := int((labels == label).sum())) < needed:
                polarity = "negated" if negated else "affirmed"
                raise InputError(
                    f"{points} {polarity} calibration statements are {name}, too few for alpha {alpha:g}: give more "
                    f"statements, for at least {needed} such calibration points, or a larger alpha"
                )


def generalisation(
    method: str, whole: SiteStatements, config: TruthConfig, other: SiteStatements | None = None
) -> dict[str, Evidence]:
    """Matthews correlations, plain and weighted, on statements unlike those fitted on.

    `affirmed_to_negated` and `negated_to_affirmed` fit and calibrate on one polarity and test on the other, where there
    are both; `to_TOPIC` fits on everything and tests on another topic.

    Raises:
        InputError: too few statements of a polarity to fit or to calibrate.
    """
    evidence: dict[str, Evidence] = {}

    def add(name: str, parts: tuple[SiteStatements, SiteStatements, SiteStatements]) -> None:
        scores = probe_parts(method, *parts, config).scores
        evidence.update({f"{score}_{name}": scores[score] for score in GENERAL})

    if len(np.unique(whole.statements.negated)) == 2:
        for name, negated in (("affirmed_to_negated", False), ("negated_to_affirmed", True)):
            fitted = (whole.of("train", negated), whole.of("calibration", negated))
            add(name, (*fitted, whole.of("test", not negated)))
    if other is not None:
        add(f"to_{other.statements.name}", (whole.of("train"), whole.of("calibration"), other.of("test")))
    return evidence


def _effects(
    model: HookedModel, site: str, whole: SiteStatements, result: SiteResult, causal: CausalConfig
) -> dict[str, Evidence]:
    """Moves along the direction for true, beside random ones and the plain difference of means."""
    train, test = whole.of("train"), whole.of("test")
    last, labels = train.bags.last(), torch.from_numpy(train.statements.labels)
    true, false = last[labels == TRUE], last[labels == FALSE]
    place = model.site(site)
    move = Move.between(place, result.three_way.fitted.linear.weight[TRUE], true, false, causal.strength)
    difference = Move.between(place, true.mean(0) - false.mean(0), true, false)
    rng = np.random.default_rng(derive_seed(causal.seed, "statements to move"))
    drawn = [
        rng.permutation(np.flatnonzero(test.statements.labels == c))[: causal.statements // 2] for c in (TRUE, FALSE)
    ]
    chosen = test.statements.take(np.concatenate(drawn))
    return causal_effects(
        model, chosen.texts, chosen.labels == TRUE, chosen.entities, move,
        others={"mean_difference": move.along(difference.direction)}, seed=causal.seed,
        held_out=f"{len(chosen)} test statements, {CLASSES[TRUE]} and {CLASSES[FALSE]}",
    )  # fmt: skip

"""Does the model itself use a direction? Its verdict on a statement when the statement's tokens are moved along it.

indirect effect              by how much the odds of "true" against "false" change, in nats, when the last two
                             tokens of a statement are moved as far as true and false ones lie apart
normalised indirect effect   that change as a share of the gap between true and false statements with nothing moved
localised-effect ratio       effect on statements / (the same + effect on texts that are neither true nor false)
decoherence                  share of those texts for which the answer itself changes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from ...lab.errors import InputError
from ...lab.evidence import Evidence, bootstrap
from ...lab.models.hooked_model import HookedModel
from ...lab.models.sites import Site
from ...lab.rng import generator
from ...lab.runs.prompts import Prompt, PromptBatch
from ...lab.sequences import flags_of, texts_of
from ...lab.text.tokenization import TextTokenizer
from ...saes.edit import Edit, Hook
from .bags import COMPLETE
from .prompting import verdict_prompts, verdicts
from .statements import FALSE, TRUE

UNRELATED = (
    "Please close the window before you leave.", "What time does the library open?", "Let us walk along the river.",
    "Could you pass me the salt?", "Bring a coat and a warm hat.", "Why is the door painted green?",
    "Turn left after the second bridge.", "How many eggs do we need?", "Write your name at the top of the page.",
    "Do not run near the swimming pool.", "Which of these shirts do you like?", "Add the flour and stir slowly.",
    "Call me when the train arrives.", "Where did you put my keys?", "Wait here until the rain stops.",
    "May I borrow your pencil?", "Read the first chapter tonight.", "Who left the lights on?",
    "Keep the receipt in a safe place.", "Shall we meet at noon?", "Wash your hands before dinner.",
    "Would you like some more tea?", "Switch the engine off now.", "When will the concert begin?",
)  # fmt: skip
"""Questions and requests: texts without a truth value."""
RANDOM = 5
"""Random directions that the null averages."""


@dataclass(frozen=True)
class Move:
    """A translation of the last tokens of a text."""

    site: Site
    direction: Float32[Tensor, " d"]
    """Unit vector in activation space, towards true."""
    size: float
    """Distance from false to true statements, in activation units."""

    @classmethod
    def between(
        cls,
        site: Site,
        weight: Float[Tensor, " d"],
        true: Float[Tensor, "m d"],
        false: Float[Tensor, "n d"],
        strength: float = 1.0,
    ) -> Move:
        """Along `weight`, `strength` times as far as the means of true and of false tokens lie apart.

        The distance is the whole one, not its part along the weight: directions are compared at equal length.

        Raises:
            InputError: the weight is zero.
        """
        if not bool(weight.any()):
            raise InputError(f"the direction at {site} is zero: all its columns are constant")
        unit = F.normalize(weight.float(), dim=0)
        return cls(site, unit, strength * float((true.mean(0) - false.mean(0)).norm()))

    def along(self, direction: Float[Tensor, " d"]) -> Move:
        """Move of equal distance in another direction."""
        return Move(self.site, F.normalize(direction, dim=0), self.size)


def moved_verdicts(
    model: HookedModel, prompts: Sequence[Prompt], move: Move, sign: float = 1.0, batch: int = 16
) -> Float32[Tensor, "prompts classes"]:
    """Logits of the answers with the last tokens of each statement moved, forwards or backwards.

    Prompts are marked at the last token of the statement.
    """
    shift = sign * move.size * move.direction

    def edits(part: PromptBatch) -> dict[Site, Hook]:
        places, ends = torch.arange(part.tokens.shape[1]), part.marked.int().argmax(1, keepdim=True)
        return Edit.adding(move.site, shift).at((places <= ends) & (places > ends - COMPLETE))

    return verdicts(model, prompts, edits=edits, batch=batch)


def causal_effects(
    model: HookedModel,
    texts: Sequence[str],
    true: Bool[np.ndarray, " texts"],
    entities: Sequence[str],
    move: Move,
    *,
    others: dict[str, Move] | None = None,
    seed: int = 0,
    held_out: str = "",
) -> dict[str, Evidence]:
    """The four measures of this module, each beside moves of the same length along random directions.

    False statements are moved towards true and true ones towards false; an effect counts as positive when the odds
    follow.

    Args:
        texts: true and false statements that the direction was not fitted on.
        others: further directions to stand beside as nulls, by name.

    Raises:
        InputError: there are no true or no false statements, or a site that the model has not.
    """
    texts, entities = texts_of(texts, "statements"), texts_of(entities, "entities")
    true = flags_of(true, "truth values").numpy()
    if not 0 < true.sum() < len(true):
        raise InputError("manipulation needs true and false statements: give some of both")
    tokenizer, target = TextTokenizer(model.tokenizer), np.where(true, -1.0, 1.0)
    related, unrelated = verdict_prompts(tokenizer, texts), verdict_prompts(tokenizer, UNRELATED)
    clean, still = verdicts(model, related), verdicts(model, unrelated)
    rng = generator(seed, "random moves")
    random = [move.along(torch.randn(len(move.direction), generator=rng)) for _ in range(RANDOM)]
    unit = np.unique(entities, return_inverse=True)[1].reshape(-1)
    gap = float(_odds(clean)[true].mean() - _odds(clean)[~true].mean())

    def effect(one: Move) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Change of the odds in the direction moved [texts]; size of the change [unrelated]; changed answers."""
        change = np.empty(len(texts))
        for sign in (1.0, -1.0):
            mine = np.flatnonzero(target == sign)
            change[mine] = sign * (
                _odds(moved_verdicts(model, [related[i] for i in mine], one, sign)) - _odds(clean)[mine]
            )
        spilled = moved_verdicts(model, unrelated, one)
        flips = (spilled.argmax(1) != still.argmax(1)).numpy()
        return change, np.abs(_odds(spilled) - _odds(still)), flips

    found = effect(move)
    beside = {"random_direction": [effect(one) for one in random]}
    beside |= {name: [effect(one)] for name, one in (others or {}).items()}
    measures: dict[str, tuple[Callable[..., float], str]] = {
        "indirect_effect": (lambda change, *_: change, "higher"),
        "normalised_indirect_effect": (lambda change, *_: change / gap, "higher"),
        "localised_effect_ratio": (
            lambda change, spill, _: max(change, 0.0) / (max(change, 0.0) + spill) if spill or change > 0 else 0.0,
            "higher",
        ),
        "decoherence": (lambda _, __, flips: flips, "lower"),
    }
    note = f"odds of true and false statements are {gap:.3g} nats apart with nothing moved"
    evidence = {}
    for name, (measure, better) in measures.items():
        own_unit = np.arange(len(UNRELATED)) if name == "decoherence" else unit

        def statistic(weights: np.ndarray, measure: Callable[..., float] = measure, name: str = name) -> float:
            if name == "decoherence":
                return measure(0.0, 0.0, float(weights @ found[2] / weights.sum()))
            rows = weights[unit]
            return measure(float(rows @ found[0] / rows.sum()), float(found[1].mean()), float(found[2].mean()))

        units = int(own_unit.max()) + 1
        nulls = {
            null: float(np.mean([measure(*(float(part.mean()) for part in one)) for one in several]))
            for null, several in beside.items()
        }
        evidence[name] = Evidence(
            name, statistic(np.ones(units)), bootstrap(statistic, units, seed=seed), nulls, units,
            "texts without truth value" if name == "decoherence" else "entities", held_out, better, note,
        )  # fmt: skip
    return evidence


def _odds(logits: Float[Tensor, "prompts classes"]) -> np.ndarray:
    """Log odds of true against false."""
    return (logits[:, TRUE] - logits[:, FALSE]).numpy().astype(np.float64)

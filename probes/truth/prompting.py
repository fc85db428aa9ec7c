"""Asking the model itself whether a statement is true, false or neither, with no probe: the zero-shot baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from ...lab.errors import InputError
from ...lab.models.hooked_model import HookedModel
from ...lab.models.hooks import Hook
from ...lab.models.sites import Site
from ...lab.runs.prompts import Prompt, PromptBatch, mark, read_prompts
from ...lab.sequences import texts_of
from ...lab.text.tokenization import TextTokenizer
from .scores import Reading
from .statements import CLASSES, Statements
from .three_way import Multinomial

QUESTION = "Statement: {}\nIs the statement true, false, or neither? Answer:"
ANSWERS = tuple(f" {name}" for name in CLASSES)


def verdict_prompts(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[Prompt]:
    """The question about every statement, marked at the statement's last token."""
    before, after = QUESTION.split("{}")
    return mark(tokenizer, [(before + text, after) for text in texts_of(texts, "statements")])


def answer_ids(tokenizer: TextTokenizer) -> list[int]:
    """The first token of every answer.

    Raises:
        InputError: two answers begin with the same token, so that the model's next token cannot tell them apart.
    """
    ids = [int(row[0]) for row in tokenizer.encode(ANSWERS)]
    if len(set(ids)) < len(ids):
        raise InputError(
            f"{tokenizer.label} begins two of the answers {', '.join(CLASSES)} with the same token, so the model "
            "cannot be asked: leave questions to the model out (--no-prompting --causal.statements 0)"
        )
    return ids


@torch.no_grad()
def verdicts(
    model: HookedModel,
    prompts: Sequence[Prompt],
    *,
    edits: Callable[[PromptBatch], Mapping[Site, Hook]] | None = None,
    batch: int = 16,
    progress: bool = False,
) -> Float32[Tensor, "prompts classes"]:
    """Logits of the three answers after every prompt, on the CPU.

    Args:
        edits: what to change at which sites, given a batch whose marks are the last tokens of its statements.
    """
    ids = torch.tensor(answer_ids(TextTokenizer(model.tokenizer)))
    found = torch.zeros(len(prompts), len(CLASSES))
    last = model.site(f"resid_post.{model.n_layers - 1}")
    for part in read_prompts(model, [last], prompts, batch=batch, edits=edits, description="ask", progress=progress):
        # the head is applied where the answer begins alone: at every token it costs more than the model
        logits = model.unembed(part.at_last(last))
        found[part.chosen] = logits[:, ids.to(logits.device)].float().cpu()
    return found


def zero_shot(logits: Float[Tensor, "statements classes"], statements: Statements, alpha: float) -> dict[str, Reading]:
    """Answers of the model about the test statements: as it is, and with a multinomial on its three logits.

    The second, `prompting_fitted`, is fitted on the training split as the probes are: a model may know an answer that
    it has a habit of not giving.

    Args:
        logits: of the three answers, for every statement.
    """

    def told(split: str) -> Float[np.ndarray, "statements classes"]:
        return logits[torch.from_numpy(statements.rows(split))].numpy().astype(np.float64)

    labels: Int[np.ndarray, " points"] = statements.labels[statements.rows("calibration")]
    fitted = Multinomial.fit(told("train"), statements.labels[statements.rows("train")])

    def plain(values: np.ndarray) -> np.ndarray:
        return torch.from_numpy(values).softmax(1).numpy()

    return {
        name: Reading.of(read(told("calibration")), labels, read(told("test")), alpha)
        for name, read in (("prompting", plain), ("prompting_fitted", fitted.probabilities))
    }

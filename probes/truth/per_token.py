"""Scores of the single tokens of statements: where in a statement a read-out finds its class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from ...lab.text.tokenization import TextTokenizer
from .bags import StatementBags
from .statements import CLASSES, Statements
from .three_way import ThreeWay


def token_scores(
    three_way: ThreeWay,
    bags: StatementBags,
    statements: Statements,
    ids: list[list[int]],
    rows: Int[np.ndarray, " some"],
    tokenizer: TextTokenizer,
) -> list[dict[str, Any]]:
    """Some statements with, for every token, its text and its score for each class in spreads of the training scores.

    Args:
        bags: of all statements.
        ids: token ids of all statements.
        rows: which statements.
    """
    chosen = bags.take(torch.from_numpy(rows))
    scaled = (three_way.fitted.linear.scores(chosen.x).double().numpy() - three_way.multinomial.mean) / (
        three_way.multinomial.spread
    )
    ends = chosen.lengths.cumsum(0).tolist()
    probabilities = three_way.probabilities(chosen)
    return [
        {
            "text": statements.texts[row],
            "right": CLASSES[statements.labels[row]],
            "told": CLASSES[int(probabilities[i].argmax())],
            "probabilities": probabilities[i].round(4).tolist(),
            "tokens": tokenizer.strings(ids[row]),
            "scores": scaled[ends[i] - len(ids[row]) : ends[i]].round(3).tolist(),
        }
        for i, row in enumerate(rows.tolist())
    ]


def worst_errors(
    three_way: ThreeWay, bags: StatementBags, statements: Statements, most: int = 24
) -> Int[np.ndarray, " some"]:
    """Test statements whose right class gets the lowest probability, worst first."""
    rows = statements.rows("test")
    probabilities = three_way.probabilities(bags.take(torch.from_numpy(rows)))
    right = probabilities[np.arange(len(rows)), statements.labels[rows]]
    wrong = probabilities.argmax(1) != statements.labels[rows]
    order = np.argsort(right, kind="stable")
    return rows[order[wrong[order]][:most]]

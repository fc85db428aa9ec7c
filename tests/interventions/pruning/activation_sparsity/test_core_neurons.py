"""Core neurons of hand-made activations, and of two planted topics."""

from __future__ import annotations

import pytest
import torch
from monosem.interventions.pruning.activation_sparsity.core_neurons import (
    core_neurons,
    growing_cores,
    jaccard,
    recall,
    sentence_core,
    token_cores,
)
from monosem.interventions.pruning.activation_sparsity.sameness import core_similarity
from monosem.lab.errors import InputError
from torch import Tensor

torch.set_num_threads(1)


def test_the_core_of_three_tokens() -> None:
    """Five positive entries a token, of which 0.4 makes two; 0.2 of ten neurons makes two."""
    acts = torch.tensor(
        [
            [9, 8, 1, 2, 3, -1, -9, -9, -9, -9],
            [9, 8, 1, 2, 3, -1, -9, -9, -9, -9],
            [9, 1, 8, 2, 3, -1, -9, -9, -9, -9],
        ]
    ).float()
    core = core_neurons(acts, 0.4, 0.2)
    assert core.neurons.tolist() == [0, 1] and core.counts.tolist() == [3, 2, 1, 0, 0, 0, 0, 0, 0, 0]
    assert core.mask.nonzero()[:, 0].tolist() == [0, 1]


def test_what_is_never_active_is_in_no_core() -> None:
    acts = torch.tensor([[-1.0, -2, -3, -4], [5, -1, 4, -1]])
    cores = token_cores(acts, 0.5)
    assert cores.tolist() == [[False] * 4, [True, False, False, False]]
    assert sentence_core(cores, 0.5).neurons.tolist() == [0]
    assert sentence_core(cores[:1], 0.5).neurons.tolist() == []
    assert recall(sentence_core(cores, 0.5).mask, cores).isnan().tolist() == [True, False]
    assert jaccard(torch.zeros(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)) == 1


def test_signs_mean_nothing_to_a_gated_mlp() -> None:
    acts = torch.tensor([[-5.0, 4, 1, -3]])
    assert token_cores(acts, 0.5, "positive").tolist() == [[False, True, False, False]]
    assert token_cores(acts, 0.5, "abs").tolist() == [[True, True, False, False]]
    norms = torch.tensor([0.1, 1, 1, 2])
    assert token_cores(acts, 0.5, "abs_norm", norms).tolist() == [[False, True, False, True]]
    with pytest.raises(InputError, match="give norms"):
        token_cores(acts, 0.5, "abs_norm")
    with pytest.raises(InputError, match="did you mean 'abs'"):
        token_cores(acts, 0.5, "ab")
    with pytest.raises(InputError, match="token_share must be above 0"):
        token_cores(acts, 0)


def topic(neurons: slice, tokens: int = 40, seed: int = 0) -> Tensor:
    """Ten neurons that are always positive; the rest negative."""
    acts = -torch.rand(tokens, 100, generator=torch.Generator().manual_seed(seed)) - 0.1
    acts[:, neurons] = 1 + torch.rand(tokens, 10, generator=torch.Generator().manual_seed(seed + 1))
    return acts


def test_planted_topics_have_cores_of_their_own() -> None:
    first, again, other = topic(slice(0, 10)), topic(slice(0, 10), seed=5), topic(slice(50, 60))
    cores = [core_neurons(acts, 1.0, 0.1).mask for acts in (first, again, other)]
    assert jaccard(cores[0], cores[1]) == 1 and jaccard(cores[0], cores[2]) == 0
    assert recall(cores[0], token_cores(again, 1.0)).tolist() == [1.0] * 40
    assert recall(cores[0], token_cores(other, 1.0)).tolist() == [0.0] * 40
    change = token_cores(torch.cat([first, other, other]), 1.0)
    grown = growing_cores(change, 0.1, torch.tensor([20, 40, 120]))
    assert jaccard(grown[0], grown[1]) == 1 and jaccard(grown[1], grown[2]) == 0


def test_passages_that_mean_alike_are_told_from_those_that_share_words() -> None:
    """Two meanings of six passages each; words are drawn without regard to them."""
    rng = torch.Generator().manual_seed(0)
    cores = torch.stack([core_neurons(topic(slice(0, 10) if i < 6 else slice(50, 60), seed=i), 0.7, 0.08).mask
                         for i in range(12)])  # fmt: skip
    meaning = torch.zeros(12, 2)
    meaning[:6, 0] = meaning[6:, 1] = 1
    embeddings = torch.nn.functional.normalize(meaning + 0.1 * torch.randn(12, 2, generator=rng), dim=1)
    tokens = torch.randint(0, 30, (12, 20), generator=rng)
    found = core_similarity(cores, embeddings, tokens)
    assert found is not None and found.value > 0.7 and found.beats_nulls() and found.n == 12
    assert found.interval is not None and found.interval[0] > found.nulls["shuffled"]
    assert abs(found.nulls["shared_tokens"]) < 0.5 and core_similarity(cores[:3], embeddings[:3], tokens[:3]) is None

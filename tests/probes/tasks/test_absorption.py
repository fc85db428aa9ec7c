"""Absorption: planted absorption, splitting and clean dictionaries, the task in a tokenizer, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monosem.lab.errors import InputError
from monosem.lab.models.hooked_model import HookedModel
from monosem.lab.models.loading import load_model
from monosem.probes.fitting.linear import LinearFit
from monosem.probes.tasks.absorption import (
    AbsorptionConfig,
    LetterTask,
    absorption,
    letter_task,
    measure_absorption,
    shuffled,
)
from monosem.probes.tasks.first_letters import letter_prompts, vocabulary_words
from monosem.saes.architectures.basis import Neurons
from monosem.saes.architectures.relu import ReLU, ReLUConfig
from monosem.saes.architectures.sae import SAEConfig
from monosem.saes.architectures.topk import TopK
from monosem.saes.dictionary import Provenance
from tiny_commands import WORDS, write_model
from torch import Tensor

torch.set_num_threads(1)
LETTERS, WORDS_EACH, WIDTH = 3, 100, 24
CHILDREN, SHARE = range(10, 18), 3
"""Directions that `SHARE` words of every letter have, each; too few for one of them to count as a split."""
CONFIG = AbsorptionConfig(
    least_letters=LETTERS,
    probe=LinearFit(1e-2, 1e-4, 3e-2, 64, 120),
    ranking=LinearFit(1e-2, 1e-5, 1e-2, 4096, 150, False),
)


def planted() -> tuple[Tensor, Tensor]:
    """Rows of one letter direction each, children on some words of every letter, and noise; and the letters."""
    rng = torch.Generator().manual_seed(0)
    letters = torch.arange(LETTERS).repeat_interleave(WORDS_EACH)
    x = torch.zeros(len(letters), WIDTH)
    x[torch.arange(len(x)), letters] = 2.0
    x[:, 18:] = (torch.rand(len(x), 6, generator=rng) < 0.3).float()
    number = torch.arange(len(x)) % WORDS_EACH
    for i, child in enumerate(CHILDREN):
        x[number // SHARE == i, child] = 2.0
    return x, letters


def has_child(x: Tensor) -> np.ndarray:
    return (x[:, CHILDREN.start : CHILDREN.stop] > 0).any(1).numpy()


def dictionary(rows: Tensor, encoder: Tensor, bias: Tensor | None = None) -> ReLU:
    """Latents relu(x @ encoder.T + bias) that write unit rows."""
    found = ReLU(ReLUConfig(rows.shape[1], len(rows), k=4))
    found.W_dec.copy_(F.normalize(rows, dim=1))
    found.W_enc.copy_(encoder)
    if bias is not None:
        found.b_enc.copy_(bias)
    return found


def clean() -> ReLU:
    """One latent a direction."""
    return dictionary(torch.eye(WIDTH), torch.eye(WIDTH))


def absorbing(share: float = 1.0) -> ReLU:
    """Every child with letter 0 has a latent that writes a share of the letter; the letter's own writes the rest."""
    rows, encoder, bias = torch.eye(WIDTH), torch.eye(WIDTH), torch.zeros(WIDTH)
    for child in CHILDREN:
        norm = (1 + share**2) ** 0.5
        rows[child, 0] = share
        encoder[0, child] = -share
        encoder[child, 0] = encoder[child, child] = norm
        bias[child] = -2 * norm
    return dictionary(rows, encoder, bias)


@pytest.fixture(scope="module")
def task() -> LetterTask:
    return letter_task(*planted(), CONFIG)


def test_an_absorbing_dictionary_absorbs_the_share_of_the_children(task: LetterTask) -> None:
    found = absorption(task, absorbing(), CONFIG)
    own = found.letter == 0
    child = has_child(task.test[task.test_letters == 0])
    assert task.letters == [0, 1, 2] and found.main == [[0], [1], [2]]
    assert own.sum() == len(child) == 30 and 0 < child.mean() < 1
    np.testing.assert_allclose(found.fraction[own], child, atol=1e-6)
    np.testing.assert_array_equal(found.full[own], child)
    assert found.full[~own].max() == found.fraction[~own].max() == 0
    assert found.scores["fraction"] == pytest.approx(child.sum() / len(own))


def test_probes_and_main_latents_come_from_training_words(task: LetterTask) -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(LETTERS * WORDS_EACH, 400, generator=rng)  # wide enough to learn any words by heart
    with pytest.raises(InputError, match="only 0 of 3 letters have a probe"):
        letter_task(noise, planted()[1], CONFIG)
    dealt = replace(task, test_letters=(task.test_letters + 1) % LETTERS)  # the test words say another letter
    assert absorption(dealt, clean(), CONFIG).main == [[0], [1], [2]]


def test_a_clean_dictionary_absorbs_nothing_and_splits_nothing(task: LetterTask) -> None:
    found = absorption(task, clean(), CONFIG)
    assert found.main == [[0], [1], [2]]
    assert found.scores == {"full": 0, "fraction": 0, "split": 1}


def test_partial_absorption_is_a_fraction(task: LetterTask) -> None:
    """The letter's latent keeps a quarter on the children, whose latents write the other three: 3/4, and not full."""
    found = absorption(task, absorbing(0.75), CONFIG)
    own = found.letter == 0
    child = has_child(task.test[task.test_letters == 0])
    assert found.full.max() == 0
    np.testing.assert_allclose(found.fraction[own][child], 0.75, atol=0.05)
    np.testing.assert_allclose(found.fraction[own][~child], 0, atol=1e-6)


def test_one_feature_in_two_latents_is_a_split_of_two() -> None:
    """Two latents write letter 1, one where a context direction is there and one where it is not."""
    x, letters = planted()
    context = torch.arange(len(x)) % 2 == 0
    x[:, 5] = context * 2.0
    rows, encoder, bias = torch.eye(WIDTH), torch.eye(WIDTH), torch.zeros(WIDTH)
    rows[6] = rows[1]
    encoder[1, 5] = -1.0
    encoder[6] = encoder[1].abs()
    bias[6] = -2.0
    found = absorption(letter_task(x, letters, CONFIG), dictionary(rows, encoder, bias), CONFIG)
    assert sorted(found.main[1]) == [1, 6] and [len(latents) for latents in found.main] == [1, 2, 1]
    assert found.scores["split"] == pytest.approx(4 / 3) and found.full.max() == 0


def test_shuffled_letters_leave_no_direction(task: LetterTask) -> None:
    mixed = shuffled(task, CONFIG)
    assert sorted(mixed.test_letters.tolist()) == sorted(task.test_letters.tolist())
    directions = F.normalize(task.probes.weight, dim=1) @ F.normalize(mixed.probes.weight, dim=1).T
    assert float(directions.diagonal().abs().max()) < 0.5
    assert 0 <= len(absorption(mixed, clean(), CONFIG).letter) < len(task.test)


def test_scores_do_not_change_with_the_scale_and_the_bias(task: LetterTask) -> None:
    x, letters = planted()
    shift = torch.arange(WIDTH) % 5 * 0.5 - 1  # exact in fp32, so that silent latents stay silent
    moved = absorbing()
    moved.b_dec.copy_(8 * shift)
    moved.b_enc *= 8
    again, before = (absorption(task, one, CONFIG) for task, one in
                     ((letter_task(8 * (x + shift), letters, CONFIG), moved), (task, absorbing())))  # fmt: skip
    assert again.main == before.main and again.scores == pytest.approx(before.scores, abs=1e-4)


def test_letters_that_cannot_be_told_are_refused() -> None:
    rng = torch.Generator().manual_seed(0)
    _, letters = planted()
    with pytest.raises(InputError, match=r"only \d of 3 letters have a probe with F1 of at least 0.6"):
        letter_task(torch.randn(len(letters), WIDTH, generator=rng), letters, CONFIG)
    with pytest.raises(InputError, match="3 letters have 20 words, and absorption needs 20"):
        letter_task(planted()[0], letters)
    with pytest.raises(InputError, match="300 rows and 2 letters"):
        letter_task(planted()[0], [0, 1])
    with pytest.raises(InputError, match="test_share is a share"):
        AbsorptionConfig(test_share=1.0)
    with pytest.raises(InputError, match="least_words at least 8"):
        AbsorptionConfig(least_words=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> HookedModel:
    folder = tmp_path_factory.mktemp("letters")
    return load_model(str(write_model(folder / "model")), dtype="fp32", device="cpu")


def test_words_are_whole_tokens_and_prompts_end_at_them(model: HookedModel) -> None:
    words = vocabulary_words(model.tokenizer, 2)
    assert set(words) <= set(WORDS) and len({word[0] for word in words}) > 10
    assert all(len(word) >= 3 and words.index(word) == i for i, word in enumerate(words))
    prompts = letter_prompts(model.tokenizer, words, shots=2)
    ids = model.tokenizer(words, add_special_tokens=False)["input_ids"]
    for prompt, own in zip(prompts, ids, strict=True):
        assert prompt.place == len(prompt.ids) - 1 and [prompt.ids[-1]] == own
        assert prompt.ids[0] == model.tokenizer.bos_token_id and own[0] not in prompt.ids[:-1]
    assert letter_prompts(model.tokenizer, words, shots=2) == prompts


def test_a_small_vocabulary_and_a_transcoder_are_refused(model: HookedModel) -> None:
    site = "resid_post.0"
    found = Neurons(SAEConfig(32, 32, 8))
    found.W_dec.copy_(torch.eye(32))
    found.place, found.provenance = site, Provenance(model.fingerprint())
    with pytest.raises(InputError, match="letters have 20 words"):
        measure_absorption(model, found)
    found = TopK(SAEConfig(32, 32, 8, d_out=16))
    with pytest.raises(InputError, match="which a transcoder"):
        measure_absorption(model, found)

"""Matching pursuit: stops and sums against a plain loop, tied weights, resuming; training: test_architectures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monosem.lab.errors import InputError
from monosem.lab.models.sites import Site
from monosem.lab.storage import load_state, save_state
from monosem.lab.streams.activation_stream import Batch
from monosem.saes import TrainConfig, Trainer, build, build_trainable, load
from torch.nn.functional import normalize

torch.set_num_threads(1)

SITE = Site.parse("resid_post.3")
D, N, K = 8, 20, 6


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def made(k=K, norms=1.0, seed=0, **config):
    dictionary = build("mp", d_in=D, n_latents=N, k=k, **config)
    dictionary.W_dec.copy_(normalize(random(N, D, seed=seed), dim=1) * norms)
    dictionary.b_dec.copy_(random(D, seed=seed))
    dictionary.tie()
    return dictionary


def plain(dictionary, row):
    """The codes of one row by a loop in fp64."""
    config, W_dec = dictionary.config, dictionary.W_dec.double()
    left = row.double() - dictionary.b_dec.double()
    start, codes = left.square().sum(), torch.zeros(N, dtype=torch.float64)
    for _ in range(config.k):
        scores = W_dec @ left
        best = int(scores.argmax())
        if scores[best] <= 0 or (config.tolerance and left.square().sum() <= config.tolerance * start):
            break
        again = codes[best] != 0
        codes[best] += scores[best]
        left = left - scores[best] * W_dec[best]
        if (config.once and again) or left.norm() < config.residual_threshold:
            break
    return codes


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999),
    stop=st.sampled_from([{}, {"once": True}, {"tolerance": 0.3}, {"residual_threshold": 1.5}]),
    stretch=st.booleans(),
)
def test_codes_are_those_of_the_plain_loop(seed, stop, stretch):
    norms = 1.0 + 0.3 * random(N, 1, seed=seed).tanh() if stretch and "tolerance" not in stop else 1.0
    dictionary, x = made(norms=norms, seed=seed, **stop), 2 * random(12, D, seed=seed + 1)
    code = dictionary.encode(x)
    expected = torch.stack([plain(dictionary, row) for row in x])
    same = torch.isclose(code.to_dense().double(), expected, atol=1e-4).all(1)
    assert same.float().mean() > 0.9  # a near tie may fall either way
    assert (code.indices.view(12, K).diff(dim=1) >= 0).all() and (code.values >= 0).all()


def test_stops_cut_codes_short():
    x = 2 * random(200, D, seed=5)
    full = made(k=16).encode(x)
    for stop in ({"once": True}, {"tolerance": 0.1}, {"residual_threshold": 1.0}):
        assert made(k=16, **stop).encode(x).l0.sum() < full.l0.sum()


def test_a_latent_chosen_twice_has_one_code_that_is_the_sum():
    dictionary, x = made(k=16), random(100, D, seed=2)
    steps = dictionary.steps(dictionary.centred(x))
    chosen = [row[value > 0].tolist() for row, value in zip(steps.columns, steps.values, strict=True)]
    assert any(len(set(row)) < len(row) for row in chosen)
    code = dictionary.encode(x)
    assert code.l0.tolist() == [len(set(row)) for row in chosen]
    dense = torch.zeros(100, N).scatter_add_(1, steps.columns.long(), steps.values)
    torch.testing.assert_close(code.to_dense(), dense)


def test_only_the_decoder_is_saved_and_the_encoder_follows_it(tmp_path):
    dictionary = made(tolerance=0.1)
    assert set(dictionary.tensors()) == {"W_dec", "b_dec"}
    again = load(dictionary.save(tmp_path))
    assert torch.equal(again.W_enc, dictionary.W_dec) and again.config == dictionary.config
    x = random(9, D)
    assert torch.equal(again(x), dictionary(x))


def trainer(rows=500):
    return Trainer(build_trainable("mp", d_in=D, n_latents=N, k=3), SITE, TrainConfig(rows=rows, lr=1e-2, aid_after=30))


def feed(trainer, x):
    for part in x.split(10):
        trainer.step(Batch({SITE: part}, torch.zeros(len(part), 2, dtype=torch.int64)))
    return trainer


def test_a_resumed_run_ends_in_the_same_bytes_with_unit_rows(tmp_path):
    x = random(500, 3) @ random(3, D) + 0.1 * random(500, D) + 1
    whole, first = feed(trainer(), x), feed(trainer(), x[:330])
    assert len(first.dead.idle)  # the aid is at work, too
    save_state(tmp_path, first.state_dict())
    second = trainer()
    second.load_state_dict(load_state(tmp_path))
    feed(second, x[330:])
    for name, tensor in whole.folded().tensors().items():
        assert torch.equal(tensor, second.folded().tensors()[name])
    folded = whole.folded()
    torch.testing.assert_close(folded.W_dec.norm(dim=1), torch.ones(N))
    assert torch.equal(folded.W_enc, folded.W_dec) and torch.equal(whole.dictionary.W_enc, whole.dictionary.W_dec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 2.0}, "tolerance is a share"),
        ({"residual_threshold": -1.0}, "residual_threshold must be at least 0"),
        ({"d_out": 4}, "matching pursuit explains what it reads"),
        ({"k": 0}, "k must be from 1"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises(InputError, match=message):
        build_trainable("mp", **{"d_in": D, "n_latents": N, "k": K, **options})


def test_a_threshold_in_activation_units_is_not_trained_with():
    with pytest.raises(InputError, match="residual_threshold is for dictionaries of other libraries"):
        Trainer(build_trainable("mp", d_in=D, n_latents=N, k=3, residual_threshold=0.1), SITE)

"""sAwMIL on bags with a planted token, and its limits that are known otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monosem.lab.errors import InputError
from monosem.probes.truth.bags import StatementBags
from monosem.probes.truth.hinge import fit_hinge
from monosem.probes.truth.sawmil import SawmilConfig, bag_margin, mean_difference, relabel, sawmil, sparse_mil
from planted_bags import one_shifted
from sklearn.metrics import roc_auc_score
from sklearn.svm import LinearSVC

C = torch.tensor([10.0])


@pytest.mark.parametrize(
    ("shift", "tokens", "least"), [(6, 20, (0.99, 0.88, 0.97)), (6, 5, (0.99, 0.88, 0.97)), (4, 20, (0.9, 0.85, 0.8))]
)
def test_the_planted_token_is_found(shift, tokens, least):
    config = SawmilConfig(eta=1 / tokens, masked=False)
    found = []
    for seed in range(5):
        bags, positive, planted, along = one_shifted(shift, tokens, seed)
        fresh, right, _, _ = one_shifted(shift, tokens, 1000 + seed)
        chosen = relabel(bags, sparse_mil(bags, positive, C, config).scores(bags.x), positive, config)[:, 0]
        linear = sawmil(bags, positive, C, config)
        mean = sparse_mil(bags.pooled("mean"), positive, C, config)
        found.append((
            roc_auc_score(right, fresh.most(linear.scores(fresh.x))),
            float(torch.cosine_similarity(linear.weight[0], along, dim=0)),
            float((chosen & planted).sum() / planted.sum()),
            roc_auc_score(right, mean.scores(fresh.means())),
        ))  # fmt: skip
    auc, cosine, hit, of_means = np.mean(found, 0)
    assert auc > least[0] and cosine > least[1] and hit > least[2]
    assert of_means < auc - 0.02, "an SVM on means of tokens finds less"
    assert tokens == 5 or of_means < 0.9


def test_bags_of_one_token_make_it_a_weighted_svm():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=rng, dtype=torch.float64)
    positive = (x[:, 0] + 0.5 * torch.randn(300, generator=rng, dtype=torch.float64) > 0.6)[:, None]
    bags = StatementBags(x, torch.ones(300, dtype=torch.long))
    tight = SawmilConfig(tolerance=1e-10, steps=2000)
    own = sparse_mil(bags, positive, C.double(), tight)
    weight = torch.where(positive, 10 / positive.sum(), 10 / (~positive).sum())
    sign = torch.where(positive, 1.0, -1.0)
    same = fit_hinge(x, sign, torch.ones(300), weight, tolerance=1e-10, steps=2000)
    svm = LinearSVC(C=1.0, dual=False, tol=1e-12, intercept_scaling=1e4, max_iter=10_000)
    svm.fit(x.numpy(), positive[:, 0].numpy(), sample_weight=weight[:, 0].numpy())
    assert (own.weight - same.weight).abs().max() < 1e-7
    assert np.abs(own.weight.numpy() - svm.coef_).max() < 4e-7
    assert abs(float(own.bias) - svm.intercept_[0]) < 4e-6


def test_what_the_mean_of_a_positive_bag_must_score():
    assert bag_margin(torch.tensor([1.0, 2.0, 4.0])).tolist() == [1.0, 0.0, -0.5]


def test_problems_solved_together_are_those_solved_alone():
    bags, positive, _, _ = one_shifted(3, 6, 0)
    strengths = torch.tensor([0.05, 1.0, 10.0])
    both = torch.cat([positive, ~positive, positive], 1)
    tight = SawmilConfig(tolerance=1e-5, steps=1000)
    together = sparse_mil(bags, both, strengths, tight)
    for column in range(3):
        alone = sparse_mil(bags, both[:, [column]], strengths[[column]], tight)
        torch.testing.assert_close(together.weight[column], alone.weight[0], rtol=2e-3, atol=2e-3)


def test_only_tokens_of_positive_bags_that_complete_the_claim_are_relabelled():
    bags, positive, _, _ = one_shifted(0, 8, 3)
    scores = torch.randn(len(bags.x), 1, generator=torch.Generator().manual_seed(0))
    chosen = relabel(bags, scores, positive, SawmilConfig(eta=0.5))[:, 0]
    assert not chosen[~positive[bags.owner, 0]].any()
    assert not chosen[~bags.mask].any() and chosen.any()
    scores[bags.mask] -= 100  # what scores best never completes the claim: the mask would leave nothing
    chosen = relabel(bags, scores, positive, SawmilConfig(eta=0.5))[:, 0]
    assert float(chosen[positive[bags.owner, 0]].float().mean()) == pytest.approx(0.5, abs=0.01)
    assert not chosen[bags.mask].any()


def test_the_mean_difference_points_from_one_mean_to_the_other():
    bags, positive, _, _ = one_shifted(5, 1, 0)
    linear = mean_difference(bags, positive, C)
    up, down = (bags.x[side].mean(0) for side in (positive[:, 0], ~positive[:, 0]))
    torch.testing.assert_close(linear.weight[0], up - down)
    assert float(linear.scores(((up + down) / 2)[None])) == pytest.approx(0, abs=1e-4)


def test_bad_bags_and_labels_are_refused():
    x = torch.randn(6, 3)
    with pytest.raises(InputError, match="bag 1 has no tokens"):
        StatementBags(x, torch.tensor([3, 0, 3]))
    with pytest.raises(InputError, match="hold 7 tokens and there are 6 rows"):
        StatementBags(x, torch.tensor([3, 4]))
    with pytest.raises(InputError, match="1 of 6 token activations are nan"):
        StatementBags(torch.where(torch.arange(6)[:, None] == 2, torch.nan, x), torch.tensor([3, 3]))
    bags = StatementBags(x, torch.tensor([3, 3]))
    with pytest.raises(InputError, match="one side"):
        sawmil(bags, torch.ones(2, 1, dtype=torch.bool), C)
    with pytest.raises(InputError, match="3 labels and 2 bags"):
        sawmil(bags, torch.ones(3, 1, dtype=torch.bool), C)
    with pytest.raises(InputError, match="eta is a share"):
        SawmilConfig(eta=1.5)


def test_bags_are_taken_shortened_and_pooled():
    lengths = torch.tensor([1, 7, 4])
    bags = StatementBags(torch.arange(12.0)[:, None], lengths)
    assert bags.take(torch.tensor([2, 0])).x[:, 0].tolist() == [8, 9, 10, 11, 0]
    assert bags.mask.tolist() == [True] + [False] * 5 + [True] * 2 + [False] * 2 + [True] * 2
    assert bags.last()[:, 0].tolist() == [0, 7, 11] and bags.means()[:, 0].tolist() == [0, 4, 9.5]
    assert bags.most(-bags.x)[:, 0].tolist() == [0, -1, -8]
    short = bags.shortened(3, torch.Generator().manual_seed(0))
    assert short.lengths.tolist() == [1, 3, 3]
    kept = short.x[:, 0].tolist()
    assert kept == sorted(kept) and {0, 6, 7, 10, 11} <= set(kept)

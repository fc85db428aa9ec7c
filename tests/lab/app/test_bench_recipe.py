"""The recipe's ablation: every change reaches the trainer, on the same rows, and is compared with the defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monosem.lab.app.bench import recipe
from monosem.lab.app.bench.contestant import Asked, Ours
from monosem.lab.app.bench.shapes import Planted, Shape
from monosem.lab.errors import InputError
from monosem.saes.training.config import TrainConfig, default_lr
from tiny_commands import Ended

Command = Callable[..., Ended]


def test_every_change_of_the_list_is_one_that_training_takes() -> None:
    for change in recipe.CHANGES:
        config = TrainConfig(**recipe.changed(change, 2048, 512, 100_000))
        assert config != TrainConfig(), change
    assert recipe.changed("lr=x2", 2048, 512, 100_000) == {"lr": 2 * default_lr(2048, 512, 100_000)}
    assert recipe.changed("beta1=0, start=kaiming", 1, 1, 1) == {"beta1": 0, "start": "kaiming"}


def test_a_change_is_trained_with_on_the_rows_of_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[TrainConfig, float]] = []

    class Watched(Ours):
        def __init__(self, sample: torch.Tensor, asked: Asked, **changes: object) -> None:
            super().__init__(sample, asked, **changes)
            seen.append((self.trainer.config, float(sample.sum())))

    supply = Planted(Shape(16, 64, 4, 64), features=12)
    split = (supply.rows(1024), supply.rows(256))
    monkeypatch.setattr(recipe, "Ours", Watched)
    monkeypatch.setattr(recipe, "split_rows", lambda *_: split)
    bench = recipe.BenchRecipe(
        changes=("blend=0,beta1=0.9", "lr=x0.001"), n_latents=(64,), k=4, batch=(64,), rows=1024, seeds=(0, 1),
        keep=tmp_path / "cells",
    )  # fmt: skip
    result = bench.race()
    lines = {line["change"]: line for line in result["lines"]}
    assert lines[""]["ratio"] == 1 and lines["lr=x0.001"]["ratio"] > 1.1 and lines[""]["dead"] is None
    assert lines["lr=x0.001"]["lr"] == pytest.approx(lines[""]["lr"] / 1000)
    assert [(config.blend, config.beta1, config.seed) for config, _ in seen[2:4]] == [(0, 0.9, 0), (0, 0.9, 1)]
    assert [rows for _, rows in seen[:2]] == [rows for _, rows in seen[2:4]]
    assert seen[0][1] != seen[1][1]
    assert bench.race()["lines"] == result["lines"] and len(seen) == 6
    assert "(defaults)" in bench.as_text(result)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--changes", "lr=xfast"), "lr is a number"),
        (("--changes", "blend=2"), "blend is a share"),
        (("--changes", "beta3=0"), "did you mean 'beta2'"),
        (("--rows=9",), "less than one batch"),
        (("--architectures=topkk",), "did you mean 'topk'"),
    ],
)
def test_bad_options(monosem: Command, options: tuple[str, ...], told: str) -> None:
    ended = monosem("bench", "recipe", *options)
    assert ended.status == 2 and told in ended.err


def test_a_change_of_another_type_is_refused() -> None:
    with pytest.raises(InputError, match="beta1 is a number"):
        recipe.changed("beta1=high", 8, 8, 8)

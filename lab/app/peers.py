"""Peers in `monosem bench train`: released trainers of other libraries, stepped as their documentation says.

Each gets activations scaled as its own training loop scales them and its documented learning rate; warm-up is
the share of the run that ours uses, since their default of 1,000 steps would outlast a short run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import InputError


class Contestant(Protocol):
    """One trainer in the race."""

    def step(self, x: Tensor) -> None:
        """Train on rows [batch, d_in] in activation units."""
        ...

    def reconstruct(self, x: Tensor) -> Tensor:
        """x_hat of rows in activation units."""
        ...


def _module(name: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"this comparison needs {name}, and it cannot be imported ({error}): {install}") from None


class DictionaryLearning:
    """dictionary_learning's TopKTrainer; rows scaled to unit mean squared norm, as its `trainSAE` does."""

    def __init__(self, sample: Tensor, n_latents: int, k: int, steps: int, warmup: float, lr: float | None) -> None:
        trainers = _module(
            "dictionary_learning.trainers.top_k",
            "pip install --no-deps dictionary-learning==0.1.0 nnsight greenlet astor cloudpickle toml python-socketio",
        )
        self.factor = sample.square().sum(1).mean().sqrt()
        self.trainer = trainers.TopKTrainer(
            steps=max(steps, 2), activation_dim=sample.shape[1], dict_size=n_latents, k=k, layer=0, lm_name="bench",
            lr=lr, warmup_steps=int(warmup * steps), seed=0, device="cpu",
        )  # fmt: skip
        self.steps = 0

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.steps, x / self.factor)
        self.steps += 1

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        return self.trainer.ae(x / self.factor) * self.factor


class SaeLens:
    """SAELens' SAETrainer with a TopKTrainingSAE; rows scaled by its own expected-norm estimate."""

    def __init__(self, sample: Tensor, n_latents: int, k: int, steps: int, warmup: float, lr: float | None) -> None:
        lens = _module("sae_lens", "pip install sae-lens==6.54.12")
        config = _module("sae_lens.config", "pip install sae-lens==6.54.12")
        training = _module("sae_lens.training.sae_trainer", "pip install sae-lens==6.54.12")
        sae = lens.TopKTrainingSAE(
            lens.TopKTrainingSAEConfig(
                d_in=sample.shape[1], d_sae=n_latents, k=k, device="cpu",
                normalize_activations="expected_average_only_in",
            )
        )  # fmt: skip
        options = config.SAETrainerConfig(
            total_training_samples=steps * len(sample), train_batch_size_samples=len(sample), device="cpu",
            lr=lr or 3e-4, lr_end=(lr or 3e-4) / 10, lr_warm_up_steps=int(warmup * steps),
            logger=config.LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        self.trainer = training.SAETrainer(options, sae, iter([sample]))
        self.trainer.activation_scaler.estimate_scaling_factor(sample.shape[1], iter([sample]), 1)

    def step(self, x: Tensor) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        scaled = self.trainer.activation_scaler(x)
        return self.trainer.sae.decode(self.trainer.sae.encode(scaled)) * (x.norm() / scaled.norm())


PEERS: dict[str, Callable[..., Contestant]] = {"sae-lens": SaeLens, "dictionary-learning": DictionaryLearning}
"""Name on the command line to the class that steps that library."""

"""Peers in `monosem bench train`: released trainers of other libraries, stepped as their documentation says.

Each gets activations scaled as its own training loop scales them and its documented learning rate; warm-up is
the share of the run that ours uses, since their default of 1,000 steps would outlast a short run.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .contestant import Contestant
from .dense import DenseCompiled


def _module(name: str, install: str) -> Any:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # one of them prints when imported; stdout is for results
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
            lr=lr, warmup_steps=int(warmup * steps), seed=0, device=str(sample.device),
        )  # fmt: skip
        self.steps = 0

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.steps, x / self.factor)
        self.steps += 1

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        return self.trainer.ae(x / self.factor) * self.factor


class SaeLens:
    """SAELens' SAETrainer; rows scaled by its own expected-norm estimate.

    Args:
        architecture: a key of `SAE_LENS`.
        options: fields of that training config beyond its defaults.
    """

    INSTALL = "pip install sae-lens==6.54.12"

    def __init__(
        self, sample: Tensor, n_latents: int, k: int, steps: int, warmup: float, lr: float | None,
        architecture: str = "topk", options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        lens = _module("sae_lens", self.INSTALL)
        config = _module("sae_lens.config", self.INSTALL)
        training = _module("sae_lens.training.sae_trainer", self.INSTALL)
        kind = SAE_LENS[architecture]
        torch.manual_seed(0)
        sae = getattr(lens, kind)(
            getattr(lens, f"{kind}Config")(
                d_in=sample.shape[1], d_sae=n_latents, device=str(sample.device),
                normalize_activations="expected_average_only_in", **({"k": k} if options is None else options),
            )
        )  # fmt: skip
        options_of_trainer = config.SAETrainerConfig(
            total_training_samples=steps * len(sample), train_batch_size_samples=len(sample),
            device=str(sample.device),
            lr=lr or 3e-4, lr_end=(lr or 3e-4) / 10, lr_warm_up_steps=int(warmup * steps),
            logger=config.LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        self.trainer = training.SAETrainer(options_of_trainer, sae, iter([sample]))
        self.trainer.activation_scaler.estimate_scaling_factor(sample.shape[1], iter([sample]), 1)

    def step(self, x: Tensor) -> None:
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        scaled = self.trainer.activation_scaler(x)
        return self.trainer.sae.decode(self.trainer.sae.encode(scaled)) * (x.norm() / scaled.norm())

    def save(self, folder: Path) -> None:
        """Write what it infers with, in activation units; the last call, for its weights are folded in place."""
        sae, factor = self.trainer.sae, self.trainer.activation_scaler.scaling_factor
        sae.fold_activation_norm_scaling_factor(factor)
        sae.save_inference_model(folder)


class Sparsify:
    """EleutherAI's sparsify: its SparseCoder and its Trainer's default step, in the order of `Trainer.fit`.

    Rows as they come (it scales nothing), its FVU loss, its schedule-free signed momentum and its learning rate, which
    has no warm-up. On a GPU with its Triton decoder and its bf16 autocast.
    """

    INSTALL = "pip install --no-deps eai-sparsify==1.3.3 natsort schedulefree simple-parsing docstring-parser"

    def __init__(self, sample: Tensor, n_latents: int, k: int, steps: int, warmup: float, lr: float | None) -> None:
        if sample.device.type == "cpu":
            os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
        config = _module("sparsify.config", self.INSTALL).SparseCoderConfig(num_latents=n_latents, k=k)
        coder = _module("sparsify.sparse_coder", self.INSTALL).SparseCoder
        descent = _module("sparsify.sign_sgd", self.INSTALL).SignSGD
        free = _module("schedulefree", self.INSTALL).ScheduleFreeWrapper
        torch.manual_seed(0)
        self.coder = coder(sample.shape[1], config, sample.device, dtype=torch.float32)
        rate = lr or 5e-3 / (n_latents / 2**14) ** 0.5
        self.optimizer = free(descent([{"params": self.coder.parameters(), "lr": rate}]), momentum=0.95)
        self.optimizer.train()
        self.since_fired = torch.zeros(n_latents, dtype=torch.long, device=sample.device)
        self.started = False

    def step(self, x: Tensor) -> None:
        """One batch: unit norm, forward, FVU, backward, projection, optimizer, firing counts."""
        if not self.started:
            self.coder.b_dec.data = x.mean(0)
            self.started = True
        self.coder.set_decoder_norm_to_unit_norm()
        out = self.coder(x, x, total_variance=(x - x.mean(0)).pow(2).sum())
        fired = torch.zeros_like(self.since_fired, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())  # it is logged, every step by default
        out.fvu.backward()
        self.coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.since_fired += len(x)
        self.since_fired[fired] = 0

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """With the averaged weights, as it saves them."""
        self.optimizer.eval()
        values, columns, _ = self.coder.encode(x)
        out = self.coder.decode(values, columns)
        self.optimizer.train()
        return out


SAE_LENS = {
    "relu": "StandardTrainingSAE",
    "gated": "GatedTrainingSAE",
    "topk": "TopKTrainingSAE",
    "batchtopk": "BatchTopKTrainingSAE",
    "jumprelu": "JumpReLUTrainingSAE",
    "matryoshka": "MatryoshkaBatchTopKTrainingSAE",
    "abstopk": "AbsTopKTrainingSAE",
    "mp": "MatchingPursuitTrainingSAE",
}
"""Our name of an architecture to SAELens' training class."""

PEERS: dict[str, Callable[..., Contestant]] = {
    "sae-lens": SaeLens,
    "dictionary-learning": DictionaryLearning,
    "sparsify": Sparsify,
    "dense-compiled": DenseCompiled,
}
"""Name on the command line to the class that steps that library."""

"""Peers in benchmarks: released trainers of other libraries, as documented or matched to ours.

**Documented** are the defaults of a library's released classes: its learning rate, schedule, starting weights and
optimizer. Rows are scaled as its own training loop or tutorial scales them. Counts of steps that would outlast a short
run are cut: dictionary_learning's warm-up (1,000 steps) to our share of the run, its penalty's warm-up (2,000) to
twice that, and the step from which it tracks a threshold (1,000) to half of the run.

**Matched** is the same class with rows scaled as ours are, our learning-rate schedule, and b_dec started at the
geometric median of the first batch as ours is. Everything else, such as the dead-latent aid, stays the library's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from torch import Tensor

from ....saes.dictionary import Dictionary
from ....saes.files import load
from ....saes.training.trainer import TrainConfig
from ...storage import write_json
from .contestant import Asked, Contestant, Start, imported
from .dense import DenseCompiled


class _Saved:
    """A peer whose dictionary is what this library reads from the peer's own files."""

    def save(self, folder: Path) -> None:
        """Write the dictionary in activation units, in the peer's own format; the last call."""
        raise NotImplementedError

    def dictionary(self) -> Dictionary:
        """The trained dictionary in activation units; the last call."""
        with TemporaryDirectory() as folder:
            self.save(Path(folder))
            return load(Path(folder))


class DictionaryLearning(_Saved):
    """dictionary_learning's trainers.

    Documented: rows scaled to unit mean squared norm, as `trainSAE(normalize_activations=True)` scales them. Matched:
    constants in units of activations (bandwidth, first threshold) grow with the scale, and jumprelu, which does not
    subtract b_dec before encoding, has its b_enc started so that the first codes are those of centred rows.
    """

    INSTALL = "pip install --no-deps dictionary-learning==0.1.0 nnsight greenlet astor cloudpickle toml python-socketio"
    KINDS: ClassVar[dict[str, str]] = {
        "relu": "standard.StandardTrainer",
        "gated": "gdm.GatedSAETrainer",
        "topk": "top_k.TopKTrainer",
        "batchtopk": "batch_top_k.BatchTopKTrainer",
        "jumprelu": "jumprelu.JumpReluTrainer",
        "matryoshka": "matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer",
    }
    """Our name of an architecture to its module and class."""
    PENALTY: ClassVar[dict[str, tuple[str, float]]] = {
        "relu": ("l1_penalty", 0.1),
        "gated": ("l1_penalty", 0.1),
        "jumprelu": ("sparsity_penalty", 1.0),
    }

    def __init__(self, sample: Tensor, asked: Asked) -> None:
        self.asked, self.steps = asked, 0
        module, kind = self.KINDS[asked.architecture].split(".")
        trainers = imported(f"dictionary_learning.trainers.{module}", self.INSTALL)
        torch.manual_seed(asked.seed)
        self.trainer = getattr(trainers, kind)(
            steps=max(asked.steps, 2), activation_dim=sample.shape[1], dict_size=asked.n_latents, layer=0,
            lm_name="bench", seed=asked.seed, device=str(sample.device),
            **self._options(len(sample)),
        )  # fmt: skip
        self.factor = 1 / sample.square().sum(1).mean().sqrt().item()
        if asked.matched:
            self._start(Start.of(sample))

    def _options(self, batch: int) -> dict[str, Any]:
        asked, warmup = self.asked, min(1000, int(TrainConfig().warmup * self.asked.steps))
        rate = asked.peak(batch) if asked.matched else asked.lr
        options: dict[str, Any] = {"warmup_steps": 0 if asked.matched else warmup}
        if rate is not None:
            options["lr"] = rate
        if asked.architecture in self.PENALTY:
            name, value = self.PENALTY[asked.architecture]
            options |= {name: value * asked.coefficient, "sparsity_warmup_steps": 2 * warmup}
        else:
            options |= {"k": asked.k}
        if asked.architecture in ("topk", "batchtopk", "matryoshka"):
            options["threshold_start_step"] = min(1000, asked.steps // 2)
        if asked.architecture == "jumprelu":
            options["target_l0"] = float(asked.k)
        if asked.architecture == "matryoshka":
            options["group_fractions"] = [(b - a) / asked.n_latents for a, b in pairwise((0, *asked.prefixes))]
        return options

    @torch.no_grad()
    def _start(self, start: Start) -> None:
        ae, grown = self.trainer.ae, start.scale / self.factor
        self.factor = start.scale
        match self.asked.architecture:
            case "relu":
                ae.bias.copy_(start.b_dec)
            case "gated":
                ae.decoder_bias.copy_(start.b_dec)
            case "jumprelu":
                ae.b_dec.copy_(start.b_dec)
                ae.b_enc.copy_(-start.b_dec @ ae.W_enc)
                ae.threshold.mul_(grown)
                self.trainer.bandwidth *= grown
            case _:  # the others start b_dec at the geometric median of the first batch themselves
                pass

    def step(self, x: Tensor) -> None:
        """One `update`."""
        if self.asked.matched:
            _set_rate(self.trainer.optimizer, self.asked.rate(self.steps, len(x)))
        self.trainer.update(self.steps, x * self.factor)
        self.steps += 1

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """x_hat by its own forward pass."""
        return self.trainer.ae(x * self.factor) / self.factor

    def save(self, folder: Path) -> None:
        """Write `ae.pt` with biases in activation units, as `trainSAE` does at its end, and `config.json`."""
        ae = self.trainer.ae
        with torch.no_grad():
            ae.scale_biases(1 / self.factor)
        torch.save({name: value.cpu() for name, value in ae.state_dict().items()}, folder / "ae.pt")
        write_json(folder / "config.json", {"trainer": {"dict_class": type(ae).__name__}})


class SaeLens(_Saved):
    """SAELens' SAETrainer.

    Documented: Adam at a constant 3e-4, no warm-up, no decay, b_dec from zero, and rows scaled to an expected norm of
    sqrt(d_in), which its tutorial turns on, from an estimate on the first batch.
    """

    INSTALL = "pip install sae-lens==6.54.12"
    KINDS: ClassVar[dict[str, str]] = {
        "relu": "StandardTrainingSAE",
        "gated": "GatedTrainingSAE",
        "topk": "TopKTrainingSAE",
        "batchtopk": "BatchTopKTrainingSAE",
        "jumprelu": "JumpReLUTrainingSAE",
        "matryoshka": "MatryoshkaBatchTopKTrainingSAE",
        "abstopk": "AbsTopKTrainingSAE",
        "mp": "MatchingPursuitTrainingSAE",
    }
    """Our name of an architecture to its training class."""

    def __init__(self, sample: Tensor, asked: Asked) -> None:
        lens = imported("sae_lens", self.INSTALL)
        config = imported("sae_lens.config", self.INSTALL)
        training = imported("sae_lens.training.sae_trainer", self.INSTALL)
        self.asked, kind = asked, self.KINDS[asked.architecture]
        torch.manual_seed(asked.seed)
        sae = getattr(lens, kind)(
            getattr(lens, f"{kind}Config")(
                d_in=sample.shape[1], d_sae=asked.n_latents, device=str(sample.device),
                normalize_activations="expected_average_only_in", **self._options(),
            )
        )  # fmt: skip
        rate = asked.peak(len(sample)) if asked.matched else asked.lr or 3e-4
        options = config.SAETrainerConfig(
            total_training_samples=asked.steps * len(sample), train_batch_size_samples=len(sample),
            device=str(sample.device), lr=rate, lr_end=rate / 10, logger=config.LoggingConfig(log_to_wandb=False),
        )  # fmt: skip
        self.trainer = training.SAETrainer(options, sae, iter([sample]))
        if asked.matched:
            start = Start.of(sample)
            self.trainer.activation_scaler.scaling_factor = start.scale
            sae.b_dec.data.copy_(start.b_dec)
        else:
            self.trainer.activation_scaler.estimate_scaling_factor(sample.shape[1], iter([sample]), 1)

    def _options(self) -> dict[str, Any]:
        """Options of SAELens' training config; a coefficient of 1 is its own default."""
        asked = self.asked
        match asked.architecture:
            case "relu" | "gated":
                return {"l1_coefficient": asked.coefficient}
            case "jumprelu":
                return {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": float(asked.k),
                        "l0_coefficient": asked.coefficient}  # fmt: skip
            case "mp":
                return {"max_iterations": asked.k}
            case "matryoshka":
                return {"k": asked.k, "matryoshka_widths": list(asked.prefixes)}
            case _:
                return {"k": asked.k}

    def step(self, x: Tensor) -> None:
        """One `step`, counted as its `fit` counts."""
        if self.asked.matched:
            _set_rate(self.trainer.optimizer, self.asked.rate(self.trainer.n_training_steps, len(x)))
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """x_hat by its own forward pass."""
        scaler = self.trainer.activation_scaler
        return scaler.unscale(self.trainer.sae.decode(self.trainer.sae.encode(scaler(x))))

    def save(self, folder: Path) -> None:
        """Write what it infers with, in activation units; its weights are folded in place."""
        sae, factor = self.trainer.sae, self.trainer.activation_scaler.scaling_factor
        sae.fold_activation_norm_scaling_factor(factor)
        sae.save_inference_model(folder)


class Sparsify(_Saved):
    """EleutherAI's sparsify: its SparseCoder and its Trainer's step, in the order of `Trainer.fit`.

    Documented: rows as they come (it scales nothing), b_dec at the mean of the first batch, its FVU loss, schedule-free
    signed momentum and its learning rate for that, without warm-up. Matched: its other documented optimizer, Adam,
    since schedule-free descent takes no schedule. On a GPU with its Triton decoder and its bf16 autocast.
    """

    INSTALL = "pip install --no-deps eai-sparsify==1.3.3 natsort schedulefree simple-parsing docstring-parser"
    KINDS: ClassVar[dict[str, str]] = {"topk": "topk", "groupmax": "groupmax"}
    """Our name of an architecture to its activation."""

    def __init__(self, sample: Tensor, asked: Asked) -> None:
        if sample.device.type == "cpu":
            os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
        config = imported("sparsify.config", self.INSTALL).SparseCoderConfig(
            num_latents=asked.n_latents, k=asked.k, activation=self.KINDS[asked.architecture]
        )
        coder = imported("sparsify.sparse_coder", self.INSTALL).SparseCoder
        descent = imported("sparsify.sign_sgd", self.INSTALL).SignSGD
        free = imported("schedulefree", self.INSTALL).ScheduleFreeWrapper
        torch.manual_seed(asked.seed)
        self.asked, self.steps = asked, 0
        self.coder = coder(sample.shape[1], config, sample.device, dtype=torch.float32)
        if asked.matched:
            start = Start.of(sample)
            self.scale, b_dec = start.scale, start.b_dec
            self.optimizer: Any = torch.optim.Adam(self.coder.parameters(), lr=asked.peak(len(sample)))
        else:
            self.scale, b_dec = 1.0, sample.mean(0)
            rate = asked.lr or 5e-3 / (asked.n_latents / 2**14) ** 0.5
            self.optimizer = free(descent([{"params": self.coder.parameters(), "lr": rate}]), momentum=0.95)
            self.optimizer.train()
        self.coder.b_dec.data = b_dec.clone()
        self.since_fired = torch.zeros(asked.n_latents, dtype=torch.long, device=sample.device)

    def step(self, x: Tensor) -> None:
        """One batch: unit norm, forward, FVU, backward, projection, optimizer, firing counts."""
        x = x * self.scale
        if self.asked.matched:
            _set_rate(self.optimizer, self.asked.rate(self.steps, len(x)))
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
        self.steps += 1

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """With the averaged weights, as it saves them."""
        self._averaged(True)
        values, columns, _ = self.coder.encode(x * self.scale)
        out = self.coder.decode(values, columns) / self.scale
        self._averaged(False)
        return out

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Write the averaged weights, biases in activation units."""
        self._averaged(True)
        for bias in (self.coder.encoder.bias, self.coder.b_dec):
            bias.div_(self.scale)
        self.coder.save_to_disk(folder)

    def _averaged(self, on: bool) -> None:
        if not self.asked.matched:
            (self.optimizer.eval if on else self.optimizer.train)()


def _set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


LIBRARIES: dict[str, type[SaeLens | DictionaryLearning | Sparsify]] = {
    "sae-lens": SaeLens,
    "dictionary-learning": DictionaryLearning,
    "sparsify": Sparsify,
}
"""Name on the command line to the class that steps that library."""

PEERS: dict[str, Callable[[Tensor, Asked], Contestant]] = {**LIBRARIES, "dense-compiled": DenseCompiled}
"""The libraries, and a compiled dense trainer that is nobody's."""

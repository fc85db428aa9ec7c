"""`EndToEnd`: train a dictionary by the loss of the model with it spliced in (Braun et al. 2024, arXiv 2405.12241).

    stream = TokenStream(model, corpus, ["resid_post.6"])
    trainer = Trainer(load(folder), site, TrainConfig(rows=200_000, lr=1e-4), trained=True)
    train(stream, [EndToEnd(model, trainer)], run)

For each batch: the reconstructions x_hat replace the rows of the clean pass, all other positions stay (the rules of
`splicing`); one more pass gives the logits; its backward stops at x_hat. The gradient there, rescaled, is what the
trainer's own sparse step learns from in place of the residual, so any architecture that can do without its residual
is trained, on the same kernels. Nothing of the size of the logits is differentiated by a graph: the gradient of both
losses to them is closed, softmax less a distribution.

Where there are several dictionaries each is spliced in alone, and the clean pass is shared.

Units: the gradient of the model's loss is multiplied, batch by batch, to the norm of the residual. A share of local
reconstruction is then a share of the step, penalties weigh as they do in local training, and no number depends on the
model (to the same end Karvonen 2025, arXiv 2503.17272, rescales one loss to the other).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from ...lab.errors import InputError, unknown
from ...lab.models.hooked_model import HookedModel
from ...lab.models.sites import PATH, Site
from ...lab.streams.activation_stream import ActivationStream, Batch, ForwardPass
from ...lab.streams.token_stream import TokenStream
from ..architectures.schedules import check_share
from ..edit import Edit, predicting, readers
from ..place import CROSSCODER
from .trainer import Trainer

LOSSES = ("kl", "ce")
SUMS = ("loss", "downstream", "batches")
"""Sums over the batches since the last call of `metrics`."""


@dataclass(frozen=True)
class EndToEndConfig:
    """Loss of end-to-end training."""

    loss: Literal["kl", "ce"] = "kl"
    """kl: KL(clean || spliced). ce: cross-entropy of the next token. Both are means over predicted tokens."""
    local: float = 0.0
    """Share of the step that goes to plain reconstruction; 1 is local training on the same rows."""
    downstream: float = 0.0
    """Weight, against the loss, of the mean over later residual sites of the squared error there relative to the
    variance: e2e+ds of Braun et al. 2024, section 2.2. Keeps the spliced model on the paths of the clean one."""

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("end-to-end loss", self.loss, LOSSES)
        check_share("local", self.local)
        if not self.downstream >= 0:
            raise InputError(f"downstream must be at least 0 (none), got {self.downstream}")


def later_sites(model: HookedModel, site: Site | str) -> tuple[Site, ...]:
    """Outputs of all blocks that run after `site`, which `downstream` compares.

    Raises:
        InputError: no block runs after it, or the site is a module's path, which does not say when it runs.
    """
    site = model.site(site)
    if site.kind == PATH:
        raise InputError(f"which blocks run after {site} is not known: name a site of a layer, or leave downstream 0")
    later_ones = tuple(model.site(f"resid_post.{layer}") for layer in range(site.layer, model.n_layers))
    later_ones = tuple(later for later in later_ones if later > site)
    if not later_ones:
        raise InputError(f"no block runs after {site}: leave downstream at 0")
    return later_ones


class EndToEnd:
    """A consumer of a `TokenStream` that steps a `Trainer` by the gradient of the model's loss.

    Args:
        model: model that the stream runs.
        trainer: of a dictionary of one site, or a transcoder, which is spliced in at the site it predicts.
        config: loss that is minimised.

    Raises:
        InputError: a crosscoder; a transcoder that reads a later site than it predicts; an architecture whose loss
            is more than that of one reconstruction; or no site downstream where one is asked for.
    """

    def __init__(self, model: HookedModel, trainer: Trainer, config: EndToEndConfig | None = None) -> None:
        self.model, self.trainer, self.config = model, trainer, config or EndToEndConfig()
        if trainer.place.kind == CROSSCODER:
            raise InputError(f"a crosscoder writes several sites at once: train {trainer.name} locally")
        if not trainer.objective.takes_upstream:
            raise InputError(
                f"{trainer.dictionary.architecture} learns from more than its last reconstruction, which alone is "
                "spliced in: use topk, batchtopk, jumprelu or another architecture of one reconstruction"
            )
        source, self.site = trainer.sites[0], trainer.sites[-1]
        if PATH not in (source.kind, self.site.kind) and source > self.site:
            raise InputError(f"a transcoder that is spliced in at {self.site} must read an earlier site, not {source}")
        self.later = later_sites(model, self.site) if self.config.downstream else ()
        self.name, self.sites = trainer.name, (*trainer.sites, *self.later)
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=trainer.sums.device)

    def __repr__(self) -> str:
        return f"EndToEnd({self.trainer!r}, {self.config})"

    @property
    def rows_wanted(self) -> int:
        """Rows of the whole training."""
        return self.trainer.rows_wanted

    @property
    def done(self) -> bool:
        """True once the configured rows have been trained on."""
        return self.trainer.done

    def shorten(self, rows: int) -> None:
        """Let the schedules span `rows`, as `Trainer.shorten`."""
        self.trainer.shorten(rows)

    def settings(self) -> dict[str, Any]:
        """Settings of the trainer and the loss: a run is continued with the same ones."""
        return {**self.trainer.settings(), "end_to_end": asdict(self.config)}

    def attach(self, stream: ActivationStream | TokenStream) -> None:
        """Take the model's fingerprint and the norm limits from the stream, where they are not known yet."""
        self.trainer.attach(stream)

    def step(self, batch: Batch) -> None:
        """Train on the rows of one forward pass.

        Raises:
            InputError: the batch has none, being of an `ActivationStream`.
        """
        if batch.source is None:
            raise InputError(f"{self.name} is trained through the model: give `train` a TokenStream")
        x_hat = self.trainer.predict(batch)
        gradient, loss, downstream = self.gradient(batch, x_hat)
        residual = x_hat - batch.acts[self.site].to(x_hat)
        self.trainer.step(batch, mixed(gradient, residual, self.config.local))
        self.sums += torch.stack([loss, downstream, torch.ones_like(loss)]).double().to(self.sums.device)

    def gradient(
        self, batch: Batch, x_hat: Float32[Tensor, "rows d"]
    ) -> tuple[Float32[Tensor, "rows d"], Float32[Tensor, ""], Float32[Tensor, ""]]:
        """Differentiate the model's loss at reconstructions; also return its two terms, before the weight.

        Args:
            batch: of a `TokenStream`.
            x_hat: reconstructions that replace the rows at the site.
        """
        clean = batch.source
        assert clean is not None, "the batch is of a TokenStream"
        leaf = x_hat.detach().requires_grad_()
        seen: dict[Site, Tensor] = {}

        mask = None if bool(clean.batch.attention.all()) else clean.batch.attention
        edits = {**Edit.replacing(self.site, lambda _: leaf).at(clean.rows), **readers(self.later, seen)}
        with frozen(self.model.module), self.model.editing(edits):
            logits = self.model.logits(clean.batch.tokens, attention_mask=mask, grad=True)
        loss, seed = loss_gradient(logits.detach(), clean, self.config.loss)
        outputs, seeds, downstream = [logits], [seed], torch.zeros_like(loss)
        for site in self.later:
            error = seen[site].detach().flatten(2)[clean.rows].float() - batch.acts[site].float()
            variance = batch.acts[site].float().var(0, correction=0).sum() * len(error)
            downstream = downstream + error.square().sum() / variance / len(self.later)
            slope = 2 * self.config.downstream / len(self.later) / variance
            spread = torch.zeros_like(seen[site]).flatten(2)
            spread[clean.rows] = (slope * error).to(spread.dtype)
            outputs.append(seen[site])
            seeds.append(spread.view_as(seen[site]))
        (gradient,) = torch.autograd.grad(outputs, [leaf], seeds)
        return gradient.float(), loss, downstream

    def metrics(self) -> dict[str, int | float]:
        """Metrics of the trainer, and the mean loss since the last call in nats a token."""
        loss, downstream, batches = self.sums.tolist()
        self.sums.zero_()
        further = {"downstream": downstream / max(batches, 1)} if self.later else {}
        return {self.config.loss: loss / max(batches, 1), **further, **self.trainer.metrics()}

    def state_dict(self) -> dict[str, Any]:
        """Everything a continued run needs to end in the same bytes."""
        return {"trainer": self.trainer.state_dict(), "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.trainer.load_state_dict(state["trainer"])
        self.sums.copy_(state["sums"])

    def save(self, folder: Path) -> None:
        """Write the folded dictionary, with the loss in its provenance."""
        folded = self.trainer.folded()
        folded.provenance.training["end_to_end"] = asdict(self.config)
        folded.save(folder)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Turn off the gradients of all parameters, so that a graph begins where an edit brings something in."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def mixed(
    gradient: Float32[Tensor, "rows d"], residual: Float32[Tensor, "rows d"], local: float
) -> Float32[Tensor, "rows d"]:
    """(1 - local) * gradient * |residual| / |gradient| + local * residual."""
    factor = residual.norm() / gradient.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return gradient.mul(factor * (1 - local)).add_(residual, alpha=local)


def loss_gradient(
    logits: Float[Tensor, "R T vocab"], clean: ForwardPass, loss: str
) -> tuple[Float32[Tensor, ""], Float[Tensor, "R T vocab"]]:
    """Compute the mean loss a predicted token and its gradient at the logits, a text at a time, in their dtype.

    `edit.predicting` says which tokens are predicted. With q the softmax of the logits, the gradient is q - p for the
    KL divergence from clean probabilities p, and q less the next token's one-hot vector for the cross-entropy.
    """
    predicts = predicting(clean.batch).to(logits.device)
    labels = clean.batch.tokens.to(logits.device).roll(-1, 1)
    gradient, total = torch.zeros_like(logits), torch.zeros((), device=logits.device)
    n = predicts.sum().clamp_min(1)
    for row in range(len(logits)):
        at = predicts[row]
        log_q = logits[row, at].float().log_softmax(1)
        label = labels[row, at][:, None]
        if loss == "kl":
            log_p = clean.logits[row, at].float().log_softmax(1)
            target = log_p.exp()
            total += (target * (log_p - log_q)).sum()
            slope = log_q.exp_().sub_(target)
        else:
            total -= log_q.gather(1, label).sum()
            slope = log_q.exp_().scatter_add_(1, label, -torch.ones_like(log_q[:, :1]))
        gradient[row, at] = (slope / n).to(gradient.dtype)
    return total / n, gradient

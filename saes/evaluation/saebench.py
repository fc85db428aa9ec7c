"""SAEBench's core metrics as it publishes them, quirks included: to stand beside its numbers, not to be believed.

Written from the published definitions (SAEBench, arXiv 2503.09532) and equal to what version 0.6.0 of its package
computes on the same dictionary, model and tokens, to 1e-5. The corrected forms are in `metrics` and `splicing`.
Where this differs from them:

    explained_variance   1 - E||x - x_hat||^2 / (E||x||^2 - q^2) with q the mean of x^2 over rows and dimensions, where
                         the norm of the mean belongs. It changes with the scale of x, and passes 1
    explained_variance_legacy   mean over rows of 1 - ||x - x_hat||^2 / ||x - batch mean||^2, what the paper shows: rows
                         near the mean decide it, and the mean is that of one batch
    mse                  squared error a row, divided by the number of rows in its batch once more
    l1                   sum of the codes with their signs
    relative_reconstruction_bias   a mean of one ratio a batch
    cossim, l2_ratio     nan for a row whose x or x_hat is 0; norms of x below 1e-4 count as 1
    ce_loss_score, kl_div_score   every position is replaced (its default): the first of a row, special ones, and rows
                         above the norm limit too. Special tokens are left out of the means where they are the
                         *input* of a prediction, and are predicted themselves
    kl_div_*             logarithms of fp32 softmaxes: nan or inf where a probability underflows
    frac_alive, freq_over_1_percent, freq_over_10_percent   shares of latents by the share of tokens with a code
                         above 0: negative codes do not count. The normalized_ ones are shares of all such codes
                         that belong to those latents

Ten batches of 16 prompts give the losses, one batch everything else: read the numbers with that in mind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from ...lab.errors import InputError
from ...lab.models.hooked_model import HookedModel
from ...lab.models.sites import Site
from ...lab.runs.prompts import Prompt, read_prompts
from ..dictionary import Dictionary
from ..edit import Edit
from ..sparse_code import SparseCode
from .splicing import LOGIT_BYTES
from .weights import weight_scores

PROMPTS = 16
"""Prompts a batch."""
LOSS_BATCHES, ROW_BATCHES = 10, 1
"""Batches that losses, and all other scores, are taken on."""
SHORT = 1e-4
"""Norms of x below this are divided by as if they were 1."""


class RowScores:
    """Scores of reconstruction and sparsity, batch by batch; a batch is b prompts of t tokens."""

    def __init__(self, n_latents: int) -> None:
        self._rows: dict[str, list[Tensor]] = {}
        self._squares: list[Tensor] = []
        self.tokens = 0
        """Tokens counted, those left out not."""
        self.firing = torch.zeros(n_latents, dtype=torch.int64)
        """Tokens with a code above 0, by latent."""
        self.prompts = torch.zeros(n_latents, dtype=torch.int64)
        """Prompts with a code above 0, by latent."""

    def add(
        self, x: Float[Tensor, "b t d"], x_hat: Float[Tensor, "b t d"], code: SparseCode, keep: Bool[Tensor, "b t"]
    ) -> None:
        """Add one batch; rows of `code` are the tokens in order, and only those in `keep` count."""
        kept = keep.flatten()
        self._count(code, kept, x.shape[1])
        x, x_hat = x[keep].float(), x_hat[keep].float()
        norm, norm_hat = x.norm(dim=1), x_hat.norm(dim=1)
        dot = (x * x_hat).sum(1)
        error = (x - x_hat).square().sum(1)
        spread = (x - x.mean(0)).square().sum(1)
        sums = torch.zeros(len(kept)).index_add_(0, code.rows, code.values.float())
        self.tokens += len(x)
        self._squares.append(torch.stack([x.square().sum(1).mean(), x.square().mean(), error.mean()]))
        columns = {
            "l2_norm_in": norm,
            "l2_norm_out": norm_hat,
            "l2_ratio": norm_hat / norm.masked_fill(norm < SHORT, 1),
            "relative_reconstruction_bias": (norm_hat.square().mean() / dot.mean())[None],
            "l0": code.l0[kept].float(),
            "l1": sums[kept],
            "explained_variance_legacy": 1 - error / spread,
            "mse": error / len(x),
            "cossim": dot / (norm * norm_hat),
        }
        for name, values in columns.items():
            self._rows.setdefault(name, []).append(values)

    def _count(self, code: SparseCode, kept: Bool[Tensor, " tokens"], length: int) -> None:
        counts = kept[code.rows] & (code.values > 0)
        latent = code.indices.long()[counts]
        prompt = code.rows[counts].div(length, rounding_mode="floor")
        n = len(self.firing)
        self.firing += torch.bincount(latent, minlength=n)
        self.prompts += torch.bincount((prompt * n + latent).unique() % n, minlength=n)

    def metrics(self) -> dict[str, float]:
        """Every score by SAEBench's name."""
        if not self._rows:
            raise InputError("no batch of prompts was added: give SAEBench's scores at least one")
        found = {name: float(torch.cat(values).mean()) for name, values in self._rows.items()}
        second, square, error = torch.stack(self._squares).mean(0).tolist()
        unexplained = error / (second - square**2) if second != square**2 else math.nan
        density = self.firing.double() / self.tokens
        found["frac_alive"] = float((density > 0).double().mean())
        for percent in (1, 10):
            often = density > percent / 100
            found[f"freq_over_{percent}_percent"] = float(often.double().mean())
            found[f"normalized_freq_over_{percent}_percent"] = float(
                density[often].sum() / density.sum().clamp_min(1e-30)
            )
        found["consistent_activation_heuristic"] = float((self.firing / self.prompts)[self.prompts > 0].mean())
        return {"explained_variance": 1 - unexplained, **found}


class LossScores:
    """Cross-entropy and KL with every position replaced, prompt by prompt."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(
        self, model: HookedModel, site: Site, dictionary: Dictionary, tokens: Int64[Tensor, "b t"],
        keep: Bool[Tensor, "b t"],
    ) -> None:  # fmt: skip
        """Add prompts; values at positions outside `keep` are left out of the means, but replaced all the same."""
        clean = model.logits(tokens).float()
        found = {"ce_loss_without_sae": cross_entropy(clean, tokens)}
        for name, replace in {"sae": dictionary, "ablation": torch.zeros_like}.items():
            with model.editing(Edit.replacing(site, replace).at()):
                logits = model.logits(tokens).float()
            found[f"ce_loss_with_{name}"] = cross_entropy(logits, tokens)
            found[f"kl_div_with_{name}"] = divergence(clean, logits)
        for name, values in found.items():
            wanted = keep[:, : values.shape[1]].to(values.device)
            self._values.setdefault(name, []).append(values[wanted].cpu())

    def metrics(self) -> dict[str, float]:
        """Losses in nats, and both scores against the zero ablation."""
        if not self._values:
            raise InputError("no prompts were added: give SAEBench's losses at least one")
        found = {name: float(torch.cat(values).mean()) for name, values in self._values.items()}
        clean, sae, ablated = (found[f"ce_loss_{name}"] for name in ("without_sae", "with_sae", "with_ablation"))
        kl, kl_ablated = found["kl_div_with_sae"], found["kl_div_with_ablation"]
        found["ce_loss_score"] = (ablated - sae) / (ablated - clean) if ablated != clean else math.nan
        found["kl_div_score"] = (kl_ablated - kl) / kl_ablated if kl_ablated else math.nan
        return found


def cross_entropy(logits: Float[Tensor, "b t v"], tokens: Int64[Tensor, "b t"]) -> Float[Tensor, "b t-1"]:
    """Loss of every next token, nats."""
    log_p = logits[:, :-1].log_softmax(2)
    return -log_p.gather(2, tokens[:, 1:, None].to(log_p.device))[..., 0]


def divergence(clean: Float[Tensor, "b t v"], other: Float[Tensor, "b t v"]) -> Float[Tensor, "b t"]:
    """KL(clean || other) from softmaxes, as published: a probability that underflows gives nan or inf."""
    p, q = clean.softmax(2), other.softmax(2)
    return (p * (p.log() - q.log())).sum(2)


def saebench_scores(
    model: HookedModel,
    prompts: Iterable[Int64[Tensor, " t"]],
    site: Site | str,
    dictionary: Dictionary,
    ignored: Sequence[int],
    *,
    progress: bool = False,
) -> dict[str, float]:
    """SAEBench's core scores of one dictionary, by its names.

    Args:
        prompts: token rows of one length, its own start included; SAEBench takes 128 tokens. The first 160 are
            read for losses, the first 16 for the rest; fewer where they end.
        ignored: ids of tokens left out of every mean: SAEBench takes BOS, EOS and padding.

    Raises:
        InputError: no prompt is given.
    """
    site = model.site(site)
    rows, losses = RowScores(dictionary.n_latents), LossScores()
    skip = torch.tensor(sorted(set(ignored)), dtype=torch.int64)
    taken = list(islice(prompts, LOSS_BATCHES * PROMPTS))
    first = [Prompt(tuple(row.tolist())) for row in taken[: ROW_BATCHES * PROMPTS]]
    for part in read_prompts(model, [site], first, batch=PROMPTS, by_length=False):
        x = part.acts[site]
        code = dictionary.encode(x)
        keep = ~torch.isin(part.batch.tokens, skip)
        rows.add(x.cpu(), dictionary.decode(code).reshape(x.shape).cpu(), _on_cpu(code), keep)
    for begin in tqdm(range(0, len(taken), PROMPTS), desc="SAEBench", unit="batch", disable=not progress):
        batch = torch.stack(taken[begin : begin + PROMPTS])
        keep = ~torch.isin(batch, skip)
        size = max(1, LOGIT_BYTES // (4 * (model.vocab_size or 1) * batch.shape[1]))
        for tokens, wanted in zip(batch.split(size), keep.split(size), strict=True):
            losses.add(model, site, dictionary, tokens, wanted)
    weights = {f"average_max_{side}_cosine_sim": value for side, value in _largest_cosines(dictionary).items()}
    return {**rows.metrics(), **losses.metrics(), **weights}


def _largest_cosines(dictionary: Dictionary) -> dict[str, float]:
    found = weight_scores(dictionary)
    return {side: found[f"{side}_max_cosine"] for side in ("encoder", "decoder") if f"{side}_max_cosine" in found}


def _on_cpu(code: SparseCode) -> SparseCode:
    return SparseCode(code.indptr.cpu(), code.indices.cpu(), code.values.cpu(), code.n_latents, code.width)

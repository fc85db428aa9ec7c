"""A model, a corpus and consumers small enough to train in a second. Run as a script, it survives kills.

`python toys.py FOLDER SEED` trains a run in FOLDER in child processes, each killed with SIGKILL after a
random time or in the middle of a checkpoint, until one gets to the end. It prints the number of kills, and of
those that hit a checkpoint.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monosem.lab.models.sites import Site
from monosem.lab.rng import generator
from monosem.lab.runs.consumers import load_optimizer_state, optimizer_state
from monosem.lab.runs.loop import train
from monosem.lab.runs.run import Run
from monosem.lab.storage import write_tensors
from monosem.lab.streams.activation_stream import ActivationStream, Batch
from torch import Tensor, nn

KILLS = 8
A, B = Site.parse("resid_post.0"), Site.parse("mlp_out.1")
WIDTHS = {A: 12, B: 20}


class Tokens(NamedTuple):
    tokens: Tensor
    attention: Tensor
    usable: Tensor
    doc: Tensor
    offset: Tensor


class TinyCorpus:
    """Documents of random tokens, one per row; position 0 is special and the tail of odd rows is padding."""

    def __init__(self, batches: int = 20, rows: int = 8, length: int = 17, seed: int = 0):
        self.batches, self.rows, self.length, self.seed = batches, rows, length, seed

    def iterate(self, state: dict[str, int] | None = None) -> Iterator[tuple[Tokens, dict[str, int]]]:
        for number in range(state["next"] if state else 0, self.batches):
            shape = (self.rows, self.length)
            tokens = torch.randint(1, 100, shape, generator=generator(self.seed, "tokens", number))
            offset = torch.arange(self.length).expand(shape)
            doc = (number * self.rows + torch.arange(self.rows))[:, None].expand(shape)
            attention = (doc % 2 == 0) | (offset < self.length - 3)
            batch = Tokens(tokens, attention, attention & (offset > 0), doc, offset)
            yield batch, {"next": number + 1}

    @property
    def usable(self) -> int:
        return sum(int(batch.usable.sum()) for batch, _ in self.iterate())

    def fingerprint(self) -> dict[str, Any]:
        return {"hash": f"tiny-{self.seed}-{self.batches}-{self.rows}-{self.length}"}


class TinyModel(nn.Module):
    """Causal averaging of embeddings, read at two sites; `sink` is a token of long rows, `broken` a nan."""

    def __init__(
        self,
        seed: int = 0,
        *,
        sink: int | None = None,
        broken: tuple[int, int] | None = None,
        scale: float = 1.0,
    ):
        super().__init__()
        self.seed, self.sink, self.broken, self.forwards = seed, sink, broken, 0
        weights = generator(seed, "tiny model")
        self.embed = nn.Parameter(scale * torch.randn(100, WIDTHS[A], generator=weights))
        self.up = nn.Parameter(torch.randn(WIDTHS[A], WIDTHS[B], generator=weights))
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.calls: list[bool] = []
        self.requires_grad_(False)

    def site(self, text: Site | str) -> Site:
        return Site.parse(text)

    def width(self, site: Site) -> int:
        return WIDTHS[site]

    def fingerprint(self) -> dict[str, Any]:
        return {"name": "tiny", "revision": self.seed}

    def capture(self, tokens: Tensor, sites: Any, attention_mask: Tensor | None = None) -> dict[Site, Tensor]:
        self.forwards += 1
        self.calls.append(attention_mask is not None)
        x = self.embed[tokens]
        x = x + x.cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]
        if self.sink is not None:
            x = torch.where((tokens == self.sink)[..., None], x * 1000, x)
        if self.broken is not None and self.forwards == self.broken[0]:
            x[2, self.broken[1]] = float("nan")
        heads = torch.relu(x @ self.up).unflatten(-1, (4, -1))  # as z has them: [rows, length, heads, d_head]
        both = {A: x, B: heads}
        return {site: both[site] for site in sites}


class Autoencoder:
    """A linear autoencoder trained by Adam: the plainest thing with weights and an optimizer."""

    def __init__(self, name: str, site: Site, *, seed: int = 0, ballast: int = 0, until: int | None = None):
        self.name, self.sites, self.until, self.steps = name, (site,), until, 0
        start = generator(seed, name, "init")
        self.weight = nn.Parameter(torch.randn(WIDTHS[site], 5, generator=start) * 0.1)
        self.optimizer = torch.optim.Adam([self.weight], lr=1e-2)
        self.loss = torch.zeros(())
        self.ballast = torch.arange(ballast, dtype=torch.float32)  # makes checkpoints slow enough to be hit

    @property
    def done(self) -> bool:
        return self.until is not None and self.steps >= self.until

    def step(self, batch: Batch) -> None:
        x = batch.acts[self.sites[0]]
        loss = (x - x @ self.weight @ self.weight.T).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.detach()
        self.steps += 1

    def metrics(self) -> dict[str, float]:
        return {"loss": float(self.loss)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "weight": self.weight.detach(),
            "optimizer": optimizer_state(self.optimizer),
            "loss": self.loss,
            "steps": self.steps,
            "ballast": self.ballast,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight.data.copy_(state["weight"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.loss, self.steps = state["loss"], state["steps"]

    def save(self, folder: Path) -> None:
        write_tensors(folder / "weight.safetensors", {"weight": self.weight})


class Mean:
    """A measure, not a learner: the mean activation at every site. Keeps nothing."""

    kind = "measures"

    def __init__(self, name: str, sites: tuple[Site, ...]):
        self.name, self.sites, self.done = name, sites, False
        self.sums = {site: torch.zeros(WIDTHS[site]) for site in sites}
        self.rows = 0

    def step(self, batch: Batch) -> None:
        for site in self.sites:
            self.sums[site] += batch.acts[site].sum(0)
        self.rows += len(batch.origin)

    def metrics(self) -> dict[str, float]:
        return {str(site): float(total.mean() / self.rows) for site, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": {str(site): total for site, total in self.sums.items()}, "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.rows = {site: state["sums"][str(site)] for site in self.sites}, state["rows"]

    def save(self, folder: Path) -> None:
        pass


def tiny_stream(
    *, model: TinyModel | None = None, corpus: TinyCorpus | None = None, **options: Any
) -> ActivationStream:
    settings = {"batch": 32, "buffer": 400, "sites": (A, B), **options}
    return ActivationStream(model or TinyModel(sink=7), corpus or TinyCorpus(), **settings)


def tiny_run(folder: Path, *, seed: int = 0, ballast: int = 0, prefetch: int = 0, **options: Any) -> Run:
    """Two autoencoders and a measure over the whole corpus: about 70 steps."""
    stream = tiny_stream(seed=seed, prefetch=prefetch)
    consumers = [
        Autoencoder("first", A, seed=seed, ballast=ballast),
        Autoencoder("second", B, seed=seed, until=40),
        Mean("mean", (A, B)),
    ]
    config = {"seed": seed, "lr": 1e-2}
    run = Run.create(folder, config, stream.fingerprint(), resume=True)
    return train(stream, consumers, run, **{"log_every": 5, "checkpoint_every": 7, "progress": False, **options})


def _killed(folder: Path, chance: random.Random, attempt: int) -> bool:
    """Train in a child process and kill it: every other time as soon as a checkpoint is half written."""
    litter = {path.name for path in folder.glob("checkpoints/.*.tmp")}
    child = os.fork()
    if child == 0:
        tiny_run(folder, ballast=1_000_000, prefetch=2 * (attempt % 4 // 2))
        os._exit(0)
    mid_checkpoint, half_written = attempt % 2 == 0, chance.randint(1, 3)
    deadline = time.monotonic() + chance.uniform(0.01, 0.1)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        litter_now = {path.name for path in folder.glob("checkpoints/.*.tmp")} - litter
        half_written -= len(litter_now)
        litter |= litter_now
        if attempt < KILLS and (half_written <= 0 if mid_checkpoint else time.monotonic() > deadline):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.0002)
    return False


def main(folder: Path, seed: int) -> None:
    torch.set_num_threads(1)
    Autoencoder("warm", A).step(next(tiny_stream()))  # imports what the children would each import
    chance, kills, halves = random.Random(seed), 0, 0
    while _killed(folder, chance, kills):
        kills += 1
        halves += any(folder.glob("checkpoints/.*.tmp"))
    sys.stdout.write(f"{kills} {halves}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

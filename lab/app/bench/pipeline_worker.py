"""One contestant of `monosem bench pipeline`, in a process of its own, so that its memory is its own.

python -m monosem.lab.app.bench.pipeline_worker ASKED.json

A contestant harvests, buffers and trains with its own library. At row counts that were asked for the clock is stopped
while the dictionary is written, in the library's own format; the caller measures those files. The clock starts once the
model is loaded: tokenizing, estimates of a norm and filling a buffer are counted.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ....saes.training.config import TrainConfig, default_lr
from ....saes.training.trainer import Trainer
from ...errors import InputError
from ...models.hooked_model import HookedModel
from ...models.loading import load_model
from ...runs.loop import train
from ...storage import read_json, write_json
from ...streams.activation_stream import ActivationStream, Batch
from ...text.corpus import Corpus, TextConfig
from ...text.documents import is_heldout
from ...text.sources import open_source
from .contestant import imported
from .peers import SaeLens, Sparsify

CHARACTERS = 8
"""Characters of text taken for each row, so that no library runs out of text before its rows."""


@dataclass(frozen=True)
class Task:
    """Model, text, shape and goal of a contestant."""

    library: str
    matched: bool
    model: str
    dtype: str | None
    corpus: str
    text: dict[str, Any]
    site: str
    n_latents: int
    k: int
    batch: int
    rows: int
    marks: tuple[int, ...]
    """Row counts at which the dictionary is written."""
    folder: str
    """Folder of this contestant."""


class Clock:
    """Seconds of the contestant's own work, and the dictionaries it had on the way."""

    def __init__(self, task: Task) -> None:
        self.folder, self.marks = Path(task.folder), list(task.marks)
        self.found: list[dict[str, float]] = []
        self.spent, self.since = 0.0, time.perf_counter()

    def at(self, rows: int, save: Callable[[Path], object]) -> None:
        """Stop the clock and write the dictionary where a mark was passed."""
        if not self.marks or rows < self.marks[0]:
            return
        self.spent += time.perf_counter() - self.since
        self.marks = [mark for mark in self.marks if mark > rows]
        folder = self.folder / f"{rows:09d}"
        folder.mkdir(parents=True, exist_ok=True)
        save(folder)
        self.found.append({"rows": rows, "seconds": self.spent})
        self.since = time.perf_counter()


def ours(task: Task, model: HookedModel) -> Clock:
    """`train(stream, trainer)` with the defaults of stream and trainer."""
    text = TextConfig(**{**task.text, "split": "train"})
    clock = Clock(task)
    stream = ActivationStream(model, Corpus(task.corpus, model.tokenizer, text), [task.site], batch=task.batch,
                              buffer=max(2 * task.batch, min(65536, task.rows // 4)))  # fmt: skip
    trainer = Trainer.on(stream, task.site, "topk", n_latents=task.n_latents, k=task.k, rows=task.rows)

    class Watch(type(trainer)):  # type: ignore[misc]
        def step(self, batch: Batch, *rest: Any) -> None:
            super().step(batch, *rest)
            clock.at(self.rows, lambda folder: self.folded().save(folder / "dictionary"))

    trainer.__class__ = Watch
    train(stream, trainer, progress=False)
    return clock


def sae_lens(task: Task, model: HookedModel) -> Clock:
    """`LanguageModelSAETrainingRunner` on TransformerLens' bridge of the same module.

    Documented: its tutorial's harvest (contexts of 512, 16 prompts a forward, 64 batches in the buffer, norm estimate)
    and the trainer's defaults: 4,096 rows a step, constant 3e-4. The norm is estimated on 10 batches, not 1,000, which
    would take longer than a short run. Matched: our context, batch, learning rate and schedule; no special tokens.
    """
    lens, config = imported("sae_lens", SaeLens.INSTALL), imported("sae_lens.config", SaeLens.INSTALL)
    runner = imported("sae_lens.llm_sae_training_runner", SaeLens.INSTALL)
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        model.name, hf_model=model.module, tokenizer=model.tokenizer, device=str(model.device)
    )
    batch = task.batch if task.matched else 4096
    steps, schedule = -(-task.rows // batch), TrainConfig()
    own: dict[str, Any] = {"context_size": 512, "store_batch_size_prompts": 16, "lr": 3e-4}
    if task.matched:
        own = {"context_size": task.text["context"], "store_batch_size_prompts": task.text["batch_rows"],
               "lr": default_lr(task.n_latents, batch, task.rows), "lr_warm_up_steps": int(schedule.warmup * steps),
               "lr_decay_steps": int(schedule.decay * steps), "exclude_special_tokens": True}  # fmt: skip
    own["n_batches_in_buffer"] = max(64, -(-2 * batch // own["context_size"]))
    width = model.width(model.site(task.site))
    sae = lens.TopKTrainingSAEConfig(
        d_in=width, d_sae=task.n_latents, k=task.k, normalize_activations="expected_average_only_in"
    )
    clock = Clock(task)
    asked = config.LanguageModelSAERunnerConfig(
        sae=sae, model_name=model.name, hook_name=model.site(task.site).to_transformer_lens(), dataset_path="own",
        is_dataset_tokenized=False, streaming=False, training_tokens=steps * batch, train_batch_size_tokens=batch,
        n_batches_for_norm_estimate=10, checkpoint_path=None, output_path=None, verbose=False,
        logger=config.LoggingConfig(log_to_wandb=False), **own,
    )  # fmt: skip

    class Watched(runner.SAETrainer):
        def _checkpoint_if_needed(self) -> None:
            clock.at(self.n_training_samples, self.write)

        def write(self, folder: Path) -> None:
            copy = deepcopy(self.sae)
            copy.fold_activation_norm_scaling_factor(self.activation_scaler.scaling_factor)
            copy.save_inference_model(folder)

    runner.SAETrainer = Watched
    runner.LanguageModelSAETrainingRunner(asked, override_dataset=_texts(task), override_model=bridge).run()
    return clock


def sparsify(task: Task, model: HookedModel) -> Clock:
    """`Trainer` with its own hooks on the transformers module and its `chunk_and_tokenize`.

    Documented: 32 contexts of 2,048 tokens a step and its signed momentum. Matched: our context and batch, Adam with
    our learning rate, its linear schedule after our warm-up, and the BOS token left out.
    """
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    data = imported("sparsify.data", Sparsify.INSTALL)
    module, config = imported("sparsify.trainer", Sparsify.INSTALL), imported("sparsify.config", Sparsify.INSTALL)
    layer = model.site(task.site)
    if layer.kind != "resid_post":
        raise InputError(f"sparsify reads what a layer puts out: {task.site} is no resid_post")
    base: Any = model.module.base_model
    name = next(name for name in ("layers", "h") if hasattr(base, name))
    context = task.text["context"] if task.matched else 2048
    sequences = max(1, task.batch // context) if task.matched else 32
    own: dict[str, Any] = {}
    if task.matched:
        steps = -(-task.rows // (sequences * context))
        tokenizer: Any = model.tokenizer
        rate = default_lr(task.n_latents, sequences * context, task.rows)
        own = {"optimizer": "adam", "lr": rate, "exclude_tokens": [tokenizer.bos_token_id],
               "lr_warmup_steps": int(TrainConfig().warmup * steps)}  # fmt: skip
    asked = config.TrainConfig(
        config.SparseCoderConfig(num_latents=task.n_latents, k=task.k), batch_size=sequences,
        hookpoints=[f"{name}.{layer.layer}"], log_to_wandb=False, save_every=10**9,
        save_dir=str(Path(task.folder) / "checkpoints"), **own,
    )  # fmt: skip
    clock = Clock(task)
    tokens = data.chunk_and_tokenize(_texts(task), model.tokenizer, max_seq_len=context, num_proc=None,
                                     load_from_cache_file=False).shuffle(42)  # fmt: skip
    needed = -(-task.rows // (sequences * context)) * sequences
    if len(tokens) < needed:
        raise InputError(f"{task.corpus} gives {len(tokens)} contexts of {context} tokens and sparsify needs {needed}")

    class Watched(module.Trainer):
        watched = 0

        def get_current_k(self) -> int:
            # called once before the first step, and once after each
            self.watched += 1
            clock.at((self.watched - 1) * sequences * context, self.write)
            return super().get_current_k()

        def write(self, folder: Path) -> None:
            free = hasattr(self.optimizers[0], "eval")
            if free:
                self.optimizers[0].eval()
            next(iter(self.saes.values())).save_to_disk(folder)
            if free:
                self.optimizers[0].train()

    Watched(asked, tokens.select(range(needed)), base).fit()
    return clock


CONTESTANTS: dict[str, Callable[[Task, HookedModel], Clock]] = {
    "monosem": ours,
    "sae-lens": sae_lens,
    "sparsify": sparsify,
}
"""Library to how it runs."""


def _texts(task: Task) -> Any:
    """A data set of the documents that ours trains on: the training side of the split, in order."""
    from datasets import Dataset

    texts: list[str] = []
    size = 0
    for document in open_source(task.corpus).read():
        content = document.content
        if isinstance(content, str) and not is_heldout(content, task.text["heldout"]):
            texts.append(content)
            size += len(content)
        if size >= CHARACTERS * task.rows:
            break
    return Dataset.from_dict({"text": texts})


def work(path: Path) -> None:
    """Run the contestant of a task file; writes `found.json` into its folder."""
    asked = read_json(path)
    task = Task(**{**asked, "marks": tuple(asked["marks"])})
    start = time.perf_counter()
    peer_dtype = task.dtype or (None if task.matched or task.library == "monosem" else "fp32")
    model = load_model(task.model, dtype=peer_dtype, device="cpu" if task.library != "monosem" else None)
    loaded = time.perf_counter() - start
    clock = CONTESTANTS[task.library](task, model)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    dtype = str(model.dtype).removeprefix("torch.")
    write_json(Path(task.folder) / "found.json",
               {"marks": clock.found, "peak_bytes": peak, "load_seconds": loaded, "dtype": dtype,
                "task": asdict(task)})  # fmt: skip


if __name__ == "__main__":
    sys.stdout = sys.stderr
    try:
        work(Path(sys.argv[1]))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)

"""Shuffled batches of activations, the same bytes every time, wherever they are interrupted.

stream = ActivationStream(model, corpus, ["resid_post.6", "resid_post.12"], batch=4096, buffer=1_000_000)
for batch in stream:
    batch.acts[site]    # [4096, d]
    batch.origin        # [4096, 2]: document, offset
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import InputError, unknown
from ..models.sites import Site
from ..storage import State
from ..text.packing import TokenBatch
from .buffer import Mixing, ShuffleBuffer, rows_served
from .harvest import Chunk, Harvest, RowSource
from .prefetch import Prefetch

if TYPE_CHECKING:
    from .store import ActivationStore

SILENCE = 3.0
"""Seconds that the buffer may fill without a bar that shows it."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """The token batch that rows come from, for consumers that read whole texts or run the model again on them."""

    batch: TokenBatch
    rows: Bool[Tensor, "R T"]
    """Which positions are rows of the batch, in order."""
    acts: dict[Site, Float[Tensor, "R T d"]]
    """Activations at every token, rows or not; heads are flattened. Empty where the stream reads no site."""
    position: State
    """The corpus's state after this batch."""
    computed: Float[Tensor, "R T vocab"] | None = None
    """`logits`, where the stream serves them."""

    @property
    def logits(self) -> Float[Tensor, "R T vocab"]:
        """The model's logits in its own dtype.

        Raises:
            InputError: the stream stops the model at its last site.
        """
        if self.computed is None:
            raise InputError("this stream stops at its last site and has no logits: build it with TokenStream(...)")
        return self.computed


class Batch(NamedTuple):
    """Rows drawn from the whole buffer, aligned across sites: row i is the same token everywhere."""

    acts: dict[Site, Float[Tensor, "b d"]]
    origin: Int[Tensor, "b 2"]
    """(document, offset) of every row, on the CPU."""
    source: ForwardPass | None = None
    """Where rows come from, on a `TokenStream`."""


@dataclass(frozen=True)
class StreamConfig:
    """How rows are kept, shuffled and served."""

    batch: int = 2048
    """Rows per batch."""
    buffer: int = 65536
    """Rows in the shuffle buffer, at least two batches. Larger mixes better and costs only memory."""
    seed: int = 0
    """Seed of the shuffle."""
    reuse: int = 1
    """How many times a row is served on average before a new one takes its place."""
    prefetch: int | None = None
    """Token batches the model runs ahead in its thread; 0 runs it inline. Unset: 2 on an accelerator, 0 on
    a CPU, where the model and the training would compete for the same cores. Never changes a byte."""
    epochs: int | None = None
    """Passes over the corpus. Unset: as the corpus does, which may be without end."""
    max_norm_multiple: float | None = 10.0
    """Rows longer than this multiple of the site's median norm are dropped; None keeps all."""
    dtype: str | None = None
    """float32, bfloat16 or float16: what rows are kept and served in. Unset: as the source gives them."""
    buffer_device: str = "cpu"
    """Where the buffer lives."""

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        if self.prefetch is not None and self.prefetch < 0:
            raise InputError(f"prefetch={self.prefetch} is negative: use 0 to run the model inline")
        if self.max_norm_multiple is not None and not self.max_norm_multiple > 1:
            raise InputError(
                f"max_norm_multiple={self.max_norm_multiple} would drop half the rows or more: "
                "use a value above 1 (10 is usual), or None to keep every row"
            )
        try:
            torch.device(self.buffer_device)
        except RuntimeError:
            raise InputError(f"unknown buffer_device {self.buffer_device!r}: use cpu, cuda or cuda:N") from None

    def decides(self) -> dict[str, Any]:
        """The fields that change what is served."""
        return {k: v for k, v in asdict(self).items() if k not in ("prefetch", "buffer_device")}


class ActivationStream:
    """Model x corpus x sites -> shuffled batches. Iterate it once; `state_dict` continues it exactly.

    Args:
        model: a `HookedModel`.
        corpus: a `Corpus`.
        sites: where to read, as `Site` or text.
        norm_limit: keep rows up to these norms, instead of calibrating: pass a training stream's
            `norm_limit` to evaluate on rows chosen the same way.
        config: a `StreamConfig`; its fields may also be given by name.

    Raises:
        InputError: no site or an option out of range; while iterating, activations that are not finite or a
            source without a single usable row. The stream stays usable and loses no row.
    """

    def __init__(
        self,
        model: Any,
        corpus: Any,
        sites: Sequence[Site | str] | Site | str,
        *,
        norm_limit: Mapping[Site | str, float] | None = None,
        config: StreamConfig | None = None,
        **options: Any,
    ):
        config = _configured(config, options)
        if not hasattr(model, "site"):
            raise InputError(f"a stream reads a model that load_model returns, not {type(model).__name__}:"
                             " give ActivationStream(model, corpus, sites)")  # fmt: skip
        wanted = [sites] if isinstance(sites, Site | str) else sites
        distinct = dict.fromkeys(model.site(site) for site in wanted)
        if not distinct:
            raise InputError("a stream needs at least one site, such as 'resid_post.12'")
        limits = {model.site(site): limit for site, limit in (norm_limit or {}).items()}
        if limits and (missing := [str(site) for site in distinct if site not in limits]):
            raise InputError(f"norm_limit has no limit for {', '.join(missing)}: give one for every site")
        dtype = DTYPES[str(config.dtype)] if config.dtype else model.dtype
        where = torch.device(config.buffer_device)
        source = Harvest(model, corpus, tuple(distinct), dtype, where, config.max_norm_multiple, config.epochs)
        self._set_up(source, config, torch.device(model.device), limits)

    @classmethod
    def from_store(
        cls,
        store: ActivationStore,
        *,
        sites: Sequence[Site | str] | None = None,
        mix: int = 4,
        device: torch.device | str = "cpu",
        config: StreamConfig | None = None,
        **options: Any,
    ) -> ActivationStream:
        """A stream that reads a store once, `mix` shards at a time, shards in an order drawn from `seed`.

        Rows were filtered when the store was written, so `max_norm_multiple` has no say here.
        """
        config = _configured(config, options)
        source = store.source(sites, mix=mix, seed=config.seed, dtype=DTYPES.get(str(config.dtype)))
        stream = cls.__new__(cls)
        stream._set_up(source, config, torch.device(device), store.norm_limit)
        return stream

    def _set_up(
        self, source: RowSource, config: StreamConfig, device: torch.device, limits: Mapping[Site, float]
    ) -> None:
        self.config, self.device = config, device
        self.widths = dict(source.widths)
        self.sites = tuple(self.widths)
        self._source, self._limits = source, dict(limits)
        self._buffer = ShuffleBuffer(
            config.buffer,
            self.widths,
            config.batch,
            seed=config.seed,
            reuse=config.reuse,
            dtype=source.dtype,
            device=config.buffer_device,
            pin=device.type == "cuda",
        )
        self._chunks: Prefetch | None = None
        self._source_state: Any = None  # after the last chunk taken from the source
        self._acts: dict[Site, Tensor] = {}  # of that chunk
        self._origin = torch.empty(0, 2, dtype=torch.int64)
        self._taken = 0  # rows of it that are in the buffer
        self._exhausted = False
        self._cancelled = threading.Event()
        self.counts: dict[str, Any] = {
            "tokens": 0,
            "kept": 0,
            "dropped_special": 0,
            "dropped_norm": {str(site): 0 for site in self.sites},
            "served": 0,
        }
        """Tokens read, rows kept and dropped (why, and at which site), rows served."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of served rows."""
        return self._source.dtype

    @property
    def norm_limit(self) -> dict[Site, float]:
        """The largest norm kept at each site. Reads the first chunk if nothing was read yet."""
        if not self._limits:
            self._pull()
        return dict(self._limits)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        waiting = self.counts["served"] == 0 and self._buffer.room
        with tqdm(total=self.config.buffer, desc="fill buffer", unit="row", unit_scale=True, leave=False,
                  delay=SILENCE, disable=not waiting) as bar:  # fmt: skip
            while self._buffer.room:
                taken = self._buffer.put(self._acts, self._origin, self._taken)
                self._taken += taken
                bar.update(taken)
                if not taken:
                    self._pull()
                if self._exhausted and self._taken == len(self._origin):
                    self._buffer.finish()
        if self._buffer.empty:
            raise StopIteration
        acts, origin = self._buffer.take()
        self.counts["served"] += len(origin)
        return Batch({site: rows.to(self.device, non_blocking=True) for site, rows in acts.items()}, origin)

    def _pull(self) -> None:
        """Take the next chunk from the source. Leaves everything as it was if that fails."""
        if self._cancelled.is_set():
            self.close()
            raise KeyboardInterrupt
        if self._exhausted:
            return
        if self._chunks is None:
            ahead = self.config.prefetch
            if ahead is None:
                ahead = 0 if self.device.type == "cpu" else 2
            self._chunks = Prefetch(self._source.chunks(self._source_state, self._limits), ahead, self.device)
        try:
            chunk = next(self._chunks, None)
        except BaseException:
            self.close()  # the next call reads the failed chunk again
            raise
        if chunk is not None:
            self._accept(chunk)
        elif not self.counts["kept"]:
            raise InputError(
                f"the source gave {self.counts['tokens']} tokens and not one usable row: "
                "check that the corpus is not empty and that its documents are not all special tokens"
            )
        else:
            self._exhausted = True
            self.close()

    def _accept(self, chunk: Chunk) -> None:
        self._acts, self._origin, self._taken = chunk.acts, chunk.origin, 0
        self._source_state, self._limits = chunk.state, dict(chunk.limits)
        self.counts["tokens"] += chunk.tokens
        self.counts["kept"] += len(chunk.origin)
        self.counts["dropped_special"] += chunk.special
        for site, count in chunk.too_long.items():
            self.counts["dropped_norm"][str(site)] += count

    def mixing(self) -> Mixing:
        """How well the last batch mixed documents."""
        return self._buffer.mixing()

    def metrics(self) -> dict[str, int | float]:
        """Counts and mixing, as numbers for a log."""
        counts, mixing = self.counts, self.mixing()
        return {
            "dropped_special": counts["dropped_special"],
            **{f"dropped_norm.{site}": count for site, count in counts["dropped_norm"].items()},
            "same_document": mixing.observed,
            "same_document_expected": mixing.expected,
        }

    def rows_at_most(self, enough: int) -> int | None:
        """Count the rows that the whole stream can serve, `reuse` included, where that is known before it is read.

        A store gives its exact number. Texts in a file or in memory give their usable tokens: rows over the norm limit
        are known only to the model. Counting stops at `enough`.

        Returns:
            The count, `enough` or more if there are at least so many; None where the source has no end or is streamed.
        """
        count = getattr(self._source, "rows_at_most", None)
        rows = None if count is None else count(enough)
        if rows is None:
            return None
        return rows_served(rows, self.config.buffer, self.config.batch, self.config.reuse)

    def cancel(self) -> None:
        """Let the next read of the source raise KeyboardInterrupt instead: for signal handlers."""
        self._cancelled.set()

    def close(self) -> None:
        """End the harvest thread. Iterating again starts it where the stream stands."""
        self._cancelled.clear()
        if self._chunks is not None:
            self._chunks.close()
            self._chunks = None

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the bytes served: the source, the sites and the options."""
        return {
            **self._source.fingerprint(),
            "sites": [str(s) for s in self.sites],
            "stream": self.config.decides(),
        }

    def state_dict(self) -> State:
        """Everything needed to continue to the byte. The tensors are the stream's own: write or clone them
        before the next batch. Chunks computed ahead are left out; they are computed again."""
        return {
            "buffer": self._buffer.state_dict(),
            "chunk": {
                "acts": {str(site): rows[self._taken :] for site, rows in self._acts.items()},
                "origin": self._origin[self._taken :],
            },
            "source": self._source_state,
            "exhausted": self._exhausted,
            "norm_limit": {str(site): limit for site, limit in self._limits.items()},
            "counts": {**self.counts, "dropped_norm": dict(self.counts["dropped_norm"])},
        }

    def load_state_dict(self, state: State) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            InputError: the state is of a stream with other sites or another buffer.
        """
        self.close()
        self._buffer.load_state_dict(state["buffer"])
        where = torch.device(self.config.buffer_device)
        by_name = {str(site): site for site in self.sites}
        self._acts = {by_name[name]: rows.to(where) for name, rows in state["chunk"]["acts"].items()}
        self._origin, self._taken = state["chunk"]["origin"], 0
        self._source_state, self._exhausted = state["source"], state["exhausted"]
        self._limits = {by_name[name]: limit for name, limit in state["norm_limit"].items()}
        self.counts = {**state["counts"], "dropped_norm": dict(state["counts"]["dropped_norm"])}

    def __repr__(self) -> str:
        sites = ", ".join(f"{site} [{width}]" for site, width in self.widths.items())
        c = self.config
        return f"ActivationStream({sites}; batches of {c.batch} from {c.buffer} rows, seed {c.seed})"


def _configured(config: StreamConfig | None, options: Mapping[str, Any]) -> StreamConfig:
    allowed = StreamConfig.__dataclass_fields__
    for name in options:
        if name not in allowed:
            raise unknown("stream option", name, allowed)
    config = config or StreamConfig()
    return replace(config, **options)

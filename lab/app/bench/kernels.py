"""`monosem bench kernels`: each kernel beside its plain twin, with the rates it reaches and those of the machine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ....kernels.explain import explain
from ...errors import InputError, unknown
from ...table import markdown
from .ceilings import ceilings
from .command import Bench
from .kernel_cases import CASES, Bed, Case
from .shapes import device, shapes_of
from .tables import append, rounded
from .timing import interleaved

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchKernels(Bench):
    """Time each kernel and its plain PyTorch twin in turn on fresh inputs, and check that they agree."""

    example = "monosem bench kernels --rounds 2"

    shape: str = "first"
    """Shapes d,n,k,batch, parted by spaces; or `first`, or `all` of those this kind of machine is measured at."""
    only: str = ",".join(CASES)
    """Kernels, comma-separated."""
    rounds: int = 5
    """Timed rounds."""
    warmup: int = 1
    """Rounds before them."""
    write: bool = False
    """Append the table to kernels/BENCHMARKS.md."""

    def race(self) -> dict[str, Any]:
        """JSON key `shapes`: by shape, what the dispatcher runs and why, the machine's ceilings and, for each kernel,
        seconds, speed-ups and rates.

        Raises:
            ArithmeticError: a kernel and its twin disagree by more than the kernel's tolerance.
        """
        if self.rounds < 1 or self.warmup < 0:
            raise InputError(f"at least one timed round is needed, got rounds={self.rounds} and warmup={self.warmup}")
        names = [name.strip() for name in self.only.split(",") if name.strip()]
        for name in names:
            if name not in CASES:
                raise unknown("kernel", name, CASES)
        results: dict[str, Any] = {}
        for shape in shapes_of(self.shape):
            log.info("%s: ceilings, then %s", shape, ", ".join(names))
            limits = ceilings(shape)
            bed = Bed(shape)
            results[str(shape)] = {
                "plan": explain(device(), d_in=shape.d, n_latents=shape.n, k=shape.k, batch=shape.batch),
                "ceilings": limits,
                "kernels": {name: self._timed(CASES[name](bed)) for name in names},
            }
        if self.write:
            command = f"monosem bench kernels --shape '{self.shape}' --rounds {self.rounds} --only {self.only}"
            append("Kernels", command, table(results))
        return {"shapes": results}

    def _timed(self, case: Case) -> dict[str, Any]:
        calls: dict[str, Callable[[Any], Any]] = {"monosem": case.ours, **case.others}
        inputs: Any = None
        results: dict[str, Any] = {}
        worst = 0.0

        def prepare(number: int) -> None:
            nonlocal inputs, worst
            worst = max([worst, *(case.error(results["monosem"], results[name]) for name in case.others if results)])
            results.clear()
            inputs = case.fresh()

        turns = {
            name: lambda number, name=name, call=call: results.update({name: call(inputs)})
            for name, call in calls.items()
        }
        seconds = interleaved(turns, self.rounds, self.warmup, prepare)
        prepare(-1)  # compares the last round
        if not worst <= case.tolerance:
            raise ArithmeticError(f"{case.name} is off by {worst:.2g}, more than {case.tolerance:.2g}")
        ours = seconds["monosem"]
        return {
            "seconds": seconds,
            "ratio": {name: seconds[name] / ours for name in case.others},
            "bytes_per_second": case.bytes / ours,
            "flops_per_second": case.flops / ours,
            "error": worst,
            "note": case.note,
        }


def table(results: dict[str, Any]) -> str:
    """One row for each kernel at each shape, after a row of the machine's ceilings."""
    rows = []
    for shape, result in results.items():
        limits = result["ceilings"]
        products = ", ".join(
            f"{name.partition('_')[0]} {rounded(value)}" for name, value in limits.items() if "flops" in name
        )
        rows.append([shape, "*ceilings*", "", "", "", rounded(limits["copy_bytes_per_second"]), products, ""])
        for name, timed in result["kernels"].items():
            label = f"{name} ({timed['note']})" if timed["note"] else name
            ratios = [f"{timed['ratio'][other]:.2f}" if other in timed["ratio"] else "" for other in ("reference",
                      "torch.topk")]  # fmt: skip
            flops = rounded(timed["flops_per_second"]) if timed["flops_per_second"] else ""
            rows.append([shape, label, f"{1e3 * timed['seconds']['monosem']:.2f}", *ratios,
                         rounded(timed["bytes_per_second"]), flops, f"{timed['error']:.1e}"])  # fmt: skip
    names = ("d,n,k,batch", "kernel", "ms", "x reference", "x torch.topk", "bytes/s", "FLOP/s", "error")
    return markdown(names, rows)

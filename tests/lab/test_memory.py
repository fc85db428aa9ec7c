"""Freed memory is kept: repeating the same layers faults no page in again."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
from monosem.lab.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
weight = torch.randn(576, 1536)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    x = torch.ones(2048, 576)
    for _ in range(4): x = torch.nn.functional.silu(x @ weight) * (x @ weight) @ weight.T
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, [faults() for _ in range(6)][-1])
"""


def probe(mode: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_blocks_are_not_faulted_in_again():
    (kept, few), (_, many) = probe("keep"), probe("leave")
    assert kept == "True"
    assert few < many / 10

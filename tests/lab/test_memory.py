"""Freed memory is kept: a second round of the same allocations faults nothing in."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys, torch
from monosem.lab.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def round():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(4 << 20) for _ in range(6)]; del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
round()
print(kept, round())
"""


def faults(mode: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_blocks_are_not_faulted_in_again():
    (kept, few), (_, many) = faults("keep"), faults("leave")
    assert kept == "True"
    assert few < many / 20

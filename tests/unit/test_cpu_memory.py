"""Freed memory stays with the process while it trains, and no longer."""

import ctypes
import subprocess
import sys

import pytest

SIZE = 192 * 2**20
"""Of all tensors that are alive at once."""
PROGRAM = """
import contextlib, resource, sys, torch
from kd.cpu_memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(6 * 2**20) for _ in range(8)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
with freed_memory_kept() if sys.argv[1] == "kept" else contextlib.nullcontext():
    # The heap needs a few rounds until its pieces have the sizes that are asked for.
    for _ in range(30):
        faults()
    again, inside = faults(), resident()
given_back = inside - resident()
print(again, given_back, faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_serves_again_and_is_given_back_at_the_end() -> None:
    results = {}
    for mode in ("kept", "as ever"):
        command = [sys.executable, "-c", PROGRAM, mode]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results[mode] = [int(word) for word in output.split()]
    again, given_back, afterwards = results["kept"]
    as_ever = results["as ever"][0]
    # Tensors find the pages of those before them.
    assert again * 2 < as_ever
    assert given_back > 0.7 * SIZE
    # All is as before: tensors take fresh pages.
    assert afterwards > as_ever / 2

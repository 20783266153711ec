"""What the process asks of the machine it runs on."""

import ctypes
import subprocess
import sys

import pytest

from vnca import hardware

FAULTS = """
import resource
import torch
from vnca import hardware

if {keep}:
    hardware.keep_memory()
for turn in range(30):
    torch.ones(16 * 2**20)  # 64 MiB, freed at once
    if turn == 9:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs the C library of GNU"
)
def test_memory_that_is_kept_is_not_asked_for_again():
    faults = {
        keep: int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True).stdout)
        for keep in (True, False)
    }
    assert faults[True] < 100 < faults[False] / 10, "pages that Linux had to give"


@pytest.mark.parametrize(
    ("limit", "accepted"), [(2**40, [(-3, 2**30), (-1, 2**30)]), (2**25, [(-3, 2**25), (-1, 2**25)]), (0, [])]
)
def test_the_c_library_is_asked_for_as_much_as_it_accepts_and_else_left_alone(monkeypatch, limit, accepted):
    """Older versions refuse a large threshold for blocks, and take the other one, which alone makes things worse."""
    calls = []

    class Library:
        @staticmethod
        def mallopt(name, size):
            if name == hardware.M_MMAP_THRESHOLD and size > limit:
                return 0
            calls.append((name, size))
            return 1

    monkeypatch.setattr(hardware.sys, "platform", "linux")
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: Library)
    hardware.keep_memory()
    assert calls == accepted

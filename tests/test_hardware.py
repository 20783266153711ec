"""What the process asks of the machine it runs on."""

import ctypes
import subprocess
import sys

import pytest

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

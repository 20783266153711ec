"""What a figure was measured on: device, precision, machine and commit."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
KEPT_BYTES = (2**30, 2**25)  # blocks up to this size, and so many free bytes at the end, are kept: the first accepted
PRECISIONS = {"bf16": "bfloat16 autocast", "fp16": "float16 autocast", "no": "float32"}


def best_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices by itself, so that autocast saves time."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere and later; earlier ones emulate it
    if hasattr(torch.cpu, "get_capabilities"):
        flags = {name for name, there in torch.cpu.get_capabilities().items() if there}
    else:  # older versions of torch do not tell, but Linux does
        flags = set(_cpuinfo("flags").split())
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16", "sve_bf16"})


def precision(device: torch.device) -> str:
    """The arithmetic of training, in the words of Accelerate: `"bf16"`, `"fp16"` or `"no"` (float32).

    bfloat16 where the device multiplies it by itself; float16, whose gradients need scaling, on GPUs with tensor cores
    for that alone (a T4); else float32.
    """
    if has_bfloat16(device):
        return "bf16"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0):
        return "fp16"
    return "no"


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision in bfloat16 where the device has it, else a context that changes nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bfloat16(device))


def keep_memory() -> None:
    """Let this process keep the memory of freed tensors for the next ones, where the C library is that of GNU.

    It would give large blocks back to Linux and ask for them again in every layer, and Linux clears each page anew.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):  # else it is another C library
        for size in KEPT_BYTES:  # older versions refuse more than 32 MiB
            if library.mallopt(M_MMAP_THRESHOLD, size):
                # Never alone: it would end the adaptation of the other threshold, and more blocks would be given back.
                library.mallopt(M_TRIM_THRESHOLD, size)
                break


def machine(device: torch.device) -> str:
    """The name of the GPU, or of the CPU with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {os.cpu_count()} cores"


def describe(device: torch.device) -> str:
    """One line on the machine and the precision it trains in, as results record it."""
    return f"{machine(device)}, {PRECISIONS[precision(device)]}"


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """The first value of a key that Linux tells about the CPU, or nothing."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.is_file() else ():
        if line.startswith(key):
            return line.split(":", 1)[1].strip()
    return ""


def commit() -> str | None:
    """The commit of the checkout the package runs from, or None where it is not a checkout."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        answer = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # no git program
        return None
    return answer.stdout.strip() or None

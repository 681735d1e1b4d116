"""The machine that was measured on, and its ceilings: arithmetic and memory."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

CPU_INFO = Path("/proc/cpuinfo")
MATRIX = 2048
COPY_BYTES = 1 << 28
ROUNDS = 5
PACKAGES = ("torch", "monai", "numpy", "scipy", "nibabel")


def describe_machine() -> dict[str, Any]:
    """Return processor, memory, versions and ceilings; no name of the machine."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "sgemm_gflops": round(sgemm_gflops(), 1),
        "copy_gb_per_s": round(copy_gb_per_s(), 1),
    }


def sgemm_gflops() -> float:
    """Return how fast float32 matrices are multiplied with all threads, the best of some rounds."""
    a, b = torch.rand(MATRIX, MATRIX), torch.rand(MATRIX, MATRIX)
    return 2 * MATRIX**3 / _best_seconds(lambda: a @ b) / 1e9


def copy_gb_per_s() -> float:
    """Return how fast memory is copied, read and write counted once."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8)
    target = torch.zeros(COPY_BYTES, dtype=torch.uint8)
    return COPY_BYTES / _best_seconds(lambda: target.copy_(source)) / 1e9


def _best_seconds(function: Any) -> float:
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _processor() -> str:
    for line in CPU_INFO.read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()

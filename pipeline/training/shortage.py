"""Out of memory, a loader worker killed or stuck: told as what it is, with what to try instead."""

from __future__ import annotations

import multiprocessing
import re
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.data.caching import free_memory_bytes
from pipeline.errors import PipelineError, ResourceError
from pipeline.inference.memory import free_bytes, is_out_of_memory

# torch has no class for it.
WORKER_FAILED = re.compile(
    r"DataLoader worker .*(killed by signal|exited unexpectedly)|DataLoader timed out", re.DOTALL
)
# What a worker says that finds no room for a batch where it is handed over.
NO_SHARED_MEMORY = re.compile(r"shared memory|unable to (write to|resize|mmap) ")
KIB = 1024  # getrusage counts in these on Linux


@contextmanager
def naming_shortages(
    settings: Mapping[str, Any],
    *,
    doing: Callable[[], str],
    remedy: str,
    device: torch.device,
    needed_bytes: int = 0,
) -> Iterator[None]:
    """Raise ResourceError in place of what libraries raise when memory is short.

    Args:
        settings: Of the run.
        doing: Says what was being done when it happened.
        remedy: What to try if memory was short.
        device: Where the memory was asked for.
        needed_bytes: The least memory that a training step takes, as predicted; 0 if none is done.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if (told := _of_a_worker(error)) is not None:
            _end_workers()
            fewer = settings["loading"]["num_workers"] // 2
            raise ResourceError(
                f"a loader worker failed {doing()}: {told} The kernel kills workers when memory or "
                f"shared memory is short; {free_memory_bytes() / 1e9:.2f} GB of memory are free "
                f"now. Go on with --resume --set loading.num_workers={fewer}, or free some memory."
            ) from error
        if not is_out_of_memory(error):
            raise
        need = f"A step needs at least {needed_bytes / 1e9:.2f} GB; " if needed_bytes else ""
        raise ResourceError(
            f"out of memory {doing()}. {need}the peak was {_peak_bytes(device) / 1e9:.2f} GB, free "
            f"are {free_bytes(device) / 1e9:.2f} GB. {remedy}"
        ) from error


def smaller_step(settings: Mapping[str, Any], device: torch.device) -> str:
    """Return the setting to try first where a training step does not fit."""
    training, preprocessing = settings["training"], settings["preprocessing"]
    if device.type == "cuda" and not training["amp"]:
        setting = "training.amp=true"
    elif training["batch_size"] > 1:
        setting = f"training.batch_size={training['batch_size'] // 2}"
    elif preprocessing["spacing_mm"] is None:
        setting = "preprocessing.spacing_mm=2.0"
    else:
        setting = f"preprocessing.spacing_mm={1.5 * preprocessing['spacing_mm']:g}"
    return f"Start a new run with --set {setting}, or use a machine with more memory."


def smaller_cache(settings: Mapping[str, Any]) -> str:
    """Return what to try where the cases that are being cached do not fit."""
    fraction = settings["loading"]["cache_memory_fraction"]
    return (
        f"Repeat the command with --set loading.cache_memory_fraction={fraction / 2:g}, end other "
        "programs, or use a machine with more memory."
    )


def _of_a_worker(error: Exception) -> str | None:
    """Return torch's first line about a worker that died, is stuck or had no room; else None."""
    text = str(error)
    if isinstance(error, RuntimeError) and WORKER_FAILED.search(text):
        return text.splitlines()[0]
    if isinstance(error, (RuntimeError, OSError)) and NO_SHARED_MEMORY.search(text):
        return text.splitlines()[-1]
    return None


def _end_workers() -> None:
    """Kill what is left: a worker that the kernel has stopped would hold up the end for ever."""
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises for each worker that dies, wherever the command has come to.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB

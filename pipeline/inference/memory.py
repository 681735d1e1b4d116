"""What is done when memory runs out all the same: smaller windows, or an error with numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import torch

from pipeline.data.caching import free_memory_bytes
from pipeline.errors import ResourceError
from pipeline.inference.needs import times
from pipeline.model.heap import kept_bytes

LOG = logging.getLogger(__name__)
# Torch says it of the CPU in a bare RuntimeError (c10's allocator; oneDNN's; cuDNN's workspace).
PHRASES = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")

Window: TypeAlias = tuple[int, ...] | None
Result = TypeVar("Result")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what a library has wrapped in it, says that memory has run out."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in PHRASES):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_bytes(device: torch.device) -> int:
    """Return the memory that may still be taken on `device`; what is kept for that counts."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory_bytes() + kept_bytes()


def fitting(
    attempt: Callable[[Window], Result],
    window: Window,
    *,
    smaller: Callable[[Window], Window],
    name: str,
) -> tuple[Result, Window]:
    """Return what `attempt` gives, and the window with which it did not run out of memory.

    Args:
        attempt: Is called with a window; begins anew each time.
        window: The first.
        smaller: Gives the window to try after one, or raises `ResourceError`.
        name: Of the model, for the log.

    Raises:
        ResourceError: No smaller window is left, or none may be chosen.
    """
    while True:
        try:
            return attempt(window), window
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Beyond the `except`: what it holds keeps the tensors of the pass alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        window = smaller(window)
        LOG.warning("%s: out of memory; again, in windows of %s", name, times(window or ()))


@contextmanager
def memory_told(case: str) -> Iterator[None]:
    """Turn any other want of memory while a case is done into an error that names the case.

    Raises:
        ResourceError: Memory ran out within.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        free = free_memory_bytes() / 1e9
        raise ResourceError(
            f"{case}: out of memory ({free:.2f} GB free). End other programs, or use a machine "
            "with more memory; repeat the command to go on with this case."
        ) from error

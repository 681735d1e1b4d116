"""What becomes of memory that has been freed: kept for the next tensor, or given back at once.

A pass through a network takes and frees dozens of large tensors. By default glibc gives each of
them back to the kernel and fetches it anew, page by page: a third of the processor time of a pass.
Kept, it costs nothing. But then the tensors lie in a heap where oneDNN's small, lasting blocks end
up between them: with volumes of different sizes it held up to three and a half times what the pass
needed, and more with every volume (glibc 2.36). So freed memory is kept where there is room for
that, and up to a limit.

All threads share one heap: in one of its own a thread would keep nothing, and get every large
block from the kernel again.

Given back, it is at once and all of it, so that a pass takes what it is predicted to take. Glibc's
own rule for small tensors, a threshold that rises while it runs, lets the heap grow too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from os import environ
from typing import Any

import psutil

# What mallopt(3) calls them, and the variables with which users set the same.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
USERS_OWN = (
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
)
TUNABLES = "GLIBC_TUNABLES"

# Larger blocks are no part of the heap, unless they are kept.
LARGE_BYTES = 16 * 2**20
# Of smaller ones so much stays at the heap's end. Never and all are what these numbers mean.
SPARE_BYTES = 256 * 2**20
NEVER_TRIM = -1
KEEP_ALL = 2**31 - 1
# As many times what a pass needs must be free for memory to be kept, and is kept at most.
ROOM = 4
# So much may always be kept: what is needed for small volumes is not worth giving back.
LITTLE_BYTES = 2**30


class _MallocInfo(ctypes.Structure):
    """mallinfo2(3)."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def settle_memory() -> str:
    """Let freed blocks go back at once until `keep_freed_memory` is called, and say so in a line.

    To be called before other threads are started: a heap that a thread has already remains.
    What the user has chosen by environment variables is left alone, and so is any C library but
    glibc 2.33 or later.
    """
    if chosen := _chosen_by_user():
        return f"Memory: freed blocks are kept as {', '.join(chosen)} says."
    library = _glibc()
    if library is None:
        return "Memory: freed blocks are kept as this C library does it."
    library.mallopt(M_ARENA_MAX, 1)
    _keep(False)
    return (
        "Memory: freed blocks are kept for the next where there is room for it, and given back "
        "at once elsewhere (glibc's mallopt)."
    )


def keep_freed_memory(needed_bytes: int, *, free_bytes: int) -> bool:
    """Keep freed blocks from now on if there is room for it, else give back all; return which.

    Where there is room, all is given back too whenever too much has been kept. To be called before
    every pass, or once before many of the same size.

    Args:
        needed_bytes: memory of a pass.
        free_bytes: memory that the process may still take.
    """
    library = _glibc()
    if library is None or _chosen_by_user():
        return False
    has_room = ROOM * needed_bytes <= free_bytes
    _keep(has_room)
    if not has_room or kept_bytes() > max(ROOM * needed_bytes, LITTLE_BYTES):
        give_back()
    return has_room


def give_back() -> None:
    """Give all freed memory back to the system; on glibc only."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def kept_bytes() -> int:
    """Return about how much freed memory the process keeps; 0 where it cannot be known."""
    library = _glibc()
    if library is None:
        return 0
    info = library.mallinfo2()
    process = psutil.Process().memory_info()
    # What the heap calls free may have been given back already, between blocks in use; what is in
    # memory without being in use may be none of the heap's.
    unused = process.rss - process.shared - info.uordblks - info.hblkhd
    return max(min(info.fordblks, unused), 0)


def _keep(wanted: bool) -> None:
    mallopt: Callable[[int, int], int] = _glibc().mallopt
    mallopt(M_MMAP_THRESHOLD, KEEP_ALL if wanted else LARGE_BYTES)
    mallopt(M_TRIM_THRESHOLD, NEVER_TRIM if wanted else SPARE_BYTES)


def _chosen_by_user() -> list[str]:
    chosen = [name for name in USERS_OWN if name in environ]
    return chosen + [TUNABLES] * ("glibc.malloc." in environ.get(TUNABLES, ""))


def _glibc() -> Any:
    """Return the C library, or None where it is not glibc or too old."""
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # only glibc has it
        library.mallinfo2.restype = _MallocInfo
    except (OSError, TypeError, AttributeError):  # TypeError: Windows
        return None
    return library

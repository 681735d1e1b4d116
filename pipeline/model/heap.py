"""How the process takes memory and gives it back: set once, before torch takes its first.

A pass through a network takes and frees dozens of large tensors. What glibc and torch do by
default costs twice. The kernel hands every tensor out anew in pages of 4 KB, each with a fault of
its own: a third of the processor time of a pass. And blocks below 32 MB come from a heap in which
oneDNN's small, lasting blocks end up between the tensors: with volumes of different sizes, it grew
with every volume, by a tenth of what a pass takes (glibc 2.36), and little of it was used again.

So tensors are put into huge pages of 2 MB, and large blocks are no part of the heap: what is freed
is free for everybody, at once, and what a pass is predicted to take is what it takes. To keep freed
blocks instead would be as fast, but the heap then grew to three times what was predicted.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

# Read by torch when it takes its first memory, and never again.
TORCH_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
KERNEL_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# What mallopt(3) calls them, and the variables with which users set the same.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
USERS_OWN = (
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
)
TUNABLES = "GLIBC_TUNABLES"

# From here on a block is taken from the system, and goes back there when it is freed.
LARGE_BYTES = 4 * 2**20
# Of smaller blocks so much is kept for reuse at the end of the heap.
SPARE_BYTES = 256 * 2**20


def settle_memory() -> str:
    """Choose how memory is taken from now on, and return in a line what was chosen.

    What the user has chosen by environment variables is left alone, and so is any C library but
    glibc. To be called before torch takes its first memory; again, it changes nothing.
    """
    return f"Memory: {_settle_pages()}; {_settle_heap()}."


def _settle_pages() -> str:
    if os.environ.setdefault(TORCH_HUGE_PAGES, "1") != "1":
        return f"ordinary pages, as {TORCH_HUGE_PAGES} says"
    if "[never]" in _kernel_setting():
        return "ordinary pages, as the kernel offers no others"
    return "tensors in huge pages"


def _kernel_setting() -> str:
    try:
        return KERNEL_HUGE_PAGES.read_text()
    except OSError:  # no Linux, or a kernel without huge pages
        return "[never]"


def _settle_heap() -> str:
    chosen = [name for name in USERS_OWN if name in os.environ]
    if "glibc.malloc." in os.environ.get(TUNABLES, ""):
        chosen.append(TUNABLES)
    if chosen:
        return f"the heap as {', '.join(chosen)} says"
    mallopt = _glibc_mallopt()
    if mallopt is None:
        return "the heap as this C library has it"
    mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
    mallopt(M_TRIM_THRESHOLD, SPARE_BYTES)
    return f"freed blocks from {LARGE_BYTES // 2**20} MB on go back to the system at once"


def _glibc_mallopt() -> Callable[[int, int], int] | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # only glibc has it
        return library.mallopt
    except (OSError, TypeError, AttributeError):
        return None

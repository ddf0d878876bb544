"""What malloc keeps of this process's memory, and how to have it kept or given back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from vitrail.profiling.heap import INITIAL_THRESHOLD, MOST_THRESHOLD, PAGE

__all__ = ["freed_memory_kept", "give_back", "malloc_state"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
"""glibc's names of what `mallopt` sets, malloc.h."""
_MMAP_MAX = 65536
"""Mapped blocks at a time, glibc's default."""
_MALLOC_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


def give_back() -> None:
    """Have malloc return free memory to the system, so that what is resident is in use."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within this block malloc keeps what is freed, and gives it back at the end.

    A training step frees gigabytes that the next one asks for again. glibc returns large blocks at once, and
    the system has to find and clear their pages anew: 282,000 page faults in an fp32 step of Swin-T at batch
    16, a tenth of its time. The setting is the whole process's. Other allocators are left as they are.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        # Setting any of them ends their adapting: what it would come to with large blocks stays.
        libc.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        libc.mallopt(_M_MMAP_THRESHOLD, MOST_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * MOST_THRESHOLD)
        give_back()


class _MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MALLOC_FIELDS]


def malloc_state() -> tuple[int, int]:
    """(bytes from which malloc maps a block on its own, free bytes at its heap's end), as they are now."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):  # not glibc, or one before 2.33
        return INITIAL_THRESHOLD, 0
    libc.mallinfo2.restype = _MallocInfo
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    low, high = INITIAL_THRESHOLD, MOST_THRESHOLD
    while high - low > PAGE:
        middle = (low + high) // 2
        mapped = libc.mallinfo2().hblks
        block = libc.malloc(middle)
        if libc.mallinfo2().hblks > mapped:
            high = middle  # not freed: that would move the threshold; no page of it is touched
        else:
            low = middle
            libc.free(block)
    return low, int(libc.mallinfo2().keepcost)

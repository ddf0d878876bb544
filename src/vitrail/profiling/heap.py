"""What the system's allocator makes of a sequence of allocations: glibc's malloc, replayed.

PyTorch on CPUs asks malloc for every tensor, so the memory of a process is not what its tensors hold but
what malloc keeps for them. Large blocks are mapped and given back at once; smaller ones come from one heap
that grows at its end, where free blocks stay resident until somebody fits into them. Which blocks are
large is decided by a threshold that moves up, to 32 MiB, as large blocks are freed.

Modelled: best fit with coalescing, the moving threshold, trimming of the heap's end, and that what alignment
leaves over beside a block is kept aside for small requests, which for a while keeps two free neighbours
apart. Small requests themselves are not seen here, so that while is a guess: until seven more such pieces
came, seven being how many malloc keeps aside of a size. With large tensors none of this matters.
Rules: glibc 2.36, malloc/malloc.c (`sysmalloc`, `_int_malloc`, `_int_free`, `munmap_chunk`, `systrim`).
Other systems' allocators differ; what they keep is of the same kind.
"""

from __future__ import annotations

import bisect
from collections import deque

PAGE = 4096
HEADER = 8
ALIGNMENT = 16
LEAST = 32
"""Smallest block, and the smallest rest worth splitting off."""
TENSOR_SLACK = 64 + 32
"""Asked for beyond the size so that a tensor can be aligned to 64 bytes; what is not needed is kept aside."""
KEPT_ASIDE = 7
"""Pieces kept aside (glibc: TCACHE_FILL_COUNT)."""
TOP_PAD = 128 * 1024
INITIAL_THRESHOLD = 128 * 1024
MOST_THRESHOLD = 32 * 1024 * 1024
CONSOLIDATE = 64 * 1024


class Heap:
    """A malloc without memory: `allocate`, `free`, and how much would be resident.

    Args:
        threshold: bytes from which a block is mapped on its own, as it stands when the replay begins.
        spare: free bytes at the heap's end then.
    """

    def __init__(self, *, threshold: int = INITIAL_THRESHOLD, spare: int = 0) -> None:
        self._threshold = threshold
        self._trim = 2 * threshold
        self._top, self._end = 0, spare
        self._touched = 0
        self._mapped = 0
        self._blocks: dict[int, tuple[int | None, int]] = {}
        # Free blocks: start -> size, end -> start, and (size, order, start) sorted for best fit.
        self._free: dict[int, int] = {}
        self._free_ends: dict[int, int] = {}
        self._by_size: list[tuple[int, int, int]] = []
        self._order = 0
        self._aside: deque[tuple[int, int]] = deque()

    @property
    def resident(self) -> int:
        """Bytes in memory: all that was written to and not given back to the system."""
        return self._mapped + self._touched

    def allocate(self, key: int, size: int) -> None:
        """Give `size` bytes to `key`; the whole block is taken to be written to."""
        block = max(LEAST, -(-(size + HEADER) // ALIGNMENT) * ALIGNMENT)
        needed = block + TENSOR_SLACK
        found = self._fitting(needed)
        if found is None:
            if self._end - self._top < needed + LEAST:
                if needed >= self._threshold:
                    pages = _pages(needed + HEADER)
                    self._blocks[key] = (None, pages)
                    self._mapped += pages
                    return
                self._end += _pages(needed + TOP_PAD + LEAST - (self._end - self._top))
            found = (self._top, needed)
            self._top += needed
        start, taken = found
        self._touched = max(self._touched, start + taken)
        self._blocks[key] = (start, block)
        self._aside.append((start + block, taken - block))
        if len(self._aside) > KEPT_ASIDE:
            self._join(*self._aside.popleft())

    def free(self, key: int) -> None:
        """Take back what was given to `key`."""
        start, size = self._blocks.pop(key)
        if start is None:
            if self._threshold < size <= MOST_THRESHOLD:
                self._threshold, self._trim = size, 2 * size
            self._mapped -= size
            return
        size = self._join(start, size)
        if size >= CONSOLIDATE and self._end - self._top >= self._trim:
            self._end -= max(0, self._end - self._top - LEAST - 1 - TOP_PAD) // PAGE * PAGE
            self._touched = min(self._touched, self._end)

    def _fitting(self, needed: int) -> tuple[int, int] | None:
        """Start and size of the smallest free block that fits, the rest split off; None: there is none."""
        index = bisect.bisect_left(self._by_size, (needed, -1, -1))
        if index == len(self._by_size):
            return None
        start = self._by_size[index][2]
        size = self._taken(start)
        if size - needed < LEAST:
            return start, size
        self._put(start + needed, size - needed)
        return start, needed

    def _join(self, start: int, size: int) -> int:
        """Make it free, in one block with its free neighbours; the size of that."""
        if start in self._free_ends:
            before = self._free_ends[start]
            size += self._taken(before)
            start = before
        if start + size in self._free:
            size += self._taken(start + size)
        if start + size == self._top:
            self._top = start
        else:
            self._put(start, size)
        return size

    def _put(self, start: int, size: int) -> None:
        self._order += 1
        self._free[start], self._free_ends[start + size] = size, start
        bisect.insort(self._by_size, (size, self._order, start))

    def _taken(self, start: int) -> int:
        size = self._free.pop(start)
        del self._free_ends[start + size]
        index = bisect.bisect_left(self._by_size, (size, -1, -1))
        while self._by_size[index][2] != start:
            index += 1
        del self._by_size[index]
        return size


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE

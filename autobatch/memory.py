"""Memory that grows, is handed out from the front, and is kept for the next graph.

An `Arena` is a list of chunks; what it hands out never moves. When a graph goes, its chunks go back to the pool of the
thread, and the next graph begins with them: in steady state no memory is asked for and no page is touched for the first time.
A graph that needed several chunks leaves one of their joint size instead.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np

ALIGN = 64
GUARD = 4096  # bytes at the end of a chunk that nobody is given: in debug mode a write past the last piece is seen there
_SMALLEST = 1 << 20  # bytes


class _Chunk:
    """A piece of memory of an arena: `start` and `end` of what may be handed out, aligned, and the guard behind it."""

    __slots__ = ("address", "array", "end", "size", "start")

    def __init__(self, size: int) -> None:
        self.array, self.size = np.empty(size, np.uint8), size
        self.address = address = address_of(self.array)
        self.start, self.end = -(-address // ALIGN) * ALIGN, address + size - GUARD


def _size(chunk: _Chunk) -> int:
    return chunk.size


class _Pool(threading.local):
    """Free chunks of the calling thread, by purpose."""

    def __init__(self) -> None:
        self.chunks: dict[str, list[_Chunk]] = {}

    def of(self, purpose: str) -> list[_Chunk]:
        """Return the free chunks for a purpose."""
        return self.chunks.setdefault(purpose, [])


_POOL = _Pool()


class Arena:
    """Contiguous pieces of memory, all given back together.

    Parameters
    ----------
    purpose : chunks come from arenas of the same purpose and go back to them, so that tables do not take the chunk of values.
    """

    __slots__ = ("_at", "_chunks", "_end", "_purpose", "_start")

    def __init__(self, purpose: str = "") -> None:
        self._purpose = purpose
        self._chunks: list[_Chunk] = []
        self._at = self._end = self._start = 0

    def take(self, size: int) -> int:
        """Return the address of `size` bytes, aligned to 64; their content is arbitrary."""
        size = size + (ALIGN - 1) & -ALIGN
        at = self._at
        if at + size > self._end:
            self._grow(size)
            at = self._at
        self._at = at + size
        return at

    def mark(self) -> tuple[int, int]:
        """Return the present state, for `cut`."""
        return len(self._chunks), self._at

    def cut(self, mark: tuple[int, int]) -> None:
        """Go back to a `mark`: everything handed out since is free again."""
        count, at = mark
        while len(self._chunks) > max(count, 1):
            _POOL.of(self._purpose).append(self._chunks.pop())
        if self._chunks:
            self._open(self._chunks[-1])
            self._at = at if count else self._start

    def _open(self, chunk: _Chunk) -> None:
        self._at = self._start = chunk.start
        self._end = chunk.end

    def _grow(self, size: int) -> None:
        pool = _POOL.of(self._purpose)
        if len(pool) > 1:
            pool.sort(key=_size)
        needed = size + ALIGN + GUARD
        # The largest, even for a small need: the graph that asked for little just now asks for more later, and a graph that
        # ends with several chunks has them joined, in memory that is touched for the first time.
        chunk = pool.pop() if pool else None
        if chunk is None or chunk.size < needed:
            # It is given up for a larger one: kept, the pool would hold one of every size there ever was.
            chunk = _Chunk(max(_SMALLEST, self.reserved, needed, chunk.size * 5 // 4 if chunk else 0))
        self._chunks.append(chunk)
        self._open(chunk)

    @property
    def reserved(self) -> int:
        """Bytes held."""
        return sum([c.size for c in self._chunks])

    @property
    def used(self) -> int:
        """Bytes handed out; chunks but the last count as a whole."""
        return sum([c.size for c in self._chunks[:-1]]) + self._at - self._start

    def spans(self) -> list[tuple[int, int]]:
        """Return first and last+1 address of each chunk; of the last one only the part handed out, and a guard behind it."""
        ends = [c.address + c.size for c in self._chunks[:-1]] + [self._at + GUARD]
        return [(c.address, end) for c, end in zip(self._chunks, ends, strict=False)]

    def release(self, pool: dict[str, list[_Chunk]] | None = None) -> None:
        """Give all chunks back to a pool, that of this thread if no other is given."""
        chunks = self._chunks
        if not chunks:
            return
        if len(chunks) > 1:
            chunks = [_Chunk(self.reserved)]
        (_POOL.chunks if pool is None else pool).setdefault(self._purpose, []).extend(chunks)
        self._chunks = []
        self._at = self._end = self._start = 0

    def __del__(self) -> None:
        if self._chunks:
            self.release()


def address_of(array: np.ndarray) -> int:
    """Return where the numbers of a contiguous array begin; `array.ctypes.data` takes 0.7 µs, this 0.1."""
    buffer: Any = array
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    except (TypeError, ValueError):  # read-only, or empty
        return int(array.ctypes.data)


def own_pool() -> dict[str, list[_Chunk]]:
    """Return the free chunks of the calling thread, by purpose."""
    return _POOL.chunks


def free_pool() -> None:
    """Give the memory that this thread keeps for its next graph back to the system."""
    _POOL.chunks.clear()


def pooled() -> int:
    """Return the bytes that this thread keeps for its next graph."""
    return sum(c.size for chunks in _POOL.chunks.values() for c in chunks)


def array_at(address: int, count: int, dtype: str) -> np.ndarray:
    """Return an array of `count` numbers that lie at an address; who calls keeps them there."""
    kind = _DTYPES[dtype]
    buffer: Any = (ctypes.c_uint8 * (count * kind.itemsize)).from_address(address)
    return np.frombuffer(buffer, kind)


_DTYPES = {name: np.dtype(name) for name in ("uint8", "int32", "int64", "float32", "float64")}


def read(address: int, count: int, dtype: str) -> np.ndarray:
    """Return a copy of `count` numbers at an address."""
    return array_at(address, count, dtype).copy()


def write(address: int, values: np.ndarray) -> None:
    """Copy the numbers of a contiguous array to an address."""
    ctypes.memmove(address, values.ctypes.data, values.nbytes)

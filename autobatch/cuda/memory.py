"""Memory of the card: arenas like those of the host (`autobatch.memory`), and copies to and from it.

To the card everything goes through *staging slots*: page-locked memory, from which the card copies by itself while the host
goes on. A thread has a ring of three; a slot is filled again when its copies are done, which an event tells.

    host     slot 0        slot 1        slot 2        slot 0 ...      fill, send, next
    card           copy 0        copy 1        copy 2                  in the stream, before the launches that read them

Chunks of arenas go back to a pool of the thread and purpose. All threads use one stream, so a chunk may be given to the next
graph while kernels of the last one still run: what the next one does comes after them.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from autobatch.cuda.driver import Device, device, opened
from autobatch.kernels._errors import DeviceMemoryError
from autobatch.memory import address_of

ALIGN = 256  # what the card's own allocations are aligned to
SLOTS = 3  # of a ring
PIECE = 8 << 20  # bytes: larger arrays are sent in pieces, so that no slot has to hold them
_SMALLEST = 1 << 20  # bytes of a chunk
_SMALLEST_SLOT = 64 << 10


class _Memory:
    """Memory of the card, or page-locked memory of the host, given back when nobody refers to it any more."""

    __slots__ = ("_device", "address", "size")

    def __init__(self, owner: Device, size: int, purpose: str, pinned: bool = False) -> None:
        self._device, self.size = owner, size
        self.address = owner.allocate_pinned(size, purpose) if pinned else owner.allocate(size, purpose)

    def __del__(self) -> None:
        address = getattr(self, "address", 0)  # none, where there was no room
        if address:
            self._device.free(address)


class _Thread(threading.local):
    """What a thread keeps of a card: free chunks by purpose, what the next one should hold, staging slots."""

    def __init__(self) -> None:
        self.chunks: dict[str, list[_Memory]] = {}
        self.wanted: dict[str, int] = {}
        self.ring: list[_Slot] = []
        self.next = 0


def _thread(owner: Device) -> _Thread:
    kept = owner.kept.get("memory")
    if kept is None:
        kept = owner.kept.setdefault("memory", _Thread())
    return kept  # type: ignore[no-any-return]


# Arenas ---------------------------------------------------------------------------------------------------------------


class Arena:
    """Contiguous pieces of the card's memory, all given back together; see `autobatch.memory.Arena`.

    One that is dropped without `release` gives its chunks back to the card: its thread may be at its end, and its pool gone.

    Parameters
    ----------
    purpose : chunks come from arenas of the same purpose and go back to them; errors tell how much each purpose holds.
    """

    __slots__ = ("_at", "_chunks", "_device", "_end", "_purpose", "_start")

    def __init__(self, purpose: str = "") -> None:
        self._purpose = purpose
        self._chunks: list[_Memory] = []
        self._device: Device | None = None
        self._at = self._end = self._start = 0

    def take(self, size: int) -> int:
        """Return the address of `size` bytes, aligned to 256; their content is arbitrary.

        Raises
        ------
        DeviceMemoryError : the card has no room for them. The arena stays as it was.
        """
        size = (size + ALIGN - 1) // ALIGN * ALIGN
        if self._at + size > self._end or (self._device is not None and self._device.lost):
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
            self._give(self._chunks.pop())
        if self._chunks:
            self._open(self._chunks[-1])
            self._at = at if count else self._start

    def _give(self, chunk: _Memory) -> None:
        assert self._device is not None
        if not self._device.lost:
            _thread(self._device).chunks.setdefault(self._purpose, []).append(chunk)

    def _open(self, chunk: _Memory) -> None:
        self._start = -(-chunk.address // ALIGN) * ALIGN
        self._end = chunk.address + chunk.size
        self._at = self._start

    def _grow(self, size: int) -> None:
        owner = device()
        owner.enter()
        if owner is not self._device:  # the chunks are those of a card that was given back
            self._chunks, self._device = [], owner
        thread = _thread(owner)
        pool = thread.chunks.setdefault(self._purpose, [])
        pool.sort(key=lambda c: c.size)
        chunk = pool.pop() if pool else None
        if chunk is None or chunk.size < size:
            # A chunk that is too small is given up for a larger one, and before that one is asked for: it may need the room.
            least, before = max(_SMALLEST, size), chunk.size if chunk else 0
            best = max(least, self.reserved, before * 5 // 4, thread.wanted.pop(self._purpose, 0))
            chunk = None
            chunk = _some(owner, best, least, self._purpose)
        self._chunks.append(chunk)
        self._open(chunk)

    @property
    def reserved(self) -> int:
        """Bytes held."""
        return sum(c.size for c in self._chunks)

    @property
    def used(self) -> int:
        """Bytes handed out; chunks but the last count as a whole."""
        return sum(c.size for c in self._chunks[:-1]) + self._at - self._start

    def spans(self) -> list[tuple[int, int]]:
        """Return first and last+1 address of each chunk; of the last one only the part handed out."""
        ends = [c.address + c.size for c in self._chunks[:-1]] + [self._at]
        return [(c.address, end) for c, end in zip(self._chunks, ends, strict=False)]

    def release(self, pool: Any = None) -> None:
        """Give all chunks back to the pool of this thread; of several the next graph gets one of their joint size."""
        if self._chunks and self._device is not None and not self._device.lost:
            if len(self._chunks) == 1:
                self._give(self._chunks[0])
            else:
                wanted = _thread(self._device).wanted
                wanted[self._purpose] = max(wanted.get(self._purpose, 0), self.reserved)
        self._chunks = []
        self._at = self._end = self._start = 0


def _some(owner: Device, best: int, least: int, purpose: str) -> _Memory:
    """Return a chunk of `best` bytes; where there is no room for it, of `least`, after the pool is emptied."""
    try:
        return _Memory(owner, best, purpose)
    except DeviceMemoryError:
        free_pool()
    return _Memory(owner, least, purpose)


def free_pool() -> None:
    """Give the memory that this thread keeps for its next graph back to the card."""
    owner = opened()
    if owner is not None:
        thread = _thread(owner)
        thread.chunks.clear()
        thread.wanted.clear()


def pooled() -> int:
    """Return the bytes that this thread keeps for its next graph."""
    owner = opened()
    return sum(c.size for chunks in _thread(owner).chunks.values() for c in chunks) if owner is not None else 0


class Block:
    """Memory of the card for one thing that lives long (a parameter), given back when it is dropped.

    Attributes
    ----------
    address, size : where it lies, and how many bytes it has. Their content is arbitrary.
    """

    __slots__ = ("_memory", "address", "size")

    def __init__(self, size: int, purpose: str) -> None:
        self._memory = _Memory(device(), max(size, 1), purpose)
        self.address, self.size = self._memory.address, size


# Copies ---------------------------------------------------------------------------------------------------------------


class _Slot:
    """A piece of page-locked memory, and an event that tells when the last copy from it is done."""

    __slots__ = ("_device", "busy", "event", "memory", "sent")

    def __init__(self, owner: Device) -> None:
        self._device = owner
        self.memory: _Memory | None = None
        self.sent = self.busy = False
        self.event = owner.event()

    def ready(self, size: int) -> None:
        """Wait until the memory may be written, and see to it that there is enough."""
        if self.sent:
            self._device.call("cuEventSynchronize", self.event)
            self.sent = False
        if self.memory is None or self.memory.size < size:
            before, self.memory = self.memory.size if self.memory else 0, None
            self.memory = _Memory(self._device, max(size, before * 5 // 4, _SMALLEST_SLOT), "staging", pinned=True)

    def __del__(self) -> None:
        event = getattr(self, "event", 0)
        if event:
            self._device.drop_event(event, self.sent)


class Staged:
    """A staging slot that is being filled.

    Attributes
    ----------
    address, size : where it lies in the host's memory, and how many bytes were asked for.
    """

    __slots__ = ("_device", "_slot", "address", "size")

    def __init__(self, owner: Device, slot: _Slot, size: int) -> None:
        assert slot.memory is not None
        self._device, self._slot, self.address, self.size = owner, slot, slot.memory.address, size

    def array(self, dtype: Any, count: int, start: int = 0) -> np.ndarray:
        """Return the memory from byte `start` on as `count` numbers."""
        buffer: Any = (ctypes.c_uint8 * (count * np.dtype(dtype).itemsize)).from_address(self.address + start)
        return np.frombuffer(buffer, dtype)

    def send(self, address: int, size: int, start: int = 0) -> None:
        """Copy `size` bytes from byte `start` on to an address on the card, some time before the next launch."""
        if size:
            self._slot.sent = True
            self._device.call("cuMemcpyHtoDAsync_v2", address, self.address + start, size, self._device.stream)


@contextlib.contextmanager
def staging(size: int) -> Iterator[Staged]:
    """Lend a staging slot of `size` bytes; at the end it goes back to the ring, to be filled again when its copies are done."""
    owner = device()
    thread = _thread(owner)
    ring = thread.ring
    at = thread.next
    if len(ring) < SLOTS or ring[at].busy:  # more than there are, one inside the other
        ring.insert(at, _Slot(owner))
    slot = ring[at]
    slot.ready(size)
    slot.busy = True
    thread.next = (at + 1) % max(len(ring), SLOTS)
    try:
        yield Staged(owner, slot, size)
    finally:
        slot.busy = False
        if slot.sent and not owner.lost:
            owner.call("cuEventRecord", slot.event, owner.stream)


def upload(address: int, values: np.ndarray) -> None:
    """Copy the numbers of an array to an address on the card. The array may be changed at once."""
    source = np.ascontiguousarray(values)
    start, size = address_of(source), source.nbytes
    for at in range(0, size, PIECE):
        part = min(PIECE, size - at)
        with staging(part) as staged:
            ctypes.memmove(staged.address, start + at, part)
            staged.send(address + at, part)


write = upload  # its name in `autobatch.memory`


def read(address: int, count: int, dtype: str) -> np.ndarray:
    """Return a copy of `count` numbers on the card, after all that was asked for before is done."""
    out, owner = np.empty(count, dtype), device()
    if count:
        owner.call("cuMemcpyDtoHAsync_v2", out.ctypes.data, address, out.nbytes, owner.stream)
    owner.synchronize()
    return out


def copy(to: int, source: int, size: int) -> None:
    """Copy `size` bytes on the card."""
    if size:
        owner = device()
        owner.call("cuMemcpyDtoDAsync_v2", to, source, size, owner.stream)


def zero(address: int, size: int) -> None:
    """Set `size` bytes on the card to 0."""
    if size:
        owner = device()
        owner.call("cuMemsetD8Async", address, 0, size, owner.stream)


def synchronize() -> None:
    """Wait until everything is done that was asked for; an error of a kernel comes up here."""
    device().synchronize()

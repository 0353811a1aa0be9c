"""A card in plain Python: runs kernels thread by thread, and sees what a card does not tell.

The kernels are those of the package, made for this target by `autobatch.kernels._device` as they are made for CUDA. Threads
that wait for each other are greenlets; a kernel whose threads do not is a plain loop. Memory is NumPy arrays, told to the
`Simulator`; an address outside of them raises, and so does

    a race         two threads touch a number, at least one of them writes, and nothing keeps them apart
    a deadlock     some threads of a team wait for others that are gone or wait elsewhere

Only what `_lanes.py` and `_tiles.py` promise holds here: teams run one after the other, in any order.
"""

from __future__ import annotations

import bisect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from greenlet import greenlet

from autobatch.kernels import (
    _jit,
    _lanes,
    _math,
    _math_hyperbolic,
    _math_power,
    _math_special,
    _math_trigonometric,
    _math_words,
    _reduce,
    _tiles,
    _update,
)
from autobatch.kernels._device import Target, takes_z, works_together
from autobatch.kernels._jit import FLAGS, LENGTH, SLOTS


class SimulatorError(AssertionError):
    """A kernel did what it must not do."""


class _Span(NamedTuple):
    start: int
    end: int
    memory: np.ndarray


class _Thread(greenlet):
    """One thread: where it stands, and what it waits for."""

    block: tuple[int, int, int]
    x: int
    y: int
    team: tuple[Any, ...]
    waits: tuple[str, Any] | None
    handed: Any
    shared_calls: int
    team_epoch: int
    mark: tuple[Any, ...]


class _Block:
    """What the threads of a block share."""

    def __init__(self, number: int) -> None:
        self.arrays: list[np.ndarray] = []
        self.epoch = 0
        self.number = number


class Pointer:
    """A typed address; checks each access."""

    __slots__ = ("_base", "_size", "_view", "_watched", "address", "dtype", "sim")

    def __init__(self, sim: Simulator, address: int, dtype: Any, watched: bool = True) -> None:
        """A pointer to numbers; tables, which no kernel may write, need not be `watched` for races."""
        self.sim, self.address, self.dtype = sim, int(address), np.dtype(dtype)
        self._view: Any = None
        self._base = self._size = 0
        self._watched = watched

    def _resolve(self) -> None:
        span = self.sim.span(self.address)
        size = self.dtype.itemsize
        if span is None:
            raise SimulatorError(f"{self.sim.where()}: address {self.address:#x} is in no memory of the card")
        if (self.address - span.start) % size:
            raise SimulatorError(f"{self.sim.where()}: address {self.address:#x} is not one of a {self.dtype}")
        whole = (span.end - span.start) // size * size
        self._view = span.memory[:whole].view(self.dtype)
        self._base = (self.address - span.start) // size
        self._size = self._view.size

    def __getitem__(self, j: int) -> Any:
        if self._view is None:
            self._resolve()
        j = int(j)
        at = self._base + j
        if not 0 <= at < self._size:
            raise SimulatorError(f"{self.sim.where()}: reads number {j} behind {self.address:#x}, outside of its memory")
        if self._watched:
            self.sim.saw_read(self.address + j * self.dtype.itemsize)
        return self._view[at] if self.dtype.kind == "f" else self._view.item(at)

    def __setitem__(self, j: int, value: Any) -> None:
        if self._view is None:
            self._resolve()
        j = int(j)
        at = self._base + j
        if not 0 <= at < self._size:
            raise SimulatorError(f"{self.sim.where()}: writes number {j} behind {self.address:#x}, outside of its memory")
        if not self._watched:
            raise SimulatorError(f"{self.sim.where()}: writes number {j} behind {self.address:#x}, in a table")
        self.sim.saw_write(self.address + j * self.dtype.itemsize)
        self._view[at] = value


class _Shared:
    """Shared memory of a block."""

    __slots__ = ("array", "base", "sim", "size")

    def __init__(self, sim: Simulator, array: np.ndarray, base: int) -> None:
        self.sim, self.array, self.base, self.size = sim, array, base, array.size

    def __getitem__(self, j: int) -> Any:
        if not 0 <= j < self.size:
            raise SimulatorError(f"{self.sim.where()}: reads number {j} of {self.size} shared ones")
        self.sim.saw_read(self.base - j)
        return self.array[j]

    def __setitem__(self, j: int, value: Any) -> None:
        if not 0 <= j < self.size:
            raise SimulatorError(f"{self.sim.where()}: writes number {j} of {self.size} shared ones")
        self.sim.saw_write(self.base - j)
        self.array[j] = value


class _Handed(list[Any]):
    """What the threads of a group handed over, in their order; what they make of it is made once."""

    made: Any = None


class Simulator:
    """Memory and threads of a card that is not there."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._spans: list[_Span] = []
        self.launches = 0
        self.now: Any = None
        self._kernel = ""
        self.grid = (1, 1, 1)
        self.width = self.height = 1
        self._blocks: dict[tuple[int, int, int], _Block] = {}
        self._writes: dict[Any, Any] = {}
        self._reads: dict[Any, Any] = {}
        self.target = Target(_twins(self), lambda f: f, _update.ON_CARD)
        self._functions: dict[int, tuple[Any, Any, bool]] = {}

    # Memory

    def add(self, memory: np.ndarray) -> int:
        """Make an array (of bytes, contiguous) memory of the card; returns its address."""
        start = memory.ctypes.data
        at = bisect.bisect(self._starts, start)
        self._starts.insert(at, start)
        self._spans.insert(at, _Span(start, start + memory.nbytes, memory))
        return start

    def remove(self, start: int) -> None:
        """Take memory away."""
        at = self._starts.index(start)
        del self._starts[at], self._spans[at]

    def span(self, address: int) -> _Span | None:
        """Return the memory in which an address lies."""
        at = bisect.bisect(self._starts, address) - 1
        return self._spans[at] if at >= 0 and address < self._spans[at].end else None

    # Races

    def where(self) -> str:
        """Return the kernel and the thread that runs now."""
        t = self.now
        return self._kernel if t is None else f"{self._kernel}, block {t.block}, thread ({t.x}, {t.y})"

    def _together(self, other: tuple[Any, ...]) -> bool:
        """Whether what another thread did may come before or after what this one does."""
        thread, block, block_epoch, team, team_epoch = other
        t = self.now
        if thread is t:
            return False
        if block is not self._blocks[t.block]:
            return True
        if block_epoch != block.epoch:
            return False
        return bool(team != t.team or team_epoch == t.team_epoch)

    def _renew_mark(self, t: Any) -> None:
        """Write down between which meetings a thread is: what it uses until the next one is marked so."""
        block = self._blocks[t.block]
        t.mark = t, block, block.epoch, t.team, t.team_epoch

    def saw_read(self, at: int) -> None:
        """Note that the thread reads."""
        if self.now is None:
            return
        mark = self.now.mark
        writer = self._writes.get(at)
        # The first three tell most cases apart without a call: the same thread, another block, before a meeting of this one.
        if (
            writer is not None
            and writer is not mark
            and (writer[1] is not mark[1] or writer[2] == mark[2])
            and self._together(writer)
        ):
            raise SimulatorError(
                f"{self.where()}: reads what thread ({writer[0].x}, {writer[0].y}) of block {writer[0].block} wrote"
            )
        readers = self._reads.get(at)
        if readers is None:
            self._reads[at] = [mark]
        elif readers[-1] is not mark:
            readers.append(mark)

    def saw_write(self, at: int) -> None:
        """Note that the thread writes."""
        if self.now is None:
            return
        mark = self.now.mark
        writer = self._writes.get(at)
        for other in (*(() if writer is None else (writer,)), *self._reads.pop(at, ())):
            if other is not mark and (other[1] is not mark[1] or other[2] == mark[2]) and self._together(other):
                raise SimulatorError(
                    f"{self.where()}: writes what thread ({other[0].x}, {other[0].y}) of block {other[0].block} uses"
                )
        self._writes[at] = mark

    # Threads

    def wait(self, kind: str, group: Any, value: Any = None) -> Any:
        """Stop this thread until all of its group wait too; returns the values of all, in their order."""
        t = self.now
        t.waits, t.handed = (kind, group), value
        result = t.parent.switch()
        return result

    def launch(
        self,
        function: Callable[..., Any],
        grid: tuple[int, int, int],
        block: tuple[int, int],
        ins: int,
        dtype: str,
        scratch: int,
    ) -> None:
        """Run a kernel of the package.

        Parameters
        ----------
        function : as written for a processor.
        grid, block : blocks in x, y, z; threads in x, y.
        ins, scratch : addresses in the card's memory.
        """
        if id(function) not in self._functions:
            made = self.target.kernel(function)
            self._functions[id(function)] = made, function, works_together(function) or _tiles.uses_blocks(function)
        made, _, together = self._functions[id(function)]
        self.launches += 1
        self._kernel, self.grid, (self.width, self.height) = function.__qualname__, grid, block
        self._blocks.clear()
        self._writes.clear()
        self._reads.clear()
        length = Pointer(self, ins, np.int64, False)[LENGTH]
        further = 0 if takes_z(function) else 8 * (length & 0xFFFFFFFF)
        together_z = max(length >> 32, 1)
        with np.errstate(all="ignore"):
            for z, y, x in np.ndindex(grid[::-1]):
                arguments = Pointer(self, ins + z // together_z * further, np.int64, False), Pointer(self, scratch, dtype)
                self._run_block((x, y, z), made, arguments, together)
        self.now = None

    def _run_block(self, at: tuple[int, int, int], made: Any, arguments: Any, together: bool) -> None:
        self._blocks[at] = _Block(len(self._blocks) + 1)
        threads = []

        def run() -> None:
            with np.errstate(all="ignore"):  # a greenlet has a context of its own
                made(*arguments)

        for y, x in np.ndindex(self.height, self.width):
            t = _Thread(run)
            t.block, t.x, t.y, t.team = at, x, y, (at, y)
            t.waits, t.handed, t.shared_calls, t.team_epoch = None, None, 0, 0
            self._renew_mark(t)
            threads.append(t)
        for t in threads:
            self.now = t
            if together:
                t.switch()
            else:
                made(*arguments)
        if not together:
            return
        while True:
            alive = [t for t in threads if not t.dead]
            if not alive:
                return
            moved = False
            for wanted in dict.fromkeys(t.waits for t in alive if t.waits):
                kind, group = wanted
                members = threads if group == "block" else [t for t in threads if t.team == group]
                if any(t.dead or t.waits != wanted for t in members):
                    continue
                moved = True
                if group == "block":
                    self._blocks[at].epoch += 1
                handed = _Handed(t.handed for t in members)
                for t in members:
                    t.waits = None
                    t.team_epoch += kind != "exchange"
                    self._renew_mark(t)
                for t in members:
                    self.now = t
                    t.switch(handed)
            if not moved:
                raise SimulatorError(f"{self._kernel}: threads of block {at} wait for ever, for {set(t.waits for t in alive)}")


def _twins(sim: Simulator) -> dict[Any, Any]:
    """What takes the place of each word, in Python."""

    def pointer_to(dtype: Any) -> Any:
        return lambda address: Pointer(sim, address, dtype)

    def row(ins: Pointer, k: int, i: int) -> int:
        address, stride = ins[SLOTS + 2 * k], ins[SLOTS + 2 * k + 1]
        return Pointer(sim, address, np.int64, False)[i] if stride < 0 else int(address + i * stride)

    def number(value: Any, like: Any) -> Any:
        return like.dtype.type(value)

    def immediate(ins: Pointer, k: int, i: int) -> int:
        return Pointer(sim, ins[SLOTS + 2 * k] + i * ins[SLOTS + 2 * k + 1], np.int64, False)[0]

    def wait(kind: str, value: Any = None) -> Any:
        t = sim.now
        return sim.wait(kind, "block" if sim.width > 32 else t.team, value)

    def together(combine: Callable[[Any, Any], Any]) -> Any:
        def combined(x: Any) -> Any:
            handed = wait("exchange", x)
            if sim.width == 1:
                return x
            if handed.made is None:
                values = list(handed)
                while len(values) > 1:
                    half = len(values) // 2
                    values = [combine(values[k], values[k + half]) for k in range(half)]
                handed.made = values[0]
            return handed.made

        return combined

    def larger(x: Any, z: Any) -> Any:
        return x if x > z or x != x else z

    def smaller(x: Any, z: Any) -> Any:
        return x if x < z or x != x else z

    def before(x: Any) -> Any:
        handed = wait("exchange", x)
        if handed.made is None:
            handed.made = [type(x)(0)]
            for value in handed:
                handed.made.append(handed.made[-1] + value)
        return handed.made[sim.now.x]

    def rank_of(x: Any) -> int:
        bits = 8 * x.dtype.itemsize
        rank = int(x.view(f"i{bits // 8}"))
        return rank ^ ((1 << bits - 1) - 1) if rank < 0 else rank

    def of_rank(rank: int, like: Any) -> Any:
        bits = 8 * like.dtype.itemsize
        return np.array(rank ^ ((1 << bits - 1) - 1) if rank < 0 else rank, f"i{bits // 8}").view(like.dtype)[()]

    def shared(count: int, like: Any) -> _Shared:
        t, block = sim.now, sim._blocks[sim.now.block]
        if t.shared_calls == len(block.arrays):
            block.arrays.append(np.full(count, np.nan if like.dtype.kind == "f" else -(1 << 30), like.dtype))
        array = block.arrays[t.shared_calls]
        t.shared_calls += 1
        return _Shared(sim, array, -((block.number << 8 | t.shared_calls) << 24))  # no address, and of no other number

    def int32(x: int) -> int:
        if not -(1 << 31) <= x < 1 << 31:
            raise SimulatorError(f"{sim.where()}: {x} is no number of 32 bits")
        return int(x)  # as in Numba, where sums and products of these have 64 bits

    def sixteen(p: Any, j: int) -> None:
        start = p.address + int(j) * p.dtype.itemsize if isinstance(p, Pointer) else int(j) * p.array.itemsize
        if start % 16:
            raise SimulatorError(f"{sim.where()}: four numbers at {start:#x}, which is no multiple of 16")

    def four(p: Any, j: int) -> Any:
        sixteen(p, j)
        return p[j], p[j + 1], p[j + 2], p[j + 3]

    def put_four(p: Any, j: int, *numbers: Any) -> None:
        sixteen(p, j)
        for q, x in enumerate(numbers):
            p[j + q] = x

    twins: dict[Any, Any] = {
        "first_item": lambda: sim.now.block[0] * sim.height + sim.now.y,
        "item_step": lambda: sim.grid[0] * sim.height,
        "first_part": lambda ins: sim.now.block[2] % max(ins[LENGTH] >> 32, 1),
        "part_step": lambda ins: max(ins[LENGTH] >> 32, 1),
        "first_lane": lambda: sim.now.block[1] * sim.width + sim.now.x,
        "lane_step": lambda: sim.grid[1] * sim.width,
        np.int32: int32,
        _jit.integers: pointer_to(np.int64),
        _jit.int32s: pointer_to(np.int32),
        _jit.bytes_at: pointer_to(np.uint8),
        _update.doubles: pointer_to(np.float64),
        _jit.pointer: lambda address, like: Pointer(sim, address, like.dtype),
        _jit.address_of: lambda p: p.address,
        _jit.itemsize: lambda p: p.dtype.itemsize,
        _jit.number: number,
        _jit.slot: lambda k: SLOTS + 2 * k,
        _jit.row: row,
        _jit.item: lambda ins, k, i, like: Pointer(sim, row(ins, k, i), like.dtype),
        _jit.whole: lambda ins, k, size, like: False,
        _jit.immediate: immediate,
        _jit.argument: lambda ins: ins[FLAGS] >> 8,
        _lanes.joined: together(lambda x, z: x + z),
        _lanes.largest: together(larger),
        _lanes.smallest: together(smaller),
        _lanes.before: before,
        _lanes.lane: lambda: sim.now.block[1] * sim.width + sim.now.x,
        _lanes.width: lambda: sim.grid[1] * sim.width,
        _lanes.meet: lambda: wait("meet") and None,
        _lanes.leader: lambda: sim.now.x == 0,
        _lanes.lane: lambda: sim.now.block[1] * sim.width + sim.now.x,
        _lanes.width: lambda: sim.grid[1] * sim.width,
        _reduce.larger: larger,
        _reduce.smaller: smaller,
        _reduce.quotient: lambda n, d: n // d,
        _reduce.remainder: lambda n, d: n % d,
        _reduce.rank_of: rank_of,
        _reduce.of_rank: of_rank,
        _tiles.thread_x: lambda: sim.now.x,
        _tiles.thread_y: lambda: sim.now.y,
        _tiles.block_x: lambda: sim.now.block[0],
        _tiles.block_y: lambda: sim.now.block[1],
        _tiles.block_z: lambda: sim.now.block[2],
        _tiles.blocks_x: lambda: sim.grid[0],
        _tiles.blocks_z: lambda: sim.grid[2],
        _tiles.summands: lambda ins: 1 + (ins[LENGTH] >> 32),
        _tiles.further: lambda ins, k: Pointer(sim, ins.address + 8 * (ins[LENGTH] & 0xFFFFFFFF) * k, np.int64, False),
        _tiles.shared: shared,
        _tiles.four: four,
        _tiles.put_four: put_four,
        _tiles.sync: lambda: sim.wait("sync", "block") and None,
    }
    twins |= {word.compiled: word.plain for word in _math_words.WORDS}
    for module in (_math, _math_hyperbolic, _math_power, _math_special, _math_trigonometric):
        for name, value in vars(module).items():
            if isinstance(value, types.FunctionType) and value.__module__ == module.__name__ and not name.startswith("_"):
                twins[value] = value
    return twins

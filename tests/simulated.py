"""Runs the tables of a processor in the simulator: each kernel as it would run on a card, on the same memory.

Where a graph is evaluated inside `simulated()`, its instructions become launches of `Simulator`. A quick way to see whether the
kernels of an op are right on a card; `tests/test_cuda.py` goes the whole way, through the tables and memory of a card.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from simulator import Simulator, _Span

from autobatch import execute
from autobatch.graph import TYPES
from autobatch.kernels import _rows
from autobatch.kernels._device import works_together
from autobatch.kernels._jit import ACCUMULATE, ALONE, FLAGS, ITEMS, KERNEL, LENGTH, SIZES, SLOTS, Kernel
from autobatch.kernels.cell import Programs, cell_forward, cell_gradient, cell_prepare

_LARGEST = 1 << 24


class _Anywhere(Simulator):
    """A simulator for which all memory of the process is that of the card."""

    def span(self, address: int) -> Any:
        memory = np.frombuffer((ctypes.c_uint8 * _LARGEST).from_address(address), np.uint8)
        return _Span(address, address + _LARGEST, memory)

    def _together(self, other: tuple[Any, ...]) -> bool:
        """Tables of a processor may add to one place from several items; only lanes and teams of one item are looked at."""
        (block, y), (own, own_y) = other[3], self.now.team
        return super()._together(other) and (block[0], y) == (own[0], own_y)


def geometry(n: int, work: int, together: bool, parts: int, widest: int = 64) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Return grid and threads of an instruction of teams."""
    width = 1
    while width < min(work, widest):
        width *= 2
    height = max(32 // width, 1)
    return (-(-n // height), 1 if together or work <= width else 2, min(parts, 3)), (width, height)


class _Machine:
    def __init__(self, dtype: str, scratch: int, only: str) -> None:
        self.sim = _Anywhere()
        self.real_scratch = scratch
        self.dtype = dtype
        self.work_space = np.full(1 << 18, np.nan)
        self.scratch = self.work_space.ctypes.data
        rows = [k for k in vars(_rows).values() if isinstance(k, Kernel)] if not only else []
        self.kernels: dict[int, Kernel] = {k.address(dtype): k for k in rows}
        self.programs: dict[int, Programs] = {}
        for record in TYPES.records:
            low = record.lowering
            if low is None or record.op is None or (only and record.op.name != only):
                continue
            for k in (low.forward, low.prepare, *(o.backward for o in low.operands)):
                if k is not None and hasattr(k, "programs"):
                    self.programs[k.programs.table.ctypes.data] = k.programs
                elif k is not None and dtype in k._compiled:
                    self.kernels[k.address(dtype)] = k

    def kernel(self, address: int) -> Kernel | None:
        return self.kernels.get(address)

    def run(self, ins: int) -> None:
        words = np.frombuffer((ctypes.c_int64 * 5).from_address(ins), np.int64).tolist()
        kernel = self.kernel(words[KERNEL])
        if kernel is not None:
            self.launch(kernel, ins)
        elif words[KERNEL] in [k.address(self.dtype) for k in (cell_forward, cell_prepare, cell_gradient)]:
            self.steps(ins, words)
        else:
            ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(words[KERNEL])(ins, self.real_scratch)

    def steps(self, ins: int, words: list[int]) -> None:
        table = ctypes.c_int64.from_address(words[SIZES]).value
        programs = self.programs[table]
        count = np.frombuffer((ctypes.c_int64 * (words[LENGTH])).from_address(ins), np.int64)
        which = (
            0
            if words[KERNEL] == cell_forward.address(self.dtype)
            else 1
            if words[KERNEL] == cell_prepare.address(self.dtype)
            else 2 + (words[FLAGS] >> 8)
        )
        for inside in programs.inside(which, self.dtype):
            _, sizes, flags = inside.head
            if inside.inherit:
                flags |= words[FLAGS] & ACCUMULATE
            alone = inside.step.mode & ALONE
            for i in range(words[ITEMS] if alone else 1):
                step = np.zeros(SLOTS + 2 * len(inside.places), np.int64)
                step[:SLOTS] = 0, len(step), 1 if alone else words[ITEMS], sizes, flags
                for k, (source, address, item) in enumerate(inside.places):
                    stride = 0
                    if source is not None:
                        at, stride = int(count[SLOTS + 2 * source]), int(count[SLOTS + 2 * source + 1])
                        if alone:
                            at = ctypes.c_int64.from_address(at + 8 * i).value if stride < 0 else at + i * stride
                            stride = item
                        address += at
                    step[SLOTS + 2 * k : SLOTS + 2 * k + 2] = address, stride
                self.launch(inside.step.kernel, step.ctypes.data)

    def one_by_one(self, kernel: Kernel, ins: int) -> None:
        """Launch items that go to one place, which a plan for a card does not do, one after the other."""
        words = np.frombuffer(
            (ctypes.c_int64 * ctypes.c_int64.from_address(ins + 8 * LENGTH).value).from_address(ins), np.int64
        )
        slots = (len(words) - SLOTS) // 2 * 2
        for i in range(int(words[ITEMS])):
            one = words.copy()
            one[ITEMS] = 1
            places, strides = one[SLOTS : SLOTS + slots : 2], one[SLOTS + 1 : SLOTS + slots : 2]
            places += i * np.where(strides < 0, 8, strides)
            self.launch(kernel, one.ctypes.data)

    def launch(self, kernel: Kernel, ins: int) -> None:
        head = np.frombuffer((ctypes.c_int64 * 5).from_address(ins), np.int64)
        n = int(head[ITEMS])
        to, stride = (ctypes.c_int64.from_address(ins + 8 * (SLOTS + k)).value for k in range(2))
        if stride < 0 and len(set((ctypes.c_int64 * n).from_address(to))) < n:
            return self.one_by_one(kernel, ins)
        card = kernel.card

        def sizes_of() -> tuple[int, ...]:
            return tuple(np.frombuffer((ctypes.c_int64 * 64).from_address(int(head[SIZES])), np.int64).tolist())

        if card.stages is not None:
            for s in card.stages(sizes_of()):
                if s.runs(n, self.dtype):
                    self.sim.launch(s.function, (s.x.of(n), s.y.of(n), s.z.of(n)), s.threads, ins, self.dtype, self.scratch)
            return
        function = card.function or kernel.function
        work = card.work(sizes_of()) if card.work else 24
        parts = card.parts(sizes_of()) if card.parts else 1
        grid, threads = geometry(n, work, works_together(function), parts)
        length = int(head[LENGTH])
        head[LENGTH] |= parts << 32
        self.sim.launch(function, grid, threads, ins, self.dtype, self.scratch)
        head[LENGTH] = length


@contextlib.contextmanager
def simulated(only: str = "") -> Iterator[None]:
    """Run all tables of graphs in the simulator; or `only` the kernels of one op, the others as ever."""

    def run(self: Any, graph: Any, table: Any, words: int, lists: Any, scratch: int, segment: Any, backward: Any) -> None:
        machine, at = _Machine(self.dtype, scratch, only), 0
        while at < words:
            machine.run(table.ctypes.data + 8 * at)
            at += int(table[at + LENGTH])

    with mock.patch.object(execute.Execution, "_run", run):
        yield

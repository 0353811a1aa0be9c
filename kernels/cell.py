"""Cells: several operations that run as one node. A node type of a cell carries a small program, and these kernels run it.

The value of a node is one row, what is inside of it lies behind the outputs; the gradient has the same layout:

    value     | outputs | what backward needs of the inside |        with minibatch, each part has it inside
    gradient  | ...     | gradients of the same             |

A program is a list of steps. A step is an instruction of another kernel (`_jit.py`) whose slots are not addresses yet, but
say which slot of the node's own instruction they are a part of. So a batch of n nodes runs each step once, over rows that lie
as far apart as the nodes do:

    word   0       |  kernel   sizes   flags   slots   mode  |  kind   slot   bytes   item  |  ...
           steps   |  of step 0                              |  of slot 0 of step 0         |

    INCOMING   part of a row of slot `slot` of the node's instruction, from `bytes` on
    FIXED      the address `bytes`, the same for all: a constant
    EMPTY      nothing

    EACH       the kernel wants items without gaps, and gets them one by one, `item` bytes each
    INHERIT    whether to add or to store is as the node's instruction says
    ALONE      all items add to one place, and the kernel knows nothing of it: a card has to take them one by one

Forward is one program; `prepare` forms all gradients inside; then one program for each argument of the cell forms its gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from autobatch.kernels import _blas
from autobatch.kernels._errors import InternalError
from autobatch.kernels._jit import (
    ACCUMULATE,
    ALONE,
    DTYPES,
    EACH,
    EMPTY,
    FIXED,
    FLAGS,
    INCOMING,
    INHERIT,
    ITEMS,
    KERNEL,
    LENGTH,
    SIZES,
    SLOTS,
    Kernel,
    argument,
    call,
    inline,
    integers,
    itemsize,
    kernel,
    row,
    slot,
)

_STEP, _SLOT = 5, 4  # words
ROOM = 4096  # words of the longest instruction of a step
MOST_SLOTS = (ROOM - SLOTS) // 2


@intrinsic
def _instruction(typingctx, like):
    """Space for one instruction, on the stack of the kernel."""

    def codegen(context, builder, signature, args):
        return cgutils.alloca_once(builder, ir.IntType(64), size=ir.Constant(ir.IntType(64), ROOM))

    return types.CPointer(types.int64)(like), codegen


@inline
def _run(program, ins, step, T):
    """Run a program: for each step fill in an instruction and call its kernel."""
    n, at = ins[ITEMS], 1
    for _ in range(program[0]):
        slots, mode = program[at + 3], program[at + 4]
        step[KERNEL], step[LENGTH], step[SIZES], step[FLAGS] = program[at], SLOTS + 2 * slots, program[at + 1], program[at + 2]
        if mode & INHERIT:
            step[FLAGS] |= ins[FLAGS] & ACCUMULATE
        rounds = n if mode & EACH else 1
        step[ITEMS] = 1 if mode & EACH else n
        for i in range(rounds):
            for k in range(slots):
                p = at + _STEP + _SLOT * k
                kind, source, offset = program[p], program[p + 1], program[p + 2]
                address, stride = offset, 0
                if mode & EACH:  # a single item, but some kernels find in its stride how far its columns are apart
                    stride = program[p + 3]
                    if kind == INCOMING:
                        address += row(ins, source, i)
                elif kind == INCOMING:
                    address += ins[slot(source)]
                    stride = ins[slot(source) + 1]
                step[SLOTS + 2 * k] = address
                step[SLOTS + 2 * k + 1] = stride
            call(step[KERNEL], step, T)
        at += _STEP + _SLOT * slots


@inline
def _program(ins, which, T):
    """The program of a node type for this dtype."""
    return integers(integers(integers(ins[SIZES])[0])[2 * which + itemsize(T) // 8])


@kernel(before=_blas.ready)
def cell_forward(ins, T):
    """The outputs, and what backward needs."""
    _run(_program(ins, 0, T), ins, _instruction(T), T)


@kernel(before=_blas.ready)
def cell_prepare(ins, T):
    """The gradients of everything inside, from those of the outputs."""
    _run(_program(ins, 1, T), ins, _instruction(T), T)


@kernel(before=_blas.ready)
def cell_gradient(ins, T):
    """The gradient of one argument."""
    _run(_program(ins, 2 + argument(ins), T), ins, _instruction(T), T)


# Making programs ------------------------------------------------------------------------------------------------------


class Slot(NamedTuple):
    """Where a slot of a step lies: part of slot `source`, from number `start` on, `size` numbers; or constant `source`."""

    kind: int = EMPTY
    source: int = 0
    start: int = 0
    size: int = 0


class Step(NamedTuple):
    """One step of a program. `sizes` is what the kernel finds behind SIZES.

    For debug mode: `reads` and `writes` are the parts of incoming slots it reads, and writes; `adds` says of each that is
    written whether it is added to (True), stored to where nothing was written before (False), or either (None).
    """

    kernel: Kernel
    sizes: np.ndarray
    flags: int
    slots: tuple[Slot, ...]
    mode: int = 0
    reads: tuple[Slot, ...] = ()
    writes: tuple[Slot, ...] = ()
    adds: tuple[bool | None, ...] = ()


class Inside(NamedTuple):
    """A step as it stands in a program, for debug mode. Places: (slot or None for a fixed address, bytes, bytes of an item)."""

    name: str
    head: tuple[int, int, int]  # kernel, sizes, flags
    each: bool
    inherit: bool
    places: list[tuple[int | None, int, int]]
    step: Step


@dataclasses.dataclass(eq=False)
class Programs:
    """All programs of a node type: forward, prepare, and one for each argument; and the constants they read.

    Constants are numbers (one for each, of the dtype of the run) or int64 integers, by their position in `constants`.
    `outputs`: how many numbers at the beginning of a row are outputs; `written`: how many forward writes, the rest of a row is
    there for gradients only.
    """

    programs: Sequence[Sequence[Step]]
    constants: Sequence[np.ndarray]
    outputs: int
    written: int

    def __post_init__(self) -> None:
        self.table = np.zeros(2 * len(self.programs), np.int64)
        self.encoded: dict[int, np.ndarray] = {}
        self._alive: list[Any] = []

    def kernel(self, which: int) -> Kernel:
        """Return the kernel that runs a program, compiled together with the kernels of its steps."""
        return _ProgramKernel((cell_forward, cell_prepare, cell_gradient)[min(which, 2)], self, which)

    def encode(self, which: int, dtype: str) -> None:
        """Write a program for a dtype, and its address into the table."""
        place = 2 * which + list(DTYPES).index(dtype)
        if self.table[place]:
            return
        bytes_each = np.dtype(dtype).itemsize
        kept = [c if c.dtype == np.int64 else c.astype(dtype) for c in self.constants]
        words = [len(self.programs[which])]
        for step in self.programs[which]:
            if len(step.slots) > MOST_SLOTS:
                raise InternalError(f"a step of a cell has {len(step.slots)} slots, and there is room for {MOST_SLOTS}")
            words += [step.kernel.address(dtype), step.sizes.ctypes.data, step.flags, len(step.slots), step.mode]
            for s in step.slots:
                offset = kept[s.source].ctypes.data if s.kind == FIXED else s.start * bytes_each
                words += [s.kind, s.source, offset, s.size * bytes_each]
        program = np.array(words, np.int64)
        self._alive.append(kept)
        self.encoded[place] = program
        self.table[place] = program.ctypes.data

    def inside(self, which: int, dtype: str) -> list[Inside]:
        """Return the steps of a program as they stand there."""
        self.encode(which, dtype)
        words, at, found = self.encoded[2 * which + list(DTYPES).index(dtype)].tolist(), 1, []
        for step in self.programs[which]:
            *head, slots, mode = words[at : at + _STEP]
            at += _STEP
            places = []
            for kind, source, offset, item in (words[p : p + _SLOT] for p in range(at, at + _SLOT * slots, _SLOT)):
                places.append((source if kind == INCOMING else None, offset, item))
            at += _SLOT * slots
            found.append(Inside(step.kernel.name, tuple(head), bool(mode & EACH), bool(mode & INHERIT), places, step))
        return found


class _ProgramKernel(Kernel):
    """The kernel that runs one program."""

    def __init__(self, driver: Kernel, programs: Programs, which: int) -> None:
        super().__init__(driver.function)
        self._driver, self.programs, self.which = driver, programs, which
        self.outputs, self.written = programs.outputs, programs.written

    def inside(self, dtype: str) -> list[Inside]:
        """Return the steps of the program."""
        return self.programs.inside(self.which, dtype)

    def address(self, dtype: str) -> int:
        """Return the address of the machine code; see to it that the program is there."""
        self.programs.encode(self.which, dtype)
        return self._driver.address(dtype)


__all__ = ["ALONE", "EACH", "EMPTY", "FIXED", "INCOMING", "INHERIT", "MOST_SLOTS", "Programs", "Slot", "Step"]

"""Compiled loops over tables: one writes out what a planned table becomes on a card, one launches it.

    planned table                                  expanded table, in a staging slot, then on the card
    | instruction | program of a cell | ...   ──▶  | instruction | step 0 | step 1 | ... |
      KERNEL: record                                 KERNEL: record

The KERNEL word holds the address of a *record*, which is one of

    teams      | TEAMS   | function | work | word | together |
               one launch of teams of lanes (`kernels/_lanes.py`); `work` is how many lanes an item keeps busy, or, where
               `word` >= 0, that word of the instruction

    stages     | STAGES  | count | function  width height  least upto | x | y | z | scratch |  next stage ...
               a launch for each stage, of blocks of width x height threads (`Stage` in `kernels/_jit.py`); a `Count` is four
               words: plus, items, per, most

    program    | PROGRAM | steps | record  sizes  flags  slots  mode | kind  slot  bytes  item | ...  next step ...
               the steps of a cell (`kernels/cell.py`), each an instruction of its own with a record of its own

A kernel gets the address of its instruction on the card and that of the scratch. The loop asks Python for nothing: grid and
threads come from the record and the number of items (`geometry`), and `cuLaunchKernel` is called by its address.

A planned table stands in memory of the host, and so do its lists: slots that point into a list get its place on the card while
the table is written out (`moves`). Where SIZES points behind the slots of its own instruction it is moved with it. All other
addresses are those of the card.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from autobatch.cuda.driver import Device
from autobatch.kernels._errors import DeviceError, InternalError
from autobatch.kernels._jit import (
    ACCUMULATE,
    EACH,
    FLAGS,
    INCOMING,
    INHERIT,
    ITEMS,
    KERNEL,
    LENGTH,
    SIZES,
    SLOTS,
    compiled,
    inline,
    integers,
)
from autobatch.memory import address_of

TEAMS, STAGES, PROGRAM = range(3)
FORM = 0
FUNCTION, WORK, WORD, TOGETHER = range(1, 5)  # of teams
COUNT, FIRST = 1, 2  # stages or steps, and where the first begins
STAGE_FUNCTION, STAGE_WIDTH, STAGE_HEIGHT, STAGE_LEAST, STAGE_UPTO, STAGE_X, STAGE_Y, STAGE_Z, STAGE_SCRATCH, STAGE_WORDS = (
    *range(6),
    9,
    13,
    17,
    21,
)
STEP_RECORD, STEP_SIZES, STEP_FLAGS, STEP_SLOTS, STEP_MODE, STEP_WORDS = range(6)
SLOT_KIND, SLOT_SOURCE, SLOT_BYTES, SLOT_ITEM, SLOT_WORDS = range(5)

# Teams of a card: no wider than this, and where they are narrow, as many threads in a block as this.
WIDEST, BLOCK = 256, 128
# Lanes take at least this many numbers of an item before it is spread over several blocks.
LONG = 8
# Blocks that keep a card busy (132 multiprocessors with 8 of 256 threads each), and most in one direction.
BUSY, MOST_X, MOST_Y = 1056, 1 << 20, 65535


def geometry(n: int, work: int, together: bool) -> tuple[int, int, int, int]:
    """Return the launch of n > 0 items: blocks in x and y, threads in x (lanes of a team) and y (teams of a block).

    A team is as wide as its items are long, up to 256 lanes. Narrow teams share a block. Where lanes have nothing to tell each
    other, items are long and there are few of them, several blocks go over the same items.
    """
    width = 1
    while width < work and width < WIDEST:
        width *= 2
    height = 1
    while width <= 32 and height < n and height * width < BLOCK:
        height *= 2
    x = min((n + height - 1) // height, MOST_X)
    y = 1
    if not together and work > LONG * width:
        y = max(min((work + LONG * width - 1) // (LONG * width), BUSY // x, MOST_Y), 1)
    return x, y, width, height


_geometry = inline(geometry)
_LISTED_PART = 1  # trouble: a step reads a part of rows that are listed


# Calls of the driver --------------------------------------------------------------------------------------------------


@intrinsic
def _launch_kernel(typingctx, address, kernel, x, y, z, width, height, stream, parameters):
    """cuLaunchKernel, at an address: blocks in x, y, z, threads in x, y; the code it returns."""
    I32, I64 = ir.IntType(32), ir.IntType(64)

    def codegen(context, builder, signature, args):
        form = ir.FunctionType(I32, [I64, *[I32] * 7, I64, I64, I64])
        grid = [builder.trunc(a, I32) for a in args[2:7]]
        called = builder.inttoptr(args[0], form.as_pointer())
        one, nothing = ir.Constant(I32, 1), ir.Constant(I64, 0)
        return builder.call(called, [args[1], *grid, one, ir.Constant(I32, 0), args[7], args[8], nothing])

    return types.int32(*[types.int64] * 9), codegen


@intrinsic
def _wait_for(typingctx, address, stream):
    """cuStreamSynchronize, at an address."""
    I32, I64 = ir.IntType(32), ir.IntType(64)

    def codegen(context, builder, signature, args):
        return builder.call(builder.inttoptr(args[0], ir.FunctionType(I32, [I64]).as_pointer()), [args[1]])

    return types.int32(types.int64, types.int64), codegen


# Expanding ------------------------------------------------------------------------------------------------------------


@inline
def _count(record, at, n):
    """`Count.of` for the count at word `at` of a record."""
    count = max(record[at] - (-n * record[at + 1] // record[at + 2]), 1)
    return min(count, record[at + 3]) if record[at + 3] else count


@inline
def _needs(record, n, itemsize):
    """How many launches n items of a record are, and the bytes of scratch they need."""
    if n <= 0:
        return 0, 0
    if record[FORM] != STAGES:
        return 1, 0
    launches, scratch = 0, 0
    for s in range(record[COUNT]):
        at = FIRST + s * STAGE_WORDS
        if record[at + STAGE_LEAST] <= n <= record[at + STAGE_UPTO]:
            launches += 1
            scratch = max(scratch, _count(record, at + STAGE_SCRATCH, n) * itemsize)
    return launches, scratch


@inline
def _moved(address, moves, count):
    """An address on the card for one that may lie in lists of the host."""
    for k in range(count):
        start = moves[3 * k]
        if start <= address < start + moves[3 * k + 1]:
            return address - start + moves[3 * k + 2]
    return address


@compiled
def _expand(table, words, moves, n_moves, out, card, itemsize):
    """See `expand`. With out == 0 nothing is written. Returns words, launches, bytes of scratch, trouble, and where it is."""
    at, w, launches, scratch = 0, 0, 0, 0
    moves = integers(moves)
    while at < words:
        ins = integers(table + 8 * at)
        record, n, length = integers(ins[KERNEL]), ins[ITEMS], ins[LENGTH]
        if record[FORM] != PROGRAM:
            more, room = _needs(record, n, itemsize)
            launches += more
            scratch = max(scratch, room)
            if out:
                to = integers(out + 8 * w)
                for k in range(length):
                    to[k] = ins[k]
                for k in range(SLOTS, length, 2):
                    to[k] = _moved(to[k], moves, n_moves)
                behind = ins[SIZES] - (table + 8 * at)
                if 0 <= behind < 8 * length:
                    to[SIZES] = card + 8 * w + behind
            w += length
            at += length
            continue
        p = FIRST
        for _ in range(record[COUNT]):
            part = integers(record[p + STEP_RECORD])
            slots, mode, q = record[p + STEP_SLOTS], record[p + STEP_MODE], p + STEP_WORDS
            p = q + SLOT_WORDS * slots
            rounds = 1
            if mode & EACH and record[q + SLOT_KIND] == INCOMING and ins[SLOTS + 2 * record[q + SLOT_SOURCE] + 1] == 0:
                rounds = n  # all add to one and the same: one after the other
            for i in range(rounds):
                count = n if rounds == 1 else 1
                more, room = _needs(part, count, itemsize)
                launches += more
                scratch = max(scratch, room)
                if not out:
                    w += SLOTS + 2 * slots
                    continue
                to = integers(out + 8 * w)
                to[KERNEL], to[LENGTH], to[ITEMS] = record[q - STEP_WORDS + STEP_RECORD], SLOTS + 2 * slots, count
                to[SIZES], to[FLAGS] = record[q - STEP_WORDS + STEP_SIZES], record[q - STEP_WORDS + STEP_FLAGS]
                if mode & INHERIT:
                    to[FLAGS] |= ins[FLAGS] & ACCUMULATE
                for k in range(slots):
                    s = q + SLOT_WORDS * k
                    address, stride = record[s + SLOT_BYTES], 0
                    if record[s + SLOT_KIND] == INCOMING:
                        source = SLOTS + 2 * record[s + SLOT_SOURCE]
                        first, stride = ins[source], ins[source + 1]
                        if rounds > 1:
                            first = first + i * stride if stride >= 0 else integers(first)[i]
                        elif stride < 0 and address != 0:
                            return w, launches, scratch, _LISTED_PART, at
                        address += _moved(first, moves, n_moves)
                    if rounds > 1:
                        stride = record[s + SLOT_ITEM]
                    to[SLOTS + 2 * k], to[SLOTS + 2 * k + 1] = address, stride
                w += SLOTS + 2 * slots
        at += length
    return w, launches, scratch, 0, 0


class Size(NamedTuple):
    """What a planned table becomes: words of the expanded one, launches, bytes of scratch."""

    words: int
    launches: int
    scratch: int


def measure(table: int, words: int, itemsize: int) -> Size:
    """Return what a planned table becomes.

    Parameters
    ----------
    table, words : where it lies in the host's memory, and its length.
    itemsize : bytes of a number.
    """
    return Size(*_expand(table, words, 0, 0, 0, 0, itemsize)[:3])


def expand(table: int, words: int, moves: Sequence[tuple[int, int, int]], out: int, card: int, itemsize: int) -> Size:
    """Write out what a planned table becomes; returns what `measure` does.

    Parameters
    ----------
    table, words, itemsize : as for `measure`.
    moves : lists: where each lies in the host's memory, its bytes, and where it will lie on the card.
    out : address in the host's memory (a staging slot) with room for what `measure` returned.
    card : where it will lie on the card.
    """
    flat = np.array([k for move in moves for k in move] or [0], np.int64)
    *size, trouble, at = _expand(table, words, address_of(flat), len(moves), out, card, itemsize)
    if trouble:
        raise InternalError(f"a step of a cell reads a part of rows that are listed (word {at} of the planned table)")
    return Size(*size)


# Launching ------------------------------------------------------------------------------------------------------------


@compiled
def _launch(table, words, card, scratch, stream, parameters, launcher, waiter):
    """See `launch`. `waiter`: cuStreamSynchronize after each launch, if not 0. Returns word, code, launches."""
    at, launches, code = 0, 0, 0
    values = integers(parameters)
    values[1] = scratch
    values[2], values[3] = parameters, parameters + 8
    while at < words:
        ins = integers(table + 8 * at)
        record, n = integers(ins[KERNEL]), ins[ITEMS]
        values[0] = card + 8 * at
        if n <= 0:
            at += ins[LENGTH]
            continue
        if record[FORM] == STAGES:
            for s in range(record[COUNT]):
                p = FIRST + s * STAGE_WORDS
                if record[p + STAGE_LEAST] <= n <= record[p + STAGE_UPTO]:
                    code = _launch_kernel(
                        launcher,
                        record[p + STAGE_FUNCTION],
                        _count(record, p + STAGE_X, n),
                        _count(record, p + STAGE_Y, n),
                        _count(record, p + STAGE_Z, n),
                        record[p + STAGE_WIDTH],
                        record[p + STAGE_HEIGHT],
                        stream,
                        parameters + 16,
                    )
                    if code == 0 and waiter:
                        code = _wait_for(waiter, stream)
                    if code != 0:
                        return at, code, launches
                    launches += 1
        else:
            work = ins[record[WORD]] if record[WORD] >= 0 else record[WORK]
            x, y, width, height = _geometry(n, work, record[TOGETHER] != 0)
            code = _launch_kernel(launcher, record[FUNCTION], x, y, 1, width, height, stream, parameters + 16)
            if code == 0 and waiter:
                code = _wait_for(waiter, stream)
            if code != 0:
                return at, code, launches
            launches += 1
        at += ins[LENGTH]
    return at, 0, launches


def launch(
    owner: Device, table: int, words: int, card: int, scratch: int, names: Mapping[int, str], careful: bool = False
) -> int:
    """Launch an expanded table; returns how many launches there were.

    Parameters
    ----------
    table, words : where it lies in the host's memory, and its length.
    card : where the copy lies that was sent to the card.
    scratch : address on the card of the work space.
    names : from the address of a record to what errors call it.
    careful : wait for each launch, so that an error names the one that failed, and not a later call.

    Raises
    ------
    DeviceError : a launch failed. It names the row of the table, the op and the number of items.
    """
    owner.enter()
    parameters = (ctypes.c_int64 * 4)()  # two parameters of a kernel, and where they are
    driver = owner.driver
    launcher = driver.address("cuLaunchKernel")
    waiter = driver.address("cuStreamSynchronize") if careful else 0
    at, code, launches = _launch(table, words, card, scratch, owner.stream, ctypes.addressof(parameters), launcher, waiter)
    if code:
        raise _failed(owner, table, at, code, launches, names)
    return int(launches)


def _failed(owner: Device, table: int, at: int, code: int, launches: int, names: Mapping[int, str]) -> DeviceError:
    """The error of a launch that failed."""
    row, w = 0, 0
    while w < at:
        w += _words(table + 8 * w, SLOTS)[LENGTH]
        row += 1
    head = _words(table + 8 * at, SLOTS)
    name = names.get(head[KERNEL], "an unknown kernel")
    return owner.failure(f"row {row} of a table, {name} over {head[ITEMS]} items: launch {launches} failed", code)


def _words(address: int, count: int) -> list[int]:
    array: Any = (ctypes.c_int64 * count).from_address(address)
    return list(array)


__all__ = ["Size", "expand", "launch", "measure"]

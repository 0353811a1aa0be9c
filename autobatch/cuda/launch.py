"""Compiled loops over tables: one writes out what a planned table becomes on a card, one launches it.

    planned table                                  expanded table, in a staging slot, then on the card
    | instruction | program of a cell | ...   ──▶  | instruction | step 0 | step 1 | ... |
      KERNEL: record                                 KERNEL: record

The KERNEL word holds the address of a *record*, which is one of

    teams      | TEAMS   | function | work | word | together | parts | free |
               one launch of teams of lanes (`kernels/_lanes.py`); `work` is how many lanes an item keeps busy, or, where
               `word` >= 0, that word of the instruction; `parts`: blocks in z; `free`: z has no
               meaning of its own, so several instructions that may run together become one launch, one for each z (or each
               `parts` of them, which then stand in the upper half of LENGTH). Of stages the upper half says how many of the
               instructions behind this one are summed up with it: those with ADDING

    stages     | STAGES  | count | denses  least  where  copy  add | kind  function  width height  least upto | x | y | z |
               scratch | a | b | c | add | free |  next stage ...  | dense slots: slot size columns written | ...
               a launch for each stage. BLOCKS: width x height threads (`Stage` in `kernels/_jit.py`); a `Count` is four words:
               plus, items, per, most. NARROW: teams of lanes, `width` is the work, `height` whether they tell each other
               something. PRODUCT: by a library (`cublas.py`), width and height tell what is transposed, x y z are m n k, and
               a `Matrix` is four words. From `least` items on the dense slots are copied together before (by record `copy`)
               and where they are written, added where they belong after it (by record `add`)

    program    | PROGRAM | steps | record  sizes  flags  slots  mode | kind  slot  bytes  item | ...  next step ...
               the steps of a cell (`kernels/cell.py`), each an instruction of its own with a record of its own

`submit` does the whole of it: measures, expands, sends, launches.

A kernel gets the address of its instruction on the card and that of the scratch. The loop asks Python for nothing: grid and
threads come from the record and the number of items (`geometry`), and `cuLaunchKernel` is called by its address.

A planned table stands in memory of the host, and so do its lists: slots that point into a list get its place on the card while
the table is written out (`moves`). Where SIZES points behind the slots of its own instruction it is moved with it. All other
addresses are those of the card.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from autobatch.cuda.driver import Device
from autobatch.cuda.memory import Arena, staging
from autobatch.kernels._errors import DeviceError, InternalError
from autobatch.kernels._jit import (
    ACCUMULATE,
    ADDING,
    ALONE,
    ALONGSIDE,
    FLAGS,
    INCOMING,
    INHERIT,
    ITEMS,
    KERNEL,
    LENGTH,
    SIZES,
    SLOTS,
    WORDS,
    compiled,
    inline,
    integers,
)
from autobatch.memory import address_of

TEAMS, STAGES, PROGRAM = range(3)
FORM = 0
FUNCTION, WORK, WORD, TOGETHER, PARTS, FREE = range(1, 7)  # of teams
COUNT = 1  # stages or steps
DENSES, DENSE_LEAST, DENSE_AT, COPY_RECORD, ADD_RECORD = range(2, 7)  # of stages
FIRST_STEP, FIRST_STAGE = 2, 7
BLOCKS, NARROW, PRODUCT = range(3)
STAGE_KIND, STAGE_FUNCTION, STAGE_WIDTH, STAGE_HEIGHT, STAGE_LEAST, STAGE_UPTO, STAGE_X = range(7)
STAGE_Y, STAGE_Z, STAGE_SCRATCH, STAGE_A, STAGE_B, STAGE_C, STAGE_ADD, STAGE_FREE, STAGE_WORDS = (
    10,
    14,
    18,
    22,
    26,
    30,
    34,
    35,
    36,
)
MATRIX_SLOT, MATRIX_ROWS, MATRIX_COLUMNS, MATRIX_OFFSET = range(4)
DENSE_SLOT, DENSE_SIZE, DENSE_COLUMNS, DENSE_WRITTEN, DENSE_WORDS = range(5)
STEP_RECORD, STEP_SIZES, STEP_FLAGS, STEP_SLOTS, STEP_MODE, STEP_WORDS = range(6)
SLOT_KIND, SLOT_SOURCE, SLOT_BYTES, SLOT_ITEM, SLOT_WORDS = range(5)

# Teams of a card: no wider than this, and where they are narrow, as many threads in a block as this.
WIDEST, BLOCK = 256, 128
# Lanes take at least this many numbers of an item before it is spread over several blocks.
LONG = 8
# Blocks that keep a card busy (132 multiprocessors with 8 of 256 threads each), and most in one direction.
BUSY, MOST_X, MOST_Y, MOST_Z = 1056, 1 << 20, 65535, 65535


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
_ROWS = SLOTS + 4 + 1  # words of a copy of rows: two slots, and how many numbers a row has
_ALIGN = 256
REACH = 1 << 31  # numbers between two columns: libraries of products take an int32
_ONE = {"float32": 0x3F800000, "float64": 0x3FF0000000000000}  # the bits of 1
_LISTED_PART = 1  # trouble: a step reads a part of rows that are listed


# Calls of libraries ---------------------------------------------------------------------------------------------------


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


@intrinsic
def _gemm(typingctx, address, handle, transpose_a, transpose_b, m, n, k, one, a, lda, b, ldb, factor, c, ldc):
    """cublasSgemm or cublasDgemm, at an address: c = a b + factor c; `one` and `factor` are where these numbers are."""
    I32, I64 = ir.IntType(32), ir.IntType(64)
    kinds = [I64, *[I32] * 5, I64, I64, I32, I64, I32, I64, I64, I32]

    def codegen(context, builder, signature, args):
        called = builder.inttoptr(args[0], ir.FunctionType(I32, kinds).as_pointer())
        values = [builder.trunc(a, I32) if kind is I32 else a for a, kind in zip(args[1:], kinds, strict=True)]
        return builder.call(called, values)

    return types.int32(*[types.int64] * 15), codegen


# Expanding ------------------------------------------------------------------------------------------------------------


@inline
def _aligned(n):
    return (n + (_ALIGN - 1)) // _ALIGN * _ALIGN


@inline
def _count(record, at, n):
    """`Count.of` for the count at word `at` of a record."""
    count = max(record[at] - (-n * record[at + 1] // record[at + 2]), 1)
    return min(count, record[at + 3]) if record[at + 3] else count


@inline
def _needs(record, n, itemsize):
    """How many launches n items of a record are, and the bytes of scratch they need; copies of dense slots not counted."""
    if n <= 0:
        return 0, 0
    if record[FORM] != STAGES:
        return 1, 0
    launches, scratch = 0, 0
    for s in range(record[COUNT]):
        at = FIRST_STAGE + s * STAGE_WORDS
        if record[at + STAGE_LEAST] <= n <= record[at + STAGE_UPTO]:
            launches += 1
            scratch = max(scratch, _count(record, at + STAGE_SCRATCH, n) * itemsize)
    return launches, scratch


@inline
def _denses(record, n):
    """How many slots of n items have to be dense."""
    if n <= 0 or record[FORM] != STAGES or n < record[DENSE_LEAST]:
        return 0
    return record[DENSES]


@inline
def _is_dense(n, stride, size, columns, itemsize):
    """Whether a library can read n items in place: side by side, or single columns at an even distance."""
    if n == 1 or stride == size * itemsize:
        return True
    return columns == 1 and stride > size * itemsize and stride % itemsize == 0 and stride < REACH * itemsize


@inline
def _copied(to, kernel, n, size, flags, target, target_stride, source, source_stride, card):
    """Write the instruction of a copy of rows, which will lie at `card`."""
    to[KERNEL], to[LENGTH], to[ITEMS], to[SIZES], to[FLAGS] = kernel, _ROWS, n, card + 8 * (SLOTS + 4), flags
    to[SLOTS], to[SLOTS + 1], to[SLOTS + 2], to[SLOTS + 3], to[SLOTS + 4] = target, target_stride, source, source_stride, size


@inline
def _with_copies(record, out, w, card, scratch, room, itemsize):
    """See to it that the dense slots of the instruction at word w are so. Returns where the next one goes, launches, scratch.

    | copy of slot 1 | copy of slot 3 | the instruction | slot 0 added where it belongs |
    """
    ins = integers(out + 8 * w)
    n, length, flags, launches = ins[ITEMS], ins[LENGTH], ins[FLAGS], 0
    denses, first = record[DENSES], record[DENSE_AT]
    reads = 0
    for d in range(denses):
        p = first + DENSE_WORDS * d
        stride = ins[SLOTS + 2 * record[p + DENSE_SLOT] + 1]
        if not record[p + DENSE_WRITTEN] and not _is_dense(
            n, stride, record[p + DENSE_SIZE], record[p + DENSE_COLUMNS], itemsize
        ):
            reads += 1
    move = _ROWS * reads
    if move:
        to = integers(out + 8 * (w + move))
        for k in range(length - 1, -1, -1):
            to[k] = ins[k]
        behind = to[SIZES] - (card + 8 * w)
        if 0 <= behind < 8 * length:
            to[SIZES] += 8 * move
    main = integers(out + 8 * (w + move))
    before, after = w, w + move + length
    at = scratch + _aligned(room)
    for d in range(denses):
        p = first + DENSE_WORDS * d
        size, written = record[p + DENSE_SIZE], record[p + DENSE_WRITTEN]
        s = SLOTS + 2 * record[p + DENSE_SLOT]
        address, stride, item = main[s], main[s + 1], size * itemsize
        if _is_dense(n, stride, size, record[p + DENSE_COLUMNS], itemsize):
            continue
        if written:
            to, where = integers(out + 8 * after), card + 8 * after
            _copied(to, record[ADD_RECORD], n, size, flags & ACCUMULATE, address, stride, at, item, where)
            main[FLAGS] = flags & ~ACCUMULATE
            after += _ROWS
        else:
            to, where = integers(out + 8 * before), card + 8 * before
            _copied(to, record[COPY_RECORD], n, size, 0, at, item, address, stride, where)
            before += _ROWS
        main[s], main[s + 1] = at, item
        at += _aligned(n * item)
        launches += 1
    return after, launches, at - scratch


@inline
def _moved(address, moves, count):
    """An address on the card for one that may lie in lists of the host."""
    for k in range(count):
        start = moves[3 * k]
        if start <= address < start + moves[3 * k + 1]:
            return address - start + moves[3 * k + 2]
    return address


@compiled
def _expand(table, words, moves, n_moves, out, card, scratch, itemsize):
    """See `expand`. With out == 0 nothing is written, and it is counted what is needed at most.

    Returns words, launches, bytes of scratch, trouble, and where it is.
    """
    at, w, launches, most, head_at = 0, 0, 0, 0, -1
    moves = integers(moves)
    while at < words:
        ins = integers(table + 8 * at)
        record, n, length = integers(ins[KERNEL]), ins[ITEMS], ins[LENGTH]
        program = record[FORM] == PROGRAM
        p = FIRST_STEP
        for _ in range(record[COUNT] if program else 1):
            # The instruction itself, or one step of it, which may have to be done for each item on its own.
            part, slots, mode, q, rounds = record, 0, 0, 0, 1
            if program:
                part = integers(record[p + STEP_RECORD])
                slots, mode, q = record[p + STEP_SLOTS], record[p + STEP_MODE], p + STEP_WORDS
                length = SLOTS + 2 * slots
                p = q + SLOT_WORDS * slots
                if mode & ALONE:
                    rounds = n  # all add to one and the same: one after the other
            count = n if rounds == 1 else 1
            for i in range(rounds):
                more, room = _needs(part, count, itemsize)
                launches += more
                denses = _denses(part, count)
                if not out:
                    w += length
                    for d in range(denses):
                        s = part[DENSE_AT] + DENSE_WORDS * d
                        w += _ROWS
                        launches += 1
                        room = _aligned(room) + _aligned(count * part[s + DENSE_SIZE] * itemsize)
                    most = max(most, room)
                    continue
                to = integers(out + 8 * w)
                if program:
                    to[KERNEL], to[LENGTH], to[ITEMS] = record[q - STEP_WORDS + STEP_RECORD], length, count
                    to[SIZES], to[FLAGS] = record[q - STEP_WORDS + STEP_SIZES], record[q - STEP_WORDS + STEP_FLAGS]
                    if mode & INHERIT:
                        to[FLAGS] |= ins[FLAGS] & ACCUMULATE
                    if i > 0:
                        to[FLAGS] &= ~ALONGSIDE
                    for k in range(slots):
                        s = q + SLOT_WORDS * k
                        address, stride = record[s + SLOT_BYTES], 0
                        if record[s + SLOT_KIND] == INCOMING:
                            source = SLOTS + 2 * record[s + SLOT_SOURCE]
                            first, stride = ins[source], ins[source + 1]
                            if rounds > 1:
                                first = first + i * stride if stride >= 0 else integers(first)[i]
                            elif stride < 0 and address != 0:
                                return w, launches, most, _LISTED_PART, at
                            address += _moved(first, moves, n_moves)
                        if rounds > 1:
                            stride = record[s + SLOT_ITEM]
                        to[SLOTS + 2 * k], to[SLOTS + 2 * k + 1] = address, stride
                else:
                    for k in range(length):
                        to[k] = ins[k]
                    for k in range(SLOTS, length, 2):
                        to[k] = _moved(to[k], moves, n_moves)
                    behind = ins[SIZES] - (table + 8 * at)
                    if 0 <= behind < 8 * length:
                        to[SIZES] = card + 8 * w + behind
                if part[FORM] == TEAMS:
                    to[LENGTH] |= part[PARTS] << 32
                if to[FLAGS] & ADDING:
                    head = integers(out + 8 * max(head_at, 0))
                    same = head_at >= 0 and head[KERNEL] == to[KERNEL] and head[ITEMS] == to[ITEMS]
                    if same and rounds == 1 and not denses:
                        head[LENGTH] += 1 << 32
                        launches -= more
                    else:
                        to[FLAGS] &= ~ADDING
                if not to[FLAGS] & ADDING:
                    head_at = -1 if denses else w
                if denses:
                    w, more, room = _with_copies(part, out, w, card, scratch, room, itemsize)
                    launches += more
                else:
                    w += length
                most = max(most, room)
        at += ins[LENGTH]
    return w, launches, most, 0, 0


class Size(NamedTuple):
    """What a planned table becomes: words of the expanded one, launches, bytes of scratch."""

    words: int
    launches: int
    scratch: int


def measure(table: int, words: int, itemsize: int) -> Size:
    """Return what a planned table becomes; where products want their operands copied together, what it becomes at most.

    Parameters
    ----------
    table, words : where it lies in the host's memory, and its length.
    itemsize : bytes of a number.
    """
    return Size(*_expand(table, words, 0, 0, 0, 0, 0, itemsize)[:3])


def expand(
    table: int, words: int, moves: Sequence[tuple[int, int, int]], out: int, card: int, scratch: int, itemsize: int
) -> Size:
    """Write out what a planned table becomes; returns what that is.

    Parameters
    ----------
    table, words, itemsize : as for `measure`.
    moves : lists: where each lies in the host's memory, its bytes, and where it will lie on the card.
    out : address in the host's memory (a staging slot) with room for what `measure` returned.
    card : where it will lie on the card.
    scratch : address on the card of the work space, with room for what `measure` returned.
    """
    flat = np.array([k for move in moves for k in move] or [0], np.int64)
    *size, trouble, at = _expand(table, words, address_of(flat), len(moves), out, card, scratch, itemsize)
    if trouble:
        raise InternalError(f"a step of a cell reads a part of rows that are listed (word {at} of the planned table)")
    return Size(*size)


# Launching ------------------------------------------------------------------------------------------------------------


@inline
def _matrix(ins, record, at, itemsize):
    """Address, and numbers from one column to the next, of a matrix of a product."""
    s = SLOTS + 2 * record[at + MATRIX_SLOT]
    distance = record[at + MATRIX_ROWS]
    if record[at + MATRIX_COLUMNS] == 1 and ins[ITEMS] > 1:
        distance = ins[s + 1] // itemsize
    return ins[s] + record[at + MATRIX_OFFSET] * itemsize, distance


@inline
def _free(record, n):
    """Whether all launches of n items of a record leave z free."""
    if record[FORM] != STAGES:
        return record[FREE] != 0
    free = True
    for s in range(record[COUNT]):
        p = FIRST_STAGE + s * STAGE_WORDS
        if record[p + STAGE_LEAST] <= n <= record[p + STAGE_UPTO]:
            free &= record[p + STAGE_FREE] != 0
    return free


@inline
def _group(ins, table, at, words):
    """How many instructions, from the one at word `at` on, run as one."""
    length = ins[LENGTH] & WORDS
    count, next_ = 1, at + length
    record = integers(ins[KERNEL])
    if not _free(record, ins[ITEMS]):
        return count
    limit = MOST_Z // record[PARTS] if record[FORM] == TEAMS else MOST_Z
    while next_ < words and count < limit:
        other = integers(table + 8 * next_)
        same = other[KERNEL] == ins[KERNEL] and other[ITEMS] == ins[ITEMS] and other[LENGTH] == ins[LENGTH]
        if not same or not other[FLAGS] & ALONGSIDE:
            break
        count += 1
        next_ += length
    return count


@compiled
def _launch(table, words, card, scratch, itemsize, stream, parameters, launcher, waiter, handle, gemm):
    """See `launch`. `waiter`: cuStreamSynchronize after each launch, if not 0. Returns word, code, launches, what failed.

    parameters  | the instruction | the scratch | address of the first | address of the second | 1 | 0 |
    """
    at, launches, code = 0, 0, 0
    values = integers(parameters)
    values[1] = scratch
    values[2], values[3] = parameters, parameters + 8
    while at < words:
        ins = integers(table + 8 * at)
        record, n = integers(ins[KERNEL]), ins[ITEMS]
        values[0] = card + 8 * at
        if ins[FLAGS] & ADDING:  # summed up with one before it
            at += ins[LENGTH] & WORDS
            continue
        staged = record[FORM] == STAGES
        group = _group(ins, table, at, words)
        for s in range((record[COUNT] if staged else 1) if n > 0 else 0):
            p = FIRST_STAGE + s * STAGE_WORDS
            kind = NARROW
            if staged:
                kind = record[p + STAGE_KIND]
                if n < record[p + STAGE_LEAST] or n > record[p + STAGE_UPTO]:
                    continue
            if kind == PRODUCT:
                a, lda = _matrix(ins, record, p + STAGE_A, itemsize)
                b, ldb = _matrix(ins, record, p + STAGE_B, itemsize)
                c, ldc = _matrix(ins, record, p + STAGE_C, itemsize)
                add = record[p + STAGE_ADD]
                if add < 0:
                    add = ins[FLAGS] & ACCUMULATE
                code = _gemm(
                    gemm, handle, record[p + STAGE_WIDTH], record[p + STAGE_HEIGHT], _count(record, p + STAGE_X, n),
                    _count(record, p + STAGE_Y, n), _count(record, p + STAGE_Z, n), parameters + 32, a, lda, b, ldb,
                    parameters + (32 if add else 40), c, ldc,
                )  # fmt: skip
            else:
                if kind == BLOCKS:
                    function, width, height = record[p + STAGE_FUNCTION], record[p + STAGE_WIDTH], record[p + STAGE_HEIGHT]
                    x, y, z = _count(record, p + STAGE_X, n), _count(record, p + STAGE_Y, n), _count(record, p + STAGE_Z, n)
                else:
                    function, work, together, z = record[FUNCTION], record[WORK], record[TOGETHER], record[PARTS]
                    if staged:
                        function, work, together = record[p + STAGE_FUNCTION], record[p + STAGE_WIDTH], record[p + STAGE_HEIGHT]
                        z = 1
                    elif record[WORD] >= 0:
                        work = ins[record[WORD]]
                    x, y, width, height = _geometry(n, work, together != 0)
                z *= group
                code = _launch_kernel(launcher, function, x, y, z, width, height, stream, parameters + 16)
            if code != 0:
                return at, code, launches, kind
            if waiter:
                code = _wait_for(waiter, stream)
                if code != 0:
                    return at, code, launches, NARROW
            launches += 1
        at += group * (ins[LENGTH] & WORDS)
    return at, 0, launches, 0


def launch(
    owner: Device,
    table: int,
    words: int,
    card: int,
    scratch: int,
    dtype: str,
    names: Mapping[int, str],
    products: Any = None,
    careful: bool = False,
) -> int:
    """Launch an expanded table; returns how many launches there were.

    Parameters
    ----------
    table, words : where it lies in the host's memory, and its length.
    card : where the copy lies that was sent to the card.
    scratch : address on the card of the work space.
    names : from the address of a record to what errors call it.
    products : the library of products (`cublas.Cublas`), where records want one.
    careful : wait for each launch, so that an error names the one that failed, and not a later call.

    Raises
    ------
    DeviceError : a launch failed. It names the row of the table, the op and the number of items.
    """
    owner.enter()
    parameters = (ctypes.c_int64 * 6)(0, 0, 0, 0, _ONE[dtype], 0)
    driver = owner.driver
    launcher = driver.address("cuLaunchKernel")
    waiter = driver.address("cuStreamSynchronize") if careful else 0
    handle, gemm = products.gemm(dtype) if products is not None else (0, 0)
    itemsize, at = 4 << (dtype == "float64"), ctypes.addressof(parameters)
    at, code, launches, kind = _launch(table, words, card, scratch, itemsize, owner.stream, at, launcher, waiter, handle, gemm)
    if code:
        raise _failed(owner, table, at, code, launches, names, products if kind == PRODUCT else None)
    return int(launches)


def _failed(
    owner: Device, table: int, at: int, code: int, launches: int, names: Mapping[int, str], products: Any
) -> DeviceError:
    """The error of a launch that failed."""
    row, w = 0, 0
    while w < at:
        w += _words(table + 8 * w, SLOTS)[LENGTH] & WORDS
        row += 1
    head = _words(table + 8 * at, SLOTS)
    name = names.get(head[KERNEL], "a kernel without a name")
    what = f"row {row} of a table, {name} over {head[ITEMS]} items: launch {launches} failed"
    return DeviceError(f"{what}: {products.error(code)}") if products is not None else owner.failure(what, code)


def _words(address: int, count: int) -> list[int]:
    array: Any = (ctypes.c_int64 * count).from_address(address)
    return list(array)


# The whole way --------------------------------------------------------------------------------------------------------


class _Work(threading.local):
    """The work space of kernels. The stream keeps the order of things, so it is used again at once."""

    def __init__(self) -> None:
        self.scratch = Arena("scratch")


class Sent(NamedTuple):
    """What a planned table became, and where its lists lie on the card."""

    size: Size
    lists: int


def submit(
    owner: Device,
    table: int,
    words: int,
    lists: np.ndarray,
    arena: Arena,
    dtype: str,
    names: Mapping[int, str],
    others: Sequence[tuple[int, int, int]] = (),
    products: Any = None,
    careful: bool = False,
) -> Sent:
    """Send a planned table and its lists to the card, in one copy, and launch it. Does not wait for it.

    Parameters
    ----------
    table, words : as for `expand`.
    lists : integers that slots of the table point to.
    arena : gives the memory for both; who keeps it may send tables that point into these lists.
    others : such lists, sent before, as `moves` of `expand`.
    dtype, names, products, careful : as for `launch`.
    """
    work: _Work = owner.kept.get("launch") or owner.kept.setdefault("launch", _Work())
    itemsize, own = 4 << (dtype == "float64"), lists.nbytes
    most = measure(table, words, itemsize)
    work.scratch.cut((0, 0))
    at, scratch = arena.take(own + 8 * most.words), work.scratch.take(most.scratch)
    moves = [(address_of(lists), own, at), *others] if own else others
    with staging(own + 8 * most.words) as staged:
        ctypes.memmove(staged.address, address_of(lists), own)
        size = expand(table, words, moves, staged.address + own, at + own, scratch, itemsize)
        staged.send(at, own + 8 * size.words)
        where = staged.address + own, size.words, at + own, scratch
        launches = launch(owner, *where, dtype, names, products, careful)
    return Sent(size._replace(launches=launches), at)


__all__ = ["Sent", "Size", "expand", "launch", "measure", "submit"]

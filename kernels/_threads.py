"""One instruction by several threads: its items fall into pieces, or the matrix of a large product does.

One thread, the *leader*, walks the table. Where an instruction may be divided it puts it on the *board*; *helpers*, threads
that look at the board as long as a table runs, and the leader itself take pieces of it, and when the last piece is done the
leader goes on. A large product inside an instruction that is not divided (the gradient of a weight sums over all items; one
item may be a whole minibatch) is put on the board by `gemm_at` itself.

    word  0            8      16               24               64                    128 ...
          +------------+------+----------------+----------------+---------------------+------------------
    board | generation,| done | instruction,   | what a process | a product, written  | of each helper:
          | bits taken |      | pieces         | decides once   | like an instruction | asleep? its lock
          +------------+------+----------------+----------------+---------------------+------------------

A piece is taken by setting its bit in word 0, in one step that fails if another job has been put up in between: so nobody takes
a piece of a job that is over, and what the job consists of holds still as long as a bit is free. The leader waits for nobody
but who took a piece, so a helper that the system keeps from running costs nothing.

Where pieces begin depends on how many there are, not on who takes them or when: numbers are the same bits in each run.

Helpers are threads of the system that know nothing of Python and never hold the GIL. Between tables they sleep, on locks that
Python has for every system (`PyThread_acquire_lock`), but stay awake for 0.4 ms in case that another table follows, as backward
does forward.
"""

from __future__ import annotations

import platform
import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from autobatch.kernels import _blas
from autobatch.kernels._blas import ADDED, PRODUCT, SUMMED, TURNED_A, TURNED_B, gemm_at, sum_columns
from autobatch.kernels._jit import (
    FLAGS,
    ITEMS,
    KERNEL,
    LENGTH,
    SIZES,
    SLOTS,
    WORDS,
    Native,
    address_of,
    call,
    compiled,
    inline,
    integers,
    itemsize,
    kernel,
    move_slot,
    pointer,
)

JOB, QUEUED, FINISHED, LEADING, DONE, DIVIDED, PIECES, MODE = 0, 2, 3, 4, 8, 16, 17, 18
THREADS, LEAF, YIELD, ACQUIRE, RELEASE, SET_BLAS, GET_BLAS, SLEEP = range(24, 32)
NOW, ORDERS = 80, 88  # what there is to know of the table that the caller leads, and of table t of the queue: + 8 (t mod ROOM)
ROOM = 4  # for tables in the queue
TABLE, END, SCRATCH, BY, LEAF_OF, PRODUCT_OF, BLAS = range(7)
HELPERS = 128  # the words of helper h begin at HELPERS + 8 h
ASLEEP, LOCK, BOARD_AT, NUMBER = range(4)  # of a helper: whether it sleeps, on what, where the board is, and h
MOST_THREADS = 16
BOARD_WORDS = HELPERS + 8 * MOST_THREADS
LONGEST = 256  # words of an instruction that is divided
FULL = (1 << 32) - 1  # all bits
GENERATIONS = (1 << 30) - 1  # what a generation is counted up to
ITEMWISE, PRODUCTWISE = 0, 1
CLOSED = -1
_PATIENCE = 2_000  # looks at the board, of 25 ns each, before another thread is let run
_TIRED = 4 * _PATIENCE  # looks of one who waits for others, who may wait for its core, before it sleeps
_NEVER = 1 << 62
_NAP = 1 if sys.platform == "win32" else 50  # ms; µs
_LINGER = 16_000  # looks without a table before a helper goes to sleep: to wake one takes the leader 70 µs

_INT = ir.IntType(64)
_X86, _ARM = ("llvm.x86.sse2.pause", ()), ("llvm.aarch64.hint", (1,))  # of which 1 is "yield"
_PAUSE = {"x86_64": _X86, "AMD64": _X86, "aarch64": _ARM, "arm64": _ARM}.get(platform.machine())


# Words that several threads read and write ----------------------------------------------------------------------------


@intrinsic
def _load(typingctx, board, at):
    """_load(board, at): a word, as the last one to write it left it, with all that was written before."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(builder.gep(args[0], [args[1]]), "seq_cst", 8)

    return types.int64(board, types.int64), codegen


@intrinsic
def _store(typingctx, board, at, value):
    """_store(board, at, value): a word, seen by others not before all that was written earlier."""

    def codegen(context, builder, signature, args):
        builder.store_atomic(args[2], builder.gep(args[0], [args[1]]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(board, types.int64, types.int64), codegen


@intrinsic
def _add(typingctx, board, at, value):
    """_add(board, at, value): add to a word; what it was before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", builder.gep(args[0], [args[1]]), args[2], "seq_cst")

    return types.int64(board, types.int64, types.int64), codegen


@intrinsic
def _exchange(typingctx, board, at, value):
    """_exchange(board, at, value): write a word; what it was before."""

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("xchg", builder.gep(args[0], [args[1]]), args[2], "seq_cst")

    return types.int64(board, types.int64, types.int64), codegen


@intrinsic
def _replace(typingctx, board, at, old, new):
    """_replace(board, at, old, new): write a word if it is `old`; whether it was."""

    def codegen(context, builder, signature, args):
        place = builder.gep(args[0], [args[1]])
        return builder.extract_value(builder.cmpxchg(place, args[2], args[3], "seq_cst", "seq_cst"), 1)

    return types.boolean(board, types.int64, types.int64, types.int64), codegen


@intrinsic
def _pause(typingctx):
    """_pause(): tell the processor that this is a loop that waits."""

    def codegen(context, builder, signature, args):
        if _PAUSE is not None:
            name, numbers = _PAUSE
            values = [ir.Constant(ir.IntType(32), n) for n in numbers]
            kind = ir.FunctionType(ir.VoidType(), [v.type for v in values])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _call_yield(typingctx, address):
    """_call_yield(address): let another thread run, by the system's own function."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def _call_sleep(typingctx, address, time):
    """_call_sleep(address, time): sleep, by the system's own function, in its unit."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
        time = builder.trunc(args[1], ir.IntType(32))
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [time])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _call_set(typingctx, address, number):
    """_call_set(address, number): tell a BLAS how many threads to use."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
        number = builder.trunc(args[1], ir.IntType(32))
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [number])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _call_get(typingctx, address):
    """_call_get(address): ask a BLAS how many threads it uses."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.sext(builder.call(builder.inttoptr(args[0], kind.as_pointer()), []), _INT)

    return types.int64(types.int64), codegen


@intrinsic
def _call_lock(typingctx, address, lock, wait):
    """_call_lock(address, lock, wait): PyThread_acquire_lock or, which does not look at `wait`, PyThread_release_lock."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.IntType(32), [_INT, ir.IntType(32)])
        wait = builder.trunc(args[2], ir.IntType(32))
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1], wait])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@inline
def _edge(size, p, pieces):
    """Where piece p of `size` rows or columns begins: at a multiple of 16, but for the end."""
    return size if p == pieces else size * p // pieces & -16


@intrinsic
def _space(typingctx, like):
    """Space for one instruction, on the stack."""

    def codegen(context, builder, signature, args):
        return cgutils.alloca_once(builder, _INT, size=ir.Constant(_INT, LONGEST))

    return types.CPointer(types.int64)(like), codegen


# Pieces ---------------------------------------------------------------------------------------------------------------


@inline
def _piece(board, p, space):
    """Do piece p of the job on the board."""
    ins, pieces = integers(board[DIVIDED]), board[PIECES]
    length = ins[LENGTH] & WORDS
    for k in range(length):
        space[k] = ins[k]
    if board[MODE] == PRODUCTWISE:
        space[ITEMS], space[SIZES] = p, pieces
    else:
        n = ins[ITEMS]
        first, end = n * p // pieces, n * (p + 1) // pieces
        space[ITEMS] = end - first
        for k in range(SLOTS, length - 1, 2):
            move_slot(space, k, ins, k, first)
    call(ins[KERNEL], space, integers(board[LEAF]))


@inline
def _take(board, job, preferred):
    """Take a piece of a job as it was seen on the board, `preferred` if it is free; -1 if all are taken."""
    while True:
        bits = job & FULL
        if job == CLOSED or bits == FULL:
            return -1
        p = preferred
        if bits >> p & 1:
            p = 0
            while bits >> p & 1:
                p += 1
        if _replace(board, JOB, job, job | (1 << p)):
            return p
        now = _load(board, JOB)
        if now >> 32 != job >> 32:
            return -1
        job = now


@inline
def _wait_a_little(board, looks, most):
    """Wait before the next look at the board; after many let another thread run, after `most` sleep. How many there were."""
    _pause()
    looks += 1
    if looks % _PATIENCE == 0:
        if looks < most:
            _call_yield(board[YIELD])
        else:
            _call_sleep(board[SLEEP], _NAP)
    return looks


@inline
def _together(board, space):
    """Put a job up, take part in it, and wait until it is done."""
    pieces = board[PIECES]
    _store(board, DONE, 0)
    job = (((board[JOB] >> 32) + 1 & GENERATIONS) << 32) | (FULL >> pieces << pieces)
    _store(board, JOB, job)
    p = _take(board, job, 0)
    while p >= 0:
        _piece(board, p, space)
        _add(board, DONE, 1)
        p = _take(board, _load(board, JOB), p)
    looks = 0
    while _load(board, DONE) < pieces:
        looks = _wait_a_little(board, looks, _TIRED)


@kernel
def product_together(ins, T):
    """Put the product on the board up; `ins` is the board."""
    ins[DIVIDED], ins[PIECES], ins[MODE] = address_of(ins) + 8 * PRODUCT, ins[THREADS], PRODUCTWISE
    _together(ins, _space(0))


@kernel(before=_blas.ready)
def product_piece(ins, T):
    """Rows, or columns, of a product, or rows of a sum of columns: piece ITEMS of as many as SIZES says."""
    p, pieces, flags = ins[ITEMS], ins[SIZES], ins[FLAGS]
    a, lda, b, ldb, c, ldc = ins[SLOTS], ins[SLOTS + 1], ins[SLOTS + 2], ins[SLOTS + 3], ins[SLOTS + 4], ins[SLOTS + 5]
    m, n, k = ins[SLOTS + 6], ins[SLOTS + 7], ins[SLOTS + 8]
    ta, tb, add = flags & TURNED_A, flags & TURNED_B, flags & ADDED
    if flags & SUMMED:
        first, end = _edge(m, p, pieces), _edge(m, p + 1, pieces)
        at = first * itemsize(T)
        sum_columns(pointer(c + at, T), pointer(a + at, T), lda, end - first, n)
    elif m >= n:
        first, end = _edge(m, p, pieces), _edge(m, p + 1, pieces)
        at_a = first * lda if ta else first
        gemm_at(ta, tb, end - first, n, k, pointer(a, T), at_a, lda, pointer(b, T), 0, ldb, add, pointer(c, T), first, ldc, T)
    else:
        first, end = _edge(n, p, pieces), _edge(n, p + 1, pieces)
        at_b, at_c = first if tb else first * ldb, first * ldc
        gemm_at(ta, tb, m, end - first, k, pointer(a, T), 0, lda, pointer(b, T), at_b, ldb, add, pointer(c, T), at_c, ldc, T)


@inline
def _lead(board, order, space):
    """Walk a table as its leader; `order` are the words about it. The BLAS uses one thread meanwhile."""
    start, words, scratch, threads = order[TABLE], order[END], order[SCRATCH], order[BY]
    board[THREADS], board[LEAF], board[PRODUCT + KERNEL] = threads, order[LEAF_OF], order[PRODUCT_OF]
    if board[SET_BLAS] != 0:
        _call_set(board[SET_BLAS], 1)
    _store(board, JOB, (board[JOB + 1] << 32) | FULL)
    for h in range(1, threads):
        own = integers(address_of(board) + 8 * (HELPERS + 8 * h))
        if _exchange(own, ASLEEP, 0):
            _call_lock(board[RELEASE], own[LOCK], 0)
    at = 0
    while at < words:
        ins = integers(start + 8 * at)
        pieces = min(ins[LENGTH] >> 32, threads)
        if pieces > 1:
            board[DIVIDED], board[PIECES], board[MODE] = start + 8 * at, pieces, ITEMWISE
            _together(board, space)
        else:
            call(ins[KERNEL], ins, scratch)
        at += ins[LENGTH] & WORDS
    board[JOB + 1] = _load(board, JOB) >> 32
    _store(board, JOB, CLOSED)
    if board[SET_BLAS] != 0 and _call_get(board[GET_BLAS]) == 1:  # else the program has set it meanwhile
        _call_set(board[SET_BLAS], order[BLAS])


@inline
def _help(board, preferred, space):
    """Do a piece of the job on the board, if there is one; whether there was a table to help with."""
    job = _load(board, JOB)
    if job != CLOSED and job & FULL != FULL:
        p = _take(board, job, preferred)
        if p >= 0:
            _piece(board, p, space)
            _add(board, DONE, 1)
        return 2
    return int(job != CLOSED)


@inline
def _run_queue(board, space):
    """Run the tables in the queue as their leader, unless somebody does."""
    if _load(board, FINISHED) == _load(board, QUEUED) or not _replace(board, LEADING, 0, 1):
        return
    done = _load(board, FINISHED)
    while done != _load(board, QUEUED):
        _lead(board, integers(address_of(board) + 8 * (ORDERS + 8 * (done % ROOM))), space)
        done += 1
        _store(board, FINISHED, done)
    _store(board, LEADING, 0)


@compiled
def run_together(board):
    """Run the table that the words NOW describe as `_vm.run` does, with helpers.

    Parameters
    ----------
    board : int64 array of BOARD_WORDS, of one leader at a time, whose queue is empty. The words from YIELD to SLEEP
        (functions), those of locks, and those from NOW on are set: the table, its words, scratch (the scalars 1 and 0 and,
        behind them, the address of the board, `_blas.BOARD`), how many threads; scratch without a board and `product_piece`
        for pieces; how many threads the BLAS may use afterwards.
    """
    board = integers(board.ctypes.data)
    _lead(board, integers(address_of(board) + 8 * NOW), _space(0))


@compiled
def put_in_queue(board):
    """Let helpers see the table whose words were written behind those that are in the queue, and wake one of them."""
    board = integers(board.ctypes.data)
    _store(board, QUEUED, _load(board, QUEUED) + 1)
    own = integers(address_of(board) + 8 * (HELPERS + 8))
    if _exchange(own, ASLEEP, 0):
        _call_lock(board[RELEASE], own[LOCK], 0)


@compiled
def wait_for_queue(board, most):
    """Take part in what is in the queue until at most so many tables are left."""
    board, space = integers(board.ctypes.data), _space(0)
    looks = 0
    while _load(board, QUEUED) - _load(board, FINISHED) > most:
        _run_queue(board, space)
        if _help(board, 0, space) == 2:
            looks = 0
            continue
        looks = _wait_a_little(board, looks, _TIRED)


@Native
def help_out(own):
    """Be a helper, whose words begin at `own`, for ever: take pieces while a table runs, sleep when none has for a while."""
    board, h, space = integers(own[BOARD_AT]), own[NUMBER], _space(0)
    while True:
        looks, idle = 0, 0
        while idle < _LINGER:
            _run_queue(board, space)
            found = _help(board, h, space)
            idle = 0 if found else idle + 1
            if found == 2:
                looks = 0
                continue
            looks = _wait_a_little(board, looks, _NEVER)
        _store(own, ASLEEP, 1)
        waiting = _load(board, JOB) == CLOSED and _load(board, QUEUED) == _load(board, FINISHED)
        if waiting or not _exchange(own, ASLEEP, 0):
            _call_lock(board[ACQUIRE], own[LOCK], 1)

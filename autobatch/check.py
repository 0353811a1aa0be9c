"""Debug mode: the tables that would run anyway, checked word by word before and watched while they run.

With ``AUTOBATCH_CHECK=1`` in the environment, `execute.py` hands every table to `run_checked` instead of to the interpreter:

    before   every word of every instruction is compared with what follows from the graph, found anew and in another way than
             the planner found it: kernel, length, number of items, where each item of each operand lies, immediates, flags.
             Blocks must lie in memory of this graph, apart from each other; every gradient must be formed, and once.
    while    instructions run one by one. Memory that nobody has written to yet holds a NaN of its own kind, the *poison*:
               an argument that holds poison     was read before it was computed
               a result that holds poison        was not written completely, or depends on what lay there before
               a store that finds no poison      loses what was written there first
               an addition that finds poison     adds to nothing
             and what lies around the result is compared with a copy, to see what the kernel wrote elsewhere.
    after    all memory is compared with the copy.

A table that breaks a promise raises InternalError, which names the op, the batch, the slot and the address, and what was
expected. Values and gradients are the same bits as without the check on one thread. An instruction takes about 0.5 ms. Up to
SMALL bytes of memory are compared after each of them, and of more only what lies within NEAR bytes of the result.

Left out: pages that raise a signal where nobody may write. They see no more than overflows of whole blocks.

`find_nan` answers the other question that is asked of values after the fact: where did the first NaN come up?
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from autobatch.graph import (
    BACK,
    IMMEDIATES,
    INPUT,
    KIND,
    OP,
    OUTPUTS,
    PARAMETERS,
    RECORDED,
    ROW,
    SIZE,
    START,
    STOP,
    TABLE,
    TYPES,
    VIEW,
    Graph,
    NodeType,
)
from autobatch.kernels._errors import InternalError, NumericalError, message
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, KERNEL, LENGTH, SIZES, SLOTS, WORDS
from autobatch.kernels._op import DENSE, SHARED
from autobatch.kernels._rows import add_rows, add_to_table, copy_rows, zero_rows
from autobatch.kernels._threads import LONGEST, MOST_THREADS
from autobatch.kernels._vm import run
from autobatch.machine import Job
from autobatch.memory import address_of, array_at

SMALL = 1 << 22
NEAR = 1 << 18
_WORDS: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.uint32), "float64": np.dtype(np.uint64)}
_POISON = {"float32": 0x7FC5A5A5, "float64": 0x7FF8A5A5A5A5A5A5}

Integers = NDArray[np.int64]


def _view(address: int, count: int, dtype: Any) -> NDArray[Any]:
    """Return `count` numbers at an address as an array, without a copy."""
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype)


def poison(span: tuple[int, int], dtype: str) -> None:
    """Fill memory, from the first to before the last address, with poison."""
    start, end = span
    if end > start:
        _view(start, (end - start) // _WORDS[dtype].itemsize, _WORDS[dtype])[:] = _POISON[dtype]


# Memory ---------------------------------------------------------------------------------------------------------------


class _Memory:
    """All memory that the instructions of a table may read or write, and a copy of it as it should be."""

    def __init__(self, spans: Sequence[tuple[int, int, str]], dtype: str) -> None:
        self.spans = sorted(set(spans))
        self.starts = np.array([s[0] for s in self.spans], np.int64)
        self.ends = np.array([s[1] for s in self.spans], np.int64)
        self.names = [s[2] for s in self.spans]
        self.word, self.poison = _WORDS[dtype], _POISON[dtype]
        self.live = [_view(start, end - start, np.uint8) for start, end, _ in self.spans]
        self.copies = [live.copy() for live in self.live]
        self.small = sum(live.size for live in self.live) <= SMALL

    def find(self, rows: Integers, size: int) -> Integers:
        """Return the span in which each piece of `size` bytes lies, -1 for none."""
        found = np.searchsorted(self.starts, rows, side="right") - 1
        return np.where((found >= 0) & (rows + size <= self.ends[found]), found, -1)

    def where(self, address: int) -> str:
        """Say in words where an address lies."""
        span = int(self.find(np.array([address], np.int64), 1)[0])
        place = "no memory of this graph" if span < 0 else f"{self.names[span]} + {address - self.starts[span]}"
        return f"{address:#x}, in {place}"

    def _pieces(self, rows: Integers, size: int, dtype: Any) -> Iterator[tuple[int, Any]]:
        """Yield (span, index into it as an array of dtype) that together are the pieces of `size` bytes at the rows."""
        unit = np.dtype(dtype).itemsize
        spans = self.find(rows, size)
        for span in np.unique(spans):
            offsets = (rows[spans == span] - self.starts[span]) // unit
            first, last = int(offsets.min()), int(offsets.max()) + size // unit
            if offsets.size == 1 or (np.diff(offsets) == size // unit).all() or (offsets == first).all():
                yield int(span), slice(first, last)
            else:
                yield int(span), (offsets[:, None] + np.arange(size // unit)).ravel()

    def _as(self, array: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
        return array[: array.size // dtype.itemsize * dtype.itemsize].view(dtype)

    def poisoned(self, rows: Integers, count: int) -> int:
        """Return how many of the numbers in these pieces are poison."""
        pieces = self._pieces(rows, count * self.word.itemsize, self.word)
        return sum(int((self._as(self.live[span], self.word)[index] == self.poison).sum()) for span, index in pieces)

    def fill(self, rows: Integers, count: int) -> None:
        """Poison these pieces, and their copy."""
        for span, index in self._pieces(rows, count * self.word.itemsize, self.word):
            for arrays in (self.live, self.copies):
                self._as(arrays[span], self.word)[index] = self.poison

    def accept(self, rows: Integers, size: int) -> None:
        """Take these pieces over into the copy: they have been written to, as they should."""
        for span, index in self._pieces(rows, size, np.uint8):
            self.copies[span][index] = self.live[span][index]

    def changed(self, low: int | None = None, high: int | None = None) -> int | None:
        """Return an address at which memory differs from its copy; only between two addresses, if the memory is large."""
        for k, (start, end, _) in enumerate(self.spans):
            a, b = 0, end - start
            if low is not None and high is not None and not self.small:
                a, b = max(low - NEAR - start, 0) // 8 * 8, min(high + NEAR - start, b)
            if a < b:
                live, copy = self.live[k][a:b], self.copies[k][a:b]
                whole = (b - a) // 8 * 8
                if not np.array_equal(live[:whole].view(np.int64), copy[:whole].view(np.int64)) or not np.array_equal(
                    live[whole:], copy[whole:]
                ):
                    return start + a + int(np.flatnonzero(live != copy)[0])
        return None


# Instructions ---------------------------------------------------------------------------------------------------------


class _Instruction(NamedTuple):
    """The words of one instruction."""

    at: int
    words: Integers

    @property
    def items(self) -> int:
        return int(self.words[ITEMS])

    @property
    def flags(self) -> int:
        return int(self.words[FLAGS])

    @property
    def pieces(self) -> int:
        """Into how many pieces several threads may divide the items."""
        return int(self.words[LENGTH]) >> 32


# What the result finds where it goes: poison only; none; either; or it is poisoned first, work space that is used again.
STORE, ADD, ANY, FRESH = "store", "add", "any", "fresh"
PREPARED, ROWS_ADDED = -1, -2  # what a backward instruction does, if not the gradient of argument 0, 1, ...


class _Call(NamedTuple):
    """A checked instruction: what it reads and writes. Pieces are (name, rows, bytes of one)."""

    instruction: _Instruction
    what: str
    batch: str
    reads: list[tuple[str, Integers, int]]
    result: tuple[str, Integers, int]
    finds: str
    also: list[tuple[Integers, int]]  # other pieces it may change
    unwanted: int = 0  # address of results that nobody wants, which may hold anything
    inside: Any = None  # kernel of a cell: the call is run step by step


class _Checker:
    """Checks one table of one segment; `calls` is what it found, in order."""

    def __init__(self, job: Job) -> None:
        graph, execution, segment, backward = job.graph, job.execution, job.segment, job.backward
        self.job, self.execution, self.graph, self.words = job, execution, graph, job.words
        self.table = array_at(job.table, job.words, "int64")
        self.segment, self.backward, self.scratch = segment, backward, job.scratch
        self.dtype, self.itemsize = graph.dtype, execution.itemsize
        self.n1 = segment.n1 if backward is None else min(segment.n1, backward.loss + 1)
        self.types, self.args, self.positions = execution.types, execution.args.astype(np.int64), execution.positions
        self.address = execution.address
        self.parameters = {p.pid: p for p in (getattr(q, "of", q) for q in [*graph.parameters, *graph.tables])}
        self.records: dict[int, NodeType] = {int(t): TYPES.records[t] for t in segment.present}
        self.local = {int(t): l for l, t in enumerate(segment.present)}
        self.rows_kernels = {k.address(self.dtype): k.name for k in (copy_rows, zero_rows, add_rows, add_to_table)}
        self.integer_spans = [(start, start + 8 * count) for start, count in self._integer_arrays()]
        self.memory = self._memory()
        self.what = self.batch = ""
        self.copies: dict[int, int] = {}  # in a graph for inference: where the copies of the arguments of a batch begin
        self.first_rank = 0
        self.now = _Instruction(0, self.table[:0])

    def _integer_arrays(self) -> list[tuple[int, int]]:
        """Return address and length of the tables and lists that the table refers to, that of the segment first."""
        s, job = self.segment, self.job
        return [(s.table_at, s.words), (s.lists_at, s.entries), (job.table, job.words), (job.lists, job.entries)]

    def _memory(self) -> _Memory:
        arenas = {"values": self.execution.values, "tables": self.execution.tables, "gradients": self.execution.gradients}
        spans = [(start, end, f"the arena of {name}") for name, arena in arenas.items() for start, end in arena.spans()]
        arrays = [(chunk, "the inputs") for chunk in self.graph.input_chunks]
        for p in self.parameters.values():
            arrays += [(p.values, f"the values of {p}"), (p.gradients, f"the gradient of {p}")]
            arrays += [(p.touched, f"the touched rows of {p}")] if hasattr(p, "touched") else []
        if self.backward is not None:
            spans += [(start, start + 8 * count, "the backward table") for start, count in self._integer_arrays()[1:]]
        spans += [(a.ctypes.data, a.ctypes.data + a.nbytes, name) for a, name in arrays]
        if self.backward is None:
            spans.append((self.scratch, self.scratch + 8 * self.itemsize, "the scratch"))
        inside = [s for s in spans if not any(o[0] <= s[0] and s[1] <= o[1] and o[:2] != s[:2] for o in spans)]
        return _Memory([s for s in inside if s[0] < s[1]], self.dtype)

    # Saying no

    def fail(self, problem: str, got: str = "", expected: str = "") -> NoReturn:
        direction = "forward" if self.backward is None else "backward"
        ins = self.now
        text = message(f"{self.what or 'instruction'}: {problem}", got, expected)
        if self.batch:
            text += f"\n  batch     {self.batch}"
        last = ins.at + len(ins.words) - 1
        text += f"\n  words     {ins.at} to {last} of {self.words} of the {direction} table: {ins.words.tolist()}"
        raise InternalError(f"{text}\n  try       please report this, with the program that led to it")

    def equal(self, what: str, got: int, expected: int) -> None:
        if got != expected:
            self.fail(f"{what} is wrong", str(got), str(expected))

    # Where things should be

    def total(self, number: int) -> int:
        """Bytes of the value of a node of a type."""
        return TYPES.records[number].shape.total * self.itemsize

    def total_of(self, record: NodeType, k: int) -> int:
        """Bytes of argument k of a node."""
        return record.shapes[k].total * self.itemsize

    def arguments(self, nodes: Integers, k: int) -> Integers:
        """Return argument k of some nodes of one type: a node, or a parameter; of a cell, parameters are known to the type."""
        record = TYPES.records[int(self.types[nodes[0]])] if len(nodes) else None
        if record is not None and TYPES.info[record.number, BACK]:
            return nodes.astype(np.int64) - TYPES.info[record.number, BACK]
        if record is not None and k >= TYPES.info[record.number, RECORDED]:
            return np.full(len(nodes), record.parameters[k], np.int64)
        return np.asarray(self.args[self.positions[nodes] + k])

    def starts(self, nodes: Integers) -> Integers:
        """Return where some views of one type begin in their arguments."""
        number = int(self.types[nodes[0]])
        if TYPES.info[number, BACK]:
            return np.full(len(nodes), TYPES.info[number, START], np.int64)
        return np.asarray(self.args[self.positions[nodes] + 1])

    def value_rows(self, nodes: Integers, k: int) -> Integers:
        """Return where the values of argument k of some nodes lie."""
        a = self.arguments(nodes, k)
        parameters = PARAMETERS.values[np.where(a < 0, -a - 1, 0) >> 1]
        return np.where(a < 0, parameters, self.address[np.maximum(a, 0)])

    def gather_row(self, number: int, k: int, rank: Any) -> Any:
        """Return where the copies of argument k lie, for nodes with these ranks in the block of their type."""
        s = self.segment
        item = self.total_of(self.records[number], k)
        if s.last is not None:
            return self.copies[k] + (rank - self.first_rank) * item
        return s.base + int(s.gather_at[s.gather_first[self.local[number]] + k]) + rank * item

    def is_active(self, nodes: Integers) -> NDArray[np.bool_]:
        active = self.backward.active
        return (nodes < active.size) & (active[np.minimum(nodes, active.size - 1)] == 3)

    def gradient_rows(self, nodes: Integers, k: int) -> Integers:
        """Return where the gradients of argument k of some nodes go."""
        b, a = self.backward, self.arguments(nodes, k)
        inside = np.maximum(a, 0)
        node_rows = np.where(self.is_active(inside), b.gradient[np.minimum(inside, b.gradient.size - 1)], b.sink)
        parameters = PARAMETERS.gradients[np.where(a < 0, -a - 1, 0) >> 1]
        return np.where(a >= 0, node_rows, np.where(a % 2 != 0, parameters, b.sink))

    def argument_name(self, record: NodeType, k: int) -> str:
        return f"argument {k + 1} of {record.name}"

    # Reading words

    def instruction(self, at: int) -> _Instruction:
        """Return the instruction at a word, its head checked as far as it can be alone."""
        self.what = self.batch = ""
        self.now = ins = _Instruction(at, self.table[at : min(at + SLOTS, self.words)])
        length = int(ins.words[LENGTH]) & WORDS if len(ins.words) == SLOTS else 0
        if length < SLOTS or at + length > self.words:
            self.fail(f"the table ends within an instruction, or its length is wrong ({length} words)")
        self.now = ins = _Instruction(at, self.table[at : at + length])
        if not 0 < ins.items <= max(self.n1, 1):
            self.fail("the number of items is wrong", str(ins.items), f"1 to {self.n1}, the nodes of the graph")
        if ins.pieces and not 1 < ins.pieces <= min(ins.items, MOST_THREADS):
            self.fail("the number of pieces is wrong", str(ins.pieces), f"0, or from 2 to {min(ins.items, MOST_THREADS)}")
        return ins

    def slot(self, k: int) -> tuple[int, int]:
        """Return address and stride of a slot."""
        if SLOTS + 2 * k + 2 > len(self.now.words):
            self.fail("the length is wrong", f"{len(self.now.words)} words", f"slot {k} and more")
        return int(self.now.words[SLOTS + 2 * k]), int(self.now.words[SLOTS + 2 * k + 1])

    def integers(self, what: str, address: int, count: int) -> Integers:
        """Return integers of the table or of its lists."""
        if address % 8 or not any(start <= address and address + 8 * count <= end for start, end in self.integer_spans):
            self.fail(f"{what} is no list in the table or beside it", self.memory.where(address), f"{count} integers")
        return _view(address, count, np.int64)

    def rows(self, k: int, what: str) -> Integers:
        """Return the addresses of the items in slot k."""
        address, stride = self.slot(k)
        n = self.now.items
        if stride == -1:
            return self.integers(f"slot {k} ({what})", address, n).copy()
        if stride < 0:
            self.fail(f"slot {k} ({what}): the stride is wrong", str(stride), "0 or more bytes, or -1 for a list of addresses")
        return address + stride * np.arange(n, dtype=np.int64)

    def operand(self, k: int, what: str, size: int, *places: Integers) -> Integers:
        """Check slot k: all its items, of `size` bytes, lie in one of the expected places. Return them."""
        rows = self.rows(k, what)
        for i in np.flatnonzero((self.memory.find(rows, size) < 0) | (rows % self.itemsize != 0))[:1]:
            got = f"{self.memory.where(int(rows[i]))}, {size} bytes"
            self.fail(f"slot {k} ({what}), item {i}, leaves its memory", got, f"{int(places[0][i]):#x}")
        if not any(np.array_equal(rows, place) for place in places):
            i = int(np.flatnonzero(rows != places[0])[0])
            self.fail(
                f"slot {k} ({what}), item {i}, is at the wrong address",
                self.memory.where(int(rows[i])),
                self.memory.where(int(places[0][i])),
            )
        return rows

    def dense(self, k: int, what: str, item: int, columns: int) -> None:
        """Check that the items of slot k lie as a matrix product reads them."""
        _, stride = self.slot(k)
        if stride != item and not (columns == 1 and stride > item):
            self.fail(f"slot {k} ({what}): items do not lie as a product reads them", f"stride {stride}", f"{item} bytes")

    def literal(self, slots: int, what: str, expected: int) -> None:
        """Check the one size of a kernel of `_rows.py`, which stands behind its slots."""
        end = SLOTS + 2 * slots
        self.equal("the length", len(self.now.words), end + 1)
        self.equal("the address of the sizes", int(self.now.words[SIZES]), self.table.ctypes.data + 8 * (self.now.at + end))
        self.equal(what, int(self.now.words[end]), expected)

    def immediates(self, first: int, record: NodeType, nodes: Integers) -> None:
        """Check the slots of immediates of some nodes, from slot `first` on."""
        assert record.lowering is not None
        limit, arguments = record.lowering.limit, len(record.shapes)
        for k in range(int(TYPES.info[record.number, IMMEDIATES])):
            address, stride = self.slot(first + k)
            what = f"slot {first + k} (immediate {k + 1})"
            self.equal(f"{what}: the stride", stride, 8)
            got = self.integers(what, address, len(nodes))
            expected = self.args[self.positions[nodes] + arguments + k]
            for i in np.flatnonzero((got != expected) | ((limit > 0) & ((got < 0) | (got >= limit))))[:1]:
                inside = f", below {limit}" if limit else ""
                self.fail(f"{what}, item {i}, is wrong", str(got[i]), f"{expected[i]}, as recorded in node {nodes[i]}{inside}")

    def describe(self, record: NodeType, nodes: Integers, batch: int | None = None) -> str:
        shown = ", ".join(map(str, nodes[:6])) + (", ..." if len(nodes) > 6 else "")
        of = "" if batch is None else f"{batch + 1} of {self.segment.schedule.batch_type.size}, "
        return f"{of}{record}, {len(nodes)} nodes: {shown}"

    # Places

    def check_places(self) -> None:
        """Check where the values of the nodes of the segment lie: in their memory, in their argument, apart from each other."""
        s, nodes = self.segment, np.arange(self.segment.n0, self.n1)
        types = self.types[nodes]
        blocks: list[tuple[int, int, str]] = []
        for t, l in self.local.items() if s.last is None else ():
            record, count = self.records[t], int(s.schedule.type_start[l + 1] - s.schedule.type_start[l])
            at = s.base + int(s.value_at[l])
            blocks.append((at, at + count * self.total(t), f"the values of {record}"))
            assert record.lowering is not None
            for k, operand in enumerate(record.lowering.operands):
                if operand.reads == DENSE:
                    at = self.gather_row(t, k, 0)
                    size = count * record.shapes[k].total * self.itemsize
                    blocks.append((at, at + size, f"the copies of {self.argument_name(record, k)}"))
        self.check_blocks(blocks, self.execution.values.spans())
        if s.last is not None:
            self.check_batches()
        for t in np.unique(types):
            self.check_type(int(t), nodes[types == t])

    def check_batches(self) -> None:
        """Check, in a graph for inference, that no batch lies where something lies that is read at the time or later."""
        s, o = self.segment, self.segment.schedule
        batches = o.batch_type.size
        batch_of, until, read = (np.zeros(o.order.size, np.int64) for _ in range(3))
        for b in range(batches):
            batch_of[o.order[o.batch_begin[b] : o.batch_end[b]]] = b
        for i in range(o.order.size):
            for a in s.edges[s.first[i] : s.first[i + 1]]:
                until[a], read[a] = max(until[a], batch_of[i]), 1
        until[read == 0] = batches
        last = np.zeros(batches, np.int64)
        np.maximum.at(last, batch_of, until)
        living: list[tuple[int, int, str, int]] = []
        for b in range(batches):
            record, n = self.records[int(s.present[o.batch_type[b]])], int(o.batch_end[b] - o.batch_begin[b])
            assert record.lowering is not None
            start, name = s.base + int(s.batch_at[b]), f"the values of batch {b + 1}, {record}"
            living = [block for block in living if block[3] >= b]
            living.append((start, start + n * self.total(record.number), name, max(int(last[b]), int(s.last[b]))))
            if s.last[b] < last[b]:
                self.fail(f"{name} are given up after batch {s.last[b] + 1}", "", f"batch {last[b] + 1}, which reads them")
            widths = [n * record.shapes[k].total for k, x in enumerate(record.lowering.operands) if x.reads == DENSE]
            width = sum(-(-w * self.itemsize // 64) * 64 for w in widths)
            copies = s.base + s.copies, s.base + s.copies + width, "its copies"
            self.check_blocks([*((start, end, name) for start, end, name, _ in living), copies], self.execution.values.spans())

    def check_blocks(self, blocks: list[tuple[int, int, str]], spans: Sequence[tuple[int, int]]) -> None:
        blocks = sorted(b for b in blocks if b[0] < b[1])
        for start, end, name in blocks:
            if not any(low <= start and end <= high for low, high in spans):
                memory = ", ".join(f"{low:#x} to {high:#x}" for low, high in spans)
                self.fail(f"{name} leave the memory they are in", f"{start:#x} to {end:#x}", memory)
        for (_, end, name), (start, _, other) in itertools.pairwise(blocks):
            if end > start:
                self.fail(f"{name} run into {other}", f"an end at {end:#x}", f"at most {start:#x}")

    def check_type(self, number: int, nodes: Integers) -> None:
        """Check the addresses of all nodes of a type in the segment."""
        record, s, at = TYPES.records[number], self.segment, self.positions[nodes]
        self.what, size = record.name, self.total(number)
        if record.kind == OP:
            l = self.local[number]
            order = s.schedule.order[s.schedule.type_start[l] : s.schedule.type_start[l + 1]]
            if s.last is None:
                expected = s.base + int(s.value_at[l]) + size * np.arange(len(order))
            else:
                mine = np.flatnonzero(s.schedule.batch_type == l)
                mine = mine[np.argsort(s.schedule.batch_begin[mine])]
                counts = s.schedule.batch_end[mine] - s.schedule.batch_begin[mine]
                expected = np.concatenate(
                    [s.base + s.batch_at[b] + size * np.arange(n) for b, n in zip(mine, counts, strict=True)]
                )
            nodes = s.nodes[order]
        elif record.kind in (VIEW, STOP):
            start, of = self.starts(nodes), record.shapes[0].total * self.itemsize
            for i in np.flatnonzero((start < 0) | (start * self.itemsize + size > of))[:1]:
                self.fail(f"node {nodes[i]} is a view that leaves its argument", f"from number {start[i]}, {record}")
            expected = self.value_rows(nodes, 0) + start * self.itemsize
        elif record.kind == INPUT:
            which = self.args[at]
            for i in np.flatnonzero((which < 0) | (which >= len(self.graph.input_addresses)))[:1]:
                self.fail(f"node {nodes[i]}: there is no input {which[i]}")
            expected = np.array(self.graph.input_addresses, np.int64)[which]
        elif record.kind == ROW:
            table, index = int(TYPES.info[number, TABLE]), self.args[at]
            pid = (-table - 1) >> 1
            if pid not in self.parameters:
                self.fail("a row of a table that this graph does not use")
            height = self.parameters[pid].dims[-1]
            for i in np.flatnonzero((index < 0) | (index >= height))[:1]:
                self.fail(f"node {nodes[i]} is a row that its table does not have", str(index[i]), f"below {height}")
            expected = int(PARAMETERS.values[pid]) + index * size
        else:
            self.fail(f"node {nodes[0]} is of a kind that is never recorded")
        got = self.address[nodes]
        for i in np.flatnonzero(got != expected)[:1]:
            places = (self.memory.where(int(place[i])) for place in (got, expected))
            self.fail(f"node {nodes[i]} has the wrong address", *places)
        for i in np.flatnonzero((self.memory.find(got, size) < 0) | (got % self.itemsize != 0))[:1]:
            self.fail(f"node {nodes[i]} leaves its memory", f"{self.memory.where(int(got[i]))}, {size} bytes")

    def check_gradient_places(self) -> None:
        """Check where the gradients of all nodes lie."""
        b, nodes = self.backward, np.arange(self.n1)
        nodes = nodes[self.is_active(nodes)]
        kinds = TYPES.info[self.types[nodes], KIND]
        for n in nodes[kinds == VIEW]:
            a, start = self.arguments(np.array([n]), 0)[0], self.starts(np.array([n]))[0] * self.itemsize
            of = int(b.gradient[a] if a >= 0 else PARAMETERS.gradients[(-a - 1) >> 1])
            if b.gradient[n] != of + start:
                places = (f"{place:#x}" for place in (b.gradient[n], of + start))
                self.fail(f"the gradient of node {n}, a view, is not in that of its argument", *places)
        own = nodes[kinds != VIEW]
        sizes = TYPES.info[self.types[own], SIZE] * self.itemsize
        order = np.argsort(b.gradient[own], kind="stable")
        own, start, end = own[order], b.gradient[own][order], (b.gradient[own] + sizes)[order]
        for i in np.flatnonzero((start < b.slots[0]) | (end > b.slots[1]) | (start % self.itemsize != 0))[:1]:
            self.fail(f"the gradient of node {own[i]} leaves its memory", self.memory.where(int(start[i])))
        for i in np.flatnonzero(end[:-1] > start[1:])[:1]:
            both = f"nodes {own[i]} and {own[i + 1]}"
            self.fail(f"the gradients of {both} overlap", f"{start[i + 1]:#x}", f"at least {end[i]:#x}")
        self.owners, self.owner_rows = own, start

    def owners_of(self, rows: Integers, what: str) -> Integers:
        """Return the nodes whose gradients begin at these addresses."""
        place = np.minimum(np.searchsorted(self.owner_rows, rows), max(self.owner_rows.size - 1, 0))
        wrong = rows != self.owner_rows[place] if self.owner_rows.size else np.ones(len(rows), bool)
        for i in np.flatnonzero(wrong)[:1]:
            self.fail(f"{what}, item {i}, is the gradient of no node", self.memory.where(int(rows[i])))
        return self.owners[place]

    # Forward

    def forward(self) -> Iterator[_Call]:
        """Check the forward table, batch by batch."""
        s, o, at = self.segment, self.segment.schedule, 0
        for b in range(o.batch_type.size):
            t = int(s.present[o.batch_type[b]])
            record, nodes = self.records[t], s.nodes[o.order[o.batch_begin[b] : o.batch_end[b]]].astype(np.int64)
            rank = np.arange(o.batch_begin[b], o.batch_end[b], dtype=np.int64) - int(o.type_start[o.batch_type[b]])
            copied: set[int] = set()
            self.copies, self.first_rank = {}, int(rank[0])
            while at < s.at[b]:
                self.instruction(at)
                self.what, self.batch = f"copy of rows for {record.name}", self.describe(record, nodes, b)
                yield self.copy(record, nodes, rank, copied)
                at += len(self.now.words)
            self.equal("the end of the instruction before batch " + str(b + 1), at, int(s.at[b]))
            self.instruction(at)
            self.what, self.batch = record.name, self.describe(record, nodes, b)
            yield self.batch_forward(record, nodes, rank, copied)
            at += len(self.now.words)
        self.equal("the number of words", self.words, at)

    def kernel(self, expected: int, name: str) -> None:
        """Check which kernel is called."""
        got = int(self.now.words[KERNEL])
        if got != expected:
            self.fail("the kernel is wrong", self.kernel_name(got), f"{name} at {expected:#x}")

    def kernel_name(self, address: int) -> str:
        """Return the name of the kernel at an address."""
        if address in self.rows_kernels:
            return f"{self.rows_kernels[address]} at {address:#x}"
        for record in self.records.values():
            lowering = record.lowering
            assert lowering is not None
            for k in (lowering.forward, lowering.prepare, *(o.backward for o in lowering.operands)):
                if k is not None and k.address(self.dtype) == address:
                    return f"{k.name} at {address:#x}"
        return f"{address:#x}, no kernel of this graph"

    def copy(self, record: NodeType, nodes: Integers, rank: Integers, copied: set[int]) -> _Call:
        """Check an instruction that copies the items of an argument together."""
        assert record.lowering is not None
        self.kernel(copy_rows.address(self.dtype), copy_rows.name)
        self.equal("the number of items", self.now.items, len(nodes))
        dense = [k for k, o in enumerate(record.lowering.operands) if o.reads == DENSE]
        if self.segment.last is not None:
            rows = self.rows(1, "the argument")
            wanted = [k for k in dense if k > max(copied, default=-1) and np.array_equal(rows, self.value_rows(nodes, k))]
            before = sum(-(-len(nodes) * self.total_of(record, k) // 64) * 64 for k in copied)
            self.copies.update({k: self.segment.base + self.segment.copies + before for k in wanted[:1]})
            dense = wanted[:1]
        to = [k for k in dense if self.gather_row(record.number, k, int(rank[0])) == self.slot(0)[0]]
        if not to:
            self.fail("slot 0 is no place for copies of this batch", self.memory.where(self.slot(0)[0]))
        k = to[0]
        copied.add(k)
        name, size = self.argument_name(record, k), record.shapes[k].total
        self.literal(2, "the size of a row", size)
        self.equal("the flags", self.now.flags, 0)
        places = self.operand(0, "copies", size * self.itemsize, self.gather_row(record.number, k, rank))
        rows = self.operand(1, name, size * self.itemsize, self.value_rows(nodes, k))
        result = f"slot 0 (copies of {name})", places, size * self.itemsize
        reads = [(f"slot 1 ({name})", rows, size * self.itemsize)]
        finds = ANY if self.backward else STORE if self.segment.last is None else FRESH
        return _Call(self.now, self.what, self.batch, reads, result, finds, [])

    def batch_forward(self, record: NodeType, nodes: Integers, rank: Integers, copied: set[int]) -> _Call:
        """Check the instruction of a batch."""
        lowering, size = record.lowering, self.total(record.number)
        assert lowering is not None
        arguments, immediates = len(record.shapes), int(TYPES.info[record.number, IMMEDIATES])
        self.kernel(lowering.forward.address(self.dtype), lowering.forward.name)
        self.equal("the length", len(self.now.words), SLOTS + 2 * (1 + arguments + immediates))
        self.equal("the number of items", self.now.items, len(nodes))
        self.equal("the address of the sizes", int(self.now.words[SIZES]), record.sizes.ctypes.data)
        self.equal("the flags", self.now.flags, 0)
        places = self.operand(0, "the value", size, self.address[nodes])
        reads = []
        for k, (operand, shape) in enumerate(zip(lowering.operands, record.shapes, strict=True)):
            name, item = self.argument_name(record, k), shape.total * self.itemsize
            expected = self.gather_row(record.number, k, rank) if k in copied else self.value_rows(nodes, k)
            rows = self.operand(1 + k, name, item, expected)
            if operand.reads == DENSE:
                self.dense(1 + k, name, item, operand.columns)
            if operand.reads == SHARED and (rows != rows[0]).any():
                self.fail(f"slot {1 + k} ({name}) is not the same for all items")
            reads.append((f"slot {1 + k} ({name})", rows, item))
        self.immediates(1 + arguments, record, nodes)
        result = f"slot 0 (the value of {record.name})", places, size
        finds = STORE if self.segment.last is None else FRESH
        call = _Call(self.now, self.what, self.batch, reads, result, finds, [])
        return self.with_steps(call, lowering.forward, 0)

    def with_steps(self, call: _Call, kernel: Any, own: int) -> _Call:
        """Have a call of a cell run step by step: each says which parts of the first `own` operands (dy, y) it reads."""
        return call if kernel.inside(self.dtype) is None else call._replace(reads=call.reads[own:], inside=kernel)

    # Backward

    def backward_calls(self) -> Iterator[_Call]:
        """Check the backward table, instruction by instruction."""
        at = 0
        self.sizes = {r.sizes.ctypes.data: r for r in self.records.values()}
        self.formed: dict[tuple[int, int], list[Integers]] = {}
        checks = {
            copy_rows.address(self.dtype): self.copy_again,
            zero_rows.address(self.dtype): self.zero,
            add_to_table.address(self.dtype): self.rows_to_table,
        }
        while at < self.words:
            self.instruction(at)
            yield checks.get(int(self.now.words[KERNEL]), self.gradient)()
            at += len(self.now.words)
        if self.pending is not None:
            self.fail("the table ends before gradients are added from the work space")
        self.check_complete()

    def check_complete(self) -> None:
        """Check that every gradient that somebody wants was formed once, no more and no less."""
        everything = np.arange(self.segment.n0, self.n1)
        everything = everything[self.is_active(everything)]
        types = self.types[everything]
        for t in np.unique(types):
            record, nodes = TYPES.records[t], everything[types == t]
            if record.kind == ROW and TYPES.info[t, TABLE] % 2 != 0:
                self.check_formed(record, ROWS_ADDED, nodes)
            if record.kind != OP:
                continue
            assert record.lowering is not None
            if record.lowering.prepare is not None:
                self.check_formed(record, PREPARED, nodes)
            for k, operand in enumerate(record.lowering.operands):
                if operand.backward is not None:
                    self.check_formed(record, k, nodes[self.gradient_rows(nodes, k) != self.backward.sink])

    def check_formed(self, record: NodeType, k: int, wanted: Integers) -> None:
        """Check that the instructions for gradient k of a type were about each of these nodes once."""
        formed, times = np.unique(np.concatenate([wanted[:0], *self.formed.get((record.number, k), [])]), return_counts=True)
        missing, twice = np.setdiff1d(wanted, formed), formed[times > 1]
        if missing.size or twice.size:
            self.what, self.batch = f"gradient of {record.name}", self.describe(record, wanted)
            what = {PREPARED: "dy is not prepared", ROWS_ADDED: "rows are not added to their table"}
            got = f"missing for nodes {missing.tolist()[:6]}, more than once for nodes {twice.tolist()[:6]}"
            self.fail(f"{what.get(k, f'gradient of argument {k + 1} is not formed')} once for each node", got)

    def zero(self) -> _Call:
        self.what = "gradients set to zero"
        rows = self.rows(0, "gradients")
        place = np.searchsorted(self.owner_rows, rows, "right") - 1
        nodes = self.owners_of(self.owner_rows[np.maximum(place, 0)], "slot 0")
        starts = rows - self.backward.gradient[nodes]
        self.batch = f"nodes {', '.join(map(str, nodes[:6]))}"
        size = int(self.now.words[SLOTS + 2]) if len(self.now.words) == SLOTS + 3 else 0
        self.literal(1, "the size of a gradient", max(size, 1))
        for i in np.flatnonzero((starts < 0) | (starts // self.itemsize + size > TYPES.info[self.types[nodes], OUTPUTS]))[:1]:
            self.fail(f"slot 0, item {i}, is no part of a gradient that others write", self.memory.where(int(rows[i])))
        self.equal("the flags", self.now.flags, 0)
        rows = self.operand(0, "gradients", size * self.itemsize, rows)
        return _Call(self.now, self.what, self.batch, [], ("slot 0 (gradients)", rows, size * self.itemsize), STORE, [])

    def copy_again(self) -> _Call:
        """Check a copy made so that the gradient of a weight is one product: a whole batch of an argument."""
        s, to = self.segment, self.slot(0)[0]
        for t, record in self.records.items():
            assert record.lowering is not None
            l = self.local[t]
            count = int(s.schedule.type_start[l + 1] - s.schedule.type_start[l])
            for k, operand in enumerate(record.lowering.operands):
                start, item = self.gather_row(t, k, 0), record.shapes[k].total * self.itemsize
                if operand.reads == DENSE and start <= to < start + count * item:
                    first = (to - start) // item
                    rank = np.arange(first, min(first + self.now.items, count), dtype=np.int64)
                    nodes = s.nodes[s.schedule.order[s.schedule.type_start[l] + rank]].astype(np.int64)
                    self.what, self.batch = f"copy of rows for the weights of {record.name}", self.describe(record, nodes)
                    return self.copy(record, nodes, rank, set())
        self.what = "copy of rows"
        self.fail("slot 0 is no place for copies", self.memory.where(to))

    def rows_to_table(self) -> _Call:
        self.what = "gradients of rows added to their table"
        nodes = self.owners_of(self.rows(1, "gradients of rows"), "slot 1")
        types = self.types[nodes]
        record = TYPES.records[types[0]]
        self.batch = self.describe(record, nodes)
        if (types != types[0]).any() or record.kind != ROW:
            self.fail("slot 1 holds gradients of other nodes than rows of one table")
        table, size = int(TYPES.info[types[0], TABLE]), record.shape.total
        pid = (-table - 1) >> 1
        if table % 2 == 0 or pid not in self.parameters:
            self.fail("the table does not train, or is not of this graph")
        p = self.parameters[pid]
        self.literal(4, "the size of a row", size)
        self.equal("the flags", self.now.flags, 0)
        for k, (what, expected) in {
            0: ("the gradient of the table", (int(PARAMETERS.gradients[pid]), 0)),
            3: ("the touched rows", (int(PARAMETERS.touched[pid]), 0)),
        }.items():
            if self.slot(k) != expected:
                self.fail(f"slot {k} ({what}) is wrong", str(self.slot(k)), str(expected))
        address, stride = self.slot(2)
        self.equal("slot 2 (rows): the stride", stride, 8)
        index, expected_index = self.integers("slot 2 (rows)", address, len(nodes)), self.args[self.positions[nodes]]
        for i in np.flatnonzero((index != expected_index) | (index < 0) | (index >= p.dims[-1]))[:1]:
            self.fail(f"slot 2 (rows), item {i}, is wrong", str(index[i]), f"{expected_index[i]}, below {p.dims[-1]}")
        self.formed.setdefault((record.number, ROWS_ADDED), []).append(nodes)
        item = size * self.itemsize
        rows = self.operand(1, "gradients of rows", item, self.backward.gradient[nodes])
        to = int(PARAMETERS.gradients[pid]) + np.unique(index) * item
        also = [(int(PARAMETERS.touched[pid]) + np.unique(index), 1)]
        reads = [("slot 1 (gradients of rows)", rows, item)]
        return _Call(self.now, self.what, self.batch, reads, ("slot 0 (table)", to, item), ADD, also)

    def gradient(self) -> _Call:
        """Check an instruction that forms the gradient of an argument, or prepares to."""
        ins, b, s = self.now, self.backward, self.segment
        if int(ins.words[KERNEL]) == add_rows.address(self.dtype):
            return self.add()
        record = self.sizes.get(int(ins.words[SIZES]))
        if record is None:
            self.fail("the sizes are those of no node type of this segment", self.kernel_name(int(ins.words[KERNEL])))
        lowering, k = record.lowering, ins.flags >> 8
        assert lowering is not None
        self.what = f"gradient of {record.name}"
        arguments, immediates = len(record.shapes), int(TYPES.info[record.number, IMMEDIATES])
        prepares = lowering.prepare is not None and self.slot(0) == (0, 0)
        operand = None
        if prepares:
            assert lowering.prepare is not None
            self.kernel(lowering.prepare.address(self.dtype), lowering.prepare.name)
            needs = tuple(range(arguments))
            self.equal("the flags", ins.flags, 0)
        else:
            operand = lowering.operands[k] if 0 <= k < arguments else None
            if operand is None or operand.backward is None or ins.flags & ~(k << 8 | ACCUMULATE):
                expected = "the position of an argument with a gradient, and ACCUMULATE"
                self.fail("the flags are wrong", f"{ins.flags:#x}", expected)
            self.what = f"gradient of argument {k + 1} of {record.name}"
            self.kernel(operand.backward.address(self.dtype), operand.backward.name)
            needs = tuple(range(arguments)) if operand.needs is None else operand.needs
        self.equal("the length", len(ins.words), SLOTS + 2 * (3 + len(needs) + immediates))

        # The gradient of the result tells which nodes it is about; everything else follows from them.
        nodes = self.owners_of(self.rows(1, "the gradient of the value"), "slot 1")
        self.batch = self.describe(record, nodes)
        if (self.types[nodes] != record.number).any():
            self.fail("slot 1 holds gradients of nodes of another type")
        size = self.total(record.number)
        dy = self.operand(1, "the gradient of the value", size, b.gradient[nodes])
        y = self.operand(2, "the value", size, self.address[nodes])
        reads = [("slot 1 (the gradient of the value)", dy, size), ("slot 2 (the value)", y, size)]
        l = self.local[record.number]
        rank = (self.address[nodes] - s.base - int(s.value_at[l])) // size
        for q, needed in enumerate(needs):
            name, item = self.argument_name(record, needed), record.shapes[needed].total * self.itemsize
            places = [self.value_rows(nodes, needed)]
            reads_dense = lowering.operands[needed].reads == DENSE
            if reads_dense:
                places.append(self.gather_row(record.number, needed, rank))
            rows = self.operand(3 + q, name, item, *places)
            if reads_dense and operand is not None and operand.writes == SHARED:
                self.dense(3 + q, name, item, lowering.operands[needed].columns)
            reads.append((f"slot {3 + q} ({name})", rows, item))
        self.immediates(3 + len(needs), record, nodes)
        self.formed.setdefault((record.number, PREPARED if prepares else k), []).append(nodes)
        if prepares:
            result = ("slot 1 (the gradient of the value)", dy, size)
            reads[0] = (*reads[0][:2], int(TYPES.info[record.number, OUTPUTS]) * self.itemsize)
            return self.with_steps(_Call(ins, self.what, self.batch, reads, result, ANY, []), lowering.prepare, 2)
        assert operand is not None
        return self.with_steps(self.gradient_result(record, nodes, k, reads), operand.backward, 2)

    def gradient_result(self, record: NodeType, nodes: Integers, k: int, reads: list[tuple[str, Integers, int]]) -> _Call:
        """Check where the gradient of argument k goes."""
        ins, b = self.now, self.backward
        assert record.lowering is not None and record.op is not None
        operand, name = record.lowering.operands[k], f"the gradient of argument {k + 1}"
        item, places = record.shapes[k].total * self.itemsize, self.gradient_rows(nodes, k)
        accumulates = bool(ins.flags & ACCUMULATE)
        also: list[tuple[Integers, int]] = []
        if operand.writes == SHARED:
            pid = int(-self.arguments(nodes[:1], k)[0] - 1) >> 1
            rows = self.operand(0, name, item, places)
            if pid not in self.parameters or self.slot(0) != (int(PARAMETERS.gradients[pid]), 0) or not accumulates:
                self.fail(f"slot 0 ({name}) is not added to the gradient of a parameter", str(self.slot(0)))
            if record.op.rows:
                touched = self.parameters[pid].touched
                also.append((np.array([touched.ctypes.data]), touched.nbytes))
            return _Call(ins, self.what, self.batch, reads, (f"slot 0 ({name})", rows[:1], item), ADD, also)
        work = self.scratch + 64
        if self.slot(0)[0] == work and operand.writes == DENSE:
            self.equal("slot 0 (work space): the stride", self.slot(0)[1], item)
            rows = self.operand(0, "work space", item, work + item * np.arange(len(nodes), dtype=np.int64))
            if accumulates:
                self.fail("adds to the work space")
            self.pending = (len(nodes), item, places)
            return _Call(ins, self.what, self.batch, reads, ("slot 0 (work space)", rows, item), FRESH, [])
        rows = self.operand(0, name, item, places)
        if operand.writes == DENSE:
            self.dense(0, name, item, operand.columns)
        wanted = rows[rows != b.sink]
        if not accumulates and np.unique(wanted).size != wanted.size:
            self.fail(f"slot 0 ({name}): two items are stored in one place")
        finds, result = ADD if accumulates else STORE, (f"slot 0 ({name})", rows, item)
        return _Call(ins, self.what, self.batch, reads, result, finds, [], b.sink)

    def add(self) -> _Call:
        """Check an instruction that adds gradients from the work space to where they go."""
        self.what = "gradients added from the work space"
        if self.pending is None:
            self.fail("nothing was put there")
        (n, item, places), self.pending = self.pending, None
        self.equal("the number of items", self.now.items, n)
        self.literal(2, "the size of a gradient", item // self.itemsize)
        if self.now.flags & ~ACCUMULATE:
            self.fail("the flags are wrong", f"{self.now.flags:#x}", "0 or ACCUMULATE")
        rows = self.operand(0, "gradients", item, places)
        work = self.operand(1, "work space", item, self.scratch + 64 + item * np.arange(n, dtype=np.int64))
        finds = ADD if self.now.flags & ACCUMULATE else STORE
        reads = [("slot 1 (work space)", work, item)]
        return _Call(self.now, self.what, self.batch, reads, ("slot 0 (gradients)", rows, item), finds, [], self.backward.sink)

    pending: tuple[int, int, Integers] | None = None

    # Running

    def run(self, calls: Sequence[_Call]) -> None:
        """Run checked instructions one by one and look at what they did."""
        for call in calls:
            if call.instruction.pieces:
                self.check_pieces(call)
        if self.backward is None:
            self.poison_values()
        for call in calls:
            self.run_one(call)
        self.what, self.batch = "a kernel of this table", ""
        changed = self.memory.changed()
        if changed is not None:
            self.fail("memory far from any result was written to", self.memory.where(changed))

    def poison_values(self) -> None:
        s = self.segment
        if s.last is not None:
            self.memory.fill(np.array([s.base]), s.copies // self.itemsize)
            return
        for t, l in self.local.items():
            count = int(s.schedule.type_start[l + 1] - s.schedule.type_start[l])
            record = self.records[t]
            assert record.lowering is not None
            self.memory.fill(np.array([s.base + int(s.value_at[l])]), count * record.shape.total)
            for k, operand in enumerate(record.lowering.operands):
                if operand.reads == DENSE:
                    self.memory.fill(np.array([self.gather_row(t, k, 0)]), count * record.shapes[k].total)

    def run_one(self, call: _Call) -> None:
        memory, itemsize = self.memory, self.itemsize
        self.now, self.what, self.batch = call.instruction, call.what, call.batch
        for name, rows, size in call.reads:
            count = memory.poisoned(rows, size // itemsize)
            if count:
                self.fail(f"{name} is read before it was written", f"{count} numbers that nobody has written")
        name, rows, size = call.result
        if call.finds == FRESH:
            memory.fill(rows, size // itemsize)
        wanted = rows[rows != call.unwanted]
        numbers = wanted.size * size // itemsize
        found = memory.poisoned(wanted, size // itemsize) if wanted.size else 0
        if call.finds == STORE and np.unique(wanted).size * size // itemsize > found:
            self.fail(f"{name} is stored where something was written before", f"{found} of {numbers} numbers free")
        if call.finds == ADD and found:
            self.fail(f"{name} is added to what was never written", f"{found} of {numbers} numbers")
        ins = call.instruction
        if call.inside is None:
            run(self.job.table + 8 * ins.at, len(ins.words), self.scratch)
        else:
            self.run_steps(call)
        partly = call.inside is not None and call.result[0].startswith(_OWN)
        left = memory.poisoned(wanted, size // itemsize) if wanted.size and not partly else 0
        if left:
            got = f"{left} of {numbers} numbers as they were before"
            self.fail(f"{name} was not written completely", got, "a kernel writes all of them")
        for pieces, width in [(rows, size), *call.also]:
            memory.accept(pieces, width)
        changed = memory.changed(int(rows.min()), int(rows.max()) + size)
        if changed is not None:
            near = f"{name} is {int(rows.min()):#x} to {int(rows.max()) + size:#x}"
            self.fail("wrote outside of its result", memory.where(changed), near)

    def check_pieces(self, call: _Call) -> None:
        """Check that the items of an instruction that may be divided among threads go to places of their own."""
        self.now, self.what, self.batch = call.instruction, call.what, call.batch
        _, rows, size = call.result
        places = np.sort(rows[rows != call.unwanted])
        if call.also or len(self.now.words) > LONGEST:
            self.fail("the items may be divided, but the kernel does more than fill in items, or has too many slots")
        for i in np.flatnonzero(np.diff(places) < size)[:1]:
            self.fail("the items may be divided, but two of them go to one place", self.memory.where(int(places[i + 1])))

    # Cells

    def run_steps(self, call: _Call) -> None:
        """Run a cell step by step. In its row, a step may read only what a step before it wrote, or what is handed in.

        Of a row of gradients the outputs are handed in; all else is poisoned first. What no step writes, because nobody reads
        it, may stay poison: gradients of values without one, and places that only the row of gradients uses.
        """
        memory, itemsize, items, what = self.memory, self.itemsize, call.instruction.items, self.what
        incoming: dict[int, Integers] = {}
        if call.finds == ANY:  # `prepare`
            _, rows, size = call.result
            start = call.inside.outputs
            memory.fill(rows + start * itemsize, size // itemsize - start)
        for number, step in enumerate(call.inside.inside(self.dtype), 1):
            self.what = f"{what}, step {number} ({step.name})"
            for piece in (*step.step.reads, *step.step.writes):
                if piece.source not in incoming:
                    incoming[piece.source] = self.rows(piece.source, "a part of it")
            for group in [[i] for i in range(items)] if step.each else [list(range(items))]:
                self.run_step(call, step, incoming, np.array(group))
        self.what = what

    def run_step(self, call: _Call, step: Any, incoming: dict[int, Integers], group: Integers) -> None:
        """Run a step for some items."""
        memory, itemsize = self.memory, self.itemsize

        def rows(piece: Any) -> Integers:
            return incoming[piece.source][group] + piece.start * itemsize

        for piece in step.step.reads:
            if (memory.find(rows(piece), piece.size * itemsize) < 0).any():
                self.fail(f"slot {piece.source}: what it reads leaves its memory")
            count = memory.poisoned(rows(piece), piece.size)
            if count:
                self.fail(f"slot {piece.source} from {piece.start} on is read before it was written", f"{count} numbers")
        for piece, adds in zip(step.step.writes, step.step.adds, strict=True):
            inner = (rows(piece) != call.unwanted).all() and call.finds != FRESH
            found, numbers = memory.poisoned(rows(piece), piece.size), np.unique(rows(piece)).size * piece.size
            if inner and adds is False and found < numbers:
                self.fail(f"slot {piece.source} from {piece.start} on is stored where something was written before")
            if inner and adds and found:
                self.fail(f"slot {piece.source} from {piece.start} on is added to what was never written", f"{found} numbers")
        (kernel, sizes, flags), outer = step.head, call.instruction.words
        words = [kernel, SLOTS + 2 * len(step.places), len(group), sizes, flags]
        words[FLAGS] |= int(outer[FLAGS]) & ACCUMULATE if step.inherit else 0
        for source, offset, item in step.places:
            if source is None:
                words += [offset, item if step.each else 0]
            elif step.each:
                words += [int(self.rows(source, "a part of it")[group[0]]) + offset, item]
            else:
                words += [int(outer[SLOTS + 2 * source]) + offset, int(outer[SLOTS + 2 * source + 1])]
        table = np.array(words, np.int64)
        run(address_of(table), len(words), self.scratch)
        for piece in step.step.writes:
            wanted = rows(piece)[rows(piece) != call.unwanted]
            if wanted.size and memory.poisoned(wanted, piece.size):
                self.fail(
                    f"slot {piece.source} from {piece.start} on was not written completely", f"{piece.size} numbers an item"
                )
            memory.accept(rows(piece), piece.size * itemsize)
        changed = memory.changed()
        if changed is not None:
            self.fail("wrote outside of its result", memory.where(changed))


_OWN = ("slot 0 (the value", "slot 1 (the gradient of the value")  # rows of a cell, parts of which nobody writes


def run_checked(job: Job) -> None:
    """Check a table, run it, and watch what it does.

    Raises
    ------
    InternalError : a promise was broken. The message names the op, the batch, the slot and the address.
    """
    checker = _Checker(job)
    if job.backward is None:
        checker.check_places()
        calls = list(checker.forward())
    else:
        checker.check_gradient_places()
        calls = list(checker.backward_calls())
    checker.run(calls)


# NaN ------------------------------------------------------------------------------------------------------------------


def _numbers(execution: Any, address: int, count: int, dtype: Any) -> NDArray[Any]:
    """Return numbers of a graph, to be read."""
    return execution.machine.read(address, count, dtype) if execution.machine.card else _view(address, count, dtype)


def find_nan(execution: Any, graph: Graph, segment: Any) -> None:
    """Raise NumericalError if a value of a segment is NaN (or infinite, if the graph is to notice), for the first one that ran.

    Raises
    ------
    NumericalError : names the op, the node, the shapes, and which arguments held it already.
    """

    def wrong(values: NDArray[Any]) -> NDArray[np.bool_]:
        return ~np.isfinite(values) if graph.check_infinity else np.isnan(values)

    s, o, dtype = segment, segment.schedule, graph.dtype
    blocks = []
    for l, t in enumerate(s.present):
        count, total = int(o.type_start[l + 1] - o.type_start[l]), int(TYPES.info[t, SIZE])
        rows = _numbers(execution, s.base + int(s.value_at[l]), count * total, dtype).reshape(count, total)
        blocks.append(rows[:, : _written(TYPES.records[t])])
    holds = [bool(wrong(block).any()) for block in blocks]
    if any(holds):
        for b in range(o.batch_type.size):
            l = o.batch_type[b]
            if holds[l]:
                begin, end = (p[b] - o.type_start[l] for p in (o.batch_begin, o.batch_end))
                found = np.flatnonzero(wrong(blocks[l][begin:end]).any(axis=1))
                if found.size:
                    node = int(s.nodes[o.order[o.batch_begin[b] + found[0]]])
                    raise NumericalError(_nan_text(execution, graph, node, wrong))
    if any(bool(wrong(chunk).any()) for chunk in graph.input_chunks):
        types = execution.types[s.n0 : s.n1]
        for node in s.n0 + np.flatnonzero(TYPES.info[types, KIND] == INPUT):
            if wrong(
                _numbers(execution, int(execution.address[node]), TYPES.records[execution.types[node]].shape.total, dtype)
            ).any():
                raise NumericalError(_nan_text(execution, graph, int(node), wrong))


def _written(record: NodeType) -> int:
    """How many numbers of a value forward writes: of a cell, not the places that only the row of gradients uses."""
    forward = None if record.lowering is None else record.lowering.forward
    return getattr(forward, "written", record.shape.total)


def _nan_text(execution: Any, graph: Graph, node: int, wrong: Any) -> str:
    """Return the text of the error for the first node that holds NaN."""
    record = TYPES.records[execution.types[node]]
    values = _numbers(execution, int(execution.address[node]), record.shape.total, graph.dtype)[: _written(record)]
    what = "NaN or infinity" if graph.check_infinity else "NaN"
    lines, sources = [str(record)], []
    names = {(getattr(p, "of", p)).pid: p for p in graph.parameters}
    for k, shape in enumerate(record.shapes):
        recorded, back = k < TYPES.info[record.number, RECORDED], int(TYPES.info[record.number, BACK])
        a = int(execution.args[execution.positions[node] + k]) if recorded else node - back if back else record.parameters[k]
        address = execution.value_address(a)
        given = _numbers(execution, address, shape.total, graph.dtype)
        who = str(names[(-a - 1) >> 1]) if a < 0 else f"node {a}, {TYPES.records[execution.types[a]].name}"
        holds = int(wrong(given).sum())
        if holds:
            sources.append(f"argument {k + 1}")
        state = f"holds it already, in {holds} of {given.size}" if holds else f"from {given.min():.6g} to {given.max():.6g}"
        lines.append(f"argument {k + 1}: {who}, {shape}, {state}")
    if record.kind == INPUT:
        cure = "look at the numbers it was made of"
    else:
        where = f"look at where {' and '.join(sources)} came from"
        cure = where if sources else "keep the arguments where the result is finite"
    return message(
        f"{record.name}: {what} in node {node}, in {int(wrong(values).sum())} of {values.size} numbers, the first node with it",
        "\n            ".join(lines),
        cure=cure,
    )

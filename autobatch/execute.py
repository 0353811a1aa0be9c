"""Runs a graph: schedules what is new, plans it, hands the table to the interpreter; then the same backward.

The only caller of kernels. An `Execution` belongs to one graph and holds its arrays: the flushed lists, the address of each
node's value, and one `Segment` for each forward pass that had something new to do.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
from typing import Any

import numpy as np

from autobatch import plan
from autobatch.graph import DTYPES, PARAMETERS, STOP, TYPES, VIEW, Graph
from autobatch.kernels._rows import add_rows, add_to_table, copy_rows, zero_rows
from autobatch.kernels._vm import run
from autobatch.memory import Arena, read
from autobatch.schedule import Schedule, lower_bound, schedule

_CTYPES = {"float32": ctypes.c_float, "float64": ctypes.c_double}
CHECKED = os.environ.get("AUTOBATCH_CHECK", "0") not in ("", "0")


@dataclasses.dataclass(slots=True)
class Segment:
    """What one forward pass ran: nodes n0 to n1 - 1, their schedule, and their table."""

    n0: int
    n1: int
    nodes: np.ndarray  # reduced graph -> node
    kinds: np.ndarray
    first: np.ndarray
    edges: np.ndarray
    present: np.ndarray  # local type -> type
    schedule: Schedule
    value_at: np.ndarray
    gather_first: np.ndarray
    gather_at: np.ndarray
    base: int
    at: np.ndarray
    table: np.ndarray
    words: int
    lists: np.ndarray
    arena: tuple[Any, ...]


@dataclasses.dataclass(slots=True)
class Backward:
    """The gradients of one backward pass."""

    loss: int
    full: bool
    active: np.ndarray
    gradient: np.ndarray
    tables: list[tuple[np.ndarray, int, np.ndarray, Segment]]
    seed: tuple[int, int, int]
    scratch: int
    sink: int
    slots: tuple[int, int]  # first and last+1 address of all gradients
    products: int = 0


class Execution:
    """The values of a graph, as far as they were computed."""

    def __init__(self, graph: Graph) -> None:
        self.dtype = graph.dtype
        self.kind = DTYPES.index(graph.dtype)
        self.itemsize = 4 << self.kind
        self.types = np.empty(64, np.int32)
        self.args = np.empty(128, np.int32)
        self.positions = np.empty(65, np.int64)
        self.root = np.empty(64, np.int32)
        self.address = np.empty(64, np.int64)
        self.flushed = self.flushed_args = 0  # nodes and arguments taken over from the graph's lists
        self.done = 0  # nodes with a value
        self.segments: list[Segment] = []
        self.values = Arena()
        self.tables = Arena()
        self.gradients = Arena()
        self.backward: Backward | None = None
        self._owned: list[Any] = []

    # Forward ----------------------------------------------------------------------------------------------------------

    @property
    def batches(self) -> int:
        """Batches run forward so far."""
        return sum(s.schedule.batch_type.size for s in self.segments)

    def lower_bound(self) -> int:
        """Batches that any policy needs, segment by segment."""
        return sum(lower_bound(s.kinds, s.first, s.edges, s.present.size) for s in self.segments)

    def _flush(self, graph: Graph) -> None:
        """Take over what was recorded since the last time."""
        fresh, fresh_args = graph.recorded_types[self.flushed :], graph.recorded_args[self.flushed_args :]
        n, m = self.flushed + len(fresh), self.flushed_args + len(fresh_args)
        if n > self.types.size:
            room = max(n, 2 * self.types.size)
            self.types, self.root, self.address = (_grown(a, room) for a in (self.types, self.root, self.address))
            self.positions = _grown(self.positions, room + 1)
        if m > self.args.size:
            self.args = _grown(self.args, max(m, 2 * self.args.size))
        self.types[self.flushed : n] = fresh
        self.args[self.flushed_args : m] = fresh_args
        self.flushed, self.flushed_args = n, m

    def forward(self, graph: Graph, upto: int) -> None:
        """Compute all nodes up to number `upto` that have no value yet."""
        n0, n1 = self.done, upto + 1
        if n0 >= n1:
            return
        if n1 > self.flushed:
            self._flush(graph)
        types, args, info = self.types[:n1], self.args, TYPES.info
        size = n1 - n0
        a0 = int(self.positions[n0]) if n0 else 0
        nodes, kinds, first = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size + 1, np.int32)
        edges = np.empty(self.flushed_args - a0, np.int32)
        room = min(size, len(info))
        joins, present = np.empty(room, np.uint8), np.empty(room, np.int32)
        count, m, n_types, operand_count = plan.survey(
            n0, n1, a0, types, args, info, self.positions, self.root, _local(len(info)), nodes, kinds, first, edges, joins,
            present, np.empty(size, np.int32),
        )  # fmt: skip
        nodes, kinds, first, edges = nodes[:count], kinds[:count], first[: count + 1], edges[:m]
        joins, present = joins[:n_types], present[:n_types]
        TYPES.compile(present.tolist(), self.kind, False)
        info, operands = TYPES.info, TYPES.operands
        order = schedule(graph.policy, kinds, first, edges, n_types, joins, True)
        batches = order.batch_type.size
        value_at, gather_first = np.empty(n_types, np.int64), np.empty(n_types, np.int64)
        gather_at = np.zeros(operand_count, np.int64)
        total, words, lists_size = plan.layout(
            n_types,
            batches,
            present,
            order.type_start,
            order.batch_type,
            info,
            operands,
            self.itemsize,
            value_at,
            gather_first,
            gather_at,
        )
        marks = self.values.mark(), self.tables.mark()
        base = self.values.take(total)
        table, lists, at = self._integers(words), self._integers(lists_size), np.empty(batches, np.int64)
        plan.place(
            n0, n1, n_types, types, args, self.positions, info, nodes, order.order, order.type_start, present, value_at, base,
            self.itemsize, PARAMETERS.values, np.array(graph.input_addresses, np.int64), self.address,
        )  # fmt: skip
        words, _ = plan.forward_table(
            batches, args, self.positions, info, operands, nodes, order.order, order.type_start, present, order.batch_type,
            order.batch_begin, order.batch_end, value_at, gather_first, gather_at, base, self.itemsize, self.kind,
            PARAMETERS.values, self.address, copy_rows.address(self.dtype), table, lists, at,
        )  # fmt: skip
        segment = Segment(
            *(n0, n1, nodes, kinds, first, edges, present, order, value_at, gather_first, gather_at, base, at, table, words),
            *(lists, marks),
        )
        try:
            self._run(graph, table, words, _scratch(self.dtype), segment, None)
            if graph.check_nan:
                from autobatch.check import find_nan

                find_nan(self, graph, segment)
        except BaseException:
            self.values.cut(marks[0])
            self.tables.cut(marks[1])
            raise
        self.segments.append(segment)
        self.done = n1

    def _run(
        self, graph: Graph, table: np.ndarray, words: int, scratch: int, segment: Segment, backward: Backward | None
    ) -> None:
        if CHECKED:
            from autobatch.check import run_checked

            run_checked(self, graph, table, words, scratch, segment, backward)
        else:
            run(table, words, scratch)

    def _integers(self, count: int) -> np.ndarray:
        """Return an int64 array in the arena of tables."""
        address = self.tables.take(8 * count)
        buffer: Any = (ctypes.c_int64 * count).from_address(address)
        return np.frombuffer(buffer, np.int64)

    def value_address(self, index: int) -> int:
        """Address of the value of a node, or of a parameter (a negative index)."""
        return int(self.address[index] if index >= 0 else PARAMETERS.values[(-index - 1) >> 1])

    # Backward ---------------------------------------------------------------------------------------------------------

    def run_backward(self, graph: Graph, loss: int, full: bool) -> None:
        """Compute the gradients of node `loss` and add those of the parameters to the parameters."""
        self.backward = None
        self.gradients.cut((0, 0))
        self.backward = self._pass(graph, loss, full)

    def _pass(self, graph: Graph, loss: int, full: bool) -> Backward:
        n = loss + 1
        types, args, info, operands, needs = self.types[:n], self.args, TYPES.info, TYPES.operands, TYPES.needs
        active, touched = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
        gradient, source = np.zeros(n, np.int64), np.empty(n, np.int32)
        plan.mark(loss, full, types, args, self.positions, info, operands, active)
        segments = [s for s in self.segments if s.n0 < n]
        layouts, end, scratch_size, widest = [], 0, 0, 0
        local = _local(len(info))
        for s in segments:
            TYPES.compile(s.present.tolist(), self.kind, True)
            block_at, slot = np.empty(s.present.size, np.int64), np.empty(min(s.n1, n) - s.n0, np.int64)
            inside = np.zeros(s.n1, np.uint8) if s.n1 > n else active
            if s.n1 > n:
                inside[:n] = active
            end, scratch, wide, words, lists = plan.gradient_layout(
                s.n0, min(s.n1, n), s.present.size, s.at.size, types, info, operands, self.itemsize, s.nodes, s.schedule.order,
                s.schedule.type_start, s.present, s.schedule.batch_type, s.schedule.batch_begin, s.schedule.batch_end, inside,
                local, end, block_at, slot,
            )  # fmt: skip
            scratch_size, widest = max(scratch_size, scratch), max(widest, wide)
            layouts.append((s, block_at, slot, inside, words, lists))
        info, operands, needs = TYPES.info, TYPES.operands, TYPES.needs
        base = self.gradients.take(end)
        # Scratch: the scalars 1 and 0 for BLAS, then room for one batch of gradients; and a place for what nobody wants.
        scratch = self.gradients.take(scratch_size + 64)
        sink = self.gradients.take(widest)
        for s, block_at, slot, inside, _, _ in layouts:
            room = s.n1 if s.n1 > n else n
            if room > gradient.size:
                gradient, source = _grown(gradient, room), _grown(source, room)
            plan.gradient_places(
                s.n0, min(s.n1, n), s.present.size, types, args, self.positions, info, self.itemsize, s.nodes, s.schedule.order,
                s.schedule.type_start, s.present, inside, block_at, slot, base, PARAMETERS.gradients, gradient, source,
            )  # fmt: skip
        result = Backward(loss, full, active, gradient, [], (0, 0, 0), scratch, sink, (base, base + end))
        if active[loss] == 3:
            root = int(source[loss]) if self.root[loss] != loss else loss
            if root >= 0:
                touched[root] = 1
                result.seed = int(gradient[loss]), int(gradient[root]), int(info[types[root], plan.SIZE]) * self.itemsize
            else:
                result.seed = int(gradient[loss]), 0, 0
            self._seed(result)
        for s, block_at, _, inside, words, lists in reversed(layouts):
            table, lists_array = np.empty(words, np.int64), np.empty(lists, np.int64)
            o = s.schedule
            used, filled = plan.backward_table(
                s.at.size, types, args, self.positions, info, operands, needs, s.nodes, o.order, o.type_start, s.present,
                o.batch_type, o.batch_begin, o.batch_end, s.at, s.table, inside, block_at, base, gradient, source, touched,
                self.itemsize, self.kind, PARAMETERS.gradients, scratch + 64, sink, zero_rows.address(self.dtype),
                add_rows.address(self.dtype), table, lists_array,
            )  # fmt: skip
            used, products = plan.weight_table(
                s.present.size, s.at.size, args, self.positions, info, operands, needs, s.nodes, o.order, o.type_start,
                s.present, o.batch_type, o.batch_begin, o.batch_end, s.gather_first, s.gather_at, s.base, s.at, s.table, inside,
                block_at, base, self.itemsize, self.kind, PARAMETERS.gradients, copy_rows.address(self.dtype),
                np.empty(s.at.size, np.int32), np.empty(s.present.size + 1, np.int32), table, used,
            )  # fmt: skip
            used, filled = plan.rows_table(
                s.n0, min(s.n1, n), types, args, self.positions, info, inside, self.itemsize, gradient, touched,
                PARAMETERS.gradients, PARAMETERS.touched, add_to_table.address(self.dtype), table, lists_array, used, filled,
            )  # fmt: skip
            result.products += products
            result.tables.append((table, used, lists_array, s))
            self._run(graph, table, used, scratch, s, result)
        for parameter in graph.parameters:
            if hasattr(parameter, "touched"):  # a table used as a whole
                parameter.touched[:] = 1
        return result

    def _seed(self, backward: Backward) -> None:
        """Set the gradient of the loss to 1, in a slot that is otherwise zero; set the scalars of the scratch."""
        place, slot, size = backward.seed
        number = _CTYPES[self.dtype]
        if CHECKED:
            from autobatch.check import poison

            poison(backward.slots, self.dtype)
        if size:
            ctypes.memset(slot, 0, size)
            number.from_address(place).value = 1.0
        elif place:
            number.from_address(place).value += 1.0
        number.from_address(backward.scratch).value = 1.0
        number.from_address(backward.scratch + self.itemsize).value = 0.0

    def gradient_of(self, graph: Graph, index: int, count: int) -> np.ndarray | None:
        """Return a copy of the gradient of a node as `count` numbers; None if the last backward pass did not know the node.

        The gradient of a view lies in that of its argument, where all that is made of the argument adds up. So for a view the
        pass is run again, with the view as a node that has a gradient of its own and passes none on.
        """
        b = self.backward
        if b is None or index > b.loss:
            return None
        if b.active[index] != 3:
            return np.zeros(count, self.dtype)
        number = int(self.types[index])
        if TYPES.records[number].kind != VIEW:
            return read(int(b.gradient[index]), count, self.dtype)
        (shape,), out = TYPES.records[number].shapes, TYPES.records[number].shape
        mark, saved = self.gradients.mark(), _gradients(graph)
        self.types[index] = TYPES.intern(STOP, None, (shape,), (), {}, shape=out, immediates=1)
        try:
            return read(int(self._pass(graph, b.loss, b.full).gradient[index]), count, self.dtype)
        finally:
            self.types[index] = number
            self.gradients.cut(mark)
            _put_back(saved)

    def parameter_gradient(self, graph: Graph, index: int, count: int) -> np.ndarray | None:
        """Return what the last backward pass alone added to the gradient of a parameter.

        The parameter's own array holds the sum over all passes since the last update, so the pass is run again, on zeros, and
        the sums are put back.
        """
        b = self.backward
        if b is None:
            return None
        saved = _gradients(graph)
        for p, _, _ in saved:
            p.gradients[:] = 0
        self._seed(b)
        for table, words, _, segment in b.tables:
            self._run(graph, table, words, b.scratch, segment, b)
        flat = read(int(PARAMETERS.gradients[(-index - 1) >> 1]), count, self.dtype)
        _put_back(saved)
        return flat

    # Memory -----------------------------------------------------------------------------------------------------------

    def invalidate(self) -> None:
        """Forget all values; they are computed again when asked for."""
        self.done = self.flushed = self.flushed_args = 0
        self.segments.clear()
        self.backward = None
        for arena in (self.values, self.tables, self.gradients):
            arena.cut((0, 0))

    def cut(self, nodes: int, args: int) -> None:
        """Forget all nodes from number `nodes` on (they were recorded above a checkpoint, which evaluated what lies below)."""
        while self.segments and self.segments[-1].n0 >= nodes:
            segment = self.segments.pop()
            self.values.cut(segment.arena[0])
            self.tables.cut(segment.arena[1])
        if self.segments and self.segments[-1].n1 > nodes:  # all was computed again, across the checkpoint
            self.invalidate()
        self.backward = None
        self.done = min(self.done, nodes)
        self.flushed, self.flushed_args = min(self.flushed, nodes), min(self.flushed_args, args)

    def memory(self) -> dict[str, int]:
        """Bytes used and reserved, by purpose."""
        arenas = {"values": self.values, "gradients": self.gradients, "tables": self.tables}
        return {f"{name}_{what}": getattr(a, what) for name, a in arenas.items() for what in ("used", "reserved")}

    def release(self) -> None:
        """Give all memory back to the pool."""
        self.segments.clear()
        self.backward = None
        for arena in (self.values, self.tables, self.gradients):
            arena.release()


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    grown = np.zeros(size, array.dtype)
    grown[: array.size] = array
    return grown


def _gradients(graph: Graph) -> list[tuple[Any, np.ndarray, np.ndarray | None]]:
    """Return copies of the gradients of all parameters of a graph, and of the marks of touched rows."""
    parameters = [p for p in graph.parameters | graph.tables if hasattr(p, "gradients")]
    return [(p, p.gradients.copy(), p.touched.copy() if hasattr(p, "touched") else None) for p in parameters]


def _put_back(saved: list[tuple[Any, np.ndarray, np.ndarray | None]]) -> None:
    for p, gradients, touched in saved:
        p.gradients[:] = gradients
        if touched is not None:
            p.touched[:] = touched


class _Scratch:
    """Work space that holds no more than the scalars 1 and 0, for forward passes."""

    arrays = {name: np.array([1, 0] + [0] * 6, name) for name in DTYPES}  # noqa: RUF012


def _scratch(dtype: str) -> int:
    return int(_Scratch.arrays[dtype].ctypes.data)


def _local(n: int) -> np.ndarray:
    """Return an array of n times -1, which whoever uses it leaves as it was."""
    return np.full(n, -1, np.int32)


def execution_of(graph: Graph) -> Execution:
    """Return the execution of a graph, made now if it has none."""
    if graph.execution is None:
        graph.execution = Execution(graph)
    execution: Execution = graph.execution
    return execution

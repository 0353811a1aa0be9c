"""Runs a graph: schedules what is new, plans it, hands the table to the interpreter; then the same backward.

The only caller of kernels. An `Execution` belongs to one graph and holds its arrays: the flushed lists, the address of each
node's value, and one `Segment` for each forward pass that had something new to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import operator
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autobatch import background, plan, threads
from autobatch.devices import configured_machine
from autobatch.frame import Block, Frame, numbers
from autobatch.graph import DTYPES, IMMEDIATES, PER_UNIT, ROW, SIZE, STOP, TYPES, VIEW, Graph
from autobatch.kernels._errors import DeviceMemoryError
from autobatch.machine import PROCESSOR, Job, Machine, Where
from autobatch.memory import ALIGN, Arena, address_of, array_at, own_pool
from autobatch.schedule import Schedule, in_pieces, recalled
from autobatch.segment import Segment

_CTYPES = {"float32": ctypes.c_float, "float64": ctypes.c_double}
SCALARS = 64  # bytes of scratch before the place for a batch of gradients: 1 and 0 for BLAS, then zeros
CHECKED = os.environ.get("AUTOBATCH_CHECK", "0") not in ("", "0")


@dataclasses.dataclass(slots=True)
class Backward:
    """The gradients of one backward pass.

    Attributes
    ----------
    loss, full : of which node, and whether of all nodes or of those that a parameter lies behind.
    nodes : how many it knows.
    active_at, gradient_at : where `active` and `gradient` lie.
    scratch, sink : work space of kernels, and the place for what nobody wants.
    slots : first and last+1 address of all gradients.
    seed : where the gradient of the loss begins the pass, see `plan.seed`.
    tables : what it runs, in order, and the segments that it belongs to.
    products : gradients of weights formed as products.
    """

    loss: int
    full: bool
    nodes: int
    active_at: int
    gradient_at: int
    scratch: int
    sink: int
    slots: tuple[int, int]
    seed: tuple[int, int, int]
    tables: list[tuple[Where, Segment]] = dataclasses.field(default_factory=list)
    products: int = 0

    @property
    def active(self) -> np.ndarray:
        """3 for each node that has a gradient."""
        return array_at(self.active_at, self.nodes, "uint8")

    @property
    def gradient(self) -> np.ndarray:
        """Its address."""
        return array_at(self.gradient_at, self.nodes, "int64")


@dataclasses.dataclass(slots=True)
class Draft:
    """A backward pass that is being planned.

    Attributes
    ----------
    backward : what it will be.
    tables : of each segment, the last first: what the passes are told about it (nothing if there is but one, since they have
        been), where its table lies, and where its lists do.
    """

    backward: Backward
    tables: list[tuple[Segment, bytes, int, int]]


class Execution:
    """The values of a graph, as far as they were computed."""

    def __init__(self, dtype: str, machine: Machine = PROCESSOR) -> None:
        self.dtype = dtype
        self.machine = machine
        self.kind = DTYPES.index(dtype)
        self.itemsize = 4 << self.kind
        self.types = np.empty(64, np.int32)
        self.args = np.empty(128, np.int32)
        self.positions = np.empty(65, np.int64)
        self.root = np.empty(64, np.int32)
        self.address = np.empty(64, np.int64)
        self.flushed = self.flushed_args = 0  # nodes and arguments taken over from the graph's lists
        self.flushed_entries = 0, 0  # of the graph's list of arguments and its pieces
        self.done = 0  # nodes with a value
        self.freed = 0  # of these, how many gave it up
        self.keeps = False  # whether values stay in spite of `inference`
        self.peak = 0
        self.segments: list[Segment] = []
        self.values = machine.arena("values")
        self.gradients = machine.arena("gradients")
        self.tables = Arena("tables")
        self.rooms = Arena("segments")
        self.backward_tables = Arena("backward tables")
        self.inputs: Any = None  # what the machine knows of them
        self.backward: Backward | None = None
        self.ahead: Draft | None = None  # of a backward pass that nobody has asked for yet
        self.asked, self.trains = -1, False  # which node was asked for last; whether its backward was what came next
        self.frame = Frame()
        self._told: tuple[np.ndarray, ...] = ()
        self._input_addresses: Any = None
        self.frame.itemsize, self.frame.dtype, self.frame.card = self.itemsize, self.kind, machine.card
        for name, address in machine.kernels(dtype).items():
            setattr(self.frame, name, address)
        self._share()
        self._tell()

    # Forward ----------------------------------------------------------------------------------------------------------

    @property
    def batches(self) -> int:
        """Batches run forward so far."""
        return sum(s.batches for s in self.segments)

    def lower_bound(self) -> int:
        """Batches that any policy needs, segment by segment."""
        return sum(s.lower_bound() for s in self.segments)

    def _share(self) -> None:
        """Hand the arrays of the graph to the frame, after they grew."""
        self.frame.hold(types=self.types, args=self.args, root=self.root, positions=self.positions, address=self.address)

    def _tell(self) -> None:
        """Hand the tables of the process to the frame: they are replaced when they grow, and the frame keeps those it has."""
        told = self.machine.tables()
        if self._told and all(map(operator.is_, told, self._told)):
            return
        self._told = tables = told
        self.frame.hold(info=tables[0], operands=tables[1], needs=tables[2], local=np.full(len(tables[0]), -1, np.int32))
        self.frame.hold(parameter_values=tables[3], parameter_gradients=tables[4], parameter_touched=tables[5])

    def _flush(self, graph: Graph) -> None:
        """Take over what was recorded since the last time."""
        n, m = len(graph.recorded_types), graph.count_args()
        if n > self.types.size or m > self.args.size:
            room = max(n, 2 * self.types.size)
            self.types, self.root, self.address = (_grown(a, room) for a in (self.types, self.root, self.address))
            self.positions = _grown(self.positions, room + 1)
            self.args = _grown(self.args, max(m, 2 * self.args.size))
            self._share()
        graph.write(self.types[self.flushed : n], self.args[self.flushed_args : m], self.flushed, *self.flushed_entries)
        self.flushed, self.flushed_args = n, m
        self.flushed_entries = len(graph.recorded_args), len(graph.pieces)

    def forward(self, graph: Graph, index: int, others: Sequence[int] = ()) -> None:
        """Compute a node, and all else that was recorded and has no value yet: programs ask for values one after the other.

        Where a NaN is to be found, no node behind the one that is asked for. In a graph for inference, the values of `index`
        and `others` are there afterwards, and those that nothing reads yet.
        """
        upto = index if graph.check_nan else len(graph.recorded_types) - 1
        self.asked = index
        try:
            self._forward(graph, index, upto, others)
        except DeviceMemoryError:
            self._give_up(graph)
            raise

    def _give_up(self, graph: Graph) -> None:
        """Leave a graph for which there is no room on the card: it can be evaluated anew, on the processor if so configured."""
        if graph.execution is self:
            graph.execution = None
        self.release()

    def _forward(self, graph: Graph, index: int, upto: int, others: Sequence[int]) -> None:
        n0, n1 = self.done, upto + 1
        if self.freed and any(n < n0 and not self.address[n] for n in (index, *others)):
            self.restore(graph, upto)
            return
        if index < n0 and all(n < n0 for n in others):
            return
        self.ahead = None
        if n1 > self.flushed:
            self._flush(graph)
        self.machine.prepare(graph)
        self._tell()
        frame = self.frame
        if self.freed:
            frame.n0, frame.n1 = n0, n1
            if plan.misses(frame):
                self.restore(graph, upto)
                return
        marks = self.values.mark(), self.tables.mark(), self.rooms.mark()
        try:
            frugal = graph.inference and not self.keeps and not graph.check_nan
            segment = self._survey(n0, n1, graph.policy, frugal)
            segment.marks = marks
            if frugal:
                stays = self._lay_out_frugally(segment, (index, *others))
            else:
                self._place(segment, *plan.layout(frame))
            if graph.input_addresses:
                addresses, self.inputs = self.machine.inputs(graph, self.inputs)
                if addresses is not self._input_addresses:
                    self._input_addresses = addresses
                    frame.hold(input_addresses=addresses)
            plan.place(frame)
            segment.words, segment.entries, *work = plan.forward_table(frame)
            segment.work, segment.saved = tuple(work), frame.save()
            self.segments.append(segment)
            plan_backward = None
            if self.trains and len(self.segments) == 1 and not frugal and TYPES.info[self.types[index], SIZE] == 1:
                plan_backward = functools.partial(self._look_ahead, graph, index)
            self.machine.begin(graph, False)
            where = segment.table_at, segment.words, segment.lists_at, segment.entries
            self._run(Job(self, graph, where, _Scratch.addresses[self.dtype], segment, None), plan_backward)
            if graph.check_nan:
                from autobatch.check import find_nan

                find_nan(self, graph, segment)
        except BaseException:
            while self.segments and self.segments[-1].n0 >= n0:
                self.segments.pop()
            self._cut(marks)
            raise
        if frugal:
            self.freed += plan.forget(frame)
            self._note_peak()
            self.values.cut((self.values.mark()[0], segment.base + stays))
            self.tables.cut(marks[1])
            segment.words = segment.entries = 0
            segment.last = None
        self.done = n1

    def _survey(self, n0: int, n1: int, policy: str, frugal: bool) -> Segment:
        """Begin the segment of these nodes: reduce them, see to their kernels, and find their batches."""
        frame, size = self.frame, n1 - n0
        entries = self.flushed_args - (int(self.positions[n0]) if n0 else 0)
        most = min(size, len(TYPES.info))
        frame.n0, frame.n1, frame.most = n0, n1, most
        frame.room = self.rooms.take(plan.room_of_survey(size, entries, most))
        count, edges, types, arguments, single, known = plan.survey(frame)
        segment = Segment(n0, n1, count, edges, types, arguments)
        if not known or frugal or not single:
            segment.saved = frame.save()
        if not known:
            self.machine.compile(segment.present.tolist(), self.kind, False)
            self._tell()
        if single or policy == "none":
            segment.batches = frame.n_batches = count
            frame.room = self.rooms.take(plan.room_in_order(count, types) + plan.room_of_layout(types, arguments, count))
            plan.in_order(frame)
            return segment
        order = recalled(policy, segment.kinds, segment.first, segment.edges, types, segment.joins)
        if frugal:
            sizes = TYPES.info[segment.present, SIZE] * self.itemsize
            order = in_pieces(order, segment.first, segment.edges, sizes)
        segment.order, segment.batches = order, order.batch_type.size
        frame.n_batches = segment.batches
        for name, array in zip(Schedule._fields, order, strict=True):
            setattr(frame, name, address_of(array))
        frame.room = self.rooms.take(plan.room_of_layout(types, arguments, segment.batches))
        return segment

    def _place(self, segment: Segment, total: int, words: int, lists: int, copies: int = -1) -> None:
        """Take memory for the values of a segment and for its table, given the bytes and the words that they need."""
        background.wait()
        segment.base = self.values.take(total)
        segment.table_at = table = self.tables.take(8 * (words + lists))
        segment.lists_at, segment.copies = table + 8 * words, copies
        frame = self.frame
        frame.value_base, frame.copies, frame.lists = segment.base, copies, segment.lists_at
        frame.forward = frame.table = table
        frame.piece, frame.product = threads.PIECE, threads.LARGE // PER_UNIT

    def _lay_out_frugally(self, segment: Segment, asked: Sequence[int]) -> int:
        """Lay a segment out for inference, with the values of these nodes kept; return the bytes of values that stay."""
        frame, count, batches, n0 = self.frame, segment.count, segment.batches, segment.n0
        space = Block(count + 4 * count + 4 * batches + 8 * batches + 16 * plan.HOLES + 64)
        keep_at, last_at = space.take(count), space.take(4 * batches)
        ctypes.memset(keep_at, 0, count)
        keep, reduced_of = space.view(keep_at, count, np.uint8), numbers(segment.saved, "dense", segment.n1 - n0)
        for n in asked:
            root = int(self.root[n])
            if root >= n0 and reduced_of[root - n0] >= 0:
                keep[reduced_of[root - n0]] = 1
        frame.keep, frame.last, frame.batch_of = keep_at, last_at, space.take(4 * count)
        frame.released, frame.holes = space.take(8 * batches), space.take(16 * plan.HOLES)
        stays, copies, total, words, lists = plan.frugal_layout(frame)
        segment.last = space.view(last_at, batches, np.int32)
        self._place(segment, total, words, lists, copies)
        return int(stays)

    def _cut(self, marks: tuple[tuple[int, int], ...]) -> None:
        """Go back to these marks of the arenas that hold what belongs to segments."""
        self._note_peak()
        for arena, mark in zip((self.values, self.tables, self.rooms), marks, strict=True):
            arena.cut(mark)

    def restore(self, graph: Graph, upto: int) -> None:
        """Compute everything once more, and keep it from now on."""
        upto = max(upto, self.done - 1)
        self.invalidate()
        self.keeps = True
        self.forward(graph, upto)

    def keep(self, graph: Graph) -> None:
        """Keep all values from now on, in spite of `inference`."""
        if self.freed:
            self.restore(graph, self.done - 1)
        self.keeps = True

    def _run(self, job: Job, meanwhile: Callable[[], None] | None = None) -> None:
        if CHECKED and not self.machine.card:
            from autobatch.check import run_checked

            run_checked(job)
        else:
            self.machine.run(job, meanwhile)

    def value_address(self, index: int) -> int:
        """Address of the value of a node, or of a parameter (a negative index), whose numbers are about to be read."""
        if background.running() and (index < 0 or self._shows_a_parameter(index)):
            background.wait()
        return int(self.address[index] if index >= 0 else self._told[3][(-index - 1) >> 1])

    def _shows_a_parameter(self, index: int) -> bool:
        """Whether a node has no memory of its own, but is a parameter, a row of a table, or part of either."""
        owner = int(self.root[index])
        return owner < 0 or TYPES.records[self.types[owner]].kind == ROW

    def value_of(self, index: int, count: int) -> np.ndarray:
        """Return a copy of the value of a node, or of a parameter, of `count` numbers."""
        return self.machine.read(self.value_address(index), count, self.dtype)

    # Backward ---------------------------------------------------------------------------------------------------------

    def run_backward(self, graph: Graph, loss: int, full: bool) -> None:
        """Compute the gradients of node `loss` and add those of the parameters to the parameters."""
        background.wait()
        draft, self.ahead, self.backward = self.ahead, None, None
        self.trains = loss == self.asked
        try:
            self.machine.begin(graph, True)
            if draft is None or full or draft.backward.loss != loss:
                self.gradients.cut((0, 0))
                self.backward_tables.cut((0, 0))
                planned = self._plan(graph, loss, full)
            else:
                planned = draft.backward
                self._plan_parameters(draft, *draft.tables[0])
            self._run_planned(graph, planned)
            self.backward = planned
        except DeviceMemoryError:
            self._give_up(graph)
            raise

    def _look_ahead(self, graph: Graph, loss: int) -> None:
        """Plan backward of a node that is still being computed, as it was the last time that somebody computed one.

        Not the gradients of parameters: what they need of the values is copied together where that pays, and forward tables,
        one of which is running, have the copies in place of the values from then on. And only of a graph that is computed in
        one pass, as nearly all are: nothing of it has gradients yet.
        """
        self.gradients.cut((0, 0))
        self.backward_tables.cut((0, 0))
        with contextlib.suppress(MemoryError):  # which is for backward to say
            draft = self._draft(graph, loss, False)
            self._plan_nodes(draft, *draft.tables[0])
            self.ahead = draft

    def _plan(self, graph: Graph, loss: int, full: bool) -> Backward:
        """Plan the backward tables of all segments that the loss may depend on, the last one first."""
        draft = self._draft(graph, loss, full)
        for table in draft.tables:
            if len(draft.tables) > 1:
                self.frame.load(table[1])
            self._plan_nodes(draft, *table)
            self._plan_parameters(draft, *table)
        return draft.backward

    def _draft(self, graph: Graph, loss: int, full: bool) -> Draft:
        """Find which nodes have gradients, where they lie, and how large the tables may be."""
        self._tell()
        n, frame, take = loss + 1, self.frame, self.backward_tables.take
        segments = [s for s in self.segments if s.n0 < n]
        nodes = max(n, segments[-1].n1) if segments else n  # the last segment may go on behind the loss
        frame.n_nodes, frame.loss, frame.full, frame.room = nodes, loss, full, take(plan.room_of_gradients(nodes))
        plan.mark(frame)
        # Memory for all gradients, then for one batch of them before they are added where they belong (behind the scalars
        # for BLAS), and a place for what nobody wants.
        layouts, end, scratch_size, widest = [], 0, 0, 0
        for s in segments:
            frame.load(s.saved)
            frame.n1, frame.start = min(s.n1, n), end
            frame.room = take(plan.room_of_gradient_layout(s.n1 - s.n0, s.types, s.batches))
            end, scratch, wide, words, lists, known = plan.gradient_layout(frame)
            if not known:
                self.machine.compile(s.present.tolist(), self.kind, True)
                self._tell()
            scratch_size, widest = max(scratch_size, scratch), max(widest, wide)
            layouts.append((s, frame.save() if len(segments) > 1 else b"", words, lists))
        slots, work = _aligned(end), _aligned(scratch_size + SCALARS)
        base = self.gradients.take(slots + work + widest)
        scratch, sink = base + slots, base + slots + work
        frame.gradient_base, frame.scratch, frame.sink = base, scratch + SCALARS, sink
        if self.machine.card:
            self._work_on_card(graph, nodes)
        else:
            self._seen(nodes)
        for _, saved, _, _ in layouts:
            if len(layouts) > 1:
                frame.load(saved)
            plan.gradient_places(frame)
        places = frame.active, frame.gradient, scratch, sink, (base, base + end)
        result = Backward(loss, full, nodes, *places, plan.seed(frame))
        return Draft(result, [(s, saved, take(8 * words), take(8 * lists)) for s, saved, words, lists in reversed(layouts)])

    def _plan_nodes(self, draft: Draft, segment: Segment, saved: bytes, table: int, lists: int) -> None:
        """Write what of a table forms gradients of nodes."""
        frame = self.frame
        frame.table, frame.lists = table, lists
        frame.w, frame.r, frame.rounds = plan.backward_table(frame)

    def _plan_parameters(self, draft: Draft, segment: Segment, saved: bytes, table: int, lists: int) -> None:
        """Write the rest of a table, directly after `_plan_nodes`: gradients of parameters."""
        frame, result = self.frame, draft.backward
        if self.machine.card:
            frame.w, frame.r, products = plan.weight_lists(frame)
            w, r = plan.row_groups(frame)
        else:
            frame.w, products = plan.weight_table(frame)
            w, r = plan.rows_table(frame)
        result.products += products
        result.tables.append(((table, w, lists, r), segment))

    def _run_planned(self, graph: Graph, backward: Backward) -> None:
        """Run the tables of a backward pass."""
        self._seed(backward)
        if not self.machine.card:
            _touch_all(graph)
        for where, segment in backward.tables:
            self._run(Job(self, graph, where, backward.scratch, segment, backward))
        if self.machine.card:
            _touch_all(graph)

    def _seen(self, nodes: int) -> None:
        """Hand over the work space of the pass for the processor."""
        size = 4 * (nodes + len(self._told[4]))
        at = self.backward_tables.take(size)
        ctypes.memset(at, 0, size)
        self.frame.seen, self.frame.rounds = at, 0

    def _work_on_card(self, graph: Graph, nodes: int) -> None:
        """Hand over the work space of the passes for a card."""
        owners = nodes + len(self._told[3])
        rows = max((p.dims[-1] for p in (getattr(q, "of", q) for q in graph.tables)), default=0)
        seen, group, row_seen = (self.backward_tables.take(4 * size) for size in (owners, owners, rows))
        ctypes.memset(seen, 0, 4 * owners)
        ctypes.memset(row_seen, 0xFF, 4 * rows)
        frame = self.frame
        frame.seen, frame.group, frame.row_seen, frame.rounds = seen, group, row_seen, 0

    def _seed(self, backward: Backward) -> None:
        """Set the gradient of the loss to 1, in a slot that is otherwise zero; set the scalars of the scratch."""
        place, slot, size = backward.seed
        if self.machine.card:
            begin, end = backward.slots
            self.machine.zero(begin, end - begin)
            one = self.machine.read(place, 1, self.dtype) if place and not size else np.zeros(1, self.dtype)
            if place:
                self.machine.write(place, one + one.dtype.type(1))
            return
        number = _CTYPES[self.dtype]
        if CHECKED:
            from autobatch.check import poison

            poison(backward.slots, self.dtype)
        if size:
            ctypes.memset(slot, 0, size)
            number.from_address(place).value = 1.0
        elif place:
            number.from_address(place).value += 1.0
        ctypes.memset(backward.scratch, 0, SCALARS)
        number.from_address(backward.scratch).value = 1.0

    def gradient_of(self, graph: Graph, index: int, count: int) -> np.ndarray | None:
        """Return a copy of the gradient of a node as `count` numbers; None if the last backward pass did not know the node.

        The gradient of a view lies in that of its argument, where all that is made of the argument adds up. So for a view the
        pass is run again, with the view as a node that has a gradient of its own and passes none on.
        """
        background.wait()
        b = self.backward
        if b is None or index > b.loss:
            return None
        if b.active[index] != 3:
            return np.zeros(count, self.dtype)
        number = int(self.types[index])
        if TYPES.records[number].kind != VIEW:
            return self.machine.read(int(b.gradient[index]), count, self.dtype)
        record, immediates = TYPES.records[number], int(TYPES.info[number, IMMEDIATES])
        mark, tables, saved = self.gradients.mark(), self.backward_tables.mark(), _gradients(graph)
        attributes = dict(record.attributes)
        self.types[index] = TYPES.intern(STOP, None, record.shapes, (), attributes, shape=record.shape, immediates=immediates)
        try:
            again = self._plan(graph, b.loss, b.full)
            self._run_planned(graph, again)
            background.wait()
            return self.machine.read(int(again.gradient[index]), count, self.dtype)
        finally:
            self.types[index] = number
            self.gradients.cut(mark)
            self.backward_tables.cut(tables)
            _put_back(saved)

    def parameter_gradient(self, graph: Graph, index: int, count: int) -> np.ndarray | None:
        """Return what the last backward pass alone added to the gradient of a parameter.

        The parameter's own array holds the sum over all passes since the last update, so the pass is run again, on zeros, and
        the sums are put back.
        """
        b = self.backward
        if b is None:
            return None
        saved, pid = _gradients(graph), (-index - 1) >> 1
        if all(p.pid != pid for p, _, _ in saved):
            return np.zeros(count, self.dtype)  # this graph does not use it
        for p, _, _ in saved:
            p.gradients[:] = 0
        self.machine.begin(graph, True)
        self._run_planned(graph, b)
        background.wait()
        flat = self.machine.read(int(self._told[4][pid]), count, self.dtype)
        _put_back(saved)
        return flat

    # Memory -----------------------------------------------------------------------------------------------------------

    def invalidate(self) -> None:
        """Forget all values; they are computed again when asked for."""
        background.finish()
        self._note_peak()
        self.done = self.flushed = self.flushed_args = self.freed = 0
        self.flushed_entries = 0, 0
        self.segments.clear()
        self.backward = self.ahead = None
        for arena in (self.values, self.tables, self.rooms, self.gradients, self.backward_tables):
            arena.cut((0, 0))
        if self.inputs is not None:
            self.inputs.forget()

    def cut(self, nodes: int, args: int) -> None:
        """Forget all nodes from number `nodes` on (they were recorded above a checkpoint, which evaluated what lies below)."""
        background.finish()
        while self.segments and self.segments[-1].n0 >= nodes:
            self._cut(self.segments.pop().marks)
        if self.segments and self.segments[-1].n1 > nodes:  # all was computed again, across the checkpoint
            self.invalidate()
        self.backward = self.ahead = None
        self.done = min(self.done, nodes)
        if self.flushed > nodes or self.flushed_args > args:  # what is left is taken over again
            self.flushed = self.flushed_args = 0
            self.flushed_entries = 0, 0

    def _note_peak(self) -> None:
        """Take note of how much memory values use, before they use less."""
        self.peak = max(self.peak, self.values.used)

    def memory(self) -> dict[str, int]:
        """Bytes used and reserved, by purpose; and the most that values used at any time."""
        self._note_peak()
        arenas = {
            "values": [self.values],
            "gradients": [self.gradients],
            "tables": [self.tables, self.rooms, self.backward_tables],
        }
        held = {
            f"{name}_{what}": sum(getattr(a, what) for a in of) for name, of in arenas.items() for what in ("used", "reserved")
        }
        return {**held, "values_peak": self.peak}

    def release(self) -> None:
        """Give all memory back to the pool, and this execution to the next graph of the thread."""
        home = own_pool(), _IDLE.executions  # of the thread that has used it, whoever will wait for its tables
        if not background.postponed(functools.partial(self._release, *home)):
            self._release(*home)

    def _release(self, pool: dict[str, list[Any]], idle: list[Execution]) -> None:
        self.segments.clear()
        self.trains = self.trains and self.backward is not None
        self.backward = self.ahead = None
        self.done = self.flushed = self.flushed_args = self.freed = self.peak = 0
        self.keeps = False
        self.flushed_entries = 0, 0
        for arena in (self.values, self.tables, self.rooms, self.gradients, self.backward_tables):
            arena.release(pool)
        if self.inputs is not None:
            self.inputs.release()
            self.inputs = None
        if self.types.size <= _LARGEST_IDLE:
            idle.append(self)
            del idle[:-_MOST_IDLE]


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    grown = np.zeros(size, array.dtype)
    grown[: array.size] = array
    return grown


def _gradients(graph: Graph) -> list[tuple[Any, np.ndarray, np.ndarray | None]]:
    """Return copies of the gradients of all parameters of a graph, and of the marks of touched rows."""
    parameters = [p for p in graph.parameters | graph.tables if hasattr(p, "gradients")]
    return [(p, p.gradients.copy(), p.touched.copy() if hasattr(p, "touched") else None) for p in parameters]


def _touch_all(graph: Graph) -> None:
    """Mark all rows of tables that a graph uses as a whole."""
    for parameter in graph.parameters:
        if hasattr(parameter, "touched"):
            parameter.touched[:] = 1


def _put_back(saved: list[tuple[Any, np.ndarray, np.ndarray | None]]) -> None:
    for p, gradients, touched in saved:
        p.gradients[:] = gradients
        if touched is not None:
            p.touched[:] = touched


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


class _Scratch:
    """Work space that holds no more than the scalars 1 and 0, for forward passes."""

    arrays = {name: np.array([1, 0] + [0] * 6, name) for name in DTYPES}  # noqa: RUF012
    addresses = {name: address_of(array) for name, array in arrays.items()}  # noqa: RUF012


class _Idle(threading.local):
    """Executions of dropped graphs: their arrays and frames are ready for the next graph, which saves 50 µs."""

    def __init__(self) -> None:
        self.executions: list[Execution] = []


_IDLE = _Idle()
_LARGEST_IDLE, _MOST_IDLE = 1 << 20, 4  # nodes of one; executions


def execution_of(graph: Graph) -> Execution:
    """Return the execution of a graph, made now if it has none."""
    if graph.execution is None:
        idle, machine = _IDLE.executions, configured_machine()
        for k in reversed(range(len(idle))):
            if idle[k].dtype == graph.dtype and idle[k].machine is machine:
                graph.execution = idle.pop(k)
                break
        else:
            graph.execution = Execution(graph.dtype, machine)
    execution: Execution = graph.execution
    return execution

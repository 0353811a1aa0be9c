"""From what a function recorded to the programs of a cell: what is fused, where everything lies, who writes which gradient.

    nodes of a trace ──▶ values (views looked through, dead ones gone) ──▶ steps in order ──▶ layout ──▶ programs

Steps. Elementwise ops of one size that no other op stands between are one `Chain`; any other op is a step of its own. The
*level* of an op tells which: ops of a chain have one level, and so nothing of another level can stand between them.

Layout. The row of a node begins with the outputs; then comes what backward needs. What only a chain reads itself has no place;
the value of a costly op takes that of its argument, if that was a product which nobody else reads. The gradient has the same
layout. Where the value of a place has no gradient, gradients of arguments stand before they are handed on.

Gradients. Programs are fixed, so it is known here who writes a gradient first (it stores) and who adds; what is written in
parts that do not cover it is zeroed first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from autobatch.cell.trace import Traced
from autobatch.graph import ARGUMENTS, INPUT, OP, ROW, STOP, TYPES, NodeType
from autobatch.kernels._errors import InternalError, TraceError
from autobatch.kernels._fused import Chain, Formulas, Line, Read
from autobatch.kernels._jit import ACCUMULATE
from autobatch.kernels._op import DENSE, ROWS, SHARED, Lowering, Operand, Shape
from autobatch.kernels._rows import add_all_rows, add_rows, copy_rows, zero_rows
from autobatch.kernels.cell import ALONE, EACH, FIXED, INCOMING, INHERIT, MOST_SLOTS, Programs, Slot, Step

MOST_LINES = 64  # of a chain: longer ones take long to compile
MOST_TERMS = 16  # of a line, likewise
VALUE, ARGUMENT, CONSTANT = "value", "argument", "constant"


class Place(NamedTuple):
    """Part of something: `size` numbers from `start` on; no gradient goes back through a `stopped` one."""

    kind: str
    number: int
    start: int
    size: int
    stopped: bool = False


@dataclasses.dataclass(eq=False)
class Value:
    """The result of one op inside of a cell."""

    number: int
    record: NodeType
    args: list[Place]
    immediates: list[int]
    level: int = 0
    formulas: Formulas | None = None
    trains: bool = False  # a gradient is wanted here
    readers: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # (value, position of the argument)
    output: bool = False
    at: int = -1  # where it lies in the row of a node
    group: int = -1  # which step computes it

    @property
    def size(self) -> int:
        """Numbers."""
        return self.record.shape.total


class Part(NamedTuple):
    """A slot of a step before it is known which program it is in: gradient, own row, argument, destination, constant."""

    kind: str  # "dy", "y", "argument", "to", "constant", "integer"
    number: int = 0
    start: int = 0
    size: int = 0


class Draft(NamedTuple):
    """A step with `Part`s for slots. It writes the first and reads the others, unless `reads` and `writes` say otherwise."""

    kernel: Any
    sizes: np.ndarray | None
    flags: int
    parts: tuple[Part, ...]
    mode: int = 0
    dense: bool = False  # takes rows at even distances only
    reads: tuple[Part, ...] | None = None
    writes: tuple[tuple[Part, bool | None], ...] | None = None  # and whether it adds there (None: either, see `Step`)


class _Uncovered(Exception):
    """A gradient is written in parts that overlap, or leave something out: it has to be zeroed first."""

    def __init__(self, key: tuple[str, int]) -> None:
        self.key = key


def _spaced(value: Value) -> bool:
    """Whether the kernels of an op read or write operands that may lie at even distances only."""
    assert value.record.lowering is not None
    return any(o.reads != ROWS or o.writes != ROWS for o in value.record.lowering.operands)


class Body:
    """The inside of a cell for one signature.

    Parameters
    ----------
    traced : what the function recorded.
    names : what the expressions among its arguments are called.

    Attributes
    ----------
    arguments : shapes of the arguments, those of the function first, then parameters.
    parameters : their indices.
    outputs : where each output lies in the row of a node: (start, shape, whether no gradient comes back through it).
    total : numbers of a row.
    """

    def __init__(self, traced: Traced, names: Sequence[str]) -> None:
        self.inputs = traced.inputs
        self._names = list(names)
        self._named = {p.index: p for p in traced.parameters}
        self.arguments: list[Shape] = []
        self.parameters: list[int] = []
        self.constants: list[np.ndarray] = []
        self.values: list[Value] = []
        self._read(traced)
        self._prune()
        self._find_levels()
        self._lay_out()
        self.programs = Programs(*self._programs())

    # Reading the trace ------------------------------------------------------------------------------------------------

    def _read(self, traced: Traced) -> None:
        places: list[Place] = []
        parameters: dict[int, int] = {}
        same: dict[Any, Place] = {}  # an op of the same arguments is the same value
        for n, (number, entries) in enumerate(traced.nodes):
            record = TYPES.records[number]
            if n < traced.inputs:
                self.arguments.append(record.shape)
                places.append(Place(ARGUMENT, n, 0, record.shape.total))
            elif record.kind == INPUT:
                places.append(Place(CONSTANT, self._constant(traced.constants[entries[0]]), 0, record.shape.total))
            elif record.kind == ROW:
                raise InternalError("a row of a table in a cell")
            else:
                count = int(TYPES.info[number, ARGUMENTS])
                args = [self._place(a, k, record, places, parameters) for k, a in enumerate(entries[:count])]
                key = (number, *args, *entries[count:])
                if record.kind == OP and key in same:
                    places.append(same[key])
                elif record.kind == OP:
                    same[key] = Place(VALUE, len(self.values), 0, record.shape.total)
                    self.values.append(Value(len(self.values), record, args, entries[count:]))
                    places.append(Place(VALUE, len(self.values) - 1, 0, record.shape.total))
                else:
                    of = args[0]
                    stopped = of.stopped or record.kind == STOP
                    places.append(Place(of.kind, of.number, of.start + entries[1], record.shape.total, stopped))
        self._results: list[tuple[Place, Shape]] = []
        for index in traced.outputs:
            self._results.append((places[index], TYPES.records[traced.nodes[index][0]].shape))

    def _constant(self, numbers: np.ndarray) -> int:
        self.constants.append(numbers)
        return len(self.constants) - 1

    def _place(self, a: int, k: int, record: NodeType, places: list[Place], parameters: dict[int, int]) -> Place:
        return places[a] if a >= 0 else self._parameter(a, record.shapes[k], parameters)

    def _parameter(self, index: int, shape: Shape, parameters: dict[int, int]) -> Place:
        if index not in parameters:
            parameters[index] = len(self.arguments)
            self.arguments.append(shape)
            self.parameters.append(index)
            self._names.append(parameter_name(self._named[index]))
        return Place(ARGUMENT, parameters[index], 0, shape.total)

    def _prune(self) -> None:
        """Mark outputs, drop what no output needs, and note who reads what. An output that is no part of a value is copied."""
        wanted: set[int] = set()
        for place, _ in self._results:
            if place.kind == VALUE:
                wanted.add(place.number)
                self.values[place.number].output = True
        for value in reversed(self.values):
            if value.number in wanted:
                wanted |= {p.number for p in value.args if p.kind == VALUE}
        self.live = [v for v in self.values if v.number in wanted]
        for value in self.live:
            for k, place in enumerate(value.args):
                if place.kind == VALUE:
                    self.values[place.number].readers.append((value.number, k))
            operands = value.record.lowering.operands  # type: ignore[union-attr]
            value.trains = any(
                operand.backward is not None and self._wanted(place)
                for operand, place in zip(operands, value.args, strict=True)
            )

    def _wanted(self, place: Place) -> bool:
        """Whether a gradient goes to a place."""
        if place.stopped or place.kind == CONSTANT:
            return False
        if place.kind == ARGUMENT:
            return place.number < self.inputs or self.parameters[place.number - self.inputs] % 2 != 0
        return self.values[place.number].trains

    # Order ------------------------------------------------------------------------------------------------------------

    def _find_levels(self) -> None:
        """Give each value its level, and each step (a chain, or one other op) its number, in the order of running."""
        for value in self.live:
            op = value.record.op
            assert op is not None
            fits = all(p.size == value.size or (p.size == 1 and p.kind == CONSTANT) for p in value.args)
            if op.formulas is not None and fits and len(value.args) <= MOST_TERMS:
                value.formulas = op.formulas(len(value.args))
            for place in value.args:
                if place.kind == VALUE:
                    before = self.values[place.number]
                    value.level = max(value.level, before.level + (not self._joined(place, value)))
        for value in reversed(self.live):  # later, if that is where a chain reads it
            readers = [(self.values[r], self._joined(self.values[r].args[k], self.values[r])) for r, k in value.readers]
            latest = min((reader.level - (not joined) for reader, joined in readers), default=0)
            if any(joined and reader.level == latest for reader, joined in readers):
                value.level = latest
        steps: dict[Any, list[Value]] = {}
        for value in sorted(self.live, key=lambda v: (v.level, v.formulas is not None, v.number)):
            key: Any = (value.level, value.size) if value.formulas is not None else value.number
            while len(steps.get(key, ())) == MOST_LINES:
                key = (key, "more")
            steps.setdefault(key, []).append(value)
        self.steps = list(steps.values())
        for s, step in enumerate(self.steps):
            for value in step:
                value.group = s

    def _joined(self, place: Place, reader: Value) -> bool:
        """Whether a value and one that reads it can be in one chain: whose gradients know no stop."""
        value = self.values[place.number]
        fused = value.formulas is not None and reader.formulas is not None
        return fused and value.size == reader.size and not place.stopped

    def _overwrites(self, value: Value) -> Place | None:
        """The place of its argument, if a value of a costly op may take it: a product's, that nobody else reads."""
        if value.formulas is None or not value.formulas.costly or len(value.args) != 1 or value.output:
            return None
        place = value.args[0]
        if place.kind != VALUE or place.stopped or value.formulas.reads_argument():
            return None
        before = self.values[place.number]
        op = before.record.op
        if before.output or before.formulas is not None or op is None or not op.spaced or not before.trains:
            return None
        if (
            before.record.lowering is None or before.record.lowering.prepare is not None
        ):  # a step of an LSTM, which reads its value
            return None
        for reader, k in before.readers:
            other = self.values[reader].args[k]
            apart = other.start + other.size <= place.start or place.start + place.size <= other.start
            if not apart and reader != value.number:
                return None
        return place

    def _lay_out(self) -> None:
        """Give places to the outputs, and to what is stored."""
        at = 0
        stored = [v for v in self.live if v.output]
        for v in self.live:
            outside = any(self.values[r].group != v.group for r, _ in v.readers)
            if v.formulas is None or v.formulas.costly or outside:
                stored.append(v)
        self.free: list[tuple[int, int]] = []  # places of values without a gradient: (start, size)
        self._copies: list[tuple[int, Place]] = []
        for v in stored[: sum(v.output for v in self.live)]:
            v.at = at
            at += v.size
        self.outputs: list[tuple[int, Shape, bool]] = []
        for place, shape in self._results:
            if place.kind == VALUE:
                self.outputs.append((self.values[place.number].at + place.start, shape, place.stopped))
            else:
                self.outputs.append((at, shape, place.stopped))
                self._copies.append((at, place))
                at += place.size
        self.zeroed = at
        for v in stored:
            if v.at >= 0:
                continue
            over = self._overwrites(v)
            if over is not None:
                v.at = self.values[over.number].at + over.start
                continue
            v.at = at
            inside = v.formulas is not None and all(self.values[r].group == v.group for r, _ in v.readers)
            if inside or not v.trains:
                self.free.append((at, v.size))
            at += v.size
        self.total = self.written = at

    def _room(self, size: int) -> int:
        """Return a place for a gradient of an argument."""
        for k, (start, free) in enumerate(self.free):
            if free >= size:
                self.free[k] = start + size, free - size
                return start
        self.total += size
        return self.total - size

    # Steps ------------------------------------------------------------------------------------------------------------

    def _part(self, place: Place) -> Part:
        """The slot through which a place is read."""
        if place.kind == VALUE:
            return Part("y", 0, self.values[place.number].at + place.start, place.size)
        return Part(place.kind, place.number, place.start, place.size)

    def _integers(self, value: Value) -> list[Part]:
        """The slots of the immediates."""
        parts = []
        for i in value.immediates:
            self.constants.append(np.array([i], np.int64))
            parts.append(Part("integer", len(self.constants) - 1))
        return parts

    def _each(self, value: Value) -> bool:
        """Whether an op has to run item by item: its kernels want columns at even distances, and they are not."""
        op, lowering = value.record.op, value.record.lowering
        assert op is not None and lowering is not None
        if not _spaced(value):
            return False
        one_column = len(value.record.shape.dims) == 1 and value.record.shape.batch == 1
        dense = [p for o, p in zip(lowering.operands, value.args, strict=True) if DENSE in (o.reads, o.writes)]
        return not (op.spaced and one_column) or any(self._is_fixed(p) for p in dense)

    def _is_fixed(self, place: Place) -> bool:
        """Whether a place is the same for all calls: a parameter or a constant."""
        return place.kind == CONSTANT or (place.kind == ARGUMENT and place.number >= self.inputs)

    def _chain(self, step: list[Value]) -> tuple[Chain, tuple[Part, ...], dict[Read, Place]]:
        """The chain of a step, the slots of its rows, and what its reads are."""
        rows: dict[tuple[Any, ...], int] = {("y", 0): 0}
        lines, numbers = [], {v.number: t for t, v in enumerate(step)}
        what: dict[Read, Place] = {}
        for v in step:
            args: list[int | Read] = []
            for place in v.args:
                if place.kind == VALUE and place.number in numbers:
                    args.append(numbers[place.number])
                    continue
                part = self._part(place)
                row = rows.setdefault((part.kind, part.number), len(rows))
                read = Read(row, part.start, place.size != v.size)
                if read in what and what[read].stopped != place.stopped:
                    read = Read(rows.setdefault((part.kind, part.number, "stopped"), len(rows)), part.start, read.single)
                what[read] = place
                args.append(read)
            assert v.formulas is not None
            lines.append(Line(v.formulas, tuple(args)))
        stores = {t: v.at for t, v in enumerate(step) if v.at >= 0}
        chain = Chain(step[0].size, len(rows), tuple(lines), stores)
        return chain, tuple(Part(*key[:2]) for key in rows), what

    def _forward(self) -> Iterator[Draft]:
        for step in self.steps:
            if step[0].formulas is not None:
                chain, parts, what = self._chain(step)
                reads = tuple(self._part(place) for place in what.values())
                yield Draft(chain.forward(), None, 0, parts, reads=reads, writes=tuple((p, None) for p in self._stored(step)))
                continue
            (v,) = step
            record = v.record
            assert record.lowering is not None
            parts = (Part("y", 0, v.at, v.size), *(self._part(p) for p in v.args), *self._integers(v))
            each = self._each(v)
            yield Draft(record.lowering.forward, record.sizes, 0, parts, EACH * each, _spaced(v) and not each)
        for at, place in self._copies:
            yield Draft(copy_rows, self._literal(place.size), 0, (Part("y", 0, at, place.size), self._part(place)))

    def _stored(self, step: list[Value]) -> list[Part]:
        """The places of the values of a chain that have one."""
        return [Part("y", 0, v.at, v.size) for v in step if v.at >= 0]

    def _literal(self, size: int) -> np.ndarray:
        """A number for SIZES."""
        self.constants.append(np.array([size], np.int64))
        return self.constants[-1]

    def _backward(self, zero_first: set[tuple[str, int]]) -> tuple[list[Draft], list[list[Draft]]]:
        """The steps of `prepare`, and those of each argument."""
        prepare: list[Draft] = []
        own: list[list[Draft]] = [[] for _ in self.arguments]
        written: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for v in self.live:
            if v.output:
                written[VALUE, v.number] = [(0, v.size)]
        for kind, number in sorted(zero_first):
            at, size = self._gradient_of(kind, number)
            prepare.append(Draft(zero_rows, self._literal(size), 0, (Part("dy", 0, at, size),)))
            written[kind, number] = [(0, size)]

        def adds(place: Place) -> bool:
            """Whether who writes to a place now has to add."""
            spans = written.setdefault((place.kind, place.number), [])
            start, end = place.start, place.start + place.size
            if any(a <= start and end <= b for a, b in spans):
                return True
            if any(a < end and start < b for a, b in spans):
                raise _Uncovered((place.kind, place.number))
            spans.append((start, end))
            return False

        def covered(kind: str, number: int, size: int) -> None:
            """See to it that a gradient about to be read is complete."""
            spans = sorted(written.get((kind, number), []))
            end = 0
            for a, b in spans:
                if a == end:
                    end = b
            if end != size:
                raise _Uncovered((kind, number))

        for at, place in self._copies:
            if self._wanted(place):
                target = self._gradient_part(place)
                flags = ACCUMULATE * adds(place)
                prepare.append(Draft(add_rows, self._literal(place.size), flags, (target, Part("dy", 0, at, place.size))))
        for step in reversed(self.steps):
            trained = [v for v in step if v.trains]
            if not trained:
                continue
            if step[0].formulas is not None:
                prepare.append(self._chain_backward(step, adds, covered))
                continue
            (v,) = step
            covered(VALUE, v.number, v.size)
            self._op_backward(v, adds, prepare, own)
        for number, at in sorted(self._regions.items()):
            size = self.arguments[number].total
            covered(ARGUMENT, number, size)
            shared = number >= self.inputs
            parts = Part("to", 0, 0, size), Part("dy", 0, at, size)
            adds_up = (add_all_rows, ACCUMULATE, 0) if shared else (add_rows, 0, INHERIT)
            first = Draft(adds_up[0], self._literal(size), adds_up[1], parts, adds_up[2])
            own[number].append(first)
        return prepare, own

    def _gradient_of(self, kind: str, number: int) -> tuple[int, int]:
        """Where a gradient stands in the row of gradients, and its size."""
        if kind == VALUE:
            return self.values[number].at, self.values[number].size
        size = self.arguments[number].total
        if number not in self._regions:
            self._regions[number] = self._room(size)
        return self._regions[number], size

    def _gradient_part(self, place: Place) -> Part:
        at, _ = self._gradient_of(place.kind, place.number)
        return Part("dy", 0, at + place.start, place.size)

    def _chain_backward(self, step: list[Value], adds: Any, covered: Any) -> Draft:
        chain, parts, what = self._chain(step)
        seeds, targets = {}, {}
        for t, v in enumerate(step):
            outside = v.output or any(self.values[r].group != v.group and self.values[r].trains for r, _ in v.readers)
            if outside and v.trains:
                covered(VALUE, v.number, v.size)
                seeds[t] = v.at
        for read, place in what.items():
            if not read.single and self._wanted(place):
                add, start = adds(place), self._gradient_part(place).start
                taken = any(v.at == start for v in step if v.args[0] == place)  # by the value of the step: nobody else reads it
                targets[read] = start, add and not taken
        reads = [Part("dy", 0, step[t].at, step[t].size) for t in seeds] + [self._part(place) for place in what.values()]
        writes = [(Part("dy", 0, start, chain.size), True if add else None) for start, add in targets.values()]
        return Draft(
            *(chain.backward(seeds, targets), None, 0, (Part("dy"), *parts)),
            reads=(*reads, *self._stored(step)),
            writes=tuple(writes),
        )

    def _op_backward(self, v: Value, adds: Any, prepare: list[Draft], own: list[list[Draft]]) -> None:
        record, lowering = v.record, v.record.lowering
        assert lowering is not None
        each, sizes = self._each(v), record.sizes
        dense = _spaced(v) and not each
        dy, y = Part("dy", 0, v.at, v.size), Part("y", 0, v.at, v.size)
        args, integers = [self._part(p) for p in v.args], self._integers(v)
        if lowering.prepare is not None:
            parts = (Part(""), dy, y, *args, *integers)
            prepare.append(Draft(lowering.prepare, sizes, 0, parts, EACH * each, writes=((dy, None),)))
        for k, (operand, place) in enumerate(zip(lowering.operands, v.args, strict=True)):
            if operand.backward is None or not self._wanted(place):
                continue
            needs = range(len(args)) if operand.needs is None else operand.needs
            rest = (dy, y, *(args[q] for q in needs), *integers)
            flags = k << 8
            # A gradient that the kernel forms for all calls at once belongs to none of them.
            direct = operand.writes == SHARED or (place.kind == ARGUMENT and place.number not in self._regions)
            if direct and (place.number >= self.inputs or place.size == self.arguments[place.number].total):
                shared = place.number >= self.inputs
                inherit = not shared and not own[place.number]
                flags |= ACCUMULATE * (not inherit)
                to = Part("to", 0, place.start, place.size)
                mode = EACH * each | INHERIT * inherit | ALONE * (shared and operand.writes != SHARED)
                own[place.number].append(Draft(operand.backward, sizes, flags, (to, *rest), mode, dense))
                continue
            flags |= ACCUMULATE * bool(adds(place))
            prepare.append(Draft(operand.backward, sizes, flags, (self._gradient_part(place), *rest), EACH * each, dense))

    def _programs(self) -> tuple[list[list[Step]], list[np.ndarray], int, int]:
        forward = list(self._forward())
        # Arguments with a gradient inside: known only once the chains are gone through; found by trying.
        self._regions: dict[int, int] = {}
        for v in self.live:
            for place in v.args:
                in_parts = (
                    place.kind == ARGUMENT and place.number < self.inputs and place.size < self.arguments[place.number].total
                )
                if place.kind == ARGUMENT and self._wanted(place) and place.size > 0 and (v.formulas is not None or in_parts):
                    if place.size != v.size and v.formulas is not None:
                        continue
                    self._gradient_of(ARGUMENT, place.number)
        for _, place in self._copies:
            if place.kind == ARGUMENT and self._wanted(place):
                self._gradient_of(ARGUMENT, place.number)
        zero_first: set[tuple[str, int]] = set()
        while True:
            try:
                prepare, own = self._backward(zero_first)
                break
            except _Uncovered as error:
                zero_first.add(error.key)
        self.forward_steps, self.prepare_steps, self.own_steps = forward, prepare, own
        programs = [
            [self._step(d, {"y": 0}, 1) for d in forward],
            [self._step(d, {"dy": 1, "y": 2}, 3) for d in prepare],
        ]
        self.needs: list[tuple[int, ...]] = []
        for drafts in own:
            needs = tuple(sorted({p.number for d in drafts for p in d.parts if p.kind == ARGUMENT}))
            self.needs.append(needs)
            programs.append([self._step(d, {"to": 0, "dy": 1, "y": 2}, 3, needs) for d in drafts])
        return programs, self.constants, self.zeroed, self.written

    def _step(self, draft: Draft, slots: dict[str, int], first: int, needs: Sequence[int] | None = None) -> Step:
        if len(draft.parts) > MOST_SLOTS:
            raise TraceError(
                f"an operation of {len(draft.parts) - 1} arguments inside of a cell\n"
                f"  expected  at most {MOST_SLOTS - 5}\n  try       several of them one after the other, or a plain function"
            )

        def slot(part: Part) -> Slot:
            if part.kind in slots:
                return Slot(INCOMING, slots[part.kind], part.start, part.size)
            if part.kind == ARGUMENT:
                position = part.number if needs is None else needs.index(part.number)
                return Slot(INCOMING, first + position, part.start, part.size)
            return Slot(FIXED, part.number, 0, part.size) if part.kind in (CONSTANT, "integer") else Slot()

        reads = draft.parts[1:] if draft.reads is None else draft.reads
        writes = draft.writes
        if writes is None:
            inherits = draft.mode & INHERIT
            writes = ((draft.parts[0], None if inherits else bool(draft.flags & ACCUMULATE)),)
        return Step(
            draft.kernel,
            self._literal(0) if draft.sizes is None else draft.sizes,
            draft.flags,
            tuple(map(slot, draft.parts)),
            draft.mode,
            tuple(s for s in map(slot, reads) if s.kind == INCOMING and s.size),
            tuple(slot(part) for part, _ in writes),
            tuple(adds for _, adds in writes),
        )

    # The node type ----------------------------------------------------------------------------------------------------

    def lowering(self) -> Lowering:
        """Return what a node type of this cell becomes."""
        operands = []
        for k, shape in enumerate(self.arguments):
            drafts = self.own_steps[k]
            backward = self.programs.kernel(2 + k) if drafts else None
            if k >= self.inputs:
                operands.append(Operand(reads=SHARED, backward=backward, writes=SHARED, needs=self.needs[k]))
                continue
            reads, writes, parts = ROWS, ROWS, False
            for d in (*self.forward_steps, *self.prepare_steps, *(d for own in self.own_steps for d in own)):
                for p in d.parts:
                    if p.kind == ARGUMENT and p.number == k and (p.start or d.dense):
                        reads, parts = DENSE, parts or p.start > 0
            if any(d.dense for d in drafts):
                writes = DENSE
            columns = 1 if len(shape.dims) == 1 and shape.batch == 1 else 2  # only whether it is one column counts
            made = Operand(reads=reads, backward=backward, writes=writes, needs=self.needs[k], columns=columns, parts=parts)
            operands.append(made)
        prepare = self.programs.kernel(1) if self.prepare_steps else None
        sizes = (self.programs.table.ctypes.data,)
        return Lowering(self.programs.kernel(0), sizes, tuple(operands), prepare=prepare, outputs=self.zeroed)

    # Telling -----------------------------------------------------------------------------------------------------------

    def explain(self, name: str, static: Sequence[str]) -> str:
        """Return what the cell became, as a text."""
        given = ", ".join(f"{n} {s}" for n, s in zip(self._names, self.arguments[: self.inputs], strict=False))
        results = ", ".join(f"{self._describe(place)} {shape}" for place, shape in self._results)
        parameters = self._names[self.inputs :]
        lines = [f"{name}({given})" + (f" -> {results}" if results else "")]
        if static:
            lines.append("  static      " + ", ".join(static))
        if parameters:
            shapes = zip(parameters, self.arguments[self.inputs :], strict=True)
            lines.append("  parameters  " + ", ".join(f"{n} {s}" for n, s in shapes))
        lines.append(f"  forward     {_count(len(self.forward_steps), 'step')}, each over all calls of a batch")
        for number, (step, draft) in enumerate(zip(self.steps, self.forward_steps, strict=False), 1):
            if step[0].formulas is None:
                each = ", call by call" if draft.mode & EACH else ""
                lines.append(f"    {number:2}  {self._formula(step[0])}   {step[0].record.shape}{each}")
                continue
            lines.append(f"    {number:2}  fused: {_count(len(step), 'operation')} in one loop over {step[0].size} numbers")
            lines += [f"          {self._formula(v)}{self._remark(v)}" for v in step]
        for number, (_, place) in enumerate(self._copies, len(self.steps) + 1):
            lines.append(f"    {number:2}  copied: {self._describe(place)}, an output")
        own = sum(map(len, self.own_steps))
        every = _count(len(self.prepare_steps) + own, "step")
        lines.append(f"  backward    {every}, {own} of them for gradients of arguments and parameters")
        lines.append(f"  memory      {self.total} numbers a call, {self.zeroed} of them outputs")
        dropped = [v for v in self.values if v not in self.live]
        if dropped:
            lines.append("  left out, since no output needs it")
            lines += [f"          {self._formula(v)}" for v in dropped]
        return "\n".join(lines)

    def _formula(self, v: Value) -> str:
        return f"v{v.number + 1} = {v.record.name}({', '.join(map(self._describe, v.args))})"

    def _remark(self, v: Value) -> str:
        """What becomes of a value of a chain."""
        if v.at < 0:
            return "   not stored: computed again by backward"
        over = self._overwrites(v)
        return "" if over is None else f"   in place of {self._describe(over)}"

    def _describe(self, place: Place) -> str:
        """Name an argument, a parameter, a constant or a value, or a part of it."""
        if place.kind == CONSTANT:
            numbers = self.constants[place.number]
            return f"{numbers[0]:g}" if (numbers == numbers[0]).all() else "constant"
        of = self.values[place.number].size if place.kind == VALUE else self.arguments[place.number].total
        name = f"v{place.number + 1}" if place.kind == VALUE else self._names[place.number]
        part = name if place.size == of else f"{name}[{place.start}:{place.start + place.size}]"
        return f"nobackprop({part})" if place.stopped else part


def parameter_name(parameter: Any) -> str:
    """Return what a parameter is called, and whether it is used as a constant."""
    of = getattr(parameter, "of", parameter)
    return str(of.name()) if of is parameter else f"{of.name()} (constant)"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n != 1 else ''}"

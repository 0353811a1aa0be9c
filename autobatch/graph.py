"""What has been recorded: a graph as arrays of integers, and the table of node types.

A graph is two lists of integers, nothing else is stored for a node:

    types   | type of node 0 | type of node 1 | ...
    args    | arguments and immediates of node 0 | of node 1 | ...

An argument is the index of an earlier node, or a negative number that names a parameter (`parameter_index`): parameters live
outside every graph and need no node. An *immediate* is an integer that differs from node to node and changes no shape (a
row of a table, a label): it never splits a batch. How many of each a node has is known to its type. A *part* has none: a view
whose type says how many nodes before it the one stands that it is a part of (h and c of a step of an LSTM, outputs of a cell).

A *node type* is what makes nodes alike: the op, all attributes that change the result, the shapes, and which parameters are
used where the op shares them. Nodes of one type can run as one batch, nothing else can. Types are numbered once for the whole
process; an op remembers the type for each combination of types of arguments, so that recording is a look-up, and the
look-up is the check of shapes: only a new combination runs the op's shape rule.

Lists, because `list.append` is three times as fast as `array.append`; they become arrays when the graph is run. What is
recorded in bulk (all steps of a sequence) puts its types into the list and its arguments into a piece between the entries, see
`pieces.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from autobatch.kernels._errors import ArgumentError, InternalError, OperandError, ShapeError, StaleExpressionError, message
from autobatch.kernels._op import SHARED, Lowering, Op, Shape
from autobatch.memory import address_of
from autobatch.pieces import FEW, Entries, Place, write

POLICIES = ("none", "depth", "agenda", "ratio")

OP, VIEW, STOP, INPUT, ROW, PARAMETER = range(6)
KINDS = ("op", "view", "view without gradient", "input", "row of a table", "parameter")

LARGEST = 2**31 - 1  # numbers of one node: starts of views are 32 bits wide

# Columns of the table of types; addresses of kernels for float32 and float64 stand side by side, 0 until compiled.
KIND, ARGUMENTS, IMMEDIATES, SIZE, OPERANDS, NUMBERS, TABLE, JOINS = range(8)
FORWARD, PREPARE, RECORDED, OUTPUTS, BACK, START, WORK, READY, TYPE_COLUMNS = 8, 10, 12, 13, 14, 15, 16, 17, 19
# RECORDED: arguments that are recorded for each node, the first ones. OUTPUTS: numbers of the value that others read, likewise.
# BACK: of a part, how many nodes before it the one stands that it is a view of, and START: from which number on. 0: no part.
# WORK: what an item costs, in units of which a thread does about two a nanosecond: numbers read and written, PER_UNIT products.
# READY: 1 where the kernels of the backward pass are there, for float32 and float64.
# Columns of the table of operands, one row for each argument of each type.
READS, WRITES, ELEMENTS, COLUMNS, NEEDS, NEED_COUNT, HAS_GRADIENT, SOURCE, BACKWARD = range(
    9
)  # SOURCE: the parameter, if not recorded
OPERAND_COLUMNS = BACKWARD + 2

PER_UNIT = 32

DTYPES = ("float32", "float64")


@dataclasses.dataclass(frozen=True, eq=False)
class NodeType:
    """What nodes that can run as one batch have in common."""

    number: int
    kind: int
    op: Op | None
    shapes: tuple[Shape, ...]
    shape: Shape
    attributes: tuple[tuple[str, Any], ...] = ()
    parameters: tuple[int, ...] = ()
    lowering: Lowering | None = None
    sizes: Any = None  # int64 array behind the NUMBERS column, kept alive here

    @property
    def name(self) -> str:
        """Name of the op, or of the kind of node."""
        return self.op.name if self.op is not None else KINDS[self.kind]

    def __str__(self) -> str:
        attributes = "".join(f", {k}={v}" for k, v in self.attributes)
        return f"{self.name}({', '.join(map(str, self.shapes))}{attributes}) -> {self.shape}"


class NodeTypes:
    """All node types of the process: interned records, and the same facts as arrays for compiled code."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.records: list[NodeType] = []
        self.info = np.zeros((256, TYPE_COLUMNS), np.int64)
        self.operands = np.zeros((1024, OPERAND_COLUMNS), np.int64)
        self.needs = np.zeros(1024, np.int64)
        self._operand_count = self._need_count = 0
        self._numbers: dict[Any, int] = {}
        self._compiled: tuple[set[int], set[int]] = set(), set()  # types whose kernels are there: forward, backward

    def intern(
        self,
        kind: int,
        op: Op | None,
        shapes: tuple[Shape, ...],
        parameters: tuple[int, ...],
        attributes: dict[str, Any],
        *,
        shape: Shape | None = None,
        immediates: int = 0,
        table: int = 0,
    ) -> int:
        """Return the number of a node type, made now if it is new. Runs the op's shape rule, which may raise.

        `parameters[k]` is the index of the parameter whose identity belongs to the type as its argument k, or 0.
        """
        items = tuple(attributes.items())
        key = (kind, op and (op.name if op.listed else op), shapes, parameters, items, shape, immediates, table)
        with self.lock:
            number = self._numbers.get(key)
            if number is not None:
                return number
            lowering = sizes = None
            if op is not None:
                out = op.shape(shapes, **attributes)
                if out.total > LARGEST:
                    problem = f"{op.name}: the result {out} would have {out.total:,} numbers"
                    raise ShapeError(message(problem, "  ".join(map(str, shapes)), f"at most {LARGEST:,} numbers"))
                lowering = op.lower(shapes, out, tuple(p != 0 for p in parameters), **attributes)
                sizes = np.array(lowering.sizes, np.int64)
            elif shape is not None:
                out = shape
            else:
                raise InternalError("a node type without an op needs a shape")
            number = len(self.records)
            record = NodeType(number, kind, op, shapes, out, items, parameters, lowering, sizes)
            self._store(record, immediates, table)
            self.records.append(record)
            self._numbers[key] = number
        return number

    def _store(self, record: NodeType, immediates: int, table: int) -> None:
        number, lowering = record.number, record.lowering
        self.info = _room(self.info, number + 1)
        row = self.info[number]
        arguments = len(record.shapes)
        row[[KIND, ARGUMENTS, IMMEDIATES, SIZE, TABLE]] = record.kind, arguments, immediates, record.shape.total, table
        row[OUTPUTS] = record.shape.total if lowering is None else lowering.outputs or record.shape.total
        row[OPERANDS] = self._operand_count
        typed = record.op is not None and record.op.typed
        row[RECORDED] = sum(not p for p in record.parameters) if typed else arguments
        attributes = dict(record.attributes)
        if "back" in attributes:
            row[RECORDED], row[BACK], row[START] = 0, attributes["back"], attributes["start"]
        if record.op is None or lowering is None:
            return
        row[NUMBERS] = record.sizes.ctypes.data
        row[JOINS] = record.op.joins and record.shape.total == 1
        row[WORK] = _work(record, lowering)
        self.operands = _room(self.operands, self._operand_count + arguments)
        for k, (operand, shape) in enumerate(zip(lowering.operands, record.shapes, strict=True)):
            needs = tuple(range(arguments)) if operand.needs is None else operand.needs
            self.needs = _room(self.needs, self._need_count + len(needs))
            self.needs[self._need_count : self._need_count + len(needs)] = needs
            columns = self.operands[self._operand_count + k]
            columns[: HAS_GRADIENT + 1] = (
                *(operand.reads, operand.writes, shape.total, operand.columns),
                *(self._need_count, len(needs), operand.backward is not None),
            )
            columns[SOURCE] = record.parameters[k] if typed else 0
            self._need_count += len(needs)
        self._operand_count += arguments

    def compile(self, numbers: Sequence[int], dtype: int, backward: bool) -> None:
        """See to it that the kernels of these types are compiled for a dtype, in one direction."""
        done = self._compiled[dtype]
        missing = [t for t in numbers if 2 * t + backward not in done]
        if not missing:
            return
        name = DTYPES[dtype]
        with self.lock:
            for t in missing:
                lowering = self.records[t].lowering
                if lowering is not None and not backward:
                    self.info[t, FORWARD + dtype] = lowering.forward.address(name)
                elif lowering is not None:
                    if lowering.prepare is not None:
                        self.info[t, PREPARE + dtype] = lowering.prepare.address(name)
                    for k, operand in enumerate(lowering.operands):
                        if operand.backward is not None:
                            self.operands[self.info[t, OPERANDS] + k, BACKWARD + dtype] = operand.backward.address(name)
                    self.info[t, READY + dtype] = 1
                done.add(2 * t + backward)


def _work(record: NodeType, lowering: Lowering) -> int:
    """Return what one item costs: a shared argument is a weight, multiplied with each column of the value."""
    shared = sum(s.total for o, s in zip(lowering.operands, record.shapes, strict=True) if o.reads == SHARED)
    own = sum(s.total for o, s in zip(lowering.operands, record.shapes, strict=True) if o.reads != SHARED)
    columns = record.shape.total // max(record.shape.dims[0], 1) if record.shape.dims else 1
    return 1 + record.shape.total + own + shared * columns // PER_UNIT


def _room(array: np.ndarray, rows: int) -> np.ndarray:
    """Return `array` with room for at least `rows` rows; readers of the old one keep it."""
    if rows <= len(array):
        return array
    grown = np.zeros((max(rows, 2 * len(array)), *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


TYPES = NodeTypes()


# Parameters -----------------------------------------------------------------------------------------------------------


class ParameterTable:
    """Where the numbers of each parameter lie; an id is never used twice."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.values = np.zeros(256, np.int64)  # addresses
        self.gradients = np.zeros(256, np.int64)
        self.touched = np.zeros(256, np.int64)  # of tables: the bytes that mark rows with a gradient
        self.dtypes: list[str] = []
        self.mirrors: dict[int, Any] = {}  # of parameters that are on a card too, see `card.py`

    def add(self, values: np.ndarray, gradients: np.ndarray, dtype: str, touched: np.ndarray | None) -> int:
        """Register a parameter; the caller keeps the arrays alive as long as it can be used."""
        with self.lock:
            pid = self.count
            self.values, self.gradients, self.touched = (_room(a, pid + 1) for a in (self.values, self.gradients, self.touched))
            self.values[pid], self.gradients[pid] = values.ctypes.data, gradients.ctypes.data
            self.touched[pid] = 0 if touched is None else touched.ctypes.data
            self.dtypes.append(dtype)
            self.count = pid + 1
        return pid


PARAMETERS = ParameterTable()


def new_parameter(
    values: np.ndarray,
    gradients: np.ndarray,
    dims: tuple[int, ...],
    dtype: str,
    touched: np.ndarray | None = None,
) -> int:
    """Register the arrays of a parameter and return its id; `touched` marks it as a table, rows along the last dim."""
    return PARAMETERS.add(values, gradients, dtype, touched)


def parameter_index(pid: int, update: bool) -> int:
    """Return the argument that names a parameter: even for one that trains, odd (from -2 on) for a constant use."""
    return -2 * pid - (1 if update else 2)


def parameter_type(pid: int, dims: tuple[int, ...], update: bool) -> int:
    """Return the type of a parameter as an argument: its shape and its identity."""
    index = parameter_index(pid, update)
    return TYPES.intern(PARAMETER, None, (), (index,), {}, shape=Shape(dims))


def row_type(pid: int, dims: tuple[int, ...], update: bool) -> int:
    """Return the type of a look-up of one row of a table."""
    return TYPES.intern(ROW, None, (), (), {}, shape=Shape(dims), immediates=1, table=parameter_index(pid, update))


# Garbage --------------------------------------------------------------------------------------------------------------

# A program that keeps its expressions allocates thousands of objects, all in use, and Python's cyclic collector looks at them
# again and again: with the threshold Python begins with, three quarters of the time to record such a graph. There are no cycles
# in what the library makes, and all of it dies with the graph. So the collector looks less often while there is a graph.
YOUNG = 50_000  # allocations between two looks of the collector; garbage in cycles waits that long at most
DEFAULTS = (700, 2000)  # what Python begins with: up to 3.12, from 3.13 on


class _Patience:
    """Holds the young threshold of the cyclic collector up as long as it lives, if it is as Python set it."""

    def __init__(self) -> None:
        self.before: tuple[int, int, int] | None = None

    def take(self) -> None:
        """Raise the threshold, unless the program has set one of its own, or has switched the collector off."""
        threshold = gc.get_threshold()
        if threshold[0] in DEFAULTS and gc.isenabled():
            self.before = threshold
            gc.set_threshold(YOUNG, *threshold[1:])

    def __del__(self) -> None:
        if self.before is not None and gc.get_threshold() == (YOUNG, *self.before[1:]):
            gc.set_threshold(*self.before)


_patience: Any = lambda: None  # noqa: E731  a weak reference to the one that all graphs share


def _patient() -> _Patience:
    """Return what a graph holds to keep the threshold up; when the last graph drops it, the threshold is what it was."""
    global _patience
    shared: _Patience | None = _patience()
    if shared is None:
        shared = _Patience()
        _patience = weakref.ref(shared)
    shared.take()
    return shared


# The graph ------------------------------------------------------------------------------------------------------------


class Graph:
    """Everything recorded between one `renew_cg` and the next, or inside ``with Graph():``.

    Parameters
    ----------
    dtype : "float32" or "float64"; None takes the configured one. Parameters used in the graph must have the same.
    policy : "none", "depth", "agenda" or "ratio"; None takes the configured one.
    inference : whether values are given up as soon as nothing needs them, see `inference`; None: as configured.

    Notes
    -----
    Made by ``renew_cg()`` for the calling thread, or used explicitly::

        with ab.Graph() as g:
            loss = network(instance)
        loss.value()  # the graph lives as long as one of its expressions
    """

    __slots__ = (
        "__weakref__",
        "_addresses",
        "_addresses_known",
        "_chunk_at",
        "_outer",
        "_patience",
        "_top",
        "_version",
        "args",
        "check_infinity",
        "check_nan",
        "checkpoints",
        "dtype",
        "execution",
        "immediate",
        "inference",
        "input_addresses",
        "input_chunk",
        "input_chunks",
        "input_room",
        "kept",
        "numbers",
        "on_card",
        "parameters",
        "pieces",
        "policy",
        "recorded_args",
        "recorded_types",
        "steps",
        "tables",
        "types",
        "zeros",
    )

    hint = ""  # what to say to one who mixes expressions of this graph with others
    stale = ""  # what to say to one who uses its expressions after it was dropped

    def __init__(self, dtype: str | None = None, policy: str | None = None, inference: bool | None = None) -> None:
        settings = SETTINGS
        self.dtype: str = check_dtype(dtype or settings.dtype)
        self.policy: str = check_policy(policy or settings.policy)
        self.inference = bool(settings.inference or _THREAD.inference if inference is None else inference)
        self.check_nan = settings.check_nan
        self.check_infinity = False  # whether an infinity counts as NaN there
        self.immediate = False
        # `types` and `args` are None where recording must go through `record`: a dropped graph, one that computes
        # immediately. `recorded_types`, `recorded_args` are the lists themselves.
        self.types: Any = []
        self.args: Any = []
        self.recorded_types: list[int] = self.types
        self.recorded_args: list[int] = self.args
        self.pieces: list[Place] = []  # recorded in bulk
        self.numbers: dict[Any, int] = {}  # inputs that hold one number
        self.zeros: dict[Any, int] = {}
        self.parameters: set[Any] = set()  # used as arguments
        self.tables: set[Any] = set()  # whose rows were looked up
        self.input_addresses: list[int] = []
        self._addresses, self._addresses_known = np.empty(64, np.int64), 0
        self.input_chunks: list[np.ndarray] = []
        self.input_chunk: np.ndarray = _EMPTY
        self.input_room = self._chunk_at = 0
        self.on_card: OnCard | None = None  # inputs whose numbers came from a card and stayed there
        self.kept: dict[Any, Any] = {}  # of builders: what they made for this graph; never an expression, which holds the graph
        self.steps: dict[Any, dict[int, Any]] = {}  # of builders: how to record a step once more
        self.execution: Any = None
        self.checkpoints: list[Any] = []
        self._version = 0
        self._outer: list[Any] = []
        self._top: Any = None  # the innermost checkpoint; the graph itself would be a cycle
        self._patience: _Patience | None = _patient()

    def __enter__(self) -> Graph:
        if self.recorded_types is None:
            raise StaleExpressionError("this graph was dropped by renew_cg(); make a new one with Graph()")
        self._outer.append(_THREAD.graph)
        _THREAD.graph = self
        return self

    def __exit__(self, *error: object) -> None:
        _THREAD.graph = self._outer.pop()

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise OperandError("a graph holds addresses of this process: it cannot be copied or pickled")

    def __len__(self) -> int:
        return 0 if self.recorded_types is None else len(self.recorded_types)

    def __repr__(self) -> str:
        if self.recorded_types is None:
            return f"<dropped graph, version {self._version}>"
        return f"<graph of {len(self)} nodes, {self.dtype}, policy {self.policy}, version {self._version}>"

    def version(self) -> int:
        """Return how many times its thread had called `renew_cg` when the graph was made; 0 for ``Graph()``."""
        return self._version

    @property
    def batches(self) -> int:
        """Batches run forward so far."""
        return 0 if self.execution is None else int(self.execution.batches)

    @property
    def lower_bound(self) -> int:
        """Batches that any policy needs at least for what was run so far: Σ over types of the longest chain of the type."""
        return 0 if self.execution is None else int(self.execution.lower_bound())

    @property
    def top(self) -> Any:
        """What new nodes are recorded into: the graph, or its innermost checkpoint."""
        return self if self._top is None else self._top

    def reading(self, other: Graph | None) -> None:
        """Say no, if it has to be, to a value of another graph (None: of a parameter) while this one is the current graph."""

    def drop(self) -> None:
        """Forget everything: expressions of this graph become stale, its memory is free for the next one."""
        self.types = self.args = None
        self.recorded_types = self.recorded_args = None  # type: ignore[assignment]
        self.pieces = []
        for checkpoint in self.checkpoints:
            checkpoint.drop()
        self.checkpoints = []
        self._top = self._patience = None
        execution, self.execution = self.execution, None  # once, whoever interrupts
        if execution is not None:
            execution.release()
        self.input_chunks, self.input_chunk, self.input_room = [], _EMPTY, 0
        if self.on_card is not None:
            self.on_card.arena.release()
            self.on_card = None
        self.numbers, self.zeros, self.kept, self.steps, self.parameters, self.tables = {}, {}, {}, {}, set(), set()

    def undo(self, nodes: int) -> None:
        """Drop what a call that fails has recorded so far: the nodes from this number on."""
        if self.recorded_types is None or len(self.recorded_types) == nodes:
            return
        dropped = TYPES.info[self.recorded_types[nodes:]]
        args = self.count_args() - int(dropped[:, [RECORDED, IMMEDIATES]].sum())
        del self.recorded_types[nodes:]
        self.cut_args(args)
        self.numbers = {key: index for key, index in self.numbers.items() if index < nodes}
        self.zeros = {key: index for key, index in self.zeros.items() if index < nodes}
        for steps in self.steps.values():  # they name nodes
            steps.clear()
        if self.execution is not None and max(self.execution.flushed, self.execution.done) > nodes:
            self.execution.cut(nodes, args)

    # Arguments --------------------------------------------------------------------------------------------------------

    def extend(self, types: list[int], repeats: int, args: np.ndarray) -> int:
        """Record nodes in bulk, `repeats` times these types; return the number of the first one."""
        index = len(self.recorded_types)
        self.recorded_types += types * repeats
        self.pieces.append((len(self.recorded_args), index, args.size, len(types) * repeats, Entries(types, repeats, args)))
        return index

    def count_args(self) -> int:
        """Return how many entries all nodes have: arguments and immediates."""
        return len(self.recorded_args) + sum([piece[2] for piece in self.pieces])

    def write(self, types: np.ndarray, args: np.ndarray, nodes: int = 0, entries: int = 0, pieces: int = 0) -> None:
        """Write what was recorded behind the first nodes, entries of the list and pieces into two int32 arrays."""
        if pieces == len(self.pieces) and len(args) < FEW:
            types[:] = self.recorded_types[nodes:]
            args[:] = self.recorded_args[entries:]
        else:
            write(self.recorded_types, self.recorded_args, self.pieces[pieces:], nodes, entries, types, args)

    def all_args(self) -> list[int]:
        """Return the entries of all nodes."""
        if not self.pieces:
            return self.recorded_args
        out = np.empty(self.count_args(), np.int32)
        self.write(np.empty(len(self.recorded_types), np.int32), out)
        return out.tolist()

    def set_args(self, at: int, entries: Sequence[int]) -> None:
        """Replace entries of one node, from a position among all entries on."""
        for before, _, count, _, _ in self.pieces:
            if at < before:
                break
            if at < before + count:
                raise InternalError("entries recorded in bulk are not replaced")
            at -= count
        self.recorded_args[at : at + len(entries)] = entries

    def cut_args(self, count: int) -> None:
        """Keep the first `count` entries."""
        excess = self.count_args() - count
        while self.pieces:
            before, _, inside, nodes, piece = self.pieces[-1]
            tail = len(self.recorded_args) - before
            if excess <= tail:
                break
            del self.recorded_args[before:]
            self.pieces.pop()
            excess -= tail
            if excess < inside:
                rest = np.empty(inside, np.int32)
                piece.write_all(np.empty(nodes, np.int32), rest, np.zeros((1, 2), np.int64), [piece])
                self.recorded_args += rest[: inside - excess].tolist()
                return
            excess -= inside
        if excess:
            del self.recorded_args[-excess:]

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Drop what was recorded, and kept for builders, if the block fails."""
        nodes, kept = len(self.recorded_types), dict(self.kept)
        try:
            yield
        except BaseException:
            self.undo(nodes)
            self.kept.clear()
            self.kept.update(kept)
            raise

    def seal(self) -> None:
        """Send all recording through `record` from now on (a checkpoint lies above, or nodes are computed at once)."""
        self.types = self.args = None

    def unseal(self) -> None:
        """Record directly again."""
        if not self.immediate:
            self.types, self.args = self.recorded_types, self.recorded_args

    def add_input(self, values: np.ndarray) -> tuple[int, np.ndarray]:
        """Copy numbers into the graph; return the immediate that names them, and the place where they lie (flat).

        Chunks of inputs never move, so an address holds as long as the graph.
        """
        place = self._place_for_input(values.size)
        place[:] = values
        return len(self.input_addresses) - 1, place

    add_given = add_input  # the same for numbers that differ from call to call; a cell cannot have them inside

    def add_filled(self, count: int, value: float) -> int:
        """Add an input of `count` times the same number; return the immediate that names it."""
        self._place_for_input(count)[:] = value
        return len(self.input_addresses) - 1

    def _place_for_input(self, count: int) -> np.ndarray:
        """Return the place of a new input of `count` numbers."""
        if count > self.input_room:
            size = max(count, 4096, 2 * self.input_chunk.size if self.input_chunk.size < 1 << 22 else 0)
            self.input_chunk = np.empty(size, self.dtype)
            self.input_chunks.append(self.input_chunk)
            self.input_room, self._chunk_at = size, address_of(self.input_chunk)
        chunk = self.input_chunk
        start = chunk.size - self.input_room
        self.input_room -= count
        self.input_addresses.append(self._chunk_at + start * chunk.itemsize)
        return chunk[start : start + count]

    def _add_on_card(self, size: int, arena: Any) -> tuple[int, int]:
        """Make room for an input on the card; return its immediate, and where the bytes of it are to be copied."""
        if self.on_card is None:
            self.on_card = OnCard(arena)
        number, address = len(self.input_addresses), self.on_card.arena.take(size * np.dtype(self.dtype).itemsize)
        self.on_card.inputs[number] = address, size
        self.input_addresses.append(0)
        return number, address

    def _bring_home(self, number: int, values: np.ndarray) -> np.ndarray:
        """Give an input that lay on the card a place on the host, which is this array; return it."""
        assert self.on_card is not None
        del self.on_card.inputs[number]
        self.on_card.homes[number] = values
        self.input_chunks.append(values)
        self.input_addresses[number] = values.ctypes.data
        self._addresses_known = min(self._addresses_known, number)
        return values

    def drop_inputs(self, count: int) -> None:
        """Forget the inputs from this number on."""
        del self.input_addresses[count:]
        self._addresses_known = min(self._addresses_known, count)
        if self.on_card is not None:
            self.on_card.inputs = {n: where for n, where in self.on_card.inputs.items() if n < count}
        if self.execution is not None and self.execution.inputs is not None:
            self.execution.inputs.drop(count)

    def address_array(self) -> np.ndarray:
        """Return an array that begins with the addresses of all inputs; what was in it before is not copied again."""
        count, known = len(self.input_addresses), self._addresses_known
        if count == known:
            return self._addresses
        if count > self._addresses.size:
            grown = np.empty(max(count, 2 * self._addresses.size), np.int64)
            grown[:known] = self._addresses[:known]
            self._addresses = grown
        self._addresses[known:count] = self.input_addresses[known:]
        self._addresses_known = count
        return self._addresses

    def enter(self, parameter: Any, rows: bool = False) -> None:
        """Take note of a parameter used in this graph, or of a table of which `rows` are: keep it alive, check its dtype."""
        known = self.tables if rows else self.parameters
        if parameter in known:
            return
        dtype = PARAMETERS.dtypes[(-parameter.index - 1) // 2]
        if dtype != self.dtype:
            raise ArgumentError(
                f"a parameter of dtype {dtype} is used in a graph of dtype {self.dtype}\n"
                f"  try       ParameterCollection(dtype={self.dtype!r}), or configure(dtype={dtype!r}) before both are made"
            )
        if not TYPES.records[parameter.type].shape.size:
            raise ShapeError(f"a parameter {TYPES.records[parameter.type].shape} has no numbers: it cannot be used")
        known.add(parameter)


_EMPTY = np.empty(0, np.float32)


class OnCard:
    """Inputs that no host has seen.

    Attributes
    ----------
    arena : of the card; where they lie.
    inputs : address and count of numbers, by the number of the input.
    homes : of those that came to the host, the places where they lie there.
    """

    __slots__ = ("arena", "homes", "inputs")

    def __init__(self, arena: Any) -> None:
        self.arena = arena
        self.inputs: dict[int, tuple[int, int]] = {}
        self.homes: dict[int, np.ndarray] = {}


class Checkpoint:
    """What is recorded above a mark of a graph: shares the graph's lists, so that `cg_revert` can cut them.

    Its expressions hold the checkpoint in place of the graph, and so turn stale when it is reverted, though their
    indices are used again.
    """

    __slots__ = ("args", "graph", "marks", "types")

    def __init__(self, graph: Graph, marks: tuple[Any, ...]) -> None:
        self.graph: Graph | None = graph
        self.marks = marks
        self.types: Any = None
        self.args: Any = None

    def drop(self) -> None:
        """Make the expressions of this checkpoint stale."""
        self.graph = self.types = self.args = None


def graph_of(owner: Any, what: str = "this expression") -> Graph:
    """Return the graph behind the `graph` slot of an expression; raise StaleExpressionError if it was dropped."""
    graph = owner.graph if isinstance(owner, Checkpoint) else owner
    if graph is None or graph.recorded_types is None:
        if graph is not None and graph.stale:
            raise StaleExpressionError(f"{what} is stale: {graph.stale}")
        why = "cg_revert()" if isinstance(owner, Checkpoint) else "renew_cg()"
        raise StaleExpressionError(
            f"{what} is stale: it was made before the last {why}, which dropped it\n"
            "  try       make it again in the current graph"
        )
    return graph


# Settings and the current graph ---------------------------------------------------------------------------------------


def check_dtype(dtype: Any) -> str:
    """Return "float32" or "float64"; raise ArgumentError for anything else."""
    name = dtype
    if isinstance(dtype, np.dtype) or (isinstance(dtype, type) and issubclass(dtype, (float, np.float32))):
        name = np.dtype(dtype).name
    if not isinstance(name, str) or name not in DTYPES:
        raise ArgumentError(f"dtype {dtype!r} is not supported\n  expected  'float32' or 'float64'")
    return name


def check_policy(policy: Any) -> str:
    """Return the name of a policy; raise ArgumentError for anything else."""
    if not isinstance(policy, str) or policy not in POLICIES:
        raise ArgumentError(f"policy {policy!r} is unknown\n  expected  {', '.join(map(repr, POLICIES))}")
    return policy


@dataclasses.dataclass
class Settings:
    """What `configure` sets; new graphs and collections take it from here."""

    policy: str = "ratio"
    dtype: str = "float32"
    check_nan: bool = False
    inference: bool = False
    background: bool = True
    device: str = os.environ.get("AUTOBATCH_DEVICE", "").lower() or "cpu"
    matmul_precision: str = "float32"


SETTINGS = Settings()


class _Thread(threading.local):
    """The current graph of each thread, how many it had, and whether new ones are for inference."""

    graph: Graph | None = None
    inference: bool = False
    version: int = 0


_THREAD = _Thread()


def current_graph() -> Graph:
    """Return the graph that module functions of this thread record into, made now if there is none."""
    graph = _THREAD.graph
    if graph is None:
        graph = _THREAD.graph = Graph()
        graph._version = _THREAD.version
    return graph


def new_current_graph(policy: str | None = None) -> Graph:
    """Drop this thread's current graph and make a new one."""
    old = _THREAD.graph
    graph = Graph(
        policy=policy
    )  # before the old one goes: the collector, asked to be patient all the time, has no look between
    if old is not None:
        old.drop()
    _THREAD.version += 1
    graph._version = _THREAD.version
    if old is not None:
        graph._outer = old._outer
    _THREAD.graph = graph
    return graph


def reading(graph: Graph | None) -> None:
    """Raise TraceError if a cell is being traced and a value of another graph (None: of a parameter) is asked for."""
    current = _THREAD.graph
    if current is not None and current is not graph:
        current.reading(graph)


@contextlib.contextmanager
def inference() -> Iterator[Graph]:
    """Make the graphs of this thread for inference: memory of a value is used again as soon as nothing needs the value.

    The block begins with a graph of its own, `renew_cg` in it makes more like it, and behind it the graph from before is the
    current one again. What stays is what was asked for (by `value()` and its like, all expressions of `forward`, `values` and
    `npvalues`) and what nothing reads yet. Any other value can still be asked for, and used in new nodes: then all of the graph
    is computed once more, from the parameters as they are at that time, and from there on all of it is kept. To go on from
    values step by step in little memory, ask for all that the next step needs at once::

        with ab.inference():
            for word in words:
                state = state.add_input(E[word])
                ab.forward([W * state.output(), *state.s()])

    `backward` in such a graph raises ArgumentError. ``configure(inference=True)`` makes all graphs so.
    """
    before = _THREAD.inference
    graph = Graph(inference=True)
    _THREAD.inference = True
    try:
        with graph:
            yield graph
    finally:
        _THREAD.inference = before


def graph_version() -> int:
    """Return how many times this thread called `renew_cg`."""
    return _THREAD.version

"""A card as a machine of graphs: tables of types and parameters as they are there, inputs, runs.

    the process's tables            the same with addresses of the card
    TYPES.info, operands      ──▶   info, operands        kernels are records (`cuda/launch.py`), sizes lie on the card
    PARAMETERS.values, ...    ──▶   values, ...           each parameter has a `Mirror`

A planned table stands on the host, and what it points to lies on the card already, but for its lists. It is written out into
a staging slot (programs of cells step by step, lists behind), sent in one copy, and launched from there.

A `Twin` is an array of the host with a copy on the card. One of the two may be the newer one; whoever reads the other gets it
copied first. In steady state the card has the newer parameters, and nothing is copied.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autobatch.cuda import cublas, driver, interop, launch, memory
from autobatch.cuda.records import Part, Record, Rows, StepOf, of_kernel, program, rows_of
from autobatch.graph import (
    BACKWARD,
    FORWARD,
    NUMBERS,
    OPERANDS,
    PARAMETERS,
    PREPARE,
    READS,
    READY,
    SETTINGS,
    TYPES,
    WRITES,
    Graph,
    NodeType,
)
from autobatch.kernels import _rows
from autobatch.kernels._jit import ACCUMULATE, ADDING, ALONGSIDE, DTYPES, FIXED, INCOMING, INHERIT, SLOTS, Kernel
from autobatch.kernels._op import DENSE, ROWS
from autobatch.machine import Job, Machine
from autobatch.memory import address_of, array_at

_NAMES = list(DTYPES)
CAREFUL = os.environ.get("AUTOBATCH_CHECK", "0") not in ("", "0")  # wait for each launch, so that an error names it


class Twin:
    """An array of the host that is on the card too.

    Attributes
    ----------
    address : of the copy on the card.
    lent : whether others hold views of that copy, and may change it without a word (`lend`).
    """

    __slots__ = ("__weakref__", "_block", "_card_is_old", "_host_is_old", "address", "array", "lent")

    def __init__(self, array: np.ndarray, purpose: str) -> None:
        self.array = array
        self._block = memory.Block(array.nbytes, purpose)
        self.address = self._block.address
        self._card_is_old, self._host_is_old = True, False
        self.lent = False

    def lend(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return the outline of a view of the copy on the card (`cuda/interop.py`), for someone who may change it there."""
        self.send()
        self.changed()
        self.lent = True
        return interop.outline(self.address, shape, self.array.dtype.name, self)

    def send(self) -> None:
        """See to it that the card has the newest numbers."""
        if self._card_is_old:
            memory.upload(self.address, self.array)
            self._card_is_old = False

    def fetch(self) -> None:
        """See to it that the host has the newest numbers."""
        if self._host_is_old or (self.lent and not self._card_is_old):
            self.array[:] = memory.read(self.address, self.array.size, self.array.dtype.name)
            self._host_is_old = False

    def take_home(self) -> None:
        """Fetch, for someone who may change the numbers on the host."""
        self.fetch()
        self._card_is_old = True

    def changed(self) -> None:
        """Note that the card changes the numbers."""
        self._host_is_old = True


class Mirror:
    """The twins of a parameter."""

    __slots__ = ("gradients", "touched", "values")

    def __init__(self, arrays: tuple[np.ndarray, np.ndarray, np.ndarray | None]) -> None:
        values, gradients, touched = arrays
        self.values, self.gradients = Twin(values, "parameters"), Twin(gradients, "gradients of parameters")
        self.touched = None if touched is None else Twin(touched, "parameters")

    def take_home(self) -> None:
        """Fetch all of it, for someone who may change it on the host."""
        for twin in (self.values, self.gradients, self.touched):
            if twin is not None:
                twin.take_home()


class _Place:
    """What a graph has on the card beside values and gradients: inputs, tables, work space of kernels."""

    def __init__(self) -> None:
        self.inputs, self.tables, self.backward = (memory.Arena(p) for p in ("inputs", "tables", "backward tables"))
        self.known = 0  # inputs
        self.addresses = np.empty(64, np.int64)
        self.chunks: list[
            tuple[int, int]
        ] = []  # where each chunk of inputs lies on the card, and how many of its bytes are there

    def release(self) -> None:
        """Give all memory back to the pool of the thread."""
        for arena in (self.inputs, self.tables, self.backward):
            arena.release()

    def drop(self, count: int) -> None:
        """Forget the inputs from this number on; others take their numbers."""
        self.known = min(self.known, count)

    def forget(self) -> None:
        """Send all inputs anew: some may have changed."""
        self.inputs.cut((0, 0))
        self.known = 0
        self.chunks.clear()


class Card(Machine):
    """The configured card."""

    name = "cuda"
    card = True

    def __init__(self) -> None:
        self.device = driver.device()
        self._lock = threading.RLock()
        self._types = 0  # of these node types, rows are taken over
        self.info, self.operands = np.zeros_like(TYPES.info), np.zeros_like(TYPES.operands)
        self._done: set[tuple[int, int, bool]] = set()
        self.values, self.gradients, self.touched = (np.zeros(0, np.int64) for _ in range(3))
        self._records: dict[Any, Record] = {}
        self._names: dict[int, str] = {}
        self._numbers: dict[Any, memory.Block] = {}  # sizes and constants on the card
        self._constants: dict[tuple[int, int, str], int] = {}
        self.products = cublas.find()
        self._rows: dict[str, Rows] = {}
        self._scratch = memory.Arena("work space")  # of rules
        self.launches = 0

    # Memory -----------------------------------------------------------------------------------------------------------

    def arena(self, purpose: str) -> Any:
        """Return new memory on the card."""
        return memory.Arena(purpose)

    def read(self, address: int, count: int, dtype: str) -> np.ndarray:
        """Return a copy of numbers on the card."""
        return memory.read(address, count, dtype)

    def keep(self, address: int, count: int, dtype: str) -> np.ndarray:
        """Return the outline of a copy, on the card, of numbers there (`cuda/interop.py`)."""
        return interop.copied(address, (count,), dtype)

    def write(self, address: int, values: np.ndarray) -> None:
        """Copy numbers to an address on the card."""
        memory.upload(address, values)

    def zero(self, address: int, size: int) -> None:
        """Set bytes on the card to 0."""
        memory.zero(address, size)

    def integers(self, values: Sequence[int] | np.ndarray) -> int:
        """Return the address on the card of integers that never change."""
        array = np.array(values, np.int64)
        return self._kept(("integers", array.tobytes()), array)

    def _kept(self, key: Any, array: np.ndarray) -> int:
        if key not in self._numbers:
            block = memory.Block(max(array.nbytes, 8), "node types")
            memory.upload(block.address, array)
            self._numbers[key] = block
        return self._numbers[key].address

    # Tables -----------------------------------------------------------------------------------------------------------

    def tables(self) -> tuple[np.ndarray, ...]:
        """Return the tables of the process with addresses of the card."""
        if self._types < len(TYPES.records) or len(self.values) < len(PARAMETERS.values):
            with self._lock:
                self._take_over()
        return self.info, self.operands, TYPES.needs, self.values, self.gradients, self.touched

    def _take_over(self) -> None:
        """Copy the rows of new node types, and make room for new parameters."""
        with TYPES.lock:
            count, info, operands = len(TYPES.records), TYPES.info, TYPES.operands
        if len(info) > len(self.info):
            self.info = _grown(self.info, len(info))
        if len(operands) > len(self.operands):
            self.operands = _grown(self.operands, len(operands))
        rows, last = slice(self._types, count), TYPES.records[count - 1]
        self.info[rows] = info[rows]
        for column, count_of_it in ((FORWARD, 2), (PREPARE, 2), (READY, 2), (NUMBERS, 1)):
            self.info[rows, column : column + count_of_it] = 0
        first = int(info[self._types, OPERANDS]) if self._types < count else 0
        end = int(info[count - 1, OPERANDS]) + len(last.shapes)
        if self._types < count and end > first:
            part = operands[first:end].copy()
            part[:, BACKWARD : BACKWARD + 2] = 0
            part[part[:, WRITES] == DENSE, WRITES] = ROWS
            self.operands[first:end] = part
            for record in TYPES.records[self._types : count]:
                if record.lowering is not None:
                    at = int(info[record.number, OPERANDS])
                    for k, operand in enumerate(record.lowering.operands):
                        if operand.reads == DENSE and not operand.parts:
                            self.operands[at + k, READS] = ROWS
        self._types = count
        if len(PARAMETERS.values) > len(self.values):
            size = len(PARAMETERS.values)
            self.values, self.gradients, self.touched = (_grown(a, size) for a in (self.values, self.gradients, self.touched))

    def compile(self, present: Sequence[int], kind: int, backward: bool) -> None:
        """See to it that these types have records, and their numbers are on the card."""
        missing = [t for t in present if (t, kind, backward) not in self._done]
        if not missing:
            return
        dtype = _NAMES[kind]
        with self._lock:
            self._take_over()
            for t in missing:
                record = TYPES.records[t]
                lowering = record.lowering
                if lowering is None:
                    continue
                largest = max([record.shape.total, *(s.total for s in record.shapes)])
                self.info[t, NUMBERS] = self.integers(self._sizes(record))
                if not backward:
                    self.info[t, FORWARD + kind] = self._record(lowering.forward, dtype, lowering.sizes, largest).address
                else:
                    if lowering.prepare is not None:
                        self.info[t, PREPARE + kind] = self._record(lowering.prepare, dtype, lowering.sizes, largest).address
                    for k, operand in enumerate(lowering.operands):
                        if operand.backward is not None:
                            at = int(self.info[t, OPERANDS]) + k
                            self.operands[at, BACKWARD + kind] = self._record(
                                operand.backward, dtype, lowering.sizes, largest
                            ).address
                    self.info[t, READY + kind] = 1
                self._done.add((t, kind, backward))

    def _sizes(self, record: NodeType) -> list[int]:
        """Return the sizes of a node type; where the marks of a table lie is another place on the card."""
        assert record.lowering is not None
        sizes = list(record.lowering.sizes)
        marks = dict(record.attributes).get("touched")
        if marks is not None:
            pid = next((-p - 1) // 2 for p in record.parameters if p)  # not by the address: a table that is gone had it, too
            sizes = [int(self.touched[pid]) if s == marks else s for s in sizes]
        return sizes

    def kernels(self, dtype: str) -> dict[str, int]:
        """Return the records of the planner's own kernels, by field of the frame."""
        word = SLOTS + 4
        made = {
            "copy_rows": (_rows.copy_rows, word),
            "zero_rows": (_rows.zero_rows, SLOTS + 2),
            "add_rows": (_rows.add_rows, word),
            "add_groups": (_rows.add_groups, SLOTS + 8),
            "add_overlapping": (_rows.add_overlapping, SLOTS + 8),
            "add_to_table": (_rows.add_to_table_groups, SLOTS + 12),
        }
        with self._lock:
            return {name: self._record(kernel, dtype, (), 1, at).address for name, (kernel, at) in made.items()}

    def _record(self, kernel: Kernel, dtype: str, sizes: tuple[int, ...], largest: int, word: int = -1) -> Record:
        """Return the record of a kernel. Equal ones are one: a table may hold several that run together."""
        key = kernel, dtype, sizes, largest, word
        if key in self._records:
            return self._records[key]
        programs: Any = getattr(kernel, "programs", None)
        if programs is not None:
            made = self._program(kernel, programs, dtype)
        else:
            made = of_kernel(kernel, dtype, sizes, largest, word, self._rows_of(dtype))
        self._records[key] = made
        for record in (made, *made.inside):
            self._names[record.address] = record.name
        return made

    def _rows_of(self, dtype: str) -> Rows | None:
        """Return the records that copy rows together for a library of products; None without one."""
        if self.products is None:
            return None
        if dtype not in self._rows:
            self._rows[dtype] = made = rows_of(dtype)
            self._names.update({record.address: record.name for record in made})
        return self._rows[dtype]

    def _program(self, kernel: Any, programs: Any, dtype: str) -> Record:
        """Return the record of a program of a cell."""
        width = np.dtype(dtype).itemsize
        steps: list[StepOf] = []
        before: Any = None
        together: list[Any] = []
        for step in programs.programs[kernel.which]:
            largest = max((s.size for s in step.slots), default=1)
            record = self._record(step.kernel, dtype, tuple(step.sizes.tolist()), largest)
            parts = []
            for s in step.slots:
                offset = s.start * width
                if s.kind == FIXED:
                    constant = programs.constants[s.source]
                    kept = constant if constant.dtype == np.int64 else constant.astype(dtype)
                    offset = self._kept((kept.dtype.name, kept.tobytes()), kept)
                parts.append(Part(s.kind, s.source, offset, s.size * width))
            alongside = bool(together) and all(independent(earlier, step) for earlier in together)
            together = [*together, step] if alongside else [step]  # the launch may hold all of these
            flags = step.flags | ALONGSIDE * alongside | ADDING * sums_up(before, step)
            steps.append(StepOf(record, self.integers(step.sizes), flags, parts, step.mode))
            before = step
        return program(kernel.name, steps)

    # Parameters and inputs --------------------------------------------------------------------------------------------

    def mirror(self, parameter: Any) -> Mirror:
        """Return the mirror of a parameter, made now if it is new on the card."""
        found = PARAMETERS.mirrors.get(parameter.pid)
        if found is None:
            self.tables()
            found = PARAMETERS.mirrors[parameter.pid] = Mirror(parameter.arrays())
            self.values[parameter.pid] = found.values.address
            self.gradients[parameter.pid] = found.gradients.address
            self.touched[parameter.pid] = 0 if found.touched is None else found.touched.address
        made: Mirror = found
        return made

    def prepare(self, graph: Graph) -> None:
        """See to it that all parameters of a graph have a place on the card, before addresses are planned with."""
        for used in (graph.parameters, graph.tables):
            for p in used:
                p = getattr(p, "of", p)
                if p.pid not in PARAMETERS.mirrors:
                    self.mirror(p)

    def begin(self, graph: Graph, backward: bool) -> None:
        """Send what is newer on the host; note what a backward pass will change."""
        for used in (graph.parameters, graph.tables):
            for p in used:
                mirror = self.mirror(getattr(p, "of", p))
                mirror.values.send()
                if backward:
                    mirror.gradients.send()
                    mirror.gradients.changed()
                    if mirror.touched is not None:
                        mirror.touched.send()
                        mirror.touched.changed()

    def inputs(self, graph: Graph, place: Any) -> tuple[np.ndarray, Any]:
        """Send new inputs; return the addresses of all of them on the card."""
        place = place or _Place()
        hosts, count = graph.address_array(), len(graph.input_addresses)
        if count <= place.known and len(graph.input_chunks) == len(place.chunks):
            return place.addresses, place
        if count > place.addresses.size:
            place.addresses = np.resize(place.addresses, max(count, 2 * place.addresses.size))
        new = hosts[place.known : count]
        for k, chunk in enumerate(graph.input_chunks):
            start = address_of(chunk)
            used = chunk.nbytes if chunk is not graph.input_chunk else chunk.nbytes - graph.input_room * chunk.itemsize
            if k == len(place.chunks):
                place.chunks.append((place.inputs.take(chunk.nbytes), 0))
            at, sent = place.chunks[k]
            if sent < used:
                memory.upload(at + sent, chunk.view(np.uint8)[sent:used])
                place.chunks[k] = at, used
            here = (new >= start) & (new < start + chunk.nbytes)
            place.addresses[place.known : count][here] = new[here] - start + at
        if graph.on_card is not None:
            for number, (address, _) in graph.on_card.inputs.items():
                place.addresses[number] = address
        place.known = count
        return place.addresses, place

    # Runs -------------------------------------------------------------------------------------------------------------

    def run(self, job: Job, meanwhile: Callable[[], None] | None = None) -> None:
        """Send a table to the card and launch it. Nobody waits here, so `meanwhile` is not called."""
        execution, segment = job.execution, job.segment
        place = execution.inputs = execution.inputs or _Place()
        forward = job.backward is None
        others = [] if forward else [(segment.lists_at, 8 * segment.entries, segment.card_lists)]
        if self.products is not None:
            self.products.tf32 = SETTINGS.matmul_precision == "tf32"
        arena = place.tables if forward else place.backward
        if not forward:
            arena.cut((0, 0))  # nobody refers to the last one any more, and what it started comes before this
        sent = launch.submit(
            *(
                self.device,
                job.table,
                job.words,
                array_at(job.lists, job.entries, "int64"),
                arena,
                execution.dtype,
                self._names,
            ),
            *(others, self.products, CAREFUL),
        )
        self.launches += sent.size.launches
        if forward:
            segment.card_lists = sent.lists

    # Trainers ---------------------------------------------------------------------------------------------------------

    def twin(self, array: np.ndarray, purpose: str) -> Twin:
        """Return a twin of an array."""
        return Twin(array, purpose)

    def twins(self, parameter: Any) -> tuple[Any, Any, Any]:
        """Return the twins of a parameter."""
        mirror = self.mirror(parameter)
        return mirror.values, mirror.gradients, mirror.touched

    def kernel(self, kernel: Kernel, dtype: str, sizes: tuple[int, ...], largest: int) -> int:
        """Return the address of a record."""
        with self._lock:
            return self._record(kernel, dtype, sizes, largest).address

    def settle(self) -> None:
        """Return when tables of trainers may be written to: now, the card has copies."""

    def run_fixed(self, table: Twin, words: int, dtype: str, using: Any) -> None:
        """Launch the first words of a table that lies on the card."""
        table.send()
        at, itemsize = address_of(table.array), np.dtype(dtype).itemsize
        scratch = launch.measure(at, words, itemsize).scratch
        self._scratch.cut((0, 0))
        where = table.address, self._scratch.take(scratch)
        self.launches += launch.launch(self.device, at, words, *where, dtype, self._names, self.products, CAREFUL)


def independent(before: Any, step: Any) -> bool:
    """Return whether a step of a cell may run at the same time as the one before it: of one kernel, in different places."""
    if before is None or step.kernel is not before.kernel or len(step.slots) != len(before.slots):
        return False

    def meet(some: Sequence[Any], others: Sequence[Any]) -> bool:
        return any(
            a.kind == b.kind == INCOMING and a.source == b.source and a.start < b.start + b.size and b.start < a.start + a.size
            for a in some
            for b in others
        )

    return not meet(step.writes, before.writes) and not meet(step.reads, before.writes) and not meet(step.writes, before.reads)


def sums_up(before: Any, step: Any) -> bool:
    """Return whether a step of a cell adds to what the one before it wrote or added to, by a kernel that does both at once."""
    if before is None or step.kernel is not before.kernel or not step.kernel.card.sums or not step.flags & ACCUMULATE:
        return False
    same = step.slots[0] == before.slots[0] and step.mode == before.mode & ~INHERIT and len(step.slots) == len(before.slots)
    return bool(same and step.flags >> 8 == before.flags >> 8 and np.array_equal(step.sizes, before.sizes))


def _grown(array: np.ndarray, rows: int) -> np.ndarray:
    grown = np.zeros((rows, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


_CARDS: dict[int, Card] = {}


def card() -> Card:
    """Return the card as a machine.

    Raises
    ------
    DeviceError : there is none, or something that it needs is missing; says what.
    """
    owner = driver.device()
    if id(owner) not in _CARDS:
        _CARDS.clear()
        PARAMETERS.mirrors.clear()
        _CARDS[id(owner)] = Card()
    return _CARDS[id(owner)]

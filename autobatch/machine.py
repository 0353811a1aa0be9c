"""What graphs run on: where memory comes from, where things lie, how a table runs. The processor here, a card in `card.py`.

Schedules and plans are integers and know no machine. An `Execution` asks its machine for the rest:

    tables      node types and parameters as the planner reads them: addresses of kernels, of sizes, of values
    arena       memory for values and gradients
    run         a planned table
    read        numbers at an address, as a NumPy array
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autobatch import background
from autobatch.cuda import memory as card_memory
from autobatch.graph import PARAMETERS, TYPES, Graph
from autobatch.kernels._jit import Kernel
from autobatch.kernels._rows import add_rows, add_to_table, copy_rows, zero_rows
from autobatch.kernels._vm import run
from autobatch.memory import Arena, address_of, read
from autobatch.threads import run_table


class Home:
    """An array that lies where the machine works: `Twin` of `card.py` for a processor, which has nothing to do."""

    __slots__ = ("_twin", "address", "array")

    def __init__(self, array: np.ndarray, twin: Any = None) -> None:
        self.array, self.address = array, address_of(array)
        self._twin = twin  # on a card, if graphs are evaluated there too

    def send(self) -> None:
        """See to it that the machine has the newest numbers."""
        if self._twin is not None:
            self._twin.take_home()

    def fetch(self) -> None:
        """See to it that the array has the newest numbers."""
        background.wait()

    def take_home(self) -> None:
        """Fetch, for someone who may change the array."""
        background.wait()

    def changed(self) -> None:
        """Note that the machine changes the numbers."""


class Machine:
    """The processor, and what other machines must be able to do."""

    name = "cpu"
    card = False  # whether the items of an instruction run at the same time

    def arena(self, purpose: str) -> Arena:
        """Return new memory for values, or for gradients."""
        return Arena(purpose)

    def tables(self) -> tuple[np.ndarray, ...]:
        """Return the tables of types, operands and needs, and of addresses of values, gradients and marks of parameters.

        They are replaced when they grow.
        """
        return TYPES.info, TYPES.operands, TYPES.needs, PARAMETERS.values, PARAMETERS.gradients, PARAMETERS.touched

    def compile(self, present: Sequence[int], kind: int, backward: bool) -> None:
        """See to it that the kernels of these types are there, for a dtype, in one direction."""
        TYPES.compile(present, kind, backward)

    def kernels(self, dtype: str) -> dict[str, int]:
        """Return what the planner writes into its own instructions, by field of the frame."""
        return {k.name: k.address(dtype) for k in (copy_rows, zero_rows, add_rows, add_to_table)}

    def inputs(self, graph: Graph, place: Any) -> tuple[np.ndarray, Any]:
        """Return the addresses of all inputs of a graph, and what to hand over as `place` the next time (None at first)."""
        if graph.on_card is not None:  # recorded while a card was configured
            for number, (address, count) in list(graph.on_card.inputs.items()):
                graph._bring_home(number, card_memory.read(address, count, graph.dtype))
        return graph.address_array(), None

    def prepare(self, graph: Graph) -> None:
        """See to it that the parameters of a graph have addresses."""

    def begin(self, graph: Graph, backward: bool) -> None:
        """See to it that the parameters of a graph (and their gradients) are there."""
        if PARAMETERS.mirrors:  # some graphs are evaluated on a card
            for p in (*graph.parameters, *graph.tables):
                mirror = PARAMETERS.mirrors.get(getattr(p, "of", p).pid)
                if mirror is not None:
                    mirror.take_home()

    def run(self, job: Job, meanwhile: Callable[[], None] | None = None) -> None:
        """Run a table, a backward one in the background if it is worth it.

        `meanwhile` is called while others run it, if they can.
        """
        whole, divided = job.segment.work
        work = divided if job.backward is None else 2 * whole  # gradients of weights are large products in any case
        background.note_thread()
        if job.backward is not None or meanwhile is not None:
            using = job, job.graph.input_chunks, job.graph.parameters, job.graph.tables
            if background.start(job.table, job.words, job.execution.dtype, work, using):
                if meanwhile is not None:
                    try:
                        meanwhile()
                    finally:
                        background.wait()
                return
        background.wait()
        run_table(job.table, job.words, job.scratch, job.execution.dtype, work)

    def read(self, address: int, count: int, dtype: str) -> np.ndarray:
        """Return a copy of numbers."""
        return read(address, count, dtype)

    def write(self, address: int, values: np.ndarray) -> None:
        """Copy numbers to an address."""
        ctypes.memmove(address, address_of(values), values.nbytes)

    def zero(self, address: int, size: int) -> None:
        """Set bytes to 0."""
        ctypes.memset(address, 0, size)

    # For trainers: tables that stay, over arrays that stay.

    def twin(self, array: np.ndarray, purpose: str) -> Any:
        """Return the `Home` of an array, or its like on the machine."""
        return Home(array)

    def twins(self, parameter: Any) -> tuple[Any, Any, Any]:
        """Return those of a parameter: values, gradients, marks of touched rows (or None)."""
        values, gradients, touched = parameter.arrays()
        mirror = PARAMETERS.mirrors.get(parameter.pid)
        if mirror is None:
            return Home(values), Home(gradients), None if touched is None else Home(touched)
        marks = None if touched is None else Home(touched, mirror.touched)
        return Home(values, mirror.values), Home(gradients, mirror.gradients), marks

    def kernel(self, kernel: Kernel, dtype: str, sizes: tuple[int, ...], largest: int) -> int:
        """Return what stands in the KERNEL word of an instruction with these sizes."""
        return kernel.address(dtype)

    def run_fixed(self, table: Any, words: int, dtype: str, using: Any) -> None:
        """Run the first words of a table, given as twin; `using`: whatever holds the memory that it works on."""
        if not background.follow(table.address, words, dtype, (table, using)):
            run(table.address, words, 0)

    def settle(self) -> None:
        """Return when tables of trainers may be written to."""
        background.wait_for_updates()


Where = tuple[int, int, int, int]  # address and length of a table, and of the lists that it points to


class Job:
    """A table to run, and what belongs to it.

    Attributes
    ----------
    execution, graph : whose table it is.
    table, words, lists, entries : where it lies.
    scratch : address of the work space of its kernels.
    segment : what the table runs.
    backward : the backward pass that it belongs to; None: it is the segment's forward table.
    """

    __slots__ = ("backward", "entries", "execution", "graph", "lists", "scratch", "segment", "table", "words")

    def __init__(self, execution: Any, graph: Graph, where: Where, scratch: int, segment: Any, backward: Any) -> None:
        self.execution, self.graph, self.scratch, self.segment, self.backward = execution, graph, scratch, segment, backward
        self.table, self.words, self.lists, self.entries = where


PROCESSOR = Machine()

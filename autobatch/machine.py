"""What graphs run on: where memory comes from, where things lie, how a table runs. The processor here, a card in `card.py`.

Schedules and plans are integers and know no machine. An `Execution` asks its machine for the rest:

    tables      node types and parameters as the planner reads them: addresses of kernels, of sizes, of values
    arena       memory for values and gradients
    run         a planned table
    read        numbers at an address, as a NumPy array
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from autobatch.graph import PARAMETERS, SETTINGS, TYPES, Graph
from autobatch.kernels._errors import ArgumentError, message
from autobatch.kernels._rows import add_rows, add_to_table, copy_rows, zero_rows
from autobatch.kernels._vm import run
from autobatch.memory import Arena, address_of, read


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
        return graph.address_array(), None

    def prepare(self, graph: Graph) -> None:
        """See to it that the parameters of a graph have addresses."""

    def begin(self, graph: Graph, backward: bool) -> None:
        """See to it that the parameters of a graph (and their gradients) are there."""

    def run(self, job: Job) -> None:
        """Run a table."""
        run(job.table, job.words, job.scratch)

    def read(self, address: int, count: int, dtype: str) -> np.ndarray:
        """Return a copy of numbers."""
        return read(address, count, dtype)

    def write(self, address: int, values: np.ndarray) -> None:
        """Copy numbers to an address."""
        ctypes.memmove(address, address_of(values), values.nbytes)

    def zero(self, address: int, size: int) -> None:
        """Set bytes to 0."""
        ctypes.memset(address, 0, size)


class Job:
    """A table to run, and what belongs to it."""

    __slots__ = ("backward", "execution", "graph", "lists", "scratch", "segment", "table", "words")

    def __init__(
        self,
        execution: Any,
        graph: Graph,
        table: np.ndarray,
        words: int,
        lists: np.ndarray,
        scratch: int,
        segment: Any,
        backward: Any,
    ) -> None:
        self.execution, self.graph = execution, graph
        self.table, self.words, self.lists, self.scratch = table, words, lists, scratch
        self.segment, self.backward = segment, backward


PROCESSOR = Machine()


def configured_machine() -> Machine:
    """Return what graphs are evaluated on, as `configure(device=...)` says."""
    if SETTINGS.device == "cpu":
        return PROCESSOR
    from autobatch.card import card

    return card()


def check_device(device: Any) -> str:
    """Return "cpu" or "cuda"; DyNet's names for them are understood.

    Raises
    ------
    ArgumentError : another name.
    DeviceError : there is no such device here; says what is missing.
    """
    name = str(device).lower()
    if name in ("cpu", "cpu:0"):
        return "cpu"
    if name in ("cuda", "cuda:0", "gpu", "gpu:0"):
        from autobatch.card import card

        card()
        return "cuda"
    raise ArgumentError(message(f"device {device!r} is unknown", expected="'cpu' or 'cuda'"))

"""What one forward pass ran: a stretch of the nodes of a graph, its schedule, and where its values and its table lie."""

from __future__ import annotations

import numpy as np

from autobatch.frame import field, numbers
from autobatch.memory import array_at
from autobatch.schedule import Schedule, lower_bound


class Segment:
    """Nodes n0 to n1 - 1 of a graph, reduced to `nodes` ops, of `types` types, in `batches` batches.

    The passes made its arrays in the memory of the execution, and what they are told about it was saved (`Frame.save`). So a
    segment is made in no time, and Python's view of an array when somebody asks for it. All are valid as long as the values.

    Attributes
    ----------
    n0, n1 : the nodes.
    count, edges_count, types, arguments, batches : of the reduced graph: nodes, edges, types, their arguments, batches.
    order : its schedule, where `schedule.py` made it; its arrays are used.
    base : the address of its blocks of values.
    table_at, words, lists_at, entries : address and length of the forward table, and of the lists of addresses it points to.
    work : of the forward pass, in units of `graph.WORK`: all of it, and what several threads divide.
    marks : of the arenas, before the segment.
    saved : what the passes are told about it.
    last, copies : for inference: the batch after which the values of each batch are given up; the offset of the place for
        copies.
    card_lists : where the lists lie on a card.
    """

    __slots__ = (
        *(
            "n0",
            "n1",
            "count",
            "edges_count",
            "types",
            "arguments",
            "batches",
            "order",
            "base",
            "table_at",
            "words",
            "lists_at",
        ),
        *("entries", "work", "marks", "saved", "last", "copies", "card_lists"),
    )

    def __init__(self, n0: int, n1: int, count: int, edges: int, types: int, arguments: int) -> None:
        self.n0, self.n1 = n0, n1
        self.count, self.edges_count, self.types, self.arguments, self.batches = count, edges, types, arguments, 0
        self.order: Schedule | None = None
        self.base = self.table_at = self.words = self.lists_at = self.entries = 0
        self.work = 0, 0
        self.marks: tuple[tuple[int, int], ...] = ()
        self.saved = b""
        self.last: np.ndarray | None = None
        self.copies = -1
        self.card_lists = 0

    @property
    def nodes(self) -> np.ndarray:
        """Reduced graph -> node."""
        return numbers(self.saved, "nodes", self.count)

    @property
    def kinds(self) -> np.ndarray:
        """The local type of each node of the reduced graph."""
        return numbers(self.saved, "kinds", self.count)

    @property
    def first(self) -> np.ndarray:
        """Where the edges of each node begin; and their end."""
        return numbers(self.saved, "first", self.count + 1)

    @property
    def edges(self) -> np.ndarray:
        """The arguments of each node, in the reduced graph."""
        return numbers(self.saved, "edges", self.edges_count)

    @property
    def joins(self) -> np.ndarray:
        """Whether a local type merely adds up scalars of different instances."""
        return numbers(self.saved, "joins", self.types)

    @property
    def present(self) -> np.ndarray:
        """Local type -> type."""
        return numbers(self.saved, "present", self.types)

    @property
    def schedule(self) -> Schedule:
        """Its batches."""
        if self.order is None:
            sizes = self.count, self.types + 1, self.batches, self.batches, self.batches
            self.order = Schedule(*(numbers(self.saved, name, n) for name, n in zip(Schedule._fields, sizes, strict=True)))
        return self.order

    @property
    def value_at(self) -> np.ndarray:
        """Offset of the block of values of each local type."""
        return numbers(self.saved, "value_at", self.types)

    @property
    def batch_at(self) -> np.ndarray:
        """Offset of the values of each batch."""
        return numbers(self.saved, "batch_at", self.batches)

    @property
    def gather_first(self) -> np.ndarray:
        """Where the arguments of each local type begin in `gather_at`."""
        return numbers(self.saved, "gather_first", self.types)

    @property
    def gather_at(self) -> np.ndarray:
        """Offset of the block for copies of each argument of each local type."""
        return numbers(self.saved, "gather_at", self.arguments)

    @property
    def at(self) -> np.ndarray:
        """The word of the table where the instruction of each batch begins."""
        return numbers(self.saved, "at", self.batches)

    @property
    def table(self) -> np.ndarray:
        """The forward table."""
        return array_at(self.table_at, self.words, "int64")

    @property
    def lists(self) -> np.ndarray:
        """Lists of addresses, and immediates."""
        return array_at(self.lists_at, self.entries, "int64")

    def field(self, name: str) -> int:
        """Return what passes are told about the segment."""
        return field(self.saved, name)

    def lower_bound(self) -> int:
        """Batches that any policy needs."""
        return lower_bound(self.kinds, self.first, self.edges, self.types)

"""Makes records: what an instruction becomes on a card. One for each kernel and node type; their layout is in `launch.py`.

Records are memory of the host: the card never reads the KERNEL word. They hold handles of one card and die with it, and a table
holds no more than their addresses: who writes a table keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from autobatch.cuda import machine_code
from autobatch.cuda.launch import (
    BLOCKS,
    DENSE_WORDS,
    FIRST_STAGE,
    FORM,
    MOST_Z,
    NARROW,
    PRODUCT,
    PROGRAM,
    STAGE_LEAST,
    STAGE_UPTO,
    STAGE_WORDS,
    STAGES,
    TEAMS,
)
from autobatch.kernels._device import takes_z, works_together
from autobatch.kernels._errors import InternalError
from autobatch.kernels._jit import SLOTS, Count, Dense, Kernel, Product, Products, Stage
from autobatch.kernels._rows import add_rows, copy_rows
from autobatch.memory import address_of

_ANY = (0, 1 << 62)  # least and most items
_NO_COUNT = Count(0)
_NO_MATRICES = [0] * 13  # of a stage that is no product: a, b, c, and whether to add
_TAKEN, _FREE = 0, 1  # the z of its grid


class Record:
    """A record, kept alive by whoever writes its address into a table.

    Attributes
    ----------
    address : what stands in the KERNEL word.
    name : what errors call it.
    inside : the records it refers to: those of its steps, or of copies of rows.
    """

    __slots__ = ("address", "inside", "name", "words")

    def __init__(self, name: str, words: Sequence[int], inside: Sequence[Record] = ()) -> None:
        self.name, self.words, self.inside = name, np.array(words, np.int64), tuple(inside)
        self.address = address_of(self.words)

    def names(self, name: str = "") -> dict[int, str]:
        """Return what errors call it and what is inside of it, by address; `name` in the place of its own."""
        name = name or self.name
        return {self.address: name, **{step.address: f"{step.name} of {name}" for step in self.inside}}

    def __repr__(self) -> str:
        return f"<record of {self.name}>"


class Launch(NamedTuple):
    """One launch of a record of stages: a kernel of teams (with its work) or of blocks, by its handle; or a product."""

    what: Kernel | Stage | Product
    function: int = 0
    work: int = 1

    def words(self) -> list[int]:
        """Return what stands in the record."""
        what = self.what
        if isinstance(what, Product):
            if any(m.offset and m.columns > 1 for m in (what.a, what.b, what.c)):
                raise InternalError(f"{what}: columns that are parts of an item lie at no even distance")
            head = [PRODUCT, 0, what.transpose_a, what.transpose_b, what.least, what.upto]
            add = -1 if what.add is None else int(what.add)
            return [*head, *what.m, *what.n, *what.k, *_NO_COUNT, *what.a, *what.b, *what.c, add, _TAKEN]
        if isinstance(what, Stage):
            head = [BLOCKS, self.function, *what.threads, what.least, what.upto]
            return [*head, *what.x, *what.y, *what.z, *what.scratch, *_NO_MATRICES, int(not takes_z(what.function))]
        together = works_together(what.card.function or what.function)
        return [NARROW, self.function, self.work, int(together), *_ANY, *_NO_COUNT * 4, *_NO_MATRICES, _TAKEN]


class Rows(NamedTuple):
    """The records of `copy_rows` and `add_rows`, with which slots are copied together for a library of products."""

    copy: Record
    add: Record


def teams(
    name: str, function: int, work: int = 1, together: bool = False, word: int = -1, parts: int = 1, free: bool = False
) -> Record:
    """Return the record of a kernel of teams.

    Parameters
    ----------
    function : its handle, see `machine_code.function`.
    work : how many lanes an item keeps busy; or, where `word` >= 0, that word of the instruction says it.
    together : whether lanes tell each other something: all lanes of an item are in one block then.
    parts : into how many parts an item falls, for as many blocks in z.
    free : whether z has no meaning of its own, see `launch.py`.
    """
    return Record(name, [TEAMS, function, work, word, together, min(max(parts, 1), MOST_Z), free])


def stages(
    name: str, own: Sequence[Launch], products: Products | None = None, many: Sequence[Launch] = (), rows: Rows | None = None
) -> Record:
    """Return the record of an instruction that becomes several launches.

    Parameters
    ----------
    own : its launches.
    products, many : what it becomes of `products.least` items on, and the launches of that.
    rows : needed where products have dense slots.
    """
    parts = [launch.words() for launch in own]
    least = 1 << 62
    dense: tuple[Dense, ...] = ()
    if products is not None:
        least, dense = max(products.least, 1), products.dense
        for part in parts:
            part[STAGE_UPTO] = min(part[STAGE_UPTO], least - 1)
        for part in [launch.words() for launch in many]:
            part[STAGE_LEAST] = max(part[STAGE_LEAST], least)
            parts.append(part)
    assert rows is not None or not dense
    words = [STAGES, len(parts), len(dense), least, FIRST_STAGE + STAGE_WORDS * len(parts)]
    words += [record.address for record in rows or ()] or [0, 0]
    for part in parts:
        assert len(part) == STAGE_WORDS
        words += part
    for slot in dense:
        assert len(slot) == DENSE_WORDS
        words += map(int, slot)
    return Record(name, words, rows or ())


class Part(NamedTuple):
    """A slot of a step: what `kernels/cell.py` writes down for it, on the card."""

    kind: int
    source: int
    offset: int  # INCOMING: bytes from the beginning of a row; FIXED: the address on the card
    item: int  # bytes of it


class StepOf(NamedTuple):
    """One step of a program. `sizes` is an address on the card."""

    record: Record
    sizes: int
    flags: int
    parts: Sequence[Part]
    mode: int = 0


def program(name: str, steps: Sequence[StepOf]) -> Record:
    """Return the record of a program of a cell."""
    words = [PROGRAM, len(steps)]
    for s in steps:
        if s.record.words[FORM] == PROGRAM:
            raise InternalError(f"{name}: a step of a program is a program itself")
        words += [s.record.address, s.sizes, s.flags, len(s.parts), s.mode]
        for part in s.parts:
            words += part
    return Record(name, words, [s.record for s in steps])


def of_kernel(
    kernel: Kernel, dtype: str, sizes: tuple[int, ...], largest: int = 1, word: int = -1, rows: Rows | None = None
) -> Record:
    """Return the record of a kernel for a node type, compiled or fetched from the disk.

    Parameters
    ----------
    sizes : the numbers behind SIZES.
    largest : numbers of the largest operand, which is how many lanes an item keeps busy where the kernel does not say.
    word : >= 0: that word of each instruction says it (rows of the planner).
    rows : see `rows_of`, where there is a library of products. None: there is none.
    """

    def launch_of(what: Any) -> Launch:
        if isinstance(what, Product):
            return Launch(what)
        if isinstance(what, Stage):
            return Launch(what, machine_code.function(what.function, dtype))
        function = what.card.function or what.function
        work = what.card.work(sizes) if what.card.work is not None and word < 0 else largest
        return Launch(what, machine_code.function(function, dtype), max(work, 1))

    card = kernel.card
    products = card.products(sizes) if card.products is not None and rows is not None else None
    if card.stages is None and products is None:
        one = launch_of(kernel)
        together = works_together(card.function or kernel.function)
        free = not takes_z(card.function or kernel.function)
        parts = card.parts(sizes) if card.parts is not None else 1
        return teams(kernel.name, one.function, one.work, together, word, parts, free)
    kernels = [s for s in card.stages(sizes) if s.dtype in ("", dtype)] if card.stages is not None else [kernel]
    own = [launch_of(s) for s in kernels]
    return stages(kernel.name, own, products, [launch_of(s) for s in products.stages] if products is not None else (), rows)


def rows_of(dtype: str) -> Rows:
    """Return the records of copies of rows: how long a row is stands behind the slots of each instruction."""
    copy, add = (of_kernel(kernel, dtype, (), word=SLOTS + 4) for kernel in (copy_rows, add_rows))
    return Rows(copy, add)


__all__ = ["Launch", "Part", "Record", "Rows", "StepOf", "of_kernel", "program", "rows_of", "stages", "teams"]

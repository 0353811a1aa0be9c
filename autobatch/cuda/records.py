"""Makes records: what an instruction becomes on a card. One for each kernel and node type; their layout is in `launch.py`.

Records are memory of the host: the card never reads the KERNEL word. They hold handles of one card and die with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autobatch.cuda import machine_code
from autobatch.cuda.launch import FORM, PROGRAM, STAGES, TEAMS
from autobatch.kernels._device import works_together
from autobatch.kernels._errors import InternalError
from autobatch.kernels._jit import Kernel, Stage
from autobatch.memory import address_of


class Record:
    """A record, kept alive by whoever writes its address into a table.

    Attributes
    ----------
    address : what stands in the KERNEL word.
    name : what errors call it.
    inside : the records of its steps.
    """

    __slots__ = ("address", "inside", "name", "words")

    def __init__(self, name: str, words: Sequence[int], inside: Sequence[Record] = ()) -> None:
        self.name, self.words, self.inside = name, np.array(words, np.int64), tuple(inside)
        self.address = address_of(self.words)

    def __repr__(self) -> str:
        return f"<record of {self.name}>"


def teams(name: str, function: int, work: int = 1, together: bool = False, word: int = -1) -> Record:
    """Return the record of a kernel of teams.

    Parameters
    ----------
    function : its handle, see `machine_code.function`.
    work : how many lanes an item keeps busy; or, where `word` >= 0, that word of the instruction says it.
    together : whether lanes tell each other something: all lanes of an item are in one block then.
    """
    return Record(name, [TEAMS, function, work, word, together])


def stages(name: str, parts: Sequence[tuple[int, Stage]]) -> Record:
    """Return the record of an instruction that becomes several launches: handles and stages."""
    words = [STAGES, len(parts)]
    for function, s in parts:
        words += [function, *s.threads, s.least, s.upto, *s.x, *s.y, *s.z, *s.scratch]
    return Record(name, words)


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


def of_kernel(kernel: Kernel, dtype: str, sizes: tuple[int, ...], largest: int = 1, word: int = -1) -> Record:
    """Return the record of a kernel for a node type, compiled or fetched from the disk.

    Parameters
    ----------
    sizes : the numbers behind SIZES.
    largest : numbers of the largest operand, which is how many lanes an item keeps busy where the kernel does not say.
    word : >= 0: that word of each instruction says it (rows of the planner).
    """
    card = kernel.card
    if card.stages is not None:
        return stages(kernel.name, [(machine_code.function(s.function, dtype), s) for s in card.stages(sizes)])
    function = card.function or kernel.function
    work = card.work(sizes) if card.work is not None else largest
    own_word = -1 if card.work is not None else word
    return teams(kernel.name, machine_code.function(function, dtype), max(work, 1), works_together(function), own_word)


__all__ = ["Part", "Record", "StepOf", "of_kernel", "program", "stages", "teams"]

"""Tables of instructions over parameters: written word by word, closed, and run by `autobatch.kernels._vm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autobatch.kernels._jit import ITEMS, SIZES, SLOTS, Kernel
from autobatch.kernels._update import numbers_of_card
from autobatch.machine import Machine
from autobatch.params import LookupParameters


class Table:
    """A table of instructions: written word by word, then closed into the array that runs.

    The sizes of an instruction stand behind its slots: | kernel length items sizes flags | slots ... | n ... |
                                                                              +------------------------^
    """

    def __init__(self, machine: Machine, dtype: str) -> None:
        self.machine, self.dtype = machine, dtype
        self.words: list[int] = []
        self.array: NDArray[np.int64] = np.zeros(0, np.int64)
        self._sizes: list[tuple[int, int]] = []  # SIZES word, where its sizes begin
        self._twin: Any = None
        self.using: Any = None  # what holds the memory that it works on

    def add(
        self, kernel: Kernel, items: int, sizes: Sequence[int], slots: Sequence[tuple[int, int]], flags: int = 0
    ) -> tuple[Table, int]:
        """Append an instruction; return where it is. A slot is (address, stride)."""
        begin = len(self.words)
        where = begin + SLOTS + 2 * len(slots)
        self._sizes.append((begin + SIZES, where))
        address = self.machine.kernel(kernel, self.dtype, tuple(sizes), max([1, *sizes[:1]]))
        self.words += [address, where + len(sizes) - begin, items, 0, flags]
        for slot in slots:
            self.words += slot
        self.words += sizes
        return self, begin

    def close(self) -> None:
        """Make the array; what is written to it before the first run counts."""
        self.array = np.array(self.words, np.int64)
        self._twin = self.machine.twin(self.array, "update rules")
        for word, where in self._sizes:
            self.array[word] = self.address(where)

    def address(self, word: int) -> int:
        """Return the address of a word of the closed table, where the machine has it."""
        return int(self._twin.address) + 8 * word

    def send(self) -> None:
        """See to it that the machine has the table, before another one writes into it (`update_rows` does)."""
        self._twin.send()

    def run(self, words: int) -> None:
        """Run the first words."""
        self.machine.run_fixed(self._twin, words, self.dtype, self.using)


class Numbers:
    """The numbers that rules read: set them in `values`, then `send`."""

    def __init__(self, machine: Machine, count: int, dtype: str) -> None:
        self.values = np.zeros(count)
        self._dtype = dtype
        self._read = np.zeros(2 * count, dtype) if machine.card else self.values  # see `_update.py`
        self._twin = machine.twin(self._read, "update rules")

    def at(self, k: int) -> tuple[int, int]:
        """Return number k as a slot."""
        return int(self._twin.address) + k * (self._read.nbytes // self.values.size), 0

    def send(self) -> None:
        """Let the machine see the numbers."""
        if self._read is not self.values:
            self._twin.take_home()
            self._read[:] = numbers_of_card(self.values, self._dtype)
            self._twin.send()


class Rows:
    """The touched rows of one look-up table: lists of where they lie, one for each array, filled by `update_rows`."""

    def __init__(self, machine: Machine, table: LookupParameters, twins: Sequence[Any]) -> None:
        self.table, self.twins = table, twins
        lists = np.empty((len(twins), len(table)), np.int64)  # pages that no row needs are never there
        self.step = lists.strides[0]
        self.lists = machine.twin(lists.reshape(-1), "update rules")
        self.visits: list[tuple[Table, int]] = []  # instructions that go over the rows: at most three
        self.most = len(table) if machine.card else 0  # items that launches are made for; a processor reads how many there are

    def slots(self) -> list[tuple[int, int]]:
        """Return the lists as slots of an instruction, in the order of the arrays."""
        return [(self.lists.address + k * self.step, -1) for k in range(len(self.twins))]

    def search(self, survey: Table, kernel: Kernel, touched: Any) -> None:
        """Append the instruction that fills the lists."""
        room = 2 + 3 * len(self.twins) + 3
        self.at = survey.add(kernel, 1, [len(self.table), *[0] * room], [(touched.address, 0)])

    def close(self) -> None:
        """Write the sizes of the search, once the tables are closed."""
        sizes = [len(self.table), len(self.twins), len(self.visits)]
        for twin, (places, _) in zip(self.twins, self.slots(), strict=True):
            sizes += [twin.address, twin.array.nbytes // len(self.table), places]
        sizes += [table.address(at + ITEMS) for table, at in self.visits]
        survey, begin = self.at
        start = begin + SLOTS + 2
        survey.array[start : start + len(sizes)] = sizes

"""Tables of instructions over parameters: written word by word, closed, and run by `autobatch.kernels._vm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autobatch.kernels._jit import ITEMS, SIZES, SLOTS
from autobatch.params import LookupParameters


def address_of(array: NDArray[Any]) -> int:
    """Return the address of the first number of an array."""
    return int(array.__array_interface__["data"][0])  # a third of the time of array.ctypes.data


class Table:
    """A table of instructions: written word by word, then closed into the array that runs.

    The sizes of an instruction stand behind its slots: | kernel length items sizes flags | slots ... | n ... |
                                                                              +------------------------^
    """

    def __init__(self) -> None:
        self.words: list[int] = []
        self.array: NDArray[np.int64] = np.zeros(0, np.int64)
        self._sizes: list[tuple[int, int]] = []  # SIZES word, where its sizes begin

    def add(
        self, kernel: int, items: int, sizes: Sequence[int], slots: Sequence[tuple[int, int]], flags: int = 0
    ) -> tuple[Table, int]:
        """Append an instruction; return where it is. A slot is (address, stride)."""
        begin = len(self.words)
        where = begin + SLOTS + 2 * len(slots)
        self._sizes.append((begin + SIZES, where))
        self.words += [kernel, where + len(sizes) - begin, items, 0, flags]
        for slot in slots:
            self.words += slot
        self.words += sizes
        return self, begin

    def close(self) -> None:
        self.array = np.array(self.words, np.int64)
        for word, where in self._sizes:
            self.array[word] = self.address(where)

    def address(self, word: int) -> int:
        """Return the address of a word of the closed table."""
        return address_of(self.array) + 8 * word


class Rows:
    """The touched rows of one look-up table: lists of where they lie, one for each array, filled by `update_rows`."""

    def __init__(self, table: LookupParameters, arrays: Sequence[NDArray[Any]]) -> None:
        self.table, self.arrays = table, arrays
        self.lists = np.empty((len(arrays), len(table)), np.int64)  # pages that no row needs are never there
        self.visits: list[tuple[Table, int]] = []  # instructions that go over the rows: at most three

    def slots(self) -> list[tuple[int, int]]:
        """Return the lists as slots of an instruction, in the order of the arrays."""
        start, step = address_of(self.lists), self.lists.strides[0]
        return [(start + k * step, -1) for k in range(len(self.arrays))]

    def search(self, survey: Table, kernel: int) -> None:
        """Append the instruction that fills the lists."""
        room = 3 + 3 * len(self.arrays) + 3
        self.at = survey.add(kernel, 1, [0] * room, [(address_of(self.table.touched), 0)])

    def close(self) -> None:
        """Write the sizes of the search, once the tables are closed."""
        sizes = [len(self.table), len(self.arrays), len(self.visits)]
        for array, (places, _) in zip(self.arrays, self.slots(), strict=True):
            sizes += [address_of(array), array.nbytes // len(self.table), places]
        sizes += [table.address(at + ITEMS) for table, at in self.visits]
        survey, begin = self.at
        start = begin + SLOTS + 2
        survey.array[start : start + len(sizes)] = sizes

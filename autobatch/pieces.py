"""What is recorded in bulk, and how lists of integers become arrays.

The types of nodes recorded in bulk (all steps of a sequence, a whole batch of rows) stand in the graph's list of types as all
others do; their arguments and immediates are a *piece*, which comes between entries of the list of arguments:

    args list   | 0 ... 11 |  12 ... 19 | ...          piece (12, first node, entries, nodes, p): before entry 12 of the list

When the graph is run, lists and pieces are written into two int32 arrays, types and arguments of all nodes.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numba import types as numba_types
from numba.core.typing import signature

from autobatch.kernels._jit import compiled
from autobatch.recorder import native

FEW = 128  # entries that NumPy takes over from a list before a compiled function begins


class Piece(Protocol):
    """Nodes that were recorded in bulk."""

    @staticmethod
    def write_all(types: np.ndarray, args: np.ndarray, places: np.ndarray, pieces: list[Any]) -> None:
        """Write all pieces of this kind into two int32 arrays; `places` (int64, two a piece) tells where they begin in them."""


Place = tuple[
    int, int, int, int, Any
]  # before which entry of the list, first node, how many entries, how many nodes, the piece


class Entries:
    """A piece of which every so many nodes are alike: their types, and an array of all entries."""

    __slots__ = ("array", "nodes", "types")

    def __init__(self, types: list[int], repeats: int, array: np.ndarray) -> None:
        self.types, self.array = types, array
        self.nodes = len(types) * repeats

    @staticmethod
    def write_all(types: np.ndarray, args: np.ndarray, places: np.ndarray, pieces: list[Entries]) -> None:
        """Write all pieces, see `Piece`."""
        for (first, at), piece in zip(places.tolist(), pieces, strict=True):
            args[at : at + piece.array.size] = piece.array.ravel()
            types[first : first + piece.nodes].reshape(-1, len(piece.types))[:] = piece.types


@compiled
def _arrange(
    numbers: Any, nodes: int, entries: int, all_nodes: int, all_entries: int, of_types: Any, of_args: Any, places: Any
) -> None:
    """Find out where everything goes.

    `numbers` are the four integers of each piece; nodes and entries before `nodes` and `entries` have been written. Fills in
    segments of the list of types and of that of arguments (for `copy_list`), and where each piece begins in both arrays.
    """
    count = len(numbers) // 4
    at, source, node = 0, entries, nodes
    for p in range(count + 1):
        before, first = (numbers[4 * p], numbers[4 * p + 1]) if p < count else (all_entries, all_nodes)
        of_args[3 * p], of_args[3 * p + 1], of_args[3 * p + 2] = source, at, before - source
        of_types[3 * p], of_types[3 * p + 1], of_types[3 * p + 2] = node, node - nodes, first - node
        at += before - source
        source = before
        if p < count:
            places[p, 0], places[p, 1] = first - nodes, at
            at += numbers[4 * p + 2]
            node = first + numbers[4 * p + 3]


def write(
    types_list: list[int],
    args_list: list[int],
    pieces: list[Place],
    nodes: int,
    entries: int,
    types: np.ndarray,
    args: np.ndarray,
) -> None:
    """Write what stands in two lists, behind the first nodes and entries, and between them in pieces, into two arrays."""
    numbers = listed([n for piece in pieces for n in piece[:4]], np.int64)
    of_types, of_args = np.empty((2, 3 * len(pieces) + 3), np.int64)
    places = np.empty((len(pieces), 2), np.int64)
    _arrange(numbers, nodes, entries, len(types_list), len(args_list), of_types, of_args, places)
    copy_list(types_list, types, of_types)
    copy_list(args_list, args, of_args)
    kinds = {piece[4].__class__ for piece in pieces}
    for kind in kinds:
        if len(kinds) == 1:
            kind.write_all(types, args, places, [piece[4] for piece in pieces])
        else:
            chosen = [k for k, piece in enumerate(pieces) if piece[4].__class__ is kind]
            kind.write_all(types, args, places[chosen], [pieces[k][4] for k in chosen])


# Lists ----------------------------------------------------------------------------------------------------------------

# Functions of Python, which compiled code calls by name as Numba does itself.
_function: Any = numba_types.ExternalFunction
_item = _function("PyList_GetItem", signature(numba_types.intp, numba_types.intp, numba_types.intp))
_integer = _function("PyLong_AsLongLong", signature(numba_types.int64, numba_types.intp))
_failed = _function("PyErr_Occurred", signature(numba_types.intp))
_clear = _function("PyErr_Clear", signature(numba_types.void))


@compiled(gil=True)
def _read(source: Any, out: Any, segments: Any) -> bool:
    """Copy segments of a list, given by its id: for each (place in the list, place in `out`, length).

    False if an entry is none that NumPy would take. 5 ns an entry; NumPy looks at each twice, and takes 16 to 20.
    """
    for k in range(0, segments.size, 3):
        start, at = segments[k], segments[k + 1]
        for i in range(segments[k + 2]):
            value = _integer(_item(source, start + i))
            if value == -1 and _failed() != 0:
                _clear()
                return False
            out[at + i] = value
            if out[at + i] != value:
                return False
    return True


def copy_list(source: list[int], out: np.ndarray, segments: np.ndarray) -> None:
    """Copy segments of a list of integers into an array, see `_read`."""
    if not (_read(id(source), out, segments) if native is None else native.copy(source, out, segments)):
        for start, at, length in segments.reshape(-1, 3).tolist():
            out[at : at + length] = source[start : start + length]  # which says what is wrong


def listed(numbers: list[int], dtype: Any) -> np.ndarray:
    """Return an array of a list of integers."""
    out = np.empty(len(numbers), dtype)
    copy_list(numbers, out, np.array((0, 0, len(numbers)), np.int64))
    return out

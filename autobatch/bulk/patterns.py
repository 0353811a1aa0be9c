"""What one call of a function records, learned from two calls.

Two calls on different inputs are recorded in the ordinary way and compared, entry by entry:

    SAME     equal in both: a parameter, a number
    INPUT    an argument of the call, by its position among the inputs
    OWN      a node of the call itself, by its position in the call
    COLUMN   an integer of the call (a label), by the position of its column

An entry that is none of these has no pattern, and calls have to be recorded one by one: the function draws random numbers, or
does not do the same each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autobatch.expression import Expression
from autobatch.graph import IMMEDIATES, RECORDED, TYPES, Graph

SAME, INPUT, OWN, COLUMN = range(4)


class Call(NamedTuple):
    """What one call recorded."""

    base: int  # its first node
    types: list[int]
    entries: list[int]
    inputs: list[int]  # numbers of its inputs
    integers: list[int]
    results: list[int]


class Pattern(NamedTuple):
    """What every call records, with positions counted from its first node."""

    types: list[int]
    kinds: list[int]
    values: list[int]
    results: list[int]
    result_types: list[int]

    def entries(self, base: NDArray[np.int64], inputs: Sequence[NDArray[np.int32]], columns: Sequence[NDArray[np.int32]]
                ) -> NDArray[np.int32]:  # fmt: skip
        """Return the entries of calls whose first nodes are given: (calls, entries)."""
        out = np.empty((base.size, len(self.kinds)), np.int32)
        for e, (kind, value) in enumerate(zip(self.kinds, self.values, strict=True)):
            if kind == SAME:
                out[:, e] = value
            elif kind == OWN:
                out[:, e] = base + value
            else:
                out[:, e] = (inputs if kind == INPUT else columns)[value]
        return out


def mark(graph: Graph) -> tuple[int, int, int]:
    """Return where a call begins, for `call_since`."""
    return len(graph.recorded_types), len(graph.recorded_args), len(graph.pieces)


def call_since(
    graph: Graph,
    start: tuple[int, int, int],
    inputs: Sequence[int],
    integers: Sequence[int],
    results: Sequence[Expression],
) -> Call | None:
    """Return what was recorded since a `mark`; None if some of it was recorded in bulk."""
    if len(graph.pieces) != start[2]:
        return None
    own = graph.recorded_types[start[0] :], graph.recorded_args[start[1] :]
    return Call(start[0], *own, list(inputs), list(integers), [e.index for e in results])


def learn(a: Call | None, b: Call | None) -> Pattern | None:
    """Return the pattern of two calls; None if there is none."""
    if a is None or b is None or a.types != b.types or len(a.entries) != len(b.entries):
        return None
    if len(set(a.inputs)) != len(a.inputs) or len(set(b.inputs)) != len(b.inputs):
        return None
    kinds, values, at = [], [], 0
    for number in a.types:
        arguments = int(TYPES.info[number, RECORDED])
        for k in range(arguments + int(TYPES.info[number, IMMEDIATES])):
            x, y = a.entries[at], b.entries[at]
            at += 1
            if k >= arguments:
                columns = [c for c, pair in enumerate(zip(a.integers, b.integers, strict=True)) if pair == (x, y)]
                if x != y and len(columns) == 1:
                    kinds.append(COLUMN)
                    values.append(columns[0])
                    continue
            elif x in a.inputs and y in b.inputs and a.inputs.index(x) == b.inputs.index(y):
                kinds.append(INPUT)
                values.append(a.inputs.index(x))
                continue
            elif x >= a.base and x - a.base == y - b.base:
                kinds.append(OWN)
                values.append(x - a.base)
                continue
            if x != y:
                return None
            kinds.append(SAME)
            values.append(x)
    results = [r - a.base for r in a.results]
    if results != [r - b.base for r in b.results] or min(results) < 0:
        return None
    return Pattern(a.types, kinds, values, results, [a.types[r] for r in results])

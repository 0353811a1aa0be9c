"""Many expressions of one shape as one object."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autobatch.execute import execution_of
from autobatch.expression import Expression, Node, check_expression, describe, owner
from autobatch.functions.arithmetic import esum
from autobatch.graph import TYPES, Graph, current_graph, graph_of
from autobatch.kernels._errors import ArgumentError, IndexRangeError, OperandError, ShapeError
from autobatch.kernels._op import Shape
from autobatch.params import LookupParameters
from autobatch.recorder import nodes

_new = object.__new__
_FAN = 16  # expressions that one node of a long sum adds


class Expressions:
    """Many expressions of one shape, of one graph: their numbers in an array.

    Made by `rows`, `each`, `scan` and `tree`, or of a list of expressions. An index gives one `Expression`; a slice, a list
    or an array of indices gives `Expressions`. ``len`` counts them, ``+`` joins.

    Parameters
    ----------
    es : expressions, at least one.

    Raises
    ------
    OperandError, ArgumentError, ShapeError : no list of expressions; of different graphs, or shapes.
    """

    __slots__ = ("graph", "indices", "type")

    graph: Graph
    indices: NDArray[np.int32]
    type: int  # a node type of their shape

    def __init__(self, es: Sequence[Expression]) -> None:
        if isinstance(es, Expression) or not isinstance(es, (list, tuple)) or not es:
            raise OperandError(f"Expressions: {describe(es)}\n  expected  a list of expressions, at least one")
        for k, e in enumerate(es, 1):
            check_expression("Expressions", e, k)
        self.graph = owner("Expressions", es)
        shapes = {TYPES.records[e.type].shape for e in es}
        if len(shapes) > 1:
            raise ShapeError("Expressions: the shapes differ\n  got       " + "  ".join(sorted(map(str, shapes))))
        if any(e.graph is None for e in es):
            raise OperandError("Expressions: a parameter is among them\n  expected  expressions of the graph")
        self.indices = np.fromiter((e.index for e in es), np.int32, len(es))
        self.type = es[0].type

    def __len__(self) -> int:
        return self.indices.size

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, (slice, list, np.ndarray)):
            return expressions(self.graph, self.type, self.indices[at])
        try:
            index = self.indices[operator.index(at)]
        except IndexError:
            raise IndexRangeError(f"Expressions: index {at}\n  expected  below {len(self)}") from None
        e = _new(Node)
        e.graph, e.index, e.type = graph_of(self.graph, "this expression").top, int(index), self.type
        return e

    def __iter__(self) -> Iterator[Expression]:
        top = graph_of(self.graph, "this expression").top
        return iter(nodes(Node, top, self.indices.tolist(), self.type))

    def __add__(self, other: Expressions) -> Expressions:
        if not isinstance(other, Expressions):
            return NotImplemented
        if other.graph is not self.graph:
            raise ArgumentError("+ of Expressions of different graphs")
        if other.shape != self.shape:
            raise ShapeError(f"+ of Expressions of different shapes\n  got       {self.shape}  {other.shape}")
        return expressions(self.graph, self.type, np.concatenate([self.indices, other.indices]))

    @property
    def shape(self) -> Shape:
        """Shape of each."""
        return TYPES.records[self.type].shape

    def dim(self) -> tuple[tuple[int, ...], int]:
        """Return ``(dims, batch size)`` of each, as `Expression.dim`."""
        return self.shape.dims, self.shape.batch

    def npvalue(self) -> NDArray[np.float64]:
        """Return the values as a float64 array: of shape (N, dims) or, for minibatches of B, (N, dims, B)."""
        graph, shape = graph_of(self.graph, "this expression"), self.shape
        dims = shape.dims if shape.batch == 1 else (*shape.dims, shape.batch)
        out = np.empty((len(self), shape.total))
        if len(self):
            execution = execution_of(graph)
            execution.forward(graph, int(self.indices.max()), self.indices.tolist())
            for k, index in enumerate(self.indices.tolist()):
                out[k] = execution.value_of(index, shape.total)
        return out.reshape(len(self), *dims[::-1]).transpose(0, *range(len(dims), 0, -1))

    def sum(self) -> Expression:
        """Return their sum, one expression. (`esum` of a list of them, without making the list.)"""
        if not len(self):
            raise ArgumentError("sum() of no expressions")
        graph, level = graph_of(self.graph, "this expression"), self
        while len(level) > 1:
            whole = len(level) // _FAN * _FAN if len(level) >= _FAN else 0
            rest = level[whole:]
            above = [] if not len(rest) else [esum(list(rest)) if len(rest) > 1 else rest[0]]
            if whole:
                kind = esum(list(level[:_FAN]))
                more = whole // _FAN - 1
                entries = level.indices[_FAN:whole]
                first = graph.extend([kind.type], more, entries)
                made = np.concatenate([[kind.index], np.arange(first, first + more), [e.index for e in above]])
                computed(graph)
                level = expressions(graph, kind.type, made.astype(np.int32))
            else:
                return above[0]
        return level[0]  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<{len(self)} expressions of shape {self.shape}>"


def expressions(graph: Graph, kind: int, indices: NDArray[Any]) -> Expressions:
    """Return the expressions of nodes that are there."""
    made = _new(Expressions)
    made.graph, made.type, made.indices = graph, kind, indices
    return made


def computed(graph: Graph) -> None:
    """Compute what was recorded in bulk, in a graph that computes at once."""
    if graph.immediate:
        execution_of(graph).forward(graph, len(graph.recorded_types) - 1)


def as_integers(values: Any) -> NDArray[Any] | None:
    """Return integers as an array; None if they are none, or ragged."""
    if isinstance(values, (str, bytes, Expression, Expressions)):
        return None
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError):
        return None
    return array if array.dtype.kind in "iu" else None


def rows(table: LookupParameters, indices: ArrayLike, update: bool = True) -> Expressions:
    """Return rows of a table, as ``[table[i] for i in indices]`` would.

    Parameters
    ----------
    table : of look-up parameters.
    indices : integers, an array or a list of any shape, read in C order.
    update : whether they train.

    Raises
    ------
    OperandError : no table, or no integers. IndexRangeError : an index that is not in the table.
    """
    if not isinstance(table, LookupParameters):
        raise OperandError(f"rows: {describe(table)}\n  expected  LookupParameters")
    given = as_integers(indices)
    if given is None or not given.size:
        raise OperandError(f"rows: {describe(indices)}\n  expected  integers, at least one")
    at = given.ravel()
    low, high = int(at.min()), int(at.max())
    if low < 0 or high >= table.dims[-1]:
        raise IndexRangeError(f"rows: index {low if low < 0 else high}\n  expected  from 0 to {table.dims[-1] - 1}")
    graph = current_graph()
    first = table.row(int(at[0]), update)
    index = graph.extend([first.type], at.size - 1, at[1:].astype(np.int32))
    computed(graph)
    numbers = np.arange(index - 1, index - 1 + at.size, dtype=np.int32)
    numbers[0] = first.index
    return expressions(graph, first.type, numbers)


__all__ = ["Expressions", "as_integers", "computed", "expressions", "rows"]

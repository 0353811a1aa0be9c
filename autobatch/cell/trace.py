"""Runs the function of a cell once, on stand-ins, and writes down what it records."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from autobatch import seeds
from autobatch.expression import Expression, append, describe, input_type
from autobatch.graph import BACK, IMMEDIATES, RECORDED, START, TYPES, Graph
from autobatch.kernels._errors import TraceError
from autobatch.kernels._op import Shape


class _NoExecution:
    """Stands where the values of a graph would be: there are none while a cell is traced."""

    done = flushed = 0

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, _: str) -> NoReturn:
        raise TraceError(
            f"cell {self._name}: it asks for a value or a gradient while it is traced, when there is none\n"
            "  try       return the expression, and ask outside of the cell; or a plain function in place of a cell"
        )


class Trace(Graph):
    """The graph that a cell's function records into, once for each signature."""

    __slots__ = ("constants", "name")
    hint = "\n  try       inside of a cell, nothing but its arguments and parameters: pass the expression as an argument"
    stale = (
        "it stood for a value inside of a cell while that was traced\n"
        "  try       return it from the cell, and take what the call returns"
    )

    def __init__(self, name: str, dtype: str) -> None:
        super().__init__(dtype, "none")
        self.name = name
        self.constants: list[np.ndarray] = []  # numbers of the inputs, by their immediate; the arguments come first
        self.execution = _NoExecution(name)
        self.seal()

    def add_input(self, values: np.ndarray) -> tuple[int, np.ndarray]:
        """Take numbers as a constant of the cell."""
        kept = np.array(values, np.float64)
        self.constants.append(kept)
        return len(self.constants) - 1, kept

    def add_filled(self, count: int, value: float) -> int:
        """Take the same number `count` times as a constant of the cell."""
        return self.add_input(np.full(count, value))[0]

    def add_given(self, values: np.ndarray) -> NoReturn:
        """Refuse an input: its numbers would be those of the first call forever."""
        raise TraceError(
            f"cell {self.name}: it makes an input of its own, whose numbers would stay those of the first call\n"
            "  try       make the input outside, and pass it as an argument; numbers (2.0 * x) and zeros() are fine inside"
        )

    def reading(self, other: Graph | None) -> NoReturn:
        """Refuse a value from elsewhere: it would stay that of the first call."""
        what = "a value from outside of the cell" if other is not None else "the value of a parameter"
        raise TraceError(
            f"cell {self.name}: it asks for {what}, which would stay that of the first call\n"
            "  try       pass what depends on it as an argument: a number is static, an expression is not"
        )

    def drop(self) -> NoReturn:
        """Refuse `renew_cg`."""
        raise TraceError(f"cell {self.name}: it drops the graph it is called in\n  try       renew_cg() before the call")

    def enter(self, parameter: Any, rows: bool = False) -> None:
        """Take note of a parameter; refuse rows of a table."""
        if rows:
            raise TraceError(
                f"cell {self.name}: it looks up a row, whose index would stay that of the first call\n"
                "  try       look it up outside, and pass the vector as an argument"
            )
        super().enter(parameter)


class Traced(NamedTuple):
    """What a function recorded: nodes as (type, arguments and immediates), the first `inputs` of them its arguments."""

    inputs: int
    nodes: list[tuple[int, list[int]]]
    outputs: list[int]
    constants: list[np.ndarray]
    parameters: list[Any]
    result: Any  # what it returned, with positions in `outputs`, `Given` and parameters in place of expressions


def trace(name: str, function: Callable[[Sequence[Expression]], Any], shapes: Sequence[Shape], dtype: str) -> Traced:
    """Run `function` on stand-ins of these shapes.

    Raises
    ------
    TraceError : it does what a cell cannot do, or returns something else than expressions of its own.
    """
    graph = Trace(name, dtype)
    try:
        with graph, seeds.refused(_random(name)):
            stands = [append(graph, input_type(shape), (k,)) for k, shape in enumerate(shapes)]
            graph.constants += [np.empty(0)] * len(shapes)
            returned = function(stands)
            outputs: list[int] = []
            result = _structure(name, graph, len(shapes), returned, outputs)
        if empty(result):
            raise TraceError(f"cell {name}: it returns no expression{_EXPECTED}")
        types, args = graph.recorded_types, graph.all_args()
        nodes: list[tuple[int, list[int]]] = []
        at = 0
        for number in types:
            count, back = int(TYPES.info[number, RECORDED] + TYPES.info[number, IMMEDIATES]), int(TYPES.info[number, BACK])
            entries = [len(nodes) - back, int(TYPES.info[number, START])] if back else args[at : at + count]
            nodes.append((number, entries))
            at += count
        return Traced(len(shapes), nodes, outputs, graph.constants, list(graph.parameters), result)
    except RecursionError:
        raise TraceError(
            f"cell {name}: it calls itself, and does not come to an end\n"
            "  try       an argument that is static and ends it (a depth); or a plain function that recurs, around a cell"
        ) from None
    finally:
        graph.execution = None
        Graph.drop(graph)


def _random(name: str) -> Exception:
    return TraceError(
        f"cell {name}: it draws random numbers, and all calls would share them\n"
        "  try       dropout or noise outside of the cell; a mask can be an argument"
    )


class Given(NamedTuple):
    """Stands in a result for an argument that the function returns as it is."""

    position: int


def _structure(name: str, graph: Trace, inputs: int, returned: Any, outputs: list[int]) -> Any:
    """Return what a function returned with positions in `outputs` in place of expressions; parameters stay."""

    def part(value: Any) -> Any:
        if not isinstance(value, Expression):
            raise TraceError(f"cell {name}: it returns {describe(value)}{_EXPECTED}")
        if value.graph is None:
            return value
        if value.graph is not graph:
            raise TraceError(
                f"cell {name}: it returns an expression from outside of the cell\n  try       pass it as an argument"
            )
        if value.index < inputs:
            return Given(value.index)
        if value.index not in outputs:
            outputs.append(value.index)
        return outputs.index(value.index)

    return rebuilt(returned, part)


def empty(result: Any) -> bool:
    """Whether there is no expression in a result."""
    found: list[Any] = []
    rebuilt(result, found.append)
    return not found


def rebuilt(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return the same tuples, lists and dicts with `leaf(x)` in place of each x in them."""
    if isinstance(value, (tuple, list)) and not isinstance(value, Given):
        parts = [rebuilt(v, leaf) for v in value]
        if type(value) is list:
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        made = copy.copy(value)
        made.update({k: rebuilt(v, leaf) for k, v in value.items()})
        return made
    return leaf(value)


_EXPECTED = "\n  expected  an expression, or a tuple, list or dict of expressions"

"""Runs the function of a cell once, on stand-ins, and writes down what it records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from autobatch import seeds
from autobatch.expression import Expression, append, input_type
from autobatch.graph import ARGUMENTS, IMMEDIATES, TYPES, Graph
from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._op import Shape


class TraceError(ArgumentError):
    """A function that cannot be a cell: the message names what it did, and what to do instead."""


class _NoExecution:
    """Stands where the values of a graph would be: there are none while a cell is traced."""

    done = flushed = 0

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, _: str) -> NoReturn:
        raise TraceError(
            f"cell {self._name}: it asks for a value or a gradient, and has none: it runs once, on stand-ins, and is then recorded\n"
            "  as one node\n"
            "  try       return the expression, and ask for the value outside of the cell; or a plain function in place of a cell"
        )


class Trace(Graph):
    """The graph that a cell's function records into, once for each signature."""

    __slots__ = ("constants", "name")
    hint = "\n  try       inside of a cell, nothing but its arguments and parameters: pass the expression as an argument"

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

    def add_given(self, values: np.ndarray) -> NoReturn:
        """Refuse an input: its numbers would be those of the first call forever."""
        raise TraceError(
            f"cell {self.name}: it makes an input of its own, whose numbers would stay those of the first call\n"
            "  try       make the input outside, and pass it as an argument; numbers (2.0 * x) and zeros() are fine inside"
        )

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
    result: Any  # structure of what it returned, with expressions replaced by their position in `outputs`


def trace(name: str, function: Callable[[Sequence[Expression]], Any], shapes: Sequence[Shape], dtype: str) -> Traced:
    """Run `function` on stand-ins of these shapes.

    Raises
    ------
    TraceError : it does what a cell cannot do, or returns something else than expressions of its own.
    """
    graph = Trace(name, dtype)
    with graph, seeds.refused(_random(name)):
        stands = [append(graph, input_type(shape), (k,)) for k, shape in enumerate(shapes)]
        graph.constants += [np.empty(0)] * len(shapes)
        returned = function(stands)
        outputs: list[int] = []
        result = _structure(name, graph, returned, outputs)
    if not outputs:
        raise TraceError(f"cell {name}: it returns no expression\n  expected  an expression, or a tuple or list of expressions")
    types, args = graph.recorded_types, graph.recorded_args
    nodes, at = [], 0
    for number in types:
        count = int(TYPES.info[number, ARGUMENTS] + TYPES.info[number, IMMEDIATES])
        nodes.append((number, args[at : at + count]))
        at += count
    parameters = list(graph.parameters)
    traced = Traced(len(shapes), nodes, outputs, graph.constants, parameters, result)
    graph.execution = None
    graph.drop()
    return traced


def _random(name: str) -> Exception:
    return TraceError(
        f"cell {name}: it draws random numbers, and all calls would share them\n"
        "  try       dropout or noise outside of the cell; a mask can be an argument"
    )


def _structure(name: str, graph: Trace, returned: Any, outputs: list[int]) -> Any:
    """Return what a function returned with expressions replaced by positions in `outputs`."""
    if isinstance(returned, Expression):
        if returned.graph is not None and returned.graph is not graph:
            raise TraceError(
                f"cell {name}: it returns an expression of another graph\n  try       pass that expression as an argument"
            )
        outputs.append(returned.index)
        return len(outputs) - 1
    if isinstance(returned, (tuple, list)):
        parts = [_structure(name, graph, part, outputs) for part in returned]
        if type(returned) in (tuple, list):
            return tuple(parts) if isinstance(returned, tuple) else parts
        return type(returned)(*parts) if hasattr(returned, "_fields") else type(returned)(parts)
    raise TraceError(
        f"cell {name}: it returns {type(returned).__name__}\n  expected  an expression, or a tuple or list of expressions"
    )

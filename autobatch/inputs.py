"""Inputs and constants: numbers that come from outside of the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from autobatch import expression as ex
from autobatch.arguments import _integer, _new_shape, _numbers
from autobatch.expression import Expression, append, is_number
from autobatch.graph import current_graph
from autobatch.kernels._errors import ArgumentError, OperandError, ShapeError
from autobatch.kernels._op import Shape

_new = object.__new__


class InputExpression(Expression):
    """An input whose numbers can be changed with `set`."""

    __slots__ = ("_place",)

    _place: np.ndarray | None

    def set(self, values: Any) -> None:
        """Replace the numbers (flat, column-major) and forget all values of the graph.

        Raises
        ------
        ArgumentError : another count of numbers than the input has (DyNet cuts silently), or an input that is fixed.
        """
        graph = ex.graph_of(self.graph)
        if self._place is None:
            raise ArgumentError("set: this input is fixed\n  try       inputTensor(array, reusable_expr=True)")
        numbers = _numbers("set", [values] if is_number(values) else values).ravel(order="F")
        if numbers.size != self._place.size:
            count = f"{numbers.size} number{'s' if numbers.size != 1 else ''}"
            raise ArgumentError(f"set: {count}\n  expected  {self._place.size}, as the input has")
        self._place[:] = numbers
        if graph.execution is not None:
            graph.execution.invalidate()


def _input(values: np.ndarray, shape: Shape, mutable: bool = True) -> InputExpression:
    if values.size == 0:
        raise ShapeError("an input without numbers\n  expected  at least one number")
    graph = current_graph()
    immediate, place = graph.add_input(values)
    e: InputExpression = append(graph, ex.input_type(shape), (immediate,), InputExpression)
    e._place = place if mutable else None
    return e


def inputTensor(arr: ArrayLike, batched: bool = False, device: str = "", reusable_expr: bool = False) -> InputExpression:
    """Return an input with the numbers of an array.

    Parameters
    ----------
    arr : array or nested list of numbers, 1 to 7 dims; a list of arrays of one shape becomes a minibatch of them.
    batched : whether the last axis is the minibatch.
    reusable_expr : whether `set` may change the numbers later.

    Raises
    ------
    OperandError : no array or list of numbers.
    ShapeError, ArgumentError : empty, ragged, or more than 7 dims.
    """
    if not isinstance(arr, (np.ndarray, list)):
        cure = "\n  try       scalarInput" if is_number(arr) else ""
        raise OperandError(f"inputTensor: {ex.describe(arr)}\n  expected  an array or a list of numbers{cure}")
    if isinstance(arr, list) and arr and all(isinstance(a, np.ndarray) for a in arr):
        if any(a.shape != arr[0].shape for a in arr):
            raise ShapeError("inputTensor: the arrays of the list differ in shape")
        arr, batched = np.stack(arr, axis=-1), True
    array = _numbers("inputTensor", arr)
    if array.ndim == 0:
        raise OperandError("inputTensor: an array without dims\n  try       scalarInput")
    *dims, batch = array.shape if batched else (*array.shape, 1)
    if array.size == 0 or len(dims) > 7:
        raise ShapeError(f"inputTensor: shape {array.shape}\n  expected  1 to 7 dims, at least one number")
    return _input(array.ravel(order="F"), Shape(tuple(dims) or (1,), batch), bool(reusable_expr))


def inputVector(v: ArrayLike, device: str = "") -> InputExpression:
    """Return an input vector with the numbers of a list or array, (n,)."""
    array = _numbers("inputVector", v)
    if array.ndim != 1:
        raise OperandError(f"inputVector: {ex.describe(v)}\n  expected  a list of numbers\n  try       inputTensor")
    return _input(array, Shape((array.size,)))


def vecInput(dim: int, device: str = "") -> InputExpression:
    """Return an input vector of zeros, (dim,), to be filled with `set`."""
    shape = _new_shape("vecInput", _integer("vecInput", "the dim", dim), 1)
    return _input(np.zeros(shape.total), shape)


def scalarInput(s: float, device: str = "") -> InputExpression:
    """Return an input of one number, (1,)."""
    if not is_number(s):
        raise OperandError(f"scalarInput: {ex.describe(s)}\n  expected  a number")
    return _input(np.array([float(s)]), Shape((1,)))


def constant(dim: int | tuple[int, ...], val: float, batch_size: int = 1, device: str = "") -> Expression:
    """Return an expression whose numbers are all `val`."""
    return _constant("constant", dim, val, batch_size)


def _constant(name: str, dim: Any, val: Any, batch_size: Any) -> Expression:
    if isinstance(dim, list):
        raise OperandError(f"{name}: dims {dim} in a list\n  expected  a number or a tuple of numbers")
    shape = _new_shape(name, dim, batch_size)
    value = ex.as_float(name, "the value", val)
    graph = current_graph()
    key = (shape, value if value or not np.signbit(value) else "-0.0")  # 0.0 and -0.0 are equal as keys
    index = graph.zeros.get(key)
    if index is None:
        immediate, _ = graph.add_input(np.full(shape.total, value))
        e: Expression = append(graph, ex.input_type(shape), (immediate,))
        graph.zeros[key] = e.index
        return e
    e = _new(Expression)
    e.graph, e.index, e.type = graph.top, index, ex.input_type(shape)
    return e


def zeros(dim: int | tuple[int, ...], batch_size: int = 1, device: str = "") -> Expression:
    """Return an expression of zeros."""
    return _constant("zeros", dim, 0.0, batch_size)


zeroes = zeros


def ones(dim: int | tuple[int, ...], batch_size: int = 1, device: str = "") -> Expression:
    """Return an expression of ones."""
    return _constant("ones", dim, 1.0, batch_size)

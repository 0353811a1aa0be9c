"""What users hand in, checked: lists of expressions, integers, indices, arrays of numbers, dims.

Each check returns the thing in the form the library works with, or raises an error that names the function, the argument, and
what would have been right.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from autobatch import expression as ex
from autobatch.cuda.interop import to_host
from autobatch.expression import Expression, check_expression
from autobatch.graph import LARGEST, TYPES
from autobatch.integers import as_integer
from autobatch.kernels._errors import (
    ArgumentError,
    EmptyListError,
    IndexRangeError,
    NegativeIndexError,
    OperandError,
    ShapeError,
)
from autobatch.kernels._op import Shape


def _shape(x: Expression) -> Shape:
    return TYPES.records[x.type].shape


def _list(name: str, arguments: Any) -> list[Expression]:
    """Return a non-empty list of expressions; raise as DyNet does."""
    if isinstance(arguments, Expression) or not isinstance(arguments, (list, tuple)):
        raise OperandError(f"{name}: the argument is {ex.describe(arguments)}\n  expected  a list of expressions")
    if not arguments:
        raise EmptyListError(f"{name}: the list of expressions is empty")
    for k, e in enumerate(arguments, 1):
        if not isinstance(e, Expression):
            if e is None:
                raise EmptyListError(f"{name}: element {k} of the list is None\n  expected  an expression")
            check_expression(name, e, k)
    return list(arguments)


def _integer(op: str, what: str, value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        value = int(value)
    try:
        return as_integer(value)
    except TypeError:
        raise OperandError(f"{op}: {what} is {ex.describe(value)}\n  expected  an integer") from None


def _sequence(op: str, what: str, values: Any) -> list[Any]:
    """Return the elements of a list; raise for what is none."""
    if not ex.is_list(values):
        raise OperandError(f"{op}: {what} are {ex.describe(values)}\n  expected  a list of integers")
    return list(values)


def _index(op: str, what: str, value: Any, size: int) -> int:
    """Return an index in [0, size); raise for others."""
    i = _integer(op, what, value)
    if i < 0:
        raise NegativeIndexError(f"{op}: {what} is {i}\n  expected  an index from 0 to {size - 1}")
    if i >= size:
        raise IndexRangeError(f"{op}: {what} is {i}, out of range\n  expected  an index from 0 to {size - 1}")
    return i


def _numbers(op: str, values: Any) -> np.ndarray:
    """Return float64 numbers; raise for what is none."""
    values = to_host(op, values)
    try:
        array = np.asarray(values)
        if array.dtype == object or array.dtype.kind in "USVMmc":
            raise TypeError
        return array.astype(np.float64)
    except (TypeError, ValueError):
        if isinstance(values, (list, tuple)) and not any(isinstance(v, str) for v in values):
            raise ArgumentError(f"{op}: the lists are ragged, or hold something that is no number") from None
        raise OperandError(f"{op}: {ex.describe(values)} is no array of numbers") from None


def _dims(op: str, dim: Any) -> tuple[int, ...]:
    dims = (dim,) if not isinstance(dim, (tuple, list)) else tuple(dim)
    sizes = tuple(_integer(op, "a dim", d) for d in dims)
    if not 1 <= len(sizes) <= 7 or any(d < 1 for d in sizes):
        raise ShapeError(f"{op}: dims {dims}\n  expected  1 to 7 sizes, each at least 1")
    return sizes


def _new_shape(op: str, dim: Any, batch_size: Any) -> Shape:
    """Return the shape of a new node with these dims; raise for what makes no sense."""
    dims, batch = _dims(op, dim), _integer(op, "the batch size", batch_size)
    shape = Shape(dims, batch)
    if batch < 1:
        raise ShapeError(f"{op}: the batch size is {batch}\n  expected  at least 1")
    if shape.total > LARGEST:
        raise ShapeError(f"{op}: {shape} has {shape.total:,} numbers\n  expected  at most {LARGEST:,}")
    return shape

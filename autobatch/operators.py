"""The operators of expressions, in DyNet's meaning: ``*`` is the matrix product; numbers may stand on either side."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from autobatch import expression as ex
from autobatch.arguments import _shape
from autobatch.expression import Expression, Node, check_expression, is_number, record, view
from autobatch.functions.elementwise import _negate, cube, square
from autobatch.functions.elementwise import abs as absolute
from autobatch.functions.linear import _matmul
from autobatch.functions.selection import _PICKS, pick
from autobatch.kernels import select
from autobatch.kernels._errors import ArgumentError, IndexRangeError, OperandError
from autobatch.kernels._op import OPS, Shape
from autobatch.recorder import short
from autobatch.shortcuts import _part

_PICKS_OF_FIRST = _PICKS[0]
_SLICES: dict[Any, tuple[int, int]] = {}  # what a slice of an expression of some type becomes: node type and start


def _operator(symbol: str, name: str, number_name: str | None = None) -> Callable[[Expression, Any], Expression]:
    """Make an operator of an expression with an expression or a number, which becomes an input that nodes of a graph share."""
    op, with_number = OPS[name], OPS[number_name or name]
    table, number_table = op.types, with_number.types.setdefault("number on the right", {})

    def function(self: Expression, other: Any) -> Expression:
        try:
            graph = self.graph
            kind = type(other)
            if kind is Node:
                if other.graph is not graph:
                    if graph is not None:
                        raise KeyError
                    graph = other.graph
                    if self not in graph.parameters:
                        graph.enter(self)
                number = table[self.type][other.type]
                right = other.index
            elif kind is float or kind is int:
                number = number_table[self.type]
                right = graph.numbers[other]
            else:
                number = table[self.type][other.type]
                right = other.index
                if other.graph is not graph:
                    if graph is None:
                        graph = other.graph
                        if self not in graph.parameters:
                            graph.enter(self)
                    elif other.graph is not None:
                        raise KeyError
                    elif other not in graph.parameters:
                        graph.enter(other)
            types = graph.types
            index = len(types)
            types.append(number)
            args = graph.args
            args.append(self.index)
            args.append(right)
        except (AttributeError, KeyError, TypeError):
            if isinstance(other, Expression):
                return record(op, (self, other), key=(self.type, other.type))
            return record(with_number, (self, _operand(symbol, other)), key=("number on the right", self.type))
        e = Node()
        e.graph = graph
        e.index = index
        e.type = number
        return e

    return short("operated", function, table, number_table)


def _reflected(symbol: str, name: str) -> Callable[[Expression, Any], Expression]:
    """Make an operator of a number with an expression on its right."""
    op = OPS[name]
    table = op.types.setdefault("number on the left", {})

    def function(self: Expression, other: Any) -> Expression:
        try:
            graph = self.graph
            number = table[self.type]
            left = graph.numbers[other]
            types = graph.types
            index = len(types)
            types.append(number)
            args = graph.args
            args.append(left)
            args.append(self.index)
        except (AttributeError, KeyError, TypeError):
            key = None if isinstance(other, Expression) else ("number on the left", self.type)  # `x.__rmul__(y)` is no number
            return record(op, (_operand(symbol, other), self), key=key)
        e = Node()
        e.graph = graph
        e.index = index
        e.type = number
        return e

    return short("reflected", function, table)


def _operand(symbol: str, x: Any) -> Any:
    """Return an operand beside an expression: a number, also if it is an array without dims; raise for what is none."""
    if isinstance(x, np.ndarray) and x.ndim == 0 and x.dtype.kind in "biuf":
        return x[()]
    if not isinstance(x, Expression) and not is_number(x):
        cure = "\n  try       inputTensor(array)" if isinstance(x, np.ndarray) else ""
        raise OperandError(f"an expression {symbol} {ex.describe(x)}\n  expected  an expression or a number{cure}")
    return x


_to_power = _operator("**", "pow")


def _power(self: Expression, other: Any) -> Expression:
    if other.__class__ is int or other.__class__ is float:
        if other == 2:
            return square(self)
        if other == 3:
            return cube(self)
    return _to_power(self, other)


# Indices --------------------------------------------------------------------------------------------------------------


def _get(self: Expression, at: Any) -> Expression:
    if type(at) is int:
        try:
            number, size, stride = _PICKS_OF_FIRST[self.type]
            place = at if at >= 0 else at + size
            if not 0 <= place < size:
                raise KeyError
            graph = self.graph
            types = graph.types
            index = len(types)
            types.append(number)
            args = graph.args
            args.append(self.index)
            args.append(place * stride)
        except (AttributeError, KeyError, TypeError):
            pass
        else:
            e = Node()
            e.graph = graph
            e.index = index
            e.type = number
            return e
    elif at.__class__ is slice:
        if not _is_plain(at):
            return _select(self, (at,))
        key = self.type, at.start, at.stop, at.step
        try:
            number, start = _SLICES[key]
            return _part(self, number, start)
        except TypeError:  # what a dropped graph gives, or an index that cannot be a key
            return _select(self, (at,))
        except (AttributeError, KeyError):
            e = _select(self, (at,))
            if e.graph is not None and e.graph.types is not None:
                _SLICES[key] = e.type, e.graph.args[-1]
            return e
    elif at.__class__ is tuple:
        if not all(_is_plain(k) for k in at if k.__class__ is slice):
            return _select(self, at)
        several = self.type, *[(slice, k.start, k.stop, k.step) if k.__class__ is slice else (k.__class__, k) for k in at]
        try:
            number, start = _SLICES[several]
            return _part(self, number, start)
        except TypeError:
            return _select(self, at)
        except (AttributeError, KeyError):
            e = _select(self, at)
            if e.graph is not None and e.graph.types is not None and e.graph.args[-2] == self.index:  # it is one node
                _SLICES[several] = e.type, e.graph.args[-1]
            return e
    elif at is Ellipsis:
        return _select(self, (at,))
    shape = _shape(self)
    return pick(self, _place(shape, at, shape.dims[0]))


def _is_plain(at: slice) -> bool:
    """Whether a slice is of integers: 1.0 and True are equal to 1 as keys, and one of them is no index."""
    start, stop, step = at.start, at.stop, at.step
    return (start is None or type(start) is int) and (stop is None or type(stop) is int) and (step is None or type(step) is int)


def _place(shape: Shape, at: Any, size: int) -> int:
    """Return an index that may count from the end, in [0, size); raise for others."""
    try:
        i = operator.index(at)
    except TypeError:
        expected = "an integer, a slice, or several of them"
        raise OperandError(f"an expression {shape} with the index {ex.describe(at)}\n  expected  {expected}") from None
    if not -size <= i < size:
        raise IndexRangeError(f"index {i} of an expression {shape}\n  expected  from {-size} to {size - 1}")
    return i % size


def _select(self: Expression, at: tuple[Any, ...]) -> Expression:
    """Record ``e[i, a:b:c, ..., j]``: one entry for each dim; one more is for the batch. Dims with an integer vanish."""
    shape = _shape(self)
    full = (*shape.dims, shape.batch)
    entries = list(at)
    if any(entry is Ellipsis for entry in entries):
        where = next(k for k, entry in enumerate(entries) if entry is Ellipsis)
        entries[where : where + 1] = [slice(None)] * (len(shape.dims) - len(entries) + 1)
    if len(entries) > len(full):
        raise IndexRangeError(f"{len(entries)} indices of {shape}\n  expected  at most {len(full)}: its dims, then the batch")
    entries += [slice(None)] * (len(full) - len(entries))
    begins, steps, sizes, dims = [], [], [], []
    for k, (entry, size) in enumerate(zip(entries, full, strict=True)):
        if isinstance(entry, slice):
            begin, end, step = _bounds(shape, entry, size)
            begins.append(begin)
            steps.append(step)
            sizes.append(-(-(end - begin) // step))
            if k < len(shape.dims):
                dims.append(sizes[-1])
        else:
            begins.append(_place(shape, entry, size))
            steps.append(1)
            sizes.append(1)
    start = sum(b * s for b, s in zip(begins, select.strides_of(shape), strict=True))
    attributes = {"steps": tuple(steps), "sizes": tuple(sizes)}
    new = Shape(tuple(dims) or (1,), sizes[-1])
    if select.contiguous(*select.range_walk(shape, **attributes)):
        return view("slice", self, new, start)
    e = record(OPS["strided_select"], (self,), attributes, (start,))
    return e if new == _shape(e) else view("slice", e, new)


def _bounds(shape: Shape, at: slice, size: int) -> tuple[int, int, int]:
    """Return begin, end and step of a slice as Python cuts it to a size; raise if nothing is left, or it runs backwards."""
    text = ":".join("" if v is None else str(v) for v in (at.start, at.stop, at.step)[: 2 if at.step is None else 3])
    try:
        step = 1 if at.step is None else operator.index(at.step)
        if step < 1:
            raise ArgumentError(f"the slice {text} of an expression {shape}\n  expected  a step of at least 1")
        begin, end, step = at.indices(size)
    except TypeError:
        raise OperandError(f"the slice {text} of an expression {shape}\n  expected  integers") from None
    if begin >= end:
        raise ArgumentError(f"the slice {text} of an expression {shape} is empty\n  expected  at least one of {size}")
    return begin, end, step


def _install() -> None:
    """Give `Expression` its operators."""
    operators: dict[str, Any] = {
        "__add__": _operator("+", "add"),
        "__radd__": _reflected("+", "add"),
        "__sub__": _operator("-", "subtract"),
        "__rsub__": _reflected("-", "subtract"),
        "__mul__": _operator("*", "matmul", "cmult"),
        "__rmul__": _reflected("*", "cmult"),
        "__pow__": _power,
        "__rpow__": _reflected("**", "rpow"),
        "__abs__": absolute,
        "__truediv__": _operator("/", "cdiv"),
        "__rtruediv__": _reflected("/", "cdiv"),
        "__matmul__": lambda self, other: _matmul(self, check_expression("@", other)),
        "__rmatmul__": lambda self, other: _matmul(check_expression("@", other), self),
        "__neg__": _negate,
        "__pos__": lambda self: self,
        "__getitem__": short("picked", _get, _PICKS_OF_FIRST, _SLICES),
    }
    for name, function in operators.items():
        setattr(Expression, name, function)


_install()

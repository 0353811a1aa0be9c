"""The operators of expressions, in DyNet's meaning: ``*`` is the matrix product; numbers may stand on either side."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from autobatch import expression as ex
from autobatch.arguments import _shape
from autobatch.expression import Expression, check_expression, is_number, record
from autobatch.functions.elementwise import _negate
from autobatch.functions.linear import _matmul
from autobatch.functions.selection import _PICKS, _range, pick
from autobatch.kernels._errors import IndexRangeError, OperandError
from autobatch.kernels._op import OPS
from autobatch.shortcuts import _part

_new = object.__new__
_SLICES: dict[Any, tuple[int, int]] = {}  # what a slice of an expression of some type becomes: node type and start


def _operator(symbol: str, name: str, number_name: str | None = None) -> Callable[[Expression, Any], Expression]:
    """Make an operator of an expression with an expression or a number, which becomes an input that nodes of a graph share."""
    op, with_number = OPS[name], OPS[number_name or name]
    table, number_table = op.types, with_number.types.setdefault("number on the right", {})

    def function(self: Expression, other: Any) -> Expression:
        kind = other.__class__
        try:
            graph = self.graph
            if kind is float or kind is int:
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
            _operand(symbol, other)
            return record(with_number, (self, other), key=("number on the right", self.type))
        e = _new(Expression)
        e.graph = graph
        e.index = index
        e.type = number
        return e

    return function


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
            _operand(symbol, other)
            return record(op, (other, self), key=("number on the left", self.type))
        e = _new(Expression)
        e.graph = graph
        e.index = index
        e.type = number
        return e

    return function


def _operand(symbol: str, x: Any) -> None:
    if not isinstance(x, Expression) and not is_number(x):
        cure = "\n  try       inputTensor(array)" if isinstance(x, np.ndarray) else ""
        raise OperandError(f"an expression {symbol} {ex.describe(x)}\n  expected  an expression or a number{cure}")


def _get(self: Expression, at: Any) -> Expression:
    if at.__class__ is int and at >= 0:
        try:
            number, size, stride = _PICKS[self.type, 0]
            if at < size:
                return _part(self, number, at * stride)
        except (AttributeError, KeyError, TypeError):
            pass
    elif at.__class__ is slice:
        key = self.type, at.start, at.stop, at.step
        try:
            number, start = _SLICES[key]
            return _part(self, number, start)
        except (AttributeError, KeyError, TypeError):
            e = _get(self, (at,))
            if e.graph is not None and e.graph.types is not None:
                _SLICES[key] = e.type, e.graph.args[-1]
            return e
    shape = _shape(self)
    if isinstance(at, tuple):
        full = (*shape.dims, shape.batch)
        if len(at) > len(full):
            raise IndexRangeError(f"{len(at)} slices of {shape}\n  expected  at most {len(full)}: its dims, then the batch")
        steps, begins, ends = [], [], []
        for k, s in enumerate(at):
            if not isinstance(s, slice):
                what = f"an expression {shape} with the index {ex.describe(s)} among slices"
                raise OperandError(f"{what}\n  expected  slices only\n  try       pick")
            steps.append(1 if s.step is None else s.step)
            begins.append(0 if s.start is None else s.start)
            ends.append(full[k] if s.stop is None else s.stop)
        return _range("slice", self, steps, begins, ends)
    try:
        i = operator.index(at)
    except TypeError:
        expected = "an integer, a slice, or slices"
        raise OperandError(f"an expression {shape} with the index {ex.describe(at)}\n  expected  {expected}") from None
    size = shape.dims[0]
    if not -size <= i < size:
        raise IndexRangeError(f"index {i} of an expression {shape}\n  expected  from {-size} to {size - 1}")
    return pick(self, i % size)


def _install() -> None:
    """Give `Expression` its operators."""
    operators: dict[str, Any] = {
        "__add__": _operator("+", "add"),
        "__radd__": _reflected("+", "add"),
        "__sub__": _operator("-", "subtract"),
        "__rsub__": _reflected("-", "subtract"),
        "__mul__": _operator("*", "matmul", "cmult"),
        "__rmul__": _reflected("*", "cmult"),
        "__truediv__": _operator("/", "cdiv"),
        "__rtruediv__": _reflected("/", "cdiv"),
        "__matmul__": lambda self, other: _matmul(self, check_expression("@", other)),
        "__neg__": lambda self: _negate(self),
        "__pos__": lambda self: self,
        "__getitem__": _get,
    }
    for name, function in operators.items():
        setattr(Expression, name, function)


_install()

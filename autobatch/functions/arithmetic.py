"""Arithmetic: what is computed number by number from several arguments, and sums and means of lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autobatch import expression as ex
from autobatch.arguments import _list, _shape
from autobatch.expression import Expression, check_expression
from autobatch.kernels._op import OPS, Op, wrong
from autobatch.shortcuts import _binary, _nary, _of_list

cmult = _binary("cmult")
cdiv = _binary("cdiv")
bmax = _binary("bmax")
bmin = _binary("bmin")
_add = _binary("add")
_pow = _binary("pow")
_ESUM, _EMAX, _AVERAGE, _LOGSUMEXP = OPS["esum"], OPS["emax"], OPS["average"], OPS["logsumexp"]
MANY = 16  # longer sums are sums of sums, and so on: so that the number of node types does not grow with the lengths of lists


def _of_many(op: Op, exprs: Any, function: Callable[[Any], Expression]) -> Expression:
    """Record an op of a long list as ops of parts of it, and of their results."""
    arguments = _list(op.name, exprs)
    parts: list[Expression] = []
    try:
        while len(arguments) > MANY:
            first = len(parts)
            for i in range(0, len(arguments), MANY):
                parts.append(function(arguments[i : i + MANY]))
            arguments = parts[first:]
        return _nary(op, arguments, op.types)
    except BaseException:
        if parts:
            ex.graph_of(parts[0].graph).undo(parts[0].index)
        raise


@_of_list(_ESUM, _ESUM.types)
def esum(xs: Sequence[Expression]) -> Expression:
    """Return the sum of a list of expressions of the same dims; batch sizes may be 1 and B."""
    if xs.__class__ is not list or len(xs) > MANY:
        return _of_many(_ESUM, xs, esum)
    return _nary(_ESUM, xs, _ESUM.types)


@_of_list(_EMAX, _EMAX.types)
def emax(xs: Sequence[Expression]) -> Expression:
    """Return the largest numbers of a list of expressions of the same dims; batch sizes may be 1 and B (DyNet: equal sizes).

    NaN if any of them is. The gradient goes to the first expression that has the largest number.

    Raises
    ------
    ShapeError : the dims differ, or batch sizes that are not 1.
    EmptyListError : the list is empty.
    """
    if xs.__class__ is not list or len(xs) > MANY:
        return _of_many(_EMAX, xs, emax)
    return _nary(_EMAX, xs, _EMAX.types)


@_of_list(_LOGSUMEXP, _LOGSUMEXP.types)
def logsumexp(xs: Sequence[Expression]) -> Expression:
    """Return log Σ eˣ over a list of expressions of the same dims, number by number; batch sizes may be 1 and B.

    Nothing overflows; where all are -inf so is the result (DyNet: NaN).

    Raises
    ------
    ShapeError : the dims differ, apart from ones at the end.
    EmptyListError : the list is empty.
    """
    if xs.__class__ is not list or len(xs) > MANY:
        return _of_many(_LOGSUMEXP, xs, logsumexp)
    return _nary(_LOGSUMEXP, xs, _LOGSUMEXP.types)


@_of_list(_AVERAGE, _AVERAGE.types)
def average(xs: Sequence[Expression]) -> Expression:
    """Return the mean of a list of expressions of the same dims; batch sizes may be 1 and B."""
    arguments = _list("average", xs)
    if len(arguments) <= MANY:
        return _nary(_AVERAGE, arguments, _AVERAGE.types)
    _AVERAGE.shape(tuple(_shape(e) for e in arguments))
    return esum(arguments) * (1.0 / len(arguments))


def pow(x: Expression, y: Expression | float) -> Expression:
    """Return x to the power of y, one number for each element of the minibatch; batch sizes may be 1 and B (DyNet: y has none).

    As `numpy.power` of floating-point numbers for negative x, 0, infinities and NaN. The gradient of y is Σ g xʸ ln x, where
    x = 0 counts nothing; it is NaN for x < 0. ``x**2`` and ``x**3`` are `square` and `cube`, which is faster.

    Raises
    ------
    ShapeError : y has more than one number.
    """
    return _pow(x, y)


def colwise_add(x: Expression, y: Expression) -> Expression:
    """Return a matrix (r,c) with the vector (r,) added to each of its columns; batch sizes may be 1 and B.

    Raises
    ------
    ShapeError : x has more than two dims, or y is no vector of r numbers.
    """
    of, added = (_shape(check_expression("colwise_add", e, k)) for k, e in enumerate((x, y), 1))
    if len(of.dims) > 2 or added.size != added.dims[0] or of.dims[0] != added.dims[0]:
        raise wrong("colwise_add", f"no column of {of} takes {added}", [of, added], "x (r,c) and a vector (r,)", "x + y")
    return _add(x, y)

"""Arithmetic: what is computed number by number from several arguments, and sums and means of lists."""

from __future__ import annotations

from collections.abc import Sequence

from autobatch import expression as ex
from autobatch.arguments import _list, _shape
from autobatch.expression import Expression
from autobatch.kernels._op import OPS, Op
from autobatch.shortcuts import _binary, _nary

cmult = _binary("cmult")
cdiv = _binary("cdiv")
_ESUM, _AVERAGE, _LOGSUMEXP = OPS["esum"], OPS["average"], OPS["logsumexp"]
MANY = 16  # longer sums are sums of sums: so that the number of node types does not grow with the lengths of lists


def esum(exprs: Sequence[Expression]) -> Expression:
    """Return the sum of a list of expressions of the same dims; batch sizes may be 1 and B."""
    if exprs.__class__ is not list or len(exprs) > MANY:
        return _in_parts(_ESUM, exprs)
    return _nary(_ESUM, exprs, _ESUM.types)


def logsumexp(exprs: Sequence[Expression]) -> Expression:
    """Return log Σ eˣ over a list of expressions of the same dims, number by number; batch sizes may be 1 and B.

    Nothing overflows; where all are -inf so is the result (DyNet: NaN).

    Raises
    ------
    ShapeError : the dims differ, apart from ones at the end.
    EmptyListError : the list is empty.
    """
    if exprs.__class__ is not list or len(exprs) > MANY:
        return _in_parts(_LOGSUMEXP, exprs)
    return _nary(_LOGSUMEXP, exprs, _LOGSUMEXP.types)


def _in_parts(op: Op, exprs: Sequence[Expression]) -> Expression:
    """Record an op of a long list as one of ops of its parts."""
    arguments = _list(op.name, exprs)
    parts: list[Expression] = []
    try:
        while len(arguments) > MANY:
            first = len(parts)
            for i in range(0, len(arguments), MANY):
                parts.append(_nary(op, arguments[i : i + MANY], op.types))
            arguments = parts[first:]
        return _nary(op, arguments, op.types)
    except BaseException:
        if parts:
            ex.graph_of(parts[0].graph).undo(parts[0].index)
        raise


def average(exprs: Sequence[Expression]) -> Expression:
    """Return the mean of a list of expressions of the same dims; batch sizes may be 1 and B."""
    arguments = _list("average", exprs)
    if len(arguments) <= MANY:
        return _nary(_AVERAGE, arguments, _AVERAGE.types)
    _AVERAGE.shape(tuple(_shape(e) for e in arguments))
    return esum(arguments) * (1.0 / len(arguments))

"""Arithmetic: what is computed number by number from several arguments, and sums and means of lists."""

from __future__ import annotations

from collections.abc import Sequence

from autobatch import expression as ex
from autobatch.arguments import _list, _shape
from autobatch.expression import Expression
from autobatch.kernels._op import OPS
from autobatch.shortcuts import _binary, _nary

cmult = _binary("cmult")
cdiv = _binary("cdiv")
_ESUM, _AVERAGE = OPS["esum"], OPS["average"]
MANY = 16  # longer sums are sums of sums: so that the number of node types does not grow with the lengths of lists


def esum(exprs: Sequence[Expression]) -> Expression:
    """Return the sum of a list of expressions of the same dims; batch sizes may be 1 and B."""
    if exprs.__class__ is not list or len(exprs) > MANY:
        arguments = _list("esum", exprs)
        sums: list[Expression] = []
        try:
            while len(arguments) > MANY:
                first = len(sums)
                for i in range(0, len(arguments), MANY):
                    sums.append(_nary(_ESUM, arguments[i : i + MANY], _ESUM.types))
                arguments = sums[first:]
            return _nary(_ESUM, arguments, _ESUM.types)
        except BaseException:
            if sums:
                ex.graph_of(sums[0].graph).undo(sums[0].index)
            raise
    return _nary(_ESUM, exprs, _ESUM.types)


def average(exprs: Sequence[Expression]) -> Expression:
    """Return the mean of a list of expressions of the same dims; batch sizes may be 1 and B."""
    arguments = _list("average", exprs)
    if len(arguments) <= MANY:
        return _nary(_AVERAGE, arguments, _AVERAGE.types)
    _AVERAGE.shape(tuple(_shape(e) for e in arguments))
    return esum(arguments) * (1.0 / len(arguments))

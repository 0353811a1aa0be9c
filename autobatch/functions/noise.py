"""Noise and dropout."""

from __future__ import annotations

from autobatch import expression as ex
from autobatch import seeds
from autobatch.expression import Expression, check_expression, is_number, record
from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._op import OPS

_new = object.__new__


def dropout(x: Expression, p: float) -> Expression:
    """Return x with each number zero with probability p, the others scaled by 1 / (1 - p).

    The mask follows from the random seed and the order of recording, whatever batch the node runs in. It is drawn when the
    node is recorded, so computing the graph again gives the same numbers.

    Raises
    ------
    ArgumentError : p outside of [0, 1] (DyNet does not check).
    """
    try:
        graph = x.graph
        types = graph.types
        number, place = _DROPOUT.types[x.type], graph.numbers[p]
        if not 0 <= p <= 1:
            raise KeyError
        index = len(types)
        types.append(number)
        graph.args += (x.index, place, seeds.draw())
        e = _new(Expression)
        e.graph, e.index, e.type = graph, index, number
        return e
    except (AttributeError, KeyError, TypeError):
        check_expression("dropout", x)
    if not is_number(p) or not 0 <= p <= 1:
        raise ArgumentError(f"dropout: p is {ex.describe(p)}\n  expected  a probability from 0 to 1")
    return record(_DROPOUT, (x, float(p)), {}, (seeds.draw(),), key=(x.type,))


_DROPOUT = OPS["dropout"]

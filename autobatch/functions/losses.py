"""The softmax family and losses."""

from __future__ import annotations

from collections.abc import Sequence

from autobatch.arguments import _index, _integer, _sequence, _shape
from autobatch.expression import Expression, check_expression, record
from autobatch.kernels._op import OPS
from autobatch.shortcuts import _nary, _unary

_new = object.__new__


def softmax(x: Expression, d: int = 0) -> Expression:
    """Return eˣ / Σ eˣ along dim d of a vector or matrix."""
    d = _integer("softmax", "d", d)
    table = OPS["softmax"].types.setdefault(d, {})
    return _nary(OPS["softmax"], [check_expression("softmax", x)], table, {"d": d})


log_softmax = _unary("log_softmax")


def pickneglogsoftmax(x: Expression, v: int) -> Expression:
    """Return -log softmax(x)[v] in nats, (1,), for a vector of scores (n,)."""
    op = OPS["pickneglogsoftmax"]
    try:
        graph = x.graph
        types = graph.types
        number, size = op.types[x.type]
        if v.__class__ is not int or not 0 <= v < size:
            raise KeyError
        index = len(types)
        types.append(number)
        args = graph.args
        args.append(x.index)
        args.append(v)
    except (AttributeError, KeyError, TypeError):
        check_expression("pickneglogsoftmax", x)
        op.shape((_shape(x),))
        size = _shape(x).size
        e = record(op, (x,), {}, (_index("pickneglogsoftmax", "the index", v, size),))
        op.types[x.type] = e.type, size
        return e
    e = _new(Expression)
    e.graph = graph
    e.index = index
    e.type = number
    return e


def pickneglogsoftmax_batch(x: Expression, vs: Sequence[int]) -> Expression:
    """Return -log softmax(x)[v] in nats for each element of a minibatch with its own v, (1,)xB."""
    check_expression("pickneglogsoftmax_batch", x)
    op, shape = OPS["pickneglogsoftmax_batch"], _shape(x)
    vs = _sequence("pickneglogsoftmax_batch", "the indices", vs)
    op.shape((shape,), count=len(vs))
    indices = [_index("pickneglogsoftmax_batch", "an index", v, shape.size) for v in vs]
    return record(op, (x,), {"count": len(indices)}, indices)

"""The softmax family and losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autobatch import expression as ex
from autobatch.arguments import _index, _integer, _sequence, _shape
from autobatch.expression import Expression, Node, check_expression, is_number, record
from autobatch.kernels._errors import ArgumentError, NegativeIndexError, OperandError
from autobatch.kernels._op import OPS
from autobatch.recorder import short
from autobatch.shortcuts import _binary, _of_dim, _unary


@_of_dim("softmax")
def softmax(x: Expression, d: int = 0) -> Expression:
    """Return eˣ / Σ eˣ along dim d of a vector or matrix."""
    d = _integer("softmax", "d", d)
    check_expression("softmax", x)
    return record(OPS["softmax"], (x,), {"d": d}, key=(d, x.type))


_log_softmax = _unary("log_softmax")
_PICKED = OPS["pickneglogsoftmax"]


def log_softmax(x: Expression, restrict: Sequence[int] | None = None) -> Expression:
    """Return x - log Σ eˣ of each column of a vector or matrix, for each element of a minibatch.

    Parameters
    ----------
    restrict : ids of rows. The sum goes over these, and all others become -inf, which passes no gradient. An id that is
        listed twice counts once (in DyNet twice, so that the probabilities do not add up to 1). Calls with different lists of
        the same length run as one batch.

    Raises
    ------
    ArgumentError : an id is out of range, or the list is empty.
    ShapeError : more than two dims.
    """
    if restrict is None:
        return _log_softmax(x)
    check_expression("log_softmax", x)
    op, shape = OPS["restricted_log_softmax"], _shape(x)
    listed = _sequence("log_softmax", "the ids", restrict)
    op.shape((shape,), count=len(listed))
    ids = list(dict.fromkeys(_index("log_softmax", "an id", i, shape.dims[0]) for i in listed))
    return record(op, (x,), {"count": len(ids)}, ids)


sparsemax = _unary("sparsemax")
constrained_softmax = _binary("constrained_softmax")


def sparsemax_loss(x: Expression, ids: Sequence[int] | Sequence[Sequence[int]]) -> Expression:
    """Return the loss of sparsemax for targets that are even on some ids, (1,).

    Its gradient is sparsemax(x) - q with q = 1/k on the k ids, 0 elsewhere; it is 0 where the two agree. (DyNet: in C++ only.)

    Parameters
    ----------
    x : scores, (n,).
    ids : the ids of the target; for a minibatch these are the target of each element, or a list of them for each.

    Raises
    ------
    ArgumentError : an id is out of range or listed twice, a list is empty.
    ShapeError : x is no vector, or there is not one list for each element.
    """
    check_expression("sparsemax_loss", x)
    op, shape = OPS["sparsemax_loss"], _shape(x)
    given = _sequence("sparsemax_loss", "the ids", ids)
    nested = bool(given) and all(ex.is_list(one) for one in given)
    lists = [_sequence("sparsemax_loss", "the ids", one) for one in given] if nested else [given] * shape.batch
    op.shape((shape,), counts=tuple(map(len, lists)))
    checked = [[_index("sparsemax_loss", "an id", i, shape.size) for i in one] for one in lists]
    for one in checked:
        if len(set(one)) < len(one):
            raise ArgumentError(f"sparsemax_loss: an id is listed twice, {one}\n  expected  each id once")
    return record(op, (x,), {"counts": tuple(map(len, checked))}, [i for one in checked for i in one])


def pickneglogsoftmax(x: Expression, v: int) -> Expression:
    """Return -log softmax(x)[v] in nats, (1,), for a vector of scores (n,)."""
    try:
        graph = x.graph
        types = graph.types
        number, size = _PICKED.types[x.type]
        if v.__class__ is not int or not 0 <= v < size:
            raise KeyError
        index = len(types)
        types.append(number)
        args = graph.args
        args.append(x.index)
        args.append(v)
    except (AttributeError, KeyError, TypeError):
        check_expression("pickneglogsoftmax", x)
        _PICKED.shape((_shape(x),))
        size = _shape(x).size
        e = record(_PICKED, (x,), {}, (_index("pickneglogsoftmax", "the index", v, size),))
        _PICKED.types[x.type] = e.type, size
        return e
    e = Node()
    e.graph = graph
    e.index = index
    e.type = number
    return e


pickneglogsoftmax = short("picked", pickneglogsoftmax, _PICKED.types)


def pickneglogsoftmax_batch(x: Expression, vs: Sequence[int]) -> Expression:
    """Return -log softmax(x)[v] in nats for each element of a minibatch with its own v, (1,)xB."""
    check_expression("pickneglogsoftmax_batch", x)
    op, shape = OPS["pickneglogsoftmax_batch"], _shape(x)
    vs = _sequence("pickneglogsoftmax_batch", "the indices", vs)
    op.shape((shape,), count=len(vs))
    indices = [_index("pickneglogsoftmax_batch", "an index", v, shape.size) for v in vs]
    return record(op, (x,), {"count": len(indices)}, indices)


# Hinge losses ---------------------------------------------------------------------------------------------------------


def _number(op: str, what: str, value: Any) -> float:
    """Return a plain number; raise for an expression, which would get no gradient, and all else."""
    if not is_number(value):
        raise OperandError(f"{op}: {what} is {ex.describe(value)}\n  expected  a number")
    return ex.as_float(op, what, value)


def hinge(x: Expression, v: int, m: float = 1.0) -> Expression:
    """Return Σ over i ≠ v of max(0, m - x[v] + x[i]), (1,), for a vector of scores (n,).

    Raises
    ------
    ArgumentError : v is out of range; NegativeIndexError for a negative one.
    ShapeError : x is no vector, or a minibatch (`hinge_batch`).
    """
    op = OPS["hinge"]
    try:
        graph = x.graph
        types = graph.types
        number, size = op.types[x.type]
        place = graph.numbers[m]
        if v.__class__ is not int or not 0 <= v < size:
            raise KeyError
        index = len(types)
        types.append(number)
        graph.args += (x.index, place, v)
    except (AttributeError, KeyError, TypeError):
        check_expression("hinge", x)
        m = _number("hinge", "the margin", m)
        op.shape((_shape(x),))
        size = _shape(x).size
        e = record(op, (x, m), {}, (_index("hinge", "the index", v, size),))
        op.types[x.type] = e.type, size
        return e
    e = Node()
    e.graph = graph
    e.index = index
    e.type = number
    return e


hinge = short("hinged", hinge, OPS["hinge"].types, 1.0)


def hinge_batch(x: Expression, vs: Sequence[int], m: float = 1.0) -> Expression:
    """Return the `hinge` loss of each element of a minibatch with its own index, (1,)xB."""
    check_expression("hinge_batch", x)
    op, shape, m = OPS["hinge_batch"], _shape(x), _number("hinge_batch", "the margin", m)
    vs = _sequence("hinge_batch", "the indices", vs)
    op.shape((shape,), count=len(vs))
    return record(op, (x, m), {"count": len(vs)}, [_index("hinge_batch", "an index", v, shape.size) for v in vs])


def hinge_dim(x: Expression, v: Sequence[int] | Sequence[Sequence[int]], d: int = 0, m: float = 1.0) -> Expression:
    """Return the `hinge` loss along dim d of a matrix of scores (r,c), with an index for each column (d = 0) or row (d = 1).

    The result is (c,) or (r,). For a minibatch the indices are those of each element, or v is a list of such lists.

    Raises
    ------
    ArgumentError : an index is out of range, or their number is wrong; no such dim.
    ShapeError : x is no matrix.
    """
    check_expression("hinge_dim", x)
    op, shape, m = OPS["hinge_dim"], _shape(x), _number("hinge_dim", "the margin", m)
    d = _integer("hinge_dim", "the dim", d)
    out = op.shape((shape,), d=d)
    given = _sequence("hinge_dim", "the indices", v)
    nested = bool(given) and all(ex.is_list(one) for one in given)
    lists = [_sequence("hinge_dim", "the indices", one) for one in given] if nested else [given] * shape.batch
    if len(lists) != shape.batch or any(len(one) != out.size for one in lists):
        got = f"{len(lists)} lists of {sorted({len(one) for one in lists})}" if nested else str(len(given))
        what = "column" if d == 0 else "row"
        raise ArgumentError(
            f"hinge_dim: {got} indices for {shape}\n  expected  {out.size}, one for each {what}, or a list of such lists"
        )
    indices = [_index("hinge_dim", "an index", i, shape.dims[d]) for one in lists for i in one]
    return record(op, (x, m), {"d": d}, indices)


def pairwise_rank_loss(x: Expression, y: Expression, m: float = 1.0) -> Expression:
    """Return max(0, m - x + y), number by number: the score x of what is right is to exceed y by the margin m.

    Equal dims of any rank (DyNet: one row); batch sizes may be 1 and B.
    """
    return _pair("pairwise_rank_loss", x, y, "the margin", m)


# Sums over pairs ------------------------------------------------------------------------------------------------------


def _pair(name: str, x: Expression, y: Expression, what: str, value: float) -> Expression:
    """Record an op of two expressions and a number, the short way if all of them were seen before."""
    op = OPS[name]
    try:
        graph = x.graph
        if y.graph is not graph:
            raise KeyError
        types = graph.types
        number, place = op.types[x.type, y.type], graph.numbers[value]
        index = len(types)
        types.append(number)
        graph.args += (x.index, y.index, place)
    except (AttributeError, KeyError, TypeError):
        check_expression(name, x, 1)
        check_expression(name, y, 2)
        e = record(op, (x, y, _number(name, what, value)))
        op.types[x.type, y.type] = e.type
        return e
    e = Node()
    e.graph = graph
    e.index = index
    e.type = number
    return e


def binary_log_loss(x: Expression, y: Expression) -> Expression:
    """Return -Σ (y log x + (1 - y) log(1 - x)), (1,), for probabilities x and targets y of the same dims.

    One number for each element of a minibatch; batch sizes may be 1 and B. A logarithm counts as at least
    log FLT_MIN = -87.34, in float64 as well, and passes no gradient to x where that bound holds (DyNet: 1/FLT_MIN). The
    gradient by the target is log(1 - x) - log x (DyNet: another, wrong).
    """
    return _binary_log_loss(x, y)


def huber_distance(x: Expression, y: Expression, c: float = 1.345) -> Expression:
    """Return Σ ½ d² where |d| < c and c |d| - ½ c² elsewhere, with d = x - y, (1,).

    Equal dims; one number for each element of a minibatch; batch sizes may be 1 and B.
    """
    return _pair("huber_distance", x, y, "c", c)


def poisson_loss(log_lambda: Expression, x: int | Sequence[int]) -> Expression:
    """Return e**l + log Γ(x + 1) - x l for a count x where e**l of them are expected, (1,).

    Parameters
    ----------
    log_lambda : l, one number (for each element of a minibatch).
    x : the count, or a list of one count for each element; a list makes a minibatch of a single l.

    Raises
    ------
    ArgumentError : a count is negative, or too large to be a 32-bit integer.
    ShapeError : l is more than one number, or the list does not fit its minibatch.
    """
    check_expression("poisson_loss", log_lambda)
    op, shape = OPS["poisson_loss"], _shape(log_lambda)
    listed = _sequence("poisson_loss", "the counts", x) if ex.is_list(x) else [x] * shape.batch
    op.shape((shape,), count=len(listed))
    counts = [_integer("poisson_loss", "a count", k) for k in listed]
    for k in counts:
        if not 0 <= k < 2**31:
            kind = NegativeIndexError if k < 0 else ArgumentError
            raise kind(f"poisson_loss: a count is {k}\n  expected  an integer from 0 to {2**31 - 1}")
    return record(op, (log_lambda,), {"count": len(counts)}, counts)


_binary_log_loss = _binary("binary_log_loss")
l1_distance = _binary("l1_distance")

"""Reductions: over all numbers of a node, over dims, over the minibatch.

A dim that is reduced disappears; if all are, (1,) is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autobatch import expression as ex
from autobatch.arguments import _integer
from autobatch.expression import Expression, Node, check_expression, record
from autobatch.kernels import moments
from autobatch.kernels._errors import NegativeIndexError, OperandError
from autobatch.kernels._op import OPS, Op
from autobatch.recorder import short
from autobatch.shortcuts import _attributed, _of_dim, _unary

sum_elems = _unary("sum_elems")
mean_elems = _unary("mean_elems")
std_elems = _unary("std_elems")
squared_norm = _unary("squared_norm")
l2_norm = _unary("l2_norm")
sum_batches = _unary("sum_batches")
mean_batches = _unary("mean_batches")
std_batches = _unary("std_batches")


# Moments of elements and minibatches ----------------------------------------------------------------------------------


@_of_dim("moment_elems")
def moment_elems(x: Expression, r: int) -> Expression:
    """Return the raw moment Σ xʳ / n of the numbers of each element of the minibatch, (1,).

    Raises
    ------
    ArgumentError : r is below 1.
    """
    return _moment(OPS["moment_elems"], x, r)


@_of_dim("moment_batches")
def moment_batches(x: Expression, r: int) -> Expression:
    """Return the raw moment Σ xʳ / B over the minibatch, of the dims of x.

    Raises
    ------
    ArgumentError : r is below 1.
    """
    return _moment(OPS["moment_batches"], x, r)


def _moment(op: Op, x: Expression, r: int) -> Expression:
    check_expression(op.name, x)
    r = moments.check_power(op.name, _integer(op.name, "the power r", r))
    return record(op, (x,), {"r": r}, key=(r, x.type))


# Over dims ------------------------------------------------------------------------------------------------------------


def sum_dim(x: Expression, d: Sequence[int], b: bool = False, n: int = 0) -> Expression:
    """Return the sum over the dims in the list d, and over the minibatch if b.

    n has no meaning for a sum (as in DyNet). Any rank and any number of dims (DyNet: 3, and 2 of them).

    Raises
    ------
    ShapeError : a dim that x does not have, or one that is named twice (DyNet ends the process).
    """
    if n.__class__ is not int or n < 0:
        _size("sum_dim", n)
    return _over(OPS["sum_dim"], x, d, b, 0)


sum_dim = short("reduced", sum_dim, OPS["sum_dim"].types, 0)


def mean_dim(x: Expression, d: Sequence[int], b: bool, n: int = 0) -> Expression:
    """Return the mean Σ x / n over the dims in the list d, and over the minibatch if b.

    Parameters
    ----------
    n : what to divide by; 0 for the number of numbers. For data padded by zeros: how many numbers are data.

    Raises
    ------
    ShapeError : a dim that x does not have, or one that is named twice.
    NegativeIndexError : n is negative.
    """
    return _over(OPS["mean_dim"], x, d, b, n)


def std_dim(x: Expression, d: Sequence[int], b: bool, n: int = 0) -> Expression:
    """Return the population standard deviation √(Σ (x - μ)² / n) over the dims in the list d, and over the minibatch if b.

    Its gradient is 0 where it is 0 (DyNet: NaN).

    Parameters
    ----------
    n : 0 for the number of numbers. Else as in `mean_dim` and `moment_dim`: √(Σ x² / n - (Σ x / n)²), which for data padded
        by zeros is the deviation of the n numbers that are data. (DyNet ignores it.)

    Raises
    ------
    ShapeError : a dim that x does not have, or one that is named twice.
    NegativeIndexError : n is negative.
    """
    return _over(OPS["std_dim"], x, d, b, n)


def moment_dim(x: Expression, d: Sequence[int], r: int, b: bool, n: int = 0) -> Expression:
    """Return the raw moment Σ xʳ / n over the dims in the list d, and over the minibatch if b.

    Parameters
    ----------
    n : what to divide by; 0 for the number of numbers. For data padded by zeros: how many numbers are data.

    Raises
    ------
    ShapeError : a dim that x does not have, or one that is named twice.
    ArgumentError : r is below 1; NegativeIndexError for a negative n.
    """
    return _over(OPS["moment_dim"], x, d, b, n, r)


def _over(op: Op, x: Expression, d: Any, b: Any, n: Any, r: Any = 0) -> Expression:
    """Record a reduction over dims, by types seen before or after checking everything."""
    if type(n) is int and n >= 0 and type(d) in (list, tuple):
        try:
            graph = x.graph
            types = graph.types
            number = op.types[tuple(d), b, r][n > 0][x.type]
            place = graph.numbers[n] if n else 0
            index = len(types)
            types.append(number)
            args = graph.args
            args.append(x.index)
            if n:
                args.append(place)
        except (AttributeError, KeyError, TypeError):
            pass
        else:
            e = Node()
            e.graph = graph
            e.index = index
            e.type = number
            return e
    check_expression(op.name, x)
    if isinstance(d, Expression) or not (ex.is_list(d) or ex.is_number(d)):
        raise OperandError(f"{op.name}: the dims are {ex.describe(d)}\n  expected  a list of integers")
    dims = tuple(_integer(op.name, "a dim", k) for k in (d if ex.is_list(d) else [d]))
    attributes: dict[str, Any] = {"dims": dims, "batch": bool(b)}
    if op.name == "moment_dim":
        r = attributes["r"] = moments.check_power(op.name, _integer(op.name, "the power r", r))
    n = _size(op.name, n)
    return record(op, (x, float(n)) if n else (x,), attributes, key=((dims, bool(b), r), bool(n), x.type))


def _size(name: str, n: Any) -> int:
    n = _integer(name, "n", n)
    if n < 0:
        raise NegativeIndexError(f"{name}: n is {n}\n  expected  how many numbers are meant, or 0 for all")
    return n


# Along one dim --------------------------------------------------------------------------------------------------------


@_of_dim("cumsum")
def cumsum(x: Expression, d: int = 0) -> Expression:
    """Return the running sum along dim d, of the dims of x. Any rank (DyNet: 3).

    Raises
    ------
    ShapeError : x has no dim d.
    """
    return _along(OPS["cumsum"], x, d)


@_of_dim("max_dim")
def max_dim(x: Expression, d: int = 0) -> Expression:
    """Return the largest numbers along dim d, which vanishes; NaN where there is one. Any rank (DyNet: 3).

    The gradient goes to the first of equal ones.

    Raises
    ------
    ShapeError : x has no dim d.
    """
    return _along(OPS["max_dim"], x, d)


@_of_dim("min_dim")
def min_dim(x: Expression, d: int = 0) -> Expression:
    """Return the smallest numbers along dim d, which vanishes; NaN where there is one. Any rank (DyNet: 3).

    The gradient goes to the first of equal ones.

    Raises
    ------
    ShapeError : x has no dim d.
    """
    return _along(OPS["min_dim"], x, d)


@_of_dim("logsumexp_dim")
def logsumexp_dim(x: Expression, d: int = 0) -> Expression:
    """Return log Σ eˣ along dim d, which vanishes, without overflow; -inf where all are -inf. Any rank (DyNet: 2).

    Raises
    ------
    ShapeError : x has no dim d.
    """
    return _along(OPS["logsumexp_dim"], x, d)


def _along(op: Op, x: Expression, d: Any) -> Expression:
    check_expression(op.name, x)
    d = _integer(op.name, "the dim", d)
    return record(op, (x,), {"d": d}, key=(d, x.type))


def kmax_pooling(x: Expression, k: int, d: int = 1) -> Expression:
    """Return the k largest numbers along dim d in their original order; the size of dim d becomes k.

    Of equal numbers the first are taken. Any rank.

    Raises
    ------
    ShapeError : x has no dim d, or that is smaller than k; ArgumentError for k below 1.
    """
    op = OPS["kmax_pooling"]
    e = _attributed(op, x, (k, d))
    if e is None:
        check_expression("kmax_pooling", x)
        k, d = _integer("kmax_pooling", "k", k), _integer("kmax_pooling", "the dim", d)
        e = record(op, (x,), {"k": k, "d": d}, key=((k, d), x.type))
    return e

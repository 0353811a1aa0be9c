"""Noise and dropout, and inputs of random numbers.

All random numbers follow from the random seed and the order of recording, whatever batches the nodes run in, whatever policy.
They are named by a key that is drawn when the node is recorded, so computing the graph again gives the same numbers; a new node
draws anew. There is no switch for training: who predicts records no dropout.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from autobatch import expression as ex
from autobatch import seeds
from autobatch.arguments import _integer, _new_shape
from autobatch.expression import Expression, Node, check_expression, is_number, record
from autobatch.graph import current_graph
from autobatch.kernels._errors import ArgumentError, OperandError
from autobatch.kernels._op import OPS, Op
from autobatch.recorder import short

# Dropout --------------------------------------------------------------------------------------------------------------


def _dropped(op: Op, table: dict[Any, Any], x: Expression, p: float, attributes: dict[str, Any]) -> Expression:
    try:
        graph = x.graph
        types = graph.types
        number, place = table[x.type], graph.numbers[p]
        if not 0 <= p <= 1:
            raise KeyError
        index, args = len(types), graph.args
        key = seeds.draw()  # when nothing can fail any more: a node takes one key
        types.append(number)
        args.append(x.index)
        args.append(place)
        args.append(key)
    except (AttributeError, KeyError, TypeError):
        check_expression(op.name, x)
    else:
        e = Node()
        e.graph = graph
        e.index = index
        e.type = number
        return e
    e = record(op, (x, _probability(op.name, p)), attributes, (seeds.draw(),))
    table[x.type] = e.type
    return e


def _probability(op: str, p: Any) -> float:
    if p.__class__ is float and 0 <= p <= 1:
        return p  # type: ignore[no-any-return]
    if not is_number(p) or not 0 <= p <= 1:
        raise ArgumentError(f"{op}: p is {ex.describe(p)}\n  expected  a probability from 0 to 1")
    return float(p)


def dropout(x: Expression, p: float) -> Expression:
    """Return x with each number zero with probability p, the others scaled by 1 / (1 - p).

    Any shape; p = 1 gives zeros (DyNet: NaN).

    Raises
    ------
    ArgumentError : p outside of [0, 1] (DyNet does not check).
    """
    return _dropped(_DROPOUT, _DROPOUT.types, x, p, {})


def dropout_dim(x: Expression, d: int, p: float) -> Expression:
    """Return x with all numbers along dim d zero with probability p, or else scaled by 1 / (1 - p).

    One draw decides on all numbers that differ in their index of dim d alone: d = 0 drops whole columns of a matrix. Any shape
    (DyNet: at most three dims).

    Raises
    ------
    ArgumentError : p outside of [0, 1], no such dim.
    """
    if d.__class__ is not int:
        d = _integer("dropout_dim", "the dim", d)
    table = _DROPOUT_DIM.types.get(d)
    if table is None:
        table = _DROPOUT_DIM.types.setdefault(d, {})
    return _dropped(_DROPOUT_DIM, table, x, p, {"d": d})


def dropout_batch(x: Expression, p: float) -> Expression:
    """Return x with whole elements of its minibatch zero with probability p, the others scaled by 1 / (1 - p).

    Raises
    ------
    ArgumentError : p outside of [0, 1].
    """
    return _dropped(_DROPOUT_BATCH, _DROPOUT_BATCH.types, x, p, {})


def block_dropout(x: Expression, p: float) -> Expression:
    """Return all of x, scaled by 1 / (1 - p), or zeros with probability p.

    Each element of a minibatch is kept or dropped by itself, as if it were alone (DyNet takes no minibatch). p = 1 gives zeros.

    Raises
    ------
    ArgumentError : p outside of [0, 1].
    """
    return _dropped(_BLOCK_DROPOUT, _BLOCK_DROPOUT.types, x, p, {})


_DROPOUT, _DROPOUT_DIM = OPS["dropout"], OPS["dropout_dim"]
_DROPOUT_BATCH, _BLOCK_DROPOUT = OPS["dropout_batch"], OPS["block_dropout"]
dropout = short("drawn", dropout, _DROPOUT.types, seeds)
dropout_batch = short("drawn", dropout_batch, _DROPOUT_BATCH.types, seeds)
block_dropout = short("drawn", block_dropout, _BLOCK_DROPOUT.types, seeds)


# Noise, random inputs -------------------------------------------------------------------------------------------------


_LARGEST = sys.float_info.max


def _finite(op: str, what: str, value: Any, least: float = -_LARGEST) -> float:
    """Return a finite number, at least `least`; raise for others."""
    if value.__class__ is float and least <= value <= _LARGEST:
        return value  # type: ignore[no-any-return]
    if not is_number(value):
        raise OperandError(f"{op}: {what} is {ex.describe(value)}\n  expected  a number")
    number = ex.as_float(op, what, value)
    if not math.isfinite(number) or number < least:
        bound = "" if least == -_LARGEST else f", at least {least:g}"
        raise ArgumentError(f"{op}: {what} is {ex.describe(value)}\n  expected  a finite number{bound}")
    return number


def noise(x: Expression, stddev: float) -> Expression:
    """Return x plus normal noise of mean 0 and this standard deviation, of another draw for each number; any shape.

    Raises
    ------
    ArgumentError : stddev is negative or not finite.
    """
    check_expression("noise", x)
    return record(OPS["noise"], (x, _finite("noise", "stddev", stddev, 0.0)), {}, (seeds.draw(),))


def _drawn(op: Op, first: float, second: float, dim: Any, batch_size: Any) -> Expression:
    """Record an input of random numbers, the short way if its shape was seen before and its numbers are in the graph."""
    graph = current_graph()
    try:
        types, numbers = graph.types, graph.numbers
        number, index = op.types[dim, batch_size], len(types)
        # The key of a zero, see `expression.number`.
        entries = numbers[first or (1.0,)], numbers[second or (1.0,)], seeds.draw()
        types.append(number)
        graph.args += entries
        e = Node()
        e.graph, e.index, e.type = graph, index, number
        return e
    except (AttributeError, KeyError, TypeError):
        shape = _new_shape(op.name, dim, batch_size)
    # `+ 0.0`: -0.0 becomes 0.0
    e = record(op, (first + 0.0, second + 0.0), {"dims": shape.dims, "batch": shape.batch}, (seeds.draw(),))
    if dim.__class__ in (int, tuple) and batch_size.__class__ is int:
        op.types[dim, batch_size] = e.type
    return e


def random_normal(dim: int | tuple[int, ...], mean: float = 0.0, stddev: float = 1.0, batch_size: int = 1) -> Expression:
    """Return an expression of normal random numbers with this mean and standard deviation, `dim` x `batch_size`. No gradient.

    Each number is made of 32 random bits: the largest lie 6.3 standard deviations from the mean.

    Raises
    ------
    ArgumentError : mean or stddev is not finite, stddev is negative.
    ShapeError : dims that make no sense.
    """
    mean, stddev = _finite("random_normal", "mean", mean), _finite("random_normal", "stddev", stddev, 0.0)
    return _drawn(OPS["random_normal"], mean, stddev, dim, batch_size)


def random_uniform(dim: int | tuple[int, ...], left: float, right: float, batch_size: int = 1) -> Expression:
    """Return an expression of random numbers that are even between left and right, `dim` x `batch_size`. No gradient.

    Each number is left + (right - left) u, u of 32 random bits (float32: 24) from 0 to below 1; rounding may give `right`.

    Raises
    ------
    ArgumentError : left or right is not finite, right is below left.
    ShapeError : dims that make no sense.
    """
    left = _finite("random_uniform", "left", left)
    right = _finite("random_uniform", "right", right, left)
    return _drawn(OPS["random_uniform"], left, right, dim, batch_size)


def random_bernoulli(dim: int | tuple[int, ...], p: float, scale: float = 1.0, batch_size: int = 1) -> Expression:
    """Return an expression of numbers that are `scale` with probability p, else 0, `dim` x `batch_size`. No gradient.

    Raises
    ------
    ArgumentError : p outside of [0, 1], scale not finite.
    ShapeError : dims that make no sense.
    """
    p, scale = _probability("random_bernoulli", p), _finite("random_bernoulli", "scale", scale)
    return _drawn(OPS["random_bernoulli"], p, scale, dim, batch_size)


def random_gumbel(dim: int | tuple[int, ...], mu: float = 0.0, beta: float = 1.0, batch_size: int = 1) -> Expression:
    """Return an expression of random numbers from the Gumbel distribution, mu - beta log(-log u). No gradient.

    The largest of scores + Gumbel numbers is a sample from softmax(scores). DyNet takes mu = 0 and beta = 1 only.

    Raises
    ------
    ArgumentError : mu or beta is not finite, beta is negative.
    ShapeError : dims that make no sense.
    """
    mu, beta = _finite("random_gumbel", "mu", mu), _finite("random_gumbel", "beta", beta, 0.0)
    return _drawn(OPS["random_gumbel"], mu, beta, dim, batch_size)

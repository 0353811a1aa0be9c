"""Largest and smallest numbers along a dim: one of them, or k in their original order.

    max_dim, min_dim   y = the largest (smallest)    dx of the first that is equal to y += dy
    kmax_pooling       y = the k largest             dx of those that were taken += dy

NaN is larger (smaller) than all numbers, as in NumPy.
"""

import numpy as np

from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, inline, integers, item, kernel
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, wrong
from autobatch.kernels._reduce import along, check_dim, dropped, larger, smaller

# max_dim, min_dim -----------------------------------------------------------------------------------------------------
# sizes: inner, length, outer, 1 for the smallest


@kernel(reductions=True)
def extreme(ins, T):
    """y = the largest, or the smallest, along a dim."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer, least = sizes[0], sizes[1], sizes[2], sizes[3]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for o in range(outer):
            at, to = o * length * inner, o * inner
            if inner == 1:
                best = x[at]
                if least:
                    for j in range(1, length):
                        best = smaller(best, x[at + j])
                else:
                    for j in range(1, length):
                        best = larger(best, x[at + j])
                y[o] = best
            else:
                for j in range(inner):
                    y[to + j] = x[at + j]
                for k in range(1, length):
                    if least:
                        for j in range(inner):
                            y[to + j] = smaller(y[to + j], x[at + k * inner + j])
                    else:
                        for j in range(inner):
                            y[to + j] = larger(y[to + j], x[at + k * inner + j])


@kernel
def extreme_gradient(ins, T):
    """dx of the first number that is y += dy; without ACCUMULATE the rest is zero."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer = sizes[0], sizes[1], sizes[2]
    for i in range(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(outer * length * inner):
                dx[j] = 0
        for o in range(outer):
            for j in range(inner):
                at, best, last = o * length * inner + j, y[o * inner + j], (length - 1) * inner
                k = 0
                while k < last and x[at + k] != best and x[at + k] == x[at + k]:
                    k += inner
                dx[at + k] += dy[o * inner + j]


def _shape(name):
    def rule(shapes, d):
        check_dim(name, shapes[0], d)
        return Shape(dropped(shapes[0].dims, (d,)), shapes[0].batch)

    return rule


def _lower(least):
    def lower(shapes, out, shared, d):
        return Lowering(extreme, (*along(shapes[0], d), least), (Operand(backward=extreme_gradient),))

    return lower


def one_dim(choose):
    """Draw an argument and a dim of it."""
    dims = choose.dims()
    return Sample((Tensor(Shape(dims, choose.batch())), choose.integer(0, len(dims) - 1)))


def along_reference(function):
    """Reference of a reduction along one dim, by a NumPy function of an array and an axis."""

    def reference(x, d=0):
        y = function(x, axis=d)
        return y if y.ndim > 1 else y[None]

    return reference


MAX_DIM = Op(
    name="max_dim",
    doc="The largest along one dim, which vanishes.    dx of the first that is equal to y += dy",
    shape=_shape("max_dim"),
    lower=_lower(0),
    reference=along_reference(np.max),
    samples=one_dim,
    shapes="any -> without dim d",
)
MIN_DIM = Op(
    name="min_dim",
    doc="The smallest along one dim, which vanishes.    dx of the first that is equal to y += dy",
    shape=_shape("min_dim"),
    lower=_lower(1),
    reference=along_reference(np.min),
    samples=one_dim,
    shapes="any -> without dim d",
)


# kmax_pooling ---------------------------------------------------------------------------------------------------------
# sizes: inner, length, outer, k. Of equal numbers the first are taken.


@inline
def _above(a, b):
    """Whether a is larger than b, NaN larger than all numbers."""
    return a > b or (a != a and b == b)


@inline
def _sink(y, to, inner, k, value):
    """Put value in place of the root of the heap y[to::inner] of k numbers, the smallest of which is the root."""
    h = 0
    while True:
        child = 2 * h + 1
        if child >= k:
            break
        if child + 1 < k and _above(y[to + child * inner], y[to + (child + 1) * inner]):
            child += 1
        if not _above(value, y[to + child * inner]):
            break
        y[to + h * inner] = y[to + child * inner]
        h = child
    y[to + h * inner] = value


@inline
def _ties(x, at, inner, length, k, least):
    """How many of the numbers that are equal to the least one taken are among the k."""
    for j in range(length):
        if _above(x[at + j * inner], least):
            k -= 1
    return k


@kernel
def kmax_pooling(ins, T):
    """y = the k largest in their order. A heap of the k largest so far stands in y until the least of them is known."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer, k = sizes[0], sizes[1], sizes[2], sizes[3]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for o in range(outer):
            for c in range(inner):
                at, to = o * length * inner + c, o * k * inner + c
                for j in range(k):
                    y[to + j * inner] = x[at]
                for j in range(1, length):
                    v = x[at + j * inner]
                    if j < k:  # the heap holds j numbers, and sinks them into k places of which the rest is not above them
                        h = j
                        while h > 0 and _above(y[to + (h - 1) // 2 * inner], v):
                            y[to + h * inner] = y[to + (h - 1) // 2 * inner]
                            h = (h - 1) // 2
                        y[to + h * inner] = v
                    elif _above(v, y[to]):
                        _sink(y, to, inner, k, v)
                least = y[to]
                ties, taken = _ties(x, at, inner, length, k, least), 0
                for j in range(length):
                    v = x[at + j * inner]
                    more = _above(v, least)
                    if more or (ties > 0 and not _above(least, v)):
                        ties -= 0 if more else 1
                        y[to + taken * inner] = v
                        taken += 1


@kernel
def kmax_pooling_gradient(ins, T):
    """dx of the numbers that were taken += dy; without ACCUMULATE the rest is zero."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer, k = sizes[0], sizes[1], sizes[2], sizes[3]
    for i in range(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(outer * length * inner):
                dx[j] = 0
        for o in range(outer):
            for c in range(inner):
                at, to = o * length * inner + c, o * k * inner + c
                least = y[to]
                for j in range(1, k):
                    if _above(least, y[to + j * inner]):
                        least = y[to + j * inner]
                ties, taken = _ties(x, at, inner, length, k, least), 0
                for j in range(length):
                    v = x[at + j * inner]
                    more = _above(v, least)
                    if more or (ties > 0 and not _above(least, v)):
                        ties -= 0 if more else 1
                        dx[at + j * inner] += dy[to + taken * inner]
                        taken += 1


def _kmax_shape(shapes, k, d):
    x = shapes[0]
    check_dim("kmax_pooling", x, d)
    if k < 1:
        raise ArgumentError(f"kmax_pooling: k is {k}\n  expected  at least 1")
    if k > x.dims[d]:
        raise wrong("kmax_pooling", f"k is {k} but dim {d} has {x.dims[d]} numbers", [x], f"k from 1 to {x.dims[d]}")
    return Shape((*x.dims[:d], k, *x.dims[d + 1 :]), x.batch)


def _kmax_reference(x, k, d=1):
    order = np.sort(np.argsort(-x, axis=d, kind="stable").take(range(k), axis=d), axis=d)
    return np.take_along_axis(x, order, axis=d)


def _kmax_samples(choose):
    dims = choose.dims()
    d = choose.integer(0, len(dims) - 1)
    return Sample((Tensor(Shape(dims, choose.batch())), choose.integer(1, dims[d]), d))


KMAX_POOLING = Op(
    name="kmax_pooling",
    doc="The k largest along one dim in their original order, of equal ones the first.    dx of those taken += dy",
    shape=_kmax_shape,
    lower=lambda shapes, out, shared, k, d: Lowering(
        kmax_pooling, (*along(shapes[0], d), k), (Operand(backward=kmax_pooling_gradient),)
    ),
    reference=_kmax_reference,
    samples=_kmax_samples,
    shapes="any -> dim d becomes k",
)

"""The larger and the smaller of two numbers, the largest of several, and where in a vector the largest stands.

A NaN makes the result NaN, as in `numpy.maximum`. All of the gradient goes to one argument, also where several are equal.
"""

import math

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._elementwise import broadcast_shape, elementwise
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, argument, inline, integers, item, kernel, number
from autobatch.kernels._lanes import items, lanes, largest, parts, smallest
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, trimmed, two_broadcast, wrong
from autobatch.kernels.arithmetic import _aligned
from autobatch.kernels.rounding import MODES, surrogate

# bmax, bmin -----------------------------------------------------------------------------------------------------------


def _larger(x, z):
    return x if (x > z) | (x != x) else z


def _larger_slope_x(dy, y, x, z):
    return dy if x > z else number(0, dy)


def _larger_slope_z(dy, y, x, z):
    return number(0, dy) if x > z else dy


def _smaller(x, z):
    return x if (x < z) | (x != x) else z


def _smaller_slope_x(dy, y, x, z):
    return dy if x < z else number(0, dy)


def _smaller_slope_z(dy, y, x, z):
    return number(0, dy) if x < z else dy


BMAX = elementwise(
    "bmax",
    "Larger of x and z, with broadcasting (DyNet: equal shapes only).    dx += dy where x > z    dz += dy elsewhere",
    _larger,
    [_larger_slope_x, _larger_slope_z],
    reference=_aligned(np.maximum),
    samples=two_broadcast(),
    shape=broadcast_shape("bmax"),
    path=__file__,
)
BMIN = elementwise(
    "bmin",
    "Smaller of x and z, with broadcasting (DyNet: equal shapes only).    dx += dy where x < z    dz += dy elsewhere",
    _smaller,
    [_smaller_slope_x, _smaller_slope_z],
    reference=_aligned(np.minimum),
    samples=two_broadcast(),
    shape=broadcast_shape("bmin"),
    path=__file__,
)


# emax -----------------------------------------------------------------------------------------------------------------
# sizes: arguments, numbers of one element, batch, then for each argument 1 if it has a batch of its own


@kernel
def emax(ins, T):
    """y = the largest of x, number by number."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    count, size, batch = sizes[0], sizes[1], sizes[2]
    for i in items(n):
        y = item(ins, 0, i, T)
        for k in range(count):
            x = item(ins, 1 + k, i, T)
            for b in parts(batch):
                at, to = b * size if sizes[3 + k] else 0, b * size
                if k == 0:
                    for j in lanes(size):
                        y[to + j] = x[at + j]
                else:
                    for j in lanes(size):
                        y[to + j] = _larger_of(x[at + j], y[to + j])


_larger_of = inline(_larger)


@inline
def _earlier(ins, sizes, k, i, b, j, highest, T):
    """Whether an argument before k has this number."""
    found = False
    for before in range(k):
        x = item(ins, 3 + before, i, T)
        found |= x[(b * sizes[1] if sizes[3 + before] else 0) + j] == highest
    return found


@kernel
def emax_gradient(ins, T):
    """dx = or += dy where x is the first that is y, summed over the batch if x has none."""
    n, sizes, k = ins[ITEMS], integers(ins[SIZES]), argument(ins)
    size, batch = sizes[1], sizes[2]
    for i in items(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3 + k, i, T)
        for b in parts(batch):
            at, to = b * size if sizes[3 + k] else 0, b * size
            add = ins[FLAGS] & ACCUMULATE or (b > 0 and not sizes[3 + k])
            if k == 0:  # vector code, and so for the second argument
                for j in lanes(size):
                    g = dy[to + j] if x[at + j] == y[to + j] else number(0, T)
                    dx[at + j] = dx[at + j] + g if add else g
            elif k == 1:
                before, start = item(ins, 3, i, T), b * size if sizes[3] else 0
                for j in lanes(size):
                    g = dy[to + j] if (x[at + j] == y[to + j]) & (before[start + j] != y[to + j]) else number(0, T)
                    dx[at + j] = dx[at + j] + g if add else g
            else:
                for j in lanes(size):
                    highest = y[to + j]
                    first = x[at + j] == highest and not _earlier(ins, sizes, k, i, b, j, highest, T)
                    g = dy[to + j] if first else number(0, T)
                    dx[at + j] = dx[at + j] + g if add else g


emax.on_card(work=lambda sizes: sizes[1], parts=lambda sizes: sizes[2])
emax_gradient.on_card(work=lambda sizes: sizes[1], parts=lambda sizes: sizes[2] if all(sizes[3 : 3 + sizes[0]]) else 1)


def _emax_shape(shapes):
    if any(trimmed(s.dims) != trimmed(shapes[0].dims) for s in shapes):
        raise wrong("emax", "the dims differ", shapes, "equal dims, equal batch sizes or 1")
    return Shape(shapes[0].dims, common_batch("emax", shapes))


def _emax_lower(shapes, out, shared):
    sizes = (len(shapes), out.size, out.batch, *(int(s.batch > 1) for s in shapes))
    return Lowering(emax, sizes, (Operand(backward=emax_gradient),) * len(shapes))


def _emax_samples(choose):
    dims, batch = choose.dims(), choose.batch()
    return Sample(
        ([Tensor(Shape(dims, batch if choose.integer(0, 2) else 1)) for _ in range(choose.integer(1, 4))],),
    )


def _emax_reference(arguments):
    largest = arguments[0]
    for x in arguments[1:]:
        largest = np.maximum(largest, x)
    return largest


EMAX = Op(
    name="emax",
    doc="Largest of a list of nodes of the same dims, number by number.    dxₖ += dy where xₖ is the first that is y",
    shape=_emax_shape,
    lower=_emax_lower,
    reference=_emax_reference,
    samples=_emax_samples,
    shapes="dims, dims, ... -> dims",
)


# argmax ---------------------------------------------------------------------------------------------------------------
# sizes: length, batch, 1 if the gradient is passed through


@kernel
def argmax(ins, T):
    """y[j] = 1 at the first largest number, or the first NaN; 0 elsewhere."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, batch = sizes[0], sizes[1]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in range(batch):
            at = b * length
            highest = _math.order_of(x[at])
            for j in range(length):
                highest = max(highest, _math.order_of(x[at + j]))
            where = length
            for j in range(length):
                where = min(where, j if _math.order_of(x[at + j]) == highest else length)
            for j in range(length):
                y[at + j] = number(0, x[at])
            y[at + where] = number(1, x[at])


@argmax.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])
def argmax_card(ins, T):
    """The same; which number is the largest, and where, all lanes find out."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, batch = sizes[0], sizes[1]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in parts(batch):
            at = b * length
            highest = number(-math.inf, T)
            for j in lanes(length):
                highest = _larger_of(x[at + j], highest)
            highest = largest(highest)
            where = length
            for j in lanes(length):
                if x[at + j] == highest or (highest != highest and x[at + j] != x[at + j]):
                    where = min(where, j)
            where = smallest(where)
            for j in lanes(length):
                y[at + j] = number(1 if j == where else 0, T)


@kernel
def argmax_gradient(ins, T):
    """dx = or += dy, or 0."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, scale = sizes[0] * sizes[1], number(sizes[2], T)
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        if ins[FLAGS] & ACCUMULATE:
            for j in lanes(size):
                dx[j] += dy[j] * scale
        else:
            for j in lanes(size):
                dx[j] = dy[j] * scale


def _argmax_shape(shapes, straight):
    x = shapes[0]
    if x.size != x.dims[0]:
        raise wrong("argmax", f"{len(x.dims)} dims", [x], "a vector, (n,)", "reshape, or pick a row or column")
    return x


def _argmax_lower(shapes, out, shared, straight):
    return Lowering(argmax, (out.size, out.batch, int(straight)), (Operand(backward=argmax_gradient, needs=()),))


def _argmax_reference(x, gradient_mode):
    return (np.arange(x.shape[0]).reshape(-1, *(1,) * (x.ndim - 1)) == x.argmax(axis=0)).astype(float)


ARGMAX = Op(
    name="argmax",
    doc="1 where the largest number of a vector stands (the first of them), 0 elsewhere.    dx += dy, or nothing",
    shape=_argmax_shape,
    lower=_argmax_lower,
    reference=_argmax_reference,
    surrogate=surrogate,
    samples=lambda choose: Sample((Tensor(Shape(choose.dims(1, 1), choose.batch())), choose.one_of(MODES))),
    shapes="(n,) -> (n,)",
)

"""Ops that copy a part of their argument: pick, ranges, strided slices, transposed axes.

    y[walk] = x[start + walk]        dx[start + walk] += dy[walk]

All of them are one loop with strides; they differ in how they name the part. Where the part lies in one piece and the batch is
1 nothing is copied at all: the node is a view, which `view_start` finds out. The start is an immediate, so that picks of
different elements run as one batch.
"""

import itertools
import math

import numpy as np

from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, immediate, inline, integers, item, kernel
from autobatch.kernels._lanes import items, lanes, meet, quotient
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, wrong

# sizes: numbers of x, numbers of y, starts per node, whether two of these may be one, dims, extents, strides in x; y is walked
# without gaps
_DIMS = 4


@kernel
def select(ins, T):
    """y = the part of x; one start, or one for each element of the batch of y."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    starts, dims, inner, step = sizes[2], sizes[_DIMS], sizes[_DIMS + 1], sizes[_DIMS + 1 + sizes[_DIMS]]
    outer = sizes[1] // inner
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for o in range(outer):
            at = immediate(ins, 2 + (o // (outer // starts)), i)
            rest = o
            for d in range(1, dims):
                at += rest % sizes[_DIMS + 1 + d] * sizes[_DIMS + 1 + dims + d]
                rest //= sizes[_DIMS + 1 + d]
            for j in range(inner):
                y[o * inner + j] = x[at + j * step]


@inline
def _walked(sizes, t):
    """Where in x, from the start on, number t of y stands."""
    dims, o = sizes[_DIMS], quotient(t, sizes[_DIMS + 1])
    at = (t - o * sizes[_DIMS + 1]) * sizes[_DIMS + 1 + dims]
    for d in range(1, dims):
        extent = sizes[_DIMS + 1 + d]
        rest = quotient(o, extent)
        at += (o - rest * extent) * sizes[_DIMS + 1 + dims + d]
        o = rest
    return at


@select.on_card
def select_card(ins, T):
    """A lane takes numbers of y."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    total, each = sizes[1], quotient(sizes[1], sizes[2])
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in lanes(total):
            y[t] = x[immediate(ins, 2 + quotient(t, each), i) + _walked(sizes, t)]


@kernel
def select_gradient(ins, T):
    """The part of dx += dy; without ACCUMULATE the rest of dx is zero."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    starts, dims, inner, step = sizes[2], sizes[_DIMS], sizes[_DIMS + 1], sizes[_DIMS + 1 + sizes[_DIMS]]
    outer = sizes[1] // inner
    for i in range(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(sizes[0]):
                dx[j] = 0
        for o in range(outer):
            at = immediate(ins, 3 + (o // (outer // starts)), i)
            rest = o
            for d in range(1, dims):
                at += rest % sizes[_DIMS + 1 + d] * sizes[_DIMS + 1 + dims + d]
                rest //= sizes[_DIMS + 1 + d]
            for j in range(inner):
                dx[at + j * step] += dy[o * inner + j]


@select_gradient.on_card
def select_gradient_card(ins, T):
    """A lane takes numbers of dy. Of several with one start the first adds them all up: they have one place in dx."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, total, starts, alike = sizes[0], sizes[1], sizes[2], sizes[3]
    each = quotient(total, starts)
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in lanes(size):
                dx[j] = 0
            meet()
        for t in lanes(total):
            s = quotient(t, each)
            start, value, first = immediate(ins, 3 + s, i), dy[t], True
            if alike:
                for k in range(s):
                    first &= immediate(ins, 3 + k, i) != start
                if first:
                    for k in range(s + 1, starts):
                        if immediate(ins, 3 + k, i) == start:
                            value += dy[t + (k - s) * each]
            if first:
                dx[start + _walked(sizes, t)] += value


@kernel
def permute_gradient(ins, T):
    """dx = or += dy, where the walk goes through all of x."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    dims, inner, step = sizes[_DIMS], sizes[_DIMS + 1], sizes[_DIMS + 1 + sizes[_DIMS]]
    outer, add = sizes[1] // inner, ins[FLAGS] & ACCUMULATE
    for i in range(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for o in range(outer):
            at, rest = 0, o
            for d in range(1, dims):
                at += rest % sizes[_DIMS + 1 + d] * sizes[_DIMS + 1 + dims + d]
                rest //= sizes[_DIMS + 1 + d]
            if add:
                for j in range(inner):
                    dx[at + j * step] += dy[o * inner + j]
            else:
                for j in range(inner):
                    dx[at + j * step] = dy[o * inner + j]


@permute_gradient.on_card
def permute_gradient_card(ins, T):
    """A lane takes numbers of dy."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    total, add = sizes[1], ins[FLAGS] & ACCUMULATE
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in lanes(total):
            at = _walked(sizes, t)
            dx[at] = dx[at] + dy[t] if add else dy[t]


# Walks ----------------------------------------------------------------------------------------------------------------


def strides_of(shape):
    """Return the column-major strides of the dims and of the batch."""
    return tuple(itertools.accumulate((1, *shape.dims), lambda a, b: a * b))


def _lowering(x, extents, strides, starts=1):
    """Lower a walk; `extents` and `strides` name the dims of y, its batch last. Starts belong to the slowest dims."""
    kept = [(e, s) for e, s in zip(extents, strides, strict=True) if e > 1] or [(1, 1)]
    if starts > 1 and len(kept) == 1:
        kept.insert(0, (1, 1))  # the batch must not be the inner dim, each element of it has its own start
    if starts > 1:
        kept[-1] = (kept[-1][0], 0)
    total, alike = math.prod(e for e, _ in kept), int(starts > 1 and x.batch == 1)
    sizes = (x.total, total, starts, alike, len(kept), *(e for e, _ in kept), *(s for _, s in kept))
    last = x.total - sum((e - 1) * s for e, s in kept)  # no start may be beyond this, or the walk would leave x
    backward = permute_gradient if total == x.total and starts == 1 else select_gradient
    return Lowering(select, sizes, (Operand(backward=backward, needs=()),), limit=last)


def contiguous(extents, strides):
    """Whether a walk over x takes numbers that lie one after the other."""
    expected = 1
    for extent, stride in zip(extents, strides, strict=True):
        if extent > 1 and stride != expected:
            return False
        expected *= extent
    return True


# pick -----------------------------------------------------------------------------------------------------------------


def _check_dim(op, x, dim, rank=None):
    if not isinstance(dim, int) or not 0 <= dim < len(x.dims):
        raise wrong(op, f"dim {dim} of an argument with {len(x.dims)}", [x], f"dim from 0 to {len(x.dims) - 1}")


def _dropped(dims, dim):
    return dims[:dim] + dims[dim + 1 :] or (1,)


def _pick_shape(shapes, dim):
    _check_dim("pick", shapes[0], dim)
    return Shape(_dropped(shapes[0].dims, dim), shapes[0].batch)


def pick_walk(x, dim):
    """Return extents and strides of `pick` along `dim`."""
    strides = strides_of(x)
    return (*x.dims[:dim], *x.dims[dim + 1 :], x.batch), (*strides[:dim], *strides[dim + 1 :])


def _pick_lower(shapes, out, shared, dim):
    return _lowering(shapes[0], *pick_walk(shapes[0], dim))


def _pick_samples(choose):
    dims, batch = choose.dims(), choose.batch()
    dim = choose.integer(0, len(dims) - 1)
    return Sample((Tensor(Shape(dims, batch)), choose.integer(0, dims[dim] - 1), dim))


PICK = Op(
    name="pick",
    doc="The elements with a given index along one dim, which vanishes.    dx[index] += dy",
    shapes="any, index -> without dim; (n,) -> (1,)",
    shape=_pick_shape,
    lower=_pick_lower,
    reference=lambda x, index, dim: x.take([index] if x.ndim == 2 else index, axis=dim),
    samples=_pick_samples,
)


# pick_batch -----------------------------------------------------------------------------------------------------------


def _pick_batch_shape(shapes, dim, count):
    x = shapes[0]
    _check_dim("pick_batch", x, dim)
    if count == 0:
        raise ArgumentError("pick_batch: the list of indices is empty\n  expected  one index for each element of the minibatch")
    if x.batch not in (1, count):
        raise wrong("pick_batch", f"{count} indices for a minibatch of {x.batch}", [x], "as many indices as batch elements")
    return Shape(_dropped(x.dims, dim), count)


def _pick_batch_lower(shapes, out, shared, dim, count):
    extents, strides = pick_walk(shapes[0], dim)
    return _lowering(shapes[0], (*extents[:-1], count), strides, starts=count)


def _pick_batch_samples(choose):
    dims, batch = choose.dims(), choose.batch()
    dim = choose.integer(0, len(dims) - 1)
    count = batch if batch > 1 else choose.integer(1, 3)
    return Sample((Tensor(Shape(dims, batch)), [choose.integer(0, dims[dim] - 1) for _ in range(count)], dim))


def _pick_batch_reference(x, indices, dim):
    x = np.broadcast_to(x, (*x.shape[:-1], len(indices)))
    picked = [np.atleast_1d(x[..., b].take(i, axis=dim)) for b, i in enumerate(indices)]
    return np.stack(picked, axis=-1)


PICK_BATCH = Op(
    name="pick_batch",
    doc="For each element of the minibatch the elements with its own index along one dim.    dx[index of b] += dy of b",
    shapes="any x B, B indices -> without dim, x B",
    shape=_pick_batch_shape,
    lower=_pick_batch_lower,
    reference=_pick_batch_reference,
    samples=_pick_batch_samples,
)


# ranges and strides ---------------------------------------------------------------------------------------------------


def _range_shape(shapes, steps, sizes):
    return Shape(sizes[:-1], sizes[-1])


def range_walk(x, steps, sizes):
    """Return extents and strides of a strided range; `steps` and `sizes` name all dims and then the batch."""
    return sizes, tuple(s * t for s, t in zip(strides_of(x), steps, strict=True))


def _range_lower(shapes, out, shared, steps, sizes):
    return _lowering(shapes[0], *range_walk(shapes[0], steps, sizes))


def _strided_samples(choose):
    dims, batch = choose.dims(), choose.batch()
    steps, begins, ends = [], [], []
    for size in dims if choose.integer(0, 2) else (*dims, batch):
        steps.append(choose.integer(1, 2))
        begins.append(choose.integer(0, size - 1))
        ends.append(choose.integer(begins[-1] + 1, size))
    return Sample((Tensor(Shape(dims, batch)), steps, begins, ends))


def _strided_reference(x, steps, begins, ends):
    cut = [slice(b, e, s) for s, b, e in zip(steps, begins, ends, strict=True)]
    return x[tuple(cut)]


STRIDED_SELECT = Op(
    name="strided_select",
    doc="A range with a step in each dim, `x[b0:e0:s0, b1:e1:s1, ...]`; one more than dims addresses the batch.",
    shapes="any -> any, smaller",
    shape=_range_shape,
    lower=_range_lower,
    reference=_strided_reference,
    samples=_strided_samples,
)


def _pick_range_samples(choose):
    dims = choose.dims()
    dim = choose.integer(0, len(dims) - 1)
    begin = choose.integer(0, dims[dim] - 1)
    return Sample((Tensor(Shape(dims, choose.batch())), begin, choose.integer(begin + 1, dims[dim]), dim))


PICK_RANGE = Op(
    name="pick_range",
    doc="The elements from `s` to before `e` along one dim, which stays.    dx[s:e] += dy",
    shapes="(...,n,...) -> (...,e-s,...)",
    shape=_range_shape,
    lower=_range_lower,
    reference=lambda x, s, e, d: x[(slice(None),) * d + (slice(s, e),)],
    samples=_pick_range_samples,
)


# transpose ------------------------------------------------------------------------------------------------------------


def _transpose_shape(shapes, dims):
    x = shapes[0]
    padded = x.dims + (1,) * (len(dims) - len(x.dims))
    if sorted(dims) != list(range(len(dims))) or len(padded) != len(dims):
        raise wrong(
            "transpose",
            f"dims {list(dims)} is no permutation of the {len(x.dims)} dims",
            [x],
            "each dim once, [1, 0] for a matrix",
        )
    return Shape(tuple(padded[d] for d in dims), x.batch)


def transpose_walk(x, dims):
    """Return extents and strides of `transpose`."""
    padded = Shape(x.dims + (1,) * (len(dims) - len(x.dims)), x.batch)
    strides = strides_of(padded)
    return (*(padded.dims[d] for d in dims), x.batch), (*(strides[d] for d in dims), strides[-1])


def _transpose_lower(shapes, out, shared, dims):
    return _lowering(shapes[0], *transpose_walk(shapes[0], dims))


def _transpose_samples(choose):
    dims = choose.dims(2, 4)
    order = choose.one_of(list(itertools.permutations(range(len(dims)))))
    return Sample((Tensor(Shape(dims, choose.batch())), list(order)))


TRANSPOSE = Op(
    name="transpose",
    doc="Axes in another order; (n,) becomes (1,n).    dx += dy with the axes back",
    shapes="(r,c) -> (c,r)",
    shape=_transpose_shape,
    lower=_transpose_lower,
    reference=lambda x, dims: x.transpose(*dims, len(dims)),
    samples=_transpose_samples,
)

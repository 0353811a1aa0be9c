"""log Σ eˣ: along a dim, and over a list of nodes.    dxₖ += dy e^(xₖ - y), 0 where y is -inf

The maximum is subtracted first, so nothing overflows. If all numbers are -inf so is the result; as in SciPy.
"""

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, argument, inline, integers, item, kernel, number
from autobatch.kernels._lanes import items, lanes, leader, parts, width
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, trimmed, wrong
from autobatch.kernels._reduce import (
    BLOCK,
    all_exps,
    all_joined,
    along,
    as_spread,
    block,
    by_lane,
    check_dim,
    dropped,
    end_result,
    first_number,
    first_result,
    larger,
    number_step,
    quotient,
    remainder,
    spread_along,
    spread_batch,
    turns,
    with_exp,
)
from autobatch.kernels.extremes import along_reference, one_dim


@inline
def _finite(largest):
    """What to subtract: the maximum, or 0 if that is infinite or NaN."""
    return largest if abs(largest) < number(np.inf, largest) else number(0, largest)


@inline
def _share(x, y):
    """e^(x - y), 0 if y is -inf."""
    return _math.exp(x - (y if y > number(-np.inf, y) or y != y else number(0, y)))


@inline
def _sum_of(highest, total):
    """log Σ eˣ from the largest number and Σ e^(x - largest), which is NaN where the largest is infinite."""
    return _math.log(total) + highest if abs(highest) < number(np.inf, highest) else highest


# Along a dim ----------------------------------------------------------------------------------------------------------
# sizes: inner, length, outer


@kernel(reductions=True)
def logsumexp_dim(ins, T):
    """y = log Σ eˣ along one dim."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer = sizes[0], sizes[1], sizes[2]
    sums = block(T)
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for o in range(outer):
            at, to = o * length * inner, o * inner
            if inner == 1:
                largest, total = x[at], number(0, T)
                for j in range(1, length):
                    largest = larger(largest, x[at + j])
                largest = _finite(largest)
                for j in range(length):
                    total += _math.exp(x[at + j] - largest)
                y[o] = _math.log(total) + largest
                continue
            for j in range(inner):
                y[to + j] = x[at + j]
            for k in range(1, length):
                for j in range(inner):
                    y[to + j] = larger(y[to + j], x[at + k * inner + j])
            for j in range(inner):
                y[to + j] = _finite(y[to + j])
            for c in range(0, inner, BLOCK):
                width = min(BLOCK, inner - c)
                for j in range(width):
                    sums[j] = 0
                for k in range(length):
                    for j in range(width):
                        sums[j] += _math.exp(x[at + k * inner + c + j] - y[to + c + j])
                for j in range(width):
                    y[to + c + j] += _math.log(sums[j])


@logsumexp_dim.on_card(**as_spread(spread_along))
def logsumexp_dim_card(ins, T):
    """One pass over x."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer = sizes[0], sizes[1], sizes[2]
    alone = by_lane(inner, outer, length)
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, inner * outer)):
            r = first_result(alone, t)
            while r < end_result(alone, t, inner * outer):
                at = quotient(r, inner) * length * inner + remainder(r, inner)
                highest, total, k = number(-np.inf, T), number(0, T), first_number(alone)
                while k < length:
                    highest, total = with_exp(highest, total, x[at + k * inner])
                    k += number_step(alone)
                highest, total = all_exps(alone, highest, total)
                if alone or leader():
                    y[r] = _sum_of(highest, total)
                r += width()


@kernel
def logsumexp_dim_gradient(ins, T):
    """dx = or += dy e^(x - y)."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    inner, length, outer = sizes[0], sizes[1], sizes[2]
    for i in range(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for o in range(outer):
            at, to = o * length * inner, o * inner
            if inner == 1:
                g, h = dy[o], y[o]
                if add:
                    for j in range(length):
                        dx[at + j] += g * _share(x[at + j], h)
                else:
                    for j in range(length):
                        dx[at + j] = g * _share(x[at + j], h)
                continue
            for k in range(length):
                f = at + k * inner
                if add:
                    for j in range(inner):
                        dx[f + j] += dy[to + j] * _share(x[f + j], y[to + j])
                else:
                    for j in range(inner):
                        dx[f + j] = dy[to + j] * _share(x[f + j], y[to + j])


@logsumexp_dim_gradient.on_card(**as_spread(spread_along))
def logsumexp_dim_gradient_card(ins, T):
    """The same, spread as the forward kernel."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    inner, length, outer = sizes[0], sizes[1], sizes[2]
    alone = by_lane(inner, outer, length)
    for i in items(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for t in parts(turns(alone, inner * outer)):
            r = first_result(alone, t)
            while r < end_result(alone, t, inner * outer):
                at, g, h, k = quotient(r, inner) * length * inner + remainder(r, inner), dy[r], y[r], first_number(alone)
                while k < length:
                    d = g * _share(x[at + k * inner], h)
                    dx[at + k * inner] = dx[at + k * inner] + d if add else d
                    k += number_step(alone)
                r += width()


def _dim_shape(shapes, d):
    check_dim("logsumexp_dim", shapes[0], d)
    return Shape(dropped(shapes[0].dims, (d,)), shapes[0].batch)


def _reference(x, axis):
    largest = x.max(axis=axis, keepdims=True)
    return np.log(np.exp(x - largest).sum(axis=axis)) + largest.squeeze(axis)


LOGSUMEXP_DIM = Op(
    name="logsumexp_dim",
    doc="log Σ eˣ along one dim, which vanishes.    dx += dy e^(x - y), 0 where y is -inf",
    shape=_dim_shape,
    lower=lambda shapes, out, shared, d: Lowering(
        logsumexp_dim, along(shapes[0], d), (Operand(backward=logsumexp_dim_gradient),)
    ),
    reference=along_reference(_reference),
    samples=one_dim,
    shapes="any -> without dim d",
)


# Of a list ------------------------------------------------------------------------------------------------------------
# sizes: arguments, numbers of one element, batch, then for each argument 1 if it has a batch of its own


@kernel
def logsumexp(ins, T):
    """y = log Σₖ e^xₖ."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    count, size, batch = sizes[0], sizes[1], sizes[2]
    sums = block(T)
    for i in range(n):
        y = item(ins, 0, i, T)
        for b in range(batch):
            for c in range(0, size, BLOCK):
                width, to = min(BLOCK, size - c), b * size + c
                for k in range(count):
                    x, at = item(ins, 1 + k, i, T), (b * size if sizes[3 + k] else 0) + c
                    if k == 0:
                        for j in range(width):
                            y[to + j] = x[at + j]
                    else:
                        for j in range(width):
                            y[to + j] = larger(y[to + j], x[at + j])
                for j in range(width):
                    y[to + j] = _finite(y[to + j])
                    sums[j] = 0
                for k in range(count):
                    x, at = item(ins, 1 + k, i, T), (b * size if sizes[3 + k] else 0) + c
                    for j in range(width):
                        sums[j] += _math.exp(x[at + j] - y[to + j])
                for j in range(width):
                    y[to + j] += _math.log(sums[j])


@logsumexp.on_card(work=lambda sizes: sizes[1], parts=lambda sizes: sizes[2])
def logsumexp_card(ins, T):
    """A lane takes a number of y, from all arguments."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    count, size, batch = sizes[0], sizes[1], sizes[2]
    for i in items(n):
        y = item(ins, 0, i, T)
        for b in parts(batch):
            for j in lanes(size):
                highest, total = number(-np.inf, T), number(0, T)
                for k in range(count):
                    x = item(ins, 1 + k, i, T)
                    highest, total = with_exp(highest, total, x[j + b * size * sizes[3 + k]])
                y[b * size + j] = _sum_of(highest, total)


@kernel
def logsumexp_gradient(ins, T):
    """dx = or += dy e^(x - y), summed over the batch if x has none."""
    n, sizes, own = ins[ITEMS], integers(ins[SIZES]), integers(ins[SIZES])[3 + argument(ins)]
    size, batch = sizes[1], sizes[2]
    for i in range(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for b in range(batch):
            to, at = b * size, b * size if own else 0
            if ins[FLAGS] & ACCUMULATE or (b > 0 and not own):
                for j in range(size):
                    dx[at + j] += dy[to + j] * _share(x[at + j], y[to + j])
            else:
                for j in range(size):
                    dx[at + j] = dy[to + j] * _share(x[at + j], y[to + j])


@logsumexp_gradient.on_card(**as_spread(lambda sizes: spread_batch(sizes[1], sizes[2])))
def logsumexp_gradient_card(ins, T):
    """One number of dx after the other; what has no batch takes a sum over it."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    size, batch, own = sizes[1], sizes[2], sizes[3 + argument(ins)]
    results, count = (size * batch, 1) if own else (size, batch)
    alone = by_lane(results, 1, count)
    for i in items(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for t in parts(turns(alone, results)):
            r = first_result(alone, t)
            while r < end_result(alone, t, results):
                total, b = number(0, T), first_number(alone)
                while b < count:
                    total += dy[b * size + r] * _share(x[r], y[b * size + r])
                    b += number_step(alone)
                total = all_joined(alone, total)
                if alone or leader():
                    dx[r] = dx[r] + total if add else total
                r += width()


def _list_shape(shapes):
    if any(trimmed(s.dims) != trimmed(shapes[0].dims) for s in shapes):
        raise wrong("logsumexp", "the dims differ", shapes, "equal dims, equal batch sizes or 1")
    return Shape(trimmed(shapes[0].dims), common_batch("logsumexp", shapes))


def _list_lower(shapes, out, shared):
    sizes = (len(shapes), out.size, out.batch, *(int(s.batch > 1) for s in shapes))
    return Lowering(logsumexp, sizes, tuple(Operand(backward=logsumexp_gradient, needs=(k,)) for k in range(len(shapes))))


def _list_samples(choose):
    dims, batch = choose.dims(), choose.batch()
    return Sample(([Tensor(Shape(dims, batch if choose.integer(0, 2) else 1)) for _ in range(choose.integer(1, 4))],))


def _list_reference(arguments):
    y = _reference(np.stack(np.broadcast_arrays(*arguments)), 0)
    return y.reshape(*trimmed(y.shape[:-1]), y.shape[-1])


LOGSUMEXP = Op(
    name="logsumexp",
    doc="log Σₖ e^xₖ of a list of nodes of the same dims (ones at the end are dropped).    dxₖ += dy e^(xₖ - y)",
    shape=_list_shape,
    lower=_list_lower,
    reference=_list_reference,
    samples=_list_samples,
    shapes="a list of the same dims -> these dims",
)

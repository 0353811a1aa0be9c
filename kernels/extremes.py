"""Largest and smallest numbers along a dim: one of them, or k in their original order.

    max_dim, min_dim   y = the largest (smallest)    dx of the first that is equal to y += dy
    kmax_pooling       y = the k largest             dx of those that were taken += dy

NaN is larger (smaller) than all numbers, as in NumPy.
"""

import numpy as np

from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, inline, integers, item, kernel, number
from autobatch.kernels._lanes import before, items, largest, leader, parts, smallest, width
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, wrong
from autobatch.kernels._reduce import (
    BLOCK,
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
    of_rank,
    quotient,
    rank_of,
    remainder,
    share,
    smaller,
    spread_along,
    turns,
)

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


@extreme.on_card(**as_spread(spread_along))
def extreme_card(ins, T):
    """One result after the other."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer, least = sizes[0], sizes[1], sizes[2], sizes[3]
    alone = by_lane(inner, outer, length)
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, inner * outer)):
            r = first_result(alone, t)
            while r < end_result(alone, t, inner * outer):
                at, k = quotient(r, inner) * length * inner + remainder(r, inner), first_number(alone)
                best = x[at]
                while k < length:
                    best = smaller(best, x[at + k * inner]) if least else larger(best, x[at + k * inner])
                    k += number_step(alone)
                if not alone:
                    best = smallest(best) if least else largest(best)
                if alone or leader():
                    y[r] = best
                r += width()


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


@extreme_gradient.on_card(**as_spread(spread_along))
def extreme_gradient_card(ins, T):
    """Each lane looks for the first of its numbers that is y, or NaN; the first of all takes dy."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    inner, length, outer = sizes[0], sizes[1], sizes[2]
    alone = by_lane(inner, outer, length)
    for i in items(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for t in parts(turns(alone, inner * outer)):
            r = first_result(alone, t)
            while r < end_result(alone, t, inner * outer):
                at, first, best, k = (
                    quotient(r, inner) * length * inner + remainder(r, inner),
                    length - 1,
                    y[r],
                    first_number(alone),
                )
                while k < first:
                    v = x[at + k * inner]
                    if v == best or v != v:
                        first = k
                    k += number_step(alone)
                if not alone:
                    first = smallest(first)
                if add:
                    if alone or leader():
                        dx[at + first * inner] += dy[r]
                else:
                    k = first_number(alone)
                    while k < length:
                        dx[at + k * inner] = dy[r] if k == first else number(0, T)
                        k += number_step(alone)
                r += width()


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
#
# What is taken is told by a limit: all that is above it, and as many of those equal to it as are missing, in order. The limit
# is found by halving the range of numbers, as ranks, until k of x are above it, or it is the k-th largest of x itself. That
# takes at most 33 (65) passes over x, mostly about 16, of a comparison and a sum that become vector code. (A heap of the k
# largest takes fewer comparisons, but one after the other: 10 to 20 times as long for 128 of 256.)


@inline(reductions=True)
def _above(x, at, length, limit):
    """How many numbers are above the limit; NaN is above all."""
    count = 0
    for j in range(length):
        count += 0 if x[at + j] <= limit else 1
    return count


@inline
def _middle(low, high):
    """The integer half way, rounded down; the sum of the two might be too large for one."""
    return (low & high) + ((low ^ high) >> 1)


@inline(reductions=True)
def _ends(x, at, length):
    """The smallest and the largest; NaN if there is one."""
    low = high = x[at]
    for j in range(1, length):
        low, high = smaller(low, x[at + j]), larger(high, x[at + j])
    return low, high


@inline
def _take(y, to, x, at, inner, length, k, limit, ties):
    """The k numbers above the limit, and `ties` of those equal to it, in their order; `inner` from one number to the next."""
    taken, j = 0, 0
    while taken < k and j < length:
        v = x[at + j * inner]
        y[to + taken * inner] = v
        equal = v == limit and ties > 0
        ties -= 1 if equal else 0
        taken += 0 if v <= limit and not equal else 1
        j += 1


@inline
def _limit(x, at, length, k):
    """The limit of the k largest of numbers side by side, and how many equal to it are among them."""
    bottom, top = _ends(x, at, length)
    infinity = number(np.inf, top)
    count = 0
    if top != top:
        bottom, top = -infinity, infinity
        count = _above(x, at, length, top)
        if count >= k:
            return top, 0
    low, high, missing = rank_of(bottom), rank_of(top), k - count
    while low < high:
        middle = _middle(low, high)
        limit = of_rank(middle, infinity)
        count = _above(x, at, length, limit)
        if count == k:
            return limit, 0
        if count > k:
            low = middle + 1
        else:
            high, missing = middle, k - count
    return of_rank(low, infinity), missing


@kernel
def kmax_pooling(ins, T):
    """y = the k largest in their order."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer, k = sizes[0], sizes[1], sizes[2], sizes[3]
    infinity = number(np.inf, T)
    lows, highs, above, ties, limits = block(integers(0)), block(integers(0)), block(integers(0)), block(integers(0)), block(T)
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for o in range(outer):
            if inner == 1:
                limit, missing = _limit(x, o * length, length, k)
                _take(y, o * k, x, o * length, 1, length, k, limit, missing)
                continue
            if length <= BLOCK:
                for j in range(inner):
                    at = o * length * inner + j
                    for p in range(length):
                        limits[p] = x[at + p * inner]
                    limit, missing = _limit(limits, 0, length, k)
                    _take(y, o * k * inner + j, x, at, inner, length, k, limit, missing)
                continue
            for c in range(0, inner, BLOCK):
                width, at, active = min(BLOCK, inner - c), o * length * inner + c, True
                for j in range(width):
                    lows[j], highs[j], limits[j], ties[j] = rank_of(-infinity), rank_of(infinity), infinity, -1
                while active:
                    for j in range(width):
                        above[j] = 0
                    for p in range(length):
                        for j in range(width):
                            above[j] += 0 if x[at + p * inner + j] <= limits[j] else 1
                    active = False
                    for j in range(width):
                        if lows[j] >= highs[j]:
                            continue
                        middle = rank_of(limits[j])
                        if above[j] == k or (above[j] > k and middle == rank_of(infinity)):  # the latter: k times NaN
                            lows[j], ties[j] = highs[j], 0
                            continue
                        if above[j] > k:
                            lows[j] = middle + 1
                        else:
                            highs[j], ties[j] = middle, k - above[j]
                        limits[j] = of_rank(_middle(lows[j], highs[j]), infinity)
                        active = active or lows[j] < highs[j]
                for j in range(width):
                    _take(y, o * k * inner + c + j, x, at + j, inner, length, k, limits[j], ties[j])


@kernel
def kmax_pooling_gradient(ins, T):
    """dx of those taken += dy, which are the first equal to the first y, and so on; without ACCUMULATE the rest is zero."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer, k = sizes[0], sizes[1], sizes[2], sizes[3]
    for i in range(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(outer * length * inner):
                dx[j] = 0
        for o in range(outer):
            for c in range(inner):
                at, to, taken, j = o * length * inner + c, o * k * inner + c, 0, 0
                while taken < k and j < length:
                    v, wanted = x[at + j * inner], y[to + taken * inner]
                    if v == wanted or (v != v and wanted != wanted):
                        dx[at + j * inner] += dy[to + taken * inner]
                        taken += 1
                    j += 1


# On a card a team takes a result, or a lane does. Lanes of a team take numbers that lie side by side, so that the order of
# those taken is that of the lanes.


@inline
def _count_above(x, at, inner, length, limit, alone):
    """`_above`, of all lanes."""
    p, count = first_number(alone), 0
    while p < length:
        count += 0 if x[at + p * inner] <= limit else 1
        p += number_step(alone)
    return all_joined(alone, count)


@inline
def _limit_on_card(x, at, inner, length, k, alone):
    """`_limit`, of all lanes."""
    infinity = number(np.inf, x)
    count = _count_above(x, at, inner, length, infinity, alone)
    if count >= k:  # NaN
        return infinity, 0
    low, high, missing = rank_of(-infinity), rank_of(infinity), k - count
    while low < high:
        middle = _middle(low, high)
        limit = of_rank(middle, infinity)
        count = _count_above(x, at, inner, length, limit, alone)
        if count == k:
            return limit, 0
        if count > k:
            low = middle + 1
        else:
            high, missing = middle, k - count
    return of_rank(low, infinity), missing


@kmax_pooling.on_card(**as_spread(spread_along))
def kmax_pooling_card(ins, T):
    """The limit is found as above; then each lane counts what of its share is taken, and knows where it goes."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer, k = sizes[0], sizes[1], sizes[2], sizes[3]
    alone = by_lane(inner, outer, length)
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, inner * outer)):
            r = first_result(alone, t)
            while r < end_result(alone, t, inner * outer):
                at, to = (
                    quotient(r, inner) * length * inner + remainder(r, inner),
                    quotient(r, inner) * k * inner + remainder(r, inner),
                )
                limit, ties = _limit_on_card(x, at, inner, length, k, alone)
                begin, end = share(alone, length)
                taken, equal, p = 0, 0, begin
                while p < end:
                    v = x[at + p * inner]
                    equal += 1 if v == limit else 0
                    taken += 0 if v <= limit else 1
                    p += 1
                if not alone:
                    taken, equal = before(taken), before(equal)
                else:
                    taken, equal = 0, 0
                p = begin
                while p < end:  # taken, equal: of all numbers before p; of the equal ones the first `ties` are taken, too
                    v = x[at + p * inner]
                    place = taken + min(equal, ties)
                    if (not v <= limit or (v == limit and equal < ties)) and place < k:
                        y[to + place * inner] = v
                    equal += 1 if v == limit else 0
                    taken += 0 if v <= limit else 1
                    p += 1
                r += width()


@kmax_pooling_gradient.on_card(**as_spread(spread_along))
def kmax_pooling_gradient_card(ins, T):
    """The smallest of y is the limit, NaN above all; what is taken follows from it as in the forward kernel."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    inner, length, outer, k = sizes[0], sizes[1], sizes[2], sizes[3]
    alone = by_lane(inner, outer, length)
    for i in items(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for t in parts(turns(alone, inner * outer)):
            r = first_result(alone, t)
            while r < end_result(alone, t, inner * outer):
                at, to = (
                    quotient(r, inner) * length * inner + remainder(r, inner),
                    quotient(r, inner) * k * inner + remainder(r, inner),
                )
                limit, p = number(np.inf, T), first_number(alone)
                while p < k:
                    v = y[to + p * inner]
                    limit = v if v < limit else limit
                    p += number_step(alone)
                limit = limit if alone else smallest(limit)
                ties, p = 0, first_number(alone)
                while p < k:
                    ties += 1 if y[to + p * inner] == limit else 0
                    p += number_step(alone)
                ties = all_joined(alone, ties)
                begin, end = share(alone, length)
                taken, equal, p = 0, 0, begin
                while p < end:
                    v = x[at + p * inner]
                    equal += 1 if v == limit else 0
                    taken += 0 if v <= limit else 1
                    p += 1
                if not alone:
                    taken, equal = before(taken), before(equal)
                else:
                    taken, equal = 0, 0
                p = begin
                while p < end:
                    v = x[at + p * inner]
                    place = taken + min(equal, ties)
                    d = number(0, T)
                    if (not v <= limit or (v == limit and equal < ties)) and place < k:
                        d = dy[to + place * inner]
                    dx[at + p * inner] = dx[at + p * inner] + d if add else d
                    equal += 1 if v == limit else 0
                    taken += 0 if v <= limit else 1
                    p += 1
                r += width()


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


def _kmax_lower(shapes, out, shared, k, d):
    if k == 1:
        return _lower(0)(shapes, out, shared, d)
    return Lowering(kmax_pooling, (*along(shapes[0], d), k), (Operand(backward=kmax_pooling_gradient),))


KMAX_POOLING = Op(
    name="kmax_pooling",
    doc="The k largest along one dim in their original order, of equal ones the first.    dx of those taken += dy",
    shape=_kmax_shape,
    lower=_kmax_lower,
    reference=_kmax_reference,
    samples=_kmax_samples,
    shapes="any -> dim d becomes k",
)

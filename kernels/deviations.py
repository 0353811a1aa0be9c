"""Population standard deviations over dims, over all numbers of an element, over the minibatch.

    y = √(Σ (x - μ)² / n)    dx += dy (x - μ) / (n y)    0 where y is 0: of equal numbers (a subgradient; in DyNet NaN)

Two passes, over x - x₀ for x₀ the first number: so the digits that all numbers have in common cost no precision, and equal
numbers give 0 exactly. With n given, n numbers are meant, and the rest is padding by zeros that does not count:

    y = √(Σ x² / n - (Σ x / n)²)    dx += dy (x - Σ x / n) / (n y)

From m numbers that are not 0, of mean a, this is √((Σ (x - a)² + a² m (n - m) / n) / n), a sum over those that are not 0, where
nothing cancels. It is NaN if more of them are not 0 than n and no n numbers have such a sum and such squares.
"""

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, inline, integers, item, kernel, number
from autobatch.kernels._lanes import items, leader, parts, width
from autobatch.kernels._op import Lowering, Op, Operand, Sample, one_tensor
from autobatch.kernels._reduce import (
    BLOCK,
    INNER,
    LENGTH,
    OUTER,
    PIECES,
    all_joined,
    as_spread,
    block,
    by_lane,
    end_result,
    first_result,
    piece_of,
    pieces_or_numbers,
    quotient,
    remainder,
    spread_walk,
    start_of,
    turns,
    walk,
)
from autobatch.kernels.moments import (
    dims_reference,
    dims_shape,
    elements,
    minibatch,
    no_batch,
    one_each,
    over,
    per_element,
    per_place,
    some_dims,
)

# sizes: how many numbers go into one, then the walk
_AT = 1


@inline
def _from(x, first):
    """x - first; here, since the sums of the kernels may be reordered, and this must not."""
    return x - first


@inline
def _deviation(x, first, mean):
    """x less the mean, which is given as the distance from the first number."""
    return (x - first) - mean


@inline
def _scale(dy, y, n):
    """dy / (n y), or 0 where y is."""
    return number(0, y) if y == 0 else dy / (n * y)


@kernel(reductions=True)
def std(ins, T):
    """y = √(Σ (x - μ)² / n)."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    count = number(sizes[0], T)
    inner, length, outer, pieces = sizes[_AT + INNER], sizes[_AT + LENGTH], sizes[_AT + OUTER], sizes[_AT + PIECES]
    mean, squares = block(T), block(T)
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for o in range(outer):
            start = start_of(sizes, _AT, o)
            if inner == 1:
                first, total, square = x[start], number(0, T), number(0, T)
                for p in range(pieces):
                    at = start + piece_of(sizes, _AT, p)
                    for j in range(length):
                        total += _from(x[at + j], first)
                total /= count
                for p in range(pieces):
                    at = start + piece_of(sizes, _AT, p)
                    for j in range(length):
                        d = _deviation(x[at + j], first, total)
                        square += d * d
                y[o] = _math.sqrt(square / count)
            else:
                for c in range(0, inner, BLOCK):
                    width, first = min(BLOCK, inner - c), start + c
                    for j in range(width):
                        mean[j] = 0
                        squares[j] = 0
                    for p in range(pieces):
                        at = first + piece_of(sizes, _AT, p)
                        for k in range(length):
                            for j in range(width):
                                mean[j] += _from(x[at + k * inner + j], x[first + j])
                    for j in range(width):
                        mean[j] /= count
                    for p in range(pieces):
                        at = first + piece_of(sizes, _AT, p)
                        for k in range(length):
                            for j in range(width):
                                d = _deviation(x[at + k * inner + j], x[first + j], mean[j])
                                squares[j] += d * d
                    for j in range(width):
                        y[o * inner + c + j] = _math.sqrt(squares[j] / count)


@kernel(reductions=True)
def std_gradient(ins, T):
    """dx = or += dy (x - μ) / (n y)."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    count = number(sizes[0], T)
    inner, length, outer, pieces = sizes[_AT + INNER], sizes[_AT + LENGTH], sizes[_AT + OUTER], sizes[_AT + PIECES]
    mean, scale = block(T), block(T)
    for i in range(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for o in range(outer):
            start = start_of(sizes, _AT, o)
            if inner == 1:
                first, total = x[start], number(0, T)
                for p in range(pieces):
                    at = start + piece_of(sizes, _AT, p)
                    for j in range(length):
                        total += _from(x[at + j], first)
                total /= count
                g = _scale(dy[o], y[o], count)
                for p in range(pieces):
                    at = start + piece_of(sizes, _AT, p)
                    if add:
                        for j in range(length):
                            dx[at + j] += g * _deviation(x[at + j], first, total)
                    else:
                        for j in range(length):
                            dx[at + j] = g * _deviation(x[at + j], first, total)
            else:
                for c in range(0, inner, BLOCK):
                    width, first = min(BLOCK, inner - c), start + c
                    for j in range(width):
                        mean[j] = 0
                        scale[j] = _scale(dy[o * inner + c + j], y[o * inner + c + j], count)
                    for p in range(pieces):
                        at = first + piece_of(sizes, _AT, p)
                        for k in range(length):
                            for j in range(width):
                                mean[j] += _from(x[at + k * inner + j], x[first + j])
                    for j in range(width):
                        mean[j] /= count
                    for p in range(pieces):
                        at = first + piece_of(sizes, _AT, p)
                        for k in range(length):
                            f = at + k * inner
                            if add:
                                for j in range(width):
                                    dx[f + j] += scale[j] * _deviation(x[f + j], x[first + j], mean[j])
                            else:
                                for j in range(width):
                                    dx[f + j] = scale[j] * _deviation(x[f + j], x[first + j], mean[j])


@inline
def _mean(x, sizes, start, alone):
    """On a card: the mean of the numbers of one result, as the distance from the first."""
    inner, length, pieces = sizes[_AT + INNER], sizes[_AT + LENGTH], sizes[_AT + PIECES]
    p, step_p, first_k, step_k = pieces_or_numbers(alone, pieces, length)
    first, total = x[start], number(0, x)
    while p < pieces:
        at, k = start + piece_of(sizes, _AT, p), first_k
        while k < length:
            total += _from(x[at + k * inner], first)
            k += step_k
        p += step_p
    return first, all_joined(alone, total) / number(sizes[0], x)


@std.on_card(**as_spread(spread_walk))
def std_card(ins, T):
    """Two passes, too."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer, pieces = sizes[_AT + INNER], sizes[_AT + LENGTH], sizes[_AT + OUTER], sizes[_AT + PIECES]
    results, alone = inner * outer, by_lane(inner, outer, length * pieces)
    first_p, step_p, first_k, step_k = pieces_or_numbers(alone, pieces, length)
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, results)):
            r = first_result(alone, t)
            while r < end_result(alone, t, results):
                start, p, square = start_of(sizes, _AT, quotient(r, inner)) + remainder(r, inner), first_p, number(0, T)
                first, mean = _mean(x, sizes, start, alone)
                while p < pieces:
                    at, k = start + piece_of(sizes, _AT, p), first_k
                    while k < length:
                        d = _deviation(x[at + k * inner], first, mean)
                        square += d * d
                        k += step_k
                    p += step_p
                square = all_joined(alone, square)
                if alone or leader():
                    y[r] = _math.sqrt(square / number(sizes[0], T))
                r += width()


@std_gradient.on_card(**as_spread(spread_walk))
def std_gradient_card(ins, T):
    """The same, spread as the forward kernel."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    inner, length, outer, pieces = sizes[_AT + INNER], sizes[_AT + LENGTH], sizes[_AT + OUTER], sizes[_AT + PIECES]
    results, alone = inner * outer, by_lane(inner, outer, length * pieces)
    first_p, step_p, first_k, step_k = pieces_or_numbers(alone, pieces, length)
    for i in items(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for t in parts(turns(alone, results)):
            r = first_result(alone, t)
            while r < end_result(alone, t, results):
                start, p = start_of(sizes, _AT, quotient(r, inner)) + remainder(r, inner), first_p
                first, mean = _mean(x, sizes, start, alone)
                scale = _scale(dy[r], y[r], number(sizes[0], T))
                while p < pieces:
                    at, k = start + piece_of(sizes, _AT, p), first_k
                    while k < length:
                        d = scale * _deviation(x[at + k * inner], first, mean)
                        dx[at + k * inner] = dx[at + k * inner] + d if add else d
                        k += step_k
                    p += step_p
                r += width()


@inline
def _others(x, sizes, start):
    """How many numbers of one result are not 0, and their mean, as the distance from the first number."""
    inner, first = sizes[_AT + INNER], x[start]
    m, total = number(0, first), number(0, first)
    for p in range(sizes[_AT + PIECES]):
        at = start + piece_of(sizes, _AT, p)
        for k in range(sizes[_AT + LENGTH]):
            v = x[at + k * inner]
            if v != 0:
                m += number(1, first)
                total += v - first
    return m, total / m if m > 0 else total


@kernel
def std_given(ins, T):
    """y = √(Σ x² / n - (Σ x / n)²). Slots: y, x, n."""
    batches, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer, pieces = sizes[_AT + INNER], sizes[_AT + LENGTH], sizes[_AT + OUTER], sizes[_AT + PIECES]
    for i in range(batches):
        y, x, n = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)[0]
        for o in range(outer):
            for j in range(inner):
                start = start_of(sizes, _AT, o) + j
                m, mean = _others(x, sizes, start)
                square = number(0, n)
                for p in range(pieces):
                    at = start + piece_of(sizes, _AT, p)
                    for k in range(length):
                        v = x[at + k * inner]
                        if v != 0:
                            d = _deviation(v, x[start], mean)
                            square += d * d
                mean += x[start]
                y[o * inner + j] = _math.sqrt((square + mean * mean * m * (n - m) / n) / n)


@kernel
def std_given_gradient(ins, T):
    """dx = or += dy (x - Σ x / n) / (n y). Slots: dx, dy, y, x, n."""
    batches, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    inner, length, outer, pieces = sizes[_AT + INNER], sizes[_AT + LENGTH], sizes[_AT + OUTER], sizes[_AT + PIECES]
    one = number(1, T)
    for i in range(batches):
        dx, dy, y, x, n = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T), item(ins, 4, i, T)[0]
        for o in range(outer):
            for j in range(inner):
                start = start_of(sizes, _AT, o) + j
                m, mean = _others(x, sizes, start)
                mean = mean * (m / n) - x[start] * (one - m / n)
                g = _scale(dy[o * inner + j], y[o * inner + j], n)
                for p in range(pieces):
                    at = start + piece_of(sizes, _AT, p)
                    for k in range(length):
                        f = at + k * inner
                        d = g * _deviation(x[f], x[start], mean)
                        dx[f] = dx[f] + d if add else d


@inline
def _others_on_card(x, sizes, start, alone):
    """`_others`, of all lanes."""
    inner, length, pieces = sizes[_AT + INNER], sizes[_AT + LENGTH], sizes[_AT + PIECES]
    p, step_p, first_k, step_k = pieces_or_numbers(alone, pieces, length)
    first, m, total = x[start], number(0, x), number(0, x)
    while p < pieces:
        at, k = start + piece_of(sizes, _AT, p), first_k
        while k < length:
            v = x[at + k * inner]
            if v != 0:
                m += number(1, x)
                total += v - first
            k += step_k
        p += step_p
    m, total = all_joined(alone, m), all_joined(alone, total)
    return m, total / m if m > 0 else total


@std_given.on_card(**as_spread(spread_walk))
def std_given_card(ins, T):
    """The same; a result is a lane's or a team's."""
    batches, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer, pieces = sizes[_AT + INNER], sizes[_AT + LENGTH], sizes[_AT + OUTER], sizes[_AT + PIECES]
    results, alone = inner * outer, by_lane(inner, outer, length * pieces)
    first_p, step_p, first_k, step_k = pieces_or_numbers(alone, pieces, length)
    for i in items(batches):
        y, x, n = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)[0]
        for t in parts(turns(alone, results)):
            r = first_result(alone, t)
            while r < end_result(alone, t, results):
                start, p, square = start_of(sizes, _AT, quotient(r, inner)) + remainder(r, inner), first_p, number(0, T)
                m, mean = _others_on_card(x, sizes, start, alone)
                while p < pieces:
                    at, k = start + piece_of(sizes, _AT, p), first_k
                    while k < length:
                        v = x[at + k * inner]
                        if v != 0:
                            d = _deviation(v, x[start], mean)
                            square += d * d
                        k += step_k
                    p += step_p
                square = all_joined(alone, square)
                mean += x[start]
                if alone or leader():
                    y[r] = _math.sqrt((square + mean * mean * m * (n - m) / n) / n)
                r += width()


@std_given_gradient.on_card(**as_spread(spread_walk))
def std_given_gradient_card(ins, T):
    """The same, spread as the forward kernel."""
    batches, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    inner, length, outer, pieces = sizes[_AT + INNER], sizes[_AT + LENGTH], sizes[_AT + OUTER], sizes[_AT + PIECES]
    results, alone = inner * outer, by_lane(inner, outer, length * pieces)
    first_p, step_p, first_k, step_k = pieces_or_numbers(alone, pieces, length)
    for i in items(batches):
        dx, dy, y, x, n = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T), item(ins, 4, i, T)[0]
        for t in parts(turns(alone, results)):
            r = first_result(alone, t)
            while r < end_result(alone, t, results):
                start, p = start_of(sizes, _AT, quotient(r, inner)) + remainder(r, inner), first_p
                m, mean = _others_on_card(x, sizes, start, alone)
                mean = mean * (m / n) - x[start] * (number(1, T) - m / n)
                scale = _scale(dy[r], y[r], n)
                while p < pieces:
                    at, k = start + piece_of(sizes, _AT, p), first_k
                    while k < length:
                        d = scale * _deviation(x[at + k * inner], x[start], mean)
                        dx[at + k * inner] = dx[at + k * inner] + d if add else d
                        k += step_k
                    p += step_p
                r += width()


def _lowering(x, reduced, given=False):
    extents = (*x.dims, x.batch)
    count = int(np.prod([e for e, gone in zip(extents, reduced, strict=True) if gone]))
    operand = Operand(backward=std_given_gradient if given else std_gradient)
    return Lowering(std_given if given else std, (count, *walk(x, reduced)), (operand,) + (Operand(),) * given)


def _dims_lower(shapes, out, shared, dims, batch):
    return _lowering(shapes[0], over(shapes[0], dims, batch), len(shapes) > 1)


def _dims_samples(choose):
    x, d, b, count = some_dims(choose)
    return Sample((x, d, b, *((choose.integer(count, count + 3),) if choose.integer(0, 1) else ())))


def _given(x, axes, n, count):
    mean = x.sum(axis=axes, keepdims=True) / n
    return np.sqrt((((x - mean) ** 2).sum(axis=axes, keepdims=True) + (n - count) * mean**2) / n)


STD_DIM = Op(
    name="std_dim",
    doc="√(Σ (x - μ)² / n) over some dims, and perhaps the minibatch.    dx += dy (x - μ) / (n y), 0 where y is 0",
    shape=dims_shape("std_dim"),
    lower=_dims_lower,
    reference=dims_reference(_given, "std"),
    samples=_dims_samples,
    shapes="any -> without the dims of d",
)
STD_ELEMS = Op(
    name="std_elems",
    doc="√(Σ (x - μ)² / n) over the numbers of each element of the minibatch.    dx += dy (x - μ) / (n y), 0 where y is 0",
    shape=one_each,
    lower=lambda shapes, out, shared: _lowering(shapes[0], elements(shapes[0])),
    reference=per_element(np.std),
    samples=one_tensor(),
    shapes="any -> (1,)",
)
STD_BATCHES = Op(
    name="std_batches",
    doc="√(Σ (x - μ)² / B) over the minibatch.    dx of each element += dy (x - μ) / (B y), 0 where y is 0",
    shape=no_batch,
    lower=lambda shapes, out, shared: _lowering(shapes[0], minibatch(shapes[0])),
    reference=per_place(np.std),
    samples=one_tensor(),
    shapes="any -> the same dims, no batch",
)

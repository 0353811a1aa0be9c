"""Running sum along a dim: y[j] = x[0] + ... + x[j].    dx[j] += dy[j] + ... + dy[last]

On a card, where a team takes one long sum, each lane adds up a share of numbers that lie side by side, learns what those before
have, and goes through its share again.
"""

import numpy as np

from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, integers, item, kernel, number
from autobatch.kernels._lanes import before, items, parts, width
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor
from autobatch.kernels._reduce import (
    BLOCK,
    along,
    as_spread,
    block,
    by_lane,
    check_dim,
    end_result,
    first_result,
    quotient,
    remainder,
    share,
    spread_along,
    turns,
)

# sizes: inner, length, outer


@kernel
def cumsum(ins, T):
    """y[j] = x[0] + ... + x[j]."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer = sizes[0], sizes[1], sizes[2]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for o in range(outer):
            at = o * length * inner
            if inner == 1:
                total = number(0, T)
                for j in range(length):
                    total += x[at + j]
                    y[at + j] = total
            else:
                for j in range(inner):
                    y[at + j] = x[at + j]
                for k in range(1, length):
                    to = at + k * inner
                    for j in range(inner):
                        y[to + j] = y[to - inner + j] + x[to + j]


@cumsum.on_card(**as_spread(spread_along))
def cumsum_card(ins, T):
    """The same, each sum by a lane or a team."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer = sizes[0], sizes[1], sizes[2]
    alone = by_lane(inner, outer, length)
    begin, end = share(alone, length)
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, inner * outer)):
            r = first_result(alone, t)
            while r < end_result(alone, t, inner * outer):
                at, total = quotient(r, inner) * length * inner + remainder(r, inner), number(0, T)
                if not alone:
                    for k in range(begin, end):
                        total += x[at + k * inner]
                    total = before(total)
                for k in range(begin, end):
                    total += x[at + k * inner]
                    y[at + k * inner] = total
                r += width()


@kernel
def cumsum_gradient(ins, T):
    """dx[j] = or += dy[j] + ... + dy[last]."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    inner, length, outer = sizes[0], sizes[1], sizes[2]
    sums = block(T)
    for i in range(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for o in range(outer):
            at = o * length * inner
            if inner == 1:
                total = number(0, T)
                for k in range(length):
                    j = at + length - 1 - k
                    total += dy[j]
                    dx[j] = dx[j] + total if add else total
                continue
            for c in range(0, inner, BLOCK):
                width = min(BLOCK, inner - c)
                for j in range(width):
                    sums[j] = 0
                for k in range(length):
                    to = at + (length - 1 - k) * inner + c
                    if add:
                        for j in range(width):
                            sums[j] += dy[to + j]
                            dx[to + j] += sums[j]
                    else:
                        for j in range(width):
                            sums[j] += dy[to + j]
                            dx[to + j] = sums[j]


@cumsum_gradient.on_card(**as_spread(spread_along))
def cumsum_gradient_card(ins, T):
    """The same from the other end."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    inner, length, outer = sizes[0], sizes[1], sizes[2]
    alone = by_lane(inner, outer, length)
    begin, end = share(alone, length)
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, inner * outer)):
            r = first_result(alone, t)
            while r < end_result(alone, t, inner * outer):
                last = (quotient(r, inner) * length + length - 1) * inner + remainder(r, inner)
                total = number(0, T)
                if not alone:
                    for k in range(begin, end):
                        total += dy[last - k * inner]
                    total = before(total)
                for k in range(begin, end):
                    total += dy[last - k * inner]
                    dx[last - k * inner] = dx[last - k * inner] + total if add else total
                r += width()


def _shape(shapes, d):
    check_dim("cumsum", shapes[0], d)
    return shapes[0]


def _samples(choose):
    dims = choose.dims()
    return Sample((Tensor(Shape(dims, choose.batch())), choose.integer(0, len(dims) - 1)))


CUMSUM = Op(
    name="cumsum",
    doc="Running sum along a dim: y[j] = x[0] + ... + x[j].    dx[j] += dy[j] + ... + dy[last]",
    shape=_shape,
    lower=lambda shapes, out, shared, d: Lowering(cumsum, along(shapes[0], d), (Operand(backward=cumsum_gradient, needs=()),)),
    reference=lambda x, d=0: np.cumsum(x, axis=d),
    samples=_samples,
    shapes="any -> as x",
)

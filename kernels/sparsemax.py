"""What puts some entries at a bound and shares the rest: sparsemax, its loss, and softmax with upper bounds.

    sparsemax            y = max(0, x - τ), τ such that Σ y = 1        dx += dy - mean of dy over the support, on the support
    sparsemax_loss       y = max over p of p·x - p²/2, - q·x + q²/2    dx += dy (sparsemax(x) - q)
    constrained_softmax  y = min(u, eˣ / z), z such that Σ y = 1       see there

The support of sparsemax is found without sorting: begin with all entries that may lie in it, form τ, drop the entries that are
not above it, until none is dropped. It is exact, takes as many turns as entries have to be told apart (few), and its
loops are sums over vectors.

Source
------
A. Martins, R. Astudillo, From softmax to sparsemax, ICML 2016; A. Martins, J. Kreutzer, Learning what's easy: fully
differentiable neural easy-first taggers, EMNLP 2017 (constrained softmax); C. Michelot, Journal of Optimization Theory and
Applications 50 (1986) (the projection).
"""

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, argument, immediate, inline, integers, item, kernel, number
from autobatch.kernels._lanes import items, joined, lanes, largest, leader, meet, parts
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, trimmed, wrong

# sizes: length, columns in all


@inline
def _maximum(x, at, n):
    highest = x[at]
    for j in lanes(1, n):
        v = x[at + j]
        highest = v if v > highest or v != v else highest
    return largest(highest)


# In functions of their own, whose sums may not be reordered: x - (largest + τ) has lost τ where x is large.


@inline
def _from(x, highest):
    return x - highest


@inline
def _above(x, highest, tau):
    return (x - highest) - tau


@inline(reductions=True)
def _threshold(x, at, n, highest):
    """τ, for x minus its largest entry: -1 <= τ < 0. NaN if an entry is NaN, or the largest is not finite."""
    tau = number(-1, highest)  # y of the largest entry is at most 1
    count = n + 1
    while True:
        total, kept = number(0, highest), 0
        for j in lanes(n):
            v = _from(x[at + j], highest)
            if not v <= tau:
                total += v
                kept += 1
        total, kept = joined(total), joined(kept)
        if kept >= count or kept == 0:
            return tau
        tau = (total - number(1, total)) / number(kept, total)
        count = kept


@kernel(reductions=True)
def sparsemax(ins, T):
    """y = max(0, x - τ) of each column."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, groups = sizes[0], sizes[1]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for g in parts(groups):
            at = g * length
            highest = _maximum(x, at, length)
            tau = _threshold(x, at, length, highest)
            for j in lanes(length):
                v = _above(x[at + j], highest, tau)
                y[at + j] = number(0, v) if v <= 0 else v


@kernel(reductions=True)
def sparsemax_gradient(ins, T):
    """dx = or += dy - mean of dy over the support, on the support; 0 elsewhere."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, groups = sizes[0], sizes[1]
    for i in items(n):
        dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for g in parts(groups):
            at = g * length
            total, kept = number(0, dy[0]), number(0, dy[0])
            for j in lanes(length):
                total += number(0, total) if y[at + j] <= 0 else dy[at + j]
                kept += number(0, total) if y[at + j] <= 0 else number(1, total)
            mean = joined(total) / joined(kept)
            if ins[FLAGS] & ACCUMULATE:
                for j in lanes(length):
                    dx[at + j] += number(0, total) if y[at + j] <= 0 else dy[at + j] - mean
            else:
                for j in lanes(length):
                    dx[at + j] = number(0, total) if y[at + j] <= 0 else dy[at + j] - mean


for _kernel in (sparsemax, sparsemax_gradient):
    _kernel.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])


def _sparsemax_shape(shapes):
    x = shapes[0]
    if len(x.dims) > 2:
        raise wrong("sparsemax", f"{len(x.dims)} dims", [x], "a vector or a matrix")
    return x


def _sparsemax_reference(x):
    """By sorting, as Martins and Astudillo write it."""
    z = np.sort(x, axis=0)[::-1]
    k = np.arange(1, len(x) + 1).reshape(-1, *(1,) * (x.ndim - 1))
    sums = np.cumsum(z, axis=0)
    size = (1 + k * z > sums).sum(axis=0, keepdims=True)
    tau = (np.take_along_axis(sums, size - 1, axis=0) - 1) / size
    return np.maximum(x - tau, 0.0)


SPARSEMAX = Op(
    name="sparsemax",
    doc="The nearest point to x with entries >= 0 of sum 1, of each column.    dx += dy - mean of dy, over the entries above 0",
    shapes="(n,), (n,c) -> as x",
    shape=_sparsemax_shape,
    lower=lambda shapes, out, shared: Lowering(
        sparsemax, (out.dims[0], out.total // out.dims[0]), (Operand(backward=sparsemax_gradient, needs=()),)
    ),
    reference=_sparsemax_reference,
    samples=lambda choose: Sample((Tensor(Shape(choose.dims(1, 2), choose.batch())),)),
)


# sparsemax_loss -------------------------------------------------------------------------------------------------------
# sizes: length, batch, then for each element of the minibatch how many ids it has, then for each the first of them; one
# immediate for each id
#
# With p = sparsemax(x) and q = 1/k on the k ids the loss is Σ (p - q) (x - (p + q) / 2), which does not change if x is moved.


@kernel(reductions=True)
def sparsemax_loss(ins, T):
    """y = Σ (p - q) (x - (p + q) / 2)."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, batch = sizes[0], sizes[1]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in parts(batch):
            at, count, first = b * length, sizes[2 + b], 2 + sizes[2 + batch + b]
            highest = _maximum(x, at, length)
            tau = _threshold(x, at, length, highest)
            half, total = number(0.5, tau), number(0, tau)
            for j in lanes(length):
                v, p = _from(x[at + j], highest), _above(x[at + j], highest, tau)
                total += number(0, v) if p <= 0 else p * (v - half * p)
            q = number(1, tau) / number(count, tau)
            for k in lanes(count):
                total -= q * (_from(x[at + immediate(ins, first + k, i)], highest) - half * q)
            total = joined(total)
            if leader():
                y[b] = total


@kernel(reductions=True)
def sparsemax_loss_gradient(ins, T):
    """dx = or += dy (p - q)."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, batch = sizes[0], sizes[1]
    for i in items(n):
        dx, dy, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        for b in parts(batch):
            at, count, first, d = b * length, sizes[2 + b], 4 + sizes[2 + batch + b], dy[b]
            highest = _maximum(x, at, length)
            tau = _threshold(x, at, length, highest)
            if ins[FLAGS] & ACCUMULATE:
                for j in lanes(length):
                    p = _above(x[at + j], highest, tau)
                    dx[at + j] += number(0, d) if p <= 0 else d * p
            else:
                for j in lanes(length):
                    p = _above(x[at + j], highest, tau)
                    dx[at + j] = number(0, d) if p <= 0 else d * p
            q = d / number(count, d)
            meet()
            for k in lanes(count):
                dx[at + immediate(ins, first + k, i)] -= q


for _kernel in (sparsemax_loss, sparsemax_loss_gradient):
    _kernel.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])


def _vector(op, x):
    if x.size != x.dims[0]:
        raise wrong(op, f"{len(x.dims)} dims", [x], "a vector, (n,)")


def _loss_shape(shapes, counts):
    x = shapes[0]
    _vector("sparsemax_loss", x)
    if len(counts) != x.batch:
        raise wrong("sparsemax_loss", f"{len(counts)} lists of ids", [x], "one list for each element of the minibatch")
    if not all(counts):
        raise ArgumentError("sparsemax_loss: a list of ids is empty\n  expected  at least one id of each element")
    return Shape((1,), x.batch)


def _loss_lower(shapes, out, shared, counts):
    operand = Operand(backward=sparsemax_loss_gradient)
    firsts = (sum(counts[:b]) for b in range(out.batch))
    return Lowering(sparsemax_loss, (shapes[0].size, out.batch, *counts, *firsts), (operand,), limit=shapes[0].size)


def _loss_reference(x, ids):
    p, q = _sparsemax_reference(x), np.zeros(x.shape)
    for b, some in enumerate(ids if isinstance(ids[0], list) else [ids]):
        q[some, ..., b] = 1 / len(some)
    inner = tuple(range(x.ndim - 1))
    return (p * x - p * p / 2 - q * x + q * q / 2).sum(axis=inner)[None]


def _loss_samples(choose):
    n, batch = choose.integer(1, 6), choose.batch()
    ids = [choose.some(n) for _ in range(batch)]
    return Sample((Tensor(Shape((n,), batch)), ids if batch > 1 else ids[0]))


SPARSEMAX_LOSS = Op(
    name="sparsemax_loss",
    doc="max over p of p·x - p²/2, minus q·x - q²/2, for q even on some ids; p, q >= 0, sum 1.    dx += dy (sparsemax(x) - q)",
    shapes="(n,) -> (1,)",
    shape=_loss_shape,
    lower=_loss_lower,
    reference=_loss_reference,
    samples=_loss_samples,
)


# constrained_softmax --------------------------------------------------------------------------------------------------
# sizes: length, batch, then 1 for each argument that has a batch of its own
#
# Entries that eˣ / z would put above u are put at u and take no part in what is shared; as this makes the share of all others
# larger it is repeated until none is above. With F the entries below their bound, A the others, M = Σ y over F:
#
#     y = u on A, softmax over F times (1 - Σ u over A) on F
#     dx += y (dy - Σ y dy / M) on F        du += dy - Σ y dy / M on A        sums over F; without F there is nothing to share


@kernel(reductions=True)
def constrained_softmax(ins, T):
    """y = min(u, eˣ / z), z such that Σ y = 1; u itself where Σ u < 1."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, batch, lowest = sizes[0], sizes[1], number(-np.inf, T)
    for i in items(n):
        for b in parts(batch):
            y, x, u = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
            at, at_x, at_u = b * length, b * length * sizes[2], b * length * sizes[3]
            for j in lanes(length):
                y[at + j] = 0
            while True:
                # y of entries at their bound is -1 for now. The largest of the others is sought anew, or they might all
                # underflow where larger ones are at their bounds.
                highest, scale, more = lowest, number(0, T), 0
                for j in lanes(length):
                    v = x[at_x + j]
                    if y[at + j] >= 0 and (v > highest or v != v):
                        highest = v
                highest = largest(highest)
                if highest == lowest:  # none is left, or none that could have a share
                    break
                total, taken = number(0, highest), number(0, highest)
                for j in lanes(length):
                    if y[at + j] >= 0:
                        y[at + j] = _math.exp(x[at_x + j] - highest)
                        total += y[at + j]
                    else:
                        taken += u[at_u + j]
                rest = number(1, highest) - joined(taken)
                scale = number(0, rest) if rest < 0 else rest / joined(total)
                for j in lanes(length):
                    if y[at + j] >= 0 and y[at + j] * scale > u[at_u + j]:
                        y[at + j] = -1
                        more += 1
                if joined(more) == 0:
                    break
            for j in lanes(length):
                y[at + j] = u[at_u + j] if y[at + j] < 0 else y[at + j] * scale


@kernel(reductions=True)
def constrained_softmax_gradient(ins, T):
    """dx = or += y (dy - mean) below the bound, du = or += dy - mean at it; mean = Σ y dy / Σ y below the bound."""
    n, sizes, of = ins[ITEMS], integers(ins[SIZES]), argument(ins)
    length, batch = sizes[0], sizes[1]
    for i in items(n):
        dx, dy, y, u = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for b in range(batch):
            at, at_u, to = b * length, b * length * sizes[3], b * length * sizes[2 + of]
            total, mass = number(0, dy[0]), number(0, dy[0])
            for j in lanes(length):
                free = y[at + j] < u[at_u + j]
                total += y[at + j] * dy[at + j] if free else number(0, total)
                mass += y[at + j] if free else number(0, mass)
            total, mass = joined(total), joined(mass)
            mean = total / mass if mass > 0 else number(0, mass)
            add = ins[FLAGS] & ACCUMULATE or (b > 0 and not sizes[2 + of])  # each lane adds to its own numbers
            for j in lanes(length):
                free = y[at + j] < u[at_u + j]
                if of == 0:
                    d = y[at + j] * (dy[at + j] - mean) if free else number(0, mean)
                else:
                    d = number(0, mean) if free else dy[at + j] - mean
                dx[to + j] = dx[to + j] + d if add else d


constrained_softmax.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])


def _constrained_shape(shapes):
    if trimmed(shapes[0].dims) != trimmed(shapes[1].dims):
        raise wrong("constrained_softmax", "the dims differ", shapes, "equal dims, equal batch sizes or 1")
    _vector("constrained_softmax", shapes[0])
    return Shape(shapes[0].dims, common_batch("constrained_softmax", shapes))


def _constrained_lower(shapes, out, shared):
    sizes = (out.size, out.batch, *(int(s.batch > 1) for s in shapes))
    return Lowering(constrained_softmax, sizes, (Operand(backward=constrained_softmax_gradient, needs=(1,)),) * 2)


def _constrained_reference(x, u):
    x, u = np.broadcast_arrays(x, u)
    y = np.empty(x.shape)
    for b in range(x.shape[-1]):
        e, bound = np.exp(x[..., b] - x[..., b].max()), u[..., b]
        free = np.ones(e.shape, bool)
        while True:
            share = max(1 - bound[~free].sum(), 0.0) / e[free].sum() if free.any() else 0.0
            still = free & (e * share <= bound)
            if (still == free).all():
                break
            free = still
        y[..., b] = np.where(free, e * share, bound)
    return y


def _constrained_samples(choose):
    n, batch = choose.integer(1, 6), choose.batch()
    x, u = (Shape((n,), batch if choose.integer(0, 2) else 1) for _ in range(2))
    return Sample((Tensor(x), Tensor(u, 1.05 / n, 1.8 / n)))


CONSTRAINED_SOFTMAX = Op(
    name="constrained_softmax",
    doc="min(u, eˣ / z) with z such that the sum is 1.    dx += y (dy - m) below u, du += dy - m at it; m: mean of dy below u",
    shapes="(n,), (n,) -> (n,)",
    shape=_constrained_shape,
    lower=_constrained_lower,
    reference=_constrained_reference,
    samples=_constrained_samples,
)

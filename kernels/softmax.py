"""Softmax, log-softmax and the loss -log softmax(x)[v].

    softmax            y = eˣ / Σ eˣ          dx += y (dy - Σ dy y)
    log_softmax        y = x - log Σ eˣ       dx += dy - eʸ Σ dy
    restricted         the same over some ids, -inf elsewhere
    pickneglogsoftmax  y = log Σ eˣ - x[v]    dx += dy (softmax(x) - [j = v])

The maximum is subtracted first, so nothing overflows.

On a card a team takes one softmax, its lanes the numbers; the largest number and the sum come from one pass over x, in which a
lane that meets a larger number scales what it has. So a loss reads x once, and its gradient once.
"""

import math

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, immediate, inline, integers, item, kernel, number
from autobatch.kernels._lanes import items, joined, lanes, leader, meet, parts, width
from autobatch.kernels._lanes import largest as largest_of_all
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, wrong
from autobatch.kernels._reduce import (
    all_exps,
    all_joined,
    as_spread,
    by_lane,
    end_result,
    first_number,
    first_result,
    number_step,
    quotient,
    remainder,
    spread,
    turns,
    with_exp,
)

# sizes: length of the dim, stride of the dim, number of groups (one softmax each), groups side by side (= the stride)


@inline
def _highest(x, at, n):
    """The largest of n numbers side by side, NaN if there is one: compared as integers, 0.1 ns a number instead of 0.9.

    With `always` the loop would be no vector code.
    """
    highest = _math.order_of(x[at])
    for j in range(n):
        highest = max(highest, _math.order_of(x[at + j]))
    return _math.number_of(highest, x[at])


@inline
def _maximum(x, at, n, step):
    largest = x[at]
    for j in range(1, n):
        v = x[at + j * step]
        largest = v if v > largest or v != v else largest
    return largest


@inline
def _apart(x, largest, rest):
    """(x - largest) - rest. In a function of its own, as a kernel whose sums may be reordered makes x - (largest + rest) of it,
    and that has lost the digits of the rest where scores are large.
    """
    return (x - largest) - rest


@inline
def _loss(x, largest, rest):
    """rest - (x - largest), see `_apart`."""
    return rest - (x - largest)


@kernel(reductions=True)
def softmax(ins, T):
    """y = eˣ / Σ eˣ along one dim."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, step, groups = sizes[0], sizes[1], sizes[2]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for g in range(groups):
            at = g // step * step * length + g % step
            largest = _highest(x, at, length) if step == 1 else _maximum(x, at, length, step)
            total = number(0, largest)
            if step == 1:
                for j in range(length):
                    y[at + j] = _math.exp(x[at + j] - largest)
                    total += y[at + j]
                for j in range(length):
                    y[at + j] /= total
            else:
                for j in range(length):
                    y[at + j * step] = _math.exp(x[at + j * step] - largest)
                    total += y[at + j * step]
                for j in range(length):
                    y[at + j * step] /= total


def _spread(sizes):
    """Lanes and parts of a softmax: see `_reduce.spread`."""
    return spread(sizes[1], sizes[2] // sizes[1], sizes[0])


@softmax.on_card(**as_spread(_spread))
def softmax_card(ins, T):
    """Two passes over x."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, step, groups = sizes[0], sizes[1], sizes[2]
    alone = by_lane(step, groups // step, length)
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, groups)):
            g = first_result(alone, t)
            while g < end_result(alone, t, groups):
                at = quotient(g, step) * step * length + remainder(g, step)
                highest, total, j = number(-np.inf, T), number(0, T), first_number(alone)
                while j < length:
                    highest, total = with_exp(highest, total, x[at + j * step])
                    j += number_step(alone)
                highest, total = all_exps(alone, highest, total)
                share, j = number(1, T) / total, first_number(alone)
                while j < length:
                    y[at + j * step] = _math.exp(x[at + j * step] - highest) * share
                    j += number_step(alone)
                g += width()


@kernel(reductions=True)
def softmax_gradient(ins, T):
    """dx = or += y (dy - Σ dy y)."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, step, groups = sizes[0], sizes[1], sizes[2]
    for i in range(n):
        dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for g in range(groups):
            at = g // step * step * length + g % step
            total = number(0, dy[0])
            for j in range(length):
                total += dy[at + j * step] * y[at + j * step]
            if ins[FLAGS] & ACCUMULATE:
                for j in range(length):
                    dx[at + j * step] += y[at + j * step] * (dy[at + j * step] - total)
            else:
                for j in range(length):
                    dx[at + j * step] = y[at + j * step] * (dy[at + j * step] - total)


@softmax_gradient.on_card(**as_spread(_spread))
def softmax_gradient_card(ins, T):
    """The same, spread as the forward kernel."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    length, step, groups = sizes[0], sizes[1], sizes[2]
    alone = by_lane(step, groups // step, length)
    for i in items(n):
        dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for t in parts(turns(alone, groups)):
            g = first_result(alone, t)
            while g < end_result(alone, t, groups):
                at = quotient(g, step) * step * length + remainder(g, step)
                total, j = number(0, T), first_number(alone)
                while j < length:
                    total += dy[at + j * step] * y[at + j * step]
                    j += number_step(alone)
                total, j = all_joined(alone, total), first_number(alone)
                while j < length:
                    d = y[at + j * step] * (dy[at + j * step] - total)
                    dx[at + j * step] = dx[at + j * step] + d if add else d
                    j += number_step(alone)
                g += width()


@kernel(reductions=True)
def log_softmax(ins, T):
    """y = x - log Σ eˣ along one dim."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, step, groups = sizes[0], sizes[1], sizes[2]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for g in range(groups):
            at = g // step * step * length + g % step
            largest = _highest(x, at, length) if step == 1 else _maximum(x, at, length, step)
            total = number(0, largest)
            for j in range(length):
                total += _math.exp(x[at + j * step] - largest)
            total = _math.log(total)
            for j in range(length):
                y[at + j * step] = _apart(x[at + j * step], largest, total)


def _columns(sizes):
    """Lanes and parts where each softmax is a column."""
    return sizes[0], sizes[2]


@log_softmax.on_card(**as_spread(_columns))
def log_softmax_card(ins, T):
    """Two passes over x. One softmax after the other: there is none along another dim than the first."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, groups = sizes[0], sizes[2]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for g in parts(groups):
            at, highest, total = g * length, number(-np.inf, T), number(0, T)
            for j in lanes(length):
                highest, total = with_exp(highest, total, x[at + j])
            highest, total = all_exps(False, highest, total)
            total = _math.log(total)
            for j in lanes(length):
                y[at + j] = _apart(x[at + j], highest, total)


@kernel(reductions=True)
def log_softmax_gradient(ins, T):
    """dx = or += dy - eʸ Σ dy."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, step, groups = sizes[0], sizes[1], sizes[2]
    for i in items(n):
        dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for g in parts(groups):
            at = g // step * step * length + g % step
            total = number(0, dy[0])
            for j in lanes(length):
                total += dy[at + j * step]
            total = joined(total)
            if ins[FLAGS] & ACCUMULATE:
                for j in lanes(length):
                    dx[at + j * step] += dy[at + j * step] - _math.exp(y[at + j * step]) * total
            else:
                for j in lanes(length):
                    dx[at + j * step] = dy[at + j * step] - _math.exp(y[at + j * step]) * total


log_softmax_gradient.on_card(**as_spread(_columns))


def _softmax_shape(name):
    def rule(shapes, d=0):
        x = shapes[0]
        if len(x.dims) > 2:
            raise wrong(name, f"{len(x.dims)} dims", [x], "a vector or a matrix")
        if not isinstance(d, int) or not 0 <= d < len(x.dims):
            raise wrong(name, f"dim {d} does not exist", [x], f"d from 0 to {len(x.dims) - 1}")
        return x

    return rule


def _softmax_lower(forward, backward, needs):
    def lower(shapes, out, shared, d=0):
        length, step = out.dims[d], math.prod(out.dims[:d])
        return Lowering(forward, (length, step, out.total // length), (Operand(backward=backward, needs=needs),))

    return lower


def _softmax_samples(choose):
    dims = choose.dims(1, 2)
    return Sample((Tensor(Shape(dims, choose.batch())), choose.integer(0, len(dims) - 1)))


def _softmax_reference(x, d=0):
    e = np.exp(x - x.max(axis=d, keepdims=True))
    return e / e.sum(axis=d, keepdims=True)


SOFTMAX = Op(
    name="softmax",
    doc="eˣ / Σ eˣ along dim d of a vector or matrix.    dx += y (dy - Σ dy y)",
    shape=_softmax_shape("softmax"),
    lower=_softmax_lower(softmax, softmax_gradient, ()),
    reference=_softmax_reference,
    samples=_softmax_samples,
    shapes="(n,) or (r,c) -> as x",
)
LOG_SOFTMAX = Op(
    name="log_softmax",
    doc="x - log Σ eˣ of each column of a vector or matrix.    dx += dy - eʸ Σ dy",
    shape=_softmax_shape("log_softmax"),
    lower=_softmax_lower(log_softmax, log_softmax_gradient, ()),
    reference=lambda x: np.log(_softmax_reference(x)),
    samples=lambda choose: Sample((Tensor(Shape(choose.dims(1, 2), choose.batch())),)),
    shapes="(n,) or (r,c) -> as x",
)


# log_softmax over some ids ---------------------------------------------------------------------------------------------
# sizes: length, columns in all, count of ids; one immediate for each id


@kernel
def restricted_log_softmax(ins, T):
    """y = x - log Σ eˣ over the ids, -inf elsewhere, of each column."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, groups, count = sizes[0], sizes[1], sizes[2]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for g in parts(groups):
            at = g * length
            for j in lanes(length):
                y[at + j] = number(-np.inf, T)
            largest = x[at + immediate(ins, 2, i)]
            for k in lanes(1, count):
                v = x[at + immediate(ins, 2 + k, i)]
                largest = v if v > largest or v != v else largest
            largest = largest_of_all(largest)
            total = number(0, largest)
            for k in lanes(count):
                total += _math.exp(x[at + immediate(ins, 2 + k, i)] - largest)
            total = _math.log(joined(total))
            meet()
            for k in lanes(count):
                j = at + immediate(ins, 2 + k, i)
                y[j] = (x[j] - largest) - total


@kernel
def restricted_log_softmax_gradient(ins, T):
    """dx = or += dy - eʸ Σ dy over the ids, 0 elsewhere."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, groups, count = sizes[0], sizes[1], sizes[2]
    for i in items(n):
        dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for g in parts(groups):
            if not ins[FLAGS] & ACCUMULATE:
                for j in lanes(length):
                    dx[g * length + j] = 0
            total = number(0, dy[0])
            for k in lanes(count):
                total += dy[g * length + immediate(ins, 3 + k, i)]
            total = joined(total)
            meet()
            for k in lanes(count):
                j = g * length + immediate(ins, 3 + k, i)
                dx[j] += dy[j] - _math.exp(y[j]) * total


for _kernel in (restricted_log_softmax, restricted_log_softmax_gradient):
    _kernel.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])


def _restricted_shape(shapes, count):
    x = shapes[0]
    if len(x.dims) > 2:
        raise wrong("log_softmax", f"{len(x.dims)} dims", [x], "a vector or a matrix")
    if count == 0:
        raise ArgumentError("log_softmax: the list of ids to restrict to is empty\n  expected  at least one id")
    return x


def _restricted_lower(shapes, out, shared, count):
    length = out.dims[0]
    operand = Operand(backward=restricted_log_softmax_gradient, needs=())
    return Lowering(restricted_log_softmax, (length, out.total // length, count), (operand,), limit=length)


def _restricted_samples(choose):
    dims = choose.dims(1, 2)
    return Sample((Tensor(Shape(dims, choose.batch())), choose.some(dims[0])))


def _restricted_reference(x, restrict):
    y = np.full(x.shape, -np.inf)
    y[restrict] = np.log(_softmax_reference(x[restrict]))
    return y


RESTRICTED_LOG_SOFTMAX = Op(
    name="restricted_log_softmax",
    doc="x - log Σ eˣ of each column over some ids, -inf elsewhere.    dx += dy - eʸ Σ dy over these ids",
    shapes="(r,), (r,c) -> as x",
    shape=_restricted_shape,
    lower=_restricted_lower,
    reference=_restricted_reference,
    samples=_restricted_samples,
)


# pickneglogsoftmax ----------------------------------------------------------------------------------------------------
# sizes: length, batch; one immediate for each element of the batch


@kernel(reductions=True)
def pickneglogsoftmax(ins, T):
    """y = log Σ eˣ - x[v]."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, batch = sizes[0], sizes[1]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in range(batch):
            at = b * length
            largest = _highest(x, at, length)
            total = number(0, largest)
            for j in range(length):
                total += _math.exp(x[at + j] - largest)
            y[b] = _loss(x[at + immediate(ins, 2 + b, i)], largest, _math.log(total))


@pickneglogsoftmax.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])
def pickneglogsoftmax_card(ins, T):
    """One pass over x."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, batch = sizes[0], sizes[1]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in parts(batch):
            at, highest, total = b * length, number(-np.inf, T), number(0, T)
            for j in lanes(length):
                highest, total = with_exp(highest, total, x[at + j])
            highest, total = all_exps(False, highest, total)
            if leader():
                y[b] = _loss(x[at + immediate(ins, 2 + b, i)], highest, _math.log(total))


@kernel(reductions=True)
def pickneglogsoftmax_gradient(ins, T):
    """dx = or += dy (softmax(x) - [j = v])."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, batch = sizes[0], sizes[1]
    for i in range(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for b in range(batch):
            at, g = b * length, dy[b]
            v = at + immediate(ins, 4 + b, i)
            right, loss = x[v], y[b]  # x - right - loss = log softmax(x)
            if ins[FLAGS] & ACCUMULATE:
                for j in range(length):
                    dx[at + j] += g * _math.exp(_apart(x[at + j], right, loss))
            else:
                for j in range(length):
                    dx[at + j] = g * _math.exp(_apart(x[at + j], right, loss))
            dx[v] -= g


@pickneglogsoftmax_gradient.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])
def pickneglogsoftmax_gradient_card(ins, T):
    """One pass over x."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    length, batch = sizes[0], sizes[1]
    for i in items(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for b in parts(batch):
            at, v, g, loss = b * length, immediate(ins, 4 + b, i), dy[b], y[b]
            right = x[at + v]
            for j in lanes(length):
                d = g * _math.exp(_apart(x[at + j], right, loss))
                if j == v:
                    d -= g
                dx[at + j] = dx[at + j] + d if add else d


def _loss_shape(shapes, count=1):
    x = shapes[0]
    if len(x.dims) > 1 and x.size != x.dims[0]:
        raise wrong("pickneglogsoftmax", f"{len(x.dims)} dims", [x], "a vector of scores, (n,)")
    if count == 0:
        raise ArgumentError("pickneglogsoftmax_batch: the list of indices is empty")
    if x.batch != count:
        raise wrong(
            "pickneglogsoftmax",
            f"{count} ind{'ex' if count == 1 else 'ices'} for a minibatch of {x.batch}",
            [x],
            "one index for each element of the minibatch",
            "pickneglogsoftmax_batch with a list of indices" if x.batch > 1 and count == 1 else "",
        )
    return Shape((1,), x.batch)


def _loss_lower(shapes, out, shared, count=1):
    return Lowering(
        pickneglogsoftmax,
        (shapes[0].size, shapes[0].batch),
        (Operand(backward=pickneglogsoftmax_gradient),),
        limit=shapes[0].size,
    )


def _loss_reference(x, v):
    v = np.atleast_1d(v)
    logs = np.log(_softmax_reference(x))
    return -np.stack([logs[i, ..., b].reshape(1) for b, i in enumerate(v)], axis=-1)


def _loss_samples(choose):
    n = choose.integer(1, 6)
    return Sample((Tensor(Shape((n,))), choose.integer(0, n - 1)))


def _loss_batch_samples(choose):
    n, batch = choose.integer(1, 6), choose.batch()
    return Sample((Tensor(Shape((n,), batch)), [choose.integer(0, n - 1) for _ in range(batch)]))


PICKNEGLOGSOFTMAX = Op(
    name="pickneglogsoftmax",
    doc="-log softmax(x)[v], in nats.    dx += dy (softmax(x) - [j = v])",
    shape=_loss_shape,
    lower=_loss_lower,
    reference=_loss_reference,
    samples=_loss_samples,
    shapes="(n,) -> (1,)",
)
PICKNEGLOGSOFTMAX_BATCH = Op(
    name="pickneglogsoftmax_batch",
    doc="-log softmax(x)[v] for each element of the minibatch with its own v, in nats.",
    shape=_loss_shape,
    lower=_loss_lower,
    reference=_loss_reference,
    samples=_loss_batch_samples,
    shapes="(n,) -> (1,)",
)

"""Dropout: y = x ∘ mask / (1 - p), mask drawn from Bernoulli(1 - p).    dx += dy ∘ mask / (1 - p)

    dropout         one draw for each number
    dropout_dim     one draw for all numbers along dim d
    dropout_batch   one draw for each element of the minibatch
    block_dropout   the same: the whole node, or of a minibatch each element, is kept or dropped

The mask of a node is a function of its key, drawn when the node is recorded, and of the place in the node (`_random.py`). So it
is the same whatever batch the node runs in, and backward computes it again instead of keeping it.
"""

import math

import numpy as np

from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, immediate, inline, integers, item, kernel, number
from autobatch.kernels._lanes import items, lanes, quotient
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor
from autobatch.kernels._random import hashes, limit, mixed, reference_bits


@inline
def _scale(p):
    """1 / (1 - p), or 0 where nothing is kept."""
    return number(1, p) / (number(1, p) - p) if p < 1 else number(0, p)


@kernel
def dropout(ins, T):
    """y = x where the draw is at least p, scaled; else 0. Slots: y, x, p, key."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        y, x, p = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)[0]
        scale, dropped = _scale(p), limit(p)
        first, second = hashes(immediate(ins, 3, i))
        for j in lanes(size):
            y[j] = x[j] * scale if np.int64(mixed(first, second, j)) >= dropped else number(0, scale)


@kernel
def dropout_gradient(ins, T):
    """dx = or += dy where x was kept, scaled. Slots: dx, dy, y, p, key."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        dx, dy, p = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)[0]
        scale, dropped = _scale(p), limit(p)
        first, second = hashes(immediate(ins, 4, i))
        if ins[FLAGS] & ACCUMULATE:
            for j in lanes(size):
                dx[j] += dy[j] * scale if np.int64(mixed(first, second, j)) >= dropped else number(0, scale)
        else:
            for j in lanes(size):
                dx[j] = dy[j] * scale if np.int64(mixed(first, second, j)) >= dropped else number(0, scale)


# sizes: numbers that share a draw, their stride, numbers in all. Draws are counted as the numbers of a node without that dim.


@inline
def _masked(y, x, p, key, sizes, add):
    """y = or += x where the draw of its group is at least p, scaled; else 0."""
    length, step, total = sizes[0], sizes[1], sizes[2]
    scale, dropped = _scale(p), limit(p)
    first, second = hashes(key)
    for o in range(total // (length * step)):
        for k in range(length):
            at = (o * length + k) * step
            if add:
                for j in range(step):
                    kept = np.int64(mixed(first, second, o * step + j)) >= dropped
                    y[at + j] += x[at + j] * scale if kept else number(0, scale)
            else:
                for j in range(step):
                    kept = np.int64(mixed(first, second, o * step + j)) >= dropped
                    y[at + j] = x[at + j] * scale if kept else number(0, scale)


@inline
def _masked_runs(y, x, p, key, sizes, add):
    """The same where the numbers that share a draw lie one after the other."""
    length, total = sizes[0], sizes[2]
    scale, dropped = _scale(p), limit(p)
    first, second = hashes(key)
    for o in range(total // length):
        at = o * length
        if np.int64(mixed(first, second, o)) < dropped:
            if not add:
                for j in range(length):
                    y[at + j] = 0
        elif add:
            for j in range(length):
                y[at + j] += x[at + j] * scale
        else:
            for j in range(length):
                y[at + j] = x[at + j] * scale


@kernel
def shared_dropout(ins, T):
    """y = x where the draw of its group is at least p, scaled; else 0. Slots: y, x, p, key."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    for i in range(n):
        y, x, p, key = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)[0], immediate(ins, 3, i)
        if sizes[1] == 1:
            _masked_runs(y, x, p, key, sizes, False)
        else:
            _masked(y, x, p, key, sizes, False)


@kernel
def shared_dropout_gradient(ins, T):
    """dx = or += dy where x was kept, scaled. Slots: dx, dy, y, p, key."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    add = ins[FLAGS] & ACCUMULATE != 0
    for i in range(n):
        dx, dy, p, key = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)[0], immediate(ins, 4, i)
        if sizes[1] == 1:
            _masked_runs(dx, dy, p, key, sizes, add)
        else:
            _masked(dx, dy, p, key, sizes, add)


@inline
def _masked_card(y, x, p, key, sizes, add):
    """The same on a card: a lane for each number, which finds its draw."""
    length, step = sizes[0], sizes[1]
    scale, dropped = _scale(p), limit(p)
    first, second = hashes(key)
    for j in lanes(sizes[2]):
        row = quotient(j, step)
        place = quotient(row, length) * step + (j - row * step)
        value = x[j] * scale if np.int64(mixed(first, second, place)) >= dropped else number(0, scale)
        y[j] = y[j] + value if add else value


@shared_dropout.on_card(work=lambda sizes: sizes[2])
def shared_dropout_card(ins, T):
    """As `shared_dropout`."""
    for i in items(ins[ITEMS]):
        y, x, p, key = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)[0], immediate(ins, 3, i)
        _masked_card(y, x, p, key, integers(ins[SIZES]), False)


@shared_dropout_gradient.on_card(work=lambda sizes: sizes[2])
def shared_dropout_gradient_card(ins, T):
    """As `shared_dropout_gradient`."""
    for i in items(ins[ITEMS]):
        dx, dy, p, key = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)[0], immediate(ins, 4, i)
        _masked_card(dx, dy, p, key, integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE != 0)


# Records --------------------------------------------------------------------------------------------------------------


def _scaled(x, p, key, shape):
    """x with a mask of draws of this shape, which broadcasts to that of x."""
    kept = (reference_bits(key, math.prod(shape)) >= np.int64(p * 2**32)).reshape(shape, order="F")
    return np.where(kept, x / (1 - p) if p < 1 else np.zeros(x.shape), 0.0)


_P = (0.0, 0.25, 0.5, 0.9, 1.0)


def _samples(choose):
    x = Tensor(Shape(choose.dims(), choose.batch()))
    return Sample((x, choose.one_of(_P)), {"key": choose.integer(0, 2**31 - 1)})


def _dim_samples(choose):
    dims = choose.dims()
    x, d = Tensor(Shape(dims, choose.batch())), choose.integer(0, len(dims) - 1)
    return Sample((x, d, choose.one_of(_P)), {"key": choose.integer(0, 2**31 - 1)})


def _dim_shape(shapes, d):
    x = shapes[0]
    if not 0 <= d < len(x.dims):
        raise ArgumentError(f"dropout_dim: dim {d} of {x}\n  expected  a dim from 0 to {len(x.dims) - 1}")
    return x


def _shared(length, step, total):
    operands = Operand(backward=shared_dropout_gradient, needs=(1,)), Operand()
    return Lowering(shared_dropout, (length, step, total), operands)


DROPOUT = Op(
    name="dropout",
    doc="x where it is kept, scaled by 1 / (1 - p), else 0; each number with a draw of its own.    dx += dy, masked alike",
    shapes="any, (1,) -> as the first",
    shape=lambda shapes: shapes[0],
    lower=lambda shapes, out, shared: Lowering(
        dropout, (out.total,), (Operand(backward=dropout_gradient, needs=(1,)), Operand())
    ),
    reference=lambda x, p, key: _scaled(x, p, key, x.shape),
    samples=_samples,
)
DROPOUT_DIM = Op(
    name="dropout_dim",
    doc="Dropout with one draw for all numbers along dim d.    dx += dy, masked alike",
    shapes="any, (1,) -> as the first",
    shape=_dim_shape,
    lower=lambda shapes, out, shared, d: _shared(out.dims[d], math.prod(out.dims[:d]), out.total),
    reference=lambda x, d, p, key: _scaled(x, p, key, (*x.shape[:d], 1, *x.shape[d + 1 :])),
    samples=_dim_samples,
)
DROPOUT_BATCH = Op(
    name="dropout_batch",
    doc="Dropout with one draw for each element of the minibatch.    dx += dy, masked alike",
    shapes="any, (1,) -> as the first",
    shape=lambda shapes: shapes[0],
    lower=lambda shapes, out, shared: _shared(out.size, 1, out.total),
    reference=lambda x, p, key: _scaled(x, p, key, (*(1,) * (x.ndim - 1), x.shape[-1])),
    samples=_samples,
)
BLOCK_DROPOUT = Op(
    name="block_dropout",
    doc="All of x, scaled by 1 / (1 - p), or nothing of it; of a minibatch, each element by itself.    dx += dy, masked alike",
    shapes="any, (1,) -> as the first",
    shape=lambda shapes: shapes[0],
    lower=lambda shapes, out, shared: _shared(out.size, 1, out.total),
    reference=lambda x, p, key: _scaled(x, p, key, (*(1,) * (x.ndim - 1), x.shape[-1])),
    samples=_samples,
)

"""Dropout: y = x ∘ mask / (1 - p), mask drawn from Bernoulli(1 - p).    dx += dy ∘ mask / (1 - p)

The mask of a node is a function of its key, drawn when the node is recorded, and of the place in the node. So it is the same
whatever batch the node runs in, and backward computes it again instead of keeping it.
Source of the mixing function: the 32-bit finalizer of MurmurHash3 (A. Appleby).
"""

import numpy as np

from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, immediate, inline, integers, item, kernel, number
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor


@inline
def _draw(key, j):
    """32 random bits for place j of the node with this key."""
    h = np.uint32(key * 0x9E3779B1 + j * 0x85EBCA77)  # Numba multiplies 32 bits to 64
    h ^= h >> np.uint32(16)
    h = np.uint32(h * np.uint32(0x85EBCA6B))
    h ^= h >> np.uint32(13)
    h = np.uint32(h * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@inline
def _scale(p):
    """1 / (1 - p), or 0 where nothing is kept."""
    return number(1 / (1 - p), p) if p < 1 else number(0, p)


@kernel
def dropout(ins, T):
    """y = x where the draw is at least p, scaled; else 0. Slots: y, x, p, key."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in range(n):
        y, x, p, key = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)[0], immediate(ins, 3, i)
        scale, limit = _scale(p), np.int64(np.float64(p) * 4294967296.0)
        for j in range(size):
            y[j] = x[j] * scale if np.int64(_draw(key, j)) >= limit else number(0, scale)


@kernel
def dropout_gradient(ins, T):
    """dx = or += dy where x was kept, scaled. Slots: dx, dy, y, p, key."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in range(n):
        dx, dy, p, key = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)[0], immediate(ins, 4, i)
        scale, limit = _scale(p), np.int64(np.float64(p) * 4294967296.0)
        if ins[FLAGS] & ACCUMULATE:
            for j in range(size):
                dx[j] += dy[j] * scale if np.int64(_draw(key, j)) >= limit else number(0, scale)
        else:
            for j in range(size):
                dx[j] = dy[j] * scale if np.int64(_draw(key, j)) >= limit else number(0, scale)


def _reference(x, p, key):
    with np.errstate(over="ignore"):
        j = np.arange(x.size, dtype=np.uint32)
        h = np.uint32(key) * np.uint32(0x9E3779B1) + j * np.uint32(0x85EBCA77)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(16)
    kept = (h >= np.int64(p * 2**32)).reshape(x.shape, order="F")
    return np.where(kept, x / (1 - p) if p < 1 else 0.0, 0.0)


def _samples(choose):
    p = choose.one_of([0.0, 0.25, 0.5, 0.9, 1.0])
    return Sample((Tensor(Shape(choose.dims(), choose.batch())), p), {"key": choose.integer(0, 2**31 - 1)})


DROPOUT = Op(
    name="dropout",
    doc=__doc__,
    shape=lambda shapes: shapes[0],
    lower=lambda shapes, out, shared: Lowering(
        dropout, (out.total,), (Operand(backward=dropout_gradient, needs=(1,)), Operand())
    ),
    reference=_reference,
    samples=_samples,
)

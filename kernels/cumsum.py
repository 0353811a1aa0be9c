"""Running sum along a dim: y[j] = x[0] + ... + x[j].    dx[j] += dy[j] + ... + dy[last]"""

import numpy as np

from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, integers, item, kernel, number
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor
from autobatch.kernels._reduce import BLOCK, along, block, check_dim

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


def _shape(shapes, d):
    check_dim("cumsum", shapes[0], d)
    return shapes[0]


def _samples(choose):
    dims = choose.dims()
    return Sample((Tensor(Shape(dims, choose.batch())), choose.integer(0, len(dims) - 1)))


CUMSUM = Op(
    name="cumsum",
    doc=__doc__,
    shape=_shape,
    lower=lambda shapes, out, shared, d: Lowering(cumsum, along(shapes[0], d), (Operand(backward=cumsum_gradient, needs=()),)),
    reference=lambda x, d=0: np.cumsum(x, axis=d),
    samples=_samples,
    shapes="any -> as x",
)

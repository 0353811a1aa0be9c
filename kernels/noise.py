"""Noise: x + stddev · N(0, 1), and inputs of random numbers, which have no argument but the numbers of the distribution.

    noise             y = x + stddev z           dx += dy
    random_normal     y = mean + stddev z        z normal: the quantile of a uniform number
    random_uniform    y = left + (right - left) u
    random_bernoulli  y = scale where u < p, else 0
    random_gumbel     y = mu - beta log(-log u)

The numbers of a node follow from its key and the place in the node (`_random.py`), so they are the same whatever batch the node
runs in, and in float32 as in float64. The parameters of the distributions are operands: nodes that differ in them are alike.
"""

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, immediate, integers, item, kernel, number
from autobatch.kernels._lanes import items, lanes
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor
from autobatch.kernels._random import exponential, hashes, limit, mixed, normal, reference_bits, uniform

# sizes: numbers in all


@kernel
def noise(ins, T):
    """y = x + stddev z. Slots: y, x, stddev, key."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        y, x, stddev = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)[0]
        first, second = hashes(immediate(ins, 3, i))
        for j in lanes(size):
            y[j] = x[j] + stddev * normal(mixed(first, second, j), stddev)


@kernel
def noise_gradient(ins, T):
    """dx = or += dy."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        if ins[FLAGS] & ACCUMULATE:
            for j in lanes(size):
                dx[j] += dy[j]
        else:
            for j in lanes(size):
                dx[j] = dy[j]


@kernel
def random_normal(ins, T):
    """y = mean + stddev z. Slots: y, mean, stddev, key."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        y, mean, stddev = item(ins, 0, i, T), item(ins, 1, i, T)[0], item(ins, 2, i, T)[0]
        first, second = hashes(immediate(ins, 3, i))
        for j in lanes(size):
            y[j] = mean + stddev * normal(mixed(first, second, j), stddev)


@kernel
def random_uniform(ins, T):
    """y = left + (right - left) u. Slots: y, left, right, key."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        y, left, right = item(ins, 0, i, T), item(ins, 1, i, T)[0], item(ins, 2, i, T)[0]
        first, second = hashes(immediate(ins, 3, i))
        width = right - left
        for j in lanes(size):
            y[j] = left + width * uniform(mixed(first, second, j), width)


@kernel
def random_bernoulli(ins, T):
    """y = scale where the draw is below p, else 0. Slots: y, p, scale, key."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        y, p, scale = item(ins, 0, i, T), item(ins, 1, i, T)[0], item(ins, 2, i, T)[0]
        first, second = hashes(immediate(ins, 3, i))
        below = limit(p)
        for j in lanes(size):
            y[j] = scale if np.int64(mixed(first, second, j)) < below else number(0, scale)


@kernel
def random_gumbel(ins, T):
    """y = mu - beta log(-log u). Slots: y, mu, beta, key."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        y, mu, beta = item(ins, 0, i, T), item(ins, 1, i, T)[0], item(ins, 2, i, T)[0]
        first, second = hashes(immediate(ins, 3, i))
        for j in lanes(size):
            y[j] = mu - beta * _math.log(exponential(mixed(first, second, j), beta))


# Records --------------------------------------------------------------------------------------------------------------


def _halves(key, shape):
    """Numbers in (0, 1), one for each place: (bits + 1/2) / 2³²."""
    return ((reference_bits(key, int(np.prod(shape))) + 0.5) * 2.0**-32).reshape(shape, order="F")


def _quantile(u):
    """The number that a standard normal variable is below with probability u."""
    from scipy.special import ndtri

    return ndtri(u)


def _normals(key, shape):
    bits = reference_bits(key, int(np.prod(shape)))
    p = ((bits & np.uint64(0x7FFFFFFF)) + 0.5) * 2.0**-32
    return np.where(bits >> np.uint64(31), -1.0, 1.0).reshape(shape, order="F") * -_quantile(p).reshape(shape, order="F")


def _noise_samples(choose):
    x = Tensor(Shape(choose.dims(), choose.batch()))
    return Sample((x, choose.one_of([0.0, 0.5, 2.0])), {"key": choose.integer(0, 2**31 - 1)})


NOISE = Op(
    name="noise",
    doc="x + stddev z with standard normal z.    dx += dy",
    shapes="any, (1,) -> as the first",
    shape=lambda shapes: shapes[0],
    lower=lambda shapes, out, shared: Lowering(noise, (out.total,), (Operand(backward=noise_gradient, needs=()), Operand())),
    reference=lambda x, stddev, key: x + stddev * _normals(key, x.shape),
    samples=_noise_samples,
)


def _input(name, doc, forward, draw, pairs):
    """Return the record of an input: `draw(first, second, key, shape)` in NumPy, and pairs of numbers to try."""

    def samples(choose):
        return Sample((choose.dims(), *choose.one_of(pairs), choose.batch()), {"key": choose.integer(0, 2**31 - 1)})

    return Op(
        name=name,
        doc=doc,
        shapes="(1,), (1,) -> as asked for",
        shape=lambda shapes, dims, batch: Shape(dims, batch),
        lower=lambda shapes, out, shared, dims, batch: Lowering(forward, (out.total,), (Operand(), Operand())),
        reference=lambda dims, first, second, batch, key: draw(first, second, key, (*dims, batch)),
        samples=samples,
    )


RANDOM_NORMAL = _input(
    "random_normal",
    "mean + stddev z with standard normal z.    No gradient",
    random_normal,
    lambda mean, stddev, key, shape: mean + stddev * _normals(key, shape),
    [(0.0, 1.0), (2.0, 0.5), (-1.0, 0.0)],
)
RANDOM_UNIFORM = _input(
    "random_uniform",
    "left + (right - left) u with u even in [0, 1).    No gradient",
    random_uniform,
    lambda left, right, key, shape: left + (right - left) * (_halves(key, shape) - 0.5 * 2.0**-32),
    [(0.0, 1.0), (-1.0, 3.0), (2.0, 2.0)],
)
RANDOM_BERNOULLI = _input(
    "random_bernoulli",
    "scale with probability p, else 0.    No gradient",
    random_bernoulli,
    lambda p, scale, key, shape: np.where(_halves(key, shape) < p, scale, 0.0),
    [(0.0, 1.0), (0.25, 2.0), (0.5, 1.0), (1.0, -3.0)],
)
RANDOM_GUMBEL = _input(
    "random_gumbel",
    "mu - beta log(-log u) with u even in (0, 1).    No gradient",
    random_gumbel,
    lambda mu, beta, key, shape: mu - beta * np.log(-np.log(_halves(key, shape))),
    [(0.0, 1.0), (2.0, 0.5), (-1.0, 3.0)],
)

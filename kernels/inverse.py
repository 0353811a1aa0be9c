"""Inverse and log-determinant of square matrices, by Gauss-Jordan elimination with partial pivoting.

    inverse    y = x⁻¹            dx += -yᵀ dy yᵀ
    logdet     y = log det x      dx += dy x⁻ᵀ

The elimination turns a copy of the matrix into its inverse in place: column by column, since a column lies in one piece. It
asks for 2 n³ operations, as many as LAPACK's getrf and getri together, and its inner loop is y[i] -= a[i] * g.

A node of `logdet` keeps the inverse, which is all that its gradient asks for; the user's value is a view of the first
numbers. With minibatch B:

    value     | log det (B) | x⁻¹ (n,n,B) |

On a card a team takes a matrix: the same elimination, in which its lanes share the search for the pivot and each step's n²
numbers. Which rows were exchanged, and dy yᵀ in the gradient, lie in the work space.

Where x is singular nothing is raised, as one bad node must not take down its batch: the inverse has infinities and NaN, the
log-determinant is -inf. It is NaN for a negative determinant, as in DyNet.
"""

import numpy as np
from numba import carray

from autobatch.kernels import _math
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, Count, Stage, inline, integers, item, kernel, number
from autobatch.kernels._lanes import items, lanes, largest, leader, meet, parts, smallest
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, wrong
from autobatch.kernels._reduce import quotient, remainder

# sizes: n, batch


@inline
def _invert(y, at, n, pivots):
    """Invert the matrix that begins at y[at], in place; return the sign of its determinant, and the log of its absolute value.

    `pivots` is room for n integers: which row came to be row k.
    """
    sign, total = number(1, y[0]), number(0, y[0])
    for k in range(n):
        a = at + k * n
        p, largest = k, abs(y[a + k])
        for i in range(k + 1, n):
            if abs(y[a + i]) > largest:
                p, largest = i, abs(y[a + i])
        pivots[k] = p
        if p != k:
            for j in range(n):
                c = at + j * n
                y[c + k], y[c + p] = y[c + p], y[c + k]
            sign = -sign
        pivot = y[a + k]
        if pivot < 0:
            sign = -sign
        if total != -np.inf:  # past a pivot 0 there are only infinities and NaN
            total += _math.log(abs(pivot))
        scale = number(1, pivot) / pivot
        for j in range(n):
            if j != k:
                c = at + j * n
                g = y[c + k] * scale
                for i in range(n):
                    y[c + i] -= y[a + i] * g
                y[c + k] = g
        for i in range(n):
            y[a + i] *= -scale
        y[a + k] = scale
    for k in range(n - 1, -1, -1):  # what was done to the rows of x is undone in the columns of the inverse
        p = pivots[k]
        if p != k:
            a, c = at + k * n, at + p * n
            for i in range(n):
                y[a + i], y[c + i] = y[c + i], y[a + i]
    return sign, total


@inline
def _invert_on_card(y, at, n, pivots, first):
    """`_invert`, by all lanes; which row came to be row k is noted in pivots[first + k]."""
    sign, total = number(1, y), number(0, y)
    for k in range(n):
        a, best, p = at + k * n, number(-1, y), n
        for i in lanes(k, n):
            best = abs(y[a + i]) if abs(y[a + i]) > best else best
        best = largest(best)
        for i in lanes(k, n):
            if abs(y[a + i]) == best and i < p:
                p = i
        p = smallest(p)
        if p == n or y[a + k] != y[a + k]:
            p = k
        meet()
        if leader():
            pivots[first + k] = number(p, y)
        if p != k:
            for j in lanes(n):
                c = at + j * n
                y[c + k], y[c + p] = y[c + p], y[c + k]
            sign = -sign
        meet()
        pivot = y[a + k]
        if pivot < 0:
            sign = -sign
        if total != number(-np.inf, total):
            total += _math.log(abs(pivot))
        scale = number(1, pivot) / pivot
        for j in lanes(n):
            if j != k:
                y[at + j * n + k] *= scale
        meet()
        for q in lanes(n * n):
            j, i = quotient(q, n), remainder(q, n)
            if j != k and i != k:
                y[at + q] -= y[a + i] * y[at + j * n + k]
        meet()
        for i in lanes(n):
            y[a + i] = scale if i == k else y[a + i] * -scale
        meet()
    for back in range(n):
        k = n - 1 - back
        p = int(pivots[first + k])
        if p != k:
            a, c = at + k * n, at + p * n
            for i in lanes(n):
                y[a + i], y[c + i] = y[c + i], y[a + i]
    return sign, total


def _matrices_on_card(function):
    """A kernel of a card with n numbers of work space for each matrix: a block takes one."""

    def stages(sizes):
        n, batch = sizes[0], sizes[1]
        threads = 32
        while threads < min(n * n, 512):
            threads *= 2
        return (Stage(function, (threads, 1), Count(0, batch), scratch=Count(0, n * batch)),)

    return stages


@kernel
def inverse(ins, T):
    """y = x⁻¹, matrix by matrix."""
    count, sizes = ins[ITEMS], integers(ins[SIZES])
    n, batch = sizes[0], sizes[1]
    pivots = np.empty(n, np.int32)
    for i in range(count):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in range(n * n * batch):
            y[j] = x[j]
        for b in range(batch):
            _invert(y, b * n * n, n, pivots)


def inverse_card(ins, T):
    """The same, matrix by matrix."""
    count, sizes = ins[ITEMS], integers(ins[SIZES])
    n, batch = sizes[0], sizes[1]
    for m in items(count * batch):
        i, b = quotient(m, batch), remainder(m, batch)
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in lanes(n * n):
            y[b * n * n + j] = x[b * n * n + j]
        meet()
        _invert_on_card(y, b * n * n, n, T, m * n)


inverse.on_card(stages=_matrices_on_card(inverse_card))


@kernel(reductions=True)
def inverse_gradient(ins, T):
    """dx = or += -yᵀ dy yᵀ, a column of dy yᵀ at a time."""
    count, sizes = ins[ITEMS], integers(ins[SIZES])
    n, batch = sizes[0], sizes[1]
    column = np.empty_like(carray(T, n))
    for i in range(count):
        dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for b in range(batch):
            at = b * n * n
            for j in range(n):
                for r in range(n):
                    column[r] = 0
                for k in range(n):
                    g = y[at + k * n + j]
                    for r in range(n):
                        column[r] += dy[at + k * n + r] * g
                for c in range(n):
                    total = number(0, dy[0])
                    for r in range(n):
                        total += y[at + c * n + r] * column[r]
                    if ins[FLAGS] & ACCUMULATE:
                        dx[at + j * n + c] -= total
                    else:
                        dx[at + j * n + c] = -total


def inverse_product_card(ins, T):
    """dy yᵀ, into the work space."""
    count, sizes = ins[ITEMS], integers(ins[SIZES])
    n, batch = sizes[0], sizes[1]
    for m in items(count * batch):
        i, at = quotient(m, batch), remainder(m, batch) * n * n
        dy, y = item(ins, 1, i, T), item(ins, 2, i, T)
        for q in lanes(n * n):
            j, r, total = quotient(q, n), remainder(q, n), number(0, T)
            for k in range(n):
                total += dy[at + k * n + r] * y[at + k * n + j]
            T[m * n * n + q] = total


def inverse_gradient_card(ins, T):
    """dx = or += -yᵀ times what is in the work space."""
    count, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    n, batch = sizes[0], sizes[1]
    for m in items(count * batch):
        i, at = quotient(m, batch), remainder(m, batch) * n * n
        dx, y = item(ins, 0, i, T), item(ins, 2, i, T)
        for q in lanes(n * n):
            j, c, total = quotient(q, n), remainder(q, n), number(0, T)
            for r in range(n):
                total += y[at + c * n + r] * T[m * n * n + j * n + r]
            dx[at + q] = dx[at + q] - total if add else -total


def _gradient_stages(sizes):
    n, batch = sizes[0], sizes[1]
    room = Count(0, n * n * batch)
    functions = inverse_product_card, inverse_gradient_card
    return [Stage(f, (256, 1), Count(0, batch), Count(-(-n * n // 256)), scratch=room) for f in functions]


inverse_gradient.on_card(stages=_gradient_stages)


@kernel
def logdet(ins, T):
    """y = log det x, then x⁻¹, matrix by matrix."""
    count, sizes = ins[ITEMS], integers(ins[SIZES])
    n, batch = sizes[0], sizes[1]
    pivots = np.empty(n, np.int32)
    for i in range(count):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in range(n * n * batch):
            y[batch + j] = x[j]
        for b in range(batch):
            sign, total = _invert(y, batch + b * n * n, n, pivots)
            y[b] = total if sign > 0 or total == -np.inf else number(np.nan, total)


def logdet_card(ins, T):
    """The same, matrix by matrix."""
    count, sizes = ins[ITEMS], integers(ins[SIZES])
    n, batch = sizes[0], sizes[1]
    for m in items(count * batch):
        i, b = quotient(m, batch), remainder(m, batch)
        y, x, at = item(ins, 0, i, T), item(ins, 1, i, T), batch + b * n * n
        for j in lanes(n * n):
            y[at + j] = x[b * n * n + j]
        meet()
        sign, total = _invert_on_card(y, at, n, T, m * n)
        if leader():
            y[b] = total if sign > 0 or total == number(-np.inf, total) else number(np.nan, total)


logdet.on_card(stages=_matrices_on_card(logdet_card))


@kernel
def logdet_gradient(ins, T):
    """dx = or += dy x⁻ᵀ."""
    count, sizes = ins[ITEMS], integers(ins[SIZES])
    n, batch = sizes[0], sizes[1]
    for i in items(count):
        dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for b in parts(batch):
            at, g = b * n * n, dy[b]
            for c in range(n):
                for r in lanes(n):
                    d = g * y[batch + at + r * n + c]
                    dx[at + c * n + r] = dx[at + c * n + r] + d if ins[FLAGS] & ACCUMULATE else d


logdet_gradient.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])


def _square(name):
    def check(shapes):
        x = shapes[0]
        if len(x.dims) != 2 or x.dims[0] != x.dims[1]:
            what = f"{len(x.dims)} dim" + ("s" if len(x.dims) > 1 else "") if len(x.dims) != 2 else "the matrix is not square"
            raise wrong(name, what, [x], "a square matrix, (n,n)")
        return x

    return check


def _logdet_shape(shapes):
    x = _square("logdet")(shapes)
    return Shape((1 + x.size,), x.batch)


def _lower(forward, backward):
    def lower(shapes, out, shared):
        x = shapes[0]
        return Lowering(forward, (x.dims[0], x.batch), (Operand(backward=backward, needs=()),))

    return lower


def _matrices(x):
    """The matrices of an array whose last axis is the batch, as NumPy's linear algebra wants them."""
    return np.moveaxis(x, -1, 0)


def _inverse_reference(x):
    try:
        return np.moveaxis(np.linalg.inv(_matrices(x)), 0, -1)
    except np.linalg.LinAlgError:
        return np.full(x.shape, np.nan)


def _logdet_reference(x):
    sign, logs = np.linalg.slogdet(_matrices(x))
    return np.where(sign < 0, np.nan, logs)[None]


def _well_conditioned(x):
    """Make matrices with an inverse of moderate size, a positive determinant, and a need to exchange rows."""
    n = x.shape[0]
    x = np.roll(x + 2 * n * np.eye(n)[..., None], 1, axis=0)
    x[:1] *= (-1) ** (n - 1)
    return x


def _samples(choose):
    n = choose.integer(1, 6)
    return Sample((Tensor(Shape((n, n), choose.batch()), fit=_well_conditioned),))


INVERSE = Op(
    name="inverse",
    doc="Inverse of a square matrix; infinities and NaN where it has none.    dx += -yᵀ dy yᵀ",
    shape=_square("inverse"),
    lower=_lower(inverse, inverse_gradient),
    reference=_inverse_reference,
    samples=_samples,
    shapes="(n,n) -> (n,n)",
)
LOGDET = Op(
    name="logdet",
    doc="Logarithm of the determinant: NaN if that is negative, -inf if it is 0.    dx += dy x⁻ᵀ",
    shape=_logdet_shape,
    lower=_lower(logdet, logdet_gradient),
    reference=_logdet_reference,
    samples=_samples,
    shapes="(n,n) -> (1,)",
)

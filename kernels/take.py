"""Ops that take elements by a list of indices along one axis: rows, columns, elements of the minibatch.

    y[:, k, :] = x[:, indices[k], :]        dx[:, indices[k], :] += dy[:, k, :]

The indices are immediates and only their number belongs to the type, so nodes with other indices run as one batch. An index
may repeat: its gradients add up.
"""

import math

from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, immediate, integers, item, kernel, number
from autobatch.kernels._lanes import items, lanes, quotient
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, wrong

# sizes: numbers before the axis (inner), indices, size of the axis, numbers behind it (outer)


@kernel
def take(ins, T):
    """y = the elements of x with the node's indices."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, count, length, outer = sizes[0], sizes[1], sizes[2], sizes[3]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        if inner == 1:
            for o in range(outer):
                for k in range(count):
                    y[o * count + k] = x[o * length + immediate(ins, 2 + k, i)]
        else:
            for k in range(count):
                at = immediate(ins, 2 + k, i)
                for o in range(outer):
                    to, start = (o * count + k) * inner, (o * length + at) * inner
                    for j in range(inner):
                        y[to + j] = x[start + j]


@take.on_card
def take_card(ins, T):
    """A lane takes numbers of y."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, count, length, total = sizes[0], sizes[1], sizes[2], sizes[0] * sizes[1] * sizes[3]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in lanes(total):
            rest = quotient(t, inner)
            o = quotient(rest, count)
            y[t] = x[(o * length + immediate(ins, 2 + rest - o * count, i)) * inner + t - rest * inner]


@kernel
def take_gradient(ins, T):
    """dx += dy where it was taken from; without ACCUMULATE the rest of dx is zero."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, count, length, outer = sizes[0], sizes[1], sizes[2], sizes[3]
    for i in range(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(inner * length * outer):
                dx[j] = 0
        if inner == 1:
            for o in range(outer):
                for k in range(count):
                    dx[o * length + immediate(ins, 3 + k, i)] += dy[o * count + k]
        else:
            for k in range(count):
                at = immediate(ins, 3 + k, i)
                for o in range(outer):
                    to, start = (o * length + at) * inner, (o * count + k) * inner
                    for j in range(inner):
                        dx[to + j] += dy[start + j]


@take_gradient.on_card
def take_gradient_card(ins, T):
    """A lane takes numbers of dx and adds up what was taken from there, so it matters to nobody if an index repeats."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, count, length, total = sizes[0], sizes[1], sizes[2], sizes[0] * sizes[2] * sizes[3]
    add = ins[FLAGS] & ACCUMULATE
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in lanes(total):
            rest = quotient(t, inner)
            o = quotient(rest, length)
            index, start, taken, value = rest - o * length, (o * count - rest) * inner + t, False, number(0, T)
            for k in range(count):
                if immediate(ins, 3 + k, i) == index:
                    taken, value = True, value + dy[start + k * inner]
            if not add:
                dx[t] = value
            elif taken:
                dx[t] += value


def _some(name, count):
    if count == 0:
        raise ArgumentError(f"{name}: the list of indices is empty\n  expected  at least one index")


def _lower(axis):
    def lower(shapes, out, shared, count):
        full = (*shapes[0].dims, shapes[0].batch)
        at = axis % len(full)
        sizes = (math.prod(full[:at]), count, full[at], math.prod(full[at + 1 :]))
        return Lowering(take, sizes, (Operand(backward=take_gradient, needs=()),), limit=full[at])

    return lower


def _indices(choose, size):
    return [choose.integer(0, size - 1) for _ in range(choose.integer(1, 5))]


# Rows -----------------------------------------------------------------------------------------------------------------


def _rows_shape(shapes, count):
    _some("select_rows", count)
    return Shape((count, *shapes[0].dims[1:]), shapes[0].batch)


def _rows_samples(choose):
    dims = choose.dims()
    return Sample((Tensor(Shape(dims, choose.batch())), _indices(choose, dims[0])))


SELECT_ROWS = Op(
    name="select_rows",
    doc="The rows with the given indices, in this order; an index may repeat.    dx[rs] += dy",
    shapes="(r,...) -> (len(rs),...)",
    shape=_rows_shape,
    lower=_lower(0),
    reference=lambda x, rs: x[rs],
    samples=_rows_samples,
)


# Columns --------------------------------------------------------------------------------------------------------------


def _cols_shape(shapes, count):
    x = shapes[0]
    if len(x.dims) != 2:
        raise wrong("select_cols", f"{len(x.dims)} dims", [x], "a matrix (r,c)")
    _some("select_cols", count)
    return Shape((x.dims[0], count), x.batch)


def _cols_samples(choose):
    dims = choose.dims(2, 2)
    return Sample((Tensor(Shape(dims, choose.batch())), _indices(choose, dims[1])))


SELECT_COLS = Op(
    name="select_cols",
    doc="The columns of a matrix with the given indices, in this order; an index may repeat.    dx[:,cs] += dy",
    shapes="(r,c) -> (r,len(cs))",
    shape=_cols_shape,
    lower=_lower(1),
    reference=lambda x, cs: x[:, cs],
    samples=_cols_samples,
)


# Elements of the minibatch --------------------------------------------------------------------------------------------


def _elements_shape(shapes, count):
    _some("pick_batch_elems", count)
    return Shape(shapes[0].dims, count)


def _elements_samples(choose):
    batch = choose.batch()
    return Sample((Tensor(Shape(choose.dims(), batch)), _indices(choose, batch)))


PICK_BATCH_ELEMS = Op(
    name="pick_batch_elems",
    doc="The elements of the minibatch with the given indices, as a minibatch; an index may repeat.    dx of v += dy of its k",
    shapes="dims x B -> dims x len(vs)",
    shape=_elements_shape,
    lower=_lower(-1),
    reference=lambda x, vs: x[..., vs],
    samples=_elements_samples,
)

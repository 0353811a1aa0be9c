"""Sums of neighbours: groups of rows (`fold_rows`), windows of columns (`kmh_ngram`).

    fold_rows   y[i,j] = Σ_k<n x[i n + k, j]        dx[i n + k, j] += dy[i,j]
    kmh_ngram   y[:,j] = Σ_k<n x[:, j + k]          dx[:, j + k] += dy[:,j]

Rows that fold lie one after the other in memory, whatever follows them: x and y are walked as vectors.
"""

import numpy as np

from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, integers, item, kernel, number
from autobatch.kernels._lanes import items, lanes, leader, parts, width
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, columns, wrong
from autobatch.kernels._reduce import (
    all_joined,
    as_spread,
    by_lane,
    end_result,
    first_number,
    first_result,
    number_step,
    spread,
    turns,
)

# fold_rows: sizes: numbers of y, rows in a group ----------------------------------------------------------------------


@kernel(reductions=True)
def fold_rows(ins, T):
    """y[i] = the sum of group i."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, group = sizes[0], sizes[1]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        if group == 2:
            for j in range(size):
                y[j] = x[2 * j] + x[2 * j + 1]
        else:
            for j in range(size):
                total = number(0, T)
                for k in range(group):
                    total += x[j * group + k]
                y[j] = total


def _groups(sizes):
    """Lanes and parts: a group is a result of its own."""
    return spread(1, sizes[0], sizes[1])


@fold_rows.on_card(**as_spread(_groups))
def fold_rows_card(ins, T):
    """One group after the other."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, group = sizes[0], sizes[1]
    alone = by_lane(1, size, group)
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, size)):
            r = first_result(alone, t)
            while r < end_result(alone, t, size):
                total, k = number(0, T), first_number(alone)
                while k < group:
                    total += x[r * group + k]
                    k += number_step(alone)
                total = all_joined(alone, total)
                if alone or leader():
                    y[r] = total
                r += width()


@kernel
def fold_rows_gradient(ins, T):
    """dx of a group = or += dy."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, group = sizes[0], sizes[1]
    for i in range(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        if ins[FLAGS] & ACCUMULATE:
            for j in range(size):
                for k in range(group):
                    dx[j * group + k] += dy[j]
        else:
            for j in range(size):
                for k in range(group):
                    dx[j * group + k] = dy[j]


@fold_rows_gradient.on_card(**as_spread(_groups))
def fold_rows_gradient_card(ins, T):
    """The same, spread as the forward kernel."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    size, group = sizes[0], sizes[1]
    alone = by_lane(1, size, group)
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, size)):
            r = first_result(alone, t)
            while r < end_result(alone, t, size):
                k = first_number(alone)
                while k < group:
                    dx[r * group + k] = dx[r * group + k] + dy[r] if add else dy[r]
                    k += number_step(alone)
                r += width()


def _fold_shape(shapes, nrows):
    x = shapes[0]
    if len(x.dims) > 2:
        raise wrong("fold_rows", f"{len(x.dims)} dims", [x], "a matrix (r,c), or a vector as one column")
    if nrows < 1:
        raise ArgumentError(f"fold_rows: nrows is {nrows}\n  expected  at least 1")
    if x.dims[0] % nrows:
        raise wrong("fold_rows", f"{x.dims[0]} rows in groups of {nrows}", [x], f"a number of rows that {nrows} divides")
    return Shape((x.dims[0] // nrows, columns(x)), x.batch)


def _fold_samples(choose):
    n, dims = choose.one_of([1, 2, 2, 3]), choose.dims(1, 2)
    return Sample((Tensor(Shape((n * dims[0], *dims[1:]), choose.batch())), n))


FOLD_ROWS = Op(
    name="fold_rows",
    doc="Sums of groups of n consecutive rows, y[i,j] = Σ_k<n x[i n + k, j].    dx[i n + k, j] += dy[i,j]",
    shapes="(r,c) -> (r/n,c)",
    shape=_fold_shape,
    lower=lambda shapes, out, shared, nrows: Lowering(
        fold_rows, (out.total, nrows), (Operand(backward=fold_rows_gradient, needs=()),)
    ),
    reference=lambda x, nrows: x.reshape(x.shape[0] // nrows, nrows, -1, x.shape[-1]).sum(axis=1),
    samples=_fold_samples,
)


# kmh_ngram: sizes: rows, columns of x, columns in a window, batch -----------------------------------------------------


@kernel
def kmh_ngram(ins, T):
    """y = the sum of n shifted copies of x."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    rows, size, window, batch = sizes[0], sizes[0] * (sizes[1] - sizes[2] + 1), sizes[2], sizes[3]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in range(batch):
            to, start = b * size, b * rows * sizes[1]
            for j in range(size):
                y[to + j] = x[start + j]
            for k in range(1, window):
                for j in range(size):
                    y[to + j] += x[start + k * rows + j]


@kmh_ngram.on_card(work=lambda sizes: sizes[0] * (sizes[1] - sizes[2] + 1), parts=lambda sizes: sizes[3])
def kmh_ngram_card(ins, T):
    """A lane takes a number of y."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    rows, size, window, batch = sizes[0], sizes[0] * (sizes[1] - sizes[2] + 1), sizes[2], sizes[3]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in parts(batch):
            for j in lanes(size):
                total, at = number(0, T), b * rows * sizes[1] + j
                for k in range(window):
                    total += x[at + k * rows]
                y[b * size + j] = total


@kernel
def kmh_ngram_gradient(ins, T):
    """dx += n shifted copies of dy."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    rows, size, window, batch = sizes[0], sizes[0] * (sizes[1] - sizes[2] + 1), sizes[2], sizes[3]
    for i in range(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(rows * sizes[1] * batch):
                dx[j] = 0
        for b in range(batch):
            to, start = b * rows * sizes[1], b * size
            for k in range(window):
                for j in range(size):
                    dx[to + k * rows + j] += dy[start + j]


@kmh_ngram_gradient.on_card(work=lambda sizes: sizes[0] * sizes[1], parts=lambda sizes: sizes[3])
def kmh_ngram_gradient_card(ins, T):
    """A lane takes a number of dx."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    rows, size, window, batch = sizes[0], sizes[0] * (sizes[1] - sizes[2] + 1), sizes[2], sizes[3]
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in parts(batch):
            for j in lanes(rows * sizes[1]):
                total, to = number(0, T), b * rows * sizes[1] + j
                for k in range(window):
                    if 0 <= j - k * rows < size:
                        total += dy[b * size + j - k * rows]
                dx[to] = dx[to] + total if add else total


def _ngram_shape(shapes, n):
    x = shapes[0]
    if len(x.dims) != 2:
        raise wrong("kmh_ngram", f"{len(x.dims)} dims", [x], "a matrix (r,c)")
    if not 1 <= n <= x.dims[1]:
        raise wrong("kmh_ngram", f"n is {n} and there are {x.dims[1]} columns", [x], f"n from 1 to {x.dims[1]}")
    return Shape((x.dims[0], x.dims[1] - n + 1), x.batch)


def _ngram_samples(choose):
    dims = choose.dims(2, 2)
    return Sample((Tensor(Shape(dims, choose.batch())), choose.integer(1, dims[1])))


def _ngram_reference(x, n):
    return np.stack([x[:, j : j + n].sum(axis=1) for j in range(x.shape[1] - n + 1)], axis=1)


KMH_NGRAM = Op(
    name="kmh_ngram",
    doc="Sums of n neighbouring columns, y[:,j] = Σ_k<n x[:, j + k].    dx[:, j + k] += dy[:,j]",
    shapes="(r,c) -> (r,c-n+1)",
    shape=_ngram_shape,
    lower=lambda shapes, out, shared, n: Lowering(
        kmh_ngram, (*shapes[0].dims, n, out.batch), (Operand(backward=kmh_ngram_gradient, needs=()),)
    ),
    reference=_ngram_reference,
    samples=_ngram_samples,
)

"""Filters over the columns of a matrix.

    y[o,j] = Σ_r,k x[r,j+k] f[r,k,o]        df[r,k,o] += Σ_j dy[o,j] x[r,j+k]        dx[r,j+k] += Σ_o dy[o,j] f[r,k,o]

With X_k the columns k to k + J of x and F_k = f[:,k,:] (r,O), y = Σ_k F_kᵀ X_k: one product for each of the w columns of the
filter, with no copy, as columns of either lie at even distances. dF_k += X_k dyᵀ, dX_k += F_k dy.

On a card number by number of the result. Columns j to j + w of x are one vector, and so is a filter: y[o,j] is their product,
for 32 lanes. A gradient of shared filters goes through the items by itself.
"""

import numpy as np

from autobatch.kernels import _blas
from autobatch.kernels._blas import gemm_at
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, integers, item, kernel, number, slot
from autobatch.kernels._lanes import items, lanes, leader, parts, width
from autobatch.kernels._op import SHARED, Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, wrong
from autobatch.kernels._reduce import (
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
)

# sizes: rows r, columns c, columns of a filter w, filters O, batch B, of x, of f


@kernel(before=_blas.ready)
def filter1d_narrow(ins, T):
    """y = Σ F_kᵀ X_k."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, w, out = sizes[0], sizes[1], sizes[2], sizes[3]
    count = c - w + 1
    for i in range(n):
        y, x, f = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for b in range(sizes[4]):
            at_x, at_f, at_y = b * r * c if sizes[5] > 1 else 0, b * r * w * out if sizes[6] > 1 else 0, b * out * count
            for k in range(w):
                gemm_at(True, False, out, count, r, f, at_f + k * r, r * w, x, at_x + k * r, r, k > 0, y, at_y, out, T)


def _products(sizes):
    """Lanes and parts of y: a product of two vectors for each number."""
    r, c, w, out = sizes[:4]
    lanes_of_one, results = spread(1, out * (c - w + 1) * sizes[4], r * w)
    return min(lanes_of_one, 32), results


@filter1d_narrow.on_card(**as_spread(_products))
def filter1d_narrow_card(ins, T):
    """One number of y after the other."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, out, size = sizes[0], sizes[3], sizes[0] * sizes[2]
    each = out * (sizes[1] - sizes[2] + 1)
    results, alone = each * sizes[4], by_lane(1, each * sizes[4], size)
    for i in items(n):
        y, x, f = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for t in parts(turns(alone, results)):
            q = first_result(alone, t)
            while q < end_result(alone, t, results):
                b, place = quotient(q, each), remainder(q, each)
                at_x = quotient(place, out) * r + (b * r * sizes[1] if sizes[5] > 1 else 0)
                at_f = (remainder(place, out) + (b * out if sizes[6] > 1 else 0)) * size
                total, k = number(0, T), first_number(alone)
                while k < size:
                    total += x[at_x + k] * f[at_f + k]
                    k += number_step(alone)
                total = all_joined(alone, total)
                if alone or leader():
                    y[q] = total
                q += width()


@kernel(before=_blas.ready)
def filter1d_narrow_gradient_x(ins, T):
    """dX_k += F_k dy."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, w, out = sizes[0], sizes[1], sizes[2], sizes[3]
    count = c - w + 1
    for i in range(n):
        dx, dy, f = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(r * c * sizes[5]):
                dx[j] = 0
        for b in range(sizes[4]):
            at_x, at_f, at_y = b * r * c if sizes[5] > 1 else 0, b * r * w * out if sizes[6] > 1 else 0, b * out * count
            for k in range(w):
                gemm_at(False, False, r, count, out, f, at_f + k * r, r * w, dy, at_y, out, True, dx, at_x + k * r, r, T)


@filter1d_narrow_gradient_x.on_card(work=lambda sizes: sizes[0] * sizes[1], parts=lambda sizes: sizes[5])
def filter1d_narrow_gradient_x_card(ins, T):
    """A lane takes a number of dx; of an x without a batch, for all elements."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    r, c, w, out = sizes[0], sizes[1], sizes[2], sizes[3]
    count = c - w + 1
    for i in items(n):
        dx, dy, f = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        for element in parts(sizes[5]):
            for q in lanes(r * c):
                column, total = quotient(q, r), number(0, T)
                for b in range(element, element + 1 if sizes[5] > 1 else sizes[4]):
                    for k in range(max(0, column - count + 1), min(w, column + 1)):
                        at_f = (b * out * w if sizes[6] > 1 else 0) * r + k * r + q - column * r
                        at_y = (b * count + column - k) * out
                        for o in range(out):
                            total += f[at_f + o * r * w] * dy[at_y + o]
                to = element * r * c + q
                dx[to] = dx[to] + total if add else total


@kernel(before=_blas.ready)
def filter1d_narrow_gradient_f(ins, T):
    """dF_k = or += X_k dyᵀ."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, w, out = sizes[0], sizes[1], sizes[2], sizes[3]
    count = c - w + 1
    for i in range(n):
        df, dy, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        for b in range(sizes[4]):
            at_x, at_f, at_y = b * r * c if sizes[5] > 1 else 0, b * r * w * out if sizes[6] > 1 else 0, b * out * count
            add = ins[FLAGS] & ACCUMULATE or (b > 0 and sizes[6] == 1)
            for k in range(w):
                gemm_at(False, True, r, out, count, x, at_x + k * r, r, dy, at_y, out, add, df, at_f + k * r, r * w, T)


def _filters(sizes):
    """Lanes and parts of df: a sum over places for each number."""
    r, c, w, out = sizes[:4]
    return spread(r * w * out * sizes[6], 1, c - w + 1)


@filter1d_narrow_gradient_f.on_card(**as_spread(_filters))
def filter1d_narrow_gradient_f_card(ins, T):
    """One number of df after the other; of filters without a batch, for all elements, of shared ones, for all items."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    r, c, out, size, batch = sizes[0], sizes[1], sizes[3], sizes[0] * sizes[2], sizes[4]
    count, results = c - sizes[2] + 1, size * out * sizes[6]
    once, alone = ins[slot(0) + 1] == 0, by_lane(results, 1, count)  # once: all items have the same df
    for first in items(1 if once else n):
        df = item(ins, 0, first, T)
        for t in parts(turns(alone, results)):
            q = first_result(alone, t)
            while q < end_result(alone, t, results):
                place, total = quotient(q, size), number(0, T)
                element, o = quotient(place, out), remainder(place, out)
                for i in range(first, n if once else first + 1):
                    dy, x = item(ins, 1, i, T), item(ins, 3, i, T)
                    for b in range(element, element + 1 if sizes[6] > 1 else batch):
                        at_x = remainder(q, size) + (b * r * c if sizes[5] > 1 else 0)
                        j = first_number(alone)
                        while j < count:
                            total += x[at_x + j * r] * dy[(b * count + j) * out + o]
                            j += number_step(alone)
                total = all_joined(alone, total)
                if alone or leader():
                    df[q] = df[q] + total if add else total
                q += width()


def _shape(shapes):
    x, f = shapes
    expected = "x (r,c), f (r,w) or (r,w,O), w at most c"
    if len(x.dims) != 2 or len(f.dims) not in (2, 3):
        which = "f" if len(x.dims) == 2 else "x"
        raise wrong("filter1d_narrow", f"{which} has {len((f if which == 'f' else x).dims)} dims", shapes, expected)
    if x.dims[0] != f.dims[0]:
        raise wrong("filter1d_narrow", f"x has {x.dims[0]} rows but f has {f.dims[0]}", shapes, expected)
    if f.dims[1] > x.dims[1]:
        raise wrong("filter1d_narrow", f"x has {x.dims[1]} columns, fewer than the {f.dims[1]} of f", shapes, expected)
    out = f.dims[2] if len(f.dims) == 3 else 1
    return Shape((out, x.dims[1] - f.dims[1] + 1), common_batch("filter1d_narrow", shapes))


def _lower(shapes, out, shared):
    x, f = shapes
    once = {"reads": SHARED, "writes": SHARED} if shared[1] else {}
    return Lowering(
        filter1d_narrow,
        (*x.dims, f.dims[1], out.dims[0], out.batch, x.batch, f.batch),
        (
            Operand(backward=filter1d_narrow_gradient_x, needs=(1,)),
            Operand(backward=filter1d_narrow_gradient_f, needs=(0,), **once),
        ),
    )


def _reference(x, f):
    f = f if f.ndim == 4 else f[:, :, None]
    count, batch = x.shape[1] - f.shape[1] + 1, max(x.shape[-1], f.shape[-1])
    y = np.zeros((f.shape[2], count, batch))
    for k in range(f.shape[1]):
        y += np.sum(f[:, k, :, None] * x[:, None, k : k + count], axis=0)
    return y


def _samples(choose):
    r, w, batch = choose.integer(1, 4), choose.integer(1, 3), choose.batch()
    dims = choose.one_of([(r, w), (r, w, choose.integer(1, 3))])
    x = Shape((r, w + choose.integer(0, 4)), batch if choose.integer(0, 3) else 1)
    return Sample((Tensor(x), Tensor(Shape(dims, 1 if choose.integer(0, 2) else batch))))


FILTER1D_NARROW = Op(
    name="filter1d_narrow",
    doc="y[o,j] = Σ_r,k x[r,j+k] f[r,k,o].    df[r,k,o] += Σ_j dy[o,j] x[r,j+k]    dx[r,j+k] += Σ_o dy[o,j] f[r,k,o]",
    shapes="(r,c), (r,w) or (r,w,O) -> (O,c-w+1)",
    shape=_shape,
    lower=_lower,
    reference=_reference,
    samples=_samples,
    shared=lambda position: position == 1,
)

"""Hinge losses: how far the score of the right one is from being larger than all others by a margin.

hinge, hinge_batch, hinge_dim    y = Σ over i ≠ v of max(0, m - x[v] + x[i])
pairwise_rank_loss               y = max(0, m - x + z), number by number

dx[i] += dy where the term is above 0 (0 at the kink),    dx[v] -= dy times their count
"""

import math

import numpy as np

from autobatch.kernels._elementwise import elementwise
from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, immediate, integers, item, kernel, number
from autobatch.kernels._lanes import items, joined, lanes, leader, parts, quotient
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, wrong

# sizes: length of the dim, its stride, number of groups (one loss each); one immediate for each group


@kernel(reductions=True)
def hinge(ins, T):
    """y = Σ over i ≠ v of max(0, m - x[v] + x[i]). Slots: y, x, m, then v of each group."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, step, groups = sizes[0], sizes[1], sizes[2]
    for i in items(n):
        y, x, m = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)[0]
        zero = number(0, m)
        for g in parts(groups):
            before, v = quotient(g, step) * step, immediate(ins, 3 + g, i)
            at = before * length + g - before
            total, offset = zero, m - x[at + v * step]
            for part in range(2):
                begin, end = (0, v) if part == 0 else (v + 1, length)
                if step == 1:
                    for j in lanes(begin, end):
                        d = offset + x[at + j]
                        total += zero if d <= zero else d
                else:
                    for j in lanes(begin, end):
                        d = offset + x[at + j * step]
                        total += zero if d <= zero else d
            total = joined(total)
            if leader():
                y[g] = total


@kernel(reductions=True)
def hinge_gradient(ins, T):
    """dx[i] = or += dy where the term is above 0, dx[v] -= dy times their count. Slots: dx, dy, y, x, m, then v."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    length, step, groups = sizes[0], sizes[1], sizes[2]
    for i in items(n):
        dx, dy, x, m = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T), item(ins, 4, i, T)[0]
        zero, one = number(0, m), number(1, m)
        for g in parts(groups):
            before, v = quotient(g, step) * step, immediate(ins, 5 + g, i)
            at = before * length + g - before
            right = at + v * step
            offset, count, d = m - x[right], zero, dy[g]
            for part in range(2):
                begin, end = (0, v) if part == 0 else (v + 1, length)
                for j in lanes(begin, end):
                    count += one if offset + x[at + j * step] > zero else zero
                if ins[FLAGS] & ACCUMULATE:
                    for j in lanes(begin, end):
                        dx[at + j * step] += d if offset + x[at + j * step] > zero else zero
                else:
                    for j in lanes(begin, end):
                        dx[at + j * step] = d if offset + x[at + j * step] > zero else zero
            count = joined(count)
            if leader():
                dx[right] = dx[right] - d * count if ins[FLAGS] & ACCUMULATE else -(d * count)


for _each in (hinge, hinge_gradient):
    _each.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[2])


def _vector(op, shapes, count):
    x = shapes[0]
    if x.size != x.dims[0]:
        raise wrong(op, f"{len(x.dims)} dims", [x], "a vector of scores, (n,)")
    if count == 0:
        raise ArgumentError(f"{op}: the list of indices is empty")
    if x.batch != count:
        problem = f"{count} ind{'ex' if count == 1 else 'ices'} for a minibatch of {x.batch}"
        cure = "hinge_batch with a list of indices" if op == "hinge" else ""
        raise wrong(op, problem, [x], "one index for each element of the minibatch", cure)
    return Shape((1,), x.batch)


def _dim_shape(shapes, d):
    x = shapes[0]
    if len(x.dims) != 2:
        raise wrong("hinge_dim", f"{len(x.dims)} dims", [x], "a matrix of scores, (r,c)")
    if d not in (0, 1):
        raise ArgumentError(f"hinge_dim: dim {d} of {x}\n  expected  0 or 1")
    return Shape((x.dims[1 - d],), x.batch)


def _lower(shapes, out, shared, d=0, count=1):
    x = shapes[0]
    operands = Operand(backward=hinge_gradient), Operand()
    return Lowering(hinge, (x.dims[d], math.prod(x.dims[:d]), out.total), operands, limit=x.dims[d])


def _hinge(x, right, m):
    """The loss along axis 0."""
    right = np.array(right).reshape(1, *x.shape[1:])
    terms = np.maximum(0.0, m - np.take_along_axis(x, right, axis=0) + x)
    np.put_along_axis(terms, right, 0.0, axis=0)
    return terms.sum(axis=0)


def _dim_reference(x, v, d, m):
    by_column = np.moveaxis(x, d, 0)
    right = np.array(v).reshape(-1, by_column.shape[1]).T  # one list for all, or a list for each element of the minibatch
    return _hinge(by_column, np.broadcast_to(right, by_column.shape[1:]), m)


_MARGINS = (0.0, 0.5, 1.0)


def _samples(choose):
    n = choose.integer(1, 6)
    return Sample((Tensor(Shape((n,))), choose.integer(0, n - 1), choose.one_of(_MARGINS)))


def _batch_samples(choose):
    n, batch = choose.integer(1, 6), choose.batch()
    return Sample((Tensor(Shape((n,), batch)), [choose.integer(0, n - 1) for _ in range(batch)], choose.one_of(_MARGINS)))


def _dim_samples(choose):
    dims, batch, d = choose.dims(2, 2), choose.batch(), choose.integer(0, 1)
    lists = [[choose.integer(0, dims[d] - 1) for _ in range(dims[1 - d])] for _ in range(batch if choose.integer(0, 1) else 1)]
    return Sample((Tensor(Shape(dims, batch)), lists if len(lists) > 1 else lists[0], d, choose.one_of(_MARGINS)))


HINGE = Op(
    name="hinge",
    doc="Σ over i ≠ v of max(0, m - x[v] + x[i]).    dx[i] += dy where the term is above 0, dx[v] -= dy for each of them",
    shapes="(n,) -> (1,)",
    shape=lambda shapes: _vector("hinge", shapes, 1),
    lower=_lower,
    reference=lambda x, v, m: _hinge(x, v, m).reshape(1, -1),
    samples=_samples,
)
HINGE_BATCH = Op(
    name="hinge_batch",
    doc="The hinge loss of each element of the minibatch with its own v.",
    shapes="(n,) -> (1,)",
    shape=lambda shapes, count: _vector("hinge_batch", shapes, count),
    lower=_lower,
    reference=lambda x, vs, m: _hinge(x, vs, m).reshape(1, -1),
    samples=_batch_samples,
)
HINGE_DIM = Op(
    name="hinge_dim",
    doc="The hinge loss along dim d of a matrix, one for each column (d = 0) or row (d = 1), with an index of its own.",
    shapes="(r,c) -> (c,) for d = 0, (r,) for d = 1",
    shape=_dim_shape,
    lower=_lower,
    reference=_dim_reference,
    samples=_dim_samples,
)


# pairwise_rank_loss ---------------------------------------------------------------------------------------------------


def _rank(x, z, m):
    d = m - x + z
    return number(0, d) if d <= 0 else d


def _rank_slope_x(dy, y, x, z, m):
    return -dy if m - x + z > 0 else number(0, dy)


def _rank_slope_z(dy, y, x, z, m):
    return dy if m - x + z > 0 else number(0, dy)


def _rank_shape(shapes):
    if shapes[0].dims != shapes[1].dims:
        raise wrong("pairwise_rank_loss", "the dims differ", shapes[:2], "equal dims, equal batch sizes or 1")
    return Shape(shapes[0].dims, common_batch("pairwise_rank_loss", shapes))


def _rank_samples(choose):
    dims, batch = choose.dims(), choose.batch()
    x, z = (Tensor(Shape(dims, batch if choose.integer(0, 2) else 1)) for _ in range(2))
    return Sample((x, z, choose.one_of(_MARGINS)))


PAIRWISE_RANK_LOSS = elementwise(
    "pairwise_rank_loss",
    "max(0, m - x + z).    dx -= dy, dz += dy where that is above 0",
    _rank,
    [_rank_slope_x, _rank_slope_z, None],
    reference=lambda x, z, m: np.maximum(0.0, m - x + z),
    samples=_rank_samples,
    path=__file__,
    shape=_rank_shape,
    shapes="two of the same dims -> these",
)

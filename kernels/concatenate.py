"""Joining: along a dim (`concatenate`) or along the minibatch (`concatenate_to_batch`).    dxₖ += its part of dy"""

import math

import numpy as np

from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, argument, integers, item, kernel, number
from autobatch.kernels._lanes import items, joined, lanes, leader, quotient
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, wrong

# sizes: arguments, batch B, outer, numbers of y per outer step, then for each argument: its numbers per outer step, where they
# begin in y, whether it has a batch of its own
_ARGUMENTS = 4


@kernel
def concatenate(ins, T):
    """y = the arguments, part by part."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    count, batch, outer, step = sizes[0], sizes[1], sizes[2], sizes[3]
    for k in range(count):
        part, start, own = sizes[_ARGUMENTS + 3 * k], sizes[_ARGUMENTS + 3 * k + 1], sizes[_ARGUMENTS + 3 * k + 2]
        for i in range(n):
            y, x = item(ins, 0, i, T), item(ins, 1 + k, i, T)
            for o in range(batch * outer):
                at = (o if own else o % outer) * part
                for j in range(part):
                    y[o * step + start + j] = x[at + j]


@concatenate.on_card
def concatenate_card(ins, T):
    """A lane looks for the argument in which a number of y begins: halving, for they stand in order."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    count, total, outer, step = sizes[0], sizes[1] * sizes[2] * sizes[3], sizes[2], sizes[3]
    for i in items(n):
        y = item(ins, 0, i, T)
        for t in lanes(total):
            o = quotient(t, step)
            at, k, behind = t - o * step, 0, count
            while behind - k > 1:
                middle = (k + behind) >> 1
                if sizes[_ARGUMENTS + 3 * middle + 1] <= at:
                    k = middle
                else:
                    behind = middle
            part, start, own = sizes[_ARGUMENTS + 3 * k], sizes[_ARGUMENTS + 3 * k + 1], sizes[_ARGUMENTS + 3 * k + 2]
            if not own:
                o -= quotient(o, outer) * outer
            y[t] = item(ins, 1 + k, i, T)[o * part + at - start]


@kernel
def concatenate_gradient(ins, T):
    """dx = or += its part of dy."""
    n, sizes, k = ins[ITEMS], integers(ins[SIZES]), argument(ins)
    steps, step, part, start = sizes[1] * sizes[2], sizes[3], sizes[_ARGUMENTS + 3 * k], sizes[_ARGUMENTS + 3 * k + 1]
    add = ins[FLAGS] & ACCUMULATE
    for i in range(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for o in range(steps):
            if add:
                for j in range(part):
                    dx[o * part + j] += dy[o * step + start + j]
            else:
                for j in range(part):
                    dx[o * part + j] = dy[o * step + start + j]


@concatenate_gradient.on_card
def concatenate_gradient_card(ins, T):
    """All numbers of dx by lanes, also where parts are short."""
    n, sizes, k = ins[ITEMS], integers(ins[SIZES]), argument(ins)
    steps, step, part, start = sizes[1] * sizes[2], sizes[3], sizes[_ARGUMENTS + 3 * k], sizes[_ARGUMENTS + 3 * k + 1]
    add = ins[FLAGS] & ACCUMULATE
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in lanes(steps * part):
            o = quotient(t, part)
            part_of_dy = dy[o * step + start + t - o * part]
            dx[t] = dx[t] + part_of_dy if add else part_of_dy


@kernel
def concatenate_gradient_of_one(ins, T):
    """dx = or += the sum over the batch of its part of dy: the argument has no batch, y has one."""
    n, sizes, k = ins[ITEMS], integers(ins[SIZES]), argument(ins)
    batch, outer, step = sizes[1], sizes[2], sizes[3]
    part, start = sizes[_ARGUMENTS + 3 * k], sizes[_ARGUMENTS + 3 * k + 1]
    add = ins[FLAGS] & ACCUMULATE
    for i in range(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in range(batch):
            for o in range(outer):
                begin = (b * outer + o) * step + start
                if add or b:
                    for j in range(part):
                        dx[o * part + j] += dy[begin + j]
                else:
                    for j in range(part):
                        dx[o * part + j] = dy[begin + j]


@concatenate_gradient_of_one.on_card
def concatenate_gradient_of_one_card(ins, T):
    """A lane takes numbers of dx, or, where the batch is much longer, elements of the batch."""
    n, sizes, k = ins[ITEMS], integers(ins[SIZES]), argument(ins)
    batch, outer, step = sizes[1], sizes[2], sizes[3]
    part, start = sizes[_ARGUMENTS + 3 * k], sizes[_ARGUMENTS + 3 * k + 1]
    add, whole_step = ins[FLAGS] & ACCUMULATE, outer * step
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        if batch > 8 * outer * part:
            for t in range(outer * part):
                o = quotient(t, part)
                at, total = o * step + start + t - o * part, number(0, T)
                for b in lanes(batch):
                    total += dy[at + b * whole_step]
                total = joined(total)
                if leader():
                    dx[t] = dx[t] + total if add else total
        else:
            for t in lanes(outer * part):
                o = quotient(t, part)
                at, total = o * step + start + t - o * part, number(0, T)
                for b in range(batch):
                    total += dy[at + b * whole_step]
                dx[t] = dx[t] + total if add else total


def _padded(shapes, d):
    rank = max([d + 1, *(len(s.dims) for s in shapes)])
    return [s.dims + (1,) * (rank - len(s.dims)) for s in shapes]


def _shape(shapes, d):
    limit = max(len(s.dims) for s in shapes)
    if not isinstance(d, int) or not 0 <= d <= limit:
        raise wrong("concatenate", f"dim {d} does not exist", shapes, f"d from 0 to {limit}")
    padded = _padded(shapes, d)
    for other in padded[1:]:
        for axis, (a, b) in enumerate(zip(padded[0], other, strict=True)):
            if axis != d and a != b:
                raise wrong("concatenate", f"dim {axis} is {a} and {b}", shapes, f"equal sizes in every dim but dim {d}")
    dims = list(padded[0])[: max(len(shapes[0].dims), d + 1)]  # ones at the end as the first argument has them
    dims[d] = sum(p[d] for p in padded)
    return Shape(tuple(dims), common_batch("concatenate", shapes))


def _lower(shapes, out, shared, d):
    padded = _padded(shapes, d)
    inner, outer = math.prod(out.dims[:d]), math.prod(out.dims[d + 1 :])
    sizes, start = [len(shapes), out.batch, outer, inner * out.dims[d]], 0
    for shape, dims in zip(shapes, padded, strict=True):
        sizes += [inner * dims[d], start, int(shape.batch > 1)]
        start += inner * dims[d]
    several = [concatenate_gradient_of_one if shape.batch < out.batch else concatenate_gradient for shape in shapes]
    return Lowering(concatenate, tuple(sizes), tuple(Operand(backward=k, needs=()) for k in several))


def _reference(arguments, d):
    shapes = [Shape(a.shape[:-1], a.shape[-1]) for a in arguments]
    batch = max(s.batch for s in shapes)
    full = [
        np.broadcast_to(a.reshape(*p, a.shape[-1]), (*p, batch)) for a, p in zip(arguments, _padded(shapes, d), strict=True)
    ]
    y = np.concatenate(full, axis=d)
    return y.reshape(*y.shape[: max(len(shapes[0].dims), d + 1)], batch)


def _samples(choose):
    dims, batch = choose.dims(1, 3), choose.batch()
    d = choose.integer(0, len(dims))  # len(dims): the next new dim
    tensors = []
    for _ in range(choose.integer(1, 3)):
        size = choose.integer(1, 3)
        full = (*dims[:d], size, *dims[d + 1 :])
        if full[-1] == 1 and len(full) > max(d, 1) and choose.integer(0, 1):
            full = full[:-1]  # a dim at the end that is missing counts as 1
        tensors.append(Tensor(Shape(full, batch if choose.integer(0, 2) else 1)))
    return Sample((tensors, d))


CONCATENATE = Op(
    name="concatenate",
    doc="The arguments one after the other along dim d, which may be the next new one; a missing batch is repeated.",
    shapes="(...,n1,...), (...,n2,...), ... -> (...,n1+n2+...,...)",
    shape=_shape,
    lower=_lower,
    reference=_reference,
    samples=_samples,
)


def _batch_shape(shapes):
    if any(s.dims != shapes[0].dims for s in shapes):
        raise wrong("concatenate_to_batch", "the dims differ", shapes, "equal dims; batch sizes add up")
    return Shape(shapes[0].dims, sum(s.batch for s in shapes))


def _batch_lower(shapes, out, shared):
    sizes, start = [len(shapes), 1, 1, out.total], 0
    for shape in shapes:
        sizes += [shape.total, start, 0]
        start += shape.total
    return Lowering(concatenate, tuple(sizes), (Operand(backward=concatenate_gradient, needs=()),) * len(shapes))


def _batch_samples(choose):
    dims = choose.dims(1, 3)
    return Sample(([Tensor(Shape(dims, choose.batch())) for _ in range(choose.integer(1, 3))],))


CONCATENATE_TO_BATCH = Op(
    name="concatenate_to_batch",
    doc="The arguments one after the other as elements of one minibatch.",
    shapes="dims x B1, dims x B2, ... -> dims x (B1+B2+...)",
    shape=_batch_shape,
    lower=_batch_lower,
    reference=lambda arguments: np.concatenate(arguments, axis=-1),
    samples=_batch_samples,
)

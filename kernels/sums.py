"""Sums: of a list of nodes (`esum`, `average`), of the numbers of a node (`sum_elems`), of a minibatch (`sum_batches`)."""

from autobatch.kernels._fused import sum_of
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, argument, integers, item, kernel, number
from autobatch.kernels._lanes import items, joined, lanes, leader, parts, width
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, one_tensor, trimmed, wrong
from autobatch.kernels._reduce import (
    all_joined,
    as_spread,
    by_lane,
    end_result,
    first_number,
    first_result,
    number_step,
    remainder,
    spread,
    spread_batch,
    turns,
)

# esum, average --------------------------------------------------------------------------------------------------------
# sizes: arguments, numbers of one element, batch, divisor, then for each argument 1 if it has a batch of its own


@kernel
def esum(ins, T):
    """y = Σ x / divisor."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    count, size, batch = sizes[0], sizes[1], sizes[2]
    for i in range(n):
        y = item(ins, 0, i, T)
        for k in range(count):
            x = item(ins, 1 + k, i, T)
            for b in range(batch):
                at = b * size if sizes[4 + k] else 0
                if k == 0:
                    for j in range(size):
                        y[b * size + j] = x[at + j]
                else:
                    for j in range(size):
                        y[b * size + j] += x[at + j]
        if sizes[3] > 1:
            divisor = number(sizes[3], y[0])
            for j in range(batch * size):
                y[j] /= divisor


def _list_spread(sizes):
    """Lanes and parts of a sum of a list: a lane takes a number of y, or, if they are fewer than arguments, a team does."""
    count, results = sizes[0], sizes[1] * sizes[2]
    return spread(1, results, count if results < count else 1)


@esum.on_card(**as_spread(_list_spread))
def esum_card(ins, T):
    """One number of y after the other."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    count, size, results = sizes[0], sizes[1], sizes[1] * sizes[2]
    alone = by_lane(1, results, count if results < count else 1)
    divisor = number(sizes[3], T)
    for i in items(n):
        y = item(ins, 0, i, T)
        for t in parts(turns(alone, results)):
            r = first_result(alone, t)
            while r < end_result(alone, t, results):
                total, k = number(0, T), first_number(alone)
                place = remainder(r, size) if results > size else r  # in an argument without a batch
                while k < count:
                    total += item(ins, 1 + k, i, T)[r if sizes[4 + k] else place]
                    k += number_step(alone)
                total = all_joined(alone, total)
                if alone or leader():
                    y[r] = total / divisor
                r += width()


@kernel
def esum_gradient(ins, T):
    """dx = or += dy / divisor, summed over the batch if x has none."""
    n, sizes, k = ins[ITEMS], integers(ins[SIZES]), argument(ins)
    size, batch = sizes[1], sizes[2]
    scale = number(1.0 / sizes[3], T[0])
    for i in range(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in range(batch):
            at = b * size if sizes[4 + k] else 0
            if ins[FLAGS] & ACCUMULATE or (b > 0 and not sizes[4 + k]):
                for j in range(size):
                    dx[at + j] += dy[b * size + j] * scale
            else:
                for j in range(size):
                    dx[at + j] = dy[b * size + j] * scale


@esum_gradient.on_card(**as_spread(lambda sizes: spread_batch(sizes[1], sizes[2])))
def esum_gradient_card(ins, T):
    """One number of dx after the other; what has no batch takes a sum over it."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    size, batch, own = sizes[1], sizes[2], sizes[4 + argument(ins)]
    scale = number(1, T) / number(sizes[3], T)
    results, count = (size * batch, 1) if own else (size, batch)
    alone = by_lane(results, 1, count)
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, results)):
            r = first_result(alone, t)
            while r < end_result(alone, t, results):
                total, b = number(0, T), first_number(alone)
                while b < count:
                    total += dy[b * size + r] * scale
                    b += number_step(alone)
                total = all_joined(alone, total)
                if alone or leader():
                    dx[r] = dx[r] + total if add else total
                r += width()


def _list_shape(name, compare):
    def rule(shapes):
        if any(compare(s.dims) != compare(shapes[0].dims) for s in shapes):
            raise wrong(name, "the dims differ", shapes, "equal dims, equal batch sizes or 1")
        return Shape(shapes[0].dims, common_batch(name, shapes))

    return rule


def _list_lower(mean):
    def lower(shapes, out, shared):
        sizes = (len(shapes), out.size, out.batch, len(shapes) if mean else 1, *(int(s.batch > 1) for s in shapes))
        return Lowering(esum, sizes, (Operand(backward=esum_gradient, needs=()),) * len(shapes))

    return lower


def _list_samples(choose):
    dims, batch = choose.dims(), choose.batch()
    return Sample(
        ([Tensor(Shape(dims, batch if choose.integer(0, 2) else 1)) for _ in range(choose.integer(1, 4))],),
    )


ESUM = Op(
    name="esum",
    doc="Sum of a list of nodes of the same dims (ones at the end do not count).    dxₖ += dy",
    shape=_list_shape("esum", trimmed),
    lower=_list_lower(mean=False),
    reference=lambda arguments: sum(arguments),
    samples=_list_samples,
    shapes="equal dims -> those of the first",
    joins=True,
    formulas=sum_of,
)
AVERAGE = Op(
    name="average",
    doc="Mean of a list of nodes of the same dims.    dxₖ += dy / their number",
    shape=_list_shape("average", tuple),
    lower=_list_lower(mean=True),
    reference=lambda arguments: sum(arguments) / len(arguments),
    samples=_list_samples,
    shapes="equal dims -> the same",
    joins=True,
)


# sum_elems, sum_batches -----------------------------------------------------------------------------------------------
# sizes: numbers of one element, batch


@kernel(reductions=True)
def sum_elems(ins, T):
    """y[b] = Σ x[:, b]."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in parts(batch):
            total = number(0, x[0])
            for j in lanes(size):
                total += x[b * size + j]
            total = joined(total)
            if leader():
                y[b] = total


@kernel
def sum_elems_gradient(ins, T):
    """dx[:, b] = or += dy[b]."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in parts(batch):
            g = dy[b]
            if ins[FLAGS] & ACCUMULATE:
                for j in lanes(size):
                    dx[b * size + j] += g
            else:
                for j in lanes(size):
                    dx[b * size + j] = g


@kernel
def sum_batches(ins, T):
    """y = Σ_b x[:, b]."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in range(size):
            y[j] = x[j]
        for b in range(1, batch):
            for j in range(size):
                y[j] += x[b * size + j]


@sum_batches.on_card(**as_spread(lambda sizes: spread(sizes[0], 1, sizes[1])))
def sum_batches_card(ins, T):
    """One number of y after the other."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    alone = by_lane(size, 1, batch)
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, size)):
            r = first_result(alone, t)
            while r < end_result(alone, t, size):
                total, b = number(0, T), first_number(alone)
                while b < batch:
                    total += x[b * size + r]
                    b += number_step(alone)
                total = all_joined(alone, total)
                if alone or leader():
                    y[r] = total
                r += width()


@kernel
def sum_batches_gradient(ins, T):
    """dx[:, b] = or += dy."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in items(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in parts(batch):
            if ins[FLAGS] & ACCUMULATE:
                for j in lanes(size):
                    dx[b * size + j] += dy[j]
            else:
                for j in lanes(size):
                    dx[b * size + j] = dy[j]


for _kernel in (sum_elems, sum_elems_gradient, sum_batches_gradient):
    _kernel.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])


def _reduction(forward, backward):
    def lower(shapes, out, shared):
        return Lowering(forward, (shapes[0].size, shapes[0].batch), (Operand(backward=backward, needs=()),))

    return lower


SUM_ELEMS = Op(
    name="sum_elems",
    doc="Sum of the numbers of each element of the minibatch.    dx += dy",
    shape=lambda shapes: Shape((1,), shapes[0].batch),
    lower=_reduction(sum_elems, sum_elems_gradient),
    reference=lambda x: x.sum(axis=tuple(range(x.ndim - 1)))[None],
    samples=one_tensor(),
    shapes="any -> (1,)",
)
SUM_BATCHES = Op(
    name="sum_batches",
    doc="Sum over the minibatch.    dx of each element += dy",
    shape=lambda shapes: Shape(shapes[0].dims),
    lower=_reduction(sum_batches, sum_batches_gradient),
    reference=lambda x: x.sum(axis=-1, keepdims=True),
    samples=one_tensor(),
    shapes="dims with a minibatch -> dims without",
)

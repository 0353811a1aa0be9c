"""Sums: of a list of nodes (`esum`, `average`), of the numbers of a node (`sum_elems`), of a minibatch (`sum_batches`)."""

from autobatch.kernels._fused import sum_of
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, argument, integers, item, kernel, number
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, one_tensor, trimmed, wrong

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
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in range(batch):
            total = number(0, x[0])
            for j in range(size):
                total += x[b * size + j]
            y[b] = total


@kernel
def sum_elems_gradient(ins, T):
    """dx[:, b] = or += dy[b]."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in range(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in range(batch):
            g = dy[b]
            if ins[FLAGS] & ACCUMULATE:
                for j in range(size):
                    dx[b * size + j] += g
            else:
                for j in range(size):
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


@kernel
def sum_batches_gradient(ins, T):
    """dx[:, b] = or += dy."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in range(n):
        dx, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in range(batch):
            if ins[FLAGS] & ACCUMULATE:
                for j in range(size):
                    dx[b * size + j] += dy[j]
            else:
                for j in range(size):
                    dx[b * size + j] = dy[j]


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

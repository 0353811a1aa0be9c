"""Look-up of several rows at once: the rows of a table with the given indices, as one minibatch.    dtable[index] += dy

A look-up of a single row needs no kernel: the node is a view of the row.
"""

from autobatch.kernels._jit import ITEMS, SIZES, bytes_at, immediate, integers, item, kernel
from autobatch.kernels._op import SHARED, Lowering, Op, Operand, Sample, Shape, Tensor

# sizes: numbers of a row, rows to look up, address of the table's bytes that mark touched rows


@kernel
def lookup_batch(ins, T):
    """y[:, b] = row index[b] of the table."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    table = item(ins, 1, 0, T)
    for i in range(n):
        y = item(ins, 0, i, T)
        for b in range(batch):
            at = immediate(ins, 2 + b, i) * size
            for j in range(size):
                y[b * size + j] = table[at + j]


@kernel
def lookup_batch_gradient(ins, T):
    """Row index[b] of dtable += dy[:, b]."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    table, touched = item(ins, 0, 0, T), bytes_at(sizes[2])
    for i in range(n):
        dy = item(ins, 1, i, T)
        for b in range(batch):
            index = immediate(ins, 3 + b, i)
            touched[index] = 1
            for j in range(size):
                table[index * size + j] += dy[b * size + j]


def _shape(shapes, count, touched):
    return Shape(shapes[0].dims[:-1], count)


def _lower(shapes, out, shared, count, touched):
    operand = Operand(reads=SHARED, backward=lookup_batch_gradient, writes=SHARED, needs=())
    return Lowering(lookup_batch, (out.size, count, touched), (operand,), limit=shapes[0].dims[-1])


def _reference(table, indices):
    return table[..., 0][..., list(indices)]


def _samples(choose):
    dims, rows = choose.dims(1, 2), choose.integer(1, 5)
    indices = [choose.integer(0, rows - 1) for _ in range(choose.integer(1, 4))]
    return Sample((Tensor(Shape((*dims, rows))), indices))


LOOKUP_BATCH = Op(
    name="lookup_batch",
    doc=__doc__,
    shape=_shape,
    lower=_lower,
    reference=_reference,
    samples=_samples,
    shapes="table of rows, count indices -> a row, with a minibatch of count",
    shared=lambda position: position == 0,
    rows=True,
)

"""Look-up of several rows at once: the rows of a table with the given indices, as one minibatch.    dtable[index] += dy

A look-up of a single row needs no kernel: the node is a view of the row.
"""

from autobatch.kernels._jit import ITEMS, SIZES, Count, Stage, bytes_at, immediate, inline, integers, item, kernel
from autobatch.kernels._lanes import items, joined, lanes, leader, quotient
from autobatch.kernels._op import SHARED, Lowering, Op, Operand, Sample, Shape, Tensor
from autobatch.kernels._tiles import thread_x

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


@lookup_batch.on_card
def lookup_batch_card(ins, T):
    """A lane takes numbers of y."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, total = sizes[0], sizes[0] * sizes[1]
    table = item(ins, 1, 0, T)
    for i in items(n):
        y = item(ins, 0, i, T)
        for t in lanes(total):
            b = quotient(t, size)
            y[t] = table[immediate(ins, 2 + b, i) * size + t - b * size]


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


@inline
def _index(ins, q):
    """Index number q of all items: the first of each, then the second, and so on."""
    b = quotient(q, ins[ITEMS])
    return immediate(ins, 3 + b, q - b * ins[ITEMS])


def add_rows_to_table(ins, T):
    """`lookup_batch_gradient` on a card: of all look-ups of one row, a warp takes the first and adds up the rest.

    It goes through 32 indices at a time; bit k of `found` tells of the k-th.
    """
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, total = sizes[0], sizes[1] * n
    table, touched = item(ins, 0, 0, T), bytes_at(sizes[2])
    for q in items(total):
        index, before = _index(ins, q), 0
        for p in lanes(q):
            if _index(ins, p) == index:
                before = 1
                break
        if joined(before) == 0:
            if leader():
                touched[index] = 1
            for begin in range(q, total, 32):
                p, found = begin + thread_x(), 0
                if p < total and _index(ins, p) == index:
                    found = 1 << thread_x()
                found, p = joined(found), begin
                while found != 0:
                    if found & 1:
                        b = quotient(p, n)
                        dy = item(ins, 1, p - b * n, T)
                        for j in lanes(size):
                            table[index * size + j] += dy[b * size + j]
                    found >>= 1
                    p += 1


lookup_batch_gradient.on_card(stages=lambda sizes: (Stage(add_rows_to_table, (32, 4), Count(0, sizes[1], 4)),))


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

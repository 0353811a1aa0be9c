"""Dot product and squared distance of two nodes of the same dims: one number for each element of the minibatch."""

from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, argument, integers, item, kernel, number
from autobatch.kernels._lanes import items, joined, lanes, leader, parts
from autobatch.kernels._op import Lowering, Op, Operand, Shape, common_batch, trimmed, two_same, wrong

# sizes: numbers of one element, batch, then 1 for each argument that has a batch of its own


@kernel(reductions=True)
def dot_product(ins, T):
    """y[b] = Σ x ∘ z."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in items(n):
        y, x, z = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for b in parts(batch):
            at_x, at_z = b * size * sizes[2], b * size * sizes[3]
            total = number(0, T)
            for j in lanes(size):
                total += x[at_x + j] * z[at_z + j]
            total = joined(total)
            if leader():
                y[b] = total


@kernel
def dot_product_gradient(ins, T):
    """dx = or += dy z."""
    n, sizes, k = ins[ITEMS], integers(ins[SIZES]), argument(ins)
    size, batch = sizes[0], sizes[1]
    for i in items(n):
        dx, dy, z = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 4 - k, i, T)
        for b in parts(batch):
            at_x, at_z = b * size * sizes[2 + k], b * size * sizes[3 - k]
            g = dy[b]
            if ins[FLAGS] & ACCUMULATE or (b > 0 and not sizes[2 + k]):
                for j in lanes(size):
                    dx[at_x + j] += g * z[at_z + j]
            else:
                for j in lanes(size):
                    dx[at_x + j] = g * z[at_z + j]


@kernel(reductions=True)
def squared_distance(ins, T):
    """y[b] = Σ (x - z)²."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in items(n):
        y, x, z = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for b in parts(batch):
            at_x, at_z = b * size * sizes[2], b * size * sizes[3]
            total = number(0, T)
            for j in lanes(size):
                d = x[at_x + j] - z[at_z + j]
                total += d * d
            total = joined(total)
            if leader():
                y[b] = total


@kernel
def squared_distance_gradient(ins, T):
    """dx = or += 2 dy (x - z)."""
    n, sizes, k = ins[ITEMS], integers(ins[SIZES]), argument(ins)
    size, batch = sizes[0], sizes[1]
    for i in items(n):
        dx, dy, x, z = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3 + k, i, T), item(ins, 4 - k, i, T)
        for b in parts(batch):
            at_x, at_z = b * size * sizes[2 + k], b * size * sizes[3 - k]
            g = dy[b] + dy[b]
            if ins[FLAGS] & ACCUMULATE or (b > 0 and not sizes[2 + k]):
                for j in lanes(size):
                    dx[at_x + j] += g * (x[at_x + j] - z[at_z + j])
            else:
                for j in lanes(size):
                    dx[at_x + j] = g * (x[at_x + j] - z[at_z + j])


for _forward in (dot_product, squared_distance):
    _forward.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])
for _backward in (dot_product_gradient, squared_distance_gradient):  # of both arguments: one without a batch is a sum over it
    _backward.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1] if sizes[2] and sizes[3] else 1)


def _shape(name):
    def rule(shapes):
        if trimmed(shapes[0].dims) != trimmed(shapes[1].dims):
            raise wrong(name, "the dims differ", shapes, "equal dims, equal batch sizes or 1")
        return Shape((1,), common_batch(name, shapes))

    return rule


def _lower(forward, backward):
    def lower(shapes, out, shared):
        sizes = (shapes[0].size, out.batch, *(int(s.batch > 1) for s in shapes))
        return Lowering(forward, sizes, (Operand(backward=backward),) * 2)

    return lower


DOT_PRODUCT = Op(
    name="dot_product",
    doc="Σ x ∘ z.    dx += dy z    dz += dy x",
    shape=_shape("dot_product"),
    lower=_lower(dot_product, dot_product_gradient),
    reference=lambda x, z: (x * z).sum(axis=tuple(range(x.ndim - 1)))[None],
    samples=two_same(),
    shapes="equal dims -> (1,)",
)
SQUARED_DISTANCE = Op(
    name="squared_distance",
    doc="Σ (x - z)².    dx += 2 dy (x - z)    dz -= 2 dy (x - z)",
    shape=_shape("squared_distance"),
    lower=_lower(squared_distance, squared_distance_gradient),
    reference=lambda x, z: ((x - z) ** 2).sum(axis=tuple(range(x.ndim - 1)))[None],
    samples=two_same(),
    shapes="equal dims -> (1,)",
)

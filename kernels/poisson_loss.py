"""Poisson loss: minus the log-probability of a count x where e**l of them are expected.

y = eˡ + log Γ(x + 1) - x l        dl += dy (eˡ - x)
"""

import math

import numpy as np

from autobatch.kernels import _math, _math_special
from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, immediate, integers, item, kernel, number
from autobatch.kernels._lanes import items, joined, lanes, leader
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, wrong

# sizes: batch, 1 if l has a batch of its own; one immediate, the count, for each element of the minibatch


@kernel
def poisson_loss(ins, T):
    """y = eˡ + log Γ(x + 1) - x l; in float64, on a card too, as the terms are large beside their sum."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    for i in items(n):
        y, l = item(ins, 0, i, T), item(ins, 1, i, T)
        for b in lanes(sizes[0]):
            x, v = np.float64(immediate(ins, 2 + b, i)), np.float64(l[b * sizes[1]])
            y[b] = number(_math.exp(v) + (_math_special.lgamma(x + 1.0) - (x * v if x > 0.0 else 0.0)), T)


@kernel
def poisson_loss_gradient(ins, T):
    """dl = or += dy (eˡ - x). Slots: dl, dy, y, l, then the counts."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    for i in items(n):
        dl, dy, l = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        total = number(0, T)
        for b in lanes(sizes[0]):
            at = b * sizes[1]
            slope = dy[b] * (_math.exp(l[at]) - number(immediate(ins, 4 + b, i), T))
            total += slope
            if sizes[1]:
                dl[at] = dl[at] + slope if ins[FLAGS] & ACCUMULATE else slope
        total = joined(total)
        if not sizes[1] and leader():
            dl[0] = dl[0] + total if ins[FLAGS] & ACCUMULATE else total


for _each in (poisson_loss, poisson_loss_gradient):
    _each.on_card(work=lambda sizes: sizes[0])


def _shape(shapes, count):
    l = shapes[0]
    if l.size != 1:
        raise wrong("poisson_loss", "log λ is more than one number", [l], "one number, (1,)")
    if count == 0:
        raise ArgumentError("poisson_loss: the list of counts is empty")
    if count != l.batch and l.batch > 1:
        raise wrong("poisson_loss", f"{count} counts for a minibatch of {l.batch}", [l], "one count, or one for each element")
    return Shape((1,), count)


def _lower(shapes, out, shared, count):
    return Lowering(poisson_loss, (count, int(shapes[0].batch > 1)), (Operand(backward=poisson_loss_gradient),))


def _reference(l, x):
    l = l.reshape(1, -1)
    x = np.array(x, float).reshape(1, -1)
    return np.exp(l) + np.vectorize(math.lgamma)(x + 1) - x * l


def _samples(choose):
    batch = choose.batch()
    if choose.integer(0, 1):
        return Sample((Tensor(Shape((1,), batch)), choose.integer(0, 9)))
    l = Shape((1,), batch if choose.integer(0, 2) else 1)
    return Sample((Tensor(l), [choose.integer(0, 9) for _ in range(batch)]))


POISSON_LOSS = Op(
    name="poisson_loss",
    doc="eˡ + log Γ(x + 1) - x l for a count x.    dl += dy (eˡ - x)",
    shapes="(1,) -> (1,)",
    shape=_shape,
    lower=_lower,
    reference=_reference,
    samples=_samples,
)

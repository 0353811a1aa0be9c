"""Exponentiated gradient (Kivinen and Warmuth 1997) with momentum: values stay positive and sum up to 1.

    v = μ v - η g        θ = softmax(log θ + v)        g = 0        numbers: η (times the scale, from clipping), μ

The softmax goes over all numbers of a parameter, or of a row of a look-up table.
"""

import math

from autobatch.kernels import _math
from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel, number
from autobatch.kernels._lanes import items, joined, lanes, largest
from autobatch.kernels._update import constant


@kernel(reductions=True)
def update_exponentiated(ins, T):
    """Slots: values, gradients, velocities, numbers."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    rate, momentum = constant(ins, 3, 0, T), constant(ins, 3, 1, T)
    for i in items(n):
        w, g, v = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for j in lanes(size):
            v[j] = momentum * v[j] - rate * g[j]
            w[j] = _math.log(w[j]) + v[j]
            g[j] = 0
        highest = number(-math.inf, T)
        for j in lanes(size):
            highest = w[j] if w[j] > highest else highest
        highest = largest(highest)
        total = number(0, T)
        for j in lanes(size):
            w[j] = _math.exp(w[j] - highest)
            total += w[j]
        total = joined(total)
        for j in lanes(size):
            w[j] /= total

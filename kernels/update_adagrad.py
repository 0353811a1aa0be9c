"""Adagrad (Duchi, Hazan and Singer 2011): steps over the root of the sum of all squares.

h += (s g)²        θ -= η s g / √(h + ε)        g = 0        numbers: s (scale of the gradient, from clipping), η, ε
"""

import math

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel
from autobatch.kernels._lanes import items, lanes
from autobatch.kernels._update import constant


@kernel
def update_adagrad(ins, T):
    """Slots: values, gradients, sums of squares, numbers."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    scale, rate, eps = constant(ins, 3, 0, T), constant(ins, 3, 1, T), constant(ins, 3, 2, T)
    for i in items(n):
        w, g, h = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for j in lanes(size):
            x = scale * g[j]
            square = h[j] + x * x
            h[j] = square
            w[j] -= rate * x / math.sqrt(square + eps)
            g[j] = 0

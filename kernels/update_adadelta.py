"""Adadelta (Zeiler 2012, algorithm 1): steps as long as the last ones were, no learning rate.

h = ρ h + (1-ρ) (s g)²    d = -s g √(k + ε) / √(h + ε)    k = ρ k + (1-ρ) d²    θ += d    g = 0
numbers: s (scale of the gradient, from clipping), ε, ρ
"""

import math

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel
from autobatch.kernels._lanes import items, lanes
from autobatch.kernels._update import constant, rest


@kernel
def update_adadelta(ins, T):
    """Slots: values, gradients, mean squares of gradients, mean squares of steps, numbers."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    scale, eps = constant(ins, 4, 0, T), constant(ins, 4, 1, T)
    rho, new = constant(ins, 4, 2, T), rest(ins, 4, 2, T)
    for i in items(n):
        w, g, h, k = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for j in lanes(size):
            x = scale * g[j]
            square = rho * h[j] + new * (x * x)
            step = -x * math.sqrt(k[j] + eps) / math.sqrt(square + eps)
            h[j] = square
            k[j] = rho * k[j] + new * (step * step)
            w[j] += step
            g[j] = 0

"""Adadelta (Zeiler 2012, algorithm 1): steps as long as the last ones were, no learning rate.

h = ρ h + (1-ρ) (s g)²    d = -s g √(k + ε) / √(h + ε)    k = ρ k + (1-ρ) d²    θ += d    g = 0
numbers: s (scale of the gradient, from clipping), ε, ρ
"""

import math

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel, number, slot
from autobatch.kernels._update import doubles


@kernel
def update_adadelta(ins, T):
    """Slots: values, gradients, mean squares of gradients, mean squares of steps, numbers."""
    n, size, numbers = ins[ITEMS], integers(ins[SIZES])[0], doubles(ins[slot(4)])
    scale, eps = number(numbers[0], T), number(numbers[1], T)
    rho, new = number(numbers[2], T), number(1 - numbers[2], T)
    for i in range(n):
        w, g, h, k = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for j in range(size):
            x = scale * g[j]
            square = rho * h[j] + new * (x * x)
            step = -x * math.sqrt(k[j] + eps) / math.sqrt(square + eps)
            h[j] = square
            k[j] = rho * k[j] + new * (step * step)
            w[j] += step
            g[j] = 0

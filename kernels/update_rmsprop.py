"""RMSProp (Tieleman and Hinton 2012): steps over the root of the running mean square.

h = ρ h + (1-ρ) (s g)²        θ -= η s g / √(h + ε)        g = 0        numbers: s (scale, from clipping), η, ε, ρ
"""

import math

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel, number, slot
from autobatch.kernels._update import doubles


@kernel
def update_rmsprop(ins, T):
    """Slots: values, gradients, mean squares, numbers."""
    n, size, numbers = ins[ITEMS], integers(ins[SIZES])[0], doubles(ins[slot(3)])
    scale, rate, eps = number(numbers[0], T), number(numbers[1], T), number(numbers[2], T)
    rho, new = number(numbers[3], T), number(1 - numbers[3], T)
    for i in range(n):
        w, g, h = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for j in range(size):
            x = scale * g[j]
            square = rho * h[j] + new * (x * x)
            h[j] = square
            w[j] -= rate * x / math.sqrt(square + eps)
            g[j] = 0

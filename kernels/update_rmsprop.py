"""RMSProp (Tieleman and Hinton 2012): steps over the root of the running mean square.

h = ρ h + (1-ρ) (s g)²        θ -= η s g / √(h + ε)        g = 0        numbers: s (scale, from clipping), η, ε, ρ
"""

import math

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel
from autobatch.kernels._lanes import items, lanes
from autobatch.kernels._update import constant, rest


@kernel
def update_rmsprop(ins, T):
    """Slots: values, gradients, mean squares, numbers."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    scale, rate, eps = constant(ins, 3, 0, T), constant(ins, 3, 1, T), constant(ins, 3, 2, T)
    rho, new = constant(ins, 3, 3, T), rest(ins, 3, 3, T)
    for i in items(n):
        w, g, h = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for j in lanes(size):
            x = scale * g[j]
            square = rho * h[j] + new * (x * x)
            h[j] = square
            w[j] -= rate * x / math.sqrt(square + eps)
            g[j] = 0

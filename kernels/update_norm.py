"""Squared norm of gradients: the sum over all numbers, in float64, in an order that depends on the sizes only."""

import numpy as np

from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, integers, item, kernel, slot
from autobatch.kernels._update import doubles


@kernel(reductions=True)
def update_norm(ins, T):
    """Slots: gradients; one float64 number that is set, or added to (ACCUMULATE)."""
    n, size, total = ins[ITEMS], integers(ins[SIZES])[0], doubles(ins[slot(1)])
    if not ins[FLAGS] & ACCUMULATE:
        total[0] = 0
    for i in range(n):
        g = item(ins, 0, i, T)
        part = 0.0
        for j in range(size):
            x = np.float64(g[j])
            part += x * x
        total[0] += part

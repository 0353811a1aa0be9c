"""SGD: one step against the gradient.    θ -= η g    g = 0        numbers: η"""

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel, number, slot
from autobatch.kernels._update import doubles


@kernel
def update_sgd(ins, T):
    """Slots: values, gradients, numbers."""
    n, size, numbers = ins[ITEMS], integers(ins[SIZES])[0], doubles(ins[slot(2)])
    rate = number(numbers[0], T)
    for i in range(n):
        w, g = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in range(size):
            w[j] -= rate * g[j]
            g[j] = 0

"""SGD: one step against the gradient.    θ -= η g    g = 0        numbers: η"""

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel
from autobatch.kernels._lanes import items, lanes
from autobatch.kernels._update import constant


@kernel
def update_sgd(ins, T):
    """Slots: values, gradients, numbers."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    rate = constant(ins, 2, 0, T)
    for i in items(n):
        w, g = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in lanes(size):
            w[j] -= rate * g[j]
            g[j] = 0

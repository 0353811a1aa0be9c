"""SGD with momentum (Polyak 1964): a step is a part of the last one and a new one.

v = μ v - η g        θ += v        g = 0        numbers: η (times the scale of the gradient, from clipping), μ
"""

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel
from autobatch.kernels._lanes import items, lanes
from autobatch.kernels._update import constant


@kernel
def update_momentum(ins, T):
    """Slots: values, gradients, velocities, numbers."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    rate, momentum = constant(ins, 3, 0, T), constant(ins, 3, 1, T)
    for i in items(n):
        w, g, v = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for j in lanes(size):
            step = momentum * v[j] - rate * g[j]
            v[j] = step
            w[j] += step
            g[j] = 0

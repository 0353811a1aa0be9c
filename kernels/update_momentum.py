"""SGD with momentum (Polyak 1964): a step is a part of the last one and a new one.

v = μ v - η g        θ += v        g = 0        numbers: η (times the scale of the gradient, from clipping), μ
"""

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel, number, slot
from autobatch.kernels._update import doubles


@kernel
def update_momentum(ins, T):
    """Slots: values, gradients, velocities, numbers."""
    n, size, numbers = ins[ITEMS], integers(ins[SIZES])[0], doubles(ins[slot(3)])
    rate, momentum = number(numbers[0], T), number(numbers[1], T)
    for i in range(n):
        w, g, v = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for j in range(size):
            step = momentum * v[j] - rate * g[j]
            v[j] = step
            w[j] += step
            g[j] = 0

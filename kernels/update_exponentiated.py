"""Exponentiated gradient (Kivinen and Warmuth 1997) with momentum: values stay positive and sum up to 1.

    v = μ v - η g        θ = softmax(log θ + v)        g = 0        numbers: η (times the scale, from clipping), μ

The softmax goes over all numbers of a parameter, or of a row of a look-up table.
"""

from autobatch.kernels import _math
from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel, number, slot
from autobatch.kernels._update import doubles


@kernel(reductions=True)
def update_exponentiated(ins, T):
    """Slots: values, gradients, velocities, numbers."""
    n, size, numbers = ins[ITEMS], integers(ins[SIZES])[0], doubles(ins[slot(3)])
    rate, momentum = number(numbers[0], T), number(numbers[1], T)
    for i in range(n):
        w, g, v = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for j in range(size):
            v[j] = momentum * v[j] - rate * g[j]
            w[j] = _math.log(w[j]) + v[j]
            g[j] = 0
        largest = w[0]
        for j in range(1, size):
            largest = w[j] if w[j] > largest else largest
        total = number(0, largest)
        for j in range(size):
            w[j] = _math.exp(w[j] - largest)
            total += w[j]
        for j in range(size):
            w[j] /= total

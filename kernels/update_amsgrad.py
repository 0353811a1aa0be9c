"""AMSGrad (Reddi, Kale and Kumar 2018, algorithm 2): Adam whose mean square never shrinks.

    m = β₁ m + (1-β₁) s g    v = β₂ v + (1-β₂) (s g)²    u = max(u, v)    θ -= η m / (√u + ε)    g = 0

numbers: s (scale of the gradient, from clipping), β₁, β₂, ε, η. η holds the correction of the bias, as in `update_adam`
(DyNet's way; the paper has none).
"""

import math

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel, number, slot
from autobatch.kernels._update import doubles


@kernel
def update_amsgrad(ins, T):
    """Slots: values, gradients, means, mean squares, the largest of these so far, numbers."""
    n, size, numbers = ins[ITEMS], integers(ins[SIZES])[0], doubles(ins[slot(5)])
    scale, beta_1, beta_2 = number(numbers[0], T), number(numbers[1], T), number(numbers[2], T)
    new_1, new_2 = number(1 - numbers[1], T), number(1 - numbers[2], T)
    eps, rate = number(numbers[3], T), number(numbers[4], T)
    for i in range(n):
        w, g, m, v, u = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T), item(ins, 4, i, T)
        for j in range(size):
            x = scale * g[j]
            mean = beta_1 * m[j] + new_1 * x
            square = beta_2 * v[j] + new_2 * (x * x)
            largest = square if square > u[j] else u[j]
            m[j] = mean
            v[j] = square
            u[j] = largest
            w[j] -= rate * mean / (math.sqrt(largest) + eps)
            g[j] = 0

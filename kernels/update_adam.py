"""Adam (Kingma and Ba 2015): steps of the running mean over the root of the running mean square.

    m = β₁ m + (1-β₁) s g        v = β₂ v + (1-β₂) (s g)²        θ -= η m / (√v + ε)        g = 0

numbers: s (scale of the gradient, from clipping), β₁, β₂, ε, η. η holds the correction of the bias, √(1-β₂ᵗ) / (1-β₁ᵗ), so ε is
added after it, as DyNet does and the paper's section 2 suggests.
"""

import math

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel, number, slot
from autobatch.kernels._update import doubles


@kernel
def update_adam(ins, T):
    """Slots: values, gradients, means, mean squares, numbers."""
    n, size, numbers = ins[ITEMS], integers(ins[SIZES])[0], doubles(ins[slot(4)])
    scale, beta_1, beta_2 = number(numbers[0], T), number(numbers[1], T), number(numbers[2], T)
    new_1, new_2 = number(1 - numbers[1], T), number(1 - numbers[2], T)
    eps, rate = number(numbers[3], T), number(numbers[4], T)
    for i in range(n):
        w, g, m, v = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for j in range(size):
            x = scale * g[j]
            mean = beta_1 * m[j] + new_1 * x
            square = beta_2 * v[j] + new_2 * (x * x)
            m[j] = mean
            v[j] = square
            w[j] -= rate * mean / (math.sqrt(square) + eps)
            g[j] = 0

"""Adam (Kingma and Ba 2015): steps of the running mean over the root of the running mean square.

    m = β₁ m + (1-β₁) s g        v = β₂ v + (1-β₂) (s g)²        θ -= η m / (√v + ε)        g = 0

numbers: s (scale of the gradient, from clipping), β₁, β₂, ε, η. η holds the correction of the bias, √(1-β₂ᵗ) / (1-β₁ᵗ), so ε is
added after it, as DyNet does and the paper's section 2 suggests.
"""

import math

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel
from autobatch.kernels._lanes import items, lanes
from autobatch.kernels._update import constant, rest


@kernel
def update_adam(ins, T):
    """Slots: values, gradients, means, mean squares, numbers."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    scale, beta_1, beta_2 = constant(ins, 4, 0, T), constant(ins, 4, 1, T), constant(ins, 4, 2, T)
    new_1, new_2 = rest(ins, 4, 1, T), rest(ins, 4, 2, T)
    eps, rate = constant(ins, 4, 3, T), constant(ins, 4, 4, T)
    for i in items(n):
        w, g, m, v = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for j in lanes(size):
            x = scale * g[j]
            mean = beta_1 * m[j] + new_1 * x
            square = beta_2 * v[j] + new_2 * (x * x)
            m[j] = mean
            v[j] = square
            w[j] -= rate * mean / (math.sqrt(square) + eps)
            g[j] = 0

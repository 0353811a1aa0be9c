"""AMSGrad (Reddi, Kale and Kumar 2018, algorithm 2): Adam whose mean square never shrinks.

    m = β₁ m + (1-β₁) s g    v = β₂ v + (1-β₂) (s g)²    u = max(u, v)    θ -= η m / (√u + ε)    g = 0

numbers: s (scale of the gradient, from clipping), β₁, β₂, ε, η. η holds the correction of the bias, as in `update_adam`
(DyNet's way; the paper has none).
"""

import math

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel
from autobatch.kernels._lanes import items, lanes
from autobatch.kernels._update import constant, rest


@kernel
def update_amsgrad(ins, T):
    """Slots: values, gradients, means, mean squares, the largest of these so far, numbers."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    scale, beta_1, beta_2 = constant(ins, 5, 0, T), constant(ins, 5, 1, T), constant(ins, 5, 2, T)
    new_1, new_2 = rest(ins, 5, 1, T), rest(ins, 5, 2, T)
    eps, rate = constant(ins, 5, 3, T), constant(ins, 5, 4, T)
    for i in items(n):
        w, g, m, v, u = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T), item(ins, 4, i, T)
        for j in lanes(size):
            x = scale * g[j]
            mean = beta_1 * m[j] + new_1 * x
            square = beta_2 * v[j] + new_2 * (x * x)
            largest = square if square > u[j] else u[j]
            m[j] = mean
            v[j] = square
            u[j] = largest
            w[j] -= rate * mean / (math.sqrt(largest) + eps)
            g[j] = 0

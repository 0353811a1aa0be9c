"""Moving average of the values: a = κ a + ν θ        numbers: κ, ν"""

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel
from autobatch.kernels._lanes import items, lanes
from autobatch.kernels._update import constant


@kernel
def update_average(ins, T):
    """Slots: averages, values, numbers."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    keep, new = constant(ins, 2, 0, T), constant(ins, 2, 1, T)
    for i in items(n):
        a, w = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in lanes(size):
            a[j] = keep * a[j] + new * w[j]

"""Weight decay: all values of a parameter times one number.    θ *= s        numbers: s"""

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel, number, slot
from autobatch.kernels._update import doubles


@kernel
def update_scale(ins, T):
    """Slots: values, numbers."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    scale = number(doubles(ins[slot(1)])[0], T)
    for i in range(n):
        w = item(ins, 0, i, T)
        for j in range(size):
            w[j] *= scale

"""Weight decay: all values of a parameter times one number.    θ *= s        numbers: s"""

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel
from autobatch.kernels._lanes import items, lanes
from autobatch.kernels._update import constant


@kernel
def update_scale(ins, T):
    """Slots: values, numbers."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    scale = constant(ins, 1, 0, T)
    for i in items(n):
        w = item(ins, 0, i, T)
        for j in lanes(size):
            w[j] *= scale

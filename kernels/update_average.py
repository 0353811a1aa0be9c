"""Moving average of the values: a = κ a + ν θ        numbers: κ, ν"""

from autobatch.kernels._jit import ITEMS, SIZES, integers, item, kernel, number, slot
from autobatch.kernels._update import doubles


@kernel
def update_average(ins, T):
    """Slots: averages, values, numbers."""
    n, size, numbers = ins[ITEMS], integers(ins[SIZES])[0], doubles(ins[slot(2)])
    keep, new = number(numbers[0], T), number(numbers[1], T)
    for i in range(n):
        a, w = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in range(size):
            a[j] = keep * a[j] + new * w[j]

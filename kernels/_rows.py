"""Kernels of the planner's own: copy rows together, zero them, add them back where they came from.

`sizes[0]` is the number of numbers in a row.
"""

from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, bytes_at, integers, item, kernel, slot, whole


@kernel
def copy_rows(ins, T):
    """Slot 0 = slot 1, row by row: the gather before a product."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    if whole(ins, 0, size, T) and whole(ins, 1, size, T):
        y, x = item(ins, 0, 0, T), item(ins, 1, 0, T)
        for j in range(n * size):
            y[j] = x[j]
        return
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in range(size):
            y[j] = x[j]


@kernel
def zero_rows(ins, T):
    """Slot 0 = 0."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in range(n):
        y = item(ins, 0, i, T)
        for j in range(size):
            y[j] = 0


@kernel
def add_rows(ins, T):
    """Slot 0 = or += slot 1, row by row; a row may occur more than once in slot 0."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    if ins[FLAGS] & ACCUMULATE:
        for i in range(n):
            y, x = item(ins, 0, i, T), item(ins, 1, i, T)
            for j in range(size):
                y[j] += x[j]
    else:
        for i in range(n):
            y, x = item(ins, 0, i, T), item(ins, 1, i, T)
            for j in range(size):
                y[j] = x[j]


@kernel
def add_to_table(ins, T):
    """Gradient of looked-up rows: table (slot 0) [index (slot 2)] += dy (slot 1); marks the rows (bytes of slot 3)."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    table, index, touched = item(ins, 0, 0, T), integers(ins[slot(2)]), bytes_at(ins[slot(3)])
    for i in range(n):
        dy = item(ins, 1, i, T)
        start = index[i] * size
        for j in range(size):
            table[start + j] += dy[j]
        touched[index[i]] = 1

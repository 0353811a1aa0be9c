"""Touched rows of a look-up table: found before an update, so that later instructions visit these rows only.

touched   0 0 1 0 0 1 0 0        one byte a row, set by backward
lists     base + 2 * row bytes, base + 5 * row bytes        one list for each array that has a row for each row
words     2                      the ITEMS word of each instruction that will visit the rows
"""

from autobatch.kernels._jit import ITEMS, SIZES, bytes_at, integers, kernel, row, slot


@kernel
def update_rows(ins, T):
    """Slot 0: touched, aligned to 8 bytes. Sizes: V, L, W, then L times (base, row bytes, list), then W addresses of words."""
    sizes, touched, eights = integers(ins[SIZES]), bytes_at(ins[slot(0)]), integers(ins[slot(0)])
    V, L, W = sizes[0], sizes[1], sizes[2]
    count = 0
    for e in range((V + 7) // 8):
        if 8 * e + 8 <= V and eights[e] == 0:  # eight rows at once: 0.1 ms for a million rows
            continue
        for r in range(8 * e, min(8 * e + 8, V)):
            if touched[r]:
                for k in range(L):
                    integers(sizes[5 + 3 * k])[count] = sizes[3 + 3 * k] + r * sizes[4 + 3 * k]
                count += 1
    for k in range(W):
        integers(sizes[3 + 3 * L + k])[0] = count


@kernel
def update_forget(ins, T):
    """Slot 0: bytes to clear, one an item."""
    for i in range(ins[ITEMS]):
        bytes_at(row(ins, 0, i))[0] = 0

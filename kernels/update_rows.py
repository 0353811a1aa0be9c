"""Touched rows of a look-up table: found before an update, so that later instructions visit these rows only.

touched   0 0 1 0 0 1 0 0        one byte a row, set by backward
lists     base + 2 * row bytes, base + 5 * row bytes        one list for each array that has a row for each row
words     2                      the ITEMS word of each instruction that will visit the rows

On a card each block has a chunk of rows. In one launch it counts those that are touched, into the scratch; in a second one it
adds up the counts of the chunks before its own, and each thread those of the threads before it: then all know their places.
The lists are in the order of the rows, and the same each time.
"""

import numpy as np

from autobatch.kernels._jit import ITEMS, SIZES, Count, Stage, address_of, bytes_at, integers, kernel, row, slot
from autobatch.kernels._lanes import items, joined, lanes, leader
from autobatch.kernels._tiles import block_x, shared, sync, thread_x

_THREADS = 256  # of a block; each looks at 8 rows


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


def _touched_of(e, V, touched, eights):
    """8 bits that tell which of rows 8 e, 8 e + 1, ... are touched."""
    found, eight = 0, np.int64(1)
    if 8 * e + 8 <= V:
        eight = eights[e]
    if eight != 0:
        for r in range(8 * e, min(8 * e + 8, V)):
            if touched[r]:
                found |= 1 << (r - 8 * e)
    return found


def _ones(bits):
    """How many of 8 bits are 1."""
    count = 0
    for k in range(8):
        count += bits >> k & 1
    return count


def rows_count(ins, T):
    """Count the touched rows of each chunk, into the scratch."""
    V, touched, eights = integers(ins[SIZES])[0], bytes_at(ins[slot(0)]), integers(ins[slot(0)])
    count = joined(np.int64(_ones(_touched_of(np.int64(block_x()) * _THREADS + thread_x(), V, touched, eights))))
    if leader():
        integers(address_of(T))[block_x()] = count


def rows_list(ins, T):
    """Write the lists, and how long they are. Sizes as of `update_rows`."""
    sizes, touched, eights = integers(ins[SIZES]), bytes_at(ins[slot(0)]), integers(ins[slot(0)])
    V, L, W, counts = sizes[0], sizes[1], sizes[2], integers(address_of(T))
    e, t, sums = np.int64(block_x()) * _THREADS + thread_x(), thread_x(), shared(_THREADS, sizes)
    before = np.int64(0)
    for c in lanes(np.int64(block_x())):
        before += counts[c]
    before = joined(before)
    bits = _touched_of(e, V, touched, eights)
    own = np.int64(_ones(bits))
    total = own  # of this thread and `apart` - 1 before it
    apart = 1
    while apart < _THREADS:
        sums[t] = total
        sync()
        if t >= apart:
            total += sums[t - apart]
        sync()
        apart *= 2
    at = before + total - own
    for k in range(8):
        if bits >> k & 1:
            for a in range(L):
                integers(sizes[5 + 3 * a])[at] = sizes[3 + 3 * a] + (8 * e + k) * sizes[4 + 3 * a]
            at += 1
    if t == _THREADS - 1 and 8 * _THREADS * (np.int64(block_x()) + 1) >= V:  # the last one knows how many there are
        for k in range(W):
            integers(sizes[3 + 3 * L + k])[0] = at


def _stages(sizes):
    chunks = -(-sizes[0] // (8 * _THREADS))
    return [Stage(f, (_THREADS, 1), Count(chunks), scratch=Count(2 * chunks)) for f in (rows_count, rows_list)]


update_rows.on_card(stages=_stages)


@kernel
def update_forget(ins, T):
    """Slot 0: bytes to clear, one an item."""
    for i in items(ins[ITEMS]):
        for _ in lanes(1):
            bytes_at(row(ins, 0, i))[0] = 0


update_forget.on_card(work=lambda sizes: 1)

"""Kernels of the planner's own: copy rows together, zero them, add them back where they came from.

`sizes[0]` is the number of numbers in a row. On a card a team takes a row, and a lane some of its numbers.

Where rows go to one place several times, a processor adds them one after the other. A card cannot: there the planner sorts
them into *groups*, and a group is what one team, or one block, adds up alone.

    slot 2     3 0 5 | 1 4 | 2          items in the order of their groups
    slot 3     0       3     5   6      where each group begins, and the end

    add_groups           the rows of a group go to one place
    add_all_rows         all rows do: one group without lists
    add_to_table_groups  the same, to a row of a table, which is marked as touched
    add_overlapping      they go to places that overlap: one after the other

The first two sum a group in strips: each row of threads takes every 8th (of few groups, every 32nd) row, and the first of them
adds up the strips: the order is that of the list, and depends on nothing else but how many groups there are.
"""

import numpy as np

from autobatch.kernels._jit import (
    ACCUMULATE,
    FLAGS,
    ITEMS,
    SIZES,
    Count,
    Stage,
    bytes_at,
    inline,
    integers,
    item,
    kernel,
    number,
    slot,
    whole,
)
from autobatch.kernels._lanes import items, lanes, leader, meet
from autobatch.kernels._tiles import block_x, block_y, shared, sync, thread_x, thread_y


@kernel
def copy_rows(ins, T):
    """Slot 0 = slot 1, row by row: the gather before a product."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    if whole(ins, 0, size, T) and whole(ins, 1, size, T):
        y, x = item(ins, 0, 0, T), item(ins, 1, 0, T)
        for j in lanes(n * size):
            y[j] = x[j]
        return
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in lanes(size):
            y[j] = x[j]


@kernel
def zero_rows(ins, T):
    """Slot 0 = 0."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        y = item(ins, 0, i, T)
        for j in lanes(size):
            y[j] = 0


@kernel
def add_rows(ins, T):
    """Slot 0 = or += slot 1, row by row; a row may occur more than once in slot 0, but not on a card."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    if ins[FLAGS] & ACCUMULATE:
        for i in items(n):
            y, x = item(ins, 0, i, T), item(ins, 1, i, T)
            for j in lanes(size):
                y[j] += x[j]
    else:
        for i in items(n):
            y, x = item(ins, 0, i, T), item(ins, 1, i, T)
            for j in lanes(size):
                y[j] = x[j]


@kernel
def add_to_table(ins, T):
    """Gradient of looked-up rows: table (slot 0) [index (slot 2)] += dy (slot 1); marks the rows (bytes of slot 3).

    On a card no index may occur twice.
    """
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    table, index, touched = item(ins, 0, 0, T), integers(ins[slot(2)]), bytes_at(ins[slot(3)])
    for i in items(n):
        dy = item(ins, 1, i, T)
        start = index[i] * size
        for j in lanes(size):
            table[start + j] += dy[j]
        if leader():
            touched[index[i]] = 1


for _kernel in (copy_rows, zero_rows, add_rows, add_to_table):
    _kernel.on_card(work=lambda sizes: sizes[0])


# Groups ---------------------------------------------------------------------------------------------------------------


@kernel
def add_groups(ins, T):
    """Place of a group (slot 0) = or += the sum of its rows (slot 1). Items: the groups; slots 2 and 3 as above."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    order, begins = integers(ins[slot(2)]), integers(ins[slot(3)])
    for g in range(n):
        y, first = item(ins, 0, g, T), begins[g]
        if not ins[FLAGS] & ACCUMULATE:
            x = item(ins, 1, order[first], T)
            for j in range(size):
                y[j] = x[j]
            first += 1
        for r in range(first, begins[g + 1]):
            x = item(ins, 1, order[r], T)
            for j in range(size):
                y[j] += x[j]


@kernel
def add_to_table_groups(ins, T):
    """Row (list in slot 4) of a table (slot 0) += the sum of a group's rows (slot 1); marks it (bytes of slot 5)."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    order, begins, index = integers(ins[slot(2)]), integers(ins[slot(3)]), integers(ins[slot(4)])
    table, touched = item(ins, 0, 0, T), bytes_at(ins[slot(5)])
    for g in range(n):
        start = index[g] * size
        for r in range(begins[g], begins[g + 1]):
            x = item(ins, 1, order[r], T)
            for j in range(size):
                table[start + j] += x[j]
        touched[index[g]] = 1


@kernel
def add_all_rows(ins, T):
    """One place (slot 0) += the sum of all rows (slot 1)."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    y = item(ins, 0, 0, T)
    for i in range(n):
        x = item(ins, 1, i, T)
        for j in range(size):
            y[j] += x[j]


@kernel
def add_overlapping(ins, T):
    """Place of an item (slot 0) += its row (slot 1); places of one group may overlap, those of two may not."""
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    order, begins = integers(ins[slot(2)]), integers(ins[slot(3)])
    for g in items(n):
        for r in range(begins[g], begins[g + 1]):
            y, x = item(ins, 0, order[r], T), item(ins, 1, order[r], T)
            for j in lanes(size):
                y[j] += x[j]
            meet()


add_overlapping.on_card(work=lambda sizes: sizes[0])

# Groups on a card: a block sums 32 numbers of the rows of one group. In a strip four rows are on their way at a time.
# Four blocks share the columns of a group: how many there are is known to the instruction only.
_ACROSS, _THREADS, _BLOCKS = 32, 1024, 4


@inline
def _sum_of_strips(total, strips, T):
    """The sum of what the strips found, for the first of them; what the others return is a part of it."""
    parts = shared(_THREADS, T)
    parts[thread_y() * _ACROSS + thread_x()] = total
    sync()
    if thread_y() == 0:
        s = 1
        while s < strips:
            total += parts[s * _ACROSS + thread_x()]
            s += 1
    return total


@inline
def _sum_of_group(ins, strips, j, T):
    """The sum of number j of a group's rows, for the first strip."""
    order, begins = integers(ins[slot(2)]), integers(ins[slot(3)])
    total = number(0, T)
    if j < integers(ins[SIZES])[0]:
        g = block_x()
        r, end = begins[g] + thread_y(), begins[g + 1]
        while r + 3 * strips < end:
            a, b = item(ins, 1, order[r], T), item(ins, 1, order[r + strips], T)
            c, d = item(ins, 1, order[r + 2 * strips], T), item(ins, 1, order[r + 3 * strips], T)
            total += (a[j] + b[j]) + (c[j] + d[j])
            r += 4 * strips
        while r < end:
            total += item(ins, 1, order[r], T)[j]
            r += strips
    return _sum_of_strips(total, strips, T)


@inline
def _add_group(ins, strips, T):
    """`add_groups` of a block."""
    start, size = block_y() * _ACROSS, integers(ins[SIZES])[0]
    while start < size:
        j = start + thread_x()
        total = _sum_of_group(ins, strips, j, T)
        if thread_y() == 0 and j < size:
            y = item(ins, 0, block_x(), T)
            y[j] = y[j] + total if ins[FLAGS] & ACCUMULATE else total
        sync()
        start += _BLOCKS * _ACROSS


@inline
def _add_group_to_table(ins, strips, T):
    """`add_to_table_groups` of a block."""
    start, size = block_y() * _ACROSS, integers(ins[SIZES])[0]
    while start < size:
        j = start + thread_x()
        total = _sum_of_group(ins, strips, j, T)
        if thread_y() == 0 and j < size:
            at = integers(ins[slot(4)])[block_x()]
            item(ins, 0, 0, T)[at * size + j] += total
            if j == 0:
                bytes_at(ins[slot(5)])[at] = 1
        sync()
        start += _BLOCKS * _ACROSS


def add_many_groups(ins, T):
    """`add_groups`, with 8 strips."""
    _add_group(ins, 8, T)


def add_few_groups(ins, T):
    """`add_groups`, with 32 strips."""
    _add_group(ins, 32, T)


def add_many_groups_to_table(ins, T):
    """`add_to_table_groups`, with 8 strips."""
    _add_group_to_table(ins, 8, T)


def add_few_groups_to_table(ins, T):
    """`add_to_table_groups`, with 32 strips."""
    _add_group_to_table(ins, 32, T)


_FEW = 64  # up to so many groups: fewer blocks than a card has places for, so they may be large


def _stages(few, many):
    made = (
        Stage(few, (_ACROSS, 32), Count(0, 1), Count(_BLOCKS), upto=_FEW),
        Stage(many, (_ACROSS, 8), Count(0, 1), Count(_BLOCKS), least=_FEW + 1),
    )
    return lambda sizes: made


add_groups.on_card(stages=_stages(add_few_groups, add_many_groups))
add_to_table_groups.on_card(stages=_stages(add_few_groups_to_table, add_many_groups_to_table))


# All rows on a card: a sum of many rows has many blocks, each of which sums a piece; then the pieces are added up.

_PIECE, _PIECES = 256, 64


@inline
def _sum_of_rows(ins, first, end, j, T):
    """The sum of number j of some rows, with 32 strips, for the first strip."""
    total = number(0, T)
    if j < integers(ins[SIZES])[0]:
        r = first + thread_y()
        while r + 96 < end:
            a, b, c, d = item(ins, 1, r, T), item(ins, 1, r + 32, T), item(ins, 1, r + 64, T), item(ins, 1, r + 96, T)
            total += (a[j] + b[j]) + (c[j] + d[j])
            r += 128
        while r < end:
            total += item(ins, 1, r, T)[j]
            r += 32
    return _sum_of_strips(total, 32, T)


def add_few_rows(ins, T):
    """`add_all_rows` of up to a piece."""
    j = block_x() * _ACROSS + thread_x()
    total = _sum_of_rows(ins, 0, ins[ITEMS], j, T)
    if thread_y() == 0 and j < integers(ins[SIZES])[0]:
        item(ins, 0, 0, T)[j] += total


def sum_pieces(ins, T):
    """The sum of each piece, into the work space."""
    n, j, p, pieces = ins[ITEMS], block_x() * _ACROSS + thread_x(), np.int64(block_y()), min(-(-ins[ITEMS] // _PIECE), _PIECES)
    total = _sum_of_rows(ins, p * n // pieces, (p + 1) * n // pieces, j, T)
    size = integers(ins[SIZES])[0]
    if thread_y() == 0 and j < size:
        T[p * size + j] = total


def add_pieces(ins, T):
    """The place += the sum of the pieces."""
    j, size, pieces = block_x() * _ACROSS + thread_x(), integers(ins[SIZES])[0], min(-(-ins[ITEMS] // _PIECE), _PIECES)
    total, p = number(0, T), np.int64(thread_y())
    while p < pieces and j < size:
        total += T[p * size + j]
        p += 8
    total = _sum_of_strips(total, 8, T)
    if thread_y() == 0 and j < size:
        item(ins, 0, 0, T)[j] += total


def _all_stages(sizes):
    size = sizes[0]
    chunks, most = Count(-(-size // _ACROSS)), Count(0, 1, _PIECE, _PIECES)
    scratch = Count(size, size, _PIECE, _PIECES * size)
    return (
        Stage(add_few_rows, (_ACROSS, 32), chunks, upto=_PIECE),
        Stage(sum_pieces, (_ACROSS, 32), chunks, most, scratch=scratch, least=_PIECE + 1),
        Stage(add_pieces, (_ACROSS, 8), chunks, scratch=scratch, least=_PIECE + 1),
    )


add_all_rows.on_card(stages=_all_stages)

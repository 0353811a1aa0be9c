"""Squared norm of gradients: the sum over all numbers, in float64, in an order that depends on the sizes only.

On a card a fixed number of teams sums up a share of the numbers each, then a block the sums of the teams:

    items      few of many numbers: all teams share each       many (rows of a table): each team takes some
    scratch    | sum of team 0 | sum of team 1 | ...           float64; begins at a multiple of 8 bytes
"""

import numpy as np

from autobatch.kernels._jit import (
    ACCUMULATE,
    FLAGS,
    ITEMS,
    SIZES,
    Count,
    Stage,
    address_of,
    integers,
    item,
    kernel,
    slot,
)
from autobatch.kernels._lanes import items, joined, lanes, leader
from autobatch.kernels._tiles import block_x, thread_x, thread_y
from autobatch.kernels._update import doubles

_BLOCKS, _HEIGHT, _WIDTH = 128, 8, 32
_TEAMS = _BLOCKS * _HEIGHT


@kernel(reductions=True)
def update_norm(ins, T):
    """Slots: gradients; one float64 number that is set, or added to (ACCUMULATE)."""
    n, size, total = ins[ITEMS], integers(ins[SIZES])[0], doubles(ins[slot(1)])
    if not ins[FLAGS] & ACCUMULATE:
        total[0] = 0
    for i in range(n):
        g = item(ins, 0, i, T)
        part = 0.0
        for j in range(size):
            x = np.float64(g[j])
            part += x * x
        total[0] += part


def norm_of_shares(ins, T):
    """The sum of a share of the squares, by each team, into the scratch."""
    n, size, part = ins[ITEMS], integers(ins[SIZES])[0], 0.0
    team = block_x() * _HEIGHT + thread_y()
    if n >= _BLOCKS:
        for i in items(n):
            g = item(ins, 0, i, T)
            for j in lanes(size):
                x = np.float64(g[j])
                part += x * x
    else:
        for i in range(n):
            g = item(ins, 0, i, T)
            j = np.int64(team * _WIDTH + thread_x())
            while j < size:
                x = np.float64(g[j])
                part += x * x
                j += _TEAMS * _WIDTH
    part = joined(part)
    if leader():
        doubles(address_of(T))[team] = part


def norm_of_all(ins, T):
    """The sum of the sums of all teams."""
    shares, total, part = doubles(address_of(T)), doubles(ins[slot(1)]), 0.0
    for j in lanes(_TEAMS):
        part += shares[j]
    part = joined(part)
    if leader():
        total[0] = total[0] + part if ins[FLAGS] & ACCUMULATE else part


update_norm.on_card(
    stages=lambda sizes: [
        Stage(norm_of_shares, (_WIDTH, _HEIGHT), Count(_BLOCKS), scratch=Count(2 * _TEAMS)),
        Stage(norm_of_all, (256, 1), Count(), scratch=Count(2 * _TEAMS)),
    ]
)

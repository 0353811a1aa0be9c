"""Squared norm of gradients: the sum over all numbers, in float64, in an order that depends on the sizes only.

On a card teams sum up a share of the numbers each, then a block the sums of the teams:

    items      few of many numbers: all teams share each       many (rows of a table): each team takes some
    scratch    | teams | sum of team 0 | sum of team 1 | ...           float64; begins at a multiple of 8 bytes
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
from autobatch.kernels._tiles import block_x, blocks_x, thread_x, thread_y
from autobatch.kernels._update import doubles

_BLOCKS, _HEIGHT, _WIDTH = 128, 8, 32  # at most so many blocks, of so many teams
_EACH = 8  # numbers of a lane, if there are not more


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
    teams = blocks_x() * _HEIGHT
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
                j += teams * _WIDTH
    part = joined(part)
    if leader():
        doubles(address_of(T))[1 + team] = part
        if team == 0:
            doubles(address_of(T))[0] = teams


def norm_of_all(ins, T):
    """The sum of the sums of all teams."""
    shares, total, part = doubles(address_of(T)), doubles(ins[slot(1)]), 0.0
    for j in lanes(np.int64(shares[0])):
        part += shares[1 + j]
    part = joined(part)
    if leader():
        total[0] = total[0] + part if ins[FLAGS] & ACCUMULATE else part


def _stages(sizes):
    scratch = Count(2 * (1 + _BLOCKS * _HEIGHT))
    shares = Count(0, max(sizes[0], 1), _WIDTH * _HEIGHT * _EACH, _BLOCKS)
    return [
        Stage(norm_of_shares, (_WIDTH, _HEIGHT), shares, scratch=scratch),
        Stage(norm_of_all, (256, 1), Count(), scratch=scratch),
    ]


update_norm.on_card(stages=_stages)

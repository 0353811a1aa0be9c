"""Clipping: what an update of a trainer does about the norm of all gradients, once `update_norm` has found its square.

    norm    up to the threshold    above it                              NaN, infinite
    g       g                      g · threshold / norm                  the rest of the table is left out: nothing is changed

A processor runs it, between two tables and in the background if need be. On a card launches are not left out: there the trainer
waits for the norm.
"""

import math

from autobatch.kernels._jit import LENGTH, SIZES, integers, kernel, slot
from autobatch.kernels._update import doubles


@kernel
def update_clip(ins, T):
    """Slots, all float64: squared norm; how often it was too long, and 1 if it is not finite; numbers of the rule.

    Sizes: words of this instruction; words from its beginning to the end of the table; which number is the threshold (0: none).
    The rule's first number is a factor of the gradients.
    """
    report, numbers, sizes = doubles(ins[slot(1)]), doubles(ins[slot(2)]), integers(ins[SIZES])
    threshold = numbers[sizes[2]]
    ins[LENGTH], report[1] = sizes[0], 0
    if threshold > 0:
        norm = math.sqrt(doubles(ins[slot(0)])[0])
        if not norm < math.inf:
            ins[LENGTH], report[1] = sizes[1], 1
        elif norm > threshold:
            numbers[0] *= threshold / norm
            report[0] += 1

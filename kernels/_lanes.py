"""The words with which one kernel serves a processor and a card.

A kernel goes through the items of its batch and through the numbers of an item. On a processor both are plain loops. On a
card each item has a *team* of threads, and each thread, called a lane, takes some of the numbers:

    for i in items(n):                  a team takes items i, i + teams, ...
        total = number(0, T)
        for j in lanes(size):           a lane takes numbers j, j + width, ...
            total += x[j]
        total = joined(total)           over all lanes of the team; each of them gets it
        for j in lanes(size):
            y[j] = x[j] / total

Some items consist of parts that have nothing to do with each other: elements of a minibatch, columns of a matrix. A loop over
`parts` inside of one over items spreads them, too, and all rules for teams hold for those that take parts of one item.

A processor is a team of one lane: here the words mean next to nothing, and cost nothing. What they become on a card is in
`_device.py` and `_cuda.py`. The rules, which the simulator of the tests checks:

    - different teams, and different parts, write to different numbers
    - lanes of a team write to different numbers; what one of them wrote another may read after `meet()`
    - `joined`, `largest`, `smallest`, `before` and `meet` are called by all lanes of a team, or by none
    - a loop over `parts` has no other such loop inside of it, and `lanes` none of `parts`
"""

import numpy as np
from numba import types
from numba.extending import intrinsic

from autobatch.kernels._jit import inline

items = range
parts = range
lanes = range


@intrinsic
def joined(typingctx, x):
    """joined(x): the sum of the numbers of all lanes, in an order that depends on their count only."""
    return x(x), lambda context, builder, signature, args: args[0]


@intrinsic
def largest(typingctx, x):
    """largest(x): the largest number (or integer) of all lanes; NaN if one is."""
    return x(x), lambda context, builder, signature, args: args[0]


@intrinsic
def smallest(typingctx, x):
    """smallest(x): the smallest number (or integer) of all lanes; NaN if one is."""
    return x(x), lambda context, builder, signature, args: args[0]


@intrinsic
def before(typingctx, x):
    """before(x): the sum of the numbers (or integers) of all lanes that come before this one."""
    return x(x), lambda context, builder, signature, args: context.get_constant_null(signature.return_type)


@intrinsic
def meet(typingctx):
    """meet(): wait for all lanes of the team; each sees what the others wrote before."""
    return types.void(), lambda context, builder, signature, args: context.get_dummy_value()


@intrinsic
def leader(typingctx):
    """leader(): whether this is the first lane of its team: for what one of them does alone."""
    return types.boolean(), lambda context, builder, signature, args: context.get_constant(types.boolean, True)


@intrinsic
def lane(typingctx):
    """lane(): which lane of its team this is; where `lanes` does not suit."""
    return types.int64(), lambda context, builder, signature, args: context.get_constant(types.int64, 0)


@intrinsic
def width(typingctx):
    """width(): how many lanes the team has."""
    return types.int64(), lambda context, builder, signature, args: context.get_constant(types.int64, 1)


@inline
def quotient(a, b):
    """quotient(a, b): a // b for 0 <= a < 2**32 and 0 < b < 2**32, which a card does in a fraction of the time of `//`."""
    return np.int64(np.uint32(a) // np.uint32(b))

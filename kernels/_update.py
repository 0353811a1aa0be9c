"""What the update rules (`update_*.py`) share: instructions that trainers run once the gradients are there.

They are no ops: nothing here is recorded in a graph. Slots of an update rule, in this order:

    values, gradients, moments ..., numbers        numbers: the same for all parameters (rates, decays)

An instruction is about one parameter: one item, or one item a row for the touched rows of a look-up table. `sizes[0]` counts
the numbers of an item. A rule sets the gradients to 0 on its way, while they are in the cache.

The numbers are float64, and a rule turns them into its own dtype. On a card they are of that dtype already, each of them twice:

    on a processor    s | β₁ | β₂ | ...
    on a card         s | 1 - s | β₁ | 1 - β₁ | β₂ | 1 - β₂ | ...        1 - β, formed in float64, keeps its digits
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from autobatch.kernels._jit import inline, number, pointer, slot


@intrinsic
def doubles(typingctx, address):
    """doubles(address): `address` as a pointer to float64 numbers, whatever the dtype of the kernel."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.int64), codegen


@inline
def constant(ins, k, at, T):
    """Number `at` of the numbers in slot k."""
    return number(doubles(ins[slot(k)])[at], T)


@inline
def rest(ins, k, at, T):
    """1 less number `at` of the numbers in slot k."""
    return number(1 - doubles(ins[slot(k)])[at], T)


@inline
def _constant_card(ins, k, at, T):
    return pointer(ins[slot(k)], T)[2 * at]


@inline
def _rest_card(ins, k, at, T):
    return pointer(ins[slot(k)], T)[2 * at + 1]


ON_CARD = {constant: _constant_card, rest: _rest_card}


def numbers_of_card(numbers: Any, dtype: str) -> Any:
    """Return the numbers of rules as a card reads them."""
    return np.stack([numbers, 1 - np.asarray(numbers, np.float64)], axis=-1).reshape(-1).astype(dtype)

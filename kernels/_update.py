"""What the update rules (`update_*.py`) share: instructions that trainers run once the gradients are there.

They are no ops: nothing here is recorded in a graph. Slots of an update rule, in this order:

    values, gradients, moments ..., numbers        numbers: float64, the same for all parameters (rates, decays)

An instruction is about one parameter: one item, or one item a row for the touched rows of a look-up table. `sizes[0]` counts
the numbers of an item. A rule sets the gradients to 0 on its way, while they are in the cache.
"""

from numba import types
from numba.extending import intrinsic


@intrinsic
def doubles(typingctx, address):
    """doubles(address): `address` as a pointer to float64 numbers, whatever the dtype of the kernel."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float64)(types.int64), codegen

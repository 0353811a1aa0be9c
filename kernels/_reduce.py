"""What reductions share: the walk over the numbers that make up one result, larger and smaller of two, work space on the stack.

A reduction of some axes of x (its dims, then the batch) is a walk in strides. Axes of extent 1 are dropped and neighbours that
are both reduced, or both kept, are joined; what is left alternates:

    x  (2,3,4)x5, axes 1 and 2 reduced      inner 2, length 12, outer 5
    x  (2,3,4)x5, axes 0 and 3 reduced      inner 1, length 2, outer 12, pieces 5

`inner` numbers lie side by side, each of another result; `length` of them follow each other in one piece; a result has `pieces`
of these, and there are `outer` times `inner` results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from autobatch.kernels._jit import inline
from autobatch.kernels._op import Shape, wrong

INNER, LENGTH, OUTER, PIECES, KEPT, REDUCED, WALK = range(7)
BLOCK = 64  # numbers of a `block`


# Shapes ---------------------------------------------------------------------------------------------------------------


def walk(x: Shape, reduced: Sequence[bool]) -> tuple[int, ...]:
    """Return the sizes that `start_of` and `piece_of` read; `reduced` tells of each dim, and of the batch."""
    groups: list[tuple[bool, int, int]] = []
    step = 1
    for extent, gone in zip((*x.dims, x.batch), reduced, strict=True):
        if extent > 1:
            if groups and groups[-1][0] == gone:
                groups[-1] = (gone, groups[-1][1] * extent, groups[-1][2])
            else:
                groups.append((gone, extent, step))
            step *= extent
    inner = length = 1
    if groups and not groups[0][0]:
        inner = groups.pop(0)[1]
    if groups:
        length = groups.pop(0)[1]
    kept = [(e, s) for gone, e, s in groups if not gone] or [(1, 0)]
    rest = [(e, s) for gone, e, s in groups if gone] or [(1, 0)]
    outer, pieces = 1, 1
    for extent, _ in kept:
        outer *= extent
    for extent, _ in rest:
        pieces *= extent
    return (inner, length, outer, pieces, len(kept), len(rest), *(k for pair in (*kept, *rest) for k in pair))


def along(x: Shape, d: int) -> tuple[int, int, int]:
    """Return (inner, length, outer) of a walk along one dim."""
    inner = 1
    for extent in x.dims[:d]:
        inner *= extent
    return inner, x.dims[d], x.total // (inner * x.dims[d])


def dropped(dims: tuple[int, ...], gone: Sequence[int]) -> tuple[int, ...]:
    """Return dims without some of them; one single 1 if none is left."""
    return tuple(extent for k, extent in enumerate(dims) if k not in gone) or (1,)


def check_dim(name: str, x: Shape, d: int) -> None:
    """Raise if x has no dim d."""
    if not 0 <= d < len(x.dims):
        raise wrong(name, f"dim {d} does not exist", [x], f"d from 0 to {len(x.dims) - 1}")


# Inside kernels -------------------------------------------------------------------------------------------------------


@inline
def start_of(sizes, at, o):
    """Where in x the first piece of results `o * inner` and following begins; the walk stands in `sizes` from `at` on."""
    start, count = 0, sizes[at + KEPT]
    for d in range(count - 1):
        start += o % sizes[at + WALK + 2 * d] * sizes[at + WALK + 2 * d + 1]
        o //= sizes[at + WALK + 2 * d]
    return start + o * sizes[at + WALK + 2 * count - 1]


@inline
def piece_of(sizes, at, p):
    """How far from the first piece of a result piece p lies."""
    start, first, count = 0, at + WALK + 2 * sizes[at + KEPT], sizes[at + REDUCED]
    for d in range(count - 1):
        start += p % sizes[first + 2 * d] * sizes[first + 2 * d + 1]
        p //= sizes[first + 2 * d]
    return start + p * sizes[first + 2 * count - 1]


def _of_two(name: str) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        function = builder.module.declare_intrinsic(name, [kind], ir.FunctionType(kind, [kind, kind]))
        return builder.call(function, args, fastmath=("nsz",))

    return codegen


@intrinsic
def larger(typingctx, x, z):
    """larger(x, z): the larger of two numbers, NaN if one is: as `np.maximum`, and loops of it become vector code."""
    return x(x, x), _of_two("llvm.maximum")


@intrinsic
def smaller(typingctx, x, z):
    """smaller(x, z): the smaller of two numbers, NaN if one is."""
    return x(x, x), _of_two("llvm.minimum")


@intrinsic
def rank_of(typingctx, x):
    """rank_of(x): an integer that grows with x from -inf to inf: the bits of x, those of negative numbers turned around."""
    bits = ir.IntType(32 if x == types.float32 else 64)

    def codegen(context, builder, signature, args):
        value = builder.bitcast(args[0], bits)
        sign = builder.ashr(value, bits(bits.width - 1))
        rank = builder.xor(value, builder.lshr(sign, bits(1)))
        return builder.sext(rank, ir.IntType(64)) if bits.width == 32 else rank

    return types.int64(x), codegen


@intrinsic
def of_rank(typingctx, rank, like):
    """of_rank(rank, like): the number that has this rank, of the type of `like`."""
    bits = ir.IntType(32 if like == types.float32 else 64)

    def codegen(context, builder, signature, args):
        rank = builder.trunc(args[0], bits) if bits.width == 32 else args[0]
        sign = builder.ashr(rank, bits(bits.width - 1))
        return builder.bitcast(builder.xor(rank, builder.lshr(sign, bits(1))), context.get_value_type(like))

    return like(types.int64, like), codegen


@intrinsic
def block(typingctx, like):
    """block(like): pointer to BLOCK numbers of the dtype of `like`, on the stack; each mention is a block of its own."""

    def codegen(context, builder, signature, args):
        return cgutils.alloca_once(builder, context.get_data_type(like.dtype), size=ir.Constant(ir.IntType(32), BLOCK))

    return like(like), codegen

"""What reductions share: the walk over the numbers that make up one result, larger and smaller of two, work space on the stack.

A reduction of some axes of x (its dims, then the batch) is a walk in strides. Axes of extent 1 are dropped and neighbours that
are both reduced, or both kept, are joined; what is left alternates:

    x  (2,3,4)x5, axes 1 and 2 reduced      inner 2, length 12, outer 5
    x  (2,3,4)x5, axes 0 and 3 reduced      inner 1, length 2, outer 12, pieces 5

`inner` numbers lie side by side, each of another result; `length` of them follow each other in one piece; a result has `pieces`
of these, and there are `outer` times `inner` results.

On a card a result is the work of one lane, if there are many results side by side, or few numbers in each; else of a team. One
source serves both, as what a lane has to do is told by where it begins and how far it steps:

    alone = by_lane(inner, outer, count)                   count: numbers of one result
    for t in parts(turns(alone, results)):
        r = first_result(alone, t)
        while r < end_result(alone, t, results):
            k, total = first_number(alone), number(0, T)
            while k < count:
                total += ...
                k += number_step(alone)
            total = all_joined(alone, total)
            if alone or leader(): ...
            r += width()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from autobatch.kernels import _math
from autobatch.kernels._jit import as_int64, inline, number
from autobatch.kernels._lanes import joined, lane, largest, width
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


def _unsigned(name: str) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, name)(*(as_int64(context, builder, a, t) for a, t in zip(args, signature.args, strict=True)))

    return codegen


@intrinsic
def quotient(typingctx, n, d):
    """quotient(n, d): n // d of integers from 0 on, without what the sign of one would ask for."""
    return types.int64(n, d), _unsigned("udiv")


@intrinsic
def remainder(typingctx, n, d):
    """remainder(n, d): n % d of integers from 0 on."""
    return types.int64(n, d), _unsigned("urem")


@inline
def start_of(sizes, at, o):
    """Where in x the first piece of results `o * inner` and following begins; the walk stands in `sizes` from `at` on."""
    start, d, count = 0, 0, sizes[at + KEPT]
    while d < count - 1 and o > 0:
        start += remainder(o, sizes[at + WALK + 2 * d]) * sizes[at + WALK + 2 * d + 1]
        o = quotient(o, sizes[at + WALK + 2 * d])
        d += 1
    return start + o * sizes[at + WALK + 2 * count - 1]


@inline
def piece_of(sizes, at, p):
    """How far from the first piece of a result piece p lies."""
    start, d, first, count = 0, 0, at + WALK + 2 * sizes[at + KEPT], sizes[at + REDUCED]
    while d < count - 1 and p > 0:  # nothing that a card's compiler unrolls: with the divisions it took half of all registers
        start += remainder(p, sizes[first + 2 * d]) * sizes[first + 2 * d + 1]
        p = quotient(p, sizes[first + 2 * d])
        d += 1
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


# On a card ------------------------------------------------------------------------------------------------------------

_TILE = 1 << 8  # results that one team takes, if a lane takes each


def _by_lane(inner: int, outer: int, count: int) -> bool:
    """Whether each result of a reduction is the work of one lane."""
    return inner * outer >= count and (count <= 16 or inner >= 8)


def spread(inner: int, outer: int, count: int) -> tuple[int, int]:
    """Return how many lanes, and how many parts, a reduction to inner * outer results of `count` numbers keeps busy."""
    results = inner * outer
    return (min(results, _TILE), -(-results // _TILE)) if _by_lane(inner, outer, count) else (count, results)


def spread_along(sizes: Sequence[int]) -> tuple[int, int]:
    """`spread` for sizes that begin as those of `along`."""
    return spread(sizes[0], sizes[2], sizes[1])


def spread_walk(sizes: Sequence[int]) -> tuple[int, int]:
    """`spread` for sizes that are one number, then a `walk`."""
    return spread(sizes[1 + INNER], sizes[1 + OUTER], sizes[1 + LENGTH] * sizes[1 + PIECES])


def spread_batch(size: int, batch: int) -> tuple[int, int]:
    """What is enough both for `size` numbers of each element and for `size` sums over the batch."""
    sums, numbers = spread(size, 1, batch), spread(size * batch, 1, 1)
    return max(sums[0], numbers[0]), max(sums[1], numbers[1])


def as_spread(rule: Any) -> dict[str, Any]:
    """Return what `Kernel.on_card` wants to know of a kernel that is spread by a rule."""
    return {"work": lambda sizes: rule(sizes)[0], "parts": lambda sizes: rule(sizes)[1]}


by_lane = inline(_by_lane)


@inline
def turns(alone, results):
    """Parts of an item of so many results."""
    return (results + (_TILE - 1)) >> 8 if alone else results


@inline
def first_result(alone, t):
    """First result of this lane in part t; from one to the next it is `width()`."""
    return t * _TILE + lane() if alone else t


@inline
def end_result(alone, t, results):
    """End of the results in part t."""
    return min(t * _TILE + _TILE, results) if alone else t + 1


@inline
def first_number(alone):
    """First number of a result that is this lane's."""
    return 0 if alone else lane()


@inline
def number_step(alone):
    """From one number of a result to the lane's next."""
    return 1 if alone else width()


@inline
def pieces_or_numbers(alone, pieces, length):
    """First piece, step to the next, first number of a piece, step: lanes go over the longer of the two."""
    if alone:
        return 0, 1, 0, 1
    if length >= pieces:
        return 0, 1, lane(), width()
    return lane(), width(), 0, 1


@inline
def share(alone, length):
    """Begin and end of numbers for this lane that lie side by side, after those of the lanes before."""
    if alone:
        return 0, length
    each = quotient(length + width() - 1, width())
    return min(lane() * each, length), min(lane() * each + each, length)


@inline
def all_joined(alone, x):
    """The sum over all that work at a result."""
    if alone:
        return x
    return joined(x)


@inline
def with_exp(highest, total, x):
    """The largest of some numbers, Σ e^(number - largest) of them: both with one number more. Begins with -inf, 0."""
    above = x > highest or x != x
    e = _math.exp(highest - x if above else x - highest)
    if x == number(-np.inf, x):
        return highest, total
    return (x, total * e + number(1, x)) if above else (highest, total + e)


@inline
def all_exps(alone, highest, total):
    """What `with_exp` gives, over all that work at a result. If all numbers are -inf the sum is NaN."""
    if alone:
        return highest, total + (highest - highest)
    top = largest(highest)
    return top, joined(total * _math.exp(highest - top))

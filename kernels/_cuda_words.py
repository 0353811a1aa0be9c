"""The words of a kernel on a card: addresses, items and lanes, what lanes tell each other. Twins of `_jit.py` and `_lanes.py`.

    block      |  team of `width` threads  |  next team  |  ...          threadIdx.x: the lane, threadIdx.y: the team
    grid.x     teams beyond a block        grid.y     more lanes of the same teams, where lanes have nothing to tell each other
    grid.z     more teams for the same items, which take other parts of them

A team is a power of two of threads: up to a warp, which exchanges by shuffles, or a whole block, which does it through shared
memory. Sums go by halves, so they depend on the width only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from autobatch.kernels import _device, _jit, _lanes, _reduce, _tiles, _update
from autobatch.kernels._cuda import numba_cuda
from autobatch.kernels._jit import FLAGS, SLOTS

cuda = numba_cuda()

from numba.cuda import types  # noqa: E402
from numba.cuda.extending import intrinsic, overload  # noqa: E402

_INT = ir.IntType(64)
_GLOBAL = 1  # address space: tells the compiler that an address is one of the card's memory, so loads are plain ones


# Addresses ------------------------------------------------------------------------------------------------------------


def _pointer_to(context: Any, builder: Any, address: Any, kind: Any) -> Any:
    """An address as a pointer of a type."""
    element = context.get_data_type(kind.dtype)
    there = builder.inttoptr(address, ir.PointerType(element, _GLOBAL))
    return builder.addrspacecast(there, context.get_value_type(kind))


def _pointer_of(name: str, kind: Any) -> Any:
    @intrinsic
    def made(typingctx, address):
        def codegen(context, builder, signature, args):
            at = context.cast(builder, args[0], signature.args[0], types.int64)
            return _pointer_to(context, builder, at, signature.return_type)

        return types.CPointer(kind)(address), codegen

    made.__name__ = name
    return made


integers = _pointer_of("integers", types.int64)
int32s = _pointer_of("int32s", types.int32)
bytes_at = _pointer_of("bytes_at", types.uint8)
doubles = _pointer_of("doubles", types.float64)


@intrinsic
def pointer(typingctx, address, like):
    """See `_jit.pointer`."""

    def codegen(context, builder, signature, args):
        return _pointer_to(context, builder, args[0], signature.return_type)

    return like(types.int64, like), codegen


@intrinsic
def address_of(typingctx, ptr):
    """See `_jit.address_of`."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], _INT)

    return types.int64(ptr), codegen


@intrinsic
def itemsize(typingctx, ptr):
    """See `_jit.itemsize`."""
    size = np.dtype(str(ptr.dtype)).itemsize

    def codegen(context, builder, signature, args):
        return ir.Constant(_INT, size)

    return types.int64(ptr), codegen


@intrinsic
def number(typingctx, value, like):
    """See `_jit.number`."""
    kind = getattr(like, "dtype", like)

    def codegen(context, builder, signature, args):
        return context.cast(builder, args[0], signature.args[0], signature.return_type)

    return kind(value, like), codegen


# Instructions ---------------------------------------------------------------------------------------------------------


def _word(builder: Any, ins: Any, at: Any) -> Any:
    return builder.load(builder.gep(ins, [at]))


def _place(builder: Any, k: Any, more: int = 0) -> Any:
    return builder.add(builder.mul(k, ir.Constant(_INT, 2)), ir.Constant(_INT, SLOTS + more))


def _as_int64(context: Any, builder: Any, value: Any, kind: Any) -> Any:
    return context.cast(builder, value, kind, types.int64)


def _row_address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    ins = args[0]
    k, i = (_as_int64(context, builder, a, t) for a, t in zip(args[1:3], signature.args[1:3], strict=True))
    address, stride = _word(builder, ins, _place(builder, k)), _word(builder, ins, _place(builder, k, 1))
    even = builder.icmp_signed(">=", stride, ir.Constant(_INT, 0))
    with builder.if_else(even) as (then, otherwise):
        with then:
            at_distance, then_block = builder.add(address, builder.mul(i, stride)), builder.block
        with otherwise:
            lists = builder.inttoptr(address, ir.PointerType(_INT, _GLOBAL))
            listed, otherwise_block = _word(builder, lists, i), builder.block
    result = builder.phi(_INT)
    result.add_incoming(at_distance, then_block)
    result.add_incoming(listed, otherwise_block)
    return result


@intrinsic
def slot(typingctx, k):
    """See `_jit.slot`."""

    def codegen(context, builder, signature, args):
        return _place(builder, _as_int64(context, builder, args[0], signature.args[0]))

    return types.int64(k), codegen


@intrinsic
def row(typingctx, ins, k, i):
    """See `_jit.row`."""
    return types.int64(ins, k, i), _row_address


@intrinsic
def item(typingctx, ins, k, i, like):
    """See `_jit.item`."""

    def codegen(context, builder, signature, args):
        return _pointer_to(context, builder, _row_address(context, builder, signature, args), signature.return_type)

    return like(ins, k, i, like), codegen


@intrinsic
def whole(typingctx, ins, k, size, like):
    """Never: one long item would have one team, where many items have many."""

    def codegen(context, builder, signature, args):
        return context.get_constant(types.boolean, False)

    return types.boolean(ins, k, size, like), codegen


@intrinsic
def immediate(typingctx, ins, k, i):
    """See `_jit.immediate`."""

    def codegen(context, builder, signature, args):
        k, i = (_as_int64(context, builder, a, t) for a, t in zip(args[1:3], signature.args[1:3], strict=True))
        first, stride = (_word(builder, args[0], _place(builder, k, more)) for more in range(2))
        address = builder.add(first, builder.mul(i, stride))
        return builder.load(builder.inttoptr(address, ir.PointerType(_INT, _GLOBAL)))

    return types.int64(ins, k, i), codegen


@intrinsic
def argument(typingctx, ins):
    """See `_jit.argument`."""

    def codegen(context, builder, signature, args):
        return builder.ashr(_word(builder, args[0], ir.Constant(_INT, FLAGS)), ir.Constant(_INT, 8))

    return types.int64(ins), codegen


# Teams ----------------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def first_item():
    """The first item of this team."""
    return np.int64(cuda.blockIdx.x) * cuda.blockDim.y + cuda.threadIdx.y


@cuda.jit(device=True)
def item_step():
    """Teams in all."""
    return np.int64(cuda.gridDim.x) * cuda.blockDim.y


@cuda.jit(device=True)
def first_lane():
    """This lane."""
    return np.int64(cuda.blockIdx.y) * cuda.blockDim.x + cuda.threadIdx.x


@cuda.jit(device=True)
def lane_step():
    """Lanes of the team."""
    return np.int64(cuda.gridDim.y) * cuda.blockDim.x


@cuda.jit(device=True)
def first_part():
    """The first part of an item for this team."""
    return np.int64(cuda.blockIdx.z)


@cuda.jit(device=True)
def part_step():
    """Teams that take parts of one item."""
    return np.int64(cuda.gridDim.z)


@cuda.jit(device=True)
def leader():
    """See `_lanes.leader`."""
    return cuda.threadIdx.x == 0


@cuda.jit(device=True)
def _mates():
    """The mask of the lanes of a team that is no larger than a warp."""
    width = np.int32(cuda.blockDim.x)
    if width == 32:
        return np.uint32(0xFFFFFFFF)
    first = (np.int32(cuda.threadIdx.y) * width) & np.int32(31)
    return np.uint32(((np.uint32(1) << np.uint32(width)) - np.uint32(1)) << np.uint32(first))


@cuda.jit(device=True)
def meet():
    """See `_lanes.meet`."""
    if cuda.blockDim.x <= 32:
        cuda.syncwarp(_mates())
    else:
        cuda.syncthreads()


@cuda.jit(device=True)
def _sum(x, z):
    return x + z


@cuda.jit(device=True)
def _larger(x, z):
    return x if x > z or x != x else z


@cuda.jit(device=True)
def _smaller(x, z):
    return x if x < z or x != x else z


def _together(name: str, combine: Any) -> Any:
    """Return a function f(x) that combines the numbers of all lanes, two and two."""

    def stub(x):
        raise NotImplementedError  # compiled code only

    def body_for(kind: Any) -> Any:
        def body(x):
            width = np.int32(cuda.blockDim.x)
            if width <= 32:
                mates, apart = _mates(), width >> 1
                while apart > 0:
                    x = combine(x, cuda.shfl_xor_sync(mates, x, apart))
                    apart >>= 1
                return x
            parts = cuda.shared.array(32, kind)
            apart = np.int32(16)
            while apart > 0:
                x = combine(x, cuda.shfl_xor_sync(np.uint32(0xFFFFFFFF), x, apart))
                apart >>= 1
            lane = np.int32(cuda.threadIdx.x)
            if lane & 31 == 0:
                parts[lane >> 5] = x
            cuda.syncthreads()
            x = parts[0]
            w = np.int32(1)
            while w < width >> 5:
                x = combine(x, parts[w])
                w += np.int32(1)
            cuda.syncthreads()  # nobody writes the next parts before all have read these
            return x

        return body

    bodies = {kind: body_for(kind) for kind in (types.float32, types.float64, types.int64)}
    stub.__name__ = stub.__qualname__ = name
    overload(stub)(lambda x: bodies.get(x))
    return stub


joined = _together("joined", _sum)
largest = _together("largest", _larger)
smallest = _together("smallest", _smaller)


# Blocks ---------------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def thread_x():
    """See `_tiles.thread_x`, as all of these."""
    return np.int32(cuda.threadIdx.x)


@cuda.jit(device=True)
def thread_y():
    return np.int32(cuda.threadIdx.y)


@cuda.jit(device=True)
def block_x():
    return np.int32(cuda.blockIdx.x)


@cuda.jit(device=True)
def block_y():
    return np.int32(cuda.blockIdx.y)


@cuda.jit(device=True)
def block_z():
    return np.int32(cuda.blockIdx.z)


@cuda.jit(device=True)
def blocks_z():
    return np.int32(cuda.gridDim.z)


@cuda.jit(device=True)
def sync():
    cuda.syncthreads()


@intrinsic
def shared(typingctx, count, like):
    """See `_tiles.shared`."""
    if not isinstance(count, types.Literal):
        return None
    numbers = count.literal_value

    def codegen(context, builder, signature, args):
        element = context.get_data_type(signature.return_type.dtype)
        kind = ir.ArrayType(element, numbers)
        name = builder.module.get_unique_name("shared")
        memory = ir.GlobalVariable(builder.module, kind, name, addrspace=3)
        memory.linkage = "internal"
        memory.initializer = ir.Constant(kind, ir.Undefined)
        memory.align = 16
        first = builder.gep(memory, [ir.Constant(_INT, 0), ir.Constant(_INT, 0)])
        return builder.addrspacecast(first, context.get_value_type(signature.return_type))

    return like(count, like), codegen


def twins() -> dict[Any, Any]:
    """Return what takes the place of each word."""
    own = globals()
    found: dict[Any, Any] = {name: own[name] for name in _device.COUNTERS}
    for name in ("pointer", "integers", "int32s", "bytes_at", "address_of", "itemsize", "number", "slot", "row", "item"):
        found[getattr(_jit, name)] = own[name]
    for name in ("whole", "immediate", "argument"):
        found[getattr(_jit, name)] = own[name]
    for name in ("joined", "largest", "smallest", "meet", "leader"):
        found[getattr(_lanes, name)] = own[name]
    found |= {_lanes.lane: first_lane, _lanes.width: lane_step}
    for word in _tiles.WORDS:
        found[word] = own[word.__name__]
    return {**found, _update.doubles: doubles, _reduce.larger: _larger, _reduce.smaller: _smaller}

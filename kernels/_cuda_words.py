"""The words of a kernel on a card: addresses, items and lanes, what lanes tell each other. Twins of `_jit.py` and `_lanes.py`.

    block      |  team of `width` threads  |  next team  |  ...          threadIdx.x: the lane, threadIdx.y: the team
    grid.x     teams beyond a block        grid.y     more lanes of the same teams, where lanes have nothing to tell each other
    grid.z     teams for the parts of items

A team is a power of two of threads: up to a warp, which exchanges by shuffles, or a whole block, which does it through shared
memory. Sums go by halves, so they depend on the width only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from autobatch.kernels import _jit, _lanes, _reduce, _tiles, _update
from autobatch.kernels._cuda import numba_cuda
from autobatch.kernels._device import COUNTERS
from autobatch.kernels._jit import FLAGS, LENGTH, SLOTS

cuda = numba_cuda()

import numba.cuda.extending  # noqa: E402

types: Any = cuda.types  # numba-cuda's own, which type checkers do not see
intrinsic: Any = numba.cuda.extending.intrinsic
overload: Any = getattr(numba.cuda.extending, "overload")  # noqa: B009

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
def _further(typingctx, ins, count):
    """The instruction `count` behind this one; all have its length."""

    def codegen(context, builder, signature, args):
        length = builder.and_(_word(builder, args[0], ir.Constant(_INT, LENGTH)), ir.Constant(_INT, 0xFFFFFFFF))
        return builder.gep(args[0], [builder.mul(length, args[1])])

    return ins(ins, types.int64), codegen


@cuda.jit(device=True)
def further(ins, count):
    """See `_tiles.further`."""
    return _further(ins, np.int64(count))


@cuda.jit(device=True)
def summands(ins):
    """See `_tiles.summands`."""
    return np.int32(1 + (ins[LENGTH] >> 32))


@cuda.jit(device=True)
def part_step(ins):
    """Into how many parts an item falls, for a block each."""
    count = np.uint32(ins[LENGTH] >> 32)
    return np.int64(count) if count > 0 else np.int64(1)


@cuda.jit(device=True)
def first_part(ins):
    """The first part of this team: the blocks in z are for parts of one instruction, then for those of the next."""
    return np.int64(np.uint32(cuda.blockIdx.z) % np.uint32(part_step(ins)))


@cuda.jit(device=True)
def own_instruction(ins):
    """The instruction of this block, where several run together."""
    return _further(ins, np.int64(np.uint32(cuda.blockIdx.z) // np.uint32(part_step(ins))))


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


def _shared(context: Any, builder: Any, kind: Any, numbers: int) -> Any:
    """Shared memory of a block, as a pointer of a type."""
    memory_kind = ir.ArrayType(context.get_data_type(kind.dtype), numbers)
    name = builder.module.get_unique_name("shared")
    memory = ir.GlobalVariable(builder.module, memory_kind, name, addrspace=3)
    memory.linkage = "internal"
    memory.initializer = ir.Constant(memory_kind, ir.Undefined)
    memory.align = 16
    first = builder.gep(memory, [ir.Constant(_INT, 0), ir.Constant(_INT, 0)])
    return builder.addrspacecast(first, context.get_value_type(kind))


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


@intrinsic
def _room(typingctx, x):
    """Shared memory for a number of each warp of a block, of the type of x. That of `cuda.shared.array` cannot be linked where
    two helpers of a kernel contain it.
    """

    def codegen(context, builder, signature, args):
        return _shared(context, builder, signature.return_type, 32)

    return types.CPointer(x)(x), codegen


def _together(name: str, combine: Any) -> Any:
    """Return a function f(x) that combines the numbers of all lanes, two and two."""

    def stub(x):
        raise NotImplementedError  # compiled code only

    def body_for() -> Any:
        def body(x):
            width = np.int32(cuda.blockDim.x)
            if width <= 32:
                mates, apart = _mates(), width >> 1
                while apart > 0:
                    x = combine(x, cuda.shfl_xor_sync(mates, x, apart))
                    apart >>= 1
                return x
            parts = _room(x)
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

    bodies = {kind: body_for() for kind in (types.float32, types.float64, types.int64)}
    stub.__name__ = stub.__qualname__ = name
    overload(stub)(lambda x: bodies.get(x))
    return stub


def before(x):
    """See `_lanes.before`."""
    raise NotImplementedError  # compiled code only


def _before_for(kind: Any) -> Any:
    def body(x):
        width, thread = np.int32(cuda.blockDim.x), np.int32(cuda.threadIdx.x)
        mates, place = np.uint32(0xFFFFFFFF), thread & np.int32(31)
        if width <= 32:
            mates, place = _mates(), thread
        total, apart = x, np.int32(1)
        while apart < min(width, np.int32(32)):
            other = cuda.shfl_up_sync(mates, total, apart)
            if place >= apart:
                total = other + total
            apart <<= 1
        earlier = cuda.shfl_up_sync(mates, total, np.int32(1))
        if place == 0:
            earlier = kind(0)
        if width <= 32:
            return earlier
        parts = _room(x)
        if place == 31:
            parts[thread >> 5] = total
        cuda.syncthreads()
        w, base = np.int32(0), kind(0)
        while w < thread >> 5:
            base = base + parts[w]
            w += np.int32(1)
        cuda.syncthreads()  # nobody writes the next parts before all have read these
        return base + earlier

    return body


_befores = {kind: _before_for(kind) for kind in (types.float32, types.float64, types.int64)}
overload(before)(lambda x: _befores.get(x))
joined = _together("joined", _sum)
largest = _together("largest", _larger)
smallest = _together("smallest", _smaller)


# Blocks ---------------------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def thread_x():
    """See `_tiles.thread_x`."""
    return np.int32(cuda.threadIdx.x)


@cuda.jit(device=True)
def thread_y():
    """See `_tiles.thread_y`."""
    return np.int32(cuda.threadIdx.y)


@cuda.jit(device=True)
def block_x():
    """See `_tiles.block_x`."""
    return np.int32(cuda.blockIdx.x)


@cuda.jit(device=True)
def block_y():
    """See `_tiles.block_y`."""
    return np.int32(cuda.blockIdx.y)


@cuda.jit(device=True)
def block_z():
    """See `_tiles.block_z`."""
    return np.int32(cuda.blockIdx.z)


@cuda.jit(device=True)
def blocks_z():
    """See `_tiles.blocks_z`."""
    return np.int32(cuda.gridDim.z)


@cuda.jit(device=True)
def blocks_x():
    """See `_tiles.blocks_x`."""
    return np.int32(cuda.gridDim.x)


@cuda.jit(device=True)
def sync():
    """See `_tiles.sync`."""
    cuda.syncthreads()


def _unsigned(name: str) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, name)(*(_as_int64(context, builder, a, t) for a, t in zip(args, signature.args, strict=True)))

    return codegen


@intrinsic
def quotient(typingctx, n, d):
    """See `_reduce.quotient`."""
    return types.int64(n, d), _unsigned("udiv")


@intrinsic
def remainder(typingctx, n, d):
    """See `_reduce.remainder`."""
    return types.int64(n, d), _unsigned("urem")


@intrinsic
def rank_of(typingctx, x):
    """See `_reduce.rank_of`."""
    bits = ir.IntType(32 if x == types.float32 else 64)

    def codegen(context, builder, signature, args):
        value = builder.bitcast(args[0], bits)
        sign = builder.ashr(value, bits(bits.width - 1))
        rank = builder.xor(value, builder.lshr(sign, bits(1)))
        return builder.sext(rank, _INT) if bits.width == 32 else rank

    return types.int64(x), codegen


@intrinsic
def of_rank(typingctx, rank, like):
    """See `_reduce.of_rank`."""
    bits = ir.IntType(32 if like == types.float32 else 64)

    def codegen(context, builder, signature, args):
        rank = builder.trunc(args[0], bits) if bits.width == 32 else args[0]
        sign = builder.ashr(rank, bits(bits.width - 1))
        return builder.bitcast(builder.xor(rank, builder.lshr(sign, bits(1))), context.get_value_type(like))

    return like(types.int64, like), codegen


@intrinsic
def shared(typingctx, count, like):
    """See `_tiles.shared`."""
    if not isinstance(count, types.Literal):
        return None
    numbers = count.literal_value

    def codegen(context, builder, signature, args):
        return _shared(context, builder, signature.return_type, numbers)

    return like(count, like), codegen


def _four_at(context: Any, builder: Any, p: Any, j: Any, kind: Any) -> Any:
    """Pointer to four numbers from p[j] on."""
    at = builder.gep(p, [context.cast(builder, j, kind, types.int64)])
    return builder.bitcast(at, ir.PointerType(ir.VectorType(p.type.pointee, 4), p.type.addrspace))


@intrinsic
def four(typingctx, p, j):
    """See `_tiles.four`. Numbers of 8 bytes become two loads of 16."""

    def codegen(context, builder, signature, args):
        loaded = builder.load(_four_at(context, builder, *args, signature.args[1]), align=16)
        numbers = [builder.extract_element(loaded, ir.Constant(ir.IntType(32), q)) for q in range(4)]
        return context.make_tuple(builder, signature.return_type, numbers)

    return types.UniTuple(p.dtype, 4)(p, j), codegen


@intrinsic
def put_four(typingctx, p, j, a, b, c, d):
    """See `_tiles.put_four`."""
    number_kind = p.dtype

    def codegen(context, builder, signature, args):
        at = _four_at(context, builder, *args[:2], signature.args[1])
        together = ir.Constant(at.type.pointee, ir.Undefined)
        for q, value in enumerate(args[2:]):
            together = builder.insert_element(together, value, ir.Constant(ir.IntType(32), q))
        builder.store(together, at, align=16)
        return context.get_dummy_value()

    return types.void(p, j, number_kind, number_kind, number_kind, number_kind), codegen


def twins() -> dict[Any, Any]:
    """Return what takes the place of each word."""
    own = globals()
    found: dict[Any, Any] = {name: own[name] for name in COUNTERS}
    for name in ("pointer", "integers", "int32s", "bytes_at", "address_of", "itemsize", "number", "slot", "row", "item"):
        found[getattr(_jit, name)] = own[name]
    for name in ("whole", "immediate", "argument"):
        found[getattr(_jit, name)] = own[name]
    for name in ("joined", "largest", "smallest", "before", "meet", "leader"):
        found[getattr(_lanes, name)] = own[name]
    found |= {_lanes.lane: first_lane, _lanes.width: lane_step}
    for word in _tiles.WORDS:
        found[word] = own[word.__name__]
    reductions = {"larger": _larger, "smaller": _smaller, "rank_of": rank_of, "of_rank": of_rank}
    reductions |= {"quotient": quotient, "remainder": remainder}
    return {**found, _update.doubles: doubles, **{getattr(_reduce, name): word for name, word in reductions.items()}}

"""How kernels are compiled: one ABI, one set of options, one disk cache.

A *kernel* is a module-level function ``kernel(ins, scratch)`` compiled with ``@kernel`` to machine code that is
called by address, ``void (const int64 *ins, T *scratch)``:

    ins       one instruction of a table, see the layout below; every address in it is absolute
    scratch   work space of the run, of the dtype T; also what makes one source serve float32 and float64

    word        0        1         2        3         4        5   6    7   8    9  10   ...
             +--------+---------+--------+---------+--------+----------+----------+--------
             | kernel | length  | items  | sizes   | flags  | slot 0   | slot 1   | slot 2
             |address | (words) |  n     |(address)|        | address, | address, | ...
             |        |         |        |         |        |  stride  |  stride  |
             +--------+---------+--------+---------+--------+----------+----------+--------

A slot says where the n items of one operand lie. With stride >= 0, item i begins at ``address + i * stride`` bytes (0: all
items are one and the same). With stride -1, ``address`` is that of a list of n int64 addresses. ``row`` reads both.
``sizes`` points to int64 numbers that all nodes of a type share (shapes, strides); what they mean is the op's own affair.
The upper half of ``length`` says into how many pieces the items may be divided among threads (`_threads.py`); kernels never
see it.

Nothing is compiled at import: a kernel is compiled, or fetched from the disk, when its address is first asked for.

The disk cache is Numba's, with another stamp. Numba looks only at the file that holds the function, so an edit in a helper that
was inlined from another file goes unnoticed; here the stamp covers the helpers (``_*.py`` of this folder) as well.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

KERNEL, LENGTH, ITEMS, SIZES, FLAGS, SLOTS = range(6)
WORDS = (1 << 32) - 1  # the lower half of LENGTH; the upper one is the number of pieces
ACCUMULATE = 1  # flag of a backward instruction: add to what the slot holds; without it, overwrite
ALONGSIDE = 2  # flag for a card: may run at the same time as the instruction before it
ADDING = 4  # flag for a card: adds to the same place as the instruction before it, and may be summed up with it
# Of the steps of a cell (`cell.py`): what a slot is, and the mode of a step.
EMPTY, INCOMING, FIXED = range(3)
EACH, INHERIT, ALONE = 1, 2, 4

# NaN and infinities keep their meaning; sums are reordered only where a kernel asks for it (`reductions=True`).
_FASTMATH = {"contract", "nsz", "arcp"}
_OPTIONS: dict[str, Any] = {"nopython": True, "error_model": "numpy", "boundscheck": False}
# A helper is called by compiled code alone: without wrappers for others it compiles in two thirds of the time.
_HELPER: dict[str, Any] = {"error_model": "numpy", "boundscheck": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
DTYPES: dict[str, Any] = {"float32": types.float32, "float64": types.float64}

if logging.getLogger("numba").level == logging.NOTSET:  # else `basicConfig(level="DEBUG")` shows thousands of lines of bytecode
    logging.getLogger("numba").setLevel(logging.WARNING)


# Cache ----------------------------------------------------------------------------------------------------------------


@functools.cache
def _digest(path: str) -> str:
    """Hash of one source file together with every helper that a kernel may inline."""
    helpers = sorted(pathlib.Path(__file__).parent.glob("_*.py"))
    digest = hashlib.sha256()
    for file in [pathlib.Path(path), *helpers]:
        digest.update(file.read_bytes() if file.exists() else b"")
    return digest.hexdigest()


class _Cache(FunctionCache):
    """Numba's cache of one function, stamped by `_digest` and by the function's own source."""

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        stamp = _digest(inspect.getfile(py_func)), getattr(py_func, "__source__", "")
        self._cache_file._source_stamp = hashlib.sha256(repr(stamp).encode()).hexdigest()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return what is in the cache, None if nothing is; tell somebody who watches what takes so long then."""
        found = super().load_overload(sig, target_context)
        if found is None:
            _Notice.compiling()
        return found


class _Notice:
    """Said once in a process, on a terminal or in a notebook, when compiling has taken a second."""

    text = "autobatch: compiling kernels for this machine; that takes some seconds, the first time only"
    since = 0.0
    said = False

    @classmethod
    def compiling(cls) -> None:
        """Take note that something is about to be compiled."""
        now = time.monotonic()
        cls.since = cls.since or now
        if not cls.said and now - cls.since > 1:
            cls.said = True
            stream = sys.stderr
            if stream is not None and (stream.isatty() or "ipykernel" in sys.modules):
                print(cls.text, file=stream, flush=True)


class _CacheImpl(CompileResultCacheImpl):
    pass


_Cache._impl_class = _CacheImpl


def compiled(function: Callable[..., Any] | None = None, *, gil: bool = False) -> Any:
    """Compile an ordinary function over arrays (a scheduler, a planner) on first call, disk-cached.

    It runs without the GIL, but for one that calls Python's own functions (`gil`).
    """
    if function is None:
        return functools.partial(compiled, gil=gil)
    options: Any = {"nogil": not gil, "error_model": "numpy", "boundscheck": False, "no_cfunc_wrapper": True}
    dispatcher: Any = numba.njit(**options)(function)
    dispatcher._cache = _Cache(function)
    dispatcher._can_cache = True
    return dispatcher


def inline(function: Callable[..., Any] | None = None, *, reductions: bool = False, always: bool = False) -> Any:
    """Compile a small helper that kernels call; LLVM inlines it if it likes, or `always`: a loop around a call is slow.

    `reductions` as for `kernel`, of the helper's own sums.
    """
    if function is None:
        return lambda f: inline(f, reductions=reductions, always=always)
    fastmath = _FASTMATH | {"reassoc"} if reductions else _FASTMATH
    return numba.njit(**_HELPER, fastmath=fastmath, forceinline=always)(function)


# Kernels --------------------------------------------------------------------------------------------------------------


class Count(NamedTuple):
    """How many blocks n items need: plus + n * items / per, rounded up; at least 1, at most `most` (if not 0)."""

    plus: int = 1
    items: int = 0
    per: int = 1
    most: int = 0

    def of(self, n: int) -> int:
        """Return the count for n items."""
        count = max(self.plus - (-n * self.items // self.per), 1)
        return min(count, self.most) if self.most else count


class Stage(NamedTuple):
    """One launch of a kernel that exists on a card only: blocks of `threads` (x, y), and how many of them in x, y and z.

    It is left out where an instruction has less than `least` items or more than `upto`, and where the kernel is compiled for
    another dtype than `dtype` (if not ""). `scratch`: numbers of work space that the instruction needs behind the scratch
    pointer.
    """

    function: Callable[..., None]
    threads: tuple[int, int]
    x: Count
    y: Count = Count()
    z: Count = Count()
    scratch: Count = Count(0)
    least: int = 0
    upto: int = 1 << 62
    dtype: str = ""

    def runs(self, n: int, dtype: str) -> bool:
        """Return whether an instruction of n items has this launch."""
        return self.least <= n <= self.upto and self.dtype in ("", dtype)


class Matrix(NamedTuple):
    """An operand of a `Product`, column-major: from number `offset` of an item on, `rows` numbers in a column.

    `columns` of each item stand side by side, item after item. 0: one matrix, the same for all items.
    """

    slot: int
    rows: int
    columns: int = 0
    offset: int = 0


class Product(NamedTuple):
    """A stage that a library of products runs: c = or += a b, m x k times k x n. `add` None: as the instruction's flag says."""

    a: Matrix
    b: Matrix
    c: Matrix
    m: Count
    n: Count
    k: Count
    transpose_a: bool = False
    transpose_b: bool = False
    add: bool | None = None
    least: int = 0
    upto: int = 1 << 62


class Dense(NamedTuple):
    """A slot whose items a `Product` wants side by side: `size` numbers in an item, in `columns`; `written`, not read."""

    slot: int
    size: int
    columns: int = 1
    written: bool = False


class Products(NamedTuple):
    """What an instruction of `least` items or more becomes where there is a library of products.

    `stages` are launches one after the other: products, and kernels (of teams, or of blocks) before, between and after them.
    """

    least: int
    dense: tuple[Dense, ...]
    stages: tuple[Stage | Product | Kernel, ...]


class Card(NamedTuple):
    """How a kernel runs on a card.

    function    what runs there, if something else than on a processor (`_lanes.py` tells how one source serves both)
    work        from the sizes of a node type: how many lanes an item (or a part of one) keeps busy. None: its largest operand's
                numbers
    parts       from the sizes: into how many `parts` an item falls, each for a team of its own. None: one
    stages      from the sizes: the launches that an instruction becomes. None: one, of teams of lanes
    sums        whether instructions that add to one place may be one launch (`_tiles.summands`)
    products    from the sizes: what many items become where there is a library of products. None: nothing else
    """

    function: Callable[..., None] | None = None
    work: Callable[[tuple[int, ...]], int] | None = None
    stages: Callable[[tuple[int, ...]], Sequence[Stage]] | None = None
    parts: Callable[[tuple[int, ...]], int] | None = None
    products: Callable[[tuple[int, ...]], Products | None] | None = None
    sums: bool = False


class Kernel:
    """One kernel of the ABI above, compiled for a dtype when `address` first asks for it."""

    card = Card()

    def __init__(
        self, function: Callable[..., None], reductions: bool = False, before: Callable[[], None] | None = None
    ) -> None:
        self.function = function
        self._before = before
        self.name = function.__qualname__
        self._fastmath = _FASTMATH | {"reassoc"} if reductions else _FASTMATH
        self._compiled: dict[str, Any] = {}

    def on_card(
        self,
        function: Callable[..., None] | None = None,
        *,
        work: Callable[[tuple[int, ...]], int] | None = None,
        stages: Callable[[tuple[int, ...]], Sequence[Stage]] | None = None,
        parts: Callable[[tuple[int, ...]], int] | None = None,
        products: Callable[[tuple[int, ...]], Products | None] | None = None,
        sums: bool = False,
    ) -> Any:
        """Say how the kernel runs on a card, see `Card`; as a decorator, with another function than on a processor."""

        def take(own: Callable[..., None]) -> Callable[..., None]:
            self.card = Card(own, work, stages, parts, products, sums)
            return own

        if function is not None:
            return take(function)
        self.card = Card(self.card.function, work, stages, parts, products, sums)
        return take

    def inside(self, dtype: str) -> Any:
        """Return the steps that the kernel takes, if others than itself (cells), for debug mode; None: it takes none."""
        return None

    def address(self, dtype: str) -> int:
        """Return the address of the machine code for `dtype` ("float32" or "float64")."""
        entry: Any = self._compiled.get(dtype)
        if entry is None:
            if self._before is not None:
                self._before()
            signature = types.void(types.CPointer(types.int64), types.CPointer(DTYPES[dtype]))
            entry = CFunc(self.function, (signature.args, signature.return_type), {}, {**_OPTIONS, "fastmath": self._fastmath})
            entry._cache = _Cache(self.function)
            entry.compile()
            self._compiled[dtype] = entry
        return int(entry.address)

    def __repr__(self) -> str:
        return f"<kernel {self.name}>"


def kernel(
    function: Callable[..., None] | None = None, *, reductions: bool = False, before: Callable[[], None] | None = None
) -> Any:
    """Make a `Kernel` of a module-level function.

    `reductions=True` lets its sums be reordered (and so vectorised); `before` is called once before it is first compiled or
    loaded (libraries it links to).
    """
    if function is None:
        return lambda f: Kernel(f, reductions, before)
    return Kernel(function, reductions, before)


class Native:
    """A function over one pointer to int64 numbers, to be called by its address, from a thread that knows nothing of Python."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    @functools.cached_property
    def entry(self) -> Any:
        """What keeps the machine code, compiled now."""
        signature = types.void(types.CPointer(types.int64))
        entry: Any = CFunc(self.function, (signature.args, signature.return_type), {}, dict(_OPTIONS))
        entry._cache = _Cache(self.function)
        entry.compile()
        return entry

    @property
    def address(self) -> int:
        """Address of the machine code."""
        return int(self.entry.address)


_BEHIND = 1_000_000  # lines: behind the end of any file


def function_from_source(name: str, source: str, path: str, scope: dict[str, Any]) -> Any:
    """Make a function `name` from its text; `path` is the file the text belongs to (for cache and traceback)."""
    namespace = {"__name__": __name__, **scope}
    # No line of the file is a line of the text. Who looks for its source must find none: since Python 3.13 `inspect` fails
    # with an error that nobody expects where lines that it is sent to are not the beginning of a block.
    tree = ast.increment_lineno(ast.parse(source), _BEHIND)
    exec(compile(tree, path, "exec"), namespace)
    function = namespace[name]
    function.__source__ = source
    return function


def kernel_from_source(name: str, source: str, path: str, scope: dict[str, Any], reductions: bool = False) -> Kernel:
    """Make a kernel from the text of a function, see `function_from_source`."""
    return Kernel(function_from_source(name, source, path, scope), reductions)


# Pointers -------------------------------------------------------------------------------------------------------------


@intrinsic
def pointer(typingctx, address, like):
    """pointer(address, like): `address` as a pointer of the type of the pointer `like`."""
    if not isinstance(like, types.CPointer):
        return None

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return like(types.int64, like), codegen


@intrinsic
def integers(typingctx, address):
    """integers(address): `address` as a pointer to int64 numbers."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int64)(types.int64), codegen


@intrinsic
def int32s(typingctx, address):
    """int32s(address): `address` as a pointer to int32 numbers."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int32)(types.int64), codegen


@intrinsic
def bytes_at(typingctx, address):
    """bytes_at(address): `address` as a pointer to bytes."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint8)(types.int64), codegen


@intrinsic
def address_of(typingctx, ptr):
    """address_of(ptr): the int64 address a pointer holds."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(ptr), codegen


@intrinsic
def itemsize(typingctx, ptr):
    """itemsize(ptr): bytes of one number behind a pointer, a compile-time constant."""
    size = np.dtype(str(ptr.dtype)).itemsize

    def codegen(context, builder, signature, args):
        return ir.Constant(ir.IntType(64), size)

    return types.int64(ptr), codegen


@intrinsic
def number(typingctx, value, like):
    """number(value, like): `value` in the type of `like`, a number or a pointer to numbers.

    For constants in a kernel: `1 - x` with a float32 x is float64 to Numba, `number(1, x) - x` is float32.
    """
    kind = getattr(like, "dtype", like)

    def codegen(context, builder, signature, args):
        return context.cast(builder, args[0], signature.args[0], signature.return_type)

    return kind(value, like), codegen


WORK = 1 << 14  # numbers in a work space


@intrinsic
def work_space(typingctx, like):
    """work_space(like): pointer to WORK numbers of the dtype of `like`, on the stack of the kernel, not initialised."""

    def codegen(context, builder, signature, args):
        kind = context.get_value_type(signature.return_type).pointee
        return cgutils.alloca_once(builder, kind, size=ir.Constant(ir.IntType(64), WORK))

    return like(like), codegen


@intrinsic
def call(typingctx, address, ins, scratch):
    """call(address, ins, scratch): call the kernel at `address`."""

    def codegen(context, builder, signature, args):
        kinds = [context.get_value_type(t) for t in signature.args[1:]]
        kind = ir.FunctionType(ir.VoidType(), kinds)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), list(args[1:]))
        return context.get_dummy_value()

    return types.void(types.int64, ins, scratch), codegen


# The readers of an instruction are intrinsics: each use of a jitted helper with another kind of integer would be compiled anew.


def _word(builder: Any, ins: Any, at: Any) -> Any:
    return builder.load(builder.gep(ins, [at]))


def _place(builder: Any, k: Any, more: int = 0) -> Any:
    """Word of an instruction at which slot k begins, and `more`."""
    return builder.add(builder.mul(k, ir.Constant(ir.IntType(64), 2)), ir.Constant(ir.IntType(64), SLOTS + more))


def as_int64(context: Any, builder: Any, value: Any, kind: Any) -> Any:
    """An integer of any kind as int64, inside an intrinsic."""
    return context.cast(builder, value, kind, types.int64)


def _row_address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    ins = args[0]
    k, i = (as_int64(context, builder, a, t) for a, t in zip(args[1:3], signature.args[1:3], strict=True))
    address, stride = _word(builder, ins, _place(builder, k)), _word(builder, ins, _place(builder, k, 1))
    even = builder.icmp_signed(">=", stride, ir.Constant(ir.IntType(64), 0))
    with builder.if_else(even) as (then, otherwise):
        with then:
            at_distance, then_block = builder.add(address, builder.mul(i, stride)), builder.block
        with otherwise:
            listed = _word(builder, builder.inttoptr(address, ins.type), i)
            otherwise_block = builder.block
    result = builder.phi(ir.IntType(64))
    result.add_incoming(at_distance, then_block)
    result.add_incoming(listed, otherwise_block)
    return result


@intrinsic
def slot(typingctx, k):
    """slot(k): word of an instruction at which slot k begins."""

    def codegen(context, builder, signature, args):
        return _place(builder, as_int64(context, builder, args[0], signature.args[0]))

    return types.int64(k), codegen


@intrinsic
def row(typingctx, ins, k, i):
    """row(ins, k, i): address of item i of slot k."""
    return types.int64(ins, k, i), _row_address


@intrinsic
def item(typingctx, ins, k, i, like):
    """item(ins, k, i, like): item i of slot k as a pointer to numbers of the dtype of `like`."""

    def codegen(context, builder, signature, args):
        address = _row_address(context, builder, signature, args)
        return builder.inttoptr(address, context.get_value_type(signature.return_type))

    return like(ins, k, i, like), codegen


@intrinsic
def whole(typingctx, ins, k, size, like):
    """whole(ins, k, size, like): whether the items of slot k, of `size` numbers each, lie one after the other."""
    bytes_each = np.dtype(str(like.dtype)).itemsize

    def codegen(context, builder, signature, args):
        k, size = (as_int64(context, builder, a, t) for a, t in zip(args[1:3], signature.args[1:3], strict=True))
        stride = _word(builder, args[0], _place(builder, k, 1))
        return builder.icmp_signed("==", stride, builder.mul(size, ir.Constant(ir.IntType(64), bytes_each)))

    return types.boolean(ins, k, size, like), codegen


@intrinsic
def immediate(typingctx, ins, k, i):
    """immediate(ins, k, i): immediate integer of item i in slot k, whose rows are single int64 numbers at an even distance."""

    def codegen(context, builder, signature, args):
        k, i = (as_int64(context, builder, a, t) for a, t in zip(args[1:3], signature.args[1:3], strict=True))
        first, stride = (_word(builder, args[0], _place(builder, k, more)) for more in range(2))
        address = builder.add(first, builder.mul(i, stride))
        return builder.load(builder.inttoptr(address, args[0].type))

    return types.int64(ins, k, i), codegen


@intrinsic
def argument(typingctx, ins):
    """argument(ins): position of the argument whose gradient a backward instruction forms."""

    def codegen(context, builder, signature, args):
        flags = _word(builder, args[0], ir.Constant(ir.IntType(64), FLAGS))
        return builder.ashr(flags, ir.Constant(ir.IntType(64), 8))

    return types.int64(ins), codegen


@intrinsic
def write_head(typingctx, table, at, kernel, words, items, sizes, flags):
    """write_head(table, at, kernel, words, items, sizes, flags): the first five words of an instruction, from word `at` on."""

    def codegen(context, builder, signature, args):
        at = as_int64(context, builder, args[1], signature.args[1])
        for k, (value, kind) in enumerate(zip(args[2:], signature.args[2:], strict=True)):
            place = builder.gep(args[0], [builder.add(at, ir.Constant(ir.IntType(64), k))])
            builder.store(as_int64(context, builder, value, kind), place)
        return context.get_dummy_value()

    return types.void(table, at, kernel, words, items, sizes, flags), codegen


@intrinsic
def write_slot(typingctx, table, at, address, stride):
    """write_slot(table, at, address, stride): a slot of an instruction, which begins at word `at`."""

    def codegen(context, builder, signature, args):
        at = as_int64(context, builder, args[1], signature.args[1])
        for k, (value, kind) in enumerate(zip(args[2:], signature.args[2:], strict=True)):
            place = builder.gep(args[0], [builder.add(at, ir.Constant(ir.IntType(64), k))])
            builder.store(as_int64(context, builder, value, kind), place)
        return context.get_dummy_value()

    return types.void(table, at, address, stride), codegen


@intrinsic
def move_slot(typingctx, table, at, other, source, i):
    """move_slot(table, at, other, source, i): the slot at word `source` of another table, moved on by i items."""

    def codegen(context, builder, signature, args):
        at, source, i = (as_int64(context, builder, args[k], signature.args[k]) for k in (1, 3, 4))
        one, eight = ir.Constant(ir.IntType(64), 1), ir.Constant(ir.IntType(64), 8)
        address, stride = _word(builder, args[2], source), _word(builder, args[2], builder.add(source, one))
        listed = builder.icmp_signed("<", stride, ir.Constant(ir.IntType(64), 0))
        step = builder.mul(i, builder.select(listed, eight, stride))
        builder.store(builder.add(address, step), builder.gep(args[0], [at]))
        builder.store(stride, builder.gep(args[0], [builder.add(at, one)]))
        return context.get_dummy_value()

    return types.void(table, at, other, source, i), codegen

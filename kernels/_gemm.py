"""Matrix products on a card: tiles in shared memory and registers, generated for each product of an op.

    C (M,N) = start + Σ_parts A (M,K) B (K,N)        or +=

A side of a product is *vectors* of numbers that lie side by side: the columns of a parameter, or the columns of all items of a
batch, each found through `row`, so gathered operands need no copy and results go straight to where they belong. C has its
columns as vectors. A and B have either their columns or their rows: vectors along K are called deep.

                                  A                       B                     C
    Y = A X                       columns of A            columns of X: deep    columns of Y
    dX += Aᵀ dY                   columns of A: deep      columns of dY: deep   columns of dX
    dA += Σ dY Xᵀ                 columns of dY           columns of X          columns of dA

A block of threads computes BM x BN numbers of C, a thread TM x TN of them in quads of four rows and four columns:

    global  --16 bytes-->  registers  -->  shared A (BK, BM + 4), B (BK, BN + 4), twice  --16 bytes-->  registers  -->  C

While one pair of pieces is multiplied the next is on its way. 16 bytes are moved at once where the address of a vector is a
multiple of 16 and all four numbers are there, else one by one. With slices > 1 a block has that many groups of threads for
the same numbers, each with its own part of K, and adds them up in order at the end: for few columns, where blocks are few.

Machine code for sm_90, float32 (SASS; nothing of this was timed on a card yet):

    tile          a thread   registers   shared   FFMA : LDS.128 of the loop
    128x128x8     8 x 8      119 to 124  17 KB    64 : 4, and 9 others, one step of K at a time
    64x64x16      4 x 4      63 to 74    17 KB    64 : 8, four steps
    32x32x8 (4)   4 x 4      60 to 66    21 KB    128 : 16, all eight steps

Sums over all columns of a type (dA) that have few results are cut into pieces along K, one a block, whose parts stand in the
scratch; a second launch adds them in order. So nothing is added by chance: the same columns give the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from autobatch.kernels import _jit, _tiles
from autobatch.kernels._errors import InternalError
from autobatch.kernels._jit import (
    Count,
    Dense,
    Kernel,
    Matrix,
    Products,
    Stage,
    function_from_source,
    inline,
    itemsize,
    number,
    pointer,
    row,
    slot,
)
from autobatch.kernels._lanes import joined, lanes, leader, quotient

# Vectors --------------------------------------------------------------------------------------------------------------


@inline(always=True)
def spacing(ins, k, per, distance, T):
    """Bytes from one column of slot k to the next; -1: they lie at no even distance."""
    stride = ins[slot(k) + 1]
    if per == 1:
        return stride
    even = distance * itemsize(T)
    return even if stride == per * even else np.int64(-1)


@inline(always=True)
def column(ins, k, j, per, distance, at, T):
    """Address of column j of slot k: `per` columns an item, the first `at` numbers behind its begin, and so on."""
    i = quotient(j, per)
    return row(ins, k, i) + (at + (j - i * per) * distance) * itemsize(T)


class Vectors(NamedTuple):
    """Where vectors lie: expressions for the address of the first, the bytes to the next (or -1), the address of vector {j}."""

    base: str
    step: str
    far: str = ""

    def address(self, name: str, j: str) -> str:
        """Return the expression for the address of vector j, `name`_base and `name`_step being known."""
        even = f"{name}_base + {j} * {name}_step"
        return f"({even} if {name}_step >= 0 else {self.far.format(j=j)})" if self.far else even


class Windows(NamedTuple):
    """The matrix of windows of images, which stands nowhere: each number is looked for in its image, or is a zero beside it.

    `row` and `depth` are functions of an index along M, and along K, and of `sizes`: they return how far down and to the right
    it points, and the numbers of the channels before. Their sums are a place of the image of H (`height`) rows and `width`
    columns that begins at `base`.
    """

    base: str
    row: str
    depth: str
    height: str
    width: str
    step: str = "0"
    far: str = ""

    def address(self, name: str, j: str) -> str:
        """Raise: windows are no vectors; only tiles can read them."""
        raise InternalError(f"{name}: a window has no address")


def matrix(slot: str, distance: str, at: str = "0", item: str = "0") -> Vectors:
    """Return columns of a matrix at an even `distance`, from number `at` of an item on."""
    return Vectors(f"row(ins, {slot}, {item}) + ({at}) * itemsize(T)", f"({distance}) * itemsize(T)")


def columns(slot: str, per: str, distance: str, at: str = "0") -> Vectors:
    """Return the columns of all items of a slot, `per` an item, at a `distance`, from number `at` of each item on."""
    return Vectors(
        f"row(ins, {slot}, 0) + ({at}) * itemsize(T)",
        f"spacing(ins, {slot}, {per}, {distance}, T)",
        f"column(ins, {slot}, {{j}}, {per}, {distance}, {at}, T)",
    )


# Numbers --------------------------------------------------------------------------------------------------------------


@inline(always=True)
def fetch(address, at, end, T):
    """Four numbers of a vector, from number `at` on; from number `end` on it is zeros."""
    where = address + at * itemsize(T)
    p = pointer(where, T)
    if at + 4 <= end and where & 15 == 0:
        return _tiles.four(p, 0)
    x0 = x1 = x2 = x3 = number(0, T)
    if at < end:
        x0 = p[0]
    if at + 1 < end:
        x1 = p[1]
    if at + 2 < end:
        x2 = p[2]
    if at + 3 < end:
        x3 = p[3]
    return x0, x1, x2, x3


@inline(always=True)
def put(address, at, end, x0, x1, x2, x3, T):
    """Write four numbers of a vector, from number `at` on; it ends at number `end`."""
    where = address + at * itemsize(T)
    p = pointer(where, T)
    if at + 4 <= end and where & 15 == 0:
        _tiles.put_four(p, 0, x0, x1, x2, x3)
        return
    if at < end:
        p[0] = x0
    if at + 1 < end:
        p[1] = x1
    if at + 2 < end:
        p[2] = x2
    if at + 3 < end:
        p[3] = x3


@inline(always=True)
def pixel(base, h, w, channel, height, width, there, T):
    """Number (h, w) of a channel of an image; zero beside it, and if it is not `there`."""
    if there and h >= 0 and h < height and w >= 0 and w < width:
        return pointer(base + (channel + w * height + h) * itemsize(T), T)[0]
    return number(0, T)


@inline
def small_product(m, n, k, a, a_row, a_deep, b, b_column, b_deep, add, c):
    """C (m,n) = or += A (m,k) B (k,n) by one team; numbers of A lie `a_row` and `a_deep` apart, those of B likewise."""
    if m * n >= 32 or m * n >= k:
        for j in lanes(m * n):
            column = quotient(j, m)
            at_a, at_b = (j - column * m) * a_row, column * b_column
            total = number(0, c)
            for d in range(k):
                total += a[at_a + d * a_deep] * b[at_b + d * b_deep]
            c[j] = c[j] + total if add else total
    else:
        for j in range(m * n):
            column = quotient(j, m)
            at_a, at_b = (j - column * m) * a_row, column * b_column
            total = number(0, c)
            for d in lanes(k):
                total += a[at_a + d * a_deep] * b[at_b + d * b_deep]
            total = joined(total)
            if leader():
                c[j] = c[j] + total if add else total


_SCOPE: dict[str, Any] = {name: getattr(_jit, name) for name in "ITEMS SIZES FLAGS ACCUMULATE SLOTS".split()}
_SCOPE |= {name: getattr(_jit, name) for name in "integers row slot itemsize pointer number address_of argument".split()}
_SCOPE |= {word.__name__: word for word in _tiles.WORDS}
_SCOPE |= {"joined": joined, "int32": np.int32}
_SCOPE |= {f.__name__: f for f in (quotient, spacing, column, fetch, put, pixel)}


# Products -------------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """What a block computes: BM x BN numbers of C, BK of K at a time, a thread TM x TN; so many slices of K at once."""

    BM: int
    BN: int
    BK: int
    TM: int
    TN: int
    slices: int = 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.BM // self.TM * (self.BN // self.TN) * self.slices


# Of 256 threads each. BIG is for float32: 8 x 8 sums of float64 would be all the registers that a thread should have.
BIG = Tile(128, 128, 8, 8, 8)
MIDDLE = Tile(64, 64, 16, 4, 4)
SMALL = Tile(32, 32, 8, 4, 4, slices=4)
FULL = 128  # blocks that keep a card busy: an H100 has 132 multiprocessors, an A100 108
SHORTEST = 128  # columns of a piece, where a sum over columns is cut
VECTOR = 8  # slices of K, or results, of a block that multiplies a matrix with a vector


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """One product of an op, as expressions of its kernel.

    m, n, k     sizes of C and depth
    a, b, c     its sides; `a_deep`, `b_deep`: vectors along K
    head        lines at the start of the kernel; sizes: `n_items`, `sizes`
    parts       how many products are added up; `part` is the number of one, and `part_head` lines before it
    start       address of the column {j} with which the sum begins
    constant    number with which each number of column {j} begins
    add         whether to add to what C holds
    pieces      of a cut product: whether its parts, not K, are cut into pieces, which `parts` does
    each        products of an item, each with its own sides: `i` is the item, `b` the product's number in it; "": one in all
    ahead       whether the next pieces are on their way while two are multiplied: it takes registers
    scope       names that the expressions use
    """

    name: str
    m: str
    n: str
    k: str
    a: Vectors | Windows
    b: Vectors
    c: Vectors
    a_deep: bool = False
    b_deep: bool = False
    head: str = ""
    parts: str = "1"
    part_head: str = ""
    start: str = ""
    constant: str = ""
    add: str = ""
    pieces: bool = False
    each: str = ""
    ahead: bool = True
    scope: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    _made: dict[Any, Callable[..., None]] = dataclasses.field(default_factory=dict)

    def _function(self, key: Any, suffix: str, text: Callable[[str], str]) -> Callable[..., None]:
        """Return the kernel of a key, made of its text once."""
        if key not in self._made:
            name = f"{self.name}_{suffix}"
            own = {"__name__": __name__, **_SCOPE, **self.scope}
            self._made[key] = function_from_source(name, text(name), __file__, own)
        return self._made[key]

    def tile(self, tile: Tile, cut: bool = False) -> Callable[..., None]:
        """Return the kernel for a tile. `cut`: K is cut into pieces, whose parts of C go to the scratch."""
        suffix = "x".join(map(str, tile[:3])) + ("_cut" if cut else "")
        return self._function((tile, cut), suffix, lambda name: _tile_source(name, self, tile, cut))

    def vector(self) -> Callable[..., None]:
        """Return the kernel for few columns, each on its own."""
        source = _deep_vector_source if self.a_deep else _vector_source
        return self._function("vector", "vector", lambda name: source(name, self))

    def total(self, cut: bool = False) -> Callable[..., None]:
        """Return the kernel for the sum of the vectors of A: C is one column. `cut` as for `tile`."""
        return self._function(("total", cut), "total_cut" if cut else "total", lambda name: _total_source(name, self, cut))

    def added(self) -> Callable[..., None]:
        """Return the kernel that adds up what a cut product left in the scratch; columns of C lie one after the other."""
        return self._function("added", "added", lambda name: _added_source(name, self))


def _indent(text: str, by: int) -> str:
    return "\n".join(" " * by + line for line in text.strip("\n").split("\n"))


def _head(name: str, product: Product, width: int, rows: int) -> str:
    """Text of the begin of a kernel: sizes, and which columns and rows of C (and of which product) are the block's."""
    own = f"""
wide = quotient(N + {width - 1}, {width})
which = quotient(block_x(), wide)
n0 = int32((block_x() - which * wide) * {width})
each = {product.each}
if which >= n_items * each:
    return
i = quotient(which, each)
b = which - i * each
"""
    return f"""
def {name}(ins, T):
    n_items, sizes = ins[ITEMS], integers(ins[SIZES])
{_indent(product.head, 4)}
    M, N = int32({product.m}), int32({product.n})
    m0 = int32(block_y() * {rows})
{_indent(own if product.each else f"n0 = int32(block_x() * {width})", 4)}
    if m0 >= M or n0 >= N:
        return
"""


def _sides(product: Product, *names: str) -> str:
    """Text that finds out where vectors lie."""
    lines = [f"{x}_base, {x}_step = {getattr(product, x).base}, {getattr(product, x).step}" for x in names]
    return "\n".join(lines)


def _log(n: int) -> int:
    if n & (n - 1):
        raise ValueError(f"{n} is no power of two")
    return n.bit_length() - 1


class _Side:
    """Text that moves a side of a product into shared memory: a thread takes `passes` quads of it."""

    def __init__(self, x: str, vectors: Vectors | Windows, deep: bool, size: int, tile: Tile) -> None:
        self.x, self.vectors, self.deep = x, vectors, deep
        self.first, self.count = ("m0", "M") if x == "a" else ("n0", "N")
        threads = tile.threads // tile.slices
        self.quads = (tile.BK if deep else size) // 4  # of one vector
        self.rows = threads // self.quads  # vectors that all threads take at once
        self.passes = (size if deep else tile.BK) // self.rows
        self.pitch = size + 4

    def begin(self) -> str:
        """The thread's place, the same for the whole kernel."""
        x = self.x
        return f"{x}_quad, {x}_row = int32((u & {self.quads - 1}) * 4), int32(u >> {_log(self.quads)})"

    def find(self) -> str:
        """The thread's vectors, where they are the same for the whole of K."""
        x, lines = self.x, [f"{self.x}_from = int32({self.first} + {self.x}_quad)"]
        if isinstance(self.vectors, Windows):
            for q in range(4):
                found = f"{self.vectors.row}(min({x}_from + {q}, {self.count} - 1), sizes)"
                lines.append(f"{x}_h{q}, {x}_w{q}, {x}_c{q} = {found}")
        if not self.deep:
            return "\n".join(lines)
        lines = []
        for p in range(self.passes):
            lines.append(f"{x}_place = min(int32({self.first} + {x}_row + {p * self.rows}), int32({self.count} - 1))")
            lines.append(f"{x}_vector{p} = {self.vectors.address(x, f'{x}_place')}")
        return "\n".join(lines)

    def _names(self, p: int) -> str:
        return ", ".join(f"{self.x}{p}{q}" for q in "pqrs")

    def load(self) -> str:
        """From global memory into registers."""
        x, lines = self.x, []
        for p in range(self.passes):
            if self.deep:
                lines.append(f"{self._names(p)} = fetch({x}_vector{p}, int32(k0 + {x}_quad), stop, T)")
                continue
            lines.append(f"{x}_place = int32(k0 + {x}_row + {p * self.rows})")
            lines.append(f"{x}_end = {self.count} if {x}_place < stop else int32(0)")
            lines.append(f"{x}_place = min({x}_place, int32(stop - 1))")
            if isinstance(self.vectors, Windows):
                lines.append(f"{x}_h, {x}_w, {x}_c = {self.vectors.depth}({x}_place, sizes)")
                for q, name in enumerate(self._names(p).split(", ")):
                    at = ", ".join(f"{x}_{v} + {x}_{v}{q}" for v in "hwc")
                    inside = f"{self.vectors.height}, {self.vectors.width}, {x}_end > 0"
                    lines.append(f"{name} = pixel({x}_base, {at}, {inside}, T)")
                continue
            address = self.vectors.address(x, f"{x}_place")
            lines.append(f"{self._names(p)} = fetch({address}, {x}_from, {x}_end, T)")
        return "\n".join(lines)

    def store(self) -> str:
        """From registers into shared memory."""
        x, lines = self.x, []
        for p in range(self.passes):
            if self.deep:
                for q, name in enumerate(self._names(p).split(", ")):
                    place = f"{x}_at + ({x}_quad + {q}) * {self.pitch} + {x}_row + {p * self.rows}"
                    lines.append(f"s{x}[int32({place})] = {name}")
            else:
                place = f"{x}_at + ({x}_row + {p * self.rows}) * {self.pitch} + {x}_quad"
                lines.append(f"put_four(s{x}, int32({place}), {self._names(p)})")
        return "\n".join(lines)


def _tile_source(name: str, product: Product, tile: Tile, cut: bool) -> str:
    """Text of the kernel for a tile."""
    BM, BN, BK, TM, TN, slices = tile
    across, down = BM // TM, BN // TN  # threads along M and N
    threads = across * down
    wide, high = min(8, across), min(4, down)  # threads of a warp along M and N
    HM, HN = TM // 4, TN // 4
    sides = [
        _Side("a", product.a, product.a_deep, BM, tile),
        _Side("b", product.b, product.b_deep, BN, tile),
    ]
    pitch = [side.pitch for side in sides]
    numbers = [2 * BK * p * slices for p in pitch]
    numbers[0] = max(numbers[0], (slices - 1) * BM * BN)  # where slices meet
    totals = [f"t{i}_{j}" for j in range(TN) for i in range(TM)]

    def each_side(what: str, by: int) -> str:
        return _indent("\n".join(getattr(side, what)() for side in sides), by)

    reads = [f"x{4 * h}, x{4 * h + 1}, x{4 * h + 2}, x{4 * h + 3} = four(sa, a_at + step * {pitch[0]} + rm + {h * BM // HM})"
             for h in range(HM)]  # fmt: skip
    reads += [f"y{4 * h}, y{4 * h + 1}, y{4 * h + 2}, y{4 * h + 3} = four(sb, b_at + step * {pitch[1]} + rn + {h * BN // HN})"
              for h in range(HN)]  # fmt: skip
    sums = [f"t{i}_{j} += x{i} * y{j}" for j in range(TN) for i in range(TM)]
    pieces = f"""
length = quotient(K + blocks_z() - 1, blocks_z())
length = quotient(length + {BK * slices - 1}, {BK * slices}) * {BK * slices}
base = int32(block_z() * length)
stop = min(K, int32(base + length))
"""
    source = _head(name, product, BN, BM)
    source += f"""
    t = thread_x()
    u, group = int32(t & {threads - 1}), int32(t >> {_log(threads)})
    lane, warp = int32(u & {wide * high - 1}), int32(u >> {_log(wide * high)})
    rm = int32(((lane & {wide - 1}) + (warp & {across // wide - 1}) * {wide}) * 4)
    rn = int32(((lane >> {_log(wide)}) + (warp >> {_log(across // wide)}) * {high}) * 4)
    sa, sb = shared({numbers[0]}, T), shared({numbers[1]}, T)
{each_side("begin", 4)}
    {" = ".join(totals)} = number(0, T)
    buffer = int32(0)
    for part in range({product.parts}):
{_indent(product.part_head or "pass", 8)}
{_indent(_sides(product, "a", "b"), 8)}
        K = int32({product.k})
{_indent(pieces if cut and not product.pieces else "base, stop = int32(0), K", 8)}
        k0 = int32(base + group * {BK})
{each_side("find", 8)}
{each_side("load", 8) if product.ahead else ""}
        while base < stop:
{"" if product.ahead else each_side("load", 12)}
            a_at = int32((group * 2 + buffer) * {BK * pitch[0]})
            b_at = int32((group * 2 + buffer) * {BK * pitch[1]})
{each_side("store", 12)}
            sync()
            base, k0 = int32(base + {BK * slices}), int32(k0 + {BK * slices})
{_indent("if base < stop:" + chr(10) + each_side("load", 4), 12) if product.ahead else ""}
            for step in range({BK}):
{_indent(chr(10).join(reads + sums), 16)}
            buffer = int32(1 - buffer)
"""
    if slices > 1:
        gathered = "\n".join(f"sa[at + {q * threads}] = {total}" for q, total in enumerate(totals))
        added = "\n".join(f"{total} += sa[at + {q * threads}]" for q, total in enumerate(totals))
        source += f"""
    sync()
    if group > 0:
        at = int32((group - 1) * {BM * BN} + u)
{_indent(gathered, 8)}
    sync()
    if group > 0:
        return
    for other in range({slices - 1}):
        at = int32(other * {BM * BN} + u)
{_indent(added, 8)}
"""
    base, step = ("address_of(T) + block_z() * N * M * itemsize(T)", "M * itemsize(T)") if cut else product.c[:2]
    result = Vectors(base, step, "" if cut else product.c.far)
    source += f"    c_base, c_step = {result.base}, {result.step}\n"
    for j in range(TN):
        lines = [f"c_place = int32(n0 + rn + {j // 4 * (BN // HN) + j % 4})", "if c_place < N:"]
        lines.append(f"    to = {result.address('c', 'c_place')}")
        if product.start and not cut:
            lines.append(f"    begin = {product.start.format(j='c_place')}")
        if product.constant and not cut:
            lines.append(f"    constant = {product.constant.format(j='c_place')}")
        for h in range(HM):
            values = [f"t{4 * h + q}_{j}" for q in range(4)]
            named, read = ", ".join(values), "g0, g1, g2, g3"
            grown = ", ".join(f"{v} + g{q}" for q, v in enumerate(values))
            lines.append(f"    c_from = int32(m0 + rm + {h * BM // HM})")
            if product.start and not cut:
                lines += [f"    {read} = fetch(begin, c_from, M, T)", f"    {named} = {grown}"]
            if product.constant and not cut:
                lines += [f"    {v} += constant" for v in values]
            if product.add and not cut:
                lines += [f"    if {product.add}:", f"        {read} = fetch(to, c_from, M, T)", f"        {named} = {grown}"]
            lines.append(f"    put(to, c_from, M, {named}, T)")
        source += _indent("\n".join(lines), 4) + "\n"
    return source


def _last(product: Product) -> str:
    """Text that writes number r of column j of C."""
    lines = ["c_base, c_step = " + product.c.base + ", " + product.c.step, f"to = {product.c.address('c', 'j')}"]
    if product.start:
        lines.append(f"total += pointer({product.start.format(j='j')}, T)[r]")
    lines.append("y = pointer(to, T)")
    lines.append(f"y[r] = y[r] + total if {product.add} else total" if product.add else "y[r] = total")
    return "\n".join(lines)


def _vector_source(name: str, product: Product) -> str:
    """Text of the kernel for one column, A by columns: 32 rows of C a block, neighbouring rows for neighbouring threads."""
    return f"""
{_head(name, product, 1, 32)}
    j = n0
    r, k0 = int32(m0 + thread_x()), thread_y()
    total = number(0, T)
    for part in range({product.parts}):
{_indent(product.part_head or "pass", 8)}
{_indent(_sides(product, "a", "b"), 8)}
        K = int32({product.k})
        x = pointer({product.b.address("b", "j")}, T)
        if r < M:
            place = k0
            while place < K:
                total += pointer({product.a.address("a", "place")}, T)[r] * x[place]
                place = int32(place + {VECTOR})
    sums = shared({32 * VECTOR}, T)
    sums[thread_y() * 32 + thread_x()] = total
    sync()
    if k0 == 0 and r < M:
        for other in range(1, {VECTOR}):
            total += sums[other * 32 + thread_x()]
{_indent(_last(product), 8)}
"""


def _deep_vector_source(name: str, product: Product) -> str:
    """Text of the kernel for one column, A by rows: a warp for each number of C, neighbouring threads along K."""
    return f"""
{_head(name, product, 1, VECTOR)}
    j = n0
    r = int32(m0 + thread_y())
    row_of_a = min(r, int32(M - 1))
    total = number(0, T)
    for part in range({product.parts}):
{_indent(product.part_head or "pass", 8)}
{_indent(_sides(product, "a", "b"), 8)}
        K = int32({product.k})
        w = pointer({product.a.address("a", "row_of_a")}, T)
        x = pointer({product.b.address("b", "j")}, T)
        place = thread_x()
        while place < K:
            total += w[place] * x[place]
            place = int32(place + 32)
    total = joined(total)
    if thread_x() == 0 and r < M:
{_indent(_last(product), 8)}
"""


def _total_source(name: str, product: Product, cut: bool) -> str:
    """Text of the kernel for a sum of vectors: 32 numbers of it a block, every 8th vector a warp."""
    return f"""
def {name}(ins, T):
    n_items, sizes = ins[ITEMS], integers(ins[SIZES])
{_indent(product.head, 4)}
    M, K = int32({product.m}), int32({product.k})
    r = int32(block_x() * 32 + thread_x())
    length = quotient(K + blocks_z() - 1, blocks_z())
    place = int32(block_z() * length + thread_y())
    stop = min(K, int32((block_z() + 1) * length))
{_indent(_sides(product, "a"), 4)}
    total = number(0, T)
    if r < M:
        while place < stop:
            total += pointer({product.a.address("a", "place")}, T)[r]
            place = int32(place + {VECTOR})
    sums = shared({32 * VECTOR}, T)
    sums[thread_y() * 32 + thread_x()] = total
    sync()
    if thread_y() == 0 and r < M:
        for other in range(1, {VECTOR}):
            total += sums[other * 32 + thread_x()]
{_indent("T[block_z() * M + r] = total" if cut else "j = 0" + chr(10) + _last(product), 8)}
"""


def _added_source(name: str, product: Product) -> str:
    """Text of the kernel that adds up the parts in the scratch. Launched with as many blocks in z as there are parts."""
    return f"""
def {name}(ins, T):
    n_items, sizes = ins[ITEMS], integers(ins[SIZES])
{_indent(product.head, 4)}
    size = int32(({product.m}) * ({product.n}))
    c = pointer({product.c.base}, T)
    j = int32((block_x() * blocks_z() + block_z()) * 256 + thread_x())
    while j < size:
        total = {f"c[j] if {product.add} else number(0, T)" if product.add else "number(0, T)"}
        for part in range(blocks_z()):
            total += T[part * size + j]
        c[j] = total
        j = int32(j + blocks_x() * blocks_z() * 256)
"""


# Launches -------------------------------------------------------------------------------------------------------------


def _up(n: int, by: int) -> int:
    return -(-n // by)


def _tiles_of(m: int, n: int, tile: Tile) -> int:
    return _up(m, tile.BM) * _up(n, tile.BN)


_TYPES = {"float32": (SMALL, MIDDLE, BIG), "float64": (SMALL, MIDDLE)}


def growing(product: Product, m: int, each: int) -> list[Stage]:
    """Launches of a product whose columns grow with the items, `each` of them an item.

    The largest tile is taken of which there are enough to keep a card busy, if C has rows for half of it.
    """
    stages, first = [], 1
    if each == 1:
        stages.append(vectors(product, m, 1)._replace(upto=1))
        first = 2
    for dtype, tiles in _TYPES.items():
        least = first
        for t, tile in enumerate(tiles):
            larger = tiles[t + 1] if t + 1 < len(tiles) else None
            upto = 1 << 62
            if larger is not None and 2 * m > larger.BM:
                enough = _up(FULL, _up(m, larger.BM))
                upto = max((enough - 1) * larger.BN // each, least - 1)
            if upto >= least:
                x, y = Count(0, each, tile.BN), Count(_up(m, tile.BM))
                stages.append(Stage(product.tile(tile), (tile.threads, 1), x, y, least=least, upto=upto, dtype=dtype))
            least = max(least, upto + 1)
    return stages


def vectors(product: Product, m: int, each: int) -> Stage:
    """Launch of a product with few columns, `each` of them an item: a block, or several, for one of them."""
    rows = VECTOR if product.a_deep else 32
    return Stage(product.vector(), (32, VECTOR), Count(0, each), Count(_up(m, rows)))


def _tile_for(product: Product, m: int, n: int, dtype: str) -> Tile:
    """Return the tile for a C of fixed size. Windows of float64 leave registers for a small one."""
    tiles, plain = _TYPES[dtype], isinstance(product.a, Vectors)
    if len(tiles) > 2 and plain and _tiles_of(m, n, tiles[2]) >= FULL:
        return tiles[2]
    return tiles[1] if m > 32 and n > 32 and (plain or dtype == "float32") else tiles[0]


def own(product: Product, m: int, n: int, each: int) -> list[Stage]:
    """Launches of products of which each item has `each` of its own."""
    stages = []
    for dtype in _TYPES:
        tile = _tile_for(product, m, n, dtype)
        x, y = Count(0, each * _up(n, tile.BN)), Count(_up(m, tile.BM))
        stages.append(Stage(product.tile(tile), (tile.threads, 1), x, y, dtype=dtype))
    return stages


def summed(product: Product, m: int, n: int, each: int, shortest: int = 0) -> list[Stage]:
    """Launches of a product whose depth grows with the items, `each` columns (or parts) an item.

    Where C is small it is cut into pieces, of `shortest` columns at least, if not said otherwise SHORTEST.
    """
    shortest = shortest or SHORTEST
    stages = []
    for dtype in _TYPES:
        tile = _tile_for(product, m, n, dtype)
        count = _tiles_of(m, n, tile)
        x, y, pieces = Count(_up(n, tile.BN)), Count(_up(m, tile.BM)), min(_up(2 * FULL, count), 64)
        upto = shortest // each if pieces > 1 else 1 << 62
        if upto:
            stages.append(Stage(product.tile(tile), (tile.threads, 1), x, y, upto=upto, dtype=dtype))
        if pieces > 1:
            z = Count(0, each, shortest, pieces)
            scratch = Count(m * n, each * m * n, shortest, pieces * m * n)
            cut = Stage(product.tile(tile, cut=True), (tile.threads, 1), x, y, z, scratch, least=upto + 1, dtype=dtype)
            added = Stage(product.added(), (256, 1), Count(_up(m * n, 256 * pieces)), z=z, least=upto + 1, dtype=dtype)
            stages += [cut, added]
    return stages


def totals(product: Product, m: int, each: int) -> list[Stage]:
    """Launches of a sum of vectors of m numbers, `each` of them an item: cut into pieces where they are many."""
    threads, x = (32, VECTOR), Count(_up(m, 32))
    pieces = min(_up(2 * FULL, x.plus), 64)
    upto = SHORTEST // each if pieces > 1 else 1 << 62
    stages = [Stage(product.total(), threads, x, upto=upto)] if upto else []
    if pieces > 1:
        z = Count(0, each, SHORTEST, pieces)
        scratch = Count(m, each * m, SHORTEST, pieces * m)
        stages.append(Stage(product.total(cut=True), threads, x, z=z, scratch=scratch, least=upto + 1))
        stages.append(Stage(product.added(), (256, 1), Count(_up(m, 256 * pieces)), z=z, least=upto + 1))
    return stages


def of_items(product: Product, team: Callable[..., None], m: int, n: int, k: int, each: int) -> list[Stage]:
    """Launches of products of which each item has `each` of its own: small ones by a team an item, its kernel is `team`."""
    if m * n * k <= 4096 or m * n <= 8:
        return [teams(team, m * n if m * n >= min(32, k) else k)]
    return [vectors(product, m, each * n)] if n < 8 and product.b_deep else own(product, m, n, each)


def teams(function: Callable[..., None], work: int) -> Stage:
    """Launch of a kernel of teams, a team an item, which has work for so many lanes."""
    width = min(1 << (work - 1).bit_length(), 128)
    height = max(128 // width, 1) if width <= 32 else 1
    return Stage(function, (width, height), Count(0, 1, height))


def numbers(function: Callable[..., None], work: int) -> Stage:
    """Launch of a kernel of teams whose lanes have nothing to tell each other, with work for so many of them."""
    width = min(1 << (work - 1).bit_length(), 128)
    height = 128 // width
    return Stage(function, (width, height), Count(0, 1, height), Count(min(_up(work, 4 * width), 1024)))


CUBLAS = 1 << 27  # multiplications from which on cuBLAS is taken, if it is there


def prefers_cublas(m: int, n: int, k: int) -> bool:
    """Return whether a product of (m,k) and (k,n) is one for cuBLAS, gathering included, where that is installed.

    The bound is an estimate, not a measurement: below it a product should take less than 10 µs on an H100.
    """
    return m * n * k >= CUBLAS


def library(work: int, dense: tuple[Dense, ...], *stages: Stage | _jit.Product | Kernel) -> Products:
    """Return what an instruction becomes of so many items on that cuBLAS is preferred; `work`: multiplications an item."""
    return Products(_up(CUBLAS, work), dense, stages)


def library_product(m: int, k: int, each: int, a: int, x: int, y: int, add: bool | None = False) -> _jit.Product:
    """Y = A X by a library, of A (m,k) in slot `a`, the same for all, and `each` columns of an item in slots `x` and `y`."""
    sizes = Count(m), Count(0, each), Count(k)
    return _jit.Product(Matrix(a, m), Matrix(x, k, each), Matrix(y, m, each), *sizes, add=add)


def library_gradient_x(m: int, k: int, each: int, a: int) -> Products:
    """dX = or += Aᵀ dY by a library; slots of a gradient: dX, dY, and A in slot `a`."""
    sizes = Count(k), Count(0, each), Count(m)
    product = _jit.Product(Matrix(a, m), Matrix(1, m, each), Matrix(0, k, each), *sizes, transpose_a=True)
    return library(m * k * each, (Dense(0, k * each, each, True), Dense(1, m * each, each)), product)


def library_gradient_a(m: int, k: int, each: int, x: int) -> Products:
    """dA += Σ dY Xᵀ by a library; slots of a gradient: dA, dY, and X in slot `x`."""
    sizes = Count(m), Count(k), Count(0, each)
    product = _jit.Product(Matrix(1, m, each), Matrix(x, k, each), Matrix(0, m), *sizes, transpose_b=True, add=True)
    return library(m * k * each, (Dense(1, m * each, each), Dense(x, k * each, each)), product)

"""Matrix products of column-major matrices inside kernels, by the BLAS that SciPy ships.

`numba_xxgemm` is the symbol through which Numba itself runs `np.dot`; it takes alpha, beta and leading dimensions, and
a call to it can be cached on disk. Column-major is what BLAS speaks, so nothing is turned over.

*Thin products.* A product of a weight and a batch has few columns. OpenBLAS copies the weight into another order first, which
takes longer than to multiply by 8 to 64 columns; for AVX-512 it also has kernels that do not copy, but takes them only up to
10⁶ multiplications, and for Aᵀ B up to 1200 results. So a thin product goes to it in blocks of rows that are small enough: 400
rows, 26 columns, depth 100 run at 110 in place of 66 GFLOP/s, Aᵀ B of 256 rows and depth 1024 at 70 to 90 in place of 40. Where
there is no AVX-512 nothing is cut. Source: OpenBLAS, kernel/x86_64/sgemm_small_kernel_permit_skylakex.c.
"""

from __future__ import annotations

import functools

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from autobatch.kernels._jit import FLAGS, SLOTS, address_of, as_int64, call, inline, integers


@functools.cache
def ready() -> None:
    """Load SciPy's BLAS (0.2 s) once, before the first kernel that calls it is compiled or loaded."""
    from numba.np.linalg import ensure_blas

    ensure_blas()


_INT, _CHAR = ir.IntType(64), ir.IntType(8)
_CUT = all(binding.get_host_cpu_features().get(f) for f in ("avx512f", "avx512vl", "avx512bw", "avx512dq"))
SMALL, SMALL_TURNED = 1_000_000, 1_200  # multiplications, and results of Aᵀ B, up to which OpenBLAS does not copy
THIN, DEEP = 64, 32  # columns up to which a product is cut, and depth from which on
BLOCK, BLOCK_TURNED = 64, 16  # rows of the smallest block that is worth a call

# Large products are divided among threads where the scratch has the address of a board (`_threads.py`) behind the scalars.
BOARD = 16  # bytes from the beginning of the scratch
LARGE, PUT_UP, PRODUCT = 62, 63, 64  # words of the board: multiplications of a product that is worth it, the function that puts
# one up, and where it finds it
TURNED_A, TURNED_B, ADDED, SUMMED = 1, 2, 4, 8  # flags of it; SUMMED: no product, `sum_columns`
SUM = 32  # multiplications that cost what an addition of `sum_columns` does


def _true(builder, context, flag, kind):
    return builder.icmp_signed("!=", as_int64(context, builder, flag, kind), ir.Constant(_INT, 0))


def _letter(builder, true):
    """'t' or 'n' for a flag."""
    return builder.select(true, ir.Constant(_CHAR, ord("t")), ir.Constant(_CHAR, ord("n")))


def _call(builder, name, scratch, c, accumulate, arguments):
    """Call `name`; `arguments` get (pointer to 1, pointer to beta) and return all arguments after the kind."""
    kind = ir.Constant(_CHAR, ord("s" if isinstance(c.type.pointee, ir.FloatType) else "d"))
    zero = builder.gep(scratch, [ir.Constant(_INT, 1)])
    true = builder.icmp_signed("!=", accumulate, ir.Constant(_INT, 0))
    values = [kind, *arguments(scratch, builder.select(true, scratch, zero))]
    values = [builder.ptrtoint(v, _INT) if isinstance(v.type, ir.PointerType) else v for v in values]
    kind_of = ir.FunctionType(ir.IntType(32), [v.type for v in values])
    builder.call(cgutils.get_or_insert_function(builder.module, kind_of, name), values)


def _block(builder, ta, tb, m, n, k):
    """Rows of the blocks in which a product is formed: m, if not cut."""

    def constant(value):
        return ir.Constant(_INT, value)

    def least(x, y):
        return builder.select(builder.icmp_signed("<", x, y), x, y)

    def all_of(first, *more):
        return functools.reduce(builder.and_, more, first)

    work = builder.mul(n, k)
    positive = builder.select(builder.icmp_signed(">", work, constant(0)), work, constant(1))
    columns = builder.select(builder.icmp_signed(">", n, constant(0)), n, constant(1))
    small = builder.sdiv(constant(SMALL), positive)
    room = builder.select(ta, least(small, builder.sdiv(constant(SMALL_TURNED), columns)), small)
    rows = builder.and_(room, builder.select(ta, constant(-16), constant(-32)))
    worth = all_of(
        builder.not_(tb),
        builder.icmp_signed(">", m, room),
        builder.icmp_signed(">", n, constant(1)),
        builder.icmp_signed("<=", n, constant(THIN)),
        builder.icmp_signed(">=", k, constant(DEEP)),
        builder.icmp_signed(">=", rows, builder.select(ta, constant(BLOCK_TURNED), constant(BLOCK))),
    )
    return builder.select(worth, rows, m)


def _gemm(context, builder, signature, args):
    """Emit the product; the matrices begin `at_...` numbers behind the pointers."""
    names = "ta tb m n k a at_a lda b at_b ldb accumulate c at_c ldc scratch".split()
    v = dict(zip(names, args, strict=True))
    kinds = dict(zip(names, signature.args, strict=True))
    size = {x: as_int64(context, builder, v[x], kinds[x]) for x in names if x not in ("ta", "tb", "a", "b", "c", "scratch")}
    start = {x: builder.gep(v[x], [size[f"at_{x}"]]) for x in "abc"}
    turned = [_true(builder, context, v[x], kinds[x]) for x in ("ta", "tb")]
    letters = [_letter(builder, flag) for flag in turned]

    def emit(row, rows):
        step = builder.select(turned[0], size["lda"], ir.Constant(_INT, 1))
        begin = builder.mul(row, step)

        def arguments(one, beta):
            a, c = builder.gep(start["a"], [begin]), builder.gep(start["c"], [row])
            sizes = (rows, size["n"], size["k"])
            return *letters, *sizes, one, a, size["lda"], start["b"], size["ldb"], beta, c, size["ldc"]

        _call(builder, "numba_xxgemm", v["scratch"], v["c"], size["accumulate"], arguments)

    def alone():
        nothing = ir.Constant(_INT, 0)
        if not _CUT:
            emit(nothing, size["m"])
            return
        block = _block(builder, *turned, size["m"], size["n"], size["k"])
        with cgutils.for_range_slice(builder, nothing, size["m"], block, _INT) as (row, _):
            left = builder.sub(size["m"], row)
            emit(row, builder.select(builder.icmp_signed("<", left, block), left, block))

    words = builder.bitcast(v["scratch"], _INT.as_pointer())
    board = builder.load(builder.gep(words, [ir.Constant(_INT, BOARD // 8)]))
    before, there = builder.block, builder.icmp_signed("!=", board, ir.Constant(_INT, 0))
    board = builder.inttoptr(board, _INT.as_pointer())
    with builder.if_then(there, likely=False):
        work = builder.mul(builder.mul(size["m"], size["n"]), size["k"])
        large = builder.icmp_signed(">=", work, builder.load(builder.gep(board, [ir.Constant(_INT, LARGE)])))
        looked = builder.block
    shared = builder.phi(ir.IntType(1))
    shared.add_incoming(ir.Constant(ir.IntType(1), 0), before)
    shared.add_incoming(large, looked)
    with builder.if_else(shared, likely=False) as (then, otherwise):
        with then:
            flags = ir.Constant(_INT, 0)
            added = builder.icmp_signed("!=", size["accumulate"], ir.Constant(_INT, 0))
            for flag, bit in zip((*turned, added), (TURNED_A, TURNED_B, ADDED), strict=True):
                flags = builder.or_(flags, builder.select(flag, ir.Constant(_INT, bit), ir.Constant(_INT, 0)))
            numbers = [flags]
            for x in "abc":
                numbers += [builder.ptrtoint(start[x], _INT), size[f"ld{x}"]]
            for k, value in enumerate([*numbers, size["m"], size["n"], size["k"]]):
                builder.store(value, builder.gep(board, [ir.Constant(_INT, PRODUCT + FLAGS + k)]))
            function = ir.FunctionType(ir.VoidType(), [board.type, v["scratch"].type]).as_pointer()
            address = builder.load(builder.gep(board, [ir.Constant(_INT, PUT_UP)]))
            builder.call(builder.inttoptr(address, function), [board, v["scratch"]])
        with otherwise:
            alone()
    return context.get_dummy_value()


@intrinsic
def gemm_at(typingctx, ta, tb, m, n, k, a, at_a, lda, b, at_b, ldb, accumulate, c, at_c, ldc, scratch):
    """C (m,n) = op(A) (m,k) op(B) (k,n), or += with `accumulate`; column-major.

    a, b, c are pointers of one dtype, the matrices begin `at_...` numbers behind them, `ld...` are leading dimensions in
    numbers; op transposes where `ta`, `tb` say so. scratch[0] and scratch[1] hold 1 and 0, the scalars BLAS wants to read, and
    the word BOARD bytes from its beginning the address of a board, or 0.
    """
    return types.void(ta, tb, m, n, k, a, at_a, lda, b, at_b, ldb, accumulate, c, at_c, ldc, scratch), _gemm


@intrinsic
def gemm(typingctx, ta, tb, m, n, k, a, lda, b, ldb, accumulate, c, ldc, scratch):
    """`gemm_at` with matrices that begin at the pointers."""
    zero = types.int64

    def codegen(context, builder, signature, args):
        nothing, s = ir.Constant(_INT, 0), signature.args
        full = (*args[:6], nothing, *args[6:8], nothing, *args[8:11], nothing, *args[11:])
        kinds = types.void(*s[:6], zero, *s[6:8], zero, *s[8:11], zero, *s[11:])
        return _gemm(context, builder, kinds, full)

    return types.void(ta, tb, m, n, k, a, lda, b, ldb, accumulate, c, ldc, scratch), codegen


@intrinsic
def gemv(typingctx, ta, m, n, a, lda, x, accumulate, y, scratch):
    """y = op(A) x, or += with `accumulate`; A (m,n) column-major, x and y without gaps."""

    def codegen(context, builder, signature, args):
        ta, m, n, a, lda, x, accumulate, y, scratch = args
        s = signature.args
        letter = _letter(builder, _true(builder, context, ta, s[0]))
        m, n, lda, accumulate = (
            as_int64(context, builder, v, t) for v, t in ((m, s[1]), (n, s[2]), (lda, s[4]), (accumulate, s[6]))
        )
        _call(builder, "numba_xxgemv", scratch, y, accumulate, lambda one, beta: (letter, m, n, one, a, lda, x, beta, y))
        return context.get_dummy_value()

    return types.void(ta, m, n, a, lda, x, accumulate, y, scratch), codegen


@inline(always=True)
def sum_columns(c, a, lda, m, n):
    """c (m,) += the columns of A (m,n); four at a time, as c is read and written for each."""
    j = 0
    while j + 3 < n:
        first, second, third, fourth = j * lda, (j + 1) * lda, (j + 2) * lda, (j + 3) * lda
        for i in range(m):
            c[i] += (a[first + i] + a[second + i]) + (a[third + i] + a[fourth + i])
        j += 4
    while j < n:
        for i in range(m):
            c[i] += a[j * lda + i]
        j += 1


@inline
def add_columns(c, a, lda, m, n, T):
    """`sum_columns` by all threads, if there are many. T: the scratch of the kernel."""
    board = integers(integers(address_of(T))[BOARD // 8])
    if address_of(board) != 0 and m * n * SUM >= board[LARGE]:
        board[PRODUCT + FLAGS] = SUMMED
        board[PRODUCT + SLOTS], board[PRODUCT + SLOTS + 1], board[PRODUCT + SLOTS + 4] = address_of(a), lda, address_of(c)
        board[PRODUCT + SLOTS + 6], board[PRODUCT + SLOTS + 7] = m, n
        call(board[PUT_UP], board, T)
    else:
        sum_columns(c, a, lda, m, n)

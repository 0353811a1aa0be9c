"""Matrix products of column-major matrices inside kernels, by the BLAS that SciPy ships.

`numba_xxgemm` is the symbol through which Numba itself runs `np.dot`; it takes alpha, beta and leading dimensions, and
a call to it can be cached on disk. Column-major is what BLAS speaks, so nothing is turned over.
"""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from autobatch.kernels._jit import as_int64


@functools.cache
def ready() -> None:
    """Load SciPy's BLAS (0.2 s) once, before the first kernel that calls it is compiled or loaded."""
    from numba.np.linalg import ensure_blas

    ensure_blas()


_INT, _CHAR = ir.IntType(64), ir.IntType(8)


def _letter(builder, context, flag, kind):
    """'t' or 'n' for a flag."""
    true = builder.icmp_signed("!=", as_int64(context, builder, flag, kind), ir.Constant(_INT, 0))
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


def _gemm(context, builder, signature, args):
    """Emit the product; the matrices begin `at_...` numbers behind the pointers."""
    names = "ta tb m n k a at_a lda b at_b ldb accumulate c at_c ldc scratch".split()
    v = dict(zip(names, args, strict=True))
    kinds = dict(zip(names, signature.args, strict=True))
    size = {x: as_int64(context, builder, v[x], kinds[x]) for x in names if x not in ("ta", "tb", "a", "b", "c", "scratch")}
    start = {x: builder.gep(v[x], [size[f"at_{x}"]]) for x in "abc"}
    letters = [_letter(builder, context, v[x], kinds[x]) for x in ("ta", "tb")]

    def arguments(one, beta):
        sizes = (size["m"], size["n"], size["k"])
        return *letters, *sizes, one, start["a"], size["lda"], start["b"], size["ldb"], beta, start["c"], size["ldc"]

    _call(builder, "numba_xxgemm", v["scratch"], v["c"], size["accumulate"], arguments)
    return context.get_dummy_value()


@intrinsic
def gemm_at(typingctx, ta, tb, m, n, k, a, at_a, lda, b, at_b, ldb, accumulate, c, at_c, ldc, scratch):
    """C (m,n) = op(A) (m,k) op(B) (k,n), or += with `accumulate`; column-major.

    a, b, c are pointers of one dtype, the matrices begin `at_...` numbers behind them, `ld...` are leading dimensions in
    numbers; op transposes where `ta`, `tb` say so. scratch[0] and scratch[1] hold 1 and 0, the scalars BLAS wants to read.
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
        letter = _letter(builder, context, ta, s[0])
        m, n, lda, accumulate = (
            as_int64(context, builder, v, t) for v, t in ((m, s[1]), (n, s[2]), (lda, s[4]), (accumulate, s[6]))
        )
        _call(builder, "numba_xxgemv", scratch, y, accumulate, lambda one, beta: (letter, m, n, one, a, lda, x, beta, y))
        return context.get_dummy_value()

    return types.void(ta, m, n, a, lda, x, accumulate, y, scratch), codegen

"""Matrix products of column-major matrices inside kernels, by the BLAS that SciPy ships.

`numba_xxgemm` is the symbol through which Numba itself runs `np.dot`; it takes alpha, beta and leading dimensions, and
a call to it can be cached on disk. Column-major is what BLAS speaks, so nothing is turned over.
"""

from __future__ import annotations

import functools

from numba import types

from autobatch.kernels._jit import address_of, inline, itemsize, pointer

_xxgemm = types.ExternalFunction(
    "numba_xxgemm",
    types.intc(
        *(types.char, types.char, types.char, types.intp, types.intp, types.intp),
        *(types.intp, types.intp, types.intp, types.intp, types.intp, types.intp, types.intp, types.intp),
    ),
)
_xxgemv = types.ExternalFunction(
    "numba_xxgemv",
    types.intc(
        *(types.char, types.char, types.intp, types.intp),
        *(types.intp, types.intp, types.intp, types.intp, types.intp, types.intp),
    ),
)
_S, _D, _N, _T = ord("s"), ord("d"), ord("n"), ord("t")


@functools.cache
def ready() -> None:
    """Load SciPy's BLAS (0.2 s) once, before the first kernel that calls it is compiled or loaded."""
    from numba.np.linalg import ensure_blas

    ensure_blas()


@inline
def gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc, scratch):
    """C (m,n) = op(A) (m,k) op(B) (k,n), or += with `accumulate`; column-major, leading dimensions in numbers.

    a, b, c are pointers of one dtype; scratch[0] and scratch[1] hold 1 and 0, the scalars BLAS wants to read.
    """
    one = address_of(scratch)
    _xxgemm(
        types.char(_S if itemsize(c) == 4 else _D),
        types.char(_T if transpose_a else _N),
        types.char(_T if transpose_b else _N),
        m,
        n,
        k,
        one,
        address_of(a),
        lda,
        address_of(b),
        ldb,
        one if accumulate else one + itemsize(c),
        address_of(c),
        ldc,
    )


@inline
def gemm_at(transpose_a, transpose_b, m, n, k, a, at_a, lda, b, at_b, ldb, accumulate, c, at_c, ldc, scratch):
    """`gemm` on matrices that begin `at_...` numbers behind the pointers."""
    size = itemsize(c)
    a, b, c = pointer(address_of(a) + at_a * size, a), pointer(address_of(b) + at_b * size, b), pointer(address_of(c) + at_c * size, c)
    gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc, scratch)


@inline
def gemv(transpose_a, m, n, a, lda, x, accumulate, y, scratch):
    """y = op(A) x, or += with `accumulate`; A (m,n) column-major, x and y without gaps. numba_xxgemv fixes the increments at 1."""
    one = address_of(scratch)
    _xxgemv(
        types.char(_S if itemsize(y) == 4 else _D),
        types.char(_T if transpose_a else _N),
        m,
        n,
        one,
        address_of(a),
        lda,
        address_of(x),
        one if accumulate else one + itemsize(y),
        address_of(y),
    )

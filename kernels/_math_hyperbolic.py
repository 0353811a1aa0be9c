"""Hyperbolic functions and their inverses as vector code, for kernels; how such functions are written: `_math.py`.

    ns a number     sinh  cosh  asinh  acosh  atanh     one core with AVX-512, 16 384 numbers, Numba 0.68, LLVM 22
    float32         0.35  0.28  0.75   0.69   0.56
    float64         0.94  0.82  1.9    1.8    1.3

Errors are the largest on the numbers of `tests/test_math.py`, which have every exponent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from autobatch.kernels._math import (
    _OPTIONS,
    Real,
    _at_most,
    _compiled,
    _constants,
    _constants_of,
    _expm1_near_0,
    _log1p,
    _part,
    _power,
    _public,
    _square_root,
    _with_sign,
    _without_powers,
)


class _Limits(NamedTuple):
    """The numbers that differ between the types."""

    small: Any  # sinh x is x below
    highest: Any  # cosh is infinite there and above, eᵃ / 4 not yet
    large: Any  # above, x² is so large that √(x² ± 1) = x, and not yet infinite
    log2: Any


_LIMITS = {
    kind: _Limits(*map(np.dtype(str(kind)).type, numbers))
    for kind, numbers in {
        types.float32: (2.0**-12, 89.5, 2.0**60, 0.6931471805599453),
        types.float64: (2.0**-27, 710.5, 2.0**500, 0.6931471805599453),
    }.items()
}
_limits = _constants_of(_LIMITS)
_log1p_of: Any = numba.njit(**_OPTIONS)(_log1p)


@_part
def _quarter_expm1(a: Real) -> Real:
    """(s, (eᵃ - 1) / 4) with s = 2**(k-2), which is no infinity where eᵃ is one but sinh a is not, for a >= 0."""
    c = _constants(a)
    k, r = _without_powers(_at_most(a, _limits(a).highest))
    s = _power(k - c.two)
    return s * _expm1_near_0(r) + (s - c.half * c.half)


@_public
def sinh(x: Real) -> Real:
    """Return the hyperbolic sine of x.

    Notes
    -----
    u (1 + 1 / (2u + 1)) with u = (e**|x| - 1) / 2, which keeps the digits of small x, and x itself where u might be denormal.
    Error at most 2.5 ulp.
    """
    return np.sinh(x)


@_compiled(sinh)
def _sinh(x: Real) -> Real:
    c = _constants(x)
    a = abs(x)
    u = c.two * _quarter_expm1(a)
    return x if a < _limits(x).small else _with_sign(u * (c.one + c.one / (u + u + c.one)), x)


@_public
def cosh(x: Real) -> Real:
    """Return the hyperbolic cosine of x.

    Notes
    -----
    h + 1 / 4h with h = e**|x| / 2. Error at most 1.5 ulp.
    """
    return np.cosh(x)


@_compiled(cosh)
def _cosh(x: Real) -> Real:
    c = _constants(x)
    h = c.two * _quarter_expm1(abs(x)) + c.half
    return h + c.half * c.half / h


@_public
def asinh(x: Real) -> Real:
    """Return the number whose hyperbolic sine is x.

    Notes
    -----
    log(1 + a + a² / (1 + √(1 + a²))) with a = |x|, and log 2 + log a where a² would be infinite. Error at most 1.7 ulp.

    Source
    ------
    fdlibm, s_asinh.c, for the sum that keeps the digits of small x.
    """
    return np.arcsinh(x)


@_compiled(asinh)
def _asinh(x: Real) -> Real:
    c, d = _constants(x), _limits(x)
    a = abs(x)
    large = a > d.large
    q = a * a
    w = a if large else a + q / (c.one + _square_root(c.one + q))
    return _with_sign(_log1p_of(w) + (d.log2 if large else c.zero), x)


@_public
def acosh(x: Real) -> Real:
    """Return the number >= 0 whose hyperbolic cosine is x; NaN below 1.

    Notes
    -----
    log(1 + t + √(t (t + 2))) with t = x - 1, and log 2 + log x where t² would be infinite. Error at most 2.4 ulp.
    """
    return np.arccosh(x)


@_compiled(acosh)
def _acosh(x: Real) -> Real:
    c, d = _constants(x), _limits(x)
    large = x > d.large
    t = x - c.one
    w = x if large else t + _square_root(t * (t + c.two))
    y = _log1p_of(w) + (d.log2 if large else c.zero)
    return c.nan if x < c.one else y


@_public
def atanh(x: Real) -> Real:
    """Return the number whose hyperbolic tangent is x; infinite at -1 and 1, NaN outside.

    Notes
    -----
    log(1 + 2a / (1 - a)) / 2 with a = |x|, and the sign of x. Error at most 2.1 ulp.
    """
    return np.arctanh(x)


@_compiled(atanh)
def _atanh(x: Real) -> Real:
    c = _constants(x)
    a = abs(x)
    return _with_sign(c.half * _log1p_of((a + a) / (c.one - a)), x)

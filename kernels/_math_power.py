"""The power xʸ as vector code, for kernels; how such functions are written: `_math.py`.

    ns a number     power     one core with AVX-512, 16 384 numbers, y the same for all, Numba 0.68, LLVM 22
    float32         1.7
    float64         3.5

xʸ = exp(y log x), and an error of log x comes out y log x times as large: up to 745 times in float64. So there log x is a sum
of two numbers, and y times it too. For float32, float64 is enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from autobatch.kernels import _jit
from autobatch.kernels._math import (
    _OPTIONS,
    Real,
    _at_least,
    _at_most,
    _constants,
    _expm1_near_0,
    _nearest,
    _part,
    _polynomial,
    _power,
    _rounded,
    _split,
    _with_sign,
    _without_powers,
    intrinsic,
)

number: Any = _jit.number  # to mypy an intrinsic would lack the typing context


@intrinsic
def _high(typingctx, x):
    """_high(x): the float64 x without its last 27 bits, so that the product of two such numbers is exact."""

    def codegen(context, builder, signature, args):
        integer = ir.IntType(64)
        bits = builder.and_(builder.bitcast(args[0], integer), integer(-(1 << 27)))
        return builder.bitcast(bits, ir.DoubleType())

    return types.float64(types.float64), codegen


@_part
def _lost(x: Real, z: Real, product: Real) -> Real:
    """x z - product, where `product` is x z rounded."""
    xh, zh = _high(x), _high(z)
    xl, zl = x - xh, z - zh
    return ((xh * zh - product) + xh * zl + xl * zh) + xl * zl


@_part
def _log_in_two(x: Real) -> Real:
    """log x as the sum of a number and a small one, for normal x > 0; right to 2**-58.

    As `_log_of_parts`, and with what the quotient s = f / (2 + f) lost.
    """
    c = _constants(x)
    small = x < c.normal
    k, m = _split(x * c.lift if small else x)
    k = k - c.lift_by if small else k
    f = m - 1.0
    d = 2.0 + f
    s = f / d
    product = s * d
    lost = ((f - product) - _lost(s, d, product) - s * (f - (d - 2.0))) / d
    z = s * s
    first, second = k * c.ln2_high, s + s
    high = first + second
    low = ((first - high) + second) + (lost + lost + s * z * _polynomial(z, c.log) + k * c.ln2_low)
    total = high + low
    return total, (high - total) + low


@_part
def _power64(a: Real, y: Real) -> Real:
    """aʸ in float64 for finite a > 0; any number for others."""
    c = _constants(a)
    y = _at_most(_at_least(y, -1e20), 1e20)  # beyond, aʸ is 0, 1 or infinite just the same
    high, low = _log_in_two(a)
    product = y * high
    lost = _lost(y, high, product) + y * low
    p = _at_most(_at_least(product, c.exp_lowest), c.exp_highest)
    k, r = _without_powers(p)
    r = r + (lost if p == product else 0.0)
    h = _rounded(k * 0.5)
    return (_expm1_near_0(r) + 1.0) * _power(h) * _power(k - h)


# For float32: polynomials of fewer terms in float64, as in `_math.py`; relative errors of log x and of e**r 2**-35 and 2**-26.
_LOG = (0.6666666655449709, 0.40000121839806124, 0.28550820815960665, 0.23330467216303835)
_EXPM1 = (0.5, 0.1666657702559799, 0.041666554662050534, 0.008363173074513711, 0.001392617611993558)
_LN_2 = 0.6931471805599453


@_part
def _power32(a: Real, y: Real) -> Real:
    """aʸ in float32 for finite a > 0; any number for others. There is no lack of exponents in float64."""
    k, m = _split(np.float64(a))
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    log = k * _LN_2 + (s + s + s * (z * _polynomial(z, _LOG)))
    p = _at_most(_at_least(_at_most(_at_least(np.float64(y), -1e20), 1e20) * log, -150.0), 100.0)
    k = _rounded(p * 1.4426950408889634)
    r = p - k * _LN_2
    return number((r * r * _polynomial(r, _EXPM1) + r + 1.0) * _power(k), a)


def power(x: Real, y: Real) -> Real:
    """Return xʸ, in all cases as `numpy.power` of floating-point numbers.

    Notes
    -----
    x², x and 1/x are computed as such. Error at most 0.62 ulp in float32; relative error at most 1e-14 in float64.

    Source
    ------
    ISO C, F.10.4.4, for the cases of 0, infinities, NaN and negative x.
    """
    with np.errstate(all="ignore"):
        return np.power(x, y)


@overload(power, jit_options=_OPTIONS)
def _choose(x: Real, y: Real) -> Any:
    if x not in (types.float32, types.float64) or y != x:
        return None
    positive = _power32 if x == types.float32 else _power64

    def power(x: Real, y: Real) -> Real:
        c = _constants(x)
        a = abs(x)
        result = positive(a, y)
        at_0 = c.zero if y > c.zero else c.infinity
        result = at_0 if a == c.zero else result
        result = (c.zero if y < c.zero else c.infinity) if a == c.infinity else result
        whole = _nearest(y) == y
        odd = whole & (_nearest(y * c.half) != y * c.half)
        result = c.nan if (x < c.zero) & (a < c.infinity) & (not whole) else result
        result = _with_sign(result, x) if odd else result
        result = x * x if y == c.two else result
        result = x if y == c.one else result
        result = c.one / x if y == -c.one else result
        result = c.nan if (x != x) | (y != y) else result
        return c.one if (y == c.zero) | (x == c.one) else result

    return power

"""Trigonometric functions and their inverses as vector code, for kernels; how such functions are written: `_math.py`.

    ns a number     sin   cos   tan   asin  acos  atan     one core with AVX-512, 16 384 numbers, Numba 0.68, LLVM 22
    float32         0.63  0.68  0.62  0.23  0.34  0.29
    float64         1.0   1.1   1.1   0.74  0.99  0.87

An angle is brought into [-π/4, π/4] by taking off a multiple of π/2, in three parts (Cody and Waite): right for |x| up to
`FAR`, which is 2**20. Beyond, where the multiple has too many digits, only a loop over one number after the other would do
(Payne and Hanek); so a kernel asks `is_far` first, and if any number of a node is, it calls `sin_anywhere` and its like, which
go to the C library (10 to 20 ns a number).

Errors are the largest on the numbers of `tests/test_math.py`, which have every exponent.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from autobatch.kernels import _jit
from autobatch.kernels._math import (
    _OPTIONS,
    Real,
    _compiled,
    _constants,
    _constants_of,
    _part,
    _polynomial,
    _public,
    _rounded,
    _square_root,
    _with_sign,
    intrinsic,
)

number: Any = _jit.number  # to mypy an intrinsic would lack the typing context

FAR = 2.0**20


class _Angles(NamedTuple):
    """The numbers that differ between the types."""

    half_pi: tuple[Any, ...]  # float64: parts of π/2; the first ones have 33 bits, so that 2**20 times them is exact
    half_pi_high: Any  # π/2 = high + low
    half_pi_low: Any
    quarter_pi_high: Any
    quarter_pi_low: Any
    tan_one: Any  # tan π/8
    tan_three: Any  # tan 3π/8
    sin: tuple[Any, ...]  # (sin r - r) / r³             in powers of r²,  |r| <= π/4
    cos: tuple[Any, ...]  # (cos r - 1 + r²/2) / r⁴      in powers of r²
    asin: tuple[Any, ...]  # (asin s - s) / s³           in powers of s²,  |s| <= 1/2
    atan: tuple[Any, ...]  # (atan t - t) / t³           in powers of t²,  |t| <= tan π/8


def _make(kind: type, half_pi: tuple[float, ...], **fits: tuple[float, ...]) -> _Angles:
    high = kind(math.pi / 2)
    low = kind(6.123233995736766e-17) if kind is np.float64 else kind(math.pi / 2 - float(high))
    numbers = high, low, high / kind(2), low / kind(2), kind(math.sqrt(2) - 1), kind(math.sqrt(2) + 1)
    return _Angles(half_pi, *numbers, **{name: tuple(map(kind, fit)) for name, fit in fits.items()})


# The polynomials are fits at the nodes of Chebyshev in 45 digits; their error relative to the function is at most 2**-25 in
# float32 and 2**-53 in float64.
_ANGLES = {
    types.float32: _make(
        np.float32,
        (1.5707963267341256, 6.077100506506192e-11),
        sin=(-0.1666666716337204, 0.008333331905305386, -0.00019840036111418158, 2.724340902204858e-06),
        cos=(0.0416666641831398, -0.0013888278044760227, 2.4542563551221974e-05),
        asin=(0.16666673123836517, 0.07498855143785477, 0.045001380145549774, 0.026554541662335396, 0.03808502480387688),
        atan=(-0.3333333134651184, 0.19999539852142334, -0.14263945817947388, 0.10743631422519684, -0.06451597064733505),
    ),
    types.float64: _make(
        np.float64,
        (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21),
        sin=(
            *(-0.16666666666666666, 0.008333333333333331, -0.00019841269841264534, 2.7557319218930736e-06),
            *(-2.5052106092079693e-08, 1.6058509605642e-10, -7.585413158756367e-13),
        ),
        cos=(
            *(0.041666666666666664, -0.001388888888888723, 2.480158729851767e-05, -2.755731714444461e-07),
            *(2.0876120020701785e-09, -1.1380761312687717e-11),
        ),
        asin=(
            *(0.1666666666666665, 0.07500000000020764, 0.044642857103423646, 0.03038194736709848, 0.02237204763174451),
            *(0.017355259955786323, 0.013929652902326633, 0.011875494382636922, 0.0078029494773533175),
            *(0.01603551434914882, -0.010749050339697808, 0.028169218060881414),
        ),
        atan=(
            *(-0.3333333333333325, 0.19999999999898274, -0.14285714266073962, 0.11111109635062964, -0.09090852509603123),
            *(0.07691054298962265, -0.06649604617089785, 0.05736276504305233, -0.04483151242111318, 0.022748017702417335),
        ),
    ),
}
_angles = _constants_of(_ANGLES)


# Parts ----------------------------------------------------------------------------------------------------------------


@intrinsic
def _less(typingctx, x, k, parts):
    """_less(x, k, (p0, p1, ...)): ((x - k p0) - k p1) - ..., written out."""

    def codegen(context, builder, signature, args):
        value = args[0]
        for i in range(parts.count):
            value = builder.fsub(value, builder.fmul(args[1], builder.extract_value(args[2], i)))
        return value

    return x(x, k, parts), codegen


@_part
def _quadrant(x: Real) -> Real:
    """(m, r) with x = (4 n + m) π/2 + r, m = 0, 1, 2, 3 and |r| <= π/4, for |x| <= FAR; computed in float64."""
    w = np.float64(x)
    k = _rounded(w * 0.6366197723675814)
    r = _less(w, k, _angles(x).half_pi)
    m = k - 4.0 * _rounded(k * 0.25 - 0.375)  # n + (-3, -1, 1 or 3) / 8 is rounded to n
    return number(m, x), number(r, x)


@_part
def _sin_near_0(r: Real, z: Real) -> Real:
    return r + r * (z * _polynomial(z, _angles(r).sin))


@_part
def _cos_near_0(r: Real, z: Real) -> Real:
    c = _constants(r)
    return c.one - (c.half * z - z * z * _polynomial(z, _angles(r).cos))


@_part
def _sine_of_quadrant(m: Real, r: Real) -> Real:
    """sin(m π/2 + r) for m = 0, 1, 2, 3, 4."""
    c = _constants(r)
    z = r * r
    odd = (m == c.one) | (m == c.one + c.two)
    y = _cos_near_0(r, z) if odd else _sin_near_0(r, z)
    return -y if (m == c.two) | (m == c.one + c.two) else y


@_part
def _asin_up_to_half(s: Real, z: Real) -> Real:
    """asin s for 0 <= s <= 1/2 and z = s²."""
    return s + s * (z * _polynomial(z, _angles(s).asin))


@_part
def _asin_parts(a: Real) -> Real:
    """(small, t) for a >= 0: t = asin a if it is small, else asin of √((1 - a) / 2), of which twice is missing to π/2."""
    c = _constants(a)
    small = a <= c.half
    z = a * a if small else (c.one - a) * c.half
    return small, _asin_up_to_half(a if small else _square_root(z), z)


# Functions ------------------------------------------------------------------------------------------------------------


@_public
def is_far(x: Real) -> Any:
    """Return whether `sin_anywhere`, not `sin`, is right for x; and so for `cos`, `tan`."""
    return abs(x) > FAR


@_compiled(is_far)
def _is_far(x: Real) -> Any:
    return abs(x) > number(FAR, x)


@_public
def sin(x: Real) -> Real:
    """Return sin x for |x| <= FAR; NaN for infinities.

    Error at most 1.4 ulp in float32, 1.9 in float64.
    """
    return np.sin(x)


@_compiled(sin)
def _sin(x: Real) -> Real:
    m, r = _quadrant(x)
    return _sine_of_quadrant(m, r)


@_public
def cos(x: Real) -> Real:
    """Return cos x for |x| <= FAR; NaN for infinities. Error as of `sin`."""
    return np.cos(x)


@_compiled(cos)
def _cos(x: Real) -> Real:
    c = _constants(x)
    m, r = _quadrant(x)
    z = r * r
    odd = (m == c.one) | (m == c.one + c.two)
    y = _sin_near_0(r, z) if odd else _cos_near_0(r, z)
    return -y if (m == c.one) | (m == c.two) else y


@_public
def tan(x: Real) -> Real:
    """Return tan x for |x| <= FAR; NaN for infinities.

    Notes
    -----
    sin r / cos r, or -cos r / sin r in odd quadrants. Error at most 2.7 ulp in float32, 3.0 in float64.
    """
    return np.tan(x)


@_compiled(tan)
def _tan(x: Real) -> Real:
    c = _constants(x)
    m, r = _quadrant(x)
    z = r * r
    odd = (m == c.one) | (m == c.one + c.two)
    s, q = _sin_near_0(r, z), _cos_near_0(r, z)
    return (-q if odd else s) / (s if odd else q)


@_public
def sin_anywhere(x: Real) -> Real:
    """Return sin x for any x: as `sin`, or from the C library where `is_far`. No vector code."""
    return np.sin(x)


@_compiled(sin_anywhere)
def _sin_anywhere(x: Real) -> Real:
    if _is_far_number(x):
        return number(math.sin(np.float64(x)), x)
    return _sin_number(x)


@_public
def cos_anywhere(x: Real) -> Real:
    """Return cos x for any x, see `sin_anywhere`."""
    return np.cos(x)


@_compiled(cos_anywhere)
def _cos_anywhere(x: Real) -> Real:
    if _is_far_number(x):
        return number(math.cos(np.float64(x)), x)
    return _cos_number(x)


@_public
def tan_anywhere(x: Real) -> Real:
    """Return tan x for any x, see `sin_anywhere`."""
    return np.tan(x)


@_compiled(tan_anywhere)
def _tan_anywhere(x: Real) -> Real:
    if _is_far_number(x):
        return number(math.tan(np.float64(x)), x)
    return _tan_number(x)


_is_far_number, _sin_number, _cos_number, _tan_number = (numba.njit(**_OPTIONS)(f) for f in (_is_far, _sin, _cos, _tan))


@_public
def asin(x: Real) -> Real:
    """Return the angle in [-π/2, π/2] whose sine is x; NaN outside of [-1, 1].

    Notes
    -----
    Up to 1/2 a polynomial; above, π/2 - 2 asin √((1 - x) / 2). Error at most 2.5 ulp.

    Source
    ------
    fdlibm, e_asin.c, for the two cases; the coefficients are our own.
    """
    return np.arcsin(x)


@_compiled(asin)
def _asin(x: Real) -> Real:
    d = _angles(x)
    small, t = _asin_parts(abs(x))
    return _with_sign(t if small else d.half_pi_high - (t + t - d.half_pi_low), x)


@_public
def acos(x: Real) -> Real:
    """Return the angle in [0, π] whose cosine is x; NaN outside of [-1, 1]. Error at most 1.5 ulp."""
    return np.arccos(x)


@_compiled(acos)
def _acos(x: Real) -> Real:
    d, c = _angles(x), _constants(x)
    small, t = _asin_parts(abs(x))
    large = t + t if x > c.zero else c.two * (d.half_pi_high - (t - d.half_pi_low))
    return d.half_pi_high - (_with_sign(t, x) - d.half_pi_low) if small else large


@_public
def atan(x: Real) -> Real:
    """Return the angle in [-π/2, π/2] whose tangent is x.

    Notes
    -----
    With a = |x|: atan a up to tan π/8, π/4 + atan((a - 1) / (a + 1)) up to tan 3π/8, then π/2 + atan(-1 / a). Error at most
    1.8 ulp in float32, 2.5 in float64.

    Source
    ------
    S. L. Moshier, Cephes, atan.c, for the three cases; the coefficients are our own.
    """
    return np.arctan(x)


@_compiled(atan)
def _atan(x: Real) -> Real:
    d, c = _angles(x), _constants(x)
    a = abs(x)
    above, large = a > d.tan_one, a > d.tan_three
    top = -c.one if large else (a - c.one if above else a)
    bottom = a if large else (a + c.one if above else c.one)
    high = d.half_pi_high if large else (d.quarter_pi_high if above else c.zero)
    low = d.half_pi_low if large else (d.quarter_pi_low if above else c.zero)
    t = top / bottom
    z = t * t
    return _with_sign(high + (t + (t * (z * _polynomial(z, d.atan)) + low)), x)

"""The error function, log Γ and its derivative as vector code, for kernels; how such functions are written: `_math.py`.

    ns a number     erf   lgamma  digamma     one core with AVX-512, 16 384 numbers, Numba 0.68, LLVM 22
    float32         0.61  4.1     3.1
    float64         2.4   4.1     3.0

log Γ and digamma are computed in float64 for both types: log Γ is 0 at 1 and 2, and the sum it is made of is not, so it
loses digits there that float32 has no need of.
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
    _at_most,
    _compiled,
    _constants,
    _constants_of,
    _exp_minus_abs,
    _log,
    _nearest,
    _part,
    _polynomial,
    _public,
    _with_sign,
)

number: Any = _jit.number  # to mypy an intrinsic would lack the typing context

# erf ------------------------------------------------------------------------------------------------------------------


class _Error(NamedTuple):
    """The numbers that differ between the types."""

    highest: Any  # erf is 1 above
    middle: Any  # u = (a - middle) / (a + shift) is small for 1 <= a <= highest
    shift: Any
    near: tuple[Any, ...]  # erf x / x - 1        in powers of x², |x| <= 1
    tail: tuple[Any, ...]  # e**a² (1 - erf a)    in powers of u, 1 <= a <= highest


# The polynomials are fits at the nodes of Chebyshev in 45 digits, with errors of 2**-29 and 2**-32, then 2**-56.
_ERRORS: dict[Any, Any] = {
    types.float32: (
        np.float32,
        (4, 2, 2),
        (
            *(0.12837916612625122, -0.3761262595653534, 0.11283594369888306, -0.02685421146452427),
            *(0.005189087241888046, -0.000801686430349946, 7.875874871388078e-05),
        ),
        (
            *(0.25539568066596985, -0.4271858334541321, 0.24165821075439453, -0.0789785236120224),
            *(0.003732141340151429, 0.006994855590164661, -0.0008365899557247758, -0.0009441596339456737),
        ),
    ),
    types.float64: (
        np.float64,
        (6, 2.5, 3),
        (
            *(0.12837916709551256, -0.37612638903183543, 0.11283791670945006, -0.02686617064323777),
            *(0.0052239776071164225, -0.0008548325975389692, 0.00012055294904839707, -1.492473690741966e-05),
            *(1.6447424703317362e-06, -1.6208483801871705e-07, 1.3720064546777686e-08, -7.795898827002142e-10),
        ),
        (
            *(0.2108063640611436, -0.40891040734387063, 0.34546400452749976, -0.23142268954829578, 0.11792238659682419),
            *(-0.041056453906508444, 0.006200459781887042, 0.002113470943502139, -0.0012215030348353385),
            *(-3.811308701907802e-05, 0.00017234360441019685, -8.22537393436592e-06, -2.680932379068565e-05),
            *(1.2219273954522977e-06, 4.328269678011301e-06),
        ),
    ),
}
_error = _constants_of(
    {
        kind: _Error(*[*map(make, numbers), tuple(map(make, near)), tuple(map(make, tail))])
        for kind, (make, numbers, near, tail) in _ERRORS.items()
    }
)


@_public
def erf(x: Real) -> Real:
    """Return the error function 2/√π ∫₀ˣ e**-t² dt.

    Notes
    -----
    Up to 1 a polynomial in x², above 1 - e**-x² times a polynomial in a fraction of x; both are computed and one is chosen.
    Error at most 1.1 ulp.
    """
    return type(x)(math.erf(x))


@_compiled(erf)
def _erf(x: Real) -> Real:
    c, d = _constants(x), _error(x)
    a = _at_most(abs(x), d.highest)
    z = a * a
    near = a + a * _polynomial(z, d.near)
    far = c.one - _exp_minus_abs(z) * _polynomial((a - d.middle) / (a + d.shift), d.tail)
    return _with_sign(near if a <= c.one else far, x)


# log Γ, digamma -------------------------------------------------------------------------------------------------------

# sin πf / πf and cos πf in powers of f², |f| <= 1/2; errors 2**-71 and 2**-67.
_SIN_PI = (
    *(1.0, -1.6449340668482264, 0.8117424252833536, -0.19075182412208255, 0.026147847817611935, -0.002346081034815316),
    *(0.0001484287872033628, -6.975840829271595e-06, 2.5300985563134005e-07, -7.0931258816238045e-09),
)
_COS_PI = (
    *(1.0, -4.934802200544679, 4.058712126416768, -1.3352627688545549, 0.235330630357995, -0.025806891376592964),
    *(0.0019295741872812349, -0.00010463741681752138, 4.300724172734847e-06, -1.34352129509532e-07),
)
# Stirling's series of log Γ and of its derivative, in powers of 1 / z²: from Bernoulli's numbers B₂ to B₁₆.
_LOG_GAMMA = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
_DIGAMMA = (1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12, -3617 / 8160)
_HALF_LOG_2_PI = 0.9189385332046728
_LOG64: Any = numba.njit(**_OPTIONS)(_log)
_SHIFT = 8  # arguments below are moved up by as much; there the series is exact to 2**-53


@_part
def _above_half(x: Real) -> Real:
    """(x is below 1/2, y) with y = x, or 1 - x if x is below 1/2: where the formula of reflection leads."""
    below = x < 0.5
    return below, 1.0 - x if below else x


@_public
def lgamma(x: Real) -> Real:
    """Return log |Γ(x)|; infinite at 0, -1, -2, ..., and -inf at -inf, as SciPy has it.

    Notes
    -----
    For x >= 1/2 it is L(z) - log p: Stirling's series L at z = x, or at z = x + 8 with p = x (x + 1) ... (x + 7) for x < 8.
    Below, Γ(x) Γ(1-x) = π / sin πx gives -L(z) - log(|sin πx| / πp), where z and p belong to 1 - x. One form serves both.
    Error at most 1.4 ulp in float32; in float64 at most 1e-14 times max(1, |log Γ|).

    Source
    ------
    Abramowitz and Stegun, Handbook of Mathematical Functions, 6.1.17 and 6.1.41.
    """
    if math.isinf(x) or math.isnan(x):
        return x
    return type(x)(math.inf if x <= 0 and x == math.floor(x) else math.lgamma(x))


@_compiled(lgamma)
def _lgamma(x: Real) -> Real:
    w = np.float64(x)
    below, y = _above_half(w)
    low = y < _SHIFT
    p = y
    for i in range(1, _SHIFT):
        p = p * (y + i)
    p = p if low else 1.0
    z = y + _SHIFT if low else y
    v = 1.0 / z
    series = (z - 0.5) * (_LOG64(z) - 1.0) + ((_HALF_LOG_2_PI - 0.5) + v * _polynomial(v * v, _LOG_GAMMA))
    f = w - _nearest(w)
    a = abs(f)
    tiny = a < 1e-300  # |sin πx| / πp would have lost its digits; log Γ is -log |x|
    q = (a if tiny else a * _polynomial(f * f, _SIN_PI) / p) if below else p
    series = 0.0 if tiny & below else (-series if below else series)
    result = series - _LOG64(q)
    result = np.inf if below & (a == 0.0) else result
    result = 0.0 if (w == 1.0) | (w == 2.0) else result
    return number(-np.inf if w == -np.inf else result, x)


@_public
def digamma(x: Real) -> Real:
    """Return Γ'(x) / Γ(x), the derivative of log Γ; -inf at 0 (inf at -0), NaN at -1, -2, ... and -inf, as SciPy has it.

    Notes
    -----
    As `lgamma`: a series, moved up by 8 where x is small, and π / tan πx less for x < 1/2. Error at most 0.6 ulp in
    float32; in float64 at most 3e-15 times max(1, |digamma|).

    Source
    ------
    Abramowitz and Stegun, Handbook of Mathematical Functions, 6.3.5, 6.3.7 and 6.3.18.
    """
    if x == 0:
        return type(x)(-math.copysign(math.inf, x))
    if x == -math.inf or (x < 0 and x == math.floor(x)):
        return type(x)(math.nan)
    y, total = float(1 - x if x < 0.5 else x), 0.0
    while y < _SHIFT:
        y, total = y + 1, total - 1 / y
    total += math.log(y) - 0.5 / y - sum(b / y ** (2 * n) for n, b in enumerate(_DIGAMMA, 1))
    return type(x)(total - math.pi / math.tan(math.pi * (x - round(x))) if x < 0.5 else total)


@_compiled(digamma)
def _digamma(x: Real) -> Real:
    w = np.float64(x)
    below, y = _above_half(w)
    low = y < _SHIFT
    p, s = y, 1.0  # s / p = Σ 1 / (y + i)
    for i in range(1, _SHIFT):
        s = s * (y + i) + p
        p = p * (y + i)
    z = y + _SHIFT if low else y
    v = 1.0 / z
    result = _LOG64(z) - v * (0.5 + v * _polynomial(v * v, _DIGAMMA)) - (s / p if low else 0.0)
    f = w - _nearest(w)
    pi_cotangent = _polynomial(f * f, _COS_PI) / (f * _polynomial(f * f, _SIN_PI))
    result = result - pi_cotangent if below else result
    result = np.nan if below & (f == 0.0) else result
    return number(-_with_sign(np.inf, w) if w == 0.0 else result, x)

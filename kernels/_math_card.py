"""Functions for a card where CUDA's library has none that suits, written in the words of kernels.

    sin, cos, tan       CUDA's keep numbers in local memory, for the sake of huge angles; these do not. Error at most 2.2 ulp of
                        sin and cos, 3.2 of tan, for any number
    digamma             CUDA has none. Error at most 1e-6 in float32, 2e-15 in float64, times max(1, |digamma|)

They compile for a processor as well, and so `tests/test_math_card.py` measures them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from autobatch.kernels import _jit, _math
from autobatch.kernels._jit import inline
from autobatch.kernels._math_special import _COS_PI, _DIGAMMA, _SIN_PI
from autobatch.kernels._math_trigonometric import _ANGLES
from autobatch.kernels._math_words import below, constant, exponent, fused, mantissa, polynomial, table, upper_product

number: Any = _jit.number  # to mypy an intrinsic would lack the typing context

# Angles ---------------------------------------------------------------------------------------------------------------
# Up to `far` a multiple k of π/2 in three parts is taken off, with products that are not rounded (`fused`): k times the first
# part, taken off, is exact. Beyond, x = m 2**e: of 2/π, in binary, only the 192 bits from place e - 1 on matter for
# x 2/π modulo 4, and the product with m is one of integers (Payne and Hanek). With 53 + 192 bits at least 60 are right behind
# the 62 zeros that come at most.

_far = constant(2.0**17, 2.0**30)
_half_pi = constant(1.5707963705062866, 1.5707963267948966)
_half_pi_second = constant(-4.371138828673793e-08, 6.123233995736766e-17)
_half_pi_third = constant(-1.7151245100058819e-15, -1.4973849048591833e-33)
_two_over_pi = constant(0.6366197466850281, 0.6366197723675814)
_sine = polynomial(_ANGLES[types.float32].sin, _ANGLES[types.float64].sin)
_cosine = polynomial(_ANGLES[types.float32].cos, _ANGLES[types.float64].cos)

_PLACES = 64 * 20  # of 2/π; the largest number of float64 needs 64 + 969 + 192


def _bits_of_two_over_pi() -> list[int]:
    """64 zeros and then the places of 2/π, 64 to a number; π after J. Machin, π/4 = 4 atan 1/5 - atan 1/239."""
    one = 1 << (_PLACES + 64)

    def atan_of_inverse(n: int) -> int:
        total, power, k = 0, one // n, 0
        while power:
            total += (-1) ** k * (power // (2 * k + 1))
            power //= n * n
            k += 1
        return total

    pi = 4 * (4 * atan_of_inverse(5) - atan_of_inverse(239))
    places = (2 * one << _PLACES) // pi
    return [0, *(places >> _PLACES - 64 * k & (1 << 64) - 1 for k in range(1, _PLACES // 64 + 1))]


_places = table(_bits_of_two_over_pi())


@inline
def _window(k, shift):
    """64 bits of the places of 2/π, from bit `shift` of number k on."""
    return np.uint64((_places(k) << shift) | ((_places(k + 1) >> np.uint64(1)) >> (np.uint64(63) - shift)))


@inline
def _far_quadrant(x):
    """(m, r) with |x| = (4 n + m) π/2 + r and |r| <= π/4, for any finite x above 2**-1."""
    m, first = mantissa(x), exponent(x) + 62  # 64 zeros stand before the places
    k, shift = first >> 6, np.uint64(first & 63)
    a, b, c = _window(k, shift), _window(k + 1, shift), _window(k + 2, shift)
    middle = np.uint64(m * b + upper_product(m, c))
    carry = np.uint64(1 if middle < upper_product(m, c) else 0)
    high = np.uint64(m * a + upper_product(m, b) + carry)
    low = np.uint64((middle << np.uint64(2)) | (np.uint64(m * c) >> np.uint64(62)))
    quadrant = np.int32(high >> np.uint64(62))
    high = np.uint64((high << np.uint64(2)) | (middle >> np.uint64(62)))
    down = high >> np.uint64(63) != np.uint64(0)
    if down:  # more than a half: from the next multiple on, downwards
        low = np.uint64(np.uint64(0) - low)
        high = np.uint64(np.uint64(0) - high - np.uint64(0 if low == np.uint64(0) else 1))
        quadrant = np.int32(quadrant + 1)
    r = (number(high, x) + number(low, x) * number(2.0**-64, x)) * (number(2.0**-64, x) * _half_pi(x))
    return np.int32(quadrant & 3), (-r if down else r)


@inline
def _quadrant(x):
    """(m, r) with x = (4 n + m) π/2 + r, m = 0, 1, 2, 3 and |r| <= π/4."""
    if abs(x) > _far(x):
        if abs(x) == number(math.inf, x):
            return np.int32(0), number(math.nan, x)
        m, r = _far_quadrant(x)
        return (np.int32(-m & 3), -r) if x < number(0, x) else (m, r)
    k = below(x * _two_over_pi(x) + number(0.5, x))
    r = fused(-k, _half_pi(x), x)
    r = fused(-k, _half_pi_second(x), r)
    r = fused(-k, _half_pi_third(x), r)
    return np.int32(np.int32(k) & 3), r


@inline
def _sin_near_0(r, z):
    return r + r * (z * _sine(z))


@inline
def _cos_near_0(r, z):
    return number(1, r) - (number(0.5, r) * z - z * z * _cosine(z))


@inline
def sin(x):
    """sin x for any x; NaN for infinities."""
    m, r = _quadrant(x)
    z = r * r
    y = _cos_near_0(r, z) if m & 1 else _sin_near_0(r, z)
    return -y if m & 2 else y


@inline
def cos(x):
    """cos x for any x."""
    m, r = _quadrant(x)
    z = r * r
    y = _sin_near_0(r, z) if m & 1 else _cos_near_0(r, z)
    return -y if (m == 1) | (m == 2) else y


@inline
def tan(x):
    """tan x for any x."""
    m, r = _quadrant(x)
    z = r * r
    s, c = _sin_near_0(r, z), _cos_near_0(r, z)
    return -c / s if m & 1 else s / c


# digamma --------------------------------------------------------------------------------------------------------------

_sin_pi, _cos_pi = polynomial(_SIN_PI, _SIN_PI), polynomial(_COS_PI, _COS_PI)
_series = polynomial(_DIGAMMA[:4], _DIGAMMA)


@inline
def digamma(x):
    """As `_math_special.digamma`, all in the type of x."""
    one, half = number(1, x), number(0.5, x)
    reflected = x < half
    y = one - x if reflected else x
    low = y < number(8, x)
    p, s, t = y, one, y
    for _ in range(7):
        t += one
        s = s * t + p
        p = p * t
    z = y + number(8, x) if low else y
    v = one / z
    result = _math.log(z) - v * (half + v * _series(v * v)) - (s / p if low else number(0, x))
    if reflected:
        f = x - below(x + half)
        if f == number(0, x):
            return -_math.with_sign(number(math.inf, x), x) if x == number(0, x) else number(math.nan, x)
        q = f * f
        result -= _cos_pi(q) / (f * _sin_pi(q))
    return result

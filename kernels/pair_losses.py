"""Distances and losses that are sums over pairs of numbers.

    l1_distance      Σ |x - z|                                               dx += dy sign(x - z), 0 at 0;    dz -= it
    huber_distance   Σ ½ d² where |d| < c, else c |d| - ½ c², d = x - z      dx += dy min(max(d, -c), c);     dz -= it
    binary_log_loss  -Σ z log x + (1 - z) log(1 - x)                         dx += dy ((1 - z) / (1 - x) - z / x)
                                                                             dz += dy (log(1 - x) - log x)

In `binary_log_loss` a logarithm is at least log FLT_MIN = -87.34, in float64 as well: a certain and wrong prediction costs this
much, not infinity. Where that bound holds the term is constant and passes no gradient to x.
"""

import math

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._jit import number
from autobatch.kernels._pairs import pairs, sum_of_pairs

LEAST = math.log(2.0**-126)  # the smallest normal number of float32


def _l1(x, z):
    return abs(x - z)


def _l1_slope_x(dy, x, z):
    return dy if x > z else -dy if x < z else dy * (x - z)  # 0, or NaN


def _l1_slope_z(dy, x, z):
    return -dy if x > z else dy if x < z else dy * (x - z)


def _huber(x, z, c):
    d = abs(x - z)
    return number(0.5, d) * d * d if d < c else c * (d - number(0.5, d) * c)


def _huber_slope_x(dy, x, z, c):
    d = x - z
    return dy * (c if d >= c else -c if d <= -c else d)


def _huber_slope_z(dy, x, z, c):
    d = z - x
    return dy * (c if d >= c else -c if d <= -c else d)


def _binary(x, z):
    least = number(LEAST, x)
    of_x, of_rest = _math.log(x), _math.log1p(-x)
    of_x = least if of_x < least else of_x
    of_rest = least if of_rest < least else of_rest
    return -(z * of_x + (number(1, z) - z) * of_rest)


def _binary_slope_x(dy, x, z):
    smallest, zero, rest = number(2.0**-126, x), number(0, x), number(1, x) - x
    up = zero if zero <= x < smallest else z / x
    down = zero if zero <= rest < smallest else (number(1, z) - z) / rest
    return dy * (down - up)


def _binary_slope_z(dy, x, z):
    least = number(LEAST, x)
    of_x, of_rest = _math.log(x), _math.log1p(-x)
    of_x = least if of_x < least else of_x
    of_rest = least if of_rest < least else of_rest
    return dy * (of_rest - of_x)


def _huber_reference(x, z, c):
    d = np.abs(x - z)
    return np.where(d < c, d * d / 2, c * d - c * c / 2)


def _binary_reference(x, z):
    with np.errstate(divide="ignore"):
        of_x, of_rest = np.maximum(np.log(x), LEAST), np.maximum(np.log1p(-x), LEAST)
    return -(z * of_x + (1 - z) * of_rest)


L1_DISTANCE = sum_of_pairs(
    "l1_distance",
    "Σ |x - z|.    dx += dy sign(x - z), 0 at 0;    dz -= the same",
    _l1,
    [_l1_slope_x, _l1_slope_z],
    reference=lambda x, z: np.abs(x - z),
    samples=pairs((-2, 2), (-2, 2)),
    path=__file__,
)
HUBER_DISTANCE = sum_of_pairs(
    "huber_distance",
    "Σ ½ d² where |d| < c, else c |d| - ½ c², d = x - z.    dx += dy min(max(d, -c), c);    dz -= the same",
    _huber,
    [_huber_slope_x, _huber_slope_z],
    reference=_huber_reference,
    samples=pairs((-2, 2), (-2, 2), (0.5, 1.345, 2.0)),
    path=__file__,
    numbers=1,
)
BINARY_LOG_LOSS = sum_of_pairs(
    "binary_log_loss",
    "-Σ z log x + (1 - z) log(1 - x).    dx += dy ((1 - z) / (1 - x) - z / x);    dz += dy (log(1 - x) - log x)",
    _binary,
    [_binary_slope_x, _binary_slope_z],
    reference=_binary_reference,
    samples=pairs((0.1, 0.9), (0.0, 1.0)),
    path=__file__,
)

"""Sine, cosine, tangent and their inverses. Angles are in radians."""

import numpy as np

from autobatch.kernels import _math, _math_trigonometric
from autobatch.kernels._elementwise import Rare, elementwise
from autobatch.kernels._jit import number
from autobatch.kernels._op import one_tensor


def _is_far(x):
    return _math_trigonometric.is_far(x)


def _sin(x):
    return _math_trigonometric.sin(x)


def _sin_slope(dy, y, x):
    return dy * _math_trigonometric.cos(x)


def _sin_anywhere(x):
    return _math_trigonometric.sin_anywhere(x)


def _sin_slope_anywhere(dy, y, x):
    return dy * _math_trigonometric.cos_anywhere(x)


def _cos(x):
    return _math_trigonometric.cos(x)


def _cos_slope(dy, y, x):
    return -dy * _math_trigonometric.sin(x)


def _cos_anywhere(x):
    return _math_trigonometric.cos_anywhere(x)


def _cos_slope_anywhere(dy, y, x):
    return -dy * _math_trigonometric.sin_anywhere(x)


def _tan(x):
    return _math_trigonometric.tan(x)


def _tan_slope(dy, y, x):
    return dy * (number(1, y) + y * y)


def _tan_anywhere(x):
    return _math_trigonometric.tan_anywhere(x)


def _asin(x):
    return _math_trigonometric.asin(x)


def _asin_slope(dy, y, x):
    return dy / _math.sqrt((number(1, x) - x) * (number(1, x) + x))


def _acos(x):
    return _math_trigonometric.acos(x)


def _acos_slope(dy, y, x):
    return -dy / _math.sqrt((number(1, x) - x) * (number(1, x) + x))


def _atan(x):
    return _math_trigonometric.atan(x)


def _atan_slope(dy, y, x):
    return dy / (number(1, x) + x * x)


SIN = elementwise(
    "sin",
    "sin x.    dx += dy cos x",
    _sin,
    [_sin_slope],
    reference=np.sin,
    samples=one_tensor(-5.0, 5.0),
    path=__file__,
    rare=Rare(_is_far, _sin_anywhere, _sin_slope_anywhere),
)
COS = elementwise(
    "cos",
    "cos x.    dx -= dy sin x",
    _cos,
    [_cos_slope],
    reference=np.cos,
    samples=one_tensor(-5.0, 5.0),
    path=__file__,
    rare=Rare(_is_far, _cos_anywhere, _cos_slope_anywhere),
)
TAN = elementwise(
    "tan",
    "tan x.    dx += dy (1 + y²)",
    _tan,
    [_tan_slope],
    reference=np.tan,
    samples=one_tensor(-1.3, 1.3, strict=True),
    path=__file__,
    rare=Rare(_is_far, _tan_anywhere, _tan_slope),
)
ASIN = elementwise(
    "asin",
    "Angle whose sine is x, in [-π/2, π/2]; NaN outside of [-1, 1].    dx += dy / √(1 - x²), infinite at -1 and 1",
    _asin,
    [_asin_slope],
    reference=np.arcsin,
    samples=one_tensor(-0.9, 0.9, strict=True),
    path=__file__,
)
ACOS = elementwise(
    "acos",
    "Angle whose cosine is x, in [0, π]; NaN outside of [-1, 1].    dx -= dy / √(1 - x²), infinite at -1 and 1",
    _acos,
    [_acos_slope],
    reference=np.arccos,
    samples=one_tensor(-0.9, 0.9, strict=True),
    path=__file__,
)
ATAN = elementwise(
    "atan",
    "Angle whose tangent is x, in [-π/2, π/2].    dx += dy / (1 + x²)",
    _atan,
    [_atan_slope],
    reference=np.arctan,
    samples=one_tensor(-4.0, 4.0),
    path=__file__,
)

"""Hyperbolic sine and cosine, and the inverses of these and of tanh (tanh itself is an activation)."""

import numpy as np

from autobatch.kernels import _math, _math_hyperbolic
from autobatch.kernels._elementwise import elementwise
from autobatch.kernels._jit import number
from autobatch.kernels._op import one_tensor


def _sinh(x):
    return _math_hyperbolic.sinh(x)


def _sinh_slope(dy, y, x):
    return dy * _math_hyperbolic.cosh(x)


def _cosh(x):
    return _math_hyperbolic.cosh(x)


def _cosh_slope(dy, y, x):
    return dy * _math_hyperbolic.sinh(x)


def _asinh(x):
    return _math_hyperbolic.asinh(x)


def _asinh_slope(dy, y, x):
    a = abs(x)
    return dy / (a if a > number(1e10, x) else _math.sqrt(number(1, x) + x * x))  # x² might be infinite


def _acosh(x):
    return _math_hyperbolic.acosh(x)


def _acosh_slope(dy, y, x):
    return dy / (_math.sqrt(x - number(1, x)) * _math.sqrt(x + number(1, x)))


def _atanh(x):
    return _math_hyperbolic.atanh(x)


def _atanh_slope(dy, y, x):
    return dy / ((number(1, x) - x) * (number(1, x) + x))


SINH = elementwise(
    "sinh",
    "Hyperbolic sine.    dx += dy cosh x",
    _sinh,
    [_sinh_slope],
    reference=np.sinh,
    samples=one_tensor(-3.0, 3.0),
    path=__file__,
)
COSH = elementwise(
    "cosh",
    "Hyperbolic cosine.    dx += dy sinh x",
    _cosh,
    [_cosh_slope],
    reference=np.cosh,
    samples=one_tensor(-3.0, 3.0),
    path=__file__,
)
ASINH = elementwise(
    "asinh",
    "Number whose hyperbolic sine is x.    dx += dy / √(x² + 1)",
    _asinh,
    [_asinh_slope],
    reference=np.arcsinh,
    samples=one_tensor(-4.0, 4.0),
    path=__file__,
)
ACOSH = elementwise(
    "acosh",
    "Number >= 0 whose hyperbolic cosine is x; NaN below 1.    dx += dy / √(x² - 1), infinite at 1",
    _acosh,
    [_acosh_slope],
    reference=np.arccosh,
    samples=one_tensor(1.2, 4.0),
    path=__file__,
)
ATANH = elementwise(
    "atanh",
    "Number whose hyperbolic tangent is x; infinite at -1 and 1, NaN outside.    dx += dy / (1 - x²)",
    _atanh,
    [_atanh_slope],
    reference=np.arctanh,
    samples=one_tensor(-0.9, 0.9, strict=True),
    path=__file__,
)

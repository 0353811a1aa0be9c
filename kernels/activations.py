"""Hyperbolic tangent, logistic sigmoid, rectifier, exponential and logarithm."""

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._elementwise import elementwise
from autobatch.kernels._jit import number
from autobatch.kernels._op import one_tensor


def _tanh(x):
    return _math.tanh(x)


def _tanh_slope(dy, y, x):
    return dy * (number(1, y) - y * y)


def _logistic(x):
    return _math.logistic(x)


def _logistic_slope(dy, y, x):
    return dy * (y * (number(1, y) - y))


def _rectify(x):
    return number(0, x) if x <= 0 else x


def _rectify_slope(dy, y, x):
    return dy if x > 0 else number(0, dy)


def _exp(x):
    return _math.exp(x)


def _exp_slope(dy, y, x):
    return dy * y


def _log(x):
    return _math.log(x)


def _log_slope(dy, y, x):
    return dy / x


TANH = elementwise(
    "tanh",
    "tanh x.    dx += dy (1 - y²)",
    _tanh,
    [_tanh_slope],
    reference=np.tanh,
    samples=one_tensor(-3.0, 3.0),
    path=__file__,
)
LOGISTIC = elementwise(
    "logistic",
    "1 / (1 + e⁻ˣ).    dx += dy y (1 - y)",
    _logistic,
    [_logistic_slope],
    reference=lambda x: 1 / (1 + np.exp(-x)),
    samples=one_tensor(-4.0, 4.0),
    path=__file__,
)
RECTIFY = elementwise(
    "rectify",
    "max(0, x).    dx += dy where x > 0, nothing elsewhere (0 at 0)",
    _rectify,
    [_rectify_slope],
    reference=lambda x: np.maximum(x, 0.0),
    samples=one_tensor(),
    path=__file__,
)
EXP = elementwise(
    "exp",
    "eˣ.    dx += dy y",
    _exp,
    [_exp_slope],
    reference=np.exp,
    samples=one_tensor(),
    path=__file__,
)
LOG = elementwise(
    "log",
    "Natural logarithm; -inf at 0, NaN below.    dx += dy / x",
    _log,
    [_log_slope],
    reference=np.log,
    samples=one_tensor(0.2, 3.0),
    path=__file__,
)

"""Activations: tanh, the logistic sigmoid and its logarithm, rectifiers, softsign, silu; exponential and logarithm.

Source: G. Klambauer et al., Self-normalizing neural networks (2017), for the numbers of selu.
"""

import math

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._elementwise import elementwise
from autobatch.kernels._jit import number
from autobatch.kernels._op import Sample, Shape, Tensor, one_tensor

ALPHA, SCALE = 1.6732632423543772, 1.0507009873554805  # of selu


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


def _log_sigmoid(x):
    return _math.logsigmoid(x)


def _log_sigmoid_slope(dy, y, x):
    return dy * _math.logistic(-x)


def _softsign(x):
    a = abs(x)
    return x / (number(1, x) + a) if a != number(math.inf, x) else _math.with_sign(number(1, x), x)


def _softsign_slope(dy, y, x):
    b = number(1, x) + abs(x)
    return dy / (b * b)


def _elu(x, alpha):
    return x if x > 0 else alpha * _math.expm1(x)


def _elu_slope(dy, y, x, alpha):
    return dy if x > 0 else dy * alpha * _math.exp(x)


def _selu(x):
    return number(SCALE, x) * x if x > 0 else number(SCALE * ALPHA, x) * _math.expm1(x)


def _selu_slope(dy, y, x):
    return dy * number(SCALE, x) if x > 0 else dy * (number(SCALE * ALPHA, x) * _math.exp(x))


def _silu(x, beta):
    return x * _math.logistic(beta * x)


def _silu_slope(dy, y, x, beta):
    z = beta * x
    s = _math.logistic(z)
    return dy * (s + z * s * _math.logistic(-z))


def _with_number(low, high, choices):
    """Samples of a function of any expression and a number."""

    def samples(choose):
        return Sample((Tensor(Shape(choose.dims(), choose.batch()), low, high), choose.one_of(choices)))

    return samples


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
LOG_SIGMOID = elementwise(
    "log_sigmoid",
    "log(1 / (1 + e⁻ˣ)), for any x.    dx += dy / (1 + eˣ)",
    _log_sigmoid,
    [_log_sigmoid_slope],
    reference=lambda x: -np.logaddexp(0, -x),
    samples=one_tensor(-4.0, 4.0),
    path=__file__,
)
SOFTSIGN = elementwise(
    "softsign",
    "x / (1 + |x|); ±1 at infinity.    dx += dy / (1 + |x|)²",
    _softsign,
    [_softsign_slope],
    reference=lambda x: x / (1 + abs(x)),
    samples=one_tensor(),
    path=__file__,
)
ELU = elementwise(
    "elu",
    "x for x > 0, else α (eˣ - 1).    dx += dy for x > 0, else dy α eˣ",
    _elu,
    [_elu_slope, None],
    reference=lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    samples=_with_number(-3.0, 3.0, [1.0, 0.5, 0.0, 2.0]),
    shapes="x, number -> as x",
    path=__file__,
)
SELU = elementwise(
    "selu",
    "λ x for x > 0, else λ α (eˣ - 1), λ = 1.0507..., α = 1.6732....    dx += λ dy for x > 0, else dy λ α eˣ",
    _selu,
    [_selu_slope],
    reference=lambda x: SCALE * np.where(x > 0, x, ALPHA * np.expm1(np.minimum(x, 0))),
    samples=one_tensor(-3.0, 3.0),
    path=__file__,
)
SILU = elementwise(
    "silu",
    "x s with s = 1 / (1 + e^(-βx)).    dx += dy (s + βx s (1 - s)) (DyNet leaves β out)",
    _silu,
    [_silu_slope, None],
    reference=lambda x, beta: x / (1 + np.exp(-beta * x)),
    samples=_with_number(-4.0, 4.0, [1.0, 0.5, -1.5, 2.0]),
    shapes="x, number -> as x",
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

"""The error function and log Γ."""

import math

import numpy as np

from autobatch.kernels import _math, _math_special
from autobatch.kernels._elementwise import elementwise
from autobatch.kernels._jit import number
from autobatch.kernels._op import Sample, Shape, Tensor, itself, one_tensor


def _erf(x):
    return _math_special.erf(x)


def _erf_slope(dy, y, x):
    return dy * (number(1.1283791670955126, x) * _math.exp(-(x * x)))  # 2/√π


def _lgamma(x):
    return _math_special.lgamma(x)


def _lgamma_slope(dy, y, x):
    return dy * _math_special.digamma(x)


def _lgamma_samples(choose):
    low, high = choose.one_of([(0.2, 5.0), (5.0, 12.0), (-0.8, -0.2), (-3.8, -3.2)])  # clear of the poles
    return Sample((Tensor(Shape(choose.dims(), choose.batch()), low, high, itself),))


ERF = elementwise(
    "erf",
    "Error function 2/√π ∫₀ˣ e^(-t²) dt.    dx += dy 2/√π e^(-x²)",
    _erf,
    [_erf_slope],
    reference=np.vectorize(math.erf, otypes=[float]),
    samples=one_tensor(-3.0, 3.0),
    path=__file__,
)
LGAMMA = elementwise(
    "lgamma",
    "log |Γ(x)|; infinite at 0, -1, -2, ....    dx += dy Γ'(x) / Γ(x)",
    _lgamma,
    [_lgamma_slope],
    reference=np.vectorize(math.lgamma, otypes=[float]),
    samples=_lgamma_samples,
    path=__file__,
)

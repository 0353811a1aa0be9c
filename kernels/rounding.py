"""Rounding to integers. By its mode, the gradient is 0 (the true one) or passed straight through, as if y = x."""

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._elementwise import loops
from autobatch.kernels._jit import number
from autobatch.kernels._op import Op, Sample, Shape, Tensor

MODES = ("zero_gradient", "straight_through_gradient")


def _round(x):
    a = abs(x)
    whole = _math.floor(a)
    return _math.with_sign(whole + number(1, x) if a - whole >= number(0.5, x) else whole, x)


def _ceil(x):
    return _math.ceil(x)


def _floor(x):
    return _math.floor(x)


def _straight(dy, y, x):
    return dy


def _nothing(dy, y, x):
    return number(0, dy)


def _by_mode(name, value):
    """What lowers an op with the attribute `straight`."""
    lowers = [loops(name + mode, value, [slope], __file__) for mode, slope in (("_zero", _nothing), ("_straight", _straight))]
    return lambda shapes, out, shared, straight: lowers[straight](shapes, out, shared)


def surrogate(x, gradient_mode):
    """The function whose gradient it is."""
    return x if gradient_mode == MODES[1] else np.zeros_like(x)


def _samples(choose):
    return Sample((Tensor(Shape(choose.dims(), choose.batch()), -3.0, 3.0), choose.one_of(MODES)))


def _rounding(name, doc, value, reference):
    return Op(
        name=name,
        doc=doc + ".    dx += dy, or nothing",
        shape=lambda shapes, straight: shapes[0],
        lower=_by_mode(name, value),
        reference=lambda x, gradient_mode: reference(x),
        surrogate=surrogate,
        samples=_samples,
        shapes="x -> as x",
    )


ROUND = _rounding(
    "round", "Nearest integer, of two the one away from 0", _round, lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x)
)
CEIL = _rounding("ceil", "Smallest integer that is not below x", _ceil, np.ceil)
FLOOR = _rounding("floor", "Largest integer that is not above x", _floor, np.floor)

"""Sum, difference, elementwise product and quotient; negative, square, cube, square root and absolute value."""

import math

import numpy as np

from autobatch.kernels._elementwise import broadcast_shape, elementwise
from autobatch.kernels._jit import number
from autobatch.kernels._op import one_tensor, two_broadcast


def _add(x, z):
    return x + z


def _add_slope(dy, y, x, z):
    return dy


def _subtract(x, z):
    return x - z


def _subtract_slope(dy, y, x, z):
    return -dy


def _cmult(x, z):
    return x * z


def _cmult_slope_x(dy, y, x, z):
    return dy * z


def _cmult_slope_z(dy, y, x, z):
    return dy * x


def _cdiv(x, z):
    return x / z


def _cdiv_slope_x(dy, y, x, z):
    return dy / z


def _cdiv_slope_z(dy, y, x, z):
    return -dy * y / z


def _negate(x):
    return -x


def _negate_slope(dy, y, x):
    return -dy


def _square(x):
    return x * x


def _square_slope(dy, y, x):
    return dy * (x + x)


def _cube(x):
    return x * x * x


def _cube_slope(dy, y, x):
    return dy * (number(3, x) * (x * x))


def _abs(x):
    return abs(x)


def _abs_slope(dy, y, x):
    return dy if x > 0 else -dy if x < 0 else number(0, dy)


def _sqrt(x):
    return math.sqrt(x)


def _sqrt_slope(dy, y, x):
    return dy / (y + y)


def _aligned(operation):
    """Make a NumPy function of arrays whose batch is the last axis and whose missing dims are ones before it."""

    def reference(x, z):
        rank = max(x.ndim, z.ndim)
        x, z = (a.reshape(*a.shape[:-1], *(1,) * (rank - a.ndim), a.shape[-1]) for a in (x, z))
        return operation(x, z)

    return reference


ADD = elementwise(
    "add",
    "x + z, with broadcasting: missing dims are ones at the end.    dx += dy    dz += dy    (DyNet: `+`)",
    _add,
    [_add_slope, _add_slope],
    reference=_aligned(np.add),
    samples=two_broadcast(),
    shape=broadcast_shape("add"),
    path=__file__,
    joins=True,
)
SUBTRACT = elementwise(
    "subtract",
    "x - z, with broadcasting.    dx += dy    dz -= dy    (DyNet: `-`)",
    _subtract,
    [_add_slope, _subtract_slope],
    reference=_aligned(np.subtract),
    samples=two_broadcast(),
    shape=broadcast_shape("subtract"),
    path=__file__,
)
CMULT = elementwise(
    "cmult",
    "x ∘ z, number by number, with broadcasting.    dx += dy ∘ z    dz += dy ∘ x",
    _cmult,
    [_cmult_slope_x, _cmult_slope_z],
    reference=_aligned(np.multiply),
    samples=two_broadcast(),
    shape=broadcast_shape("cmult"),
    path=__file__,
)
CDIV = elementwise(
    "cdiv",
    "x / z, number by number, with broadcasting of both sides (DyNet stretches only z).    dx += dy / z    dz -= dy ∘ y / z",
    _cdiv,
    [_cdiv_slope_x, _cdiv_slope_z],
    reference=_aligned(np.divide),
    samples=two_broadcast(0.5, 2.5),
    shape=broadcast_shape("cdiv"),
    path=__file__,
)
NEGATE = elementwise(
    "negate",
    "-x.    dx -= dy",
    _negate,
    [_negate_slope],
    reference=np.negative,
    samples=one_tensor(),
    path=__file__,
)
SQUARE = elementwise(
    "square",
    "x².    dx += 2 x dy",
    _square,
    [_square_slope],
    reference=np.square,
    samples=one_tensor(),
    path=__file__,
)
CUBE = elementwise(
    "cube",
    "x³.    dx += 3 x² dy",
    _cube,
    [_cube_slope],
    reference=lambda x: x**3,
    samples=one_tensor(),
    path=__file__,
)
ABS = elementwise(
    "abs",
    "|x|.    dx += dy where x > 0, -dy where x < 0, nothing at 0",
    _abs,
    [_abs_slope],
    reference=np.abs,
    samples=one_tensor(),
    path=__file__,
)
SQRT = elementwise(
    "sqrt",
    "√x; NaN below 0.    dx += dy / 2y, infinite at 0",
    _sqrt,
    [_sqrt_slope],
    reference=np.sqrt,
    samples=one_tensor(0.2, 3.0),
    path=__file__,
)

"""What passes a value on as it is, and its gradient turned round or scaled."""

from autobatch.kernels._elementwise import elementwise
from autobatch.kernels._op import Sample, Shape, Tensor, one_tensor


def _flip(x):
    return x


def _flip_slope(dy, y, x):
    return -dy


def _scale(x, factor):
    return x


def _scale_slope(dy, y, x, factor):
    return dy * factor


FLIP_GRADIENT = elementwise(
    "flip_gradient",
    "x itself.    dx -= dy",
    _flip,
    [_flip_slope],
    reference=lambda x: x,
    surrogate=lambda x: -x,
    samples=one_tensor(),
    path=__file__,
)
SCALE_GRADIENT = elementwise(
    "scale_gradient",
    "x itself.    dx += λ dy",
    _scale,
    [_scale_slope, None],
    reference=lambda x, lambd: x,
    surrogate=lambda x, lambd: lambd * x,
    samples=lambda choose: Sample(
        (Tensor(Shape(choose.dims(), choose.batch())), choose.one_of([0.0, 0.5, 1.0, -2.0])),
    ),
    shapes="x, number -> as x",
    path=__file__,
)

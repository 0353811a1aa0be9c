"""Power: y = xᵉ, with one exponent e for each element of the minibatch.    dx += dy e xᵉ⁻¹    de += Σ dy xᵉ ln x"""

from autobatch.kernels import _math, _math_power
from autobatch.kernels._elementwise import elementwise
from autobatch.kernels._jit import number
from autobatch.kernels._op import Sample, Shape, Tensor, common_batch, wrong


def _power(x, e):
    return _math_power.power(x, e)


def _power_slope_x(dy, y, x, e):
    return number(0, dy) if e == 0 else dy * (e * _math_power.power(x, e - number(1, e)))


def _power_slope_e(dy, y, x, e):
    return number(0, dy) if x == 0 else dy * (y * _math.log(x))


def _shape(shapes):
    x, e = shapes
    if e.size != 1:
        raise wrong(
            "pow", f"the exponent has {e.size} numbers", shapes, "x of any dims, and one number, (1,)", "exp(cmult(e, log(x)))"
        )
    return Shape(x.dims, common_batch("pow", shapes))


def _reference(x, e):
    return x ** e.reshape(*(1,) * (x.ndim - 1), e.shape[-1])


def _samples(choose):
    batch = choose.batch()
    x = Tensor(Shape(choose.dims(), batch if choose.integer(0, 2) else 1), 0.3, 2.5)
    return Sample((x, Tensor(Shape((1,), batch if choose.integer(0, 2) else 1), -2.0, 3.0)))


POW = elementwise(
    "pow",
    __doc__,
    _power,
    [_power_slope_x, _power_slope_e],
    reference=_reference,
    samples=_samples,
    shape=_shape,
    shapes="any, (1,) -> as x",
    path=__file__,
)

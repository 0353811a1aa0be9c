"""Powers: of x with one exponent for each element of the minibatch (`pow`), and of a number with any exponents (`rpow`)."""

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
    "xᵉ with one exponent e for each element of the minibatch.    dx += dy e xᵉ⁻¹    de += Σ dy xᵉ ln x (0 for x = 0)",
    _power,
    [_power_slope_x, _power_slope_e],
    reference=_reference,
    samples=_samples,
    shape=_shape,
    shapes="any, (1,) -> as x",
    path=__file__,
)
RPOW = elementwise(
    "rpow",
    "cᵉ for a number c.    de += dy cᵉ ln c (0 for c = 0)",
    _power,
    [None, _power_slope_e],
    reference=lambda c, e: c**e,
    samples=lambda choose: Sample((choose.one_of([0.5, 2.0, 3.5]), Tensor(Shape(choose.dims(), choose.batch())))),
    shape=lambda shapes: shapes[1],
    shapes="number, any -> any",
    path=__file__,
)

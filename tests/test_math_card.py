"""Functions written for a card (`_math_card.py`), compiled for the processor: errors, huge angles, ends of the range."""

import math

import numba
import numpy as np
import pytest
from test_math import digamma

from autobatch.kernels import _math_card, _math_words
from autobatch.kernels._math_words import WORDS

TYPES = [np.float32, np.float64]


def applied(function, x):
    @numba.njit(error_model="numpy")
    def loop(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    y = np.empty_like(x)
    loop(x, y)
    return y


def angles(dtype):
    """Angles of all sizes, and those next to multiples of π/2."""
    rng = np.random.default_rng(3)
    top = np.finfo(dtype).maxexp
    sizes = np.ldexp(rng.uniform(0.5, 1, 20000), rng.integers(-40, top + 1, 20000))
    near = rng.integers(1, 2**20, 5000) * (math.pi / 2)
    x = np.concatenate([sizes, near, [2.0**17, 2.0**30, 0.5, math.pi / 4]]).astype(dtype)
    return x * rng.choice(np.array([-1, 1], dtype), x.size)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("name", "ulp"), [("sin", 2.8), ("cos", 2.8), ("tan", 3.8)])
def test_functions_of_angles_are_right_for_any_angle(name, ulp, dtype):
    """The truth is the C library's, in float64: its own error is below 0.6 ulp."""
    x = angles(dtype)
    got = applied(getattr(_math_card, name), x)
    truth = np.array([getattr(math, name)(float(v)) for v in x])
    step = np.spacing(np.abs(truth).astype(dtype)).astype(np.float64)
    assert (np.abs(got - truth) / step).max() < ulp


def test_the_number_next_to_a_multiple_of_a_right_angle():
    """Of all float64 numbers it is the nearest to one: 61 bits of its quotient are 0; the C library loses three digits."""
    x = np.array([6381956970095103 * 2.0**797])
    np.testing.assert_allclose(applied(_math_card.cos, x), -4.6871659242546276e-19, rtol=3e-16)
    np.testing.assert_allclose(applied(_math_card.sin, -x), -1, rtol=1e-15)


@pytest.mark.parametrize("dtype", TYPES)
def test_functions_of_angles_at_the_ends(dtype):
    ends = np.array([math.inf, -math.inf, math.nan], dtype)
    for name in ("sin", "cos", "tan"):
        assert np.isnan(applied(getattr(_math_card, name), ends)).all()


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 1e-6), (np.float64, 3e-15)])
def test_digamma(dtype, most):
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.uniform(-20, 20, 8000), rng.uniform(0.1, 3, 4000), 2.0 ** rng.uniform(-20, 30, 2000)]).astype(dtype)
    with np.errstate(all="ignore"):
        truth = digamma(x).astype(np.float64)
    error = np.abs(applied(_math_card.digamma, x) - truth) / np.maximum(1, np.abs(truth))
    assert error.max() < most
    ends = applied(_math_card.digamma, np.array([math.inf, -math.inf, math.nan, 0.0, -0.0, -1.0, -7.0], dtype))
    np.testing.assert_array_equal(
        ends, np.array([math.inf, math.nan, math.nan, -math.inf, math.inf, math.nan, math.nan], dtype)
    )


@pytest.mark.parametrize("dtype", TYPES)
def test_words_of_arithmetic_are_the_same_in_python(dtype):
    rng = np.random.default_rng(5)
    x = np.ldexp(rng.uniform(0.5, 1, 50), rng.integers(-8, 3, 50)).astype(dtype)
    words = {word.compiled: word.plain for word in WORDS}
    for compiled in (_math_words.mantissa, _math_words.exponent, _math_words.below, _math_words.above):
        assert [int(v) for v in map(numba.njit(lambda x, f=compiled: f(x)), x)] == [int(words[compiled](v)) for v in x]
    fused = numba.njit(lambda x, y, z: _math_words.fused(x, y, z))
    for v in x:
        exact = words[_math_words.fused](v, x[0], -v * x[0])
        assert fused(v, x[0], -v * x[0]) == exact
    for compiled in (_math_card._sine, _math_card._far):
        got = [numba.njit(lambda x, f=compiled: f(x))(v) for v in x]
        np.testing.assert_allclose(got, [words[compiled](v) for v in x], rtol=4 * np.finfo(dtype).eps)


def test_upper_half_of_a_product():
    product = numba.njit(lambda x, y: _math_words.upper_product(x, y))
    words = {word.compiled: word.plain for word in WORDS}
    x, y = np.uint64(2**64 - 59), np.uint64(0x9E3779B97F4A7C15)
    assert int(product(x, y)) == int(words[_math_words.upper_product](x, y)) == int(x) * int(y) >> 64

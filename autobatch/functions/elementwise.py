"""Functions of one argument, number by number; and where in a vector the largest number stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autobatch import expression as ex
from autobatch.expression import Expression
from autobatch.kernels._errors import ArgumentError, OperandError
from autobatch.shortcuts import _unary, _with_number

_negate = _unary("negate")
abs = _unary("abs")
acos = _unary("acos")
acosh = _unary("acosh")
asin = _unary("asin")
asinh = _unary("asinh")
atan = _unary("atan")
atanh = _unary("atanh")
cos = _unary("cos")
cosh = _unary("cosh")
cube = _unary("cube")
erf = _unary("erf")
exp = _unary("exp")
lgamma = _unary("lgamma")
log = _unary("log")
log_sigmoid = _unary("log_sigmoid")
logistic = _unary("logistic")
rectify = _unary("rectify")
selu = _unary("selu")
sin = _unary("sin")
sinh = _unary("sinh")
softsign = _unary("softsign")
sqrt = _unary("sqrt")
square = _unary("square")
tan = _unary("tan")
tanh = _unary("tanh")

_elu = _with_number("elu", "alpha")
_silu = _with_number("silu", "beta")


def elu(x: Expression, alpha: float = 1.0) -> Expression:
    """Return x where it is positive, else alpha (eˣ - 1). Nodes with different alphas batch.

    Raises
    ------
    OperandError : alpha is no number.

    Source
    ------
    D.-A. Clevert, T. Unterthiner, S. Hochreiter, Fast and accurate deep network learning by exponential linear units (2016).
    """
    return _elu(x, alpha)


def silu(x: Expression, beta: float = 1.0) -> Expression:
    """Return x / (1 + e^(-beta x)). Nodes with different betas batch. (DyNet: the gradient is wrong unless beta is 1.)

    Raises
    ------
    OperandError : beta is no number.

    Source
    ------
    S. Elfwing, E. Uchibe, K. Doya, Sigmoid-weighted linear units (2017); with beta, P. Ramachandran et al., Searching for
    activation functions (2017).
    """
    return _silu(x, beta)


# Steps: the gradient is what the mode says ----------------------------------------------------------------------------


def _by_mode(name: str) -> dict[Any, Callable[[Expression], Expression]]:
    return {
        "zero_gradient": _unary(name, straight=False),
        "straight_through_gradient": _unary(name, straight=True),
    }


def _function(name: str, modes: dict[Any, Callable[[Expression], Expression]], mode: Any) -> Callable[[Expression], Expression]:
    if not isinstance(mode, str):
        raise OperandError(f"{name}: the gradient mode is {ex.describe(mode)}\n  expected  {' or '.join(map(repr, modes))}")
    if mode not in modes:
        raise ArgumentError(f"{name}: the gradient mode is {mode!r}\n  expected  {' or '.join(map(repr, modes))}")
    return modes[mode]


_ROUND, _CEIL, _FLOOR, _ARGMAX = (_by_mode(name) for name in ("round", "ceil", "floor", "argmax"))


def round(x: Expression, gradient_mode: str) -> Expression:
    """Return the nearest integers, of two the one away from 0.

    Parameters
    ----------
    gradient_mode : "zero_gradient", or "straight_through_gradient", which passes the gradient on as if nothing were rounded.

    Raises
    ------
    ArgumentError : another mode.

    Source
    ------
    Y. Bengio, N. Léonard, A. Courville, Estimating or propagating gradients through stochastic neurons (2013), for the second
    mode. (DyNet: "zero_gradient" often passes the gradient.)
    """
    return _function("round", _ROUND, gradient_mode)(x)


def ceil(x: Expression, gradient_mode: str) -> Expression:
    """Return the smallest integers that are not below the numbers of x. Modes and errors as of `round`."""
    return _function("ceil", _CEIL, gradient_mode)(x)


def floor(x: Expression, gradient_mode: str) -> Expression:
    """Return the largest integers that are not above the numbers of x. Modes and errors as of `round`."""
    return _function("floor", _FLOOR, gradient_mode)(x)


def argmax(x: Expression, gradient_mode: str) -> Expression:
    """Return a vector that is 1 where the largest number of the vector x stands (the first of them, or a NaN), 0 elsewhere.

    Modes as of `round`.

    Raises
    ------
    ShapeError : x is no vector.
    ArgumentError : another mode.
    """
    return _function("argmax", _ARGMAX, gradient_mode)(x)

"""The functions of `_math.py` and its like on a card: those of CUDA's own library, in the dtype of their argument, or ours.

Errors of CUDA's functions (CUDA C++ Programming Guide, table of errors of single and double precision functions): at most 2 ulp
for those used here, `lgamma` at most 6 outside of (-10.001, -2.264), `pow` 4 ulp in float32. `_math_card.py` has the others.
"""

from __future__ import annotations

import math
from typing import Any

from autobatch.kernels import (
    _math,
    _math_card,
    _math_hyperbolic,
    _math_power,
    _math_special,
    _math_trigonometric,
    _math_words,
    _update,
)
from autobatch.kernels._cuda import numba_cuda
from autobatch.kernels._cuda_words import number

cuda = numba_cuda()

from numba.cuda import types  # noqa: E402
from numba.cuda.extending import intrinsic  # noqa: E402


def _one_argument(name: str) -> Any:
    function = getattr(math, name)

    @cuda.jit(device=True)
    def called(x):
        return function(x)

    return called


_BY_NAME = {
    _math: "exp expm1 log log1p sqrt tanh",
    _math_hyperbolic: "sinh cosh asinh acosh atanh",
    _math_special: "erf",
    _math_trigonometric: "asin acos atan",
}


@cuda.jit(device=True)
def logistic(x):
    """1 / (1 + e⁻ˣ)."""
    return number(1, x) / (number(1, x) + math.exp(-x))


@cuda.jit(device=True)
def softplus(x):
    """log(1 + eˣ)."""
    return (x if x > 0 else number(0, x)) + math.log1p(math.exp(-abs(x)))


@cuda.jit(device=True)
def logsigmoid(x):
    """-log(1 + e⁻ˣ)."""
    return -softplus(-x)


@cuda.jit(device=True)
def lgamma(x):
    """log |Γ(x)|, -inf at -inf."""
    return x if x == -math.inf else math.lgamma(x)


@cuda.jit(device=True)
def with_sign(x, y):
    """|x| with the sign of y."""
    return math.copysign(x, y)


@cuda.jit(device=True)
def power(x, y):
    """xʸ; the rules of ISO C are those of CUDA's too."""
    if y == number(2, y):
        return x * x
    if y == number(1, y):
        return x
    if y == number(-1, y):
        return number(1, x) / x
    return math.pow(x, y)


def instead() -> dict[Any, Any]:
    """Return what takes the place of functions, written in the words of kernels."""
    found = {getattr(_math_trigonometric, name): getattr(_math_card, name) for name in ("sin", "cos", "tan")}
    return {**found, _math_special.digamma: _math_card.digamma, **_update.ON_CARD}


def twins() -> dict[Any, Any]:
    """Return what takes the place of each function."""
    words = {word.compiled: word.make(intrinsic, types) for word in _math_words.WORDS}
    own = {_math.floor: words[_math_words.below], _math.ceil: words[_math_words.above], _math.with_sign: with_sign}
    own |= {_math_power.power: power, _math_special.lgamma: lgamma}
    found = {getattr(module, name): _one_argument(name) for module, names in _BY_NAME.items() for name in names.split()}
    return {**words, **own, **found, _math.logistic: logistic, _math.softplus: softplus, _math.logsigmoid: logsigmoid}

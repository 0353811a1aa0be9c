"""The functions of `_math.py` and its like on a card: those of CUDA's own library, in the dtype of their argument.

Errors of CUDA's functions (CUDA C++ Programming Guide, table of errors of single and double precision functions): at most 2 ulp
for those used here, `lgamma` at most 6 outside of (-10.001, -2.264), `pow` 4 ulp in float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from autobatch.kernels import _math, _math_hyperbolic, _math_special
from autobatch.kernels._cuda import numba_cuda
from autobatch.kernels._cuda_words import number

cuda = numba_cuda()


def _one_argument(name: str) -> Any:
    function = getattr(math, name)

    @cuda.jit(device=True)
    def called(x):
        return function(x)

    return called


_BY_NAME = {
    _math: "exp expm1 log log1p sqrt tanh",
    _math_hyperbolic: "sinh cosh asinh acosh atanh",
    _math_special: "erf lgamma",
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


def twins() -> dict[Any, Any]:
    """Return what takes the place of each function."""
    found = {getattr(module, name): _one_argument(name) for module, names in _BY_NAME.items() for name in names.split()}
    return {**found, _math.logistic: logistic, _math.softplus: softplus, _math.logsigmoid: logsigmoid}

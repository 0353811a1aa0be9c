"""Functions of one argument, number by number."""

from __future__ import annotations

from autobatch.shortcuts import _unary

_negate = _unary("negate")
tanh = _unary("tanh")
logistic = _unary("logistic")
rectify = _unary("rectify")
exp = _unary("exp")
log = _unary("log")
sqrt = _unary("sqrt")
square = _unary("square")

"""What passes a value on as it is, and its gradient changed or not at all."""

from __future__ import annotations

from autobatch.arguments import _shape
from autobatch.expression import Expression, check_expression, view
from autobatch.shortcuts import _unary, _with_number


def nobackprop(x: Expression) -> Expression:
    """Return x as a node that passes no gradient back."""
    check_expression("nobackprop", x)
    return view("nobackprop", x, _shape(x), stop=True)


flip_gradient = _unary("flip_gradient")
_scale = _with_number("scale_gradient", "lambd")


def scale_gradient(x: Expression, lambd: float = 1.0) -> Expression:
    """Return x as a node that passes its gradient back times `lambd`.

    Raises
    ------
    OperandError : lambd is no number.
    """
    return _scale(x, lambd)

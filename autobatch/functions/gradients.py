"""What passes a value on as it is, and its gradient changed or not at all."""

from __future__ import annotations

from autobatch.arguments import _shape
from autobatch.expression import Expression, check_expression, view


def nobackprop(x: Expression) -> Expression:
    """Return x as a node that passes no gradient back."""
    check_expression("nobackprop", x)
    return view("nobackprop", x, _shape(x), stop=True)

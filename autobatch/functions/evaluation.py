"""Several expressions computed in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from autobatch import expression as ex
from autobatch.expression import Expression, check_expression, owner
from autobatch.kernels._errors import IndexRangeError, OperandError


def _newest(name: str, exprs: Any) -> list[Expression]:
    if not isinstance(exprs, list):
        raise OperandError(f"{name}: {ex.describe(exprs)}\n  expected  a list of expressions")
    if not exprs:
        raise IndexRangeError(f"{name}: the list of expressions is empty")
    for k, e in enumerate(exprs, 1):
        check_expression(name, e, k)
    return exprs


def forward(exps: list[Expression], recalculate: bool = False) -> None:
    """Compute all expressions of a list in one pass."""
    _forward("forward", exps, recalculate)


def _forward(name: str, exprs: Any, recalculate: bool) -> None:
    expressions = _newest(name, exprs)
    owner(name, expressions)
    newest = max(expressions, key=lambda e: e.index)
    newest._ready(recalculate, [e.index for e in expressions if e.index >= 0])


def values(exps: list[Expression], recalculate: bool = False) -> list[Any]:
    """Compute all expressions of a list in one pass; return the `value()` of each."""
    _forward("values", exps, recalculate)
    return [e.value() for e in exps]


def npvalues(exps: list[Expression], recalculate: bool = False) -> list[np.ndarray]:
    """Compute all expressions of a list in one pass; return the `npvalue()` of each."""
    _forward("npvalues", exps, recalculate)
    return [e.npvalue() for e in exps]

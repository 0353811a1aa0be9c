"""Parameters and rows of look-up tables as nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autobatch import expression as ex
from autobatch.expression import Expression
from autobatch.functions.gradients import nobackprop
from autobatch.graph import _THREAD
from autobatch.kernels._errors import OperandError
from autobatch.params import LookupParameters, Storage
from autobatch.params.storage import LookupExpression
from autobatch.recorder import short


def parameter(*parameters: Any) -> Any:
    """Return its argument, or a tuple of them: parameters are expressions. (DyNet 1 needed this call.)"""
    return parameters[0] if len(parameters) == 1 else parameters


def const_parameter(*parameters: Any) -> Any:
    """Return parameters as constants that do not train. (DyNet: deprecated; ``p.expr(update=False)``.)"""
    constants = [p.expr(update=False) if isinstance(p, Storage) else nobackprop(p) for p in parameters]
    return constants[0] if len(constants) == 1 else constants


def _table(op: str, p: Any) -> LookupParameters:
    if not isinstance(p, LookupParameters):
        raise OperandError(f"{op}: {ex.describe(p)}\n  expected  LookupParameters")
    return p


def lookup(p: LookupParameters, index: int = 0, update: bool = True) -> Expression:
    """Return one row of a table, of the dims of a row. No copy is made: the node is a view of the table.

    Parameters
    ----------
    index : row, from 0.
    update : whether the row trains.

    Raises
    ------
    ArgumentError : out of range; NegativeIndexError for a negative index.
    """
    if update is True and type(p) is LookupParameters:
        return p[index]
    return _table("lookup", p).row(index, bool(update))


lookup = short("row", lookup, LookupParameters, _THREAD, LookupExpression)


def lookup_batch(p: LookupParameters, indices: Sequence[int], update: bool = True) -> Expression:
    """Return several rows of a table as one minibatch."""
    return _table("lookup_batch", p).batch(indices, bool(update))

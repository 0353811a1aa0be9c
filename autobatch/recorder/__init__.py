"""Short ways to record a node: in C where the package was installed with a compiler at hand, else in Python alone.

Functions that record put a *way* before themselves: a few lines of C that find the node type of a call in the same dicts,
append to the same lists, and hand everything they do not know to the function itself. See `_recorder.c`.

    tanh = short("unary", tanh, table)

Without the C module (no compiler, another version of it, or ``AUTOBATCH_RECORDER=python`` in the environment) `short` returns
the function, and what is recorded is the same, node for node.
"""

from __future__ import annotations

import functools
import os
import types
import warnings
from collections.abc import Callable, Iterable, Set
from typing import Any, TypeVar

VERSION = 1  # of `_recorder.c`

Function = TypeVar("Function", bound=Callable[..., Any])


def _load() -> Any:
    if os.environ.get("AUTOBATCH_RECORDER", "").lower() == "python":
        return None
    try:
        from autobatch.recorder import _recorder
    except ImportError:
        return None
    if _recorder.VERSION != VERSION:
        warnings.warn(
            "autobatch: the compiled recorder is of another version, and recording goes on without it, more slowly"
            "\n  try       installing again",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return _recorder


native: Any = _load()  # the module in C; None where there is none
LANGUAGE = "Python" if native is None else "C"  # that short ways are in
FUNCTIONS = (types.FunctionType,) if native is None else (types.FunctionType, native.function)  # what operations are


def short(way: str, function: Function, table: Any, more: Any = None, kind: type | None = None) -> Function:
    """Put a way in C before a function, which is `__wrapped__` of what is returned; without C return the function.

    Parameters
    ----------
    way : its name, as in `_recorder.c`, where it is told what `table` and `more` are.
    kind : class of the expressions that the function returns; None: `Node`.
    """
    if native is None:
        return function
    made: Any = functools.update_wrapper(native.short(way, function, table, more, kind), function)
    return made  # type: ignore[no-any-return]


def nodes(kind: type, graph: Any, indices: Iterable[int], number: int) -> list[Any]:
    """Return expressions (of class `kind`) of nodes of one type, `number`."""
    made = []
    for index in indices:
        e = kind()
        e.graph = graph
        e.index = index
        e.type = number
        made.append(e)
    return made


def indices(es: list[Any], graph: Any, types: Set[int]) -> list[int] | None:
    """Return the indices of expressions; None unless all are of this graph, and of one of these types."""
    try:
        found = [e.index for e in es if e.type in types and e.graph is graph]
    except AttributeError:
        return None
    return found if len(found) == len(es) else None


if native is not None:
    nodes, indices = native.nodes, native.indices


__all__ = ["FUNCTIONS", "LANGUAGE", "indices", "native", "nodes", "short"]

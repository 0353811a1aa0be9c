"""The current graph as text and as a picture, in the language of Graphviz."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from autobatch import background
from autobatch.expression import Expression, describe
from autobatch.files import path_of
from autobatch.graph import BACK, IMMEDIATES, INPUT, OP, RECORDED, ROW, STOP, TYPES, Graph, current_graph
from autobatch.kernels._errors import ArgumentError, OperandError
from autobatch.params import LookupParameters, Parameters

_KINDS = {INPUT: "input", ROW: "lookup", STOP: "nobackprop"}


def _nodes(graph: Graph) -> list[tuple[int, Any, list[int], list[int]]]:
    """Return (number, record of the type, arguments, immediates) of each node."""
    nodes, at, args = [], 0, graph.all_args()
    for index, number in enumerate(graph.recorded_types):
        record = TYPES.records[number]
        arguments, immediates = int(TYPES.info[number, RECORDED]), int(TYPES.info[number, IMMEDIATES])
        entries = args[at : at + arguments + immediates]
        typed = [p for p in record.parameters if p] if arguments < len(record.shapes) else []
        if TYPES.info[number, BACK]:
            typed = [index - int(TYPES.info[number, BACK])]
        nodes.append((index, record, entries[:arguments] + typed, entries[arguments:]))
        at += arguments + immediates
    return nodes


def _name(record: Any) -> str:
    return record.op.name if record.kind == OP else _KINDS.get(record.kind, "view")


def graphviz_lines(
    show_dims: bool = True,
    expression_names: Mapping[Expression, str] | None = None,
    compact: bool = False,
) -> list[str]:
    """Return the graph in the language of Graphviz."""
    graph = current_graph()
    names = {e.index: str(n) for e, n in (expression_names or {}).items()}
    parameters = {e.index: e for e in graph.parameters if isinstance(e, Expression)}
    lines = ["digraph G {", "  rankdir=BT;", "  nodesep=.05;" if compact else "  nodesep=.25;"]
    seen: dict[int, None] = {}
    for index, record, arguments, _ in _nodes(graph):
        label = names.get(index, _name(record)) + (f" {record.shape}" if show_dims else "")
        lines.append(f'  N{index} [label="{_quoted(label)}"];')
        for a in arguments:
            lines.append(f"  {f'N{a}' if a >= 0 else f'P{-a}'} -> N{index};")
            if a < 0:
                seen[a] = None
    for a in seen:
        p: Any = parameters.get(a)
        label = p.name() if isinstance(p, (Parameters, LookupParameters)) else "constant"
        lines.append(f'  P{-a} [label="{_quoted(label)}", shape=box];')
    return [*lines, "}"]


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def print_text_graphviz() -> None:
    """Write the current graph to stderr in the language of Graphviz."""
    print("\n".join(graphviz_lines()), file=sys.stderr)


def print_graphviz(
    compact: bool = False,
    show_dims: bool = True,
    expression_names: Mapping[Expression, str] | None = None,
    lookup_names: Mapping[Any, Any] | None = None,
    collapse_birnns: bool = False,
) -> Any:
    """Return a drawing of the current graph, which a notebook shows; ``.render(name)`` writes it to a file.

    Parameters
    ----------
    compact : less space between nodes.
    show_dims : whether nodes show their dims.
    expression_names : names of expressions, in place of those of their operations.
    lookup_names, collapse_birnns : without meaning here (as in DyNet without ``--dynet-viz``).

    Raises
    ------
    ImportError : the package graphviz is missing.
    """
    if expression_names is not None and not isinstance(expression_names, Mapping):
        raise ArgumentError("print_graphviz: expression_names is no dict\n  expected  a dict from expressions to names")
    for e in expression_names or ():
        if not isinstance(e, Expression):
            raise OperandError(f"print_graphviz: {describe(e)} has a name\n  expected  a dict from expressions to names")
    try:
        import graphviz
    except ImportError:
        raise ImportError(
            "drawings need the package graphviz\n  try       pip install autobatch-numba[graphviz]; or print_text_graphviz()"
        ) from None
    return graphviz.Source("\n".join(graphviz_lines(show_dims, expression_names, compact)))


def dump_cg(filename: str = "", show_values: bool = True, show_gradients: bool = True, nan_check_only: bool = False) -> None:
    """Write all nodes of the current graph as text, to a file or to stdout.

    Parameters
    ----------
    filename : "" is stdout.
    show_values : with the values of the nodes that have been computed.
    show_gradients : with their gradients, after `backward`.
    nan_check_only : in place of the numbers say only which nodes hold NaN or infinity.
    """
    path = path_of("dump_cg", filename)
    background.wait()
    graph = current_graph()
    execution, lines = graph.execution, []
    for index, record, arguments, immediates in _nodes(graph):
        text = f"N{index} {_name(record)} {record.shape} of ({', '.join(map(str, arguments))})"
        text += f" [{', '.join(map(str, immediates))}]" if immediates and record.kind == OP else ""
        if execution is not None and index < execution.done:
            e = object.__new__(Expression)
            e.graph, e.index, e.type = graph.top, index, graph.recorded_types[index]
            arrays = {"value": e.npvalue()} if show_values or nan_check_only else {}
            if (show_gradients or nan_check_only) and execution.backward is not None:
                try:
                    arrays["gradient"] = e.gradient()
                except RuntimeError:  # made after the node that backward ran on
                    pass
            for what, array in arrays.items():
                if not nan_check_only:
                    text += f"\n  {what} {np.array2string(array, threshold=50)}".replace("\n", "\n  ")
                elif not np.isfinite(array).all():
                    text += f"\n  {what} holds NaN or infinity"
        lines.append(text)
    if path:
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    else:
        print("\n".join(lines))


__all__ = ["dump_cg", "print_graphviz", "print_text_graphviz"]

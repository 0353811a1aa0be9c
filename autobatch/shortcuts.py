"""The short way to record a node of a kind seen before: look its type up by the types of the arguments, append, done.

The first exception on it leads to `expression.record`, which checks everything and either raises a clear error or records the
node and remembers its type. A dropped graph has no lists to append to, so staleness costs no test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autobatch.arguments import _list
from autobatch.expression import Expression, as_float, check_expression, record
from autobatch.kernels._op import OPS, Op

_new = object.__new__


def _unary(name: str, op_name: str | None = None, **attributes: Any) -> Callable[[Expression], Expression]:
    op = OPS[op_name or name]
    path = tuple(sorted(attributes.items()))
    table = op.types.setdefault(path, {}) if path else op.types

    def function(x: Expression) -> Expression:
        try:
            graph = x.graph
            types = graph.types
            number = table[x.type]
            index = len(types)
            types.append(number)
            graph.args.append(x.index)
        except (AttributeError, KeyError, TypeError):
            check_expression(name, x)
            return record(op, (x,), attributes, key=(path, x.type) if path else (x.type,))
        e = _new(Expression)
        e.graph = graph
        e.index = index
        e.type = number
        return e

    return _named(function, name, op)


def _binary(name: str, op_name: str | None = None) -> Callable[[Any, Any], Expression]:
    op = OPS[op_name or name]
    table = op.types

    def function(x: Any, y: Any) -> Expression:
        try:
            graph = x.graph
            if y.graph is not graph:
                if graph is None:
                    graph = y.graph
                    if x not in graph.parameters:
                        graph.enter(x)
                elif y.graph is not None:
                    raise KeyError
                elif y not in graph.parameters:
                    graph.enter(y)
            types = graph.types
            number = table[x.type][y.type]
            index = len(types)
            types.append(number)
            args = graph.args
            args.append(x.index)
            args.append(y.index)
        except (AttributeError, KeyError, TypeError):
            if isinstance(x, Expression) and isinstance(y, Expression):
                return record(op, (x, y), key=(x.type, y.type))
            return record(op, (x, y))
        e = _new(Expression)
        e.graph = graph
        e.index = index
        e.type = number
        return e

    return _named(function, name, op)


def _with_number(name: str, parameter: str) -> Callable[[Expression, Any], Expression]:
    """Make a function of an expression and a number, which becomes an input that nodes of a graph share."""
    op = OPS[name]
    table = op.types

    def function(x: Expression, number: Any) -> Expression:
        try:
            graph = x.graph
            types = graph.types
            node_type, place = table[x.type], graph.numbers[number]
            index = len(types)
            types.append(node_type)
            args = graph.args
            args.append(x.index)
            args.append(place)
        except (AttributeError, KeyError, TypeError):
            check_expression(name, x)
            return record(op, (x, as_float(name, parameter, number)), key=(x.type,))
        e = _new(Expression)
        e.graph = graph
        e.index = index
        e.type = node_type
        return e

    return function


def _named(function: Any, name: str, op: Op) -> Any:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = op.doc
    return function


def _nary(op: Op, arguments: Any, table: dict[Any, Any], attributes: dict[str, Any] | None = None) -> Expression:
    """Record an op of a list of arguments, the short way if their types were seen together before.

    `table` remembers, for the types of the arguments, the node type and which arguments are parameters and which are not.
    """
    try:
        if arguments.__class__ is not list:  # to go through an expression would record its parts
            raise KeyError
        number, parameters, others = table[tuple([e.type for e in arguments])]
        graph = arguments[others[0]].graph
        for k in others:
            if arguments[k].graph is not graph:
                raise KeyError
        for k in parameters:
            if arguments[k] not in graph.parameters:
                graph.enter(arguments[k])
        types = graph.types
        index = len(types)
        types.append(number)
        graph.args += [e.index for e in arguments]
    except (AttributeError, KeyError, TypeError, IndexError):
        checked = _list(op.name, arguments)
        e = record(op, checked, attributes)
        others = tuple(k for k, a in enumerate(checked) if a.graph is not None)
        if others:
            parameters = tuple(k for k, a in enumerate(checked) if a.graph is None)
            table[tuple([a.type for a in checked])] = e.type, parameters, others
        return e
    e = _new(Expression)
    e.graph = graph
    e.index = index
    e.type = number
    return e


def _attributed(op: Op, x: Any, key: Any, n: int | None = None) -> Expression | None:
    """Append a node of one argument whose type `op.types` remembers under a key and the type of x; None if it does not.

    With n the type is kept under the key, whether n is a second argument (not if it is 0), and the type of x.
    """
    try:
        graph = x.graph
        types = graph.types
        entries: tuple[int, ...] = (x.index,)
        if n is None:
            number = op.types[key][x.type]
        elif n:
            number = op.types[key][True][x.type]
            entries = (x.index, graph.numbers[n])
        else:
            number = op.types[key][False][x.type]
        args = graph.args
        index = len(types)
        types.append(number)
        args += entries
    except (AttributeError, KeyError, TypeError):
        return None
    e = _new(Expression)
    e.graph = graph
    e.index = index
    e.type = number
    return e


def _part(x: Any, number: int, start: int, kind: type[Expression] = Expression) -> Expression:
    """Append a node of one argument and one immediate whose type is known; x must not be a parameter."""
    graph = x.graph
    types = graph.types
    index = len(types)
    types.append(number)
    args = graph.args
    args.append(x.index)
    args.append(start)
    e: Expression = _new(kind)
    e.graph = graph
    e.index = index
    e.type = number
    return e

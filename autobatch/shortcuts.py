"""The short way to record a node of a kind seen before: look its type up by the types of the arguments, append, done.

The first exception on it leads to `expression.record`, which checks everything and either raises a clear error or records the
node and remembers its type. A dropped graph has no lists to append to, so staleness costs no test.

The same lines stand in several places here, because a call to share them takes a fifth of the time of a node. For the same
reason there is no list comprehension (200 ns) for a short list, and dicts of dicts are keyed by one type each: a tuple of two
as key takes as long as three look-ups.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from autobatch.arguments import _list
from autobatch.expression import Expression, Node, as_float, check_expression, record, remember
from autobatch.kernels._op import OPS, Op
from autobatch.recorder import short

Function = TypeVar("Function", bound=Callable[..., Expression])


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
        e = Node()
        e.graph = graph
        e.index = index
        e.type = number
        return e

    return short("unary", _named(function, name, op), table)


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
        e = Node()
        e.graph = graph
        e.index = index
        e.type = number
        return e

    return short("binary", _named(function, name, op), table)


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
        e = Node()
        e.graph = graph
        e.index = index
        e.type = node_type
        return e

    return short("with_number", function, table)


def _named(function: Any, name: str, op: Op) -> Any:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = op.doc
    return function


def _of_dim(name: str) -> Callable[[Function], Function]:
    """Put the short way before a function ``f(x, d)`` of an op whose attribute is an integer: `op.types[d][x.type]`."""
    table = OPS[name].types

    def before(long_way: Function) -> Function:
        @functools.wraps(long_way)
        def function(x: Any, d: int = 0) -> Expression:
            try:
                if type(d) is not int:
                    raise KeyError
                graph = x.graph
                types = graph.types
                number = table[d][x.type]
                index = len(types)
                types.append(number)
                graph.args.append(x.index)
            except (AttributeError, KeyError, TypeError):
                return long_way(x, d)
            e = Node()
            e.graph = graph
            e.index = index
            e.type = number
            return e

        defaults = function.__defaults__ = long_way.__defaults__  # type: ignore[attr-defined]
        return short("of_dim", function, table, defaults and defaults[0])  # type: ignore[return-value]

    return before


# Lists of arguments ---------------------------------------------------------------------------------------------------


def _of_list(op: Op, table: dict[Any, Any]) -> Callable[[Function], Function]:
    """Put the short way before a function of a list, ``f(xs)``, whose types `_nary` remembers.

    Lists of two to four have a path of their own; longer ones (and of one) are taken if all types in them are the same, and no
    parameter is among them.
    """
    two, three, four, alike = (table.setdefault(n, {}) for n in (2, 3, 4, "alike"))

    def before(long_way: Function) -> Function:
        @functools.wraps(long_way)
        def function(xs: Any) -> Expression:
            try:
                if type(xs) is not list:  # to go through an expression would record its parts
                    raise KeyError
                n = len(xs)
                if n == 2:
                    a, b = xs
                    graph = a.graph
                    if b.graph is not graph:
                        mixed = _mixed(two, xs)
                        return long_way(xs) if mixed is None else mixed
                    types = graph.types
                    number = two[a.type][b.type]
                    index = len(types)
                    types.append(number)
                    args = graph.args
                    args.append(a.index)
                    args.append(b.index)
                elif n == 3:
                    a, b, c = xs
                    graph = a.graph
                    if b.graph is not graph or c.graph is not graph:
                        mixed = _mixed(three, xs)
                        return long_way(xs) if mixed is None else mixed
                    types = graph.types
                    number = three[a.type][b.type][c.type]
                    index = len(types)
                    types.append(number)
                    args = graph.args
                    args += (a.index, b.index, c.index)
                elif n == 4:
                    a, b, c, d = xs
                    graph = a.graph
                    if b.graph is not graph or c.graph is not graph or d.graph is not graph:
                        mixed = _mixed(four, xs)
                        return long_way(xs) if mixed is None else mixed
                    types = graph.types
                    number = four[a.type][b.type][c.type][d.type]
                    index = len(types)
                    types.append(number)
                    args = graph.args
                    args += (a.index, b.index, c.index, d.index)
                else:
                    a = xs[0]
                    graph, kind = a.graph, a.type
                    types, args = graph.types, graph.args
                    number = alike[kind][n]
                    entries = [e.index for e in xs if e.type == kind and e.graph is graph]
                    if len(entries) != n:
                        raise KeyError
                    index = len(types)
                    types.append(number)
                    args += entries
            except (AttributeError, KeyError, TypeError, IndexError):
                return long_way(xs)
            e = Node()
            e.graph = graph
            e.index = index
            e.type = number
            return e

        return short("of_list", function, table, alike)  # type: ignore[return-value]

    return before


def _mixed(table: dict[Any, Any], xs: list[Any]) -> Expression | None:
    """Append a node of a list among which parameters are, if its types are known; None if not, or if the graphs differ."""
    graph: Any = None
    found: Any = table
    entries, parameters = [], []
    try:
        for e in xs:
            found = found[e.type]
            entries.append(e.index)
            own = e.graph
            if own is None:
                parameters.append(e)
            elif own is not graph:
                if graph is not None:
                    return None
                graph = own
        types, args, known = graph.types, graph.args, graph.parameters
        for e in parameters:
            if e not in known:
                graph.enter(e)
        index = len(types)
        types.append(found)
    except (AttributeError, KeyError, TypeError):
        return None
    args += entries
    e = Node()
    e.graph = graph
    e.index = index
    e.type = found
    return e


def _nary(op: Op, arguments: Any, table: dict[Any, Any], attributes: dict[str, Any] | None = None) -> Expression:
    """Record an op of a list of arguments, the short way if their types were seen together before.

    `table` remembers, for the types of the arguments, the node type and which arguments are parameters and which are not; and
    what `_of_list` needs.
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
        kinds = [a.type for a in checked]
        others = tuple(k for k, a in enumerate(checked) if a.graph is not None)
        if others:
            parameters = tuple(k for k, a in enumerate(checked) if a.graph is None)
            table[tuple(kinds)] = e.type, parameters, others
            if 2 <= len(kinds) <= 4:
                remember(table, [len(kinds), *kinds], e.type)
            elif not parameters and len(set(kinds)) == 1:
                remember(table, ["alike", kinds[0], len(kinds)], e.type)
        return e
    e = Node()
    e.graph = graph
    e.index = index
    e.type = number
    return e


# Parts ----------------------------------------------------------------------------------------------------------------


def _attributed(op: Op, x: Any, key: Any) -> Expression | None:
    """Append a node of one argument whose type `op.types` remembers under a key and the type of x; None if it does not."""
    try:
        graph = x.graph
        types = graph.types
        number = op.types[key][x.type]
        index = len(types)
        types.append(number)
        graph.args.append(x.index)
    except (AttributeError, KeyError, TypeError):
        return None
    e = Node()
    e.graph = graph
    e.index = index
    e.type = number
    return e


def _part(x: Any, number: int, start: int, kind: Any = Node) -> Expression:
    """Append a node of one argument and one immediate whose type is known; x must not be a parameter."""
    graph = x.graph
    types = graph.types
    index = len(types)
    types.append(number)
    args = graph.args
    args.append(x.index)
    args.append(start)
    e: Expression = kind()
    e.graph = graph
    e.index = index
    e.type = number
    return e

"""The decorator `cell`: calls of a function that are one node each.

A call looks its signature up by the types of its arguments, appends one node and one part for each output, and is done: in
0.5 µs if all arguments and one or two results are expressions (`_fast_source`), in 2 µs with lists, static arguments or a
`self` (`_Cell.short`). What is unusual (a new signature, an error) goes the long way, `_Cell.call`, of 10 µs.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from autobatch.cell.body import Body, parameter_name
from autobatch.cell.trace import Given, Trace, rebuilt, trace
from autobatch.expression import Expression, Node, append, describe, owner, part_type, remember
from autobatch.graph import OP, TYPES, Graph
from autobatch.kernels._errors import TraceError
from autobatch.kernels._op import Op, Shape
from autobatch.recorder import short

MOST_SIGNATURES = 1000  # of a cell; more are a static argument that ought to be none
NOT_PLAIN, ONE, ROW, NESTED = range(4)  # some of it are arguments; one output; all outputs as a tuple; any other structure
Function = TypeVar("Function", bound=Callable[..., Any])


class Used:
    """The parameters that a signature uses; a key of `graph.kept` once the graph knows them."""

    __slots__ = ("parameters",)

    def __init__(self, parameters: tuple[Any, ...]) -> None:
        self.parameters = parameters

    def enter(self, graph: Graph) -> None:
        """Let a graph take note of them."""
        for parameter in self.parameters:
            graph.enter(parameter)
        graph.kept[self] = True


class Signature(NamedTuple):
    """What calls of one signature record."""

    used: Used
    types: tuple[int, ...]  # of the node and the parts that are its outputs
    result: Any  # what is returned, see `Traced`
    body: Body
    static: list[str]  # arguments that are static, for `explain`
    form: int  # of the result: NOT_PLAIN, ONE, ROW, NESTED


def cell(function: Function) -> Function:
    """Make a function of expressions a cell: its calls are one node each.

    The function is run once for each *signature*, to see which operations it records; every later call of the signature records
    one node. Inside, elementwise operations are fused into loops of their own, products run one after the other over all calls
    of a batch, and what no output needs is left out. Values and gradients are those of the plain function.

    Parameters
    ----------
    function : of expressions, and lists, tuples and dicts of them; all else (numbers, strings, None, objects with a hash) is
        *static*: it belongs to the signature, as do the shapes of the expressions, and parameters that are passed. Parameters
        may also be used from outside (closures, attributes). It returns an expression, or a tuple, list or dict of them.

    Returns
    -------
    The cell, called like the function; ``explain()`` of it returns a text that says what it became.

    Raises
    ------
    TraceError (an ArgumentError) : at a call, if the function asks for a value, looks up a row, makes an input, draws random
        numbers or uses an expression from outside: these would stay those of the first call.

    Notes
    -----
    Numbers that the function takes from elsewhere (an attribute, a global) stay what they were at the first call of a
    signature. A cell that calls a cell is one cell. The gradient() of an output is that of its uses outside of the cell.

    Examples
    --------
    >>> import autobatch as ab
    >>> model = ab.ParameterCollection()
    >>> W, b = model.add_parameters((3, 4)), model.add_parameters((3,))
    >>> @ab.cell
    ... def layer(x):
    ...     return ab.tanh(ab.affine_transform([b, W, x]))
    >>> g = ab.renew_cg()
    >>> layer(ab.inputVector([1.0, 2.0, 3.0, 4.0])).dim()
    ((3,), 1)
    """
    if not callable(function):
        raise TypeError(f"cell: {describe(function)}\n  expected  a function")
    made = _Cell(function)
    return made.fast()  # type: ignore[return-value]


class _Cell:
    """The signatures of one cell."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        try:
            self.signature = inspect.signature(function)
        except ValueError:
            raise TypeError(
                f"cell: {describe(function)}\n  expected  a function in Python: this one does not tell its arguments"
            ) from None
        self.lock = threading.RLock()
        self.plain = False  # whether its arguments are as the shortest way takes them
        self.known: dict[Any, Signature] = {}
        self.by_types: dict[Any, Any] = {}  # of calls with expressions only: what the shortest way needs, nested by their types
        self.by_key: dict[Any, Signature] = {}  # of all other calls: by what `_scan` makes of the arguments

    def fast(self) -> Callable[..., Any]:
        """Return the function that users call."""
        parameters = list(self.signature.parameters.values())
        plain = all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty and p.name[0] != "_" for p in parameters)
        self.plain = plain and bool(parameters)
        if not self.plain:

            def function(*args: Any, **named: Any) -> Any:
                return self.short(args, named)
        else:
            scope: dict[str, Any] = {"_table": self.by_types, "_slow": self.short, "_E": Node}
            exec(_fast_source([p.name for p in parameters]), scope)
            function = scope["call"]
        functools.update_wrapper(function, self.function)
        if self.plain:
            function = short("cell", function, self.by_types, len(parameters))
        function.explain = self.explain  # type: ignore[attr-defined]
        return function

    def short(self, args: Sequence[Any], named: dict[str, Any]) -> Any:
        """Record a call whose arguments were seen before."""
        key: list[Any] = []
        entries: list[int] = []
        try:
            graph = _scan(args, key, entries, None)
            if named:
                key += named
                graph = _scan(named.values(), key, entries, graph)
            signature = self.by_key[tuple(key)]
            types = graph.types
            if types is not None and signature.used not in graph.kept:
                signature.used.enter(graph)
            index = len(types)
            types += signature.types
            args_of_graph = graph.args
        except (AttributeError, KeyError, TypeError):
            return self.call(args, named, tuple(key) if entries else None)
        outputs = []
        for k, number in enumerate(signature.types[1:], 1):
            e = Node()
            e.graph, e.index, e.type = graph, index + k, number
            outputs.append(e)
        args_of_graph += entries
        if signature.form == ROW:
            return tuple(outputs)
        return outputs[0] if signature.form == ONE else rebuilt(signature.result, outputs.__getitem__)

    def call(self, args: Sequence[Any], named: dict[str, Any], short: Any = None) -> Any:
        """Record a call, the long way; `short` is the key of the short one."""
        bound = self.signature.bind(*args, **named)
        bound.apply_defaults()
        expressions: list[Expression] = []
        key = tuple([self._flatten(value, name, expressions) for name, value in bound.arguments.items()])
        graph = owner(f"cell {self.name}", expressions)
        if isinstance(graph, Trace):
            return self.function(*args, **named)
        shapes = tuple(TYPES.records[e.type].shape for e in expressions)
        signature = self.known.get((key, shapes))
        if signature is None:
            with self.lock, graph.attempt():
                signature = self.known.get((key, shapes))
                if signature is None:
                    signature = self._trace(bound, shapes, graph)
                    self.known[key, shapes] = signature
        if signature.used not in graph.kept:
            signature.used.enter(graph)
        nodes = len(graph.recorded_types)
        outputs: list[Expression] = []
        try:
            if len(signature.types) == 1:  # it returns nothing but arguments and parameters
                return rebuilt(signature.result, lambda part: _output(part, outputs, expressions))
            append(graph, signature.types[0], [e.index for e in expressions])
            outputs = [append(graph, t, ()) for t in signature.types[1:]]
        except BaseException:
            graph.undo(nodes)
            raise
        if self.plain and not named and all(isinstance(a, Expression) and a.graph is not None for a in args):
            types = tuple(e.type for e in expressions)
            pair = signature.form == ROW and len(outputs) == 2
            if pair or signature.form == ONE:
                rest = signature.types[1:] if pair else (signature.types[1], 0)
                remember(self.by_types, types, (signature.used, pair, signature.types, *rest))
        if short is not None and signature.form:
            self.by_key[short] = signature
        return rebuilt(signature.result, lambda part: _output(part, outputs, expressions))

    def _flatten(self, value: Any, name: str, expressions: list[Expression]) -> Hashable:
        """Return the static part of an argument, and collect its expressions; a parameter is static."""
        if isinstance(value, Expression):
            if value.graph is None:
                return ("parameter", value.index)
            expressions.append(value)
            return "expression"
        if isinstance(value, (tuple, list)):
            return (type(value), *(self._flatten(v, f"{name}[{k}]", expressions) for k, v in enumerate(value)))
        if isinstance(value, dict):
            parts = ((k, self._flatten(v, f"{name}[{k!r}]", expressions)) for k, v in value.items())
            return (type(value), *parts)
        if isinstance(value, np.ndarray):
            raise TraceError(
                f"cell {self.name}: argument {name} is {describe(value)}\n"
                "  expected  an expression, or something static: a number, a string, None\n  try       inputTensor(array)"
            )
        try:
            hash(value)
        except TypeError:
            raise TraceError(
                f"cell {self.name}: argument {name} is {describe(value)}, which has no hash\n"
                "  expected  expressions, lists, tuples and dicts of them, or something static: a number, a string, None"
            ) from None
        if isinstance(value, (float, np.floating)):
            return (type(value), float(value).hex())  # 0.0 and -0.0 are equal, and NaN is not equal to itself
        return (type(value), value)

    def _trace(self, bound: inspect.BoundArguments, shapes: tuple[Shape, ...], graph: Graph) -> Signature:
        """Run the function, and make a node type of what it records."""
        if len(self.known) >= MOST_SIGNATURES:
            raise TraceError(
                f"cell {self.name}: it has {MOST_SIGNATURES} signatures already, each traced and compiled\n"
                "  try       a plain function; or an expression in place of the argument that differs from call to call"
            )

        def function(stands: Sequence[Expression]) -> Any:
            left = iter(stands)

            def stand(value: Any) -> Any:
                return next(left) if isinstance(value, Expression) and value.graph is not None else value

            given = {name: rebuilt(value, stand) for name, value in bound.arguments.items()}
            arguments = inspect.BoundArguments(self.signature, given)  # type: ignore[arg-type]
            return self.function(*arguments.args, **arguments.kwargs)

        nodes = len(graph)
        traced = trace(self.name, function, shapes, graph.dtype)
        if len(graph) != nodes:
            raise TraceError(
                f"cell {self.name}: it records nodes outside of the cell, of expressions that are no arguments\n"
                "  try       pass the expressions it uses as arguments"
            )
        names: list[str] = []
        static: list[str] = []
        for name, value in bound.arguments.items():
            _tell(value, name, names, static)
        body = Body(traced, names)
        lowering, whole = body.lowering(), Shape((body.total,))
        op = Op(
            name=f"cell {self.name}",
            doc=f"The cell {self.name}.",
            shape=lambda _: whole,
            lower=lambda *_: lowering,
            reference=_nothing,  # not the function, which may hold parameters: node types are kept for ever
            samples=_nothing,
            typed=True,
            listed=False,
        )
        arguments = tuple(body.arguments)
        shared = (*(0 for _ in range(body.inputs)), *body.parameters)
        number = TYPES.intern(OP, op, arguments, shared, {})
        views = tuple(
            part_type(whole, shape, back, start, stopped) for back, (start, shape, stopped) in enumerate(body.outputs, 1)
        )
        parameters, form = tuple(traced.parameters), _form(traced.result)
        return Signature(Used(parameters), (number, *views), traced.result, body, static, form)

    def explain(self) -> str:
        """Return what the cell became for each signature it was called with: steps, what they read and write, what is fused."""
        count = len(self.known)
        lines = [f"cell {self.name}: {count or 'no'} signature{'s' if count != 1 else ''}" + ("" if count else " yet, call it")]
        return "\n\n".join([*lines, *(s.body.explain(self.name, s.static) for s in self.known.values())])


def _form(result: Any) -> int:
    """Return what a result is like."""
    leaves: list[Any] = []
    rebuilt(result, leaves.append)
    if not all(isinstance(leaf, int) for leaf in leaves):
        return NOT_PLAIN
    if isinstance(result, int):
        return ONE
    return ROW if type(result) is tuple and result == tuple(range(len(leaves))) else NESTED


def _scan(values: Iterable[Any], key: list[Any], entries: list[int], graph: Any) -> Any:
    """Write down what tells signatures apart, and the numbers of the nodes; return their graph.

    The key reads from left to right: types of expressions and indices of parameters are integers, all else begins with its
    class.
    """
    for v in values:
        if isinstance(v, Expression):
            own = v.graph
            if own is None:
                key.append(v.index)
                continue
            if own is not graph:
                if graph is not None:
                    raise KeyError
                graph = own
            key.append(v.type)
            entries.append(v.index)
            continue
        kind = v.__class__
        key.append(kind)
        if kind is list or kind is tuple:
            key.append(len(v))
            graph = _scan(v, key, entries, graph)
        elif kind is dict:
            key.append(tuple(v))
            graph = _scan(v.values(), key, entries, graph)
        elif kind is float:
            key.append(v.hex())
        elif isinstance(v, (float, np.floating, tuple, list, dict)):
            raise KeyError
        else:
            key.append(v)
    return graph


def _tell(value: Any, name: str, names: list[str], static: list[str]) -> None:
    """Collect what the expressions in an argument are called, and what in it is static."""
    if isinstance(value, Expression) and value.graph is not None:
        names.append(name)
    elif isinstance(value, Expression):
        static.append(f"{name} = {parameter_name(value)}")
    elif isinstance(value, (tuple, list)):
        for k, v in enumerate(value):
            _tell(v, f"{name}[{k}]", names, static)
    elif isinstance(value, dict):
        for k, v in value.items():
            _tell(v, f"{name}[{k!r}]", names, static)
    else:
        static.append(f"{name} = {describe(value)}")


def _nothing(*_: Any) -> None:
    """Stand for what the record of a cell leaves out."""


def _output(part: Any, outputs: Sequence[Expression], arguments: Sequence[Expression]) -> Expression:
    """Return what a part of `Signature.result` stands for."""
    if isinstance(part, int):
        return outputs[part]
    return arguments[part.position] if isinstance(part, Given) else part


def _fast_source(names: list[str]) -> str:
    """The text of the short way, for arguments that are expressions."""
    first = names[0]
    same = " or ".join(f"{n}.graph is not _graph" for n in names[1:])
    types = "".join(f"[{n}.type]" for n in names)
    indices = ", ".join(f"{n}.index" for n in names)
    return f"""
def call({", ".join(names)}):
    try:
        _graph = {first}.graph
        {f"if {same}: raise KeyError" if same else ""}
        _used, _pair, _new_types, _t, _w = _table{types}
        _types = _graph.types
        if _types is not None and _used not in _graph.kept: _used.enter(_graph)
        _index = len(_types)
        _args = _graph.args
        _types += _new_types
        _e = _E()
        _e.graph = _graph
        _e.index = _index + 1
        _e.type = _t
        _args += ({indices},)
        if _pair:
            _f = _E()
            _f.graph = _graph
            _f.index = _index + 2
            _f.type = _w
            return _e, _f
        return _e
    except (AttributeError, KeyError, TypeError):
        pass
    return _slow(({", ".join(names)},), {{}})
"""


__all__ = ["cell"]

"""The decorator `cell`: calls of a function that are one node each.

A call looks its signature up by the types of its arguments, appends one node and one view for each output, and is done. What is
unusual (a new signature, lists, static arguments, an error) goes the long way, `_Cell.call`.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from autobatch.cell.body import Body
from autobatch.cell.trace import Given, Trace, rebuilt, trace
from autobatch.expression import Expression, append, describe, owner
from autobatch.graph import OP, STOP, TYPES, VIEW, Graph
from autobatch.kernels._errors import TraceError
from autobatch.kernels._op import Op, Shape

MOST_SIGNATURES = 1000  # of a cell; more are a static argument that ought to be none
_new = object.__new__
Function = TypeVar("Function", bound=Callable[..., Any])


class Signature(NamedTuple):
    """What calls of one signature record."""

    key: object  # in `graph.kept` once the parameters are known to a graph
    types: tuple[int, ...]  # of the node and the views of its outputs
    parameters: tuple[int, ...]  # behind the arguments of the node
    starts: tuple[int, ...]  # of the outputs
    result: Any  # what is returned, see `Traced`
    entered: tuple[Any, ...]  # parameters to keep alive
    body: Body


def cell(function: Function) -> Function:
    """Make a function of expressions a cell: its calls are one node each.

    The function is run once for each *signature*, to see which operations it records; every later call of the signature records
    one node. Inside, elementwise operations are fused into loops of their own, products run one after the other over all calls
    of a batch, and what no output needs is left out. Values and gradients are those of the plain function.

    Parameters
    ----------
    function : of expressions, and lists and tuples of them; all else (numbers, strings, None, objects with a hash) is *static*: it belongs to
        the signature, as do the shapes of the expressions, and parameters that are passed. Parameters may also be used
        from outside (closures, attributes). It returns an expression, or a tuple or list of them.

    Returns
    -------
    The cell, called like the function; ``explain()`` of it returns a text that says what it became.

    Raises
    ------
    TraceError (an ArgumentError) : at a call, if the function asks for a value, looks up a row, makes an input, draws random
        numbers or uses an expression from outside: these would stay those of the first call.

    Notes
    -----
    Numbers that the function takes from elsewhere (an attribute, a global) stay what they were at the first call of a signature.
    A cell that calls a cell is one cell.

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
        self.known: dict[Any, Signature] = {}
        self.by_types: dict[Any, Any] = {}  # of calls with expressions only: what the short way needs, by their types

    def fast(self) -> Callable[..., Any]:
        """Return the function that users call."""
        parameters = list(self.signature.parameters.values())
        plain = all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty and p.name[0] != "_" for p in parameters)
        if not plain or not parameters:

            def function(*args: Any, **named: Any) -> Any:
                return self.call(args, named)
        else:
            scope: dict[str, Any] = {"_table": self.by_types, "_slow": self.call, "_new": _new, "_E": Expression}
            exec(_fast_source([p.name for p in parameters]), scope)
            function = scope["call"]
        functools.update_wrapper(function, self.function)
        function.explain = self.explain  # type: ignore[attr-defined]
        return function

    def call(self, args: Sequence[Any], named: dict[str, Any]) -> Any:
        """Record a call, the long way."""
        bound = self.signature.bind(*args, **named)
        bound.apply_defaults()
        expressions: list[Expression] = []
        key = tuple(self._flatten(value, name, expressions) for name, value in bound.arguments.items())
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
        if signature.key not in graph.kept:
            for parameter in signature.entered:
                graph.enter(parameter)
            graph.kept[signature.key] = True
        nodes = len(graph.recorded_types)
        outputs: list[Expression] = []
        try:
            if not signature.starts:  # it returns nothing but arguments and parameters
                return rebuilt(signature.result, lambda part: _output(part, outputs, expressions))
            node = append(graph, signature.types[0], [*(e.index for e in expressions), *signature.parameters])
            outputs = [append(graph, t, (node.index, s)) for t, s in zip(signature.types[1:], signature.starts, strict=True)]
        except BaseException:
            graph.undo(nodes)
            raise
        if expressions and not named and all(isinstance(a, Expression) and a.graph is not None for a in args):
            types = tuple(e.type for e in expressions)
            pair = type(signature.result) is tuple and signature.result == (0, 1)
            returned = 1 if signature.result == 0 else 2 if pair else 0
            self.by_types[types if len(types) > 1 else types[0]] = (
                *(signature.key, returned, signature.types, signature.parameters, signature.starts),
            )
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
                "  expected  expressions, lists, tuples and dicts of them, or something static with a hash: a number, a string, None"
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
        body = Body(traced)
        op = Op(
            name=f"cell {self.name}",
            doc=f"The cell {self.name}.",
            shape=lambda _: Shape((body.total,)),
            lower=lambda *_: body.lowering(),
            reference=self.function,
            samples=lambda _: None,
            listed=False,
        )
        arguments = tuple(body.arguments)
        shared = (*(0 for _ in range(body.inputs)), *body.parameters)
        number = TYPES.intern(OP, op, arguments, shared, {})
        whole = Shape((body.total,))
        views = tuple(
            TYPES.intern(STOP if stopped else VIEW, None, (whole,), (), {}, shape=shape, immediates=1)
            for _, shape, stopped in body.outputs
        )
        starts = tuple(start for start, _, _ in body.outputs)
        parameters = tuple(traced.parameters)
        return Signature(object(), (number, *views), tuple(body.parameters), starts, traced.result, parameters, body)

    def explain(self) -> str:
        """Return what the cell became for each signature it was called with: steps, places, what is fused."""
        if not self.known:
            return f"cell {self.name}: not called yet"
        return "\n\n".join(s.body.explain(self.name) for s in self.known.values())


def _output(part: Any, outputs: Sequence[Expression], arguments: Sequence[Expression]) -> Expression:
    """Return what a part of `Signature.result` stands for."""
    if isinstance(part, int):
        return outputs[part]
    return arguments[part.position] if isinstance(part, Given) else part


def _fast_source(names: list[str]) -> str:
    """The text of the short way, for arguments that are expressions."""
    first = names[0]
    same = " or ".join(f"{n}.graph is not _graph" for n in names[1:])
    types = f"{first}.type" if len(names) == 1 else "(" + ", ".join(f"{n}.type" for n in names) + ")"
    indices = ", ".join(f"{n}.index" for n in names)
    return f"""
def call({", ".join(names)}):
    try:
        _graph = {first}.graph
        {f"if {same}: raise KeyError" if same else ""}
        _key, _returned, _new_types, _parameters, _starts = _table[{types}]
        if _key not in _graph.kept: raise KeyError
        _types = _graph.types
        _index = len(_types)
        _args = _graph.args
        if _returned == 2:
            _types += _new_types
            _args += ({indices}, *_parameters, _index, _starts[0], _index, _starts[1])
            _e, _f = _new(_E), _new(_E)
            _e.graph = _f.graph = _graph
            _e.index = _index + 1
            _f.index = _index + 2
            _e.type = _new_types[1]
            _f.type = _new_types[2]
            return _e, _f
        if _returned == 1:
            _types += _new_types
            _args += ({indices}, *_parameters, _index, _starts[0])
            _e = _new(_E)
            _e.graph = _graph
            _e.index = _index + 1
            _e.type = _new_types[1]
            return _e
    except (AttributeError, KeyError, TypeError):
        pass
    return _slow(({", ".join(names)},), {{}})
"""


__all__ = ["cell"]

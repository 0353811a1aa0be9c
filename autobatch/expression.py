"""Expressions: a handle to one node, with operators, values and gradients; and the general way to record a node.

The functions users call record common cases by themselves, in a few lines without checks (`functions/`): two appends to the
graph's lists, one look-up of the node type. Whenever anything is unusual there, the look-up or an append fails and they come
here: `record` checks everything, says what is wrong, makes new node types, and takes numbers, parameters and checkpoints in its
stride.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autobatch import background
from autobatch import graph as graphs
from autobatch.execute import execution_of
from autobatch.graph import (
    IMMEDIATES,
    OP,
    PARAMETER,
    PARAMETERS,
    RECORDED,
    STOP,
    TYPES,
    VIEW,
    Checkpoint,
    Graph,
    graph_of,
    reading,
)
from autobatch.kernels._errors import ArgumentError, DeviceError, OperandError, TraceError
from autobatch.kernels._op import OPS, Op, Shape
from autobatch.memory import read
from autobatch.recorder import native
from autobatch.tensor import CardTensor, Tensor

_new = object.__new__
_NUMBERS = {"float32": ctypes.c_float, "float64": ctypes.c_double}


class Expression:
    """One node of a graph, or a parameter.

    Made by the functions of this package, never directly. Operators: ``+ - * / **`` with expressions and numbers (``*`` is the
    matrix product, as in DyNet, and so is ``@``), unary ``-``, ``abs``, ``len`` (of the first dim), indexing and slicing as in
    NumPy, where one index more than dims is for the batch. Values are handed out as float64 copies.
    """

    __slots__ = ("graph", "index", "type")

    _makers = "inputTensor, or another public function"

    graph: Any  # Graph or Checkpoint it was recorded in; None: a parameter
    index: int  # number of the node; negative: a parameter
    type: int  # node type

    # NumPy must leave operators with an expression on the right to the expression.
    __array_ufunc__ = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise OperandError(f"{type(self).__name__} is never made directly\n  try       {self._makers}")

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise OperandError("an expression is no array\n  try       npvalue(), to compute it")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise OperandError(f"{type(self).__name__} holds addresses of this process: it cannot be copied or pickled")

    def __repr__(self) -> str:
        if self.graph is None:
            return f"parameter {-self.index}"
        graph = self.graph.graph if isinstance(self.graph, Checkpoint) else self.graph
        return f"expression {self.index}/{'dropped' if graph is None else graph.version()}"

    def __bool__(self) -> bool:
        return True

    # Shape ------------------------------------------------------------------------------------------------------------

    def dim(self) -> tuple[tuple[int, ...], int]:
        """Return ``(dims, batch size)``; a scalar is ``((1,), 1)``.

        Raises
        ------
        StaleExpressionError : the expression is from before the last `renew_cg`.
        """
        if self.graph is not None:
            graph_of(self.graph)
        shape = TYPES.records[self.type].shape
        return shape.dims, shape.batch

    def __len__(self) -> int:
        return TYPES.records[self.type].shape.dims[0]

    def __iter__(self) -> Iterator[Expression]:
        return (self[i] for i in range(len(self)))

    # Values -----------------------------------------------------------------------------------------------------------

    def _ready(self, recalculate: bool = False, others: Sequence[int] = ()) -> Graph | None:
        """Compute the node if it has no value; return its graph. `others`: older nodes that are asked for with it."""
        if self.graph is None:
            reading(None)
            return None
        graph = graph_of(self.graph)
        reading(graph)
        execution = execution_of(graph)
        if recalculate:
            execution.invalidate()
        if self.index >= execution.done or execution.freed:
            execution.forward(graph, self.index, others)
        return graph

    def _flat(self, recalculate: bool = False) -> np.ndarray:
        """Return a copy of the value as a flat array, column-major, batch slowest."""
        graph = self._ready(recalculate)
        count = TYPES.records[self.type].shape.total
        if graph is None:
            pid = (-self.index - 1) >> 1
            background.wait()
            if pid in PARAMETERS.mirrors:
                PARAMETERS.mirrors[pid].values.fetch()
            return read(int(PARAMETERS.values[pid]), count, PARAMETERS.dtypes[pid])
        flat: np.ndarray = graph.execution.value_of(self.index, count)
        return flat

    def npvalue(self, recalculate: bool = False) -> np.ndarray:
        """Return the value as a float64 array of shape dims, or dims + (B,) for a minibatch of B > 1.

        Runs, in batches, everything recorded before this node that has no value yet. `recalculate=True` drops all values
        of the graph first.

        Raises
        ------
        StaleExpressionError : the expression is from before the last `renew_cg`.
        NumericalError : with ``configure(check_nan=True)``, a NaN came up.
        """
        shape = TYPES.records[self.type].shape
        return _shaped(self._flat(recalculate), shape)

    def vec_value(self, recalculate: bool = False) -> list[float]:
        """Return the value as a flat list of floats: column-major, batch slowest."""
        values: list[float] = self._flat(recalculate).tolist()
        return values

    def scalar_value(self, recalculate: bool = False) -> float:
        """Return the value of a node that is one single number.

        Raises
        ------
        ArgumentError : the node has more than one number (DyNet ends the process).
        """
        shape = TYPES.records[self.type].shape
        if shape.total != 1:
            raise ArgumentError(
                f"scalar_value() of an expression of {shape.total} numbers, {shape}\n"
                "  try       npvalue() or vec_value(); sum_batches or sum_elems to make one number of it"
            )
        graph = self._ready(recalculate)
        if graph is None or graph.execution.machine.card:
            return float(self._flat()[0])
        return float(_NUMBERS[graph.dtype].from_address(graph.execution.value_address(self.index)).value)

    def value(self, recalculate: bool = False) -> Any:
        """Return the value as DyNet does: an array for two dims and more, a float for one number, a flat list for a vector."""
        shape = TYPES.records[self.type].shape
        if len(shape.dims) > 1:
            return self.npvalue(recalculate)
        if shape.total == 1:
            return self.scalar_value(recalculate)
        return self.vec_value(recalculate)

    def tensor_value(self, recalculate: bool = False) -> Tensor:
        """Return the value as a `Tensor`: for NumPy, and for libraries that know DLPack.

        Of a graph on a card the numbers stay there, see `docs/interop.md`.
        """
        shape = TYPES.records[self.type].shape
        graph = self._ready(recalculate)
        if graph is None or not graph.execution.machine.card:
            return Tensor(self._flat(), shape)
        dtype, address = graph.dtype, graph.execution.value_address(self.index)
        return CardTensor(graph.execution.machine.keep(address, shape.total, dtype), shape)

    def forward(self, recalculate: bool = False) -> None:
        """Compute this node and all nodes before it that have no value yet."""
        self._ready(recalculate)

    # Gradients --------------------------------------------------------------------------------------------------------

    def backward(self, full: bool = False) -> None:
        """Compute the gradients of this number and add those of the parameters to the parameters.

        Parameters
        ----------
        full : also compute gradients of nodes that depend on no parameter.

        Raises
        ------
        ArgumentError : the node is more than one number, or its graph is for inference.
        StaleExpressionError : the expression is from before the last `renew_cg`.
        """
        shape = TYPES.records[self.type].shape
        if self.graph is not None and graph_of(self.graph).inference:
            raise ArgumentError(
                "backward() in a graph for inference, which does not keep what it would need\n"
                "  try       renew_cg() outside of inference(), and record the loss there"
            )
        if shape.total != 1:
            raise ArgumentError(
                f"backward() of an expression of {shape.total} numbers, {shape}; a loss is one number\n"
                "  try       sum_batches(loss) for a minibatch, sum_elems(loss) for a vector"
            )
        graph = self._ready()
        if graph is None:  # a parameter of one number: the loss is the number itself
            record(OPS["sum_elems"], (self,)).backward(full)
        else:
            graph.execution.run_backward(graph, self.index, bool(full))

    def gradient(self) -> np.ndarray:
        """Return the gradient that the last `backward` left at this node, as a float64 array shaped as by `npvalue`.

        Zeros where the loss does not depend on the node, or no parameter lies behind it (see `backward`, `full`).

        Raises
        ------
        RuntimeError : there was no `backward` yet, or it was called on a node older than this one.
        StaleExpressionError : the expression is from before the last `renew_cg`.
        """
        shape = TYPES.records[self.type].shape
        if self.graph is None:
            graph = graphs.current_graph()
            flat = None if graph.execution is None else graph.execution.parameter_gradient(graph, self.index, shape.total)
        else:
            graph = graph_of(self.graph)
            flat = None if graph.execution is None else graph.execution.gradient_of(graph, self.index, shape.total)
        if flat is None:
            raise RuntimeError(
                "gradient() of a node without one\n  expected  a backward() before, on a loss recorded after this node"
            )
        return _shaped(flat, shape)

    # Operators: `operators.py` installs them, since they are the public functions --------------------------------------

    if TYPE_CHECKING:

        def __add__(self, other: Expression | float) -> Expression: ...
        def __radd__(self, other: float) -> Expression: ...
        def __sub__(self, other: Expression | float) -> Expression: ...
        def __rsub__(self, other: float) -> Expression: ...
        def __mul__(self, other: Expression | float) -> Expression: ...
        def __rmul__(self, other: float) -> Expression: ...
        def __truediv__(self, other: Expression | float) -> Expression: ...
        def __rtruediv__(self, other: float) -> Expression: ...
        def __matmul__(self, other: Expression) -> Expression: ...
        def __neg__(self) -> Expression: ...
        def __pos__(self) -> Expression: ...
        def __abs__(self) -> Expression: ...
        def __pow__(self, other: Expression | float) -> Expression: ...
        def __rpow__(self, other: float) -> Expression: ...
        def __getitem__(self, at: Any) -> Expression: ...


class Node(Expression):
    """An expression as recording makes it: 20 ns sooner without an `__init__` that refuses, of 70 to make one."""

    __slots__ = ()

    __init__ = object.__init__  # type: ignore[assignment]


if native is not None:
    native.prepare(Expression, Node, Graph)


def _shaped(flat: np.ndarray, shape: Shape) -> np.ndarray:
    dims = shape.dims if shape.batch == 1 else (*shape.dims, shape.batch)
    numbers = flat.astype(np.float64)
    return numbers if len(dims) == 1 else numbers.reshape(dims, order="F")


# Recording ------------------------------------------------------------------------------------------------------------


def describe(x: Any) -> str:
    """Return a few words about an argument of the wrong kind."""
    if isinstance(x, np.ndarray):
        return f"a NumPy array of shape {x.shape}"
    if isinstance(x, (list, tuple)):
        return f"a {type(x).__name__} of {len(x)}"
    if isinstance(x, Expression):
        return f"an expression {TYPES.records[x.type].shape}"
    if isinstance(x, (int, float, str, np.number, type(None))):
        text = repr(x.item() if isinstance(x, np.number) else x)
        return f"{text if len(text) < 40 else text[:40] + '...'} ({type(x).__name__})"
    name = type(x).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def check_expression(op: str, x: Any, position: int | None = None) -> Expression:
    """Return `x` if it is an expression; raise OperandError (a TypeError) if not."""
    if isinstance(x, Expression):
        return x
    which = "the argument" if position is None else f"argument {position}"
    cure = "inputTensor(array)" if isinstance(x, np.ndarray) else "inputVector(list)" if isinstance(x, (list, tuple)) else ""
    raise OperandError(f"{op}: {which} is {describe(x)}\n  expected  an expression" + (f"\n  try       {cure}" if cure else ""))


def check_device(op: str, device: Any) -> None:
    """Raise DeviceError for a device that does not exist."""
    if device is not None and not (isinstance(device, str) and device in ("", "CPU")):
        raise DeviceError(f"{op}: there is no device {device!r}\n  expected  'CPU', or '' for the default")


def owner(op: str, operands: Sequence[Any]) -> Graph:
    """Return the graph that the operands belong to, the current one if all are parameters or numbers; check that they agree."""
    graph = None
    for k, e in enumerate(operands, 1):
        if not isinstance(e, Expression) or e.graph is None:
            continue
        own = graph_of(e.graph, f"argument {k} of {op}")
        if graph is None:
            graph = own
        elif own is not graph:
            hint = graph.hint or own.hint
            raise (TraceError if hint else ArgumentError)(
                f"{op}: the arguments belong to different graphs\n"
                f"  expected  expressions of one graph (and parameters, which belong to none){hint}"
            )
    return graphs.current_graph() if graph is None else graph


def append(graph: Graph, number: int, entries: Sequence[int], kind: type[Expression] = Node) -> Any:
    """Append a node to a graph, with arguments and immediates; return its expression."""
    e = _new(kind)
    e.graph, e.index, e.type = graph.top, len(graph.recorded_types), number
    nodes = len(graph.recorded_types)
    graph.recorded_types.append(number)
    graph.recorded_args.extend(entries)
    if graph.immediate:
        try:
            e.forward()
        except BaseException:
            graph.undo(nodes)
            raise
    return e


def record(
    op: Op, operands: Sequence[Any], attributes: dict[str, Any] | None = None, immediates: Sequence[int] = (), key: Any = None
) -> Expression:
    """Record a node after checking everything.

    Parameters
    ----------
    op : the operation.
    operands : expressions; numbers become inputs of shape (1,).
    attributes : what belongs to the node type beside the shapes.
    immediates : integers of this node alone.
    key : where to remember the node type in `op.types`, for the short way next time; a path of keys through nested dicts.

    Raises
    ------
    OperandError, StaleExpressionError, ArgumentError : an operand is no expression, is stale, or of another graph or dtype.
    ShapeError, ArgumentError : from the op's shape rule.
    """
    for k, e in enumerate(operands, 1):
        if not is_number(e):
            check_expression(op.name, e, k)
    graph = owner(op.name, operands)
    shapes, parameters = [], []
    for k, e in enumerate(operands):
        node_type = TYPES.records[e.type if isinstance(e, Expression) else scalar_type()]
        shapes.append(node_type.shape)
        shared = node_type.kind == PARAMETER and op.shared is not None and op.shared(k)
        parameters.append(node_type.parameters[0] if shared else 0)
        if isinstance(e, Expression) and e.index < 0:
            graph.enter(e, op.rows)
    type_number = TYPES.intern(OP, op, tuple(shapes), tuple(parameters), attributes or {}, immediates=len(immediates))
    nodes = len(graph.recorded_types)
    try:
        entries = [e.index if isinstance(e, Expression) else number(graph, e).index for e in operands]
        result: Expression = append(graph, type_number, [*entries, *immediates])
    except BaseException:
        graph.undo(nodes)
        raise
    if key is not None:
        remember(op.types, key, type_number)
    return result


def set_immediates(e: Expression, immediates: Sequence[int]) -> None:
    """Give a node other immediates, and forget all values of its graph."""
    graph = graph_of(e.graph)
    before = TYPES.info[graph.recorded_types[: e.index]]
    at = int(before[:, [RECORDED, IMMEDIATES]].sum() + TYPES.info[e.type, RECORDED])
    graph.set_args(at, immediates)
    if graph.execution is not None:
        graph.execution.invalidate()


def remember(table: dict[Any, Any], path: Sequence[Any], number: Any) -> None:
    """Store a type number, or what else a short way needs, in nested dicts."""
    for step in path[:-1]:
        table = table.setdefault(step, {})
    table[path[-1]] = number


def is_number(x: Any) -> bool:
    """Whether `x` is a plain or NumPy number."""
    return isinstance(x, (float, int, np.floating, np.integer, np.bool_))


def is_list(x: Any) -> bool:
    """Whether `x` is a list of something, or as good as one."""
    if isinstance(x, np.ndarray):
        return x.ndim > 0
    return isinstance(x, Sequence) and not isinstance(x, (str, bytes, bytearray))


def as_float(op: str, what: str, value: Any) -> float:
    """Return a number as a float; raise for what is none, or is too large to be one."""
    if not is_number(value):
        raise OperandError(f"{op}: {what} is {describe(value)}\n  expected  a number")
    try:
        return float(value)
    except OverflowError:
        raise ArgumentError(f"{op}: {what} is {describe(value)}\n  expected  a number that fits a float") from None


def number(graph: Graph, value: Any) -> Expression:
    """Return the input of a graph that holds one number; the same number is one node."""
    value = as_float("an expression and a number", "the number", value)
    key = value if value else (math.copysign(1.0, value),)  # 0.0 and -0.0 are equal as keys
    index = graph.numbers.get(key)
    if index is None:
        e: Expression = append(graph, scalar_type(), (graph.add_filled(1, value),))
        graph.numbers[key] = e.index
        return e
    e = Node()
    e.graph, e.index, e.type = graph.top, index, scalar_type()
    return e


@functools.cache
def scalar_type() -> int:
    """Return the node type of an input of one number."""
    return input_type(Shape((1,)))


def input_type(shape: Shape) -> int:
    """Return the node type of inputs of a shape."""
    found = _INPUT_TYPES.get(shape)
    if found is None:
        found = _INPUT_TYPES[shape] = TYPES.intern(graphs.INPUT, None, (), (), {}, shape=shape, immediates=1)
    return found


_INPUT_TYPES: dict[Shape, int] = {}


def part_type(of: Shape, shape: Shape, back: int, start: int, stop: bool = False) -> int:
    """Return the node type of a view of the node that stands `back` nodes before it, from number `start` on."""
    return TYPES.intern(STOP if stop else VIEW, None, (of,), (), {"back": back, "start": start}, shape=shape)


def view(op: str, x: Expression, shape: Shape, start: int = 0, stop: bool = False) -> Expression:
    """Record a view: `shape` numbers of x from number `start` on; with `stop`, no gradient goes back (to a constant never)."""
    graph = owner(op, (x,))
    if x.index < 0:
        graph.enter(x)
        stop = stop or x.index % 2 == 0
    of = TYPES.records[x.type].shape
    type_number = TYPES.intern(STOP if stop else VIEW, None, (of,), (), {}, shape=shape, immediates=1)
    return append(graph, type_number, (x.index, start))  # type: ignore[no-any-return]

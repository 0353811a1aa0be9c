"""The public functions that record nodes, in DyNet's spelling: one per op, its docstring is the op's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from autobatch import expression as ex
from autobatch import seeds
from autobatch.arguments import _index, _integer, _list, _new_shape, _sequence, _shape
from autobatch.expression import Expression, check_expression, is_number, owner, record, view
from autobatch.graph import Graph
from autobatch.kernels import select
from autobatch.kernels._errors import ArgumentError, IndexRangeError, OperandError, ShapeError
from autobatch.kernels._op import OPS, Op, Shape
from autobatch.params import LookupParameters, Storage
from autobatch.shortcuts import _binary, _nary, _part, _unary

_new = object.__new__


# Parameters and tables ------------------------------------------------------------------------------------------------


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
    return _table("lookup", p).row(index, bool(update))


def lookup_batch(p: LookupParameters, indices: Sequence[int], update: bool = True) -> Expression:
    """Return several rows of a table as one minibatch."""
    return _table("lookup_batch", p).batch(indices, bool(update))


# Arithmetic -----------------------------------------------------------------------------------------------------------

_matmul = _binary("matmul")
_negate = _unary("negate")
cmult = _binary("cmult")
cdiv = _binary("cdiv")
dot_product = _binary("dot_product")
squared_distance = _binary("squared_distance")
tanh = _unary("tanh")
logistic = _unary("logistic")
rectify = _unary("rectify")
exp = _unary("exp")
log = _unary("log")
sqrt = _unary("sqrt")
square = _unary("square")
sum_elems = _unary("sum_elems")
sum_batches = _unary("sum_batches")


def affine_transform(exprs: Sequence[Expression]) -> Expression:
    """Return b + Σ Wᵢ xᵢ for a list [b, W1, x1, W2, x2, ...].

    b is (r,) or (r,c), Wᵢ (r,kᵢ), xᵢ (kᵢ,) or (kᵢ,c); the result is (r,) or (r,c).
    """
    try:
        if exprs.__class__ is not list or len(exprs) != 3:  # to go through an expression would record its parts
            raise KeyError
        b, W, x = exprs
        number = _AFFINE_OF_THREE[b.type][W.type][x.type]
        graph = x.graph
        parameters = graph.parameters
        if b not in parameters:
            graph.enter(b)
        if W not in parameters:
            graph.enter(W)
        types = graph.types
        index = len(types)
        types.append(number)
        args = graph.args
        args.append(b.index)
        args.append(W.index)
        args.append(x.index)
        e = _new(Expression)
        e.graph = graph
        e.index = index
        e.type = number
        return e
    except (AttributeError, KeyError, TypeError):
        pass
    if exprs.__class__ is list and len(exprs) == 3:
        e = _nary(_AFFINE, exprs, _AFFINE.types)
        if isinstance(e.graph, Graph) and [a.graph for a in exprs] == [None, None, e.graph]:
            ex.remember(_AFFINE_OF_THREE, [a.type for a in exprs], e.type)
        return e
    if exprs.__class__ is list and len(exprs) % 2 == 1:
        return _nary(_AFFINE, exprs, _AFFINE.types)
    arguments = _list("affine_transform", exprs)
    if len(arguments) % 2 == 0:
        raise ShapeError(
            f"affine_transform: {len(arguments)} arguments\n  expected  an odd number of them: b, then pairs of W and x"
        )
    return _nary(_AFFINE, arguments, _AFFINE.types)


_AFFINE_OF_THREE: dict[Any, Any] = {}  # b and W parameters, x not: types of b, W, x -> node type
_AFFINE, _ESUM, _AVERAGE = OPS["affine_transform"], OPS["esum"], OPS["average"]
_CONCATENATE, _TO_BATCH = OPS["concatenate"], OPS["concatenate_to_batch"]
MANY = 16  # longer sums are sums of sums: so that the number of node types does not grow with the lengths of lists


def esum(exprs: Sequence[Expression]) -> Expression:
    """Return the sum of a list of expressions of the same dims; batch sizes may be 1 and B."""
    if exprs.__class__ is not list or len(exprs) > MANY:
        arguments = _list("esum", exprs)
        sums: list[Expression] = []
        try:
            while len(arguments) > MANY:
                first = len(sums)
                for i in range(0, len(arguments), MANY):
                    sums.append(_nary(_ESUM, arguments[i : i + MANY], _ESUM.types))
                arguments = sums[first:]
            return _nary(_ESUM, arguments, _ESUM.types)
        except BaseException:
            if sums:
                ex.graph_of(sums[0].graph).undo(sums[0].index)
            raise
    return _nary(_ESUM, exprs, _ESUM.types)


def average(exprs: Sequence[Expression]) -> Expression:
    """Return the mean of a list of expressions of the same dims; batch sizes may be 1 and B."""
    arguments = _list("average", exprs)
    if len(arguments) <= MANY:
        return _nary(_AVERAGE, arguments, _AVERAGE.types)
    _AVERAGE.shape(tuple(_shape(e) for e in arguments))
    return esum(arguments) * (1.0 / len(arguments))


# Joining, reshaping, selecting ----------------------------------------------------------------------------------------


def concatenate(exprs: Sequence[Expression], d: int = 0) -> Expression:
    """Return the expressions one after the other along dim d, which may be the next new one."""
    if d.__class__ is not int:
        d = _integer("concatenate", "d", d)
    table = _CONCATENATE.types.get(d)
    if table is None:
        table = _CONCATENATE.types.setdefault(d, {})
    return _nary(_CONCATENATE, exprs, table, {"d": d})


def concatenate_cols(exprs: Sequence[Expression]) -> Expression:
    """Return the expressions side by side: vectors (n,) become the columns of a matrix."""
    return concatenate(exprs, 1)


def concatenate_to_batch(exprs: Sequence[Expression]) -> Expression:
    """Return the expressions as elements of one minibatch."""
    return _nary(_TO_BATCH, exprs, _TO_BATCH.types)


# What a selection of an expression of some type becomes: node type and start, once it was asked for. (Parameters and dropped
# graphs have no lists of their own, so `_part` fails on them and the long way is taken.)
_RESHAPES: dict[Any, int] = {}
_PICKS: dict[Any, tuple[int, int, int]] = {}


def reshape(x: Expression, d: tuple[int, ...], batch_size: int = 1) -> Expression:
    """Return the same numbers in other dims (column-major); no copy is made.

    If ``d`` x ``batch_size`` has as many numbers as x in all, these are the new dims; if ``d`` has as many as one element of
    the minibatch of x, the minibatch is kept.
    """
    try:
        return _part(x, _RESHAPES[x.type, d, batch_size], 0)
    except (AttributeError, KeyError, TypeError):
        check_expression("reshape", x)
    if not isinstance(d, tuple):
        raise OperandError(f"reshape: dims {ex.describe(d)}\n  expected  a tuple of numbers")
    old, new = _shape(x), _new_shape("reshape", d, batch_size)
    if new.total != old.total:
        if new.size != old.size:
            raise ShapeError(
                f"reshape: {new} has {new.total} numbers\n  got       {old}, {old.total} numbers\n  expected  as many numbers"
            )
        new = Shape(new.dims, old.batch)
    e = view("reshape", x, new)
    _RESHAPES[x.type, d, batch_size] = e.type
    return e


def nobackprop(x: Expression) -> Expression:
    """Return x as a node that passes no gradient back."""
    check_expression("nobackprop", x)
    return view("nobackprop", x, _shape(x), stop=True)


def _selected(op: Op, x: Expression, start: int, attributes: dict[str, Any], walk: Any) -> Expression:
    """Record a selection: as a view where it takes numbers that lie one after the other."""
    shape = _shape(x)
    if select.contiguous(*walk):
        return view(op.name, x, op.shape((shape,), **attributes), start)
    return record(op, (x,), attributes, (start,))


def pick(e: Expression, index: int = 0, dim: int = 0) -> Expression:
    """Return the elements with this index along a dim, which vanishes; (n,) gives (1,).

    Raises
    ------
    ArgumentError : index out of range; NegativeIndexError for a negative one (``e[-1]`` counts from the end).
    """
    try:
        number, size, stride = _PICKS[e.type, dim]
        if index.__class__ is int and dim.__class__ is int and 0 <= index < size:
            return _part(e, number, index * stride)
    except (AttributeError, KeyError, TypeError):
        check_expression("pick", e)
    op, shape = OPS["pick"], _shape(e)
    dim = _integer("pick", "the dim", dim)
    op.shape((shape,), dim=dim)
    size, stride = shape.dims[dim], select.strides_of(shape)[dim]
    picked = _selected(op, e, _index("pick", "the index", index, size) * stride, {"dim": dim}, select.pick_walk(shape, dim))
    _PICKS[e.type, dim] = picked.type, size, stride
    return picked


def pick_batch(e: Expression, indices: Sequence[int], dim: int = 0) -> Expression:
    """Return for each element of the minibatch the elements with its own index along a dim; an unbatched e is repeated."""
    check_expression("pick_batch", e)
    op, shape = OPS["pick_batch"], _shape(e)
    dim, indices = _integer("pick_batch", "the dim", dim), _sequence("pick_batch", "the indices", indices)
    attributes = {"dim": dim, "count": len(indices)}
    op.shape((shape,), **attributes)
    strides = select.strides_of(shape)
    starts = [
        _index("pick_batch", "an index", i, shape.dims[dim]) * strides[dim] + (b * shape.size if shape.batch > 1 else 0)
        for b, i in enumerate(indices)
    ]
    return record(op, (e,), attributes, starts)


def _range(op: str, x: Expression, steps: Sequence[int], begins: Sequence[int], ends: Sequence[int]) -> Expression:
    """Record a range with steps in each dim; the lists may be shorter than the dims, or one longer (the batch)."""
    shape = _shape(x)
    full = (*shape.dims, shape.batch)
    if len(begins) > len(full) or not len(steps) == len(begins) == len(ends):
        raise ArgumentError(
            f"{op}: {len(begins)} ranges for {shape}\n"
            f"  expected  at most one for each of the {len(shape.dims)} dims and the batch"
        )
    strides, start, sizes, all_steps = select.strides_of(shape), 0, [], []
    for k, size in enumerate(full):
        step, begin, end = (steps[k], begins[k], ends[k]) if k < len(begins) else (1, 0, size)
        what = f"the range of dim {k}" if k < len(shape.dims) else "the range of the batch"
        step, begin, end = (_integer(op, what, v) for v in (step, begin, end))
        if step < 1 or not 0 <= begin < end <= size:
            raise ArgumentError(
                f"{op}: {what} is {begin}:{end}:{step}\n  expected  0 <= begin < end <= {size}, a step of at least 1"
            )
        start += begin * strides[k]
        sizes.append(-(-(end - begin) // step))
        all_steps.append(step)
    attributes = {"steps": tuple(all_steps), "sizes": tuple(sizes)}
    record_op = OPS["pick_range" if op in ("pick_range", "pickrange") else "strided_select"]
    return _selected(record_op, x, start, attributes, select.range_walk(shape, **attributes))


def pick_range(x: Expression, s: int, e: int, d: int = 0) -> Expression:
    """Return the elements from s to before e along dim d, which stays."""
    check_expression("pick_range", x)
    shape = _shape(x)
    d = _integer("pick_range", "the dim", d)
    if not 0 <= d < len(shape.dims):
        raise ShapeError(f"pick_range: dim {d} of {shape}\n  expected  a dim from 0 to {len(shape.dims) - 1}")
    ends = [*shape.dims[:d], e]
    return _range("pick_range", x, [1] * (d + 1), [0] * d + [s], ends)


def pickrange(x: Expression, s: int, e: int) -> Expression:
    """Return the rows from s to before e. (DyNet: deprecated, `pick_range`.)"""
    return pick_range(x, s, e)


def strided_select(e: Expression, strides: Sequence[int], range_from: Sequence[int], range_to: Sequence[int]) -> Expression:
    """Return ``e[from0:to0:stride0, from1:to1:stride1, ...]``; one more entry than dims addresses the batch."""
    check_expression("strided_select", e)
    full = (*_shape(e).dims, _shape(e).batch)
    strides = _sequence("strided_select", "the strides", strides)
    range_from = _sequence("strided_select", "the begins", range_from)
    range_to = _sequence("strided_select", "the ends", range_to)
    count = max(len(strides), len(range_from), len(range_to))
    if count > len(full):
        raise ArgumentError(f"strided_select: {count} ranges for {_shape(e)}\n  expected  at most {len(full)}")
    steps = [*strides, *[1] * (count - len(strides))]
    begins = [*range_from, *[0] * (count - len(range_from))]
    ends = [*range_to, *full[len(range_to) : count]]
    return _range("strided_select", e, steps, begins, ends)


def transpose(x: Expression, dims: Sequence[int] = (1, 0)) -> Expression:
    """Return x with its axes in another order; (n,) becomes (1,n)."""
    order = tuple(dims) if isinstance(dims, (tuple, list)) else tuple(_sequence("transpose", "the dims", dims))
    try:
        return _part(x, _TRANSPOSES[x.type, order], 0)
    except (AttributeError, KeyError, TypeError):
        check_expression("transpose", x)
    op, shape = OPS["transpose"], _shape(x)
    axes = tuple(_integer("transpose", "a dim", d) for d in order)
    op.shape((shape,), dims=axes)
    e = _selected(op, x, 0, {"dims": axes}, select.transpose_walk(shape, axes))
    _TRANSPOSES[x.type, order] = e.type
    return e


_TRANSPOSES: dict[Any, int] = {}


# Softmax and losses ---------------------------------------------------------------------------------------------------


def softmax(x: Expression, d: int = 0) -> Expression:
    """Return eˣ / Σ eˣ along dim d of a vector or matrix."""
    d = _integer("softmax", "d", d)
    table = OPS["softmax"].types.setdefault(d, {})
    return _nary(OPS["softmax"], [check_expression("softmax", x)], table, {"d": d})


log_softmax = _unary("log_softmax")


def pickneglogsoftmax(x: Expression, v: int) -> Expression:
    """Return -log softmax(x)[v] in nats, (1,), for a vector of scores (n,)."""
    op = OPS["pickneglogsoftmax"]
    try:
        graph = x.graph
        types = graph.types
        number, size = op.types[x.type]
        if v.__class__ is not int or not 0 <= v < size:
            raise KeyError
        index = len(types)
        types.append(number)
        args = graph.args
        args.append(x.index)
        args.append(v)
    except (AttributeError, KeyError, TypeError):
        check_expression("pickneglogsoftmax", x)
        op.shape((_shape(x),))
        size = _shape(x).size
        e = record(op, (x,), {}, (_index("pickneglogsoftmax", "the index", v, size),))
        op.types[x.type] = e.type, size
        return e
    e = _new(Expression)
    e.graph = graph
    e.index = index
    e.type = number
    return e


def pickneglogsoftmax_batch(x: Expression, vs: Sequence[int]) -> Expression:
    """Return -log softmax(x)[v] in nats for each element of a minibatch with its own v, (1,)xB."""
    check_expression("pickneglogsoftmax_batch", x)
    op, shape = OPS["pickneglogsoftmax_batch"], _shape(x)
    vs = _sequence("pickneglogsoftmax_batch", "the indices", vs)
    op.shape((shape,), count=len(vs))
    indices = [_index("pickneglogsoftmax_batch", "an index", v, shape.size) for v in vs]
    return record(op, (x,), {"count": len(indices)}, indices)


# Noise ----------------------------------------------------------------------------------------------------------------


def dropout(x: Expression, p: float) -> Expression:
    """Return x with each number zero with probability p, the others scaled by 1 / (1 - p).

    The mask follows from the random seed and the order of recording, whatever batch the node runs in. It is drawn when the
    node is recorded, so computing the graph again gives the same numbers.

    Raises
    ------
    ArgumentError : p outside of [0, 1] (DyNet does not check).
    """
    try:
        graph = x.graph
        types = graph.types
        number, place = _DROPOUT.types[x.type], graph.numbers[p]
        if not 0 <= p <= 1:
            raise KeyError
        index = len(types)
        types.append(number)
        graph.args += (x.index, place, seeds.draw())
        e = _new(Expression)
        e.graph, e.index, e.type = graph, index, number
        return e
    except (AttributeError, KeyError, TypeError):
        check_expression("dropout", x)
    if not is_number(p) or not 0 <= p <= 1:
        raise ArgumentError(f"dropout: p is {ex.describe(p)}\n  expected  a probability from 0 to 1")
    return record(_DROPOUT, (x, float(p)), {}, (seeds.draw(),), key=(x.type,))


_DROPOUT = OPS["dropout"]


# The graph ------------------------------------------------------------------------------------------------------------


def _newest(name: str, exprs: Any) -> list[Expression]:
    if not isinstance(exprs, list):
        raise OperandError(f"{name}: {ex.describe(exprs)}\n  expected  a list of expressions")
    if not exprs:
        raise IndexRangeError(f"{name}: the list of expressions is empty")
    for k, e in enumerate(exprs, 1):
        check_expression(name, e, k)
    return exprs


def forward(exprs: list[Expression], recalculate: bool = False) -> None:
    """Compute all expressions of a list in one pass."""
    _forward("forward", exprs, recalculate)


def _forward(name: str, exprs: Any, recalculate: bool) -> None:
    expressions = _newest(name, exprs)
    owner(name, expressions)
    max(expressions, key=lambda e: e.index).forward(recalculate)


def values(exprs: list[Expression], recalculate: bool = False) -> list[Any]:
    """Compute all expressions of a list in one pass; return the `value()` of each."""
    _forward("values", exprs, recalculate)
    return [e.value() for e in exprs]


def npvalues(exprs: list[Expression], recalculate: bool = False) -> list[np.ndarray]:
    """Compute all expressions of a list in one pass; return the `npvalue()` of each."""
    _forward("npvalues", exprs, recalculate)
    return [e.npvalue() for e in exprs]

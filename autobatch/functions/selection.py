"""Joining, reshaping, selecting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autobatch import expression as ex
from autobatch.arguments import _index, _integer, _new_shape, _sequence, _shape
from autobatch.expression import Expression, Node, check_expression, record, view
from autobatch.graph import TYPES
from autobatch.kernels import select
from autobatch.kernels._errors import ArgumentError, OperandError, ShapeError
from autobatch.kernels._op import OPS, Op, Shape
from autobatch.recorder import short
from autobatch.shortcuts import _nary, _of_list, _part

_CONCATENATE, _TO_BATCH = OPS["concatenate"], OPS["concatenate_to_batch"]
_ZERO = 0
_COLUMNS = _CONCATENATE.types.setdefault(0, {}).setdefault(2, {})  # types of two columns -> node type


def concatenate(xs: Sequence[Expression], d: int = 0) -> Expression:
    """Return the expressions one after the other along dim d, which may be the next new one."""
    if d is not _ZERO:
        return _along(xs, d)
    if type(xs) is not list or len(xs) != 2:
        return _in_column(xs)
    try:  # two columns, the commonest: `_of_list` once more, for a call takes 40 ns
        a, b = xs
        graph = a.graph
        if b.graph is not graph:
            raise KeyError
        types = graph.types
        number = _COLUMNS[a.type][b.type]
        index = len(types)
        types.append(number)
        args = graph.args
        args.append(a.index)
        args.append(b.index)
    except (AttributeError, KeyError, TypeError):
        return _along(xs, 0)
    e = Node()
    e.graph = graph
    e.index = index
    e.type = number
    return e


concatenate = short("of_list", concatenate, _CONCATENATE.types[0], _CONCATENATE.types[0].setdefault("alike", {}))


def _along(xs: Sequence[Expression], d: int) -> Expression:
    if d.__class__ is not int:
        d = _integer("concatenate", "d", d)
    table = _CONCATENATE.types.get(d)
    if table is None:
        table = _CONCATENATE.types.setdefault(d, {})
    return _nary(_CONCATENATE, xs, table, {"d": d})


@_of_list(_CONCATENATE, _CONCATENATE.types[0])
def _in_column(xs: Sequence[Expression]) -> Expression:
    return _along(xs, 0)


@_of_list(_CONCATENATE, _CONCATENATE.types.setdefault(1, {}))
def concatenate_cols(xs: Sequence[Expression]) -> Expression:
    """Return the expressions side by side: vectors (n,) become the columns of a matrix."""
    return _along(xs, 1)


@_of_list(_TO_BATCH, _TO_BATCH.types)
def concatenate_to_batch(xs: Sequence[Expression]) -> Expression:
    """Return the expressions as elements of one minibatch."""
    return _nary(_TO_BATCH, xs, _TO_BATCH.types)


# What a selection of an expression of some type becomes: node type and start, once it was asked for. (Parameters and dropped
# graphs have no lists of their own, so `_part` fails on them and the long way is taken.)
_RESHAPES: dict[Any, int] = {}
_PICKS: dict[int, dict[int, tuple[int, int, int]]] = {0: {}}  # by dim


def _as_vector(x: Expression) -> Expression:
    """Return a column (n,1), which a product with a column makes, as the vector (n,); all else as it is."""
    dims = _shape(x).dims
    return reshape(x, dims[:1], _shape(x).batch) if len(dims) == 2 and dims[1] == 1 else x


def reshape(x: Expression, d: tuple[int, ...], batch_size: int = 1) -> Expression:
    """Return the same numbers in other dims (column-major); no copy is made.

    If ``d`` x ``batch_size`` has as many numbers as x in all, these are the new dims; if ``d`` has as many as one element of
    the minibatch of x, the minibatch is kept.
    """
    try:
        graph = x.graph
        types = graph.types
        number = _RESHAPES[x.type, d, batch_size]
        index = len(types)
        types.append(number)
        args = graph.args
        args.append(x.index)
        args.append(0)
    except (AttributeError, KeyError, TypeError):
        check_expression("reshape", x)
    else:
        e = Node()
        e.graph = graph
        e.index = index
        e.type = number
        return e
    if not isinstance(d, tuple):
        raise OperandError(f"reshape: dims {ex.describe(d)}\n  expected  a tuple of numbers")
    old, new = _shape(x), _new_shape("reshape", d, batch_size)
    if new.total != old.total:
        if new.size != old.size:
            raise ShapeError(
                f"reshape: {new} has {new.total} numbers\n  got       {old}, {old.total} numbers\n  expected  as many numbers"
            )
        new = Shape(new.dims, old.batch)
    made = view("reshape", x, new)
    _RESHAPES[x.type, d, batch_size] = made.type
    return made


def _selected(op: Op, x: Expression, start: int, attributes: dict[str, Any], walk: Any) -> Expression:
    """Record a selection: as a view where it takes numbers that lie one after the other."""
    shape = _shape(x)
    if select.contiguous(*walk):
        return view(op.name, x, op.shape((shape,), **attributes), start)
    return record(op, (x,), attributes, (start,))


class PickExpression(Expression):
    """What `pick` picked; the index can be changed."""

    __slots__ = ()

    __init__ = object.__init__  # type: ignore[assignment]  # see `Node`

    def set_index(self, index: int) -> None:
        """Pick with another index, and forget all values of the graph.

        Raises
        ------
        ArgumentError : index out of range, or negative.
        """
        kind = TYPES.records[self.type]
        (shape,), attributes = kind.shapes, dict(kind.attributes)
        if kind.op is not None:
            size, stride = shape.dims[attributes["dim"]], select.strides_of(shape)[attributes["dim"]]
        else:  # a view: what is picked lies in one piece, so the pieces lie one after the other
            size, stride = shape.total // kind.shape.total, kind.shape.total
        ex.set_immediates(self, [_index("set_index", "the index", index, size) * stride])


class PickBatchExpression(Expression):
    """What `pick_batch` picked; the indices can be changed."""

    __slots__ = ()

    def set_index(self, indices: Sequence[int]) -> None:
        """Pick with other indices, as many, and forget all values of the graph.

        Raises
        ------
        ArgumentError : an index is out of range, or negative; another number of indices.
        """
        kind = TYPES.records[self.type]
        (shape,), attributes = kind.shapes, dict(kind.attributes)
        given = _sequence("set_index", "the indices", indices)
        if len(given) != attributes["count"]:
            raise ArgumentError(f"set_index: {len(given)} indices\n  expected  {attributes['count']}, as before")
        ex.set_immediates(self, _starts("set_index", shape, given, attributes["dim"]))


def _as(kind: type[Expression], e: Any) -> Expression:
    """Return an expression as one of another class, without parts of its own."""
    e.__class__ = kind
    return e  # type: ignore[no-any-return]


def pick(e: Expression, index: int = 0, dim: int = 0) -> Expression:
    """Return the elements with this index along a dim, which vanishes; (n,) gives (1,).

    The result has a method `set_index`, which changes the index.

    Raises
    ------
    ArgumentError : index out of range; NegativeIndexError for a negative one (``e[-1]`` counts from the end).
    """
    try:
        if type(index) is not int or type(dim) is not int:
            raise KeyError
        number, size, stride = _PICKS[dim][e.type]
        if not 0 <= index < size:
            raise KeyError
        graph = e.graph
        types = graph.types
        node = len(types)
        types.append(number)
        args = graph.args
        args.append(e.index)
        args.append(index * stride)
    except (AttributeError, KeyError, TypeError):
        check_expression("pick", e)
    else:
        part = PickExpression()
        part.graph = graph
        part.index = node
        part.type = number
        return part
    op, shape = OPS["pick"], _shape(e)
    dim = _integer("pick", "the dim", dim)
    op.shape((shape,), dim=dim)
    size, stride = shape.dims[dim], select.strides_of(shape)[dim]
    picked = _selected(op, e, _index("pick", "the index", index, size) * stride, {"dim": dim}, select.pick_walk(shape, dim))
    _PICKS.setdefault(dim, {})[e.type] = picked.type, size, stride
    return _as(PickExpression, picked)


pick = short("picked", pick, _PICKS[0], None, PickExpression)


def _starts(op: str, shape: Shape, indices: Sequence[int], dim: int) -> list[int]:
    """Return where in x that begins what `pick_batch` picks for each element of the minibatch."""
    stride = select.strides_of(shape)[dim]
    return [
        _index(op, "an index", i, shape.dims[dim]) * stride + (b * shape.size if shape.batch > 1 else 0)
        for b, i in enumerate(indices)
    ]


def pick_batch(e: Expression, indices: Sequence[int], dim: int = 0) -> Expression:
    """Return for each element of the minibatch the elements with its own index along a dim; an unbatched e is repeated.

    The result has a method `set_index`, which changes the indices.
    """
    check_expression("pick_batch", e)
    op, shape = OPS["pick_batch"], _shape(e)
    dim, indices = _integer("pick_batch", "the dim", dim), _sequence("pick_batch", "the indices", indices)
    attributes = {"dim": dim, "count": len(indices)}
    op.shape((shape,), **attributes)
    return _as(PickBatchExpression, record(op, (e,), attributes, _starts("pick_batch", shape, indices, dim)))


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


def pick_batch_elem(x: Expression, v: int) -> Expression:
    """Return element v of the minibatch of x, without a minibatch; no copy is made.

    Raises
    ------
    ArgumentError : v out of range; NegativeIndexError for a negative one. (DyNet finds out when it computes.)
    """
    try:
        number, batch, size = _ELEMENTS[x.type]
        if v.__class__ is int and 0 <= v < batch:
            return _part(x, number, v * size)
    except (AttributeError, KeyError, TypeError):
        check_expression("pick_batch_elem", x)
    shape = _shape(x)
    e = view("pick_batch_elem", x, Shape(shape.dims), _index("pick_batch_elem", "the index", v, shape.batch) * shape.size)
    _ELEMENTS[x.type] = e.type, shape.batch, shape.size
    return e


_ELEMENTS: dict[Any, tuple[int, int, int]] = {}


def _taken(name: str, x: Expression, axis: int, indices: Sequence[int]) -> Expression:
    """Record the elements with these indices along an axis, -1 for the minibatch."""
    check_expression(name, x)
    op, shape, numbers = OPS[name], _shape(x), _sequence(name, "the indices", indices)
    attributes = {"count": len(numbers)}
    op.shape((shape,), **attributes)
    size = (*shape.dims, shape.batch)[axis]
    return record(op, (x,), attributes, [_index(name, "an index", i, size) for i in numbers])


def pick_batch_elems(x: Expression, vs: Sequence[int]) -> Expression:
    """Return the elements of the minibatch of x with these indices as a minibatch of len(vs); an index may repeat.

    Nodes with as many indices run as one batch, whatever the indices are.

    Raises
    ------
    ArgumentError : no index, or one out of range; NegativeIndexError for a negative one.
    """
    return _taken("pick_batch_elems", x, -1, vs)


def select_rows(x: Expression, rs: Sequence[int]) -> Expression:
    """Return the rows of x with these indices, in this order: (r,...) gives (len(rs),...); an index may repeat.

    Nodes with as many indices run as one batch, whatever the indices are.

    Raises
    ------
    ArgumentError : no index, or one out of range; NegativeIndexError for a negative one.
    """
    return _taken("select_rows", x, 0, rs)


def select_cols(x: Expression, cs: Sequence[int]) -> Expression:
    """Return the columns of a matrix with these indices, in this order: (r,c) gives (r,len(cs)); an index may repeat.

    Nodes with as many indices run as one batch, whatever the indices are.

    Raises
    ------
    ShapeError : x is no matrix.
    ArgumentError : no index, or one out of range; NegativeIndexError for a negative one.
    """
    return _taken("select_cols", x, 1, cs)


def fold_rows(x: Expression, nrows: int = 2) -> Expression:
    """Return the sums of groups of `nrows` consecutive rows of a matrix: (r,c) gives (r/nrows,c); a vector is one column.

    Of each element of a minibatch by itself. (DyNet loses the minibatch.)

    Raises
    ------
    ShapeError : `nrows` does not divide the number of rows, or x has more than 2 dims.
    ArgumentError : `nrows` below 1.
    """
    check_expression("fold_rows", x)
    return record(OPS["fold_rows"], (x,), {"nrows": _integer("fold_rows", "nrows", nrows)})


def kmh_ngram(x: Expression, v: int) -> Expression:
    """Return the sums of v neighbouring columns of a matrix: (r,c) gives (r,c-v+1).

    Of each element of a minibatch by itself. (DyNet takes no minibatch, and does not survive v > c.)

    Raises
    ------
    ShapeError : x is no matrix, or v is not from 1 to c.
    """
    check_expression("kmh_ngram", x)
    return record(OPS["kmh_ngram"], (x,), {"n": _integer("kmh_ngram", "v", v)})


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


def strided_select(x: Expression, strides: Sequence[int], range_from: Sequence[int], range_to: Sequence[int]) -> Expression:
    """Return ``x[from0:to0:stride0, from1:to1:stride1, ...]``; one more entry than dims addresses the batch."""
    check_expression("strided_select", x)
    full = (*_shape(x).dims, _shape(x).batch)
    strides = _sequence("strided_select", "the strides", strides)
    range_from = _sequence("strided_select", "the begins", range_from)
    range_to = _sequence("strided_select", "the ends", range_to)
    count = max(len(strides), len(range_from), len(range_to))
    if count > len(full):
        raise ArgumentError(f"strided_select: {count} ranges for {_shape(x)}\n  expected  at most {len(full)}")
    steps = [*strides, *[1] * (count - len(strides))]
    begins = [*range_from, *[0] * (count - len(range_from))]
    ends = [*range_to, *full[len(range_to) : count]]
    return _range("strided_select", x, steps, begins, ends)


def transpose(x: Expression, dims: Sequence[int] = (1, 0)) -> Expression:
    """Return x with its axes in another order; (n,) becomes (1,n)."""
    if type(dims) is tuple:
        order = dims
    else:
        order = tuple(dims) if isinstance(dims, (tuple, list)) else tuple(_sequence("transpose", "the dims", dims))
    try:
        graph = x.graph
        types = graph.types
        number = _TRANSPOSES[order][x.type]
        index = len(types)
        types.append(number)
        args = graph.args
        args.append(x.index)
        args.append(0)
    except (AttributeError, KeyError, TypeError):
        check_expression("transpose", x)
    else:
        e = Node()
        e.graph = graph
        e.index = index
        e.type = number
        return e
    op, shape = OPS["transpose"], _shape(x)
    axes = tuple(_integer("transpose", "a dim", d) for d in order)
    op.shape((shape,), dims=axes)
    made = _selected(op, x, 0, {"dims": axes}, select.transpose_walk(shape, axes))
    _TRANSPOSES.setdefault(order, {})[x.type] = made.type
    return made


_TRANSPOSES: dict[Any, dict[int, int]] = {}  # by dims

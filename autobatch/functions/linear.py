"""Linear algebra: products, and distances between vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autobatch import expression as ex
from autobatch.arguments import _list, _shape
from autobatch.expression import Expression, Node, check_expression, view
from autobatch.graph import Graph
from autobatch.kernels._errors import ShapeError
from autobatch.kernels._op import OPS, Shape, common_batch, trimmed, wrong
from autobatch.recorder import short
from autobatch.shortcuts import _binary, _nary, _part, _unary

_matmul = _binary("matmul")
dot_product = _binary("dot_product")
squared_distance = _binary("squared_distance")
trace_of_product = _binary("trace_of_product")
inverse = _unary("inverse")
contract3d_1d = _binary("contract3d_1d")
_AFFINE = OPS["affine_transform"]


def affine_transform(exprs: Sequence[Expression]) -> Expression:
    """Return b + Σ Wᵢ xᵢ for a list [b, W1, x1, W2, x2, ...].

    b is (r,) or (r,c), Wᵢ (r,kᵢ), xᵢ (kᵢ,) or (kᵢ,c); the result is (r,) or (r,c).
    """
    try:
        if type(exprs) is not list:  # to go through an expression would record its parts
            raise KeyError
        n = len(exprs)
        if n == 3:
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
        elif n == 5:
            b, W, x, U, h = exprs
            number = _AFFINE_OF_FIVE[b.type][W.type][x.type][U.type][h.type]
            graph = x.graph
            if h.graph is not graph:
                raise KeyError
            parameters = graph.parameters
            if b not in parameters:
                graph.enter(b)
            if W not in parameters:
                graph.enter(W)
            if U not in parameters:
                graph.enter(U)
            types = graph.types
            index = len(types)
            types.append(number)
            args = graph.args
            args += (b.index, W.index, x.index, U.index, h.index)
        else:
            raise KeyError
    except (AttributeError, KeyError, TypeError):
        return _affine(exprs)
    e = Node()
    e.graph = graph
    e.index = index
    e.type = number
    return e


def _affine(exprs: Any) -> Expression:
    """Record an affine transform of any number of arguments, after checking them; remember its type for the short way."""
    arguments = exprs if exprs.__class__ is list else _list("affine_transform", exprs)
    if len(arguments) % 2 == 0:
        arguments = _list("affine_transform", arguments)
        raise ShapeError(
            f"affine_transform: {len(arguments)} arguments\n  expected  an odd number of them: b, then pairs of W and x"
        )
    e = _nary(_AFFINE, arguments, _AFFINE.types)
    if len(arguments) in (3, 5) and isinstance(e.graph, Graph):
        if [a.graph for a in arguments] == [None, *[None, e.graph] * (len(arguments) // 2)]:
            ex.remember(_AFFINE_TYPES, [len(arguments), *[a.type for a in arguments]], e.type)
    return e


# b and all W parameters, all x not: how many arguments, their types, one after the other -> node type
_AFFINE_OF_THREE: dict[Any, Any] = {}
_AFFINE_OF_FIVE: dict[Any, Any] = {}
_AFFINE_TYPES = {3: _AFFINE_OF_THREE, 5: _AFFINE_OF_FIVE}
affine_transform = short("of_list", affine_transform, _AFFINE_TYPES)


def logdet(x: Expression) -> Expression:
    """Return the logarithm of the determinant of a square matrix, (1,): NaN if that is negative, -inf if it is 0.

    dx += dy x⁻ᵀ. Each element of a minibatch has its own (DyNet: no minibatch).

    Raises
    ------
    ShapeError : x is no square matrix.
    """
    node = _inverted(x)
    number = _LOGDETS.get(node.type)
    if number is not None and node.graph.types is not None:
        return _part(node, number, 0)
    e: Expression = view("logdet", node, Shape((1,), _shape(x).batch))
    _LOGDETS[node.type] = e.type
    return e


_inverted = _unary("logdet")  # the value and, behind it, the inverse
_LOGDETS: dict[int, int] = {}  # its type -> type of the view of the value


def contract3d_1d_bias(x: Expression, y: Expression, b: Expression) -> Expression:
    """Return Σ_k x[:,:,k] y[k] + b for x (i,j,k), y (k,), b (i,j); the result is (i,j).

    Raises
    ------
    ShapeError : the dims do not fit; batch sizes are neither equal nor 1.
    """
    _contraction("contract3d_1d_bias", (x, y, b), "x (i,j,k), y (k,), b (i,j)")
    return _composed(x, y, lambda xy: _add(xy, b))


def contract3d_1d_1d(x: Expression, y: Expression, z: Expression) -> Expression:
    """Return Σ_j Σ_k x[:,j,k] y[k] z[j] for x (i,j,k), y (k,), z (j,); the result is (i,).

    Raises
    ------
    ShapeError : the dims do not fit (DyNet does not check those of z); batch sizes are neither equal nor 1.
    """
    _contraction("contract3d_1d_1d", (x, y, z), "x (i,j,k), y (k,), z (j,)")
    return _composed(x, y, lambda xy: _matmul(xy, z))


def contract3d_1d_1d_bias(x: Expression, y: Expression, z: Expression, b: Expression) -> Expression:
    """Return Σ_j Σ_k x[:,j,k] y[k] z[j] + b for x (i,j,k), y (k,), z (j,), b (i,); the result is (i,).

    Raises
    ------
    ShapeError : the dims do not fit; batch sizes are neither equal nor 1.
    """
    _contraction("contract3d_1d_1d_bias", (x, y, z, b), "x (i,j,k), y (k,), z (j,), b (i,)")
    return _composed(x, y, lambda xy: affine_transform([b, xy, z]))


_add = _binary("add")
_CONTRACTIONS: set[Any] = set()  # names and types of arguments that fit


def _contraction(name: str, arguments: tuple[Expression, ...], expected: str) -> None:
    """Check the arguments of a contraction that becomes more than one node; `expected` says their dims."""
    try:
        key = (name, *[e.type for e in arguments])
    except AttributeError:
        key = ()
    if key in _CONTRACTIONS:
        return
    for k, e in enumerate(arguments, 1):
        check_expression(name, e, k)
    shapes = [_shape(e) for e in arguments]
    sizes: dict[str, int] = {}
    for argument, shape in zip(expected.split(", "), shapes, strict=True):
        what, letters = argument.split()
        dims, given = letters.strip("(,)").split(","), trimmed(shape.dims) if what == "y" else shape.dims
        if len(dims) != len(given):
            raise wrong(name, f"{what} has {len(given)} dim" + ("s" if len(given) > 1 else ""), shapes, expected)
        for letter, size in zip(dims, given, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise wrong(name, f"{letter} is {sizes[letter]} in x but {size} in {what}", shapes, expected)
    common_batch(name, shapes)
    _CONTRACTIONS.add(key)


def _composed(x: Expression, y: Expression, rest: Any) -> Expression:
    """Record the contraction of x and y, and the node that `rest` makes of it; or none of both."""
    xy = contract3d_1d(x, y)
    try:
        result: Expression = rest(xy)
    except BaseException:
        ex.graph_of(xy.graph).undo(xy.index)
        raise
    return result

"""Linear algebra: products, and distances between vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autobatch import expression as ex
from autobatch.arguments import _list
from autobatch.expression import Expression
from autobatch.graph import Graph
from autobatch.kernels._errors import ShapeError
from autobatch.kernels._op import OPS
from autobatch.shortcuts import _binary, _nary

_new = object.__new__

_matmul = _binary("matmul")
dot_product = _binary("dot_product")
squared_distance = _binary("squared_distance")
_AFFINE = OPS["affine_transform"]


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

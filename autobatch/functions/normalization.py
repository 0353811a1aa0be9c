"""Normalisation of activations and of weights."""

from __future__ import annotations

from collections.abc import Callable

from autobatch.expression import Expression, check_expression
from autobatch.kernels._op import OPS
from autobatch.shortcuts import _binary, _nary

_LAYER_NORM = OPS["layer_norm"]
_weight_norm: Callable[[Expression, Expression], Expression] = _binary("weight_norm")


def layer_norm(x: Expression, g: Expression, b: Expression) -> Expression:
    """Return g ∘ (x - μ) / (s + 1e-8) + b with μ and s the mean and population deviation of each element of the minibatch.

    Parameters
    ----------
    x : any dims (DyNet: at most 2).
    g, b : gain and bias; they, and x, are broadcast as by `cmult` and `+`: missing dims are ones at the end, and each dim, and
        the batch, matches or is 1.

    Raises
    ------
    ShapeError : the shapes do not broadcast.

    Source
    ------
    J. L. Ba, J. R. Kiros, G. E. Hinton, Layer normalization (2016). One node (DyNet: six). Of numbers that are all equal s is
    0, and so is its gradient (DyNet: NaN).
    """
    for k, e in enumerate((x, g, b), 1):
        if not isinstance(e, Expression):
            check_expression("layer_norm", e, k)
    return _nary(_LAYER_NORM, [x, g, b], _LAYER_NORM.types)


def weight_norm(w: Expression, g: Expression) -> Expression:
    """Return g w / ‖w‖ for each element of the minibatch; a batch of 1 goes with any (DyNet takes no minibatch).

    Parameters
    ----------
    w : any dims; NaN if all its numbers are 0.
    g : one number.

    Raises
    ------
    ShapeError : g has more than one number; the batch sizes do not fit.

    Source
    ------
    T. Salimans, D. P. Kingma, Weight normalization (2016).
    """
    return _weight_norm(w, g)

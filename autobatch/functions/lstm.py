"""An LSTM step in parts: gates, then c, then h. (A builder records the whole step as one node, which is faster.)

The gates of a step are two nodes: the products, an `affine_transform`, and the activations. So the products of all steps with
the same parameters that are ready run as one. The result is the node of the activations; any argument may have a minibatch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autobatch.arguments import _list, _shape
from autobatch.expression import Expression, as_float, check_expression, owner
from autobatch.functions.arithmetic import cmult
from autobatch.functions.linear import affine_transform
from autobatch.functions.noise import noise
from autobatch.functions.selection import concatenate
from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._op import common_batch, wrong
from autobatch.shortcuts import _binary, _unary

_activated = _unary("lstm_gates")
_FITTING: set[tuple[object, ...]] = set()  # types of arguments that were found to fit, behind the name


def _check(name: str, xs: list[Expression], h: Expression, weights: Sequence[Expression], masks: Sequence[Expression]) -> None:
    """Raise unless the shapes fit."""
    x_shapes, shape, masked = [_shape(x) for x in xs], _shape(h), [_shape(m) for m in masks]
    shapes = [*x_shapes, shape, *(_shape(w) for w in weights), *masked]
    expected = "x (I,)  h (H,)  Wx (4H,I)  Wh (4H,H)  b (4H,)" + ("  mask_x (I,)  mask_h (H,)" if masks else "")
    I, H = sum(s.size for s in x_shapes), shape.size
    if any(len(s.dims) != 1 for s in (*x_shapes, shape)):
        raise wrong(name, "x and h are not vectors", shapes, expected)
    for what, weight, dims in zip(("Wx", "Wh", "b"), weights, ((4 * H, I), (4 * H, H), (4 * H,)), strict=True):
        if _shape(weight).dims != dims:
            raise wrong(name, f"{what} does not fit x of {I} and h of {H} numbers", shapes, expected)
    if any(s.dims != (n,) for s, n in zip(masked, (I, H), strict=False)):
        raise wrong(name, f"the masks do not fit x of {I} and h of {H} numbers", shapes, expected)
    common_batch(name, shapes)


def _gates(
    name: str, xs: list[Expression], h: Expression, weights: Sequence[Expression], std: float, masks: Sequence[Expression] = ()
) -> Expression:
    arguments = [*xs, h, *weights, *masks]
    for k, e in enumerate(arguments, 1):
        check_expression(name, e, k)
    std = as_float(name, "weightnoise_std", std)
    if not 0 <= std < math.inf:
        raise ArgumentError(f"{name}: weightnoise_std is {std}\n  expected  a standard deviation, 0 for no noise")
    types = (name, *[e.type for e in arguments])
    if types not in _FITTING:
        _check(name, xs, h, weights, masks)
        _FITTING.add(types)
    graph = owner(name, arguments)
    nodes = len(graph.recorded_types)
    try:
        x = xs[0] if len(xs) == 1 else concatenate(xs)
        if masks:
            x, h = cmult(x, masks[0]), cmult(h, masks[1])
        if std > 0:
            weights = [noise(w, std) for w in weights]
        wx, wh, b = weights
        return _activated(affine_transform([b, wx, x, wh, h]))
    except BaseException:
        graph.undo(nodes)
        raise


def vanilla_lstm_gates(
    x_t: Expression, h_tm1: Expression, Wx: Expression, Wh: Expression, b: Expression, weightnoise_std: float = 0.0
) -> Expression:
    """Return the gates of an LSTM step, (σ(aᵢ), σ(a_f + 1), σ(aₒ), tanh(a_g)) with a = Wx x + Wh h + b, as one vector (4H,).

    Parameters
    ----------
    x_t, h_tm1 : input (I,) of this step, and h (H,) of the one before.
    Wx, Wh, b : (4H,I), (4H,H), (4H,); rows of i, f, o, g, in this order.
    weightnoise_std : standard deviation of Gaussian noise that is added to all weights, drawn anew for each step. Steps with
    noise have weights of their own, so their products run one by one. (With noise DyNet leaves the products out.)

    Raises
    ------
    ShapeError : the sizes do not fit.
    ArgumentError : weightnoise_std below 0.
    """
    return _gates("vanilla_lstm_gates", [x_t], h_tm1, (Wx, Wh, b), weightnoise_std)


def vanilla_lstm_gates_concat(
    x_t: Sequence[Expression], h_tm1: Expression, Wx: Expression, Wh: Expression, b: Expression, weightnoise_std: float = 0.0
) -> Expression:
    """Return `vanilla_lstm_gates` with the concatenation of a list of vectors as input."""
    name = "vanilla_lstm_gates_concat"
    return _gates(name, _list(name, x_t), h_tm1, (Wx, Wh, b), weightnoise_std)


def vanilla_lstm_gates_dropout(
    x_t: Expression,
    h_tm1: Expression,
    Wx: Expression,
    Wh: Expression,
    b: Expression,
    dropout_mask_x: Expression,
    dropout_mask_h: Expression,
    weightnoise_std: float = 0.0,
) -> Expression:
    """Return `vanilla_lstm_gates` of x and h times masks, (I,) and (H,), number by number.

    The masks get gradients like any factor. (In DyNet they get none, and an h without a minibatch a wrong one, if x has one.)
    Source: Gal and Ghahramani 2016, if the masks are the same at all steps.
    """
    masks = dropout_mask_x, dropout_mask_h
    return _gates("vanilla_lstm_gates_dropout", [x_t], h_tm1, (Wx, Wh, b), weightnoise_std, masks)


def vanilla_lstm_gates_dropout_concat(
    x_t: Sequence[Expression],
    h_tm1: Expression,
    Wx: Expression,
    Wh: Expression,
    b: Expression,
    dropout_mask_x: Expression,
    dropout_mask_h: Expression,
    weightnoise_std: float = 0.0,
) -> Expression:
    """Return `vanilla_lstm_gates_dropout` with the concatenation of a list of vectors as input; its mask is for all of it."""
    name, masks = "vanilla_lstm_gates_dropout_concat", (dropout_mask_x, dropout_mask_h)
    return _gates(name, _list(name, x_t), h_tm1, (Wx, Wh, b), weightnoise_std, masks)


_c = _binary("vanilla_lstm_c")
_h = _binary("vanilla_lstm_h")


def vanilla_lstm_c(c_tm1: Expression, gates_t: Expression) -> Expression:
    """Return c of an LSTM step, i ∘ g + f ∘ c, (H,), from c of the step before and the gates (4H,).

    Raises
    ------
    ShapeError : the gates are not four times as long as c.
    """
    return _c(c_tm1, gates_t)


def vanilla_lstm_h(c_t: Expression, gates_t: Expression) -> Expression:
    """Return h of an LSTM step, o ∘ tanh(c), (H,), from c of this step and the gates (4H,). Raises as `vanilla_lstm_c`."""
    return _h(c_t, gates_t)

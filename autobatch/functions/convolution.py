"""Convolution of images, sequences and vectors; pooling.

An image is (H,W,C): rows, columns, channels; (H,W) counts as one channel. Windows of (FH,FW) are moved by a stride (s,t). With
``is_valid=True`` they stay inside of the image, and there are H' = ⌈(H - FH + 1) / s⌉ of them in a column; with
``is_valid=False`` there are H' = ⌈H / s⌉, and what of a window is outside of the image counts as nothing: zeros are added,
max(0, (H' - 1) s + FH - H) in all, half of them (rounded down) at the top. The same holds for columns. (Where a large stride
makes windows end before the image does, DyNet's gradients are of other windows than its values.)
"""

from __future__ import annotations

from collections.abc import Sequence

from autobatch.arguments import _integer, _sequence
from autobatch.expression import Expression, check_expression, record
from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._op import OPS
from autobatch.shortcuts import _binary

_CONV2D, _CONV2D_BIAS, _MAXPOOLING2D = OPS["conv2d"], OPS["conv2d_bias"], OPS["maxpooling2d"]


def _pair(op: str, what: str, values: Sequence[int]) -> tuple[int, ...]:
    """Return a list of two integers; of four, as TensorFlow writes them, the first two, as DyNet does."""
    pair = tuple(_integer(op, what, v) for v in _sequence(op, what, values))
    if not 2 <= len(pair) <= 4:
        raise ArgumentError(f"{op}: {what} is {list(pair)}\n  expected  two numbers, for rows and columns")
    return pair[:2]


def conv2d(x: Expression, f: Expression, stride: Sequence[int], is_valid: bool = True) -> Expression:
    """Return the cross-correlation of an image (H,W,C) with filters (FH,FW,C,O): an image (H',W',O).

    ``y[i,j,o] = Σ x[i s + h, j t + w, c] f[h,w,c,o]``, over h, w, c. Of each element of a minibatch, of x or f or both; nodes
    of one shape run as one batch, whether they share their filters or not.

    Parameters
    ----------
    stride : two steps, for rows and columns.
    is_valid : whether windows stay inside of the image, see above.

    Raises
    ------
    ShapeError : the numbers of channels differ, or a filter is larger than the image.
    ArgumentError : a stride below 1 (DyNet does not survive it).
    """
    check_expression("conv2d", x, 1)
    check_expression("conv2d", f, 2)
    return record(_CONV2D, (x, f), {"stride": _pair("conv2d", "the stride", stride), "is_valid": bool(is_valid)})


def conv2d_bias(x: Expression, f: Expression, b: Expression, stride: Sequence[int], is_valid: bool = True) -> Expression:
    """Return `conv2d` of x and f, with b (O,) added: one number for each filter.

    Raises
    ------
    ShapeError, ArgumentError : as by `conv2d`, or b is not of shape (O,).
    """
    for k, e in enumerate((x, f, b), 1):
        check_expression("conv2d_bias", e, k)
    stride = _pair("conv2d_bias", "the stride", stride)
    return record(_CONV2D_BIAS, (x, f, b), {"stride": stride, "is_valid": bool(is_valid)})


def maxpooling2d(x: Expression, ksize: Sequence[int], stride: Sequence[int], is_valid: bool = True) -> Expression:
    """Return the largest number of each window of (H,W,C), channel by channel: (H',W',C). An image (H,W) gives (H',W').

    Among equal numbers the first of a window (column by column) gets the gradient. NaN counts as largest.

    Parameters
    ----------
    ksize : rows and columns of a window.
    stride : two steps, for rows and columns.
    is_valid : whether windows stay inside of the image; if not, what is outside is left out.

    Raises
    ------
    ShapeError : a window is larger than the image.
    ArgumentError : a size or a stride below 1.
    """
    check_expression("maxpooling2d", x)
    ksize, stride = _pair("maxpooling2d", "the window", ksize), _pair("maxpooling2d", "the stride", stride)
    return record(_MAXPOOLING2D, (x,), {"ksize": ksize, "stride": stride, "is_valid": bool(is_valid)})


filter1d_narrow = _binary("filter1d_narrow")
_circ_conv = _binary("circ_conv")
_circ_corr = _binary("circ_corr")


def circ_conv(u: Expression, v: Expression) -> Expression:
    """Return the circular convolution of two vectors (n,), y_k = Σ_i u_i v_(k-i), indices modulo n.

    Of each element of a minibatch; batch sizes may be 1 and B (DyNet: no minibatch).

    Raises
    ------
    ShapeError : the vectors differ in size.
    """
    return _circ_conv(u, v)


def circ_corr(u: Expression, v: Expression) -> Expression:
    """Return the circular correlation of two vectors (n,), y_k = Σ_i u_i v_(i+k), indices modulo n (see `circ_conv`)."""
    return _circ_corr(u, v)

"""Max pooling: y[i,j,c] = the largest number of window i,j of channel c.    dx at the first largest += dy

Windows lie as those of `conv2d`; what of a window is outside of the image is left out. The first is that with the smallest
column, then row: the first in memory. A NaN counts as largest.

On a card a lane takes one number: of y, or of dx, where it looks at all windows that contain it.
"""

import numpy as np

from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, inline, integers, item, kernel, number
from autobatch.kernels._lanes import items, lanes
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, wrong
from autobatch.kernels._reduce import quotient, remainder
from autobatch.kernels._windows import geometry, inside, positive, windows

# sizes: H, W, window FH, FW, H', W', strides s, t, top, left, channels and batch


@kernel
def maxpooling2d(ins, T):
    """y = the largest of each window: column by column of y, one number of all its windows after the other."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, W, rows, cols, s, top = sizes[0], sizes[1], sizes[4], sizes[5], sizes[6], sizes[8]
    lowest = -number(np.inf, T)
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for c in range(sizes[10] * cols):
            to, column = c * rows, c % cols * sizes[7] - sizes[9]
            for p in range(rows):
                y[to + p] = lowest
            for w in range(max(column, 0), min(column + sizes[3], W)):
                for h in range(max(top - (rows - 1) * s, 0), min(H + top, sizes[2])):  # what lies in the image at all
                    first, end = inside(h - top, s, rows, H)
                    at = (c // cols * W + w) * H + h - top
                    for p in range(first, end):
                        v = x[at + p * s]
                        y[to + p] = v if v > y[to + p] or v != v else y[to + p]


@maxpooling2d.on_card(work=lambda sizes: sizes[4] * sizes[5] * sizes[10])
def maxpooling2d_card(ins, T):
    """y = the largest of each window."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, W, rows, cols = sizes[0], sizes[1], sizes[4], sizes[5]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for q in lanes(rows * cols * sizes[10]):
            c, best = quotient(q, rows), -number(np.inf, T)
            row, column = remainder(q, rows) * sizes[6] - sizes[8], remainder(c, cols) * sizes[7] - sizes[9]
            for w in range(max(column, 0), min(column + sizes[3], W)):
                at = (quotient(c, cols) * W + w) * H
                for h in range(max(row, 0), min(row + sizes[2], H)):
                    v = x[at + h]
                    best = v if v > best or v != v else best
            y[q] = best


@inline
def _place(x, start, largest, w0, w1, h0, h1, H):
    """Where the largest number of a window, which is known, first occurs."""
    for w in range(w0, w1):
        for at in range(start + w * H + h0, start + w * H + h1):
            if x[at] == largest or x[at] != x[at]:
                return at
    return start + w0 * H + h0


@kernel
def maxpooling2d_gradient(ins, T):
    """dx at the place of the largest += dy; without ACCUMULATE the rest of dx is zero."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, W, rows, cols = sizes[0], sizes[1], sizes[4], sizes[5]
    for i in range(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(H * W * sizes[10]):
                dx[j] = 0
        for c in range(sizes[10] * cols):
            column, start = c % cols * sizes[7] - sizes[9], c // cols * W * H
            w0, w1 = max(column, 0), min(column + sizes[3], W)
            for p in range(rows):
                row, largest = p * sizes[6] - sizes[8], y[c * rows + p]
                h0, h1 = max(row, 0), min(row + sizes[2], H)
                dx[_place(x, start, largest, w0, w1, h0, h1, H)] += dy[c * rows + p]


@inline
def _around(place, window, stride, count):
    """First of the windows that contain a place, and the end of these; the first window of all begins at 0."""
    before = place - window + 1
    first = 0 if before <= 0 else quotient(before + stride - 1, stride)
    return first, min(count, quotient(place, stride) + 1)


@maxpooling2d_gradient.on_card(work=lambda sizes: sizes[0] * sizes[1] * sizes[10])
def maxpooling2d_gradient_card(ins, T):
    """dx of each number = or += dy of the windows of which it is the first that is the largest."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    H, W, rows, cols = sizes[0], sizes[1], sizes[4], sizes[5]
    for i in items(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for q in lanes(H * W * sizes[10]):
            line, total = quotient(q, H), number(0, T)
            channel, v = quotient(line, W), x[q]
            first_p, end_p = _around(remainder(q, H) + sizes[8], sizes[2], sizes[6], rows)
            first_c, end_c = _around(remainder(line, W) + sizes[9], sizes[3], sizes[7], cols)
            for c in range(first_c, end_c):
                column = c * sizes[7] - sizes[9]
                w0, w1 = max(column, 0), min(column + sizes[3], W)
                for p in range(first_p, end_p):
                    row, at = p * sizes[6] - sizes[8], (channel * cols + c) * rows + p
                    if v == y[at] or v != v:
                        h0, h1 = max(row, 0), min(row + sizes[2], H)
                        if _place(x, channel * W * H, y[at], w0, w1, h0, h1, H) == q:
                            total += dy[at]
            dx[q] = dx[q] + total if add else total


def _shape(shapes, ksize, stride, is_valid):
    x = shapes[0]
    if len(x.dims) not in (2, 3):
        raise wrong("maxpooling2d", f"{len(x.dims)} dims", [x], "an image (H,W,C) or (H,W)")
    positive("maxpooling2d", "the window", ksize)
    positive("maxpooling2d", "the stride", stride)
    sizes = [windows("maxpooling2d", shapes, x.dims[d], ksize[d], stride[d], is_valid)[0] for d in (0, 1)]
    return Shape((*sizes, *x.dims[2:]), x.batch)


def _lower(shapes, out, shared, ksize, stride, is_valid):
    x = shapes[0]
    before = [windows("", shapes, x.dims[d], ksize[d], stride[d], is_valid)[1] for d in (0, 1)]
    channels = x.total // (x.dims[0] * x.dims[1])
    sizes = (*x.dims[:2], *ksize, *out.dims[:2], *stride, *before, channels)
    return Lowering(maxpooling2d, sizes, (Operand(backward=maxpooling2d_gradient, needs=(0,)),))


def _reference(x, ksize, stride, is_valid):
    (rows, top), (cols, left) = (windows("", [], x.shape[d], ksize[d], stride[d], is_valid) for d in (0, 1))
    y = np.empty((rows, cols, *x.shape[2:]))
    for i in range(rows):
        for j in range(cols):
            h, w = i * stride[0] - top, j * stride[1] - left
            y[i, j] = x[max(h, 0) : h + ksize[0], max(w, 0) : w + ksize[1]].max(axis=(0, 1))
    return y


def _samples(choose):
    sizes, window, stride, is_valid = geometry(choose)
    dims = tuple(sizes) if choose.integer(0, 2) == 0 else (*sizes, choose.integer(1, 3))
    return Sample((Tensor(Shape(dims, choose.batch())), window, stride, is_valid))


MAXPOOLING2D = Op(
    name="maxpooling2d",
    doc="The largest number of each window of an image.    dx at the first largest += dy",
    shapes="(H,W,C) -> (H',W',C)",
    shape=_shape,
    lower=_lower,
    reference=_reference,
    samples=_samples,
)

"""Convolution of images with filters, without flipping them: cross-correlation.

    y[i,j,o] = b[o] + Σ_h,w,c x[i s + h - top, j t + w - left, c] f[h,w,c,o]

Column-major, an image (H,W,C) has H fastest. VALID: windows lie inside of the image, H' = ⌈(H - FH + 1) / s⌉, nothing is
padded. SAME: H' = ⌈H / s⌉, and max(0, (H' - 1) s + FH - H) zeros are added, half of them, rounded down, at the top.

The windows of an image are the rows of a matrix X of P = H'W' rows and K = FH FW C columns, the filters are a matrix F (K,O):
Y = X F, dF += Xᵀ dY, dX += dY Fᵀ. X would be FH FW times as large as the image, so a piece of it is formed at a time, on the
stack, and goes into a product while it is in the cache:

    x (H,W,C)   ->   X  | rows p to p + n, columns k to k + m |  (n m <= WORK)   ->   Y[p:p+n] += X F[k:k+m]

On a card X is formed nowhere: the tiles of `_gemm.py` look for its numbers in the image. Sums over many images are cut into
pieces, which a second launch adds in order. For dx a lane takes a number, and goes through the windows over it.
"""

import numpy as np
from numpy import int32

from autobatch.kernels import _blas
from autobatch.kernels._blas import gemm_at
from autobatch.kernels._gemm import FULL, Product, Windows, matrix, numbers, own, summed
from autobatch.kernels._jit import (
    ACCUMULATE,
    FLAGS,
    ITEMS,
    SIZES,
    WORK,
    Count,
    Stage,
    inline,
    integers,
    item,
    kernel,
    number,
    work_space,
)
from autobatch.kernels._lanes import items, joined, lanes, leader, quotient
from autobatch.kernels._op import SHARED, Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, wrong
from autobatch.kernels._tiles import block_x, block_z, blocks_z, thread_y
from autobatch.kernels._windows import geometry, inside, positive, windows

_DEEPEST = 512  # columns of a piece of X at most, so that it has 32 rows at least

# sizes: H W C, FH FW O, H' W', batch B, of x, of f, is there a bias, its batch; then how windows are walked. Of the two dims,
# `a` is the one that is walked in the inner loop: rows, or columns if H' = 1. For a and then for b:
#     numbers in the image, windows, stride, numbers before the image, step in memory, and for a: is it the columns
_A, _B, _SWAPPED = 13, 18, 23


@inline
def _piece(sizes):
    """Rows P and columns K of X, and rows and columns of a piece of it."""
    rows, depth = sizes[6] * sizes[7], sizes[2] * sizes[3] * sizes[4]
    pieces = (depth + _DEEPEST - 1) // _DEEPEST
    m = (depth + pieces - 1) // pieces
    return rows, depth, min(rows, WORK // m), m


@inline
def _first(k, sizes):
    """Where in the image tap k of window 0 lies: places along a and b, and the start of the channel."""
    h, w = k % sizes[3], k // sizes[3] % sizes[4]
    a, b = (w, h) if sizes[_SWAPPED] else (h, w)
    return a - sizes[_A + 3], b - sizes[_B + 3], k // (sizes[3] * sizes[4]) * sizes[0] * sizes[1]


@inline
def _gather(work, x, start, p, n, k, m, sizes):
    """work (n,m) = rows p to p + n and columns k to k + m of X."""
    size_a, windows_a, stride_a, step_a = sizes[_A], sizes[_A + 1], sizes[_A + 2], sizes[_A + 4]
    size_b, stride_b, step_b = sizes[_B], sizes[_B + 2], sizes[_B + 4]
    i0, j0 = p % windows_a, p // windows_a
    step = stride_a * step_a
    for c in range(m):
        a, b, channel = _first(k + c, sizes)
        i, j, r = i0, j0, 0
        while r < n:
            count, place_a, place_b, to = min(windows_a - i, n - r), a + i * stride_a, b + j * stride_b, c * n + r
            first, end = inside(place_a, stride_a, count, size_a) if 0 <= place_b < size_b else (0, 0)
            at = start + channel + place_a * step_a + place_b * step_b
            for q in range(first):
                work[to + q] = 0
            if step == 1:
                for q in range(first, end):
                    work[to + q] = x[at + q]
            else:
                for q in range(first, end):
                    work[to + q] = x[at + q * step]
            for q in range(end, count):
                work[to + q] = 0
            i, j, r = 0, j + 1, r + count


@inline
def _scatter(work, dx, start, p, n, k, m, sizes):
    """dx += the piece of dX in work (n,m), each number where it was gathered from."""
    size_a, windows_a, stride_a, step_a = sizes[_A], sizes[_A + 1], sizes[_A + 2], sizes[_A + 4]
    size_b, stride_b, step_b = sizes[_B], sizes[_B + 2], sizes[_B + 4]
    i0, j0 = p % windows_a, p // windows_a
    step = stride_a * step_a
    for c in range(m):
        a, b, channel = _first(k + c, sizes)
        i, j, r = i0, j0, 0
        while r < n:
            count, place_a, place_b, source = min(windows_a - i, n - r), a + i * stride_a, b + j * stride_b, c * n + r
            first, end = inside(place_a, stride_a, count, size_a) if 0 <= place_b < size_b else (0, 0)
            at = start + channel + place_a * step_a + place_b * step_b
            if step == 1:
                for q in range(first, end):
                    dx[at + q] += work[source + q]
            else:
                for q in range(first, end):
                    dx[at + q * step] += work[source + q]
            i, j, r = 0, j + 1, r + count


@kernel(before=_blas.ready)
def convolve(ins, T):
    """y = b + X F, image by image, piece by piece."""
    n, sizes, work = ins[ITEMS], integers(ins[SIZES]), work_space(T)
    rows, depth, height, width = _piece(sizes)
    image, out = sizes[0] * sizes[1] * sizes[2], sizes[5]
    for i in range(n):
        y, x, f = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for b in range(sizes[8]):
            at_x, at_f, at_y = b * image if sizes[9] > 1 else 0, b * depth * out if sizes[10] > 1 else 0, b * rows * out
            if sizes[11]:
                bias, at_b = item(ins, 3, i, T), b * out if sizes[12] > 1 else 0
                for o in range(out):
                    for p in range(rows):
                        y[at_y + o * rows + p] = bias[at_b + o]
            for p in range(0, rows, height):
                h = min(height, rows - p)
                for k in range(0, depth, width):
                    w = min(width, depth - k)
                    _gather(work, x, at_x, p, h, k, w, sizes)
                    add = sizes[11] or k > 0
                    gemm_at(False, False, h, out, w, work, 0, h, f, at_f + k, depth, add, y, at_y + p, rows, T)


@kernel(before=_blas.ready)
def convolve_gradient_x(ins, T):
    """dX += dY Fᵀ, from where it is added to dx."""
    n, sizes, work = ins[ITEMS], integers(ins[SIZES]), work_space(T)
    rows, depth, height, width = _piece(sizes)
    image, out = sizes[0] * sizes[1] * sizes[2], sizes[5]
    for i in range(n):
        dx, dy, f = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(image * sizes[9]):
                dx[j] = 0
        for b in range(sizes[8]):
            at_x, at_f, at_y = b * image if sizes[9] > 1 else 0, b * depth * out if sizes[10] > 1 else 0, b * rows * out
            for p in range(0, rows, height):
                h = min(height, rows - p)
                for k in range(0, depth, width):
                    w = min(width, depth - k)
                    gemm_at(False, True, h, w, out, dy, at_y + p, rows, f, at_f + k, depth, False, work, 0, h, T)
                    _scatter(work, dx, at_x, p, h, k, w, sizes)


@inline
def _gradient_f(ins, T):
    n, sizes, work = ins[ITEMS], integers(ins[SIZES]), work_space(T)
    rows, depth, height, width = _piece(sizes)
    image, out = sizes[0] * sizes[1] * sizes[2], sizes[5]
    for i in range(n):
        df, dy, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(depth * out * sizes[10]):
                df[j] = 0
        for b in range(sizes[8]):
            at_x, at_f, at_y = b * image if sizes[9] > 1 else 0, b * depth * out if sizes[10] > 1 else 0, b * rows * out
            for p in range(0, rows, height):
                h = min(height, rows - p)
                for k in range(0, depth, width):
                    w = min(width, depth - k)
                    _gather(work, x, at_x, p, h, k, w, sizes)
                    gemm_at(True, False, w, out, h, work, 0, h, dy, at_y + p, rows, True, df, at_f + k, depth, T)


@kernel(before=_blas.ready)
def convolve_gradient_f(ins, T):
    """dF = or += Xᵀ dY."""
    _gradient_f(ins, T)


@kernel(before=_blas.ready)
def convolve_parameter_gradient_f(ins, T):
    """The same for filters that are a parameter, over all items of the type at once."""
    _gradient_f(ins, T)


@inline(reductions=True)
def _gradient_b(ins, T):
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    rows, out = sizes[6] * sizes[7], sizes[5]
    for i in range(n):
        db, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for o in range(out * sizes[12]):
                db[o] = 0
        for b in range(sizes[8]):
            at = b * out if sizes[12] > 1 else 0
            for o in range(out):
                total = number(0, T)
                for p in range(rows):
                    total += dy[(b * out + o) * rows + p]
                db[at + o] += total


@kernel(reductions=True)
def convolve_gradient_b(ins, T):
    """db = or += the sums of dy over the pixels."""
    _gradient_b(ins, T)


@kernel(reductions=True)
def convolve_parameter_gradient_b(ins, T):
    """The same for a bias that is a parameter, over all items of the type at once."""
    _gradient_b(ins, T)


# On a card ------------------------------------------------------------------------------------------------------------


@inline
def _steps(sizes):
    """Stride and numbers before the image, along its rows and its columns."""
    h, w = (_B, _A) if sizes[_SWAPPED] else (_A, _B)
    return sizes[h + 2], sizes[h + 3], sizes[w + 2], sizes[w + 3]


@inline(always=True)
def _place(p, sizes):
    """Where in an image window p begins."""
    stride, top, stride_w, left = _steps(sizes)
    column = quotient(p, sizes[6])
    return int32((p - column * sizes[6]) * stride - top), int32(column * stride_w - left), int32(0)


@inline(always=True)
def _tap(k, sizes):
    """Where in a window tap k lies: down, to the right, and the numbers of the channels before."""
    w = quotient(k, sizes[3])
    c = quotient(w, sizes[4])
    return int32(k - w * sizes[3]), int32(w - c * sizes[4]), int32(c * sizes[0] * sizes[1])


_HEAD = """
image, places, out = sizes[0] * sizes[1] * sizes[2], sizes[6] * sizes[7], sizes[5]
depth, batch = sizes[2] * sizes[3] * sizes[4], sizes[8]
H, W = int32(sizes[0]), int32(sizes[1])
"""
_WINDOWS = {"height": "H", "width": "W"}
_SCOPE = {"_place": _place, "_tap": _tap, "item": item}
_PRODUCT = Product(
    "convolve",
    head=_HEAD,
    m="places",
    n="out",
    k="depth",
    a=Windows("row(ins, 1, i) + (b * image if sizes[9] > 1 else 0) * itemsize(T)", row="_place", depth="_tap", **_WINDOWS),
    b=matrix("2", "depth", at="b * depth * out if sizes[10] > 1 else 0", item="i"),
    c=matrix("0", "places", at="b * places * out", item="i"),
    b_deep=True,
    constant="item(ins, 3, i, T)[{j} + (b * out if sizes[12] > 1 else 0)] if sizes[11] else number(0, T)",
    each="batch",
    scope=_SCOPE,
)
_TURNED = Windows(
    "row(ins, 3, i) + (element * image if sizes[9] > 1 else 0) * itemsize(T)", row="_tap", depth="_place", **_WINDOWS
)
_OWN_F = Product(
    "convolve_gradient_f",
    head=_HEAD,
    m="depth",
    n="out",
    k="places",
    parts="batch if sizes[10] == 1 else 1",
    part_head="element = b + part",
    a=_TURNED,
    b=matrix("1", "places", at="element * places * out", item="i"),
    c=matrix("0", "depth", at="b * depth * out", item="i"),
    b_deep=True,
    add="ins[FLAGS] & ACCUMULATE",
    each="sizes[10]",
    ahead=False,
    scope=_SCOPE,
)
_F = Product(
    "convolve_parameter_gradient_f",
    head=_HEAD + "images = quotient(n_items * batch + blocks_z() - 1, blocks_z())",
    m="depth",
    n="out",
    k="places",
    pieces=True,
    parts="block_z() * images, min((block_z() + 1) * images, n_items * batch)",
    part_head="i = quotient(part, batch)\nelement = part - i * batch",
    a=_TURNED,
    b=matrix("1", "places", at="element * places * out", item="i"),
    c=matrix("0", "depth"),
    b_deep=True,
    add="True",
    ahead=False,
    scope=_SCOPE,
)


@inline
def _windows_over(place, stride, size, count):
    """Windows in which a number stands, `place` numbers behind the begin of the first: the first of them, and the end."""
    first = quotient(place - size + stride, stride) if place >= size else 0
    return first, min(quotient(place, stride) + 1, count)


@convolve_gradient_x.on_card
def convolve_gradient_x_lanes(ins, T):
    """As `convolve_gradient_x`: a lane takes a number of dx, and goes through all windows over it."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, W, C, FH, FW, out, rows, cols = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7]
    stride, top, stride_w, left = _steps(sizes)
    pixels, taps = H * W, FH * FW
    add, images = ins[FLAGS] & ACCUMULATE, sizes[8] if sizes[9] == 1 else 1
    for i in items(n):
        dx, dy, f = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        for j in lanes(pixels * C * sizes[9]):
            rest = quotient(j, pixels)
            p = j - rest * pixels
            element = quotient(rest, C)
            c = rest - element * C
            column = quotient(p, H)
            h0, w0 = p - column * H + top, column + left
            first_i, end_i = _windows_over(h0, stride, FH, rows)
            first_j, end_j = _windows_over(w0, stride_w, FW, cols)
            total = number(0, T)
            for b in range(element, element + images):
                at_f = (b * taps * C * out if sizes[10] > 1 else 0) + c * taps + h0
                for o in range(out):
                    from_y, from_f = (b * out + o) * rows * cols, at_f + o * C * taps
                    for wj in range(first_j, end_j):
                        at_y, tap = from_y + wj * rows, from_f + (w0 - wj * stride_w) * FH
                        for wi in range(first_i, end_i):
                            total += dy[at_y + wi] * f[tap - wi * stride]
            dx[j] = dx[j] + total if add else total


@inline
def _sum_of_places(dy, at, places):
    """The lane's part of the sum over the places of one image and filter."""
    total = number(0, dy)
    for p in lanes(places):
        total += dy[at + p]
    return total


def convolve_gradient_b_warps(ins, T):
    """As `convolve_gradient_b`: a warp takes a number of db, over the images of an item."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    places, out, add = sizes[6] * sizes[7], sizes[5], ins[FLAGS] & ACCUMULATE
    warps = out * sizes[12]
    which = block_x() * 8 + thread_y()
    i = quotient(which, warps)
    if i >= n:
        return
    rest = which - i * warps
    element = quotient(rest, out)
    dy, total = item(ins, 1, i, T), number(0, T)
    for b in range(element, element + (sizes[8] if sizes[12] == 1 else 1)):
        total += _sum_of_places(dy, (b * out + rest - element * out) * places, places)
    total = joined(total)
    if leader():
        db = item(ins, 0, i, T)
        db[rest] = db[rest] + total if add else total


def convolve_parameter_gradient_b_warps(ins, T):
    """As `convolve_parameter_gradient_b`: a warp takes a number of db, over a piece of all images."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    places, out, batch = sizes[6] * sizes[7], sizes[5], sizes[8]
    o = block_x() * 8 + thread_y()
    if o >= out:
        return
    length = quotient(n * batch + blocks_z() - 1, blocks_z())
    total = number(0, T)
    for j in range(block_z() * length, min((block_z() + 1) * length, n * batch)):
        i = quotient(j, batch)
        total += _sum_of_places(item(ins, 1, i, T), ((j - i * batch) * out + o) * places, places)
    total = joined(total)
    if leader():
        if blocks_z() == 1:
            db = item(ins, 0, 0, T)
            db[o] += total
        else:
            T[block_z() * out + o] = total


_WARPS = 8  # of a block
_B_SUM = Product(
    "convolve_parameter_gradient_b",
    m="sizes[5]",
    n="1",
    k="1",
    a=matrix("0", "0"),
    b=matrix("0", "0"),
    c=matrix("0", "0"),
    add="True",
)


def _images(sizes):
    """Images of a piece of a sum over all of them: of some thousand places."""
    return max(2048 // (sizes[6] * sizes[7]), 1)


def _stages_b(sizes):
    x, batch, per = Count(-(-sizes[5] // _WARPS)), sizes[8], _images(sizes)
    pieces = min(-(-2 * FULL // x.plus), 64)
    z = Count(0, batch, per, pieces)
    scratch = Count(sizes[5], sizes[5] * batch, per, sizes[5] * pieces)
    added = Stage(_B_SUM.added(), (256, 1), Count(1), z=z, least=per // batch + 1)
    stages = [Stage(convolve_parameter_gradient_b_warps, (32, _WARPS), x, z=z, scratch=scratch)]
    return [*stages, added] if pieces > 1 else stages


def _depth(sizes):
    return sizes[2] * sizes[3] * sizes[4]


convolve.on_card(stages=lambda sizes: own(_PRODUCT, sizes[6] * sizes[7], sizes[5], sizes[8]))
convolve_gradient_x.on_card(
    stages=lambda sizes: [numbers(convolve_gradient_x_lanes, sizes[0] * sizes[1] * sizes[2] * sizes[9])]
)
convolve_gradient_f.on_card(stages=lambda sizes: own(_OWN_F, _depth(sizes), sizes[5], sizes[10]))
convolve_parameter_gradient_f.on_card(stages=lambda sizes: summed(_F, _depth(sizes), sizes[5], sizes[8], _images(sizes)))
convolve_gradient_b.on_card(
    stages=lambda sizes: [Stage(convolve_gradient_b_warps, (32, _WARPS), Count(0, sizes[5] * sizes[12], _WARPS))]
)
convolve_parameter_gradient_b.on_card(stages=_stages_b)


# Shapes ---------------------------------------------------------------------------------------------------------------


def _image(shape):
    """Return H, W, C."""
    return (*shape.dims, 1) if len(shape.dims) == 2 else shape.dims


def _convolution_shape(name):
    def rule(shapes, stride, is_valid):
        x, f = shapes[:2]
        expected = "x (H,W,C) or (H,W), f (FH,FW,C,O)" + (", b (O,)" if len(shapes) > 2 else "")
        if len(x.dims) not in (2, 3) or len(f.dims) != 4:
            which = "f" if len(x.dims) in (2, 3) else "x"
            raise wrong(name, f"{which} has {len((f if which == 'f' else x).dims)} dims", shapes, expected)
        positive(name, "the stride", stride)
        if f.dims[2] != _image(x)[2]:
            raise wrong(name, f"x has {_image(x)[2]} channels but f has {f.dims[2]}", shapes, expected)
        if len(shapes) > 2 and shapes[2].dims != f.dims[3:]:
            raise wrong(name, f"b has dims {shapes[2].dims} but f has {f.dims[3]} filters", shapes, expected)
        sizes = [windows(name, shapes, x.dims[d], f.dims[d], stride[d], is_valid)[0] for d in (0, 1)]
        return Shape((*sizes, f.dims[3]), common_batch(name, shapes))

    return rule


def _convolution_lower(shapes, out, shared, stride, is_valid):
    x, f = shapes[:2]
    (rows, top), (cols, left) = (windows("", shapes, x.dims[d], f.dims[d], stride[d], is_valid) for d in (0, 1))
    bias = shapes[2].batch if len(shapes) > 2 else 0
    walks = [(x.dims[0], rows, stride[0], top, 1), (x.dims[1], cols, stride[1], left, x.dims[0])]
    sizes = [*_image(x), *f.dims[:2], f.dims[3], rows, cols, out.batch, x.batch, f.batch, int(bias > 0), bias]
    sizes += [*walks[rows == 1], *walks[rows != 1], int(rows == 1)]
    once = [{"reads": SHARED, "writes": SHARED} if s else {} for s in shared]
    gradient_f = convolve_parameter_gradient_f if shared[1] else convolve_gradient_f
    gradient_b = convolve_parameter_gradient_b if shared[-1] else convolve_gradient_b
    operands = [
        Operand(backward=convolve_gradient_x, needs=(1,)),
        Operand(backward=gradient_f, needs=(0,), **once[1]),
        Operand(backward=gradient_b, needs=(), **once[-1]),
    ]
    return Lowering(convolve, tuple(sizes), tuple(operands[: len(shapes)]))


def _convolved(x, f, stride, is_valid):
    x = x if x.ndim == 4 else x[:, :, None]
    batch, low = max(x.shape[-1], f.shape[-1]), 0.0
    (rows, top), (cols, left) = (windows("", [], x.shape[d], f.shape[d], stride[d], is_valid) for d in (0, 1))
    below, right = ((n - 1) * s + w for n, s, w in zip((rows, cols), stride, f.shape[:2], strict=True))
    padded = np.full((max(below, x.shape[0] + top), max(right, x.shape[1] + left), *x.shape[2:]), low)
    padded[top : top + x.shape[0], left : left + x.shape[1]] = x
    y = np.zeros((rows, cols, f.shape[3], batch))
    for h in range(f.shape[0]):
        for w in range(f.shape[1]):
            part = padded[h : h + (rows - 1) * stride[0] + 1 : stride[0], w : w + (cols - 1) * stride[1] + 1 : stride[1]]
            y += np.sum(part[:, :, :, None] * f[h, w], axis=2)
    return y


def _convolution_samples(bias):
    def samples(choose):
        sizes, window, stride, is_valid = geometry(choose)
        channels, out, batch = choose.integer(1, 3), choose.integer(1, 3), choose.batch()

        def own():
            return batch if choose.integer(0, 3) == 0 else 1

        dims = tuple(sizes) if channels == 1 and choose.integer(0, 1) else (*sizes, channels)
        tensors = [Tensor(Shape(dims, batch if choose.integer(0, 3) else 1)), Tensor(Shape((*window, channels, out), own()))]
        tensors += [Tensor(Shape((out,), own()))] if bias else []
        return Sample((*tensors, stride, is_valid))

    return samples


CONV2D = Op(
    name="conv2d",
    doc="Cross-correlation of an image with filters.    dF += Xᵀ dY    dX += dY Fᵀ, X the windows of x as rows",
    shapes="(H,W,C), (FH,FW,C,O) -> (H',W',O)",
    shape=_convolution_shape("conv2d"),
    lower=_convolution_lower,
    reference=_convolved,
    samples=_convolution_samples(bias=False),
    shared=lambda position: position == 1,
)
CONV2D_BIAS = Op(
    name="conv2d_bias",
    doc="Cross-correlation of an image with filters, and a bias for each filter.    as conv2d; db[o] += Σ dy[:,:,o]",
    shapes="(H,W,C), (FH,FW,C,O), (O,) -> (H',W',O)",
    shape=_convolution_shape("conv2d_bias"),
    lower=_convolution_lower,
    reference=lambda x, f, b, stride, is_valid: _convolved(x, f, stride, is_valid) + b,
    samples=_convolution_samples(bias=True),
    shared=lambda position: position in (1, 2),
)

"""Affine transform: y = b + Σ Wᵢ xᵢ.    db += Σ dy    dWᵢ += dy xᵢᵀ    dxᵢ += Wᵢᵀ dy

If every Wᵢ is a parameter the columns of all items stand side by side, one product a pair, and the gradients of
Wᵢ and of a parameter b are formed once for all items of the type. Otherwise item by item.
A bias (r,) is repeated over the columns. On a card all pairs are one launch, which begins with the bias.
"""

import numpy as np

from autobatch.kernels import _blas
from autobatch.kernels._blas import add_columns, gemm, gemm_at, gemv
from autobatch.kernels._gemm import (
    Product,
    Vectors,
    growing,
    library,
    library_gradient_a,
    library_gradient_x,
    library_product,
    matrix,
    numbers,
    of_items,
    small_product,
    summed,
    teams,
    totals,
)
from autobatch.kernels._gemm import columns as columns_of
from autobatch.kernels._jit import (
    ACCUMULATE,
    FLAGS,
    ITEMS,
    SIZES,
    Dense,
    argument,
    inline,
    integers,
    item,
    itemsize,
    kernel,
    number,
    pointer,
    row,
    slot,
    whole,
)
from autobatch.kernels._lanes import items, lanes, meet, quotient
from autobatch.kernels._op import (
    DENSE,
    ROWS,
    SHARED,
    Lowering,
    Op,
    Operand,
    Sample,
    Shape,
    Tensor,
    columns,
    common_batch,
    wrong,
)

# sizes: rows r, columns c, batch B, columns of b, batch of b, pairs, B if a W has a batch (else 1), then for each pair
# k, batch of W, batch of x
_PAIRS = 7


@inline
def _fill(y, bias, r, c, batch, bias_columns, bias_batch):
    """y = b for every column."""
    if bias_columns == 1 and bias_batch == 1:
        for j in range(c * batch):
            for h in range(r):
                y[j * r + h] = bias[h]
        return
    for j in range(c * batch):
        at = _column(j, c, bias_columns, bias_batch) * r
        for h in range(r):
            y[j * r + h] = bias[at + h]


@inline
def _column(j, c, bias_columns, bias_batch):
    """Column of b that goes with column j of y (of c columns a batch element)."""
    at = j % c if bias_columns > 1 else 0
    return at + bias_columns * (j // c) if bias_batch > 1 else at


@inline
def _distance(ins, k, rows, T):
    """Numbers from one column of slot k to the next."""
    sizes = integers(ins[SIZES])
    return rows if sizes[1] * sizes[2] > 1 else ins[slot(k) + 1] // itemsize(T)


@kernel(before=_blas.ready)
def affine_parameters(ins, T):
    """y = b + Σ W x, every W the same for all items."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, batch, bias_columns, bias_batch = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    for i in range(n):
        y, bias = item(ins, 0, i, T), item(ins, 1, i, T)
        _fill(y, bias, r, c, batch, bias_columns, bias_batch)
    y, count = item(ins, 0, 0, T), n * c * batch
    for p in range(sizes[5]):
        k = sizes[_PAIRS + 3 * p]
        w, x = item(ins, 2 + 2 * p, 0, T), item(ins, 3 + 2 * p, 0, T)
        if count == 1:
            gemv(False, r, k, w, r, x, True, y, T)
        else:
            gemm(False, False, r, count, k, w, r, x, _distance(ins, 3 + 2 * p, k, T), True, y, _distance(ins, 0, r, T), T)


@kernel(before=_blas.ready)
def affine_parameters_gradient_x(ins, T):
    """dx = or += Wᵀ dy."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, count, k = sizes[0], n * sizes[1] * sizes[2], sizes[_PAIRS + 3 * (argument(ins) // 2 - 1)]
    dx, dy, w = item(ins, 0, 0, T), item(ins, 1, 0, T), item(ins, 3, 0, T)
    add = ins[FLAGS] & ACCUMULATE
    if count == 1:
        gemv(True, r, k, w, r, dy, add, dx, T)
    else:
        gemm(True, False, k, count, r, w, r, dy, _distance(ins, 1, r, T), add, dx, _distance(ins, 0, k, T), T)


@kernel(before=_blas.ready)
def affine_parameters_gradient_w(ins, T):
    """dW += dy xᵀ, over all items of the type at once."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, count, k = sizes[0], n * sizes[1] * sizes[2], sizes[_PAIRS + 3 * ((argument(ins) - 1) // 2)]
    dw, dy, x = item(ins, 0, 0, T), item(ins, 1, 0, T), item(ins, 3, 0, T)
    gemm(False, True, r, k, count, dy, _distance(ins, 1, r, T), x, _distance(ins, 3, k, T), True, dw, r, T)


@inline
def _gradient_b(ins, T):
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, batch, bias_columns, bias_batch = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    for i in range(n):
        db, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for h in range(r * bias_columns * bias_batch):
                db[h] = 0
        for j in range(c * batch):
            at = _column(j, c, bias_columns, bias_batch) * r
            for h in range(r):
                db[at + h] += dy[j * r + h]


@kernel
def affine_gradient_b(ins, T):
    """db = or += the columns of dy, summed where b was repeated."""
    _gradient_b(ins, T)


@kernel
def affine_parameter_gradient_b(ins, T):
    """The same for a parameter b, over all items of the type at once."""
    sizes = integers(ins[SIZES])
    r, each = sizes[0], sizes[1] * sizes[2]
    side_by_side = each == 1 or whole(ins, 1, r * each, T)
    if side_by_side and sizes[3] == 1 and sizes[4] == 1 and ins[FLAGS] & ACCUMULATE and ins[slot(1) + 1] >= 0:
        add_columns(item(ins, 0, 0, T), item(ins, 1, 0, T), _distance(ins, 1, r, T), r, ins[ITEMS] * each, T)
    else:
        _gradient_b(ins, T)


@kernel(before=_blas.ready)
def affine_items(ins, T):
    """y = b + Σ W x, item by item."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, batch, bias_columns, bias_batch = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    for i in range(n):
        y, bias = item(ins, 0, i, T), item(ins, 1, i, T)
        _fill(y, bias, r, c, batch, bias_columns, bias_batch)
        for p in range(sizes[5]):
            k, batch_w, batch_x = sizes[_PAIRS + 3 * p], sizes[_PAIRS + 3 * p + 1], sizes[_PAIRS + 3 * p + 2]
            w, x = item(ins, 2 + 2 * p, i, T), item(ins, 3 + 2 * p, i, T)
            if batch_w == 1 and batch_x == batch:
                gemm(False, False, r, c * batch, k, w, r, x, k, True, y, r, T)
            else:
                for b in range(batch):
                    at_w, at_x = b * r * k if batch_w > 1 else 0, b * k * c if batch_x > 1 else 0
                    gemm_at(False, False, r, c, k, w, at_w, r, x, at_x, k, True, y, b * r * c, r, T)


@kernel(before=_blas.ready)
def affine_items_gradient_x(ins, T):
    """dx = or += Wᵀ dy, item by item."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, batch, p = sizes[0], sizes[1], sizes[2], argument(ins) // 2 - 1
    k, batch_w, batch_x = sizes[_PAIRS + 3 * p], sizes[_PAIRS + 3 * p + 1], sizes[_PAIRS + 3 * p + 2]
    add = ins[FLAGS] & ACCUMULATE
    for i in range(n):
        dx, dy, w = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        for b in range(batch):
            at_w, at_x = b * r * k if batch_w > 1 else 0, b * k * c if batch_x > 1 else 0
            gemm_at(True, False, k, c, r, w, at_w, r, dy, b * r * c, r, add or (b > 0 and batch_x == 1), dx, at_x, k, T)


@kernel(before=_blas.ready)
def affine_items_gradient_w(ins, T):
    """dW = or += dy xᵀ, item by item."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, batch, p = sizes[0], sizes[1], sizes[2], (argument(ins) - 1) // 2
    k, batch_w, batch_x = sizes[_PAIRS + 3 * p], sizes[_PAIRS + 3 * p + 1], sizes[_PAIRS + 3 * p + 2]
    add = ins[FLAGS] & ACCUMULATE
    for i in range(n):
        dw, dy, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        for b in range(batch):
            at_w, at_x = b * r * k if batch_w > 1 else 0, b * k * c if batch_x > 1 else 0
            gemm_at(False, True, r, k, c, dy, b * r * c, r, x, at_x, k, add or (b > 0 and batch_w == 1), dw, at_w, r, T)


# On a card


@inline
def _bias(ins, i, j, sizes, T):
    """Address of the column of b that goes with column j of item i."""
    r, c, bias_columns, bias_batch = sizes[0], sizes[1], sizes[3], sizes[4]
    at = 0
    if bias_columns > 1 or bias_batch > 1:
        b = quotient(j, c)
        at = (j - b * c if bias_columns > 1 else 0) + (bias_columns * b if bias_batch > 1 else 0)
    return row(ins, 1, i) + at * r * itemsize(T)


@inline
def _bias_of(ins, j, sizes, T):
    """Address of the column of b that goes with column j of all items."""
    each = sizes[1] * sizes[2]
    i = quotient(j, each) if each > 1 else j + 0
    return _bias(ins, i, j - i * each, sizes, T)


@inline
def _part(ins, k, i, at, T):
    """Item i of slot k, from number `at` on."""
    return pointer(row(ins, k, i) + at * itemsize(T), T)


def affine_gradient_b_team(ins, T):
    """As `affine_gradient_b`: lanes go over the numbers of db, and each adds up its own."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, batch, bias_columns, bias_batch = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    add = ins[FLAGS] & ACCUMULATE
    elements = batch if bias_batch == 1 else 1
    across = c if bias_columns == 1 else 1
    for i in items(n):
        db, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for h in lanes(r * bias_columns * bias_batch):
            column = quotient(h, r)
            at = h - column * r
            if bias_batch > 1 and bias_columns == 1:
                column *= c  # one column for all of an element
            total = number(0, T)
            for b in range(elements):
                for j in range(across):
                    total += dy[(b * c + column + j) * r + at]
            db[h] = db[h] + total if add else total


@inline
def _begin(ins, i, sizes, T):
    """y = b, by a team."""
    y, r = item(ins, 0, i, T), sizes[0]
    for h in lanes(r * sizes[1] * sizes[2]):
        j = quotient(h, r)
        y[h] = pointer(_bias(ins, i, j, sizes, T), T)[h - j * r]


def affine_begin(ins, T):
    """What comes before the products of a library: y = b."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    for i in items(n):
        _begin(ins, i, sizes, T)


def affine_items_team(ins, T):
    """As `affine_items`, for small products: a team an item."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, batch = sizes[0], sizes[1], sizes[2]
    for i in items(n):
        _begin(ins, i, sizes, T)
        meet()
        for p in range(sizes[5]):
            k, batch_w, batch_x = sizes[_PAIRS + 3 * p], sizes[_PAIRS + 3 * p + 1], sizes[_PAIRS + 3 * p + 2]
            for b in range(batch):
                w = _part(ins, 2 + 2 * p, i, b * r * k if batch_w > 1 else 0, T)
                x = _part(ins, 3 + 2 * p, i, b * k * c if batch_x > 1 else 0, T)
                small_product(r, c, k, w, 1, r, x, k, 1, True, _part(ins, 0, i, b * r * c, T))
            meet()


def affine_items_gradient_x_team(ins, T):
    """As `affine_items_gradient_x`, for small products."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, batch, p = sizes[0], sizes[1], sizes[2], argument(ins) // 2 - 1
    k, batch_w, batch_x = sizes[_PAIRS + 3 * p], sizes[_PAIRS + 3 * p + 1], sizes[_PAIRS + 3 * p + 2]
    add = ins[FLAGS] & ACCUMULATE
    for i in items(n):
        for b in range(batch):
            dx, dy = _part(ins, 0, i, b * k * c if batch_x > 1 else 0, T), _part(ins, 1, i, b * r * c, T)
            w = _part(ins, 3, i, b * r * k if batch_w > 1 else 0, T)
            small_product(k, c, r, w, r, 1, dy, r, 1, add or (b > 0 and batch_x == 1), dx)


def affine_items_gradient_w_team(ins, T):
    """As `affine_items_gradient_w`, for small products."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    r, c, batch, p = sizes[0], sizes[1], sizes[2], (argument(ins) - 1) // 2
    k, batch_w, batch_x = sizes[_PAIRS + 3 * p], sizes[_PAIRS + 3 * p + 1], sizes[_PAIRS + 3 * p + 2]
    add = ins[FLAGS] & ACCUMULATE
    for i in items(n):
        for b in range(batch):
            dw, dy = _part(ins, 0, i, b * r * k if batch_w > 1 else 0, T), _part(ins, 1, i, b * r * c, T)
            x = _part(ins, 3, i, b * k * c if batch_x > 1 else 0, T)
            small_product(r, k, c, dy, 1, r, x, 1, k, add or (b > 0 and batch_w == 1), dw)


_SCOPE = {"_PAIRS": _PAIRS, "_bias": _bias, "_bias_of": _bias_of}
_HEAD_X = "k = sizes[_PAIRS + 3 * (argument(ins) // 2 - 1)]"
_HEAD_W = "k = sizes[_PAIRS + 3 * ((argument(ins) - 1) // 2)]"
_PRODUCT = Product(
    "affine_parameters",
    m="sizes[0]",
    n="n_items * sizes[1] * sizes[2]",
    k="k",
    parts="sizes[5]",
    part_head="k = sizes[_PAIRS + 3 * part]",
    a=matrix("2 + 2 * part", "sizes[0]"),
    b=columns_of("3 + 2 * part", "sizes[1] * sizes[2]", "k"),
    c=columns_of("0", "sizes[1] * sizes[2]", "sizes[0]"),
    b_deep=True,
    start="_bias_of(ins, {j}, sizes, T)",
    scope=_SCOPE,
)
_GRADIENT_X = Product(
    "affine_parameters_gradient_x",
    head=_HEAD_X + "\nfirst = ins",
    m="k",
    n="n_items * sizes[1] * sizes[2]",
    k="sizes[0]",
    parts="summands(ins)",
    part_head="ins = further(first, part)",
    a=matrix("3", "sizes[0]"),
    b=columns_of("1", "sizes[1] * sizes[2]", "sizes[0]"),
    c=columns_of("0", "sizes[1] * sizes[2]", "k"),
    a_deep=True,
    b_deep=True,
    add="first[FLAGS] & ACCUMULATE",
    scope=_SCOPE,
)
_GRADIENT_W = Product(
    "affine_parameters_gradient_w",
    head=_HEAD_W,
    m="sizes[0]",
    n="k",
    k="n_items * sizes[1] * sizes[2]",
    a=columns_of("1", "sizes[1] * sizes[2]", "sizes[0]"),
    b=columns_of("3", "sizes[1] * sizes[2]", "k"),
    c=matrix("0", "sizes[0]"),
    add="True",
    scope=_SCOPE,
)
# A bias with columns goes with whole elements of dy, seen as one vector each.
_GRADIENT_B = Product(
    "affine_parameter_gradient_b",
    head="size, each = sizes[0] * sizes[3], sizes[2] * (sizes[1] if sizes[3] == 1 else 1)",
    m="size",
    n="1",
    k="n_items * each",
    a=columns_of("1", "each", "size"),
    b=matrix("1", "0"),
    c=matrix("0", "size"),
    add="True",
)
# The products of an item with its own W: all columns at once if the elements of the minibatch share W, else each on its own.
# The columns of an x that they share are counted anew for each element.
_OWN = Product(
    "affine_items",
    head="r, c, batch = sizes[0], sizes[1], sizes[2]",
    m="r",
    n="c if sizes[6] > 1 else c * batch",
    k="k",
    parts="sizes[5]",
    part_head="k, batch_w, batch_x = sizes[_PAIRS + 3 * part], sizes[_PAIRS + 3 * part + 1], sizes[_PAIRS + 3 * part + 2]",
    a=matrix("2 + 2 * part", "r", at="b * r * k if batch_w > 1 else 0", item="i"),
    b=Vectors(
        "row(ins, 3 + 2 * part, i) + (b * k * c if batch_x > 1 else 0) * itemsize(T)",
        "k * itemsize(T) if each > 1 or batch_x == batch else -1",
        "b_base + ({j} - quotient({j}, c) * c) * k * itemsize(T)",
    ),
    c=matrix("0", "r", at="b * r * c", item="i"),
    b_deep=True,
    start="_bias(ins, i, b * c + {j}, sizes, T)",
    each="sizes[6]",
    scope=_SCOPE,
)
_OWN_HEAD = """
r, c, batch, p = sizes[0], sizes[1], sizes[2], 3 * ({pair})
k, batch_w, batch_x = sizes[_PAIRS + p], sizes[_PAIRS + p + 1], sizes[_PAIRS + p + 2]
"""
_OWN_GRADIENT_X = Product(
    "affine_items_gradient_x",
    head=_OWN_HEAD.format(pair="argument(ins) // 2 - 1"),
    m="k",
    n="c * batch if batch_w == 1 and batch_x == batch else c",
    k="r",
    parts="1 if batch_x == batch else batch",
    a=matrix("3", "r", at="(b + part) * r * k if batch_w > 1 else 0", item="i"),
    b=matrix("1", "r", at="(b + part) * r * c", item="i"),
    c=matrix("0", "k", at="b * k * c", item="i"),
    a_deep=True,
    b_deep=True,
    add="ins[FLAGS] & ACCUMULATE",
    each="batch_w if batch_x == batch else 1",
    scope=_SCOPE,
)
_OWN_GRADIENT_W = Product(
    "affine_items_gradient_w",
    head=_OWN_HEAD.format(pair="(argument(ins) - 1) // 2"),
    m="r",
    n="k",
    k="c * batch if batch_w == 1 and batch_x == batch else c",
    parts="batch if batch_w == 1 and batch_x < batch else 1",
    a=matrix("1", "r", at="(b + part) * r * c", item="i"),
    b=matrix("3", "k", at="b * k * c if batch_x > 1 else 0", item="i"),
    c=matrix("0", "r", at="b * r * k", item="i"),
    add="ins[FLAGS] & ACCUMULATE",
    each="batch_w",
    scope=_SCOPE,
)


def _deepest(sizes):
    """Largest k of the pairs: for the launches of a gradient, which are those of all of them."""
    return max((sizes[_PAIRS + 3 * p] for p in range(sizes[5])), default=1)


def _stages_of_items(product, team, which):
    def stages(sizes):
        r, c, batch, deepest = sizes[0], sizes[1], sizes[2], _deepest(sizes)
        apart = any(sizes[_PAIRS + 3 * p + 1] > 1 for p in range(sizes[5]))  # or joined: more columns, fewer products
        each, across = (batch, c) if apart else (1, c * batch)
        m, n, k = {"y": (r, across, deepest), "x": (deepest, across, r), "w": (r, deepest, across)}[which]
        return of_items(product, team, m, n, k, each)

    return stages


def _library(sizes):
    r, each, depths = sizes[0], sizes[1] * sizes[2], [sizes[_PAIRS + 3 * p] for p in range(sizes[5])]
    if not depths:
        return None
    dense = [Dense(0, r * each, each, True)]
    stages = [numbers(affine_begin, r * each)]
    for p, k in enumerate(depths):
        dense.append(Dense(3 + 2 * p, k * each, each))
        stages.append(library_product(r, k, each, 2 + 2 * p, 3 + 2 * p, 0, add=True))
    return library(r * sum(depths) * each, tuple(dense), *stages)


def _library_of_gradients(gradient):
    """What forms the gradient of one pair, where all of them have the same k: which pair it is only the instruction says."""

    def products(sizes):
        depths = {sizes[_PAIRS + 3 * p] for p in range(sizes[5])}
        return gradient(sizes[0], depths.pop(), sizes[1] * sizes[2], 3) if len(depths) == 1 else None

    return products


affine_parameters.on_card(stages=lambda sizes: growing(_PRODUCT, sizes[0], sizes[1] * sizes[2]), products=_library)
affine_parameters_gradient_x.on_card(
    stages=lambda sizes: growing(_GRADIENT_X, _deepest(sizes), sizes[1] * sizes[2]),
    products=_library_of_gradients(library_gradient_x),
    sums=True,
)
affine_parameters_gradient_w.on_card(
    stages=lambda sizes: summed(_GRADIENT_W, sizes[0], _deepest(sizes), sizes[1] * sizes[2]),
    products=_library_of_gradients(library_gradient_a),
)
affine_parameter_gradient_b.on_card(
    stages=lambda sizes: totals(_GRADIENT_B, sizes[0] * sizes[3], sizes[2] * (sizes[1] if sizes[3] == 1 else 1))
)
affine_gradient_b.on_card(stages=lambda sizes: [teams(affine_gradient_b_team, sizes[0] * sizes[3] * sizes[4])])
affine_items.on_card(stages=_stages_of_items(_OWN, affine_items_team, "y"))
affine_items_gradient_x.on_card(stages=_stages_of_items(_OWN_GRADIENT_X, affine_items_gradient_x_team, "x"))
affine_items_gradient_w.on_card(stages=_stages_of_items(_OWN_GRADIENT_W, affine_items_gradient_w_team, "w"))


def _shape(shapes):
    bias, pairs = shapes[0], list(zip(shapes[1::2], shapes[2::2], strict=True))
    expected = "b (r,) or (r,c), then pairs W (r,k), x (k,) or (k,c)"
    if any(len(s.dims) > 2 for s in shapes):
        raise wrong("affine_transform", "an argument has more than 2 dims", shapes, expected)
    rows, width = bias.dims[0], max([columns(x) for _, x in pairs], default=columns(bias))
    for i, (w, x) in enumerate(pairs, 1):
        if w.dims[0] != rows:
            raise wrong("affine_transform", f"W{i} has {w.dims[0]} rows but b has {rows}", shapes, expected)
        if columns(w) != x.dims[0]:
            cure = f"W{i} of shape ({rows},{x.dims[0]})" if w.dims[0] != x.dims[0] else f"transpose(W{i})"
            problem = f"W{i} has {columns(w)} columns but x{i} has {x.dims[0]} rows"
            raise wrong("affine_transform", problem, shapes, expected, cure)
        if columns(x) != width:
            raise wrong("affine_transform", "the x differ in their number of columns", shapes, expected)
    if columns(bias) not in (1, width):
        raise wrong("affine_transform", f"b has {columns(bias)} columns but the products have {width}", shapes, expected)
    # One column is a vector, also where it was given as (k,1): as in DyNet.
    dims = bias.dims if not pairs else (rows,) if width == 1 else (rows, width)
    return Shape(dims, common_batch("affine_transform", shapes))


def _lower(shapes, out, shared):
    bias, pairs = shapes[0], list(zip(shapes[1::2], shapes[2::2], strict=True))
    r, c = out.dims[0], columns(out)
    sizes = [r, c, out.batch, columns(bias), bias.batch, len(pairs), max([w.batch for w, _ in pairs], default=1)]
    for w, x in pairs:
        sizes += [columns(w), w.batch, x.batch]
    once = all(shared[1::2]) and all(x.batch == out.batch for _, x in pairs)
    if shared[0]:
        operands = [Operand(reads=SHARED, backward=affine_parameter_gradient_b, writes=SHARED, needs=())]
    else:
        operands = [Operand(reads=ROWS, backward=affine_gradient_b, needs=())]
    for i in range(len(pairs)):
        w, x = 1 + 2 * i, 2 + 2 * i
        if once:
            operands += [
                Operand(reads=SHARED, backward=affine_parameters_gradient_w, writes=SHARED, needs=(x,)),
                Operand(reads=DENSE, backward=affine_parameters_gradient_x, writes=DENSE, needs=(w,), columns=c * out.batch),
            ]
        else:
            operands += [
                Operand(backward=affine_items_gradient_w, needs=(x,)),
                Operand(backward=affine_items_gradient_x, needs=(w,)),
            ]
    return Lowering(affine_parameters if once else affine_items, tuple(sizes), tuple(operands))


def _reference(arguments):
    def matrix(v):
        return v if v.ndim == 3 else v[:, None, :]

    batch = max(a.shape[-1] for a in arguments)
    b, *rest = (np.broadcast_to(matrix(a), (*matrix(a).shape[:-1], batch)) for a in arguments)
    total = b + sum(np.einsum("rkb,kcb->rcb", w, x) for w, x in zip(rest[::2], rest[1::2], strict=True))
    if not rest:
        return total.reshape(arguments[0].shape)
    return total[:, 0] if total.shape[1] == 1 else total


def _samples(choose):
    r, c, batch, pairs = choose.integer(1, 4), choose.integer(1, 3), choose.batch(), choose.integer(0, 3)
    flat = choose.integer(0, 1)
    c = 1 if flat else c

    def size():
        return batch if choose.integer(0, 2) == 0 else 1

    tensors = [Tensor(Shape(choose.one_of([(r,), (r, c)]) if not flat else (r,), size()))]
    for _ in range(pairs):
        k = choose.integer(1, 4)
        x = Shape((k,) if flat else (k, c), batch if choose.integer(0, 3) else 1)
        tensors += [Tensor(Shape((r, k), size())), Tensor(x)]
    return Sample((tensors,))


AFFINE_TRANSFORM = Op(
    name="affine_transform",
    doc=__doc__,
    shape=_shape,
    lower=_lower,
    reference=_reference,
    samples=_samples,
    shapes="b (r,) or (r,c), W (r,k), x (k,) or (k,c), ... -> (r,) or (r,c)",
    shared=lambda position: position == 0 or position % 2 == 1,
    spaced=True,
)

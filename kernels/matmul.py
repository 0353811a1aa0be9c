"""Matrix product: (m,k)(k,n), with vectors and minibatches.    y = A X    dA += dy Xᵀ    dX += Aᵀ dy

Two forms. If the left side is a parameter, the columns of all items of a batch stand side by side in one product

    Y (m, C) = A (m, k) X (k, C)        C = items x columns x minibatch

and the gradient of A is one product for all items of the type. Otherwise each item has its own left side, and runs of items
that share it are multiplied together. On a card both are tiles of `_gemm.py`; small products of items have a team each.
"""

import numpy as np

from autobatch.kernels import _blas
from autobatch.kernels._blas import gemm, gemm_at, gemv
from autobatch.kernels._gemm import (
    Product,
    columns,
    growing,
    library,
    library_gradient_a,
    library_gradient_x,
    library_product,
    matrix,
    of_items,
    small_product,
    summed,
)
from autobatch.kernels._jit import (
    ACCUMULATE,
    FLAGS,
    ITEMS,
    SIZES,
    Dense,
    inline,
    integers,
    item,
    itemsize,
    kernel,
    number,
    pointer,
    row,
    slot,
)
from autobatch.kernels._lanes import items
from autobatch.kernels._op import DENSE, SHARED, Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, wrong


@inline
def _distance(ins, k, rows, T):
    """Numbers from one column of slot k to the next."""
    return rows if integers(ins[SIZES])[2] > 1 else ins[slot(k) + 1] // itemsize(T)


@kernel(before=_blas.ready)
def matmul_parameter(ins, T):
    """y = A x, A the same for all."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    m, k, count = sizes[0], sizes[1], n * sizes[2]
    y, a, x = item(ins, 0, 0, T), item(ins, 1, 0, T), item(ins, 2, 0, T)
    if count == 1:
        gemv(False, m, k, a, m, x, False, y, T)
    else:
        gemm(False, False, m, count, k, a, m, x, _distance(ins, 2, k, T), False, y, _distance(ins, 0, m, T), T)


@kernel(before=_blas.ready)
def matmul_parameter_gradient_x(ins, T):
    """dx = or += Aᵀ dy."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    m, k, count = sizes[0], sizes[1], n * sizes[2]
    dx, dy, a = item(ins, 0, 0, T), item(ins, 1, 0, T), item(ins, 3, 0, T)
    add = ins[FLAGS] & ACCUMULATE
    if count == 1:
        gemv(True, m, k, a, m, dy, add, dx, T)
    else:
        gemm(True, False, k, count, m, a, m, dy, _distance(ins, 1, m, T), add, dx, _distance(ins, 0, k, T), T)


@kernel(before=_blas.ready)
def matmul_parameter_gradient_a(ins, T):
    """dA += dy xᵀ, over all items of the type at once."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    m, k, count = sizes[0], sizes[1], n * sizes[2]
    da, dy, x = item(ins, 0, 0, T), item(ins, 1, 0, T), item(ins, 3, 0, T)
    gemm(False, True, m, k, count, dy, _distance(ins, 1, m, T), x, _distance(ins, 3, k, T), True, da, m, T)


_PRODUCT = Product(
    "matmul_parameter",
    m="sizes[0]",
    n="n_items * sizes[2]",
    k="sizes[1]",
    a=matrix("1", "sizes[0]"),
    b=columns("2", "sizes[2]", "sizes[1]"),
    c=columns("0", "sizes[2]", "sizes[0]"),
    b_deep=True,
)
_GRADIENT_X = Product(
    "matmul_parameter_gradient_x",
    head="first = ins",
    m="sizes[1]",
    n="n_items * sizes[2]",
    k="sizes[0]",
    parts="summands(ins)",
    part_head="ins = further(first, part)",
    a=matrix("3", "sizes[0]"),
    b=columns("1", "sizes[2]", "sizes[0]"),
    c=columns("0", "sizes[2]", "sizes[1]"),
    a_deep=True,
    b_deep=True,
    add="first[FLAGS] & ACCUMULATE",
)
_GRADIENT_A = Product(
    "matmul_parameter_gradient_a",
    m="sizes[0]",
    n="sizes[1]",
    k="n_items * sizes[2]",
    a=columns("1", "sizes[2]", "sizes[0]"),
    b=columns("3", "sizes[2]", "sizes[1]"),
    c=matrix("0", "sizes[0]"),
    add="True",
)


def _library(sizes):
    m, k, each = sizes[:3]
    dense = Dense(0, m * each, each, True), Dense(2, k * each, each)
    return library(m * k * each, dense, library_product(m, k, each, 1, 2, 0))


matmul_parameter.on_card(stages=lambda sizes: growing(_PRODUCT, sizes[0], sizes[2]), products=_library)
matmul_parameter_gradient_x.on_card(
    stages=lambda sizes: growing(_GRADIENT_X, sizes[1], sizes[2]),
    products=lambda sizes: library_gradient_x(*sizes[:3], 3),
    sums=True,
)
matmul_parameter_gradient_a.on_card(
    stages=lambda sizes: summed(_GRADIENT_A, sizes[0], sizes[1], sizes[2]),
    products=lambda sizes: library_gradient_a(*sizes[:3], 3),
)


# A matrix times a vector, each item (and each element of a minibatch) with its own: a call of BLAS costs more than a small
# product. Four columns at a time save three of four reads and writes of the result. For float32, one core with AVX-512:
#
#     ns a product, forward + both gradients     (4,4)     (16,10)   (32,32)    (1,256)    (3,1000)
#     these loops                                13 + 16   20 + 29   56 + 120   22 + 44    1700 + 2400
#     gemv and gemm of OpenBLAS                  39 + 86   37 + 83   76 + 177   106 + 185  630 + 1600


def _looped(m, k):
    """Whether loops are faster than BLAS: not for long rows of thin matrices, which it takes several columns at a time."""
    return m * k <= 1 << 15 and (m == 1 or m >= 8 or k <= 32)


@inline
def _part(ins, k, i, at, T):
    """Item i of slot k, from number `at` on."""
    return pointer(row(ins, k, i) + at * itemsize(T), T)


@inline(reductions=True)
def _times(m, k, a, x, y):
    """y = A x."""
    if m == 1:
        total = number(0, a[0])
        for j in range(k):
            total += a[j] * x[j]
        y[0] = total
        return
    for r in range(m):
        y[r] = 0
    fours = k - k % 4
    for j in range(0, fours, 4):
        x0, x1, x2, x3 = x[j], x[j + 1], x[j + 2], x[j + 3]
        at = j * m
        for r in range(m):
            y[r] += (a[at + r] * x0 + a[at + m + r] * x1) + (a[at + 2 * m + r] * x2 + a[at + 3 * m + r] * x3)
    for j in range(fours, k):
        for r in range(m):
            y[r] += a[j * m + r] * x[j]


@inline(reductions=True)
def _transposed_times(m, k, a, dy, add, dx):
    """dx = or += Aᵀ dy."""
    if m == 1:
        g = dy[0]
        if add:
            for j in range(k):
                dx[j] += a[j] * g
        else:
            for j in range(k):
                dx[j] = a[j] * g
        return
    fours = k - k % 4
    for j in range(0, fours, 4):
        t0 = t1 = t2 = t3 = number(0, a[0])
        at = j * m
        for r in range(m):
            g = dy[r]
            t0 += a[at + r] * g
            t1 += a[at + m + r] * g
            t2 += a[at + 2 * m + r] * g
            t3 += a[at + 3 * m + r] * g
        if add:
            dx[j] += t0
            dx[j + 1] += t1
            dx[j + 2] += t2
            dx[j + 3] += t3
        else:
            dx[j], dx[j + 1], dx[j + 2], dx[j + 3] = t0, t1, t2, t3
    for j in range(fours, k):
        total = number(0, a[0])
        for r in range(m):
            total += a[j * m + r] * dy[r]
        dx[j] = dx[j] + total if add else total


@inline
def _outer(m, k, dy, x, add, da):
    """dA = or += dy xᵀ."""
    if m == 1:
        g = dy[0]
        if add:
            for j in range(k):
                da[j] += g * x[j]
        else:
            for j in range(k):
                da[j] = g * x[j]
        return
    for j in range(k):
        g = x[j]
        if add:
            for r in range(m):
                da[j * m + r] += dy[r] * g
        else:
            for r in range(m):
                da[j * m + r] = dy[r] * g


@kernel(before=_blas.ready)
def matmul_items(ins, T):
    """y = A x, each item with its own A.

    sizes: m, k, n, batch of A, batch of x, and 1 for loops in place of BLAS.
    """
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    m, k, count, batch_a, batch_x = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    i = 0
    while i < n:
        y, a, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        run = 1
        if batch_a == 1:
            shared, first, to = row(ins, 1, i), row(ins, 2, i), row(ins, 0, i)
            step, step_to = k * count * batch_x * itemsize(T), m * count * batch_x * itemsize(T)
            while i + run < n and row(ins, 1, i + run) == shared and row(ins, 2, i + run) == first + run * step:
                if row(ins, 0, i + run) != to + run * step_to:  # the values of a cell stand among others
                    break
                run += 1
            if count * batch_x * run == 1:
                if sizes[5]:
                    _times(m, k, a, x, y)
                else:
                    gemv(False, m, k, a, m, x, False, y, T)
            else:
                gemm(False, False, m, count * batch_x * run, k, a, m, x, k, False, y, m, T)
        elif sizes[5]:
            for b in range(batch_a):
                _times(m, k, _part(ins, 1, i, b * m * k, T), _part(ins, 2, i, b * k, T), _part(ins, 0, i, b * m, T))
        else:
            for b in range(batch_a):
                at_x = b * k * count if batch_x > 1 else 0
                gemm_at(False, False, m, count, k, a, b * m * k, m, x, at_x, k, False, y, b * m * count, m, T)
        i += run


@kernel(before=_blas.ready)
def matmul_items_gradient_a(ins, T):
    """dA = or += dy xᵀ, item by item."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    m, k, count, batch_a, batch_x = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    add = ins[FLAGS] & ACCUMULATE
    for i in range(n):
        da, dy, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 4, i, T)
        if sizes[5]:
            for b in range(batch_a):
                _outer(m, k, _part(ins, 1, i, b * m, T), _part(ins, 4, i, b * k, T), add, _part(ins, 0, i, b * m * k, T))
        elif batch_a == 1:
            gemm(False, True, m, k, count * batch_x, dy, m, x, k, add, da, m, T)
        else:
            for b in range(batch_a):
                at_x = b * k * count if batch_x > 1 else 0
                gemm_at(False, True, m, k, count, dy, b * m * count, m, x, at_x, k, add, da, b * m * k, m, T)


@kernel(before=_blas.ready)
def matmul_items_gradient_x(ins, T):
    """dx = or += Aᵀ dy, item by item, or a run of items that share A."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    m, k, count, batch_a, batch_x = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    add = ins[FLAGS] & ACCUMULATE
    i = 0
    while i < n:
        dx, dy, a = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        run, width = 1, count * batch_x
        if batch_a == 1:
            shared, to, of = row(ins, 3, i), row(ins, 0, i), row(ins, 1, i)
            step_to, step_of = k * width * itemsize(T), m * width * itemsize(T)
            while i + run < n and row(ins, 3, i + run) == shared:
                if row(ins, 0, i + run) != to + run * step_to or row(ins, 1, i + run) != of + run * step_of:
                    break
                run += 1
        if sizes[5] and run == 1:
            for b in range(batch_a):
                _transposed_times(
                    m, k, _part(ins, 3, i, b * m * k, T), _part(ins, 1, i, b * m, T), add, _part(ins, 0, i, b * k, T)
                )
        elif batch_a == 1:
            if width * run == 1:
                gemv(True, m, k, a, m, dy, add, dx, T)
            else:
                gemm(True, False, k, width * run, m, a, m, dy, m, add, dx, k, T)
        else:
            for b in range(batch_a):
                if batch_x > 1:
                    gemm_at(True, False, k, count, m, a, b * m * k, m, dy, b * m * count, m, add, dx, b * k * count, k, T)
                else:
                    gemm_at(True, False, k, count, m, a, b * m * k, m, dy, b * m * count, m, add or b > 0, dx, 0, k, T)
        i += run


# On a card. With one A for an item its columns, of all elements of the minibatch, are one product; with more, each has its own;
# the gradient of an x that all of them share is a sum of products.


def matmul_items_team(ins, T):
    """As `matmul_items`, for small products: a team an item."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    m, k, count, batch_a, batch_x = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    across = count * batch_x if batch_a == 1 else count
    for i in items(n):
        for b in range(batch_a):
            y, a = _part(ins, 0, i, b * m * count, T), _part(ins, 1, i, b * m * k, T)
            x = _part(ins, 2, i, b * k * count if batch_x > 1 else 0, T)
            small_product(m, across, k, a, 1, m, x, k, 1, False, y)


def matmul_items_gradient_a_team(ins, T):
    """As `matmul_items_gradient_a`, for small products."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    m, k, count, batch_a, batch_x = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    add, across = ins[FLAGS] & ACCUMULATE, count * batch_x if batch_a == 1 else count
    for i in items(n):
        for b in range(batch_a):
            da, dy = _part(ins, 0, i, b * m * k, T), _part(ins, 1, i, b * m * count, T)
            x = _part(ins, 4, i, b * k * count if batch_x > 1 else 0, T)
            small_product(m, k, across, dy, 1, m, x, 1, k, add, da)


def matmul_items_gradient_x_team(ins, T):
    """As `matmul_items_gradient_x`, for small products."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    m, k, count, batch_a, batch_x = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    add, across = ins[FLAGS] & ACCUMULATE, count * batch_x if batch_a == 1 else count
    for i in items(n):
        for b in range(batch_a):
            dx = _part(ins, 0, i, b * k * count if batch_x > 1 else 0, T)
            dy, a = _part(ins, 1, i, b * m * count, T), _part(ins, 3, i, b * m * k, T)
            small_product(k, across, m, a, m, 1, dy, m, 1, add or (b > 0 and batch_x == 1), dx)


_OWN_HEAD = """
m, k, count, batch_a, batch_x = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
across = count * batch_x if batch_a == 1 else count
"""
_OWN = Product(
    "matmul_items",
    head=_OWN_HEAD,
    m="m",
    n="across",
    k="k",
    a=matrix("1", "m", at="b * m * k", item="i"),
    b=matrix("2", "k", at="b * k * count if batch_x > 1 else 0", item="i"),
    c=matrix("0", "m", at="b * m * count", item="i"),
    b_deep=True,
    each="batch_a",
)
_OWN_GRADIENT_A = Product(
    "matmul_items_gradient_a",
    head=_OWN_HEAD,
    m="m",
    n="k",
    k="across",
    a=matrix("1", "m", at="b * m * count", item="i"),
    b=matrix("4", "k", at="b * k * count if batch_x > 1 else 0", item="i"),
    c=matrix("0", "m", at="b * m * k", item="i"),
    add="ins[FLAGS] & ACCUMULATE",
    each="batch_a",
)
_OWN_GRADIENT_X = Product(
    "matmul_items_gradient_x",
    head=_OWN_HEAD,
    m="k",
    n="across",
    k="m",
    parts="batch_a if batch_x == 1 else 1",
    a=matrix("3", "m", at="(b + part) * m * k", item="i"),
    b=matrix("1", "m", at="(b + part) * m * count", item="i"),
    c=matrix("0", "k", at="b * k * count", item="i"),
    a_deep=True,
    b_deep=True,
    add="ins[FLAGS] & ACCUMULATE",
    each="batch_a if batch_x > 1 else 1",
)


def _stages(product, team):
    def stages(sizes):
        m, k, count, batch_a, batch_x = sizes[:5]
        across = count * batch_x if batch_a == 1 else count
        if product is _OWN:
            return of_items(product, team, m, across, k, batch_a)
        if product is _OWN_GRADIENT_A:
            return of_items(product, team, m, k, across, batch_a)
        return of_items(product, team, k, across, m, batch_a if batch_x > 1 else 1)

    return stages


matmul_items.on_card(stages=_stages(_OWN, matmul_items_team))
matmul_items_gradient_a.on_card(stages=_stages(_OWN_GRADIENT_A, matmul_items_gradient_a_team))
matmul_items_gradient_x.on_card(stages=_stages(_OWN_GRADIENT_X, matmul_items_gradient_x_team))


def _sides(shapes):
    """Return (m, k, n) and the dims of the result; a vector on the left is a column, one on the right too."""
    a, b = (s.dims for s in shapes)
    if len(a) > 2 or len(b) > 2:
        raise wrong("matmul", "a product takes matrices and vectors only", shapes, "(m,k) * (k,n), (m,k) * (k,)")
    m, k = a if len(a) == 2 else (a[0], 1)
    rows, n = b if len(b) == 2 else (b[0], 1)
    if k != rows:
        raise wrong(
            "matmul",
            f"the left side has {k} column{'s' if k != 1 else ''} but the right side has {rows} row{'s' if rows != 1 else ''}",
            shapes,
            "(m,k) * (k,n) -> (m,n)   (m,k) * (k,) -> (m,)",
            "cmult for a product number by number, dot_product for Σ x∘y" if a == b else "transpose on one side",
        )
    return (m, k, n), ((m,) if len(b) == 1 else (m, n))


def _shape(shapes):
    _, dims = _sides(shapes)
    return Shape(dims, common_batch("matmul", shapes))


def _lower(shapes, out, shared):
    (m, k, n), _ = _sides(shapes)
    a, x = shapes
    if shared[0]:
        count = n * x.batch
        return Lowering(
            matmul_parameter,
            (m, k, count),
            (
                Operand(reads=SHARED, backward=matmul_parameter_gradient_a, writes=SHARED, needs=(1,)),
                Operand(reads=DENSE, backward=matmul_parameter_gradient_x, writes=DENSE, needs=(0,), columns=count),
            ),
        )
    looped = n == 1 and a.batch == x.batch and _looped(m, k)
    return Lowering(
        matmul_items,
        (m, k, n, a.batch, x.batch, int(looped)),
        (Operand(backward=matmul_items_gradient_a), Operand(backward=matmul_items_gradient_x)),
    )


def _reference(a, b):
    a, x = (v if v.ndim == 3 else v[:, None, :] for v in (a, b))
    batch = max(a.shape[-1], x.shape[-1])
    a, x = (np.broadcast_to(v, (*v.shape[:-1], batch)) for v in (a, x))
    y = np.einsum("mkb,knb->mnb", a, x)
    return y[:, 0] if b.ndim == 2 else y


def _samples(choose):
    m, k, n = (choose.integer(1, 5) for _ in range(3))
    batch = choose.batch()
    left, right = choose.one_of([((m, k), (k, n)), ((m, k), (k,)), ((m,), (1, n)), ((1, k), (k,))])
    batches = [batch if choose.integer(0, 2) else 1 for _ in range(2)]
    return Sample((Tensor(Shape(left, batches[0])), Tensor(Shape(right, batches[1]))))


MATMUL = Op(
    name="matmul",
    doc=__doc__,
    shape=_shape,
    lower=_lower,
    reference=_reference,
    samples=_samples,
    shapes="(m,k) (k,n) -> (m,n);  (m,k) (k,) -> (m,);  (k,) (1,n) -> (k,n)",
    shared=lambda position: position == 0,
    spaced=True,
)

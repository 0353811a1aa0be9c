"""One step of an LSTM without peepholes, the whole of it one node (DyNet's VanillaLSTMBuilder).

    a = Wx x + Wh h + b                rows i, f, o, g of H each
    i, f, o = σ(aᵢ), σ(a_f + forget bias), σ(aₒ)        g = tanh(a_g)
    c' = f ∘ c + i ∘ g                 h' = o ∘ tanh(c')

A node keeps what backward needs; h' and c' are views of it. With minibatch B:

    value     | h' (H,B) | c' (H,B) | i,f,o,g (4H,B) |
    gradient  | dh'      | dc'      | da             |

`prepare` turns the gradients of h' and c' into da, in place, and dc' into the gradient along both paths. After it the
gradients of x, h and the weights are plain products with da. Source: Hochreiter and Schmidhuber 1997; forget gate: Gers et
al. 2000.
"""

import numpy as np

from autobatch.kernels import _blas, _math
from autobatch.kernels._blas import add_columns, gemm_at
from autobatch.kernels._gemm import Product, columns, growing, library, matrix, numbers, summed, totals
from autobatch.kernels._jit import (
    ACCUMULATE,
    FLAGS,
    ITEMS,
    SIZES,
    Count,
    Dense,
    Matrix,
    integers,
    item,
    itemsize,
    kernel,
    number,
    pointer,
    row,
    slot,
)
from autobatch.kernels._jit import Product as LibraryProduct
from autobatch.kernels._lanes import items, lanes, quotient
from autobatch.kernels._op import DENSE, SHARED, Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, wrong

# On a card the gates are one launch, of both products and the bias, and what follows is another.
# sizes: H, I, B. Slots forward: y, x, h, c, Wx, Wh, b, forget bias


@kernel(before=_blas.ready)
def lstm_step(ins, T):
    """Gates by two products over all items, then the state, item by item."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, I, B = sizes[0], sizes[1], sizes[2]
    x, h, wx, wh, bias = item(ins, 1, 0, T), item(ins, 2, 0, T), item(ins, 4, 0, T), item(ins, 5, 0, T), item(ins, 6, 0, T)
    for i in range(n):
        y = item(ins, 0, i, T)
        for b in range(B):
            at = 2 * H * B + 4 * H * b
            for j in range(4 * H):
                y[at + j] = bias[j]
    y = item(ins, 0, 0, T)
    if B == 1:
        ld_y, ld_x, ld_h = (
            ins[slot(0) + 1] // itemsize(T),
            ins[slot(1) + 1] // itemsize(T),
            ins[slot(2) + 1] // itemsize(T),
        )
        gemm_at(False, False, 4 * H, n, I, wx, 0, 4 * H, x, 0, ld_x, True, y, 2 * H, ld_y, T)
        gemm_at(False, False, 4 * H, n, H, wh, 0, 4 * H, h, 0, ld_h, True, y, 2 * H, ld_y, T)
    else:
        for i in range(n):
            at = (6 * i + 2) * H * B
            gemm_at(False, False, 4 * H, B, I, wx, 0, 4 * H, x, i * I * B, I, True, y, at, 4 * H, T)
            gemm_at(False, False, 4 * H, B, H, wh, 0, 4 * H, h, i * H * B, H, True, y, at, 4 * H, T)
    for i in range(n):
        y, c, forget = item(ins, 0, i, T), item(ins, 3, i, T), item(ins, 7, i, T)[0]
        for b in range(B):
            a, s = 2 * H * B + 4 * H * b, H * b
            for j in range(H):
                y[a + j] = _math.logistic(y[a + j])
            for j in range(H, 2 * H):
                y[a + j] = _math.logistic(y[a + j] + forget)
            for j in range(2 * H, 3 * H):
                y[a + j] = _math.logistic(y[a + j])
            for j in range(3 * H, 4 * H):
                y[a + j] = _math.tanh(y[a + j])
            for j in range(H):
                state = y[a + H + j] * c[s + j] + y[a + j] * y[a + 3 * H + j]
                y[H * B + s + j] = state
                y[s + j] = y[a + 2 * H + j] * _math.tanh(state)


def lstm_step_states(ins, T):
    """The second launch on a card: what follows from the sums of the gates."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, B = sizes[0], sizes[2]
    for i in items(n):
        y, c, forget = item(ins, 0, i, T), item(ins, 3, i, T), item(ins, 7, i, T)[0]
        for s in lanes(H * B):
            a = 2 * H * B + s + 3 * H * quotient(s, H)
            gate_i, gate_f = _math.logistic(y[a]), _math.logistic(y[a + H] + forget)
            gate_o, gate_g = _math.logistic(y[a + 2 * H]), _math.tanh(y[a + 3 * H])
            state = gate_f * c[s] + gate_i * gate_g
            y[a], y[a + H], y[a + 2 * H], y[a + 3 * H] = gate_i, gate_f, gate_o, gate_g
            y[H * B + s] = state
            y[s] = gate_o * _math.tanh(state)


_GATES = Product(
    "lstm_step",
    m="4 * sizes[0]",
    n="n_items * sizes[2]",
    k="k",
    parts="2",
    part_head="k = sizes[1 - part]",
    a=matrix("4 + part", "4 * sizes[0]"),
    b=columns("1 + part", "sizes[2]", "k"),
    c=columns("0", "sizes[2]", "4 * sizes[0]", at="2 * sizes[0] * sizes[2]"),
    b_deep=True,
    start="row(ins, 6, 0)",
)


def lstm_step_begin(ins, T):
    """What comes before the products of a library: the gates begin with the bias."""
    n, H = ins[ITEMS], integers(ins[SIZES])[0]
    bias = item(ins, 6, 0, T)
    for i in items(n):
        y = item(ins, 0, i, T)
        for j in lanes(4 * H):
            y[2 * H + j] = bias[j]


# A library of products wants columns at an even distance: those of a minibatch's gates are not.


def _library(sizes):
    H, I, B = sizes[:3]
    if B > 1:
        return None
    gates = Matrix(0, 4 * H, 1, 2 * H)
    stages = [
        LibraryProduct(Matrix(4 + p, 4 * H), Matrix(1 + p, k, 1), gates, Count(4 * H), Count(0, 1), Count(k), add=True)
        for p, k in enumerate((I, H))
    ]
    dense = Dense(0, 6 * H, 1, True), Dense(1, I), Dense(2, H)
    return library(4 * H * (H + I), dense, numbers(lstm_step_begin, 4 * H), *stages, numbers(lstm_step_states, H))


def _library_of_inputs(sizes):
    H, I, B = sizes[:3]
    if B > 1 or H != I:  # which of the two it is only the instruction says
        return None
    da, dx, counts = Matrix(1, 4 * H, 1, 2 * H), Matrix(0, H, 1), (Count(H), Count(0, 1), Count(4 * H))
    product = LibraryProduct(Matrix(3, 4 * H), da, dx, *counts, transpose_a=True)
    return library(4 * H * H, (Dense(0, H, 1, True), Dense(1, 6 * H)), product)


def _library_of_weights(sizes):
    H, I, B = sizes[:3]
    if B > 1 or H != I:
        return None
    da, x, counts = Matrix(1, 4 * H, 1, 2 * H), Matrix(3, H, 1), (Count(4 * H), Count(H), Count(0, 1))
    product = LibraryProduct(da, x, Matrix(0, 4 * H), *counts, transpose_b=True, add=True)
    return library(4 * H * H, (Dense(1, 6 * H), Dense(3, H)), product)


lstm_step.on_card(
    stages=lambda sizes: [*growing(_GATES, 4 * sizes[0], sizes[2]), numbers(lstm_step_states, sizes[0] * sizes[2])],
    products=_library,
)


@kernel
def lstm_step_prepare(ins, T):
    """dh', dc' -> da, and dc' along both paths."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, B = sizes[0], sizes[2]
    one = number(1, T)
    for i in range(n):
        dy, y, c = item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 5, i, T)
        for b in range(B):
            a, s = 2 * H * B + 4 * H * b, H * b
            for j in range(H):
                gate_i, gate_f, gate_o, gate_g = y[a + j], y[a + H + j], y[a + 2 * H + j], y[a + 3 * H + j]
                squashed = _math.tanh(y[H * B + s + j])
                dh = dy[s + j]
                dc = dy[H * B + s + j] + dh * gate_o * (one - squashed * squashed)
                dy[H * B + s + j] = dc
                dy[a + j] = dc * gate_g * gate_i * (one - gate_i)
                dy[a + H + j] = dc * c[s + j] * gate_f * (one - gate_f)
                dy[a + 2 * H + j] = dh * squashed * gate_o * (one - gate_o)
                dy[a + 3 * H + j] = dc * gate_i * (one - gate_g * gate_g)


@lstm_step_prepare.on_card(work=lambda sizes: sizes[0] * sizes[2])
def lstm_step_prepare_card(ins, T):
    """A lane takes all that belongs to a number of c."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, total, one = sizes[0], sizes[0] * sizes[2], number(1, T)
    for i in items(n):
        dy, y, c = item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 5, i, T)
        for s in lanes(total):
            a = 2 * total + s + 3 * H * quotient(s, H)
            gate_i, gate_f, gate_o, gate_g = y[a], y[a + H], y[a + 2 * H], y[a + 3 * H]
            squashed, dh = _math.tanh(y[total + s]), dy[s]
            dc = dy[total + s] + dh * gate_o * (one - squashed * squashed)
            dy[total + s] = dc
            dy[a] = dc * gate_g * gate_i * (one - gate_i)
            dy[a + H] = dc * c[s] * gate_f * (one - gate_f)
            dy[a + 2 * H] = dh * squashed * gate_o * (one - gate_o)
            dy[a + 3 * H] = dc * gate_i * (one - gate_g * gate_g)


@kernel(before=_blas.ready)
def lstm_step_gradient_input(ins, T):
    """dx = or += Wᵀ da: for x with Wx, for h with Wh (slot 3)."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, B = sizes[0], sizes[2]
    K = H if ins[FLAGS] >> 8 == 1 else sizes[1]
    dx, dy, w = item(ins, 0, 0, T), item(ins, 1, 0, T), item(ins, 3, 0, T)
    add = ins[FLAGS] & ACCUMULATE
    if B == 1:
        ld_dx, ld_dy = ins[slot(0) + 1] // itemsize(T), ins[slot(1) + 1] // itemsize(T)
        gemm_at(True, False, K, n, 4 * H, w, 0, 4 * H, dy, 2 * H, ld_dy, add, dx, 0, ld_dx, T)
    else:
        for i in range(n):
            gemm_at(True, False, K, B, 4 * H, w, 0, 4 * H, dy, (6 * i + 2) * H * B, 4 * H, add, dx, i * K * B, K, T)


_GRADIENT_INPUT = Product(
    "lstm_step_gradient_input",
    head="k = sizes[0] if argument(ins) == 1 else sizes[1]",
    m="k",
    n="n_items * sizes[2]",
    k="4 * sizes[0]",
    a=matrix("3", "4 * sizes[0]"),
    b=columns("1", "sizes[2]", "4 * sizes[0]", at="2 * sizes[0] * sizes[2]"),
    c=columns("0", "sizes[2]", "k"),
    a_deep=True,
    b_deep=True,
    add="ins[FLAGS] & ACCUMULATE",
)
lstm_step_gradient_input.on_card(
    stages=lambda sizes: growing(_GRADIENT_INPUT, max(sizes[:2]), sizes[2]), products=_library_of_inputs
)


@kernel
def lstm_step_gradient_c(ins, T):
    """dc = or += dc' ∘ f."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, B = sizes[0], sizes[2]
    for i in range(n):
        dc, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for b in range(B):
            f, s = 2 * H * B + 4 * H * b + H, H * b
            if ins[FLAGS] & ACCUMULATE:
                for j in range(H):
                    dc[s + j] += dy[H * B + s + j] * y[f + j]
            else:
                for j in range(H):
                    dc[s + j] = dy[H * B + s + j] * y[f + j]


@lstm_step_gradient_c.on_card(work=lambda sizes: sizes[0] * sizes[2])
def lstm_step_gradient_c_card(ins, T):
    """A lane takes numbers of dc."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, total, add = sizes[0], sizes[0] * sizes[2], ins[FLAGS] & ACCUMULATE
    for i in items(n):
        dc, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for s in lanes(total):
            part = dy[total + s] * y[2 * total + s + 3 * H * quotient(s, H) + H]
            dc[s] = dc[s] + part if add else part


@kernel(before=_blas.ready)
def lstm_step_gradient_w(ins, T):
    """dW += da xᵀ: for Wx with x, for Wh with h (slot 3), over all items of the type at once."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, B = sizes[0], sizes[2]
    K = H if ins[FLAGS] >> 8 == 4 else sizes[1]
    dw, dy, x = item(ins, 0, 0, T), item(ins, 1, 0, T), item(ins, 3, 0, T)
    if B == 1:
        ld_dy, ld_x = ins[slot(1) + 1] // itemsize(T), ins[slot(3) + 1] // itemsize(T)
        gemm_at(False, True, 4 * H, K, n, dy, 2 * H, ld_dy, x, 0, ld_x, True, dw, 0, 4 * H, T)
    else:
        for i in range(n):
            gemm_at(False, True, 4 * H, K, B, dy, (6 * i + 2) * H * B, 4 * H, x, i * K * B, K, True, dw, 0, 4 * H, T)


@kernel
def lstm_step_gradient_b(ins, T):
    """db += the columns of da."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, B = sizes[0], sizes[2]
    db = item(ins, 0, 0, T)
    if B == 1:
        da = pointer(row(ins, 1, 0) + 2 * H * itemsize(T), T)
        add_columns(db, da, ins[slot(1) + 1] // itemsize(T), 4 * H, n, T)
    else:
        for i in range(n):
            add_columns(db, pointer(row(ins, 1, i) + 2 * H * B * itemsize(T), T), 4 * H, 4 * H, B, T)


_GRADIENT_W = Product(
    "lstm_step_gradient_w",
    head="k = sizes[0] if argument(ins) == 4 else sizes[1]",
    m="4 * sizes[0]",
    n="k",
    k="n_items * sizes[2]",
    a=columns("1", "sizes[2]", "4 * sizes[0]", at="2 * sizes[0] * sizes[2]"),
    b=columns("3", "sizes[2]", "k"),
    c=matrix("0", "4 * sizes[0]"),
    add="True",
)
_GRADIENT_B = Product(
    "lstm_step_gradient_b",
    m="4 * sizes[0]",
    n="1",
    k="n_items * sizes[2]",
    a=_GRADIENT_W.a,
    b=_GRADIENT_W.b,
    c=_GRADIENT_W.c,
    add="True",
)
lstm_step_gradient_w.on_card(
    stages=lambda sizes: summed(_GRADIENT_W, 4 * sizes[0], max(sizes[:2]), sizes[2]), products=_library_of_weights
)
lstm_step_gradient_b.on_card(stages=lambda sizes: totals(_GRADIENT_B, 4 * sizes[0], sizes[2]))


def _shape(shapes):
    x, h, c, wx, wh, b = shapes[:6]
    H, I = h.size, x.size
    batch = common_batch("lstm_step", shapes[:3])
    if any(s.dims != (s.size,) for s in (x, h, c)) or c.dims != h.dims or any(s.batch != batch for s in (x, h, c)):
        raise wrong("lstm_step", "x, h and c do not fit", shapes[:3], "x (I,)  h (H,)  c (H,), one batch size")
    if wx.dims != (4 * H, I) or wh.dims != (4 * H, H) or b.dims != (4 * H,):
        raise wrong("lstm_step", "the weights do not fit x and h", shapes[:6], "Wx (4H,I)  Wh (4H,H)  b (4H,)")
    return Shape((6 * H,), batch)


def _lower(shapes, out, shared):
    x, h = shapes[0], shapes[1]
    weight = {"reads": SHARED, "writes": SHARED}
    return Lowering(
        lstm_step,
        (h.size, x.size, out.batch),
        (
            Operand(reads=DENSE, backward=lstm_step_gradient_input, writes=DENSE, columns=out.batch, needs=(3,)),
            Operand(reads=DENSE, backward=lstm_step_gradient_input, writes=DENSE, columns=out.batch, needs=(4,)),
            Operand(backward=lstm_step_gradient_c, needs=()),
            Operand(backward=lstm_step_gradient_w, needs=(0,), **weight),
            Operand(backward=lstm_step_gradient_w, needs=(1,), **weight),
            Operand(backward=lstm_step_gradient_b, needs=(), **weight),
            Operand(),
        ),
        prepare=lstm_step_prepare,
        outputs=2 * h.size * out.batch,
    )


def _reference(x, h, c, wx, wh, b, forget):
    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    H = h.shape[0]
    a = wx[..., 0] @ x + wh[..., 0] @ h + b
    i, f, o, g = sigmoid(a[:H]), sigmoid(a[H : 2 * H] + forget), sigmoid(a[2 * H : 3 * H]), np.tanh(a[3 * H :])
    state = f * c + i * g
    return o * np.tanh(state), state


def _samples(choose):
    H, I, batch = choose.integer(1, 4), choose.integer(1, 4), choose.batch()
    return Sample(
        (
            Tensor(Shape((I,), batch)),
            Tensor(Shape((H,), batch)),
            Tensor(Shape((H,), batch)),
            Tensor(Shape((4 * H, I))),
            Tensor(Shape((4 * H, H))),
            Tensor(Shape((4 * H,))),
            choose.one_of([0.0, 1.0]),
        )
    )


LSTM_STEP = Op(
    name="lstm_step",
    doc=__doc__,
    shape=_shape,
    lower=_lower,
    reference=_reference,
    samples=_samples,
    shapes="x (I,), h, c (H,), Wx (4H,I), Wh (4H,H), b (4H,) -> h, c (H,)",
    shared=lambda position: position in (3, 4, 5),
    spaced=True,
)

"""The parts of an LSTM step as nodes of their own: its gates, then c, then h. (`lstm_step` is all of it in one.)

    gates   (i, f, o, g) = (σ(aᵢ), σ(a_f + 1), σ(aₒ), tanh(a_g))        a stacked in this order, (4H,)
    c       c' = i ∘ g + f ∘ c
    h       h = o ∘ tanh(c)

The products a = Wx x + Wh h + b are an `affine_transform`, so they run together for all nodes of the same weights.
"""

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, argument, integers, item, kernel, number
from autobatch.kernels._lanes import items, lanes, quotient
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, wrong

# Gates: sizes: H, batch -----------------------------------------------------------------------------------------------


@kernel
def lstm_gates(ins, T):
    """y = σ of the first three quarters of x, 1 added to the second, tanh of the last."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, one = sizes[0], number(1, T)
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for at in range(0, 4 * H * sizes[1], 4 * H):
            for j in range(at, at + H):
                y[j] = _math.logistic(x[j])
            for j in range(at + H, at + 2 * H):
                y[j] = _math.logistic(x[j] + one)
            for j in range(at + 2 * H, at + 3 * H):
                y[j] = _math.logistic(x[j])
            for j in range(at + 3 * H, at + 4 * H):
                y[j] = _math.tanh(x[j])


@lstm_gates.on_card
def lstm_gates_card(ins, T):
    """A lane takes the four gates of a number of c."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, total, one = sizes[0], sizes[0] * sizes[1], number(1, T)
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in lanes(total):
            j = t + 3 * H * quotient(t, H)
            y[j] = _math.logistic(x[j])
            y[j + H] = _math.logistic(x[j + H] + one)
            y[j + 2 * H] = _math.logistic(x[j + 2 * H])
            y[j + 3 * H] = _math.tanh(x[j + 3 * H])


@kernel
def lstm_gates_gradient(ins, T):
    """dx = or += dy y (1 - y), dy (1 - y²) in the last quarter."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, one = sizes[0], number(1, T)
    for i in range(n):
        dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for at in range(0, 4 * H * sizes[1], 4 * H):
            if ins[FLAGS] & ACCUMULATE:
                for j in range(at, at + 3 * H):
                    dx[j] += dy[j] * (y[j] * (one - y[j]))
                for j in range(at + 3 * H, at + 4 * H):
                    dx[j] += dy[j] * (one - y[j] * y[j])
            else:
                for j in range(at, at + 3 * H):
                    dx[j] = dy[j] * (y[j] * (one - y[j]))
                for j in range(at + 3 * H, at + 4 * H):
                    dx[j] = dy[j] * (one - y[j] * y[j])


@lstm_gates_gradient.on_card
def lstm_gates_gradient_card(ins, T):
    """A lane takes numbers of dx."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, total, one = sizes[0], 4 * sizes[0] * sizes[1], number(1, T)
    add = ins[FLAGS] & ACCUMULATE
    for i in items(n):
        dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for j in lanes(total):
            gate = y[j]
            slope = one - gate * gate if quotient(j, H) & 3 == 3 else gate * (one - gate)
            dx[j] = dx[j] + dy[j] * slope if add else dy[j] * slope


lstm_gates.on_card(work=lambda sizes: sizes[0] * sizes[1])


def _gates_shape(shapes):
    if len(shapes[0].dims) != 1 or shapes[0].size % 4:
        raise wrong("lstm_gates", "not four parts", shapes, "a vector (4H,)")
    return shapes[0]


def _gates_reference(x):
    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    H = len(x) // 4
    return np.concatenate([sigmoid(x[:H]), sigmoid(x[H : 2 * H] + 1), sigmoid(x[2 * H : 3 * H]), np.tanh(x[3 * H :])])


LSTM_GATES = Op(
    name="lstm_gates",
    doc="(σ(aᵢ), σ(a_f + 1), σ(aₒ), tanh(a_g)) of a stacked vector a.    da += dy y (1 - y); dy (1 - y²) for g",
    shapes="(4H,) -> (4H,)",
    shape=_gates_shape,
    lower=lambda shapes, out, shared: Lowering(
        lstm_gates, (out.size // 4, out.batch), (Operand(backward=lstm_gates_gradient, needs=()),)
    ),
    reference=_gates_reference,
    samples=lambda choose: Sample((Tensor(Shape((4 * choose.dims(1, 1)[0],), choose.batch()), -3.0, 3.0),)),
)


# c and h: sizes: H, batch, of c, of the gates -------------------------------------------------------------------------


@kernel
def vanilla_lstm_c(ins, T):
    """y = i g + f c."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H = sizes[0]
    for k in range(n):
        y, c, gates = item(ins, 0, k, T), item(ins, 1, k, T), item(ins, 2, k, T)
        for b in range(sizes[1]):
            to, at, i = b * H, b * H if sizes[2] > 1 else 0, b * 4 * H if sizes[3] > 1 else 0
            for j in range(H):
                y[to + j] = gates[i + j] * gates[i + 3 * H + j] + gates[i + H + j] * c[at + j]


@vanilla_lstm_c.on_card
def vanilla_lstm_c_card(ins, T):
    """A lane takes numbers of y."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, total = sizes[0], sizes[0] * sizes[1]
    for k in items(n):
        y, c, gates = item(ins, 0, k, T), item(ins, 1, k, T), item(ins, 2, k, T)
        for t in lanes(total):
            b = quotient(t, H)
            at, i = t if sizes[2] > 1 else t - b * H, t + 3 * H * b if sizes[3] > 1 else t - b * H
            y[t] = gates[i] * gates[i + 3 * H] + gates[i + H] * c[at]


@kernel
def vanilla_lstm_c_gradient(ins, T):
    """dc = or += dy f; or of the gates: dy (g, c, 0, i)."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H = sizes[0]
    for k in range(n):
        dx, dy, c, gates = item(ins, 0, k, T), item(ins, 1, k, T), item(ins, 3, k, T), item(ins, 4, k, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(4 * H * sizes[3] if argument(ins) else H * sizes[2]):
                dx[j] = 0
        for b in range(sizes[1]):
            to, at, i = b * H, b * H if sizes[2] > 1 else 0, b * 4 * H if sizes[3] > 1 else 0
            if argument(ins):
                for j in range(H):
                    dx[i + j] += dy[to + j] * gates[i + 3 * H + j]
                for j in range(H):
                    dx[i + H + j] += dy[to + j] * c[at + j]
                for j in range(H):
                    dx[i + 3 * H + j] += dy[to + j] * gates[i + j]
            else:
                for j in range(H):
                    dx[at + j] += dy[to + j] * gates[i + H + j]


@vanilla_lstm_c_gradient.on_card
def vanilla_lstm_c_gradient_card(ins, T):
    """A lane takes numbers of dc, or three gates of a number of c; one that has no batch adds up over that of y."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, add, of_gates = sizes[0], ins[FLAGS] & ACCUMULATE, argument(ins)
    own = sizes[3] if of_gates else sizes[2]
    for k in items(n):
        dx, dy, c, gates = item(ins, 0, k, T), item(ins, 1, k, T), item(ins, 3, k, T), item(ins, 4, k, T)
        for t in lanes(own * H):
            first = quotient(t, H)
            j = t - first * H
            of_i, of_f, of_g = number(0, T), number(0, T), number(0, T)
            for b in range(first, first + quotient(sizes[1], own)):
                d, at, i = dy[b * H + j], b * H + j if sizes[2] > 1 else j, b * 4 * H + j if sizes[3] > 1 else j
                if of_gates:
                    of_i += d * gates[i + 3 * H]
                    of_f += d * c[at]
                    of_g += d * gates[i]
                else:
                    of_f += d * gates[i + H]
            if of_gates:
                i = t + 3 * H * first
                dx[i] = dx[i] + of_i if add else of_i
                dx[i + H] = dx[i + H] + of_f if add else of_f
                if not add:
                    dx[i + 2 * H] = 0
                dx[i + 3 * H] = dx[i + 3 * H] + of_g if add else of_g
            else:
                dx[t] = dx[t] + of_f if add else of_f


@kernel
def vanilla_lstm_h(ins, T):
    """y = o tanh(c)."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H = sizes[0]
    for k in range(n):
        y, c, gates = item(ins, 0, k, T), item(ins, 1, k, T), item(ins, 2, k, T)
        for b in range(sizes[1]):
            to, at, o = b * H, b * H if sizes[2] > 1 else 0, (b * 4 if sizes[3] > 1 else 0) * H + 2 * H
            for j in range(H):
                y[to + j] = gates[o + j] * _math.tanh(c[at + j])


@vanilla_lstm_h.on_card
def vanilla_lstm_h_card(ins, T):
    """A lane takes numbers of y."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, total = sizes[0], sizes[0] * sizes[1]
    for k in items(n):
        y, c, gates = item(ins, 0, k, T), item(ins, 1, k, T), item(ins, 2, k, T)
        for t in lanes(total):
            b = quotient(t, H)
            at, o = t if sizes[2] > 1 else t - b * H, (t + 3 * H * b if sizes[3] > 1 else t - b * H) + 2 * H
            y[t] = gates[o] * _math.tanh(c[at])


@kernel
def vanilla_lstm_h_gradient(ins, T):
    """dc = or += dy o (1 - tanh² c); or of the gates: dy (0, 0, tanh c, 0)."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, one = sizes[0], number(1, T)
    for k in range(n):
        dx, dy, c, gates = item(ins, 0, k, T), item(ins, 1, k, T), item(ins, 3, k, T), item(ins, 4, k, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(4 * H * sizes[3] if argument(ins) else H * sizes[2]):
                dx[j] = 0
        for b in range(sizes[1]):
            to, at, o = b * H, b * H if sizes[2] > 1 else 0, (b * 4 if sizes[3] > 1 else 0) * H + 2 * H
            if argument(ins):
                for j in range(H):
                    dx[o + j] += dy[to + j] * _math.tanh(c[at + j])
            else:
                for j in range(H):
                    squashed = _math.tanh(c[at + j])
                    dx[at + j] += dy[to + j] * gates[o + j] * (one - squashed * squashed)


@vanilla_lstm_h_gradient.on_card
def vanilla_lstm_h_gradient_card(ins, T):
    """As that of c: a lane takes numbers of dc, or the gates of a number of c."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    H, add, of_gates, one = sizes[0], ins[FLAGS] & ACCUMULATE, argument(ins), number(1, T)
    own = sizes[3] if of_gates else sizes[2]
    for k in items(n):
        dx, dy, c, gates = item(ins, 0, k, T), item(ins, 1, k, T), item(ins, 3, k, T), item(ins, 4, k, T)
        for t in lanes(own * H):
            first = quotient(t, H)
            j, total = t - first * H, number(0, T)
            for b in range(first, first + quotient(sizes[1], own)):
                squashed = _math.tanh(c[b * H + j if sizes[2] > 1 else j])
                if of_gates:
                    total += dy[b * H + j] * squashed
                else:
                    o = (b * 4 * H + j if sizes[3] > 1 else j) + 2 * H
                    total += dy[b * H + j] * gates[o] * (one - squashed * squashed)
            if of_gates:
                i = t + 3 * H * first
                dx[i + 2 * H] = dx[i + 2 * H] + total if add else total
                if not add:
                    dx[i] = dx[i + H] = dx[i + 3 * H] = 0
            else:
                dx[t] = dx[t] + total if add else total


for _kernel in (vanilla_lstm_c, vanilla_lstm_c_gradient, vanilla_lstm_h, vanilla_lstm_h_gradient):
    _kernel.on_card(work=lambda sizes: sizes[0] * sizes[1])


def _shape(name):
    def rule(shapes):
        c, gates = shapes
        if len(c.dims) != 1 or gates.dims != (4 * c.size,):
            raise wrong(name, "the gates do not fit c", shapes, "c (H,), gates (4H,): i, f, o, g")
        return Shape(c.dims, common_batch(name, shapes))

    return rule


def _lower(forward, backward):
    def lower(shapes, out, shared):
        c, gates = shapes
        return Lowering(forward, (out.size, out.batch, c.batch, gates.batch), (Operand(backward=backward),) * 2)

    return lower


def _samples(choose):
    H, batch = choose.dims(1, 1)[0], choose.batch()
    c, gates = (Shape(dims, batch if choose.integer(0, 3) else 1) for dims in ((H,), (4 * H,)))
    return Sample((Tensor(c), Tensor(gates)))


def _c_reference(c, gates):
    i, f, _, g = np.split(gates, 4)
    return i * g + f * c


VANILLA_LSTM_C = Op(
    name="vanilla_lstm_c",
    doc="i ∘ g + f ∘ c, of c and gates (i, f, o, g).    dc += dy ∘ f    di += dy ∘ g    df += dy ∘ c    dg += dy ∘ i",
    shapes="(H,), (4H,) -> (H,)",
    shape=_shape("vanilla_lstm_c"),
    lower=_lower(vanilla_lstm_c, vanilla_lstm_c_gradient),
    reference=_c_reference,
    samples=_samples,
)
VANILLA_LSTM_H = Op(
    name="vanilla_lstm_h",
    doc="o ∘ tanh(c), of c and gates (i, f, o, g).    dc += dy ∘ o ∘ (1 - tanh² c)    do += dy ∘ tanh(c)",
    shapes="(H,), (4H,) -> (H,)",
    shape=_shape("vanilla_lstm_h"),
    lower=_lower(vanilla_lstm_h, vanilla_lstm_h_gradient),
    reference=lambda c, gates: np.split(gates, 4)[2] * np.tanh(c),
    samples=_samples,
)

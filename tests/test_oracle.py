"""The same calls in DyNet itself: values and gradients of every op that is in both, and the LSTM builder.

Needs DyNet (the extra "oracle"), which runs in this process, in float32 and without automatic batching.
"""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from laws import FORCED, PUBLIC, close, filled, flat, several, tensors
from strategies import Drawn, examples, numbers

import autobatch as ab
from autobatch.kernels._op import OPS

pytestmark = pytest.mark.oracle

AGREEMENT = 1e-5  # relative to the largest number; both compute in float32


@pytest.fixture
def dy(dynet):
    return dynet


def same_shape_left(tensors):
    """Only the right side of a quotient is stretched in DyNet."""
    x, z = (t.shape for t in tensors)
    return len(x.dims) == len(z.dims) and all(a >= b for a, b in zip((*x.dims, x.batch), (*z.dims, z.batch), strict=True))


# Ops that DyNet does not have.
ABSENT = {"rpow"}

# Ops whose gradient is now this, now that in DyNet, whatever the mode: only the values are compared.
UNSTEADY = {"ceil", "floor", "round"}


def one_shape(tensors):
    """No broadcasting, not even of the batch."""
    return len({t.shape for t in tensors}) == 1


# Where DyNet takes less, or is wrong: which calls to compare.
TAKES = {
    "bmax": lambda wanted, call: one_shape(wanted),
    "bmin": lambda wanted, call: one_shape(wanted),
    "emax": lambda wanted, call: one_shape(wanted),
    "pow": lambda wanted, call: wanted[1].shape.batch == 1 and wanted[0].shape.dims[1:][-1:] != (1,),  # one e; drops ones
    "silu": lambda wanted, call: call.arguments[1] == 1,  # its gradient is wrong for others
    "softsign": lambda wanted, call: wanted[0].shape.size == wanted[0].shape.dims[0],  # vectors only
    "average": lambda wanted, call: len({t.shape.batch for t in wanted}) == 1,  # a batch beside none gets a wrong gradient
    "cdiv": lambda wanted, call: same_shape_left(wanted),
    "dropout": lambda wanted, call: call.arguments[1] == 0,  # the masks are others
}


@st.composite
def calls(draw, op):
    choose = Drawn(draw, sizes=st.integers(1, 5))
    call = op.samples(choose)
    wanted = tensors(call.arguments)
    assume(op.name not in TAKES or TAKES[op.name](wanted, call))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return call, [numbers(rng, t) for t in wanted], rng


def argument(library, model, kind, array):
    """Return a parameter with these numbers, and the expression of it in the shape of the array, its last axis the batch."""
    if kind == "table":
        rows = np.moveaxis(array[..., 0], -1, 0)  # row by row, flat: otherwise DyNet transposes rows that are matrices
        p = model.add_lookup_parameters(rows.shape)
        for i, row in enumerate(rows):
            p.init_row(i, flat(row))
        return p, p
    if array.shape[-1] == 1:
        p = model.parameters_from_numpy(array[..., 0])
        return p, p
    p = model.parameters_from_numpy(flat(array))
    return p, library.reshape(p, array.shape[:-1], array.shape[-1])


def step_of(library, model, x, h, c, wx, wh, b, forget_bias):
    """A step of an LSTM with these parameters, and its parameters."""
    builder = library.VanillaLSTMBuilder(1, wx.shape[1], wh.shape[1], model, forget_bias=forget_bias)
    for p, array in zip(builder.get_parameters()[0], (wx, wh, b), strict=True):
        p.set_value(array[..., 0])
    c, h = builder.initial_state([c, h]).add_input(x).s()
    return (h, c), builder.get_parameters()[0]


def outcome(library, op, call, arrays, weights):
    """Return the results of a call, and the gradients of its arguments."""
    library.renew_cg()
    model = library.ParameterCollection()
    if op.name == "lstm_step":
        made = [argument(library, model, None, array) for array in arrays[:3]]
        ys, own = step_of(library, model, *(e for _, e in made), *arrays[3:], call.arguments[6])
        parameters = [*(p for p, _ in made), *own]
    else:
        forced = FORCED.get(op.name, {})
        made = [argument(library, model, forced.get(k), array) for k, array in enumerate(arrays)]
        parameters = [p for p, _ in made]
        function = PUBLIC.get(op.name) or getattr(library, op.name)
        if op.name == "dropout":
            function = lambda x, p, key: library.dropout(x, p)  # noqa: E731
        ys = several(function(*filled(call.arguments, [e for _, e in made]), **call.attributes))
    terms = []
    for y, w in zip(ys, weights, strict=True):
        assert y.dim() == (w.shape[:-1], w.shape[-1])
        terms.append(library.dot_product(library.reshape(y, (w.size,)), library.inputVector(flat(w))))
    loss = library.esum(terms)
    values = [y.npvalue() for y in ys]
    loss.backward()
    return values, [p.grad_as_array() for p in parameters]


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_every_op_gives_what_dynet_gives(dy, op):
    assert op.name in ABSENT or op.name in PUBLIC or hasattr(dy, op.name)
    assert not (op.name in ABSENT and hasattr(dy, op.name))
    if op.name in ABSENT:
        return

    @examples(15)
    @given(calls(op))
    def check(drawn):
        call, arrays, rng = drawn
        expected = several(op.reference(*filled(call.arguments, arrays), **call.attributes))
        weights = [rng.uniform(-1, 1, y.shape) for y in expected]
        values, gradients = outcome(ab, op, call, arrays, weights)
        theirs, their_gradients = outcome(dy, op, call, arrays, weights)
        for a, b in zip(values, theirs, strict=True):
            close(a, b, AGREEMENT, op.name)
        for a, b in zip(gradients, their_gradients, strict=True):
            if op.name not in UNSTEADY:
                close(a, b, AGREEMENT, op.name)

    check()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batched", [False, True])
def test_lstm_over_several_steps(dy, layers, batched):
    rng = np.random.default_rng(layers)
    table, start = rng.uniform(-1, 1, (9, 3)), rng.uniform(-1, 1, (2 * layers, 4))
    sentences = [[3, 1, 4, 1, 5], [2, 7], [8, 2, 8]]
    weights, initial = rng.uniform(-1, 1, (2, 4)), None

    def network(library):
        nonlocal initial
        library.renew_cg()
        model = library.ParameterCollection()
        lstm = library.VanillaLSTMBuilder(layers, 3, 4, model)
        words, w = model.lookup_parameters_from_numpy(table), model.parameters_from_numpy(weights)
        states = [model.parameters_from_numpy(s) for s in start]
        own = [p for layer in lstm.get_parameters() for p in layer]
        initial = initial or [rng.uniform(-1, 1, p.shape()) for p in own]
        for p, array in zip(own, initial, strict=True):
            p.set_value(array)
        losses, outputs = [], []
        for sentence in sentences:
            state = lstm.initial_state() if batched or len(sentence) == 5 else lstm.initial_state(states)
            for k in sentence:
                x = library.lookup_batch(words, [k, (k + 1) % 9]) if batched else words[k]
                state = state.add_input(x)
                outputs.append(state.output())
                score = w * state.output()
                if batched:
                    losses.append(library.sum_batches(library.pickneglogsoftmax_batch(score, [k % 2, 1])))
                else:
                    losses.append(library.pickneglogsoftmax(score, k % 2))
        loss = library.esum(losses)
        values = [loss.npvalue(), *(e.npvalue() for e in outputs), *(e.npvalue() for e in state.s())]
        loss.backward()
        return values, [p.grad_as_array() for p in (words, w, *states, *own)]

    for got, expected in zip(network(ab), network(dy), strict=True):
        for a, b in zip(got, expected, strict=True):
            close(a, b, AGREEMENT)


@pytest.mark.parametrize("symbol", ["1 - e", "2 * e", "e / 4", "e - 3", "e + 1.5", "-e"])
def test_operators_with_numbers(dy, symbol):
    if symbol in ("1 - e", "2 * e"):  # Cython 3 lost the reflected forms of the wheel
        symbol = {"1 - e": "-(e - 1)", "2 * e": "e * 2"}[symbol]

    def run(library):
        library.renew_cg()
        p = library.ParameterCollection().parameters_from_numpy(np.array([[0.5, -1.0], [2.0, 3.0]]))
        y = eval(symbol, {"e": p})
        library.dot_product(library.reshape(y, (4,)), library.inputVector([1, 2, 3, 4])).backward()
        return y.npvalue(), p.grad_as_array()

    for a, b in zip(run(ab), run(dy), strict=True):
        close(a, b, AGREEMENT)

"""The same calls in DyNet itself: values and gradients of every op that is in both, and the LSTM builder.

Needs DyNet (the extra "oracle"), which runs in this process, in float32 and without automatic batching.
"""

import functools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import FORCED, PUBLIC, RANDOM, close, filled, flat, several, tensors
from strategies import SEEDS, Drawn, Random, examples, numbers

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


def ranks_up_to(most):
    """DyNet takes arguments of at most so many dims."""
    return lambda wanted, call: all(len(t.shape.dims) <= most for t in wanted)


def few_dims(wanted, call):
    """At most 3 dims, at most 2 of them reduced."""
    return len(wanted[0].shape.dims) <= 3 and len(call.arguments[1]) <= 2


def reduced(call):
    """How many numbers of x become one, in a reduction over dims."""
    x, d, b = call.arguments[:3]
    return math.prod(x.shape.dims[k] for k in d) * (x.shape.batch if b else 1)


def taller(tensor):
    """Whether a matrix has more rows than columns: DyNet's sums along its rows are wrong."""
    dims = tensor.shape.dims
    return len(dims) == 2 and dims[0] > dims[1]


def no_minibatch(tensors):
    return all(t.shape.batch == 1 for t in tensors)


def reaches_the_end(x, window, stride, is_valid):
    """Where windows with padding end before the image does, DyNet's gradient is of other windows than its value."""
    sizes = list(zip(x.shape.dims, window, stride, strict=False))
    return is_valid or all((-(-n // s) - 1) * s + w >= n for n, w, s in sizes)


def same_minibatch(tensors):
    return len({t.shape.batch for t in tensors}) == 1


def activations(library):
    """The activations of the gates of an LSTM alone: products that change nothing."""

    def function(x):
        n = x.dim()[0][0]
        h, identity, nothing, b = np.zeros(n // 4), np.eye(n), np.zeros((n, n // 4)), np.zeros(n)
        return library.vanilla_lstm_gates(x, *(library.inputTensor(a) for a in (h, identity, nothing, b)))

    return function


def one_shape(tensors):
    """No broadcasting, not even of the batch."""
    return len({t.shape for t in tensors}) == 1


def straight(wanted, call):
    """The mode "zero_gradient" often passes the gradient on in DyNet."""
    return call.arguments[1] == "straight_through_gradient"


# Ops that DyNet does not have.
ABSENT = {"rpow", "sparsemax_loss"}

# Ops that are called by another name: the function of a library.
SPELLED = {
    "lstm_gates": activations,
    "restricted_log_softmax": lambda library: library.log_softmax,
}


def unbatched(wanted, call):
    """DyNet takes no minibatch."""
    return all(t.shape.batch == 1 for t in wanted)


def one_row(shape):
    return shape.dims[0] == 1 and len(shape.dims) <= 2


def rows_fit(wanted, call):
    """DyNet wants indices along rows to be below the number of rows, and takes no lists of lists."""
    x, v, d, _ = call.arguments
    return not isinstance(v[0], list) and x.shape.batch == 1 and (d == 0 or max(v) < x.shape.dims[0])


# Arguments, by position, by which DyNet's gradient is wrong.
WRONG_BY = {
    "binary_log_loss": {1},
    "ceil": {0},  # now this, now that, whatever the mode; floor and round too
    "floor": {0},
    "poisson_loss": {0},  # as if it were the whole loss
    "round": {0},
}

# Where DyNet takes less, or is wrong: which calls to compare.
TAKES = {
    "average": lambda wanted, call: same_minibatch(wanted),  # a batch beside none gets a wrong gradient
    "binary_log_loss": unbatched,
    "block_dropout": lambda wanted, call: call.arguments[1] == 0 and wanted[0].shape.batch == 1,  # takes no minibatch
    "bmax": lambda wanted, call: one_shape(wanted),
    "bmin": lambda wanted, call: one_shape(wanted),
    "cdiv": lambda wanted, call: same_shape_left(wanted),
    "ceil": straight,
    "circ_conv": lambda wanted, call: no_minibatch(wanted),  # takes no minibatch
    "circ_corr": lambda wanted, call: no_minibatch(wanted),
    "constrained_softmax": unbatched,
    # Takes no minibatch of filters.
    "conv2d": lambda wanted, call: (
        no_minibatch(wanted[1:]) and reaches_the_end(wanted[0], wanted[1].shape.dims, *call.arguments[-2:])
    ),
    "conv2d_bias": lambda wanted, call: (
        no_minibatch(wanted[1:]) and reaches_the_end(wanted[0], wanted[1].shape.dims, *call.arguments[-2:])
    ),
    "cumsum": ranks_up_to(3),
    "dropout": lambda wanted, call: call.arguments[1] == 0,  # the masks are others
    "dropout_batch": lambda wanted, call: call.arguments[1] == 0,
    "dropout_dim": lambda wanted, call: call.arguments[2] == 0 and len(wanted[0].shape.dims) < 4,  # takes no more dims
    "emax": lambda wanted, call: one_shape(wanted),
    # A minibatch gets lost; of a single filter (r,w,1) all columns but the first get no gradient.
    "filter1d_narrow": lambda wanted, call: no_minibatch(wanted) and wanted[1].shape.dims[2:] != (1,),
    "floor": straight,
    "fold_rows": lambda wanted, call: no_minibatch(wanted),  # it gets lost
    "hinge_dim": rows_fit,
    "huber_distance": unbatched,
    "inverse": lambda wanted, call: wanted[0].shape.batch == 1,  # no minibatch
    "kmax_pooling": ranks_up_to(3),
    "kmh_ngram": lambda wanted, call: no_minibatch(wanted),
    "l1_distance": unbatched,
    "layer_norm": lambda wanted, call: ranks_up_to(2)(wanted, call) and wanted[0].shape.size > 2,  # of two: rounding alone
    "logdet": lambda wanted, call: wanted[0].shape.batch == 1,  # no minibatch
    "logsumexp_dim": lambda wanted, call: ranks_up_to(2)(wanted, call) and not (call.arguments[1] == 1 and taller(wanted[0])),
    "max_dim": ranks_up_to(3),
    "maxpooling2d": lambda wanted, call: reaches_the_end(wanted[0], *call.arguments[1:]),
    "mean_batches": ranks_up_to(3),
    "mean_dim": few_dims,
    "mean_elems": ranks_up_to(2),
    "min_dim": ranks_up_to(3),
    "moment_batches": ranks_up_to(3),
    "moment_dim": few_dims,
    "moment_elems": ranks_up_to(2),
    "noise": lambda wanted, call: call.arguments[1] == 0,
    "pairwise_rank_loss": lambda wanted, call: wanted[0].shape == wanted[1].shape and one_row(wanted[0].shape),
    "pick": lambda wanted, call: len(wanted[0].shape.dims) < 4,  # takes no more
    "pick_batch": lambda wanted, call: len(wanted[0].shape.dims) < 4,
    "pick_batch_elems": lambda wanted, call: len(wanted[0].shape.dims) < 4,
    "poisson_loss": lambda wanted, call: unbatched(wanted, call) and isinstance(call.arguments[1], int),
    "pow": lambda wanted, call: wanted[1].shape.batch == 1 and wanted[0].shape.dims[1:][-1:] != (1,),  # one e; drops ones
    "random_gumbel": lambda wanted, call: call.arguments[1:3] == (0, 1),  # takes no others
    "restricted_log_softmax": lambda wanted, call: unbatched(wanted, call) and len(wanted[0].shape.dims) == 1,
    "round": straight,
    "silu": lambda wanted, call: call.arguments[1] == 1,  # its gradient is wrong for others
    "softsign": lambda wanted, call: wanted[0].shape.size == wanted[0].shape.dims[0],  # vectors only
    "sparsemax": lambda wanted, call: unbatched(wanted, call) and len(wanted[0].shape.dims) == 1,
    # the gradient of the deviation of one number is NaN
    "std_batches": lambda wanted, call: ranks_up_to(3)(wanted, call) and wanted[0].shape.batch > 1,
    "std_dim": lambda wanted, call: few_dims(wanted, call) and len(call.arguments) < 4 and reduced(call) > 1,  # n is ignored
    "std_elems": lambda wanted, call: ranks_up_to(2)(wanted, call) and wanted[0].shape.size > 1,
    "sum_batches": ranks_up_to(3),
    "sum_dim": few_dims,
    "trace_of_product": lambda wanted, call: all(t.shape.batch == 1 for t in wanted),  # no minibatch
    "vanilla_lstm_c": lambda wanted, call: same_minibatch(wanted),  # a batch beside none is refused
    "vanilla_lstm_h": lambda wanted, call: same_minibatch(wanted),
    "weight_norm": lambda wanted, call: all(t.shape.batch == 1 for t in wanted),  # no minibatch
}

# Ops whose value is wrong in DyNet for all calls, and which other call gives it there.
INSTEAD = {
    # adds the products to what the memory held before; with a bias it begins at the bias
    "contract3d_1d": lambda dy, x, y: dy.contract3d_1d_bias(x, y, dy.zeros(x.dim()[0][:2])),
}


@st.composite
def calls(draw, op):
    choose = Drawn(draw, sizes=st.integers(1, 5))
    for k in range(100):
        if k == 5:  # what Hypothesis draws is often much the same, and it gives up where few calls fit
            choose = Random(draw(SEEDS))
        call = op.samples(choose)
        if op.name not in TAKES or TAKES[op.name](tensors(call.arguments), call):
            break
    else:
        pytest.fail(f"no call of {op.name} that DyNet takes was drawn")
    rng = np.random.default_rng(draw(SEEDS))
    return call, [numbers(rng, t) for t in tensors(call.arguments)], rng


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
        function = SPELLED[op.name](library) if op.name in SPELLED else getattr(library, op.name, None) or PUBLIC[op.name]
        if library is not ab and op.name in INSTEAD:
            function = functools.partial(INSTEAD[op.name], library)
        attributes = {k: v for k, v in call.attributes.items() if k != "key"}
        ys = several(function(*filled(call.arguments, [e for _, e in made]), **attributes))
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
        wanted = tensors(call.arguments)
        expected = several(op.reference(*filled(call.arguments, arrays), **call.attributes))
        weights = [rng.uniform(-1, 1, y.shape) for y in expected]
        values, gradients = outcome(ab, op, call, arrays, weights)
        theirs, their_gradients = outcome(dy, op, call, arrays, weights)
        if op.name in RANDOM and not wanted:  # nothing but random numbers, and theirs are others
            assert [a.shape for a in values] == [b.shape for b in theirs]
            return
        for a, b in zip(values, theirs, strict=True):
            close(a, b, AGREEMENT, op.name)
        for k, (a, b) in enumerate(zip(gradients, their_gradients, strict=True)):
            if k not in WRONG_BY.get(op.name, ()):
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


@pytest.mark.parametrize(
    ("masked", "batch"), [(False, (1, 1)), (False, (3, 3)), (False, (3, 1)), (True, (1, 1)), (True, (3, 3))]
)
@pytest.mark.parametrize("parts", [(4,), (3, 1)])
def test_gates_of_an_lstm(dy, parts, masked, batch):
    rng = np.random.default_rng(len(parts) + batch[0])
    H, I = 3, sum(parts)
    xs = [rng.uniform(-1, 1, (n, batch[0])) for n in parts]
    rest = [rng.uniform(-1, 1, (H, batch[1])), *(rng.uniform(-1, 1, (*d, 1)) for d in [(4 * H, I), (4 * H, H), (4 * H,)])]
    masks = [rng.integers(0, 2, (n, 1)) * 2.0 for n in (I, H)] if masked else []
    weights = rng.uniform(-1, 1, 4 * H * max(batch))

    def run(library):
        library.renew_cg()
        model = library.ParameterCollection()
        made = [argument(library, model, None, array) for array in (*xs, *rest, *masks)]
        first, others = [e for _, e in made[: len(xs)]], [e for _, e in made[len(xs) :]]
        name = "vanilla_lstm_gates" + "_dropout" * masked + "_concat" * (len(xs) > 1)
        y = getattr(library, name)(first if len(xs) > 1 else first[0], *others)
        library.dot_product(library.reshape(y, (weights.size,)), library.inputVector(weights)).backward()
        return y.npvalue(), *(p.grad_as_array() for p, _ in made[: len(xs) + len(rest)])  # DyNet's masks get no gradient

    for got, expected in zip(run(ab), run(dy), strict=True):
        close(got, expected, AGREEMENT)


@pytest.mark.parametrize("v", [0, 2])
@pytest.mark.parametrize("dims", [(4,), (3, 2), (2, 3, 2)])
def test_pick_batch_elem(dy, dims, v):  # a view, so no op of its own
    array = np.random.default_rng(v).uniform(-1, 1, (*dims, 3))

    def run(library):
        library.renew_cg()
        p, x = argument(library, library.ParameterCollection(), None, array)
        y = library.pick_batch_elem(x, v)
        library.sum_elems(library.square(y)).backward()
        return y.npvalue(), p.grad_as_array()

    for got, expected in zip(run(ab), run(dy), strict=True):
        close(got, expected, AGREEMENT)


# Inputs, and what can be changed in a graph ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda library: library.inputTensorTranspose(np.arange(6.0), (2, 3)),
        lambda library: library.inputTensorTranspose(np.arange(6.0), (3,), 2),
        lambda library: library.inputTensorTranspose(np.arange(6.0)),
        lambda library: library.sparse_inputTensor([[0, 1, 0], [1, 2, 1]], np.array([5.0, 6.0, 7.0]), (2, 3)),
        lambda library: library.sparse_inputTensor([[0, 2], [1, 0]], np.array([5.0, 6.0]), (3, 2), batched=True, defval=-1),
        lambda library: library.one_hot(4, 2),
        lambda library: library.one_hot(4, [2, 0, 2]),
    ],
)
def test_inputs(dy, make):
    ab.renew_cg()
    dy.renew_cg()
    a, b = make(ab), make(dy)
    assert a.dim() == b.dim()
    np.testing.assert_array_equal(a.npvalue(), b.npvalue())


def test_indices_that_are_changed(dy):
    array = np.random.default_rng(0).normal(size=(4, 3))

    def run(library):
        library.renew_cg()
        model = library.ParameterCollection()
        p, table = model.parameters_from_numpy(array), model.lookup_parameters_from_numpy(array)
        picked, many = library.pick(p, 1, 0), library.pick_batch(p, [0, 2], 1)
        row, rows = library.lookup(table, 1), library.lookup_batch(table, [0, 3])
        y = library.sum_batches(library.dot_product(row, rows)) + library.squared_norm(picked)
        y = y + library.sum_batches(library.squared_norm(many))
        first = y.value()
        picked.set_index(3)
        many.set_index([1, 1])
        row.set(0)
        rows.set([2, 2])
        second = y.value()
        y.backward()
        return [first, second, p.grad_as_array(), table.grad_as_array()]

    for a, b in zip(run(ab), run(dy), strict=True):
        close(a, b, AGREEMENT)

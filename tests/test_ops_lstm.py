"""An LSTM step in parts: against plain loops and the builder, batches, masks, noise, errors."""

import contextlib

import numpy as np
import pytest

import autobatch as ab
from autobatch.functions.lstm import _activated

rng = np.random.default_rng(7)
H, I = 3, 5


@pytest.fixture(autouse=True)
def graph():
    with ab.Graph(dtype="float64") as graph:
        yield graph


def parameter(array):
    """Return a float64 parameter with these numbers."""
    return ab.ParameterCollection(dtype="float64").add_parameters(array.shape, init=array)


def numbers(*dims):
    """Return an array of random numbers."""
    return rng.uniform(-1, 1, dims)


def weights():
    """Return Wx, Wh, b."""
    return numbers(4 * H, I), numbers(4 * H, H), numbers(4 * H)


def gates_by_loops(x, h, wx, wh, b):
    """Return the gates, number by number."""
    result = np.zeros(4 * H)
    for k in range(4 * H):
        a = b[k] + sum(wx[k, j] * x[j] for j in range(I)) + sum(wh[k, j] * h[j] for j in range(H))
        part = k // H
        result[k] = np.tanh(a) if part == 3 else 1 / (1 + np.exp(-(a + 1 if part == 1 else a)))
    return result


def expressions(arrays):
    """Return an input for each array."""
    return [ab.inputTensor(a) for a in arrays]


FORMS = {
    "vanilla_lstm_gates": lambda x, h, w, mx, mh, **k: ab.vanilla_lstm_gates(x, h, *w, **k),
    "vanilla_lstm_gates_concat": lambda x, h, w, mx, mh, **k: ab.vanilla_lstm_gates_concat([x[0:2], x[2:5]], h, *w, **k),
    "vanilla_lstm_gates_dropout": lambda x, h, w, mx, mh, **k: ab.vanilla_lstm_gates_dropout(x, h, *w, mx, mh, **k),
    "vanilla_lstm_gates_dropout_concat": lambda x, h, w, mx, mh, **k: ab.vanilla_lstm_gates_dropout_concat(
        [x[0:1], x[1:4], x[4:5]], h, *w, mx, mh, **k
    ),
}
every_form = pytest.mark.parametrize("name", FORMS)


@every_form
@pytest.mark.parametrize("batches", [(1, 1, 1), (3, 3, 1), (1, 3, 1), (3, 1, 1), (1, 1, 3), (3, 3, 3)])  # of x, h, the rest
def test_gates_of_each_element_of_a_minibatch(name, batches):
    sizes = [(I,), (H,), (4 * H, I), (4 * H, H), (4 * H,), (I,), (H,)]
    counts = [*batches[:2], *[batches[2]] * 5]
    arrays = [numbers(*s, n) for s, n in zip(sizes, counts, strict=True)]
    x, h, *w, mx, mh = (
        ab.inputTensor(a, batched=True) if n > 1 else ab.inputTensor(a[..., 0]) for a, n in zip(arrays, counts, strict=True)
    )
    y = FORMS[name](x, h, w, mx, mh)
    assert y.dim() == ((4 * H,), max(batches))
    got = y.npvalue().reshape(4 * H, -1)
    for k in range(max(batches)):
        a, b, wx, wh, bias, m, n = (v[..., min(k, v.shape[-1] - 1)] for v in arrays)
        masked = (a * m, b * n) if "dropout" in name else (a, b)
        np.testing.assert_allclose(got[:, k], gates_by_loops(*masked, wx, wh, bias), atol=1e-12)


@every_form
def test_gradients_of_all_arguments_equal_differences(name):
    arrays = [numbers(I), numbers(H), *weights(), numbers(I), numbers(H)]
    outer = numbers(4 * H)

    def loss(arrays):
        x, h, *w, mx, mh = arrays
        return float(gates_by_loops(*((x * mx, h * mh) if "dropout" in name else (x, h)), *w) @ outer)

    x, h, *w, mx, mh = ps = [parameter(a) for a in arrays]
    ab.dot_product(FORMS[name](x, h, w, mx, mh), ab.inputVector(outer)).backward()
    for k, p in enumerate(ps):
        direction = numbers(*arrays[k].shape)
        up, down = ([a + (s * direction if j == k else 0) for j, a in enumerate(arrays)] for s in (1e-6, -1e-6))
        expected = (loss(up) - loss(down)) / 2e-6
        assert abs(np.sum(p.grad_as_array() * direction) - expected) < 1e-8


def test_parts_make_the_step_of_the_builder():
    model = ab.ParameterCollection(dtype="float64")
    builder, (x, h, c) = ab.VanillaLSTMBuilder(1, I, H, model), expressions([numbers(I), numbers(H), numbers(H)])
    (w,) = builder.get_parameters()
    expected = builder.initial_state([c, h]).add_input(x).s()
    gates = ab.vanilla_lstm_gates(x, h, *w)
    new_c = ab.vanilla_lstm_c(c, gates)
    for got, wanted in zip((new_c, ab.vanilla_lstm_h(new_c, gates)), expected, strict=True):
        np.testing.assert_allclose(got.npvalue(), wanted.npvalue(), atol=1e-12)


def test_steps_of_the_same_parameters_run_as_one_batch(graph):
    w = [parameter(a) for a in weights()]
    states = [expressions([numbers(I), numbers(H), numbers(H)]) for _ in range(6)]
    outputs = []
    for x, h, c in states:
        gates = ab.vanilla_lstm_gates(x, h, *w)
        outputs.append(ab.vanilla_lstm_h(ab.vanilla_lstm_c(c, gates), gates))
    ab.forward(outputs)
    assert graph.execution.batches == 4  # products, activations, c, h


def test_large_numbers_saturate_and_nan_stays_in_its_place():
    a = np.repeat([[1e4], [-1e4], [np.nan]], 4 * H, axis=1)
    c = ab.inputVector([1.0] * H)
    none, zero, eye = ab.inputVector([0.0] * H), ab.inputTensor(np.zeros((4 * H, H))), ab.inputTensor(np.eye(4 * H))
    for k, (gate, squashed) in enumerate([(1, 1), (0, -1), (np.nan, np.nan)]):
        gates = ab.vanilla_lstm_gates(ab.inputVector(a[k]), none, eye, zero, ab.inputVector([0.0] * 4 * H))
        np.testing.assert_array_equal(gates.npvalue(), [gate] * 3 * H + [squashed] * H)
        np.testing.assert_array_equal(ab.vanilla_lstm_c(c, gates).npvalue(), [gate * squashed + gate] * H)


# Noise ----------------------------------------------------------------------------------------------------------------


@every_form
def test_noise_is_added_to_all_weights_and_drawn_anew_for_each_step(name):
    arrays = [numbers(I), numbers(H), *weights(), np.ones(I), np.ones(H)]
    x, h, *w, mx, mh = [parameter(a) for a in arrays]
    exact = gates_by_loops(*arrays[:5])
    ys = [FORMS[name](x, h, w, mx, mh, weightnoise_std=1e-3) for _ in range(400)]
    ab.forward(ys)
    got = np.stack([y.npvalue() for y in ys])
    # To first order the noise of a is normal, of variance std² (|x|² + |h|² + 1).
    slope = np.concatenate([exact[: 3 * H] * (1 - exact[: 3 * H]), 1 - exact[3 * H :] ** 2])
    expected = 1e-3 * np.sqrt(np.sum(arrays[0] ** 2) + np.sum(arrays[1] ** 2) + 1) * slope
    np.testing.assert_allclose(got.std(axis=0), expected, rtol=0.2)
    np.testing.assert_allclose(got.mean(axis=0), exact, atol=6 * expected.max() / 20)


def test_gradient_passes_through_the_noise():
    x, h, w = numbers(I), numbers(H), weights()
    gradients = []
    for std in (0.0, 1e-9):
        ps = [parameter(a) for a in (x, h, *w)]
        ab.sum_elems(ab.vanilla_lstm_gates(*ps, weightnoise_std=std)).backward()
        gradients.append([p.grad_as_array() for p in ps])
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


# Errors ---------------------------------------------------------------------------------------------------------------


def test_errors_of_the_gates_leave_nothing_behind(graph):
    good = expressions([numbers(I), numbers(H), *weights(), numbers(I), numbers(H)])
    nodes = len(graph.recorded_types)

    def call(name, at, other, **k):
        x, h, *w, mx, mh = [*good[:at], other, *good[at + 1 :]]
        return FORMS[name](x, h, w, mx, mh, **k)

    odd, matrix = ab.inputVector([1.0, 2.0]), ab.inputTensor(np.ones((I, 1)))
    nodes = len(graph.recorded_types)
    for at, which in enumerate(["Wx does not fit", "Wx does not fit", "Wx does not fit", "Wh does not fit", "b does not fit"]):
        with pytest.raises(
            ab.ShapeError, match=f"vanilla_lstm_gates: {which} x of . and h of . numbers\n  got .*\n  expected  x"
        ):
            call("vanilla_lstm_gates", at, odd)
    with pytest.raises(ab.ShapeError, match="vanilla_lstm_gates: x and h are not vectors"):
        call("vanilla_lstm_gates", 0, matrix)
    for at in (5, 6):
        with pytest.raises(ab.ShapeError, match=r"vanilla_lstm_gates_dropout: the masks do not fit .*\n.*\n.*mask_x \(I,\)"):
            call("vanilla_lstm_gates_dropout", at, odd)
    for std in (-1.0, float("nan"), float("inf")):
        with pytest.raises(
            ab.ArgumentError, match=r"vanilla_lstm_gates: weightnoise_std is .*\n  expected  a standard deviation"
        ):
            call("vanilla_lstm_gates", 0, good[0], weightnoise_std=std)
    with pytest.raises(TypeError, match="weightnoise_std is 'a'"):
        call("vanilla_lstm_gates", 0, good[0], weightnoise_std="a")
    with pytest.raises(TypeError, match="vanilla_lstm_gates: argument 2 is None"):
        call("vanilla_lstm_gates", 1, None)
    for xs in ([], [None]):
        with pytest.raises(AssertionError, match="vanilla_lstm_gates_concat"):
            ab.vanilla_lstm_gates_concat(xs, *good[1:5])
    with pytest.raises(TypeError, match="vanilla_lstm_gates_concat: the argument is an expression"):
        ab.vanilla_lstm_gates_concat(good[0], *good[1:5])
    assert len(graph.recorded_types) == nodes
    two, three = (ab.inputTensor(np.ones((n, b)), batched=True) for n, b in ((I, 2), (H, 3)))
    with pytest.raises(ab.ShapeError, match="vanilla_lstm_gates: batch sizes 2 and 3"):
        ab.vanilla_lstm_gates(two, three, *good[2:5])


@pytest.mark.parametrize("function", [ab.vanilla_lstm_c, ab.vanilla_lstm_h], ids=lambda f: f.__name__)
def test_errors_of_c_and_h(function):
    c, gates = expressions([numbers(H), numbers(4 * H)])
    for pair in [(c, c), (gates, c), (c, ab.inputTensor(np.ones((4 * H, 1)))), (ab.inputTensor(np.ones((H, 1))), gates)]:
        with pytest.raises(
            ab.ShapeError, match=rf"{function.__name__}: the gates do not fit c\n.*\n  expected  c \(H,\), gates \(4H,\)"
        ):
            function(*pair)
    with pytest.raises(TypeError):
        function(c, [1.0] * 4 * H)


# On a card ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [(1, 1), (3, 3), (1, 3), (3, 1)])
def test_long_ones_on_a_card(batches):
    """More numbers than lanes, as on a processor."""
    pytest.importorskip("greenlet")
    from fake_driver import simulated_card

    arrays, results = (numbers(50 * batches[0]), numbers(200 * batches[1])), []
    for machine in (contextlib.nullcontext, simulated_card):
        with machine(), ab.Graph(dtype="float64"):
            leaves = [parameter(a) for a in arrays]
            c, a = ab.reshape(leaves[0], (50,), batches[0]), ab.reshape(leaves[1], (200,), batches[1])
            gates = _activated(a)
            ys = [f(x, gates) for f in (ab.vanilla_lstm_c, ab.vanilla_lstm_h) for x in (c, 2 * c)]
            values = [y.npvalue() for y in ys]
            ab.sum_elems(ab.esum([ab.sum_batches(ab.cmult(y, y)) for y in ys])).backward()
            results.append([*values, *(p.grad_as_array() for p in leaves)])
    for expected, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-13)

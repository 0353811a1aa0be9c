"""Where DyNet's automatic batching gives wrong numbers or crashes, and what is right there.

The thirteen ways it fails, in the order of its engine: ops that share a signature though they differ in an attribute (one
activation for another, axes, biases, the halves of an LSTM), batched and unbatched arguments in one list, checkpoints, a second
backward pass, memory that must grow, a computed left side of a product, tiny graphs, arguments counted wrong, gradients of
views.

Ops that do not exist here yet and belong on this list: elu and selu beside rectify, silu with two betas. The laws over all ops
(`test_ops.py`) batch each of them with itself; their attributes need a test here.
"""

import itertools

import numpy as np
import pytest
from laws import DIFFERENCES, EXACT, close, counted, slope, weighed

import autobatch as ab
from autobatch.schedule import POLICIES

A = np.arange(1.0, 5.0).reshape(2, 2)
RNG = np.random.default_rng(11)


@pytest.fixture(params=POLICIES, autouse=True)
def policy(request):
    ab.configure(dtype="float64", policy=request.param)
    ab.renew_cg()
    return request.param


def parameter(array):
    return ab.ParameterCollection().add_parameters(1, init=np.asarray(array, dtype=float))


def check(expressions, expected):
    """Compute all in one pass, then compare each."""
    ab.forward(list(expressions))
    for e, array in zip(expressions, expected, strict=True):
        close(e.npvalue(), array, EXACT)


def check_gradients(make, parameters, reference):
    """Compare the gradients of Σ weights ∘ results of `make` with those of `reference`, which takes and returns arrays."""
    results = make()
    expected = reference(*(p.as_array() for p in parameters))
    check(results, expected)
    weights = [RNG.uniform(-1, 1, y.shape) for y in expected]
    ab.esum([weighed(e, w) for e, w in zip(results, weights, strict=True)]).backward()
    for k, p in enumerate(parameters):
        values = [q.as_array() for q in parameters]
        for at in np.ndindex(p.dims):

            def loss(t, k=k, at=at):
                moved = [v.copy() for v in values]
                moved[k][at] += t
                return sum(np.sum(w * y) for w, y in zip(weights, reference(*moved), strict=True))

            gradient = p.grad_as_array()[at]
            assert abs(gradient - slope(loss, 0.0, 1.0)) <= DIFFERENCES * max(1.0, abs(gradient)), (k, at)


# 1, 2: functions in one graph that are not the same function -------------------------------------------------------------


def test_1_activations_of_one_shape_are_computed_as_what_they_are():
    functions = {
        ab.rectify: lambda x: np.maximum(x, 0),
        ab.tanh: np.tanh,
        ab.logistic: lambda x: 1 / (1 + np.exp(-x)),
        ab.exp: np.exp,
        ab.square: np.square,
        lambda x: -x: np.negative,
    }
    p = parameter([-1.5, 0.3, 2.0])
    check_gradients(lambda: [f(p) for f in functions], [p], lambda x: [g(x) for g in functions.values()])


def test_2_attributes_that_are_numbers_are_told_apart():
    p = parameter([-1.5, 0.3, 2.0])
    factors = [2.0, 3.0, -0.0, 0.0, 0.5, 2.0]
    check_gradients(
        lambda: [f for c in factors for f in (p * c, p + c, c - p)],
        [p],
        lambda x: [y for c in factors for y in (x * c, x + c, c - x)],
    )
    ab.renew_cg()
    ys = [ab.dropout(ab.ones((2000,)), q) for q in (0.1, 0.5, 0.9, 0.0, 1.0)]
    ab.forward(ys)
    for y, q in zip(ys, (0.1, 0.5, 0.9, 0.0, 1.0), strict=True):
        kept = y.npvalue()[y.npvalue() != 0]
        assert abs(kept.size / 2000 - (1 - q)) < 0.05 and np.allclose(kept, 1 / (1 - q) if q < 1 else 0, rtol=1e-15)


# 3: axes ------------------------------------------------------------------------------------------------------------------


def test_3_concatenate_along_different_axes():
    p, q = parameter(A), parameter(A + 10)
    check_gradients(
        lambda: [ab.concatenate([p, q], d) for d in (0, 1, 2, 1, 0)],
        [p, q],
        lambda a, b: [np.concatenate([a, b], d) if d < 2 else np.stack([a, b], 2) for d in (0, 1, 2, 1, 0)],
    )


def test_3_softmax_over_different_axes():
    def reference(x, d):
        return np.exp(x) / np.exp(x).sum(axis=d, keepdims=True)

    p = parameter(RNG.uniform(-1, 1, (3, 3)))
    check_gradients(lambda: [ab.softmax(p, d) for d in (0, 1, 0)], [p], lambda x: [reference(x, d) for d in (0, 1, 0)])


def test_3_transposes_by_different_permutations():
    orders = list(itertools.permutations(range(3)))
    p = parameter(RNG.uniform(-1, 1, (2, 2, 2)))
    check_gradients(lambda: [ab.transpose(p, list(o)) for o in orders], [p], lambda x: [x.transpose(o) for o in orders])


def test_3_pick_range_pick_and_slices_on_different_axes():
    p = parameter(RNG.uniform(-1, 1, (3, 3)))

    def make():
        picks = [ab.pick(p, k, d) for d in (0, 1) for k in (0, 2)]
        ranges = [ab.pick_range(p, s, s + 2, d) for d in (0, 1) for s in (0, 1)]
        return [*picks, *ranges, p[0:3:2], p[0:3, 0:3:2], p[0:2, 0:2]]

    def reference(x):
        picks = [x.take(k, axis=d) for d in (0, 1) for k in (0, 2)]
        ranges = [x[s : s + 2] if d == 0 else x[:, s : s + 2] for d in (0, 1) for s in (0, 1)]
        return [*picks, *ranges, x[::2], x[:, ::2], x[:2, :2]]

    check_gradients(make, [p], reference)


# 4: biases ----------------------------------------------------------------------------------------------------------------


def test_4_affine_transforms_with_different_biases_and_weights():
    b, c, w, u, x = (parameter(RNG.uniform(-1, 1, s)) for s in [(2,), (2,), (2, 3), (2, 3), (3,)])
    check_gradients(
        lambda: [ab.affine_transform([bias, weight, x]) for bias in (b, c) for weight in (w, u)] + [w * x, u * x],
        [b, c, w, u, x],
        lambda b, c, w, u, x: [bias + weight @ x for bias in (b, c) for weight in (w, u)] + [w @ x, u @ x],
    )


def test_4_convolutions_with_different_filters_and_biases():
    x, f, g, b, c = (parameter(RNG.uniform(-1, 1, s)) for s in [(2, 3), (2, 2, 1, 2), (2, 2, 1, 2), (2,), (2,)])

    def correlation(x, f):
        return np.einsum("hjw,hwo->jo", np.lib.stride_tricks.sliding_window_view(x, 2, axis=1), f[:, :, 0])[None]

    check_gradients(
        lambda: [
            *(ab.conv2d_bias(x, h, bias, [1, 1]) for bias in (b, c) for h in (f, g)),
            *(ab.conv2d(x, h, [1, 1]) for h in (f, g)),
            ab.conv2d(x, f, [1, 2]),
        ],
        [x, f, g, b, c],
        lambda x, f, g, b, c: [
            *(correlation(x, h) + bias for bias in (b, c) for h in (f, g)),
            *(correlation(x, h) for h in (f, g)),
            correlation(x, f)[:, :1],
        ],
    )


# 5: the halves of an LSTM ---------------------------------------------------------------------------------------------------


def test_5_h_and_c_of_a_step_are_told_apart():
    model = ab.ParameterCollection()
    lstm = ab.VanillaLSTMBuilder(1, 2, 2, model)
    wx, wh, b = lstm.get_parameters()[0]
    x, y = parameter([0.5, -1.0]), parameter([1.5, 0.25])

    def step(x, h, c, wx, wh, b):
        i, f, o, g = np.split(wx @ x + wh @ h + b, 4)
        i, f, o, g = 1 / (1 + np.exp(-i)), 1 / (1 + np.exp(-f - 1)), 1 / (1 + np.exp(-o)), np.tanh(g)
        c = f * c + i * g
        return o * np.tanh(c), c

    def make():
        first, second = lstm.initial_state().add_input(x), lstm.initial_state().add_input(y)
        return [*first.s(), *second.s(), *first.add_input(y).s(), *second.set_s(list(first.s())).add_input(y).s()]

    def reference(wx, wh, b, x, y):
        zero = np.zeros(2)
        h1, c1 = step(x, zero, zero, wx, wh, b)
        h2, c2 = step(y, zero, zero, wx, wh, b)
        h3, c3 = step(y, h1, c1, wx, wh, b)
        return [c1, h1, c2, h2, c3, h3, c3, h3]

    check_gradients(make, [wx, wh, b, x, y], reference)


def test_5_nodes_of_c_and_of_h_are_told_apart():
    c, gates, other = (parameter(RNG.uniform(-1, 1, n)) for n in (2, 8, 8))

    def new_c(c, gates):
        i, f, _, g = np.split(gates, 4)
        return i * g + f * c

    check_gradients(
        lambda: [f(c, g) for f in (ab.vanilla_lstm_c, ab.vanilla_lstm_h) for g in (gates, other)],
        [c, gates, other],
        lambda c, *gates: [*(new_c(c, g) for g in gates), *(np.split(g, 4)[2] * np.tanh(c) for g in gates)],
    )


# 6: batched and unbatched arguments -----------------------------------------------------------------------------------------


def test_6_concatenate_mixes_batched_and_unbatched_arguments():
    p, q = parameter([1.0, 2.0]), parameter([[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]])

    def make():
        b = ab.reshape(q, (2,), 3)  # columns as a minibatch of 3
        joined = [ab.concatenate(xs) for xs in ([p, b], [b, p], [p, p], [b, b])]
        return [*joined, ab.esum([p, b]), ab.average([b, p]), ab.cmult(b, p)]

    def reference(p, q):
        b = np.repeat(p[:, None], 3, 1)
        lists = [np.concatenate(xs) for xs in ([b, q], [q, b], [p, p], [q, q])]
        return [*lists, b + q, (b + q) / 2, b * q]

    check_gradients(make, [p, q], reference)


# 7: checkpoints -------------------------------------------------------------------------------------------------------------


def test_7_revert_after_something_was_evaluated():
    p = parameter([1.0])
    x = p * 2.0
    x.value()
    for c in (0.5, 3.0):
        ab.cg_checkpoint()
        y = ab.tanh(x) * c
        close(y.npvalue(), [np.tanh(2) * c], EXACT)
        ab.cg_revert()
    z = ab.tanh(x) * 7.0 + x
    close(z.npvalue(), [np.tanh(2) * 7 + 2], EXACT)
    z.backward()
    close(p.grad_as_array(), [2 * (7 * (1 - np.tanh(2) ** 2) + 1)], EXACT)


@pytest.mark.parametrize("again", ["set", "look-up", "recalculate"])
def test_7_revert_after_all_was_computed_again_above_the_checkpoint(again):
    """Values of nodes below and above the checkpoint were then computed in one pass; what is above must go all the same."""
    p = parameter([0.5, 1.0])
    table = ab.ParameterCollection().add_lookup_parameters((3, 2), init=np.arange(6.0).reshape(3, 2) / 10)
    v, row = ab.inputVector([1.0, 2.0]), table[0]
    x = ab.tanh(p + v + row)
    ab.cg_checkpoint()
    y = ab.sum_elems(ab.exp(ab.square(x)))
    y.value()
    if again == "set":
        v.set([0.25, 0.5])
    elif again == "look-up":
        row.set(2)
    y.value(recalculate=again == "recalculate")
    ab.cg_revert()
    z = ab.sum_elems(ab.square(ab.exp(x)))
    z.backward()
    inner = p.as_array() + ([0.25, 0.5] if again == "set" else [1, 2]) + table.as_array()[2 if again == "look-up" else 0]
    close(z.npvalue(), [np.exp(2 * np.tanh(inner)).sum()], EXACT)
    expected = 2 * np.exp(2 * np.tanh(inner)) * (1 - np.tanh(inner) ** 2)
    close(p.grad_as_array(), expected, EXACT)
    close(table.grad_as_array()[2 if again == "look-up" else 0], expected, EXACT)


# 8: a second backward -------------------------------------------------------------------------------------------------------


def test_8_second_smaller_backward_adds_only_its_own():
    p = parameter([0.7, -0.2])
    small = ab.sum_elems(ab.tanh(p))
    x = ab.tanh(p)
    large = ab.sum_elems(ab.square(x)) + ab.sum_elems(x)
    large.backward()
    first = p.grad_as_array()
    small.backward()
    close(p.grad_as_array() - first, 1 - np.tanh([0.7, -0.2]) ** 2, EXACT)
    with pytest.raises(RuntimeError, match="gradient"):
        large.gradient()
    close(small.gradient(), [1.0], 0)


# 9: memory that grows -------------------------------------------------------------------------------------------------------


def test_9_memory_grows_in_the_middle_of_a_graph():
    p = parameter(np.linspace(-1, 1, 1000))
    x, y = p, p.as_array()
    for k in range(3):  # 0.08, then 8, then 80 MB, each with values asked for in between
        branches = [ab.tanh(x * (1.0 + j / 1000)) for j in range([10, 1000, 5000][k])]
        x = ab.average(branches)
        y = np.mean([np.tanh(y * (1.0 + j / 1000)) for j in range(len(branches))], axis=0)
        close(x.npvalue(), y, EXACT)
    ab.sum_elems(x).backward()
    total = p.grad_as_array()
    assert np.isfinite(total).all() and (total > 0).all()
    ab.renew_cg()
    p._reset_gradient()
    ab.sum_elems(ab.tanh(p)).backward()
    close(p.grad_as_array(), 1 - np.tanh(p.as_array()) ** 2, EXACT)


# 10: a left side that was computed -------------------------------------------------------------------------------------------


def test_10_shared_computed_left_side_of_a_product():
    """Its gradient must not end up in its neighbours of the same batch, nor in other parameters."""
    p, q, r = (parameter(RNG.uniform(-1, 1, s)) for s in [(2, 2), (2, 2), (2, 3)])

    def make():
        sides = [ab.tanh(m) for m in (p, q, p + q)]
        return [side * ab.pick(r, k, 1) for side in sides for k in range(3)]

    def reference(p, q, r):
        return [np.tanh(m) @ r[:, k] for m in (p, q, p + q) for k in range(3)]

    check_gradients(make, [p, q, r], reference)


# 11, 12: small graphs, arguments counted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("autobatching", [True, False, None, "depth"])
def test_11_tiny_graphs_with_automatic_batching(autobatching):
    p = parameter([3.0])
    for n in range(4):
        ab.renew_cg(autobatching=autobatching)
        x = p
        for _ in range(n):
            x = ab.square(x)
        y = x + 0.0
        close(y.npvalue(), [3.0**2**n], EXACT)
        p._reset_gradient()
        y.backward()
        close(p.grad_as_array(), [2**n * 3.0 ** (2**n - 1)], EXACT)
    ab.renew_cg(autobatching=autobatching)
    assert p.value() == 3.0 and ab.scalarInput(2.0).value() == 2.0
    lone = p[0]
    lone.backward()
    close(lone.gradient(), [1.0], 0)


def test_12_ops_of_different_numbers_of_arguments_in_one_graph():
    ps = [parameter([k + 1.0, k - 1.0]) for k in range(5)]
    lists = [ps[:n] for n in range(1, 6)] + [ps[1:n] for n in range(2, 6)]

    def reference(*arrays):
        groups = [arrays[:n] for n in range(1, 6)] + [arrays[1:n] for n in range(2, 6)]
        return [f(g) for g in groups for f in (lambda g: sum(g), lambda g: sum(g) / len(g), np.concatenate)]

    check_gradients(lambda: [f(xs) for xs in lists for f in (ab.esum, ab.average, ab.concatenate)], ps, reference)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 33, 260])
def test_12_long_lists(count):
    ps = [parameter([0.1 * k, 1.0]) for k in range(3)]
    batched = parameter(np.arange(6.0).reshape(2, 3))

    def make():
        b = ab.reshape(batched, (2,), 3)
        xs = [ps[k % 3] if k % 5 else b for k in range(1, count + 1)]
        return [ab.esum(xs), ab.average(xs), ab.concatenate(xs), ab.esum(xs[-1:] + xs)]

    def reference(a, b, c, q):
        xs = [(a, b, c)[k % 3] if k % 5 else q for k in range(1, count + 1)]
        wide = [x if x.ndim == 2 or count < 5 else np.repeat(x[:, None], 3, 1) for x in xs]
        return [sum(wide), sum(wide) / count, np.concatenate(wide), sum(wide) + wide[-1]]

    check_gradients(make, [*ps, batched], reference)


# 13: gradients of views -------------------------------------------------------------------------------------------------------


def test_13_gradient_of_reshape_and_slices():
    p = parameter([1.0, 2.0, 3.0, 4.0])
    x = ab.tanh(p)
    y, whole, part, other = ab.reshape(x, (2, 2)), x[:], x[1:3], x[2:4]
    direct = ab.reshape(p, (2, 2))
    loss = ab.esum([ab.sum_elems(ab.square(y)), ab.sum_elems(whole) * 2.0, ab.sum_elems(part) * 3.0, ab.sum_elems(other) * 5.0])
    loss = loss + ab.sum_elems(ab.square(direct))
    expected = {
        y: 2 * np.tanh([[1, 3], [2, 4]]),
        whole: [2.0, 2.0, 2.0, 2.0],
        part: [3.0, 3.0],
        other: [5.0, 5.0],
        direct: np.array([[2.0, 6.0], [4.0, 8.0]]),
        x: 2 * np.tanh([1, 2, 3, 4]) + [2, 5, 10, 7],
    }
    slope = 1 - np.tanh([1, 2, 3, 4]) ** 2
    for times in (1, 2):
        loss.backward()
        for _ in range(2):
            for e, gradient in expected.items():
                close(e.gradient(), gradient, EXACT)
        close(p.grad_as_array(), times * (expected[x] * slope + [2, 4, 6, 8]), EXACT)
        close(p.gradient(), expected[x] * slope + [2, 4, 6, 8], EXACT)


def test_13_view_of_a_constant_has_a_gradient_and_passes_none_on():
    p = parameter([1.0, 2.0, 3.0, 4.0])
    y = ab.reshape(p.expr(update=False), (2, 2))
    z = p.expr(update=False)[1:3]
    loss = ab.sum_elems(ab.square(y)) + ab.sum_elems(ab.square(z))
    loss.backward(full=True)
    close(y.gradient(), [[2, 6], [4, 8]], EXACT)
    close(z.gradient(), [4, 6], EXACT)
    assert not p.grad_as_array().any()


# Beyond the list: what such engines get wrong -------------------------------------------------------------------------


def test_two_columns_far_apart_in_memory_are_one_product():
    """The distance between an input and a computed node is no leading dimension: it does not fit the int32 of BLAS."""
    w, p = parameter(RNG.uniform(-1, 1, (3, 4))), parameter(RNG.uniform(-1, 1, 4))
    b, u = parameter([1.0, 2.0, 3.0]), parameter(RNG.uniform(-1, 1, (3, 4)))
    v = np.array([1.0, -2.0, 0.5, 3.0])

    def make():
        x = ab.inputVector(v)
        pairs = [(x, ab.tanh(x)), (ab.tanh(x), x), (p, x), (x, p), (p, ab.exp(p)), (ab.exp(p), p)]
        products = [w * a for pair in pairs[:2] for a in pair] + [u * a for pair in pairs[2:] for a in pair]
        return products + [ab.affine_transform([b, w, a, u, c]) for a, c in pairs]

    def reference(w, p, b, u):
        pairs = [(v, np.tanh(v)), (np.tanh(v), v), (p, v), (v, p), (p, np.exp(p)), (np.exp(p), p)]
        products = [w @ a for pair in pairs[:2] for a in pair] + [u @ a for pair in pairs[2:] for a in pair]
        return products + [b + w @ a + u @ c for a, c in pairs]

    for order in itertools.permutations(range(2)):
        ab.renew_cg()
        xs = [ab.inputVector(v), ab.tanh(p)]
        products = [w * xs[k] for k in order]
        check(products, [w.as_array() @ [v, np.tanh(p.as_array())][k] for k in order])
    ab.renew_cg()
    check_gradients(make, [w, p, b, u], reference)


def test_every_op_of_two_instances_is_batched(policy):
    """Picks, slices, reductions, broadcasts, losses, products of computed nodes: none runs alone."""
    ps = [parameter(RNG.uniform(0.5, 1.5, (2, 3))) for _ in range(4)]

    def instance(p):
        x = ab.tanh(p)
        row, square = ab.pick(x, 1), x * ab.transpose(x)
        parts = [ab.pick_range(x, 0, 1), x[0:2, 0:3:2], ab.softmax(x, 1), ab.log_softmax(x), x + ab.pick(x, 0, 1)]
        sums = [ab.sum_elems(part) for part in parts]
        losses = [ab.pickneglogsoftmax(row, 2), ab.dot_product(row, row)]
        losses += [ab.squared_distance(row, row * 2.0), ab.sum_elems(square)]
        return ab.average([1 - ab.esum(sums), ab.esum(losses)])

    def reference(*arrays):
        results = []
        for x in map(np.tanh, arrays):
            row, e = x[1], np.exp(x)
            parts = [x[:1], x[:, ::2], e / e.sum(1, keepdims=True), np.log(e / e.sum(0)), x + x[:, :1]]
            loss = np.log(np.exp(row).sum()) - row[2] + 2 * (row @ row) + (x @ x.T).sum()
            results.append(np.array([(1 - sum(p.sum() for p in parts) + loss) / 2]))
        return results

    check_gradients(lambda: [instance(p) for p in ps], ps, reference)
    if policy != "none":
        alone = ab.Graph(policy=policy)
        with alone:
            instance(ps[0]).value()
        several = ab.Graph(policy=policy)
        with several:
            ab.forward([instance(p) for p in ps])
        assert counted(several) == counted(alone)

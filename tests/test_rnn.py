"""Builders of recurrent networks: against NumPy, against DyNet, states and their errors, dropout, files."""

import numpy as np
import pytest

import autobatch as ab

KINDS = ["SimpleRNN", "GRU", "VanillaLSTM", "CompactVanillaLSTM", "SparseLSTM", "CoupledLSTM", "FastLSTM"]
CELLS = [k for k in KINDS if "LSTM" in k]


def logistic(x):
    return 1 / (1 + np.exp(-x))


def norm(x, g, b):
    return g * (x - x.mean()) / (x.std() + 1e-8) + b


def reference(kind, layers, xs, hs, cs, norms=None, forget_bias=1.0):
    """Return h and c of each layer after each input, in float64; `layers`: lists of arrays in the order of get_parameters."""
    hs, cs, result = list(hs), list(cs), []
    first = not any(h.any() for h in hs)
    for x in xs:
        for k, p in enumerate(layers):
            h, c = hs[k], cs[k]
            if kind == "SimpleRNN":
                h = np.tanh(p[0] @ x + p[1] @ h + p[2])
            elif kind == "GRU":
                z, r = (logistic(p[i] @ x + p[i + 1] @ h + p[i + 2]) for i in (0, 3))
                h = z * np.tanh(p[6] @ x + p[7] @ (r * h) + p[8]) + (1 - z) * h
            elif kind in ("CoupledLSTM", "FastLSTM"):
                peep = kind == "CoupledLSTM"
                i = logistic(p[0] @ x + p[1] @ h + (p[2] @ c if peep else 0) + p[3])
                c = (1 - i) * c + i * np.tanh(p[8] @ x + p[9] @ h + p[10])
                h = logistic(p[4] @ x + p[5] @ h + (p[6] @ c if peep else 0) + p[7]) * np.tanh(c)
            else:
                wx, wh, b = p[:3]
                if kind == "SparseLSTM":
                    wx, wh = wx * p[3], wh * p[4]
                if norms:
                    gh, bh, gx, bx, gc, bc = norms[k]
                    a = b + norm(wx @ x, gx, bx) + (0 if first else norm(wh @ h, gh, bh))
                else:
                    a = wx @ x + wh @ h + b
                i, f, o, g = a.reshape(4, -1)
                c = logistic(f + forget_bias) * c + logistic(i) * np.tanh(g)
                h = logistic(o) * np.tanh(norm(c, gc, bc) if norms else c)
            hs[k], cs[k], x = h, c, h
        result.append((list(hs), list(cs)))
        first = False
    return result


def builder(library, kind, layers, inputs, hidden, model, *more):
    return getattr(library, kind + "Builder")(layers, inputs, hidden, model, *more)


def randomise(model, rng, arrays=None):
    """Give all parameters random values (or those of a list); return them."""
    arrays = arrays or [rng.normal(size=p.shape()) * 0.5 for p in model.parameters_list()]
    for p, array in zip(model.parameters_list(), arrays, strict=True):
        p.set_value(array)
    return arrays


# Against NumPy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_steps(kind, layers, started):
    rng = np.random.default_rng(1)
    model = ab.ParameterCollection(dtype="float64")
    rnn = builder(ab, kind, layers, 3, 4, model)
    randomise(model, rng)
    xs = rng.normal(size=(4, 3))
    cs, hs = rng.normal(size=(2, layers, 4)) * (0.5 if started else 0)
    own = [[p.as_array() for p in layer] for layer in rnn.get_parameters()]
    expected = reference(kind, own, xs, hs, cs)
    with ab.Graph(dtype="float64"):
        vecs = [ab.inputVector(v) for v in ([*cs, *hs] if kind in CELLS else hs)]
        state = rnn.initial_state(vecs if started else None)
        for x, (h, c) in zip(xs, expected, strict=True):
            state = state.add_input(ab.inputVector(x))
            np.testing.assert_allclose([e.npvalue() for e in state.h()], h, rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(
                [e.npvalue() for e in state.s()], [*c, *h] if kind in CELLS else h, rtol=1e-12, atol=1e-13
            )
            assert state.output() is state.h()[-1] and state.b() is rnn


@pytest.mark.parametrize("forget_bias", [1.0, 0.0, 2.5])
@pytest.mark.parametrize("kind", ["VanillaLSTM", "SparseLSTM"])
@pytest.mark.parametrize("ln", [False, True])
def test_layer_normalisation_and_forget_bias(kind, ln, forget_bias):
    rng = np.random.default_rng(2)
    model = ab.ParameterCollection(dtype="float64")
    rnn = builder(ab, kind, 2, 3, 4, model, ln, forget_bias)
    randomise(model, rng)
    xs = rng.normal(size=(3, 3))
    own = [[p.as_array() for p in layer] for layer in rnn.get_parameters()]
    norms = [p.as_array() for p in model.parameters_list() if p.name().count("/") == 1]
    assert len(norms) == (12 if ln else 0)
    expected = reference(kind, own, xs, np.zeros((2, 4)), np.zeros((2, 4)), [norms[:6], norms[6:]] if ln else None, forget_bias)
    with ab.Graph(dtype="float64"):
        outputs = rnn.initial_state().transduce([ab.inputVector(x) for x in xs])
        for e, (h, _) in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(e.npvalue(), h[-1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_instances_batch_under_every_policy_and_gradients_agree(kind):
    rng = np.random.default_rng(3)
    model = ab.ParameterCollection(dtype="float64")
    rnn = builder(ab, kind, 2, 3, 4, model)
    randomise(model, rng)
    sentences = [rng.normal(size=(n, 3)) for n in (3, 1, 4, 2)]

    def run(policy):
        with ab.Graph(dtype="float64", policy=policy) as graph:
            ends = [rnn.initial_state().transduce([ab.inputVector(x) for x in s])[-1] for s in sentences]
            loss = ab.esum([ab.squared_norm(e) for e in ends])
            loss.backward()
            gradients = [p.grad_as_array() for p in model.parameters_list()]
            model.reset_gradient()
            return loss.value(), gradients, graph.batches

    value, gradients, alone = run("none")
    for policy in ("ratio", "agenda", "depth"):
        other, others, batches = run(policy)
        assert abs(other - value) < 1e-12 and batches < 0.6 * alone
        for a, b in zip(gradients, others, strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-12)


# DyNet ----------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    ("kind", "more"),
    [*((k, ()) for k in KINDS), ("VanillaLSTM", (True, 0.5)), ("SparseLSTM", (True, 1.0)), ("SparseLSTM", (False, 0.0))],
)
def test_builders_of_dynet(dynet, kind, more, batched):
    rng = np.random.default_rng(4)
    xs, weights = rng.normal(size=(5, 3, 2) if batched else (5, 3)), rng.normal(size=4)
    arrays, names = None, []

    def train(library):
        nonlocal arrays
        model = library.ParameterCollection()
        rnn = builder(library, kind, 2, 3, 4, model, *more)
        arrays = randomise(model, rng, arrays)
        if kind == "SparseLSTM":
            for p in model.parameters_list():
                if p.name().split("_")[-1] in ("2", "3", "7", "8") and p.name().count("/") == 2:
                    p.set_value(np.ones(p.shape()))
            rnn.set_sparsity(0.5)
        names.append(([p.name() for p in model.parameters_list()], [[p.name() for p in l] for l in rnn.get_parameters()]))
        trainer, values = library.SimpleSGDTrainer(model, 0.1), []
        for _ in range(3):
            library.renew_cg()
            inputs = [library.inputTensor(x, batched=batched) for x in xs]
            state = rnn.initial_state()
            first, *rest = state.add_inputs(inputs)
            branch = first.add_input(inputs[3])
            outputs = [s.output() for s in (first, *rest, branch)] + list(rest[-1].s())
            values.append([o.npvalue() for o in outputs])
            w = library.inputVector(weights)
            loss = library.sum_batches(library.esum([library.dot_product(w, o) for o in outputs]))
            values.append([loss.npvalue()])
            loss.backward()
            trainer.update()
        values.append([p.as_array() for p in model.parameters_list()])
        return values

    ours, theirs = train(ab), train(dynet)
    assert names[0] == names[1]
    for a, b in zip([v for vs in ours for v in vs], [v for vs in theirs for v in vs], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max()))


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "FastLSTM"])
def test_builders_go_to_dynet_and_back(dynet, kind, tmp_path):
    rng = np.random.default_rng(5)
    for source, target in ((ab, dynet), (dynet, ab)):
        model = source.ParameterCollection()
        rnn = builder(source, kind, 2, 3, 4, model)
        randomise(model, rng)
        W = model.add_parameters((2, 2), name="W")
        base = str(tmp_path / f"{source.__name__}-{kind}")
        source.save(base, [rnn, W])
        again = target.ParameterCollection()
        copy, V = target.load(base, again)
        assert type(copy).__name__ == type(rnn).__name__ and copy.spec == rnn.spec and V.name() == "/W"
        for a, b in zip(model.parameters_list(), again.parameters_list(), strict=True):
            np.testing.assert_array_equal(a.as_array(), b.as_array())


@pytest.mark.oracle
def test_bidirectional_of_dynet(dynet, tmp_path):
    rng = np.random.default_rng(6)
    xs, arrays, results = rng.normal(size=(4, 3)), None, []
    for library in (ab, dynet):
        model = library.ParameterCollection()
        birnn = library.BiRNNBuilder(2, 3, 4, model, library.LSTMBuilder)
        arrays = randomise(model, rng, arrays)
        library.renew_cg()
        es = [library.inputVector(x) for x in xs]
        values = [e.npvalue() for e in birnn.transduce(es)]
        values += [e.npvalue() for pair in birnn.add_inputs(es) for s in pair for e in s.s()]
        results.append((values, [p.name() for p in model.parameters_list()]))
        if library is ab:
            library.save(str(tmp_path / "birnn"), [birnn])
    assert results[0][1] == results[1][1]
    for a, b in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    again = dynet.ParameterCollection()
    (birnn,) = dynet.load(str(tmp_path / "birnn"), again)
    dynet.renew_cg()
    np.testing.assert_allclose(
        [e.npvalue() for e in birnn.transduce([dynet.inputVector(x) for x in xs])], results[0][0][:4], atol=1e-6
    )


# States ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_states(kind):
    model = ab.ParameterCollection()
    rnn = builder(ab, kind, 2, 3, 4, model)
    with pytest.raises(ab.ArgumentError, match="before initial_state"):
        rnn.get_parameter_expressions()
    start = rnn.initial_state()
    assert start.output() is None and start.h() == () and start.s() == () and start.prev() is None
    assert [len(layer) for layer in rnn.get_parameter_expressions()] == [len(layer) for layer in rnn.get_parameters()]
    x = ab.inputVector([1.0, 2.0, 3.0])
    one = start.add_input(x)
    two = one.add_input(x)
    again = one.add_input(x)
    assert two.prev() is one and one.prev() is start
    np.testing.assert_array_equal(two.output().npvalue(), again.output().npvalue())
    vecs = [ab.inputVector(np.full(4, k / 10)) for k in range(4)]
    moved = two.set_h(vecs[:2])
    assert moved.h() == tuple(vecs[:2]) and moved.prev() is two
    if kind in CELLS:
        assert moved.s()[:2] == two.s()[:2] and two.set_s(vecs).s() == tuple(vecs)
        assert two.set_s(vecs[:2]).s() == (*vecs[:2], *two.h())
        np.testing.assert_array_equal(start.set_h(vecs[:2]).s()[0].npvalue(), np.zeros(4))
        np.testing.assert_array_equal(start.set_s(vecs[:2]).h()[0].npvalue(), np.zeros(4))
        counts = "2 or 4"
    else:
        assert two.set_s(vecs[:2]).h() == tuple(vecs[:2])
        counts = "2"
    with pytest.raises(ValueError, match=f"3 expressions\n  expected  {counts}"):
        rnn.initial_state(vecs[:3])
    with pytest.raises(ValueError, match=r"expression 1 is \(3,\)\n  expected  \(4,\)"):
        rnn.initial_state([x, x])
    with pytest.raises(ValueError, match=r"x is \(4,\)\n  expected  \(3,\)"):
        start.add_input(vecs[0])
    raw = rnn.initial_state_from_raw_vectors([[0.5] * 4] * 2)
    assert raw.add_input(x).output().dim() == ((4,), 1)
    ab.renew_cg()
    with pytest.raises((RuntimeError, ValueError), match="another graph"):
        start.add_input(ab.inputVector([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_vectors(kind, batch):
    """(n,1), which a product with a column is, does for (n,) as input and as state, as in DyNet."""
    model, rng = ab.ParameterCollection(), np.random.default_rng(4)
    net, both = builder(ab, kind, 2, 3, 4, model), ab.BiRNNBuilder(1, 3, 4, model, getattr(ab, kind + "Builder"))
    W = model.add_parameters((3, 3))
    arrays = [rng.normal(size=(3, 1, batch)) for _ in range(6)]
    begin = [rng.normal(size=(4, 1, batch)) for _ in range(4 if net.cells else 2)]

    def results(shape):
        ab.renew_cg()
        xs = [ab.reshape(W * ab.inputTensor(a, batched=True), shape(3)) for a in arrays]
        given = [ab.reshape(ab.inputTensor(a, batched=True), shape(4)) for a in begin]
        state = net.initial_state(given)
        states = net.initial_state().add_inputs(xs)
        outputs = [s.output() for s in states] + net.initial_state().transduce(xs) + both.transduce(xs) + state.transduce(xs)
        outputs += [state.add_input(xs[0]).output(), states[-1].set_h(given[-2:]).add_input(xs[1]).output()]
        outputs.append(states[-1].set_s(given).add_input(xs[1]).output())
        assert {e.dim() for e in outputs} == {((4,), batch)}
        model.reset_gradient()
        ab.sum_batches(ab.esum([ab.squared_norm(e) for e in outputs])).backward()
        return [e.npvalue() for e in outputs] + [p.grad_as_array() for p in model.parameters_list()]

    for a, b in zip(results(lambda n: (n, 1)), results(lambda n: (n,)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_stacked_states():
    model = ab.ParameterCollection()
    lower, upper = ab.GRUBuilder(1, 3, 4, model), ab.LSTMBuilder(1, 4, 2, model)
    stacked = ab.StackedRNNState([lower.initial_state(), upper.initial_state()])
    xs = [ab.inputVector(np.arange(3.0) + k) for k in range(3)]
    last = stacked.add_inputs(xs)[-1]
    expected = upper.initial_state().transduce(lower.initial_state().transduce(xs))
    np.testing.assert_array_equal(last.output().npvalue(), expected[-1].npvalue())
    assert stacked.output() is None and last.prev().prev().prev() is stacked
    assert [len(h) for h in last.h()] == [1, 1] and [len(s) for s in last.s()] == [1, 2]
    np.testing.assert_array_equal(stacked.transduce(xs)[1].npvalue(), expected[1].npvalue())
    with pytest.raises(TypeError, match="a list of states"):
        ab.StackedRNNState([lower])


def test_what_builders_refuse():
    model = ab.ParameterCollection()
    for kind in KINDS:
        for sizes in ((0, 3, 4), (1, -1, 4), (1, 3, 2.5), (1, 3, True), (2000, 3, 4)):
            with pytest.raises(ab.ArgumentError, match=f"{kind}Builder: "):
                builder(ab, kind, *sizes, model)
        with pytest.raises(TypeError, match="expected  a ParameterCollection"):
            builder(ab, kind, 1, 3, 4, None)
        rnn = builder(ab, kind, np.int64(1), 3, 4, model)
        for p in (-0.1, 1.5, "x", np.nan):
            with pytest.raises(ab.ArgumentError, match="a probability from 0 to 1"):
                rnn.set_dropout(p)
        assert rnn.whoami() == f"{kind}Builder" and repr(rnn).startswith(f"{kind}Builder(layers=1")
        with pytest.raises(TypeError, match="a list of expressions"):
            rnn.initial_state().add_inputs(3)
    with pytest.raises(ab.ArgumentError, match="an even number"):
        ab.BiRNNBuilder(1, 3, 5, model, ab.LSTMBuilder)
    with pytest.raises(ab.ArgumentError, match="num_layers"):
        ab.BiRNNBuilder(0, 3, 4, model, ab.LSTMBuilder)
    birnn = ab.BiRNNBuilder(1, 3, 4, model, ab.LSTMBuilder)
    with pytest.raises(TypeError, match="a list of expressions"):
        birnn.transduce(ab.inputVector([1.0, 2.0, 3.0]))
    assert birnn.transduce([]) == []


# Dropout, noise, sparsity ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "GRU"])
def test_masks_are_the_same_at_all_steps_of_a_graph(kind):
    model = ab.ParameterCollection()
    rnn = builder(ab, kind, 1, 3, 4, model)
    x, zero = np.ones(3), np.zeros(4)
    rnn.set_dropouts(0.5, 0.5)

    def outputs(steps=6):
        ab.renew_cg()
        start = [ab.inputVector(zero)] * (2 if kind in CELLS else 1)
        return [rnn.initial_state(start).add_input(ab.inputVector(x)).output().npvalue() for _ in range(steps)]

    several = [outputs() for _ in range(8)]
    for same in several:
        np.testing.assert_array_equal(same, [same[0]] * len(same))
    assert len({tuple(s[0]) for s in several}) > 1
    rnn.disable_dropout()
    plain = outputs(1)[0]
    rnn.set_dropout(1.0)
    ab.renew_cg()
    np.testing.assert_array_equal(outputs(1)[0], reference_of_nothing(rnn, kind))
    rnn.set_dropout(0.0)
    np.testing.assert_array_equal(outputs(1)[0], plain)


def reference_of_nothing(rnn, kind):
    """The output where all inputs are dropped."""
    ab.renew_cg()
    rates, rnn._rates = rnn._rates, (0.0,) * len(rnn._rates)
    start = [ab.inputVector(np.zeros(4))] * (2 if kind in CELLS else 1)
    output = rnn.initial_state(start).add_input(ab.inputVector(np.zeros(3))).output().npvalue()
    rnn._rates = rates
    return output


def test_dropout_of_a_gru_is_drawn_at_each_step():
    model = ab.ParameterCollection()
    gru = ab.GRUBuilder(1, 3, 50, model)
    gru.set_dropout(0.5)
    x = ab.inputVector(np.ones(3))
    state = gru.initial_state()
    first, second = state.add_input(x), state.add_input(x)
    dropped = first.output().npvalue()
    assert 5 < (dropped == 0).sum() < 45 and (first.h()[0].npvalue() != 0).all()
    assert not np.array_equal(dropped, second.output().npvalue())


def test_weight_noise():
    model = ab.ParameterCollection(dtype="float64")
    lstm = ab.CompactVanillaLSTMBuilder(1, 3, 4, model)
    x = np.ones(3)

    def output():
        ab.renew_cg()
        return lstm.initial_state().add_input(ab.inputVector(x)).output().npvalue()

    ab.configure(dtype="float64")
    plain = output()
    lstm.set_weightnoise(0.01)
    noisy = np.stack([output() for _ in range(200)])
    assert (noisy.std(axis=0) > 0).all() and np.abs(noisy.mean(axis=0) - plain).max() < 4 * noisy.std(axis=0).max() / 14
    lstm.set_weightnoise(0)
    np.testing.assert_array_equal(output(), plain)
    with pytest.raises(ab.ArgumentError, match="a standard deviation"):
        lstm.set_weightnoise(-1)


def test_sparsity():
    model = ab.ParameterCollection()
    lstm = ab.SparseLSTMBuilder(2, 3, 4, model)
    lstm.set_sparsity(0.75)
    weights = np.concatenate([np.abs(layer[k].as_array()).ravel("F") for layer in lstm.get_parameters() for k in range(2)])
    masks = np.concatenate([layer[3 + k].as_array().ravel("F") for layer in lstm.get_parameters() for k in range(2)])
    assert masks.sum() == 0.25 * masks.size and weights[masks == 1].min() > weights[masks == 0].max()
    before = [[p.as_array() for p in layer] for layer in lstm.get_parameters()]
    trainer = ab.AdamTrainer(model, 0.1)
    for _ in range(2):
        ab.renew_cg()
        ab.squared_norm(lstm.initial_state().transduce([ab.inputVector([1.0, -1.0, 2.0])] * 3)[-1]).backward()
        trainer.update()
    for layer, old in zip(lstm.get_parameters(), before, strict=True):
        for k in range(2):
            mask = old[3 + k]
            np.testing.assert_array_equal(layer[3 + k].as_array(), mask)
            np.testing.assert_array_equal(layer[k].as_array()[mask == 0], old[k][mask == 0])
            assert (layer[k].as_array()[mask == 1] != old[k][mask == 1]).any()


# Trees ----------------------------------------------------------------------------------------------------------------


def test_nary_tree_lstm_against_numpy():
    rng = np.random.default_rng(7)
    model = ab.ParameterCollection(dtype="float64")
    N, H = 2, 4
    tree = ab.NaryTreeLSTMBuilder(N, 1, 3, H, model)
    randomise(model, rng)
    (w,) = tree._layers
    w = {k: [p.as_array() for p in v] if isinstance(v, list) else v.as_array() for k, v in w.items()}

    def node(x, children):
        def gate(name, k=None):
            a = w["b" + name] + w["W" + name] @ x
            for j, (h, c) in enumerate(children):
                at = min(j, N - 1) if k is None else min(j, N - 1) * N + min(k, N - 1)
                a = a + w["H" + name][at] @ h + (w["C" + name][at] @ c if w["C" + name] else 0)
            return a

        c = logistic(gate("i")) * np.tanh(gate("u"))
        c = c + sum(logistic(gate("f", k) + 1) * children[k][1] for k in range(len(children)))
        return logistic(gate("o")) * np.tanh(c), c

    shape = [[], [], [0, 1], [], [2, 3, 0]]
    xs = rng.normal(size=(len(shape), 3))
    expected = []
    for x, children in zip(xs, shape, strict=True):
        expected.append(node(x, [expected[k] for k in children]))
    with ab.Graph(dtype="float64"):
        t = tree.initial_state()
        for k, (x, children) in enumerate(zip(xs, shape, strict=True)):
            h = t.add_input(k, children, ab.inputVector(x))
            np.testing.assert_allclose(h.npvalue(), expected[k][0], rtol=1e-12)
            np.testing.assert_allclose(t.c(k).npvalue(), expected[k][1], rtol=1e-12)
        tree.start_new_sequence()
        np.testing.assert_array_equal(tree.add_input(0, [], ab.inputVector(xs[0])).npvalue(), t.h(0).npvalue())


@pytest.mark.parametrize("both", [False, True])
def test_tree_lstms_over_sequences_of_children(both):
    model = ab.ParameterCollection()
    kind = ab.BidirectionalTreeLSTMBuilder if both else ab.UnidirectionalTreeLSTMBuilder
    tree = kind(1, 4, 4, model)
    lstms = tree._lstms if both else [tree._lstm]
    xs = [ab.inputVector(np.arange(4.0) - k) for k in range(3)]
    t = tree.initial_state()
    a, b = t.add_input(0, [], xs[0]), t.add_input(1, [], xs[1])
    c = t.add_input(2, [0, 1], xs[2])
    orders = [[xs[2], a, b], [xs[2], b, a]]
    expected = [lstm.initial_state().transduce(o)[-1].npvalue() for lstm, o in zip(lstms, orders, strict=False)]
    np.testing.assert_allclose(c.npvalue(), np.concatenate(expected), rtol=1e-6)
    with pytest.raises(ab.ArgumentError, match="nodes are numbered in their order"):
        t.add_input(5, [], xs[0])
    with pytest.raises(IndexError, match="node 3 has a child 3"):
        t.add_input(3, [3], xs[0])
    with pytest.raises(TypeError, match="a list of numbers"):
        t.add_input(3, 1, xs[0])
    again = type(tree).from_spec(tree.spec, ab.ParameterCollection())
    assert again.spec == tree.spec and again.param_collection().parameter_count() == model.parameter_count()
    ab.renew_cg()
    with pytest.raises(ab.StaleExpressionError):
        t.add_input(3, [], ab.inputVector([0.0] * 4))

"""Steps recorded in bulk are the steps recorded one by one: same values, same gradients, same errors."""

import gc
import weakref

import numpy as np
import pytest

import autobatch as ab

BUILDERS = {
    "simple": lambda m: ab.SimpleRNNBuilder(2, 3, 4, m),
    "gru": lambda m: ab.GRUBuilder(2, 3, 4, m),
    "lstm": lambda m: ab.VanillaLSTMBuilder(1, 3, 4, m),
    "lstm of two layers": lambda m: ab.VanillaLSTMBuilder(2, 3, 4, m),
    "lstm, inputs as large as h": lambda m: ab.VanillaLSTMBuilder(1, 3, 3, m),
    "lstm with layer norm": lambda m: ab.VanillaLSTMBuilder(1, 3, 4, m, True),
    "compact": lambda m: ab.CompactVanillaLSTMBuilder(1, 3, 4, m),
    "coupled": lambda m: ab.CoupledLSTMBuilder(2, 3, 4, m),
    "fast": lambda m: ab.FastLSTMBuilder(1, 3, 4, m),
    "sparse": lambda m: ab.SparseLSTMBuilder(1, 3, 4, m),
}


def run(name, one_by_one, lengths=(5, 1, 7, 4, 6), change=lambda b: None, start=None, policy=None, build=None):
    """Losses of each output and the gradients of all parameters."""
    ab.reset_random_seed(3)
    ab.configure(dtype="float64")
    try:
        model = ab.ParameterCollection()
        builder = (build or BUILDERS[name])(model)
        table = model.add_lookup_parameters((9, 3))
        change(builder)
        numbers = np.random.default_rng(1)
        ab.renew_cg()
        if policy is not None:
            ab.current_graph().policy = policy
        losses = []
        for length in lengths:
            xs = [table[int(i)] if i % 4 else ab.tanh(table[int(i)]) for i in numbers.integers(0, 9, length)]
            state = builder.initial_state() if start is None else builder.initial_state(start())
            if one_by_one:
                outputs = []
                for x in xs:
                    state = state.add_input(x)
                    outputs.append(state.output())
            else:
                outputs = state.transduce(xs)
            assert len(outputs) == length
            losses += [ab.squared_norm(o) * float(k + 1) for k, o in enumerate(outputs)]
        ab.esum(losses).backward()
        return [loss.value() for loss in losses], [p.grad_as_array().copy() for p in model.parameters_list()]
    finally:
        ab.configure(dtype="float32")


def agree(*args, **named):
    """Both ways give the same bits, or all but."""
    one, bulk = run(*args, one_by_one=True, **named), run(*args, one_by_one=False, **named)
    np.testing.assert_allclose(bulk[0], one[0], rtol=1e-13)
    for a, b in zip(bulk[1], one[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", BUILDERS)
def test_bulk_is_one_by_one(name):
    agree(name)


@pytest.mark.parametrize("policy", ["none", "depth", "agenda"])
def test_under_every_policy(policy):
    agree("lstm of two layers", policy=policy)


@pytest.mark.parametrize("name", ["simple", "gru", "lstm of two layers", "coupled"])
def test_dropout(name):
    agree(name, change=lambda b: b.set_dropout(0.4))


@pytest.mark.parametrize("name", ["simple", "lstm", "gru"])
def test_from_a_given_state(name):
    layers = 1 if name == "lstm" else 2
    agree(name, start=lambda: [ab.inputVector([0.1, 0.2, 0.3, 0.4])] * layers)


def test_noise_is_drawn_for_each_step():
    agree("compact", change=lambda b: b.set_weightnoise(0.1))


@pytest.mark.parametrize("name", BUILDERS)
def test_most_steps_are_pieces(name):
    """They are recorded in bulk at all."""
    model = ab.ParameterCollection()
    builder = BUILDERS[name](model)
    ab.renew_cg()
    for _ in range(3):
        builder.initial_state().transduce([ab.inputVector([1.0, 2.0, 3.0]) for _ in range(6)])
    graph = ab.current_graph()
    assert len(graph.pieces) == 3
    in_bulk = sum(nodes for _, _, _, nodes, _ in graph.pieces)
    assert in_bulk >= 3 * (len(graph) - 18 - in_bulk)  # 15 of 18 steps; the rest are three steps, and what all share


def test_bidirectional_is_both_directions():
    model = ab.ParameterCollection()
    builder = ab.BiRNNBuilder(2, 3, 4, model, ab.VanillaLSTMBuilder)
    ab.renew_cg()
    xs = [ab.inputVector(v) for v in np.random.default_rng(0).normal(size=(6, 3))]
    found = [o.npvalue() for o in builder.transduce(xs)]
    for forwards, backwards in builder.builder_layers:
        fs = [s.output() for s in forwards.initial_state().add_inputs(xs)]
        bs = [s.output() for s in backwards.initial_state().add_inputs(xs[::-1])]
        xs = [ab.concatenate([f, b]) for f, b in zip(fs, bs[::-1], strict=True)]
    np.testing.assert_allclose(found, [x.npvalue() for x in xs], rtol=1e-6)


def test_any_iterable():
    model = ab.ParameterCollection()
    builder = BUILDERS["lstm"](model)
    ab.renew_cg()
    xs = [ab.inputVector([float(k), 1.0, 2.0]) for k in range(6)]
    backwards = builder.initial_state().transduce(reversed(xs))
    same = builder.initial_state().transduce(xs[::-1])
    np.testing.assert_array_equal([x.npvalue() for x in backwards], [x.npvalue() for x in same])


def test_the_same_input_at_every_step():
    """Equal inputs, an input that is the zero state, an output that is fed again: nothing is taken for something else."""
    model = ab.ParameterCollection()
    builder = BUILDERS["lstm, inputs as large as h"](model)
    ab.renew_cg()
    zero, x = ab.zeros((3,)), ab.inputVector([1.0, -1.0, 0.5])
    outputs = []
    for xs in ([zero] * 5, [x] * 5, [x, zero, x, zero, x], [zero, x, zero, x, x]):
        outputs.append((builder.initial_state().transduce(xs), [s.output() for s in builder.initial_state().add_inputs(xs)]))
    fed = outputs[1][0]
    outputs.append((builder.initial_state().transduce(fed), [s.output() for s in builder.initial_state().add_inputs(fed)]))
    for bulk, one in outputs:
        np.testing.assert_array_equal([e.npvalue() for e in bulk], [e.npvalue() for e in one])


def test_checkpoint_and_revert():
    model = ab.ParameterCollection()
    builder = BUILDERS["lstm"](model)
    ab.renew_cg()
    xs = [ab.inputVector([float(k), 1.0, 2.0]) for k in range(6)]
    before = [e.npvalue() for e in builder.initial_state().transduce(xs)]
    ab.cg_checkpoint()
    builder.initial_state().transduce(xs)[-1].npvalue()
    ab.cg_revert()
    after = builder.initial_state().transduce(xs[::-1])
    again = [s.output() for s in builder.initial_state().add_inputs(xs[::-1])]
    np.testing.assert_array_equal([e.npvalue() for e in after], [e.npvalue() for e in again])
    np.testing.assert_array_equal(before, [e.npvalue() for e in builder.initial_state().transduce(xs)])


def test_nodes_after_a_piece_can_be_undone():
    """What a call that fails has recorded goes, the piece before it stays."""
    model = ab.ParameterCollection()
    builder = BUILDERS["lstm"](model)
    ab.renew_cg()
    xs = [ab.inputVector([float(k), 1.0, 2.0]) for k in range(6)]
    outputs = builder.initial_state().transduce(xs)
    size = len(ab.current_graph())
    with pytest.raises(ab.ShapeError):
        builder.initial_state().add_input(ab.inputVector([1.0, 2.0]))
    graph = ab.current_graph()
    assert graph.count_args() == len(graph.all_args())
    graph.undo(size - 7)  # into the piece
    assert graph.count_args() == len(graph.all_args())
    assert outputs[0].npvalue().shape == (4,)


@pytest.mark.parametrize("bad", [None, 3.0, "x"])
def test_errors_are_those_of_add_input(bad):
    model = ab.ParameterCollection()
    builder = BUILDERS["lstm"](model)
    ab.renew_cg()
    xs = [ab.inputVector([1.0, 2.0, 3.0]) for _ in range(6)]
    with pytest.raises(TypeError, match="add_input"):
        builder.initial_state().transduce([*xs, bad])
    with pytest.raises(ab.ShapeError, match="add_input"):
        builder.initial_state().transduce([*xs, ab.inputVector([1.0])])


def test_drawing_knows_the_nodes(capfd):
    model = ab.ParameterCollection()
    builder = BUILDERS["lstm"](model)
    ab.renew_cg()
    builder.initial_state().transduce([ab.inputVector([1.0, 2.0, 3.0]) for _ in range(6)])
    ab.print_text_graphviz()
    assert capfd.readouterr().err.count('label="lstm_step') == 6


# Steps that are one node ----------------------------------------------------------------------------------------------

FUSED = {
    **{name: BUILDERS[name] for name in ("gru", "coupled", "fast", "lstm with layer norm")},
    "layer norm of two layers": lambda m: ab.VanillaLSTMBuilder(2, 3, 4, m, True),
}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("name", FUSED)
def test_a_step_in_one_node_is_the_step_operation_by_operation(name, one_by_one, dropout):
    def change(builder, fused=True):
        assert builder.fused
        builder.fused = fused
        builder.set_dropout(dropout)

    one = run(name, one_by_one, change=change, build=FUSED[name])
    parts = run(name, one_by_one, change=lambda b: change(b, fused=False), build=FUSED[name])
    np.testing.assert_allclose(one[0], parts[0], rtol=1e-13)
    for a, b in zip(one[1], parts[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", FUSED)
def test_one_node_a_step_and_layer(name):
    model = ab.ParameterCollection()
    builder = FUSED[name](model)
    graph = ab.renew_cg()
    state = builder.initial_state()
    for x in [ab.inputVector([1.0, 2.0, 3.0]) for _ in range(3)]:
        before = len(graph)
        state = state.add_input(x)
    assert len(graph) - before == builder.layers * (2 + builder.cells)  # the node, and views of its outputs


@pytest.mark.parametrize("name", FUSED)
def test_constant_parameters_of_a_step_in_one_node_get_no_gradient(name):
    def gradients(update):
        ab.reset_random_seed(3)
        model = ab.ParameterCollection()
        builder, table = FUSED[name](model), model.add_lookup_parameters((5, 3))
        for _ in range(2):  # the second graph finds the cells of the first
            ab.renew_cg()
            state = builder.initial_state(update=update)
            ab.squared_norm(state.transduce([table[k] for k in (1, 2, 3, 0)])[-1]).backward()
        assert np.abs(table.grad_as_array()).sum() > 0
        return [np.abs(p.grad_as_array()).sum() for layer in builder.get_parameters() for p in layer], table.grad_as_array()

    (constant, rows), (trained, same_rows) = gradients(False), gradients(True)
    assert not any(constant) and any(trained)
    np.testing.assert_allclose(rows, same_rows, rtol=1e-5)


def test_a_builder_that_is_gone_frees_its_parameters():
    model = ab.ParameterCollection()
    builder = FUSED["gru"](model)
    ab.renew_cg()
    builder.initial_state().transduce([ab.inputVector([1.0, 2.0, 3.0]) for _ in range(5)])[-1].value()
    gone = weakref.ref(builder.get_parameters()[0][0])
    ab.renew_cg()
    del model, builder
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("update", [True, False])
@pytest.mark.parametrize("N, layers", [(2, 1), (3, 2), (1, 1)])
def test_a_node_of_a_tree_in_one_node_is_the_node_operation_by_operation(monkeypatch, N, layers, update):
    def outcome():
        ab.reset_random_seed(3)
        model = ab.ParameterCollection(dtype="float64")
        builder, table = ab.NaryTreeLSTMBuilder(N, layers, 3, 4, model), model.add_lookup_parameters((9, 3))
        for _ in range(2):  # the second graph finds the cells of the first
            with ab.Graph(dtype="float64") as graph:
                losses = []
                for length in (1, 3, 9):
                    tree = builder.initial_state(update=update)
                    children = [], [], [0, 1], [2], [], [3, 4], [], [0, 5, 6], [7, 2]
                    losses += [ab.squared_norm(tree.add_input(k, children[k], table[k])) * (k + 1.0) for k in range(length)]
                ab.esum(losses).backward()
        gradients = [p.grad_as_array().copy() for p in [*model.parameters_list(), table]]
        return len(graph), [loss.value() for loss in losses], gradients

    nodes, values, gradients = outcome()
    monkeypatch.setattr("autobatch.rnn.tree.MOST_FUSED", -1)
    more_nodes, expected, expected_gradients = outcome()
    assert nodes < more_nodes / 2
    np.testing.assert_allclose(values, expected, rtol=1e-13)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)

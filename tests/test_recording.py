"""The short ways to record: the same nodes as the long way, its errors, and a collector that waits meanwhile."""

import gc
import threading

import numpy as np
import pytest

import autobatch as ab
from autobatch import graph as graphs
from autobatch.graph import current_graph


def made(record):
    """Types, arguments and value of what a call records, and the class of its error, if it raises one."""
    graph = current_graph()
    nodes, args = len(graph.recorded_types), len(graph.recorded_args)
    try:
        value = record()
    except Exception as error:
        assert len(graph.recorded_types) == nodes
        return type(error), str(error)
    new = graph.recorded_types[nodes:], graph.recorded_args[args:]
    return *new, value.npvalue().tobytes(), value.dim()


@pytest.fixture
def model():
    ab.reset_random_seed(3)
    return ab.ParameterCollection()


class Noted(dict):
    """Operands by name, and the names of those that were used."""

    def __init__(self, **operands):
        super().__init__(operands)
        self.used = set()

    def __getitem__(self, name):
        self.used.add(name)
        return super().__getitem__(name)


@pytest.fixture
def at_hand(model):
    """Operands of all kinds; equal vectors differ in kind, not in shape."""
    E, W, U, b = (model.add_parameters(s) for s in ((8, 6), (4, 4), (4, 4), (4,)))
    table = model.add_lookup_parameters((5, 4))

    def operands():
        x, y = ab.inputVector([1.0, 2.0, 3.0, 4.0]), ab.tanh(table[2])
        z = ab.inputTensor(np.arange(12.0).reshape(4, 3) / 9, batched=True)
        return Noted(x=x, y=y, z=z, b=b, W=W, U=U, E=E, row=table[1], table=table, constant=b.expr(update=False))

    return operands


LISTS = [*"xy xx yx xyx xyxy xyxyx xxxxxx y xz zx bx xb bb xbx byb xxxb bxyb bbb zzz ybybyb".split(), "x" * 17, "xy" * 9]
AFFINE = "bWx bWxUy bWxUb xWy bWz bWxUz bWb bWxWxWx".split()
CALLS = {
    **{f"{name}({list(k)})": (name, list(k)) for name in ("esum", "average", "emax", "logsumexp") for k in LISTS},
    **{f"{name}({list(k)})": (name, list(k)) for name in ("concatenate", "concatenate_cols") for k in LISTS if "z" not in k},
    **{f"concatenate_to_batch({list(k)})": ("concatenate_to_batch", list(k)) for k in LISTS},
    **{f"affine({k})": ("affine_transform", list(k)) for k in AFFINE},
}
MORE = {
    "W * x": lambda o: o["W"] * o["x"],
    "W * b": lambda o: o["W"] * o["b"],
    "x * 2": lambda o: o["x"] * 2,
    "x + b": lambda o: o["x"] + o["b"],
    "b + x": lambda o: o["b"] + o["x"],
    "row + y": lambda o: o["row"] + o["y"],
    "y + row": lambda o: o["y"] + o["row"],
    "b + constant": lambda o: o["b"] + o["constant"],
    "x + constant": lambda o: o["x"] + o["constant"],
    "-x": lambda o: -o["x"],
    "x[3]": lambda o: o["x"][3],
    "x[-1]": lambda o: o["x"][-1],
    "x[-4]": lambda o: o["x"][-4],
    "x[4]": lambda o: o["x"][4],
    "x[-5]": lambda o: o["x"][-5],
    "x[True]": lambda o: o["x"][True],
    "W[1]": lambda o: o["W"][1],
    "x[1:3]": lambda o: o["x"][1:3],
    "x[:3]": lambda o: o["x"][:3],
    "x[-2:]": lambda o: o["x"][-2:],
    "x[:]": lambda o: o["x"][:],
    "x[::2]": lambda o: o["x"][::2],
    "x[2:1]": lambda o: o["x"][2:1],
    "x[1.0:]": lambda o: o["x"][1.0:],
    "W[1.0:, :2]": lambda o: o["W"][1.0:, :2],
    "x[np.int64:]": lambda o: o["x"][np.int64(1) :],
    "W[1:3]": lambda o: o["W"][1:3],
    "pick(x, 2)": lambda o: ab.pick(o["x"], 2),
    "pick(x, 4)": lambda o: ab.pick(o["x"], 4),
    "pick(x, -1)": lambda o: ab.pick(o["x"], -1),
    "pick(W, 1, 1)": lambda o: ab.pick(o["W"], 1, 1),
    "pick(x, 0, 1)": lambda o: ab.pick(o["x"], 0, 1),
    "table[0]": lambda o: o["table"][0],
    "table[5]": lambda o: o["table"][5],
    "table[-1]": lambda o: o["table"][-1],
    "table[1.0]": lambda o: o["table"][1.0],
    "lookup": lambda o: ab.lookup(o["table"], 3),
    "lookup, constant": lambda o: ab.lookup(o["table"], 3, False),
    "lookup in a matrix": lambda o: ab.lookup(o["W"], 3),
    "softmax": lambda o: ab.softmax(o["x"]),
    "softmax, 1": lambda o: ab.softmax(o["W"], 1),
    "softmax, 1.0": lambda o: ab.softmax(o["W"], 1.0),
    "max_dim": lambda o: ab.max_dim(o["x"]),
    "max_dim, no such dim": lambda o: ab.max_dim(o["x"], 1),
    "moment_elems": lambda o: ab.moment_elems(o["x"], 2),
    "sum_dim": lambda o: ab.sum_dim(o["z"], [0]),
    "sum_dim, 1.0": lambda o: ab.sum_dim(o["z"], [0.0]),
    "sum_dim, no such dim": lambda o: ab.sum_dim(o["z"], [3]),
    "sum_dim, n": lambda o: ab.sum_dim(o["z"], [0], False, 2),
    "sum_dim, batch, 1": lambda o: ab.sum_dim(o["z"], [0], 1),
    "hinge": lambda o: ab.hinge(o["x"], 2),
    "hinge, margin": lambda o: ab.hinge(o["x"], 2, 2.5),
    "hinge, margin 3": lambda o: ab.hinge(o["x"], 2, 3),
    "hinge, 4": lambda o: ab.hinge(o["x"], 4),
    "hinge, -1": lambda o: ab.hinge(o["x"], -1),
    "hinge, parameter": lambda o: ab.hinge(o["b"], 1),
    "dropout, 2": lambda o: ab.dropout(o["x"], 2.0),
    "dropout, NaN": lambda o: ab.dropout(o["x"], float("nan")),
    "dropout, none": lambda o: ab.dropout(o["x"], None),
    "sum_dim, batch": lambda o: ab.sum_dim(o["z"], [0], True),
    "mean_dim, n": lambda o: ab.mean_dim(o["z"], [0], False, 3),
    "reshape": lambda o: ab.reshape(o["x"], (2, 2)),
    "reshape, none": lambda o: ab.reshape(o["x"], (3, 2)),
    "transpose": lambda o: ab.transpose(o["y"]),
    "transpose, parameter": lambda o: ab.transpose(o["E"]),
    "transpose, list": lambda o: ab.transpose(o["E"], [1, 0]),
    "a tuple": lambda o: ab.esum((o["x"], o["y"])),
    "an expression": lambda o: ab.esum(o["x"]),
    "an empty list": lambda o: ab.concatenate([]),
    "None in a list": lambda o: ab.concatenate([o["x"], None]),
    "a number in a list": lambda o: ab.average([1.0, o["x"]]),
    "affine of two": lambda o: ab.affine_transform([o["b"], o["W"]]),
    "concatenate, d=True": lambda o: ab.concatenate([o["x"], o["y"]], True),
    "concatenate, d=0.0": lambda o: ab.concatenate([o["x"], o["y"]], 0.0),
    **{name: lambda o, c=c: getattr(ab, c[0])([o[k] for k in c[1]]) for name, c in CALLS.items()},
}


@pytest.mark.parametrize("name", MORE)
def test_a_call_records_the_same_however_often_it_is_made(name, at_hand):
    seen = []
    for _ in range(3):
        ab.renew_cg()
        operands = at_hand()
        seen.append(made(lambda o=operands: MORE[name](o)))
    assert seen[1] == seen[2] and seen[0][-2:] == seen[1][-2:]
    # A graph that records through `record` alone gets the same nodes.
    graph = ab.renew_cg()
    operands = at_hand()
    graph.seal()
    assert made(lambda: MORE[name](operands)) == seen[2]


@pytest.mark.parametrize("name", MORE)
def test_stale_operands_are_noticed_after_the_call_was_seen(name, at_hand):
    ab.renew_cg()
    old = at_hand()
    known = made(lambda: MORE[name](old))
    ab.renew_cg()
    if not isinstance(known[0], type) and old.used & {"x", "y", "z", "row"}:
        assert made(lambda: MORE[name](old))[0] is ab.StaleExpressionError


def test_what_equals_an_integer_is_no_index(at_hand):
    ab.renew_cg()
    o = at_hand()
    for _ in range(2):
        assert o["x"][1:].dim() == ((3,), 1) and o["W"][1:, :2].dim() == ((3, 2), 1)
        for wrong in (lambda: o["x"][1.0:], lambda: o["x"][:4.0], lambda: o["W"][1.0:, :2], lambda: o["x"][1.0]):
            with pytest.raises(ab.OperandError, match=r"expected  (integers|an integer)"):
                wrong()


def test_a_row_can_be_exchanged(model):
    table = model.add_lookup_parameters((5, 3))
    other = model.add_lookup_parameters((5, 3))
    ab.renew_cg()
    a, b, c = table[1], other[2], ab.lookup(table, 3, update=False)
    total = a + b + c
    before = total.npvalue()
    for row, e, t in ((4, a, table), (0, b, other), (2, c, table)):
        e.set(row)
        np.testing.assert_array_equal(e.npvalue(), t.row_as_array(row))
    assert (total.npvalue() != before).any()
    with pytest.raises(ab.IndexRangeError):
        a.set(5)
    with pytest.raises(ab.NegativeIndexError):
        a.set(-1)
    ab.renew_cg()
    with pytest.raises(ab.StaleExpressionError):
        a.set(1)


# The collector --------------------------------------------------------------------------------------------------------


@pytest.fixture
def thresholds(monkeypatch):
    """The collector as Python begins with it, and no graph; graphs that other tests keep do not count."""
    before = gc.get_threshold()
    graphs._THREAD.graph = None
    gc.collect()
    monkeypatch.setattr(graphs, "_patience", lambda: None)
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)
    graphs._THREAD.graph = None


def test_the_collector_waits_as_long_as_there_is_a_graph(thresholds):
    ab.renew_cg()
    assert gc.get_threshold() == (graphs.YOUNG, 10, 10)
    ab.renew_cg()
    with ab.Graph():
        assert gc.get_threshold() == (graphs.YOUNG, 10, 10)
    assert gc.get_threshold() == (graphs.YOUNG, 10, 10)
    graphs._THREAD.graph = None
    assert gc.get_threshold() == (700, 10, 10)


def test_the_thread_that_ends_leaves_the_collector_as_it_was(thresholds):
    thread = threading.Thread(target=ab.renew_cg)
    thread.start()
    thread.join()
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("own", [(701, 10, 10), (0, 10, 10), (100_000, 5, 5)])
def test_a_threshold_of_the_program_is_left_alone(thresholds, own):
    gc.set_threshold(*own)
    ab.renew_cg()
    assert gc.get_threshold() == own
    graphs._THREAD.graph = None
    assert gc.get_threshold() == own


def test_a_threshold_set_meanwhile_stays(thresholds):
    ab.renew_cg()
    gc.set_threshold(5000, 10, 10)
    ab.renew_cg()
    graphs._THREAD.graph = None
    assert gc.get_threshold() == (5000, 10, 10)


def test_a_collector_that_is_off_stays_as_it_is(thresholds):
    gc.disable()
    try:
        ab.renew_cg()
        assert not gc.isenabled() and gc.get_threshold() == (700, 10, 10)
    finally:
        gc.enable()


def test_what_is_recorded_has_no_cycles(model, at_hand):
    lstm = ab.VanillaLSTMBuilder(1, 4, 3, model)
    ab.renew_cg()
    gc.collect()
    before = sum(type(x) is ab.Graph for x in gc.get_objects())  # that of this thread, and what other tests keep
    gc.disable()
    try:
        for _ in range(3):
            ab.renew_cg()
            o = at_hand()
            for name, record in MORE.items():
                if "error" not in name:
                    try:
                        record(o)
                    except Exception:
                        continue
            state = lstm.initial_state()
            for _ in range(3):
                state = state.add_input(o["x"])
            del o, state
        ab.renew_cg()
        kinds = [type(x) for x in gc.get_objects()]
        assert any(issubclass(kind, (ab.Expression, ab.RNNState)) for kind in kinds) and kinds.count(ab.Graph) == before
    finally:
        gc.enable()


# Steps of an LSTM -----------------------------------------------------------------------------------------------------


def walk(builder, inputs, *, short):
    """Outputs, c, and what was recorded, of a walk over some inputs."""
    graph = current_graph()
    nodes, args = len(graph.recorded_types), len(graph.recorded_args)
    state, seen = builder.initial_state(), []
    for x in inputs:
        if not short:
            graph.steps.clear()
            state = state if state.prev() is None else builder.initial_state().set_s(state.s())
        state = state.add_input(x)
        seen.append(state)
    return seen, graph.recorded_types[nodes:], graph.recorded_args[args:]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_known_step_records_what_an_unknown_one_does(model, layers):
    lstm = ab.VanillaLSTMBuilder(layers, 4, 3, model)
    table = model.add_lookup_parameters((9, 4))
    results = []
    for short in (True, False):
        ab.renew_cg()
        for _ in range(2):
            x = ab.inputVector([1.0, 2.0, 3.0, 4.0])
            inputs = [table[1], x, table[2], table[3], ab.tanh(x), table[4]]
            results.append(walk(lstm, inputs, short=short)[1:])
    assert results[:2] == results[2:]


def test_states_after_a_known_step(model):
    lstm = ab.VanillaLSTMBuilder(1, 2, 3, model)
    ab.renew_cg()
    x = ab.inputVector([1.0, 2.0])
    one = lstm.initial_state().add_input(x)
    two = one.add_input(x)
    three = two.add_input(x)
    again = two.add_input(x)  # states are persistent
    assert three.prev() is two and two.prev() is one and three.b() is lstm
    assert three.output() is three.h()[0] and three.s() == (*three._c, *three.h()) and len(three.s()) == 2
    np.testing.assert_array_equal(three.output().npvalue(), again.output().npvalue())
    alone = lstm.initial_state().transduce([x, x, x])[-1]
    np.testing.assert_array_equal(three.output().npvalue(), alone.npvalue())


@pytest.mark.parametrize("layers", [1, 2])
def test_a_known_step_checks_what_any_step_checks(model, layers):
    lstm = ab.VanillaLSTMBuilder(layers, 2, 3, model)
    g = ab.renew_cg()
    x, wrong = ab.inputVector([1.0, 2.0]), ab.inputVector([1.0])
    state = lstm.initial_state().add_input(x).add_input(x).add_input(x)
    nodes = len(g)
    for bad, error in ((wrong, ab.ShapeError), (1.0, ab.OperandError), ([x], ab.OperandError), (None, ab.OperandError)):
        with pytest.raises(error):
            state.add_input(bad)
    with ab.Graph():
        with pytest.raises(ab.StaleExpressionError):
            state.add_input(x)
        foreign = ab.inputVector([1.0, 2.0])
    with pytest.raises(ab.ArgumentError, match="another graph"):
        state.add_input(foreign)
    assert len(g) == nodes
    ab.renew_cg()
    with pytest.raises(ab.StaleExpressionError):
        state.add_input(ab.inputVector([1.0, 2.0]))


@pytest.mark.parametrize("layers", [1, 2])
def test_a_state_of_another_graph_with_vectors_of_this_one_is_noticed(model, layers):
    lstm = ab.VanillaLSTMBuilder(layers, 2, 3, model)
    a, b = ab.Graph(), ab.Graph()
    with b:
        x = ab.inputVector([1.0, 2.0])
        here = lstm.initial_state().add_input(x).add_input(x).add_input(x)
    with a:
        y = ab.inputVector([1.0, 2.0])
        there = lstm.initial_state().add_input(y).add_input(y)
        mixed = there.set_s(here.s())
    with b, pytest.raises(ab.StaleExpressionError):
        mixed.add_input(x)


@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_switched_on_between_two_steps(model, layers):
    lstm = ab.VanillaLSTMBuilder(layers, 2, 3, model)
    g = ab.renew_cg()
    x = ab.inputVector([1.0, 2.0])
    state = lstm.initial_state().add_input(x).add_input(x).add_input(x)
    nodes = len(g)
    plain = state.add_input(x)
    assert len(g) == nodes + 3 * layers
    lstm.set_dropout(0.5)
    nodes = len(g)
    state.add_input(x)
    assert len(g) > nodes + 3 * layers
    lstm.disable_dropout()
    for _ in range(2):
        nodes = len(g)
        after = state.add_input(x)
        assert len(g) == nodes + 3 * layers
    np.testing.assert_array_equal(after.output().npvalue(), plain.output().npvalue())


@pytest.mark.parametrize("layers", [1, 2])
def test_known_steps_across_checkpoints_and_failed_calls(model, layers):
    lstm = ab.VanillaLSTMBuilder(layers, 2, 3, model, forget_bias=0.25)
    ab.renew_cg()
    x = ab.inputVector([1.0, 2.0])
    state = lstm.initial_state().add_input(x).add_input(x).add_input(x)
    expected = state.add_input(x).output().npvalue()
    ab.cg_checkpoint()
    above = state.add_input(x)
    above = above.add_input(x).add_input(x)
    ab.cg_revert()
    np.testing.assert_array_equal(state.add_input(x).output().npvalue(), expected)
    with pytest.raises(ab.StaleExpressionError):
        above.add_input(x)
    stacked = ab.StackedRNNState([state, ab.SimpleRNNBuilder(1, 7, 3, model).initial_state()])
    with pytest.raises(ab.ShapeError):
        stacked.add_input(x)
    np.testing.assert_array_equal(state.add_input(x).output().npvalue(), expected)


def test_minibatches_of_several_sizes_in_one_graph(model):
    lstm = ab.VanillaLSTMBuilder(1, 2, 3, model)
    ab.renew_cg()
    x = ab.inputVector([1.0, 2.0])
    many = ab.inputTensor(np.array([[1.0, 3.0], [2.0, 4.0]]), batched=True)
    ends = []
    for e in (x, many, x, many):
        state = lstm.initial_state()
        for _ in range(4):
            state = state.add_input(e)
        ends.append(state)
        with pytest.raises(ab.ShapeError):
            state.add_input(many if e is x else x)
    one, two, again, last = (state.output().npvalue() for state in ends)
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(two, last)
    np.testing.assert_allclose(two[:, 0], one, rtol=1e-5)


DRAWN = {
    **{name: lambda x, p, name=name: getattr(ab, name)(x, p) for name in ("dropout", "dropout_batch", "block_dropout")},
    "dropout_dim": lambda x, p: ab.dropout_dim(x, 0, p),
    "noise": lambda x, p: ab.noise(x, p),
    "random_normal": lambda x, p: x + ab.random_normal(4, p, 1.0),
    "random_uniform": lambda x, p: x + ab.random_uniform(4, -p, 1.5),
    "random_bernoulli": lambda x, p: x + ab.random_bernoulli(4, p),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_node_takes_one_key_however_it_is_recorded(name, at_hand):
    """The n-th node gets the n-th key of the stream, by the short way, and in a graph that is recorded by the long one."""
    seen = []
    for sealed in (True, False, True):
        ab.reset_random_seed(5)
        graph = ab.renew_cg()
        o = at_hand()
        if sealed:
            graph.seal()
        made = [DRAWN[name](o["z"], p) for p in (0.25, 0.25, 0.5, 0.0, 1.0, 0.25) for _ in range(2)]
        seen.append((graph.recorded_types, graph.all_args(), [e.npvalue().tobytes() for e in made]))
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0][2])) > 1

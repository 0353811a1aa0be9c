"""Large graphs: a million nodes, chains of 100 000 steps. Growth is counted, not timed."""

import inspect
import itertools
import sys

import numpy as np
import pytest

import autobatch as ab

SIZE = 2


def model():
    collection = ab.ParameterCollection(dtype="float64")
    return collection, collection.add_parameters((SIZE,), init=0.01), collection.add_lookup_parameters((10, SIZE))


def chain(p, table, steps):
    """tanh(... tanh(tanh(row + p) + p) ... + p), two nodes a step; and the sum of its numbers."""
    x = table[3]
    for _ in range(steps):
        x = ab.tanh(x + p)
    return ab.sum_elems(x)


def counts(loss):
    """What a graph takes once it ran forward and backward: words of tables, bytes of values and gradients, batches."""
    execution = ab.current_graph().execution
    forward = sum(s.words for s in execution.segments)
    backward = sum(where[1] for where, _ in execution.backward.tables)
    first, last = execution.backward.slots
    values = ab.memory()["values_used"]
    return {"forward": forward, "backward": backward, "values": values, "gradients": last - first, "batches": execution.batches}


def test_chain_of_100_000_steps():
    ab.configure(dtype="float64")
    _, p, table = model()
    ab.renew_cg()
    loss = chain(p, table, 100_000)
    loss.backward()
    # The same in NumPy, forward and backward.
    start, step = table.as_array()[3], p.as_array()
    states = [start]
    for _ in range(100_000):
        states.append(np.tanh(states[-1] + step))
    gradient, total = np.ones(SIZE), np.zeros(SIZE)
    for state in reversed(states[1:]):
        gradient = gradient * (1 - state**2)
        total += gradient
    assert loss.value() == pytest.approx(states[-1].sum(), rel=1e-12)
    assert np.allclose(p.grad_as_array(), total, rtol=1e-10)
    assert np.allclose(table.grad_as_array()[3], gradient, rtol=1e-10, atol=1e-300)


def test_an_lstm_of_100_000_steps():
    """States hold each other: nothing goes down that chain by recursion, not even when it dies."""
    ab.configure(dtype="float64")
    collection = ab.ParameterCollection(dtype="float64")
    lstm = ab.LSTMBuilder(1, 1, 2, collection)
    wx, wh, b = (p.as_array() for p in collection.parameters_list())

    def run(steps):
        ab.renew_cg()
        collection.reset_gradient()
        x, state = ab.inputVector([0.5]), lstm.initial_state()
        for _ in range(steps):
            state = state.add_input(x)
        loss = ab.sum_elems(state.output())
        loss.backward()
        return loss.value(), collection.parameters_list()[2].grad_as_array()

    run(3)  # compiles
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 40)
    try:
        value, gradient = run(100_000)
        ab.renew_cg()
    finally:
        sys.setrecursionlimit(limit)

    def last(b, steps):
        h, c = np.zeros(2), np.zeros(2)
        for _ in range(steps):
            a = wx @ [0.5] + wh @ h + b
            i, f, o = (1 / (1 + np.exp(-v)) for v in (a[:2], a[2:4] + 1, a[4:6]))
            c = f * c + i * np.tanh(a[6:])
            h = o * np.tanh(c)
        return h.sum()

    # The state has long come to rest: its slope by b is that of far fewer steps.
    assert value == pytest.approx(last(b, 10_000), rel=1e-10)
    step = 1e-6 * np.eye(8)
    slopes = [(last(b + e, 2_000) - last(b - e, 2_000)) / 2e-6 for e in step]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-8)


def test_a_million_nodes():
    _, p, table = model()
    ab.configure(dtype="float64")
    ab.renew_cg()
    losses = []
    for i in range(100_000):
        x = table[i % 10]
        for _ in range(4):
            x = ab.tanh(x + p)
        losses.append(ab.sum_elems(x))
    loss = ab.esum(losses)
    graph = ab.current_graph()
    assert len(graph) > 1_000_000
    loss.backward()
    assert graph.batches == graph.lower_bound < 20
    x = table.as_array()
    steps = [x]
    for _ in range(4):
        steps.append(np.tanh(steps[-1] + p.as_array()))
    assert loss.value() == pytest.approx(10_000 * steps[-1].sum(), rel=1e-11)
    gradient, total = np.ones_like(x), np.zeros(SIZE)
    for step in reversed(steps[1:]):
        gradient = gradient * (1 - step**2)
        total += gradient.sum(axis=0)
    assert np.allclose(p.grad_as_array(), 10_000 * total, rtol=1e-9)
    assert np.allclose(table.grad_as_array(), 10_000 * gradient, rtol=1e-9)


@pytest.mark.parametrize("policy", ["none", "depth", "agenda", "ratio"])
def test_work_and_memory_are_linear(policy):
    _, p, table = model()
    ab.configure(dtype="float64", policy=policy)
    taken = []
    for steps in (2_000, 4_000, 8_000):
        ab.renew_cg()
        loss = ab.esum([chain(p, table, steps // 4) for _ in range(4)])
        loss.backward()
        taken.append(counts(loss))
    for less, more in itertools.pairwise(taken):
        for what in less:
            assert more[what] <= 2.05 * less[what] + 4096, (
                f"{what}: {less[what]} for half the graph, {more[what]} for all of it"
            )


def test_sentences_and_trees_are_linear():
    """Look-ups, gathers, weights used in many batches, dropout, losses: twice the sentences, twice of everything at most."""
    collection = ab.ParameterCollection()
    words, lstm = collection.add_lookup_parameters((50, 6)), ab.LSTMBuilder(1, 6, 5, collection)
    U, W, b = collection.add_parameters((5, 10)), collection.add_parameters((3, 5)), collection.add_parameters((3,))

    def loss_of(n):
        nodes = lstm.initial_state().transduce([words[(7 * n + k * k) % 50] for k in range(2 + n % 11)])
        while len(nodes) > 1:
            k = n % (len(nodes) - 1)
            nodes[k : k + 2] = [ab.tanh(U * ab.concatenate(nodes[k : k + 2]))]
        return ab.pickneglogsoftmax(ab.affine_transform([b, W, ab.dropout(nodes[0], 0.3)]), n % 3)

    taken = []
    for sentences in (200, 400, 800):
        ab.renew_cg()
        loss = ab.esum([loss_of(n) for n in range(sentences)])
        loss.backward()
        taken.append(counts(loss) | {"types": len(ab.current_graph().execution.segments[0].present)})
    for less, more in itertools.pairwise(taken):
        for what in less:
            assert more[what] <= 2.05 * less[what] + 4096, f"{what}: {less[what]} for half of them, {more[what]} for all"
    assert taken[2]["batches"] <= taken[0]["batches"] + 4
    assert taken[2]["types"] <= taken[0]["types"] + 4


def test_many_small_passes_are_linear():
    """A value asked for at every step: each pass plans what is new, nothing twice."""
    _, p, table = model()
    ab.configure(dtype="float64")
    taken = []
    for steps in (200, 400):
        ab.renew_cg()
        x = table[3]
        for _ in range(steps):
            x = ab.tanh(x + p)
            x.value()
        ab.sum_elems(x).backward()
        taken.append(counts(x))
    for what in taken[0]:
        assert taken[1][what] <= 2.05 * taken[0][what] + 4096, what


def test_memory_is_used_again():
    """After some minibatches no memory is asked for any more."""
    _, p, table = model()
    ab.configure(dtype="float64")
    held = []
    for i in range(50):
        ab.renew_cg()
        ab.esum([chain(p, table, 20 + (7 * i + k) % 30) for k in range(8)]).backward()
        held.append(sum(ab.memory()[k] for k in ("values_reserved", "gradients_reserved", "tables_reserved", "pool")))
    assert max(held[10:]) == held[10]


def test_inputs_between_values_are_told_once():
    """A value asked for after each input: every address is copied to the planner once, and each is the right one."""
    with ab.Graph() as graph:
        total = ab.scalarInput(0.0)
        for k in range(1, 200):
            before = graph._addresses_known
            total = total + ab.inputVector([float(k)])
            assert total.value() == k * (k + 1) / 2
            assert graph._addresses_known == before + 1 + (k == 1)


def test_inputs_after_a_revert_take_the_places_of_others():
    x = ab.inputVector([1.0])
    for k in range(3):
        ab.cg_checkpoint()
        y = x + ab.inputVector([10.0 + k])
        assert y.value() == 11 + k
        ab.cg_revert()
    assert (x + ab.inputVector([5.0])).value() == 6


def test_work_space_of_backward_holds_no_copies_of_weights():
    """A large weight shared by many items: its gradient is formed in its place, so nothing as large is kept for each item."""
    ab.renew_cg()
    ab.free_memory()  # what other tests left
    model = ab.ParameterCollection()
    W, table = model.add_parameters((500, 20)), model.add_lookup_parameters((10, 20))
    ab.esum([ab.pickneglogsoftmax(W * table[k % 10], k) for k in range(200)]).backward()
    held = ab.memory()
    assert held["gradients_used"] <= 2 * held["values_used"]  # without that: 30 times as much
    assert held["gradients_reserved"] <= 2 * held["values_used"] + (1 << 20)

"""Laws of whole graphs: any policy, any order of asking, any dtype gives what node by node in float64 gives.

Node by node in float64 is itself held against the references of the ops and finite differences of them.
"""

import dis
import itertools
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from laws import (
    DIFFERENCES,
    EXACT,
    FLOAT32_GRAPH,
    Call,
    Fill,
    Input,
    Recording,
    Row,
    Use,
    agree,
    batches,
    close,
    counted,
    in_one_go,
    shape_of,
    slope,
    whole,
)
from strategies import SEEDS, examples, graphs

import autobatch as ab
from autobatch import execute, frame
from autobatch.graph import OP, TYPES
from autobatch.kernels._jit import ITEMS, KERNEL, LENGTH
from autobatch.kernels._rows import zero_rows
from autobatch.memory import array_at
from autobatch.pieces import FEW
from autobatch.plan import card as plan_card
from autobatch.plan import words
from autobatch.schedule import POLICIES, schedule

policies = pytest.mark.parametrize("policy", POLICIES)


def agree_with(case, recording, gradients, tolerance):
    """Check values against the references, gradients against those given."""
    agree(recording.computed(), case.values, tolerance, "value of instance, step")
    close(recording.loss.npvalue(), [case.loss(case.values)], tolerance, "loss")
    agree(recording.gradients(), gradients, tolerance, "gradient of parameter")


def expected_gradients(case):
    """Return the gradients of the parameters, node by node in float64."""
    return in_one_go(case)[0].gradients()


# The oracle -----------------------------------------------------------------------------------------------------------


@examples(150)
@given(graphs())
def test_node_by_node_equals_the_references_and_their_differences(case):
    recording, graph = in_one_go(case)
    agree_with(case, recording, recording.gradients(), EXACT)
    assert graph.batches == sum(TYPES.records[t].kind == OP for t in graph.recorded_types)
    assume(case.parameters)
    rng = np.random.default_rng(case.seed)
    arrays = [a for _, a in case.parameters]
    directions = [rng.uniform(-1, 1, a.shape) for a in arrays]

    def loss(t):
        moved = [a + t * v for a, v in zip(arrays, directions, strict=True)]
        return case.loss(case.evaluate(parameters=moved, frozen=case.values))

    products = [np.sum(g * v) for g, v in zip(recording.gradients(), directions, strict=True)]
    assert abs(sum(products) - slope(loss, 0.0, 1.0)) <= DIFFERENCES * max(1.0, np.abs(products).sum())


@policies
def test_gradient_of_any_node_is_the_derivative_by_its_value(policy):
    @examples(40)
    @given(graphs(), st.booleans())
    def check(case, full):
        recording, _ = in_one_go(case, policy=policy, full=full)
        rng = np.random.default_rng(case.seed)
        trains = depends_on_parameter(case)
        nodes = [
            (i, k)
            for i, steps in enumerate(case.instances)
            for k, step in enumerate(made_by(steps))
            if not isinstance(step, Use | Fill)
        ]
        for at in rng.permutation(len(nodes))[:6]:
            i, k = nodes[at]
            e, value = recording.values[i][k], case.values[i][k]
            v = rng.uniform(-1, 1, value.shape)

            def loss(t, i=i, k=k, v=v):
                return case.loss(case.evaluate(nudges={(i, k): t * v}, frozen=case.values))

            got = whole(e.gradient(), shape_of(e))
            expected = slope(loss, 0.0, 1.0) if full or trains[i][k] else 0.0
            assert abs(np.sum(got * v) - expected) <= DIFFERENCES * max(1.0, np.abs(got * v).sum()), (i, k)

    check()


def made_by(steps):
    """Return for each value of an instance the step that made it."""
    return [step for step in steps for _ in range(2 if isinstance(step, Call) and step.op == "lstm_step" else 1)]


def depends_on_parameter(case):
    """Return for each value whether a parameter that trains lies behind it."""
    result = []
    for steps in case.instances:
        trains = []
        for step in made_by(steps):
            if isinstance(step, Use | Row):
                trains.append(step.update)
            elif isinstance(step, Call):
                trains.append(any(trains[k] for k in references(step.arguments)))
            else:
                trains.append(not isinstance(step, Input | Fill) and trains[step.of])
        result.append(trains)
    return result


def references(arguments):
    """Return the numbers of the values that a call reads."""
    if hasattr(arguments, "at"):
        return [arguments.at]
    return [k for a in arguments for k in references(a)] if isinstance(arguments, tuple | list) else []


# Policies and dtypes --------------------------------------------------------------------------------------------------


@policies
@pytest.mark.parametrize("dtype, tolerance", [("float64", EXACT), ("float32", FLOAT32_GRAPH)])
def test_every_policy_gives_the_same(policy, dtype, tolerance):
    @examples(60 if dtype == "float64" else 40)
    @given(graphs())
    def check(case):
        recording, graph = in_one_go(case, dtype, policy)
        agree_with(case, recording, expected_gradients(case), tolerance)
        nodes = sum(TYPES.records[t].kind == OP for t in graph.recorded_types)
        assert graph.lower_bound <= graph.batches <= nodes
        assert sorted(batches(graph)) == [k for k, t in enumerate(graph.recorded_types) if TYPES.records[t].kind == OP]

    check()


@policies
def test_instances_of_one_program_share_their_batches(policy):
    """As many batches for four instances as for one, wherever they run in step."""

    @examples(40)
    @given(graphs())
    def check(case):
        one, count = case.instances[0], 4
        case.instances, case.total = [one] * count, "esum"
        case.turns = [i for _ in one for i in range(count)]
        _, graph = in_one_go(case, policy=policy)
        single = [t for t in graph.recorded_types if TYPES.records[t].kind == OP]
        ran = batches(graph)
        assert len(single) == len(ran)
        assert graph.batches == len(ran) if policy == "none" else graph.batches <= len(ran) / count + 1

    check()


def test_several_programs_in_one_graph_batch_across_programs():
    """Sequences of all lengths: a batch a step of the longest, whatever the number of sequences."""
    model = ab.ParameterCollection(dtype="float64")
    lstm, table = ab.VanillaLSTMBuilder(2, 3, 4, model), model.add_lookup_parameters((10, 3))
    w = model.add_parameters((5, 4))
    rng = np.random.default_rng(1)
    with ab.Graph(dtype="float64") as graph:
        losses = []
        for length in (3, 7, 1, 12, 7):
            words = rng.integers(10, size=length).tolist()
            for h in lstm.initial_state().transduce([table[k] for k in words]):
                losses.append(ab.pickneglogsoftmax(w * h, int(rng.integers(5))))
        ab.esum(losses).backward()
    counts = counted(graph)
    sums = counts.pop("esum")
    assert counts == {"lstm_step": 24, "matmul": 1, "pickneglogsoftmax": 1}
    assert graph.batches == graph.lower_bound == 26 + sums


# Asking in another order ----------------------------------------------------------------------------------------------


@policies
def test_values_asked_for_in_between_change_nothing(policy):
    @examples(50)
    @given(graphs(), SEEDS)
    def check(case, seed):
        rng = np.random.default_rng(seed)
        recording = Recording(case)
        with ab.Graph(dtype="float64", policy=policy) as graph:
            while recording.turn < len(case.turns):
                recording.step()
                if rng.integers(6) == 0:
                    made = [(i, k) for i, values in enumerate(recording.values) for k in range(len(values))]
                    i, k = made[rng.integers(len(made))]
                    e = recording.values[i][k]
                    close(whole(e.npvalue(), shape_of(e)), case.values[i][k], EXACT, f"value {i} {k} in between")
            recording.finish()
        recording.loss.backward()
        agree_with(case, recording, expected_gradients(case), EXACT)
        assert graph.batches >= graph.lower_bound

    check()


@policies
def test_backward_twice_doubles_and_a_smaller_one_after_it_adds_its_own(policy):
    @examples(50)
    @given(graphs(), SEEDS)
    def check(case, seed):
        rng = np.random.default_rng(seed)
        recording, graph = in_one_go(case, policy=policy)
        expected = expected_gradients(case)
        agree(recording.gradients(), expected, EXACT, "once")
        recording.loss.backward()
        agree(recording.gradients(), [2 * g for g in expected], EXACT, "twice")
        i = int(rng.integers(len(case.instances)))
        recording.values[i][-1].backward()
        alone = Recording(case)
        with ab.Graph(dtype="float64", policy="none"):
            alone.finish()
        alone.values[i][-1].backward()
        agree(recording.gradients(), [2 * a + b for a, b in zip(expected, alone.gradients(), strict=True)], EXACT, "one more")
        for node in alone.values[i]:
            if node.graph is not None:
                twin = recording.values[i][alone.values[i].index(node)]
                close(twin.gradient(), node.gradient(), EXACT, "gradient of a node, after the smaller backward")
        # And the first again, for a gradient that was forgotten in between.
        recording.loss.backward()
        agree(recording.gradients(), [3 * a + b for a, b in zip(expected, alone.gradients(), strict=True)], EXACT, "again")
        assert len(graph) > 0

    check()


@policies
def test_full_gives_parameters_the_same(policy):
    @examples(30)
    @given(graphs())
    def check(case):
        recording, _ = in_one_go(case, policy=policy, full=True)
        agree_with(case, recording, expected_gradients(case), EXACT)

    check()


@policies
def test_revert_to_a_checkpoint_forgets_what_came_after(policy):
    @examples(50)
    @given(graphs(), SEEDS)
    def check(case, seed):
        rng = np.random.default_rng(seed)
        marks = sorted(rng.integers(len(case.turns) + 1, size=2).tolist())
        recording = Recording(case)
        ab.configure(dtype="float64", policy=policy)
        ab.renew_cg()
        recording.finish(marks[0])
        kept = state(recording)
        ab.cg_checkpoint()
        # A detour: the next steps, another checkpoint, backward passes, and inputs that are set anew.
        recording.finish(marks[1])
        deeper = state(recording)
        ab.cg_checkpoint()
        recording.finish()
        recording.loss.backward()
        for p in recording.parameters:
            p._reset_gradient()
        stale = recording.loss
        detour = rng.integers(3)
        if detour == 1:
            forget_all(recording)
        ab.cg_revert()
        recording.values, recording.done, recording.turn = restored(deeper)
        if detour == 2:
            recording.finish()
            forget_all(recording)
            recording.loss.value()
        ab.cg_revert()
        recording.values, recording.done, recording.turn = restored(kept)
        recording.finish().loss.backward()
        agree_with(case, recording, expected_gradients(case), EXACT)
        with pytest.raises(RuntimeError, match="stale"):
            stale.value()

    check()


def state(recording):
    return [list(v) for v in recording.values], list(recording.done), recording.turn


def restored(kept):
    values, done, turn = kept
    return [list(v) for v in values], list(done), turn


def forget_all(recording):
    """Have all values of the graph computed again."""
    nodes = [e for values in recording.values for e in values if e.graph is not None]
    if nodes:
        nodes[-1].value(recalculate=True)


# Changing what was computed -------------------------------------------------------------------------------------------


@policies
def test_recalculate_takes_changed_parameters(policy):
    @examples(40)
    @given(graphs())
    def check(case):
        recording, _ = in_one_go(case, policy=policy)
        before = recording.computed()
        for p in recording.parameters:
            p.scale(0.9)
            p._reset_gradient()
        nodes = [(i, k) for i, vs in enumerate(recording.values) for k, e in enumerate(vs) if e.graph is not None]
        for i, k in nodes:  # values stay as computed, but for views of a parameter
            if root_is_node(recording.values[i][k]):
                close(whole(recording.values[i][k].npvalue(), shape_of(recording.values[i][k])), before[i][k], 0)
        recording.loss.value(recalculate=True)
        recording.loss.backward()
        fresh = Recording(case, arrays=[0.9 * a for _, a in case.parameters])
        with ab.Graph(dtype="float64", policy="none"):
            fresh.finish().loss.backward()
        agree(recording.computed(), fresh.computed(), EXACT, "value")
        agree(recording.gradients(), fresh.gradients(), EXACT, "gradient")

    check()


def root_is_node(e):
    execution = e.graph.execution
    return execution.root[e.index] >= 0 and TYPES.records[int(execution.types[execution.root[e.index]])].kind == OP


@policies
def test_inputs_and_look_ups_that_are_set_anew(policy):
    @examples(40)
    @given(graphs(), st.booleans())
    def check(case, midway):
        recording, _ = in_one_go(case, policy=policy)
        for p in recording.parameters:
            p._reset_gradient()
        instances = []
        for steps, values in zip(case.instances, recording.values, strict=True):
            changed, k = [], 0
            for step in steps:
                if isinstance(step, Input):
                    step = Input(step.array.ravel()[::-1].reshape(step.array.shape))
                    values[k].set(step.array.ravel(order="F"))
                elif isinstance(step, Row):
                    step = Row(step.parameter, (step.index + 1) % 3, step.update)
                    values[k].set(step.index)
                changed.append(step)
                k += 2 if isinstance(step, Call) and step.op == "lstm_step" else 1
            instances.append(changed)
            if midway:
                values[-1].value()
        recording.loss.backward()
        case.instances = instances
        fresh, _ = in_one_go(case)
        agree(recording.computed(), fresh.computed(), EXACT, "value")
        agree(recording.gradients(), fresh.gradients(), EXACT, "gradient")

    check()


# Several graphs -------------------------------------------------------------------------------------------------------


@examples(40)
@given(graphs(), graphs(), SEEDS)
def test_two_graphs_side_by_side(first, second, seed):
    rng = np.random.default_rng(seed)
    sides = []
    for case, dtype, policy in ((first, "float64", "ratio"), (second, "float32", "agenda")):
        sides.append((case, Recording(case, dtype), ab.Graph(dtype=dtype, policy=policy)))
    while waiting := [s for s in sides if s[1].turn < len(s[0].turns)]:
        _, recording, graph = waiting[rng.integers(len(waiting))]
        with graph:
            recording.step()
        if rng.integers(8) == 0:
            for _, other, _ in sides:
                made = [e for values in other.values for e in values]
                made and made[-1].value()
    for _, recording, graph in sides:
        with graph:
            recording.finish()
    for _, recording, _ in sides:
        recording.loss.backward()
    agree_with(first, sides[0][1], expected_gradients(first), EXACT)
    agree_with(second, sides[1][1], expected_gradients(second), FLOAT32_GRAPH)
    parameters = [k for k, (kind, _) in enumerate(first.parameters) if kind == "parameter"]
    nodes = [e for values in sides[1][1].values for e in values if e.graph is not None]
    if parameters and nodes:
        with pytest.raises(ValueError, match=r"different graphs|dtype"):
            ab.concatenate([ab.reshape(e, (shape_of(e).total,)) for e in (nodes[0], sides[0][1].loss)])


@examples(15)
@given(graphs(), graphs())
def test_one_graph_in_each_of_two_threads(first, second):
    results = {}

    def work(name, case):
        ab.renew_cg()
        recording = Recording(case)
        with ab.Graph(dtype="float64"):
            recording.finish()
        recording.loss.backward()
        results[name] = recording

    threads = [threading.Thread(target=work, args=pair) for pair in (("first", first), ("second", second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    agree_with(first, results["first"], expected_gradients(first), EXACT)
    agree_with(second, results["second"], expected_gradients(second), EXACT)


# Same bits ------------------------------------------------------------------------------------------------------------


@policies
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_twice(policy, dtype):
    @examples(20)
    @given(graphs())
    def check(case):
        first, second = (in_one_go(case, dtype, policy)[0] for _ in range(2))
        for a, b in zip(itertools.chain(*first.computed()), itertools.chain(*second.computed()), strict=True):
            assert a.tobytes() == b.tobytes()
        assert [g.tobytes() for g in first.gradients()] == [g.tobytes() for g in second.gradients()]

    check()


PROGRAM = """
import hashlib, random
import numpy as np
import autobatch as ab

ab.reset_random_seed(3)
model = ab.ParameterCollection()
lstm, table, w = ab.LSTMBuilder(2, 5, 7, model), model.add_lookup_parameters((20, 5)), model.add_parameters((4, 7))
trainer, digest, rng = ab.AdamTrainer(model), hashlib.sha256(), random.Random(5)
lstm.set_dropout(0.3)
for minibatch in range(4):
    ab.renew_cg()
    losses = []
    for _ in range(6):
        words = [rng.randrange(20) for _ in range(rng.randrange(1, 9))]
        outputs = lstm.initial_state().transduce([table[k] for k in words])
        losses += [ab.pickneglogsoftmax(w * ab.dropout(h, 0.2), rng.randrange(4)) for h in outputs]
    loss = ab.esum(losses)
    loss.backward()
    trainer.update()
    digest.update(np.float64(loss.value()).tobytes())
for p in [*model.parameters_list(), *model.lookup_parameters_list()]:
    digest.update(p.values.tobytes())
print(digest.hexdigest())
"""


def test_same_bits_in_two_processes():
    command = [sys.executable, "-c", PROGRAM]
    results = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(results) == 1 and len(results.pop().strip()) == 64


# Weight gradients -----------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_weight_is_formed_once():
    """However many batches read it, where columns are thin; and it is right."""
    model = ab.ParameterCollection(dtype="float64")
    w, u, b = model.add_parameters((6, 5)), model.add_parameters((6, 6)), model.add_parameters(6)
    rng = np.random.default_rng(2)
    xs = [rng.uniform(-1, 1, (length, 5)) for length in (4, 9, 2, 7)]

    def network():
        losses = []
        for rows in xs:
            h = ab.inputVector(np.zeros(6))
            for row in rows:
                h = ab.tanh(ab.affine_transform([b, w, ab.inputVector(row), u, h]))
            losses.append(ab.sum_elems(ab.square(h)))
        return ab.esum(losses)

    with ab.Graph(dtype="float64") as graph:
        network().backward()
    gradients = [p.grad_as_array() for p in (w, u, b)]
    assert counted(graph)["affine_transform"] == 9
    assert graph.execution.backward.products == 3
    for p in (w, u, b):
        p._reset_gradient()
    with ab.Graph(dtype="float64", policy="none") as graph:
        network().backward()
    assert counted(graph)["affine_transform"] == 22
    for p, gradient in zip((w, u, b), gradients, strict=True):
        close(p.grad_as_array(), gradient, EXACT)


def test_the_gradients_of_a_step_of_an_lstm_are_formed_once_per_weight():
    model = ab.ParameterCollection()
    lstm, table, w = ab.VanillaLSTMBuilder(1, 3, 4, model), model.add_lookup_parameters((9, 3)), model.add_parameters((2, 4))
    with ab.Graph() as graph:
        losses = []
        for words in ([1, 5, 2], [3, 3, 8, 0, 1], [4]):
            for h in lstm.initial_state().transduce([table[k] for k in words]):
                losses.append(ab.pickneglogsoftmax(w * h, 1))
        ab.esum(losses).backward()
    assert counted(graph)["lstm_step"] == 5
    assert graph.execution.backward.products == 4  # Wx, Wh, b and w


# Size -----------------------------------------------------------------------------------------------------------------


def test_chain_of_100_000_nodes():
    p = ab.ParameterCollection(dtype="float64").add_parameters(2, init=np.array([0.5, -0.25]))
    with ab.Graph(dtype="float64") as graph:
        x = p
        for _ in range(100_000):
            x = ab.square(x) + p if x is p else x + p
        ab.sum_elems(x).backward()
    close(x.npvalue(), p.as_array() ** 2 + 100_000 * p.as_array(), EXACT)
    close(p.grad_as_array(), 2 * p.as_array() + 100_000, EXACT)
    assert len(graph) == 100_002 and graph.batches == graph.lower_bound == 100_002


def test_memory_grows_with_the_graph_and_is_used_again():
    """Small graphs, then a large one, then small ones: values and gradients stay right, and nothing more is reserved."""
    p = ab.ParameterCollection(dtype="float64").add_parameters(100, init=np.linspace(-1, 1, 100))

    def trial(count):
        p._reset_gradient()
        graph = ab.renew_cg()
        ys = [ab.tanh(p * (1.0 + k)) for k in range(count)]
        ab.sum_elems(ab.esum(ys)).backward()
        x = p.as_array()[:, None] * (1.0 + np.arange(count))
        close(np.stack([y.npvalue() for y in ys], 1), np.tanh(x), EXACT)
        close(p.grad_as_array(), ((1 - np.tanh(x) ** 2) * (1.0 + np.arange(count))).sum(1), EXACT)
        memory = ab.memory()
        assert graph.batches >= 3 and memory["values_used"] >= 16 * count * 100
        return memory["values_reserved"] + memory["gradients_reserved"] + memory["tables_reserved"] + memory["pool"]

    ab.configure(dtype="float64")
    ab.renew_cg()
    ab.free_memory()
    sizes = [trial(n) for n in (1, 5, 3000, 2, 3000, 1, 3000)]
    assert sizes[2] > sizes[1] and sizes[-1] <= sizes[4]


def test_backward_again_takes_the_memory_of_the_one_before():
    p = ab.ParameterCollection().add_parameters(1000)
    x = ab.tanh(p)
    part = x[0:500]
    loss = ab.sum_elems(ab.square(part)) + ab.sum_elems(x)
    loss.backward()
    part.gradient()
    before = ab.memory()
    for _ in range(300):
        loss.backward()
        part.gradient()
    assert ab.memory() == before


def test_where_nothing_can_be_batched_nothing_is_weighed(monkeypatch):
    """A few nodes after each other, or all of different types, cost no more under the default policy than node by node."""
    asked = []
    recalled = execute.recalled
    monkeypatch.setattr(execute, "recalled", lambda policy, *rest: asked.append(policy) or recalled(policy, *rest))
    for loss, policies in (
        (lambda x: ab.sum_elems(ab.tanh(ab.tanh(ab.tanh(x)))), []),
        (lambda x: ab.dot_product(ab.exp(x), ab.cmult(ab.sin(x), x)), []),
        (lambda x: ab.dot_product(ab.exp(x), ab.exp(ab.sin(x))), ["ratio"]),
        (ab.sum_elems, []),
    ):
        ab.renew_cg()
        loss(ab.inputVector([1.0, 2.0])).value()
        assert asked == policies
        asked.clear()


def test_node_by_node_is_what_the_policy_none_says():
    """The pass of the planner that writes this order agrees with `schedule`."""
    model = ab.ParameterCollection()
    W = model.add_parameters((3, 3))
    x, y = ab.inputVector([1.0, 2.0, 3.0]), ab.inputVector([3.0, 2.0, 1.0])
    steps = {
        "chain": lambda: ab.sum_elems(ab.tanh(ab.tanh(W * ab.tanh(x)))),
        "several types": lambda: ab.tanh(W * x) + ab.exp(y),
        "branches": lambda: ab.esum([ab.tanh(W * ab.exp(v)) for v in (x, y, x + y)]),
        "nothing to run": lambda: ab.inputVector([1.0]),
    }
    for name, build in steps.items():
        for policy in ("none", "ratio"):
            ab.renew_cg(autobatching=policy)
            x, y = ab.inputVector([1.0, 2.0, 3.0]), ab.inputVector([3.0, 2.0, 1.0])
            build().forward()
            for s in ab.current_graph().execution.segments:
                if policy == "ratio" and s.batches < s.count:
                    assert name == "branches"
                    continue
                expected = schedule("none", s.kinds, s.first, s.edges, s.types, s.joins)
                assert all(np.array_equal(a, b) for a, b in zip(s.schedule, expected, strict=True))


def test_a_pass_is_compiled_anew_where_the_frame_or_a_table_has_changed(monkeypatch):
    """What is on the disk knows the places of fields and columns: with others it would read and write anywhere."""

    def stamp():
        frame._constants.cache_clear()
        return frame.over_frame(plan_card.row_groups.function)._dispatcher._cache._cache_file._source_stamp

    before = stamp()
    assert stamp() == before
    with monkeypatch.context() as patch:
        patch.setitem(frame.FIELDS, "card", frame.FIELDS["card"] + 1)
        assert stamp() != before
    with monkeypatch.context() as patch:
        patch.setattr(plan_card, "TYPE_COLUMNS", 100)
        assert stamp() != before
    with monkeypatch.context() as patch:
        patch.setattr(words, "SOURCE", 100)  # which only a helper from there knows
        assert stamp() != before
    assert stamp() == before


def test_values_asked_for_one_by_one_are_computed_together():
    """Who asks for the first of many values is about to ask for the others."""
    model = ab.ParameterCollection()
    W = model.add_parameters((3, 4))

    def scores():
        graph = ab.renew_cg()
        return graph, [W * ab.tanh(ab.inputVector([k, 1, 2, 3])) for k in range(10)]

    graph, one_by_one = scores()
    values = [e.npvalue() for e in one_by_one]
    assert graph.batches == 2
    _, others = scores()
    ab.forward(others)
    np.testing.assert_array_equal(values, [e.npvalue() for e in others])
    graph, some = scores()
    some[3].value()
    later = [ab.exp(e) for e in some]
    ab.esum([ab.sum_elems(e) for e in later[:5]]).backward()
    assert graph.batches == 5 and W.grad_as_array().any()
    with ab.inference():
        graph, some = scores()
        some[7].value()
        assert graph.batches == 2
        np.testing.assert_array_equal([e.npvalue() for e in some], values)


def test_no_nan_of_a_node_that_nobody_asked_for():
    ab.configure(check_nan=True)
    ab.renew_cg()
    x = ab.inputVector([1.0, -1.0])
    y, bad = ab.exp(x), ab.log(x)
    y.value()
    with pytest.raises(ab.NumericalError):
        bad.value()


def test_graphs_of_one_structure_with_other_numbers():
    """A schedule that is used again knows nothing of inputs, labels, rows, or where parameters lie."""
    ab.configure(dtype="float64")
    rng = np.random.default_rng(0)
    for _ in range(4):
        model = ab.ParameterCollection(dtype="float64")
        table, W, b = model.add_lookup_parameters((9, 3)), model.add_parameters((4, 3)), model.add_parameters((4,))
        words, labels, scale = rng.integers(9, size=80), rng.integers(4, size=80), rng.uniform(1, 2)
        results = []
        for policy in ("none", "ratio", "ratio"):
            model.reset_gradient()
            with ab.Graph(policy=policy):
                scores = [ab.affine_transform([b, W, ab.tanh(table[i] * scale)]) for i in words]
                loss = ab.esum([ab.pickneglogsoftmax(s, v) for s, v in zip(scores, labels, strict=True)])
            loss.backward()
            results.append([loss.npvalue(), *(p.grad_as_array() for p in (table, W, b))])
        agree(results[1], results[0], EXACT, "result")
        assert all(np.array_equal(x, y) for x, y in zip(results[1], results[2], strict=True))


# Lists ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, FEW - 1, FEW, 5 * FEW], ids="{} entries".format)
def test_lists_become_arrays_as_numpy_makes_them(size):
    """Integers of any kind; parts of the list that was taken over before stay."""
    rng = np.random.default_rng(size)
    entries = rng.integers(-(2**31), 2**31, size).tolist()
    entries[:3] = -1, np.int64(-1), True
    with ab.Graph() as graph:
        graph.recorded_types += [7] * 4
        graph.recorded_args += entries
        for begin in (0, 1):
            types, args = np.full(4 - begin, -9, np.int32), np.full(size - begin, -9, np.int32)
            graph.write(types, args, begin, begin)
            assert types.tolist() == [7] * (4 - begin) and args.tolist() == np.array(entries, np.int32)[begin:].tolist()
        graph.drop()


@pytest.mark.parametrize("size", [5, 5 * FEW], ids="{} entries".format)
@pytest.mark.parametrize(("entry", "error"), [(2**31, OverflowError), (-(2**70), OverflowError), ("word", ValueError)])
def test_what_is_no_entry_is_refused_as_numpy_does(size, entry, error):
    with ab.Graph() as graph:
        graph.recorded_types.append(7)
        graph.recorded_args += [3] * (size - 1) + [entry]
        with pytest.raises(error):
            graph.write(np.zeros(1, np.int32), np.zeros(size, np.int32))
        graph.drop()


# Parts ----------------------------------------------------------------------------------------------------------------


@examples(60)
@given(st.data(), st.sampled_from(POLICIES))
def test_gradients_of_parts_of_nodes_add_up_in_any_order(data, policy):
    """Parts with gaps, parts that overlap, parts that nobody reads; of results, of rows of a table, of parameters."""
    size = 6
    model = ab.ParameterCollection(dtype="float64")
    p, table = model.add_parameters((size,)), model.add_lookup_parameters((2, size))
    expected = {p: np.zeros(size), table: np.zeros((2, size))}
    rng = np.random.default_rng(data.draw(SEEDS))
    with ab.Graph("float64", policy):
        negated = [-p for _ in range(3)]
        total = ab.zeros(1)
        for _ in range(data.draw(st.integers(1, 12))):
            k, start = data.draw(st.integers(0, 5)), data.draw(st.integers(0, size - 1))
            end = data.draw(st.integers(start + 1, size))
            weights = rng.normal(size=size)
            if k < 3:
                whole, gradient, sign = negated[k], expected[p], -1
            elif k < 5:
                whole, gradient, sign = table[k - 3], expected[table][k - 3], 1
            else:
                whole, gradient, sign = p, expected[p], 1
            part = whole[start:end]
            gradient[start:end] += sign * weights[: end - start]
            total = total + ab.dot_product(part, ab.inputVector(weights[: end - start].tolist()))
            if data.draw(st.booleans()):
                total.value()  # what comes is another segment
        total.backward()
    for parameter, gradient in expected.items():
        close(parameter.grad_as_array(), gradient, EXACT)


@policies
def test_a_state_of_an_lstm_of_which_one_half_is_read(policy):
    """h alone, c alone, or neither but by the next step: what nobody reads has a gradient of zero."""
    model = ab.ParameterCollection(dtype="float64")
    lstm, x = ab.VanillaLSTMBuilder(1, 2, 3, model), model.add_parameters((2,))

    def loss(read):
        state = lstm.initial_state()
        parts = []
        for which in read:
            state = state.add_input(x)
            parts += [ab.sum_elems(part) for part, wanted in zip(state.s(), which, strict=True) if wanted]
        return ab.esum(parts)

    for read in ([(1, 0)], [(0, 1)], [(0, 0), (1, 0)], [(1, 0), (0, 1)], [(0, 1), (0, 1)], [(1, 1), (0, 0), (0, 1)]):
        model.reset_gradient()
        with ab.Graph("float64", policy):
            loss(read).backward()
        gradient = x.grad_as_array()

        def at(values, read=read):
            with ab.Graph("float64", "none"):
                x.set_value(values)
                return loss(read).value()

        before = x.as_array()
        for i in range(2):
            step = 1e-6 * np.eye(2)[i]
            close((at(before + step) - at(before - step)) / 2e-6, gradient[i], DIFFERENCES)
        x.set_value(before)


def test_of_steps_only_what_nobody_reads_is_set_to_zero():
    """c of the last step of each sequence: H numbers; h and c of all others are stored by those who read them."""
    model = ab.ParameterCollection(dtype="float64")
    lstm, x = ab.VanillaLSTMBuilder(1, 2, 3, model), model.add_parameters((2,))
    with ab.Graph("float64") as graph:
        outputs = [h for n in range(1, 9) for h in lstm.initial_state().transduce([x + 0.0 for _ in range(n)])]
        ab.esum([ab.sum_elems(h) for h in outputs]).backward()
    (((address, words, _, _), _),) = graph.execution.backward.tables
    table = array_at(address, words, "int64")
    at, zeroed = 0, []
    while at < words:
        if table[at + KERNEL] == zero_rows.address("float64"):
            zeroed.append((int(table[at + ITEMS]), int(table[at + table[at + LENGTH] - 1])))
        at += int(table[at + LENGTH])
    assert zeroed == [(1, 3)] * 8


# Between the passes ---------------------------------------------------------------------------------------------------


def test_a_frame_saves_what_belongs_to_a_segment():
    one, other = frame.Frame(), frame.Frame()
    one.n0, one.forward, one.loss = 3, 1 << 40, 7
    saved = one.save()
    assert (frame.field(saved, "n0"), frame.field(saved, "forward")) == (3, 1 << 40)
    one.n0 = one.loss = other.loss = 9
    one.load(saved)
    other.load(saved)
    assert (one.n0, one.loss, other.n0, other.forward, other.loss) == (3, 9, 3, 1 << 40, 9)


def test_a_frame_holds_what_it_is_told_to():
    told = frame.Frame()
    array = np.arange(5, dtype=np.int32)
    gone = weakref.ref(array)
    told.hold(types=array)
    assert told.types == array.ctypes.data
    del array
    assert gone() is not None
    told.hold(types=np.arange(2, dtype=np.int32))
    assert gone() is None


@pytest.mark.parametrize("name", ["survey", "layout", "place", "forward_table"])
def test_a_pass_that_fails_leaves_nothing_behind(monkeypatch, name):
    """No segment, no memory; the next question is answered."""
    x = ab.tanh(ab.inputVector([0.5, 1.0]))
    x.value()
    execution = ab.current_graph().execution
    arenas = execution.values, execution.tables, execution.rooms
    before = [a.used for a in arenas], execution.done, len(execution.segments)

    def fails(told):
        raise MemoryError

    y = ab.exp(x)
    with monkeypatch.context() as patch:
        patch.setattr(execute.plan, name, fails)
        with pytest.raises(MemoryError):
            y.value()
    assert ([a.used for a in arenas], execution.done, len(execution.segments)) == before
    np.testing.assert_allclose(y.npvalue(), np.exp(np.tanh([0.5, 1.0])), rtol=1e-6)


def test_gradients_through_many_segments():
    """Values asked for at each step, then one backward: as in one segment, to the bit where nothing was batched otherwise."""
    model = ab.ParameterCollection()
    W = model.add_parameters((3, 3), init=0.3)
    table = model.add_lookup_parameters((4, 3), init=ab.ConstInitializer(0.2))

    def gradients(asks):
        ab.renew_cg(autobatching="none")
        x, losses = ab.inputVector([0.1, 0.2, 0.3]), []
        for step in range(40):
            x = ab.tanh(W * x + table[step % 4] + ab.inputVector([0.01 * step, 0.0, 0.1]))
            losses.append(ab.sum_elems(ab.square(x)) * (1.0 + step))
            if asks:
                losses[-1].value()
                x[1].value()
        ab.esum(losses).backward()
        found = W.grad_as_array().copy(), table.grad_as_array().copy()
        W.scale_gradient(0)
        table.scale_gradient(0)
        return found, len(ab.current_graph().execution.segments)

    (alone, one), (asked, many) = gradients(False), gradients(True)
    assert one == 1 and many > 40
    for a, b in zip(alone, asked, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_a_pass_knows_whether_it_plans_for_a_card(monkeypatch):
    """It is compiled for each answer, without what is for the other, and kept on the disk by different names."""
    made = {}

    def compiled(function):
        made[function.__name__] = function.__code__
        return lambda here: function.__name__

    monkeypatch.setattr(frame, "compiled", compiled)
    told, pass_ = frame.Frame(), frame.over_frame(execute.plan.backward_table.function)
    for told.card, name in ((0, "backward_table"), (1, "backward_table_on_card"), (0, "backward_table")):
        assert pass_(told) == name
        read = {i.argval for i in dis.get_instructions(made[name]) if i.opname.startswith("LOAD")}
        assert "card" not in read and ("write_groups" in read) == bool(told.card)
    told.card = 1
    assert frame.over_frame(execute.plan.survey.function)(told) == "survey"  # which does not ask

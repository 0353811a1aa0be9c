"""Graphs for inference: the same values in less memory, and whatever was given up comes back when it is asked for."""

import ctypes

import numpy as np
import pytest
from hypothesis import given
from laws import EXACT, Recording, agree, close, shape_of, whole
from strategies import SEEDS, examples, graphs

import autobatch as ab
from autobatch import execute, plan, schedule
from autobatch.schedule import POLICIES

policies = pytest.mark.parametrize("policy", POLICIES)


@policies
def test_values_are_those_of_training(policy):
    """The loss first; then everything, which was given up; then backward, which there is none of."""

    @examples(60)
    @given(graphs())
    def check(case):
        recording = Recording(case)
        with ab.Graph(dtype="float64", policy=policy, inference=True) as graph:
            recording.finish()
        close(recording.loss.npvalue(), [case.loss(case.values)], EXACT, "loss")
        assert graph.execution.segments
        agree(recording.computed(), case.values, EXACT, "value of instance, step")
        close(recording.loss.npvalue(), [case.loss(case.values)], EXACT, "loss")
        with pytest.raises(ab.ArgumentError, match="for inference"):
            recording.loss.backward()

    check()


@policies
def test_values_asked_for_on_the_way(policy):
    """Some nodes at any time, alone or several at once, old ones among them, before and after checkpoints."""

    @examples(60)
    @given(graphs(), SEEDS)
    def check(case, seed):
        rng = np.random.default_rng(seed)
        recording = Recording(case)
        ab.configure(dtype="float64", policy=policy, inference=True)
        ab.renew_cg()
        some = rng.choice([0.1, 0.5, 0.9])
        for _ in case.turns:
            recording.step()
            if rng.random() < some:
                continue
            made = [(i, k) for i, values in enumerate(recording.values) for k in range(len(values))]
            asked = [made[j] for j in rng.integers(len(made), size=rng.integers(1, 4))]
            expressions = [recording.values[i][k] for i, k in asked]
            if rng.integers(2) and any(e.graph is not None for e in expressions):
                arrays = ab.npvalues(expressions)
            else:
                arrays = [e.npvalue() for e in expressions]
            for (i, k), e, array in zip(asked, expressions, arrays, strict=True):
                close(whole(array, shape_of(e)), case.values[i][k], EXACT, f"value {i}, {k}")
            if rng.random() < 0.1:
                ab.cg_checkpoint()
        recording.finish()
        close(recording.loss.npvalue(), [case.loss(case.values)], EXACT, "loss")
        agree(recording.computed(), case.values, EXACT, "value of instance, step")

    check()


@policies
def test_values_where_batches_are_cut_into_pieces(policy, monkeypatch):
    monkeypatch.setattr(schedule, "PIECE", 1)
    monkeypatch.setattr(schedule, "WEIGHT", 20)

    @examples(80)
    @given(graphs())
    def check(case):
        recording = Recording(case)
        with ab.Graph(dtype="float64", policy=policy, inference=True):
            recording.finish()
        close(recording.loss.npvalue(), [case.loss(case.values)], EXACT, "loss")

    check()


@policies
def test_parts_of_a_node_that_are_computed_one_after_the_other(policy):
    """h is asked for when c, the part of the step behind it, is in no pass yet; likewise the outputs of a cell."""
    model = ab.ParameterCollection()
    lstm = ab.VanillaLSTMBuilder(1, 2, 3, model)

    @ab.cell
    def both(x):
        return ab.tanh(x), ab.logistic(x)

    def values(inference):
        seen = []
        with ab.Graph(policy=policy, inference=inference):
            x, state = ab.inputVector([1.0, 2.0]), lstm.initial_state()
            for _ in range(4):
                state = state.add_input(x)
                seen.append(state.output().npvalue())
            a, b = both(x)
            seen.append(a.npvalue())
            c, d = both(b)
            seen += [(c + d).npvalue(), (both(a)[1] + b).npvalue(), state.s()[0].npvalue()]
        return seen

    assert all(np.array_equal(x, y) for x, y in zip(values(True), values(False), strict=True))


def test_scores_over_a_vocabulary_are_never_there_all_at_once():
    model = ab.ParameterCollection()
    W, b, table = model.add_parameters((2000, 8)), model.add_parameters((2000,)), model.add_lookup_parameters((50, 8))

    def loss():
        return ab.esum([ab.pickneglogsoftmax(b + W * ab.tanh(table[7 * k % 50]), k) for k in range(600)])

    expected = loss().value()
    held = ab.memory()["values_used"]
    with ab.inference() as graph:
        assert loss().value() == pytest.approx(expected, rel=1e-5)
        assert ab.memory()["values_peak"] < held / 2.5
        assert 16 <= graph.batches < 24


def chain(x, steps):
    for _ in range(steps):
        x = ab.tanh(x + 1.0)
    return x


def test_a_long_chain_takes_the_memory_of_two_steps():
    x = np.ones(1000)
    with ab.inference():
        y = chain(ab.inputVector(x), 500)
        y.value()
        held = ab.memory()
    assert held["values_peak"] <= 3 * 4096
    assert held["values_used"] <= 4096
    ab.renew_cg()
    chain(ab.inputVector(x), 500).value()
    assert ab.memory()["values_used"] >= 500 * 2 * 4000


def test_what_is_asked_for_at_once_stays():
    """Nothing is computed twice where each step names what the next one needs."""
    with ab.inference() as graph:
        state = ab.inputVector(np.ones(8))
        for step in range(20):
            state = chain(state, 2)
            score = ab.sum_elems(ab.exp(state))
            ab.forward([score, state])
            assert len(graph.execution.segments) == step + 1
            assert not graph.execution.keeps
        assert ab.memory()["values_used"] <= 20 * 2 * 64


def test_a_value_given_up_is_computed_once_more_and_then_all_stay():
    with ab.inference() as graph:
        state, runs = ab.inputVector(np.ones(8)), []
        for _ in range(20):
            state = chain(state, 2)
            ab.sum_elems(state).value()
            runs.append(len(graph.execution.segments))
    assert runs == [1, 1, *range(2, 20)]  # the second step computes the first one once more, and then keeps it
    expected = chain(ab.inputVector(np.ones(8)), 40).npvalue()
    assert np.array_equal(state.npvalue(), expected)


def test_checkpoints_keep_what_lies_below():
    with ab.inference() as graph:
        x = chain(ab.inputVector(np.ones(8)), 3)
        ab.cg_checkpoint()
        for k in range(4):
            y = ab.sum_elems(chain(x, k + 1))
            y.value()
            ab.cg_revert()
            ab.cg_checkpoint()
            assert len(graph.execution.segments) == 1


def test_the_block_ends_with_the_graph_from_before():
    before = ab.current_graph()
    with pytest.raises(KeyError), ab.inference() as graph:
        assert ab.current_graph() is graph
        assert graph.inference
        assert ab.renew_cg().inference
        assert not ab.Graph(inference=False).inference
        raise KeyError
    assert ab.current_graph() is before
    assert not ab.renew_cg().inference
    ab.configure(inference=True)
    assert ab.configured()["inference"]
    assert ab.renew_cg().inference


def test_an_expression_outlives_its_block():
    with ab.inference():
        x = ab.inputVector([1.0, 2.0])
        y = ab.tanh(x)
        z = ab.sum_elems(y)
        z.value()
    assert y.npvalue() == pytest.approx(np.tanh([1.0, 2.0]))
    assert z.value() == pytest.approx(np.tanh([1.0, 2.0]).sum())


def test_a_node_set_anew_is_computed_frugally_again():
    with ab.inference() as graph:
        x = ab.inputTensor([1.0, 2.0], reusable_expr=True)
        z = ab.sum_elems(chain(x, 2))
        first = z.value()
        x.set([2.0, 3.0])
        assert z.value() != first
        assert graph.execution.freed > 0


def test_nan_is_found_in_a_graph_for_inference():
    ab.configure(check_nan=True)
    with ab.inference(), pytest.raises(ab.NumericalError, match="log"):
        ab.sum_elems(chain(ab.log(ab.inputVector([-1.0])), 3)).value()


def test_debug_mode_sees_a_batch_that_lies_where_another_is_needed(monkeypatch):
    monkeypatch.setattr(execute, "CHECKED", True)
    layout = plan.frugal_layout

    def wrong(frame):
        result = layout(frame)
        places = ctypes.cast(frame.batch_at, ctypes.POINTER(ctypes.c_int64))
        places[1] = places[0]
        return result

    for pass_, fails in ((layout, False), (wrong, True)):
        monkeypatch.setattr(plan, "frugal_layout", pass_)
        with ab.inference():
            x = ab.tanh(ab.inputVector(np.ones(100)))
            y = ab.exp(x)
            z = ab.sum_elems(ab.cmult(x, y))
            if fails:
                with pytest.raises(ab.InternalError, match="run into"):
                    z.value()
            else:
                z.value()

"""Every law over every op of OPS: a new op is covered without being listed."""

import operator

import numpy as np
import pytest
from hypothesis import given
from laws import (
    EXACT,
    PUBLIC,
    Leaf,
    batched_equals_alone,
    close,
    filled,
    forward_equals_reference,
    gradient_equals_differences,
    inputs_stay_and_gradients_add_up,
    public,
    same_bits_twice,
    several,
    tensors,
)
from strategies import Random, examples, numbers, plans

import autobatch as ab
from autobatch.expression import record as record_node
from autobatch.graph import OP, TYPES
from autobatch.kernels._elementwise import elementwise
from autobatch.kernels._errors import InternalError
from autobatch.kernels._op import OPS, one_tensor
from autobatch.schedule import POLICIES


def tries(op, n):
    """Return the number of examples for an op: more where several arguments come together."""
    return examples(n if len(tensors(op.samples(Random(0)).arguments)) <= 1 else 3 * n)


every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@every_op
def test_record_is_complete_and_reached_by_a_public_function(op):
    assert op.doc.strip() and callable(op.reference) and callable(op.samples)
    model, kinds = ab.ParameterCollection(), set()
    for seed in range(200):
        sample = op.samples(Random(seed))
        forced = op.name in ("lookup_batch", "lstm_step")
        leaves = []
        for k, tensor in enumerate(tensors(sample.arguments)):
            kind = "table" if op.name == "lookup_batch" else "parameter" if forced and k > 2 else "input"
            leaves.append(Leaf(kind, numbers(np.random.default_rng(seed), tensor), model, op).expression())
        made = several(public(op.name)(*filled(sample.arguments, leaves), **sample.attributes))
        graph = ab.cg()
        kinds |= {TYPES.records[t].op for t in graph.recorded_types if TYPES.records[t].kind == OP}
        arguments = filled(sample.arguments, [whole_of(e) for e in leaves])
        assert len(made) == len(several(op.reference(*arguments, **sample.attributes)))
        if op in kinds:
            break
    assert kinds == {op}


def whole_of(e):
    dims, batch = e.dim()
    return e.npvalue().reshape(*dims, batch)


@every_op
@both_dtypes
def test_forward_equals_reference(op, dtype):
    @tries(op, 15)
    @given(plans(op))
    def check(plan):
        forward_equals_reference(plan, dtype)

    check()


@every_op
def test_gradient_equals_differences_of_the_reference(op):
    checked = 0

    @tries(op, 30)
    @given(plans(op))
    def check(plan):
        nonlocal checked
        checked += gradient_equals_differences(plan)

    check()
    assert checked >= 10 or not tensors(op.samples(Random(0)).arguments)  # who has no argument has no gradient


@every_op
@both_dtypes
def test_batched_equals_alone(op, dtype):
    @tries(op, 15)
    @given(plans(op, 6))
    def check(plan):
        batched_equals_alone(plan, dtype)

    check()


@every_op
def test_batched_minibatches_equal_alone(op):
    @tries(op, 15)
    @given(plans(op, 5, batched=True))
    def check(plan):
        batched_equals_alone(plan, "float64")

    check()


@every_op
@both_dtypes
def test_inputs_stay_and_gradients_add_up(op, dtype):
    @examples(8)
    @given(plans(op, 4))
    def check(plan):
        inputs_stay_and_gradients_add_up(plan, dtype)

    check()


@every_op
@both_dtypes
def test_same_bits_twice(op, dtype):
    @examples(8)
    @given(plans(op, 6))
    def check(plan):
        same_bits_twice(plan, dtype)

    check()


# What the samples do not show -----------------------------------------------------------------------------------------


def test_other_spellings_record_the_same():
    ab.configure(dtype="float64")
    ab.renew_cg()
    rng = np.random.default_rng(0)
    x, y = (ab.inputTensor(rng.uniform(1, 2, (3, 3))) for _ in range(2))
    v = ab.inputVector([1.0, 2.0, 3.0])
    pairs = [
        (x / y, ab.cdiv(x, y)),
        (x @ y, x * y),
        (v[1], ab.pick(v, 1)),
        (v[-1], ab.pick(v, 2)),
        (x[1:3], ab.pick_range(x, 1, 3)),
        (x[0:3:2, 1:2], ab.strided_select(x, [2, 1], [0, 1], [3, 2])),
        (ab.pickrange(x, 0, 2), ab.pick_range(x, 0, 2, 0)),
        (ab.concatenate_cols([v, v]), ab.concatenate([v, v], 1)),
        (+x, x),
        (sum([v, v, v]), ab.esum([v, v, v])),
    ]
    for got, expected in pairs:
        assert got.dim() == expected.dim()
        np.testing.assert_array_equal(got.npvalue(), expected.npvalue())


@pytest.mark.parametrize("c", [0.5, -0.0, 0, 3, True, np.float64(2.5), np.float32(2.5), np.int64(2)])
@pytest.mark.parametrize("symbol", ["add", "sub", "mul", "truediv"])
@pytest.mark.parametrize("of", ["input", "parameter"])
def test_operators_with_numbers(c, symbol, of):
    """On both sides, on a first and a second use in the graph, forward and gradient."""
    function, z = getattr(operator, symbol), float(c)
    array = np.array([[0.7, -1.5], [2.5, 1.25]])
    p = ab.ParameterCollection(dtype="float64").add_parameters((2, 2), init=array)
    right = {"add": 1, "sub": 1, "mul": z, "truediv": 1 / z if z else np.copysign(np.inf, z)}[symbol]
    left = {"add": 1, "sub": -1, "mul": z, "truediv": -z / array**2}[symbol]
    with ab.Graph(dtype="float64"), np.errstate(divide="ignore", invalid="ignore"):
        x = p if of == "parameter" else -(-p)  # noqa: B002
        for _ in range(2):
            p._reset_gradient()
            y = function(x, c)
            close(y.npvalue(), function(array, z), EXACT)
            ab.sum_elems(y).backward()
            close(p.grad_as_array(), np.full((2, 2), right), EXACT)
            p._reset_gradient()
            y = function(c, x)
            close(y.npvalue(), function(z, array), EXACT)
            ab.sum_elems(y).backward()
            close(p.grad_as_array(), left * np.ones((2, 2)), EXACT)


def test_reflected_operators_tell_expressions_from_numbers():
    """Called by name, as Python does not: the type of the node must not be kept as that of a number and the expression."""
    ab.configure(dtype="float64")
    ab.renew_cg()
    x, y = ab.inputVector([1.0, 2.0, 4.0]), ab.inputVector([3.0, 5.0, 7.0])
    for name, function in {"mul": operator.mul, "add": operator.add, "sub": operator.sub, "truediv": operator.truediv}.items():
        close(getattr(x, f"__r{name}__")(y).npvalue(), function(y.npvalue(), x.npvalue()), EXACT)
        for _ in range(2):
            close(function(2.0, x).npvalue(), function(2.0, x.npvalue()), EXACT)


def test_constants_with_different_zeros_are_different():
    x, y, z = ab.zeros((2,)), ab.constant((2,), -0.0), ab.constant((2,), -0.0)
    assert not np.signbit(x.npvalue()).any() and np.signbit(y.npvalue()).all() and z.index == y.index


def test_weights_of_an_lstm_as_constants_get_no_gradient():
    model = ab.ParameterCollection(dtype="float64")
    lstm, p = ab.VanillaLSTMBuilder(2, 3, 4, model), model.add_parameters(3)
    weights, gradients = [w for layer in lstm.get_parameters() for w in layer], {}
    for update in (True, False):
        with ab.Graph(dtype="float64"):
            ab.sum_elems(lstm.initial_state(update=update).transduce([p, -p, p])[-1]).backward()
        assert all(w.grad_as_array().any() == update for w in weights)
        gradients[update] = p.grad_as_array()
        for w in (p, *weights):
            w._reset_gradient()
    close(gradients[False], gradients[True], EXACT)


@both_dtypes
def test_values_at_the_edges(dtype):
    ab.configure(dtype=dtype)
    ab.renew_cg()
    x = ab.inputVector([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, np.nan])
    with np.errstate(all="ignore"):
        for name, function in {"tanh": np.tanh, "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "square": np.square}.items():
            close(public(name)(x).npvalue(), function(x.npvalue()), 1e-12 if dtype == "float64" else 1e-6, name)
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    close(ab.logistic(x).npvalue(), [0, 1 / (1 + np.e), 0.5, 0.5, np.e / (1 + np.e), 1, np.nan], tolerance)
    close(ab.rectify(x).npvalue(), [0, 0, 0, 0, 1, np.inf, np.nan], 0)
    large = ab.inputVector([1000.0, 0.0, -1000.0])
    close(ab.softmax(large).npvalue(), [1, 0, 0], 0)
    close(ab.log_softmax(large).npvalue(), [0, -1000, -2000], 0)
    close(ab.pickneglogsoftmax(large, 2).npvalue(), [2000], 0)


def test_gradient_of_rectify_at_zero_is_zero():
    p = ab.ParameterCollection().add_parameters(3, init=np.array([-1.0, 0.0, 1.0]))
    ab.sum_elems(ab.rectify(p)).backward()
    np.testing.assert_array_equal(p.grad_as_array(), [0, 0, 1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dropout_masks_follow_from_the_seed_under_every_policy(dtype):
    def masks(policy):
        ab.reset_random_seed(7)
        with ab.Graph(dtype=dtype, policy=policy):
            x = ab.ones((50,))
            ys = [ab.dropout(ab.tanh(x) if k % 2 else x, 0.5) for k in range(6)]
            ab.esum(ys).forward()
            return np.stack([y.npvalue() != 0 for y in ys])

    first = masks("none")
    assert 0.3 < first.mean() < 0.7 and len({m.tobytes() for m in first}) == 6
    for policy in POLICIES:
        np.testing.assert_array_equal(masks(policy), first)


def test_dropout_keeps_the_mean_and_draws_anew_for_each_node():
    x = ab.ones((20_000,))
    for p in (0.1, 0.5, 0.8):
        a, b = ab.dropout(x, p).npvalue(), ab.dropout(x, p).npvalue()
        assert set(np.unique(a)) == {0.0, np.float64(np.float32(1) / (np.float32(1) - np.float32(p)))}
        assert abs(a.mean() - 1) < 0.1 and abs((a == 0).mean() - p) < 0.02 and abs(((a == 0) & (b == 0)).mean() - p * p) < 0.02


@pytest.fixture
def cubed(monkeypatch):
    """Make an op x³ without its gradient, for a test."""

    def make(**changes):
        monkeypatch.setattr("autobatch.kernels._op.OPS", {})  # a record enters itself there
        record = {"reference": lambda x: x**3, "samples": one_tensor(0.5, 2.0), "path": __file__, **changes}
        op = elementwise("cubed", record.pop("doc", "x³"), lambda x: x * x * x, [None], **record)
        monkeypatch.setitem(PUBLIC, "cubed", lambda x: record_node(op, (x,)))
        return op

    return make


def test_an_op_that_lacks_something_fails(cubed):
    """The laws are no laws if nothing can break them: without gradient, docstring, a true reference, a domain."""
    op = cubed()

    @examples(10)
    @given(plans(op))
    def forward(plan):
        forward_equals_reference(plan, "float64")

    @examples(10)
    @given(plans(op))
    def gradient(plan):
        gradient_equals_differences(plan)

    forward()
    with pytest.raises(AssertionError, match="cubed: <J'w, v> = "):
        gradient()
    op = cubed(reference=lambda x: x**2)
    with pytest.raises(AssertionError, match="cubed"):
        given(plans(op))(lambda plan: forward_equals_reference(plan, "float64"))()
    with pytest.raises(InternalError, match="'cubed' has no docstring"):
        cubed(doc=" ")
    for missing in ("reference", "samples"):
        with pytest.raises((TypeError, AssertionError)):
            op = cubed(**{missing: None})
            assert callable(getattr(op, missing))


def test_every_public_entry_names_an_op():
    assert set(PUBLIC) <= set(OPS)

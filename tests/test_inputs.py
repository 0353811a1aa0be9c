"""Inputs: what they hold, what can be changed later, devices, errors."""

import numpy as np
import pytest

import autobatch as ab
from autobatch.schedule import POLICIES

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def exact():
    ab.configure(dtype="float64")
    ab.renew_cg()


# Values ---------------------------------------------------------------------------------------------------------------


def test_flat_numbers_column_by_column():
    np.testing.assert_array_equal(ab.inputTensorTranspose(np.arange(6.0), (2, 3)).npvalue(), [[0, 2, 4], [1, 3, 5]])
    e = ab.inputTensorTranspose([0, 1, 2, 3, 4, 5], 3, 2)
    assert e.dim() == ((3,), 2)
    np.testing.assert_array_equal(e.npvalue(), [[0, 3], [1, 4], [2, 5]])
    assert ab.inputTensorTranspose([1.0, 2.0]).dim() == ((2,), 1)
    with pytest.raises(ab.ArgumentError, match="set: this input is fixed"):
        e.set([0] * 6)
    x = RNG.normal(size=(2, 3, 2))
    again = ab.inputTensorTranspose(ab.inputTensor(x, batched=True).vec_value(), (2, 3), 2)
    np.testing.assert_array_equal(again.npvalue(), x)


def test_matrices_that_dynet_has_given_up():
    e = ab.inputMatrix([1, 2, 3, 4, 5, 6], (2, 3))
    np.testing.assert_array_equal(e.npvalue(), [[1, 3, 5], [2, 4, 6]])
    z = ab.matInput(2, 3)
    np.testing.assert_array_equal(z.npvalue(), np.zeros((2, 3)))
    for m in (e, z):
        m.set([6, 5, 4, 3, 2, 1])
        np.testing.assert_array_equal(m.npvalue(), [[6, 4, 2], [5, 3, 1]])


def test_sparse_inputs():
    e = ab.sparse_inputTensor([[0, 1, 0], [1, 2, 1]], [5.0, 6.0, 7.0], (2, 3))
    np.testing.assert_array_equal(e.npvalue(), [[0, 7, 0], [0, 0, 6]])  # the last one of a place counts
    e = ab.sparse_inputTensor(np.array([[0, 2], [1, 0]]), np.array([5, 6]), (3, 2), batched=True, defval=-1)
    assert e.dim() == ((3,), 2)
    np.testing.assert_array_equal(e.npvalue(), [[-1, 5], [-1, -1], [6, -1]])
    np.testing.assert_array_equal(ab.sparse_inputTensor([[]], [], (2,), defval=3).npvalue(), [3, 3])
    assert ab.sparse_inputTensor([[1]], [2.0], (3,), batched=True).dim() == ((1,), 3)
    assert ab.sparse_inputTensor([[1]], [2.0], 3).dim() == ((3,), 1)


def test_one_hot():
    np.testing.assert_array_equal(ab.one_hot(3, 1).npvalue(), [0, 1, 0])
    np.testing.assert_array_equal(ab.one_hot(3, [1, 2, 1]).npvalue(), [[0, 0, 0], [1, 0, 1], [0, 1, 0]])
    assert ab.one_hot(3, [2]).dim() == ((3,), 1) and ab.one_hot(3, np.int64(2)).value() == [0, 0, 1]


def test_sparse_inputs_of_one_shape_join_others_in_one_batch():
    w = ab.ParameterCollection(dtype="float64").add_parameters((2, 3))
    with ab.Graph(dtype="float64") as graph:
        ys = [w * ab.one_hot(3, k) for k in range(3)] + [w * ab.inputVector([1.0, 2.0, 3.0])]
        ab.forward(ys)
        assert graph.batches == 1
        np.testing.assert_array_equal(np.stack([y.npvalue() for y in ys[:3]], axis=1), w.as_array())


ERRORS = {
    r"inputTensorTranspose: 5 numbers for \(2,3\)\n  expected  6": lambda: ab.inputTensorTranspose(np.zeros(5), (2, 3)),
    "inputTensorTranspose: a NumPy array of shape .2, 3.*flat": lambda: ab.inputTensorTranspose(np.zeros((2, 3)), (2, 3)),
    "inputTensorTranspose: .* is no array of numbers": lambda: ab.inputTensorTranspose("ab"),
    "inputTensorTranspose: the batch size is 0": lambda: ab.inputTensorTranspose([1.0], (1,), 0),
    "inputMatrix: 3 numbers for": lambda: ab.inputMatrix([1, 2, 3], (2, 2)),
    "matInput: dims": lambda: ab.matInput(2, 0),
    "sparse_inputTensor: 1 lists of indices for a shape of 2": lambda: ab.sparse_inputTensor([[0]], [1.0], (2, 3)),
    "sparse_inputTensor: 1 indices of dim 1 for 2 values": lambda: ab.sparse_inputTensor([[0, 1], [0]], [1.0, 2.0], (2, 3)),
    "sparse_inputTensor: an index of dim 0 is 2": lambda: ab.sparse_inputTensor([[2], [0]], [1.0], (2, 3)),
    "sparse_inputTensor: an index of dim 1 is -1": lambda: ab.sparse_inputTensor([[1], [-1]], [1.0], (2, 3)),
    "sparse_inputTensor: an index of dim 0 is 0.5": lambda: ab.sparse_inputTensor([[0.5]], [1.0], (2,)),
    "sparse_inputTensor: the values are": lambda: ab.sparse_inputTensor([[0]], [[1.0]], (2,)),
    "sparse_inputTensor: dims": lambda: ab.sparse_inputTensor([[0]], [1.0], (0,)),
    "sparse_inputTensor: the default is": lambda: ab.sparse_inputTensor([[0]], [1.0], (2,), defval="a"),
    "one_hot: an index is 3": lambda: ab.one_hot(3, 3),
    "one_hot: an index is -1": lambda: ab.one_hot(3, [0, -1]),
    "one_hot: the list of indices is empty": lambda: ab.one_hot(3, []),
    "one_hot: dims": lambda: ab.one_hot(0, 0),
    "one_hot: the size is": lambda: ab.one_hot("3", 0),
}


@pytest.mark.parametrize("message", ERRORS)
def test_a_bad_call(message):
    nodes = len(ab.current_graph())
    with pytest.raises((ValueError, TypeError), match="(?s)" + message):
        ERRORS[message]()
    assert len(ab.current_graph()) == nodes


# Devices --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["", "CPU"])
def test_to_the_one_device(device):
    p = ab.ParameterCollection(dtype="float64").add_parameters((2, 2))
    y = ab.to_device(ab.square(p), device)
    np.testing.assert_array_equal(y.npvalue(), p.as_array() ** 2)
    ab.sum_elems(ab.cmult(y, ab.to_device(p, device))).backward()
    np.testing.assert_allclose(p.grad_as_array(), 3 * p.as_array() ** 2, rtol=1e-14)
    assert ab.inputVector([1.0], device=device).value() == 1.0


def test_a_device_that_does_not_exist():
    x = ab.scalarInput(1.0)
    calls = {
        "to_device": lambda d: ab.to_device(x, d),
        "inputTensor": lambda d: ab.inputTensor([1.0], device=d),
        "inputVector": lambda d: ab.inputVector([1.0], d),
        "vecInput": lambda d: ab.vecInput(2, d),
        "scalarInput": lambda d: ab.scalarInput(2, d),
        "zeros": lambda d: ab.zeros(2, device=d),
        "ones": lambda d: ab.ones(2, device=d),
        "constant": lambda d: ab.constant(2, 1.5, device=d),
        "inputTensorTranspose": lambda d: ab.inputTensorTranspose([1.0], device=d),
        "sparse_inputTensor": lambda d: ab.sparse_inputTensor([[0]], [1.0], (2,), device=d),
        "one_hot": lambda d: ab.one_hot(2, 1, d),
    }
    for name, call in calls.items():
        for device in ("GPU:0", "cpu", 0):
            with pytest.raises(ab.DeviceError, match=f"^{name}: there is no device {device!r}\n  expected  'CPU'"):
                call(device)
    with pytest.raises(ab.OperandError):
        ab.to_device([1.0], "CPU")


# Changing them --------------------------------------------------------------------------------------------------------


def values_and_gradient(p, results):
    """Compute Σ of the squares of all results and its gradient, from the start."""
    p._reset_gradient()
    ab.esum([ab.sum_batches(ab.squared_distance(y, ab.zeros(*y.dim()))) for y in results]).backward()
    return [y.npvalue() for y in results], p.grad_as_array()


SHAPES = [
    ((5,), 1, 0),
    ((5,), 3, 0),
    ((3, 4), 1, 0),
    ((3, 4), 1, 1),
    ((3, 4), 2, 0),
    ((3, 4), 2, 1),
    ((1, 4), 1, 1),
    ((2, 3, 4), 1, 2),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("dims", "batch", "dim"), SHAPES)
def test_another_index_to_pick(dims, batch, dim, policy):
    """As if the whole graph were recorded anew with the other index, in both directions; views and copies."""
    array = RNG.normal(size=(*dims, batch))
    p = ab.ParameterCollection(dtype="float64").add_parameters(1, init=array.ravel(order="F"))
    with ab.Graph(dtype="float64", policy=policy):
        for computed in (False, True):
            x = ab.reshape(-p if computed else p, dims, batch)
            sign = -1 if computed else 1
            e, other = ab.pick(x, 1, dim), ab.pick(x, 0, dim)
            batched = ab.pick_batch(x, [0, 1, 1][: batch if batch > 1 else 3], dim)
            results = [e, ab.square(e), other, batched, ab.tanh(batched)]
            ab.forward(results)
            for k in (2, 0, 1, dims[dim] - 1):
                many = [k, 2, 0][: batch if batch > 1 else 3]
                e.set_index(k)
                batched.set_index(many)
                fresh = [ab.pick(x, k, dim), ab.pick_batch(x, many, dim)]
                expected = [fresh[0], ab.square(fresh[0]), other, fresh[1], ab.tanh(fresh[1])]
                got, gradient = values_and_gradient(p, results)
                wanted, expected_gradient = values_and_gradient(p, expected)
                for a, b in zip(got, wanted, strict=True):
                    np.testing.assert_array_equal(a, b)
                np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-12)
                taken = np.take(sign * array, k, axis=dim).reshape(got[0].shape)
                np.testing.assert_array_equal(got[0], taken)


def test_another_index_of_a_parameter_an_item_and_in_an_immediate_graph():
    p = ab.ParameterCollection(dtype="float64").add_parameters(1, init=np.arange(4.0))
    e, item = ab.pick(p, 1), p[2]
    assert ab.values([e, item]) == [1, 2]
    e.set_index(3)
    item.set_index(np.int64(0))
    assert ab.values([e, item]) == [3, 0]
    ab.renew_cg(immediate_compute=True)
    e = ab.pick(ab.inputVector([5.0, 6.0]), 1)
    y = ab.square(e)
    e.set_index(0)
    assert y.value() == 25.0


@pytest.mark.parametrize("policy", POLICIES)
def test_other_rows_of_a_table(policy):
    table = ab.ParameterCollection(dtype="float64").add_lookup_parameters((6, 2), init=np.arange(12.0).reshape(6, 2))
    with ab.Graph(dtype="float64", policy=policy):
        e, one = ab.lookup_batch(table, [1, 4, 1]), ab.lookup(table, 5)
        loss = ab.sum_batches(ab.squared_distance(e, one))
        ab.forward([loss])
        e.set([0, 2, 0])
        one.set(3)
        np.testing.assert_array_equal(e.npvalue(), table.as_array()[[0, 2, 0]].T)
        assert loss.value() == 2 * 72 + 8
        loss.backward()
        gradient = np.zeros((6, 2))
        gradient[0], gradient[2], gradient[3] = -24, -4, 28
        np.testing.assert_array_equal(table.grad_as_array(), gradient)
        assert table.touched.tolist() == [1, 0, 1, 1, 0, 0]
        frozen = table.batch([1], update=False)
        frozen.set([2])
        assert frozen.value() == [4.0, 5.0]


def test_indices_that_make_no_sense_change_nothing():
    x = ab.inputTensor(np.arange(6.0).reshape(3, 2))
    e, b = ab.pick(x, 1), ab.pick_batch(x, [1, 2])
    table = ab.ParameterCollection(dtype="float64").add_lookup_parameters((3, 1), init=np.arange(3.0))
    rows = ab.lookup_batch(table, [1, 2])
    before = ab.npvalues([e, b, rows])
    for call, kind in [
        (lambda: e.set_index(3), ab.IndexRangeError),
        (lambda: e.set_index(-1), ab.NegativeIndexError),
        (lambda: e.set_index([1]), ab.OperandError),
        (lambda: b.set_index([1, 3]), ab.IndexRangeError),
        (lambda: b.set_index([1]), ab.ArgumentError),
        (lambda: b.set_index(1), ab.OperandError),
        (lambda: rows.set([1, 3]), ab.IndexRangeError),
        (lambda: rows.set([-1, 1]), ab.NegativeIndexError),
        (lambda: rows.set([1]), ab.ArgumentError),
        (lambda: rows.set(1), ab.OperandError),
        (lambda: rows.set([0.5, 1]), ab.OperandError),
    ]:
        with pytest.raises(kind, match="set"):
            call()
    for a, c in zip(before, ab.npvalues([e, b, rows]), strict=True):
        np.testing.assert_array_equal(a, c)
    ab.renew_cg()
    for call in (lambda: e.set_index(0), lambda: b.set_index([0, 0]), lambda: rows.set([0, 0])):
        with pytest.raises(ab.StaleExpressionError):
            call()


def test_whole_floats_and_arrays_of_one_number_are_integers():
    """As in DyNet: sizes from Python 2's division, labels from arrays."""
    model = ab.ParameterCollection()
    table, e, M = model.add_lookup_parameters((5, 2)), ab.inputVector([1, 2, 3, 4]), ab.inputTensor(np.arange(9).reshape(3, 3))
    for one in (1.0, np.float64(1), np.float32(1), np.array([1]), np.array([[1]]), np.array(1.0)):
        assert ab.pick(e, one).value() == 2
        assert table[one].npvalue().tolist() == table[1].npvalue().tolist() == ab.lookup(table, one).npvalue().tolist()
        assert ab.pickneglogsoftmax(e, one).value() == ab.pickneglogsoftmax(e, 1).value()
        assert ab.hinge(e, one).value() == ab.hinge(e, 1).value()
    assert ab.pickrange(e, 1.0, 3.0).value() == [2, 3]
    assert ab.lookup_batch(table, np.array([[1], [2]])).dim() == ((2,), 2)
    np.testing.assert_array_equal(ab.select_cols(M, np.array([1.0, 2.0])).npvalue(), np.arange(9).reshape(3, 3)[:, 1:])
    assert ab.concatenate([M, M], d=1.0).dim()[0] == (3, 6)
    assert ab.reshape(ab.zeros(6), (6 / 2, 2)).dim()[0] == (3, 2)
    assert {ab.zeros(6 / 2).dim(), ab.vecInput(6 / 2).dim(), ab.random_normal(6 / 2).dim()} == {((3,), 1)}
    assert ab.LSTMBuilder(1, 4, 6 / 2, model).spec[2] == 3
    for bad in (1.5, np.nan, np.inf, np.array([1, 2]), np.array([1.5]), np.array(["1"]), "1", None):
        with pytest.raises(TypeError):
            ab.pick(e, bad)
    assert ab.inputVector(map(float, range(3))).value() == [0, 1, 2]


def test_the_first_two_of_four_strides():
    """As TensorFlow writes them, and DyNet takes them."""
    x, f = ab.inputTensor(np.ones((4, 6, 1))), ab.inputTensor(np.ones((2, 2, 1, 3)))
    assert ab.conv2d(x, f, (1, 2, 1, 1)).dim() == ab.conv2d(x, f, (1, 2)).dim()
    assert ab.maxpooling2d(x, [2, 3, 1], [1, 2, 1, 1]).dim() == ab.maxpooling2d(x, [2, 3], [1, 2]).dim()


def test_rows_of_an_expression_are_inputs():
    model = ab.ParameterCollection()
    state = ab.GRUBuilder(1, 4, 3, model).initial_state()
    M = ab.inputTensor(np.arange(20).reshape(5, 4) / 10)
    for found, expected in zip(state.transduce(M), state.transduce([M[k] for k in range(5)]), strict=True):
        np.testing.assert_allclose(found.npvalue(), expected.npvalue(), rtol=1e-6)
    assert len(state.add_inputs(M)) == 5

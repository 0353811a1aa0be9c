"""Joining, reshaping, selecting: errors, edges, and what DyNet gets wrong or refuses."""

import contextlib

import numpy as np
import pytest

import autobatch as ab

rng = np.random.default_rng(3)


def parameter(array):
    """Return a float64 parameter with these numbers."""
    return ab.ParameterCollection(dtype="float64").add_parameters(array.shape, init=array)


def batched(array):
    """Return an input whose last axis is the minibatch."""
    return ab.inputTensor(array, batched=True)


@pytest.fixture(autouse=True)
def graph():
    with ab.Graph(dtype="float64") as graph:
        yield graph


def gradient_of(y, p, weights):
    """Return the gradient of Σ weights ∘ y at a parameter."""
    flat = ab.reshape(y, (weights.size,))
    ab.dot_product(flat, ab.inputVector(weights.ravel(order="F"))).backward()
    return p.grad_as_array()


# Lists of indices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [(5,), (5, 3), (5, 2, 3), (5, 1, 2, 2)])
@pytest.mark.parametrize("rows", [[4], [0, 0, 0], [3, 1, 3, 0, 4, 2, 1], list(range(5)) * 50])
def test_select_rows_of_any_rank_with_repeats(dims, rows):
    array = rng.uniform(-1, 1, dims)
    p = parameter(array)
    y = ab.select_rows(p, rows)
    assert y.dim() == ((len(rows), *dims[1:]), 1)
    np.testing.assert_array_equal(y.npvalue(), array[rows])
    weights = rng.uniform(-1, 1, (len(rows), *dims[1:]))
    expected = np.zeros(dims)
    for k, r in enumerate(rows):
        expected[r] += weights[k]
    np.testing.assert_allclose(gradient_of(y, p, weights), expected, atol=1e-12)


def test_select_cols_with_repeats_in_each_element_of_a_minibatch():
    array = rng.uniform(-1, 1, (2, 4, 3))
    p = parameter(array.ravel(order="F"))
    y = ab.select_cols(ab.reshape(p, (2, 4), 3), [3, 0, 3])
    assert y.dim() == ((2, 3), 3)
    np.testing.assert_array_equal(y.npvalue(), array[:, [3, 0, 3]])
    weights, expected = rng.uniform(-1, 1, (2, 3, 3)), np.zeros((2, 4, 3))
    for k, c in enumerate([3, 0, 3]):
        expected[:, c] += weights[:, k]
    np.testing.assert_allclose(gradient_of(y, p, weights), expected.ravel(order="F"), atol=1e-12)


def test_elements_of_a_minibatch():
    array = rng.uniform(-1, 1, (2, 3, 4))
    x = batched(array)
    for v in range(4):
        assert ab.pick_batch_elem(x, v).dim() == ((2, 3), 1)
        np.testing.assert_array_equal(ab.pick_batch_elem(x, np.int64(v)).npvalue(), array[..., v])
    several = ab.pick_batch_elems(x, np.array([3, 3, 1, 0, 2, 3]))
    assert several.dim() == ((2, 3), 6)
    np.testing.assert_array_equal(several.npvalue(), array[..., [3, 3, 1, 0, 2, 3]])
    alone = ab.inputVector([1.0, 2.0])
    assert ab.pick_batch_elem(alone, 0).vec_value() == [1, 2] == ab.pick_batch_elems(alone, [0]).vec_value()
    assert ab.pick_batch_elems(alone, [0, 0, 0]).dim() == ((2,), 3)


def test_pick_batch_elem_is_a_view_and_passes_its_gradient():
    p = parameter(np.arange(6.0))
    x = ab.reshape(p, (2,), 3)
    ab.sum_elems(ab.esum([ab.pick_batch_elem(x, 1), 3 * ab.pick_batch_elem(x, 1), ab.pick_batch_elem(x, 2)])).backward()
    np.testing.assert_array_equal(p.grad_as_array(), [0, 0, 4, 4, 1, 1])


def test_other_indices_run_as_one_batch(graph):
    xs = [ab.inputTensor(rng.uniform(-1, 1, (4, 4))) for _ in range(5)]
    ys = [ab.select_rows(x, [k % 4, (k + 1) % 4]) for k, x in enumerate(xs)]
    ys += [ab.select_cols(x, [k % 4, 0]) for k, x in enumerate(xs)]
    ab.forward(ys)
    assert graph.execution.batches == 2


@pytest.mark.parametrize("function", [ab.select_rows, ab.select_cols, ab.pick_batch_elems], ids=lambda f: f.__name__)
def test_errors_of_lists_of_indices(function):
    x, name = batched(rng.uniform(-1, 1, (3, 3, 3))), function.__name__
    with pytest.raises(ab.NegativeIndexError, match=f"{name}: an index is -1\n  expected  an index from 0 to 2"):
        function(x, [0, -1])
    with pytest.raises(OverflowError):
        function(x, [-4])
    with pytest.raises(ab.IndexRangeError, match=f"{name}: an index is 3, out of range"):
        function(x, [0, 3])
    with pytest.raises(ab.ArgumentError, match=f"{name}: the list of indices is empty"):
        function(x, [])
    for wrong in (1, "01", None, np.array(1)):
        with pytest.raises(TypeError, match=f"{name}: the indices are .*\n  expected  a list of integers"):
            function(x, wrong)
    for wrong in ([0.5], ["a"], [None]):
        with pytest.raises(TypeError, match=f"{name}: an index is .*\n  expected  an integer"):
            function(x, wrong)
    with pytest.raises(TypeError, match=f"{name}: the argument is a NumPy array"):
        function(np.ones((3, 3)), [0])


def test_errors_of_select_cols_and_pick_batch_elem():
    for dims in [(3,), (3, 2, 2)]:
        with pytest.raises(ab.ShapeError, match=r"select_cols: . dims\n  got .*\n  expected  a matrix \(r,c\)"):
            ab.select_cols(ab.inputTensor(np.ones(dims)), [0])
    x = batched(np.ones((2, 3)))
    with pytest.raises(ValueError, match="pick_batch_elem: the index is 3, out of range"):
        ab.pick_batch_elem(x, 3)
    ab.pick_batch_elem(x, 2)
    for _ in range(2):  # also when the type is known
        with pytest.raises(ab.IndexRangeError, match="expected  an index from 0 to 2"):
            ab.pick_batch_elem(x, 3)
        with pytest.raises(ab.NegativeIndexError):
            ab.pick_batch_elem(x, -1)
    with pytest.raises(TypeError, match=r"pick_batch_elem: the index is 1\.5"):
        ab.pick_batch_elem(x, 1.5)
    with pytest.raises(TypeError, match="pick_batch_elem: the argument is a list"):
        ab.pick_batch_elem([1.0], 0)


def test_stale_operands():
    x = batched(np.ones((2, 2, 2)))
    ab.pick_batch_elem(x, 0)
    ab.renew_cg()
    for call in (
        lambda: ab.pick_batch_elem(x, 0),
        lambda: ab.pick_batch_elems(x, [0]),
        lambda: ab.select_rows(x, [0]),
        lambda: ab.fold_rows(x),
        lambda: ab.kmh_ngram(x, 1),
    ):
        with pytest.raises(ab.StaleExpressionError):
            call()


# Sums of neighbours ---------------------------------------------------------------------------------------------------


def test_fold_rows_of_each_element_of_a_minibatch():
    array = rng.uniform(-1, 1, (6, 3, 2))
    for n in (1, 2, 3, 6):
        y = ab.fold_rows(batched(array), n)
        assert y.dim() == ((6 // n, 3), 2)
        expected = np.zeros((6 // n, 3, 2))
        for i in range(6):
            expected[i // n] += array[i]
        np.testing.assert_allclose(y.npvalue(), expected, atol=1e-12)
    assert ab.fold_rows(ab.inputVector([1.0, 2.0, 3.0, 4.0])).dim() == ((2, 1), 1)
    assert ab.fold_rows(ab.inputVector([1.0, 2.0, 3.0, 4.0])).vec_value() == [3, 7]


def test_errors_of_fold_rows():
    x = ab.inputTensor(np.ones((5, 2)))
    with pytest.raises(ab.ShapeError, match=r"fold_rows: 5 rows in groups of 2\n  got       \(5,2\)\n  expected  .* 2 divides"):
        ab.fold_rows(x)
    for n in (0, -5):
        with pytest.raises(ab.ArgumentError, match=f"fold_rows: nrows is {n}\n"):
            ab.fold_rows(x, n)
    with pytest.raises(ab.ShapeError, match="fold_rows: 3 dims"):
        ab.fold_rows(ab.inputTensor(np.ones((4, 2, 2))))
    with pytest.raises(TypeError, match=r"fold_rows: nrows is 2\.5"):
        ab.fold_rows(x, 2.5)


def test_kmh_ngram_of_each_element_of_a_minibatch():
    array = rng.uniform(-1, 1, (2, 5, 3))
    for n in range(1, 6):
        y = ab.kmh_ngram(batched(array), n)
        assert y.dim() == ((2, 6 - n), 3)
        for j in range(6 - n):
            np.testing.assert_allclose(y.npvalue()[:, j], sum(array[:, j + k] for k in range(n)), atol=1e-12)


def test_errors_of_kmh_ngram():
    x = ab.inputTensor(np.ones((2, 3)))
    for n in (0, -1, 4):
        with pytest.raises(ab.ShapeError, match=f"kmh_ngram: n is {n} and there are 3 columns\n.*\n  expected  n from 1 to 3"):
            ab.kmh_ngram(x, n)
    for dims in [(3,), (2, 3, 2)]:
        with pytest.raises(ab.ShapeError, match=r"kmh_ngram: . dims"):
            ab.kmh_ngram(ab.inputTensor(np.ones(dims)), 1)


def test_nan_and_infinity_stay_where_they_are_summed():
    array = np.array([[1.0, np.nan, 2.0], [np.inf, 3.0, 4.0]])
    x = ab.inputTensor(array)
    np.testing.assert_array_equal(ab.fold_rows(x).npvalue(), [[np.inf, np.nan, 6.0]])
    np.testing.assert_array_equal(ab.kmh_ngram(x, 2).npvalue(), [[np.nan, np.nan], [np.inf, 7.0]])
    np.testing.assert_array_equal(ab.select_cols(x, [1, 0]).npvalue(), array[:, [1, 0]])


# Joining --------------------------------------------------------------------------------------------------------------


def test_concatenate_along_the_next_new_dim_and_with_missing_dims():
    a, b, c = rng.uniform(-1, 1, (3,)), rng.uniform(-1, 1, (3, 2)), rng.uniform(-1, 1, (3, 1))
    x, y, z = (ab.inputTensor(v) for v in (a, b, c))
    np.testing.assert_array_equal(ab.concatenate([x, x], 1).npvalue(), np.stack([a, a], 1))
    np.testing.assert_array_equal(ab.concatenate([x, y, z], 1).npvalue(), np.concatenate([a[:, None], b, c], 1))
    np.testing.assert_array_equal(ab.concatenate([y, y, y], 2).npvalue(), np.stack([b, b, b], 2))
    assert ab.concatenate([x, z]).dim() == ((6,), 1) and ab.concatenate([z, x]).dim() == ((6, 1), 1)
    many = rng.uniform(-1, 1, (3, 4))
    np.testing.assert_array_equal(
        ab.concatenate([x, batched(many)], 1).npvalue(), np.stack([np.broadcast_to(a[:, None], (3, 4)), many], 1)
    )
    with pytest.raises(ab.ShapeError, match=r"concatenate: dim 2 does not exist\n.*\n  expected  d from 0 to 1"):
        ab.concatenate([x, x], 2)
    with pytest.raises(ab.ShapeError, match="dim 5 does not exist"):
        ab.concatenate([y, y], 5)
    with pytest.raises(ab.ShapeError, match="batch sizes 2 and 3 do not fit"):
        ab.concatenate([batched(np.ones((2, 2))), batched(np.ones((2, 3)))])


# On a card ------------------------------------------------------------------------------------------------------------


def rows_of(table):
    """Return two look-ups of many rows, in which indices repeat."""
    choose = np.random.default_rng(4)
    return [ab.lookup_batch(table, [7, 3, 7, *choose.integers(40, size=70).tolist()]) for _ in range(2)]


LONG = {
    "concatenate of vectors": ([(70,), (1,), (90,)], lambda *xs: ab.concatenate(list(xs))),
    "concatenate of numbers": ([(1,)] * 75, lambda *xs: ab.concatenate(list(xs))),
    "concatenate of short columns": ([(2, 40), (1, 40)], lambda x, y: ab.concatenate([x, y])),
    "concatenate with one for all": (
        [(3, 70), (2,)],
        lambda x, y: ab.concatenate([ab.reshape(x, (3,), 70), y]),
    ),
    "concatenate with a long one for all": (
        [(150,), (70,)],
        lambda x, y: ab.concatenate([ab.reshape(x, (75,), 2), y]),
    ),
    "transpose": ([(9, 21)], ab.transpose),
    "transpose of three": ([(5, 7, 6)], lambda x: ab.transpose(x, [2, 0, 1])),
    "pick": ([(3, 80)], lambda x: ab.pick(x, 1)),
    "pick_batch": ([(240,)], lambda x: ab.pick_batch(ab.reshape(x, (3,), 80), [0, 2, 1, 1] * 20)),
    "pick_batch of one": ([(4, 3)], lambda x: ab.pick_batch(x, [2, 0, 2, 2, 3] * 16)),
    "strided_select": ([(30, 9)], lambda x: ab.strided_select(x, [2, 3], [1, 0], [30, 9])),
    "select_rows": ([(40, 3)], lambda x: ab.select_rows(x, [3, 3, 0, 39] * 6)),
    "select_cols": ([(40, 5)], lambda x: ab.select_cols(x, [4, 0, 4])),
    "pick_batch_elems": ([(80,)], lambda x: ab.pick_batch_elems(ab.reshape(x, (2,), 40), [39, 0, 39] * 9)),
    "lookup_batch": (None, rows_of),
}


@pytest.mark.parametrize("name", LONG)
def test_long_ones_on_a_card(name):
    """More numbers than lanes, indices that repeat: as on a processor, to the last bit but where sums have another order."""
    pytest.importorskip("greenlet")
    from fake_driver import simulated_card

    shapes, function = LONG[name]
    arrays, table, results = [rng.uniform(-1, 1, s) for s in shapes or []], rng.uniform(-1, 1, (40, 5)), []
    for machine in (contextlib.nullcontext, simulated_card):
        with machine(), ab.Graph(dtype="float64"):
            if shapes is None:
                leaves = [ab.ParameterCollection(dtype="float64").lookup_parameters_from_numpy(table)]
                ys = function(*leaves)
            else:
                leaves = [parameter(a) for a in arrays]
                ys = [function(*leaves), function(*[2 * x for x in leaves])]
            values = [y.npvalue() for y in ys]
            ab.sum_elems(ab.esum([ab.sum_batches(ab.cmult(y, y)) for y in ys])).backward()
            results.append([*values, *(p.grad_as_array() for p in leaves)])
    for expected, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-13 * max(1, np.abs(expected).max()))

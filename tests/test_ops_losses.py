"""The softmax family and losses, where the laws do not look: errors, ties, kinks, NaN and infinities, DyNet's defects."""

import itertools
import math

import numpy as np
import pytest
from laws import EXACT, close
from scipy import special

import autobatch as ab

INF, NAN = np.inf, np.nan
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def exact():
    ab.configure(dtype="float64")
    ab.renew_cg()


def parameter(numbers):
    return ab.ParameterCollection(dtype="float64").add_parameters(1, init=np.asarray(numbers, float))


def gradients(loss, *parameters):
    """Return the gradients of the sum of all numbers of an expression."""
    loss = ab.sum_elems(loss)
    (ab.sum_batches(loss) if loss.dim()[1] > 1 else loss).backward()
    return [p.grad_as_array() for p in parameters]


# log_softmax over some ids --------------------------------------------------------------------------------------------


def test_restricted_log_softmax():
    p = parameter([[1.0, 5.0], [2.0, 0.0], [300.0, 7.0]])
    y = ab.log_softmax(p, [1, 0])
    expected = np.full((3, 2), -INF)
    expected[:2] = special.log_softmax(p.as_array()[:2], axis=0)
    close(y.npvalue(), expected, EXACT)
    (g,) = gradients(ab.pick_range(y, 0, 1), p)
    close(g, [[1 - np.exp(expected[0, 0]), 1 - np.exp(expected[0, 1])], -np.exp(expected[1]), [0, 0]], EXACT)
    np.testing.assert_array_equal(ab.log_softmax(p, [2]).npvalue(), [[-INF, -INF], [-INF, -INF], [0, 0]])
    np.testing.assert_array_equal(ab.log_softmax(p, [1, 0, 1, 1]).npvalue(), y.npvalue())
    close(ab.log_softmax(p, None).npvalue(), ab.log_softmax(p, range(3)).npvalue(), EXACT)


def test_restricted_log_softmax_of_each_element_and_of_others_in_one_batch():
    x = np.random.default_rng(0).normal(size=(4, 3))
    with ab.Graph(dtype="float64") as graph:
        e = ab.inputTensor(x, batched=True)
        ys = [ab.log_softmax(e, ids) for ids in ([0, 1], [3, 1], [2, 0])]
        ab.forward(ys)
        assert graph.batches == 1
        for y, ids in zip(ys, ([0, 1], [3, 1], [2, 0]), strict=True):
            close(y.npvalue()[ids], special.log_softmax(x[ids], axis=0), EXACT)
            assert np.isneginf(np.delete(y.npvalue(), ids, axis=0)).all()


@pytest.mark.parametrize("name", ["log_softmax", "sparsemax_loss"])
def test_ids_that_make_no_sense(name):
    x, function = ab.inputVector([1.0, 2.0, 3.0]), getattr(ab, name)
    for ids, kind in [([], ab.ArgumentError), ([3], ab.IndexRangeError), ([0, -1], ab.NegativeIndexError)]:
        with pytest.raises(kind, match=name):
            function(x, ids)
    for ids in (1, "01", [0.5]):
        with pytest.raises(ab.OperandError, match=name):
            function(x, ids)
    with pytest.raises(ab.OperandError, match=name):
        function([1.0], [0])


@pytest.mark.parametrize("offset", [0, 10_000, -1e6])
def test_large_scores_keep_the_digits_of_their_differences(offset):
    """In float32, where log Σ eˣ itself would be rounded to the steps between such numbers."""
    with ab.Graph(dtype="float32"):
        x = (np.array([0.25, 0.0, -0.5]) + offset).astype(np.float32).astype(float)
        p = ab.ParameterCollection(dtype="float32").add_parameters(1, init=x)
        expected = special.log_softmax(x)
        close(ab.log_softmax(p).npvalue(), expected, 1e-6)
        close(ab.log_softmax(p, [2, 1, 0]).npvalue(), expected, 1e-6)
        close(ab.pickneglogsoftmax(p, 1).npvalue(), [-expected[1]], 1e-6)
        for loss in (ab.pickneglogsoftmax(p, 1), -ab.log_softmax(p)[1]):
            p._reset_gradient()
            close(gradients(loss, p)[0], np.exp(expected) - [0, 1, 0], 1e-6)


# sparsemax ------------------------------------------------------------------------------------------------------------


@both_dtypes
def test_sparsemax_of_long_and_odd_vectors(dtype):
    rng = np.random.default_rng(1)
    tolerance = 1e-12 if dtype == "float64" else 4e-6
    cases = [
        *(rng.normal(size=n) * scale for n in (1, 2, 17, 1000) for scale in (1e-3, 1, 1e3)),
        np.zeros(7),
        np.linspace(0, 3, 500),
        np.array([1.0, 0.0, -INF]),
        np.array([0.5, 0.5, -0.5]),  # the last one is at the threshold
        np.array([1e30, 0.0]),
        np.array([2.0, 2.125, 1.0]) + 2.0**20,
    ]
    with ab.Graph(dtype=dtype):
        for x in cases:
            x = x.astype(dtype).astype(float)
            y = ab.sparsemax(ab.inputVector(x)).npvalue()
            tau = max((np.sort(x)[::-1][:k].sum() - 1) / k for k in range(1, x.size + 1))
            assert y.min() >= 0
            np.testing.assert_allclose(y.sum(), 1, rtol=0, atol=100 * tolerance)
            if x.max() < 1e9:
                np.testing.assert_allclose(
                    y, np.maximum(x - tau, 0), rtol=0, atol=tolerance * max(1, np.abs(x[x > -9e9]).max())
                )
        for x in ([NAN, 1.0], [1.0, NAN], [INF, 0.0]):
            assert np.isnan(ab.sparsemax(ab.inputVector(x)).npvalue()).any()


def test_sparsemax_of_columns_and_its_gradient():
    p = parameter([[2.0, 0.3], [0.5, 0.2], [-1.0, 0.0]])
    y = ab.sparsemax(p)
    close(y.npvalue(), [[1, 0.3 + 0.5 / 3], [0, 0.2 + 0.5 / 3], [0, 0.5 / 3]], EXACT)
    (g,) = gradients(ab.cmult(y, ab.inputTensor([[5.0, 1.0], [7.0, 2.0], [9.0, 6.0]])), p)
    close(g, [[0, -2], [0, -1], [0, 3]], EXACT)


def test_sparsemax_loss():
    p = parameter([2.0, 0.5, -1.0])
    loss = ab.sparsemax_loss(p, [0])
    assert loss.value() == 0.0  # sparsemax(x) is the target
    (g,) = gradients(loss, p)
    np.testing.assert_array_equal(g, np.zeros(3))
    p._reset_gradient()
    loss = ab.sparsemax_loss(p, [2, 1])
    # p = (1,0,0), q = (0,½,½): p·x - ½ - q·x + ¼
    close(loss.value(), 2 - 0.5 + 0.25 + 0.25, EXACT)
    close(gradients(loss, p)[0], [1, -0.5, -0.5], EXACT)
    x = ab.inputTensor(np.array([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]]).T, batched=True)
    both = ab.sparsemax_loss(x, [[2, 1], [0]]).npvalue()
    close(both[0, 0], 2.0, EXACT)
    close(ab.sparsemax_loss(x, [2, 1]).npvalue()[0, 0], 2.0, EXACT)
    assert both[0, 1] > 0
    with pytest.raises(ab.ArgumentError, match="listed twice"):
        ab.sparsemax_loss(p, [1, 1])
    with pytest.raises(ab.ShapeError, match="3 lists of ids"):
        ab.sparsemax_loss(x, [[0], [1], [2]])
    with pytest.raises(ab.ShapeError, match="sparsemax_loss: 2 dims"):
        ab.sparsemax_loss(ab.zeros((2, 2)), [0])


# constrained_softmax --------------------------------------------------------------------------------------------------


def constrained(x, u):
    return ab.constrained_softmax(ab.inputVector(x), ab.inputVector(u)).npvalue()


@both_dtypes
def test_constrained_softmax(dtype):
    with ab.Graph(dtype=dtype):
        tolerance = 1e-12 if dtype == "float64" else 1e-6
        close(constrained([1.0, 2.0, 3.0], [1, 1, 1]), special.softmax([1.0, 2.0, 3.0]), tolerance)
        close(constrained([0.0, 0.0, 1.0], [1, 1, 0.2]), [0.4, 0.4, 0.2], tolerance)
        close(constrained([0.0, 5.0, 6.0], [1, 0.3, 0.3]), [0.4, 0.3, 0.3], tolerance)
        close(constrained([-2000.0, -1000.0, 0.0], [0.7, 0.3, 0.2]), [0.5, 0.3, 0.2], tolerance)  # nothing underflows
        close(constrained([1.0, 2.0], [0.25, 0.5]), [0.25, 0.5], tolerance)  # the bounds leave less than 1
        close(constrained([1.0, 2.0], [0.0, 1.0]), [0, 1], tolerance)
        close(constrained([0.0, -INF, 1.0], [1, 1, 0.5]), [0.5, 0, 0.5], tolerance)
        close(constrained([0.0, -INF], [0.5, 1]), [0.5, 0], tolerance)
        assert np.isnan(constrained([0.0, NAN], [1, 1])).all()
    rng = np.random.default_rng(2)
    x, u = rng.normal(size=300) * 3, rng.uniform(0, 0.02, 300)
    y = constrained(x, u)
    free = y < u
    assert 5 < free.sum() < 295 and abs(y.sum() - 1) < 1e-12
    ratio = y[free] / np.exp(x[free])
    close(ratio, np.full(ratio.size, ratio[0]), EXACT)
    assert (u[~free] <= np.exp(x[~free]) * ratio[0]).all()


def test_gradient_of_constrained_softmax_where_all_are_at_their_bounds():
    p, u = parameter([1.0, 2.0]), parameter([0.25, 0.5])
    g = gradients(ab.cmult(ab.constrained_softmax(p, u), ab.inputVector([3.0, 5.0])), p, u)
    np.testing.assert_array_equal(g, [[0, 0], [3, 5]])


def test_constrained_softmax_of_shapes_that_do_not_fit():
    with pytest.raises(ab.ShapeError, match="constrained_softmax: the dims differ"):
        ab.constrained_softmax(ab.zeros((3,)), ab.zeros((2,)))
    with pytest.raises(ab.ShapeError, match="constrained_softmax: 2 dims"):
        ab.constrained_softmax(ab.zeros((3, 2)), ab.zeros((3, 2)))
    with pytest.raises(ab.ShapeError, match="sparsemax: 3 dims"):
        ab.sparsemax(ab.zeros((3, 2, 2)))


# Hinge losses ---------------------------------------------------------------------------------------------------------


def test_hinge_at_its_kink_and_at_the_ends():
    p = parameter([3.0, 2.0, 2.5, 4.0])
    loss = ab.hinge(p, 0)  # the second one is at the kink: 1 - 3 + 2
    close(loss.value(), 0.5 + 2, EXACT)
    close(gradients(loss, p)[0], [-2, 0, 1, 1], 0)
    assert ab.hinge(ab.inputVector([INF, 1.0]), 0).value() == 0
    assert ab.hinge(ab.inputVector([1.0, INF]), 0).value() == INF
    assert ab.hinge(ab.inputVector([1.0, -INF]), 0).value() == 0
    assert np.isnan(ab.hinge(ab.inputVector([1.0, NAN]), 0).value())
    assert ab.hinge(ab.inputVector([7.0]), 0, 5.0).value() == 0  # there is no other


def test_margins_do_not_split_batches():
    with ab.Graph() as graph:
        x = ab.inputVector([1.0, 2.0, 3.0])
        ys = [ab.hinge(x, k % 3, 0.25 * k) for k in range(12)]
        ab.forward(ys)
        assert graph.batches == 1
        for k, y in enumerate(ys):
            others = [i for i in range(3) if i != k % 3]
            close(y.value(), sum(max(0.0, 0.25 * k - (k % 3 + 1) + (i + 1)) for i in others), 1e-6)


def test_hinge_of_a_dim_is_that_of_each_column_or_row():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 4, 2))
    e = ab.inputTensor(x, batched=True)
    for d, n, size in ((0, 4, 3), (1, 3, 4)):
        for v in ([int(k) for k in rng.integers(size, size=n)], rng.integers(size, size=(2, n)).tolist()):
            y = ab.hinge_dim(e, v, d, 0.5)
            assert y.dim() == ((n,), 2)
            for b in range(2):
                lines = x[..., b].T if d == 0 else x[..., b]
                own = v[b] if isinstance(v[0], list) else v
                expected = [ab.hinge(ab.inputVector(line), k, 0.5).value() for line, k in zip(lines, own, strict=True)]
                close(y.npvalue()[:, b], expected, EXACT)
    np.testing.assert_array_equal(ab.hinge_dim(e, np.array([0, 1, 2, 0])).npvalue(), ab.hinge_dim(e, [0, 1, 2, 0]).npvalue())


def test_pairwise_rank_loss():
    p, q = parameter([3.0, 1.0, 1.0]), parameter([1.0, 0.0, 0.5])
    loss = ab.pairwise_rank_loss(p, q)  # the second one is at the kink
    close(loss.npvalue(), [0, 0, 0.5], EXACT)
    np.testing.assert_array_equal(gradients(loss, p, q), [[0, 0, -1], [0, 0, 1]])


ERRORS = {
    "hinge: 1 index for a minibatch of 2.*hinge_batch": lambda x, b, w: ab.hinge(b, 0),
    "hinge: 2 dims": lambda x, b, w: ab.hinge(w, 0),
    "hinge: the index is 3": lambda x, b, w: ab.hinge(x, 3),
    "hinge: the index is -1": lambda x, b, w: ab.hinge(x, -1),
    "hinge: the index is 0.5": lambda x, b, w: ab.hinge(x, 0.5),
    "hinge: the margin is an expression": lambda x, b, w: ab.hinge(x, 0, x),
    "hinge_batch: 3 indices for a minibatch of 2": lambda x, b, w: ab.hinge_batch(b, [0, 1, 2]),
    "hinge_batch: the list of indices is empty": lambda x, b, w: ab.hinge_batch(b, []),
    "hinge_batch: an index is 3": lambda x, b, w: ab.hinge_batch(b, [0, 3]),
    "hinge_dim: 1 dims": lambda x, b, w: ab.hinge_dim(x, [0]),
    "hinge_dim: dim 2 of": lambda x, b, w: ab.hinge_dim(w, [0, 0], 2),
    r"hinge_dim: 3 indices for \(3,2\)\n  expected  2, one for each column": lambda x, b, w: ab.hinge_dim(w, [0, 0, 0]),
    "expected  3, one for each row": lambda x, b, w: ab.hinge_dim(w, [0, 0], 1),
    "hinge_dim: an index is 2": lambda x, b, w: ab.hinge_dim(w, [0, 0, 2], 1),
    "pairwise_rank_loss: the dims differ": lambda x, b, w: ab.pairwise_rank_loss(x, w),
    "pairwise_rank_loss: argument 2 is 1": lambda x, b, w: ab.pairwise_rank_loss(x, 1),
    "binary_log_loss: the dims differ": lambda x, b, w: ab.binary_log_loss(x, w),
    "l1_distance: batch sizes 2 and 3": lambda x, b, w: ab.l1_distance(b, ab.zeros((3,), 3)),
    "huber_distance: the dims differ": lambda x, b, w: ab.huber_distance(x, w),
    "huber_distance: c is 'a'": lambda x, b, w: ab.huber_distance(x, x, "a"),
    "poisson_loss: log λ is more than one number": lambda x, b, w: ab.poisson_loss(x, 1),
    "poisson_loss: a count is -1": lambda x, b, w: ab.poisson_loss(x[0], -1),
    "poisson_loss: a count is 2147483648": lambda x, b, w: ab.poisson_loss(x[0], 2**31),
    "poisson_loss: a count is 1.5": lambda x, b, w: ab.poisson_loss(x[0], 1.5),
    "poisson_loss: 3 counts for a minibatch of 2": lambda x, b, w: ab.poisson_loss(ab.zeros((1,), 2), [1, 2, 3]),
    "poisson_loss: the list of counts is empty": lambda x, b, w: ab.poisson_loss(x[0], []),
}


@pytest.mark.parametrize("message", ERRORS)
def test_a_bad_call(message):
    x, b, w = ab.inputVector([1.0, 2.0, 3.0]), ab.zeros((3,), 2), ab.zeros((3, 2))
    with pytest.raises((ValueError, TypeError), match="(?s)" + message):
        ERRORS[message](x, b, w)


# Sums over pairs ------------------------------------------------------------------------------------------------------


@both_dtypes
def test_binary_log_loss_at_certainty(dtype):
    """Values as DyNet's; where a logarithm is bounded, the gradient by x is that of a constant."""
    most = 126 * math.log(2)
    with ab.Graph(dtype=dtype):
        m = ab.ParameterCollection(dtype=dtype)
        cases = [
            (0, 1, most, 0),
            (1, 0, most, 0),
            (0, 0, 0, 1),
            (1, 1, 0, -1),
            (0, 0.5, most / 2, 0.5),
            (1, 0.5, most / 2, -0.5),
        ]
        for x, y, value, slope in [*cases, (0.25, 1, math.log(4), -4), (0.25, 0, math.log(4 / 3), 4 / 3)]:
            p, q = m.add_parameters(1, init=np.array([x])), m.add_parameters(1, init=np.array([y]))
            loss = ab.binary_log_loss(p, q)
            loss.backward()
            assert abs(loss.value() - value) <= 1e-5 and abs(p.grad_as_array()[0] - slope) <= 1e-6
            of_x, of_rest = (max(math.log(v), -most) if v else -most for v in (x, 1 - x))
            assert abs(q.grad_as_array()[0] - (of_rest - of_x)) <= 1e-5
        if dtype == "float64":
            assert abs(ab.binary_log_loss(ab.scalarInput(1e-300), ab.scalarInput(1.0)).value() - most) < 1e-12
        for x in (-0.5, 1.5, NAN):
            assert np.isnan(ab.binary_log_loss(ab.scalarInput(x), ab.scalarInput(0.5)).value())


def test_gradient_of_binary_log_loss_by_the_target_is_right():
    q = parameter([0.2, 0.9])
    (g,) = gradients(ab.binary_log_loss(ab.inputVector([0.3, 0.6]), q), q)
    close(g, [np.log(0.7 / 0.3), np.log(0.4 / 0.6)], EXACT)


@pytest.mark.parametrize("name", ["squared_distance", "l1_distance", "huber_distance", "dot_product", "constrained_softmax"])
def test_columns_are_vectors(name):
    """(n,1), which a product with a column is, does for (n,), as in DyNet."""
    f = getattr(ab, name)
    x, z = ab.inputVector([0.5, -1.0, 2.0]), ab.inputVector([1.0, 0.4, 0.3])
    column = ab.inputTensor(np.array([[1.0], [0.4], [0.3]]))
    expected = f(x, z).npvalue()
    ab.sum_elems(f(x, z)).backward(full=True)
    slopes = x.gradient(), z.gradient()
    np.testing.assert_allclose(f(x, column).npvalue(), expected)
    np.testing.assert_allclose(f(ab.reshape(x, (3, 1)), z).npvalue().ravel(), expected)
    ab.sum_elems(f(x, column)).backward(full=True)
    for found, slope in zip((x.gradient(), column.gradient()[:, 0]), slopes, strict=True):
        np.testing.assert_allclose(found, slope)
    with pytest.raises(ab.ShapeError, match="the dims differ"):
        f(x, ab.reshape(column, (1, 3)))


def test_distances_at_ties_and_ends():
    p, q = parameter([1.0, 2.0, 3.0]), parameter([1.0, 3.0, 1.0])
    close(ab.l1_distance(p, q).value(), 3, 0)
    np.testing.assert_array_equal(gradients(ab.l1_distance(p, q), p, q), [[0, -1, 1], [0, 1, -1]])
    close(ab.huber_distance(p, q, 1.0).value(), 0.5 + 1.5, EXACT)
    close(ab.huber_distance(p, q).value(), 0.5 + 1.345 * 2 - 1.345**2 / 2, EXACT)
    p._reset_gradient()
    np.testing.assert_array_equal(gradients(ab.huber_distance(p, q, 1.0), p)[0], [0, -1, 1])  # |d| = c, then outside
    x, y = ab.inputVector([INF, 0.0]), ab.inputVector([0.0, 1.0])
    assert ab.l1_distance(x, y).value() == INF and ab.huber_distance(x, y).value() == INF
    assert np.isnan(ab.l1_distance(x, x).value()) and np.isnan(ab.huber_distance(ab.inputVector([NAN, 0.0]), y).value())


def test_one_value_for_each_element_of_a_minibatch():
    rng = np.random.default_rng(4)
    x, y = rng.uniform(0.1, 0.9, (3, 2, 4)), rng.uniform(0.1, 0.9, (3, 2))
    a, b = ab.inputTensor(x, batched=True), ab.inputTensor(y)
    for function in (ab.binary_log_loss, ab.huber_distance, ab.l1_distance):
        alone = [function(ab.inputTensor(x[..., k]), b).value() for k in range(4)]
        close(function(a, b).npvalue(), [alone], EXACT)


@both_dtypes
def test_poisson_loss_of_large_counts_keeps_its_digits(dtype):
    with ab.Graph(dtype=dtype):
        for count in (0, 1, 10, 1000, 10**6, 2**31 - 1):
            l = float(np.float32(math.log(count + 0.5)))
            expected = math.exp(l) + math.lgamma(count + 1) - count * l
            got = ab.poisson_loss(ab.scalarInput(l), count).value()
            assert abs(got - expected) <= (1e-6 * abs(expected) + 2e-16 * 50 * count * max(l, 1) if count else 1e-6)
        assert ab.poisson_loss(ab.scalarInput(-INF), 0).value() == 0
        assert ab.poisson_loss(ab.scalarInput(-INF), 1).value() == INF
        assert np.isnan(ab.poisson_loss(ab.scalarInput(NAN), 0).value())


def test_poisson_loss_of_minibatches():
    l = ab.inputTensor(np.array([[0.5, 1.5]]), batched=True)
    one, other = ab.poisson_loss(ab.scalarInput(0.5), 3).value(), ab.poisson_loss(ab.scalarInput(1.5), 3).value()
    close(ab.poisson_loss(l, 3).npvalue(), [[one, other]], EXACT)
    close(ab.poisson_loss(l, [3, 3]).npvalue(), [[one, other]], EXACT)
    p = parameter([0.5])
    y = ab.poisson_loss(p, [3, 0, 1])
    assert y.dim() == ((1,), 3)
    close(gradients(y, p)[0], [3 * math.exp(0.5) - 4], EXACT)


@pytest.mark.parametrize("n", [1, 5, 33, 700])
def test_the_largest_score_is_found_wherever_it_stands(n):
    """Scores are compared as integers, side by side; NaN is above all."""
    ab.configure(dtype="float32")
    functions = [
        ab.pickneglogsoftmax,
        lambda x, v: -ab.pick(ab.log_softmax(x), v),
        lambda x, v: -ab.log(ab.pick(ab.softmax(x), v)),
    ]
    for function, at in itertools.product(functions, {0, n // 2, n - 1}):
        scores = np.random.default_rng(at).normal(-5, 1, n)
        scores[at] = 1e4
        assert function(ab.inputVector(scores), at).value() == 0
        assert function(ab.inputVector(scores - 2e4), at).value() == 0
        scores[at] = np.nan
        assert np.isnan(function(ab.inputVector(scores), 0).value())
        scores[:] = -0.0
        assert function(ab.inputVector(scores), at).value() == pytest.approx(np.log(n), rel=1e-6)

"""Reductions and normalisation: what the laws do not show. Errors, ties, NaN and infinities, padding, sizes at the edges."""

import itertools

import numpy as np
import pytest
from laws import EXACT, batches, close

import autobatch as ab
from autobatch.kernels._op import OPS
from autobatch.kernels._reduce import BLOCK

INF, NAN = np.inf, np.nan
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def double():
    ab.configure(dtype="float64")
    ab.renew_cg()


def parameter(array):
    return ab.ParameterCollection(dtype="float64").parameters_from_numpy(np.asarray(array, dtype=float))


def gradient(function, array, weights=None):
    """Return the value of a function of one argument, and the gradient of its sum, or of a weighed sum."""
    p = parameter(array)
    y = function(p)
    dims, batch = y.dim()
    flat = ab.reshape(y, (int(np.prod(dims)) * batch,))
    w = np.ones(flat.dim()[0]) if weights is None else np.asarray(weights, dtype=float)
    ab.dot_product(flat, ab.inputVector(w)).backward()
    return y.npvalue(), p.grad_as_array()


# Errors ---------------------------------------------------------------------------------------------------------------


def x23():
    return ab.inputTensor(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (
            lambda: ab.sum_dim(x23(), [2]),
            ab.ShapeError,
            "sum_dim: dim 2 does not exist\n  got       (2,3)\n  expected  d from 0 to 1",
        ),
        (lambda: ab.mean_dim(x23(), [0, 0], False), ab.ShapeError, "mean_dim: dims [0, 0] name one dim twice"),
        (lambda: ab.std_dim(x23(), [-1], False), ab.ShapeError, "std_dim: dim -1 does not exist"),
        (
            lambda: ab.sum_dim(x23(), []),
            ab.ShapeError,
            "sum_dim: there is nothing to reduce\n  got       (2,3)\n  expected  at least",
        ),
        (lambda: ab.sum_dim(x23(), "0"), ab.OperandError, "sum_dim: the dims are '0' (str)\n  expected  a list of integers"),
        (lambda: ab.sum_dim(x23(), [0.5]), ab.OperandError, "sum_dim: a dim is 0.5 (float)\n  expected  an integer"),
        (lambda: ab.sum_dim(x23(), x23()), ab.OperandError, "sum_dim: the dims are an expression (2,3)"),
        (lambda: ab.sum_dim([1.0], [0]), ab.OperandError, "sum_dim: the argument is a list of 1\n  expected  an expression"),
        (lambda: ab.mean_dim(x23(), [0], False, -1), ab.NegativeIndexError, "mean_dim: n is -1\n  expected  how many"),
        (lambda: ab.std_dim(x23(), [0], False, 1.5), ab.OperandError, "std_dim: n is 1.5 (float)\n  expected  an integer"),
        (lambda: ab.sum_dim(x23(), [0], False, -2), ab.NegativeIndexError, "sum_dim: n is -2"),
        (lambda: ab.moment_dim(x23(), [0], 0, False), ab.ArgumentError, "moment_dim: the power r is 0\n  expected  at least 1"),
        (lambda: ab.moment_elems(x23(), -3), ab.ArgumentError, "moment_elems: the power r is -3"),
        (lambda: ab.moment_batches(x23(), 1.5), ab.OperandError, "moment_batches: the power r is 1.5 (float)"),
        (lambda: ab.moment_elems(x23(), 2**40), ab.ArgumentError, "moment_elems: the power r is 1099511627776"),
        (
            lambda: ab.max_dim(x23(), 2),
            ab.ShapeError,
            "max_dim: dim 2 does not exist\n  got       (2,3)\n  expected  d from 0 to 1",
        ),
        (lambda: ab.min_dim(x23(), -1), ab.ShapeError, "min_dim: dim -1 does not exist"),
        (lambda: ab.cumsum(x23(), 7), ab.ShapeError, "cumsum: dim 7 does not exist"),
        (lambda: ab.cumsum(x23(), [0]), ab.OperandError, "cumsum: the dim is a list of 1\n  expected  an integer"),
        (lambda: ab.logsumexp_dim(x23(), 2), ab.ShapeError, "logsumexp_dim: dim 2 does not exist"),
        (lambda: ab.kmax_pooling(ab.inputVector([1.0]), 1), ab.ShapeError, "kmax_pooling: dim 1 does not exist"),
        (
            lambda: ab.kmax_pooling(x23(), 4),
            ab.ShapeError,
            "kmax_pooling: k is 4 but dim 1 has 3 numbers\n  got       (2,3)\n  exp",
        ),
        (lambda: ab.kmax_pooling(x23(), 0), ab.ArgumentError, "kmax_pooling: k is 0\n  expected  at least 1"),
        (lambda: ab.kmax_pooling(x23(), None), ab.OperandError, "kmax_pooling: k is None"),
        (lambda: ab.logsumexp([]), ab.EmptyListError, "logsumexp: the list of expressions is empty"),
        (lambda: ab.logsumexp([x23(), None]), ab.EmptyListError, "logsumexp: element 2 of the list is None"),
        (lambda: ab.logsumexp(x23()), ab.OperandError, "logsumexp: the argument is an expression (2,3)"),
        (lambda: ab.logsumexp([x23(), ab.ones((3, 2))]), ab.ShapeError, "logsumexp: the dims differ\n  got       (2,3)  (3,2)"),
        (
            lambda: ab.logsumexp([ab.ones((2,), 2), ab.ones((2,), 3)]),
            ab.ShapeError,
            "logsumexp: batch sizes 2 and 3 do not fit",
        ),
        (lambda: ab.layer_norm(x23(), ab.ones((3,)), ab.ones((2,))), ab.ShapeError, "layer_norm: dim 0 is 2 and 3 and 2"),
        (lambda: ab.layer_norm(x23(), ab.ones((2,)), 1.0), ab.OperandError, "layer_norm: argument 3 is 1.0 (float)"),
        (
            lambda: ab.weight_norm(x23(), ab.ones((2,))),
            ab.ShapeError,
            "weight_norm: the gain g has 2 numbers\n  got       (2,3)  (2,)",
        ),
        (
            lambda: ab.weight_norm(ab.ones((2,), 2), ab.ones((1,), 3)),
            ab.ShapeError,
            "weight_norm: batch sizes 2 and 3 do not fit",
        ),
    ],
)
def test_errors_say_what_fits(call, kind, text):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(text)
    assert type(caught.value) is kind


def test_what_was_seen_before_is_still_checked():
    x = x23()
    for _ in range(2):
        close(ab.mean_dim(x, [0], False).npvalue(), np.ones(3), 0)
        close(ab.mean_dim(x, [0], False, 4).npvalue(), np.full(3, 0.5), 0)
        (x * -4.0).forward()  # -4 is a number of the graph now
        with pytest.raises(ab.NegativeIndexError):
            ab.mean_dim(x, [0], False, -4)
        with pytest.raises(ab.OperandError):
            ab.mean_dim(x, [0], False, 4.5)
    y = ab.max_dim(x, 0)
    ab.renew_cg()
    for stale in (lambda: ab.max_dim(x, 0), lambda: ab.mean_dim(x, [0], False, 4), lambda: ab.moment_elems(y, 2)):
        with pytest.raises(ab.StaleExpressionError):
            stale()


# Which dims -----------------------------------------------------------------------------------------------------------


def test_all_sets_of_dims():
    array = np.random.default_rng(0).normal(size=(2, 3, 1, 2, 4, 3))
    x = ab.inputTensor(array, batched=True)
    functions = [(ab.sum_dim, np.sum), (ab.mean_dim, np.mean), (ab.std_dim, np.std)]
    for count in range(6):
        for d in itertools.combinations(range(5), count):
            for b in [False, True] if d else [True]:
                axes = (*d, 5) if b else d
                dims = tuple(e for k, e in enumerate(array.shape[:-1]) if k not in d) or (1,)
                for function, reference in functions:
                    y = function(x, list(d)[::-1], b)
                    assert y.dim() == (dims, 1 if b else 3)
                    close(y.npvalue().ravel(), reference(array, axis=axes).ravel(), EXACT)
                y = ab.moment_dim(x, list(d), 3, b)
                close(y.npvalue().ravel(), (array**3).mean(axis=axes).ravel(), EXACT)


def test_spellings_of_dims():
    x = ab.inputTensor(np.arange(24.0).reshape(2, 3, 4))
    expected = x.npvalue().sum(axis=(0, 2))
    for d in ([0, 2], (2, 0), np.array([0, 2]), [np.int64(0), 2]):
        for _ in range(2):
            close(ab.sum_dim(x, d).npvalue(), expected, 0)
            close(ab.sum_dim(x, d, False, 5).npvalue(), expected, 0)
    close(ab.sum_dim(x, 1).npvalue(), x.npvalue().sum(axis=1), 0)
    close(ab.max_dim(x, np.int64(1)).npvalue(), x.npvalue().max(axis=1), 0)
    assert ab.sum_dim(x, [0, 1, 2]).dim() == ab.sum_elems(x).dim() == ((1,), 1)
    assert ab.sum_dim(x, [], True).dim() == ((2, 3, 4), 1)


@pytest.mark.parametrize("inner", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
@pytest.mark.parametrize("length", [1, 3, BLOCK, BLOCK + 1])
def test_sizes_around_a_block(inner, length):
    rng = np.random.default_rng(inner * length)
    array = rng.normal(size=(inner, length, 2))
    w = rng.normal(size=inner * 2)
    side = w.reshape((inner, 1, 2), order="F")
    mean, std = array.mean(axis=1, keepdims=True), array.std(axis=1, keepdims=True)
    got, slope = gradient(lambda x: ab.std_dim(x, [1], False), array, w)
    close(got, std[:, 0], EXACT)
    close(slope, side * (array - mean) / (length * np.where(std == 0, 1, std)), EXACT)
    got, slope = gradient(lambda x: ab.logsumexp_dim(x, 1), array, w)
    expected = np.log(np.exp(array).sum(axis=1, keepdims=True))
    close(got, expected[:, 0], EXACT)
    close(slope, side * np.exp(array - expected), EXACT)
    w = rng.normal(size=array.size)
    got, slope = gradient(lambda x: ab.cumsum(x, 1), array, w)
    close(got, array.cumsum(axis=1), EXACT)
    close(slope, w.reshape(array.shape, order="F")[:, ::-1].cumsum(axis=1)[:, ::-1], EXACT)
    for k in {1, (length + 1) // 2, length}:
        w = rng.normal(size=inner * k * 2)
        got, slope = gradient(lambda x, k=k: ab.kmax_pooling(x, k, 1), array, w)
        taken = np.sort(np.argsort(-array, axis=1)[:, :k], axis=1)
        close(got, np.take_along_axis(array, taken, axis=1), 0)
        expected = np.zeros_like(array)
        np.put_along_axis(expected, taken, w.reshape((inner, k, 2), order="F"), axis=1)
        close(slope, expected, 0)
    lists = [ab.inputTensor(array[:, k]) for k in range(length)]
    close(ab.logsumexp(lists).npvalue(), np.log(np.exp(array).sum(axis=1)), EXACT)


# Padding: n -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_n_is_the_number_of_numbers_that_are_no_padding(rows):
    rng = np.random.default_rng(rows)
    nodes, expected = [], []
    for n in (1, 2, 5, 8):
        data = rng.normal(size=(rows, n)) + 3
        padded = np.concatenate([data, np.zeros((rows, 8 - n))], axis=1)
        x = ab.inputTensor(padded)
        for got, full in [
            (ab.mean_dim(x, [1], False, n), data.mean(axis=1)),
            (ab.std_dim(x, [1], False, n), data.std(axis=1)),
            (ab.moment_dim(x, [1], 3, False, n), (data**3).mean(axis=1)),
            (ab.mean_dim(x, [0, 1], False, rows * n), data.mean()),
            (ab.std_dim(x, [0, 1], False, rows * n), data.std()),
        ]:
            close(got.npvalue(), np.atleast_1d(full), EXACT)
        for function in (ab.mean_dim, ab.std_dim):
            w = rng.normal(size=rows)
            _, slope = gradient(lambda x, f=function, n=n: f(x, [1], False, n), padded, w)
            _, alone = gradient(lambda x, f=function: f(x, [1], False), data, w)
            close(slope[:, :n], alone, EXACT)
        nodes.append(ab.std_dim(x, [1], False, n))
        expected.append(data.std(axis=1))
    ab.renew_cg()


def test_different_n_are_one_batch():
    array = np.random.default_rng(0).normal(size=(2, 6))
    with ab.Graph(dtype="float64", policy="ratio") as graph:
        x = ab.inputTensor(array)
        ys = [ab.mean_dim(x, [1], False, n) for n in range(1, 9)]
        zs = [ab.std_dim(x, [1], False, n) for n in range(6, 9)]
        ab.esum([*ys, *zs]).forward()
        ran = batches(graph)
        assert len({ran[y.index] for y in ys}) == 1 and len({ran[z.index] for z in zs}) == 1
        for n, y in enumerate(ys, 1):
            close(y.npvalue(), array.sum(axis=1) / n, EXACT)
        for n, z in enumerate(zs, 6):
            close(z.npvalue(), np.sqrt((array**2).sum(axis=1) / n - (array.sum(axis=1) / n) ** 2), EXACT)


def test_a_deviation_that_no_n_numbers_have():
    x = ab.inputVector([1.0, 1.0, 1.0, 1.0])
    assert np.isnan(ab.std_dim(x, [0], False, 2).scalar_value())
    assert ab.std_dim(x, [0], False, 4).scalar_value() == 0.0
    assert ab.std_dim(x, [0], False, 8).scalar_value() == 0.5
    assert ab.std_dim(ab.zeros((3,)), [0], False, 2).scalar_value() == 0.0


# Deviations, norms, moments -------------------------------------------------------------------------------------------


@both_dtypes
def test_deviation_of_equal_numbers_is_0_and_so_is_its_gradient(dtype):
    ab.configure(dtype=dtype)
    model = ab.ParameterCollection(dtype=dtype)
    for value in (0.1, 1 / 3, -1e6, 0.0, 1e-30):
        for dims in ((7,), (3, 7), (70, 7), (1,)):
            ab.renew_cg()
            p = model.add_parameters(dims, init=np.full(dims, value))
            last = len(dims) - 1
            ys = [ab.std_elems(p), ab.std_dim(p, [last], False), ab.std_dim(p, [0], True), ab.std_batches(p)]
            ys.append(ab.std_dim(p, [last], False, dims[last]))
            for y in ys:
                assert not y.npvalue().any()
                ab.sum_elems(y).backward()
                assert not p.grad_as_array().any()


@both_dtypes
def test_deviation_keeps_its_digits_far_from_0(dtype):
    ab.configure(dtype=dtype)
    ab.renew_cg()
    far = 1e9 if dtype == "float64" else 2.0**14
    array = far + np.arange(40.0).reshape(4, 10) / 64
    x = ab.inputTensor(array)
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    for y, expected in [
        (ab.std_elems(x), array.std()),
        (ab.std_dim(x, [0], False), array.std(axis=0)),
        (ab.std_dim(x, [1], False), array.std(axis=1)),
        (ab.std_dim(x, [1], False, 10), array.std(axis=1)),
    ]:
        np.testing.assert_allclose(y.npvalue().ravel(), np.ravel(expected), rtol=tolerance)


def test_gradient_of_the_norm_at_0_is_0():
    for dims in ((3,), (2, 2), (1,)):
        got, slope = gradient(ab.l2_norm, np.zeros(dims))
        assert not got.any() and not slope.any()
    got, slope = gradient(ab.l2_norm, [3.0, 4.0])
    close(got, [5], 0)
    close(slope, [0.6, 0.8], EXACT)


@pytest.mark.parametrize("r", [1, 2, 5, 7, 13, 64])
def test_high_moments(r):
    array = np.array([[-1.5, 0.5, 2.0], [1.0, -1.0, 0.0]])
    got, slope = gradient(lambda x: ab.moment_elems(x, r), array)
    close(got, [(array**r).mean()], EXACT)
    close(slope, r * array ** (r - 1) / 6, EXACT)
    got, slope = gradient(lambda x: ab.moment_dim(x, [1], r, False), array, [1.0, 2.0])
    close(got, (array**r).mean(axis=1), EXACT)
    close(slope, np.array([[1.0], [2.0]]) * r * array ** (r - 1) / 3, EXACT)
    y = ab.moment_batches(ab.inputTensor(array, batched=True), r)
    close(y.npvalue(), (array**r).mean(axis=1), EXACT)
    assert y.dim() == ((2,), 1)


def test_the_highest_moment():
    got, slope = gradient(lambda x: ab.moment_elems(x, 2**31 - 1), [-1.0, 1.0, 1.0])
    close(got, [1 / 3], EXACT)
    close(slope, np.full(3, (2**31 - 1) / 3), EXACT)
    assert ab.moment_elems(ab.inputVector([0.5, 2.0]), 2**31 - 1).scalar_value() == INF


def test_long_sums_in_float32():
    ab.configure(dtype="float32")
    ab.renew_cg()
    array = np.random.default_rng(0).uniform(0, 1, 300_000)
    x = ab.inputVector(array)
    numbers = x.npvalue()
    for y, expected in [
        (ab.sum_elems(x), numbers.sum()),
        (ab.mean_elems(x), numbers.mean()),
        (ab.std_elems(x), numbers.std()),
        (ab.squared_norm(x), (numbers**2).sum()),
    ]:
        np.testing.assert_allclose(y.npvalue(), [expected], rtol=2e-5)


def test_sums_of_nan_and_infinity():
    for array in ([1.0, NAN], [INF, 1.0], [INF, -INF], [-INF, -INF]):
        x = ab.inputVector(array)
        with np.errstate(invalid="ignore"):
            for got, expected in [
                (ab.mean_elems(x), np.mean(array)),
                (ab.std_elems(x), np.std(array)),
                (ab.squared_norm(x), np.square(array).sum()),
                (ab.moment_elems(x, 3), np.mean(np.power(array, 3))),
                (ab.cumsum(x), np.cumsum(array)),
            ]:
                np.testing.assert_array_equal(got.npvalue(), np.atleast_1d(expected))


def test_reductions_of_parameters_and_of_their_constants():
    array = np.arange(6.0).reshape(2, 3)
    p = parameter(array)
    for e, slope in [(p, 1.0), (p.expr(update=False), 0.0)]:
        p._reset_gradient()
        close(ab.mean_dim(e, [0], False, 4).npvalue(), array.sum(axis=0) / 4, EXACT)
        ab.sum_elems(ab.max_dim(e, 1)).backward()
        close(p.grad_as_array(), slope * np.array([[0, 0, 1], [0, 0, 1]]), 0)


# Extremes -------------------------------------------------------------------------------------------------------------


def test_the_first_of_equal_numbers_gets_the_gradient():
    array = [[2.0, 5.0, 5.0], [0.0, -0.0, 0.0]]
    got, slope = gradient(lambda x: ab.max_dim(x, 1), array, [1.0, 2.0])
    close(got, [5, 0], 0)
    close(slope, [[0, 1, 0], [2, 0, 0]], 0)
    got, slope = gradient(lambda x: ab.min_dim(x, 0), [[1.0, 3.0], [1.0, 2.0], [4.0, 2.0]], [1.0, 2.0])
    close(got, [1, 2], 0)
    close(slope, [[1, 0], [0, 2], [0, 0]], 0)


@both_dtypes
def test_extremes_of_nan_and_infinity_are_those_of_numpy(dtype):
    ab.configure(dtype=dtype)
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 8, 33, 100):
        for shape, d in [((n,), 0), ((n, 3), 0), ((3, n), 1), ((70, n), 1)]:
            array = rng.choice([INF, -INF, 0.0, -0.0, 1.0, -1.0], size=shape)
            array[rng.random(shape) < 0.5 / n] = NAN
            ab.renew_cg()
            x = ab.inputTensor(array)
            np.testing.assert_array_equal(ab.max_dim(x, d).npvalue(), np.atleast_1d(array.max(axis=d)))
            np.testing.assert_array_equal(ab.min_dim(x, d).npvalue(), np.atleast_1d(array.min(axis=d)))


def test_the_gradient_of_a_nan_goes_to_the_first_nan():
    for function in (ab.max_dim, ab.min_dim):
        _, slope = gradient(function, [1.0, NAN, INF, NAN])
        close(slope, [0, 1, 0, 0], 0)
    _, slope = gradient(lambda x: ab.kmax_pooling(x, 2, 0), [NAN, 1.0, INF, NAN, NAN], [3.0, 4.0])
    close(slope, [3, 0, 0, 4, 0], 0)


def test_kmax_pooling_takes_the_first_of_equal_numbers():
    got, slope = gradient(lambda x: ab.kmax_pooling(x, 3, 0), [2.0, 1.0, 3.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    close(got, [2, 3, 2], 0)
    close(slope, [1, 0, 2, 3, 0], 0)
    got, slope = gradient(lambda x: ab.kmax_pooling(x, 1), [[1.0, 3.0, 3.0], [4.0, 4.0, 0.0]], [1.0, 2.0])
    assert got.shape == (2, 1)
    close(slope, [[0, 1, 0], [2, 0, 0]], 0)


@both_dtypes
@pytest.mark.parametrize("kind", ["normal", "whole", "ends", "scales", "nan"])
def test_kmax_pooling_of_all_kinds_of_numbers(dtype, kind):
    ab.configure(dtype=dtype)
    rng = np.random.default_rng(0)
    limits = np.finfo(dtype)
    ends = [INF, -INF, 0.0, -0.0, limits.smallest_subnormal, limits.max, limits.min, limits.tiny]
    for shape, d in [((200,), 0), ((1,), 0), ((40, 6), 0), ((5, 30), 1), ((66, 70), 1), ((3, 8, 2), 1)]:
        x = rng.normal(size=shape)
        if kind == "whole":
            x = np.round(x)
        if kind == "ends":
            x = rng.choice([float(e) for e in ends], size=shape)
        if kind == "scales":
            x *= 10.0 ** rng.integers(-30, 30, size=shape)
        if kind == "nan":
            x[rng.random(shape) < 0.2] = NAN
        x = x.astype(dtype).astype(float)
        places = np.broadcast_to(np.arange(shape[d]).reshape([-1 if k == d else 1 for k in range(len(shape))]), shape)
        order = np.lexsort((places, -np.where(np.isnan(x), INF, x), ~np.isnan(x)), axis=d)
        for k in {1, 2, (shape[d] + 1) // 2, shape[d]} - ({2} if shape[d] == 1 else set()):
            ab.renew_cg()
            taken = np.sort(order.take(range(k), axis=d), axis=d)
            got = ab.kmax_pooling(ab.inputTensor(x), k, d).npvalue()
            np.testing.assert_array_equal(got, np.take_along_axis(x, taken, axis=d))


# logsumexp ------------------------------------------------------------------------------------------------------------


@both_dtypes
def test_logsumexp_at_the_ends(dtype):
    ab.configure(dtype=dtype)
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    rows = [[-INF, -INF], [-INF, 1.0], [INF, 1.0], [INF, -INF], [NAN, 1.0], [NAN, INF], [3e4, 3e4], [-3e4, -3e4], [INF, INF]]
    expected = [-INF, 1.0, INF, INF, NAN, NAN, 3e4 + np.log(2), -3e4 + np.log(2), INF]
    for array, y in [*zip(rows, expected, strict=True), (np.array(rows), expected)]:
        ab.renew_cg()
        x = ab.inputTensor(np.array(array))
        parts = [ab.inputVector(np.atleast_1d(a)) for a in np.moveaxis(np.array(array), -1, 0)]
        for got in (ab.logsumexp_dim(x, len(np.shape(array)) - 1), ab.logsumexp(parts)):
            close(got.npvalue(), np.atleast_1d(y), tolerance)


def test_gradient_of_logsumexp_where_all_is_impossible_is_0():
    for array in ([-INF, -INF, -INF], [-INF, 1.0, 1.0]):
        share = [0, 0, 0] if array[1] == -INF else [0, 0.5, 0.5]
        _, slope = gradient(ab.logsumexp_dim, array)
        close(slope, share, EXACT)
        _, slope = gradient(lambda x: ab.logsumexp([x[0], x[1], x[2]]), array)
        close(slope, share, EXACT)
        _, slope = gradient(lambda x: ab.logsumexp_dim(x, 1), [array, array])
        close(slope, [share, share], EXACT)


@pytest.mark.parametrize("count", [1, 2, 16, 17, 256, 300])
def test_logsumexp_of_long_lists(count):
    rng = np.random.default_rng(count)
    array = rng.normal(size=(3, count)) * 10
    p = parameter(array)
    y = ab.logsumexp([ab.pick(p, k, 1) for k in range(count)])
    expected = np.log(np.exp(array).sum(axis=1))
    close(y.npvalue(), expected, EXACT)
    ab.sum_elems(y).backward()
    close(p.grad_as_array(), np.exp(array - expected[:, None]), EXACT)
    close(ab.logsumexp([ab.inputVector([-INF])] * count).npvalue(), [-INF], 0)


def test_logsumexp_of_minibatches_and_trailing_ones():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 3)), rng.normal(size=2)
    y = ab.logsumexp([ab.inputVector(b), ab.inputTensor(a, batched=True)])
    assert y.dim() == ((2,), 3)
    close(y.npvalue(), np.logaddexp(a[:, 0], b[:, None]), EXACT)
    assert ab.logsumexp([ab.inputTensor(a[..., 0])]).dim() == ((2,), 1)  # as DyNet


def test_a_long_list_that_does_not_fit_leaves_the_graph_as_it_was():
    xs = [*(ab.inputVector([1.0, 2.0]) for _ in range(40)), ab.ones((3,))]
    before = len(ab.cg().recorded_types)
    with pytest.raises(ab.ShapeError):
        ab.logsumexp(xs)
    assert len(ab.cg().recorded_types) == before


# Normalisation --------------------------------------------------------------------------------------------------------


def composed(x, g, b):
    """layer_norm as DyNet composes it."""
    return ab.cmult(g, ab.cdiv(x - ab.mean_elems(x), ab.std_elems(x) + 1e-8)) + b


@pytest.mark.parametrize(
    ("x", "g", "b"),
    [
        (((5,), 1), ((5,), 1), ((5,), 1)),
        (((5,), 3), ((5,), 1), ((5,), 1)),
        (((5,), 1), ((5,), 3), ((1,), 1)),
        (((4, 3), 2), ((4,), 1), ((1, 3), 2)),
        (((2, 3, 2), 2), ((1,), 1), ((2, 1, 2), 1)),
        (((5,), 2), ((5, 3), 1), ((5,), 1)),
        (((1, 3), 1), ((2,), 2), ((2, 3), 1)),
        (((6, 1, 2), 1), ((1, 4), 2), ((6,), 1)),
    ],
)
def test_layer_norm_is_the_composition(x, g, b):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=int(np.prod(dims)) * batch) for dims, batch in (x, g, b)]
    outcomes, weights = [], None
    for function in (ab.layer_norm, composed):
        ab.renew_cg()
        parameters = [parameter(a) for a in arrays]
        shaped = [ab.reshape(p, *shape) for p, shape in zip(parameters, (x, g, b), strict=True)]
        y = function(*shaped)
        flat = ab.reshape(y, (y.npvalue().size,))
        weights = rng.normal(size=y.npvalue().size) if weights is None else weights
        ab.dot_product(flat, ab.inputVector(weights)).backward()
        outcomes.append([y.dim(), y.npvalue(), *(p.grad_as_array() for p in parameters)])
    assert outcomes[0][0] == outcomes[1][0]
    for got, expected in zip(outcomes[0][1:], outcomes[1][1:], strict=True):
        close(got, expected, EXACT)


@both_dtypes
def test_layer_norm_of_equal_numbers(dtype):
    ab.configure(dtype=dtype)
    model = ab.ParameterCollection(dtype=dtype)
    for dims in ((1,), (5,), (2, 3)):
        ab.renew_cg()
        x, g, b = (model.add_parameters(dims, init=np.full(dims, v)) for v in (0.1, 2.0, 3.0))
        y = ab.layer_norm(x, g, b)
        close(y.npvalue(), np.full(dims, 3.0), 0)
        ab.sum_elems(y).backward()
        assert not x.grad_as_array().any() and not g.grad_as_array().any()
        close(b.grad_as_array(), np.ones(dims), 0)
    x = model.add_parameters((1,), init=np.array([0.3]))
    ab.layer_norm(x, ab.scalarInput(3.3), ab.scalarInput(1.0)).backward()
    assert x.grad_as_array() == [0]  # 1e8 times what rounding left, if the mean were subtracted


def test_layers_of_different_parameters_are_one_batch():
    rng = np.random.default_rng(0)
    model = ab.ParameterCollection(dtype="float64")
    layers = [(model.add_parameters(4), model.add_parameters(4)) for _ in range(3)]
    array = rng.normal(size=(4, 12))
    with ab.Graph(dtype="float64", policy="ratio") as graph:
        ys = [ab.layer_norm(ab.inputVector(array[:, k]), *layers[k % 3]) for k in range(12)]
        w = rng.normal(size=(4, 12))
        loss = ab.esum([ab.dot_product(y, ab.inputVector(w[:, k])) for k, y in enumerate(ys)])
        loss.backward()
        ran = batches(graph)
        assert len({ran[y.index] for y in ys}) == 1
    z = (array - array.mean(axis=0)) / (array.std(axis=0) + 1e-8)
    for k, (g, b) in enumerate(layers):
        close(g.grad_as_array(), (w * z)[:, k::3].sum(axis=1), EXACT)
        close(b.grad_as_array(), w[:, k::3].sum(axis=1), EXACT)


def test_weight_norm_of_minibatches():
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(2, 3, 4)), rng.normal(size=(1, 4))
    norms = np.sqrt((w**2).sum(axis=(0, 1)))
    batched, gains = ab.inputTensor(w, batched=True), ab.inputTensor(g, batched=True)
    close(ab.weight_norm(batched, gains).npvalue(), g[0] * w / norms, EXACT)
    close(ab.weight_norm(batched, ab.scalarInput(2.0)).npvalue(), 2 * w / norms, EXACT)
    close(ab.weight_norm(ab.inputTensor(w[..., 0]), gains).npvalue(), g[0] * w[..., :1] / norms[0], EXACT)
    assert np.isnan(ab.weight_norm(ab.zeros((2,)), ab.scalarInput(1.0)).npvalue()).all()


# The records ----------------------------------------------------------------------------------------------------------

OWN = """cumsum kmax_pooling l2_norm layer_norm logsumexp logsumexp_dim max_dim mean_batches mean_dim mean_elems min_dim
moment_batches moment_dim moment_elems squared_norm std_batches std_dim std_elems sum_dim weight_norm""".split()


@pytest.mark.parametrize("name", OWN)
def test_records_and_functions_are_documented(name):
    op, function = OPS[name], getattr(ab, name)
    assert op.shapes and op.doc and function.__doc__ and function.__name__ == name

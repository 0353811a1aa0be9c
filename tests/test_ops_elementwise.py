"""Functions number by number: what the laws do not show. Edges, ties, errors, gradients that differ from DyNet's, operators."""

import math

import numpy as np
import pytest
from laws import EXACT, close

import autobatch as ab
from autobatch.functions.arithmetic import MANY

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
INF, NAN = math.inf, math.nan


@pytest.fixture(autouse=True)
def in_float64():
    ab.configure(dtype="float64")
    ab.renew_cg()


def parameter(numbers, **keywords):
    numbers = np.asarray(numbers, float)
    return ab.ParameterCollection(**keywords).add_parameters(numbers.shape, init=numbers)


def gradients(function, *arrays):
    """Return the gradients of Σ function(parameters)."""
    ab.renew_cg()
    made = [parameter(a, dtype="float64") for a in arrays]
    y = ab.sum_elems(function(*made))
    (ab.sum_batches(y) if y.dim()[1] > 1 else y).backward()
    return [p.grad_as_array() for p in made]


# One argument ---------------------------------------------------------------------------------------------------------

NUMPY = {
    **{name: getattr(np, name) for name in ["sin", "cos", "tan", "sinh", "cosh", "abs"]},
    **{f"a{name}": getattr(np, f"arc{name}") for name in ["sin", "cos", "tan", "sinh", "cosh", "tanh"]},
    "cube": lambda x: x * x * x,
}


@both_dtypes
@pytest.mark.parametrize("name", NUMPY)
def test_edges_as_numpy(name, dtype):
    ab.configure(dtype=dtype)
    ab.renew_cg()
    x = ab.inputVector([-INF, -1e30, -2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, 1e30, INF, NAN])
    with np.errstate(all="ignore"):
        expected = NUMPY[name](x.npvalue().astype(dtype))
    np.testing.assert_allclose(getattr(ab, name)(x).npvalue(), expected, rtol=4 * np.finfo(dtype).eps, atol=0)


@both_dtypes
def test_sines_of_huge_numbers_among_others(dtype):
    """One huge number in a node, or in a batch of nodes, changes nothing for the others."""
    ab.configure(dtype=dtype)
    rng = np.random.default_rng(0)
    small = rng.uniform(-100, 100, (40, 70)).astype(dtype).astype(float)
    huge = small.copy()
    huge[7, 11], huge[20, 3], huge[39, 69] = np.float32(1e10), np.float32(-3e35), INF
    with np.errstate(invalid="ignore"):
        for name, slope in (("sin", np.cos), ("cos", lambda x: -np.sin(x)), ("tan", lambda x: 1 + np.tan(x) ** 2)):
            function, results = getattr(ab, name), []
            for rows in (small, huge):
                ab.renew_cg()
                p = parameter(rows, dtype=dtype)
                ys = [function(p[i]) for i in range(40)]
                ab.esum([ab.sum_elems(y) for y in ys]).backward()
                results.append((np.array([y.npvalue() for y in ys]), p.grad_as_array()))
            same = small == huge
            for a, b in zip(*results, strict=True):
                np.testing.assert_array_equal(a[same], b[same])
            tolerance = 4 * np.finfo(dtype).eps
            np.testing.assert_allclose(results[1][0], getattr(np, name)(huge), rtol=tolerance)
            np.testing.assert_allclose(results[1][1], slope(huge), rtol=3 * tolerance, atol=3 * tolerance)


def test_gradients_at_edges():
    close(gradients(ab.abs, [-2.0, 0.0, 3.0])[0], [-1, 0, 1], 0)
    close(gradients(ab.elu, [0.0, 1e-300])[0], [1, 1], EXACT)
    close(gradients(ab.asin, [-1.0, 1.0])[0], [INF, INF], 0)
    close(gradients(ab.acos, [-1.0, 1.0])[0], [-INF, -INF], 0)
    close(gradients(ab.acosh, [1.0, 1e300])[0], [INF, 1e-300], 0)
    close(gradients(ab.asinh, [-1e300, 1e300])[0], [1e-300, 1e-300], 1e-310)
    close(gradients(ab.atanh, [-1.0, 1.0])[0], [INF, INF], 0)
    close(gradients(ab.log_sigmoid, [-1000.0, 0.0, 1000.0])[0], [1, 0.5, 0], EXACT)
    close(gradients(ab.softsign, [-INF, 0.0, INF])[0], [0, 1, 0], 0)
    close(gradients(ab.lgamma, [1.0, 2.0])[0], [-np.euler_gamma, 1 - np.euler_gamma], EXACT)


def test_activations_at_edges():
    x = ab.inputVector([-INF, -1000.0, 0.0, 1000.0, INF, NAN])
    close(ab.softsign(x).npvalue(), [-1, -1000 / 1001, 0, 1000 / 1001, 1, NAN], EXACT)
    close(ab.elu(x, 0.5).npvalue(), [-0.5, -0.5, 0, 1000, INF, NAN], EXACT)
    close(ab.log_sigmoid(x).npvalue(), [-INF, -1000, math.log(0.5), 0, 0, NAN], EXACT)
    close(ab.silu(x).npvalue(), [NAN, 0, 0, 1000, INF, NAN], EXACT)
    assert ab.softsign(ab.inputTensor(np.ones((2, 3)))).dim() == ((2, 3), 1)


def test_gradient_of_silu_knows_beta():
    x, beta = np.array([-1.0, 0.5, 2.0]), 1.7
    s = 1 / (1 + np.exp(-beta * x))
    close(gradients(lambda p: ab.silu(p, beta), x)[0], s + beta * x * s * (1 - s), EXACT)


def test_nodes_with_different_numbers_batch():
    with ab.Graph(policy="agenda") as graph:
        p = parameter([0.5, -1.0])
        ys = [ab.elu(-p, 0.1 * k) for k in range(5)] + [ab.silu(-p, 0.1 * k) for k in range(5)]
        ys += [ab.scale_gradient(-p, 0.1 * k) for k in range(5)]
        ab.esum(ys).forward()
        assert graph.batches <= 6


ROUNDED = {
    "round": [-3.0, -2.0, -1.0, 0.0, 0.0, 1.0, 1.0, 2.0, 3.0],
    "ceil": [-2.0, -1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 3.0],
    "floor": [-3.0, -2.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 2.0],
}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding(name):
    x = [-2.5, -1.5, -0.5, 0.0, 0.49999999999999994, 0.5, 1.0, 1.5, 2.5]
    function = getattr(ab, name)
    close(function(ab.inputVector(x), "zero_gradient").npvalue(), ROUNDED[name], 0)
    large = [2.0**52 + 1, -(2.0**53), 1e300, INF, -INF, NAN]
    close(function(ab.inputVector(large), "straight_through_gradient").npvalue(), large, 0)
    close(gradients(lambda p: function(p, "zero_gradient"), x)[0], np.zeros(9), 0)
    close(gradients(lambda p: function(p, "straight_through_gradient"), x)[0], np.ones(9), 0)


def test_argmax():
    for x, expected in (
        ([1, 3, 3, 2], 1),
        ([NAN, 1], 0),
        ([1, NAN, 5, NAN], 1),
        ([-INF, -INF], 0),
        ([7], 0),
        ([-1, -0.0, 0.0], 1),
    ):
        close(ab.argmax(ab.inputVector(x), "zero_gradient").npvalue(), np.eye(len(x))[expected], 0)
    batch = ab.argmax(ab.inputTensor([[1, 5], [2, 4.0]], batched=True), "zero_gradient")
    close(batch.npvalue(), [[0, 1], [1, 0]], 0)
    close(gradients(lambda p: ab.argmax(p, "zero_gradient"), [1.0, 2.0])[0], [0, 0], 0)
    close(gradients(lambda p: ab.argmax(p, "straight_through_gradient"), [1.0, 2.0])[0], [1, 1], 0)


def test_changed_gradients():
    close(gradients(lambda p: ab.flip_gradient(ab.square(p)), [1.0, 2.0])[0], [-2, -4], 0)
    close(gradients(lambda p: ab.scale_gradient(ab.square(p), 0.5), [1.0, 2.0])[0], [1, 2], 0)
    close(gradients(ab.scale_gradient, [1.0, 2.0])[0], [1, 1], 0)
    close(ab.flip_gradient(ab.inputVector([1, 2])).npvalue(), [1, 2], 0)


# Several arguments ----------------------------------------------------------------------------------------------------


def test_ties_and_nan_of_extremes():
    x, z = [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]
    for function, of_x in ((ab.bmax, [0, 0, 1]), (ab.bmin, [1, 0, 0])):
        dx, dz = gradients(function, x, z)
        close(dx, of_x, 0)
        close(dz, 1 - np.array(of_x), 0)
        for a, b in ((NAN, 1.0), (1.0, NAN)):
            assert math.isnan(function(ab.scalarInput(a), ab.scalarInput(b)).value())
    close(gradients(lambda *ps: ab.emax(list(ps)), [1.0, 5.0], [3.0, 5.0], [3.0, 0.0])[0], [0, 1], 0)
    close(gradients(lambda *ps: ab.emax(list(ps)), [1.0, 5.0], [3.0, 5.0], [3.0, 0.0])[1], [1, 0], 0)
    for k in range(3):
        row = [1.0, 2.0, 3.0]
        row[k] = NAN
        assert math.isnan(ab.emax([ab.scalarInput(v) for v in row]).value())


@pytest.mark.parametrize("count", [1, 2, MANY, MANY + 1, 3 * MANY, MANY * MANY + 5])
def test_emax_of_long_lists(count):
    rng = np.random.default_rng(count)
    rows = rng.integers(0, 5, (count, 6)).astype(float)
    got = gradients(lambda p: ab.emax([p[i] for i in range(count)]), rows)[0]
    expected = np.zeros_like(rows)
    expected[rows.argmax(0), np.arange(6)] = 1
    close(got, expected, 0)
    with ab.Graph(dtype="float64"):
        close(ab.emax([ab.inputVector(row) for row in rows]).npvalue(), rows.max(0), 0)


def test_emax_takes_batches_of_one():
    x, z = ab.inputTensor([[1, 5.0]], batched=True), ab.inputVector([3.0])
    close(ab.emax([z, x]).npvalue(), [[3, 5]], 0)


def test_colwise_add():
    x, b = np.arange(6.0).reshape(2, 3), np.array([10.0, 20.0])
    close(ab.colwise_add(ab.inputTensor(x), ab.inputVector(b)).npvalue(), x + b[:, None], 0)
    dx, db = gradients(ab.colwise_add, x, b)
    close(dx, np.ones((2, 3)), 0)
    close(db, [3, 3], 0)
    batch = ab.inputTensor(np.arange(12.0).reshape(2, 3, 2), batched=True)
    assert ab.colwise_add(batch, ab.inputVector(b)).dim() == ((2, 3), 2)
    assert ab.colwise_add(ab.inputTensor(x), ab.inputTensor(np.ones((2, 2)), batched=True)).dim() == ((2, 3), 2)


@pytest.mark.parametrize("op", ["cdiv", "bmax", "bmin"])
def test_both_sides_broadcast(op):
    function, x, z = getattr(ab, op), np.array([[2.0], [3.0]]), np.array([[1.0, 4.0, 5.0]])
    expected = {"cdiv": np.divide, "bmax": np.maximum, "bmin": np.minimum}[op](x, z)
    close(function(ab.inputTensor(x), ab.inputTensor(z)).npvalue(), expected, EXACT)
    assert function(ab.scalarInput(2), ab.inputTensor(z)).dim() == ((1, 3), 1)
    with pytest.raises(ValueError, match=f"^{op}: dim 0 is 2 and 3"):
        function(ab.inputVector([1, 2]), ab.inputVector([1, 2, 3]))


@both_dtypes
def test_pow_as_numpy(dtype):
    ab.configure(dtype=dtype)
    ab.renew_cg()
    numbers = np.array([0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 3, INF, -INF, NAN], dtype)
    x = ab.inputVector(numbers)
    for e in numbers:
        with np.errstate(all="ignore"):
            expected = np.power(numbers, np.full_like(numbers, e))  # for one exponent NumPy takes a root, NaN at -inf
        for y in (ab.pow(x, ab.scalarInput(e)), ab.pow(x, float(e)), x**e, x ** ab.scalarInput(e)):
            np.testing.assert_allclose(y.npvalue(), expected, rtol=4 * np.finfo(dtype).eps)


def test_gradients_of_pow():
    dx, dy = gradients(ab.pow, [0.0, 0.5, 2.0], [3.0])
    close(dx, [0, 0.75, 12], EXACT)
    close(dy, [0.125 * math.log(0.5) + 8 * math.log(2)], EXACT)
    close(gradients(lambda p: p**0, [0.0, -2.0, NAN])[0], [0, 0, 0], 0)
    close(gradients(lambda p: p**1.0, [0.0, -2.0])[0], [1, 1], 0)
    close(gradients(lambda p: p**-1, [-2.0])[0], [-0.25], EXACT)
    close(gradients(lambda p: p**5, [-2.0])[0], [80], EXACT)
    close(gradients(lambda p: 2.0**p, [0.0, 3.0])[0], [math.log(2), 8 * math.log(2)], EXACT)
    close(gradients(lambda p: 0**p, [1.0, 2.0])[0], [0, 0], 0)


def test_an_exponent_for_each_element_of_a_minibatch():
    x, e = ab.inputVector([2.0, 3.0]), ab.inputTensor([[1.0, 2.0, 0.5]], batched=True)
    close(ab.pow(x, e).npvalue(), np.power([[2.0], [3.0]], [[1.0, 2.0, 0.5]]), EXACT)
    assert ab.pow(x, ab.inputTensor([[2.0]])).dim() == ((2,), 1)


# Operators ------------------------------------------------------------------------------------------------------------


def test_operators():
    a = np.array([[1.5, -2.0], [0.5, 3.0]])
    x, f = ab.inputTensor(a), ab.inputTensor(a.T)
    pairs = [
        (abs(x), abs(a)),
        (x**2, a**2),
        (x**3.0, a**3),
        (x**-2, a**-2.0),
        (abs(x) ** 0.5, abs(a) ** 0.5),
        (2**x, 2**a),
        (0.5**x, 0.5**a),
        (np.float32(2) ** x, 2**a),
        (x @ f, a @ a.T),
        (x / f, a / a.T),
        (np.array(2.0) * x, 2 * a),
        (x - np.array(2), a - 2),
        (np.array(1) / x, 1 / a),
        (np.int64(3) - x, 3 - a),
    ]
    for k, (got, expected) in enumerate(pairs):
        assert isinstance(got, ab.Expression)
        close(got.npvalue(), expected, EXACT, f"pair {k}")
    x **= 2
    close(x.npvalue(), a**2, EXACT)


def test_squares_and_cubes_are_nodes_of_their_own():
    x = ab.inputVector([3.0])
    assert (x**2).type == (x**2.0).type == ab.square(x).type and (x**3).type == ab.cube(x).type


WRONG = {
    "array * e": (lambda x: np.ones(3) * x, "an expression * a NumPy array of shape (3,)", "inputTensor(array)"),
    "e * array": (lambda x: x * np.ones(3), "an expression * a NumPy array of shape (3,)", "inputTensor(array)"),
    "array + e": (lambda x: np.ones(3) + x, "an expression + a NumPy array of shape (3,)", "inputTensor(array)"),
    "e ** array": (lambda x: x ** np.ones(3), "an expression ** a NumPy array of shape (3,)", "inputTensor(array)"),
    "array @ e": (lambda x: np.ones(3) @ x, "@: the argument is a NumPy array of shape (3,)", "inputTensor(array)"),
    "e @ 2": (lambda x: x @ 2, "@: the argument is 2 (int)", "an expression"),
    "e // 2": (lambda x: x // 2, "unsupported operand type(s) for //", ""),
    "2 % e": (lambda x: 2 % x, "unsupported operand type(s) for %", ""),
    "e ** None": (lambda x: x**None, "an expression ** None (NoneType)", "a number"),
    "e + 0-d strings": (lambda x: x + np.array("a"), "an expression + a NumPy array of shape ()", ""),
    "elu": (lambda x: ab.elu(x, "1"), "elu: alpha is '1' (str)", "a number"),
    "silu": (lambda x: ab.silu(x, None), "silu: beta is None (NoneType)", "a number"),
    "scale_gradient": (lambda x: ab.scale_gradient(x, x), "scale_gradient: lambd is an expression (3,)", "a number"),
    "sin": (lambda x: ab.sin(1.0), "sin: the argument is 1.0 (float)", "an expression"),
    "round, no mode": (lambda x: ab.round(x), "gradient_mode", ""),
    "round, a number": (lambda x: ab.round(x, 1), "round: the gradient mode is 1 (int)", "'straight_through_gradient'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_operands(name):
    function, text, cure = WRONG[name]
    x = ab.inputVector([1, 2, 3])
    before = len(ab.current_graph())
    with pytest.raises(TypeError) as caught:
        function(x)
    assert text in str(caught.value) and cure in str(caught.value)
    assert len(ab.current_graph()) == before


BAD = {
    "round": (lambda x: ab.round(x, "zero"), "round: the gradient mode is 'zero'\n  expected  'zero_gradient' or"),
    "ceil": (lambda x: ab.ceil(x, ""), "ceil: the gradient mode is ''"),
    "floor": (lambda x: ab.floor(x, "none"), "floor: the gradient mode is 'none'"),
    "argmax, mode": (lambda x: ab.argmax(x, "none"), "argmax: the gradient mode is 'none'"),
    "argmax": (lambda x: ab.argmax(ab.reshape(x, (1, 3)), "zero_gradient"), "argmax: 2 dims\n  got       (1,3)"),
    "pow": (lambda x: ab.pow(x, x), "pow: the exponent has 3 numbers\n  got       (3,)  (3,)"),
    "**": (lambda x: x**x, "pow: the exponent has 3 numbers"),
    "emax": (lambda x: ab.emax([x, x[:2]]), "emax: the dims differ\n  got       (3,)  (2,)"),
    "colwise_add": (lambda x: ab.colwise_add(x, x[:2]), "colwise_add: no column of (3,) takes (2,)"),
    "colwise_add, rank": (lambda x: ab.colwise_add(ab.zeros((3, 1, 1)), x), "colwise_add: no column of (3,1,1) takes (3,)"),
    "2:1": (lambda x: x[2:1], "the slice 2:1 of an expression (3,) is empty\n  expected  at least one of 3"),
    "3:": (lambda x: x[3:], "the slice 3: of an expression (3,) is empty"),
    "::-1": (lambda x: x[::-1], "the slice ::-1 of an expression (3,)\n  expected  a step of at least 1"),
    "::0": (lambda x: x[::0], "the slice ::0 of an expression (3,)\n  expected  a step of at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values(name):
    function, text = BAD[name]
    with pytest.raises(ValueError) as caught:
        function(ab.inputVector([1, 2, 3]))
    assert str(caught.value).startswith(text)


# Indices --------------------------------------------------------------------------------------------------------------

a, b, s = np.arange(24.0).reshape(2, 3, 4), np.arange(12.0).reshape(3, 4), slice
INDICES = [
    *(0, -1, np.int64(1), np.int32(-2), np.array(1), Ellipsis, s(None), s(-1, None), s(None, -1), s(0, 100), s(-100, 1)),
    *((1, 2), (1, s(None)), (Ellipsis, 0), (Ellipsis, -1), (s(None), -1), (0, Ellipsis), (s(-1, None), s(None, None, 2))),
    *((np.array(1), 0), s(np.array(0), np.int64(1)), (s(None), np.int64(1)), (Ellipsis, s(1, -1)), (Ellipsis,)),
]


@pytest.mark.parametrize("kind", ["input", "parameter", "node"])
def test_indices_as_numpy(kind):
    for array, more in ((a, [(1, 2, 3), (0, s(None), -1), (s(None), s(0, 9, 2), -1), (1, Ellipsis, s(2))]), (b, [])):
        p = parameter(array, dtype="float64")
        for at in [*INDICES, *more]:
            for _ in range(2):  # the second time the short way
                x = {"input": lambda: ab.inputTensor(array), "parameter": lambda: p, "node": lambda: -(-p)}[kind]()  # noqa: B002
                expected = np.atleast_1d(array[at])
                y = x[at]
                assert y.dim() == (expected.shape, 1), at
                close(y.npvalue(), expected, 0)
                if kind != "input":
                    p._reset_gradient()
                    weights = np.random.default_rng(0).uniform(1, 2, expected.shape)
                    ab.sum_elems(ab.cmult(y, ab.inputTensor(weights))).backward()
                    gradient = np.zeros_like(array)
                    gradient[at] = weights.reshape(np.shape(array[at]))
                    close(p.grad_as_array(), gradient, EXACT)


def test_one_index_more_is_for_the_batch():
    x = ab.inputTensor(a, batched=True)
    for at in [(s(None), s(None), 1), (0, 1, -1), (s(None), 2, s(1, 3)), (s(1), s(None), s(None, None, 2))]:
        expected = a[at[0] if isinstance(at[0], slice) else s(at[0], at[0] + 1)]
        batch = at[2] if isinstance(at[2], slice) else s(at[2], at[2] + 1 or None)
        expected = expected[:, :, batch][:, at[1]] if isinstance(at[1], slice) else expected[:, at[1]][:, batch]
        dims, size = x[at].dim()
        close(x[at].npvalue().ravel(), expected.ravel(), 0)
        assert size == len(range(4)[batch]) and len(dims) == max(1, sum(isinstance(k, slice) for k in at[:2]))
    assert x[..., 0].dim() == ((2,), 4) and x[...].dim() == ((2, 3), 4)


def test_wrong_indices():
    x = ab.inputTensor(b)
    for at in (3, -4, (0, 4), (Ellipsis, 4), (0, 0, 1), (0, 0, 0, 0), np.int64(7)):
        with pytest.raises(IndexError):
            x[at]
    for at in (1.0, "a", None, [0], (0, None), (0, 1.5), s(0.5, None), (s("a"), 0), (Ellipsis, Ellipsis, Ellipsis)):
        with pytest.raises((TypeError, IndexError)):
            x[at]


def test_length_iteration_and_truth():
    x = ab.inputTensor(b)
    assert len(x) == 3 and bool(x) and bool(ab.zeros((1,)))
    rows = list(x)
    assert len(rows) == 3
    np.testing.assert_array_equal([row.npvalue() for row in rows], b)
    table = ab.ParameterCollection(dtype="float64").lookup_parameters_from_numpy(b)
    assert len(table) == 3
    np.testing.assert_array_equal([row.npvalue() for row in table], b)
    with pytest.raises(IndexError):
        table[3]
    p = parameter(b, dtype="float64")
    first, *others = p
    assert len(p) == 3 and len(others) == 2 and first.dim() == ((4,), 1)

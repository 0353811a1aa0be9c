"""Linear algebra: what the laws over single ops do not show. Ops made of several nodes, errors, edges, which products batch."""

import importlib
import json
import types

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import assume, given
from laws import (
    EXACT,
    batched_equals_alone,
    close,
    flat,
    forward_equals_reference,
    gradient_equals_differences,
    inputs_stay_and_gradients_add_up,
    same_bits_twice,
)
from strategies import examples, plans
from test_oracle import AGREEMENT, calls, outcome

import autobatch as ab
from autobatch.graph import TYPES
from autobatch.kernels._op import OPS, Sample, Shape, Tensor

# Contractions that become several nodes -------------------------------------------------------------------------------


def contraction(name, reference, letters):
    """A call of such a function in the form of an op's record."""

    def samples(choose):
        size, batch = {letter: choose.integer(1, 4) for letter in "ijk"}, choose.batch()
        shapes = [Shape(tuple(size[c] for c in dims), batch if choose.integer(0, 2) else 1) for dims in letters]
        return Sample(tuple(map(Tensor, shapes)))

    return types.SimpleNamespace(
        name=name, doc=name, samples=samples, reference=reference, surrogate=None, shared=lambda position: position == 0
    )


COMPOSED = [
    contraction("contract3d_1d_bias", lambda x, y, b: (x * y).sum(axis=2) + b, ["ijk", "k", "ij"]),
    contraction("contract3d_1d_1d", lambda x, y, z: ((x * y).sum(axis=2) * z).sum(axis=1), ["ijk", "k", "j"]),
    contraction("contract3d_1d_1d_bias", lambda x, y, z, b: ((x * y).sum(axis=2) * z).sum(axis=1) + b, ["ijk", "k", "j", "i"]),
]
every_contraction = pytest.mark.parametrize("op", COMPOSED, ids=lambda op: op.name)


@every_contraction
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_contractions_keep_the_laws(op, dtype):
    @examples(25)
    @given(plans(op))
    def values(plan):
        forward_equals_reference(plan, dtype)

    @examples(25)
    @given(plans(op, 5))
    def together(plan):
        batched_equals_alone(plan, dtype)

    @examples(8)
    @given(plans(op, 4))
    def again(plan):
        inputs_stay_and_gradients_add_up(plan, dtype)
        same_bits_twice(plan, dtype)

    for law in (values, together, again):
        law()


@every_contraction
def test_gradients_of_contractions(op):
    checked = 0

    @examples(50)
    @given(plans(op))
    def check(plan):
        nonlocal checked
        checked += gradient_equals_differences(plan)

    check()
    assert checked >= 10


@pytest.mark.oracle
@every_contraction
def test_contractions_give_what_dynet_gives(dynet, op):
    @examples(15)
    @given(calls(op))
    def check(drawn):
        call, arrays, rng = drawn
        assume(op.name == "contract3d_1d_bias" or all(a.shape[-1] == 1 for a in arrays))  # the others have no minibatch
        weights = [rng.uniform(-1, 1, op.reference(*arrays).shape)]
        for ours, theirs in zip(outcome(ab, op, call, arrays, weights), outcome(dynet, op, call, arrays, weights), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                close(a, b, AGREEMENT, op.name)

    check()


def test_a_contraction_that_fails_leaves_no_node():
    x, y, b = ab.zeros((2, 3, 4)), ab.zeros((4,)), ab.zeros((2, 3))
    ab.contract3d_1d_bias(x, y, b)
    with ab.Graph() as other:
        c = ab.zeros((2, 3))
    assert other is not ab.cg()
    nodes = len(ab.cg())
    with pytest.raises(ab.ArgumentError, match="different graphs"):
        ab.contract3d_1d_bias(x, y, c)
    assert len(ab.cg()) == nodes


# Errors ---------------------------------------------------------------------------------------------------------------


def tensors(*shapes):
    return [ab.zeros(dims, batch) for dims, batch in shapes]


WRONG = [
    (
        "inverse",
        [((2, 3), 1)],
        "inverse: the matrix is not square\n  got       (2,3)\n  expected  a square matrix, (n,n)",
    ),
    ("inverse", [((4,), 2)], "inverse: 1 dim\n  got       (4,)x2\n  expected  a square matrix, (n,n)"),
    ("logdet", [((2, 2, 2), 1)], "logdet: 3 dims\n  got       (2,2,2)\n  expected  a square matrix, (n,n)"),
    (
        "trace_of_product",
        [((2, 3), 1), ((3, 2), 1)],
        "trace_of_product: the dims differ\n  got       (2,3)  (3,2)\n"
        "  expected  two matrices (or vectors) of the same dims, equal batch sizes or 1\n  try       transpose one side",
    ),
    (
        "trace_of_product",
        [((2, 3, 1), 1), ((2, 3, 1), 1)],
        "trace_of_product: 3 dims\n  got       (2,3,1)  (2,3,1)\n"
        "  expected  two matrices (or vectors) of the same dims, equal batch sizes or 1\n"
        "  try       dot_product, which takes any dims",
    ),
    (
        "trace_of_product",
        [((2, 3), 2), ((2, 3), 3)],
        "trace_of_product: batch sizes 2 and 3 do not fit\n  got       (2,3)x2  (2,3)x3\n  expected  equal batch sizes, or 1",
    ),
    (
        "contract3d_1d",
        [((2, 3, 4), 1), ((3,), 1)],
        "contract3d_1d: the last dim of x is 4 but y has the dims (3,)\n  got       (2,3,4)  (3,)\n"
        "  expected  x (i,j,k), y (k,)",
    ),
    (
        "contract3d_1d",
        [((2, 3), 1), ((3,), 1)],
        "contract3d_1d: x has 2 dims\n  got       (2,3)  (3,)\n  expected  x (i,j,k), y (k,)",
    ),
    (
        "contract3d_1d_bias",
        [((2, 3, 4), 1), ((4,), 1), ((3, 2), 1)],
        "contract3d_1d_bias: i is 2 in x but 3 in b\n  got       (2,3,4)  (4,)  (3,2)\n  expected  x (i,j,k), y (k,), b (i,j)",
    ),
    (
        "contract3d_1d_bias",
        [((2, 3, 4), 2), ((4,), 1), ((2, 3), 3)],
        "contract3d_1d_bias: batch sizes 2 and 3 do not fit\n  got       (2,3,4)x2  (4,)  (2,3)x3\n"
        "  expected  equal batch sizes, or 1",
    ),
    (
        "contract3d_1d_1d",
        [((2, 3, 4), 1), ((4,), 1), ((5,), 1)],
        "contract3d_1d_1d: j is 3 in x but 5 in z\n  got       (2,3,4)  (4,)  (5,)\n  expected  x (i,j,k), y (k,), z (j,)",
    ),
    (
        "contract3d_1d_1d_bias",
        [((2, 3, 4), 1), ((4,), 1), ((3,), 1), ((1, 2), 1)],
        "contract3d_1d_1d_bias: b has 2 dims\n  got       (2,3,4)  (4,)  (3,)  (1,2)\n"
        "  expected  x (i,j,k), y (k,), z (j,), b (i,)",
    ),
]


@pytest.mark.parametrize(("name", "shapes", "message"), WRONG, ids=[f"{w[0]}-{k}" for k, w in enumerate(WRONG)])
def test_wrong_dims(name, shapes, message):
    arguments = tensors(*shapes)
    nodes = len(ab.cg())
    with pytest.raises(ab.ShapeError) as caught:
        getattr(ab, name)(*arguments)
    assert str(caught.value) == message
    assert len(ab.cg()) == nodes


@pytest.mark.parametrize("name", ["inverse", "logdet", "trace_of_product", "contract3d_1d", "contract3d_1d_bias"])
def test_what_is_no_expression(name):
    count = {"inverse": 1, "logdet": 1, "contract3d_1d_bias": 3}.get(name, 2)
    for wrong in (None, np.eye(2), [1.0], "x"):
        with pytest.raises(TypeError, match=name):
            getattr(ab, name)(*[wrong] * count)


def test_stale_arguments():
    old = ab.zeros((2, 2, 2)), ab.zeros((2,)), ab.zeros((2, 2))
    ab.contract3d_1d_bias(*old), ab.inverse(old[2]), ab.logdet(old[2])
    ab.renew_cg()
    new = ab.zeros((2, 2, 2)), ab.zeros((2,)), ab.zeros((2, 2))
    for stale in range(3):
        with pytest.raises(ValueError, match="renew_cg"):
            ab.contract3d_1d_bias(*[old[k] if k == stale else new[k] for k in range(3)])
    for function in (ab.inverse, ab.logdet):
        with pytest.raises(ValueError, match="renew_cg"):
            function(old[2])


# Inverse and determinant ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17, 64, 150])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inverse_is_as_accurate_as_that_of_numpy(n, dtype):
    rng, least = np.random.default_rng(n), np.finfo(dtype).eps
    ab.configure(dtype=dtype)
    ab.renew_cg()
    xs = rng.normal(size=(n, n, 5)).astype(dtype)
    e = ab.inverse(ab.inputTensor(xs, batched=True))
    ours = e.npvalue()
    for b in range(5):
        x = xs[..., b]
        theirs = np.linalg.inv(x)
        exact = np.linalg.inv(x.astype(np.float64))
        error = np.abs(ours[..., b] - exact).max()
        assert error <= 4 * np.abs(theirs - exact).max() + 4 * n * least * np.abs(exact).max() or dtype == "float64"
        residual = np.abs(ours[..., b] @ x.astype(np.float64) - np.eye(n)).max()
        assert residual <= 8 * n * least * np.linalg.cond(x.astype(np.float64))
    logs = ab.logdet(ab.inputTensor(xs, batched=True)).npvalue().ravel()
    signs, expected = np.linalg.slogdet(np.moveaxis(xs, -1, 0).astype(np.float64))
    np.testing.assert_array_equal(np.isnan(logs), signs < 0)
    close(logs[signs > 0], expected[signs > 0], 4 * n * least * np.linalg.cond(np.moveaxis(xs, -1, 0)).max())


def test_matrices_that_need_their_rows_exchanged():
    ab.configure(dtype="float64")
    ab.renew_cg()
    rng = np.random.default_rng(0)
    for n in (2, 3, 7):
        for _ in range(10):
            x = np.eye(n)[rng.permutation(n)] * rng.uniform(1, 2, n)
            close(ab.inverse(ab.inputTensor(x)).npvalue(), np.linalg.inv(x), EXACT)
            sign, log = np.linalg.slogdet(x)
            close(ab.logdet(ab.inputTensor(x)).npvalue(), [log if sign > 0 else np.nan], EXACT)


def test_determinants_that_overflow_have_a_logarithm():
    x = np.eye(40) * 1e-3
    close(ab.logdet(ab.inputTensor(x)).npvalue(), [40 * np.log(1e-3)], 1e-5)
    close(ab.logdet(ab.inputTensor(1e6 * x)).npvalue(), [40 * np.log(1e3)], 1e-5)


SINGULAR = [
    np.zeros((1, 1)),
    np.zeros((3, 3)),
    np.ones((2, 2)),
    np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, 0.0, 1.0]]),
    np.array([[0.0, 1.0], [0.0, 2.0]]),
]


@pytest.mark.parametrize("policy", ["ratio", "none"])
@pytest.mark.parametrize("x", SINGULAR, ids=range(len(SINGULAR)))
def test_singular_matrices_raise_nothing_and_leave_their_batch_alone(x, policy):
    model, n = ab.ParameterCollection(), len(x)
    good = 2 * np.eye(n)
    p, q = model.add_parameters((n, n), init=x), model.add_parameters((n, n), init=good)
    with ab.Graph(policy=policy):
        inverses, logs = [ab.inverse(e) for e in (p, q)], [ab.logdet(e) for e in (p, q)]
        loss = ab.esum([ab.sum_elems(e) for e in inverses] + logs)
        loss.forward()
        assert not np.isfinite(inverses[0].npvalue()).all()
        close(inverses[1].npvalue(), good / 4, EXACT)
        assert logs[0].scalar_value() == -np.inf
        close(logs[1].npvalue(), [n * np.log(2)], 1e-6)
        loss.backward()
        assert not np.isfinite(p.grad_as_array()).all()
        close(q.grad_as_array(), good / 4 - np.full((n, n), 0.25), 1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_in_a_matrix(bad):
    x = np.eye(3)
    x[1, 0] = bad
    p = ab.ParameterCollection().add_parameters((3, 3), init=x)
    assert not np.isfinite(ab.inverse(p).npvalue()).all()
    loss = ab.logdet(p) + ab.sum_elems(ab.inverse(p))
    loss.backward()
    assert not np.isfinite(p.grad_as_array()).all()
    if np.isnan(bad):
        assert np.isnan(ab.logdet(ab.inputTensor(np.full((3, 3), np.nan))).scalar_value())


def test_the_check_for_nan_names_the_node():
    ab.configure(check_nan=True)
    ab.renew_cg()
    x = ab.inputTensor(np.zeros((2, 2)))
    ab.inverse(ab.inputTensor(np.eye(2)))
    with pytest.raises(ab.NumericalError, match="inverse"):
        ab.inverse(x).forward()
    ab.renew_cg()
    with pytest.raises(ab.NumericalError, match="logdet"):
        ab.logdet(ab.inputTensor(-np.eye(3))).forward()


def test_the_argument_of_logdet_stays():
    x = np.array([[4.0, 1.0], [2.0, 3.0]])
    e = ab.inputTensor(x)
    ab.logdet(e).forward()
    np.testing.assert_array_equal(e.npvalue(), x)


# Which products batch -------------------------------------------------------------------------------------------------


def attention(states, query):
    """Weights over states, and their mean by these."""
    H = ab.concatenate_cols(states)
    return H * ab.softmax(ab.transpose(H) * query)


@pytest.mark.parametrize("batch", [1, 3])
def test_products_with_computed_left_sides_batch_across_instances(batch):
    rng = np.random.default_rng(0)
    model = ab.ParameterCollection(dtype="float64")
    weights = [model.add_parameters((4 * batch,), init=rng.uniform(-1, 1, 4 * batch)) for _ in range(20)]
    gradients, values = [], []
    for policy in ("none", "ratio"):
        with ab.Graph(dtype="float64", policy=policy) as graph:
            losses = []
            for i in range(5):
                states = [ab.tanh(ab.reshape(w, (4,), batch)) for w in weights[3 * i : 3 * i + 3]]
                losses.append(ab.sum_batches(ab.sum_elems(ab.square(attention(states, ab.tanh(states[0]))))))
            loss = ab.esum(losses)
            loss.forward()
            values.append([e.npvalue() for e in losses])
            counts = {}
            for segment in graph.execution.segments:
                for l in segment.schedule.batch_type:
                    name = TYPES.records[segment.present[l]].name
                    counts[name] = counts.get(name, 0) + 1
            assert counts["matmul"] == (10 if policy == "none" else 2)
            for w in weights:
                w._reset_gradient()
            loss.backward()
            gradients.append([w.grad_as_array() for w in weights])
    for a, b in zip([*values[0], *gradients[0]], [*values[1], *gradients[1]], strict=True):
        close(b, a, EXACT)


PRODUCTS = [((3, 4), (4, 5)), ((3,), (1, 5)), ((30, 40), (40, 20)), ((3, 99), (99,))]  # by BLAS
PRODUCTS += [((3, 4), (4,)), ((1, 4), (4,)), ((1, 50), (50,)), ((9, 1), (1,)), ((17, 33), (33,))]  # by loops


@pytest.mark.parametrize("shapes", PRODUCTS, ids=str)
@pytest.mark.parametrize("batches", [(1, 1), (3, 3), (1, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_of_computed_matrices_run_as_one_batch(shapes, batches, dtype):
    rng = np.random.default_rng(0)
    ab.configure(dtype=dtype)
    model = ab.ParameterCollection(dtype=dtype)
    arrays = [[rng.uniform(-1, 1, (*s, b)) for s, b in zip(shapes, batches, strict=True)] for _ in range(7)]
    leaves = [[model.add_parameters((a.size,), init=flat(a)) for a in pair] for pair in arrays]
    with ab.Graph(dtype=dtype, policy="ratio") as graph:
        sides = [[-ab.reshape(-p, s, b) for p, s, b in zip(pair, shapes, batches, strict=True)] for pair in leaves]
        products = [a * x for a, x in sides]
        loss = ab.esum([ab.sum_batches(ab.sum_elems(ab.square(y))) for y in products])
        loss.forward()
        names = [TYPES.records[s.present[l]].name for s in graph.execution.segments for l in s.schedule.batch_type]
        assert names.count("matmul") == 1
        loss.backward()
    tolerance = EXACT if dtype == "float64" else 4e-6
    for (a, x), y, pair in zip(arrays, products, leaves, strict=True):
        expected = OPS["matmul"].reference(a, x)
        close(y.npvalue().reshape(expected.shape), expected, tolerance)
        a, x = (v if v.ndim == 3 else v[:, None] for v in (a, x))
        dy = 2 * expected.reshape(a.shape[0], x.shape[1], -1)
        for p, d, v in zip(
            pair,
            (np.einsum("mnb,knb->mkb", dy, x + 0 * dy[:1, :1]), np.einsum("mkb,mnb->knb", a + 0 * dy[:1, :1], dy)),
            (a, x),
            strict=True,
        ):
            d = d if v.shape[-1] == d.shape[-1] else d.sum(axis=-1, keepdims=True)
            close(p.grad_as_array(), flat(d), tolerance)


@pytest.mark.parametrize("shape", [(4, 3), (3, 99), (12, 20)], ids=str)
def test_a_computed_left_side_that_all_share(shape):
    """Its products, and the gradients of the right sides, are one product each; the values are those of one by one."""
    rng = np.random.default_rng(0)
    model = ab.ParameterCollection(dtype="float64")
    W, table = model.add_parameters(shape[::-1], init=rng.uniform(-1, 1, shape[::-1])), rng.uniform(-1, 1, (9, shape[1]))
    words = model.add_lookup_parameters(table.shape, init=table)
    results = []
    for policy in ("none", "ratio"):
        with ab.Graph(dtype="float64", policy=policy):
            A = ab.transpose(W)
            products = [A * -words[i] for i in (*range(9), 3, 3)]
            loss = ab.sum_elems(ab.square(ab.concatenate_cols(products)))
            loss.forward()
            loss.backward()
            results.append([*(y.npvalue() for y in products), W.grad_as_array(), words.grad_as_array()])
        W._reset_gradient(), words._reset_gradient()
    for a, b in zip(*results, strict=True):
        close(b, a, EXACT)
    x = -table[[*range(9), 3, 3]].T
    close(results[1][-2], 2 * x @ (W.npvalue().T @ x).T, EXACT)


# The benchmark of all ops ---------------------------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.ops")


def test_the_benchmark_runs(benchmark, tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("ops.json", "ops.md")]
    few = ["--nodes", "5", "--rounds", "1", "--seconds", "0", "--json", files[0], "--markdown", files[1]]
    results = benchmark.main(["--ops", "tanh", "matmul", *few])
    assert set(results) >= {"tanh", "matmul", "matmul (computed)"}
    assert results["tanh"]["numpy"] > 0 and "numpy" not in results["matmul"] and results["matmul"]["both"] > 0
    assert results["tanh"]["rounds"] == 1
    assert capsys.readouterr().out.count("tanh") == 1
    with open(files[0], encoding="utf-8") as file:
        assert json.load(file) == results
    with open(files[1], encoding="utf-8") as file:
        assert file.read().startswith("| op |")


def test_the_benchmark_has_a_call_of_every_op(benchmark):
    for op in OPS.values():
        for size in (benchmark.SIZE, benchmark.STACKED_SIZE):
            for example in benchmark.examples(op, size):
                program = benchmark.Program(op, example, 2, "ratio", gradients=False)
                assert op in {TYPES.records[t].op for t in program.graph.recorded_types}, f"{op.name}: another op was recorded"
        if benchmark.family(op.name):
            benchmark.Stacked(op, example, program)


def test_the_benchmark_fails_loudly_for_an_op_without_a_call(benchmark, monkeypatch):
    monkeypatch.delitem(benchmark.EXAMPLES, "lookup_batch")
    with pytest.raises(LookupError, match="no call of lookup_batch of size 64"):
        benchmark.examples(OPS["lookup_batch"], 64)
    with pytest.raises(SystemExit, match="'tahn'"):
        benchmark.main(["--ops", "tahn"])


# Thin products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("columns", [1, 2, 7, 26, 64, 65])
@pytest.mark.parametrize("rows, depth", [(400, 100), (1024, 256), (143, 1100), (1201, 33), (2000, 31)])
def test_thin_products_that_are_cut_into_blocks_of_rows(rows, depth, columns, dtype):
    rng = np.random.default_rng(rows + columns)
    W, xs, dys = (rng.normal(size=s).astype(dtype) for s in ((rows, depth), (depth, columns), (rows, columns)))
    weight = ab.ParameterCollection(dtype=dtype).parameters_from_numpy(W)
    with ab.Graph(dtype=dtype):
        each = [ab.inputVector(x) for x in xs.T]
        ys = [weight * x for x in each]
        ab.esum([ab.dot_product(y, ab.inputVector(dy)) for y, dy in zip(ys, dys.T, strict=True)]).backward(full=True)
        tolerance = {"float32": 2e-5, "float64": 1e-13}[dtype]
        for got, expected in (
            (np.stack([y.npvalue() for y in ys], 1), W.astype(float) @ xs),
            (np.stack([x.gradient() for x in each], 1), W.T.astype(float) @ dys),
            (weight.grad_as_array(), dys.astype(float) @ xs.T),
        ):
            np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())

"""Reductions as they run on a card: sizes beyond those of the samples, ties, NaN and infinities, against those of a processor.

In the simulator, which also sees races. A team has at most 256 lanes: in 300 numbers there are several for each of them.
"""

import contextlib
import ctypes
import os

import numpy as np
import pytest
from fake_driver import simulated_card
from simulator import Simulator, SimulatorError

import autobatch as ab
from autobatch.kernels import _lanes
from autobatch.kernels._jit import ITEMS, LENGTH, item, kernel
from autobatch.kernels._lanes import before, items, lane, lanes, parts, width

INF, NAN = np.inf, np.nan
# In float32 the same kernels run in `test_cuda_laws.py`; here only where a run is told to try more.
TOLERANCE = {"float64": 1e-11} | ({"float32": 1e-4} if int(os.environ.get("AUTOBATCH_EXAMPLES", "1")) > 1 else {})


def numbers(*dims, batch=1, seed=0, low=-2.0, high=2.0, decimals=None):
    """Numbers of a node; with `decimals` many are equal."""
    x = np.random.default_rng(seed).uniform(low, high, (*dims, batch))
    return x if decimals is None else x.round(decimals)


def evaluated(call, arrays, shared, dtype):
    """Return the values of two nodes of one type, and all gradients of the sum of their squares where that is finite."""
    ab.configure(dtype=dtype)
    ab.renew_cg()
    model = ab.ParameterCollection(dtype=dtype)
    parameters = {k: model.parameters_from_numpy(arrays[k][..., 0]) for k in shared}
    inputs, ys = [], []
    for n in range(2):
        own = [ab.inputTensor(np.roll(x, n, axis=0), batched=True) for x in arrays]
        inputs += [x for k, x in enumerate(own) if k not in shared]
        ys.append(call(*(parameters.get(k, x) for k, x in enumerate(own))))
    ab.esum([ab.sum_batches(ab.sum_elems(ab.cmult(y, y))) for y in ys]).backward(full=True)
    return [y.npvalue() for y in ys], [x.gradient() for x in inputs] + [p.grad_as_array() for p in parameters.values()]


def agrees(call, *arrays, shared=(), exact=False):
    """An op is the same on a card and on a processor; gradients that are not finite are not compared."""
    for dtype, tolerance in TOLERANCE.items():
        expected, slopes = evaluated(call, arrays, shared, dtype)
        with simulated_card():
            got, others = evaluated(call, arrays, shared, dtype)
        for e, g in zip(expected, got, strict=True):
            np.testing.assert_allclose(g, e, rtol=0 if exact else tolerance, atol=0 if exact else tolerance)
        for e, g in zip(slopes, others, strict=True):
            scale = np.abs(e[np.isfinite(e)]).max(initial=1)
            np.testing.assert_allclose(g, e, rtol=tolerance, atol=tolerance * scale)


# Softmax and the like -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "d"), [((300,), 0), ((70, 3), 0), ((3, 70), 1), ((40, 6), 1), ((5, 40), 0)])
def test_softmax(dims, d):
    agrees(lambda x: ab.softmax(x, d), numbers(*dims, batch=2))


def test_masked_scores():
    x = numbers(300)
    x[:100] = -INF
    agrees(ab.softmax, x)
    agrees(lambda x: ab.pickneglogsoftmax(x, 120), np.concatenate([x[-30:], x[:-30]]))


@pytest.mark.parametrize("special", [-INF, INF, NAN])
def test_softmax_of_numbers_that_are_none(special):
    ab.configure(dtype="float64")
    x = np.full(300, special) if special == -INF else np.append(np.zeros(299), special)
    with simulated_card():
        ab.renew_cg()
        assert np.isnan(ab.softmax(ab.inputVector(x)).npvalue()).any()


def test_log_softmax():
    agrees(ab.log_softmax, numbers(70, 3))
    agrees(lambda x: ab.logistic(ab.log_softmax(x, range(3, 90))), numbers(300, 2))


def test_scores_far_from_zero():
    agrees(lambda x: ab.log_softmax(x) * 0.1, 1e3 + numbers(300, decimals=1))


def test_losses_over_a_vocabulary():
    agrees(lambda x: ab.pickneglogsoftmax(x, 77), numbers(300))
    agrees(lambda x: ab.pickneglogsoftmax_batch(x, [0, 299, 30, 31]), numbers(300, batch=4))


@pytest.mark.parametrize(("dims", "d"), [((300,), 0), ((70, 3), 0), ((3, 70), 1), ((40, 6), 1)])
def test_logsumexp_dim(dims, d):
    agrees(lambda x: ab.logsumexp_dim(x, d), numbers(*dims, batch=2))


def test_logsumexp_of_infinities():
    x = numbers(100, 5)
    x[:, 0], x[3, 1], x[5, 2], x[7, 3] = -INF, INF, NAN, -INF
    ab.configure(dtype="float64")
    values = []
    for machine in (contextlib.nullcontext, simulated_card):
        with machine():
            ab.renew_cg()
            values.append(ab.logsumexp_dim(ab.inputTensor(x[..., 0]), 0).npvalue())
    np.testing.assert_allclose(values[0], values[1], rtol=1e-12)


def test_logsumexp_of_a_list():
    agrees(lambda x, z: ab.logsumexp([x, z, x]), numbers(70, batch=3), numbers(70))
    agrees(lambda x, z: ab.logsumexp([x, z]), numbers(1, batch=60), numbers(1))


# Sums, moments, deviations --------------------------------------------------------------------------------------------

WALKS = [
    ((300,), [0], False),
    ((4, 70, 3), [1], False),
    ((4, 30, 3), [0, 2], False),
    ((4, 5, 7), [1], True),
    ((2, 3, 2, 3, 2), [1, 3], False),
    ((2, 3, 2, 3, 2), [0, 2, 4], True),
    ((300, 2), [1], False),
]


@pytest.mark.parametrize(("dims", "d", "b"), WALKS)
def test_sums_and_deviations(dims, d, b):
    x = numbers(*dims, batch=3)
    agrees(lambda x: ab.sum_dim(x, d, b), x)
    agrees(lambda x: ab.moment_dim(x, d, 3, b), x)
    agrees(lambda x: ab.std_dim(x, d, b), x)
    agrees(lambda x: ab.std_dim(x, d, b, 2000), x)


def test_norms_and_means_of_elements_and_of_the_batch():
    agrees(ab.l2_norm, numbers(300, batch=2))
    agrees(ab.std_elems, 1e3 + numbers(300, batch=2, decimals=2))
    agrees(ab.mean_batches, numbers(3, batch=100))


def test_sums_of_lists():
    agrees(lambda *x: ab.esum(list(x)), *(numbers(1, seed=k) for k in range(40)))
    agrees(lambda x, z: ab.esum([x, z, x]), numbers(70, batch=2), numbers(70))
    agrees(lambda x, z: ab.average([x, z]), numbers(2, batch=50), numbers(2))


def test_sums_of_elements_and_of_the_batch():
    agrees(ab.sum_elems, numbers(300, batch=5))
    agrees(ab.sum_batches, numbers(2, batch=70))
    agrees(ab.sum_batches, numbers(300, batch=3))


# Largest and smallest, running sums, windows --------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "d"), [((300,), 0), ((70, 3), 0), ((3, 70), 1), ((40, 6), 1)])
def test_extremes_with_ties(dims, d):
    x = numbers(*dims, batch=2, decimals=1)
    agrees(lambda x: ab.max_dim(x, d), x, exact=True)
    agrees(lambda x: ab.min_dim(x, d), x, exact=True)
    agrees(lambda x: ab.kmax_pooling(x, 1 + dims[d] // 3, d), x, exact=True)
    agrees(lambda x: ab.kmax_pooling(x, dims[d], d), x, exact=True)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 30])
def test_extremes_with_nan_and_infinities(k):
    x = numbers(100)
    x[[3, 90], 0], x[[50, 7, 8], 0] = NAN, [INF, -INF, INF]
    ab.configure(dtype="float32")
    found = []
    for machine in (contextlib.nullcontext, simulated_card):
        with machine():
            ab.renew_cg()
            p = ab.ParameterCollection().parameters_from_numpy(x[:, 0])
            y = ab.kmax_pooling(p, k, 0)
            ab.dot_product(ab.inputVector(np.arange(1.0, k + 1)), y).backward()
            found.append((y.npvalue(), p.grad_as_array()))
    for expected, got in zip(*found, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("dims", "d"), [((300,), 0), ((70, 3), 0), ((3, 70), 1), ((40, 6), 1)])
def test_cumsum(dims, d):
    agrees(lambda x: ab.cumsum(x, d), numbers(*dims, batch=2))


@pytest.mark.parametrize("valid", [True, False])
def test_maxpooling(valid):
    x = numbers(9, 8, 2, batch=2, decimals=0)
    agrees(lambda x: ab.maxpooling2d(x, [3, 4], [2, 1], valid), x, exact=True)
    agrees(lambda x: ab.maxpooling2d(x, [2, 2], [3, 3], valid), x, exact=True)


def test_sums_of_neighbours():
    agrees(lambda x: ab.fold_rows(x, 100), numbers(200, 2))
    agrees(lambda x: ab.fold_rows(x, 2), numbers(80, 3))
    agrees(lambda x: ab.kmh_ngram(x, 4), numbers(5, 30, batch=2))


def test_circular():
    u, v = numbers(70, batch=3), numbers(70, seed=1)
    agrees(ab.circ_conv, u, v)
    agrees(ab.circ_corr, v, u)


def test_filters_of_one_parameter():
    x, f = numbers(4, 30, batch=2), numbers(4, 3, 2, seed=1)
    agrees(ab.filter1d_narrow, x, f, shared=(1,))
    agrees(ab.filter1d_narrow, x, f)
    agrees(ab.filter1d_narrow, numbers(30, 8), numbers(30, 6, 1, seed=1, batch=2))


# Normalisation, sparsemax, matrices -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "g", "b"),
    [
        ((300,), (300,), (300,)),
        ((40, 5), (40,), (1, 5)),
        ((40,), (40, 5), (1,)),
        ((1, 60), (3, 1), (3, 60)),
        ((3, 4, 5), (1, 4), (3, 1, 5)),
    ],
)
def test_layer_norm(x, g, b):
    arrays = numbers(*x, batch=3), numbers(*g, seed=1), numbers(*b, seed=2)
    agrees(ab.layer_norm, *arrays)
    agrees(ab.layer_norm, numbers(*x), numbers(*g, seed=1, batch=2), numbers(*b, seed=2, batch=2))


def test_weight_norm():
    agrees(ab.weight_norm, numbers(30, 5, batch=2), numbers(1))
    agrees(ab.weight_norm, numbers(300), numbers(1, batch=3))


def test_sparsemax():
    agrees(ab.sparsemax, numbers(300, 2))
    agrees(ab.sparsemax, numbers(300, 2, low=-0.01, high=0.01))
    agrees(lambda x: ab.sparsemax_loss(x, [[3, 1, 4], [5], [100, 299]]), numbers(300, batch=3))
    bounds = numbers(300, low=0.0, high=0.02, batch=2)
    agrees(ab.constrained_softmax, numbers(300), bounds)


def test_matrices():
    x = numbers(11, 11, batch=2) + np.roll(8 * np.eye(11), 3, axis=0)[..., None]
    agrees(lambda x: ab.inverse(x) * 10, x)
    agrees(lambda x: ab.logdet(ab.transpose(x) * x + ab.inputTensor(np.eye(11))), x)


def test_singular_matrices():
    ab.configure(dtype="float64")
    with simulated_card():
        ab.renew_cg()
        assert ab.logdet(ab.inputTensor(np.ones((5, 5)))).npvalue() == -INF
        assert np.isnan(ab.logdet(ab.inputTensor(np.diag([1.0, -1.0]))).npvalue())


# Words ----------------------------------------------------------------------------------------------------------------


@kernel
def _places(ins, T):
    n = ins[ITEMS]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for p in parts(3):
            y[p * width() + lane()] = before(x[p * width() + lane()])


@kernel
def _all_parts_write_one(ins, T):
    n = ins[ITEMS]
    for i in items(n):
        y = item(ins, 0, i, T)
        for p in parts(3):
            for j in lanes(2):
                y[j] = p


def launched(kernel, lanes_of_team, x, parts_of_item):
    sim = Simulator()
    y = np.zeros_like(x)
    ins = np.zeros(9, np.int64)
    ins[ITEMS], ins[LENGTH] = 1, len(ins) | parts_of_item << 32
    for k, array in enumerate((y, x)):
        ins[5 + 2 * k] = sim.add(array.reshape(-1).view(np.uint8))
    sim.launch(
        kernel.function, (1, 1, parts_of_item), (lanes_of_team, 1), sim.add(ins.view(np.uint8)), str(x.dtype), int(ins[5])
    )
    return y


@pytest.mark.parametrize("lanes_of_team", [1, 4, 64])
@pytest.mark.parametrize("parts_of_item", [1, 2, 3])
def test_sums_of_the_lanes_before(lanes_of_team, parts_of_item):
    x = np.random.default_rng(0).integers(0, 9, (3, lanes_of_team)).astype(np.float64)
    y = launched(_places, lanes_of_team, x, parts_of_item)
    np.testing.assert_array_equal(y, x.cumsum(axis=1) - x)


def test_parts_of_an_item_that_write_to_one_place():
    with pytest.raises(SimulatorError, match="writes what thread"):
        launched(_all_parts_write_one, 2, np.zeros(6), 2)


def test_on_a_processor_the_words_mean_one_lane():
    assert (_lanes.items, _lanes.parts, _lanes.lanes) == (range, range, range)
    x, y, ins = np.arange(1.0, 4), np.full(3, NAN), np.zeros(9, np.int64)
    ins[ITEMS] = 1
    ins[5], ins[7] = y.ctypes.data, x.ctypes.data
    ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(_places.address("float64"))(ins.ctypes.data, y.ctypes.data)
    np.testing.assert_array_equal(y, 0)


def test_sums_in_two_helpers_of_a_kernel_link():
    pytest.importorskip("numba_cuda")
    from autobatch.kernels import _cuda
    from autobatch.kernels.deviations import std

    code = _cuda.compile_kernel(std.card.function, "float32", (9, 0))
    assert (code.local, code.spills) == (0, 0) and ".f64" not in code.ptx

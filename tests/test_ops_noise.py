"""Random numbers of ops: their distributions, their independence, what they follow from, errors. Seeds are fixed."""

import numpy as np
import pytest
from scipy import stats

import autobatch as ab
from autobatch.kernels._random import reference_bits
from autobatch.schedule import POLICIES

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
N = 50_000
UNLIKELY = 1e-4  # a p-value below it has no excuse, at a fixed seed

INPUTS = {
    "normal": (lambda n: ab.random_normal(n, 1.5, 2.0), stats.norm(1.5, 2.0)),
    "uniform": (lambda n: ab.random_uniform(n, -1.0, 3.0), stats.uniform(-1.0, 4.0)),
    "gumbel": (lambda n: ab.random_gumbel(n, 2.0, 0.5), stats.gumbel_r(2.0, 0.5)),
    "noise": (lambda n: ab.noise(ab.zeros((n,)), 0.5), stats.norm(0.0, 0.5)),
}


# Distributions --------------------------------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize("name", INPUTS)
def test_distribution(name, dtype):
    make, expected = INPUTS[name]
    with ab.Graph(dtype=dtype):
        one = make(N).npvalue()  # many places of one node
        nodes = [make(5) for _ in range(N // 5)]  # few places of many nodes
        ab.forward(nodes)
        many = np.stack([e.npvalue() for e in nodes])
    for numbers in (one, many.ravel(), many[:, 0], many[:, 4]):
        assert stats.kstest(numbers, expected.cdf).pvalue > UNLIKELY
        error = expected.std() / np.sqrt(numbers.size)
        assert abs(numbers.mean() - expected.mean()) < 4 * error
        assert abs(numbers.var() / expected.var() - 1) < 4 * np.sqrt(6 / numbers.size)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_distribution_of_bernoulli(p):
    numbers = ab.random_bernoulli((N,), p, 3.0).npvalue()
    assert set(np.unique(numbers)) <= {0.0, 3.0}
    assert abs((numbers == 3).mean() - p) <= 4 * np.sqrt(p * (1 - p) / N)


@pytest.mark.parametrize("function", [ab.dropout_batch, ab.block_dropout, lambda x, p: ab.dropout_dim(x, 0, p)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_what_is_kept(function, p):
    y = function(ab.ones((3,), 4000), p).npvalue()
    assert (y == y[:1]).all()  # all three numbers of an element alike
    kept = y[0] != 0
    np.testing.assert_allclose(y[0][kept], 1 / (1 - p), rtol=1e-6)
    assert abs(kept.mean() - (1 - p)) < 4 * np.sqrt(p * (1 - p) / 4000)


def test_dropout_dim_shares_a_draw_along_its_dim_alone():
    for d in range(3):
        y = ab.dropout_dim(ab.ones((20, 30, 40)), d, 0.5).npvalue()
        lines = np.moveaxis(y, d, 0)
        assert (lines == lines[:1]).all() and abs((lines[0] == 0).mean() - 0.5) < 0.1
        assert 0.1 < (lines[0] == lines[0][:1]).mean() < 0.9 and 0.1 < (lines[0] == lines[0][:, :1]).mean() < 0.9


def test_the_largest_of_scores_and_gumbel_numbers_is_a_sample_of_softmax():
    scores = np.array([0.5, -1.0, 2.0])
    ys = (ab.inputVector(scores) + ab.random_gumbel((3,), batch_size=20_000)).npvalue()
    shares = np.bincount(ys.argmax(axis=0), minlength=3) / 20_000
    np.testing.assert_allclose(shares, np.exp(scores) / np.exp(scores).sum(), atol=0.015)


# Independence ---------------------------------------------------------------------------------------------------------


def bits_of(keys, count):
    return np.stack([reference_bits(int(k), count) for k in keys])


@pytest.mark.parametrize("keys", ["neighbours", "powers", "drawn"])
def test_bits_of_keys_and_places_are_independent(keys):
    n = 400
    drawn = {
        "neighbours": range(1000, 1000 + n),
        "powers": sorted({a + (1 << b) for b in range(31) for a in (-1, 0, 1)}),
        "drawn": np.random.default_rng(0).integers(0, 2**31, n),
    }[keys]
    bits = bits_of(drawn, n)
    u = (bits + 0.5) * 2.0**-32
    assert stats.kstest(u.ravel(), "uniform").pvalue > UNLIKELY
    # Each of the 32 bits is 1 in half of all cases, and no bit tells of another one.
    ones = (bits[..., None] >> np.arange(32, dtype=np.uint64)) & np.uint64(1)
    flat = ones.reshape(-1, 32).astype(float) - 0.5
    assert np.abs(flat.mean(axis=0)).max() < 4 * 0.5 / np.sqrt(len(flat))
    between = np.corrcoef(flat.T) - np.eye(32)
    assert np.abs(between).max() < 5 / np.sqrt(len(flat))
    # Neighbouring places, neighbouring keys, and all pairs of keys.
    z = (u - 0.5) * np.sqrt(12)
    for a, b in [(z[:, 1:], z[:, :-1]), (z[1:], z[:-1]), (z[1:, 1:], z[:-1, :-1]), (z[1:, :-1], z[:-1, 1:])]:
        assert abs((a * b).mean()) < 4 / np.sqrt(a.size)
    pairs = (z @ z.T / z.shape[1])[np.triu_indices(len(z), 1)] * np.sqrt(z.shape[1])
    assert stats.kstest(pairs, "norm").pvalue > UNLIKELY / 10 and np.abs(pairs).max() < 6


def test_no_key_repeats_the_numbers_of_another_one_at_other_places():
    """With one hash of the key, two of a thousand nodes of a thousand numbers would share a part of their sequence."""
    bits = bits_of(np.random.default_rng(1).integers(0, 2**31, 2000), 500)
    followers = (bits[:, :-1].astype(np.uint64) << np.uint64(32)) | bits[:, 1:]
    assert np.unique(followers).size == followers.size


# What they follow from ------------------------------------------------------------------------------------------------

MAKERS = {
    **{name: make for name, (make, _) in INPUTS.items()},
    "bernoulli": lambda n: ab.random_bernoulli(n, 0.5),
    "dropout": lambda n: ab.dropout(ab.ones((n,)), 0.5),
    "dropout_dim": lambda n: ab.dropout_dim(ab.ones((2, n)), 0, 0.5),
    "dropout_batch": lambda n: ab.dropout_batch(ab.ones((2,), n), 0.5),
    "block_dropout": lambda n: ab.block_dropout(ab.ones((2,), n), 0.5),
}


@both_dtypes
@pytest.mark.parametrize("name", MAKERS)
def test_the_seed_decides_whatever_the_policy(name, dtype):
    def drawn(policy, seed):
        ab.reset_random_seed(seed)
        with ab.Graph(dtype=dtype, policy=policy) as graph:
            ys = [MAKERS[name](40) for _ in range(6)]
            ab.forward(ys)
            values = np.stack([y.npvalue() for y in ys])
            assert policy == "none" or graph.batches == 1
            np.testing.assert_array_equal(values[3], ys[3].npvalue(recalculate=True))
            return values

    first = drawn("none", 7)
    assert len({a.tobytes() for a in first}) == 6
    for policy in POLICIES:
        np.testing.assert_array_equal(drawn(policy, 7), first)
    assert (drawn("none", 8) != first).any()


def test_both_dtypes_draw_the_same_numbers():
    drawn = {}
    for dtype in ("float32", "float64"):
        ab.reset_random_seed(3)
        with ab.Graph(dtype=dtype):
            drawn[dtype] = [MAKERS[name](1000).npvalue() for name in MAKERS]
    for a, b in zip(*drawn.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


def test_inputs_of_all_shapes_and_distributions_are_one_batch():
    with ab.Graph() as graph:
        nodes = [ab.random_normal((3, 2), k, 0.5 * k, batch_size=4) for k in range(20)]
        ab.forward(nodes)
        assert graph.batches == 1 and all(e.dim() == ((3, 2), 4) for e in nodes)
        assert (nodes[0].npvalue() == 0).all() and abs(nodes[19].npvalue().mean() - 19) < 10


def test_random_inputs_pass_no_gradient_and_train_what_they_are_joined_with():
    p = ab.ParameterCollection().add_parameters(3, init=np.zeros(3))
    z = ab.random_normal((3,), 1.0, 2.0)
    ab.dot_product(p, z).backward()
    np.testing.assert_array_equal(p.grad_as_array(), z.npvalue())
    np.testing.assert_array_equal(z.gradient(), np.zeros(3))


def test_gradient_of_noise_is_that_of_its_argument():
    p = ab.ParameterCollection().add_parameters(3, init=np.ones(3))
    y = ab.noise(p, 2.0)
    ab.dot_product(y, ab.inputVector([1.0, 2.0, 3.0])).backward()
    assert (y.npvalue() != 1).all()
    np.testing.assert_array_equal(p.grad_as_array(), [1, 2, 3])


# Edges and errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dropout", "dropout_batch", "block_dropout", "dropout_dim"])
def test_dropout_of_everything_is_zero_even_of_what_is_not_finite(name):
    function = (lambda x, p: ab.dropout_dim(x, 0, p)) if name == "dropout_dim" else getattr(ab, name)
    p = ab.ParameterCollection().add_parameters(4, init=np.array([1.0, np.inf, -np.inf, np.nan]))
    y = function(p, 1.0)
    ab.sum_elems(y).backward()
    np.testing.assert_array_equal(y.npvalue(), np.zeros(4))
    np.testing.assert_array_equal(p.grad_as_array(), np.zeros(4))
    np.testing.assert_array_equal(function(ab.inputVector([1.0, np.inf]), 0.0).npvalue(), [1.0, np.inf])


@both_dtypes
def test_numbers_at_the_ends(dtype):
    with ab.Graph(dtype=dtype):
        u = ab.random_uniform((300_000,), 0.0, 1.0).npvalue()
        z = ab.random_normal((300_000,)).npvalue()
        g = ab.random_gumbel((300_000,)).npvalue()
        same = ab.random_uniform((5,), 2.5, 2.5).npvalue()
    assert u.min() >= 0 and u.max() < 1
    assert np.isfinite(z).all() and 4 < np.abs(z).max() < 6.4
    assert np.isfinite(g).all() and g.min() < -2 and g.max() > 9
    np.testing.assert_array_equal(same, np.full(5, 2.5))


@pytest.mark.parametrize("p", [-0.1, 1.5, np.nan, np.inf, "0.5", None])
def test_a_probability_is_one(p):
    x = ab.ones((3,))
    calls = {
        "dropout": lambda: ab.dropout(x, p),
        "dropout_dim": lambda: ab.dropout_dim(x, 0, p),
        "dropout_batch": lambda: ab.dropout_batch(x, p),
        "block_dropout": lambda: ab.block_dropout(x, p),
        "random_bernoulli": lambda: ab.random_bernoulli((3,), p),
    }
    nodes = len(ab.current_graph())
    for name, call in calls.items():
        for _ in range(2):
            with pytest.raises(ab.ArgumentError, match=rf"^{name}: p is .*\n  expected  a probability from 0 to 1$"):
                call()
    assert len(ab.current_graph()) == nodes


ERRORS = {
    "noise: stddev is -1": lambda: ab.noise(ab.ones((2,)), -1),
    "noise: stddev is nan": lambda: ab.noise(ab.ones((2,)), np.nan),
    "random_normal: stddev is -0.5": lambda: ab.random_normal((2,), 0, -0.5),
    "random_normal: mean is inf": lambda: ab.random_normal((2,), np.inf),
    "random_uniform: right is 1.* at least 2": lambda: ab.random_uniform((2,), 2, 1),
    "random_bernoulli: scale is nan": lambda: ab.random_bernoulli((2,), 0.5, np.nan),
    "random_gumbel: beta is -1": lambda: ab.random_gumbel((2,), 0, -1),
    "random_normal: dims": lambda: ab.random_normal((2, 0)),
    "random_uniform: the batch size is 0": lambda: ab.random_uniform((2,), 0, 1, 0),
    "dropout_dim: dim 2 of": lambda: ab.dropout_dim(ab.ones((2, 2)), 2, 0.5),
    "dropout_dim: dim -1 of": lambda: ab.dropout_dim(ab.ones((2, 2)), -1, 0.5),
}


@pytest.mark.parametrize("message", ERRORS)
def test_a_bad_call(message):
    with pytest.raises(ValueError, match="(?s)" + message):
        ERRORS[message]()


def test_what_is_no_number_or_no_expression():
    for call in (lambda: ab.random_normal((2,), "0"), lambda: ab.random_normal("2"), lambda: ab.noise(1.0, 1.0)):
        with pytest.raises(ab.OperandError):
            call()
    with pytest.raises(ab.OperandError, match="noise: stddev is an expression"):
        ab.noise(ab.ones((2,)), ab.ones((1,)))

"""Random streams: DyNet's bits, one pair of streams per thread, keys apart from values."""

import math
import threading

import numpy as np
import pytest

from autobatch import seeds
from autobatch.kernels._errors import ArgumentError

SEEDS = [0, 1, 7, 2**32 - 1]


@pytest.fixture(autouse=True)
def fresh_seed():
    seeds.reset_random_seed(1)
    yield
    seeds.reset_random_seed(1)


def raws(seed, n):
    return np.random.RandomState(seed).randint(0, 1 << 32, size=n, dtype=np.uint32)


def naive_normals(raw, n):
    """Polar method number by number, in float32 with a fused sum of squares; also how many raws they took."""
    numbers, at = [], 0
    while len(numbers) < n:
        x, y = (np.float32(2) * (np.float32(r) * np.float32(2.0**-32)) - np.float32(1) for r in raw[at : at + 2])
        at += 2
        square = np.float32(float(y) * float(y) + float(x * x))
        if 0 < square <= 1:
            factor = np.sqrt(np.float32(-2) * np.float32(math.log(square)) / square)
            numbers += [y * factor, x * factor]
    return np.array(numbers[:n], np.float32), at


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_uniforms_are_the_raw_numbers_in_order(seed):
    seeds.reset_random_seed(seed)
    expected = raws(seed, 1000) * 2.0**-32
    np.testing.assert_array_equal(seeds.uniforms(1000, dtype="float64"), expected)
    seeds.reset_random_seed(seed)
    np.testing.assert_allclose(seeds.uniforms(1000, -2, 3), expected * 5 - 2, rtol=0, atol=3e-7)


def test_uniforms_of_seed_1_are_pinned():
    assert seeds.uniforms(3, -1, 1).tolist() == [-0.1659560203552246, 0.994369626045227, 0.44064903259277344]


def test_uniforms_stay_below_one():
    u = np.array([0, 1, 2**31, 2**32 - 1], np.uint32)
    seeds._streams.values.put_back(u)
    numbers = seeds.uniforms(4)
    assert numbers.dtype == np.float32
    assert numbers.tolist() == [0, 2.0**-32, 0.5, 1 - 2.0**-24]


def test_uniforms_write_into_an_array_of_either_dtype():
    single, double = np.empty(5, np.float32), np.empty(5)
    assert seeds.uniforms(5, 0.1, 0.3, out=single) is single
    seeds.reset_random_seed(1)
    seeds.uniforms(5, 0.1, 0.3, out=double)
    np.testing.assert_allclose(single, double, rtol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 1001, 40_000])
def test_normals_are_the_polar_method(n):
    numbers = seeds.normals(n)
    expected, used = naive_normals(raws(1, 4 * n + 100), n)
    np.testing.assert_array_max_ulp(numbers, expected, 2)
    assert seeds.uniforms(1, dtype="float64")[0] == raws(1, used + 1)[-1] * 2.0**-32


def test_normals_have_their_mean_and_deviation():
    numbers = seeds.normals(200_000, 3, 0.5, "float64")
    assert abs(numbers.mean() - 3) < 0.005
    assert abs(numbers.std() - 0.5) < 0.005


def test_long_draws_equal_short_ones():
    whole = seeds.uniforms(200_000)
    seeds.reset_random_seed(1)
    np.testing.assert_array_equal(whole, np.concatenate([seeds.uniforms(n) for n in (1, 99_999, 0, 100_000)]))


def test_dtypes_share_the_stream():
    def numbers(dtype):
        seeds.reset_random_seed(5)
        return np.concatenate([seeds.uniforms(7, -1, 1, dtype), seeds.normals(5, 1, 2, dtype), seeds.uniforms(1, 0, 1, dtype)])

    np.testing.assert_allclose(numbers("float32"), numbers("float64"), rtol=1e-5, atol=1e-7)


# Keys -----------------------------------------------------------------------------------------------------------------


def test_keys_have_31_bits_and_repeat_with_the_seed():
    keys = [seeds.draw() for _ in range(10_000)]
    assert all(isinstance(k, int) for k in keys)
    assert 0 <= min(keys) and max(keys) < 1 << 31
    assert len(set(keys)) > 9_990
    assert abs(sum(keys) / len(keys) / (1 << 31) - 0.5) < 0.02
    seeds.reset_random_seed(1)
    assert keys == [seeds.draw() for _ in range(10_000)]
    seeds.reset_random_seed(2)
    assert keys[:3] != [seeds.draw() for _ in range(3)]


def test_keys_and_values_leave_each_other_alone():
    values = seeds.uniforms(10)
    seeds.reset_random_seed(1)
    keys = [seeds.draw() for _ in range(10)]
    np.testing.assert_array_equal(seeds.uniforms(10), values)
    seeds.reset_random_seed(1)
    seeds.uniforms(3)
    assert keys == [seeds.draw() for _ in range(10)]


# Seeds and threads ----------------------------------------------------------------------------------------------------


def sample():
    return [*seeds.uniforms(4).tolist(), *seeds.normals(3).tolist(), seeds.draw(), seeds.draw()]


def test_each_thread_gets_the_numbers_of_a_thread_alone():
    alone = sample()
    seeds.reset_random_seed(1)
    seeds.uniforms(100)
    results = []
    threads = [threading.Thread(target=lambda: results.append(sample())) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [alone] * 3


def test_a_new_seed_reaches_threads_that_run():
    drawn, go = [], threading.Barrier(2, timeout=30)

    def work():
        sample()
        go.wait()  # the other thread sets the seed
        go.wait()
        drawn.append(sample())

    thread = threading.Thread(target=work)
    thread.start()
    go.wait()
    seeds.reset_random_seed(9)
    go.wait()
    thread.join()
    assert drawn == [sample()]


def test_configure_takes_zero_for_any_seed():
    assert seeds.configure(17) == 17 == seeds.current_seed()
    first, second = seeds.configure(0), seeds.configure(0)
    assert first and second and first != second


def test_bad_arguments():
    for seed in (-1, 1 << 32):
        with pytest.raises(OverflowError, match=f"the seed {seed} is not in 0 ... 4294967295"):
            seeds.reset_random_seed(seed)
    with pytest.raises(TypeError):
        seeds.reset_random_seed(1.5)
    with pytest.raises(ArgumentError, match="no finite width"):
        seeds.uniforms(3, 0, math.inf)
    with pytest.raises(ArgumentError, match="must be finite"):
        seeds.normals(3, math.nan)
    assert seeds.current_seed() == 1


# DyNet ----------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("seed", SEEDS)
def test_bits_of_dynet(dynet, seed):
    seeds.reset_random_seed(seed)
    dynet.reset_random_seed(seed)
    model = dynet.ParameterCollection()
    for n in (1, 2, 5, 1000):
        theirs = model.add_parameters((n,), init="uniform", scale=0.37).as_array()
        np.testing.assert_array_equal(seeds.uniforms(n, -np.float32(0.37), np.float32(0.37)), theirs)
        theirs = model.add_parameters((n,), init="normal", mean=0.3, std=0.7).as_array().astype(np.float32)
        ours = seeds.normals(n, 0.3, 0.7)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-7)
        assert (ours == theirs).mean() > 0.98

"""Initial values: DyNet's formulas, DyNet's numbers, and what is refused."""

import math

import numpy as np
import pytest

from autobatch import initializers, seeds
from autobatch.initializers import (
    ConstInitializer,
    FromFileInitializer,
    GlorotInitializer,
    IdentityInitializer,
    NormalInitializer,
    NumpyInitializer,
    PyInitializer,
    RowsInitializer,
    SaxeInitializer,
    UniformInitializer,
    resolve,
)
from autobatch.kernels._errors import ArgumentError, ConstructionError, ShapeError


@pytest.fixture(autouse=True)
def fresh_seed():
    seeds.reset_random_seed(1)
    yield
    seeds.reset_random_seed(1)


def filled(initializer, dims, dtype="float32"):
    values = np.full(math.prod(dims), np.nan, dtype)
    initializer.fill(values, dims)
    return values


# Formulas -------------------------------------------------------------------------------------------------------------

GLOROT_RANGES = [
    ((30, 20), {}, math.sqrt(6 / 50)),
    ((400,), {}, math.sqrt(3 / 400)),
    ((5, 6, 7), {}, math.sqrt(9 / 18)),
    ((3, 5, 7, 11), {}, math.sqrt(6 / ((7 + 11) * 15))),
    ((2, 3, 4, 2, 3), {}, math.sqrt(15 / 14)),
    ((30, 20), {"gain": 2.5}, 2.5 * math.sqrt(6 / 50)),
    ((50, 1000), {}, math.sqrt(6 / 1050)),
    ((50, 1000), {"is_lookup": True}, math.sqrt(3 / 50)),
    ((3, 5, 7, 11, 4), {"is_lookup": True}, math.sqrt(6 / ((7 + 11) * 15))),
]


@pytest.mark.parametrize("dims, options, scale", GLOROT_RANGES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_glorot(dims, options, scale, dtype):
    values = filled(GlorotInitializer(**options), dims, dtype)
    seeds.reset_random_seed(1)
    expected = (seeds.uniforms(math.prod(dims), dtype="float64") * 2 - 1) * scale
    np.testing.assert_allclose(values, expected, rtol=0, atol=3e-7 if dtype == "float32" else 1e-15)


def test_uniform_normal_constant():
    values = filled(UniformInitializer(0.25), (1000,))
    assert 0.24 < values.max() <= 0.25 and -0.25 <= values.min() < -0.24
    values = filled(NormalInitializer(2, 9), (10_000,), "float64")
    assert abs(values.mean() - 2) < 0.1 and abs(values.std() - 3) < 0.1
    assert filled(NormalInitializer(2, 0), (3,)).tolist() == [2, 2, 2]
    assert filled(ConstInitializer(-0.5), (2, 2)).tolist() == [-0.5] * 4


def test_identity_and_saxe():
    np.testing.assert_array_equal(filled(IdentityInitializer(), (3, 3)).reshape(3, 3), np.eye(3))
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-12)):
        q = filled(SaxeInitializer(2.0), (8, 8), dtype).reshape(8, 8)
        np.testing.assert_allclose(q @ q.T, 4 * np.eye(8), atol=tolerance)


def test_arrays_are_laid_out_in_columns_and_rows():
    a = np.arange(6).reshape(2, 3)
    assert filled(NumpyInitializer(a), (2, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    assert filled(RowsInitializer(a), (3, 2)).tolist() == [0, 1, 2, 3, 4, 5]
    table = np.arange(24).reshape(4, 3, 2)
    expected = np.concatenate([row.ravel(order="F") for row in table])
    np.testing.assert_array_equal(filled(RowsInitializer(table), (3, 2, 4)), expected)


def test_file(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("1 2.5\n-3e0\t4\n5 6\n")
    for name in (path, str(path), bytes(path)):
        assert filled(FromFileInitializer(name), (2, 3)).tolist() == [1, 2.5, -3, 4, 5, 6]
    with pytest.raises(ShapeError, match=r"6 numbers\n.*7 numbers, for dims"):
        filled(FromFileInitializer(path), (7,))
    path.write_text("1 two")
    with pytest.raises(ArgumentError, match="something else than numbers"):
        filled(FromFileInitializer(path), (2,))
    with pytest.raises(FileNotFoundError):
        filled(FromFileInitializer(tmp_path / "absent.txt"), (2,))


def test_an_initializer_of_ones_own():
    class Ramp(PyInitializer):
        def fill(self, values, dims):
            values[:] = np.arange(values.size)

    assert filled(resolve(Ramp(), (2, 2)), (2, 2)).tolist() == [0, 1, 2, 3]


# The short forms ------------------------------------------------------------------------------------------------------


def test_words_and_numbers():
    assert isinstance(resolve(None, (2,)), GlorotInitializer) and not resolve(None, (2,)).is_lookup
    assert resolve("uniform", (2,), scale=0.3).scale == 0.3
    normal = resolve("normal", (2,), mean=1, std=-2)
    assert (normal.mean, normal.var) == (1, 4)
    assert resolve("he", (7, 5)).var == 1 / 10
    assert isinstance(resolve("glorot", (2,)), GlorotInitializer)
    assert isinstance(resolve("identity", (2, 2)), IdentityInitializer)
    for number in (3, 0.5, True, np.float32(0.25), np.int64(2)):
        assert resolve(number, (2,)).c == number
    given = ConstInitializer(1)
    assert resolve(given, (2,)) is given
    assert isinstance(resolve(np.ones(2), (2,)), NumpyInitializer)
    assert isinstance(resolve(np.ones((2, 3)), (2, 3), lookup=True), RowsInitializer)


@pytest.mark.parametrize("init", ["xavier", "saxe", [1, 2], (1, 2), b"normal", object()])
def test_unknown_initializers(init):
    with pytest.raises(ArgumentError, match='is no initializer\n  expected  None, a number, an array, "uniform"'):
        resolve(init, (2, 3))


def test_what_is_refused():
    with pytest.raises(TypeError, match="base class"):
        PyInitializer()
    with pytest.raises(NotImplementedError, match="Empty defines no method fill"):
        filled(type("Empty", (PyInitializer,), {})(), (2,))
    with pytest.raises(ArgumentError, match="not for look-up tables\n  try       lookup_parameters_from_numpy"):
        resolve(NumpyInitializer(np.ones((2, 3))), (2, 3), lookup=True)
    for initializer in (IdentityInitializer(), SaxeInitializer()):
        for dims in ((3,), (2, 3), (2, 2, 2)):
            with pytest.raises(ConstructionError, match="only a square matrix"):
                filled(initializer, dims)
    assert issubclass(ConstructionError, RuntimeError) and issubclass(ConstructionError, ValueError)
    with pytest.raises(ShapeError, match=r"got +\(3, 2\)\n  expected  \(2, 3\)"):
        filled(NumpyInitializer(np.ones((3, 2))), (2, 3))
    with pytest.raises(ShapeError):
        filled(RowsInitializer(np.ones((2, 3))), (2, 3))
    with pytest.raises(ArgumentError, match="is_lookup"):
        filled(GlorotInitializer(True), (3,))
    with pytest.raises(ArgumentError, match="negative"):
        NormalInitializer(0, -1)
    with pytest.raises(ArgumentError, match="scale: inf is not finite"):
        UniformInitializer(math.inf)
    with pytest.raises(TypeError, match="a number is expected, not str 'a'"):
        UniformInitializer("a")
    with pytest.raises(TypeError, match="real numbers"):
        NumpyInitializer(["a"])
    with pytest.raises(ShapeError):
        initializers.numbers("it", [[1, 2], [3]])


# DyNet ----------------------------------------------------------------------------------------------------------------

DIMS = [(1,), (5,), (64,), (3, 4), (64, 1), (30, 50), (2, 3, 4), (3, 3, 4, 5), (5, 1, 2, 7), (2, 1, 3, 2, 2)]


def ours(dims, lookup, init, **options):
    stored = (*dims[1:], dims[0]) if lookup else dims
    return filled(resolve(init, dims, lookup=lookup, **options), stored)


def theirs(model, dims, lookup, init, **options):
    array = (model.add_lookup_parameters if lookup else model.add_parameters)(dims, init=init, **options).as_array()
    return (np.moveaxis(array, 0, -1) if lookup else array).ravel(order="F").astype(np.float32)


@pytest.mark.oracle
@pytest.mark.parametrize("seed", [1, 42])
def test_uniform_values_are_dynets_bit_for_bit(dynet, seed):
    """One stream over all of them: so the order of drawing and the number of draws are DyNet's as well."""
    seeds.reset_random_seed(seed)
    dynet.reset_random_seed(seed)
    model = dynet.ParameterCollection()
    for dims in DIMS:
        for lookup in (False, True) if len(dims) > 1 else (False,):
            for init, options in ((None, {}), ("glorot", {}), ("uniform", {"scale": 0.3})):
                got, expected = ours(dims, lookup, init, **options), theirs(model, dims, lookup, init, **options)
                np.testing.assert_array_equal(got, expected, err_msg=f"{dims} {lookup} {init}")
            for arguments in ((False, 1.7), *([(True, 1.0)] if len(dims) > 1 else [])):
                got = ours(dims, lookup, GlorotInitializer(*arguments))
                expected = theirs(model, dims, lookup, dynet.GlorotInitializer(*arguments))
                np.testing.assert_array_equal(got, expected, err_msg=f"{dims} {lookup} {arguments}")


@pytest.mark.oracle
def test_other_values_are_dynets_to_rounding(dynet, tmp_path):
    seeds.reset_random_seed(3)
    dynet.reset_random_seed(3)
    model = dynet.ParameterCollection()
    for dims in DIMS:
        for lookup in (False, True) if len(dims) > 1 else (False,):
            for init, options in (("he", {}), ("normal", {"mean": 0.3, "std": 0.7}), (0.125, {})):
                got, expected = ours(dims, lookup, init, **options), theirs(model, dims, lookup, init, **options)
                np.testing.assert_allclose(got, expected, rtol=0, atol=5e-7, err_msg=f"{dims} {lookup} {init}")
    got = ours((4,), False, NormalInitializer(1, 4))
    np.testing.assert_allclose(got, theirs(model, (4,), False, dynet.NormalInitializer(1, 4)), atol=5e-7)
    path = tmp_path / "numbers.txt"
    path.write_text("1 2 3 4 5 6")
    for lookup in (False, True):
        got = ours((2, 3), lookup, FromFileInitializer(path))
        np.testing.assert_array_equal(got, theirs(model, (2, 3), lookup, dynet.FromFileInitializer(bytes(path))))
        array = np.arange(6.0).reshape(3, 2)
        np.testing.assert_array_equal(ours((3, 2), lookup, array), theirs(model, (3, 2), lookup, array))


@pytest.mark.oracle
def test_saxe_is_dynets_but_for_signs(dynet):
    seeds.reset_random_seed(3)
    dynet.reset_random_seed(3)
    model = dynet.ParameterCollection()
    for n in (2, 5, 9):
        got = ours((n, n), False, SaxeInitializer(1.5))
        expected = theirs(model, (n, n), False, dynet.SaxeInitializer(1.5))
        np.testing.assert_allclose(abs(got), abs(expected), atol=2e-5)

"""Elementary functions for kernels: error in ulp, ends of the range, vector code, use in a cached kernel, plain Python."""

import functools
import os
import re
import subprocess
import sys
import textwrap

import numba
import numpy as np
import pytest

from autobatch.kernels import _jit, _math
from autobatch.kernels._jit import number

TYPES = [np.float32, np.float64]
FLAGS = {"kernel": _jit._FASTMATH, "reductions": _jit._FASTMATH | {"reassoc"}}
INF, NAN = np.inf, np.nan


def logistic(x):
    e = np.exp(-abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))


# function, the truth (called with more digits), largest error allowed in float32 and in float64 [ulp]
CASES = {
    "exp": (np.exp, 1.2, 1.2),
    "expm1": (np.expm1, 1.8, 2.1),
    "tanh": (np.tanh, 2.8, 2.8),
    "logistic": (logistic, 2.6, 2.6),
    "log": (np.log, 1.1, 1.1),
    "log1p": (np.log1p, 1.7, 1.7),
    "softplus": (softplus, 2.0, 2.0),
    "logsigmoid": (lambda x: -softplus(-x), 2.0, 2.0),
    "sqrt": (np.sqrt, 0.51, 0.51),
}


@functools.cache
def loop(name, flags="kernel"):
    """A compiled loop y[i] = f(x[i])."""
    function = getattr(_math, name)

    def run(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    return numba.njit(run, error_model="numpy", fastmath=FLAGS[flags])


def compute(name, x, flags="kernel"):
    y = np.empty_like(x)
    loop(name, flags)(x, y)
    return y


def numbers(kind):
    """Numbers with every sign and every exponent, NaN and infinities among them, and many near 0 and 1."""
    rng = np.random.default_rng(1)
    bits, fraction, count = (32, 23, 1024) if kind is np.float32 else (64, 52, 128)
    high = np.arange(2 ** (bits - fraction), dtype=np.uint64)[:, None] << np.uint64(fraction)
    low = rng.integers(0, 2**fraction, (high.size, count), dtype=np.uint64)
    low[:, :2] = 0, 2**fraction - 1
    every = (high | low).ravel().astype(f"uint{bits}").view(kind)
    scales = np.repeat([0.01, 0.1, 0.5, 1, 5, 100], 20_000)
    near = rng.normal(size=scales.size) * scales
    return np.concatenate([every, near.astype(kind), np.exp(near[:80_000]).astype(kind), np.array([0, 1, -1], kind)])


def errors(y, truth):
    """|y - truth| in units of the last place of the truth; truth has more digits than y."""
    rounded = truth.astype(y.dtype)
    unit = np.spacing(np.where(np.isfinite(rounded), abs(rounded), np.finfo(y.dtype).max)).astype(truth.dtype)
    error = abs(y - truth) / unit
    return np.where((y == rounded) & np.isinf(y) | np.isnan(y) & np.isnan(truth), 0, error)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", CASES)
def test_error_in_ulp(name, kind, flags):
    reference, *limits = CASES[name]
    limit = limits[TYPES.index(kind)]
    if kind is np.float64 and np.finfo(np.longdouble).nmant <= 52:
        limit += 1  # long double is double here, and the truth has an error of its own
    x = numbers(kind)
    with np.errstate(all="ignore"):
        truth = reference(x.astype(np.float64 if kind is np.float32 else np.longdouble))
        error = errors(compute(name, x, flags), truth)
    worst = np.argmax(np.where(np.isnan(error), np.inf, error))
    assert error[worst] <= limit, f"{name}({x[worst]!r}) is {compute(name, x[worst : worst + 1])[0]!r}, not {truth[worst]!r}"


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("exp", [0, -INF, INF, NAN, -1e30, 1e30, 800, -800], [1, 0, INF, NAN, 0, INF, INF, 0]),
        ("expm1", [0, -INF, INF, NAN, -1e30, 1e30, -100], [0, -1, INF, NAN, -1, INF, -1]),
        ("tanh", [0, -INF, INF, NAN, -1e30, 1e30, -25], [0, -1, 1, NAN, -1, 1, -1]),
        ("logistic", [0, -INF, INF, NAN, -1e30, 1e30], [0.5, 0, 1, NAN, 0, 1]),
        ("log", [1, 0, -0.0, INF, -INF, NAN, -1, -1e-30], [0, -INF, -INF, INF, NAN, NAN, NAN, NAN]),
        ("log1p", [0, -1, INF, -INF, NAN, -1.5, -1e30], [0, -INF, INF, NAN, NAN, NAN, NAN]),
        ("softplus", [-INF, INF, NAN, -1e30, 1e30], [0, INF, NAN, 0, 1e30]),
        ("logsigmoid", [-INF, INF, NAN, -1e30, 1e30], [-INF, 0, NAN, -1e30, 0]),
        ("sqrt", [0, 4, INF, NAN, -1], [0, 2, INF, NAN, NAN]),
    ],
)
def test_special_values(name, x, y, kind):
    for flags in FLAGS:
        np.testing.assert_array_equal(compute(name, np.array(x, kind), flags), np.array(y, kind))
    plain = [getattr(_math, name)(kind(value)) for value in x]
    assert {type(value) for value in plain} == {kind}
    np.testing.assert_array_equal(plain, np.array(y, kind))


@pytest.mark.parametrize("kind", TYPES)
def test_small_arguments_keep_their_digits(kind):
    x = np.geomspace(float(np.finfo(kind).tiny), 1e-9, 1000).astype(kind)
    for name in ("tanh", "expm1", "log1p"):
        for value in (x, -x):
            np.testing.assert_allclose(compute(name, value), value, rtol=2e-9 if kind is np.float64 else 1.2e-7, atol=0)


@pytest.mark.parametrize("kind", TYPES)
def test_denormal_numbers(kind):
    info = np.finfo(kind)
    x = np.array([info.smallest_subnormal, info.tiny / 3, info.tiny], kind)
    np.testing.assert_allclose(compute("log", x), np.log(x), rtol=4 * info.eps)
    y = np.log(x[1:])
    for name in ("exp", "logistic", "softplus"):
        np.testing.assert_allclose(compute(name, y), np.exp(y.astype(np.float64)), rtol=1e-4)


@pytest.mark.parametrize("name", ["exp", "tanh", "log", "softplus"])
@pytest.mark.parametrize("kind", TYPES)
def test_result_does_not_depend_on_the_place_in_a_loop(name, kind):
    """A batch gives bitwise what one item at a time gives, although the rest of a loop is not vector code."""
    x = np.exp(np.random.default_rng(2).normal(size=1000)).astype(kind)
    parts = np.concatenate([compute(name, part) for part in np.array_split(x, 300)])
    np.testing.assert_array_equal(compute(name, x), parts)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", CASES)
def test_loop_is_vector_code(name, kind, flags):
    """LLVM's own text of the finished loop stores vectors, and calls nothing for one number."""
    compute(name, np.ones(4, kind), flags)
    signature = next(s for s in loop(name, flags).signatures if s[0].dtype == numba.from_dtype(np.dtype(kind)))
    text = loop(name, flags).inspect_llvm(signature)
    number = "float" if kind is np.float32 else "double"
    assert re.search(rf"store <\d+ x {number}>", text), f"{name}: no vector is stored"
    scalar_calls = re.findall(rf"call [^\n]*\b{number} @(?!llvm\.(?:fabs|copysign|sqrt)\.)[^\n]*", text)
    assert not scalar_calls, f"{name}: {scalar_calls[0]}"


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_of_the_right_type(kind):
    @numba.njit
    def half(x, y):
        for i in range(x.size):
            y[i] = number(0.5, x) * x[i] + number(1, x[i])

    x, y = np.ones(2, kind), np.empty(2, kind)
    half(x, y)
    assert np.array_equal(y, np.full(2, 1.5))
    assert ("double" in half.inspect_llvm(half.signatures[0])) == (kind is np.float64)


def test_other_types_are_refused():
    with pytest.raises(numba.TypingError, match="exp"):
        numba.njit(lambda x: _math.exp(x))(1)


KERNEL = """
    import numpy as np
    from autobatch.kernels import _math
    from autobatch.kernels._jit import ITEMS, call, compiled, integers, item, kernel, number, pointer

    @kernel(reductions=True)
    def forward(ins, T):
        x, y = item(ins, 0, 0, T), item(ins, 1, 0, T)
        total = number(0, T)
        for i in range(ins[ITEMS]):
            y[i] = _math.tanh(x[i])
            total += _math.exp(x[i])
        y[ins[ITEMS]] = _math.log(total)

    @compiled
    def run(address, table):
        call(address, integers(table.ctypes.data), 0)

    if __name__ == "__main__":
        for dtype in ("float32", "float64"):
            x, y = np.linspace(-3, 3, 100).astype(dtype), np.empty(101, dtype)
            table = np.array([0, 9, 100, 0, 0, x.ctypes.data, 0, y.ctypes.data, 0])
            run(forward.address(dtype), table)
            expected = [*np.tanh(x), np.log(np.exp(x).sum())]
            np.testing.assert_allclose(y, expected, rtol=5 * np.finfo(dtype).eps)
"""


def python(*arguments, **environment):
    """Run Python with what this process can import; warnings are errors there too."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kernel_is_fetched_from_the_disk_in_another_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(KERNEL))
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_DEBUG_CACHE": "1"}
    first, second = python(str(script), **cache), python(str(script), **cache)
    assert first.count("data saved") == 3 and first.count("data loaded") == 0
    assert second.count("data saved") == 0 and second.count("data loaded") == 3


def test_import_compiles_nothing():
    program = """
        from numba.core import event

        with event.install_recorder("numba:compile") as record:
            import autobatch.kernels._math
        assert not record.buffer, record.buffer
    """
    python("-c", textwrap.dedent(program))


def test_kernel_runs_as_plain_python():
    """Without the JIT a kernel is a Python function, and so is what it calls."""
    program = """
        import numpy as np
        from autobatch.kernels import _math
        from autobatch.kernels._jit import inline

        @inline
        def log_of_sum(x):
            total = _math.exp(x[0])
            for value in x[1:]:
                total += _math.exp(value)
            return _math.log(total)

        result = log_of_sum(np.ones(4, np.float32))
        assert type(result) is np.float32 and abs(result - 1 - np.log(4)) < 1e-6
        assert type(_math.logistic(np.float64(-1000))) is np.float64
    """
    python("-c", textwrap.dedent(program), NUMBA_DISABLE_JIT="1")

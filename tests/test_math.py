"""Elementary functions for kernels: error in ulp, ends of the range, vector code, use in a cached kernel, plain Python."""

import functools
import math
import os
import re
import subprocess
import sys
import textwrap

import numba
import numpy as np
import pytest

from autobatch.kernels import _jit, _math, _math_hyperbolic, _math_power, _math_special, _math_trigonometric
from autobatch.kernels._jit import number

TYPES = [np.float32, np.float64]
FLAGS = {"kernel": _jit._FASTMATH, "reductions": _jit._FASTMATH | {"reassoc"}}
INF, NAN = np.inf, np.nan


def logistic(x):
    e = np.exp(-abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))


def moved_up(x):
    """Return |x| or 1 - x, at least 1/2, moved up to 40 or more, with Σ log and Σ 1/x of the steps, in long double."""
    x = np.asarray(x, np.longdouble)
    z = np.where(x < 0.5, 1 - x, x)
    logs, inverses = np.zeros_like(z), np.zeros_like(z)
    for _ in range(40):
        step = z < 40
        logs += np.where(step, np.log(z), 0)
        inverses += np.where(step, 1 / z, 0)
        z = z + step
    return x, z, logs, inverses


def fraction(x):
    """Return x - the nearest integer, and π times it."""
    f = x - np.rint(x)
    return f, f * (np.longdouble(math.pi) + np.longdouble(1.2246467991473532e-16))


def lgamma(x):
    """log |Γ(x)|: Stirling's series from 40 on, and the formula of reflection."""
    x, z, logs, _ = moved_up(x)
    series = (z - 0.5) * (np.log(z) - 1) + (np.log(np.longdouble(2) * math.pi) - 1) / 2
    for n, c in enumerate((1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188), 1):
        series += np.longdouble(c) / z ** (2 * n - 1)
    f, angle = fraction(x)
    value = np.where(x < 0.5, np.log(np.longdouble(math.pi)) - np.log(abs(np.sin(angle))) - series + logs, series - logs)
    value = np.where((x <= 0) & (f == 0), INF, value)
    return np.where((x == 1) | (x == 2), 0, np.where(np.isinf(x), x, value))


def digamma(x):
    """The derivative of log Γ, in the same way."""
    x, z, _, inverses = moved_up(x)
    value = np.log(z) - 0.5 / z - inverses
    for n, c in enumerate((1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132), 1):
        value -= np.longdouble(c) / z ** (2 * n)
    f, angle = fraction(x)
    value = np.where(x < 0.5, value - np.longdouble(math.pi) / np.tan(angle), value)
    value = np.where((x < 0) & (f == 0), NAN, value)
    return np.where(x == 0, -np.copysign(INF, x.astype(np.float64)), value)


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
    "floor": (np.floor, 0, 0),
    "ceil": (np.ceil, 0, 0),
    "sin": (np.sin, 1.6, 2.1),
    "cos": (np.cos, 1.6, 2.1),
    "tan": (np.tan, 3.0, 3.3),
    "asin": (np.arcsin, 2.7, 2.7),
    "acos": (np.arccos, 1.6, 1.7),
    "atan": (np.arctan, 2.2, 2.7),
    "sinh": (np.sinh, 2.8, 2.8),
    "cosh": (np.cosh, 1.7, 1.7),
    "asinh": (np.arcsinh, 2.2, 2.2),
    "acosh": (np.arccosh, 2.7, 2.7),
    "atanh": (np.arctanh, 2.4, 2.4),
    "erf": (np.vectorize(math.erf, otypes=[float]), 1.2, 2.2),  # the truth has no more digits than float64
}
FAR = {"sin": np.sin, "cos": np.cos, "tan": np.tan}  # for numbers beyond, there is another function


def function_of(name):
    """Return an elementary function."""
    modules = _math, _math_trigonometric, _math_hyperbolic, _math_special
    return next(getattr(module, name) for module in modules if hasattr(module, name))


@functools.cache
def loop(name, flags="kernel"):
    """A compiled loop y[i] = f(x[i])."""
    function = function_of(name)

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
    x = x[~_math_trigonometric.is_far(x)] if name in FAR else x
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
        ("floor", [0, 1.5, -1.5, INF, -INF, NAN, 1e30], [0, 1, -2, INF, -INF, NAN, 1e30]),
        ("ceil", [0, 1.5, -1.5, INF, -INF, NAN, 1e30], [0, 2, -1, INF, -INF, NAN, 1e30]),
        ("sin", [0, INF, -INF, NAN], [0, NAN, NAN, NAN]),
        ("cos", [0, INF, -INF, NAN], [1, NAN, NAN, NAN]),
        ("tan", [0, INF, -INF, NAN], [0, NAN, NAN, NAN]),
        ("sin_anywhere", [0, INF, -INF, NAN], [0, NAN, NAN, NAN]),
        ("asin", [0, 1.5, -1.5, INF, NAN], [0, NAN, NAN, NAN, NAN]),
        ("acos", [1, 1.5, -1.5, INF, NAN], [0, NAN, NAN, NAN, NAN]),
        ("atan", [0, NAN], [0, NAN]),
        ("sinh", [0, INF, -INF, NAN, 1000, -1000], [0, INF, -INF, NAN, INF, -INF]),
        ("cosh", [0, INF, -INF, NAN, 1000, -1000], [1, INF, INF, NAN, INF, INF]),
        ("asinh", [0, INF, -INF, NAN], [0, INF, -INF, NAN]),
        ("acosh", [1, 0.5, 0, -1, -3, INF, -INF, NAN], [0, NAN, NAN, NAN, NAN, INF, NAN, NAN]),
        ("atanh", [0, 1, -1, 1.5, -3, INF, NAN], [0, INF, -INF, NAN, NAN, NAN, NAN]),
        ("erf", [0, INF, -INF, NAN, 10, -1e30], [0, 1, -1, NAN, 1, -1]),
        ("lgamma", [0, -0.0, -1, -2, -1e30, 1, 2, INF, -INF, NAN], [INF, INF, INF, INF, INF, 0, 0, INF, -INF, NAN]),
        ("digamma", [0, -0.0, -1, -2, -1e30, INF, -INF, NAN], [-INF, INF, NAN, NAN, NAN, INF, NAN, NAN]),
    ],
)
def test_special_values(name, x, y, kind):
    for flags in FLAGS:
        np.testing.assert_array_equal(compute(name, np.array(x, kind), flags), np.array(y, kind))
    plain = [function_of(name)(kind(value)) for value in x]
    assert {type(value) for value in plain} == {kind}
    np.testing.assert_array_equal(plain, np.array(y, kind))


@pytest.mark.parametrize("kind", TYPES)
def test_small_arguments_keep_their_digits(kind):
    x = np.geomspace(float(np.finfo(kind).tiny), 1e-9, 1000).astype(kind)
    for name in ("tanh", "expm1", "log1p", "sin", "tan", "asin", "atan", "sinh", "asinh", "atanh"):
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


@pytest.mark.parametrize("name", ["exp", "tanh", "log", "softplus", "sin", "asin", "asinh", "erf", "lgamma"])
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
    """LLVM's own text of the finished loop stores vectors, and calls nothing for one number that is no instruction."""
    compute(name, np.ones(4, kind), flags)
    signature = next(s for s in loop(name, flags).signatures if s[0].dtype == numba.from_dtype(np.dtype(kind)))
    text = loop(name, flags).inspect_llvm(signature)
    number = "float" if kind is np.float32 else "double"
    assert re.search(rf"store <\d+ x {number}>", text), f"{name}: no vector is stored"
    scalar_calls = re.findall(rf"call [^\n]*\b{number} @(?!llvm\.(?:fabs|copysign|sqrt|rint|floor|ceil)\.)[^\n]*", text)
    assert not scalar_calls, f"{name}: {scalar_calls[0]}"


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", FAR)
def test_huge_angles(name, kind):
    """Of every size, and near multiples of π/2; those that are not huge are bitwise what the vector code gives."""
    x = numbers(kind)
    near = (np.arange(1, 200_000, 7) * (math.pi / 2)).astype(kind)
    x = np.concatenate([x, near, np.nextafter(near, kind(0)), -near])
    y, far = compute(f"{name}_anywhere", x), _math_trigonometric.is_far(x)
    with np.errstate(all="ignore"):
        truth = FAR[name](x.astype(np.float64 if kind is np.float32 else np.longdouble))
        assert np.max(errors(y, truth)) <= CASES[name][1 + TYPES.index(kind)]
    np.testing.assert_array_equal(y[~far], compute(name, x[~far]))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["lgamma", "digamma"])
def test_gamma(name, kind):
    """In float32 by ulp, also near the zeros; in float64 relative to max(1, |y|)."""
    x = numbers(kind)
    x = x[:: 1 if kind is np.float32 else 5]
    with np.errstate(all="ignore"):
        truth, y = globals()[name](x), compute(name, x)
        if kind is np.float32:
            assert np.max(errors(y, truth)) <= 1.5
        same = (y == truth.astype(kind)) | (np.isnan(y) & np.isnan(truth))
        error = np.where(same, 0, abs(y - truth) / np.maximum(1, abs(truth)))
    assert np.max(error) <= (1e-6 if kind is np.float32 else 2e-14)
    text = "".join(loop(name, "kernel").inspect_llvm().values())
    assert re.search(r"store <\d+ x (float|double)>", text)


@functools.cache
def power_loop():
    @numba.njit(error_model="numpy", fastmath=_jit._FASTMATH)
    def run(x, e, y):
        for i in range(x.size):
            y[i] = _math_power.power(x[i], e[i])

    return run


def power(x, e):
    y = np.empty_like(x)
    power_loop()(x, e, y)
    return y


@pytest.mark.parametrize("kind", TYPES)
def test_power(kind):
    """For exponents that lead all over the range, for integers, and for any two numbers."""
    x, rng, info = numbers(kind), np.random.default_rng(3), np.finfo(kind)
    wide = np.float64 if kind is np.float32 else np.longdouble
    with np.errstate(all="ignore"):
        exponents = [
            (rng.uniform(info.minexp - 30, info.maxexp + 2, x.size) / np.log2(abs(x).astype(np.float64))).astype(kind),
            rng.integers(-12, 13, x.size).astype(kind),
            (3 * rng.normal(size=x.size)).astype(kind),
            rng.permutation(x),
        ]
        for e in exponents:
            error = errors(power(x, e), np.power(x.astype(wide), e.astype(wide)))
            worst = np.argmax(np.where(np.isnan(error), np.inf, error))
            assert error[worst] <= (0.7 if kind is np.float32 else 60), (x[worst], e[worst])  # 60 ulp: 1e-14
        np.testing.assert_array_equal(power(x, np.full_like(x, 2)), x * x)
        np.testing.assert_array_equal(power(x, np.full_like(x, -1)), 1 / x)


@pytest.mark.parametrize("kind", TYPES)
def test_special_values_of_power(kind):
    info = np.finfo(kind)
    special = [0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 3, -3, INF, -INF, NAN, 1e30, -1e30, 2 / info.eps, 1 / info.eps]
    numbers = np.array([*special, info.smallest_subnormal, -info.tiny], kind)
    x, e = (a.ravel() for a in np.meshgrid(numbers, numbers))
    with np.errstate(all="ignore"):
        expected = np.power(x, e)
    np.testing.assert_allclose(power(x, e), expected, rtol=4 * info.eps, atol=0)
    np.testing.assert_array_equal(np.signbit(power(x, e))[~np.isnan(expected)], np.signbit(expected)[~np.isnan(expected)])
    assert _math_power.power(kind(-8), kind(3)) == -512


@pytest.mark.parametrize("kind", TYPES)
def test_with_sign(kind):
    assert _math.with_sign(kind(2), kind(-0.0)) == -2
    assert numba.njit(lambda x, y: _math.with_sign(x, y))(kind(2), kind(-3)) == -2


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


@pytest.mark.parametrize("watched", [True, False])
def test_who_watches_is_told_that_kernels_are_being_compiled(monkeypatch, capsys, watched):
    clock = iter([5.0, 5.5, 6.5, 9.0])
    monkeypatch.setattr(_jit.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(_jit._Notice, "since", 0.0)
    monkeypatch.setattr(_jit._Notice, "said", False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    for said in (0, 0, 1, 1):
        _jit._Notice.compiling()
        assert _jit._Notice.said == (said > 0)
    assert capsys.readouterr().err == (_jit._Notice.text + "\n" if watched else "")


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

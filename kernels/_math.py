"""Elementary functions of one number that LLVM turns into vector code; one source for float32 and float64.

`math.exp` and its like are calls of the C library, one number at a time; a loop around one cannot become vector code. The
functions here are sums, products, selections and shifts of bits, with no call left, so a loop around them does:

    ns a number       exp   log   tanh  logistic  expm1  log1p  softplus  sqrt     one core with AVX-512, 16 384 numbers,
    float32           0.26  0.36  0.27  0.34      0.21   0.37   0.59      0.18     Numba 0.68, LLVM 22
      Numba's own     2.3   2.6   11    -         8.1    6.5    -         0.2
    float64           0.72  0.89  0.81  0.93      0.64   0.90   1.8       0.55
      Numba's own     4.2   3.4   9.8   -         6.3    5.7    -         0.55

How they are written. A public function has two bodies. The plain one is NumPy's formula; it runs when Python calls it, so a
kernel can be run as Python (NUMBA_DISABLE_JIT=1). The other is compiled into the kernel that calls the function. It asks
`_constants` for the numbers of its type, which LLVM sees as literals; apart from these the two types share every line. A
Python number among float32 numbers would make Numba compute in float64, at less than half the speed: hence `c.one`, `c.half`,
`number`.

Errors are in ulp (steps between neighbouring numbers at the exact result), the largest on every 7th of all float32
numbers and on 23 million float64 numbers; they are the same on AVX2, and within 0.2 ulp without a fused multiply-add. A
number's result does not depend on where in a vector, or in the rest of a loop, it stands: tests watch both.

What was tried instead:
- Leaving it to LLVM what to inline: the same code, up to seven functions in a loop. But one call left over would mean no
  vector code, so `forceinline` makes sure.
- One multiplication by 2**k instead of two in `exp`: 0.23 ns instead of 0.26, but nothing between 0 and 2**-126, and numbers
  above 2**127.5 are infinite.
- Rounding by `floor`: as fast in float32, 0.81 ns instead of 0.72 in float64, and a call where SSE 4.1 is missing.
- fdlibm's longer form of `log`, f - (f²/2 - s (f²/2 + R)) where we have f - s (f - R): 0.81 instead of 0.93 ulp, 0.41 ns
  instead of 0.36.
- `log1p` inside `softplus`: 0.78 ns instead of 0.59; its argument e**-|x| never exceeds 1, which needs less care.

Flags. The functions carry `_FASTMATH` on their own instructions. A kernel that calls them may ask for more
(`reductions=True`) without a change in their results, as LLVM reorders sums only where all of them allow it. NaN and
infinities come out as NumPy's; only the sign of a zero may be lost.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.extending import overload

from autobatch.kernels._jit import _FASTMATH, _HELPER

Real: TypeAlias = Any  # a float32 or float64 number; what comes back is of the same type

_OPTIONS: Any = {**_HELPER, "fastmath": _FASTMATH, "forceinline": True}
_part: Any = numba.njit(**_OPTIONS)
intrinsic: Any = extending.intrinsic  # typed Any: to mypy its calls would lack the typing context


# Constants ------------------------------------------------------------------------------------------------------------


class _Constants(NamedTuple):
    """The numbers that differ between the types, and the small ones that must not be Python's."""

    zero: Any
    half: Any
    one: Any
    two: Any
    infinity: Any
    nan: Any
    log2e: Any  # 1 / ln 2
    ln2_high: Any  # ln 2 = high + low, and k * high is exact for every exponent k
    ln2_low: Any
    round: Any  # adding and subtracting it rounds to an integer, see `_rounded`
    power: Any  # adding it puts an exponent into the last bits, see `_power`
    exp_lowest: Any  # e**x is 0 below, ...
    exp_highest: Any  # ... infinite above
    expm1_lowest: Any  # e**x - 1 is -1 below
    tanh_highest: Any  # tanh is 1 above
    normal: Any  # smallest number that is not denormal
    lift: Any  # 2**lift_by makes any denormal number normal
    lift_by: Any
    most: Any  # largest k for which 2**-k is normal
    split: Any  # sqrt 2 - 1
    expm1: tuple[Any, ...]  # (e**r - 1 - r) / r²              in powers of r,  |r| <= ln 2 / 2
    log: tuple[Any, ...]  #   (2 artanh s - 2 s) / s³          in powers of s², |s| <= (sqrt 2 - 1) / (sqrt 2 + 1)


_LN2 = Fraction("0.693147180559945309417232121458176568")


def _make(kind: type, p: int, bias: int, short: int, expm1: tuple[float, ...], log: tuple[float, ...]) -> _Constants:
    """Constants of a type with p bits of fraction and this bias of the exponent; `short` bits of ln 2 times k are exact."""
    high = Fraction(int(_LN2 * 2**short), 2**short)
    log2 = math.log(2)
    plain = {
        "zero": 0,
        "half": 0.5,
        "one": 1,
        "two": 2,
        "infinity": math.inf,
        "nan": math.nan,
        "log2e": 1 / log2,
        "ln2_high": high,
        "ln2_low": _LN2 - high,
        "round": 1.5 * 2**p,
        "power": 1.5 * 2**p + bias,
        "exp_lowest": math.floor(-(bias + p) * log2),
        "exp_highest": math.ceil((bias + 1) * log2),
        "expm1_lowest": math.floor(-(p + 2) * log2),
        "tanh_highest": math.ceil((p + 3) * log2 / 2),
        "normal": 2.0 ** (1 - bias),
        "lift": 2.0 ** (p + 1),
        "lift_by": p + 1,
        "most": bias - 1,
        "split": math.sqrt(2) - 1,
    }
    numbers = {name: kind(float(value)) for name, value in plain.items()}
    return _Constants(**numbers, expm1=tuple(map(kind, expm1)), log=tuple(map(kind, log)))


# The polynomials are minimax fits (Remez's exchange in 60 digits) of the relative error of e**r - 1 and of log, with the
# first coefficient of expm1 held at 1/2; relative error of the fit 2**-25.9 and 2**-29.9, then 2**-58.8 and 2**-59.1.
_CONSTANTS = {
    types.float32: _make(
        np.float32,
        p=23,
        bias=127,
        short=15,
        expm1=(0.5, 0.16666530072689056, 0.04166615381836891, 0.008368265815079212, 0.0013976548798382282),
        log=(0.6666677594184875, 0.3997744917869568, 0.29874420166015625),
    ),
    types.float64: _make(
        np.float64,
        p=52,
        bias=1023,
        short=40,
        expm1=(
            *(0.5, 0.16666666666666677, 0.04166666666666671, 0.008333333333320184, 0.0013888888888841859),
            *(0.0001984126989020169, 2.4801587441636136e-05, 2.7557239761642734e-06, 2.7557148617448526e-07),
            *(2.5110688326213784e-08, 2.0960589044104587e-09),
        ),
        log=(
            *(0.6666666666666735, 0.3999999999940749, 0.28571428744142385, 0.2222219837833616, 0.181835751738758),
            *(0.15313755528898948, 0.1479906852905459),
        ),
    ),
}


def _constants_of(table: dict[Any, Any]) -> Any:
    """Return a function f(x): the numbers of the type of x, to LLVM as good as literals."""

    @intrinsic
    def constants(typingctx, x):
        value = table.get(x)
        if value is None:
            return None

        def codegen(context, builder, signature, args):
            return context.get_constant_generic(builder, signature.return_type, value)

        return numba.typeof(value)(x), codegen

    return constants


_constants = _constants_of(_CONSTANTS)


# Bits -----------------------------------------------------------------------------------------------------------------


def _layout(x: types.Type) -> tuple[ir.Type, ir.Type, int, int]:
    """Integer of the same width, floating type, bits of fraction, bias of the exponent."""
    if x == types.float32:
        return ir.IntType(32), ir.FloatType(), 23, 127
    return ir.IntType(64), ir.DoubleType(), 52, 1023


@intrinsic
def _exponent_bits(typingctx, x):
    """_exponent_bits(x): the number whose exponent field is the last bits of x, and whose fraction is 0."""
    integer, real, p, _ = _layout(x)

    def codegen(context, builder, signature, args):
        return builder.bitcast(builder.shl(builder.bitcast(args[0], integer), integer(p)), real)

    return x(x), codegen


@intrinsic
def _split(typingctx, x):
    """_split(x): (k, m) with x = 2**k m, sqrt(1/2) <= m < sqrt 2, for normal x > 0; for other x some finite numbers.

                                              sign   exponent     fraction (p bits)
                                             +-----+------------+----------------------------------+
        bits of x + bits of 1                |  0  |  k + bias  |  bits of m - bits of sqrt(1/2)   |
                  - bits of sqrt(1/2)        +-----+------------+----------------------------------+

    k becomes a number by standing in the last bits of 2**p, as AVX2 cannot convert 64-bit integers.
    """
    integer, real, p, bias = _layout(x)
    start = int(np.array(math.sqrt(0.5), str(x)).view(f"int{integer.width}"))  # type: ignore[attr-defined]
    at_last = (bias + p) << p  # the bits of 2**p

    def codegen(context, builder, signature, args):
        bits = builder.add(builder.bitcast(args[0], integer), integer((bias << p) - start))
        k = builder.bitcast(builder.or_(builder.lshr(bits, integer(p)), integer(at_last)), real)
        m = builder.add(builder.and_(bits, integer((1 << p) - 1)), integer(start))
        parts = builder.fsub(k, real(2.0**p + bias)), builder.bitcast(m, real)
        return context.make_tuple(builder, signature.return_type, parts)

    return types.UniTuple(x, 2)(x), codegen


@intrinsic
def order_of(typingctx, x):
    """order_of(x): an integer as wide as x, in the order of the numbers, NaN highest: their maxima are vector code."""
    integer, _, _, _ = _layout(x)
    result = types.int32 if integer.width == 32 else types.int64

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], integer)
        low = integer((1 << (integer.width - 1)) - 1)
        sign = builder.ashr(bits, integer(integer.width - 1))
        order = builder.sub(builder.xor(bits, builder.and_(sign, low)), sign)  # -0 becomes 0
        return builder.select(builder.fcmp_unordered("uno", args[0], args[0]), low, order)

    return result(x), codegen


@intrinsic
def number_of(typingctx, order, like):
    """number_of(order, like): the number x of the type of `like` with order_of(x) = order (0 for -0)."""
    integer, real, _, _ = _layout(like)

    def codegen(context, builder, signature, args):
        low = integer((1 << (integer.width - 1)) - 1)
        sign = builder.ashr(args[0], integer(integer.width - 1))
        return builder.bitcast(builder.sub(builder.xor(args[0], builder.and_(sign, low)), sign), real)

    return like(types.int32 if integer.width == 32 else types.int64, like), codegen


def _instruction(builder: ir.IRBuilder, name: str, *args: ir.Value) -> ir.Value:
    """Call of an LLVM intrinsic whose arguments and result are all of one type."""
    kind = args[0].type
    return builder.call(builder.module.declare_intrinsic(name, [kind], ir.FunctionType(kind, [kind] * len(args))), args)


@intrinsic
def _with_sign(typingctx, x, y):
    """_with_sign(x, y): |x| with the sign of y."""
    return x(x, x), lambda context, builder, signature, args: _instruction(builder, "llvm.copysign", *args)


@intrinsic
def _square_root(typingctx, x):
    """_square_root(x): the instruction; `math.sqrt` is a call of the C library outside vector code."""
    return x(x), lambda context, builder, signature, args: _instruction(builder, "llvm.sqrt", *args)


@intrinsic
def _nearest(typingctx, x):
    """_nearest(x): the nearest integer, the even one of two; an instruction, for any x."""
    return x(x), lambda context, builder, signature, args: _instruction(builder, "llvm.rint", *args)


@intrinsic
def _integer_below(typingctx, x):
    """_integer_below(x): the largest integer that is not above x."""
    return x(x), lambda context, builder, signature, args: _instruction(builder, "llvm.floor", *args)


@intrinsic
def _integer_above(typingctx, x):
    """_integer_above(x): the smallest integer that is not below x."""
    return x(x), lambda context, builder, signature, args: _instruction(builder, "llvm.ceil", *args)


@intrinsic
def _polynomial(typingctx, x, coefficients):
    """_polynomial(x, (c0, c1, c2, ...)): c0 + x (c1 + x (c2 + ...)), written out."""

    def codegen(context, builder, signature, args):
        c = [builder.extract_value(args[1], i) for i in range(coefficients.count)]
        value = c.pop()
        while c:
            value = builder.fadd(builder.fmul(value, args[0]), c.pop())
        return value

    return x(x, coefficients), codegen


# Parts that the functions share ---------------------------------------------------------------------------------------


@_part
def _at_least(x: Real, low: Real) -> Real:
    """x, or low where x is below it; NaN stays NaN, which `max` does not promise."""
    if x < low:
        return low
    return x


@_part
def _at_most(x: Real, high: Real) -> Real:
    """x, or high where x is above it; NaN stays NaN."""
    if x > high:
        return high
    return x


@_part
def _rounded(x: Real) -> Real:
    """The integer nearest to x, |x| < 2**(p-2): between 2**p and 2**(p+1), where the sum lies, numbers are 1 apart."""
    c = _constants(x)
    return (x + c.round) - c.round


@_part
def _power(k: Real) -> Real:
    """2**k for an integer k that is the exponent of a normal number."""
    return _exponent_bits(k + _constants(k).power)


@_part
def _without_powers(x: Real) -> Real:
    """(k, r) with x = k ln 2 + r and |r| <= ln 2 / 2, after Cody and Waite (1980): ln 2 in two parts."""
    c = _constants(x)
    k = _rounded(x * c.log2e)
    return k, (x - k * c.ln2_high) - k * c.ln2_low


@_part
def _expm1_near_0(r: Real) -> Real:
    """e**r - 1 for |r| <= ln 2 / 2."""
    return r * r * _polynomial(r, _constants(r).expm1) + r


@_part
def _exp_between(x: Real) -> Real:
    """e**x for x from exp_lowest to exp_highest; 2**k in two factors, as it may be too large or too small for one."""
    c = _constants(x)
    k, r = _without_powers(x)
    h = _rounded(k * c.half)
    return (_expm1_near_0(r) + c.one) * _power(h) * _power(k - h)


@_part
def _exp_minus_abs(x: Real) -> Real:
    """e**-|x|."""
    return _exp_between(_at_least(-abs(x), _constants(x).exp_lowest))


@_part
def _log_of_parts(k: Real, f: Real) -> Real:
    """log(2**k (1 + f)) for sqrt(1/2) <= 1 + f <= sqrt 2.

    log(1 + f) = 2 artanh s with s = f / (2 + f), and 2 s = f - s f; so f, the largest term, enters without an error.
    """
    c = _constants(f)
    s = f / (c.two + f)
    z = s * s
    return k * c.ln2_high + (f + (k * c.ln2_low - s * (f - z * _polynomial(z, c.log))))


@_part
def _log_at_the_ends(y: Real, x: Real) -> Real:
    """y = log x put right where x is not a finite number above 0."""
    c = _constants(x)
    y = y if x < c.infinity else x
    y = c.nan if x < c.zero else y
    return -c.infinity if x == c.zero else y


@_part
def _log1p_up_to_1(x: Real) -> Real:
    """log(1 + x) for 0 <= x <= 1: as `_log_of_parts` of k = 0, or of k = 1 and f = (1 + x) / 2 - 1."""
    c = _constants(x)
    above = x > c.split
    return _log_of_parts(c.one if above else c.zero, (x - c.one) * c.half if above else x)


# Functions ------------------------------------------------------------------------------------------------------------


def _public(function: Callable[..., Real]) -> Callable[..., Real]:
    """The plain body: without the warnings that compiled code cannot give."""

    @functools.wraps(function)
    def quiet(*numbers: Real) -> Real:
        with np.errstate(all="ignore"):
            return function(*numbers)

    return quiet


def _compiled(function: Callable[[Real], Real]) -> Callable[[Callable[[Real], Real]], Any]:
    """Give `function` the body that is compiled into the kernels that call it."""

    def give(body: Callable[[Real], Real]) -> Callable[[Real], Real]:
        @overload(function, jit_options=_OPTIONS)
        def choose(x: Real) -> Any:  # annotated as the body is: Numba compares
            return body if x in _CONSTANTS else None

        return body

    return give


@_public
def exp(x: Real) -> Real:
    """Return e**x.

    Notes
    -----
    x = k ln 2 + r, e**x = 2**k e**r, and a polynomial for e**r. Denormal results are rounded once, below them comes 0.
    Error at most 1.1 ulp.

    Source
    ------
    W. J. Cody, W. Waite, Software Manual for the Elementary Functions (1980), chapter 6, for the two parts of ln 2.
    """
    return np.exp(x)


@_compiled(exp)
def _exp(x: Real) -> Real:
    c = _constants(x)
    return _exp_between(_at_most(_at_least(x, c.exp_lowest), c.exp_highest))


@_public
def expm1(x: Real) -> Real:
    """Return e**x - 1, also for small x, where `exp(x) - 1` would have lost its digits.

    Notes
    -----
    With x = k ln 2 + r it is 2**k (e**r - 1) + (2**k - 1). Error at most 1.6 ulp in float32, 1.9 in float64.

    Source
    ------
    P. T. P. Tang, Table-driven implementation of the expm1 function, ACM TOMS 18 (1992), for the last step; no table here.
    """
    return np.expm1(x)


@_compiled(expm1)
def _expm1(x: Real) -> Real:
    c = _constants(x)
    k, r = _without_powers(_at_most(_at_least(x, c.expm1_lowest), c.exp_highest))
    s = _power(k - c.one)  # half of 2**k, which may be infinite where the result is not
    return (s * _expm1_near_0(r) + (s - c.half)) * c.two


@_public
def tanh(x: Real) -> Real:
    """Return the hyperbolic tangent of x.

    Notes
    -----
    t / (t + 2) with t = e**(2|x|) - 1, which is small where x is, so tanh x = x (1 - x²/3 ...) keeps all its digits there;
    and the sign of x. Error at most 2.6 ulp.

    Source
    ------
    fdlibm, s_tanh.c, for the quotient; t as in `expm1`.
    """
    return np.tanh(x)


@_compiled(tanh)
def _tanh(x: Real) -> Real:
    c = _constants(x)
    a = _at_most(abs(x), c.tanh_highest)
    k, r = _without_powers(a + a)
    s = _power(k)
    t = s * _expm1_near_0(r) + (s - c.one)
    return _with_sign(t / (t + c.two), x)


@_public
def logistic(x: Real) -> Real:
    """Return 1 / (1 + e**-x).

    Notes
    -----
    From e = e**-|x|, which is never infinite: 1 / (1 + e), or e / (1 + e) for x < 0, so small results keep their digits down
    to the denormal ones. Error at most 2.4 ulp in float32, 2.5 in float64.
    """
    e = np.exp(-abs(x))
    return (e if x < 0 else 1) / (1 + e)


@_compiled(logistic)
def _logistic(x: Real) -> Real:
    c = _constants(x)
    e = _exp_minus_abs(x)
    return (e if x < c.zero else c.one) / (c.one + e)


@_public
def log(x: Real) -> Real:
    """Return the natural logarithm of x; -inf for 0, NaN below.

    Notes
    -----
    x = 2**k (1 + f) and a polynomial in (f / (2 + f))²; denormal x is made normal first. Error at most 1.0 ulp.

    Source
    ------
    fdlibm, e_log.c, for the series in f / (2 + f); the coefficients are our own.
    """
    return np.log(x)


@_compiled(log)
def _log(x: Real) -> Real:
    c = _constants(x)
    small = x < c.normal
    k, m = _split(x * c.lift if small else x)
    k = k - c.lift_by if small else k
    return _log_at_the_ends(_log_of_parts(k, m - c.one), x)


@_public
def log1p(x: Real) -> Real:
    """Return log(1 + x), also for small x, where `log(1 + x)` would have lost its digits; -inf for -1, NaN below.

    Notes
    -----
    The sum u = 1 + x is rounded; what it lost, x - (u - 1), is exact, and is added to f of u = 2**k (1 + f) on its scale.
    Where k = 0 this gives f = x. Error at most 1.6 ulp.

    Source
    ------
    fdlibm, s_log1p.c, corrects the logarithm by lost / u; here f is corrected, which saves a division.
    """
    return np.log1p(x)


@_compiled(log1p)
def _log1p(x: Real) -> Real:
    c = _constants(x)
    u = c.one + x
    k, m = _split(u)
    scale = _power(-_at_most(k, c.most))  # where k is larger, nothing was lost
    return _log_at_the_ends(_log_of_parts(k, (m - c.one) + (x - (u - c.one)) * scale), u)


@_public
def softplus(x: Real) -> Real:
    """Return log(1 + e**x).

    Notes
    -----
    max(x, 0) + log(1 + e**-|x|). Error at most 1.8 ulp.

    Source
    ------
    M. Mächler, Accurately computing log(1 - exp(-|a|)), vignette of the R package Rmpfr (2012), for the cases.
    """
    return np.logaddexp(0, x)


@_compiled(softplus)
def _softplus(x: Real) -> Real:
    return _at_least(x, _constants(x).zero) + _log1p_up_to_1(_exp_minus_abs(x))


@_public
def logsigmoid(x: Real) -> Real:
    """Return log(logistic(x)) = -softplus(-x), also where logistic(x) is 0 or 1. Error as of `softplus`."""
    return -np.logaddexp(0, -x)


@_compiled(logsigmoid)
def _logsigmoid(x: Real) -> Real:
    return _at_most(x, _constants(x).zero) - _log1p_up_to_1(_exp_minus_abs(x))


@_public
def sqrt(x: Real) -> Real:
    """Return the square root of x, correctly rounded (one machine instruction); NaN below 0."""
    return np.sqrt(x)


@_compiled(sqrt)
def _sqrt(x: Real) -> Real:
    return _square_root(x)


@_public
def floor(x: Real) -> Real:
    """Return the largest integer that is not above x (one machine instruction)."""
    return np.floor(x)


@_compiled(floor)
def _floor(x: Real) -> Real:
    return _integer_below(x)


@_public
def ceil(x: Real) -> Real:
    """Return the smallest integer that is not below x (one machine instruction)."""
    return np.ceil(x)


@_compiled(ceil)
def _ceil(x: Real) -> Real:
    return _integer_above(x)


@_public
def with_sign(x: Real, y: Real) -> Real:
    """Return |x| with the sign of y."""
    return np.copysign(x, y)


@overload(with_sign, jit_options=_OPTIONS)
def _choose_with_sign(x: Real, y: Real) -> Any:
    def body(x: Real, y: Real) -> Real:
        return _with_sign(x, y)

    return body if x in _CONSTANTS and x == y else None

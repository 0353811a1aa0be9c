"""Words of arithmetic that are one instruction, or a few: written once in LLVM's language, for a processor and for a card.

    @word(plain)                    plain: the same in Python, for the simulator of the tests
    def fused(intrinsic, types):    called for each machine, with its decorator and its types
        ...

`WORDS` lists them; `_cuda_math.py` makes those of a card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import extending
from numba import types as numba_types

_INT = ir.IntType(64)


class Word(NamedTuple):
    """One word: as compiled for a processor, how it is made for others, and in Python."""

    compiled: Any
    make: Callable[[Any, Any], Any]
    plain: Callable[..., Any]


WORDS: list[Word] = []


def word(plain: Callable[..., Any]) -> Callable[[Callable[[Any, Any], Any]], Any]:
    """Make a word; what comes back is that of a processor."""

    def add(make: Callable[[Any, Any], Any]) -> Any:
        compiled = make(extending.intrinsic, numba_types)
        WORDS.append(Word(compiled, make, plain))
        return compiled

    return add


def _instruction(name: str, count: int) -> Callable[[Any, Any], Any]:
    """How an LLVM intrinsic of `count` numbers of one type is made a word."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        function = builder.module.declare_intrinsic(name, [kind], ir.FunctionType(kind, [kind] * count))
        return builder.call(function, args)

    def one(typingctx, x):
        return x(x), codegen

    def three(typingctx, x, y, z):
        return x(x, x, x), codegen

    return lambda intrinsic, types: intrinsic(one if count == 1 else three)


fused = word(lambda x, y, z: type(x)(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))))(_instruction("llvm.fma", 3))
below = word(np.floor)(_instruction("llvm.floor", 1))
above = word(np.ceil)(_instruction("llvm.ceil", 1))


def polynomial(float32: Sequence[Any], float64: Sequence[Any]) -> Any:
    """Return a word f(x) = c0 + x (c1 + x (c2 + ...)), with coefficients by the type of x."""

    def plain(x: Any) -> Any:
        c = [type(x)(v) for v in (float32 if x.dtype == np.float32 else float64)]
        value = c.pop()
        while c:
            value = value * x + c.pop()
        return value

    def make(intrinsic: Any, types: Any) -> Any:
        @intrinsic
        def evaluated(typingctx, x):
            def codegen(context, builder, signature, args):
                coefficients = float32 if str(x) == "float32" else float64
                c = [ir.Constant(args[0].type, float(v)) for v in coefficients]
                value = c.pop()
                while c:
                    value = builder.fadd(builder.fmul(value, args[0]), c.pop())
                return value

            return x(x), codegen

        return evaluated

    return word(plain)(make)


def constant(float32: float, float64: float) -> Any:
    """Return a word f(x): a number by the type of x."""
    return polynomial([float32], [float64])


# Bits -----------------------------------------------------------------------------------------------------------------


def _parts(x: Any) -> tuple[int, int]:
    m, e = math.frexp(abs(float(x)))
    return int(m * 2**53), e - 53


@word(lambda x: np.uint64(_parts(x)[0]))
def mantissa(intrinsic, types):
    """mantissa(x): m with |x| = m 2**e and 2**52 <= m < 2**53, a uint64; for normal x."""

    @intrinsic
    def mantissa(typingctx, x):
        def codegen(context, builder, signature, args):
            wide, fraction = (32, 23) if str(x) == "float32" else (64, 52)
            bits = builder.bitcast(args[0], ir.IntType(wide))
            bits = builder.and_(bits, ir.IntType(wide)((1 << fraction) - 1))
            bits = builder.or_(bits, ir.IntType(wide)(1 << fraction))
            return builder.shl(builder.zext(bits, _INT), _INT(52 - fraction)) if wide == 32 else bits

        return types.uint64(x), codegen

    return mantissa


@word(lambda x: np.int64(_parts(x)[1]))
def exponent(intrinsic, types):
    """exponent(x): the e of `mantissa`, an int64."""

    @intrinsic
    def exponent(typingctx, x):
        def codegen(context, builder, signature, args):
            wide, fraction, bias = (32, 23, 127) if str(x) == "float32" else (64, 52, 1023)
            bits = builder.lshr(builder.bitcast(args[0], ir.IntType(wide)), ir.IntType(wide)(fraction))
            bits = builder.and_(bits, ir.IntType(wide)(2 * bias + 1))
            return builder.sub(builder.zext(bits, _INT) if wide == 32 else bits, _INT(bias + 52))

        return types.int64(x), codegen

    return exponent


@word(lambda x, y: np.uint64(int(x) * int(y) >> 64))
def upper_product(intrinsic, types):
    """upper_product(x, y): the upper 64 bits of the product of two uint64."""

    @intrinsic
    def upper_product(typingctx, x, y):
        def codegen(context, builder, signature, args):
            wide = ir.IntType(128)
            product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
            return builder.trunc(builder.lshr(product, wide(64)), _INT)

        return types.uint64(types.uint64, types.uint64), codegen

    return upper_product


def table(values: Sequence[int]) -> Any:
    """Return a word f(k): the k-th of some uint64 numbers, from memory."""

    def make(intrinsic: Any, types: Any) -> Any:
        @intrinsic
        def entry(typingctx, k):
            def codegen(context, builder, signature, args):
                kind = ir.ArrayType(_INT, len(values))
                name = f"table_{hash(tuple(values)) & 0xFFFFFFFF:x}"
                memory = builder.module.globals.get(name)
                if memory is None:
                    memory = ir.GlobalVariable(builder.module, kind, name)
                    memory.linkage = "internal"
                    memory.global_constant = True
                    memory.initializer = ir.Constant(kind, [_INT(v) for v in values])
                at = context.cast(builder, args[0], signature.args[0], types.int64)
                return builder.load(builder.gep(memory, [_INT(0), at]))

            return types.uint64(k), codegen

        return entry

    return word(lambda k: np.uint64(values[int(k)]))(make)

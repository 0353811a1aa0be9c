"""Random numbers inside kernels: a function of a key and a place, so nothing is stored and no order of running matters.

A node that draws has a *key*, an integer drawn when it was recorded, and its numbers have places 0, 1, 2, ... in it.
`bits(key, place)` are 32 random bits; the same key gives the same bits whatever batch the node runs in, and backward draws them
again in place of keeping them. What is made of the bits is the same number in float32 and float64, to rounding.

How the bits are mixed: the place is multiplied and moved by one hash of the key, goes through half of a 32-bit finalizer, is
moved by another hash of the key, and goes through the other half. With one hash alone two keys would give the same sequence
from different places on: among a thousand nodes of a thousand numbers some would be copies of others.

Source
------
The constants of the finalizers: A. Appleby, MurmurHash3 (keys); C. Wellons, Hash Prospector, "lowbias32" (places).
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir

from autobatch.kernels import _math
from autobatch.kernels._jit import _FASTMATH, _HELPER, number
from autobatch.kernels._math_words import polynomial, word

_GOLDEN = 0x9E3779B9  # 2³² / golden ratio
# With a call left over in it, a loop does not become vector code.
_part: Any = numba.njit(**_HELPER, fastmath=_FASTMATH, forceinline=True)


# Bits -----------------------------------------------------------------------------------------------------------------


@_part
def hashed(key):
    """32 bits that each depend on every bit of an integer."""
    h = np.uint32(key & 0xFFFFFFFF)
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(h ^ (h >> np.uint32(16)))


@_part
def mixed(first, second, place):
    """32 random bits for a place, from two hashes of the key (`hashes`)."""
    h = np.uint32(place * 0x9E3779B1 + np.int64(first) & 0xFFFFFFFF)  # Numba multiplies 32 bits to 64
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D) + second)
    h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@_part
def hashes(key):
    """The two hashes of a key, to be formed once for a node."""
    first = hashed(key + 1)  # 0 would stay 0
    return first, hashed(first + np.uint32(_GOLDEN))


def reference_bits(key: int, count: int) -> np.ndarray:
    """Return the bits of places 0 to count - 1, in NumPy: the definition of what kernels draw."""

    def scrambled(h: Any, shifts: tuple[int, int, int], factors: tuple[int, int], between: Any = 0) -> Any:
        h = ((h ^ (h >> shifts[0])) * factors[0] + between) & 0xFFFFFFFF
        h = ((h ^ (h >> shifts[1])) * factors[1]) & 0xFFFFFFFF
        return h ^ (h >> shifts[2])

    first = scrambled((key + 1) & 0xFFFFFFFF, (16, 13, 16), (0x85EBCA6B, 0xC2B2AE35))
    second = scrambled((first + _GOLDEN) & 0xFFFFFFFF, (16, 13, 16), (0x85EBCA6B, 0xC2B2AE35))
    places = np.arange(count, dtype=np.uint64)
    start = (places * np.uint64(0x9E3779B1) + np.uint64(first)) & np.uint64(0xFFFFFFFF)
    u = [np.uint64(v) for v in (16, 15, 16, 0x7FEB352D, 0x846CA68B, second)]
    with np.errstate(over="ignore"):
        h = ((start ^ (start >> u[0])) * u[3] + u[5]) & np.uint64(0xFFFFFFFF)
        h = ((h ^ (h >> u[1])) * u[4]) & np.uint64(0xFFFFFFFF)
    return h ^ (h >> u[2])


# Numbers --------------------------------------------------------------------------------------------------------------


@_part
def limit(p):
    """What bits are compared with for an event of probability p: they lie below with that probability."""
    return np.int64(p * number(4294967296.0, p)) if 0 <= p <= 1 else np.int64(0)  # no product is rounded


@_part
def uniform(h, like):
    """A number from 0 to below 1, of 32 bits (float32: its first 24)."""
    return _as_uniform(h, like)


def _uniform_plain(h: Any, like: Any) -> Any:
    kept = int(h) >> 8 if like.dtype == np.float32 else int(h)
    return like.dtype.type(kept * 2.0 ** (-24 if like.dtype == np.float32 else -32))


@word(_uniform_plain)
def _as_uniform(intrinsic, types):
    """_as_uniform(h, like): the 32 bits of h as a number in [0, 1); bits that the type cannot hold are cut off."""

    @intrinsic
    def as_uniform(typingctx, h, like):
        kind = getattr(like, "dtype", like)
        drop = 8 if str(kind) == "float32" else 0

        def codegen(context, builder, signature, args):
            bits = context.cast(builder, args[0], signature.args[0], types.uint32)
            if drop:
                kept = builder.lshr(bits, ir.Constant(ir.IntType(32), drop))
                real = builder.sitofp(kept, ir.FloatType())  # below 2²⁴, and signed integers convert faster
                return builder.fmul(real, ir.Constant(ir.FloatType(), 2.0**-24))
            return builder.fmul(builder.uitofp(bits, ir.DoubleType()), ir.Constant(ir.DoubleType(), 2.0**-32))

        return kind(h, like), codegen

    return as_uniform


# The quantile of the normal distribution: algorithm AS 241 (PPND16) of M. J. Wichura, Applied Statistics 37 (1988).
# Our smallest p is 2⁻³³, where the square root below is 4.8; the third range of the algorithm begins at 5.
_central_above, _central_below, _tail_above, _tail_below = (
    polynomial(c, c)
    for c in (
        (
            *(3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125),
            *(45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
        ),
        (
            *(1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077),
            *(21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
        ),
        (
            *(1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504),
            *(1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4),
        ),
        (
            *(1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550),
            *(0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
        ),
    )
)


@_part
def normal(h, like):
    """A standard normal number: the quantile of p = (31 bits + 1/2) / 2³², which is below 1/2, and a sign from the last bit.

    Largest number 6.3. Without branches, so loops around it become vector code.
    """
    m = np.int32(h & np.uint32(0x7FFFFFFF))
    p = (number(m, like) + number(0.5, like)) * number(2.0**-32, like)
    q = number(0.5, like) - p
    c, t = number(0.180625, like) - q * q, _math.sqrt(-_math.log(p)) - number(1.6, like)
    in_centre = q * (_central_above(c) / _central_below(c))
    in_tail = _tail_above(t) / _tail_below(t)
    z = in_centre if q <= number(0.425, like) else in_tail
    return -z if h >= np.uint32(0x80000000) else z


@_part
def exponential(h, like):
    """A number from the exponential distribution, -log u with u = (bits + 1/2) / 2³², exact for u near 0 and near 1."""
    near_1 = h >= np.uint32(0x80000000)
    m = np.int32((np.uint32(0xFFFFFFFF) - h) if near_1 else h)
    v = (number(m, like) + number(0.5, like)) * number(2.0**-32, like)  # u, or 1 - u where that is the smaller one
    return -_math.log1p(-v) if near_1 else -_math.log(v)

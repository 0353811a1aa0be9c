"""Random numbers: two independent streams per thread, both begun from one seed.

    values   mt19937, the stream of DyNet (and of `numpy.random.RandomState`): initial values of parameters.
             The same seed gives the same bits as DyNet.
    keys     integers that name a random pattern: a dropout mask, noise, an input of random numbers are functions of their
             key, so that backward can make them again and none is ever stored. Drawing them leaves the first stream alone.

Every thread has its own pair, so that a program gives the same numbers whether or not other threads run beside it. A new
seed is one new `threading.local`: each thread finds it empty at its next draw and begins anew. A draw of a key costs 85 ns
(Zen 5, Python 3.11), a third of it for the thread-local; a dict by thread number is slower.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
import secrets
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from autobatch.kernels._errors import ArgumentError

_CHUNK = 1 << 16  # numbers made at once: temporaries stay in the cache, and small beside a large table


class _Twister:
    """The raw 32-bit numbers of one mt19937, with a way to put back what was drawn too much."""

    def __init__(self, seed: int) -> None:
        self._state = np.random.RandomState(seed)
        self._rest = np.empty(0, np.uint32)

    def take(self, n: int) -> NDArray[np.uint32]:
        rest = self._rest
        if rest.size >= n:
            self._rest = rest[n:]
            return rest[:n]
        self._rest = rest[:0]
        fresh = self._state.randint(0, 1 << 32, size=n - rest.size, dtype=np.uint32)
        return np.concatenate([rest, fresh]) if rest.size else fresh

    def put_back(self, raws: NDArray[np.uint32]) -> None:
        self._rest = np.concatenate([raws, self._rest])


class _Streams(threading.local):
    """The streams of each thread, made when the thread first asks for them."""

    values: _Twister
    keys: Iterator[int]

    def __init__(self, seed: int) -> None:
        self.values = _Twister(seed)
        self.keys = itertools.chain.from_iterable(_blocks_of_keys(seed))


def _blocks_of_keys(seed: int) -> Iterator[list[int]]:
    generator = np.random.PCG64(np.random.SeedSequence([seed, 1]))
    yield (generator.random_raw(64) >> np.uint64(33)).tolist()
    while True:
        yield (generator.random_raw(4096) >> np.uint64(33)).tolist()


_seed = 1
_streams = _Streams(_seed)


# Seeds ----------------------------------------------------------------------------------------------------------------


def reset_random_seed(seed: int) -> None:
    """Begin all random streams anew, in every thread.

    Parameters
    ----------
    seed : 0 ... 2³² - 1. The same seed gives the same numbers; 0 is a seed like any other here.

    Raises
    ------
    OverflowError
        A number that has no 32 bits (as DyNet).
    TypeError
        No integer.
    """
    global _seed, _streams
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(f"reset_random_seed: the seed is an integer, not {type(seed).__name__} {seed!r}") from None
    if not 0 <= seed < 1 << 32:
        raise OverflowError(f"reset_random_seed: the seed {seed} is not in 0 ... {(1 << 32) - 1}")
    _seed, _streams = seed, _Streams(seed)


def configure(seed: int) -> int:
    """Set the seed a program starts with, and return it: `seed`, or one drawn by chance for 0 (DyNet's ``--dynet-seed``)."""
    reset_random_seed(seed or 1 + secrets.randbelow((1 << 32) - 1))
    return _seed


def current_seed() -> int:
    """Return the seed of the last `reset_random_seed`, or the one the program started with."""
    return _seed


# Numbers --------------------------------------------------------------------------------------------------------------


def draw() -> int:
    """Return the next key of this thread: an integer in [0, 2³¹), independent of `uniforms` and `normals`."""
    return next(_streams.keys)


class _Refusing:
    """An iterator that raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        raise self._error


@contextlib.contextmanager
def refused(error: Exception) -> Iterator[None]:
    """Let every `draw` of this thread raise an error, within a block."""
    keys, _streams.keys = _streams.keys, _Refusing(error)
    try:
        yield
    finally:
        _streams.keys = keys


def uniforms(
    n: int, low: float = 0.0, high: float = 1.0, dtype: str = "float32", out: NDArray[np.floating] | None = None
) -> NDArray[np.floating]:
    """Return n numbers drawn evenly from [low, high).

    Parameters
    ----------
    n : how many; each takes one raw number r of the stream.
    low, high : rounded to float32 if that is the dtype.
    dtype : "float32": the bits of DyNet, low + r/2³² · (high - low) in float32 with one rounding at the end ("float64": the
        same formula in float64, so both dtypes begin with the same numbers to rounding).
    out : (n,), if given: where to put them; its dtype counts.

    Raises
    ------
    ArgumentError
        low or high is not finite.
    """
    result = np.empty(n, dtype) if out is None else out
    single = result.dtype == np.float32
    width = float(np.float32(high) - np.float32(low)) if single else high - low
    low = float(np.float32(low)) if single else low
    if not math.isfinite(width):
        raise ArgumentError(f"uniforms: the range from {low} to {high} has no finite width")
    stream = _streams.values
    for begin in range(0, n, _CHUNK):
        raws = stream.take(min(_CHUNK, n - begin))
        if single:
            u = np.minimum(raws.astype(np.float32) * np.float32(2.0**-32), np.float32(1 - 2.0**-24)).astype(np.float64)
        else:
            u = raws * 2.0**-32
        # In float64 the product of two float32 numbers is exact, so rounding the sum to float32 is DyNet's fused multiply-add.
        result[begin : begin + raws.size] = u * width + low
    return result


def normals(
    n: int, mean: float = 0.0, std: float = 1.0, dtype: str = "float32", out: NDArray[np.floating] | None = None
) -> NDArray[np.floating]:
    """Return n numbers from the normal distribution, by the polar method.

    Parameters
    ----------
    n : how many. Pairs of raws give points of the square [-1, 1)²; one within the circle gives two numbers, the second
        coordinate first. A second number that is left over at the end is dropped.
    mean, std : rounded to float32 if that is the dtype.
    dtype : "float32": DyNet's numbers from the same seed, but for the last bit of one in 250 (the logarithm of the C library is
        not rounded the same way everywhere). "float64": the same numbers, scaled in float64.
    out : (n,), if given: where to put them; its dtype counts.

    Raises
    ------
    ArgumentError
        mean or std is not finite.

    Source
    ------
    Marsaglia and Bray 1964, in the form of the C++ standard library that DyNet is built with.
    """
    result = np.empty(n, dtype) if out is None else out
    if result.dtype == np.float32:
        mean, std = float(np.float32(mean)), float(np.float32(std))
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise ArgumentError(f"normals: mean {mean}, standard deviation {std}: both must be finite")
    stream = _streams.values
    two, one = np.float32(2), np.float32(1)
    done = 0
    while done < n:
        pairs = min(_CHUNK, n - done + 1) // 2
        raws = stream.take(2 * (pairs + pairs // 3 + 8))
        u = np.minimum(raws.astype(np.float32) * np.float32(2.0**-32), np.float32(1 - 2.0**-24))
        x, y = (two * u - one).reshape(-1, 2).T
        wide_y = y.astype(np.float64)
        square = (wide_y * wide_y + x * x).astype(np.float32)  # fused: x² is rounded, y² is not
        inside = np.flatnonzero((square <= 1) & (square > 0))[:pairs]
        if inside.size == pairs:
            stream.put_back(raws[2 * (inside[-1] + 1) :])
        r = square[inside]
        factor = np.sqrt(np.float32(-2) * np.log(r.astype(np.float64)).astype(np.float32) / r)
        numbers = np.stack([y[inside] * factor, x[inside] * factor], axis=1).ravel()[: n - done]
        result[done : done + numbers.size] = numbers.astype(np.float64) * std + mean
        done += numbers.size
    return result

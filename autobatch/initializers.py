"""Initial values of parameters: DyNet's initializers, and the short forms `init=` takes.

An initializer fills a flat array in the order in which parameters lie in memory: column-major, and for a look-up table row
after row (the table of V rows of dims (d0, d1) is one array of dims (d0, d1, V)). The random ones draw in this order, one
number after the other, so that a program gets the values it got from DyNet with the same seed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autobatch import seeds
from autobatch.cuda.interop import to_host
from autobatch.kernels._errors import ArgumentError, ConstructionError, ShapeError, message


def number(what: str, value: Any) -> float:
    """Return `value` as a float; what is no real number is an error that names `what`."""
    if not isinstance(value, (bool, int, float, np.number)) or isinstance(value, np.complexfloating):
        raise TypeError(f"{what}: a number is expected, not {type(value).__name__} {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ArgumentError(f"{what}: the number is too large for a float") from None


def _finite(what: str, value: Any) -> float:
    """Return `value` as a float; what is no finite number is an error that names `what`."""
    result = number(what, value)
    if not math.isfinite(result):
        raise ArgumentError(f"{what}: {result} is not finite")
    return result


def _square(dims: Sequence[int]) -> int:
    """Return the size of a square matrix of these dims."""
    if len(dims) != 2 or dims[0] != dims[1]:
        raise ConstructionError(message("only a square matrix can start like this", str(tuple(dims)), "(n, n)"))
    return dims[0]


class PyInitializer:
    """Base of all initializers. One of your own is a subclass with a method `fill`."""

    for_rows = True  # may fill a look-up table

    def __init__(self) -> None:
        if type(self) is PyInitializer:
            raise TypeError("PyInitializer is a base class: use one of its subclasses, for example GlorotInitializer()")

    def fill(self, values: NDArray[np.floating], dims: tuple[int, ...]) -> None:
        """Write the initial values.

        Parameters
        ----------
        values : (product of dims,), float32 or float64, contiguous: where to put them, column-major.
        dims : dims of the parameter; for a look-up table those of a row, then V.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no method fill(values, dims)")


class NormalInitializer(PyInitializer):
    """Numbers from the normal distribution.    N(mean, √var)"""

    def __init__(self, mean: float = 0, var: float = 1) -> None:
        self.mean, self.var = _finite("NormalInitializer: mean", mean), _finite("NormalInitializer: var", var)
        if self.var < 0:
            raise ArgumentError(f"NormalInitializer: the variance {self.var} is negative")

    def fill(self, values: NDArray[np.floating], dims: tuple[int, ...]) -> None:
        """Draw the values (see `PyInitializer.fill`)."""
        seeds.normals(values.size, self.mean, math.sqrt(np.float32(self.var)), out=values)


class UniformInitializer(PyInitializer):
    """Numbers drawn evenly from a range around 0.    U(-scale, scale)"""

    def __init__(self, scale: float) -> None:
        self.scale = _finite("UniformInitializer: scale", scale)

    def fill(self, values: NDArray[np.floating], dims: tuple[int, ...]) -> None:
        """Draw the values (see `PyInitializer.fill`)."""
        seeds.uniforms(values.size, -self.scale, self.scale, out=values)


class ConstInitializer(PyInitializer):
    """One number everywhere."""

    def __init__(self, c: float | np.number) -> None:
        self.c = number("ConstInitializer: c", c)

    def fill(self, values: NDArray[np.floating], dims: tuple[int, ...]) -> None:
        """Set the values (see `PyInitializer.fill`)."""
        values[:] = self.c


class IdentityInitializer(PyInitializer):
    """The identity matrix; anything but a square matrix is a ConstructionError."""

    def __init__(self) -> None:
        pass

    def fill(self, values: NDArray[np.floating], dims: tuple[int, ...]) -> None:
        """Set the values (see `PyInitializer.fill`)."""
        values[:] = np.eye(_square(dims)).ravel()


class GlorotInitializer(PyInitializer):
    """Numbers drawn evenly from a range that keeps the scale of signals.    U(-s, s),  s = gain √(3 rank / Σ dims)

    For a matrix s is √(6 / (rows + columns)); for dims (d0, d1, d2, d3), a filter of `conv2d`, √(6 / ((d2 + d3) d0 d1)).

    Parameters
    ----------
    is_lookup : leave the last dim out of account: the V of a look-up table. The default counts it, so a table of 1000 rows of
        50 starts within √(6 / 1050); DyNet's Python programs do so, DyNet's C++ ones do not.
    gain : factor of the range.

    Source
    ------
    Glorot and Bengio 2010, equation 16; the forms for vectors and filters are DyNet's.
    """

    def __init__(self, is_lookup: bool = False, gain: float = 1.0) -> None:
        self.is_lookup, self.gain = bool(is_lookup), _finite("GlorotInitializer: gain", gain)

    def fill(self, values: NDArray[np.floating], dims: tuple[int, ...]) -> None:
        """Draw the values (see `PyInitializer.fill`)."""
        if self.is_lookup:
            if len(dims) < 2:
                raise ArgumentError(f"GlorotInitializer(is_lookup=True): dims {dims} leave none after the last is put aside")
            dims = dims[:-1]
        gain = float(np.float32(self.gain))
        if len(dims) == 4:
            scale = gain * math.sqrt(6) / math.sqrt((dims[2] + dims[3]) * dims[0] * dims[1])
        else:
            scale = gain * math.sqrt(3 * len(dims)) / math.sqrt(sum(dims))
        seeds.uniforms(values.size, -scale, scale, out=values)


class SaxeInitializer(PyInitializer):
    """A random orthogonal matrix, times `scale`; anything but a square matrix is a ConstructionError.

    Notes
    -----
    The left singular vectors of a matrix drawn from U(-1, 1), by LAPACK in float64. From the same seed DyNet begins with the
    same matrix and finds the same vectors, each perhaps with the other sign.

    Source
    ------
    Saxe, McClelland and Ganguli 2014.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = _finite("SaxeInitializer: scale", scale)

    def fill(self, values: NDArray[np.floating], dims: tuple[int, ...]) -> None:
        """Draw the values (see `PyInitializer.fill`)."""
        n = _square(dims)
        drawn = seeds.uniforms(n * n, -1, 1, dtype=str(values.dtype)).astype(np.float64).reshape(n, n, order="F")
        values[:] = (self.scale * np.linalg.svd(drawn)[0]).ravel(order="F")


class FromFileInitializer(PyInitializer):
    """Numbers from a text file, apart from each other by blanks or line ends, in column-major order.

    Parameters
    ----------
    fname : path, as str, bytes (DyNet's only form) or os.PathLike. The file is read when a parameter is made.

    Raises
    ------
    OSError
        At `fill`: the file cannot be read (DyNet starts with zeros then).
    ShapeError
        At `fill`: it holds more or fewer numbers than the parameter (DyNet leaves the rest undefined).
    """

    def __init__(self, fname: str | bytes | os.PathLike[Any]) -> None:
        if not isinstance(fname, (str, bytes, os.PathLike)):
            raise TypeError(f"FromFileInitializer: a path is expected, not {type(fname).__name__} {fname!r}")
        self.fname = os.fsdecode(fname)

    def fill(self, values: NDArray[np.floating], dims: tuple[int, ...]) -> None:
        """Read the values (see `PyInitializer.fill`)."""
        with open(self.fname, encoding="utf-8") as file:
            words = file.read().split()
        if len(words) != values.size:
            raise ShapeError(
                message(
                    f"FromFileInitializer: {self.fname} does not fit the parameter",
                    f"{len(words)} numbers",
                    f"{values.size} numbers, for dims {dims}",
                )
            )
        try:
            values[:] = [float(word) for word in words]
        except ValueError as error:
            raise ArgumentError(f"FromFileInitializer: {self.fname} holds something else than numbers: {error}") from None


class NumpyInitializer(PyInitializer):
    """The values of an array of the parameter's dims.

    Not for look-up tables, as in DyNet: there `init=array` and `lookup_parameters_from_numpy` do it.
    """

    for_rows = False

    def __init__(self, array: ArrayLike) -> None:
        self.array = numbers("NumpyInitializer", array)

    def fill(self, values: NDArray[np.floating], dims: tuple[int, ...]) -> None:
        """Copy the values (see `PyInitializer.fill`)."""
        if self.array.shape != dims:
            raise ShapeError(
                message("NumpyInitializer: the array does not fit the parameter", str(self.array.shape), str(tuple(dims)))
            )
        values[:] = self.array.ravel(order="F")


class RowsInitializer(PyInitializer):
    """The values of an array (V, d0, ...), for a look-up table of V rows; what `init=array` means there."""

    def __init__(self, array: ArrayLike) -> None:
        self.array = numbers("RowsInitializer", array)

    def fill(self, values: NDArray[np.floating], dims: tuple[int, ...]) -> None:
        """Copy the values (see `PyInitializer.fill`)."""
        if self.array.shape != (dims[-1], *dims[:-1]):
            raise ShapeError(
                message(
                    "the array does not fit the look-up table", str(self.array.shape), f"{(dims[-1], *dims[:-1])}: (V, row ...)"
                )
            )
        values[:] = np.moveaxis(self.array, 0, -1).ravel(order="F")


def numbers(what: str, array: ArrayLike) -> NDArray[np.float64]:
    """Return `array` as float64 numbers; what holds no real numbers is a TypeError that names `what`."""
    array = to_host(what, array)
    try:
        result = np.asarray(array)
    except ValueError as error:  # ragged lists
        raise ShapeError(f"{what}: {error}") from None
    if result.dtype.kind not in "biuf":
        raise TypeError(f"{what}: an array of real numbers is expected, not one of dtype {result.dtype}")
    return result.astype(np.float64)


def resolve(
    init: Any, dims: tuple[int, ...], *, lookup: bool = False, scale: float = 1.0, mean: float = 0.0, std: float = 1.0
) -> PyInitializer:
    """Return the initializer that `init=` means.

    Parameters
    ----------
    init : None (Glorot), a number (that number everywhere), an array (its values), a `PyInitializer`, or one of the words
        "uniform" (±scale), "normal" (mean, std), "glorot", "he" (normal, of standard deviation √(1 / 2n), n being the last
        dim), "identity".
    dims : as in `add_parameters` or `add_lookup_parameters`, where V comes first.
    lookup : for a look-up table?
    scale, mean, std : for "uniform" and "normal".

    Raises
    ------
    ArgumentError
        Another word; something that is none of these; an initializer that does not fit a look-up table.
    """
    if init is None:
        return GlorotInitializer()
    if isinstance(init, PyInitializer):
        if lookup and not init.for_rows:
            raise ArgumentError(
                message(
                    f"add_lookup_parameters: {type(init).__name__} is not for look-up tables",
                    cure="lookup_parameters_from_numpy(array), or init=array, with an array (V, row ...)",
                )
            )
        return init
    if isinstance(init, (bool, int, float, np.number)):
        return ConstInitializer(init)
    if isinstance(init, np.ndarray):
        return RowsInitializer(init) if lookup else NumpyInitializer(init)
    if isinstance(init, str):
        if init == "uniform":
            return UniformInitializer(scale)
        if init == "normal":
            return NormalInitializer(mean, _finite("init='normal': std", std) ** 2)
        if init == "glorot":
            return GlorotInitializer()
        if init == "he":
            return NormalInitializer(0, 1 / (2 * dims[-1]))
        if init == "identity":
            return IdentityInitializer()
    raise ArgumentError(
        message(
            f"init={init!r} is no initializer",
            expected='None, a number, an array, "uniform", "normal", "glorot", "he", "identity", or a PyInitializer',
            cure="SaxeInitializer()" if init == "saxe" else "np.array(...)" if isinstance(init, (list, tuple)) else "",
        )
    )

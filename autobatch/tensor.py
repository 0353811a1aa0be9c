"""The value of a node as an object of its own: NumPy, DLPack, and the few questions that DyNet answers about it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autobatch import seeds
from autobatch.cuda import interop
from autobatch.graph import LARGEST
from autobatch.integers import as_integer
from autobatch.kernels._errors import ArgumentError, OperandError
from autobatch.kernels._op import Shape


def _integer(op: str, what: str, value: Any) -> int:
    try:
        return as_integer(value)
    except TypeError:
        raise OperandError(f"{op}: {what} is {type(value).__name__} {value!r:.60}\n  expected  an integer") from None


class Tensor:
    """The numbers of a node when it was asked for them: a copy, which later graphs leave alone. (DyNet: a view of its pool.)

    Made by `Expression.tensor_value`. NumPy and libraries that know DLPack (PyTorch, CuPy, JAX) take it as it is::

        np.asarray(t)        torch.from_dlpack(t)
    """

    def __init__(self, flat: NDArray[Any], shape: Shape) -> None:
        if not isinstance(flat, np.ndarray) or not isinstance(shape, Shape) or flat.size != shape.total:
            raise OperandError("Tensor is never made directly\n  try       tensor_value() of an expression")
        self._shape = shape
        self._numbers = flat.reshape((*shape.dims, shape.batch), order="F")

    @property
    def _array(self) -> NDArray[Any]:
        return self._numbers

    def as_numpy(self) -> NDArray[Any]:
        """Return the numbers as an array of the dims, and the minibatch if there is one, in the dtype of the graph; no copy."""
        return self._array if self._shape.batch > 1 else self._array[..., 0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.as_numpy()
        return np.array(array, dtype=dtype) if copy or (dtype is not None and array.dtype != dtype) else array

    def __dlpack__(self, **how: Any) -> Any:
        return self.as_numpy().__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.as_numpy().__dlpack_device__()
        return device

    def _along(self, what: str, dim: Any, num: Any) -> tuple[int, int, int]:
        dim, num = _integer(what, "dim", dim), _integer(what, "num", num)
        if not 0 <= dim < len(self._shape.dims):
            raise ArgumentError(f"{what}: dim {dim} of {self._shape}\n  expected  0 to {len(self._shape.dims) - 1}")
        size = self._shape.dims[dim]
        if not 1 <= num <= size:
            raise ArgumentError(f"{what}: {num} of {size} numbers\n  expected  1 to {size}")
        return dim, num, size

    def _like(self, array: NDArray[Any]) -> Tensor:
        *dims, batch = array.shape
        return Tensor(array.ravel(order="F"), Shape(tuple(dims), batch))

    def argmax(self, dim: int = 0, num: int = 1) -> Tensor:
        """Return the places of the `num` largest numbers along a dim, the largest first: int64, with `num` in place of the dim.

        Raises
        ------
        ArgumentError : no such dim, or more places than it has. (DyNet dies of num above 1.)
        """
        return self.topk(dim, num)[1]

    def topk(self, dim: int = 0, num: int = 1) -> tuple[Tensor, Tensor]:
        """Return the `num` largest numbers along a dim, and their places, the largest first, of equal ones the first.

        Raises as `argmax`.
        """
        dim, num, _ = self._along("topk", dim, num)
        places = np.argsort(-self._array, axis=dim, kind="stable")
        places = np.take(places, range(num), axis=dim).astype(np.int64)
        return self._like(np.take_along_axis(self._array, places, axis=dim)), self._like(places)

    def categorical_sample_log_prob(self, dim: int = 0, num: int = 1) -> Tensor:
        """Return `num` places drawn along a dim, from log-probabilities: int64, with `num` in place of the dim.

        They come from the stream of `reset_random_seed`. Raises ArgumentError for no such dim. (DyNet dies of num above 1.)
        """
        name = "categorical_sample_log_prob"
        (dim, _, size), num = self._along(name, dim, 1), _integer(name, "num", num)
        if not 1 <= num <= LARGEST // (self._array.size // size):
            raise ArgumentError(f"{name}: {num} samples\n  expected  at least 1, and at most {LARGEST:,} numbers in all")
        rows = np.moveaxis(self._array, dim, -1).astype(np.float64)
        sums = np.cumsum(np.exp(rows - rows.max(axis=-1, keepdims=True)), axis=-1)
        drawn = seeds.uniforms(num * sums.size // size, 0.0, 1.0, "float64").reshape((*sums.shape[:-1], num))
        places = (drawn[..., None] * sums[..., None, -1:] >= sums[..., None, :]).sum(axis=-1).clip(0, size - 1)
        return self._like(np.moveaxis(places, -1, dim).astype(np.int64))

    def __repr__(self) -> str:
        return f"<Tensor {self._shape} of {self._numbers.dtype}>"


class CardTensor(Tensor):
    """The same for a graph on a card: the numbers stay there, and libraries take them without a copy::

        torch.from_dlpack(t)        cupy.asarray(t)

    Whoever asks for an array of NumPy, or for the largest numbers, gets them copied to the host.
    """

    def as_numpy(self) -> NDArray[Any]:
        """Return a copy on the host: an array of the dims, and the minibatch if there is one, in the dtype of the graph."""
        return interop.fetched(self._outline)

    @property
    def _array(self) -> NDArray[Any]:
        return interop.fetched(self._numbers)

    @property
    def _outline(self) -> NDArray[Any]:
        return self._numbers if self._shape.batch > 1 else self._numbers[..., 0]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return interop.interface(self._outline)

    def __dlpack__(self, **how: Any) -> Any:
        return interop.capsule(self._outline, **how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return interop.place()

    def __repr__(self) -> str:
        return f"<Tensor {self._shape} of {self._numbers.dtype} on the card>"

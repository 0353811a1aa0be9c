"""Inputs and constants: numbers that come from outside of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from autobatch import background
from autobatch import expression as ex
from autobatch.arguments import _dims, _index, _integer, _new_shape, _numbers, _sequence, _shape
from autobatch.cuda import interop, memory
from autobatch.expression import Expression, append, check_device, check_expression, is_list, is_number, view
from autobatch.graph import SETTINGS, TYPES, Graph, current_graph
from autobatch.kernels._errors import ArgumentError, NumericalError, OperandError, ShapeError
from autobatch.kernels._op import Shape

_new = object.__new__
_EMPTY = "an input without numbers\n  expected  at least one number"


class InputExpression(Expression):
    """An input whose numbers can be changed with `set`."""

    __slots__ = ("_place",)

    _place: np.ndarray | int | None  # where the numbers lie; the number of the input, if that was on a card

    def set(self, values: Any) -> None:
        """Replace the numbers (flat, column-major) and forget all values of the graph.

        Raises
        ------
        ArgumentError : another count of numbers than the input has (DyNet cuts silently), or an input that is fixed.
        """
        graph = ex.graph_of(self.graph)
        if self._place is None:
            raise ArgumentError("set: this input is fixed\n  try       inputTensor(array, reusable_expr=True)")
        numbers = _numbers("set", [values] if is_number(values) else values).ravel(order="F")
        size = TYPES.records[self.type].shape.total
        if numbers.size != size:
            count = f"{numbers.size} number{'s' if numbers.size != 1 else ''}"
            raise ArgumentError(f"set: {count}\n  expected  {size}, as the input has")
        if isinstance(self._place, int):
            homes = graph.on_card.homes  # type: ignore[union-attr]
            if self._place not in homes:
                graph._bring_home(self._place, np.empty(size, graph.dtype))
            self._place = homes[self._place]
        background.wait()
        self._place[:] = numbers
        if graph.execution is not None:
            graph.execution.invalidate()


def _input(values: np.ndarray, shape: Shape, mutable: bool = True) -> InputExpression:
    if values.size == 0:
        raise ShapeError(_EMPTY)
    graph = current_graph()
    immediate, place = graph.add_given(values)
    e: InputExpression = append(graph, ex.input_type(shape), (immediate,), InputExpression)
    e._place = place if mutable else None
    return e


def _shape_of(sizes: tuple[int, ...], batched: bool) -> Shape:
    """Return the shape of an input that is an array of these sizes."""
    if not sizes:
        raise OperandError("inputTensor: an array without dims\n  try       scalarInput")
    *dims, batch = sizes if batched else (*sizes, 1)
    if 0 in sizes or len(dims) > 7:
        raise ShapeError(f"inputTensor: shape {sizes}\n  expected  1 to 7 dims, at least one number")
    return Shape(tuple(dims) or (1,), batch)


def _from_card(op: str, outline: np.ndarray, shape: Shape, mutable: bool) -> InputExpression:
    """Return an input with numbers of another library that lie on the card.

    They are copied there, if the graph runs there and they lie as those of an input do; else they come by the host.
    """
    graph = current_graph()
    if not outline.size:
        raise ShapeError(_EMPTY)
    on_card = SETTINGS.device != "cpu" if graph.execution is None else type(graph) is Graph and graph.execution.machine.card
    if not on_card or graph.check_nan or outline.dtype != graph.dtype or not outline.flags.f_contiguous:
        return _input(_numbers(op, interop.fetched(outline)).ravel(order="F"), shape, mutable)
    number, address = graph._add_on_card(shape.total, memory.Arena("inputs"))
    memory.copy(address, outline.ctypes.data, outline.nbytes)
    memory.synchronize()  # whoever they belong to may change them now
    e: InputExpression = append(graph, ex.input_type(shape), (number,), InputExpression)
    e._place = number if mutable else None
    return e


def inputTensor(arr: ArrayLike, batched: bool = False, device: str = "", reusable_expr: bool = False) -> InputExpression:
    """Return an input with the numbers of an array.

    Parameters
    ----------
    arr : array or nested list of numbers, 1 to 7 dims; a list of arrays of one shape becomes a minibatch of them.
        Tensors of other libraries are taken through DLPack (PyTorch, JAX) or the CUDA array interface, from the memory of
        the CPU or of a card, see `docs/interop.md`.
    batched : whether the last axis is the minibatch.
    reusable_expr : whether `set` may change the numbers later.

    Raises
    ------
    OperandError : no array or list of numbers.
    ShapeError, ArgumentError : empty, ragged, or more than 7 dims.
    DeviceError : numbers on another card than the one in use.
    """
    check_device("inputTensor", device)
    if isinstance(arr, Expression):
        raise OperandError(f"inputTensor: {ex.describe(arr)}\n  expected  an array or a list of numbers")
    outline = interop.outline_of("inputTensor", arr)
    if outline is not None:
        return _from_card("inputTensor", outline, _shape_of(outline.shape, batched), bool(reusable_expr))
    if hasattr(arr, "__dlpack__") and not isinstance(arr, np.ndarray):
        try:
            arr = np.from_dlpack(arr)  # type: ignore[arg-type]
        except NumericalError:  # of an update: it is one of our parameters
            raise
        except (RuntimeError, BufferError, TypeError, ValueError) as error:
            raise OperandError(f"inputTensor: {ex.describe(arr)} cannot be taken through DLPack: {error}") from None
    if not isinstance(arr, (np.ndarray, list)):
        cure = "\n  try       scalarInput" if is_number(arr) else ""
        raise OperandError(f"inputTensor: {ex.describe(arr)}\n  expected  an array or a list of numbers{cure}")
    if isinstance(arr, list) and arr and not isinstance(arr[0], (float, int, list, tuple, np.ndarray, np.generic)):
        arr = [interop.to_host("inputTensor", a) for a in arr]
    if isinstance(arr, list) and arr and all(isinstance(a, np.ndarray) for a in arr):
        if any(a.shape != arr[0].shape for a in arr):
            raise ShapeError("inputTensor: the arrays of the list differ in shape")
        arr, batched = np.stack(arr, axis=-1), True
    array = _numbers("inputTensor", arr)
    shape = _shape_of(array.shape, batched)
    return _input(array.ravel(order="F"), shape, bool(reusable_expr))


def inputVector(v: ArrayLike, device: str = "") -> InputExpression:
    """Return an input vector with the numbers of a list or array, (n,)."""
    check_device("inputVector", device)
    outline = interop.outline_of("inputVector", v)
    if isinstance(v, Iterator):
        v = list(v)
    array = _numbers("inputVector", v) if outline is None else outline
    if array.ndim != 1:
        raise OperandError(f"inputVector: {ex.describe(v)}\n  expected  a list of numbers\n  try       inputTensor")
    shape = Shape((array.size,))
    return _input(array, shape) if outline is None else _from_card("inputVector", outline, shape, True)


def vecInput(dim: int, device: str = "") -> InputExpression:
    """Return an input vector of zeros, (dim,), to be filled with `set`."""
    check_device("vecInput", device)
    shape = _new_shape("vecInput", _integer("vecInput", "the dim", dim), 1)
    return _input(np.zeros(shape.total), shape)


def scalarInput(s: float, device: str = "") -> InputExpression:
    """Return an input of one number, (1,)."""
    check_device("scalarInput", device)
    if not is_number(s):
        raise OperandError(f"scalarInput: {ex.describe(s)}\n  expected  a number")
    return _input(np.array([float(s)]), Shape((1,)))


def _flat(op: str, values: Any, dim: Any, batch_size: Any, mutable: bool) -> InputExpression:
    """Return an input of flat numbers, column-major, in these dims."""
    array = _numbers(op, values)
    if array.ndim != 1:
        raise OperandError(f"{op}: {ex.describe(values)}\n  expected  a flat list of numbers\n  try       inputTensor")
    shape = _new_shape(op, array.size if dim is None else dim, batch_size)
    if array.size != shape.total:
        raise ShapeError(f"{op}: {array.size} numbers for {shape}\n  expected  {shape.total} numbers")
    return _input(array, shape, mutable)


def inputTensorTranspose(
    arr: ArrayLike, dim: int | tuple[int, ...] | None = None, batch_size: int = 1, device: str = ""
) -> InputExpression:
    """Return an input of flat numbers that lie column by column, as `vec_value` gives them.

    Parameters
    ----------
    arr : (n,): the first dim changes fastest, the minibatch slowest.
    dim : of one element; None: (n,).

    Raises
    ------
    ShapeError : another count of numbers than dim x batch_size has.
    OperandError : no flat array or list.
    """
    check_device("inputTensorTranspose", device)
    return _flat("inputTensorTranspose", arr, dim, batch_size, mutable=False)


def inputMatrix(v: ArrayLike, d: int | tuple[int, ...]) -> InputExpression:
    """Return an input of dims d with the numbers of a flat list, column by column. (Deprecated in DyNet, where it fails.)"""
    return _flat("inputMatrix", v, d, 1, mutable=True)


def matInput(d1: int, d2: int) -> InputExpression:
    """Return an input matrix of zeros, (d1,d2), to be filled with `set`. (Deprecated in DyNet, where it fails.)"""
    shape = _new_shape("matInput", (d1, d2), 1)
    return _input(np.zeros(shape.total), shape)


def sparse_inputTensor(
    idxs: Sequence[Sequence[int]],
    values: ArrayLike,
    shape: tuple[int, ...],
    batched: bool = False,
    defval: float = 0.0,
    device: str = "",
) -> InputExpression:
    """Return an input of which only some numbers are given, and all others are `defval`.

    Parameters
    ----------
    idxs : the places of the numbers, as NumPy indexes: for each dim a list of the indices of all numbers.
    values : one number for each place; if a place is named twice the last one counts.
    shape : dims, and if `batched` the size of the minibatch last.

    Raises
    ------
    ArgumentError : an index is out of range or negative, or the lists differ in length or number.
    ShapeError : a shape that makes no sense.
    OperandError : the values are no flat list.
    """
    op = "sparse_inputTensor"
    check_device(op, device)
    sizes = _dims(op, shape) if not batched else tuple(_integer(op, "a size", n) for n in _sequence(op, "the sizes", shape))
    dims, batch = (sizes[:-1] or (1,), sizes[-1]) if batched and sizes else (sizes, 1)
    new = _new_shape(op, dims, batch)
    numbers = _numbers(op, values)
    if numbers.ndim != 1:
        raise OperandError(f"{op}: the values are {ex.describe(values)}\n  expected  a flat list of numbers")
    lists = _sequence(op, "the lists of indices", idxs)
    if len(lists) != len(sizes):
        raise ArgumentError(f"{op}: {len(lists)} lists of indices for a shape of {len(sizes)} sizes\n  expected  one for each")
    places = []
    for k, (given, size) in enumerate(zip(lists, sizes, strict=True)):
        indices = np.asarray(_sequence(op, "the indices", given))
        if indices.size != numbers.size:
            raise ArgumentError(f"{op}: {indices.size} indices of dim {k} for {numbers.size} values\n  expected  as many")
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= size:
            indices = np.array([_index(op, f"an index of dim {k}", i, size) for i in given], int)  # says which is wrong
        places.append(indices)
    array = np.full(sizes, ex.as_float(op, "the default", defval))
    array[tuple(places)] = numbers
    return _input(array.ravel(order="F"), new, mutable=False)


def one_hot(d: int, idx: int | Sequence[int], device: str = "") -> InputExpression:
    """Return an input vector (d,) that is 1 at an index and 0 elsewhere; for a list of indices a minibatch of them.

    Raises
    ------
    ArgumentError : an index is out of range or negative, or the list is empty.
    """
    check_device("one_hot", device)
    size = _integer("one_hot", "the size", d)
    given = _sequence("one_hot", "the indices", idx) if is_list(idx) else [idx]
    if not given:
        raise ArgumentError("one_hot: the list of indices is empty")
    shape = _new_shape("one_hot", size, len(given))
    array = np.zeros((len(given), size))
    array[np.arange(len(given)), [_index("one_hot", "an index", i, size) for i in given]] = 1
    return _input(array.ravel(), shape, mutable=False)


def constant(dim: int | tuple[int, ...], val: float, batch_size: int = 1, device: str = "") -> Expression:
    """Return an expression whose numbers are all `val`."""
    return _constant("constant", dim, val, batch_size, device)


def _constant(name: str, dim: Any, val: Any, batch_size: Any, device: Any) -> Expression:
    check_device(name, device)
    if isinstance(dim, list):
        raise OperandError(f"{name}: dims {dim} in a list\n  expected  a number or a tuple of numbers")
    return filled(_new_shape(name, dim, batch_size), ex.as_float(name, "the value", val))


def filled(shape: Shape, value: float) -> Expression:
    """Return the node of the current graph whose numbers are all `value`: one for each shape and value."""
    graph = current_graph()
    key = (shape, value if value or not np.signbit(value) else "-0.0")  # 0.0 and -0.0 are equal as keys
    index = graph.zeros.get(key)
    if index is None:
        e: Expression = append(graph, ex.input_type(shape), (graph.add_filled(shape.total, value),))
        graph.zeros[key] = e.index
        return e
    e = _new(Expression)
    e.graph, e.index, e.type = graph.top, index, ex.input_type(shape)
    return e


def zeros(dim: int | tuple[int, ...], batch_size: int = 1, device: str = "") -> Expression:
    """Return an expression of zeros."""
    return _constant("zeros", dim, 0.0, batch_size, device)


zeroes = zeros


def ones(dim: int | tuple[int, ...], batch_size: int = 1, device: str = "") -> Expression:
    """Return an expression of ones."""
    return _constant("ones", dim, 1.0, batch_size, device)


def to_device(e: Expression, device_str: str) -> Expression:
    """Return the numbers of e on a device. There is only "CPU" (or "", the default), so it is a view; gradients go back to e.

    Raises
    ------
    DeviceError : the name of a device that does not exist.
    """
    check_expression("to_device", e)
    check_device("to_device", device_str)
    return view("to_device", e, _shape(e))

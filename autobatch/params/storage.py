"""Parameters and look-up tables: two flat arrays each, which graphs read and write in place.

Each parameter owns two flat arrays, values and gradients, that graphs read and write in place. They are column-major (DyNet's
layout), and a look-up table is one row after the other, each of them column-major:

    W (2, 3)        W00 W10 | W01 W11 | W02 W12
    E (V, 2)        E00 E01 | E10 E11 | E20 E21 | ...        touched  1 0 1 ...  (one byte a row: has it a gradient?)

As an expression a parameter needs no node: it belongs to no graph (`graph` is None), and its index tells what it is:

    index   -1  -2  -3  -4  -5 ...        -2 pid - 1      parameter pid, to be trained
    pid      0   0   1   1   2 ...        -2 pid - 2      the same as a constant: `expr(update=False)`

A pid is never given twice, so an expression or a plan kept too long can meet no other parameter than its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autobatch import background, files, graph
from autobatch.cuda import interop
from autobatch.devices import configured_machine
from autobatch.expression import Expression, append, describe, is_list, record, set_immediates
from autobatch.graph import _THREAD
from autobatch.initializers import number, numbers
from autobatch.integers import as_integer
from autobatch.kernels._errors import (
    ArgumentError,
    EmptyListError,
    IndexRangeError,
    ModelFileError,
    NegativeIndexError,
    OperandError,
    ShapeError,
    message,
)
from autobatch.kernels._op import OPS
from autobatch.recorder import short

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector register

_revision = 0


def revision() -> int:
    """Return a number that changes when any collection grows or any `set_updated` changes something."""
    return _revision


def changed() -> None:
    """Note that a collection has grown, or that `set_updated` changed something."""
    global _revision
    _revision += 1


def aligned(n: int, dtype: str) -> NDArray[Any]:
    """Return n zeros that begin at a multiple of 64 bytes."""
    size = n * np.dtype(dtype).itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype)


class Storage(Expression):
    """What parameters and look-up tables have in common: two flat arrays, known to graphs under a number."""

    _makers = "add_parameters or add_lookup_parameters of a ParameterCollection"
    __slots__ = ("__weakref__", "_gradients", "_name", "_touched", "_updated", "_values", "dims", "dtype", "pid")

    def _begin(
        self, name: str, dims: tuple[int, ...], values: NDArray[np.floating], touched: NDArray[np.uint8] | None = None
    ) -> None:
        """Take over values; in place of a constructor, which is not for users."""
        self._name = name
        self._updated = True
        self.dims = dims
        self.dtype = values.dtype.name
        self._values, self._touched = values, touched
        self._gradients: NDArray[np.floating] = aligned(values.size, self.dtype)
        self.pid: int = graph.new_parameter(values, self._gradients, dims, self.dtype, touched)
        self.graph = None
        self.index = graph.parameter_index(self.pid, True)
        self.type = graph.parameter_type(self.pid, dims, True)

    # The arrays. Backward or an update may be at work on them in the background. And if the parameter is on a card too, that
    # one has the newer numbers at most times: whoever asks for an array gets it fetched first, and as it may be written to, it
    # counts as the newer one from then on. `_seen` is for reading only.

    @property
    def values(self) -> NDArray[np.floating]:
        """The values: (product of dims,), column-major."""
        mirror = graph.PARAMETERS.mirrors.get(self.pid)
        if mirror is not None:
            mirror.values.take_home()
        return background.lend(self._values)

    @values.setter
    def values(self, array: NDArray[np.floating]) -> None:
        self.values[:] = array

    @property
    def gradients(self) -> NDArray[np.floating]:
        """The gradient, as `values`."""
        mirror = graph.PARAMETERS.mirrors.get(self.pid)
        if mirror is not None:
            mirror.gradients.take_home()
        return background.lend(self._gradients)

    @gradients.setter
    def gradients(self, array: NDArray[np.floating]) -> None:
        self.gradients[:] = array

    def _seen(self, name: str) -> NDArray[Any]:
        """Return "values", "gradients" or "touched" to be read."""
        mirror = graph.PARAMETERS.mirrors.get(self.pid)
        if mirror is not None:
            getattr(mirror, name).fetch()
        background.wait()
        array: NDArray[Any] = getattr(self, f"_{name}")
        return array

    def arrays(self) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.uint8] | None]:
        """Return values, gradients and (of a table) marks of touched rows as they lie on the host, new or not."""
        background.wait()
        return self._values, self._gradients, self._touched

    def expr(self, update: bool = True) -> Expression:
        """Return the parameter as an expression.

        Parameters
        ----------
        update : True: the parameter itself, to be trained. False: its values as a constant, no gradient flows into it.

        Notes
        -----
        DyNet 2.1 gives a constant unless ``update=True`` is said; its older versions, and most programs, mean what is done
        here.
        """
        return self if update else _Constant(self)

    def shape(self) -> tuple[int, ...]:
        """Return the dims; those of a look-up table begin with V."""
        return self.dims

    def name(self) -> str:
        """Return the full name, for example "/encoder/W"."""
        return self._name

    def is_updated(self) -> bool:
        """Return whether trainers change the values."""
        return self._updated

    def set_updated(self, b: bool) -> None:
        """Let trainers change the values (True, as at the start), or leave them and the gradient alone (False)."""
        self._updated = bool(b)
        changed()

    def scale(self, s: float) -> None:
        """Multiply all values by s."""
        self.values *= self.values.dtype.type(number("scale", s))

    def scale_gradient(self, s: float) -> None:
        """Multiply the gradient by s."""
        self.gradients *= self.gradients.dtype.type(number("scale_gradient", s))

    def _reset_gradient(self) -> None:
        self.gradients.fill(0)

    # Files

    _kind: ClassVar[str]  # what it is called in files

    def save(self, fname: files.Path, key: str = "", append: bool = False) -> None:
        """Write values (and the gradient, if there is one) to a file; an old one stays until the new one is complete.

        Parameters
        ----------
        fname : path. DyNet's format, or safetensors if the name ends in ".safetensors" (extra "safetensors").
        key : name in the file, in place of the full name; begins with "/", without blanks and "#".
        append : add to the file in place of replacing it.

        Raises
        ------
        ArgumentError
            Such a key cannot be.
        OSError
            The file cannot be written.
        """
        files.write(files.path_of("save", fname), [self._entry(files.check_key("save", key) or self._name)], bool(append))

    def write_to_textfile(self, fname: files.Path, key: str = "", append: bool = False) -> None:
        """Do as `save` (an old name of DyNet's)."""
        self.save(fname, key, append)

    def populate_from_textfile(self, fname: files.Path, key: str = "") -> None:
        """Do as `populate`, without a key with the full name as key (an old name of DyNet's)."""
        self.populate(fname, key or self._name)

    def populate(self, fname: files.Path, key: str) -> None:
        """Set values and gradient to those of an entry of a file.

        Parameters
        ----------
        fname : path, as of `save`; files of DyNet too.
        key : name of the entry, for example "/encoder/W".

        Raises
        ------
        MissingFileError, ModelFileError
            No such file, a damaged one, no such key, another kind or other dims; nothing was changed. (RuntimeErrors)
        ArgumentError
            An empty key.
        """
        path = files.path_of("populate", fname)
        if not files.check_key("populate", key):
            raise ArgumentError(f"populate: the key is empty\n  expected  the name of an entry, for example {self._name!r}")
        self._check_entry(path, entry := find(path, files.read(path), self._kind, key))
        self._take(entry)

    def _entry(self, name: str) -> files.Entry:
        gradients = self._seen("gradients")
        return files.Entry(self._kind, name, self.dims, self._seen("values"), gradients if gradients.any() else None)

    def _check_entry(self, path: str, entry: files.Entry) -> None:
        """Raise if an entry of a file is not one of this parameter."""
        if entry.kind != self._kind or entry.dims != self.dims:
            expected = f"{self._kind} {self.dims}, as {self._name} is"
            raise ModelFileError(message(f"{path}: {entry.name} does not fit", f"{entry.kind} {entry.dims}", expected))
        with np.errstate(over="ignore"):
            if np.isfinite(entry.values).sum() != np.isfinite(entry.values.astype(self.dtype)).sum():
                raise ModelFileError(f"{path}: {entry.name} holds numbers that are too large for {self.dtype}")

    def _take(self, entry: files.Entry) -> None:
        """Take over the numbers of an entry that fits."""
        self.values[:] = entry.values
        self._reset_gradient()
        if entry.gradients is not None:
            self.gradients[:] = entry.gradients


def find(path: str, entries: Sequence[files.Entry], kind: str, key: str) -> files.Entry:
    """Return the first entry of a kind and a name."""
    for entry in entries:
        if entry.kind == kind and entry.name == key:
            return entry
    names = [entry.name for entry in entries if entry.kind == kind]
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    raise ModelFileError(message(f"{path}: there is no {kind} {key}", f"{listed or 'none'} in the file"))


class _Constant(Expression):
    """The values of a parameter, passing no gradient on. Keeps the parameter, and so the memory, alive."""

    __slots__ = ("of",)

    def __init__(self, of: Storage) -> None:
        self.of = of
        self.graph = None
        self.index = graph.parameter_index(of.pid, False)
        self.type = graph.parameter_type(of.pid, of.dims, False)


class Parameters(Storage):
    """An array of numbers that is trained; made by `ParameterCollection.add_parameters`.

    It is an expression: use it in any operation, in any graph.

    Attributes
    ----------
    values, gradients : (product of dims,), the collection's dtype, column-major: the memory that graphs and trainers work on.

    Notes
    -----
    Libraries that know DLPack or the CUDA array interface take the values without a copy, on a card from where they lie there:
    ``torch.from_dlpack(p)`` is a view, and what is written to it counts, see `docs/interop.md`.
    """

    __slots__ = ()

    _kind = files.PARAMETER

    def as_array(self) -> NDArray[np.float64]:
        """Return a copy of the values: float64, of the dims."""
        return self._array(self._seen("values"))

    def grad_as_array(self) -> NDArray[np.float64]:
        """Return a copy of the gradient: float64, of the dims. Zero after an update, and before any backward."""
        return self._array(self._seen("gradients"))

    def _array(self, flat: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.array(flat.reshape(self.dims, order="F"), dtype=np.float64, order="F")

    def _lent(self) -> NDArray[Any] | None:
        """Return the outline of a view of the values on the card; None where graphs run on the CPU."""
        machine = configured_machine()
        if not machine.card:
            return None
        outline: NDArray[Any] = machine.twins(self)[0].lend(self.dims)
        return outline

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        outline = self._lent()
        if outline is None:
            raise AttributeError("__cuda_array_interface__: the values are on the host, as device='cpu' is configured")
        return interop.interface(outline)

    def __dlpack__(self, **how: Any) -> Any:
        outline = self._lent()
        if outline is None:
            return self.values.reshape(self.dims, order="F").__dlpack__(**how)
        return interop.capsule(outline, **how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return interop.place() if configured_machine().card else (interop.CPU, 0)

    def set_value(self, arr: ArrayLike) -> None:
        """Set all values.

        Parameters
        ----------
        arr : array, or nested list, of the dims; from another library too, on the host or on a card.

        Raises
        ------
        ShapeError
            Other dims.
        """
        array = numbers("set_value", arr)
        if array.shape != self.dims:
            raise ShapeError(message(f"set_value: the array does not fit {self}", str(array.shape), str(self.dims)))
        self.values[:] = array.ravel(order="F")

    def zero(self) -> None:
        """Set the values and the gradient to 0."""
        self.values.fill(0)
        self.gradients.fill(0)

    def clip_inplace(self, left: float, right: float) -> None:
        """Move values below `left` to `left`, then values above `right` to `right`."""
        np.clip(self.values, number("clip_inplace: left", left), number("clip_inplace: right", right), out=self.values)

    def __repr__(self) -> str:
        return f"Parameter {self._name}"

    __str__ = __repr__


class LookupExpression(Expression):
    """A looked-up row whose index can be changed with `set`."""

    __slots__ = ()

    __init__ = object.__init__  # type: ignore[assignment]  # see `Node`

    def set(self, index: int) -> None:
        """Look another row up and forget all values of the graph."""
        owner = graph.graph_of(self.graph)
        pid = (-int(graph.TYPES.info[self.type, graph.TABLE]) - 1) // 2
        table = next(table for table in owner.tables if table.pid == pid)
        set_immediates(self, [table._row(index)])


class LookupBatchExpression(Expression):
    """Several looked-up rows as one minibatch, whose indices can be changed with `set`."""

    __slots__ = ()

    def set(self, indices: Sequence[int]) -> None:
        """Look as many other rows up and forget all values of the graph.

        Raises
        ------
        ArgumentError : a row is out of range, or another number of rows.
        """
        kind = graph.TYPES.records[self.type]
        (table,), count = kind.shapes, kind.shape.batch
        if not is_list(indices):
            raise OperandError(f"set: the numbers of rows are {describe(indices)}\n  expected  a list of ints")
        rows = [_row_number("set", i, table.dims[-1]) for i in indices]
        if len(rows) != count:
            raise ArgumentError(f"set: {len(rows)} rows\n  expected  {count}, as before")
        set_immediates(self, rows)


def _row_number(who: Any, i: Any, rows: int) -> int:
    """Return the number of a row; raise for what is none."""
    try:
        number = as_integer(i)
    except TypeError:
        raise OperandError(f"{who}: the number of a row is {describe(i)}\n  expected  an int") from None
    if number < 0:
        raise NegativeIndexError(f"{who}: row {number}: rows are counted from 0, and not from the end")
    if number >= rows:
        raise IndexRangeError(f"{who}: row {number} of a table of {rows} rows")
    return number


class LookupParameters(Storage):
    """A table of V rows that are trained one by one; made by `ParameterCollection.add_lookup_parameters`.

    ``table[i]`` is row i as an expression, ``table.batch(list)`` many rows as one batched expression. The table itself is an
    expression of dims (row ..., V): a row is one column of it.

    Attributes
    ----------
    values, gradients : (V times the product of the row's dims,): the memory that graphs and trainers work on, row after row.
    touched : (V,), uint8: backward sets 1 where it adds to the gradient of a row. Who writes to `gradients` sets it too.
    row_dims : dims of a row.
    """

    __slots__ = ("_row_type", "_size", "row_dims")

    _kind = files.TABLE

    def _begin(
        self, name: str, dims: tuple[int, ...], values: NDArray[np.floating], touched: NDArray[np.uint8] | None = None
    ) -> None:
        self.row_dims = dims[:-1]
        self._size = dims[-1]
        super()._begin(name, dims, values, aligned(dims[-1], "uint8"))
        self._row_type = graph.row_type(self.pid, self.row_dims, True)

    @property
    def touched(self) -> NDArray[np.uint8]:
        """Marks of the rows that have a gradient."""
        mirror = graph.PARAMETERS.mirrors.get(self.pid)
        if mirror is not None:
            mirror.touched.take_home()
        assert self._touched is not None
        return background.lend(self._touched)

    def shape(self) -> tuple[int, ...]:
        """Return (V, dims of a row ...)."""
        return (self.dims[-1], *self.row_dims)

    def __len__(self) -> int:
        return self.dims[-1]

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, i: Any) -> Expression:
        """Return row i as an expression.

        Raises
        ------
        IndexRangeError
            i is V or more; an IndexError, so iteration ends (DyNet's never does).
        NegativeIndexError
            i is negative.
        OperandError
            i is no integer.
        """
        try:
            current: Any = _THREAD.graph
            if type(i) is not int or not 0 <= i < self._size or self not in current.tables:
                raise KeyError
            types = current.types
            index = len(types)
            number = self._row_type
            types.append(number)
            current.args.append(i)
        except (AttributeError, KeyError, TypeError):
            return self.row(i)
        e = LookupExpression()
        e.graph = current
        e.index = index
        e.type = number
        return e

    def row(self, i: Any, update: bool = True) -> LookupExpression:
        """Return row i as an expression in the current graph: a view of the table, no copy. With `update`, it trains."""
        current = graph.current_graph()
        current.enter(self, rows=True)
        number = self._row_type if update else graph.row_type(self.pid, self.row_dims, False)
        e: LookupExpression = append(current, number, (self._row(i),), LookupExpression)
        return e

    def __iter__(self) -> Iterator[Expression]:
        return (self[i] for i in range(len(self)))

    def batch(self, i: Sequence[int], update: bool = True) -> Expression:
        """Return the rows of a list of numbers as one expression with a batch of that size. With `update`, they train."""
        rows = self._rows(i)
        assert self._touched is not None
        if not rows:
            raise EmptyListError(f"{self}: the list of rows to look up is empty")
        table = self if update else self.expr(update=False)
        attributes = {"count": len(rows), "touched": self._touched.ctypes.data}
        made: Any = record(OPS["lookup_batch"], (table,), attributes, rows)
        made.__class__ = LookupBatchExpression
        return made  # type: ignore[no-any-return]

    def _row(self, i: Any) -> int:
        return _row_number(self, i, len(self))

    def _rows(self, rows: Any) -> list[int]:
        if not is_list(rows):
            raise OperandError(f"{self}: the numbers of rows are {describe(rows)}\n  expected  a list of ints")
        return [self._row(k) for k in rows]

    def _table(self, flat: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return flat values or gradients as a view (V, row ...)."""
        return np.moveaxis(flat.reshape(self.dims, order="F"), -1, 0)

    def as_array(self) -> NDArray[np.float64]:
        """Return a copy of the table: float64, (V, row ...)."""
        return self._table(self._seen("values")).astype(np.float64)

    def grad_as_array(self) -> NDArray[np.float64]:
        """Return a copy of the gradient: float64, (V, row ...)."""
        return self._table(self._seen("gradients")).astype(np.float64)

    def row_as_array(self, row: int) -> NDArray[np.float64]:
        """Return a copy of a row: float64, of its dims (IndexError, OverflowError as for ``table[row]``)."""
        return self._table(self._seen("values"))[self._row(row)].astype(np.float64)

    def row_grad_as_array(self, row: int) -> NDArray[np.float64]:
        """Return a copy of the gradient of a row: float64, of its dims."""
        return self._table(self._seen("gradients"))[self._row(row)].astype(np.float64)

    def rows_as_array(self, rows: Sequence[int]) -> NDArray[np.float64]:
        """Return copies of rows: float64, (number of rows, row ...)."""
        return self._table(self._seen("values"))[self._rows(rows)].astype(np.float64)

    def rows_grad_as_array(self, rows: Sequence[int]) -> NDArray[np.float64]:
        """Return copies of the gradients of rows: float64, (number of rows, row ...)."""
        return self._table(self._seen("gradients"))[self._rows(rows)].astype(np.float64)

    def init_row(self, i: int, row: ArrayLike) -> None:
        """Set row i.

        Parameters
        ----------
        i : number of the row.
        row : its values, of the row's dims, or flat and column-major.

        Raises
        ------
        ShapeError
            Too many or too few numbers, or other dims (DyNet dies).
        """
        number, array = self._row(i), numbers("init_row", row)
        if array.shape not in (self.row_dims, (math.prod(self.row_dims),)):
            raise ShapeError(message(f"init_row: the row does not fit {self}", str(array.shape), str(self.row_dims)))
        size = array.size
        self.values[number * size : (number + 1) * size] = array.ravel(order="F")

    def init_from_array(self, arr: ArrayLike) -> None:
        """Set the first rows of the table.

        Parameters
        ----------
        arr : (n, row ...), n at most V.

        Raises
        ------
        ShapeError
            More than V rows, or other dims.
        """
        array = numbers("init_from_array", arr)
        if array.ndim == 0 or array.shape[1:] != self.row_dims or len(array) > len(self):
            expected = f"(n, {', '.join(map(str, self.row_dims))}), n at most {len(self)}"
            raise ShapeError(message(f"init_from_array: the array does not fit {self}", str(array.shape), expected))
        self._table(self.values)[: len(array)] = array

    def zero(self) -> None:
        """Set all values to 0; the gradient stays (as in DyNet; `Parameters.zero` clears both)."""
        self.values.fill(0)

    def _reset_gradient(self) -> None:
        self.gradients.fill(0)
        self.touched.fill(0)

    def _take(self, entry: files.Entry) -> None:
        super()._take(entry)
        self.touched[:] = self.gradients.reshape(len(self), math.prod(self.row_dims)).any(axis=1)

    def __repr__(self) -> str:
        return f"LookupParameter {self._name}"

    __str__ = __repr__


_row = short("row", LookupParameters.__getitem__, LookupParameters, _THREAD, LookupExpression)
LookupParameters.__getitem__ = _row  # type: ignore[method-assign]

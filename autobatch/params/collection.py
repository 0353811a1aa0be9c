"""Collections of parameters: what a trainer trains, what a file holds.

Weight decay. DyNet keeps one factor w for all parameters of a collection, shows θ w to the graph, divides each step by w and
multiplies w with 1-λ after each update. Here graphs read the values in place, so the values themselves are multiplied: what is
stored is θ w, what a graph sees is the same to rounding. Hence `as_array()` gives what the graph sees (DyNet: θ), and
`set_value` sets it (DyNet: then shows the new value times w).
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autobatch import background, files, graph
from autobatch.expression import check_device, describe
from autobatch.initializers import PyInitializer, number, numbers, resolve
from autobatch.integers import as_integer
from autobatch.kernels._errors import (
    ArgumentError,
    ConstructionError,
    ModelFileError,
    OperandError,
    ShapeError,
    message,
)
from autobatch.params.storage import LookupParameters, Parameters, Storage, aligned, changed, find

_MAX_RANK = 7
_LARGEST = 2**40  # numbers of a parameter: beyond any memory, so said at once and in words

_new = object.__new__
_default_decay = 0.0


def configure_weight_decay(lam: float) -> None:
    """Set the λ that outermost collections made from now on start with (DyNet's ``--dynet-weight-decay``)."""
    global _default_decay
    _default_decay = _lambda(lam)


# Checks ---------------------------------------------------------------------------------------------------------------


def _lambda(lam: Any) -> float:
    result = float(np.float32(number("weight decay λ", lam)))
    if not 0 <= result < 1:
        raise ArgumentError(f"weight decay λ = {lam}: a number in [0, 1) is expected; each update multiplies values by 1 - λ")
    return result


def _dims(what: str, dim: Any) -> tuple[int, ...]:
    """Return `dim`, an int or a sequence of ints, as a tuple of positive ints."""
    entries = tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
    try:
        dims = tuple(as_integer(d) for d in entries)
    except TypeError:
        raise TypeError(f"{what}: dim is a tuple of ints, or one int, not {type(dim).__name__} {dim!r}") from None
    return _check_dims(what, dims)


def _check_dims(what: str, dims: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= len(dims) <= _MAX_RANK or min(dims) < 0:
        expected = f"1 to {_MAX_RANK} sizes, each at least 1 (or 0, of what is never used)"
        raise ShapeError(message(f"{what}: dim {dims} does not do", expected=expected))
    if math.prod(d or 1 for d in dims) > _LARGEST:
        raise ShapeError(message(f"{what}: dim {dims} is {math.prod(dims):,} numbers", expected=f"at most {_LARGEST:,}"))
    return dims


def _name(what: str, name: Any) -> str:
    if name is None:
        return ""
    if not isinstance(name, str):
        raise TypeError(f"{what}: name is a str, not {type(name).__name__} {name!r}")
    if "/" in name or "_" in name:
        raise ConstructionError(
            message(
                f"{what}: the name {name!r} holds '/' or '_', which separate the names of collections and of namesakes",
                cure=repr(name.replace("/", "-").replace("_", "-")),
            )
        )
    return name


class ParameterCollection:
    """A set of parameters and look-up tables, and of collections inside it; what a trainer trains.

    Parameters
    ----------
    parent : ignored (as in DyNet): `add_subcollection` makes a collection inside another.
    dtype : "float32" or "float64", of all its parameters; None: the configured one, float32 at first.

    Examples
    --------
    >>> model = ParameterCollection()
    >>> W, b = model.add_parameters((2, 3), name="W"), model.add_parameters(2, init=0)
    >>> encoder = model.add_subcollection("encoder")
    >>> table = encoder.add_lookup_parameters((1000, 50))
    >>> [p.name() for p in model.parameters_list() + model.lookup_parameters_list()]
    ['/W', '/_0', '/encoder/_0']
    >>> model.parameter_count()
    50008
    """

    def __init__(self, parent: object = None, dtype: str | None = None) -> None:
        self.dtype: str = graph.check_dtype(graph.SETTINGS.dtype if dtype is None else dtype)
        self._decay = _default_decay
        self._prefix = "/"
        self._outer: ParameterCollection | None = None
        self._members: list[Parameters] = []
        self._tables: list[LookupParameters] = []
        self._namesakes: dict[str, int] = {}
        self._inner_namesakes: dict[str, int] = {}

    # Making

    def add_parameters(
        self,
        dim: int | Sequence[int],
        init: PyInitializer | ArrayLike | str | None = None,
        name: str = "",
        device: str = "",
        scale: float = 1.0,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> Parameters:
        """Make a parameter.

        Parameters
        ----------
        dim : 1 to 7 sizes; an int n is (n,). Not looked at if `init` is an array: the parameter gets the array's.
        init : initial values, see `autobatch.initializers.resolve`; None is Glorot's.
        name : without "/" and "_"; a second parameter W is called W_1, and one without a name _0, _1, ...
        device : "" or "CPU".
        scale, mean, std : for ``init="uniform"`` (±scale) and ``init="normal"``.

        Raises
        ------
        TypeError
            `dim` or `name` is of another type.
        ShapeError
            A size below 1, more than 7 sizes, an initializer of other dims.
        ArgumentError
            An unknown initializer.
        ConstructionError
            "/" or "_" in `name`; a matrix that is not square and must be. (RuntimeError and ValueError)
        DeviceError
            An unknown device.
        """
        what = "add_parameters"
        dims = _check_dims(what, init.shape) if isinstance(init, np.ndarray) else _dims(what, dim)
        initializer = resolve(init, dims, scale=scale, mean=mean, std=std)
        check_device(what, device)
        return self._add_parameters(what, dims, initializer, name)

    def add_lookup_parameters(
        self,
        dim: int | Sequence[int],
        init: PyInitializer | ArrayLike | str | None = None,
        name: str = "",
        device: str = "",
        scale: float = 1.0,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> LookupParameters:
        """Make a look-up table.

        Parameters
        ----------
        dim : (V, row ...): number of rows, dims of a row. V or (V,) alone: rows of (1,).
        init, name, device, scale, mean, std : as in `add_parameters`. An array is (V, row ...).

        Raises
        ------
        TypeError, ShapeError, ArgumentError, ConstructionError, DeviceError
            As `add_parameters`.
        """
        what = "add_lookup_parameters"
        if isinstance(init, np.ndarray):
            init = init.reshape(-1, 1) if init.ndim == 1 else init
            dims = _check_dims(what, init.shape)
        else:
            dims = _dims(what, dim)
        if len(dims) == 1:
            dims = (*dims, 1)
        initializer = resolve(init, dims, lookup=True, scale=scale, mean=mean, std=std)
        check_device(what, device)
        return self._add_table(what, (*dims[1:], dims[0]), initializer, name)

    def parameters_from_numpy(self, array: ArrayLike, name: str = "", device: str = "") -> Parameters:
        """Make a parameter of the dims and the values of an array."""
        return self.add_parameters(1, numbers("parameters_from_numpy", array), name, device)

    def lookup_parameters_from_numpy(self, array: ArrayLike, name: str = "", device: str = "") -> LookupParameters:
        """Make a look-up table of the dims and the values of an array (V, row ...)."""
        return self.add_lookup_parameters(1, numbers("lookup_parameters_from_numpy", array), name, device)

    def add_subcollection(self, name: str | None = None) -> ParameterCollection:
        """Make a collection inside this one: its members are also this one's, and a trainer on it trains only them.

        Parameters
        ----------
        name : without "/" and "_" (ConstructionError). The second one called foo is "/foo_1/", one without a name "/_0/".
        """
        name = _name("add_subcollection", name)
        inner = ParameterCollection(dtype=self.dtype)
        inner._prefix = f"{self._prefix}{_numbered(name, self._inner_namesakes)}/"
        inner._outer = self
        inner._decay = self._decay
        return inner

    def _add_parameters(self, what: str, dims: tuple[int, ...], initializer: PyInitializer, name: Any) -> Parameters:
        name = _name(what, name)
        values = _initial(initializer, dims, self.dtype)  # may raise: before the name is given away
        result = _new(Parameters)
        result._begin(self._prefix + _numbered(name, self._namesakes), dims, values)
        for collection in self._and_outer():
            collection._members.append(result)
        changed()
        return result

    def _add_table(self, what: str, dims: tuple[int, ...], initializer: PyInitializer, name: Any) -> LookupParameters:
        name = _name(what, name)
        values = _initial(initializer, dims, self.dtype)
        result = _new(LookupParameters)
        result._begin(self._prefix + _numbered(name, self._namesakes), dims, values)
        for collection in self._and_outer():
            collection._tables.append(result)
        changed()
        return result

    def _and_outer(self) -> Iterator[ParameterCollection]:
        collection: ParameterCollection | None = self
        while collection is not None:
            yield collection
            collection = collection._outer

    # Asking

    def parameters_list(self) -> list[Parameters]:
        """Return the parameters, those of inner collections too, in the order in which they were made."""
        return list(self._members)

    def lookup_parameters_list(self) -> list[LookupParameters]:
        """Return the look-up tables, those of inner collections too, in the order in which they were made."""
        return list(self._tables)

    def parameter_count(self) -> int:
        """Return how many numbers all parameters and tables have together."""
        return sum(math.prod(p.dims) for p in self._everything())

    def name(self) -> str:
        """Return the full name: "/" for an outermost collection, else for example "/encoder/"."""
        return self._prefix

    def __repr__(self) -> str:
        return f"<ParameterCollection {self._prefix}: {len(self._members)} parameters, {len(self._tables)} look-up tables>"

    # Files

    def save(self, fname: files.Path, name: str = "", append: bool = False) -> None:
        """Write all parameters and tables to a file: the old file, if any, stays until the new one is complete.

        Parameters
        ----------
        fname : path. DyNet's format, which DyNet reads too, or safetensors if the name ends in ".safetensors" (extra
            "safetensors").
        name : prefix of the names in the file, in place of the collection's own; begins with "/", without blanks and "#".
        append : add to the file in place of replacing it.

        Raises
        ------
        ArgumentError
            Such a name cannot be.
        OSError
            The file cannot be written.
        """
        prefix = files.check_key("save", name) or self._prefix
        prefix = prefix if prefix.endswith("/") else prefix + "/"
        entries = [p._entry(prefix + p.name()[len(self._prefix) :]) for p in self._everything()]
        files.write(files.path_of("save", fname), entries, bool(append))

    def populate(self, fname: files.Path, key: str = "") -> None:
        """Set all parameters and tables to those of a file, in the order in which they were made; names do not count.

        Parameters
        ----------
        fname : path, as of `save`; files of DyNet too.
        key : only entries whose names begin with it, for example "/encoder/".

        Raises
        ------
        MissingFileError, ModelFileError
            No such file, a damaged one, more or fewer entries, other dims; nothing was changed. (RuntimeErrors)
        """
        path = files.path_of("populate", fname)
        prefix = files.check_key("populate", key)
        prefix = prefix if not prefix or prefix.endswith("/") else prefix + "/"
        entries = [entry for entry in files.read(path) if entry.name.startswith(prefix)]
        self._fill(path, f" under {prefix}" if prefix else "", entries)

    def write_to_textfile(self, fname: files.Path, key: str = "", append: bool = False) -> None:
        """Do as `save` (an old name of DyNet's)."""
        self.save(fname, key, append)

    def populate_from_textfile(self, fname: files.Path, key: str = "") -> None:
        """Do as `populate` (an old name of DyNet's)."""
        self.populate(fname, key)

    def _everything(self) -> list[Storage]:
        return [*self._members, *self._tables]

    def _fill(self, path: str, under: str, entries: Sequence[files.Entry]) -> None:
        """Take the numbers of entries, in their order, or raise and change nothing."""
        everything = self._everything()
        chosen = [entry for kind in (files.PARAMETER, files.TABLE) for entry in entries if entry.kind == kind]
        counts = [
            " and ".join(f"{kinds.count(kind)} {kind}s" for kind in (files.PARAMETER, files.TABLE))
            for kinds in ([e.kind for e in entries], [p._kind for p in everything])
        ]
        if counts[0] != counts[1]:
            raise ModelFileError(message(f"{path}{under} does not fit {self._prefix}", counts[0], counts[1]))
        for p, entry in zip(everything, chosen, strict=True):
            p._check_entry(path, entry)
        for p, entry in zip(everything, chosen, strict=True):
            p._take(entry)

    def load_param(self, fname: files.Path, key: str) -> Parameters:
        """Make a parameter of the dims, the name and the numbers of an entry of a file (see `Parameters.populate`)."""
        result: Parameters = self._load("load_param", fname, files.PARAMETER, key)
        return result

    def load_lookup_param(self, fname: files.Path, key: str) -> LookupParameters:
        """Make a look-up table of the dims, the name and the numbers of an entry of a file (see `Parameters.populate`)."""
        result: LookupParameters = self._load("load_lookup_param", fname, files.TABLE, key)
        return result

    def _load(self, what: str, fname: Any, kind: str, key: Any) -> Any:
        path = files.path_of(what, fname)
        if not isinstance(key, str):
            raise OperandError(f"{what}: key is {describe(key)}\n  expected  a str")
        return self._add_entry(path, find(path, files.read(path), kind, key))

    def _add_entry(self, path: str, entry: files.Entry) -> Any:
        """Make a parameter, or a table, of the dims, the name and the numbers of an entry of a file."""
        dims = _check_dims(f"{path}: {entry.name}", entry.dims)
        made: Any = _new(Parameters if entry.kind == files.PARAMETER else LookupParameters)
        made._begin(entry.name, dims, aligned(math.prod(dims), self.dtype))
        made._check_entry(path, entry)
        made._take(entry)
        for collection in self._and_outer():
            (collection._members if entry.kind == files.PARAMETER else collection._tables).append(made)
        changed()
        return made

    def _mark(self) -> Any:
        """Return what `_undo` needs to take back all parameters made after it."""
        return [(c, len(c._members), len(c._tables), dict(c._namesakes), dict(c._inner_namesakes)) for c in self._and_outer()]

    def _undo(self, mark: Any) -> None:
        for collection, members, tables, namesakes, inner in mark:
            del collection._members[members:], collection._tables[tables:]
            collection._namesakes, collection._inner_namesakes = namesakes, inner
        changed()

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """Take back all parameters and subcollections made in the block if it fails."""
        mark = self._mark()
        try:
            yield
        except BaseException:
            self._undo(mark)
            raise

    # Training

    def reset_gradient(self) -> None:
        """Set the gradients of all parameters and tables to 0 (DyNet has it in C++ only)."""
        for p in self._everything():
            p._reset_gradient()

    def get_weight_decay(self) -> float:
        """Return λ of the weight decay; 0: none."""
        return self._decay

    def set_weight_decay(self, lam: float) -> None:
        """Let each update by a trainer of this collection multiply the values it trains by 1 - λ, after its step.

        Parameters
        ----------
        lam : λ, in [0, 1); kept as float32. An inner collection starts with the λ of its outer one and keeps its own.

        Raises
        ------
        ArgumentError
            Any other number (DyNet dies).

        Notes
        -----
        All values of a look-up table decay, as in DyNet, so an update costs time for every row, not only for the touched
        ones. Parameters with ``set_updated(False)`` keep their values; in DyNet they shrink with the others, as seen by the
        graph, and jump back from time to time. A trainer of an inner collection applies that collection's λ (DyNet: shows
        nothing of it for a while, then multiplies at once).
        """
        self._decay = _lambda(lam)

    def set_weight_decay_lambda(self, lam: float) -> None:
        """Do as `set_weight_decay` (DyNet's older name for it)."""
        self.set_weight_decay(lam)


Model = ParameterCollection


def _numbered(name: str, namesakes: dict[str, int]) -> str:
    """Return `name`, with a number if it is taken or empty, and count it."""
    count = namesakes.get(name, 0)
    namesakes[name] = count + 1
    return f"{name}_{count}" if count or not name else name


@contextlib.contextmanager
def room_for(numbers: int) -> Iterator[None]:
    """Let no more than so many numbers be made, in all parameters together: what a file holds, while it is loaded."""
    token = _room.set([numbers])
    try:
        yield
    finally:
        _room.reset(token)


_room: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar("room", default=None)


def _initial(initializer: PyInitializer, dims: tuple[int, ...], dtype: str) -> NDArray[np.floating]:
    room, size = _room.get(), math.prod(dims)
    if room is not None:
        room[0] -= size
        if room[0] < 0:
            raise ArgumentError(f"a parameter {dims} of {size:,} numbers is more than the file holds")
    values = aligned(math.prod(dims), dtype)
    if not size:  # for a part of a network that is switched off: DyNet programs make such, and never use them
        return values
    initializer.fill(background.noted(values), dims)
    return values

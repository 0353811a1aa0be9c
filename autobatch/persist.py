"""`save` and `load` of parameters, tables and builders together, in DyNet's two files.

    NAME.data    the numbers (`autobatch.files`)
    NAME.meta    a pickle for each object: ("Parameters", name), ("LookupParameters", name), (class, spec, its collection)

Pickles can call anything, so what is read here is limited to numbers, texts, tuples, and names of classes with a `from_spec`
and of this library's operations; nothing is called before the whole file has been understood. Builders and operations are
written under DyNet's module name: each library reads the files of the other.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from autobatch import background, files
from autobatch.expression import Expression, describe
from autobatch.kernels._errors import ArgumentError, MissingFileError, ModelFileError, OperandError
from autobatch.params import LookupParameters, ParameterCollection, Parameters, Storage, room_for
from autobatch.recorder import FUNCTIONS

_DEEPEST = 200  # lists within lists of a spec
_DYNET = ("_dynet", "dynet")  # modules that its classes lie in


class _Named(NamedTuple):
    """A class or a function as a pickle names it: nothing that a pickle could call."""

    module: str
    name: str


_PythonPickler: Any = pickle._Pickler  # type: ignore[attr-defined]  # the one in C cannot be told how to write a class


class _Pickler(_PythonPickler):
    """Writes the classes and operations of this library under DyNet's module."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj.__module__.split(".")[0] == "autobatch":
            self.write(b"c_dynet\n" + obj.__name__.encode() + b"\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch = {**_PythonPickler.dispatch, **dict.fromkeys((type, *FUNCTIONS), save_global)}  # noqa: RUF012


_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]  # a wrong byte makes the one in C ask for 32 GB


class _Unpickler(_PythonUnpickler):
    """Reads classes and functions as their names."""

    def find_class(self, module: str, name: str) -> Any:
        return _Named(module, name)


def _is_operation(thing: Any, name: str) -> bool:
    """Whether something is an operation of this library, by its public name: a function that records nodes, and no other."""
    if not isinstance(thing, FUNCTIONS) or getattr(sys.modules["autobatch"], name, None) is not thing:
        return False
    return thing.__module__ == "autobatch.shortcuts" or thing.__module__.startswith("autobatch.functions.")


# Saving ---------------------------------------------------------------------------------------------------------------


def save(basename: files.Path, objects: Iterable[Any]) -> None:
    """Write parameters, look-up tables and builders to ``basename.data`` and ``basename.meta``.

    Parameters
    ----------
    basename : path of both files, without their endings. Old files stay until the new ones are complete.
    objects : any mix of Parameters, LookupParameters and objects with ``param_collection()``, an attribute ``spec`` of numbers,
        texts, tuples and operations (`tanh`), and a class method ``from_spec(spec, collection)``: all builders, and classes of
        one's own.

    Raises
    ------
    AttributeError
        An object that lacks one of the three.
    ArgumentError
        Two objects hold parameters of one name: loading could not tell them apart (DyNet mixes them up).
    OSError
        A file cannot be written.
    """
    path = files.path_of("save", basename)
    if isinstance(objects, (Expression, Storage, str, bytes, np.ndarray)) or not isinstance(objects, Iterable):
        raise OperandError(f"save: {describe(objects)}\n  expected  a list of parameters and builders")
    entries: list[files.Entry] = []
    meta = io.BytesIO()
    for thing in objects:
        if isinstance(thing, Storage):
            entries.append(thing._entry(thing.name()))
            about: Any = (type(thing).__name__, thing.name())
        else:
            if isinstance(thing, ParameterCollection):
                raise AttributeError(f"save: {thing} is a collection\n  try       its own save()")
            if not hasattr(type(thing), "from_spec"):
                raise AttributeError(f"save: {describe(thing)} has no class method from_spec(spec, collection)")
            if not callable(getattr(thing, "param_collection", None)):
                raise AttributeError(f"save: {describe(thing)} has no method param_collection()")
            collection, missing = thing.param_collection(), object()
            if not isinstance(collection, ParameterCollection):
                raise OperandError(f"save: {describe(thing)} has for a collection {describe(collection)}")
            spec = getattr(thing, "spec", missing)
            if spec is missing:
                raise AttributeError(f"save: {describe(thing)} has no attribute spec")
            _check_spec(thing, spec)
            entries += [p._entry(p.name()) for p in collection._everything()]
            about = (type(thing), spec, collection.name())
        _Pickler(meta, protocol=2).dump(about)
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(
                f"save: two parameters are called {name}: loading could not tell them apart\n"
                "  expected  objects of one collection, each once\n  try       add_subcollection, or a name for each"
            )
    with files.replaced(path + ".data", path + ".meta") as (data, second):
        files.write_entries(data, entries)
        second.write(meta.getvalue())


def _check_spec(thing: Any, spec: Any, depth: int = 0) -> None:
    """Raise for a spec that could not be loaded again."""
    fits = spec is None or isinstance(spec, (bool, int, float, str, bytes))
    if isinstance(spec, type):
        fits = hasattr(spec, "from_spec")
    elif isinstance(spec, FUNCTIONS):
        fits = _is_operation(spec, spec.__name__)
    elif isinstance(spec, (tuple, list, dict)) and depth < _DEEPEST:
        fits = True
        for part in spec if not isinstance(spec, dict) else (*spec.keys(), *spec.values()):
            _check_spec(thing, part, depth + 1)
    if not fits:
        raise ArgumentError(
            f"save: the spec of {describe(thing)} holds {describe(spec)}\n"
            "  expected  numbers, texts, tuples, lists, dicts, classes with a from_spec, and operations such as tanh"
        )


# Loading --------------------------------------------------------------------------------------------------------------


def load(basename: files.Path, params: ParameterCollection) -> list[Any]:
    """Make anew, inside a collection, the objects that `save` wrote; return them in their order.

    Parameters
    ----------
    basename : path of the files, without their endings; those of DyNet too.
    params : the collection in which they are made.

    Raises
    ------
    MissingFileError, ModelFileError
        A file is missing or damaged, the two do not fit each other, or name a class that is not known; the collection is as it
        was. (FileNotFoundError, RuntimeError)
    """
    return list(load_generator(basename, params))


def load_generator(basename: files.Path, params: ParameterCollection) -> Iterator[Any]:
    """Yield the objects that `load` returns, each when it has been made."""
    path = files.path_of("load", basename)
    if not isinstance(params, ParameterCollection):
        raise OperandError(f"load: {describe(params)}\n  expected  a ParameterCollection")
    background.wait()
    abouts = _read_meta(path + ".meta")
    entries = {(entry.kind, entry.name): entry for entry in reversed(files.read(path + ".data"))}
    mark = params._mark()
    try:
        for about in abouts:
            yield _made(path, about, entries, params)
    except GeneratorExit:
        raise
    except BaseException:
        params._undo(mark)
        raise


def _made(path: str, about: Any, entries: dict[tuple[str, str], files.Entry], params: ParameterCollection) -> Any:
    """Return one object."""
    if len(about) == 2:
        kind = files.PARAMETER if about[0] == "Parameters" else files.TABLE
        entry = entries.get((kind, about[1]))
        if entry is None:
            raise ModelFileError(f"{path}.data: there is no {kind} {about[1]}, which {path}.meta names")
        return params._add_entry(path, entry)
    cls, spec, name = about
    before = params._mark()
    try:
        with room_for(sum(entry.values.size for (_, full), entry in entries.items() if full.startswith(name))):
            made = cls.from_spec(spec, params)
        collection = made.param_collection()
    except Exception as error:
        params._undo(before)
        raise ModelFileError(f"{path}.meta: {cls.__name__}.from_spec({spec!r:.60}, ...) failed: {error}") from error
    try:
        wanted = [entry for (_, full), entry in entries.items() if full.startswith(name)]
        collection._fill(f"{path}.data", f" under {name}", wanted[::-1])
    except ModelFileError:
        params._undo(before)
        raise
    return made


def _read_meta(path: str) -> list[Any]:
    """Return what the pickles of a file say, with classes in place of their names; raise for anything unexpected."""
    try:
        with open(path, "rb") as source:
            data = source.read()
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read: {error.strerror}") from None
    stream = io.BytesIO(data)
    abouts: list[Any] = []
    while stream.tell() < len(data):
        try:
            about = _Unpickler(stream).load()
        except Exception as error:  # damage makes pickle raise nearly everything
            raise ModelFileError(f"{path}: object {len(abouts) + 1} is damaged: {error}") from None
        abouts.append(_understood(path, len(abouts) + 1, about))
    return abouts


def _understood(path: str, place: int, about: Any) -> Any:
    if isinstance(about, tuple) and len(about) == 2:
        kind, name = about
        if kind in (Parameters.__name__, LookupParameters.__name__) and isinstance(name, str):
            return about
    elif isinstance(about, tuple) and len(about) == 3:
        cls, spec, name = about
        found = _resolved(path, cls) if isinstance(cls, _Named) and isinstance(name, str) else None
        if isinstance(found, type):
            return found, _resolved(path, spec), name
    raise ModelFileError(
        f"{path}: object {place} is {about!r:.60}\n  expected  a kind and a name, or a class, its spec and a name"
    )


def _resolved(path: str, thing: Any) -> Any:
    """Return a spec with the classes and operations that it names; raise for what no spec holds."""
    if isinstance(thing, _Named):
        module = sys.modules.get("autobatch" if thing.module in _DYNET else thing.module)
        found = getattr(module, thing.name, None)
        if _is_operation(found, thing.name) or (isinstance(found, type) and hasattr(found, "from_spec")):
            return found
        cure = "" if module is not None else f"\n  try       import {thing.module} before loading"
        raise ModelFileError(
            f"{path}: names {thing.module}.{thing.name}\n  expected  a builder or an operation that is known here{cure}"
        )
    if isinstance(thing, (tuple, list)):
        return type(thing)(_resolved(path, part) for part in thing)
    if isinstance(thing, dict):
        return {_resolved(path, key): _resolved(path, value) for key, value in thing.items()}
    if thing is None or isinstance(thing, (bool, int, float, str, bytes)):
        return thing
    raise ModelFileError(
        f"{path}: a spec holds {describe(thing)}\n  expected  numbers, texts, tuples, lists, classes and operations"
    )

"""Kernels compiled for the card: loaded once a process, and kept on the disk beside Numba's cache.

    <cache>/autobatch-cuda/<hash>.cubin     line 1: what it is, as JSON, with the hash of the rest; then the cubin

The hash is that of everything the machine code depends on: the source of the kernel and of all helpers (`_digest` of
`kernels/_jit.py`), what its closure and its globals hold, dtype, compute capability, versions of the compilers. Files appear
whole or not at all; one that is damaged is written anew. Where the folder cannot be written, each process compiles for itself.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import pathlib
import re
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

import numba

from autobatch.cuda.driver import device
from autobatch.kernels import _device, _jit
from autobatch.kernels._errors import DeviceError

_COMPILERS = (
    *("numba-cuda", "numba", "llvmlite"),
    *("nvidia-nvvm", "nvidia-nvjitlink"),  # of CUDA 13
    *("nvidia-cuda-nvcc-cu12", "nvidia-nvjitlink-cu12"),  # of CUDA 12
)
_CONSTANTS = (int, float, complex, str, bytes, bool, type(None))
_PARAMETERS = 2  # of a kernel: the instruction, the scratch


def function(kernel: Callable[..., None], dtype: str) -> int:
    """Return the handle of a kernel on the card, for `cuLaunchKernel`.

    Parameters
    ----------
    kernel : as written, for this target or for a processor (`kernels/_device.py` makes the one of the other).
    dtype : "float32" or "float64".

    Raises
    ------
    DeviceError : it cannot be compiled, or not loaded.
    """
    card = device()
    loaded: dict[Any, tuple[int, Any]] = card.kept.setdefault("functions", {})
    known = id(kernel), dtype
    if known not in loaded:
        capability = capability_of(card.capability)
        key = _key(kernel, dtype, capability)  # an op may make the same kernel anew for each node type
        if key not in loaded:
            entry, code = (card.compiler or stored)(kernel, dtype, capability)
            loaded[key] = card.load(code, entry, f"kernel {kernel.__qualname__} ({dtype})"), kernel
        loaded[known] = loaded[key][0], kernel  # an id is good as long as its object lives
    return loaded[known][0]


def capability_of(capability: tuple[int, int]) -> tuple[Any, ...]:
    """Return what is compiled for: on a card of 9.0 also what no later one has, which is what its own compilers do."""
    return (*capability, "a") if capability == (9, 0) else capability


def stored(kernel: Callable[..., None], dtype: str, capability: tuple[Any, ...]) -> tuple[str, bytes]:
    """Return the entry and the machine code of a kernel, from the disk if it is there."""
    path = folder() / f"{_key(kernel, dtype, capability)}.cubin"
    found = _read(path)
    if found is not None:
        return found
    from autobatch.kernels import _cuda

    made = _cuda.compile_kernel(kernel, dtype, capability)
    taken = len(re.findall(r"\.param\s+\.u64", made.ptx.split(made.entry, 1)[1].split("{", 1)[0]))
    if taken != _PARAMETERS:
        raise DeviceError(
            f"the compiler gave kernel {kernel.__qualname__} {taken} parameters, and {_PARAMETERS} were asked for"
        )
    what = {"kernel": kernel.__qualname__, "dtype": dtype, "capability": ".".join(map(str, capability)), "entry": made.entry}
    _write(path, what, made.cubin)
    return made.entry, made.cubin


# The disk -------------------------------------------------------------------------------------------------------------


def folder() -> pathlib.Path:
    """Return where machine code is kept: in Numba's cache if it has a folder of its own, else in the user's cache."""
    numbas: str = getattr(numba.config, "CACHE_DIR", "")
    if numbas:
        return pathlib.Path(numbas, "autobatch-cuda")
    home = pathlib.Path.home()
    if sys.platform == "win32":
        return pathlib.Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local", "autobatch", "cuda")
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache", "autobatch", "cuda")


def _read(path: pathlib.Path) -> tuple[str, bytes] | None:
    """Return entry and machine code; None if they are not there, or damaged."""
    try:
        first, _, code = path.read_bytes().partition(b"\n")
        what = json.loads(first)
        whole = what["hash"] == hashlib.sha256(code).hexdigest()
        return (str(what["entry"]), code) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: pathlib.Path, what: dict[str, Any], code: bytes) -> None:
    """Write a file that others see whole or not at all; without a folder to write to, do without."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({**what, "hash": hashlib.sha256(code).hexdigest()}).encode()
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(head + b"\n" + code)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


# What it depends on ---------------------------------------------------------------------------------------------------


@functools.cache
def _versions() -> tuple[str, ...]:
    """Versions of the compilers, "" for one that is not installed; without importing them, which takes seconds."""
    found = []
    for name in _COMPILERS:
        try:
            found.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            found.append("")
    return tuple(found)


def _key(kernel: Callable[..., None], dtype: str, capability: tuple[Any, ...]) -> str:
    parts = _source(kernel, set()), kernel.__qualname__, dtype, capability, _versions()
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _source(function: Any, seen: set[int]) -> Any:
    """Return what a function computes, as text: its source, and what its closure and its globals hold, likewise.

    `seen`: what was told already, by `id`.
    """
    function = getattr(function, "py_func", function)
    path = inspect.getfile(function)
    own = [_jit._digest(path), function.__qualname__, getattr(function, "__source__", ""), repr(function.__defaults__)]
    seen.add(id(function))
    names = sorted(_device._names(function.__code__) & set(function.__globals__))
    held = [(name, function.__globals__[name]) for name in names]
    held += zip(function.__code__.co_freevars, (c.cell_contents for c in function.__closure__ or ()), strict=True)
    for name, value in held:
        inner = getattr(value, "py_func", value)
        if isinstance(inner, types.FunctionType):
            if inner.__module__.startswith("autobatch") and id(inner) not in seen:
                own.append((name, _source(inner, seen)))
        elif isinstance(value, _CONSTANTS) or (isinstance(value, tuple) and all(isinstance(v, _CONSTANTS) for v in value)):
            own.append((name, repr(value)))
    return own

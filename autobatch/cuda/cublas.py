"""Products by NVIDIA's library, if it is there: found, opened, called by address from the loop of `launch.py`.

    find()            the library of a wheel (nvidia-cublas, PyTorch brings it too), of a toolkit; None without one
    Cublas            a handle for each thread, all on the one stream of the process

It is an option: every product has a kernel of ours. Numbers of float32 are multiplied as such, unless `tf32` is asked for: then
10 bits of each factor are kept, and the sums are float32.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pathlib
import sys
import threading
import weakref
from collections.abc import Iterator
from ctypes import c_int, c_void_p
from typing import Any

from autobatch.cuda.driver import Device, device
from autobatch.kernels._errors import DeviceError, message

_PRODUCT = (c_void_p, *(c_int,) * 5, c_void_p, c_void_p, c_int, c_void_p, c_int, c_void_p, c_void_p, c_int)
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasCreate_v2": (c_void_p,),
    "cublasDestroy_v2": (c_void_p,),
    "cublasSetStream_v2": (c_void_p, c_void_p),
    "cublasSetMathMode": (c_void_p, c_int),
    "cublasSgemm_v2": _PRODUCT,
    "cublasDgemm_v2": _PRODUCT,
}
FORMS: dict[str, Any] = {name: ctypes.CFUNCTYPE(c_int, *kinds) for name, kinds in _SIGNATURES.items()}
_GEMM = {"float32": "cublasSgemm_v2", "float64": "cublasDgemm_v2"}
_EXACT, _TF32 = 0, 3
_STATUS = {
    1: "CUBLAS_STATUS_NOT_INITIALIZED",
    3: "CUBLAS_STATUS_ALLOC_FAILED",
    7: "CUBLAS_STATUS_INVALID_VALUE",
    8: "CUBLAS_STATUS_ARCH_MISMATCH",
    11: "CUBLAS_STATUS_MAPPING_ERROR",
    13: "CUBLAS_STATUS_EXECUTION_FAILED",
    14: "CUBLAS_STATUS_INTERNAL_ERROR",
    15: "CUBLAS_STATUS_NOT_SUPPORTED",
}
_VERSIONS = ("13", "12")


class Cublas:
    """The library on one card: a handle for each thread that uses it."""

    def __init__(self, owner: Device, library: Any, tf32: bool = False) -> None:
        self._device, self._library, self.tf32 = owner, library, tf32
        self._functions: dict[str, Any] = {}
        self._thread = threading.local()
        self._handles: weakref.WeakSet[_Handle] = weakref.WeakSet()

    def close(self) -> None:
        """Give all handles back, before the card is."""
        for handle in list(self._handles):
            handle.close()

    def _function(self, name: str) -> Any:
        found = self._functions.get(name)
        if found is None:
            try:
                found = getattr(self._library, name)
            except AttributeError:
                raise DeviceError(f"the cuBLAS library has no function {name}\n  try       a newer one") from None
            found.argtypes, found.restype = _SIGNATURES[name], c_int
            self._functions[name] = found
        return found

    def _call(self, name: str, *arguments: Any) -> None:
        code = int(self._function(name)(*arguments))
        if code:
            raise DeviceError(message(f"{name} failed: {self.error(code)}"))

    def error(self, code: int) -> str:
        """Return the name of an error."""
        return _STATUS.get(code, f"error {code} of cuBLAS")

    def gemm(self, dtype: str) -> tuple[int, int]:
        """Return the handle of this thread, opened now if it has none, and the address of the product for a dtype."""
        found = getattr(self._thread, "handle", None)
        if found is None:
            found = self._thread.handle = _Handle(self, self._device)
            self._handles.add(found)
        found.precise(self.tf32)
        return found.value, int(ctypes.cast(self._function(_GEMM[dtype]), c_void_p).value or 0)


class _Handle:
    """A handle of the library, for one thread."""

    def __init__(self, library: Cublas, owner: Device) -> None:
        self._library, self._device, self.value = library, owner, 0
        self._tf32 = False
        owner.enter()
        handle = c_void_p()
        library._call("cublasCreate_v2", ctypes.byref(handle))
        self.value = handle.value or 0
        library._call("cublasSetStream_v2", self.value, owner.stream)
        library._call("cublasSetMathMode", self.value, _EXACT)

    def precise(self, tf32: bool) -> None:
        """Choose how float32 is multiplied, from the next product on."""
        if tf32 != self._tf32:
            self._library._call("cublasSetMathMode", self.value, _TF32 if tf32 else _EXACT)
            self._tf32 = tf32

    def close(self) -> None:
        """Give it back; where the process ends or the card is lost, leave it."""
        value, self.value = self.value, 0
        if value and not self._device.lost and not sys.is_finalizing():
            with contextlib.suppress(DeviceError):
                self._device.enter()
                self._library._call("cublasDestroy_v2", value)

    __del__ = close


def _files() -> Iterator[str]:
    """Where the library may lie, best first."""
    names = [f"cublas64_{v}.dll" for v in _VERSIONS] if sys.platform == "win32" else [f"libcublas.so.{v}" for v in _VERSIONS]
    inside = ("bin", "bin/x86_64") if sys.platform == "win32" else ("lib",)
    with contextlib.suppress(ImportError, ValueError):
        wheels = importlib.util.find_spec("nvidia")
        for place in (wheels.submodule_search_locations or ()) if wheels is not None else ():
            for package in ("cu13", "cublas"):
                yield from (str(pathlib.Path(place, package, folder, name)) for folder in inside for name in names)
    yield from names
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        toolkit = os.environ.get(variable)
        if toolkit:
            folders = ("bin", "bin/x64") if sys.platform == "win32" else ("lib64", "lib")
            yield from (str(pathlib.Path(toolkit, folder, name)) for folder in folders for name in names)


class _Loaded:
    library: Any = None
    looked = False


def find() -> Cublas | None:
    """Return the library on the card of this process; None where it is not installed. It is looked for once."""
    owner = device()
    if "cublas" not in owner.kept:
        owner.kept["cublas"] = None
        library = _load()
        if library is not None:
            owner.kept["cublas"] = Cublas(owner, library)
    found: Cublas | None = owner.kept["cublas"]
    return found


def _load() -> Any:
    """Load the library; None if there is none."""
    if not _Loaded.looked:
        _Loaded.looked = True
        for file in _files():
            with contextlib.suppress(OSError):
                if os.path.isabs(file) and not os.path.exists(file):
                    continue
                beside = file.replace("cublas", "cublasLt", 1) if not os.path.isabs(file) else _beside(file)
                with contextlib.suppress(OSError):  # it asks for this one by name, which the loader finds if it is there
                    ctypes.CDLL(beside)
                _Loaded.library = ctypes.CDLL(file)
                break
    return _Loaded.library


def _beside(file: str) -> str:
    """The library that this one needs, in the same folder."""
    path = pathlib.Path(file)
    return str(path.with_name(path.name.replace("cublas", "cublasLt", 1)))


@contextlib.contextmanager
def use(library: Any) -> Iterator[None]:
    """Put an object with the functions of `FORMS` in the place of the library, or None for no library; for tests."""
    before = _Loaded.library, _Loaded.looked
    _Loaded.library, _Loaded.looked = library, True
    try:
        yield
    finally:
        _Loaded.library, _Loaded.looked = before

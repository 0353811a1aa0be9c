"""Numbers on the card that other libraries read, and theirs that are read here: DLPack and the CUDA array interface.

An *outline* is a NumPy array whose address is one of the card: it knows shape, strides, dtype and who keeps the memory, and
nobody may read a number of it. Making one touches no memory, and NumPy does the rest: it takes capsules of DLPack apart and
makes new ones, with a deleter and a destructor in C that any thread may call at any time. Only the word of a capsule that says
"CPU" is changed here:

    theirs on the card ──"CPU"──▶ numpy.from_dlpack ──▶ outline        outline ──▶ ndarray.__dlpack__ ──"CUDA"──▶ theirs

Ctypes callbacks in their place would be Python code that runs inside of deallocations, of threads that know nothing of Python.

Streams. Whoever takes numbers through DLPack names his stream, and they are there when it goes on: ours is waited for, unless
it is the one named. What comes from outside is asked for with our stream; of a CUDA array interface the stream that it names is
waited for, and where it names none before version 3 (PyTorch), stream 0.

Memory is freed by `cuMemFree`, which waits for all streams: kernels of others that still read it come to their end.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from autobatch.cuda import driver, memory
from autobatch.kernels._errors import DeviceError, NumericalError, OperandError

CPU, CUDA, MANAGED = 1, 2, 13  # kinds of devices, in DLPack
_PLAIN, _VERSIONED = b"dltensor", b"dltensor_versioned"  # names of capsules
# Where in the structure of a capsule the kind of device stands (an int32, its number is the next), and the flags.
_DEVICE = {_PLAIN: 8, _VERSIONED: 40}
_FLAGS, _COPIED = 24, 2
_LEGACY_STREAM = 1  # stream 0, as DLPack and the CUDA array interface call it

_valid, _pointer = ctypes.pythonapi.PyCapsule_IsValid, ctypes.pythonapi.PyCapsule_GetPointer
_valid.argtypes, _valid.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
_pointer.argtypes, _pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p


class _Interface:
    """What NumPy makes an outline of, and its base from then on."""

    def __init__(self, interface: dict[str, Any], owner: Any) -> None:
        self.__array_interface__, self.owner = interface, owner


def _outline(address: int, shape: tuple[int, ...], typestr: str, strides: Any, owner: Any) -> np.ndarray:
    form = {"data": (address, False), "shape": shape, "typestr": typestr, "strides": strides, "version": 3}
    return np.asarray(_Interface(form, owner))


def _device_of(capsule: Any) -> tuple[Any, Any]:
    """Return kind and number of the device in a capsule, to be changed in place, and its address."""
    name = _VERSIONED if _valid(capsule, _VERSIONED) else _PLAIN
    address = _pointer(capsule, name)
    return (ctypes.c_int32 * 2).from_address(address + _DEVICE[name]), (name, address)


# Out ------------------------------------------------------------------------------------------------------------------


def outline(address: int, shape: tuple[int, ...], dtype: str, owner: Any) -> np.ndarray:
    """Return the outline of column-major numbers at an address of the card, which `owner` keeps."""
    itemsize, strides = np.dtype(dtype).itemsize, []
    for size in shape:
        strides.append(itemsize)
        itemsize *= size
    return _outline(address, shape, np.dtype(dtype).str, tuple(strides), owner)


def copied(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return the outline of a copy of column-major numbers at an address of the card."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    block = memory.Block(size, "tensors")
    memory.copy(block.address, address, size)
    return outline(block.address, shape, dtype, block)


def interface(of: np.ndarray) -> dict[str, Any]:
    """Return the `__cuda_array_interface__` of an outline."""
    form = {"shape": of.shape, "strides": of.strides, "typestr": of.dtype.str, "data": (of.ctypes.data, False)}
    return {**form, "version": 3, "stream": driver.device().stream}


def place() -> tuple[int, int]:
    """Return the `__dlpack_device__` of what lies on the card."""
    return CUDA, driver.device().number


def capsule(
    of: np.ndarray,
    stream: Any = None,
    max_version: tuple[int, int] | None = None,
    dl_device: tuple[int, int] | None = None,
    copy: bool | None = None,
) -> Any:
    """Return a capsule for DLPack with the numbers of an outline; the memory stays for as long as its consumer wants it.

    Parameters
    ----------
    stream : of the consumer: None or 1 (stream 0), 2 (that of each thread), a handle; -1: no waiting.
    max_version : the newest version that the consumer knows. None: that of capsules without a version.
    dl_device : where the numbers are wanted: here, or on the CPU. None: here.
    copy : whether they have to be a copy (True), or must be none (False).

    Raises
    ------
    BufferError : another device; a copy would be needed, and must not be made; stream 0, which DLPack leaves undefined.
    """
    if dl_device is not None and tuple(dl_device) != place():
        if tuple(dl_device) != (CPU, 0) or copy is False:
            raise BufferError(f"numbers on card {place()[1]} are wanted on device {dl_device}, copy={copy}")
        return _made(np.asfortranarray(fetched(of)), max_version)
    if stream is not None and (not isinstance(stream, int) or isinstance(stream, bool) or stream in (0, -2) or stream < -1):
        raise BufferError(f"stream {stream!r}\n  expected  -1, 1, 2, or the handle of a stream")
    if copy:
        of = copied(of.ctypes.data, of.shape, of.dtype.name)
    if stream not in (-1, driver.device().stream):
        memory.synchronize()
    made = _made(of, max_version)
    device, (name, address) = _device_of(made)
    device[:] = place()
    if copy and name == _VERSIONED:
        ctypes.c_uint64.from_address(address + _FLAGS).value |= _COPIED
    return made


def _made(array: np.ndarray, max_version: Any) -> Any:
    if max_version is None:
        return array.__dlpack__()
    try:
        return array.__dlpack__(max_version=max_version)
    except TypeError:  # NumPy 2.0
        return array.__dlpack__()


# In -------------------------------------------------------------------------------------------------------------------


class _Capsule:
    """A capsule with numbers on the card, for NumPy, which takes it because it says "CPU"."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def __dlpack__(self, **how: Any) -> Any:
        return self._made

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0


def _through_dlpack(x: Any, number: int) -> np.ndarray:
    made = x.__dlpack__(stream=driver.device(number).stream)
    device, _ = _device_of(made)
    before = tuple(device)
    device[:] = CPU, 0
    try:
        return np.from_dlpack(_Capsule(made))  # type: ignore[arg-type]
    finally:
        device[:] = before  # what it points to is kept by NumPy, or by `made`


def _through_interface(form: dict[str, Any], owner: Any) -> np.ndarray:
    if form.get("mask") is not None:
        raise BufferError("numbers with a mask")
    version, stream = form.get("version", 0), form.get("stream")
    device = driver.device()
    if version < 3 and stream is None:
        stream = _LEGACY_STREAM
    if stream == 0:
        raise BufferError("stream 0 in __cuda_array_interface__, which its version 3 leaves undefined")
    if stream is not None and stream != device.stream:
        device.call("cuStreamSynchronize", stream)
    return _outline(form["data"][0], tuple(form["shape"]), form["typestr"], form.get("strides"), owner)


def outline_of(op: str, x: Any) -> np.ndarray | None:
    """Return the outline of an array of another library that lies on a card; None of everything else.

    Raises
    ------
    OperandError : it says that it lies there, but will not hand its numbers over; says why.
    DeviceError : it lies on another card than graphs run on, or there is none.
    """
    if isinstance(x, (np.ndarray, np.generic, list, tuple, int, float, str)):
        return None
    try:
        kind, number = x.__dlpack_device__() if hasattr(x, "__dlpack_device__") and hasattr(x, "__dlpack__") else (0, 0)
        if int(kind) in (CUDA, MANAGED):
            return _through_dlpack(x, int(number))
        form = getattr(x, "__cuda_array_interface__", None) if not kind else None
        return None if form is None else _through_interface(form, x)
    except (DeviceError, NumericalError):  # of an update: x is one of our parameters
        raise
    except (RuntimeError, BufferError, TypeError, ValueError, KeyError) as error:
        raise OperandError(f"{op}: {type(x).__name__} on a card cannot be taken: {error}") from None


def fetched(of: np.ndarray) -> np.ndarray:
    """Return a copy on the host of what an outline stands for, strides and all."""
    if not of.size:
        return np.empty(of.shape, of.dtype)
    low, high = np.lib.array_utils.byte_bounds(of)
    flat = memory.read(low, high - low, "uint8")
    return np.ndarray(of.shape, of.dtype, flat, of.ctypes.data - low, of.strides)


def to_host(op: str, x: Any) -> Any:
    """Return an array of the host for one of another library that lies on a card, and everything else as it is.

    Raises as `outline_of`.
    """
    found = outline_of(op, x)
    return x if found is None else fetched(found)

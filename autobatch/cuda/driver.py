"""NVIDIA's driver: its functions by ctypes, each call checked, and the one card that the process uses.

    device()            the card, opened by whoever asks first; DeviceError says what is missing
    device().call(...)  a function of the driver, by name; DeviceError names the call, CUDA's error and its text

Of CUDA's run-time libraries none is needed here: libcuda comes with the driver of the card. Everything that belongs to a card
(stream, memory, functions) hangs on its `Device`, so that a test can put another driver in its place (`use`).

A failed call leaves everything as it was, with one exception: after a kernel that read outside of memory the driver refuses all
that follows. Such an error is noticed by a later call, often a copy, and says so.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from ctypes import c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Any

from autobatch.kernels._errors import DeviceError, DeviceMemoryError, message

# What is called, and with what. Pointers are c_void_p, which takes `byref(...)`, arrays and addresses.
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (c_void_p,),
    "cuDeviceGetCount": (c_void_p,),
    "cuDeviceGet": (c_void_p, c_int),
    "cuDeviceGetName": (c_void_p, c_int, c_int),
    "cuDeviceGetAttribute": (c_void_p, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (c_void_p, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (c_void_p, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (c_void_p, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemGetInfo_v2": (c_void_p, c_void_p),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuStreamCreate": (c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuEventCreate": (c_void_p, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventDestroy_v2": (c_void_p,),
    "cuLibraryLoadData": (c_void_p, c_void_p, c_void_p, c_void_p, c_uint, c_void_p, c_void_p, c_uint),
    "cuLibraryGetKernel": (c_void_p, c_void_p, c_char_p),
    "cuKernelGetFunction": (c_void_p, c_void_p),
    "cuLibraryUnload": (c_void_p,),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, c_void_p, c_void_p),
    "cuGetErrorName": (c_int, c_void_p),
    "cuGetErrorString": (c_int, c_void_p),
}
# The form of each function: a real one, or a callback of Python that takes its place.
FORMS: dict[str, Any] = {name: ctypes.CFUNCTYPE(c_int, *kinds) for name, kinds in _SIGNATURES.items()}

OUT_OF_MEMORY, NO_DEVICE, STUB_LIBRARY, MISMATCH = 2, 100, 34, 803
# After these no call of the process succeeds any more.
LASTING = {214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719}
# What the driver says to machine code that is damaged, for another card, or of compilers newer than the driver.
_NOT_FOR_THIS_DRIVER = {200, 209, 218, 222}
# cuLibraryLoadData and its like, which load a kernel without a context, came with CUDA 12.0.
OLDEST_DRIVER = 12000
# The oldest for which the compilers of CUDA 13 write machine code.
OLDEST_CARD = (7, 5)

_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _PROCESSORS = 75, 76, 16
_NON_BLOCKING_STREAM, _EVENT_WITHOUT_TIME, _PORTABLE = 1, 2, 1

_GET_DRIVER = "install NVIDIA's driver (https://www.nvidia.com/drivers); `nvidia-smi` must list a card"
_CPU = "or use the CPU"


# The driver -----------------------------------------------------------------------------------------------------------


class Driver:
    """Functions of the driver by name, out of a library: the driver itself, or an object that has them as attributes."""

    def __init__(self, library: Any, name: str = "the CUDA driver") -> None:
        self._library, self.name = library, name
        self._functions: dict[str, Any] = {}
        self.version = 0  # of CUDA, as 12040 for 12.4

    def function(self, name: str) -> Any:
        """Return a function as a ctypes function."""
        found = self._functions.get(name)
        if found is None:
            try:
                found = getattr(self._library, name)
            except AttributeError:
                text = f"{self.name} has no function {name}"
                raise DeviceError(message(text, cure=f"{_GET_DRIVER}, {_CPU}")) from None
            found.argtypes, found.restype = _SIGNATURES[name], c_int
            self._functions[name] = found
        return found

    def address(self, name: str) -> int:
        """Return the address of a function, for compiled code."""
        return int(ctypes.cast(self.function(name), c_void_p).value or 0)

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function; return CUDA's code, 0 where it succeeded."""
        return int(self.function(name)(*arguments))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; raise DeviceError where it fails."""
        code = self.status(name, *arguments)
        if code:
            raise DeviceError(self.text(f"{name} failed", code))

    def error(self, code: int) -> str:
        """Return the name of an error and what CUDA says about it."""
        texts = []
        for function in ("cuGetErrorName", "cuGetErrorString"):
            found = c_char_p()
            known = self.status(function, code, ctypes.byref(found)) == 0 and found.value
            texts.append(found.value.decode(errors="replace") if known and found.value else "")
        return ", ".join(filter(None, texts)) or f"error {code}, which this driver does not know"

    def text(self, what: str, code: int) -> str:
        """Return the message of an error."""
        cure = ""
        if code in LASTING:
            cure = (
                "an earlier kernel failed, and the card can no more be used by this process: start it again; "
                "with AUTOBATCH_CHECK=1 the error names the kernel"
            )
        return message(f"{what}: {self.error(code)}", cure=cure)


def _names() -> list[str]:
    """Return the names under which the driver may be found."""
    if sys.platform == "win32":
        return ["nvcuda.dll"]
    return ["libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1"]


def find() -> Driver:
    """Return the driver of this machine.

    Raises
    ------
    DeviceError : there is none.
    """
    names = _names()
    for name in names:
        with contextlib.suppress(OSError):
            return Driver(ctypes.CDLL(name))
    raise DeviceError(
        message(
            f"device 'cuda' needs NVIDIA's driver, and {names[0]} is not on this machine",
            cure=f"{_GET_DRIVER}; in a container, start it with access to the card (docker run --gpus all ...); {_CPU}",
        )
    )


def _started(driver: Driver) -> int:
    """Start the driver; return how many cards there are.

    Raises
    ------
    DeviceError : there is none, or the driver is too old.
    """
    code = driver.status("cuInit", 0)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = f"; CUDA_VISIBLE_DEVICES is {hidden!r}, which may hide it" if hidden is not None else ""
    count, version = c_int(), c_int()
    if code == 0:
        driver.call("cuDeviceGetCount", ctypes.byref(count))
        driver.call("cuDriverGetVersion", ctypes.byref(version))
        driver.version = version.value
    if code == NO_DEVICE or (code == 0 and count.value == 0):
        raise DeviceError(message(f"the CUDA driver is there, but no card that it can use{seen}", cure=f"`nvidia-smi`, {_CPU}"))
    if code == STUB_LIBRARY:
        text = "libcuda is the stub of a toolkit, which is there to link programs and does nothing"
        raise DeviceError(message(text, cure=f"take its folder out of LD_LIBRARY_PATH; {_GET_DRIVER}"))
    if code == MISMATCH:
        text = "libcuda is of another version than the driver in the kernel of the system"
        raise DeviceError(message(text, cure=f"restart the machine after an update of the driver, {_CPU}"))
    if code:
        raise DeviceError(message(f"cuInit failed: {driver.error(code)}", cure=f"{_GET_DRIVER}, {_CPU}"))
    if driver.version < OLDEST_DRIVER:
        raise DeviceError(
            message(
                "the CUDA driver is too old: it cannot load kernels without a toolkit of its own",
                f"CUDA {_version(driver.version)}",
                f"CUDA {_version(OLDEST_DRIVER)} or newer (driver 525 or newer)",
                f"{_GET_DRIVER}; {_CPU}",
            )
        )
    return count.value


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


# The card -------------------------------------------------------------------------------------------------------------


class Device:
    """One card: its context, its stream, all memory that is held on it.

    Attributes
    ----------
    name, capability, processors : what it is called, its compute capability as (9, 0), how many multiprocessors it has.
    stream : all copies and launches of the process go into this one, in their order.
    compiler : what makes machine code, if not `machine_code` (tests): (function, dtype, capability) -> (entry, code).
    lost : why it can no more be used; "" while it can.
    """

    def __init__(self, driver: Driver, number: int = 0, compiler: Callable[..., tuple[str, bytes]] | None = None) -> None:
        count = _started(driver)
        if not 0 <= number < count:
            raise DeviceError(
                message(f"there is no card {number}", expected=f"0 to {count - 1}", cure="`nvidia-smi` lists them")
            )
        self.driver, self.number, self.compiler, self.lost = driver, number, compiler, ""
        self._thread = threading.local()
        self._held: dict[int, tuple[int, str]] = {}
        self._pinned: dict[int, tuple[int, str]] = {}
        self._events: set[int] = set()
        self._libraries: list[int] = []
        self.kept: dict[Any, Any] = {}  # what others keep for as long as the device is there; closed, if it has `close`
        handle, name, value = c_int(), ctypes.create_string_buffer(256), c_int()
        driver.call("cuDeviceGet", ctypes.byref(handle), number)
        driver.call("cuDeviceGetName", name, len(name), handle.value)
        self.name = name.value.decode(errors="replace")
        asked = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _PROCESSORS):
            driver.call("cuDeviceGetAttribute", ctypes.byref(value), attribute, handle.value)
            asked.append(value.value)
        self.capability, self.processors = (asked[0], asked[1]), asked[2]
        if self.capability < OLDEST_CARD:
            got, oldest = (".".join(map(str, c)) for c in (self.capability, OLDEST_CARD))
            raise DeviceError(message(f"{self.name} is too old", f"compute capability {got}", f"{oldest} or newer", _CPU))
        context, stream = c_void_p(), c_void_p()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle.value)
        self._handle, self._context = handle.value, context.value
        try:
            self.call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING_STREAM)
        except BaseException:
            driver.status("cuDevicePrimaryCtxRelease_v2", self._handle)
            raise
        self.stream = stream.value or 0

    def __repr__(self) -> str:
        return f"<card {self.number}: {self.name}>"

    # Calls

    def enter(self) -> None:
        """Make the card that of this thread, once a thread; raise DeviceError if it is lost."""
        if self.lost:
            raise DeviceError(self.lost)
        if not getattr(self._thread, "entered", False):
            self.driver.call("cuCtxSetCurrent", self._context)
            self._thread.entered = True

    def status(self, name: str, *arguments: Any) -> int:
        """Call a function of the driver with this card; return CUDA's code."""
        self.enter()
        return self.driver.status(name, *arguments)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver with this card; raise DeviceError where it fails."""
        code = self.status(name, *arguments)
        if code:
            raise self.failure(f"{name} failed", code)

    def failure(self, what: str, code: int) -> DeviceError:
        """Return the error for a code of CUDA; after some of them the card is lost."""
        text = self.driver.text(what, code)
        if code in LASTING:
            self.lost = text
        return DeviceError(text)

    def synchronize(self) -> None:
        """Wait until everything is done that was asked for; an error of a kernel comes up here."""
        self.call("cuStreamSynchronize", self.stream)

    # Memory

    def allocate(self, size: int, purpose: str) -> int:
        """Return the address of `size` bytes of the card.

        Raises
        ------
        DeviceMemoryError : there is no room for them.
        """
        address = c_uint64()
        code = self.status("cuMemAlloc_v2", ctypes.byref(address), size)
        if code == OUT_OF_MEMORY:
            raise DeviceMemoryError(self._no_room(size, purpose))
        if code:
            raise self.failure(f"cuMemAlloc_v2 of {_bytes(size)} failed", code)
        self._held[address.value] = size, purpose
        return address.value

    def allocate_pinned(self, size: int, purpose: str) -> int:
        """Return the address of `size` bytes of the host from which the card copies by itself."""
        address = c_void_p()
        code = self.status("cuMemHostAlloc", ctypes.byref(address), size, _PORTABLE)
        if code == OUT_OF_MEMORY:
            text = f"the system has no room for {_bytes(size)} of page-locked memory ({purpose})"
            raise DeviceMemoryError(message(text, f"held by this process: {_by_purpose(self._pinned)}"))
        if code:
            raise self.failure(f"cuMemHostAlloc of {_bytes(size)} failed", code)
        self._pinned[address.value or 0] = size, purpose
        return address.value or 0

    def free(self, address: int) -> None:
        """Give memory back. For finalisers: at any time, in any thread, without an error."""
        if self._held.pop(address, None) is not None:
            self._quietly("cuMemFree_v2", address)
        elif self._pinned.pop(address, None) is not None:
            self._quietly("cuMemFreeHost", address)

    def _quietly(self, name: str, *arguments: Any) -> None:
        """Call a function where an error cannot be told to anybody; leave it where the process ends or the card is lost."""
        if self.lost or sys.is_finalizing():
            return
        with contextlib.suppress(DeviceError):
            self.status(name, *arguments)

    def held(self) -> dict[str, int]:
        """Return the bytes held on the card, by purpose."""
        found: dict[str, int] = {}
        for size, purpose in list(self._held.values()):
            found[purpose] = found.get(purpose, 0) + size
        return found

    def room(self) -> tuple[int, int]:
        """Return how many bytes of the card are free, and how many it has."""
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def _no_room(self, size: int, purpose: str) -> str:
        try:
            free, total = self.room()
            of_it = f"{_bytes(free)} free of {_bytes(total)}"
        except DeviceError:
            of_it = "how much is free the driver does not tell"
        return message(
            f"{self.name} has no room for {_bytes(size)} ({purpose})",
            f"{of_it}; held by this process: {_by_purpose(self._held)}",
            cure="smaller minibatches; `with ab.inference():` where no gradient is needed; `nvidia-smi` lists other programs",
        )

    # Events and functions

    def event(self) -> int:
        """Return a new event."""
        handle = c_void_p()
        self.call("cuEventCreate", ctypes.byref(handle), _EVENT_WITHOUT_TIME)
        self._events.add(handle.value or 0)
        return handle.value or 0

    def drop_event(self, event: int, wait: bool = False) -> None:
        """Destroy an event, or `wait` for it before. For finalisers."""
        if event in self._events:
            self._events.discard(event)
            if wait:
                self._quietly("cuEventSynchronize", event)
            self._quietly("cuEventDestroy_v2", event)

    def load(self, code: bytes, entry: str, what: str) -> int:
        """Load machine code; return the handle of its kernel.

        Parameters
        ----------
        code : a cubin.
        entry : name of the kernel in it.
        what : what errors call it.
        """
        library, kernel, function = c_void_p(), c_void_p(), c_void_p()
        status = self.status("cuLibraryLoadData", ctypes.byref(library), code, None, None, 0, None, None, 0)
        if status in _NOT_FOR_THIS_DRIVER:
            problem = f"cuLibraryLoadData of {what} failed: {self.driver.error(status)}"
            got = f"machine code for {self.name}, and a driver of CUDA {_version(self.driver.version)}"
            cure = 'a newer driver, or compilers as old as it is (pip install "numba-cuda[cu12]")'
            raise DeviceError(message(problem, got, cure=cure))
        if status:
            raise self.failure(f"cuLibraryLoadData of {what} failed", status)
        for name, arguments in (
            ("cuLibraryGetKernel", (ctypes.byref(kernel), library, entry.encode())),
            ("cuKernelGetFunction", (ctypes.byref(function), kernel)),
        ):
            status = self.status(name, *arguments)
            if status:
                self._quietly("cuLibraryUnload", library)
                raise self.failure(f"{name} of {what} failed", status)
        self._libraries.append(library.value or 0)
        return function.value or 0

    # The end

    def leave(self, why: str) -> None:
        """Touch the card no more: the process ends, or is the child of one that has it."""
        self.lost = self.lost or why

    def close(self) -> None:
        """Give everything back."""
        self._quietly("cuStreamSynchronize", self.stream)
        for thing in list(self.kept.values()):
            if hasattr(thing, "close"):
                thing.close()
        self.kept.clear()
        for function, handles in (("cuEventDestroy_v2", self._events), ("cuLibraryUnload", self._libraries)):
            for handle in list(handles):
                self._quietly(function, handle)
        for address in [*self._held, *self._pinned]:
            self.free(address)
        self._quietly("cuStreamDestroy_v2", self.stream)
        self._events.clear()
        self._libraries.clear()
        self._quietly("cuDevicePrimaryCtxRelease_v2", self._handle)
        self.leave("the card was given back")


def _bytes(n: int) -> str:
    """A number of bytes for a human, and exactly."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= size:
            return f"{n:,} bytes ({n / size:.1f} {unit})"
    return f"{n} bytes"


def _by_purpose(held: dict[int, tuple[int, str]]) -> str:
    sums: dict[str, int] = {}
    for size, purpose in list(held.values()):
        sums[purpose] = sums.get(purpose, 0) + size
    return ", ".join(f"{purpose} {_bytes(n)}" for purpose, n in sorted(sums.items())) or "nothing"


class _State:
    """The card of the process."""

    device: Device | None = None
    library: Any = None  # what takes the place of the driver, in tests
    compiler: Any = None
    lock = threading.RLock()
    parent = False  # whether this process is the child of one that had a card
    watched = False


_FORKED = message(
    "this process was forked from one that uses the card, which cannot be shared in this way",
    cure="multiprocessing.get_context('spawn'), or touch the card in the children only",
)


def _after_fork() -> None:
    if _State.device is not None:
        _State.device.leave(_FORKED)
        _State.device, _State.parent = None, True


def _at_exit() -> None:
    if _State.device is not None:
        _State.device.leave("the process ends")


def device(number: int | None = None) -> Device:
    """Return the card of this process, opened now if it is not.

    Parameters
    ----------
    number : which one, of those that CUDA_VISIBLE_DEVICES leaves. None: the one that is open, else the first.

    Raises
    ------
    DeviceError : no driver, no card, one that is too old; another card is open.
    """
    found = _State.device
    if found is not None and (number is None or number == found.number):
        return found
    with _State.lock:
        if _State.device is not None:
            if number is None or number == _State.device.number:
                return _State.device
            raise DeviceError(
                message(
                    f"a process uses one card, and this one uses {_State.device!r}", f"card {number}", cure="another process"
                )
            )
        if _State.parent:
            raise DeviceError(_FORKED)
        driver = Driver(_State.library, "the fake driver") if _State.library is not None else find()
        found = Device(driver, number or 0, _State.compiler)
        if not _State.watched:
            _State.watched = True
            atexit.register(_at_exit)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=_after_fork)
        _State.device = found
        return found


def opened() -> Device | None:
    """Return the card of this process if it is open."""
    return _State.device


def give_back() -> None:
    """Give back the card and all that is on it; `device()` opens it again."""
    with _State.lock:
        if _State.device is not None:
            _State.device.close()
            _State.device = None


@contextlib.contextmanager
def use(library: Any, compiler: Callable[..., tuple[str, bytes]] | None = None) -> Iterator[None]:
    """Put an object with the functions of `FORMS` in the place of the driver, for tests; with nothing of any card before it."""
    with _State.lock:
        before = _State.device, _State.library, _State.compiler
        _State.device, _State.library, _State.compiler = None, library, compiler
    try:
        yield
    finally:
        give_back()
        _State.device, _State.library, _State.compiler = before

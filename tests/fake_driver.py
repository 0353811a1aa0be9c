"""A driver of CUDA in Python: the memory of its card is NumPy arrays, its kernels run in the simulator.

    with fake_card() as card:           in the place of libcuda, with the table of `autobatch.cuda.driver.FORMS`
        ...                             whatever runs on a card
        card.calls                      what was called, in order
        card.fail("cuMemAlloc_v2", 2)   the next call of it returns an error

    with simulated_card():              the same, and programs inside run there

    with fake_card(execute=False) as card:      launches are counted only: numbers that kernels would write stay as they are

Work of a stream is done as late as is allowed: when somebody waits for it. So memory of the host that is changed before its
copy is done shows, as it would on a card, and so does a result that is read too early. New memory of the card is NaN.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from simulator import Simulator

import autobatch as ab
from autobatch.cuda import cublas, driver

NAMES = {
    1: ("CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    2: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    100: ("CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"),
    200: ("CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"),
    201: ("CUDA_ERROR_INVALID_CONTEXT", "invalid device context"),
    400: ("CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"),
    700: ("CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"),
    701: ("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"),
    719: ("CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"),
}
# These tell about the machine, and take nothing that has to be given back.
QUERIES = {"cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"}
QUERIES |= {"cuGetErrorName", "cuGetErrorString", "cuMemGetInfo_v2"}


class FakeDriver:
    """The functions of `FORMS` as attributes.

    Attributes
    ----------
    calls : name and arguments of each call that was not a query.
    done : what the card did, in order: "copy", "launch NAME", ...
    alive : handles and addresses that were handed out and not given back, by kind.
    problem : the first thing that a program did wrong, see `check`.
    """

    def __init__(self, room: int = 1 << 30, cards: int = 1, version: int = 13000, capability: tuple[int, int] = (9, 0),
                 execute: bool = True) -> None:  # fmt: skip
        self.execute = execute
        self.room, self.cards, self.version, self.capability = room, cards, version, capability
        self.sim = Simulator()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.done: list[str] = []
        self.count: Counter[str] = Counter()
        self.alive: dict[str, dict[int, Any]] = {
            kind: {} for kind in ("context", "memory", "pinned", "stream", "event", "library")
        }
        self.problem: BaseException | None = None
        self.lasting = 0
        self.kernels: dict[int, tuple[Any, str]] = {}  # by the number in the cubin
        self.compiled: Counter[tuple[str, str]] = Counter()
        self._failures: dict[tuple[str, int], int] = {}
        self._late: dict[str, int] = {}
        self._queue: list[tuple[str, Callable[[], None], tuple[int, int]]] = []  # what, how, host memory it reads
        self._handle = 0x1000
        self._entered: set[int] = set()
        self._texts: list[ctypes.c_char_p] = []
        self.others: list[int] = []  # streams that are not ours, and were waited for
        self.lock = threading.RLock()
        for name, form in driver.FORMS.items():
            setattr(self, name, form(self._checked(name)))

    def fail(self, name: str, code: int, nth: int = 1) -> None:
        """Let the n-th call of a function from now on return an error."""
        self._failures[name, self.count[name] + nth] = code

    def fail_late(self, work: str, code: int) -> None:
        """Let the next piece of work of this name ("launch NAME", "copy") fail when it is done; all that follows fails too."""
        self._late[work] = code

    def check(self) -> None:
        """Raise what went wrong inside of a call."""
        if self.problem is not None:
            problem, self.problem = self.problem, None
            raise problem

    def compile(self, kernel: Any, dtype: str, capability: tuple[Any, ...]) -> tuple[str, bytes]:
        """Take the place of the compiler: the cubin is the number of the kernel."""
        self.compiled[kernel.__qualname__, dtype] += 1
        number = len(self.kernels) + 1
        self.kernels[number] = kernel, dtype
        return kernel.__qualname__, f"cubin {number}".encode()

    def launches(self) -> list[str]:
        """Return the names of the kernels that were launched, in order."""
        self._run()
        return [what.removeprefix("launch ") for what in self.done if what.startswith("launch ")]

    def transfers(self) -> int:
        """Return how many copies were asked for."""
        return sum(name.startswith("cuMemcpy") for name, _ in self.calls)

    # Calls

    def _checked(self, name: str) -> Callable[..., int]:
        own = getattr(self, f"_{name}")

        def called(*arguments: Any) -> int:
            with self.lock:
                self.count[name] += 1
                if name not in QUERIES:
                    self.calls.append((name, arguments))
                code = self._failures.pop((name, self.count[name]), 0)
                if code:
                    return code
                if self.lasting and name not in QUERIES:
                    return self.lasting
                if name.startswith(("cuMem", "cuStream", "cuEvent", "cuLaunch", "cuLibrary")):
                    if threading.get_ident() not in self._entered:
                        return 201
                try:
                    return own(*arguments) or 0
                except BaseException as error:
                    self.problem = self.problem or error
                    return 719

        return called

    def _new(self, kind: str, value: Any = None) -> int:
        self._handle += 16
        self.alive[kind][self._handle] = value
        return self._handle

    def _later(self, what: str, work: Callable[[], None], host: tuple[int, int] = (0, 0)) -> None:
        self._queue.append((what, work, host))

    def _run(self, upto: int | None = None) -> int:
        """Do the first pieces of work that were asked for, or all."""
        count = len(self._queue) if upto is None else upto
        todo, self._queue = self._queue[:count], self._queue[count:]
        for what, work, _ in todo:
            if self.lasting:
                break
            self.lasting = self._late.pop(what, 0)
            if not self.lasting:
                self.done.append(what)
                if self.execute or not what.startswith("launch "):
                    work()
        return self.lasting

    # The machine

    def _cuInit(self, flags: int) -> int:
        return 100 if self.cards == 0 else 0

    def _cuDriverGetVersion(self, out: int) -> None:
        _put(out, ctypes.c_int, self.version)

    def _cuDeviceGetCount(self, out: int) -> None:
        _put(out, ctypes.c_int, self.cards)

    def _cuDeviceGet(self, out: int, number: int) -> int:
        _put(out, ctypes.c_int, number)
        return 0 if number < self.cards else 101

    def _cuDeviceGetName(self, out: int, size: int, number: int) -> None:
        ctypes.memmove(out, b"fake card\0", 10)

    def _cuDeviceGetAttribute(self, out: int, attribute: int, number: int) -> None:
        _put(out, ctypes.c_int, {75: self.capability[0], 76: self.capability[1], 16: 132}[attribute])

    def _cuDevicePrimaryCtxRetain(self, out: int, number: int) -> None:
        _put(out, ctypes.c_void_p, self._new("context"))

    def _cuDevicePrimaryCtxRelease_v2(self, number: int) -> None:
        self.alive["context"].popitem()

    def _cuCtxSetCurrent(self, context: int) -> int:
        if context not in self.alive["context"]:
            return 201
        self._entered.add(threading.get_ident())
        return 0

    def _text(self, code: int, out: int, which: int) -> int:
        if code not in NAMES:
            return 1
        self._texts.append(ctypes.c_char_p(NAMES[code][which].encode()))
        _put(out, ctypes.c_void_p, ctypes.cast(self._texts[-1], ctypes.c_void_p).value)
        return 0

    def _cuGetErrorName(self, code: int, out: int) -> int:
        return self._text(code, out, 0)

    def _cuGetErrorString(self, code: int, out: int) -> int:
        return self._text(code, out, 1)

    # Memory

    def _free_room(self) -> int:
        return self.room - sum(a.nbytes for a in self.alive["memory"].values())

    def _cuMemGetInfo_v2(self, free: int, total: int) -> None:
        _put(free, ctypes.c_size_t, self._free_room())
        _put(total, ctypes.c_size_t, self.room)

    def _cuMemAlloc_v2(self, out: int, size: int) -> int:
        if size > self._free_room():
            return 2
        array = np.full(size + 512, 0xFF, np.uint8)
        start = -array.ctypes.data % 512
        address = self.sim.add(array[start : start + size])
        self.alive["memory"][address] = array[start : start + size]
        _put(out, ctypes.c_uint64, address)
        return 0

    def _cuMemFree_v2(self, address: int) -> int:
        self._run()
        del self.alive["memory"][address]
        self.sim.remove(address)
        return self.lasting

    def _cuMemHostAlloc(self, out: int, size: int, flags: int) -> None:
        array = np.full(size, 0xFF, np.uint8)
        self.alive["pinned"][array.ctypes.data] = array
        _put(out, ctypes.c_void_p, array.ctypes.data)

    def _cuMemFreeHost(self, address: int) -> None:
        array = self.alive["pinned"].pop(address)
        for what, _, (start, end) in self._queue:
            assert end <= address or start >= address + array.nbytes, f"memory of the host is freed before a {what} from it"

    def _range(self, address: int, size: int) -> np.ndarray:
        span = self.sim.span(address)
        assert span is not None and address + size <= span.end, f"{size} bytes at {address:#x} are not those of the card"
        return span.memory[address - span.start : address - span.start + size]

    def _cuMemcpyHtoDAsync_v2(self, to: int, source: int, size: int, stream: int) -> None:
        target = self._range(to, size)
        self._later("copy", lambda: ctypes.memmove(target.ctypes.data, source, size) and None, (source, source + size))

    def _cuMemcpyDtoHAsync_v2(self, to: int, source: int, size: int, stream: int) -> None:
        found = self._range(source, size)
        self._later("read", lambda: ctypes.memmove(to, found.ctypes.data, size) and None)

    def _cuMemcpyDtoDAsync_v2(self, to: int, source: int, size: int, stream: int) -> None:
        target, found = self._range(to, size), self._range(source, size)
        self._later("copy on the card", lambda: ctypes.memmove(target.ctypes.data, found.ctypes.data, size) and None)

    def _cuMemsetD8Async(self, to: int, value: int, size: int, stream: int) -> None:
        target = self._range(to, size)
        self._later("fill", lambda: target.fill(value))

    # Streams and events

    def _cuStreamCreate(self, out: int, flags: int) -> None:
        assert flags == 1, "a stream that waits for stream 0"
        _put(out, ctypes.c_void_p, self._new("stream"))

    def _cuStreamSynchronize(self, stream: int) -> int:
        if stream in (1, 2):  # those of libraries that do not make their own
            self.others.append(stream)
            return self.lasting
        return self._run() if stream in self.alive["stream"] else 400

    def _cuStreamDestroy_v2(self, stream: int) -> None:
        del self.alive["stream"][stream]

    def _cuEventCreate(self, out: int, flags: int) -> None:
        _put(out, ctypes.c_void_p, self._new("event", 0))

    def _cuEventRecord(self, event: int, stream: int) -> None:
        self.alive["event"][event] = self.alive["event"].get(event, 0) + 1
        self._later(f"event {event} {self.alive['event'][event]}", lambda: None)

    def _cuEventSynchronize(self, event: int) -> int:
        last = f"event {event} {self.alive['event'][event]}"
        names = [what for what, _, _ in self._queue]
        return self._run(names.index(last) + 1) if last in names else 0

    def _cuEventDestroy_v2(self, event: int) -> None:
        del self.alive["event"][event]

    # Kernels

    def _cuLibraryLoadData(self, out: int, code: int, *rest: Any) -> int:
        text = ctypes.string_at(code)
        if not text.startswith(b"cubin "):
            return 200
        _put(out, ctypes.c_void_p, self._new("library", int(text[6:])))
        return 0

    def _cuLibraryGetKernel(self, out: int, library: int, name: bytes) -> int:
        number = self.alive["library"][library]
        _put(out, ctypes.c_void_p, number)
        return 0 if self.kernels[number][0].__qualname__.encode() == name else 500

    def _cuKernelGetFunction(self, out: int, kernel: int) -> None:
        _put(out, ctypes.c_void_p, kernel)

    def _cuLibraryUnload(self, library: int) -> None:
        del self.alive["library"][library]

    def _cuLaunchKernel(self, f: int, *rest: Any) -> int:
        *shape, shared, stream, parameters, extra = rest
        grid, threads = tuple(shape[:3]), tuple(shape[3:])
        assert stream in self.alive["stream"] and shared == 0 and not extra
        if f not in self.kernels:
            return 400
        small = all(1 <= g <= m for g, m in zip(grid, (2**31 - 1, 65535, 65535), strict=True))
        if not small or not 1 <= threads[0] * threads[1] * threads[2] <= 1024 or threads[2] != 1:
            return 1
        ins, scratch = (ctypes.c_int64.from_address(p).value for p in (ctypes.c_uint64 * 2).from_address(parameters))
        kernel, dtype = self.kernels[f]
        work = lambda: self.sim.launch(kernel, grid, threads[:2], ins, dtype, scratch)  # noqa: E731
        self._later(f"launch {kernel.__qualname__}", work)
        return 0


def _put(address: int, kind: Any, value: Any) -> None:
    kind.from_address(address).value = value


class FakeCublas:
    """The functions of `cublas.FORMS` as attributes: products by NumPy, on the memory of a fake card."""

    def __init__(self, card: FakeDriver) -> None:
        self.card, self.modes, self.streams = card, {}, {}
        self.products: list[tuple[int, ...]] = []  # handle, what is transposed, m, n, k, distances of columns, mode
        self.failures: dict[str, int] = {}
        card.alive["handle"] = {}
        for name, form in cublas.FORMS.items():
            setattr(self, name, form(self._checked(name)))

    def _checked(self, name: str) -> Callable[..., int]:
        kind = np.float32 if "Sgemm" in name else np.float64
        own = getattr(self, f"_{name}", lambda *arguments: self._gemm(kind, *arguments))

        def called(*arguments: Any) -> int:
            with self.card.lock:
                if name in self.failures:
                    return self.failures.pop(name)
                try:
                    return own(*arguments) or 0
                except BaseException as error:
                    self.card.problem = self.card.problem or error
                    return 14

        return called

    def _cublasCreate_v2(self, out: int) -> None:
        assert threading.get_ident() in self.card._entered
        _put(out, ctypes.c_void_p, self.card._new("handle"))

    def _cublasDestroy_v2(self, handle: int) -> None:
        self.card._run()
        del self.card.alive["handle"][handle]

    def _cublasSetStream_v2(self, handle: int, stream: int) -> None:
        assert stream in self.card.alive["stream"]
        self.streams[handle] = stream

    def _cublasSetMathMode(self, handle: int, mode: int) -> None:
        self.modes[handle] = mode

    def _matrix(self, kind: Any, address: int, rows: int, columns: int, distance: int) -> np.ndarray:
        """A column-major matrix as a view, of shape (rows, columns)."""
        size = np.dtype(kind).itemsize
        flat = self.card._range(address, ((columns - 1) * distance + rows) * size).view(kind)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), (size, distance * size))

    def _gemm(self, kind: Any, handle: int, ta: int, tb: int, m: int, n: int, k: int, one: int, a: int, lda: int, b: int,
              ldb: int, factor: int, c: int, ldc: int) -> int:  # fmt: skip
        assert handle in self.streams, "a product without a stream"
        one, factor = (np.frombuffer((ctypes.c_uint8 * 8).from_address(p), kind)[0] for p in (one, factor))
        if min(m, n, k) < 1 or lda < (k if ta else m) or ldb < (n if tb else k) or ldc < m:
            return 7
        left = self._matrix(kind, a, *((k, m) if ta else (m, k)), lda)
        right = self._matrix(kind, b, *((n, k) if tb else (k, n)), ldb)
        result = self._matrix(kind, c, m, n, ldc)
        self.products.append((handle, ta, tb, m, n, k, lda, ldb, ldc, self.modes[handle]))

        def work() -> None:
            old = result * factor if factor else 0
            result[:] = one * (left.T if ta else left) @ (right.T if tb else right) + old

        self.card._later("product", work)
        return 0


@contextlib.contextmanager
def fake_card(**settings: Any) -> Iterator[FakeDriver]:
    """Put a fake driver in the place of libcuda. At the end everything must have been given back, and nothing done wrong."""
    fake = FakeDriver(**settings)
    with driver.use(fake, fake.compile):
        yield fake
    fake.check()
    if not fake.lasting:
        assert not any(fake.alive.values()), f"not given back: { {k: len(v) for k, v in fake.alive.items() if v} }"


@contextlib.contextmanager
def simulated_card() -> Iterator[FakeDriver]:
    """Run the programs inside on a fake card."""
    with fake_card() as fake:
        before = ab.configured()["device"]
        ab.configure(device="cuda")
        ab.renew_cg()
        try:
            yield fake
        finally:
            ab.configure(device=before)
            ab.renew_cg()
        fake.check()
        assert fake.launches()

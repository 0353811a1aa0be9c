"""Threads that help to run tables on the processor, and how many there are.

As many threads take part as the BLAS may use, which is what `configure(threads=...)`, threadpoolctl, and OPENBLAS_NUM_THREADS
and its like say; by default one a core, or as many as a container's share of time is worth. While they do, the BLAS itself uses
one thread for each of them: large products are divided on the same board as everything else (`kernels/_threads.py`), and no two
kinds of threads wait for each other's cores.

Helpers are made when the first table runs that is worth it, sleep between tables, and know nothing of Python. To wake one takes
the thread that does it 70 µs, so small tables run without.

`run_table` runs a table now. What a program need not wait for goes into the queue of the board, see `background.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import pathlib
import sys
import threading
from typing import Any

import numpy as np

from autobatch.kernels import _blas, _threads
from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import DTYPES, LENGTH, SIZES, SLOTS
from autobatch.kernels._vm import run
from autobatch.memory import address_of

PIECE = 2_000  # units of work (`graph.WORK`) of the smallest piece of an instruction: about 1.5 µs
WORTH = 600_000  # units of a table from which on helpers are woken: about 0.4 ms
LARGE = 400_000  # multiplications of a product that is divided by itself


@functools.cache
def _libraries() -> list[Any]:
    """Return the BLAS libraries that products go to, as threadpoolctl knows them."""
    from threadpoolctl import ThreadpoolController

    _blas.ready()
    found = [c for c in ThreadpoolController().lib_controllers if c.user_api == "blas"]
    return [c for c in found if "scipy.libs" in c.filepath or os.sep + "scipy" + os.sep in c.filepath] or found


@functools.cache
def cores() -> int:
    """Return how many cores this process may use: those it may run on, or what its container's time is worth, if less."""
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([able, *_quota(pathlib.Path("/sys/fs/cgroup"))]))


def _quota(folder: pathlib.Path) -> list[int]:
    """Return how many cores the time is worth that Linux gives to the processes of a control group; nothing without a limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, IndexError, ZeroDivisionError):
            quota, period = " ".join((folder / name).read_text() for name in names).split()[:2]
            return [math.ceil(int(quota) / int(period))] if quota not in ("max", "-1") else []
    return []


def count() -> int:
    """Return how many threads take part in running a table."""
    allowed = [library.get_num_threads() or 1 for library in _libraries()]
    if not _Process.asked:
        allowed.append(cores())
    elif not allowed:  # a BLAS that threadpoolctl does not know
        allowed.append(_Process.asked)
    return min([*allowed, _threads.MOST_THREADS])


def set_count(threads: int) -> None:
    """Let as many threads take part, and every BLAS of the process use as many. Raises ArgumentError."""
    from threadpoolctl import threadpool_limits

    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ArgumentError(f"threads is {threads!r}\n  expected  a whole number from 1 on")

    _blas.ready()
    threadpool_limits(limits=threads, user_api="blas")
    _Process.asked = threads


class _Board:
    """The board of the process, its helpers, and the scratch that tells kernels where the board is."""

    def __init__(self) -> None:
        self.busy = threading.Lock()  # by the thread whose table runs
        self.helpers = 0
        self._memory = np.zeros(_threads.BOARD_WORDS + 8, np.int64)
        start = -(address_of(self._memory) // 8) % 8  # a cache line has eight words
        self.words = self._memory[start : start + _threads.BOARD_WORDS]
        self.words[_threads.JOB] = _threads.CLOSED
        self.words[_threads.ACQUIRE] = _address(ctypes.pythonapi.PyThread_acquire_lock)
        self.words[_threads.RELEASE] = _address(ctypes.pythonapi.PyThread_release_lock)
        self.words[_threads.YIELD] = _address(_yield())
        self.words[_threads.SLEEP] = _address(_sleep())
        self.words[[_threads.SET_BLAS, _threads.GET_BLAS]] = _setter_and_getter()
        self.words[_blas.PUT_UP] = _threads.product_together.address("float32")
        self.words[_blas.PRODUCT + LENGTH] = SLOTS + 9
        self.words[_blas.LARGE] = LARGE
        self.leaf, self.leader = {}, {}
        self._products: dict[str, int] = {}
        for dtype in DTYPES:
            self.leaf[dtype], self.leader[dtype] = np.zeros(8, dtype), np.zeros(8, dtype)
            self.leaf[dtype][0] = self.leader[dtype][0] = 1
            self.leader[dtype].view(np.int64)[_blas.BOARD // 8] = address_of(self.words)

    def hire(self, helpers: int) -> None:
        """See to it that there are so many helpers, or as many as the system has threads for."""
        allocate = _of_python("PyThread_allocate_lock", ctypes.c_void_p)
        acquire = _of_python("PyThread_acquire_lock", ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
        start = _of_python("PyThread_start_new_thread", ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p)
        code = _threads.help_out.address
        if not self.helpers:  # helpers outlive Python: what they run and look at is never given back
            for kept in (self._memory, _threads.help_out.entry):
                _of_python("Py_IncRef", None, ctypes.py_object)(kept)
        while self.helpers < helpers:
            h, lock = self.helpers + 1, allocate()
            if not lock:
                return
            acquire(lock, 1)
            own = self.words[_threads.HELPERS + 8 * h :]
            own[[_threads.LOCK, _threads.BOARD_AT, _threads.NUMBER]] = lock, address_of(self.words), h
            if start(code, address_of(own)) == _NO_THREAD:
                return
            self.helpers = h

    def _learn(self, dtype: str) -> None:
        """Compile what products need, and form one: Numba asks Python for a function of the BLAS when it is first called."""
        product, one, result = np.zeros(SLOTS + 9, np.int64), address_of(self.leaf[dtype]), np.zeros(1, dtype)
        product[SIZES] = 1
        product[SLOTS:] = one, 1, one, 1, address_of(result), 1, 1, 1, 1
        address = _threads.product_piece.address(dtype)
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(address)(address_of(product), one)
        self._products[dtype] = address

    def write(self, at: int, table: int, words: int, dtype: str, threads: int, blas: int) -> None:
        """Write what there is to know of a table to run into the words from `at` on; see to it that there are helpers."""
        if self.helpers < threads - 1:
            self.hire(threads - 1)
        if dtype not in self._products:
            self._learn(dtype)
        # in the order of the names in `_threads.py`
        self.words[at : at + 7] = (
            *(table, words, address_of(self.leader[dtype]), min(threads, self.helpers + 1)),
            *(address_of(self.leaf[dtype]), self._products[dtype], blas),
        )

    def run(self, table: int, words: int, dtype: str, threads: int) -> None:
        """Run a table with helpers."""
        self.write(_threads.NOW, table, words, dtype, threads, of_blas())
        if self.words[_threads.SET_BLAS]:
            _threads.run_together(self.words)
            return
        before = [(library, library.get_num_threads()) for library in _libraries()]
        for library, _ in before:
            library.set_num_threads(1)
        try:
            _threads.run_together(self.words)
        finally:
            for library, number in before:
                library.set_num_threads(number)

    def put_in_queue(self, table: int, words: int, dtype: str, threads: int, blas: int) -> None:
        """Have a table run by helpers, behind those that are in the queue already, while the caller goes on."""
        _threads.wait_for_queue(self.words, _threads.ROOM - 1)
        at = _threads.ORDERS + 8 * (int(self.words[_threads.QUEUED]) % _threads.ROOM)
        self.write(at, table, words, dtype, threads, blas)
        _threads.put_in_queue(self.words)

    def finished(self) -> bool:
        """Whether the queue is empty."""
        return bool(self.words[_threads.FINISHED] == self.words[_threads.QUEUED])

    def finish(self) -> None:
        """Run what is left in the queue, together with the helpers."""
        _threads.wait_for_queue(self.words, 0)


def of_blas() -> int:
    """Return how many threads the BLAS may use now; 1 if nobody knows."""
    return max([library.get_num_threads() or 1 for library in _libraries()], default=1)


def _setter_and_getter() -> tuple[int, int]:
    """Return the addresses of functions that set and tell how many threads the BLAS uses; zeros if there are none to call."""
    libraries = _libraries()
    if len(libraries) == 1 and getattr(libraries[0], "threading_layer", "") in ("pthreads", "disabled"):
        for prefix in ("scipy_", ""):
            for suffix in ("", "64_", "_64"):
                names = [f"{prefix}openblas_{what}_num_threads{suffix}" for what in ("set", "get")]
                with contextlib.suppress(AttributeError):
                    setter, getter = (_address(getattr(libraries[0].dynlib, name)) for name in names)
                    return setter, getter
    return 0, 0


def can_be_told(board: _Board) -> bool:
    """Whether threads that know nothing of Python can tell the BLAS how many threads to use, or there is nothing to tell it."""
    return bool(board.words[_threads.SET_BLAS]) or not _libraries()


_NO_THREAD = ctypes.c_ulong(-1).value


def _of_python(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of Python's C API; a new object each time, so nobody else sees what it is told about its types."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _yield() -> Any:
    if sys.platform == "win32":
        return ctypes.WinDLL("kernel32").SwitchToThread
    return ctypes.CDLL(None).sched_yield


def _sleep() -> Any:
    if sys.platform == "win32":
        return ctypes.WinDLL("kernel32").Sleep
    return ctypes.CDLL(None).usleep


class _Process:
    """What there is once in a process; a child of a fork has no helpers and makes its own."""

    board: _Board | None = None
    asked = 0  # how many threads the program said there are to be
    making = threading.Lock()


def _forget() -> None:
    _Process.board, _Process.making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def board() -> _Board:
    """Return the board, made now if there is none."""
    if _Process.board is not None:
        return _Process.board
    with _Process.making:
        if _Process.board is None:
            _Process.board = _Board()
    return _Process.board


def run_table(table: int, words: int, scratch: int, dtype: str, work: int) -> None:
    """Run a table, with helpers if it is worth it and they are free.

    Parameters
    ----------
    table, words, scratch : as of `kernels._vm.run`.
    dtype : of the run.
    work : how much of the table can be divided, in units of `graph.WORK`.
    """
    if work >= WORTH:
        threads = count()
        if threads > 1:
            everyone = board()
            if everyone.busy.acquire(blocking=False):
                try:
                    everyone.run(table, words, dtype, threads)
                finally:
                    everyone.busy.release()
                return
    run(table, words, scratch)

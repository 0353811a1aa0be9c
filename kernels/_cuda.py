"""The only place that imports numba-cuda: compiles kernels to machine code for a card, with or without one at hand.

    compile_kernel(function, "float32", (9, 0))        ->  Machine code: PTX, the cubin, its entry, what it needs

numba-cuda is the compiler and nothing else: loading, memory and launches are our own (`autobatch.cuda`), because a launch
through its dispatcher costs 20 to 40 µs. A kernel is `void (const int64 *ins, T *scratch)`, as on a processor (`_jit.py`).

What is pinned, and why: numba-cuda gets only fixes since June 2026, and three private things of it are used here: who asks
which card there is while a device function is typed, `np.row_stack`, which NumPy 2.5 no longer has, and the order of the
parameters of an entry.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import types as python_types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from autobatch.kernels._device import takes_z
from autobatch.kernels._errors import DeviceError

_WANTED = 'pip install "autobatch-numba[cuda]"'


@functools.cache
def numba_cuda() -> Any:
    """Return the module `numba.cuda` of numba-cuda; raise DeviceError if it is not there."""
    if not hasattr(np, "row_stack"):  # numba-cuda 0.30 asks for it; NumPy 2.5 took it away
        np.row_stack = np.vstack  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import numba_cuda  # noqa: F401  # is it this one, and not the old one inside Numba?
            from numba import cuda
            from numba.cuda import dispatcher  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"device 'cuda' needs the compiler numba-cuda, which is not installed\n  try       {_WANTED}"
        ) from error
    return cuda


@contextlib.contextmanager
def _compiling_for(cc: tuple[int, ...]) -> Iterator[None]:
    """Tell numba-cuda which card to compile for: it would ask the driver, even where there is none."""
    numba_cuda()
    from numba.cuda import dispatcher

    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: python_types.SimpleNamespace(compute_capability=cc[:2])
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


@dataclasses.dataclass(frozen=True)
class MachineCode:
    """A kernel for one kind of card."""

    entry: str
    ptx: str
    cubin: bytes
    registers: int
    shared: int  # bytes of shared memory
    local: int  # bytes of local memory of a thread
    spills: int  # bytes of registers that did not fit


def compile_ptx(function: Callable[..., Any], dtype: str, cc: tuple[int, ...]) -> str:
    """Return the PTX of a kernel (of this target, see `target`)."""
    cuda = numba_cuda()
    types = cuda.types
    signature = types.void(types.CPointer(types.int64), types.CPointer(getattr(types, dtype)))
    with _compiling_for(cc), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ptx, _ = cuda.compile_ptx(function, signature, cc=cc)
    return str(ptx)


def link(ptx: str, cc: tuple[int, ...]) -> MachineCode:
    """Return machine code for PTX. The linker is that of the toolkit which wrote the PTX: a driver may be older than both."""
    numba_cuda()
    from cuda.bindings import nvjitlink

    options = [f"-arch=sm_{''.join(map(str, cc))}", "-verbose"]
    handle = nvjitlink.create(len(options), options)
    try:
        text = ptx.encode()
        try:
            nvjitlink.add_data(handle, nvjitlink.InputType.PTX, text, len(text), "kernel")
            nvjitlink.complete(handle)
        except nvjitlink.nvJitLinkError as error:
            log = bytearray(nvjitlink.get_error_log_size(handle))
            nvjitlink.get_error_log(handle, log)
            raise DeviceError(f"cannot link a kernel for {options[0][6:]}: {log.decode().strip()}") from error
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
        log = bytearray(nvjitlink.get_info_log_size(handle))
        nvjitlink.get_info_log(handle, log)
    finally:
        nvjitlink.destroy(handle)
    told = log.decode().strip("\0")
    entry = re.search(r"\.visible \.entry (\S+?)\(", ptx)
    assert entry is not None

    def number(pattern: str) -> int:
        return max((int(n) for n in re.findall(pattern, told)), default=0)

    return MachineCode(
        entry.group(1),
        ptx,
        bytes(cubin),
        number(r"used (\d+) registers"),
        number(r"(\d+) bytes smem"),
        number(r"(\d+) bytes lmem"),
        number(r"(\d+) bytes spill stores"),
    )


def compile_kernel(function: Callable[..., Any], dtype: str, cc: tuple[int, ...]) -> MachineCode:
    """Compile a kernel of the ABI (as written for a processor) for a card of compute capability `cc`."""
    return link(compile_ptx(entry_of(function), dtype, cc), cc)


def entry_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel as it is called on a card: the z of the grid says which of several instructions is meant."""
    made = target().kernel(function)
    if takes_z(function):
        return made  # type: ignore[no-any-return]
    from autobatch.kernels._cuda_words import own_instruction

    inner = numba_cuda().jit(device=True)(made)

    def entry(ins, T):
        inner(own_instruction(ins), T)

    entry.__name__, entry.__qualname__ = made.__name__, made.__qualname__
    return entry


@functools.cache
def target() -> Any:
    """Return the target for which `_device.py` makes functions."""
    cuda = numba_cuda()
    from autobatch.kernels import _cuda_math, _cuda_words
    from autobatch.kernels._device import Target

    return Target({**_cuda_words.twins(), **_cuda_math.twins()}, lambda f: cuda.jit(device=True)(f), _cuda_math.instead())

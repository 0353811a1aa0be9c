"""What the passes of `plan/` are told: numbers and arrays by name, in one piece of memory.

A pass is a compiled function whose parameters are names of fields. Callers fill fields in and hand over the frame:

    frame.n0, frame.n1 = 0, 64
    frame.hold(types=array)
    plan.survey(frame)            # def survey(n0, n1, types, ...)

    word     | 0  | 1  | 2            | ...
    frame    | n0 | n1 | address of   | ...
                         types

A number is the field itself, an array its address; in front of the body of a pass each parameter is bound to the one or to a
pointer. Passing forty arrays instead cost 3 µs a call for unpacking them, and an index into an array compiles several times as
slowly as one into a pointer: compilation is what a user waits for first.

A pass that makes arrays itself has `frame` as its first parameter, takes their memory from the front of `room`, and writes
their addresses into the frame: each field that Python sets costs 0.04 µs, as much as scheduling a node.

The first fields are those of a segment (`execute.py`): all that later passes ask of it. `save` and `load` copy them.
"""

from __future__ import annotations

import ast
import ctypes
import functools
import hashlib
import inspect
import linecache
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from autobatch.kernels._errors import InternalError
from autobatch.kernels._jit import bytes_at, compiled, int32s, integers
from autobatch.memory import address_of, array_at

SEGMENT = """
n0 n1 n_types n_batches value_base copies nodes kinds first edges joins present dense order type_start batch_type batch_begin
batch_end value_at batch_at gather_first gather_at at forward block_at slot batches ends
""".split()
NUMBERS = """
n0 n1 n_types n_batches itemsize dtype value_base gradient_base start scratch sink loss full w r room most n_nodes
copy_rows zero_rows add_rows add_to_table copies card rounds add_groups add_overlapping piece product
""".split()
INT32 = """
types args root local nodes kinds first edges present dense order type_start batch_type batch_begin batch_end source
batches ends last batch_of released seen group row_seen covered
""".split()
INT64 = """
info operands needs positions address value_at gather_first gather_at input_addresses at table lists forward block_at slot
gradient parameter_values parameter_gradients parameter_touched batch_at holes
""".split()
UINT8 = "joins active touched keep".split()
FIELDS = {name: k for k, name in enumerate(dict.fromkeys([*SEGMENT, *NUMBERS, *INT32, *INT64, *UINT8]))}
_POINTERS = {**dict.fromkeys(INT32, "int32s"), **dict.fromkeys(INT64, "integers"), **dict.fromkeys(UINT8, "bytes_at")}
_DTYPES = {**dict.fromkeys(INT32, "int32"), **dict.fromkeys(INT64, "int64"), **dict.fromkeys(UINT8, "uint8")}
_SCOPE = {"int32s": int32s, "integers": integers, "bytes_at": bytes_at}


class Frame(ctypes.Structure):
    """The fields as attributes: numbers, and addresses of arrays in memory that someone else keeps.

    Attributes
    ----------
    here : the address of the frame.
    """

    _fields_ = tuple((name, ctypes.c_int64) for name in FIELDS)

    def __new__(cls) -> Frame:
        """Return a frame of zeros."""
        memory = bytearray(8 * len(FIELDS))
        frame = cls.from_buffer(memory)
        frame._memory, frame.here, frame._held = memory, ctypes.addressof(frame), {}
        return frame

    def hold(self, **arrays: np.ndarray) -> None:
        """Set fields to arrays, each of which stays alive until its field is set this way again."""
        self._held.update(arrays)
        for name, array in arrays.items():
            setattr(self, name, address_of(array))

    def save(self) -> bytes:
        """Return the fields of a segment, for `load`, and for `field` and `numbers`."""
        return bytes(self._memory[:_OF_SEGMENT])

    def load(self, saved: bytes) -> None:
        """Set the fields of a segment to what they were."""
        self._memory[:_OF_SEGMENT] = saved


_OF_SEGMENT = 8 * len(SEGMENT)


def field(saved: bytes, name: str) -> int:
    """Return a field of a saved segment."""
    return int.from_bytes(saved[8 * FIELDS[name] : 8 * FIELDS[name] + 8], sys.byteorder, signed=True)


def numbers(saved: bytes, name: str, count: int) -> np.ndarray:
    """Return an array that a saved segment has, of which `count` numbers count; it lies where it was, and nobody keeps it."""
    return array_at(field(saved, name), count, _DTYPES[name])


class Block:
    """Several arrays in one piece of memory, of which the address is asked for once."""

    __slots__ = ("_at", "array", "start")

    def __init__(self, size: int) -> None:
        self.array = np.empty(size + 8, np.uint8)
        self.start = address_of(self.array)
        self._at = 0

    def take(self, size: int) -> int:
        """Return the address of the next `size` bytes; multiples of 8 keep int64 arrays aligned."""
        at = self._at
        self._at = at + (size + 7 & ~7)
        if self._at > self.array.size:
            raise InternalError(f"a block of {self.array.size} bytes is asked for {self._at}")
        return self.start + at

    def view(self, address: int, count: int, dtype: Any) -> np.ndarray:
        """Return an array of `count` numbers that lie at an address in the block."""
        return np.frombuffer(self.array, dtype, count, address - self.start)


class over_frame:
    """Make a pass of a function whose parameters are fields: called with a frame, compiled at the first call.

    One that asks for `card` is two: there `card` is no field but True or False, and what is for the other machine is left out
    before it is compiled.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._lines = linecache.getlines(inspect.getfile(function))  # as now: the file may change before the first call
        self._asks = "card" in inspect.signature(function).parameters
        functools.update_wrapper(self, function)

    def __call__(self, frame: Frame) -> Any:
        return (self._on_card if self._asks and frame.card else self._dispatcher)(frame.here)

    @functools.cached_property
    def _dispatcher(self) -> Any:
        return self._compiled(False)

    @functools.cached_property
    def _on_card(self) -> Any:
        return self._compiled(True)

    def _compiled(self, card: bool) -> Any:
        first = self.function.__code__.co_firstlineno - 1
        tree = ast.parse("".join(inspect.getblock(self._lines[first:])))
        definition = tree.body[0]
        assert isinstance(definition, ast.FunctionDef)
        names = [a.arg for a in definition.args.args if a.arg not in ("frame", "card")]
        binding = ["frame = integers(frame)"]
        for name in names:
            word = f"frame[{FIELDS[name]}]"
            binding.append(f"{name} = {_POINTERS[name]}({word})" if name in _POINTERS else f"{name} = {word}")
        definition.decorator_list = []
        definition.args.args = [ast.arg("frame")]
        if self._asks:
            definition = _Known({"card": card}).visit(definition)
        definition.name += "_on_card" if card else ""  # by its name the cache knows it
        definition.body[0:0] = [ast.copy_location(b, definition) for b in ast.parse("; ".join(binding)).body]
        ast.increment_lineno(ast.fix_missing_locations(tree), first)
        scope = {**self.function.__globals__, **_SCOPE}
        exec(compile(tree, inspect.getfile(self.function), "exec"), scope)
        function = scope[definition.name]
        function.__source__ = _constants(self.function.__module__)
        return compiled(function)


class _Known(ast.NodeTransformer):
    """Puts constants in the place of names; Python leaves out what is behind an `if False`."""

    def __init__(self, values: dict[str, bool]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Return the constant that a name stands for, or the name."""
        return ast.copy_location(ast.Constant(self.values[node.id]), node) if node.id in self.values else node


@functools.cache
def _constants(module: str) -> str:
    """Return what the passes of a module know beside their own text, for the stamp of the cache.

    That is fields, columns of tables, and the files with the helpers that are inlined.
    """
    own = vars(sys.modules[module])
    modules = {module, *(v.py_func.__module__ for v in own.values() if hasattr(v, "py_func"))}
    numbers = {(name, v) for m in modules for name, v in vars(sys.modules[m]).items() if type(v) is int}
    files = [pathlib.Path(inspect.getfile(sys.modules[m])).read_bytes() for m in sorted(modules)]
    return repr((FIELDS, sorted(numbers), hashlib.sha256(b"".join(files)).hexdigest()))

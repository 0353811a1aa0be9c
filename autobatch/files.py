"""Model files: DyNet's text format, safetensors, and writing that leaves either the old file or the new one.

DyNet's format, a header line and one or two lines of numbers for each parameter (column-major; a table row after row):

    #Parameter# /encoder/W {2,3} 97 ZERO_GRAD crc32:5a3c1b0f
    +0.00000000e+00 +3.00000000e+00 +1.00000000e+00 +4.00000000e+00 +2.00000000e+00 +5.00000000e+00
    |           |       |     |     |             `- of the rest of the entry; DyNet skips it, its own files lack it
    |           |       |     |     `- FULL_GRAD: a second line has the gradient
    |           |       |     `- bytes up to the next header
    |           |       `- dims; a table's end with V
    |           `- full name
    `- or #LookupParameter#

Nine digits hold a float32 exactly, seventeen a float64; NaN and infinities are written as words. A file is read and checked
as a whole before anything is done with it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autobatch.kernels._errors import ArgumentError, MissingFileError, ModelFileError, OperandError, message

PARAMETER, TABLE = "Parameter", "LookupParameter"
_CHUNK = 4096  # numbers formatted at a time
_HEADER = re.compile(
    rb"#(Parameter|LookupParameter)# (\S+) \{(\d{1,10}(?:,\d{1,10}){0,6})\} (\d{1,19}) (ZERO_GRAD|FULL_GRAD)"
    rb"(?: crc32:([0-9a-f]{8}))?"
)


class Entry(NamedTuple):
    """One parameter of a file."""

    kind: str  # PARAMETER or TABLE
    name: str
    dims: tuple[int, ...]  # of a table: those of a row, then V
    values: NDArray[np.floating]  # flat, column-major
    gradients: NDArray[np.floating] | None  # None: all 0


Path = str | bytes | os.PathLike[Any]


def path_of(what: str, path: Any) -> str:
    """Return a path as a str; raise for what is none."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise OperandError(f"{what}: the file name is {type(path).__name__} {path!r}\n  expected  a path")
    text = os.fsdecode(path)
    if "\0" in text:
        raise ArgumentError(f"{what}: the file name {text!r} has a null character in it\n  expected  a path")
    return text


def check_key(what: str, key: Any) -> str:
    """Return the key of entries in a file; raise for one that cannot stand there."""
    if not isinstance(key, str):
        raise OperandError(f"{what}: key is {type(key).__name__} {key!r}\n  expected  a str")
    if key and (key[0] != "/" or re.search(r"[\s#]", key)):
        raise ArgumentError(message(f"{what}: key {key!r}", expected='a key that begins with "/", without blanks and "#"'))
    return key


# Atomic writing -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replaced(*paths: str) -> Iterator[list[BinaryIO]]:
    """Open files for writing that take the place of `paths` when all of them are complete, and on the disk.

    After an exception, or if the process dies, the old files are as they were. With several paths there is a moment, two
    renames apart, in which the first is new and the second old.
    """
    with contextlib.ExitStack() as stack:
        files: list[Any] = []
        for path in paths:
            target = os.path.realpath(path)
            folder, name = os.path.split(target)
            file = stack.enter_context(tempfile.NamedTemporaryFile("wb", dir=folder, prefix=f".{name}.", delete=False))
            stack.callback(_remove, file.name)
            files.append((file, target))
        yield [file for file, _ in files]
        for file, target in files:
            file.flush()
            with contextlib.suppress(OSError):  # as the old file, or as any new one
                os.chmod(file.name, os.stat(target).st_mode & 0o7777 if os.path.exists(target) else 0o666 & ~_umask())
            os.fsync(file.fileno())
            file.close()
        for file, target in files:
            os.replace(file.name, target)
        for folder in {os.path.dirname(target) for _, target in files}:
            _sync(folder)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def _sync(folder: str) -> None:
    """Let the names in a folder reach the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# Reading and writing --------------------------------------------------------------------------------------------------


def write(path: str, entries: Sequence[Entry], append: bool = False) -> None:
    """Write entries to a file, or add them to its end: as safetensors if the name ends so, else in DyNet's format.

    Raises
    ------
    OSError
        The file cannot be written.
    ModelFileError
        `append` to a file that is none of ours.
    """
    if is_safetensors(path):
        old = read(path) if append and os.path.exists(path) else []
        with replaced(path) as (file,):
            file.write(_to_safetensors(path, [*old, *entries]))
        return
    old_text = b""
    if append and os.path.exists(path):
        with open(path, "rb") as source:
            old_text = source.read()
        if old_text and not old_text.endswith(b"\n"):
            raise ModelFileError(f"{path}: the last line is cut off, so nothing was added to it")
    with replaced(path) as (file,):
        file.write(old_text)
        write_entries(file, entries)


def read(path: str) -> list[Entry]:
    """Return all entries of a file.

    Raises
    ------
    MissingFileError
        There is no such file, or it cannot be read.
    ModelFileError
        It is damaged, cut off, or no model file: the message names the line and what was expected.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read: {error.strerror}") from None
    return _from_safetensors(path, data) if is_safetensors(path) else _parse(path, data)


def is_safetensors(path: str) -> bool:
    """Whether a file of this name is in the format of safetensors."""
    return path.endswith(".safetensors")


# DyNet's format -------------------------------------------------------------------------------------------------------


def write_entries(file: BinaryIO, entries: Sequence[Entry]) -> None:
    """Write entries in DyNet's format to an open file."""
    for entry in entries:
        _write_entry(file, entry)


def _write_entry(file: BinaryIO, entry: Entry) -> None:
    lines = [_line(entry.values)]
    if entry.gradients is not None:
        lines.append(_line(entry.gradients))
    data = b"".join(lines)
    dims = ",".join(map(str, entry.dims))
    head = f"#{entry.kind}# {entry.name} {{{dims}}} {len(data)} {'FULL' if len(lines) > 1 else 'ZERO'}_GRAD".encode()
    file.write(b"%s crc32:%08x\n" % (head, zlib.crc32(data, zlib.crc32(head))))
    file.write(data)


def _line(numbers: NDArray[np.floating]) -> bytes:
    form = "%+.8e " if numbers.dtype == np.float32 else "%+.16e "
    parts = []
    for begin in range(0, numbers.size, _CHUNK):
        part = numbers[begin : begin + _CHUNK].tolist()
        parts.append((form * len(part)) % tuple(part))
    return ("".join(parts) + "\n").encode()


def _parse(path: str, data: bytes) -> list[Entry]:
    entries: list[Entry] = []
    at, line = 0, 1

    def wrong(problem: str, expected: str, where: int) -> ModelFileError:
        return ModelFileError(message(f"{path}, line {where}: {problem}", expected=expected))

    while at < len(data):
        end = data.find(b"\n", at)
        head = data[at : len(data) if end < 0 else end]
        found = _HEADER.fullmatch(head)
        if found is None or end < 0:
            shown = head[:60].decode("utf-8", "replace")
            raise wrong(f"{shown!r} is no header", "#Parameter# NAME {SIZES} BYTES ZERO_GRAD, or the like", line)
        kind, name, sizes, _, gradient, checksum = found.groups()
        try:
            text = name.decode()
        except UnicodeDecodeError:
            raise wrong("the name is no UTF-8", "text", line) from None
        dims = tuple(map(int, sizes.split(b",")))
        count, begin = math.prod(dims), end + 1
        arrays: list[NDArray[np.float64]] = []
        if 2 * count > len(data):  # a number takes two bytes at least
            raise wrong(f"dims {dims} of {count} numbers in a file of {len(data)} bytes", "sizes that fit the file", line)
        for k in range(2 if gradient == b"FULL_GRAD" else 1):
            at, end = end + 1, data.find(b"\n", end + 1)
            if end < 0:
                raise wrong("the line is cut off", f"{count} numbers and an end of line", line + k + 1)
            numbers = _numbers(data[at:end])
            if numbers is None or numbers.size != count:
                got = "something that is no number" if numbers is None else f"{numbers.size} numbers"
                raise wrong(got, f"{count} numbers, for {text} {dims}", line + k + 1)
            arrays.append(numbers)
        if checksum is not None:
            start = head[: head.rindex(b" crc32:")]
            if zlib.crc32(data[begin : end + 1], zlib.crc32(start)) != int(checksum, 16):
                raise wrong(f"the checksum of {text} is another", "the file as it was written", line)
        entries.append(Entry(kind.decode(), text, dims, arrays[0], arrays[1] if len(arrays) > 1 else None))
        at, line = end + 1, line + 1 + len(arrays)
    return entries


def _numbers(text: bytes) -> NDArray[np.float64] | None:
    """Return the numbers of a line; None if something else stands there."""
    if not text:
        return np.empty(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return np.fromstring(text.decode("ascii"), sep=" ")
    except (ValueError, DeprecationWarning):
        return None


# safetensors ----------------------------------------------------------------------------------------------------------

_GRADIENT = "#gradient"  # no name of a parameter has a "#"
_OURS = "autobatch"  # in the metadata: names and kinds in their order, and a checksum


def _library() -> Any:
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            "files named .safetensors need the package safetensors\n  try       pip install autobatch-numba[safetensors]"
        ) from None
    return safetensors.numpy


def _array(entry: Entry, flat: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return numbers as NumPy users know them: of the dims; a table (V, row ...)."""
    array = flat.reshape(entry.dims, order="F")
    return np.ascontiguousarray(np.moveaxis(array, -1, 0) if entry.kind == TABLE else array)


def _flat(kind: str, array: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the numbers of an array as the library keeps them."""
    return (np.moveaxis(array, 0, -1) if kind == TABLE else array).ravel(order="F")


def _to_safetensors(path: str, entries: Sequence[Entry]) -> bytes:
    tensors: dict[str, NDArray[np.floating]] = {}
    for entry in entries:
        if entry.name in tensors:
            raise ArgumentError(f"{path}: two entries are called {entry.name}\n  expected  different names, in this format")
        tensors[entry.name] = _array(entry, entry.values)
        if entry.gradients is not None:
            tensors[entry.name + _GRADIENT] = _array(entry, entry.gradients)
    listed = [[entry.kind, entry.name] for entry in entries]
    about = {"entries": listed, "crc32": _checksum(listed, tensors)}
    return bytes(_library().save(tensors, metadata={_OURS: json.dumps(about)}))


def _checksum(entries: Any, tensors: Mapping[str, NDArray[np.floating]]) -> int:
    """Return a checksum of the list of entries, and of names, shapes and numbers of all tensors."""
    total = zlib.crc32(json.dumps(entries).encode())
    for name in sorted(tensors):
        total = zlib.crc32(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode(), total)
        total = zlib.crc32(tensors[name].tobytes(), total)
    return total


def _from_safetensors(path: str, data: bytes) -> list[Entry]:
    library = _library()
    try:
        tensors = library.load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        for name, array in tensors.items():
            if array.dtype not in (np.float32, np.float64):
                raise ValueError(f"{name} holds {array.dtype} numbers, not float32 or float64")
        if _OURS in metadata:
            about = json.loads(metadata[_OURS])
            kinds = about["entries"]
            if _checksum(kinds, tensors) != about["crc32"]:
                raise ValueError("the checksum is another")
        elif any(name.startswith("/") for name in tensors):
            raise ValueError("the list of parameters is missing")
        else:  # of another program
            kinds = [[PARAMETER, name] for name in tensors]
        entries = []
        for kind, name in kinds:
            gradients = tensors.get(name + _GRADIENT)
            dims = tensors[name].shape[1:] + tensors[name].shape[:1] if kind == TABLE else tensors[name].shape
            if kind not in (PARAMETER, TABLE) or re.search(r"[\s#]", name) or not 1 <= len(dims) <= 7:
                raise ValueError(f"{kind} {name} of shape {tensors[name].shape} is no parameter")
            if gradients is not None and gradients.shape != tensors[name].shape:
                raise ValueError(f"{name} and its gradient differ in shape")
            flat = None if gradients is None else _flat(kind, gradients)
            entries.append(Entry(kind, name, dims, _flat(kind, tensors[name]), flat))
        return entries
    except ImportError:
        raise
    except Exception as error:  # the library raises what it likes
        raise ModelFileError(f"{path}: damaged, or no safetensors file: {error}") from None

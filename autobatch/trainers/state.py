"""What a trainer knows beside the parameters, in a file: training goes on from it to the bit.

The file is a NumPy archive (.npz, whatever its name): "about" is JSON (settings, counters, names and sizes of the
parameters), the other arrays are moments and averages, numbered as the parameters are.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autobatch import files
from autobatch.kernels._errors import MissingFileError, ModelFileError, message
from autobatch.params import Storage

_LARGEST = 2**26  # bytes of "about"
_SLACK = 4096  # bytes that an array may take in the archive beside its numbers


def write(path: str, about: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write a state, in place of an old file once it is complete."""
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    with files.replaced(path) as (file,):
        np.savez(file, about=text, **arrays)  # type: ignore[arg-type]


def read(
    path: str, kind: str, everything: list[Storage], sizes: dict[str, tuple[int, str]]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the state of a trainer of a kind; `sizes` gives for each array that may be there its numbers and dtype.

    Raises
    ------
    MissingFileError, ModelFileError
        The file is not there, is damaged, or is of another trainer or of other parameters.
    """
    try:
        with open(path, "rb") as source:
            data = source.read()
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            lengths = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
        if lengths["about"] > _LARGEST:
            raise ValueError(f"about has {lengths['about']} bytes")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            about = json.loads(archive["about"].tobytes())
            _check(path, about, kind, everything)
            arrays = {}
            for name in lengths.keys() - {"about"}:
                count, dtype = sizes[name]
                if lengths[name] > count * np.dtype(dtype).itemsize + _SLACK:
                    raise ValueError(f"{name} has {lengths[name]} bytes")
                arrays[name] = archive[name]
                if (arrays[name].shape, arrays[name].dtype.name) != ((count,), dtype):
                    raise ValueError(f"{name} is {arrays[name].shape} {arrays[name].dtype}, not {count} {dtype}")
        return about, arrays
    except ModelFileError:
        raise
    except Exception as error:  # what the archive's readers raise on damage is not specified
        raise ModelFileError(f"{path}: damaged, or not the state of a trainer: {error}") from None


def listed(everything: list[Storage]) -> list[list[Any]]:
    """Return what must be equal for a state to fit: name, numbers and dtype of each parameter."""
    return [[p.name(), math.prod(p.dims), p.dtype] for p in everything]


def _check(path: str, about: dict[str, Any], kind: str, everything: list[Storage]) -> None:
    """Raise if a state is of another trainer, or of other parameters."""
    if about.get("trainer") != kind:
        raise ModelFileError(message(f"{path}: the state of another trainer", str(about.get("trainer")), kind))
    if len(about["parameters"]) > len(everything):
        got = f"{len(about['parameters'])} parameters"
        raise ModelFileError(message(f"{path}: of other parameters", got, f"{len(everything)}"))
    theirs = [entry[1:] for entry in about["parameters"]]
    ours = [entry[1:] for entry in listed(everything)]
    for k, (a, b) in enumerate(zip(theirs, ours, strict=False)):
        if a != b:
            name = everything[k].name()
            raise ModelFileError(message(f"{path}: does not fit {name}", f"{a[0]} {a[1]} numbers", f"{b[0]} {b[1]} numbers"))

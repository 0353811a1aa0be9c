"""Integers as programs write them: sizes and indices."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def as_integer(value: Any) -> int:
    """Return a size or an index as an int: also of a float without a fraction, and of an array of one number, as in DyNet.

    Programs from Python 2 say ``HIDDEN / 2``, and labels come from ``np.loadtxt``.

    Raises
    ------
    TypeError : anything else.
    """
    if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "iuf":
        value = value.reshape(-1)[0]
    if isinstance(value, (float, np.floating)) and value.is_integer():
        return int(value)
    return operator.index(value)


__all__ = ["as_integer"]

"""Numbers and lists in boxes, as DyNet hands them to its C++ half. Nothing here needs them; programs that use them run."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from autobatch.expression import Expression, describe
from autobatch.kernels._errors import NegativeIndexError, OperandError


def _unsigned(value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise OperandError(f"a box of a whole number: {describe(value)}\n  expected  a whole number from 0 on") from None
    if number < 0:
        raise NegativeIndexError(f"a box of a whole number: {number}\n  expected  a whole number from 0 on")
    return number


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise OperandError(f"a box of a number: {describe(value)}\n  expected  a number") from None


def _items(values: Any) -> Iterable[Any]:
    if isinstance(values, (str, bytes, Expression)) or not isinstance(values, Iterable):
        raise OperandError(f"a box of a list: {describe(values)}\n  expected  a list of numbers")
    return values


class UnsignedValue:
    """A box of a whole number from 0 on."""

    def __init__(self, val: int = 0) -> None:
        self.set(val)

    def set(self, val: int) -> None:
        """Put another number in."""
        self._value = _unsigned(val)

    def get(self) -> int:
        """Return the number."""
        return self._value


class FloatValue:
    """A box of a number."""

    def __init__(self, val: float = 0.0) -> None:
        self.set(val)

    def set(self, val: float) -> None:
        """Put another number in."""
        self._value = _float(val)

    def get(self) -> float:
        """Return the number."""
        return self._value


class UnsignedVectorValue:
    """A box of a list of whole numbers from 0 on."""

    def __init__(self, vals: Iterable[int] = ()) -> None:
        self.set(vals)

    def set(self, newval: Iterable[int]) -> None:
        """Put another list in."""
        self._values = [_unsigned(v) for v in _items(newval)]

    def get(self) -> list[int]:
        """Return the list."""
        return list(self._values)

    def size(self) -> int:
        """Return how many numbers there are."""
        return len(self._values)

    def __len__(self) -> int:
        return len(self._values)


class FloatVectorValue:
    """A box of a list of numbers."""

    def __init__(self, vals: Iterable[float] = ()) -> None:
        self.set(vals)

    def set(self, newval: Iterable[float]) -> None:
        """Put another list in."""
        self._values = [_float(v) for v in _items(newval)]

    def get(self) -> list[float]:
        """Return the list."""
        return list(self._values)

    def size(self) -> int:
        """Return how many numbers there are."""
        return len(self._values)

    def __len__(self) -> int:
        return len(self._values)

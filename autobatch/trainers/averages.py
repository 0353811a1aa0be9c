"""Moving averages of the values of a collection, which trainers keep beside them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autobatch import params
from autobatch.devices import configured_machine
from autobatch.initializers import number
from autobatch.kernels._errors import ArgumentError, ConstructionError
from autobatch.kernels.update_average import update_average
from autobatch.machine import PROCESSOR, Machine
from autobatch.params import ParameterCollection, Storage
from autobatch.trainers.tables import Numbers, Table


class MovingAverage:
    """The average of all values of a collection: exponential, or cumulative (`beta` None)."""

    def __init__(self, collection: ParameterCollection, updates: int, every: int, beta: float | None) -> None:
        if updates:
            raise ConstructionError(
                f"a moving average begins with the first update, and there have been {updates}\n"
                "  try       asking for it right after making the trainer"
            )
        if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
            raise ArgumentError(f"moving average: update_freq is {every!r}\n  expected  a number of updates, at least 1")
        if beta is not None:
            beta = number("moving average: beta", beta)
            if not 0 < beta < 1:
                raise ArgumentError(f"moving average: beta is {beta}\n  expected  a number between 0 and 1")
        self.collection, self.every, self.beta = collection, int(every), beta
        self.count = 0  # steps of the average so far
        self.averages: dict[int, NDArray[np.floating]] = {}
        self.saved: dict[int, NDArray[np.floating]] | None = None  # the values, while the averages are in their place
        self.swapped = False
        self._machine: Machine = PROCESSOR
        self._numbers = Numbers(PROCESSOR, 2, "float64")
        self._table, self._revision = Table(PROCESSOR, "float64"), -1
        self._twins: list[Any] = []
        self._own: list[Any] = []  # those of the averages

    def of(self, p: Storage) -> NDArray[np.floating]:
        """Return the average of a parameter, zeros if it is new."""
        if p.pid not in self.averages:
            self.averages[p.pid] = params.aligned(math.prod(p.dims), p.dtype)
        return self.averages[p.pid]

    def add(self, updates: int) -> None:
        """Let the averages make a step, if it is time: after each `every` updates, from the first on."""
        if updates % self.every:
            return
        if self._revision != params.revision() or self._machine is not configured_machine():
            self._build()
        keep = self.count / (self.count + 1) if self.beta is None else self.beta
        self._numbers.values[:] = keep, 1 - keep
        self._numbers.send()
        for twin in self._twins:
            twin.send()
        for twin in self._own:
            twin.changed()
        self._table.run(len(self._table.words))
        self.count += 1

    def _build(self) -> None:
        """Write the table."""
        machine, dtype = configured_machine(), self.collection.dtype
        self.bring_home()
        self._machine, self._revision = machine, params.revision()
        self._table, self._numbers, self._twins, self._own = Table(machine, dtype), Numbers(machine, 2, dtype), [], []
        for p in self.collection._everything():
            if 0 in p.dims:
                continue
            average, (values, _, _) = machine.twin(self.of(p), "moments"), machine.twins(p)
            slots = [(average.address, 0), (values.address, 0), self._numbers.at(0)]
            self._table.add(update_average, 1, [math.prod(p.dims)], slots)
            self._own.append(average)
            self._twins += [average, values]
        self._table.close()
        self._table.using = self._twins, self._numbers

    def bring_home(self) -> None:
        """See to it that the averages on the host are the newest; they may be changed there."""
        for twin in self._own:
            twin.take_home()

    def swap(self, save: bool, correct: bool) -> None:
        """Put the averages in the place of the values."""
        if not self.count:
            raise ConstructionError("moving average: there has been no update yet, so there is no average")
        if self.swapped:
            return
        self.bring_home()
        everything = self.collection._everything()
        self.saved = {p.pid: p.values.copy() for p in everything} if save else None
        self.swapped = True
        scale = 1 / (1 - self.beta**self.count) if correct and self.beta is not None else 1.0
        for p in everything:
            if p.pid in self.averages:  # others were made after the last update
                np.multiply(self.averages[p.pid], p.values.dtype.type(scale), out=p.values)

    def swap_back(self, asked: bool = False) -> None:
        """Put the values back in their place; if they were not saved, the averages stay (an error if it was asked for)."""
        if not self.swapped:
            return
        if self.saved is None:
            if asked:
                raise ConstructionError(
                    "moving average: the weights were not saved\n  try       swap_params_to_moving_average(save_weights=True)"
                )
        else:
            for p in self.collection._everything():
                if p.pid in self.saved:
                    p.values[:] = self.saved[p.pid]
        self.swapped, self.saved = False, None

    # Files

    def about(self) -> dict[str, Any]:
        """Return what is no array, for a file."""
        return {"beta": self.beta, "every": self.every, "count": self.count, "swapped": self.swapped}

    def arrays(self, everything: list[Storage]) -> dict[str, NDArray[np.floating]]:
        """Return the arrays, for a file: by what they are and the number of the parameter."""
        self.bring_home()
        result = {f"average of {k}": self.averages[p.pid] for k, p in enumerate(everything) if p.pid in self.averages}
        saved = self.saved or {}
        return result | {f"saved of {k}": saved[p.pid] for k, p in enumerate(everything) if p.pid in saved}

    @classmethod
    def restored(cls, collection: ParameterCollection, about: dict[str, Any]) -> MovingAverage:
        """Return an average as a file describes it, without its arrays."""
        result = cls(collection, 0, about["every"], about["beta"])
        result.count, result.swapped = int(about["count"]), bool(about["swapped"])
        return result

    def take(self, everything: list[Storage], arrays: dict[str, NDArray[np.floating]]) -> None:
        """Take the arrays of a file."""
        self.bring_home()
        for k, p in enumerate(everything):
            if f"average of {k}" in arrays:
                self.of(p)[:] = arrays[f"average of {k}"]
        saved = {p.pid: arrays[f"saved of {k}"].copy() for k, p in enumerate(everything) if f"saved of {k}" in arrays}
        self.saved = saved or None

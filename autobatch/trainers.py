"""Trainers: they turn gradients into steps, all parameters of a collection in two compiled calls.

What is to be done is written once into two tables of instructions (`autobatch.kernels._jit`), and written anew only when the
collection has grown, `set_updated` was called or sparse updates were switched:

    survey   find touched rows | squared norm of each gradient, all added up in one number
             ------------------------------- between the two: is the norm finite, is it too long? fill in the numbers
    steps    update rule of each parameter | forget the touched rows | weight decay

An update of a table visits only its touched rows: the survey writes their addresses, and how many there are, into the
instructions that follow. Nothing has been changed yet when a norm turns out not to be finite, so nothing needs to be undone.

A rule is a class with a kernel (`autobatch.kernels.update_*`), how many arrays of moments it keeps for each parameter, and a
method that fills in its numbers. Python takes about 1 µs of an update, however many parameters there are, and each of the
two calls 0.25 µs; an instruction 5 ns and its arithmetic.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from autobatch import params
from autobatch.initializers import number as as_number
from autobatch.kernels._errors import ArgumentError, NumericalError, message
from autobatch.kernels._jit import ACCUMULATE, ITEMS, SIZES, SLOTS, Kernel
from autobatch.kernels._vm import run
from autobatch.kernels.update_adam import update_adam
from autobatch.kernels.update_norm import update_norm
from autobatch.kernels.update_rows import update_forget, update_rows
from autobatch.kernels.update_scale import update_scale
from autobatch.kernels.update_sgd import update_sgd
from autobatch.params import LookupParameters, ParameterCollection, Storage

_NUMBERS = 16  # room for the numbers of a rule; the norm and the factor of weight decay have the places after it
_NORM, _DECAY = _NUMBERS, _NUMBERS + 1


def _single(what: str, number: Any) -> float:
    """Return a finite number rounded to float32, as DyNet keeps it."""
    with np.errstate(over="ignore"):
        result = float(np.float32(as_number(what, number)))
    if not math.isfinite(result):
        raise ArgumentError(f"{what}: {number} is no finite number")
    return result


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])  # a third of the time of array.ctypes.data


class _Table:
    """A table of instructions: written word by word, then closed into the array that runs.

    The sizes of an instruction stand behind its slots: | kernel length items sizes flags | slots ... | n ... |
                                                                              +------------------------^
    """

    def __init__(self) -> None:
        self.words: list[int] = []
        self.array: NDArray[np.int64] = np.zeros(0, np.int64)
        self._sizes: list[tuple[int, int]] = []  # SIZES word, where its sizes begin

    def add(
        self, kernel: int, items: int, sizes: Sequence[int], slots: Sequence[tuple[int, int]], flags: int = 0
    ) -> tuple[_Table, int]:
        """Append an instruction; return where it is. A slot is (address, stride)."""
        begin = len(self.words)
        where = begin + SLOTS + 2 * len(slots)
        self._sizes.append((begin + SIZES, where))
        self.words += [kernel, where + len(sizes) - begin, items, 0, flags]
        for slot in slots:
            self.words += slot
        self.words += sizes
        return self, begin

    def close(self) -> None:
        self.array = np.array(self.words, np.int64)
        for word, where in self._sizes:
            self.array[word] = self.address(where)

    def address(self, word: int) -> int:
        """Return the address of a word of the closed table."""
        return _address(self.array) + 8 * word


class _Rows:
    """The touched rows of one look-up table: lists of where they lie, one for each array, filled by `update_rows`."""

    def __init__(self, table: LookupParameters, arrays: Sequence[NDArray[Any]]) -> None:
        self.table, self.arrays = table, arrays
        self.lists = np.empty((len(arrays), len(table)), np.int64)  # pages that no row needs are never there
        self.visits: list[tuple[_Table, int]] = []  # instructions that go over the rows: at most three

    def slots(self) -> list[tuple[int, int]]:
        """Return the lists as slots of an instruction, in the order of the arrays."""
        start, step = _address(self.lists), self.lists.strides[0]
        return [(start + k * step, -1) for k in range(len(self.arrays))]

    def search(self, survey: _Table, kernel: int) -> None:
        """Append the instruction that fills the lists."""
        room = 3 + 3 * len(self.arrays) + 3
        self.at = survey.add(kernel, 1, [0] * room, [(_address(self.table.touched), 0)])

    def close(self) -> None:
        """Write the sizes of the search, once the tables are closed."""
        sizes = [len(self.table), len(self.arrays), len(self.visits)]
        for array, (places, _) in zip(self.arrays, self.slots(), strict=True):
            sizes += [_address(array), array.nbytes // len(self.table), places]
        sizes += [table.address(at + ITEMS) for table, at in self.visits]
        survey, begin = self.at
        start = begin + SLOTS + 2
        survey.array[start : start + len(sizes)] = sizes


class Trainer:
    """Base of all trainers.

    Parameters
    ----------
    m : the collection to train, with all collections in it. Parameters made later are trained too.
    learning_rate : η; negative to climb.

    Attributes
    ----------
    learning_rate : η, kept as float32 (as in DyNet); may be set at any time.
    updates : updates made so far.

    Raises
    ------
    TypeError
        `m` is no ParameterCollection.
    ArgumentError
        A number that is not finite.

    Notes
    -----
    Gradients of updated parameters are 0 after an update. A parameter without a gradient is updated as well (moments move
    on); of a look-up table only the rows with a gradient are, unless `set_sparse_updates` says otherwise. A trainer of one's
    own sets `rule` and `moments` and defines `_fill`.
    """

    rule: ClassVar[Kernel]  # slots: values, gradients, moments ..., numbers
    moments: ClassVar[int] = 0  # arrays of the parameter's size, zero at first

    def __init__(self, m: ParameterCollection, learning_rate: float) -> None:
        if not isinstance(m, ParameterCollection):
            raise TypeError(f"{type(self).__name__}: a ParameterCollection is expected, not {type(m).__name__} {m!r}")
        if not hasattr(self, "rule"):
            raise TypeError(
                f"{type(self).__name__} has no update rule: use one of its subclasses, for example SimpleSGDTrainer"
            )
        self._collection = m
        self._learning_rate = _single("learning_rate", learning_rate)
        self._threshold = 5.0
        self._sparse = True
        self.updates = 0
        self._clips = self._updates_since = 0
        self._moments: dict[int, tuple[NDArray[np.floating], ...]] = {}
        self._numbers = np.zeros(_NUMBERS + 2)
        self._revision = -1  # of the collections, when the tables were made
        self._survey, self._steps = _Table(), _Table()
        self._keep: list[Any] = []  # arrays behind addresses in the tables
        self._searched = self._stepped = 0  # words up to the end of: the search for rows; the rules

    # Updating

    def update(self) -> None:
        """Make one step with every updated parameter, and set its gradient to 0.

        Raises
        ------
        NumericalError
            The norm of the gradients is NaN or infinite, while clipping is on (RuntimeError). Nothing has been changed:
            parameters, moments, gradients and counters are as before.
        """
        if self._revision != params.revision():
            self._build()
        numbers = self._numbers
        scale = 1.0
        if self._threshold > 0:
            run(self._survey.array, len(self._survey.words), 0)
            norm = math.sqrt(numbers[_NORM])
            if not math.isfinite(norm):
                raise NumericalError(self._not_finite(norm))
            if norm > self._threshold:
                scale = self._threshold / norm
                self._clips += 1
        elif self._searched:
            run(self._survey.array, self._searched, 0)
        self._fill(numbers, scale)
        decay = self._collection.get_weight_decay()
        if decay:
            numbers[_DECAY] = 1 - decay
        run(self._steps.array, len(self._steps.words) if decay else self._stepped, 0)
        self.updates += 1
        self._updates_since += 1

    def _everything(self) -> list[Storage]:
        return [*self._collection.parameters_list(), *self._collection.lookup_parameters_list()]

    def _fill(self, numbers: NDArray[np.float64], scale: float) -> None:
        """Write the numbers the rule's kernel reads; `scale` is the factor of the gradients that clipping asks for."""
        raise NotImplementedError

    def _not_finite(self, norm: float) -> str:
        """Return the text of the error for a norm that is not finite."""
        everything = self._everything()
        lines = []
        for p in everything:
            wrong = p.gradients.size - np.count_nonzero(np.isfinite(p.gradients))
            if wrong:
                lines.append(f"{p.name()} {p.shape()} has {wrong} of {p.gradients.size}")
        got = "NaN or infinite gradients: " + ", ".join(lines[:5]) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")
        return message(
            f"{self.whoami()}.update: the norm of the gradients is {norm}; nothing was changed",
            got if lines else "gradients whose squares are too large to add up",
            cure="reset_gradient() of the collection to skip this example; a smaller learning rate; set_clip_threshold(0) does "
            "not look at the norm",
        )

    def _build(self) -> None:
        """Write the two tables."""
        revision, dtype = params.revision(), self._collection.dtype
        rule, norm, scale, search, forget = (
            k.address(dtype) for k in (self.rule, update_norm, update_scale, update_rows, update_forget)
        )
        survey, steps = _Table(), _Table()
        numbers = _address(self._numbers)
        everything = self._everything()
        trained = [p for p in everything if p.is_updated()]

        # values, gradients, then for a table touched, then moments
        arrays: dict[int, list[NDArray[Any]]] = {}
        rows: dict[int, _Rows] = {}
        for p in everything:
            arrays[p.pid] = [p.values, p.gradients]
            if isinstance(p, LookupParameters):
                arrays[p.pid].append(p.touched)
            if p.is_updated():
                arrays[p.pid] += self._moments_of(p)
            if isinstance(p, LookupParameters) and self._sparse:
                rows[p.pid] = _Rows(p, arrays[p.pid])
                rows[p.pid].search(survey, search)
        searched = len(survey.words)

        for p in everything:
            found, items, size = rows.get(p.pid), 1, p.values.size
            slots = [(_address(a), 0) for a in arrays[p.pid]]
            if found is not None:
                items, size, slots = 0, size // p.dims[-1], found.slots()
            touched = slots.pop(2) if isinstance(p, LookupParameters) else None
            accumulate = ACCUMULATE if len(survey.words) > searched else 0
            visits = [survey.add(norm, items, [size], [slots[1], (numbers + 8 * _NORM, 0)], accumulate)]
            if p.is_updated():
                visits.append(steps.add(rule, items, [size], [*slots, (numbers, 0)]))
                if touched is not None and found is not None:
                    visits.append(steps.add(forget, 0, [], [touched]))
                elif touched is not None:
                    steps.add(forget, p.dims[-1], [], [(touched[0], 1)])
            if found is not None:
                found.visits = visits
        stepped = len(steps.words)
        for p in trained:
            steps.add(scale, 1, [p.values.size], [(_address(p.values), 0), (numbers + 8 * _DECAY, 0)])

        survey.close()
        steps.close()
        for r in rows.values():
            r.close()
        self._survey, self._steps, self._searched, self._stepped = survey, steps, searched, stepped
        self._keep = [arrays, rows]
        self._revision = revision

    def _moments_of(self, p: Storage) -> tuple[NDArray[np.floating], ...]:
        """Return the moments of a parameter, zeros if it is new."""
        if p.pid not in self._moments:
            self._moments[p.pid] = tuple(params.aligned(p.values.size, p.dtype) for _ in range(self.moments))
        return self._moments[p.pid]

    # Settings

    @property
    def learning_rate(self) -> float:
        """η, as kept: rounded to float32."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = _single("learning_rate", value)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set η, as ``trainer.learning_rate = ...`` does."""
        self.learning_rate = learning_rate

    def restart(self, learning_rate: float | None = None) -> None:
        """Set all moments to 0, and η if one is given.

        Adam goes on counting steps (as in DyNet), so its correction of the bias, which is for moments that begin at 0, is
        that of a later step: the next steps are small.
        """
        if learning_rate is not None:
            self.learning_rate = learning_rate
        for moments in self._moments.values():
            for array in moments:
                array.fill(0)

    def set_clip_threshold(self, thr: float) -> None:
        """Let an update shorten gradients whose norm, over all parameters of the collection, is above `thr`.

        Parameters
        ----------
        thr : 5.0 at first, kept as float32. 0 or less: never, and NaN and infinite gradients go unnoticed.
        """
        self._threshold = max(_single("set_clip_threshold", thr), 0.0)

    def get_clip_threshold(self) -> float:
        """Return the threshold of `set_clip_threshold`; 0: off."""
        return self._threshold

    def set_sparse_updates(self, su: bool) -> None:
        """Let an update of a look-up table visit only rows with a gradient (True, as at the start), or all rows.

        A row that is not visited keeps its moments, so with Adam the two give different numbers.
        """
        self._sparse = bool(su)
        self._revision = -1

    # Reports and old names

    def status(self) -> None:
        """Write to stderr: η, and updates and clippings since the last `status`."""
        sys.stderr.write(f"[lr={self._learning_rate:g} clips={self._clips} updates={self._updates_since}] ")
        self._clips = self._updates_since = 0

    def whoami(self) -> str:
        """Return the name of the class."""
        return type(self).__name__

    def update_epoch(self, r: float = 1.0) -> None:
        """Do nothing but say so on stderr (an old name of DyNet's)."""
        sys.stderr.write("Trainer.update_epoch does nothing: set trainer.learning_rate where you want it to change.\n")

    def update_subset(self, *parameters: object) -> None:
        """Do nothing (an old name of DyNet's)."""

    def __repr__(self) -> str:
        return f"<{self.whoami()} of {self._collection.name()}: learning rate {self._learning_rate:g}, {self.updates} updates>"


class SimpleSGDTrainer(Trainer):
    """Stochastic gradient descent.    θ -= η g

    Parameters
    ----------
    m : the collection to train.
    learning_rate : η.
    """

    rule = update_sgd

    def __init__(self, m: ParameterCollection, learning_rate: float = 0.1) -> None:
        super().__init__(m, learning_rate)

    def _fill(self, numbers: NDArray[np.float64], scale: float) -> None:
        numbers[0] = self._learning_rate * scale


class AdamTrainer(Trainer):
    """Adam.    m = β₁ m + (1-β₁) g    v = β₂ v + (1-β₂) g²    θ -= η √(1-β₂ᵗ) / (1-β₁ᵗ) · m / (√v + ε)

    Parameters
    ----------
    m : the collection to train.
    alpha : η.
    beta_1, beta_2 : β of the running means of g and of g², in [0, 1); kept as float32.
    eps : ε; kept as float32.

    Raises
    ------
    ArgumentError
        A β outside [0, 1), a negative ε.

    Notes
    -----
    t counts the updates of this trainer, whether or not a parameter was there or had a gradient at all of them.

    Source
    ------
    Kingma and Ba 2015, algorithm 1, in the form of the end of section 2: ε is added after the correction of the bias.
    """

    rule = update_adam
    moments = 2

    def __init__(
        self, m: ParameterCollection, alpha: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(m, alpha)
        self._betas = _single("beta_1", beta_1), _single("beta_2", beta_2)
        self._eps = _single("eps", eps)
        if not (0 <= self._betas[0] < 1 and 0 <= self._betas[1] < 1 and self._eps >= 0):
            raise ArgumentError(
                f"AdamTrainer: beta_1 {beta_1}, beta_2 {beta_2}, eps {eps}: both betas in [0, 1), eps from 0 on"
            )

    def _fill(self, numbers: NDArray[np.float64], scale: float) -> None:
        (beta_1, beta_2), t = self._betas, self.updates + 1
        rate = self._learning_rate * math.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        numbers[:5] = scale, beta_1, beta_2, self._eps, rate

"""Trainers: they turn gradients into steps, all parameters of a collection in two compiled calls.

What is to be done is written once into two tables of instructions (`autobatch.kernels._jit`), and written anew only when the
collection has grown, `set_updated` was called or sparse updates were switched:

    survey   find touched rows | squared norm of each gradient, all added up in one number
    steps    is the norm finite, is it too long? | update rule of each parameter | forget the touched rows | weight decay

An update of a table visits only its touched rows: the survey writes their addresses, and how many there are, into the
instructions that follow. Where a norm is not finite the steps are left out, so nothing needs to be undone. Both tables may run
in the background (`background.py`); then whoever waits for them learns of such a norm.

A rule is a class with a kernel (`autobatch.kernels.update_*`), how many arrays of moments it keeps for each parameter, and a
method that fills in its numbers. Python takes about 1 µs of an update, however many parameters there are, and each of the
two calls 0.25 µs; an instruction 5 ns and its arithmetic.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from autobatch import background, files, params
from autobatch.devices import configured_machine
from autobatch.initializers import number as as_number
from autobatch.kernels._errors import ArgumentError, ConstructionError, ModelFileError, NumericalError, message
from autobatch.kernels._jit import ACCUMULATE, LENGTH, SLOTS, Kernel
from autobatch.kernels.update_clip import update_clip
from autobatch.kernels.update_norm import update_norm
from autobatch.kernels.update_rows import update_forget, update_rows
from autobatch.kernels.update_scale import update_scale
from autobatch.machine import PROCESSOR, Machine
from autobatch.params import LookupParameters, ParameterCollection, Storage
from autobatch.trainers import state
from autobatch.trainers.averages import MovingAverage
from autobatch.trainers.tables import Numbers, Rows, Table

_NUMBERS = 16  # room for the numbers of a rule; behind them
_DECAY, _THRESHOLD = _NUMBERS, _NUMBERS + 1  # the factor of weight decay, and where clipping begins
_ALL = _NUMBERS + 2


def single(what: str, number: Any) -> float:
    """Return a finite number rounded to float32, as DyNet keeps it."""
    with np.errstate(over="ignore"):
        result = float(np.float32(as_number(what, number)))
    if not math.isfinite(result):
        raise ArgumentError(f"{what}: {number} is no finite number")
    return result


def _line_of_caller() -> str:
    """Return which line called the function that asks, as words for a message."""
    try:
        caller = sys._getframe(2)
    except ValueError:  # nobody: Python itself did
        return " in the background"
    return f" at {caller.f_code.co_filename}, line {caller.f_lineno}"


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
    constants: ClassVar[tuple[str, ...]] = ()  # attributes that belong to the state in a file: numbers of the rule
    by_rows: ClassVar[bool] = False  # a row of a look-up table is an item of its own, also where all rows are updated

    def __init__(self, m: ParameterCollection, learning_rate: float) -> None:
        if not isinstance(m, ParameterCollection):
            raise TypeError(f"{type(self).__name__}: a ParameterCollection is expected, not {type(m).__name__} {m!r}")
        if not hasattr(self, "rule"):
            raise TypeError(
                f"{type(self).__name__} has no update rule: use one of its subclasses, for example SimpleSGDTrainer"
            )
        self._collection = m
        self._learning_rate = single("learning_rate", learning_rate)
        self._threshold = 5.0
        self._sparse = True
        self.updates = 0
        self._updates_since = 0
        self._moments: dict[int, tuple[NDArray[np.floating], ...]] = {}
        self._norm = np.zeros(1)  # the square of it
        self._report = np.zeros(2)  # how many gradients have been clipped, and whether the norm was not finite
        self._revision = -1  # of the collections, when the tables were made
        self._machine: Machine = PROCESSOR  # for which they were made
        self._numbers, self._norm_twin = Numbers(PROCESSOR, _ALL, "float64"), PROCESSOR.twin(self._norm, "")
        self._survey, self._steps = Table(PROCESSOR, "float64"), Table(PROCESSOR, "float64")
        self._twins: list[Any] = []  # arrays behind addresses in the tables
        self._moment_twins: list[Any] = []
        self._keep: list[Any] = []
        self._average: MovingAverage | None = None
        self._searched = self._stepped = 0  # words up to the end of: the search for rows; the rules

    # Updating

    def update(self) -> None:
        """Make one step with every updated parameter, and set its gradient to 0.

        Raises
        ------
        NumericalError
            The norm of the gradients is NaN or infinite, while clipping is on (RuntimeError). Nothing has been changed:
            parameters, moments, gradients and counters are as before. If the update runs in the background, who raises it is
            the next to wait for it, see `docs/background.md`.
        """
        if self._average is not None:
            self._average.swap_back()
        if self._revision != params.revision() or self._machine is not configured_machine():
            self._build()
        self._begin()
        numbers, clipping, decay = self._numbers.values, self._threshold > 0, self._collection.get_weight_decay()
        self._fill(numbers)
        numbers[_DECAY], numbers[_THRESHOLD] = 1 - decay, self._threshold
        if clipping or self._searched:
            self._survey.run(len(self._survey.words) if clipping else self._searched)
        if clipping and self._machine.card:
            self._clip()
        self._numbers.send()
        self._steps.run(len(self._steps.words) if decay else self._stepped)
        before = self.updates, self._learning_rate
        self.updates += 1
        self._updates_since += 1
        self._finish()
        if clipping and not self._machine.card:
            verdict = functools.partial(self._verdict, before, (self.updates, self._learning_rate))
            if self._average is not None or not background.report(functools.partial(verdict, _line_of_caller())):
                background.wait()
                verdict("")
        if self._average is not None:
            self._average.add(self.updates - 1)

    def _clip(self) -> None:
        """Wait for the norm, and do what `update_clip` does."""
        self._norm_twin.changed()
        self._norm_twin.fetch()
        norm = math.sqrt(self._norm[0])
        if not math.isfinite(norm):
            raise NumericalError(self._not_finite(norm, ""))
        if norm > self._threshold:
            self._numbers.values[0] *= self._threshold / norm
            self._report[0] += 1

    def _verdict(self, before: tuple[int, float], after: tuple[int, float], where: str) -> None:
        """Take the counters and η of an update back that was left out, but not what the program set since, and say so."""
        if self._report[1]:
            self._updates_since = max(self._updates_since - 1, 0)
            if self.updates == after[0]:
                self.updates = before[0]
            if self._learning_rate == after[1]:
                self._learning_rate = before[1]
            raise NumericalError(self._not_finite(math.sqrt(self._norm[0]), where))

    def _begin(self) -> None:
        """See to it that all arrays are where the update is made, and note that it changes them."""
        self._machine.settle()
        self._steps.send()
        for twin in self._twins:
            twin.send()
            twin.changed()

    def _finish(self) -> None:
        """Do what a rule does after each update."""

    def _fill(self, numbers: NDArray[np.float64]) -> None:
        """Write the numbers the rule's kernel reads; clipping multiplies the first, a factor of the gradients, afterwards."""
        raise NotImplementedError

    def _not_finite(self, norm: float, where: str) -> str:
        """Return the text of the error for a norm that is not finite; `where`: of the update, if that was a while ago."""
        everything = self._collection._everything()
        lines = []
        for p in everything:
            gradients = p._seen("gradients")
            wrong = gradients.size - np.count_nonzero(np.isfinite(gradients))
            if wrong:
                lines.append(f"{p.name()} {p.shape()} has {wrong} of {gradients.size}")
        got = "NaN or infinite gradients: " + ", ".join(lines[:5]) + (f" and {len(lines) - 5} more" if len(lines) > 5 else "")
        cure = "reset_gradient() of the collection to skip this example; a smaller learning rate; set_clip_threshold(0) not to "
        cure += "look at the norm" + ("; configure(background=False), to have update() itself raise this" if where else "")
        return message(
            f"{self.whoami()}.update{where}: the norm of the gradients is {norm}; nothing was changed",
            got if lines else "gradients whose squares are too large to add up",
            cure=cure,
        )

    def _build(self) -> None:
        """Write the two tables."""
        revision, dtype, machine = params.revision(), self._collection.dtype, configured_machine()
        self._bring_home()
        survey, steps = Table(machine, dtype), Table(machine, dtype)
        numbers = Numbers(machine, _ALL, dtype)
        norm_twin = machine.twin(self._norm, "update rules")
        everything = [p for p in self._collection._everything() if 0 not in p.dims]
        trained = [p for p in everything if p.is_updated()]

        # values, gradients, then for a table touched, then moments
        twins: dict[int, list[Any]] = {}
        rows: dict[int, Rows] = {}
        moments = []
        for p in everything:
            values, gradients, touched = machine.twins(p)
            twins[p.pid] = [values, gradients]
            if isinstance(p, LookupParameters):
                twins[p.pid].append(touched)
            if p.is_updated():
                own = [machine.twin(array, "moments") for array in self._moments_of(p)]
                twins[p.pid] += own
                moments += own
            if isinstance(p, LookupParameters) and self._sparse:
                rows[p.pid] = Rows(machine, p, twins[p.pid])
                rows[p.pid].search(survey, update_rows, touched)
        searched = len(survey.words)
        report = None
        if not machine.card:
            report = machine.twin(self._report, "update rules")
            slots = [(norm_twin.address, 0), (report.address, 0), numbers.at(0)]
            steps.add(update_clip, 1, [0, 0, _THRESHOLD], slots)
            clipped = SLOTS + 2 * len(slots)  # where its sizes begin

        for p in everything:
            found, items, count = rows.get(p.pid), 1, math.prod(p.dims)
            size = count
            slots = [(twin.address, 0) for twin in twins[p.pid]]
            if found is not None:
                items, size, slots = found.most, size // p.dims[-1], found.slots()
            touched = slots.pop(2) if isinstance(p, LookupParameters) else None
            accumulate = ACCUMULATE if len(survey.words) > searched else 0
            visits = [survey.add(update_norm, items, [size], [slots[1], (norm_twin.address, 0)], accumulate)]
            if p.is_updated():
                if self.by_rows and isinstance(p, LookupParameters) and found is None:
                    items, size = p.dims[-1], size // p.dims[-1]
                    slots = [(place, size * np.dtype(p.dtype).itemsize) for place, _ in slots]
                visits.append(steps.add(self.rule, items, [size], [*slots, numbers.at(0)]))
                if touched is not None and found is not None:
                    visits.append(steps.add(update_forget, found.most, [], [touched]))
                elif touched is not None:
                    steps.add(update_forget, p.dims[-1], [], [(touched[0], 1)])
            if found is not None:
                found.visits = visits
        stepped = len(steps.words)
        for p in trained:
            steps.add(update_scale, 1, [math.prod(p.dims)], [(twins[p.pid][0].address, 0), numbers.at(_DECAY)])

        survey.close()
        steps.close()
        if not machine.card:
            steps.array[clipped : clipped + 2] = steps.words[LENGTH], len(steps.words)
        lists = [r.lists for r in rows.values()]
        survey.using = steps.using = twins, moments, lists, numbers, norm_twin, report, survey.array, steps.array
        for r in rows.values():
            r.close()
        self._survey, self._steps, self._searched, self._stepped = survey, steps, searched, stepped
        self._numbers, self._norm_twin = numbers, norm_twin
        self._keep = [rows]
        self._twins, self._moment_twins = [twin for of in twins.values() for twin in of], moments
        self._revision, self._machine = revision, machine

    def _bring_home(self) -> None:
        """See to it that the moments on the host are the newest; they may be changed there."""
        for twin in self._moment_twins:
            twin.take_home()

    def _moments_of(self, p: Storage) -> tuple[NDArray[np.floating], ...]:
        """Return the moments of a parameter, zeros if it is new."""
        if p.pid not in self._moments:
            self._moments[p.pid] = tuple(params.aligned(math.prod(p.dims), p.dtype) for _ in range(self.moments))
        return self._moments[p.pid]

    # Settings

    @property
    def learning_rate(self) -> float:
        """η, as kept: rounded to float32."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = single("learning_rate", value)

    def set_learning_rate(self, value: float) -> None:
        """Set η, as ``trainer.learning_rate = ...`` does."""
        self.learning_rate = value

    def restart(self, learning_rate: float | None = None) -> None:
        """Set all moments to 0, and η if one is given.

        Adam goes on counting steps (as in DyNet), so its correction of the bias, which is for moments that begin at 0, is
        that of a later step: the next steps are small.
        """
        self._bring_home()
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
        self._threshold = max(single("set_clip_threshold", thr), 0.0)

    def get_clip_threshold(self) -> float:
        """Return the threshold of `set_clip_threshold`; 0: off."""
        return self._threshold

    def set_sparse_updates(self, su: bool) -> None:
        """Let an update of a look-up table visit only rows with a gradient (True, as at the start), or all rows.

        A row that is not visited keeps its moments, so with Adam the two give different numbers.
        """
        self._sparse = bool(su)
        self._revision = -1

    # Moving averages

    def exponential_moving_average(self, beta: float, update_freq: int = 1) -> None:
        """Keep a moving average of all values.    a = β a + (1-β) θ

        Parameters
        ----------
        beta : β, in (0, 1).
        update_freq : updates from one step of the average to the next; the first is at the first update.

        Raises
        ------
        ConstructionError
            There have been updates already (a RuntimeError and a ValueError).
        ArgumentError
            β outside (0, 1), `update_freq` below 1.

        Notes
        -----
        DyNet has moving averages in C++ only, under these names. It averages the values without weight decay's factor; here the
        average is of what graphs see.
        """
        self._average = MovingAverage(self._collection, self.updates, update_freq, beta)

    def cumulative_moving_average(self, update_freq: int = 1) -> None:
        """Keep the mean of the values after every `update_freq`-th update. Raises as `exponential_moving_average`."""
        self._average = MovingAverage(self._collection, self.updates, update_freq, None)

    def swap_params_to_moving_average(self, save_weights: bool = True, bias_correction: bool = False) -> None:
        """Put the averages in the place of the values: to evaluate, or to save them.

        Parameters
        ----------
        save_weights : keep the values, for `swap_params_to_weights`; False: the averages are the values from now on.
        bias_correction : divide an exponential average by 1-βᵗ: it begins at 0.

        Raises
        ------
        ConstructionError
            No average is kept, or nothing has been averaged yet (a RuntimeError and a ValueError).
        """
        if self._average is None:
            cure = "exponential_moving_average(0.999) before the first update"
            raise ConstructionError(f"{self.whoami()}: no moving average is kept\n  try       {cure}")
        self._average.swap(save_weights, bias_correction)

    def swap_params_to_weights(self) -> None:
        """Put the values back in their place; `update` does so by itself. Nothing to do if they are there.

        Raises
        ------
        ConstructionError
            They were not saved (a RuntimeError and a ValueError).
        """
        if self._average is not None:
            self._average.swap_back(asked=True)

    # Files

    def save(self, fname: files.Path) -> None:
        """Write to a file all that the trainer knows beside the parameters: moments, counters, settings, averages.

        Parameters
        ----------
        fname : path; the file is a NumPy archive (.npz).

        Raises
        ------
        OSError
            The file cannot be written; an old one stays.

        Notes
        -----
        With ``model.save`` and ``model.populate`` training goes on to the bit. DyNet saves trainers in C++ only, in
        another format.
        """
        self._bring_home()
        everything = self._collection._everything()
        about: dict[str, Any] = {
            "trainer": self.whoami(),
            "parameters": state.listed(everything),
            "learning_rate": self._learning_rate,
            "threshold": self._threshold,
            "sparse": self._sparse,
            "counters": [self.updates, self._updates_since, int(self._report[0])],
            "constants": {name: getattr(self, name) for name in self.constants},
            "average": None if self._average is None else self._average.about(),
        }
        arrays = {
            f"moment {j} of {k}": array
            for k, p in enumerate(everything)
            for j, array in enumerate(self._moments.get(p.pid, ()))
        }
        if self._average is not None:
            arrays |= self._average.arrays(everything)
        state.write(files.path_of("save", fname), about, arrays)

    def populate(self, fname: files.Path, learning_rate: float | None = None) -> None:
        """Set all that the trainer knows beside the parameters to what a file says.

        Parameters
        ----------
        fname : path of a file that `save` of a trainer of this class wrote, for parameters of the same sizes in the same order
            (further ones may have come after them).
        learning_rate : η, in place of that of the file.

        Raises
        ------
        MissingFileError, ModelFileError
            No such file, a damaged one, one of another trainer or of other parameters; nothing was changed. (RuntimeErrors)
        """
        path, everything = files.path_of("populate", fname), self._collection._everything()
        background.wait()
        sizes = {
            f"moment {j} of {k}": (math.prod(p.dims), p.dtype) for k, p in enumerate(everything) for j in range(self.moments)
        }
        sizes |= {
            f"{what} of {k}": (math.prod(p.dims), p.dtype) for k, p in enumerate(everything) for what in ("average", "saved")
        }
        rate = None if learning_rate is None else single("learning_rate", learning_rate)
        about, arrays = state.read(path, self.whoami(), everything, sizes)
        try:
            updates, since, clips = map(int, about["counters"])
            constants = {name: about["constants"][name] for name in self.constants}
            average = None if about["average"] is None else MovingAverage.restored(self._collection, about["average"])
            numbers = float(about["learning_rate"]), float(about["threshold"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{path}: damaged: {error}") from None
        self._bring_home()
        for k, p in enumerate(everything):
            for j, moment in enumerate(self._moments_of(p)):
                moment[:] = arrays.get(f"moment {j} of {k}", 0)
        if average is not None:
            average.take(everything, arrays)
        self._average = average
        self._learning_rate, self._threshold = numbers if rate is None else (rate, numbers[1])
        self.set_sparse_updates(about["sparse"])
        self.updates, self._updates_since, self._report[0] = updates, since, clips
        for name, value in constants.items():
            setattr(self, name, tuple(value) if isinstance(value, list) else value)

    # Reports and old names

    def status(self) -> None:
        """Write to stderr: η, and updates and clippings since the last `status`."""
        background.wait()
        sys.stderr.write(f"[lr={self._learning_rate:g} clips={self._report[0]:.0f} updates={self._updates_since}] ")
        self._report[0] = self._updates_since = 0

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

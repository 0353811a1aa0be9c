"""The update rules, with DyNet's formulas and defaults. η: learning rate, g: gradient after clipping, θ: values."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from autobatch.kernels._errors import ArgumentError
from autobatch.kernels.update_adadelta import update_adadelta
from autobatch.kernels.update_adagrad import update_adagrad
from autobatch.kernels.update_adam import update_adam
from autobatch.kernels.update_amsgrad import update_amsgrad
from autobatch.kernels.update_exponentiated import update_exponentiated
from autobatch.kernels.update_momentum import update_momentum
from autobatch.kernels.update_rmsprop import update_rmsprop
from autobatch.kernels.update_sgd import update_sgd
from autobatch.params import ParameterCollection
from autobatch.trainers.trainer import Trainer, single


def _in(trainer: Trainer, what: str, number: float, low: float, high: float = math.inf) -> float:
    """Return a number as float32, in [low, high)."""
    result = single(what, number)
    if not low <= result < high:
        between = f"in [{low:g}, {high:g})" if high < math.inf else f"from {low:g} on"
        raise ArgumentError(f"{trainer.whoami()}: {what} is {number}\n  expected  a number {between}")
    return result


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

    def _fill(self, numbers: NDArray[np.float64]) -> None:
        numbers[0] = self._learning_rate


def cyclical(t: int, low: float, high: float, step_size: float, gamma: float) -> float:
    """Return the learning rate after update t: it goes up and down in triangles of falling height.

        c = ⌊1 + t / 2s⌋        x = |t / s - 2c + 1|        η = min + max(0, 1 - x) (max - min) γᵗ

    Source: "exp range" of Smith 2017, "Cyclical learning rates for training neural networks".
    """
    c = math.floor(1 + t / (2 * step_size))
    x = abs(t / step_size - 2 * c + 1)
    return low + max(0.0, 1 - x) * (high - low) * gamma**t


def _cycle(trainer: Trainer, low: float, high: float, step_size: float, gamma: float) -> tuple[float, float, float, float]:
    """Return the numbers of a cycle, checked."""
    numbers = single("learning_rate_min", low), single("learning_rate_max", high), single("step_size", step_size)
    if not numbers[2] > 0:
        raise ArgumentError(f"{trainer.whoami()}: step_size is {step_size}\n  expected  a number of updates above 0")
    return (*numbers, single("gamma", gamma))


class CyclicalSGDTrainer(Trainer):
    """SGD with a learning rate that goes up and down between two bounds.    θ -= η g

    Parameters
    ----------
    m : the collection to train.
    learning_rate_min, learning_rate_max : bounds of η.
    step_size : updates from one bound to the other.
    gamma : factor of the height of the triangles, once an update.

    Source
    ------
    Smith 2017, "Cyclical learning rates for training neural networks"; see `cyclical` for the formula. As in DyNet, η is
    `learning_rate_min` for the first two updates.
    """

    rule = update_sgd
    constants = ("_cycle",)

    def __init__(
        self,
        m: ParameterCollection,
        learning_rate_min: float = 0.01,
        learning_rate_max: float = 0.1,
        step_size: float = 2000,
        gamma: float = 1.0,
    ) -> None:
        super().__init__(m, learning_rate_min)
        self._cycle = _cycle(self, learning_rate_min, learning_rate_max, step_size, gamma)

    def _fill(self, numbers: NDArray[np.float64]) -> None:
        numbers[0] = self._learning_rate

    def _finish(self) -> None:
        self.learning_rate = cyclical(self.updates - 1, *self._cycle)


class MomentumSGDTrainer(Trainer):
    """SGD with momentum.    v = μ v - η g    θ += v

    Parameters
    ----------
    m : the collection to train.
    learning_rate : η.
    mom : μ, in [0, 1).

    Raises
    ------
    ArgumentError
        μ outside [0, 1).

    Source
    ------
    Polyak 1964.
    """

    rule = update_momentum
    moments = 1
    constants = ("_momentum",)

    def __init__(self, m: ParameterCollection, learning_rate: float = 0.01, mom: float = 0.9) -> None:
        super().__init__(m, learning_rate)
        self._momentum = _in(self, "mom", mom, 0, 1)

    def _fill(self, numbers: NDArray[np.float64]) -> None:
        numbers[:2] = self._learning_rate, self._momentum


class AdagradTrainer(Trainer):
    """Adagrad.    h += g²    θ -= η g / √(h + ε)

    Parameters
    ----------
    m : the collection to train.
    learning_rate : η.
    eps : ε, from 0 on; kept as float32.

    Source
    ------
    Duchi, Hazan and Singer 2011.
    """

    rule = update_adagrad
    moments = 1
    constants = ("_eps",)

    def __init__(self, m: ParameterCollection, learning_rate: float = 0.1, eps: float = 1e-20) -> None:
        super().__init__(m, learning_rate)
        self._eps = _in(self, "eps", eps, 0)

    def _fill(self, numbers: NDArray[np.float64]) -> None:
        numbers[:3] = 1, self._learning_rate, self._eps


class AdadeltaTrainer(Trainer):
    """Adadelta.    h = ρ h + (1-ρ) g²    d = -g √(k + ε) / √(h + ε)    k = ρ k + (1-ρ) d²    θ += d

    Parameters
    ----------
    m : the collection to train.
    eps : ε, from 0 on; kept as float32.
    rho : ρ, in [0, 1).

    Notes
    -----
    There is no learning rate: `learning_rate` is 1 and is not used (as in DyNet).

    Source
    ------
    Zeiler 2012, algorithm 1.
    """

    rule = update_adadelta
    moments = 2
    constants = ("_eps", "_rho")

    def __init__(self, m: ParameterCollection, eps: float = 1e-6, rho: float = 0.95) -> None:
        super().__init__(m, 1.0)
        self._eps, self._rho = _in(self, "eps", eps, 0), _in(self, "rho", rho, 0, 1)

    def _fill(self, numbers: NDArray[np.float64]) -> None:
        numbers[:3] = 1, self._eps, self._rho


class RMSPropTrainer(Trainer):
    """RMSProp.    h = ρ h + (1-ρ) g²    θ -= η g / √(h + ε)

    Parameters
    ----------
    m : the collection to train.
    learning_rate : η.
    eps : ε, from 0 on; kept as float32.
    rho : ρ, in [0, 1).

    Source
    ------
    Tieleman and Hinton 2012, lecture 6.5 of "Neural networks for machine learning".
    """

    rule = update_rmsprop
    moments = 1
    constants = ("_eps", "_rho")

    def __init__(self, m: ParameterCollection, learning_rate: float = 0.001, eps: float = 1e-8, rho: float = 0.9) -> None:
        super().__init__(m, learning_rate)
        self._eps, self._rho = _in(self, "eps", eps, 0), _in(self, "rho", rho, 0, 1)

    def _fill(self, numbers: NDArray[np.float64]) -> None:
        numbers[:4] = 1, self._learning_rate, self._eps, self._rho


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
    constants = ("_betas", "_eps")

    def __init__(
        self, m: ParameterCollection, alpha: float = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(m, alpha)
        self._betas = _in(self, "beta_1", beta_1, 0, 1), _in(self, "beta_2", beta_2, 0, 1)
        self._eps = _in(self, "eps", eps, 0)

    def _fill(self, numbers: NDArray[np.float64]) -> None:
        (beta_1, beta_2), t = self._betas, self.updates + 1
        rate = self._learning_rate * math.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        numbers[:5] = 1, beta_1, beta_2, self._eps, rate


class AmsgradTrainer(AdamTrainer):
    """AMSGrad: Adam with v̂ = max(v̂, v) in place of v.

    Parameters
    ----------
    m, alpha, beta_1, beta_2, eps : as of `AdamTrainer`.

    Source
    ------
    Reddi, Kale and Kumar 2018, algorithm 2, with Adam's correction of the bias, as DyNet does it.
    """

    rule = update_amsgrad
    moments = 3


class EGTrainer(Trainer):
    """Exponentiated gradient with momentum: values stay positive and sum up to 1.    v = μ v - η g    θ = softmax(log θ + v)

    Parameters
    ----------
    m : the collection to train; all values of it must be positive. A parameter is one distribution, of a look-up table
        each row.
    learning_rate : η.
    mom : μ, in [0, 1).
    ne : not used (as in DyNet).

    Raises
    ------
    ArgumentError
        μ outside [0, 1).

    Notes
    -----
    A value of 0 stays 0, a negative one becomes NaN. DyNet has this trainer in C++ only, where it is right for vectors only.

    Source
    ------
    Kivinen and Warmuth 1997.
    """

    rule = update_exponentiated
    moments = 1
    by_rows = True
    constants = ("_momentum", "_cycle", "_start")

    def __init__(self, m: ParameterCollection, learning_rate: float = 0.1, mom: float = 0.9, ne: float = 0.0) -> None:
        super().__init__(m, learning_rate)
        self._momentum = _in(self, "mom", mom, 0, 1)
        self._cycle: tuple[float, float, float, float] | None = None
        self._start = 0  # updates before the cycle began

    def enable_cyclical_learning_rate(
        self,
        learning_rate_min: float = 0.01,
        learning_rate_max: float = 0.1,
        step_size: float = 2000,
        gamma: float = 0.0,
    ) -> None:
        """Let η go up and down as that of `CyclicalSGDTrainer` does. (DyNet: ``enableCyclicalLR``, with these defaults.)"""
        self._cycle = _cycle(self, learning_rate_min, learning_rate_max, step_size, gamma)
        self._start = self.updates

    def _fill(self, numbers: NDArray[np.float64]) -> None:
        numbers[:2] = self._learning_rate, self._momentum

    def _finish(self) -> None:
        if self._cycle is not None:
            self.learning_rate = cyclical(self.updates - self._start - 1, *self._cycle)

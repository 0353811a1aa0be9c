"""Trainers: they turn gradients into steps.

trainer    what all trainers share: the two tables of an update, clipping, weight decay, settings
rules      the update rules
averages   moving averages of the values
tables     tables of instructions, and the touched rows of look-up tables
"""

from autobatch.trainers.rules import (
    AdadeltaTrainer,
    AdagradTrainer,
    AdamTrainer,
    AmsgradTrainer,
    CyclicalSGDTrainer,
    EGTrainer,
    MomentumSGDTrainer,
    RMSPropTrainer,
    SimpleSGDTrainer,
)
from autobatch.trainers.trainer import Trainer

__all__ = [
    "AdadeltaTrainer",
    "AdagradTrainer",
    "AdamTrainer",
    "AmsgradTrainer",
    "CyclicalSGDTrainer",
    "EGTrainer",
    "MomentumSGDTrainer",
    "RMSPropTrainer",
    "SimpleSGDTrainer",
    "Trainer",
]

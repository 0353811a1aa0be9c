"""Which machine graphs run on: the processor, or the card, which is looked for when it is first asked for."""

from __future__ import annotations

from typing import Any

from autobatch.graph import SETTINGS
from autobatch.kernels._errors import ArgumentError, message
from autobatch.machine import PROCESSOR, Machine


def configured_machine() -> Machine:
    """Return what graphs are evaluated on, as `configure(device=...)` says."""
    if SETTINGS.device == "cpu":
        return PROCESSOR
    if SETTINGS.device != "cuda":  # from the environment, as it was written there
        SETTINGS.device = check_device(SETTINGS.device)
        return configured_machine()
    from autobatch.card import card

    return card()


def check_device(device: Any) -> str:
    """Return "cpu" or "cuda"; DyNet's names for them are understood.

    Raises
    ------
    ArgumentError : another name.
    DeviceError : there is no such device here; says what is missing.
    """
    name = str(device).lower()
    if name in ("cpu", "cpu:0"):
        return "cpu"
    if name in ("cuda", "cuda:0", "gpu", "gpu:0"):
        from autobatch.card import card

        card()
        return "cuda"
    raise ArgumentError(message(f"device {device!r} is unknown", expected="'cpu' or 'cuda'"))

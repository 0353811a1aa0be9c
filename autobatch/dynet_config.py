"""Settings in DyNet's way: command-line flags, `set`, `DynetParams`, `init`, devices.

Flags are looked for in ``sys.argv`` when this library is imported; they stay there. ``--dynet-x`` and ``--dynet_x`` are the
same, values follow after "=" or as the next argument.

    seed N            random numbers begin with N; 0: by chance
    autobatch N       0: node by node; anything else: batched (the default here)
    weight-decay λ    of collections made from now on
    devices D         "CPU" or "GPU:0", see docs/cuda.md; others raise. gpu, gpus 1: as GPU:0
    mem M, profiling N, shared-parameters N, viz     accepted, without meaning here
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from autobatch import params, seeds
from autobatch.cg import configure
from autobatch.devices import check_device
from autobatch.graph import SETTINGS
from autobatch.kernels._errors import ArgumentError, DeviceError, OperandError

HAVE_CUDA = False

_WITH_VALUE = {"seed", "autobatch", "weight_decay", "devices", "gpus", "gpu_ids", "mem", "profiling", "shared_parameters"}
_ALONE = {"gpu", "viz", "help"}
_MEANINGLESS = {
    "mem": "memory grows as it is needed",
    "profiling": "there is no profiler; graph.batches counts batches",
    "shared_parameters": "parameters are not shared between processes",
}
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_said: set[str] = set()  # warnings given so far: each once
_settings: dict[str, Any] = {}  # what was set last
_explicit = False  # `set` was called: flags do not count


def _number(name: str, text: Any, kind: type) -> Any:
    try:
        return kind(text)
    except (TypeError, ValueError):
        what = "a whole number" if kind is int else "a number"
        raise ArgumentError(f"--dynet-{name.replace('_', '-')}: {text!r}\n  expected  {what}") from None


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings that DyNet's flags among command-line arguments ask for.

    Raises
    ------
    ArgumentError : an unknown flag, a missing or wrong value.
    """
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith(("--dynet-", "--dynet_")):
            continue
        name, equals, value = argument[8:].partition("=")
        name = name.replace("-", "_")
        if name in _ALONE:
            found[name] = True
        elif name not in _WITH_VALUE:
            known = ", ".join(sorted("--dynet-" + n.replace("_", "-") for n in _WITH_VALUE | _ALONE))
            cure = "\n  try       --dynet-weight-decay" if name == "l2" else ""  # its name long ago
            raise ArgumentError(f"{argument}: no such flag\n  expected  one of {known}{cure}")
        else:
            if not equals:
                if not rest:
                    raise ArgumentError(f"{argument}: the value is missing")
                value = rest.pop(0)
            kind = {"seed": int, "autobatch": int, "gpus": int, "profiling": int, "weight_decay": float}.get(name, str)
            found[name] = _number(name, value, kind)
    return found


def apply(settings: dict[str, Any]) -> None:
    """Put settings into effect.

    Raises
    ------
    DeviceError : a device that is not there (a RuntimeError, as in DyNet without CUDA). Nothing is changed then.
    ArgumentError : a weight decay outside of [0, 1), a seed that has no 32 bits.
    """
    devices = [d for d in str(settings.get("devices", "CPU")).split(",") if d != "CPU"]
    if settings.get("gpu") or settings.get("gpus") or settings.get("gpu_ids"):
        devices.append("GPU:0")
    if devices:
        if any(d not in ("GPU:0", "GPU") for d in devices) or int(settings.get("gpus") or 0) > 1:
            raise DeviceError(f"devices {', '.join(devices)}: several cards, or another one\n  expected  CPU, or GPU:0 alone")
        configure(device="cuda")
    elif "devices" in settings:
        configure(device="cpu")
    if "weight_decay" in settings:
        params.configure_weight_decay(settings["weight_decay"])
    if "seed" in settings:
        try:
            seeds.configure(settings["seed"])
        except OverflowError as error:
            raise ArgumentError(str(error)) from None
    if "autobatch" in settings:
        configure(policy="ratio" if settings["autobatch"] else "none")
    for name, why in _MEANINGLESS.items():
        if settings.get(name) not in (None, 0, "0") and name not in _said:
            _said.add(name)
            _warn(f"--dynet-{name.replace('_', '-')} has no meaning here: {why}")
    _settings.update(settings)


def _warn(text: str) -> None:
    """Warn at the line of the program that led here, if only by an import."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_PACKAGE, "<frozen ")):
        frame = frame.f_back
    where = ("command line", 1) if frame is None else (frame.f_code.co_filename, frame.f_lineno)  # `python -m autobatch.dynet`
    warnings.warn_explicit(text, UserWarning, *where)


def start(arguments: Sequence[str]) -> None:
    """Read DyNet's flags among command-line arguments, unless `set` was called."""
    if not _explicit:
        apply(parse(arguments))


# As the module dynet_config of DyNet ----------------------------------------------------------------------------------


def set(
    mem: str | int | None = None,
    random_seed: int = 0,
    autobatch: int | None = None,
    profiling: int = 0,
    weight_decay: float = 0,
    shared_parameters: int = 0,
    requested_gpus: int = 0,
    gpu_mask: Any = None,
) -> None:
    """Set what flags set, in place of them. (DyNet: ``dynet_config.set``, before ``import dynet``; here at any time.)

    Parameters
    ----------
    random_seed : 0 leaves it as it is.
    autobatch : 0: node by node, anything else: batched; None leaves it as it is. (DyNet: 0 is the default.)
    weight_decay : λ of collections made from now on.
    requested_gpus : 1 for a GPU; without one, graphs run on the CPU, and a warning says so (DyNet: nothing does).
    mem, profiling, shared_parameters, gpu_mask : without meaning here.
    """
    global _explicit
    settings: dict[str, Any] = {"weight_decay": weight_decay, "gpus": requested_gpus, "profiling": profiling}
    if random_seed:
        settings["seed"] = random_seed
    if autobatch is not None:
        settings["autobatch"] = autobatch
    if mem is not None:
        settings["mem"] = mem
    if shared_parameters:
        settings["shared_parameters"] = shared_parameters
    _apply_or_warn(settings)
    _explicit = True


def set_gpu(flag: bool = True) -> None:
    """Let graphs run on a GPU, if there is one (if not, say so and go on, as DyNet does), or not."""
    _apply_or_warn({"gpu": True} if flag else {"gpu": False, "devices": "CPU"})


def _apply_or_warn(settings: dict[str, Any]) -> None:
    """As `apply`, but go on without a GPU that a program asks for in passing, and this machine has not."""
    try:
        apply(settings)
    except DeviceError as error:
        _warn(f"a GPU was asked for; graphs run on the CPU: {str(error).splitlines()[0]}")
        apply({k: v for k, v in settings.items() if k not in ("gpu", "gpus", "gpu_ids")})


def gpu() -> bool:
    """Return whether graphs run on a GPU."""
    return SETTINGS.device == "cuda"


def get() -> dict[str, Any]:
    """Return what was set so far, by name."""
    return dict(_settings)


# DynetParams, init, devices -------------------------------------------------------------------------------------------


class DynetParams:
    """Settings collected one by one, then put into effect by `init`. (DyNet: ``_dynet.DynetParams``.)"""

    def __init__(self) -> None:
        self._settings: dict[str, Any] = {}
        self._apply = apply

    def from_args(self, shared_parameters: Any = None) -> None:
        """Take the settings of the command line."""
        self._settings = parse(sys.argv)

    def from_config(self, conf: Any) -> None:
        """Take the settings of a dict as `get` returns it."""
        if not isinstance(conf, Mapping):
            raise OperandError(f"from_config: {type(conf).__name__}\n  expected  a dict as dynet_config.get() returns it")
        unknown = [key for key in conf if key not in _WITH_VALUE | _ALONE]
        if unknown:
            raise ArgumentError(f"from_config: {unknown[0]!r:.60}\n  expected  {', '.join(sorted(_WITH_VALUE | _ALONE))}")
        self._settings = dict(conf)

    def init(self) -> None:
        """Put the settings into effect. Without the GPU that a program asks for graphs run on the CPU; a flag's is an error."""
        self._apply(self._settings)

    def set_mem(self, mem: Any) -> None:
        """Without meaning here."""
        self._settings["mem"] = mem

    def set_random_seed(self, random_seed: int) -> None:
        """Set the seed; 0: by chance."""
        self._settings["seed"] = random_seed

    def set_autobatch(self, autobatch: bool) -> None:
        """Set whether graphs are batched."""
        self._settings["autobatch"] = bool(autobatch)

    def set_profiling(self, profiling: int) -> None:
        """Without meaning here."""
        self._settings["profiling"] = profiling

    def set_weight_decay(self, weight_decay: float) -> None:
        """Set λ of collections made from then on."""
        self._settings["weight_decay"] = weight_decay

    def set_shared_parameters(self, shared_parameters: bool) -> None:
        """Without meaning here."""
        self._settings["shared_parameters"] = bool(shared_parameters)

    def set_requested_gpus(self, requested_gpus: int) -> None:
        """Ask for a GPU."""
        self._settings["gpus"], self._apply = requested_gpus, _apply_or_warn

    def set_gpu_mask(self, gpu_mask: Any) -> None:
        """Ask for certain GPUs; `init` takes the first one."""
        self._settings["gpu_ids"] = any(gpu_mask) if isinstance(gpu_mask, Iterable) else bool(gpu_mask)
        self._apply = _apply_or_warn

    def set_cpu_mode(self) -> None:
        """Ask for no GPU."""
        self._settings["gpus"] = 0


def init(shared_parameters: Any = None) -> None:
    """Read the flags of the command line again. (Not needed: importing the library does so.)"""
    start(sys.argv)


def init_from_params(params: DynetParams) -> None:
    """Put settings into effect."""
    if not isinstance(params, DynetParams):
        raise OperandError(f"init_from_params: {type(params).__name__}\n  expected  DynetParams")
    params.init()


class DeviceInfo(NamedTuple):
    """What is known of a device."""

    name: str
    type: str
    id: int


def available_devices() -> list[bytes]:
    """Return the names of the devices, as bytes (as DyNet does)."""
    try:
        check_device("GPU:0")
    except DeviceError:
        return [b"CPU"]
    return [b"CPU", b"GPU:0"]


def get_device_info(name: str) -> DeviceInfo:
    """Return what is known of a device.

    Raises
    ------
    DeviceError : there is no such device.
    """
    if isinstance(name, (str, bytes)) and name in ("GPU:0", b"GPU:0") and b"GPU:0" in available_devices():
        return DeviceInfo("GPU:0", "GPU", 0)
    if not isinstance(name, (str, bytes)) or name not in ("", "CPU", b"CPU"):
        known = ", ".join(d.decode() for d in available_devices())
        raise DeviceError(f"there is no device {name!r:.60}\n  expected  {known}")
    return DeviceInfo("CPU", "CPU", 0)

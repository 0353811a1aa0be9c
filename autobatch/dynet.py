"""Run a program written for DyNet without changing it:

    python -m autobatch.dynet SCRIPT ARGS...

For that one process ``import dynet``, ``_dynet``, ``dynet_config`` and ``dynet_viz`` mean this library. Nothing is installed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import pickle
import runpy
import sys
import types
from collections.abc import Sequence

import numpy as np

import autobatch
from autobatch import drawing, dynet_config

_NAMES = ("dynet", "_dynet")
VERSION = "2.1"  # that DyNet 2.2 reports


def module(name: str) -> types.ModuleType:
    """Return a module as ``import dynet`` gives it: the public names of this library, and what DyNet itself imports."""
    made = types.ModuleType(name, autobatch.__doc__)
    made.__dict__.update({n: getattr(autobatch, n) for n in autobatch.__all__})
    made.__dict__.update({"__all__": list(autobatch.__all__), "__version__": VERSION, "HAVE_CUDA": dynet_config.HAVE_CUDA})
    made.__dict__.update({"np": np, "os": os, "sys": sys, "pickle": pickle, "dynet_config": dynet_config})
    return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes the modules when they are imported: only then the flags of the command line are read."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in _NAMES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "dynet":
            dynet_config.start(sys.argv)


def install() -> None:
    """Let the names of DyNet's modules mean this library, in this process."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    sys.modules["dynet_config"] = dynet_config
    sys.modules["dynet_viz"] = drawing


def main(arguments: Sequence[str]) -> None:
    """Run a script as ``python SCRIPT ARGS...`` would."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        raise SystemExit(0 if arguments else 2)
    script = arguments[0]
    if not os.path.exists(script):
        raise SystemExit(f"autobatch.dynet: there is no file {script}")
    install()
    sys.argv = list(arguments)
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])

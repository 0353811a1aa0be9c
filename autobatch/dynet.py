"""Run a program written for DyNet without changing it:

    python -m autobatch.dynet SCRIPT ARGS...
    python -m autobatch.dynet -m MODULE ARGS...

For that one process, and those that it starts, ``import dynet``, ``_dynet``, ``dynet_config`` and ``dynet_viz`` mean this
library: their stand-ins lie in a folder that comes first among those that modules are looked for in. Nothing is installed.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import autobatch
from autobatch import drawing, dynet_config

VERSION = "2.1"  # that DyNet 2.2 reports
_STAND_INS = str(pathlib.Path(__file__).resolve().parent / "stand_ins")


def print_graphviz(
    compact: bool = False,
    show_dims: bool = True,
    expression_names: Mapping[Any, str] | None = None,
    lookup_names: Any = None,
    collapse_birnns: bool = False,
) -> None:
    """Write the current graph to stdout in the language of Graphviz, as DyNet does with ``--dynet-viz``."""
    print("\n".join(drawing.graphviz_lines(show_dims, expression_names, compact)))


def names() -> dict[str, Any]:
    """Return what ``import dynet`` gives: the public names of this library, and what DyNet itself imports."""
    found: dict[str, Any] = {n: getattr(autobatch, n) for n in autobatch.__all__}
    found |= {"np": np, "os": os, "sys": sys, "pickle": pickle, "dynet_config": dynet_config}
    found |= {"__all__": list(found), "__version__": VERSION, "HAVE_CUDA": dynet_config.HAVE_CUDA}
    return found | {"print_graphviz": print_graphviz}


def install() -> None:
    """Let the names of DyNet's modules mean this library, in this process and those that it starts; in a notebook, say."""
    if _STAND_INS not in sys.path:
        sys.path.insert(0, _STAND_INS)


def main(arguments: Sequence[str]) -> None:
    """Run a script as ``python SCRIPT ARGS...`` would, or a module as ``python -m MODULE ARGS...``."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "-m":
        if len(arguments) < 2:
            raise SystemExit("autobatch.dynet: -m needs the name of a module")
        install()
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    script = os.path.abspath(arguments[0])
    if not os.path.exists(script):
        raise SystemExit(f"autobatch.dynet: there is no file {arguments[0]}")
    sys.argv = list(arguments)
    sys.path[0] = os.path.dirname(script)
    install()
    try:
        runpy.run_path(script, run_name="__main__")
    except Exception as error:
        _show(error, script)
        raise SystemExit(1) from None


def _show(error: Exception, script: str) -> None:
    """Show an error as ``python SCRIPT`` would, from the script on."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename != script:
        traceback = traceback.tb_next
    traceback = traceback or error.__traceback__
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)


if __name__ == "__main__":
    main(sys.argv[1:])

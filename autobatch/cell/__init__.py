"""Cells: a function of expressions that is traced once for each signature, and then recorded as one node a call.

cells.py    `cell` itself: what a call does, and how fast
trace.py    the function run once, on stand-ins
body.py     what was recorded as programs of few steps: fused, laid out, with all gradients
"""

from autobatch.cell.cells import cell

__all__ = ["cell"]

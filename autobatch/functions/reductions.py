"""Reductions: over all numbers of a node, over dims, over the minibatch."""

from __future__ import annotations

from autobatch.shortcuts import _unary

sum_elems = _unary("sum_elems")
sum_batches = _unary("sum_batches")

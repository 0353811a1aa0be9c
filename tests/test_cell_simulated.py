"""Cells as on a card: each step of a program once over all calls, thread by thread, gives what a processor gives."""

import numpy as np
import pytest

pytest.importorskip("greenlet")

from laws import EXACT, FLOAT32_GRAPH, close
from simulated import simulated
from test_cell import PROGRAMS, Function, Outcome, outcome, same

import autobatch as ab
from autobatch.graph import TYPES
from autobatch.kernels._jit import ALONE
from autobatch.kernels._op import OPS, SHARED
from autobatch.kernels._rows import add_all_rows

SMALL = {"a_step_of_a_builder", "a_weight_used_in_all_ways", "recursion", "cells_of_cells"}  # in one dtype: they take seconds
CASES = [(p, d) for p in PROGRAMS for d in ("float64", "float32") if d == "float64" or p.__name__ not in SMALL]


@pytest.mark.parametrize("program, dtype", CASES, ids=lambda v: getattr(v, "__name__", v))
def test_calls_of_all_kinds(program, dtype):
    """Nested ones, methods, lists, parameters in all roles: values, and gradients of inputs, parameters and tables."""
    forms, expected, _ = outcome(program, ab.cell, dtype, "ratio")
    with simulated():
        ours, got, _ = outcome(program, ab.cell, dtype, "ratio")
    assert ours == forms
    for a, b in zip(got, expected, strict=True):
        close(a, b, EXACT if dtype == "float64" else FLOAT32_GRAPH)


@pytest.mark.parametrize("seed", range(12))
def test_random_functions(seed):
    """With minibatches, arguments of all sources, results asked for one by one."""
    function, dtype = Function(seed), ("float64", "float32")[seed % 2]
    expected = Outcome(function, True, dtype, "ratio")
    with simulated():
        ours = Outcome(function, True, dtype, "ratio")
    same(ours, expected, EXACT if dtype == "float64" else FLOAT32_GRAPH)


# Longer rows than a team has lanes, in minibatches of several sizes -----------------------------------------------------


class Tree:
    """A node of a binary Tree-LSTM and a classifier, as cells; the first is called from a cell of two levels."""

    def __init__(self, dtype, H=37):
        rng = np.random.default_rng(3)
        self.collection = m = ab.ParameterCollection(dtype=dtype)
        self.W = [m.add_parameters((4 * H, H), init=rng.uniform(-0.3, 0.3, (4 * H, H))) for _ in range(2)]
        self.b = m.add_parameters((4 * H,), init=rng.uniform(-1, 1, 4 * H))
        self.gain = m.add_parameters((H,), init=rng.uniform(-1, 1, H))
        self.H = H
        self.node = ab.cell(self.plain)
        self.two_levels = ab.cell(lambda a, b, c, d: self.node(*self.node(*a, *b), *self.node(*c, *d)))

    def plain(self, h1, c1, h2, c2):
        gates = ab.affine_transform([self.b, self.W[0], h1, self.W[1], h2])
        i, f, o, g = (gates[k * self.H : (k + 1) * self.H] for k in range(4))
        c = ab.cmult(ab.logistic(i), ab.tanh(g)) + ab.cmult(ab.logistic(f), ab.cmult(c1, self.gain) + c2)
        return ab.cmult(ab.logistic(o), ab.tanh(c)), c

    def results(self, batch, dtype):
        rng = np.random.default_rng(7)
        with ab.Graph(dtype=dtype):
            leaves = [
                [ab.inputTensor(rng.uniform(-1, 1, (self.H, batch)), batched=batch > 1) for _ in range(2)] for _ in range(8)
            ]
            tops = [self.two_levels(*leaves[k : k + 4]) for k in (0, 4)]
            tops.append(self.node(*tops[0], *tops[1]))
            loss = ab.esum([ab.sum_batches(ab.squared_norm(h) + ab.sum_elems(c)) for h, c in tops])
            loss.backward(full=True)
            found = [e.npvalue() for top in tops for e in top] + [e.gradient() for leaf in leaves for e in leaf]
        found += [p.grad_as_array().copy() for p in self.collection.parameters_list()]
        self.collection.reset_gradient()
        return found


@pytest.mark.parametrize("dtype, batch", [("float64", 3), ("float32", 1)])
def test_a_tree_of_long_rows(dtype, batch):
    tree = Tree(dtype)
    expected = tree.results(batch, dtype)
    with simulated():
        got = tree.results(batch, dtype)
    for a, b in zip(got, expected, strict=True):
        close(a, b, EXACT if dtype == "float64" else FLOAT32_GRAPH)


# What all calls add to ------------------------------------------------------------------------------------------------


def test_steps_that_add_to_a_parameter_know_it():
    """All calls run at the same time: what adds to one place takes all rows at once, or is marked to go one by one."""
    for program in PROGRAMS:
        outcome(program, ab.cell)
    shared = {o.backward for op in OPS.values() for o in _operands(op) if o.writes == SHARED}
    looked_at = 0
    for record in TYPES.records:
        if record.lowering is None or not hasattr(record.lowering.forward, "programs"):
            continue
        programs = record.lowering.forward.programs.programs
        for k, operand in enumerate(record.lowering.operands):
            if operand.writes != SHARED:
                continue
            for step in programs[2 + k]:
                looked_at += 1
                assert step.kernel is add_all_rows or step.kernel in shared or step.mode & ALONE, (record.name, step)
    assert looked_at > 20


def _operands(op):
    """Return the operands of all node types of an op so far."""
    lowerings = [r.lowering for r in TYPES.records if r.op is op and r.lowering is not None]
    return [o for low in lowerings for o in low.operands]

"""Chains of cells as they run on a card: in the simulator, the other kernels of a cell on the processor."""

import ctypes
import re

import numpy as np
import pytest
import simulated

import autobatch as ab
from autobatch.kernels._cuda import numba_cuda
from autobatch.kernels._errors import DeviceError


def gated(x, z):
    return ab.cmult(ab.tanh(ab.cmult(x, z) + ab.logistic(x)), z)


def two_parts_that_overlap(x, z):
    a, b = ab.pick_range(x, 0, 40), ab.pick_range(x, 20, 60)
    return ab.cmult(ab.tanh(a + b), ab.logistic(b))


def three_parts_that_overlap(x, z):
    p, q, r = (ab.pick_range(x, k, k + 20) for k in (0, 10, 20))
    return ab.tanh(ab.cmult(p, q) + ab.exp(r)), ab.cmult(p, r)


def parts_of_a_value(x, z):
    s = ab.tanh(x)
    a, b = ab.pick_range(s, 0, 40), ab.pick_range(s, 20, 60)
    return ab.cmult(a, b) + a


def single_numbers(x, z):
    return ab.cmult(x, ab.sum_elems(z)) + ab.cmult(ab.tanh(x), ab.pick(z, 3))


FUNCTIONS = [gated, two_parts_that_overlap, three_parts_that_overlap, parts_of_a_value, single_numbers]


def results(function, dtype):
    """Values and gradients of three calls."""
    ab.configure(dtype=dtype)
    ab.renew_cg()
    cell, rng, inputs, outs = ab.cell(function), np.random.default_rng(0), [], []
    for _ in range(3):
        x, z = (ab.inputTensor(rng.uniform(-1, 1, 60)) for _ in range(2))
        out = cell(x, z)
        inputs += [x, z]
        outs += list(out) if isinstance(out, tuple) else [out]
    values = [np.array(o.npvalue()) for o in outs]
    ab.esum([ab.sum_elems(ab.cmult(o, o)) for o in outs]).backward(full=True)
    return values + [np.array(e.gradient()) for e in inputs]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_chains_of_a_cell(function, dtype, monkeypatch):
    chains, launch = {}, simulated._Machine.launch

    def chains_only(machine, kernel, ins):
        if kernel.name.startswith("chain"):
            chains[kernel.name] = kernel
            launch(machine, kernel, ins)
        else:
            call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)
            call(kernel.address(machine.dtype))(ins, machine.real_scratch)

    expected = results(function, dtype)
    monkeypatch.setattr(simulated._Machine, "launch", chains_only)
    with simulated.simulated():
        got = results(function, dtype)
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
    assert chains
    try:
        numba_cuda()
    except DeviceError:
        return
    from autobatch.kernels._cuda import compile_kernel

    for kernel in chains.values():
        made = compile_kernel(kernel.card.function or kernel.function, dtype, (9, 0))
        assert made.local == made.spills == 0
        assert dtype == "float64" or not re.search(r"\.f64\b", made.ptx)

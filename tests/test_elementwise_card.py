"""Loops of elementwise ops as they run on a card: all ways in which shapes broadcast, few and many results of a gradient."""

import numpy as np
import pytest
from fake_driver import simulated_card

import autobatch as ab

SHAPES = [
    ((7,), (7,)),
    ((7,), (1,)),
    ((300, 2), (300,)),  # many results of few numbers: strips of lanes
    ((3, 200), (3,)),  # few results of many: all lanes form one
    ((3, 4, 5), (1, 4)),
    ((1, 6), (5, 1)),  # both sides are stretched
    ((2, 3, 2, 3), (1, 3, 1, 3)),
]


def results(dims, batches, dtype):
    ab.configure(dtype=dtype)
    ab.renew_cg()
    rng, inputs, outs = np.random.default_rng(0), [], []
    for _ in range(2):
        pair = [
            ab.inputTensor(rng.uniform(0.5, 2, (*d, b)) if b > 1 else rng.uniform(0.5, 2, d), batched=b > 1)
            for d, b in zip(dims, batches, strict=True)
        ]
        inputs += pair
        outs.append(ab.cdiv(*pair))
    values = [np.array(o.npvalue()) for o in outs]
    ab.esum([ab.sum_batches(ab.sum_elems(ab.cmult(o, o))) for o in outs]).backward(full=True)
    return values + [np.array(e.gradient()) for e in inputs]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batches", [(1, 1), (3, 1), (1, 3), (3, 3)])
@pytest.mark.parametrize("dims", SHAPES)
def test_all_ways_to_broadcast(dims, batches, dtype):
    expected = results(dims, batches, dtype)
    with simulated_card():
        got = results(dims, batches, dtype)
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())

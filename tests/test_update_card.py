"""Update rules as they run on a card: the same steps in the simulator as on a processor; lists of touched rows in order."""

import importlib
import pkgutil

import numpy as np
import pytest
from simulator import Simulator

import autobatch.kernels
from autobatch.kernels._cuda import numba_cuda
from autobatch.kernels._device import works_together
from autobatch.kernels._errors import DeviceError
from autobatch.kernels._jit import ACCUMULATE, SLOTS, Kernel
from autobatch.kernels._update import numbers_of_card
from autobatch.kernels._vm import run

NAMES = [m.name for m in pkgutil.iter_modules(autobatch.kernels.__path__) if m.name.startswith("update_")]
KERNELS = {
    k.name: k
    for name in NAMES
    for k in vars(importlib.import_module(f"autobatch.kernels.{name}")).values()
    if isinstance(k, Kernel) and k.name != "update_clip"  # which is for processors
}
NUMBERS = {  # of each rule, and how many arrays it has
    "update_adadelta": ([0.5, 1e-6, 0.95], 4),
    "update_adagrad": ([0.5, 0.1, 1e-20], 3),
    "update_adam": ([0.5, 0.9, 0.999, 1e-8, 0.01], 4),
    "update_amsgrad": ([0.5, 0.9, 0.999, 1e-8, 0.01], 5),
    "update_average": ([0.9, 0.1], 2),
    "update_exponentiated": ([0.1, 0.9], 3),
    "update_momentum": ([0.1, 0.9], 3),
    "update_rmsprop": ([0.5, 0.1, 1e-20, 0.9], 3),
    "update_scale": ([0.99], 1),
    "update_sgd": ([0.1], 2),
}


class Card:
    """Memory of the simulator, and what an instruction becomes."""

    def __init__(self, dtype):
        self.sim, self.dtype, self.kept = Simulator(), dtype, []
        self.scratch = self.address(np.full(1 << 14, np.nan))

    def address(self, array):
        self.kept.append(array)
        return self.sim.add(array.reshape(-1).view(np.uint8))

    def instruction(self, items, sizes, slots, flags=0):
        sizes = np.array(sizes or [0], np.int64)
        words = [0, SLOTS + 2 * len(slots), items, self.address(sizes), flags, *(w for slot in slots for w in slot)]
        table = np.array(words, np.int64)
        return table, self.address(table), tuple(sizes.tolist())

    def launch(self, kernel, instruction, width=8):
        table, at, sizes = instruction
        n, card = int(table[2]), kernel.card
        if card.stages is not None:
            for s in card.stages(sizes):
                assert s.scratch.of(n) * np.dtype(self.dtype).itemsize <= self.kept[0].nbytes
                self.sim.launch(s.function, (s.x.of(n), s.y.of(n), s.z.of(n)), s.threads, at, self.dtype, self.scratch)
            return
        together = works_together(kernel.function)
        work = card.work(sizes) if card.work else width
        grid = (max(n // 2, 1), 1 if together else 2, 1)
        self.sim.launch(card.function or kernel.function, grid, (min(width, work), 2), at, self.dtype, self.scratch)


def test_all_rules_are_tested():
    assert {*NUMBERS, "update_norm", "update_rows", "update_forget"} == set(KERNELS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_rule_makes_the_same_steps_on_a_card(name, dtype):
    numbers, count = NUMBERS[name]
    rng = np.random.default_rng(1)
    n, size = 5, 11
    arrays = [rng.uniform(0.1, 1, (n, size)).astype(dtype) for _ in range(count)]
    copies = [a.copy() for a in arrays]
    kernel, step = KERNELS[name], size * arrays[0].itemsize
    values, sizes = np.array(numbers), np.array([size], np.int64)
    words = [kernel.address(dtype), SLOTS + 2 * count + 2, n, sizes.ctypes.data, 0]
    words += [w for a in arrays for w in (a.ctypes.data, step)] + [values.ctypes.data, 0]
    table = np.array(words, np.int64)
    run(table.ctypes.data, len(words), 0)

    card = Card(dtype)
    slots = [(card.address(a), step) for a in copies] + [(card.address(numbers_of_card(numbers, dtype)), 0)]
    card.launch(kernel, card.instruction(n, [size], slots))
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    for a, b in zip(arrays, copies, strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "size"), [(1, 20001), (3, 5), (130, 40)])
def test_norm(n, size, dtype, monkeypatch):
    rng = np.random.default_rng(2)
    g = rng.standard_normal((n, size)).astype(dtype)
    total = np.array([3.0])
    card = Card(dtype)
    slots = [(card.address(g), size * g.itemsize), (card.address(total), 0)]
    card.launch(KERNELS["update_norm"], card.instruction(n, [size], slots, ACCUMULATE))
    truth = (g.astype(np.float64) ** 2).sum()
    np.testing.assert_allclose(total, 3 + truth, rtol=1e-12)
    card.launch(KERNELS["update_norm"], card.instruction(n, [size], slots))
    np.testing.assert_allclose(total, truth, rtol=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 100, 2048, 5003])
def test_touched_rows_are_listed_in_order(rows):
    rng = np.random.default_rng(rows)
    touched = np.zeros(-(-rows // 8) * 8, np.uint8)[:rows]
    touched[rng.random(rows) < 0.02] = 1
    touched[[0, -1]] = 1
    card = Card("float32")
    lists = np.full((2, rows), -1, np.int64)
    places = [card.address(lists[k]) for k in range(2)]
    words = np.zeros(3, np.int64)
    counts = [card.address(words) + 8 * k for k in range(3)]
    sizes = [rows, 2, 3, 1000, 40, places[0], 5_000_000, 24, places[1], *counts]
    card.launch(KERNELS["update_rows"], card.instruction(1, sizes, [(card.address(touched), 0)]))
    found = np.flatnonzero(touched)
    assert words.tolist() == [found.size] * 3
    np.testing.assert_array_equal(lists[0, : found.size], 1000 + 40 * found)
    np.testing.assert_array_equal(lists[1, : found.size], 5_000_000 + 24 * found)
    assert (lists[:, found.size :] == -1).all()


def test_touched_rows_are_forgotten():
    touched = np.ones(9, np.uint8)
    card = Card("float32")
    card.launch(KERNELS["update_forget"], card.instruction(8, [], [(card.address(touched), 1)]))
    assert touched.tolist() == [0] * 8 + [1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_rules_compile_for_a_card(name, dtype):
    try:
        numba_cuda()
    except DeviceError:
        pytest.skip("numba-cuda is not installed")
    from autobatch.kernels._cuda import compile_kernel

    kernel = KERNELS[name]
    stages = kernel.card.stages([100, 1, 1]) if kernel.card.stages else []
    for function in [s.function for s in stages] or [kernel.card.function or kernel.function]:
        made = compile_kernel(function, dtype, (9, 0))
        assert made.local == made.spills == 0
        assert made.registers <= 128
        if dtype == "float32" and name != "update_norm":
            assert ".f64 " not in made.ptx.replace("\t", " ")

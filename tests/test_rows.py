"""Kernels that copy and add rows give what NumPy gives, on a processor and as on a card."""

import ctypes
import itertools

import numpy as np
import pytest
from simulator import Simulator

from autobatch.cuda.launch import geometry
from autobatch.kernels import _cuda, _rows
from autobatch.kernels._device import works_together
from autobatch.kernels._jit import ACCUMULATE, Kernel

MACHINES = ["processor", "card"]
DTYPES = ["float32", "float64"]


def perform(machine, kernel, n, size, flags, slots, memory):
    """Run one instruction of a kernel; `memory`: all arrays that it may touch."""
    dtype, sizes = memory[0].dtype.name, np.array([size], np.int64)
    ins = np.array([0, 0, n, sizes.ctypes.data, flags, *(word for s in slots for word in s)], np.int64)
    if machine == "processor":
        entry = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(kernel.address(dtype))
        entry(ins.ctypes.data, 0)
        return
    simulator = Simulator()
    scratch = np.full(1 << 14, np.nan)
    for array in (ins, sizes, scratch, *memory):
        simulator.add(array.reshape(-1).view(np.uint8))
    if kernel.card.stages is None:
        x, y, *threads = geometry(n, kernel.card.work((size,)), works_together(kernel.function))
        simulator.launch(kernel.function, (x, y, 1), tuple(threads), ins.ctypes.data, dtype, 0)
        return
    for s in kernel.card.stages((size,)):
        if s.runs(n, dtype):
            grid = s.x.of(n), s.y.of(n), s.z.of(n)
            assert s.scratch.of(n) <= scratch.size
            simulator.launch(s.function, grid, s.threads, ins.ctypes.data, dtype, scratch.ctypes.data)


def rows(rng, n, size, dtype, form):
    """Return n rows, the slot that tells of them, and all memory there is to it: side by side, with gaps, or anywhere."""
    gap = 0 if form == "dense" else 3
    memory = rng.standard_normal((n, size + gap)).astype(dtype)
    order = rng.permutation(n) if form == "list" else np.arange(n)
    places = np.array([memory[k].ctypes.data for k in order], np.int64)
    slot = (places.ctypes.data, -1) if form == "list" else (memory.ctypes.data, memory.strides[0])
    return memory[order, :size], slot, [memory, places], lambda: memory[order, :size]


FORMS = ["dense", "gaps", "list"]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("to", FORMS)
@pytest.mark.parametrize("form", FORMS)
def test_copy_add_zero(machine, dtype, to, form):
    """Row by row, wherever the rows lie."""
    rng = np.random.default_rng(3)
    for n, size in ((1, 1), (5, 3), (3, 70)):
        for kernel in (_rows.copy_rows, _rows.add_rows, _rows.zero_rows):
            for flags in (0, ACCUMULATE):
                y, y_slot, y_memory, now = rows(rng, n, size, dtype, to)
                x, x_slot, x_memory, _ = rows(rng, n, size, dtype, form)
                around = y_memory[0].copy()
                perform(machine, kernel, n, size, flags, [y_slot, x_slot], [*y_memory, *x_memory])
                expected = {"copy_rows": x, "add_rows": y * bool(flags) + x, "zero_rows": 0 * y}[kernel.name]
                np.testing.assert_array_equal(now(), expected)
                np.testing.assert_array_equal(y_memory[0][:, size:], around[:, size:])


# Groups ---------------------------------------------------------------------------------------------------------------


def groups(rng, lengths):
    """Return items in the order of their groups, and where each group begins; in a group they stand in order."""
    begins = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    order = rng.permutation(begins[-1]).astype(np.int64)
    for a, b in itertools.pairwise(begins):
        order[a:b].sort()
    return order, begins


# One group or many, short ones, long ones beside short ones; more than 64 of them take other blocks on a card.
LENGTHS = [[1], [300, 1, 2], [7, 33, 8, 9], [3, 1, 70, 2, 1] * 13]


def tolerance(dtype, lengths):
    """What rounding in a sum of normal numbers may come to: grows with the longest group."""
    return {"rtol": 0, "atol": 4 * max(8, *lengths) * np.finfo(dtype).eps}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["gaps", "list"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)}groups{sum(lengths)}")
def test_add_groups(machine, dtype, form, lengths):
    """Rows of a group add up in its place."""
    rng = np.random.default_rng(len(lengths))
    for size in (33,) if len(lengths) < 4 else (5,):
        order, begins = groups(rng, lengths)
        for flags in (0, ACCUMULATE) if len(lengths) < 10 else (0,):
            x, x_slot, x_memory, _ = rows(rng, len(order), size, dtype, form)
            y, y_slot, y_memory, now = rows(rng, len(lengths), size, dtype, "list")
            slots = [y_slot, x_slot, (order.ctypes.data, 8), (begins.ctypes.data, 8)]
            memory = [*y_memory, *x_memory, order, begins]
            perform(machine, _rows.add_groups, len(lengths), size, flags, slots, memory)
            sums = np.add.reduceat(x[order].astype(np.float64), begins[:-1])
            np.testing.assert_allclose(now(), sums + y * bool(flags), **tolerance(dtype, lengths))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["gaps", "list"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{len(lengths)}groups{sum(lengths)}")
def test_add_to_table_groups(machine, dtype, form, lengths):
    """Rows of a group add up in a row of the table, which is marked; other rows stay."""
    rng = np.random.default_rng(len(lengths))
    for size in (33,) if len(lengths) < 4 else (5,):
        order, begins = groups(rng, lengths)
        index = rng.permutation(len(lengths) + 5)[: len(lengths)].astype(np.int64)
        table = rng.standard_normal((len(lengths) + 5, size)).astype(dtype)
        touched = np.zeros(len(table), np.uint8)
        x, x_slot, x_memory, _ = rows(rng, len(order), size, dtype, form)
        expected, marks = table.astype(np.float64), touched.copy()
        expected[index] += np.add.reduceat(x[order].astype(np.float64), begins[:-1])
        marks[index] = 1
        slots = [
            (table.ctypes.data, 0),
            x_slot,
            *((a.ctypes.data, 8) for a in (order, begins, index)),
            (touched.ctypes.data, 1),
        ]
        memory = [table, *x_memory, order, begins, index, touched]
        perform(machine, _rows.add_to_table_groups, len(lengths), size, ACCUMULATE, slots, memory)
        np.testing.assert_allclose(table, expected, **tolerance(dtype, lengths))
        np.testing.assert_array_equal(touched, marks)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [1, 130, 256, 257, 700])
def test_add_all_rows(machine, dtype, form, n):
    """All rows add up in one place; more than 256 go a longer way on a card."""
    rng = np.random.default_rng(n)
    for size in (3, 33) if n < 256 else (3,):
        x, x_slot, x_memory, _ = rows(rng, n, size, dtype, form)
        y = rng.standard_normal(size).astype(dtype)
        expected = y + x.sum(0, np.float64)
        perform(machine, _rows.add_all_rows, n, size, ACCUMULATE, [(y.ctypes.data, 0), x_slot], [y, *x_memory])
        np.testing.assert_allclose(y, expected, **tolerance(dtype, [n]))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["gaps", "list"])
def test_add_overlapping(machine, dtype, form):
    """Rows of a group go to parts of one place, which overlap."""
    rng = np.random.default_rng(5)
    for lengths, size in (([1], 1), ([6, 1, 3], 4), ([2, 9], 40), ([3], 70)):
        order, begins = groups(rng, lengths)
        room = 2 * size
        y = rng.standard_normal((len(lengths), room)).astype(dtype)
        x, x_slot, x_memory, _ = rows(rng, len(order), size, dtype, form)
        places, expected = np.zeros(len(order), np.int64), y.astype(np.float64)
        for g in range(len(lengths)):
            for k in order[begins[g] : begins[g + 1]]:
                start = rng.integers(room - size + 1)
                places[k] = y[g].ctypes.data + start * y.itemsize
                expected[g, start : start + size] += x[k]
        slots = [(places.ctypes.data, -1), x_slot, (order.ctypes.data, 8), (begins.ctypes.data, 8)]
        memory = [y, *x_memory, places, order, begins]
        perform(machine, _rows.add_overlapping, len(lengths), size, ACCUMULATE, slots, memory)
        np.testing.assert_allclose(y, expected, **tolerance(dtype, lengths))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_to_table(machine, dtype):
    """Rows of different places; on a card, where they occur once."""
    rng = np.random.default_rng(7)
    index = rng.permutation(9)[:5].astype(np.int64)
    table, touched = rng.standard_normal((9, 6)).astype(dtype), np.zeros(9, np.uint8)
    x, x_slot, x_memory, _ = rows(rng, 5, 6, dtype, "gaps")
    expected = table.copy()
    expected[index] += x
    slots = [(table.ctypes.data, 0), x_slot, (index.ctypes.data, 8), (touched.ctypes.data, 1)]
    perform(machine, _rows.add_to_table, 5, 6, ACCUMULATE, slots, [table, *x_memory, index, touched])
    np.testing.assert_array_equal(table, expected)
    assert touched.sum() == 5
    assert touched[index].all()


# Machine code ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cc", [(8, 0), (9, 0)])
def test_machine_code(dtype, cc):
    """All of them compile for cards, into registers alone; and float32 stays so."""
    pytest.importorskip("numba_cuda")
    for kernel in (k for k in vars(_rows).values() if isinstance(k, Kernel)):
        stages = kernel.card.stages((100,)) if kernel.card.stages else []
        for function in [s.function for s in stages] or [kernel.function]:
            made = _cuda.compile_kernel(function, dtype, cc)
            assert (made.local, made.spills) == (0, 0), function.__name__
            assert made.registers <= 64, function.__name__  # blocks of 1024 threads
            assert made.shared <= 1 << 14
            assert dtype == "float64" or ".f64" not in made.ptx.replace("%f64", ""), function.__name__

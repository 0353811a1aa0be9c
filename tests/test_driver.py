"""The driver side of a card, with no card: loading, memory, copies, launches, and what happens where a call fails."""

import ctypes
import gc
import importlib.util
import itertools
import os
import pathlib
import re
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest

pytest.importorskip("greenlet")

from fake_driver import FakeCublas, FakeDriver, fake_card

import autobatch as ab
from autobatch import machine
from autobatch.cuda import cublas, driver, launch, machine_code, memory, records
from autobatch.graph import TYPES
from autobatch.kernels._errors import DeviceError, DeviceMemoryError, InternalError
from autobatch.kernels._jit import (
    ACCUMULATE,
    ALONE,
    ALONGSIDE,
    EACH,
    FIXED,
    FLAGS,
    INCOMING,
    INHERIT,
    ITEMS,
    SIZES,
    SLOTS,
    Count,
    Dense,
    Kernel,
    Matrix,
    Product,
    Products,
    Stage,
    integers,
    item,
    number,
)
from autobatch.kernels._lanes import items, joined, lanes
from autobatch.kernels._tiles import block_x, thread_x
from autobatch.kernels._vm import run as run_table
from autobatch.kernels.cell import cell_forward, cell_gradient, cell_prepare
from autobatch.memory import array_at

# Kernels of these tests -----------------------------------------------------------------------------------------------


def double(ins, T):
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in lanes(size):
            y[j] = x[j] + x[j]


def add(ins, T):
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        if ins[FLAGS] & ACCUMULATE:
            for j in lanes(size):
                y[j] = y[j] + x[j]
        else:
            for j in lanes(size):
                y[j] = x[j]


def total(ins, T):
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    for i in items(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        s = number(0, T)
        for j in lanes(size):
            s = s + x[j]
        s = joined(s)
        for _ in lanes(1):
            y[0] = s


def first_stage(ins, T):
    T[block_x() * 4 + thread_x()] = number(block_x() * 4 + thread_x(), T)


def second_stage(ins, T):
    item(ins, 0, 0, T)[thread_x()] = T[thread_x()] * number(10, T)


# Tables ---------------------------------------------------------------------------------------------------------------


class Planned:
    """A planned table in the host's memory: instructions whose sizes stand behind their slots, and a list of addresses."""

    def __init__(self):
        self.words = []
        self._sizes = []
        self.records = []  # a table holds no more than their addresses

    def add(self, record, n, sizes, slots, flags=0):
        at, begin = len(self.words), len(self.words) + SLOTS + 2 * len(slots)
        self._sizes.append((at + SIZES, begin))
        self.records.append(record)
        self.words += [record.address, SLOTS + 2 * len(slots) + len(sizes), n, 0, flags]
        for slot in slots:
            self.words += slot
        self.words += sizes
        return self

    def close(self):
        array = np.array(self.words, np.int64)
        for word, where in self._sizes:
            array[word] = array.ctypes.data + 8 * where
        return array


NONE = np.empty(0, np.int64)


def run(planned, dtype="float64", names=None, careful=False, products=None, lists=NONE):
    """Send a planned table to the card and launch it. Returns what it became."""
    table, itemsize = planned.close(), np.dtype(dtype).itemsize
    most = launch.measure(table.ctypes.data, table.size, itemsize)
    where, arena = (table.ctypes.data, table.size), memory.Arena("tables")
    try:
        size, _ = launch.submit(driver.device(), *where, lists, arena, dtype, names or {}, (), products, careful)
    finally:
        arena.release()
    assert all(a <= b for a, b in zip(size, most, strict=True)) and (size[::2] == most[::2] or products)
    return size


def teams(function, work=1, dtype="float64", word=-1):
    return records.of_kernel(Kernel(function), dtype, (), work, word)


class Numbers:
    """Some numbers on the card."""

    def __init__(self, values, dtype="float64"):
        self.host = np.array(values, dtype)
        self.block = memory.Block(self.host.nbytes, "values")
        self.address, self.stride = self.block.address, self.host.itemsize * (self.host.shape[-1] if self.host.ndim else 1)
        memory.upload(self.address, self.host)

    def slot(self):
        return self.address, self.stride

    def read(self):
        return memory.read(self.address, self.host.size, str(self.host.dtype)).reshape(self.host.shape)


# The real thing --------------------------------------------------------------------------------------------------------


def header():
    """The text of cuda.h, of a wheel or a toolkit."""
    wheels = importlib.util.find_spec("nvidia")
    places = [pathlib.Path(p, "cu13") for p in (wheels.submodule_search_locations if wheels else ())]
    places += [pathlib.Path(os.environ[v]) for v in ("CUDA_HOME", "CUDA_PATH") if v in os.environ]
    for place in places:
        file = place / "include" / "cuda.h"
        if file.exists():
            return file.read_text(encoding="utf-8", errors="replace")
    return pytest.skip("cuda.h is not here")


def test_signatures_are_those_of_the_header():
    text = re.sub(r"/\*.*?\*/", "", header(), flags=re.S)
    kinds = {
        "size_t": "c_ulong",
        "unsigned int": "c_uint",
        "unsigned char": "c_ubyte",
        "CUdeviceptr": "c_ulong",
        "int": "c_int",
    }
    kinds |= dict.fromkeys(("CUdevice", "CUdevice_attribute", "CUresult"), "c_int")
    handles = ("CUcontext", "CUstream", "CUevent", "CUlibrary", "CUkernel", "CUfunction")
    for name, form in driver.FORMS.items():
        plain = name.removesuffix("_v2")
        assert name == plain or re.search(rf"#\s*define {plain}\s+(__CUDA_API_PTSZ\()?{name}\)?\s", text), name
        (arguments,) = re.findall(rf"CUresult CUDAAPI {plain}\(([^()]*)\);", text)[:1]
        expected = []
        for argument in arguments.split(","):
            kind = " ".join(argument.replace("const ", "").split())
            if "*" in kind:
                expected.append("pointer")
            else:
                kind = kind.rsplit(" ", 1)[0]
                expected.append("pointer" if kind in handles else kinds[kind])
        ours = ["pointer" if k in (ctypes.c_void_p, ctypes.c_char_p) else k.__name__ for k in form._argtypes_]
        assert [k.replace("c_ulonglong", "c_ulong") for k in ours] == expected, name


# What the machine lacks -----------------------------------------------------------------------------------------------


def test_no_driver(monkeypatch):
    monkeypatch.setattr(driver, "_names", lambda: ["libnowhere.so.1"])
    with pytest.raises(DeviceError) as error:
        driver.device()
    assert str(error.value).split("\n") == [
        "device 'cuda' needs NVIDIA's driver, and libnowhere.so.1 is not on this machine",
        "  try       install NVIDIA's driver (https://www.nvidia.com/drivers); `nvidia-smi` must list a card; "
        "in a container, start it with access to the card (docker run --gpus all ...); or use the CPU",
    ]


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"cards": 0}, "^the CUDA driver is there, but no card that it can use\n  try       `nvidia-smi`, or use the CPU$"),
        ({"version": 11080}, "^the CUDA driver is too old: .*\n  got       CUDA 11.8\n  expected  CUDA 12.0 or newer"),
        ({"capability": (7, 0)}, "^fake card is too old\n  got       compute capability 7.0\n  expected  7.5 or newer"),
    ],
)
def test_what_the_machine_lacks(settings, text, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with fake_card(**settings), pytest.raises(DeviceError, match=text):
        driver.device()


@pytest.mark.parametrize(
    "code, text", [(34, "is the stub of a toolkit"), (803, "of another version"), (999, "^cuInit failed: error 999")]
)
def test_a_driver_that_does_not_start(code, text):
    with fake_card() as card:
        card.fail("cuInit", code)
        with pytest.raises(DeviceError, match=text):
            driver.device()
        assert driver.device().name == "fake card"


def test_hidden_cards_are_mentioned(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with fake_card(cards=0), pytest.raises(DeviceError, match=r"CUDA_VISIBLE_DEVICES is '-1', which may hide it"):
        driver.device()


def test_a_driver_without_a_function():
    class Old(FakeDriver):
        def __getattribute__(self, name):
            if name == "cuStreamCreate":
                raise AttributeError(name)
            return super().__getattribute__(name)

    old = Old()
    with driver.use(old), pytest.raises(DeviceError, match=r"^the fake driver has no function cuStreamCreate\n  try "):
        driver.device()
    assert not any(old.alive.values())


def test_cards_by_number():
    with fake_card(cards=2) as card:
        with pytest.raises(DeviceError, match=r"^there is no card 2\n  expected  0 to 1"):
            driver.device(2)
        assert driver.device(1).number == 1 and driver.device() is driver.device(1)
        with pytest.raises(
            DeviceError, match=r"^a process uses one card, and this one uses <card 1: fake card>\n  got       card 0"
        ):
            driver.device(0)
        assert len(card.alive["context"]) == 1


def test_every_function_of_the_table_exists_in_the_fake_and_has_an_address():
    with fake_card():
        for name in driver.FORMS:
            assert driver.device().driver.address(name)


def test_the_child_of_a_fork_is_told(monkeypatch):
    monkeypatch.setattr(driver._State, "parent", False)
    fake = FakeDriver()
    with driver.use(fake):
        kept = memory.Block(64, "values")
        driver._after_fork()
        with pytest.raises(DeviceError, match=r"^this process was forked from one that uses the card"):
            driver.device()
        before = len(fake.calls)
        del kept
        assert len(fake.calls) == before, "the child touches the card of its parent"


def test_the_end_of_a_process_frees_nothing_and_does_not_crash():
    program = """
import sys
sys.path.insert(0, "tests")
from fake_driver import FakeDriver
import autobatch as ab
from autobatch import machine
from autobatch.cuda import cublas, driver, memory
fake = FakeDriver()
holder = driver.use(fake, fake.compile)
holder.__enter__()
kept = memory.Arena("values"), memory.Block(64, "parameters")
kept[0].take(100)
memory.upload(kept[1].address, __import__("numpy").ones(8))
import atexit
atexit.register(lambda: print("before", len(fake.calls)))
class Last:
    def __del__(self): print("after", len(fake.calls), driver._State.device.lost)
sys.last = Last()
"""
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.split()
    assert lines[0] == "before" and not made.stderr


def test_importing_asks_for_no_driver_and_no_compiler():
    program = (
        "import sys, autobatch, autobatch.cuda.records, autobatch.cuda.memory\n"
        "from autobatch.cuda import driver\n"
        "assert driver.opened() is None\n"
        "assert not {'numba_cuda', 'numba.cuda', 'cuda.bindings'} & set(sys.modules), 'the compiler was imported'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Memory ---------------------------------------------------------------------------------------------------------------


def test_an_arena_hands_out_goes_back_and_keeps_its_chunk():
    with fake_card() as card:
        arena = memory.Arena("values")
        a, mark = arena.take(1000), arena.mark()
        b = arena.take(10)
        assert a % 256 == 0 and b == a + 1024 and arena.used == 1280 and arena.reserved == 1 << 20
        assert arena.spans() == [(a, a + 1280)]
        arena.cut(mark)
        assert arena.take(10) == b
        arena.cut((0, 0))
        assert arena.take(10) == a
        arena.release()
        assert arena.used == arena.reserved == 0 and memory.pooled() == 1 << 20
        assert memory.Arena("values").take(5) == a, "the pool is not used"
        assert card.count["cuMemAlloc_v2"] == 1
        memory.free_pool()
        assert memory.pooled() == 0 and not card.alive["memory"]


def test_a_graph_of_several_chunks_leaves_their_joint_size_to_the_next():
    with fake_card() as card:
        for graph in range(4):
            arena = memory.Arena("values")
            for _ in range(5):
                arena.take(900_000)
            arena.release()
            if graph == 1:
                allocations = card.count["cuMemAlloc_v2"]
        assert card.count["cuMemAlloc_v2"] == allocations, "memory is asked for in steady state"
        assert len(card.alive["memory"]) == 1


def test_purposes_have_their_own_chunks_and_threads_their_own_pools():
    with fake_card() as card:
        first, second = memory.Arena("values"), memory.Arena("tables")
        assert first.take(8) != second.take(8)
        first.release()
        found = []

        def other():
            arena = memory.Arena("values")
            found.append(arena.take(8))
            memory.upload(found[0], np.ones(1))
            arena.release()

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        gc.collect()
        assert found and card.count["cuCtxSetCurrent"] >= 2, "each thread has to enter the context"
        assert len(card.alive["memory"]) == 2, "the pool of a thread that is gone is kept"
        assert driver.device().held() == {"values": 1 << 20, "tables": 1 << 20}


def test_out_of_memory_tells_what_is_asked_free_and_held():
    with fake_card(room=5 << 20) as card:
        values, tables = memory.Arena("values"), memory.Arena("tables")
        values.take(2 << 20)
        tables.take(100)
        with pytest.raises(MemoryError) as error:
            values.take(3_000_000)
        assert isinstance(error.value, DeviceMemoryError) and isinstance(error.value, DeviceError)
        assert str(error.value).split("\n") == [
            "fake card has no room for 3,000,064 bytes (2.9 MiB) (values)",
            "  got       2,097,152 bytes (2.0 MiB) free of 5,242,880 bytes (5.0 MiB); held by this process: "
            "tables 1,048,576 bytes (1.0 MiB), values 2,097,152 bytes (2.0 MiB)",
            "  try       smaller minibatches; `with ab.inference():` where no gradient is needed; "
            "`nvidia-smi` lists other programs",
        ]
        assert values.used == 2 << 20 and len(card.alive["memory"]) == 2
        tables.release()  # what the pool keeps is given up for it
        values.take(3_000_000)
        assert memory.pooled() == 0


def test_pinned_memory_that_is_not_there():
    with fake_card() as card:
        card.fail("cuMemHostAlloc", 2)
        block = memory.Block(8, "values")
        with pytest.raises(DeviceMemoryError, match=r"^the system has no room for 65,536 bytes .* of page-locked memory"):
            memory.upload(block.address, np.ones(1))
        memory.upload(block.address, np.ones(1))
        assert memory.read(block.address, 1, "float64")[0] == 1


# Copies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_what_is_uploaded_is_read_back(dtype):
    with fake_card():
        values = np.arange(1000).astype(dtype)
        block = memory.Block(values.nbytes, "values")
        memory.upload(block.address, values[::-1])  # not contiguous
        np.testing.assert_array_equal(memory.read(block.address, 1000, dtype), values[::-1])
        memory.write(block.address + 8 * values.itemsize, values[:4])
        assert memory.read(block.address + 8 * values.itemsize, 4, dtype).tolist() == values[:4].tolist()
        memory.upload(block.address, values[:0])
        assert memory.read(block.address, 0, dtype).size == 0


def test_the_source_of_a_copy_may_be_changed_at_once():
    with fake_card():
        blocks = [memory.Block(800, "values") for _ in range(10)]
        values = np.zeros(100)
        for k, block in enumerate(blocks):
            values[:] = k
            memory.upload(block.address, values)
        values[:] = -1
        assert [memory.read(b.address, 100, "float64").mean() for b in blocks] == list(range(10))


def test_a_ring_of_three_slots_is_used_again_and_grows():
    with fake_card() as card:
        block = memory.Block(1 << 20, "values")
        for _ in range(20):
            memory.upload(block.address, np.ones(10))
        assert len(card.alive["pinned"]) == len(card.alive["event"]) == 3
        assert card.count["cuMemHostAlloc"] == 3
        for _ in range(20):
            memory.upload(block.address, np.full(20_000, 2.0))
        assert card.count["cuMemHostAlloc"] == 6 and len(card.alive["pinned"]) == 3
        assert memory.read(block.address, 20_000, "float64").mean() == 2


def test_slots_inside_of_slots():
    with fake_card() as card:
        blocks = [memory.Block(8, "values") for _ in range(5)]
        with memory.staging(8) as a, memory.staging(8) as b, memory.staging(8) as c, memory.staging(8) as d:
            for k, staged in enumerate((a, b, c, d)):
                staged.array("float64", 1)[:] = k
            for staged, block in zip((a, b, c, d), blocks, strict=False):
                staged.send(block.address, 8)
        memory.upload(blocks[4].address, np.array([4.0]))
        assert [memory.read(b.address, 1, "float64")[0] for b in blocks] == [0, 1, 2, 3, 4]
        assert len(card.alive["pinned"]) <= 5


def test_large_arrays_go_in_pieces(monkeypatch):
    monkeypatch.setattr(memory, "PIECE", 1000)
    with fake_card() as card:
        values = np.arange(1201, dtype=np.float32)
        block = memory.Block(values.nbytes, "values")
        memory.upload(block.address, values)
        assert card.count["cuMemcpyHtoDAsync_v2"] == 5
        np.testing.assert_array_equal(memory.read(block.address, 1201, "float32"), values)


def test_parts_of_a_slot_go_to_different_places():
    with fake_card():
        blocks = [memory.Block(16, "values") for _ in range(2)]
        with memory.staging(32) as staged:
            staged.array("float64", 4)[:] = [1, 2, 3, 4]
            staged.send(blocks[1].address, 16)
            staged.send(blocks[0].address, 16, 16)
            staged.send(blocks[0].address, 0)
        assert memory.read(blocks[0].address, 2, "float64").tolist() == [3, 4]
        assert memory.read(blocks[1].address, 2, "float64").tolist() == [1, 2]


def test_copies_on_the_card_and_zeros():
    with fake_card():
        x = Numbers([1.0, 2.0, 3.0])
        y = Numbers([4.0, 5.0, 6.0])
        memory.copy(y.address, x.address, 16)
        memory.zero(x.address, 8)
        memory.copy(y.address, x.address, 0)
        memory.zero(x.address, 0)
        assert x.read().tolist() == [0, 2, 3] and y.read().tolist() == [1, 2, 6]


# Launches -------------------------------------------------------------------------------------------------------------


@numba.njit
def compiled_geometry(n, work, together):
    return launch._geometry(n, work, together)


def test_the_rule_of_teams_is_the_same_in_python_and_compiled():
    for n, work, together in itertools.product(
        (1, 2, 3, 31, 33, 1000, 5_000_000), (1, 2, 5, 32, 33, 200, 256, 3000, 10**7), (0, 1)
    ):
        expected = launch.geometry(n, work, bool(together))
        assert compiled_geometry(n, work, bool(together)) == expected
        x, y, width, height = expected
        assert width * height <= 256 and width & (width - 1) == 0 and height & (height - 1) == 0
        assert width >= min(work, 256) and x * height >= min(n, height << 20) and (y == 1 or not together)
        assert x < 2**31 and y < 65536 and (width <= 32 or height == 1), "lanes of a wide team wait for a whole block"
        assert y == 1 or x * y <= launch.BUSY


def test_geometry_is_what_it_says():
    assert launch.geometry(1, 1, False) == (1, 1, 1, 1)
    assert launch.geometry(64, 10, False) == (8, 1, 16, 8)
    assert launch.geometry(64, 200, True) == (64, 1, 256, 1)
    assert launch.geometry(1, 1_000_000, False) == (1, 489, 256, 1)
    assert launch.geometry(1, 1_000_000, True) == (1, 1, 256, 1)
    assert launch.geometry(100, 1_000_000, False) == (100, 10, 256, 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n, size", [(1, 1), (3, 5), (40, 3), (2, 300), (1, 5000)])
def test_teams(dtype, n, size):
    with fake_card() as card:
        values = np.arange(n * size).reshape(n, size) % 17
        x, y, s = Numbers(values, dtype), Numbers(values * 0, dtype), Numbers(np.zeros((n, 1)), dtype)
        table = Planned().add(teams(double, size, dtype), n, [size], [y.slot(), x.slot()])
        table.add(teams(total, size, dtype), n, [size], [s.slot(), y.slot()])
        assert run(table, dtype).launches == 2
        np.testing.assert_array_equal(y.read(), 2 * values)
        np.testing.assert_array_equal(s.read()[:, 0], 2 * values.sum(axis=1))
        assert card.launches() == ["double", "total"]
        assert card.compiled == {("double", dtype): 1, ("total", dtype): 1}


def test_the_work_of_an_item_may_stand_in_the_instruction():
    with fake_card() as card:
        x, y = Numbers(np.ones((2, 70))), Numbers(np.zeros((2, 70)))
        run(Planned().add(teams(double, word=SLOTS + 4), 2, [70], [y.slot(), x.slot()]))
        assert (y.read() == 2).all()
        (shape,) = [arguments[1:7] for name, arguments in card.calls if name == "cuLaunchKernel"]
        assert shape == (2, 1, 1, 128, 1, 1)


def test_an_instruction_over_nothing_is_no_launch():
    with fake_card() as card:
        x = Numbers(np.ones((2, 3)))
        record = teams(double, 3)
        assert run(Planned().add(record, 0, [3], [x.slot(), x.slot()])).launches == 0
        assert run(Planned()).launches == 0
        assert not card.launches()


def test_a_table_without_cells_keeps_its_layout():
    """An instruction may refer to a later one (`update_rows` fills in how many items it has)."""
    with fake_card():
        x = Numbers(np.ones((2, 3)))
        table = Planned().add(teams(double, 3), 2, [3], [x.slot(), x.slot()]).add(teams(add, 3), 0, [3], [x.slot(), x.slot()])
        assert run(table).words == len(table.words)


def test_stages():
    with fake_card() as card:
        y = Numbers(np.zeros(4))
        whole = Stage(first_stage, (4, 1), Count(0, 1, 2), scratch=Count(0, 4))
        few = Stage(second_stage, (4, 1), Count(), upto=5)
        many = Stage(second_stage, (2, 1), Count(), least=6)
        kernel = Kernel(first_stage)
        kernel.on_card(stages=lambda sizes: [whole, few, many])
        record = records.of_kernel(kernel, "float64", ())
        size = run(Planned().add(record, 3, [1], [y.slot()]))
        assert size.launches == 2 and size.scratch == 8 * 12
        assert y.read().tolist() == [0, 10, 20, 30]
        run(Planned().add(record, 7, [1], [y.slot()]))
        shapes = [arguments[1:7] for name, arguments in card.calls if name == "cuLaunchKernel"]
        assert shapes == [(2, 1, 1, 4, 1, 1), (1, 1, 1, 4, 1, 1), (4, 1, 1, 4, 1, 1), (1, 1, 1, 2, 1, 1)]


@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize("count", [Count(), Count(0, 3, 2), Count(5, 1, 16), Count(1, 1, 1, 4), Count(0, 1 << 20, 1 << 10)])
def test_counts_are_the_same_in_python_and_compiled(n, count):
    with fake_card():
        stage = Stage(first_stage, (1, 1), Count(), scratch=count)
        record = records.stages("counted", [records.Launch(stage)])
        table = np.array([record.address, SLOTS, n, 0, 0], np.int64)
        assert launch.measure(table.ctypes.data, SLOTS, 1).scratch == count.of(n)


def test_rows_that_are_listed():
    with fake_card():
        x, y = Numbers(np.arange(12.0).reshape(4, 3)), Numbers(np.zeros((2, 3)))
        places = Numbers(np.array([x.address + 3 * 24, x.address + 24]), "int64")
        run(Planned().add(teams(double, 3), 2, [3], [y.slot(), (places.address, -1)]))
        assert y.read().tolist() == [[18, 20, 22], [6, 8, 10]]


def cell(*steps):
    return records.program("cell", steps)


def part(source, start, size):
    return records.Part(INCOMING, source, 8 * start, 8 * size)


def test_a_program_becomes_its_steps():
    with fake_card() as card:
        x, y = Numbers(np.arange(6.0).reshape(2, 3)), Numbers(np.zeros((2, 5)))
        three, constant = Numbers([3], "int64"), Numbers([100.0, 200, 300])
        steps = [
            records.StepOf(teams(double, 3), three.address, 0, [part(0, 2, 3), part(1, 0, 3)]),
            records.StepOf(
                teams(add, 3), three.address, ACCUMULATE, [part(0, 2, 3), records.Part(FIXED, 0, constant.address, 24)]
            ),
            records.StepOf(teams(total, 3), three.address, 0, [part(0, 0, 1), part(0, 2, 3)]),
        ]
        run(Planned().add(cell(*steps), 2, [], [y.slot(), x.slot()]))
        assert y.read()[:, [0, 2, 3, 4]].tolist() == [[606, 100, 202, 304], [624, 106, 208, 310]]
        assert card.launches() == ["double", "add", "total"]


@pytest.mark.parametrize("flags", [0, ACCUMULATE])
def test_a_step_may_inherit_whether_it_adds(flags):
    with fake_card():
        x, y, size = Numbers(np.ones((2, 3))), Numbers(np.full((2, 3), 5.0)), Numbers([3], "int64")
        steps = [records.StepOf(teams(add, 3), size.address, 0, [part(0, 0, 3), part(1, 0, 3)], INHERIT)]
        run(Planned().add(cell(*steps), 2, [], [y.slot(), x.slot()], flags))
        assert (y.read() == (6 if flags else 1)).all()


def test_a_step_call_by_call_is_one_launch_on_a_card():
    with fake_card() as card:
        x, y = Numbers(np.arange(6.0).reshape(2, 3)), Numbers(np.zeros((2, 3)))
        places, size = Numbers([x.address + 24, x.address], "int64"), Numbers([3], "int64")
        steps = [records.StepOf(teams(double, 3), size.address, 0, [part(0, 0, 3), part(1, 0, 3)], EACH)]
        run(Planned().add(cell(*steps), 2, [], [y.slot(), (places.address, -1)]))
        assert y.read().tolist() == [[6, 8, 10], [0, 2, 4]] and card.launches() == ["double"]


def test_steps_that_add_to_one_place_go_one_after_the_other():
    """The gradient of a parameter in a step that runs call by call: all items write to the same numbers."""
    with fake_card() as card:
        x, y = Numbers(np.arange(6.0).reshape(3, 2)), Numbers(np.full((1, 2), 10.0))
        order = np.array([x.address + 32, x.address, x.address + 16], np.int64)  # the list, in the host's memory
        listed, size, flags = Numbers(order, "int64"), Numbers([2], "int64"), ACCUMULATE | ALONGSIDE
        steps = [records.StepOf(teams(add, 2), size.address, flags, [part(0, 0, 2), part(1, 0, 2)], ALONE)]
        run(Planned().add(cell(*steps), 3, [], [(y.address, 0), x.slot()]))
        assert y.read().tolist() == [[16, 19]] and card.launches() == ["add"] * 3
        run(Planned().add(cell(*steps), 3, [], [(y.address, 0), (order.ctypes.data, -1)]))
        assert y.read().tolist() == [[22, 28]]
        del listed


def test_a_part_of_listed_rows_is_refused():
    with fake_card():
        x = Numbers(np.arange(6.0).reshape(3, 2))
        steps = [records.StepOf(teams(double, 1), 0, 0, [part(0, 0, 1), part(1, 1, 1)])]
        with pytest.raises(InternalError, match=r"a part of rows that are listed"):
            run(Planned().add(cell(*steps), 3, [], [x.slot(), (x.address, -1)]))


def test_a_program_in_a_program_is_refused():
    with fake_card():
        inner = cell()
        with pytest.raises(InternalError, match=r"^cell: a step of a program is a program itself"):
            cell(records.StepOf(inner, 0, 0, []))


def records_of_a_processor(dtype):
    """Records whose functions are the kernels of a processor: from (KERNEL, SIZES, FLAGS) of an instruction to a record."""
    found = {}
    drivers = [k.address(dtype) for k in (cell_forward, cell_prepare, cell_gradient)]
    programs = {}
    for record in TYPES.records:
        kernel = record.lowering and record.lowering.forward
        if hasattr(kernel, "programs"):
            programs[kernel.programs.table.ctypes.data] = kernel.programs

    def of(kernel, sizes, flags):
        if kernel not in drivers:
            key = kernel
        else:
            which = drivers.index(kernel)
            key = ctypes.c_int64.from_address(sizes).value, which + (flags >> 8 if which == 2 else 0)
        if key not in found and key == kernel:
            found[key] = records.teams("kernel", kernel)
        elif key not in found:
            steps = []
            for inside in programs[key[0]].inside(key[1], dtype):
                kernel, sizes, flags = inside.head
                assert not inside.each
                parts = [
                    records.Part(INCOMING if source is not None else FIXED, source or 0, offset, size)
                    for source, offset, size in inside.places
                ]
                steps.append(records.StepOf(of(kernel, sizes, flags), sizes, flags, parts, INHERIT * inside.inherit))
            found[key] = cell(*steps)
        return found[key]

    return of


def test_real_cells_become_their_steps(monkeypatch):
    """Whole graphs with cells, expanded, and then run by the interpreter: the same numbers as ever, bit by bit."""
    model = ab.ParameterCollection()
    W, U, b = model.add_parameters((5, 4)), model.add_parameters((5, 5)), model.add_parameters(5)
    vectors = np.random.default_rng(1).normal(size=(6, 4))

    @ab.cell
    def step(x, h):
        gate = ab.logistic(W * x + U * h + b)
        return ab.cmult(gate, ab.tanh(W * x)) + ab.cmult(1 - gate, h), gate

    def graph():
        ab.renew_cg()
        losses = []
        for length in (2, 6, 3):
            h, gates = ab.inputVector([0.1] * 5), []
            for x in vectors[:length]:
                h, gate = step(ab.inputVector(x), h)
                gates.append(gate)
            losses.append(ab.sum_elems(ab.square(h)) + ab.sum_elems(gates[0]))
        loss = ab.esum(losses)
        loss.backward()
        gradients = [p.grad_as_array().copy() for p in (W, U, b)]
        for p in (W, U, b):
            p.scale_gradient(0)
        return [loss.value(), *gradients]

    expected = graph()
    expanded = []

    def run_expanded(job, meanwhile=None):
        table, words, itemsize = array_at(job.table, job.words, "int64"), job.words, job.execution.itemsize
        of, planned, kept, at = records_of_a_processor(job.execution.dtype), table.copy(), [], 0
        while at < words:
            kept.append(of(int(planned[at]), int(planned[at + SIZES]), int(planned[at + FLAGS])))
            planned[at] = kept[-1].address
            if table.ctypes.data <= planned[at + SIZES] < table.ctypes.data + 8 * words:
                planned[at + SIZES] += planned.ctypes.data - table.ctypes.data
            at += int(planned[at + 1])
        size = launch.measure(planned.ctypes.data, words, itemsize)
        out = np.zeros(size.words, np.int64)
        assert launch.expand(planned.ctypes.data, words, [], out.ctypes.data, out.ctypes.data, 0, itemsize) == size
        at = rows = 0
        while at < out.size:
            out[at + 1] &= launch.WORDS
            out[at] = ctypes.c_int64.from_address(int(out[at]) + 8 * launch.FUNCTION).value
            at, rows = at + int(out[at + 1]), rows + 1
        assert rows == size.launches
        expanded.append((len(kept), rows))
        run_table(out.ctypes.data, out.size, job.scratch)

    monkeypatch.setattr(machine.PROCESSOR, "run", run_expanded)
    for got, wanted in zip(graph(), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert all(rows > kept for kept, rows in expanded) and len(expanded) == 2


def minibatch():
    """Twice the same work: numbers to the card, a cell, two instructions, numbers back."""
    values = memory.Arena("values")
    x, y, s, sizes = values.take(8 * 12), values.take(8 * 12), values.take(8 * 4), values.take(8)
    memory.upload(x, np.arange(12.0))
    memory.upload(sizes, np.array([3]))
    steps = [records.StepOf(teams(double, 3), sizes, 0, [part(0, 0, 3), part(1, 0, 3)])]
    table = Planned().add(cell(*steps), 4, [], [(y, 24), (x, 24)])
    table.add(teams(total, 3), 4, [3], [(s, 8), (y, 24)])
    run(table, names={})
    result = memory.read(s, 4, "float64")
    values.release()
    return result.tolist()


@pytest.mark.parametrize("size", [3, 300, 5000])
def test_instructions_that_may_run_together_are_one_launch(size):
    with fake_card() as card:
        values = np.arange(4.0 * 2 * size).reshape(4, 2, size) % 11
        x, y = Numbers(values), Numbers(values * 0)
        record, other = teams(double, size), teams(add, size)
        slots = [[(a.address + 8 * 2 * size * k, 8 * size) for a in (y, x)] for k in range(4)]
        table = Planned()
        for k, (kernel, n, flags) in enumerate(
            [(record, 2, 0), (record, 2, ALONGSIDE), (record, 2, ALONGSIDE), (record, 2, 0)]
        ):
            table.add(kernel, n, [size], slots[k], flags)
        assert run(table).launches == 2 and card.launches() == ["double"] * 2
        np.testing.assert_array_equal(y.read(), 2 * values)
        # Of another kernel, or with other items: a launch of its own, whatever the flag says.
        table = Planned().add(record, 2, [size], slots[0]).add(other, 2, [size], slots[1], ALONGSIDE)
        table.add(other, 1, [size], slots[2], ALONGSIDE).add(other, 1, [size], slots[3], ALONGSIDE)
        assert run(table).launches == 3
        expected = values.copy()
        expected[0], expected[2:, 1] = 2 * values[0], 2 * values[2:, 1]
        np.testing.assert_array_equal(y.read(), expected)


def test_stages_that_share_the_scratch_stay_apart():
    """Each has the whole scratch for itself."""
    with fake_card() as card:
        y = Numbers(np.zeros((2, 4)))
        kernel = Kernel(first_stage)
        parts = [Stage(first_stage, (4, 1), Count(1), scratch=Count(4)), Stage(second_stage, (4, 1), Count(1))]
        kernel.on_card(stages=lambda sizes: parts)
        record = records.of_kernel(kernel, "float64", ())
        table = Planned().add(record, 1, [], [y.slot()]).add(record, 1, [], [(y.address + 32, 32)], ALONGSIDE)
        assert run(table).launches == 4
        assert y.read().tolist() == [[0, 10, 20, 30]] * 2 and card.launches() == ["first_stage", "second_stage"] * 2


def test_a_failed_launch_of_several_instructions_names_the_first():
    with fake_card() as card:
        x = Numbers(np.ones((2, 3)))
        first, second = teams(add, 3), teams(double, 3)
        table = Planned().add(first, 2, [3], [x.slot(), x.slot()])
        table.add(second, 2, [3], [x.slot(), x.slot()]).add(second, 2, [3], [x.slot(), x.slot()], ALONGSIDE)
        card.fail("cuLaunchKernel", 1, 2)
        with pytest.raises(DeviceError, match=r"^row 1 of a table, twice over 2 items: launch 1 failed: "):
            run(table, names={second.address: "twice"})


def test_lists_go_with_the_table():
    with fake_card() as card:
        x, y = Numbers(np.arange(12.0).reshape(4, 3)), Numbers(np.zeros((2, 3)))
        host = np.array([x.address + 72, x.address], np.int64)
        table = Planned().add(teams(double, 3), 2, [3], [y.slot(), (host.ctypes.data, -1)])
        card.calls.clear()
        run(table, lists=host)
        assert y.read().tolist() == [[18, 20, 22], [0, 2, 4]]
        assert card.count["cuEventRecord"] == 3, "two uploads, and one slot for table and lists"


def test_threads_side_by_side():
    """Their graphs have memory and staging slots of their own, and share the stream."""
    with fake_card() as card:
        failed = []

        def work():
            try:
                for _ in range(10):
                    assert minibatch() == [6, 24, 42, 60]
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed
        gc.collect()
        assert not card.alive["memory"] and not card.alive["pinned"], "what threads kept is held when they are gone"


def test_an_arena_of_a_card_that_was_given_back_begins_anew():
    with fake_card() as card:
        arena = memory.Arena("values")
        arena.take(100)
        driver.give_back()
        assert not any(card.alive.values())
        address = arena.take(100)
        memory.upload(address, np.ones(2))
        assert memory.read(address, 2, "float64").tolist() == [1, 1] and len(card.alive["memory"]) == 1
        driver.give_back()
        driver.give_back()


def test_names_of_records():
    with fake_card():
        record = cell(records.StepOf(teams(double), 0, 0, []))
        (inside,) = record.inside
        assert record.names() == {record.address: "cell", inside.address: "double of cell"}
        assert record.names("tree") == {record.address: "tree", inside.address: "double of tree"}


def test_steady_state_asks_for_no_memory():
    with fake_card() as card:
        assert minibatch() == [6, 24, 42, 60]
        counted = ("cuMemAlloc_v2", "cuMemHostAlloc", "cuEventCreate", "cuLibraryLoadData", "cuMemFree_v2", "cuMemFreeHost")
        before = [card.count[name] for name in counted]
        card.calls.clear()
        for _ in range(5):
            assert minibatch() == [6, 24, 42, 60]
        assert [card.count[name] for name in counted] == before
        assert card.compiled == {("double", "float64"): 1, ("total", "float64"): 1}
        order = [name for name, _ in card.calls][: len(card.calls) // 5]
        assert [name for name in order if "Event" not in name] == [
            *["cuMemcpyHtoDAsync_v2"] * 3,
            *["cuLaunchKernel"] * 2,
            "cuMemcpyDtoHAsync_v2",
            "cuStreamSynchronize",
        ]


# Failures -------------------------------------------------------------------------------------------------------------


def failing(name, nth, code):
    """Run minibatches of which one call fails; return the errors."""
    with fake_card() as card:
        card.fail(name, code, nth)
        failed = []
        for _ in range(4):
            try:
                assert minibatch() == [6, 24, 42, 60]
            except DeviceError as error:
                failed.append(str(error))
                error.__traceback__ = None
        assert minibatch() == [6, 24, 42, 60]
    return failed


def called_by_two_minibatches():
    """Functions of the driver, and how often each is called."""
    with fake_card() as card:
        minibatch()
        minibatch()
    return {name: card.count[name] for name in driver.FORMS if card.count[name]}


NEEDS_NO_ANSWER = {"cuMemFree_v2", "cuMemFreeHost", "cuEventDestroy_v2", "cuStreamDestroy_v2", "cuLibraryUnload"}
NEEDS_NO_ANSWER |= {"cuDevicePrimaryCtxRelease_v2"}


def test_any_call_may_fail():
    """Whatever fails: the error names it, the next minibatch is as ever, and nothing is held at the end (see `fake_card`)."""
    calls = called_by_two_minibatches()
    assert len(calls) > 25
    for name, count in calls.items():
        if name in NEEDS_NO_ANSWER:  # called at the end only, when nobody can be told: the fake counts what is then left
            continue
        for nth in range(1, count + 1):
            failed = failing(name, nth, 1)
            where = f"call {nth} of {name}: {failed}"
            assert len(failed) == 1 and "CUDA_ERROR_INVALID_VALUE, invalid argument" in failed[0], where
            expected = (
                "row [01] of a table, .* over 4 items: launch [01] failed" if name == "cuLaunchKernel" else f"^{name}.* failed"
            )
            assert re.search(expected, failed[0]), where


@pytest.mark.parametrize("name", ["cuMemAlloc_v2", "cuMemHostAlloc"])
def test_every_allocation_may_find_no_room(name):
    for nth in range(1, called_by_two_minibatches()[name] + 1):
        failed = failing(name, nth, 2)
        if name == "cuMemAlloc_v2":
            assert not failed, "the card had room once the pool was emptied"
        else:
            assert len(failed) == 1 and failed[0].startswith("the system has no room for 65,536 bytes")


def test_a_launch_that_fails_names_row_op_and_items():
    with fake_card() as card:
        x = Numbers(np.ones((2, 3)))
        record = teams(double, 3)
        table = Planned()
        for _ in range(3):
            table.add(record, 2, [3], [x.slot(), x.slot()])
        card.fail("cuLaunchKernel", 701, 3)
        with pytest.raises(DeviceError) as error:
            run(table, names={record.address: "tanh (3)"})
        assert str(error.value) == (
            "row 2 of a table, tanh (3) over 2 items: launch 2 failed: "
            "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, too many resources requested for launch"
        )
        run(table)
        assert (x.read() == 2**5).all(), "the first two rows of the failed table, and three of the next"


@pytest.mark.parametrize("careful", [False, True])
def test_a_kernel_that_fails_later(careful):
    """The driver tells it to whoever waits; from then on the card cannot be used, and everybody is told why."""
    with fake_card() as card:
        x = Numbers(np.ones((2, 3)))
        record = teams(double, 3)
        table = Planned().add(record, 2, [3], [x.slot(), x.slot()])
        card.fail_late("launch double", 700)
        with pytest.raises(DeviceError) as error:
            run(table, names={record.address: "tanh"}, careful=careful)
            x.read()
        what = "row 0 of a table, tanh over 2 items: launch 0 failed" if careful else "cuStreamSynchronize failed"
        assert str(error.value).startswith(
            f"{what}: CUDA_ERROR_ILLEGAL_ADDRESS, an illegal memory access was encountered\n  try"
        )
        for again in (x.read, minibatch, lambda: memory.Block(8, "values")):
            with pytest.raises(DeviceError) as second:
                again()
            assert str(second.value) == str(error.value)


def test_a_kernel_outside_of_memory_is_seen_by_the_fake():
    with pytest.raises(AssertionError, match=r"double.* is in no memory of the card"):
        with fake_card() as card:
            x = Numbers(np.ones((2, 3)))
            run(Planned().add(teams(double, 3), 2, [3], [x.slot(), (64, 24)]))
            with pytest.raises(DeviceError, match=r"CUDA_ERROR_LAUNCH_FAILED"):
                x.read()
            card.check()


def test_machine_code_that_does_not_load_is_named():
    with fake_card() as card:
        card.fail("cuLibraryLoadData", 1)
        with pytest.raises(
            DeviceError, match=r"^cuLibraryLoadData of kernel double \(float32\) failed: CUDA_ERROR_INVALID_VALUE"
        ):
            machine_code.function(double, "float32")
        card.fail("cuLibraryLoadData", 200)
        with pytest.raises(DeviceError) as error:
            machine_code.function(double, "float32")
        assert str(error.value).split("\n") == [
            "cuLibraryLoadData of kernel double (float32) failed: CUDA_ERROR_INVALID_IMAGE, device kernel image is invalid",
            "  got       machine code for fake card, and a driver of CUDA 13.0",
            '  try       a newer driver, or compilers as old as it is (pip install "numba-cuda[cu12]")',
        ]
        card.fail("cuKernelGetFunction", 1)
        with pytest.raises(DeviceError, match=r"^cuKernelGetFunction of kernel double \(float32\) failed"):
            machine_code.function(double, "float32")
        assert not card.alive["library"]
        assert machine_code.function(double, "float32") == machine_code.function(double, "float32")
        assert len(card.alive["library"]) == 1


def test_a_kernel_that_is_made_anew_is_loaded_once():
    with fake_card() as card:
        handles = {machine_code.function(made_of(3), "float32") for _ in range(3)}
        assert len(handles) == len(card.alive["library"]) == 1
        assert machine_code.function(made_of(4), "float32") not in handles


def test_a_card_that_is_open_waits_until_the_fake_is_gone():
    with fake_card() as outer:
        block = memory.Block(8, "values")
        memory.upload(block.address, np.ones(1))
        with fake_card() as inner:
            assert minibatch() == [6, 24, 42, 60] and inner.launches()
        assert memory.read(block.address, 1, "float64")[0] == 1 and not outer.launches()


def test_errors_the_driver_does_not_know():
    with fake_card() as card:
        card.fail("cuStreamSynchronize", 12345)
        with pytest.raises(DeviceError, match=r"^cuStreamSynchronize failed: error 12345, which this driver does not know$"):
            memory.synchronize()


def test_parameters_are_what_the_abi_says():
    """Two words: the address of the instruction on the card, and of the scratch."""
    with fake_card() as card:
        seen = []
        card.sim.launch = lambda *arguments: seen.append(arguments)
        x = Numbers(np.ones((2, 3)))
        table = Planned().add(teams(double, 3), 2, [3], [x.slot(), x.slot()]).add(teams(add, 3), 1, [3], [x.slot(), x.slot()])
        size = run(table)
        memory.synchronize()
        (first, second) = seen
        assert first[0] is double and second[0] is add and first[4] == "float64"
        words = memory.read(first[3], size.words, "int64")
        assert words[1:3].tolist() == [10 + (1 << 32), 2] and words[SIZES] == first[3] + 8 * 9 and words[9] == 3
        assert second[3] == first[3] + 80 and words[10 + SIZES] == second[3] + 72
        assert first[5] == second[5] and first[5] % 256 == 0


# Products -------------------------------------------------------------------------------------------------------------

R, K = 3, 4  # rows of a weight, and its columns


def product(ins, T):
    """y = W x, for each item a column; a kernel of ours."""
    n = ins[ITEMS]
    for i in items(n):
        y, w, x = item(ins, 0, i, T), item(ins, 1, 0, T), item(ins, 2, i, T)
        for r in lanes(R):
            s = y[r] if ins[FLAGS] & ACCUMULATE else number(0, T)
            for k in range(K):
                s = s + w[r + R * k] * x[k]
            y[r] = s


def weight_product(ins, T):
    """dW += dy xᵀ, over all items."""
    n = ins[ITEMS]
    w = item(ins, 0, 0, T)
    for j in lanes(R * K):
        s = w[j]
        for i in range(n):
            s = s + item(ins, 1, i, T)[j % R] * item(ins, 2, i, T)[j // R]
        w[j] = s


def rows(dtype="float64"):
    copies = teams(add, dtype=dtype, word=SLOTS + 4)
    return records.Rows(copies, copies)


def forward_kernel(least):
    kernel = Kernel(product)
    y, w, x = Matrix(0, R, 1), Matrix(1, R), Matrix(2, K, 1)
    stages = (Product(w, x, y, Count(R), Count(0, 1), Count(K)),)
    kernel.on_card(products=lambda sizes: Products(least, (Dense(0, R, written=True), Dense(2, K)), stages))
    return kernel


def test_a_library_takes_the_products_of_many_items():
    with fake_card() as card, cublas.use(FakeCublas(card)):
        library = cublas.find()
        record = records.of_kernel(forward_kernel(3), "float64", (), R, rows=rows())
        W, x, y = Numbers(np.arange(12.0)), Numbers(np.arange(20.0).reshape(5, K)), Numbers(np.zeros((5, R)))
        expected = x.host @ W.host.reshape(K, R)
        for n in (1, 2, 3, 5):
            memory.zero(y.address, y.host.nbytes)
            run(Planned().add(record, n, [], [y.slot(), (W.address, 0), x.slot()]), products=library)
            np.testing.assert_array_equal(y.read()[:n], expected[:n])
        (_, *first), (_, *second) = cublas._Loaded.library.products
        assert first == [0, 0, R, 3, K, R, K, R, 0] and second == [0, 0, R, 5, K, R, K, R, 0]
        assert card.launches() == ["product"] * 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("flags", [0, ACCUMULATE])
@pytest.mark.parametrize(
    "x_lies, y_lies", [*itertools.product(["dense", "apart", "listed", "same"], ["dense", "apart", "listed"])]
)
def test_rows_are_copied_together_for_a_library(dtype, flags, x_lies, y_lies):
    n, size = 4, np.dtype(dtype).itemsize
    with fake_card() as card, cublas.use(FakeCublas(card)):
        record = records.of_kernel(forward_kernel(2), dtype, (), R, rows=rows(dtype))
        W = Numbers(np.arange(12.0), dtype)
        x, y = Numbers(np.arange(40.0).reshape(8, 5) % 7, dtype), Numbers(np.full((8, 5), 2.0), dtype)
        order = {"x": [6, 0, 3, 1], "y": [2, 7, 5, 0]}
        listed = {k: Numbers([v.address + 5 * size * o for o in order[k]], "int64") for k, v in (("x", x), ("y", y))}
        wide = {"x": K, "y": R}

        def slot(which, numbers, lies):
            """The slot, and where its items lie, by the number."""
            if lies == "listed":
                return (listed[which].address, -1), [5 * o for o in order[which]]
            step = {"dense": wide[which], "apart": 5, "same": 0}[lies]
            return (numbers.address, step * size), [step * i for i in range(n)]

        (x_slot, x_at), (y_slot, y_at) = slot("x", x, x_lies), slot("y", y, y_lies)
        table = Planned().add(teams(add, dtype=dtype), 0, [1], [x.slot(), x.slot()])  # what comes before is not moved
        table.add(record, n, [7, 8], [y_slot, (W.address, 0), x_slot], flags)
        table.add(teams(add, 5, dtype), 1, [5], [x.slot(), y.slot()])
        size_of_it = run(table, dtype, products=cublas.find())
        expected = y.host.copy().ravel()
        weights = W.host.reshape(K, R)
        for a, b in zip(x_at, y_at, strict=True):
            expected[b : b + R] = x.host.ravel()[a : a + K] @ weights + (2 if flags else 0)
        np.testing.assert_array_equal(y.read().ravel(), expected)
        np.testing.assert_array_equal(x.read()[0], expected[:5])  # what comes after finds its sizes
        copies = (x_lies in ("listed", "same")) + (y_lies == "listed")
        assert size_of_it.launches == 2 + copies and len(cublas._Loaded.library.products) == 1
        assert card.done.count("product") == 1


def test_gradients_of_weights_by_a_library():
    kernel = Kernel(weight_product)
    stage = Product(Matrix(1, R, 1), Matrix(2, K, 1), Matrix(0, R), Count(R), Count(K), Count(0, 1), transpose_b=True, add=True)
    kernel.on_card(products=lambda sizes: Products(2, (Dense(1, R), Dense(2, K)), (stage,)))
    with fake_card() as card, cublas.use(FakeCublas(card)):
        record = records.of_kernel(kernel, "float64", (), R * K, rows=rows())
        dw, dy, x = Numbers(np.ones(12)), Numbers(np.arange(9.0).reshape(3, R)), Numbers(np.arange(12.0).reshape(3, K))
        table = Planned().add(record, 3, [], [(dw.address, 0), dy.slot(), x.slot()])
        table.add(record, 1, [], [(dw.address, 0), dy.slot(), x.slot()])
        run(table, products=cublas.find())
        expected = 1 + x.host.T @ dy.host + np.outer(x.host[0], dy.host[0])
        np.testing.assert_array_equal(dw.read().reshape(K, R), expected)


def test_kernels_may_stand_around_a_product():
    """What has several columns in an item, and begins with a bias."""
    before, kernel = Kernel(add), Kernel(product)
    stage = Product(Matrix(2, R), Matrix(1, K, 2), Matrix(0, R, 2), Count(R), Count(0, 2), Count(K), add=True)
    kernel.on_card(products=lambda sizes: Products(2, (Dense(0, 2 * R, 2, True), Dense(1, 2 * K, 2)), (before, stage)))
    with fake_card() as card, cublas.use(FakeCublas(card)):
        record = records.of_kernel(kernel, "float64", (), 2 * R, rows=rows())
        W, x = Numbers(np.arange(12.0)), Numbers(np.arange(32.0).reshape(4, K * 2))
        y = Numbers(np.zeros((2, 6)))
        listed = Numbers([x.address + 3 * 64, x.address + 64], "int64")

        # Slot 1 is read twice: `add` starts y with its first numbers, and the product finds x there.
        table = Planned().add(record, 2, [6], [y.slot(), (listed.address, -1), (W.address, 0)])
        run(table, products=cublas.find())
        taken = x.host[[3, 1]]
        expected = taken[:, :6] + (taken.reshape(4, K) @ W.host.reshape(K, R)).reshape(2, 6)
        np.testing.assert_array_equal(y.read(), expected)


def test_a_product_that_fails_names_row_op_and_items():
    with fake_card() as card, cublas.use(FakeCublas(card)):
        record = records.of_kernel(forward_kernel(1), "float64", (), R, rows=rows())
        W, x, y = Numbers(np.arange(12.0)), Numbers(np.arange(20.0).reshape(5, K)), Numbers(np.zeros((5, R)))
        table = Planned().add(record, 5, [], [y.slot(), (W.address, 0), x.slot()])
        cublas._Loaded.library.failures["cublasDgemm_v2"] = 13
        with pytest.raises(DeviceError) as error:
            run(table, names={record.address: "W * x"}, products=cublas.find())
        assert str(error.value) == "row 0 of a table, W * x over 5 items: launch 0 failed: CUBLAS_STATUS_EXECUTION_FAILED"
        run(table, products=cublas.find())
        np.testing.assert_array_equal(y.read(), x.host @ W.host.reshape(K, R))


@pytest.mark.parametrize("name, code", [("cublasCreate_v2", 3), ("cublasSetStream_v2", 1), ("cublasSetMathMode", 99)])
def test_a_library_that_does_not_open(name, code):
    with fake_card() as card, cublas.use(FakeCublas(card)):
        library = cublas.find()
        cublas._Loaded.library.failures[name] = code
        text = {3: "CUBLAS_STATUS_ALLOC_FAILED", 1: "CUBLAS_STATUS_NOT_INITIALIZED", 99: "error 99 of cuBLAS"}[code]
        with pytest.raises(DeviceError, match=f"^{name} failed: {text}"):
            library.gemm("float32")
        gc.collect()
        assert not card.alive["handle"]
        assert library.gemm("float32")[0] == library.gemm("float64")[0]
        assert library.gemm("float32")[1] != library.gemm("float64")[1]


def test_a_library_multiplies_exactly_unless_tf32_is_asked_for():
    with fake_card() as card, cublas.use(FakeCublas(card)):
        fake, library = cublas._Loaded.library, cublas.find()
        handle = library.gemm("float32")[0]
        assert fake.modes[handle] == 0
        library.tf32 = True
        library.gemm("float32")
        assert fake.modes[handle] == 3
        library.tf32 = False
        library.gemm("float64")
        assert fake.modes[handle] == 0


def test_each_thread_has_its_own_handle():
    with fake_card() as card, cublas.use(FakeCublas(card)):
        library, found = cublas.find(), []
        thread = threading.Thread(target=lambda: found.append(library.gemm("float32")[0]))
        thread.start()
        thread.join()
        assert found[0] != library.gemm("float32")[0]
        gc.collect()
        assert len(card.alive["handle"]) == 1, "the handle of a thread that is gone is kept"


def test_no_library():
    with fake_card(), cublas.use(None):
        assert cublas.find() is None
        record = records.of_kernel(forward_kernel(1), "float64", (), R)
        W, x, y = Numbers(np.arange(12.0)), Numbers(np.arange(20.0).reshape(5, K)), Numbers(np.zeros((5, R)))
        run(Planned().add(record, 5, [], [y.slot(), (W.address, 0), x.slot()]))
        np.testing.assert_array_equal(y.read(), x.host @ W.host.reshape(K, R))


def test_where_the_library_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    found = list(cublas._files())
    assert found[-4:-2] == [str(tmp_path / "lib64" / "libcublas.so.13"), str(tmp_path / "lib64" / "libcublas.so.12")]
    assert "libcublas.so.13" in found
    assert cublas._beside("/a/libcublas.so.12").endswith("libcublasLt.so.12")
    monkeypatch.setattr(sys, "platform", "win32")
    assert "cublas64_13.dll" in list(cublas._files())


def test_parts_of_items_have_one_column():
    stage = Product(Matrix(0, R, 2, 1), Matrix(1, R), Matrix(2, R, 1), Count(), Count(), Count())
    with pytest.raises(InternalError, match="columns that are parts of an item lie at no even distance"):
        records.Launch(stage).words()


# Machine code ---------------------------------------------------------------------------------------------------------


def made_of(size, helper=None):
    def kernel(ins, T):
        for i in range(size):
            T[i] = helper(i) if helper else i

    return kernel


def test_the_key_covers_closures_globals_dtype_and_card(monkeypatch):
    def key(f, dtype="float32", capability=(9, 0)):
        return machine_code._key(f, dtype, capability)

    assert key(made_of(3)) == key(made_of(3)) != key(made_of(4))
    assert key(made_of(3)) != key(made_of(3), "float64") and key(made_of(3)) != key(made_of(3), capability=(8, 0))
    assert key(double) != key(add)
    before = key(total)
    monkeypatch.setattr(machine_code, "_versions", lambda: ("other",))
    assert key(total) != before


def test_a_global_constant_is_part_of_the_key(monkeypatch):
    before = machine_code._key(limited, "float32", (9, 0))
    monkeypatch.setitem(globals(), "LIMIT", 4)
    assert machine_code._key(limited, "float32", (9, 0)) != before


LIMIT = 3


def limited(ins, T):
    T[0] = LIMIT


@pytest.fixture
def compilations(monkeypatch, tmp_path):
    """Count what is compiled; the disk cache is a folder of the test."""
    from autobatch.kernels import _cuda

    made = []

    def compile_kernel(function, dtype, cc):
        made.append((function.__qualname__, dtype, cc))
        ptx = ".visible .entry k(\n .param .u64 k_param_0,\n .param .u64 k_param_1\n)\n{"
        return _cuda.MachineCode("k", ptx, b"cubin\n" + bytes(range(256)), 1, 0, 0, 0)

    monkeypatch.setattr(_cuda, "compile_kernel", compile_kernel)
    monkeypatch.setattr(machine_code.numba.config, "CACHE_DIR", str(tmp_path))
    return made


def test_machine_code_is_kept_on_the_disk(compilations, tmp_path):
    first = machine_code.stored(double, "float32", (9, 0, "a"))
    assert first == ("k", b"cubin\n" + bytes(range(256)))
    assert machine_code.stored(double, "float32", (9, 0, "a")) == first and len(compilations) == 1
    (path,) = (tmp_path / "autobatch-cuda").iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40], whole.replace(b"cubin\n", b"cubim\n"), b"null\n", b"[]\nx", b"{}\nx"):
        path.write_bytes(damaged)
        assert machine_code.stored(double, "float32", (9, 0, "a")) == first
        assert path.read_bytes() == whole
    assert len(compilations) == 8
    assert len(list((tmp_path / "autobatch-cuda").iterdir())) == 1, "a temporary file was left"
    machine_code.stored(double, "float64", (9, 0, "a"))
    assert len(compilations) == 9


def test_without_a_folder_to_write_to_every_process_compiles(compilations, tmp_path, monkeypatch):
    (tmp_path / "autobatch-cuda").write_text("a file, where the folder would be")
    for _ in range(2):
        assert machine_code.stored(double, "float32", (9, 0))[0] == "k"
    assert len(compilations) == 2


def test_a_kernel_with_other_parameters_is_refused(compilations, monkeypatch):
    from autobatch.kernels import _cuda

    ptx = ".visible .entry k(\n .param .u64 k_param_0\n)\n{"
    monkeypatch.setattr(_cuda, "compile_kernel", lambda *a: _cuda.MachineCode("k", ptx, b"", 1, 0, 0, 0))
    with pytest.raises(DeviceError, match=r"gave kernel add 1 parameters, and 2 were asked for"):
        machine_code.stored(add, "float32", (9, 0))


def test_what_is_compiled_for():
    assert machine_code.capability_of((9, 0)) == (9, 0, "a")
    assert machine_code.capability_of((8, 0)) == (8, 0) and machine_code.capability_of((10, 0)) == (10, 0)


def test_the_folder(monkeypatch):
    monkeypatch.setattr(machine_code.numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert machine_code.folder().as_posix() == "/somewhere/autobatch/cuda"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert machine_code.folder().as_posix() == "/local/autobatch/cuda"


@pytest.mark.parametrize("kernel", [double, add, total, first_stage, second_stage, product, weight_product])
def test_a_real_compiler_makes_what_the_loader_expects(kernel, tmp_path, monkeypatch):
    pytest.importorskip("numba_cuda")
    monkeypatch.setattr(machine_code.numba.config, "CACHE_DIR", str(tmp_path))
    for dtype in ("float32", "float64"):
        entry, code = machine_code.stored(kernel, dtype, (9, 0, "a"))
        assert code[:4] == b"\x7fELF" and entry.encode() in code
        assert machine_code.stored(kernel, dtype, (9, 0, "a")) == (entry, code)


def test_pointers_of_the_fake_are_those_of_the_table():
    """A fake that forgot a function, or has one more, would not test the same driver."""
    own = {name.removeprefix("_") for name in vars(FakeDriver) if name.startswith("_cu")}
    assert own == set(driver.FORMS)
    assert all(issubclass(form, ctypes._CFuncPtr) for form in driver.FORMS.values())

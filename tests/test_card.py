"""What every card must do, be it the fake one or, where there is one, a real one: copies, launches, sums, products, errors."""

import subprocess
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("greenlet")

from fake_driver import FakeCublas, fake_card
from test_driver import (
    ACCUMULATE,
    FIXED,
    K,
    Numbers,
    Planned,
    R,
    add,
    cell,
    double,
    first_stage,
    forward_kernel,
    part,
    rows,
    run,
    second_stage,
    teams,
    total,
)

from autobatch.cuda import cublas, driver, memory, records
from autobatch.kernels._errors import DeviceError, DeviceMemoryError
from autobatch.kernels._jit import SLOTS, Count, Kernel, Stage


@pytest.fixture(params=["fake", "real"])
def card(request):
    if request.param == "fake":
        with fake_card() as fake, cublas.use(FakeCublas(fake)):
            yield fake
        return
    try:
        yield driver.device()
    except DeviceError as error:
        pytest.skip(str(error).split("\n")[0])


def test_it_says_what_it_is(card):
    device = driver.device()
    free, total = device.room()
    assert device.name and device.capability >= (7, 5) and device.processors > 0 and 0 < free <= total


@pytest.mark.parametrize("count", [1, 7, 1000, 300_000])
def test_numbers_come_back_as_they_went(card, count):
    values = np.arange(count, dtype=np.float64)
    block = memory.Block(values.nbytes, "values")
    memory.upload(block.address, values)
    np.testing.assert_array_equal(memory.read(block.address, count, "float64"), values)
    memory.zero(block.address, 8)
    assert memory.read(block.address, 1, "float64")[0] == 0


def test_many_copies_without_waiting(card):
    block = memory.Block(8 * 1000 * 50, "values")
    values = np.empty(1000)
    for k in range(50):
        values[:] = k
        memory.upload(block.address + 8000 * k, values)
    values[:] = -1
    np.testing.assert_array_equal(memory.read(block.address, 50_000, "float64").reshape(50, 1000)[:, -1], range(50))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n, size", [(1, 1), (1, 33), (5, 3), (70, 7), (3, 64), (2, 1000), (1, 10_000)])
def test_teams_of_all_widths(card, dtype, n, size):
    values = (np.arange(n * size).reshape(n, size) % 13).astype(dtype)
    x, y, s = Numbers(values, dtype), Numbers(values * 0, dtype), Numbers(np.zeros((n, 1)), dtype)
    table = Planned().add(teams(double, size, dtype), n, [size], [y.slot(), x.slot()])
    table.add(teams(total, size, dtype), n, [size], [s.slot(), y.slot()])
    table.add(teams(add, dtype=dtype, word=SLOTS + 4), n, [size], [y.slot(), x.slot()], ACCUMULATE)
    run(table, dtype)
    np.testing.assert_array_equal(s.read()[:, 0], 2 * values.sum(axis=1))
    np.testing.assert_array_equal(y.read(), 3 * values)


def test_stages_and_their_scratch(card):
    kernel = Kernel(first_stage)
    stages = [Stage(first_stage, (4, 1), Count(1), scratch=Count(4)), Stage(second_stage, (4, 1), Count(1))]
    kernel.on_card(stages=lambda sizes: stages)
    y = Numbers(np.zeros(4))
    run(Planned().add(records.of_kernel(kernel, "float64", ()), 1, [], [y.slot()]))
    assert y.read().tolist() == [0, 10, 20, 30]


def test_cells_and_lists(card):
    x, y = Numbers(np.arange(6.0).reshape(2, 3)), Numbers(np.zeros((2, 4)))
    listed = Numbers([x.address + 24, x.address], "int64")
    three, constant = Numbers([3], "int64"), Numbers([100.0, 200, 300])
    steps = [
        records.StepOf(teams(double, 3), three.address, 0, [part(0, 1, 3), part(1, 0, 3)]),
        records.StepOf(teams(add, 3), three.address, ACCUMULATE, [part(0, 1, 3), records.Part(FIXED, 0, constant.address, 24)]),
        records.StepOf(teams(total, 3), three.address, 0, [part(0, 0, 1), part(0, 1, 3)]),
    ]
    run(Planned().add(cell(*steps), 2, [], [y.slot(), (listed.address, -1)]))
    assert y.read().tolist() == [[624, 106, 208, 310], [606, 100, 202, 304]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_of_a_library(card, dtype):
    library = cublas.find()
    if library is None:
        pytest.skip("there is no cuBLAS")
    record = records.of_kernel(forward_kernel(2), dtype, (), R, rows=rows(dtype))
    W, x = Numbers(np.arange(12.0), dtype), Numbers(np.arange(20.0).reshape(5, K), dtype)
    y = Numbers(np.ones((5, R)), dtype)
    size = x.host.itemsize
    listed = Numbers([x.address + K * size * k for k in (3, 0, 4, 1)], "int64")
    for _ in range(2):
        run(Planned().add(record, 4, [], [y.slot(), (W.address, 0), (listed.address, -1)], ACCUMULATE), dtype, products=library)
    expected = 1 + 2 * x.host[[3, 0, 4, 1]] @ W.host.reshape(K, R)
    np.testing.assert_array_equal(y.read()[:4], expected)  # small whole numbers: exact in any order


def test_threads_share_the_stream(card):
    wrong = []

    def work(k):
        x, y = Numbers(np.full((4, 5), float(k))), Numbers(np.zeros((4, 5)))
        for _ in range(5):
            run(Planned().add(teams(double, 5), 4, [5], [y.slot(), x.slot()]))
            wrong.extend([] if (y.read() == 2 * k).all() else [k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_more_than_there_is(card):
    with pytest.raises(
        DeviceMemoryError, match=r"(?s)has no room for 1,125,899,906,842,624 bytes .* free of .* held by this process"
    ):
        memory.Block(1 << 50, "values")
    test_numbers_come_back_as_they_went(card, 7)


@pytest.mark.parametrize("careful", [False, True])
def test_a_kernel_outside_of_memory(careful):
    """A real card is lost to the process then, so this is one of its own. It says what happened, and ends in order."""
    try:
        driver.device()
    except DeviceError as error:
        pytest.skip(str(error).split("\n")[0])
    program = f"""
import sys
sys.path.insert(0, "tests")
from test_driver import *
x = Numbers(np.ones((2, 3)))
record = teams(double, 3)
try:
    run(Planned().add(record, 2, [3], [x.slot(), (8, 24)]), names={{record.address: "tanh"}}, careful={careful})
    x.read()
except DeviceError as error:
    print(error)
try:
    memory.Block(8, "values")
except DeviceError as error:
    print(error)
"""
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    first, hint, *again = made.stdout.splitlines()
    what = "row 0 of a table, tanh over 2 items: launch 0 failed" if careful else "cuStreamSynchronize failed"
    assert first.startswith(f"{what}: CUDA_ERROR_ILLEGAL_ADDRESS") and again == [first, hint]

"""Products on a card: kernels of `_gemm.py` against NumPy, in the simulator with small tiles; what the shipped ones need.

Then the ops that are made of them, with sizes that the calls of `test_ops.py` do not have.
"""

import os
import re

import numpy as np
import pytest
from fake_driver import simulated_card
from laws import public
from simulator import Pointer, Simulator, SimulatorError

import autobatch as ab
from autobatch.kernels import _cuda, _gemm, _tiles, affine_transform, convolution, matmul
from autobatch.kernels import lstm_step as lstm_step_module
from autobatch.kernels._gemm import BIG, MIDDLE, SMALL, Product, Tile, columns, matrix
from autobatch.kernels._jit import ACCUMULATE, Stage

SMALLER = [Tile(8, 8, 4, 4, 4), Tile(16, 8, 8, 8, 4), Tile(8, 16, 4, 4, 8, slices=2), Tile(8, 8, 4, 4, 4, slices=4)]
EVEN, APART, LISTED = "one after the other", "at a distance", "listed"

# sizes: m, k, columns of an item. Slots: result, then the two sides.
FORWARD = Product(
    "forward",
    m="sizes[0]",
    n="n_items * sizes[2]",
    k="sizes[1]",
    a=matrix("1", "sizes[0]"),
    b=columns("2", "sizes[2]", "sizes[1]"),
    c=columns("0", "sizes[2]", "sizes[0]"),
    b_deep=True,
    start="row(ins, 3, 0)",
)
GRADIENT_X = Product(
    "gradient_x",
    m="sizes[1]",
    n="n_items * sizes[2]",
    k="sizes[0]",
    a=matrix("1", "sizes[0]"),
    b=columns("2", "sizes[2]", "sizes[0]"),
    c=columns("0", "sizes[2]", "sizes[1]"),
    a_deep=True,
    b_deep=True,
    add="ins[FLAGS] & ACCUMULATE",
)
GRADIENT_A = Product(
    "gradient_a",
    m="sizes[0]",
    n="sizes[1]",
    k="n_items * sizes[2]",
    a=columns("1", "sizes[2]", "sizes[0]"),
    b=columns("2", "sizes[2]", "sizes[1]"),
    c=matrix("0", "sizes[0]"),
    add="ins[FLAGS] & ACCUMULATE",
)
OWN = Product(
    "own",
    m="sizes[0]",
    n="sizes[2]",
    k="sizes[1]",
    a=matrix("1", "sizes[0]", at="b * sizes[0] * sizes[1]", item="i"),
    b=matrix("2", "sizes[1]", at="b * sizes[1] * sizes[2]", item="i"),
    c=matrix("0", "sizes[0]", at="b * sizes[0] * sizes[2]", item="i"),
    b_deep=True,
    each="sizes[3]",
)
PARTS = Product(
    "parts",
    m="sizes[0]",
    n="n_items",
    k="depth",
    a=matrix("1 + 2 * part", "sizes[0]"),
    b=columns("2 + 2 * part", "1", "depth"),
    c=columns("0", "1", "sizes[0]", at="1"),
    b_deep=True,
    parts="sizes[1]",
    part_head="depth = sizes[2 + part]",
)


class Memory:
    """Operands of an instruction in the memory of a simulated card."""

    def __init__(self, dtype, seed=0):
        self.dtype, self.sim, self.slots, self.rng = np.dtype(dtype), Simulator(), [], np.random.default_rng(seed)

    def _new(self, count, skip=0):
        """An array of its own, `skip` numbers behind a multiple of 16 bytes; what lies beside it nobody may touch."""
        room = np.full(count + 16, np.nan, self.dtype)
        start = (-room.ctypes.data % 16) // self.dtype.itemsize + skip
        array = room[start : start + count]
        self.sim.add(array)
        return array

    def operand(self, n, size, how=EVEN, skip=0):
        """Add a slot of n items; returns the list of their numbers."""
        if how == LISTED:
            order = self.rng.permutation(n)
            block = self._new(n * (size + 3), skip)
            rows = [block[j * (size + 3) : j * (size + 3) + size] for j in order]
            addresses = np.array([r.ctypes.data for r in rows], np.int64)
            self.sim.add(addresses)
            self.slots += [addresses.ctypes.data, -1]
            self.rows = addresses, rows
        else:
            distance = size + (5 if how == APART else 0)
            block = self._new(n * distance, skip)
            rows = [block[j * distance : j * distance + size] for j in range(n)]
            self.slots += [block.ctypes.data, distance * self.dtype.itemsize]
        for r in rows:
            r[:] = self.rng.standard_normal(size)
        return rows

    def run(self, function, n, sizes, grid, threads, flags=0, scratch=None):
        sizes = np.array(sizes, np.int64)
        ins = np.array([0, 5 + len(self.slots), n, sizes.ctypes.data, flags, *self.slots], np.int64)
        work = np.zeros(2, self.dtype) if scratch is None else scratch
        starts = [self.sim.add(x) for x in (sizes, ins, work)]
        self.sim.launch(function, grid, threads, ins.ctypes.data, self.dtype.name, work.ctypes.data)
        for start in starts:
            self.sim.remove(start)

    def stages(self, stages, n, sizes, flags=0):
        """Run the launches of a product, with tiles as small as they are given."""
        stages = [s for s in stages if s.runs(n, self.dtype.name)]
        scratch = np.full(max(s.scratch.of(n) for s in stages), np.nan, self.dtype)
        for s in stages:
            self.run(s.function, n, sizes, (s.x.of(n), s.y.of(n), s.z.of(n)), s.threads, flags, scratch)
        return stages


def close(got, expected, dtype):
    tolerance = 1e-5 if dtype == "float32" else 1e-13
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def whole(rows, height):
    """Rows of items as a matrix of float64, their columns side by side."""
    return np.concatenate([np.asarray(r, np.float64).reshape(-1, height).T for r in rows], axis=1)


def up(n, by):
    return -(-n // by)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile", SMALLER, ids=str)
@pytest.mark.parametrize("how", [EVEN, APART, LISTED])
@pytest.mark.parametrize("m, k, each, n, skip", [(13, 7, 1, 9, 0), (16, 8, 2, 6, 0), (5, 19, 3, 3, 1), (1, 1, 1, 1, 0)])
def test_a_parameter_times_columns(dtype, tile, how, m, k, each, n, skip):
    memory = Memory(dtype)
    y = memory.operand(n, m * each, how, skip)
    a, x, start = memory.operand(1, m * k, skip=skip), memory.operand(n, k * each, how), memory.operand(1, m, skip=skip)
    expected = whole(a, m) @ whole(x, k) + np.asarray(start[0], np.float64)[:, None]
    memory.run(FORWARD.tile(tile), n, (m, k, each), (up(n * each, tile.BN), up(m, tile.BM), 1), (tile.threads, 1))
    close(whole(y, m), expected, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile", SMALLER, ids=str)
@pytest.mark.parametrize("how", [EVEN, APART, LISTED])
@pytest.mark.parametrize("m, k, each, n, add", [(7, 13, 1, 9, 0), (8, 16, 2, 6, ACCUMULATE), (19, 5, 3, 3, 0)])
def test_a_parameter_on_its_side_times_columns(dtype, tile, how, m, k, each, n, add):
    memory = Memory(dtype)
    dx, a, dy = memory.operand(n, k * each, how), memory.operand(1, m * k), memory.operand(n, m * each, how)
    expected = whole(a, m).T @ whole(dy, m) + (whole(dx, k) if add else 0)
    grid = up(n * each, tile.BN), up(k, tile.BM), 1
    memory.run(GRADIENT_X.tile(tile), n, (m, k, each), grid, (tile.threads, 1), add)
    close(whole(dx, k), expected, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile", SMALLER, ids=str)
@pytest.mark.parametrize("how", [EVEN, APART, LISTED])
@pytest.mark.parametrize("m, k, each, n, pieces", [(13, 7, 1, 9, 1), (8, 16, 2, 6, 3), (5, 9, 3, 13, 4), (3, 2, 1, 3, 2)])
def test_sums_over_columns_whole_and_in_pieces(dtype, tile, how, m, k, each, n, pieces):
    memory = Memory(dtype)
    da, dy, x = memory.operand(1, m * k), memory.operand(n, m * each, how), memory.operand(n, k * each, how)
    expected = whole(da, m) + whole(dy, m) @ whole(x, k).T
    sizes, grid = (m, k, each), (up(k, tile.BN), up(m, tile.BM), pieces)
    scratch = np.full(pieces * m * k, np.nan, dtype)
    memory.run(GRADIENT_A.tile(tile, cut=pieces > 1), n, sizes, grid, (tile.threads, 1), ACCUMULATE, scratch)
    if pieces > 1:
        memory.run(GRADIENT_A.added(), n, sizes, (1, 1, pieces), (256, 1), ACCUMULATE, scratch)
    close(whole(da, m), expected, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tile", SMALLER[1:3], ids=str)
@pytest.mark.parametrize("how", [APART, LISTED])
def test_products_of_each_item(dtype, tile, how):
    m, k, cols, batch, n = 9, 6, 11, 2, 3
    memory = Memory(dtype)
    y, a, x = (memory.operand(n, size * batch, how) for size in (m * cols, m * k, k * cols))
    grid = n * batch * up(cols, tile.BN), up(m, tile.BM), 1
    memory.run(OWN.tile(tile), n, (m, k, cols, batch), grid, (tile.threads, 1))
    for i in range(n):
        for b in range(batch):
            left, right = whole([a[i]], m)[:, b * k : b * k + k], whole([x[i]], k)[:, b * cols : b * cols + cols]
            close(whole([y[i]], m)[:, b * cols : b * cols + cols], left @ right, dtype)


@pytest.mark.parametrize("tile", SMALLER, ids=str)
def test_products_that_are_added_up(tile):
    m, n, depths = 10, 9, (5, 12, 4)
    memory = Memory("float64")
    y = memory.operand(n, m + 1)
    sides = [(memory.operand(1, m * k), memory.operand(n, k, LISTED)) for k in depths]
    expected = sum(whole(a, m) @ whole(x, k) for k, (a, x) in zip(depths, sides, strict=True))
    first = [r[0] for r in y]
    memory.run(PARTS.tile(tile), n, (m, 3, *depths), (up(n, tile.BN), up(m, tile.BM), 1), (tile.threads, 1))
    close(np.array([r[1:] for r in y]).T, expected, "float64")
    assert [r[0] for r in y] == first


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m, k, each, n", [(40, 19, 1, 1), (5, 70, 2, 2), (33, 8, 1, 3)])
def test_single_columns(dtype, m, k, each, n):
    memory = Memory(dtype)
    y, a, x, start = (memory.operand(*o) for o in ((n, m * each, LISTED), (1, m * k), (n, k * each), (1, m)))
    expected = whole(a, m) @ whole(x, k) + np.asarray(start[0], np.float64)[:, None]
    memory.stages([_gemm.vectors(FORWARD, m, each)], n, (m, k, each))
    close(whole(y, m), expected, dtype)
    for add in (0, ACCUMULATE):
        memory = Memory(dtype)
        dx, a, dy = (memory.operand(*o) for o in ((n, k * each), (1, m * k), (n, m * each, APART)))
        expected = whole(a, m).T @ whole(dy, m) + (whole(dx, k) if add else 0)
        memory.stages([_gemm.vectors(GRADIENT_X, k, each)], n, (m, k, each), add)
        close(whole(dx, k), expected, dtype)


@pytest.mark.parametrize("tile", [SMALL, MIDDLE, BIG], ids=str)
def test_shipped_tiles_multiply(tile):
    m, k, n = 40, 37, 35
    memory = Memory("float32")
    y, a, x, start = (memory.operand(*o) for o in ((n, m), (1, m * k), (n, k, LISTED), (1, m)))
    expected = whole(a, m) @ whole(x, k) + np.asarray(start[0], np.float64)[:, None]
    memory.run(FORWARD.tile(tile), n, (m, k, 1), (up(n, tile.BN), up(m, tile.BM), 1), (tile.threads, 1))
    close(whole(y, m), expected, "float32")


@pytest.fixture
def small_tiles(monkeypatch):
    """Launches are chosen as ever, among tiles that the simulator has the patience for."""
    tiles = Tile(8, 8, 4, 4, 4, slices=2), Tile(16, 16, 4, 4, 4), Tile(32, 32, 4, 8, 8)
    monkeypatch.setattr(_gemm, "_TYPES", {"float32": tiles, "float64": tiles[:2]})
    monkeypatch.setattr(_gemm, "FULL", 6)
    monkeypatch.setattr(_gemm, "SHORTEST", 16)
    return tiles


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m, k, each", [(18, 5, 1), (9, 20, 3), (70, 3, 1)])
def test_for_any_number_of_items_there_is_one_launch(small_tiles, dtype, m, k, each):
    stages = _gemm.growing(FORWARD, m, each)
    names = set()
    for n in (*range(1, 9), 12, 16, 17, 40, 64, 90, 130):
        chosen = [s for s in stages if s.runs(n, dtype)]
        assert len(chosen) == 1
        names.add(chosen[0].function.__name__)
        if n in (1, 2, 8, 17, 40):
            memory = Memory(dtype)
            y, a, x, start = (memory.operand(*o) for o in ((n, m * each), (1, m * k), (n, k * each), (1, m)))
            memory.stages(stages, n, (m, k, each))
            close(whole(y, m), whole(a, m) @ whole(x, k) + np.asarray(start[0], np.float64)[:, None], dtype)
    assert len(names) >= (3 if each == 1 else 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("m, k, each", [(9, 5, 1), (7, 20, 3), (70, 70, 1), (9, 5, 40)])
def test_sums_of_any_length_are_launched_and_give_the_same_bits_twice(small_tiles, dtype, m, k, each):
    stages = _gemm.summed(GRADIENT_A, m, k, each)
    for n in (1, 2, 5, 16, 17, 40):
        results = []
        for _ in range(2):
            memory = Memory(dtype)
            da, dy, x = (memory.operand(*o) for o in ((1, m * k), (n, m * each, LISTED), (n, k * each)))
            expected = whole(da, m) + whole(dy, m) @ whole(x, k).T
            memory.stages(stages, n, (m, k, each), ACCUMULATE)
            close(whole(da, m), expected, dtype)
            results.append(whole(da, m))
        np.testing.assert_array_equal(*results)


def test_shipped_launches_are_one_for_each_number_of_items():
    for m, k, each in [(1024, 256, 1), (50, 50, 1), (4, 300, 1), (1, 1, 1), (10_000, 512, 1), (512, 512, 64), (30, 30, 64)]:
        for dtype in ("float32", "float64"):
            for n in (1, 2, 7, 64, 500, 1000, 4000, 100_000):
                assert sum(s.runs(n, dtype) for s in _gemm.growing(FORWARD, m, each)) == 1
                chosen = [s for s in _gemm.summed(GRADIENT_A, m, k, each) if s.runs(n, dtype)]
                assert len(chosen) == 1 or (len(chosen) == 2 and chosen[0].z.of(n) == chosen[1].z.of(n))
                assert chosen[0].scratch.of(n) >= (chosen[0].z.of(n) * m * k if len(chosen) == 2 else 1)
    with pytest.raises(ValueError, match="power of two"):
        GRADIENT_A.tile(Tile(24, 8, 4, 4, 4))


def test_four_numbers_at_once_need_an_even_address():
    memory = Memory("float32")
    memory.operand(1, 16, skip=1)
    p = Pointer(memory.sim, memory.slots[0], "float32")
    assert len(memory.sim.target.kernel(lambda ins, T: _tiles.four(T, 3))(None, p)) == 4
    with pytest.raises(SimulatorError, match="no multiple of 16"):
        memory.sim.target.kernel(lambda ins, T: _tiles.four(T, 4))(None, p)


def test_cublas_is_for_large_products():
    assert _gemm.prefers_cublas(2048, 2048, 2048)
    assert not _gemm.prefers_cublas(512, 64, 512)


# Machine code ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile, dtype", [(BIG, "float32"), *((t, d) for t in (MIDDLE, SMALL) for d in ("float32", "float64"))])
@pytest.mark.parametrize("product, cut", [(FORWARD, False), (GRADIENT_X, False), (GRADIENT_A, False), (GRADIENT_A, True)])
def test_shipped_tiles_need_what_a_card_has(product, cut, tile, dtype):
    ptx = _cuda.compile_ptx(_cuda.entry_of(product.tile(tile, cut)), dtype, (8, 0))
    for architecture in [(8, 0), (9, 0)]:
        code = _cuda.link(ptx, architecture)
        assert (code.local, code.spills) == (0, 0)
        blocks = 2 if dtype == "float32" else 1  # of a multiprocessor; a number of float64 takes two registers
        assert code.registers * tile.threads <= 65536 / blocks
        assert code.shared < 48 << 10
    loads = "ld.global.v4.f32" if dtype == "float32" else "ld.global.v2.f64"
    assert loads in ptx and loads.replace("global", "shared") in ptx
    if dtype == "float32":
        assert not re.search(r"\.f64\b", ptx)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_kernels_need_what_a_card_has(dtype):
    for function in (FORWARD.vector(), GRADIENT_X.vector(), GRADIENT_A.added(), OWN.tile(SMALL), PARTS.tile(MIDDLE)):
        code = _cuda.compile_kernel(function, dtype, (9, 0))
        assert (code.local, code.spills) == (0, 0) and code.registers <= 128 and code.shared < 48 << 10
        assert dtype == "float64" or not re.search(r"\.f64\b", code.ptx)


# Ops ------------------------------------------------------------------------------------------------------------------

ROWS, DEPTH = 36, 40
ALL = (
    int(os.environ.get("AUTOBATCH_EXAMPLES", "1")) > 1
)  # all in float64 too; there are float64 products in `test_cuda_laws.py`


def both_machines(dtype, record, tolerance):
    """Values and gradients of a graph agree on the processor and on a card."""

    def run():
        ab.configure(dtype=dtype)
        ab.renew_cg()
        rng = np.random.default_rng(5)
        model = ab.ParameterCollection(dtype=dtype)
        given = []

        def draw(*dims, batch=0):
            given.append(ab.inputTensor(rng.standard_normal((*dims, batch) if batch else dims), batched=bool(batch)))
            return given[-1]

        def parameter(*dims):
            p = model.add_parameters(dims)
            p.set_value(rng.standard_normal(dims))
            return p

        outs = record(draw, parameter)
        values = [np.array(o.npvalue()) for o in outs]
        loss = ab.esum([ab.sum_batches(ab.sum_elems(ab.cmult(o, o))) for o in outs])
        loss.backward(full=True)
        gradients = [np.array(x.gradient()) for x in given]
        return values + gradients + [np.array(p.grad_as_array()) for p in model.parameters_list()]

    expected = run()
    with simulated_card():
        got = run()
    for e, g in zip(expected, got, strict=True):
        np.testing.assert_allclose(g, e, rtol=tolerance, atol=tolerance * np.abs(e).max())


def weights(draw, parameter):
    """Many columns of a few nodes: gradients of the weight in pieces."""
    w = parameter(ROWS, DEPTH)
    return [w * draw(DEPTH, 3, batch=15) for _ in range(3)] + [w * draw(DEPTH, 1)]


def one_vector(draw, parameter):
    return [parameter(ROWS, DEPTH) * draw(DEPTH)]


def own_matrices(draw, parameter):
    """Products of items: tiles, vectors, and teams; A, or x, shared by the elements of a minibatch."""
    sides = [((33, 17), (17, 35)), ((70, 60), (60,)), ((5, 4), (4, 3)), ((1, 70), (70,))]
    return [
        draw(*a, batch=left) * draw(*x, batch=right)
        for a, x in sides
        for left, right in ((0, 0), (2, 2), (2, 0), (0, 2))
        for _ in range(2)
    ]


def affine(draw, parameter):
    b, w, u = parameter(ROWS), parameter(ROWS, DEPTH), parameter(ROWS, 7)
    return [ab.affine_transform([b, w, draw(DEPTH, batch=50), u, draw(7, batch=50)]) for _ in range(3)]


def own_affine(draw, parameter):
    b = parameter(33)
    outs = []
    for w, x, batch in ((2, 2, 2), (2, 0, 2), (0, 2, 2), (0, 0, 0)):
        outs.append(ab.affine_transform([b, draw(33, 40, batch=w), draw(40, 9, batch=x), draw(33, 3), draw(3, 9, batch=batch)]))
    outs.append(ab.affine_transform([draw(3, 2, batch=2), draw(3, 4), draw(4, 2, batch=2), draw(3, 1, batch=2), draw(1, 2)]))
    return outs


def steps(draw, parameter):
    """Steps of LSTMs, alone and of a minibatch."""
    size, width = 5, 9
    model = [parameter(4 * size, width), parameter(4 * size, size), parameter(4 * size)]
    outs = []
    for batch in (0, 0, 0, 3, 3):
        outs += lstm_step(draw(width, batch=batch), draw(size, batch=batch), draw(size, batch=batch), *model, 1.0)
    return outs


def lstm_step(*arguments):
    return public("lstm_step")(*arguments)


def images(draw, parameter):
    """Filters and a bias that are parameters, over many images; strides, and windows that reach beside the image."""
    f, b = parameter(3, 2, 2, 5), parameter(5)
    outs = [ab.conv2d_bias(draw(7, 6, 2, batch=4), f, b, [2, 1], is_valid=False) for _ in range(3)]
    return [*outs, ab.conv2d(draw(9, 40), parameter(3, 40, 1, 34), [1, 1])]


def own_filters(draw, parameter):
    outs = [ab.conv2d_bias(draw(6, 7, 2), draw(2, 3, 2, 3), draw(3), [1, 2]) for _ in range(2)]
    return [*outs, *(ab.conv2d(draw(6, 7, 2, batch=x), draw(2, 3, 2, 3, batch=f), [1, 2]) for x, f in ((2, 2), (2, 0), (0, 2)))]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-4), ("float64", 1e-11)][: 2 if ALL else 1])
@pytest.mark.parametrize("record", [weights, one_vector, own_matrices, affine, own_affine, steps, images, own_filters])
def test_ops_give_the_same_on_both_machines(record, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(convolution, "_images", lambda sizes: 3)
    both_machines(dtype, record, tolerance)


# A library of products ------------------------------------------------------------------------------------------------


def by_library(memory, n, products, sizes, flags=0):
    """What the loop of launches does, on dense operands: `Stage`s in the simulator, products in NumPy."""

    def part(matrix, rows, cols):
        address, stride = memory.slots[2 * matrix.slot : 2 * matrix.slot + 2]
        size = memory.dtype.itemsize
        apart = stride if matrix.columns == 1 and n > 1 else matrix.rows * size
        span = memory.sim.span(address)
        start = address + matrix.offset * size - span.start
        whole = span.memory.view(np.uint8)[start:]
        return np.ndarray((rows, cols), memory.dtype, whole, strides=(size, apart))

    for stage in products.stages:
        if isinstance(stage, Stage):
            memory.stages([stage], n, sizes)
            continue
        m, cols, k = (count.of(n) for count in (stage.m, stage.n, stage.k))
        a = part(stage.a, k, m).T if stage.transpose_a else part(stage.a, m, k)
        b = part(stage.b, cols, k).T if stage.transpose_b else part(stage.b, k, cols)
        c = part(stage.c, m, cols)
        add = bool(flags & ACCUMULATE) if stage.add is None else stage.add
        c[:] = a @ b + (c if add else 0)


@pytest.mark.parametrize("each, how", [(1, EVEN), (1, APART), (3, EVEN)])
def test_products_of_a_library_are_those_of_our_own(each, how):
    m, k, n = 6, 5, 4
    memory = Memory("float64")
    y, a, x = memory.operand(n, m * each, how), memory.operand(1, m * k), memory.operand(n, k * each, how)
    by_library(memory, n, matmul.matmul_parameter.card.products((m, k, each)), (m, k, each))
    close(whole(y, m), whole(a, m) @ whole(x, k), "float64")

    memory = Memory("float64")
    dx, dy, _, a = (memory.operand(*o) for o in ((n, k * each, how), (n, m * each, how), (1, 1), (1, m * k)))
    expected = whole(dx, k) + whole(a, m).T @ whole(dy, m)
    by_library(memory, n, matmul.matmul_parameter_gradient_x.card.products((m, k, each)), (), ACCUMULATE)
    close(whole(dx, k), expected, "float64")

    memory = Memory("float64")
    da, dy, _, x = (memory.operand(*o) for o in ((1, m * k), (n, m * each, how), (1, 1), (n, k * each, how)))
    expected = whole(da, m) + whole(dy, m) @ whole(x, k).T
    by_library(memory, n, matmul.matmul_parameter_gradient_a.card.products((m, k, each)), ())
    close(whole(da, m), expected, "float64")


@pytest.mark.parametrize("each", [1, 2])
def test_a_bias_and_two_products_of_a_library(each):
    r, n, depths = 6, 3, (5, 4)
    memory = Memory("float64")
    y, b = memory.operand(n, r * each), memory.operand(1, r)
    memory.slots[3] = 0
    sides = [(memory.operand(1, r * k), memory.operand(n, k * each)) for k in depths]
    sizes = (r, each, 1, 1, 1, 2, 1, 5, 1, 1, 4, 1, 1)
    by_library(memory, n, affine_transform.affine_parameters.card.products(sizes), sizes)
    products = sum(whole(w, r) @ whole(x, k) for k, (w, x) in zip(depths, sides, strict=True))
    close(whole(y, r), products + np.asarray(b[0])[:, None], "float64")
    assert affine_transform.affine_parameters_gradient_x.card.products(sizes) is None
    assert affine_transform.affine_parameters_gradient_x.card.products((*sizes[:10], 5, 1, 1)) is not None
    assert affine_transform.affine_parameters.card.products((r, each, 1, 1, 1, 0, 1)) is None


def test_a_step_of_an_lstm_by_a_library():
    H, n = 3, 4
    sizes = H, H, 1
    memory = Memory("float64")
    y, x, h, c = (memory.operand(n, size) for size in (6 * H, H, H, H))
    wx, wh, b, forget = (memory.operand(1, size) for size in (4 * H * H, 4 * H * H, 4 * H, 1))
    memory.slots[13] = memory.slots[15] = 0
    a = whole(wx, 4 * H) @ whole(x, H) + whole(wh, 4 * H) @ whole(h, H) + b[0][:, None]
    by_library(memory, n, lstm_step_module.lstm_step.card.products(sizes), sizes)
    gates = 1 / (1 + np.exp(-(a[: 3 * H] + forget[0] * (np.arange(3 * H) // H == 1)[:, None])))
    state = gates[H : 2 * H] * whole(c, H) + gates[:H] * np.tanh(a[3 * H :])
    close(whole(y, 6 * H)[: 2 * H], np.concatenate([gates[2 * H :] * np.tanh(state), state]), "float64")
    assert lstm_step_module.lstm_step.card.products((H, H, 2)) is None

    memory = Memory("float64")
    dx, dy, _, w = (memory.operand(*o) for o in ((n, H), (n, 6 * H), (1, 1), (1, 4 * H * H)))
    expected = whole(dx, H) + whole(w, 4 * H).T @ whole(dy, 6 * H)[2 * H :]
    by_library(memory, n, lstm_step_module.lstm_step_gradient_input.card.products(sizes), sizes, ACCUMULATE)
    close(whole(dx, H), expected, "float64")

    memory = Memory("float64")
    dw, dy, _, x = (memory.operand(*o) for o in ((1, 4 * H * H), (n, 6 * H), (1, 1), (n, H)))
    expected = whole(dw, 4 * H) + whole(dy, 6 * H)[2 * H :] @ whole(x, H).T
    by_library(memory, n, lstm_step_module.lstm_step_gradient_w.card.products(sizes), sizes)
    close(whole(dw, 4 * H), expected, "float64")

"""Instructions that several threads divide among themselves give the numbers of one thread, the same bits in each run."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from laws import FLOAT32_GRAPH, agree, batched_equals_alone, close, in_one_go, run
from strategies import examples, graphs, plans

import autobatch as ab
from autobatch import execute, threads
from autobatch.kernels import _blas, _threads
from autobatch.kernels._jit import LENGTH, WORDS
from autobatch.kernels._op import OPS
from autobatch.memory import array_at
from autobatch.schedule import POLICIES

every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


@pytest.fixture
def divided(monkeypatch):
    """Three threads, pieces as small as can be, and no table and no product too small for them."""
    monkeypatch.setattr(threads, "PIECE", 1)
    monkeypatch.setattr(threads, "WORTH", 0)
    monkeypatch.setattr(threads, "count", lambda: 3)
    board = threads.board().words
    large = int(board[_blas.LARGE])
    board[_blas.LARGE] = 1
    yield
    board[_blas.LARGE] = large


def pieces(table, words):
    """Return the number of pieces of each instruction."""
    at, found = 0, []
    while at < words:
        found.append(int(table[at + LENGTH]) >> 32)
        at += int(table[at + LENGTH]) & WORDS
    return found


# Laws -----------------------------------------------------------------------------------------------------------------


@every_op
def test_every_op_divided(divided, op):
    """Batches of each op, divided, give what each node gives alone."""

    @examples(5)
    @given(plans(op, 6))
    def check(plan):
        batched_equals_alone(plan, "float64" if plan.seed % 2 else "float32")

    check()


@every_op
def test_every_op_has_places_of_its_own_for_each_piece(divided, monkeypatch, op):
    """Debug mode finds two items of a divided instruction in one place, if there are any."""
    monkeypatch.setattr(execute, "CHECKED", True)

    @examples(2)
    @given(plans(op, 5))
    def check(plan):
        with np.errstate(all="ignore"):
            run(plan, "float32", "ratio")

    check()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("checked", [False, True])
def test_graphs_divided(divided, monkeypatch, policy, checked):
    @examples(10 if checked else 25)
    @given(graphs())
    def check(case):
        with monkeypatch.context() as patch:
            patch.setattr(threads, "count", lambda: 1)
            expected = in_one_go(case)[0].gradients()
        monkeypatch.setattr(execute, "CHECKED", checked)
        recording, _ = in_one_go(case, "float32", policy)
        monkeypatch.setattr(execute, "CHECKED", False)
        agree(recording.computed(), case.values, FLOAT32_GRAPH, "value of instance, step")
        close(recording.loss.npvalue(), [case.loss(case.values)], FLOAT32_GRAPH, "loss")
        agree(recording.gradients(), expected, FLOAT32_GRAPH, "gradient of parameter")

    check()


class Tagger:
    """Something of everything that is large: an LSTM, a table, a cell, a wide softmax."""

    def __init__(self, dtype):
        ab.reset_random_seed(2)
        self.model = ab.ParameterCollection(dtype=dtype)
        self.words = self.model.add_lookup_parameters((40, 24))
        self.lstm = ab.VanillaLSTMBuilder(1, 24, 32, self.model)
        self.W, self.b, self.U = (self.model.add_parameters(d) for d in ((300, 32), (300,), (32, 32)))
        self.cell = ab.cell(lambda x, y: ab.tanh(self.U * ab.cmult(x, y)) + x)

    def gradients(self, dtype, twice=False):
        """Value and gradients of a minibatch in which nodes meet: a state is used by several nodes of a batch."""
        rng = np.random.default_rng(1)
        losses = []
        with ab.Graph(dtype=dtype) as graph:
            for length in rng.integers(3, 12, 24).tolist():
                words = rng.integers(0, 40, length).tolist()
                outputs = self.lstm.initial_state().transduce([self.words[w] for w in words])
                summary = ab.esum(outputs)
                for w, output in zip(words, outputs, strict=True):
                    h = self.cell(output, summary) + ab.cmult(output, output)
                    losses.append(ab.pickneglogsoftmax(ab.affine_transform([self.b, self.W, h]), 7 * w))
            loss = ab.esum(losses)
            value = loss.value()
            for _ in range(1 + twice):
                loss.backward()
        everything = self.model.parameters_list() + self.model.lookup_parameters_list()
        found = [value, *(p.grad_as_array() for p in everything)]
        self.model.reset_gradient()
        return found, graph


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_program_divided(divided, monkeypatch, dtype):
    tagger = Tagger(dtype)
    found, graph = tagger.gradients(dtype)
    again, _ = tagger.gradients(dtype)
    divided_ones = [p for s in graph.execution.segments for p in pieces(s.table, s.words) if p > 1]
    assert len(divided_ones) > 10
    monkeypatch.setattr(threads, "count", lambda: 1)
    expected, _ = tagger.gradients(dtype)
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    for a, b, c in zip(found, again, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=tolerance, atol=tolerance * np.abs(c).max())


def test_gradients_that_meet_are_not_divided(divided):
    """Each item of a batch adds to the gradient of one node: their places are the same, so no two threads may take them."""
    with ab.Graph() as graph:
        x = ab.inputVector(np.ones(5))
        loss = ab.esum([ab.sum_elems(ab.cmult(x, ab.inputVector(np.full(5, k)))) for k in range(8)])
        loss.backward(full=True)
        np.testing.assert_array_equal(x.gradient(), np.full(5, 28))
    (forward,) = graph.execution.segments
    assert 8 in pieces(forward.table, forward.words)
    (((address, words, _, _), _),) = graph.execution.backward.tables
    table = array_at(address, words, "int64")
    added = [p for p in pieces(table, words) if p]
    assert added and added.count(8) < sum(p == 0 for p in pieces(table, words))


def test_products_are_divided(divided, monkeypatch):
    """Every way of turning, both dtypes, sizes that pieces do not divide: as NumPy says."""
    rng = np.random.default_rng(1)
    for m, n, k in ((1, 1, 1), (5, 70, 3), (70, 5, 9), (33, 64, 17), (100, 100, 40)):
        for dtype in ("float32", "float64"):
            model = ab.ParameterCollection(dtype=dtype)
            W = model.add_parameters((m, k))
            with ab.Graph(dtype=dtype):
                x = rng.uniform(-1, 1, (k, n))
                y = W * ab.inputTensor(x)
                weights = rng.uniform(-1, 1, (m, n))
                ab.sum_elems(ab.cmult(y, ab.inputTensor(weights))).backward(full=True)
                tolerance = 1e-5 if dtype == "float32" else 1e-12
                np.testing.assert_allclose(y.npvalue().reshape(m, n), W.as_array() @ x, rtol=tolerance, atol=tolerance)
                np.testing.assert_allclose(W.grad_as_array(), weights @ x.T, rtol=tolerance, atol=10 * tolerance)


# The board ------------------------------------------------------------------------------------------------------------


def test_many_runs_one_after_the_other(divided):
    """Helpers come and go: tables of a few instructions, so that some helpers are still on their way when a table is done."""
    W = ab.ParameterCollection().add_parameters((6, 6))
    for k in range(2000):
        with ab.Graph():
            xs = [ab.tanh(W * ab.inputVector(np.full(6, k + j))) for j in range(3)]
            total = ab.esum(xs).npvalue()
        if k % 500 == 0:
            expected = sum(np.tanh(W.as_array() @ np.full(6, k + j)) for j in range(3))
            np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)
    board = threads.board().words
    assert board[_threads.JOB] == _threads.CLOSED


def test_generations_go_round(divided):
    """The number of a job begins anew before it runs into the sign."""
    board = threads.board().words
    board[_threads.JOB + 1] = _threads.GENERATIONS - 2
    tagger = Tagger("float32")
    first, _ = tagger.gradients("float32")
    assert 0 < board[_threads.JOB + 1] < _threads.GENERATIONS - 2
    second, _ = tagger.gradients("float32")
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_graphs_of_two_threads_at_once(divided):
    """One of them has the helpers, the other runs alone."""
    expected, _ = Tagger("float64").gradients("float64")
    found, stop = [], threading.Event()
    taggers = [Tagger("float64") for _ in range(2)]

    def work():
        tagger = taggers.pop()
        while not stop.is_set():
            found.append(tagger.gradients("float64")[0])

    others = [threading.Thread(target=work) for _ in range(2)]
    for other in others:
        other.start()
    end = time.monotonic() + 2
    while time.monotonic() < end or len(found) < 4:
        time.sleep(0.05)
    stop.set()
    for other in others:
        other.join()
    for one in found:
        for a, b in zip(one, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def in_a_process(text, **environment):
    """Run a program; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PROGRAM = """
import numpy as np, autobatch as ab
from autobatch import threads
threads.WORTH, threads.PIECE = 0, 1
W = ab.ParameterCollection().add_parameters((40, 40))
def total():
    with ab.Graph():
        loss = ab.esum([ab.sum_elems(ab.tanh(W * ab.inputVector(np.full(40, k)))) for k in range(8)])
        loss.backward()
        return round(loss.value(), 3)
ab.configure(threads=2)
"""


def test_a_process_ends_while_helpers_sleep():
    assert in_a_process(PROGRAM + "print(total() == total(), threads.board().helpers)") == "True 1\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_child_of_a_fork_has_helpers_of_its_own():
    """The threads of a parent are not there in the child, and what they left must not be waited for."""
    text = """
import os, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of forks with threads
before = total()
child = os.fork()
if child == 0:
    os._exit(0 if total() == before and threads.board().helpers == 1 else 1)
print(os.waitpid(child, 0)[1], total() == before)
"""
    assert in_a_process(PROGRAM + text) == "0 True\n"


def test_without_helpers_if_the_system_has_no_thread(divided, monkeypatch):
    """A process that may not have more threads computes all the same."""
    expected, _ = Tagger("float64").gradients("float64")
    board, of_python = threads._Board(), threads._of_python

    def without(name, *kinds):
        return (lambda *a: threads._NO_THREAD) if name == "PyThread_start_new_thread" else of_python(name, *kinds)

    monkeypatch.setattr(threads._Process, "board", board)
    monkeypatch.setattr(threads, "_of_python", without)
    found, _ = Tagger("float64").gradients("float64")
    assert board.helpers == 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_threads_are_those_of_the_blas():
    """As many as the BLAS may use; and the BLAS is given back as it was."""
    text = """
from threadpoolctl import threadpool_info, threadpool_limits
def used():
    return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}
print(threads.count(), used())
total()
print(threads.count(), used())
with threadpool_limits(1):
    print(threads.count(), end=" ")
print(threads.count())
ab.configure(threads=1)
total()
print(threads.count(), used())
"""
    assert in_a_process(PROGRAM + text).split("\n")[:4] == ["2 {2}", "2 {2}", "1 2", "1 {1}"]
    assert in_a_process(PROGRAM.replace("ab.configure", "#") + "print(threads.count())", OPENBLAS_NUM_THREADS="1") == "1\n"


def test_threads_beside_a_blas_that_nobody_knows(monkeypatch):
    """Nothing is known of its threads: as many of ours as the program says, or as there are cores."""
    monkeypatch.setattr(threads, "_libraries", list)
    monkeypatch.setattr(threads._Process, "asked", 0)
    assert threads.count() == min(threads.cores(), _threads.MOST_THREADS)
    monkeypatch.setattr(threads._Process, "asked", 3)
    assert threads.count() == 3


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"cpu.max": "150000 100000\n"}, [2]),
        ({"cpu.max": "max 100000\n"}, []),
        ({"cpu.max": "0 0\n"}, []),
        ({"cpu.max": "what\n"}, []),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, [4]),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ({}, []),
    ],
)
def test_a_container_has_its_share_of_time(tmp_path, files, expected):
    """A container on a large machine may run on all cores, but not all the time: as many threads would stop each other."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads._quota(tmp_path) == expected
    assert 1 <= threads.cores() <= os.cpu_count()


def test_more_threads_than_there_may_be():
    text = "ab.configure(threads=40)\nprint(total() == total(), threads.count(), threads.board().helpers)"
    assert in_a_process(PROGRAM + text) == f"True {_threads.MOST_THREADS} {_threads.MOST_THREADS - 1}\n"

"""The background among signals, interrupts, other threads, forks, debuggers."""

import contextlib
import gc
import os
import sys
import threading
import warnings
import weakref

import numpy as np
import pytest
from test_background import PROGRAM, Net, able, both_ways, late, same_bits  # noqa: F401
from test_divided import in_a_process

import autobatch as ab
from autobatch import background, threads
from autobatch.background import running
from autobatch.execute import _IDLE
from autobatch.memory import pooled

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")

# At any line ----------------------------------------------------------------------------------------------------------

FILES = ("background.py", "machine.py", "threads.py", "trainer.py", "tables.py", "storage.py", "execute.py", "graph.py")


def at_each_line(step, handler):
    """Yield what `step` returns with a handler called at one line of the library, each in turn, as that of a signal is."""
    target = 0
    while True:
        target += 1
        count = 0

        def local(frame, event, argument):
            nonlocal count
            if event == "line":
                count += 1
                if count == target:
                    sys.settrace(None)
                    handler()
            return local

        def tracer(frame, event, argument):
            name = frame.f_code.co_filename
            return local if "autobatch" in name and name.endswith(FILES) else None

        sys.settrace(tracer)
        try:
            result = step()
        finally:
            sys.settrace(None)
        if count < target:
            return
        yield result


def fork():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of forks with threads
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)


@pytest.mark.usefixtures("able")
@pytest.mark.parametrize("does", ["reads", pytest.param("forks", marks=FORKS)])
def test_the_handler_of_a_signal_may_look_at_the_model(does):
    model = ab.ParameterCollection()
    W, table = model.add_parameters((3, 3)), model.add_lookup_parameters((5, 3))
    trainer = ab.MomentumSGDTrainer(model, 0.1)
    values = [np.eye(3) * 0.1, np.arange(15).reshape(5, 3) * 0.1]

    def train():
        ab.renew_cg()
        loss = ab.sum_elems(ab.tanh(W * table[1]))
        loss.value()
        loss.backward()
        trainer.update()

    def begin():
        W.set_value(values[0])
        table.init_from_array(values[1])
        model.reset_gradient()
        trainer.restart()
        train()

    def step():
        train()
        return [W.as_array(), table.as_array(), W.grad_as_array()]

    begin()
    expected, points = step(), 0
    begin()
    for found in at_each_line(step, W.as_array if does == "reads" else fork):
        same_bits(found, expected)
        assert not running() and not background._State.holds and not threads.board().busy.locked()
        assert threads.board().finished()
        begin()
        points += 1
    assert points > 300


@pytest.mark.usefixtures("able")
def test_an_interrupt_anywhere_leaves_a_model_to_go_on_with():
    """Control-C at each line: the update was made or not, and training goes on, in the background too."""
    model = ab.ParameterCollection()
    W = model.add_parameters((3, 3))
    trainer = ab.SimpleSGDTrainer(model, 0.1)

    def train():
        ab.renew_cg()
        loss = ab.sum_elems(ab.tanh(W * ab.inputVector([1, 2, 3])))
        loss.value()
        loss.backward()
        trainer.update()

    def begin():
        W.set_value(np.eye(3) * 0.1)
        model.reset_gradient()

    def interrupt():
        raise KeyboardInterrupt

    def interrupted():
        with contextlib.suppress(KeyboardInterrupt):
            train()

    begin()
    before = W.as_array()
    train()
    after, points = W.as_array(), 0
    begin()
    for _ in at_each_line(interrupted, interrupt):
        lock, busy = background._State.lock, threads.board().busy
        if lock._is_owned():  # of tracing: no interrupt comes at the end of `with`
            lock.release()
        if busy.locked() and not background._State.holds:  # nor between the two that give the helpers back
            busy.release()
        background._State.queueing = False  # nor where a flag is taken back
        found = W.as_array()
        assert (found == before).all() or (found == after).all()
        assert len({id(e) for e in _IDLE.executions}) == len(_IDLE.executions)
        begin()
        train()
        np.testing.assert_array_equal(W.as_array(), after)
        begin()
        points += 1
    assert points > 300
    train()
    assert running()


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("late")
def test_memory_of_a_reverted_graph_stays():
    """What was recorded above a checkpoint gives its memory back when nothing works on it any more."""

    def job():
        net = Net()
        loss = net.loss([1, 2, 3])
        loss.value()
        ab.cg_checkpoint()
        more = ab.esum([ab.sum_elems(ab.square(net.W * h)) for h in net.states for _ in range(5000)])
        more.value()
        more.backward()
        ab.cg_revert()
        ab.free_memory()
        others = [np.full(30_000 * k, np.nan) for k in range(1, 30)]
        return [*net.numbers(), len(others)]

    same_bits(*both_ways(job))


@pytest.mark.usefixtures("late")
def test_memory_goes_home():
    """Who waits for the tables of another thread's graph does not get the memory of it."""
    net, pools = Net(), []
    net.step()
    net.step()
    ab.renew_cg()
    assert running()

    def look():
        net.W.as_array()
        pools.append((pooled(), len(_IDLE.executions)))

    other = threading.Thread(target=look)
    other.start()
    other.join()
    assert pools == [(0, 0)] and not running()
    assert pooled() > 0 and _IDLE.executions


def test_memory_of_a_model_goes_with_it():
    """Also if its arrays were looked at, and nothing ever runs in the background."""
    gone = []
    for _ in range(3):
        model = ab.ParameterCollection()
        W = model.add_parameters((2, 3))
        W.values[:] = 1
        gone.append(weakref.ref(W.values.base))
        del model, W
    gc.collect()
    assert [one() for one in gone] == [None] * 3


# Arrays that are held, or seem to be -----------------------------------------------------------------------------------


class Keeps(ab.PyInitializer):
    """An initializer that keeps the array, to mask it later, say."""

    def __init__(self):
        self.values = None

    def fill(self, values, dims):
        values[:] = 0.1
        self.values = values


@pytest.mark.usefixtures("late")
def test_arrays_that_an_initializer_keeps_count():
    model, keeps = ab.ParameterCollection(), Keeps()
    W = model.add_parameters((3,), init=keeps)
    trainer = ab.SimpleSGDTrainer(model)

    def step():
        ab.renew_cg()
        loss = ab.squared_norm(ab.tanh(W))
        loss.value()
        loss.backward()
        trainer.update()

    step()
    step()
    assert not running()
    np.testing.assert_array_equal(keeps.values, W.as_array().astype(np.float32))
    del keeps.values
    step()
    assert running()


@pytest.mark.usefixtures("late")
def test_a_debugger_that_watches_frames():
    """References that come from looking at frames are no references of the program, and hide none."""
    net, seen = Net(), []
    net.step()

    def watch(frame, event, argument):
        seen.append(len(frame.f_locals))
        return watch

    held = net.W.values
    sys.settrace(watch)
    try:
        net.step()
        assert not running()
        del held
        net.step()
        assert running()
    finally:
        sys.settrace(None)


@pytest.mark.usefixtures("able")
def test_arrays_taken_in_another_thread(monkeypatch):
    monkeypatch.setattr(background, "_ALONE", 0)
    net, errors, stop = Net(), [], threading.Event()

    def look():
        try:
            while not stop.is_set():
                for p in net.everything():
                    p.values.sum()
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    other = threading.Thread(target=look)
    other.start()
    try:
        for _ in range(100):
            net.step([1, 2])
    finally:
        stop.set()
        other.join()
        sys.setswitchinterval(interval)
    assert not errors


@FORKS
def test_a_lock_of_the_program_around_a_fork():
    """Another library's hook waits for a lock that a thread holds while it trains."""
    before = """
import os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
lock = threading.RLock()
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
"""
    after = """
def work():
    for _ in range(100):
        with lock:
            step()
background._ALONE = 0
thread = threading.Thread(target=work)
thread.start()
forks = 0
while thread.is_alive() and forks < 20:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    forks += 1
thread.join()
print(forks > 0)
"""
    assert in_a_process(before + PROGRAM + after) == "True\n"

"""What runs while the program goes on: the backward pass, and the update behind it.

    program    record | forward | plan |  record the next minibatch   | forward ...
    helpers           |   with  |      |  backward, update     | wait |  with
                                       ^ backward() and update() return

`backward` plans its table, puts it into the queue of the board (`threads.py`) and returns; so does an update. Recording is
Python's work on one core, so the helpers have the others for themselves, and what is left when the program comes to its next
`value()` is done by all of them together.

Nobody can tell, but by the time that it takes: whoever is about to read or write what such a table works on calls `wait` first.
That is, all in all

    the next table        forward, as soon as it needs memory; backward
    parameters            `params/storage.py`, and a trainer's arrays by `machine.Home`
    gradients of nodes    `execute.py`; and the memory of a dropped graph, which is given back when its tables are done

Values of nodes that have been computed can be read at any time, but for rows of tables, which lie in the table. Arrays of
parameters that the program was given and still holds could be read without a word, so there is no background while it holds
one. On a card everything is in the background anyway.

An update that finds a gradient that is not finite changes nothing, and whoever waits for it raises the error, which names the
line of the update.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from autobatch import threads
from autobatch.graph import PARAMETERS, SETTINGS

_ALONE = 50  # tables of one thread of Python in a row, before it may have a background after another one ran some


class _Queue:
    """What is in the queue of the board, from the first table on until somebody has waited for all."""

    def __init__(self, board: Any, count: int, blas: int) -> None:
        self.board, self.threads, self.blas = board, count, blas  # threads of a table; of the BLAS when it is done
        self.using: list[Any] = []  # all that the tables use
        self.updates = False  # whether there are updates among them
        self.afterwards: list[Callable[[], None]] = []


class _State:
    """Of the process: one background for all threads of Python.

    Handlers of signals run between any two steps of the main thread, and may look at the model. So what must happen once is
    what takes an entry out of a list, and while a table is put into the queue nobody takes the queue away.
    """

    lock = threading.RLock()
    queues: list[_Queue]  # one, or none
    queueing = forking = False  # whether a table is being put into it, or the process forked
    holds = False  # whether the helpers are taken; an interrupt may come before they are given back
    watched = False  # whether the end of this process is, where `atexit` is not called
    verdicts: dict[int, Callable[[], None]]  # by thread of Python: on its last update; it raises what that thread is to hear of
    lent: weakref.WeakValueDictionary[int, np.ndarray]  # memory of arrays that the program was given
    thread = 0  # that ran the last table
    others = 0  # tables that are to come before it counts as the only one
    ended = False


_State.queues, _State.verdicts, _State.lent = [], {}, weakref.WeakValueDictionary()


def start(table: int, words: int, dtype: str, work: int, using: Any) -> bool:
    """Run a table in the background, if it is worth it and can be done; return whether.

    Parameters
    ----------
    table, words : as of `kernels._vm.run`.
    dtype : of the run.
    work : how much of it can be divided, in units of `graph.WORK`.
    using : what has to stay as long as it runs, the memory of the table included.
    """
    if work < threads.WORTH or not SETTINGS.background or PARAMETERS.mirrors or _State.others:
        return False
    with _State.lock:
        if _State.forking or _State.queueing or _State.ended:
            return False
        _State.queueing = True
        try:
            return _begun() and _put(table, words, dtype, using)
        finally:
            _State.queueing = False


def _begun() -> bool:
    """See to it that there is a queue, if there may be one; return whether."""
    if _State.queues:
        return True
    count = threads.count()
    if count < 2 or _lent():
        return False
    board, blas = threads.board(), threads.of_blas()
    if not threads.can_be_told(board) or not (_State.holds or board.busy.acquire(blocking=False)):
        return False
    _State.holds = True
    _State.queues.append(_Queue(board, count, blas))
    _watch_the_end()
    return True


def follow(table: int, words: int, dtype: str, using: Any) -> bool:
    """Run the table of an update after those that run in the background; return False if there are none."""
    if not _State.queues:
        return False
    with _State.lock:
        if _State.queueing:
            return False
        _State.queueing = True
        try:
            if not _State.queues:
                return False
            _State.queues[-1].updates = True
            return _put(table, words, dtype, using)
        finally:
            _State.queueing = False


def _put(table: int, words: int, dtype: str, using: Any) -> bool:
    queue = _State.queues[-1]
    queue.using.append(using)
    queue.board.put_in_queue(table, words, dtype, queue.threads, queue.blas)
    return True


def running() -> bool:
    """Whether something may run in the background."""
    return bool(_State.queues)


def wait() -> None:
    """Return when nothing runs in the background.

    Raises
    ------
    NumericalError : the last update of this thread has found that the norm of the gradients is not finite. Said once.
    """
    if _State.queues or _State.verdicts:
        finish()
        verdict = _State.verdicts.pop(threading.get_ident(), None)
        if verdict is not None:
            verdict()


def finish() -> None:
    """Have nothing in the background, and say nothing of how it went: whoever waits next is told."""
    with _State.lock:
        for queue in _State.queues[:]:
            queue.board.finish()
            if _State.queueing:  # a signal came as a table was about to go into the queue
                return
            while queue.afterwards:
                try:
                    function = queue.afterwards.pop()
                except IndexError:  # as below
                    break
                function()
            with contextlib.suppress(ValueError):  # where the handler of a signal was faster
                _State.queues.remove(queue)
                _State.holds = False
                queue.board.busy.release()


def wait_for_updates() -> None:
    """Return when no update runs in the background. Raises as `wait`."""
    if _State.verdicts or any(queue.updates for queue in _State.queues):
        wait()


def report(verdict: Callable[[], None]) -> bool:
    """Have a function called when this thread waits for the update that it put into the queue; return False if nothing runs.

    The function may raise. An update waits for those before it, so there is one verdict at most.
    """
    if not _State.queues:
        return False
    with _State.lock:
        if not _State.queues:
            return False
        _State.verdicts[threading.get_ident()] = verdict
    return True


def postponed(function: Callable[[], None]) -> bool:
    """Have a function called when nothing runs in the background any more; return False if nothing does."""
    if not _State.queues:
        return False
    with _State.lock:
        for queue in _State.queues[:]:
            if not queue.board.finished():
                queue.afterwards.append(function)
                return True
        finish()
    return False


# Who might notice -----------------------------------------------------------------------------------------------------


def lend(array: np.ndarray) -> np.ndarray:
    """Return a view of an array of a parameter for the program, and have no background as long as it holds the view.

    The array is itself a view of memory that nothing else refers to.
    """
    wait()
    return noted(array)


def noted(array: np.ndarray) -> np.ndarray:
    """As `lend`, of an array that nothing in the background knows."""
    memory: Any = array.base
    with _State.lock:
        _State.lent[id(memory)] = memory
    return array[:]


def _references(entries: weakref.WeakValueDictionary[int, np.ndarray]) -> dict[int, int]:
    return {key: sys.getrefcount(memory) for key, memory in entries.items()}


def _least() -> int:
    """Return how many references there are to memory with one array of it: by that, and by who looks, debuggers included."""
    memory = np.zeros(8, np.uint8)
    array = memory[1:].view(np.int8)
    entries = weakref.WeakValueDictionary({0: memory})
    del memory
    count = _references(entries)[0]
    del array
    return count


def _lent() -> bool:
    """Whether the program holds arrays of parameters."""
    if not _State.lent:
        return False
    least = _least()
    for key, count in _references(_State.lent).items():
        if count <= least:
            _State.lent.pop(key, None)
    return bool(_State.lent)


def note_thread() -> None:
    """Take note of which thread of Python is about to run a table. Where several do, each would wait for the others."""
    thread = threading.get_ident()
    if thread != _State.thread:
        _State.others = _ALONE if _State.thread else 0
        _State.thread = thread
    elif _State.others:
        _State.others -= 1


# Ends -----------------------------------------------------------------------------------------------------------------


def _end() -> None:
    """Have nothing in the background when Python begins to give its memory back, and say what nobody waited for."""
    with _State.lock:
        _State.ended = True
    _say_all()


def _say_all() -> None:
    finish()
    while _State.verdicts:
        _State.verdicts.popitem()[1]()


def _watch_the_end() -> None:
    """See to it that a worker of multiprocessing says at its end what nobody waited for: it does not call `atexit`."""
    process = sys.modules.get("multiprocessing.process")
    if not _State.watched and process is not None and process.parent_process() is not None:
        _State.watched = True
        from multiprocessing.util import Finalize

        Finalize(None, _say_all, exitpriority=0)


def _before_fork() -> None:
    """Have nothing in the background that a child would wait for, and let no other thread begin anything."""
    with _State.lock:
        _State.forking = True
        finish()


def _after_fork() -> None:
    _State.forking = False


def _in_child() -> None:
    _State.lock, _State.forking, _State.watched = threading.RLock(), False, False
    _State.queues.clear()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)

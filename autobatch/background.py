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
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from autobatch import threads
from autobatch.graph import PARAMETERS, SETTINGS

_ALONE = 50  # tables of one thread of Python in a row, before it may have a background after another one ran some


class _State:
    """Of the process: one background for all threads of Python."""

    lock = threading.RLock()
    running = False  # whether tables are in the queue, or were and nobody has waited for them
    updates = False  # whether there are updates among them
    board: Any = None
    threads = blas = 0  # of a table; of the BLAS when it is done
    using: list[Any]  # all that the tables use
    afterwards: list[Callable[[], None]]
    verdict: Callable[[], None] | None = None  # on the last update: it raises what whoever waits is to hear of
    lent: dict[int, np.ndarray]  # by id: memory of arrays that the program was given
    thread = 0  # that ran the last table
    others = 0  # tables that are to come before it counts as the only one
    ended = False


_State.using, _State.afterwards, _State.lent = [], [], {}


def start(table: np.ndarray, words: int, dtype: str, work: int, using: Any) -> bool:
    """Run a table in the background, if it is worth it and can be done; return whether.

    Parameters
    ----------
    table, words : as of `kernels._vm.run`.
    dtype : of the run.
    work : how much of it can be divided, in units of `graph.WORK`.
    using : what has to stay as long as it runs, beside the table.
    """
    if work < threads.WORTH or not SETTINGS.background or PARAMETERS.mirrors or _State.others:
        return False
    with _State.lock:
        if not _State.running:
            count = threads.count()
            if count < 2 or _lent() or _State.ended:
                return False
            board = threads.board()
            if not threads.can_be_told(board) or not board.busy.acquire(blocking=False):
                return False
            _State.board, _State.threads, _State.blas, _State.running = board, count, threads.of_blas(), True
        _queue(table, words, dtype, using)
    return True


def follow(table: np.ndarray, words: int, dtype: str, using: Any) -> bool:
    """Run the table of an update after those that run in the background; return False if there are none."""
    if not _State.running:
        return False
    with _State.lock:
        if not _State.running:
            return False
        _State.updates = True
        _queue(table, words, dtype, using)
    return True


def _queue(table: np.ndarray, words: int, dtype: str, using: Any) -> None:
    _State.using.append((table, using))
    _State.board.put_in_queue(table, words, dtype, _State.threads, _State.blas)


def running() -> bool:
    """Whether something may run in the background."""
    return _State.running


def wait() -> None:
    """Return when nothing runs in the background.

    Raises
    ------
    NumericalError : an update there has found that the norm of the gradients is not finite. Said once.
    """
    if _State.running or _State.verdict is not None:
        _wait()


def _wait() -> None:
    with _State.lock:
        _finish()
        verdict, _State.verdict = _State.verdict, None
    if verdict is not None:
        verdict()


def _finish() -> None:
    """Have nothing in the background, and tell nobody how it went."""
    with _State.lock:
        if _State.running:
            _State.board.finish()
            _State.running = _State.updates = False
            _State.board.busy.release()
            _State.using, afterwards, _State.afterwards = [], _State.afterwards, []
            for function in afterwards:
                function()


def wait_for_updates() -> None:
    """Return when no update runs in the background. Raises as `wait`."""
    if _State.updates or _State.verdict is not None:
        _wait()


def report(verdict: Callable[[], None]) -> bool:
    """Have a function called by whoever waits for the update that was put into the queue last; return False if nothing runs.

    The function may raise. An update waits for those before it, so there is one verdict at most.
    """
    if not _State.running:
        return False
    with _State.lock:
        if not _State.running:
            return False
        _State.verdict = verdict
    return True


def postponed(function: Callable[[], None]) -> bool:
    """Have a function called when nothing runs in the background any more; return False if nothing does."""
    if not _State.running:
        return False
    with _State.lock:
        if not _State.running or _State.board.finished():
            _finish()
            return False
        _State.afterwards.append(function)
    return True


# Who might notice -----------------------------------------------------------------------------------------------------


def lend(array: np.ndarray) -> np.ndarray:
    """Return a view of an array of a parameter for the program, and have no background as long as it holds the view.

    The array is itself a view of memory that nothing else refers to.
    """
    wait()
    memory: Any = array.base
    _State.lent[id(memory)] = memory
    return array[:]


def _references(memory: np.ndarray) -> int:
    return sys.getrefcount(memory)


def _least() -> int:
    """Return how many references there are to memory that is in a dict, with one array of it."""
    memory = np.zeros(8, np.uint8)
    array, held = memory[1:].view(np.int8), {0: memory}
    del memory
    (count,) = [_references(one) for _, one in held.items()]
    del array
    return count


_LEAST = _least()


def _lent() -> bool:
    """Whether the program holds arrays of parameters."""
    if _State.lent:
        _State.lent = {key: one for key, one in _State.lent.items() if _references(one) > _LEAST}
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
    """Have nothing in the background when Python begins to give its memory back."""
    _State.ended = True
    wait()


def _before_fork() -> None:
    """Have nothing in the background that a child would wait for, and let no other thread begin anything."""
    _State.lock.acquire()
    _finish()


def _in_child() -> None:
    _State.lock = threading.RLock()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=lambda: _State.lock.release(), after_in_child=_in_child)

"""Words for kernels that exist on a card only: blocks of threads that share memory.

    x      threads of a block in x and y, blocks of the grid in x, y and z; see `Stage` in `_jit.py` for who chooses them
    shared(count, like)     memory of the block for `count` numbers (a literal) of the dtype of `like`; each mention its own
    sync()                  wait for all threads of the block; each sees what the others wrote before
    four(p, j)              four numbers from p[j] on, of an address that is a multiple of 16 bytes; put_four(p, j, a, b, c, d)

A processor has no such kernels; called there, these words raise.
"""

import types
from typing import Any

from autobatch.kernels._errors import InternalError


def _only_on_a_card(*arguments: Any) -> Any:
    raise InternalError("this word is for kernels of a card")


def thread_x() -> int:
    """Return the thread's place in its block, in x."""
    return int(_only_on_a_card())


def thread_y() -> int:
    """Return the thread's place in its block, in y."""
    return int(_only_on_a_card())


def block_x() -> int:
    """Return the block's place in the grid, in x."""
    return int(_only_on_a_card())


def block_y() -> int:
    """Return the block's place in the grid, in y."""
    return int(_only_on_a_card())


def block_z() -> int:
    """Return the block's place in the grid, in z."""
    return int(_only_on_a_card())


def blocks_z() -> int:
    """Return the size of the grid in z."""
    return int(_only_on_a_card())


def blocks_x() -> int:
    """Return the size of the grid in x."""
    return int(_only_on_a_card())


def shared(count: int, like: Any) -> Any:
    """Return a pointer to memory of the block."""
    return _only_on_a_card(count, like)


def sync() -> None:
    """Wait for all threads of the block."""
    _only_on_a_card()


def four(p: Any, j: int) -> tuple[Any, Any, Any, Any]:
    """Return four numbers that lie side by side."""
    a, b, c, d = _only_on_a_card(p, j)
    return a, b, c, d


def put_four(p: Any, j: int, a: Any, b: Any, c: Any, d: Any) -> None:
    """Write four numbers side by side."""
    _only_on_a_card(p, j, a, b, c, d)


def summands(ins: Any) -> int:
    """Return how many instructions, this one and those behind it, add to the same place in this launch."""
    return int(_only_on_a_card(ins))


def further(ins: Any, count: int) -> Any:
    """Return the instruction `count` behind this one; all have its length."""
    return _only_on_a_card(ins, count)


WORDS = (summands, further, shared, sync, four, put_four, thread_x, thread_y, block_x, block_y, block_z, blocks_x, blocks_z)


def uses_blocks(function: Any, seen: set[int] | None = None) -> bool:
    """Return whether a kernel, or a helper it calls, is one of blocks, not of teams."""
    function, seen = getattr(function, "py_func", function), seen or set()
    seen.add(id(function))
    for value in (function.__globals__.get(name) for name in function.__code__.co_names):
        if any(value is word for word in WORDS):
            return True
        inner = getattr(value, "py_func", value)
        ours = isinstance(inner, types.FunctionType) and inner.__module__.startswith("autobatch.")
        if ours and id(inner) not in seen and uses_blocks(inner, seen):
            return True
    return False

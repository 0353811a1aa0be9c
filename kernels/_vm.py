"""The interpreter: walks a table of instructions and calls one kernel after the other, without Python in between.

    table  | kernel length ... | kernel length ... | ...      layout of one instruction: `_jit.py`
           0                   length              words

Nothing is checked here; whoever builds a table answers for every address in it. `_threads.py` has the same for several threads.
"""

from autobatch.kernels._jit import KERNEL, LENGTH, WORDS, call, compiled, integers


@compiled
def run(table, words, scratch):
    """Run the instructions in the first `words` words of `table`.

    Parameters
    ----------
    table : int, address of int64 words: instructions one after the other.
    words : int, where to stop; the end of an instruction.
    scratch : int, address of the work space that kernels get as their second argument; 0 where none of them uses it.

    Notes
    -----
    A kernel may write into instructions after its own (`update_rows` does: it fills in how many rows there are), and how long
    its own is: what comes before that is left out (`update_clip`).
    """
    at = 0
    while at < words:
        ins = integers(table + 8 * at)
        call(ins[KERNEL], ins, scratch)
        at += ins[LENGTH] & WORDS

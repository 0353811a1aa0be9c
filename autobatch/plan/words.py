"""What passes share: how long instructions are, how they are written, and how tables of the graph are read."""

from autobatch.graph import BACK, RECORDED, SOURCE, START
from autobatch.kernels._jit import SLOTS, address_of, inline, write_head, write_slot
from autobatch.kernels._threads import LONGEST, MOST_THREADS

ALIGN = 64
COPIED = 8  # numbers that are copied in a unit
ROWS_WORDS = SLOTS + 4 + 1  # a copy of rows: two slots and the literal that SIZES points to
ZERO_WORDS = SLOTS + 2 + 1


@inline
def whole(bytes_):
    """So many bytes of the room that the next array is aligned."""
    return (bytes_ + 7) // 8 * 8


@inline
def aligned(n):
    """So many bytes that the next block is aligned."""
    return (n + (ALIGN - 1)) // ALIGN * ALIGN


@inline
def shown(n, t, at, args, info):
    """What view n shows, whose entries begin at `at`: the node or parameter, and from which number on."""
    if info[t + BACK]:
        return n - info[t + BACK], info[t + START]
    return args[at], args[at + 1]


@inline
def argument(args, at, k, info, t, operands, o):
    """Argument k of a node whose entries begin at `at`."""
    return args[at + k] if k < info[t + RECORDED] else operands[o + SOURCE]


@inline
def address_of_value(a, address, parameter_values):
    """Address of the value of an argument."""
    return address[a] if a >= 0 else parameter_values[(-a - 1) >> 1]


@inline
def sort_batches(n_types, n_batches, batch_type, batches, ends):
    """Fill in the batches of each type l in order, ``batches[ends[l]]`` to ``batches[ends[l + 1] - 1]``."""
    for l in range(n_types + 1):
        ends[l] = 0
    for b in range(n_batches):
        ends[batch_type[b]] += 1
    for l in range(n_types):
        ends[l + 1] += ends[l]
    for b in range(n_batches - 1, -1, -1):
        ends[batch_type[b]] -= 1
        batches[ends[batch_type[b]]] = b


@inline
def length_word(words, items, work, piece):
    """The word LENGTH of an instruction whose items, of `work` units each, may run at the same time; `piece` units a piece."""
    pieces = min(items * work // piece, items, MOST_THREADS)
    return words | pieces << 32 if pieces > 1 and words <= LONGEST else words


@inline
def write_copy(table, w, kernel, items, size, flags, to, to_stride, source, source_stride, apart, piece):
    """Write an instruction of two slots of rows of `size` numbers; returns where the next one goes.

    `apart`: whether no two rows go to places that overlap; pieces that may run at the same time are of `piece` units of work.
    """
    words = length_word(ROWS_WORDS, items, apart * (1 + size // COPIED), piece)
    write_head(table, w, kernel, words, items, address_of(table) + 8 * (w + SLOTS + 4), flags)
    write_slot(table, w + SLOTS, to, to_stride)
    write_slot(table, w + SLOTS + 2, source, source_stride)
    table[w + SLOTS + 4] = size
    return w + ROWS_WORDS


@inline
def write_zero(table, w, kernel, address, size):
    """Write an instruction that sets `size` numbers to zero, if there are any; returns where the next one goes."""
    if size <= 0:
        return w
    write_head(table, w, kernel, ZERO_WORDS, 1, address_of(table) + 8 * (w + SLOTS + 2), 0)
    write_slot(table, w + SLOTS, address, 0)
    table[w + SLOTS + 2] = size
    return w + ZERO_WORDS

"""Where values lie, and the table of a forward pass."""

from autobatch.frame import FIELDS, over_frame
from autobatch.graph import (
    ARGUMENTS,
    COLUMNS,
    ELEMENTS,
    FORWARD,
    IMMEDIATES,
    INPUT,
    KIND,
    NUMBERS,
    OPERAND_COLUMNS,
    OPERANDS,
    READS,
    RECORDED,
    ROW,
    SIZE,
    STOP,
    TABLE,
    TYPE_COLUMNS,
    VIEW,
    WORK,
)
from autobatch.kernels._jit import SLOTS, address_of, inline, integers, write_head, write_slot
from autobatch.kernels._op import DENSE, SHARED
from autobatch.plan.words import ROWS_WORDS, address_of_value, aligned, argument, length_word, shown, write_copy

REACH = 1 << 30  # bytes: BLAS takes a distance between columns as an int32 of numbers

# Fields that passes of this file write.
_AT, _BATCH_AT, _GATHER_AT, _GATHER_FIRST, _VALUE_AT = (
    FIELDS[name] for name in "at batch_at gather_at gather_first value_at".split()
)


def room_of_layout(types: int, arguments: int, batches: int) -> int:
    """Return how many bytes of room a layout takes, for so many arguments of all types."""
    return 8 * (2 * types + arguments + 2 * batches)


@inline
def make_places(frame, n_types, n_batches, room):
    """Make the arrays of places: one a type, one a batch, and `gather_at`, one an argument of each type."""
    frame[_VALUE_AT], frame[_GATHER_FIRST] = room, room + 8 * n_types
    frame[_BATCH_AT], frame[_AT] = room + 16 * n_types, room + 16 * n_types + 8 * n_batches
    frame[_GATHER_AT] = room + 16 * n_types + 16 * n_batches


@over_frame
def layout(frame, n_types, n_batches, present, type_start, batch_type, batch_begin, info, operands, itemsize, room):
    """Give each type its block of values, and each DENSE argument of a type its block for copies.

    Makes value_at[l], batch_at[b], gather_first[l] and gather_at (offsets in bytes), and room for at[b]; returns the bytes of
    all blocks, and upper bounds for the words of the table and of the lists of addresses.
    """
    make_places(frame, n_types, n_batches, room)
    value_at, batch_at = integers(frame[_VALUE_AT]), integers(frame[_BATCH_AT])
    gather_first, gather_at = integers(frame[_GATHER_FIRST]), integers(frame[_GATHER_AT])
    at, lists, words, g = 0, 0, 0, 0
    for l in range(n_types):
        t, count = present[l] * TYPE_COLUMNS, type_start[l + 1] - type_start[l]
        value_at[l] = at
        at += aligned(count * info[t + SIZE] * itemsize)
        lists += count * (info[t + ARGUMENTS] + info[t + IMMEDIATES])
    for l in range(n_types):
        t, count = present[l] * TYPE_COLUMNS, type_start[l + 1] - type_start[l]
        gather_first[l] = g
        for k in range(info[t + ARGUMENTS]):
            o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
            if operands[o + READS] == DENSE:
                gather_at[g] = at
                at += aligned(count * operands[o + ELEMENTS] * itemsize)
            g += 1
    for b in range(n_batches):
        l = batch_type[b]
        t = present[l] * TYPE_COLUMNS
        batch_at[b] = value_at[l] + (batch_begin[b] - type_start[l]) * info[t + SIZE] * itemsize
        words += SLOTS + 2 * (1 + info[t + ARGUMENTS] + info[t + IMMEDIATES]) + ROWS_WORDS * info[t + ARGUMENTS]
    return at, words, lists


@over_frame
def place(n0, n1, n_batches, types, args, positions, info, nodes, order, batch_type, batch_begin, batch_end, present, batch_at,
          value_base, itemsize, parameter_values, input_addresses, address):  # fmt: skip
    """Fill in the address of each node from n0 to n1 - 1; `value_base` is that of the blocks."""
    for b in range(n_batches):
        size = info[present[batch_type[b]] * TYPE_COLUMNS + SIZE] * itemsize
        at = value_base + batch_at[b]
        for p in range(batch_begin[b], batch_end[b]):
            address[nodes[order[p]]] = at
            at += size
    for n in range(n0, n1):
        t = types[n] * TYPE_COLUMNS
        kind = info[t + KIND]
        if kind == VIEW or kind == STOP:
            a, start = shown(n, t, positions[n], args, info)
            address[n] = address_of_value(a, address, parameter_values) + start * itemsize
        elif kind == INPUT:
            address[n] = input_addresses[args[positions[n]]]
        elif kind == ROW:
            table = parameter_values[(-info[t + TABLE] - 1) >> 1]
            address[n] = table + args[positions[n]] * info[t + SIZE] * itemsize


@over_frame
def forward_table(n_batches, args, positions, info, operands, nodes, order, type_start, present, batch_type, batch_begin,
                  batch_end, batch_at, gather_first, gather_at, copies, value_base, itemsize, dtype, parameter_values, address,
                  copy_rows, card, piece, product, table, lists, at):  # fmt: skip
    """Write the table of a segment; at[b] is where the instruction of batch b begins.

    Returns words of table and of lists, and how much work the batches are: all of them; those that several threads divide,
    because they may run in pieces or because a single item of `product` units or more has a large product in it.

    `copies` is the offset of the place for copies that all batches share, -1 if each type has blocks of its own.
    """
    w, r, work, divided = 0, 0, 0, 0
    for b in range(n_batches):
        l, lo, hi = batch_type[b], batch_begin[b], batch_end[b]
        t, n = present[l] * TYPE_COLUMNS, hi - lo
        arguments, immediates = info[t + ARGUMENTS], info[t + IMMEDIATES]
        words = SLOTS + 2 * (1 + arguments + immediates)
        size = info[t + SIZE] * itemsize
        # The gathers of DENSE arguments come first, and then the instruction: its slots are kept here until it can be written.
        main = w + ROWS_WORDS * arguments
        slots = main + SLOTS
        write_slot(table, slots, value_base + batch_at[b], size)
        shared = value_base + copies
        for k in range(arguments):
            o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
            where = slots + 2 + 2 * k
            item = operands[o + ELEMENTS] * itemsize
            a = argument(args, positions[nodes[order[lo]]], k, info, t, operands, o)
            start = address_of_value(a, address, parameter_values)
            if operands[o + READS] == SHARED:
                write_slot(table, where, start, 0)
                continue
            stride = item
            if n > 1:
                stride = address_of_value(args[positions[nodes[order[lo + 1]]] + k], address, parameter_values) - start
            even, expected = stride >= 0, start
            for i in range(n):
                a = address_of_value(args[positions[nodes[order[lo + i]]] + k], address, parameter_values)
                lists[r + i] = a
                even &= a == expected
                expected += stride
            if even:
                write_slot(table, where, start, stride)
            else:
                write_slot(table, where, address_of(lists) + 8 * r, -1)
                r += n
            if operands[o + READS] == DENSE and not (
                even and (stride == item or (operands[o + COLUMNS] == 1 and item < stride < REACH))
            ):
                if copies < 0:
                    to = value_base + gather_at[gather_first[l] + k] + (lo - type_start[l]) * item
                else:
                    to = shared
                    shared += aligned(n * item)
                w = write_copy(
                    table, w, copy_rows, n, operands[o + ELEMENTS], 0, to, item, table[where], table[where + 1], not card, piece
                )
                write_slot(table, where, to, item)
        for k in range(immediates):
            where = slots + 2 * (1 + arguments + k)
            write_slot(table, where, address_of(lists) + 8 * r, 8)
            for i in range(n):
                lists[r] = args[positions[nodes[order[lo + i]]] + info[t + RECORDED] + k]
                r += 1
        if main != w:
            for j in range(SLOTS, words):
                table[w + j] = table[main + j]
        length = words if card else length_word(words, n, info[t + WORK], piece)
        work += n * info[t + WORK]
        if length != words or n * info[t + WORK] >= product:
            divided += n * info[t + WORK]
        write_head(table, w, info[t + FORWARD + dtype], length, n, info[t + NUMBERS], 0)
        at[b] = w
        w += words
    return w, r, work, divided

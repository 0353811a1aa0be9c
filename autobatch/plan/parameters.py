"""The second part of the table of a backward pass: gradients of parameters, and of rows of tables."""

from autobatch.frame import over_frame
from autobatch.graph import (
    ARGUMENTS,
    BACKWARD,
    ELEMENTS,
    HAS_GRADIENT,
    IMMEDIATES,
    KIND,
    NEED_COUNT,
    NEEDS,
    NUMBERS,
    OPERAND_COLUMNS,
    OPERANDS,
    READS,
    ROW,
    SIZE,
    TABLE,
    TYPE_COLUMNS,
    WRITES,
)
from autobatch.kernels._jit import ACCUMULATE, ITEMS, SLOTS, address_of, inline, move_slot, write_head, write_slot
from autobatch.kernels._op import DENSE, SHARED
from autobatch.plan.gradients import TABLE_WORDS
from autobatch.plan.words import argument, sort_batches, write_copy

THIN = 256  # columns: weight gradients formed from thinner runs than this are worth a copy of their operands


@inline
def _runs(l, k, t, o, batches, ends, batch_begin, batch_end, type_start, nodes, order, active, info, operands, needs, at,
          forward, itemsize, block, parameter, dtype, table, w, emit):  # fmt: skip
    """Go through the active items of a type in maximal runs in which all operands of a weight gradient lie at even distances.

    With `emit`, writes an instruction for each. Returns how many runs and items there are, and where the next instruction goes.
    """
    size, count = info[t + SIZE] * itemsize, operands[o + NEED_COUNT]
    words = SLOTS + 2 * (3 + count + info[t + IMMEDIATES])
    runs, items, length, end = 0, 0, 0, -1
    for bb in range(ends[l], ends[l + 1]):
        b = batches[bb]
        lo, hi, slots = batch_begin[b], batch_end[b], at[b] + SLOTS
        i = 0
        while i < hi - lo:
            if active[nodes[order[lo + i]]] != 3:
                i += 1
                continue
            j = i + 1
            while j < hi - lo and active[nodes[order[lo + j]]] == 3:
                j += 1
            joined = length > 0 and end == lo + i and info[t + IMMEDIATES] == 0
            s = w + SLOTS
            for c in range(count):
                where = slots + 2 + 2 * needs[operands[o + NEEDS] + c]
                address, stride = forward[where], forward[where + 1]
                old, old_stride = table[s + 6 + 2 * c], table[s + 7 + 2 * c]
                joined &= stride >= 0 and stride == old_stride and address + i * stride == old + length * stride
            if not joined:
                if length > 0 and emit:
                    table[w + ITEMS] = length
                    w += words
                    s = w + SLOTS
                runs += 1
                length = 0
                write_head(table, w, operands[o + BACKWARD + dtype], words, 0, info[t + NUMBERS], (k << 8) | ACCUMULATE)
                write_slot(table, s, parameter, 0)
                write_slot(table, s + 2, block + (lo + i - type_start[l]) * size, size)
                move_slot(table, s + 4, forward, slots, i)
                for c in range(count):
                    move_slot(table, s + 6 + 2 * c, forward, slots + 2 + 2 * needs[operands[o + NEEDS] + c], i)
                for c in range(info[t + IMMEDIATES]):
                    move_slot(table, s + 6 + 2 * (count + c), forward, slots + 2 + 2 * (info[t + ARGUMENTS] + c), i)
            length += j - i
            items += j - i
            end = lo + j
            i = j
    if length > 0 and emit:
        table[w + ITEMS] = length
        w += words
    return runs, items, w


@over_frame
def weight_table(n_types, n_batches, args, positions, info, operands, needs, nodes, order, type_start, present, batch_type,
                 batch_begin, batch_end, gather_first, gather_at, value_base, at, forward, active, block_at, gradient_base,
                 itemsize, dtype, parameter_gradients, copy_rows, piece, batches, ends, table, w):  # fmt: skip
    """Write, from word w on, the gradients of parameters that all items of a type share: once for each type, from its blocks.

    Where the operands lie in many short runs they are copied together first, and the slots of the forward table changed to the
    copies. `batches` (one a batch) and `ends` (one a type, and one more) are work space. Returns the words of the table, and
    how many products there are.
    """
    products = 0
    sort_batches(n_types, n_batches, batch_type, batches, ends)
    for l in range(n_types):
        if block_at[l] < 0:
            continue
        t = present[l] * TYPE_COLUMNS
        block = gradient_base + block_at[l]
        for k in range(info[t + ARGUMENTS]):
            o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
            parameter = argument(args, positions[nodes[order[type_start[l]]]], k, info, t, operands, o)
            if operands[o + WRITES] != SHARED or not operands[o + HAS_GRADIENT] or parameter % 2 == 0:
                continue
            to = parameter_gradients[(-parameter - 1) >> 1]
            # First count the runs; if they are many and thin, copy the operands together, and there is one.
            for emit in range(2):
                runs, items, w = _runs(
                    l, k, t, o, batches, ends, batch_begin, batch_end, type_start, nodes, order, active, info, operands, needs,
                    at, forward, itemsize, block, to, dtype, table, w, emit,
                )  # fmt: skip
                if emit == 1 or runs <= 1 or items >= runs * THIN:
                    continue
                for c in range(operands[o + NEED_COUNT]):
                    q = needs[operands[o + NEEDS] + c]
                    p = (info[t + OPERANDS] + q) * OPERAND_COLUMNS
                    if operands[p + READS] != DENSE:
                        continue
                    item = operands[p + ELEMENTS] * itemsize
                    for bb in range(ends[l], ends[l + 1]):
                        b = batches[bb]
                        s = at[b] + SLOTS + 2 + 2 * q
                        copy = value_base + gather_at[gather_first[l] + q] + (batch_begin[b] - type_start[l]) * item
                        if forward[s] != copy or forward[s + 1] != item:
                            n = batch_end[b] - batch_begin[b]
                            w = write_copy(
                                table,
                                w,
                                copy_rows,
                                n,
                                operands[p + ELEMENTS],
                                0,
                                copy,
                                item,
                                forward[s],
                                forward[s + 1],
                                True,
                                piece,
                            )
                            write_slot(forward, s, copy, item)
            products += runs
    return w, products


@over_frame
def rows_table(n0, n1, types, args, positions, info, active, itemsize, gradient, touched, parameter_gradients,
               parameter_touched, add_to_table, table, lists, w, r):  # fmt: skip
    """Write, from word w on, the additions of the gradients of looked-up rows to their tables, type by type.

    Returns the words of the table and of the lists.
    """
    for n in range(n0, n1):
        type_ = types[n]
        t = type_ * TYPE_COLUMNS
        if info[t + KIND] != ROW or active[n] != 3 or touched[n] == 2:
            continue
        trained, count, first = info[t + TABLE], 0, r
        for m in range(n, n1):
            if types[m] == type_ and active[m] == 3:
                lists[r] = args[positions[m]]
                touched[m] = 2
                count += 1
                r += 1
        if trained % 2 == 0:
            continue
        pid, size = (-trained - 1) >> 1, info[t + SIZE]
        write_head(table, w, add_to_table, TABLE_WORDS, count, address_of(table) + 8 * (w + SLOTS + 8), 0)
        s = w + SLOTS
        write_slot(table, s, parameter_gradients[pid], 0)
        write_slot(table, s + 2, gradient[n], size * itemsize)
        write_slot(table, s + 4, address_of(lists) + 8 * first, 8)
        write_slot(table, s + 6, parameter_touched[pid], 0)
        table[s + 8] = size
        w += TABLE_WORDS
    return w, r

"""What is planned differently for a card: gradients that all items of a type share, and those of looked-up rows.

A processor forms the gradient of a weight from runs of rows that lie evenly, and copies rows together where runs are short. On
a card each instruction is a launch, and kernels find rows through lists as fast as in order: there is one instruction for each
weight and type, whatever its rows are. Rows of a table that come from several nodes are added up in groups, in the order of the
nodes, so that the sum does not depend on who comes first.
"""

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
    ROW,
    SIZE,
    TABLE,
    TYPE_COLUMNS,
    WRITES,
)
from autobatch.kernels._jit import ACCUMULATE, SLOTS, address_of, inline, integers, write_head, write_slot
from autobatch.kernels._op import SHARED
from autobatch.plan.gradients import TABLE_GROUPS_WORDS
from autobatch.plan.words import argument, sort_batches


@inline
def _gathered(l, slot, ends, batches, batch_begin, batch_end, nodes, order, active, at, forward, item, table, where,
              lists, r):  # fmt: skip
    """Write slot `where` of an instruction: rows of slot `slot` of the forward instructions, of all active items of a type.

    As address and distance if they lie evenly, else as a list. Returns how much of the lists is used.
    """
    n, even, first, stride, expected = 0, True, 0, item, 0
    for bb in range(ends[l], ends[l + 1]):
        b = batches[bb]
        s = at[b] + SLOTS + 2 * slot
        start, step = forward[s], forward[s + 1]
        listed = integers(start)
        for i in range(batch_end[b] - batch_begin[b]):
            if active[nodes[order[batch_begin[b] + i]]] != 3:
                continue
            a = start + i * step if step >= 0 else listed[i]
            if n == 0:
                first = expected = a
            elif n == 1:
                stride = a - first
                even = stride >= 0
                expected = a
            even &= a == expected
            expected += stride
            lists[r + n] = a
            n += 1
    if even:
        write_slot(table, where, first, stride)
        return r
    write_slot(table, where, address_of(lists) + 8 * r, -1)
    return r + n


@over_frame
def weight_lists(n_types, n_batches, args, positions, info, operands, needs, nodes, order, type_start, present, batch_type,
                 batch_begin, batch_end, at, forward, active, block_at, gradient_base, itemsize, dtype, parameter_gradients,
                 batches, ends, table, lists, w, r):  # fmt: skip
    """Write, from word w on, the gradients of parameters that all items of a type share: one instruction for each.

    As `plan.weight_table`, but for a card. Returns the words of the table and of the lists, and the number of instructions.
    """
    products = 0
    sort_batches(n_types, n_batches, batch_type, batches, ends)
    for l in range(n_types):
        if block_at[l] < 0:
            continue
        t = present[l] * TYPE_COLUMNS
        size, immediates = info[t + SIZE] * itemsize, info[t + IMMEDIATES]
        count, last, first = 0, -1, -1
        for p in range(type_start[l], type_start[l + 1]):
            if active[nodes[order[p]]] == 3:
                first = p if first < 0 else first
                last = p
                count += 1
        for k in range(info[t + ARGUMENTS]):
            o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
            parameter = argument(args, positions[nodes[order[type_start[l]]]], k, info, t, operands, o)
            if operands[o + WRITES] != SHARED or not operands[o + HAS_GRADIENT] or parameter % 2 == 0:
                continue
            needed = operands[o + NEED_COUNT]
            words = SLOTS + 2 * (3 + needed + immediates)
            write_head(table, w, operands[o + BACKWARD + dtype], words, count, info[t + NUMBERS], (k << 8) | ACCUMULATE)
            s = w + SLOTS
            write_slot(table, s, parameter_gradients[(-parameter - 1) >> 1], 0)
            block = gradient_base + block_at[l]
            if last - first + 1 == count:
                write_slot(table, s + 2, block + (first - type_start[l]) * size, size)
            else:
                write_slot(table, s + 2, address_of(lists) + 8 * r, -1)
                for p in range(first, last + 1):
                    if active[nodes[order[p]]] == 3:
                        lists[r] = block + (p - type_start[l]) * size
                        r += 1
            r = _gathered(l, 0, ends, batches, batch_begin, batch_end, nodes, order, active, at, forward, size, table, s + 4,
                          lists, r)  # fmt: skip
            for c in range(needed):
                q = needs[operands[o + NEEDS] + c]
                item = operands[(info[t + OPERANDS] + q) * OPERAND_COLUMNS + ELEMENTS] * itemsize
                r = _gathered(l, 1 + q, ends, batches, batch_begin, batch_end, nodes, order, active, at, forward, item, table,
                              s + 6 + 2 * c, lists, r)  # fmt: skip
            for c in range(immediates):
                write_slot(table, s + 6 + 2 * (needed + c), address_of(lists) + 8 * r, 8)
                for bb in range(ends[l], ends[l + 1]):
                    b = batches[bb]
                    given = integers(forward[at[b] + SLOTS + 2 + 2 * (info[t + ARGUMENTS] + c)])
                    for i in range(batch_end[b] - batch_begin[b]):
                        if active[nodes[order[batch_begin[b] + i]]] == 3:
                            lists[r] = given[i]
                            r += 1
            products += 1
            w += words
    return w, r, products


@over_frame
def row_groups(n0, n1, types, args, positions, info, active, itemsize, gradient, touched, parameter_gradients,
               parameter_touched, add_to_table, row_seen, table, lists, w, r):  # fmt: skip
    """Write, from word w on, the additions of the gradients of looked-up rows to their tables, in groups of the same row.

    `row_seen` (one a row of the largest table) is all -1 and is left so. Returns the words of the table and of the lists.
    """
    for n in range(n0, n1):
        type_ = types[n]
        t = type_ * TYPE_COLUMNS
        if info[t + KIND] != ROW or active[n] != 3 or touched[n] == 2:
            continue
        trained, count, groups = info[t + TABLE], 0, 0
        of = r  # the row of each node; then which row each group is, and the nodes in the order of their groups
        for m in range(n, n1):
            if types[m] == type_ and active[m] == 3:
                lists[of + count] = args[positions[m]]
                touched[m] = 2
                count += 1
        if trained % 2 == 0:
            continue
        rows, members, begins = of + count, of + 2 * count, of + 3 * count
        for i in range(count):
            a = lists[of + i]
            if row_seen[a] < 0:
                row_seen[a] = groups
                lists[rows + groups] = a
                lists[begins + groups] = 0
                groups += 1
            lists[begins + row_seen[a]] += 1
        total = 0
        for g in range(groups):
            size = lists[begins + g]
            lists[begins + g] = total
            total += size
        for i in range(count):
            g = row_seen[lists[of + i]]
            lists[members + lists[begins + g]] = i
            lists[begins + g] += 1
        for g in range(groups, 0, -1):
            lists[begins + g] = lists[begins + g - 1]
        lists[begins] = 0
        for g in range(groups):
            row_seen[lists[rows + g]] = -1
        r = begins + groups + 1
        pid, size = (-trained - 1) >> 1, info[t + SIZE]
        literal = w + SLOTS + 12
        write_head(table, w, add_to_table, TABLE_GROUPS_WORDS, groups, address_of(table) + 8 * literal, ACCUMULATE)
        s = w + SLOTS
        write_slot(table, s, parameter_gradients[pid], 0)
        write_slot(table, s + 2, gradient[n], size * itemsize)
        write_slot(table, s + 4, address_of(lists) + 8 * members, 8)
        write_slot(table, s + 6, address_of(lists) + 8 * begins, 8)
        write_slot(table, s + 8, address_of(lists) + 8 * rows, 8)
        write_slot(table, s + 10, parameter_touched[pid], 0)
        table[literal] = size
        w += TABLE_GROUPS_WORDS
    return w, r

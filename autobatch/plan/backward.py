"""The first part of the table of a backward pass: gradients of nodes."""

from autobatch.frame import over_frame
from autobatch.graph import (
    ARGUMENTS,
    BACKWARD,
    COLUMNS,
    ELEMENTS,
    HAS_GRADIENT,
    IMMEDIATES,
    KIND,
    NEED_COUNT,
    NEEDS,
    NUMBERS,
    OP,
    OPERAND_COLUMNS,
    OPERANDS,
    OUTPUTS,
    PREPARE,
    SIZE,
    TYPE_COLUMNS,
    WORK,
    WRITES,
)
from autobatch.kernels._jit import ACCUMULATE, ALONGSIDE, FLAGS, SLOTS, address_of, inline, move_slot, write_head, write_slot
from autobatch.kernels._op import DENSE, SHARED
from autobatch.plan.gradients import GROUPS_WORDS
from autobatch.plan.values import REACH
from autobatch.plan.words import ZERO_WORDS, length_word, write_copy, write_zero


@inline
def write_groups(table, w, add_groups, add_overlapping, n, groups, size, source, item, lists, r):
    """Write the addition of n rows of `size` numbers, some of which go to the same places; returns where the next one goes.

    In the lists stand at r the places, behind them n free entries, behind these the group of each row; what is written there:

        r               r + n            r + 2n                r + 3n
        places          a place each     rows in order of      where each group
        of rows         of the groups    their groups          begins, and the end
    """
    # Beginnings, by counting: begins[g + 1] is the size of group g, then where it ends.
    begins, rows, places = r + 3 * n, r + 2 * n, r + n
    for g in range(groups + 1):
        lists[begins + g] = 0
    same = True
    for q in range(n):
        g = lists[rows + q]
        lists[begins + g + 1] += 1
    for g in range(groups):
        lists[begins + g + 1] += lists[begins + g]
    # The rows in order: the group of a row is kept in `places` until its row is there.
    for q in range(n):
        lists[places + q] = lists[rows + q]
    for q in range(n):
        g = lists[places + q]
        lists[rows + lists[begins + g]] = q
        lists[begins + g] += 1
    for g in range(groups, 0, -1):
        lists[begins + g] = lists[begins + g - 1]
    lists[begins] = 0
    for g in range(groups):
        first = lists[r + lists[rows + lists[begins + g]]]
        lists[places + g] = first
        for p in range(lists[begins + g], lists[begins + g + 1]):
            same &= lists[r + lists[rows + p]] == first
    start = address_of(lists)
    write_head(
        table, w, add_groups if same else add_overlapping, GROUPS_WORDS, groups, address_of(table) + 8 * (w + SLOTS + 8),
        ACCUMULATE,
    )  # fmt: skip
    write_slot(table, w + SLOTS, start + 8 * (places if same else r), -1)
    write_slot(table, w + SLOTS + 2, source, item)
    write_slot(table, w + SLOTS + 4, start + 8 * rows, 8)
    write_slot(table, w + SLOTS + 6, start + 8 * begins, 8)
    table[w + SLOTS + 8] = size
    return w + GROUPS_WORDS


@over_frame
def backward_table(n_batches, types, args, positions, info, operands, needs, nodes, order, type_start, present, batch_type,
                   batch_begin, batch_end, at, forward, active, block_at, gradient_base, gradient, source, touched, covered,
                   itemsize, dtype, parameter_gradients, scratch, sink, zero_rows, add_rows, card, add_groups, add_overlapping,
                   loss, rounds, seen, group, piece, table, lists):  # fmt: skip
    """Write the backward table of one segment, but for shared parameters and rows.

    Returns words of the table and of the lists, and `rounds`, a count of instructions that goes on in the next segment.

    `forward` is the segment's forward table, `at` where its batches begin. `touched[n]` tells whether the gradient in the
    slot of n was written to: 0, not at all; 1, all of it; 3, the numbers from covered[2n] to covered[2n + 1] - 1. `seen` (one a
    node up to the loss, and one a parameter) is work space, all 0 at first: it tells whether two items write to one node.

    On a card the items of a batch run at the same time. Gradients of which two might meet in one place are formed in the
    scratch and added in groups, one after the other in each; those that nobody wants go to places of their own; and all
    gradients are 0 at first, which takes one launch where zeroing here and there takes many. `group`, as long as `seen`, is
    work space too.
    """
    w, r = 0, 0
    for b in range(n_batches - 1, -1, -1):
        l, lo, hi = batch_type[b], batch_begin[b], batch_end[b]
        if block_at[l] < 0:
            continue
        t = present[l] * TYPE_COLUMNS
        size, slots = info[t + SIZE] * itemsize, at[b] + SLOTS
        arguments, immediates = info[t + ARGUMENTS], info[t + IMMEDIATES]
        i = 0
        while i < hi - lo:
            if active[nodes[order[lo + i]]] != 3:
                i += 1
                continue
            j = i + 1
            while j < hi - lo and active[nodes[order[lo + j]]] == 3:
                j += 1
            n = j - i
            dy = gradient_base + block_at[l] + (lo + i - type_start[l]) * size
            together = False
            for q in range(i, j):
                root = nodes[order[lo + q]]
                if touched[root] == 3:  # parts that nobody reads
                    start, end = covered[2 * root], covered[2 * root + 1]
                    if not card:
                        w = write_zero(table, w, zero_rows, gradient[root], start)
                        w = write_zero(table, w, zero_rows, gradient[root] + end * itemsize, info[t + OUTPUTS] - end)
                    touched[root] = 1
            if info[t + PREPARE + dtype]:
                words = SLOTS + 2 * (3 + arguments + immediates)
                length = words if card else length_word(words, n, info[t + WORK], piece)
                write_head(table, w, info[t + PREPARE + dtype], length, n, info[t + NUMBERS], 0)
                s = w + SLOTS
                write_slot(table, s, 0, 0)
                write_slot(table, s + 2, dy, size)
                for k in range(1 + arguments + immediates):
                    move_slot(table, s + 4 + 2 * k, forward, slots + 2 * k, i)
                w += words
            for k in range(arguments):
                o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
                if not operands[o + HAS_GRADIENT] or operands[o + WRITES] == SHARED:
                    continue
                # Where the gradients go, and which of these places are written to for the first time.
                item = operands[o + ELEMENTS] * itemsize
                firsts, sinks, even, to, stride = 0, 0, True, 0, 0
                zeros, groups, meet = 0, 0, 0
                rounds += 1
                flags_at = r + n  # lists[r:r+n] places, lists[r+n:r+2n] those of them written to for the first time
                for q in range(n):
                    a = args[positions[nodes[order[lo + i + q]]] + k]
                    place_, fresh, owner = sink + card * q * item, -1, -1
                    if a < 0:
                        if a % 2 != 0:
                            place_, owner = parameter_gradients[(-a - 1) >> 1], loss + 1 + ((-a - 1) >> 1)
                        else:
                            sinks += 1
                    elif active[a] != 3:
                        sinks += 1
                    else:
                        place_ = gradient[a]
                        root = source[a]
                        owner = root if root >= 0 else loss + 1 + ((-root - 1) >> 1)
                        if root >= 0 and touched[root] != 1:
                            whole = info[types[root] * TYPE_COLUMNS + OUTPUTS]
                            start = (place_ - gradient[root]) >> (2 + dtype)  # in numbers
                            end, low, high = start + operands[o + ELEMENTS], start, start
                            if touched[root] == 3:
                                low, high = covered[2 * root], covered[2 * root + 1]
                            if low <= start and end <= high:
                                pass  # not for the first time
                            elif end - start < whole and info[types[root] * TYPE_COLUMNS + KIND] != OP:
                                # Leaves run in no batch that could see to what nobody reads: all of it must be zero.
                                if not card:
                                    w = write_zero(table, w, zero_rows, gradient[root], whole)
                                touched[root] = 1
                            elif start == high or end == low:
                                low, high = min(low, start), max(high, end)
                                covered[2 * root], covered[2 * root + 1] = low, high
                                touched[root] = 1 if high - low == whole else 3
                                fresh = place_
                                firsts += 1
                            else:
                                # With a gap, or over the edge of what is covered: all the rest must be zero.
                                if not card:
                                    w = write_zero(table, w, zero_rows, gradient[root], low)
                                    w = write_zero(table, w, zero_rows, gradient[root] + high * itemsize, whole - high)
                                touched[root] = 1
                    lists[r + q], lists[flags_at + q] = place_, fresh
                    if card:
                        if owner >= 0 and seen[owner] == rounds:
                            meet += 1
                            lists[r + 2 * n + q] = group[owner]
                        else:
                            if owner >= 0:
                                seen[owner], group[owner] = rounds, groups
                            lists[r + 2 * n + q] = groups
                            groups += 1
                    elif owner >= 0:
                        meet += seen[owner] == rounds
                        seen[owner] = rounds
                    if q == 1:
                        stride = place_ - to
                    elif q == 0:
                        to = place_
                    even &= place_ == to + q * stride
                if sinks == n:
                    continue
                flags = k << 8
                if firsts < n - sinks:
                    flags |= ACCUMULATE
                    if firsts and not card:
                        for q in range(n):
                            fresh = lists[flags_at + q]
                            if fresh >= 0:
                                lists[flags_at + zeros] = fresh
                                zeros += 1
                        write_head(table, w, zero_rows, ZERO_WORDS, zeros, address_of(table) + 8 * (w + SLOTS + 2), 0)
                        write_slot(table, w + SLOTS, address_of(lists) + 8 * flags_at, -1)
                        table[w + SLOTS + 2] = operands[o + ELEMENTS]
                        w += ZERO_WORDS
                if n == 1:
                    stride = item
                even &= stride >= 0
                count = operands[o + NEED_COUNT]
                words = SLOTS + 2 * (3 + count + immediates)
                direct = operands[o + WRITES] != DENSE or (
                    even and (stride == item or (operands[o + COLUMNS] == 1 and item < stride < REACH))
                )
                if card:
                    direct = meet == 0 or (even and stride >= item)
                s = w + SLOTS
                # On a card, this and the instruction before may run together, if both write where nobody wrote before.
                alone = card and direct and firsts == n
                if alone and together:
                    flags |= ALONGSIDE
                together = alone
                apart = not card and (meet == 0 or (even and stride >= item))
                length = length_word(words, n, info[t + WORK], piece) if apart or not (card or direct) else words
                write_head(table, w, operands[o + BACKWARD + dtype], length, n, info[t + NUMBERS], flags)
                if not direct:
                    table[w + FLAGS] = k << 8
                    write_slot(table, s, scratch, item)
                elif even:
                    write_slot(table, s, to, stride)
                else:
                    write_slot(table, s, address_of(lists) + 8 * r, -1)
                write_slot(table, s + 2, dy, size)
                move_slot(table, s + 4, forward, slots, i)
                for q in range(count):
                    move_slot(table, s + 6 + 2 * q, forward, slots + 2 + 2 * needs[operands[o + NEEDS] + q], i)
                for q in range(immediates):
                    move_slot(table, s + 6 + 2 * (count + q), forward, slots + 2 + 2 * (arguments + q), i)
                w += words
                if not direct and card:
                    w = write_groups(
                        table, w, add_groups, add_overlapping, n, groups, operands[o + ELEMENTS], scratch, item, lists, r
                    )
                    r += 4 * n + 1
                elif not direct:
                    if not even:
                        to, stride = address_of(lists) + 8 * r, -1
                    w = write_copy(
                        table,
                        w,
                        add_rows,
                        n,
                        operands[o + ELEMENTS],
                        flags & ACCUMULATE,
                        to,
                        stride,
                        scratch,
                        item,
                        apart,
                        piece,
                    )
                r += 2 * n
            i = j
    return w, r, rounds

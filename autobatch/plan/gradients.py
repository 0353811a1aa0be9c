"""Which nodes have gradients, and where these lie."""

from autobatch.frame import FIELDS, over_frame
from autobatch.graph import (
    ARGUMENTS,
    ELEMENTS,
    HAS_GRADIENT,
    IMMEDIATES,
    INPUT,
    KIND,
    NEED_COUNT,
    OP,
    OPERAND_COLUMNS,
    OPERANDS,
    READY,
    RECORDED,
    ROW,
    SIZE,
    STOP,
    TABLE,
    TYPE_COLUMNS,
    VIEW,
    WRITES,
)
from autobatch.kernels._jit import SLOTS, bytes_at, integers
from autobatch.kernels._op import DENSE, SHARED
from autobatch.plan.words import ROWS_WORDS, ZERO_WORDS, aligned, argument, shown

TABLE_WORDS = SLOTS + 8 + 1  # rows added to a table
TABLE_GROUPS_WORDS = SLOTS + 12 + 1  # the same in groups
GROUPS_WORDS = SLOTS + 8 + 1  # rows added to few places

# Fields that passes of this file write.
_ACTIVE, _BATCHES, _BLOCK_AT, _COVERED, _ENDS, _GRADIENT, _SLOT = (
    FIELDS[name] for name in "active batches block_at covered ends gradient slot".split()
)
_SOURCE, _TOUCHED = (FIELDS[name] for name in "source touched".split())


def room_of_gradients(nodes: int) -> int:
    """Return how many bytes of room `mark` takes for a backward pass over so many nodes."""
    return 22 * nodes


@over_frame
def mark(frame, n_nodes, loss, full, types, args, positions, info, operands, room):
    """Make the arrays of a backward pass, one a node, and set active[n] to 3 for the nodes that get a gradient.

    Bit 1: it is wanted there, since the node depends on a parameter that trains; with `full`, everywhere. Bit 2: the loss
    depends on it. Of the others, `touched` is 0 everywhere, and gradient (its address), source (the node in whose slot it
    lies) and covered are arbitrary.
    """
    frame[_GRADIENT], frame[_COVERED], frame[_SOURCE] = room, room + 8 * n_nodes, room + 16 * n_nodes
    frame[_ACTIVE], frame[_TOUCHED] = room + 20 * n_nodes, room + 21 * n_nodes
    active, touched = bytes_at(room + 20 * n_nodes), bytes_at(room + 21 * n_nodes)
    for n in range(n_nodes):
        active[n] = touched[n] = 0
    for n in range(loss + 1):
        t, at = types[n] * TYPE_COLUMNS, positions[n]
        kind = info[t + KIND]
        wanted = full
        if kind == ROW:
            wanted = full or info[t + TABLE] % 2 != 0
        elif kind == OP and not full:
            for k in range(info[t + ARGUMENTS]):
                o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
                a = argument(args, at, k, info, t, operands, o)
                if operands[o + HAS_GRADIENT]:
                    wanted |= a % 2 != 0 if a < 0 else active[a] != 0
        elif kind != INPUT and not full:
            a, _ = shown(n, t, at, args, info)
            wanted = a % 2 != 0 if a < 0 else active[a] != 0
        active[n] = wanted
    active[loss] |= 2
    for n in range(loss, -1, -1):
        t, at = types[n] * TYPE_COLUMNS, positions[n]
        kind = info[t + KIND]
        if active[n] == 3 and kind == OP:
            for k in range(info[t + RECORDED]):
                a = args[at + k]
                if a >= 0 and operands[(info[t + OPERANDS] + k) * OPERAND_COLUMNS + HAS_GRADIENT]:
                    active[a] |= 2
        elif active[n] == 3 and kind == VIEW:
            a, _ = shown(n, t, at, args, info)
            if a >= 0:
                active[a] |= 2


def room_of_gradient_layout(nodes: int, types: int, batches: int) -> int:
    """Return how many bytes of room `gradient_layout` takes for a segment."""
    return 8 * nodes + 12 * types + 4 * batches + 16


@over_frame
def gradient_layout(frame, n0, n1, n_types, n_batches, types, info, operands, itemsize, dtype, card, nodes, order, type_start,
                    present, batch_type, batch_begin, batch_end, active, local, start, room):  # fmt: skip
    """Give each type with an active node its block of gradients, and each active leaf a slot, from offset `start` on.

    Makes block_at[l] (offset, -1 without), slot[n - n0] (offset of a leaf's slot), and room for the work space of
    `weight_table`. Returns the end of the last block, the bytes of scratch and of the widest argument that is not shared, upper
    bounds for the words of the table and of the lists, and whether all types have their kernels.
    """
    work = room + 8 * n_types + 8 * (n1 - n0)
    frame[_BLOCK_AT], frame[_SLOT], frame[_ENDS], frame[_BATCHES] = room, room + 8 * n_types, work, work + 4 * n_types + 4
    block_at, slot = integers(room), integers(room + 8 * n_types)
    at, scratch, widest, words, lists, known = start, 0, 0, 0, 0, True
    for l in range(n_types):
        block_at[l] = -1
        t = present[l] * TYPE_COLUMNS
        known &= info[t + READY + dtype] != 0
        for p in range(type_start[l], type_start[l + 1]):
            if active[nodes[order[p]]] == 3:
                block_at[l] = at
                at += aligned((type_start[l + 1] - type_start[l]) * info[t + SIZE] * itemsize)
                break
    for b in range(n_batches):
        l = batch_type[b]
        if block_at[l] < 0:
            continue
        t, n, runs, before = present[l] * TYPE_COLUMNS, 0, 0, False
        for p in range(batch_begin[b], batch_end[b]):
            now = active[nodes[order[p]]] == 3
            runs += now and not before
            n += now
            before = now
        arguments = info[t + ARGUMENTS]
        words += runs * (SLOTS + 2 * (3 + arguments + info[t + IMMEDIATES])) + 2 * n * ZERO_WORDS
        for k in range(arguments):
            o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
            item = operands[o + ELEMENTS] * itemsize
            if operands[o + WRITES] != SHARED:
                widest = max(widest, n * item if card else item)
            if operands[o + WRITES] == DENSE or (card and operands[o + WRITES] != SHARED):
                scratch = max(scratch, n * item)
            fields = 3 + operands[o + NEED_COUNT] + info[t + IMMEDIATES]
            words += runs * (SLOTS + 2 * fields + ROWS_WORDS) + 2 * n * ZERO_WORDS
            words += (runs + 1) * ROWS_WORDS * operands[o + NEED_COUNT]
            lists += 2 * n
            if card:
                words += runs * (GROUPS_WORDS - ROWS_WORDS)
                lists += n * (4 + 2 + operands[o + NEED_COUNT] + info[t + IMMEDIATES]) + runs
    # Leaves, type by type, so that those of one type lie one after the other: count, then place.
    for n in range(n0, n1):
        kind = info[types[n] * TYPE_COLUMNS + KIND]
        if active[n] == 3 and (kind == ROW or kind == INPUT or kind == STOP):
            local[types[n]] = 1 if local[types[n]] < 0 else local[types[n]] + 1
            lists += 4 if card else 1
    for n in range(n0, n1):
        type_ = types[n]
        count = local[type_]
        if count > 0:
            size = info[type_ * TYPE_COLUMNS + SIZE] * itemsize
            for m in range(n, n1):
                if types[m] == type_ and active[m] == 3:
                    slot[m - n0] = at
                    at += size
                    count -= 1
                    if count == 0:
                        break
            at = aligned(at)
            words += TABLE_GROUPS_WORDS if card else TABLE_WORDS
            lists += 1
            local[type_] = -1
    return at, scratch, widest, words, lists, known


@over_frame
def gradient_places(n0, n1, n_types, types, args, positions, info, itemsize, nodes, order, type_start, present, active,
                    block_at, slot, gradient_base, parameter_gradients, gradient, source):  # fmt: skip
    """Fill in the address of the gradient of each active node of a segment, and the node in whose slot it lies (source)."""
    for l in range(n_types):
        if block_at[l] < 0:
            continue
        size = info[present[l] * TYPE_COLUMNS + SIZE] * itemsize
        at = gradient_base + block_at[l]
        for p in range(type_start[l], type_start[l + 1]):
            n = nodes[order[p]]
            gradient[n], source[n] = at, n
            at += size
    for n in range(n0, n1):
        if active[n] != 3:
            continue
        t = types[n] * TYPE_COLUMNS
        kind = info[t + KIND]
        if kind == VIEW:
            a, start = shown(n, t, positions[n], args, info)
            if a >= 0:
                gradient[n], source[n] = gradient[a] + start * itemsize, source[a]
            else:
                gradient[n], source[n] = parameter_gradients[(-a - 1) >> 1] + start * itemsize, a
        elif kind != OP:
            gradient[n], source[n] = gradient_base + slot[n - n0], n


@over_frame
def seed(loss, types, info, active, touched, gradient, source, itemsize):
    """Find where the gradient of the loss begins the pass: its address, 0 if it has none, and the slot that is otherwise zero.

    Returns the address, and address and bytes of the slot (zeros if it lies in that of a parameter).
    """
    if active[loss] != 3:
        return 0, 0, 0
    root = source[loss]
    if root < 0:
        return gradient[loss], 0, 0
    touched[root] = 1
    return gradient[loss], gradient[root], info[types[root] * TYPE_COLUMNS + SIZE] * itemsize

"""Where everything lies, and the tables of instructions: pure functions from integers to integers.

Forward. The values of all nodes of one type are one block, type by type, in the order in which they run, so the output of a
batch is contiguous and so are all outputs of a type:

    block of type 0                     | block of type 1      | ...
    | batch 3      | batch 7    | ...   | batch 4  | ...       |

An argument whose items already lie at even distances is read in place; otherwise kernels read through a list of addresses.
Arguments that a matrix product reads (DENSE) are copied together first where they do not lie together, into a block of their
own, also type by type: what was gathered for one batch stands beside what was gathered for the next.

In a graph for inference (`frugal_layout`) each batch has a block of its own, which is free for others after the last batch that
reads it; only what is asked for, and what nothing of the segment reads, stays. Copies share one place, as each is read at once.

Backward. The gradients have the same blocks. Batches run in reverse. Whether a batch may store a gradient or has to add to it
is known here: the first one to write to a node stores; where firsts and others mix in one batch, the firsts are zeroed and the
batch adds. A node whose parts are read (h and c of a step of an LSTM) is covered part by part, as long as the parts lie side by
side. Gradients of parameters that a whole type shares are formed last, once, from the blocks of the type.

    kind of node   value                                gradient
    op             in the block of its type             likewise
    view, part     inside its argument                  inside that of its argument
    input          where it was copied when recorded    a slot of its own, only if asked for
    row            in the table                         a slot of its own, added to the table at the end
    stop           inside its argument                  a slot of its own
    parameter      (negative argument)                  in the parameter

Nothing here touches a number of a value. Addresses are absolute; who calls answers for the memory behind them.

Each pass takes its parameters from a frame (`frame.py`): arrays come as pointers, so sizes are parameters too. Rows of the
tables of types and operands are addressed flat: `t` and `o` are the places where a row begins.
"""

from autobatch.frame import FIELDS, over_frame
from autobatch.graph import (
    ARGUMENTS,
    BACK,
    BACKWARD,
    COLUMNS,
    ELEMENTS,
    FORWARD,
    HAS_GRADIENT,
    IMMEDIATES,
    INPUT,
    JOINS,
    KIND,
    NEED_COUNT,
    NEEDS,
    NUMBERS,
    OP,
    OPERAND_COLUMNS,
    OPERANDS,
    OUTPUTS,
    PREPARE,
    READS,
    READY,
    RECORDED,
    ROW,
    SIZE,
    SOURCE,
    START,
    STOP,
    TABLE,
    TYPE_COLUMNS,
    VIEW,
    WORK,
    WRITES,
)
from autobatch.kernels._jit import (
    ACCUMULATE,
    ALONGSIDE,
    FLAGS,
    ITEMS,
    SLOTS,
    address_of,
    bytes_at,
    inline,
    int32s,
    integers,
    move_slot,
    write_head,
    write_slot,
)
from autobatch.kernels._op import DENSE, SHARED
from autobatch.kernels._threads import LONGEST, MOST_THREADS

ALIGN = 64
REACH = 1 << 30  # bytes: BLAS takes a distance between columns as an int32 of numbers
HOLES = 1024  # free pieces between blocks that are remembered
THIN = 256  # columns: weight gradients formed from thinner runs than this are worth a copy of their operands
COPIED = 8  # numbers that are copied in a unit
_ROWS_WORDS = SLOTS + 4 + 1  # a copy of rows: two slots and the literal that SIZES points to
_ZERO_WORDS = SLOTS + 2 + 1
_TABLE_WORDS = SLOTS + 8 + 1  # rows added to a table
TABLE_GROUPS_WORDS = SLOTS + 12 + 1  # the same in groups
_GROUPS_WORDS = SLOTS + 8 + 1  # rows added to few places

# Fields that passes write.
_ROOM, _N_TYPES = FIELDS["room"], FIELDS["n_types"]
_NODES, _KINDS, _FIRST, _EDGES = FIELDS["nodes"], FIELDS["kinds"], FIELDS["first"], FIELDS["edges"]
_JOINS, _PRESENT, _DENSE = FIELDS["joins"], FIELDS["present"], FIELDS["dense"]
_ORDER, _TYPE_START, _BATCH_TYPE = FIELDS["order"], FIELDS["type_start"], FIELDS["batch_type"]
_BATCH_BEGIN, _BATCH_END = FIELDS["batch_begin"], FIELDS["batch_end"]
_VALUE_AT, _BATCH_AT, _AT = FIELDS["value_at"], FIELDS["batch_at"], FIELDS["at"]
_GATHER_FIRST, _GATHER_AT = FIELDS["gather_first"], FIELDS["gather_at"]
_GRADIENT, _COVERED, _SOURCE = FIELDS["gradient"], FIELDS["covered"], FIELDS["source"]
_ACTIVE, _TOUCHED = FIELDS["active"], FIELDS["touched"]
_BLOCK_AT, _SLOT, _BATCHES, _ENDS = FIELDS["block_at"], FIELDS["slot"], FIELDS["batches"], FIELDS["ends"]


# Survey ---------------------------------------------------------------------------------------------------------------


@inline
def _of(n, t, at, args, info):
    """What view n shows, whose entries begin at `at`: the node or parameter, and from which number on."""
    if info[t + BACK]:
        return n - info[t + BACK], info[t + START]
    return args[at], args[at + 1]


@inline
def _whole(bytes_):
    """So many bytes of the room that the next array is aligned."""
    return (bytes_ + 7) // 8 * 8


def room_of_survey(nodes: int, entries: int, most: int) -> int:
    """Return how many bytes of room `survey` takes for so many nodes, entries of arguments, and types at most."""
    return 16 * nodes + 4 * entries + 5 * most + 64


@over_frame
def survey(frame, n0, n1, most, types, args, info, dtype, positions, root, local, room):
    """Reduce the nodes n0 to n1 - 1 to the graph that is scheduled: ops only, views looked through.

    Fills positions (where the arguments of each node begin), root (the node in whose memory it lies, or a parameter). Makes
    `dense`, and the reduced graph: nodes, kinds (local types, numbered by first appearance), first, edges, joins, present
    (local type -> type). `local` is all -1 and is left so, `most` how many types there may be.

    Returns how many nodes, edges, local types, and arguments of these types there are, whether there is but one order and no
    two nodes can run together (each node reads the one before, or each has its own type), and whether all types have kernels.
    """
    size = n1 - n0
    end = room + 16 * size + 4
    frame[_NODES], frame[_KINDS], frame[_DENSE], frame[_FIRST] = room, room + 4 * size, room + 8 * size, room + 12 * size
    frame[_PRESENT], frame[_JOINS], frame[_EDGES] = end, end + 4 * most, _whole(end + 5 * most)
    nodes, kinds, dense, first = int32s(room), int32s(room + 4 * size), int32s(room + 8 * size), int32s(room + 12 * size)
    present, joins, edges = int32s(end), bytes_at(end + 4 * most), int32s(_whole(end + 5 * most))
    at, count, m, T, operands, links, known = positions[n0] if n0 else 0, 0, 0, 0, 0, 0, True
    for n in range(n0, n1):
        type_ = types[n]
        t = type_ * TYPE_COLUMNS
        positions[n] = at
        kind, arguments = info[t + KIND], info[t + RECORDED]
        dense[n - n0] = -1
        if kind == OP:
            l = local[type_]
            if l < 0:
                l = T
                local[type_] = T
                present[T] = type_
                joins[T] = info[t + JOINS]
                operands += info[t + ARGUMENTS]
                known &= info[t + FORWARD + dtype] != 0
                T += 1
            first[count] = m
            linked = False
            for k in range(arguments):
                a = args[at + k]
                if a >= 0 and root[a] >= n0:
                    d = dense[root[a] - n0]
                    if d >= 0:
                        edges[m] = d
                        m += 1
                        linked |= d == count - 1
            links += linked
            nodes[count], kinds[count], dense[n - n0], root[n] = n, l, count, n
            count += 1
        elif kind == VIEW or kind == STOP:
            a, _ = _of(n, t, at, args, info)
            root[n] = a if a < 0 else root[a]
        else:
            root[n] = n
        at += arguments + info[t + IMMEDIATES]
    first[count] = m
    positions[n1] = at
    for l in range(T):
        local[present[l]] = -1
    frame[_N_TYPES] = T
    return count, m, T, operands, links == count - 1 or T == count, known


# Forward --------------------------------------------------------------------------------------------------------------


@inline
def _aligned(n):
    return (n + (ALIGN - 1)) // ALIGN * ALIGN


def room_in_order(nodes: int, types: int) -> int:
    """Return how many bytes of room `in_order` takes."""
    return 16 * nodes + 4 * types + 64


@over_frame
def in_order(frame, n_batches, n_types, kinds, room):
    """Make the schedule of a segment that runs node by node, as recorded: that of policy "none" (`schedule.py`)."""
    n, column = n_batches, _whole(4 * n_batches)
    frame[_ORDER], frame[_BATCH_TYPE], frame[_BATCH_BEGIN] = room, room + column, room + 2 * column
    frame[_BATCH_END], frame[_TYPE_START] = room + 3 * column, room + 4 * column
    order, batch_type, batch_begin = int32s(room), int32s(room + column), int32s(room + 2 * column)
    batch_end, start = int32s(room + 3 * column), int32s(room + 4 * column)
    frame[_ROOM] = room + 4 * column + _whole(4 * n_types + 4)
    for l in range(n_types + 1):
        start[l] = 0
    for i in range(n):
        start[kinds[i]] += 1
    for l in range(n_types):
        start[l + 1] += start[l]
    for i in range(n - 1, -1, -1):  # start[l] is the end of type l at first, and its beginning at last
        l = kinds[i]
        p = start[l] - 1
        start[l] = p
        order[p], batch_type[i], batch_begin[i], batch_end[i] = i, l, p, p + 1


def room_of_layout(types: int, arguments: int, batches: int) -> int:
    """Return how many bytes of room a layout takes, for so many arguments of all types."""
    return 8 * (2 * types + arguments + 2 * batches)


@inline
def _make_places(frame, n_types, n_batches, room):
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
    _make_places(frame, n_types, n_batches, room)
    value_at, batch_at = integers(frame[_VALUE_AT]), integers(frame[_BATCH_AT])
    gather_first, gather_at = integers(frame[_GATHER_FIRST]), integers(frame[_GATHER_AT])
    at, lists, words, g = 0, 0, 0, 0
    for l in range(n_types):
        t, count = present[l] * TYPE_COLUMNS, type_start[l + 1] - type_start[l]
        value_at[l] = at
        at += _aligned(count * info[t + SIZE] * itemsize)
        lists += count * (info[t + ARGUMENTS] + info[t + IMMEDIATES])
    for l in range(n_types):
        t, count = present[l] * TYPE_COLUMNS, type_start[l + 1] - type_start[l]
        gather_first[l] = g
        for k in range(info[t + ARGUMENTS]):
            o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
            if operands[o + READS] == DENSE:
                gather_at[g] = at
                at += _aligned(count * operands[o + ELEMENTS] * itemsize)
            g += 1
    for b in range(n_batches):
        l = batch_type[b]
        t = present[l] * TYPE_COLUMNS
        batch_at[b] = value_at[l] + (batch_begin[b] - type_start[l]) * info[t + SIZE] * itemsize
        words += SLOTS + 2 * (1 + info[t + ARGUMENTS] + info[t + IMMEDIATES]) + _ROWS_WORDS * info[t + ARGUMENTS]
    return at, words, lists


@over_frame
def frugal_layout(frame, n_types, n_batches, present, order, first, edges, batch_type, batch_begin, batch_end, info, operands,
                  itemsize, keep, batch_of, last, released, holes, room):  # fmt: skip
    """Give each batch a block of values that is free for others after the last batch that reads it.

        | batches with a node to keep | batches that come and go | copies of DENSE arguments, of one batch at a time |

    `keep[i]` tells which nodes of the reduced graph stay; nodes without a reader are added to them here. Makes batch_at[b]
    (offsets in bytes) and room for at[b], and fills last[b], the batch after which b is free (n_batches: it stays). Each new
    block goes into the first hole that is large enough. `batch_of` (one a node), `released` (two a batch) and `holes` (HOLES
    pairs of start and end, one after the other in memory) are work space; of more holes the smallest is given up.

    Returns the end of what stays, of what comes and goes, and of the copies, and upper bounds as `layout`.
    """
    _make_places(frame, n_types, n_batches, room)
    batch_at = integers(frame[_BATCH_AT])
    words, lists, copies, next_ = 0, 0, 0, n_batches
    for b in range(n_batches):
        t, n, width = present[batch_type[b]] * TYPE_COLUMNS, batch_end[b] - batch_begin[b], 0
        for p in range(batch_begin[b], batch_end[b]):
            batch_of[order[p]] = b
        last[b] = -1
        released[b] = released[next_ + b] = -1
        words += SLOTS + 2 * (1 + info[t + ARGUMENTS] + info[t + IMMEDIATES]) + _ROWS_WORDS * info[t + ARGUMENTS]
        lists += n * (info[t + ARGUMENTS] + info[t + IMMEDIATES])
        for k in range(info[t + ARGUMENTS]):
            o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
            if operands[o + READS] == DENSE:
                width += _aligned(n * operands[o + ELEMENTS] * itemsize)
        copies = max(copies, width)
    # keep[i] is 2 where some node reads i.
    for b in range(n_batches):
        for p in range(batch_begin[b], batch_end[b]):
            i = order[p]
            for e in range(first[i], first[i + 1]):
                a = edges[e]
                last[batch_of[a]] = max(last[batch_of[a]], b)
                keep[a] |= 2
    for b in range(n_batches):
        for p in range(batch_begin[b], batch_end[b]):
            if keep[order[p]] != 2:
                last[b] = n_batches
    stays = 0
    for b in range(n_batches):
        t = present[batch_type[b]] * TYPE_COLUMNS
        if last[b] == n_batches:
            batch_at[b] = stays
            stays += _aligned((batch_end[b] - batch_begin[b]) * info[t + SIZE] * itemsize)
        else:
            released[next_ + b] = released[last[b]]
            released[last[b]] = b
    top, end, count = stays, stays, 0
    for b in range(n_batches):
        t = present[batch_type[b]] * TYPE_COLUMNS
        if last[b] != n_batches:
            size = _aligned((batch_end[b] - batch_begin[b]) * info[t + SIZE] * itemsize)
            h = 0
            while h < count and holes[2 * h + 1] - holes[2 * h] < size:
                h += 1
            if h < count:
                batch_at[b] = holes[2 * h]
                holes[2 * h] += size
                if holes[2 * h] == holes[2 * h + 1]:
                    for j in range(2 * h, 2 * count - 2):
                        holes[j] = holes[j + 2]
                    count -= 1
            else:
                batch_at[b] = top
                top += size
                end = max(end, top)
        freed = released[b]
        while freed >= 0:
            t = present[batch_type[freed]] * TYPE_COLUMNS
            start = batch_at[freed]
            stop = start + _aligned((batch_end[freed] - batch_begin[freed]) * info[t + SIZE] * itemsize)
            freed = released[next_ + freed]
            h = 0
            while h < count and holes[2 * h] < start:
                h += 1
            before, after = h > 0 and holes[2 * h - 1] == start, h < count and holes[2 * h] == stop
            if before and after:
                holes[2 * h - 1] = holes[2 * h + 1]
                for j in range(2 * h, 2 * count - 2):
                    holes[j] = holes[j + 2]
                count -= 1
            elif before:
                holes[2 * h - 1] = stop
            elif after:
                holes[2 * h] = start
            else:
                if count == HOLES:
                    smallest = 0
                    for j in range(count):
                        if holes[2 * j + 1] - holes[2 * j] < holes[2 * smallest + 1] - holes[2 * smallest]:
                            smallest = j
                    for j in range(2 * smallest, 2 * count - 2):
                        holes[j] = holes[j + 2]
                    count -= 1
                    h -= smallest < h
                for j in range(2 * count - 1, 2 * h - 1, -1):
                    holes[j + 2] = holes[j]
                holes[2 * h], holes[2 * h + 1] = start, stop
                count += 1
            if count > 0 and holes[2 * count - 1] == top:
                top = holes[2 * count - 2]
                count -= 1
    return stays, end, end + copies, words, lists


@over_frame
def forget(n0, n1, n_batches, root, dense, batch_of, last, address):
    """Set the addresses of the nodes n0 to n1 - 1 whose values do not stay to 0; returns how many there are."""
    count = 0
    for n in range(n0, n1):
        r = root[n]
        if r >= n0:
            d = dense[r - n0]
            if d >= 0 and last[batch_of[d]] != n_batches:
                address[n] = 0
                count += 1
    return count


@over_frame
def misses(n0, n1, types, args, info, positions, address):
    """Return whether one of the nodes n0 to n1 - 1 reads an older one without a value."""
    at = positions[n0] if n0 else 0
    for n in range(n0, n1):
        t = types[n] * TYPE_COLUMNS
        for k in range(info[t + RECORDED]):
            a = args[at + k]
            if 0 <= a < n0 and address[a] == 0:
                return True
        if info[t + BACK] and n - info[t + BACK] < n0 and address[n - info[t + BACK]] == 0:
            return True
        at += info[t + RECORDED] + info[t + IMMEDIATES]
    return False


@inline
def _divided(words, items, work, piece):
    """The word LENGTH of an instruction whose items, of `work` units each, may run at the same time; `piece` units a piece."""
    pieces = min(items * work // piece, items, MOST_THREADS)
    return words | pieces << 32 if pieces > 1 and words <= LONGEST else words


@inline
def _copy(table, w, kernel, items, size, flags, to, to_stride, source, source_stride, apart, piece):
    """Write an instruction of two slots of rows of `size` numbers; returns where the next one goes.

    `apart`: whether no two rows go to places that overlap; pieces that may run at the same time are of `piece` units of work.
    """
    words = _divided(_ROWS_WORDS, items, apart * (1 + size // COPIED), piece)
    write_head(table, w, kernel, words, items, address_of(table) + 8 * (w + SLOTS + 4), flags)
    write_slot(table, w + SLOTS, to, to_stride)
    write_slot(table, w + SLOTS + 2, source, source_stride)
    table[w + SLOTS + 4] = size
    return w + _ROWS_WORDS


@inline
def _argument(args, at, k, info, t, operands, o):
    """Argument k of a node whose entries begin at `at`."""
    return args[at + k] if k < info[t + RECORDED] else operands[o + SOURCE]


@inline
def _value(a, address, parameter_values):
    """Address of the value of an argument."""
    return address[a] if a >= 0 else parameter_values[(-a - 1) >> 1]


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
            a, start = _of(n, t, positions[n], args, info)
            address[n] = _value(a, address, parameter_values) + start * itemsize
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
        main = w + _ROWS_WORDS * arguments
        slots = main + SLOTS
        write_slot(table, slots, value_base + batch_at[b], size)
        shared = value_base + copies
        for k in range(arguments):
            o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
            where = slots + 2 + 2 * k
            item = operands[o + ELEMENTS] * itemsize
            a = _argument(args, positions[nodes[order[lo]]], k, info, t, operands, o)
            start = _value(a, address, parameter_values)
            if operands[o + READS] == SHARED:
                write_slot(table, where, start, 0)
                continue
            stride = item
            if n > 1:
                stride = _value(args[positions[nodes[order[lo + 1]]] + k], address, parameter_values) - start
            even, expected = stride >= 0, start
            for i in range(n):
                a = _value(args[positions[nodes[order[lo + i]]] + k], address, parameter_values)
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
                    shared += _aligned(n * item)
                w = _copy(
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
        length = words if card else _divided(words, n, info[t + WORK], piece)
        work += n * info[t + WORK]
        if length != words or n * info[t + WORK] >= product:
            divided += n * info[t + WORK]
        write_head(table, w, info[t + FORWARD + dtype], length, n, info[t + NUMBERS], 0)
        at[b] = w
        w += words
    return w, r, work, divided


# Backward -------------------------------------------------------------------------------------------------------------


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
                a = _argument(args, at, k, info, t, operands, o)
                if operands[o + HAS_GRADIENT]:
                    wanted |= a % 2 != 0 if a < 0 else active[a] != 0
        elif kind != INPUT and not full:
            a, _ = _of(n, t, at, args, info)
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
            a, _ = _of(n, t, at, args, info)
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
                at += _aligned((type_start[l + 1] - type_start[l]) * info[t + SIZE] * itemsize)
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
        words += runs * (SLOTS + 2 * (3 + arguments + info[t + IMMEDIATES])) + 2 * n * _ZERO_WORDS
        for k in range(arguments):
            o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
            item = operands[o + ELEMENTS] * itemsize
            if operands[o + WRITES] != SHARED:
                widest = max(widest, n * item if card else item)
            if operands[o + WRITES] == DENSE or (card and operands[o + WRITES] != SHARED):
                scratch = max(scratch, n * item)
            fields = 3 + operands[o + NEED_COUNT] + info[t + IMMEDIATES]
            words += runs * (SLOTS + 2 * fields + _ROWS_WORDS) + 2 * n * _ZERO_WORDS
            words += (runs + 1) * _ROWS_WORDS * operands[o + NEED_COUNT]
            lists += 2 * n
            if card:
                words += runs * (_GROUPS_WORDS - _ROWS_WORDS)
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
            at = _aligned(at)
            words += TABLE_GROUPS_WORDS if card else _TABLE_WORDS
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
            a, start = _of(n, t, positions[n], args, info)
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


@inline
def _add_in_groups(table, w, add_groups, add_overlapping, n, groups, size, source, item, lists, r):
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
        table, w, add_groups if same else add_overlapping, _GROUPS_WORDS, groups, address_of(table) + 8 * (w + SLOTS + 8),
        ACCUMULATE,
    )  # fmt: skip
    write_slot(table, w + SLOTS, start + 8 * (places if same else r), -1)
    write_slot(table, w + SLOTS + 2, source, item)
    write_slot(table, w + SLOTS + 4, start + 8 * rows, 8)
    write_slot(table, w + SLOTS + 6, start + 8 * begins, 8)
    table[w + SLOTS + 8] = size
    return w + _GROUPS_WORDS


@inline
def _zero(table, w, kernel, address, size):
    """Write an instruction that sets `size` numbers to zero, if there are any; returns where the next one goes."""
    if size <= 0:
        return w
    write_head(table, w, kernel, _ZERO_WORDS, 1, address_of(table) + 8 * (w + SLOTS + 2), 0)
    write_slot(table, w + SLOTS, address, 0)
    table[w + SLOTS + 2] = size
    return w + _ZERO_WORDS


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
                        w = _zero(table, w, zero_rows, gradient[root], start)
                        w = _zero(table, w, zero_rows, gradient[root] + end * itemsize, info[t + OUTPUTS] - end)
                    touched[root] = 1
            if info[t + PREPARE + dtype]:
                words = SLOTS + 2 * (3 + arguments + immediates)
                length = words if card else _divided(words, n, info[t + WORK], piece)
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
                                    w = _zero(table, w, zero_rows, gradient[root], whole)
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
                                    w = _zero(table, w, zero_rows, gradient[root], low)
                                    w = _zero(table, w, zero_rows, gradient[root] + high * itemsize, whole - high)
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
                        write_head(table, w, zero_rows, _ZERO_WORDS, zeros, address_of(table) + 8 * (w + SLOTS + 2), 0)
                        write_slot(table, w + SLOTS, address_of(lists) + 8 * flags_at, -1)
                        table[w + SLOTS + 2] = operands[o + ELEMENTS]
                        w += _ZERO_WORDS
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
                length = _divided(words, n, info[t + WORK], piece) if apart or not (card or direct) else words
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
                    w = _add_in_groups(
                        table, w, add_groups, add_overlapping, n, groups, operands[o + ELEMENTS], scratch, item, lists, r
                    )
                    r += 4 * n + 1
                elif not direct:
                    if even:
                        w = _copy(
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
                    else:
                        places = address_of(lists) + 8 * r
                        w = _copy(
                            table,
                            w,
                            add_rows,
                            n,
                            operands[o + ELEMENTS],
                            flags & ACCUMULATE,
                            places,
                            -1,
                            scratch,
                            item,
                            apart,
                            piece,
                        )
                r += 2 * n
            i = j
    return w, r, rounds


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
    for l in range(n_types + 1):
        ends[l] = 0
    for b in range(n_batches):
        ends[batch_type[b]] += 1
    for l in range(n_types):
        ends[l + 1] += ends[l]
    for b in range(n_batches - 1, -1, -1):
        ends[batch_type[b]] -= 1
        batches[ends[batch_type[b]]] = b
    for l in range(n_types):
        if block_at[l] < 0:
            continue
        t = present[l] * TYPE_COLUMNS
        block = gradient_base + block_at[l]
        for k in range(info[t + ARGUMENTS]):
            o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
            parameter = _argument(args, positions[nodes[order[type_start[l]]]], k, info, t, operands, o)
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
                            w = _copy(
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
        write_head(table, w, add_to_table, _TABLE_WORDS, count, address_of(table) + 8 * (w + SLOTS + 8), 0)
        s = w + SLOTS
        write_slot(table, s, parameter_gradients[pid], 0)
        write_slot(table, s + 2, gradient[n], size * itemsize)
        write_slot(table, s + 4, address_of(lists) + 8 * first, 8)
        write_slot(table, s + 6, parameter_touched[pid], 0)
        table[s + 8] = size
        w += _TABLE_WORDS
    return w, r

"""From recorded nodes to the graph that is scheduled, and the schedule of one that needs none."""

from autobatch.frame import FIELDS, over_frame
from autobatch.graph import ARGUMENTS, FORWARD, IMMEDIATES, JOINS, KIND, OP, RECORDED, STOP, TYPE_COLUMNS, VIEW
from autobatch.kernels._jit import bytes_at, int32s
from autobatch.plan.words import shown, whole

# Fields that passes of this file write.
_BATCH_BEGIN, _BATCH_END, _BATCH_TYPE, _DENSE, _EDGES, _FIRST, _JOINS = (
    FIELDS[name] for name in "batch_begin batch_end batch_type dense edges first joins".split()
)
_KINDS, _NODES, _N_TYPES, _ORDER, _PRESENT, _ROOM, _TYPE_START = (
    FIELDS[name] for name in "kinds nodes n_types order present room type_start".split()
)


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
    frame[_PRESENT], frame[_JOINS], frame[_EDGES] = end, end + 4 * most, whole(end + 5 * most)
    nodes, kinds, dense, first = int32s(room), int32s(room + 4 * size), int32s(room + 8 * size), int32s(room + 12 * size)
    present, joins, edges = int32s(end), bytes_at(end + 4 * most), int32s(whole(end + 5 * most))
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
            a, _ = shown(n, t, at, args, info)
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


def room_in_order(nodes: int, types: int) -> int:
    """Return how many bytes of room `in_order` takes."""
    return 16 * nodes + 4 * types + 64


@over_frame
def in_order(frame, n_batches, n_types, kinds, room):
    """Make the schedule of a segment that runs node by node, as recorded: that of policy "none" (`schedule.py`)."""
    n, column = n_batches, whole(4 * n_batches)
    frame[_ORDER], frame[_BATCH_TYPE], frame[_BATCH_BEGIN] = room, room + column, room + 2 * column
    frame[_BATCH_END], frame[_TYPE_START] = room + 3 * column, room + 4 * column
    order, batch_type, batch_begin = int32s(room), int32s(room + column), int32s(room + 2 * column)
    batch_end, start = int32s(room + 3 * column), int32s(room + 4 * column)
    frame[_ROOM] = room + 4 * column + whole(4 * n_types + 4)
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

"""Which nodes run together, and in which order: pure functions from integers to integers.

A *segment* is what has been recorded and not yet run: nodes 0..n-1 in the order of recording, so that the arguments of a node
have lower numbers. Nodes of one type can run as one batch. A *policy* decides which do:

    none      node by node, as recorded
    depth     all nodes of one depth and type (Looks et al. 2017, "Deep Learning with Dynamic Computation Graphs")
    agenda    all ready nodes of the type of least mean depth (Neubig, Goldberg, Dyer 2017, "On-the-fly Operation Batching")
    ratio     all ready nodes of the type for which ready / frontier is largest; the default

A node is *ready* when its arguments have run. The *frontier* of a type is what would be ready if only nodes of that very type
had to be waited for. Where all of it is ready, waiting gains nothing; else the ratio tells what is lost by not waiting (Chen
et al. 2023, "ED-Batch", which searches frontiers node by node). Here frontiers are counted. The *typed depth* of a node is the
number of nodes of its own type on the longest path that ends in it, and the frontier of a type holds, in each instance of the
minibatch, those nodes of least typed depth that have not run. Instances are the connected components of the segment; since
the sum of all losses would connect everything, only the first argument of a *joining* type connects.

The longest chain of each type, summed over types, is a lower bound on the number of batches. Where ratio does not reach it,
the batches of depth are taken if they are fewer, and every node is moved to the last batch of its type that comes before its
consumers, which leaves some batches empty (half a step of forward-backward improvement, Li and Willis 1992). Batches for 64
sentences, means of five minibatches:

                                                nodes   types   bound   depth   agenda   ratio, moved
    Tree-LSTM cells, a loss at each node         7253       6      24      78       63      24
    Tree-LSTM, op by op                         47665      17     283     336      494     283
    Tree-LSTM, op by op, 4 kinds of weights     35749      30     294     537     1166     637     472
    Tree-LSTM cells, 4 kinds of weights          7253      12      38     129      384      62      52
    tagger of two LSTMs                          4937       5     127     277      127     127
    the same with LSTMs over characters         15803       8     186     362      186     186
    parser with stack LSTMs                     13143      11     234     646      235     234
    lattice LSTM                                19833       8     217    1016     2522     457     433

Tried and left out: one instance for all (better on mixed trees, 57 for 62; worse on lattices, 709 for 457), plain depth in
place of typed depth (worse), the same from the sinks (mixed), the least mean depth of the nodes that have not run: alone
(worse) or between equal ratios (no difference, but for one workload 6 % fewer).

    order    | type 0                  | type 1                             | ...
             | has run | next batch |  | has run | next batch | not ready   |
                       head         tail

Nodes of a type stay together, so that the planner can lay out memory type by type. The region of a type is also its queue: a
node that gets ready is appended, and a batch is all that lies between head and tail. Nodes queue in the order of what they
waited for, so a batch tends to find its arguments in memory in the order in which it reads them.

How it is compiled. Indices are unsigned, because Numba asks of each signed one whether it is negative: 5.2 ns a node for the
lists of consumers, 3.0 with unsigned ones. Arrays are made by the callers, and compiled functions do not call each other:
allocation inside doubled the time of compilation, and a compiled caller would have its callees compiled once more.
"""

from __future__ import annotations

import collections
import threading
from typing import NamedTuple

import numpy as np

from autobatch.graph import POLICIES
from autobatch.kernels._errors import ArgumentError, InternalError, message
from autobatch.kernels._jit import compiled

SIGNED, UNSIGNED = np.dtype(np.int32), np.dtype(np.uint32)  # as dtypes: 30 ns less for each array that is made than as types
ONE = np.uint32(1)
COLUMNS = np.uint32(256)  # types with a column in the table of typed depths; later ones count as if they had no chains
SLACK = 16  # a schedule is improved where it needs more batches than the bound and this part of it
INSTANCES = np.uint32(256)  # rows of that table; instances beyond it share rows
NO_COLUMN = np.uint32(2**32 - 1)
OWN_16, OWN_32 = (np.eye(width + 1, width, dtype=np.uint32) for width in (16, 32))


class Schedule(NamedTuple):
    """n nodes of T types in B batches, in the order in which they run; all arrays int32.

    Batch b runs ``order[batch_begin[b]:batch_end[b]]``, nodes of type ``batch_type[b]``. All nodes of type t are
    ``order[type_start[t]:type_start[t + 1]]``, in the order in which they run.
    """

    order: np.ndarray  # (n,)
    type_start: np.ndarray  # (T+1,)
    batch_type: np.ndarray  # (B,)
    batch_begin: np.ndarray  # (B,)
    batch_end: np.ndarray  # (B,)


def schedule(
    policy: str,
    types: np.ndarray,
    first: np.ndarray,
    args: np.ndarray,
    n_types: int,
    joins: np.ndarray,
    trusted: bool = False,
) -> Schedule:
    """Return the batches in which a segment runs.

    Parameters
    ----------
    policy : one of POLICIES
    types : (n,) int32, type of each node, numbered by first appearance
    first : (n+1,) int32, the arguments of node i are ``args[first[i]:first[i + 1]]``
    args : (m,) int32, nodes of this segment, each lower than the node it is an argument of; duplicates are allowed
    n_types : T
    joins : (T,) uint8 or bool, whether nodes of a type merely add up scalars of different instances (only ratio asks)
    trusted : the caller answers for every index being in range; 5 ns a node less

    Raises
    ------
    ArgumentError
        The policy is unknown.
    InternalError
        A type or an argument is out of range.

    Notes
    -----
    Ties go to the type that appeared first; the result depends on nothing but the arguments.

    Work and memory are linear in n + m, and a batch costs log T for each type whose queue has changed. On minibatches of
    parsed sentences: none 6, depth 8, agenda 15, ratio 30 to 40 ns a node; ratio 25 ns more where it stays above the bound,
    and 12 to 25 ns more for every 32 types after the first 32, up to 256; all twice as much on a million nodes. Memory on the
    way: 28 to 36 bytes a node, ratio 76, with more than 16 types 140.

    Examples
    --------
    Chains 0-1 and 2-3-4 of type 0, each with a node of type 1 at its end (5, 6). By depth, the ends run apart; ratio waits:

    >>> import numpy as np
    >>> types, first = np.array([0, 0, 0, 0, 0, 1, 1], np.int32), np.array([0, 0, 1, 1, 2, 3, 4, 5], np.int32)
    >>> args = np.array([0, 2, 3, 1, 4], np.int32)
    >>> batches = schedule("ratio", types, first, args, 2, np.zeros(2, bool))
    >>> [batches.order[i:j].tolist() for i, j in zip(batches.batch_begin, batches.batch_end)]
    [[0, 2], [1, 3], [4], [5, 6]]
    """
    if policy not in _RULES:
        raise ArgumentError(message("schedule: unknown policy", repr(policy), "one of " + ", ".join(POLICIES)))
    if joins.size != n_types:
        raise InternalError(f"schedule: joins says something of {joins.size} types, and there are {n_types}")
    if trusted:
        types, first, args = types.view(UNSIGNED), first.view(UNSIGNED), args.view(UNSIGNED)
    else:
        types, first, args = _checked(types, first, args, n_types)
    return _RULES[policy](types, first, args, n_types, joins)


def lower_bound(types: np.ndarray, first: np.ndarray, args: np.ndarray, n_types: int) -> int:
    """Return a number of batches that no policy can go below: the longest chain of each type, summed over types.

    Arguments are those of `schedule`. The bound may be out of reach. Cost: 12 to 25 ns a node for every 32 types.

    >>> import numpy as np
    >>> lower_bound(np.array([0, 0, 1], np.int32), np.array([0, 0, 1, 2], np.int32), np.array([0, 1], np.int32), 2)
    3
    """
    types, first, args = _checked(types, first, args, n_types)
    size = np.bincount(types, minlength=n_types)
    column = np.where(size > 1, np.cumsum(size > 1) - 1, NO_COLUMN).astype(UNSIGNED)
    n_columns = int((size > 1).sum())
    slot, place = np.zeros((2, types.size), UNSIGNED)
    joins = np.zeros(n_types, np.uint8)
    return _count(types, first, args, joins, column, n_columns, slot, n_columns, place)[0]


# Schedules seen before ------------------------------------------------------------------------------------------------


class _Seen(threading.local):
    """The last schedules of the calling thread, the least recently used first."""

    def __init__(self):
        self.schedules = collections.OrderedDict()
        self.nodes = 0


_SEEN = _Seen()
SMALL = 128  # nodes: fewer are scheduled in less time than they are looked up
REMEMBERED = 1 << 20  # nodes of all schedules kept together; of 30 to 50 bytes


def recalled(policy, types, first, args, n_types, joins):
    """Return what `schedule` returns for trusted arrays, the same object if the same was asked before.

    Minibatches of one structure come again: with sentences of one length, and in each epoch over the same data. A look-up takes
    1 ns a node where scheduling takes 30.
    """
    if not SMALL <= types.size <= REMEMBERED // 4:
        return schedule(policy, types, first, args, n_types, joins, True)
    key = policy, types.size, args.size, n_types, _digest(types, first, args)
    seen = _SEEN.schedules
    found = seen.get(key)
    if found is not None:
        result, *arrays = found
        if _same(types, first, args, joins, *arrays):
            seen.move_to_end(key)
            return result
        _SEEN.nodes -= types.size
        del seen[key]
    result = schedule(policy, types, first, args, n_types, joins, True)
    seen[key] = result, *(array.copy() for array in (types, first, args, joins))
    _SEEN.nodes += types.size
    while _SEEN.nodes > REMEMBERED:
        oldest, _ = seen.popitem(last=False)
        _SEEN.nodes -= oldest[1]
    return result


def forget():
    """Forget the schedules that the calling thread remembers."""
    _SEEN.schedules.clear()
    _SEEN.nodes = 0


@compiled
def _digest(types, first, args):
    """Return a number that tells most graphs apart."""
    total = np.uint64(0)
    for i in range(types.size):
        total += (np.uint64(types[i]) + np.uint64(first[i]) * np.uint64(31)) * np.uint64(2 * i + 1)
    for e in range(args.size):
        total += np.uint64(args[e]) * np.uint64(4 * e + 3)
    return total


@compiled
def _same(types, first, args, joins, other_types, other_first, other_args, other_joins):
    """Return whether two graphs of as many nodes, arguments and types are the same."""
    different = 0
    for i in range(types.size):
        different |= (types[i] ^ other_types[i]) | (first[i] ^ other_first[i])
    for e in range(args.size):
        different |= args[e] ^ other_args[e]
    for l in range(joins.size):
        different |= joins[l] ^ other_joins[l]
    return different == 0


# Less memory ----------------------------------------------------------------------------------------------------------

PIECE = 192  # nodes of a piece, at least: products of 64 columns took 1.25 times as long as those of 1300, of 192 1.07 times
WEIGHT = 1 << 20  # bytes of values that the pieces of a group leave between them, if PIECE allows


def in_pieces(schedule, first, args, sizes):
    """Return a schedule in which large batches that feed one another, node by node, take turns piece by piece.

    Parameters
    ----------
    schedule : stays as it is.
    first, args : as for `schedule`.
    sizes : (T,) int64, bytes of the value of a node of each type

    Notes
    -----
    For inference, where memory of a value is free after its last reader. The products that give 1300 words scores over 10 000
    others, and the sums of these and the bias, are two batches of 54 MB; in pieces of 192 words there are at most 16 MB:

        all products | all sums | all losses      ->      products | sums | losses | products | sums | losses | ...

    Batch P goes with batch C if each node of P is read once, each by another node of C, and C has no more nodes than P.
    """
    if schedule.order.size < 4 * PIECE:
        return schedule
    order = schedule.order.copy()
    n, batches = order.size, schedule.batch_type.size
    of_nodes = np.full((3, n), -1, SIGNED)
    of_batches = np.full((5, batches), -1, SIGNED)
    out = np.empty((3, 2 * batches + n // int(PIECE) + 1), SIGNED)
    b = _find_pieces(
        first, args, sizes, order, *schedule[2:], np.zeros(batches, np.int64), *of_nodes, *of_batches, out, PIECE, WEIGHT
    )  # fmt: skip
    return Schedule(order, schedule.type_start, out[0, :b], out[1, :b], out[2, :b])


@compiled
def _find_pieces(
    first, args, sizes, order, batch_type, batch_begin, batch_end, weight, batch_of, reader, read, target, root, head, next_,
    stamp, out, piece, limit,
):  # fmt: skip
    """Fill `out` with type, begin and end of the batches, and put `order` right; return how many batches there are.

    From `weight`, zeros, to `stamp`, which like all between are -1 throughout, it is work space.
    """
    n_batches = batch_type.size
    for b in range(n_batches):
        for p in range(batch_begin[b], batch_end[b]):
            batch_of[order[p]] = b
    for i in range(order.size):
        for e in range(first[i], first[i + 1]):
            reader[args[e]] = i if reader[args[e]] == -1 else -2
    for b in range(n_batches - 1, -1, -1):
        lo, hi = batch_begin[b], batch_end[b]
        root[b] = b
        if hi - lo < 2 * piece or reader[order[lo]] < 0:
            continue
        c = batch_of[reader[order[lo]]]
        fits = batch_end[c] - batch_begin[c] == hi - lo
        for p in range(lo, hi):
            r = reader[order[p]]
            fits = fits and r >= 0 and batch_of[r] == c and stamp[b] == -1
            if fits:
                if read[r] == b:
                    stamp[b] = 1
                read[r] = b
        if fits and stamp[b] == -1:
            target[b], root[b] = c, root[c]
            weight[root[c]] += sizes[batch_type[b]]
    # Groups that are too light stay as they are; in the others, each batch takes the order of its reader.
    for b in range(n_batches - 1, -1, -1):
        lo, hi, r = batch_begin[b], batch_end[b], root[b]
        if target[b] < 0 or weight[r] * (hi - lo) <= 2 * limit:
            target[b] = -1
            continue
        next_[b], head[r] = head[r], b
        for p in range(lo, hi):
            read[reader[order[p]]] = order[p]
        for i in range(hi - lo):
            order[lo + i] = read[order[batch_begin[target[b]] + i]]
    k = 0
    for b in range(n_batches):
        if target[b] >= 0:
            continue
        n = batch_end[b] - batch_begin[b]
        step = max(piece, limit // weight[b]) if head[b] >= 0 else n
        for i in range(0, n, step):
            m = head[b]
            while True:
                now = m if m >= 0 else b
                out[0, k], out[1, k] = batch_type[now], batch_begin[now] + i
                out[2, k] = batch_begin[now] + min(i + step, n)
                k += 1
                if m < 0:
                    break
                m = next_[m]
    return k


# Policies -------------------------------------------------------------------------------------------------------------


def _none(types, first, args, n_types, joins):
    """Node by node: each is a level of its own."""
    return _by_level(types, np.arange(1, types.size + 1, dtype=UNSIGNED), n_types)


def _depth(types, first, args, n_types, joins):
    """Depth by depth."""
    return _by_level(types, _depths(types, first, args, n_types)[0], n_types)


def _agenda(types, first, args, n_types, joins):
    """The ready type of least mean depth; it does not change, so nothing is counted."""
    place, mean = _depths(types, first, args, n_types)
    place[:] = 0
    return _by_queue(types, first, args, mean, False, place, np.zeros(1, SIGNED))


def _ratio(types, first, args, n_types, joins):
    """The type with the largest part of its frontier ready; improved where that needs more batches than the bound."""
    column = np.zeros(n_types, UNSIGNED)
    slot = np.empty(types.size, UNSIGNED)
    place = np.zeros(types.size, UNSIGNED)
    n_columns, n_slots = _find_slots(types, first, args, joins, column, slot)
    bound, level, frontier = _count(types, first, args, joins, column, n_columns, slot, n_slots, place)
    result = _by_queue(types, first, args, frontier, True, place, level)
    if result.batch_type.size <= bound + bound // SLACK:
        return result
    result = min(result, _depth(types, first, args, n_types, joins), key=_n_batches)
    return min(result, _late(types, first, args, n_types, result.batch_type), key=_n_batches)


_RULES = {"none": _none, "depth": _depth, "agenda": _agenda, "ratio": _ratio}


# Arrays for the compiled functions ------------------------------------------------------------------------------------


def _checked(types, first, args, n_types):
    """Return the three arrays as unsigned ones, once they are known to keep every index in range."""
    unsigned = types.view(UNSIGNED), first.view(UNSIGNED), args.view(UNSIGNED)
    if unsigned[1].size != unsigned[0].size + 1 or not _legal(*unsigned, n_types):
        raise InternalError(
            message(
                "schedule: a type or an argument is out of range",
                f"{types.size} nodes, {first.size} starts, {args.size} arguments, {n_types} types",
                "types below the number of types, arguments below the node they belong to",
            )
        )
    return unsigned


def _depths(types, first, args, n_types):
    """Return the depth of each node (n,), 1 without arguments, and the mean depth of each type (T,)."""
    depth = np.empty(types.size, UNSIGNED)
    mean = np.zeros(n_types)
    _find_depths(types, first, args, depth, mean, np.zeros(n_types))
    return depth, mean


def _count(types, first, args, joins, column, n_columns, slot, n_slots, place):
    """Return a lower bound, `level` and `frontier`; see `_find_levels`."""
    own = OWN_16 if n_columns <= 16 else OWN_32
    rows = _scratch("rows", types.size * own.shape[1]).reshape(types.size, own.shape[1])
    longest = np.zeros(n_slots, UNSIGNED)
    level = np.zeros(types.size + n_slots + 1, SIGNED)
    frontier = np.zeros(column.size)
    bound = _find_levels(types, first, args, joins, column, n_columns, slot, own, rows, longest, place, level, frontier)
    return bound, level, frontier


def _by_level(types, level, n_types):
    """Return the batches of all nodes of one level and type, in the order of level."""
    n = types.size
    order = np.empty(n, SIGNED)
    start = np.zeros(n_types + 1, SIGNED)
    batch = np.empty((3, n), SIGNED)
    sequence = np.empty(n, UNSIGNED)
    place = np.zeros(n + 2, UNSIGNED)
    tables = np.zeros((3, n_types), UNSIGNED)
    b = _run_levels(types, level, sequence, place, tables, order, start, batch)
    return Schedule(order, start, batch[0, :b], batch[1, :b], batch[2, :b])


def _late(types, first, args, n_types, batch_type):
    """Return the batches of a schedule without those that get empty when every node runs as late as it can."""
    level = np.empty(types.size, UNSIGNED)
    _find_late(types, first, args, batch_type, np.zeros(n_types + 2, UNSIGNED), np.empty(batch_type.size, UNSIGNED), level)
    return _by_level(types, level, n_types)


def _by_queue(types, first, args, weight, by_size, place, level):
    """Return the batches found by `_run_queues`."""
    n, n_types = types.size, weight.size
    order = np.empty(n, SIGNED)
    start = np.zeros(n_types + 1, SIGNED)
    batch = np.empty((3, n), SIGNED)
    lists = _scratch("lists", 4 * n_types + 2 * n + 1 + args.size)
    best = np.zeros(4 * n_types + 2)
    b = _run_queues(types, first, args, weight, by_size, place, level, lists, best, order, start, batch)
    return Schedule(order, start, batch[0, :b], batch[1, :b], batch[2, :b])


class _Scratch(threading.local):
    """Arrays that the calling thread uses again and again: fresh memory costs more than what is done with it."""

    def __init__(self):
        self.arrays = {}


_SCRATCH = _Scratch()


def _scratch(name, size):
    """Return an array of `size` arbitrary numbers, valid until the next call of the same name."""
    array = _SCRATCH.arrays.get(name)
    if array is None or array.size < size:
        array = _SCRATCH.arrays[name] = np.empty(max(size, 1024), UNSIGNED)
    return array[:size]


def _n_batches(schedule):
    return schedule.batch_type.size


# Passes over the nodes ------------------------------------------------------------------------------------------------


@compiled
def _legal(types, first, args, n_types):
    """Return whether every type and every argument is in range."""
    for i in range(types.size):
        if types[i] >= n_types or first[i] > first[i + 1] or first[i + 1] > args.size:
            return False
        for e in range(first[i], first[i + 1]):
            if args[e] >= i:
                return False
    return True


@compiled
def _find_depths(types, first, args, depth, mean, size):
    """Fill `depth` and `mean`; `size` is scratch."""
    for i in range(types.size):
        d = np.uint32(0)
        for e in range(first[i], first[i + 1]):
            d = max(d, depth[args[e]])
        depth[i] = d + ONE
        mean[types[i]] += d + ONE
        size[types[i]] += 1
    for t in range(size.size):
        mean[t] /= max(size[t], 1)


@compiled
def _find_slots(types, first, args, joins, column, slot):
    """Fill `column` (T,) and `slot` (n,), the first slot of the node's instance; return the numbers of columns and slots.

    Slots are a table of instances and columns. A type has a column if its nodes may follow each other: if there are two of
    them and some have arguments. `column` comes as zeros and holds 2 * nodes + (some have arguments) on the way.
    """
    # Union-find: an instance is known by its first node; paths are halved when they are walked.
    for i in range(types.size):
        t = types[i]
        root = np.uint32(i)
        column[t] += 2
        for e in range(first[i], first[i + 1]):
            column[t] |= 1
            a = args[e]
            while slot[a] != a:
                slot[a] = slot[slot[a]]
                a = slot[a]
            slot[max(a, root)] = min(a, root)
            root = min(a, root)
            if joins[t]:
                break
        slot[i] = root
    n_columns = np.uint32(0)
    for t in range(column.size):
        if column[t] > 3 and column[t] & 1 and n_columns < COLUMNS:
            column[t] = n_columns
            n_columns += ONE
        else:
            column[t] = NO_COLUMN
    # The first node comes first: one pass replaces the names of instances by slots.
    instances = np.uint32(0)
    for i in range(types.size):
        if slot[i] == i:
            slot[i] = instances % INSTANCES * n_columns
            instances += ONE
        else:
            slot[i] = slot[slot[i]]
    return n_columns, min(instances, INSTANCES) * n_columns


@compiled
def _find_levels(types, first, args, joins, column, n_columns, slot, own, rows, longest, place, level, frontier):
    """Fill `place` (n,), `level` and `frontier` (T,); return the longest chain within an instance, summed over types.

    A *level* holds the nodes of one type, instance and typed depth that have not run. `place` tells the level of a node:

        level    | none | typed depth 1, 2, ... in slot 0 | -1 | typed depth 1, 2, ... in slot 1 | -1 | ...

    and the number there is twice the number of nodes, plus one for a level of least typed depth, part of a frontier. Nodes
    of types without a column are all in the first level, which always counts: their frontier is all that has not run.
    """
    # Typed depths. A row holds the longest chain of each column that ends in a node: the largest of the arguments' chains,
    # plus one for the node itself. Adding `own` as a row, rather than one to one number, takes 8.7 ns instead of 10.7: the
    # next node reads the row at once, and cannot until a store to a part of it has reached the cache.
    width = own.shape[1]
    for block in range(0, n_columns, width):
        for i in range(types.size):
            row = rows[i]
            t = types[i]
            c = column[t] - block if block <= column[t] < block + width else width
            one = own[c]
            stop = min(first[i] + ONE, first[i + 1]) if joins[t] else first[i + 1]
            for k in range(width):
                row[k] = one[k]
            for e in range(first[i], stop):
                other = rows[args[e]]
                for k in range(width):
                    row[k] = max(row[k], other[k] + one[k])
            if c < width:
                place[i] = row[c]
                s = slot[i] + column[t]
                longest[s] = max(longest[s], row[c])
    bound = np.int64(0)
    for t in range(column.size):
        if column[t] != NO_COLUMN:
            chain = np.uint32(0)
            for s in range(column[t], longest.size, n_columns):
                chain = max(chain, longest[s])
            bound += np.int64(chain)
    # From typed depths to places.
    end = np.uint32(0)
    for s in range(longest.size):
        level[end] = -1
        base = end
        end += longest[s] + ONE
        longest[s] = base
    level[end] = -1
    level[0] = 2 * types.size + 3
    for i in range(types.size):
        if place[i]:
            place[i] += longest[slot[i] + column[types[i]]]
            level[place[i]] += 2
        else:
            frontier[types[i]] += 1
    for t in range(column.size):
        if column[t] == NO_COLUMN:
            bound += frontier[t] > 0
        else:
            for s in range(column[t], longest.size, n_columns):
                k = longest[s] + ONE
                while level[k] == 0:
                    k += ONE
                if level[k] > 0:
                    frontier[t] += level[k] >> 1
                    level[k] += 1
    return bound


@compiled
def _find_late(types, first, args, batch_type, start, batches, level):
    """Fill `level` (n,) with the last batch of its type that a node can run in, counted from 1, given the types of batches."""
    for b in range(batch_type.size):
        start[batch_type[b] + 2] += ONE
    for t in range(start.size - 1):
        start[t + 1] += start[t]
    for b in range(batch_type.size):
        k = start[batch_type[b] + 1]
        start[batch_type[b] + 1] = k + ONE
        batches[k] = b + 1
    for i in range(types.size):
        level[i] = batch_type.size + 1
    for i in range(types.size - 1, -1, -1):
        low, high = start[types[i]], start[types[i] + ONE]
        while high - low > 1:
            middle = (low + high) >> 1
            if batches[middle] < level[i]:
                low = middle
            else:
                high = middle
        level[i] = batches[low]
        for e in range(first[i], first[i + 1]):
            level[args[e]] = min(level[args[e]], level[i])


# Batches --------------------------------------------------------------------------------------------------------------


@compiled
def _run_levels(types, level, sequence, place, at, order, start, batch):
    """Fill `order`, `start` and `batch` (3, n) by levels 1..n+1; return the number of batches."""
    n = types.size
    for i in range(n):
        start[types[i] + ONE] += 1
        place[level[i] + ONE] += ONE
    for t in range(start.size - 1):
        start[t + 1] += start[t]
        at[0, t] = start[t]
    for k in range(n + 1):
        place[k + 1] += place[k]
    for i in range(n):
        k = place[level[i]]
        place[level[i]] = k + ONE
        sequence[k] = i
    tail, newest, reached = at[0], at[1], at[2]
    b = 0
    for i in sequence:
        t = types[i]
        if reached[t] != level[i]:
            reached[t] = level[i]
            newest[t] = b
            batch[0, b] = t
            batch[1, b] = tail[t]
            b += 1
        order[tail[t]] = i
        tail[t] += ONE
        batch[2, newest[t]] = tail[t]
    return b


@compiled
def _run_queues(types, first, args, weight, by_size, place, level, lists, best, order, start, batch):
    """Fill `order`, `start` and `batch` (3, n) by priority; return the number of batches.

    The priority of a type is (ready nodes if `by_size` else 1) / weight. The weight changes with `level`, see
    `_find_levels`, where a number is odd.
    """
    n, n_types = types.size, weight.size
    head, tail = lists[:n_types], lists[n_types : 2 * n_types]
    touched, stamp = lists[2 * n_types : 3 * n_types], lists[3 * n_types : 4 * n_types]
    waits, consumers = lists[4 * n_types : 4 * n_types + n], lists[4 * n_types + n : 4 * n_types + 2 * n + 1]
    consumer = lists[4 * n_types + 2 * n + 1 :]

    # Consumers of node i, in the order of creation: consumer[consumers[i]:consumers[i + 1]].
    for i in range(n + 1):
        consumers[i] = 0
    for i in range(n):
        start[types[i] + ONE] += 1
        for e in range(first[i], first[i + 1]):
            consumers[args[e]] += ONE
    for i in range(n):
        consumers[i + 1] += consumers[i]
    for i in range(n - 1, -1, -1):
        waits[i] = first[i + 1] - first[i]
        for e in range(first[i], first[i + 1]):
            k = consumers[args[e]] - ONE
            consumers[args[e]] = k
            consumer[k] = i

    n_touched = n_types
    for t in range(n_types):
        start[t + 1] += start[t]
        head[t] = start[t]
        tail[t] = start[t]
        touched[t] = t
        stamp[t] = 0
    for i in range(n):
        if waits[i] == 0:
            order[tail[types[i]]] = i
            tail[types[i]] += ONE

    # `best` is a tournament of the types: leaves hold priorities, a node above holds the larger of the two below it.
    leaves = 1
    while leaves < n_types:
        leaves *= 2
    b = 0
    while True:
        for j in range(n_touched):
            t = touched[j]
            ready = tail[t] - head[t]
            k = leaves + t
            best[k] = (ready if by_size else min(ready, 1)) / weight[t] if ready else 0.0
            while k > 1:
                k >>= 1
                best[k] = max(best[2 * k], best[2 * k + 1])
        if best[1] == 0:
            return b
        k = 1
        while k < leaves:
            k *= 2
            if best[k] != best[1]:
                k += 1
        t = k - leaves
        begin, end = head[t], tail[t]
        head[t] = end
        batch[0, b] = t
        batch[1, b] = begin
        batch[2, b] = end
        b += 1
        touched[0] = t
        stamp[t] = b
        n_touched = 1
        w = weight[t]
        for p in range(begin, end):
            i = np.uint32(order[p])
            for e in range(consumers[i], consumers[i + ONE]):
                c = consumer[e]
                left = waits[c] - ONE
                waits[c] = left
                if left == 0:
                    u = types[c]
                    order[tail[u]] = c
                    tail[u] += ONE
                    if stamp[u] != b:
                        stamp[u] = b
                        touched[n_touched] = u
                        n_touched += 1
            k = place[i]
            left = level[k] - 2
            level[k] = left
            if left & 1:
                w -= 1
                if left == 1:
                    k += ONE
                    while level[k] == 0:
                        k += ONE
                    if level[k] > 0:
                        w += level[k] >> 1
                        level[k] += 1
        weight[t] = w

"""Where values lie in a graph for inference, whose memory is used again and again."""

from autobatch.frame import FIELDS, over_frame
from autobatch.graph import (
    ARGUMENTS,
    BACK,
    ELEMENTS,
    IMMEDIATES,
    OPERAND_COLUMNS,
    OPERANDS,
    READS,
    RECORDED,
    SIZE,
    TYPE_COLUMNS,
)
from autobatch.kernels._jit import SLOTS, integers
from autobatch.kernels._op import DENSE
from autobatch.plan.values import make_places
from autobatch.plan.words import ROWS_WORDS, aligned

HOLES = 1024  # free pieces between blocks that are remembered

# Fields that passes of this file write.
_BATCH_AT = FIELDS["batch_at"]


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
    make_places(frame, n_types, n_batches, room)
    batch_at = integers(frame[_BATCH_AT])
    words, lists, copies, next_ = 0, 0, 0, n_batches
    for b in range(n_batches):
        t, n, width = present[batch_type[b]] * TYPE_COLUMNS, batch_end[b] - batch_begin[b], 0
        for p in range(batch_begin[b], batch_end[b]):
            batch_of[order[p]] = b
        last[b] = -1
        released[b] = released[next_ + b] = -1
        words += SLOTS + 2 * (1 + info[t + ARGUMENTS] + info[t + IMMEDIATES]) + ROWS_WORDS * info[t + ARGUMENTS]
        lists += n * (info[t + ARGUMENTS] + info[t + IMMEDIATES])
        for k in range(info[t + ARGUMENTS]):
            o = (info[t + OPERANDS] + k) * OPERAND_COLUMNS
            if operands[o + READS] == DENSE:
                width += aligned(n * operands[o + ELEMENTS] * itemsize)
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
            stays += aligned((batch_end[b] - batch_begin[b]) * info[t + SIZE] * itemsize)
        else:
            released[next_ + b] = released[last[b]]
            released[last[b]] = b
    top, end, count = stays, stays, 0
    for b in range(n_batches):
        t = present[batch_type[b]] * TYPE_COLUMNS
        if last[b] != n_batches:
            size = aligned((batch_end[b] - batch_begin[b]) * info[t + SIZE] * itemsize)
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
            stop = start + aligned((batch_end[freed] - batch_begin[freed]) * info[t + SIZE] * itemsize)
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

"""Schedules: the laws every policy keeps, each policy against its obvious form, and the cost of large graphs."""

import sys
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autobatch.schedule as module
from autobatch.kernels._errors import ArgumentError, InternalError
from autobatch.schedule import POLICIES, Schedule, lower_bound, schedule


class Segment:
    """A segment under construction: ``segment(label, *arguments)`` records a node and returns its number."""

    def __init__(self, joins=()):
        self.labels, self.types, self.arguments, self.joins = {}, [], [], joins

    def __call__(self, label, *arguments):
        self.types.append(self.labels.setdefault(label, len(self.labels)))
        self.arguments.append(arguments)
        return len(self.types) - 1

    def arrays(self):
        first = np.cumsum([0, *map(len, self.arguments)])
        args = [a for arguments in self.arguments for a in arguments]
        joins = np.array([label in self.joins for label in self.labels], bool)
        return np.array(self.types, np.int32), first.astype(np.int32), np.array(args, np.int32), len(self.labels), joins


@st.composite
def segments(draw):
    """Any typed graph of up to 60 nodes; distances of arguments, so that graphs shrink to small ones."""
    nodes = draw(st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(1, 12), max_size=3)), max_size=60))
    segment = Segment(joins=draw(st.sets(st.integers(0, 6), max_size=2)))
    for i, (label, distances) in enumerate(nodes):
        segment(label, *(i - d for d in distances if d <= i))
    return segment


def batches(result):
    return [result.order[i:j].tolist() for i, j in zip(result.batch_begin, result.batch_end, strict=True)]


def counts(segment):
    return {policy: len(schedule(policy, *segment.arrays()).batch_type) for policy in POLICIES}


def bound(segment):
    return lower_bound(*segment.arrays()[:4])


# Each policy in its obvious form --------------------------------------------------------------------------------------


def naive_depth(segment):
    depth = []
    for arguments in segment.arguments:
        depth.append(1 + max((depth[a] for a in arguments), default=0))
    return depth


def naive_by_level(segment, level):
    groups = {}
    for i, t in enumerate(segment.types):
        groups.setdefault((level[i], t), []).append(i)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], groups[key][0]))]


def naive_connections(segment):
    """Arguments that make their node part of an instance: all, of joining types the first."""
    joining = [label in segment.joins for label in segment.labels]
    return [a[:1] if joining[t] else a for t, a in zip(segment.types, segment.arguments, strict=True)]


def naive_instances(segment):
    instance = list(range(len(segment.types)))
    for i, arguments in enumerate(naive_connections(segment)):
        for a in arguments:
            old, new = instance[i], instance[a]
            instance = [new if x == old else x for x in instance]
    return instance


def naive_typed_depth(arguments, types):
    chains, typed = [], []
    for i, t in enumerate(types):
        chain = {u: max((chains[a].get(u, 0) for a in arguments[i]), default=0) for u in set(types)}
        chain[t] += 1
        chains.append(chain)
        typed.append(chain[t])
    return typed


def naive_by_priority(segment, priority):
    waits = [len(a) for a in segment.arguments]
    queues = {t: [] for t in range(len(segment.labels))}
    for i, w in enumerate(waits):
        if w == 0:
            queues[segment.types[i]].append(i)
    result, left = [], set(range(len(waits)))
    while left:
        t = max((t for t in queues if queues[t]), key=lambda t: (priority(t, queues[t], left), -t))
        batch, queues[t] = queues[t], []
        left -= set(batch)
        result.append(batch)
        for i in batch:
            for c, arguments in enumerate(segment.arguments):
                if i in arguments:
                    waits[c] -= arguments.count(i)
                    if waits[c] == 0:
                        queues[segment.types[c]].append(c)
    return result


def naive_late(segment, result):
    level = [len(result)] * len(segment.types)
    for i in reversed(range(len(level))):
        level[i] = max(b for b in range(level[i]) if segment.types[result[b][0]] == segment.types[i])
        for a in segment.arguments[i]:
            level[a] = min(level[a], level[i])
    return naive_by_level(segment, level)


def naive_ratio_alone(segment):
    """Batches by ratio, and the longest chains within an instance summed over types."""
    connections, instance = naive_connections(segment), naive_instances(segment)
    typed = naive_typed_depth(connections, segment.types)

    def priority(t, ready, left):
        frontier = 0
        for x in set(instance):
            depths = [typed[i] for i in left if segment.types[i] == t and instance[i] == x]
            frontier += depths.count(min(depths, default=0))
        return Fraction(len(ready), frontier)

    longest = sum(max(d for d, u in zip(typed, segment.types, strict=True) if u == t) for t in set(segment.types))
    return naive_by_priority(segment, priority), longest


def naive_ratio(segment):
    result, longest = naive_ratio_alone(segment)
    if len(result) > longest:
        result = min(result, naive_by_level(segment, naive_depth(segment)), key=len)
        result = min(result, naive_late(segment, result), key=len)
    return result


def naive_agenda(segment):
    depth = naive_depth(segment)
    of_type = {t: [d for d, u in zip(depth, segment.types, strict=True) if u == t] for t in segment.types}
    return naive_by_priority(segment, lambda t, ready, left: -Fraction(sum(of_type[t]), len(of_type[t])))


NAIVE = {
    "none": lambda segment: [[i] for i in range(len(segment.types))],
    "depth": lambda segment: naive_by_level(segment, naive_depth(segment)),
    "agenda": naive_agenda,
    "ratio": naive_ratio,
}


# Laws -----------------------------------------------------------------------------------------------------------------


def check(result, types, first, args, n_types):
    """Each node once, after its arguments, with nodes of its type only; regions of `order` are filled batch by batch."""
    assert all(x.dtype == np.int32 for x in result)
    assert np.array_equal(np.sort(result.order), np.arange(types.size))
    assert np.array_equal(result.type_start, np.cumsum([0, *np.bincount(types, minlength=n_types)]))
    assert np.array_equal(types[result.order], np.repeat(np.arange(n_types), np.diff(result.type_start)))
    at = np.argsort(result.batch_begin)
    assert np.all(result.batch_begin < result.batch_end)
    assert np.array_equal(result.batch_end[at], np.append(result.batch_begin[at][1:], types.size))
    assert np.array_equal(result.batch_type, types[result.order[result.batch_begin]])
    for t in range(n_types) if n_types < 50 else ():
        assert np.all(np.diff(result.batch_begin[result.batch_type == t]) > 0)
    when = np.empty(types.size, int)
    when[result.order] = np.repeat(at, np.diff(np.append(result.batch_begin[at], types.size)))
    assert np.all(when[args] < np.repeat(when, np.diff(first)))


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None)  # the first call compiles
@given(segment=segments())
def test_laws(policy, segment):
    types, first, args, n_types, joins = segment.arrays()
    before = [x.copy() for x in (types, first, args, joins)]
    result = schedule(policy, types, first, args, n_types, joins)
    if types.size:
        check(result, types, first, args, n_types)
    assert lower_bound(types, first, args, n_types) <= result.batch_type.size <= types.size
    again = schedule(policy, types, first, args, n_types, joins.view(np.uint8))
    assert all(np.array_equal(x, y) for x, y in zip(result, again, strict=True))
    assert all(np.array_equal(x, y) for x, y in zip((types, first, args, joins), before, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None)
@given(segment=segments())
def test_same_batches_as_the_obvious_form(policy, segment):
    assert batches(schedule(policy, *segment.arrays())) == NAIVE[policy](segment)


@settings(deadline=None)
@given(segment=segments())
def test_lower_bound_is_the_sum_of_the_longest_chains(segment):
    typed = naive_typed_depth(segment.arguments, segment.types)
    longest = {}
    for t, d in zip(segment.types, typed, strict=True):
        longest[t] = max(longest.get(t, 0), d)
    assert bound(segment) == sum(longest.values())


@settings(deadline=None)
@given(segment=segments())
def test_ratio_needs_no_more_batches_than_depth(segment):
    n = counts(segment)
    assert n["ratio"] <= n["depth"]


# Small graphs ---------------------------------------------------------------------------------------------------------


def record_tree(segment, tree, losses):
    """Record the cells of a tree of nested pairs, with a loss at each."""
    if tree == "leaf":
        node = segment("leaf")
    else:
        node = segment("inner", *[record_tree(segment, child, losses) for child in tree])
    losses.append(segment("loss", segment("scores", node)))
    return node


def trees(*many):
    segment = Segment(joins=("sum",))
    sums = []
    for tree in many:
        losses = []
        record_tree(segment, tree, losses)
        sums.append(segment("sum", *losses))
    segment("total", *sums)
    return segment


PAIR = ("leaf", "leaf")
CHAIN = (((PAIR, "leaf"), "leaf"), "leaf")


def test_losses_at_the_nodes_of_trees_wait_for_the_whole_tree():
    # Bound: 1 leaf, 4 inner, 1 scores, 1 loss, 1 sum, 1 total. By depth, scores run after each inner level.
    segment = trees(CHAIN, (PAIR, PAIR), "leaf", (PAIR, "leaf"))
    assert bound(segment) == 9
    assert counts(segment) == {"none": 71, "depth": 19, "agenda": 13, "ratio": 9}


def test_taggers_of_different_lengths_run_in_step():
    segment = Segment(joins=("sum",))
    for length in (2, 5, 3):
        states = {"forward": [], "backward": []}
        for name, chain in states.items():
            for _ in range(length):
                chain.append(segment(name, *chain[-1:]))
        both = zip(states["forward"], reversed(states["backward"]), strict=True)
        segment("sum", *[segment("loss", f, b) for f, b in both])
    assert bound(segment) == 12
    assert counts(segment) == {"none": 33, "depth": 17, "agenda": 12, "ratio": 12}


def words(*many, joins=None):
    """Chains of one node a letter; with `joins`, a sum over all of them as well, of a type that joins or not."""
    segment = Segment(joins=("sum",) if joins else ())
    ends = []
    for word in many:
        state = segment("start")
        for letter in word:
            state = segment(letter, state)
        ends.append(state)
    if joins is not None:
        segment("sum", *ends)
    return segment


def test_a_sum_over_instances_does_not_make_them_one():
    # As one instance, the chains would have one frontier: the last "a" of "aca" would not count beside the first of "ab".
    segment = words("aca", "ab", "ba", joins=True)
    assert bound(segment) == 6
    assert counts(segment)["ratio"] == 6
    assert counts(words("aca", "ab", "ba", joins=False))["ratio"] == 7


def test_nodes_move_to_later_batches_where_ratio_is_above_the_bound():
    # After the starts, half of the frontier of "c" is ready and half of that of "b". "c" appeared first, so it runs, and then
    # "b", "c", "b". Moved, "cb" runs together with the end of "bcb", and the first batch of "c" is left empty.
    segment = words("cb", "bcb")
    assert [len(naive_ratio_alone(segment)[0]), counts(segment)["ratio"], bound(segment)] == [5, 4, 4]
    assert counts(segment)["depth"] == 6


def test_consumers_queue_in_the_order_of_their_arguments():
    segment = Segment()
    leaves = [segment("leaf") for _ in range(4)]
    for leaf in (2, 0, 3, 1):
        segment("next", leaves[leaf])
    assert batches(schedule("ratio", *segment.arrays())) == [[0, 1, 2, 3], [5, 7, 4, 6]]


def test_an_argument_may_occur_twice():
    segment = Segment()
    x = segment("x")
    segment("square", x, x)
    for policy in POLICIES:
        assert batches(schedule(policy, *segment.arrays())) == [[0], [1]]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n_types", [0, 3])
def test_no_nodes(policy, n_types):
    nothing = np.zeros(0, np.int32)
    result = schedule(policy, nothing, np.zeros(1, np.int32), nothing, n_types, np.zeros(n_types, bool))
    assert isinstance(result, Schedule)
    assert [x.size for x in result] == [0, n_types + 1, 0, 0, 0]
    assert lower_bound(nothing, np.zeros(1, np.int32), nothing, n_types) == 0


# Errors ---------------------------------------------------------------------------------------------------------------


def test_unknown_policy():
    with pytest.raises(ArgumentError) as error:
        schedule("fold", *Segment().arrays())
    assert str(error.value) == ("schedule: unknown policy\n  got       'fold'\n  expected  one of none, depth, agenda, ratio")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("types", "first", "args"),
    [
        ([0, 2], [0, 0, 1], [0]),  # a type that does not exist
        ([0, -1], [0, 0, 1], [0]),
        ([0, 1], [0, 0, 1], [1]),  # an argument that comes too late
        ([0, 1], [0, 0, 1], [-1]),
        ([0, 1], [0, 0, 2], [0]),  # more arguments than there are
        ([0, 1], [0, 1, 0], [0]),
        ([0, 1], [0, 1], [0]),  # a node without a start
    ],
)
def test_broken_promises_are_found(policy, types, first, args):
    with pytest.raises(InternalError, match="out of range"):
        schedule(policy, *(np.array(x, np.int32) for x in (types, first, args)), 2, np.zeros(2, bool))


def test_wide_integers_are_found():
    types, first, args, n_types, joins = trees(CHAIN).arrays()
    with pytest.raises(InternalError):
        schedule("ratio", types.astype(np.int64), first, args, n_types, joins)
    with pytest.raises(InternalError, match="joins"):
        schedule("ratio", types, first, args, n_types, joins[1:])


# Large graphs ---------------------------------------------------------------------------------------------------------


def chain(n, n_types=1):
    first = np.maximum(np.arange(n + 1) - 1, 0)
    types = np.arange(n) % n_types
    return types.astype(np.int32), first.astype(np.int32), np.arange(n - 1, dtype=np.int32), n_types, np.zeros(n_types, bool)


def repeated(segment, times):
    types, first, args, n_types, joins = segment.arrays()
    shift = np.arange(times)[:, None]
    args = (args + types.size * shift).ravel().astype(np.int32)
    first = np.append((first[:-1] + first[-1] * shift).ravel(), args.size).astype(np.int32)
    return np.tile(types, times), first, args, n_types, joins


@pytest.mark.parametrize("policy", POLICIES)
def test_long_chains(policy):
    graph = chain(100_000, 3)
    result = schedule(policy, *graph)
    check(result, *graph[:4])
    assert result.batch_type.size == lower_bound(*graph[:4]) == 100_000


@pytest.mark.parametrize("policy", POLICIES)
def test_a_million_nodes(policy):
    segment = trees(CHAIN, (PAIR, PAIR), "leaf", (PAIR, "leaf"))
    graph = repeated(segment, 1_000_000 // 71)
    result = schedule(policy, *graph)
    check(result, *graph[:4])
    assert result.batch_type.size == (graph[0].size if policy == "none" else counts(segment)[policy])


@pytest.mark.parametrize("policy", POLICIES)
def test_more_types_and_instances_than_the_table_has_room_for(policy):
    segment = Segment()
    for instance in range(400):
        state = segment("start")
        for step in range(5):
            state = segment(f"step {instance // 2} {step % 3}", state)
    graph = segment.arrays()
    result = schedule(policy, *graph)
    check(result, *graph[:4])
    if policy != "none":
        assert result.batch_type.size == lower_bound(*graph[:4]) == 1 + 200 * 5


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("n_types", [1, 40, 50_000])
def test_memory_is_linear_in_nodes(policy, n_types):
    graph = chain(100_000, n_types)
    schedule(policy, *graph)  # the first call of a process brings its compiled code along
    tracemalloc.start()
    try:
        schedule(policy, *graph)
        assert tracemalloc.get_traced_memory()[1] < 200 * 100_000
    finally:
        tracemalloc.stop()


def steps(policy, graph, monkeypatch):
    """Count the lines of the module that run, with its compiled functions as plain Python."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_filename != module.__file__:
            return None
        lines += event == "line"
        return trace

    with monkeypatch.context() as patch:
        patch.setattr(module, "COLUMNS", np.uint32(32))
        for name, function in vars(module).copy().items():
            patch.setattr(module, name, getattr(function, "py_func", function))
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            schedule(policy, *graph)
        finally:
            sys.settrace(before)
    return lines


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["chain", "many types", "trees", "words"])
def test_work_is_linear_in_nodes(policy, kind, monkeypatch):
    make = {
        "chain": lambda k: chain(50 * k),
        "many types": lambda k: chain(100 * k, 50 * k),
        "trees": lambda k: repeated(trees(CHAIN, PAIR), 2 * k),
        "words": lambda k: repeated(words("abcabcab", "cbaacb", "bbacac"), 2 * k),
    }[kind]
    small, large = (steps(policy, make(k), monkeypatch) for k in (1, 4))
    assert large < 4.6 * small


# Pieces ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=200)
@given(segments(), st.integers(1, 4), st.integers(1, 30))
def test_pieces_are_a_schedule_of_the_same_nodes(policy, segment, piece, weight):
    types, first, args, n_types, joins = segment.arrays()
    before = schedule(policy, types, first, args, n_types, joins)
    kept = [a.copy() for a in before]
    sizes = np.arange(1, n_types + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        patch.setattr(module, "WEIGHT", weight)
        after = module.in_pieces(before, first, args, sizes)
    assert all(np.array_equal(a, b) for a, b in zip(before, kept, strict=True))
    ran = set()
    for batch, t in zip(batches(after), after.batch_type, strict=True):
        assert batch
        assert all(types[i] == t and i not in ran and set(args[first[i] : first[i + 1]]) <= ran for i in batch)
        ran.update(batch)
    assert len(ran) == types.size
    assert np.array_equal(np.sort(after.batch_begin), np.unique(after.batch_begin))


def test_batches_that_feed_one_another_take_turns():
    segment = Segment()
    for label in ("product", "sum", "loss"):
        for k in range(8):
            segment(label, *([] if label == "product" else [len(segment.types) - 8 if label == "sum" else 15 - k]))
    types, first, args, n_types, joins = segment.arrays()
    before = schedule("depth", types, first, args, n_types, joins)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", 2)
        patch.setattr(module, "WEIGHT", 4)
        after = module.in_pieces(before, first, args, np.ones(3, np.int64))
    assert batches(after)[:6] == [[7, 6], [15, 14], [16, 17], [5, 4], [13, 12], [18, 19]]


# Schedules seen before ------------------------------------------------------------------------------------------------


def chains(lengths):
    segment = Segment()
    for n in lengths:
        last = segment("word")
        for _ in range(n):
            last = segment("step", last)
        segment("loss", last)
    return segment


@pytest.fixture
def nothing_seen():
    module.forget()


def asked(policy, segment):
    types, first, args, n_types, joins = segment.arrays()
    return module.recalled(policy, types, first, args, n_types, joins.astype(np.uint8))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_graph_is_scheduled_once(policy, nothing_seen):
    lengths = [20, 30, 40, 50]
    result = asked(policy, chains(lengths))
    assert asked(policy, chains(lengths)) is result
    assert batches(result) == batches(schedule(policy, *chains(lengths).arrays()))
    for other in (lengths[::-1], [*lengths[:-1], 51]):
        assert batches(asked(policy, chains(other))) == batches(schedule(policy, *chains(other).arrays()))


def test_joins_and_policies_are_told_apart(nothing_seen):
    segment = chains([60, 80])
    segment("sum", *[i for i, t in enumerate(segment.types) if t == segment.labels["loss"]])
    plain = asked("ratio", segment)
    segment.joins = {"sum"}
    assert asked("ratio", segment) is not plain
    assert asked("none", segment).batch_type.size == len(segment.types)


def test_graphs_of_one_digest_are_told_apart(nothing_seen, monkeypatch):
    monkeypatch.setattr(module, "_digest", lambda *arrays: 1)
    for lengths in ([60, 80], [80, 60], [60, 80], [70, 70]):
        assert batches(asked("ratio", chains(lengths))) == batches(schedule("ratio", *chains(lengths).arrays()))
    assert module._SEEN.nodes == len(chains([70, 70]).types)


def test_little_is_remembered(nothing_seen, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 2000)
    graphs = [chains([100 + k, 100]) for k in range(30)]
    for segment in graphs:
        asked("ratio", segment)
        assert module._SEEN.nodes == sum(key[1] for key in module._SEEN.schedules) <= 2000
    last = asked("ratio", graphs[-1])
    assert asked("ratio", graphs[-1]) is last
    asked("ratio", chains([2000]))  # too large to be kept
    assert module._SEEN.nodes <= 2000

"""Steps of recurrent networks in bulk: what one step of a builder records is learned, and then repeated without recording.

The first steps in a graph are recorded one by one, as by `add_input`. From what they left behind follows a *pattern*: types of
nodes, and for each entry of their arguments what it is

    SAME     the same at every step: a parameter, a mask, a number
    INPUT    the input of the step
    OWN      a node of this step, by its position in the step
    STATE    a part of the state before: h or c of some layer
    IMMEDIATE  an integer that names no node

The very first step may differ from all others, for it has no state before. All further steps of a graph with the same
builder and inputs of the same shape are a `Chain`: a few numbers, written out when the graph is run. A builder whose steps are not
all alike (one that draws a random mask for each) has no pattern, and is recorded step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from autobatch.expression import Expression
from autobatch.graph import ARGUMENTS, IMMEDIATES, TYPES, Graph
from autobatch.kernels._jit import compiled, int32s
from autobatch.kernels._op import Shape

SAME, INPUT, OWN, STATE, IMMEDIATE = range(5)
LEARNED = 3  # steps that are recorded one by one, to see how the others look
_new = object.__new__


class Pattern:
    """What a step records, with positions counted from the step's first node.

    Parameters
    ----------
    types : of the nodes.
    entries : int32 (2, entries), what each is, and its value.
    states : int32, where the parts of the state lie after the step.
    output : where the output lies.
    """

    __slots__ = ("count", "entries", "output", "states", "types", "words")

    def __init__(self, types: list[int], entries: np.ndarray, states: np.ndarray, output: int) -> None:
        self.types, self.entries, self.states, self.output = types, entries, states, output
        self.count = entries.shape[1]
        self.words = entries.ctypes.data, states.ctypes.data, self.count, len(types)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern) or (self.types, self.output) != (other.types, other.output):
            return False
        return np.array_equal(self.entries, other.entries) and np.array_equal(self.states, other.states)

    __hash__ = None  # type: ignore[assignment]


class Chain:
    """The entries of consecutive steps of one sequence: a piece of a graph's arguments."""

    __slots__ = ("base", "count", "first", "given", "rest", "xs")

    def __init__(self, first: Pattern, rest: Pattern, base: int, xs: Sequence[int], given: Sequence[int]) -> None:
        self.first, self.rest, self.base, self.xs, self.given = first, rest, base, xs, given
        self.count = first.count + (len(xs) - 1) * rest.count

    @staticmethod
    def write_all(out: np.ndarray, pieces: list[tuple[int, Chain]]) -> None:
        """Write all chains into an int32 array; each comes with the place where it begins."""
        words: list[int] = []
        nodes: list[int] = []
        for at, chain in pieces:
            words += (at, chain.base, len(nodes), len(chain.xs), len(chain.given), *chain.first.words, *chain.rest.words)
            nodes += chain.xs
            nodes += chain.given
        _write(out, np.array(words, np.int64), np.array(nodes, np.int32))


_WORDS = 13  # of a chain: place, first node, place of its inputs and how many, parts of its state, both patterns


@compiled
def _write(out, words, nodes):
    """Write the entries of all chains."""
    for c in range(0, words.size, _WORDS):
        at, base, xs, n = words[c], words[c + 1], words[c + 2], words[c + 3]
        given = xs + n
        before = 0  # first node of the step before
        for k in range(n):
            pattern = c + 5 if k == 0 else c + 9
            entries, count = int32s(words[pattern]), words[pattern + 2]
            states = int32s(words[c + 6 if k == 1 else c + 10])
            for e in range(count):
                kind, value = entries[e], entries[count + e]
                if kind == INPUT:
                    out[at] = nodes[xs + k]
                elif kind == OWN:
                    out[at] = value + base
                elif kind == STATE:
                    out[at] = nodes[given + value] if k == 0 else before + states[value]
                else:
                    out[at] = value
                at += 1
            before = base
            base += words[pattern + 3]


class Steps(NamedTuple):
    """How a builder's steps look in one graph: the first one, where it has no state before it, and all others."""

    first: Pattern | None
    rest: Pattern


def learn(graph: Graph, state: Any, xs: Sequence[Expression]) -> tuple[Steps | None, list[Any]]:
    """Record the first three steps one by one; return their pattern, None if there is none, and the states after them."""
    marks: list[tuple[int, int]] = []
    states: list[Any] = []
    pieces = len(graph.pieces)
    batch = TYPES.records[xs[0].type].shape.batch
    state._builder._masks(graph, batch)  # what the first step of a graph would make for all of them
    state._builder._zero(batch)
    before = state
    for x in xs[:LEARNED]:
        marks.append((len(graph.recorded_types), len(graph.recorded_args)))
        states.append((states[-1] if states else before).add_input(x))
    marks.append((len(graph.recorded_types), len(graph.recorded_args)))
    if len(graph.pieces) != pieces:
        return None, states
    found = [_pattern(graph, marks[k], marks[k + 1], xs[k].index, states[k - 1] if k else state, states[k]) for k in range(3)]
    first, second, third = found
    if third is None or second != third:
        return None, states
    same = third.entries[1][third.entries[0] == SAME]
    if not state._h and (first is None or xs[0].index in same):
        return None, states
    return Steps(first, third), states


def _parts(state: Any) -> list[int]:
    return [e.index for e in (*state._c, *state._h)]


def _pattern(graph: Graph, start: tuple[int, int], end: tuple[int, int], x: int, before: Any, after: Any) -> Pattern | None:
    """Return the pattern of one step, None if it cannot be told what is what."""
    base, at = start
    parts = {index: k for k, index in enumerate(_parts(before))}
    if x in parts or x in graph.zeros.values():
        return None
    types = graph.recorded_types[base : end[0]]
    entries = []
    for number in types:
        arguments = int(TYPES.info[number, ARGUMENTS])
        for k in range(arguments + int(TYPES.info[number, IMMEDIATES])):
            value = graph.recorded_args[at]
            at += 1
            if k >= arguments:
                entries.append((IMMEDIATE, value))
            elif value == x:
                entries.append((INPUT, 0))
            elif value in parts:
                entries.append((STATE, parts[value]))
            else:
                entries.append((OWN, value - base) if value >= base else (SAME, value))
    states = [index - base for index in _parts(after)]
    output = (after._output or after._h[-1]).index - base
    if min(*states, output) < 0:
        return None
    return Pattern(types, np.array(entries, np.int32).reshape(-1, 2).T.copy(), np.array(states, np.int32), output)


def _indices(graph: Graph, shape: Shape, xs: Sequence[Any]) -> list[int] | None:
    """Return the numbers of the inputs; None if one of them is of another graph or shape."""
    indices, fitting = [], _FITTING.setdefault(shape, set())
    try:
        for e in xs:
            if e.graph is not graph:
                return None
            if e.type not in fitting:
                if TYPES.records[e.type].shape != shape:
                    return None
                fitting.add(e.type)
            indices.append(e.index)
    except AttributeError:
        return None
    return indices


_FITTING: dict[Shape, set[int]] = {}  # types of a shape


def transduce(state: Any, xs: Sequence[Any]) -> list[Expression] | None:
    """Record all steps; return the outputs, None if they have to be recorded one by one."""
    builder, graph = state._builder, state._use[0]
    if graph.types is None or not isinstance(xs[0], Expression):
        return None
    shape = TYPES.records[xs[0].type].shape
    indices = _indices(graph, shape, xs)
    if indices is None:
        return None
    key = builder, "steps", shape, bool(state._h), builder._rates
    known = graph.kept.get(key)
    outputs: list[Expression] = []
    if known is None and len(xs) <= LEARNED:
        return None
    if known is None:
        found, states = learn(graph, state, xs)
        known = graph.kept[key] = found or ()
        outputs = [s._output or s._h[-1] for s in states]
        state, xs, indices = states[-1], xs[LEARNED:], indices[LEARNED:]
        if not known:
            return outputs + [s._output or s._h[-1] for s in state.add_inputs(xs)]
    if not known:
        return None
    first, rest = known
    given: list[int] = []
    if state._h:
        first, given = rest, _parts(state)
    types, n = rest.types, len(indices) - 1
    base, step = len(graph.types), len(rest.types)
    graph.types += first.types
    graph.types += types * n
    graph.pieces.append((len(graph.args), Chain(first, rest, base, indices, given)))
    start, make = base + len(first.types) + rest.output, outputs.append
    e = _new(Expression)
    e.graph, e.index, e.type = graph, base + first.output, first.types[first.output]
    make(e)
    number = types[rest.output]
    for index in range(start, start + n * step, step):
        e = _new(Expression)
        e.graph = graph
        e.index = index
        e.type = number
        make(e)
    return outputs

"""Steps of recurrent networks in bulk: what one step of a builder records is learned, and then repeated without recording.

The first steps in a graph are recorded one by one, as by `add_input`. From what they left behind follows a *pattern*: types of
nodes, and for each entry of their arguments what it is

    SAME     the same at every step: a parameter, a mask, a number
    INPUT    the input of the step
    OWN      a node of this step, by its position in the step
    STATE    a part of the state before: h or c of some layer
    IMMEDIATE  an integer that names no node

The very first step may differ from all others, for it has no state before. All further steps of a graph with the same
builder and inputs of the same shape are a `Chain`: a few numbers, written out when the graph is run. A builder whose steps are
not all alike (one that draws a random mask for each) has no pattern, and is recorded step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from autobatch import recorder
from autobatch.expression import Expression, Node
from autobatch.graph import IMMEDIATES, RECORDED, TYPES, Graph
from autobatch.kernels._jit import compiled, int32s, integers
from autobatch.pieces import listed

SAME, INPUT, OWN, STATE, IMMEDIATE = range(5)
LEARNED = 3  # steps that are recorded one by one, to see how the others look


class Pattern:
    """What a step records, with positions counted from the step's first node.

    Parameters
    ----------
    types : of the nodes.
    entries : int32 (2, entries), what each is, and its value.
    states : int32, where the parts of the state lie after the step.
    output : where the output lies.
    """

    __slots__ = ("count", "entries", "output", "states", "type_array", "types", "words")

    def __init__(self, types: list[int], entries: np.ndarray, states: np.ndarray, output: int) -> None:
        self.types, self.entries, self.states, self.output = types, entries, states, output
        self.count = entries.shape[1]
        self.type_array = np.array(types, np.int32)
        self.words = entries.ctypes.data, states.ctypes.data, self.count, len(types), self.type_array.ctypes.data

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern) or (self.types, self.output) != (other.types, other.output):
            return False
        return np.array_equal(self.entries, other.entries) and np.array_equal(self.states, other.states)

    __hash__ = None  # type: ignore[assignment]


class Pair:
    """Patterns of the first step of a sequence and of all others, and the words of both where compiled code finds them."""

    __slots__ = ("_words", "address", "even", "first", "rest")

    def __init__(self, first: Pattern, rest: Pattern) -> None:
        self.first, self.rest = first, rest
        self.even = first.types == rest.types and first.output == rest.output  # whether all steps have equal nodes
        self._words = np.array([*first.words, *rest.words], np.int64)
        self.address = self._words.ctypes.data


class Chain:
    """The entries of consecutive steps of one sequence: a piece of a graph's arguments."""

    __slots__ = ("base", "given", "pair", "xs")

    pair: Pair
    base: int  # first node
    xs: Sequence[int]  # numbers of the inputs
    given: Sequence[int]  # of the parts of the state before

    @staticmethod
    def write_all(types: np.ndarray, args: np.ndarray, places: np.ndarray, pieces: list[Chain]) -> None:
        """Write all chains into two int32 arrays; `places` tells where each begins in them."""
        words: list[int] = []
        nodes: list[int] = []
        for chain in pieces:
            xs = chain.xs
            words += (chain.base, len(nodes), len(xs), len(nodes) + len(xs), chain.pair.address)
            nodes += xs
            nodes += chain.given
        _write(types, args, places, listed(words, np.int64), listed(nodes, np.int32))


class Chains:
    """The entries of the steps of many sequences, which begin from one state: a piece of a graph's arguments.

    Parameters
    ----------
    pair : how the steps look.
    base : first node.
    xs : int32, numbers of the inputs, one sequence after the other.
    sizes : integers, how many inputs each has.
    given : numbers of the parts of the state before.
    """

    __slots__ = ("base", "firsts", "given", "pair", "sizes", "starts", "xs")

    def __init__(self, pair: Pair, base: int, xs: np.ndarray, sizes: np.ndarray, given: Sequence[int]) -> None:
        self.pair, self.base, self.xs, self.sizes, self.given = pair, base, xs, sizes, given
        self.starts = np.cumsum(sizes) - sizes
        self.firsts = base + self._before(len(pair.first.types), len(pair.rest.types))

    def _before(self, first: int, rest: int) -> np.ndarray:
        """Return how much comes before each sequence, of something that there is so often for first and other steps."""
        return self.starts * rest + np.arange(len(self.sizes)) * (first - rest)

    def outputs(self) -> np.ndarray:
        """Return the numbers of the nodes that are the outputs of all steps."""
        first, rest = self.pair.first, self.pair.rest
        numbers = np.arange(len(self.xs), dtype=np.int32) * len(rest.types)
        numbers += np.repeat(self.firsts + len(first.types) - len(rest.types) * (1 + self.starts), self.sizes).astype(np.int32)
        numbers += rest.output
        numbers[self.starts] = self.firsts + first.output
        return numbers

    @staticmethod
    def write_all(types: np.ndarray, args: np.ndarray, places: np.ndarray, pieces: list[Chains]) -> None:
        """Write all pieces, see `Chain.write_all`."""
        for (node, at), piece in zip(places.tolist(), pieces, strict=True):
            first, rest = piece.pair.first, piece.pair.rest
            where = np.empty((len(piece.sizes), 2), np.int64)
            where[:, 0] = node - piece.base + piece.firsts
            where[:, 1] = at + piece._before(first.count, rest.count)
            words = np.empty((len(piece.sizes), _WORDS), np.int64)
            words[:, 0], words[:, 1], words[:, 2] = piece.firsts, piece.starts, piece.sizes
            words[:, 3], words[:, 4] = len(piece.xs), piece.pair.address
            _write(types, args, where, words.ravel(), np.append(piece.xs, np.array(piece.given, np.int32)))


_WORDS = 5  # of a sequence: first node, place of its inputs and how many, place of the state before, address of both patterns


@compiled
def _write(types: Any, out: Any, places: Any, words: Any, nodes: Any) -> None:
    """Write the types and the entries of all chains."""
    for c in range(len(places)):
        node, at = places[c, 0], places[c, 1]
        base, xs, n = words[_WORDS * c], words[_WORDS * c + 1], words[_WORDS * c + 2]
        given, both = words[_WORDS * c + 3], integers(words[_WORDS * c + 4])
        before = 0  # first node of the step before
        for k in range(n):
            pattern = 0 if k == 0 else 5
            entries, count = int32s(both[pattern]), both[pattern + 2]
            states = int32s(both[1 if k == 1 else 6])
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
            own, size = int32s(both[pattern + 4]), both[pattern + 3]
            for m in range(size):
                types[node + m] = own[m]
            node += size
            before = base
            base += size


class Steps(NamedTuple):
    """How a builder's steps look in one graph, of a sequence that begins without a state, and of one that goes on from one."""

    begins: Pair | None
    goes_on: Pair


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
    return Steps(None if first is None else Pair(first, third), Pair(third, third)), states


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
        arguments = int(TYPES.info[number, RECORDED])
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


def _indices(graph: Graph, xs: list[Any]) -> list[int] | None:
    """Return the numbers of the inputs; None if one of them is of another graph, or of another shape than the first."""
    try:
        fitting = _FITTING.get(xs[0].type)
        if fitting is None:
            fitting = _FITTING[xs[0].type] = {xs[0].type}
        found = recorder.indices(xs, graph, fitting)
        if found is None:
            shape = TYPES.records[xs[0].type].shape
            fitting.update(kind for kind in {e.type for e in xs} if TYPES.records[kind].shape == shape)
            found = recorder.indices(xs, graph, fitting)
    except (AttributeError, TypeError):
        return None
    return found


_FITTING: dict[int, set[int]] = {}  # by a type, types of the same shape that were seen beside it


def _known(state: Any, kind: int) -> Any:
    """Return where the steps of a builder are kept in a graph, for inputs of a type, and what is known of them."""
    key = state._builder, "steps", TYPES.records[kind].shape, bool(state._h), state._builder._rates
    known = state._use[0].kept.get(key)
    return key, known


def transduce(state: Any, xs: list[Any]) -> list[Expression] | None:
    """Record all steps; return the outputs, None if they have to be recorded one by one."""
    builder, graph, h = state._builder, state._use[0], state._h
    indices: Any = _indices(graph, xs)
    if indices is None or graph.types is None:
        return None
    kind, first_one = xs[0].type, not h
    short = builder, kind, first_one
    steps = graph.kept.get(short)
    if steps is not None and steps[0] is builder._rates:
        known = steps[1]
    else:
        key, known = _known(state, kind)
        if known is not None:
            graph.kept[short] = builder._rates, known
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
    pair, goes_on = known
    given: list[int] = []
    if state._h:
        pair, given = goes_on, _parts(state)
    first, rest = pair.first, pair.rest
    types, more = graph.types, len(indices) - 1
    chain = Chain()
    chain.pair = pair
    chain.base = base = len(types)
    chain.xs = indices
    chain.given = given
    number, step = rest.types[rest.output], len(rest.types)
    if pair.even:
        new = rest.types * (more + 1)
        made = recorder.nodes(Node, graph, range(base + rest.output, base + len(new), step), number)
    else:
        new = first.types + rest.types * more
        made = recorder.nodes(Node, graph, (base + first.output,), first.types[first.output])
        made += recorder.nodes(Node, graph, range(base + len(first.types) + rest.output, base + len(new), step), number)
    types += new
    graph.pieces.append((len(graph.args), base, first.count + more * rest.count, len(new), chain))
    return outputs + made if outputs else made


def transduce_many(state: Any, kind: int, xs: np.ndarray, sizes: np.ndarray) -> tuple[int, np.ndarray] | None:
    """Record many sequences, whose inputs have one shape; return the type of the outputs and their numbers.

    None, and nothing recorded, if no sequence of the graph has shown how the steps look, or they have no pattern.

    Parameters
    ----------
    xs : int32, numbers of all inputs, which are of type `kind`, one sequence after the other.
    sizes : integers, how many each sequence has.
    """
    graph = state._use[0]
    _, known = _known(state, kind)
    if not known or graph.types is None:
        return None
    pair, goes_on = known
    given: list[int] = []
    if state._h:
        pair, given = goes_on, _parts(state)
    types, base = graph.types, len(graph.types)
    first, rest = pair.first, pair.rest
    if pair.even:
        types += rest.types * len(xs)
    else:
        for n in sizes.tolist():
            types += first.types
            types += rest.types * (n - 1)
    chains, count = Chains(pair, base, xs, sizes, given), len(sizes) * (first.count - rest.count) + len(xs) * rest.count
    graph.pieces.append((len(graph.args), base, count, len(types) - base, chains))
    return rest.types[rest.output], chains.outputs()

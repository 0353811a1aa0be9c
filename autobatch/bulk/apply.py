"""Functions of many elements: `each`, `scan`, `tree`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autobatch.bulk.expressions import Expressions, as_integers, computed, expressions
from autobatch.bulk.patterns import Call, Pattern, call_since, learn, mark
from autobatch.expression import Expression, describe
from autobatch.graph import TYPES, Graph, graph_of
from autobatch.kernels._errors import ArgumentError, IndexRangeError, OperandError, ShapeError
from autobatch.rnn.builder import RNNBuilder
from autobatch.rnn.steps import transduce_many

_TRIES = 5  # calls recorded one by one, before a function counts as one without a pattern


def _results(name: str, returned: Any) -> list[Expression]:
    """Return what a call returned as a list of expressions."""
    results = [returned] if isinstance(returned, Expression) else returned
    if not isinstance(results, (list, tuple)) or not results or not all(isinstance(e, Expression) for e in results):
        raise OperandError(f"{name}: the function returned {describe(returned)}\n  expected  an expression, or a tuple of them")
    return list(results)


def _as_columns(name: str, columns: Sequence[Any]) -> tuple[Graph, list[Any], int]:
    """Return the graph, the columns (Expressions, int arrays, or single expressions and numbers), and their length."""
    graph: Graph | None = None
    made: list[Any] = []
    length = -1
    for k, column in enumerate(columns, 1):
        if isinstance(column, (list, tuple)) and column and all(isinstance(e, Expression) for e in column):
            column = Expressions(column)
        if isinstance(column, Expressions):
            own = graph_of(column.graph, f"argument {k} of {name}")
            if graph is not None and own is not graph:
                raise ArgumentError(f"{name}: the arguments belong to different graphs")
            graph = own
        elif isinstance(column, (list, tuple, np.ndarray)):
            integers = as_integers(column)
            if integers is None or integers.ndim != 1:
                raise OperandError(f"{name}: argument {k} is {describe(column)}\n  expected  Expressions, or integers (N,)")
            column = integers
        else:
            made.append(column)
            continue
        if length >= 0 and len(column) != length:
            raise ArgumentError(f"{name}: argument {k} has {len(column)} elements, another {length}\n  expected  one length")
        length = len(column)
        made.append(column)
    if graph is None:
        raise OperandError(f"{name}: there are no Expressions among the arguments\n  expected  at least one")
    return graph, made, length


def each(function: Callable[..., Any], *columns: Any) -> Any:
    """Call a function for every element, as ``[function(x, y) for x, y in zip(xs, ys)]`` would.

    Parameters
    ----------
    function : of expressions and integers (labels, rows to pick), to an expression or a tuple of them; it records the same
        operations at each call. A cell is best. It is called for the first few elements alone.
    columns : `Expressions`, or a list of them, and integer arrays (N,), all of one length; anything else is passed as it is.

    Returns
    -------
    `Expressions`, or a tuple of them as the function returns it.

    Raises
    ------
    OperandError, ArgumentError : no `Expressions` among the columns; lengths or graphs differ; other results than expressions.

    Notes
    -----
    A function that does something else for each element (draws random numbers) is called for all of them.
    """
    graph, given, length = _as_columns("each", columns)
    if not length:
        raise ArgumentError("each: no elements")
    varying = [c for c in given if isinstance(c, Expressions)]
    integers = [c for c in given if isinstance(c, np.ndarray)]
    first = _examples(varying, integers, length)
    calls: dict[int, list[Expression]] = {}
    tuple_like = True
    pattern: Pattern | None = None
    before: Call | None = None

    def call(k: int) -> Call | None:
        nonlocal tuple_like
        start = mark(graph)
        arguments = [c[k] if isinstance(c, Expressions) else int(c[k]) if isinstance(c, np.ndarray) else c for c in given]
        returned = function(*arguments)
        tuple_like = not isinstance(returned, Expression)
        calls[k] = _results("each", returned)
        ids = [int(c.indices[k]) for c in varying]
        return call_since(graph, start, ids, [int(c[k]) for c in integers], calls[k])

    for k in first[:_TRIES]:
        now = call(k)
        pattern = learn(before, now)
        before = now
        if pattern is not None:
            break
    missing = np.ones(length, bool)
    missing[list(calls)] = False
    rest = np.flatnonzero(missing)
    if pattern is None or graph.types is None:
        for k in rest.tolist():
            call(k)
        rest = rest[:0]
    outputs = []
    known = np.array(list(calls), np.int64)
    example = calls[first[0]]
    results = np.empty((len(example), length), np.int32)
    for j in range(len(example)):
        results[j, known] = [calls[k][j].index for k in calls]
    if rest.size and pattern is not None:
        base = len(graph.recorded_types) + len(pattern.types) * np.arange(rest.size)
        inputs = [c.indices[rest] for c in varying]
        graph.extend(pattern.types, rest.size, pattern.entries(base, inputs, [c[rest] for c in integers]))
        results[:, rest] = base + np.array(pattern.results)[:, None]
        computed(graph)
    for j, e in enumerate(example):
        outputs.append(expressions(graph, e.type, results[j]))
    return tuple(outputs) if tuple_like else outputs[0]


def _examples(varying: list[Expressions], integers: list[NDArray[Any]], length: int) -> list[int]:
    """Return elements to learn from: neighbours in the list differ in every column of integers that differs at all."""
    order = [0]
    for k in range(1, min(length, 1000)):
        if len(order) == _TRIES:
            break
        last = order[-1]
        if all(c[k] != c[last] or (c == c[0]).all() for c in integers) and all(
            c.indices[k] != c.indices[last] for c in varying
        ):
            order.append(k)
    return order + [k for k in range(min(length, _TRIES)) if k not in order]


def scan(step: Any, xs: Any, lengths: ArrayLike | None = None, *state: Any, reverse: bool = False) -> Any:
    """Walk along many sequences at once.

    Parameters
    ----------
    step : a function ``step(x, *state)`` to the next state, an expression or a tuple of as many as there are in the state
        (a cell is best); or a builder of a recurrent network.
    xs : the inputs of all sequences, one sequence after the other, as `Expressions`; or a list of lists of expressions.
    lengths : integers, how many inputs each sequence has; not with a list of lists.
    state : of a function: the state before each first step, expressions.
    reverse : whether to walk from the last input of each sequence to the first; the order of the results stays that of `xs`.

    Returns
    -------
    The state after every step, as `Expressions` in the order of `xs`, or a tuple of them; of a builder its outputs.

    Raises
    ------
    OperandError, ArgumentError : lengths that do not add up, are below 1; a state of another size than the function returns.

    Examples
    --------
    >>> import autobatch as ab
    >>> model = ab.ParameterCollection()
    >>> table, lstm = model.add_lookup_parameters((10, 3)), ab.LSTMBuilder(1, 3, 4, model)
    >>> g = ab.renew_cg()
    >>> outputs = ab.scan(lstm, ab.rows(table, [1, 2, 3, 4, 5]), [2, 3])
    >>> len(outputs), outputs.dim()
    (5, ((4,), 1))
    """
    if isinstance(xs, (list, tuple)) and xs and all(isinstance(s, (list, tuple)) for s in xs):
        lengths = [len(s) for s in xs]
        xs = Expressions([x for s in xs for x in s])
    graph, (xs,), length = _as_columns("scan", [xs])
    sizes = as_integers(lengths)
    if sizes is None or sizes.ndim != 1 or (sizes < 1).any() or sizes.sum() != length:
        raise ArgumentError(
            f"scan: the lengths are {describe(lengths)}, and there are {length} inputs\n"
            f"  expected  whole numbers from 1 on that add up to {length}"
        )
    if reverse:
        ends = np.cumsum(sizes)
        turned = np.repeat(2 * ends - sizes - 1, sizes) - np.arange(length)
        made = scan(step, xs[turned], sizes, *state)
        return made[turned] if isinstance(made, Expressions) else tuple(m[turned] for m in made)
    if isinstance(step, RNNBuilder):
        if state:
            raise ArgumentError(
                "scan: a builder begins with its own initial state\n  try       scan(step, ...) with a function"
            )
        return _scan_builder(step, graph, xs, sizes)
    if not state or not all(isinstance(s, Expression) for s in state):
        raise OperandError("scan: a function needs a state to begin with\n  expected  scan(step, xs, lengths, *state)")
    return _scan_function(step, graph, xs, sizes, state)


def _scan_builder(builder: RNNBuilder, graph: Graph, xs: Expressions, sizes: NDArray[Any]) -> Expressions:
    state, longest = builder.initial_state(), int(np.argmax(sizes))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    shown = slice(int(starts[longest]), int(starts[longest + 1]))
    made = transduce_many(state, xs.type, xs.indices, sizes)
    if made is not None:
        computed(graph)
        return expressions(graph, *made)
    outputs = state.transduce(list(xs[shown]))  # the longest shows how the others look
    numbers = np.empty(len(xs), np.int32)
    numbers[shown] = [e.index for e in outputs]
    others = np.ones(len(xs), bool)
    others[shown] = False
    if others.any():
        left = np.delete(sizes, longest)
        made = transduce_many(state, xs.type, xs.indices[others], left)
        if made is not None:
            numbers[others] = made[1]
        else:
            at, each_one = 0, list(xs[others.nonzero()[0]])
            found = []
            for n in left.tolist():
                found += [e.index for e in state.transduce(each_one[at : at + n])]
                at += n
            numbers[others] = found
        computed(graph)
    return expressions(graph, outputs[0].type, numbers)


def _scan_function(
    step: Callable[..., Any], graph: Graph, xs: Expressions, sizes: NDArray[Any], state: Sequence[Expression]
) -> Any:
    count, starts = len(state), np.concatenate([[0], np.cumsum(sizes)[:-1]])
    results = np.full((count, len(xs)), -1, np.int32)
    tuple_like, kinds = True, [0] * count

    def call(k: int, before: Sequence[Expression]) -> tuple[Call | None, list[Expression]]:
        nonlocal tuple_like
        begin = mark(graph)
        returned = step(xs[k], *before)
        tuple_like = not isinstance(returned, Expression)
        after = _results("scan", returned)
        if len(after) != count:
            raise ArgumentError(f"scan: the function returned {len(after)} expressions, and the state has {count}")
        for j, (a, b) in enumerate(zip(after, state, strict=True)):
            shapes = TYPES.records[a.type].shape, TYPES.records[b.type].shape
            if shapes[0] != shapes[1]:
                raise ShapeError(f"scan: part {j + 1} of the state is {shapes[1]} before a step and {shapes[0]} after it")
            results[j, k], kinds[j] = a.index, a.type
        return call_since(graph, begin, [int(xs.indices[k]), *(e.index for e in before)], [], after), after

    # The first steps of the longest sequence show the pattern; what comes before a step is told by the results.
    longest = int(np.argmax(sizes))
    pattern, last, before = None, None, list(state)
    tried = min(int(sizes[longest]), _TRIES)
    for k in range(tried):
        now, before = call(int(starts[longest]) + k, before)
        pattern = learn(last, now)
        last = now
        if pattern is not None:
            tried = k + 1
            break
    if pattern is None or graph.types is None:
        for s, n in zip(starts.tolist(), sizes.tolist(), strict=True):
            done = tried if s == starts[longest] else 0
            now_before = list(state) if not done else before
            for k in range(s + done, s + n):
                _, now_before = call(k, now_before)
    else:
        todo = np.flatnonzero(results[0] < 0)
        base = len(graph.recorded_types) + len(pattern.types) * np.arange(todo.size)
        results[:, todo] = base + np.array(pattern.results)[:, None]
        previous = np.empty((count, len(xs)), np.int32)
        previous[:, 1:] = results[:, :-1]
        previous[:, starts] = np.array([e.index for e in state], np.int32)[:, None]
        inputs = [xs.indices[todo], *(previous[j, todo] for j in range(count))]
        graph.extend(pattern.types, todo.size, pattern.entries(base, inputs, []))
        computed(graph)
    outputs = [expressions(graph, kinds[j], results[j]) for j in range(count)]
    return tuple(outputs) if tuple_like else outputs[0]


def tree(node: Callable[..., Any], children: ArrayLike, *leaves: Any) -> Any:
    """Walk up many trees at once.

    Parameters
    ----------
    node : a function of the states of all children to that of their parent (a cell is best): for binary trees with a state of
        h and c, ``node(h1, c1, h2, c2)`` to ``(h, c)``.
    children : integers (M, K): the K children of each of M inner nodes, of all trees. Nodes are numbered: first the L leaves,
        then the inner nodes, L, L + 1, ..., children before their parents.
    leaves : the state of the leaves: `Expressions`, one for each part.

    Returns
    -------
    The state of all L + M nodes, as `Expressions`, or a tuple of them.

    Raises
    ------
    IndexRangeError : a child that does not come before its parent.
    OperandError, ArgumentError, ShapeError : other parts than the leaves have, lengths or shapes that differ.

    Examples
    --------
    >>> import autobatch as ab
    >>> model = ab.ParameterCollection()
    >>> table, W = model.add_lookup_parameters((10, 3)), model.add_parameters((3, 6))
    >>> g = ab.renew_cg()
    >>> node = ab.cell(lambda a, b: ab.tanh(W * ab.concatenate([a, b])))
    >>> states = ab.tree(node, [[0, 1], [3, 2]], ab.rows(table, [4, 7, 1]))  # ((4 7) 1)
    >>> len(states)
    5
    """
    graph, parts, n_leaves = _as_columns("tree", leaves)
    if not all(isinstance(p, Expressions) for p in parts):
        raise OperandError("tree: the leaves are Expressions, one for each part of the state")
    below = as_integers(children)
    if below is None or below.ndim != 2 or not below.shape[1]:
        raise OperandError(
            f"tree: the children are {describe(children)}\n  expected  integers (M, K), a row for each inner node"
        )
    inner, count = below.shape[0], len(parts)
    wrong = (below < 0) | (below >= n_leaves + np.arange(inner)[:, None])
    if wrong.any():
        m, k = (int(i) for i in np.argwhere(wrong)[0])
        raise IndexRangeError(
            f"tree: inner node {n_leaves + m} has a child {below[m, k]}\n"
            f"  expected  from 0 to {n_leaves + m - 1}: children come first"
        )
    results = np.full((count, n_leaves + inner), -1, np.int32)
    for j, part in enumerate(parts):
        results[j, :n_leaves] = part.indices
    kinds = [p.type for p in parts]
    tuple_like = count > 1
    made: dict[int, list[Expression]] = {}

    def state_of(i: int) -> list[Expression]:
        return made[i] if i in made else [p[i] for p in parts]

    def call(m: int) -> Call | None:
        nonlocal tuple_like
        begin = mark(graph)
        arguments = [e for child in below[m].tolist() for e in state_of(child)]
        returned = node(*arguments)
        tuple_like = not isinstance(returned, Expression)
        after = _results("tree", returned)
        if len(after) != count:
            raise ArgumentError(f"tree: the function returned {len(after)} expressions, and the leaves have {count}")
        for j, e in enumerate(after):
            shapes = TYPES.records[e.type].shape, parts[j].shape
            if shapes[0] != shapes[1]:
                raise ShapeError(f"tree: part {j + 1} of a leaf is {shapes[1]}, and of a node {shapes[0]}")
            results[j, n_leaves + m] = e.index
        made[n_leaves + m] = after
        return call_since(graph, begin, [e.index for e in arguments], [], after)

    pattern, last, tried = None, None, 0
    while tried < min(inner, _TRIES) and pattern is None:
        now = call(tried)
        pattern = learn(last, now)
        last = now
        tried += 1
    if pattern is None or graph.types is None:
        for m in range(tried, inner):
            call(m)
    elif tried < inner:
        base = len(graph.recorded_types) + len(pattern.types) * np.arange(inner - tried)
        results[:, n_leaves + tried :] = base + np.array(pattern.results)[:, None]
        inputs = [results[j, column] for column in below[tried:].T for j in range(count)]
        graph.extend(pattern.types, inner - tried, pattern.entries(base, inputs, []))
        computed(graph)
    if inner:
        kinds = [e.type for e in made[n_leaves]]
    outputs = [expressions(graph, kinds[j], results[j]) for j in range(count)]
    return tuple(outputs) if tuple_like else outputs[0]

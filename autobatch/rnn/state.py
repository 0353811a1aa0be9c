"""The state of a recurrent network after some inputs: what a program walks through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from autobatch.expression import Expression, check_expression, describe, owner
from autobatch.functions.selection import _as_vector
from autobatch.graph import _THREAD, TYPES, Graph, current_graph
from autobatch.kernels._errors import ArgumentError, OperandError, ShapeError, StaleExpressionError
from autobatch.rnn.steps import transduce

if TYPE_CHECKING:
    from autobatch.rnn.builder import RNNBuilder

_new = object.__new__
Use: TypeAlias = tuple[Graph, list[list[Expression]], Any]  # the graph, the parameters as used in it, what else a builder needs


def make_state(
    builder: RNNBuilder,
    prev: RNNState | None,
    use: Use,
    c: tuple[Expression, ...],
    h: tuple[Expression, ...],
    output: Expression | None = None,
) -> RNNState:
    """Return a state; in place of a constructor, which is not for users."""
    state = _new(RNNState)
    state._builder, state._prev, state._use, state._c, state._h, state._output = builder, prev, use, c, h, output
    return state


class RNNState:
    """The state of a builder after some inputs; persistent, so that several continuations can begin from it."""

    __slots__ = ("_builder", "_c", "_h", "_output", "_prev", "_use")

    _builder: RNNBuilder
    _prev: RNNState | None
    _use: Use
    _c: tuple[Expression, ...]  # of each layer; () before the first input, and of builders that have none
    _h: tuple[Expression, ...]
    _output: Expression | None  # where it is not h of the top layer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise OperandError("RNNState is never made directly\n  try       initial_state() of a builder")

    def _check(self) -> None:
        if self._use[0] is not current_graph():
            raise StaleExpressionError(
                "a state of another graph, or from before the last renew_cg()\n  try       builder.initial_state() again"
            )

    def add_input(self, x: Expression) -> RNNState:
        """Return the state after one more input, x (I,) or (I,1).

        Raises
        ------
        StaleExpressionError : the state is from before the last `renew_cg`.
        ShapeError : x does not fit.
        """
        self._check()
        check_expression("add_input", x)
        shape, size = TYPES.records[x.type].shape, self._builder.input_dim
        if shape.dims not in ((size,), (size, 1)):
            raise ShapeError(f"add_input: x is {shape}\n  expected  ({size},), the builder's input_dim")
        graph = self._use[0]
        if x.graph is not graph and owner("add_input", (x,)) is not graph:
            raise ArgumentError("add_input: x belongs to another graph\n  expected  an expression of the graph of the state")
        nodes = len(graph.recorded_types)
        try:
            return self._builder._step(_as_vector(x), self)
        except BaseException:
            graph.undo(nodes)
            self._builder._forget(graph, nodes)
            raise

    def add_inputs(self, xs: Iterable[Expression]) -> list[RNNState]:
        """Return the states after each of the inputs: a list of expressions, or the rows of one."""
        if isinstance(xs, Expression):
            with current_graph().attempt():
                return self.add_inputs(list(xs))
        states, state = [], self
        if not isinstance(xs, Iterable) or isinstance(xs, np.ndarray):
            raise OperandError(f"add_inputs: {describe(xs)}\n  expected  a list of expressions")
        for x in xs:
            state = state.add_input(x)
            states.append(state)
        return states

    def transduce(self, xs: Iterable[Expression]) -> list[Expression]:
        """Return the output after each of the inputs: a list of expressions, or the rows of one."""
        if xs.__class__ is not list and isinstance(xs, Iterable) and not isinstance(xs, (np.ndarray, Expression)):
            xs = list(xs)
        if xs.__class__ is list and xs:
            if self._use[0] is not _THREAD.graph:
                self._check()
            outputs = transduce(self, xs)
            if outputs is not None:
                return outputs
        return [state._output or state._h[-1] for state in self.add_inputs(xs)]

    def output(self) -> Expression | None:
        """Return h of the top layer (of a GRU with dropout, after it); None before the first input."""
        return self._output or (self._h[-1] if self._h else None)

    def h(self) -> tuple[Expression, ...]:
        """Return h of each layer; () before the first input."""
        return self._h

    def s(self) -> tuple[Expression, ...]:
        """Return c of each layer, if the builder has one, then h of each layer; () before the first input."""
        return self._c + self._h

    def prev(self) -> RNNState | None:
        """Return the state before the last input."""
        return self._prev

    def b(self) -> RNNBuilder:
        """Return the builder."""
        return self._builder

    def set_h(self, es: Sequence[Expression]) -> RNNState:
        """Return a state with other h, one for each layer, and the c of this one (zeros at the start).

        Raises
        ------
        StaleExpressionError : the state is from before the last `renew_cg`.
        ArgumentError, ShapeError : another number of expressions, other dims than (H,).
        """
        self._check()
        es = self._vectors("set_h", es, (self._builder.layers,))
        c = self._c
        if self._builder.cells and not c:
            c = tuple(self._builder._zero(TYPES.records[v.type].shape.batch) for v in es)
        return make_state(self._builder, self, self._use, c, tuple(es))

    def set_s(self, es: Sequence[Expression]) -> RNNState:
        """Return a state with other c and h: all c, then all h; or all c, then h stays (zeros at the start).

        Of builders without c as `set_h`. Raises as `set_h`.
        """
        if not self._builder.cells:
            return self.set_h(es)
        self._check()
        layers = self._builder.layers
        es = self._vectors("set_s", es, (layers, 2 * layers))
        c, h = tuple(es[:layers]), tuple(es[layers:])
        if not h:
            h = self._h or tuple(self._builder._zero(TYPES.records[v.type].shape.batch) for v in c)
        return make_state(self._builder, self, self._use, c, h)

    def _vectors(self, what: str, vecs: Any, counts: tuple[int, ...]) -> Sequence[Expression]:
        if isinstance(vecs, Expression) or not isinstance(vecs, (list, tuple)):
            raise OperandError(f"{what}: {describe(vecs)}\n  expected  a list of expressions")
        if len(vecs) not in counts:
            raise ArgumentError(f"{what}: {len(vecs)} expressions\n  expected  {' or '.join(map(str, counts))}")
        for k, v in enumerate(vecs, 1):
            shape = TYPES.records[check_expression(what, v, k).type].shape
            if shape.dims not in ((self._builder.hidden_dim,), (self._builder.hidden_dim, 1)):
                raise ShapeError(f"{what}: expression {k} is {shape}\n  expected  ({self._builder.hidden_dim},)")
        return [_as_vector(v) for v in vecs]


class StackedRNNState:
    """States of several builders, one on top of the other: each is fed the output of the one below.

    Parameters
    ----------
    states : states of the builders, the lowest first.
    prev : the state before the last input.
    """

    def __init__(self, states: Sequence[RNNState], prev: StackedRNNState | None = None) -> None:
        if not isinstance(states, (list, tuple)) or not states or not all(isinstance(s, RNNState) for s in states):
            raise OperandError(f"StackedRNNState: {describe(states)}\n  expected  a list of states of builders")
        if prev is not None and not isinstance(prev, StackedRNNState):
            raise OperandError(f"StackedRNNState: prev is {describe(prev)}\n  expected  a StackedRNNState, or None")
        self.states: list[RNNState] = list(states)
        self._prev = prev

    def add_input(self, x: Expression) -> StackedRNNState:
        """Return the state after one more input (see `RNNState.add_input`)."""
        after = []
        with current_graph().attempt():
            for state in self.states:
                after.append(state.add_input(x))
                x = after[-1]._output or after[-1]._h[-1]
        return StackedRNNState(after, self)

    def add_inputs(self, xs: Iterable[Expression]) -> list[StackedRNNState]:
        """Return the states after each of the inputs: a list of expressions, or the rows of one."""
        if isinstance(xs, Expression):
            with current_graph().attempt():
                return self.add_inputs(list(xs))
        states, state = [], self
        if not isinstance(xs, Iterable) or isinstance(xs, np.ndarray):
            raise OperandError(f"add_inputs: {describe(xs)}\n  expected  a list of expressions")
        for x in xs:
            state = state.add_input(x)
            states.append(state)
        return states

    def transduce(self, xs: Iterable[Expression]) -> list[Expression | None]:
        """Return the output after each of the inputs: a list of expressions, or the rows of one."""
        return [state.output() for state in self.add_inputs(xs)]

    def output(self) -> Expression | None:
        """Return the output of the uppermost builder; None before the first input."""
        return self.states[-1].output()

    def h(self) -> list[tuple[Expression, ...]]:
        """Return `h()` of each builder's state."""
        return [state.h() for state in self.states]

    def s(self) -> list[tuple[Expression, ...]]:
        """Return `s()` of each builder's state."""
        return [state.s() for state in self.states]

    def prev(self) -> StackedRNNState | None:
        """Return the state before the last input."""
        return self._prev

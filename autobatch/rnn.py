"""Builders of recurrent networks: parameters, and the states a program walks through.

A step of an LSTM is recorded as one node (`kernels/lstm_step.py`), whatever its size; its h and c are views of the node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from autobatch.expression import Expression, check_expression, describe, is_number, number, view
from autobatch.functions import _nary, cmult, constant, dropout, inputVector
from autobatch.graph import TYPES, Graph, current_graph
from autobatch.kernels._errors import ArgumentError, OperandError, ShapeError, StaleExpressionError
from autobatch.kernels._op import OPS, Shape
from autobatch.params import ParameterCollection, Parameters

_LSTM_STEP = OPS["lstm_step"]
_new = object.__new__


class VanillaLSTMBuilder:
    """An LSTM without peepholes, of one or more layers. (DyNet's VanillaLSTMBuilder, also called LSTMBuilder.)

    Each layer computes, with gates i, f, o, g stacked in this order::

        a = Wx x + Wh h + b
        c' = σ(a_f + forget_bias) ∘ c + σ(a_i) ∘ tanh(a_g)
        h' = σ(a_o) ∘ tanh(c')

    Parameters
    ----------
    layers : how many; the input of a layer is the h of the one below.
    input_dim, hidden_dim : sizes I of x and H of h and c.
    model : collection; the parameters go into its subcollection "vanilla-lstm-builder": for each layer Wx (4H,I), Wh (4H,H),
    b (4H,). forget_bias : added to the rows f of a.

    Examples
    --------
    >>> import autobatch as ab
    >>> model = ab.ParameterCollection()
    >>> lstm = ab.VanillaLSTMBuilder(1, 2, 3, model)
    >>> g = ab.renew_cg()
    >>> outputs = lstm.initial_state().transduce([ab.inputVector([1.0, 2.0]), ab.inputVector([3.0, 4.0])])
    >>> outputs[-1].dim()
    ((3,), 1)
    """

    def __init__(
        self, layers: int, input_dim: int, hidden_dim: int, model: ParameterCollection, *, forget_bias: float = 1.0
    ) -> None:
        for what, value in (("layers", layers), ("input_dim", input_dim), ("hidden_dim", hidden_dim)):
            if not isinstance(value, int) or value < 1:
                raise ArgumentError(f"VanillaLSTMBuilder: {what} is {describe(value)}\n  expected  a whole number from 1 on")
        self.layers, self.input_dim, self.hidden_dim = layers, input_dim, hidden_dim
        self.forget_bias = float(forget_bias)
        self._collection = model.add_subcollection("vanilla-lstm-builder")
        self._parameters: list[list[Parameters]] = []
        for layer in range(layers):
            inputs = input_dim if layer == 0 else hidden_dim
            self._parameters.append(
                [
                    self._collection.add_parameters((4 * hidden_dim, inputs)),
                    self._collection.add_parameters((4 * hidden_dim, hidden_dim)),
                    self._collection.add_parameters((4 * hidden_dim,), init=0.0),
                ]
            )
        self._dropout = self._dropout_h = 0.0
        self._start: RNNState | None = None
        self._graph: Graph | None = None
        self._expressions: list[list[Expression]] = []
        self._masks: list[tuple[Expression | None, Expression | None]] = []
        self._forget: Any = None
        self._zeros: dict[int, Expression] = {}
        self._views: dict[int, tuple[int, int]] = {}

    def param_collection(self) -> ParameterCollection:
        """Return the subcollection that holds the parameters."""
        return self._collection

    def get_parameters(self) -> list[list[Parameters]]:
        """Return for each layer [Wx, Wh, b]."""
        return [list(layer) for layer in self._parameters]

    def get_parameter_expressions(self) -> list[list[Expression]]:
        """Return for each layer the expressions in use: the parameters, or constants after ``initial_state(update=False)``.

        Raises
        ------
        ArgumentError : `initial_state` was not called in the current graph.
        """
        if self._graph is not current_graph():
            raise ArgumentError("get_parameter_expressions() before initial_state() in this graph")
        return [list(layer) for layer in self._expressions]

    def set_dropout(self, p: float) -> None:
        """Drop numbers of x and of h with probability p, by one mask of each per graph, used at all steps (Gal and Ghahramani
        2016).

        Takes effect at the next `initial_state` of a new graph.
        """
        self.set_dropouts(p, p)

    def set_dropouts(self, d: float, d_h: float) -> None:
        """As `set_dropout`, with probability d for x and d_h for h."""
        for p in (d, d_h):
            if not is_number(p) or not 0 <= p <= 1:
                raise ArgumentError(f"set_dropout: {describe(p)}\n  expected  a probability from 0 to 1")
        self._dropout, self._dropout_h = float(d), float(d_h)

    def disable_dropout(self) -> None:
        """Drop nothing."""
        self._dropout = self._dropout_h = 0.0

    def set_dropout_masks(self, batch_size: int = 1) -> None:
        """Draw new masks, for minibatches of this size. (Drawn by themselves at the first input otherwise.)"""
        self._masks = []
        for layer in range(self.layers):
            sizes = (self.input_dim if layer == 0 else self.hidden_dim), self.hidden_dim
            probabilities = self._dropout, self._dropout_h
            masks = [
                dropout(constant((size,), 1.0, batch_size), p) if p > 0 else None
                for size, p in zip(sizes, probabilities, strict=True)
            ]
            self._masks.append((masks[0], masks[1]))

    def initial_state(self, vecs: Sequence[Expression] | None = None, update: bool = True) -> RNNState:
        """Return the state before the first input.

        Parameters
        ----------
        vecs : the states to begin with: all c, then all h, or all c only (h zero); None: zeros.
        update : False uses the parameters as constants in this graph; counts at the first call in a graph.

        Raises
        ------
        ArgumentError : another number of expressions than layers or 2 layers.
        """
        graph = current_graph()
        if self._graph is not graph or self._start is None:
            self._graph = graph
            self._expressions = [[p.expr(update=update) for p in layer] for layer in self._parameters]
            self._masks = []
            self._forget = number(graph, self.forget_bias)
            self._zeros = {}
            self._start = RNNState(self, None, (), ())
        if vecs is None:
            return self._start
        return self._start.set_s(vecs)

    def initial_state_from_raw_vectors(self, vecs: Sequence[Sequence[float]], update: bool = True) -> RNNState:
        """As `initial_state`, with lists of numbers in place of expressions."""
        return self.initial_state([inputVector(v) for v in vecs], update)

    def _step(
        self, x: Expression, cs: Sequence[Expression], hs: Sequence[Expression]
    ) -> tuple[tuple[Expression, ...], tuple[Expression, ...]]:
        """Record one step of all layers; return the new c and h."""
        batch = TYPES.records[x.type].shape.batch
        if not cs:
            cs = hs = (self._zero(batch),) * self.layers
        if (self._dropout or self._dropout_h) and not self._masks:
            self.set_dropout_masks(batch)
        new_c, new_h = [], []
        for layer, (wx, wh, b) in enumerate(self._expressions):
            h, c = hs[layer], cs[layer]
            if self._masks:
                mask_x, mask_h = self._masks[layer]
                x = x if mask_x is None else cmult(x, mask_x)
                h = h if mask_h is None else cmult(h, mask_h)
            node = _nary(_LSTM_STEP, [x, h, c, wx, wh, b, self._forget], _LSTM_STEP.types)
            x, c = self._parts(node)
            new_c.append(c)
            new_h.append(x)
        return tuple(new_c), tuple(new_h)

    def _zero(self, batch: int) -> Expression:
        """Return a state of zeros for minibatches of this size, one node for the graph."""
        zero = self._zeros.get(batch)
        if zero is None:
            zero = self._zeros[batch] = constant((self.hidden_dim,), 0.0, batch)
        return zero

    def _parts(self, node: Expression) -> tuple[Expression, Expression]:
        """Return h and c of a step as views of its node."""
        known = self._views.get(node.type)
        graph = node.graph
        if known is None or graph.types is None:
            shape = Shape((self.hidden_dim,), TYPES.records[node.type].shape.batch)
            h, c = view("lstm h", node, shape), view("lstm c", node, shape, shape.total)
            self._views[node.type] = h.type, shape.total
            return h, c
        number, start = known
        types, index = graph.types, node.index
        h, c = _new(Expression), _new(Expression)
        h.graph = c.graph = graph
        h.type = c.type = number
        h.index = len(types)
        c.index = h.index + 1
        types += (number, number)
        graph.args += (index, 0, index, start)
        return h, c

    def __repr__(self) -> str:
        return f"VanillaLSTMBuilder(layers={self.layers}, input_dim={self.input_dim}, hidden_dim={self.hidden_dim})"


LSTMBuilder = VanillaLSTMBuilder


class RNNState:
    """The state of a builder after some inputs; persistent, so that several continuations can begin from it."""

    __slots__ = ("_builder", "_c", "_graph", "_h", "_prev")

    def __init__(
        self, builder: VanillaLSTMBuilder, prev: RNNState | None, c: tuple[Expression, ...], h: tuple[Expression, ...]
    ) -> None:
        self._builder, self._prev, self._c, self._h = builder, prev, c, h
        self._graph = builder._graph

    def _check(self) -> None:
        if self._graph is not current_graph():
            raise StaleExpressionError(
                "a state of another graph, or from before the last renew_cg()\n  try       builder.initial_state() again"
            )

    def add_input(self, x: Expression) -> RNNState:
        """Return the state after one more input, x (I,).

        Raises
        ------
        StaleExpressionError : the state is from before the last `renew_cg`.
        ShapeError : x does not fit.
        """
        self._check()
        check_expression("add_input", x)
        shape = TYPES.records[x.type].shape
        if shape.dims != (self._builder.input_dim,):
            raise ShapeError(f"add_input: x is {shape}\n  expected  ({self._builder.input_dim},), the builder's input_dim")
        return RNNState(self._builder, self, *self._builder._step(x, self._c, self._h))

    def add_inputs(self, xs: Iterable[Expression]) -> list[RNNState]:
        """Return the states after each of the inputs."""
        states, state = [], self
        for x in xs:
            state = state.add_input(x)
            states.append(state)
        return states

    def transduce(self, xs: Iterable[Expression]) -> list[Expression]:
        """Return the output after each of the inputs."""
        return [state._h[-1] for state in self.add_inputs(xs)]

    def output(self) -> Expression | None:
        """Return h of the top layer; None before the first input."""
        return self._h[-1] if self._h else None

    def h(self) -> tuple[Expression, ...]:
        """Return h of each layer; () before the first input."""
        return self._h

    def s(self) -> tuple[Expression, ...]:
        """Return c of each layer, then h of each layer; () before the first input."""
        return self._c + self._h

    def prev(self) -> RNNState | None:
        """Return the state before the last input."""
        return self._prev

    def b(self) -> VanillaLSTMBuilder:
        """Return the builder."""
        return self._builder

    def set_h(self, vecs: Sequence[Expression]) -> RNNState:
        """Return a state with other h, one for each layer, and the c of this one (zeros at the start)."""
        self._check()
        vecs = self._vectors("set_h", vecs, (self._builder.layers,))
        c = self._c or tuple(self._builder._zero(TYPES.records[v.type].shape.batch) for v in vecs)
        return RNNState(self._builder, self, c, tuple(vecs))

    def set_s(self, vecs: Sequence[Expression]) -> RNNState:
        """Return a state with other c and h: all c, then all h; or all c, then h stays (zeros at the start)."""
        self._check()
        layers = self._builder.layers
        vecs = self._vectors("set_s", vecs, (layers, 2 * layers))
        c, h = tuple(vecs[:layers]), tuple(vecs[layers:])
        if not h:
            h = self._h or tuple(self._builder._zero(TYPES.records[v.type].shape.batch) for v in c)
        return RNNState(self._builder, self, c, h)

    def _vectors(self, what: str, vecs: Any, counts: tuple[int, ...]) -> Sequence[Expression]:
        if isinstance(vecs, Expression) or not isinstance(vecs, (list, tuple)):
            raise OperandError(f"{what}: {describe(vecs)}\n  expected  a list of expressions")
        if len(vecs) not in counts:
            raise ArgumentError(f"{what}: {len(vecs)} expressions\n  expected  {' or '.join(map(str, counts))}")
        for k, v in enumerate(vecs, 1):
            shape = TYPES.records[check_expression(what, v, k).type].shape
            if shape.dims != (self._builder.hidden_dim,):
                raise ShapeError(f"{what}: expression {k} is {shape}\n  expected  ({self._builder.hidden_dim},)")
        return vecs

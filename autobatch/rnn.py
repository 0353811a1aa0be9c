"""Builders of recurrent networks: parameters, and the states a program walks through.

A step of an LSTM is recorded as one node (`kernels/lstm_step.py`), whatever its size; its h and c are views of the node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from autobatch.expression import (
    Expression,
    as_float,
    check_expression,
    describe,
    input_type,
    is_number,
    number,
    owner,
    scalar_type,
    view,
)
from autobatch.functions.arithmetic import cmult
from autobatch.functions.noise import dropout
from autobatch.graph import TYPES, Graph, current_graph
from autobatch.inputs import constant, inputVector
from autobatch.kernels._errors import ArgumentError, OperandError, ShapeError, StaleExpressionError
from autobatch.kernels._op import OPS, Shape
from autobatch.params import ParameterCollection, Parameters
from autobatch.shortcuts import _nary

_LSTM_STEP = OPS["lstm_step"]
_MOST_LAYERS = 1000  # more are a mistake, which would take long to show
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
        if layers > _MOST_LAYERS:
            raise ArgumentError(f"VanillaLSTMBuilder: layers is {describe(layers)}\n  expected  at most {_MOST_LAYERS}")
        if not isinstance(model, ParameterCollection):
            raise OperandError(f"VanillaLSTMBuilder: the model is {describe(model)}\n  expected  a ParameterCollection")
        forget_bias = as_float("VanillaLSTMBuilder", "forget_bias", forget_bias)
        self.layers, self.input_dim, self.hidden_dim = layers, input_dim, hidden_dim
        self.forget_bias = forget_bias
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
        expressions = current_graph().kept.get(self)
        if expressions is None:
            raise ArgumentError("get_parameter_expressions() before initial_state() in this graph")
        return [list(layer) for layer in expressions]

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
        masks = []
        for layer in range(self.layers):
            for size, p in ((self.hidden_dim if layer else self.input_dim, self._dropout), (self.hidden_dim, self._dropout_h)):
                mask = dropout(constant((size,), 1.0, batch_size), p) if p > 0 else None
                masks.append(None if mask is None else (mask.type, mask.index))
        current_graph().kept[self, "masks"] = masks

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
        expressions = graph.kept.get(self)
        if expressions is None:
            expressions = graph.kept[self] = [[p.expr(update=update) for p in layer] for layer in self._parameters]
        index = graph.numbers.get(self.forget_bias or None)
        forget = number(graph, self.forget_bias) if index is None else _known(graph, index, scalar_type())
        start = _state(self, None, (graph, expressions, forget), (), ())
        return start if vecs is None else start.set_s(vecs)

    def initial_state_from_raw_vectors(self, vecs: Sequence[Sequence[float]], update: bool = True) -> RNNState:
        """As `initial_state`, with lists of numbers in place of expressions."""
        if not isinstance(vecs, (list, tuple)):
            raise OperandError(f"initial_state_from_raw_vectors: {describe(vecs)}\n  expected  a list of lists of numbers")
        return self.initial_state([inputVector(v) for v in vecs], update)

    def _step(self, x: Expression, state: RNNState) -> RNNState:
        """Record one step of all layers; return the state after it."""
        graph, expressions, forget = state._use
        batch = TYPES.records[x.type].shape.batch
        cs, hs = state._c, state._h
        if not cs:
            cs = hs = (self._zero(batch),) * self.layers
        masks = None
        if self._dropout or self._dropout_h:
            if (self, "masks") not in graph.kept:
                self.set_dropout_masks(batch)
            masks = graph.kept[self, "masks"]
        new_c, new_h = [], []
        for layer, (wx, wh, b) in enumerate(expressions):
            h, c = hs[layer], cs[layer]
            if masks is not None:
                x, h = _masked(graph, x, masks[2 * layer]), _masked(graph, h, masks[2 * layer + 1])
            node = _nary(_LSTM_STEP, [x, h, c, wx, wh, b, forget], _LSTM_STEP.types)
            x, c = self._parts(node)
            new_c.append(c)
            new_h.append(x)
        return _state(self, state, state._use, tuple(new_c), tuple(new_h))

    def _zero(self, batch: int) -> Expression:
        """Return a state of zeros for minibatches of this size, one node for the graph."""
        graph = current_graph()
        shape = Shape((self.hidden_dim,), batch)
        index = graph.zeros.get((shape, 0.0))
        return constant(shape.dims, 0.0, batch) if index is None else _known(graph, index, input_type(shape))

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


def _state(
    builder: VanillaLSTMBuilder,
    prev: RNNState | None,
    use: tuple[Graph, list[list[Expression]], Expression],
    c: tuple[Expression, ...],
    h: tuple[Expression, ...],
) -> RNNState:
    state = _new(RNNState)
    state._builder, state._prev, state._use, state._c, state._h = builder, prev, use, c, h
    return state


def _known(graph: Graph, index: int, number: int) -> Expression:
    """Return an expression of a node of a graph that is there already."""
    e = _new(Expression)
    e.graph, e.index, e.type = graph.top, index, number
    return e


def _masked(graph: Graph, x: Expression, mask: tuple[int, int] | None) -> Expression:
    """Return x times a mask of the graph, which is known by its type and number."""
    if mask is None:
        return x
    number, index = mask
    return cmult(x, _known(graph, index, number))  # type: ignore[no-any-return]


LSTMBuilder = VanillaLSTMBuilder


class RNNState:
    """The state of a builder after some inputs; persistent, so that several continuations can begin from it."""

    __slots__ = ("_builder", "_c", "_h", "_prev", "_use")

    _builder: VanillaLSTMBuilder
    _prev: RNNState | None
    _use: tuple[Graph, list[list[Expression]], Expression]  # the graph, the parameters as used in it, the forget bias
    _c: tuple[Expression, ...]
    _h: tuple[Expression, ...]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise OperandError("RNNState is never made directly\n  try       initial_state() of a builder")

    def _check(self) -> None:
        if self._use[0] is not current_graph():
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
        graph = self._use[0]
        if x.graph is not graph and owner("add_input", (x,)) is not graph:
            raise ArgumentError("add_input: x belongs to another graph\n  expected  an expression of the graph of the state")
        nodes = len(graph.recorded_types)
        try:
            return self._builder._step(x, self)
        except BaseException:
            graph.undo(nodes)
            if any(mask is not None and mask[1] >= nodes for mask in graph.kept.get((self._builder, "masks"), ())):
                del graph.kept[self._builder, "masks"]
            raise

    def add_inputs(self, xs: Iterable[Expression]) -> list[RNNState]:
        """Return the states after each of the inputs."""
        states, state = [], self
        if not isinstance(xs, Iterable) or isinstance(xs, np.ndarray):
            raise OperandError(f"add_inputs: {describe(xs)}\n  expected  a list of expressions")
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
        return _state(self._builder, self, self._use, c, tuple(vecs))

    def set_s(self, vecs: Sequence[Expression]) -> RNNState:
        """Return a state with other c and h: all c, then all h; or all c, then h stays (zeros at the start)."""
        self._check()
        layers = self._builder.layers
        vecs = self._vectors("set_s", vecs, (layers, 2 * layers))
        c, h = tuple(vecs[:layers]), tuple(vecs[layers:])
        if not h:
            h = self._h or tuple(self._builder._zero(TYPES.records[v.type].shape.batch) for v in c)
        return _state(self._builder, self, self._use, c, h)

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

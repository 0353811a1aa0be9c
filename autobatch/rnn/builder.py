"""What all builders of recurrent networks share: parameters, masks of dropout, states."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from autobatch.cell import cell
from autobatch.expression import Expression, Node, describe, input_type, is_number
from autobatch.functions.arithmetic import cmult
from autobatch.functions.noise import dropout
from autobatch.graph import _THREAD, TYPES, Graph, current_graph
from autobatch.inputs import constant, filled, inputVector
from autobatch.integers import as_integer
from autobatch.kernels._errors import ArgumentError, OperandError
from autobatch.kernels._op import Shape
from autobatch.params import ParameterCollection, Parameters
from autobatch.rnn.state import RNNState, Use, make_state

MOST_LAYERS = 1000  # more are a mistake, which would take long to show
_LARGEST_HIDDEN = 1 << 20  # a matrix of this size squared is beyond any memory
_new = object.__new__
Builder = TypeVar("Builder", bound="RNNBuilder")


def whole(name: str, what: str, value: Any) -> int:
    """Return a size as an int; raise for what is none, or is below 1."""
    try:
        size = as_integer(value)
    except TypeError:
        size = 0
    if size < 1 or isinstance(value, bool):
        raise ArgumentError(f"{name}: {what} is {describe(value)}\n  expected  a whole number from 1 on")
    return size


def check_sizes(name: str, layers: Any, input_dim: Any, hidden_dim: Any, model: Any) -> tuple[int, int, int]:
    """Return the sizes of a builder; raise for what is none or too large, and for a model that is no collection."""
    sizes = whole(name, "layers", layers), whole(name, "input_dim", input_dim), whole(name, "hidden_dim", hidden_dim)
    if sizes[0] > MOST_LAYERS:
        raise ArgumentError(f"{name}: layers is {describe(layers)}\n  expected  at most {MOST_LAYERS}")
    if sizes[2] > _LARGEST_HIDDEN:
        raise ArgumentError(f"{name}: hidden_dim is {describe(hidden_dim)}\n  expected  at most {_LARGEST_HIDDEN:,}")
    if not isinstance(model, ParameterCollection):
        raise OperandError(f"{name}: the model is {describe(model)}\n  expected  a ParameterCollection")
    return sizes


def probability(name: str, p: Any) -> float:
    """Return a probability as a float; raise for what is none."""
    if not is_number(p) or not 0 <= p <= 1:
        raise ArgumentError(f"{name}: {describe(p)}\n  expected  a probability from 0 to 1")
    return float(p)


class Inputs(NamedTuple):
    """What one step of one layer reads beside its weights."""

    graph: Graph
    x: Expression
    h: Expression | None  # None: zeros
    c: Expression | None
    masks: Sequence[Any] | None  # of dropout: for x, h (both applied already), and c where there is one
    more: Any  # what `_step` was told for this layer


def made(cls: Any, form: str, spec: Any, model: Any, place: int) -> Any:
    """Return a new builder of a spec, whose arguments lack the collection at a place; raise for another number of them."""
    if isinstance(spec, (tuple, list)) and len(spec) >= place:
        arguments = (*spec[:place], model, *spec[place:])
        try:
            inspect.signature(cls).bind(*arguments)
        except TypeError:
            pass
        else:
            return cls(*arguments)
    raise ArgumentError(f"{cls.__name__}.from_spec: {describe(spec)}\n  expected  {form}")


class RNNBuilder:
    """Base of the builders of recurrent networks: it makes the parameters, and the states a program walks through.

    Parameters
    ----------
    layers : how many; the input of a layer is the h of the one below.
    input_dim, hidden_dim : sizes I of x, H of h (and of c, where there is one).
    model : collection; the parameters go into a subcollection of it.

    Raises
    ------
    ArgumentError : a size below 1, more than 1000 layers, or a `hidden_dim` above 2²⁰.
    OperandError : `model` is no ParameterCollection.
    """

    cells: ClassVar[bool] = False  # has a state c beside h
    fused: bool = False  # records a step of a layer as one node (see `autobatch.cell`), where that is faster
    folder: ClassVar[str]  # name of the subcollection

    def __init__(self, layers: int, input_dim: int, hidden_dim: int, model: ParameterCollection) -> None:
        name = self.whoami()
        if not hasattr(self, "folder"):
            raise OperandError(f"{name} has no step\n  try       one of its subclasses, for example VanillaLSTMBuilder")
        self.layers, self.input_dim, self.hidden_dim = check_sizes(name, layers, input_dim, hidden_dim, model)
        self._parameters: list[list[Parameters]] = []
        self._rates: tuple[float, ...] = (0.0, 0.0)  # of dropout: x, h, and c where it has one
        self._fused: dict[Any, Callable[..., Any]] = {}  # steps of layers as cells
        with model._attempt():
            self._collection = model.add_subcollection(self.folder)
            for layer in range(self.layers):
                self._parameters.append(self._layer(self._collection, self.hidden_dim if layer else self.input_dim))

    def _layer(self, model: ParameterCollection, inputs: int) -> list[Parameters]:
        """Make the parameters of one layer, in the order of DyNet's files."""
        raise NotImplementedError

    @property
    def spec(self) -> tuple[Any, ...]:
        """What `from_spec` needs to make such a builder: the arguments without the collection."""
        return self.layers, self.input_dim, self.hidden_dim

    @classmethod
    def from_spec(cls: type[Builder], spec: tuple[Any, ...], model: ParameterCollection) -> Builder:
        """Return a new builder of this spec, with parameters in `model`."""
        return made(cls, "(layers, input_dim, hidden_dim, ...)", spec, model, 3)  # type: ignore[no-any-return]

    def whoami(self) -> str:
        """Return the name of the class."""
        return type(self).__name__

    def param_collection(self) -> ParameterCollection:
        """Return the subcollection that holds the parameters."""
        return self._collection

    def get_parameters(self) -> list[list[Parameters]]:
        """Return the parameters of each layer."""
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

    # Dropout

    def set_dropout(self, f: float) -> None:
        """Drop numbers of x and of h with probability f, by one mask of each per graph, used at all steps.

        Takes effect at the next `initial_state` of a new graph. Source: Gal and Ghahramani 2016.

        Raises
        ------
        ArgumentError : f outside of [0, 1].
        """
        self._rates = (probability("set_dropout", f),) * len(self._rates)

    def set_dropouts(self, d: float, d_r: float) -> None:
        """As `set_dropout`, with probability d for x and d_r for h (DyNet dies of a bad one)."""
        self._rates = probability("set_dropouts", d), probability("set_dropouts", d_r)

    def disable_dropout(self) -> None:
        """Drop nothing."""
        self._rates = (0.0,) * len(self._rates)

    def set_dropout_masks(self, batch_size: int = 1) -> None:
        """Draw new masks, for minibatches of this size. (Drawn by themselves at the first input otherwise.)"""
        masks = []
        for layer in range(self.layers):
            for k, p in enumerate(self._rates):
                size = self.input_dim if k == layer == 0 else self.hidden_dim
                mask = dropout(constant((size,), 1.0, batch_size), p) if p > 0 else None
                masks.append(None if mask is None else (mask.type, mask.index))
        current_graph().kept[self, "masks"] = masks

    def _masks(self, graph: Graph, batch: int) -> list[Any] | None:
        """Return the masks of this graph, those of x, h (and c) of a layer after those of the one below; None: no dropout."""
        if not any(self._rates):
            return None
        if (self, "masks") not in graph.kept:
            self.set_dropout_masks(batch)
        masks: list[Any] = graph.kept[self, "masks"]
        return masks

    def _forget(self, graph: Graph, nodes: int) -> None:
        """Forget what was kept for a graph of nodes from this number on."""
        for key in ((self, "masks"), (self, "sparse")):
            if any(entry is not None and entry[1] >= nodes for entry in graph.kept.get(key, ())):
                del graph.kept[key]

    # States

    def initial_state(self, vecs: Sequence[Expression] | None = None, update: bool = True) -> RNNState:
        """Return the state before the first input.

        Parameters
        ----------
        vecs : the states to begin with, one h for each layer; of builders with c: all c, then all h, or all c only (h zero).
            None: zeros.
        update : False uses the parameters as constants in this graph; counts at the first call in a graph.

        Raises
        ------
        ArgumentError : another number of expressions.
        """
        graph = _THREAD.graph
        if graph is None:
            graph = current_graph()
        expressions = graph.kept.get(self)
        if expressions is None:
            expressions = graph.kept[self] = [[p.expr(update=update) for p in layer] for layer in self._parameters]
        start = _new(RNNState)  # `make_state` here, without the call
        start._builder = self
        start._use = graph, expressions, self._more(graph, update)
        start._c = start._h = ()
        start._prev = start._output = None
        return start if vecs is None else start.set_s(vecs)

    def initial_state_from_raw_vectors(self, vecs: Sequence[Sequence[float]], update: bool = True) -> RNNState:
        """As `initial_state`, with lists of numbers in place of expressions."""
        if not isinstance(vecs, (list, tuple)):
            raise OperandError(f"initial_state_from_raw_vectors: {describe(vecs)}\n  expected  a list of lists of numbers")
        return self.initial_state([inputVector(v) for v in vecs], update)

    def _more(self, graph: Graph, update: bool) -> Any:
        """Return what steps need beside the parameters."""
        return None

    def _step(self, x: Expression, state: RNNState, more: Sequence[Any] | None = None) -> RNNState:
        """Record one step of all layers; return the state after it. `more`: what the cells need, by layer."""
        graph, expressions, _ = state._use
        batch = TYPES.records[x.type].shape.batch
        masks = self._masks(graph, batch)
        each = len(self._rates)
        zero = self._zero(batch) if self.fused and more is None and not state._h else None
        new_c, new_h = [], []
        for layer, weights in enumerate(expressions):
            h = state._h[layer] if state._h else zero
            c = state._c[layer] if state._c else zero if self.cells else None
            own = None if masks is None else masks[each * layer : each * layer + each]
            if own is not None:
                x, h = masked(graph, x, own[0]), None if h is None else masked(graph, h, own[1])
            x, c = self._record(layer, weights, Inputs(graph, x, h, c, own, None if more is None else more[layer]))
            new_h.append(x)
            if c is not None:
                new_c.append(c)
        return make_state(self, state, state._use, tuple(new_c), tuple(new_h))

    def _cell(self, weights: Sequence[Expression], at: Inputs) -> tuple[Expression, Expression | None]:
        """Record one step of one layer, operation by operation; return h and c."""
        raise NotImplementedError

    def _record(self, layer: int, weights: Sequence[Expression], at: Inputs) -> tuple[Expression, Expression | None]:
        """As `_cell`, as one node if the builder is `fused`: parameters belong to the node, all else are its arguments."""
        if not self.fused:
            return self._cell(weights, at)
        h, c, mask = at.h, at.c, None
        if at.masks is not None and len(at.masks) > 2 and c is not None:
            mask = at.masks[2]
        key = self, "fused", layer, h is None, c is None, mask is None
        step = at.graph.kept.get(key)
        if step is None:
            step = at.graph.kept[key] = self._fuse(key[3:], weights, at.more)
        if h is None:
            return step(at.x) if c is None else step(at.x, c)  # type: ignore[no-any-return]
        if c is None:
            return step(at.x, h), None
        if mask is None:
            return step(at.x, h, c)  # type: ignore[no-any-return]
        return step(at.x, h, c, known(at.graph, mask[1], mask[0]))  # type: ignore[no-any-return]

    def _fuse(self, missing: tuple[bool, ...], weights: Sequence[Expression], more: Any) -> Callable[..., Any]:
        """Return the cell that is `_cell` with these parameters, for what a state has; one for all graphs."""
        key = *missing, *(w.index for w in weights), *(w.index for w in more or ())
        if key in self._fused:
            return self._fused[key]

        def record(x: Expression, h: Any, c: Any, mask: Any = None) -> Any:
            masks = None if mask is None else (None, None, (mask.type, mask.index))
            made = self._cell(weights, Inputs(x.graph, x, h, c, masks, more))
            return made if self.cells else made[0]

        no_h, no_c, no_mask = missing
        calls: dict[tuple[bool, ...], Callable[..., Any]] = {
            (True, True, True): lambda x: record(x, None, None),
            (True, False, True): lambda x, c: record(x, None, c),
            (False, True, True): lambda x, h: record(x, h, None),
            (False, False, True): lambda x, h, c: record(x, h, c),
            (False, False, False): lambda x, h, c, mask: record(x, h, c, mask),
        }
        function = calls[no_h, no_c, no_mask]
        function.__name__ = self.whoami()
        self._fused[key] = made = cell(function)
        return made

    def _zero(self, batch: int) -> Expression:
        """Return a state of zeros for minibatches of this size, one node for the graph."""
        graph = current_graph()
        shape = Shape((self.hidden_dim,), batch)
        index = graph.zeros.get((shape, 0.0))
        return filled(shape, 0.0) if index is None else known(graph, index, input_type(shape))

    def __repr__(self) -> str:
        return f"{self.whoami()}(layers={self.layers}, input_dim={self.input_dim}, hidden_dim={self.hidden_dim})"


def known(graph: Graph, index: int, number: int) -> Expression:
    """Return an expression of a node of a graph that is there already."""
    e = Node()
    e.graph = graph._top or graph
    e.index = index
    e.type = number
    return e


def masked(graph: Graph, x: Expression, mask: tuple[int, int] | None) -> Expression:
    """Return x times a mask of the graph, which is known by its type and number."""
    if mask is None:
        return x
    number, index = mask
    return cmult(x, known(graph, index, number))  # type: ignore[no-any-return]


__all__ = ["MOST_LAYERS", "Inputs", "RNNBuilder", "Use", "check_sizes", "known", "made", "masked", "probability", "whole"]

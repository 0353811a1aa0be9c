"""Long short-term memories.

A step of a plain LSTM is recorded as one node (`kernels/lstm_step.py`), whatever its size; its h and c are views of the node.
The others are made of the public functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from autobatch.expression import Expression, Node, append, as_float, number, part_type, scalar_type
from autobatch.functions.arithmetic import cmult
from autobatch.functions.elementwise import logistic, tanh
from autobatch.functions.linear import affine_transform
from autobatch.functions.lstm import _activated as lstm_gates
from autobatch.functions.lstm import vanilla_lstm_c, vanilla_lstm_gates, vanilla_lstm_h
from autobatch.functions.normalization import layer_norm
from autobatch.graph import _THREAD, TYPES, Graph, graph_of
from autobatch.inputs import inputVector
from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._op import OPS, Shape
from autobatch.params import ParameterCollection, Parameters
from autobatch.recorder import short
from autobatch.rnn.builder import Inputs, RNNBuilder, known, masked, probability
from autobatch.rnn.state import RNNState, make_state
from autobatch.shortcuts import _nary

_LSTM_STEP = OPS["lstm_step"]
_MISS = AttributeError, IndexError, KeyError, TypeError


class _LSTMState(RNNState):
    """A state after at least one input of a plain LSTM of one layer, whose next step may be one that is known.

    `_steps` says for types of inputs what a step appends: for each layer the type of its node and the numbers of its
    parameters; the types of h and c; the number of the forget bias; the rates of dropout, which are all 0.
    It is the graph's (`Graph.steps`), and only states of this kind read it. Anything unusual goes the way of all states.
    """

    __slots__ = ("_steps",)

    __init__ = object.__init__  # type: ignore[assignment]  # see `Node`

    _steps: dict[int, Any]

    def add_input(self, x: Expression) -> RNNState:
        try:
            (h,), (c,), use, builder = self._h, self._c, self._use, self._builder
            graph = x.graph
            ((number, wx, wh, b),), h_part, c_part, forget, rates = self._steps[x.type]
            if (
                h.graph is not graph
                or c.graph is not graph
                or use[0] is not graph
                or _THREAD.graph is not graph
                or h.type != h_part
                or c.type != c_part
                or builder._rates is not rates  # type: ignore[attr-defined]
            ):
                raise KeyError
            types = graph.types
            index = len(types)
            types += (number, h_part, c_part)
            args = graph.args
            args += (x.index, h.index, c.index, wx, wh, b, forget)
        except _MISS:
            return super().add_input(x)
        h = Node()
        h.graph = graph
        h.index = index + 1
        h.type = h_part
        c = Node()
        c.graph = graph
        c.index = index + 2
        c.type = c_part
        state = _LSTMState()
        state._builder = builder
        state._prev = self
        state._use = use
        state._c = (c,)
        state._h = (h,)
        state._output = None
        state._steps = self._steps
        return state

    add_input.__doc__ = RNNState.add_input.__doc__

    def output(self) -> Expression:
        """Return h of the top layer."""
        return self._h[-1]


class _DeepLSTMState(_LSTMState):
    """The same for several layers."""

    __slots__ = ()

    def add_input(self, x: Expression) -> RNNState:
        try:
            hs, cs, use, builder = self._h, self._c, self._use, self._builder
            graph = x.graph
            layers, h_part, c_part, forget, rates = self._steps[x.type]
            if use[0] is not graph or _THREAD.graph is not graph or builder._rates is not rates:
                raise KeyError
            for h, c in zip(hs, cs, strict=True):
                if h.graph is not graph or c.graph is not graph or h.type != h_part or c.type != c_part:
                    raise KeyError
            types, args = graph.types, graph.args
            index = len(types)
        except _MISS:
            return RNNState.add_input(self, x)
        below = x.index
        new_h, new_c = [], []
        for (kind, wx, wh, b), h, c in zip(layers, hs, cs, strict=True):
            types += (kind, h_part, c_part)
            args += (below, h.index, c.index, wx, wh, b, forget)
            below = index + 1
            h = Node()
            h.graph = graph
            h.index = below
            h.type = h_part
            new_h.append(h)
            c = Node()
            c.graph = graph
            c.index = index + 2
            c.type = c_part
            new_c.append(c)
            index += 3
        return _after(_DeepLSTMState, self, use, new_h, new_c, self._steps)

    add_input.__doc__ = RNNState.add_input.__doc__


for _state in (_LSTMState, _DeepLSTMState):
    _state.add_input = short("step", _state.add_input, _state, _THREAD)  # type: ignore[method-assign]


def _after(kind: Any, before: RNNState, use: Any, h: Sequence[Expression], c: Sequence[Expression], steps: Any) -> RNNState:
    """Return the state after another one."""
    state: _LSTMState = kind()
    state._builder, state._prev, state._use, state._output = before._builder, before, use, None
    state._h, state._c, state._steps = tuple(h), tuple(c), steps
    return state


class VanillaLSTMBuilder(RNNBuilder):
    """An LSTM without peepholes, of one or more layers. (DyNet's VanillaLSTMBuilder, also called LSTMBuilder.)

    Each layer computes, with gates i, f, o, g stacked in this order::

        a = Wx x + Wh h + b
        c' = σ(a_f + forget_bias) ∘ c + σ(a_i) ∘ tanh(a_g)
        h' = σ(a_o) ∘ tanh(c')

    and with layer normalisation LN (Ba, Kiros and Hinton 2016, eqs. 20 to 22)::

        a = b + LN(Wx x; gx, bx) + LN(Wh h; gh, bh)        h' = σ(a_o) ∘ tanh(LN(c'; gc, bc))

    Parameters
    ----------
    layers : how many; the input of a layer is the h of the one below.
    input_dim, hidden_dim : sizes I of x and H of h and c.
    model : collection; the parameters go into its subcollection "vanilla-lstm-builder": for each layer Wx (4H,I), Wh (4H,H),
        b (4H,). With `ln_lstm` gh, bh, gx, bx (4H,), gc, bc (H,) of each layer go into `model` itself (as in DyNet).
    ln_lstm : whether to normalise.
    forget_bias : added to the rows f of a.

    Notes
    -----
    Before the first input h and c are zero; with `ln_lstm`, the term of h is left out then.

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

    cells = True
    sparse: ClassVar[bool] = False  # whether its weights are nodes
    folder = "vanilla-lstm-builder"

    def __init__(
        self,
        layers: int,
        input_dim: int,
        hidden_dim: int,
        model: ParameterCollection,
        ln_lstm: bool = False,
        forget_bias: float = 1.0,
    ) -> None:
        self.forget_bias = as_float(self.whoami(), "forget_bias", forget_bias)
        self.ln_lstm = bool(ln_lstm)
        # Without normalisation a step is a node already. The shift of another bias is an input, which no cell may have.
        self.fused = self.ln_lstm and self.forget_bias == 1 and not self.sparse
        self._views: dict[int, tuple[int, int]] = {}
        self._outer = model
        self._norms: list[list[Parameters]] = []
        super().__init__(layers, input_dim, hidden_dim, model)

    @property
    def spec(self) -> tuple[Any, ...]:
        """What `from_spec` needs to make such a builder: the arguments without the collection."""
        return (*super().spec, self.ln_lstm, self.forget_bias)

    def _layer(self, model: ParameterCollection, inputs: int) -> list[Parameters]:
        H = self.hidden_dim
        made = [
            model.add_parameters((4 * H, inputs)),
            model.add_parameters((4 * H, H)),
            model.add_parameters((4 * H,), init=0.0),
        ]
        if self.ln_lstm:
            dims = [4 * H, 4 * H, 4 * H, 4 * H, H, H]
            self._norms.append([self._outer.add_parameters((n,), init=1.0 - k % 2) for k, n in enumerate(dims)])
        return made

    def _more(self, graph: Graph, update: bool) -> Any:
        index = graph.numbers.get(self.forget_bias or None)
        forget = number(graph, self.forget_bias) if index is None else known(graph, index, scalar_type())
        if not self.ln_lstm:
            return forget, None
        norms = graph.kept.get((self, "norms"))
        if norms is None:
            norms = graph.kept[self, "norms"] = [[p.expr(update=update) for p in layer] for layer in self._norms]
        return forget, norms

    def _step(self, x: Expression, state: RNNState, more: Any = None) -> RNNState:
        """Record one step of all layers; return the state after it."""
        graph, expressions, more = state._use
        if more[1] is not None:  # with layer normalisation, or noise
            return super()._step(x, state, more[1])
        forget = more[0]
        batch = TYPES.records[x.type].shape.batch
        cs, hs = state._c, state._h
        if not cs:
            cs = hs = (self._zero(batch),) * self.layers
        masks = self._masks(graph, batch)
        input_type, recorded = x.type, []
        new_c, new_h = [], []
        for layer, (wx, wh, b) in enumerate(expressions):
            h, c = hs[layer], cs[layer]
            if masks is not None:
                x, h = masked(graph, x, masks[2 * layer]), masked(graph, h, masks[2 * layer + 1])
            node = _nary(_LSTM_STEP, [x, h, c, wx, wh, b, forget], _LSTM_STEP.types)
            x, c = self._parts(node)
            new_c.append(c)
            new_h.append(x)
            recorded.append((node.type, wx.index, wh.index, b.index))
        if masks is not None or type(self)._step is not VanillaLSTMBuilder._step:  # a subclass may do more in a step
            return make_state(self, state, state._use, tuple(new_c), tuple(new_h))
        steps = graph.steps.get(self)
        if steps is None:
            steps = graph.steps[self] = {}
        if input_type not in steps or steps[input_type][-1] is not self._rates:
            parts = x.type, new_c[-1].type
            if x.graph is graph and all((h.type, c.type) == parts for h, c in zip((*hs, *new_h), (*cs, *new_c), strict=True)):
                steps[input_type] = tuple(recorded), *parts, forget.index, self._rates
        return _after(_DeepLSTMState if self.layers > 1 else _LSTMState, state, state._use, new_h, new_c, steps)

    def _cell(self, weights: Sequence[Expression], at: Inputs) -> tuple[Expression, Expression | None]:
        Wx, Wh, b = weights[:3]
        gh, bh, gx, bx, gc, bc = at.more
        a = layer_norm(Wx * at.x, gx, bx)
        a = b + (a if at.h is None else a + layer_norm(Wh * at.h, gh, bh))
        gates = self._gates(a)
        c = vanilla_lstm_c(at.c or self._zero(TYPES.records[a.type].shape.batch), gates)
        return vanilla_lstm_h(layer_norm(c, gc, bc), gates), c

    def _gates(self, a: Expression) -> Expression:
        """Return the activations of the gates, whose op has a forget bias of 1."""
        if self.forget_bias != 1:
            shift = np.zeros((4, self.hidden_dim))
            shift[1] = self.forget_bias - 1
            a = a + inputVector(shift.ravel())
        return lstm_gates(a)

    def _parts(self, node: Expression) -> tuple[Expression, Expression]:
        """Record h and c of a step, parts of the node that was recorded last."""
        known = self._views.get(node.type)
        if known is None:
            of = TYPES.records[node.type].shape
            shape = Shape((self.hidden_dim,), of.batch)
            known = self._views[node.type] = part_type(of, shape, 1, 0), part_type(of, shape, 2, shape.total)
        graph = node.graph
        if graph.types is None:
            graph = graph_of(graph)
            return append(graph, known[0], ()), append(graph, known[1], ())
        h, c = Node(), Node()
        h.graph = c.graph = graph
        h.type, c.type = known
        h.index = len(graph.types)
        c.index = h.index + 1
        graph.types += known
        return h, c


LSTMBuilder = VanillaLSTMBuilder


class CompactVanillaLSTMBuilder(VanillaLSTMBuilder):
    """As `VanillaLSTMBuilder`, with forget bias 1, no layer normalisation, and noise on the weights if asked for.

    Parameters
    ----------
    layers, input_dim, hidden_dim : as of `VanillaLSTMBuilder`.
    model : collection; the parameters go into its subcollection "compact-vanilla-lstm-builder".

    Notes
    -----
    In DyNet this builder saves memory and time. Here both record the same node.
    """

    folder = "compact-vanilla-lstm-builder"

    def __init__(self, layers: int, input_dim: int, hidden_dim: int, model: ParameterCollection) -> None:
        super().__init__(layers, input_dim, hidden_dim, model)
        self._noise = 0.0

    @property
    def spec(self) -> tuple[Any, ...]:
        """What `from_spec` needs to make such a builder: the arguments without the collection."""
        return self.layers, self.input_dim, self.hidden_dim

    def set_weightnoise(self, std: float) -> None:
        """Add Gaussian noise of this standard deviation to the weights, drawn anew at each step; 0: none (Graves 2011).

        Takes effect at the next `initial_state`. (With noise DyNet leaves the products out.)

        Raises
        ------
        ArgumentError : std below 0.
        """
        std = as_float("set_weightnoise", "std", std)
        if not 0 <= std < math.inf:
            raise ArgumentError(f"set_weightnoise: {std}\n  expected  a standard deviation, 0 for no noise")
        self._noise = std

    def _more(self, graph: Graph, update: bool) -> Any:
        forget, _ = super()._more(graph, update)
        return forget, [self._noise] * self.layers if self._noise else None

    def _cell(self, weights: Sequence[Expression], at: Inputs) -> tuple[Expression, Expression | None]:
        Wx, Wh, b = weights
        zero = self._zero(TYPES.records[at.x.type].shape.batch)
        gates = vanilla_lstm_gates(at.x, at.h or zero, Wx, Wh, b, at.more)
        c = vanilla_lstm_c(at.c or zero, gates)
        return vanilla_lstm_h(c, gates), c


class SparseLSTMBuilder(VanillaLSTMBuilder):
    """As `VanillaLSTMBuilder`, with weights of which some are held at 0.

    Parameters
    ----------
    layers, input_dim, hidden_dim, ln_lstm, forget_bias : as of `VanillaLSTMBuilder`.
    model : collection; the parameters go into its subcollection "vanilla-lstm-builder" (as in DyNet): for each layer Wx (4H,I),
        Wh (4H,H), masks of both (ones at first), b (4H,).

    Notes
    -----
    The masks are not trained. `get_parameters` gives Wx, Wh, b and then the masks, files have the masks before b (as in DyNet).

    Source
    ------
    Narang et al. 2017.
    """

    sparse = True

    def _layer(self, model: ParameterCollection, inputs: int) -> list[Parameters]:
        H = self.hidden_dim
        Wx, Wh = model.add_parameters((4 * H, inputs)), model.add_parameters((4 * H, H))
        masks = [model.add_parameters((4 * H, n), init=1.0) for n in (inputs, H)]
        for mask in masks:
            mask.set_updated(False)
        b = model.add_parameters((4 * H,), init=0.0)
        if self.ln_lstm:
            dims = [4 * H, 4 * H, 4 * H, 4 * H, H, H]
            self._norms.append([self._outer.add_parameters((n,), init=1.0 - k % 2) for k, n in enumerate(dims)])
        return [Wx, Wh, b, *masks]

    def set_sparsity(self, sparsity: float) -> None:
        """Hold the weights of smallest size at 0: this part of all weights of all layers (0.9: nine of ten).

        Raises
        ------
        ArgumentError : a part outside of [0, 1].
        """
        part = probability("set_sparsity", sparsity)
        weights = [(layer[k], layer[3 + k]) for layer in self._parameters for k in range(2)]
        sizes = np.concatenate([np.abs(W.values) for W, _ in weights])
        kept = np.zeros(sizes.size)
        kept[np.argsort(-sizes, kind="stable")[: round((1 - part) * sizes.size)]] = 1
        for _, mask in weights:
            mask.values[:], kept = kept[: mask.values.size], kept[mask.values.size :]

    def _more(self, graph: Graph, update: bool) -> Any:
        key = self, "sparse"
        if key not in graph.kept:
            kept = []
            for Wx, Wh, _, mask_x, mask_h in graph.kept[self]:
                for W, mask in ((Wx, mask_x), (Wh, mask_h)):
                    product = cmult(W, mask.expr(update=False) if isinstance(mask, Parameters) else mask)
                    kept.append((product.type, product.index))
            graph.kept[key] = kept
        forget, norms = super()._more(graph, update)
        sparse = [known(graph, index, kind) for kind, index in graph.kept[key]]
        return forget, [(*sparse[2 * k : 2 * k + 2], None if norms is None else norms[k]) for k in range(self.layers)]

    def _cell(self, weights: Sequence[Expression], at: Inputs) -> tuple[Expression, Expression | None]:
        Wx, Wh, norms = at.more
        b = weights[2]
        if norms is not None:
            return super()._cell((Wx, Wh, b), at._replace(more=norms))
        gates = self._gates(affine_transform([b, Wx, at.x] if at.h is None else [b, Wx, at.x, Wh, at.h]))
        c = vanilla_lstm_c(at.c or self._zero(TYPES.records[at.x.type].shape.batch), gates)
        return vanilla_lstm_h(c, gates), c


class CoupledLSTMBuilder(RNNBuilder):
    """An LSTM with peepholes whose forget gate is one minus its input gate. (DyNet's CoupledLSTMBuilder.)

    Each layer computes::

        i = σ(x2i x + h2i h + c2i c + bi)        g = tanh(x2c x + h2c h + bc)
        c' = (1 - i) ∘ c + i ∘ g
        o = σ(x2o x + h2o h + c2o c' + bo)       h' = o ∘ tanh(c')

    Parameters
    ----------
    layers : how many; the input of a layer is the h of the one below.
    input_dim, hidden_dim : sizes I of x and H of h and c.
    model : collection; the parameters go into its subcollection "lstm-builder": for each layer x2i (H,I), h2i, c2i (H,H),
        bi (H,), the same for o, then x2c, h2c, bc.

    Notes
    -----
    With dropout, c is dropped too where it goes into a gate.

    Source
    ------
    Greff et al. 2015 (coupled gates); Gers and Schmidhuber 2000 (peepholes).
    """

    cells = True
    fused = True
    folder = "lstm-builder"

    def __init__(self, layers: int, input_dim: int, hidden_dim: int, model: ParameterCollection) -> None:
        super().__init__(layers, input_dim, hidden_dim, model)
        self._rates = (0.0, 0.0, 0.0)

    def set_dropouts(self, d: float, d_r: float, d_c: float = 0.0) -> None:
        """As `set_dropout`, with probability d for x, d_r for h and d_c for c."""
        self._rates = probability("set_dropouts", d), probability("set_dropouts", d_r), probability("set_dropouts", d_c)

    def _layer(self, model: ParameterCollection, inputs: int) -> list[Parameters]:
        H, made = self.hidden_dim, []
        for gate in range(3):
            made += [model.add_parameters((H, inputs)), model.add_parameters((H, H))]
            if gate < 2:
                made.append(model.add_parameters((H, self._peephole())))
            made.append(model.add_parameters((H,), init=0.0))
        return made

    def _peephole(self) -> int:
        """Return the columns of c2i and c2o."""
        return self.hidden_dim

    def _cell(self, weights: Sequence[Expression], at: Inputs) -> tuple[Expression, Expression | None]:
        x2i, h2i, c2i, bi, x2o, h2o, c2o, bo, x2c, h2c, bc = weights

        def product(b: Expression, Wx: Expression, Wh: Expression) -> list[Expression]:
            return [b, Wx, at.x] if at.h is None else [b, Wx, at.x, Wh, at.h]

        i = logistic(affine_transform([*product(bi, x2i, h2i), *self._peep(at, c2i, at.c)]))
        g = tanh(affine_transform(product(bc, x2c, h2c)))
        c = cmult(i, g) if at.c is None else at.c + cmult(i, g - at.c)
        o = logistic(affine_transform([*product(bo, x2o, h2o), *self._peep(at, c2o, c)]))
        return cmult(o, tanh(c)), c

    def _peep(self, at: Inputs, W: Expression, c: Expression | None) -> list[Expression]:
        """Return what the peephole adds to a gate's products."""
        if c is None:
            return []
        return [W, c if at.masks is None else masked(at.graph, c, at.masks[2])]


class FastLSTMBuilder(CoupledLSTMBuilder):
    """As `CoupledLSTMBuilder`, without peepholes. (DyNet's FastLSTMBuilder.)

    Parameters
    ----------
    layers, input_dim, hidden_dim : as of `CoupledLSTMBuilder`.
    model : collection; the parameters go into its subcollection "fast-lstm-builder", in the order of `CoupledLSTMBuilder`.
        c2i and c2o (H,1) are there, as in DyNet, but not used.

    Notes
    -----
    With dropout DyNet does nothing; here it works.
    """

    folder = "fast-lstm-builder"

    def _peephole(self) -> int:
        return 1

    def _peep(self, at: Inputs, W: Expression, c: Expression | None) -> list[Expression]:
        return []

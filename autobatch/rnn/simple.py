"""Recurrent networks without a cell: the simple one and the GRU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autobatch.expression import Expression
from autobatch.functions.arithmetic import cmult
from autobatch.functions.elementwise import logistic, tanh
from autobatch.functions.linear import affine_transform
from autobatch.functions.noise import dropout
from autobatch.graph import TYPES, Graph
from autobatch.params import ParameterCollection, Parameters
from autobatch.rnn.builder import Inputs, RNNBuilder, probability
from autobatch.rnn.state import RNNState, make_state


class SimpleRNNBuilder(RNNBuilder):
    """A simple recurrent network (Elman 1990) of one or more layers.    h' = tanh(Wx x + Wh h + b)

    Parameters
    ----------
    layers : how many; the input of a layer is the h of the one below.
    input_dim, hidden_dim : sizes I of x and H of h.
    model : collection; the parameters go into its subcollection "simple-rnn-builder": of each layer Wx (H,I), Wh (H,H),
        b (H,).
    """

    folder = "simple-rnn-builder"

    def set_dropouts(self, d: float, d_h: float) -> None:
        """As `set_dropout`, with probability d for x and d_h for h."""
        super().set_dropouts(d, d_h)

    def _layer(self, model: ParameterCollection, inputs: int) -> list[Parameters]:
        H = self.hidden_dim
        return [model.add_parameters((H, inputs)), model.add_parameters((H, H)), model.add_parameters((H,), init=0.0)]

    def _cell(self, weights: Sequence[Expression], at: Inputs) -> tuple[Expression, Expression | None]:
        Wx, Wh, b = weights
        return tanh(affine_transform([b, Wx, at.x] if at.h is None else [b, Wx, at.x, Wh, at.h])), None


class GRUBuilder(RNNBuilder):
    """Gated recurrent units of one or more layers.

    Each layer computes::

        z = σ(Wzx x + Wzh h + bz)        r = σ(Wrx x + Wrh h + br)
        g = tanh(Whx x + Whh (r ∘ h) + bh)
        h' = z ∘ g + (1 - z) ∘ h

    Parameters
    ----------
    layers : how many; the input of a layer is the h of the one below.
    input_dim, hidden_dim : sizes I of x and H of h.
    model : collection; the parameters go into its subcollection "gru-builder": for each layer Wzx (H,I), Wzh (H,H), bz (H,),
        then the same for r and for h.

    Notes
    -----
    `set_dropout` is ordinary dropout, drawn anew at each step, on the input of each layer and on the output (DyNet's way).

    Source
    ------
    Cho et al. 2014, with z and 1 - z exchanged, as in DyNet.
    """

    folder = "gru-builder"
    fused = True

    def _layer(self, model: ParameterCollection, inputs: int) -> list[Parameters]:
        H, made = self.hidden_dim, []
        for _ in range(3):
            made += [model.add_parameters((H, inputs)), model.add_parameters((H, H)), model.add_parameters((H,), init=0.0)]
        return made

    def set_dropout(self, f: float) -> None:
        """Drop numbers of the input of each layer and of the output with probability f, drawn anew at each step.

        Raises
        ------
        ArgumentError : f outside of [0, 1].
        """
        self._rates = (probability("set_dropout", f), 0.0)

    def set_dropouts(self, d: float, d_r: float) -> None:
        """As `set_dropout` with d; h is not dropped within a GRU, so d_r has to be 0 or d."""
        if probability("set_dropouts", d_r) not in (0, d):
            raise AttributeError("set_dropouts: a GRU drops inputs and output only\n  try       set_dropout(p)")
        self.set_dropout(d)

    def set_dropout_masks(self, batch_size: int = 1) -> None:
        """Do nothing: each step draws a mask of its own."""

    def _masks(self, graph: Graph, batch: int) -> None:
        """Return None: there are no masks of the graph."""

    def _step(self, x: Expression, state: RNNState, more: Any = None) -> RNNState:
        graph, expressions, _ = state._use
        p, before, hs = self._rates[0], state._h, []
        if not before:
            before = (self._zero(TYPES.records[x.type].shape.batch),) * self.layers
        for layer, weights in enumerate(expressions):
            if p:
                x = dropout(x, p)
            x, _ = self._record(layer, weights, Inputs(graph, x, before[layer], None, None, None))
            hs.append(x)
        return make_state(self, state, state._use, (), tuple(hs), dropout(x, p) if p else None)

    def _cell(self, weights: Sequence[Expression], at: Inputs) -> tuple[Expression, Expression | None]:
        Wzx, Wzh, bz, Wrx, Wrh, br, Whx, Whh, bh = weights
        x, h = at.x, at.h
        z = logistic(affine_transform([bz, Wzx, x, Wzh, h]))
        r = logistic(affine_transform([br, Wrx, x, Wrh, h]))
        g = tanh(affine_transform([bh, Whx, x, Whh, cmult(r, h)]))
        return h + cmult(z, g - h), None

"""A recurrent network in both directions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from autobatch import recorder
from autobatch.expression import Expression, Node, check_expression, describe, is_list
from autobatch.functions.selection import concatenate
from autobatch.kernels._errors import ArgumentError, OperandError
from autobatch.params import ParameterCollection
from autobatch.rnn.builder import MOST_LAYERS, RNNBuilder, made, whole
from autobatch.rnn.state import RNNState


def _makes_builders(factory: Any) -> bool:
    """Whether something can be called with layers, two sizes and a collection; a class also has to have states."""
    try:
        inspect.signature(factory).bind(1, 1, 1, None)
    except (TypeError, ValueError):
        return False
    return not isinstance(factory, type) or hasattr(factory, "initial_state")


def _pairs(layers: Any) -> list[tuple[RNNBuilder, RNNBuilder]]:
    """Return pairs of builders; raise for what are none."""
    fits = is_list(layers) and len(layers) and all(is_list(pair) and len(pair) == 2 for pair in layers)
    for builder in [builder for pair in layers for builder in pair] if fits else [layers]:
        if not callable(getattr(builder, "initial_state", None)) or isinstance(builder, type):
            raise OperandError(f"BiRNNBuilder: a layer is made of {describe(builder)}\n  expected  pairs of builders")
    return [(forwards, backwards) for forwards, backwards in layers]


def _joined(fs: list[Expression], bs: list[Expression]) -> list[Expression]:
    """Return the concatenation of each pair; all but the first are recorded in bulk where they are of one type."""
    if not fs:
        return []
    joined = [concatenate([fs[0], bs[0]])]
    graph, kind, (f, b) = joined[0].graph, joined[0].type, (fs[0].type, bs[0].type)
    types, more = graph.types, len(fs) - 1
    entries = [0] * (2 * more)
    try:
        entries[::2] = recorder.indices(fs[1:], graph, {f})  # type: ignore[assignment]  # None is no list: a TypeError
        entries[1::2] = recorder.indices(bs[1:], graph, {b})  # type: ignore[assignment]
        graph.args += entries
    except (TypeError, ValueError):  # a checkpoint, or not all of them are alike
        return joined + [concatenate([x, y]) for x, y in zip(fs[1:], bs[1:], strict=True)]
    index = len(types)
    types += [kind] * more
    joined += recorder.nodes(Node, graph, range(index, index + more), kind)
    return joined


class BiRNNBuilder:
    """Layers of two recurrent networks each, one reading forwards and one backwards, their outputs joined.

    Parameters
    ----------
    num_layers : how many.
    input_dim : size of the inputs.
    hidden_dim : size of the outputs, even: each direction has half of it.
    model : collection; the parameters go into its subcollection "birnn".
    rnn_builder_factory : class of the builders, such as `LSTMBuilder`: called as ``factory(1, inputs, hidden, model)``.
    builder_layers : pairs of builders (forwards, backwards), in place of new ones.

    Raises
    ------
    ArgumentError : an odd `hidden_dim`, fewer than one layer (DyNet: AssertionError).

    Examples
    --------
    >>> import autobatch as ab
    >>> model = ab.ParameterCollection()
    >>> tagger = ab.BiRNNBuilder(2, 3, 8, model, ab.LSTMBuilder)
    >>> g = ab.renew_cg()
    >>> outputs = tagger.transduce([ab.inputVector([1.0, 2.0, 3.0]), ab.inputVector([4.0, 5.0, 6.0])])
    >>> len(outputs), outputs[0].dim()
    (2, ((8,), 1))
    """

    def __init__(
        self,
        num_layers: int,
        input_dim: int,
        hidden_dim: int,
        model: ParameterCollection,
        rnn_builder_factory: Any,
        builder_layers: Sequence[tuple[RNNBuilder, RNNBuilder]] | None = None,
    ) -> None:
        num_layers, input_dim = whole("BiRNNBuilder", "num_layers", num_layers), whole("BiRNNBuilder", "input_dim", input_dim)
        hidden_dim = whole("BiRNNBuilder", "hidden_dim", hidden_dim)
        if hidden_dim % 2:
            raise ArgumentError(f"BiRNNBuilder: hidden_dim is {hidden_dim}\n  expected  an even number, half for each")
        if not isinstance(model, ParameterCollection):
            raise OperandError(f"BiRNNBuilder: the model is {describe(model)}\n  expected  a ParameterCollection")
        if num_layers > MOST_LAYERS:
            raise ArgumentError(f"BiRNNBuilder: num_layers is {describe(num_layers)}\n  expected  at most {MOST_LAYERS}")
        if not _makes_builders(rnn_builder_factory):
            raise OperandError(f"BiRNNBuilder: the factory is {describe(rnn_builder_factory)}\n  expected  a class of builders")
        if builder_layers is not None:
            builder_layers = _pairs(builder_layers)
        self.spec: tuple[Any, ...] = (num_layers, input_dim, hidden_dim, rnn_builder_factory, builder_layers)
        self.builder_layers: list[tuple[RNNBuilder, RNNBuilder]] = []
        with model._attempt():
            self.model = model.add_subcollection("birnn")
            for layer in range(num_layers if builder_layers is None else 0):
                inputs = hidden_dim if layer else input_dim
                pair = [rnn_builder_factory(1, inputs, hidden_dim // 2, self.model) for _ in range(2)]
                self.builder_layers += _pairs([pair])
        if builder_layers is not None:
            self.builder_layers = list(builder_layers)

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], model: ParameterCollection) -> BiRNNBuilder:
        """Return a new builder of this spec, with parameters in `model`."""
        form = "(num_layers, input_dim, hidden_dim, rnn_builder_factory, builder_layers)"
        return made(cls, form, spec, model, 3)  # type: ignore[no-any-return]

    def param_collection(self) -> ParameterCollection:
        """Return the subcollection that holds the parameters."""
        return self.model

    def whoami(self) -> str:
        """Return the name of the class."""
        return "BiRNNBuilder"

    def set_dropout(self, p: float) -> None:
        """Set the dropout of all builders (see `RNNBuilder.set_dropout`)."""
        for pair in self.builder_layers:
            for builder in pair:
                builder.set_dropout(p)

    def disable_dropout(self) -> None:
        """Drop nothing."""
        for pair in self.builder_layers:
            for builder in pair:
                builder.disable_dropout()

    def _inputs(self, what: str, es: Any) -> list[Expression]:
        if isinstance(es, Expression) or not is_list(es):
            raise OperandError(f"{what}: {describe(es)}\n  expected  a list of expressions")
        return [e if e.__class__ is Node else check_expression(what, e, k) for k, e in enumerate(es, 1)]

    def _below(self, es: list[Expression], layers: Sequence[tuple[RNNBuilder, RNNBuilder]]) -> list[Expression]:
        """Return the outputs of some layers."""
        for forwards, backwards in layers:
            fs = forwards.initial_state().transduce(es)
            bs = backwards.initial_state().transduce(es[::-1])
            es = _joined(fs, bs[::-1])
        return es

    def transduce(self, es: Sequence[Expression]) -> list[Expression]:
        """Return for each input the outputs of both directions there, one below the other, (hidden_dim,).

        Raises
        ------
        OperandError : no list of expressions.
        ShapeError : an input that does not fit.
        """
        return self._below(self._inputs("transduce", es), self.builder_layers)

    def add_inputs(self, es: Sequence[Expression]) -> list[tuple[RNNState, RNNState]]:
        """Return for each input the states of the upper layer there, (forwards, backwards).

        Raises as `transduce`.
        """
        es = self._below(self._inputs("add_inputs", es), self.builder_layers[:-1])
        forwards, backwards = self.builder_layers[-1]
        fs = forwards.initial_state().add_inputs(es)
        bs = backwards.initial_state().add_inputs(es[::-1])
        return list(zip(fs, bs[::-1], strict=True))

    def __repr__(self) -> str:
        layers, input_dim, hidden_dim, factory, _ = self.spec
        return f"BiRNNBuilder({layers}, {input_dim}, {hidden_dim}, {getattr(factory, '__name__', factory)})"

"""LSTMs over trees: a node is numbered by the program, and reads its input and the h (and c) of its children.

DyNet has these builders in C++ only; the calls are the same. Each sequence of `add_input` begins with `initial_state`, or with
`start_new_sequence` on the builder itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autobatch.arguments import _index, _integer
from autobatch.cell import cell
from autobatch.expression import Expression, check_expression, describe, is_list, owner
from autobatch.functions.arithmetic import cmult, esum
from autobatch.functions.elementwise import logistic, tanh
from autobatch.functions.linear import affine_transform
from autobatch.functions.selection import concatenate
from autobatch.graph import Graph, current_graph
from autobatch.kernels._errors import ArgumentError, IndexRangeError, OperandError, StaleExpressionError
from autobatch.params import ParameterCollection, Parameters
from autobatch.rnn.builder import check_sizes, made, whole
from autobatch.rnn.lstm import VanillaLSTMBuilder

MOST_FUSED = 2  # children of a node that is recorded as one (see `autobatch.cell`): each number has kernels of its own
_MOST_PARAMETERS = 100_000  # of a builder; more are a mistake, which would take long to show


class Tree:
    """The nodes of a tree, or of several trees, that a builder has seen: h and c of each layer, by number."""

    def __init__(self, builder: TreeLSTMBuilder, update: bool = True) -> None:
        if not isinstance(builder, TreeLSTMBuilder):
            raise OperandError(f"Tree: {describe(builder)}\n  expected  a builder of LSTMs over trees")
        self._builder, self._graph = builder, current_graph()
        self._update = update
        self._h: list[list[Expression]] = []
        self._c: list[list[Expression]] = []

    def add_input(self, id: int, children: Sequence[int], x: Expression) -> Expression:
        """Return h of a new node, (H,).

        Parameters
        ----------
        id : number of the node: 0, 1, 2, ... in this order.
        children : numbers of its children.
        x : its input (I,).

        Raises
        ------
        ArgumentError : a number out of order; IndexRangeError: a child that is not there yet.
        StaleExpressionError : the tree is from before the last `renew_cg`.
        """
        if self._graph is not current_graph():
            raise StaleExpressionError(
                "a tree of another graph, or from before the last renew_cg()\n  try       builder.initial_state() again"
            )
        graph = self._graph
        check_expression("add_input", x)
        if x.graph is not graph and owner("add_input", (x,)) is not graph:
            raise ArgumentError("add_input: x belongs to another graph\n  expected  an expression of the graph of the tree")
        if _integer("add_input", "the number", id) != len(self._h):
            raise ArgumentError(f"add_input: node {id!r}\n  expected  {len(self._h)}: nodes are numbered in their order")
        if not is_list(children):
            raise OperandError(f"add_input: the children are {describe(children)}\n  expected  a list of numbers")
        below = [_integer("add_input", "a child", child) for child in children]
        for child in below:
            if not 0 <= child < id:
                fit = f"numbers from 0 to {id - 1}" if id else "none: it is the first node"
                raise IndexRangeError(f"add_input: node {id} has a child {child}\n  expected  {fit}")
        with graph.attempt():
            h, c = self._builder._node(self, below, x)
        self._h.append(h)
        self._c.append(c)
        return h[-1]

    def h(self, id: int) -> Expression:
        """Return h of a node, of the upper layer."""
        return self._h[self._at("h", id)][-1]

    def c(self, id: int) -> Expression:
        """Return c of a node, of the upper layer (of builders over sequences of children: h)."""
        return self._c[self._at("c", id)][-1]

    def _at(self, what: str, id: Any) -> int:
        if not self._h:
            raise IndexRangeError(f"{what}: the tree has no nodes\n  try       add_input first")
        return _index(what, "the node", id, len(self._h))


class TreeLSTMBuilder:
    """Base of the builders of LSTMs over trees."""

    _collection: ParameterCollection
    _tree: Tree | None = None
    _form = "(layers, input_dim, hidden_dim)"

    def __init__(self, *arguments: Any) -> None:
        name = self.whoami()
        raise OperandError(f"{name} has no nodes\n  try       one of its subclasses, for example NaryTreeLSTMBuilder")

    @property
    def spec(self) -> tuple[Any, ...]:
        """What `from_spec` needs to make such a builder: the arguments without the collection."""
        raise NotImplementedError

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], model: ParameterCollection) -> TreeLSTMBuilder:
        """Return a new builder of this spec, with parameters in `model`."""
        place = len(spec) if isinstance(spec, (tuple, list)) else 0
        return made(cls, cls._form, spec, model, place)  # type: ignore[no-any-return]

    def whoami(self) -> str:
        """Return the name of the class."""
        return type(self).__name__

    def param_collection(self) -> ParameterCollection:
        """Return the subcollection that holds the parameters."""
        return self._collection

    def initial_state(self, update: bool = True) -> Tree:
        """Return an empty tree. `update` False uses the parameters as constants; counts at the first call in a graph."""
        return Tree(self, bool(update))

    def start_new_sequence(self) -> None:
        """Begin a tree of the builder itself, for `add_input` of the builder (DyNet's call)."""
        self._tree = self.initial_state()

    def add_input(self, id: int, children: Sequence[int], x: Expression) -> Expression:
        """Add a node to the builder's own tree, see `Tree.add_input`."""
        if self._tree is None:
            raise ArgumentError(f"{self.whoami()}.add_input() before start_new_sequence()")
        return self._tree.add_input(id, children, x)

    def _node(self, tree: Tree, children: list[int], x: Expression) -> tuple[list[Expression], list[Expression]]:
        """Return h and c of each layer of a new node."""
        raise NotImplementedError


class NaryTreeLSTMBuilder(TreeLSTMBuilder):
    """N-ary Tree-LSTM, with peepholes: each of up to N children has weights of its own (further ones share the last).

    Each layer computes, sums over children j::

        i = σ(bi + Wi x + Σ Hi_j h_j + Ci_j c_j)        o = σ(bo + Wo x + Σ Ho_j h_j + Co_j c_j)
        f_k = σ(bf + Wf x + Σ Hf_jk h_j + Cf_jk c_j + 1)
        u = tanh(bu + Wu x + Σ Hu_j h_j)
        c = i ∘ u + Σ f_k ∘ c_k                         h = o ∘ tanh(c)

    Parameters
    ----------
    N : children with weights of their own.
    layers, input_dim, hidden_dim : how many; sizes I of x and H of h and c.
    model : collection; the parameters go into its subcollection "nary-treelstm-builder".

    Raises
    ------
    ArgumentError : a size below 1, more than 1000 layers; an N and layers that would take more than 100,000 parameters.
    OperandError : `model` is no ParameterCollection.

    Source
    ------
    Tai, Socher and Manning 2015, section 3.2; the peepholes and the 1 in f are DyNet's (C++).
    """

    _form = "(N, layers, input_dim, hidden_dim)"

    def __init__(self, N: int, layers: int, input_dim: int, hidden_dim: int, model: ParameterCollection) -> None:
        name = self.whoami()
        self.N = whole(name, "N", N)
        self.layers, self.input_dim, self.hidden_dim = check_sizes(name, layers, input_dim, hidden_dim, model)
        count = self.layers * (8 + 5 * self.N + 2 * self.N**2)
        if count > _MOST_PARAMETERS:
            raise ArgumentError(
                f"{name}: {self.layers} layers and N = {describe(N)} take {count:,} parameters\n"
                f"  expected  at most {_MOST_PARAMETERS:,}: 2 N² + 5 N + 8 for each layer"
            )
        with model._attempt():
            self._make(model)

    def _make(self, model: ParameterCollection) -> None:
        """Make the parameters."""
        self._collection = model.add_subcollection("nary-treelstm-builder")
        add, H = self._collection.add_parameters, self.hidden_dim
        self._layers: list[dict[str, Any]] = []
        self._fused: dict[Any, Callable[..., Any]] = {}  # nodes of layers as cells
        for layer in range(self.layers):
            inputs = H if layer else self.input_dim
            made: dict[str, Any] = {}
            for gate, count, peeps in (("i", self.N, True), ("f", self.N**2, True), ("o", self.N, True), ("u", self.N, False)):
                made["W" + gate] = add((H, inputs))
                made["H" + gate] = [add((H, H)) for _ in range(count)]
                made["C" + gate] = [add((H, H)) for _ in range(count)] if peeps else []
                made["b" + gate] = add((H,), init=0.0)
            self._layers.append(made)

    @property
    def spec(self) -> tuple[Any, ...]:
        """What `from_spec` needs to make such a builder: the arguments without the collection."""
        return self.N, self.layers, self.input_dim, self.hidden_dim

    def _used(self, graph: Graph, update: bool) -> list[dict[str, Any]]:
        """Return the parameters as they are used in a graph."""

        def used(made: Any) -> Any:
            return made.expr(update=update) if isinstance(made, Parameters) else [used(m) for m in made]

        if self not in graph.kept:
            graph.kept[self] = [{name: used(made) for name, made in layer.items()} for layer in self._layers]
        layers: list[dict[str, Any]] = graph.kept[self]
        return layers

    def _node(self, tree: Tree, children: list[int], x: Expression) -> tuple[list[Expression], list[Expression]]:
        new_h, new_c = [], []
        for layer, w in enumerate(self._used(tree._graph, tree._update)):
            hs, cs = [tree._h[k][layer] for k in children], [tree._c[k][layer] for k in children]
            if len(children) > MOST_FUSED:
                x, c = self._layer(w, x, hs, cs)
            else:
                x, c = self._fuse(tree._graph, layer, w, len(children))(x, *hs, *cs)
            new_h.append(x)
            new_c.append(c)
        return new_h, new_c

    def _fuse(self, graph: Graph, layer: int, w: dict[str, Any], children: int) -> Callable[..., Any]:
        """Return the cell that is `_layer` with these parameters, for so many children; one for all graphs."""
        key = self, "fused", layer, children
        step: Callable[..., Any] | None = graph.kept.get(key)
        if step is None:
            own = layer, children, w["bi"].index
            if own not in self._fused:

                def record(x: Expression, *below: Expression) -> tuple[Expression, Expression]:
                    return self._layer(w, x, below[:children], below[children:])

                function: Callable[..., Any] = (
                    lambda x: record(x),
                    lambda x, h, c: record(x, h, c),
                    lambda x, h1, h2, c1, c2: record(x, h1, h2, c1, c2),
                )[children]
                function.__name__ = self.whoami()
                self._fused[own] = cell(function)
            step = graph.kept[key] = self._fused[own]
        return step

    def _layer(
        self, w: dict[str, Any], x: Expression, hs: Sequence[Expression], cs: Sequence[Expression]
    ) -> tuple[Expression, Expression]:
        """Record a node of one layer, operation by operation; return h and c."""
        last = self.N - 1

        def gate(name: str, k: int | None = None) -> Expression:
            parts = [w["b" + name], w["W" + name], x]
            for j, (h, c) in enumerate(zip(hs, cs, strict=True)):
                at = min(j, last) if k is None else min(j, last) * self.N + min(k, last)
                parts += [w["H" + name][at], h]
                if w["C" + name]:
                    parts += [w["C" + name][at], c]
            return affine_transform(parts)

        c = cmult(logistic(gate("i")), tanh(gate("u")))
        if cs:
            c = esum([c, *(cmult(logistic(gate("f", k) + 1.0), below) for k, below in enumerate(cs))])
        return cmult(logistic(gate("o")), tanh(c)), c


class UnidirectionalTreeLSTMBuilder(TreeLSTMBuilder):
    """A node's h is the last output of an LSTM that reads its input, then h of each of its children.

    Parameters
    ----------
    layers, input_dim, hidden_dim : of the LSTM; both sizes are equal if there are nodes with children.
    model : collection; the parameters go into its subcollection "unidirectional-tree-lstm-builder".

    Source
    ------
    DyNet (C++), UnidirectionalTreeLSTMBuilder.
    """

    def __init__(self, layers: int, input_dim: int, hidden_dim: int, model: ParameterCollection) -> None:
        layers, input_dim, hidden_dim = check_sizes(self.whoami(), layers, input_dim, hidden_dim, model)
        with model._attempt():
            self._collection = model.add_subcollection("unidirectional-tree-lstm-builder")
            self._lstm = VanillaLSTMBuilder(layers, input_dim, hidden_dim, self._collection)

    @property
    def spec(self) -> tuple[Any, ...]:
        """What `from_spec` needs to make such a builder: the arguments without the collection."""
        return self._lstm.spec[:3]

    def _node(self, tree: Tree, children: list[int], x: Expression) -> tuple[list[Expression], list[Expression]]:
        h = self._lstm.initial_state(update=tree._update).transduce([x, *(tree._h[k][-1] for k in children)])[-1]
        return [h], [h]


class BidirectionalTreeLSTMBuilder(TreeLSTMBuilder):
    """As `UnidirectionalTreeLSTMBuilder`, with a second LSTM that reads the children from the last to the first.

    Parameters
    ----------
    layers, input_dim : of the LSTMs.
    hidden_dim : size of h, even: each LSTM has half of it.
    model : collection; the parameters go into its subcollection "bidirectional-tree-lstm-builder".

    Raises
    ------
    ArgumentError : an odd `hidden_dim`.

    Source
    ------
    DyNet (C++), BidirectionalTreeLSTMBuilder.
    """

    def __init__(self, layers: int, input_dim: int, hidden_dim: int, model: ParameterCollection) -> None:
        layers, input_dim, hidden_dim = check_sizes(self.whoami(), layers, input_dim, hidden_dim, model)
        if hidden_dim % 2:
            raise ArgumentError(f"{self.whoami()}: hidden_dim is {hidden_dim}\n  expected  an even number, half for each")
        with model._attempt():
            self._collection = model.add_subcollection("bidirectional-tree-lstm-builder")
            self._lstms = [VanillaLSTMBuilder(layers, input_dim, hidden_dim // 2, self._collection) for _ in range(2)]

    @property
    def spec(self) -> tuple[Any, ...]:
        """What `from_spec` needs to make such a builder: the arguments without the collection."""
        layers, input_dim, half = self._lstms[0].spec[:3]
        return layers, input_dim, 2 * half

    def _node(self, tree: Tree, children: list[int], x: Expression) -> tuple[list[Expression], list[Expression]]:
        below = [tree._h[k][-1] for k in children]
        ends = [
            lstm.initial_state(update=tree._update).transduce([x, *order])[-1]
            for lstm, order in zip(self._lstms, (below, below[::-1]), strict=True)
        ]
        h = concatenate(ends)
        return [h], [h]

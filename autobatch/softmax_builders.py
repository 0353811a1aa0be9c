"""Softmax builders: parameters for predicting one of many words, and the ways to ask for it.

    standard         one product for all words
    class-factored   p(word) = p(class) p(word | class): two small products instead of a large one
    hierarchical     the same along a path of classes

The two last read a file of clusters: a line for each word, "CLASS WORD [FREQUENCY]", or "CLASS CLASS ... <tab> WORD
[FREQUENCY]".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from autobatch import seeds
from autobatch.arguments import _index, _integer, _sequence, _shape
from autobatch.expression import Expression, check_expression, describe, owner
from autobatch.files import Path, path_of
from autobatch.functions.arithmetic import esum
from autobatch.functions.linear import _matmul, affine_transform
from autobatch.functions.losses import log_softmax, pickneglogsoftmax, pickneglogsoftmax_batch
from autobatch.functions.selection import _as_vector, concatenate, concatenate_to_batch, pick, pick_batch_elem, select_rows
from autobatch.graph import current_graph
from autobatch.inputs import zeros
from autobatch.kernels._errors import ArgumentError, MissingFileError, ModelFileError, OperandError, ShapeError
from autobatch.params import ParameterCollection, Parameters
from autobatch.rnn.builder import made, whole

Builder = TypeVar("Builder", bound="SoftmaxBuilder")
_DEEPEST = 100
_TREE = "lists of classes, and tuples of numbers of words, none of them empty"


class Layer:
    """Scores W x + b of a few choices. One choice needs no parameters."""

    def __init__(self, model: ParameterCollection, choices: int, inputs: int, bias: bool) -> None:
        self.choices = choices
        self.W: Parameters | None = model.add_parameters((choices, inputs)) if choices > 1 else None
        self.b: Parameters | None = model.add_parameters((choices,), init=0.0) if choices > 1 and bias else None

    def scores(self, x: Expression, update: bool) -> Expression:
        """Return the scores of all choices, (choices,)."""
        if self.W is None:
            return zeros((1,), _shape(x).batch)
        W = self.W.expr(update=update)
        return _matmul(W, x) if self.b is None else affine_transform([self.b.expr(update=update), W, x])

    def loss(self, x: Expression, choice: int, update: bool) -> Expression | None:
        """Return -log p(choice | x), (1,); None if there is no choice."""
        return None if self.W is None else pickneglogsoftmax(self.scores(x, update), choice)

    def sample(self, x: Expression) -> int:
        """Draw a choice."""
        if self.W is None:
            return 0
        return draw(log_softmax(self.scores(x, False)))


def draw(log_probabilities: Expression) -> int:
    """Return an index, drawn from a distribution; from the stream of `reset_random_seed`."""
    sums = np.cumsum(np.exp(log_probabilities.npvalue()))
    return int(min(np.searchsorted(sums, seeds.uniforms(1, 0.0, 1.0)[0], side="right"), sums.size - 1))


class SoftmaxBuilder:
    """Base of the softmax builders."""

    _collection: ParameterCollection
    _inputs: int
    _words: int

    def __init__(self, *arguments: Any, **named: Any) -> None:
        name = self.whoami()
        raise OperandError(f"{name} has no scores\n  try       one of its subclasses, for example StandardSoftmaxBuilder")

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], model: ParameterCollection) -> Any:
        """Return a new builder of this spec, with parameters in `model`."""
        return cls(spec, model)

    def _begin(self, input_dim: int, model: Any) -> None:
        name = self.whoami()
        self._inputs = whole(name, "input_dim", input_dim)
        if not isinstance(model, ParameterCollection):
            raise OperandError(f"{name}: the collection is {describe(model)}\n  expected  a ParameterCollection")

    @property
    def spec(self) -> tuple[Any, ...]:
        """What `from_spec` needs to make such a builder: numbers and lists."""
        raise NotImplementedError

    def whoami(self) -> str:
        """Return the name of the class."""
        return type(self).__name__

    def param_collection(self) -> ParameterCollection:
        """Return the subcollection that holds the parameters."""
        return self._collection

    def _check(self, what: str, x: Any, batched: bool = True) -> Expression:
        shape, graph = _shape(check_expression(what, x)), current_graph()
        if x.graph is not graph and owner(what, (x,)) is not graph:
            raise ArgumentError(f"{what}: x belongs to another graph\n  expected  an expression of the current graph")
        if shape.dims not in ((self._inputs,), (self._inputs, 1)) or (shape.batch > 1 and not batched):
            raise ShapeError(
                f"{what}: x is {shape}\n  expected  ({self._inputs},)" + ("" if batched else ", without a minibatch")
            )
        return _as_vector(x)

    def neg_log_softmax(self, x: Expression, c: int, update: bool = True) -> Expression:
        """Return -log p(c | x) in nats, (1,).

        Parameters
        ----------
        x : (input_dim,).
        c : number of the word.
        update : False uses the parameters as constants.

        Raises
        ------
        ShapeError : x does not fit.
        ArgumentError : there is no such word.
        """
        x = self._check("neg_log_softmax", x, batched=False)
        return self._loss(x, _index("neg_log_softmax", "the word", c, self._words), bool(update))

    def neg_log_softmax_batch(self, x: Expression, c: Sequence[int], update: bool = True) -> Expression:
        """Return -log p(c | x) in nats for each element of a minibatch with its own word, (1,)xB (see `neg_log_softmax`)."""
        name = "neg_log_softmax_batch"
        x = self._check(name, x)
        words = [_index(name, "a word", w, self._words) for w in _sequence(name, "words", c)]
        if len(words) != _shape(x).batch:
            raise ArgumentError(f"{name}: {len(words)} words\n  expected  {_shape(x).batch}, as x has elements")
        return self._losses(x, words, bool(update))

    def sample(self, x: Expression) -> int:
        """Draw a word from p(. | x). The numbers come from the stream of `reset_random_seed`."""
        x = self._check("sample", x, batched=False)
        return self._sample(x)

    def full_log_distribution(self, x: Expression, update: bool = True) -> Expression:
        """Return log p(c | x) of all words, (number of words,), in nats."""
        return self._log_distribution(self._check("full_log_distribution", x), bool(update))

    def full_logits(self, x: Expression, update: bool = True) -> Expression:
        """Return scores of all words, (number of words,), whose softmax is p(. | x)."""
        return self._log_distribution(self._check("full_logits", x), bool(update))

    def _loss(self, x: Expression, word: int, update: bool) -> Expression:
        raise NotImplementedError

    def _losses(self, x: Expression, words: list[int], update: bool) -> Expression:
        return concatenate_to_batch([self._loss(pick_batch_elem(x, k), word, update) for k, word in enumerate(words)])

    def _sample(self, x: Expression) -> int:
        raise NotImplementedError

    def _log_distribution(self, x: Expression, update: bool) -> Expression:
        raise NotImplementedError


class StandardSoftmaxBuilder(SoftmaxBuilder):
    """Softmax over all words.    p(. | x) = softmax(W x + b)

    Parameters
    ----------
    input_dim : size I of x.
    num_classes : number C of words.
    pc : collection; the parameters go into its subcollection "standard-softmax-builder": W (C,I) and b (C,), which is 0
        at first.
    bias : whether there is a b.
    """

    def __init__(self, input_dim: int, num_classes: int, pc: ParameterCollection, bias: bool = True) -> None:
        self._words = whole(self.whoami(), "num_classes", num_classes)
        self._begin(input_dim, pc)
        self._bias = bool(bias)
        with pc._attempt():
            self._collection = pc.add_subcollection("standard-softmax-builder")
            self._W = self._collection.add_parameters((self._words, self._inputs))
            self._b = self._collection.add_parameters((self._words,), init=0.0) if self._bias else None

    @property
    def spec(self) -> tuple[Any, ...]:
        """What `from_spec` needs to make such a builder: (input_dim, num_classes, bias)."""
        return self._inputs, self._words, self._bias

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], model: ParameterCollection) -> StandardSoftmaxBuilder:
        """Return a new builder of this spec, with parameters in `model`."""
        return made(cls, "(input_dim, num_classes, bias)", spec, model, 2)  # type: ignore[no-any-return]

    def full_logits(self, x: Expression, update: bool = True) -> Expression:
        """Return W x + b, (C,)."""
        return self._scores(self._check("full_logits", x), bool(update))

    def _scores(self, x: Expression, update: bool) -> Expression:
        W = self._W.expr(update=update)
        return _matmul(W, x) if self._b is None else affine_transform([self._b.expr(update=update), W, x])

    def _loss(self, x: Expression, word: int, update: bool) -> Expression:
        return pickneglogsoftmax(self._scores(x, update), word)

    def _losses(self, x: Expression, words: list[int], update: bool) -> Expression:
        return pickneglogsoftmax_batch(self._scores(x, update), words)

    def _sample(self, x: Expression) -> int:
        return draw(log_softmax(self._scores(x, False)))

    def _log_distribution(self, x: Expression, update: bool) -> Expression:
        return log_softmax(self._scores(x, update))


class _Node:
    """A class of words: of classes, or of words."""

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.words: list[int] = []
        self.layer: Layer | None = None

    def make(self, model: ParameterCollection, inputs: int, bias: bool) -> None:
        """Make the parameters, those of classes before those of the classes in them."""
        self.layer = Layer(model, len(self.children) or len(self.words), inputs, bias)
        for child in self.children.values():
            child.make(model, inputs, bias)

    def spec(self) -> Any:
        """Return the tree as lists."""
        return [child.spec() for child in self.children.values()] if self.children else tuple(self.words)


class _TreeSoftmaxBuilder(SoftmaxBuilder):
    """Softmax along paths of classes: what the class-factored and the hierarchical builder share."""

    _folder: str
    _deepest: int = _DEEPEST  # classes within classes

    def __init__(
        self, input_dim: int, cluster_file: Path, word_dict: Mapping[str, int], pc: ParameterCollection, bias: bool = True
    ) -> None:
        root = _read(self.whoami(), cluster_file, word_dict, self._parse)
        self._make(input_dim, root, pc, bias)

    @staticmethod
    def _parse(line: str) -> tuple[list[str], str]:
        """Return the path and the word of a line."""
        raise NotImplementedError

    def _make(self, input_dim: int, root: _Node, pc: ParameterCollection, bias: bool) -> None:
        self._begin(input_dim, pc)
        self._bias, self._root = bool(bias), root
        with pc._attempt():
            self._collection = pc.add_subcollection(self._folder)
            root.make(self._collection, self._inputs, self._bias)
        self._paths: dict[int, list[tuple[_Node, int]]] = {}
        self._order: list[int] = []  # words in the order of the tree

        def walk(node: _Node, path: list[tuple[_Node, int]]) -> None:
            for k, child in enumerate(node.children.values()):
                walk(child, [*path, (node, k)])
            for k, word in enumerate(node.words):
                self._paths[word] = [*path, (node, k)]
                self._order.append(word)

        walk(root, [])
        self._words = len(self._order)

    @property
    def spec(self) -> tuple[Any, ...]:
        """What `from_spec` needs to make such a builder: (input_dim, the classes as lists of numbers of words, bias)."""
        return self._inputs, self._root.spec(), self._bias

    @classmethod
    def from_spec(cls, spec: tuple[Any, ...], model: ParameterCollection) -> Any:
        """Return a new builder of this spec, with parameters in `model`."""

        name = f"{cls.__name__}.from_spec"
        words: list[int] = []

        def node(parts: Any, depth: int) -> _Node:
            made = _Node()
            if not isinstance(parts, (tuple, list)) or not parts or depth > cls._deepest:
                raise ArgumentError(f"{name}: {describe(parts)} among the classes\n  expected  {_TREE}")
            if isinstance(parts, tuple) and (depth or cls._deepest > 1):
                made.words = [_integer(name, "a word", word) for word in parts]
                words.extend(made.words)
            else:
                made.children = {str(k): node(part, depth + 1) for k, part in enumerate(parts)}
            return made

        if not isinstance(spec, (tuple, list)) or len(spec) != 3:
            raise ArgumentError(f"{name}: {describe(spec)}\n  expected  (input_dim, classes, bias)")
        input_dim, tree, bias = spec
        root = node(tree, 0)
        if sorted(words) != list(range(len(words))):
            raise ArgumentError(f"{name}: the words are {sorted(words)[:8]}...\n  expected  0 to {len(words) - 1}, each once")
        new = cls.__new__(cls)
        new._make(input_dim, root, model, bias)
        return new

    def _loss(self, x: Expression, word: int, update: bool) -> Expression:
        losses = [_layer(node).loss(x, k, update) for node, k in self._paths[word]]
        present = [loss for loss in losses if loss is not None]
        return esum(present) if present else zeros((1,))

    def _sample(self, x: Expression) -> int:
        node = self._root
        while node.children:
            node = list(node.children.values())[_layer(node).sample(x)]
        return node.words[_layer(node).sample(x)]

    def _log_distribution(self, x: Expression, update: bool) -> Expression:
        parts: list[Expression] = []

        def walk(node: _Node, above: Expression | None) -> None:
            own = log_softmax(_layer(node).scores(x, update))
            own = own if above is None else own + above
            if not node.children:
                parts.append(own)
            for k, child in enumerate(node.children.values()):
                walk(child, pick(own, k))

        walk(self._root, None)
        everything = parts[0] if len(parts) == 1 else concatenate(parts)
        return select_rows(everything, np.argsort(self._order).tolist())


class ClassFactoredSoftmaxBuilder(_TreeSoftmaxBuilder):
    """Softmax over classes, then over the words of a class.    p(w | x) = p(class | x) p(w | class, x)

    Parameters
    ----------
    input_dim : size I of x.
    cluster_file : path of a text file, a line "CLASS WORD [FREQUENCY]" for each word.
    word_dict : from words to numbers, 0 to n-1.
    pc : collection; the parameters go into its subcollection "class-factored-softmax-builder": W (K,I), b (K,) of the K
        classes, then
        W (n,I), b (n,) of each class with more than one word.
    bias : whether there are biases.

    Raises
    ------
    MissingFileError : there is no such file (DyNet dies).
    ModelFileError : a line of another form, a word that is twice there or not in `word_dict`.
    ArgumentError : the words of the file are not numbered 0 to n-1.

    Notes
    -----
    `full_log_distribution` and `full_logits` agree with `neg_log_softmax` (in DyNet they do not).

    Source
    ------
    Goodman 2001, "Classes for fast maximum entropy training".
    """

    _folder = "class-factored-softmax-builder"
    _deepest = 1

    @staticmethod
    def _parse(line: str) -> tuple[list[str], str]:
        cls, word, *_ = line.split()
        return [cls], word

    def class_log_distribution(self, x: Expression, update: bool = True) -> Expression:
        """Return log p(class | x) of all classes, in the order of the file, (K,)."""
        return log_softmax(_layer(self._root).scores(self._check("class_log_distribution", x), bool(update)))

    def class_logits(self, x: Expression, update: bool = True) -> Expression:
        """Return the scores of all classes, (K,)."""
        return _layer(self._root).scores(self._check("class_logits", x), bool(update))

    def subclass_log_distribution(self, x: Expression, classid: int, update: bool = True) -> Expression:
        """Return log p(word | class, x) of the words of a class, in the order of the file."""
        return log_softmax(self._class(classid).scores(self._check("subclass_log_distribution", x), bool(update)))

    def subclass_logits(self, x: Expression, classid: int, update: bool = True) -> Expression:
        """Return the scores of the words of a class; of a single word 0 (DyNet dies)."""
        return self._class(classid).scores(self._check("subclass_logits", x), bool(update))

    def _class(self, classid: int) -> Layer:
        classes = list(self._root.children.values())
        return _layer(classes[_index("subclass", "the class", classid, len(classes))])


class HierarchicalSoftmaxBuilder(_TreeSoftmaxBuilder):
    """Softmax over classes, over the classes in them, and so on, then over words.

    Parameters
    ----------
    input_dim : size I of x.
    cluster_file : path of a text file, a line "CLASS CLASS ... <tab> WORD [FREQUENCY]" for each word: the path to it
        from the root.
    word_dict : from words to numbers, 0 to n-1.
    pc : collection; the parameters go into its subcollection "hierarchical-softmax-builder": W and b of each class with
        more than
        one choice, from the root down.
    bias : whether there are biases.

    Raises
    ------
    MissingFileError, ModelFileError, ArgumentError : as `ClassFactoredSoftmaxBuilder`.

    Notes
    -----
    DyNet has this builder in C++ only; there a choice of two is one score and its logistic, which is the same family of
    distributions, and there is no `full_log_distribution`.

    Source
    ------
    Morin and Bengio 2005, "Hierarchical probabilistic neural network language model".
    """

    _folder = "hierarchical-softmax-builder"

    @staticmethod
    def _parse(line: str) -> tuple[list[str], str]:
        path, _, rest = line.partition("\t")
        if not path.split():
            raise ValueError
        return path.split(), rest.split()[0]


def _layer(node: _Node) -> Layer:
    assert node.layer is not None
    return node.layer


def _read(name: str, cluster_file: Any, word_dict: Any, parse: Callable[[str], tuple[list[str], str]]) -> _Node:
    """Return the tree of classes of a file."""
    path = path_of(name, cluster_file)
    if not isinstance(word_dict, Mapping):
        raise OperandError(f"{name}: the dictionary is {describe(word_dict)}\n  expected  a dict from words to numbers")
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise MissingFileError(f"{path}: cannot be read: {os.strerror(error.errno or 0)}") from None
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: no UTF-8: {error.reason}") from None
    root, seen = _Node(), set()
    for k, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            classes, word = parse(line)
        except (ValueError, IndexError):
            raise ModelFileError(f"{path}, line {k}: {line[:60]!r}\n  expected  classes, and a word") from None
        if word not in word_dict:
            raise ModelFileError(f"{path}, line {k}: the word {word!r} is not in the dictionary")
        if len(classes) > _DEEPEST:
            raise ModelFileError(f"{path}, line {k}: {len(classes)} classes\n  expected  at most {_DEEPEST} within each other")
        node = root
        for cls in classes:
            if node.words:
                raise ModelFileError(f"{path}, line {k}: {line[:60]!r}\n  expected  no classes where there are words already")
            node = node.children.setdefault(cls, _Node())
        number = _integer(name, f"the number of {word!r:.40}", word_dict[word])
        if number in seen or node.children:
            raise ModelFileError(f"{path}, line {k}: the word {word!r} is there twice, or beside classes")
        seen.add(number)
        node.words.append(number)
    if seen != set(range(len(seen))) or not seen:
        raise ArgumentError(
            f"{name}: the words of {path} have the numbers {sorted(seen)[:8]}...\n  expected  0 to {len(seen) - 1}"
        )
    return root

"""Tree-LSTM over binary trees, a loss at each node.

Source: Tai, Socher, Manning (2015), "Improved Semantic Representations From Tree-Structured Long Short-Term Memory
Networks", equations 9 to 14 with N = 2; as in `examples/tree_lstm.py`.
"""

import pathlib
import re

import numpy as np

from benchmarks.tasks import Hand, quantile, zipf

TITLE = "Tree-LSTM"
SIZES = {"word": 128, "hidden": 128}
FOLLOWING = {"word": 1}
DYNET_MEGABYTES = 1  # room that DyNet gets for a sentence, in each of its pools
CELLS = True  # `Program` can be told to make cells of its node functions

# Stanford Sentiment Treebank: quantiles of the number of words, and words that come twice or more with one for all others.
LENGTHS = (2, 5, 7, 9, 11, 12, 13, 15, 16, 17, 18, 20, 21, 22, 24, 25, 27, 29, 32, 35, 52)
WORDS, CLASSES = 8736, 5
LEAST = 2


def generated(rng, count):
    """Trees: (label, word) or (label, left, right); 11 deep on average, as those of the treebank."""

    def tree(leaves):
        label = rng.randrange(CLASSES)
        if leaves == 1:
            return label, zipf(rng, WORDS)
        # A phrase often is a word and the rest: uniform splits alone would give trees that are too shallow.
        left = 1 if rng.random() < 0.55 else rng.randint(1, leaves - 1)
        return label, tree(left), tree(leaves - left)

    return [tree(quantile(rng, LENGTHS)) for _ in range(count)], {"words": WORDS}


def read(folder):
    file = pathlib.Path(folder) / "sst" / "train.txt"
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    numbers, counts = {}, {}
    for word in (word for line in lines for word in re.findall(r"([^()\t\r\n ]+)\)", line)):
        counts[word] = counts.get(word, 0) + 1
    for word, count in counts.items():
        if count >= LEAST:
            numbers[word] = len(numbers) + 1

    def tree(tokens):
        label, token = int(next(tokens)), next(tokens)
        found = (label, tree(tokens)) if token == "(" else (label, numbers.get(token, 0))
        if token == "(":
            next(tokens)  # the bracket that opens the right part
            found = (*found, tree(tokens))
        next(tokens)  # the bracket that closes this node
        return found

    trees = []
    for line in lines:
        tokens = iter(re.findall(r"[()]|[^()\t\r\n ]+", line))
        next(tokens)
        trees.append(tree(tokens))
    return trees, {"words": len(numbers) + 1}


def shapes(sizes):
    word, hidden = sizes["word"], sizes["hidden"]
    return {
        "table.words": (sizes["words"], word),
        **{f"W{gate}": (hidden, word) for gate in "iou"},
        **{f"U{gate}": (hidden, 2 * hidden) for gate in "ioulr"},
        **{f"b{gate}": (hidden,) for gate in "iouf"},
        "W": (CLASSES, hidden),
        "b": (CLASSES,),
    }


class Program:
    """Op by op; or with `cells`, which makes a cell of each of the two node functions."""

    def __init__(self, dy, sizes, cells=False):
        self.dy, self.model = dy, dy.ParameterCollection()
        word, hidden = sizes["word"], sizes["hidden"]
        self.words = self.model.add_lookup_parameters((sizes["words"], word))
        Wi, Wo, Wu = [self.model.add_parameters((hidden, word)) for _ in "iou"]
        Ui, Uo, Uu, Ul, Ur = [self.model.add_parameters((hidden, 2 * hidden)) for _ in "ioulr"]
        bi, bo, bu, bf = [self.model.add_parameters((hidden,)) for _ in "iouf"]
        self.W, self.b = self.model.add_parameters((CLASSES, hidden)), self.model.add_parameters((CLASSES,))

        def leaf(x):
            i = dy.logistic(dy.affine_transform([bi, Wi, x]))
            o = dy.logistic(dy.affine_transform([bo, Wo, x]))
            u = dy.tanh(dy.affine_transform([bu, Wu, x]))
            c = dy.cmult(i, u)
            return dy.cmult(o, dy.tanh(c)), c

        def inner(h_left, c_left, h_right, c_right):
            h = dy.concatenate([h_left, h_right])
            i = dy.logistic(dy.affine_transform([bi, Ui, h]))
            l = dy.logistic(dy.affine_transform([bf, Ul, h]))
            r = dy.logistic(dy.affine_transform([bf, Ur, h]))
            o = dy.logistic(dy.affine_transform([bo, Uo, h]))
            u = dy.tanh(dy.affine_transform([bu, Uu, h]))
            c = dy.cmult(i, u) + dy.cmult(l, c_left) + dy.cmult(r, c_right)
            return dy.cmult(o, dy.tanh(c)), c

        self.leaf, self.inner = (dy.cell(leaf), dy.cell(inner)) if cells else (leaf, inner)

    def visit(self, tree, losses):
        """The state of a tree; appends the losses of its nodes."""
        if len(tree) == 2:
            h, c = self.leaf(self.words[tree[1]])
        else:
            h, c = self.inner(*self.visit(tree[1], losses), *self.visit(tree[2], losses))
        losses.append(self.dy.pickneglogsoftmax(self.dy.affine_transform([self.b, self.W, h]), tree[0]))
        return h, c

    def loss(self, batch):
        losses = []
        for tree in batch:
            self.visit(tree, losses)
        return self.dy.esum(losses) / len(losses)


class Bulk(Program):
    """The same for a whole minibatch given as arrays of integers; those of a tree are made once."""

    def __init__(self, dy, sizes):
        super().__init__(dy, sizes, cells=True)
        self.arrays = {}

    def arrays_of(self, tree):
        """Words, labels of the leaves and of the inner nodes, children: a leaf by its number, an inner node by -1 minus its."""
        found = self.arrays.get(id(tree))
        if found is None:
            words, of_leaves, of_inner, children = [], [], [], []

            def visit(node):
                if len(node) == 2:
                    words.append(node[1])
                    of_leaves.append(node[0])
                    return len(words) - 1
                below = visit(node[1]), visit(node[2])
                children.append(below)
                of_inner.append(node[0])
                return -len(children)

            visit(tree)
            arrays = [np.array(a) for a in (words, of_leaves, of_inner)]
            found = self.arrays[id(tree)] = (*arrays, np.array(children).reshape(-1, 2), tree)  # the tree keeps its id
        return found

    def loss(self, batch):
        dy = self.dy
        words, of_leaves, of_inner, children, _ = zip(*map(self.arrays_of, batch), strict=True)
        leaves, inner = (np.cumsum([0, *map(len, column)]) for column in (words, of_inner))
        total = leaves[-1]
        numbered = [np.where(below >= 0, below + leaves[k], total + inner[k] - 1 - below) for k, below in enumerate(children)]
        vectors = dy.rows(self.words, np.concatenate(words))
        states, _ = dy.tree(self.inner, np.concatenate(numbered), *dy.each(self.leaf, vectors))
        labels = np.concatenate([*of_leaves, *of_inner])
        return dy.each(self.loss_of, states, labels).sum() / len(labels)

    def loss_of(self, h, label):
        return self.dy.pickneglogsoftmax(self.dy.affine_transform([self.b, self.W, h]), label)


def levels(trees):
    """Nodes by their distance from the root: [(inner nodes, leaves, order)] from the roots down.

    The children of the inner nodes of a level are all the nodes of the next, and `order` says where they are there: for each
    inner node its left, then its right child, counted over the next level's inner nodes and then its leaves.
    """
    found, nodes = [], trees
    while nodes:
        inner, leaves, order = [], [], []
        for node in nodes:
            if len(node) == 3:
                order.append(len(inner))
                inner.append(node)
            else:
                order.append(-1 - len(leaves))
                leaves.append(node)
        if found:
            found[-1] = (*found[-1], [k if k >= 0 else len(inner) - 1 - k for k in order])
        found.append((inner, leaves))
        nodes = [part for node in inner for part in node[1:]]
    found[-1] = (*found[-1], [])
    return found


class HandBatched(Hand):
    """All leaves at once; then the inner nodes level by level, from the most distant of the roots. Gates are stacked."""

    def __init__(self, th, sizes, values):
        super().__init__(th, sizes, values)

        def stacked(*names):
            return self.tensor(np.concatenate([values[name] for name in names]))

        self.words = self.tensor("table.words")
        self.leaf_W = stacked("Wi", "Wo", "Wu")
        self.inner_W = stacked("Ui", "Uo", "Ul", "Ur", "Uu")
        self.bi, self.bo, self.bu, self.bf = (self.tensor(f"b{gate}") for gate in "iouf")
        self.W, self.b = self.tensor("W"), self.tensor("b")

    def prepare(self, batch):
        by_level = levels(batch)
        words = [leaf[1] for _, leaves, _ in by_level for leaf in leaves]
        labels = [node[0] for inner, _, _ in by_level[::-1] for node in inner]
        labels += [leaf[0] for _, leaves, _ in by_level for leaf in leaves]
        counts = [len(leaves) for _, leaves, _ in by_level]
        orders = [self.indices(order) for _, _, order in by_level]
        return self.indices(words), self.indices(labels), counts, orders

    def loss(self, prepared):
        th, hidden = self.th, self.sizes["hidden"]
        words, labels, counts, orders = prepared
        linear = th.nn.functional.linear
        gates = linear(self.rows(self.words, words), self.leaf_W, th.cat([self.bi, self.bo, self.bu]))
        i, o = th.sigmoid(gates[:, : 2 * hidden]).chunk(2, 1)
        leaf_c = i * th.tanh(gates[:, 2 * hidden :])
        leaf_h = o * th.tanh(leaf_c)
        bias = th.cat([self.bi, self.bo, self.bf, self.bf, self.bu])
        level_h, level_c = leaf_h.split(counts), leaf_c.split(counts)
        h, c, found = level_h[-1], level_c[-1], []  # of the level below; the most distant one has leaves only
        for order, h_leaves, c_leaves in zip(orders[-2::-1], level_h[-2::-1], level_c[-2::-1], strict=True):
            h = h.index_select(0, order).view(-1, 2 * hidden)
            c = c.index_select(0, order).view(-1, 2 * hidden)
            gates = linear(h, self.inner_W, bias)
            i, o, l, r = th.sigmoid(gates[:, : 4 * hidden]).chunk(4, 1)
            c = i * th.tanh(gates[:, 4 * hidden :]) + l * c[:, :hidden] + r * c[:, hidden:]
            h = o * th.tanh(c)
            found.append(h)
            if len(h_leaves):
                h, c = th.cat([h, h_leaves]), th.cat([c, c_leaves])
        return self.mean_loss(linear(th.cat([*found, leaf_h]), self.W, self.b), labels)


def products(batch, sizes):
    word, hidden = sizes["word"], sizes["hidden"]
    by_level = levels(batch)
    leaves = sum(len(level[1]) for level in by_level)
    inner = [len(level[0]) for level in by_level if level[0]]
    above = [(2 * hidden, 5 * hidden, inner)] if inner else []
    return [(word, 3 * hidden, [leaves]), *above, (hidden, CLASSES, [leaves + sum(inner)])]

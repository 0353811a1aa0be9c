"""TreeRNN and N-ary TreeLSTM: what a sentence says, and what each of its phrases says, from 0 (awful) to 4 (superb).

Every tree has a shape of its own, so nothing can be padded into one tensor; here the network is written for one tree, by
recursion, and the trees of a minibatch share one graph, in which the library finds what can run together.

    python examples/tree_lstm.py
    python examples/tree_lstm.py --model rnn
    python examples/tree_lstm.py --data DIR     # train.txt and dev.txt there, one bracketed tree a line

A tree is `(LABEL WORD)` or `(LABEL TREE TREE)`; without --data a small treebank at the end of this file is used.

Source: Tai, Socher, Manning (2015), "Improved Semantic Representations From Tree-Structured Long Short-Term Memory
Networks", equations 9 to 14 with N = 2.
"""

import argparse
import collections
import os
import random
import re
import sys
import time

import autobatch as dy

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

CLASSES = 5
FILES = ("train.txt", "dev.txt")  # in the folder named by --data
UNKNOWN = 0  # index of every word that the vocabulary does not hold

# Defaults for the few dozen trees at the end of this file, and for thousands of trees (--data).
SMALL = {"wembed": 32, "hidden": 32, "batch": 4, "epochs": 12, "min_count": 1, "alpha": 0.01}
LARGE = {"wembed": 128, "hidden": 128, "batch": 64, "epochs": 5, "min_count": 2, "alpha": 0.001}


class Tree:
    """A phrase and its label: a leaf holds a word, any other node two smaller trees."""

    __slots__ = ("label", "left", "right", "word")

    def __init__(self, label, word=None, left=None, right=None):
        self.label, self.word, self.left, self.right = label, word, left, right

    def leaves(self):
        return [self] if self.word is not None else self.left.leaves() + self.right.leaves()

    def __str__(self):
        return " ".join(leaf.word for leaf in self.leaves())


def read_tree(line):
    """The tree in one line of brackets, as `(3 (2 very) (3 good))`."""
    open_brackets = [[]]
    for token in re.findall(r"[()]|[^()\t\r\n ]+", line):
        if token == "(":
            open_brackets.append([])
        elif token != ")":
            open_brackets[-1].append(token)
        elif len(open_brackets) > 1:
            label, *parts = open_brackets.pop() or [""]
            kinds = [type(part) for part in parts]
            if label not in ("0", "1", "2", "3", "4") or kinds not in ([str], [Tree, Tree]):
                raise ValueError(f"want (LABEL WORD) or (LABEL TREE TREE), LABEL one of 0 to 4; got {line.strip()[:60]!r}")
            open_brackets[-1].append(Tree(int(label), *parts) if kinds == [str] else Tree(int(label), None, *parts))
        else:
            raise ValueError(f"a bracket closes that was never opened: {line.strip()[:60]!r}")
    if len(open_brackets) != 1 or [type(part) for part in open_brackets[0]] != [Tree]:
        raise ValueError(f"want one whole tree in brackets, got {line.strip()[:60]!r}")
    return open_brackets[0][0]


def read_trees(path):
    with open(path, encoding="utf-8") as lines:
        trees = [read_tree(line) for line in lines if line.strip()]
    if not trees:
        raise ValueError(f"no trees in {path}")
    return trees


def make_vocabulary(trees, min_count):
    """word -> index for the words seen at least `min_count` times; index 0 is for all others."""
    counts = collections.Counter(leaf.word for tree in trees for leaf in tree.leaves())
    return {word: index for index, word in enumerate((w for w, n in counts.items() if n >= min_count), UNKNOWN + 1)}


class TreeRNN:
    """The state of a phrase is h = tanh(b + U [h_left; h_right]), of a word tanh(b + W x)."""

    def __init__(self, model, vocabulary, wembed, hidden):
        self.vocabulary = vocabulary
        self.words = model.add_lookup_parameters((len(vocabulary) + 1, wembed))
        self.W = model.add_parameters((hidden, wembed))
        self.U = model.add_parameters((hidden, 2 * hidden))
        self.b = model.add_parameters((hidden,), init=0.0)

    def leaf(self, word):
        x = self.words[self.vocabulary.get(word, UNKNOWN)]
        return (dy.tanh(dy.affine_transform([self.b, self.W, x])),)

    def join(self, left, right):
        h = dy.concatenate([left[0], right[0]])
        return (dy.tanh(dy.affine_transform([self.b, self.U, h])),)


class TreeLSTM:
    """The state of a phrase is (h, c); each of its two parts has a forget gate, and every gate sees both parts."""

    def __init__(self, model, vocabulary, wembed, hidden):
        self.vocabulary = vocabulary
        self.words = model.add_lookup_parameters((len(vocabulary) + 1, wembed))
        self.Wi, self.Wo, self.Wu = [model.add_parameters((hidden, wembed)) for _ in "iou"]
        self.Ui, self.Uo, self.Uu = [model.add_parameters((hidden, 2 * hidden)) for _ in "iou"]
        self.Ul, self.Ur = [model.add_parameters((hidden, 2 * hidden)) for _ in "lr"]
        self.bi, self.bo, self.bu = [model.add_parameters((hidden,), init=0.0) for _ in "iou"]
        self.bf = model.add_parameters((hidden,), init=1.0)  # remember, until taught otherwise

    def leaf(self, word):
        x = self.words[self.vocabulary.get(word, UNKNOWN)]
        i = dy.logistic(dy.affine_transform([self.bi, self.Wi, x]))
        o = dy.logistic(dy.affine_transform([self.bo, self.Wo, x]))
        u = dy.tanh(dy.affine_transform([self.bu, self.Wu, x]))
        c = dy.cmult(i, u)
        return dy.cmult(o, dy.tanh(c)), c

    def join(self, left, right):
        (h_left, c_left), (h_right, c_right) = left, right
        h = dy.concatenate([h_left, h_right])
        i = dy.logistic(dy.affine_transform([self.bi, self.Ui, h]))
        l = dy.logistic(dy.affine_transform([self.bf, self.Ul, h]))
        r = dy.logistic(dy.affine_transform([self.bf, self.Ur, h]))
        o = dy.logistic(dy.affine_transform([self.bo, self.Uo, h]))
        u = dy.tanh(dy.affine_transform([self.bu, self.Uu, h]))
        c = dy.cmult(i, u) + dy.cmult(l, c_left) + dy.cmult(r, c_right)
        return dy.cmult(o, dy.tanh(c)), c


class Classifier:
    """Scores the classes at each node of a tree, from the state that a TreeRNN or TreeLSTM gives that node."""

    def __init__(self, network, vocabulary, wembed, hidden, dropout=0.0):
        self.model = dy.ParameterCollection()
        self.network = network(self.model, vocabulary, wembed, hidden)
        self.W = self.model.add_parameters((CLASSES, hidden))
        self.b = self.model.add_parameters((CLASSES,), init=0.0)
        self.dropout = dropout

    def scores(self, tree, training=False):
        """(node, its scores) for every node of `tree`, parts before the whole: the root comes last."""
        found = []

        def visit(node):
            if node.word is not None:
                state = self.network.leaf(node.word)
            else:
                state = self.network.join(visit(node.left), visit(node.right))
            h = dy.dropout(state[0], self.dropout) if training and self.dropout else state[0]
            found.append((node, dy.affine_transform([self.b, self.W, h])))
            return state

        visit(tree)
        return found

    def loss(self, trees):
        """The mean loss of the nodes of `trees`, in nats."""
        losses = [dy.pickneglogsoftmax(s, node.label) for tree in trees for node, s in self.scores(tree, training=True)]
        return dy.esum(losses) / len(losses)

    def predict(self, trees):
        """[(node, predicted label), …] for each tree, the root last; one graph for all trees."""
        dy.renew_cg()
        scored = [self.scores(tree) for tree in trees]
        values = iter(dy.npvalues([s for nodes in scored for _, s in nodes]))
        return [[(node, int(next(values).argmax())) for node, _ in nodes] for nodes in scored]


def minibatches(trees, size):
    return [trees[i : i + size] for i in range(0, len(trees), size)]


def train_epoch(classifier, trainer, trees, size):
    """(mean loss, batches run forward) of one pass over `trees` with an update after each `size` of them."""
    total, batches = 0.0, 0
    parts = minibatches(trees, size)
    for part in progress(parts, "training"):
        dy.renew_cg()
        loss = classifier.loss(part)
        total += loss.scalar_value()
        batches += dy.current_graph().batches
        loss.backward()
        trainer.update()
    return total / len(parts), batches


def accuracy(classifier, trees, size):
    """The share of right labels over all nodes, and over the roots."""
    right = {"node": [], "root": []}
    for part in progress(minibatches(trees, size), "reading dev"):
        for nodes in classifier.predict(part):
            right["node"] += [label == node.label for node, label in nodes]
            right["root"].append(right["node"][-1])
    return [sum(right[kind]) / len(right[kind]) for kind in ("node", "root")]


def progress(items, what):
    """`items`, with a bar on the terminal once they have taken a second."""
    return items if tqdm is None else tqdm(items, desc=what, delay=1, leave=False, disable=None)


def show(classifier, tree):
    """Print `tree`, a phrase a line: its true and its predicted label, phrases indented below the phrase they are part of."""
    labels = dict(classifier.predict([tree])[0])
    waiting = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        print(f"  {node.label}     {labels[node]}     {'  ' * depth}{node}")
        if node.word is None:
            waiting += [(node.right, depth + 1), (node.left, depth + 1)]


def parse(argv):
    parser = argparse.ArgumentParser(description="Train a TreeRNN or TreeLSTM with a loss at each node of each tree.")
    parser.add_argument("--model", choices=("lstm", "rnn"), default="lstm", help="which network (default: lstm)")
    parser.add_argument("--data", metavar="DIR", help="folder with train.txt and dev.txt (default: the treebank in this file)")
    for name, about in (
        ("wembed", "size of a word's vector"),
        ("hidden", "size of a node's state"),
        ("batch", "trees in a minibatch"),
        ("epochs", "passes over the training trees"),
        ("min_count", "words rarer than this count as unknown"),
        ("alpha", "Adam's step"),
    ):
        help = f"{about} (default: {SMALL[name]}; with --data {LARGE[name]})"
        parser.add_argument("--" + name.replace("_", "-"), type=type(SMALL[name]), metavar="N", help=help)
    parser.add_argument("--dropout", type=float, default=0.0, metavar="P", help="dropout of a node's state before its scores")
    parser.add_argument("--policy", choices=("ratio", "agenda", "depth", "none"), default="ratio", help="how to batch")
    parser.add_argument("--seed", type=int, default=1, help="of initial values and the order of the trees (default: 1)")
    args = parser.parse_args(argv)
    if args.data is not None and not all(os.path.isfile(os.path.join(args.data, name)) for name in FILES):
        parser.error(f"{args.data} must hold {' and '.join(FILES)}")
    for name, default in (SMALL if args.data is None else LARGE).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if min(args.wembed, args.hidden, args.batch, args.epochs) < 1 or not 0 <= args.dropout < 1:
        parser.error("sizes and --epochs must be at least 1, and 0 <= --dropout < 1")
    return args


def main(argv=None):
    """Train and report; returns the sizes, one record for each epoch, and the classifier."""
    args = parse(argv)
    if args.data is None:
        trees = [read_tree(line) for line in TREEBANK.splitlines() if line]
        train, dev = [t for n, t in enumerate(trees) if n % 5 != 4], trees[4::5]
    else:
        train, dev = (read_trees(os.path.join(args.data, name)) for name in FILES)
    vocabulary = make_vocabulary(train, args.min_count)

    dy.reset_random_seed(args.seed)
    rng = random.Random(args.seed)
    network = {"lstm": TreeLSTM, "rnn": TreeRNN}[args.model]
    classifier = Classifier(network, vocabulary, args.wembed, args.hidden, args.dropout)
    trainer = dy.AdamTrainer(classifier.model, alpha=args.alpha)
    print(f"\n{network.__name__}, words of {args.wembed}, states of {args.hidden}, a loss at each node, policy {args.policy}.")
    print(f"{len(train)} training trees in minibatches of {args.batch}, {len(dev)} dev trees, {len(vocabulary)} words.")
    print("Kernels are compiled when first used, for some seconds, and found on disk from then on.")
    if tqdm is None:
        print("No progress bars: tqdm is not installed (python -m pip install tqdm).")
    print("\nepoch     loss   dev node   dev root   sentences/s   batches/minibatch")

    history = []
    dy.configure(policy=args.policy)
    try:
        for epoch in range(1, args.epochs + 1):
            rng.shuffle(train)
            start = time.perf_counter()
            loss, batches = train_epoch(classifier, trainer, train, args.batch)
            speed = len(train) / (time.perf_counter() - start)
            batches /= -(-len(train) // args.batch)
            node, root = accuracy(classifier, dev, args.batch)
            print(f"{epoch:5d}   {loss:6.4f}   {node:8.3f}   {root:8.3f}   {speed:11,.0f}   {batches:17,.0f}", flush=True)
            record = {"epoch": epoch, "loss": loss, "node_accuracy": node, "root_accuracy": root}
            history.append(record | {"sentences_per_second": speed, "batches": batches})

        print("\nA dev sentence and its phrases, 0 awful to 4 superb:\n\ntrue  said")
        show(classifier, next((tree for tree in dev if 5 <= len(tree.leaves()) <= 9), dev[0]))
    finally:
        dy.configure(policy="ratio")
    return {"train": len(train), "dev": len(dev), "words": len(vocabulary), "history": history, "classifier": classifier}


TREEBANK = """
(4 (2 (2 the) (2 soup)) (4 (2 was) (4 (2 very) (3 good))))
(1 (2 (2 the) (2 soup)) (1 (2 was) (1 stale)))
(3 (2 (2 the) (2 bread)) (3 (2 was) (3 (3 fresh) (3 (2 and) (3 warm)))))
(1 (2 (2 the) (2 bread)) (1 (2 was) (1 (2 not) (3 fresh))))
(0 (2 (2 the) (2 waiter)) (0 (2 was) (0 (2 very) (1 rude))))
(3 (2 (2 the) (2 waiter)) (3 (2 was) (3 (3 kind) (3 (2 and) (3 funny)))))
(1 (2 (2 the) (2 hotel)) (1 (2 was) (1 (3 good) (1 (2 but) (1 noisy)))))
(3 (2 (2 the) (2 hotel)) (3 (2 was) (3 (1 noisy) (3 (2 but) (3 good)))))
(0 (2 (2 the) (2 hotel)) (0 (2 was) (0 awful)))
(0 (2 (2 our) (2 room)) (0 (2 was) (0 (2 very) (1 noisy))))
(3 (2 (2 our) (2 room)) (3 (2 was) (3 (2 not) (1 noisy))))
(4 (2 (2 our) (2 room)) (4 (2 was) (4 (3 warm) (4 (2 and) (4 (2 very) (3 good))))))
(1 (2 (2 the) (2 film)) (1 (2 was) (1 (2 not) (3 funny))))
(4 (2 (2 the) (2 film)) (4 (2 was) (4 (2 very) (3 funny))))
(3 (2 (2 the) (2 film)) (3 (2 was) (3 (3 (2 not) (1 dull)) (3 (2 and) (3 funny)))))
(0 (2 (2 the) (2 film)) (0 (2 had) (0 (1 (2 a) (1 weak)) (0 (2 plot) (0 (2 and) (0 (2 an) (0 (0 awful) (2 ending))))))))
(1 (2 (2 the) (2 film)) (1 (2 had) (1 (3 (2 a) (3 good)) (1 (2 plot) (1 (2 but) (1 (2 a) (1 (1 weak) (2 ending))))))))
(3 (2 (2 the) (2 film)) (3 (2 had) (3 (1 (2 a) (1 dull)) (4 (2 plot) (4 (2 but) (4 (2 a) (4 (4 superb) (2 ending))))))))
(4 (2 (2 the) (2 ending)) (4 (2 was) (4 wonderful)))
(1 (2 (2 the) (2 ending)) (1 (2 was) (1 (2 not) (4 (2 very) (3 good)))))
(0 (2 (2 the) (2 plot)) (0 (2 was) (0 (2 very) (1 weak))))
(2 (2 (2 the) (2 plot)) (2 (2 was) (2 (2 not) (0 awful))))
(4 (2 (2 the) (2 singer)) (4 (2 was) (4 superb)))
(1 (2 (2 the) (2 singer)) (1 (2 was) (1 (2 not) (4 superb))))
(1 (2 (2 the) (2 singer)) (1 (2 was) (1 (3 good) (1 (2 but) (1 (2 not) (4 superb))))))
(0 (2 (2 the) (2 band)) (0 (2 was) (0 (2 very) (1 noisy))))
(0 (2 (2 the) (2 band)) (0 (2 was) (0 (0 (2 very) (1 noisy)) (0 (2 and) (0 (2 very) (1 dull))))))
(4 (2 (2 the) (2 band)) (4 (2 was) (4 (4 wonderful) (3 (2 and) (3 kind)))))
(1 (2 (2 the) (2 book)) (1 (2 was) (1 (1 dull) (1 (2 and) (1 stale)))))
(3 (2 (2 the) (2 singer)) (3 (2 was) (3 (2 not) (1 rude))))
(2 (2 (2 the) (2 book)) (2 (2 was) (2 (0 dreadful) (3 (2 but) (3 funny)))))
(1 (2 (2 the) (2 book)) (1 (2 was) (1 (3 fresh) (1 (2 but) (1 (2 not) (3 funny))))))
(2 (2 (2 the) (2 book)) (2 (2 (2 came) (2 (2 by) (2 train))) (2 (2 on) (2 monday))))
(3 (2 (2 the) (2 train)) (3 (2 was) (3 (2 not) (1 stale))))
(3 (2 (2 the) (2 train)) (3 (2 was) (3 (1 noisy) (4 (2 but) (4 (2 very) (3 warm))))))
(2 (2 (2 the) (2 train)) (2 (2 came) (2 (2 on) (2 monday))))
(0 (2 we) (0 (2 (2 came) (2 (2 by) (2 train))) (0 (2 and) (0 (2 (2 the) (2 train)) (0 (2 was) (0 dreadful))))))
(4 (2 we) (4 (2 (2 had) (2 soup)) (4 (2 and) (4 (2 (2 the) (2 soup)) (4 (2 was) (4 wonderful))))))
(0 (2 we) (0 (2 (2 had) (2 bread)) (0 (2 but) (0 (2 (2 the) (2 bread)) (0 (2 was) (0 (2 very) (1 stale)))))))
(4 (2 we) (4 (2 had) (4 (4 (2 a) (4 wonderful)) (2 evening))))
(0 (2 we) (0 (2 had) (0 (0 (2 an) (0 awful)) (2 evening))))
(1 (2 we) (1 (2 had) (1 (1 (2 a) (1 (2 not) (4 (2 very) (3 good)))) (2 evening))))
(4 (2 (2 our) (2 evening)) (4 (2 was) (4 (4 (2 very) (3 warm)) (4 (2 and) (4 wonderful)))))
(2 (2 (2 our) (2 evening)) (2 (2 was) (2 (2 not) (0 dreadful))))
(1 (2 (2 the) (2 waiter)) (1 (2 was) (1 (2 not) (4 (2 very) (3 kind)))))
"""

if __name__ == "__main__":
    main(sys.argv[1:])

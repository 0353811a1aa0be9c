"""Arc-hybrid dependency parser over a BiLSTM of two layers, a loss at each state of the way to the tree.

Source: Kiperwasser and Goldberg (2016), "Simple and Accurate Dependency Parsing Using Bidirectional LSTM Feature
Representations", section 4, with a log loss and the static oracle; see `examples/dependency_parser.py`.
"""

import collections
import pathlib

import numpy as np

from benchmarks.tasks import Hand, Rectangles, lstm_products, lstm_shapes, quantile, zipf

TITLE = "arc-hybrid parser"
SIZES = {"word": 100, "tag": 25, "hidden": 125, "mlp": 100}
FOLLOWING = {"mlp": 0.8}
DYNET_MEGABYTES = 2  # room that DyNet gets for a sentence, in each of its pools

# English Web Treebank, sentences without crossing arcs: quantiles of their lengths, words that come twice or more.
LENGTHS = (1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15, 17, 18, 20, 22, 24, 27, 31, 38, 102)
WORDS, TAGS = 7283, 19  # one for all other words, one for the root
LEAST, UNKNOWN, ROOT = 2, 0, 1
SHIFT, LEFT, RIGHT = range(3)
LAYERS, SEEN = 2, 4


def states(heads):
    """((positions, transition), …) from the words alone to the tree `heads`; the root comes after the last word.

    Positions are those of the three top words of the stack and of the first in the buffer, -1 where there is none.
    """
    n = len(heads)
    waiting = collections.Counter(heads)  # how many dependents each word has yet to find
    stack, front, found = [], 0, []
    while front < n or stack:
        top = stack[-1] if stack else None
        if top is not None and heads[top] == front:
            transition = LEFT
        elif len(stack) > 1 and heads[top] == stack[-2] and not waiting[top]:
            transition = RIGHT
        else:
            transition = SHIFT
        found.append(((*([-1] * SEEN + stack)[-3:], front), transition))
        if transition == SHIFT:
            if front == n:
                raise ValueError(f"no transitions lead to the heads {heads}")
            stack.append(front)
            front += 1
        else:
            waiting[heads[stack.pop()]] -= 1
    return found


def random_heads(rng, n):
    """A tree that some transitions lead to."""
    heads, stack, front = [None] * n, [], 0
    while front < n or stack:
        if front < n and (not stack or rng.random() < 0.5):
            stack.append(front)
            front += 1
        else:
            word = stack.pop()
            heads[word] = stack[-1] if stack and rng.random() < 0.5 else front
    return heads


def generated(rng, count):
    """Sentences as (words, tags, states); words and tags end with the root."""
    sentences = []
    for _ in range(count):
        n = quantile(rng, LENGTHS)
        words = [*(2 + zipf(rng, WORDS - 2) for _ in range(n)), ROOT]
        tags = [*(rng.randrange(2, TAGS) for _ in range(n)), ROOT]
        sentences.append((words, tags, states(random_heads(rng, n))))
    return sentences, {"words": WORDS, "tags": TAGS}


def crossing(heads):
    arcs = [(min(arc), max(arc)) for arc in enumerate(heads)]
    return any(a < c < b < d for a, b in arcs for c, d in arcs)


def read(folder):
    files = sorted((pathlib.Path(folder) / "ud").glob("*train.conllu"))
    sentences, rows = [], []
    for line in (line for file in files for line in (*file.read_text(encoding="utf-8").split("\n"), "")):
        cells = line.split("\t")
        if not line.strip() and rows:
            words, tags, heads = zip(*rows, strict=True)
            sentences.append((words, tags, [head - 1 if head else len(rows) for head in heads]))
            rows = []
        elif cells[0].isdigit():
            rows.append((cells[1], cells[3], int(cells[6])))
    if not sentences:
        raise FileNotFoundError(f"no ud/*train.conllu in {folder}")
    sentences = [s for s in sentences if not crossing(s[2])]
    counts = collections.Counter(word for words, _, _ in sentences for word in words)
    words = {word: n for n, word in enumerate((w for w, count in counts.items() if count >= LEAST), 2)}
    tags = {tag: n for n, tag in enumerate(dict.fromkeys(tag for _, found, _ in sentences for tag in found), 2)}
    found = [([*(words.get(w, UNKNOWN) for w in ws), ROOT], [*map(tags.get, ts), ROOT], states(hs)) for ws, ts, hs in sentences]
    return found, {"words": len(words) + 2, "tags": len(tags) + 2}


def shapes(sizes):
    hidden, mlp = sizes["hidden"], sizes["mlp"]
    found = {"table.words": (sizes["words"], sizes["word"]), "table.tags": (sizes["tags"], sizes["tag"])}
    inputs = sizes["word"] + sizes["tag"]
    for layer in range(LAYERS):
        for way in ("forwards", "backwards"):
            found |= lstm_shapes(f"{way} {layer}", inputs, hidden)
        inputs = 2 * hidden
    return found | {"nowhere": (2 * hidden,), "W1": (mlp, SEEN * 2 * hidden), "b1": (mlp,), "W2": (3, mlp), "b2": (3,)}


class Program:
    """Written for one sentence and its way through the states."""

    def __init__(self, dy, sizes):
        self.dy, self.model = dy, dy.ParameterCollection()
        hidden, mlp = sizes["hidden"], sizes["mlp"]
        self.words = self.model.add_lookup_parameters((sizes["words"], sizes["word"]))
        self.tags = self.model.add_lookup_parameters((sizes["tags"], sizes["tag"]))
        self.reader = dy.BiRNNBuilder(LAYERS, sizes["word"] + sizes["tag"], 2 * hidden, self.model, dy.VanillaLSTMBuilder)
        self.nowhere = self.model.add_parameters((2 * hidden,))
        self.W1, self.b1 = self.model.add_parameters((mlp, SEEN * 2 * hidden)), self.model.add_parameters((mlp,))
        self.W2, self.b2 = self.model.add_parameters((3, mlp)), self.model.add_parameters((3,))

    def losses(self, sentence):
        dy = self.dy
        words, tags, way = sentence
        inputs = [dy.concatenate([self.words[w], self.tags[t]]) for w, t in zip(words, tags, strict=True)]
        vectors = [*self.reader.transduce(inputs), dy.parameter(self.nowhere)]  # position -1 is nowhere
        found = []
        for positions, transition in way:
            seen = dy.concatenate([vectors[position] for position in positions])
            hidden = dy.tanh(dy.affine_transform([self.b1, self.W1, seen]))
            found.append(dy.pickneglogsoftmax(dy.affine_transform([self.b2, self.W2, hidden]), transition))
        return found

    def loss(self, batch):
        losses = [loss for sentence in batch for loss in self.losses(sentence)]
        return self.dy.esum(losses) / len(losses)


class HandBatched(Hand):
    """nn.LSTM over padded rectangles; the states of all sentences, known beforehand, are scored at once."""

    def __init__(self, th, sizes, values):
        super().__init__(th, sizes, values)
        self.words, self.tags = self.tensor("table.words"), self.tensor("table.tags")
        self.lstms = [[self.lstm(f"{way} {layer}") for way in ("forwards", "backwards")] for layer in range(LAYERS)]
        self.nowhere = self.tensor("nowhere")
        self.W1, self.b1, self.W2, self.b2 = (self.tensor(name) for name in ("W1", "b1", "W2", "b2"))

    def prepare(self, batch):
        lengths = [len(words) for words, _, _ in batch]
        words, tags = ([n for sentence in batch for n in sentence[k]] for k in (0, 1))
        positions = np.concatenate([np.array([seen for seen, _ in way]) for _, _, way in batch])
        starts = np.repeat(np.cumsum(lengths) - lengths, [len(way) for _, _, way in batch])[:, None]
        positions = np.where(positions < 0, sum(lengths), positions + starts)  # behind all words comes nowhere
        transitions = [transition for _, _, way in batch for _, transition in way]
        return Rectangles(self, lengths), *map(self.indices, (words, tags, positions.ravel(), transitions))

    def loss(self, prepared):
        th, linear = self.th, self.th.nn.functional.linear
        padded, words, tags, positions, transitions = prepared
        vectors = th.cat([self.rows(self.words, words), self.rows(self.tags, tags)], 1)
        for lstms in self.lstms:
            vectors = padded.both(lstms, vectors)
        seen = th.cat([vectors, self.nowhere[None]]).index_select(0, positions).view(len(transitions), -1)
        return self.mean_loss(linear(th.tanh(linear(seen, self.W1, self.b1)), self.W2, self.b2), transitions)


def products(batch, sizes):
    lengths = [len(words) for words, _, _ in batch]
    count = sum(len(way) for _, _, way in batch)
    hidden, mlp = sizes["hidden"], sizes["mlp"]
    found, inputs = [], sizes["word"] + sizes["tag"]
    for _ in range(LAYERS):
        found += 2 * lstm_products(lengths, inputs, hidden)
        inputs = 2 * hidden
    return [*found, (SEEN * 2 * hidden, mlp, [count]), (mlp, 3, [count])]

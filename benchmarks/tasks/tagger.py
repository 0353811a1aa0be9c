"""BiLSTM tagger: a tag for each word of a sentence.

Source: Neubig et al. (2017), "DyNet: The Dynamic Neural Network Toolkit", section 7.3, and its benchmark's `bilstm-tagger`.
"""

import pathlib

import numpy as np

from benchmarks.tasks import Hand, Rectangles, lstm_products, lstm_shapes, quantile, zipf

TITLE = "BiLSTM tagger"
SIZES = {"word": 128, "hidden": 50, "mlp": 32}
FOLLOWING = {}
DYNET_MEGABYTES = 1  # room that DyNet gets for a sentence, in each of its pools

# English WikiNER: quantiles of the lengths of sentences from 0 to 100 % in steps of 5 %, and its vocabularies.
LENGTHS = (1, 8, 10, 11, 13, 14, 15, 17, 18, 19, 20, 22, 23, 25, 26, 29, 31, 35, 40, 48, 144)
WORDS, TAGS = 8504, 5
UNTAGGED = 0.83  # the share of words outside all names


def random_tag(rng):
    return 0 if rng.random() < UNTAGGED else rng.randrange(1, TAGS)


def generated(rng, count, length=None):
    """Sentences as (words, tags), all of one length where `length` is given."""
    lengths = [length or quantile(rng, LENGTHS) for _ in range(count)]
    sentences = [([zipf(rng, WORDS) for _ in range(n)], [random_tag(rng) for _ in range(n)]) for n in lengths]
    return sentences, {"words": WORDS, "tags": TAGS}


def read_sentences(folder):
    """[[(word, tag), …], …] of the files `wikiner/*.txt`, which hold a sentence a line, as word|TAG word|TAG."""
    files = sorted((pathlib.Path(folder) / "wikiner").glob("*.txt"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not lines:
        raise FileNotFoundError(f"no wikiner/*.txt in {folder}")
    return [[token.rpartition("|")[::2] for token in line.split(" ") if token] for line in lines]


def read(folder):
    sentences = read_sentences(folder)
    words, tags = ({symbol: n for n, symbol in enumerate(dict.fromkeys(t[k] for s in sentences for t in s))} for k in (0, 1))
    found = [([words[word] for word, _ in s], [tags[tag] for _, tag in s]) for s in sentences]
    return found, {"words": len(words), "tags": len(tags)}


def shapes(sizes):
    return {
        "table.words": (sizes["words"], sizes["word"]),
        **lstm_shapes("forwards", sizes["word"], sizes["hidden"]),
        **lstm_shapes("backwards", sizes["word"], sizes["hidden"]),
        "W1": (sizes["mlp"], 2 * sizes["hidden"]),
        "W2": (sizes["tags"], sizes["mlp"]),
    }


class Program:
    """Look-up, an LSTM in each direction, a layer of tanh, scores of the tags; written for one sentence."""

    def __init__(self, dy, sizes):
        self.dy, self.model = dy, dy.ParameterCollection()
        self.words = self.model.add_lookup_parameters((sizes["words"], sizes["word"]))
        self.forwards = dy.VanillaLSTMBuilder(1, sizes["word"], sizes["hidden"], self.model)
        self.backwards = dy.VanillaLSTMBuilder(1, sizes["word"], sizes["hidden"], self.model)
        self.W1 = self.model.add_parameters((sizes["mlp"], 2 * sizes["hidden"]))
        self.W2 = self.model.add_parameters((sizes["tags"], sizes["mlp"]))

    def embed(self, words):
        return [self.words[word] for word in words]

    def scores(self, words):
        dy = self.dy
        vectors = self.embed(words)
        forwards = self.forwards.initial_state().transduce(vectors)
        backwards = self.backwards.initial_state().transduce(vectors[::-1])[::-1]
        states = [dy.concatenate([f, b]) for f, b in zip(forwards, backwards, strict=True)]
        return [self.W2 * dy.tanh(self.W1 * h) for h in states]

    def losses(self, sentence):
        words, tags = sentence
        return [self.dy.pickneglogsoftmax(s, tag) for s, tag in zip(self.scores(words), tags, strict=True)]

    def loss(self, batch):
        losses = [loss for sentence in batch for loss in self.losses(sentence)]
        return self.dy.esum(losses) / len(losses)


class Manual(Program):
    """The same for sentences of one length, a minibatch batched by hand with the operations that take minibatches."""

    def loss(self, batch):
        dy = self.dy
        words, tags = (list(zip(*column, strict=True)) for column in zip(*batch, strict=True))
        vectors = [dy.lookup_batch(self.words, list(column)) for column in words]
        forwards = self.forwards.initial_state().transduce(vectors)
        backwards = self.backwards.initial_state().transduce(vectors[::-1])[::-1]
        losses = []
        for f, b, column in zip(forwards, backwards, tags, strict=True):
            scores = self.W2 * dy.tanh(self.W1 * dy.concatenate([f, b]))
            losses.append(dy.pickneglogsoftmax_batch(scores, list(column)))
        return dy.sum_batches(dy.esum(losses)) / (len(batch) * len(losses))


class Bulk(Program):
    """The same for a whole minibatch given as arrays of integers."""

    def loss(self, batch):
        dy = self.dy
        vectors, tags = self.vectors(batch), np.concatenate([tags for _, tags in batch])
        lengths = [len(words) for words, _ in batch]
        forwards = dy.scan(self.forwards, vectors, lengths)
        backwards = dy.scan(self.backwards, vectors, lengths, reverse=True)
        return dy.each(self.loss_of, forwards, backwards, tags).sum() / len(tags)

    def vectors(self, batch):
        return self.dy.rows(self.words, np.concatenate([words for words, _ in batch]))

    def loss_of(self, forwards, backwards, tag):
        dy = self.dy
        scores = self.W2 * dy.tanh(self.W1 * dy.concatenate([forwards, backwards]))
        return dy.pickneglogsoftmax(scores, tag)


class HandBatched(Hand):
    """nn.LSTM over padded rectangles, a direction at a time; the layers above see all words at once, without padding."""

    def __init__(self, th, sizes, values):
        super().__init__(th, sizes, values)
        self.words = self.tensor("table.words")
        self.lstms = [self.lstm(way) for way in ("forwards", "backwards")]
        self.W1, self.W2 = self.tensor("W1"), self.tensor("W2")

    def prepare(self, batch):
        padded = Rectangles(self, [len(words) for words, _ in batch])
        words, tags = (np.concatenate([np.array(s[k]) for s in batch]) for k in (0, 1))
        return padded, self.indices(words), self.indices(tags)

    def loss(self, prepared):
        padded, words, tags = prepared
        return self.tagged(padded, self.rows(self.words, words), tags)

    def tagged(self, padded, vectors, tags):
        states = padded.both(self.lstms, vectors)
        return self.mean_loss(self.th.tanh(states @ self.W1.T) @ self.W2.T, tags)


def products(batch, sizes):
    lengths = [len(sentence[-1]) for sentence in batch]
    n = sum(lengths)
    one_way = lstm_products(lengths, sizes["word"], sizes["hidden"])
    return [*one_way, *one_way, (2 * sizes["hidden"], sizes["mlp"], [n]), (sizes["mlp"], sizes["tags"], [n])]

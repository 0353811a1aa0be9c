"""LSTM language model: a loss over all words of the vocabulary at each word of a sentence.

Source: Neubig et al. (2017), "DyNet: The Dynamic Neural Network Toolkit", section 7.3, benchmark `rnnlm-batch`, here for one
sentence.
"""

import collections
import pathlib

import numpy as np

from benchmarks.tasks import Hand, Rectangles, lstm_products, lstm_shapes, quantile, zipf

TITLE = "LSTM language model"
SIZES = {"word": 128, "hidden": 256}
FOLLOWING = {"word": 0.5}
DYNET_MEGABYTES = 5  # room that DyNet gets for a sentence, in each of its pools

# Penn Treebank: about the quantiles of the lengths of its sentences, 21 words on average, and its vocabulary.
LENGTHS = (1, 6, 8, 10, 12, 14, 15, 16, 18, 19, 20, 21, 23, 24, 26, 27, 29, 31, 34, 39, 82)
WORDS = 10_000
EDGE, UNKNOWN = 0, 1  # begins and ends a sentence; all words without a number of their own


def generated(rng, count):
    """Sentences as lists of words."""
    sentences = [[2 + zipf(rng, WORDS - 2) for _ in range(quantile(rng, LENGTHS))] for _ in range(count)]
    return sentences, {"words": WORDS}


def read(folder):
    files = sorted((pathlib.Path(folder) / "ptb").glob("*train*"))
    sentences = [line.split() for file in files for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    if not sentences:
        raise FileNotFoundError(f"no ptb/*train* in {folder}")
    counts = collections.Counter(word for sentence in sentences for word in sentence)
    numbers = {word: n for n, (word, _) in enumerate(counts.most_common(WORDS - 2), 2)}
    return [[numbers.get(word, UNKNOWN) for word in sentence] for sentence in sentences], {"words": len(numbers) + 2}


def shapes(sizes):
    words, hidden = sizes["words"], sizes["hidden"]
    lstm = lstm_shapes("forwards", sizes["word"], hidden)
    return {"table.words": (words, sizes["word"]), **lstm, "W": (words, hidden), "b": (words,)}


class Program:
    """Look-up, LSTM, scores of all words; written for one sentence."""

    def __init__(self, dy, sizes):
        self.dy, self.model = dy, dy.ParameterCollection()
        self.words = self.model.add_lookup_parameters((sizes["words"], sizes["word"]))
        self.lstm = dy.VanillaLSTMBuilder(1, sizes["word"], sizes["hidden"], self.model)
        self.W = self.model.add_parameters((sizes["words"], sizes["hidden"]))
        self.b = self.model.add_parameters((sizes["words"],))

    def losses(self, sentence):
        dy = self.dy
        states = self.lstm.initial_state().transduce([self.words[word] for word in (EDGE, *sentence)])
        expected = zip(states, (*sentence, EDGE), strict=True)
        return [dy.pickneglogsoftmax(dy.affine_transform([self.b, self.W, h]), word) for h, word in expected]

    def loss(self, batch):
        losses = [loss for sentence in batch for loss in self.losses(sentence)]
        return self.dy.esum(losses) / len(losses)


class HandBatched(Hand):
    """nn.LSTM over padded rectangles; the scores of all words of all sentences, without padding, at once."""

    def __init__(self, th, sizes, values):
        super().__init__(th, sizes, values)
        self.words, self.reader = self.tensor("table.words"), self.lstm("forwards")
        self.W, self.b = self.tensor("W"), self.tensor("b")

    def prepare(self, batch):
        padded = Rectangles(self, [len(sentence) + 1 for sentence in batch], backwards=False)
        read = np.concatenate([np.array([EDGE, *sentence]) for sentence in batch])
        return padded, self.indices(read), self.indices(np.append(read[1:], EDGE))  # an edge ends one and begins the next

    def loss(self, prepared):
        padded, read, expected = prepared
        states = padded.run(self.reader, self.rows(self.words, read), "forwards").index_select(0, padded.at["forwards"])
        return self.mean_loss(self.th.nn.functional.linear(states, self.W, self.b), expected)


def products(batch, sizes):
    lengths = [len(sentence) + 1 for sentence in batch]
    return [*lstm_products(lengths, sizes["word"], sizes["hidden"]), (sizes["hidden"], sizes["words"], [sum(lengths)])]

"""LSTM acceptor: a class for each sentence, from the last state of an LSTM; as `examples/lstm_acceptor.py`."""

import numpy as np

from benchmarks.tasks import Hand, Rectangles, lstm_products, lstm_shapes

TITLE = "LSTM acceptor"
SIZES = {"word": 100, "hidden": 100}
FOLLOWING = {"word": 1}
DYNET_MEGABYTES = 1  # room that DyNet gets for a sentence, in each of its pools
WORDS, CLASSES = 1000, 3


def generated(rng, count):
    """Sentences of 5 to 40 words as (words, class)."""
    sentences = [([rng.randrange(WORDS) for _ in range(rng.randint(5, 40))], rng.randrange(CLASSES)) for _ in range(count)]
    return sentences, {"words": WORDS}


def read(folder):
    raise FileNotFoundError("the acceptor has no data but generated ones")


def shapes(sizes):
    lstm = lstm_shapes("forwards", sizes["word"], sizes["hidden"])
    return {"table.words": (sizes["words"], sizes["word"]), **lstm, "W": (CLASSES, sizes["hidden"]), "b": (CLASSES,)}


class Program:
    """Look-up, LSTM, linear layer; written for one sentence."""

    def __init__(self, dy, sizes):
        self.dy, self.model = dy, dy.ParameterCollection()
        self.words = self.model.add_lookup_parameters((sizes["words"], sizes["word"]))
        self.lstm = dy.VanillaLSTMBuilder(1, sizes["word"], sizes["hidden"], self.model)
        self.W = self.model.add_parameters((CLASSES, sizes["hidden"]))
        self.b = self.model.add_parameters((CLASSES,))

    def loss_of(self, sentence):
        words, label = sentence
        last = self.lstm.initial_state().transduce([self.words[word] for word in words])[-1]
        return self.dy.pickneglogsoftmax(self.dy.affine_transform([self.b, self.W, last]), label)

    def loss(self, batch):
        return self.dy.esum([self.loss_of(sentence) for sentence in batch]) / len(batch)


class HandBatched(Hand):
    """nn.LSTM over padded rectangles, of which the last state of each sentence is taken."""

    def __init__(self, th, sizes, values):
        super().__init__(th, sizes, values)
        self.words, self.reader = self.tensor("table.words"), self.lstm("forwards")
        self.W, self.b = self.tensor("W"), self.tensor("b")

    def prepare(self, batch):
        padded = Rectangles(self, [len(words) for words, _ in batch], backwards=False)
        words = np.concatenate([np.array(words) for words, _ in batch])
        return padded, self.indices(words), self.indices([label for _, label in batch])

    def loss(self, prepared):
        padded, words, labels = prepared
        last = padded.run(self.reader, self.rows(self.words, words), "forwards").index_select(0, padded.last)
        return self.mean_loss(self.th.nn.functional.linear(last, self.W, self.b), labels)


def products(batch, sizes):
    lstm = lstm_products([len(words) for words, _ in batch], sizes["word"], sizes["hidden"])
    return [*lstm, (sizes["hidden"], CLASSES, [len(batch)])]

"""RNN language model: what word comes next; trained on minibatches made by hand.

The library batches by itself what is written for one sentence (see the other examples). This one does it by hand, as one has
to in a library that does not: sentences are sorted by length, those of a minibatch go word by word together, through batched
look-ups and losses, and the losses of sentences that have ended are masked. A step is then recorded once for the whole
minibatch. That saves time where instances have one shape: as here, chains of nearly the same length.

    python examples/rnn_language_model.py
    python examples/rnn_language_model.py --data FILE --dev FILE     # one sentence a line, words between blanks
    python examples/rnn_language_model.py --samples 10 --start "this is the"

Without --dev, each sixth sentence is kept from training; without --data the sentences at the end of this file are used.

Source: Mikolov et al. (2010), "Recurrent neural network based language model".
"""

import argparse
import collections
import math
import os
import random
import sys
import time

import autobatch as dy

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

BUILDERS = {"lstm": dy.VanillaLSTMBuilder, "gru": dy.GRUBuilder, "simple": dy.SimpleRNNBuilder}
EDGE, UNKNOWN = "<s>", "<unk>"  # beginning and end of a sentence; every word that the vocabulary does not hold
KEPT = 6  # without --dev, each so many-th sentence is kept from training
LONGEST = 50  # words in a sample

# Defaults for the few dozen sentences at the end of this file, and for thousands of sentences (--data).
SMALL = {"wembed": 24, "hidden": 32, "layers": 1, "batch": 8, "epochs": 16, "min_count": 1, "alpha": 0.02}
LARGE = {"wembed": 128, "hidden": 256, "layers": 1, "batch": 32, "epochs": 5, "min_count": 2, "alpha": 0.002}


def read_sentences(path):
    """The sentences of a file as lists of words."""
    try:
        with open(path, encoding="utf-8-sig") as lines:
            sentences = [line.split() for line in lines if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error
    if not sentences:
        raise ValueError(f"no sentences in {path}")
    return sentences


def make_vocabulary(sentences, min_count):
    """The words that come at least `min_count` times; EDGE has number 0, UNKNOWN 1."""
    counts = collections.Counter(word for sentence in sentences for word in sentence)
    return [EDGE, UNKNOWN, *(word for word, n in counts.items() if n >= min_count and word not in (EDGE, UNKNOWN))]


def minibatches(sentences, size):
    """Sentences sorted by length, longest first, in lists of `size`: little is left to mask."""
    longest_first = sorted(sentences, key=len, reverse=True)
    return [longest_first[i : i + size] for i in range(0, len(longest_first), size)]


def columns(sentences, end):
    """(words, mask) for each step of a minibatch; mask is 1 where a sentence goes on, 0 where it has ended.

    the cat drank the milk <s>       1 1 1 1 1 1
    the farmer sowed <s> <s> <s>     1 1 1 1 0 0       one pair for each column
    """
    steps = max(map(len, sentences)) + 1  # the end of a sentence is a word to predict
    for t in range(steps):
        yield [s[t] if t < len(s) else end for s in sentences], [float(t <= len(s)) for s in sentences]


class LanguageModel:
    """Look-up, RNN, and a linear layer that scores all words of the vocabulary."""

    def __init__(self, vocabulary, builder, args):
        self.vocabulary = vocabulary
        self.numbers = {word: number for number, word in enumerate(vocabulary)}
        self.model = dy.ParameterCollection()
        self.words = self.model.add_lookup_parameters((len(vocabulary), args.wembed))
        self.rnn = builder(args.layers, args.wembed, args.hidden, self.model)
        self.W = self.model.add_parameters((len(vocabulary), args.hidden))
        self.b = self.model.add_parameters((len(vocabulary),), init=0.0)
        self.dropout = args.dropout

    def encode(self, sentence):
        return [self.numbers.get(word, self.numbers[UNKNOWN]) for word in sentence]

    def scores(self, h):
        return dy.affine_transform([self.b, self.W, h])

    def loss(self, sentences, training=False):
        """The loss of all words of a minibatch, in nats; sentences are lists of numbers."""
        end = self.numbers[EDGE]
        state = self.rnn.initial_state()
        last = [end] * len(sentences)
        losses = []
        for words, mask in columns(sentences, end):
            state = state.add_input(dy.lookup_batch(self.words, last))
            h = dy.dropout(state.output(), self.dropout) if training and self.dropout else state.output()
            loss = dy.pickneglogsoftmax_batch(self.scores(h), words)
            if not all(mask):
                loss = dy.cmult(loss, dy.reshape(dy.inputVector(mask), (1,), len(mask)))
            losses.append(loss)
            last = words
        return dy.sum_batches(dy.esum(losses))

    def sample(self, rng, start=()):
        """A sentence that begins with the words `start`, each further word drawn from what the model expects there."""
        dy.renew_cg()
        state = self.rnn.initial_state().add_inputs([self.words[n] for n in self.encode([EDGE, *start])])[-1]
        words = list(start)
        while len(words) < LONGEST:
            (number,) = rng.choices(range(len(self.vocabulary)), weights=dy.softmax(self.scores(state.output())).npvalue())
            if self.vocabulary[number] == EDGE:
                break
            words.append(self.vocabulary[number])
            state = state.add_input(self.words[number])
        return words


def count_words(sentences):
    """How many words are predicted: those of the sentences and their ends."""
    return sum(len(sentence) + 1 for sentence in sentences)


def train_epoch(lm, trainer, parts):
    """The perplexity of a word, over one pass with an update after each of the minibatches `parts`."""
    total = 0.0
    for part in progress(parts, "training"):
        dy.renew_cg()
        loss = lm.loss(part, training=True)
        total += loss.scalar_value()
        (loss / len(part)).backward()
        trainer.update()
    return math.exp(total / sum(map(count_words, parts)))


def perplexity(lm, parts):
    """The perplexity of a word of `parts`: e to the power of its mean loss."""
    total = 0.0
    for part in progress(parts, "reading dev"):
        dy.renew_cg()
        total += lm.loss(part).scalar_value()
    return math.exp(total / sum(map(count_words, parts)))


def progress(items, what):
    """`items`, with a bar on the terminal once they have taken a second."""
    return items if tqdm is None else tqdm(items, desc=what, delay=1, leave=False, disable=None)


def parse(argv):
    parser = argparse.ArgumentParser(description="Train an RNN language model on minibatches made by hand, and sample from it.")
    parser.add_argument("--data", metavar="FILE", help="training sentences, one a line (default: those in this file)")
    parser.add_argument(
        "--dev", metavar="FILE", help="dev sentences (default: each sixth training sentence, kept from training)"
    )
    parser.add_argument("--rnn", choices=sorted(BUILDERS), default="lstm", help="which network (default: lstm)")
    for name, about in (
        ("wembed", "size of a word's vector"),
        ("hidden", "size of a state"),
        ("layers", "layers of the RNN"),
        ("batch", "sentences in a minibatch"),
        ("epochs", "passes over the training sentences"),
        ("min_count", "words that come less often count as unknown"),
        ("alpha", "Adam's step"),
    ):
        help = f"{about} (default: {SMALL[name]}; with --data {LARGE[name]})"
        parser.add_argument("--" + name.replace("_", "-"), type=type(SMALL[name]), metavar="N", help=help)
    parser.add_argument(
        "--dropout", type=float, default=0.0, metavar="P", help="dropout of a state before its scores (default: 0)"
    )
    parser.add_argument("--samples", type=int, default=5, metavar="N", help="sentences to draw after training (default: 5)")
    parser.add_argument("--start", default="", metavar="WORDS", help="how samples begin")
    parser.add_argument("--seed", type=int, default=1, help="of initial values, the order of minibatches, samples (default: 1)")
    args = parser.parse_args(argv)
    for path in (args.data, args.dev):
        if path is not None and not os.path.isfile(path):
            parser.error(f"there is no file {path}")
    for name, default in (SMALL if args.data is None else LARGE).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if min(args.wembed, args.hidden, args.layers, args.batch, args.epochs) < 1 or not 0 <= args.dropout < 1:
        parser.error("sizes, --layers and --epochs must be at least 1, and 0 <= --dropout < 1")
    return args


def read_data(args):
    """Training and dev sentences."""
    sentences = read_sentences(args.data) if args.data else [line.split() for line in SENTENCES.split("\n") if line]
    if args.dev:
        return sentences, read_sentences(args.dev)
    if len(sentences) < KEPT:
        raise ValueError(f"{args.data} has {len(sentences)} sentences: want at least {KEPT}, or --dev FILE")
    return [sentence for n, sentence in enumerate(sentences, 1) if n % KEPT], sentences[KEPT - 1 :: KEPT]


def main(argv=None):
    """Train and report; returns the sizes, one record for each epoch, the samples, and the model."""
    args = parse(argv)
    train, dev = read_data(args)
    vocabulary = make_vocabulary(train, args.min_count)

    dy.reset_random_seed(args.seed)
    rng = random.Random(args.seed)
    lm = LanguageModel(vocabulary, BUILDERS[args.rnn], args)
    trainer = dy.AdamTrainer(lm.model, alpha=args.alpha)
    train_parts, dev_parts = (minibatches([lm.encode(s) for s in part], args.batch) for part in (train, dev))
    words = sum(map(count_words, train_parts))
    print(f"\nLanguage model ({args.rnn}), words of {args.wembed}, states of {args.hidden}, {len(vocabulary)} words known.")
    print(f"{len(train)} training sentences in minibatches of {args.batch}, {len(dev)} dev sentences.")
    print("Kernels are compiled when first used, for some seconds, and found on disk from then on.")
    if tqdm is None:
        print("No progress bars: tqdm is not installed (python -m pip install tqdm).")
    print("\nepoch   perplexity   of dev   words/s")

    history = []
    for epoch in range(1, args.epochs + 1):
        rng.shuffle(train_parts)
        start = time.perf_counter()
        seen = train_epoch(lm, trainer, train_parts)
        speed = words / (time.perf_counter() - start)
        unseen = perplexity(lm, dev_parts)
        print(f"{epoch:5d}   {seen:10.2f}   {unseen:6.2f}   {speed:7,.0f}", flush=True)
        history.append({"epoch": epoch, "perplexity": seen, "dev_perplexity": unseen, "words_per_second": speed})

    samples = [" ".join(lm.sample(rng, args.start.split())) for _ in range(args.samples)]
    if samples:
        print("\nSampled:\n")
        print("\n".join("  " + sample for sample in samples))
    return {"train": len(train), "dev": len(dev), "history": history, "samples": samples, "lm": lm}


SENTENCES = """
the dog that worried the cat that drank the milk was old
this is the farmer that sowed the corn
the cow that tossed the dog was forlorn
the cock crowed in the barn
the man that kissed the maiden that milked the cow was forlorn
the malt lay in the house
the cat killed the rat that ate the malt
the cow that gave the milk was forlorn
the man fed the dog
the cat killed the rat that ran into the barn
this is the dog that guarded the house
the horse ate the corn
the cock that woke the priest was old
the cow tossed the dog
the maiden milked the cow
the dog that guarded the house was happy
this is the rat that ran into the barn
this is the rat that ate the malt that lay in the house
this is the malt that lay in the house
this is the cock that woke the priest that married the man that kissed the maiden
this is the man that fed the dog that worried the cat
this is the maiden that milked the cow
this is the man that fed the dog
the farmer kept the cock
this is the cock that woke the priest
the man fed the dog that worried the cat
the farmer that kept the cock that crowed in the barn was forlorn
the maiden loved the man
the cow tossed the dog that worried the cat
the cow that gave the milk was happy
this is the cat that drank the milk
the maiden loved the man that fed the dog that worried the cat
this is the cock that crowed in the barn
the horse carried the farmer
the maiden milked the cow that tossed the dog that worried the cat
this is the priest that married the man that kissed the maiden that milked the cow
the maiden that loved the man that fed the dog that guarded the house was happy
the man that kissed the maiden was young
the cock woke the priest that woke the maiden
the man that kissed the maiden that milked the cow that gave the milk was young
this is the horse that ate the corn
this is the maiden that loved the man
the rat that ate the malt that lay in the house was young
the malt that lay in the house was old
this is the cow that gave the milk
this is the cat that killed the rat that ate the malt
the rat that ran into the barn was happy
the man that fed the dog that worried the cat was forlorn
this is the rat that ate the malt
the man kissed the maiden that loved the man
this is the maiden that loved the man that kissed the maiden that loved the man
the rat ate the malt that lay in the house
this is the maiden that loved the man that kissed the maiden
the farmer that fed the cow was forlorn
the malt that lay in the house was forlorn
the cat drank the milk
the cow that tossed the dog that worried the cat that killed the rat was old
the dog worried the cat that drank the milk
the maiden that milked the cow that tossed the dog was forlorn
the cat that killed the rat that ran into the barn was forlorn
the cock woke the priest that married the man that fed the dog
the farmer fed the cow
the priest married the man that fed the dog that guarded the house
this is the farmer that fed the cow
the horse that ate the corn was old
the man kissed the maiden that milked the cow
this is the cow that tossed the dog
this is the cat that killed the rat
this is the cow that tossed the dog that guarded the house
the farmer sowed the corn
this is the man that kissed the maiden that loved the man that fed the dog that guarded the house
this is the priest that woke the maiden that loved the man
"""

if __name__ == "__main__":
    main(sys.argv[1:])

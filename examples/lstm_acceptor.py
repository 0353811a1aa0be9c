"""An LSTM acceptor, trained one sentence at a time and then batched.

The network is written once, for one sentence, with a plain loop over its words. Training it batched takes no other
network: record the losses of all sentences in one graph, sum them, and the library runs together what can run together.

    python examples/lstm_acceptor.py
    python examples/lstm_acceptor.py --sentences 4096 --batch 256
"""

import argparse
import random
import sys
import time

import autobatch as dy

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

DATA = [((1, 4, 5, 1), 1), ((42, 1), 2), ((56, 2, 17), 1)]  # a sentence is a tuple of words; words and labels are numbers
SENTENCES = [sentence for sentence, _ in DATA]
POLICIES = ("none", "depth", "agenda", "ratio")
VOCABULARY, SIZE, CLASSES = 1000, 100, 3


class Acceptor:
    """Look-up, LSTM, linear layer: from a sentence to one score for each class."""

    def __init__(self):
        self.model = model = dy.ParameterCollection()
        self.words = model.add_lookup_parameters((VOCABULARY, SIZE))
        self.lstm = dy.VanillaLSTMBuilder(1, SIZE, SIZE, model)
        self.W = model.add_parameters((CLASSES, SIZE))
        self.b = model.add_parameters((CLASSES,), init=0.0)

    def __call__(self, sentence):
        state = self.lstm.initial_state()
        for word in sentence:
            state = state.add_input(self.words[word])
        return dy.affine_transform([self.b, self.W, state.output()])

    def loss(self, sentence, label):
        return dy.pickneglogsoftmax(self(sentence), label)

    def probabilities(self, sentence):
        return dy.softmax(self(sentence))


def new_acceptor(seed):
    """An acceptor and its trainer; equal seeds give equal initial values."""
    dy.reset_random_seed(seed)
    acceptor = Acceptor()
    return acceptor, dy.SimpleSGDTrainer(acceptor.model, learning_rate=0.5)


def train_one_at_a_time(acceptor, trainer, data):
    """The summed loss of one epoch: a graph, a backward pass and an update for every sentence; nothing is batched."""
    total = 0.0
    for sentence, label in data:
        dy.renew_cg(autobatching=False)
        loss = acceptor.loss(sentence, label)
        total += loss.scalar_value()
        loss.backward()
        trainer.update()
    return total


def train_batched(acceptor, trainer, data):
    """The summed loss of one epoch: one graph, one backward pass and one update for all sentences."""
    dy.renew_cg()
    loss = dy.esum([acceptor.loss(sentence, label) for sentence, label in data])
    total = loss.scalar_value()
    loss.backward()
    trainer.update()
    return total


def predict(acceptor, sentences, autobatching=True):
    """The most likely class of each sentence and its probability, from one graph for all sentences."""
    dy.renew_cg(autobatching=autobatching)
    found = dy.npvalues([acceptor.probabilities(sentence) for sentence in sentences])
    return [(int(p.argmax()), float(p.max())) for p in found]


def generate(count, seed):
    """`count` sentences of 5 to 40 random words with random labels."""
    rng = random.Random(seed)
    lengths = [rng.randint(5, 40) for _ in range(count)]
    return [(tuple(rng.randrange(VOCABULARY) for _ in range(n)), rng.randrange(CLASSES)) for n in lengths]


def compare_policies(data, batch, seed):
    """Train one acceptor under each policy on the same minibatches in turn; one table row per policy.

    The first minibatch is run but not counted: it compiles kernels and makes room in memory.
    """
    rows = [{"policy": p, "sentences": 0, "batches": 0, "lower_bound": 0, "seconds": 0.0} for p in POLICIES]
    contestants = [(row, *new_acceptor(seed)) for row in rows]
    minibatches = [data[i : i + batch] for i in range(0, len(data), batch)]
    for step, minibatch in enumerate(progress([minibatches[0], *minibatches], "policies side by side")):
        for row, acceptor, trainer in contestants:
            dy.configure(policy=row["policy"])
            start = time.perf_counter()
            row["loss"] = train_batched(acceptor, trainer, minibatch) / len(minibatch)
            if step > 0:
                row["seconds"] += time.perf_counter() - start
                row["sentences"] += len(minibatch)
                row["batches"] += dy.current_graph().batches
                row["lower_bound"] += dy.current_graph().lower_bound
    for row in rows:
        row["sentences_per_second"] = row["sentences"] / row["seconds"]
        row["speedup"] = row["sentences_per_second"] / rows[0]["sentences_per_second"]
    return rows


def progress(items, what):
    """`items`, with a bar on the terminal once they have taken a second."""
    return items if tqdm is None else tqdm(items, desc=what, delay=1, leave=False, disable=None)


def print_table(header, rows):
    """Columns as wide as their longest cell, all aligned right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("    " + "   ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print()


def parse(argv):
    about = "Train an LSTM acceptor one sentence at a time and then batched; time the policies."
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="epochs on the three sentences")
    parser.add_argument("--sentences", type=int, default=512, help="generated sentences for the timing table")
    parser.add_argument("--batch", type=int, default=64, help="sentences in a minibatch of the timing table")
    parser.add_argument("--seed", type=int, default=1, help="of initial values and generated sentences")
    args = parser.parse_args(argv)
    if min(args.epochs, args.sentences, args.batch) < 1:
        parser.error("--epochs, --sentences and --batch must be at least 1")
    return args


def train_both_ways(epochs, seed):
    """Losses and predictions of the two ways of training, from the same initial values."""
    ways = {}
    for name, train in (("one at a time", train_one_at_a_time), ("batched", train_batched)):
        acceptor, trainer = new_acceptor(seed)
        losses = [train(acceptor, trainer, DATA) for _ in progress(range(epochs), name)]
        ways[name] = {"losses": losses, "predictions": predict(acceptor, SENTENCES)}
    return ways


def compare_alone_and_together(seed):
    """What an untrained acceptor says of sentences run alone, and run together in one graph; the largest difference."""
    acceptor, _ = new_acceptor(seed)
    together = predict(acceptor, SENTENCES)
    alone = [predict(acceptor, [sentence], autobatching=False)[0] for sentence in SENTENCES]
    difference = max(abs(p - q) for (_, p), (_, q) in zip(alone, together, strict=True))
    return {"alone": alone, "together": together, "difference": difference}


def main(argv=None):
    """Run the example; the losses and predictions of both ways of training, and the rows of the timing table."""
    args = parse(argv)
    print(f"\nAn LSTM acceptor: look-up ({VOCABULARY} words of {SIZE}), LSTM ({SIZE}), linear layer, softmax.")
    print("Kernels are compiled when first used, for some seconds, and found on disk from then on.")
    if tqdm is None:
        print("No progress bars: tqdm is not installed (python -m pip install tqdm).")

    ways = train_both_ways(args.epochs, args.seed)
    print(f"\n1. {len(DATA)} sentences, {args.epochs} epochs. The loss, summed over the sentences:\n")
    losses = zip(*(way["losses"] for way in ways.values()), strict=True)
    print_table(("epoch", *ways), [(str(n), *(f"{x:.4f}" for x in row)) for n, row in enumerate(losses, 1)])
    print("   What each network says afterwards, with its probability:\n")
    told = zip(DATA, *(way["predictions"] for way in ways.values()), strict=True)
    rows = [(" ".join(map(str, s)), str(label), *(f"{c} ({p:.3f})" for c, p in says)) for (s, label), *says in told]
    print_table(("sentence", "label", *ways), rows)

    alone_and_together = compare_alone_and_together(args.seed)
    print("   Both begin with the same values; one updates after each sentence, the other once an epoch, hence two courses.")
    print("   The arithmetic is the same: probabilities of sentences run alone and run together differ by")
    print(f"   {alone_and_together['difference']:.1g} at most.\n")

    print(f"2. Training on {args.sentences} generated sentences, {args.batch} in one graph, policies side by side:\n")
    try:
        timing = compare_policies(generate(args.sentences, args.seed), args.batch, args.seed)
    finally:
        dy.configure(policy="ratio")
    header = ("policy", "batches", "sentences/s", "over none", "last loss")
    rows = [
        (r["policy"], f"{r['batches']:,}", f"{r['sentences_per_second']:,.0f}", f"{r['speedup']:.1f} x", f"{r['loss']:.4f}")
        for r in timing
    ]
    print_table(header, rows)
    print(f"   Batches are those of the forward passes; no schedule can do with fewer than {timing[-1]['lower_bound']:,}.")
    print("   The policy decides what runs when, never what comes out.\n")
    both = {"one_at_a_time": ways["one at a time"], "batched": ways["batched"]}
    return both | {"alone_and_together": alone_and_together, "timing": timing}


if __name__ == "__main__":
    main(sys.argv[1:])

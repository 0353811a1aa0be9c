"""An encoder and a decoder with attention: numbers spelled out in words.

The network is written for one pair of sentences: encode the source, then produce the target token by token, looking back at
the source before each. Sentences of a minibatch share one graph; those of equal length run together, step by step.

    python examples/attention.py
    python examples/attention.py --data PATH    # a pair a line: source and target, a tab between, tokens parted by spaces

Without --data the pairs are the numbers below 1000 and their names: "3 4 2" and "three hundred forty two". Every tenth pair
is kept for the accuracy: the share of sources whose whole target is found by greedy decoding.

Source: Bahdanau, Cho, Bengio (2015), "Neural Machine Translation by Jointly Learning to Align and Translate", section 3,
with LSTMs in place of gated units.
"""

import argparse
import os
import random
import sys
import time

import autobatch as dy

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

UNKNOWN, END = 0, 1  # the first two indices of a vocabulary; END closes every target, and starts the decoder

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
ONES += "seventeen eighteen nineteen".split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()


def name_of(number):
    """The words of a number below 1000."""
    hundreds, rest = divmod(number, 100)
    words = [ONES[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        words.append(TENS[rest // 10])
        rest %= 10
    if rest or not words:
        words.append(ONES[rest])
    return words


def read_pairs(path):
    """[(source tokens, target tokens), …] of a file."""
    pairs = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            parts = [part.split() for part in line.rstrip("\r\n").split("\t")]
            if len(parts) != 2 or not all(parts):
                raise ValueError(f"{path}, line {number}: want SOURCE, a tab, TARGET; got {line.strip()[:60]!r}")
            pairs.append(tuple(parts))
    if len(pairs) < 2:
        raise ValueError(f"{path}: want at least two pairs, one to learn from and one to test with; got {len(pairs)}")
    return pairs


def make_vocabulary(sentences):
    """token -> index in the order of their first appearance; UNKNOWN and END come before them."""
    tokens = dict.fromkeys(token for sentence in sentences for token in sentence)
    return {token: index for index, token in enumerate(tokens, END + 1)}


class Translator:
    """BiLSTM encoder, attention by a network with one hidden layer, LSTM decoder."""

    def __init__(self, sources, targets, embed, hidden):
        self.model = model = dy.ParameterCollection()
        self.sources, self.targets = sources, targets
        self.tokens = ["<unknown>", "<end>", *targets]
        self.source_words = model.add_lookup_parameters((len(sources) + 2, embed))
        self.target_words = model.add_lookup_parameters((len(targets) + 2, embed))
        self.encoder = dy.BiRNNBuilder(1, embed, 2 * hidden, model, dy.VanillaLSTMBuilder)
        self.decoder = dy.VanillaLSTMBuilder(1, embed + 2 * hidden, hidden, model)
        self.W_key = model.add_parameters((hidden, 2 * hidden))
        self.W_query = model.add_parameters((hidden, hidden))
        self.v = model.add_parameters((1, hidden))
        self.W_out = model.add_parameters((len(targets) + 2, 3 * hidden))
        self.b_out = model.add_parameters((len(targets) + 2,), init=0.0)

    def start(self, source):
        """What decoding needs: the encoded source, one column a token; its keys; the state of the decoder."""
        words = [self.source_words[self.sources.get(token, UNKNOWN)] for token in source]
        columns = dy.concatenate_cols(self.encoder.transduce(words))
        return columns, self.W_key * columns, self.decoder.initial_state()

    def step(self, decoding, previous):
        """After the target token `previous`: the scores of the next one, and what the step after that needs."""
        columns, keys, state = decoding
        context = columns * self.attention(keys, state)
        state = state.add_input(dy.concatenate([self.target_words[previous], context]))
        scores = dy.affine_transform([self.b_out, self.W_out, dy.concatenate([state.output(), context])])
        return scores, (columns, keys, state)

    def attention(self, keys, state):
        """How much to look at each source token: a column of weights whose sum is 1."""
        hidden = keys if state.output() is None else dy.colwise_add(keys, self.W_query * state.output())
        return dy.softmax((self.v * dy.tanh(hidden))[0])

    def losses(self, source, target):
        """The loss of each target token, given the tokens before it, in nats."""
        decoding, previous, found = self.start(source), END, []
        for token in [*(self.targets.get(token, UNKNOWN) for token in target), END]:
            scores, decoding = self.step(decoding, previous)
            found.append(dy.pickneglogsoftmax(scores, token))
            previous = token
        return found

    def decode(self, sources, longest):
        """The most likely token after the other, at most `longest`, for each of `sources`; one graph for all of them.

        All are a step further before any value is asked for, so that each step of all is computed together.
        """
        dy.renew_cg()
        found = [[] for _ in sources]
        unfinished = [(words, self.start(source), END) for words, source in zip(found, sources, strict=True)]
        for _ in range(longest):
            steps = [self.step(decoding, previous) for _, decoding, previous in unfinished]
            best = [int(scores.argmax()) for scores in dy.npvalues([scores for scores, _ in steps])]
            after = zip(unfinished, steps, best, strict=True)
            unfinished = [(words, decoding, token) for (words, *_), (_, decoding), token in after if token != END]
            for words, _, token in unfinished:
                words.append(self.tokens[token])
            if not unfinished:
                break
        return found


def minibatches(pairs, size, rng=None):
    """Pairs of similar lengths side by side; in any order if `rng` is given."""
    pairs = list(pairs)
    if rng is not None:
        rng.shuffle(pairs)
    pairs.sort(key=lambda pair: (len(pair[0]), len(pair[1])))
    parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    if rng is not None:
        rng.shuffle(parts)
    return parts


def train_epoch(translator, trainer, parts):
    """(mean loss of a target token, batches run forward) of one pass over `parts` with an update after each."""
    total, tokens, batches = 0.0, 0, 0
    for part in progress(parts, "training"):
        dy.renew_cg()
        losses = [loss for source, target in part for loss in translator.losses(source, target)]
        loss = dy.esum(losses)
        total += loss.scalar_value()
        tokens += len(losses)
        batches += dy.current_graph().batches
        (loss / len(part)).backward()
        trainer.update()
    return total / tokens, batches


def accuracy(translator, parts):
    """The share of pairs whose target is what decoding finds, all of it."""
    right = []
    for part in progress(parts, "decoding"):
        sources, targets = zip(*part, strict=True)
        decoded = translator.decode(sources, longest=2 * max(map(len, targets)))
        right += [found == target for found, target in zip(decoded, targets, strict=True)]
    return sum(right) / len(right)


def progress(items, what):
    """`items`, with a bar on the terminal once they have taken a second."""
    return items if tqdm is None else tqdm(items, desc=what, delay=1, leave=False, disable=None)


def parse(argv):
    about = "Train an encoder and a decoder with attention on pairs of sentences."
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", metavar="PATH", help="pairs, one a line, a tab between (default: numbers and their names)")
    parser.add_argument("--embed", type=int, default=32, metavar="N", help="size of a token's vector")
    parser.add_argument("--hidden", type=int, default=64, metavar="N", help="size of an LSTM's state")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="pairs in a minibatch")
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="passes over the training pairs")
    parser.add_argument("--alpha", type=float, default=0.005, help="Adam's step")
    parser.add_argument("--seed", type=int, default=1, help="of initial values and the order of the pairs")
    args = parser.parse_args(argv)
    if args.data is not None and not os.path.isfile(args.data):
        parser.error(f"there is no file {args.data}")
    if min(args.embed, args.hidden, args.batch, args.epochs) < 1:
        parser.error("sizes and --epochs must be at least 1")
    return args


def main(argv=None):
    """Train and report; returns the sizes, one record for each epoch, and the translator."""
    args = parse(argv)
    rng = random.Random(args.seed)
    if args.data is None:
        pairs = [(list(str(n)), name_of(n)) for n in range(1000)]
        rng.shuffle(pairs)
    else:
        pairs = read_pairs(args.data)
    last = min(10, len(pairs)) - 1
    train = [pair for n, pair in enumerate(pairs) if n % 10 != last]
    dev = pairs[last::10]
    sources, targets = (make_vocabulary(sentences) for sentences in zip(*train, strict=True))

    dy.reset_random_seed(args.seed)
    translator = Translator(sources, targets, args.embed, args.hidden)
    trainer = dy.AdamTrainer(translator.model, alpha=args.alpha)
    print(f"\nBiLSTM encoder, attention, LSTM decoder; states of {args.hidden}, tokens of {args.embed}.")
    print(f"{len(train)} training pairs in minibatches of {args.batch}, {len(dev)} dev pairs.")
    print("Kernels are compiled when first used, for some seconds, and found on disk from then on.")
    if tqdm is None:
        print("No progress bars: tqdm is not installed (python -m pip install tqdm).")
    print("\nepoch   loss/token   dev accuracy   pairs/s   batches/minibatch")

    history = []
    for epoch in range(1, args.epochs + 1):
        parts = minibatches(train, args.batch, rng)
        start = time.perf_counter()
        loss, batches = train_epoch(translator, trainer, parts)
        speed = len(train) / (time.perf_counter() - start)
        right = accuracy(translator, minibatches(dev, args.batch))
        print(f"{epoch:5d}   {loss:10.4f}   {right:12.3f}   {speed:7,.0f}   {batches / len(parts):17,.0f}", flush=True)
        record = {"epoch": epoch, "loss": loss, "accuracy": right}
        history.append(record | {"pairs_per_second": speed, "batches": batches / len(parts)})

    print("\nDev sources and what was made of them:\n")
    shown = dev[:5]
    found = translator.decode([source for source, _ in shown], longest=2 * max(len(target) for _, target in shown))
    for (source, target), words in zip(shown, found, strict=True):
        note = "" if words == target else f"   (want: {' '.join(target)})"
        print(f"  {' '.join(source)}   ->   {' '.join(words)}{note}")
    return {"train": len(train), "dev": len(dev), "history": history, "translator": translator}


if __name__ == "__main__":
    main(sys.argv[1:])

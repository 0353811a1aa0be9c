"""A transition-based dependency parser: which word of a sentence is the head of which.

A BiLSTM reads the sentence; then transition after transition is chosen by a small network that sees four positions: the
three top words of the stack and the first of the buffer. Each sentence takes its own course, so nothing could be padded, but
all sentences of a minibatch go on in step, and each step of all is computed together.

    python examples/dependency_parser.py
    python examples/dependency_parser.py --data TRAIN.conllu --dev DEV.conllu
    python examples/dependency_parser.py --explore 0    # static oracle: all states of a minibatch in one batch

Trees are read from files in the format CoNLL-U (universaldependencies.org/format.html); without --data a small treebank at
the end of this file is used. Trees with crossing arcs are skipped in training: no transitions lead to them.

Source: Kiperwasser and Goldberg (2016), "Simple and Accurate Dependency Parsing Using Bidirectional LSTM Feature
Representations", section 4, without labels, and with a log loss in place of the margin; the transitions and their costs are
those of Goldberg and Nivre (2013), "Training Deterministic Parsers with Non-Deterministic Oracles", section 4.2 (arc-hybrid).
"""

import argparse
import collections
import os
import random
import sys
import time

import autobatch as dy

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

UNKNOWN = 0  # index of words and tags that the vocabulary does not hold
ROOT = 1  # index of the root, which stands after the last word
SHIFT, LEFT, RIGHT = range(3)

# Defaults for the few dozen sentences at the end of this file, and for thousands of sentences (--data).
SMALL = {"wembed": 32, "tembed": 8, "hidden": 32, "batch": 4, "epochs": 12, "min_count": 1, "alpha": 0.01}
LARGE = {"wembed": 100, "tembed": 25, "hidden": 125, "batch": 32, "epochs": 5, "min_count": 2, "alpha": 0.001}


class Sentence:
    """Words, their tags, and the head of each: its position from 0, or that after the last word for the root."""

    def __init__(self, words, tags, heads):
        self.words, self.tags, self.heads = words, tags, heads

    def __len__(self):
        return len(self.words)

    def is_projective(self):
        """Whether no two arcs cross."""
        arcs = [(min(arc), max(arc)) for arc in enumerate(self.heads)]
        return not any(a < c < b < d for a, b in arcs for c, d in arcs)


def make_sentence(where, words, tags, heads):
    """A sentence whose heads count from 1, with 0 for the root, as files have it."""
    if any(not 0 <= head <= len(words) for head in heads):
        raise ValueError(f"{where}: a head is not in the sentence; want 0 to {len(words)}, got {heads}")
    for word in range(1, len(words) + 1):
        head = word
        for _ in words:
            head = heads[head - 1] if head else 0
        if head:
            raise ValueError(f"{where}: the heads form a circle at word {word}, {words[word - 1]!r}")
    return Sentence(words, tags, [head - 1 if head else len(words) for head in heads])


def read_conllu(path):
    """The sentences of a file in CoNLL-U; ranges of words (1-2) and empty words (1.1) are left out."""
    sentences, rows, first = [], [], 0
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate((*lines, "\n"), 1):
            columns = line.rstrip("\r\n").split("\t")
            if not line.strip():
                if rows:
                    sentences.append(make_sentence(f"{path}, line {first}", *map(list, zip(*rows, strict=True))))
                rows = []
            elif not line.startswith("#") and not ("-" in columns[0] or "." in columns[0]):
                first = first if rows else number
                if len(columns) != 10 or columns[0] != str(len(rows) + 1) or not columns[6].isdecimal():
                    expected = f"ten columns with tabs between, ID {len(rows) + 1} first, a number as HEAD"
                    raise ValueError(f"{path}, line {number}: want {expected}; got {line.strip()[:60]!r}")
                rows.append((columns[1], columns[3], int(columns[6])))
    if not sentences:
        raise ValueError(f"{path}: want sentences in CoNLL-U, found none")
    return sentences


def read_treebank(text):
    """The sentences of a text with one a line, WORD/TAG/HEAD for each word."""
    sentences = []
    for number, line in enumerate(text.strip().splitlines(), 1):
        words, tags, heads = zip(*(token.split("/") for token in line.split()), strict=True)
        sentences.append(make_sentence(f"sentence {number}", list(words), list(tags), list(map(int, heads))))
    return sentences


def make_vocabulary(tokens, min_count=1):
    """token -> index for tokens seen at least `min_count` times; UNKNOWN and ROOT come before them."""
    counts = collections.Counter(tokens)
    return {token: index for index, token in enumerate((t for t, n in counts.items() if n >= min_count), ROOT + 1)}


class State:
    """Where the parsing of n words stands: a stack of positions, the front of the buffer, the heads found so far.

    The root has position n and is the last in the buffer. SHIFT moves the front of the buffer to the stack; LEFT pops the top
    of the stack and makes the front of the buffer its head, RIGHT pops it and makes the word below its head.
    """

    def __init__(self, n):
        self.n, self.stack, self.front, self.heads = n, [], 0, [None] * n

    def is_final(self):
        return self.front == self.n and not self.stack

    def allowed(self):
        """The transitions that are possible here; none in a final state."""
        possible = (self.front < self.n, len(self.stack) >= 1, len(self.stack) >= 2)
        return [transition for transition in (SHIFT, LEFT, RIGHT) if possible[transition]]

    def take(self, transition):
        if transition == SHIFT:
            self.stack.append(self.front)
            self.front += 1
        else:
            word = self.stack.pop()
            self.heads[word] = self.front if transition == LEFT else self.stack[-1]

    def cost(self, transition, heads):
        """How many of the arcs in `heads` that could still be found are lost by a transition."""
        *below, top = self.stack or [None]
        buffer = range(self.front, self.n + 1)
        if transition == SHIFT:  # the front finds no head in the stack but its top, and no dependents there
            return (heads[self.front] in below) + sum(heads[word] == self.front for word in self.stack)
        lost_dependents = sum(heads[word] == top for word in buffer if word < self.n)
        if transition == LEFT:  # the top gets the front as its head
            return lost_dependents + (heads[top] in buffer[1:] or heads[top] in below[-1:])
        return lost_dependents + (heads[top] in buffer)

    def features(self):
        """The positions that a transition is chosen by, None where there is no word."""
        return [*([None] * 3 + self.stack)[-3:], self.front]


class Parser:
    """BiLSTM over words and tags, and a network with one hidden layer that scores the transitions of a state."""

    def __init__(self, words, tags, counts, wembed, tembed, hidden, rng):
        self.model = model = dy.ParameterCollection()
        self.words, self.tags, self.counts, self.rng = words, tags, counts, rng
        self.word_vectors = model.add_lookup_parameters((len(words) + 2, wembed))
        self.tag_vectors = model.add_lookup_parameters((len(tags) + 2, tembed))
        self.reader = dy.BiRNNBuilder(1, wembed + tembed, 2 * hidden, model, dy.VanillaLSTMBuilder)
        self.nowhere = model.add_parameters((2 * hidden,))
        self.W1, self.b1 = model.add_parameters((hidden, 4 * 2 * hidden)), model.add_parameters((hidden,), init=0.0)
        self.W2, self.b2 = model.add_parameters((3, hidden)), model.add_parameters((3,), init=0.0)

    def read(self, sentence, dropout=0.0):
        """A vector for each word and for the root. With dropout, rare words are taken for unknown ones now and then."""
        words, tags = [], [self.tags.get(tag, UNKNOWN) for tag in sentence.tags]
        for word in sentence.words:
            drop = dropout and self.rng.random() < dropout / (dropout + self.counts[word])
            words.append(UNKNOWN if drop else self.words.get(word, UNKNOWN))
        indices = zip((*words, ROOT), (*tags, ROOT), strict=True)
        return self.reader.transduce([dy.concatenate([self.word_vectors[w], self.tag_vectors[t]]) for w, t in indices])

    def scores(self, vectors, state):
        """A score for each transition."""
        seen = [self.nowhere if position is None else vectors[position] for position in state.features()]
        hidden = dy.tanh(dy.affine_transform([self.b1, self.W1, dy.concatenate(seen)]))
        return dy.affine_transform([self.b2, self.W2, hidden])

    def losses(self, sentences, explore, dropout):
        """The loss of each state on the way through `sentences`, in nats.

        What is right in a state is the transition that costs the fewest arcs; of several the one with the best score. With
        probability `explore` the parser takes what it holds for best, right or wrong, and so learns what to do after
        mistakes. With `explore` 0 no score is asked for: the first right transition is the one to learn and to take.
        """
        courses = [(sentence.heads, self.read(sentence, dropout), State(len(sentence))) for sentence in sentences]
        found = []
        while courses := [course for course in courses if not course[-1].is_final()]:
            scores = [self.scores(vectors, state) for _, vectors, state in courses]
            values = dy.npvalues(scores) if explore else [(0, 0, 0)] * len(scores)
            for (heads, _, state), s, value in zip(courses, scores, values, strict=True):
                costs = {transition: state.cost(transition, heads) for transition in state.allowed()}
                least = min(costs.values())
                right = max((t for t in costs if costs[t] == least), key=value.__getitem__)
                found.append(dy.pickneglogsoftmax(s, right))
                exploring = self.rng.random() < explore
                state.take(max(costs, key=value.__getitem__) if exploring else right)
        return found

    def parse(self, sentences):
        """The heads of the words of each sentence; one graph for all of them."""
        dy.renew_cg()
        courses = [(self.read(sentence), State(len(sentence))) for sentence in sentences]
        while unfinished := [course for course in courses if not course[1].is_final()]:
            values = dy.npvalues([self.scores(vectors, state) for vectors, state in unfinished])
            for (_, state), value in zip(unfinished, values, strict=True):
                state.take(max(state.allowed(), key=value.__getitem__))
        return [state.heads for _, state in courses]


def minibatches(sentences, size):
    return [sentences[i : i + size] for i in range(0, len(sentences), size)]


def train_epoch(parser, trainer, sentences, size, explore, dropout):
    """(mean loss of a state, states in a minibatch, batches run forward for it) of one pass over `sentences`."""
    total, states, batches = 0.0, 0, 0
    parts = minibatches(sentences, size)
    for part in progress(parts, "training"):
        dy.renew_cg()
        losses = parser.losses(part, explore, dropout)
        loss = dy.esum(losses)
        total += loss.scalar_value()
        states += len(losses)
        batches += dy.current_graph().batches
        (loss / len(losses)).backward()
        trainer.update()
    return total / states, states / len(parts), batches / len(parts)


def attachment_score(parser, sentences, size):
    """The share of words whose head is found."""
    right = []
    for part in progress(minibatches(sentences, size), "parsing dev"):
        for sentence, heads in zip(part, parser.parse(part), strict=True):
            right += [found == head for found, head in zip(heads, sentence.heads, strict=True)]
    return sum(right) / len(right)


def progress(items, what):
    """`items`, with a bar on the terminal once they have taken a second."""
    return items if tqdm is None else tqdm(items, desc=what, delay=1, leave=False, disable=None)


def show(parser, sentence):
    """Print a sentence, a word a line: its true head and that found."""
    names = [*sentence.words, "(root)"]
    for word, head, found in zip(sentence.words, sentence.heads, parser.parse([sentence])[0], strict=True):
        print(f"  {word:12s}   {names[head]:12s}   {names[found]}")


def parse(argv):
    parser = argparse.ArgumentParser(description="Train a transition-based dependency parser.")
    parser.add_argument("--data", metavar="PATH", help="training trees in CoNLL-U (default: the treebank in this file)")
    parser.add_argument("--dev", metavar="PATH", help="trees to test with (default: every fifth training tree, then left out)")
    for name, about in (
        ("wembed", "size of a word's vector"),
        ("tembed", "size of a tag's vector"),
        ("hidden", "size of an LSTM's state and of the hidden layer"),
        ("batch", "sentences in a minibatch"),
        ("epochs", "passes over the training trees"),
        ("min_count", "words rarer than this count as unknown"),
        ("alpha", "Adam's step"),
    ):
        help = f"{about} (default: {SMALL[name]}; with --data {LARGE[name]})"
        parser.add_argument("--" + name.replace("_", "-"), type=type(SMALL[name]), metavar="N", help=help)
    help = "how often to take what the parser holds for best in training; 0: static oracle (default: 0.5)"
    parser.add_argument("--explore", type=float, default=0.5, metavar="P", help=help)
    help = "a word seen n times is unknown with probability A / (A + n) in training (default: 0.25)"
    parser.add_argument("--word-dropout", type=float, default=0.25, metavar="A", help=help)
    parser.add_argument("--seed", type=int, default=1, help="of initial values, order, exploration (default: 1)")
    args = parser.parse_args(argv)
    for path in (args.data, args.dev):
        if path is not None and not os.path.isfile(path):
            parser.error(f"there is no file {path}")
    if args.dev is not None and args.data is None:
        parser.error("--dev needs --data")
    for name, default in (SMALL if args.data is None else LARGE).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if min(args.wembed, args.tembed, args.hidden, args.batch, args.epochs) < 1:
        parser.error("sizes and --epochs must be at least 1")
    if not 0 <= args.explore <= 1 or args.word_dropout < 0:
        parser.error("want 0 <= --explore <= 1 and --word-dropout at least 0")
    return args


def main(argv=None):
    """Train and report; returns the sizes, one record for each epoch, and the parser."""
    args = parse(argv)
    sentences = read_treebank(TREEBANK) if args.data is None else read_conllu(args.data)
    if args.dev is None:
        train, dev = [s for n, s in enumerate(sentences) if n % 5 != 4], sentences[4::5]
    else:
        train, dev = sentences, read_conllu(args.dev)
    projective = [sentence for sentence in train if sentence.is_projective()]
    skipped, train = len(train) - len(projective), projective
    if not train or not dev:
        raise ValueError(f"want trees to learn from and trees to test with, got {len(train)} and {len(dev)}")
    counts = collections.Counter(word for sentence in train for word in sentence.words)
    words = make_vocabulary(counts.elements(), args.min_count)
    tags = make_vocabulary(tag for sentence in train for tag in sentence.tags)

    dy.reset_random_seed(args.seed)
    rng = random.Random(args.seed)
    parser = Parser(words, tags, counts, args.wembed, args.tembed, args.hidden, rng)
    trainer = dy.AdamTrainer(parser.model, alpha=args.alpha)
    oracle = f"dynamic oracle, {args.explore:.0%} explored" if args.explore else "static oracle"
    print(f"\nArc-hybrid parser, BiLSTM of {args.hidden} each way, {oracle}.")
    print(f"{len(train)} training trees in minibatches of {args.batch}, {skipped} with crossing arcs skipped.")
    print(f"{len(dev)} dev trees, {len(words)} words.")
    print("Kernels are compiled when first used, for some seconds, and found on disk from then on.")
    if tqdm is None:
        print("No progress bars: tqdm is not installed (python -m pip install tqdm).")
    print("\nepoch   loss/state   dev UAS   sentences/s   states/minibatch   batches/minibatch")

    history = []
    for epoch in range(1, args.epochs + 1):
        rng.shuffle(train)
        start = time.perf_counter()
        loss, states, batches = train_epoch(parser, trainer, train, args.batch, args.explore, args.word_dropout)
        speed = len(train) / (time.perf_counter() - start)
        uas = attachment_score(parser, dev, args.batch)
        print(f"{epoch:5d}   {loss:10.4f}   {uas:7.3f}   {speed:11,.0f}   {states:16,.0f}   {batches:17,.0f}", flush=True)
        record = {"epoch": epoch, "loss": loss, "uas": uas, "states": states, "batches": batches}
        history.append(record | {"sentences_per_second": speed})

    print("\nA dev sentence; each word, its head, and the head found:\n")
    show(parser, next((sentence for sentence in dev if 5 <= len(sentence) <= 9), dev[0]))
    return {"train": len(train), "skipped": skipped, "dev": len(dev), "words": len(words), "history": history, "parser": parser}


TREEBANK = """
the/DET/2 dog/NOUN/3 sleeps/VERB/0
a/DET/2 cat/NOUN/3 saw/VERB/0 the/DET/5 bird/NOUN/3
she/PRON/2 reads/VERB/0 a/DET/4 book/NOUN/2
the/DET/3 old/ADJ/3 man/NOUN/4 walked/VERB/0 slowly/ADV/4
he/PRON/2 saw/VERB/0 the/DET/4 dog/NOUN/2 in/ADP/7 the/DET/7 garden/NOUN/4
we/PRON/2 bought/VERB/0 fresh/ADJ/4 bread/NOUN/2 at/ADP/7 the/DET/7 market/NOUN/2
the/DET/2 children/NOUN/4 often/ADV/4 play/VERB/0 in/ADP/7 the/DET/7 street/NOUN/4
my/PRON/2 sister/NOUN/3 wrote/VERB/0 a/DET/6 long/ADJ/6 letter/NOUN/3
the/DET/2 bird/NOUN/3 sings/VERB/0
an/DET/3 old/ADJ/3 cat/NOUN/4 sleeps/VERB/0 in/ADP/7 the/DET/7 house/NOUN/4
he/PRON/3 quickly/ADV/3 read/VERB/0 the/DET/5 letter/NOUN/3
the/DET/2 teacher/NOUN/3 gave/VERB/0 the/DET/5 children/NOUN/3 a/DET/7 book/NOUN/3
they/PRON/2 walked/VERB/0 to/ADP/5 the/DET/5 market/NOUN/2
the/DET/2 house/NOUN/7 on/ADP/5 the/DET/5 hill/NOUN/2 was/AUX/7 old/ADJ/0
the/DET/2 man/NOUN/6 in/ADP/5 the/DET/5 garden/NOUN/2 reads/VERB/0 a/DET/8 letter/NOUN/6
the/DET/2 bread/NOUN/4 was/AUX/4 fresh/ADJ/0
she/PRON/2 saw/VERB/0 a/DET/5 small/ADJ/5 bird/NOUN/2 on/ADP/8 the/DET/8 roof/NOUN/5
my/PRON/2 brother/NOUN/4 often/ADV/4 writes/VERB/0 letters/NOUN/4
the/DET/2 dog/NOUN/3 saw/VERB/0 the/DET/5 cat/NOUN/3 and/CCONJ/7 barked/VERB/3
the/DET/3 small/ADJ/3 dog/NOUN/4 barked/VERB/0 in/ADP/7 the/DET/7 street/NOUN/4
we/PRON/2 know/VERB/0 that/SCONJ/5 he/PRON/5 reads/VERB/2 books/NOUN/5
she/PRON/2 said/VERB/0 that/SCONJ/6 the/DET/5 children/NOUN/6 sleep/VERB/2
they/PRON/2 play/VERB/0 and/CCONJ/4 sing/VERB/2
the/DET/2 teacher/NOUN/3 said/VERB/0 that/SCONJ/8 the/DET/6 book/NOUN/8 was/AUX/8 long/ADJ/3
he/PRON/2 knows/VERB/0 that/SCONJ/6 my/PRON/5 sister/NOUN/6 sings/VERB/2
the/DET/2 letter/NOUN/7 from/ADP/5 my/PRON/5 brother/NOUN/2 was/AUX/7 long/ADJ/0
a/DET/3 young/ADJ/3 woman/NOUN/4 bought/VERB/0 the/DET/7 old/ADJ/7 house/NOUN/4
the/DET/2 woman/NOUN/3 walked/VERB/0 to/ADP/6 the/DET/6 garden/NOUN/3 and/CCONJ/8 sang/VERB/3
the/DET/2 cat/NOUN/6 on/ADP/5 the/DET/5 roof/NOUN/2 sleeps/VERB/0
the/DET/2 birds/NOUN/6 in/ADP/5 the/DET/5 garden/NOUN/2 sing/VERB/0 slowly/ADV/6
old/ADJ/2 men/NOUN/3 walk/VERB/0 slowly/ADV/3
the/DET/2 children/NOUN/3 gave/VERB/0 the/DET/5 dog/NOUN/3 fresh/ADJ/7 bread/NOUN/3
she/PRON/3 often/ADV/3 walks/VERB/0 to/ADP/6 the/DET/6 house/NOUN/3 on/ADP/9 the/DET/9 hill/NOUN/6
the/DET/3 young/ADJ/3 teacher/NOUN/5 was/AUX/5 kind/ADJ/0
my/PRON/2 brother/NOUN/3 said/VERB/0 that/SCONJ/6 they/PRON/6 walked/VERB/3 to/ADP/9 the/DET/9 market/NOUN/6
we/PRON/2 read/VERB/0 a/DET/5 kind/ADJ/5 letter/NOUN/2 from/ADP/8 my/PRON/8 sister/NOUN/5
the/DET/2 street/NOUN/4 was/AUX/4 long/ADJ/0 and/CCONJ/6 old/ADJ/4
the/DET/3 old/ADJ/3 man/NOUN/4 knows/VERB/0 the/DET/6 teacher/NOUN/4 and/CCONJ/9 the/DET/9 children/NOUN/6
a/DET/2 dog/NOUN/4 slowly/ADV/4 walked/VERB/0 to/ADP/7 the/DET/7 house/NOUN/4
the/DET/3 small/ADJ/3 bird/NOUN/4 saw/VERB/0 the/DET/6 cat/NOUN/4 in/ADP/9 the/DET/9 garden/NOUN/6
"""

if __name__ == "__main__":
    main(sys.argv[1:])

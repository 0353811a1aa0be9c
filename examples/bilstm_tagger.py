"""BiLSTM tagger: a tag for each word of a sentence, part of speech or named entity.

The vector of a word is looked up; a BiLSTM reads the sentence, a layer of tanh scores the tags. With --characters the vector of
a rare word, and so of any word that training has not seen, comes from a second BiLSTM that reads its letters. How a graph looks
then depends on which words are rare and how long they are; the network is still written for one sentence.

    python examples/bilstm_tagger.py
    python examples/bilstm_tagger.py --characters
    python examples/bilstm_tagger.py --data FILE --dev FILE     # without --dev, each sixth sentence is kept for it

A file holds one token a line and an empty line after each sentence: in the ten columns of CoNLL-U (FORM and UPOS are taken),
or in any number of columns of which the first is the word and the last its tag (CoNLL-2003). Or it holds one sentence a line,
as `word|TAG word|TAG` (WikiNER). Without --data the sentences at the end of this file are used.

Source: Ling et al. (2015), "Finding Function in Form: Compositional Character Models for Open Vocabulary Word Representation";
the sizes are those of the tagger in Neubig et al. (2017), "DyNet: The Dynamic Neural Network Toolkit".
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

UNKNOWN = 0  # index of everything that a vocabulary does not hold
EDGE = ""  # stands for the beginning and the end of a word, among its characters
KEPT = 6  # without --dev, each so many-th sentence is kept from training

# Defaults for the few dozen sentences at the end of this file, and for thousands of sentences (--data).
SMALL = {"wembed": 24, "cembed": 12, "hidden": 32, "mlp": 16, "batch": 4, "epochs": 8, "min_count": 3, "alpha": 0.01}
LARGE = {"wembed": 128, "cembed": 20, "hidden": 100, "mlp": 32, "batch": 32, "epochs": 5, "min_count": 5, "alpha": 0.002}


def read_sentences(lines, name):
    """[(words, tags), …] from `lines` in any of the formats above; `name` is for errors."""
    lines = [line.strip("\r\n") for line in lines]
    first = next((line for line in lines if line.strip() and not line.startswith("# ")), "")
    if first.count("\t") == 9:
        sentences = paragraphs(((n, line) for n, line in enumerate(lines, 1) if not line.startswith("#")), name, conllu_token)
    elif all(re.fullmatch(r"[^\t]+\|[^|\t]+", token) for token in first.split(" ") if token):
        sentences = [[bar_token(t, name, n) for t in line.split(" ") if t] for n, line in enumerate(lines, 1) if line.strip()]
    else:
        sentences = paragraphs(enumerate(lines, 1), name, first_and_last)
    sentences = [tuple(zip(*sentence, strict=True)) for sentence in sentences if sentence]
    if not sentences:
        raise ValueError(f"no sentences in {name}")
    return sentences


def paragraphs(numbered, name, token):
    """Lists of what `token` makes of each line, one list up to each empty line."""
    sentences = [[]]
    for number, line in numbered:
        if not line.strip():
            sentences.append([])
        elif found := token(line, name, number):
            sentences[-1].append(found)
    return sentences


def conllu_token(line, name, number):
    """(FORM, UPOS), or None for a range of words (`1-2`) and an empty node (`8.1`)."""
    cells = line.split("\t")
    if len(cells) != 10:
        raise ValueError(f"{name}, line {number}: want the 10 columns of CoNLL-U, got {line[:60]!r}")
    return (cells[1], cells[3]) if cells[0].isdigit() else None


def first_and_last(line, name, number):
    cells = [cell for cell in re.split(r"[ \t]", line) if cell]
    if len(cells) < 2:
        raise ValueError(f"{name}, line {number}: want a word, a blank or tab, and its tag; got {line[:60]!r}")
    return cells[0], cells[-1]


def bar_token(token, name, number):
    word, _, tag = token.rpartition("|")
    if not word or not tag:
        raise ValueError(f"{name}, line {number}: want word|TAG, got {token[:60]!r}")
    return word, tag


def read_file(path):
    try:
        with open(path, encoding="utf-8-sig") as lines:
            return read_sentences(lines, path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from error


def make_vocabulary(symbols, min_count):
    """symbol -> index for those that come at least `min_count` times; index 0 is for all others."""
    counts = collections.Counter(symbols)
    return {symbol: index for index, symbol in enumerate((s for s, n in counts.items() if n >= min_count), UNKNOWN + 1)}


def spelled(word):
    return [EDGE, *word, EDGE]


class LookedUp:
    """A row of a table for each word, one row for all that are rare."""

    def __init__(self, model, words, args):
        self.vocabulary = make_vocabulary(words, args.min_count)
        self.table = model.add_lookup_parameters((len(self.vocabulary) + 1, args.wembed))

    def __call__(self, word):
        return self.table[self.vocabulary.get(word, UNKNOWN)]


class LookedUpOrSpelled:
    """A row of a table for each frequent word; a rare one is read letter by letter, in both directions."""

    def __init__(self, model, words, args):
        self.frequent = LookedUp(model, words, args)
        self.vocabulary = self.frequent.vocabulary
        self.letters = make_vocabulary((letter for word in words for letter in spelled(word)), args.min_count)
        self.table = model.add_lookup_parameters((len(self.letters) + 1, args.cembed))
        self.reader = dy.BiRNNBuilder(1, args.cembed, args.wembed, model, dy.VanillaLSTMBuilder)

    def __call__(self, word):
        if word in self.vocabulary:
            return self.frequent(word)
        states = self.reader.add_inputs([self.table[self.letters.get(letter, UNKNOWN)] for letter in spelled(word)])
        (to_the_end, _), (_, to_the_beginning) = states[-1], states[0]
        return dy.concatenate([to_the_end.output(), to_the_beginning.output()])


class Tagger:
    """Words to vectors, a BiLSTM over them, and a layer of tanh that scores the tags of each word."""

    def __init__(self, embedding, train, args):
        self.model = dy.ParameterCollection()
        self.tags = sorted({tag for _, tags in train for tag in tags})
        self.numbers = {tag: number for number, tag in enumerate(self.tags)}
        self.embed = embedding(self.model, [word for words, _ in train for word in words], args)
        self.reader = dy.BiRNNBuilder(1, args.wembed, args.hidden, self.model, dy.VanillaLSTMBuilder)
        self.W = self.model.add_parameters((args.mlp, args.hidden))
        self.b = self.model.add_parameters((args.mlp,), init=0.0)
        self.V = self.model.add_parameters((len(self.tags), args.mlp))
        self.dropout = args.dropout

    def scores(self, words, training=False):
        """For each word its scores of all tags."""
        hs = self.reader.transduce([self.embed(word) for word in words])
        if training and self.dropout:
            hs = [dy.dropout(h, self.dropout) for h in hs]
        return [self.V * dy.tanh(dy.affine_transform([self.b, self.W, h])) for h in hs]

    def losses(self, words, tags):
        """For each word its loss in nats."""
        scores = self.scores(words, training=True)
        return [dy.pickneglogsoftmax(s, self.numbers[tag]) for s, tag in zip(scores, tags, strict=True)]

    def predict(self, sentences):
        """The tags of each of `sentences` (words only); one graph for all."""
        dy.renew_cg()
        scored = [self.scores(words) for words in sentences]
        values = iter(dy.npvalues([s for scores in scored for s in scores]))
        return [[self.tags[next(values).argmax()] for _ in words] for words in sentences]


def minibatches(sentences, size):
    return [sentences[i : i + size] for i in range(0, len(sentences), size)]


def train_epoch(tagger, trainer, sentences, size):
    """The mean loss of a word, over one pass with an update after each `size` sentences."""
    total = count = 0
    for part in progress(minibatches(sentences, size), "training"):
        dy.renew_cg()
        losses = [loss for words, tags in part for loss in tagger.losses(words, tags)]
        loss = dy.esum(losses)
        total += loss.scalar_value()
        count += len(losses)
        (loss / len(losses)).backward()
        trainer.update()
    return total / count


def accuracy(tagger, sentences, size):
    """The share of words that get the right tag: of all words, and of those without a row of their own in the table."""
    right, right_rare = [], []
    for part in progress(minibatches(sentences, size), "reading dev"):
        for (words, tags), found in zip(part, tagger.predict([words for words, _ in part]), strict=True):
            hits = [tag == said for tag, said in zip(tags, found, strict=True)]
            right += hits
            right_rare += [hit for word, hit in zip(words, hits, strict=True) if word not in tagger.embed.vocabulary]
    return sum(right) / len(right), sum(right_rare) / len(right_rare) if right_rare else float("nan")


def progress(items, what):
    """`items`, with a bar on the terminal once they have taken a second."""
    return items if tqdm is None else tqdm(items, desc=what, delay=1, leave=False, disable=None)


def show(tagger, sentence):
    """Print a sentence, a word a line: its true and its predicted tag."""
    words, tags = sentence
    width = max(map(len, ("true", *tagger.tags)))
    print(f"\nA dev sentence:\n\n  {'true':{width}}   {'said':{width}}")
    for word, tag, said in zip(words, tags, tagger.predict([words])[0], strict=True):
        print(f"  {tag:{width}}   {said:{width}}   {word}")


def parse(argv):
    parser = argparse.ArgumentParser(
        description="Train a BiLSTM tagger, with or without a BiLSTM over the letters of rare words."
    )
    parser.add_argument("--characters", action="store_true", help="read the letters of rare words (default: one row for all)")
    parser.add_argument("--data", metavar="FILE", help="training sentences (default: those in this file)")
    parser.add_argument(
        "--dev", metavar="FILE", help="dev sentences (default: each sixth training sentence, kept from training)"
    )
    for name, about in (
        ("wembed", "size of a word's vector"),
        ("cembed", "size of a letter's vector"),
        ("hidden", "size of a word's state, both directions together"),
        ("mlp", "size of the layer below the scores"),
        ("batch", "sentences in a minibatch"),
        ("epochs", "passes over the training sentences"),
        ("min_count", "words that come less often are rare"),
        ("alpha", "Adam's step"),
    ):
        help = f"{about} (default: {SMALL[name]}; with --data {LARGE[name]})"
        parser.add_argument("--" + name.replace("_", "-"), type=type(SMALL[name]), metavar="N", help=help)
    parser.add_argument("--dropout", type=float, default=0.0, metavar="P", help="dropout of a word's state (default: 0)")
    parser.add_argument("--seed", type=int, default=1, help="of initial values and the order of the sentences (default: 1)")
    args = parser.parse_args(argv)
    for path in (args.data, args.dev):
        if path is not None and not os.path.isfile(path):
            parser.error(f"there is no file {path}")
    for name, default in (SMALL if args.data is None else LARGE).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if min(args.wembed, args.cembed, args.hidden, args.mlp, args.batch, args.epochs) < 1 or not 0 <= args.dropout < 1:
        parser.error("sizes and --epochs must be at least 1, and 0 <= --dropout < 1")
    if args.wembed % 2 or args.hidden % 2:
        parser.error("--wembed and --hidden must be even: half is read forwards, half backwards")
    return args


def read_data(args):
    """Training and dev sentences."""
    sentences = read_file(args.data) if args.data else read_sentences(SENTENCES.splitlines(), "SENTENCES")
    if args.dev:
        return sentences, read_file(args.dev)
    train = [sentence for n, sentence in enumerate(sentences, 1) if n % KEPT]
    dev = sentences[KEPT - 1 :: KEPT]
    if not dev:
        raise ValueError(f"{args.data} has {len(sentences)} sentences: want at least {KEPT}, or --dev FILE")
    return train, dev


def main(argv=None):
    """Train and report; returns the sizes, one record for each epoch, and the tagger."""
    args = parse(argv)
    train, dev = read_data(args)

    dy.reset_random_seed(args.seed)
    rng = random.Random(args.seed)
    tagger = Tagger(LookedUpOrSpelled if args.characters else LookedUp, train, args)
    trainer = dy.AdamTrainer(tagger.model, alpha=args.alpha)
    rare = "read letter by letter" if args.characters else "all one to the network"
    print(f"\nBiLSTM tagger, words of {args.wembed}, states of {args.hidden}.")
    print(f"Words seen less than {args.min_count} times are {rare}.")
    print(f"{len(train)} training sentences in minibatches of {args.batch}, {len(dev)} dev sentences, {len(tagger.tags)} tags.")
    print("Kernels are compiled when first used, for some seconds, and found on disk from then on.")
    if tqdm is None:
        print("No progress bars: tqdm is not installed (python -m pip install tqdm).")
    print("\nepoch     loss   dev accuracy   of rare words   words/s")

    history = []
    for epoch in range(1, args.epochs + 1):
        rng.shuffle(train)
        start = time.perf_counter()
        loss = train_epoch(tagger, trainer, train, args.batch)
        speed = sum(len(words) for words, _ in train) / (time.perf_counter() - start)
        right, right_rare = accuracy(tagger, dev, args.batch)
        print(f"{epoch:5d}   {loss:6.4f}   {right:12.3f}   {right_rare:13.3f}   {speed:7,.0f}", flush=True)
        history.append(
            {"epoch": epoch, "loss": loss, "accuracy": right, "rare_accuracy": right_rare, "words_per_second": speed}
        )
    show(tagger, next((sentence for sentence in dev if 5 <= len(sentence[0]) <= 12), dev[0]))
    return {"train": len(train), "dev": len(dev), "history": history, "tagger": tagger}


SENTENCES = """
He|PRON badly|ADV painted|VERB Henrik|PROPN .|PUNCT
Anna|PROPN rarely|ADV visited|VERB the|DET sleepy|ADJ singer|NOUN .|PUNCT
We|PRON gladly|ADV found|VERB every|DET river|NOUN .|PUNCT
She|PRON slowly|ADV finished|VERB Ida|PROPN .|PUNCT
Clara|PROPN cleaned|VERB him|PRON .|PUNCT
They|PRON danced|VERB .|PUNCT
The|DET windy|ADJ weakness|NOUN worked|VERB near|ADP us|PRON but|CCONJ Edith|PROPN proudly|ADV opened|VERB Greta|PROPN .|PUNCT
She|PRON called|VERB her|DET dusty|ADJ driver|NOUN .|PUNCT
A|DET darkness|NOUN saw|VERB Marta|PROPN .|PUNCT
Every|DET curious|ADJ city|NOUN with|ADP the|DET house|NOUN often|ADV followed|VERB him|PRON .|PUNCT
Nils|PROPN admired|VERB the|DET station|NOUN .|PUNCT
The|DET gardener|NOUN calmly|ADV watched|VERB her|DET jealous|ADJ teacher|NOUN .|PUNCT
Her|DET baker|NOUN listened|VERB .|PUNCT
The|DET garden|NOUN remembered|VERB Bruno|PROPN .|PUNCT
We|PRON slept|VERB under|ADP the|DET noisy|ADJ happiness|NOUN .|PUNCT
Lukas|PROPN quietly|ADV wanted|VERB the|DET famous|ADJ kindness|NOUN .|PUNCT
The|DET collection|NOUN under|ADP the|DET letter|NOUN answered|VERB Jonas|PROPN .|PUNCT
The|DET hopeful|ADJ painter|NOUN wanted|VERB us|PRON .|PUNCT
Pavel|PROPN finished|VERB her|PRON .|PUNCT
The|DET old|ADJ weakness|NOUN saw|VERB every|DET careful|ADJ gardener|NOUN .|PUNCT
A|DET window|NOUN opened|VERB a|DET teacher|NOUN and|CCONJ they|PRON loudly|ADV waited|VERB with|ADP Olga|PROPN .|PUNCT
He|PRON quietly|ADV carried|VERB a|DET small|ADJ question|NOUN .|PUNCT
The|DET generous|ADJ letter|NOUN rarely|ADV found|VERB us|PRON .|PUNCT
Felix|PROPN often|ADV answered|VERB the|DET rusty|ADJ song|NOUN .|PUNCT
David|PROPN remembered|VERB him|PRON .|PUNCT
Nils|PROPN painted|VERB the|DET river|NOUN and|CCONJ Pavel|PROPN cleaned|VERB us|PRON .|PUNCT
The|DET joyful|ADJ happiness|NOUN called|VERB every|DET sunny|ADJ house|NOUN .|PUNCT
Every|DET red|ADJ city|NOUN admired|VERB Katrin|PROPN .|PUNCT
Edith|PROPN danced|VERB .|PUNCT
Ida|PROPN loudly|ADV followed|VERB Jonas|PROPN .|PUNCT
Henrik|PROPN called|VERB her|DET noisy|ADJ garden|NOUN .|PUNCT
Every|DET careful|ADJ farmer|NOUN answered|VERB Anna|PROPN .|PUNCT
Lukas|PROPN waited|VERB in|ADP her|DET city|NOUN .|PUNCT
He|PRON remembered|VERB the|DET small|ADJ nation|NOUN .|PUNCT
She|PRON gladly|ADV smiled|VERB near|ADP David|PROPN .|PUNCT
They|PRON proudly|ADV worked|VERB near|ADP a|DET driver|NOUN .|PUNCT
The|DET painter|NOUN slept|VERB with|ADP the|DET collection|NOUN .|PUNCT
A|DET kindness|NOUN quickly|ADV danced|VERB under|ADP the|DET generous|ADJ weakness|NOUN .|PUNCT
Every|DET new|ADJ teacher|NOUN rarely|ADV carried|VERB her|DET red|ADJ singer|NOUN .|PUNCT
Every|DET rusty|ADJ station|NOUN loudly|ADV painted|VERB the|DET hopeful|ADJ river|NOUN .|PUNCT
The|DET question|NOUN saw|VERB them|PRON .|PUNCT
Her|DET happiness|NOUN behind|ADP the|DET song|NOUN watched|VERB a|DET nervous|ADJ garden|NOUN .|PUNCT
A|DET farmer|NOUN waited|VERB behind|ADP Anna|PROPN .|PUNCT
She|PRON visited|VERB Pavel|PROPN .|PUNCT
The|DET grateful|ADJ darkness|NOUN near|ADP the|DET river|NOUN slowly|ADV finished|VERB a|DET windy|ADJ happiness|NOUN .|PUNCT
The|DET sunny|ADJ garden|NOUN calmly|ADV listened|VERB under|ADP Ida|PROPN .|PUNCT
Every|DET hopeful|ADJ baker|NOUN gladly|ADV visited|VERB the|DET famous|ADJ song|NOUN .|PUNCT
Henrik|PROPN sang|VERB often|ADV and|CCONJ the|DET new|ADJ window|NOUN carried|VERB her|PRON .|PUNCT
He|PRON cleaned|VERB her|PRON .|PUNCT
The|DET red|ADJ collection|NOUN in|ADP the|DET question|NOUN slept|VERB badly|ADV .|PUNCT
Every|DET small|ADJ weakness|NOUN gladly|ADV admired|VERB him|PRON .|PUNCT
Marta|PROPN quietly|ADV opened|VERB us|PRON .|PUNCT
The|DET gardener|NOUN under|ADP the|DET driver|NOUN loudly|ADV found|VERB a|DET kindness|NOUN .|PUNCT
They|PRON painted|VERB David|PROPN .|PUNCT
The|DET generous|ADJ painter|NOUN smiled|VERB calmly|ADV .|PUNCT
He|PRON followed|VERB them|PRON .|PUNCT
The|DET nervous|ADJ gardener|NOUN slowly|ADV saw|VERB the|DET baker|NOUN .|PUNCT
Her|DET painter|NOUN visited|VERB Jonas|PROPN .|PUNCT
They|PRON opened|VERB Olga|PROPN .|PUNCT
Every|DET weakness|NOUN cleaned|VERB the|DET noisy|ADJ nation|NOUN .|PUNCT
She|PRON finished|VERB the|DET darkness|NOUN but|CCONJ her|DET jealous|ADJ city|NOUN danced|VERB calmly|ADV .|PUNCT
Nils|PROPN waited|VERB in|ADP Clara|PROPN .|PUNCT
We|PRON laughed|VERB .|PUNCT
Her|DET letter|NOUN with|ADP the|DET happiness|NOUN gladly|ADV sang|VERB behind|ADP her|DET sunny|ADJ question|NOUN .|PUNCT
Felix|PROPN wanted|VERB the|DET joyful|ADJ driver|NOUN .|PUNCT
The|DET sunny|ADJ station|NOUN answered|VERB us|PRON .|PUNCT
She|PRON badly|ADV worked|VERB near|ADP Greta|PROPN .|PUNCT
Clara|PROPN often|ADV followed|VERB her|DET red|ADJ garden|NOUN .|PUNCT
A|DET cheerful|ADJ river|NOUN loudly|ADV called|VERB Katrin|PROPN .|PUNCT
The|DET new|ADJ question|NOUN painted|VERB her|DET teacher|NOUN .|PUNCT
The|DET city|NOUN watched|VERB her|DET singer|NOUN .|PUNCT
A|DET curious|ADJ farmer|NOUN loudly|ADV admired|VERB her|DET grateful|ADJ house|NOUN .|PUNCT
"""

if __name__ == "__main__":
    main(sys.argv[1:])

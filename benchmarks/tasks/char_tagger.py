"""BiLSTM tagger whose rare words are read letter by letter, by a second BiLSTM.

Source: Ling et al. (2015), "Finding Function in Form: Compositional Character Models for Open Vocabulary Word Representation";
the sizes are those of DyNet's benchmark `bilstm-tagger-withchar`.
"""

import collections

import numpy as np

from benchmarks.tasks import Rectangles, lstm_products, lstm_shapes, quantile, tagger, zipf

TITLE = "BiLSTM tagger with characters"
SIZES = {"word": 128, "letter": 20, "hidden": 50, "mlp": 32}
FOLLOWING = {}
DYNET_MEGABYTES = 2  # room that DyNet gets for a sentence, in each of its pools

# English WikiNER: words that come five times or more, the share of all others, the lengths of these with an edge at each end.
FREQUENT, RARE, LETTERS = 1078, 0.289, 76
SPELLED = (3, 5, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11, 12, 13, 28)
LEAST, EDGE = 5, ""


def generated(rng, count):
    """Sentences as (words, tags); a word is its number, or the tuple of its letters where it is rare."""

    def word():
        if rng.random() < RARE:
            return (0, *(zipf(rng, LETTERS) for _ in range(quantile(rng, SPELLED) - 2)), 0)
        return zipf(rng, FREQUENT)

    lengths = [quantile(rng, tagger.LENGTHS) for _ in range(count)]
    sentences = [([word() for _ in range(n)], [tagger.random_tag(rng) for _ in range(n)]) for n in lengths]
    return sentences, {"words": FREQUENT, "letters": LETTERS, "tags": tagger.TAGS}


def read(folder):
    sentences = tagger.read_sentences(folder)
    counts = collections.Counter(word for sentence in sentences for word, _ in sentence)
    words = {word: n for n, word in enumerate(w for w, count in counts.items() if count >= LEAST)}
    seen = collections.Counter(letter for sentence in sentences for word, _ in sentence for letter in word)
    letters = {letter: n for n, letter in enumerate((letter for letter, count in seen.items() if count >= LEAST), 2)}
    tags = {tag: n for n, tag in enumerate(dict.fromkeys(tag for sentence in sentences for _, tag in sentence))}

    def number(word):
        return words[word] if word in words else (0, *(letters.get(letter, 1) for letter in word), 0)

    found = [([number(word) for word, _ in s], [tags[tag] for _, tag in s]) for s in sentences]
    return found, {"words": len(words), "letters": len(letters) + 2, "tags": len(tags)}


def shapes(sizes):
    letter, half = sizes["letter"], sizes["word"] // 2
    return {
        **tagger.shapes(sizes),
        "table.letters": (sizes["letters"], letter),
        **lstm_shapes("letters forwards", letter, half),
        **lstm_shapes("letters backwards", letter, half),
    }


class Program(tagger.Program):
    """The tagger, with another vector for rare words."""

    def __init__(self, dy, sizes):
        super().__init__(dy, sizes)
        letter, half = sizes["letter"], sizes["word"] // 2
        self.letters = self.model.add_lookup_parameters((sizes["letters"], letter))
        self.letters_forwards = dy.VanillaLSTMBuilder(1, letter, half, self.model)
        self.letters_backwards = dy.VanillaLSTMBuilder(1, letter, half, self.model)

    def embed(self, words):
        return [self.words[word] if isinstance(word, int) else self.spell(word) for word in words]

    def spell(self, letters):
        vectors = [self.letters[letter] for letter in letters]
        forwards = self.letters_forwards.initial_state().transduce(vectors)
        backwards = self.letters_backwards.initial_state().transduce(vectors[::-1])
        return self.dy.concatenate([forwards[-1], backwards[-1]])


def sorted_out(batch):
    """Frequent words, rare words, and where each word of a minibatch is if the frequent ones stand before the rare ones."""
    words = [word for sentence, _ in batch for word in sentence]
    rare = [word for word in words if not isinstance(word, int)]
    frequent = [word for word in words if isinstance(word, int)]
    is_rare = np.array([not isinstance(word, int) for word in words])
    return frequent, rare, np.where(is_rare, len(frequent) + np.cumsum(is_rare) - 1, np.cumsum(~is_rare) - 1)


class Bulk(Program, tagger.Bulk):
    """The same for a whole minibatch given as arrays of integers."""

    def vectors(self, batch):
        dy = self.dy
        frequent, rare, place = sorted_out(batch)
        found = [dy.rows(self.words, frequent)] if frequent else []
        if rare:
            lengths = np.array([len(word) for word in rare])
            letters, ends = dy.rows(self.letters, np.concatenate(rare)), np.cumsum(lengths)
            forwards = dy.scan(self.letters_forwards, letters, lengths)[ends - 1]
            backwards = dy.scan(self.letters_backwards, letters, lengths, reverse=True)[ends - lengths]
            found.append(dy.each(lambda f, b: dy.concatenate([f, b]), forwards, backwards))
        return (found[0] + found[1] if len(found) == 2 else found[0])[place]


class HandBatched(tagger.HandBatched):
    """The letters of all rare words of a minibatch are a minibatch of their own."""

    def __init__(self, th, sizes, values):
        super().__init__(th, sizes, values)
        self.letters = self.tensor("table.letters")
        self.readers = [self.lstm(f"letters {way}") for way in ("forwards", "backwards")]

    def prepare(self, batch):
        frequent, rare, place = sorted_out(batch)
        padded = Rectangles(self, [len(sentence) for sentence, _ in batch])
        spelled = Rectangles(self, [len(word) for word in rare]) if rare else None
        tags = np.concatenate([np.array(tags) for _, tags in batch])
        letters = [letter for word in rare for letter in word]
        return padded, spelled, *map(self.indices, (frequent, letters, place, tags))

    def loss(self, prepared):
        padded, spelled, frequent, letters, place, tags = prepared
        vectors = self.rows(self.words, frequent)
        if spelled is not None:
            items = self.rows(self.letters, letters)
            ways = zip(self.readers, ("forwards", "backwards"), strict=True)
            ends = [spelled.run(lstm, items, way).index_select(0, spelled.last) for lstm, way in ways]
            vectors = self.th.cat([vectors, self.th.cat(ends, 1)])
        return self.tagged(padded, vectors.index_select(0, place), tags)


def products(batch, sizes):
    rare = [len(word) for sentence, _ in batch for word in sentence if not isinstance(word, int)]
    one_way = lstm_products(rare, sizes["letter"], sizes["word"] // 2) if rare else []
    return [*tagger.products(batch, sizes), *one_way, *one_way]

"""Six tasks, a file each: the program for one instance, the same batched by hand in PyTorch, and its matrix products alone.

What a task's file holds:

    TITLE, SIZES         in words; sizes by name, `hidden` among them
    FOLLOWING            sizes that are given as a multiple of `hidden` where that is set
    DYNET_MEGABYTES      room that DyNet is given for an instance, in each of its pools
    generated(rng, n)    n instances of the lengths of real data, and the sizes of the vocabularies
    read(folder)         the instances of real data, and the sizes of the vocabularies; FileNotFoundError where there are none
    shapes(sizes)        name -> shape of each parameter, in the order in which the program makes them; a table's is `table.…`
    Program(dy, sizes)   the program; `dy` is autobatch or DyNet. `loss(batch)` is the mean loss of a minibatch, an Expression
    HandBatched          the same with PyTorch: `prepare(batch)` makes its tensors, `loss(prepared)` the mean loss
    products(batch, sizes)   (k, n, [m, …]) for each weight: the products (m,k) (k,n) of a forward pass
"""

import importlib
import math

import numpy as np

NAMES = ("tagger", "char_tagger", "tree_lstm", "parser", "language_model", "acceptor")


def load(name):
    """The module of a task."""
    return importlib.import_module(f"{__name__}.{name}")


def sizes_of(task, hidden=None, others=()):
    """The sizes of a task, for another `hidden` where it is given; of `others`, (name, size), those that it has."""
    sizes = dict(task.SIZES)
    if hidden is not None:
        sizes["hidden"] = hidden
        for name, multiple in task.FOLLOWING.items():
            sizes[name] = max(1, round(hidden * multiple))
    return sizes | {name: size for name, size in others if name in sizes}


# ---- generated data --------------------------------------------------------------------------------------------------


def quantile(rng, quantiles):
    """A random whole number; `quantiles` are those of its distribution, at equal steps from the least to the largest."""
    place = rng.random() * (len(quantiles) - 1)
    k = int(place)
    within = place - k if k < len(quantiles) - 2 else (place - k) ** 5  # a long tail: most of the last step lie near its start
    return round(quantiles[k] + (quantiles[k + 1] - quantiles[k]) * within)


def zipf(rng, count):
    """A random number below `count`, the probability of each about 1 over its rank, as of words."""
    return int((count + 1) ** rng.random()) - 1


# ---- initial values --------------------------------------------------------------------------------------------------


def lstm_shapes(name, inputs, hidden):
    """The parameters of one layer of DyNet's VanillaLSTMBuilder: rows of the gates i, f, o, g."""
    return {f"{name}.Wx": (4 * hidden, inputs), f"{name}.Wh": (4 * hidden, hidden), f"{name}.b": (4 * hidden,)}


def draw(shapes, seed):
    """Initial values by name, equal for all libraries: matrices uniform after Glorot, vectors 0 (`nowhere` aside)."""
    rng = np.random.default_rng(seed)
    values = {}
    for name, shape in shapes.items():
        limit = math.sqrt(6 / sum(shape)) if len(shape) > 1 else 0.0
        if name.startswith("table.") or name == "nowhere":
            limit = math.sqrt(3 / shape[-1])
        values[name] = rng.uniform(-1, 1, shape).astype(np.float32) * np.float32(limit)
    return values


def fill(model, values):
    """Give the parameters and tables of a collection their values, in the order in which they were made."""
    for parameters, table in ((model.parameters_list(), False), (model.lookup_parameters_list(), True)):
        named = [(name, value) for name, value in values.items() if name.startswith("table.") == table]
        for parameter, (name, value) in zip(parameters, named, strict=True):
            if tuple(parameter.shape()) != value.shape:
                raise ValueError(f"{name}: want shape {value.shape}, the model has {tuple(parameter.shape())}")
            if table:
                parameter.init_from_array(value)
            else:
                parameter.set_value(value)


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


class Hand:
    """A network batched by hand; `th` is PyTorch, a parameter so that this file does not import it."""

    rectangles = 8  # of padded sequences, at most; 1 is what is mostly done
    device = "cpu"

    def __init__(self, th, sizes, values):
        self.th, self.sizes, self.values = th, sizes, values
        self.trained = []

    def tensor(self, value):
        """A trained tensor with the values of `value`, an array or the name of one."""
        value = self.values[value] if isinstance(value, str) else value
        self.trained.append(self.th.nn.Parameter(self.th.from_numpy(np.array(value)).to(self.device)))
        return self.trained[-1]

    def lstm(self, name):
        """One direction of one layer as nn.LSTM. DyNet orders the gates i, f, o, g and adds 1 to f; PyTorch has i, f, g, o."""
        Wx, Wh, b = (self.values[f"{name}.{part}"] for part in ("Wx", "Wh", "b"))
        hidden = Wh.shape[1]
        order = np.r_[0 : 2 * hidden, 3 * hidden : 4 * hidden, 2 * hidden : 3 * hidden]
        b = b.copy()
        b[hidden : 2 * hidden] += 1
        layer = self.th.nn.LSTM(Wx.shape[1], hidden)
        with self.th.no_grad():
            for parameter, value in ((layer.weight_ih_l0, Wx), (layer.weight_hh_l0, Wh), (layer.bias_ih_l0, b)):
                parameter.copy_(self.th.from_numpy(value[order]))
            layer.to(self.device)
            for parameter in (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0):
                self.trained.append(parameter)
            layer.bias_hh_l0.zero_()
        layer.bias_hh_l0.requires_grad_(False)  # the second bias of PyTorch would learn twice as fast
        return layer

    def rows(self, table, numbers):
        """Rows of a table, with sparse gradients."""
        return self.th.nn.functional.embedding(numbers, table, sparse=True)

    def indices(self, array):
        return self.th.from_numpy(np.ascontiguousarray(array, np.int64)).to(self.device)

    def mean_loss(self, scores, labels):
        return self.th.nn.functional.cross_entropy(scores, labels)


class Rectangles:
    """Where the items of sequences of unequal lengths lie in padded rectangles (T, B), read forwards and backwards.

        sequences  a b c | d | e f      forwards  a d e      backwards  c d f       items are numbered in the order
                                                  b . f                 b . e       a b c d e f
                                                  c . .                 a . .

    Each direction begins in the first row, so what stands in the padding is never seen by an item. Sequences are sorted by
    length and shared out among rectangles, `hand.rectangles` at most, so that little is padded. For 64 sentences three are 1.9
    times as fast as one in the tagger, 1.7 times in the parser, on one thread; packed sequences do no better than one. For ten
    sentences one is best.

    `gather[way]` names an item for each place of a rectangle (0 in the padding), `at[way]` a place for each item, `last` the
    place of each sequence's last step; places count on from one rectangle to the next.
    """

    def __init__(self, hand, lengths, backwards=True):
        self.th, lengths = hand.th, np.asarray(lengths)
        items, ends = int(lengths.sum()), np.cumsum(lengths)
        count = max(1, min(hand.rectangles, len(lengths) // 20, len(set(lengths.tolist()))))
        groups = np.array_split(np.argsort(lengths, kind="stable"), count)
        ways = ("forwards", "backwards")[: 1 + backwards]
        at, self.gather = {way: np.empty(items, np.int64) for way in ways}, {way: [] for way in ways}
        last, self.shapes, start = np.empty(len(lengths), np.int64), [], 0
        for group in groups:
            sizes = lengths[group]
            batch, steps = len(group), int(sizes.max())
            before = np.cumsum(sizes) - sizes
            step = np.arange(sizes.sum()) - np.repeat(before, sizes)
            row, item = np.repeat(np.arange(batch), sizes), np.repeat(ends[group] - sizes, sizes) + step
            for way in ways:
                place = (step if way == "forwards" else np.repeat(sizes, sizes) - 1 - step) * batch + row
                gather = np.zeros(steps * batch, np.int64)
                gather[place] = item
                self.gather[way].append(hand.indices(gather))
                at[way][item] = start + place
            last[group] = start + (sizes - 1) * batch + np.arange(batch)
            self.shapes.append((steps, batch))
            start += steps * batch
        self.at, self.last = {way: hand.indices(places) for way, places in at.items()}, hand.indices(last)

    def run(self, lstm, items, way):
        """The states h of an LSTM that reads items (N, D) one way, at their places, (places, H)."""
        states = [
            lstm(items.index_select(0, gather).view(steps, batch, -1))[0].view(steps * batch, -1)
            for gather, (steps, batch) in zip(self.gather[way], self.shapes, strict=True)
        ]
        return states[0] if len(states) == 1 else self.th.cat(states)

    def both(self, lstms, items):
        """For each item the states of both directions, (N, 2H)."""
        ways = zip(lstms, ("forwards", "backwards"), strict=True)
        return self.th.cat([self.run(lstm, items, way).index_select(0, self.at[way]) for lstm, way in ways], 1)


# ---- products --------------------------------------------------------------------------------------------------------


def lstm_products(lengths, inputs, hidden):
    """The products of one direction of one layer: the inputs at once, the states step by step; there is none at the first."""
    lengths = np.asarray(lengths)
    steps = [int((lengths > t).sum()) for t in range(1, int(lengths.max()))]
    return [(inputs, 4 * hidden, [int(lengths.sum())]), *([(hidden, 4 * hidden, steps)] if steps else [])]

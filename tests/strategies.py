"""Every Hypothesis strategy of the tests: what ops are called with, calls of one op together, whole graphs.

Structure (ops, shapes, who reads what) is drawn, so that it shrinks; numbers come from a generator with a drawn seed.
"""

import os

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from laws import (
    FORCED,
    KINDS,
    OTHER_IMMEDIATES,
    Call,
    Case,
    Fill,
    Input,
    Plan,
    Ref,
    Reshape,
    Row,
    Slice,
    Squash,
    Stop,
    Use,
    evaluate,
    filled,
    smooth,
    tensors,
)

from autobatch.kernels._op import OPS, Shape

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.one_of(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9))
LARGE = st.one_of(SIZES, SIZES, SIZES, st.integers(16, 130))  # of elements with few dims


def examples(n):
    """Return the setting that a test is tried with n examples, or AUTOBATCH_EXAMPLES times as many."""
    return settings(max_examples=n * int(os.environ.get("AUTOBATCH_EXAMPLES", "1")))


class Drawn:
    """What `samples` of an op choose from (`Choose`): Hypothesis. With `batched`, each batch has more than one element."""

    def __init__(self, draw, batched=False, sizes=None):
        self.draw, self.batched, self.sizes = draw, batched, sizes

    def integer(self, low, high):
        return self.draw(st.integers(low, high))

    def once_in(self, n):
        return self.integer(1, n) == n

    def one_of(self, choices):
        return self.draw(st.sampled_from(list(choices)))

    def some(self, n):
        return self.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=min(n, 9), unique=True))

    def dims(self, low=1, high=4):
        rank = self.integer(low, high)
        first, others = (LARGE if rank < 3 else SIZES, SIZES) if self.sizes is None else (self.sizes, self.sizes)
        return tuple(self.draw(others if k else first) for k in range(rank))

    def batch(self):
        return self.draw(st.integers(2, 4) if self.batched else st.sampled_from([1, 1, 2, 3]))


class Random:
    """The same, from a random generator."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def integer(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def one_of(self, choices):
        return choices[self.integer(0, len(choices) - 1)]

    def some(self, n):
        return self.rng.permutation(n)[: self.integer(1, n)].tolist()

    def dims(self, low=1, high=4):
        return tuple(self.integer(1, 4) for _ in range(self.integer(low, high)))

    def batch(self):
        return self.integer(1, 3)


def numbers(rng, tensor):
    """Return numbers for a tensor, dims and then the batch."""
    drawn = rng.uniform(tensor.low, tensor.high, (*tensor.shape.dims, tensor.shape.batch))
    return drawn if tensor.fit is None else tensor.fit(drawn)


def varied(op, sample, integer):
    """Return the call with other immediates."""
    other = OTHER_IMMEDIATES.get(op.name)
    arguments = sample.arguments if other is None else tuple(other(sample.arguments, integer))
    attributes = {**sample.attributes, **({"key": integer(0, 2**31 - 1)} if "key" in sample.attributes else {})}
    return sample._replace(arguments=arguments, attributes=attributes)


# Calls of one op ------------------------------------------------------------------------------------------------------


@st.composite
def plans(draw, op, most=1, batched=False):
    """Draw 1 (or 2 to `most`) calls of an op, of one type; each tensor comes from a leaf of its own or one that is shared."""
    choose = Drawn(draw, batched)
    sample = op.samples(choose)
    count = 1 if most == 1 else choose.integer(2, most)
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    calls = [sample, *(varied(op, sample, Random([seed, i]).integer) for i in range(1, count))]
    wanted, leaves, strips = tensors(sample.arguments), [], []
    uses = [[] for _ in calls]
    for position, tensor in enumerate(wanted):
        forced = FORCED.get(op.name, {}).get(position)
        of_type = forced is not None or (op.shared is not None and op.shared(position))
        earlier = [p for p in range(position) if wanted[p] == tensor] if forced is None else []
        how = "one" if forced is not None else choose.one_of(["own", "own", "own", "one", "again"])
        if how == "again" and earlier:  # the same argument twice in one call
            p = choose.one_of(earlier)
            for use in uses:
                use.append(use[p])
            continue
        kind = forced or choose.one_of(KINDS)
        mixed, side_by_side = choose.once_in(2), choose.once_in(4)
        if how == "one" or (of_type and kind in ("parameter", "constant")):
            leaves.append((kind, numbers(rng, tensor)))
            for use in uses:
                use.append(len(leaves) - 1)
            continue
        if side_by_side:
            members = list(range(len(leaves), len(leaves) + len(uses)))
            leaves += [("part", numbers(rng, tensor)) for _ in uses]
            for use, k in zip(uses, members, strict=True):
                use.append(k)
            members = members[::-1] if choose.once_in(4) else members
            strips.append((members, choose.integer(0, 2), choose.once_in(2)))
            continue
        # A parameter where the op shares it belongs to the type: others may not stand beside it.
        kinds = [k for k in KINDS if not of_type or k not in ("parameter", "constant")]
        for use in uses:
            leaves.append((choose.one_of(kinds) if mixed else kind, numbers(rng, tensor)))
            use.append(len(leaves) - 1)
    order = [int(k) for k in rng.permutation(len(leaves))]
    extra = {k: choose.once_in(2) for k in range(len(leaves)) if choose.once_in(3)}
    repeated = op.name != "lookup_batch" and choose.once_in(3)
    return Plan(op, calls, uses, leaves, strips, order, extra, repeated, choose.once_in(2), seed)


# Whole graphs ---------------------------------------------------------------------------------------------------------


class Writer:
    """Writes one program, for some instances at once, and knows the values of all of them by the references of the ops."""

    def __init__(self, choose, rng, parameters, count):
        self.choose, self.rng, self.parameters = choose, rng, parameters
        self.steps = [[] for _ in range(count)]
        self.values = [[] for _ in range(count)]
        self.shapes = []

    def add(self, steps):
        """Add a step, one form of it for each instance; return the number of the value it makes (the first of them)."""
        arrays = [a for _, a in self.parameters]
        first = len(self.shapes)
        for i, step in enumerate(steps):
            made = evaluate(step, self.values[i], arrays)
            self.steps[i].append(step)
            self.values[i] += made
        self.shapes += [Shape(y.shape[:-1], y.shape[-1]) for y in made]
        return first

    def same(self, step):
        """Add a step that is the same for all instances."""
        return self.add([step] * len(self.steps))

    def shaped(self, at, shape):
        """Return a value in another shape."""
        return at if self.shapes[at] == shape else self.same(Reshape(at, shape))

    def parameter(self, kind, dims, low, high):
        """Return a parameter with all numbers in [low, high), perhaps one that is there."""
        alike = [(k, a) for k, (of, a) in enumerate(self.parameters) if of == kind and a.shape == dims]
        fits = [k for k, a in alike if low <= a.min() and a.max() < high]
        if fits and not self.choose.once_in(3):
            return self.choose.one_of(fits)
        self.parameters.append((kind, self.rng.uniform(low, high, dims)))
        return len(self.parameters) - 1

    def leaf(self, tensor):
        """Return a new leaf for a tensor."""
        (dims, batch), low, high, fit = tensor
        if fit is not None:
            drawn = numbers(self.rng, tensor)
            self.parameters.append(("parameter", drawn[..., 0] if batch == 1 else drawn.ravel(order="F")))
            return self.shaped(self.same(Use(len(self.parameters) - 1)), Shape(dims, batch))
        kind = self.choose.one_of(["input", "input", "parameter", "parameter", "row", "row", "constant", "fill", "rows"])
        shape = Shape(dims, batch)
        if kind in ("parameter", "constant"):
            k = self.parameter("parameter", dims if batch == 1 else (shape.total,), low, high)
            return self.shaped(self.same(Use(k, kind == "parameter")), shape)
        if kind == "row":
            table = self.parameter("table", (shape.total, 3), low, high)
            update = not self.choose.once_in(5)
            return self.shaped(self.add([Row(table, int(self.rng.integers(3)), update) for _ in self.steps]), shape)
        if kind == "rows":
            table = self.same(Use(self.parameter("table", (*dims, 4), low, high)))
            return self.add([self.look_up(table, batch) for _ in self.steps])
        if kind == "fill":
            return self.same(Fill(shape, self.choose.one_of([low, (low + high) / 2])))
        return self.add([Input(numbers(self.rng, tensor)) for _ in self.steps])

    def look_up(self, table, batch):
        return Call("lookup_batch", (Ref(table), [int(k) for k in self.rng.integers(4, size=batch)]), {})

    def argument(self, tensor, forced, parameter):
        """Return a value for a tensor: a parameter, a value of this very shape, a part of a larger one, or a leaf."""
        shape, low, high, fit = tensor
        if fit is not None:  # nothing else lies in the op's domain
            return self.leaf(tensor)
        if forced is not None or parameter:
            return self.same(Use(self.parameter(forced or "parameter", shape.dims, low, high)))
        how, at = self.choose.integer(0, 9), None
        equal = [k for k, s in enumerate(self.shapes) if s == shape]
        larger = [k for k, s in enumerate(self.shapes) if s.total >= shape.total]
        if how < 6 and equal:
            at = equal[-1] if how < 3 else self.choose.one_of(equal)
        elif how < 8 and larger:
            of = self.choose.one_of(larger)
            total = self.shapes[of].total
            begin = self.choose.integer(0, total - shape.total)
            vector = self.shaped(of, Shape((total,)))
            at = self.shaped(self.same(Slice(vector, begin, begin + shape.total)), shape)
        else:
            at = self.leaf(tensor)
        if self.choose.once_in(25):
            at = self.same(Stop(at))
        slack = 1.0 if low < 0 else 0.0
        if not all(np.all((v[at] >= low - slack) & (v[at] <= high + slack)) for v in self.values):
            at = self.same(Squash(at, low, high))
        return at

    def call(self, op):
        """Add a call of an op, unless it stands near a kink there."""
        sample = op.samples(self.choose)
        wanted = tensors(sample.arguments)
        refs = []
        for position, tensor in enumerate(wanted):
            shared = op.shared is not None and op.shared(position) and tensor.shape.batch == 1
            forced = FORCED.get(op.name, {}).get(position)
            refs.append(Ref(self.argument(tensor, forced, shared and not self.choose.once_in(4))))
        steps = []
        for _ in self.steps:
            one = varied(op, sample, lambda low, high: int(self.rng.integers(low, high + 1)))
            steps.append(Call(op.name, filled(one.arguments, refs), one.attributes))
        for step, values in zip(steps, self.values, strict=True):
            read = sorted({r.at for r in refs})
            if not read:
                continue
            x = np.concatenate([values[k].ravel() for k in read])
            v = self.rng.uniform(0.5, 1.5, x.size) * self.rng.choice([-1, 1], x.size)

            def results(x, step=step, values=values, read=read):
                parts = np.split(x, np.cumsum([values[k].size for k in read])[:-1])
                moved = dict(zip(read, (p.reshape(values[k].shape) for p, k in zip(parts, read, strict=True)), strict=True))
                return evaluate(step, moved, None)

            if not smooth(results, x, v, 1e-3):
                return
        self.add(steps)

    def close(self):
        """Add the loss of each instance: a weighed sum of some of the values."""
        read = {len(self.shapes) - 1, *(self.choose.integer(0, len(self.shapes) - 1) for _ in range(self.choose.integer(0, 3)))}
        terms = []
        for k in sorted(read):
            n = self.shapes[k].total
            vector = self.shaped(k, Shape((n,)))
            weights = self.add([Input(self.rng.uniform(-1, 1, (n, 1))) for _ in self.steps])
            terms.append(Ref(self.same(Call("dot_product", (Ref(vector), Ref(weights)), {}))))
        self.same(Call("esum", (terms,), {}))


@st.composite
def programs(draw):
    """Draw a Case: one to three programs over the ops, each for one to four instances, that share parameters."""
    rng = np.random.default_rng(draw(SEEDS))
    choose = Drawn(draw, sizes=st.integers(1, 5))
    # Ops with weights of their own three times, so that there is something to train.
    drawn = [op for op in OPS.values() for _ in range(1 if op.shared is None else 3)]
    parameters, instances = [], []
    for _ in range(choose.integer(1, 3)):
        writer = Writer(choose, rng, parameters, choose.integer(1, 4))
        for _ in range(choose.integer(1, 6)):
            writer.call(choose.one_of(drawn))
        if not writer.shapes:
            writer.same(Input(rng.uniform(-1, 1, (2, 1))))
        writer.close()
        instances += writer.steps
    turns = [i for i, steps in enumerate(instances) for _ in steps]
    if choose.once_in(2):
        turns = [turns[k] for k in rng.permutation(len(turns))]
    return Case(parameters, instances, turns, choose.one_of(["esum", "average", "sum"]), int(rng.integers(2**32)))


@st.composite
def trees(draw):
    """Draw a Case: trees and chains of different sizes over rows of one table, by a few cells with shared weights."""
    rng = np.random.default_rng(draw(SEEDS))
    n = draw(st.integers(1, 5))  # numbers in a row, and in a state
    shapes = {"table": (n, 3), "b": (n,), "W": (n, n), "U": (n, n), "V": (3, n)}
    shapes |= {"Wx": (4 * n, n), "Wh": (4 * n, n), "bh": (4 * n,)}
    names = list(shapes)
    parameters = [("table" if k == "table" else "parameter", rng.uniform(-1, 1, s)) for k, s in shapes.items()]
    cells = draw(st.lists(st.sampled_from(["affine", "matmul", "lstm", "product"]), min_size=1, max_size=3))
    instances = []
    for words in draw(st.lists(st.integers(1, 8), min_size=1, max_size=5)):
        steps, weights, count = [], {}, 0

        def add(step, made=1):
            nonlocal count
            steps.append(step)
            count += made
            return count - made

        def weight(name):
            if name not in weights:
                weights[name] = Ref(add(Use(names.index(name))))
            return weights[name]

        def call(op, *arguments, made=1):
            return Ref(add(Call(op, arguments, {}), made))

        def cell(x, h):
            kind = cells[rng.integers(len(cells))]
            if kind == "affine":
                return call("tanh", call("affine_transform", [weight("b"), weight("W"), x, weight("U"), h]))
            if kind == "matmul":
                return call("logistic", call("add", call("matmul", weight("W"), x), call("matmul", weight("U"), h)))
            if kind == "product":  # the left side is computed, and shared by two products
                side = call("matmul", call("concatenate", [x, h], 1), call("transpose", call("concatenate", [h, x], 1), [1, 0]))
                return call("tanh", call("add", call("matmul", side, x), call("matmul", side, h)))
            made = call("lstm_step", x, h, x, weight("Wx"), weight("Wh"), weight("bh"), 1.0, made=2)
            return Ref(made.at + int(rng.integers(2)))

        chain, losses = rng.integers(2), []
        nodes = [Ref(add(Row(0, int(rng.integers(3))))) for _ in range(words)]
        while True:
            if len(nodes) == 1 or rng.integers(3) == 0:
                scores = call("matmul", weight("V"), nodes[rng.integers(len(nodes))])
                losses.append(call("pickneglogsoftmax", scores, int(rng.integers(3))))
            if len(nodes) == 1:
                break
            k = 0 if chain else int(rng.integers(len(nodes) - 1))
            other = nodes[k + 1] if rng.integers(6) else nodes[k]
            nodes[k : k + 2] = [cell(nodes[k], other)]
        call("esum", losses)
        instances.append(steps)
    turns = [i for i, steps in enumerate(instances) for _ in steps]
    return Case(parameters, instances, turns, "esum", int(rng.integers(2**32)))


def graphs():
    """Draw a Case: any program, or trees."""
    return st.one_of(programs(), programs(), trees())

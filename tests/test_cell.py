"""A cell gives what the plain function gives: every op, whole programs, all ways to call one; and says what it cannot do."""

from unittest import mock

import laws
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import EXACT, FLOAT32, FLOAT32_GRAPH, close, run
from strategies import SEEDS, examples, plans

import autobatch as ab
from autobatch.kernels._op import OPS
from autobatch.schedule import POLICIES

# Every op -------------------------------------------------------------------------------------------------------------


def in_a_cell(function, around):
    """Return a function whose results are those of a cell; with `around`, they stand between other results."""

    def body(*arguments, **attributes):
        made = laws.several(function(*arguments, **attributes))
        if not around:
            return made
        before, after = ab.tanh(made[-1]), ab.square(made[0])
        return before, *made, after

    cell = ab.cell(body)

    def call(*arguments, **attributes):
        made = cell(*arguments, **attributes)
        return made[1:-1] if around else made

    return call


ROWS = ("lookup_batch",)  # take rows of a table


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.name not in ROWS], ids=lambda op: op.name)
@pytest.mark.parametrize("around", [False, True], ids=["alone", "among others"])
def test_every_op_in_a_cell(op, around):
    @examples(8)
    @given(plans(op, 4))
    def check(plan):
        dtype = "float32" if plan.seed % 4 == 0 else "float64"
        plain = run(plan, dtype, "none")
        cells = {}

        def public(name):
            if name not in cells:
                cells[name] = in_a_cell(laws_public(name), around)
            return cells[name]

        laws_public = laws.public
        with mock.patch.object(laws, "public", public):
            traced = run(plan, dtype, "ratio")
        tolerance = EXACT if dtype == "float64" else FLOAT32
        for ours, expected in zip(traced.values(), plain.values(), strict=True):
            for a, b in zip(ours, expected, strict=True):
                close(a, b, tolerance, f"{op.name}, value")
        for (kind, _), a, b in zip(plan.leaves, traced.gradients(plan.full), plain.gradients(plan.full), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                close(a, b, tolerance, f"{op.name}, gradient of {kind}")

    check()


# Random functions -----------------------------------------------------------------------------------------------------


class Function:
    """A random function of expressions over a few parameters: the same Python, plain or in a cell.

    It is a list of instructions, each of which makes a value of the arguments, parameters and values before it.
    """

    def __init__(self, seed, most=10):
        self.rng = rng = np.random.default_rng(seed)
        n = self.n = int(rng.integers(2, 6))
        batch = int(rng.choice([1, 1, 1, 3]))
        one = [(n,), (n,), (n,), (2 * n,), (1,), (n, 3), (n, n)]
        self.shapes = [one[k] for k in rng.integers(len(one), size=rng.integers(1, 5))]
        self.batches = [batch if rng.integers(2) else 1 for _ in self.shapes]
        self.sizes = {"W": (n, n), "V": (2 * n, n), "b": (n,), "s": (1,)}
        self.instructions, self.known = [], []
        for shape, b in zip(self.shapes, self.batches, strict=True):
            self.known.append((shape, b))
        for name, shape in self.sizes.items():
            self.instructions.append(("parameter", name, rng.integers(4) > 0))
            self.known.append((shape, 1))
        makers = [getattr(self, name) for name in dir(self) if name.startswith("make_")]
        for _ in range(rng.integers(1, most + 1)):
            made = makers[rng.integers(len(makers))]()
            if made is not None:
                instruction, shape, b = made
                self.instructions.append(instruction)
                self.known.append((shape, b))
        first = len(self.shapes) + len(self.sizes)
        last = range(first, len(self.known)) if len(self.known) > first else range(len(self.known))
        self.outputs = [int(last[rng.integers(len(last))])]
        self.outputs += rng.integers(len(self.known), size=rng.integers(0, 4)).tolist()
        self.form = int(rng.integers(3))

    # What an instruction can be: (instruction, shape, batch)

    def pick(self, fits=lambda shape: True, lately=True):
        found = [k for k, (shape, _) in enumerate(self.known) if fits(shape)]
        if not found:
            return None
        return found[-1 - int(self.rng.integers(min(len(found), 4)))] if lately else found[self.rng.integers(len(found))]

    def make_unary(self):
        at = self.pick()
        name = ["tanh", "logistic", "tanh", "logistic", "square", "negate", "exp", "flip", "silu"][self.rng.integers(9)]
        return (name, at), *self.known[at]

    make_another_unary = make_unary

    def make_binary(self):
        at = self.pick()
        shape, b = self.known[at]
        other = self.pick(lambda s: s == shape, lately=False)
        both = max(b, self.known[other][1])
        return (["+", "-", "cmult", "cmult", "+", "huber"][self.rng.integers(6)], at, other), shape, both

    make_another_binary = make_binary

    def make_broadcast(self):
        at = self.pick(lambda s: len(s) == 2 or s != (1,))
        if at is None:
            return None
        (shape, b), other = self.known[at], self.pick(lambda s: s == (1,), lately=False)
        if len(shape) == 2 and self.rng.integers(2):
            other = self.pick(lambda s: s == shape[:1], lately=False) or other
        return (["+", "cmult"][self.rng.integers(2)], at, other), shape, max(b, self.known[other][1])

    def make_with_number(self):
        at = self.pick()
        return (["times", "plus", "from"][self.rng.integers(3)], at, float(self.rng.choice([0.5, 2.0, -1.0]))), *self.known[at]

    def make_sum(self):
        at = self.pick()
        shape, b = self.known[at]
        others = [at, *(self.pick(lambda s: s == shape, lately=False) for _ in range(self.rng.integers(0, 3)))]
        return ("esum", others), shape, max(self.known[k][1] for k in others)

    def make_slice(self):
        at = self.pick(lambda s: len(s) == 1 and s[0] > 1, lately=False)
        shape, b = self.known[at]
        size = self.n if shape[0] > self.n else int(self.rng.integers(1, shape[0] + 1))
        begin = int(self.rng.integers(0, shape[0] - size + 1))
        return ("slice", at, begin, begin + size), (size,), b

    def make_reshape(self):
        at = self.pick(lambda s: len(s) == 2)
        return None if at is None else (("flat", at), (int(np.prod(self.known[at][0])),), self.known[at][1])

    def make_concatenate(self):
        parts = [self.pick(lambda s: len(s) == 1, lately=False) for _ in range(self.rng.integers(1, 4))]
        size = sum(self.known[k][0][0] for k in parts)
        return (("concatenate", parts), (size,), max(self.known[k][1] for k in parts)) if size < 30 else None

    def make_product(self):
        x = self.pick(lambda s: s[0] == self.n)
        w = self.pick(lambda s: len(s) == 2 and s[1] == self.n, lately=False)
        if x is None:
            return None
        (m, _), (shape, b) = self.known[w][0], self.known[x]
        return ("product", w, x), (m, *shape[1:]), max(b, self.known[w][1])

    def make_affine(self):
        x, y = (self.pick(lambda s: s == (self.n,), lately=False) for _ in range(2))
        b, w, u = (len(self.shapes) + k for k in (2, 0, 0))
        b = b if self.rng.integers(3) else self.pick(lambda s: s == (self.n,), lately=False)
        return ("affine", b, w, x, u, y), (self.n,), max(self.known[k][1] for k in (b, x, y))

    def make_number(self):
        at = self.pick()
        return (["sum", "norm"][self.rng.integers(2)], at), (1,), self.known[at][1]

    def make_softmax(self):
        at = self.pick(lambda s: len(s) == 1)
        return ("softmax", at), *self.known[at]

    def make_stop(self):
        at = self.pick(lately=False)
        return ("stop", at), *self.known[at]

    # Reading it

    def parameters(self, dtype="float64"):
        """Return a collection and its parameters by name."""
        model, rng = ab.ParameterCollection(dtype=dtype), np.random.default_rng(self.n)
        made = {k: model.add_parameters(s, init=rng.uniform(-1, 1, s)) for k, s in self.sizes.items()}
        return model, made

    def body(self, parameters):
        """Return the function."""

        def function(*arguments):
            values = list(arguments)
            for instruction in self.instructions:
                values.append(self.value(instruction, values, parameters))
            made = [values[k] for k in self.outputs]
            return made[0] if len(made) == 1 and self.form else tuple(made) if self.form < 2 else made

        names = ", ".join(f"a{k}" for k in range(len(self.shapes)))
        return eval(f"lambda {names}: function({names})", {"function": function})

    def value(self, instruction, v, parameters):
        match instruction:
            case "parameter", name, update:
                return parameters[name].expr(update=bool(update))
            case ("tanh" | "logistic" | "square" | "silu" | "softmax") as name, k:
                return getattr(ab, name)(v[k])
            case "negate", k:
                return -v[k]
            case "exp", k:
                return ab.exp(ab.tanh(v[k]))
            case "flip", k:
                return ab.flip_gradient(v[k])
            case "+", k, m:
                return v[k] + v[m]
            case "-", k, m:
                return v[k] - v[m]
            case "cmult", k, m:
                return ab.cmult(v[k], v[m])
            case "huber", k, m:
                return ab.cdiv(v[k], ab.square(v[m]) + 1.5)
            case "times", k, number:
                return v[k] * number
            case "plus", k, number:
                return number + v[k]
            case "from", k, number:
                return number - v[k]
            case "esum", ks:
                return ab.esum([v[k] for k in ks])
            case "slice", k, begin, end:
                return v[k][begin:end]
            case "flat", k:
                return ab.reshape(v[k], (v[k].dim()[0][0] * v[k].dim()[0][1],), v[k].dim()[1])
            case "concatenate", ks:
                return ab.concatenate([v[k] for k in ks])
            case "product", w, x:
                return v[w] * v[x]
            case "affine", *ks:
                return ab.affine_transform([v[k] for k in ks])
            case "sum", k:
                return ab.sum_elems(v[k])
            case "norm", k:
                return ab.squared_norm(v[k]) * 0.5
            case "stop", k:
                return ab.nobackprop(v[k])
        raise AssertionError(instruction)


class Outcome:
    """Some calls of a function in one graph: their arguments, results, a loss over all of them, and gradients."""

    def __init__(self, function, cell, dtype="float64", policy="none", full=False, ask=False):
        self.model, self.parameters = function.parameters(dtype)
        body = function.body(self.parameters)
        body = ab.cell(body) if cell else body
        rng, self.leaves, self.results = np.random.default_rng(function.n + 1), {}, []
        sources = [self.model.add_parameters(9 * int(np.prod(s)) * b) for s, b in zip(function.shapes, function.batches, strict=True)]
        for p in sources:
            p.set_value(rng.uniform(-1, 1, p.shape()))
        with ab.Graph(dtype=dtype, policy=policy) as self.graph:
            for i in range(6):
                given = []
                for k, (shape, batch) in enumerate(zip(function.shapes, function.batches, strict=True)):
                    given.append(self.argument(rng, shape, batch, i, sources[k], f"argument {i} {k}"))
                made = body(*given)
                made = [made] if isinstance(made, ab.Expression) else list(made)
                self.results.append(made)
                if ask and rng.integers(2):
                    self.results[-1][0].value()
            losses, weights = [], np.random.default_rng(5)
            for made in self.results:
                for e in made:
                    w = weights.uniform(-1, 1, int(np.prod(e.dim()[0])) * e.dim()[1])
                    if weights.integers(4):  # some results nobody asks for
                        losses.append(laws.weighed(e, w))
            self.loss = ab.esum(losses) if losses else laws.weighed(self.results[0][0], [1.0] * laws.shape_of(self.results[0][0]).total)
            self.loss.backward(full=full)
        self.full = full

    def argument(self, rng, shape, batch, i, source, name):
        """Return an argument: what an earlier call returned, a parameter's part, an input, or a node."""
        total, how = int(np.prod(shape)) * batch, rng.integers(5)
        numbers = rng.uniform(-1, 1, total)
        earlier = [e for made in self.results for e in made if e.dim() == (shape, batch) and e.graph is not None]
        at = rng.integers(100)
        if how < 2 and earlier:
            return earlier[at % len(earlier)]
        if how == 2:
            e = ab.reshape(source[i * total : (i + 1) * total], shape, batch)
        else:
            e = ab.inputTensor(numbers.reshape((*shape, batch), order="F"), batched=True)
            e = ab.tanh(e) if how == 3 else e
        self.leaves[name] = e
        return e

    def numbers(self):
        """Return everything that another outcome must agree with, by name."""
        found = {f"result {i} {k}": e.npvalue() for i, made in enumerate(self.results) for k, e in enumerate(made)}
        found |= {f"gradient of {p.name()}": p.grad_as_array() for p in self.model.parameters_list()}
        found |= {f"gradient of {name}": e.gradient() for name, e in self.leaves.items()}
        return found | {"loss": self.loss.npvalue()}


def same(ours, expected, tolerance):
    """Check that two outcomes agree."""
    a, b = ours.numbers(), expected.numbers()
    assert a.keys() == b.keys()
    for name, numbers in b.items():
        close(a[name], numbers, tolerance, name)


@pytest.mark.parametrize("policy", POLICIES)
def test_random_functions(policy):
    @examples(15)
    @given(SEEDS, st.booleans(), st.booleans())
    def check(seed, full, ask):
        function = Function(seed)
        same(Outcome(function, True, "float64", policy, full, ask), Outcome(function, False, full=full), EXACT)

    check()


@examples(10)
@given(SEEDS)
def test_random_functions_in_float32(seed):
    function = Function(seed)
    same(Outcome(function, True, "float32", "ratio"), Outcome(function, False), FLOAT32_GRAPH)

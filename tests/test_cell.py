"""A cell gives what the plain function gives: every op, whole programs, all ways to call one; and says what it cannot do."""

import collections
import itertools
import os
import subprocess
import sys
import threading
from unittest import mock

import laws
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import EXACT, FLOAT32, FLOAT32_GRAPH, Call, Input, Recording, Ref, Row, Use, close, perform, run
from strategies import SEEDS, examples, graphs, plans

import autobatch as ab
from autobatch import execute
from autobatch.cell import cells
from autobatch.kernels import _fused
from autobatch.kernels._op import OPS
from autobatch.schedule import POLICIES

# Every op -------------------------------------------------------------------------------------------------------------


def in_a_cell(function, around):
    """Return a function whose results are those of a cell; with `around`, they stand between other results."""

    def body(*arguments, **attributes):
        made = laws.several(function(*arguments, **attributes))
        if not around:
            return made
        before, after = ab.sum_elems(made[-1]), ab.squared_norm(made[0])
        return before, *made, after

    cell = ab.cell(body)

    def call(*arguments, **attributes):
        made = cell(*arguments, **attributes)
        return made[1:-1] if around else made

    return call


ROWS = ("lookup_batch",)  # take rows of a table
MORE = "AUTOBATCH_EXAMPLES" in os.environ


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.name not in ROWS], ids=lambda op: op.name)
def test_every_op_in_a_cell(op):
    """Alone or between other results; batched against node by node; some of the cells in debug mode."""

    number = list(OPS).index(op.name)

    @examples(9)
    @given(plans(op, 4), st.booleans(), st.booleans())
    def check(plan, around, checked):
        dtype = "float32" if (plan.seed if MORE else number) % 4 == 0 else "float64"  # what is fused is compiled for each
        plain = run(plan, dtype, "none")
        cells = {}

        def public(name):
            if name not in cells:
                cells[name] = in_a_cell(laws_public(name), around)
            return cells[name]

        laws_public = laws.public
        with mock.patch.object(laws, "public", public), mock.patch.object(execute, "CHECKED", checked):
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
        shape, _ = self.known[at]
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
        asks = np.random.default_rng(2)
        sources = [
            self.model.add_parameters(9 * int(np.prod(s)) * b) for s, b in zip(function.shapes, function.batches, strict=True)
        ]
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
                if ask and asks.integers(2):
                    self.results[-1][0].value()
            losses, weights = [], np.random.default_rng(5)
            for made in self.results:
                for e in made:
                    w = weights.uniform(-1, 1, int(np.prod(e.dim()[0])) * e.dim()[1])
                    if weights.integers(4):  # some results nobody asks for
                        losses.append(laws.weighed(e, w))
            self.loss = (
                ab.esum(losses) if losses else laws.weighed(self.results[0][0], [1.0] * laws.shape_of(self.results[0][0]).total)
            )
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
def test_random_functions_in_debug_mode(seed):
    function = Function(seed)
    with mock.patch.object(execute, "CHECKED", True):
        ours = Outcome(function, True, "float64", "ratio")
    same(ours, Outcome(function, False), EXACT)


@examples(10)
@given(SEEDS)
def test_random_functions_in_float32(seed):
    function = Function(seed)
    same(Outcome(function, True, "float32", "ratio"), Outcome(function, False), FLOAT32_GRAPH)


class Together(Recording):
    """A case of which each instance is one cell, but for inputs, rows and half of the parameters, which are its arguments."""

    def __init__(self, case, seed, **more):
        super().__init__(case, **more)
        self.seed = seed

    def one(self, steps, cell):
        """Return the function of an instance, as a cell, and the numbers of the steps outside of it."""
        rng = np.random.default_rng(self.seed)
        starts = np.cumsum([0] + [2 if isinstance(s, Call) and s.op == "lstm_step" else 1 for s in steps])
        outer = (Input, Row)
        tables = {s.arguments[0].at for s in steps if isinstance(s, Call) and s.op in ROWS}
        outside = [
            k
            for k, s in enumerate(steps)
            if isinstance(s, outer)
            or (isinstance(s, Use) and (starts[k] in tables or rng.integers(2)))
            or (isinstance(s, Call) and s.op in ROWS)
        ]

        def function(given):
            values = dict(given)
            for k, step in enumerate(steps):
                if k not in outside:
                    for n, e in enumerate(perform(step, values, self.parameters)):
                        values[int(starts[k]) + n] = e
            return [values[k] for k in range(starts[-1])]

        return ab.cell(function) if cell else function, outside, starts

    def finish(self, cell=True):
        known = {}
        for i, steps in enumerate(self.case.instances):
            form = [(type(s), getattr(s, "op", None), references(getattr(s, "arguments", []))) for s in steps]
            alike = [k for k in known if form == known[k][0]]
            first = alike[0] if alike else i
            if not alike:
                known[i] = form, self.one(steps, cell)
            function, outside, starts = known[first][1]
            values = {}
            for k in outside:
                (e,) = perform(steps[k], values, self.parameters)
                values[int(starts[k])] = e
            self.values[i] = function(values)
        losses = [v[-1] for v in self.values]
        self.loss = ab.esum(losses)
        return self


def references(arguments):
    if isinstance(arguments, Ref):
        return [arguments.at]
    return [k for a in arguments for k in references(a)] if isinstance(arguments, (tuple, list)) else []


@examples(12)
@given(graphs(), SEEDS, st.booleans())
def test_whole_programs(case, seed, checked):
    """Any ops together; instances of one program are calls of one cell."""
    with ab.Graph(dtype="float64", policy="none"):
        plain = Together(case, seed).finish(cell=False)
        plain.loss.backward()
    with ab.Graph(dtype="float64"), mock.patch.object(execute, "CHECKED", checked):
        ours = Together(case, seed).finish()
        ours.loss.backward()
    for i, (a, b) in enumerate(zip(ours.computed(), plain.computed(), strict=True)):
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            close(x, y, EXACT, f"value {k} of instance {i}")
    for k, (x, y) in enumerate(zip(ours.gradients(), plain.gradients(), strict=True)):
        close(x, y, EXACT, f"gradient of parameter {k}")


def test_long_chains_are_cut():
    def f(x, y):
        for k in range(150):
            x = ab.cmult(x, y) + 0.1 if k % 3 else ab.tanh(x) - y
        return x

    found = []
    for function in (f, ab.cell(f)):
        with ab.Graph(dtype="float64"):
            x, y = (ab.inputVector(np.linspace(-0.9, b, 5)) for b in (0.5, 0.9))
            result = function(x, y)
            ab.sum_elems(result).backward(full=True)
            found.append([result.npvalue(), x.gradient(), y.gradient()])
    for a, b in zip(*found, strict=True):
        close(a, b, EXACT)


def test_sums_of_many():
    f = ab.cell(lambda xs: ab.esum(xs) + ab.esum(xs[:16]))
    with ab.Graph(dtype="float64"):
        xs = [ab.inputVector([1.0, k]) for k in range(300)]
        close(f(xs).npvalue(), [316.0, 300 * 299 / 2 + 120], EXACT)
        assert f(xs * 4).npvalue()[0] == 1216
        nodes = len(ab.current_graph())
        with pytest.raises(ab.TraceError, match="an operation of 2100 arguments inside of a cell"):
            ab.cell(lambda xs: ab.concatenate(xs))(xs * 7)
        assert len(ab.current_graph()) == nodes


def test_which_slopes_read_their_argument():
    found = {name: op.formulas(1).reads_argument() for name, op in OPS.items() if op.formulas and op.formulas(1)}
    assert not any(found[name] for name in ("tanh", "logistic", "exp", "sqrt", "negate"))
    assert all(found[name] for name in ("square", "log", "cube", "rectify", "erf"))

    def stored_before(dy, y, x):
        t = dy * 2
        return t * x if y > 0 else t

    assert _fused.Formulas(lambda x: x, (stored_before,), __file__).reads_argument()
    assert not _fused.Formulas(lambda x: x, (lambda dy, y, x: dy * y,), __file__).reads_argument()


# Ways to call one -----------------------------------------------------------------------------------------------------


class Model:
    """Parameters for the functions below."""

    def __init__(self, dtype="float64"):
        ab.reset_random_seed(3)
        rng = np.random.default_rng(3)
        self.collection = ab.ParameterCollection(dtype=dtype)
        self.W = self.collection.add_parameters((3, 3), init=rng.uniform(-1, 1, (3, 3)), name="W")
        self.b = self.collection.add_parameters((3,), init=rng.uniform(-1, 1, 3), name="b")
        self.table = self.collection.add_lookup_parameters((5, 3), init=rng.uniform(-1, 1, (5, 3)), name="table")
        self.lstm = ab.VanillaLSTMBuilder(1, 3, 3, self.collection)

    def gradients(self):
        return [p.grad_as_array() for p in [*self.collection.parameters_list(), *self.collection.lookup_parameters_list()]]


def expressions_in(result):
    if isinstance(result, ab.Expression):
        return [result]
    parts = result.values() if isinstance(result, dict) else result
    return [e for part in parts for e in expressions_in(part)]


def form(result):
    """The structure of a result: its types."""
    if isinstance(result, dict):
        return (type(result), *((k, form(v)) for k, v in result.items()))
    return (type(result), *map(form, result)) if isinstance(result, (tuple, list)) else "expression"


def outcome(program, wrap, dtype="float64", policy="none", calls=4, full=True):
    """Run ``program(model, wrap)(x, y)`` for some x and y: forms of the results, and all numbers."""
    model = Model(dtype)
    function = program(model, wrap)
    with ab.Graph(dtype=dtype, policy=policy) as graph:
        rng, losses, given, forms = np.random.default_rng(1), [], [], []
        values = []
        for _ in range(calls):
            x, y = (ab.inputVector(rng.uniform(-1, 1, 3)) for _ in range(2))
            made = function(x, y)
            forms.append(form(made))
            given += [x, y]
            values += expressions_in(made)
        losses = [
            ab.dot_product(ab.reshape(e, (e.dim()[0][0],)), ab.inputVector(np.linspace(1, 2, e.dim()[0][0]))) for e in values
        ]
        loss = ab.esum(losses)
        loss.backward(full=full)
    return forms, [loss.npvalue(), *(e.npvalue() for e in values), *(e.gradient() for e in given), *model.gradients()], graph


Pair = collections.namedtuple("Pair", "left right")


def of_lists(m, cell):
    f = cell(lambda parts, name: ab.esum([ab.tanh(part) for part in parts]) * name["by"])
    return lambda x, y: f([x, y, x], {"by": 2.0})


def of_tuples_and_dicts(m, cell):
    f = cell(lambda pair, rest: {"a": ab.cmult(pair[0], rest["z"][0]), "b": [pair[1] * 2.0, (rest["k"] * pair[0],)]})
    return lambda x, y: f((x, y), {"z": [y], "k": 3})


def of_named_tuples(m, cell):
    f = cell(lambda pair: Pair(ab.tanh(pair.left), pair.right + pair.left))
    return lambda x, y: f(Pair(x, y))


def with_defaults(m, cell):
    def f(x, y=None, *rest, scale=1.5, **more):
        return ab.tanh(x) * scale if y is None else ab.cmult(x, y) * scale + more.get("extra", 0.0)

    f = cell(f)
    return lambda x, y: [
        f(x),
        f(x, y),
        f(y=x, x=y),
        f(x, y, 7, scale=2.0),
        f(x, y, extra=0.25),
        f(x, scale=0.0),
        f(x, scale=-0.0),
    ]


def static_arguments(m, cell):
    f = cell(lambda x, how, depth: [x := getattr(ab, how)(x) for _ in range(depth)][-1])
    return lambda x, y: (f(x, "tanh", 2), f(y, "tanh", 1), f(x, "square", 1), f(x, "tanh", True))


class Layer:
    def __init__(self, m, cell):
        self.m = m
        type(self).step = cell(type(self).plain)

    def plain(self, x, y):
        return ab.tanh(self.m.W * x + self.m.b), ab.cmult(x, y)


def a_method(m, cell):
    return Layer(m, cell).step


def nested(m, cell):
    inner = cell(lambda x: (ab.tanh(m.W * x), x))
    outer = cell(lambda x, y: ab.cmult(inner(x)[0], inner(inner(y)[0])[1]))
    return outer


def cells_of_cells(m, cell):
    f = cell(lambda h, x: ab.tanh(m.W * h + x))
    return lambda x, y: f(f(f(x, y), x), f(y, y))


def recursion(m, cell):
    @cell
    def f(x, depth):
        return x if depth == 0 else ab.tanh(m.W * f(x, depth - 1))

    return lambda x, y: (f(x, 3), f(y, 1))


def parameters_passed(m, cell):
    f = cell(lambda W, x, b: ab.tanh(W * x) + b)
    return lambda x, y: (f(m.W, x, m.b), f(m.W, y, m.b.expr(update=False)), f(m.W.expr(update=False), x, y))


def a_step_of_a_builder(m, cell):
    def f(x, y):
        states = m.lstm.initial_state().add_inputs([x, y])
        return states[-1].s(), m.lstm.initial_state().transduce([y, x, x, y, x])

    return cell(f)


def returned_as_it_is(m, cell):
    return cell(lambda x, y: (x, m.b, ab.zeros(3), x, ab.nobackprop(y), y[1:3], m.b[0:2], m.W.expr(update=False) * x))


def only_arguments_returned(m, cell):
    return cell(lambda x, y: [y, m.b, x])


def returned_twice(m, cell):
    def f(x, y):
        t = ab.tanh(m.W * x)
        return t, t, t[0:2], ab.cmult(t, y), ab.nobackprop(t), t

    return cell(f)


def no_arguments(m, cell):
    f = cell(lambda: ab.tanh(m.W * m.b))
    return lambda x, y: (f(), x + f())


def unused(m, cell):
    f = cell(lambda x, y, z: (ab.tanh(x), ab.square(y), ab.exp(x) + 1.0))
    return lambda x, y: f(x, y, y)[0]


def stops(m, cell):
    return cell(lambda x, y: ab.cmult(ab.nobackprop(x), y) + ab.nobackprop(ab.tanh(m.W * y)) + ab.scale_gradient(x, 0.5))


def a_weight_used_in_all_ways(m, cell):
    return cell(
        lambda x, y: (m.W * x + ab.sum_elems(ab.tanh(m.W)), m.W * (m.W * y), ab.transpose(m.W) * x, m.W[0:2] * y, m.W * m.b)
    )


def one_vector_and_many(m, cell):
    """Attention: the same argument for all calls, and results that stand among others."""
    shared = []

    def f(keys, q):
        scores = ab.softmax(ab.transpose(keys) * q)
        return keys * scores, scores

    f = cell(f)

    def call(x, y):
        if not shared or shared[0].graph is not x.graph:
            shared[:] = [ab.concatenate_cols([x, y, m.b])]
        return f(shared[0], y)

    return call


def rows_outside(m, cell):
    f = cell(lambda e, x, y: ab.tanh(m.W * e) + ab.cmult(x, y))
    return lambda x, y: (f(m.table[2], x, y), f(m.table[4], y, x), f(m.table[2], y, y))


def sizes(m, cell):
    """Chains of several sizes in one cell."""

    def f(x, y):
        long = ab.tanh(ab.concatenate([x, y])) * 0.5
        part = ab.square(long[1:4]) + x
        number = ab.logistic(ab.sum_elems(part)) * 3.0
        return ab.cmult(part, ab.exp(ab.reshape(number, (1,)))), long, number

    return cell(f)


PROGRAMS = [
    *(of_lists, of_tuples_and_dicts, of_named_tuples, with_defaults, static_arguments, a_method, nested, cells_of_cells),
    *(recursion, parameters_passed, a_step_of_a_builder, returned_as_it_is, only_arguments_returned, returned_twice),
    *(no_arguments, unused, stops, a_weight_used_in_all_ways, one_vector_and_many, rows_outside, sizes),
]
programs = pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)


def plainly(function):
    return function


@programs
def test_calls_of_all_kinds(program):
    forms, numbers, _ = outcome(program, plainly)
    for policy in POLICIES:
        for _ in range(2):  # the short way, too
            ours, got, _ = outcome(program, ab.cell, policy=policy)
            assert ours == forms
            for a, b in zip(got, numbers, strict=True):
                close(a, b, EXACT)
    for a, b in zip(outcome(program, ab.cell, "float32", "ratio")[1], numbers, strict=True):
        close(a, b, FLOAT32_GRAPH)


@programs
def test_calls_of_all_kinds_in_debug_mode(program, monkeypatch):
    numbers = outcome(program, ab.cell, policy="ratio", full=False)[1]
    monkeypatch.setattr(execute, "CHECKED", True)
    for a, b in zip(outcome(program, ab.cell, policy="ratio", full=False)[1], numbers, strict=True):
        np.testing.assert_array_equal(a, b)


def layer_of(m, cell=ab.cell):
    return cell(lambda x, y: (ab.tanh(m.W * x + y), ab.cmult(x, y)))


def test_a_call_is_one_node_and_calls_are_one_batch():
    m = Model()
    f = layer_of(m)
    with ab.Graph(dtype="float64") as graph:
        xs = [ab.inputVector([1.0, 2.0, k]) for k in range(5)]
        made = [f(x, y) for x, y in itertools.pairwise(xs)]
        assert len(graph) == 5 + 3 * 4  # a node, and a view for each output
        ab.forward([e for pair in made for e in pair])
    assert graph.batches == graph.lower_bound == 1


def test_shapes_and_minibatches_are_signatures():
    m = Model()
    f = ab.cell(lambda x: ab.tanh(m.W * x))
    numbers = np.random.default_rng(0).uniform(-1, 1, (3, 4))
    with ab.Graph(dtype="float64"):
        alone = [f(ab.inputVector(numbers[:, k])) for k in range(4)]
        minibatch, matrix = f(ab.inputTensor(numbers, batched=True)), f(ab.inputTensor(numbers))
        assert minibatch.dim() == ((3,), 4) and matrix.dim() == ((3, 4), 1)
        expected = np.tanh(m.W.as_array() @ numbers)
        close(np.stack([e.npvalue() for e in alone], 1), expected, EXACT)
        close(minibatch.npvalue(), expected, EXACT)
        close(matrix.npvalue(), expected, EXACT)
    assert f.explain().startswith("cell <lambda>: 3 signatures")


def test_one_cell_in_graphs_of_both_dtypes():
    f = ab.cell(lambda x: ab.tanh(x * 0.3) + 0.1)
    for dtype, tolerance in (("float32", FLOAT32), ("float64", EXACT), ("float32", FLOAT32)):
        with ab.Graph(dtype=dtype):
            close(f(ab.inputVector([1.0, 2.0])).npvalue(), np.tanh(np.array([1.0, 2.0]) * 0.3) + 0.1, tolerance)
    m = Model("float64")
    g = layer_of(m)
    for _ in range(2):
        with ab.Graph(dtype="float64"):
            g(*[ab.inputVector([1.0, 2.0, 3.0])] * 2)
        with ab.Graph(dtype="float32"), pytest.raises(ab.ArgumentError, match="a parameter of dtype float64"):
            g(*[ab.inputVector([1.0, 2.0, 3.0])] * 2)


def test_two_graphs_at_once():
    m = Model()
    f = layer_of(m)
    graphs = [ab.Graph(dtype="float64", policy=p) for p in ("ratio", "none")]
    made = []
    for graph in graphs:
        with graph:
            x = ab.inputVector([1.0, -1.0, 0.5])
            made.append(f(*f(x, x)))
    for a, b in zip(*made, strict=True):
        np.testing.assert_array_equal(a.npvalue(), b.npvalue())
    with pytest.raises(ab.ArgumentError, match="cell <lambda>: the arguments belong to different graphs"):
        f(made[0][0], made[1][0])


def test_backward_several_times():
    m = Model()
    f = layer_of(m)
    with ab.Graph(dtype="float64"):
        x, y = ab.inputVector([1.0, 2.0, 3.0]), ab.inputVector([0.5, 0.25, -1.0])
        h, p = f(x, y)
        first = ab.sum_elems(h)
        first.backward(full=True)
        once, of_x = m.W.grad_as_array(), x.gradient()
        first.backward(full=True)
        close(m.W.grad_as_array(), 2 * once, EXACT)
        close(x.gradient(), of_x, EXACT)
        close(h.gradient(), np.ones(3), EXACT)
        close(p.gradient(), np.zeros(3), EXACT)
        second = ab.sum_elems(ab.cmult(h, p)) + first
        second.backward()
        of_h, plain = h.gradient(), Model()
        u, v = ab.inputVector([1.0, 2.0, 3.0]), ab.inputVector([0.5, 0.25, -1.0])
        k, q = layer_of(plain, plainly)(u, v)
        (ab.sum_elems(ab.cmult(k, q)) + ab.sum_elems(k)).backward()
        close(m.W.grad_as_array() - 2 * once, plain.W.grad_as_array(), EXACT)
        close(of_h, k.gradient(), EXACT)


def test_the_gradient_of_an_output_is_that_of_its_uses_outside():
    f = ab.cell(lambda x: (c := ab.square(x), ab.exp(c)))
    with ab.Graph(dtype="float64"):
        x = ab.inputVector([0.5, 1.0])
        c, h = f(x)
        (ab.sum_elems(c * 3.0) + ab.sum_elems(h)).backward(full=True)
        close(c.gradient(), [3.0, 3.0], EXACT)
        close(x.gradient(), (3 + np.exp(x.npvalue() ** 2)) * 2 * x.npvalue(), EXACT)


def test_values_in_between_checkpoints_and_reverts():
    m = Model()
    f = layer_of(m)
    ab.configure(dtype="float64")
    ab.renew_cg()
    x = ab.inputVector([1.0, 2.0, 3.0])
    h, _ = f(x, x)
    before = h.npvalue()
    for _ in range(3):
        ab.cg_checkpoint()
        k, p = f(h, x)
        k, p = f(k, p)
        ab.sum_elems(k + p).backward()
        ab.cg_revert()
        with pytest.raises(ab.StaleExpressionError):
            f(k, x)
    np.testing.assert_array_equal(h.npvalue(), before)
    k, p = f(h, x)
    plain = layer_of(m, plainly)
    expected, _ = plain(*plain(x, x)[:1], x)
    close(k.npvalue(), expected.npvalue(), EXACT)
    x.set([3.0, 2.0, 1.0])
    close(f(x, x)[0].npvalue(), plain(x, x)[0].npvalue(), EXACT)


@pytest.mark.parametrize("checked", [False, True])
def test_a_graph_for_inference(checked, monkeypatch):
    monkeypatch.setattr(execute, "CHECKED", checked)
    m = Model()
    f, found = layer_of(m), []
    for infer in (False, True):
        with ab.inference() if infer else ab.Graph(dtype="float64"), ab.Graph(dtype="float64"):
            x = ab.inputVector([1.0, 2.0, 3.0])
            h, p = f(x, x)
            for _ in range(5):
                h, p = f(h, x)[0], f(p, h)[1]
            found.append([h.npvalue(), p.npvalue(), ab.cmult(*f(h, p)).npvalue()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_places_for_gradients_only_are_no_nan():
    """Memory that forward does not write may hold anything, from other graphs."""
    m, w = Model("float32"), ab.ParameterCollection().add_parameters(4096, init=np.full(4096, np.nan))
    f = layer_of(m)
    for _ in range(3):
        ab.configure(check_nan=False)
        ab.renew_cg()
        (ab.sum_elems(ab.esum([w * k for k in range(20)]))).value()
        ab.configure(check_nan=True)
        ab.renew_cg()
        x = ab.inputVector([1.0, 2.0, 3.0])
        made = [f(x, x) for _ in range(50)]
        assert ab.sum_elems(ab.esum([p for _, p in made])).value() == 50 * 14
    root = ab.cell(lambda x: (ab.sqrt(x), ab.cmult(x, x)))
    with pytest.raises(ab.NumericalError, match=r"cell <lambda>: NaN in node \d+, in 1 of"):
        root(ab.inputVector([1.0, -1.0]))[0].value()


def test_a_graph_that_computes_at_once():
    m = Model("float32")
    f = layer_of(m)
    ab.renew_cg(immediate_compute=True, check_validity=True)
    x = ab.inputVector([1.0, 2.0, 3.0])
    h, p = f(x, x)
    assert ab.current_graph().batches == 1
    close(p.npvalue(), [1.0, 4.0, 9.0], FLOAT32)
    root = ab.cell(lambda x: ab.sqrt(x))
    with pytest.raises(ab.NumericalError, match=r"cell <lambda>: NaN or infinity in node \d+"):
        root(ab.log(h - h + 0.5))
    nodes = len(ab.current_graph())
    f(h, p)
    assert len(ab.current_graph()) == nodes + 3


def test_nothing_is_left_of_a_call_that_fails():
    m = Model()

    def grumpy(x, y):
        ab.tanh(m.W * x)
        raise KeyError("no")

    f = ab.cell(grumpy)
    with ab.Graph(dtype="float64") as graph:
        x = ab.inputVector([1.0, 2.0, 3.0])
        for _ in range(2):
            with pytest.raises(KeyError, match="no"):
                f(x, x)
            assert len(graph) == 1 and ab.current_graph() is graph and not graph.kept
        with pytest.raises(ab.ShapeError, match="matmul"):
            layer_of(m)(ab.inputVector([1.0, 2.0]), x)
        assert len(graph) == 2
        h, _ = layer_of(m)(x, x)
        assert h.npvalue().shape == (3,)
    assert f.explain() == "cell grumpy: no signatures yet, call it"


def test_threads_call_a_new_cell_at_the_same_moment():
    m = Model()
    f = layer_of(m)
    start, types = threading.Barrier(4), []

    def work():
        with ab.Graph(dtype="float64"):
            x = ab.inputVector([1.0, 2.0, 3.0])
            start.wait()
            h, p = f(x, x)
            h, p = f(h, p)
            types.append((h.type, tuple(h.npvalue()), tuple(p.npvalue())))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(types) == 4 and len(set(types)) == 1


def test_same_bits_twice():
    found = []
    for _ in range(2):
        function = Function(11)
        found.append(Outcome(function, True, "float32", "ratio").numbers())
    for name, numbers in found[0].items():
        assert numbers.tobytes() == found[1][name].tobytes(), name


def test_a_drawing_shows_the_cell(capsys):
    m = Model()
    with ab.Graph(dtype="float64"):
        x = ab.inputVector([1.0, 2.0, 3.0])
        layer_of(m)(x, x)[0].value()
        ab.print_text_graphviz()
    assert 'label="cell <lambda> ' in capsys.readouterr().err


PROGRAM = """
import sys
import numba.core.dispatcher as dispatcher
from numba.core import ccallback
import autobatch as ab

compiled = []
for cls, name in ((dispatcher._FunctionCompiler, "compile"), (ccallback.CFunc, "_compile_uncached")):
    def count(self, *args, inner=getattr(cls, name), **kwargs):
        compiled.append(str(self))
        return inner(self, *args, **kwargs)
    setattr(cls, name, count)

model = ab.ParameterCollection()
W = model.add_parameters((3, 3))

@ab.cell
def layer(x, y):
    return ab.tanh(W * x + y), ab.cmult(ab.logistic(x), y)

x = ab.inputVector([1.0, 2.0, 3.0])
h, p = layer(*layer(x, x))
ab.sum_elems(ab.cmult(h, p)).backward()
print(len(compiled))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    made = [subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout for _ in range(2)]
    assert int(made[0]) > 4 and int(made[1]) == 0


# What cannot be a cell ------------------------------------------------------------------------------------------------


def trouble(name, function, text, *arguments):
    return pytest.param(function, text, arguments, id=name)


OUTSIDE = []


def depth_without_end(x):
    return ab.cell(depth_without_end)(ab.tanh(x))


@pytest.mark.parametrize(
    ("function", "text", "arguments"),
    [
        trouble("value", lambda m, x: x.value(), "it asks for a value or a gradient while it is traced"),
        trouble("npvalue", lambda m, x: ab.tanh(x).npvalue(), "it asks for a value or a gradient while it is traced"),
        trouble("scalar", lambda m, x: ab.sum_elems(x).scalar_value(), "it asks for a value or a gradient"),
        trouble("values", lambda m, x: ab.values([x]), "it asks for a value or a gradient"),
        trouble("forward", lambda m, x: ab.forward([x]), "it asks for a value or a gradient"),
        trouble("backward", lambda m, x: ab.sum_elems(x).backward(), "it asks for a value or a gradient"),
        trouble("gradient", lambda m, x: x.gradient(), "it asks for a value or a gradient"),
        trouble("value of a parameter", lambda m, x: x * m.b.npvalue()[0], "it asks for the value of a parameter"),
        trouble("value outside", lambda m, x: x * OUTSIDE[0].value()[0], "it asks for a value from outside of the cell"),
        trouble("row", lambda m, x: m.table[1] + x, "it looks up a row, whose index would stay"),
        trouble("rows", lambda m, x: ab.lookup_batch(m.table, [1, 2]) + x, "it looks up a row, whose index would stay"),
        trouble("input", lambda m, x: x + ab.inputVector([1.0, 2.0, 3.0]), "it makes an input of its own"),
        trouble("one number", lambda m, x: x + ab.scalarInput(2.0), "it makes an input of its own"),
        trouble("dropout", lambda m, x: ab.dropout(x, 0.5), "it draws random numbers"),
        trouble("noise", lambda m, x: x + ab.random_normal((3,)), "it draws random numbers"),
        trouble("a closure", lambda m, x: x + OUTSIDE[0], "different graphs(.|\\n)*pass the expression as an argument"),
        trouble("a closure alone", lambda m, x: ab.tanh(OUTSIDE[0]), "it returns an expression from outside of the cell"),
        trouble("a node elsewhere", lambda m, x: (ab.tanh(OUTSIDE[0]), x)[1] * 2.0, "it records nodes outside of the cell"),
        trouble("returns None", lambda m, x: None, "it returns None"),
        trouble("returns a number", lambda m, x: (x, 2.0), r"it returns 2.0 \(float\)\n  expected  an expression"),
        trouble("returns an array", lambda m, x: np.ones(3), r"it returns a NumPy array of shape \(3,\)"),
        trouble("returns nothing", lambda m, x: [], "it returns no expression"),
        trouble("a set", lambda m, x, s: x, r"argument a1 is a set, which has no hash", {1}),
        trouble("an array", lambda m, x, a: x, r"argument a1 is a NumPy array of shape \(3,\)(.|\n)*inputTensor", np.ones(3)),
        trouble("an array in a list", lambda m, x, a: x, r"argument a1\[1\] is a NumPy array", [1, np.ones(3)]),
        trouble("no end", lambda m, x: depth_without_end(x), "it calls itself, and does not come to an end"),
        trouble("a new graph", lambda m, x: (ab.renew_cg(), x)[1], "it drops the graph"),
        trouble("a checkpoint", lambda m, x: (ab.cg_checkpoint(), x)[1], "it asks for a value"),
    ],
)
def test_what_cannot_be_traced(function, text, arguments):
    m = Model()
    names = ", ".join(f"a{k}" for k in range(1 + len(arguments)))
    f = ab.cell(eval(f"lambda {names}: function(m, {names})", {"function": function, "m": m}))
    with ab.Graph(dtype="float64") as graph:
        x = ab.inputVector([1.0, 2.0, 3.0])
        OUTSIDE[:] = [ab.inputVector([3.0, 2.0, 1.0])]
        for _ in range(2):
            with pytest.raises(ab.TraceError, match=text) as error:
                f(x, *arguments)
            assert "cell <lambda>" in str(error.value) or "different graphs" in str(error.value)
            assert "  try  " in str(error.value) or "  expected  " in str(error.value)
            assert len(graph) == 2 and ab.current_graph() is graph
        assert issubclass(ab.TraceError, ab.ArgumentError)
        # All is as before: random numbers, this graph, other cells.
        ab.dropout(ab.tanh(x), 0.5).value()
        ab.cell(lambda x: ab.tanh(x))(x).value()


def test_expressions_of_the_inside_do_not_get_out():
    kept = []

    @ab.cell
    def f(x):
        kept.append(ab.tanh(x))
        return kept[-1] + 1.0

    x = ab.inputVector([1.0])
    f(x)
    for use in (lambda: kept[0].value(), lambda: x + kept[0], lambda: kept[0].dim()):
        with pytest.raises(ab.StaleExpressionError, match=r"stood for a value inside of a cell(.|\n)*return it from the cell"):
            use()


def test_too_many_signatures(monkeypatch):
    monkeypatch.setattr(cells, "MOST_SIGNATURES", 3)
    f = ab.cell(lambda x, k: x * k)
    x = ab.inputVector([1.0, 2.0])
    for k in (1.0, 2.0, 3.0, 1.0, float("nan")):
        if k == k:
            f(x, k)
    text = r"cell <lambda>: it has 3 signatures already(.|\n)*an expression in place of the argument that differs"
    with pytest.raises(ab.TraceError, match=text):
        f(x, 4.0)
    f(x, 2.0)


def test_what_is_no_function():
    for thing in (3, None, "tanh"):
        with pytest.raises(TypeError, match=r"cell: .*\n  expected  a function"):
            ab.cell(thing)
    with pytest.raises(TypeError, match="argument: 'y'"):
        ab.cell(lambda x, y: x)(ab.inputVector([1.0]))


# explain --------------------------------------------------------------------------------------------------------------


def tree_node(H=4):
    m = ab.ParameterCollection()
    names = ["i", "o", "u"]
    b = [m.add_parameters((H,), name=f"b{n}") for n in [*names, "f"]]
    U = [m.add_parameters((H, 2 * H), name=f"U{n}") for n in [*names, "l", "r"]]

    @ab.cell
    def node(h1, c1, h2, c2):
        e = ab.concatenate([h1, h2])
        ab.square(e)  # nobody asks for it
        i, o = (ab.logistic(ab.affine_transform([b[k], U[k], e])) for k in range(2))
        u = ab.tanh(ab.affine_transform([b[2], U[2], e]))
        left, right = (ab.logistic(ab.affine_transform([b[3], U[k], e])) for k in (3, 4))
        c = ab.cmult(i, u) + ab.cmult(left, c1) + ab.cmult(right, c2)
        return ab.cmult(o, ab.tanh(c)), c

    return node


EXPLAINED = """
cell node: 1 signature

node(h1 (4,), c1 (4,), h2 (4,), c2 (4,)) -> v19 (4,), v17 (4,)
  parameters  /bi (4,), /Ui (4,8), /bo (4,), /Uo (4,8), /bu (4,), /Uu (4,8), /bf (4,), /Ul (4,8), /Ur (4,8)
  forward     7 steps, each over all calls of a batch
     1  v1 = concatenate(h1, h2)   (8,)
     2  v3 = affine_transform(/bi, /Ui, v1)   (4,)
     3  v5 = affine_transform(/bo, /Uo, v1)   (4,)
     4  v7 = affine_transform(/bu, /Uu, v1)   (4,)
     5  v9 = affine_transform(/bf, /Ul, v1)   (4,)
     6  v11 = affine_transform(/bf, /Ur, v1)   (4,)
     7  fused: 12 operations in one loop over 4 numbers
          v4 = logistic(v3)   in place of v3
          v6 = logistic(v5)   in place of v5
          v8 = tanh(v7)   in place of v7
          v10 = logistic(v9)   in place of v9
          v12 = logistic(v11)   in place of v11
          v13 = cmult(v4, v8)   not stored: computed again by backward
          v14 = cmult(v10, c1)   not stored: computed again by backward
          v15 = add(v13, v14)   not stored: computed again by backward
          v16 = cmult(v12, c2)   not stored: computed again by backward
          v17 = add(v15, v16)
          v18 = tanh(v17)
          v19 = cmult(v6, v18)
  backward    20 steps, 14 of them for gradients of arguments and parameters
  memory      44 numbers a call, 8 of them outputs
  left out, since no output needs it
          v2 = square(v1)
"""


def test_explain_tells_what_a_cell_became():
    node = tree_node()
    assert node.explain() == "cell node: no signatures yet, call it"
    node(*(ab.inputVector([1.0, 2.0, 3.0, 4.0]) for _ in range(4)))
    assert node.explain() == EXPLAINED.strip()


def test_explain_names_what_is_static_and_what_is_only_a_part():
    m = Model()
    f = ab.cell(lambda pair, k, s, W: ((ab.nobackprop(pair[0]) * k + m.b)[0:2], pair[0][0:2], W * pair[1]))
    with ab.Graph(dtype="float64"):
        x = ab.inputVector([1.0, 2.0, 3.0])
        f([x, x], 2.0, s="a", W=m.W.expr(update=False))
    text = f.explain()
    assert "<lambda>(pair[0] (3,), pair[1] (3,)) -> v2[0:2] (2,), pair[0][0:2] (2,), v3 (3,)" in text
    assert "static      k = 2.0 (float), s = 'a' (str), W = /W (constant)" in text
    assert "v1 = cmult(nobackprop(pair[0]), 2)   not stored" in text
    assert "copied: pair[0][0:2], an output" in text

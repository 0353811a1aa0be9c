"""Random calls of everything public, with arguments right, nearly right and absurd: an answer or a clear error, never more.

The calls are made in a process of their own, so that one that ends the process is seen, and named. An error is clear if it is
of a class of the project, or was raised by a `raise` of the package, or is Python's own about the form of the call. After
every few calls a known graph is computed, and from time to time every expression that is around. Files are written in a
folder of the process's own.

    python tests/test_fuzz.py SEED CALLS [FIRST]      prints the calls from FIRST on
"""

import contextlib
import inspect
import io
import linecache
import math
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import traceback
import warnings

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CALLS = 8_000
MEMORY = 6_000_000 << 10  # bytes of address space of the process
RESIDENT = 2 << 20  # kilobytes of it that are used at most


@pytest.mark.parametrize(("seed", "calls", "checked"), [(1, CALLS, False), (2, CALLS, False), (3, CALLS // 4, True)])
def test_random_calls(seed, calls, checked, tmp_path):
    log = tmp_path / "last"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "AUTOBATCH_CHECK": "1" if checked else "0", "FUZZ_LOG": str(log)}
    command = [sys.executable, "-X", "faulthandler", __file__, str(seed), str(calls)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    last = log.read_text(encoding="utf-8") if log.exists() else "none"
    assert done.returncode == 0, f"the last call was {last}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    answers, errors = map(int, done.stdout.split()[-2:])
    assert answers > calls / 10
    assert errors > calls / 10


# Arguments ------------------------------------------------------------------------------------------------------------

WORDS = [
    "",
    "a",
    "W",
    "a_b",
    "uniform",
    "normal",
    "glorot",
    "he",
    "identity",
    "saxe",
    "CPU",
    "GPU:0",
    "ratio",
    "float64",
    "\0",
    "é",
]
INTEGERS = [0, 1, 2, 3, 4, 5, 7, -1, -2, 17, 2**31 - 1, 2**31, 2**32, -(2**31) - 1, 2**63, 10**30]
FLOATS = [0.0, -0.0, 0.5, 1.0, 1.5, -1.0, 2.0, 1e-300, 1e30, 1e300, float("nan"), float("inf"), -float("inf")]


FILES = ["m", "n", "clusters", "paths", "wrong", "missing", "folder/m", "", "m.safetensors", "trainer", "pair"]
KEYS = ["", "/", "/m", "/vanilla-lstm-builder", "/W", "W", "/a b", "/m/"]
CHOICES = {
    "dtype": ["float32", "float64", None, "float16"],
    "policy": ["ratio", "none", "depth", "agenda", "x"],
    "device": ["", "CPU", "CPU", "GPU:0"],
    "gradient_mode": ["zero_gradient", "straight_through_gradient", "straight", ""],
    "init": [None, "normal", "uniform", "glorot", "he", "identity", "saxe", 0.5, "x"],
    "autobatching": [True, False, None, "ratio", "x"],
}
CHOICES["device_str"] = CHOICES["device"]
CHOICES["kind"] = ["lookup", "x"]

# Functions that are no ops: dims of arguments; None: a number.
GATES = ((3,), (2,), (8, 3), (8, 2), (8,))
COMPOSITES = {
    "vanilla_lstm_gates": (*GATES, None),
    "vanilla_lstm_gates_concat": (*GATES, None),
    "vanilla_lstm_gates_dropout": (*GATES, (3,), (2,), None),
    "vanilla_lstm_gates_dropout_concat": (*GATES, (3,), (2,), None),
    "contract3d_1d_bias": ((2, 3, 4), (4,), (2, 3)),
    "contract3d_1d_1d": ((2, 3, 4), (4,), (3,)),
    "contract3d_1d_1d_bias": ((2, 3, 4), (4,), (3,), (2,)),
}

# What a parameter is meant to be: by its annotation, else (Any, or none) by its name.
BY_ANNOTATION = {
    "expression": "Expression",
    "expressions": "Sequence[Expression];Iterable[Expression];tuple[Expression, ...]",
    "integer": "int",
    "integers": "Sequence[int]",
    "number": "float;np.number;Number",
    "flag": "bool",
    "dims": "tuple[int, ...]",
    "nested": "ArrayLike;NDArray[Any];NDArray[np.floating];np.ndarray;Sequence[Sequence[float]];Sequence[float]",
    "lists": "Sequence[Sequence[int]]",
    "collection": "ParameterCollection;Storage",
    "file": "Path;files.Path;bytes;os.PathLike[Any]",
    "words": "Mapping[str, int]",
    "names": "Mapping[Expression, str];Mapping[Any, Any]",
    "thing": "TreeLSTMBuilder;StackedRNNState;Sequence[RNNState];DynetParams;RNNBuilder",
    "objects": "Iterable[Any]",
    "initializer": "PyInitializer",
    "spec": "tuple[Any, ...]",
    "pairs": "Sequence[tuple[RNNBuilder, RNNBuilder]]",
}
BY_NAME = {
    "expression": "expression x y z e self other left right b g w h c f bias arguments",
    "expressions": "exprs vecs xs es parameters",
    "integer": "i v index k batch_size layers input_dim hidden_dim size seed n s num_layers id",
    "integers": "indices vs rows strides range_from range_to",
    "dims": "dim dims d",
    "nested": "arr array values row",
    "number": "p val value learning_rate scale mean std thr lam alpha beta_1 beta_2 eps forget_bias d_h gain var m",
    "factory": "rnn_builder_factory",
    "parameter": "parameter",
    "settings": "conf",
    "file": "fname filename basename",
    "key": "key",
    "word": "name",
    "thing": "state builder states",
}
ANNOTATED = {text: maker for maker, texts in BY_ANNOTATION.items() for text in texts.split(";")}
MAKERS = {name: maker for maker, names in BY_NAME.items() for name in names.split()}


def alternatives(annotation):
    """Return the parts of ``"A | B[C | D]"``: A and B[C | D]."""
    parts, depth = [""], 0
    for letter in annotation if isinstance(annotation, str) else "":
        depth += (letter == "[") - (letter == "]")
        if letter == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def makers_of(name, annotation):
    """Return the makers of values for a parameter."""
    found = [ANNOTATED[part] for part in alternatives(annotation) if part in ANNOTATED]
    return [MAKERS[name]] if name in MAKERS and (not found or name in ("fname", "filename", "key")) else found


class Arguments:
    """What calls are made with; `world` holds expressions, parameters and other things made so far."""

    def __init__(self, rng, world):
        self.rng, self.world = rng, world

    def pick(self, *makers):
        return self.rng.choice(makers)()

    def integer(self):
        return self.rng.choice(INTEGERS[:7]) if self.rng.random() < 0.8 else self.rng.choice(INTEGERS)

    def number(self):
        kinds = [float, np.float32, np.float64, int, bool, np.int64, np.bool_]
        with np.errstate(all="ignore"), contextlib.suppress(ValueError, OverflowError):
            return self.rng.choice(kinds)(self.rng.choice(FLOATS))
        return self.rng.choice(FLOATS)

    def dims(self):
        sizes = [self.rng.choice([1, 2, 3, 4]) for _ in range(self.rng.choice([1, 1, 2, 2, 3, 7]))]
        if self.rng.random() < 0.2:
            sizes[0] = self.integer()
        if self.rng.random() < 0.1:
            sizes = [1] * self.rng.choice([0, 8])
        return self.pick(lambda: tuple(sizes), lambda: tuple(sizes), lambda: sizes, lambda: sizes[0] if sizes else 1)

    def array(self):
        shape = tuple(
            self.rng.choice([1, 2, 3, 3, 0] if self.rng.random() < 0.2 else [1, 2, 3, 3]) for _ in range(self.rng.randrange(4))
        )
        values = np.array([self.rng.choice(FLOATS[:7]) for _ in range(int(np.prod(shape)))]).reshape(shape)
        with np.errstate(all="ignore"):
            values = values.astype(
                self.rng.choice([np.float32, np.float64, np.float64, np.int64, np.uint8, bool, complex, object, "U3"])
            )
        return self.pick(
            lambda: values,
            lambda: values,
            lambda: np.asfortranarray(values),
            lambda: values.T[..., ::-1] if values.ndim else values,
        )

    def nested(self):
        return self.pick(
            lambda: [self.number() for _ in range(self.rng.randrange(5))],
            lambda: [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]],
            lambda: [[1.0], [1.0, 2.0]],
            lambda: [self.array(), self.array()],
            lambda: [self.expression()],
            lambda: [None, 1.0],
            lambda: (1.0, 2.0, 3.0),
        )

    def expression(self):
        return self.rng.choice(self.world.expressions if self.rng.random() < 0.7 else self.world.base)

    def expressions(self):
        if self.rng.random() < 0.7:  # of one shape, so that the call makes sense
            first = self.rng.choice(self.world.fresh or self.world.expressions)
            return [e for e in self.rng.sample(self.world.fresh, min(len(self.world.fresh), 12)) if e.type == first.type] + [
                first
            ]
        return [
            self.pick(self.expression, self.expression, self.expression, self.anything)
            for _ in range(self.rng.choice([0, 1, 2, 3, 20]))
        ]

    def integers(self):
        return [self.integer() for _ in range(self.rng.randrange(4))]

    def slices(self):
        def part():
            return self.rng.choice([None, 0, 1, 2, 3, -1, self.integer()])

        one = lambda: slice(part(), part(), self.rng.choice([None, None, 1, 2, 0, -1]))  # noqa: E731
        return self.pick(one, one, lambda: tuple(one() for _ in range(self.rng.randrange(4))), lambda: (0, one()))

    def anything(self):
        return self.pick(
            *(lambda: None, lambda: self.rng.choice(WORDS), self.integer, self.number, self.dims, self.array, self.nested),
            *(self.expression, self.expressions, self.integers, self.slices, lambda: object(), lambda: {}, lambda: {1, 2}),
            *(lambda: b"bytes", lambda: 1j, lambda: lambda: 0, lambda: range(3), lambda: (x for x in [1]), lambda: Ellipsis),
            *(lambda: self.rng.choice(self.world.things), lambda: type, lambda: np.array(3.0)),
        )

    def flag(self):
        return self.rng.random() < 0.5

    def lists(self):
        return [self.integers() for _ in range(self.rng.randrange(4))]

    def collection(self):
        return self.rng.choice([self.world.model, self.world.model, self.world.model64, self.world.small])

    def file(self):
        name = self.rng.choice(FILES)
        return self.pick(lambda: name, lambda: name, lambda: name.encode(), lambda: pathlib.Path(name))

    def word(self):
        return self.rng.choice(WORDS)

    def key(self):
        return self.rng.choice(KEYS)

    def words(self):
        return {word: k for k, word in enumerate(["a", "b", "c", "d", "e"][: self.rng.choice([0, 3, 5, 5, 5])])}

    def names(self):
        return {self.expression(): self.rng.choice(WORDS)}

    def thing(self):
        ab, one = self.world.ab, lambda: self.rng.choice(self.world.things)
        kinds = ab.RNNState, ab.DynetParams, ab.TreeLSTMBuilder, ab.StackedRNNState
        return self.pick(one, lambda: [self.world.of(ab.RNNState) or one()], *(lambda k=k: self.world.of(k) for k in kinds))

    def objects(self):
        choices = [*self.world.parameters, *self.world.things]
        return [self.rng.choice(choices) for _ in range(self.rng.choice([0, 1, 1, 2, 3]))]

    def initializer(self):
        ab, name = self.world.ab, self.rng.choice([n for n in self.world.names if n.endswith("Initializer")])
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return getattr(ab, name)(*self.pick(lambda: (), lambda: (self.array(),), lambda: (0.5,)))
        return ab.ConstInitializer(0.5)

    def factory(self):
        ab = self.world.ab
        return self.rng.choice([ab.LSTMBuilder, ab.GRUBuilder, ab.SimpleRNNBuilder, ab.RNNBuilder, ab.BiRNNBuilder])

    def pairs(self):
        one = lambda: self.world.of(self.world.ab.RNNBuilder)  # noqa: E731
        return [(one(), one()) for _ in range(self.rng.randrange(3))]

    def parameter(self):
        return self.rng.choice(self.world.parameters)

    def settings(self):
        values = {"seed": self.integer(), "mem": "512", "weight_decay": self.number(), "autobatch": self.integer(), "x": 1}
        return {k: v for k, v in values.items() if k != "mem" and self.rng.random() < 0.5}

    def spec(self):
        few = lambda: self.rng.choice([1, 2, 3, 4])  # noqa: E731
        return self.pick(
            *(lambda: (few(), few(), 2 * few()), lambda: (few(), few(), few(), 2), lambda: (few(), few(), few(), True, 1.0)),
            *(lambda: (few(), 3, True), lambda: (3, [(0, 1), (2,)], True), lambda: (3, [[(0,), (2, 1)], (3, 4)], False)),
            *(lambda: (1, 3, 4, self.factory(), None), lambda: (1, 3, 4, self.factory(), self.pairs())),
            *(lambda: (3, self.nested(), True), lambda: tuple(self.anything() for _ in range(self.rng.randrange(6)))),
            *(lambda: (3, [[], (0, 0)], True), lambda: (1, 2, 3, self.anything(), self.anything())),
        )

    def sample(self):
        """A call of an op as its record draws one, mostly with one argument that is something else."""
        import laws
        import strategies

        if self.rng.random() < 0.1:
            name, dims = self.rng.choice(list(COMPOSITES.items()))
            values = np.random.default_rng(self.rng.randrange(1 << 30)).uniform(-1, 1, 200)
            made = [self.world.ab.inputTensor(values[: math.prod(d)].reshape(d)) if d else 0.1 for d in dims]
            positional = [made[:1], *made[1:]] if "concat" in name else made
            if self.rng.random() < 0.7:
                k = self.rng.randrange(len(positional))
                positional[k] = self.other(positional[k])
            return name, getattr(self.world.ab, name), positional, {}
        op = self.rng.choice([op for name, op in laws.OPS.items() if name != "lstm_step"])
        drawn, leaves = op.samples(strategies.Random(self.rng.randrange(1 << 30))), []
        for tensor in laws.tensors(drawn.arguments):
            array = strategies.numbers(np.random.default_rng(self.rng.randrange(1 << 30)), tensor)
            kind = self.rng.choice(["input", "parameter", "node"]) if op.name != "lookup_batch" else "table"
            leaves.append(laws.Leaf(kind, array, self.world.ab.ParameterCollection(), op).expression())
        positional, named = list(laws.filled(drawn.arguments, leaves)), dict(drawn.attributes)
        if self.rng.random() < 0.7 and positional:
            k = self.rng.randrange(len(positional))
            positional[k] = self.other(positional[k])
        elif self.rng.random() < 0.3 and named and "key" not in named:
            name = self.rng.choice(list(named))
            named[name] = self.other(named[name])
        return op.name, laws.public(op.name), positional, named

    def other(self, value):
        """Something that is nearly a value."""
        if isinstance(value, (list, tuple)) and value and self.rng.random() < 0.7:
            parts, k = list(value), self.rng.randrange(len(value))
            change = self.rng.choice(["longer", "shorter", "other", "other"])
            parts[k : k + 1] = {"longer": [parts[k]] * 2, "shorter": []}.get(change) or [self.other(parts[k])][
                : change == "other"
            ]
            return type(value)(parts)
        if isinstance(value, int) and self.rng.random() < 0.7:
            return self.pick(lambda: value + 1, lambda: value - 1, lambda: -value, self.integer)
        if isinstance(value, self.world.ab.Expression) and self.rng.random() < 0.7:
            return self.expression()
        return self.anything()

    def of(self, name, annotation="", where=""):
        """A value for a parameter of this name: mostly what it is meant to be."""
        if name in CHOICES and self.rng.random() < 0.8:
            return self.rng.choice(CHOICES[name])
        if name in ("m", "model") and "Trainer" in where and self.rng.random() < 0.8:
            return self.collection()
        if name in ("at",) and self.rng.random() < 0.8:
            return self.pick(self.integer, self.slices)
        makers = makers_of(name, annotation)
        if not makers or self.rng.random() < 0.25:
            return self.pick(self.anything, lambda: self.rng.choice([True, False, 0, 1, "", None]))
        maker = self.rng.choice(makers)
        if maker == "nested" and self.rng.random() < 0.5:
            maker = "array"
        return getattr(self, maker)()

    def for_call(self, function):
        """Positional and named arguments for a call, seldom of the wrong form."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        positional, named = [], {}
        where = getattr(function, "__qualname__", "")
        for p in parameters:
            if p.kind == p.VAR_POSITIONAL:
                positional += [self.of(p.name.rstrip("s"), where=where) for _ in range(self.rng.randrange(3))]
            elif p.kind == p.VAR_KEYWORD:
                continue
            elif p.default is not p.empty and self.rng.random() < 0.6:
                continue
            elif p.kind == p.KEYWORD_ONLY or named or (p.default is not p.empty and self.rng.random() < 0.3):
                named[p.name] = self.of(p.name, p.annotation, where)
            else:
                positional.append(self.of(p.name, p.annotation, where))
        if self.rng.random() < 0.03:
            positional = positional[:-1] if self.rng.random() < 0.5 else [*positional, self.anything()]
        return positional, named


# What is called -------------------------------------------------------------------------------------------------------

OPERATORS = "add radd sub rsub mul rmul truediv rtruediv matmul neg pos getitem len iter bool repr pow".split()


class World:
    """Everything that calls can get hold of."""

    def __init__(self, ab, rng):
        self.ab, self.rng = ab, rng
        self.names = [n for n in ab.__all__ if not (inspect.isclass(getattr(ab, n)) and issubclass(getattr(ab, n), Exception))]
        self.stale = []
        self.model = ab.ParameterCollection()
        self.model64 = ab.ParameterCollection(dtype="float64")
        self.known = ab.ParameterCollection()
        self.W = self.known.add_parameters((3, 3), init=np.arange(9.0).reshape(3, 3) / 10)
        self.small = ab.ParameterCollection()
        self.small.add_parameters((3, 3))
        self.small.add_lookup_parameters((3, 2))
        write_files(ab)
        self.start()
        self.begin()

    def start(self):
        """The things that stay: collections, trainers, builders of every kind."""
        ab, m = self.ab, self.small
        self.things = [self.model, self.model64, ab.SimpleSGDTrainer(self.model), ab.AdamTrainer(self.model), m]
        for name in self.names:
            kind = getattr(ab, name)
            if name.endswith("Trainer") and name != "Trainer":
                self.things.append(kind(m))
            elif inspect.isclass(kind) and issubclass(kind, ab.RNNBuilder) and kind is not ab.RNNBuilder:
                self.things += [kind(1, 3, 3, m), kind(2, 2, 3, m)]
        self.things += [ab.BiRNNBuilder(2, 3, 4, m, ab.LSTMBuilder), ab.NaryTreeLSTMBuilder(2, 1, 3, 4, m)]
        self.things += [ab.UnidirectionalTreeLSTMBuilder(1, 3, 3, m), ab.BidirectionalTreeLSTMBuilder(1, 3, 4, m)]
        words = {word: k for k, word in enumerate("abcde")}
        self.things += [ab.StandardSoftmaxBuilder(3, 4, m), ab.ClassFactoredSoftmaxBuilder(3, "clusters", words, m)]
        self.things += [ab.HierarchicalSoftmaxBuilder(3, "paths", words, m), ab.DynetParams()]
        self.things += [ab.RNNBuilder, ab.TreeLSTMBuilder, ab.SoftmaxBuilder]
        self.stay = len(self.things)

    def of(self, kind):
        """Return a thing of a class, or None."""
        found = [t for t in self.things if isinstance(t, kind)]
        return self.rng.choice(found) if found else None

    def begin(self):
        """A new current graph; expressions of the old one stay around as stale ones."""
        ab = self.ab
        ab.configure(policy="ratio", dtype="float32", check_nan=False, inference=False)
        self.stale = self.rng.sample(
            self.stale + getattr(self, "fresh", []), min(6, len(self.stale + getattr(self, "fresh", [])))
        )
        immediate = self.rng.random() < 0.15
        ab.renew_cg(immediate_compute=immediate, check_validity=immediate and self.rng.random() < 0.5)
        with ab.Graph() as self.other:
            self.foreign = [ab.inputVector([1.0, 2.0, 3.0]), ab.scalarInput(2.0)]
        matrix, batch = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 2, 2)
        self.fresh = [ab.inputVector([1.0, 2.0, 3.0]), ab.inputVector([0.5, -1.0, 0.0]), ab.scalarInput(0.5)]
        self.fresh += [ab.inputTensor(matrix), ab.inputTensor(matrix.T), ab.inputTensor(np.ones((3, 3)))]
        self.base = self.fresh[:2] * 3 + self.fresh  # what most builders take
        self.fresh += [ab.inputTensor(batch, batched=True), ab.inputTensor(np.ones((3, 2)), batched=True), ab.vecInput(3)]
        self.parameters = [self.model.add_parameters(d) for d in ((3,), (3, 3), (2, 3))] + [self.model64.add_parameters(3)]
        self.parameters += [self.model.add_lookup_parameters((4, 3)), self.model64.add_lookup_parameters((4, 3))]
        self.parameters += [self.parameters[0].expr(update=False)]
        if self.rng.random() < 0.05:
            write_files(ab)
            self.start()
        self.things = [*self.things[: self.stay], ab.current_graph(), self.fresh[6].tensor_value()]
        builders = [t for t in self.things if isinstance(t, (ab.RNNBuilder, ab.TreeLSTMBuilder))]
        for builder in self.rng.sample(builders, 5):
            with contextlib.suppress(RuntimeError):  # a forget bias of NaN in a graph that looks for it
                self.things.append(builder.initial_state())
        states = [t for t in self.things if isinstance(t, ab.RNNState)]
        if states:
            self.things.append(ab.StackedRNNState(states[:1]))
        self.gather()

    def gather(self):
        self.expressions = self.fresh * 3 + self.parameters + self.foreign + self.stale

    def keep(self, result):
        """Take the result of a call into the world, if it is of use and not too large."""
        ab = self.ab
        for r in result[:3] if isinstance(result, (list, tuple)) else [result]:
            if isinstance(r, (ab.Parameters, ab.LookupParameters)):
                self.parameters = [*self.parameters, r][-10:]
            elif isinstance(r, ab.Expression):
                if r.graph is not None and int(np.prod([*r.dim()[0], r.dim()[1]])) <= 2000:
                    self.fresh.append(r)
            elif getattr(ab, type(r).__name__, None) is type(r) and len(self.things) < self.stay + 16:
                self.things.append(r)
        self.gather()

    def functions(self):
        """(name, callable) of one public thing."""
        ab, rng = self.ab, self.rng
        where = rng.random()
        if where < 0.55:
            name = rng.choice(self.names)
            return name, getattr(ab, name)
        if where < 0.75:
            e, name = rng.choice(self.expressions), rng.choice(OPERATORS)
            return f"{describe(e)}.__{name}__", getattr(e, f"__{name}__", None)
        thing = rng.choice([*self.expressions, *self.parameters, *self.things, *self.things])
        own = isinstance(thing, ab.Graph)  # whose methods are called by the library alone
        inner = ["fill"]
        if own:
            inner = "drop seal unseal undo enter add_input add_given drop_inputs extend write cut_args set_args".split()
        names = [n for n in dir(type(thing)) if not n.startswith("_") and n not in inner]
        if isinstance(thing, type):
            names = ["from_spec", "__name__", "__call__"]
        name = rng.choice(names)
        return f"{describe(thing)}.{name}", getattr(thing, name)


def write_files(ab):
    """Files that calls can name, in the folder of the process."""
    os.makedirs("folder", exist_ok=True)
    texts = {"clusters": "A a\nA b\nB c\nC d 7\nC e\n", "paths": "A B\ta\nA B\tb\nA C\tc\nD\td\nD\te\n", "wrong": "a\n\tb\n"}
    for name, text in texts.items():
        pathlib.Path(name).write_text(text, encoding="utf-8")
    model = ab.ParameterCollection()
    objects = [model.add_parameters((3,)), model.add_lookup_parameters((4, 3)), ab.LSTMBuilder(1, 3, 3, model)]
    for name in ("m", "m.safetensors"):
        model.save(name)
    ab.save("pair", objects)


def describe(x):
    text = type(x).__name__ if callable(x) and not isinstance(x, type) else repr(x)
    if hasattr(x, "type") and hasattr(x, "graph"):
        from autobatch.graph import TYPES

        text = f"<{x!r} {TYPES.records[x.type].shape}>"
    return text if len(text) < 200 else text[:200] + "..."


# The process ----------------------------------------------------------------------------------------------------------


def is_clear(error, ours, package):
    """Whether an error says what is wrong: of a class of the project, raised on purpose, or Python's own about the call."""
    if isinstance(error, ours):
        return type(error).__name__ != "InternalError"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    here = frame.filename == __file__
    if not isinstance(
        error,
        (TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError, MemoryError, OSError, ImportError),
    ):
        return isinstance(error, (StopIteration, DeprecationWarning, NotImplementedError)) and here
    if isinstance(error, MemoryError):
        return str(error).startswith("Unable to allocate")
    if isinstance(error, (OSError, ImportError)):
        return True
    if str(error).startswith("The truth value of a"):
        return True  # NumPy's, of an array where True or False is asked for
    source = linecache.getline(frame.filename, frame.lineno).strip()
    inside = any(pathlib.Path(frame.filename).is_relative_to(p) for p in package)
    return (here and isinstance(error, (TypeError, AttributeError))) or (inside and source.startswith("raise"))


def check_known(ab, world):
    """A graph whose values and gradients are known is still computed as it should be."""
    W = world.W.as_array()
    world.known.reset_gradient()
    with ab.Graph("float32", "ratio"):
        x = ab.inputVector([1.0, 2.0, 3.0])
        loss = ab.sum_elems(ab.tanh(world.W * x) + ab.esum([x, x * 2.0]))
    expected = np.tanh(W @ [1.0, 2.0, 3.0]).sum() + 18.0
    assert abs(loss.value() - expected) < 1e-4, (loss.value(), expected)
    loss.backward()
    slope = np.outer(1 - np.tanh(W @ [1.0, 2.0, 3.0]) ** 2, [1.0, 2.0, 3.0])
    assert np.abs(world.W.grad_as_array() - slope).max() < 1e-4


def check_all(world):
    """Every expression around can be computed, and the gradient of every number too."""
    from autobatch.kernels._errors import NumericalError, StaleExpressionError

    for e in world.fresh:
        # Reverted, or dropped by a call of renew_cg; or in a graph with a node of 2³¹ numbers, which asks for all of it.
        with contextlib.suppress(StaleExpressionError, NumericalError, MemoryError):
            dims, batch = e.dim()
            value = e.npvalue()
            assert value.shape == (dims if batch == 1 else (*dims, batch))
            if value.size == 1:
                e.backward(full=world.rng.random() < 0.5)
                assert e.gradient().shape == value.shape


def main(seed, calls, first=1 << 60):
    import resource

    import autobatch as ab
    from autobatch.kernels import _errors

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("error")
    for text in (
        "overflow encountered",
        "invalid value encountered",
        "divide by zero",
        "underflow",
        "--dynet-",
        "a GPU was asked for",
    ):
        warnings.filterwarnings("ignore", text)
    ours = tuple(c for c in vars(_errors).values() if isinstance(c, type))
    package = [pathlib.Path(ab.__file__).parent, pathlib.Path(_errors.__file__).parent]
    package = [path.absolute() for path in package]
    before = os.getcwd()
    with (
        open(os.environ["FUZZ_LOG"], "w", encoding="utf-8") if "FUZZ_LOG" in os.environ else io.StringIO() as log,
        tempfile.TemporaryDirectory() as folder,
    ):
        os.chdir(folder)
        try:
            answers, errors = make_calls(ab, random.Random(seed), calls, first, log, ours, package)
        finally:
            os.chdir(before)
    used = most_used()
    assert used < RESIDENT, f"{used} kilobytes of memory were used"
    print(answers, errors)


def most_used():
    """Return the kilobytes of memory that this process used at most."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # on Linux the usage of a process begins at that of the one that started it
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def make_calls(ab, rng, calls, first, log, ours, package):
    """Make the calls; return how many ended in an answer and how many in an error."""
    world = World(ab, rng)
    arguments = Arguments(rng, world)
    answers = errors = 0
    for n in range(calls):
        if n % 60 == 59:
            check_all(world)
        if n % 60 == 59 or len(ab.current_graph()) > 3000:
            world.begin()
        if rng.random() < 0.3:
            name, function, positional, named = arguments.sample()
        else:
            name, function = world.functions()
            positional, named = arguments.for_call(function) if callable(function) else ([], {})
        if name == "configure":
            named.pop("threads", None)
        text = ", ".join([*map(describe, positional), *(f"{k}={describe(v)}" for k, v in named.items())])
        call = f"number {n}: {name}({text})"
        log.seek(0)
        log.truncate()
        log.write(call)
        log.flush()
        if n >= first:
            print(call, flush=True)
        before = ab.current_graph(), len(ab.current_graph())
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                result = function(*positional, **named) if callable(function) else function
            if inspect.isgenerator(result):
                result = [next(result, None)]
        except Exception as error:
            errors += 1
            if not is_clear(error, ours, package):
                print(f"{call} ended in {type(error).__name__}: {error}")
                raise
            lists = "set_dropout_masks transduce add_inputs initial_state initial_state_from_raw_vectors const_parameter"
            if name.split(".")[-1] not in lists.split() and ab.current_graph() is before[0]:
                assert len(ab.current_graph()) == before[1], f"{call} failed and left something behind: {error}"
        else:
            answers += 1
            with contextlib.suppress(*ours):
                world.keep(result)
        ab.configure(policy="ratio", dtype="float32", check_nan=False, inference=False)
        if n % 20 == 0:
            check_known(ab, world)
    check_all(world)
    check_known(ab, world)
    return answers, errors


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""Every operation: 1 000 nodes of one type run as one batch, against one by one, and against one NumPy call.

    python -m benchmarks.ops                          all ops, two minutes once the kernels are compiled
    python -m benchmarks.ops --ops tanh pow           some of them
    python -m benchmarks.ops --misses                 print only what misses a target (but for `none`)
    python -m benchmarks.ops --markdown ops.md --json ops.json

What is measured. The arguments of all nodes are rows of tables: they lie in memory, those of one position one after the other
(`--scattered`: in random order). The nodes are recorded, and taken over as arrays; that is the same for all, not timed. Then

    passes       the execution of the recorded nodes: scheduling, planning of memory, the kernels. One pass with policy "ratio",
                 which runs all of them as one batch, against a pass for each node, as where each value is asked for at once
                 (timed on the first 20 of them)
    none         the same against one pass with policy "none", which plans all nodes and then runs them one by one. That costs a
                 node some 40 ns beside its kernel, no more than scheduling it, so little is left to gain but larger products
    backward     as `none`, and with it the gradients of a loss with respect to all arguments: planning and kernels. The loss
                 (a sum of all numbers of all nodes) is run in batches in both cases, and its forward pass is not counted
    NumPy        the execution as one batch against the same function of NumPy or SciPy on one array of all the arguments,
                 float32, in the same order in memory, with the allocation of its result
    kernels      of that the kernels alone, without what NumPy need not do either: scheduling and planning (about 50 ns a node)

Ops with a weight take it as a parameter, as networks do; "computed" marks those that take another matrix in each node.

Rows come from the records (`OPS`): an op whose random samples can be drawn in a wanted size needs no entry here. What NumPy
computes is the record's `reference`, the truth of the tests, unless `RIVALS` knows a more direct call. Only elementwise ops and
reductions are compared with it.

All variants of a row run in turn, round after round, so that a slow moment of the machine meets all of them; shown are
medians of the ratios within a round.
"""

import argparse
import functools
import gc
import json
import math
import operator
import pathlib
import statistics
import time
import warnings
from typing import Any, NamedTuple

import numpy as np
import scipy.special

import autobatch as ab
from autobatch import execute
from autobatch.functions import arithmetic, elementwise, reductions
from autobatch.kernels._op import OPS, Shape, Tensor
from autobatch.kernels._vm import run

SIZE, STACKED_SIZE = 64, 256  # numbers of one node: one by one, and against NumPy
FASTER, SLOWER = 5.0, 2.0  # the targets: so many times faster than one by one, at most so many times the time of NumPy
SEED = 1


# Calls ----------------------------------------------------------------------------------------------------------------


class Weight(NamedTuple):
    """An argument that is a parameter, one for all nodes."""

    dims: tuple[int, ...]
    table: bool = False


class Example(NamedTuple):
    """A call of about a wanted size: `function` of `arguments`, which may hold `Tensor` and `Weight`, also in lists."""

    arguments: tuple[Any, ...]
    function: Any = None  # default: the public function of the op's name
    attributes: dict[str, Any] = {}  # noqa: RUF012
    label: str = ""


def T(*dims, low=-1.0, high=1.0, batch=1, fit=None):
    """An argument of these dims."""
    return Tensor(Shape(dims, batch), low, high, fit)


class Sized:
    """What `samples` choose from: elements of one wanted size, no minibatch, otherwise the largest or first of the choices."""

    def __init__(self, size):
        self.size = size

    def integer(self, low, high):
        return high

    def one_of(self, choices):
        return choices[0]

    def some(self, n):
        return list(range(min(n, 4)))

    def dims(self, low=1, high=4):
        return (self.size,) if low == 1 else (8, *[1] * (low - 2), self.size // 8)

    def batch(self):
        return 1


def tensors(arguments, kind=Tensor):
    """The tensors (or weights) among arguments, in order."""
    if isinstance(arguments, kind):
        return [arguments]
    if isinstance(arguments, (list, tuple)) and not isinstance(arguments, (Tensor, Weight)):
        return [t for a in arguments for t in tensors(a, kind)]
    return []


def filled(arguments, tensor, weight):
    """The arguments with what two functions make of the tensors and the weights."""
    if isinstance(arguments, Tensor):
        return tensor(arguments)
    if isinstance(arguments, Weight):
        return weight(arguments)
    return type(arguments)(filled(a, tensor, weight) for a in arguments) if isinstance(arguments, (list, tuple)) else arguments


def lstm_step(size):
    """A step of an LSTM of one layer; its h and c."""
    builder = ab.VanillaLSTMBuilder(1, size, size, ab.ParameterCollection())

    def step(x, c, h):
        return builder.initial_state([c, h]).add_input(x).output()

    return Example((T(size), T(size), T(size)), step)


def lstm_gates(size):
    """The gates of an LSTM step, by two nodes: a product and their activations."""
    H = size // 4
    weights = Weight((size, H)), Weight((size, H)), Weight((size,))
    return Example((T(H), T(H), *weights), lambda *arguments: ab.vanilla_lstm_gates(*arguments))


def well_conditioned(x):
    return x + len(x) * np.eye(len(x))[..., None]


# Functions of ops that have none of their own name.
FUNCTIONS = {"add": operator.add, "matmul": operator.mul, "negate": operator.neg, "subtract": operator.sub}

# Calls of a wanted size, where the samples of the record cannot be drawn in one: weights, indices, matrices, several variants.
# An entry whose op is not there is of no account.
EXAMPLES = {
    "affine_transform": lambda s: [
        Example(([Weight((s,)), Weight((s, s)), T(s)],)),
        Example(([T(s // 8), T(s // 8, 8), T(8)],), label="computed"),
    ],
    "block_dropout": lambda s: [Example((T(s), 0.5))],
    "circ_conv": lambda s: [Example((T(s), T(s)))],
    "circ_corr": lambda s: [Example((T(s), T(s)))],
    "colwise_add": lambda s: [Example((T(8, s // 8), T(8)))],
    "concatenate": lambda s: [Example(([T(s // 2), T(s // 2)],)), Example(([T(s // 8)] * 8, 1), label="8 columns")],
    "concatenate_to_batch": lambda s: [Example(([T(s // 2), T(s // 2)],))],
    "constrained_softmax": lambda s: [Example((T(s), T(s, low=2 / s, high=1.0)))],
    "contract3d_1d": lambda s: [
        Example((Weight((8, 8, s)), T(s))),
        Example((T(4, 4, s // 16), T(s // 16)), label="computed"),
    ],
    "conv2d": lambda s: [Example((T(4, s // 16, 4), Weight((3, 3, 4, 4)), [1, 1], False))],
    "conv2d_bias": lambda s: [Example((T(4, s // 16, 4), Weight((3, 3, 4, 4)), Weight((4,)), [1, 1], False))],
    "dropout": lambda s: [Example((T(s), 0.5))],
    "dropout_batch": lambda s: [Example((T(s // 4, batch=4), 0.5))],
    "dropout_dim": lambda s: [Example((T(8, s // 8), 0, 0.5))],
    "filter1d_narrow": lambda s: [Example((T(8, s // 8), T(8, 3))), Example((T(8, s // 8), Weight((8, 3, 4))), label="weight")],
    "fold_rows": lambda s: [Example((T(8, s // 8), 2))],
    "hinge": lambda s: [Example((T(s), 3))],
    "hinge_batch": lambda s: [Example((T(s // 4, batch=4), [0, 1, 2, 3]))],
    "hinge_dim": lambda s: [Example((T(8, s // 8), [1] * (s // 8)))],
    "inverse": lambda s: [Example((T(math.isqrt(s), math.isqrt(s), fit=well_conditioned),))],
    "kmax_pooling": lambda s: [Example((T(8, s // 8), 2, 1))],
    "kmh_ngram": lambda s: [Example((T(8, s // 8), 2))],
    "layer_norm": lambda s: [Example((T(s), Weight((s,)), Weight((s,))))],
    "logdet": lambda s: [Example((T(math.isqrt(s), math.isqrt(s), fit=well_conditioned),))],
    "logsumexp": lambda s: [Example(([T(s), T(s), T(s)],))],
    "lookup_batch": lambda s: [Example((Weight((s // 4, 50), table=True), [7, 1, 30, 2]))],
    "lstm_gates": lambda s: [lstm_gates(s)],
    "lstm_step": lambda s: [lstm_step(s)],
    "matmul": lambda s: [
        Example((Weight((s, s)), T(s))),
        Example((T(s // 4, 4), T(4)), label="computed"),
        Example((T(s // 8, 8), T(8, s // 8)), label="computed, of matrices"),
        Example((T(1, s), T(s)), label="computed, of vectors"),
    ],
    "maxpooling2d": lambda s: [Example((T(4, s // 16, 4), [2, 2], [2, 2]))],
    "mean_batches": lambda s: [Example((T(s // 4, batch=4),))],
    "mean_dim": lambda s: [Example((T(s), [0], False))],
    "moment_batches": lambda s: [Example((T(s // 4, batch=4), 2))],
    "moment_dim": lambda s: [Example((T(s), [0], 2, False))],
    "moment_elems": lambda s: [Example((T(s), 2))],
    "noise": lambda s: [Example((T(s), 0.1))],
    "pick": lambda s: [Example((T(8, s // 8), 3))],
    "pick_batch": lambda s: [Example((T(s // 4, batch=4), [0, 1, 2, 3]))],
    "pick_batch_elem": lambda s: [Example((T(s // 4, batch=4), 2))],
    "pick_batch_elems": lambda s: [Example((T(s // 4, batch=4), [0, 2, 3]))],
    "pick_range": lambda s: [Example((T(8, s // 8), 2, 6))],
    "pickneglogsoftmax": lambda s: [Example((T(s), 3))],
    "pickneglogsoftmax_batch": lambda s: [Example((T(s // 4, batch=4), [0, 1, 2, 3]))],
    "poisson_loss": lambda s: [Example((T(1), 3))],
    "pow": lambda s: [Example((T(s, low=0.1, high=2.0), 1.7))],
    "random_bernoulli": lambda s: [Example((s, 0.5))],
    "random_gumbel": lambda s: [Example((s,))],
    "random_normal": lambda s: [Example((s,))],
    "random_uniform": lambda s: [Example((s, -1.0, 1.0))],
    "restricted_log_softmax": lambda s: [Example((T(s), [0, 1, 2, 3]), lambda x, ids: ab.log_softmax(x, ids))],
    "rpow": lambda s: [Example((1.7, T(s)), operator.pow)],
    "select_cols": lambda s: [Example((T(8, s // 8), [0, s // 16]))],
    "select_rows": lambda s: [Example((T(8, s // 8), [0, 5, 2]))],
    "sparsemax_loss": lambda s: [Example((T(s), [0, 1, 2, 3]))],
    "std_batches": lambda s: [Example((T(s // 4, batch=4),))],
    "std_dim": lambda s: [Example((T(s), [0], False))],
    "strided_select": lambda s: [Example((T(8, s // 8), [2, 1], [0, 0], [8, s // 8]))],
    "sum_batches": lambda s: [Example((T(s // 4, batch=4),))],
    "sum_dim": lambda s: [Example((T(s), [0], False))],
    "transpose": lambda s: [Example((T(8, s // 8),))],
    "vanilla_lstm_c": lambda s: [Example((T(s // 4), T(s // 4 * 4, low=0.1, high=0.9)))],
    "vanilla_lstm_h": lambda s: [Example((T(s // 4), T(s // 4 * 4, low=0.1, high=0.9)))],
    "weight_norm": lambda s: [Example((T(s), T(1, low=0.5, high=2.0)))],
}

# Ops to compare with NumPy beside those of the families `elementwise`, `arithmetic` and `reductions`.
COMPARED = {"add", "subtract", "negate", "dot_product", "squared_distance", "l1_distance", "trace_of_product", "rpow"}

# The direct call, where `reference` is not one.
RIVALS: dict[str, Any] = {
    "add": np.add,
    "average": lambda xs: functools.reduce(np.add, xs) / len(xs),
    "cdiv": np.divide,
    "cmult": np.multiply,
    "cube": lambda x: x * x * x,  # x**3 is 100 times slower
    "emax": lambda xs: functools.reduce(np.maximum, xs),
    "erf": scipy.special.erf,
    "esum": lambda xs: functools.reduce(np.add, xs),
    "lgamma": scipy.special.gammaln,
    "pow": np.power,
    "subtract": np.subtract,
}


def family(name):
    """Whether an op is compared with NumPy: elementwise ops and reductions are."""
    return name in COMPARED or any(hasattr(module, name) for module in (arithmetic, elementwise, reductions))


def examples(op, size):
    """The calls of an op with about `size` numbers; raises for an op that neither its samples nor EXAMPLES give one of."""
    if op.name in EXAMPLES:
        return EXAMPLES[op.name](size)
    try:
        sample = op.samples(Sized(size))
        if max((t.shape.total for t in tensors(sample.arguments)), default=0) == size:
            return [Example(sample.arguments, attributes=sample.attributes)]
        problem = "its samples give none"
    except Exception as error:
        problem = f"its samples raise {error!r}"
    raise LookupError(f"benchmarks.ops: no call of {op.name} of size {size}, as {problem}\n  try       an entry in EXAMPLES")


# Programs -------------------------------------------------------------------------------------------------------------


def drawn(rng, tensor, count):
    """Numbers for a tensor of `count` nodes: dims, batch, nodes; in the order in which the library keeps them."""
    shape, low, high, fit = tensor
    array = rng.uniform(low, high, (*shape.dims, shape.batch, count))
    if fit is not None:
        array = np.stack([fit(array[..., i]) for i in range(count)], axis=-1)
    return np.asfortranarray(array, np.float32)


class Program:
    """A graph with `count` nodes of one type, ready to be run again and again."""

    def __init__(self, op, example, count, policy, scattered=False, gradients=True):
        rng = np.random.default_rng(SEED)
        function = example.function or FUNCTIONS.get(op.name) or getattr(ab, op.name)
        wanted = tensors(example.arguments)
        self.arrays = [drawn(rng, t, count) for t in wanted]
        model = ab.ParameterCollection(dtype="float32")
        weights = [
            model.add_lookup_parameters((w.dims[-1], *w.dims[:-1])) if w.table else model.add_parameters(w.dims)
            for w in tensors(example.arguments, Weight)
        ]
        self.policy = policy
        with ab.Graph(dtype="float32", policy="ratio") as self.graph:
            operands = []
            for tensor, array in zip(wanted, self.arrays, strict=True):
                (dims, batch), n = tensor.shape, tensor.shape.total
                table = model.add_lookup_parameters((count, n), init=array.reshape((n, count), order="F").T)
                order = rng.permutation(count) if scattered else range(count)
                rows = [table[int(i)] for i in order]
                operands.append(rows if (dims, batch) == ((n,), 1) else [ab.reshape(x, dims, batch) for x in rows])
            ab.scalarInput(0.0).forward()
            self.execution = self.graph.execution
            results = []
            self.begin = len(self.graph.recorded_types), len(self.graph.recorded_args)
            for i in range(count):
                of_node, of_weights = (row[i] for row in operands), iter(weights)
                take = functools.partial(lambda source, _: next(source), of_node)
                weigh = functools.partial(lambda source, _: next(source), of_weights)
                results.append(function(*filled(example.arguments, take, weigh), **example.attributes))
            self.ends = [e.index for e in results]
            self.forward()
            self.loss = None
            if gradients:
                scalars = results if results[0].dim() == ((1,), 1) else [ab.sum_elems(e) for e in results]
                self.loss = ab.esum(scalars if results[0].dim()[1] == 1 else [ab.sum_batches(e) for e in scalars])

    def forward(self):
        """Run the nodes; return the seconds it took."""
        self.execution.cut(*self.begin)
        self.execution._flush(self.graph)  # what turns recorded lists into arrays is part of recording
        self.graph.policy = self.policy
        start = time.perf_counter()
        self.execution.forward(self.graph, self.ends[-1])
        return time.perf_counter() - start

    def passes(self):
        """Run nodes one after the other, each in a forward pass of its own; return the seconds all of them would take.

        Only the first of them are run, up to 20.
        """
        self.execution.cut(*self.begin)
        self.execution._flush(self.graph)
        nodes = self.ends[:20]
        start = time.perf_counter()
        for node in nodes:
            self.execution.forward(self.graph, node)
        return (time.perf_counter() - start) / len(nodes) * len(self.ends)

    def kernels(self):
        """Run the kernels of the nodes again, and nothing else; return the seconds it took."""
        segment, scratch = self.execution.segments[-1], execute._Scratch.addresses["float32"]
        start = time.perf_counter()
        run(segment.table_at, segment.words, scratch)
        return time.perf_counter() - start

    def both(self):
        """Run the nodes, then the gradients of the loss; return the seconds it took."""
        seconds = self.forward()
        self.graph.policy = "ratio"
        self.loss.forward()
        start = time.perf_counter()
        self.execution.run_backward(self.graph, self.loss.index, False)
        ab.wait()
        return seconds + time.perf_counter() - start


class Stacked:
    """The same numbers through one call of NumPy."""

    def __init__(self, op, example, program):
        arrays = iter(program.arrays)

        def stacked(tensor):
            array = next(arrays)  # dims, batch, nodes
            # The nodes are to NumPy what a minibatch is to a reference, its last axis; or, beside one, one more dim.
            return array[..., 0, :] if tensor.shape.batch == 1 else np.moveaxis(array, -1, -2)

        self.arguments = filled(example.arguments, stacked, None)
        self.function = RIVALS.get(op.name, op.reference)
        self.attributes = {} if op.name in RIVALS else example.attributes
        self()

    def __call__(self):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            self.function(*self.arguments, **self.attributes)
            return time.perf_counter() - start


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(op, example, stacked_example, args):
    """The figures of one row: medians of ratios, and of times in µs."""
    batched = Program(op, example, args.nodes, "ratio", args.scattered)
    alone = Program(op, example, args.nodes, "none", args.scattered)
    single = Program(op, example, args.nodes, "none", args.scattered, gradients=False)
    variants = {
        "batched": batched.forward,
        "alone": alone.forward,
        "batched, both": batched.both,
        "alone, both": alone.both,
        "passes": single.passes,
    }
    if stacked_example is not None:
        wide = Program(op, stacked_example, args.nodes, "ratio", args.scattered, gradients=False)
        variants |= {"wide": wide.forward, "wide, kernels": wide.kernels, "NumPy": Stacked(op, stacked_example, wide)}
    rounds = []
    for function in variants.values():
        function()
    gc.collect()
    gc.disable()
    end = time.perf_counter() + args.seconds
    while len(rounds) < args.rounds or time.perf_counter() < end:
        rounds.append({name: min(function() for _ in range(3)) for name, function in variants.items()})
    gc.enable()

    def ratio(a, b):
        return statistics.median(r[a] / r[b] for r in rounds)

    figures = {
        "passes": ratio("passes", "batched"),
        "forward": ratio("alone", "batched"),
        "both": ratio("alone, both", "batched, both"),
        "rounds": len(rounds),
        "microseconds": {name: statistics.median(r[name] for r in rounds) * 1e6 for name in variants},
    }
    if stacked_example is not None:
        figures |= {"numpy": ratio("wide", "NumPy"), "numpy_kernels": ratio("wide, kernels", "NumPy")}
    figures["misses"] = [
        *(key for key in ("passes", "forward") if figures[key] < FASTER),
        *(key for key in ("numpy", "numpy_kernels") if figures.get(key, 0) > SLOWER),
    ]
    return figures


def rows(args):
    """One row after the other: (name, figures)."""
    names = args.ops or list(OPS)
    for name in names:
        if name not in OPS:
            raise SystemExit(f"benchmarks.ops: no op is called {name!r}\n  expected  some of {', '.join(OPS)}")
    calls = {name: examples(OPS[name], args.size) for name in names}  # all of them first: one without a call ends it here
    for name in names:
        wide = examples(OPS[name], args.stacked_size) if family(name) else [None] * len(calls[name])
        for example, stacked in zip(calls[name], wide, strict=True):
            gc.collect()
            yield name + (f" ({example.label})" if example.label else ""), measure(OPS[name], example, stacked, args)


COLUMNS = {
    "passes": ("passes", "one pass a node / batched"),
    "forward": ("none", 'policy "none" / batched'),
    "both": ("backward", 'the same with gradients, policy "none" / batched'),
    "numpy": ("NumPy", "batched / stacked NumPy call"),
    "numpy_kernels": ("kernels", "kernels / stacked NumPy call"),
}


def cells(figures):
    """The figures of a row as text, those that miss their target marked."""
    shown = []
    for key in COLUMNS:
        figure = figures.get(key)
        text = "" if figure is None else f"{figure:.0f}" if figure >= 100 else f"{figure:.2f}"
        shown.append(text + ("!" if key in figures["misses"] else " " if text else ""))
    return shown


def summary(results, args):
    """The last line: how many rows meet the targets."""
    met = {key: sum(key in f and key not in f["misses"] for f in results.values()) for key in COLUMNS}
    compared = sum("numpy" in f for f in results.values())
    return (
        f"of {len(results)} rows at size {args.size} {met['passes']} are at least {FASTER:g} times faster than in passes of "
        f'their own, {met["forward"]} than with policy "none"; of {compared} rows at size {args.stacked_size} {met["numpy"]} '
        f"take at most {SLOWER:g} times as long as the stacked NumPy call, {met['numpy_kernels']} by their kernels alone"
    )


def markdown(results, args):
    """The results as a table in Markdown."""
    lines = ["| op | " + " | ".join(explained for _, explained in COLUMNS.values()) + " |", "|---|" + "---:|" * len(COLUMNS)]
    lines += [f"| `{name}` | " + " | ".join(c.strip() for c in cells(figures)) + " |" for name, figures in results.items()]
    how = f"{args.nodes} nodes of a type, float32, NumPy {np.__version__}, medians of ratios"
    return "\n".join([*lines, "", f"{how}; {summary(results, args)}; ! misses its target.", ""])


def main(argv=None):
    """Print the table; return {name: figures}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", metavar="OP", help="only these")
    parser.add_argument("--size", type=int, default=SIZE, help=f"numbers of a node, one by one ({SIZE}); a multiple of 16")
    parser.add_argument("--stacked-size", type=int, default=STACKED_SIZE, help=f"the same, against NumPy ({STACKED_SIZE})")
    parser.add_argument("--nodes", type=int, default=1000, help="nodes of one type (1000)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds at least (9)")
    parser.add_argument("--seconds", type=float, default=0.2, help="time to measure a row at least (0.2)")
    parser.add_argument("--scattered", action="store_true", help="arguments in random order of memory")
    parser.add_argument("--misses", action="store_true", help="print only rows that miss a target other than that of `none`")
    parser.add_argument("--json", metavar="FILE", help="also write all figures to a file")
    parser.add_argument("--markdown", metavar="FILE", help="also write the table to a file, as Markdown")
    args = parser.parse_args(argv)
    width = max(map(len, args.ops or OPS)) + 24
    print(f"{'':{width}}" + "".join(f"{a:>12} " for a, _ in COLUMNS.values()))
    results = {}
    for name, figures in rows(args):
        results[name] = figures
        if set(figures["misses"]) - {"forward"} or not args.misses:
            print(f"{name:{width}}" + "".join(f"{c:>13}" for c in cells(figures)), flush=True)
    print(f"{args.nodes} nodes of a type; {summary(results, args)}; ! misses its target")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1), encoding="utf-8")
    if args.markdown:
        pathlib.Path(args.markdown).write_text(markdown(results, args), encoding="utf-8")
    return results


if __name__ == "__main__":
    main()

"""The laws that every op and every graph must keep, as functions.

What they are told of: a `Plan`, some calls of one op in one graph (from `strategies.plans`), and a `Case`, a whole program for
several instances (from `strategies.graphs`). Both can be read in two ways: by NumPy, one instance after the other through the
`reference` of each op, and by the library. The first is the truth; derivatives of it come from finite differences.
"""

import collections
import dataclasses
import functools
import itertools
import operator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from hypothesis import assume

import autobatch as ab
from autobatch import seeds
from autobatch.functions.lstm import _activated
from autobatch.graph import IMMEDIATES, OP, TYPES
from autobatch.kernels._op import OPS, Op, Sample, Shape, Tensor

# Ops and their public functions ---------------------------------------------------------------------------------------


# Ops that draw random numbers.
RANDOM = (
    *("dropout", "dropout_dim", "dropout_batch", "block_dropout", "noise"),
    *("random_normal", "random_uniform", "random_bernoulli", "random_gumbel"),
)


def _keyed(name):
    """Return the function that draws with a given key, which is otherwise drawn itself."""

    def call(*arguments, key):
        with mock.patch.object(seeds, "draw", lambda: key):
            return getattr(ab, name)(*arguments)

    return call


def _lstm_step(x, h, c, wx, wh, b, forget_bias):
    """A step of a builder that has these parameters."""
    builder = ab.VanillaLSTMBuilder(1, wx.dims[1], wh.dims[1], ab.ParameterCollection(dtype=wx.dtype), forget_bias=forget_bias)
    builder._parameters = [[wx, wh, b]]
    c, h = builder.initial_state([c, h]).add_input(x).s()
    return h, c


# An op has a public function of its own name, or it stands here.
PUBLIC = {
    **{name: _keyed(name) for name in RANDOM},
    "add": operator.add,
    "lstm_gates": _activated,
    "lstm_step": _lstm_step,
    "matmul": operator.mul,
    "negate": operator.neg,
    "restricted_log_softmax": ab.log_softmax,
    "rpow": operator.pow,
    "subtract": operator.sub,
}

# Arguments that can only be parameters, or tables, by position.
FORCED = {"lookup_batch": {0: "table"}, "lstm_step": {3: "parameter", 4: "parameter", 5: "parameter"}}


def _other_range(arguments, integer):
    x, begin, end, d = arguments
    moved = integer(0, x.shape.dims[d] - (end - begin))
    return x, moved, moved + end - begin, d


def _other_ranges(arguments, integer):
    x, steps, begins, ends = arguments
    moved = [integer(0, n - (e - b)) for n, b, e in zip((*x.shape.dims, x.shape.batch), begins, ends, strict=False)]
    return x, steps, moved, [m + e - b for m, b, e in zip(moved, begins, ends, strict=True)]


def _others(indices, size, integer):
    """Return as many other indices below a size, in the same (nested) lists."""
    return [_others(i, size, integer) for i in indices] if isinstance(indices, list) else integer(0, size - 1)


def _other_sets(indices, size, integer):
    """Return as many other indices below a size, none twice in a list."""
    if isinstance(indices[0], list):
        return [_other_sets(i, size, integer) for i in indices]
    rest, moved = list(range(size)), []
    for _ in indices:
        moved.append(rest.pop(integer(0, len(rest) - 1)))
    return moved


def _other_indices(axis):
    def other(arguments, integer):
        x, indices = arguments
        return x, [integer(0, (*x.shape.dims, x.shape.batch)[axis] - 1) for _ in indices]

    return other


# Ops with immediates: the same call with others, from which nodes of the same type come.
OTHER_IMMEDIATES = {
    **{name: lambda a, integer: a for name in RANDOM},  # keys: see `strategies.varied`
    "hinge": lambda a, integer: (a[0], integer(0, a[0].shape.dims[0] - 1), a[2]),
    "hinge_batch": lambda a, integer: (a[0], _others(a[1], a[0].shape.dims[0], integer), a[2]),
    "hinge_dim": lambda a, integer: (a[0], _others(a[1], a[0].shape.dims[a[2]], integer), *a[2:]),
    "lookup_batch": lambda a, integer: (a[0], [integer(0, a[0].shape.dims[-1] - 1) for _ in a[1]]),
    "pick": lambda a, integer: (a[0], integer(0, a[0].shape.dims[a[2]] - 1), a[2]),
    "pick_batch": lambda a, integer: (a[0], [integer(0, a[0].shape.dims[a[2]] - 1) for _ in a[1]], a[2]),
    "pick_batch_elems": _other_indices(-1),
    "pick_range": _other_range,
    "pickneglogsoftmax": lambda a, integer: (a[0], integer(0, a[0].shape.dims[0] - 1)),
    "pickneglogsoftmax_batch": lambda a, integer: (a[0], [integer(0, a[0].shape.dims[0] - 1) for _ in a[1]]),
    "poisson_loss": lambda a, integer: (a[0], _others(a[1], 10, integer)),
    "restricted_log_softmax": lambda a, integer: (a[0], _other_sets(a[1], a[0].shape.dims[0], integer)),
    "sparsemax_loss": lambda a, integer: (a[0], _other_sets(a[1], a[0].shape.dims[0], integer)),
    "select_cols": _other_indices(1),
    "select_rows": _other_indices(0),
    "strided_select": _other_ranges,
    "transpose": lambda a, integer: a,
}


def public(name):
    """Return the function by which users call an op."""
    function = PUBLIC.get(name) or getattr(ab, name, None)
    if function is None:
        raise AssertionError(f"the op {name} has no function autobatch.{name}, and none in laws.PUBLIC")
    return function


def several(results):
    """Return the results of a call as a tuple: most have one."""
    return results if isinstance(results, tuple) else (results,)


def tensors(arguments):
    """Return the tensors among the arguments of a sample, in order."""
    if isinstance(arguments, Tensor):
        return [arguments]
    return [t for a in arguments for t in tensors(a)] if isinstance(arguments, (tuple, list)) else []


def filled(arguments, values):
    """Return the arguments of a sample with `values` in place of the tensors."""
    values = iter(values)

    def fill(a):
        if isinstance(a, Tensor):
            return next(values)
        return type(a)(map(fill, a)) if isinstance(a, (tuple, list)) else a

    return fill(arguments)


# Closeness ------------------------------------------------------------------------------------------------------------

EXACT = 1e-12  # relative to the largest number, in float64
DIFFERENCES = 1e-8  # for what was formed by finite differences of float64 numbers
FLOAT32 = 4e-6  # one op
FLOAT32_GRAPH = 2e-4  # a small graph of them


def close(got, expected, tolerance, what=""):
    """Check that two arrays are equal, relative to the largest expected number (or 1)."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(1.0, finite.max()) if finite.size else 1.0
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def whole(value, shape):
    """Return a value, or a gradient, as an array of dims and then the batch, also if that is 1."""
    return np.asarray(value).reshape(*shape.dims, shape.batch)


def shape_of(e):
    """Return the Shape of an expression."""
    return Shape(*e.dim())


def flat(array):
    """Return the numbers of an array as the library keeps them."""
    return np.asarray(array).ravel(order="F")


def slope(f, x, v):
    """Return the derivative of f at x along v, by central differences of fourth order."""
    h = 1e-4
    return (8 * (f(x + h * v) - f(x - h * v)) - (f(x + 2 * h * v) - f(x - 2 * h * v))) / (12 * h)


def smooth(f, x, v, reach=5e-4):
    """Whether f (of several arrays) has no kink near x along v: there, second differences fall by 4 when the step is halved."""

    def second(h):
        return [a - 2 * b + c for a, b, c in zip(f(x + h * v), f(x), f(x - h * v), strict=True)]

    with np.errstate(invalid="ignore"):
        return all(np.all(np.abs(a - 4 * b) < 2e-7) for a, b in zip(second(reach), second(reach / 2), strict=True))


# Calls of one op ------------------------------------------------------------------------------------------------------

KINDS = ("input", "parameter", "slice", "row", "rows", "node", "constant")


@dataclasses.dataclass
class Plan:
    """Calls of one op in one graph, of one type, and where their arguments come from."""

    op: Op = dataclasses.field(repr=False)
    calls: list[Sample]
    uses: list[list[int]]  # the leaves each call takes, for its tensors in order
    leaves: list[tuple[str, np.ndarray]]  # one of KINDS, "table" or "part", and the numbers: dims, then the batch
    strips: list[tuple[list[int], int, bool]]  # leaves that are parts of one vector, in order; the gap between; is it computed
    order: list[int]  # in which the leaves are recorded
    extra: dict[int, bool]  # leaves that the loss reads by itself, too: before the calls, or after
    repeated: bool  # each use of a leaf is a node of its own
    full: bool  # backward(full=True)
    seed: int

    def weights(self):
        """Return for each call and each of its results an array: how the loss weighs them."""
        rng = np.random.default_rng(self.seed)
        return [[rng.uniform(-1, 1, y.shape) for y in ys] for ys in self.results([a for _, a in self.leaves])]

    def extra_weights(self):
        """Return for each leaf that the loss reads by itself an array of weights."""
        rng = np.random.default_rng(self.seed + 1)
        return {k: rng.uniform(-1, 1, self.leaves[k][1].shape) for k in self.extra}

    def results(self, arrays, function=None):
        """Return the results of all calls, by the op's reference (or another function), for numbers of the leaves."""
        function, results = function or self.op.reference, []
        for call, use in zip(self.calls, self.uses, strict=True):
            arguments = filled(call.arguments, [arrays[k] for k in use])
            results.append(several(function(*arguments, **call.attributes)))
        return results

    def alone(self, i):
        """Return the plan that holds call i only."""
        kept = sorted(set(self.uses[i]))
        forced = {self.uses[i][p]: kind for p, kind in FORCED.get(self.op.name, {}).items()}
        return dataclasses.replace(
            self,
            calls=[self.calls[i]],
            uses=[[kept.index(k) for k in self.uses[i]]],
            leaves=[(forced.get(k, "slice"), self.leaves[k][1]) for k in kept],
            strips=[],
            order=list(range(len(kept))),
            extra={},
            repeated=False,
            full=False,
        )


class Strip:
    """A vector of which some leaves are parts, one after the other at even distances."""

    def __init__(self, leaves, gap, computed, model, op):
        self.sign, self.op = -1.0 if computed and op.name != "negate" else 1.0, op
        self.computed, self.made = computed, None
        numbers, self.begins, n = [], [], 0
        for leaf in leaves:
            numbers += [self.sign * flat(leaf.array), np.full(gap, 3.0)]
            self.begins.append(n)
            n += leaf.shape.total + gap
        self.parameter = model.add_parameters(n, init=np.concatenate(numbers))
        for leaf, begin in zip(leaves, self.begins, strict=True):
            leaf.source, leaf.begin = self, begin

    def expression(self):
        """Return the vector: the parameter, or a node with its numbers."""
        if not self.computed:
            return self.parameter
        if self.made is None:
            self.made = -self.parameter if self.op.name != "negate" else self.parameter + 0.0
        return self.made


class Leaf:
    """An argument of calls: its numbers, its way into the graph, and its gradient."""

    def __init__(self, kind, array, model, op):
        self.kind, self.op = kind, op
        self.shape = Shape(array.shape[:-1], array.shape[-1])
        self.array = array.astype(model.dtype).astype(np.float64)
        self.made = []
        numbers, n = flat(self.array), self.shape.total
        if kind in ("parameter", "constant"):
            self.source = model.add_parameters(n, init=self.array[..., 0] if self.shape.batch == 1 else numbers)
        elif kind == "slice":
            self.source = model.add_parameters(n + 5, init=np.concatenate([[7.0, 8.0], numbers, [9.0, 9.5, 9.9]]))
        elif kind == "node":
            self.source = model.add_parameters(n, init=-numbers if op.name != "negate" else numbers)
        elif kind == "row":
            self.source = model.add_lookup_parameters((3, n), init=np.stack([numbers - 1, numbers, numbers + 1]))
        elif kind == "rows":
            self.source = model.add_lookup_parameters((1,), init=np.moveaxis(self.array, -1, 0)[::-1].copy())
        elif kind == "table":
            self.source = model.add_lookup_parameters((1,), init=np.moveaxis(self.array[..., 0], -1, 0).copy())

    def expression(self):
        """Return a new expression of the argument."""
        dims, batch = self.shape
        if self.kind == "input":
            e = ab.inputTensor(self.array if batch > 1 else self.array[..., 0], batched=batch > 1)
        elif self.kind == "table" or (self.kind == "parameter" and batch == 1):
            e = self.source
        elif self.kind == "parameter":
            e = ab.reshape(self.source, dims, batch)
        elif self.kind == "constant":
            e = self.source.expr(update=False)
            e = e if batch == 1 else ab.reshape(e, dims, batch)
        elif self.kind == "part":
            e = ab.reshape(self.source.expression()[self.begin : self.begin + self.shape.total], dims, batch)
        elif self.kind == "slice":
            e = ab.reshape(self.source[2 : 2 + self.shape.total], dims, batch)
        elif self.kind == "row":
            e = self.source[1] if self.shape == Shape((self.shape.total,)) else ab.reshape(self.source[1], dims, batch)
        elif self.kind == "rows":
            e = ab.lookup_batch(self.source, list(range(batch))[::-1])
        else:  # another op than the one that is tested, whose result has the very same bits
            e = ab.reshape(self.source, dims, batch)
            e = -e if self.op.name != "negate" else e + 0.0
        assert shape_of(e) == self.shape
        self.made.append(e)
        return e

    def gradient(self, full):
        """Return the gradient that reached the numbers, dims and then the batch; None if none can."""
        if self.kind == "input":
            nodes = {e.index: e for e in self.made}.values()
            return sum(whole(e.gradient(), self.shape) for e in nodes) if full else None
        if self.kind in ("rows", "table"):
            array = self.source.grad_as_array()
            assert all(self.source.touched[i] for i, row in enumerate(array) if row.any()), (
                "a row with a gradient is not marked"
            )
            return np.moveaxis(array[::-1], 0, -1) if self.kind == "rows" else np.moveaxis(array, 0, -1)[..., None]
        if self.kind == "part":
            strip = self.source
            gradient = strip.sign * strip.parameter.grad_as_array()[self.begin : self.begin + self.shape.total]
            return gradient.reshape((*self.shape.dims, self.shape.batch), order="F")
        gradient = flat(self.source.grad_as_array())
        if self.kind == "constant":
            assert not gradient.any()
            return None
        if self.kind == "slice":
            assert not gradient[:2].any() and not gradient[-3:].any()
            gradient = gradient[2:-3]
        if self.kind == "row":
            _, gradient, _ = rows = self.source.grad_as_array()
            assert not rows[0].any() and not rows[2].any() and list(self.source.touched) == [0, 1, 0]
        if self.kind == "node" and self.op.name != "negate":
            gradient = -gradient
        return gradient.reshape((*self.shape.dims, self.shape.batch), order="F")


class Run(NamedTuple):
    """What came of a plan in the library."""

    graph: ab.Graph
    leaves: list[Leaf]
    results: list[list[Any]]  # expressions
    loss: Any

    def values(self):
        """Return the results as arrays of dims and then the batch."""
        return [[whole(e.npvalue(), shape_of(e)) for e in es] for es in self.results]

    def gradients(self, full):
        """Return the gradients of the leaves."""
        return [leaf.gradient(full) for leaf in self.leaves]


def weighed(e, weights):
    """Return Σ weights ∘ e as an expression."""
    return ab.dot_product(ab.reshape(e, (shape_of(e).total,)), ab.inputVector(flat(weights)))


def run(plan, dtype="float64", policy="none", backward=True):
    """Record a plan, compute it, and the gradients of its loss."""
    model = ab.ParameterCollection(dtype=dtype)
    weights, extra = plan.weights(), plan.extra_weights()
    with ab.Graph(dtype=dtype, policy=policy) as graph:
        leaves = [Leaf(kind, array, model, plan.op) for kind, array in plan.leaves]
        for members, gap, computed in plan.strips:
            Strip([leaves[k] for k in members], gap, computed, model, plan.op)
        nodes = [None] * len(leaves)
        for k in plan.order:
            nodes[k] = leaves[k].expression()
        terms = [weighed(nodes[k], extra[k]) for k, late in plan.extra.items() if not late]
        results = []
        for call, use in zip(plan.calls, plan.uses, strict=True):
            arguments = [leaves[k].expression() if plan.repeated else nodes[k] for k in use]
            made = several(public(plan.op.name)(*filled(call.arguments, arguments), **call.attributes))
            results.append(made)
            node = TYPES.records[made[0].type]
            immediates = TYPES.info[made[0].type, IMMEDIATES]
            assert node.kind != OP or not immediates or plan.op.name in OTHER_IMMEDIATES, "missing in laws.OTHER_IMMEDIATES"
        terms += [weighed(e, w) for es, ws in zip(results, weights, strict=True) for e, w in zip(es, ws, strict=True)]
        terms += [weighed(nodes[k], extra[k]) for k, late in plan.extra.items() if late]
        loss = ab.esum(terms)
        loss.forward()
        if backward:
            loss.backward(full=plan.full)
    return Run(graph, leaves, results, loss)


def batches(graph):
    """Return for each node that was run the number of its batch (of the segment, in the segment)."""
    found = {}
    for s, segment in enumerate(graph.execution.segments):
        o = segment.schedule
        for b, (begin, end) in enumerate(zip(o.batch_begin, o.batch_end, strict=True)):
            for p in range(begin, end):
                found[int(segment.nodes[o.order[p]])] = s, b
    return found


def forward_equals_reference(plan, dtype):
    """Law: each node's value is that of the op's reference."""
    outcome = run(plan, dtype, backward=False)
    expected = plan.results([leaf.array for leaf in outcome.leaves])
    for es, values, references in zip(outcome.results, outcome.values(), expected, strict=True):
        assert len(es) == len(references)
        for e, value, reference in zip(es, values, references, strict=True):
            assert (*shape_of(e).dims, shape_of(e).batch) == reference.shape
            close(value, reference, EXACT if dtype == "float64" else FLOAT32, plan.op.name)


def gradient_equals_differences(plan):
    """Law: <w, J v> = <Jᵀ w, v> for each argument, w the weights of the loss, J v by differences of the reference."""
    rng = np.random.default_rng(plan.seed + 2)
    arrays, weights, extra = [a for _, a in plan.leaves], plan.weights(), plan.extra_weights()
    outcome = run(dataclasses.replace(plan, full=True))
    checked = 0
    for k, gradient in enumerate(outcome.gradients(True)):
        if gradient is None:
            continue
        checked += 1
        v = rng.uniform(0.5, 1.5, arrays[k].shape) * rng.choice([-1, 1], arrays[k].shape)

        def results(x, k=k):
            made = plan.results([*arrays[:k], x, *arrays[k + 1 :]], plan.op.surrogate)
            return [np.where(np.isinf(y), 0.0, y) for ys in made for y in ys]  # an infinity does not move

        def loss(x, k=k, results=results):
            return sum(np.sum(w * y) for w, y in zip(itertools.chain(*weights), results(x), strict=True))

        assume(smooth(results, arrays[k], v))
        expected = slope(loss, arrays[k], v) + (np.sum(extra[k] * v) if k in extra else 0)
        scale = max(1.0, np.sum(np.abs(gradient * v)))
        got = np.sum(gradient * v)
        assert abs(got - expected) <= DIFFERENCES * scale, f"{plan.op.name}: <J'w, v> = {got}, <w, J v> = {expected}"
    return checked


def batched_equals_alone(plan, dtype, policy="ratio"):
    """Law: calls of one type that are ready run as one batch, and give what each of them gives alone, node by node."""
    outcome = run(plan, dtype, policy)
    nodes = {int(outcome.graph.execution.root[es[0].index]) for es in outcome.results}
    if all(n >= 0 and TYPES.records[outcome.graph.recorded_types[n]].op is plan.op for n in nodes):
        ran = batches(outcome.graph)
        assert len(nodes) == len(plan.calls)
        assert len({ran[n] for n in nodes}) == 1, f"{plan.op.name}: {len(plan.calls)} calls in several batches"
    # Alone, in float64, from the numbers as they are in `dtype`.
    plan = dataclasses.replace(plan, leaves=[(leaf.kind, leaf.array) for leaf in outcome.leaves])
    weights, extra = plan.weights(), plan.extra_weights()
    expected = [extra.get(k, np.zeros(array.shape)) for k, (_, array) in enumerate(plan.leaves)]
    tolerance = EXACT if dtype == "float64" else FLOAT32
    for i, values in enumerate(outcome.values()):
        single = plan.alone(i)
        with mock.patch.object(Plan, "weights", lambda self, i=i: [weights[i]]):
            one = run(single)
        for value, expected_value in zip(values, one.values()[0], strict=True):
            close(value, expected_value, tolerance, f"{plan.op.name}, value of call {i}")
        for k, gradient in zip(sorted(set(plan.uses[i])), one.gradients(False), strict=True):
            expected[k] = expected[k] + gradient
    for (kind, _), got, reference in zip(plan.leaves, outcome.gradients(plan.full), expected, strict=True):
        if got is not None:
            close(got, reference, tolerance, f"{plan.op.name}, gradient of {kind}")
    if not plan.full:
        for leaf in outcome.leaves:
            assert leaf.kind != "input" or not any(e.gradient().any() for e in leaf.made)


def inputs_stay_and_gradients_add_up(plan, dtype):
    """Law: neither direction changes what it reads, and a second backward pass doubles the gradients of parameters."""
    outcome = run(plan, dtype, "ratio", backward=False)
    sources = [leaf.source for leaf in outcome.leaves if leaf.kind != "input"]
    sources = [s.parameter if isinstance(s, Strip) else s for s in sources]
    parameters = [p.values.copy() for p in sources]
    expressions = [e for leaf in outcome.leaves for e in leaf.made] + [e for es in outcome.results for e in es]
    expressions = [e for e in expressions if e.graph is not None]
    values = [e.npvalue() for e in expressions]
    for leaf in outcome.leaves:
        for e in leaf.made:
            np.testing.assert_array_equal(whole(e.npvalue(), leaf.shape), leaf.array)
    outcome.loss.backward(full=plan.full)
    once, nodes = outcome.gradients(plan.full), [e.gradient() for e in expressions]
    outcome.loss.backward(full=plan.full)
    tolerance = EXACT if dtype == "float64" else FLOAT32
    for leaf, first, second in zip(outcome.leaves, once, outcome.gradients(plan.full), strict=True):
        if first is not None:
            close(second, first if leaf.kind == "input" else 2 * first, tolerance, plan.op.name)
    for e, value, gradient in zip(expressions, values, nodes, strict=True):
        np.testing.assert_array_equal(e.npvalue(), value)
        close(e.gradient(), gradient, tolerance, plan.op.name)
    for p, before in zip(sources, parameters, strict=True):
        np.testing.assert_array_equal(p.values, before)


def same_bits_twice(plan, dtype):
    """Law: a program that is run twice gives the same bits."""
    first, second = (run(plan, dtype, "ratio") for _ in range(2))
    for a, b in zip(itertools.chain(*first.values()), itertools.chain(*second.values()), strict=True):
        assert a.tobytes() == b.tobytes()
    for a, b in zip(first.gradients(plan.full), second.gradients(plan.full), strict=True):
        assert (a is None) == (b is None) and (a is None or a.tobytes() == b.tobytes())


# Whole programs -------------------------------------------------------------------------------------------------------
#
# The values of an instance are numbered; a step makes the next one (a call of lstm_step the next two).


class Ref(NamedTuple):
    """An argument: value `at` of the instance."""

    at: int


@dataclasses.dataclass(frozen=True)
class Input:
    """Numbers of this instance: dims, then the batch."""

    array: np.ndarray


@dataclasses.dataclass(frozen=True)
class Use:
    """A parameter, or a whole table, that all instances share."""

    parameter: int
    update: bool = True


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table, looked up by this instance."""

    parameter: int
    index: int
    update: bool = True


@dataclasses.dataclass(frozen=True)
class Fill:
    """`value` everywhere."""

    shape: Shape
    value: float


@dataclasses.dataclass(frozen=True)
class Reshape:
    """The same numbers in another shape."""

    of: int
    shape: Shape


@dataclasses.dataclass(frozen=True)
class Slice:
    """Numbers begin to end of a vector."""

    of: int
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class Stop:
    """The same, but no gradient goes back."""

    of: int


@dataclasses.dataclass(frozen=True)
class Squash:
    """A value brought into (low, high), by operators with numbers."""

    of: int
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Call:
    """An op on values of the instance; `Ref`s stand in place of tensors."""

    op: str
    arguments: tuple[Any, ...]
    attributes: dict[str, Any]


@dataclasses.dataclass
class Case:
    """A program for several instances; the last value of each instance is one number, its loss."""

    parameters: list[tuple[str, np.ndarray]]  # "parameter", dims; or "table", (V, dims of a row)
    instances: list[list[Any]]  # steps
    turns: list[int]  # which instance records its next step, step after step
    total: str  # how the losses are added up
    seed: int

    @functools.cached_property
    def values(self):
        """Return the values of all instances, by the references of the ops."""
        return self.evaluate()

    def evaluate(self, parameters=None, nudges=None, frozen=None):
        """Return the values of all instances for other parameters, or with something added to values.

        parameters : arrays in place of the case's own.
        nudges : {(instance, value): array to add to it}.
        frozen : values of all instances that `Stop` and constant uses of parameters give in place of new ones, and from which
            an op whose gradient is another function's moves on as that function does.
        """
        arrays = [a for _, a in self.parameters] if parameters is None else parameters
        result = []
        for i, steps in enumerate(self.instances):
            values = []
            for step in steps:
                if frozen is not None and (isinstance(step, Stop) or getattr(step, "update", True) is False):
                    made = (frozen[i][len(values)],)
                elif frozen is not None and isinstance(step, Call) and OPS[step.op].surrogate is not None:
                    made = moved_on(step, values, frozen[i])
                else:
                    made = evaluate(step, values, arrays)
                for y in made:
                    nudge = None if nudges is None else nudges.get((i, len(values)))
                    values.append(y if nudge is None else y + nudge)
            result.append(values)
        return result

    def loss(self, values):
        """Return the loss of all instances."""
        total = sum(v[-1].item() for v in values)
        return total / len(values) if self.total == "average" else total


def substituted(arguments, values):
    """Return the arguments of a `Call` with values in place of the references."""
    if isinstance(arguments, Ref):
        return values[arguments.at]
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(substituted(a, values) for a in arguments)
    return arguments


def moved_on(call, values, frozen):
    """Return the frozen results of a call, and by how much the function whose gradient it has moved from there."""
    before, now = (
        several(OPS[call.op].surrogate(*substituted(call.arguments, at), **call.attributes)) for at in (frozen, values)
    )
    return tuple(frozen[len(values) + k] + b - a for k, (a, b) in enumerate(zip(before, now, strict=True)))


def evaluate(step, values, parameters):
    """Return what a step makes of the values of its instance: a tuple of arrays, dims and then the batch."""
    match step:
        case Input(array):
            return (array,)
        case Use(k):
            array = parameters[k]
            return (array[..., None],)
        case Row(k, index):
            return (np.take(parameters[k], index, axis=-1)[..., None],)
        case Fill(shape, value):
            return (np.full((*shape.dims, shape.batch), value),)
        case Reshape(of, shape):
            return (values[of].reshape((*shape.dims, shape.batch), order="F"),)
        case Slice(of, begin, end):
            return (values[of][begin:end],)
        case Stop(of):
            return (values[of],)
        case Squash(of, low, high):
            return (low + (high - low) / (1 + np.exp(-values[of])),)
        case Call(op, arguments, attributes):
            with np.errstate(all="ignore"):
                return several(OPS[op].reference(*substituted(arguments, values), **attributes))
    raise AssertionError(step)


def perform(step, values, parameters):
    """Record a step: the tuple of expressions it makes."""
    match step:
        case Input(array):
            batched = array.shape[-1] > 1
            return (ab.inputTensor(array if batched else array[..., 0], batched=batched, reusable_expr=True),)
        case Use(k, update):
            return (parameters[k].expr(update=update),)
        case Row(k, index, update):
            return (ab.lookup(parameters[k], index, update=update),)
        case Fill(shape, value):
            return (ab.constant(shape.dims, value, shape.batch),)
        case Reshape(of, shape):
            return (ab.reshape(values[of], shape.dims, shape.batch),)
        case Slice(of, begin, end):
            return (values[of][begin:end],)
        case Stop(of):
            return (ab.nobackprop(values[of]),)
        case Squash(of, low, high):
            return (low + (high - low) * ab.logistic(values[of]),)
        case Call(op, arguments, attributes):
            return several(public(op)(*substituted(arguments, values), **attributes))
    raise AssertionError(step)


class Recording:
    """A case on its way into a graph, with parameters of its own. Steps are recorded into the graph that is current."""

    def __init__(self, case, dtype="float64", arrays=None):
        self.case = case
        self.model = ab.ParameterCollection(dtype=dtype)
        self.parameters = []
        for k, (kind, array) in enumerate(case.parameters):
            array = array if arrays is None else arrays[k]
            if kind == "table":
                self.parameters.append(self.model.add_lookup_parameters((1,), init=np.moveaxis(array, -1, 0).copy()))
            else:
                self.parameters.append(self.model.add_parameters((1,), init=array))
        self.restart()

    def restart(self):
        """Begin again, for another graph."""
        self.values = [[] for _ in self.case.instances]
        self.done = [0] * len(self.case.instances)
        self.turn = 0
        self.loss = None

    def step(self):
        """Record the next step; return its expressions."""
        i = self.case.turns[self.turn]
        made = perform(self.case.instances[i][self.done[i]], self.values[i], self.parameters)
        self.values[i] += made
        self.done[i] += 1
        self.turn += 1
        return made

    def finish(self, upto=None):
        """Record the rest, and the loss; or only until turn `upto`. Return the recording itself."""
        while self.turn < (len(self.case.turns) if upto is None else upto):
            self.step()
        if upto is None:
            losses = [v[-1] for v in self.values]
            self.loss = {"esum": ab.esum, "average": ab.average, "sum": sum}[self.case.total](losses)
        return self

    def computed(self):
        """Return the values of all instances as arrays of dims and then the batch."""
        return [[whole(e.npvalue(), shape_of(e)) for e in values] for values in self.values]

    def gradients(self):
        """Return the gradients of all parameters, in the form of the case's arrays."""
        gradients = []
        for (kind, _), p in zip(self.case.parameters, self.parameters, strict=True):
            gradient = p.grad_as_array()
            gradients.append(np.moveaxis(gradient, 0, -1) if kind == "table" else gradient)
        return gradients


def agree(got, expected, tolerance, what):
    """Check nested lists of arrays."""
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        if isinstance(b, list):
            agree(a, b, tolerance, f"{what} {i}")
        else:
            close(a, b, tolerance, f"{what} {i}")


def in_one_go(case, dtype="float64", policy="none", full=False):
    """Record and run a case, forward and backward; return the recording and its graph."""
    recording = Recording(case, dtype)
    with ab.Graph(dtype=dtype, policy=policy) as graph:
        recording.finish()
    recording.loss.backward(full=full)
    return recording, graph


def counted(graph):
    """Return how often each op ran as a batch."""
    counts = collections.Counter()
    for segment in graph.execution.segments:
        for l in segment.schedule.batch_type:
            counts[TYPES.records[segment.present[l]].name] += 1
    return counts

"""Laws of graphs on a card: what a processor computes is what a card computes, to rounding. Here on a fake one.

`test_gpu.py` runs the same tests on a real card. Sizes are tiny, as a simulated thread costs some microseconds.
"""

import itertools

import numpy as np
import pytest
from fake_driver import fake_card
from hypothesis import given
from laws import FLOAT32_GRAPH, Recording, agree, run
from strategies import SEEDS, examples, graphs, plans
from test_bulk import LABELS, LENGTHS, WORDS, Model, trees
from test_examples import attention, dependency_parser, language_model, lstm_acceptor, tagger, tree_lstm
from test_steps import BUILDERS
from test_trainers import TRAINERS

import autobatch as ab
from autobatch import card as cards
from autobatch.kernels._op import OPS
from autobatch.schedule import POLICIES

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}  # relative to the largest number

every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def device():
    """Have a card."""
    with fake_card() as fake:
        yield
        ab.configure(device="cpu")
        ab.renew_cg()
        fake.check()


def on(name, program):
    """Return what a program gives on a device; on a card, something must have been launched there."""
    before = ab.configured()["device"]
    ab.configure(device=name)
    ab.renew_cg()
    launched = cards.card().launches
    try:
        made = program()
    finally:
        ab.configure(device=before)
    assert (cards.card().launches > launched) == (name == "cuda")
    return made


def same(program, dtype="float64", tolerance=None):
    """Check that a program (which returns arrays, in nested lists) gives the same on both; return what it gives on a card."""
    expected, got = on("cpu", program), on("cuda", program)
    agree(got, expected, tolerance or TOLERANCE[dtype], "number")
    return got


def same_bits(program):
    """Check that a program gives the same bits each time on a card."""
    for a, b in zip(flat(on("cuda", program)), flat(on("cuda", program)), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def flat(nested):
    """Return what nested lists hold, in order."""
    return [x for part in nested for x in flat(part)] if isinstance(nested, list) else [nested]


# Ops ------------------------------------------------------------------------------------------------------------------


def outcome(plan, dtype, policy="ratio"):
    """Return values and gradients of calls of an op."""
    made = run(plan, dtype, policy)
    gradients = [g for g in made.gradients(plan.full) if g is not None]
    return [list(itertools.chain(*made.values())), gradients]


@every_op
@both_dtypes
def test_op(op, dtype):
    """Calls of one type, with arguments of all kinds, shared, repeated, side by side in one vector."""

    @examples(3)
    @given(plans(op, 4))
    def check(plan):
        same(lambda: outcome(plan, dtype), dtype)

    check()


@every_op
def test_op_gives_the_same_bits_twice(op):
    @examples(1)
    @given(plans(op, 6))
    def check(plan):
        same_bits(lambda: outcome(plan, "float32"))

    check()


def test_a_table_where_another_one_was():
    """The type of a look-up names the table by the address of its marks; one that is gone may have had the same."""

    def program():
        made = []
        for k in range(4):
            table = ab.ParameterCollection().add_lookup_parameters((3, 2), init=np.arange(6.0).reshape(3, 2))
            ab.renew_cg()
            ab.sum_batches(ab.sum_elems(ab.lookup_batch(table, [k % 3, 1, 1]))).backward()
            made += [table.grad_as_array(), np.array(table.touched)]
        return made

    same(program, "float32")


def test_inputs_after_a_revert():
    """What is recorded then has the numbers of inputs that are gone."""

    def program():
        ab.renew_cg()
        x, made = ab.inputVector([1.0, 2.0]), []
        for k in range(3):
            ab.cg_checkpoint()
            made.append(ab.cmult(x, ab.inputVector([k + 3.0, k + 4.0])).npvalue())
            ab.cg_revert()
        return made

    same(program, "float32")


# Whole graphs ---------------------------------------------------------------------------------------------------------


def whole_graph(case, dtype, policy, full=False):
    """Return values and gradients of a case, those of its nodes too if they are formed."""
    recording = Recording(case, dtype)
    with ab.Graph(dtype=dtype, policy=policy):
        recording.finish()
    recording.loss.backward(full=full)
    made = [recording.loss.npvalue(), *itertools.chain(*recording.computed()), *recording.gradients()]
    if full:
        made += [e.gradient() for values in recording.values for e in values if e.graph is not None]
    return made


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("full", [False, True])
def test_graph(policy, full):
    @examples(2)
    @given(graphs())
    def check(case):
        same(lambda: whole_graph(case, "float64", policy, full))

    check()


def test_graph_in_float32():
    @examples(3)
    @given(graphs())
    def check(case):
        same(lambda: whole_graph(case, "float32", "ratio"), tolerance=FLOAT32_GRAPH)
        same_bits(lambda: whole_graph(case, "float32", "ratio"))

    check()


@pytest.mark.parametrize("inference", [False, True])
def test_values_asked_for_on_the_way(inference):
    """Several segments, alone or several values at once, in a graph that keeps them or gives them up."""

    @examples(3)
    @given(graphs(), SEEDS)
    def check(case, seed):
        def program():
            rng, made = np.random.default_rng(seed), []
            recording = Recording(case)
            with ab.Graph(dtype="float64", inference=inference):
                for _ in case.turns:
                    recording.step()
                    if rng.random() < 0.2:
                        some = [e for values in recording.values for e in values if e.graph is not None]
                        asked = [some[k] for k in rng.integers(len(some), size=2)] if some else []
                        made += ab.npvalues(asked) if asked and rng.integers(2) else [e.npvalue() for e in asked]
                recording.finish()
            made.append(recording.loss.npvalue())
            return made + list(itertools.chain(*recording.computed()))

        same(program)

    check()


def test_backward_again_and_more_nodes():
    """Backward twice, from a smaller loss, and after nodes were added to what was computed."""

    @examples(3)
    @given(graphs(), SEEDS)
    def check(case, seed):
        def program():
            rng, made = np.random.default_rng(seed), []
            recording = Recording(case)
            with ab.Graph(dtype="float64"):
                recording.finish(int(rng.integers(1, len(case.turns) + 1)))
                last = [v[-1] for v in recording.values if v and v[-1].graph is not None]
                if last:
                    loss = ab.sum_batches(ab.sum_elems(last[0]))
                    loss.backward(full=bool(rng.integers(2)))
                    made += [np.array(loss.value()), *recording.gradients()]
                recording.finish()
                for _ in range(2):
                    recording.loss.backward()
                    made += recording.gradients()
                recording.values[-1][-1].backward()
                made += recording.gradients()
                (recording.loss * 2.0).backward(full=True)
                made += [*recording.gradients(), recording.loss.gradient()]
            return made

        same(program)

    check()


def test_checkpoints():
    @examples(3)
    @given(graphs(), SEEDS)
    def check(case, seed):
        def program():
            rng = np.random.default_rng(seed)
            recording = Recording(case)
            ab.configure(dtype="float64")
            ab.renew_cg()
            recording.finish(int(rng.integers(len(case.turns) + 1)))
            kept = [list(v) for v in recording.values], list(recording.done), recording.turn
            ab.cg_checkpoint()
            recording.finish()
            recording.loss.backward()
            ab.cg_revert()
            recording.values, recording.done, recording.turn = kept
            recording.finish()
            recording.loss.backward()
            return [recording.loss.npvalue(), *itertools.chain(*recording.computed()), *recording.gradients()]

        same(program)

    check()


def test_inputs_and_parameters_that_change():
    """Inputs set anew, look-ups of other rows, parameters set, scaled and read while graphs use them."""

    def program():
        model = ab.ParameterCollection(dtype="float64")
        W = model.add_parameters((2, 3), init=np.arange(6.0).reshape(2, 3))
        table = model.add_lookup_parameters((4, 3), init=np.arange(12.0).reshape(4, 3) / 7)
        made = []
        with ab.Graph(dtype="float64"):
            x, row = ab.vecInput(3), table[1]
            x.set([1, 2, 3])
            loss = ab.squared_norm(ab.tanh(W * ab.cmult(x, row)))
            made.append(loss.npvalue())
            loss.backward()
            x.set([0.5, 1, -1])
            row.set(3)
            made += [loss.npvalue(), W.grad_as_array(), table.grad_as_array()]
            loss.backward()
            W.set_value(np.full((2, 3), 0.1))
            made += [loss.npvalue(recalculate=True), W.as_array(), W.grad_as_array(), table.grad_as_array()]
            table.init_row(3, [1, 0, 2])
            W.scale(0.5)
            made += [loss.npvalue(recalculate=True), table.as_array()]
            W.scale_gradient(3.0)
            loss.backward()
            made += [W.grad_as_array(), table.grad_as_array(), np.array(table.touched)]
        return made

    same(program)


# Builders and cells ---------------------------------------------------------------------------------------------------


def sequences(dtype, make, run_one):
    """Return losses and gradients of a builder over a few sequences; `run_one` gives the outputs for a state and inputs."""
    ab.reset_random_seed(3)
    ab.configure(dtype=dtype)
    model = ab.ParameterCollection()
    rnn, table = make(model), model.add_lookup_parameters((5, 3))
    numbers = np.random.default_rng(1)
    ab.renew_cg()
    losses = []
    for length in (3, 1, 2):
        xs = [table[int(i)] if i % 4 else ab.tanh(table[int(i)]) for i in numbers.integers(0, 5, length)]
        losses += [ab.squared_norm(o) * float(k + 1) for k, o in enumerate(run_one(rnn, xs))]
    ab.esum(losses).backward()
    made = [np.array(loss.value()) for loss in losses]
    return made + [p.grad_as_array() for p in [*model.parameters_list(), *model.lookup_parameters_list()]]


def one_by_one(rnn, xs):
    state, outputs = rnn.initial_state(), []
    for x in xs:
        state = state.add_input(x)
        outputs.append(state.output())
    return outputs


def in_bulk(rnn, xs):
    return rnn.initial_state().transduce(xs)


@pytest.mark.parametrize("way", [one_by_one, in_bulk])
@pytest.mark.parametrize("name", BUILDERS)
def test_builder(name, way):
    same(lambda: sequences("float64", BUILDERS[name], way))


@pytest.mark.parametrize("way", [one_by_one, in_bulk])
def test_builder_with_dropout(way):
    def make(model):
        made = ab.VanillaLSTMBuilder(2, 3, 4, model)
        made.set_dropouts(0.3, 0.2)
        return made

    same(lambda: sequences("float64", make, way))


def test_bidirectional_builder():
    same(lambda: sequences("float64", lambda m: ab.BiRNNBuilder(1, 3, 4, m, ab.GRUBuilder), lambda rnn, xs: rnn.transduce(xs)))


@pytest.mark.parametrize(("cells", "dtype"), [(False, "float32"), (True, "float64")])
def test_trees_and_scans(cells, dtype):
    words, children, _ = trees()

    def program():
        ab.configure(dtype=dtype)
        m = Model()
        ab.renew_cg()
        leaf, node, step = (ab.cell(f) if cells else f for f in (m.leaf, m.node, m.step))
        h, _ = ab.tree(node, children, *ab.each(leaf, ab.rows(m.table, words)))
        labels = np.array([2] * len(words) + [1] * len(children))
        steps = ab.scan(step, ab.rows(m.table, WORDS), LENGTHS, ab.inputVector(np.linspace(0, 1, 4)))
        value, gradients = m.finish(ab.each(m.loss, h, labels).sum() + ab.each(m.loss, steps, LABELS).sum())
        return [np.array(value), *gradients]

    same(program, dtype)
    same_bits(program)


def gated(x, z):
    return ab.cmult(ab.tanh(ab.cmult(x, z) + ab.logistic(x)), z)


def two_parts_that_overlap(x, z):
    a, b = ab.pick_range(x, 0, 40), ab.pick_range(x, 20, 60)
    return ab.cmult(ab.tanh(a + b), ab.logistic(b))


def three_parts_that_overlap(x, z):
    p, q, r = (ab.pick_range(x, k, k + 20) for k in (0, 10, 20))
    return ab.tanh(ab.cmult(p, q) + ab.exp(r)), ab.cmult(p, r)


def parts_of_a_value(x, z):
    s = ab.tanh(x)
    a, b = ab.pick_range(s, 0, 40), ab.pick_range(s, 20, 60)
    return ab.cmult(a, b) + a


def single_numbers(x, z):
    return ab.cmult(x, ab.sum_elems(z)) + ab.cmult(ab.tanh(x), ab.pick(z, 3))


FUNCTIONS = [gated, two_parts_that_overlap, three_parts_that_overlap, parts_of_a_value, single_numbers]


def results(function, dtype):
    """Values and gradients of three calls."""
    ab.configure(dtype=dtype)
    ab.renew_cg()
    cell, rng, inputs, outs = ab.cell(function), np.random.default_rng(0), [], []
    for _ in range(3):
        x, z = (ab.inputTensor(rng.uniform(-1, 1, 60)) for _ in range(2))
        out = cell(x, z)
        inputs += [x, z]
        outs += list(out) if isinstance(out, tuple) else [out]
    values = [np.array(o.npvalue()) for o in outs]
    ab.esum([ab.sum_elems(ab.cmult(o, o)) for o in outs]).backward(full=True)
    return values + [np.array(e.gradient()) for e in inputs]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cell(function, dtype):
    same(lambda: results(function, dtype), dtype)


@pytest.mark.parametrize("N, layers", [(2, 1), (3, 2), (1, 1)])
def test_tree_builder(N, layers):
    def program():
        ab.reset_random_seed(3)
        model = ab.ParameterCollection(dtype="float64")
        builder, table = ab.NaryTreeLSTMBuilder(N, layers, 3, 4, model), model.add_lookup_parameters((9, 3))
        with ab.Graph(dtype="float64"):
            losses, children = [], ([], [], [0, 1], [2], [], [3, 4])
            for length in (1, 3, 6):
                tree = builder.initial_state()
                losses += [ab.squared_norm(tree.add_input(k, children[k][:N], table[k])) * (k + 1.0) for k in range(length)]
            ab.esum(losses).backward()
        return [np.array(loss.value()) for loss in losses] + [p.grad_as_array() for p in [*model.parameters_list(), table]]

    same(program)


# Training -------------------------------------------------------------------------------------------------------------


class Little:
    """A network with all kinds of parameters, and its loss."""

    def __init__(self, dtype):
        ab.configure(dtype=dtype)
        ab.reset_random_seed(4)
        self.model = ab.ParameterCollection()
        self.W, self.b = self.model.add_parameters((3, 4)), self.model.add_parameters((3,))
        self.first, self.second = self.model.add_lookup_parameters((7, 4)), self.model.add_lookup_parameters((9, 2, 2))
        self.all = [self.W, self.b, self.first, self.second]

    def loss(self, k):
        ab.renew_cg()
        xs = [ab.reshape(self.second[(k + 1) % 9], (4,)), self.first[k % 7], self.first[3]]
        losses = [ab.pickneglogsoftmax(ab.affine_transform([self.b, self.W, x]), k % 3) for x in xs]
        losses.append(ab.sum_batches(ab.squared_norm(ab.lookup_batch(self.first, [k % 7, 5, 5]))))
        return ab.esum(losses)

    def step(self, trainer, k):
        loss = self.loss(k)
        loss.backward()
        trainer.update()
        return np.array(loss.value())

    def state(self):
        return [p.as_array() for p in self.all]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", TRAINERS)
def test_trainer(name, sparse):
    def program():
        m = Little(dtype)
        trainer = getattr(ab, name)(m.model, *TRAINERS[name])
        trainer.set_sparse_updates(sparse)
        trainer.set_clip_threshold(1.0)
        losses = [m.step(trainer, k) for k in range(4)]
        return losses + m.state()

    dtype = "float32" if sparse else "float64"
    same(program, dtype, 1e-4 if sparse else None)


def test_trainer_of_probabilities():
    def program():
        m = Little("float64")
        for p in m.all:
            p.set_value(np.full(p.shape(), 0.2)) if hasattr(p, "set_value") else p.init_from_array(np.full(p.shape(), 0.2))
        trainer = ab.EGTrainer(m.model, 0.1)
        return [m.step(trainer, k) for k in range(3)] + m.state()

    same(program)


@pytest.mark.parametrize("kind", ["exponential", "cumulative"])
def test_moving_averages(kind):
    def program():
        m = Little("float64")
        trainer = ab.AdamTrainer(m.model, 0.05)
        trainer.exponential_moving_average(0.8) if kind == "exponential" else trainer.cumulative_moving_average()
        made = [m.step(trainer, k) for k in range(3)]
        trainer.swap_params_to_moving_average(True, kind == "exponential")
        made += [m.loss(1).npvalue(), *m.state()]
        trainer.swap_params_to_weights()
        return [*made, m.step(trainer, 5), *m.state()]

    same(program)


@pytest.mark.parametrize("name", ["AdamTrainer", "MomentumSGDTrainer"])
def test_saved_and_populated(name, tmp_path):
    def program():
        m, other = Little("float64"), Little("float64")
        trainer = getattr(ab, name)(m.model, 0.05)
        made = [m.step(trainer, k) for k in range(2)]
        trainer.save(str(tmp_path / "trainer"))
        m.model.save(str(tmp_path / "model"))
        again = getattr(ab, name)(other.model, 0.05)
        other.step(again, 6)
        other.model.populate(str(tmp_path / "model"))
        again.populate(str(tmp_path / "trainer"))
        made += [m.step(trainer, 3), *m.state()]
        return [*made, other.step(again, 3), *other.state()]

    got = same(program)
    half = (len(got) - 2) // 2
    for a, b in zip(got[2 : 2 + half], got[2 + half :], strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", TRAINERS)
def test_devices_by_turns(name, sparse):
    """Steps on one device go on from those on the other; parameters are read and set in between."""

    def program(turns):
        m = Little("float64")
        trainer = getattr(ab, name)(m.model, *TRAINERS[name])
        trainer.set_sparse_updates(sparse)
        made = []
        for k, turn in enumerate(turns):
            ab.configure(device=turn)
            made.append(m.step(trainer, k))
            if k == 2:
                made += m.state()
                m.W.set_value(m.W.as_array() * 0.5)
                m.first.init_row(3, [0.1, 0.2, 0.3, 0.4])
        made += m.state()
        ab.configure(device="cpu")
        return made

    expected = program(["cpu"] * 6)
    agree(program(["cuda", "cpu", "cpu", "cuda", "cuda", "cpu"]), expected, 1e-10, "number")
    agree(program(["cpu", "cuda", "cuda", "cuda", "cpu", "cuda"]), expected, 1e-10, "number")


def test_a_graph_stays_where_it_began():
    m = Little("float64")
    here = m.loss(0)
    value = here.value()
    ab.configure(device="cuda")
    with ab.Graph(dtype="float64"):
        there = ab.squared_norm(m.W * m.first[2])
        there.backward()
    here.backward()
    ab.configure(device="cpu")
    got = [p.grad_as_array() for p in m.all]
    m = Little("float64")
    with ab.Graph(dtype="float64"):
        ab.squared_norm(m.W * m.first[2]).backward()
    loss = m.loss(0)
    loss.backward()
    assert loss.value() == value
    agree(got, [p.grad_as_array() for p in m.all], 1e-10, "gradient")


# Examples -------------------------------------------------------------------------------------------------------------

TREES = "(3 (2 very) (3 good))\n(1 (2 not) (3 good))\n(2 (2 (1 not) (2 so)) (3 good))\n"
TAGGED = "It|PRON works|VERB\n\ndo|AUX n't|PART\n"
PAIRS = "ein Hund\ta dog\neine Katze\ta cat\n" * 3
CONLLU = """1\tIt\t_\tPRON\t_\t_\t2\tnsubj\t_\t_
2\tworks\t_\tVERB\t_\t_\t0\troot\t_\t_

1\tdogs\t_\tNOUN\t_\t_\t2\tnsubj\t_\t_
2\tbark\t_\tVERB\t_\t_\t0\troot\t_\t_
3\tloudly\t_\tADV\t_\t_\t2\tadvmod\t_\t_
"""
SMALL = ["--epochs", "1"]


def history(found):
    """Return the numbers of each epoch that are not times."""
    return [
        np.array([v for k, v in epoch.items() if "second" not in k and k != "batches"], float) for epoch in found["history"]
    ]


def test_example_of_trees(tmp_path):
    for name in ("train.txt", "dev.txt"):
        (tmp_path / name).write_text(TREES)
    sizes = ["--wembed", "3", "--hidden", "4", "--batch", "2", "--dropout", "0.3", "--data", str(tmp_path)]
    for model in ("lstm", "rnn"):
        same(lambda: history(tree_lstm.main([*SMALL, "--model", model, *sizes])), tolerance=1e-4)


def test_example_of_tags(tmp_path):
    (tmp_path / "data").write_text(TAGGED)
    sizes = ["--wembed", "4", "--cembed", "2", "--hidden", "4", "--mlp", "3", "--min-count", "2", "--dropout", "0.5"]
    data = ["--data", str(tmp_path / "data"), "--dev", str(tmp_path / "data"), "--characters"]
    same(lambda: history(tagger.main([*SMALL, *data, *sizes])), tolerance=1e-4)


def test_example_of_a_language_model(tmp_path):
    (tmp_path / "data").write_text("a b a b\nb a\nc <unk>\n")
    sizes = ["--wembed", "3", "--hidden", "4", "--layers", "2", "--batch", "2", "--samples", "1"]
    data = ["--data", str(tmp_path / "data"), "--dev", str(tmp_path / "data")]
    same(lambda: history(language_model.main([*SMALL, *data, *sizes])), tolerance=1e-4)


def test_example_of_attention(tmp_path):
    (tmp_path / "data").write_text(PAIRS)
    sizes = ["--embed", "3", "--hidden", "4", "--batch", "2"]
    same(lambda: history(attention.main([*SMALL, "--data", str(tmp_path / "data"), *sizes])), tolerance=1e-4)


def test_example_of_a_parser(tmp_path):
    (tmp_path / "data").write_text(CONLLU)
    data = ["--data", str(tmp_path / "data"), "--dev", str(tmp_path / "data")]
    same(
        lambda: history(dependency_parser.main([*SMALL, *data, "--wembed", "3", "--tembed", "2", "--hidden", "4"])),
        tolerance=1e-4,
    )


def test_example_of_an_acceptor(monkeypatch):
    monkeypatch.setattr(lstm_acceptor, "SIZE", 6)
    monkeypatch.setattr(lstm_acceptor, "VOCABULARY", 60)
    same(lambda: [np.array(way["losses"]) for way in lstm_acceptor.train_both_ways(1, 1).values()], tolerance=1e-4)

"""Threads, graphs side by side, and what is left when a graph is gone."""

import gc
import random
import threading
import weakref

import numpy as np
import pytest

import autobatch as ab
from autobatch import seeds


def in_threads(*jobs):
    """Run jobs at the same time, each in a thread of its own; their results, in order."""
    results, start = [None] * len(jobs), threading.Barrier(len(jobs))

    def run(k):
        start.wait()
        try:
            results[k] = jobs[k]()
        except BaseException as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def values_of(model):
    return [p.as_array() for p in model.parameters_list() + model.lookup_parameters_list()]


def assert_same_bits(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


# Two kinds of networks ------------------------------------------------------------------------------------------------


class Acceptor:
    """Sentences through an LSTM with dropout."""

    def __init__(self):
        self.model = ab.ParameterCollection()
        self.words = self.model.add_lookup_parameters((50, 8))
        self.lstm = ab.LSTMBuilder(2, 8, 12, self.model)
        self.W, self.b = self.model.add_parameters((3, 12)), self.model.add_parameters((3,))

    def scores(self, words):
        outputs = self.lstm.initial_state().transduce([self.words[w] for w in words])
        return ab.affine_transform([self.b, self.W, outputs[-1]])

    def loss(self, words):
        return ab.pickneglogsoftmax(ab.dropout(self.scores(words), 0.2), sum(words) % 3)


class Trees:
    """Random trees, each node made of two smaller ones."""

    def __init__(self):
        self.model = ab.ParameterCollection()
        self.words = self.model.add_lookup_parameters((50, 8))
        self.U, self.c = self.model.add_parameters((8, 16)), self.model.add_parameters((8,))
        self.W, self.b = self.model.add_parameters((3, 8)), self.model.add_parameters((3,))

    def scores(self, words):
        nodes = [self.words[w] for w in words]
        rng = random.Random(sum(words))
        while len(nodes) > 1:
            k = rng.randrange(len(nodes) - 1)
            nodes[k : k + 2] = [ab.tanh(self.c + self.U * ab.concatenate(nodes[k : k + 2]))]
        return ab.affine_transform([self.b, self.W, nodes[0]])

    def loss(self, words):
        return ab.pickneglogsoftmax(ab.dropout(self.scores(words), 0.5), len(words) % 3)


def sentences(seed, count):
    rng = random.Random(seed)
    return [[rng.randrange(50) for _ in range(rng.randint(1, 9))] for _ in range(count)]


def train(network, policy, trainer=ab.AdamTrainer, minibatches=12):
    """Losses and parameters after some updates; everything random follows from the seed, thread by thread."""
    net = network()
    trainer = trainer(net.model)
    losses = []
    for part in range(minibatches):
        ab.renew_cg(autobatching=policy)
        loss = ab.esum([net.loss(words) for words in sentences(part, 6)])
        losses.append(loss.value())
        loss.backward()
        trainer.update()
    return losses, values_of(net.model)


# Training in threads --------------------------------------------------------------------------------------------------


def test_two_threads_get_what_each_gets_alone():
    """Two models, two policies, two trainers, dropout in both: bit for bit."""
    jobs = [
        lambda: train(Acceptor, "ratio"),
        lambda: train(Trees, "agenda", ab.SimpleSGDTrainer),
        lambda: train(Trees, "depth"),
    ]
    ab.reset_random_seed(5)
    alone = [in_threads(job)[0] for job in jobs]
    for _ in range(2):
        ab.reset_random_seed(5)
        for (losses, values), (expected_losses, expected_values) in zip(in_threads(*jobs), alone, strict=True):
            assert losses == expected_losses
            assert_same_bits(values, expected_values)
    assert len({tuple(losses) for losses, _ in alone}) == 3


def test_the_main_thread_gets_what_another_gets():
    ab.reset_random_seed(7)
    here = train(Acceptor, "ratio", minibatches=3)
    ab.reset_random_seed(7)
    (there,) = in_threads(lambda: train(Acceptor, "ratio", minibatches=3))
    assert here[0] == there[0]
    assert_same_bits(here[1], there[1])


def test_node_types_made_in_many_threads_at_once():
    """The first use of an op for some shapes, in all threads at the same moment, gives one node type."""
    n = 41  # a size nobody else uses

    def job():
        ab.renew_cg()
        x = ab.inputVector(np.linspace(0.1, 1.0, n))
        y = ab.sum_elems(ab.cmult(ab.tanh(x + x), ab.sqrt(x)) - ab.reshape(ab.transpose(x), (n,)))
        return y.type, y.value()

    assert len(set(in_threads(*[job] * 4))) == 1


def test_threads_share_a_model_for_inference():
    """Explicit graphs and the threads' own: no state of a network or of its builder is mixed up."""
    net = Acceptor()
    data = sentences(3, 40)
    ab.renew_cg()
    expected = [net.scores(words).npvalue() for words in data]

    def own_graph():
        found = []
        for _ in range(6):
            ab.renew_cg()
            found.append(ab.npvalues([net.scores(words) for words in data]))
        return found

    def explicit_graphs():
        found = []
        for _ in range(6):
            part = []
            for words in data:
                with ab.Graph():
                    part.append(net.scores(words))
            found.append([e.npvalue() for e in part])
        return found

    for repetitions in in_threads(own_graph, explicit_graphs, own_graph):
        for values in repetitions:
            for value, e in zip(values, expected, strict=True):
                np.testing.assert_allclose(value, e, rtol=1e-5, atol=1e-6)


def test_each_thread_has_its_own_current_graph():
    ab.renew_cg()
    x = ab.inputVector([1.0, 2.0])
    version = ab.cg_version()

    def elsewhere():
        ab.renew_cg()
        return ab.tanh(ab.inputVector([3.0])).value(), ab.cg_version()

    assert in_threads(elsewhere, elsewhere) == [(pytest.approx(np.tanh(3.0), rel=1e-6), 1)] * 2
    assert ab.cg_version() == version
    assert ab.tanh(x).npvalue() == pytest.approx(np.tanh([1.0, 2.0]))


def test_dropout_is_drawn_in_each_thread_by_itself():
    ab.reset_random_seed(11)
    first, second = in_threads(*[lambda: [seeds.draw() for _ in range(5000)]] * 2)
    assert first == second
    ab.reset_random_seed(11)
    assert [seeds.draw() for _ in range(5000)] == first


# Graphs side by side in one thread ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [Acceptor, Trees])
def test_explicit_graphs_interleaved(network):
    """Sentences recorded word by word in turn, each in a graph of its own, and computed in another order."""
    net, data = network(), sentences(9, 6)
    ab.renew_cg()
    expected, gradients = [], []
    for words in data:
        score = net.scores(words)
        expected.append(score.npvalue())
        net.model.reset_gradient()
        ab.sum_elems(score).backward()
        gradients.append([p.grad_as_array() for p in net.model.parameters_list()])
    graphs = [ab.Graph() for _ in data]
    found = [None] * len(data)
    for k in (3, 0, 5, 1, 4, 2):
        with graphs[k]:
            found[k] = net.scores(data[k])
    for k in (5, 2, 0, 4, 1, 3):
        np.testing.assert_array_equal(found[k].npvalue(), expected[k])
        net.model.reset_gradient()
        with graphs[k]:
            ab.sum_elems(found[k]).backward()
        assert_same_bits([p.grad_as_array() for p in net.model.parameters_list()], gradients[k])


def test_a_graph_inside_a_graph():
    model = ab.ParameterCollection()
    W = model.add_parameters((3, 3))
    with ab.Graph() as one:
        x = ab.inputVector([1.0, 2.0, 3.0])
        with ab.Graph() as two:
            b = W * ab.inputVector([4.0, 5.0, 6.0])
        a = W * x
    assert len(one) == 2 and len(two) == 2
    c, d = ab.sum_elems(a), ab.sum_elems(b)
    np.testing.assert_allclose(a.npvalue(), W.as_array() @ [1, 2, 3], rtol=1e-5)
    np.testing.assert_allclose(b.npvalue(), W.as_array() @ [4, 5, 6], rtol=1e-5)
    c.backward()
    d.backward()
    np.testing.assert_allclose(W.grad_as_array(), np.tile([5.0, 7.0, 9.0], (3, 1)))
    with pytest.raises(ValueError, match="different graphs"):
        a + b


def test_states_of_two_graphs_take_turns():
    net = Acceptor()
    net.lstm.set_dropout(0.3)
    words = [3, 1, 4, 1, 5]

    def run(graphs):
        """Outputs of each graph, their states advanced in turn."""
        ab.reset_random_seed(2)
        states, outputs = [], [[] for _ in graphs]
        for graph in graphs:
            with graph:
                states.append(net.lstm.initial_state())
                states[-1].add_input(net.words[0])  # draws the masks
        for word in words:
            for k, graph in enumerate(graphs):
                with graph:
                    states[k] = states[k].add_input(net.words[word])
                    outputs[k].append(states[k].output())
        return [[e.npvalue() for e in out] for out in outputs]

    one, two = run([ab.Graph(), ab.Graph()])
    (alone,) = run([ab.Graph()])
    assert_same_bits(one, alone)
    assert any((a != b).any() for a, b in zip(one, two, strict=True))


# What is left ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_collector():
    """Reference counts alone: what dies here is part of no cycle."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def used(network):
    """A graph in which everything was done that can be done, and what hangs on it."""
    net = network()
    with ab.Graph() as graph:
        loss = ab.esum([net.loss(words) for words in sentences(1, 4)])
        value = loss.value()
        loss.backward(full=True)
        loss.gradient()
        ab.cg_checkpoint()
        inside = net.loss([1, 2, 3])
        inside.value()
        ab.cg_revert()
    return net, graph, loss, value


@pytest.mark.parametrize("network", [Acceptor, Trees])
def test_a_graph_dies_with_its_last_expression(no_collector, network):
    net, graph, loss, value = used(network)
    watched = weakref.ref(graph)
    del graph
    assert watched() is not None and loss.value() == value
    del loss
    assert watched() is None
    parameters = [weakref.ref(p) for p in net.model.parameters_list() + net.model.lookup_parameters_list()]
    del net
    assert all(p() is None for p in parameters)


def test_a_dropped_graph_lets_go_of_what_it_used(no_collector):
    net = Acceptor()
    ab.renew_cg()
    loss = net.loss([1, 2, 3])
    loss.backward()
    graph, parameter = weakref.ref(ab.current_graph()), weakref.ref(net.W)
    del net
    assert parameter() is not None
    ab.renew_cg()
    assert parameter() is None
    assert str(loss).startswith("expression ")
    del loss
    assert graph() is None


def test_an_error_holds_no_graph(no_collector):
    ab.renew_cg()
    graph = weakref.ref(ab.current_graph())
    x = ab.inputVector([1.0, 2.0])
    try:
        x + ab.inputVector([1.0, 2.0, 3.0])
    except ValueError:
        pass
    del x
    ab.renew_cg()
    assert graph() is None


def test_memory_is_used_again():
    """In steady state nothing grows: neither what graphs hold, nor what is kept for the next one, nor node types."""
    net = Acceptor()
    trainer = ab.AdamTrainer(net.model)
    held = []
    for part in range(60):
        ab.renew_cg()
        loss = ab.esum([net.loss(words) for words in sentences(part % 10, 8)])
        loss.value()
        loss.backward()
        trainer.update()
        held.append((ab.memory(), len(ab.graph.TYPES.records)))
    for (memory, types), (earlier, earlier_types) in zip(held[20:], held[10:-10], strict=True):
        assert memory == earlier
        assert types == earlier_types


def test_chunks_come_back_to_where_they_were():
    """Also where values are asked for in between, small needs before large ones: no chunk is joined anew each time."""
    chunks = []
    for _ in range(12):
        graph = ab.renew_cg()
        x = ab.inputVector(np.ones(2000))
        ab.sum_elems(x).value()
        ys = [ab.tanh(x * (1.0 + k)) for k in range(400)]
        ab.esum(ys).value()
        ab.sum_elems(ab.esum([ab.square(y) for y in ys])).backward(full=True)
        arenas = graph.execution.values, graph.execution.gradients, graph.execution.tables
        chunks.append([[start for start, _ in arena.spans()] for arena in arenas])
    assert all(len(starts) == 1 for starts in chunks[-1])
    assert chunks[4:] == [chunks[4]] * 8


def test_what_ran_a_graph_runs_the_next_one_of_its_dtype():
    """Also where graphs of two dtypes take turns, after many of one of them at once."""
    several = []
    for _ in range(8):
        with ab.Graph(dtype="float64") as graph:
            ab.tanh(ab.inputVector([1.0, 2.0])).value()
        several.append(graph)
    for graph in several:
        graph.drop()
    found = []  # kept, so that no two have one address
    for _ in range(6):
        for dtype in ("float32", "float64"):
            ab.configure(dtype=dtype)
            graph = ab.renew_cg()
            ab.tanh(ab.inputVector([1.0, 2.0])).value()
            found.append(graph.execution)
    assert len({id(execution) for execution in found}) <= 4


def test_the_pool_does_not_keep_one_chunk_of_every_size():
    """Minibatches that grow from one to the next leave behind what the largest one needs, not the sum of all."""
    ab.free_memory()
    for n in range(1, 41):
        ab.renew_cg()
        x = ab.inputVector(np.ones(50_000 * n))
        ab.sum_elems(ab.tanh(x + x)).value()
        largest = ab.memory()["values_used"]
    ab.renew_cg()
    assert ab.memory()["pool"] < 4 * largest
    ab.free_memory()
    assert ab.memory()["pool"] == 0


def test_reverted_parts_do_not_add_up():
    net = Trees()
    ab.renew_cg()
    net.loss([1, 2, 3, 4]).value()
    sizes = []
    for _ in range(30):
        ab.cg_checkpoint()
        net.loss([5, 6, 7, 8, 9]).backward()
        sizes.append({k: v for k, v in ab.memory().items() if k != "inputs_reserved"})
        ab.cg_revert()
    assert sizes[5:] == [sizes[5]] * 25


def test_new_inputs_in_an_old_graph_do_not_add_up():
    """`set` and compute again, many times: values and tables are written where they were."""
    model = ab.ParameterCollection()
    W = model.add_parameters((3, 3))
    ab.renew_cg()
    x = ab.vecInput(3)
    loss = ab.sum_elems(ab.tanh(W * x))
    sizes = []
    for k in range(30):
        x.set([float(k), 1.0, 2.0])
        assert loss.value() == pytest.approx(np.tanh(W.as_array() @ [k, 1.0, 2.0]).sum(), rel=1e-4, abs=1e-4)
        loss.backward()
        sizes.append(ab.memory())
    assert sizes[2:] == [sizes[2]] * 28

"""What runs in the background changes nothing but the time: whatever a program can see waits for it."""

import gc
import os
import re
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from laws import FLOAT32_GRAPH, agree, close, in_one_go
from strategies import examples, graphs
from test_divided import in_a_process

import autobatch as ab
from autobatch import background, threads
from autobatch.background import running
from autobatch.execute import Execution
from autobatch.graph import PARAMETERS
from autobatch.kernels import _threads
from autobatch.kernels._jit import LENGTH, SIZES, SLOTS
from autobatch.kernels.update_rows import update_rows
from autobatch.schedule import POLICIES
from autobatch.trainers.tables import Numbers

TRAINERS = [getattr(ab, name) for name in ab.trainers.__all__ if name != "Trainer"]


@pytest.fixture
def able(monkeypatch):
    """Two threads, no table too small for the background, and this thread is the only one that runs any."""
    background.wait()
    monkeypatch.setattr(threads, "WORTH", 0)
    monkeypatch.setattr(threads, "count", lambda: 2)
    monkeypatch.setattr(background._State, "thread", threading.get_ident())
    monkeypatch.setattr(background._State, "others", 0)
    yield
    background.wait()


@pytest.fixture
def late(able, monkeypatch):
    """Nothing in the background begins before somebody waits for it: who does not, sees what was there before."""
    put_in_queue, finish = threads._Board.put_in_queue, threads._Board.finish

    def begin(board):
        board.words[_threads.LEADING] = 0
        finish(board)

    def hold(board, *order):
        if board.words[_threads.QUEUED] - board.words[_threads.FINISHED] == _threads.ROOM:
            begin(board)
        while board.finished() and board.words[_threads.LEADING]:  # who was at work on the queue is not gone yet
            time.sleep(0)
        board.words[_threads.LEADING] = 1  # as if somebody were at work on the queue
        put_in_queue(board, *order)

    monkeypatch.setattr(threads._Board, "put_in_queue", hold)
    monkeypatch.setattr(threads._Board, "finish", begin)


class Net:
    """Something of everything: a table by rows, in a minibatch and as a whole, matrices, an LSTM, an input."""

    def __init__(self, dtype="float32", trainer=ab.MomentumSGDTrainer, clip=0.0, average=False):
        ab.reset_random_seed(3)
        ab.configure(dtype=dtype)
        self.model = ab.ParameterCollection(dtype=dtype)
        self.table = self.model.add_lookup_parameters((12, 6), init=0.4)
        self.whole = self.model.add_lookup_parameters((4, 5), init=0.4)
        self.lstm = ab.VanillaLSTMBuilder(1, 6, 5, self.model)
        self.W, self.b = self.model.add_parameters((4, 5)), self.model.add_parameters((4,))
        if trainer is ab.EGTrainer:
            for p in self.everything():
                p.values = np.abs(p.values) + 0.1
        self.trainer = trainer(self.model)
        self.trainer.set_clip_threshold(clip)
        if average:
            self.trainer.exponential_moving_average(0.9)
        self.graph = self.losses = None

    def everything(self):
        return self.model.parameters_list() + self.model.lookup_parameters_list()

    def loss(self, words):
        self.graph = ab.renew_cg()
        self.first = self.table[words[0]]
        self.x = ab.inputTensor(np.linspace(0, 1, 5), reusable_expr=True)
        outputs = self.lstm.initial_state().transduce([self.first, *(self.table[w] for w in words[1:])])
        self.states = outputs
        weights = ab.transpose(self.whole)
        self.part = self.states[0][1:4]
        scores = [self.W * h + self.b + weights * self.x for h in outputs]
        self.other = ab.sum_elems(self.part)
        scores[0] += self.other
        several = ab.sum_batches(ab.sum_elems(ab.square(ab.lookup_batch(self.table, [1, 1, 2]))))
        return several + ab.esum([ab.pickneglogsoftmax(s, w % 4) for s, w in zip(scores, words, strict=True)])

    def step(self, words=(1, 2, 3, 5), update=True):
        """Do what is left in the background; return the loss."""
        loss = self.loss(list(words))
        self.value = loss.value()
        loss.backward()
        if update:
            self.trainer.update()
        return loss

    def numbers(self):
        return [array for p in self.everything() for array in (p.as_array(), p.grad_as_array())]


def same_bits(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def both_ways(job):
    """Return what a job gives with and without a background."""
    ab.configure(background=False)
    expected = job()
    ab.configure(background=True)
    return job(), expected


# Laws -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_of_graphs(late, policy):
    @examples(20)
    @given(graphs())
    def check(case):
        ab.configure(background=False)
        expected = in_one_go(case)[0].gradients()
        ab.configure(background=True)
        recording, _ = in_one_go(case, "float32", policy)
        agree(recording.computed(), case.values, FLOAT32_GRAPH, "value of instance, step")
        close(recording.loss.npvalue(), [case.loss(case.values)], FLOAT32_GRAPH, "loss")
        agree(recording.gradients(), expected, FLOAT32_GRAPH, "gradient of parameter")

    check()


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_training(late, trainer, dtype, clip):
    """Every trainer, to the bit."""

    def train():
        net = Net(dtype, trainer, clip)
        losses = []
        for k in range(6):
            net.step([k, 3, 2 * k, 7])
            losses.append(net.value)
        return [*losses, *net.numbers()]

    same_bits(*both_ways(train))


def test_training_as_it_comes(able):
    """Helpers begin when they like."""

    def train():
        net = Net()
        losses = []
        for k in range(300):
            net.step([k % 12, 3, 5])
            losses.append(net.value)
        return [*losses, *net.numbers()]

    same_bits(*both_ways(train))


# Whoever looks, waits -------------------------------------------------------------------------------------------------


def _arrays(net):
    return [
        np.array(getattr(p, name)) for p in net.everything() for name in ("values", "gradients", "touched") if hasattr(p, name)
    ]


def _reads(*functions):
    return lambda net, folder: [np.array(f(net)) for f in functions]


def _does(function):
    def access(net, folder):
        function(net)
        return net.numbers()

    return access


def _save(net, folder):
    net.model.save(str(folder / "model"))
    return [np.frombuffer((folder / "model").read_bytes(), np.uint8)]


def _save_one(net, folder):
    net.table.save(str(folder / "table"))
    return [np.frombuffer((folder / "table").read_bytes(), np.uint8)]


def _save_trainer(net, folder):
    net.trainer.save(str(folder / "trainer"))
    with np.load(folder / "trainer") as found:
        return [found[name] for name in sorted(found.files) if found[name].dtype.kind == "f"]


def _populate_trainer(net, folder):
    other = Net()
    other.step()
    other.trainer.save(str(folder / "other"))
    net.step()
    net.trainer.populate(str(folder / "other"))
    net.step()
    return net.numbers()


def _populate(net, folder):
    net.model.save(str(folder / "model"))
    net.step([3, 3])
    net.model.populate(str(folder / "model"))
    return net.numbers()


def _drawn(net, folder):
    ab.dump_cg(str(folder / "graph"), show_values=True, show_gradients=True)
    return [np.array(re.findall(r"-?[0-9]+\.[0-9e+-]+", (folder / "graph").read_text()), float)]


def _set_input(net, folder):
    loss = net.losses
    net.x.set(np.linspace(2, 3, 5))
    loss.backward()
    return [loss.value(), *net.numbers()]


def _set_row(net, folder):
    net.first.set(9)
    net.losses.backward()
    return [net.losses.value(), *net.numbers()]


def _go_on(net, folder):
    later = ab.esum([ab.sum_elems(ab.square(h)) for h in net.states])
    later.backward()
    return [later.value(), *net.numbers()]


def _revert(net, folder):
    ab.cg_checkpoint()
    loss = ab.esum([ab.sum_elems(ab.square(h)) for h in net.states])
    loss.backward()
    ab.cg_revert()
    y = ab.esum([ab.sum_elems(ab.cube(h)) for h in net.states])
    y.backward()
    return [y.value(), *net.numbers()]


def _averaged(net, folder):
    net.trainer.swap_params_to_moving_average()
    found = net.numbers()
    net.trainer.swap_params_to_weights()
    return found + net.numbers()


ACCESSES = {
    "as_array": _reads(lambda n: n.W.as_array(), lambda n: n.table.as_array()),
    "grad_as_array": _reads(lambda n: n.W.grad_as_array(), lambda n: n.table.grad_as_array()),
    "rows": _reads(
        *(lambda n: n.table.row_as_array(1), lambda n: n.table.rows_as_array([1, 2])),
        *(lambda n: n.table.row_grad_as_array(1), lambda n: n.table.rows_grad_as_array([1, 2])),
    ),
    "arrays": lambda net, folder: _arrays(net),
    "parameter as expression": _reads(lambda n: n.W.npvalue(), lambda n: n.b.value(), lambda n: n.W.expr(False).npvalue()),
    "tensor of a parameter": _reads(lambda n: n.W.tensor_value().as_numpy()),
    "dlpack": _reads(lambda n: np.from_dlpack(n.W).copy()),
    "gradients of nodes": _reads(lambda n: n.states[0].gradient(), lambda n: n.x.gradient(), lambda n: n.W.gradient()),
    "gradient of a row": _reads(lambda n: n.first.gradient()),
    "gradient of a view": _reads(lambda n: n.part.gradient()),
    "gradient of a parameter": _reads(lambda n: n.b.gradient()),
    "a new graph": lambda net, folder: [net.loss([4, 5]).value()],
    "computed again": _reads(lambda n: n.losses.value(recalculate=True)),
    "drawn": _drawn,
    "set an input": _set_input,
    "set a row": _set_row,
    "go on in the same graph": _go_on,
    "checkpoints": _revert,
    "backward of another loss": _does(lambda n: n.other.backward()),
    "backward twice": _does(lambda n: n.losses.backward()),
    "save": _save,
    "save a table": _save_one,
    "save a trainer": _save_trainer,
    "populate": _populate,
    "populate a trainer": _populate_trainer,
    "set_value": _does(lambda n: n.W.set_value(np.ones((4, 5)))),
    "values": _does(lambda n: n.W.values.fill(2)),
    "values in place": _does(lambda n: setattr(n.W, "values", n.W.values * 2)),
    "gradients": _does(lambda n: n.W.gradients.fill(2)),
    "zero": _does(lambda n: (n.W.zero(), n.table.zero())),
    "scale": _does(lambda n: (n.W.scale(2), n.table.scale_gradient(0.5))),
    "clip": _does(lambda n: n.W.clip_inplace(-0.1, 0.1)),
    "rows set": _does(lambda n: (n.table.init_row(1, np.ones(6)), n.whole.init_from_array(np.ones((2, 5))))),
    "reset_gradient": _does(lambda n: n.model.reset_gradient()),
    "update": _does(lambda n: n.trainer.update()),
    "three updates": _does(lambda n: [n.trainer.update() for _ in range(3)]),
    "clipped update": _does(lambda n: (n.trainer.set_clip_threshold(1e-3), n.trainer.update())),
    "another rate": _does(lambda n: (n.trainer.set_learning_rate(7), n.trainer.update())),
    "restart": _does(lambda n: (n.trainer.restart(), n.step())),
    "not updated": _does(lambda n: (n.W.set_updated(False), n.step())),
    "all rows": _does(lambda n: (n.trainer.set_sparse_updates(False), n.step())),
    "a new parameter": _does(lambda n: (n.model.add_parameters((300, 3)), n.step())),
    "weight decay": _does(lambda n: (n.model.set_weight_decay_lambda(0.1), n.step(), n.step())),
    "another trainer": _does(lambda n: (ab.AdamTrainer(n.model).update(), n.step())),
    "averages": _averaged,
    "swapped": _does(lambda n: (n.trainer.swap_params_to_moving_average(), n.step(), n.step())),
}


@pytest.mark.parametrize("update", ["none", "plain", "clipped"])
@pytest.mark.parametrize("access", ACCESSES)
def test_every_access_waits(late, tmp_path, access, update):
    def job():
        average = access in ("averages", "swapped")
        net = Net(average=average, clip=0.5 if update == "clipped" else 0.0)
        net.step()
        loss = net.losses = net.step([2, 7, 2], update != "none")
        assert running() == (ab.configured()["background"] and not (average and update == "clipped"))
        found = [*ACCESSES[access](net, tmp_path), loss.value() if loss.graph.recorded_types else 0, *net.numbers()]
        ab.wait()
        return found

    same_bits(*both_ways(job))


def test_values_do_not_wait(late):
    net = Net()
    net.step()  # the first update makes tables
    loss = net.step()
    assert loss.value() == net.value and running()
    assert net.states[0].npvalue().shape == (5,)
    assert loss.tensor_value().as_numpy().size == 1 and running()
    ab.wait()
    assert not running()


def test_a_loop_that_reads_losses_only_is_never_alone_with_python(late):
    """Each backward is still to be done when recording of the next minibatch ends."""
    net = Net()
    net.step()
    for _ in range(3):
        loss = net.loss([1, 2, 3])
        assert loss.value() == loss.value() and not running()
        loss.backward()
        assert running()
        net.trainer.update()
        assert running()


def test_more_tables_than_there_is_room_for(late):
    """A graph that was computed piece by piece has a backward table for each piece."""

    def job():
        net = Net()
        ab.renew_cg()
        state = net.lstm.initial_state()
        for k in range(3 * _threads.ROOM):
            state = state.add_input(net.table[k % 12])
            state.output().value()
        ab.sum_elems(state.output()).backward()
        net.trainer.update()
        return net.numbers()

    same_bits(*both_ways(job))


def test_a_small_table_behind_a_large_one(late, monkeypatch):
    """What is not worth the background waits for what is in it."""

    def job():
        net = Net()
        ab.renew_cg()
        h = net.lstm.initial_state().add_input(net.table[1]).output()
        h.value()
        loss = ab.sum_elems(ab.square(net.W * h))
        loss.backward()
        assert not running()
        return net.numbers()

    start, calls = background.start, []

    def only_first(*arguments):
        if arguments[-1][0].backward is None:
            return False
        calls.append(len(calls) % 2 == 0 and start(*arguments))
        return calls[-1]

    monkeypatch.setattr(background, "start", only_first)
    same_bits(*both_ways(job))
    assert calls == [False, False, True, False]


def test_memory_of_a_dropped_graph_stays(late):
    """Also where a graph had to ask for memory several times, which it gives up for one piece of all that size."""

    def job():
        ab.free_memory()
        W = ab.ParameterCollection().add_parameters((1000, 1000), init=0.01)
        ab.renew_cg()
        h = ab.inputTensor(np.linspace(-1, 1, 64_000).reshape(1000, 64), batched=True)
        for _ in range(6):
            h = ab.tanh(W * h)
            h.npvalue()
        ab.sum_batches(ab.sum_elems(h)).backward()
        del h
        ab.renew_cg()
        others = [np.full(50_000 * k, np.nan) for k in range(1, 40)]
        return [W.grad_as_array(), len(others)]

    same_bits(*both_ways(job))


def arrays_in(thing):
    """Return all arrays that something holds."""
    if isinstance(thing, np.ndarray):
        return [thing]
    if isinstance(thing, dict):
        thing = list(thing.values())
    if isinstance(thing, (list, tuple)):
        return [a for one in thing for a in arrays_in(one)]
    if isinstance(thing, Numbers):
        return arrays_in(thing.values)
    return [] if thing is None else arrays_in(thing.array)


def addresses_in(table):
    """Return the addresses in a table of a trainer: of slots, sizes, and of what sizes of `update_rows` tell."""
    at = 0
    while at < len(table):
        length = table[at + LENGTH]
        slots = range(at + SLOTS, at + length - 1, 2)
        end = (table[at + SIZES] - table.ctypes.data) // 8  # where the sizes begin
        yield table[at + SIZES]
        yield from (table[k] for k in slots if k < end)
        if table[at] == update_rows.address("float32"):
            yield from (n for n in table[end + 3 : at + length] if n > 1 << 20)
        at += length


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_queued_update_holds_all_that_it_works_on(late, trainer):
    net = Net(trainer=trainer, clip=5.0)
    net.step()
    net.model.set_weight_decay(0.1)
    for table in (net.trainer._survey, net.trainer._steps):
        spans = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in arrays_in(table.using)]
        found = list(addresses_in(table.array))
        assert len(found) > 20
        assert all(any(start <= address < end for start, end in spans) for address in found)


def test_a_trainer_that_goes(late):
    """What it counted in is not given to anybody else."""

    def job():
        net = Net(clip=0.0)
        net.step()
        net.step([2, 7, 2])
        del net.trainer
        mine = [np.array([1.0, 2.0]) for _ in range(50)] + [np.array([3.0]) for _ in range(50)]
        return [*net.numbers(), *mine]

    same_bits(*both_ways(job))


# Backward is planned while forward runs, if it is likely to be asked for ------------------------------------------------


@pytest.fixture
def drafts(monkeypatch):
    """The losses of which backward was planned."""
    made, draft = [], Execution._draft

    def noted(self, graph, loss, full):
        made.append(loss)
        return draft(self, graph, loss, full)

    monkeypatch.setattr(Execution, "_draft", noted)
    return made


def trained():
    """Return a net after some steps of training: both executions that take turns have seen that backward comes next."""
    net = Net()
    for _ in range(4):
        net.step()
    return net


def test_backward_is_planned_while_forward_runs(late, drafts):
    net = trained()
    loss = net.loss([1, 2, 3])
    drafts.clear()
    loss.value()
    assert drafts == [loss.index]
    loss.backward()
    assert drafts == [loss.index]


def test_not_where_backward_does_not_come(late, drafts):
    net = trained()
    drafts.clear()
    for _ in range(6):
        net.loss([1, 2, 3]).value()
    assert len(drafts) <= 2  # each execution once
    with ab.inference():
        net.loss([1, 2, 3]).value()
    drafts.clear()
    net.step()
    assert len(drafts) == 1


def _other_loss(net, loss):
    net.other.backward()


def _full(net, loss):
    loss.backward(full=True)
    return net.x.gradient()


def _more_nodes(net, loss):
    more = loss + ab.sum_elems(ab.square(net.W * net.states[1]))
    loss.backward()
    more.backward()
    return more.value()


def _more_computed(net, loss):
    more = loss + ab.sum_elems(ab.square(net.W * net.states[1]))
    more.value()
    loss.backward()
    first = net.W.gradient()
    more.backward()
    return np.concatenate([first, net.W.gradient()])


def _input_changed(net, loss):
    net.x.set(np.linspace(4, 5, 5))
    loss.backward()
    return loss.value()


def _reverted(net, loss):
    ab.cg_checkpoint()
    ab.sum_elems(net.W * net.states[0]).value()
    ab.cg_revert()
    other = ab.sum_elems(net.W * net.states[1])
    other.value()
    other.backward()


def _gradients_of_before(net, loss):
    loss.backward()
    before = net.states[0].gradient()
    later = ab.sum_elems(ab.square(net.W * net.states[1]))
    later.value()
    np.testing.assert_array_equal(net.states[0].gradient(), before)
    net.part.gradient()  # of a view: backward is planned anew for it
    later.backward()
    return net.states[1].gradient()


def _never(net, loss):
    net.loss([4, 5]).backward()


GUESSES = [_other_loss, _full, _more_nodes, _more_computed, _input_changed, _reverted, _gradients_of_before, _never]


@pytest.mark.parametrize("course", GUESSES, ids=lambda f: f.__name__[1:])
def test_a_wrong_guess_changes_nothing(late, course):
    def job():
        net = trained()
        loss = net.loss([1, 2, 3, 4])
        loss.value()
        found = course(net, loss)
        net.trainer.update()
        return [0 if found is None else found, *net.numbers()]

    same_bits(*both_ways(job))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_planning_ahead_fails(late, monkeypatch, error):
    """Without memory for backward there is a value all the same; and whoever stops the program can go on from there."""

    def job():
        net = trained()
        loss = net.loss([1, 2, 3])

        def failing(*arguments):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Execution, "_draft", failing)
            if error is KeyboardInterrupt and ab.configured()["background"]:
                with pytest.raises(KeyboardInterrupt):
                    loss.value()
                assert not running()
            else:
                loss.value()
        value = loss.value()
        loss.backward()
        net.trainer.update()
        return [value, *net.numbers()]

    same_bits(*both_ways(job))


# Who might notice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["values", "gradients", "touched"])
def test_no_background_while_the_program_holds_an_array(late, name):
    """What it holds is the memory itself, so it changes as soon as backward or an update has returned."""
    net = Net()
    net.step()
    held = getattr(net.table, name)
    part, other = held[3:5], getattr(net.whole, name).reshape(2, -1)
    for _ in range(2):
        before = held.copy()
        net.step()
        assert not running()
        assert name == "touched" or (held != before).any() or not held.any()
        np.testing.assert_array_equal(held, getattr(net.table, name))
    del held, other
    net.step()
    assert not running()
    del part
    net.step()
    assert running()


def test_arrays_of_a_model_that_is_gone_are_no_ones(late):
    net = Net()
    net.W.values.fill(1)
    held = Net().W.values
    net.step()
    assert not running()
    del held
    gc.collect()
    net.step()
    assert running() and not background._State.lent


def test_arrays_in_other_libraries_count(late):
    net = Net()
    net.step()
    net.step()
    assert running()
    view = np.from_dlpack(net.W)
    net.step()
    assert not running()
    np.testing.assert_array_equal(view, net.W.as_array().astype(np.float32))
    del view
    net.step()
    assert running()


def test_values_in_place(able):
    W = ab.ParameterCollection().add_parameters((2, 3), init=ab.NumpyInitializer(np.arange(6.0).reshape(2, 3)))
    W.values *= 2
    W.gradients += 3
    np.testing.assert_array_equal(W.as_array(), 2 * np.arange(6.0).reshape(2, 3))
    W.values = W.values[::-1]
    np.testing.assert_array_equal(W.values, 2 * np.array([5, 2, 4, 1, 3, 0]))
    np.testing.assert_array_equal(W.grad_as_array(), np.full((2, 3), 3))


def test_another_thread_of_python(able):
    """Several threads that run graphs would wait for each other; after a while alone there is a background again."""
    net = Net()
    net.step()
    net.step()
    assert running()
    other = threading.Thread(target=lambda: Net().loss([1, 2]).value())
    other.start()
    other.join()
    assert not running()
    net.step()
    assert not running()
    for _ in range(background._ALONE):
        net.step()
    net.step()
    assert running()


def test_where_it_cannot_be(able, monkeypatch):
    """Nothing is in the background where it is not wanted, or where helpers cannot have what they need."""
    net = Net()
    net.step()

    def found():
        net.step()
        return running()

    assert found()
    with threads_busy():
        assert not found()
    for patch in (
        (threads, "can_be_told", lambda board: False),
        (threads, "count", lambda: 1),
        (threads, "WORTH", 1 << 60),
        (background._State, "ended", True),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(*patch)
            assert not found()
    assert found()
    ab.configure(background=False)
    assert not running() and not found()
    ab.configure(background=True)
    assert found()
    ab.wait()
    monkeypatch.setitem(PARAMETERS.mirrors, -1, None)
    assert not background.start(np.zeros(0, np.int64), 0, "float32", 1, None)


class threads_busy:
    """As if a table of another thread had the helpers."""

    def __enter__(self):
        background.wait()
        threads.board().busy.acquire()

    def __exit__(self, *error):
        threads.board().busy.release()


def test_memory_comes_back(late):
    """A dropped graph keeps its memory until its tables are done, and then the next one has it."""
    net = Net()
    chunks = []
    for _ in range(5):
        net.step()
        net.loss([1, 2, 3]).value()
        chunks.append([[start for start, _ in a.spans()] for a in (net.graph.execution.values, net.graph.execution.tables)])
    assert chunks[1:] == [chunks[1]] * 4
    net.step()
    ab.renew_cg()
    assert running()
    assert ab.memory()["pool"] > 0 and not running()
    net.step()
    ab.free_memory()
    assert not running()


# Ends -----------------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, numpy as np, autobatch as ab
from autobatch import background, threads
from autobatch.background import running
threads.WORTH = 0
ab.configure(threads=2)
model = ab.ParameterCollection()
W = model.add_parameters((700, 700))
trainer = ab.SimpleSGDTrainer(model, 1e-6)
trainer.set_clip_threshold(0)
def step():
    ab.renew_cg()
    xs = [ab.inputVector(np.full(700, 0.01 * k)) for k in range(64)]
    for _ in range(4):
        xs = [ab.tanh(W * x) for x in xs]
    loss = ab.esum([ab.sum_elems(x) for x in xs])
    value = loss.value()
    loss.backward()
    trainer.update()
    return value
step(), step()
"""


def test_a_process_ends_with_something_in_the_background():
    assert in_a_process(PROGRAM + "print(background.running())") == "True\n"
    assert in_a_process(PROGRAM + "del model, W, trainer; ab.renew_cg(); print(background.running())") == "True\n"
    text = "import atexit\n@atexit.register\ndef last(): print(step() > step(), background.running())\n"
    assert in_a_process(text + PROGRAM) == "True False\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_with_something_in_the_background():
    text = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of forks with threads
step()
child = os.fork()
if child == 0:
    values = W.as_array()
    step(), step()
    os._exit(0 if background.running() and (W.as_array() != values).any() else 1)
step()
print(os.waitpid(child, 0)[1], step() != step())
"""
    assert in_a_process(PROGRAM + text) == "0 True\n"


def test_the_blas_gets_its_threads_back():
    text = """
from threadpoolctl import threadpool_info
def used():
    return {i["num_threads"] for i in threadpool_info() if i["user_api"] == "blas"}
for _ in range(20):
    step()
print(background.running())
ab.wait()
print(used(), threads.count())
step()
ab.configure(threads=1)
step()
print(background.running(), used())
"""
    assert in_a_process(PROGRAM + text) == "True\n{2} 2\nFalse {1}\n"

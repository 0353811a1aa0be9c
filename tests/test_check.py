"""Debug mode (`AUTOBATCH_CHECK=1`) lets good tables run unchanged, and finds each wrong word and each kernel that strays."""

import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from laws import run
from strategies import examples, plans

import autobatch as ab
from autobatch import check, execute
from autobatch.expression import record
from autobatch.graph import ARGUMENTS, IMMEDIATES, ROW, TYPES
from autobatch.kernels._errors import InternalError
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, KERNEL, SIZES, SLOTS, integers, item, kernel
from autobatch.kernels._op import OPS, Lowering, Op, Operand
from autobatch.kernels._rows import zero_rows
from autobatch.memory import array_at
from autobatch.schedule import POLICIES

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def checked(monkeypatch):
    """Debug mode, as the environment would switch it on."""
    monkeypatch.setattr(execute, "CHECKED", True)


def program(dtype="float32", policy="ratio"):
    """A graph with something of everything that the planner knows: (collection, graph, loss)."""
    ab.reset_random_seed(3)
    model = ab.ParameterCollection(dtype=dtype)
    E, F = model.add_lookup_parameters((7, 3)), model.add_lookup_parameters((5, 4))
    W, V, b = model.add_parameters((4, 3)), model.add_parameters((4, 4)), model.add_parameters((4,))
    lstm = ab.LSTMBuilder(1, 3, 4, model)
    losses = []
    with ab.Graph(dtype, policy) as graph:
        for words in ([1, 2, 3], [4, 1], [5, 6, 2, 2]):
            outputs = lstm.initial_state().transduce([E[w] for w in words])
            x = ab.affine_transform([b, W, E[words[0]]])
            columns = ab.concatenate_cols(outputs[:2])
            h = ab.tanh(V * x)
            y = h + ab.cmult(outputs[-1], x)
            if len(words) == 3:  # the other h are first written to by a batch that adds to this one
                losses.append(ab.dot_product(h, ab.exp(y)))
            z = ab.sum_elems(ab.transpose(columns)) + ab.pick(y, len(words) % 3)
            rows = ab.lookup_batch(F, [words[0] % 5, words[1] % 5])
            q = ab.sum_batches(ab.squared_distance(rows, y))
            kept = ab.dropout(ab.esum(outputs), 0.3)
            losses += [ab.pickneglogsoftmax(y + kept, len(words) % 4) + z * 0.1 + q, ab.pick(columns, words[0] % 3)[1]]
        loss = ab.esum(losses)
    return model, graph, loss


def gradients(model):
    return [p.grad_as_array() for p in model.parameters_list() + model.lookup_parameters_list()]


# What is right --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("full", [False, True])
def test_nothing_changes(monkeypatch, dtype, policy, full):
    found = []
    for on in (False, True):
        monkeypatch.setattr(execute, "CHECKED", on)
        model, graph, loss = program(dtype, policy)
        value = loss.value()
        loss.backward(full=full)
        once = gradients(model)
        loss.backward(full=full)
        with graph:
            found.append((value, once, gradients(model), model.parameters_list()[0].gradient()))
    (value, *plain), (checked_value, *checked_gradients) = found
    assert value == checked_value
    for a, b in zip(plain[0] + plain[1], checked_gradients[0] + checked_gradients[1], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(plain[2], checked_gradients[2])


def test_segments_checkpoints_and_immediate_graphs(checked):
    ab.renew_cg()
    model = ab.ParameterCollection()
    W = model.add_parameters((3, 3))
    x = ab.inputVector([1.0, 2.0, 3.0])
    y = ab.tanh(W * x)
    assert len(y.value()) == 3
    loss = ab.sum_elems(ab.cmult(y, W * y) + y)
    loss.backward()
    ab.cg_checkpoint()
    ab.sum_elems(W * y).backward()
    ab.cg_revert()
    x.set([3.0, 2.0, 1.0])
    ab.sum_elems(W * y + x).backward()
    ab.renew_cg(immediate_compute=True)
    ab.sum_elems(W * ab.inputVector([1.0, 1.0, 1.0])).backward()
    ab.renew_cg()


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_every_op_in_its_memory(checked, op):
    """Legal samples of each op, several in a batch, forward and backward: each kernel stays in its memory and fills it."""

    @examples(3)
    @given(plans(op, 4))
    def check(plan):
        dtype = "float32" if plan.seed % 2 else "float64"
        with np.errstate(all="ignore"):
            run(plan, dtype, "ratio")

    check()


# Tables with a wrong word ---------------------------------------------------------------------------------------------


def verified(job):
    """The calls of a table, checked but not run."""
    checker = check._Checker(job)
    if job.backward is None:
        checker.check_places()
        return list(checker.forward())
    checker.check_gradient_places()
    return list(checker.backward_calls())


def tables(monkeypatch, visit):
    """Run the program in debug mode and call visit(table, job) before each table runs."""
    plain = check.run_checked

    def run_checked(job):
        visit(array_at(job.table, job.words, "int64"), job)
        plain(job)

    monkeypatch.setattr(check, "run_checked", run_checked)
    model, graph, loss = program()
    loss.value()
    loss.backward()
    return model, graph, loss


def means_nothing(words, word):
    """Whether a word of an instruction has no effect: the stride of a single item."""
    return words[ITEMS] == 1 and word > SLOTS and (word - SLOTS) % 2 == 1


def test_every_word_counts(checked, monkeypatch):
    """A table with one word changed is refused before it runs, but for what only shows when it runs (the test after this)."""
    rng, refused, passed = random.Random(1), [], []

    def visit(table, job):
        starts = [(c.instruction.at, c.what, c.instruction.words.copy()) for c in verified(job)]
        for _ in range(200):
            at, what, words = rng.choice(starts)
            word = rng.randrange(len(words))
            if means_nothing(words, word):
                continue
            table[at + word] += rng.choice([1, -1, 4, 8, -8, 64, 1 << 20, 1 << 40, -int(words[word]) - 1])
            if table[at + word] != words[word]:
                try:
                    verified(job)
                except InternalError as error:
                    assert "please report this" in str(error)
                    refused.append(what)
                else:
                    passed.append((what, word))
            table[at + word] = words[word]

    tables(monkeypatch, visit)
    assert len(refused) > 250
    for what, word in passed:
        assert word == FLAGS or "zero" in what or "copy" in what, (what, word)


@pytest.mark.parametrize("what", ["zeros left out", "zeros elsewhere", "flags", "copies left out"])
def test_what_only_shows_when_it_runs(checked, monkeypatch, what):
    """Store for add, add for store, too few zeros, too few copies: refused while the table runs."""
    tried = 0
    for n in range(100):
        seen = {"n": 0, "changed": False}

        def visit(table, job, n=n, seen=seen):
            if job.backward is None:
                return
            for call in verified(job):
                at, words = call.instruction.at, call.instruction.words
                place, by = {
                    "zeros left out": (ITEMS, -1 if "zero" in call.what and words[ITEMS] > 1 else 0),
                    "zeros elsewhere": (SLOTS, 16 if "zero" in call.what and words[SLOTS + 1] >= 0 else 0),
                    "flags": (FLAGS, (-1 if words[FLAGS] & ACCUMULATE else 1) if "argument" in call.what else 0),
                    "copies left out": (ITEMS, -1 if "copy" in call.what and words[ITEMS] > 1 else 0),
                }[what]
                if by:
                    if seen["n"] == n:
                        table[at + place] += by
                        seen["changed"] = True
                        return
                    seen["n"] += 1

        with monkeypatch.context() as patch:
            try:
                tables(patch, visit)
            except InternalError:
                tried += 1
            else:
                assert not seen["changed"], (what, n)
                break
    assert tried > 0


def corrupted(monkeypatch, op, change, backward=False):
    """The text of the error after `change(table, at, segment)` of the instruction of an op."""

    def visit(table, job):
        if (job.backward is not None) == backward:
            for call in verified(job):
                if call.what == op:
                    change(table, call.instruction.at, job.segment)
                    return

    with pytest.raises(InternalError) as caught:
        tables(monkeypatch, visit)
    return str(caught.value)


def test_a_wrong_address_is_named(checked, monkeypatch):
    def change(table, at, segment):
        table[at + SLOTS + 2] = 8

    text = corrupted(monkeypatch, "sum_elems", change)
    assert text.startswith(
        "sum_elems: slot 1 (argument 1 of sum_elems), item 0, leaves its memory\n"
        "  got       0x8, in no memory of this graph, 32 bytes\n"
        "  expected  0x"
    )
    assert "sum_elems((2,4)) -> (1,), 3 nodes: " in text
    assert "of the forward table: [" in text
    assert text.endswith("\n  try       please report this, with the program that led to it")


def test_an_address_of_another_node_is_named(checked, monkeypatch):
    def change(table, at, segment):
        table[at + SLOTS] += 4

    text = corrupted(monkeypatch, "sum_elems", change)
    assert text.startswith("sum_elems: slot 0 (the value), item 0, is at the wrong address\n  got       0x")
    assert "in the arena of values + " in text


def test_a_wrong_count_is_named(checked, monkeypatch):
    def change(table, at, segment):
        table[at + ITEMS] = 2

    text = corrupted(monkeypatch, "sum_elems", change)
    assert text.startswith("sum_elems: the number of items is wrong\n  got       2\n  expected  3\n  batch     ")


def test_a_wrong_stride_is_named(checked, monkeypatch):
    def change(table, at, segment):
        table[at + SLOTS + 3] = 1 << 30

    text = corrupted(monkeypatch, "sum_elems", change)
    assert text.startswith("sum_elems: slot 1 (argument 1 of sum_elems), item 1, leaves its memory\n")


@pytest.mark.parametrize("index", [-1, 4, 1 << 40])
def test_an_immediate_out_of_range_is_named(checked, monkeypatch, index):
    def change(table, at, segment):
        place = table[at + SLOTS + 4]
        segment.lists[(place - segment.lists.ctypes.data) // 8] = index

    text = corrupted(monkeypatch, "pickneglogsoftmax", change)
    assert text.startswith(
        f"pickneglogsoftmax: slot 2 (immediate 1), item 0, is wrong\n  got       {index}\n  expected  3, as recorded in node "
    )
    assert ", below 4\n" in text


def test_an_index_out_of_range_in_the_graph_is_found(checked):
    """What was recorded is not taken on trust either."""
    _, graph, loss = program()
    at = next(k for k, e in enumerate(map(int, graph.recorded_types)) if TYPES.records[e].kind == ROW)
    position = sum(int(TYPES.info[t, ARGUMENTS] + TYPES.info[t, IMMEDIATES]) for t in graph.recorded_types[:at])
    graph.recorded_args[position] = 7
    text = f"node {at} is a row that its table does not have\n  got       7\n  expected  below 7"
    with pytest.raises(InternalError, match=text):
        loss.value()


def test_a_wrong_kernel_is_named(checked, monkeypatch):
    def change(table, at, segment):
        table[at + KERNEL] = zero_rows.address("float32")

    text = corrupted(monkeypatch, "sum_elems", change)
    assert text.startswith("sum_elems: the kernel is wrong\n  got       zero_rows at 0x")
    assert "\n  expected  sum_elems at 0x" in text


def test_a_kernel_at_no_known_address_is_named(checked, monkeypatch):
    def change(table, at, segment):
        table[at + KERNEL] = 12345

    text = corrupted(monkeypatch, "gradient of argument 1 of tanh", change, backward=True)
    assert text.startswith("gradient of argument 1 of tanh: the kernel is wrong\n  got       0x3039, no kernel of this graph")


def test_a_gradient_that_is_not_formed_is_named(checked, monkeypatch):
    def visit(table, job):
        if job.backward is not None:
            for call in verified(job):
                if call.what == "gradient of argument 4 of lstm_step":
                    table[call.instruction.at + ITEMS] -= 1
                    return

    with pytest.raises(InternalError, match="gradient of lstm_step: gradient of argument 4 is not formed once for each node"):
        tables(monkeypatch, visit)


# Kernels that stray ---------------------------------------------------------------------------------------------------


@kernel
def one_past_the_end(ins, T):
    size = integers(ins[SIZES])[0]
    for i in range(ins[ITEMS]):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in range(size):
            y[j] = x[j]
        if i == ins[ITEMS] - 1:
            y[size] = 1


@kernel
def leaves_the_last(ins, T):
    size = integers(ins[SIZES])[0]
    for i in range(ins[ITEMS]):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in range(size - 1):
            y[j] = x[j]


@kernel
def adds_to_what_is_there(ins, T):
    size = integers(ins[SIZES])[0]
    for i in range(ins[ITEMS]):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in range(size):
            y[j] += x[j]


@kernel
def changes_its_argument(ins, T):
    size = integers(ins[SIZES])[0]
    for i in range(ins[ITEMS]):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in range(size):
            y[j] = x[j]
            x[j] = 7


@kernel
def copies(ins, T):
    """A kernel as it should be, forward and (by chance the same) backward: slot 0 = slot 1."""
    size = integers(ins[SIZES])[0]
    for i in range(ins[ITEMS]):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        for j in range(size):
            y[j] = x[j]


def op_of(forward, backward=copies):
    """An op made of kernels, which nobody else gets to see."""
    name = f"op of {forward.name} and {backward.name}"
    op = Op(
        name=name,
        doc="For this test.",
        shape=lambda shapes: shapes[0],
        lower=lambda shapes, out, shared: Lowering(forward, (out.total,), (Operand(backward=backward, needs=()),)),
        reference=None,
        samples=None,
    )
    del OPS[name]
    return op


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("stray", "problem"),
    [
        (one_past_the_end, "wrote outside of its result\n  got       0x[0-9a-f]+, in the arena of values"),
        (
            leaves_the_last,
            r"slot 0 \(the value of .*\) was not written completely\n  got       2 of 8 numbers as they were before",
        ),
        (
            adds_to_what_is_there,
            r"slot 0 \(the value of .*\) was not written completely\n  got       8 of 8 numbers as they were before",
        ),
        (changes_its_argument, "wrote outside of its result\n  got       0x[0-9a-f]+, in the arena of values"),
    ],
    ids=lambda p: p.name if hasattr(p, "name") else "",
)
def test_a_stray_kernel_is_named(checked, dtype, stray, problem):
    with ab.Graph(dtype):
        xs = [ab.tanh(ab.inputVector([1.0, 2.0, 3.0, k])) for k in (1.0, 2.0)]
        ys = [record(op_of(stray), (x,)) for x in xs]
        with pytest.raises(InternalError, match=f"op of {stray.name} and copies: {problem}") as caught:
            ab.esum(ys).value()
    assert f"op of {stray.name} and copies((4,)) -> (4,), 2 nodes: 4, 5\n" in str(caught.value)


@pytest.mark.parametrize(
    ("stray", "problem"),
    [
        (one_past_the_end, "wrote outside of its result\n  got       0x[0-9a-f]+, in the arena of gradients"),
        (leaves_the_last, r"slot 0 \(the gradient of argument 1\) was not written completely"),
        (adds_to_what_is_there, r"slot 0 \(the gradient of argument 1\) was not written completely"),
        (changes_its_argument, "wrote outside of its result\n  got       0x[0-9a-f]+, in the arena of gradients"),
    ],
    ids=lambda p: p.name if hasattr(p, "name") else "",
)
def test_a_stray_kernel_of_a_gradient_is_named(checked, stray, problem):
    model = ab.ParameterCollection()
    W = model.add_parameters((4,))
    with ab.Graph():
        y = record(op_of(copies, stray), (ab.tanh(W),))
        loss = ab.sum_elems(y)
        assert loss.value() == pytest.approx(np.tanh(W.as_array()).sum(), rel=1e-5)
        with pytest.raises(InternalError, match=f"gradient of argument 1 of op of copies and {stray.name}: {problem}"):
            loss.backward()


def test_without_debug_mode_nothing_is_looked_at():
    with ab.Graph():
        x = ab.tanh(ab.inputVector([1.0, 2.0, 3.0, 4.0]))
        assert len(record(op_of(leaves_the_last), (x,)).value()) == 4


# Whole programs -------------------------------------------------------------------------------------------------------


def run_in_debug_mode(*command):
    environment = {**os.environ, "AUTOBATCH_CHECK": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize(
    "command",
    [
        ("examples/lstm_acceptor.py", "--epochs", "2", "--sentences", "8", "--batch", "4"),
        ("examples/tree_lstm.py", "--epochs", "1", "--dropout", "0.3"),
        ("examples/tree_lstm.py", "--epochs", "1", "--model", "rnn", "--policy", "agenda"),
        ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_trainers.py"),
    ],
    ids=["lstm_acceptor", "tree_lstm", "tree_rnn", "test_trainers"],
)
def test_programs_run_in_debug_mode(command):
    run_in_debug_mode(*command)

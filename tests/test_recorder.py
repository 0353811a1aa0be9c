"""The short ways in C: installed where they can be, the same as those in Python, and no way to a crash or a leak."""

import copy
import gc
import inspect
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import textwrap

import numpy as np
import pytest
import test_recording

import autobatch as ab
from autobatch import pieces, recorder

ROOT = pathlib.Path(__file__).parent.parent
MORE, model, at_hand = test_recording.MORE, test_recording.model, test_recording.at_hand
in_c = pytest.mark.skipif(recorder.native is None, reason="recording is in Python here")


def run(program, **environment):
    """Run a program in a process of its own; return it."""
    command = [sys.executable, "-X", "faulthandler", "-W", "error", "-c", textwrap.dedent(program)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600)


def test_it_is_there_where_it_could_be_compiled():
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    header = pathlib.Path(sysconfig.get_path("include"), "Python.h")
    asked_for_python = os.environ.get("AUTOBATCH_RECORDER", "").lower() == "python"
    if not asked_for_python and shutil.which(compiler) and header.exists():
        assert recorder.LANGUAGE == "C"


def test_all_that_is_said_of_recording_holds_in_python_too():
    done = run(
        """
        import sys, pytest
        from autobatch import recorder
        assert recorder.LANGUAGE == "Python" and recorder.native is None
        sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "tests/test_recording.py", "tests/test_steps.py"]))
        """,
        AUTOBATCH_RECORDER="python",
    )
    assert done.returncode == 0 and "100%" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_module_of_another_version_is_left_alone(monkeypatch):
    if recorder.native is None:
        assert recorder._load() is None
        return
    monkeypatch.setattr(recorder.native, "VERSION", recorder.VERSION + 1)
    with pytest.warns(RuntimeWarning, match="another version"):
        assert recorder._load() is None


def test_public_functions_are_what_functions_are():
    assert str(inspect.signature(ab.concatenate)) == "(xs: 'Sequence[Expression]', d: 'int' = 0) -> 'Expression'"
    assert "cell" in inspect.getsource(ab.cell) and "def pick(" in inspect.getsource(ab.pick)
    for function in (ab.tanh, ab.esum, ab.pick, ab.affine_transform, ab.pickneglogsoftmax, ab.softmax):
        assert inspect.isroutine(function) and callable(function) and function.__name__ in repr(function)
        assert copy.deepcopy(function) is function and type(function).__name__ == "function"
        assert getattr(ab, function.__name__) is function and inspect.getdoc(function)


def test_functions_are_bound_to_objects_like_any_other():
    class Layer:
        @ab.cell
        def plain(x):
            return ab.tanh(x)

        activation = ab.tanh

    ab.renew_cg()
    x = ab.inputVector([1.0, 2.0])
    assert Layer.activation(x).dim() == Layer.plain(x).dim() == ((2,), 1)
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        Layer().activation(x)


def test_arguments_by_name_and_wrong_ones():
    ab.renew_cg()
    x, table = ab.inputVector([1.0, 2.0]), ab.ParameterCollection().add_lookup_parameters((3, 2))
    for _ in range(2):
        assert ab.concatenate(xs=[x, x], d=0).dim() == ab.concatenate([x, x], d=0).dim() == ((4,), 1)
        assert ab.tanh(x=x).dim() == ((2,), 1) and ab.pick(x, index=1).dim() == ab.pick(e=x, index=1).dim()
        assert ab.softmax(x, d=0).dim() == ((2,), 1) and ab.pickneglogsoftmax(v=1, x=x).dim() == ((1,), 1)
    nodes = len(ab.current_graph())
    for call in (
        lambda: ab.tanh(),
        lambda: ab.tanh(x, x),
        lambda: ab.esum([x], [x]),
        lambda: ab.cmult(x),
        lambda: ab.pick(),
        lambda: ab.pickneglogsoftmax(x),
        lambda: ab.softmax(x, 0, 0),
        lambda: x.__mul__(),
        lambda: table.__getitem__(),
    ):
        with pytest.raises(TypeError):
            call()
    for bad in (10**30, -(10**30), 2**62):
        for call in (lambda: ab.pick(x, bad), lambda: ab.pickneglogsoftmax(x, bad), lambda: x[bad], lambda: table[bad]):
            with pytest.raises((ab.IndexRangeError, ab.NegativeIndexError)):
                call()
    assert len(ab.current_graph()) == nodes


@pytest.mark.parametrize("name", MORE)
def test_nothing_is_left_behind(name, at_hand):
    def rounds(n):
        for _ in range(n):
            ab.renew_cg()
            operands = at_hand()
            for _ in range(20):
                try:
                    MORE[name](operands)
                except Exception:
                    pass
            operands.clear()
        ab.renew_cg()

    rounds(3)
    gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        rounds(10)
        gc.collect()  # errors hold their frames
        assert sys.getallocatedblocks() - before < 150  # 200 calls
    finally:
        gc.enable()


@in_c
def test_what_only_the_library_calls_checks_what_it_is_given():
    native = recorder.native
    for call in (
        lambda: native.prepare(int, int, int),
        lambda: native.prepare(ab.Expression, int, ab.Graph),
        lambda: native.prepare(1, 2, 3),
        lambda: native.short("unary", len, []),
        lambda: native.short("unary", len, {}, None, int),
        lambda: native.short("row", len, {}),
        lambda: native.short("row", len, int),
        lambda: native.short("step", len, ab.Expression),
        lambda: native.short("cell", len, {}, "two"),
        lambda: native.nodes(int, None, [1, 2], 3),
        lambda: native.nodes(ab.Expression, None, [1, "2"], 3),
        lambda: native.nodes(ab.Expression, None, 1, 3),
        lambda: native.nodes(ab.Expression, None, [1], None),
        lambda: native.nodes(),
        lambda: native.indices((), None, set()),
        lambda: native.indices([], None, 1),
        lambda: type(native.short("unary", len, {}))(),
    ):
        with pytest.raises((TypeError, AttributeError)):
            call()
    with pytest.raises(ValueError, match="no way sideways"):
        native.short("sideways", len, {})
    ab.renew_cg()
    x = ab.inputVector([1.0, 2.0])
    assert native.indices([x, ab.tanh(x)], x.graph, {x.type}) is None and native.indices([], None, set()) == []
    assert native.indices([x, x], x.graph, {x.type}) == [x.index] * 2 and native.indices([x, None], x.graph, {x.type}) is None
    assert native.nodes(ab.Expression, x.graph, range(3, 1), x.type) == []
    # Half-made expressions, and tables that hold something else.
    for wrong in (object.__new__(ab.Expression), object(), None, 1, ab.Expression):
        for way in ("unary", "binary", "operated", "reflected", "with_number", "of_dim", "of_list", "picked"):
            for table in ({}, {x.type: "no number"}, {x.type: (1,)}, {x.type: (1, "two", None)}, {1: {}, 2: [], 0: 7}):
                for args in ((wrong,), (x, wrong), (wrong, x), ([wrong],), ([x, wrong],), (x, 0), (x, 1.5), ()):
                    assert native.short(way, lambda *_: "Python", table)(*args) == "Python"


@in_c
def test_memory_that_gives_out_leaves_the_graph_as_it_was():
    """The allocator fails at the first request, at the second, and so on: each call records all of its node, or nothing."""
    pytest.importorskip("_testcapi")
    done = run(
        """
        import sys
        import _testcapi
        import autobatch as ab
        from autobatch.graph import IMMEDIATES, RECORDED, TYPES

        model = ab.ParameterCollection()
        W, b, table = model.add_parameters((300, 300)), model.add_parameters((300,)), model.add_lookup_parameters((900, 300))
        lstm, deep = ab.VanillaLSTMBuilder(1, 300, 300, model), ab.VanillaLSTMBuilder(2, 300, 300, model)

        @ab.cell
        def pair(x, y):
            return ab.tanh(x), x + y

        g = ab.renew_cg()
        x = table[800]
        for _ in range(400):
            y = ab.tanh(x)
        states = [lstm.initial_state().add_input(x).add_input(x), deep.initial_state().add_input(x).add_input(x)]
        many, two, three = [x] * 12, [x, y], [b, W, x]
        calls = [
            lambda: ab.tanh(y), lambda: x + y, lambda: W * y, lambda: y * 2.5, lambda: 2.5 * y, lambda: y / 2.5, lambda: y[299],
            lambda: y[-1], lambda: ab.pick(y, 290), lambda: table[700], lambda: ab.softmax(y), lambda: ab.esum(many),
            lambda: ab.concatenate(two), lambda: ab.affine_transform(three), lambda: ab.pickneglogsoftmax(y, 280),
            lambda: pair(x, y), lambda: states[0].add_input(x), lambda: states[1].add_input(x),
        ]
        count = lambda: (len(g.recorded_types), len(g.recorded_args))
        failed = 0
        for call in calls:
            for _ in range(5):
                call()
            for _ in range(9):  # lists grow at some of them
                for start in range(14):
                    before, error = count(), None
                    _testcapi.set_nomemory(start, start + 1)
                    try:
                        call()
                    except MemoryError:
                        error = True
                    finally:
                        _testcapi.remove_mem_hooks()
                    if error:
                        failed += 1
                        assert count() == before
                    of_new = TYPES.info[g.recorded_types[before[0]:]][:, [RECORDED, IMMEDIATES]].sum()
                    assert len(g.recorded_args) - before[1] == of_new
        assert failed > 200, failed
        y.npvalue()
        print("done")
        """,
    )
    assert done.returncode == 0 and done.stdout.strip() == "done", done.stdout[-2000:] + done.stderr[-3000:]


@in_c
def test_finalizers_that_drop_the_graph_in_the_midst_of_recording():
    """Making an expression may collect garbage, and garbage may call `renew_cg`."""
    done = run(
        """
        import gc
        import autobatch as ab

        class Garbage:
            def __init__(self):
                self.me = self

            def __del__(self):
                ab.renew_cg()
                operands.clear()

        model = ab.ParameterCollection()
        W, b, table = model.add_parameters((4, 4)), model.add_parameters((4,)), model.add_lookup_parameters((9, 4))
        lstm = ab.VanillaLSTMBuilder(1, 4, 4, model)
        pair = ab.cell(lambda x, y: (ab.tanh(x), x + y))
        operands, stale = [], 0
        for round in range(3000):
            ab.renew_cg()
            state = lstm.initial_state().add_input(table[1]).add_input(table[2])
            operands += [table[3], table[4]]
            x, y = operands
            Garbage()
            gc.set_threshold(1 + round % 13)
            try:
                for _ in range(3):
                    e = ab.esum([ab.tanh(x), W * y, ab.affine_transform([b, W, x]), *pair(x, y)])
                    e = ab.concatenate(operands) if operands else e
                    state = state.add_input(table[5])
                    e = x * 2.0 + y[1] + ab.pick(x, 2)
            except (ab.StaleExpressionError, ab.ArgumentError, AttributeError, TypeError):  # stale, at whatever place
                stale += 1
            finally:
                gc.set_threshold(700)
        assert stale > 100, stale
        print("done")
        """,
    )
    assert done.returncode == 0 and done.stdout.strip() == "done", done.stdout[-2000:] + done.stderr[-3000:]


@in_c
def test_lists_become_arrays():
    copy, numbers = recorder.native.copy, [0, 1, -1, 2**30 - 1, 2**30, -(2**31), 2**31 - 1, 7]
    out = np.full(10, 99, np.int32)
    assert copy(numbers, out, np.array([0, 1, 8, 2, 0, 1], np.int64))
    assert out.tolist() == [-1, *numbers, 99]
    wide, large = np.zeros(3, np.int64), [2**62, -(2**63), 2**63 - 1]
    assert copy(large, wide, np.array([0, 0, 3], np.int64)) and wide.tolist() == large
    assert copy([], out, np.empty(0, np.int64))
    two = np.array([0, 0, 2], np.int64)
    for odd in (1.0, True, np.int32(3)):
        assert not copy([1, odd], out, two)
        pieces.copy_list([1, odd], out, two)  # as NumPy takes it
        assert out[1] == odd
    for bad in (2**31, -(2**31) - 1, 2**70, None):
        assert not copy([1, bad], out, two)
        with pytest.raises((TypeError, OverflowError)):
            pieces.copy_list([1, bad], out, two)
    assert not copy([2**63], wide, np.array([0, 0, 1], np.int64))
    for segment in ([0, 0, 9], [1, 0, 8], [0, 3, 8], [-1, 0, 1], [0, -1, 1], [0, 0, -1], [2**62, 0, 2**62], [0, 2**62, 8]):
        with pytest.raises(ValueError, match="beyond"):
            copy(numbers, out, np.array(segment, np.int64))
    for wrong in (
        lambda: copy((1,), out, wide),
        lambda: copy(numbers, None, wide),
        lambda: copy(numbers, out, [0, 0, 1]),
        lambda: copy(numbers, np.zeros(9, np.int8), wide),
        lambda: copy(numbers, out, wide.astype(np.int32)),
    ):
        with pytest.raises((TypeError, ValueError)):
            wrong()
    frozen = np.zeros(9, np.int32)
    frozen.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        copy(numbers, frozen, np.array([0, 0, 1], np.int64))


def test_a_graph_takes_note_of_parameters_once():
    model, wide = ab.ParameterCollection(), ab.ParameterCollection(dtype="float64")
    W, b, table = model.add_parameters((3, 3)), model.add_parameters((3,)), model.add_lookup_parameters((5, 3))
    layer = ab.cell(lambda x: ab.tanh(W * x + b))
    for _ in range(3):  # of a kind seen before, in a graph that does not know them
        g = ab.renew_cg()
        x = ab.inputVector([1.0, 2.0, 3.0])
        made = [W * x, x + b, ab.affine_transform([b, W, x]), layer(x), table[2], ab.esum([b, x])]
        assert g.parameters == {W, b} and g.tables == {table} and len([e.npvalue() for e in made]) == 6
        for wrong in (wide.add_parameters((3, 3)), wide.add_parameters((3,))):
            for _ in range(2):
                nodes = len(g)
                with pytest.raises(ab.ArgumentError, match="float64"):
                    wrong * x if wrong.dim()[0] == (3, 3) else wrong + x
                assert len(g) == nodes and g.parameters == {W, b}

"""Parameters and collections: layout, names, reading and setting values, what is refused."""

import gc
import math
import weakref

import numpy as np
import pytest

import autobatch as ab
from autobatch import graph, params, seeds, trainers
from autobatch.initializers import ConstInitializer, GlorotInitializer, NumpyInitializer
from autobatch.kernels._errors import ArgumentError, ConstructionError, DeviceError, ShapeError
from autobatch.params import LookupParameters, Model, ParameterCollection, Parameters


@pytest.fixture(autouse=True)
def fresh_seed():
    seeds.reset_random_seed(1)
    yield
    seeds.reset_random_seed(1)


@pytest.fixture(params=["float32", "float64"])
def model(request):
    return ParameterCollection(dtype=request.param)


A = np.arange(6.0).reshape(2, 3)


# Storage --------------------------------------------------------------------------------------------------------------


def test_values_lie_in_columns(model):
    p = model.add_parameters((2, 3), init=A)
    assert p.values.tolist() == [0, 3, 1, 4, 2, 5]
    assert p.values.dtype == p.gradients.dtype == model.dtype
    np.testing.assert_array_equal(p.as_array(), A)
    assert p.as_array().dtype == np.float64 and p.as_array().flags.f_contiguous
    p.gradients[:] = range(6)
    np.testing.assert_array_equal(p.grad_as_array(), [[0, 2, 4], [1, 3, 5]])
    p.as_array()[:] = 9
    np.testing.assert_array_equal(p.as_array(), A)


def test_rows_of_a_table_lie_one_after_the_other(model):
    array = np.arange(24.0).reshape(4, 3, 2)
    table = model.add_lookup_parameters((4, 3, 2), init=array)
    np.testing.assert_array_equal(table.values, np.concatenate([row.ravel(order="F") for row in array]))
    assert table.shape() == (4, 3, 2) and table.dims == (3, 2, 4) and table.row_dims == (3, 2) and len(table) == 4
    np.testing.assert_array_equal(table.as_array(), array)
    np.testing.assert_array_equal(table.row_as_array(2), array[2])
    np.testing.assert_array_equal(table.rows_as_array([3, 0, 3]), array[[3, 0, 3]])
    assert table.rows_as_array([]).shape == (0, 3, 2)
    table.gradients[:] = table.values + 1
    np.testing.assert_array_equal(table.grad_as_array(), array + 1)
    np.testing.assert_array_equal(table.row_grad_as_array(1), array[1] + 1)
    np.testing.assert_array_equal(table.rows_grad_as_array((1, 2)), array[1:3] + 1)


def test_memory_is_aligned_zeroed_and_one_block(model):
    for n in (1, 3, 1000):
        p = model.add_parameters(n)
        table = model.add_lookup_parameters((n, 3))
        for array in (p.values, p.gradients, table.values, table.gradients, table.touched):
            assert array.ctypes.data % 64 == 0 and array.flags.c_contiguous and array.ndim == 1
        assert not p.gradients.any() and not table.gradients.any() and not table.touched.any()
        assert table.touched.shape == (n,) and table.touched.dtype == np.uint8


def test_defaults_are_float32_and_glorot():
    p = ParameterCollection().add_parameters((30, 20))
    assert p.dtype == "float32"
    assert 0.9 * math.sqrt(6 / 50) < abs(p.as_array()).max() <= math.sqrt(6 / 50) * 1.000001
    table = ParameterCollection().add_lookup_parameters((1000, 50))
    assert 0.99 * math.sqrt(6 / 1050) < abs(table.as_array()).max() <= math.sqrt(6 / 1050) * 1.000001
    assert Model is ParameterCollection


def test_both_dtypes_begin_with_the_same_numbers():
    arrays = []
    for dtype in ("float32", "float64"):
        seeds.reset_random_seed(5)
        arrays.append(ParameterCollection(dtype=dtype).add_parameters((7, 3)).as_array())
    np.testing.assert_allclose(*arrays, rtol=1e-6, atol=1e-7)


# As expressions -------------------------------------------------------------------------------------------------------


def test_a_parameter_is_an_expression_of_no_graph(model):
    p, q = model.add_parameters((2, 3)), model.add_parameters(4)
    assert q.pid > p.pid
    assert p.index == graph.parameter_index(p.pid, True) == -2 * p.pid - 1
    assert p.type == graph.parameter_type(p.pid, (2, 3), True)
    assert p.graph is None
    assert p.expr() is p and p.expr(update=True) is p


def test_a_constant_keeps_its_parameter_alive(model):
    p = model.add_parameters((2, 3))
    c = p.expr(update=False)
    assert c.index == graph.parameter_index(p.pid, False) == -2 * p.pid - 2
    assert c.type == graph.parameter_type(p.pid, (2, 3), False)
    assert c.graph is None and c.of is p


def test_parameters_die_by_reference_count():
    gc.collect()
    gc.disable()
    try:
        inner = ParameterCollection().add_subcollection()
        p = inner.add_parameters(3)
        p.expr(update=False)
        dead = weakref.ref(p)
        del inner, p
        assert dead() is None
    finally:
        gc.enable()


def test_rows_are_looked_up(model):
    table = model.add_lookup_parameters((3, 2))
    with graph.Graph(dtype=model.dtype):
        for i in (1, np.int64(2)):
            np.testing.assert_array_equal(table[i].npvalue(), table.row_as_array(i))
        rows = list(table)
        assert [row.dim() for row in rows] == [((2,), 1)] * 3
        np.testing.assert_array_equal([row.npvalue() for row in rows], table.as_array())
        np.testing.assert_array_equal(table.batch([2, 0]).npvalue().T, table.rows_as_array([2, 0]))
        with pytest.raises(IndexError, match="LookupParameter /_0: row 3 of a table of 3 rows"):
            table[3]
        with pytest.raises(OverflowError, match="row -1: rows are counted from 0"):
            table[-1]
        for index in (slice(1), 1.5, "1", None):
            with pytest.raises(TypeError, match=r"the number of a row is .*\n  expected  an int"):
                table[index]
    assert table


def test_names_as_text(model):
    assert str(model.add_parameters(2, name="W")) == repr(model.add_parameters(2, name="W"))[:-2] == "Parameter /W"
    assert str(model.add_lookup_parameters((2, 2))) == "LookupParameter /_0"
    assert repr(model) == "<ParameterCollection /: 2 parameters, 1 look-up tables>"


# Setting --------------------------------------------------------------------------------------------------------------


def test_set_value(model):
    p = model.add_parameters((2, 3))
    p.set_value(A)
    np.testing.assert_array_equal(p.as_array(), A)
    p.set_value([[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(p.as_array(), A + 1)
    for wrong in (np.ones((3, 2)), np.ones(6), 2.0, np.ones((2, 3, 1))):
        with pytest.raises(ShapeError, match=r"the array does not fit Parameter /_0\n  got .*\n  expected  \(2, 3\)"):
            p.set_value(wrong)
    with pytest.raises(TypeError, match="real numbers"):
        p.set_value([["a"] * 3] * 2)
    with pytest.raises(ShapeError):
        p.set_value([[1, 2, 3], [4]])
    np.testing.assert_array_equal(p.as_array(), A + 1)


def test_scale_clip_zero(model):
    p = model.add_parameters((2, 3), init=A)
    p.gradients[:] = 2
    p.scale(3)
    np.testing.assert_array_equal(p.as_array(), 3 * A)
    p.scale_gradient(0.25)
    np.testing.assert_array_equal(p.grad_as_array(), np.full((2, 3), 0.5))
    p.clip_inplace(1, 7)
    np.testing.assert_array_equal(p.as_array(), np.clip(3 * A, 1, 7))
    assert p.values.dtype == model.dtype
    p.zero()
    assert not p.values.any() and not p.gradients.any()


def test_tables_are_set_by_row(model):
    table = model.add_lookup_parameters((4, 2, 3), init=0)
    table.init_row(1, A)
    table.init_row(np.int32(2), range(6))
    np.testing.assert_array_equal(table.row_as_array(1), A)
    np.testing.assert_array_equal(table.row_as_array(2), np.arange(6).reshape(2, 3, order="F"))
    array = np.arange(18.0).reshape(3, 2, 3)
    table.init_from_array(array)
    np.testing.assert_array_equal(table.as_array(), [*array, np.zeros((2, 3))])
    table.init_from_array(array[:1].tolist())
    for wrong in (np.ones((5, 2, 3)), np.ones((2, 3, 2)), np.ones((2, 3)), 1.0):
        with pytest.raises(ShapeError, match=r"expected  \(n, 2, 3\), n at most 4"):
            table.init_from_array(wrong)
    for wrong in ([1, 2], np.ones((3, 2)), 1.0):
        with pytest.raises(ShapeError, match="init_row: the row does not fit LookupParameter /_0"):
            table.init_row(0, wrong)
    for method in (
        table.row_as_array,
        table.row_grad_as_array,
        lambda i: table.init_row(i, A),
        lambda i: table.rows_as_array([i]),
    ):
        with pytest.raises(IndexError):
            method(4)
        with pytest.raises(OverflowError):
            method(-1)
        with pytest.raises(TypeError):
            method(1.5)


def test_tables_as_a_whole(model):
    table = model.add_lookup_parameters((3, 2), init=2)
    table.gradients[:] = 1
    table.scale(2)
    table.scale_gradient(3)
    np.testing.assert_array_equal(table.as_array(), np.full((3, 2), 4))
    table.zero()
    assert not table.values.any()
    np.testing.assert_array_equal(table.grad_as_array(), np.full((3, 2), 3))


def test_reset_gradient(model):
    p, table = model.add_parameters(3), model.add_subcollection().add_lookup_parameters((3, 2))
    for q in (p, table):
        q.gradients[:] = 1
    table.touched[1] = 1
    model.reset_gradient()
    assert not p.gradients.any() and not table.gradients.any() and not table.touched.any()


# Collections ----------------------------------------------------------------------------------------------------------


def test_names(model):
    assert [model.add_parameters(1, name=n).name() for n in ("W", "W", "", "", "a b")] == ["/W", "/W_1", "/_0", "/_1", "/a b"]
    assert [model.add_lookup_parameters(2, name=n).name() for n in ("W", "", "E")] == ["/W_2", "/_2", "/E"]
    inner = [model.add_subcollection(n) for n in ("foo", "foo", None, "W", "")]
    assert [c.name() for c in inner] == ["/foo/", "/foo_1/", "/_0/", "/W/", "/_1/"]
    foo = inner[0]
    assert foo.add_parameters(1, name="W").name() == "/foo/W"
    assert foo.add_parameters(1).name() == "/foo/_0"
    bars = [foo.add_subcollection("bar") for _ in range(2)]
    assert bars[1].add_lookup_parameters((1, 1)).name() == "/foo/bar_1/_0"
    assert model.name() == "/"
    for make in (model.add_parameters, model.add_lookup_parameters):
        for bad in ("a/b", "a_b"):
            with pytest.raises(ConstructionError, match=r"holds '/' or '_'.*\n  try       'a-b'"):
                make(2, name=bad)
        with pytest.raises(TypeError, match="name is a str, not bytes"):
            make(2, name=b"x")
    with pytest.raises(RuntimeError):
        model.add_subcollection("a_b")


def test_members_in_order_of_making(model):
    a = model.add_parameters(1)
    inner = model.add_subcollection("inner")
    b = inner.add_parameters((2, 2))
    table = inner.add_subcollection().add_lookup_parameters((3, 2))
    c = model.add_parameters(3)
    assert model.parameters_list() == [a, b, c] and inner.parameters_list() == [b]
    assert model.lookup_parameters_list() == [table] == inner.lookup_parameters_list()
    assert model.parameter_count() == 1 + 4 + 6 + 3 and inner.parameter_count() == 10
    model.parameters_list().clear()
    assert len(model.parameters_list()) == 3
    assert inner.dtype == model.dtype == table.dtype


def test_a_failed_call_leaves_nothing_behind(model):
    with pytest.raises(ConstructionError):
        model.add_parameters((2, 3), init="identity", name="W")
    with pytest.raises(ShapeError):
        model.add_parameters((2, 3), init=NumpyInitializer(np.ones(5)), name="W")
    assert model.parameters_list() == []
    assert model.add_parameters((2, 3), name="W").name() == "/W"


def test_dims(model):
    assert model.add_parameters(4).shape() == (4,)
    assert model.add_parameters([2, 3]).shape() == (2, 3)
    assert model.add_parameters((np.int64(2), 3.0)).shape() == (2, 3)
    assert model.add_parameters(np.int64(3)).shape() == model.add_parameters(6 / 2).shape() == (3,)
    assert model.add_lookup_parameters(5).shape() == (5, 1) == model.add_lookup_parameters((5,)).shape()
    assert model.add_parameters((1,) * 7).shape() == (1,) * 7
    for make in (model.add_parameters, model.add_lookup_parameters):
        for dim in (2.5, "x", None, (2, 2.5), np.ones(2), (2, "x")):
            with pytest.raises(TypeError, match="dim is a tuple of ints, or one int"):
                make(dim)
        for dim in (-1, (-1, 3), (1,) * 8, ()):
            with pytest.raises(ShapeError, match="1 to 7 sizes, each at least 1"):
                make(dim)


def test_from_numpy(model):
    p = model.parameters_from_numpy(A.astype(int), name="x")
    assert isinstance(p, Parameters) and p.name() == "/x"
    np.testing.assert_array_equal(p.as_array(), A)
    table = model.lookup_parameters_from_numpy(A.tolist(), name="E")
    assert isinstance(table, LookupParameters) and table.shape() == (2, 3)
    np.testing.assert_array_equal(table.as_array(), A)
    assert model.lookup_parameters_from_numpy(np.arange(3)).shape() == (3, 1)
    assert model.add_parameters((9, 9), init=A).shape() == (2, 3)  # the array's dims win
    with pytest.raises(ShapeError):
        model.parameters_from_numpy(2.0)
    with pytest.raises(ArgumentError, match="lookup_parameters_from_numpy"):
        model.add_lookup_parameters((2, 3), init=NumpyInitializer(A))


def test_initializers_and_devices(model):
    assert model.add_parameters(2, init=ConstInitializer(2), device="CPU").as_array().tolist() == [2, 2]
    assert abs(model.add_parameters(100, "uniform", scale=0.01).as_array()).max() <= 0.0100001
    assert abs(model.add_parameters(100, "normal", mean=5, std=0.1).as_array() - 5).max() < 1
    assert abs(model.add_lookup_parameters((10, 5), GlorotInitializer(True)).as_array()).max() > math.sqrt(6 / 15)
    with pytest.raises(ArgumentError, match="init='x' is no initializer"):
        model.add_parameters(2, init="x")
    with pytest.raises(DeviceError, match="there is no device 'GPU:7'"):
        model.add_parameters(2, device="GPU:7")


def test_collections_refuse_other_dtypes():
    with pytest.raises(ValueError, match="float16"):
        ParameterCollection(dtype="float16")
    assert ParameterCollection(dtype=np.float64).dtype == "float64"
    assert ParameterCollection(ParameterCollection()).name() == "/"


def test_is_updated(model):
    p = model.add_parameters(2)
    before = params.revision()
    assert p.is_updated()
    p.set_updated(False)
    assert not p.is_updated()
    p.set_updated(1)
    assert p.is_updated() is True
    assert params.revision() > before


def test_weight_decay_settings(model):
    assert model.get_weight_decay() == 0
    model.set_weight_decay(0.1)
    assert model.get_weight_decay() == float(np.float32(0.1))
    inner = model.add_subcollection()
    inner.set_weight_decay_lambda(0.25)
    assert (model.get_weight_decay(), inner.get_weight_decay()) == (float(np.float32(0.1)), 0.25)
    assert model.add_subcollection().get_weight_decay() == float(np.float32(0.1))
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(ArgumentError, match=r"a number in \[0, 1\) is expected"):
            model.set_weight_decay(bad)
    params.configure_weight_decay(0.5)
    try:
        assert ParameterCollection().get_weight_decay() == 0.5
    finally:
        params.configure_weight_decay(0)


# DyNet ----------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
def test_the_same_program_gives_dynets_names_and_values(dynet):
    def program(collection):
        model = collection()
        made = [model.add_parameters(2, name=n) for n in ("W", "W", "", "b")]
        made += [model.add_lookup_parameters((4, 3), name=n) for n in ("W", "")]
        inner = model.add_subcollection("rnn")
        made += [inner.add_parameters((3, 2)), inner.add_subcollection("rnn").add_lookup_parameters((5, 2, 2), name="E")]
        made += [model.add_subcollection("rnn").add_parameters((2, 2), init="identity"), model.add_parameters(3, init="he")]
        made += [model.parameters_from_numpy(A), model.lookup_parameters_from_numpy(A), model.add_lookup_parameters(3)]
        members = [p.name() for p in model.parameters_list()], [p.name() for p in model.lookup_parameters_list()]
        made[0].scale(2)
        made[3].clip_inplace(-0.1, 0.1)
        made[4].init_row(2, [1, 2, 3])
        made[5].init_from_array(np.ones((2, 3)))
        made[5].scale(0.5)
        facts = [(str(p), p.name(), p.shape(), p.is_updated()) for p in made]
        more = [made[4].rows_as_array([2, 0]), made[7].row_as_array(1), made[7].grad_as_array(), made[6].grad_as_array()]
        return (members, facts, model.parameter_count(), inner.name()), [*(p.as_array() for p in made), *more]

    dynet.reset_random_seed(11)
    seeds.reset_random_seed(11)
    (their_facts, theirs), (our_facts, ours) = program(dynet.ParameterCollection), program(ParameterCollection)
    assert our_facts == their_facts
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=5e-7)


def test_backward_of_a_parameter_itself():
    """A parameter of one number is a loss as any other, as in DyNet."""
    model = ParameterCollection()
    p, q = model.add_parameters(1, init=3.0), model.add_parameters((1, 1), init=2.0)
    table = model.add_lookup_parameters((2, 1), init=1.0)
    ab.renew_cg()
    p.forward()
    p.backward()
    q.backward(full=True)
    table[1].backward()
    p.expr().backward()
    assert (p.grad_as_array().item(), q.grad_as_array().item(), table.grad_as_array().tolist()) == (2, 1, [[0], [1]])
    ab.parameter(p).backward()
    assert p.grad_as_array().item() == 3
    p.expr(update=False).backward()
    assert p.grad_as_array().item() == 3


@pytest.mark.parametrize("form", ["model", "model.safetensors"])
def test_parameters_of_no_numbers(tmp_path, form):
    """Programs make them for parts that are switched off, and never use them."""

    def made():
        model = ParameterCollection()
        empty = [model.add_parameters(d) for d in ((0, 100), (3, 0), 0, (0, 0))]
        empty += [model.add_lookup_parameters(d) for d in ((17, 0), (0, 3))]
        return model, empty, model.add_parameters((2, 2))

    model, empty, W = made()
    assert [p.shape() for p in empty] == [(0, 100), (3, 0), (0,), (0, 0), (17, 0), (0, 3)]
    assert all(p.as_array().shape == p.shape() == p.grad_as_array().shape for p in empty)
    for name in trainers.__all__:
        if name not in ("Trainer", "EGTrainer"):
            trainer = getattr(trainers, name)(model)
            trainer.exponential_moving_average(0.9)
            for _ in range(2):
                ab.renew_cg()
                ab.sum_elems(ab.tanh(W)).backward()
                trainer.update()
                trainer.set_sparse_updates(False)
            trainer.save(tmp_path / "trainer")
            trainer.populate(tmp_path / "trainer")
            trainer.swap_params_to_moving_average()
            trainer.swap_params_to_weights()
    a, b, c, _, rows, none = empty
    v = ab.ones(100)
    for use in (
        lambda: a * v,
        lambda: ab.tanh(b),
        lambda: ab.concatenate([c, v]),
        lambda: ab.transpose(b),
        lambda: rows[3],
        lambda: ab.lookup_batch(rows, [1, 2]),
        lambda: ab.sum_elems(rows),
        lambda: ab.nobackprop(b),
    ):
        nodes = len(ab.cg())
        with pytest.raises(ShapeError, match=r"a parameter \(.*\) has no numbers: it cannot be used"):
            use()
        assert len(ab.cg()) == nodes
    with pytest.raises(ShapeError):
        none[0]
    assert list(none) == []
    model.save(tmp_path / form)
    again, _, other = made()
    again.populate(tmp_path / form)
    np.testing.assert_array_equal(other.as_array(), W.as_array())

"""Trainers against NumPy in float64 and against DyNet: steps, clipping, sparse updates, weight decay, bad gradients."""

import math

import numpy as np
import pytest

from autobatch import machine, seeds, trainers
from autobatch.kernels import _vm
from autobatch.kernels._errors import ArgumentError, ConstructionError, ModelFileError, NumericalError
from autobatch.kernels.update_adam import update_adam
from autobatch.params import LookupParameters, ParameterCollection
from autobatch.trainers import AdamTrainer, CyclicalSGDTrainer, EGTrainer, SimpleSGDTrainer, Trainer

# Trainers, and what they are made with in the tests.
TRAINERS = {
    "SimpleSGDTrainer": (0.05,),
    "CyclicalSGDTrainer": (0.01, 0.1, 1.5, 0.9),
    "MomentumSGDTrainer": (0.05, 0.8),
    "AdagradTrainer": (0.05,),
    "AdadeltaTrainer": (1e-4, 0.9),
    "RMSPropTrainer": (0.05, 1e-4, 0.8),
    "AdamTrainer": (0.05,),
    "AmsgradTrainer": (0.05,),
}
TOLERANCE = {"float32": dict(rtol=0, atol=2e-6), "float64": dict(rtol=0, atol=1e-14)}


@pytest.fixture(autouse=True)
def fresh_seed():
    seeds.reset_random_seed(1)
    yield
    seeds.reset_random_seed(1)


@pytest.fixture(params=["float32", "float64"])
def model(request):
    return ParameterCollection(dtype=request.param)


# Help: parameters to train, gradients to train them with --------------------------------------------------------------


def network(model):
    """Two matrices, a vector, two tables; one of each kind in an inner collection."""
    inner = model.add_subcollection()
    return [
        model.add_parameters((5, 7)),
        inner.add_parameters((33,)),
        model.add_parameters((1,)),
        model.add_lookup_parameters((40, 6)),
        inner.add_lookup_parameters((9, 2, 3)),
    ]


def random_gradients(rng, parameters, size):
    """One array for a parameter; a dict from rows to arrays for a table: a few rows, one of them zero."""
    result = []
    for p in parameters:
        if len(p.shape()) > 1 and type(p).__name__ == "LookupParameters":
            rows = rng.choice(p.shape()[0], size=4, replace=False)
            result.append({int(r): (size * rng.normal(size=p.shape()[1:]) * (k > 0)).astype("f4") for k, r in enumerate(rows)})
        else:
            result.append((size * rng.normal(size=p.shape())).astype("f4"))
    return result


def add_gradients(parameters, gradients):
    """What backward does."""
    for p, g in zip(parameters, gradients, strict=True):
        if isinstance(p, LookupParameters):
            for r, row in g.items():
                p.gradients[r * row.size : (r + 1) * row.size] += row.ravel(order="F")
                p.touched[r] = 1
        else:
            p.gradients += g.ravel(order="F")


class Reference:
    """The rules in float64, on arrays of the parameters' shapes; knows nothing of tables of instructions."""

    def __init__(self, name, arrays, numbers=None, sparse=True, threshold=5.0, decay=0.0):
        self.name, self.values, self.sparse, self.threshold, self.decay = name, arrays, sparse, threshold, decay
        self.numbers = [float(np.float32(x)) for x in (TRAINERS[name] if numbers is None else numbers)]
        self.m, self.v, self.u = ([np.zeros_like(a) for a in arrays] for _ in range(3))
        self.t, self.rate = 0, self.numbers[0]

    def update(self, gradients):
        self.t += 1
        parts = [g.values() if isinstance(g, dict) else [g] for g in gradients]
        norm = math.sqrt(sum(float((np.float64(x) ** 2).sum()) for part in parts for x in part))
        scale = self.threshold / norm if 0 < self.threshold < norm else 1.0
        for k, g in enumerate(gradients):
            if isinstance(g, dict):
                dense = np.zeros_like(self.values[k])
                for r, row in g.items():
                    dense[r] += row
                rows = list(g) if self.sparse else list(range(len(dense)))
                self._step(k, rows, dense[rows] * scale)
            else:
                self._step(k, slice(None), np.float64(g) * scale)
            self.values[k] *= 1 - self.decay

        if self.name == "CyclicalSGDTrainer":
            low, high, size, gamma = self.numbers
            t = self.t - 1
            c = math.floor(1 + t / (2 * size))
            self.rate = float(np.float32(low + max(0, 1 - abs(t / size - 2 * c + 1)) * (high - low) * gamma**t))

    def _step(self, k, rows, g):
        name, rate, w, m, v, u = self.name, self.rate, self.values[k], self.m[k], self.v[k], self.u[k]
        if name in ("SimpleSGDTrainer", "CyclicalSGDTrainer"):
            w[rows] -= rate * g
        elif name == "MomentumSGDTrainer":
            m[rows] = self.numbers[1] * m[rows] - rate * g
            w[rows] += m[rows]
        elif name == "AdagradTrainer":
            v[rows] += g * g
            w[rows] -= rate * g / np.sqrt(v[rows] + float(np.float32(1e-20)))
        elif name == "RMSPropTrainer":
            _, eps, rho = self.numbers
            v[rows] = rho * v[rows] + (1 - rho) * g * g
            w[rows] -= rate * g / np.sqrt(v[rows] + eps)
        elif name == "AdadeltaTrainer":
            eps, rho = self.numbers
            v[rows] = rho * v[rows] + (1 - rho) * g * g
            step = -g * np.sqrt(m[rows] + eps) / np.sqrt(v[rows] + eps)
            m[rows] = rho * m[rows] + (1 - rho) * step * step
            w[rows] += step
        else:
            b1, b2, eps = self.numbers[1:] if len(self.numbers) > 1 else (float(np.float32(x)) for x in (0.9, 0.999, 1e-8))
            m[rows] = b1 * m[rows] + (1 - b1) * g
            v[rows] = b2 * v[rows] + (1 - b2) * g * g
            u[rows] = np.maximum(u[rows], v[rows])
            square = (u if name == "AmsgradTrainer" else v)[rows]
            w[rows] -= rate * math.sqrt(1 - b2**self.t) / (1 - b1**self.t) * m[rows] / (np.sqrt(square) + eps)


def check(parameters, arrays, dtype):
    for p, a in zip(parameters, arrays, strict=True):
        np.testing.assert_allclose(p.as_array(), a, **TOLERANCE[dtype], err_msg=p.name())
        assert not p.gradients.any(), p.name()
        assert not isinstance(p, LookupParameters) or not p.touched.any()


# Against NumPy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("threshold", [5.0, 0.0])
def test_steps(model, name, sparse, threshold):
    parameters, rng = network(model), np.random.default_rng(0)
    trainer = getattr(trainers, name)(model, *TRAINERS[name])
    trainer.set_sparse_updates(sparse)
    trainer.set_clip_threshold(threshold)
    reference = Reference(name, [p.as_array() for p in parameters], None, sparse, threshold)
    for size in (0.1, 3.0, 0.1, 0.0, 3.0, 3.0):  # with 0.1 the norm is below 5
        gradients = random_gradients(rng, parameters, size)
        add_gradients(parameters, gradients)
        trainer.update()
        reference.update(gradients)
        check(parameters, reference.values, model.dtype)
    assert trainer.updates == 6


@pytest.mark.parametrize("name", TRAINERS)
def test_weight_decay(model, name):
    parameters, rng = network(model), np.random.default_rng(1)
    frozen = model.add_parameters((3,), init=1.0)
    frozen.set_updated(False)
    model.set_weight_decay(0.25)
    trainer = getattr(trainers, name)(model, *TRAINERS[name])
    reference = Reference(name, [p.as_array() for p in parameters], decay=0.25)
    for _ in range(5):
        gradients = random_gradients(rng, parameters, 1.0)
        add_gradients(parameters, gradients)
        trainer.update()
        reference.update(gradients)
        check(parameters, reference.values, model.dtype)
    assert frozen.as_array().tolist() == [1, 1, 1]
    model.set_weight_decay(0)
    before = [p.as_array() for p in parameters]
    trainer.set_clip_threshold(0)
    if name == "SimpleSGDTrainer":
        trainer.update()
        check(parameters, before, model.dtype)


def test_one_step_by_hand():
    model = ParameterCollection()
    p = model.add_parameters((2,), init=np.array([1.0, 2.0]))
    p.gradients[:] = [3, -4]  # norm 5: not clipped
    SimpleSGDTrainer(model, 0.5).update()
    assert p.as_array().tolist() == [-0.5, 4]
    p.gradients[:] = [30, -40]  # norm 50: divided by 10
    SimpleSGDTrainer(model, 0.5).update()
    assert p.as_array().tolist() == [-2, 6]


def test_untouched_rows_stay_as_they_are_and_dense_updates_move_them():
    model = ParameterCollection()
    table = model.add_lookup_parameters((4, 2), init=1)
    trainer = AdamTrainer(model, 0.1)
    add_gradients([table], [{1: np.ones(2)}])
    trainer.update()
    first = table.as_array()
    assert (first[1] < 1).all() and (first[[0, 2, 3]] == 1).all()
    add_gradients([table], [{2: np.ones(2)}])
    trainer.update()
    assert (table.as_array()[1] == first[1]).all()
    trainer.set_sparse_updates(False)
    trainer.update()
    assert (table.as_array()[1] < first[1]).all()  # its moments move it on
    assert (table.as_array()[[0, 3]] == 1).all()


def test_frozen_parameters_count_in_the_norm_and_keep_their_gradient(model):
    a, b = model.add_parameters(1, init=0), model.add_parameters(1, init=0)
    table = model.add_lookup_parameters((5, 1), init=0)
    b.set_updated(False)
    table.set_updated(False)
    trainer = SimpleSGDTrainer(model, 1.0)
    for p, g in ((a, 30), (b, 40)):
        p.gradients[:] = g
    add_gradients([table], [{3: np.full(1, 120.0)}])
    trainer.update()  # norm 130
    np.testing.assert_allclose(a.as_array(), [-30 * 5 / 130], rtol=1e-6)
    assert a.grad_as_array() == 0 and b.grad_as_array() == 40 and b.as_array() == 0
    assert table.row_grad_as_array(3) == 120 and table.touched[3] == 1 and not table.values.any()
    b.set_updated(True)
    table.set_updated(True)
    trainer.update()
    np.testing.assert_allclose(b.as_array(), [-40 * 5 / math.hypot(40, 120)], rtol=1e-6)
    np.testing.assert_allclose(table.as_array()[:, 0], [0, 0, 0, -120 * 5 / math.hypot(40, 120), 0], rtol=1e-6)
    assert not table.touched.any()


def test_parameters_made_later_are_trained_and_moments_are_kept(model):
    a = model.add_parameters(3, init=0)
    trainer = AdamTrainer(model, 0.1)
    reference = Reference("AdamTrainer", [np.zeros(3)], (0.1,))
    for step in range(4):
        a.gradients[:] = step + 1
        trainer.update()
        reference.update([np.full(3, step + 1.0)])
        check([a], reference.values[:1], model.dtype)
        if step == 1:
            b = model.add_subcollection().add_parameters(2, init=0)
    assert b.as_array().tolist() == [0, 0]
    b.gradients[:] = 1
    trainer.update()
    assert (b.as_array() < 0).all()


def test_a_trainer_of_an_inner_collection_leaves_the_rest_alone(model):
    inner = model.add_subcollection()
    outside, inside = model.add_parameters(2, init=0), inner.add_parameters(2, init=0)
    for p in (outside, inside):
        p.gradients[:] = 100
    SimpleSGDTrainer(inner, 1.0).update()
    assert outside.as_array().tolist() == [0, 0] and outside.grad_as_array().tolist() == [100, 100]
    np.testing.assert_allclose(inside.as_array(), [-5 / math.sqrt(2)] * 2, rtol=1e-6)


def test_an_empty_collection():
    trainer = SimpleSGDTrainer(ParameterCollection())
    trainer.update()
    trainer.set_clip_threshold(0)
    trainer.update()
    assert trainer.updates == 2


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 64, 1001])
def test_touched_rows_are_found_wherever_they_are(rows):
    model, rng = ParameterCollection(), np.random.default_rng(rows)
    table = model.add_lookup_parameters((rows, 3), init=0)
    trainer = SimpleSGDTrainer(model, 1.0)
    trainer.set_clip_threshold(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        touched = rng.random(rows) < share
        before = table.as_array()
        add_gradients([table], [{int(r): np.ones(3) for r in np.flatnonzero(touched)}])
        trainer.update()
        np.testing.assert_array_equal(table.as_array(), before - touched[:, None])
        assert not table.touched.any() and not table.gradients.any()


def test_the_norm_is_summed_in_float64():
    model = ParameterCollection()
    p = model.add_parameters((1 << 22,), init=0)
    p.gradients[:] = 1e-3  # summed one by one in float32 the squares would stop growing
    p.gradients[0] = 1e20  # its square is no float32
    trainer = SimpleSGDTrainer(model, 1.0)
    trainer.update()
    assert p.as_array()[0] == -5
    p.gradients[:] = 0.01
    before = p.as_array()
    trainer.update()  # norm 20.48
    np.testing.assert_allclose(p.as_array() - before, np.full(p.values.size, -0.01 * 5 / 20.48), rtol=1e-3)


# Bad gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 3])
def test_a_bad_gradient_changes_nothing(model, name, bad, where):
    parameters, rng = network(model), np.random.default_rng(2)
    trainer = getattr(trainers, name)(model)
    model.set_weight_decay(0.5)
    for _ in range(2):
        add_gradients(parameters, random_gradients(rng, parameters, 1.0))
        trainer.update()
    add_gradients(parameters, random_gradients(rng, parameters, 1.0))
    p = parameters[where]
    p.gradients[8] = bad
    if where == 3:
        p.touched[1] = 1

    def state():
        arrays = [a for q in parameters for a in (q.values, q.gradients)] + [q.touched for q in parameters[3:]]
        arrays += [a for moments in trainer._moments.values() for a in moments]
        return [a.tobytes() for a in arrays]

    before = state()
    with pytest.raises(NumericalError, match=r"norm of the gradients is (nan|inf); nothing was changed") as error:
        trainer.update()
    assert f"{p.name()} {p.shape()} has 1 of {p.values.size}" in str(error.value)
    assert "reset_gradient()" in str(error.value) and isinstance(error.value, RuntimeError)
    assert state() == before and trainer.updates == 2
    model.reset_gradient()
    trainer.update()
    assert all(np.isfinite(q.values).all() for q in parameters) and trainer.updates == 3
    assert all((np.frombuffer(old, q.dtype) != q.values).any() for q, old in zip(parameters, before[:-1:2], strict=False))


def test_without_clipping_nobody_looks():
    model = ParameterCollection()
    p = model.add_parameters(2, init=0)
    trainer = SimpleSGDTrainer(model, 1.0)
    p.gradients[:] = 30
    trainer.update()
    p.values = [0, 0]
    trainer.set_clip_threshold(-1)
    p.gradients[:] = math.inf, 20
    trainer.update()
    assert p.as_array().tolist() == [-math.inf, -20]


def test_gradients_too_large_to_add_up():
    model = ParameterCollection(dtype="float64")
    model.add_parameters(2, init=0).gradients[:] = 1e200
    with pytest.raises(NumericalError, match="gradients whose squares are too large to add up"):
        SimpleSGDTrainer(model).update()


# Settings -------------------------------------------------------------------------------------------------------------


def test_defaults_and_settings(capsys):
    model = ParameterCollection()
    sgd, adam = SimpleSGDTrainer(model), AdamTrainer(model)
    assert sgd.learning_rate == float(np.float32(0.1)) and adam.learning_rate == float(np.float32(0.001))
    for trainer in (sgd, adam):
        assert trainer.get_clip_threshold() == 5
        trainer.set_clip_threshold(-1)
        assert trainer.get_clip_threshold() == 0
        trainer.learning_rate = 0.3
        assert trainer.learning_rate == float(np.float32(0.3))
        trainer.set_learning_rate(0.2)
        trainer.restart()
        assert trainer.learning_rate == float(np.float32(0.2))
        trainer.restart(learning_rate=0.7)
        assert trainer.learning_rate == float(np.float32(0.7))
        trainer.update_subset([], [])
        trainer.update_epoch(1.0)
        assert "does nothing" in capsys.readouterr().err
    assert (sgd.whoami(), adam.whoami()) == ("SimpleSGDTrainer", "AdamTrainer")
    assert repr(sgd) == "<SimpleSGDTrainer of /: learning rate 0.7, 0 updates>"


def test_status_counts_since_the_last_one(capsys):
    model = ParameterCollection()
    p = model.add_parameters(1)
    trainer = SimpleSGDTrainer(model)
    for g in (1, 10, 20):
        p.gradients[:] = g
        trainer.update()
    trainer.status()
    trainer.status()
    assert capsys.readouterr().err == "[lr=0.1 clips=2 updates=3] [lr=0.1 clips=0 updates=0] "


def test_restart_forgets_moments_but_counts_on(model):
    p = model.add_parameters(2, init=0)
    trainer, reference = AdamTrainer(model, 0.1), Reference("AdamTrainer", [np.zeros(2)], (0.1,))
    for step in range(5):
        if step == 3:
            trainer.restart()
            reference.m, reference.v = [np.zeros(2)], [np.zeros(2)]
        p.gradients[:] = step + 1
        trainer.update()
        reference.update([np.full(2, step + 1.0)])
        check([p], reference.values, model.dtype)


def test_adam_with_other_constants(model):
    p = model.add_parameters(50)
    rng = np.random.default_rng(3)
    trainer = AdamTrainer(model, alpha=0.02, beta_1=0.5, beta_2=0.75, eps=0.01)
    reference = Reference("AdamTrainer", [p.as_array()], (0.02, 0.5, 0.75, 0.01))
    for _ in range(4):
        gradients = random_gradients(rng, [p], 0.3)
        add_gradients([p], gradients)
        trainer.update()
        reference.update(gradients)
        check([p], reference.values, model.dtype)


def test_a_rule_of_ones_own_keeps_moments_for_tables_too():
    class Plain(Trainer):
        rule = update_adam
        moments = 2

        def _fill(self, numbers):
            numbers[:5] = 1, 0, 0, 0, self.learning_rate

    model = ParameterCollection()
    p, table = model.add_parameters(2, init=0), model.add_lookup_parameters((3, 2), init=0)
    trainer = Plain(model, 0.5)
    p.gradients[:] = [2, -3]
    add_gradients([table], [{1: np.array([1.0, -1.0])}])
    trainer.set_clip_threshold(0)
    trainer.update()  # without memory Adam takes the sign of the gradient
    np.testing.assert_allclose(p.as_array(), [-0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(table.as_array(), [[0, 0], [-0.5, 0.5], [0, 0]], rtol=1e-6)


def test_what_is_refused():
    model = ParameterCollection()
    with pytest.raises(TypeError, match="SimpleSGDTrainer: a ParameterCollection is expected, not NoneType"):
        SimpleSGDTrainer(None)
    with pytest.raises(TypeError, match="Trainer has no update rule"):
        Trainer(model, 0.1)
    for rate in (math.nan, math.inf, 1e39):
        with pytest.raises(ArgumentError, match=r"learning_rate: .* is no finite number"):
            SimpleSGDTrainer(model, rate)
    trainer = SimpleSGDTrainer(model)
    with pytest.raises(ArgumentError):
        trainer.learning_rate = math.nan
    with pytest.raises(ArgumentError, match="set_clip_threshold"):
        trainer.set_clip_threshold(math.nan)
    for arguments in ({"beta_1": 1.0}, {"beta_2": -0.1}, {"eps": -1.0}):
        with pytest.raises(ArgumentError, match=f"AdamTrainer: {next(iter(arguments))} is .*\n  expected  a number"):
            AdamTrainer(model, **arguments)
    with pytest.raises(TypeError):
        trainer.update(1.0)


# Work -----------------------------------------------------------------------------------------------------------------


def test_an_update_is_two_calls_whatever_the_number_of_parameters(monkeypatch):
    calls = []

    def counted(table, words, scratch):
        calls.append(words)
        _vm.run(table, words, scratch)

    monkeypatch.setattr(machine, "run", counted)
    for n in (1, 50):
        model = ParameterCollection()
        for _ in range(n):
            model.add_parameters(2)
            model.add_lookup_parameters((3, 2))
        trainer = AdamTrainer(model)
        calls.clear()
        trainer.update()
        tables = trainer._survey, trainer._steps
        trainer.update()
        assert len(calls) == 4
        assert (trainer._survey, trainer._steps) == tables  # written once
        assert len(tables[0].words) + len(tables[1].words) < 150 * n


# Rules that are described elsewhere ----------------------------------------------------------------------------------


def test_the_cycle_of_learning_rates():
    trainer = CyclicalSGDTrainer(ParameterCollection(), 0.0, 1.0, 2)
    rates = []
    for _ in range(9):
        trainer.update()
        rates.append(trainer.learning_rate)
    np.testing.assert_allclose(rates, [0, 0.5, 1, 0.5, 0, 0.5, 1, 0.5, 0])
    with pytest.raises(ArgumentError, match="step_size is 0"):
        CyclicalSGDTrainer(ParameterCollection(), step_size=0)


@pytest.mark.parametrize("sparse", [True, False])
def test_exponentiated_gradient(model, sparse):
    start = np.array([0.2, 0.3, 0.5])
    p = model.add_parameters(3, init=start)
    table = model.add_lookup_parameters((4, 3), init=np.tile(start, (4, 1)))
    trainer = EGTrainer(model, 0.5, 0.9)
    trainer.set_sparse_updates(sparse)
    rng, values, speed = np.random.default_rng(0), start.copy(), np.zeros(3)
    for _ in range(4):
        g = rng.normal(size=3)
        add_gradients([p, table], [g, {2: g}])
        trainer.set_clip_threshold(0)
        trainer.update()
        speed = float(np.float32(0.9)) * speed - 0.5 * g
        values = values * np.exp(speed) / np.sum(values * np.exp(speed))
        np.testing.assert_allclose(p.as_array(), values, rtol=1e-5)
        np.testing.assert_allclose(table.as_array(), [start, start, values, start], rtol=1e-5)
    trainer.enable_cyclical_learning_rate(0.25, 1.0, 1, 1.0)
    trainer.update()
    trainer.update()
    assert trainer.learning_rate == 1.0


# Moving averages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("beta", [0.75, None])
def test_moving_averages(model, beta, every):
    parameters, rng = network(model), np.random.default_rng(3)
    trainer = SimpleSGDTrainer(model, 0.05)
    if beta is None:
        trainer.cumulative_moving_average(every)
    else:
        trainer.exponential_moving_average(beta, every)
    with pytest.raises(ConstructionError, match="no update yet"):
        trainer.swap_params_to_moving_average()
    averages, count = [np.zeros(p.shape()) for p in parameters], 0
    for step in range(5):
        add_gradients(parameters, random_gradients(rng, parameters, 1.0))
        trainer.update()
        if step % every == 0:
            keep = count / (count + 1) if beta is None else beta
            averages = [keep * a + (1 - keep) * p.as_array() for a, p in zip(averages, parameters, strict=True)]
            count += 1
    values = [p.as_array() for p in parameters]
    for correct in (False, True):
        trainer.swap_params_to_moving_average(bias_correction=correct)
        trainer.swap_params_to_moving_average()  # they are there already
        scale = 1 / (1 - beta**count) if correct and beta else 1
        check(parameters, [a * scale for a in averages], model.dtype)
        trainer.swap_params_to_weights()
        trainer.swap_params_to_weights()
        check(parameters, values, model.dtype)
    trainer.swap_params_to_moving_average()
    trainer.update()  # goes on from the weights (DyNet: loses this update)
    check(parameters, values, model.dtype)
    trainer.swap_params_to_moving_average(save_weights=False)
    with pytest.raises(ConstructionError, match="weights were not saved"):
        trainer.swap_params_to_weights()


def test_what_moving_averages_refuse():
    trainer = SimpleSGDTrainer(ParameterCollection())
    with pytest.raises(RuntimeError, match="no moving average is kept"):
        trainer.swap_params_to_moving_average()
    for beta in (0, 1, -1, math.nan):
        with pytest.raises(ArgumentError):
            trainer.exponential_moving_average(beta)
    for every in (0, -1, 1.5, True):
        with pytest.raises(ArgumentError, match="update_freq"):
            trainer.cumulative_moving_average(every)
    trainer.update()
    with pytest.raises(RuntimeError, match="begins with the first update"):
        trainer.cumulative_moving_average()


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", [None, 0.9, "cumulative"])
@pytest.mark.parametrize("name", [*TRAINERS, "EGTrainer"])
def test_training_goes_on_to_the_bit(tmp_path, model, name, average):
    def made(m):
        trainer = getattr(trainers, name)(m, *TRAINERS.get(name, ()))
        if name == "EGTrainer":
            trainer.enable_cyclical_learning_rate(0.01, 0.1, 3)
        return trainer

    def state(m):
        return [a.tobytes() for p in [*m.parameters_list(), *m.lookup_parameters_list()] for a in (p.values, p.gradients)]

    parameters, rng = network(model), np.random.default_rng(5)
    if name == "EGTrainer":
        for p in parameters:
            p.values[:] = np.abs(p.values) + 0.1
    steps = [random_gradients(rng, parameters, 3.0) for _ in range(7)]
    trainer = made(model)
    trainer.set_clip_threshold(4.0)
    trainer.set_sparse_updates(False)
    if average:
        trainer.cumulative_moving_average(2) if average == "cumulative" else trainer.exponential_moving_average(average)
    for gradients in steps[:3]:
        add_gradients(parameters, gradients)
        trainer.update()
    if average:
        trainer.swap_params_to_moving_average()
    model.save(tmp_path / "model")
    trainer.save(tmp_path / "trainer")

    again = ParameterCollection(dtype=model.dtype)
    others, other = network(again), made(again)
    again.populate(tmp_path / "model")
    other.populate(tmp_path / "trainer")
    assert (other.updates, other.learning_rate) == (trainer.updates, trainer.learning_rate)
    for gradients in steps[3:]:
        for t, ps in ((trainer, parameters), (other, others)):
            add_gradients(ps, gradients)
            t.update()
    assert state(again) == state(model)
    if average:
        for t in (trainer, other):
            t.swap_params_to_moving_average()
        assert state(again) == state(model)
    other.populate(tmp_path / "trainer", 0.5)
    assert other.learning_rate == 0.5


def test_states_that_do_not_fit_change_nothing(tmp_path):
    path = tmp_path / "state"
    model = ParameterCollection()
    p = model.add_parameters(3)
    trainer = AdamTrainer(model)
    with pytest.raises(FileNotFoundError, match="cannot be read"):
        trainer.populate(path)
    p.gradients[:] = 1
    trainer.update()
    trainer.save(path)
    whole = path.read_bytes()
    before = [m.tobytes() for m in trainer._moments[p.pid]]

    def refused(t, text):
        with pytest.raises(ModelFileError, match=text):
            t.populate(path)

    refused(SimpleSGDTrainer(model), "another trainer\n  got       AdamTrainer\n  expected  SimpleSGDTrainer")
    other = ParameterCollection()
    refused(AdamTrainer(other), "1 parameters\n  expected  0")
    other.add_parameters(4)
    refused(AdamTrainer(other), "does not fit /_0\n  got       3 float32 numbers\n  expected  4 float32 numbers")
    wide = ParameterCollection(dtype="float64")
    wide.add_parameters(3)
    refused(AdamTrainer(wide), "3 float32 numbers\n  expected  3 float64 numbers")
    rng = np.random.default_rng(1)
    for _ in range(300):
        data = bytearray(whole)
        kind, at = rng.integers(3), rng.integers(len(data))
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at:]
        else:
            del data[at : at + 5]
        path.write_bytes(data)
        try:
            trainer.populate(path)
        except ModelFileError as error:
            assert str(path) in str(error)
        assert [m.tobytes() for m in trainer._moments[p.pid]] == before and trainer.updates == 1


# DyNet ----------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("name", TRAINERS)
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("threshold, decay", [(5.0, 0.0), (0.0, 0.0), (5.0, 0.2)])
def test_steps_of_dynet(dynet, name, sparse, threshold, decay):
    dynet.reset_random_seed(1)
    their_model, model = dynet.ParameterCollection(), ParameterCollection()
    theirs, ours = network(their_model), network(model)
    for their, our in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(our.as_array(), their.as_array())
    updates = []
    for m, module in ((their_model, dynet), (model, trainers)):
        m.set_weight_decay(decay)
        trainer = getattr(module, name)(m, *TRAINERS[name])
        trainer.set_sparse_updates(sparse)
        trainer.set_clip_threshold(threshold)
        updates.append(trainer.update)
    rng = np.random.default_rng(4)
    for step in range(8):
        gradients = random_gradients(rng, ours, 3.0 if step % 2 else 0.1)
        dynet.renew_cg()
        terms = []
        for their, g in zip(theirs, gradients, strict=True):
            if isinstance(g, dict):
                terms += [dynet.dot_product(their[r], dynet.inputTensor(row)) for r, row in g.items()]
            else:
                terms.append(dynet.dot_product(their.expr(True), dynet.inputTensor(g)))
        dynet.esum(terms).backward()
        add_gradients(ours, gradients)
        for update in updates:
            update()
        dynet.renew_cg()
        for their, our in zip(theirs, ours, strict=True):
            seen = their.npvalue()  # what a graph sees: with weight decay, less than as_array()
            if isinstance(our, LookupParameters):
                seen = np.moveaxis(seen, -1, 0)
            np.testing.assert_allclose(our.as_array(), seen, rtol=0, atol=1e-6, err_msg=f"step {step} {our.name()}")
            assert not our.gradients.any()


@pytest.mark.oracle
@pytest.mark.parametrize("name", TRAINERS)
def test_a_program_trains_as_in_dynet(dynet, name):
    """Gradients from the graph: the same words, the same losses, step by step."""
    import autobatch

    def losses(dy):
        dy.reset_random_seed(3)
        model = dy.ParameterCollection()
        W, b, E = model.add_parameters((4, 6)), model.add_parameters(4, init=0), model.add_lookup_parameters((20, 6))
        trainer = getattr(dy, name)(model, *TRAINERS[name])
        result = []
        for step in range(6):
            dy.renew_cg()
            errors = []
            for word in (3, 7, step, 3):
                target = dy.inputVector([1.0, 0.0, -1.0, 5.0])
                errors.append(dy.squared_distance(dy.tanh(dy.affine_transform([b, W, E[word]])), target))
            loss = dy.esum(errors)
            result.append(loss.value())
            loss.backward()
            trainer.update()
        return result

    ours, theirs = losses(autobatch), losses(dynet)
    assert theirs[-1] < theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)

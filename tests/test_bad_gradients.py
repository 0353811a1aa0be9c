"""Updates in the background that find gradients which are not finite: nothing is changed, and who waits is told, once."""

import _thread
import linecache
import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from test_background import ACCESSES, PROGRAM, TRAINERS, Net, able, both_ways, late, same_bits  # noqa: F401
from test_divided import in_a_process

import autobatch as ab
from autobatch import threads
from autobatch.background import running


def spoiled(update=True, **options):
    """Return a net after a step with a gradient of infinity; `update`: and after the update that finds it."""
    net = Net(**{"clip": 5.0, **options})
    net.step()
    net.losses = net.step([2, 7, 2])
    large = net.losses * ab.scalarInput(1e30) * ab.scalarInput(1e30)
    large.value()
    large.backward()
    assert running() == ab.configured()["background"]
    if update:
        net.trainer.update()
    return net


def state(net):
    """Return the bits of the parameters that `Net` made and of their moments, and how many updates there were."""
    parameters = [net.table, net.whole, *net.model.parameters_list()[:5]]
    arrays = [getattr(p, n) for p in parameters for n in ("values", "gradients", "touched") if hasattr(p, n)]
    moments = [a for p in parameters for a in net.trainer._moments[p.pid]]
    return [a.tobytes() for a in (*arrays, *moments)], net.trainer.updates


WHO_LOOKS = sorted({*ACCESSES} - {"averages", "swapped"})


@pytest.mark.parametrize("access", WHO_LOOKS)
@pytest.mark.usefixtures("late")
def test_who_waits_hears_of_a_bad_gradient(tmp_path, access):
    """The error comes up there, names the line of the update, and is as if the update had raised it."""
    with pytest.raises(ab.NumericalError) as expected:
        ab.configure(background=False)
        net = spoiled(update=False)
        net.trainer.update()
    unchanged = state(net)
    ab.configure(background=True)
    net = spoiled()
    assert running() and net.trainer.updates == 3
    with pytest.raises(ab.NumericalError) as found:
        ACCESSES[access](net, tmp_path)
        ab.wait()  # for those that do not look at what an update changes
    lines = str(found.value).splitlines()
    said = re.fullmatch(r"MomentumSGDTrainer.update at (.*), line (\d+): the norm of .* nothing was changed", lines[0])
    file, line = said.groups()
    assert linecache.getline(file, int(line)) == "        net.trainer.update()\n"
    assert lines[1:] == [*str(expected.value).splitlines()[1:-1], lines[-1]] and "configure(background=False)" in lines[-1]
    assert "background" not in str(expected.value)
    assert state(net) == unchanged
    assert not running()
    ab.wait()  # said once
    net.model.reset_gradient()
    net.step()
    assert np.isfinite(net.loss([1, 2]).value()) and net.trainer.updates == 3


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.usefixtures("late")
def test_a_bad_gradient_changes_nothing(capsys, trainer):
    def job():
        net = spoiled(trainer=trainer, update=False)
        before = state(net)
        with pytest.raises(ab.NumericalError, match="nothing was changed"):
            net.trainer.update()
            ab.wait()
        assert state(net) == before
        net.trainer.status()
        assert "updates=2]" in capsys.readouterr().err
        net.model.reset_gradient()
        net.step()
        return [*net.numbers(), net.trainer.updates, net.trainer.learning_rate]

    same_bits(*both_ways(job))


@pytest.mark.usefixtures("late")
def test_what_could_not_be_computed_can_be():
    """The graph whose value was asked for when the error came up is still there."""
    net = spoiled()
    loss = net.loss([1, 2])
    with pytest.raises(ab.NumericalError):
        loss.value()
    net.model.reset_gradient()
    value = loss.value()
    loss.backward()
    gradient = net.W.grad_as_array()
    again = net.loss([1, 2])
    assert again.value() == value
    net.model.reset_gradient()
    again.backward()
    np.testing.assert_array_equal(net.W.grad_as_array(), gradient)
    assert np.isfinite(gradient).all() and gradient.any()


@pytest.mark.usefixtures("late")
def test_the_rate_is_taken_back_but_not_that_of_the_program():
    net = spoiled(trainer=ab.CyclicalSGDTrainer)
    changed = net.trainer.learning_rate
    with pytest.raises(ab.NumericalError):
        ab.wait()
    assert net.trainer.learning_rate < changed
    net = spoiled(trainer=ab.CyclicalSGDTrainer)
    net.trainer.learning_rate = 0.5
    with pytest.raises(ab.NumericalError):
        ab.wait()
    assert net.trainer.learning_rate == 0.5


@pytest.mark.usefixtures("late")
def test_with_averages_an_update_looks_itself():
    net = spoiled(update=False, average=True)
    with pytest.raises(ab.NumericalError, match="update: the norm of the gradients is"):
        net.trainer.update()
    assert not running() and net.trainer._average.count == 2


@pytest.mark.usefixtures("late")
def test_clippings_are_counted(capsys):
    def job():
        net = Net(clip=1e9)
        net.step()
        net.trainer.set_clip_threshold(1e-3)
        net.step()
        net.step()
        net.trainer.status()
        return []

    both_ways(job)
    assert capsys.readouterr().err == 2 * "[lr=0.01 clips=2 updates=3] "


@pytest.mark.usefixtures("late")
def test_without_clipping_bad_gradients_go_unnoticed():
    net = spoiled(clip=0.0)
    ab.wait()
    assert not np.isfinite(net.W.as_array()).all()
    net.trainer.set_clip_threshold(5)
    net.trainer.set_clip_threshold(0)
    net.trainer.update()


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.usefixtures("able")
def test_a_graph_that_goes_tells_nobody(looks):
    """A dropped graph finds out that the update is done: who waits is told all the same."""
    net = spoiled()
    while not threads.board().finished():
        time.sleep(0.001)
    ab.renew_cg()
    assert not running()
    with pytest.raises(ab.NumericalError):
        net.W.as_array() if looks else net.trainer.update()
    assert net.trainer.updates == 2
    net.W.as_array()


# Who else is told, and who is not ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("late")
def test_what_the_program_set_since_stays():
    net = spoiled()
    net.trainer.updates = 0
    with pytest.raises(ab.NumericalError):
        net.trainer.status()
    assert net.trainer.updates == 0
    net = spoiled()
    rate = net.trainer.learning_rate
    with pytest.raises(ab.NumericalError):
        net.trainer.restart(7.0)
    assert net.trainer.learning_rate == rate
    net.trainer.restart(7.0)
    assert net.trainer.learning_rate == 7


class Looks(ab.SimpleRNNBuilder):
    """A builder that looks at another model as it is made."""

    net = None

    @classmethod
    def from_spec(cls, spec, model):
        cls.net.W.as_array()
        return super().from_spec(spec, model)


class Foreign:
    """An array of another library that is one of our parameters."""

    def __init__(self, parameter):
        self.parameter = parameter

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, **options):
        return self.parameter.__dlpack__()


ACTS = {
    "populate": lambda net, folder: net.trainer.populate(folder / "trainer"),
    "dump_cg": lambda net, folder: ab.dump_cg(str(folder / "graph"), show_values=False),
    "load": lambda net, folder: ab.load(folder / "looks", ab.ParameterCollection()),
    "inputTensor": lambda net, folder: ab.inputTensor(Foreign(net.W)),
}


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("act", ACTS)
def test_nobody_takes_the_error_for_another_one(tmp_path, act):
    """Parts of the library that handle errors of what they call let this one through."""
    net = Net()
    net.step()
    net.trainer.save(tmp_path / "trainer")
    ab.save(tmp_path / "looks", [Looks(1, 2, 2, ab.ParameterCollection())])
    Looks.net = net = spoiled()
    with pytest.raises(ab.NumericalError):
        ACTS[act](net, tmp_path)
    assert not running()
    ab.wait()
    ACTS[act](net, tmp_path)


@pytest.mark.usefixtures("late")
def test_each_thread_hears_of_its_own_updates():
    net, seen = spoiled(), []
    other = threading.Thread(target=lambda: seen.append(net.W.as_array()))
    other.start()
    other.join()
    assert len(seen) == 1 and not running()
    with pytest.raises(ab.NumericalError):
        ab.wait()
    assert net.trainer.updates == 2


@pytest.mark.usefixtures("able")
def test_an_update_that_nobody_calls():
    """Python itself does: there is no line to name."""
    net = Net(clip=5.0)
    net.step()
    done = net.trainer.updates
    _thread.start_new_thread(net.trainer.update, ())
    for _ in range(500):
        if net.trainer.updates > done:
            break
        time.sleep(0.01)
    time.sleep(0.05)
    assert net.trainer.updates == done + 1


def test_a_worker_ends_with_a_bad_gradient():
    """Workers of multiprocessing do not call `atexit`."""
    text = "\n".join("    " + line for line in (PROGRAM + BAD).splitlines())
    program = f"""
import multiprocessing
def work():
{text}
if __name__ == "__main__":
    way = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    process = multiprocessing.get_context(way).Process(target=work)
    process.start()
    process.join()
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "NumericalError: SimpleSGDTrainer.update at <string>, line" in ran.stderr


# Ends -----------------------------------------------------------------------------------------------------------------

BAD = """
trainer.set_clip_threshold(5)
step()
ab.renew_cg()
loss = ab.squared_norm(W * ab.inputVector(np.full(700, 1e19)))
loss.value()
loss.backward()
trainer.update()
assert background.running()
"""


def test_a_process_ends_with_a_bad_gradient():
    ran = subprocess.run([sys.executable, "-c", PROGRAM + BAD], capture_output=True, text=True, check=True)
    assert "NumericalError: SimpleSGDTrainer.update at <string>, line" in ran.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_both_sides_of_a_fork_hear_of_a_bad_gradient():
    text = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
child = os.fork()
try:
    W.as_array()
    heard = 0
except ab.NumericalError:
    heard = 1
if child == 0:
    os._exit(heard)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), heard)
"""
    assert in_a_process(PROGRAM + BAD + text) == "1 1\n"

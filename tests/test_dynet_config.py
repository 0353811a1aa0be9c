"""DyNet's flags, its configuration module, and the runner of unchanged scripts."""

import os
import subprocess
import sys
import textwrap

import pytest

import autobatch as ab
from autobatch import dynet_config, seeds
from autobatch.graph import SETTINGS
from autobatch.params import collection


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Settings as before, after each test."""
    policy, decay, seed = SETTINGS.policy, collection._default_decay, seeds.current_seed()
    monkeypatch.setattr(dynet_config, "_settings", {})
    monkeypatch.setattr(dynet_config, "_explicit", False)
    monkeypatch.setattr(dynet_config, "_said", set())
    yield
    SETTINGS.policy, collection._default_decay = policy, decay
    ab.reset_random_seed(seed)


@pytest.mark.parametrize("spelled", [["--dynet-seed", "7"], ["--dynet_seed", "7"], ["--dynet-seed=7"], ["--dynet_seed=7"]])
def test_flags_are_found_wherever_they_stand(spelled):
    assert dynet_config.parse(["script.py", "--other", *spelled, "--dynet-autobatch", "1", "file"]) == {
        "seed": 7,
        "autobatch": 1,
    }


def test_flags_take_effect():
    dynet_config.start(["script.py", "--dynet-seed", "11", "--dynet-autobatch", "0", "--dynet-weight-decay", "0.25"])
    assert seeds.current_seed() == 11 and SETTINGS.policy == "none"
    assert ab.ParameterCollection().get_weight_decay() == 0.25
    dynet_config.start(["--dynet-autobatch=3", "--dynet-devices=CPU", "--dynet-seed", "0"])
    assert SETTINGS.policy == "ratio" and seeds.current_seed() != 11
    assert dynet_config.get()["weight_decay"] == 0.25


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--dynet-gpu"], RuntimeError, "device 'cuda' needs NVIDIA's driver"),
        (["--dynet-gpus", "1"], RuntimeError, "device 'cuda' needs"),
        (["--dynet-devices", "CPU,GPU:1"], RuntimeError, "devices GPU:1: several cards, or another one"),
        (["--dynet-sed", "1"], ValueError, "--dynet-sed: no such flag\n  expected  one of .*--dynet-seed"),
        (["--dynet-seed"], ValueError, "the value is missing"),
        (["--dynet-seed", "x"], ValueError, "--dynet-seed: 'x'\n  expected  a whole number"),
        (["--dynet-weight-decay", "2"], ValueError, r"a number in \[0, 1\)"),
        (["--dynet-seed", "-3"], ValueError, "the seed -3"),
    ],
)
def test_wrong_flags(flags, error, message):
    before = SETTINGS.policy
    with pytest.raises(error, match=message):
        dynet_config.start(["script.py", *flags])
    assert SETTINGS.policy == before


def test_flags_without_meaning_warn_once():
    with pytest.warns(UserWarning, match="--dynet-mem has no meaning here: memory grows as it is needed"):
        dynet_config.start(["--dynet-mem", "512"])
    dynet_config.start(["--dynet-mem", "1024,10,10,10", "--dynet-viz"])  # said already


def test_the_module_in_place_of_flags():
    dynet_config.set(random_seed=5, autobatch=0, weight_decay=0.5)
    assert seeds.current_seed() == 5 and SETTINGS.policy == "none" and ab.ParameterCollection().get_weight_decay() == 0.5
    dynet_config.start(["--dynet-seed", "6"])  # not looked at any more
    assert seeds.current_seed() == 5 and dynet_config.get()["seed"] == 5
    for ask in (dynet_config.set_gpu, lambda: dynet_config.set(requested_gpus=1)):
        with pytest.warns(
            UserWarning, match="a GPU was asked for; graphs run on the CPU: device 'cuda' needs NVIDIA's driver"
        ) as said:
            ask()
        assert said[0].filename == __file__ and not dynet_config.gpu()
    dynet_config.set_gpu(False)
    assert dynet_config.gpu() is False
    with pytest.warns(UserWarning, match="--dynet-mem"):
        dynet_config.set(mem="512")


def test_dynet_params(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--dynet-seed", "21"])
    p = ab.DynetParams()
    p.from_args()
    ab.init_from_params(p)
    assert seeds.current_seed() == 21
    p.from_config({"seed": 22})
    p.set_autobatch(False)
    p.set_weight_decay(0.125)
    p.set_cpu_mode()
    p.set_gpu_mask([False])
    p.init()
    assert seeds.current_seed() == 22 and SETTINGS.policy == "none" and ab.ParameterCollection().get_weight_decay() == 0.125
    ab.init()
    assert seeds.current_seed() == 21
    p.set_random_seed(1)
    p.set_requested_gpus(1)
    with pytest.warns(UserWarning, match="a GPU was asked for"):
        p.init()
    assert seeds.current_seed() == 1
    monkeypatch.setattr(sys, "argv", ["script.py", "--dynet-gpu"])
    flags = ab.DynetParams()
    flags.from_args()
    with pytest.raises(RuntimeError, match="device 'cuda' needs"):
        flags.init()
    for setting in (p.set_mem, p.set_profiling, p.set_shared_parameters):
        setting(0)


def test_devices():
    assert ab.available_devices() == [b"CPU"] and ab.get_device_info("CPU") == ("CPU", "CPU", 0)
    with pytest.raises(RuntimeError, match="no device 'GPU:0'"):
        ab.get_device_info("GPU:0")


# The runner -----------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
import dynet_config
dynet_config.set(random_seed=3)
import dynet as dy
import _dynet
from dynet import *
import neighbour

assert __name__ == "__main__" and dy.__version__ == "2.1" and dy.np is not None
m = dy.Model()
lstm = dy.LSTMBuilder(1, 4, 6, m)
W, E = m.add_parameters((3, 6)), m.add_lookup_parameters((10, 4))
trainer = dy.AdamTrainer(m)
losses = []
for epoch in range(12):
    dy.renew_cg()
    errs = []
    for words, label in (([1, 2, 3], 0), ([4, 5], 1), ([6], 2)):
        out = lstm.initial_state().transduce([E[w] for w in words])[-1]
        errs.append(dy.pickneglogsoftmax(dy.parameter(W) * out, label))
    loss = dy.esum(errs)
    losses.append(loss.value())
    loss.backward()
    trainer.update()
assert losses[-1] < losses[0]
print(sys.argv[1:], neighbour.NAME, isinstance(lstm, _dynet.VanillaLSTMBuilder), Model is dy.Model)
"""


def run(arguments, folder):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder)


def test_a_script_runs_unchanged(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "script.py").write_text(SCRIPT)
    (tmp_path / "sub" / "neighbour.py").write_text("NAME = 'next to the script'\n")
    made = run(["-m", "autobatch.dynet", "sub/script.py", "--dynet-autobatch", "1", "file"], tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout == "['--dynet-autobatch', '1', 'file'] next to the script True True\n"


def test_flags_reach_a_script_and_a_program_of_ones_own(tmp_path):
    program = "print(dy.graph_policy())"
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
        import dynet as dy
        import autobatch
        print(autobatch.configured()["policy"], autobatch.seeds.current_seed())
        """)
    )
    (tmp_path / "own.py").write_text((tmp_path / "script.py").read_text().replace("import dynet as dy\n", ""))
    flags = ["--dynet-autobatch=0", "--dynet-seed", "77"]
    for arguments in (["-m", "autobatch.dynet", "script.py", *flags], ["own.py", *flags]):
        made = run(arguments, tmp_path)
        assert (made.returncode, made.stdout) == (0, "none 77\n"), (program, made.stderr)


def test_processes_that_a_script_starts(tmp_path):
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
        import multiprocessing, os
        import dynet as dy

        def work(k):
            import _dynet, dynet_config, dynet_viz
            dy.renew_cg()
            return k * dy.scalarInput(2).value(), type(_dynet.cg()).__module__, dynet_config.__name__

        if __name__ == "__main__":
            for way in ("spawn", "fork"):
                if way in multiprocessing.get_all_start_methods():
                    with multiprocessing.get_context(way).Pool(1) as pool:
                        print(pool.map(work, [3]), os.path.isabs(__file__))
        """)
    )
    made = run(["-W", "ignore", "-m", "autobatch.dynet", "script.py"], tmp_path)
    assert made.returncode == 0, made.stderr
    ways = 2 if hasattr(os, "fork") else 1
    assert made.stdout == "[(6.0, 'autobatch.graph', 'autobatch.dynet_config')] True\n" * ways


def test_a_module_runs_unchanged(tmp_path):
    (tmp_path / "program.py").write_text("import dynet, sys\nprint(dynet.cg().version(), sys.argv[1:], __name__)\n")
    made = run(["-m", "autobatch.dynet", "-m", "program", "a"], tmp_path)
    assert (made.returncode, made.stdout) == (0, "0 ['a'] __main__\n"), made.stderr
    made = run(["-m", "autobatch.dynet", "-m"], tmp_path)
    assert made.returncode == 1 and "-m needs the name of a module" in made.stderr


def test_installed_in_a_program(tmp_path):
    made = run(["-c", "from autobatch.dynet import install; install(); install()\nimport dynet\nprint(dynet.cg())"], tmp_path)
    assert made.stdout.startswith("<graph of 0 nodes"), made.stderr


def test_graphs_are_printed(tmp_path):
    text = "import dynet as dy\nfrom dynet_viz import print_graphviz\ndy.renew_cg()\ny = dy.tanh(dy.ones(3))\n"
    (tmp_path / "script.py").write_text(text + "dy.print_graphviz(compact=True, expression_names={y: 'y'})\nprint_graphviz()\n")
    made = run(["-m", "autobatch.dynet", "script.py", "--dynet-viz"], tmp_path)
    assert made.stdout.count("digraph G {") == 2 and '[label="y (3,)"]' in made.stdout, made.stderr


def test_the_runner_says_what_is_wrong(tmp_path):
    made = run(["-m", "autobatch.dynet", "nix.py"], tmp_path)
    assert made.returncode != 0 and "there is no file nix.py" in made.stderr
    made = run(["-m", "autobatch.dynet"], tmp_path)
    assert made.returncode == 2 and "python -m autobatch.dynet SCRIPT ARGS..." in made.stdout
    (tmp_path / "gpu.py").write_text("import dynet as dy\n")
    (tmp_path / "fails.py").write_text("import dynet as dy\ndy.tanh(3)\n")
    made = run(["-m", "autobatch.dynet", "fails.py"], tmp_path)
    assert made.returncode == 1 and 'fails.py", line 2' in made.stderr and "expected  an expression" in made.stderr
    assert made.stderr.count("Traceback") == 1 and "runpy" not in made.stderr and "dynet.py" not in made.stderr
    made = run(["-m", "autobatch.dynet", "gpu.py", "--dynet-mem", "512"], tmp_path)
    assert made.stderr == "command line:1: UserWarning: --dynet-mem has no meaning here: memory grows as it is needed\n"
    made = run(["-m", "autobatch.dynet", "gpu.py", "--dynet-l2", "512"], tmp_path)
    assert made.stderr.endswith("\n  try       --dynet-weight-decay\n")
    made = run(["-m", "autobatch.dynet", "gpu.py", "--dynet-gpu"], tmp_path)
    assert made.returncode == 1 and "device 'cuda' needs NVIDIA's driver" in made.stderr

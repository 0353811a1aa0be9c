"""The examples, run small: what they return is what they promise. The benchmark of the TreeLSTM is run small too."""

import importlib.util
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
POLICIES = {"none", "depth", "agenda", "ratio"}


def load(path):
    """A script of the repository as a module, by its path."""
    name = "script_" + path.replace("/", "_").removesuffix(".py")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


lstm_acceptor = load("examples/lstm_acceptor.py")
tree_lstm = load("examples/tree_lstm.py")
benchmark = load("benchmarks/tree_lstm.py")


@pytest.mark.parametrize("script", [lstm_acceptor, tree_lstm, benchmark], ids=lambda module: module.__name__)
def test_help(script, capsys):
    with pytest.raises(SystemExit) as exit:
        script.main(["--help"])
    assert exit.value.code == 0
    assert "--seed" in capsys.readouterr().out


@pytest.fixture(scope="module")
def acceptor():
    return lstm_acceptor.main(["--sentences", "24", "--batch", "8"])


@pytest.mark.parametrize("way", ["one_at_a_time", "batched"])
def test_acceptor_learns(acceptor, way):
    losses = acceptor[way]["losses"]
    assert len(losses) == 10
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 4
    assert [label for label, _ in acceptor[way]["predictions"]] == [label for _, label in lstm_acceptor.DATA]


def test_acceptor_alone_and_together(acceptor):
    assert acceptor["alone_and_together"]["difference"] < 1e-6


def test_acceptor_timing(acceptor):
    rows = {row["policy"]: row for row in acceptor["timing"]}
    assert rows.keys() == POLICIES
    for row in rows.values():
        assert row["sentences"] == 24
        assert row["sentences_per_second"] > 0
        assert row["loss"] == pytest.approx(rows["none"]["loss"], rel=1e-4)
        assert row["lower_bound"] <= row["batches"] <= rows["none"]["batches"]
    assert rows["ratio"]["batches"] < rows["none"]["batches"] / 4


@pytest.mark.parametrize("model", ["lstm", "rnn"])
def test_tree_learns(model):
    found = tree_lstm.main(["--model", model, "--epochs", "8"])
    history = found["history"]
    assert (found["train"], found["dev"], len(history)) == (36, 9, 8)
    assert history[-1]["loss"] < history[0]["loss"] / 3
    assert history[-1]["node_accuracy"] > max(0.7, history[0]["node_accuracy"])
    assert 0 <= history[-1]["root_accuracy"] <= 1


def test_tree_policies_agree():
    small = ["--epochs", "2", "--wembed", "6", "--hidden", "7"]
    losses, batches = {}, {}
    for policy in POLICIES:
        history = tree_lstm.main([*small, "--policy", policy])["history"]
        losses[policy], batches[policy] = [e["loss"] for e in history], [e["batches"] for e in history]
    for policy in POLICIES:
        assert losses[policy] == pytest.approx(losses["none"], rel=1e-3)
    assert batches["ratio"][0] < batches["none"][0] / 2


def test_tree_data_and_dropout(tmp_path, capsys):
    (tmp_path / "train.txt").write_text("(3 (2 very) (3 good))\n\n(1 (2 not) (3 good))\n" * 3)
    (tmp_path / "dev.txt").write_text("(3 good)\n(2 (2 unheard) (2 of))\n")
    sizes = ["--epochs", "2", "--wembed", "4", "--hidden", "4", "--batch", "4"]
    found = tree_lstm.main(["--data", str(tmp_path), *sizes, "--dropout", "0.5"])
    assert (found["train"], found["dev"], found["words"]) == (6, 2, 3)
    assert "good" in capsys.readouterr().out


def test_treebank_is_well_formed():
    lines = tree_lstm.TREEBANK.split("\n")[1:-1]
    trees = [tree_lstm.read_tree(line) for line in lines]
    assert len(trees) == len(set(map(str, trees))) == 45
    assert str(trees[0]) == "the soup was very good"
    assert {tree.label for tree in trees} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "line", ["", "3", "(3 good", "(3 good))", "(7 good)", "()", "(3 (2 very))", "(3 (2 a) (2 b) (2 c))", "(2 a) (2 b)"]
)
def test_malformed_trees_are_refused(line):
    with pytest.raises(ValueError, match=r"want|closes"):
        tree_lstm.read_tree(line)


def test_benchmark_runs_small():
    sizes = ["--hidden", "8", "--batch", "4", "--minibatches", "4", "--rounds", "2"]
    ratio, none = benchmark.main([*sizes, "--policies", "ratio", "none", "--no-dynet"])
    assert (ratio["policy"], none["policy"]) == ("ratio", "none")
    assert ratio["losses"] == pytest.approx(none["losses"], rel=1e-3)
    assert ratio["over_none"]["min"] <= ratio["over_none"]["median"] <= ratio["over_none"]["max"]
    assert ratio["batches_per_minibatch"] < none["batches_per_minibatch"]
    assert ratio["of_dynet"] is None

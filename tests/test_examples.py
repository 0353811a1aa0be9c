"""The examples, run small: what they return is what they promise. The benchmark of the TreeLSTM is run small too."""

import functools
import importlib.util
import pathlib
import random
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
attention = load("examples/attention.py")
dependency_parser = load("examples/dependency_parser.py")
benchmark = load("benchmarks/tree_lstm.py")


@pytest.mark.parametrize(
    "script", [lstm_acceptor, tree_lstm, attention, dependency_parser, benchmark], ids=lambda module: module.__name__
)
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


def test_attention_learns():
    arguments = ["--epochs", "3", "--hidden", "48"]
    found = attention.main(arguments)
    history = found["history"]
    assert (found["train"], found["dev"], len(history)) == (900, 100, 3)
    assert history[-1]["loss"] < history[0]["loss"] / 3
    assert history[-1]["accuracy"] > max(0.6, history[0]["accuracy"])
    assert history[0]["batches"] < 100
    assert [epoch["loss"] for epoch in attention.main(arguments)["history"]] == [epoch["loss"] for epoch in history]


def test_attention_decodes_alone_as_together():
    translator = attention.main(["--epochs", "1", "--embed", "8", "--hidden", "8"])["translator"]
    sources = [["4"], ["1", "2"], ["9", "0", "7"], ["9", "unheard-of"]]
    together = translator.decode(sources, longest=7)
    assert together == [translator.decode([source], longest=7)[0] for source in sources]
    assert all(len(words) <= 7 for words in together)


def test_names_of_numbers():
    names = [" ".join(attention.name_of(n)) for n in (0, 7, 13, 20, 42, 100, 300, 615, 999)]
    assert names[:5] == ["zero", "seven", "thirteen", "twenty", "forty two"]
    assert names[5:] == ["one hundred", "three hundred", "six hundred fifteen", "nine hundred ninety nine"]


def test_attention_data(tmp_path, capsys):
    path = tmp_path / "pairs.txt"
    path.write_text("ein Hund\ta dog\n\neine Katze\ta cat\n" * 5)
    found = attention.main(["--data", str(path), "--epochs", "40", "--embed", "8", "--hidden", "8", "--batch", "4"])
    assert (found["train"], found["dev"]) == (9, 1)
    assert found["history"][-1]["accuracy"] == 1
    assert "eine Katze   ->   a cat" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["ein Hund a dog\n", "a\tb\tc\n", "a\t \n", "a\tb\n", ""])
def test_malformed_pairs_are_refused(tmp_path, text):
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"pairs.txt(, line 1)?: want .*; got"):
        attention.main(["--data", str(path)])


@pytest.mark.parametrize("explore", ["0.5", "0"])
def test_parser_learns(explore):
    arguments = ["--epochs", "8", "--explore", explore]
    found = dependency_parser.main(arguments)
    history = found["history"]
    assert (found["train"], found["skipped"], found["dev"], len(history)) == (32, 0, 8, 8)
    assert history[-1]["loss"] < history[0]["loss"] / 4
    assert history[-1]["uas"] > max(0.75, history[0]["uas"])
    assert history[0]["batches"] < (40 if explore == "0" else 150)
    assert [epoch["loss"] for epoch in dependency_parser.main(arguments)["history"]] == [epoch["loss"] for epoch in history]


def test_parser_parses_alone_as_together():
    parser = dependency_parser.main(["--epochs", "1", "--wembed", "6", "--hidden", "6", "--explore", "1"])["parser"]
    sentences = dependency_parser.read_treebank(dependency_parser.TREEBANK)[:6]
    together = parser.parse(sentences)
    assert together == [parser.parse([sentence])[0] for sentence in sentences]
    assert [len(heads) for heads in together] == [len(sentence) for sentence in sentences]


def test_parser_treebank_is_well_formed():
    sentences = dependency_parser.read_treebank(dependency_parser.TREEBANK)
    assert len(sentences) == 40
    for sentence in sentences:
        assert sentence.is_projective()
        assert sentence.heads.count(len(sentence)) == 1


def random_trees(count):
    """`count` projective trees of random words, as they come from random transitions."""
    rng = random.Random(3)
    for _ in range(count):
        state = dependency_parser.State(rng.randint(1, 5))
        while allowed := state.allowed():
            state.take(rng.choice(allowed))
        yield state.heads


def test_parser_final_states_are_those_without_transitions():
    for heads in random_trees(50):
        assert dependency_parser.Sentence("x" * len(heads), None, heads).is_projective()
        assert None not in heads
        assert all(0 <= head <= len(heads) for head in heads)


def test_parser_costs_are_the_arcs_that_are_lost():
    """The cost of a transition against a search through all that can follow."""

    def after(state, transition):
        copy = dependency_parser.State(state.n)
        copy.stack, copy.front, copy.heads = state.stack[:], state.front, state.heads[:]
        copy.take(transition)
        return copy

    for gold in random_trees(30):

        @functools.cache
        def best(stack, front, gold=tuple(gold)):
            """The most arcs of the tree that can still be found."""
            state = dependency_parser.State(len(gold))
            state.stack, state.front = list(stack), front
            found = []
            for transition in state.allowed():
                new = after(state, transition)
                right = sum(head is not None and head == gold[word] for word, head in enumerate(new.heads))
                found.append(right + best(tuple(new.stack), new.front))
            return max(found, default=0)

        waiting = [dependency_parser.State(len(gold))]
        for state in waiting:
            for transition in state.allowed():
                new = after(state, transition)
                right = sum(new.heads[w] == gold[w] for w in range(len(gold)) if new.heads[w] != state.heads[w])
                lost = best(tuple(state.stack), state.front) - right - best(tuple(new.stack), new.front)
                assert state.cost(transition, gold) == lost
                waiting.append(new)


CONLLU = """# text = a dog barks
1-2\ta-dog\t_\t_\t_\t_\t_\t_\t_\t_
1\ta\t_\tDET\t_\t_\t2\tdet\t_\t_
2\tdog\t_\tNOUN\t_\t_\t3\tnsubj\t_\t_
2.1\tthat\t_\tPRON\t_\t_\t_\t_\t_\t_
3\tbarks\t_\tVERB\t_\t_\t0\troot\t_\t_
"""
CROSSING = "".join(f"{n}\tw{n}\t_\tX\t_\t_\t{head}\tdep\t_\t_\n" for n, head in enumerate((3, 4, 0, 3), 1))


def test_parser_data(tmp_path):
    path, dev = tmp_path / "train.conllu", tmp_path / "dev.conllu"
    path.write_text("\n".join([CONLLU] * 9 + [CROSSING]))
    dev.write_text(CONLLU)
    sizes = ["--epochs", "6", "--wembed", "8", "--tembed", "4", "--hidden", "8", "--batch", "2", "--alpha", "0.02"]
    found = dependency_parser.main(["--data", str(path), "--dev", str(dev), *sizes])
    assert (found["train"], found["skipped"], found["dev"], found["words"]) == (9, 1, 1, 3)
    assert found["history"][-1]["uas"] == 1
    found = dependency_parser.main(["--data", str(path), *sizes])  # crossing arcs are tested with
    assert (found["train"], found["skipped"], found["dev"]) == (8, 0, 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\t3\tnsubj", "\t4\tnsubj"),  # no such word
        ("\t3\tnsubj", "\t_\tnsubj"),
        ("\t3\tnsubj", "\t-1\tnsubj"),
        ("\t3\tnsubj", "\t1\tnsubj"),  # a circle
        ("3\tbarks", "4\tbarks"),
        ("3\tbarks", "3 barks"),
        (CONLLU, "# nothing\n"),
    ],
)
def test_malformed_conllu_is_refused(tmp_path, old, new):
    path = tmp_path / "bad.conllu"
    path.write_text(CONLLU.replace(old, new))
    with pytest.raises(ValueError, match=r"bad.conllu(, line \d)?: (want|a head is not|the heads form a circle)"):
        dependency_parser.main(["--data", str(path)])


@pytest.mark.parametrize("script", [attention, dependency_parser], ids=lambda module: module.__name__)
@pytest.mark.parametrize("arguments", [["--data", "no-such-file"], ["--epochs", "0"]], ids=" ".join)
def test_wrong_arguments_are_refused(script, arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        script.main(arguments)
    assert exit.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_benchmark_runs_small():
    sizes = ["--hidden", "8", "--batch", "4", "--minibatches", "4", "--rounds", "2"]
    ratio, none = benchmark.main([*sizes, "--policies", "ratio", "none", "--no-dynet"])
    assert (ratio["policy"], none["policy"]) == ("ratio", "none")
    assert ratio["losses"] == pytest.approx(none["losses"], rel=1e-3)
    assert ratio["over_none"]["min"] <= ratio["over_none"]["median"] <= ratio["over_none"]["max"]
    assert ratio["batches_per_minibatch"] < none["batches_per_minibatch"]
    assert ratio["of_dynet"] is None

"""The examples, run small: what they return is what they promise."""

import functools
import importlib.util
import pathlib
import random
import re
import subprocess
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
tagger = load("examples/bilstm_tagger.py")
language_model = load("examples/rnn_language_model.py")
attention = load("examples/attention.py")
dependency_parser = load("examples/dependency_parser.py")


@pytest.mark.parametrize(
    "script",
    [lstm_acceptor, tree_lstm, tagger, language_model, attention, dependency_parser],
    ids=lambda module: module.__name__,
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


@pytest.mark.parametrize("letters", [[], ["--characters"]], ids=["words", "characters"])
def test_tagger_learns(letters):
    found = tagger.main(letters)
    history = found["history"]
    assert (found["train"], found["dev"], len(history)) == (60, 12, 8)
    losses = [epoch["loss"] for epoch in history]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.2
    assert history[-1]["accuracy"] > (0.9 if letters else 0.8)


def test_tagger_reads_the_letters_of_rare_words():
    """An untrained word is like all others without --characters, and has scores of its own with it."""
    apart = {}
    for letters in ([], ["--characters"]):
        found = tagger.main([*letters, "--epochs", "1"])["tagger"]
        tagger.dy.renew_cg()
        one, other, again = (found.scores([word])[0].vec_value() for word in ("zorbed", "zorbing", "zorbed"))
        assert one == again
        apart[bool(letters)] = one != other
    assert apart == {False: False, True: True}


CONLLU = """# text = It works
1\tIt\t_\tPRON\t_\t_\t_\t_\t_\t_
2\tworks\t_\tVERB\t_\t_\t_\t_\t_\t_

# text = don't
1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tdo\t_\tAUX\t_\t_\t_\t_\t_\t_
2\tn't\t_\tPART\t_\t_\t_\t_\t_\t_
"""
FORMATS = {
    "conllu": CONLLU,
    "conll2003": "It PRP B-NP PRON\nworks VBZ B-VP VERB\n\n\ndo VB O AUX\nn't RB O PART",
    "tabs": "It\tPRON\r\nworks\tVERB\r\n\r\ndo\tAUX\r\nn't\tPART\r\n",
    "bars": "It|PRON works|VERB\n\ndo|AUX n't|PART\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_tagger_reads_files(name, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(FORMATS[name].encode())
    expected = [(("It", "works"), ("PRON", "VERB")), (("do", "n't"), ("AUX", "PART"))]
    assert tagger.read_file(path) == expected
    sizes = ["--wembed", "4", "--cembed", "2", "--hidden", "4", "--mlp", "3", "--min-count", "2", "--epochs", "2"]
    found = tagger.main(["--data", str(path), "--dev", str(path), "--characters", "--dropout", "0.5", *sizes])
    assert (found["train"], found["dev"], found["tagger"].tags) == (2, 2, ["AUX", "PART", "PRON", "VERB"])
    assert "works" in capsys.readouterr().out


def test_tagger_keeps_bars_and_signs_in_words():
    assert tagger.read_sentences(["||SYM a|b|X"], "here") == [(("|", "a|b"), ("SYM", "X"))]
    assert tagger.read_sentences(["#\tSYM", "a|b\tX"], "here") == [(("#", "a|b"), ("SYM", "X"))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no sentences in"),
        (b"\n\n", "no sentences in"),
        (b"one NN\ntwo\n", "line 2: want a word, a blank or tab, and its tag; got 'two'"),
        (b"one|NN two|NN\n\nthree|NN four\n", "line 3: want word|TAG, got 'four'"),
        (b"1\tIt\t_\tPRON" + b"\t_" * 6 + b"\n2\tworks\n", "line 2: want the 10 columns of CoNLL-U"),
        (b"one NN\n", "has 1 sentences: want at least 6, or --dev FILE"),
        (b"caf\xe9 NN\n", "is not text in UTF-8"),
    ],
)
def test_tagger_refuses_bad_files(text, message, tmp_path):
    (tmp_path / "bad").write_bytes(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        tagger.main(["--data", str(tmp_path / "bad")])


@pytest.mark.parametrize("rnn", ["lstm", "gru", "simple"])
def test_language_model_learns(rnn):
    found = language_model.main(["--rnn", rnn, "--epochs", "6", "--samples", "3", "--start", "this is"])
    history = found["history"]
    assert (found["train"], found["dev"], len(history)) == (60, 12, 6)
    perplexities = [epoch["perplexity"] for epoch in history]
    assert perplexities == sorted(perplexities, reverse=True)
    assert perplexities[-1] < 5
    assert history[-1]["dev_perplexity"] < 5
    assert len(found["samples"]) == 3
    assert all(sample.startswith("this is ") for sample in found["samples"])


def test_language_model_minibatch_is_its_sentences():
    """Masked and batched by hand, the loss is that of the sentences one by one."""
    lm = language_model.main(["--epochs", "1", "--samples", "0"])["lm"]
    sentences = [lm.encode(s.split()) for s in ("the cat", "the man that fed the dog", "the", "this is the unheard of rat")]
    language_model.dy.renew_cg()
    alone = [lm.loss([sentence]).scalar_value() for sentence in sentences]
    assert lm.loss(sentences).scalar_value() == pytest.approx(sum(alone), rel=1e-5)
    assert list(language_model.columns([[7, 8], [9]], 0)) == [([7, 9], [1, 1]), ([8, 0], [1, 1]), ([0, 0], [1, 0])]


def test_language_model_reads_files(tmp_path, capsys):
    (tmp_path / "train").write_text("a b a b\n\nb a\nc <unk> <s>\n")
    (tmp_path / "dev").write_text("a d\n")
    small = ["--wembed", "3", "--hidden", "4", "--layers", "2", "--batch", "2", "--epochs", "2", "--dropout", "0.5"]
    found = language_model.main(["--data", str(tmp_path / "train"), "--dev", str(tmp_path / "dev"), *small])
    assert (found["train"], found["dev"], found["lm"].vocabulary) == (3, 1, ["<s>", "<unk>", "a", "b"])
    assert "Sampled" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b" \n", "no sentences in"),
        (b"a b\n", "has 1 sentences: want at least 6, or --dev FILE"),
        (b"caf\xe9\n", "is not text in UTF-8"),
    ],
)
def test_language_model_refuses_bad_files(text, message, tmp_path):
    (tmp_path / "bad").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        language_model.main(["--data", str(tmp_path / "bad")])


@pytest.mark.parametrize("script", [tagger, language_model], ids=lambda module: module.__name__)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "there is no file nowhere"),
        (["--dev", "nowhere"], "there is no file nowhere"),
        (["--epochs", "0"], "must be at least 1"),
        (["--dropout", "1"], "--dropout < 1"),
    ],
)
def test_bad_arguments(script, arguments, message, capsys):
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert message in capsys.readouterr().err


def written_for_dynet(path):
    """The text of a script of the repository, with `import dynet as dy`."""
    return (ROOT / path).read_text(encoding="utf-8").replace("import autobatch as dy", "import dynet as dy")


@pytest.mark.parametrize("name", ["bilstm_tagger.py", "rnn_language_model.py"])
def test_written_for_dynet(name, tmp_path):
    (tmp_path / name).write_text(written_for_dynet(f"examples/{name}"), encoding="utf-8")
    command = [sys.executable, "-m", "autobatch.dynet", str(tmp_path / name), "--epochs", "1"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "epoch " in told
    assert "60 training sentences" in told


def in_dynet(path):
    """`main` of a script of the repository that has imported DyNet itself."""
    script = {"__name__": "script_in_dynet"}
    exec(compile(written_for_dynet(path), path, "exec"), script)
    return script["main"]


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("script", "path", "arguments"),
    [
        (tagger, "examples/bilstm_tagger.py", ["--epochs", "4"]),
        (tagger, "examples/bilstm_tagger.py", ["--epochs", "4", "--characters"]),
        (language_model, "examples/rnn_language_model.py", ["--epochs", "4"]),
    ],
)
def test_same_course_in_dynet(dynet, script, path, arguments):
    """The same program in DyNet itself, from the same seed: equal losses, epoch by epoch."""
    ours, theirs = script.main(arguments), in_dynet(path)(arguments)
    for epoch, other in zip(ours["history"], theirs["history"], strict=True):
        measured = [name for name in epoch if "per_second" not in name]
        assert [epoch[name] for name in measured] == pytest.approx([other[name] for name in measured], rel=1e-4)


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

"""The benchmarks, run small: programs agree under every way of running them, readers read, one command compares."""

import importlib
import importlib.util
import json
import pathlib
import random
import sys

import pytest

import autobatch as ab

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

compare = importlib.import_module("benchmarks.compare")
overhead = importlib.import_module("benchmarks.overhead")
performance = importlib.import_module("benchmarks.performance")
tasks = importlib.import_module("benchmarks.tasks")
TASKS = {name: tasks.load(name) for name in tasks.NAMES}
BATCH, STEPS, RATE = 3, 3, 0.3


def small(task, seed=1):
    """Minibatches of a task, small sizes, initial values."""
    instances, known = task.generated(random.Random(seed), BATCH * STEPS)
    sizes = tasks.sizes_of(task, 6) | {"mlp": 5} | known
    sizes |= {name: 8 for name in ("word", "tag", "letter") if name in task.SIZES}
    parts = [instances[i : i + BATCH] for i in range(0, len(instances), BATCH)]
    return parts, sizes, tasks.draw(task.shapes(sizes), seed)


def train(program, values, parts, policy="ratio"):
    """The losses of minibatches, with an update after each."""
    tasks.fill(program.model, values)
    trainer = ab.SimpleSGDTrainer(program.model, RATE)
    losses = []
    for part in parts:
        ab.renew_cg(autobatching=policy)
        loss = program.loss(part)
        losses.append(loss.scalar_value())
        loss.backward()
        trainer.update()
    return losses


@pytest.mark.parametrize("name", TASKS)
def test_programs_agree_under_every_policy(name):
    task = TASKS[name]
    parts, sizes, values = small(task)
    expected = train(task.Program(ab, sizes), values, parts, "none")
    assert len(set(expected)) == STEPS
    for policy in ("ratio", "depth", "agenda"):
        assert train(task.Program(ab, sizes), values, parts, policy) == pytest.approx(expected, rel=1e-5)


def test_cells_agree():
    task = TASKS["tree_lstm"]
    parts, sizes, values = small(task)
    expected = train(task.Program(ab, sizes), values, parts)
    assert train(task.Program(ab, sizes, cells=True), values, parts) == pytest.approx(expected, rel=1e-5)


def test_batched_by_hand_agrees():
    task = TASKS["tagger"]
    _, sizes, values = small(task)
    instances, _ = task.generated(random.Random(2), 4, 7)
    assert {len(words) for words, _ in instances} == {7}
    expected = train(task.Program(ab, sizes), values, [instances])
    assert train(task.Manual(ab, sizes), values, [instances]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_pytorch_agrees(name):
    torch = pytest.importorskip("torch")
    task = TASKS[name]
    parts, sizes, values = small(task)
    expected = train(task.Program(ab, sizes), values, parts)
    network = task.HandBatched(torch, sizes, values)
    trainer = torch.optim.SGD(network.trained, RATE)
    losses = []
    for part in parts:
        loss = network.loss(network.prepare(part))
        losses.append(loss.item())
        trainer.zero_grad()
        loss.backward()
        trainer.step()
    assert losses == pytest.approx(expected, rel=1e-4)


def test_products_of_a_tagger():
    sizes = {"word": 8, "hidden": 5, "mlp": 4, "tags": 3}
    batch = [([0, 1, 2], [0, 0, 0]), ([1], [2])]
    one_way = [(8, 20, [4]), (5, 20, [1, 1])]
    assert TASKS["tagger"].products(batch, sizes) == [*one_way, *one_way, (10, 4, [4]), (4, 3, [4])]


def test_products_of_a_tree():
    tree = (0, (1, 5), (2, (3, 6), (4, 7)))
    found = TASKS["tree_lstm"].products([tree, (0, 1)], {"word": 3, "hidden": 2})
    assert found == [(3, 6, [4]), (4, 10, [1, 1]), (2, 5, [6])]


@pytest.mark.parametrize("seed", range(5))
def test_states_lead_to_the_tree(seed):
    task, rng = TASKS["parser"], random.Random(seed)
    heads = task.random_heads(rng, rng.randint(1, 20))
    stack, front, found = [], 0, [None] * len(heads)
    for positions, transition in task.states(heads):
        assert positions == (*([-1] * 4 + stack)[-3:], front)
        if transition == task.SHIFT:
            stack.append(front)
            front += 1
        else:
            word = stack.pop()
            found[word] = front if transition == task.LEFT else stack[-1]
    assert found == heads and front == len(heads) and not stack


def test_crossing_arcs_have_no_states():
    with pytest.raises(ValueError, match=r"no transitions lead to the heads \[2, 3, 4, 4\]"):
        TASKS["parser"].states([2, 3, 4, 4])


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("tagger", 21, 25), ("parser", 15, 18), ("language_model", 20, 22)],
)
def test_generated_lengths(name, low, high):
    instances, _ = TASKS[name].generated(random.Random(1), 2000)
    lengths = [len(i if name == "language_model" else i[0]) for i in instances]
    assert low < sum(lengths) / len(lengths) < high


# Real data ------------------------------------------------------------------------------------------------------------

CONLLU = """# a sentence, then one with crossing arcs
1\tthe\t_\tDET\t_\t_\t2\tdet\t_\t_
2\tdog\t_\tNOUN\t_\t_\t3\tnsubj\t_\t_
3\tbarks\t_\tVERB\t_\t_\t0\troot\t_\t_

1\ta\t_\tX\t_\t_\t3\tx\t_\t_
2\tb\t_\tX\t_\t_\t4\tx\t_\t_
3\tc\t_\tX\t_\t_\t0\troot\t_\t_
4\td\t_\tX\t_\t_\t3\tx\t_\t_
"""
FILES = {
    "wikiner/dev.txt": "the|O Nile|I-LOC flows|O\n" + "it|O flows|O\n" * 5,
    "sst/train.txt": "(3 (2 a) (4 (3 good) (2 film)))\n(2 film)\n",
    "ud/x-train.conllu": CONLLU,
    "ptb/train.txt": "a dog barks\nit barks\n",
}
FIRST = {
    "tagger": ([0, 1, 2], [0, 1, 0]),
    "char_tagger": ([(0, 1, 1, 1, 0), (0, 1, 1, 2, 1, 0), 0], [0, 1, 0]),
    "tree_lstm": (3, (2, 0), (4, (3, 0), (2, 1))),
    "parser": (
        [0, 0, 0, 1],
        [2, 3, 4, 1],
        [
            ((-1, -1, -1, 0), 0),
            ((-1, -1, 0, 1), 1),
            ((-1, -1, -1, 1), 0),
            ((-1, -1, 1, 2), 1),
            ((-1, -1, -1, 2), 0),
            ((-1, -1, 2, 3), 1),
        ],
    ),
    "language_model": [3, 4, 2],
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", FIRST)
def test_real_data(name, folder):
    task = TASKS[name]
    instances, known = task.read(folder)
    assert len(instances) == {"tagger": 6, "char_tagger": 6, "parser": 1}.get(name, 2)
    if name != "char_tagger":
        assert instances[0] == FIRST[name]
    else:
        words, tags = instances[0]
        assert [isinstance(word, int) for word in words] == [False, False, True] and tags == [0, 1, 0]
        assert all(word[0] == word[-1] == 0 and len(word) > 2 for word in words[:2])
    sizes = tasks.sizes_of(task, 6) | known
    train(task.Program(ab, sizes), tasks.draw(task.shapes(sizes), 1), [instances])


@pytest.mark.parametrize("name", TASKS)
def test_without_real_data(name, tmp_path):
    with pytest.raises(FileNotFoundError):
        TASKS[name].read(tmp_path)


# The commands ---------------------------------------------------------------------------------------------------------

TINY = ["--batch", "2", "--minibatches", "1", "--rounds", "2", "--hidden", "4", "--threads", "1"]


def test_compare(tmp_path, capsys):
    file = tmp_path / "found.json"
    libraries = ["autobatch", "autobatch-none", "floor"]
    (result,) = compare.main(["--tasks", "acceptor", "--libraries", *libraries, *TINY, "--json", str(file)])
    rows = {row["library"]: row for row in result["libraries"]}
    assert list(rows) == libraries
    assert rows["autobatch"]["losses"] == pytest.approx(rows["autobatch-none"]["losses"], rel=1e-4)
    assert rows["autobatch"]["lower_bound"] <= rows["autobatch"]["batches"] < rows["autobatch-none"]["batches"]
    speed = rows["autobatch"]["of_floor"]
    assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert all(rows["autobatch"]["ms_per_minibatch"][phase] > 0 for phase in compare.PHASES)
    assert rows["autobatch"]["ns_to_record"] > 0 and rows["floor"]["ns_to_record"] is None
    assert rows["autobatch"]["arenas"] > 0 and rows["floor"]["nodes"] is None
    said = capsys.readouterr().out
    assert "LSTM acceptor (word 4, hidden 4, words 1,000; generated data)" in said and "minibatches agree" in said
    saved = json.loads(file.read_text())
    assert saved["agree"] and saved["results"] == json.loads(json.dumps([result]))


def test_phases_are_those_of_one_minibatch():
    several = [*TINY[:2], "--minibatches", "3", *TINY[4:]]
    (result,) = compare.main(["--tasks", "acceptor", "--libraries", "autobatch", *several])
    (row,) = result["libraries"]
    assert (result["minibatches"], result["sentences"]) == (3, 6)
    speeds = row["sentences_per_second"]
    total = sum(row["ms_per_minibatch"].values())
    assert 0.5 * 2000 / speeds["max"] < total < 2 * 2000 / speeds["min"]


def test_compare_equal_lengths_forward_only(capsys):
    libraries = ["--libraries", "autobatch", "autobatch-manual", "floor"]
    (result,) = compare.main(["--equal-length", "5", "--infer", *libraries, *TINY, "--sizes", "word=6", "mlp=3"])
    automatic, manual, _ = result["libraries"]
    assert [result["sizes"][name] for name in ("word", "hidden", "mlp")] == [6, 4, 3]
    assert manual["losses"] == pytest.approx(automatic["losses"], rel=1e-4)
    assert manual["nodes"] < automatic["nodes"]
    assert automatic["ms_per_minibatch"]["backward"] == automatic["ms_per_minibatch"]["update"] == 0
    assert "generated, 5 tokens each" in capsys.readouterr().out


@pytest.mark.oracle
@pytest.mark.parametrize("infer", [[], ["--infer"]], ids=["training", "forward"])
def test_compare_with_dynet(dynet, infer):
    libraries = ["--libraries", "autobatch", "dynet", "dynet-compact"]
    (result,) = compare.main(["--tasks", "char_tagger", *libraries, *infer, *TINY])
    assert max(row["disagreement"] for row in result["libraries"]) < 1e-4


def test_disagreement_fails(monkeypatch):
    result = {"task": "acceptor", "libraries": [{"library": "autobatch", "disagreement": 0.5}]}
    monkeypatch.setattr(compare, "compare", lambda args: [result])
    with pytest.raises(SystemExit) as exit:
        compare.main([])
    assert exit.value.code == 1


def measured(library, speed, **ratios):
    """A record of one library."""
    around = {"median": speed, "min": speed * 0.9, "max": speed * 1.1}
    counts = {"nodes": 1000, "batches": 12, "lower_bound": 11, "memory": 3 << 20, "arenas": 2 << 20, "disagreement": 2e-7}
    counts |= {"ns_to_record": 310.0, "ns_to_plan": 61.0}
    none = {f"of_{rival}": None for rival in compare.RIVALS}
    of = {f"of_{rival}": {"median": r, "min": r, "max": r} for rival, r in ratios.items()}
    milliseconds = dict.fromkeys(compare.PHASES, 1.5)
    times = {"sentences_per_second": around, "ms_per_minibatch": milliseconds}
    return {"library": library, "name": library, **counts, **none, **of, **times}


def a_run(*places):
    """A run of one task; places are (batch, hidden)."""
    calls = []
    for batch, hidden in places:
        rows = [measured("autobatch", 800.0 * batch, dynet=1.6, torch=0.8), measured("dynet", 500.0), measured("torch", 1e4)]
        rows.append(measured("autobatch-manual", 820.0 * batch))
        about = {"task": "tagger", "title": "BiLSTM tagger", "sizes": {"hidden": hidden}, "real": False}
        calls.append({"arguments": {"batch": batch, "threads": 2}, "results": [{**about, "libraries": rows}]})
    machine = {"cores": 2, "architecture": "x86_64", "system": "Linux", "versions": {"numpy": "2.0"}}
    return {"machine": machine, "quick": False, "calls": calls}


def test_performance_document(tmp_path):
    pytest.importorskip("matplotlib")
    found = {"training": a_run((64, 50)), "inference": a_run((64, 50)), "equal": a_run((64, 50))}
    found |= {"batch": a_run((1, 50), (10, 50)), "hidden": a_run((64, 25), (64, 50))}
    file = tmp_path / "measured.json"
    file.write_text(json.dumps(found))
    options = ["--plot-only", "--json", str(file), "--docs", str(tmp_path)]
    assert performance.main(options) == found
    text = (tmp_path / "performance.md").read_text()
    assert (
        "Against DyNet, the programs run at 1.60 (BiLSTM tagger) to 1.60 times its speed (BiLSTM tagger), ahead on 1 of 1."
        in text
    )
    assert "ahead on 0 of 1; behind: BiLSTM tagger." in text
    assert "| BiLSTM tagger | autobatch | 800 | 8,000 |" in text
    assert "| BiLSTM tagger | autobatch | 51,200 (25) | 51,200 (50) |" in text
    assert "At hidden 50 automatic batching takes 1.02 times the time of batching by hand" in text
    pictures = {picture.name: picture.read_bytes() for picture in (tmp_path / "performance").iterdir()}
    assert pictures.keys() == {"phases.svg", "batch.svg", "hidden.svg"}
    assert all(f"performance/{name}" in text for name in pictures)
    performance.main(options)
    assert all((tmp_path / "performance" / name).read_bytes() == picture for name, picture in pictures.items())


def test_performance_measures(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(performance, "RIVALS", ("autobatch",))
    file = tmp_path / "results" / "measured.json"
    options = ["--quick", "--runs", "hidden", "--tasks", "acceptor", "--threads", "1"]
    found = performance.main([*options, "--json", str(file), "--docs", str(tmp_path)])
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    assert [result["sizes"]["hidden"] for _, result, _ in performance.entries(found["hidden"])] == [50, 100]
    assert "**From a quick run, with too few rounds to quote:** hidden." in (tmp_path / "performance.md").read_text()


def test_nothing_to_plot(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        performance.main(["--plot-only", "--json", str(tmp_path / "none.json")])
    assert exit.value.code == 2
    assert "measure first" in capsys.readouterr().err


def test_a_loss_that_is_no_number_disagrees():
    class Worker:
        def __init__(self, losses):
            self.checked = {"losses": losses}

    assert compare.disagreement(Worker([1.0, float("nan")]), Worker([1.0, 1.0])) == float("inf")
    assert compare.disagreement(Worker([1.0, 2.2]), Worker([1.0, 2.0])) == pytest.approx(0.1)
    assert compare.disagreement(Worker([None]), Worker([1.0])) is None


@pytest.mark.parametrize("script", [compare, performance], ids=lambda module: module.__name__)
def test_help(script, capsys):
    with pytest.raises(SystemExit) as exit:
        script.main(["--help"])
    assert exit.value.code == 0
    assert "--seed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tasks", "tager"],
        ["--batch", "0"],
        ["--sizes", "wrd=5"],
        ["--sizes", "word=0"],
        ["--data", "no-such-folder"],
        ["--equal-length", "5", "--tasks", "parser"],
        ["--equal-length", "5", "--data", "."],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        compare.main(arguments)
    assert exit.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_what_the_library_itself_costs(monkeypatch):
    """Each part of the benchmark still finds what it measures; a process of its own is left out."""
    monkeypatch.setattr(overhead, "process", lambda cache, repetitions: (1.0, 0.5))
    figures = overhead.main(["--quick"])
    assert all(figure > 0 for name, (figure, _) in figures.items() if not name.startswith("collector"))
    for name in ("survey", "schedule", "forward_table", "backward_table", "weight_table", "lists to arrays"):
        assert sum(row.endswith(f": {name}") for row in figures) == 1, name
    assert {"value of a layer, 4 nodes", "value and backward, 1 node, policy ratio"} <= set(figures)

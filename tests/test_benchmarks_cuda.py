"""The benchmark of a card, on a driver in Python: it counts, says where nothing is timed, and measurements run to their end."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest

pytest.importorskip("greenlet")

from fake_driver import FakeCublas, fake_card

import autobatch as ab
from autobatch.cuda import cublas, driver
from autobatch.kernels._op import OPS

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

bench = importlib.import_module("benchmarks.cuda")
BROKEN = "device 'cuda' needs NVIDIA's driver"


@pytest.fixture
def no_card(monkeypatch):
    """A machine without the driver of a card."""
    monkeypatch.setattr(driver, "_names", lambda: ["libno-such-driver.so"])


def arguments(tmp_path, *more):
    return ["--quick", "--rounds", "1", "--out", str(tmp_path / "cuda.json"), *more]


def test_without_a_card_it_counts_and_says_so(tmp_path, capsys, no_card):
    found = bench.main(arguments(tmp_path, "--tasks", "tree_lstm", "--batch", "2"))
    assert found["machine"]["card"] is None and found["machine"]["why"].startswith(BROKEN)
    assert all(found[part] is None for part in ("correctness", "products", "bandwidth", "speed", "crossover", "launch"))
    assert [row["kind"] for row in found["counts"]] == ["plain", "cells", "bulk"]
    for row in found["counts"]:
        assert row["by"] == "counted, kernels not run" and row["allocations"] == 0 and row["waits"] == 1
        assert row["forward"] == sum(row["forward by kernel"].values()) >= row["batches"] > 0
        assert row["copies"] == {"to the card": 5, "from the card": 1, "on it": 0}
    plain, cells, _ = found["counts"]
    assert cells["forward"] + cells["backward"] < plain["forward"] + plain["backward"]
    assert json.loads((tmp_path / "cuda.json").read_text()) == json.loads(json.dumps(found))
    text = (tmp_path / "cuda.md").read_text()
    assert "There was no card: nothing here is a time" in text and capsys.readouterr().out.strip() == text.strip()
    assert {row["name"]: row["met"] for row in found["targets"]} == {**dict.fromkeys(bench.TARGETS), "allocations": True}


def test_parts_are_measured_again(tmp_path, no_card):
    first = bench.main(arguments(tmp_path, "--tasks", "acceptor", "--batch", "2"))
    again = bench.main(arguments(tmp_path, "--parts", "speed"))
    assert again["counts"] == json.loads(json.dumps(first["counts"])) and again["targets"] == first["targets"]
    other = bench.main(["--rounds", "1", "--out", str(tmp_path / "cuda.json"), "--parts", "speed"])
    assert "counts" not in other


def test_counts_are_those_of_kernels_that_run():
    """A minibatch of one small tree: what is counted without running kernels is what a run launches."""
    launches = []
    for execute in (False, True):
        with fake_card(execute=execute) as card, cublas.use(None), bench.on("cuda"):
            p = ab.ParameterCollection().add_parameters((3,), init=1.0)
            loss = ab.sum_elems(ab.tanh(ab.cmult(p, p)))
            value = loss.value()
            loss.backward()
            launches.append(card.launches())
            if execute:
                assert value == pytest.approx(3 * 0.7615941)
            ab.renew_cg()
            del p
    assert launches[0] == launches[1] != []


def test_measurements_run_to_their_end(tmp_path, monkeypatch):
    """With kernels that do nothing the figures mean nothing; but every part must come to its end and into the document."""
    monkeypatch.setattr(bench, "SIZES", (8,))
    monkeypatch.setattr(bench, "ROWS", (2,))
    monkeypatch.setattr(bench, "HIDDEN", (4,))
    monkeypatch.setattr(bench, "BATCH", 2)
    monkeypatch.setattr(bench, "BYTES", 1 << 14)
    args = bench.parse(arguments(tmp_path, "--tasks", "tagger"))
    with fake_card(execute=False, room=4 << 30) as card, cublas.use(FakeCublas(card)):
        found = {"machine": bench.machine(), "quick": True, "counts": [], "correctness": []}
        assert found["machine"]["card"]["name"] == "fake card" and found["machine"]["cublas"]
        found["products"], found["bandwidth"] = bench.products(args), bench.bandwidth(args)
        found["speed"], found["launch"] = bench.speed(args), bench.launch_time(args)
        found["crossover"] = [bench.contest("tagger", 4, 2, args, with_alone=False)]
        found["targets"] = bench.targets(found)
        text = bench.document(found)
    assert found["products"][0]["us"].keys() == {"own", "cuBLAS", "own, gathered", "cuBLAS, gathered"}
    assert len(found["bandwidth"]) == 6 and all(row["GB/s"] > 0 for row in found["bandwidth"])
    assert found["speed"][0]["times faster"]["card"] == 1 and "card, one by one" in found["speed"][0]["sentences/s"]
    assert {row["name"] for row in found["targets"] if row["met"] is not None} >= {"launch", "softmax", "bandwidth"}
    assert all(f"## {heading}" in text for heading in ("Products", "Bandwidth", "Tasks", "Against the CPU", "What was asked"))


@pytest.mark.parametrize("name", ["tanh", "affine_transform", "softmax"])
def test_errors_of_an_op(name):
    op = OPS[name]
    values, gradients = bench.evaluated(op, 0, "float64", "cpu")
    with fake_card(), cublas.use(None):
        again = bench.evaluated(op, 0, "float32", "cuda" if name == "tanh" else "cpu")
    assert 0 < bench.worst(again[0], values) < 1e-5 and 0 < bench.worst(again[1], gradients) < 1e-4
    assert bench.worst([values[0] + float("nan")], values[:1]) == float("inf")


def test_equal_infinities_are_no_error():
    minus = np.array([-np.inf, 2.0])
    assert bench.worst([minus], [minus]) == 0 and bench.worst([minus + np.array([0, 1])], [minus]) == 0.5
    assert bench.worst([-minus], [minus]) == bench.worst([np.zeros(2)], [minus]) == float("inf")


def test_errors_of_ops_can_be_told(tmp_path, monkeypatch):
    """On the processor, which has no errors but those of float32; of every thirtieth op, as each has to be compiled."""
    some = dict(list(OPS.items())[::30])
    monkeypatch.setattr(bench, "OPS", some)
    rows = bench.correctness(bench.parse(arguments(tmp_path)), device="cpu")
    assert not [row for row in rows if "error" in row]
    assert {row["op"] for row in rows} == set(some)
    assert all(bench.ops.examples(op, 64) for op in OPS.values())

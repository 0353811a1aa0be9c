"""What a card does: correctness, launches, products, bandwidth, and six tasks against PyTorch, the CPU and one by one.

    python -m benchmarks.cuda                              half an hour on a machine with a card, alone on it
    python -m benchmarks.cuda --quick                      minutes; too few rounds to quote
    python -m benchmarks.cuda --parts counts speed         these again, the others as they were: counts, correctness, products,
                                                           bandwidth, speed, crossover
    python -m benchmarks.cuda --tasks tree_lstm --data DIR

Results go to `benchmarks/results/cuda.json`, tables to `cuda.md` beside it and to the screen.

What is *counted* needs no card: where the tests can be imported, launches, copies, waits and allocations of a minibatch are
those that a driver in Python sees (`tests/fake_driver.py`), with kernels that are never run. The file says so. What is *timed*
needs a card; without one nothing is timed, and the file says that too.

Times are medians over rounds in which all variants take turns. A kernel is timed by launching its table, as planned and as it
lies on the card, many times over and waiting once.
"""

import argparse
import contextlib
import ctypes
import datetime
import gc
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import random
import statistics
import sys
import time
from collections import Counter

import numpy as np

import autobatch as ab
from autobatch.card import card
from autobatch.cuda import cublas, driver, launch
from autobatch.kernels import _gemm
from autobatch.kernels._errors import DeviceError
from autobatch.kernels._op import OPS
from autobatch.memory import address_of
from benchmarks import ops, tasks

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cuda.json"
PARTS = ("counts", "correctness", "products", "bandwidth", "speed", "crossover")
SPEED_TASKS = ("tree_lstm", "tagger", "parser")
HIDDEN, BATCH, RATE = (256, 512), 64, 0.1
SIZES, ROWS = (128, 256, 512, 1024, 2048), (1, 4, 16, 64, 256, 1024, 2048)
BYTES = 64 << 20  # that a kernel reads or writes at least, where bandwidth is measured
MEMORY = ("cuMemAlloc_v2", "cuMemFree_v2", "cuMemHostAlloc", "cuMemFreeHost")
COPIES = {"to the card": "cuMemcpyHtoDAsync_v2", "from the card": "cuMemcpyDtoHAsync_v2", "on it": "cuMemcpyDtoDAsync_v2"}
WAITS = ("cuStreamSynchronize", "cuEventSynchronize")

# name: what is asked, the least or the most, unit
TARGETS = {
    "forward error": ("relative error of float32 against float64, forward", "most", 1e-5, ""),
    "gradient error": ("the same of gradients", "most", 1e-4, ""),
    "tree launches": ("launches of a Tree-LSTM minibatch of 64 trees with cells, forward and backward", "most", 300, ""),
    "launch": ("host time of a launch", "most", 2.5, "µs"),
    "allocations": ("allocations of a minibatch in steady state", "most", 0, ""),
    "square": ("own product of 2048³, of the speed of cuBLAS", "least", 0.55, ""),
    "few rows": ("own gathered products of at most 64 rows, of the speed of copies and cuBLAS, the least", "least", 1.0, ""),
    "bandwidth": ("gather, chain, optimizer, scatter at 64 MB or more, the least", "least", 2400, "GB/s"),
    "softmax": ("softmax at 64 MB or more", "least", 2100, "GB/s"),
    "torch": ("time of a task against PyTorch batched by hand on the same card, the most", "most", 1.2, ""),
    "one by one": ("speed against one instance at a time, batch 64, the least", "least", 15, ""),
    "cpu": ("speed against the CPU, hidden 512, batch 64, the least", "least", 10, ""),
}


def say(*words):
    print(*words, file=sys.stderr, flush=True)


# The machine ----------------------------------------------------------------------------------------------------------


def machine():
    """Versions, and the card if there is one; else why there is none."""
    versions = {"Python": platform.python_version()}
    for name in ("numpy", "scipy", "numba", "numba-cuda", "llvmlite", "torch", "nvidia-cublas"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    found = {"cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system(), "versions": versions}
    try:
        ab.configure(device="cuda")
    except DeviceError as error:
        return found | {"card": None, "why": str(error).splitlines()[0]}
    owner = card().device
    ab.configure(device="cpu")
    about = {"name": owner.name, "capability": list(owner.capability), "processors": owner.processors}
    return found | {"card": about, "driver": owner.driver.version, "cublas": card().products is not None}


def fake_driver():
    """The tests' driver in Python, or None where it cannot be imported."""
    sys.path.append(str(ROOT / "tests"))
    try:
        return importlib.import_module("fake_driver")
    except ImportError as error:
        say(f"nothing is counted: {error}")
        return None
    finally:
        sys.path.pop()


@contextlib.contextmanager
def on(device):
    """Evaluate graphs on a device, then on the CPU again."""
    ab.configure(device=device)
    try:
        yield
    finally:
        ab.renew_cg()
        gc.collect()
        ab.configure(device="cpu")


@contextlib.contextmanager
def replaced(place, **names):
    """Put other things in the place of attributes, for a while."""
    before = {name: getattr(place, name) for name in names}
    for name, value in names.items():
        setattr(place, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(place, name, value)


class Watch:
    """Counts the calls of the driver while it is there, and takes their time."""

    def __enter__(self):
        self.calls, self.seconds, original = Counter(), Counter(), driver.Driver.status

        def status(of, name, *arguments):
            start = time.perf_counter()
            code = original(of, name, *arguments)
            self.calls[name] += 1
            self.seconds[name] += time.perf_counter() - start
            return code

        self.put_back = lambda: setattr(driver.Driver, "status", original)
        driver.Driver.status = status
        return self

    def __exit__(self, *error):
        self.put_back()


# Tasks ----------------------------------------------------------------------------------------------------------------


def program_of(task, kind, sizes, values):
    """A program of a task: as it is, with cells, or in bulk; and its trainer."""
    made = {"bulk": lambda: task.Bulk(ab, sizes), "cells": lambda: task.Program(ab, sizes, cells=True)}
    program = made.get(kind, lambda: task.Program(ab, sizes))()
    tasks.fill(program.model, values)
    trainer = ab.SimpleSGDTrainer(program.model, RATE)
    trainer.set_clip_threshold(0)
    return program, trainer


def kinds_of(task):
    """The ways in which a task's program is written."""
    return ["plain", *(["cells"] if getattr(task, "CELLS", False) else []), *(["bulk"] if hasattr(task, "Bulk") else [])]


def instances_of(task, count, data):
    """Instances, sizes of vocabularies, and whether they are real."""
    if data:
        with contextlib.suppress(FileNotFoundError):
            instances, known = task.read(data)
            draw = random.Random(1)
            return [draw.choice(instances) for _ in range(count)], known, True
    return *task.generated(random.Random(1), count), False


# Counts ---------------------------------------------------------------------------------------------------------------


def count_task(name, kind, args, launched):
    """What a minibatch in steady state asks of the driver: the third of equal ones.

    `launched()` returns the names of the kernels launched since the last call, or their number.
    """
    task = tasks.load(name)
    instances, known, real = instances_of(task, args.batch, args.data)
    sizes = tasks.sizes_of(task) | known
    program, trainer = program_of(task, kind, sizes, tasks.draw(task.shapes(sizes), 1))
    for _ in range(3):
        with Watch() as watch:
            ab.renew_cg()
            loss = program.loss(instances)
            launched()
            loss.scalar_value()
            forward = launched()
            loss.backward()
            backward = launched()
            trainer.update()
            update = launched()
            graph = ab.current_graph()
            found = {"task": name, "title": task.TITLE, "kind": kind, "batch": args.batch, "real": real}
            found |= {"nodes": len(graph), "batches": graph.batches}
    for phase, names in (("forward", forward), ("backward", backward), ("update", update)):
        known_names = isinstance(names, list)
        found[phase] = len(names) if known_names else names
        if known_names:
            found[f"{phase} by kernel"] = dict(Counter(names).most_common())
    found["copies"] = {what: watch.calls[call] for what, call in COPIES.items()}
    found["waits"] = watch.calls["cuStreamSynchronize"]
    found["allocations"] = sum(watch.calls[call] for call in MEMORY)
    return found


def counts(args, real):
    """Counts of all tasks, by the driver in Python; `real`: and by the card, which must agree."""
    rows, fake = [], fake_driver()
    for name in args.tasks:
        for kind in kinds_of(tasks.load(name)):
            if fake is not None:
                say(f"counting {name}, {kind}")
                with fake.fake_card(execute=False, room=8 << 30) as at, cublas.use(None):

                    def launched(at=at, seen=[0]):  # noqa: B006
                        at._run()
                        names = [what.removeprefix("launch ") for what in at.done[seen[0] :] if what.startswith("launch ")]
                        seen[0] = len(at.done)
                        return names

                    with on("cuda"):
                        rows.append(count_task(name, kind, args, launched) | {"by": "counted, kernels not run"})
            if real:
                with on("cuda"):
                    machine_, before = card(), [0]

                    def launched(machine_=machine_, before=before):
                        count, before[0] = machine_.launches - before[0], machine_.launches
                        return count

                    rows.append(count_task(name, kind, args, launched) | {"by": "on the card"})
    return rows


# Correctness ----------------------------------------------------------------------------------------------------------


def evaluated(op, which, dtype, device, count=3):
    """Values of some nodes of an op, by one of its examples, and the gradients of all their arguments."""
    rng = np.random.default_rng(1)
    with on(device):
        ab.configure(dtype=dtype)
        ab.reset_random_seed(1)
        try:
            example = ops.examples(op, 64)[which]
            model = ab.ParameterCollection(dtype=dtype)
            function = example.function or ops.FUNCTIONS.get(op.name) or getattr(ab, op.name)
            parameters, results = [], []

            def made(tensor, batch):
                values = ops.drawn(rng, tensor, 1)[..., 0]  # dims, batch
                if tensor.shape.batch == 1:
                    parameters.append(model.add_parameters(tensor.shape.dims, init=values[..., 0]))
                    return ab.parameter(parameters[-1])
                return ab.inputTensor(values, batched=True)

            def weight(w):
                shape = (w.dims[-1], *w.dims[:-1]) if w.table else w.dims
                values = rng.uniform(-1, 1, shape).astype(np.float32)
                parameters.append((model.add_lookup_parameters if w.table else model.add_parameters)(shape, init=values))
                return parameters[-1]

            weights = [weight(w) for w in ops.tensors(example.arguments, ops.Weight)]
            ab.renew_cg()
            for _ in range(count):
                of = iter(weights)
                arguments = ops.filled(example.arguments, lambda t: made(t, 1), lambda _, of=of: next(of))
                results.append(function(*arguments, **example.attributes))
            squares = [ab.sum_elems(ab.square(e)) for e in results]
            loss = ab.esum([ab.sum_batches(s) if s.dim()[1] > 1 else s for s in squares])
            loss.backward()
            values = [e.npvalue() for e in results]
            return values, [p.grad_as_array() for p in parameters]
        finally:
            ab.renew_cg()
            ab.configure(dtype="float32")


def worst(got, wanted):
    """The largest error of some arrays, relative to the largest number of each."""
    errors = [0.0]
    for a, b in zip(got, wanted, strict=True):
        apart = a != b  # not so where both are the same infinity
        scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
        errors.append(float(np.abs(a[apart] - b[apart]).max(initial=0.0)) / max(scale, 1e-3))
    return max(e if e == e else float("inf") for e in errors)


def correctness(args, device="cuda"):
    """The errors of each op on the card, both dtypes, against float64 on the processor."""
    rows = []
    for op in OPS.values():
        try:
            examples = ops.examples(op, 64)
        except LookupError as error:
            say(error)
            continue
        for which, example in enumerate(examples[: 1 if args.quick else None]):
            row = {"op": op.name, "label": example.label}
            try:
                values, gradients = evaluated(op, which, "float64", "cpu")
                for dtype in ("float32", "float64"):
                    found = evaluated(op, which, dtype, device)
                    row |= {f"{dtype} forward": worst(found[0], values), f"{dtype} gradients": worst(found[1], gradients)}
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            rows.append(row)
    return rows


# Kernels --------------------------------------------------------------------------------------------------------------


class Table:
    """A table as it was launched, to be launched again."""

    def __init__(self, arguments):
        owner, table, self.words, *self.rest = arguments
        self.owner = owner
        self.copy = np.array((ctypes.c_int64 * self.words).from_address(table), np.int64)

    def __call__(self):
        launch.launch(self.owner, address_of(self.copy), self.words, *self.rest)


@contextlib.contextmanager
def captured():
    """Collect the tables that are launched."""
    tables, original = [], launch.launch

    def keep(*arguments, **named):
        tables.append(Table(arguments))
        return original(*arguments, **named)

    with replaced(launch, launch=keep):
        yield tables


def timed(variants, rounds):
    """Seconds of each of some runs, medians over rounds in which they take turns: {name: run} -> {name: seconds}."""
    owner, counts, found = card().device, {}, {name: [] for name in variants}
    for name, run in variants.items():
        run()
        owner.synchronize()
        start = time.perf_counter()
        run()
        owner.synchronize()
        counts[name] = max(3, min(1000, int(0.005 / max(time.perf_counter() - start, 1e-7))))
    for _ in range(rounds):
        for name, run in variants.items():
            owner.synchronize()
            start = time.perf_counter()
            for _ in range(counts[name]):
                run()
            owner.synchronize()
            found[name].append((time.perf_counter() - start) / counts[name])
    return {name: statistics.median(times) for name, times in found.items()}


def rows_of_table(count, size, gathered, seed=1):
    """Rows of a new table as expressions, in order or not."""
    model = ab.ParameterCollection()
    table = model.add_lookup_parameters((count, size), init=np.random.default_rng(seed).uniform(-1, 1, (count, size)))
    order = np.random.default_rng(seed).permutation(count) if gathered else np.arange(count)
    return model, [table[int(i)] for i in order]


@contextlib.contextmanager
def products_from(bound):
    """Let the library have products from so many multiplications on; records made before are put aside."""
    machine_ = card()
    with replaced(_gemm, CUBLAS=bound), replaced(machine_, _records={}, _done=set()):
        yield


def products(args):
    """µs of own products and those of cuBLAS, rows in order and not: (M, K) (K, N)."""
    found = []
    sizes, many = (SIZES[::2], ROWS[::3]) if args.quick else (SIZES, ROWS)
    with on("cuda"):
        library = card().products is not None
        for n, k, m in itertools.product(sizes, sizes, many):
            keep, variants = [], {}
            for gathered in (False, True):
                for kind, bound in (("own", 1 << 62), *((("cuBLAS", 1),) if library else ())):
                    with products_from(bound), ab.Graph() as graph:
                        model, xs = rows_of_table(m, k, gathered)
                        W = model.add_parameters((n, k))
                        ys = [W * x for x in xs]
                        with captured() as tables:
                            ys[-1].forward()
                        keep.append((model, graph, xs, ys, card()._records))
                        variants[f"{kind}{', gathered' * gathered}"] = tables[-1]
            times = timed(variants, args.rounds)
            found.append({"m": m, "n": n, "k": k, "us": {name: 1e6 * t for name, t in times.items()}})
            del keep, variants
    return found


def bandwidth(args):
    """GB/s of kernels that do little else than read and write, over many rows."""
    size = 256
    count = BYTES // (4 * size)
    made, moved = {}, {}
    with on("cuda"):
        keep = []

        def add(name, numbers, build):
            with ab.Graph() as graph:
                held, run = build()
                with captured() as tables:
                    run()
            longest = max(tables, key=lambda table: table.words)
            keep.append((graph, held, tables))
            made[name], moved[name] = longest, 4 * numbers * count * size

        def over_rows(function, gathered):
            def build():
                model, xs = rows_of_table(count, size, gathered)
                ys = [function(x) for x in xs]
                return (model, xs, ys), ys[-1].forward

            return build

        chain = ab.cell(lambda x: ab.cmult(x, x) * 0.5 + x)
        add("one by one: -x", 2, over_rows(lambda x: -x, False))
        add("gather: -x of rows in any order", 2, over_rows(lambda x: -x, True))
        add("elementwise chain", 2, over_rows(chain, False))
        add("softmax", 2, over_rows(ab.softmax, False))

        def optimizer():
            model = ab.ParameterCollection()
            p = model.add_parameters((size, count))
            trainer = ab.AdamTrainer(model)
            trainer.set_clip_threshold(0)
            ab.sum_elems(p).backward()
            trainer.update()
            ab.sum_elems(p).backward()
            return (model, trainer), trainer.update

        add("optimizer: Adam", 7, optimizer)

        def scatter():
            model, xs = rows_of_table(count, size, True)
            loss = ab.esum([ab.sum_elems(x) for x in xs])
            loss.forward()
            return (model, xs, loss), loss.backward

        add("scatter: gradients of looked-up rows, with those of sums", 4, scatter)
        times = timed(made, args.rounds)
    return [{"kernel": name, "MB": moved[name] / 1e6, "GB/s": moved[name] / times[name] / 1e9} for name in made]


# Tasks against others -------------------------------------------------------------------------------------------------


class Ours:
    """A program of ours, on a device, under a policy."""

    def __init__(self, task, kind, sizes, values, device, policy="ratio"):
        self.device, self.policy = device, policy
        self.program, self.trainer = program_of(task, kind, sizes, values)
        self.phases, self.steps = Counter(), 0

    def begin(self):
        ab.configure(device=self.device, policy=self.policy)

    def step(self, batch):
        start = time.perf_counter()
        ab.renew_cg()
        loss = self.program.loss(batch)
        recorded = time.perf_counter()
        with Watch() as watch:
            value = loss.scalar_value()
            loss.backward()
            self.trainer.update()
        end = time.perf_counter()
        waited = sum(watch.seconds[name] for name in WAITS)
        self.phases += Counter(record=recorded - start, host=end - recorded - waited, wait=waited)
        self.steps += 1
        return value

    def end(self):
        ab.wait()
        ab.renew_cg()
        ab.configure(device="cpu", policy="ratio")


class ByHand:
    """PyTorch on the card, float32 without TF32."""

    def __init__(self, torch, task, sizes, values):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        self.torch = torch
        self.program = type("OnACard", (task.HandBatched,), {"device": "cuda"})(torch, sizes, values)
        self.trainer = torch.optim.SGD(self.program.trained, RATE)

    def begin(self):
        pass

    def step(self, batch):
        loss = self.program.loss(self.program.prepare(batch))
        value = loss.item()
        loss.backward()
        self.trainer.step()
        self.trainer.zero_grad(set_to_none=True)
        return value

    def end(self):
        self.torch.cuda.synchronize()


def contest(name, hidden, batch, args, with_alone=True):
    """Sentences a second of a task by all who take part, ratios within rounds."""
    task = tasks.load(name)
    minibatches = 2 if args.quick else 4
    instances, known, real = instances_of(task, batch * minibatches, args.data)
    sizes = tasks.sizes_of(task, hidden) | known
    values = tasks.draw(task.shapes(sizes), 1)
    parts = [instances[i : i + batch] for i in range(0, len(instances), batch)]
    kind = "cells" if getattr(task, "CELLS", False) else "plain"
    who = {"card": Ours(task, kind, sizes, values, "cuda"), "cpu": Ours(task, kind, sizes, values, "cpu")}
    if with_alone:
        who["card, one by one"] = Ours(task, kind, sizes, values, "cuda", "none")
        with contextlib.suppress(ImportError):
            import torch

            if torch.cuda.is_available():
                who["torch"] = ByHand(torch, task, sizes, values)
    speeds, first = {name: [] for name in who}, {}
    for round_ in range(args.rounds + 1):
        for label, runner in who.items():
            few = parts[:1] if "one by one" in label or label == "cpu" else parts
            runner.begin()
            if round_ == 1 and isinstance(runner, Ours):
                runner.phases, runner.steps = Counter(), 0
            gc.collect()
            start = time.perf_counter()
            for part in few:
                for some in [[i] for i in part] if "one by one" in label else [part]:
                    value = runner.step(some)
                    first.setdefault(label, value)
            runner.end()
            if round_:
                speeds[label].append(sum(map(len, few)) / (time.perf_counter() - start))
    losses = {label: value for label, value in first.items() if "one by one" not in label}
    found = {"task": name, "title": task.TITLE, "kind": kind, "hidden": hidden, "batch": batch, "real": real}
    found["sentences/s"] = {label: statistics.median(s) for label, s in speeds.items()}
    found["times faster"] = {
        label: statistics.median(a / b for a, b in zip(speeds["card"], s, strict=True)) for label, s in speeds.items()
    }
    found["disagreement"] = max(abs(value - losses["cpu"]) / abs(losses["cpu"]) for value in losses.values())
    ours = who["card"]
    found["ms"] = {phase: 1e3 * seconds / ours.steps for phase, seconds in ours.phases.items()}
    return found


def launch_time(args):
    """Host time of a launch, in µs: an expanded table of a Tree-LSTM, launched while the card is busy with little."""
    task = tasks.load("tree_lstm")
    instances, known, _ = instances_of(task, BATCH, args.data)
    sizes = tasks.sizes_of(task, 16) | known
    with on("cuda"):
        program, _ = program_of(task, "cells", sizes, tasks.draw(task.shapes(sizes), 1))
        loss = program.loss(instances)
        with captured() as tables:
            loss.forward()
        table, times = tables[-1], []
        for _ in range(10 * args.rounds):
            table.owner.synchronize()
            before = time.perf_counter()
            count = launch.launch(table.owner, address_of(table.copy), table.words, *table.rest)
            times.append((time.perf_counter() - before) / count)
        table.owner.synchronize()
        return {"us": 1e6 * statistics.median(times), "launches": count}


def speed(args):
    """Tasks against all others."""
    names = [name for name in args.tasks if name in SPEED_TASKS] or args.tasks
    found = []
    for name, hidden in itertools.product(names, HIDDEN[:1] if args.quick else HIDDEN):
        say(f"timing {name}, hidden {hidden}")
        found.append(contest(name, hidden, BATCH, args))
    return found


def crossover(args):
    """The card against the CPU by hidden size and batch."""
    hiddens, batches = ((32, 256), (1, 64)) if args.quick else ((32, 64, 128, 256, 512), (1, 4, 16, 64, 256))
    return [contest("tree_lstm", h, b, args, with_alone=False) for h in hiddens for b in batches]


# What was asked -------------------------------------------------------------------------------------------------------


def figures(found):
    """The figure of each target, where it was measured."""
    got = {}
    right = found.get("correctness") or []
    if right:
        broken = [row for row in right if "error" in row]
        for name, key in (("forward error", "float32 forward"), ("gradient error", "float32 gradients")):
            got[name] = float("inf") if broken else max(row[key] for row in right)
    for row in found.get("counts") or []:
        if (row["task"], row["kind"], row["batch"]) == ("tree_lstm", "cells", BATCH):
            got["tree launches"] = row["forward"] + row["backward"]
        got["allocations"] = max(got.get("allocations", 0), row["allocations"])
    if found.get("launch"):
        got["launch"] = found["launch"]["us"]
    both = [row for row in found.get("products") or [] if "cuBLAS" in row["us"]]
    for row in both:
        if row["m"] == row["n"] == row["k"] == 2048:
            got["square"] = row["us"]["cuBLAS"] / row["us"]["own"]
    few = [row["us"]["cuBLAS, gathered"] / row["us"]["own, gathered"] for row in both if row["m"] <= 64 and row["k"] <= 512]
    if few:
        got["few rows"] = min(few)
    rates = {row["kernel"]: row["GB/s"] for row in found.get("bandwidth") or []}
    if rates:
        got["softmax"] = rates.pop("softmax")
        got["bandwidth"] = min(rates.values())
    contests = found.get("speed") or []
    for name, label, best in (("torch", "torch", max), ("one by one", "card, one by one", min), ("cpu", "cpu", min)):
        some = [row["times faster"][label] for row in contests if label in row["times faster"]]
        if name == "cpu":
            some = [row["times faster"][label] for row in contests if row["hidden"] >= 512]
        if some:
            got[name] = max(1 / r for r in some) if best is max else min(some)
    return got


def targets(found):
    """Each target with its figure: met, not met, or not measured."""
    got, rows = figures(found), []
    for name, (what, way, bound, unit) in TARGETS.items():
        value = got.get(name)
        met = None if value is None else (value <= bound if way == "most" else value >= bound)
        rows.append({"name": name, "what": what, "way": way, "bound": bound, "unit": unit, "value": value, "met": met})
    return rows


def number(value):
    """Three digits that count, and no more."""
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.3g}"


def table(header, rows):
    """A Markdown table, the first column aligned left."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines) + "\n"


def split(row, phase, most=6):
    """The kernels of a phase in words, those that are launched most first."""
    by = row.get(f"{phase} by kernel", {})
    parts = [f"`{name}` {count}" for name, count in list(by.items())[:most]]
    rest = sum(list(by.values())[most:])
    return ", ".join(parts) + (f", others {rest}" if rest else "")


def document(found):
    """The text of cuda.md."""
    about = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    parts = ["# On a card\n", "Written by `python -m benchmarks.cuda`; `cuda.json` beside it has all of it.\n"]
    if about["card"]:
        numbers = ".".join(map(str, about["card"]["capability"]))
        parts.append(f"{about['card']['name']} (compute capability {numbers}), driver of CUDA {about['driver']}; {versions}.\n")
    else:
        parts.append(
            "**There was no card: nothing here is a time, and nothing is claimed about speed.** "
            f"({about['why']}.) {versions}.\n"
        )
    if found.get("quick"):
        parts.append("**A quick run, with too few rounds to quote.**\n")
    rows = found.get("counts") or []
    if rows:
        parts += ["## What a minibatch asks of the driver\n"]
        parts.append(
            "In steady state (the third of equal minibatches), training, by the tasks' own sizes. *Counted*: by a driver in "
            "Python, with kernels that are not run.\n"
        )
        header = ["task", "program", "batch", "nodes", "batches", "forward", "backward", "update"]
        header += ["copies to the card", "from it", "waits", "allocations", ""]
        cells = [
            [
                *(row["title"], row["kind"], row["batch"], f"{row['nodes']:,}", row["batches"]),
                *(row["forward"], row["backward"], row["update"], row["copies"]["to the card"]),
                *(row["copies"]["from the card"], row["waits"], row["allocations"], row["by"].split(",")[0]),
            ]
            for row in rows
        ]
        parts.append(table(header, cells))
        for row in rows:
            if row["kind"] == "cells" and "forward by kernel" in row:
                parts.append(
                    f"{row['title']}, cells. Forward: {split(row, 'forward')}. Backward: {split(row, 'backward', 9)}.\n"
                )
    right = found.get("correctness") or []
    if right:
        parts.append("## Errors against float64, relative\n")
        keys = [f"{dtype} {what}" for dtype in ("float32", "float64") for what in ("forward", "gradients")]
        cells = [
            [f"`{r['op']}` {r['label']}".strip(), *(f"{r[key]:.0e}" if key in r else r["error"] for key in keys)] for r in right
        ]
        parts.append(table(["op", *keys], cells))
    if found.get("launch"):
        parts.append(f"Host time of a launch: {found['launch']['us']:.2f} µs.\n")
    if found.get("products"):
        names = list(found["products"][0]["us"])
        cells = [
            [f"({r['m']}, {r['k']}) ({r['k']}, {r['n']})", *(number(r["us"].get(n)) for n in names)] for r in found["products"]
        ]
        parts += ["## Products, µs\n", table(["", *names], cells)]
    if found.get("bandwidth"):
        cells = [[r["kernel"], number(r["MB"]), number(r["GB/s"])] for r in found["bandwidth"]]
        parts += ["## Bandwidth\n", table(["", "MB", "GB/s"], cells)]
    for part, heading in (("speed", "Tasks"), ("crossover", "Against the CPU, by hidden size and batch")):
        contests = found.get(part)
        if contests:
            names = list(dict.fromkeys(name for r in contests for name in r["sentences/s"]))
            header = ["sentences/s", "hidden", "batch", *names, *(f"times {n}" for n in names[1:]), "ms record", "host", "wait"]
            cells = [
                [r["title"], r["hidden"], r["batch"], *(number(r["sentences/s"].get(n)) for n in names)]
                + [number(r["times faster"].get(n)) for n in names[1:]]
                + [number(r["ms"].get(n)) for n in ("record", "host", "wait")]
                for r in contests
            ]
            parts += [f"## {heading}\n", table(header, cells)]
    parts.append("## What was asked\n")
    counted = "" if about["card"] else ", counted"
    words = {True: f"met{counted}", False: f"**not met**{counted}", None: "not measured"}
    cells = [
        [r["what"], f"at {r['way']} {number(r['bound'])} {r['unit']}".strip(), number(r["value"]), words[r["met"]]]
        for r in found["targets"]
    ]
    parts.append(table(["", "asked", "found", ""], cells))
    return "\n".join(parts)


# The command ----------------------------------------------------------------------------------------------------------


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tasks", nargs="+", choices=tasks.NAMES, default=list(tasks.NAMES), metavar="TASK", help="some of them"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--data", metavar="DIR", help="real data, see benchmarks/README.md")
    parser.add_argument("--batch", type=int, default=BATCH, help="instances of a minibatch that is counted (%(default)s)")
    parser.add_argument("--rounds", type=int, help="of each measurement (7, quick: 3)")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds; too few to quote")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, metavar="FILE", help="where results go (%(default)s)")
    args = parser.parse_args(argv)
    if args.batch < 1:
        parser.error("--batch must be at least 1")
    if args.data and not pathlib.Path(args.data).is_dir():
        parser.error(f"--data: there is no folder {args.data}")
    args.rounds = args.rounds or (3 if args.quick else 7)
    return args


def earlier(file, about, quick):
    """What an earlier run on the same machine found, for parts that are not measured again."""
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(file.read_text(encoding="utf-8"))
        if before.get("machine") == about and before.get("quick") == quick:
            return before
    return {}


def main(argv=None):
    """Measure what can be measured, write both files; return what was found."""
    args = parse(argv)
    about = machine()
    there = about["card"] is not None
    found = earlier(args.out, about, args.quick)
    found |= {"date": datetime.date.today().isoformat(), "machine": about, "quick": args.quick}
    if not there:
        say(f"There is no card here, so nothing is timed: {about['why']}")
    if "counts" in args.parts:
        found["counts"] = counts(args, there)
    timed_parts = {"correctness": correctness, "products": products, "bandwidth": bandwidth, "speed": speed}
    timed_parts["crossover"] = crossover
    for name, run in timed_parts.items():
        if name in args.parts:
            found[name] = run(args) if there else None
    if "counts" in args.parts:
        found["launch"] = launch_time(args) if there else None
    found["targets"] = targets(found)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = document(found)
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return found


if __name__ == "__main__":
    main()

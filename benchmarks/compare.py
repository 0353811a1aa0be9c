"""Sentences per second of six tasks, by `autobatch`, DyNet, PyTorch batched by hand, and their matrix products alone.

    python -m benchmarks.compare                                        # all tasks, generated data
    python -m benchmarks.compare --tasks tagger parser --data DIR
    python -m benchmarks.compare --tasks tagger --equal-length 40       # and batched by hand with autobatch's own operations

The programs are those of `benchmarks/tasks/`, trained by plain gradient descent. A worker process runs each library. The parent
hands each worker one round in turn and waits for its answer, so the rounds interleave, no two workers ever run at once, and a
slow minute of the machine meets all of them:

    parent ──▶ autobatch ──▶ DyNet ──▶ PyTorch ──▶ floor ──▶ autobatch ──▶ …         one JSON line each way per round
               (the others block on reading their standard input)

Ratios are taken within a round and reported by their median and range over the rounds. Before the rounds, each worker trains on
a few minibatches from equal initial values, and the losses must agree; then a round runs uncounted, which compiles kernels and
makes room in memory.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import tasks

ROOT = pathlib.Path(__file__).resolve().parents[1]
POLICIES = ("ratio", "agenda", "depth", "none")
LIBRARIES = {  # name -> (the distribution it needs, what it is)
    "autobatch": (None, "the program, builders unchanged"),
    "autobatch-cell": (None, "its node functions made cells (tree_lstm)"),
    "autobatch-manual": (None, "minibatches by hand with autobatch's operations (tagger, --equal-length)"),
    **{f"autobatch-{policy}": (None, f"under the policy {policy}") for policy in POLICIES[1:]},
    "dynet": ("dyNET38", "the program, autobatching by agenda"),
    "dynet-none": ("dyNET38", "the program, without autobatching"),
    "dynet-compact": ("dyNET38", "the program, with CompactVanillaLSTMBuilder"),
    "torch": ("torch", "batched by hand"),
    "floor": (None, "the matrix products alone"),
}
DEFAULT = ("autobatch", "autobatch-cell", "dynet", "dynet-none", "torch", "floor")
PHASES = ("record", "schedule", "plan", "forward", "backward", "update")
CHECKED = 4  # minibatches whose losses must agree
TOLERANCE = 1e-3  # of these losses, relative: sums in float32 in another order, through as many updates
RATE = 0.1  # of gradient descent
MEGABYTE = 1 << 20


# ---- worker: what is measured ----------------------------------------------------------------------------------------


class Clock:
    """Seconds by phase; `lap(phase)` books what passed since the last one."""

    def __init__(self):
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.last = time.perf_counter()

    def lap(self, phase, *inner):
        """What `inner` (phase, seconds) took of the lap is booked there."""
        now = time.perf_counter()
        passed, self.last = now - self.last, now
        for name, seconds in inner:
            self.seconds[name] += seconds
            passed -= seconds
        self.seconds[phase] += passed


class Dynamic:
    """The program, recorded by autobatch or DyNet."""

    def __init__(self, job, task, sizes, values):
        self.values, self.infer = values, job["infer"]
        library, _, kind = job["library"].partition("-")
        if library == "dynet":
            import dynet_config

            # DyNet's memory cannot grow under autobatch, so it gets plenty at the start, the more the larger the minibatch.
            pool = 64 + round(job["batch"] * task.DYNET_MEGABYTES * max(1, (job["hidden"] or 0) / task.SIZES["hidden"]))
            memory = f"{pool},{pool},128,{pool}"
            dynet_config.set(mem=memory, random_seed=job["seed"], autobatch=int(kind != "none"))
            import dynet as dy

            if kind == "compact":
                dy.VanillaLSTMBuilder = dy.CompactVanillaLSTMBuilder
            self.name, self.timers = f"DyNet {importlib.metadata.version('dyNET38')}", None
        else:
            import autobatch as dy

            if kind in POLICIES:
                dy.configure(policy=kind)
            with contextlib.suppress(ImportError):  # without threadpoolctl, the environment says it
                dy.configure(threads=job["threads"])
            self.name, self.timers = f"autobatch {dy.__version__}", Timers()
        self.dy = dy
        if kind == "cell":
            if not hasattr(dy, "cell"):
                raise SystemExit("this autobatch has no cells")
            self.program = task.Program(dy, sizes, cells=True)
        else:
            self.program = (task.Manual if kind == "manual" else task.Program)(dy, sizes)
        self.reset()
        self.trainer = dy.SimpleSGDTrainer(self.program.model, RATE)
        self.trainer.set_clip_threshold(0)
        self.trainer.set_sparse_updates(True)

    def reset(self):
        """Go back to the initial values."""
        tasks.fill(self.program.model, self.values)

    def step(self, batch, clock):
        """Run one minibatch; return its loss."""
        taken = self.timers or dict
        taken()
        self.dy.renew_cg()
        loss = self.program.loss(batch)
        clock.lap("record")
        value = loss.scalar_value()
        clock.lap(*self.split("forward", taken()))
        if not self.infer:
            loss.backward()
            clock.lap(*self.split("backward", taken()))
            self.trainer.update()
            clock.lap("update")
        return value

    @staticmethod
    def split(phase, inner):
        """What of a pass of autobatch was scheduling and what running; the rest is planning."""
        if not inner.get("run"):
            return (phase,)
        return "plan", ("schedule", inner["schedule"]), (phase, inner["run"])

    def counts(self):
        """Of the last minibatch: nodes, batches, the least that any policy needs, bytes in arenas; None where nothing tells."""
        if self.timers is None:
            return {}
        graph, held = self.dy.current_graph(), self.dy.memory()
        arenas = sum(n for name, n in held.items() if name.endswith("_used")) + held.get("inputs_reserved", 0)
        return {"nodes": len(graph), "batches": graph.batches, "lower_bound": graph.lower_bound, "arenas": arenas}


class Timers:
    """Seconds that autobatch spends in the scheduler and in the interpreter, taken from outside: nothing is slower without."""

    def __init__(self):
        from autobatch import execute

        self.seconds = dict.fromkeys(("schedule", "run"), 0.0)
        for name in self.seconds:
            if hasattr(execute, name):
                setattr(execute, name, self.timed(name, getattr(execute, name)))

    def timed(self, name, function):
        def wrapper(*args):
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return wrapper

    def __call__(self):
        """What was taken since the last call."""
        taken = dict(self.seconds)
        self.seconds.update(dict.fromkeys(taken, 0.0))
        return taken


class ByHand:
    """PyTorch; making the tensors of a minibatch counts as recording."""

    def __init__(self, job, task, sizes, values):
        import torch

        torch.set_num_threads(job["threads"])
        self.torch, self.infer = torch, job["infer"]
        self.name = f"PyTorch {torch.__version__}"
        self.program = task.HandBatched(torch, sizes, values)
        self.initial = [parameter.detach().clone() for parameter in self.program.trained]
        self.trainer = torch.optim.SGD(self.program.trained, RATE)

    def reset(self):
        with self.torch.no_grad():
            for parameter, value in zip(self.program.trained, self.initial, strict=True):
                parameter.copy_(value)

    def step(self, batch, clock):
        with self.torch.set_grad_enabled(not self.infer):
            prepared = self.program.prepare(batch)
            clock.lap("record")
            loss = self.program.loss(prepared)
            value = loss.item()
            clock.lap("forward")
            if not self.infer:
                loss.backward()
                clock.lap("backward")
                self.trainer.step()
                self.trainer.zero_grad(set_to_none=True)
                clock.lap("update")
        return value

    def counts(self):
        return {}


class Products:
    """The matrix products of a minibatch: those of each step by themselves, but one for the gradient of each weight."""

    def __init__(self, job, task, sizes, values):
        import numpy as np

        self.np, self.task, self.sizes, self.infer = np, task, sizes, job["infer"]
        self.name, self.room = f"NumPy {np.__version__}", {}

    def reset(self):
        pass

    def array(self, name, rows, columns):
        """Memory that is kept for the next minibatch."""
        held = self.room.get(name)
        if held is None or held.size < rows * columns:
            held = self.room[name] = self.np.full(rows * columns, 0.01, self.np.float32)
        return held[: rows * columns].reshape(rows, columns)

    def step(self, batch, clock):
        matmul, work = self.np.matmul, []
        for number, (k, n, rows) in enumerate(self.task.products(batch, self.sizes)):
            x, y = self.array((number, "x"), sum(rows), k), self.array((number, "y"), sum(rows), n)
            W, dW = self.array((number, "W"), k, n), self.array((number, "dW"), k, n)
            starts = [sum(rows[:i]) for i in range(len(rows))]
            work.append((x, y, W, dW, [slice(start, start + m) for start, m in zip(starts, rows, strict=True)]))
        clock.last = time.perf_counter()  # what the shapes are is not counted
        for x, y, W, _, parts in work:
            for part in parts:
                matmul(x[part], W, out=y[part])
        clock.lap("forward")
        if not self.infer:
            for x, y, W, dW, parts in work:
                for part in parts:
                    matmul(y[part], W.T, out=x[part])
                matmul(x.T, y, out=dW)
            clock.lap("backward")
        for x, y, *_ in work:  # numbers stay normal
            x.fill(0.01)
            y.fill(0.01)
        clock.last = time.perf_counter()
        return None

    def counts(self):
        return {}


def load_instances(job, task):
    """The instances of all minibatches, the sizes of the vocabularies, and whether the data are real."""
    rng = random.Random(job["seed"])
    count = job["batch"] * max(job["minibatches"], CHECKED)
    if job["equal_length"]:
        return *task.generated(rng, count, job["equal_length"]), False
    if job["data"]:
        try:
            instances, known = task.read(job["data"])
        except FileNotFoundError:
            pass
        else:
            return [rng.choice(instances) for _ in range(count)], known, True
    return *task.generated(rng, count), False


def runner_of(job, task, sizes, values):
    kind = {"torch": ByHand, "floor": Products}.get(job["library"], Dynamic)
    return kind(job, task, sizes, values)


def run_round(runner, parts):
    """Run each minibatch once."""
    gc.collect()
    clock = Clock()
    losses = []
    for part in parts:
        clock.last = time.perf_counter()
        losses.append(runner.step(part, clock))
    return {"seconds": clock.seconds, "losses": losses}


def touched():
    """Bytes of this process's own memory that were read or written since `forget_touched`."""
    count, own = 0, False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):  # the first line of a mapping: addresses, and the file where there is one
            own = len(rest) < 5 or rest[4] == "[heap]"
        elif name == "Referenced:" and own:
            count += int(rest[0]) * 1024
    return count


def forget_touched():
    pathlib.Path("/proc/self/clear_refs").write_text("1")


def memory_of(runner, parts):
    """How many bytes more a minibatch touches than its smallest instance alone; None where nothing tells.

    What a process holds says little here: DyNet touches all its pools when it starts.
    """
    if len(parts[0]) == 1:
        return None
    smallest = [min(parts[0], key=lambda instance: len(str(instance)))]
    counts = []
    for part in (smallest, parts[0]):
        runner.step(part, Clock())  # what is made once, is made now
        try:
            forget_touched()
            runner.step(part, Clock())
            counts.append(touched())
        except (OSError, IndexError):
            return None
    return max(counts[1] - counts[0], 0)


def work():
    """A worker: reads its job, then one JSON line for each thing to do, and answers each with a JSON line."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints must not break into the answers

    def answer(message):
        print(json.dumps(message), file=answers, flush=True)

    job = json.loads(sys.stdin.readline())
    task = tasks.load(job["task"])
    instances, known, real = load_instances(job, task)
    sizes = {**tasks.sizes_of(task, job["hidden"]), **known}
    runner = runner_of(job, task, sizes, tasks.draw(task.shapes(sizes), job["seed"]))
    parts = [instances[i : i + job["batch"]] for i in range(0, len(instances), job["batch"])]
    counted = parts[: job["minibatches"]]
    answer({"name": runner.name, "sizes": sizes, "real": real, "sentences": sum(map(len, counted))})
    for line in sys.stdin:
        if json.loads(line)["do"] == "check":
            memory = memory_of(runner, parts)
            counts = runner.counts()
            runner.reset()
            answer(run_round(runner, parts[:CHECKED]) | {"memory": memory, "counts": counts})
        else:
            answer(run_round(runner, counted))


# ---- parent ----------------------------------------------------------------------------------------------------------


class Worker:
    """A process that runs a task with one library, and what it has reported."""

    def __init__(self, library, job):
        self.library, self.rounds = library, []
        self.errors = tempfile.TemporaryFile("w+")
        threads = str(1 if library.startswith("dynet") else job["threads"])
        names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compare", "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
            env=os.environ | {f"{name}_NUM_THREADS": threads for name in names},
        )
        self.about = self.ask(job | {"library": library})

    def ask(self, message):
        """Hand over one message and wait for the answer."""
        try:
            print(json.dumps(message), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise SystemExit(f"The worker for {self.library} ended with exit code {code}:\n{self.errors.read()[-3000:]}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def speeds(self):
        return [self.about["sentences"] / sum(r["seconds"].values()) for r in self.rounds]


def summary(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(worker, other):
    """How many times faster `worker` is than `other`, within each round; None where there is nothing to compare."""
    if other is None or other is worker:
        return None
    return summary([a / b for a, b in zip(worker.speeds(), other.speeds(), strict=True)])


def disagreement(worker, first):
    """The largest relative difference of the losses of the checked minibatches; infinite where one is not a number."""
    if worker.checked["losses"][0] is None:
        return None
    differences = [abs(a - b) / abs(b) for a, b in zip(worker.checked["losses"], first.checked["losses"], strict=True)]
    return max(d if d == d else float("inf") for d in differences)


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def installed(library):
    """Whether a library can be measured; says so where not."""
    distribution = LIBRARIES[library][0]
    module = {"dyNET38": "dynet"}.get(distribution, distribution)
    if module is None or importlib.util.find_spec(module) is not None:
        return True
    say(f"{distribution} is not installed (python -m pip install {distribution}): without {library}.")
    return False


def contestants(task, libraries, equal_length):
    """Those of `libraries` that the task has a program for."""
    cells = getattr(task, "CELLS", False) and has_cells()
    missing = {"autobatch-cell": not cells, "autobatch-manual": not (equal_length and hasattr(task, "Manual"))}
    return [library for library in libraries if not missing.get(library)]


def has_cells():
    import autobatch

    return hasattr(autobatch, "cell")


def measure(name, libraries, args):
    """Run one task with all `libraries`: its sizes and a record for each library."""
    job = {key: getattr(args, key) for key in ("batch", "minibatches", "threads", "infer", "hidden", "equal_length", "seed")}
    job |= {"task": name, "data": args.data and str(pathlib.Path(args.data).resolve())}
    workers = []
    try:
        say(f"{name}: losses of the first minibatches, then a round to warm up …")
        for library in contestants(tasks.load(name), libraries, args.equal_length):
            workers.append(Worker(library, job))
            workers[-1].checked = workers[-1].ask({"do": "check"})
            workers[-1].ask({"do": "round"})
        for n in range(args.rounds):
            say(f"{name}: round {n + 1} of {args.rounds} …")
            for worker in workers[n % len(workers) :] + workers[: n % len(workers)]:
                time.sleep(0.05)  # threads of the last one may still spin
                worker.rounds.append(worker.ask({"do": "round"}))
        return {"task": name, "title": tasks.load(name).TITLE, **workers[0].about, "libraries": records(workers)}
    finally:
        for worker in workers:
            worker.close()


def records(workers):
    """One record for each worker; ratios are to DyNet with its autobatching, to PyTorch, to the products alone."""
    by_name = {w.library: w for w in workers}
    first = next((w for w in workers if w.library != "floor"), workers[0])
    return [
        {
            "library": w.library,
            "name": w.about["name"],
            "sentences_per_second": summary(w.speeds()),
            **{f"of_{other}": ratio(w, by_name.get(other)) for other in ("dynet", "torch", "floor")},
            "ms_per_minibatch": {p: statistics.median(r["seconds"][p] for r in w.rounds) * 1000 for p in PHASES},
            "memory": w.checked["memory"],
            **{key: w.checked["counts"].get(key) for key in ("arenas", "nodes", "batches", "lower_bound")},
            "losses": w.checked["losses"],
            "disagreement": disagreement(w, first),
        }
        for w in workers
    ]


def spread(s, digits=2, group=""):
    return "-" if s is None else "{:{g}.{d}f} ({:{g}.{d}f}-{:{g}.{d}f})".format(*s.values(), g=group, d=digits)


def print_table(rows):
    """Columns as wide as their longest cell, the first aligned left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        padded = zip(cells, widths, strict=True)
        print("  ".join(cell.ljust(w) if n == 0 else cell.rjust(w) for n, (cell, w) in enumerate(padded)).rstrip())


def describe(sizes):
    return ", ".join(f"{name} {size:,}" for name, size in sizes.items())


def print_report(result, args):
    """The tables of one task: speeds and ratios; where the time goes, memory and batches."""
    data = (
        "real data"
        if result["real"]
        else f"generated, {args.equal_length} tokens each"
        if args.equal_length
        else "generated data"
    )
    print(f"\n{result['title']} ({describe(result['sizes'])}; {data})\n")
    table = [("library", "sentences/s", "of DyNet", "of PyTorch", "of floor")]
    for row in result["libraries"]:
        ratios = [spread(row[f"of_{other}"]) for other in ("dynet", "torch", "floor")]
        table.append((row["library"], spread(row["sentences_per_second"], 0, ","), *ratios))
    print_table(table)
    print()
    table = [("ms a minibatch", *PHASES, "MB", "arenas", "nodes", "batches", "bound")]
    for row in result["libraries"]:
        phases = [f"{row['ms_per_minibatch'][p]:.2f}" if row["ms_per_minibatch"][p] else "-" for p in PHASES]
        sizes = [f"{row[key] / MEGABYTE:.1f}" if row[key] is not None else "-" for key in ("memory", "arenas")]
        numbers = [f"{row[key]:,}" if row[key] is not None else "-" for key in ("nodes", "batches", "lower_bound")]
        table.append((row["library"], *phases, *sizes, *numbers))
    print_table(table)


def verdict(results):
    """Print whether all losses agree, and return it."""
    found = [(row["disagreement"], r["task"], row["library"]) for r in results for row in r["libraries"]]
    worst, task, library = max(((d, t, l) for d, t, l in found if d is not None), default=(0.0, "", ""))
    agree = worst <= TOLERANCE
    where = f" ({task}, {library})" if worst else ""
    print(f"\nLosses of the first {CHECKED} minibatches {'agree' if agree else 'DO NOT AGREE'}: ", end="")
    print(f"relative differences up to {worst:.1e}{where}, {TOLERANCE:.0e} allowed.")
    return agree


LEGEND = """
Median (least-most) over the rounds. `of DyNet`, `of PyTorch`, `of floor`: how many times faster than `dynet`, `torch`, and the
matrix products alone, within a round. MB: memory that one minibatch touches, beyond what its smallest instance alone does;
arenas: what autobatch itself counts as handed out. Bound: the least batches any policy can do with."""


def make_parser(prog, description):
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument(
        "--tasks", nargs="+", choices=tasks.NAMES, default=tasks.NAMES, metavar="TASK", help=", ".join(tasks.NAMES)
    )
    about = "; ".join(f"{name}: {what}" for name, (_, what) in LIBRARIES.items())
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=DEFAULT, metavar="NAME", help=about)
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="sentences in a minibatch (default: 64)")
    parser.add_argument("--minibatches", type=int, default=4, metavar="N", help="minibatches in a round (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="counted rounds for each worker (default: 5)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of all but DyNet, which has one (default: 2)")
    parser.add_argument("--infer", action="store_true", help="forward passes alone")
    parser.add_argument("--hidden", type=int, metavar="N", help="size of the states; some other sizes follow")
    parser.add_argument("--equal-length", type=int, metavar="N", help="tagger: sentences of N words; adds autobatch-manual")
    parser.add_argument(
        "--data", metavar="DIR", help="folder with wikiner/, sst/, ud/, ptb/; a task without its own generates data"
    )
    parser.add_argument("--seed", type=int, default=1, help="of initial values and data (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="also write all results there")
    return parser


def parse(argv):
    parser = make_parser("python -m benchmarks.compare", __doc__.split("\n")[0])
    args = parser.parse_args(argv)
    numbers = (args.batch, args.minibatches, args.rounds, args.threads, args.hidden or 1, args.equal_length or 1)
    if min(numbers) < 1:
        parser.error("sizes, --batch, --minibatches, --rounds and --threads must be at least 1")
    if args.data and not pathlib.Path(args.data).is_dir():
        parser.error(f"there is no folder {args.data}")
    if args.equal_length and tuple(args.tasks) != ("tagger",):
        if tuple(args.tasks) != tasks.NAMES:
            parser.error("--equal-length is for --tasks tagger")
        args.tasks = ("tagger",)
    if args.equal_length and args.data:
        parser.error("--equal-length needs generated data")
    if args.equal_length and args.libraries == DEFAULT:
        args.libraries = (*DEFAULT[:1], "autobatch-manual", *DEFAULT[1:])
    return args


def compare(args):
    """One record for each task, after printing its tables."""
    libraries = [library for library in args.libraries if installed(library)]
    mode = "forward passes" if args.infer else "training"
    print(
        f"\n{mode.capitalize()}, minibatches of {args.batch}, float32, {args.threads} threads (DyNet 1); {args.minibatches}",
        end="",
    )
    print(
        f" minibatches in a round, {args.rounds} rounds; Python {platform.python_version()}, {os.cpu_count()} cores", flush=True
    )
    results = []
    for name in args.tasks:
        if not contestants(tasks.load(name), libraries, args.equal_length):
            say(f"{name}: none of the libraries asked for can run it")
            continue
        results.append(measure(name, libraries, args))
        print_report(results[-1], args)
        sys.stdout.flush()
    return results


def main(argv=None):
    """Run the comparison, print it, and return one record for each task."""
    args = parse(argv)
    results = compare(args)
    if not results:
        raise SystemExit("Nothing to run.")
    print(LEGEND)
    agree = verdict(results)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"arguments": vars(args), "agree": agree, "results": results}, indent=1))
    if not agree:
        raise SystemExit(1)
    return results


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        work()
    else:
        main(sys.argv[1:])

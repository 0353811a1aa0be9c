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
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import tasks
from benchmarks.worker import CHECKED, PHASES, POLICIES

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIBRARIES = {  # name -> (the distribution it needs, what it is)
    "autobatch": (None, "the program, builders unchanged"),
    "autobatch-cell": (None, "its node functions made cells (tree_lstm)"),
    "autobatch-manual": (None, "minibatches by hand with autobatch's operations (tagger, --equal-length)"),
    **{f"autobatch-{policy}": (None, f"under the policy {policy}") for policy in POLICIES[1:]},
    "dynet": ("dyNET38", "the program, autobatching by agenda"),
    "dynet-none": ("dyNET38", "the program, without autobatching"),
    "dynet-compact": ("dyNET38", "the program, with CompactVanillaLSTMBuilder"),
    "torch": ("torch", "batched by hand in the best way found"),
    "torch-padded": ("torch", "batched by hand, all sentences in one padded rectangle (not tree_lstm)"),
    "floor": (None, "the matrix products alone"),
}
DEFAULT = ("autobatch", "autobatch-cell", "dynet", "dynet-none", "torch", "torch-padded", "floor")
RIVALS = ("dynet", "torch", "torch-padded", "floor")  # what ratios are to
TOLERANCE = 1e-3  # of these losses, relative: sums in float32 in another order, through as many updates
MEGABYTE = 1 << 20


class Worker:
    """A process that runs a task with one library, and what it has reported."""

    def __init__(self, library, job):
        self.library, self.rounds = library, []
        self.errors = tempfile.TemporaryFile("w+")
        threads = str(1 if library.startswith("dynet") else job["threads"])
        names = ("OMP", "OPENBLAS", "MKL", "NUMBA")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
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
    missing = {
        "torch-padded": not hasattr(task, "Rectangles"),
        "autobatch-cell": not cells,
        "autobatch-manual": not (equal_length and hasattr(task, "Manual")),
    }
    return [library for library in libraries if not missing.get(library)]


def has_cells():
    import autobatch

    return hasattr(autobatch, "cell")


def measure(name, libraries, args):
    """Run one task with all `libraries`: its sizes and a record for each library."""
    job = {
        key: getattr(args, key)
        for key in ("batch", "minibatches", "threads", "infer", "hidden", "equal_length", "repeat", "seed")
    }
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
    """One record for each worker; ratios are to those of RIVALS, where they take part."""
    by_name = {w.library: w for w in workers}
    first = next((w for w in workers if w.library != "floor"), workers[0])
    return [
        {
            "library": w.library,
            "name": w.about["name"],
            "sentences_per_second": summary(w.speeds()),
            **{f"of_{other}": ratio(w, by_name.get(other)) for other in RIVALS},
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
    table = [("library", "sentences/s", "of DyNet", "of PyTorch", "of padded", "of floor")]
    for row in result["libraries"]:
        ratios = [spread(row[f"of_{other}"]) for other in RIVALS]
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
Median (least-most) over the rounds. `of DyNet`, `of PyTorch`, `of padded`, `of floor`: how many times faster than `dynet`,
`torch`, `torch-padded` and the matrix products alone, within a round. MB: memory that one minibatch touches, beyond what its
smallest instance alone does; arenas: what autobatch itself counts as handed out. Bound: the least batches any policy can do
with."""


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
    about = "the same minibatches in every round (default: instances are shuffled, as in training)"
    parser.add_argument("--repeat", action="store_true", help=about)
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
        f"\n{mode.capitalize()}, minibatches of {args.batch}, float32, threads {args.threads} (DyNet 1); {args.minibatches}",
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
    main(sys.argv[1:])

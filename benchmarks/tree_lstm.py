"""Sentences per second of one TreeLSTM training program, run by `autobatch` and, where it is installed, by DyNet.

    python -m benchmarks.tree_lstm --data DIR            # DIR/train.txt: bracketed trees, one a line
    python -m benchmarks.tree_lstm                       # generated trees of similar lengths and depths
    python -m benchmarks.tree_lstm --hidden 256 --policies ratio none

The program is the TreeLSTM of `examples/tree_lstm.py`, op by op, a loss at each node, Adam. A worker process runs it for each
library and policy: a DyNet worker loads the same file with the name `autobatch` bound to `dynet`. The parent hands each worker
one round in turn and waits for its answer, so the rounds interleave, no two workers ever run at once, and a slow minute of
the machine meets all of them:

    parent ──▶ ratio ──▶ depth ──▶ … ──▶ DyNet agenda ──▶ DyNet none ──▶ ratio ──▶ …     one JSON line each way per round
               (the others block on reading their standard input)

Ratios are taken within a round and reported by their median and range over the rounds. Before the rounds, each worker
trains on a few minibatches from equal initial values, and the losses must agree; then a round runs uncounted, which
compiles kernels and makes room in memory.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import itertools
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

ROOT = pathlib.Path(__file__).resolve().parents[1]
POLICIES = ("ratio", "agenda", "depth", "none")
CHECKED = 4  # minibatches whose losses must agree
TOLERANCE = 1e-3  # of these losses, relative: sums in float32 in another order, through as many updates


# ---- worker -------------------------------------------------------------------------------------------------------------


def import_library(job):
    """The library of `job` as a module, and what it calls itself."""
    if job["library"] == "DyNet":
        import dynet_config

        # The memory of DyNet cannot grow under autobatch, so it is given plenty at the start.
        dynet_config.set(mem="2048", random_seed=job["seed"], autobatch={"agenda": 1, "none": 0}[job["policy"]])
        import dynet as dy

        sys.modules["autobatch"] = dy
        return dy, f"DyNet {importlib.metadata.version('dyNET38')}"
    import autobatch as dy

    dy.configure(policy=job["policy"])
    if job["threads"] is not None:
        dy.configure(threads=job["threads"])
    return dy, f"autobatch {getattr(dy, '__version__', '')}".strip()


def load_example():
    """`examples/tree_lstm.py` as a module, found by its path: the repository itself need not be importable."""
    spec = importlib.util.spec_from_file_location("example_tree_lstm", ROOT / "examples" / "tree_lstm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generate_trees(example, count, rng):
    """Random trees: 2 to 52 leaves, 19 on average, depth 11 on average, half the words rare; all as in film reviews."""

    def tree(leaves):
        label = rng.randrange(example.CLASSES)
        if leaves == 1:
            return example.Tree(label, word=str(int(9000 ** rng.random())))
        # A phrase often is a word and the rest: uniform splits alone would give trees that are too shallow.
        left = 1 if rng.random() < 0.55 else rng.randint(1, leaves - 1)
        return example.Tree(label, left=tree(left), right=tree(leaves - left))

    return [tree(min(max(round(rng.gammavariate(4.2, 4.5)), 2), 52)) for _ in range(count)]


def train_round(dy, classifier, trainer, parts):
    """Train once on each minibatch: seconds by phase, losses, batches run forward (None where the library cannot tell)."""
    seconds = dict.fromkeys(("record", "forward", "backward", "update"), 0.0)
    losses, batches = [], []
    gc.collect()
    for part in parts:
        times = [time.perf_counter()]
        dy.renew_cg()
        loss = classifier.loss(part)
        times.append(time.perf_counter())
        losses.append(loss.scalar_value())
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        trainer.update()
        times.append(time.perf_counter())
        for phase, (start, end) in zip(seconds, itertools.pairwise(times), strict=True):
            seconds[phase] += end - start
        if hasattr(dy, "current_graph"):
            batches.append(dy.current_graph().batches)
    return {"seconds": seconds, "losses": losses, "batches": statistics.mean(batches) if batches else None}


def work():
    """A worker: reads its job, then one JSON line for each thing to do, and answers each with a JSON line."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints must not break into the answers

    def answer(message):
        print(json.dumps(message), file=answers, flush=True)

    job = json.loads(sys.stdin.readline())
    dy, name = import_library(job)
    example = load_example()
    rng = random.Random(job["seed"])
    count = job["batch"] * max(job["minibatches"], CHECKED)
    if job["data"] is None:
        trees = known = generate_trees(example, count, rng)
    else:
        known = example.read_trees(pathlib.Path(job["data"]) / "train.txt")
        trees = rng.sample(known, min(count, len(known)))
    vocabulary = example.make_vocabulary(known, min_count=2 if job["data"] else 1)
    dy.reset_random_seed(job["seed"])
    classifier = example.Classifier(example.TreeLSTM, vocabulary, job["wembed"], job["hidden"])
    trainer = dy.AdamTrainer(classifier.model)
    parts = example.minibatches(trees, job["batch"])
    leaves = statistics.mean(len(tree.leaves()) for tree in trees)
    answer({"name": name, "sentences": sum(map(len, parts[: job["minibatches"]])), "leaves": leaves, "words": len(vocabulary)})
    for line in sys.stdin:
        chosen = {"check": parts[:CHECKED], "round": parts[: job["minibatches"]]}[json.loads(line)["do"]]
        answer(train_round(dy, classifier, trainer, chosen))


# ---- parent -------------------------------------------------------------------------------------------------------------


class Worker:
    """A process that runs the program with one library under one policy, and what it has reported."""

    def __init__(self, library, policy, job):
        self.library, self.policy, self.rounds = library, policy, []
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.about = self.ask(job | {"library": library, "policy": policy})

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
            said = self.errors.read()[-3000:]
            raise SystemExit(f"The worker for {self.library}, policy {self.policy}, ended with exit code {code}:\n{said}")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def speeds(self):
        return [self.about["sentences"] / sum(r["seconds"].values()) for r in self.rounds]

    def phase_ms(self, phase):
        """Median over the rounds of one phase, in ms a sentence."""
        return statistics.median(r["seconds"][phase] for r in self.rounds) * 1000 / self.about["sentences"]


def summary(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(worker, other):
    """How many times faster `worker` is than `other`, within each round; None where there is nothing to compare."""
    if other is None or other is worker:
        return None
    return summary([a / b for a, b in zip(worker.speeds(), other.speeds(), strict=True)])


def disagreement(worker, other):
    """The largest relative difference of the losses of the checked minibatches; infinite where one is not a number."""
    differences = [abs(a - b) / abs(b) for a, b in zip(worker.checked, other.checked, strict=True)]
    return max(d if d == d else float("inf") for d in differences)


def measure(workers, rounds):
    """Check, warm up, then measure `rounds` rounds, each time beginning with another worker."""
    print("losses of the first minibatches, then a round to warm up …", file=sys.stderr, flush=True)
    for worker in workers:
        worker.checked = worker.ask({"do": "check"})["losses"]
        worker.ask({"do": "round"})
    for n in range(rounds):
        print(f"round {n + 1} of {rounds} …", file=sys.stderr, flush=True)
        for worker in workers[n % len(workers) :] + workers[: n % len(workers)]:
            worker.rounds.append(worker.ask({"do": "round"}))


def results(workers):
    """One record for each worker, with its ratios to DyNet under autobatch and to the policy `none` of its own library."""
    by_name = {(w.library, w.policy): w for w in workers}
    return [
        {
            "library": w.library,
            "policy": w.policy,
            "sentences_per_second": summary(w.speeds()),
            "of_dynet": ratio(w, by_name.get(("DyNet", "agenda"))),
            "over_none": ratio(w, by_name.get((w.library, "none"))),
            "ms_per_sentence": {phase: w.phase_ms(phase) for phase in w.rounds[0]["seconds"]},
            "batches_per_minibatch": w.rounds[0]["batches"],
            "losses": w.checked,
            "disagreement": disagreement(w, workers[0]),
        }
        for w in workers
    ]


def print_report(rows):
    """The table: speeds, ratios, and where the time goes."""

    def spread(s, digits, group=""):
        return "-" if s is None else "{:{g}.{d}f} ({:{g}.{d}f} - {:{g}.{d}f})".format(*s.values(), g=group, d=digits)

    phases = tuple(rows[0]["ms_per_sentence"])
    table = [("library", "policy", "sentences/s", "of DyNet's autobatch", "over own none", *phases, "batches")]
    for row in rows:
        batches = row["batches_per_minibatch"]
        table.append(
            (
                row["library"],
                row["policy"],
                spread(row["sentences_per_second"], 0, ","),
                spread(row["of_dynet"], 2),
                spread(row["over_none"], 1),
                *(f"{row['ms_per_sentence'][phase]:.3f}" for phase in phases),
                "-" if batches is None else f"{batches:,.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = zip(cells, widths, strict=True)
        print("  ".join(cell.ljust(w) if n < 2 else cell.rjust(w) for n, (cell, w) in enumerate(padded)))
    print("\nMedian (least - most) over the rounds; the four phases in ms a sentence; batches run forward for a minibatch.")


def parse(argv):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tree_lstm", description=__doc__.split("\n")[0])
    parser.add_argument("--data", metavar="DIR", help="folder with train.txt (default: generated trees)")
    parser.add_argument("--wembed", type=int, metavar="N", help="size of a word's vector (default: as --hidden)")
    parser.add_argument("--hidden", type=int, default=128, metavar="N", help="size of a node's state (default: 128)")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="sentences in a minibatch (default: 64)")
    parser.add_argument("--minibatches", type=int, default=16, metavar="N", help="minibatches in a round (default: 16)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="counted rounds for each worker (default: 5)")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES, help="of autobatch (default: all)")
    parser.add_argument("--threads", type=int, metavar="N", help="of autobatch (default: its own choice); DyNet has one")
    parser.add_argument("--no-dynet", action="store_true", help="leave DyNet out though it is installed")
    parser.add_argument("--no-autobatch", action="store_true", help="DyNet alone")
    parser.add_argument("--seed", type=int, default=1, help="of initial values and the choice of trees (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="also write all results there")
    args = parser.parse_args(argv)
    if min(args.hidden, args.wembed or 1, args.batch, args.minibatches, args.rounds) < 1:
        parser.error("sizes, --batch, --minibatches and --rounds must be at least 1")
    if args.data and not (pathlib.Path(args.data) / "train.txt").is_file():
        parser.error(f"no train.txt in {args.data}")
    return args


def main(argv=None):
    """Run the comparison, print it, and return one record for each library and policy."""
    args = parse(argv)
    job = {name: getattr(args, name) for name in ("data", "hidden", "batch", "minibatches", "threads", "seed")}
    job["wembed"] = args.wembed or args.hidden
    contestants = [] if args.no_autobatch else [("autobatch", policy) for policy in args.policies]
    if importlib.util.find_spec("dynet") is None:
        print("DyNet is not installed (python -m pip install dyNET38): autobatch alone.", file=sys.stderr)
    elif not args.no_dynet:
        contestants += [("DyNet", "agenda"), ("DyNet", "none")]

    workers = []
    try:
        for library, policy in contestants:
            workers.append(Worker(library, policy, job))
        measure(workers, args.rounds)
        rows = results(workers)
    finally:
        for worker in workers:
            worker.close()

    about = workers[0].about
    names = ", ".join(dict.fromkeys(w.about["name"] for w in workers))
    print(f"\nTreeLSTM, words of {job['wembed']}, states of {args.hidden}, a loss at each node, Adam, float32, CPU")
    print(f"{names}; Python {platform.python_version()}, {os.cpu_count()} cores")
    print(
        f"{'sentences of ' + args.data if args.data else 'generated trees'}: {about['leaves']:.1f} words on average, "
        f"{about['words']:,} kinds; {args.minibatches} minibatches of {args.batch} in a round, {args.rounds} rounds\n"
    )
    print_report(rows)
    worst = max(row["disagreement"] for row in rows)
    agree = worst <= TOLERANCE
    verdict = "agree" if agree else "DO NOT AGREE"
    print(
        f"Losses of the first {CHECKED} minibatches {verdict}: relative differences up to {worst:.1e}, {TOLERANCE:.0e} allowed."
    )
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"arguments": vars(args), "agree": agree, "results": rows}, indent=1))
    if not agree:
        raise SystemExit(1)
    return rows


if __name__ == "__main__":
    work() if sys.argv[1:] == ["--worker"] else main(sys.argv[1:])

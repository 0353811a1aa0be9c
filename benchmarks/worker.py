"""A worker of `benchmarks.compare`: runs one task with one library, a round whenever it is told to.

python -m benchmarks.worker     # reads a job, then one JSON line for each thing to do; answers each with a JSON line
"""

import gc
import importlib.metadata
import json
import os
import pathlib
import random
import sys
import time

from benchmarks import tasks

POLICIES = ("ratio", "agenda", "depth", "none")
PHASES = ("record", "schedule", "plan", "forward", "backward", "update")
CHECKED = 4  # minibatches whose losses must agree
RATE = 0.1  # of gradient descent


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
            dy.configure(threads=job["threads"])
            self.name, self.timers = f"autobatch {dy.__version__}", Timers()
        self.dy = dy
        if kind == "cell":
            if not hasattr(dy, "cell"):
                raise SystemExit("this autobatch has no cells")
            self.program = task.Program(dy, sizes, cells=True)
        else:
            kinds = {"manual": "Manual", "bulk": "Bulk"}
            self.program = getattr(task, kinds.get(kind, "Program"))(dy, sizes)
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

    def settle(self, clock):
        """See to it that nothing runs in the background, so that all of a round is timed."""
        if self.timers is not None and not self.infer:
            self.dy.wait()
            self.timers()
            clock.lap("backward")

    @staticmethod
    def split(phase, inner):
        """What of a pass of autobatch was scheduling and what running; the rest is planning.

        Waiting for what was in the background is time of the last backward pass.
        """
        if not inner.get("run"):
            return (phase,)
        waited = ("backward", inner["wait"])
        return "plan", ("schedule", inner["schedule"]), (phase, inner["run"]), waited

    def nodes(self):
        """Nodes recorded for the last minibatch; 0 where nothing tells."""
        return 0 if self.timers is None else len(self.dy.current_graph())

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
        from autobatch import background, execute
        from autobatch.machine import Machine

        self.seconds = dict.fromkeys(("schedule", "run", "wait"), 0.0)
        self.inside = False  # one of them: what it calls of the others is not booked twice
        for phase, owner, name in (("schedule", execute, "recalled"), ("run", Machine, "run"), ("wait", background, "finish")):
            setattr(owner, name, self.timed(phase, getattr(owner, name)))

    def timed(self, name, function):
        def wrapper(*args, **keywords):
            if self.inside:
                return function(*args, **keywords)
            self.inside, start = True, time.perf_counter()
            try:
                return function(*args, **keywords)
            finally:
                self.inside = False
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
        if job["library"] == "torch-padded":
            self.program.rectangles = 1
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

    def settle(self, clock):
        pass

    def nodes(self):
        return 0

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

    def settle(self, clock):
        pass

    def nodes(self):
        return 0

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
    kind = {"torch": ByHand, "torch-padded": ByHand, "floor": Products}.get(job["library"], Dynamic)
    return kind(job, task, sizes, values)


def split(instances, size):
    return [instances[i : i + size] for i in range(0, len(instances), size)]


def run_round(runner, parts):
    """Run each minibatch once."""
    gc.collect()
    clock = Clock()
    losses, nodes = [], 0
    for part in parts:
        clock.last = time.perf_counter()
        losses.append(runner.step(part, clock))
        nodes += runner.nodes()
    runner.settle(clock)
    return {"seconds": clock.seconds, "losses": losses, "nodes": nodes}


def forget_touched():
    for what in "15":  # which pages were touched; the most that the process held
        pathlib.Path("/proc/self/clear_refs").write_text(what)


def touched():
    """Bytes of this process's own memory that were read or written since `forget_touched`, those given back included."""
    count, own = 0, False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):  # the first line of a mapping: addresses, and the file where there is one
            own = len(rest) < 5 or rest[4] == "[heap]"
        elif name == "Referenced:" and own:
            count += int(rest[0])
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    most, now = (int(status[name].split()[0]) for name in ("VmHWM", "VmRSS"))
    return 1024 * (count + max(most - now, 0))


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
        except (OSError, KeyError):
            return None
    return max(counts[1] - counts[0], 0)


def work():
    """Read a job, then do what each line says."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else prints must not break into the answers

    def answer(message):
        print(json.dumps(message), file=answers, flush=True)

    job = json.loads(sys.stdin.readline())
    task = tasks.load(job["task"])
    instances, known, real = load_instances(job, task)
    sizes = {**tasks.sizes_of(task, job["hidden"], job["sizes"]), **known}
    runner = runner_of(job, task, sizes, tasks.draw(task.shapes(sizes), job["seed"]))
    parts = split(instances, job["batch"])
    counted = instances[: job["batch"] * job["minibatches"]]
    answer(
        {
            "name": runner.name,
            "sizes": sizes,
            "real": real,
            "sentences": len(counted),
            "minibatches": len(split(counted, job["batch"])),
        }
    )
    shuffled = random.Random(job["seed"])
    for line in sys.stdin:
        if json.loads(line)["do"] == "check":
            memory = memory_of(runner, parts)
            counts = runner.counts()
            runner.reset()
            answer(run_round(runner, parts[:CHECKED]) | {"memory": memory, "counts": counts})
        else:
            if not job["repeat"]:  # the same shuffle for all libraries
                shuffled.shuffle(counted)
            answer(run_round(runner, split(counted, job["batch"])))


if __name__ == "__main__":
    work()

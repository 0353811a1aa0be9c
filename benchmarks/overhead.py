"""What the library itself costs: recording, scheduling and planning, the interpreter, and the start of a process.

    python -m benchmarks.overhead            everything, a few minutes
    python -m benchmarks.overhead --quick    fewer repetitions, and no empty cache

Every figure is the least of several repetitions, so that a busy neighbour shows as little as possible; the limits beside them
are what the project promises on an ordinary processor.
"""

import argparse
import gc
import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np

FIRST_GRADIENT = """
import time
start = time.perf_counter()
import autobatch as ab
imported = time.perf_counter()
model = ab.ParameterCollection()
words = model.add_lookup_parameters((1000, 100))
lstm = ab.VanillaLSTMBuilder(1, 100, 100, model)
W, b = model.add_parameters((3, 100)), model.add_parameters((3,))

def loss(sentence, label):
    state = lstm.initial_state()
    for word in sentence:
        state = state.add_input(words[word])
    return ab.pickneglogsoftmax(ab.affine_transform([b, W, state.output()]), label)

data = [((1, 4, 5, 1), 1), ((42, 1), 2), ((56, 2, 17), 1)]
ab.renew_cg()
ab.esum([loss(*instance) for instance in data]).backward()
print(imported - start)
"""


def nanoseconds(run, count, repetitions):
    """The least time of `run`, in ns for each of `count` things it does."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times) / count * 1e9


def recording(repetitions, count=2_000):
    """ns to record a node, by kind: the call, and the list that some are given; see `collecting` for the collector."""
    import autobatch as ab

    model = ab.ParameterCollection()
    table = model.add_lookup_parameters((100, 64))
    W, U, b = model.add_parameters((64, 64)), model.add_parameters((64, 64)), model.add_parameters((64,))
    lstm = ab.VanillaLSTMBuilder(1, 64, 64, model)
    kinds = {
        "unary: tanh(x)": lambda x, y, s: ab.tanh(x),
        "binary: cmult(x, y)": lambda x, y, s: ab.cmult(x, y),
        "binary: x + y": lambda x, y, s: x + y,
        "with a number: x * 2.0": lambda x, y, s: x * 2.0,
        "product: W * x": lambda x, y, s: W * x,
        "bias: b + x": lambda x, y, s: b + x,
        "affine_transform([b, W, x])": lambda x, y, s: ab.affine_transform([b, W, x]),
        "affine_transform([b, W, x, U, y])": lambda x, y, s: ab.affine_transform([b, W, x, U, y]),
        "concatenate([x, y])": lambda x, y, s: ab.concatenate([x, y]),
        "concatenate([x, y, x])": lambda x, y, s: ab.concatenate([x, y, x]),
        "concatenate_cols([x, y, x, y])": lambda x, y, s: ab.concatenate_cols([x, y, x, y]),
        "esum([x, y])": lambda x, y, s: ab.esum([x, y]),
        "average([x, y])": lambda x, y, s: ab.average([x, y]),
        "look-up: table[i]": lambda x, y, s: table[7],
        "look-up: lookup(table, i)": lambda x, y, s: ab.lookup(table, 7),
        "pick: x[i]": lambda x, y, s: x[7],
        "pick: pick(x, i)": lambda x, y, s: ab.pick(x, 7),
        "slice: x[1:5]": lambda x, y, s: x[1:5],
        "reshape(x, (8, 8))": lambda x, y, s: ab.reshape(x, (8, 8)),
        "transpose(x)": lambda x, y, s: ab.transpose(x),
        "softmax(x)": lambda x, y, s: ab.softmax(x),
        "max_dim(x)": lambda x, y, s: ab.max_dim(x),
        "sum_dim(x, [0])": lambda x, y, s: ab.sum_dim(x, [0]),
        "dropout(x, 0.5)": lambda x, y, s: ab.dropout(x, 0.5),
        "loss: pickneglogsoftmax(x, i)": lambda x, y, s: ab.pickneglogsoftmax(x, 7),
        "loss: hinge(x, i)": lambda x, y, s: ab.hinge(x, 7),
        "step of an LSTM (3 nodes)": lambda x, y, s: s.add_input(x),
    }
    result = dict.fromkeys(kinds, float("inf"))
    for _ in range(10 * repetitions):  # short ones: a busy machine takes turns of a few ms
        for name, record in kinds.items():
            ab.renew_cg()
            x, y = ab.tanh(table[1]), ab.tanh(table[2])
            s = lstm.initial_state().add_input(x).add_input(x)
            record(x, y, s)
            work = lambda x=x, y=y, s=s, r=record: [None for _ in range(count) if r(x, y, s) is None]  # noqa: E731
            result[name] = min(result[name], nanoseconds(work, count, 1))
    return result


def collecting(repetitions, rounds=600, minibatches=6):
    """ns a node that Python's cyclic collector takes if a program keeps all it records, by Python's threshold, and ours."""
    import autobatch as ab
    from autobatch.graph import DEFAULTS, YOUNG

    table = ab.ParameterCollection().add_lookup_parameters((100, 8))
    spent = [0.0, 0.0]

    def watch(phase, info):
        if phase == "start":
            spent[1] = time.perf_counter()
        else:
            spent[0] += time.perf_counter() - spent[1]

    before, best = gc.get_threshold(), {}
    gc.callbacks.append(watch)
    try:
        for _ in range(repetitions):
            for threshold in (DEFAULTS[0], YOUNG):
                gc.collect()
                spent[0] = 0.0
                for _ in range(minibatches):
                    ab.renew_cg()
                    gc.set_threshold(threshold, 10, 10)
                    kept = [[table[k] for k in range(10)]]
                    for _ in range(rounds):
                        kept.append([ab.tanh(x) for x in kept[-1]])
                        kept.append([x + y for x, y in zip(kept[-1], kept[-2], strict=True)])
                ns = spent[0] / (minibatches * len(ab.current_graph())) * 1e9
                best[threshold] = min(best.get(threshold, float("inf")), ns)
    finally:
        gc.callbacks.remove(watch)
        gc.set_threshold(*before)
    return best


def trees(count, words, seed=0):
    """Random binary trees as nested pairs of word numbers."""
    draw = random.Random(seed)

    def tree(n):
        if n == 1:
            return draw.randrange(words)
        left = draw.randint(1, n - 1)
        return tree(left), tree(n - left)

    return [tree(max(2, int(draw.gauss(19, 9)))) for _ in range(count)]


def planning(repetitions):
    """ns a node for each pass between recording and running, on op-level Tree-LSTMs of 64 random trees, losses at all nodes."""
    import autobatch as ab
    from autobatch import execute, plan
    from autobatch.machine import Machine
    from autobatch.schedule import forget

    model = ab.ParameterCollection()
    H = 8
    table = model.add_lookup_parameters((100, H))
    inner = [(model.add_parameters((H,)), model.add_parameters((H, H)), model.add_parameters((H, H))) for _ in range(5)]
    leaf = [(model.add_parameters((H,)), model.add_parameters((H, H))) for _ in range(3)]
    W, b = model.add_parameters((5, H)), model.add_parameters((5,))
    losses = []

    def visit(node):
        if isinstance(node, int):
            x = table[node]
            i, o, u = (ab.affine_transform([bias, V, x]) for bias, V in leaf)
            c = ab.cmult(ab.logistic(i), ab.tanh(u))
        else:
            (h1, c1), (h2, c2) = visit(node[0]), visit(node[1])
            i, o, u, f, g = (ab.affine_transform([bias, V, h1, U, h2]) for bias, V, U in inner)
            c = ab.cmult(ab.logistic(i), ab.tanh(u)) + ab.cmult(ab.logistic(f), c1) + ab.cmult(ab.logistic(g), c2)
        h = ab.cmult(ab.logistic(o), ab.tanh(c))
        losses.append(ab.pickneglogsoftmax(ab.affine_transform([b, W, h]), 2))
        return h, c

    passes = {
        execute: ["recalled"],
        execute.Execution: ["_flush"],
        Machine: ["run"],
        plan: """survey layout place forward_table mark gradient_layout gradient_places backward_table weight_table
        rows_table""".split(),
    }
    spent = {}

    def timed(name, function):
        def wrapper(*args):
            start = time.perf_counter()
            result = function(*args)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start
            return result

        return wrapper

    originals = [(module, name, getattr(module, name)) for module, names in passes.items() for name in names]
    best, nodes = {}, 0
    forest = trees(64, 100)
    try:
        for module, name, function in originals:
            setattr(module, name, timed(name, function))
        for repetition in range(2 * repetitions + 1):
            again = repetition > repetitions  # the second half of them meets the schedule of the one before
            if not again:
                forget()
            ab.renew_cg()
            losses.clear()
            spent.clear()
            for tree in forest:
                visit(tree)
            loss = ab.esum(losses)
            graph = ab.current_graph()
            nodes = len(graph)
            loss.forward()
            ahead = dict(spent)
            loss.backward()
            ab.wait()  # not while something runs in the background
            for name, seconds in spent.items():
                direction = "forward" if name in ahead else "backward"
                if repetition and (name == "recalled" or not again):
                    schedule = "schedule of a structure seen before" if again else "schedule"
                    key = direction, {"recalled": schedule, "_flush": "lists to arrays"}.get(name, name)
                    best[key] = min(best.get(key, float("inf")), seconds / nodes * 1e9)
    finally:
        for module, name, function in originals:
            setattr(module, name, function)
    rows = {f"{direction}: {name}": ns for (direction, name), ns in best.items() if name != "run"}
    counted = [ns for (direction, name), ns in best.items() if direction == "forward" and name != "run" and "seen" not in name]
    forward = sum(counted)
    return rows, forward, nodes


def tiny(repetitions, policies=("ratio", "none")):
    """us of value() and backward() of graphs of a few nodes, of one instance: {(nodes, policy): us}, in turn."""
    import autobatch as ab

    model = ab.ParameterCollection()
    p = model.add_parameters((8,))
    best = {}
    for nodes in (1, 5, 20):
        for _ in range(100 * repetitions):
            for policy in policies:
                ab.renew_cg(autobatching=policy)
                x = p
                for _ in range(nodes - 1):
                    x = ab.tanh(x)
                loss = ab.sum_elems(x)
                start = time.perf_counter()
                loss.value()
                loss.backward()
                ab.wait()
                best[nodes, policy] = min(best.get((nodes, policy), float("inf")), (time.perf_counter() - start) * 1e6)
    return best


def small(dy, repetitions, count=100):
    """us of small programs that nothing can be gained from by batching, recording included: {program: us}.

    `dy` is the library: autobatch or DyNet.
    """
    model = dy.ParameterCollection()
    table, W, b = model.add_lookup_parameters((50, 32)), model.add_parameters((20, 64)), model.add_parameters(20)
    lstm, trainer = dy.VanillaLSTMBuilder(1, 32, 64, model), dy.SimpleSGDTrainer(model, 0.001)
    numbers = np.linspace(-1, 1, 64)

    def one_node():
        x = dy.scalarInput(1.0)
        for _ in range(count):
            x = x + 0.5
            x.value()

    def layer():
        x = dy.inputVector(numbers)
        for _ in range(count):
            dy.tanh(W * dy.tanh(x) + b).npvalue()

    def decoder():
        state, word = lstm.initial_state(), 0
        for _ in range(count):
            state = state.add_input(table[word])
            word = int(np.argmax((W * state.output() + b).npvalue()))

    def learns_an_example():
        for label in range(count):
            dy.renew_cg()
            loss = dy.pickneglogsoftmax(W * dy.tanh(dy.inputVector(numbers)) + b, label % 20)
            loss.value()
            loss.backward()
            trainer.update()

    def learns_a_sentence():
        for label in range(count):
            dy.renew_cg()
            state = lstm.initial_state()
            for word in range(5):
                state = state.add_input(table[word])
            loss = dy.pickneglogsoftmax(W * state.output() + b, label % 20)
            loss.value()
            loss.backward()
            trainer.update()

    programs = {
        "value of a node, asked for at once": one_node,
        "value of a layer, 4 nodes": layer,
        "step of a decoder, 4 nodes, and the next word": decoder,
        "update by one example, a layer and a loss": learns_an_example,
        "update by one sentence of 5 words": learns_a_sentence,
    }
    best = {}
    for _ in range(5 * repetitions):
        for name, program in programs.items():
            dy.renew_cg()
            start = time.perf_counter()
            program()
            best[name] = min(best.get(name, float("inf")), (time.perf_counter() - start) / count * 1e6)
    return best


def small_with_dynet(repetitions):
    """What `small` says of DyNet, in a process of its own; nothing if it is not installed."""
    if importlib.util.find_spec("_dynet") is None:
        return {}
    run = f"import json, dynet; from benchmarks import overhead; print(json.dumps(overhead.small(dynet, {repetitions})))"
    root = str(pathlib.Path(__file__).resolve().parents[1])
    out = subprocess.run([sys.executable, "-c", run], cwd=root, capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


def interpreter(repetitions, count=100_000):
    """ns an instruction of an empty kernel."""
    from autobatch.kernels._jit import SLOTS, kernel
    from autobatch.kernels._vm import run

    @kernel
    def nothing(ins, scratch):
        pass

    words = SLOTS + 6
    table = np.zeros((count, words), np.int64)
    table[:, 0], table[:, 1] = nothing.address("float32"), words
    table = table.ravel()
    run(table.ctypes.data, table.size, 0)
    return nanoseconds(lambda: run(table.ctypes.data, table.size, 0), count, max(5, repetitions))


def process(cache, repetitions):
    """Seconds from the start of a process to its first gradient, and of its import; the least of several processes."""
    times, imports = [], []
    for _ in range(repetitions):
        start = time.perf_counter()
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        out = subprocess.run(
            [sys.executable, "-c", FIRST_GRADIENT], env=environment, capture_output=True, text=True, check=True
        )
        times.append(time.perf_counter() - start)
        imports.append(float(out.stdout))
    return min(times), min(imports)


def main(argv=None):
    """Print the table; return {name: (figure, limit or None)}."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and no empty cache")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to a file")
    args = parser.parse_args(argv)
    repetitions = 2 if args.quick else 7
    rows = {}
    for name, ns in recording(repetitions).items():
        limit = 700 if "LSTM" in name else 300 if name.count(",") < 3 else None
        rows[f"record, {name}"] = ns, limit, "ns"
    for threshold, ns in collecting(repetitions).items():
        rows[f"collector, threshold {threshold:,}"] = ns, None, "ns a node"
    passes, forward, nodes = planning(repetitions)
    for name, ns in passes.items():
        rows[name] = ns, None, "ns a node"
    rows[f"schedule + plan, {nodes:,} nodes"] = forward, 60, "ns a node"
    for (nodes, policy), us in tiny(repetitions).items():
        rows[f"value and backward, {nodes} node{'s' * (nodes > 1)}, policy {policy}"] = us, None, "us"
    import autobatch

    for library, figures in (("", small(autobatch, repetitions)), (", DyNet", small_with_dynet(repetitions))):
        for name, us in figures.items():
            rows[f"{name}{library}"] = us, None, "us"
    rows["interpreter, empty kernel"] = interpreter(repetitions), 50, "ns an instruction"
    with tempfile.TemporaryDirectory() as cache:
        if not args.quick:
            rows["process to first gradient, empty cache"] = process(cache, 1)[0], 10, "s"
        process(cache, 1)
        warm, imported = process(cache, 1 if args.quick else 5)
        rows["process to first gradient, warm cache"] = warm, 1.5, "s"
        rows["import autobatch"] = imported, 0.8, "s"
    width = max(map(len, rows))
    for name, (figure, limit, unit) in rows.items():
        shown = f"{figure:8.2f}" if unit == "s" else f"{figure:8.1f}"
        print(f"{name:<{width}}  {shown} {unit:<18}" + (f"(at most {limit})" if limit else ""))
    result = {name: (figure, limit) for name, (figure, limit, _) in rows.items()}
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    return result


if __name__ == "__main__":
    main()

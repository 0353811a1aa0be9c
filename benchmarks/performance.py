"""All measurements of `docs/performance.md`: runs `benchmarks.compare` over batch and hidden sizes, writes tables and plots.

    python -m benchmarks.performance                      # half an hour, alone on the machine
    python -m benchmarks.performance --quick              # minutes; too few rounds to quote
    python -m benchmarks.performance --runs equal         # this one again, the others as they were
    python -m benchmarks.performance --plot-only          # tables and plots from the last measurements

Measurements go to `benchmarks/results/performance.json`, and every figure and sentence of the document comes from there.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import sys

from autobatch.recorder import LANGUAGE
from benchmarks import compare, tasks

ROOT = pathlib.Path(__file__).resolve().parents[1]
BATCHES = (1, 10, 64, 256)
MULTIPLES = (0.5, 1, 2)  # of the hidden size of each task
EQUAL, EQUAL_HIDDEN = 40, (50, 256)
OURS = ("autobatch", "autobatch-cell", "autobatch-bulk")
RIVALS = (*OURS, "dynet", "torch")
RUNS = {
    "training": "all libraries, minibatches of 64",
    "inference": "forward passes alone",
    "batch": f"minibatches of {', '.join(map(str, BATCHES))}",
    "hidden": "half, once and twice the hidden size",
    "equal": f"tagger, sentences of {EQUAL} words",
}
NAMES = {
    "autobatch": "autobatch",
    "autobatch-cell": "autobatch, cells",
    "autobatch-bulk": "autobatch, in bulk",
    "autobatch-manual": "autobatch, by hand",
    "dynet": "DyNet",
    "dynet-compact": "DyNet, compact LSTM",
    "dynet-none": "DyNet, no autobatch",
    "torch": "PyTorch",
    "torch-padded": "PyTorch, padded",
    "floor": "floor",
}
COLOURS = {
    "autobatch": "#1b6ca8",
    "autobatch-cell": "#0b3954",
    "autobatch-bulk": "#1f6f8b",
    "autobatch-manual": "#7fb2d6",
    "dynet": "#c8553d",
    "torch": "#6a994e",
    "floor": "#888888",
}
PHASE_COLOURS = ("#0b3954", "#1b6ca8", "#7fb2d6", "#e0a458", "#c8553d", "#888888")


# ---- measuring -------------------------------------------------------------------------------------------------------


def plan(run, args):
    """The calls of `benchmarks.compare` that make up a run, each as its arguments."""
    few = args.quick

    def call(batch=64, libraries=RIVALS, names=args.tasks, more=()):
        # Several in a round: what runs in the background is done while the next one is recorded, as in training.
        minibatches = max(1 if few else 4, min(16, 256 // batch) // (4 if few else 1))
        numbers = {"batch": batch, "minibatches": minibatches, "rounds": 2 if few else 5}
        numbers |= {"threads": args.threads, "seed": args.seed}
        options = [text for name, n in numbers.items() for text in (f"--{name}", str(n))]
        data = ["--data", args.data] if args.data and "--equal-length" not in more else []
        return ["--tasks", *names, "--libraries", *libraries, *options, *data, *more]

    everything = (*OURS, "dynet", "dynet-compact", "dynet-none", "torch", "torch-padded", "floor")
    if run == "training":
        return [call(libraries=(*RIVALS, "floor") if few else everything)]
    if run == "inference":
        return [call(libraries=(*RIVALS, "torch-padded", "floor"), more=["--infer"])]
    if run == "batch":
        return [call(batch=n) for n in BATCHES]
    if run == "hidden":
        return [
            call(names=[name], more=["--hidden", str(round(tasks.load(name).SIZES["hidden"] * multiple))])
            for name in args.tasks
            for multiple in (MULTIPLES[:2] if few else MULTIPLES)
        ]
    libraries = ("autobatch", "autobatch-manual", "dynet", "torch", "floor")
    equal = ["--equal-length", str(EQUAL), "--hidden"]
    return [
        call(libraries=libraries, names=["tagger"], more=[*equal, str(n)]) for n in (EQUAL_HIDDEN[:1] if few else EQUAL_HIDDEN)
    ]


def machine():
    """The machine in general words, and the versions of what takes part."""
    versions = {"Python": platform.python_version()}
    for distribution in ("numpy", "scipy", "numba", "dyNET38", "torch"):
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    found = {"cores": os.cpu_count(), "architecture": platform.machine(), "system": platform.system(), "versions": versions}
    return found | {"recorder": LANGUAGE}


def measure(args, found):
    """Run what `args` asks for; `found` is filled and written after each run."""
    for run in args.runs:
        calls = []
        for argv in plan(run, args):
            options = compare.parse(argv)
            results = compare.compare(options)
            if not compare.verdict(results):
                raise SystemExit(1)
            kept = ("batch", "minibatches", "rounds", "threads", "infer", "hidden", "equal_length", "seed")
            calls.append({"arguments": {name: getattr(options, name) for name in kept}, "results": results})
        found[run] = {"machine": machine(), "quick": args.quick, "calls": calls}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(found, indent=1) + "\n")


# ---- reading what was measured ---------------------------------------------------------------------------------------


def entries(run):
    """(arguments, result of a task, {library: record}) for each task of each call of a run."""
    for call in run["calls"] if run else ():
        for result in call["results"]:
            yield call["arguments"], result, {row["library"]: row for row in result["libraries"]}


def libraries_of(run):
    """The libraries of a run, in the order of NAMES."""
    seen = {library for _, _, rows in entries(run) for library in rows}
    return [library for library in NAMES if library in seen]


def speed(row):
    return row["sentences_per_second"]["median"]


def number(value):
    """Three digits that count, and no more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(ratio):
    return "-" if ratio is None else f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"


def table(header, rows):
    """A Markdown table, the first column aligned left."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def listed(words):
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def title(result, library):
    """A task, and which of our programs."""
    return result["title"] + {"autobatch-cell": ", cells", "autobatch-bulk": ", in bulk"}.get(library, "")


def ours(run):
    """(arguments, result, record of ours, all records) for each of our programs."""
    for arguments, result, rows in entries(run):
        for library in OURS:
            if library in rows:
                yield arguments, result, rows[library], rows


def standing(run, rival):
    """A sentence: where we are ahead of a rival and where not, by how much."""
    key = "of_dynet" if rival == "dynet" else "of_torch"
    found = [(row[key]["median"], title(result, row["library"])) for _, result, row, _ in ours(run) if row[key]]
    if not found:
        return ""
    ahead = [pair for pair in found if pair[0] >= 1]
    least, most = min(found), max(found)
    text = (
        f"Against {NAMES[rival]}, the programs run at {least[0]:.2f} ({least[1]}) to {most[0]:.2f} times its speed ({most[1]})"
    )
    text += f", ahead on {len(ahead)} of {len(found)}"
    behind = [name for value, name in found if value < 1]
    return text + (f"; behind: {listed(behind)}." if behind else ".")


# ---- the document ----------------------------------------------------------------------------------------------------


def speeds_section(run):
    """Speeds of all libraries, then ratios."""
    libraries = libraries_of(run)
    rows = [
        [result["title"], *(number(speed(rows[library])) if library in rows else "-" for library in libraries)]
        for _, result, rows in entries(run)
    ]
    ratios = [
        [title(result, row["library"]), *(times(row[f"of_{rival}"]) for rival in compare.RIVALS)]
        for _, result, row, _ in ours(run)
    ]
    return [
        table(["sentences/s", *(NAMES[library] for library in libraries)], rows),
        "Times faster, within a round: median (least-most).\n",
        table(["autobatch", "than DyNet", "than PyTorch", "than PyTorch, padded", "than the floor"], ratios),
        " ".join(filter(None, (standing(run, "dynet"), standing(run, "torch")))) + "\n",
    ]


def time_section(run):
    """What each phase takes."""
    rows, largest = [], {}
    for _, result, rows_of in entries(run):
        for library in ("autobatch", "autobatch-cell", "dynet", "torch"):
            if library not in rows_of:
                continue
            phases = rows_of[library]["ms_per_minibatch"]
            total = sum(phases.values())
            cells = [f"{phases[p]:.2f}" if phases[p] else "-" for p in compare.PHASES]
            rows.append([result["title"], NAMES[library], *cells, f"{total:.1f}"])
            if library in OURS:
                phase = max(phases, key=phases.get)
                share = phases[phase] / total
                largest.setdefault(phase, []).append(f"{title(result, library)} ({share:.0%})")
    text = [f"{phase} takes most on {listed(names)}" for phase, names in largest.items()]
    parts = ("schedule", "plan")
    shares = [
        sum(row["ms_per_minibatch"][p] for p in parts) / sum(row["ms_per_minibatch"].values()) for _, _, row, _ in ours(run)
    ]
    if shares:
        text.append(f"schedule and plan together take {min(shares):.0%} to {max(shares):.0%}")
    return [
        table(["ms a minibatch", "", *compare.PHASES, "all"], rows),
        f"Of autobatch's time, {'; '.join(text)}.\n" if text else "",
        "![Where the time of a minibatch goes](performance/phases.svg)\n",
    ]


def counts_section(run, inference):
    """Batches and memory."""
    forward = {(result["task"], row["library"]): row for _, result, row, _ in ours(inference)}
    rows = []
    for _, result, row, rows_of in ours(run):
        other = forward.get((result["task"], row["library"]))
        memory = [megabytes(r.get("memory")) for r in (row, other or {}, rows_of.get("dynet", {}), rows_of.get("torch", {}))]
        rows.append(
            [
                title(result, row["library"]),
                *(f"{row[key]:,}" for key in ("nodes", "batches", "lower_bound")),
                *(f"{row[key]:.0f}" for key in ("ns_to_record", "ns_to_plan")),
                *memory,
            ]
        )
    header = ["", "nodes", "batches", "lower bound", "ns to record a node", "ns to schedule and plan it"]
    return [
        table([*header, "MB", "MB, inference", "MB, DyNet", "MB, PyTorch"], rows),
        "Memory is what one minibatch touches beyond what its smallest instance alone does.\n",
    ]


def megabytes(count):
    return "-" if count is None else f"{count / compare.MEGABYTE:.1f}"


def series_section(run, axis, picture, alt):
    """Speeds along an axis, a row for each task and library."""
    found, places = {}, set()
    for arguments, result, rows in entries(run):
        place = arguments["batch"] if axis == "batch" else result["sizes"]["hidden"]
        places.add(place)
        for library, row in rows.items():
            found.setdefault((result["title"], library), {})[place] = row
    if axis == "batch":
        places = sorted(places)
        header = ["sentences/s", "", *(f"batch {n}" for n in places)]
        rows = [
            [name, NAMES[library], *(number(speed(by[n])) if n in by else "-" for n in places)]
            for (name, library), by in found.items()
        ]
    else:
        header = ["sentences/s", "", *(f"{m:g} x hidden" for m in MULTIPLES[: max(map(len, found.values()))])]
        rows = [
            [name, NAMES[library], *(f"{number(speed(row))} ({n})" for n, row in sorted(by.items()))]
            for (name, library), by in found.items()
        ]
    return [table(header, rows), f"![{alt}](performance/{picture}.svg)\n"]


def equal_section(run):
    rows, text = [], []
    for _, result, rows_of in entries(run):
        hidden = result["sizes"]["hidden"]
        automatic, manual, torch = (rows_of.get(name) for name in ("autobatch", "autobatch-manual", "torch"))
        rows.append([str(hidden), *(number(speed(rows_of[name])) for name in libraries_of(run) if name in rows_of)])
        if automatic and manual:
            slower = speed(manual) / speed(automatic)
            text.append(f"at hidden {hidden} automatic batching takes {slower:.2f} times the time of batching by hand")
        if automatic and torch:
            text.append(f"and runs at {speed(automatic) / speed(torch):.2f} times the speed of PyTorch")
    said = ", ".join(text)
    header = ["hidden size", *(NAMES[name] for name in libraries_of(run))]
    return [table(header, rows), f"{said[:1].upper()}{said[1:]}.\n" if said else ""]


def document(found):
    """The text of docs/performance.md."""
    first = next(iter(found.values()))
    about, arguments = first["machine"], first["calls"][0]["arguments"]
    versions = listed(f"{name} {version}" for name, version in about["versions"].items())
    real = any(result["real"] for run in found.values() for _, result, _ in entries(run))
    worst = max(row["disagreement"] or 0 for run in found.values() for _, _, rows in entries(run) for row in rows.values())
    parts = [
        "# Performance\n",
        "Written by `python -m benchmarks.performance` from measurements; `--plot-only` writes it again. "
        "What is measured and how to read it: [benchmarks/README.md](../benchmarks/README.md).\n",
        f"A machine of {about['cores']} cores ({about['architecture']}, {about['system']}), threads: {arguments['threads']} "
        f"(DyNet: 1); {versions}; recording in {about.get('recorder', 'Python')}; float32, plain gradient descent, "
        f"{'real' if real else 'generated'} data. "
        "Programs are written for one instance, but for those of PyTorch, which are batched by hand. "
        f"Losses of all libraries agree to {worst:.0e} (relative). "
        "*Floor*: the matrix products of the minibatch alone.\n",
    ]
    if any(run["quick"] for run in found.values()):
        quick = listed(name for name, run in found.items() if run["quick"])
        parts.append(f"**From a quick run, with too few rounds to quote:** {quick}.\n")
    sections = {
        "training": ("Training, minibatches of 64", speeds_section),
        "inference": ("Inference: forward passes, minibatches of 64", speeds_section),
        "batch": ("Batch sizes", lambda run: series_section(run, "batch", "batch", "Throughput against batch size")),
        "hidden": ("Hidden sizes", lambda run: series_section(run, "hidden", "hidden", "Throughput against hidden size")),
        "equal": (f"Equal lengths: tagger, {EQUAL} words a sentence, minibatches of 64", equal_section),
    }
    for name, (heading, section) in sections.items():
        if name in found:
            parts += [f"## {heading}\n", *section(found[name])]
        if name == "training" and name in found:
            parts += ["## Where the time goes\n", *time_section(found[name])]
            parts += ["## Batches, recording, memory\n", *counts_section(found[name], found.get("inference"))]
    return "\n".join(filter(None, parts))


# ---- plots -----------------------------------------------------------------------------------------------------------


def panels(pyplot, names):
    """One panel for each task, three in a row."""
    rows = -(-len(names) // 3)
    figure, axes = pyplot.subplots(rows, 3, figsize=(11, 3.1 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        axis.set_title(name, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, dict(zip(names, axes.flat, strict=False))


def save(figure, file, handles):
    """Write a picture, the same bytes for the same numbers."""
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(file, metadata={"Date": None})
    text = file.read_text(encoding="utf-8")
    file.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")


def draw_series(pyplot, run, axis_name, label, file):
    """Sentences per second along an axis, both logarithmic; lines are medians, bands least to most."""
    lines = {}
    for arguments, result, rows in entries(run):
        place = arguments["batch"] if axis_name == "batch" else result["sizes"]["hidden"]
        for library, row in rows.items():
            lines.setdefault(result["title"], {}).setdefault(library, {})[place] = row["sentences_per_second"]
    figure, axes = panels(pyplot, list(lines))
    handles = {}
    for name, axis in axes.items():
        for library, by in lines[name].items():
            places = sorted(by)
            colour = COLOURS[library]
            style = "--" if library == "floor" else "-"
            (line,) = axis.plot(places, [by[n]["median"] for n in places], style, marker="o", markersize=3, color=colour)
            axis.fill_between(
                places, [by[n]["min"] for n in places], [by[n]["max"] for n in places], color=colour, alpha=0.15, linewidth=0
            )
            handles[NAMES[library]] = line
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(places, [str(n) for n in places])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(pyplot.matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.set_xlabel(label, fontsize=9)
        axis.set_ylabel("sentences/s", fontsize=9)
        axis.tick_params(labelsize=8)
    save(figure, file, handles)
    pyplot.close(figure)


def draw_phases(pyplot, run, file):
    """Stacked bars: what the phases of a minibatch take."""
    found = {result["title"]: rows for _, result, rows in entries(run)}
    figure, axes = panels(pyplot, list(found))
    handles = {}
    for name, axis in axes.items():
        libraries = [library for library in (*RIVALS, "floor") if library in found[name]]
        places = range(len(libraries), 0, -1)
        left = [0.0] * len(libraries)
        for phase, colour in zip(compare.PHASES, PHASE_COLOURS, strict=True):
            widths = [found[name][library]["ms_per_minibatch"][phase] for library in libraries]
            handles[phase] = axis.barh(places, widths, left=left, color=colour, height=0.7)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.set_yticks(places, [NAMES[library] for library in libraries], fontsize=8)
        axis.set_xlabel("ms a minibatch", fontsize=9)
        axis.tick_params(axis="x", labelsize=8)
    save(figure, file, handles)
    pyplot.close(figure)


def write(found, docs):
    """Write the document and its plots into a folder."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit('Plots need matplotlib: python -m pip install ".[benchmarks]"') from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder = docs / "performance"
    folder.mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context({"svg.hashsalt": "autobatch", "svg.fonttype": "none", "font.family": "sans-serif"}):
        if "training" in found:
            draw_phases(pyplot, found["training"], folder / "phases.svg")
        if "batch" in found:
            draw_series(pyplot, found["batch"], "batch", "sentences in a minibatch", folder / "batch.svg")
        if "hidden" in found:
            draw_series(pyplot, found["hidden"], "hidden", "hidden size", folder / "hidden.svg")
    file = docs / "performance.md"
    file.write_text(document(found), encoding="utf-8")
    print(f"wrote {file} and {folder}")


def parse(argv):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.performance", description=__doc__.split("\n")[0])
    about = "; ".join(f"{name}: {what}" for name, what in RUNS.items())
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=tuple(RUNS), metavar="RUN", help=f"default: all of {about}")
    parser.add_argument("--tasks", nargs="+", choices=tasks.NAMES, default=tasks.NAMES, metavar="TASK", help="default: all six")
    parser.add_argument("--quick", action="store_true", help="few rounds, batch sizes and hidden sizes")
    parser.add_argument("--plot-only", action="store_true", help="measure nothing")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of all but DyNet (default: 2)")
    parser.add_argument("--data", metavar="DIR", help="real data, see benchmarks.compare (default: generated)")
    parser.add_argument("--seed", type=int, default=1, help="of initial values and data (default: 1)")
    results = ROOT / "benchmarks" / "results" / "performance.json"
    parser.add_argument("--json", type=pathlib.Path, default=results, metavar="FILE", help="measurements, read and written")
    parser.add_argument("--docs", type=pathlib.Path, default=ROOT / "docs", metavar="DIR", help="where the document goes")
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error("--threads must be at least 1")
    if args.data and not pathlib.Path(args.data).is_dir():
        parser.error(f"there is no folder {args.data}")
    if args.plot_only and not args.json.is_file():
        parser.error(f"there is no {args.json}: measure first")
    return args


def main(argv=None):
    """Measure, write the document, and return all measurements."""
    args = parse(argv)
    found = json.loads(args.json.read_text()) if args.json.is_file() else {}
    if not args.plot_only:
        measure(args, found)
    write(found, args.docs)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])

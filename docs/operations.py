"""Write `docs/operations.md` from the records: `python docs/operations.py` (`--check` only says whether the file is up
to date).

What is said of an operation comes from its record (`kernels/_op.py`) and its public function. The one thing written down
here is what the library's own code cannot know: the families, and what DyNet's automatic batching does with the operation
(column "AB" of its API: found by counting the batches of three copies of each operation in DyNet's profiler).
"""

from __future__ import annotations

import inspect
import pathlib
import re
import sys
from typing import NamedTuple

import autobatch as ab
from autobatch.kernels._op import OPS, Op

PAGE = pathlib.Path(__file__).with_name("operations.md")

YES, NO, EQUAL = "yes", "no", "equal dims only"
NODES, ABSENT = "same parameter nodes", "not in DyNet"
GATES = "x (I,), h (H,), Wx (4H,I), Wh (4H,H), b (4H,) -> (4H,)"
VIEW = "a view: nothing is computed"
INPUT = "an input: nothing is computed"


class Function(NamedTuple):
    """A way to make a node.

    dynet     what DyNet's batching does with it
    ops       the ops that it records, if not that of its name alone
    spelling  how it is written, if not as a call of the function of its name
    batches   what nodes have in common that run together, if the records do not say it
    shapes    what goes in and what comes out, if the first record does not say it
    """

    dynet: str
    ops: str = ""
    spelling: str = ""
    batches: str = ""
    shapes: str = ""


def same(dynet: str, names: str) -> dict[str, Function]:
    """Return entries of functions with ops of their own name."""
    return {name: Function(dynet) for name in names.split()}


FAMILIES: dict[str, dict[str, Function]] = {
    "Operators": {
        "e + f": Function(EQUAL, "add"),
        "e + c": Function("per value of c", "add"),
        "e - f": Function(EQUAL, "subtract"),
        "c - e": Function(NO, "subtract"),
        "-e": Function(YES, "negate"),
        "e * f": Function("same left node, right side without minibatch", "matmul", "e * f, e @ f"),
        "e * c": Function("per value of c", "cmult"),
        "e / c": Function("per value of c", "cdiv"),
        "e / f": Function(ABSENT, "cdiv"),
        "e ** f": Function(NO, "pow rpow", "e ** f, e ** c, c ** e"),
        "abs(e)": Function(ABSENT, "abs"),
        "e[i]": Function(NO, "pick", batches=VIEW),
        "e[a:b:s]": Function(NO, "strided_select"),
    },
    "Inputs": {
        "inputTensor": Function(YES, batches=INPUT, shapes="array of dims -> dims; its last axis may be the minibatch"),
        "inputVector": Function(YES, batches=INPUT, shapes="n numbers -> (n,)"),
        "vecInput": Function(YES, batches=INPUT, shapes="n -> (n,)"),
        "scalarInput": Function(YES, batches=INPUT, shapes="a number -> (1,)"),
        "inputTensorTranspose": Function(YES, batches=INPUT, shapes="numbers, dim -> dim"),
        "inputMatrix": Function("raises", batches=INPUT, shapes="numbers, d -> d"),
        "matInput": Function("raises", batches=INPUT, shapes="-> (d1,d2)"),
        "sparse_inputTensor": Function(NO, batches=INPUT, shapes="indices, values -> shape"),
        "one_hot": Function(NO, batches=INPUT, shapes="d, index -> (d,)"),
        "zeros": Function(NO, batches=INPUT, shapes="-> dim"),
        "zeroes": Function(NO, batches=INPUT, shapes="-> dim"),
        "ones": Function(NO, batches=INPUT, shapes="-> dim"),
        "constant": Function(NO, batches=INPUT, shapes="-> dim"),
        "lookup": Function("per table", batches=VIEW + " (a row of the table)", shapes="table, index -> dims of a row"),
        "lookup_batch": Function("per table"),
        "parameter": Function("-", batches="its argument", shapes="as given"),
        "const_parameter": Function(NO, batches=VIEW, shapes="as given"),
        **same(NO, "random_normal random_uniform random_bernoulli random_gumbel"),
    },
    "Elementwise, one argument": {
        **same(YES, "abs square cube sqrt exp log log_sigmoid logistic tanh rectify elu selu silu softsign erf lgamma"),
        **same(YES, "sin cos tan asin acos atan sinh cosh asinh acosh atanh round ceil floor"),
    },
    "Elementwise, several arguments": {
        "esum": Function(YES),
        **same(NO, "average"),
        "cmult": Function(EQUAL),
        **same(NO, "cdiv bmax bmin emax logsumexp pow"),
        "colwise_add": Function(NO, "add", shapes="(r,c), (r,) -> (r,c)"),
    },
    "Gradients": {
        "nobackprop": Function(NO, batches=VIEW, shapes="x -> as x"),
        **same(NO, "flip_gradient scale_gradient argmax"),
        "to_device": Function(NO, batches=VIEW, shapes="x -> as x"),
    },
    "Noise": {
        "dropout": Function("per p"),
        **same(NO, "dropout_dim dropout_batch block_dropout noise"),
    },
    "Linear algebra": {
        "affine_transform": Function("same b and W nodes"),
        **same(NO, "dot_product squared_norm l2_norm"),
        "squared_distance": Function(YES),
        **same(NO, "l1_distance trace_of_product inverse logdet"),
        "transpose": Function(YES),
        "contract3d_1d": Function(NO),
        "contract3d_1d_bias": Function(NO, "contract3d_1d add", shapes="(i,j,k), (k,), (i,j) -> (i,j)"),
        "contract3d_1d_1d": Function(NO, "contract3d_1d matmul", shapes="(i,j,k), (k,), (j,) -> (i,)"),
        "contract3d_1d_1d_bias": Function(NO, "contract3d_1d affine_transform", shapes="(i,j,k), (k,), (j,), (i,) -> (i,)"),
        **same(NO, "circ_conv circ_corr"),
    },
    "Reductions": {
        **same(NO, "sum_elems mean_elems std_elems moment_elems sum_dim mean_dim std_dim moment_dim"),
        **same(NO, "sum_batches mean_batches std_batches moment_batches"),
        **same(NO, "cumsum max_dim min_dim logsumexp_dim kmax_pooling"),
    },
    "Selecting, joining, reshaping": {
        **same(NO, "pick pick_batch"),
        "pick_range": Function(YES),
        "pickrange": Function(YES, "pick_range"),
        "pick_batch_elem": Function(NO, batches=VIEW, shapes="dims x B -> dims"),
        **same(NO, "pick_batch_elems select_rows select_cols strided_select"),
        "concatenate": Function(EQUAL),
        "concatenate_cols": Function(EQUAL, "concatenate"),
        **same(NO, "concatenate_to_batch"),
        "reshape": Function(NO, batches=VIEW, shapes="any -> d, of as many numbers"),
        **same(NO, "fold_rows kmh_ngram"),
    },
    "Softmax and losses": {
        "softmax": Function(YES),
        "log_softmax": Function(NO, "log_softmax restricted_log_softmax"),
        **same(NO, "sparsemax constrained_softmax"),
        **same(YES, "pickneglogsoftmax pickneglogsoftmax_batch"),
        "sparsemax_loss": Function(ABSENT),
        **same(NO, "hinge hinge_batch hinge_dim pairwise_rank_loss binary_log_loss huber_distance poisson_loss"),
    },
    "Normalisation, convolution, pooling": {
        **same(NO, "layer_norm weight_norm"),
        **same("same filter, image without minibatch", "conv2d conv2d_bias"),
        **same(NO, "maxpooling2d filter1d_narrow"),
    },
    "Fused LSTM nodes": {
        "vanilla_lstm_gates": Function(NODES, "affine_transform lstm_gates", shapes=GATES),
        "vanilla_lstm_gates_concat": Function(NODES, "concatenate affine_transform lstm_gates", shapes=GATES),
        "vanilla_lstm_gates_dropout": Function(NODES, "cmult affine_transform lstm_gates", shapes=GATES),
        "vanilla_lstm_gates_dropout_concat": Function(NODES, "concatenate cmult affine_transform lstm_gates", shapes=GATES),
        **same(YES, "vanilla_lstm_c vanilla_lstm_h"),
        "a step of a VanillaLSTMBuilder": Function("as its 10 operations", "lstm_step"),
    },
}

HEAD = """# Operations

Written by `python docs/operations.py` from the records in `kernels/`; do not edit.

Every operation batches: nodes of one *node type* that are ready run as one batch, forward and backward, with the
minibatch dimension or without. A node type is the op, the shapes, and what the column "batches" names; everything else
may differ from node to node (indices, labels, numbers such as margins and probabilities, keys of noise). "the same W"
means: where the argument is a parameter, nodes of the same parameter form one product and its gradient is formed once;
where it is computed (attention), nodes of equal shapes are still one batch.

Shapes are dims; the minibatch comes on top of them, and 1 fits any. Gradients stand after the formulas: dx is the
gradient of the argument x, dy that of the result.
"""


def ops_of(name: str, function: Function) -> list[Op]:
    """Return the records of the ops that a function records."""
    names = function.ops.split() or ([name] if name in OPS and not function.batches else [])
    return [OPS[n] for n in names]


def signature(name: str, function: Function) -> str:
    """Return how the function is called, or how the operator is written."""
    public = getattr(ab, name, None)
    if public is None:
        return function.spelling or name
    parts = []
    for p in inspect.signature(public).parameters.values():
        text = ("*" if p.kind is p.VAR_POSITIONAL else "") + p.name
        parts.append(text if p.default is p.empty else f"{text}={p.default!r}")
    return f"{name}({', '.join(parts)})"


def one_line(text: str) -> str:
    """Return a text as the cell of a table."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def summary(name: str, ops: list[Op]) -> str:
    """Return the formula: the record's, or the first sentence of the function."""
    if len(ops) == 1 or not hasattr(ab, name):
        paragraph, *rest = ops[0].doc.strip().split("\n\n")
        gradient = next((part for part in rest if re.match(r"\s*d\w+ \+=", part)), "") if "    d" not in paragraph else ""
        return one_line(
            re.sub(r"[.;]?(\s{4,}|\n)(?=d\S* [-+]=)", "; ", paragraph + ("\n" + gradient.strip() if gradient else ""))
        )
    return one_line((inspect.getdoc(getattr(ab, name, None)) or "").split("\n\n")[0]).removeprefix("Return ")


def batches(name: str, function: Function, ops: list[Op]) -> str:
    """Return what nodes must have in common to run together."""
    if function.batches:
        return function.batches
    if not ops:
        return "as the operations it is made of"
    common = ["equal shapes"]
    for op in ops:
        public = inspect.signature(getattr(ab, name)).parameters if hasattr(ab, name) else ()
        for attribute in list(inspect.signature(op.lower).parameters)[3:]:
            said = ATTRIBUTES.get(attribute, attribute if attribute in public else "")
            if said and said not in common:
                common.append(said)
        if op.shared is not None:
            common.append("the same " + SHARED[op.name])
    return ", ".join(common)


ATTRIBUTES = {  # what belongs to the type, where the public function calls it otherwise
    "batch": "",
    "dims": "dims",
    "sizes": "length",
    "steps": "step",
    "straight": "gradient_mode",
}
SHARED = {  # the arguments that `Op.shared` speaks of, as the shapes call them
    "affine_transform": "b and W",
    "contract3d_1d": "x",
    "conv2d": "f",
    "conv2d_bias": "f",
    "filter1d_narrow": "f",
    "lookup_batch": "table",
    "lstm_step": "weights",
    "matmul": "left side",
}


def page() -> str:
    """Return the text of the page."""
    lines, functions, ours, theirs = [HEAD], 0, 0, 0
    for family, entries in FAMILIES.items():
        lines += [f"## {family}\n", "| operation | shapes | formula | batches | DyNet batches |", "|---|---|---|---|---|"]
        for name, function in entries.items():
            ops = ops_of(name, function)
            shapes = one_line(function.shapes or ops[0].shapes)
            cells = [f"`{signature(name, function)}`", shapes, summary(name, ops), batches(name, function, ops), function.dynet]
            lines.append("| " + " | ".join(cells) + " |")
            functions += 1
            ours += 1
            theirs += function.dynet not in (NO, ABSENT, "raises", "-")
        lines.append("")
    lines.append(TAIL.format(functions=functions, ours=ours, theirs=theirs, ops=len(OPS)))
    return "\n".join(lines)


TAIL = """## Counts

| | |
|---|---|
| operations above | {functions} |
| batched here | {ours} |
| batched by DyNet, some under the condition named | {theirs} |
| records in `kernels/` behind them | {ops} |
"""


def main() -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every operand of every operation: stale, of another graph, or no expression at all; nothing is recorded then."""

import numpy as np
import pytest
from laws import filled, public, several, tensors
from strategies import Random, numbers

import autobatch as ab
from autobatch.kernels._errors import ArgumentError, OperandError, StaleExpressionError
from autobatch.kernels._op import OPS, Shape, Tensor

# lstm_step is recorded by builders only; the table of lookup_batch belongs to no graph.
NAMES = [
    name for name, op in OPS.items() if name not in ("lstm_step", "lookup_batch") and tensors(op.samples(Random(0)).arguments)
]
# Functions that record several nodes: names, and the shapes of their arguments (None: a number).
GATES = ((3,), (2,), (8, 3), (8, 2), (8,))
COMPOSITES = {
    "vanilla_lstm_gates": (*GATES, None),
    "vanilla_lstm_gates_concat": (*GATES, None),
    "vanilla_lstm_gates_dropout": (*GATES, (3,), (2,), None),
    "vanilla_lstm_gates_dropout_concat": (*GATES, (3,), (2,), None),
    "contract3d_1d_bias": ((2, 3, 4), (4,), (2, 3)),
    "contract3d_1d_1d": ((2, 3, 4), (4,), (3,)),
    "contract3d_1d_1d_bias": ((2, 3, 4), (4,), (3,), (2,)),
    "conv2d_bias": ((4, 4, 2), (2, 2, 2, 3), (3,)),
    "mean_elems": ((2, 3),),
    "std_elems": ((2, 3),),
    "moment_batches": ((2, 3), 2),
    "emax": ((2, 3), (2, 3)),
    "weight_norm": ((2, 3), (1,)),
    "layer_norm": ((3,), (3,), (3,)),
    "to_device": ((3,), "CPU"),
    "scale_gradient": ((3,), 0.5),
    "strided_select": ((3,), [2], [0], [3]),
}


def sample(name, seed):
    """A function, its arguments with tensors in place of expressions, the tensors, its attributes."""
    if name in OPS:
        drawn = OPS[name].samples(Random(seed))
        return public(name), drawn.arguments, tensors(drawn.arguments), drawn.attributes
    given = [Tensor(Shape(d)) if isinstance(d, tuple) else 0.1 if d is None else d for d in COMPOSITES[name]]
    if "concat" in name:
        given[0] = [given[0]]
    if name == "emax":
        given = [given]
    if name == "conv2d_bias":
        given.append([1, 1])
    return getattr(ab, name), tuple(given), tensors(given), {}


def expressions(tensors_, rng):
    """New expressions for tensors, in the current graph."""
    arrays = [numbers(rng, tensor) for tensor in tensors_]
    return [ab.inputTensor(a, batched=True) if a.shape[-1] > 1 else ab.inputTensor(a[..., 0]) for a in arrays]


BAD = {
    "stale": (StaleExpressionError, ValueError),
    "foreign": (ArgumentError, ValueError),
    "none": (Exception, (OperandError, ArgumentError)),
    "object": (TypeError, OperandError),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", [*NAMES, *(name for name in COMPOSITES if name not in NAMES)])
def test_a_bad_operand(name, bad):
    rng = np.random.default_rng(0)
    for seed in range(3):
        function, arguments, wanted, attributes = sample(name, seed)
        for k in range(len(wanted)):
            old = expressions(wanted, rng)
            with ab.Graph():
                foreign = expressions(wanted, rng)
            if bad == "stale":
                function(*filled(arguments, old), **attributes)  # so that its types are known
                ab.renew_cg()
            good = expressions(wanted, rng)
            if bad == "foreign" and len(good) == 1:
                continue  # recorded in the graph of its argument
            operands = list(good)
            operands[k] = {"stale": old[k], "foreign": foreign[k], "none": None, "object": object()}[bad]
            before = len(ab.current_graph()), None if bad != "foreign" else len(foreign[k].graph.recorded_types)
            kind, other = BAD[bad]
            with pytest.raises(kind) as caught:
                function(*filled(arguments, operands), **attributes)
            assert isinstance(caught.value, other) or "operand type" in str(caught.value)  # Python's, of -None
            after = len(ab.current_graph()), None if bad != "foreign" else len(foreign[k].graph.recorded_types)
            assert after == before
            assert several(function(*filled(arguments, good), **attributes))[0].graph is not None

"""Every kernel that runs on a card compiles for it, and needs no more than there is: registers, shared memory, float32 alone.

The kernels are those that samples of all ops, a few cells, the trainers and the planner ask for, so a new op is covered without
being listed here. No card is needed. Machine code is made for two kinds of card from one PTX, which holds for both.
"""

import functools
import importlib
import os
import pkgutil
import re

import numpy as np
import pytest
from laws import FORCED, filled, public, several, tensors
from strategies import Random, numbers
from test_cuda_laws import FUNCTIONS
from test_steps import BUILDERS

import autobatch as ab
import autobatch.kernels
from autobatch.graph import TYPES
from autobatch.kernels import _cuda, _rows
from autobatch.kernels._jit import Kernel, Product, Stage
from autobatch.kernels._op import OPS

SAMPLES = 12  # of each op
ARCHITECTURES = [(8, 0), (9, 0)]
REGISTERS = 65536  # of a multiprocessor: a block of so many threads must fit
THREADS = 256  # of a block of teams, at most
# Kernels that compute in float64 on purpose, whatever the dtype.
IN_FLOAT64 = {
    "norm_of_shares": "the sum of many squares, rounded once",
    "norm_of_all": "the sum of many squares, rounded once",
    "poisson_loss": "logarithms of factorials, a few for each minibatch, are differences of large numbers",
}


def functions_of(kernel, dtype, sizes):
    """Return what a kernel becomes on a card, for sizes of a node type: function -> threads of its blocks."""
    programs = getattr(kernel, "programs", None)
    if programs is not None:
        steps = programs.programs[kernel.which]
        return {f: n for step in steps for f, n in functions_of(step.kernel, dtype, tuple(step.sizes.tolist())).items()}
    card, found = kernel.card, {}
    launches = list(card.stages(sizes)) if card.stages is not None else [kernel]
    products = card.products(sizes) if card.products is not None else None
    launches += products.stages if products is not None else ()
    for launch in launches:
        if isinstance(launch, Stage):
            # Blocks in z beyond the first are those of the instruction behind: a stage does not count the parts of items.
            assert "parts" not in launch.function.__code__.co_names, f"{launch.function.__qualname__}: a stage with parts"
            if launch.dtype in ("", dtype):
                found[launch.function] = max(found.get(launch.function, 0), launch.threads[0] * launch.threads[1])
        elif isinstance(launch, Kernel):
            found[launch.card.function or launch.function] = THREADS
        else:
            assert isinstance(launch, Product)
    return found


def kernels_of(lowering):
    """Return the kernels of a node type."""
    made = lowering.forward, lowering.prepare, *(operand.backward for operand in lowering.operands)
    return [k for k in made if k is not None]


def functions_of_types(first, dtype, chosen):
    """Return the functions of node types from number `first` on (and of all that are `chosen`)."""
    found = {}
    for record in TYPES.records[first:]:
        if record.lowering is not None and chosen(record):
            for kernel in kernels_of(record.lowering):
                for f, threads in functions_of(kernel, dtype, record.lowering.sizes).items():
                    found[f] = max(found.get(f, 0), threads)
    return found


@functools.cache
def recorded(name):
    """Record calls of an op, of shapes drawn and of larger ones; nothing is computed."""
    op = OPS[name]
    for seed in range(SAMPLES):
        sample, rng = op.samples(Sizes(seed)), np.random.default_rng(seed)
        model, leaves = ab.ParameterCollection(), []
        ab.renew_cg()
        for k, tensor in enumerate(tensors(sample.arguments)):
            values, forced = numbers(rng, tensor), FORCED.get(name, {}).get(k)
            if forced == "table":
                leaves.append(model.add_lookup_parameters((tensor.shape.dims[-1], *tensor.shape.dims[:-1])))
            elif forced or (seed % 2 and op.shared is not None and op.shared(k) and tensor.shape.batch == 1):
                leaves.append(model.add_parameters(tensor.shape.dims, init=values[..., 0]))
            else:
                batched = tensor.shape.batch > 1
                leaves.append(ab.inputTensor(values if batched else values[..., 0], batched=batched))
        several(public(name)(*filled(sample.arguments, leaves), **sample.attributes))


class Sizes(Random):
    """Samples, every third of them of larger sizes."""

    def __init__(self, seed):
        super().__init__(seed)
        self.large = seed % 3 == 2

    def dims(self, low=1, high=4):
        rank = self.integer(low, min(high, 2) if self.large else high)
        return tuple(self.integer(1, 150 if self.large else 4) for _ in range(rank))


def check(found, dtype):
    """Compile functions, and check what each needs."""
    assert found
    for function, threads in found.items():
        name = function.__qualname__
        ptx = _cuda.compile_ptx(_cuda.entry_of(function), dtype, ARCHITECTURES[0])
        if dtype == "float32" and name not in IN_FLOAT64:
            assert not re.search(r"\.f64\b", ptx), f"{name}: computes in float64"
        for architecture in ARCHITECTURES:
            made = _cuda.link(ptx, architecture)
            what = f"{name}, {dtype}, sm_{''.join(map(str, architecture))}"
            assert made.local == 0 and made.spills == 0, f"{what}: {made.local} bytes of local memory, {made.spills} of spills"
            assert made.shared < 48 * 1024, f"{what}: {made.shared} bytes of shared memory"
            assert made.registers * threads <= REGISTERS, f"{what}: {made.registers} registers in {threads} threads"


both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


# All of float64 takes as long again, so it is compiled where a run is told to try more (AUTOBATCH_EXAMPLES). Tiles of products
# in float64 are those of `test_gemm.py`, and each kernel runs in float64 in `test_cuda_laws.py`.
ALL = int(os.environ.get("AUTOBATCH_EXAMPLES", "1")) > 1


@pytest.mark.parametrize("dtype", ["float32", "float64"] if ALL else ["float32"])
@pytest.mark.parametrize("op", OPS)
def test_op(op, dtype):
    recorded(op)
    found = functions_of_types(0, dtype, lambda record: record.op is not None and record.op is OPS[op])
    check(found, dtype)


@both_dtypes
def test_planner(dtype):
    check({k.card.function or k.function: THREADS for k in vars(_rows).values() if isinstance(k, Kernel)}, dtype)


UPDATES = [m.name for m in pkgutil.iter_modules(autobatch.kernels.__path__) if m.name.startswith("update_")]
UPDATES.remove("update_clip")  # for processors


@both_dtypes
@pytest.mark.parametrize("name", UPDATES)
def test_update_rule(name, dtype):
    made = vars(importlib.import_module(f"autobatch.kernels.{name}")).values()
    found = {}
    for kernel in made:
        if isinstance(kernel, Kernel) and kernel.function.__module__ == f"autobatch.kernels.{name}":
            found |= functions_of(kernel, dtype, (100, 1, 1))
    check(found, dtype)


@both_dtypes
@pytest.mark.parametrize("function", FUNCTIONS)
def test_cell(function, dtype):
    first = len(TYPES.records)
    ab.renew_cg()
    x, z = (ab.inputTensor(np.ones(60)) for _ in range(2))
    ab.cell(function)(x, z)
    check(functions_of_types(first, dtype, lambda record: record.op is not None and not record.op.listed), dtype)


@both_dtypes
@pytest.mark.parametrize("name", ["gru", "lstm with layer norm", "coupled"])
def test_cell_of_a_builder(name, dtype):
    model, first = ab.ParameterCollection(), len(TYPES.records)
    rnn = BUILDERS[name](model)
    ab.renew_cg()

    @ab.cell
    def step(x):
        return rnn.initial_state().add_input(x).output()

    step(ab.inputVector([1.0, 2.0, 3.0]))
    found = functions_of_types(first, dtype, lambda record: record.op is not None)
    check({f: threads for f, threads in found.items() if f.__qualname__.startswith("chain")}, dtype)  # the others: `test_op`

"""python tests/try_simulated.py OP ... : runs sample calls of ops on the processor and in the simulator, and compares.

Also compiles their kernels for sm_90 and prints what they need. For whoever writes a kernel.
"""

import re
import sys
import time

import numpy as np
from laws import filled, public, several, tensors
from simulated import simulated
from strategies import Random, numbers

import autobatch as ab
from autobatch.graph import TYPES
from autobatch.kernels import _cuda
from autobatch.kernels._op import OPS

SAMPLES, NODES = 6, 3
IN_FLOAT64 = {"poisson_loss"}  # kernels that compute a few numbers in float64, whatever the dtype


def leaves_of(op, sample, seed, dtype):
    model = ab.ParameterCollection(dtype=dtype)
    rng = np.random.default_rng(seed)
    leaves = []
    for k, tensor in enumerate(tensors(sample.arguments)):
        values = numbers(rng, tensor)
        if op.name == "lookup_batch":
            table = model.add_lookup_parameters((tensor.shape.dims[-1], *tensor.shape.dims[:-1]))
            leaves.append(table)
        elif tensor.shape.batch == 1 and ((op.shared and op.shared(k) and seed % 2) or (op.name == "lstm_step" and k > 2)):
            p = model.add_parameters(tensor.shape.dims)
            p.set_value(np.asarray(values).reshape(tensor.shape.dims, order="F"))
            leaves.append(p)
        else:
            leaves.append(np.asarray(values))
    return model, leaves


def run(op, seed, dtype):
    """Return values and gradients of a few calls."""
    sample = op.samples(Random(seed))
    model, leaves = leaves_of(op, sample, seed, dtype)
    ab.configure(dtype=dtype)
    ab.reset_random_seed(7)
    ab.renew_cg()
    outs, inputs = [], []
    for n in range(NODES):
        args = []
        for leaf, tensor in zip(leaves, tensors(sample.arguments), strict=True):
            if isinstance(leaf, np.ndarray):
                x = leaf if n % 2 == 0 or tensor.fit is not None else np.clip(leaf * 0.75, tensor.low, tensor.high)
                batched = tensor.shape.batch > 1
                e = ab.inputTensor(
                    x.reshape((*tensor.shape.dims, tensor.shape.batch) if batched else tensor.shape.dims, order="F"),
                    batched=batched,
                )
                inputs.append(e)
                args.append(e)
            else:
                args.append(leaf)
        outs += several(public(op.name)(*filled(sample.arguments, args), **sample.attributes))
    values = [np.array(o.npvalue()) for o in outs]
    loss = ab.esum([ab.sum_batches(ab.sum_elems(ab.cmult(o, o))) for o in outs])
    loss.backward(full=True)
    grads = [np.array(e.gradient()) for e in inputs]
    grads += [np.array(p.grad_as_array()) for p in [*model.parameters_list(), *model.lookup_parameters_list()]]
    return values + grads


def main(names):
    failed = []
    for name in names or list(OPS):
        op, ok, t = OPS[name], True, time.perf_counter()
        for seed in range(SAMPLES):
            for dtype in ("float32", "float64"):
                try:
                    expected = run(op, seed, dtype)
                except Exception as error:
                    print("  processor:", name, seed, type(error).__name__, str(error)[:150])
                    break
                try:
                    with simulated(name):
                        got = run(op, seed, dtype)
                    tolerance = 2e-5 if dtype == "float32" else 1e-12
                    for e, g in zip(expected, got, strict=True):
                        np.testing.assert_allclose(
                            g, e, rtol=tolerance, atol=tolerance * max(1, np.abs(e[np.isfinite(e)]).max(initial=0))
                        )
                except Exception as error:
                    ok = False
                    print("  simulator:", name, seed, dtype, type(error).__name__, " ".join(str(error).split())[:300])
                    break
            if not ok:
                break
        seen, worst = set(), ""
        for record in TYPES.records:
            if record.op is None or record.op.name != name:
                continue
            low = record.lowering
            for k in (low.forward, low.prepare, *(o.backward for o in low.operands)):
                if k is None or k.name in seen or hasattr(k, "programs"):
                    continue
                seen.add(k.name)
                for dtype in ("float32", "float64"):
                    functions = [k.card.function or k.function]
                    if k.card.stages is not None:
                        functions = list(dict.fromkeys(s.function for s in k.card.stages(low.sizes) if s.dtype in ("", dtype)))
                    for f in functions:
                        try:
                            m = _cuda.compile_kernel(f, dtype, (9, 0))
                            doubles = (
                                len(re.findall(r"\.f64\b", m.ptx)) if dtype == "float32" and f.__name__ not in IN_FLOAT64 else 0
                            )
                            if m.local or m.spills or doubles or m.shared > 49152 or m.registers > 128:
                                worst += (
                                    f"\n    {f.__name__} {dtype}: {m.registers} registers, local {m.local}, spills {m.spills}"
                                )
                                worst += f", shared {m.shared}, {doubles} f64"
                        except Exception as error:
                            ok = False
                            text = [line for line in str(error).splitlines() if line.strip()]
                            worst += (
                                f"\n    {f.__name__} {dtype}: {type(error).__name__} {' | '.join(text[:1] + text[-6:])[:500]}"
                            )
        print("ok  " if ok and not worst else "BAD ", name, f"{time.perf_counter() - t:.1f} s", worst, flush=True)
        failed += [] if ok and not worst else [name]
    print(len(failed), "bad:", *failed)


if __name__ == "__main__":
    main(sys.argv[1:])

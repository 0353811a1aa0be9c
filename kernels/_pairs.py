"""The family of losses and distances Σ value(x[j], z[j]): one number for each element of the minibatch.

    L1_DISTANCE = sum_of_pairs("l1_distance", doc, value, [slope of x, slope of z], ...)

Written by an op as formulas on scalars, value(x, z) and slope(dy, x, z), or with a third argument, a number that is the same
for all (the width of `huber_distance`). The loops around them are text, filled in for each op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba

from autobatch.kernels import _jit, _lanes
from autobatch.kernels._jit import _FASTMATH, _HELPER, Kernel, kernel_from_source
from autobatch.kernels._op import Choose, Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, trimmed, wrong

_SCOPE = {name: getattr(_jit, name) for name in ("ITEMS", "SIZES", "FLAGS", "ACCUMULATE", "integers", "item", "number")}
_SCOPE |= {name: getattr(_lanes, name) for name in ("items", "lanes", "parts", "joined", "leader")}

# With a call left over in it, a loop does not become vector code.
_formula: Any = numba.njit(**_HELPER, fastmath=_FASTMATH, forceinline=True)

# On a card an element of the minibatch is a part, unless all of them add to the gradient of the same numbers.
#
# sizes: numbers of one element, batch, then 1 for each argument that has a batch of its own

_FORWARD = """
def {name}(ins, T):
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in items(n):
        y, x, z{c} = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T){third}
        for b in parts(batch):
            at_x, at_z, total = b * size * sizes[2], b * size * sizes[3], number(0, T)
            for j in lanes(size):
                total += value(x[at_x + j], z[at_z + j]{c})
            total = joined(total)
            if leader():
                y[b] = total
"""

_BACKWARD = """
def {name}(ins, T):
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch, own = sizes[0], sizes[1], sizes[{own}]
    for i in items(n):
        dx, dy, x, z{c} = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T), item(ins, 4, i, T){third}
        for b in parts(batch):
            at, at_x, at_z, g = b * size * own, b * size * sizes[2], b * size * sizes[3], dy[b]
            if ins[FLAGS] & ACCUMULATE or (b > 0 and not own):
                for j in lanes(size):
                    dx[at + j] += slope(g, x[at_x + j], z[at_z + j]{c})
            else:
                for j in lanes(size):
                    dx[at + j] = slope(g, x[at_x + j], z[at_z + j]{c})
"""


def sum_of_pairs(
    name: str,
    doc: str,
    value: Callable[..., Any],
    slopes: Sequence[Callable[..., Any]],
    *,
    reference: Callable[..., Any],
    samples: Callable[..., Any],
    path: str,
    numbers: int = 0,
) -> Op:
    """Return the record of Σ value(x, z): equal dims, batch sizes equal or 1. `numbers`: 1 if there is a third argument.

    `reference(x, z, ...)` are the terms in NumPy. `path` is the op's file (`__file__`): its text stamps the compiled loops.
    """

    def make(kernel_name: str, text: str, scope: dict[str, Any], first: int) -> Kernel:
        parts = {"c": ", c", "third": f", item(ins, {first + 2}, i, T)[0]"} if numbers else {"c": "", "third": ""}
        own = "3" if kernel_name.endswith("z") else "2"
        source = text.format(name=kernel_name, own=own, **parts)
        return kernel_from_source(kernel_name, source, path, {**_SCOPE, **scope}, reductions=True)

    forward = make(name, _FORWARD, {"value": _formula(value)}, 1)
    forward.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])
    backward = [
        make(f"{name}_gradient_{letter}", _BACKWARD, {"slope": _formula(slope)}, 3)
        for letter, slope in zip("xz", slopes, strict=True)
    ]
    backward[0].on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1] if sizes[2] else 1)
    backward[1].on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1] if sizes[3] else 1)

    def shape(shapes: Sequence[Shape]) -> Shape:
        if trimmed(shapes[0].dims) != trimmed(shapes[1].dims):
            raise wrong(name, "the dims differ", shapes[:2], "equal dims, equal batch sizes or 1")
        return Shape((1,), common_batch(name, shapes))

    def lower(shapes: Sequence[Shape], out: Shape, shared: Sequence[bool]) -> Lowering:
        sizes = (shapes[0].size, out.batch, *(int(s.batch > 1) for s in shapes[:2]))
        return Lowering(forward, sizes, (*(Operand(backward=k) for k in backward), *(Operand(),) * numbers))

    return Op(
        name=name,
        doc=doc,
        shapes="two of the same dims -> (1,)",
        shape=shape,
        lower=lower,
        reference=lambda *arguments: _summed(reference(*arguments)),
        samples=samples,
    )


def _summed(terms: Any) -> Any:
    return terms.sum(axis=tuple(range(terms.ndim - 1)))[None]


def pairs(first: tuple[float, float], second: tuple[float, float], numbers: Sequence[float] = ()) -> Callable[[Choose], Sample]:
    """Samples of two tensors of the same dims, with numbers from these ranges; either may lack the batch; one of `numbers`."""

    def samples(choose: Choose) -> Sample:
        dims, batch = choose.dims(), choose.batch()
        shapes = [Shape(dims, batch if choose.integer(0, 2) else 1) for _ in range(2)]
        tensors = [Tensor(s, *limits) for s, limits in zip(shapes, (first, second), strict=True)]
        return Sample((*tensors, choose.one_of(numbers)) if numbers else tuple(tensors))

    return samples

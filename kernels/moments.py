"""Sums of powers over dims, over all numbers of an element, over the minibatch: sums, means, raw moments, norms.

    y = Σ xʳ / n          dx += dy r xʳ⁻¹ / n          sum: r = n = 1    mean: r = 1    squared norm: r = 2, n = 1
    y = √ Σ x²            dx += dy x / y               0 where y is 0

The loops are text, filled in with the power: one kernel for each r, which then becomes vector code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autobatch.kernels import _jit, _lanes, _math, _reduce
from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import Kernel, kernel_from_source
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, one_tensor, wrong
from autobatch.kernels._reduce import as_spread, spread_walk, walk

# sizes: divisor (unless one is given as an argument), then the walk
_DIVISOR, _AT = 0, 1

_SCOPE = {name: getattr(_jit, name) for name in ("ITEMS", "SIZES", "FLAGS", "ACCUMULATE", "integers", "item", "number")}
_SCOPE |= {name: getattr(_reduce, name) for name in ("INNER", "LENGTH", "OUTER", "PIECES", "start_of", "piece_of")}
_SCOPE |= {name: getattr(_lanes, name) for name in ("items", "parts", "leader", "width")}
_SCOPE |= {name: getattr(_reduce, name) for name in ("by_lane", "turns", "first_result", "end_result")}
_SCOPE |= {name: getattr(_reduce, name) for name in ("pieces_or_numbers", "all_joined", "quotient", "remainder")}
_SCOPE |= {"AT": _AT, "DIVISOR": _DIVISOR, "sqrt": _math.sqrt}

_FORWARD = """
def {name}(ins, T):
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    inner, length, outer, pieces = sizes[AT + INNER], sizes[AT + LENGTH], sizes[AT + OUTER], sizes[AT + PIECES]
    for i in range(n):
        y, x = item(ins, 0, i, T), item(ins, 1, i, T)
        divisor = {divisor}
        for o in range(outer):
            start, to = start_of(sizes, AT, o), o * inner
            if inner == 1:
                total = number(0, T)
                for p in range(pieces):
                    at = start + piece_of(sizes, AT, p)
                    for j in range(length):
                        v = x[at + j]{squares}
                        total += {power}
                y[o] = {end}(total / divisor)
            else:
                for j in range(inner):
                    y[to + j] = 0
                for p in range(pieces):
                    at = start + piece_of(sizes, AT, p)
                    for k in range(length):
                        for j in range(inner):
                            v = x[at + k * inner + j]{squares}
                            y[to + j] += {power}
                for j in range(inner):
                    y[to + j] = {end}(y[to + j] / divisor)
"""

_BACKWARD = """
def {name}(ins, T):
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    inner, length, outer, pieces = sizes[AT + INNER], sizes[AT + LENGTH], sizes[AT + OUTER], sizes[AT + PIECES]
    for i in range(n):
        dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), {x}
        divisor = {divisor}
        scale = number({r}, T) / divisor
        for o in range(outer):
            start, to = start_of(sizes, AT, o), o * inner
            for p in range(pieces):
                at = start + piece_of(sizes, AT, p)
                if inner == 1:
                    h, g = y[o], dy[o]
                    g = {slope}
                    if add:
                        for j in range(length):
                            v = x[at + j]{squares}
                            dx[at + j] += {product}
                    else:
                        for j in range(length):
                            v = x[at + j]{squares}
                            dx[at + j] = {product}
                else:
                    for k in range(length):
                        f = at + k * inner
                        if add:
                            for j in range(inner):
                                h, g, v = y[to + j], dy[to + j], x[f + j]{squares}
                                g = {slope}
                                dx[f + j] += {product}
                        else:
                            for j in range(inner):
                                h, g, v = y[to + j], dy[to + j], x[f + j]{squares}
                                g = {slope}
                                dx[f + j] = {product}
"""

# On a card forward and backward go through the numbers of a result in the same way, see `_reduce.py`.

_CARD = """
def {name}(ins, T):
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    inner, length, outer, pieces = sizes[AT + INNER], sizes[AT + LENGTH], sizes[AT + OUTER], sizes[AT + PIECES]
    results = inner * outer
    alone = by_lane(inner, outer, length * pieces)
    first_p, step_p, first_k, step_k = pieces_or_numbers(alone, pieces, length)
    for i in items(n):
{operands}
        divisor = {divisor}
        for t in parts(turns(alone, results)):
            r = first_result(alone, t)
            while r < end_result(alone, t, results):
                start, p = start_of(sizes, AT, r // inner) + r % inner, first_p
{begin}
                while p < pieces:
                    at, k = start + piece_of(sizes, AT, p), first_k
                    while k < length:
{number}
                        k += step_k
                    p += step_p
{end}
                r += width()
"""

_CARD_FORWARD = {
    "operands": ["y, x = item(ins, 0, i, T), item(ins, 1, i, T)"],
    "begin": ["total = number(0, T)"],
    "number": ["v = x[at + k * inner]{squares}", "total += {power}"],
    "end": ["total = all_joined(alone, total)", "if alone or leader():", "    y[r] = {end}(total / divisor)"],
}
_CARD_BACKWARD = {
    "operands": ["dx, dy, y, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), {x}"],
    "begin": ["h, g, scale = y[r], dy[r], number({r}, T) / divisor", "g = {slope}"],
    "number": [
        "{fetch}",
        "d = {product}",
        "dx[at + k * inner] = dx[at + k * inner] + d if add else d",
    ],
    "end": ["pass"],
}
_CARD_INDENT = {"operands": 8, "begin": 16, "number": 24, "end": 16}


def _card(lines: dict[str, list[str]]) -> str:
    """Text of a kernel for a card."""
    parts = {name: "\n".join(" " * by + line for line in lines[name]) for name, by in _CARD_INDENT.items()}
    return _CARD.format(name="{name}", divisor="{divisor}", **parts)


def _power(r: int) -> tuple[str, str]:
    """Text of v to the power of r, by repeated squaring: statements that go before, and the product."""
    squares = "".join(f"; v{k} = v{k - 1 or ''} * v{k - 1 or ''}" for k in range(1, r.bit_length()))
    return squares, " * ".join(f"v{k or ''}" for k in range(r.bit_length()) if r >> k & 1)


def _kernel(template: str, card: dict[str, list[str]], name: str, reductions: bool = False, **text: str) -> Kernel:
    made = kernel_from_source(name, template.format(name=name, **text), __file__, _SCOPE, reductions)
    own = kernel_from_source(f"{name}_card", _card(card).format(name=f"{name}_card", **text), __file__, _SCOPE)
    made.on_card(**as_spread(spread_walk))(own.function)
    return made


@functools.cache
def _forward(r: int, given: bool, root: bool) -> Kernel:
    name = f"power_sum_{r}" + "_given" * given + "_root" * root
    divisor = "item(ins, 2, i, T)[0]" if given else "number(sizes[DIVISOR], T)"
    squares, power = _power(r)
    end = "sqrt" if root else ""
    return _kernel(_FORWARD, _CARD_FORWARD, name, True, divisor=divisor, squares=squares, power=power, end=end)


@functools.cache
def _backward(r: int, given: bool, root: bool) -> Kernel:
    name = f"power_sum_{r}" + "_given" * given + "_root" * root + "_gradient"
    reads_x = r > 1
    place = 4 if reads_x else 3
    squares, power = _power(r - 1)
    return _kernel(
        _BACKWARD,
        _CARD_BACKWARD,
        name,
        x="item(ins, 3, i, T)" if reads_x else "item(ins, 1, i, T)",
        divisor=f"item(ins, {place}, i, T)[0]" if given else "number(sizes[DIVISOR], T)",
        r="1" if root else str(r),
        slope="(g / h if h != 0 else number(0, g))" if root else "g * scale",
        squares=squares,
        fetch=f"v = x[at + k * inner]{squares}" if reads_x else "pass",
        product=f"g * ({power})" if reads_x else "g",
    )


def _lowering(x: Shape, reduced: Sequence[bool], divide: bool, given: bool = False, r: int = 1, root: bool = False) -> Lowering:
    extents = (*x.dims, x.batch)
    count = int(np.prod([e for e, gone in zip(extents, reduced, strict=True) if gone])) if divide else 1
    needs = (0,) * (r > 1) + (1,) * given
    operands = (Operand(backward=_backward(r, given, root), needs=needs),) + (Operand(),) * given
    return Lowering(_forward(r, given, root), (count, *walk(x, reduced)), operands)


# Over dims ------------------------------------------------------------------------------------------------------------


def over(x: Shape, dims: Sequence[int], batch: bool) -> list[bool]:
    """Return for each dim of x, and for the batch, whether it is reduced."""
    return [*(d in dims for d in range(len(x.dims))), batch]


def dims_shape(name: str) -> Callable[..., Shape]:
    """Shape rule of a reduction over some dims, and perhaps the batch."""

    def rule(shapes: Sequence[Shape], dims: tuple[int, ...], batch: bool, r: int = 1) -> Shape:
        x = shapes[0]
        if not dims and not batch:
            raise wrong(name, "there is nothing to reduce", [x], "at least one dim in the list d, or b=True")
        for d in dims:
            _reduce.check_dim(name, x, d)
        if len(set(dims)) < len(dims):
            raise wrong(name, f"dims {list(dims)} name one dim twice", [x], "each dim at most once")
        return Shape(_reduce.dropped(x.dims, dims), 1 if batch else x.batch)

    return rule


def _dims_lower(divide: bool) -> Callable[..., Lowering]:
    def lower(shapes: Any, out: Any, shared: Any, dims: tuple[int, ...], batch: bool, r: int = 1) -> Lowering:
        return _lowering(shapes[0], over(shapes[0], dims, batch), divide, len(shapes) > 1, r)

    return lower


def dims_reference(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Reference of a reduction over dims: `function(x, axes, count, n)` with kept axes of extent 1 -> the same."""

    def reference(x: Any, d: Sequence[int], b: bool = False, n: int = 0) -> Any:
        axes = (*d, x.ndim - 1) if b else tuple(d)
        count = int(np.prod([x.shape[k] for k in axes]))
        y = function(x, axes, n or count, count)
        dims = tuple(e for k, e in enumerate(x.shape[:-1]) if k not in d) or (1,)
        return y.reshape(*dims, 1 if b else x.shape[-1])

    reference.__name__ = name
    return reference


def some_dims(choose: Any) -> tuple[Tensor, list[int], bool, int]:
    """Draw an argument, dims of it, whether over the batch, and how many numbers go into one."""
    dims, batch = choose.dims(), choose.batch()
    b = bool(choose.integer(0, 2) == 0)
    d = [k for k in range(len(dims)) if choose.integer(0, 1)]
    d = d[::-1] if d or b else [choose.integer(0, len(dims) - 1)]
    x = Shape(dims, batch)
    return Tensor(x), d, b, int(np.prod([dims[k] for k in d])) * (batch if b else 1)


def mask_size(choose: Any, count: int) -> tuple[int, ...]:
    """Draw the last argument n, or none."""
    return (choose.integer(1, count + 2),) if choose.integer(0, 1) else ()


def _sum_samples(choose: Any) -> Sample:
    x, d, b, _ = some_dims(choose)
    return Sample((x, d, b))


def _mean_samples(choose: Any) -> Sample:
    x, d, b, count = some_dims(choose)
    return Sample((x, d, b, *mask_size(choose, count)))


def _moment_samples(choose: Any) -> Sample:
    x, d, b, count = some_dims(choose)
    return Sample((x, d, choose.integer(1, 4), b, *mask_size(choose, count)))


def _moment_reference(x: Any, d: Sequence[int], r: int, b: bool = False, n: int = 0) -> Any:
    return dims_reference(lambda x, axes, n, count: (x**r).sum(axis=axes) / n, "moment")(x, d, b, n)


SUM_DIM = Op(
    name="sum_dim",
    doc="Σ x over some dims, and perhaps the minibatch.    dx += dy",
    shape=dims_shape("sum_dim"),
    lower=_dims_lower(divide=False),
    reference=dims_reference(lambda x, axes, n, count: x.sum(axis=axes), "sum"),
    samples=_sum_samples,
    shapes="any -> without the dims of d",
)
MEAN_DIM = Op(
    name="mean_dim",
    doc="Σ x / n over some dims, and perhaps the minibatch.    dx += dy / n",
    shape=dims_shape("mean_dim"),
    lower=_dims_lower(divide=True),
    reference=dims_reference(lambda x, axes, n, count: x.sum(axis=axes) / n, "mean"),
    samples=_mean_samples,
    shapes="any -> without the dims of d",
)
MOMENT_DIM = Op(
    name="moment_dim",
    doc="Σ xʳ / n over some dims, and perhaps the minibatch.    dx += dy r xʳ⁻¹ / n",
    shape=dims_shape("moment_dim"),
    lower=_dims_lower(divide=True),
    reference=_moment_reference,
    samples=_moment_samples,
    shapes="any -> without the dims of d",
)


# Over the elements, over the minibatch --------------------------------------------------------------------------------


def elements(x: Shape) -> list[bool]:
    """Reduce all dims, not the batch."""
    return [True] * len(x.dims) + [False]


def minibatch(x: Shape) -> list[bool]:
    """Reduce the batch alone."""
    return [False] * len(x.dims) + [True]


def one_each(shapes: Sequence[Shape], r: int = 1) -> Shape:
    """Shape rule of a reduction over all numbers of an element."""
    return Shape((1,), shapes[0].batch)


def no_batch(shapes: Sequence[Shape], r: int = 1) -> Shape:
    """Shape rule of a reduction over the minibatch."""
    return Shape(shapes[0].dims)


def per_element(function: Callable[..., Any]) -> Callable[..., Any]:
    """Reference of a reduction over all numbers of an element, by a NumPy function."""
    return lambda x, *r: function(x, *r, axis=tuple(range(x.ndim - 1)))[None]


def per_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """Reference of a reduction over the minibatch, by a NumPy function."""
    return lambda x, *r: function(x, *r, axis=-1)[..., None]


def _moment(x: Any, r: int, axis: Any) -> Any:
    return (x**r).mean(axis=axis)


def _with_power(choose: Any) -> Sample:
    return Sample((*one_tensor()(choose).arguments, choose.integer(1, 4)))


def _lower(
    reduced: Callable[[Shape], list[bool]], divide: bool = True, r: int = 1, root: bool = False
) -> Callable[..., Lowering]:
    power = r

    def lower(shapes: Any, out: Any, shared: Any, r: int = power) -> Lowering:
        return _lowering(shapes[0], reduced(shapes[0]), divide, r=r, root=root)

    return lower


def check_power(name: str, r: int) -> int:
    """Return the power of a moment; raise if it is none."""
    if not 1 <= r < 2**31:
        raise ArgumentError(f"{name}: the power r is {r}\n  expected  at least 1")
    return r


MEAN_ELEMS = Op(
    name="mean_elems",
    doc="Mean of the numbers of each element of the minibatch.    dx += dy / n    (any rank; DyNet: at most 2)",
    shape=one_each,
    lower=_lower(elements),
    reference=per_element(np.mean),
    samples=one_tensor(),
    shapes="any -> (1,)",
)
MOMENT_ELEMS = Op(
    name="moment_elems",
    doc="Σ xʳ / n over the numbers of each element of the minibatch.    dx += dy r xʳ⁻¹ / n",
    shape=one_each,
    lower=_lower(elements),
    reference=per_element(_moment),
    samples=_with_power,
    shapes="any -> (1,)",
)
SQUARED_NORM = Op(
    name="squared_norm",
    doc="Σ x² of each element of the minibatch.    dx += 2 dy x",
    shape=one_each,
    lower=_lower(elements, divide=False, r=2),
    reference=per_element(lambda x, axis: (x * x).sum(axis=axis)),
    samples=one_tensor(),
    shapes="any -> (1,)",
)
L2_NORM = Op(
    name="l2_norm",
    doc="√ Σ x² of each element of the minibatch.    dx += dy x / y, and 0 (a subgradient) where y is 0 (DyNet: NaN)",
    shape=one_each,
    lower=_lower(elements, divide=False, r=2, root=True),
    reference=per_element(lambda x, axis: np.sqrt((x * x).sum(axis=axis))),
    samples=one_tensor(),
    shapes="any -> (1,)",
)
MEAN_BATCHES = Op(
    name="mean_batches",
    doc="Mean over the minibatch.    dx of each element += dy / B    (any rank; DyNet: at most 3)",
    shape=no_batch,
    lower=_lower(minibatch),
    reference=per_place(np.mean),
    samples=one_tensor(),
    shapes="any -> the same dims, no batch",
)
MOMENT_BATCHES = Op(
    name="moment_batches",
    doc="Σ xʳ / B over the minibatch.    dx of each element += dy r xʳ⁻¹ / B",
    shape=no_batch,
    lower=_lower(minibatch),
    reference=per_place(_moment),
    samples=_with_power,
    shapes="any -> the same dims, no batch",
)

"""The family of elementwise ops: y[j] = value(x0[j], x1[j], ...), written by an op as formulas on scalars.

    TANH = elementwise("tanh", __doc__, value, [slope], ...)      value(x) -> y      slope(dy, y, x) -> dx

The loops around the formulas are text, filled in for each op. One op has several forms of its loops, and a node type takes
the plainest that fits its shapes, named by one letter an argument:

    f   the argument has the shape of the result
    n   it is one single number
    b   anything else that broadcasts: the argument is walked with strides

Where all items of a batch lie one after the other the loop runs over the whole batch as over one vector.

A formula that is right, and vector code, for all but rare numbers (sin of huge ones) says so by `rare`: 1024 numbers at a time
are looked through, and if one of them is rare, they all go through other formulas, one after the other. On a card the
functions are right for all numbers.

On a card the walk of form `b` has a lane for each number of the result, which finds its place in each argument by divisions.
In the gradient of an argument that was stretched, a number of it is a sum: of many numbers for each of few, then all lanes form
one sum, or of few for each of many, then each lane does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from autobatch.kernels import _jit, _lanes
from autobatch.kernels._fused import Formulas
from autobatch.kernels._jit import Kernel, function_from_source, inline, kernel_from_source
from autobatch.kernels._op import Lowering, Op, Operand, Shape, common_batch, wrong

_SCOPE = {
    name: getattr(_jit, name) for name in ("ITEMS", "SIZES", "FLAGS", "ACCUMULATE", "integers", "item", "whole", "number")
}
_SCOPE |= {name: getattr(_lanes, name) for name in ("items", "lanes", "parts", "joined", "leader", "lane", "width", "quotient")}
_STRIP = 256  # results that a team forms on a card, where each lane forms one


# Shapes ---------------------------------------------------------------------------------------------------------------


def same_shape(shapes: Sequence[Shape]) -> Shape:
    """Shape rule of a function of one argument."""
    return shapes[0]


def broadcast_shape(name: str) -> Callable[..., Shape]:
    """Shape rule of `+` and `cmult`: missing dims are ones at the end; each dim, and the batch, matches or is 1."""

    def rule(shapes: Sequence[Shape]) -> Shape:
        rank = max(len(s.dims) for s in shapes)
        padded = [s.dims + (1,) * (rank - len(s.dims)) for s in shapes]
        dims = []
        for d, sizes in enumerate(zip(*padded, strict=True)):
            others = set(sizes) - {1}
            if len(others) > 1:
                raise wrong(
                    name,
                    f"dim {d} is {' and '.join(str(p[d]) for p in padded)}",
                    shapes,
                    "in each dim equal sizes, or 1 (missing dims count as 1, at the end)",
                    "reshape or transpose one side" if rank > 1 else "",
                )
            dims.append(others.pop() if others else 1)
        return Shape(tuple(dims), common_batch(name, shapes))

    return rule


def _strides(shape: Shape, out: Shape) -> list[tuple[int, int]]:
    """Return (extent, stride of `shape`) for each dim of `out` and its batch; the stride of a stretched dim is 0."""
    dims = (shape.dims + (1,) * (len(out.dims) - len(shape.dims)))[: len(out.dims)]  # what is cut off are ones
    result, step = [], 1
    for extent, size in zip((*out.dims, out.batch), (*dims, shape.batch), strict=True):
        result.append((extent, step if size > 1 else 0))
        step *= size
    return result


def _walk(shapes: Sequence[Shape], out: Shape) -> tuple[int, ...]:
    """Return the numbers the loops of form `b` read: total, dims, extents, then the strides of each argument.

    Dims of extent 1 are dropped and neighbours that all arguments walk alike are joined, so that few are left.
    """
    per_argument = [_strides(s, out) for s in shapes]
    dims: list[tuple[int, list[int]]] = []
    for d, extent in enumerate((*out.dims, out.batch)):
        if extent == 1:
            continue
        steps = [a[d][1] for a in per_argument]
        if dims and all(s == dims[-1][0] * p for s, p in zip(steps, dims[-1][1], strict=True)):
            dims[-1] = (dims[-1][0] * extent, dims[-1][1])
        else:
            dims.append((extent, steps))
    dims = dims or [(1, [0] * len(shapes))]
    strides = [d[1][a] for a in range(len(shapes)) for d in dims]
    sizes = [s.total for s in shapes]
    return (out.total, len(dims), *(d[0] for d in dims), *strides, *sizes)


def _form(shapes: Sequence[Shape], out: Shape) -> str:
    letters = ["f" if s.total == out.total else "n" if s.total == 1 else "b" for s in shapes]
    return "b" * len(letters) if "b" in letters else "".join(letters)


# Loops ----------------------------------------------------------------------------------------------------------------


def _indent(text: str, by: int) -> str:
    return "\n".join(" " * by + line for line in text.split("\n"))


def _unless_rare(test: str, ordinary: str, rare: str, by: int) -> str:
    """Text of a loop over j, by blocks: `rare` where any number of the block passes `test`, else `ordinary`."""
    return _indent(
        f"""
for begin in range(0, size, 1024):
    end, found = min(begin + 1024, size), False
    for j in range(begin, end):
        found |= {test}
    if found:
        for j in range(begin, end):
            {rare}
    else:
        for j in range(begin, end):
            {ordinary}
""",
        by,
    )


def _plain(ordinary: str, by: int) -> str:
    """Text of a loop over j."""
    return _indent(f"for j in lanes(size):\n    {ordinary}", by)


def _forward_source(name: str, form: str, rare: bool = False) -> str:
    """Text of the forward loops of form f/n."""
    slots = range(len(form))
    full = [k for k in slots if form[k] == "f"]
    args = ", ".join(f"x{k}[j]" if form[k] == "f" else f"x{k}" for k in slots)
    fetch = "\n".join(f"x{k} = item(ins, {k + 1}, i, T)" + ("" if form[k] == "f" else "[0]") for k in slots)
    loops = f"""
def {name}(ins, T):
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
"""
    if len(full) == len(form):
        flat = " and ".join(f"whole(ins, {k}, size, T)" for k in [0, *(k + 1 for k in full)])
        loops += f"""
    if {flat}:
        n, size = 1, n * size
"""
    inner = f"y[j] = value({args})"
    return (
        loops
        + f"""
    for i in items(n):
        y = item(ins, 0, i, T)
{_indent(fetch, 8)}
{_unless_rare("test(x0[j])", inner, "y[j] = rare_value(x0[j])", 8) if rare else _plain(inner, 8)}
"""
    )


def _backward_source(name: str, form: str, k: int, rare: bool = False) -> str:
    """Text of the loops that write the gradient of argument k, of form f/n."""
    slots = range(len(form))
    args = ", ".join(f"x{m}[j]" if form[m] == "f" else f"x{m}" for m in slots)
    fetch = "\n".join(f"x{m} = item(ins, {m + 3}, i, T)" + ("" if form[m] == "f" else "[0]") for m in slots)
    head = f"""
def {name}(ins, T):
    n, size = ins[ITEMS], integers(ins[SIZES])[0]
    add = ins[FLAGS] & ACCUMULATE
"""
    if "n" not in form:
        flat = " and ".join(f"whole(ins, {m}, size, T)" for m in range(len(form) + 3))
        head += f"""
    if {flat}:
        n, size = 1, n * size
"""
    head += f"""
    for i in items(n):
        dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
{_indent(fetch, 8)}
"""
    if form[k] == "f":
        loops = []
        for sign in ("+=", "="):
            inner, other = f"dx[j] {sign} slope(dy[j], y[j], {args})", f"dx[j] {sign} rare_slope(dy[j], y[j], {args})"
            loops.append(_unless_rare("test(x0[j])", inner, other, 12) if rare else _plain(inner, 12))
        return (
            head
            + f"""
        if add:
{loops[0]}
        else:
{loops[1]}
"""
        )
    return (
        head
        + f"""
        total = number(0, T)
        for j in lanes(size):
            total += slope(dy[j], y[j], {args})
        total = joined(total)
        if leader():
            dx[0] = dx[0] + total if add else total
"""
    )


def _walk_source(name: str, count: int, k: int | None) -> str:
    """Text of the loops of form `b`: forward (k None) or the gradient of argument k."""
    first = 1 if k is None else 3
    slots = range(count)
    fetch = "\n".join(f"x{m} = item(ins, {first + m}, i, T)" for m in slots)
    starts = "\n".join(f"o{m} = 0" for m in slots)
    steps = "\n".join(f"s{m} = sizes[2 + (1 + {m}) * dims]" for m in slots)
    moves = "\n".join(f"o{m} += at * sizes[2 + (1 + {m}) * dims + d]" for m in slots)
    args = ", ".join(f"x{m}[o{m} + j * s{m}]" for m in slots)
    if k is None:
        names = "y = item(ins, 0, i, T)"
        inner = f"for j in range(inner):\n    y[o * inner + j] = value({args})"
    else:
        names = f"""dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
if not ins[FLAGS] & ACCUMULATE:
    for j in range(sizes[2 + (1 + {count}) * dims + {k}]):
        dx[j] = 0"""
        slope = f"slope(dy[o * inner + j], y[o * inner + j], {args})"
        inner = f"""if s{k} == 0:
    total = number(0, T)
    for j in range(inner):
        total += {slope}
    dx[o{k}] += total
else:
    for j in range(inner):
        dx[o{k} + j * s{k}] += {slope}"""
    return f"""
def {name}(ins, T):
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    dims = sizes[1]
    inner = sizes[2]
    outer = sizes[0] // inner
{_indent(steps, 4)}
    for i in range(n):
{_indent(names, 8)}
{_indent(fetch, 8)}
        for o in range(outer):
            rest = o
{_indent(starts, 12)}
            for d in range(1, dims):
                at = rest % sizes[2 + d]
                rest //= sizes[2 + d]
{_indent(moves, 16)}
{_indent(inner, 12)}
"""


def _place(count: int, only: str = "") -> str:
    """Text that moves to number `rest`: o of the result, o0, o1, ... of the arguments; of some dims only, if `only` says so."""
    moves = "\n".join(f"o{m} += at * sizes[2 + (1 + {m}) * dims + d]" for m in range(count))
    return f"""
step, d = 1, 0
while rest > 0:
    extent = sizes[2 + d]
    if {only or "True"}:
        up = quotient(rest, extent)
        at = rest - up * extent
        rest = up
        o += at * step
{_indent(moves, 8)}
    step *= extent
    d += 1"""


def _card_walk_source(name: str, count: int, k: int | None) -> str:
    """Text of the loops of form `b` on a card: forward (k None) or the gradient of argument k."""
    first = 1 if k is None else 3
    fetch = "\n".join(f"x{m} = item(ins, {first + m}, i, T)" for m in range(count))
    args = ", ".join(f"x{m}[o{m}]" for m in range(count))
    starts = "".join(f"o{m} = " for m in range(count)) + "o = 0"
    if k is None:
        return f"""
def {name}(ins, T):
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    dims = sizes[1]
    for i in items(n):
        y = item(ins, 0, i, T)
{_indent(fetch, 8)}
        for j in lanes(sizes[0]):
            rest = j
            {starts}
{_indent(_place(count), 12)}
            y[j] = value({args})
"""
    kept, summed = (f"sizes[2 + (1 + {k}) * dims + d] {sign} 0" for sign in ("!=", "=="))
    result = f"""
rest = r
{starts}
{_place(count, kept)}"""
    term = f"""
rest = t
{"".join(f"o{m} = from_{m}" + chr(10) for m in range(count))}o = start
{_place(count, summed)}
total += slope(dy[o], y[o], {args})"""
    base = "".join(f"from_{m} = o{m}" + chr(10) for m in range(count)) + "start = o"
    return f"""
def {name}(ins, T):
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    dims = sizes[1]
    results = sizes[2 + (1 + {count}) * dims + {k}]
    terms = quotient(sizes[0], results)
    add = ins[FLAGS] & ACCUMULATE
    for i in items(n):
        dx, dy, y = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
{_indent(fetch, 8)}
        few = results < {_STRIP} and results < terms
        for p in parts(results if few else (results + {_STRIP - 1}) // {_STRIP}):
            r, end, r_step, t_first, t_step = p, p + 1, 1, lane(), width()
            if not few:
                r, end, r_step = p * {_STRIP} + t_first, min((p + 1) * {_STRIP}, results), t_step
                t_first, t_step = 0, 1
            while r < end:
{_indent(result, 16)}
{_indent(base, 16)}
                total = number(0, T)
                t = t_first
                while t < terms:
{_indent(term, 20)}
                    t += t_step
                if few:
                    total = joined(total)
                if not few or leader():
                    dx[r] = dx[r] + total if add else total
                r += r_step
"""


def _results(sizes: Sequence[int], count: int, k: int) -> tuple[int, int]:
    """Numbers of argument k, and how many add up to one of its gradient, from the sizes of a walk."""
    results = sizes[2 + (1 + count) * sizes[1] + k]
    return results, sizes[0] // results


def _walk_work(count: int, k: int) -> Callable[[tuple[int, ...]], int]:
    """How many lanes the gradient of argument k keeps busy."""

    def work(sizes: tuple[int, ...]) -> int:
        results, terms = _results(sizes, count, k)
        return terms if results < min(_STRIP, terms) else min(results, _STRIP)

    return work


def _walk_parts(count: int, k: int) -> Callable[[tuple[int, ...]], int]:
    """In how many parts the gradient of argument k falls."""

    def parts(sizes: tuple[int, ...]) -> int:
        results, terms = _results(sizes, count, k)
        return results if results < min(_STRIP, terms) else -(-results // _STRIP)

    return parts


# The record -----------------------------------------------------------------------------------------------------------


class Rare(NamedTuple):
    """Formulas for all numbers, of an op of one argument whose own are not right where test(x) is true."""

    test: Callable[..., Any]
    value: Callable[..., Any]
    slope: Callable[..., Any]


def loops(
    name: str,
    value: Callable[..., Any],
    slopes: Sequence[Callable[..., Any] | None],
    path: str,
    rare: Rare | None = None,
) -> Callable[..., Lowering]:
    """Return what lowers an elementwise op with these formulas, see `elementwise`."""
    count = len(slopes)
    scope = {**_SCOPE, "value": inline(value, always=True)}
    if rare is not None:
        scope |= {"test": inline(rare.test, always=True), "rare_value": inline(rare.value), "rare_slope": inline(rare.slope)}
    compiled_slopes = [s and inline(s, always=True) for s in slopes]
    kernels: dict[tuple[str, int | None], Kernel] = {}

    def kernel(form: str, k: int | None) -> Kernel:
        if (form, k) not in kernels:
            kernel_name = f"{name}_{form}" + ("" if k is None else f"_gradient{k}")
            if form[0] == "b":
                source = _walk_source(kernel_name, count, k)
            elif k is None:
                source = _forward_source(kernel_name, form, rare is not None)
            else:
                source = _backward_source(kernel_name, form, k, rare is not None)
            own = {**scope, "slope": None if k is None else compiled_slopes[k]}
            reduces = k is not None and form[k] != "f"
            made = kernels[form, k] = kernel_from_source(kernel_name, source, path, own, reductions=reduces)
            if form[0] == "b":
                on_card = function_from_source(kernel_name, _card_walk_source(kernel_name, count, k), path, own)
                if k is None:
                    made.on_card(on_card)
                else:
                    made.on_card(work=_walk_work(count, k), parts=_walk_parts(count, k))(on_card)
            elif rare is not None:
                plain = _forward_source(kernel_name, form) if k is None else _backward_source(kernel_name, form, k)
                made.on_card(function_from_source(kernel_name, plain, path, own))
        return kernels[form, k]

    def lower(shapes: Sequence[Shape], out: Shape, shared: Sequence[bool]) -> Lowering:
        form = _form(shapes, out)
        sizes = _walk(shapes, out) if form[0] == "b" else (out.total,)
        operands = tuple(Operand(backward=kernel(form, k) if slopes[k] else None) for k in range(count))
        return Lowering(kernel(form, None), sizes, operands)

    return lower


def elementwise(
    name: str,
    doc: str,
    value: Callable[..., Any],
    slopes: Sequence[Callable[..., Any] | None],
    *,
    reference: Callable[..., Any],
    samples: Callable[..., Any],
    path: str,
    shape: Callable[..., Shape] | None = None,
    shapes: str = "",
    surrogate: Callable[..., Any] | None = None,
    joins: bool = False,
    rare: Rare | None = None,
) -> Op:
    """Return the record of an elementwise op with one formula for the value and one slope per argument.

    `value(x0, x1, ...)` and `slopes[k](dy, y, x0, x1, ...)` are formulas on scalars of either dtype; the slope of an argument
    that is always a plain number (α of `elu`) may be None: no gradient. `path` is the op's file (`__file__`): its text stamps
    the compiled loops.
    """
    return Op(
        name=name,
        doc=doc,
        shape=shape or same_shape,
        lower=loops(name, value, slopes, path, rare),
        reference=reference,
        samples=samples,
        shapes=shapes or ("x -> as x" if len(slopes) == 1 else "dims that broadcast -> their common dims"),
        surrogate=surrogate,
        joins=joins,
        formulas=None if rare is not None else Formulas(value, tuple(slopes), path).of,
    )


def forms(count: int) -> list[str]:
    """Return all forms of loops an op of `count` arguments can take."""
    plain = ["".join(p) for p in itertools.product("fn", repeat=count)]
    return [*plain, "b" * count]

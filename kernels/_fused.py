"""Chains of elementwise operations as one loop each way, generated for a cell.

A `Chain` says for numbers j of a row what is read, computed and stored:

    t0 = logistic(y[128 + j])        reads   parts of rows: (row, first number); or single numbers
    t1 = t0 * x1[j]                  lines   an op's formula, of earlier lines and of reads
    y[256 + j] = t1                  stores  lines that someone else needs

Backward runs the lines in reverse. What forward stored it reads; the rest it computes again, which is cheaper than memory.

The first row is always the node's own, so that all parts of it have one base and LLVM sees by their distances that they do not
overlap: a loop over many pointers would be checked at run time, or not be vectorised at all.

Backward may add to parts of one row that overlap, as of x[0:128] + x[64:192]. A processor does it number by number. On a card
lanes would collide there, so it takes one loop after the other, and each computes the lines anew.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from numba.core import ir
from numba.core.compiler import run_frontend

from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, Kernel, function_from_source, inline, item, kernel_from_source
from autobatch.kernels._lanes import items, lanes, meet

_WORDS = {"items": items, "lanes": lanes}


@functools.cache
def _stamp(path: str) -> str:
    """Hash of a file that formulas come from: a change of it makes generated kernels new ones."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16]


class Formulas:
    """An op number by number: value(x0, x1, ...) and slopes[k](dy, y, x0, x1, ...), which may be None; `path`: their file."""

    def __init__(self, value: Callable[..., Any], slopes: tuple[Callable[..., Any] | None, ...], path: str) -> None:
        self.value, self.slopes, self.path = value, slopes, path
        self.costly = "_math" in value.__code__.co_names or "math" in value.__code__.co_names

    def of(self, count: int) -> Formulas | None:
        """Return the formulas for so many arguments."""
        return self if count == len(self.slopes) else None

    def reads_argument(self) -> bool:
        """Whether the slope of a function of one argument reads x, or makes do with y."""
        slope = self.slopes[0]
        if slope is None:
            return False
        _, _, x = slope.__code__.co_varnames[:3]
        made = run_frontend(slope)  # Numba's form of the function, which does not change with the version of Python
        statements = [s for block in made.blocks.values() for s in block.body]
        return any(v.name == x for s in statements if not _binds(s) for v in s.list_vars())

    @functools.cached_property
    def compiled(self) -> tuple[Any, tuple[Any, ...]]:
        """The formulas as helpers of kernels."""
        return inline(self.value, always=True), tuple(s and inline(s, always=True) for s in self.slopes)


def _binds(statement: Any) -> bool:
    """Whether a statement of Numba's only names an argument, or forgets one."""
    return isinstance(statement, ir.Del) or (isinstance(statement, ir.Assign) and isinstance(statement.value, ir.Arg))


@functools.cache
def sum_of(count: int) -> Formulas:
    """Return the formulas of a sum of `count` numbers."""
    names = ", ".join(f"x{k}" for k in range(count))
    value = eval(f"lambda {names}: {names.replace(', ', ' + ')}")
    slope = eval(f"lambda dy, y, {names}: dy")
    return Formulas(value, (slope,) * count, __file__)


class Read(NamedTuple):
    """Number j of a part of row `row` from `start` on; or, if `single`, its number `start` for all j."""

    row: int
    start: int = 0
    single: bool = False


class Line(NamedTuple):
    """One op: its formulas, and arguments: numbers of earlier lines, or reads."""

    formulas: Formulas
    args: tuple[int | Read, ...]


@dataclasses.dataclass(frozen=True)
class Chain:
    """What one loop does, to rows of which 0 is the node's own; `rows` counts them."""

    size: int
    rows: int
    lines: tuple[Line, ...]
    stores: dict[int, int]  # line -> where in the node's own row

    def _names(self, lines: list[Line]) -> tuple[dict[Any, str], dict[str, Any]]:
        """Names of the formulas of each op, and what they are called in the text."""
        names: dict[Any, str] = {}
        scope: dict[str, Any] = {"ITEMS": ITEMS, "FLAGS": FLAGS, "ACCUMULATE": ACCUMULATE, "item": item, **_WORDS}
        for line in lines:
            if line.formulas not in names:
                name = names[line.formulas] = f"f{len(names)}"
                value, slopes = line.formulas.compiled
                scope[f"{name}_value"] = value
                scope |= {f"{name}_slope{k}": s for k, s in enumerate(slopes) if s is not None}
        return names, scope

    def _loads(self, shift: int) -> tuple[dict[Read, str], list[str], list[str]]:
        """Names of all reads; what is read before the loop, and what in it."""
        reads = list(dict.fromkeys(a for line in self.lines for a in line.args if isinstance(a, Read)))
        names = {read: f"r{k}" for k, read in enumerate(reads)}
        before = [f"{names[r]} = b{r.row + shift}[{r.start}]" for r in reads if r.single]
        inside = [f"{names[r]} = b{r.row + shift}[{r.start} + j]" for r in reads if not r.single]
        return names, before, inside

    def _kernel(
        self, kind: str, rows: int, before: list[str], inside: list[str], on_card: list[list[str]] | None = None
    ) -> Kernel:
        """The kernel of one loop, or on a card of several ones."""
        names, scope = self._names(list(self.lines))
        stamps = " ".join(sorted({_stamp(formulas.path) for formulas in names}))
        who = ", ".join(f"{name} {formulas.value.__qualname__}" for formulas, name in names.items())

        wait = "        meet()\n"

        def text(loops: list[list[str]]) -> str:
            parts = [f"        for j in lanes({self.size}):\n{_block(12, lines)}\n" for lines in loops]
            return f"""(ins, T):
    # {stamps}
    # {who}
    for i in items(ins[ITEMS]):
{_block(8, [f"b{k} = item(ins, {k}, i, T)" for k in range(rows)] + before)}
{wait.join(parts)}"""

        body = text([inside])
        name = f"{kind}_{hashlib.sha256(body.encode()).hexdigest()[:16]}"
        made = kernel_from_source(name, f"def {name}{body}", __file__, scope)
        size = self.size
        made.on_card(work=lambda sizes: size)
        if on_card is not None:
            own = function_from_source(name, f"def {name}{text(on_card)}", __file__, {**scope, "meet": meet})
            made.on_card(work=lambda sizes: size)(own)
        return made

    def forward(self) -> Kernel:
        """Return the kernel that computes the chain. Slots: the rows."""
        formulas, _ = self._names(list(self.lines))
        names, before, inside = self._loads(0)
        for t, line in enumerate(self.lines):
            args = ", ".join(names[a] if isinstance(a, Read) else f"t{a}" for a in line.args)
            inside.append(f"t{t} = {formulas[line.formulas]}_value({args})")
            if t in self.stores:
                inside.append(f"b0[{self.stores[t]} + j] = t{t}")
        return self._kernel("chain", self.rows, before, inside)

    def backward(self, seeds: dict[int, int], targets: dict[Read, tuple[int, bool]]) -> Kernel:
        """Return the kernel that computes gradients. Slots: the gradient of the node, then the rows.

        Parameters
        ----------
        seeds : line -> where in the gradient of the node its own stands, if others read it.
        targets : read -> where in the gradient of the node its gradient goes, and whether it is added there.
        """
        formulas, _ = self._names(list(self.lines))
        names, before, inside = self._loads(1)
        fetched = []
        for t, line in enumerate(self.lines):
            args = ", ".join(names[a] if isinstance(a, Read) else f"t{a}" for a in line.args)
            if t in self.stores:
                fetched.append(f"t{t} = b1[{self.stores[t]} + j]")
            else:
                fetched.append(f"t{t} = {formulas[line.formulas]}_value({args})")
        inside += fetched
        gradients: dict[int | Read, str] = {t: f"b0[{at} + j]" for t, at in seeds.items()}
        for seed in seeds:
            inside.append(f"g{seed} = {gradients[seed]}")
            gradients[seed] = f"g{seed}"
        for t in range(len(self.lines) - 1, -1, -1):
            if t not in gradients:
                continue
            line = self.lines[t]
            args = ", ".join(names[a] if isinstance(a, Read) else f"t{a}" for a in line.args)
            for k, a in enumerate(line.args):
                if line.formulas.slopes[k] is None or (isinstance(a, Read) and a not in targets):
                    continue
                own = f"d{names[a]}" if isinstance(a, Read) else f"g{a}"
                part = f"{formulas[line.formulas]}_slope{k}(g{t}, t{t}, {args})"
                inside.append(f"{own} = {gradients[a]} + {part}" if a in gradients else f"{own} = {part}")
                gradients[a] = own
        writes: dict[Read, str] = {}
        for read, (at, add) in targets.items():
            if read in gradients:
                writes[read] = f"b0[{at} + j] {'+=' if add else '='} {gradients[read]}"
            elif not add:
                writes[read] = f"b0[{at} + j] = 0"
        turns = self._turns(seeds, {read: targets[read][0] for read in writes})
        on_card = [[*inside, *(writes[read] for read in turn)] for turn in turns] if len(turns) > 1 else None
        return self._kernel("chain_gradient", self.rows + 1, before, inside + list(writes.values()), on_card)

    def _turns(self, seeds: dict[int, int], places: dict[Read, int]) -> list[list[Read]]:
        """Reads whose gradients may be written together: no two overlap, but where they are the same place.

        What overlaps is written in the order given. What stands where a seed does comes last, as each turn reads the seeds.
        """
        turn_of: dict[Read, int] = {}
        for read, at in places.items():
            earlier = [(turn_of[r], places[r]) for r in turn_of if abs(places[r] - at) < self.size]
            turn_of[read] = max((turn + (place != at) for turn, place in earlier), default=0)
        last = max(turn_of.values(), default=0)
        for read, at in places.items():
            if at in seeds.values():
                turn_of[read] = last
        return [[read for read, turn in turn_of.items() if turn == t] for t in range(last + 1)]


def _block(by: int, lines: list[str]) -> str:
    return "\n".join(" " * by + line for line in lines)

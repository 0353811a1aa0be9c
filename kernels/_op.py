"""What an operation is: one record, in one file, with everything that anybody asks of it.

An op's file reads from top to bottom: docstring, formulas, kernels, record. The record answers

    shapes      the same in words, for the reader: "(m,k) * (k,n) -> (m,n)"
    shape       which shapes fit, and what comes out; raises ShapeError at the user's own line
    lower       for given shapes: which kernels, how they read their operands (`Lowering`)
    reference   the definition of the truth, in NumPy, float64, for one node
    samples     legal calls to test with: its domain
    surrogate   only if the gradient is, by intention, not that of the value: the function whose gradient it is

`OPS` holds all records by name. Nobody outside an op's file knows it by name but `autobatch.functions`, which
gives it its public spelling.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from autobatch.kernels._errors import InternalError, ShapeError
from autobatch.kernels._jit import Kernel


class Shape(NamedTuple):
    """Sizes of one node: dims of one element (column-major) and the size of the minibatch (slowest)."""

    dims: tuple[int, ...]
    batch: int = 1

    @property
    def size(self) -> int:
        """Numbers in one element of the minibatch."""
        return math.prod(self.dims)

    @property
    def total(self) -> int:
        """Numbers in all."""
        return math.prod(self.dims) * self.batch

    def __str__(self) -> str:
        dims = "(" + ",".join(map(str, self.dims)) + ("," if len(self.dims) == 1 else "") + ")"
        return dims if self.batch == 1 else f"{dims}x{self.batch}"


ROWS, DENSE, SHARED = range(3)


@dataclasses.dataclass(frozen=True)
class Operand:
    """How the kernels of one node type read one argument and write its gradient.

    reads     ROWS: through `row`, wherever the items lie. DENSE: the planner sees to it that they lie one after the other
              (or, if an item is a single column, at an even distance). SHARED: a parameter, the same for all items.
    columns   columns of an item of a DENSE argument
    backward  kernel that writes its gradient; None: no gradient
    writes    as `reads`, for the gradient; SHARED: called once for all items of the type, to add to the parameter's
    parts     kernels read parts of an item that begin behind its first number: a card copies rows together only for these
    needs     arguments (by position) that `backward` reads, in the order of its slots from 3 on; None: all of them
    """

    reads: int = ROWS
    backward: Kernel | None = None
    writes: int = ROWS
    columns: int = 1
    parts: bool = False
    needs: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Lowering:
    """What a node type becomes: kernels, the numbers they find behind SIZES, and one `Operand` per argument.

    Forward sees slot 0: y, slots 1...: the arguments, then one slot an immediate.
    Backward of an argument sees slot 0: its gradient, 1: dy, 2: y, 3...: the arguments it needs, then the immediates; the
    position of the argument stands in the flags (`argument`).
    `prepare`, if given, runs on each batch before the gradients of its arguments, with slot 0 empty and all of the arguments.
    `limit`: an immediate is at least 0 and below it (0: the kernels take any integer); checked in debug mode.
    `outputs`: how many numbers of the value others read, from its beginning on (0: all); `prepare` writes the gradients of the
    rest.
    """

    forward: Kernel
    sizes: tuple[int, ...]
    operands: tuple[Operand, ...]
    prepare: Kernel | None = None
    limit: int = 0
    outputs: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
    """One operation. All callables get shapes as a tuple of `Shape` and the op's attributes as keywords."""

    name: str
    doc: str
    shape: Callable[..., Shape]
    lower: Callable[..., Lowering]
    reference: Callable[..., Any]
    samples: Callable[..., Any]
    shared: Callable[[int], bool] | None = None  # of which arguments, if parameters, the identity belongs to the signature
    rows: bool = False  # takes rows of a table, and marks them as touched by itself
    shapes: str = ""
    surrogate: Callable[..., Any] | None = None
    joins: bool = False  # sums up scalars of different instances: does not make them one instance
    formulas: Callable[[int], Any] | None = None  # of so many arguments: the op number by number (`_fused.Formulas`)
    spaced: bool = False  # kernels with DENSE or SHARED operands that take y and dy at any even distance, if of one column
    typed: bool = False  # parameters of the signature come last, and are not recorded for each node
    listed: bool = True  # whether OPS holds it; cells are not
    types: dict[Any, Any] = dataclasses.field(default_factory=dict)  # node types by the types of the arguments (a cache)

    def __post_init__(self) -> None:
        if not self.listed:
            return
        if self.name in OPS:
            raise InternalError(f"two operations are called {self.name!r}")
        if not self.doc.strip():
            raise InternalError(f"operation {self.name!r} has no docstring")
        OPS[self.name] = self


OPS: dict[str, Op] = {}


# Shape rules that many ops share --------------------------------------------------------------------------------------


def wrong(op: str, problem: str, shapes: Sequence[Shape], expected: str, cure: str = "") -> ShapeError:
    """Return a ShapeError in the form of the house: what is wrong, what was given, what fits, what to try."""
    lines = [f"{op}: {problem}", "  got       " + "  ".join(map(str, shapes)), "  expected  " + expected]
    if cure:
        lines.append("  try       " + cure)
    return ShapeError("\n".join(lines))


def common_batch(op: str, shapes: Sequence[Shape]) -> int:
    """Return the batch size of the result: equal sizes, or 1 against any."""
    sizes = {s.batch for s in shapes} - {1}
    if len(sizes) > 1:
        raise wrong(op, f"batch sizes {' and '.join(map(str, sorted(sizes)))} do not fit", shapes, "equal batch sizes, or 1")
    return sizes.pop() if sizes else 1


def trimmed(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Return dims without trailing ones (but at least one of them)."""
    n = len(dims)
    while n > 1 and dims[n - 1] == 1:
        n -= 1
    return dims[:n]


def columns(shape: Shape) -> int:
    """Columns of one element: all dims but the first."""
    return math.prod(shape.dims[1:])


# Legal calls to test with ---------------------------------------------------------------------------------------------


class Tensor(NamedTuple):
    """An argument of a sample call: an expression of this shape with numbers drawn from [low, high).

    `fit`, if given, turns these (dims, then the batch) into numbers of the op's domain: a matrix into one with an inverse.
    """

    shape: Shape
    low: float = -2.0
    high: float = 2.0
    fit: Callable[[Any], Any] | None = None


class Choose(Protocol):
    """What `samples` draws from: Hypothesis in the tests, a random generator elsewhere."""

    def integer(self, low: int, high: int) -> int:
        """Return an integer in [low, high]."""

    def one_of(self, choices: Sequence[Any]) -> Any:
        """Return one of `choices`."""

    def some(self, n: int) -> list[int]:
        """Return some of the numbers below n, each at most once, at least one."""

    def dims(self, low: int = 1, high: int = 4) -> tuple[int, ...]:
        """Return the dims of an element of rank `low` to `high`."""

    def batch(self) -> int:
        """Return a batch size, often 1."""


class Sample(NamedTuple):
    """A legal call `op(*arguments, **attributes)`; lists among the arguments may hold tensors."""

    arguments: tuple[Any, ...]
    attributes: dict[str, Any] = {}  # noqa: RUF012


def itself(numbers: Any) -> Any:
    """Return numbers that are in the op's domain as they are drawn (and others are not)."""
    return numbers


def one_tensor(
    low: float = -2.0, high: float = 2.0, ranks: tuple[int, int] = (1, 4), strict: bool = False
) -> Callable[[Choose], Sample]:
    """Samples of functions of one argument: any dims, any batch. `strict`: numbers outside of [low, high) are no legal ones."""
    fit = itself if strict else None

    def samples(choose: Choose) -> Sample:
        return Sample((Tensor(Shape(choose.dims(*ranks), choose.batch()), low, high, fit),))

    return samples


def two_broadcast(low: float = -2.0, high: float = 2.0) -> Callable[[Choose], Sample]:
    """Samples of functions of two arguments that broadcast against each other."""

    def stretch(choose: Choose, dims: tuple[int, ...]) -> tuple[int, ...]:
        kept = tuple(d if choose.integer(0, 3) else 1 for d in dims)
        return kept[: choose.integer(1, len(kept))] if choose.integer(0, 3) == 0 else kept

    def samples(choose: Choose) -> Sample:
        dims, batch = choose.dims(), choose.batch()
        sides = [Shape(stretch(choose, dims), batch if choose.integer(0, 2) else 1) for _ in range(2)]
        return Sample(tuple(Tensor(s, low, high) for s in sides))

    return samples


def two_same(low: float = -2.0, high: float = 2.0) -> Callable[[Choose], Sample]:
    """Samples of functions of two arguments of the same dims; either may lack the batch."""

    def samples(choose: Choose) -> Sample:
        dims, batch = choose.dims(), choose.batch()
        return Sample(tuple(Tensor(Shape(dims, batch if choose.integer(0, 2) else 1), low, high) for _ in range(2)))

    return samples

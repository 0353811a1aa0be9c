"""One source, two machines: makes functions for a card of those written for a processor.

    source of a kernel          loops over `items`, `lanes` and `parts` become loops of teams and lanes, see `_lanes.py`
    names it refers to          helpers of compiled code are replaced by their twins on the target, functions are made anew

A `Target` is what it is made for: CUDA (`_cuda.py`), or the simulator of the tests, which runs the same functions in plain
Python, thread by thread.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from autobatch.kernels import _lanes
from autobatch.kernels._errors import InternalError

_LOOPS = {
    "items": ("first_item", "item_step"),
    "parts": ("first_part", "part_step"),  # these ask the instruction, `ins`
    "lanes": ("first_lane", "lane_step"),
}
COUNTERS = tuple(name for loop in _LOOPS.values() for name in loop)  # what the loops are made of
_TOGETHER = (_lanes.joined, _lanes.largest, _lanes.smallest, _lanes.before, _lanes.meet, _lanes.leader)


class Target:
    """Functions as they run on one machine.

    Parameters
    ----------
    twins : for each helper of compiled code (an intrinsic, a function of `_math`) what takes its place. Has "first_item",
            "item_step" and so on (`COUNTERS`) under these names: functions without arguments.
    finish : called with each new plain function; returns what others call (a device function of Numba).
    instead : for some helpers others that are written in the words of kernels.
    """

    def __init__(
        self, twins: Mapping[Any, Any], finish: Callable[[Any], Any], instead: Mapping[Any, Any] | None = None
    ) -> None:
        self._twins = {k if isinstance(k, str) else id(k): v for k, v in twins.items()}
        self._kept = list(twins)  # an id is good as long as its object lives
        self._finish = finish
        self._instead = {id(k): v for k, v in (instead or {}).items()}
        self._kept += instead or {}
        self._made: dict[int, Any] = {}
        self._modules: dict[str, types.ModuleType] = {}

    def kernel(self, function: Callable[..., Any]) -> Any:
        """Return a kernel as a plain function of the target: whoever compiles it does it."""
        return self._rebuilt(function)

    def _helper(self, function: Any) -> Any:
        """Return a helper function, made once."""
        if id(function) not in self._made:
            self._kept.append(function)
            self._made[id(function)] = self._finish(self._rebuilt(getattr(function, "py_func", function)))
        return self._made[id(function)]

    def _rebuilt(self, function: Any) -> Any:
        names = _names(function.__code__)
        scope = function.__globals__
        if any(scope.get(name) is getattr(_lanes, name) for name in names & set(_LOOPS)):
            code = _UNROLLED.get(function) or _UNROLLED.setdefault(function, _unrolled(function))
            names |= set(COUNTERS)
            scope = {**scope, **{name: self._twins[name] for name in COUNTERS}}
        else:
            code = function.__code__
        own = {"__builtins__": __builtins__, "__name__": function.__module__ or __name__}
        for name in names:
            if name in scope:
                own[name] = self._translated(scope[name], name, function)
        cells = tuple(
            types.CellType(self._translated(c.cell_contents, "closure", function)) for c in function.__closure__ or ()
        )
        made = types.FunctionType(code, own, function.__name__, function.__defaults__, cells or None)
        made.__qualname__ = function.__qualname__
        made.__module__ = function.__module__
        return made

    def _translated(self, value: Any, name: str, by: Any) -> Any:
        if id(value) in self._twins:
            return self._twins[id(value)]
        if id(value) in self._instead:
            return self._helper(self._instead[id(value)])
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, types.FunctionType) or hasattr(value, "py_func"):
            if name in COUNTERS:
                return value
            return self._helper(value)
        if type(value).__module__.startswith("numba"):
            if type(value).__name__ == "_Intrinsic":
                raise InternalError(f"{by.__qualname__} calls {name}, which has no twin on the device")
        return value

    def _module(self, module: types.ModuleType) -> types.ModuleType:
        """Return a module of ours with the functions of the target; others as they are."""
        if not module.__name__.startswith("autobatch."):
            return module
        if module.__name__ not in self._modules:
            self._modules[module.__name__] = _Translated(self, module)
        return self._modules[module.__name__]


class _Translated(types.ModuleType):
    """A module whose functions are made for a target when they are first asked for."""

    def __init__(self, target: Target, module: types.ModuleType) -> None:
        super().__init__(module.__name__)
        self._target, self._module = target, module

    def __getattr__(self, name: str) -> Any:
        value = self._target._translated(getattr(self._module, name), name, self._module)
        setattr(self, name, value)
        return value


def works_together(function: Any, seen: set[int] | None = None) -> bool:
    """Return whether a kernel's lanes exchange anything: then all lanes of an item are in one block."""
    function, seen = getattr(function, "py_func", function), seen or set()
    seen.add(id(function))
    cells = [c.cell_contents for c in function.__closure__ or ()]
    for value in [*(function.__globals__.get(name) for name in _names(function.__code__)), *cells]:
        if any(value is word for word in _TOGETHER):
            return True
        inner = getattr(value, "py_func", value)
        if isinstance(inner, types.FunctionType) and inner.__module__.startswith("autobatch.") and id(inner) not in seen:
            if works_together(inner, seen):
                return True
    return False


def takes_z(function: Any, seen: set[int] | None = None) -> bool:
    """Return whether a kernel gives a meaning to the z of its grid; for others it counts instructions that run together."""
    from autobatch.kernels import _tiles

    function, seen = getattr(function, "py_func", function), seen or set()
    seen.add(id(function))
    names = _names(function.__code__)
    cells = [c.cell_contents for c in function.__closure__ or ()]
    for value in [*(function.__globals__.get(name) for name in names), *cells]:
        if value is _tiles.block_z or value is _tiles.blocks_z:
            return True
        inner = getattr(value, "py_func", value)
        if isinstance(inner, types.FunctionType) and inner.__module__.startswith("autobatch.") and id(inner) not in seen:
            if takes_z(inner, seen):
                return True
    return False


def _names(code: types.CodeType) -> set[str]:
    """Names of all globals that a function, and what is defined inside of it, may refer to."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


# Loops ----------------------------------------------------------------------------------------------------------------


_UNROLLED: weakref.WeakKeyDictionary[Any, types.CodeType] = weakref.WeakKeyDictionary()  # the same for every target


def _unrolled(function: Any) -> types.CodeType:
    """Return the code of a function with its loops over items, lanes and parts written out for one thread."""
    path = inspect.getfile(function)
    source = getattr(function, "__source__", None)
    first = 0
    if source is None:
        lines, first = inspect.getsourcelines(function)
        source = textwrap.dedent("".join(lines))
        first -= 1
    else:
        path = f"<{function.__qualname__}>"
        linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    tree = ast.parse(source)
    definition = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    definition.decorator_list = []
    definition.returns = None
    tree.body = [_Loops(function.__qualname__).visit(definition)]
    if function.__code__.co_freevars:
        raise InternalError(f"{function.__qualname__} has loops over lanes, and a closure")
    ast.increment_lineno(ast.fix_missing_locations(tree), first)
    code = compile(tree, path, "exec")
    return next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == definition.name)


class _Loops(ast.NodeTransformer):
    """for j in lanes(a, b): body    ->    j = a + first_lane();  while j < b: body; j += lane_step()"""

    def __init__(self, who: str) -> None:
        self._who = who
        self._count = 0

    def visit_For(self, node: ast.For) -> Any:
        self.generic_visit(node)
        call = node.iter
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _LOOPS):
            return node
        if any(isinstance(inner, ast.Continue) for inner in _own(node)) or node.orelse or len(call.args) > 2:
            raise InternalError(f"{self._who}: a loop over {call.func.id} takes no step, no `continue` and no `else`")
        first, step = _LOOPS[call.func.id]
        asked = "ins" if call.func.id == "parts" else ""
        self._count += 1
        end = f"end_{self._count}"
        assert isinstance(node.target, ast.Name)
        j = node.target.id
        begin: ast.expr = ast.parse(f"{first}({asked})", mode="eval").body
        if len(call.args) == 2:
            begin = ast.BinOp(call.args[0], ast.Add(), begin)
        head = [
            ast.Assign([ast.Name(end, ast.Store())], call.args[-1]),
            ast.Assign([ast.Name(j, ast.Store())], begin),
        ]
        step_by = ast.parse(f"{j} += {step}({asked})").body
        test = ast.parse(f"{j} < {end}", mode="eval").body
        loop = ast.While(test, [*node.body, *step_by], [])
        for new in (*head, loop):
            for part in ast.walk(new):
                if not hasattr(part, "lineno"):
                    ast.copy_location(part, node)
        return [*head, loop]


def _own(loop: ast.For) -> list[ast.AST]:
    """Return the statements of a loop that are not those of a loop inside of it."""
    found: list[ast.AST] = []
    todo: list[ast.AST] = list(loop.body)
    while todo:
        node = todo.pop()
        found.append(node)
        if not isinstance(node, (ast.For, ast.While)):
            todo += ast.iter_child_nodes(node)
    return found

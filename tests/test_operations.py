"""The page of all operations: up to date, and complete."""

import importlib.util
import inspect
import pathlib
import pkgutil

import pytest

import autobatch as ab
from autobatch import functions, inputs
from autobatch.kernels._op import OPS

ROOT = pathlib.Path(__file__).parent.parent
OTHERS = {"current_graph", "forward", "npvalues", "values"}  # functions in these modules that make no node


def load():
    spec = importlib.util.spec_from_file_location("operations", ROOT / "docs" / "operations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


operations = load()
ENTRIES = {name: entry for entries in operations.FAMILIES.values() for name, entry in entries.items()}


def test_the_page_is_up_to_date():
    assert operations.PAGE.read_text(encoding="utf-8") == operations.page(), "run: python docs/operations.py"


def test_every_public_function_that_makes_a_node_is_on_the_page():
    modules = [
        inputs,
        *(importlib.import_module(f"autobatch.functions.{m.name}") for m in pkgutil.iter_modules(functions.__path__)),
    ]
    made = {n for m in modules for n, f in vars(m).items() if inspect.isroutine(f) and getattr(ab, n, None) is f}
    assert made - OTHERS == {name for name in ENTRIES if name.isidentifier()}


def test_every_record_is_on_the_page():
    shown = {op.name for name, entry in ENTRIES.items() for op in operations.ops_of(name, entry)}
    assert shown == set(OPS)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_every_record_says_its_shapes_and_its_formula(op):
    assert op.shapes.strip() and op.doc.strip()


def test_cells_are_filled():
    rows = [line for line in operations.page().splitlines() if line.startswith("| `")]
    assert len(rows) == len(ENTRIES)
    for row in rows:
        cells = [cell.strip() for cell in row.replace("\\|", "/").strip("|").split("|")]
        assert len(cells) == 5 and all(cells), row


@pytest.mark.oracle
def test_every_function_of_dynet_is_on_the_page(dynet):
    others = "available_devices cg cg_checkpoint cg_revert cg_version dump_cg forward get_device_info init init_from_params"
    others += " load load_generator npvalues print_graphviz print_text_graphviz renew_cg reset_random_seed save values"
    theirs = {n for n, f in vars(dynet).items() if callable(f) and not inspect.isclass(f) and not n.startswith("_")}
    assert theirs - set(others.split()) <= set(ENTRIES)

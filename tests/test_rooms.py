"""The house itself: imports point down, public names are documented, the README tells the truth."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import shutil
import subprocess
import sys

import pytest

import autobatch as ab
import autobatch.kernels

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE, KERNELS = pathlib.Path(ab.__file__).parent, pathlib.Path(autobatch.kernels.__file__).parent

# From the top of the house to its foundation: a room may use those below it.
ROOMS = [
    *"dynet boxes drawing softmax_builders bulk rnn persist trainers dynet_config cg operators".split(),
    *"cell functions inputs shortcuts arguments".split(),
    *"params files initializers expression tensor seeds execute check devices card machine".split(),
    *"background plan segment frame schedule threads cuda graph pieces memory integers recorder".split(),
]
# From here down nobody knows an op.
ENGINE = ROOMS[ROOMS.index("execute") :]


def imports(path):
    """Names of the modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_in(names):
    return {name.split(".")[1] for name in names if name.startswith("autobatch.")} & set(ROOMS)


def test_every_room_is_in_the_list():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"kernels"}
    assert files | packages == set(ROOMS)


def imports_of(room):
    """Names of the modules that a room imports: a file, or a package of files."""
    file = PACKAGE / f"{room}.py"
    return set().union(*map(imports, [file] if file.exists() else (PACKAGE / room).glob("*.py")))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room):
    below = set(ROOMS[ROOMS.index(room) + 1 :])
    used = rooms_in(imports_of(room)) - {room}
    assert used <= below, f"{room}.py imports {used - below}, which lie above it"


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda p: p.stem)
def test_kernels_use_nothing_above_them(path):
    outside = {n for n in imports(path) if n.startswith("autobatch") and not n.startswith("autobatch.kernels")}
    assert not outside - {"autobatch"}, f"{path.name} imports {outside}"


@pytest.mark.parametrize("room", ENGINE)
def test_the_engine_knows_no_op(room):
    ops = {path.stem for path in KERNELS.glob("*.py") if not path.stem.startswith("_")}
    used = {n.split(".")[2] for n in imports_of(room) if n.startswith("autobatch.kernels.")}
    assert not used & ops, f"{room}.py imports {used & ops}"


def test_importing_an_op_needs_no_list():
    for module in pkgutil.iter_modules([str(KERNELS)]):
        if not module.name.startswith("_"):
            assert f"autobatch.kernels.{module.name}" in sys.modules


@pytest.mark.parametrize("name", ab.__all__)
def test_public_names_are_documented(name):
    thing = getattr(ab, name)
    assert inspect.getdoc(thing), f"{name} has no docstring"
    if inspect.isclass(thing):
        for attribute, value in vars(thing).items():
            if inspect.isroutine(value) and not attribute.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{attribute} has no docstring"


def test_all_is_sorted_and_complete():
    assert len(ab.__all__) == len(set(ab.__all__))  # their order is looked after by ruff
    public = {n for n, v in vars(ab).items() if not n.startswith("_") and not inspect.ismodule(v)}
    assert public == set(ab.__all__)


def test_nothing_is_compiled_at_import():
    program = (
        "import numba.core.dispatcher as d\n"
        "def refuse(*args): raise AssertionError('compiled at import')\n"
        "d._FunctionCompiler.compile = refuse\n"
        "import autobatch\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_clone_works_where_it_lies(tmp_path):
    """Python started in the root of a clone finds this package there, and not the installed one: the kernels lie beside it."""
    for folder, source in (("autobatch", PACKAGE), ("kernels", KERNELS)):
        shutil.copytree(source, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "kernels"))
    libraries = [p for p in sys.path if "site-packages" in p]
    program = f"import sys; sys.path[1:1] = {libraries!r}; import autobatch.kernels as k; print(k.__file__)"
    made = subprocess.run([sys.executable, "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert made.stdout.strip() == str(tmp_path / "kernels" / "__init__.py"), made.stderr


def test_readme_example_prints_what_it_says(capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    shown = re.search(r"```text\n(.*?)```", text, re.S).group(1)
    ab.reset_random_seed(1)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == shown


def test_readme_quotes_the_real_error():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = inspect.cleandoc(re.search(r"ValueError: (affine_transform.*?)\n\n", text, re.S).group(1))
    model = ab.ParameterCollection()
    b, W = model.add_parameters((10,)), model.add_parameters((10, 20))
    with pytest.raises(ValueError) as error:
        ab.affine_transform([b, W, ab.inputVector([0.0] * 30)])
    assert [line.strip() for line in str(error.value).split("\n")] == [line.strip() for line in quoted.split("\n")]


def test_sentences_speak_of_the_project_alone():
    for path in [*ROOT.rglob("*.py"), *ROOT.rglob("*.md")]:
        if ".venv" in path.parts or "build" in path.parts or path.name == "test_rooms.py":
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/work/|/root/|/home/\w|/tmp/w", text), f"{path.name} names a path of some machine"


def test_the_version_is_one():
    metadata = importlib.import_module("importlib.metadata")
    assert metadata.version("autobatch-numba") == ab.__version__

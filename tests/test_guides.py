"""The guides tell the truth: their blocks run and print what they say, and tables of the porting guide name what differs."""

import inspect
import json
import pathlib
import re

import pytest

import autobatch as ab

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GUIDE = (DOCS / "from-dynet.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("guide", "least"), [("from-dynet.md", 9), ("cells.md", 4), ("bulk.md", 2)])
def test_blocks_run_and_print_what_the_guide_says(tmp_path, monkeypatch, capsys, guide, least):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / guide).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", text, re.S)
    assert len(blocks) == text.count("```python") >= least
    names = {}
    for number, (code, shown) in enumerate(blocks, 1):
        exec(compile(code, f"block {number} of the guide", "exec"), names)
        assert capsys.readouterr().out == shown, f"block {number}"


def test_the_notebook_runs_and_prints_what_it_shows(capsys):
    """Numbers that training led to may differ from processor to processor, in the last digits and by some more."""
    book = json.loads((ROOT / "examples" / "tour.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 8 and [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    number, names = r"\d+\.\d+", {}
    for cell in cells:
        exec(compile("".join(cell["source"]), f"cell {cell['execution_count']} of the notebook", "exec"), names)
        printed, shown = capsys.readouterr().out, "".join(line for output in cell["outputs"] for line in output["text"])
        assert re.sub(number, "#", printed) == re.sub(number, "#", shown)
        found, expected = ([float(n) for n in re.findall(number, text)] for text in (printed, shown))
        assert found == pytest.approx(expected, rel=0.3, abs=0.02)


def test_blocks_of_the_guide_for_cards_run(capsys):
    """On a driver in Python, whose kernels the simulator runs."""
    pytest.importorskip("greenlet")
    from fake_driver import fake_card

    from autobatch.cuda import cublas

    text = (DOCS / "cuda.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```\n", text, re.S)
    assert len(blocks) == text.count("```python") == 4
    names = {}
    with fake_card() as card, cublas.use(None):
        for number, (code, shown) in enumerate(blocks, 1):
            exec(compile(code, f"block {number} of the guide", "exec"), names)
            assert capsys.readouterr().out == shown, f"block {number}"
        assert card.launches()
        names.clear()
        ab.renew_cg()
        ab.configure(device="cpu")


def table(heading):
    """The rows of the tables below a heading, as lists of cells."""
    part = GUIDE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| `")]
    assert rows
    return rows


def names_in(cell):
    return set(re.findall(r"`([\w.]+)`", cell))


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


def shared_callables(dynet):
    """(name, DyNet's, ours) of each function, class and method that both have."""
    for name in sorted(public(dynet) & public(ab)):
        theirs, ours = getattr(dynet, name), getattr(ab, name)
        if callable(theirs):
            yield name, theirs, ours
        if inspect.isclass(theirs) and inspect.isclass(ours):
            for member in sorted(public(theirs) & public(ours)):
                if callable(getattr(theirs, member)):
                    yield f"{name}.{member}", getattr(theirs, member), getattr(ours, member)


@pytest.mark.oracle
def test_the_guide_names_what_is_missing(dynet):
    missing = public(dynet) - public(ab)
    for name in public(dynet) & public(ab):
        theirs, ours = getattr(dynet, name), getattr(ab, name)
        if inspect.isclass(theirs) and inspect.isclass(ours):
            missing |= public(theirs) - public(ours)
    assert set().union(*(names_in(row[0]) for row in table("Names that are missing"))) == missing


def keywords(function):
    """The arguments that a call can name; None where Python cannot tell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


@pytest.mark.oracle
def test_arguments_have_the_names_of_dynet(dynet):
    found = set()
    for name, theirs, ours in shared_callables(dynet):
        if inspect.isclass(theirs) or name.endswith("update_subset"):  # which does nothing, whatever its arguments
            continue
        before, after = keywords(theirs), keywords(ours)
        if before is not None and after is not None and not set(before) <= set(after):
            lost, new = ([n for n in one if n not in other] for one, other in ((before, after), (after, before)))
            found.add((name.split(".")[-1], tuple(lost), tuple(new)))
    assert not found  # (function, DyNet's names, ours)

"""Model files: DyNet's format both ways, safetensors, damage of every kind, a process that dies while saving."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import autobatch as ab
from autobatch import files

FORMATS = ["model", "safetensors"]


def network(library=ab, dtype=None, seed=1):
    """Return a collection with parameters and tables, some of them in an inner collection."""
    library.reset_random_seed(seed)
    model = library.ParameterCollection(dtype=dtype) if dtype else library.ParameterCollection()
    model.add_parameters((2, 3), name="W")
    model.add_parameters(4)
    inner = model.add_subcollection("enc")
    inner.add_parameters((3, 2, 2), name="W")
    model.add_lookup_parameters((5, 2))
    inner.add_lookup_parameters((3, 2, 2))
    return model


def members(model):
    return [*model.parameters_list(), *model.lookup_parameters_list()]


def bits(model):
    return [a.tobytes() for p in members(model) for a in (p.values, p.gradients)]


def with_gradients(model):
    """Give some parameters a gradient."""
    for k, p in enumerate(members(model)):
        if k % 2 == 0:
            p.gradients[1:] = np.linspace(-1, 1, p.gradients.size - 1)
    return model


# There and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_model_comes_back_to_the_bit(tmp_path, dtype, suffix):
    model, other = with_gradients(network(dtype=dtype)), with_gradients(network(dtype=dtype, seed=2))
    model.parameters_list()[1].values[:] = [np.nan, np.inf, -np.inf, 1e-42]
    path = tmp_path / f"a.{suffix}"
    model.save(path)
    other.populate(path)
    assert bits(other) == bits(model)
    touched = [[list(t.touched) for t in m.lookup_parameters_list()] for m in (model, other)]
    assert touched[1][0] == [int(row.any()) for row in model.lookup_parameters_list()[0].grad_as_array()]
    for p in members(model):
        p._reset_gradient()
    model.save(str(path))
    other.populate(os.fsencode(path))
    assert bits(other) == bits(model) and not any(t.touched.any() for t in other.lookup_parameters_list())


@pytest.mark.parametrize("suffix", FORMATS)
def test_parts_keys_and_appending(tmp_path, suffix):
    model, path = network(), tmp_path / f"a.{suffix}"
    W, b, inner, table, rows = members(model)
    W.save(path, "/first")
    b.save(path, append=True)
    table.save(path, "/table", append=True)
    other = network(seed=2)
    members(other)[0].populate(path, "/first")
    members(other)[1].populate(path, "/_0")
    members(other)[3].populate(path, "/table")
    for k in (0, 1, 3):
        assert members(other)[k].values.tobytes() == members(model)[k].values.tobytes()
    fresh = ab.ParameterCollection().add_subcollection("of")
    p, t = fresh.load_param(path, "/first"), fresh.load_lookup_param(path, "/table")
    assert (p.name(), t.name()) == ("/first", "/table") and (p.shape(), t.shape()) == ((2, 3), (5, 2))
    np.testing.assert_array_equal(t.as_array(), table.as_array())
    assert fresh.parameters_list() == [p] and fresh.lookup_parameters_list() == [t]
    encoder = ab.ParameterCollection()
    encoder.add_parameters((3, 2, 2))
    encoder.add_lookup_parameters((3, 2, 2))
    model.save(path)
    encoder.populate(path, "/enc")
    np.testing.assert_array_equal(members(encoder)[0].as_array(), inner.as_array())
    np.testing.assert_array_equal(members(encoder)[1].as_array(), rows.as_array())
    encoder.save(path, "/other/name")
    names = [e.name for e in files.read(str(path))]
    assert names == ["/other/name/_0", "/other/name/_1"]


def test_safetensors_hold_arrays_of_the_shapes_that_numpy_shows(tmp_path):
    from safetensors.numpy import load_file, save_file

    model = network()
    model.save(tmp_path / "a.safetensors")
    arrays = load_file(tmp_path / "a.safetensors")
    for p in members(model):
        np.testing.assert_array_equal(arrays[p.name()], p.as_array().astype("f4"))
    save_file({"w": np.arange(6, dtype="f4").reshape(2, 3)}, tmp_path / "b.safetensors")  # a file of someone else
    p = ab.ParameterCollection().load_param(tmp_path / "b.safetensors", "w")
    np.testing.assert_array_equal(p.as_array(), [[0, 1, 2], [3, 4, 5]])
    for array, error in ((np.zeros(3, "i4"), "int32 numbers"), (np.float32(1), "is no parameter")):
        save_file({"w": np.asarray(array)}, tmp_path / "c.safetensors")
        with pytest.raises(ab.ModelFileError, match=error):
            ab.ParameterCollection().load_param(tmp_path / "c.safetensors", "w")


def test_without_safetensors_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install autobatch-numba\[safetensors\]"):
        network().save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


# DyNet ----------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("gradients", [False, True])
def test_files_of_dynet(dynet, tmp_path, gradients):
    theirs, ours = network(dynet), network()
    path = str(tmp_path / "theirs.model")
    if gradients:
        dynet.renew_cg()
        dynet.sum_elems(
            dynet.concatenate([dynet.reshape(theirs.parameters_list()[0], (6,)), theirs.lookup_parameters_list()[0][1]])
        ).backward()
    theirs.save(path)
    for p in members(ours):
        p.values.fill(0)
    ours.populate(path)
    for a, b in zip(members(ours), members(theirs), strict=True):
        np.testing.assert_array_equal(a.as_array(), b.as_array(), a.name())
        np.testing.assert_array_equal(a.grad_as_array(), b.grad_as_array(), a.name())
        assert a.name() == b.name()
    again = str(tmp_path / "ours.model")
    ours.save(again)
    stripped = [line.split(" crc32:")[0] for line in pathlib.Path(again).read_text().splitlines()]
    assert stripped == pathlib.Path(path).read_text().splitlines()  # but for the checksums, the same file


@pytest.mark.oracle
def test_dynet_reads_our_files(dynet, tmp_path):
    ours, theirs = with_gradients(network()), network(dynet, seed=2)
    path = str(tmp_path / "ours.model")
    ours.save(path)
    theirs.populate(path)
    for a, b in zip(members(ours), members(theirs), strict=True):
        np.testing.assert_array_equal(a.as_array(), b.as_array(), a.name())
        np.testing.assert_array_equal(a.grad_as_array(), b.grad_as_array(), a.name())
    p = dynet.ParameterCollection().load_param(path, "/enc/W")
    np.testing.assert_array_equal(p.as_array(), members(ours)[2].as_array())
    theirs.parameters_list()[0].populate(path, "/W")
    wide = network(dtype="float64")
    wide.save(path)  # seventeen digits
    theirs.populate(path)
    for a, b in zip(members(wide), members(theirs), strict=True):
        np.testing.assert_array_equal(a.as_array().astype("f4"), b.as_array().astype("f4"), a.name())


# Damage ---------------------------------------------------------------------------------------------------------------


def small():
    model = ab.ParameterCollection()
    model.add_parameters((2, 3), name="W")
    model.add_lookup_parameters((3, 2))
    return model


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("hello\n", "line 1: 'hello' is no header"),
        ("#Parameter# /W {2,3} 97 ZERO_GRAD", "line 1: .* is no header"),
        ("#Parameter# /W {2,3} 97 ZERO_GRAD\n", "line 2: the line is cut off"),
        ("#Parameter# /W {2,3} 97 ZERO_GRAD\n1 2 3 4 5 6", "line 2: the line is cut off"),
        ("#Parameter# /W {2,3} 97 ZERO_GRAD\n1 2 3 4 5\n", r"line 2: 5 numbers\n  expected  6 numbers, for /W \(2, 3\)"),
        ("#Parameter# /W {2,3} 97 ZERO_GRAD\n1 2 3 4 5 x\n", "line 2: something that is no number"),
        ("#Parameter# /W {2,3} 97 FULL_GRAD\n1 2 3 4 5 6\n1 2\n", "line 3: 2 numbers"),
        ("#Parameter# /W {0} 1 ZERO_GRAD\n1\n", r"line 2: 1 numbers\n  expected  0 numbers, for /W \(0,\)"),
        ("#Parameter# /W {999999999,999999999,999999999} 1 ZERO_GRAD\n1\n", "line 1: dims"),
        ("#Parameter# /W {1} 2 ZERO_GRAD crc32:00000000\n1\n", "line 1: the checksum of /W is another"),
        (
            "#Parameter# /W {2,3} 12 ZERO_GRAD\n1 2 3 4 5 6\n",
            "1 Parameters and 0 LookupParameters\n  expected  1 Parameters and 1",
        ),
        (
            "#Parameter# /W {3,2} 12 ZERO_GRAD\n1 2 3 4 5 6\n#LookupParameter# /_0 {2,3} 12 ZERO_GRAD\n1 2 3 4 5 6\n",
            r"/W does not fit\n  got       Parameter \(3, 2\)\n  expected  Parameter \(2, 3\)",
        ),
        (
            "#Parameter# /W {2,3} 12 ZERO_GRAD\n1 2 3 4 5 1e300\n#LookupParameter# /_0 {2,3} 12 ZERO_GRAD\n1 2 3 4 5 6\n",
            "/W holds numbers that are too large for float32",
        ),
    ],
)
def test_errors_name_the_file_and_the_place_and_change_nothing(tmp_path, text, error):
    model, path = small(), tmp_path / "a.model"
    path.write_text(text)
    before = bits(model)
    with pytest.raises(ab.ModelFileError, match=error) as caught:
        model.populate(path)
    assert str(path) in str(caught.value) and isinstance(caught.value, RuntimeError)
    assert bits(model) == before


def test_other_mistakes(tmp_path):
    model, path = small(), tmp_path / "a.model"
    p = model.parameters_list()[0]
    with pytest.raises(FileNotFoundError, match=r"a\.model: cannot be read: No such file"):
        model.populate(path)
    with pytest.raises(RuntimeError, match="cannot be read"):
        p.populate(path, "/W")
    model.save(path)
    with pytest.raises(ab.ModelFileError, match=r"no Parameter /nix\n  got       /W in the file"):
        p.populate(path, "/nix")
    with pytest.raises(ab.ModelFileError, match="no LookupParameter /W"):
        model.load_lookup_param(path, "/W")
    with pytest.raises(ValueError, match="key is empty"):
        p.populate(path, "")
    for key in ("foo", "/a b", "/a#b", "/a\nb"):
        with pytest.raises(ValueError, match="a key that begins with"):
            p.save(path, key)
    with pytest.raises(TypeError, match="file name is int 3"):
        model.save(3)
    with pytest.raises(ValueError, match="has a null character"):
        model.populate("a\0b")
    with pytest.raises(TypeError, match="key is int 3"):
        p.populate(path, 3)
    with pytest.raises(OSError):
        model.save(tmp_path / "no" / "folder")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ab.ModelFileError, match="cut off, so nothing was added"):
        p.save(path, append=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.model"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_damaged_file_loads_equal_or_raises(tmp_path, suffix):
    """Ten thousand files with a bit, a byte, a piece changed, lost, doubled or moved."""
    model, path = small(), tmp_path / f"a.{suffix}"
    model.parameters_list()[0].gradients[:] = 0.5
    model.save(path)
    whole, expected, rng = path.read_bytes(), bits(model), random.Random(1)
    other, raised = small(), 0
    for _ in range(5000):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            at, size = rng.randrange(len(data)), rng.choice([1, 1, 2, 8, 40])
            kind = rng.randrange(6)
            if kind == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data[at] = rng.choice(b"0123456789 \n#{},+-.e/abc\x00\xff")
            elif kind == 2:
                del data[at : at + size]
            elif kind == 3:
                data[at:at] = data[at : at + size]
            elif kind == 4:
                data[at:at] = bytes(rng.randrange(256) for _ in range(size))
            else:
                del data[at:]
            if not data:
                break
        path.write_bytes(data)
        for p in members(other):
            p.values.fill(7)
            p._reset_gradient()
        before = bits(other)
        try:
            other.populate(path)
        except ab.ModelFileError as error:
            raised += 1
            assert str(path) in str(error) and bits(other) == before
        else:
            assert bits(other) == expected, data
    assert raised > 4000


# A process that dies --------------------------------------------------------------------------------------------------


def test_a_process_killed_while_saving_leaves_the_old_or_the_new_file(tmp_path):
    """Two hundred times; the number in the file is the last one said to be saved, or the one after it."""
    path = tmp_path / "a.model"
    program = textwrap.dedent(
        """
        import os, sys, numpy as np
        import autobatch as ab
        model = ab.ParameterCollection()
        p = model.add_parameters(40_000, init=0)
        n, parent = int(sys.argv[2]), os.getpid()
        while True:
            pid = os.fork()  # the child is killed: imports need not be repeated
            if pid == 0:
                while os.getppid() == parent:  # the last one goes when nobody waits for it
                    n += 1
                    p.set_value(np.full(40_000, float(n)))
                    model.save(sys.argv[1])
                os._exit(0)
            print(pid, flush=True)
            os.waitpid(pid, 0)
            n = int(sys.stdin.readline())
        """
    )
    reader = ab.ParameterCollection()
    p = reader.add_parameters(40_000)
    reader.save(path)
    arguments = [sys.executable, "-c", program, str(path), "0"]
    rng, last = random.Random(2), 0
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            for _ in range(200):
                pid = int(process.stdout.readline())
                time.sleep(rng.uniform(0.0, 0.06))
                os.kill(pid, signal.SIGKILL)
                reader.populate(path)
                number = p.as_array()[0]
                assert (p.as_array() == number).all() or last == 0
                assert number >= last or last == 0
                last = int(number) if number == int(number) else 0
                process.stdin.write(f"{last}\n")
                process.stdin.flush()
        finally:
            process.kill()
    assert last > 10  # it did save


def test_old_names(tmp_path):
    model, other, path = network(), network(seed=2), tmp_path / "a.model"
    model.write_to_textfile(path)
    other.populate_from_textfile(path)
    assert bits(other) == bits(model)
    W, table = model.parameters_list()[0], model.lookup_parameters_list()[0]
    W.write_to_textfile(path, "/first")
    table.write_to_textfile(path, append=True)
    other = network(seed=2)
    other.parameters_list()[0].populate_from_textfile(path, "/first")
    other.lookup_parameters_list()[0].populate_from_textfile(path)
    for a, b in ((W, other.parameters_list()[0]), (table, other.lookup_parameters_list()[0])):
        np.testing.assert_array_equal(a.as_array(), b.as_array())

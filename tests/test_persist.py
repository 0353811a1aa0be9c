"""`save` and `load` of several objects: classes of one's own, files that do not fit, pickles that want to do harm."""

import os
import pickle
import random

import numpy as np
import pytest

import autobatch as ab


class Pair:
    """Two matrices: what a class needs so that `save` and `load` know it."""

    def __init__(self, n, model):
        self.spec = (n,)
        self.model = model.add_subcollection("pair")
        self.a, self.b = self.model.add_parameters((n, 2)), self.model.add_lookup_parameters((3, n))

    def param_collection(self):
        return self.model

    @classmethod
    def from_spec(cls, spec, model):
        return cls(*spec, model)


def members(model):
    return [*model.parameters_list(), *model.lookup_parameters_list()]


def made(seed=1):
    ab.reset_random_seed(seed)
    model = ab.ParameterCollection()
    return model, [Pair(2, model), model.add_parameters((2, 3), name="W"), Pair(4, model), model.add_lookup_parameters((5, 2))]


def test_objects_come_back_in_their_order(tmp_path):
    model, objects = made()
    base = tmp_path / "base"
    ab.save(base, objects)
    again = ab.ParameterCollection()
    again.add_parameters(7)
    pair, W, other, table = ab.load(base, again)
    assert isinstance(pair, Pair) and pair.spec == (2,) and other.spec == (4,)
    for a, b in zip(
        [objects[0].a, objects[0].b, *objects[1:2], objects[2].a, objects[3]], [pair.a, pair.b, W, other.a, table], strict=True
    ):
        np.testing.assert_array_equal(a.as_array(), b.as_array())
    assert W.name() == "/W" and len(members(again)) == 1 + len(members(model))
    inner = ab.ParameterCollection().add_subcollection("deep")
    assert len(ab.load(str(base), inner)) == 4 and len(members(inner)) == len(members(model))
    generator = ab.load_generator(base, ab.ParameterCollection())
    assert isinstance(next(generator), Pair)
    generator.close()
    ab.save(base, [objects[1]])
    assert len(ab.load(base, ab.ParameterCollection())) == 1


def test_what_cannot_be_saved(tmp_path):
    model, objects = made()
    base = tmp_path / "base"
    with pytest.raises(AttributeError, match=r"is a collection\n  try       its own save"):
        ab.save(base, [model])
    with pytest.raises(AttributeError, match="from_spec"):
        ab.save(base, [3])
    with pytest.raises(TypeError, match="a list of parameters and builders"):
        ab.save(base, objects[1])
    with pytest.raises(ValueError, match="two parameters are called /W"):
        ab.save(base, [objects[1], ab.ParameterCollection().add_parameters(2, name="W")])
    assert not list(tmp_path.iterdir())


def test_a_failed_load_leaves_the_collection_as_it_was(tmp_path):
    _, objects = made()
    base = tmp_path / "base"
    again = ab.ParameterCollection()
    kept = again.add_parameters(3)

    def refused(text, kind=ab.ModelFileError):
        before = kept.as_array()
        with pytest.raises(kind, match=text):
            ab.load(base, again)
        assert members(again) == [kept] and (kept.as_array() == before).all()
        assert again.add_parameters(1).name() == "/_1"  # names are given as if nothing had happened
        del again._members[1:]
        again._namesakes[""] = 1

    refused("base.meta: cannot be read", FileNotFoundError)
    ab.save(base, objects)
    data = (tmp_path / "base.data").read_bytes()
    (tmp_path / "base.data").write_bytes(data[: len(data) // 2])
    refused("base.data, line")
    (tmp_path / "base.data").write_bytes(data.replace(b"/W", b"/V"))
    refused("the checksum of /V is another")
    for text, meta in {
        "no Parameter /nix": ("Parameters", "/nix"),
        r"object 1 is \('Parameters', 3\)": ("Parameters", 3),
        "object 1 is 7": 7,
        "of 15 numbers is more than the file holds": (Pair, (5,), "/pair/"),
        "more than the file holds": (Pair, (2**30,), "/pair/"),
        "/pair/_0 does not fit": (Pair, (1,), "/pair/"),
        "is more than the file": (Pair, (3,), "/nix/"),
        r"Pair.from_spec\(\(-1,\), ...\) failed": (Pair, (-1,), "/pair/"),
    }.items():
        (tmp_path / "base.data").write_bytes(data)
        (tmp_path / "base.meta").write_bytes(pickle.dumps(meta))
        refused(text)


class Layer(Pair):
    """A layer whose spec says which operation it applies."""

    def __init__(self, n, how, model):
        super().__init__(n, model)
        self.spec, self.how = (n, how), how


def test_operations_in_a_spec(tmp_path):
    model, base = ab.ParameterCollection(), tmp_path / "base"
    operations = [ab.tanh, ab.rectify, ab.cmult, ab.concatenate, ab.affine_transform, ab.layer_norm, ab.abs, ab.softmax]
    ab.save(base, [Layer(2, how, model) for how in operations])
    found = ab.load(base, ab.ParameterCollection())
    assert [layer.how for layer in found] == operations and found[0].spec == (2, ab.tanh)
    assert b"c_dynet\nrectify\n" in base.with_suffix(".meta").read_bytes()

    def mine(x):
        return x

    for how in (mine, ab.renew_cg, ab.save, np.tanh, lambda x: x):
        with pytest.raises(ab.ArgumentError, match="and operations such as tanh"):
            ab.save(base, [Layer(2, how, model)])
    meta = base.with_suffix(".meta").read_bytes()
    for name in (b"save", b"renew_cg", b"Graph", b"no_such_thing"):
        base.with_suffix(".meta").write_bytes(meta.replace(b"rectify", name))
        with pytest.raises(ab.ModelFileError, match=f"names _dynet.{name.decode()}\n  expected  a builder or an operation"):
            ab.load(base, ab.ParameterCollection())


def test_operations_in_a_spec_of_dynet(dynet, tmp_path, monkeypatch):
    """Either library reads what the other wrote."""
    base, theirs = str(tmp_path / "base"), dynet.ParameterCollection()
    dynet.save(base, [Layer(2, dynet.rectify, theirs)])
    ours = ab.ParameterCollection()
    (found,) = ab.load(base, ours)
    assert found.how is ab.rectify
    np.testing.assert_array_equal(found.a.as_array(), theirs.parameters_list()[0].as_array())
    ab.save(base, [found])
    (back,) = dynet.load(base, dynet.ParameterCollection())
    assert back.how is dynet.rectify


class Harm:
    def __reduce__(self):
        return os.system, ("echo harm > harm.txt",)


def test_pickles_that_want_to_do_harm_do_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, objects = made()
    ab.save("base", objects)
    meta = (tmp_path / "base.meta").read_bytes()
    for evil in (Harm(), (Pair, (Harm(),), "/pair/"), (os.system, ("x",), "/"), (eval, "1", "/")):
        (tmp_path / "base.meta").write_bytes(pickle.dumps(evil))
        with pytest.raises(ab.ModelFileError, match=r"base\.meta"):
            ab.load("base", ab.ParameterCollection())
    (tmp_path / "base.meta").write_bytes(b"cnot_imported_here\nThing\n)K\x02\x85\x8c\x01/\x87.")
    with pytest.raises(ab.ModelFileError):
        ab.load("base", ab.ParameterCollection())
    (tmp_path / "base.meta").write_bytes(b"\x80\x04Nr\xff\xff\xff\xff.")  # a place in the memo beyond any memory
    with pytest.raises(ab.ModelFileError):
        ab.load("base", ab.ParameterCollection())
    rng, model = random.Random(3), ab.ParameterCollection()
    for _ in range(2000):
        data = bytearray(meta)
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.randrange(len(data))
            kind = rng.randrange(3)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.choice([1, 3, 20])]
            else:
                data[at:at] = data[at : at + 4]
            if not data:
                break
        (tmp_path / "base.meta").write_bytes(data)
        try:
            ab.load("base", model)
        except ab.ModelFileError:
            assert not members(model)
        else:
            model = ab.ParameterCollection()
    assert not (tmp_path / "harm.txt").exists()

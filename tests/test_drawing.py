"""The graph as text and picture, and values as tensors."""

import re

import numpy as np
import pytest

import autobatch as ab


def small():
    model = ab.ParameterCollection()
    W, E = model.add_parameters((2, 3), name="W"), model.add_lookup_parameters((5, 3))
    x = E[1]
    y = ab.tanh(W * x)
    return model, x, y, ab.sum_elems(ab.nobackprop(y) + y[0:2])


def test_text_of_a_graph(capsys):
    small()
    ab.print_text_graphviz()
    out, text = capsys.readouterr()
    assert not out and text.startswith("digraph G {") and text.rstrip().endswith("}")
    labels = dict(re.findall(r'(\w+) \[label="([^"]*)"', text))
    assert [labels[f"N{k}"].split()[0] for k in range(3)] == ["lookup", "matmul", "tanh"]
    assert "matmul (2,)" in labels.values() and "/W" in labels.values() and "nobackprop (2,)" in labels.values()
    edges = re.findall(r"(\w+) -> (\w+);", text)
    assert ("N0", "N1") in edges and ("N1", "N2") in edges
    assert all(a in labels and b in labels for a, b in edges)


def test_a_drawing():
    _, _, y, _ = small()
    drawing = ab.print_graphviz(compact=True, show_dims=False, expression_names={y: 'the "hidden" layer'})
    assert r'label="the \"hidden\" layer"' in drawing.source and "(2,)" not in drawing.source
    with pytest.raises(ValueError, match="a dict from expressions to names"):
        ab.print_graphviz(expression_names=[1])


def test_without_graphviz_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "graphviz", None)
    with pytest.raises(ImportError, match=r"pip install autobatch-numba\[graphviz\]; or print_text_graphviz"):
        ab.print_graphviz()


def test_dump(capsys, tmp_path):
    _, _, y, loss = small()
    ab.dump_cg()
    text = capsys.readouterr().out
    assert text.startswith("N0 lookup (3,) of ()") and "value" not in text
    loss.backward()
    ab.dump_cg(str(tmp_path / "dump"))
    text = (tmp_path / "dump").read_text()
    assert text.count("  value") == text.count("\nN") + 1 and "gradient" in text and not capsys.readouterr().out
    ab.log(ab.inputVector([-1.0])).forward()
    ab.dump_cg(nan_check_only=True)
    assert capsys.readouterr().out.count("holds NaN or infinity") == 1
    ab.dump_cg(show_values=False, show_gradients=False)
    assert "value" not in capsys.readouterr().out
    assert y.npvalue().shape == (2,)


# Tensors --------------------------------------------------------------------------------------------------------------


def test_tensors_are_copies_that_numpy_and_dlpack_know():
    array = np.arange(12.0).reshape(2, 3, 2)
    e = ab.inputTensor(array, batched=True)
    t = e.tensor_value()
    ab.renew_cg()
    for _ in range(20):
        ab.inputTensor(np.zeros((50, 50))).value()
    np.testing.assert_array_equal(t.as_numpy(), array)
    assert t.as_numpy().dtype == np.float32 and np.asarray(t) is not None and np.array(t, dtype=int).dtype == int
    np.testing.assert_array_equal(np.from_dlpack(t), array)
    vector = ab.inputVector([1.0, 3.0, 2.0]).tensor_value()
    assert vector.as_numpy().shape == (3,) and "(3,)" in repr(vector)
    np.testing.assert_array_equal(ab.inputTensor(np.asarray(vector)).npvalue(), [1, 3, 2])


class Foreign:
    """A tensor of another library: it knows DLPack, and nothing of NumPy."""

    def __init__(self, array, broken=False):
        self.array, self.broken = array, broken

    def __dlpack__(self, **how):
        if self.broken:
            raise BufferError("on another device")
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_tensors_of_other_libraries_are_taken():
    array = np.arange(6, dtype="f4").reshape(2, 3)
    np.testing.assert_array_equal(ab.inputTensor(Foreign(array)).npvalue(), array)
    e = ab.inputTensor(np.arange(12.0).reshape(2, 3, 2), batched=True)
    np.testing.assert_array_equal(ab.inputTensor(e.tensor_value(), batched=True).npvalue(), e.npvalue())
    with pytest.raises(TypeError, match="cannot be taken through DLPack: on another device"):
        ab.inputTensor(Foreign(array, broken=True))


def test_largest_numbers_of_a_tensor():
    array = np.array([[1.0, 5.0, 5.0], [4.0, 2.0, 9.0]])
    t = ab.inputTensor(array).tensor_value()
    np.testing.assert_array_equal(t.argmax().as_numpy(), [[1, 0, 1]])
    np.testing.assert_array_equal(t.argmax(1).as_numpy(), [[1], [2]])
    values, places = t.topk(1, 2)
    np.testing.assert_array_equal(values.as_numpy(), [[5, 5], [9, 4]])
    np.testing.assert_array_equal(places.as_numpy(), [[1, 2], [2, 0]])
    assert places.as_numpy().dtype == np.int64
    for dim, num in ((2, 1), (-1, 1), (0, 3), (0, 0)):
        with pytest.raises(ab.ArgumentError, match="topk"):
            t.topk(dim, num)


def test_samples_of_a_tensor_follow_its_log_probabilities():
    ab.reset_random_seed(1)
    p = np.array([[0.1, 0.2, 0.7], [0.0, 1.0, 0.0]]).T
    with np.errstate(divide="ignore"):
        t = ab.inputTensor(np.log(p)).tensor_value()
    drawn = t.categorical_sample_log_prob(0, 4000).as_numpy()
    assert drawn.shape == (4000, 2) and (drawn[:, 1] == 1).all()
    counts = np.bincount(drawn[:, 0], minlength=3) / 4000
    assert np.abs(counts - p[:, 0]).max() < 0.03
    with pytest.raises(ab.ArgumentError):
        t.categorical_sample_log_prob(0, 0)


@pytest.mark.oracle
def test_largest_numbers_as_in_dynet(dynet):
    array = np.random.default_rng(0).normal(size=(4, 3))
    for dim in (0, 1):
        theirs = dynet.inputTensor(array).tensor_value().argmax(dim).as_numpy()
        np.testing.assert_array_equal(ab.inputTensor(array).tensor_value().argmax(dim).as_numpy(), theirs)

"""Softmax builders: distributions that sum up to one and agree with their losses, samples, files, DyNet."""

import numpy as np
import pytest

import autobatch as ab

WORDS = {w: i for i, w in enumerate("the a cat dog cow runs".split())}
CLUSTERS = "A the 10\nA a 5\nB cat 2\nB dog\n\nB cow\nC runs\n"
TREE = "0 0\tthe 9\n0 0\ta\n0 1\tcat\n1\tdog 3\n1\tcow\n1\truns\n"
KINDS = ["standard", "factored", "hierarchical"]


def made(kind, tmp_path, bias=True, library=ab, dtype="float64"):
    model = library.ParameterCollection(dtype=dtype) if library is ab else library.ParameterCollection()
    path = tmp_path / "clusters"
    path.write_text(TREE if kind == "hierarchical" else CLUSTERS.replace("\n\n", "\n"))  # DyNet dies of an empty line
    if kind == "standard":
        builder = library.StandardSoftmaxBuilder(3, 6, model, bias)
    elif kind == "factored":
        builder = library.ClassFactoredSoftmaxBuilder(3, str(path), WORDS, model, bias)
    else:
        builder = library.HierarchicalSoftmaxBuilder(3, path, WORDS, model, bias)
    rng = np.random.default_rng(1)
    for p in model.parameters_list():
        p.set_value(rng.normal(size=p.shape()))
    return model, builder


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_distributions(kind, bias, tmp_path):
    model, builder = made(kind, tmp_path, bias)
    with ab.Graph(dtype="float64"):
        x = ab.inputVector([0.5, -1.0, 2.0])
        losses = np.array([builder.neg_log_softmax(x, w).value() for w in range(6)])
        log_p = builder.full_log_distribution(x).npvalue()
        np.testing.assert_allclose(log_p, -losses, rtol=1e-12)
        np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-12)
        np.testing.assert_allclose(ab.log_softmax(builder.full_logits(x)).npvalue(), log_p, rtol=1e-12)
        several = ab.inputTensor(np.array([[0.5, 1.0], [-1.0, 0.0], [2.0, 3.0]]), batched=True)
        batch = builder.neg_log_softmax_batch(several, [4, 1])
        assert batch.dim() == ((1,), 2)
        np.testing.assert_allclose(batch.npvalue()[0, 0], losses[4], rtol=1e-12)
        np.testing.assert_allclose(builder.full_log_distribution(several).npvalue()[:, 0], log_p, rtol=1e-12)
        ab.sum_batches(batch).backward()
        assert all(p.grad_as_array().any() for p in model.parameters_list()[:1])
        model.reset_gradient()
        ab.sum_batches(builder.neg_log_softmax_batch(several, [4, 1], update=False)).backward(full=True)
        assert not any(p.grad_as_array().any() for p in model.parameters_list())


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_vectors(kind, tmp_path):
    """(n,1), which a product with a column is, does for (n,), as in DyNet."""
    _, builder = made(kind, tmp_path)
    with ab.Graph(dtype="float64"):
        v, c = ab.inputVector([0.5, -1.0, 2.0]), ab.inputTensor(np.array([[0.5], [-1.0], [2.0]]))
        several = np.array([[0.5, 1.0], [-1.0, 0.0], [2.0, 3.0]])
        batch, columns = ab.inputTensor(several, batched=True), ab.inputTensor(several[:, None], batched=True)
        for f in (
            lambda x: builder.neg_log_softmax(x, 4),
            builder.full_log_distribution,
            builder.full_logits,
        ):
            assert f(c).dim() == f(v).dim()
            np.testing.assert_allclose(f(c).npvalue(), f(v).npvalue(), rtol=1e-12)
        losses = [builder.neg_log_softmax_batch(x, [4, 1]).npvalue() for x in (batch, columns)]
        np.testing.assert_allclose(*losses, rtol=1e-12)
        assert 0 <= builder.sample(c) < 6


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_distribution(kind, tmp_path):
    _, builder = made(kind, tmp_path, dtype="float32")
    ab.reset_random_seed(5)
    x = ab.inputVector([0.2, -0.3, 0.4])
    p = np.exp(builder.full_log_distribution(x).npvalue())
    counts = np.zeros(6)
    for _ in range(1500):
        counts[builder.sample(x)] += 1
    assert (np.abs(counts / 1500 - p) < 4 * np.sqrt(p * (1 - p) / 1500) + 1e-3).all()


def test_classes_of_the_factored_builder(tmp_path):
    _, builder = made("factored", tmp_path)
    with ab.Graph(dtype="float64"):
        x = ab.inputVector([0.5, -1.0, 2.0])
        classes = builder.class_log_distribution(x).npvalue()
        np.testing.assert_allclose(ab.log_softmax(builder.class_logits(x)).npvalue(), classes, rtol=1e-12)
        joint = builder.full_log_distribution(x).npvalue()
        for k, words in enumerate([[0, 1], [2, 3, 4], [5]]):
            inside = builder.subclass_log_distribution(x, k).npvalue()
            np.testing.assert_allclose(classes[k] + inside, joint[words], rtol=1e-12)
        assert builder.subclass_logits(x, 2).npvalue().tolist() == [0.0]
        with pytest.raises(ValueError, match="the class is 3"):
            builder.subclass_logits(x, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_builders_are_saved_and_loaded(kind, tmp_path):
    model, builder = made(kind, tmp_path)
    ab.save(tmp_path / "base", [builder])
    again = ab.ParameterCollection(dtype="float64")
    (copy,) = ab.load(tmp_path / "base", again)
    with ab.Graph(dtype="float64"):
        x = ab.inputVector([0.5, -1.0, 2.0])
        np.testing.assert_array_equal(copy.full_log_distribution(x).npvalue(), builder.full_log_distribution(x).npvalue())
    assert [p.shape() for p in again.parameters_list()] == [p.shape() for p in model.parameters_list()]
    assert copy.spec == builder.spec and copy.whoami() == builder.whoami()


def test_empty_lines_count_nothing(tmp_path):
    (tmp_path / "clusters").write_text(CLUSTERS)
    builder = ab.ClassFactoredSoftmaxBuilder(3, tmp_path / "clusters", WORDS, ab.ParameterCollection())
    assert builder.spec == (3, [(0, 1), (2, 3, 4), (5,)], True)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("A the\nB\n", ab.ModelFileError, "line 2: 'B'\n  expected  classes, and a word"),
        ("A the\nB fish\n", ab.ModelFileError, "line 2: the word 'fish' is not in the dictionary"),
        ("A the\nB the\n", ab.ModelFileError, "line 2: the word 'the' is there twice"),
        ("A cat\n", ab.ArgumentError, "expected  0 to 0"),
        ("", ab.ArgumentError, "the words of"),
    ],
)
def test_cluster_files_that_are_wrong(tmp_path, text, error, message):
    path = tmp_path / "clusters"
    path.write_text(text)
    model = ab.ParameterCollection()
    with pytest.raises(error, match=message):
        ab.ClassFactoredSoftmaxBuilder(3, path, WORDS, model)
    assert not model.parameters_list()


def test_what_is_refused(tmp_path):
    model, builder = made("standard", tmp_path)
    with pytest.raises(FileNotFoundError, match="cannot be read"):
        ab.ClassFactoredSoftmaxBuilder(3, tmp_path / "nix", WORDS, model)
    with pytest.raises(TypeError, match="a dict from words to numbers"):
        ab.ClassFactoredSoftmaxBuilder(3, tmp_path / "clusters", list(WORDS), model)
    with pytest.raises(TypeError, match="expected  a ParameterCollection"):
        ab.StandardSoftmaxBuilder(3, 6, None)
    with pytest.raises(ValueError, match="num_classes"):
        ab.StandardSoftmaxBuilder(3, 0, model)
    (tmp_path / "tree").write_text("0\tthe\n0 1\ta\n")
    with pytest.raises(ab.ModelFileError, match="no classes where there are words"):
        ab.HierarchicalSoftmaxBuilder(3, tmp_path / "tree", WORDS, model)
    with ab.Graph(dtype="float64"):
        x = ab.inputVector([1.0, 2.0, 3.0])
        with pytest.raises(ValueError, match="the word is 6"):
            builder.neg_log_softmax(x, 6)
        with pytest.raises(ValueError, match=r"x is \(2,\)\n  expected  \(3,\)"):
            builder.neg_log_softmax(x[0:2], 1)
        with pytest.raises(ValueError, match="2 words\n  expected  1"):
            builder.neg_log_softmax_batch(x, [1, 2])


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["standard", "factored"])
def test_losses_of_dynet(dynet, tmp_path, kind):
    results = []
    for library in (ab, dynet):
        model, builder = made(kind, tmp_path, library=library, dtype="float32")
        library.renew_cg()
        w = model.add_parameters((3,), init=np.array([0.5, -1.0, 2.0]))
        x = w.expr(True) if library is dynet else w
        losses = [builder.neg_log_softmax(x, k) for k in range(6)]
        values = [loss.value() for loss in losses]
        library.esum(losses).backward()
        if kind == "standard":
            values += [*builder.full_log_distribution(x).npvalue(), *builder.full_logits(x).npvalue()]
        else:
            values += [*builder.class_log_distribution(x).npvalue(), *builder.subclass_log_distribution(x, 1).npvalue()]
        results.append(
            (values, [p.grad_as_array() for p in model.parameters_list()], [p.name() for p in model.parameters_list()])
        )
    (ours, gradients, names), (theirs, their_gradients, their_names) = results
    assert names == their_names
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for a, b in zip(gradients, their_gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)

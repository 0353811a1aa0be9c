"""Convolution and pooling: against plain loops, large sizes, errors, ties, NaN, and what DyNet gets wrong or refuses."""

import numpy as np
import pytest

import autobatch as ab
from autobatch.kernels._jit import WORK

rng = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def graph():
    with ab.Graph(dtype="float64") as graph:
        yield graph


def parameter(array):
    """Return a float64 parameter with these numbers."""
    return ab.ParameterCollection(dtype="float64").add_parameters(array.shape, init=array)


def numbers(*dims):
    """Return an array of random numbers."""
    return rng.uniform(-1, 1, dims)


def places(size, window, stride, is_valid):
    """Return where windows begin, by the definition of the padding."""
    if is_valid:
        return list(range(0, size - window + 1, stride))
    count = int(np.ceil(size / stride))
    total = max(0, (count - 1) * stride + window - size)
    return [k * stride - total // 2 for k in range(count)]


def by_loops(x, f, stride, is_valid):
    """Return the cross-correlation and, as a function of dy, its gradients; number by number."""
    rows, cols = (places(x.shape[d], f.shape[d], stride[d], is_valid) for d in (0, 1))
    taps = [
        (i, j, h, w, r + h, c + w)
        for i, r in enumerate(rows)
        for j, c in enumerate(cols)
        for h in range(f.shape[0])
        for w in range(f.shape[1])
        if 0 <= r + h < x.shape[0] and 0 <= c + w < x.shape[1]
    ]
    y = np.zeros((len(rows), len(cols), f.shape[3]))
    for i, j, h, w, p, q in taps:
        y[i, j] += x[p, q] @ f[h, w]

    def gradients(dy):
        dx, df = np.zeros(x.shape), np.zeros(f.shape)
        for i, j, h, w, p, q in taps:
            dx[p, q] += f[h, w] @ dy[i, j]
            df[h, w] += np.outer(x[p, q], dy[i, j])
        return dx, df

    return y, gradients


def weighed(y, weights):
    """Return Σ weights ∘ y."""
    return ab.dot_product(ab.reshape(y, (weights.size,)), ab.inputVector(weights.ravel(order="F")))


# conv2d ---------------------------------------------------------------------------------------------------------------

SIZES = [
    # x, f, stride: pieces of the matrix of windows end inside of a column, at the end of one, and the matrix has one row
    ((7, 6, 2), (3, 2, 2, 4), (1, 1)),
    ((7, 6, 2), (2, 4, 2, 3), (3, 2)),
    ((1, 9, 5), (1, 3, 5, 4), (1, 2)),
    ((9, 1, 5), (3, 1, 5, 4), (2, 1)),
    ((4, 4, 1), (4, 4, 1, 1), (1, 1)),
    ((5, 5, 1), (1, 1, 1, 1), (4, 7)),
    ((40, 45, 2), (3, 3, 2, 3), (1, 1)),  # 1634 windows of 18: two pieces of rows
    ((6, 7, 90), (3, 3, 90, 5), (1, 1)),  # 810 columns: two pieces
    ((14, 16, 70), (3, 3, 70, 2), (2, 1)),
    ((30, 4, 2), (30, 2, 2, 3), (1, 1)),
]


@pytest.mark.parametrize("is_valid", [True, False])
@pytest.mark.parametrize(("x", "f", "stride"), SIZES)
def test_conv2d_equals_plain_loops(x, f, stride, is_valid):
    x, f = numbers(*x), numbers(*f)
    expected, gradients = by_loops(x, f, stride, is_valid)
    p, q = parameter(x), parameter(f)
    y = ab.conv2d(p, q, list(stride), is_valid)
    assert y.dim() == (expected.shape, 1)
    np.testing.assert_allclose(y.npvalue(), expected, atol=1e-11)
    weights = numbers(*expected.shape)
    weighed(y, weights).backward()
    for got, wanted in zip((p.grad_as_array(), q.grad_as_array()), gradients(weights), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-11)


def test_sizes_cover_all_ways_to_cut_into_pieces():
    pieces = set()
    for x, f, stride in SIZES:
        depth = f[0] * f[1] * f[2]
        rows = len(places(x[0], f[0], stride[0], True)) * len(places(x[1], f[1], stride[1], True))
        pieces.add((depth > 512, rows * min(depth, 512) > WORK))
    assert pieces == {(False, False), (False, True), (True, False), (True, True)}


def test_an_image_without_channels_has_one():
    x, f = numbers(4, 5), numbers(2, 2, 1, 3)
    y = ab.conv2d(ab.inputTensor(x), ab.inputTensor(f), (2, 1))
    np.testing.assert_allclose(y.npvalue(), by_loops(x[:, :, None], f, (2, 1), True)[0], atol=1e-12)


@pytest.mark.parametrize("is_valid", [True, False])
def test_conv2d_bias_in_minibatches_of_images_and_of_filters(is_valid):
    x, f, b = numbers(5, 4, 2, 3), numbers(2, 3, 2, 4, 3), numbers(4, 3)

    def one(array, batched):
        return ab.inputTensor(array, batched=True) if batched else ab.inputTensor(array[..., 1])

    for of_x, of_f, of_b in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)]:
        y = ab.conv2d_bias(one(x, of_x), one(f, of_f), one(b, of_b), [1, 2], is_valid)
        for k in range(3):
            expected = by_loops(x[..., k if of_x else 1], f[..., k if of_f else 1], (1, 2), is_valid)[0]
            np.testing.assert_allclose(y.npvalue()[..., k], expected + b[:, k if of_b else 1], atol=1e-12)


def test_nodes_run_as_one_batch_whatever_their_filters_are(graph):
    xs, fs, p = [numbers(4, 4, 2) for _ in range(5)], [numbers(2, 2, 2, 3) for _ in range(5)], parameter(numbers(2, 2, 2, 3))
    given = [ab.conv2d(ab.inputTensor(x), ab.inputTensor(f), [1, 1]) for x, f in zip(xs, fs, strict=True)]
    shared = [ab.conv2d(ab.inputTensor(x), p, [1, 1]) for x in xs]
    ab.forward([*given, *shared])
    assert graph.execution.batches == 2
    computed = [ab.conv2d(ab.inputTensor(x), ab.tanh(ab.inputTensor(f)), [1, 1]) for x, f in zip(xs, fs, strict=True)]
    ab.forward(computed)
    assert graph.execution.batches == 4
    for y, x, f in zip(computed, xs, fs, strict=True):
        np.testing.assert_allclose(y.npvalue(), by_loops(x, np.tanh(f), (1, 1), True)[0], atol=1e-12)


def test_gradient_of_a_filter_that_many_nodes_share():
    xs, f, b = [numbers(4, 5, 2) for _ in range(6)], numbers(2, 3, 2, 3), numbers(3)
    p, q = parameter(f), parameter(b)
    losses, expected, bias = [], np.zeros(f.shape), np.zeros(3)
    for x in xs:
        y, gradients = by_loops(x, f, (1, 1), True)
        weights = numbers(*y.shape)
        losses.append(weighed(ab.conv2d_bias(ab.inputTensor(x), p, q, [1, 1]), weights))
        expected += gradients(weights)[1]
        bias += weights.sum(axis=(0, 1))
    ab.esum(losses).backward()
    np.testing.assert_allclose(p.grad_as_array(), expected, atol=1e-11)
    np.testing.assert_allclose(q.grad_as_array(), bias, atol=1e-11)


def test_errors_of_conv2d():
    x, f = ab.inputTensor(np.ones((4, 5, 2))), ab.inputTensor(np.ones((2, 3, 2, 6)))
    for stride in ([0, 1], [1, -1], [0, 0]):
        with pytest.raises(ab.ArgumentError, match=r"conv2d: the stride is \[.*\]\n  expected  two whole numbers from 1 on"):
            ab.conv2d(x, f, stride)
    for stride in ([1], [1, 1, 1, 1, 1], []):
        with pytest.raises(
            ab.ArgumentError, match=r"conv2d: the stride is \[.*\]\n  expected  two numbers, for rows and columns"
        ):
            ab.conv2d(x, f, stride)
    for stride in (1, "11", None, [1.5, 1]):
        with pytest.raises(TypeError, match="conv2d: the stride"):
            ab.conv2d(x, f, stride)
    with pytest.raises(ab.ShapeError, match=r"conv2d: x has 1 channels but f has 2\n  got       \(4,5\)  \(2,3,2,6\)"):
        ab.conv2d(ab.inputTensor(np.ones((4, 5))), f, [1, 1])
    with pytest.raises(ab.ShapeError, match=r"conv2d: f has 3 dims\n.*\n  expected  x \(H,W,C\) or \(H,W\), f \(FH,FW,C,O\)"):
        ab.conv2d(x, ab.inputTensor(np.ones((2, 3, 2))), [1, 1])
    for dims in [(5,), (4, 5, 2, 1)]:
        with pytest.raises(ab.ShapeError, match=r"conv2d: x has [14] dims"):
            ab.conv2d(ab.inputTensor(np.ones(dims)), f, [1, 1])
    for dims in [(5, 3, 2, 1), (2, 6, 2, 1)]:
        large = ab.inputTensor(np.ones(dims))
        with pytest.raises(
            ab.ShapeError, match=r"conv2d: a window of [56] in an image of [45]\n.*\n.*\n  try       is_valid=False"
        ):
            ab.conv2d(x, large, [1, 1])
        assert ab.conv2d(x, large, [1, 1], is_valid=False).dim() == ((4, 5, 1), 1)
    two, three = (ab.inputTensor(np.ones((4, 5, 2, n)), batched=True) for n in (2, 3))
    with pytest.raises(ab.ShapeError, match="conv2d: batch sizes 2 and 3 do not fit"):
        ab.conv2d(two, ab.reshape(three, (4, 5, 2, 1)), [1, 1])
    for b in (np.ones(5), np.ones((6, 1))):
        with pytest.raises(ab.ShapeError, match=r"conv2d_bias: b has dims .* but f has 6 filters\n.*\n.*, b \(O,\)"):
            ab.conv2d_bias(x, f, ab.inputTensor(b), [1, 1])
    with pytest.raises(TypeError, match="conv2d_bias: argument 3 is None"):
        ab.conv2d_bias(x, f, None, [1, 1])


# maxpooling2d ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_valid", [True, False])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3), (4, 4)])
@pytest.mark.parametrize("window", [(1, 1), (2, 2), (3, 2), (4, 5)])
def test_maxpooling2d_equals_plain_loops(window, stride, is_valid):
    x = numbers(6, 5, 2, 2) - 2  # below 0: zeros from the padding would show
    rows, cols = (places(x.shape[d], window[d], stride[d], is_valid) for d in (0, 1))
    y = ab.maxpooling2d(ab.inputTensor(x, batched=True), list(window), list(stride), is_valid)
    assert y.dim() == ((len(rows), len(cols), 2), 2)
    for i, r in enumerate(rows):
        for j, c in enumerate(cols):
            part = x[max(r, 0) : r + window[0], max(c, 0) : c + window[1]]
            np.testing.assert_array_equal(y.npvalue()[i, j], part.max(axis=(0, 1)))


def test_ties_give_the_gradient_to_the_first_number_of_a_window():
    for is_valid, expected in [(True, [[1, 0, 0], [0, 0, 0], [0, 0, 0]]), (False, [[1, 0, 1], [0, 0, 0], [1, 0, 1]])]:
        p = parameter(np.ones((3, 3, 1)))
        ab.sum_elems(ab.maxpooling2d(p, [2, 2], [2, 2], is_valid)).backward()
        np.testing.assert_array_equal(p.grad_as_array()[..., 0], expected)
    p = parameter(np.array([[0.0, 5.0, 5.0], [5.0, 0.0, 0.0]]))  # column by column: row 1 of column 0 is first
    ab.sum_elems(ab.maxpooling2d(p, [2, 3], [1, 1])).backward()
    np.testing.assert_array_equal(p.grad_as_array(), [[0, 0, 0], [1, 0, 0]])


def test_maxpooling2d_passes_nan_and_infinities_on():
    x = np.array([[np.nan, 1.0, -np.inf], [2.0, 0.0, -np.inf], [np.inf, 4.0, np.nan]])
    p = parameter(x)
    y = ab.maxpooling2d(p, [2, 2], [1, 1])
    np.testing.assert_array_equal(y.npvalue(), [[np.nan, 1], [np.inf, np.nan]])
    y = ab.maxpooling2d(p, [2, 1], [1, 1])
    np.testing.assert_array_equal(y.npvalue(), [[np.nan, 1, -np.inf], [np.inf, 4, np.nan]])
    ab.sum_elems(y).backward()
    np.testing.assert_array_equal(p.grad_as_array(), [[1, 1, 1], [0, 0, 0], [1, 1, 1]])


def test_windows_and_strides_far_larger_than_the_image():
    x, most = numbers(4, 5, 2), 2**31 - 1
    everything = ab.maxpooling2d(ab.inputTensor(x), [most, most], [most, 1], is_valid=False)
    np.testing.assert_array_equal(everything.npvalue(), np.broadcast_to(x.max(axis=(0, 1)), (1, 5, 2)))
    f = numbers(2, 2, 2, 1)
    y = ab.conv2d(ab.inputTensor(x), ab.inputTensor(f), [most, most])
    np.testing.assert_allclose(y.npvalue(), by_loops(x, f, (9, 9), True)[0], atol=1e-12)
    for large in ([2**31, 1], [1, 10**30]):
        with pytest.raises(ab.ArgumentError, match=r"maxpooling2d: the window is .*\n  expected  numbers up to 2,147,483,647"):
            ab.maxpooling2d(ab.inputTensor(x), large, [1, 1], is_valid=False)
        with pytest.raises(ab.ArgumentError, match=r"conv2d: the stride is .*\n  expected  numbers up to 2,147,483,647"):
            ab.conv2d(ab.inputTensor(x), ab.inputTensor(f), large)


def test_maxpooling2d_without_channels_and_its_errors():
    x = ab.inputTensor(numbers(4, 5))
    assert ab.maxpooling2d(x, [2, 2], [1, 2]).dim() == ((3, 2), 1)
    for name, arguments in {"window": ([0, 1], [1, 1]), "stride": ([1, 1], [1, 0])}.items():
        with pytest.raises(
            ab.ArgumentError, match=rf"maxpooling2d: the {name} is \[.*\]\n  expected  two whole numbers from 1 on"
        ):
            ab.maxpooling2d(x, *arguments)
    with pytest.raises(ab.ArgumentError, match=r"maxpooling2d: the window is .*\n  expected  two numbers"):
        ab.maxpooling2d(x, [2], [1, 1])
    with pytest.raises(ab.ShapeError, match="maxpooling2d: a window of 6 in an image of 5"):
        ab.maxpooling2d(x, [1, 6], [1, 1])
    with pytest.raises(ab.ShapeError, match=r"maxpooling2d: 1 dims\n.*\n  expected  an image \(H,W,C\) or \(H,W\)"):
        ab.maxpooling2d(ab.inputVector([1.0]), [1, 1], [1, 1])


# Sequences and vectors ------------------------------------------------------------------------------------------------


def test_filter1d_narrow_of_each_element_of_a_minibatch():
    x, f = numbers(3, 7, 2), numbers(3, 4, 5)
    y = ab.filter1d_narrow(ab.inputTensor(x, batched=True), ab.inputTensor(f))
    assert y.dim() == ((5, 4), 2)
    for j in range(4):
        np.testing.assert_allclose(y.npvalue()[:, j], np.einsum("rkb,rko->ob", x[:, j : j + 4], f), atol=1e-12)
    one = ab.filter1d_narrow(ab.inputTensor(x[..., 0]), ab.inputTensor(f[..., 0]))
    assert one.dim() == ((1, 4), 1)


def test_errors_of_filter1d_narrow():
    x = ab.inputTensor(numbers(3, 4))
    with pytest.raises(
        ab.ShapeError, match=r"x has 3 rows but f has 2\n  got .*\n  expected  x \(r,c\), f \(r,w\) or \(r,w,O\)"
    ):
        ab.filter1d_narrow(x, ab.inputTensor(numbers(2, 2)))
    with pytest.raises(ab.ShapeError, match="filter1d_narrow: x has 4 columns, fewer than the 5 of f"):
        ab.filter1d_narrow(x, ab.inputTensor(numbers(3, 5, 2)))
    with pytest.raises(ab.ShapeError, match="filter1d_narrow: x has 1 dims"):
        ab.filter1d_narrow(ab.inputVector([1.0]), x)
    with pytest.raises(ab.ShapeError, match="filter1d_narrow: f has 1 dims"):
        ab.filter1d_narrow(x, ab.inputVector([1.0]))


@pytest.mark.parametrize("n", [1, 2, 3, 8, 17, 64])
def test_circular_sums_equal_fourier_transforms(n):
    u, v = numbers(n, 3), numbers(n)
    x, y = ab.inputTensor(u, batched=True), ab.inputVector(v)
    U, V = np.fft.fft(u, axis=0), np.fft.fft(v)[:, None]
    np.testing.assert_allclose(ab.circ_conv(x, y).npvalue(), np.fft.ifft(U * V, axis=0).real, atol=1e-11)
    np.testing.assert_allclose(ab.circ_conv(y, x).npvalue(), np.fft.ifft(U * V, axis=0).real, atol=1e-11)
    np.testing.assert_allclose(ab.circ_corr(x, y).npvalue(), np.fft.ifft(U.conj() * V, axis=0).real, atol=1e-11)


@pytest.mark.parametrize("function", [ab.circ_conv, ab.circ_corr], ids=lambda f: f.__name__)
def test_errors_of_circular_sums(function):
    u = ab.inputVector([1.0, 2.0])
    for other in (np.ones(3), np.ones((2, 1))):
        with pytest.raises(
            ab.ShapeError, match=rf"{function.__name__}: the arguments do not fit\n.*\n  expected  two vectors \(n,\)"
        ):
            function(u, ab.inputTensor(other))
    with pytest.raises(ab.ShapeError, match="the arguments do not fit"):
        function(ab.inputTensor(np.ones((2, 2))), ab.inputTensor(np.ones((2, 2))))
    with pytest.raises(ab.ShapeError, match="batch sizes 2 and 3"):
        function(*(ab.inputTensor(np.ones((2, b)), batched=True) for b in (2, 3)))

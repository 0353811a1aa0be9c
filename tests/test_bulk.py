"""What is recorded in bulk is the plain program: same values, same gradients."""

import numpy as np
import pytest

import autobatch as ab

H = 4


class Model:
    """Parameters of a small tree and sequence network."""

    def __init__(self):
        ab.reset_random_seed(5)
        self.model = ab.ParameterCollection()
        self.table = self.model.add_lookup_parameters((12, H))
        self.W, self.V = self.model.add_parameters((H, 2 * H)), self.model.add_parameters((H, H))
        self.b, self.S = self.model.add_parameters((H,)), self.model.add_parameters((3, H))

    def node(self, h1, c1, h2, c2):
        e = ab.affine_transform([self.b, self.W, ab.concatenate([h1, h2])])
        return ab.tanh(e), ab.cmult(c1, ab.logistic(e)) + c2

    def leaf(self, x):
        return ab.tanh(self.V * x), x * 0.5

    def step(self, x, h):
        return ab.tanh(ab.affine_transform([self.b, self.W, ab.concatenate([x, h])]))

    def loss(self, h, label):
        return ab.pickneglogsoftmax(self.S * h, label)

    def finish(self, loss):
        """Value of a loss, and all gradients."""
        value = loss.value()
        loss.backward()
        return value, [p.grad_as_array().copy() for p in self.model.parameters_list()]


@pytest.fixture(autouse=True)
def float64():
    ab.configure(dtype="float64")
    yield
    ab.configure(dtype="float32")
    ab.renew_cg()


def agree(a, b):
    np.testing.assert_allclose(a[0], b[0], rtol=1e-12)
    for x, y in zip(a[1], b[1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-13)


SEQUENCES = [[1, 2, 3, 4, 5], [6], [7, 8], [1, 9, 10, 3], [11, 0, 0, 1, 1, 2]]
LENGTHS = [len(s) for s in SEQUENCES]
WORDS = [w for s in SEQUENCES for w in s]
LABELS = [w % 3 for w in WORDS]


def trees():
    """Random binary trees over 9 + 1 + 4 leaves: words, children of inner nodes; the same nested."""
    numbers, words, children, nested = np.random.default_rng(2), [], [], []
    sizes = [9, 1, 4]
    waiting = []
    for n in sizes:
        waiting.append([])
        for _ in range(n):
            waiting[-1].append((len(words), len(words)))
            words.append(int(numbers.integers(0, 12)))
    for nodes in waiting:
        while len(nodes) > 1:
            k = int(numbers.integers(0, len(nodes) - 1))
            (a, left), (b, right) = nodes[k], nodes[k + 1]
            children.append((a, b))
            nodes[k : k + 2] = [(len(words) + len(children) - 1, (left, right))]
        nested.append(nodes[0][1])
    return words, children, nested


@pytest.mark.parametrize("policy", ["none", "depth", "agenda", "ratio"])
@pytest.mark.parametrize("cells", [False, True])
def test_tree(policy, cells):
    words, children, nested = trees()

    def plain():
        m = Model()
        ab.renew_cg()
        states = {}

        def walk(t):
            if isinstance(t, int):
                states[t] = m.leaf(m.table[words[t]])
                return states[t]
            h, c = m.node(*walk(t[0]), *walk(t[1]))
            losses.append(m.loss(h, 1))
            return h, c

        losses = []
        for t in nested:
            walk(t)
        return m.finish(ab.esum([*losses, *(m.loss(h, 2) for h, _ in states.values())]))

    def bulk():
        m = Model()
        ab.renew_cg()
        ab.current_graph().policy = policy
        leaf, node = (ab.cell(m.leaf), ab.cell(m.node)) if cells else (m.leaf, m.node)
        h, c = ab.tree(node, children, *ab.each(leaf, ab.rows(m.table, words)))
        assert len(h) == len(c) == len(words) + len(children)
        labels = np.array([2] * len(words) + [1] * len(children))
        return m.finish(ab.each(m.loss, h, labels).sum())

    agree(plain(), bulk())


@pytest.mark.parametrize("cells", [False, True])
def test_scan(cells):
    def plain():
        m = Model()
        ab.renew_cg()
        losses = []
        for s in SEQUENCES:
            h = ab.inputVector(np.linspace(0, 1, H))
            for w in s:
                h = m.step(m.table[w], h)
                losses.append(m.loss(h, w % 3))
        return m.finish(ab.esum(losses))

    def bulk():
        m = Model()
        ab.renew_cg()
        step = ab.cell(m.step) if cells else m.step
        h = ab.scan(step, ab.rows(m.table, WORDS), LENGTHS, ab.inputVector(np.linspace(0, 1, H)))
        return m.finish(ab.each(m.loss, h, LABELS).sum())

    agree(plain(), bulk())


def test_scan_in_reverse():
    m = Model()
    ab.renew_cg()
    h0 = ab.inputVector(np.linspace(0, 1, H))
    hs = ab.scan(m.step, ab.rows(m.table, WORDS), LENGTHS, h0, reverse=True)
    at = 0
    for s in SEQUENCES:
        h = h0
        for k in range(len(s) - 1, -1, -1):
            h = m.step(m.table[s[k]], h)
            np.testing.assert_allclose(hs[at + k].npvalue(), h.npvalue(), rtol=1e-12)
        at += len(s)
    lstm = ab.LSTMBuilder(1, H, H, m.model)
    back = ab.scan(lstm, ab.rows(m.table, WORDS), LENGTHS, reverse=True)
    first = lstm.initial_state().transduce([m.table[w] for w in SEQUENCES[0]][::-1])[::-1]
    np.testing.assert_allclose(back[: LENGTHS[0]].npvalue(), [e.npvalue() for e in first], rtol=1e-12)


@pytest.mark.parametrize("builder", [ab.LSTMBuilder, ab.GRUBuilder, ab.SimpleRNNBuilder])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_scan_of_a_builder(builder, dropout):
    def run(bulk):
        m = Model()
        rnn = builder(2, H, H, m.model)
        rnn.set_dropout(dropout)
        ab.reset_random_seed(9)
        ab.renew_cg()
        if bulk:
            hs = ab.scan(rnn, ab.rows(m.table, WORDS), LENGTHS)
            assert len(hs) == len(WORDS)
            return m.finish(ab.each(ab.cell(m.loss), hs, np.array(LABELS)).sum())
        order = sorted(range(len(SEQUENCES)), key=lambda k: -LENGTHS[k])[:1]  # the longest first: masks are drawn in this order
        order += [k for k in range(len(SEQUENCES)) if k not in order]
        losses = []
        for k in order:
            hs = rnn.initial_state().transduce([m.table[w] for w in SEQUENCES[k]])
            losses += [m.loss(h, w % 3) for h, w in zip(hs, SEQUENCES[k], strict=True)]
        return m.finish(ab.esum(losses))

    agree(run(False), run(True))


def test_most_of_it_is_pieces():
    m = Model()
    ab.renew_cg()
    hs = ab.scan(ab.LSTMBuilder(1, H, H, m.model), ab.rows(m.table, WORDS * 20), LENGTHS * 20)
    losses = ab.each(m.loss, hs, LABELS * 20)
    losses.sum()
    graph = ab.current_graph()
    assert len(graph) > 20 * len(WORDS) * 5
    assert len(graph.recorded_args) < 1000


def test_expressions():
    m = Model()
    ab.renew_cg()
    xs = ab.rows(m.table, [3, 1, 4, 1, 5])
    values = m.table.as_array()
    assert len(xs) == 5
    assert xs.dim() == ((H,), 1)
    assert repr(xs) == "<5 expressions of shape (4,)>"
    np.testing.assert_allclose(xs.npvalue(), values[[3, 1, 4, 1, 5]])
    np.testing.assert_allclose(xs[1:3].npvalue(), values[[1, 4]])
    np.testing.assert_allclose(xs[::-1].npvalue(), values[[5, 1, 4, 1, 3]])
    np.testing.assert_allclose(xs[-1].npvalue(), values[5])
    np.testing.assert_allclose((xs[[0]] + xs[[4, 4]]).npvalue(), values[[3, 5, 5]])
    np.testing.assert_allclose([x.npvalue() for x in xs], xs.npvalue())
    matrices = ab.each(lambda x: ab.reshape(x, (2, 2)), xs)
    np.testing.assert_allclose(matrices.npvalue(), [x.npvalue() for x in matrices])
    np.testing.assert_allclose(ab.Expressions([xs[0], xs[2]]).npvalue(), values[[3, 4]])
    with pytest.raises(IndexError, match="index 5"):
        xs[5]


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 100, 273])
def test_sum(n):
    m = Model()
    ab.renew_cg()
    words = np.random.default_rng(0).integers(0, 12, n)
    xs = ab.rows(m.table, words)
    np.testing.assert_allclose(xs.sum().npvalue(), m.table.as_array()[words].sum(0), rtol=1e-12)


def test_labels_that_coincide_with_other_integers():
    """Slices begin at numbers that labels take too; all labels equal; two columns of labels."""
    m = Model()
    ab.renew_cg()
    xs = ab.rows(m.table, [3, 1, 4, 1, 5, 9])
    values = m.table.as_array()[[3, 1, 4, 1, 5, 9]]
    both = ab.each(lambda x, i: (x[1:3], ab.pick(x, i)), xs, [1, 1, 2, 0, 1, 3])
    np.testing.assert_allclose(both[0].npvalue(), values[:, 1:3])
    np.testing.assert_allclose(both[1].npvalue()[:, 0], values[range(6), [1, 1, 2, 0, 1, 3]])
    same = ab.each(ab.pick, xs, [1] * 6)
    np.testing.assert_allclose(same.npvalue()[:, 0], values[:, 1])
    a, b = [0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 2, 1]
    two = ab.each(lambda x, i, j: ab.pick(x, i) - ab.pick(x, j), xs, a, b)
    np.testing.assert_allclose(two.npvalue()[:, 0], values[range(6), a] - values[range(6), b])


def test_a_function_that_draws_is_called_for_each():
    m = Model()
    ab.renew_cg()
    xs = ab.rows(m.table, [1] * 40)
    dropped = ab.each(lambda x: ab.dropout(x, 0.5), xs).npvalue()
    assert len(np.unique(dropped == 0, axis=0)) > 5


def test_equal_inputs_and_single_elements():
    m = Model()
    ab.renew_cg()
    x = ab.inputVector([1.0, 2.0, 3.0, 4.0])
    xs = ab.Expressions([x] * 7)
    np.testing.assert_allclose(ab.each(lambda a, b: a + 2.0 * b, xs, xs).npvalue(), [[3.0, 6.0, 9.0, 12.0]] * 7)
    one = ab.each(ab.tanh, xs[:1])
    np.testing.assert_allclose(one.npvalue(), [np.tanh([1.0, 2.0, 3.0, 4.0])])
    np.testing.assert_allclose(ab.tree(m.node, [[0, 0], [1, 1]], xs[:1], xs[:1])[0].npvalue().shape, (3, H))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m, xs: ab.rows(m.table, [1, 12]), IndexError, "rows: index 12"),
        (lambda m, xs: ab.rows(m.table, [-1]), IndexError, "rows: index -1"),
        (lambda m, xs: ab.rows(m.table, [0.5]), TypeError, "rows: "),
        (lambda m, xs: ab.rows(m.W, [0]), TypeError, "expected  LookupParameters"),
        (lambda m, xs: ab.each(ab.tanh, [1, 2]), TypeError, "no Expressions"),
        (lambda m, xs: ab.each(ab.pick, xs, [1]), ValueError, "argument 2 has 1 elements, another 3"),
        (lambda m, xs: ab.each(lambda x: 3.0, xs), TypeError, "each: the function returned 3.0"),
        (lambda m, xs: ab.scan(m.step, xs, [1, 1], xs[0]), ValueError, "add up to 3"),
        (lambda m, xs: ab.scan(m.step, xs, [3]), TypeError, "needs a state"),
        (lambda m, xs: ab.scan(m.step, xs, [3], xs[0], xs[1]), TypeError, "argument"),
        (lambda m, xs: ab.scan(lambda x, h: x[:2], xs, [3], xs[0]), ValueError, "part 1 of the state"),
        (lambda m, xs: ab.tree(m.node, [[0, 3]], xs, xs), IndexError, "inner node 3 has a child 3"),
        (lambda m, xs: ab.tree(m.node, [0, 1], xs, xs), TypeError, r"integers \(M, K\)"),
        (lambda m, xs: ab.tree(lambda a, b: (a, b), [[0, 1]], xs), ValueError, "returned 2 expressions, and the leaves have 1"),
        (lambda m, xs: ab.Expressions([]), TypeError, "at least one"),
        (lambda m, xs: ab.Expressions([xs[0], xs[0][:2]]), ValueError, "shapes differ"),
    ],
)
def test_errors(call, error, text):
    m = Model()
    ab.renew_cg()
    with pytest.raises(error, match=text):
        call(m, ab.rows(m.table, [1, 2, 3]))


def test_in_checkpoints_and_at_once():
    m = Model()
    ab.renew_cg()
    xs = ab.rows(m.table, [1, 2, 3, 4, 5, 6])
    ab.cg_checkpoint()
    np.testing.assert_allclose(ab.each(ab.tanh, xs).npvalue(), np.tanh(xs.npvalue()))
    ab.cg_revert()
    np.testing.assert_allclose(ab.each(ab.exp, xs).npvalue(), np.exp(xs.npvalue()))
    ab.renew_cg(immediate_compute=True)
    xs = ab.rows(m.table, [1, 2, 3, 4, 5, 6])
    np.testing.assert_allclose(ab.each(ab.tanh, xs).npvalue(), np.tanh(xs.npvalue()))

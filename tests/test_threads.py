"""Threads and graphs side by side: each gets the bits it gets alone; graphs die when nobody holds them."""

import gc
import threading
import weakref

import numpy as np
import pytest

import autobatch as ab


def train(seed, steps=6):
    """Train a small acceptor with dropout; return the losses and all parameters, bit for bit."""
    if threading.current_thread() is threading.main_thread():
        ab.reset_random_seed(seed)
    model = ab.ParameterCollection()
    words = model.add_lookup_parameters((50, 8))
    lstm = ab.VanillaLSTMBuilder(1, 8, 8, model)
    W, b = model.add_parameters((3, 8)), model.add_parameters((3,))
    trainer = ab.AdamTrainer(model)
    losses = []
    for step in range(steps):
        ab.renew_cg()
        batch = []
        for k in range(5):
            sentence = [(7 * step + 3 * k + i * i) % 50 for i in range(2 + (step + k) % 4)]
            out = lstm.initial_state().transduce([ab.dropout(words[w], 0.3) for w in sentence])[-1]
            batch.append(ab.pickneglogsoftmax(ab.affine_transform([b, W, out]), k % 3))
        loss = ab.esum(batch)
        losses.append(loss.value())
        loss.backward()
        trainer.update()
    return losses, [p.values.tobytes() for p in [*model.parameters_list(), *model.lookup_parameters_list()]]


def trees(seed, steps=6):
    """Train a small tree network of another kind."""
    model = ab.ParameterCollection()
    words, W = model.add_lookup_parameters((30, 6)), model.add_parameters((6, 12))
    v, trainer = model.add_parameters((1, 6)), ab.SimpleSGDTrainer(model)
    losses = []

    def visit(low, high):
        if high - low == 1:
            return words[(low * 11) % 30]
        middle = low + 1 + (low * 5 + high) % (high - low - 1) if high - low > 2 else low + 1
        return ab.tanh(W * ab.concatenate([visit(low, middle), visit(middle, high)]))

    for step in range(steps):
        ab.renew_cg()
        loss = ab.esum([ab.square(v * visit(k, k + 3 + (k + step) % 5)) for k in range(6)])
        losses.append(loss.value())
        loss.backward()
        trainer.update()
    return losses, [p.values.tobytes() for p in [*model.parameters_list(), *model.lookup_parameters_list()]]


def in_threads(*tasks):
    results, errors = [None] * len(tasks), []

    def run(k, task):
        try:
            results[k] = task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k, task)) for k, task in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def test_two_threads_train_two_models_as_if_alone():
    ab.reset_random_seed(5)
    (alone,) = in_threads(lambda: train(5))
    (other_alone,) = in_threads(lambda: trees(5))
    for _ in range(3):
        both = in_threads(lambda: train(5), lambda: trees(5))
        assert both == [alone, other_alone]


def test_the_same_seed_gives_the_same_bits():
    assert train(3) == train(3)
    assert train(3) != train(4)


def test_threads_share_a_model():
    """Inference of one model in two threads at once."""
    model = ab.ParameterCollection()
    words, W = model.add_lookup_parameters((20, 5)), model.add_parameters((5, 5))

    def infer():
        values = []
        for step in range(40):
            ab.renew_cg()
            values.append(ab.npvalues([ab.softmax(W * ab.tanh(words[(step + k) % 20])) for k in range(6)]))
        return np.array(values).tobytes()

    alone = infer()
    assert in_threads(infer, infer, infer) == [alone] * 3


def test_each_thread_has_its_own_current_graph():
    ab.renew_cg()
    x = ab.inputVector([1.0, 2.0])
    version = ab.cg_version()

    def elsewhere():
        ab.renew_cg()
        return ab.tanh(ab.inputVector([3.0])).value()

    in_threads(elsewhere)
    assert ab.cg_version() == version
    assert ab.tanh(x).npvalue() == pytest.approx(np.tanh([1.0, 2.0]))


def test_two_graphs_in_one_thread():
    model = ab.ParameterCollection()
    W = model.add_parameters((3, 3))
    with ab.Graph() as one:
        x = ab.inputVector([1.0, 2.0, 3.0])
        with ab.Graph() as two:
            y = ab.inputVector([4.0, 5.0, 6.0])
            b = W * y
        a = W * x
    assert len(one) == 2 and len(two) == 2
    d, c = ab.sum_elems(b), ab.sum_elems(a)
    expected = W.as_array()
    assert np.allclose(a.npvalue(), expected @ [1, 2, 3], rtol=1e-5)
    assert np.allclose(b.npvalue(), expected @ [4, 5, 6], rtol=1e-5)
    c.backward()
    d.backward()
    assert np.allclose(W.grad_as_array(), np.tile([5.0, 7.0, 9.0], (3, 1)))
    with pytest.raises(ValueError, match="different graphs"):
        a + b


def test_graphs_die_by_reference_count_alone():
    model = ab.ParameterCollection()
    W, table = model.add_parameters((4, 4)), model.add_lookup_parameters((6, 4))
    lstm = ab.VanillaLSTMBuilder(1, 4, 4, model)
    gc.collect()
    gc.disable()
    try:
        with ab.Graph() as g:
            h = lstm.initial_state().transduce([table[i] for i in range(3)])[-1]
            loss = ab.sum_elems(ab.tanh(W * h) * 2.0)
        loss.backward()
        assert loss.value() is not None
        dead = weakref.ref(g)
        lstm.initial_state()  # the builder lets go of the old graph
        del g, h, loss
        assert dead() is None
        graph = weakref.ref(ab.renew_cg())
        loss = ab.sum_elems(W * table[1])
        loss.backward()
        ab.renew_cg()
        del loss
        assert graph() is None
    finally:
        gc.enable()

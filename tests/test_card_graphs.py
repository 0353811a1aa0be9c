"""Graphs on a card: what they ask of the driver, and what happens where one of its calls fails."""

import numpy as np
import pytest

pytest.importorskip("greenlet")

from fake_driver import FakeCublas, fake_card

import autobatch as ab
from autobatch.cuda import cublas, driver
from autobatch.kernels import _gemm
from autobatch.kernels._errors import DeviceError

# Called at the end only, when nobody can be told.
NEEDS_NO_ANSWER = {"cuMemFree_v2", "cuMemFreeHost", "cuEventDestroy_v2", "cuStreamDestroy_v2", "cuLibraryUnload"}
NEEDS_NO_ANSWER |= {"cuDevicePrimaryCtxRelease_v2"}


def minibatch(p):
    """A graph with a parameter (read once: the simulator is slow where many gradients meet), inputs, batches, the gradient."""
    ab.renew_cg()
    p.scale_gradient(0)  # a failed pass may have left some
    h = ab.cmult(p, ab.inputVector([1.0, 2.0, 3.0]))
    losses = [ab.sum_elems(ab.square(y)) for y in (ab.tanh(h), h, ab.cmult(h, ab.inputVector([3.0, 2.0, 1.0])))]
    loss = ab.esum(losses)
    value = loss.value()
    loss.backward()
    return value, p.grad_as_array().copy()


def model():
    collection = ab.ParameterCollection()
    p = collection.add_parameters(3)
    p.set_value([0.5, -1.0, 0.25])
    return p


def calls():
    """Functions of the driver, and how often two minibatches call them."""
    with fake_card() as card, cublas.use(None):
        ab.configure(device="cuda")
        p = model()
        minibatch(p)
        minibatch(p)
        ab.renew_cg()
        ab.configure(device="cpu")
        return {name: card.count[name] for name in driver.FORMS if card.count[name] and name not in NEEDS_NO_ANSWER}


def failing(name, nth, code):
    """Run minibatches of which one call fails. Returns the errors, and the results of the others."""
    failed, results = [], []
    with fake_card() as card, cublas.use(None):
        card.fail(name, code, nth)
        p = None
        for _ in range(4):
            try:
                ab.configure(device="cuda")
                p = p or model()
                results.append(minibatch(p))
            except DeviceError as error:
                failed.append(str(error))
                error.__traceback__ = None
        ab.renew_cg()
        ab.configure(device="cpu")
        del p
    return failed, results


def test_steady_state():
    """A minibatch asks for no memory, and copies what it must.

    To the card: inputs, forward table, the gradient that the host set to zero, the 1 of the loss, backward table. From there:
    the value and the gradient that were asked for.
    """
    with fake_card() as card, cublas.use(None):
        ab.configure(device="cuda")
        p = model()
        first = minibatch(p)
        minibatch(p)
        counted = ("cuMemAlloc_v2", "cuMemFree_v2", "cuMemHostAlloc", "cuMemFreeHost", "cuEventCreate", "cuLibraryLoadData")
        before = [card.count[name] for name in counted]
        card.calls.clear()
        again = minibatch(p)
        assert again[0] == first[0] and (again[1] == first[1]).all()
        assert [card.count[name] for name in counted] == before
        names = [name for name, _ in card.calls]
        assert [names.count(f"cuMemcpy{way}Async_v2") for way in ("HtoD", "DtoH", "DtoD")] == [5, 2, 0]
        assert names.count("cuStreamSynchronize") == 2
        ab.renew_cg()
        ab.configure(device="cpu")


def test_memory_of_the_card_is_told_and_given_back():
    with fake_card(), cublas.use(None):
        ab.configure(device="cuda")
        p = model()
        minibatch(p)
        held = ab.memory()
        assert held["values_used"] > 0 and held["card_pool"] == 0
        ab.renew_cg()
        kept = ab.memory()["card_pool"]
        assert kept >= held["values_reserved"] + held["gradients_reserved"]
        before = driver.device().held()
        ab.free_memory()
        assert ab.memory()["card_pool"] == 0
        freed = sum(before.values()) - sum(driver.device().held().values())
        assert freed == kept
        ab.configure(device="cpu")


def test_many_backward_passes_of_one_graph_ask_for_no_memory():
    with fake_card() as card, cublas.use(None):
        ab.configure(device="cuda")
        p = model()
        ab.renew_cg()
        loss = ab.sum_elems(ab.tanh(p))
        loss.backward()
        before, used = card.count["cuMemAlloc_v2"], driver.device().held()
        for _ in range(60):
            loss.backward()
        assert card.count["cuMemAlloc_v2"] == before and driver.device().held() == used
        place = ab.current_graph().execution.inputs
        assert place.backward.used < 4096
        ab.renew_cg()
        ab.configure(device="cpu")


def products(W, columns):
    """Products whose arguments lie side by side, apart, and anywhere; in one column or in several."""
    ab.renew_cg()
    xs = [
        ab.inputTensor(np.arange(4.0 * columns).reshape((4, columns) if columns > 1 else 4, order="F") * k)
        for k in (1, 3, 2, 5)
    ]
    ys = [W * x for x in (xs[2], xs[0], xs[3], xs[2])]
    zs = [W * ab.reshape(y, (4, columns) if columns > 1 else (4,)) for y in (ys[3], ys[0], ys[0])]
    loss = ab.esum([ab.sum_elems(ab.square(e)) for e in [*ys[1:2], *zs]])
    value = loss.value()
    loss.backward(full=True)
    found = [value, *(e.gradient() for e in (*xs, *ys)), W.grad_as_array().copy()]
    W.scale_gradient(0)
    return found


@pytest.mark.parametrize("columns", [1, 3])
def test_products_by_a_library(columns, monkeypatch):
    monkeypatch.setattr(_gemm, "CUBLAS", 2 * 4 * 4 * columns)  # of two items on
    collection = ab.ParameterCollection()
    W = collection.add_parameters((4, 4))
    W.set_value(np.arange(16.0).reshape(4, 4) % 5 - 2)
    expected = products(W, columns)
    with fake_card() as card:
        library = FakeCublas(card)
        with cublas.use(library):
            ab.configure(device="cuda")
            for got, wanted in zip(products(W, columns), expected, strict=True):
                np.testing.assert_array_equal(got, wanted)  # whole numbers: exact in any order
            assert {p[1:3] for p in library.products} == {(0, 0), (1, 0), (0, 1)} and len(library.products) >= 5
            assert "copy_rows" in card.launches()
            ab.renew_cg()
            ab.configure(device="cpu")


def test_any_call_may_fail():
    value, gradient = minibatch(model())
    for name, count in calls().items():
        for nth in sorted({1, 2, count // 2, count} - {0}):
            failed, results = failing(name, nth, 1)
            where = f"call {nth} of {name}: {failed}"
            assert len(failed) <= 1 and len(results) == 4 - len(failed), where
            if failed:
                assert "CUDA_ERROR_INVALID_VALUE" in failed[0], where
                expected = "row " if name == "cuLaunchKernel" else name
                assert failed[0].startswith(expected), where
            for got in results:
                np.testing.assert_allclose(got[0], value, rtol=1e-6, err_msg=where)
                np.testing.assert_allclose(got[1], gradient, rtol=1e-6, err_msg=where)

"""How many launches a graph is on a card: one for what can run together."""

import numpy as np
import pytest
from fake_driver import fake_card

import autobatch as ab
from autobatch.cuda import memory


def tree_program():
    """Return the parameters and a function that makes the loss of three trees, with cells for nodes."""
    rng = np.random.default_rng(0)
    model = ab.ParameterCollection()
    weights = {k: model.add_parameters((4, 8), init=rng.normal(size=(4, 8))) for k in ("i", "o", "u", "f_left", "f_right")}
    biases = {k: model.add_parameters((4,), init=rng.normal(size=4)) for k in "iouf"}
    words = model.add_lookup_parameters((9, 8), init=rng.normal(size=(9, 8)))

    @ab.cell
    def inner(h_left, c_left, h_right, c_right):
        e = ab.concatenate([h_left, h_right])
        i, o = (ab.logistic(biases[k] + weights[k] * e) for k in "io")
        u = ab.tanh(biases["u"] + weights["u"] * e)
        f_left, f_right = (ab.logistic(biases["f"] + weights[k] * e) for k in ("f_left", "f_right"))
        c = ab.cmult(i, u) + ab.cmult(f_left, c_left) + ab.cmult(f_right, c_right)
        return ab.cmult(o, ab.tanh(c)), c

    def visit(tree):
        if isinstance(tree, int):
            return words[tree][:4], words[tree][4:]
        return inner(*visit(tree[0]), *visit(tree[1]))

    def loss():
        ab.renew_cg()
        return ab.sum_elems(ab.esum([visit(tree)[0] for tree in ((0, 1), ((2, 3), (4, 1)), (((5, 6), 7), 8))]))

    return model, loss


@pytest.fixture
def on_a_card():
    with fake_card() as card:
        ab.configure(device="cuda")
        try:
            yield card
        finally:
            ab.configure(device="cpu")


def test_products_of_a_cell_are_one_launch_each_way(on_a_card):
    model, loss = tree_program()
    value = loss()
    got = value.value()
    forward = on_a_card.launches()
    on_a_card.done.clear()
    value.backward()
    memory.synchronize()
    backward = on_a_card.launches()
    on_a_card.check()
    grads = [p.grad_as_array() for p in (*model.parameters_list(), *model.lookup_parameters_list())]
    assert sum("parameter" in name and "gradient" not in name for name in forward) == 3, "five products a level"
    assert sum("gradient_x" in name for name in backward) == 3, "all five add to the gradient of e"
    ab.configure(device="cpu")
    same, loss = tree_program()
    value = loss()
    assert value.value() == pytest.approx(got, rel=1e-5)
    value.backward()
    for p, g in zip((*same.parameters_list(), *same.lookup_parameters_list()), grads, strict=True):
        np.testing.assert_allclose(g, p.grad_as_array(), rtol=2e-5, atol=2e-5)


def test_gradients_of_one_node_for_many_arguments_are_one_launch(on_a_card):
    inputs = [ab.inputTensor([float(k), 1.0]) for k in range(9)]
    loss = ab.sum_elems(ab.esum(inputs))
    loss.value()
    on_a_card.done.clear()
    loss.backward(full=True)
    assert [e.gradient().tolist() for e in inputs] == [[1, 1]] * 9
    assert len([name for name in on_a_card.launches() if "esum" in name]) == 1

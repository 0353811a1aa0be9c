"""Choosing the device, and what happens where it cannot do what it should. The card is that of `fake_driver.py`."""

import numpy as np
import pytest
from fake_driver import fake_card

import autobatch as ab
from autobatch import dynet_config
from autobatch.cuda import driver
from autobatch.graph import SETTINGS


@pytest.fixture(autouse=True)
def on_the_processor_again():
    yield
    ab.configure(device="cpu")


def no_card_here():
    try:
        driver.find()
    except ab.DeviceError:
        return True
    return False


without_card = pytest.mark.skipif(not no_card_here(), reason="there is a driver on this machine")


@without_card
@pytest.mark.parametrize(
    "ask",
    [lambda: ab.configure(device="cuda"), lambda: dynet_config.start(["--dynet-gpu"]), lambda: ab.configure(device="GPU:0")],
)
def test_asking_for_a_card_that_is_not_there_says_what_is_missing_and_changes_nothing(ask):
    with pytest.raises(ab.DeviceError, match=r"^device 'cuda' needs NVIDIA's driver, and .* is not on this machine\n  try"):
        ask()
    assert ab.configured()["device"] == "cpu" and not dynet_config.gpu()
    assert ab.available_devices() == [b"CPU"]


def test_a_device_without_meaning_is_named():
    with pytest.raises(ab.ArgumentError, match=r"^device 'tpu' is unknown\n  expected  'cpu' or 'cuda'"):
        ab.configure(device="tpu")


@without_card
def test_the_environment_chooses_and_fails_where_a_graph_is_evaluated(monkeypatch):
    monkeypatch.setattr(SETTINGS, "device", "gpu:0")  # as AUTOBATCH_DEVICE=GPU:0 does
    x = ab.inputTensor([1.0, 2.0])
    with pytest.raises(ab.DeviceError, match="needs NVIDIA's driver"):
        ab.sum_elems(x).value()
    monkeypatch.setattr(SETTINGS, "device", "cpu")
    assert ab.sum_elems(x).value() == 3


def test_dynets_names_choose_the_card():
    with fake_card():
        dynet_config.apply({"devices": "GPU:0"})
        assert dynet_config.gpu() and ab.configured()["device"] == "cuda"
        assert ab.available_devices() == [b"CPU", b"GPU:0"]
        assert ab.get_device_info("GPU:0").type == "GPU"
        ab.renew_cg()
        x = ab.inputTensor([1.0, 2.0])
        assert ab.sum_elems(x).value() == 3 and ab.cg().execution.machine.name == "cuda"
        dynet_config.set_gpu(False)
        assert not dynet_config.gpu()
        with pytest.raises(ab.DeviceError, match=r"^devices GPU:3: several cards, or another one"):
            dynet_config.apply({"devices": "GPU:3"})


def test_a_graph_without_room_on_the_card_can_go_to_the_processor():
    with fake_card(room=8 << 20) as card:
        ab.configure(device="cuda")
        ab.renew_cg()
        x = ab.inputTensor(np.ones(1 << 18))
        y = ab.esum([ab.tanh(x * float(k)) for k in range(40)])
        loss = ab.sum_elems(y)
        with pytest.raises(ab.DeviceMemoryError, match=r"bytes|MB|MiB"):
            loss.value()
        ab.configure(device="cpu")
        expected = sum(np.tanh(np.float32(k)) for k in range(40)) * (1 << 18)
        assert loss.value() == pytest.approx(expected, rel=1e-4)
        card.check()


def test_no_room_for_gradients_leaves_values_to_be_computed_again():
    with fake_card() as card:
        ab.configure(device="cuda")
        model = ab.ParameterCollection()
        W = model.add_parameters((3, 3), init=np.eye(3))
        ab.renew_cg()
        loss = ab.sum_elems(ab.tanh(W * ab.inputTensor([1.0, 2.0, 3.0])))
        value = loss.value()
        card.fail("cuMemAlloc_v2", 2)
        card.fail("cuMemAlloc_v2", 2, 2)
        with pytest.raises(ab.DeviceMemoryError):
            loss.backward()
        assert loss.value() == value
        loss.backward()
        assert W.grad_as_array().any()


def test_the_first_nan_is_found_on_a_card():
    with fake_card():
        ab.configure(device="cuda", check_nan=True)
        try:
            ab.renew_cg()
            x = ab.inputTensor([1.0, -1.0])
            with pytest.raises(ab.NumericalError, match="log"):
                ab.sum_elems(ab.tanh(ab.log(x))).value()
        finally:
            ab.configure(check_nan=False)


def test_a_program_may_change_the_device_at_any_time():
    """Parameters, gradients and moments go where they are needed."""

    def train(devices):
        model = ab.ParameterCollection()
        W = model.add_parameters((2, 2), init=np.eye(2))
        E = model.add_lookup_parameters((4, 2), init=np.arange(8.0).reshape(4, 2) / 8)
        trainer = ab.AdamTrainer(model)
        for k, device in enumerate(devices):
            ab.configure(device=device)
            ab.renew_cg()
            loss = ab.sum_elems(ab.tanh(W * E[k % 3]) - ab.inputTensor([0.5, k]))
            loss.value()
            loss.backward()
            trainer.update()
        ab.configure(device="cpu")
        return W.as_array(), E.as_array()

    expected = train(["cpu"] * 5)
    with fake_card() as card:
        got = train(["cpu", "cuda", "cuda", "cpu", "cuda"])
        card.check()
    for e, g in zip(expected, got, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)


def test_memory_of_the_card_is_given_back():
    with fake_card() as card:
        ab.configure(device="cuda")
        ab.renew_cg()
        ab.sum_elems(ab.inputTensor(np.ones(100))).value()
        assert ab.memory()["values_used"] > 0
        ab.renew_cg()
        held = len(card.alive["memory"])
        ab.free_memory()
        assert len(card.alive["memory"]) < held

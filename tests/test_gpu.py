"""The laws of `test_cuda_laws.py` on a real card, all ops there against their references, and memory: `pytest -m gpu`.

AUTOBATCH_FAKE_CARD=1 takes the fake card instead, to see that the tests themselves are sound.
"""

import os

import numpy as np
import pytest
import test_cuda_laws
from fake_driver import fake_card
from hypothesis import given
from laws import batched_equals_alone, forward_equals_reference, gradient_equals_differences
from strategies import examples, plans
from test_cuda_laws import both_dtypes, every_op, on

import autobatch as ab
from autobatch.cuda import driver
from autobatch.kernels._errors import DeviceError, DeviceMemoryError

pytestmark = pytest.mark.gpu
FAKE = os.environ.get("AUTOBATCH_FAKE_CARD", "0") not in ("", "0")

# The same functions: here they find the fixture `device` of this module.
globals().update({name: law for name, law in vars(test_cuda_laws).items() if name.startswith("test_")})


@pytest.fixture(autouse=True)
def device():
    """Have a card."""
    if FAKE:
        with fake_card() as fake:
            yield
            ab.configure(device="cpu")
            ab.renew_cg()
            fake.check()
        return
    try:
        driver.device()
    except DeviceError as error:
        pytest.fail(str(error))
    yield
    ab.configure(device="cpu")
    ab.renew_cg()


@every_op
@both_dtypes
def test_op_equals_its_reference(op, dtype):
    """Values against the reference in float64; gradients in float64 against its differences, batches against single calls."""

    @examples(5)
    @given(plans(op, 4))
    def check(plan):
        on("cuda", lambda: forward_equals_reference(plan, dtype))
        on("cuda", lambda: batched_equals_alone(plan, dtype))
        if dtype == "float64":
            on("cuda", lambda: gradient_equals_differences(plan))

    check()


def test_memory_comes_back():
    """Graphs of one size take no more memory of the card from the third one on."""

    def program():
        model, free = ab.ParameterCollection(), []
        W = model.add_parameters((4, 4))
        for _ in range(6):
            ab.renew_cg()
            x = ab.inputVector([1.0, 2.0, 3.0, 4.0])
            for _ in range(5):
                x = ab.tanh(W * x)
            ab.squared_norm(x).backward()
            free.append(driver.device().room()[0])
        assert len(set(free[2:])) == 1, free

    on("cuda", program)


def test_more_than_there_is_leaves_the_graph_usable_on_the_processor():
    n = 1 << 26 if not FAKE else 1 << 20
    with pytest.raises(DeviceMemoryError, match="has no room for"):
        on("cuda", lambda: too_much(n))
    x = ab.inputVector(np.ones(3))
    assert ab.squared_norm(x).value() == 3


def too_much(n):
    """Ask for more values than any card holds: each one a vector of n numbers."""
    x = ab.inputVector(np.ones(n, np.float32))
    count = driver.device().room()[1] // (4 * n) + 2
    nodes = [x]
    for _ in range(count):
        nodes.append(ab.tanh(nodes[-1]))
    return nodes[-1].npvalue()

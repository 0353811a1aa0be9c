"""Numbers on a card go to other libraries and come from them. The card is the fake one, whose memory NumPy can read."""

import ctypes
import gc

import numpy as np
import pytest

pytest.importorskip("greenlet")

from fake_driver import fake_card

import autobatch as ab
from autobatch.cuda import cublas, driver, memory
from autobatch.kernels._errors import DeviceError


class DLTensor(ctypes.Structure):
    _fields_ = (
        *(("data", ctypes.c_void_p), ("kind", ctypes.c_int32), ("number", ctypes.c_int32), ("ndim", ctypes.c_int32)),
        *(("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)),
        *(("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)), ("offset", ctypes.c_uint64)),
    )


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", DELETER))


class Versioned(ctypes.Structure):
    _fields_ = (
        *(("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("context", ctypes.c_void_p), ("deleter", DELETER)),
        *(("flags", ctypes.c_uint64), ("tensor", DLTensor)),
    )


new = ctypes.pythonapi.PyCapsule_New
new.argtypes, new.restype = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p), ctypes.py_object
valid = ctypes.pythonapi.PyCapsule_IsValid
valid.argtypes, valid.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
pointer = ctypes.pythonapi.PyCapsule_GetPointer
pointer.argtypes, pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
rename = ctypes.pythonapi.PyCapsule_SetName
rename.argtypes, rename.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
PLAIN, VERSIONED = b"dltensor", b"dltensor_versioned"
USED = {PLAIN: b"used_dltensor", VERSIONED: b"used_dltensor_versioned"}
LENT = []  # structures of capsules; a callback of ctypes must outlive its own call


def consumed(capsule):
    """Take a capsule as another library does; return its structure and the numbers, in memory of the fake card."""
    name = VERSIONED if valid(capsule, VERSIONED) else PLAIN
    managed = (Versioned if name == VERSIONED else Managed).from_address(pointer(capsule, name))
    rename(capsule, USED[name])
    t = managed.tensor
    dtype = np.dtype(f"{ {0: 'i', 1: 'u', 2: 'f'}[t.code] }{t.bits // 8}")
    strides = [t.strides[k] * dtype.itemsize for k in range(t.ndim)]
    return managed, there(t.data + t.offset, tuple(t.shape[: t.ndim]), dtype, strides)


def there(address, shape, dtype, strides=None):
    """An array of memory of the fake card."""
    form = {"data": (address, False), "shape": shape, "typestr": np.dtype(dtype).str, "strides": strides, "version": 3}
    return np.asarray(type("Form", (), {"__array_interface__": form | {"strides": strides and tuple(strides)}})())


@pytest.fixture
def card():
    with fake_card() as fake, cublas.use(None):
        ab.configure(device="cuda")
        ab.renew_cg()
        yield fake
        ab.renew_cg()
        ab.configure(device="cpu")
        gc.collect()
        LENT.clear()


def tensors(card):
    """Bytes held by tensors that went out."""
    return driver.device().held().get("tensors", 0)


class Theirs:
    """An array of another library on the card, column-major, row-major or with gaps, known through the one or the other."""

    def __init__(self, array, how="dlpack", stream=1, version=3, number=0, order="C", kind=2):
        array = np.asarray(array)
        if order == "gaps":
            base = np.full([2 * n for n in array.shape], 77, array.dtype)
            given = base[tuple(slice(1, None, 2) for _ in array.shape)]
        else:
            base = given = np.empty(array.shape, array.dtype, order=order)
        given[...] = array
        self.block = memory.Block(base.nbytes, "theirs")
        flat = np.frombuffer((ctypes.c_uint8 * base.nbytes).from_address(base.ctypes.data), np.uint8)
        memory.upload(self.block.address, flat)
        memory.synchronize()
        address = self.block.address + given.ctypes.data - base.ctypes.data
        self.numbers = there(address, given.shape, given.dtype, given.strides)
        self.deleted, self.streams, self.kind, self.number = 0, [], kind, number
        if how == "dlpack":
            self.__class__ = Capsules
        else:
            contiguous = given.flags.c_contiguous
            self.__cuda_array_interface__ = {
                **{"shape": given.shape, "typestr": given.dtype.str, "data": (address, False), "version": version},
                **({} if contiguous else {"strides": given.strides}),
                **({} if version < 3 else {"stream": stream}),
            }


class Capsules(Theirs):
    def __dlpack_device__(self):
        return self.kind, self.number

    def __dlpack__(self, *, stream=None):
        self.streams.append(stream)
        n, size = self.numbers, self.numbers.itemsize
        self.managed = m = Managed()
        self.kept = (ctypes.c_int64 * n.ndim)(*n.shape), (ctypes.c_int64 * n.ndim)(*(s // size for s in n.strides))
        m.tensor.data, m.tensor.kind, m.tensor.number, m.tensor.ndim = n.ctypes.data, self.kind, self.number, n.ndim
        m.tensor.code, m.tensor.bits, m.tensor.lanes = {"i": 0, "u": 1, "f": 2}[n.dtype.kind], 8 * size, 1
        m.tensor.shape, m.tensor.strides = (ctypes.cast(k, ctypes.POINTER(ctypes.c_int64)) for k in self.kept)
        m.deleter = DELETER(self._delete)
        LENT.append(m)
        return new(ctypes.addressof(m), PLAIN, None)

    def _delete(self, _):
        assert (self.managed.tensor.kind, self.managed.tensor.number) == (self.kind, self.number)  # as it was made
        self.deleted += 1


# Out ------------------------------------------------------------------------------------------------------------------

X = np.arange(12.0).reshape(2, 3, 2)


def test_a_tensor_stays_on_the_card(card):
    t = (2 * ab.inputTensor(X, batched=True)).tensor_value()
    assert card.count["cuMemcpyDtoHAsync_v2"] == 0 and tensors(card) == X.size * 4
    ab.renew_cg()
    for k in range(3):
        (ab.inputTensor(np.full((2, 3, 2), k), batched=True) + 1).value()  # in the memory of the first graph
    form = t.__cuda_array_interface__
    assert form["shape"] == (2, 3, 2) and form["strides"] == (4, 8, 24) and form["typestr"] == "<f4" and form["version"] == 3
    assert form["stream"] == driver.device().stream
    np.testing.assert_array_equal(there(form["data"][0], form["shape"], "f4", form["strides"]), 2 * X)
    np.testing.assert_array_equal(t.as_numpy(), 2 * X)
    assert t.as_numpy().dtype == np.float32 and np.array(t, dtype=int).dtype == int and np.asarray(t).shape == (2, 3, 2)
    assert "on the card" in repr(t) and t.__dlpack_device__() == (2, 0) and isinstance(t, ab.Tensor)
    np.testing.assert_array_equal(t.argmax(1).as_numpy()[0, 0], [2, 2])
    del t
    assert tensors(card) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("version", [None, (1, 0)])
def test_a_capsule(card, dtype, version):
    with ab.Graph(dtype=dtype):
        t = ab.inputTensor(X[..., 0]).tensor_value()
    for copy in (None, True):
        capsule = t.__dlpack__(stream=1, max_version=version, copy=copy)
        assert not card._queue  # waited for
        managed, numbers = consumed(capsule)
        assert isinstance(managed, Versioned) == (version is not None)
        assert (managed.tensor.kind, managed.tensor.number, managed.tensor.lanes) == (2, 0, 1)
        assert (
            numbers.dtype == dtype and numbers.shape == (2, 3) and numbers.strides == (numbers.itemsize, 2 * numbers.itemsize)
        )
        np.testing.assert_array_equal(numbers, X[..., 0])
        assert version is None or managed.flags == (2 if copy else 0)
        assert (numbers.ctypes.data == t.__cuda_array_interface__["data"][0]) == (copy is None)
        assert tensors(card) == numbers.nbytes * (2 if copy else 1)
        managed.deleter(ctypes.addressof(managed))
        assert tensors(card) == numbers.nbytes
        del capsule
    del t
    assert tensors(card) == 0


def test_memory_goes_when_the_last_of_tensor_and_capsule_is_gone(card):
    t = ab.inputVector([1.0, 2.0]).tensor_value()
    unused = t.__dlpack__()
    managed, numbers = consumed(capsule := t.__dlpack__(stream=-1))
    del t, unused
    assert tensors(card) == 8
    memory.synchronize()
    np.testing.assert_array_equal(numbers, [1, 2])
    managed.deleter(ctypes.addressof(managed))
    assert tensors(card) == 0
    del capsule
    t = ab.inputVector([1.0, 2.0]).tensor_value()
    unused = t.__dlpack__()
    del t
    assert tensors(card) == 8
    del unused
    assert tensors(card) == 0


def test_who_waits_for_the_stream(card):
    t = ab.inputVector([1.0, 2.0]).tensor_value()
    for stream in (-1, driver.device().stream):
        t.__dlpack__(stream=stream)
        assert card._queue
    for stream in (None, 1, 2, 0x7FFF0000):
        t = ab.inputVector([1.0, 2.0]).tensor_value()
        t.__dlpack__(stream=stream)
        assert not card._queue
    for stream in (0, -2, 1.5, True):
        with pytest.raises(BufferError, match="expected  -1, 1, 2, or the handle"):
            t.__dlpack__(stream=stream)


def test_a_tensor_wanted_elsewhere(card):
    t = ab.inputTensor(X[..., 0]).tensor_value()
    managed, numbers = consumed(capsule := t.__dlpack__(dl_device=(1, 0)))
    assert (managed.tensor.kind, managed.tensor.number) == (1, 0)
    np.testing.assert_array_equal(numbers, X[..., 0])
    managed.deleter(ctypes.addressof(managed))
    del capsule
    assert consumed(t.__dlpack__(dl_device=(2, 0), stream=1))[0].tensor.kind == 2
    for how in ({"dl_device": (1, 0), "copy": False}, {"dl_device": (2, 1)}, {"dl_device": (10, 0)}):
        with pytest.raises(BufferError, match="numbers on card 0 are wanted on device"):
            t.__dlpack__(**how)


def test_on_the_cpu_nothing_is_of_a_card():
    p = ab.ParameterCollection().add_parameters((2, 3))
    for thing in (ab.inputVector([1.0]).tensor_value(), p):
        assert not hasattr(thing, "__cuda_array_interface__") and thing.__dlpack_device__() == (1, 0)
    view = np.from_dlpack(p)
    view[1, 2] = 7
    assert p.as_array()[1, 2] == 7 and view.shape == (2, 3)
    with pytest.raises(ab.OperandError, match="inputTensor: an expression"):
        ab.inputTensor(p)


# In -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["dlpack", "interface"])
@pytest.mark.parametrize("order", ["C", "F", "gaps"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u1"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_inputs_from_the_card(card, how, order, dtype, device):
    ab.configure(device=device)
    theirs = Theirs(X.astype(dtype), how, order=order)
    before = card.count["cuMemcpyDtoHAsync_v2"], card.count["cuMemcpyDtoDAsync_v2"]
    x = ab.inputTensor(theirs, batched=True)
    assert x.dim() == ((2, 3), 2)
    by_the_host = device == "cpu" or order != "F" or dtype != "f4"
    after = card.count["cuMemcpyDtoHAsync_v2"], card.count["cuMemcpyDtoDAsync_v2"]
    assert after == (before[0] + by_the_host, before[1] + (not by_the_host))
    theirs.numbers[...] = 55  # it is a copy
    y, z = 2 * x, 2 * ab.inputVector([1.0])
    np.testing.assert_array_equal(y.npvalue(), 2 * X)
    assert z.value() == 2
    if how == "dlpack":
        assert theirs.streams == [driver.device().stream] and theirs.deleted == 1
    else:
        assert card.others == [1]
    ab.renew_cg()


def test_vectors_lists_and_flat_numbers_from_the_card(card):
    numbers = np.array([1, 2, 3], "f4")
    theirs = Theirs(numbers)
    before = card.count["cuMemcpyDtoHAsync_v2"]
    x = ab.inputVector(theirs)
    assert card.count["cuMemcpyDtoHAsync_v2"] == before
    assert (2 * x).value() == [2, 4, 6]
    x.set([4, 5, 6])
    assert (2 * x).value() == [8, 10, 12]
    x.set(theirs)
    assert (2 * x).value() == [2, 4, 6]
    both = ab.inputTensor([theirs, Theirs(2 * numbers)])
    assert both.dim() == ((3,), 2)
    np.testing.assert_array_equal(both.npvalue(), np.stack([numbers, 2 * numbers], axis=1))
    np.testing.assert_array_equal(ab.inputTensorTranspose(theirs, (1, 3)).npvalue(), [[1, 2, 3]])
    fixed = ab.inputTensor(theirs)
    with pytest.raises(ab.ArgumentError, match="this input is fixed"):
        fixed.set([1, 2, 3])


def test_inputs_on_the_card_in_all_that_a_graph_goes_through(card):
    x = ab.inputVector(Theirs(np.array([1, 2], "f4")))
    h = ab.inputVector([10.0, 20.0])
    assert (x + h).value() == [11, 22]
    assert ab.sum_elems(x + h).value(recalculate=True) == 33
    ab.cg_checkpoint()
    y = ab.inputVector(Theirs(np.array([3, 4], "f4")))
    assert (x + y).value() == [4, 6]
    ab.cg_revert()
    y = ab.inputVector([5.0, 6.0])  # under the number of one on the card
    assert (x + y).value() == [6, 8]
    p = ab.ParameterCollection().add_parameters(2)
    loss = ab.dot_product(p, x)
    loss.value()
    loss.backward()
    np.testing.assert_array_equal(p.grad_as_array(), [1, 2])


def test_an_input_of_the_card_and_a_graph_of_the_cpu(card):
    x = ab.inputVector(Theirs(np.array([1, 2], "f4")))
    z = ab.inputVector(Theirs(np.array([5, 6], "f4")))
    z.set([7, 8])
    ab.configure(device="cpu")
    assert (2 * x).value() == [2, 4] and (2 * z).value() == [14, 16]
    x.set([3, 4])
    assert (2 * x).value() == [6, 8]
    assert (2 * ab.inputVector(Theirs(np.array([9, 9], "f4")))).value() == [18, 18]


def test_with_check_nan_inputs_come_by_the_host(card):
    ab.configure(check_nan=True)
    ab.renew_cg()
    before = card.count["cuMemcpyDtoHAsync_v2"]
    ab.inputVector(Theirs(np.array([1, 2], "f4")))
    assert card.count["cuMemcpyDtoHAsync_v2"] == before + 1
    ab.configure(check_nan=False)


@pytest.mark.parametrize("stream, version, waits", [(1, 3, [1]), (2, 3, [2]), (None, 3, []), (None, 2, [1])])
def test_the_stream_of_an_interface_is_waited_for(card, stream, version, waits):
    assert ab.inputVector(Theirs(np.array([1, 2], "f4"), "interface", stream, version)).value() == [1, 2]
    assert card.others == waits


def test_a_tensor_of_ours_goes_in_again(card):
    x = 2 * ab.inputTensor(X, batched=True)
    before = card.count["cuMemcpyDtoHAsync_v2"]
    y = ab.inputTensor(x.tensor_value(), batched=True)
    assert card.count["cuMemcpyDtoHAsync_v2"] == before
    np.testing.assert_array_equal(y.npvalue(), 2 * X)


def test_what_cannot_come_in(card):
    numbers = np.array([1, 2], "f4")
    with pytest.raises(DeviceError, match="a process uses one card"):
        ab.inputVector(Theirs(numbers, number=1))
    with pytest.raises(ab.ShapeError, match=r"inputTensor: shape \(2, 0\)"):
        ab.inputTensor(Theirs(np.empty((2, 0), "f4"), "interface"))
    with pytest.raises(ab.ShapeError, match="an input without numbers"):
        ab.inputVector(Theirs(np.empty(0, "f4"), "interface"))
    with pytest.raises(ab.OperandError, match="without dims"):
        ab.inputTensor(Theirs(np.float32(1)))
    with pytest.raises(ab.OperandError, match=r"inputVector: a.*Capsules\n  expected  a list of numbers"):
        ab.inputVector(Theirs(X))
    with pytest.raises(ab.OperandError, match="stream 0 in __cuda_array_interface__"):
        ab.inputVector(Theirs(numbers, "interface", stream=0))
    with pytest.raises(ab.OperandError, match="no array of numbers"):
        ab.inputVector(Theirs(numbers.astype("c8"), "interface"))
    masked = Theirs(numbers, "interface")
    masked.__cuda_array_interface__["mask"] = masked
    with pytest.raises(ab.OperandError, match="inputVector: Theirs on a card cannot be taken: numbers with a mask"):
        ab.inputVector(masked)

    class Refuses(Theirs):
        @property
        def __cuda_array_interface__(self):
            raise RuntimeError("it requires a gradient; use detach()")

        def __init__(self):
            pass

    with pytest.raises(ab.OperandError, match="Refuses on a card cannot be taken: it requires a gradient"):
        ab.inputTensor(Refuses())

    @ab.cell
    def inside(x):
        return x + ab.inputVector(Theirs(numbers))

    with pytest.raises(ab.TraceError, match="it makes an input of its own"):
        inside(ab.inputVector([1.0, 2.0])).value()


# Parameters -----------------------------------------------------------------------------------------------------------


def test_values_of_a_parameter_from_the_card(card):
    p = ab.ParameterCollection().add_parameters((2, 3))
    for order in ("C", "F"):
        p.set_value(Theirs(X[..., 0], order=order))
        np.testing.assert_array_equal((1 * p).npvalue(), X[..., 0])
        p.set_value(np.zeros((2, 3)))
    with pytest.raises(ab.ShapeError, match="set_value: the array does not fit"):
        p.set_value(Theirs(X))
    q = ab.ParameterCollection().parameters_from_numpy(Theirs(X))
    np.testing.assert_array_equal(q.as_array(), X)


@pytest.mark.parametrize("used", [False, True])
def test_a_view_of_a_parameter(card, used):
    p = ab.ParameterCollection().add_parameters((2, 3))
    p.set_value(X[..., 0])
    if used:
        (1 * p).value()
    managed, view = consumed(capsule := p.__dlpack__())
    form = p.__cuda_array_interface__
    assert p.__dlpack_device__() == (managed.tensor.kind, managed.tensor.number) == (2, 0)
    assert form["data"][0] == view.ctypes.data and form["strides"] == view.strides == (4, 8)
    memory.synchronize()
    np.testing.assert_array_equal(view, X[..., 0])
    for k in range(3):  # what is written counts, also after somebody has read
        view[0, 0] = 10 + k
        assert (1 * p).npvalue()[0, 0] == 10 + k and p.as_array()[0, 0] == 10 + k
        ab.renew_cg()
    p.set_value(X[..., 1])  # the host is the newer side, until the next graph
    np.testing.assert_array_equal(p.as_array(), X[..., 1])
    np.testing.assert_array_equal((1 * p).npvalue(), X[..., 1])
    np.testing.assert_array_equal(view, X[..., 1])
    ab.renew_cg()
    del p
    gc.collect()
    np.testing.assert_array_equal(view, X[..., 1])  # its memory is kept
    managed.deleter(ctypes.addressof(managed))
    del capsule


def test_a_trainer_and_a_view(card):
    model = ab.ParameterCollection()
    p = model.add_parameters(2)
    p.set_value([1.0, 2.0])
    _, view = consumed(p.__dlpack__())
    view[:] = 3, 4
    trainer = ab.SimpleSGDTrainer(model, 0.5)
    loss = ab.sum_elems(p)
    loss.value()
    loss.backward()
    trainer.update()
    memory.synchronize()
    np.testing.assert_allclose(view, [2.5, 3.5])
    np.testing.assert_allclose(p.as_array(), [2.5, 3.5])


# Faults that were found on the way ------------------------------------------------------------------------------------


def test_set_is_seen_by_a_card(card):
    x = ab.inputTensor([1.0, 2.0], reusable_expr=True)
    y = 2 * x
    assert y.value() == [2, 4]
    x.set([3, 4])
    assert y.value() == [6, 8]


def test_an_input_after_a_checkpoint_is_not_that_of_before(card):
    assert ab.inputVector([1.0, 2.0]).value() == [1, 2]
    for k in range(3):
        ab.cg_checkpoint()
        assert ab.inputVector([3.0, 4.0 + k]).value() == [3, 4 + k]
        ab.cg_revert()


# On a real card -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_pytorch():
    import torch

    ab.configure(device="cuda")
    ab.renew_cg()
    source = torch.arange(6, dtype=torch.float32, device="cuda").reshape(3, 2)
    x = ab.inputTensor(source.T, batched=True)  # three columns; column-major, so from card to card
    y = 2 * x
    out = torch.from_dlpack(y.tensor_value())
    assert out.is_cuda and out.shape == (2, 3)
    assert torch.equal(out, 2 * source.T) and torch.equal(torch.as_tensor(y.tensor_value(), device="cuda"), 2 * source.T)
    np.testing.assert_array_equal(ab.inputTensor(source).npvalue(), source.cpu().numpy())
    with pytest.raises(ab.OperandError, match="detach"):
        ab.inputTensor(source.clone().requires_grad_())
    big = torch.ones(1 << 22, device="cuda")
    for k in range(5):  # torch has not finished when it hands them over
        for _ in range(20):
            big = big.sin().cos()
        big.fill_(k)
        assert ab.inputVector(big[:1000].clone()).npvalue().max() == k
    p = ab.ParameterCollection().add_parameters((2, 3))
    p.set_value(source.T)
    torch.from_dlpack(p).mul_(3)
    torch.cuda.synchronize()
    np.testing.assert_array_equal((1 * p).npvalue(), 3 * source.T.cpu().numpy())
    np.testing.assert_array_equal(p.as_array(), 3 * source.T.cpu().numpy())

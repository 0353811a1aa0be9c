"""What a bad call says, when, and of which type; and that it changes nothing.

Types are pinned twice: DyNet's, which programs catch, and the project's own. Texts are pinned for the errors that people meet
most.
"""

import copy
import gc
import pickle
import traceback
import types
import warnings

import numpy as np
import pytest

import autobatch as ab
from autobatch.kernels._errors import (
    ArgumentError,
    ConstructionError,
    DeviceError,
    EmptyListError,
    IndexRangeError,
    NegativeIndexError,
    NumericalError,
    OperandError,
    ShapeError,
    StaleExpressionError,
)


@pytest.fixture
def w():
    """Expressions of many shapes in the current graph, parameters, and a second graph."""
    w = types.SimpleNamespace()
    w.model = ab.ParameterCollection()
    w.W, w.b = w.model.add_parameters((10, 20), name="W"), w.model.add_parameters((10,), name="b")
    w.one = w.model.add_parameters((1,))
    w.E = w.model.add_lookup_parameters((5, 3), name="E")
    w.lstm = ab.LSTMBuilder(1, 3, 4, w.model)
    w.tree = ab.NaryTreeLSTMBuilder(2, 1, 3, 4, w.model)
    w.softmax = ab.ClassFactoredSoftmaxBuilder.from_spec((3, [(0,), (1, 2)], True), w.model)
    w.v, w.u = ab.inputVector([1.0, 2.0, 3.0]), ab.inputVector([1.0, 2.0])
    w.x30 = ab.inputVector([0.0] * 30)
    w.M, w.s = ab.inputTensor(np.ones((2, 3))), ab.scalarInput(1.0)
    w.cube = ab.inputTensor(np.ones((2, 2, 2)))
    w.b2, w.b3 = (ab.inputTensor(np.ones((3, n)), batched=True) for n in (2, 3))
    w.vec, w.fixed, w.row = ab.vecInput(3), ab.inputTensor(np.ones(3)), w.E[1]
    w.state = w.lstm.initial_state()
    w.model64 = ab.ParameterCollection(dtype="float64")
    w.p64, w.e64 = w.model64.add_parameters((3,)), w.model64.add_lookup_parameters((5, 3))
    with ab.Graph() as w.other:
        w.foreign = ab.inputVector([1.0, 2.0, 3.0])
    ab.cg_checkpoint()
    w.reverted = ab.tanh(w.v)
    ab.cg_revert()
    return w


def state_of(graph):
    """Everything a failed call could have left behind in a graph."""
    return (
        list(graph.recorded_types),
        list(graph.recorded_args),
        dict(graph.numbers),
        dict(graph.zeros),
        dict(graph.kept),
        0 if graph.execution is None else graph.execution.done,
    )


def outside(error):
    """The last line of the traceback that belongs to the caller."""
    return [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__][-1]


def check(call, kinds, text=None, graphs=()):
    """`call()` raises an error of all these types, with this text, from its own line, and changes no graph."""
    graphs = (ab.current_graph(), *graphs)
    before = [state_of(g) for g in graphs]
    with pytest.raises(kinds[0]) as caught:
        call()
    error = caught.value
    for kind in kinds:
        assert isinstance(error, kind), f"{type(error).__mro__} lacks {kind}"
    if text is not None:
        assert str(error) == text
    assert str(error)[0] not in " \n" and str(error) == str(error).strip()
    assert outside(error).lineno == call.__code__.co_firstlineno or outside(error).name == call.__code__.co_name
    assert [state_of(g) for g in graphs] == before
    assert "During handling of the above exception" not in "".join(traceback.format_exception(error))
    return error


SHAPE, EMPTY = (ValueError, ShapeError), (AssertionError, ValueError, EmptyListError)
RANGE, INDEX = (ValueError, IndexError, IndexRangeError), (IndexError, ValueError, IndexRangeError)
NEGATIVE, OPERAND = (OverflowError, ValueError, NegativeIndexError), (TypeError, OperandError)
ODD, VALUE = (NotImplementedError, TypeError, OperandError), (ValueError, ArgumentError)
STALE, STALE_OPERAND = (RuntimeError, StaleExpressionError), (ValueError, RuntimeError, StaleExpressionError)


class NoCollection:
    """What `save` cannot write."""

    @classmethod
    def from_spec(cls, spec, model):
        return cls()


CASES = {
    # Shapes
    "affine_transform: columns": (
        lambda w: ab.affine_transform([w.b, w.W, w.x30]),
        SHAPE,
        "affine_transform: W1 has 20 columns but x1 has 30 rows\n"
        "  got       (10,)  (10,20)  (30,)\n"
        "  expected  b (r,) or (r,c), then pairs W (r,k), x (k,) or (k,c)\n"
        "  try       W1 of shape (10,30)",
    ),
    "affine_transform: even": (
        lambda w: ab.affine_transform([w.b, w.W]),
        SHAPE,
        "affine_transform: 2 arguments\n  expected  an odd number of them: b, then pairs of W and x",
    ),
    "affine_transform: bias": (lambda w: ab.affine_transform([w.v, w.M, w.v]), SHAPE, None),
    "affine_transform: bias columns": (lambda w: ab.affine_transform([w.M, w.M, w.v]), SHAPE, None),
    "product": (
        lambda w: w.W * w.v,
        SHAPE,
        "matmul: the left side has 20 columns but the right side has 3 rows\n"
        "  got       (10,20)  (3,)\n"
        "  expected  (m,k) * (k,n) -> (m,n)   (m,k) * (k,) -> (m,)\n"
        "  try       transpose on one side",
    ),
    "product of vectors": (
        lambda w: w.v * w.v,
        SHAPE,
        "matmul: the left side has 1 column but the right side has 3 rows\n"
        "  got       (3,)  (3,)\n"
        "  expected  (m,k) * (k,n) -> (m,n)   (m,k) * (k,) -> (m,)\n"
        "  try       cmult for a product number by number, dot_product for Σ x∘y",
    ),
    "product of ranks": (lambda w: w.cube * w.v, SHAPE, None),
    "sum": (
        lambda w: w.v + w.u,
        SHAPE,
        "add: dim 0 is 3 and 2\n"
        "  got       (3,)  (2,)\n"
        "  expected  in each dim equal sizes, or 1 (missing dims count as 1, at the end)",
    ),
    "difference": (lambda w: w.v - w.u, SHAPE, None),
    "batches": (
        lambda w: w.b2 + w.b3,
        SHAPE,
        "add: batch sizes 2 and 3 do not fit\n  got       (3,)x2  (3,)x3\n  expected  equal batch sizes, or 1",
    ),
    "batches of cmult": (lambda w: ab.cmult(w.b2, w.b3), SHAPE, None),
    "batches of cdiv": (lambda w: ab.cdiv(w.b2, w.b3), SHAPE, None),
    "batches of dot_product": (lambda w: ab.dot_product(w.b2, w.b3), SHAPE, None),
    "batches of concatenate": (lambda w: ab.concatenate([w.b2, w.b3]), SHAPE, None),
    "batches of affine_transform": (lambda w: ab.affine_transform([w.u, w.M, w.b2, w.M, w.b3]), SHAPE, None),
    "dot_product": (
        lambda w: ab.dot_product(w.v, w.u),
        SHAPE,
        "dot_product: the dims differ\n  got       (3,)  (2,)\n  expected  equal dims, equal batch sizes or 1",
    ),
    "dot_product with a number": (lambda w: ab.dot_product(w.v, 123.5), SHAPE, None),
    "squared_distance": (lambda w: ab.squared_distance(w.v, w.u), SHAPE, None),
    "esum": (lambda w: ab.esum([w.v, w.u]), SHAPE, None),
    "esum of many": (lambda w: ab.esum([w.v] * 40 + [w.u]), SHAPE, None),
    "average of many": (lambda w: ab.average([w.v] * 40 + [w.u]), SHAPE, None),
    "concatenate": (lambda w: ab.concatenate([w.M, w.v]), SHAPE, None),
    "concatenate along nothing": (
        lambda w: ab.concatenate([w.v, w.u], 5),
        SHAPE,
        "concatenate: dim 5 does not exist\n  got       (3,)  (2,)\n  expected  d from 0 to 1",
    ),
    "concatenate_cols": (lambda w: ab.concatenate_cols([w.v, w.u]), SHAPE, None),
    "concatenate_to_batch": (lambda w: ab.concatenate_to_batch([w.v, w.u]), SHAPE, None),
    "reshape": (
        lambda w: ab.reshape(w.v, (2, 2)),
        SHAPE,
        "reshape: (2,2) has 4 numbers\n  got       (3,), 3 numbers\n  expected  as many numbers",
    ),
    "reshape to nothing": (lambda w: ab.reshape(w.v, ()), SHAPE, None),
    "reshape to less than nothing": (lambda w: ab.reshape(w.v, (-3,)), SHAPE, None),
    "reshape to 8 dims": (lambda w: ab.reshape(w.v, (3,) + (1,) * 7), SHAPE, None),
    "transpose": (lambda w: ab.transpose(w.cube), SHAPE, None),
    "transpose to the same dim twice": (lambda w: ab.transpose(w.M, [0, 0]), SHAPE, None),
    "softmax of 3 dims": (lambda w: ab.softmax(w.cube), SHAPE, None),
    "softmax along nothing": (lambda w: ab.softmax(w.M, 2), SHAPE, None),
    "pickneglogsoftmax of a matrix": (lambda w: ab.pickneglogsoftmax(w.M, 0), SHAPE, None),
    "pickneglogsoftmax of a minibatch": (
        lambda w: ab.pickneglogsoftmax(w.b2, 0),
        SHAPE,
        "pickneglogsoftmax: 1 index for a minibatch of 2\n"
        "  got       (3,)x2\n"
        "  expected  one index for each element of the minibatch\n"
        "  try       pickneglogsoftmax_batch with a list of indices",
    ),
    "pickneglogsoftmax_batch": (lambda w: ab.pickneglogsoftmax_batch(w.b2, [0, 1, 2]), SHAPE, None),
    "pick_batch": (lambda w: ab.pick_batch(w.b2, [0, 1, 2]), SHAPE, None),
    "pick along nothing": (lambda w: ab.pick(w.v, 0, 1), SHAPE, None),
    "pick_range along nothing": (lambda w: ab.pick_range(w.v, 0, 1, 3), SHAPE, None),
    "add_input": (
        lambda w: w.state.add_input(w.u),
        SHAPE,
        "add_input: x is (2,)\n  expected  (3,), the builder's input_dim",
    ),
    "initial_state": (lambda w: w.lstm.initial_state([w.u]), SHAPE, None),
    # Inputs
    "inputTensor of nothing": (
        lambda w: ab.inputTensor([]),
        SHAPE,
        "inputTensor: shape (0,)\n  expected  1 to 7 dims, at least one number",
    ),
    "inputTensor without numbers": (lambda w: ab.inputTensor(np.ones((0, 3))), SHAPE, None),
    "inputTensor of 8 dims": (lambda w: ab.inputTensor(np.ones((1,) * 8)), SHAPE, None),
    "inputTensor, ragged": (
        lambda w: ab.inputTensor([[1.0], [1.0, 2.0]]),
        VALUE,
        "inputTensor: the lists are ragged, or hold something that is no number",
    ),
    "inputTensor of a hole": (lambda w: ab.inputTensor([1.0, None]), VALUE, None),
    "inputTensor of unequal arrays": (lambda w: ab.inputTensor([np.ones(2), np.ones(3)]), SHAPE, None),
    "inputTensor(None)": (
        lambda w: ab.inputTensor(None),
        OPERAND,
        "inputTensor: None (NoneType)\n  expected  an array or a list of numbers",
    ),
    "inputTensor of a tuple": (lambda w: ab.inputTensor((1.0, 2.0)), OPERAND, None),
    "inputTensor of a number": (
        lambda w: ab.inputTensor(1.0),
        OPERAND,
        "inputTensor: 1.0 (float)\n  expected  an array or a list of numbers\n  try       scalarInput",
    ),
    "inputTensor of text": (lambda w: ab.inputTensor("1.0"), OPERAND, None),
    "inputTensor of texts": (lambda w: ab.inputTensor(["1.0"]), OPERAND, None),
    "inputTensor of complex numbers": (lambda w: ab.inputTensor(np.ones(2, complex)), OPERAND, None),
    "inputTensor without dims": (lambda w: ab.inputTensor(np.array(1.0)), OPERAND, None),
    "inputTensor of an expression": (lambda w: ab.inputTensor(w.v), OPERAND, None),
    "inputTensor of expressions": (lambda w: ab.inputTensor([w.v, w.v]), (ValueError,), None),
    "inputVector of nothing": (lambda w: ab.inputVector([]), SHAPE, None),
    "inputVector of lists": (lambda w: ab.inputVector([[1.0]]), OPERAND, None),
    "inputVector of a number": (lambda w: ab.inputVector(1.0), OPERAND, None),
    "inputVector of text": (lambda w: ab.inputVector("abc"), OPERAND, None),
    "scalarInput of a list": (lambda w: ab.scalarInput([1.0]), OPERAND, None),
    "scalarInput(None)": (lambda w: ab.scalarInput(None), OPERAND, None),
    "vecInput(0)": (lambda w: ab.vecInput(0), SHAPE, None),
    "vecInput(1.5)": (lambda w: ab.vecInput(1.5), OPERAND, None),
    "vecInput, huge": (
        lambda w: ab.vecInput(10**15),
        SHAPE,
        "vecInput: (1000000000000000,) has 1,000,000,000,000,000 numbers\n  expected  at most 2,147,483,647",
    ),
    "zeros(-1)": (lambda w: ab.zeros(-1), SHAPE, "zeros: dims (-1,)\n  expected  1 to 7 sizes, each at least 1"),
    "zeros of a list": (lambda w: ab.zeros([2, 3]), OPERAND, None),
    "zeros, no batch": (lambda w: ab.zeros(2, 0), SHAPE, None),
    "ones of floats": (lambda w: ab.ones((2.5, 3)), OPERAND, None),
    "constant of text": (lambda w: ab.constant(2, "1"), OPERAND, None),
    "constant of nothing": (lambda w: ab.constant(2, None), OPERAND, None),
    "set, too short": (
        lambda w: w.vec.set([1.0]),
        VALUE,
        "set: 1 number\n  expected  3, as the input has",
    ),
    "set, too long": (lambda w: w.vec.set([1.0] * 4), VALUE, None),
    "set of text": (lambda w: w.vec.set("abc"), OPERAND, None),
    "set of a fixed input": (
        lambda w: w.fixed.set([1.0, 2.0, 3.0]),
        VALUE,
        "set: this input is fixed\n  try       inputTensor(array, reusable_expr=True)",
    ),
    "set of a row, out of range": (lambda w: w.row.set(5), RANGE, None),
    "set of a row, negative": (lambda w: w.row.set(-1), NEGATIVE, None),
    # Indices
    "pick": (
        lambda w: ab.pick(w.v, 3),
        RANGE,
        "pick: the index is 3, out of range\n  expected  an index from 0 to 2",
    ),
    "pick, negative": (
        lambda w: ab.pick(w.v, -1),
        NEGATIVE,
        "pick: the index is -1\n  expected  an index from 0 to 2",
    ),
    "pick, float": (lambda w: ab.pick(w.v, 1.5), OPERAND, "pick: the index is 1.5 (float)\n  expected  an integer"),
    "pick along a float": (lambda w: ab.pick(w.v, 0, 0.5), OPERAND, None),
    "pick of a huge number": (lambda w: ab.pick(w.v, 10**30), RANGE, None),
    "pick_batch, an index": (lambda w: ab.pick_batch(w.b2, [0, 3]), RANGE, None),
    "pick_batch, negative": (lambda w: ab.pick_batch(w.b2, [0, -1]), NEGATIVE, None),
    "pick_batch of an int": (lambda w: ab.pick_batch(w.b2, 0), OPERAND, None),
    "pick_batch of nothing": (lambda w: ab.pick_batch(w.v, []), VALUE, None),
    "pick_range": (
        lambda w: ab.pick_range(w.v, 2, 1),
        VALUE,
        "pick_range: the range of dim 0 is 2:1:1\n  expected  0 <= begin < end <= 3, a step of at least 1",
    ),
    "pick_range, too far": (lambda w: ab.pick_range(w.v, 0, 4), VALUE, None),
    "strided_select, backwards": (lambda w: ab.strided_select(w.v, [-1], [0], [3]), VALUE, None),
    "strided_select, too many": (lambda w: ab.strided_select(w.v, [1, 1, 1], [0], [3]), VALUE, None),
    "strided_select of an int": (lambda w: ab.strided_select(w.v, 1, 0, 3), OPERAND, None),
    "pickneglogsoftmax": (lambda w: ab.pickneglogsoftmax(w.v, 3), RANGE, None),
    "pickneglogsoftmax, negative": (lambda w: ab.pickneglogsoftmax(w.v, -1), NEGATIVE, None),
    "pickneglogsoftmax, float": (lambda w: ab.pickneglogsoftmax(w.v, 1.5), OPERAND, None),
    "pickneglogsoftmax_batch, an index": (lambda w: ab.pickneglogsoftmax_batch(w.b2, [0, 3]), RANGE, None),
    "pickneglogsoftmax_batch of an int": (lambda w: ab.pickneglogsoftmax_batch(w.b2, 1), OPERAND, None),
    "e[i]": (lambda w: w.v[3], INDEX, "index 3 of an expression (3,)\n  expected  from -3 to 2"),
    "e[-i]": (lambda w: w.v[-4], INDEX, None),
    "e[1.0]": (
        lambda w: w.v[1.0],
        OPERAND,
        "an expression (3,) with the index 1.0 (float)\n  expected  an integer, a slice, or several of them",
    ),
    "e[None]": (lambda w: w.v[None], OPERAND, None),
    "e[[0]]": (lambda w: w.v[[0]], OPERAND, None),
    "e[2:1]": (lambda w: w.v[2:1], VALUE, None),
    "e[1:1]": (lambda w: w.v[1:1], VALUE, None),
    "e[:-3]": (lambda w: w.v[:-3], VALUE, None),
    "e[::0]": (lambda w: w.v[::0], VALUE, None),
    "e[0.5:]": (lambda w: w.v[0.5:], OPERAND, None),
    "e[0, 1]": (lambda w: w.v[0, 1], INDEX, None),
    "e[:, :, :]": (lambda w: w.v[:, :, :], INDEX, None),
    "lookup": (lambda w: ab.lookup(w.E, 5), RANGE, "LookupParameter /E: row 5 of a table of 5 rows"),
    "lookup, negative": (
        lambda w: ab.lookup(w.E, -1),
        NEGATIVE,
        "LookupParameter /E: row -1: rows are counted from 0, and not from the end",
    ),
    "lookup, float": (lambda w: ab.lookup(w.E, np.nan), OPERAND, None),
    "lookup in a parameter": (
        lambda w: ab.lookup(w.W, 1),
        OPERAND,
        "lookup: an expression (10,20)\n  expected  LookupParameters",
    ),
    "E[i]": (lambda w: w.E[5], INDEX, None),
    "E[-1]": (lambda w: w.E[-1], NEGATIVE, None),
    "E[0:1]": (lambda w: w.E[0:1], OPERAND, None),
    "lookup_batch": (lambda w: ab.lookup_batch(w.E, [0, 5]), RANGE, None),
    "lookup_batch, negative": (lambda w: ab.lookup_batch(w.E, [-1]), NEGATIVE, None),
    "lookup_batch of nothing": (lambda w: ab.lookup_batch(w.E, []), EMPTY, None),
    "lookup_batch of an int": (lambda w: ab.lookup_batch(w.E, 3), OPERAND, None),
    "row_as_array": (lambda w: w.E.row_as_array(5), RANGE, None),
    # Types
    "tanh(None)": (
        lambda w: ab.tanh(None),
        OPERAND,
        "tanh: the argument is None (NoneType)\n  expected  an expression",
    ),
    "tanh of an array": (
        lambda w: ab.tanh(np.ones(3)),
        OPERAND,
        "tanh: the argument is a NumPy array of shape (3,)\n  expected  an expression\n  try       inputTensor(array)",
    ),
    "tanh of a list": (lambda w: ab.tanh([1.0]), OPERAND, None),
    "tanh of a number": (lambda w: ab.tanh(1.0), OPERAND, None),
    "cmult": (lambda w: ab.cmult(w.v, "a"), OPERAND, None),
    "cmult, a number and text": (lambda w: ab.cmult(123.5, "a"), OPERAND, None),
    "esum of an array": (lambda w: ab.esum([w.v, np.ones(3)]), OPERAND, None),
    "esum of a generator": (
        lambda w: ab.esum(e for e in [w.v]),
        OPERAND,
        "esum: the argument is a generator\n  expected  a list of expressions",
    ),
    "esum of an expression": (lambda w: ab.esum(w.v), OPERAND, None),
    "esum of nothing": (lambda w: ab.esum([]), EMPTY, "esum: the list of expressions is empty"),
    "average of nothing": (lambda w: ab.average([]), EMPTY, None),
    "concatenate of nothing": (lambda w: ab.concatenate([]), EMPTY, None),
    "concatenate_to_batch of nothing": (lambda w: ab.concatenate_to_batch([]), EMPTY, None),
    "affine_transform of nothing": (lambda w: ab.affine_transform([]), EMPTY, None),
    "esum with a hole": (
        lambda w: ab.esum([w.v, None]),
        EMPTY,
        "esum: element 2 of the list is None\n  expected  an expression",
    ),
    "affine_transform with a hole": (lambda w: ab.affine_transform([w.b, None, w.v]), EMPTY, None),
    "concatenate along a float": (lambda w: ab.concatenate([w.v, w.u], 0.5), OPERAND, None),
    "softmax along a float": (lambda w: ab.softmax(w.M, np.inf), OPERAND, None),
    "reshape to a list": (lambda w: ab.reshape(w.v, [3]), OPERAND, None),
    "reshape to an int": (lambda w: ab.reshape(w.v, 3), OPERAND, None),
    "transpose by an int": (lambda w: ab.transpose(w.M, 1), OPERAND, None),
    "v + None": (lambda w: w.v + None, ODD, "an expression + None (NoneType)\n  expected  an expression or a number"),
    "v + text": (lambda w: w.v + "a", ODD, None),
    "v + array": (
        lambda w: w.v + np.ones(3),
        ODD,
        "an expression + a NumPy array of shape (3,)\n  expected  an expression or a number\n  try       inputTensor(array)",
    ),
    "array + v": (lambda w: np.ones(3) + w.v, ODD, None),
    "v - list": (lambda w: w.v - [1.0], ODD, None),
    "v * complex": (lambda w: w.v * 1j, ODD, None),
    "None / v": (lambda w: None / w.v, ODD, None),
    "v + 10^400": (lambda w: w.v + 10**400, VALUE, None),
    "float(v)": (lambda w: float(w.s), (TypeError,), None),
    "np.tanh(v)": (lambda w: np.tanh(w.v), (TypeError,), None),
    "np.asarray(v)": (
        lambda w: np.asarray(w.v),
        OPERAND,
        "an expression is no array\n  try       npvalue(), to compute it",
    ),
    "Parameters()": (
        lambda w: ab.Parameters(),
        OPERAND,
        "Parameters is never made directly\n  try       add_parameters or add_lookup_parameters of a ParameterCollection",
    ),
    "LookupParameters()": (lambda w: ab.LookupParameters("a", 1), OPERAND, None),
    "Expression()": (lambda w: ab.Expression(), OPERAND, None),
    "copy of an expression": (lambda w: copy.copy(w.v), OPERAND, None),
    "copy of a collection": (lambda w: copy.deepcopy(w.model), OPERAND, None),
    "pickle of a collection": (lambda w: pickle.dumps(w.model), OPERAND, None),
    "copy of a graph": (lambda w: copy.copy(w.other), (TypeError,), None),
    "dropout(2)": (
        lambda w: ab.dropout(w.v, 2),
        VALUE,
        "dropout: p is 2 (int)\n  expected  a probability from 0 to 1",
    ),
    "dropout(nan)": (lambda w: ab.dropout(w.v, float("nan")), VALUE, None),
    "dropout(None)": (lambda w: ab.dropout(w.v, None), VALUE, None),
    "forward of nothing": (lambda w: ab.forward([]), (IndexError,), "forward: the list of expressions is empty"),
    "forward of a tuple": (lambda w: ab.forward((w.v,)), OPERAND, None),
    "values of None": (
        lambda w: ab.values([w.v, None]),
        OPERAND,
        "values: argument 2 is None (NoneType)\n  expected  an expression",
    ),
    "npvalues of an expression": (lambda w: ab.npvalues(w.v), OPERAND, None),
    # Values and gradients
    "scalar_value": (
        lambda w: w.v.scalar_value(),
        VALUE,
        "scalar_value() of an expression of 3 numbers, (3,)\n"
        "  try       npvalue() or vec_value(); sum_batches or sum_elems to make one number of it",
    ),
    "scalar_value of a table": (lambda w: w.E.scalar_value(), VALUE, None),
    "backward of a vector": (
        lambda w: w.v.backward(),
        VALUE,
        "backward() of an expression of 3 numbers, (3,); a loss is one number\n"
        "  try       sum_batches(loss) for a minibatch, sum_elems(loss) for a vector",
    ),
    "backward of a parameter": (lambda w: w.W.backward(), VALUE, None),
    "gradient before backward": (
        lambda w: w.v.gradient(),
        (RuntimeError,),
        "gradient() of a node without one\n  expected  a backward() before, on a loss recorded after this node",
    ),
    "gradient of a parameter before backward": (lambda w: w.W.gradient(), (RuntimeError,), None),
    # Graphs
    "two graphs": (
        lambda w: w.v + w.foreign,
        VALUE,
        "add: the arguments belong to different graphs\n"
        "  expected  expressions of one graph (and parameters, which belong to none)",
    ),
    "two graphs in a list": (lambda w: ab.esum([w.v, w.foreign]), VALUE, None),
    "two graphs in a long list": (lambda w: ab.esum([w.v] * 40 + [w.foreign]), VALUE, None),
    "two graphs in affine_transform": (lambda w: ab.affine_transform([w.foreign, w.M, w.v]), VALUE, None),
    "two graphs in forward": (lambda w: ab.forward([w.v, w.foreign]), VALUE, None),
    "an input of another graph": (lambda w: w.state.add_input(w.foreign), VALUE, None),
    "a parameter of another dtype": (
        lambda w: ab.tanh(w.p64),
        VALUE,
        "a parameter of dtype float64 is used in a graph of dtype float32\n"
        "  try       ParameterCollection(dtype='float32'), or configure(dtype='float64') before both are made",
    ),
    "a parameter of another dtype, second": (lambda w: w.v + w.p64, VALUE, None),
    "a parameter of another dtype in a list": (lambda w: ab.esum([w.v, w.p64]), VALUE, None),
    "a view of a parameter of another dtype": (lambda w: ab.reshape(w.p64, (1, 3)), VALUE, None),
    "a row of another dtype": (lambda w: w.e64[0], VALUE, None),
    "rows of another dtype": (lambda w: w.e64.batch([0]), VALUE, None),
    "value of a reverted expression": (
        lambda w: w.reverted.value(),
        STALE,
        "this expression is stale: it was made before the last cg_revert(), which dropped it\n"
        "  try       make it again in the current graph",
    ),
    "reverted, first operand": (
        lambda w: w.reverted + w.v,
        STALE_OPERAND,
        "argument 1 of add is stale: it was made before the last cg_revert(), which dropped it\n"
        "  try       make it again in the current graph",
    ),
    "reverted, second operand": (lambda w: w.v + w.reverted, STALE_OPERAND, None),
    "reverted, only operand": (lambda w: ab.tanh(w.reverted), STALE_OPERAND, None),
    "reverted, in a list": (lambda w: ab.esum([w.v, w.reverted]), STALE_OPERAND, None),
    "reverted, in a long list": (lambda w: ab.esum([w.v] * 40 + [w.reverted]), STALE_OPERAND, None),
    "reverted, part": (lambda w: w.reverted[0], STALE_OPERAND, None),
    "reverted, gradient": (lambda w: w.reverted.gradient(), STALE, None),
    # Parameters, trainers, builders, settings
    "add_parameters of a float": (lambda w: w.model.add_parameters(2.5), (TypeError,), None),
    "add_parameters of nothing": (lambda w: w.model.add_parameters(-1), SHAPE, None),
    "add_parameters, huge": (lambda w: w.model.add_parameters((10**9, 10**9)), SHAPE, None),
    "add_parameters, named": (lambda w: w.model.add_parameters(2, name="a_b"), (RuntimeError, ConstructionError), None),
    "add_parameters, device": (lambda w: w.model.add_parameters(2, device="GPU:7"), (RuntimeError, DeviceError), None),
    "add_parameters, saxe": (lambda w: w.model.add_parameters((2, 2), init="saxe"), VALUE, None),
    "set_value": (lambda w: w.W.set_value([1.0]), SHAPE, None),
    "init_row": (lambda w: w.E.init_row(0, [1.0]), SHAPE, None),
    "init_row, out of range": (lambda w: w.E.init_row(9, [1.0] * 3), RANGE, None),
    "init_from_array": (lambda w: w.E.init_from_array(np.ones((9, 3))), SHAPE, None),
    "scale(None)": (lambda w: w.W.scale(None), (TypeError,), None),
    "clip_inplace of text": (lambda w: w.W.clip_inplace("a", 1), (TypeError,), None),
    "set_weight_decay(-1)": (lambda w: w.model.set_weight_decay(-1), VALUE, None),
    "a trainer of nothing": (lambda w: ab.SimpleSGDTrainer(None), (TypeError,), None),
    "a learning rate of text": (lambda w: ab.SimpleSGDTrainer(w.model, "a"), (TypeError,), None),
    "a learning rate of NaN": (lambda w: ab.AdamTrainer(w.model, float("nan")), VALUE, None),
    "LSTMBuilder(0, ...)": (lambda w: ab.LSTMBuilder(0, 1, 1, w.model), VALUE, None),
    "LSTMBuilder(1.5, ...)": (lambda w: ab.LSTMBuilder(1.5, 1, 1, w.model), VALUE, None),
    "LSTMBuilder without a model": (lambda w: ab.LSTMBuilder(1, 1, 1, None), OPERAND, None),
    "set_dropouts": (lambda w: w.lstm.set_dropouts(2, 0), VALUE, None),
    "set_h(None)": (lambda w: w.state.set_h(None), OPERAND, None),
    "set_s of another number": (lambda w: w.state.set_s([w.v] * 3), VALUE, None),
    "add_input(None)": (lambda w: w.state.add_input(None), OPERAND, None),
    "transduce(None)": (lambda w: w.state.transduce(None), OPERAND, None),
    "an unknown policy": (
        lambda w: ab.configure(policy="fast"),
        VALUE,
        "policy 'fast' is unknown\n  expected  'none', 'depth', 'agenda', 'ratio'",
    ),
    "an unknown policy of a graph": (lambda w: ab.Graph(policy="fast"), VALUE, None),
    "an unknown policy of renew_cg": (lambda w: ab.renew_cg(autobatching="fast"), VALUE, None),
    "an unknown dtype": (
        lambda w: ab.configure(dtype="int32"),
        VALUE,
        "dtype 'int32' is not supported\n  expected  'float32' or 'float64'",
    ),
    "no threads": (lambda w: ab.configure(threads=0), VALUE, None),
    # Builders
    "RNNBuilder": (
        lambda w: ab.RNNBuilder(1, 2, 3, w.model),
        OPERAND,
        "RNNBuilder has no step\n  try       one of its subclasses, for example VanillaLSTMBuilder",
    ),
    "TreeLSTMBuilder": (
        lambda w: ab.TreeLSTMBuilder(),
        OPERAND,
        "TreeLSTMBuilder has no nodes\n  try       one of its subclasses, for example NaryTreeLSTMBuilder",
    ),
    "SoftmaxBuilder": (
        lambda w: ab.SoftmaxBuilder(3, 4, w.model),
        OPERAND,
        "SoftmaxBuilder has no scores\n  try       one of its subclasses, for example StandardSoftmaxBuilder",
    ),
    "TreeLSTMBuilder.from_spec": (lambda w: ab.TreeLSTMBuilder.from_spec((1, 2, 3), w.model), OPERAND, None),
    "SoftmaxBuilder.from_spec": (lambda w: ab.SoftmaxBuilder.from_spec((3, 4, True), w.model), OPERAND, None),
    "RNNBuilder.from_spec": (lambda w: ab.RNNBuilder.from_spec((1, 2, 3), w.model), OPERAND, None),
    "from_spec: too long": (
        lambda w: ab.GRUBuilder.from_spec((1, 2, 3, 4), w.model),
        VALUE,
        "GRUBuilder.from_spec: a tuple of 4\n  expected  (layers, input_dim, hidden_dim, ...)",
    ),
    "from_spec: too short": (lambda w: ab.VanillaLSTMBuilder.from_spec((1, 2), w.model), VALUE, None),
    "from_spec: no tuple": (lambda w: ab.VanillaLSTMBuilder.from_spec(7, w.model), VALUE, None),
    "from_spec of a tree": (
        lambda w: ab.NaryTreeLSTMBuilder.from_spec((1, 2, 3), w.model),
        VALUE,
        "NaryTreeLSTMBuilder.from_spec: a tuple of 3\n  expected  (N, layers, input_dim, hidden_dim)",
    ),
    "from_spec of two directions": (lambda w: ab.BiRNNBuilder.from_spec((1, 2, 4), w.model), VALUE, None),
    "from_spec of a softmax": (lambda w: ab.StandardSoftmaxBuilder.from_spec((2, 4, 1, 2), w.model), VALUE, None),
    "from_spec of classes: a number": (lambda w: ab.ClassFactoredSoftmaxBuilder.from_spec((2, 3, True), w.model), VALUE, None),
    "from_spec of classes: three": (lambda w: ab.ClassFactoredSoftmaxBuilder.from_spec((2, [(0,)]), w.model), VALUE, None),
    "from_spec of classes: within classes": (
        lambda w: ab.ClassFactoredSoftmaxBuilder.from_spec((2, [[(0,)], (1,)], True), w.model),
        VALUE,
        None,
    ),
    "from_spec of classes: an empty one": (
        lambda w: ab.HierarchicalSoftmaxBuilder.from_spec((2, [[], (0,)], True), w.model),
        VALUE,
        "HierarchicalSoftmaxBuilder.from_spec: a list of 0 among the classes\n"
        "  expected  lists of classes, and tuples of numbers of words, none of them empty",
    ),
    "from_spec of classes: a word twice": (
        lambda w: ab.HierarchicalSoftmaxBuilder.from_spec((2, [(0,), (0,)], True), w.model),
        VALUE,
        None,
    ),
    "from_spec of classes: a word that is none": (
        lambda w: ab.HierarchicalSoftmaxBuilder.from_spec((2, [("a",), (0,)], True), w.model),
        OPERAND,
        None,
    ),
    "BiRNNBuilder: factory": (
        lambda w: ab.BiRNNBuilder(1, 2, 4, w.model, ab.BiRNNBuilder),
        OPERAND,
        "BiRNNBuilder: the factory is a type\n  expected  a class of builders",
    ),
    "BiRNNBuilder: another class": (lambda w: ab.BiRNNBuilder(1, 2, 4, w.model, type), OPERAND, None),
    "BiRNNBuilder: a factory of nothing": (lambda w: ab.BiRNNBuilder(1, 2, 4, w.model, lambda *a: None), OPERAND, None),
    "BiRNNBuilder: a factory without a form": (lambda w: ab.BiRNNBuilder(1, 2, 4, w.model, lambda: 0), OPERAND, None),
    "BiRNNBuilder: layers": (lambda w: ab.BiRNNBuilder(1, 2, 4, w.model, ab.GRUBuilder, [w.lstm]), OPERAND, None),
    "BiRNNBuilder: no layers": (lambda w: ab.BiRNNBuilder(1, 2, 4, w.model, ab.GRUBuilder, []), OPERAND, None),
    "too many layers": (
        lambda w: ab.UnidirectionalTreeLSTMBuilder(10**6, 3, 3, w.model),
        VALUE,
        "UnidirectionalTreeLSTMBuilder: layers is 1000000 (int)\n  expected  at most 1000",
    ),
    "too many layers of two directions": (lambda w: ab.BiRNNBuilder(10**6, 3, 4, w.model, ab.GRUBuilder), VALUE, None),
    "too many children": (
        lambda w: ab.NaryTreeLSTMBuilder(10**5, 1, 3, 3, w.model),
        VALUE,
        "NaryTreeLSTMBuilder: 1 layers and N = 100000 (int) take 20,000,500,008 parameters\n"
        "  expected  at most 100,000: 2 N² + 5 N + 8 for each layer",
    ),
    # Trees and stacks of states
    "Tree": (lambda w: ab.Tree(w.lstm), OPERAND, None),
    "tree.h of nothing": (
        lambda w: w.tree.initial_state().h(0),
        INDEX,
        "h: the tree has no nodes\n  try       add_input first",
    ),
    "tree.add_input: number": (lambda w: w.tree.initial_state().add_input("a", [], w.v), OPERAND, None),
    "tree.add_input: children": (lambda w: w.tree.initial_state().add_input(0, ["a"], w.v), OPERAND, None),
    "tree.add_input: a child of the first": (
        lambda w: w.tree.initial_state().add_input(0, [0], w.v),
        INDEX,
        "add_input: node 0 has a child 0\n  expected  none: it is the first node",
    ),
    "tree.add_input: another graph": (lambda w: w.tree.initial_state().add_input(0, [], w.foreign), VALUE, None),
    "tree.add_input: dims": (lambda w: w.tree.initial_state().add_input(0, [], w.u), SHAPE, None),
    "StackedRNNState: prev": (lambda w: ab.StackedRNNState([w.state], w.state), OPERAND, None),
    "stack.add_inputs": (lambda w: ab.StackedRNNState([w.state]).add_inputs(3), OPERAND, None),
    "stack.add_input: dims of the upper one": (lambda w: ab.StackedRNNState([w.state, w.state]).add_input(w.v), SHAPE, None),
    "softmax of another graph": (lambda w: w.softmax.full_log_distribution(w.foreign), VALUE, None),
    # Tensors, settings, drawings
    "Tensor": (
        lambda w: ab.Tensor([1.0], None),
        OPERAND,
        "Tensor is never made directly\n  try       tensor_value() of an expression",
    ),
    "topk: dim": (lambda w: w.v.tensor_value().topk("a"), OPERAND, "topk: dim is str 'a'\n  expected  an integer"),
    "topk: num": (lambda w: w.v.tensor_value().topk(0, 1.5), OPERAND, None),
    "samples beyond all memory": (lambda w: w.v.tensor_value().categorical_sample_log_prob(0, 10**12), VALUE, None),
    "init_from_params": (lambda w: ab.init_from_params(3), OPERAND, None),
    "from_config": (lambda w: ab.DynetParams().from_config(3), OPERAND, None),
    "from_config: unknown": (lambda w: ab.DynetParams().from_config({"x": 1}), VALUE, None),
    "get_device_info": (lambda w: ab.get_device_info(["CPU"]), (RuntimeError, DeviceError), None),
    "dump_cg into a descriptor": (lambda w: ab.dump_cg(1), OPERAND, "dump_cg: the file name is int 1\n  expected  a path"),
    "print_graphviz: names": (lambda w: ab.print_graphviz(expression_names={"a": "b"}), OPERAND, None),
    # Files
    "save of a builder without a collection": (lambda w: ab.save("x", [NoCollection()]), (AttributeError,), None),
    "save of a builder with a strange spec": (
        lambda w: ab.save("x", [ab.BiRNNBuilder(1, 2, 4, w.model, lambda *sizes: ab.GRUBuilder(*sizes))]),
        VALUE,
        "save: the spec of a BiRNNBuilder holds a function\n"
        "  expected  numbers, texts, tuples, lists, dicts, classes with a from_spec, and operations such as tanh",
    ),
    "save: a null character": (lambda w: w.W.save("a\0"), VALUE, None),
    "save of an expression": (lambda w: ab.save("x", w.v), OPERAND, None),
    "add_inputs of an expression": (lambda w: w.state.add_inputs(w.v), SHAPE, None),
    "stack.add_inputs of an expression": (lambda w: ab.StackedRNNState([w.state]).add_inputs(w.v), SHAPE, None),
    "save of an array": (lambda w: ab.save("x", np.array(3.0)), OPERAND, None),
    "reset_random_seed(-1)": (lambda w: ab.reset_random_seed(-1), (OverflowError,), None),
    "reset_random_seed of text": (lambda w: ab.reset_random_seed("1"), (TypeError,), None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_call(w, name):
    call, kinds, text = CASES[name]
    check(lambda: call(w), kinds, text, graphs=(w.other,))
    assert ab.dot_product(w.v, w.v).value() == 14.0
    assert (w.foreign + w.foreign).value() == [2.0, 4.0, 6.0]


def test_the_line_is_that_of_the_call(w):
    with pytest.raises(ShapeError) as caught:
        w.v + w.u
    assert outside(caught.value).line == "w.v + w.u"


# Bad calls that need something before them ----------------------------------------------------------------------------


def test_a_product_of_unequal_minibatches(w):
    a, b = w.M * w.b2, w.M * w.b3
    check(lambda: a + b, SHAPE)


def test_a_step_that_fails_leaves_nothing(w):
    """Neither the zeros before a first state nor the masks of dropout, nor an upper layer's lower one."""
    after = w.state.add_input(w.b2)
    check(lambda: after.add_input(w.b3), SHAPE)
    deep = ab.LSTMBuilder(2, 3, 3, w.model)
    deep.set_dropout(0.5)
    deep.initial_state()
    bad = ab.inputTensor(np.ones((3, 2)), batched=True)
    state = deep.initial_state([w.b3, w.b3, w.b3, w.b3])
    check(lambda: state.add_input(bad), SHAPE)
    assert len(state.add_input(w.b3).output().npvalue()) == 3


HALF_MADE = {
    "VanillaLSTMBuilder": lambda m: ab.VanillaLSTMBuilder(2, 3, 2**40, m),
    "VanillaLSTMBuilder, normalised": lambda m: ab.VanillaLSTMBuilder(1, 2**38, 2, m, ln_lstm=True),
    "SparseLSTMBuilder": lambda m: ab.SparseLSTMBuilder(2, 3, 2**31, m),
    "GRUBuilder": lambda m: ab.GRUBuilder(1, 3, 2**31, m),
    "NaryTreeLSTMBuilder": lambda m: ab.NaryTreeLSTMBuilder(1, 1, 2**40, 2**20, m),
    "UnidirectionalTreeLSTMBuilder": lambda m: ab.UnidirectionalTreeLSTMBuilder(1, 3, 2**40, m),
    "BidirectionalTreeLSTMBuilder": lambda m: ab.BidirectionalTreeLSTMBuilder(1, 3, 2**40, m),
    "BiRNNBuilder": lambda m: ab.BiRNNBuilder(2, 3, 2**40, m, ab.LSTMBuilder),
    "StandardSoftmaxBuilder": lambda m: ab.StandardSoftmaxBuilder(2**30, 2**30, m),
    "ClassFactoredSoftmaxBuilder": lambda m: ab.ClassFactoredSoftmaxBuilder.from_spec((2**41, [(0,), (1, 2)], True), m),
}


@pytest.mark.parametrize("name", HALF_MADE)
def test_a_builder_that_cannot_be_made_leaves_no_parameters(name):
    model = ab.ParameterCollection()
    with pytest.raises(ValueError, match=r"at most|numbers") as caught:
        HALF_MADE[name](model)
    assert isinstance(caught.value, (ShapeError, ArgumentError))
    assert not model.parameters_list() and not model.lookup_parameters_list()
    assert ab.LSTMBuilder(1, 2, 3, model).param_collection().name() == "/vanilla-lstm-builder/"
    assert ab.GRUBuilder(1, 2, 3, model).param_collection().name() == "/gru-builder/"


def test_a_node_of_a_tree_that_fails_leaves_nothing(w):
    """Neither in the graph nor in the tree, where a lower layer was recorded before the upper one found the error."""
    with ab.Graph():
        x = ab.inputVector([1.0, 2.0, 3.0])
        tree = ab.UnidirectionalTreeLSTMBuilder(1, 3, 4, w.model).initial_state()
        tree.add_input(0, [], x)  # h of 4 numbers, which an LSTM of inputs of 3 cannot read
        check(lambda: tree.add_input(1, [0], x), SHAPE)
        assert tree.add_input(1, [], x).dim() == ((4,), 1)


def test_a_result_too_large_for_its_indices(w):
    row, column = ab.reshape(ab.zeros(100_000), (1, 100_000)), ab.zeros(100_000)
    check(
        lambda: row + column,
        SHAPE,
        "add: the result (100000,100000) would have 10,000,000,000 numbers\n"
        "  got       (1,100000)  (100000,)\n"
        "  expected  at most 2,147,483,647 numbers",
    )


def test_gradient_of_a_node_after_the_loss(w):
    ab.sum_elems(w.v).backward()
    later = ab.tanh(w.v)
    check(lambda: later.gradient(), (RuntimeError,))


@pytest.mark.parametrize(
    "use",
    [
        lambda e: e.value(),
        lambda e: e.npvalue(),
        lambda e: e.vec_value(),
        lambda e: e.scalar_value(),
        lambda e: e.forward(),
        lambda e: e.backward(),
        lambda e: e.gradient(),
        lambda e: e.dim(),
        lambda e: e.set([1.0]),
    ],
)
def test_a_stale_expression(use):
    e = ab.scalarInput(1.0)
    e.backward(full=True)
    ab.renew_cg()
    check(
        lambda: use(e),
        STALE,
        "this expression is stale: it was made before the last renew_cg(), which dropped it\n"
        "  try       make it again in the current graph",
    )
    assert str(e).startswith("expression 0/")


OPERATIONS = {
    "+": lambda e, x: e + x,
    "+ right": lambda e, x: x + e,
    "-": lambda e, x: e - x,
    "*": lambda e, x: e * x,
    "/": lambda e, x: e / x,
    "negative": lambda e, x: -e,
    "number": lambda e, x: e + 1.0,
    "number left": lambda e, x: 1.0 - e,
    "hinge": lambda e, x: ab.hinge(e, 0),
    "huber_distance": lambda e, x: ab.huber_distance(e, x),
    "huber_distance right": lambda e, x: ab.huber_distance(x, e),
    "pairwise_rank_loss": lambda e, x: ab.pairwise_rank_loss(e, x),
    "l1_distance": lambda e, x: ab.l1_distance(x, e),
    "poisson_loss": lambda e, x: ab.poisson_loss(e, 1),
    "log_softmax": lambda e, x: ab.log_softmax(e, [0]),
    "dropout_dim": lambda e, x: ab.dropout_dim(e, 0, 0.5),
    "noise": lambda e, x: ab.noise(e, 0.5),
    "to_device": lambda e, x: ab.to_device(e, "CPU"),
    "pick": lambda e, x: ab.pick(e, 0),
    "index": lambda e, x: e[0],
    "slice": lambda e, x: e[0:1],
    "reshape": lambda e, x: ab.reshape(e, (1, 1)),
    "transpose": lambda e, x: ab.transpose(e),
    "nobackprop": lambda e, x: ab.nobackprop(e),
    "dropout": lambda e, x: ab.dropout(e, 0.5),
    "softmax": lambda e, x: ab.softmax(e),
    "pickneglogsoftmax": lambda e, x: ab.pickneglogsoftmax(e, 0),
    "pickneglogsoftmax_batch": lambda e, x: ab.pickneglogsoftmax_batch(e, [0]),
    "pick_batch": lambda e, x: ab.pick_batch(e, [0]),
    "tanh": lambda e, x: ab.tanh(e),
    "cmult": lambda e, x: ab.cmult(x, e),
    "dot_product": lambda e, x: ab.dot_product(e, x),
    "esum": lambda e, x: ab.esum([x, e]),
    "esum of one": lambda e, x: ab.esum([e]),
    "average": lambda e, x: ab.average([e, x]),
    "concatenate": lambda e, x: ab.concatenate([e, x]),
    "concatenate_cols": lambda e, x: ab.concatenate_cols([x, e]),
    "concatenate_to_batch": lambda e, x: ab.concatenate_to_batch([e, e]),
    "affine_transform": lambda e, x: ab.affine_transform([x, ab.reshape(x, (1, 1)), e]),
    "forward": lambda e, x: ab.forward([e]),
    "values": lambda e, x: ab.values([x, e]),
}


@pytest.mark.parametrize("before", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_stale_operand(name, before):
    """Of an operation that is seen for the first time, and of one whose node type is known, in each place."""
    use = OPERATIONS[name]
    e = ab.scalarInput(1.0)
    if before:
        use(e, ab.scalarInput(2.0))
    ab.renew_cg()
    x = ab.inputVector([2.0])
    with pytest.raises(ValueError, match=r"argument . of \w+ is stale: it was made before the last renew_cg\(\)") as caught:
        use(e, x)
    assert isinstance(caught.value, StaleExpressionError) and isinstance(caught.value, RuntimeError)
    assert len(ab.current_graph()) == (2 if name == "affine_transform" else 1)
    assert use(ab.scalarInput(1.0), x) is not False


def test_a_stale_state(w):
    """A builder is used again in each graph; its old states say that they are old."""
    after = w.state.add_input(w.v)
    ab.renew_cg()
    x = ab.inputVector([1.0, 2.0, 3.0])
    for state in (w.state, after):
        check(
            lambda state=state: state.add_input(x),
            STALE,
            "a state of another graph, or from before the last renew_cg()\n  try       builder.initial_state() again",
        )
    assert w.lstm.initial_state().add_input(x).output().dim() == ((4,), 1)


def test_a_builder_in_a_reverted_part(w):
    """What a builder made above a mark (zeros, masks) is not used below it."""
    w.lstm.set_dropout(0.5)
    state = w.lstm.initial_state()
    for _ in range(3):
        ab.cg_checkpoint()
        inside = state.add_input(w.v)
        assert len(inside.output().value()) == 4
        ab.cg_revert()
        with pytest.raises(StaleExpressionError):
            inside.output().value()
    ab.sum_elems(state.add_input(w.v).output()).backward()


def test_the_gradient_of_a_parameter_is_of_this_graph_alone(w):
    """Not what other passes added to it; asking leaves the sums, and the rows marked as touched, as they were."""
    ab.sum_elems(w.E[1]).backward()
    w.E.touched[:] = 0
    ab.renew_cg()
    loss = w.one * 3.0
    loss.backward()
    loss.backward()
    assert w.one.gradient() == [3.0] and w.one.grad_as_array() == [6.0]
    assert not w.E.gradient().any() and w.E.grad_as_array().any() and not w.E.touched.any()
    ab.renew_cg()
    ab.sum_elems(w.E[2]).backward()
    w.E.touched[:] = 0
    np.testing.assert_array_equal(w.E.gradient()[:, 2], 1.0)
    assert w.E.gradient().sum() == 3.0 and not w.E.touched.any()


def test_a_checkpoint_of_an_empty_graph():
    ab.cg_checkpoint()
    model = ab.ParameterCollection()
    W = model.add_parameters((2, 2))
    x = ab.inputVector([1.0, 2.0])
    ab.sum_elems(W * x).backward()
    ab.cg_revert()
    ab.cg_revert()
    assert len(ab.current_graph()) == 0
    x = ab.inputVector([1.0, 2.0])
    loss = ab.sum_elems(W * x)
    assert loss.value() == pytest.approx((W.as_array() @ [1.0, 2.0]).sum(), rel=1e-5)


# What looks odd and is right ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [2, 2.0, True, np.float64(2), np.float32(2), np.int64(2), np.bool_(True)])
def test_numbers_of_every_kind(w, c):
    for y, expected in (
        (w.v + c, 1.0 + c),
        (c + w.v, 1.0 + c),
        (w.v * c, c),
        (c * w.v, c),
        (c - w.v, float(c) - 1.0),
        (w.v / c, 1 / c),
    ):
        assert y.value()[0] == float(expected)


def test_a_tuple_for_a_list(w):
    assert ab.esum((w.v, w.v)).value() == [2.0, 4.0, 6.0]


def test_parameters_as_only_operands(w):
    """They belong to no graph: the node goes into the current one."""
    with ab.Graph() as graph:
        y = ab.sum_elems(ab.cmult(ab.tanh(w.one), w.one) + w.one * w.one)
    value = w.one.as_array()[0]
    assert y.value() == pytest.approx(np.tanh(value) * value + value * value, rel=1e-5)
    assert len(graph) == 5


def test_renew_cg_inside_an_explicit_graph(w):
    """It drops that graph; what lies around it comes back when the block ends."""
    with ab.Graph() as graph:
        x = ab.inputVector([1.0])
        fresh = ab.renew_cg()
        assert ab.current_graph() is fresh
        check(lambda: ab.tanh(x), STALE_OPERAND)
        assert ab.tanh(ab.scalarInput(0.0)).value() == 0.0
    assert (w.v + w.v).value() == [2.0, 4.0, 6.0]
    with pytest.raises(StaleExpressionError, match="this graph was dropped by renew_cg"), graph:
        pass
    assert (w.v + w.v).value() == [2.0, 4.0, 6.0]


def test_a_collection_that_has_died():
    """A graph keeps the parameters it uses alive."""
    model = ab.ParameterCollection()
    W, E = model.add_parameters((3, 3)), model.add_lookup_parameters((5, 3))
    expected = np.tanh(W.as_array() @ E.row_as_array(2)).sum() + E.as_array()[1:3].sum() + E.row_as_array(4).sum()
    loss = ab.sum_elems(ab.tanh(W * E[2])) + ab.sum_elems(ab.sum_batches(E.batch([1, 2])))
    loss = loss + ab.sum_elems(ab.lookup(E, 4, update=False)) + ab.sum_elems(W.expr(update=False)) * 0.0
    del model, W, E
    gc.collect()
    other = ab.ParameterCollection()
    for _ in range(20):
        other.add_parameters((3, 3), init=float("nan"))
    assert loss.value() == pytest.approx(expected, rel=1e-5)
    loss.backward()


def test_an_array_that_holds_expressions_records_nothing(w):
    before = len(ab.current_graph())
    with pytest.raises(TypeError):
        np.array([w.v, w.u])
    with pytest.raises(TypeError):
        np.add(w.v, 1.0)
    assert len(ab.current_graph()) == before


# NaN and infinity -----------------------------------------------------------------------------------------------------


def test_the_first_nan_is_named(w):
    ab.configure(check_nan=True)
    ab.renew_cg()
    x = ab.inputVector([1.0, 0.5, 4.0])
    y = x - 3.0
    z = ab.log(y)
    loss = ab.sum_elems(z) + ab.sum_elems(ab.exp(x))
    for _ in range(2):  # it stays an error
        check(
            lambda: loss.value(),
            (RuntimeError, NumericalError),
            "log: NaN in node 3, in 2 of 3 numbers, the first node with it\n"
            "  got       log((3,)) -> (3,)\n"
            "            argument 1: node 2, subtract, (3,), from -2.5 to 1\n"
            "  try       keep the arguments where the result is finite",
        )
    assert y.value() == [-2.0, -2.5, 1.0]
    x.set([4.0, 5.0, 6.0])
    assert loss.value() == pytest.approx(np.log([1.0, 2.0, 3.0]).sum() + np.exp([4.0, 5.0, 6.0]).sum(), rel=1e-5)


def test_an_argument_that_held_nan_already_is_named():
    ab.configure(check_nan=True)
    ab.renew_cg()
    model = ab.ParameterCollection()
    W, b = model.add_parameters((2, 3), init=1.0), model.add_parameters((2,), init=float("nan"), name="bias")
    x = ab.inputVector([1.0, 2.0, float("nan")])
    y = ab.affine_transform([b, W, x])
    with pytest.raises(NumericalError) as caught:
        y.value()
    assert str(caught.value) == (
        "affine_transform: NaN in node 1, in 2 of 2 numbers, the first node with it\n"
        "  got       affine_transform((2,), (2,3), (3,)) -> (2,)\n"
        "            argument 1: Parameter /bias, (2,), holds it already, in 2 of 2\n"
        "            argument 2: Parameter /_0, (2,3), from 1 to 1\n"
        "            argument 3: node 0, input, (3,), holds it already, in 1 of 3\n"
        "  try       look at where argument 1 and argument 3 came from"
    )


def test_an_input_that_is_nan_is_named():
    ab.configure(check_nan=True)
    ab.renew_cg()
    x = ab.inputVector([1.0, float("nan")])
    with pytest.raises(NumericalError, match="input: NaN in node 0, in 1 of 2 numbers, the first node with it"):
        x.value()
    ab.configure(check_nan=False)
    ab.renew_cg()
    assert np.isnan(ab.inputVector([float("nan")]).value())


def test_nan_passes_where_nobody_asks():
    x = ab.log(ab.inputVector([-1.0, 1.0]))
    assert np.isnan(x.value()[0])


@pytest.mark.parametrize("number", [-1.0, 0.0])
def test_an_immediate_graph_fails_at_the_call(number):
    """NaN and infinity; the node and the numbers recorded for it are gone again."""
    ab.renew_cg(immediate_compute=True, check_validity=True)
    x = ab.inputVector([number, 1.0])
    assert (x + 1.0).value() == [number + 1.0, 2.0]
    error = check(lambda: ab.log(x), (RuntimeError, NumericalError))
    assert str(error).startswith("log: NaN or infinity in node 3, in 1 of 2 numbers, the first node with it\n")
    check(lambda: x / (0.0 if number else -0.0), (RuntimeError, NumericalError))
    assert ab.sum_elems(ab.exp(x)).value() == pytest.approx(np.exp([number, 1.0]).sum(), rel=1e-5)


def test_an_immediate_graph_is_happy_with_infinity_unless_asked():
    ab.renew_cg(immediate_compute=True)
    assert ab.log(ab.inputVector([0.0, 1.0])).value() == [-np.inf, 0.0]


def test_update_with_a_gradient_that_is_not_finite(w):
    trainer = ab.SimpleSGDTrainer(w.model)
    before = w.one.as_array()
    ab.log(w.one * 0.0).backward()
    with pytest.raises(RuntimeError, match=r"the norm of the gradients is (nan|inf); nothing was changed") as caught:
        trainer.update()
    assert isinstance(caught.value, NumericalError)
    np.testing.assert_array_equal(w.one.as_array(), before)


def test_a_number_too_large_for_float32_warns():
    with pytest.warns(RuntimeWarning, match="overflow"):
        ab.scalarInput(1e300)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            ab.inputVector([1e300])
        assert ab.inputVector([1.0, 2.0]).value() == [1.0, 2.0]

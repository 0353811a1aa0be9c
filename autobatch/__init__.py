"""Neural networks written for one instance in plain Python, batched automatically, forward and backward.

The public vocabulary is DyNet's: ``import autobatch as dy``. See ``docs/design.md`` for how it works.
"""

from autobatch import operators as _operators  # noqa: F401  gives expressions their operators
from autobatch.cg import (
    cg,
    cg_checkpoint,
    cg_revert,
    cg_version,
    configure,
    configured,
    free_memory,
    memory,
    renew_cg,
)
from autobatch.expression import Expression
from autobatch.functions.arithmetic import average, cdiv, cmult, esum
from autobatch.functions.convolution import circ_conv, circ_corr, conv2d, conv2d_bias, filter1d_narrow, maxpooling2d
from autobatch.functions.elementwise import exp, log, logistic, rectify, sqrt, square, tanh
from autobatch.functions.evaluation import forward, npvalues, values
from autobatch.functions.gradients import nobackprop
from autobatch.functions.linear import affine_transform, dot_product, squared_distance
from autobatch.functions.losses import log_softmax, pickneglogsoftmax, pickneglogsoftmax_batch, softmax
from autobatch.functions.noise import dropout
from autobatch.functions.reductions import sum_batches, sum_elems
from autobatch.functions.selection import (
    concatenate,
    concatenate_cols,
    concatenate_to_batch,
    fold_rows,
    kmh_ngram,
    pick,
    pick_batch,
    pick_batch_elem,
    pick_batch_elems,
    pick_range,
    pickrange,
    reshape,
    select_cols,
    select_rows,
    strided_select,
    transpose,
)
from autobatch.functions.tables import const_parameter, lookup, lookup_batch, parameter
from autobatch.graph import Graph, current_graph
from autobatch.initializers import (
    ConstInitializer,
    FromFileInitializer,
    GlorotInitializer,
    IdentityInitializer,
    NormalInitializer,
    NumpyInitializer,
    PyInitializer,
    SaxeInitializer,
    UniformInitializer,
)
from autobatch.inputs import constant, inputTensor, inputVector, ones, scalarInput, vecInput, zeroes, zeros
from autobatch.kernels._errors import (
    ArgumentError,
    ConstructionError,
    DeviceError,
    EmptyListError,
    IndexRangeError,
    InternalError,
    NegativeIndexError,
    NumericalError,
    OperandError,
    ShapeError,
    StaleExpressionError,
)
from autobatch.params import LookupParameters, Model, ParameterCollection, Parameters
from autobatch.rnn import LSTMBuilder, RNNState, VanillaLSTMBuilder
from autobatch.seeds import reset_random_seed
from autobatch.trainers import AdamTrainer, SimpleSGDTrainer, Trainer

__version__ = "0.1.0"

__all__ = [
    "AdamTrainer",
    "ArgumentError",
    "ConstInitializer",
    "ConstructionError",
    "DeviceError",
    "EmptyListError",
    "Expression",
    "FromFileInitializer",
    "GlorotInitializer",
    "Graph",
    "IdentityInitializer",
    "IndexRangeError",
    "InternalError",
    "LSTMBuilder",
    "LookupParameters",
    "Model",
    "NegativeIndexError",
    "NormalInitializer",
    "NumericalError",
    "NumpyInitializer",
    "OperandError",
    "ParameterCollection",
    "Parameters",
    "PyInitializer",
    "RNNState",
    "SaxeInitializer",
    "ShapeError",
    "SimpleSGDTrainer",
    "StaleExpressionError",
    "Trainer",
    "UniformInitializer",
    "VanillaLSTMBuilder",
    "affine_transform",
    "average",
    "cdiv",
    "cg",
    "cg_checkpoint",
    "cg_revert",
    "cg_version",
    "circ_conv",
    "circ_corr",
    "cmult",
    "concatenate",
    "concatenate_cols",
    "concatenate_to_batch",
    "configure",
    "configured",
    "const_parameter",
    "constant",
    "conv2d",
    "conv2d_bias",
    "current_graph",
    "dot_product",
    "dropout",
    "esum",
    "exp",
    "filter1d_narrow",
    "fold_rows",
    "forward",
    "free_memory",
    "inputTensor",
    "inputVector",
    "kmh_ngram",
    "log",
    "log_softmax",
    "logistic",
    "lookup",
    "lookup_batch",
    "maxpooling2d",
    "memory",
    "nobackprop",
    "npvalues",
    "ones",
    "parameter",
    "pick",
    "pick_batch",
    "pick_batch_elem",
    "pick_batch_elems",
    "pick_range",
    "pickneglogsoftmax",
    "pickneglogsoftmax_batch",
    "pickrange",
    "rectify",
    "renew_cg",
    "reset_random_seed",
    "reshape",
    "scalarInput",
    "select_cols",
    "select_rows",
    "softmax",
    "sqrt",
    "square",
    "squared_distance",
    "strided_select",
    "sum_batches",
    "sum_elems",
    "tanh",
    "transpose",
    "values",
    "vecInput",
    "zeroes",
    "zeros",
]

"""Builders of recurrent networks: parameters, and the states a program walks through. Written with public functions only.

state           RNNState, StackedRNNState
builder         what all builders share
simple          simple recurrent network, GRU
lstm            LSTMs: plain, compact, sparse, coupled, fast
bidirectional   both directions of any of them
tree            LSTMs over trees
"""

from autobatch.rnn.bidirectional import BiRNNBuilder
from autobatch.rnn.builder import RNNBuilder
from autobatch.rnn.lstm import (
    CompactVanillaLSTMBuilder,
    CoupledLSTMBuilder,
    FastLSTMBuilder,
    LSTMBuilder,
    SparseLSTMBuilder,
    VanillaLSTMBuilder,
)
from autobatch.rnn.simple import GRUBuilder, SimpleRNNBuilder
from autobatch.rnn.state import RNNState, StackedRNNState
from autobatch.rnn.tree import (
    BidirectionalTreeLSTMBuilder,
    NaryTreeLSTMBuilder,
    Tree,
    TreeLSTMBuilder,
    UnidirectionalTreeLSTMBuilder,
)

__all__ = [
    "BiRNNBuilder",
    "BidirectionalTreeLSTMBuilder",
    "CompactVanillaLSTMBuilder",
    "CoupledLSTMBuilder",
    "FastLSTMBuilder",
    "GRUBuilder",
    "LSTMBuilder",
    "NaryTreeLSTMBuilder",
    "RNNBuilder",
    "RNNState",
    "SimpleRNNBuilder",
    "SparseLSTMBuilder",
    "StackedRNNState",
    "Tree",
    "TreeLSTMBuilder",
    "UnidirectionalTreeLSTMBuilder",
    "VanillaLSTMBuilder",
]

"""Neural networks written for one instance in plain Python, batched automatically, forward and backward.

The public vocabulary is DyNet's: ``import autobatch as dy``.
"""

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
from autobatch.functions import *  # noqa: F403
from autobatch.graph import Graph, current_graph
from autobatch.params import LookupParameters, Model, ParameterCollection, Parameters
from autobatch.seeds import reset_random_seed
from autobatch.trainers import AdamTrainer, SimpleSGDTrainer, Trainer
from autobatch.rnn import LSTMBuilder, RNNState, VanillaLSTMBuilder

"""Parameters, look-up tables and the collections that hold them.

storage      parameters and tables: two flat arrays, known to graphs under a number
collection   collections: making, naming, saving, weight decay
"""

from autobatch.params.collection import Model, ParameterCollection, configure_weight_decay, room_for
from autobatch.params.storage import LookupParameters, Parameters, Storage, aligned, revision

__all__ = [
    "LookupParameters",
    "Model",
    "ParameterCollection",
    "Parameters",
    "Storage",
    "aligned",
    "configure_weight_decay",
    "revision",
    "room_for",
]

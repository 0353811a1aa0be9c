"""Where everything lies, and the tables of instructions: pure functions from integers to integers.

Forward. The values of all nodes of one type are one block, type by type, in the order in which they run, so the output of a
batch is contiguous and so are all outputs of a type:

    block of type 0                     | block of type 1      | ...
    | batch 3      | batch 7    | ...   | batch 4  | ...       |

An argument whose items already lie at even distances is read in place; otherwise kernels read through a list of addresses.
Arguments that a matrix product reads (DENSE) are copied together first where they do not lie together, into a block of their
own, also type by type: what was gathered for one batch stands beside what was gathered for the next.

In a graph for inference (`frugal_layout`) each batch has a block of its own, which is free for others after the last batch that
reads it; only what is asked for, and what nothing of the segment reads, stays. Copies share one place, as each is read at once.

Backward. The gradients have the same blocks. Batches run in reverse. Whether a batch may store a gradient or has to add to it
is known here: the first one to write to a node stores; where firsts and others mix in one batch, the firsts are zeroed and the
batch adds. A node whose parts are read (h and c of a step of an LSTM) is covered part by part, as long as the parts lie side by
side. Gradients of parameters that a whole type shares are formed last, once, from the blocks of the type.

    kind of node   value                                gradient
    op             in the block of its type             likewise
    view, part     inside its argument                  inside that of its argument
    input          where it was copied when recorded    a slot of its own, only if asked for
    row            in the table                         a slot of its own, added to the table at the end
    stop           inside its argument                  a slot of its own
    parameter      (negative argument)                  in the parameter

Nothing here touches a number of a value. Addresses are absolute; who calls answers for the memory behind them.

Each pass takes its parameters from a frame (`frame.py`): arrays come as pointers, so sizes are parameters too. Rows of the
tables of types and operands are addressed flat: `t` and `o` are the places where a row begins.
"""

from autobatch.plan.backward import backward_table
from autobatch.plan.card import row_groups, weight_lists
from autobatch.plan.frugal import HOLES, forget, frugal_layout, misses
from autobatch.plan.gradients import (
    gradient_layout,
    gradient_places,
    mark,
    room_of_gradient_layout,
    room_of_gradients,
    seed,
)
from autobatch.plan.parameters import rows_table, weight_table
from autobatch.plan.reduced import in_order, room_in_order, room_of_survey, survey
from autobatch.plan.values import forward_table, layout, place, room_of_layout

__all__ = [
    "HOLES",
    "backward_table",
    "forget",
    "forward_table",
    "frugal_layout",
    "gradient_layout",
    "gradient_places",
    "in_order",
    "layout",
    "mark",
    "misses",
    "place",
    "room_in_order",
    "room_of_gradient_layout",
    "room_of_gradients",
    "room_of_layout",
    "room_of_survey",
    "row_groups",
    "rows_table",
    "seed",
    "survey",
    "weight_lists",
    "weight_table",
]
